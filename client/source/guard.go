package source

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"isr/client/fetch"
	"isr/store/parcel"
	"isr/store/seal"
)

// guard leaves a place out that does not answer: after a failure for a second,
// then twice as long each time, up to a minute. After that one request tries
// it, the others doing without, and its success lets them back in.
type guard struct {
	mu     sync.Mutex
	until  time.Time     // left out, before it
	pause  time.Duration // the last one; 0: it answers
	trying bool
	ended  bool
	next   int
	going  map[int]context.CancelCauseFunc
}

const (
	firstPause = time.Second
	maxPause   = time.Minute
)

// defaultPatience is how long a guest waits for an answer.
const defaultPatience = 3 * time.Second

var errLeftOut = fmt.Errorf("left out for a while: %w", errAbsent)

// do runs f unless the place is left out. f's context ends when another
// request finds that the place does not answer.
func (g *guard) do(ctx context.Context, f func(context.Context) error) error {
	g.mu.Lock()
	if g.ended || g.pause > 0 && (g.trying || time.Now().Before(g.until)) {
		g.mu.Unlock()
		return errLeftOut
	}
	if g.pause > 0 {
		g.trying = true
	}
	if g.going == nil {
		g.going = make(map[int]context.CancelCauseFunc)
	}
	id := g.next
	g.next++
	inner, cancel := context.WithCancelCause(ctx)
	g.going[id] = cancel
	g.mu.Unlock()
	defer cancel(nil)

	err := f(inner)
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.going, id)
	switch {
	case err == nil:
		g.pause, g.trying = 0, false
	case errors.Is(context.Cause(inner), errLeftOut):
		return errLeftOut // somebody else found out
	case ctx.Err() != nil:
		g.trying = false // whoever asked has left: nothing is known
		return ctx.Err()
	case errors.Is(err, errAbsent), errors.Is(err, seal.ErrCorrupt):
		g.pause, g.trying = 0, false // it answers
	default:
		g.leaveOut()
	}
	return err
}

// trip leaves the place out as if it had failed.
func (g *guard) trip() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.leaveOut()
}

// leaveOut begins the next pause, under mu. Those who wait need not.
func (g *guard) leaveOut() {
	g.pause = max(firstPause, min(2*g.pause, maxPause))
	g.until, g.trying = time.Now().Add(g.pause), false
	for _, cancel := range g.going {
		cancel(errLeftOut)
	}
}

// stop ends all requests, for good.
func (g *guard) stop() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.ended = true
	for _, cancel := range g.going {
		cancel(errLeftOut)
	}
}

// Guarded is another source under the rule of places: left out while it does
// not answer.
type Guarded struct {
	source   fetch.TagVerifier
	patience time.Duration
	guard    guard
}

// Guard is source, which may take patience to answer a guest; 0 is 3 seconds.
func Guard(source fetch.TagVerifier, patience time.Duration) *Guarded {
	if patience == 0 {
		patience = defaultPatience
	}
	return &Guarded{source: source, patience: patience}
}

// VerifiesTags says that Get never returns bytes that do not match the tag.
func (g *Guarded) VerifiesTags() {}

// Get is that of the source, but for what takes too long.
func (g *Guarded) Get(ctx context.Context, tag seal.Tag) (sealed []byte, err error) {
	err = g.guard.do(ctx, func(ctx context.Context) error {
		d := g.patience
		if fetch.ClassOf(ctx) != fetch.Demand {
			d *= bulkPatience
		}
		ctx, cancel := context.WithTimeout(ctx, d)
		defer cancel()
		sealed, err = g.source.Get(ctx, tag)
		if errors.Is(err, parcel.ErrNoObject) {
			return errAbsent // it answers
		}
		return err
	})
	if errors.Is(err, errAbsent) {
		err = parcel.NewError(parcel.NoObject, "object %s: not there", tag)
	}
	if err != nil {
		return nil, err
	}
	return sealed, nil
}

// maxObject bounds what is taken for an object, bytes; usual is what all of
// them fit in but cfg archives: a chunk has 4 MiB at most.
const (
	maxObject = seal.MaxPlain + 1<<16
	usual     = 4<<20 + 1<<16
)

// large is held by whoever reads an object larger than usual: one at a time in
// the whole program, so that a body without end takes the memory of one.
var large = make(chan struct{}, 1)

// sink takes in one object, as it comes.
type sink struct {
	ctx   context.Context
	full  [][]byte // pieces before p, each of usual size
	p     []byte
	n     atomic.Int64 // bytes so far, for the watchdog
	large bool
}

var errTooLarge = fmt.Errorf("too large for an object: %w", seal.ErrCorrupt)

// expect makes room for size bytes, or refuses; size < 0 is not known.
func (s *sink) expect(size int64) error {
	switch {
	case size > maxObject:
		return errTooLarge
	case size > usual:
		if err := s.grow(); err != nil {
			return err
		}
	}
	if size > 0 {
		// What is larger than usual is believed when it comes.
		s.p = make([]byte, 0, min(size, usual)+1) // and one to find the end with
	}
	return nil
}

func (s *sink) grow() error {
	if s.large {
		return nil
	}
	select {
	case large <- struct{}{}:
		s.large = true
		return nil
	case <-s.ctx.Done():
		return context.Cause(s.ctx)
	}
}

func (s *sink) done() {
	if s.large {
		<-large
	}
}

// from reads r to its end. What is larger than usual is kept in pieces until
// it is whole: to grow a slice takes the memory twice.
func (s *sink) from(r io.Reader) error {
	for {
		switch {
		case len(s.p) < cap(s.p):
		case len(s.p) < usual:
			s.p = append(s.p, 0)[:len(s.p)]
		default:
			if err := s.grow(); err != nil {
				return err
			}
			s.full, s.p = append(s.full, s.p), make([]byte, 0, usual)
		}
		n, err := r.Read(s.p[len(s.p):cap(s.p)])
		s.p = s.p[:len(s.p)+n]
		if s.n.Add(int64(n)) > maxObject {
			return errTooLarge
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if s.ctx.Err() != nil {
			return context.Cause(s.ctx)
		}
	}
}

// whole is all that came.
func (s *sink) whole() []byte {
	if len(s.full) == 0 {
		return s.p
	}
	return slices.Concat(append(s.full, s.p)...)
}

// minRate is what a transfer must make, bytes a second, once it has begun.
const minRate = 32 << 10

// bulkPatience is how many times as long as a guest nobody may wait who does
// not: then there is room for many transfers on a narrow line.
const bulkPatience = 20

// transfer reads one file of the tree, and gives up on it when it takes too
// long. What a file system does not let go of is left behind.
func (p *Place) transfer(ctx context.Context, name string) ([]byte, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	s := &sink{ctx: ctx}
	done := make(chan error, 1)
	go func() {
		err := p.tree.read(ctx, name, s)
		s.done()
		done <- err
	}()
	began, patience, raised := time.Now(), p.patience, fetch.Raised(ctx)
	if fetch.ClassOf(ctx) == fetch.Demand {
		raised = nil
	} else {
		patience *= bulkPatience
	}
	due := func() time.Duration {
		rate := time.Duration(s.n.Load()) * time.Second / minRate
		return time.Until(began.Add(patience + rate))
	}
	t := time.NewTimer(due())
	defer t.Stop()
	for {
		select {
		case err := <-done:
			if err != nil && ctx.Err() != nil {
				err = context.Cause(ctx)
			}
			if err != nil {
				return nil, err
			}
			return s.whole(), nil
		case <-raised:
			raised, began, patience = nil, time.Now(), p.patience
			t.Reset(due())
		case <-t.C:
			if d := due(); d > 0 {
				t.Reset(d)
				continue
			}
			err := fmt.Errorf("no answer within %v", patience)
			if n := s.n.Load(); n > 0 {
				err = fmt.Errorf("too slow: %d bytes in %v", n, time.Since(began).Round(time.Millisecond))
			}
			cancel(err)
			p.tree.reset()
			return nil, err
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}
