package fetch

import (
	"context"
	"sync"
	"time"
)

// gate keeps prefetching out of the way of demand.
//
// While no demand miss is on its way, prefetching is free. While one is, only
// a few objects may be prefetched at a time: one at first, then as many as
// demand does not feel. How long a demand miss takes is compared with the
// shortest of late: while it stays near that, the link has room, and on a long
// link it mostly has (one guest misses one chunk a round trip), so the limit
// grows; when it doubles, the limit is halved. Prefetching is never
// stopped altogether, since it is what ends the misses.
type gate struct {
	mu      sync.Mutex
	demand  int           // demand misses on their way
	ahead   int           // objects being prefetched
	limit   int           // of ahead, while demand > 0
	best    time.Duration // shortest demand miss of this period, 0: none yet
	before  time.Duration // and of the one before it
	since   time.Time     // when this period began
	changed chan struct{} // closed and replaced when someone waiting may go on
}

// limitMax bounds limit: more than this in flight gains nothing on any link.
const limitMax = 256

// jitter is what a demand miss may take longer without the link being to
// blame: a thread scheduled late, a disk seek on the server.
const jitter = 3 * time.Millisecond

// period is how long a shortest time is believed in: links change when a
// laptop moves, or a tunnel finds another way.
const period = time.Minute

func (g *gate) init() {
	g.limit = 1
	g.changed = make(chan struct{})
}

func (g *gate) wake() {
	close(g.changed)
	g.changed = make(chan struct{})
}

// enter waits until one more object may be prefetched.
func (g *gate) enter(ctx context.Context) error {
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		g.mu.Lock()
		if g.demand == 0 || g.ahead < g.limit {
			g.ahead++
			g.mu.Unlock()
			return nil
		}
		changed := g.changed
		g.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (g *gate) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.ahead--
	g.wake()
}

func (g *gate) demandBegins() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.demand++
}

func (g *gate) demandEnds(took time.Duration, ok bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.demand--
	if ok {
		if now := time.Now(); now.Sub(g.since) > period {
			g.before, g.best, g.since = g.best, 0, now
		}
		if g.best == 0 || took < g.best {
			g.best = took
		}
		usual := g.best
		if g.before != 0 {
			usual = min(usual, g.before)
		}
		if took > 2*usual+jitter {
			g.limit = max(1, g.limit/2)
		} else {
			g.limit = min(limitMax, g.limit+2)
		}
	}
	g.wake()
}
