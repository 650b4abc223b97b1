package client

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"slices"
	"sync"
	"time"

	"isr/client/vmm"
	"isr/locksrv/proto"
	"isr/store/keyring"
	"isr/store/parcel"
)

// The journal of use is what a report is made of: the file use in a checkout,
// a line of JSON for each run that began, each that ended, and each sealing.
// It is kept only if reports are wanted at all, and losing it loses nothing.

type useLine struct {
	Began  *proto.ReportRun    `json:"began,omitempty"`
	Run    *proto.ReportRun    `json:"run,omitempty"`
	Sealed []proto.ReportImage `json:"sealed,omitempty"`
}

// reporting reports whether this user wants anything to be told.
func (c *Client) reporting() bool { return c.Report == "ask" || c.Report == "yes" }

// noteUse adds a line to the journal.
func (co *Checkout) noteUse(l useLine) {
	if !co.client.reporting() {
		return
	}
	p, err := json.Marshal(l)
	if err != nil {
		return
	}
	f, err := os.OpenFile(co.path("use"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return
	}
	defer f.Close()
	f.Write(append(p, '\n'))
}

// use is what the journal says. A run that began and did not end was killed.
func (co *Checkout) use() (runs []proto.ReportRun, sealed []proto.ReportImage, text []byte) {
	text, err := os.ReadFile(co.path("use"))
	if err != nil {
		return nil, nil, nil
	}
	var began *proto.ReportRun
	killed := func() {
		if began != nil {
			began.Ended = proto.EndKilled
			runs = append(runs, *began)
		}
		began = nil
	}
	for line := range bytes.Lines(text) {
		var l useLine
		if json.Unmarshal(line, &l) != nil {
			continue // half a line, of a host that fell
		}
		switch {
		case l.Began != nil:
			killed()
			began = l.Began
		case l.Run != nil:
			began = nil
			runs = append(runs, *l.Run)
		case l.Sealed != nil:
			sealed = l.Sealed
		}
	}
	killed()
	return runs, sealed, text
}

// useOf counts one run for the journal.
type useOf struct {
	mu      sync.Mutex
	run     proto.ReportRun
	downAt  time.Time // since when the guest waits for a network
	in, out int64     // at the last look
}

// beginUse writes down that a run begins, and measures the link until ctx
// ends.
func (k *keeper) beginUse(ctx context.Context, driver string) {
	u := &k.use
	u.run = proto.ReportRun{Start: time.Now().UTC(), VMM: parcel.Clean(driver), Offline: k.o.Offline, Resumed: k.co.State.Memory != ""}
	k.co.noteUse(useLine{Began: &u.run})
	if k.s.srv == nil || !k.co.client.reporting() {
		return
	}
	go func() {
		second := time.NewTicker(time.Second)
		defer second.Stop()
		for {
			select {
			case <-second.C:
				k.lookAtLink()
			case <-ctx.Done():
				return
			}
		}
	}()
}

// lookAtLink notes what came and went since the last look, a second ago.
func (k *keeper) lookAtLink() {
	in, out := k.s.srv.Traffic()
	u := &k.use
	u.mu.Lock()
	defer u.mu.Unlock()
	u.run.Down, u.run.Up = max(u.run.Down, float64(in-u.in)), max(u.run.Up, float64(out-u.out))
	u.in, u.out = in, out
}

// started notes that the guest runs.
func (u *useOf) started() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.run.StartSeconds = time.Since(u.run.Start).Seconds()
}

// outage notes that the network went, or came back.
func (u *useOf) outage(down bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if !u.downAt.IsZero() {
		u.run.OutageSeconds += time.Since(u.downAt).Seconds()
		u.downAt = time.Time{}
	}
	if down {
		u.run.Outages++
		u.downAt = time.Now()
	}
}

// endUse writes down how a run went.
func (k *keeper) endUse(out vmm.Outcome, runErr error) {
	if !k.co.client.reporting() {
		return
	}
	u := &k.use
	u.outage(false)
	u.mu.Lock()
	defer u.mu.Unlock()
	r := &u.run
	r.Seconds = time.Since(r.Start).Seconds()
	r.Ended, r.Reboots, r.Accel, r.CPUSeconds = proto.EndOff, out.Reboots, out.Accel, out.CPU.Seconds()
	switch {
	case runErr != nil:
		r.Ended = proto.EndFailed
	case out.Suspended:
		r.Ended = proto.EndSuspended
	}
	st, ahead := k.sessionStats(), k.ahead.counts()
	r.In, r.Out, r.Prefetched, r.PrefetchWanted = st.Network.In, st.Network.Out, ahead.Done, ahead.Total
	if k.s.srv != nil {
		r.RTT = k.s.srv.RTT().Seconds()
	}
	for _, name := range imageNames {
		im, ok := st.Images[name]
		if !ok {
			continue
		}
		r.Images = append(r.Images, proto.ReportActivity{Image: name, ChunkSize: int64(im.ChunkSize), Touched: im.Touched,
			FirstWrites: im.FirstWrites, Modified: im.ModifiedNow, Fetched: im.Fetched, FetchedBytes: im.FetchedBytes,
			FetchErrors: im.FetchErrors, Reads: im.Reads, ReadBytes: im.ReadBytes, Writes: im.Writes, WrittenBytes: im.WrittenBytes,
			Flushes: im.Flushes, CacheHits: im.CacheHits, CacheMisses: im.CacheMisses, SavedBytes: im.SavedBytes, SkippedBytes: im.SkippedBytes,
			MissP50: im.FetchP50.Seconds(), MissP90: im.FetchP90.Seconds(), MissP99: im.FetchP99.Seconds()})
	}
	for _, c := range k.s.ladder.Counts() {
		kind := k.co.client.rungKind(c.Name)
		if kind == "" {
			continue
		}
		if kind == proto.RungLocal || kind == proto.RungRemote || kind == proto.RungSource {
			r.Places++
			if c.Hits+c.Misses > 0 {
				r.Answering++
			}
		}
		i := slices.IndexFunc(r.Rungs, func(g proto.ReportRung) bool { return g.Kind == kind })
		if i < 0 {
			i = len(r.Rungs)
			r.Rungs = append(r.Rungs, proto.ReportRung{Kind: kind})
		}
		g := &r.Rungs[i]
		g.Hits += c.Hits
		g.Misses += c.Misses
		g.Corrupt += c.Corrupt
		g.Errors += c.Errors
		g.Bytes += c.Bytes
		g.Seconds += c.Total.Seconds()
	}
	k.co.noteUse(useLine{Run: r})
}

// rungKind is what a rung of a ladder is to a report, which has no names of
// places; "": nothing.
func (c *Client) rungKind(name string) string {
	switch name {
	case "modified":
		return proto.RungModified
	case "hoard":
		return proto.RungHoard
	case sourceRung:
		return proto.RungServer
	case "absent":
		return ""
	}
	for _, p := range c.openPlaces(c.LookAside) {
		if p.Name() == name && p.Local() {
			return proto.RungLocal
		} else if p.Name() == name {
			return proto.RungRemote
		}
	}
	return proto.RungSource
}

// sealing counts the chunks of an image that is being sealed.
type sealing struct {
	mu sync.Mutex
	proto.ReportImage
}

func newSealing(im keyring.Image) *sealing {
	return &sealing{ReportImage: proto.ReportImage{Image: im.Name, Size: im.Size, ChunkSize: int64(im.ChunkSize)}}
}

// add counts a chunk: sealed is its object, nil if it has none of its own.
func (s *sealing) add(zero bool, sealed []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.Written++
	switch {
	case sealed != nil:
		s.New++
		s.NewBytes += int64(len(sealed))
	case zero:
		s.Zero++
	default:
		s.Same++
	}
}
