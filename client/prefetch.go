package client

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"iter"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"isr/client/fetch"
	"isr/store/keyring"
	"isr/store/seal"
)

// traceTime is how long after a resume first touches are recorded, and
// maxTrace how many of an image: what a guest wants to get going, not what it
// does all day.
const (
	traceTime = 5 * time.Second
	maxTrace  = 1024
)

// prefetchWorkers is how many chunks are read ahead at a time.
const prefetchWorkers = 64

// recordTrace takes down the order of first touches until traceTime has
// passed. The returned function ends it and gives the file's content; nil if
// the guest boots, for what a boot touches no resumed guest will miss.
func (k *keeper) recordTrace(ctx context.Context) func() []byte {
	if k.co.State.Memory == "" {
		return func() []byte { return nil }
	}
	var mu sync.Mutex
	var trace []byte
	taken := false
	take := func() {
		mu.Lock()
		defer mu.Unlock()
		if !taken {
			taken, trace = true, k.touched()
		}
	}
	go func() {
		t := time.NewTimer(traceTime)
		defer t.Stop()
		select {
		case <-t.C:
			take()
		case <-ctx.Done():
		}
	}()
	return func() []byte {
		take()
		return trace
	}
}

// traceOrder is the order of images in a trace: a guest runs before it reads
// its disk.
var traceOrder = []string{keyring.Memory, keyring.Disk}

// touched is the first touches so far.
func (k *keeper) touched() []byte {
	var b bytes.Buffer
	for _, name := range traceOrder {
		sd := k.s.images[name]
		if sd == nil {
			continue
		}
		for i, n := range sd.image.Trace() {
			if i == maxTrace {
				break
			}
			fmt.Fprintf(&b, "%s %d\n", name, n)
		}
	}
	return b.Bytes()
}

// prefetch reads ahead what the last resume touched, in that order. It helps,
// and is not needed: its errors are nobody's.
func (k *keeper) prefetch(ctx context.Context) {
	defer func() { k.ahead.change(func(n *aheadCounts) { n.Over = true }) }()
	p, err := os.ReadFile(filepath.Join(k.rt.cfg, traceFile))
	if err != nil {
		return
	}
	k.ahead.change(func(n *aheadCounts) { n.Total = int64(bytes.Count(p, []byte("\n"))) })
	ctx = fetch.WithClass(ctx, fetch.Prefetch)
	for _, name := range traceOrder {
		before := k.ahead.counts()
		k.s.ladder.Prefetch(wantedFor(ctx, name), k.traced(ctx, name, p), prefetchWorkers, func(g fetch.Progress) {
			k.ahead.change(func(n *aheadCounts) {
				n.Done, n.Bytes = before.Done+g.Objects+g.Missing+g.Corrupt, before.Bytes+g.Bytes
			})
		})
	}
	if ctx.Err() == nil { // the trace may name what needs no object any more
		k.ahead.change(func(n *aheadCounts) { n.Total = n.Done })
	}
}

// traced is the tags of the chunks of one image that a trace names.
func (k *keeper) traced(ctx context.Context, image string, trace []byte) iter.Seq[seal.Tag] {
	return func(yield func(seal.Tag) bool) {
		lines := bufio.NewScanner(bytes.NewReader(trace))
		for lines.Scan() {
			name, num, _ := strings.Cut(lines.Text(), " ")
			n, err := strconv.ParseInt(num, 10, 64)
			sd := k.s.images[name]
			if err != nil || name != image || sd == nil || n < 0 || n >= sd.pristine.Chunks() {
				continue
			}
			ref, err := sd.tree.Ref(ctx, n)
			if err != nil {
				return
			}
			if !ref.IsNil() && !yield(ref.Tag) {
				return
			}
		}
	}
}
