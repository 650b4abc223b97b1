package fetch

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"pgregory.net/rapid"

	"isr/store/parcel"
	"isr/store/seal"
)

var bg = context.Background()

func object(n int) (seal.Tag, []byte) {
	p := make([]byte, n)
	rand.Read(p)
	sum := sha256.Sum256(p)
	return seal.Tag(sum[:]), p
}

// memory is a Source, and a place to keep objects.
type memory struct {
	mu      sync.Mutex
	objects map[seal.Tag][]byte
	gets    map[seal.Tag]int
	classes map[seal.Tag]Class // of the last get
	err     error              // instead of ErrNoObject
	keepErr error
	hold    chan struct{} // gets wait for it
	entered chan seal.Tag // a get has begun
}

func newMemory() *memory {
	return &memory{objects: make(map[seal.Tag][]byte), gets: make(map[seal.Tag]int), classes: make(map[seal.Tag]Class)}
}

func (m *memory) Get(ctx context.Context, tag seal.Tag) ([]byte, error) {
	m.mu.Lock()
	m.gets[tag]++
	m.classes[tag] = ClassOf(ctx)
	hold, entered := m.hold, m.entered
	m.mu.Unlock()
	if entered != nil {
		entered <- tag
	}
	if hold != nil {
		select {
		case <-hold:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if p, ok := m.objects[tag]; ok {
		return p, nil
	}
	if m.err != nil {
		return nil, m.err
	}
	return nil, parcel.ErrNoObject
}

func (m *memory) Put(ctx context.Context, tag seal.Tag, p []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.keepErr != nil {
		return m.keepErr
	}
	m.objects[tag] = p
	return nil
}

func (m *memory) remove(tag seal.Tag) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.objects, tag)
	return nil
}

func (m *memory) has(tag seal.Tag) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	_, ok := m.objects[tag]
	return ok
}

func (m *memory) count(tag seal.Tag) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.gets[tag]
}

func ladder(local, hoard, far *memory) *Ladder {
	return NewLadder(Rung{Name: "modified", Source: local},
		Rung{Name: "hoard", Source: hoard, Keep: hoard.Put, Heal: hoard.remove},
		Rung{Name: "source", Source: far})
}

func TestClass(t *testing.T) {
	if c := ClassOf(bg); c != Demand {
		t.Errorf("class of no class: %v", c)
	}
	for _, c := range []Class{Demand, Prefetch, Hoard} {
		if got := ClassOf(WithClass(bg, c)); got != c {
			t.Errorf("class %v came back as %v", c, got)
		}
		if Raised(WithClass(bg, c)) != nil {
			t.Errorf("%v by itself cannot be raised", c)
		}
	}
}

// Against a plain model: wherever copies lie, and whatever is wrong with them,
// Get returns the object if any rung has a good copy, and keeps it.
func TestLadderModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		names := []string{"a", "b", "c"}
		rungs := make([]*memory, 3)
		state := make([]string, 3)
		tag, good := object(rapid.IntRange(1, 5000).Draw(t, "size"))
		bad := slices.Clone(good)
		bad[0] ^= 1
		far := errors.New("far away")
		for i := range rungs {
			rungs[i] = newMemory()
			switch state[i] = rapid.SampledFrom([]string{"good", "none", "corrupt", "error"}).Draw(t, names[i]); state[i] {
			case "good":
				rungs[i].objects[tag] = good
			case "corrupt":
				rungs[i].objects[tag] = bad
			case "error":
				rungs[i].err = far
			}
		}
		keeps := rapid.SliceOfN(rapid.Bool(), 3, 3).Draw(t, "keeps")
		var list []Rung
		for i := range rungs {
			r := Rung{Name: names[i], Source: rungs[i], Heal: rungs[i].remove}
			if keeps[i] {
				r.Keep = rungs[i].Put
			}
			list = append(list, r)
		}
		l := NewLadder(list...)
		var noted atomic.Int64
		l.OnNote(func(string, seal.Tag, error) { noted.Add(1) })
		got, err := l.Get(bg, tag)
		l.Wait()
		at := slices.Index(state, "good")
		if at >= 0 {
			if err != nil || !bytes.Equal(got, good) {
				t.Fatalf("%v: %v, want the object", state, err)
			}
			for i := range at {
				if has := rungs[i].has(tag); has != keeps[i] {
					t.Errorf("%v: rung %d has it afterwards: %v, keeps: %v", state, i, has, keeps[i])
				}
			}
		} else {
			want := parcel.ErrNoObject
			_ = want
			switch {
			case err == nil || got != nil:
				t.Fatalf("%v: no error", state)
			case slices.Contains(state, "error"):
				if !errors.Is(err, far) {
					t.Errorf("%v: %v, want the rung's error", state, err)
				}
			case slices.Contains(state, "corrupt"):
				if !errors.Is(err, seal.ErrCorrupt) || !errors.Is(err, parcel.ErrDamaged) {
					t.Errorf("%v: %v, want ErrCorrupt", state, err)
				}
			default:
				if !errors.Is(err, parcel.ErrNoObject) || errors.Is(err, seal.ErrCorrupt) {
					t.Errorf("%v: %v, want ErrNoObject", state, err)
				}
			}
		}
		reached := at
		if at < 0 {
			reached = len(state) - 1
		}
		corrupt := int64(0)
		for i := range reached + 1 {
			if state[i] == "corrupt" {
				corrupt++
				if p := rungs[i].objects[tag]; bytes.Equal(p, bad) {
					t.Errorf("%v: rung %d still has the corrupt copy", state, i)
				}
			}
		}
		if noted.Load() < corrupt {
			t.Errorf("%v: %d notes, want one for each of %d corrupt copies", state, noted.Load(), corrupt)
		}
		for i, c := range l.Counts() {
			asked := int64(0)
			if i <= reached {
				asked = 1
			}
			if c.Name != names[i] || c.Hits+c.Misses+c.Errors != asked || c.Hits == 1 && c.Bytes != int64(len(good)) {
				t.Errorf("%v: counts of rung %d: %+v", state, i, c)
			}
		}
	})
}

// Everyone who wants an object shares one request for it.
func TestSingleFlight(t *testing.T) {
	far := newMemory()
	far.hold, far.entered = make(chan struct{}), make(chan seal.Tag, 1)
	hoard := newMemory()
	l := ladder(newMemory(), hoard, far)
	tag, p := object(100)
	far.objects[tag] = p
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			got, err := l.Get(WithClass(bg, Class(i%3)), tag)
			if err != nil || !bytes.Equal(got, p) {
				t.Error(err)
			}
		})
	}
	<-far.entered
	for l.wanting(tag) < 50 {
		time.Sleep(time.Millisecond)
	}
	close(far.hold)
	wg.Wait()
	l.Wait()
	if n := far.count(tag); n != 1 {
		t.Errorf("asked %d times, want once", n)
	}
	if !hoard.has(tag) {
		t.Error("not kept")
	}
	if len(l.flights) != 0 {
		t.Errorf("%d flights are left", len(l.flights))
	}
}

func (l *Ladder) wanting(tag seal.Tag) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	if f := l.flights[tag]; f != nil {
		return f.wanting
	}
	return 0
}

// A waiter that leaves does not take the object away from the others; when
// all have left the request ends; who comes then has a new one.
func TestLeave(t *testing.T) {
	far := newMemory()
	far.hold, far.entered = make(chan struct{}), make(chan seal.Tag, 10)
	l := ladder(newMemory(), newMemory(), far)
	tag, p := object(100)
	far.objects[tag] = p
	ctx, cancel := context.WithCancel(bg)
	left, stays := make(chan error, 1), make(chan error, 1)
	go func() { _, err := l.Get(ctx, tag); left <- err }()
	<-far.entered
	go func() { _, err := l.Get(bg, tag); stays <- err }()
	for l.wanting(tag) < 2 {
		time.Sleep(time.Millisecond)
	}
	cancel()
	if err := <-left; !errors.Is(err, context.Canceled) {
		t.Errorf("who left: %v", err)
	}
	select {
	case err := <-stays:
		t.Fatalf("who stayed: %v, while the object is on its way", err)
	default:
	}
	close(far.hold)
	if err := <-stays; err != nil {
		t.Errorf("who stayed: %v", err)
	}
	l.Wait()

	tag2, p2 := object(100)
	far.mu.Lock()
	far.objects[tag2], far.hold = p2, make(chan struct{})
	far.mu.Unlock()
	ctx, cancel = context.WithCancel(bg)
	go func() { _, err := l.Get(ctx, tag2); left <- err }()
	<-far.entered
	cancel()
	<-left
	l.Wait() // the request has ended although the source never answered
	close(far.hold)
	if got, err := l.Get(bg, tag2); err != nil || !bytes.Equal(got, p2) {
		t.Errorf("after all had left: %v", err)
	}
}

// A demand that joins a prefetch raises it, and only a demand does.
func TestRaise(t *testing.T) {
	far := newMemory()
	far.hold, far.entered = make(chan struct{}), make(chan seal.Tag, 10)
	var ctxs sync.Map
	spy := sourceFunc(func(ctx context.Context, tag seal.Tag) ([]byte, error) {
		ctxs.Store(tag, ctx)
		return far.Get(ctx, tag)
	})
	l := NewLadder(Rung{Name: "source", Source: spy})
	tag, p := object(100)
	far.objects[tag] = p
	done := make(chan error, 3)
	go func() { _, err := l.Get(WithClass(bg, Hoard), tag); done <- err }()
	<-far.entered
	v, _ := ctxs.Load(tag)
	ctx := v.(context.Context)
	if ClassOf(ctx) != Hoard {
		t.Errorf("class %v, want hoard", ClassOf(ctx))
	}
	go func() { _, err := l.Get(WithClass(bg, Prefetch), tag); done <- err }()
	for l.wanting(tag) < 2 {
		time.Sleep(time.Millisecond)
	}
	select {
	case <-Raised(ctx):
		t.Error("raised by a prefetch")
	default:
	}
	go func() { _, err := l.Get(bg, tag); done <- err }()
	<-Raised(ctx)
	if ClassOf(ctx) != Demand {
		t.Errorf("class %v after a demand joined", ClassOf(ctx))
	}
	close(far.hold)
	for range 3 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

type sourceFunc func(context.Context, seal.Tag) ([]byte, error)

func (f sourceFunc) Get(ctx context.Context, tag seal.Tag) ([]byte, error) { return f(ctx, tag) }

// A source that gave up on a prefetch is asked again if a demand has come.
func TestRaisedWhileGivingUp(t *testing.T) {
	var l *Ladder
	calls := 0
	tag, p := object(10)
	demand := make(chan error, 1)
	l = NewLadder(Rung{Name: "source", Source: sourceFunc(func(ctx context.Context, tag seal.Tag) ([]byte, error) {
		if calls++; calls == 1 {
			go func() { _, err := l.Get(bg, tag); demand <- err }()
			<-Raised(ctx)
			return nil, parcel.ErrUnreachable // as if it had not noticed
		}
		return p, nil
	})})
	if _, err := l.Get(WithClass(bg, Prefetch), tag); err != nil {
		t.Error(err)
	}
	if err := <-demand; err != nil || calls != 2 {
		t.Errorf("demand: %v after %d calls", err, calls)
	}
}

// Who hoards learns that an object could not be kept; a guest need not.
func TestKeepFails(t *testing.T) {
	full := parcel.NewError(parcel.Full, "disk is full")
	for _, c := range []struct {
		class Class
		want  error
	}{{Demand, nil}, {Prefetch, nil}, {Hoard, full}} {
		hoard, far := newMemory(), newMemory()
		hoard.keepErr = full
		l := ladder(newMemory(), hoard, far)
		var notes atomic.Int64
		l.OnNote(func(rung string, _ seal.Tag, err error) {
			if rung != "hoard" || !errors.Is(err, parcel.ErrFull) {
				t.Errorf("note of %s: %v", rung, err)
			}
			notes.Add(1)
		})
		tag, p := object(10)
		far.objects[tag] = p
		got, err := l.Get(WithClass(bg, c.class), tag)
		if !errors.Is(err, c.want) && err != c.want || !bytes.Equal(got, p) {
			t.Errorf("%v: %v, want %v and the object", c.class, err, c.want)
		}
		l.Wait()
		if notes.Load() != 1 {
			t.Errorf("%v: %d notes", c.class, notes.Load())
		}
	}
}

// In class Hoard an object is kept when Get returns.
func TestHoardWaits(t *testing.T) {
	hoard, far := newMemory(), newMemory()
	keep := make(chan struct{})
	l := NewLadder(Rung{Name: "hoard", Source: hoard, Keep: func(ctx context.Context, tag seal.Tag, p []byte) error {
		<-keep
		return hoard.Put(ctx, tag, p)
	}}, Rung{Name: "source", Source: far})
	tag, p := object(10)
	far.objects[tag] = p
	if _, err := l.Get(bg, tag); err != nil { // a demand does not wait
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(WithClass(bg, Hoard), 20*time.Millisecond)
	defer cancel()
	if _, err := l.Get(ctx, tag); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("hoard: %v while it is not kept", err)
	}
	close(keep)
	if _, err := l.Get(WithClass(bg, Hoard), tag); err != nil || !hoard.has(tag) {
		t.Errorf("hoard: %v, kept: %v", err, hoard.has(tag))
	}
	if n := far.count(tag); n != 1 {
		t.Errorf("asked %d times, want once: a copy was in memory", n)
	}
}

func TestPrefetch(t *testing.T) {
	hoard, far := newMemory(), newMemory()
	l := ladder(newMemory(), hoard, far)
	var tags []seal.Tag
	var bytes int64
	for i := range 100 {
		tag, p := object(100)
		tags = append(tags, tag)
		switch {
		case i%10 == 3: // missing
		case i%10 == 7:
			far.objects[tag] = append(p, 0)
		default:
			far.objects[tag] = p
			bytes += int64(len(p))
		}
	}
	calls := 0
	got, err := l.Prefetch(bg, slices.Values(tags), 8, func(Progress) { calls++ })
	want := Progress{Objects: 80, Bytes: bytes, Missing: 10, Corrupt: 10}
	if err != nil || got != want || calls != 100 {
		t.Errorf("prefetch: %+v %v after %d calls, want %+v", got, err, calls, want)
	}
	l.Wait()
	for _, tag := range tags {
		if far.classes[tag] != Prefetch {
			t.Fatalf("class %v, want prefetch", far.classes[tag])
		}
	}
	if len(hoard.objects) != 80 {
		t.Errorf("%d are kept, want 80", len(hoard.objects))
	}

	boom := errors.New("boom")
	far.err = boom
	if _, err := l.Prefetch(bg, slices.Values(tags), 8, nil); !errors.Is(err, boom) {
		t.Errorf("source fails: %v", err)
	}
	ctx, cancel := context.WithCancel(bg)
	cancel()
	if _, err := l.Prefetch(ctx, slices.Values(tags), 8, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if got, err := l.Prefetch(bg, func(func(seal.Tag) bool) {}, 0, nil); err != nil || got != (Progress{}) {
		t.Errorf("prefetch of nothing: %+v %v", got, err)
	}
	if l.gate.ahead != 0 || l.gate.demand != 0 {
		t.Errorf("gate is left with %d ahead, %d demands", l.gate.ahead, l.gate.demand)
	}
}

// While a demand miss is on its way at most a few objects are prefetched, but
// never none.
func TestPrefetchYields(t *testing.T) {
	far := newMemory()
	l := ladder(newMemory(), newMemory(), far)
	wanted, p := object(10)
	far.objects[wanted] = p
	demandHold, alone, two := make(chan struct{}), make(chan struct{}), make(chan struct{})
	var ahead, begun, most atomic.Int64
	var first, second sync.Once
	src := sourceFunc(func(ctx context.Context, tag seal.Tag) ([]byte, error) {
		if tag == wanted {
			<-demandHold
			return far.Get(ctx, tag)
		}
		n := ahead.Add(1)
		defer ahead.Add(-1)
		for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
		}
		if begun.Add(1) < 20 {
			time.Sleep(time.Millisecond) // long enough for another to begin
			return far.Get(ctx, tag)
		}
		first.Do(func() { close(alone) })
		<-demandHold
		if n > 1 {
			second.Do(func() { close(two) })
		}
		<-two // or it waits for ever
		return far.Get(ctx, tag)
	})
	l.rungs[2].Source = src
	var tags []seal.Tag
	for range 60 {
		tag, p := object(10)
		far.objects[tag] = p
		tags = append(tags, tag)
	}
	got := make(chan error, 2)
	go func() { _, err := l.Get(bg, wanted); got <- err }()
	for {
		l.gate.mu.Lock()
		n := l.gate.demand
		l.gate.mu.Unlock()
		if n == 1 {
			break
		}
		time.Sleep(time.Millisecond)
	}
	go func() { _, err := l.Prefetch(bg, slices.Values(tags), 16, nil); got <- err }()
	<-alone
	if most.Load() != 1 {
		t.Errorf("%d were prefetched at a time while a demand was on its way, want 1", most.Load())
	}
	close(demandHold)
	for range 2 {
		if err := <-got; err != nil {
			t.Error(err)
		}
	}
}

func TestGateLearns(t *testing.T) {
	var g gate
	g.init()
	miss := func(took time.Duration) {
		g.demandBegins()
		g.demandEnds(took, true)
	}
	for range 50 {
		miss(50 * time.Millisecond)
	}
	if g.limit < 50 {
		t.Errorf("limit %d on a link that has room", g.limit)
	}
	for range 20 {
		miss(200 * time.Millisecond)
	}
	if g.limit != 1 {
		t.Errorf("limit %d while demand takes four times as long as it need", g.limit)
	}
	miss(50 * time.Millisecond)
	if g.limit < 2 {
		t.Errorf("limit %d, want it to grow again", g.limit)
	}
	for range 1000 {
		miss(50 * time.Millisecond)
	}
	if g.limit != limitMax {
		t.Errorf("limit %d, want %d", g.limit, limitMax)
	}
}

// Many of everything at once, with the race detector.
func TestLadderStorm(t *testing.T) {
	local, hoard, far := newMemory(), newMemory(), newMemory()
	l := ladder(local, hoard, far)
	all := make(map[seal.Tag][]byte)
	for range 40 {
		tag, p := object(100)
		all[tag], far.objects[tag] = p, p
	}
	tags := slices.Collect(maps.Keys(all))
	var wg sync.WaitGroup
	for i := range 30 {
		wg.Go(func() {
			for j := range 200 {
				ctx, cancel := WithClass(bg, Class((i+j)%3)), context.CancelFunc(func() {})
				if (i+j)%5 == 0 {
					ctx, cancel = context.WithTimeout(ctx, time.Duration(j)*time.Microsecond)
				}
				tag := tags[(i*7+j)%len(tags)]
				got, err := l.Get(ctx, tag)
				if err == nil && !bytes.Equal(got, all[tag]) || err != nil && ctx.Err() == nil {
					t.Error(fmt.Errorf("get: %w", err))
				}
				cancel()
				if j%50 == 0 {
					hoard.remove(tag)
				}
			}
		})
	}
	wg.Wait()
	l.Wait()
	if len(l.flights) != 0 || l.gate.demand != 0 {
		t.Errorf("%d flights and %d demands are left", len(l.flights), l.gate.demand)
	}
}
