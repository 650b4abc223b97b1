package remote

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"isr/client/fetch"
	"isr/client/fetch/fetchtest"
	"isr/store/parcel"
	"isr/store/seal"
)

func TestSource(t *testing.T) {
	t.Parallel()
	r := newRealm(t)
	fetchtest.Run(t, fetchtest.Subject{
		New: func(t testing.TB, objects map[seal.Tag][]byte) fetch.Source {
			for tag, p := range objects {
				r.plant(tag, p)
			}
			return r.open().Objects("box")
		},
		Spoil: func(t testing.TB, tag seal.Tag, with []byte) {
			if err := os.Chmod(r.file(tag), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(r.file(tag), with, 0o400); err != nil {
				t.Fatal(err)
			}
		},
	})
}

// getAll gets every object, many at a time.
func getAll(t testing.TB, ctx context.Context, o *Objects, all map[seal.Tag][]byte) {
	t.Helper()
	var wg sync.WaitGroup
	for tag, want := range all {
		wg.Go(func() {
			got, err := o.Get(ctx, tag)
			if err != nil {
				t.Errorf("get %s: %v", tag, err)
			} else if !bytes.Equal(got, want) {
				t.Errorf("get %s: other bytes", tag)
			}
		})
	}
	wg.Wait()
}

func TestGetMany(t *testing.T) {
	t.Parallel()
	r := newRealm(t)
	all := r.stock(300, 64<<10)
	for _, class := range []fetch.Class{fetch.Demand, fetch.Prefetch, fetch.Hoard} {
		s := r.open()
		s.sawRTT(1) // a busy machine may be far from itself
		getAll(t, fetch.WithClass(bg, class), s.Objects("box"), all)
	}
	// Who prefetches has one more for demand.
	if _, made := r.Conns(); made != 4 {
		t.Errorf("%d connections for three servers at no distance, want 4", made)
	}
}

// Over a long link bulk work takes several connections and demand one of its
// own; over a short one, with both, two.
func TestConnections(t *testing.T) {
	t.Parallel()
	r := newRealm(t)
	all := r.stock(300, 128<<10)
	var some seal.Tag
	for some = range all {
		break
	}
	for _, c := range []struct {
		rtt       time.Duration
		low, high int
	}{{0, 2, 2}, {40 * time.Millisecond, 3, maxConns + 1}} {
		r.RTT(c.rtt)
		s := r.open()
		if c.rtt == 0 {
			s.sawRTT(1) // a busy machine may be far from itself
		}
		_, before := r.Conns()
		o := s.Objects("box")
		if _, err := o.Get(bg, some); err != nil {
			t.Fatal(err)
		}
		if _, made := r.Conns(); made-before != 1 {
			t.Errorf("RTT %v: %d connections for one get, want 1", c.rtt, made-before)
		}
		ctx, stop := context.WithCancel(bg)
		var demand sync.WaitGroup
		demand.Go(func() {
			for ctx.Err() == nil {
				if _, err := o.Get(bg, some); err != nil {
					t.Error(err)
				}
			}
		})
		getAll(t, fetch.WithClass(bg, fetch.Prefetch), o, all)
		stop()
		demand.Wait()
		_, made := r.Conns()
		if n := made - before; n < c.low || n > c.high {
			t.Errorf("RTT %v: %d connections, want %d to %d", c.rtt, n, c.low, c.high)
		}
		if got := s.RTT(); got < c.rtt || got > c.rtt+time.Second {
			t.Errorf("RTT: %v, want about %v", got, c.rtt)
		}
		s.Close()
	}
}

// A miss costs one round trip.
func TestOneRoundTrip(t *testing.T) {
	t.Parallel()
	r := newRealm(t)
	all := r.stock(8, 1000) // too small for the window to be moved
	s := r.open()
	o := s.Objects("box")
	getAll(t, bg, o, all)
	best := 1 << 30 // what else goes over the connection is seldom, and counts too
	for tag := range all {
		before := r.Turns()
		if _, err := o.Get(bg, tag); err != nil {
			t.Fatal(err)
		}
		best = min(best, r.Turns()-before)
	}
	if best != 1 {
		t.Errorf("a get took %d round trips, want one", best)
	}
}

// Close ends everything, whatever is under way.
func TestClose(t *testing.T) {
	r := newRealm(t)
	all := r.stock(100, 64<<10)
	r.Rate(1<<20, 1<<20)
	before := runtime.NumGoroutine()
	s := Open(r.target(), nil, nil)
	s.OnOutage(func(bool, error) {})
	o := s.Objects("box")
	var wg sync.WaitGroup
	started := make(chan struct{})
	var once sync.Once
	for tag := range all {
		for _, class := range []fetch.Class{fetch.Demand, fetch.Prefetch} {
			wg.Go(func() {
				_, err := o.Get(fetch.WithClass(bg, class), tag)
				once.Do(func() { close(started) })
				if err != nil && !errors.Is(err, parcel.ErrUnreachable) {
					t.Errorf("get while closing: %v", err)
				}
			})
		}
	}
	<-started
	s.Close()
	inTime(t, "gets of a closed server", wg.Wait)
	inTime(t, "goroutines of a closed server", func() {
		// The link's own are gone when it has noticed.
		for now, _ := r.Conns(); now > 0 || runtime.NumGoroutine() > before+1; now, _ = r.Conns() {
			time.Sleep(5 * time.Millisecond)
		}
	})
}

// A demand overtakes bulk requests that fill a slow link.
func TestDemandFirst(t *testing.T) {
	t.Parallel()
	r := newRealm(t)
	bulk := r.stock(300, 64<<10)
	wanted := r.stock(6, 64<<10)
	const rate = 1 << 20 // 64 ms an object
	r.RTT(10 * time.Millisecond)
	r.Rate(rate, rate)
	s := r.open()
	o := s.Objects("box")
	ctx, stop := context.WithCancel(fetch.WithClass(bg, fetch.Prefetch))
	defer stop()
	var wg sync.WaitGroup
	var got atomic.Int64
	running := make(chan struct{})
	for tag := range bulk {
		wg.Go(func() {
			if _, err := o.Get(ctx, tag); err == nil && got.Add(1) == 12 {
				close(running)
			}
		})
	}
	<-running
	var worst time.Duration
	for tag := range wanted {
		began := time.Now()
		if _, err := o.Get(bg, tag); err != nil {
			t.Fatal(err)
		}
		worst = max(worst, time.Since(began))
	}
	left := int64(len(bulk)) - got.Load()
	stop()
	wg.Wait()
	if left < 20 {
		t.Fatalf("only %d bulk requests were left: the test shows nothing", left)
	}
	// Alone it would take 10 ms and 64; the queue of bulk work is bounded,
	// and the two connections share the link. Behind all of it, 18 s.
	if worst > 2*time.Second {
		t.Errorf("a demand took %v among bulk requests", worst)
	}
	t.Logf("worst demand %v", worst)
}

// A prefetch that has not been sent becomes a demand when somebody waits.
func TestRaise(t *testing.T) {
	t.Parallel()
	r := newRealm(t)
	bulk := r.stock(400, 128<<10)
	last := r.stock(1, 64<<10)
	r.RTT(10 * time.Millisecond)
	r.Rate(4<<20, 4<<20) // all of it takes 12 s
	s := r.open()
	o := s.Objects("box")
	ladder := fetch.NewLadder(fetch.Rung{Name: "hoard", Source: nothing{}, Keep: func(context.Context, seal.Tag, []byte) error { return nil }},
		fetch.Rung{Name: "source", Source: o})
	ctx, stop := context.WithCancel(fetch.WithClass(bg, fetch.Prefetch))
	var wg sync.WaitGroup
	defer wg.Wait()
	defer stop()
	for tag := range bulk {
		wg.Go(func() { ladder.Get(ctx, tag) })
	}
	for len(o.queue()) < len(bulk)/2 {
		time.Sleep(time.Millisecond)
	}
	for tag := range last {
		wg.Go(func() { ladder.Get(ctx, tag) })
		for !slices.Contains(o.queue(), tag) {
			time.Sleep(time.Millisecond)
		}
		queue := o.queue()
		before := queue[:max(0, slices.Index(queue, tag))]
		if _, err := ladder.Get(bg, tag); err != nil {
			t.Fatal(err)
		}
		after, left := o.queue(), 0
		for _, tag := range before {
			if slices.Contains(after, tag) {
				left++
			}
		}
		// In its turn it would have left none.
		if left < len(before)/10 {
			t.Errorf("of %d prefetches before the demand %d were left behind it", len(before), left)
		}
	}
}

type nothing struct{}

func (nothing) Get(context.Context, seal.Tag) ([]byte, error) { return nil, parcel.ErrNoObject }

// queue is what waits to be sent, in order.
func (o *Objects) queue() (tags []seal.Tag) {
	o.bulk.mu.Lock()
	defer o.bulk.mu.Unlock()
	for e := o.bulk.waiting.Front(); e != nil; e = e.Next() {
		tags = append(tags, e.Value.(*request).tag)
	}
	return tags
}

// Whatever happens to the link, gets that are under way end with the object.
func TestGetThroughOutage(t *testing.T) {
	t.Parallel()
	for _, class := range []fetch.Class{fetch.Demand, fetch.Prefetch} {
		for name, hit := range map[string]func(*realm){
			"cut":   func(r *realm) { r.Cut() },
			"stall": func(r *realm) { r.Stall(true) },
			"kill -9": func(r *realm) {
				r.kill()
			},
		} {
			t.Run(fmt.Sprint(class, " ", name), func(t *testing.T) {
				t.Parallel()
				r := newRealm(t)
				all := r.stock(150, 64<<10)
				r.RTT(5 * time.Millisecond)
				r.Rate(8<<20, 8<<20)
				s := r.open()
				s.stall = time.Second
				s.SetPatience(time.Hour) // a busy machine is an outage too
				var down, up atomic.Int64
				s.OnOutage(func(is bool, err error) {
					if is {
						down.Add(1)
						if !errors.Is(err, parcel.ErrUnreachable) {
							t.Errorf("outage told with %v", err)
						}
					} else {
						up.Add(1)
					}
				})
				o := s.Objects("box")
				ctx := fetch.WithClass(bg, class)
				var wg sync.WaitGroup
				var got atomic.Int64
				third := make(chan struct{})
				for tag, want := range all {
					wg.Go(func() {
						p, err := o.Get(ctx, tag)
						if err != nil || !bytes.Equal(p, want) {
							t.Errorf("get: %v", err)
						}
						if got.Add(1) == int64(len(all)/3) {
							close(third)
						}
					})
				}
				<-third
				r.Refuse(true)
				hit(r)
				// Down long enough to be noticed: a demand says so.
				for class == fetch.Demand && down.Load() == 0 {
					time.Sleep(time.Millisecond)
				}
				r.Rate(0, 0)
				if r.server == nil {
					r.restart()
				}
				r.Refuse(false)
				if name == "stall" {
					r.Cut() // what was stalled never arrives
					r.Stall(false)
				}
				inTime(t, "gets", wg.Wait)
				if class == fetch.Demand && (down.Load() == 0 || up.Load() != down.Load()) {
					t.Errorf("told %d times that it is down and %d that it is up", down.Load(), up.Load())
				}
			})
		}
	}
}

// A link that has gone silent is noticed although nothing refuses.
func TestDeadLink(t *testing.T) {
	t.Parallel()
	r := newRealm(t)
	all := r.stock(1, 1000)
	s := r.open()
	s.stall = 200 * time.Millisecond
	o := s.Objects("box")
	getAll(t, bg, o, all)
	r.Stall(true)
	done := make(chan error, 1)
	began := time.Now()
	go func() {
		for tag := range all {
			_, err := o.Get(WithPolicy(bg, Policy{}), tag)
			done <- err
		}
	}()
	inTime(t, "get over a dead link", func() {
		if err := <-done; !errors.Is(err, parcel.ErrUnreachable) {
			t.Errorf("get over a dead link: %v, want ErrUnreachable", err)
		}
	})
	if took := time.Since(began); took < 2*s.stall {
		t.Errorf("given up after %v, want %v of silence", took, 2*s.stall)
	}
	r.Cut()
	r.Stall(false)
	getAll(t, bg, o, all)
}

// A server that takes its time is not a dead link, unless it takes longer than
// it may, as on a busy machine.
func TestSlowIsNotDead(t *testing.T) {
	t.Parallel()
	r := newRealm(t)
	atTimes(t, 6, func(i int) error {
		s := r.open()
		s.stall = 500 * time.Millisecond << i
		if _, err := s.ListParcels(bg); err != nil {
			t.Fatal(err)
		}
		c := s.main.live()
		c.begin()
		defer c.end()
		heard := c.tap.heard.Load()
		for range 2 { // probes
			within(t, "a probe is answered", func() bool {
				return s.main.live() != c || c.tap.heard.Load() != heard
			})
			if s.main.live() != c {
				return fmt.Errorf("a connection was given up that answers within %v", s.stall)
			}
			heard = c.tap.heard.Load()
		}
		return nil
	})
}

// No request is left without an answer when the bulk lanes of an idle server
// are closed and opened again.
func TestIdle(t *testing.T) {
	t.Parallel()
	r := newRealm(t)
	all := r.stock(20, 1000)
	s := r.open()
	o := s.Objects("box")
	ctx := fetch.WithClass(bg, fetch.Prefetch)
	getAll(t, ctx, o, all)
	o.bulk.mu.Lock()
	l := o.bulk.lanes[0]
	o.bulk.mu.Unlock()
	l.close()
	getAll(t, ctx, o, all)
	s.main.hangUp()
	getAll(t, ctx, o, all)
}

func TestLimit(t *testing.T) {
	t.Parallel()
	r := newRealm(t)
	all := r.stock(8, 64<<10)
	var size int64
	for _, p := range all {
		size += int64(len(p))
	}
	const rate = 192 << 10 // slow, so that a busy machine is faster
	s := r.open()
	o := s.Objects("box")
	const burst = 32 << 10 // passes at once
	least := time.Duration(float64(size-burst) / rate * float64(time.Second))
	atTimes(t, 10, func(int) error {
		s.SetLimit(Limit{Down: rate})
		began := time.Now()
		getAll(t, fetch.WithClass(bg, fetch.Hoard), o, all)
		limited := time.Since(began)
		if limited < least {
			t.Fatalf("%d bytes took %v at %d a second, want %v at least", size, limited, rate, least)
		}
		s.SetLimit(Limit{})
		began = time.Now()
		getAll(t, fetch.WithClass(bg, fetch.Hoard), o, all)
		if free := time.Since(began); limited > 2*least+time.Second || free > least/2 {
			return fmt.Errorf("%v with the limit and %v without, want little over %v and much less", limited, free, least)
		}
		return nil
	})
}

// opener serves PutAll from memory.
func opener(all map[seal.Tag][]byte) func(context.Context, seal.Tag) ([]byte, error) {
	return func(_ context.Context, tag seal.Tag) ([]byte, error) { return all[tag], nil }
}

// newObjects makes n objects that no store has.
func newObjects(n, size int) map[seal.Tag][]byte {
	all := make(map[seal.Tag][]byte)
	for range n {
		tag, p := object(size)
		all[tag] = p
	}
	return all
}

func (r *realm) held(s *Server) {
	r.t.Helper()
	if _, err := s.Acquire(bg, "box", "h", "acquisition"); err != nil {
		r.t.Fatal(err)
	}
}

func TestPutAll(t *testing.T) {
	t.Parallel()
	r := newRealm(t)
	s := r.open()
	o := s.Objects("box")
	all := newObjects(200, 100<<10)
	for _, n := range []int{0, 1, 32<<10 - 1, 32 << 10, 32<<10 + 1, 1 << 20} { // around a packet
		tag, p := object(max(n, 1))
		all[tag] = p
	}
	tags := tagsOf(all)
	if err := o.PutAll(bg, tags, opener(all), nil); !errors.Is(err, parcel.ErrDenied) {
		t.Errorf("put to a parcel that is not checked out: %v, want ErrDenied", err)
	}
	r.held(s)
	var calls, last, total int64
	for round := range 2 { // the second time everything is there
		calls = 0
		err := o.PutAll(bg, tags, opener(all), func(done, of int64) { calls++; last, total = done, of })
		if err != nil {
			t.Fatal(err)
		}
		if calls != int64(len(tags)) || last != total {
			t.Errorf("round %d: progress came %d times and ended at %d of %d", round, calls, last, total)
		}
		if miss, err := s.Missing(bg, "box", tags); err != nil || len(miss) != 0 {
			t.Errorf("round %d: %d are missing afterwards, %v", round, len(miss), err)
		}
	}
	getAll(t, bg, o, all)
	if err := o.PutAll(bg, nil, nil, nil); err != nil {
		t.Errorf("put nothing: %v", err)
	}

	tag, _ := object(100)
	err := o.PutAll(bg, []seal.Tag{tag}, func(context.Context, seal.Tag) ([]byte, error) { return []byte("other"), nil }, nil)
	if err == nil || errors.Is(err, parcel.ErrUnreachable) {
		t.Errorf("put of other bytes: %v, want a refusal", err)
	}
	boom := errors.New("boom")
	err = o.PutAll(bg, []seal.Tag{tag}, func(context.Context, seal.Tag) ([]byte, error) { return nil, boom }, nil)
	if !errors.Is(err, boom) {
		t.Errorf("source of the objects fails: %v, want its error", err)
	}
	if err := s.Objects("none").PutAll(bg, []seal.Tag{tag}, opener(map[seal.Tag][]byte{tag: {1}}), nil); !errors.Is(err, parcel.ErrNoParcel) {
		t.Errorf("put to no parcel: %v, want ErrNoParcel", err)
	}
}

// An upload goes on where it was when the server is killed, or the link cut.
func TestPutThroughOutage(t *testing.T) {
	t.Parallel()
	for name, hit := range map[string]func(*realm){
		"cut":     func(r *realm) { r.Cut() },
		"stall":   func(r *realm) { r.Stall(true) },
		"kill -9": func(r *realm) { r.kill() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRealm(t)
			r.RTT(10 * time.Millisecond)
			r.Rate(8<<20, 8<<20)
			s := r.open()
			s.stall = time.Second
			s.SetPatience(time.Hour) // a busy machine is an outage too
			r.held(s)
			all := newObjects(200, 64<<10)
			tags := tagsOf(all)
			third, done := make(chan struct{}), make(chan error, 1)
			var once sync.Once
			var bytes int64
			go func() {
				done <- s.Objects("box").PutAll(bg, tags, opener(all), func(n, total int64) {
					bytes = n
					if n > total/3 {
						once.Do(func() { close(third) })
					}
				})
			}()
			select {
			case <-third:
			case err := <-done:
				t.Fatalf("the upload ended before the outage: %v", err)
			}
			r.Refuse(true)
			hit(r)
			time.Sleep(200 * time.Millisecond) // some attempts fail
			r.Rate(0, 0)
			if r.server == nil {
				r.restart()
			}
			r.Refuse(false)
			if name == "stall" {
				r.Cut()
				r.Stall(false)
			}
			inTime(t, "upload", func() {
				if err := <-done; err != nil {
					t.Error(err)
				}
			})
			if want := int64(200 * 64 << 10); bytes != want {
				t.Errorf("progress ended at %d, want %d: each object once", bytes, want)
			}
			if miss, err := s.Missing(bg, "box", tags); err != nil || len(miss) != 0 {
				t.Errorf("%d are missing afterwards, %v", len(miss), err)
			}
		})
	}
}

// A connection of before the host slept is found dead sooner than one that
// was just in use.
func TestDeadAfterSleep(t *testing.T) {
	t.Parallel()
	r := newRealm(t)
	all := r.stock(1, 1000)
	s := r.open()
	s.stall = 2 * time.Second
	o := s.Objects("box")
	getAll(t, bg, o, all)
	s.main.live().tap.wall.Add(-int64(time.Hour)) // as if it had slept
	r.Stall(true)
	began := time.Now()
	var once sync.Once
	s.OnOutage(func(down bool, err error) {
		once.Do(func() {
			r.Cut()
			r.Stall(false)
		})
	})
	given := make(chan time.Duration, 1)
	go func() {
		for s.main.live() != nil {
			time.Sleep(10 * time.Millisecond)
		}
		given <- time.Since(began) // up; connecting again is another matter
		r.Cut()
		r.Stall(false)
	}()
	getAll(t, bg, o, all)
	if took := <-given; took < s.stall/2 || took > s.stall*2 {
		t.Errorf("given up after %v, want little over %v", took, s.stall/2)
	}
}

// When the server has enough of our connections, work goes on over those
// there are.
func TestFewConnections(t *testing.T) {
	t.Parallel()
	r := newRealm(t)
	r.RTT(40 * time.Millisecond)
	s := r.open()
	r.held(s)
	r.Refuse(true)
	began := time.Now()
	all := newObjects(150, 64<<10)
	o := s.Objects("box")
	if err := o.PutAll(bg, tagsOf(all), opener(all), nil); err != nil {
		t.Fatal(err)
	}
	getAll(t, fetch.WithClass(bg, fetch.Prefetch), o, all)
	if now, _ := r.Conns(); now != 1 {
		t.Errorf("%d connections", now)
	}
	// Each of the others is tried once in a while, not for each object.
	if n := r.Refused(); n == 0 || n > 3*maxConns*(1+int(time.Since(began)/openPause)) {
		t.Errorf("%d attempts to have more", n)
	}
}
