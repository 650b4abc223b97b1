package fetch

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"isr/client/histogram"
	"isr/store/parcel"
	"isr/store/seal"
)

// Rung is one source of a Ladder.
type Rung struct {
	Name   string
	Source Source
	// Keep stores here what came from a rung below; nil: nothing is.
	Keep func(ctx context.Context, tag seal.Tag, sealed []byte) error
	// Heal removes a copy that turned out corrupt; nil: nothing is done, or
	// the source has done it.
	Heal func(tag seal.Tag) error
}

// Ladder asks its rungs in order. It is a Source and a keyring.Getter. Safe
// for concurrent use.
type Ladder struct {
	rungs []rung
	note  atomic.Pointer[func(rung string, tag seal.Tag, err error)]

	mu      sync.Mutex
	flights map[seal.Tag]*flight
	going   sync.WaitGroup // flights, to the end of their keeping
	gate    gate
}

type rung struct {
	Rung
	verifies bool
	far      bool // below a rung that keeps: an object from here was missed
	counts   counters
}

// NewLadder is the ladder of these rungs, nearest first.
func NewLadder(rungs ...Rung) *Ladder {
	l := &Ladder{rungs: make([]rung, len(rungs)), flights: make(map[seal.Tag]*flight)}
	far := false
	for i, r := range rungs {
		_, verifies := r.Source.(TagVerifier)
		l.rungs[i].Rung, l.rungs[i].verifies, l.rungs[i].far = r, verifies, far
		far = far || r.Keep != nil
	}
	l.gate.init()
	return l
}

// OnNote has f called for what went wrong without a Get failing for it: a
// corrupt copy (the error wraps seal.ErrCorrupt), an object that could not be
// kept, a rung that could not be asked. From any goroutine; f must not block.
func (l *Ladder) OnNote(f func(rung string, tag seal.Tag, err error)) { l.note.Store(&f) }

func (l *Ladder) tell(r *rung, tag seal.Tag, err error) {
	if f := l.note.Load(); f != nil {
		(*f)(r.Name, tag, err)
	}
}

// flight is one object on its way, for everyone who wants it.
type flight struct {
	class   Class // of the most urgent who wants it, under Ladder.mu
	raised  chan struct{}
	wanting int // who waits, under Ladder.mu
	cancel  context.CancelFunc

	got    chan struct{} // closed when sealed and err are set
	sealed []byte
	err    error
	kept   chan struct{} // closed when keepErr is set, after got
	keep   error

	missed   bool // it has gone to a far rung, under Ladder.mu
	missedAt time.Time
}

// Get returns the object that tag names, verified by tag. The result is
// shared: it may be kept, not changed.
//
// Errors: parcel.ErrNoObject if no rung has it; an error that wraps
// seal.ErrCorrupt if a rung had something else and no other had it; any other
// error of a rung, if none below it helped; that of ctx.
//
// In class Hoard it returns after the object is kept, and with the error if
// it could not be; in the others as soon as the object is there.
func (l *Ladder) Get(ctx context.Context, tag seal.Tag) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	class := ClassOf(ctx)
	l.mu.Lock()
	f := l.flights[tag]
	if f == nil || f.cancelled() {
		f = &flight{class: class, raised: make(chan struct{}), got: make(chan struct{}), kept: make(chan struct{})}
		if class == Demand {
			close(f.raised)
		}
		fctx := context.WithValue(context.WithoutCancel(ctx), classKey{}, urgency{class, f.raised})
		fctx, f.cancel = context.WithCancel(fctx)
		l.flights[tag] = f
		l.going.Add(1)
		go l.fly(fctx, tag, f)
	} else {
		l.raise(f, class)
	}
	f.wanting++
	l.mu.Unlock()

	defer func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if f.wanting--; f.wanting == 0 {
			select {
			case <-f.got:
			default:
				f.cancel() // nobody wants it any more
			}
		}
	}()
	// A guest that asked for read-ahead may come to wait itself.
	var raised <-chan struct{}
	if class != Demand {
		raised = Raised(ctx)
	}
	for {
		select {
		case <-f.got:
			if f.err != nil {
				return nil, f.err
			}
			if class == Hoard {
				select {
				case <-f.kept:
					return f.sealed, f.keep
				case <-ctx.Done():
					return nil, ctx.Err()
				}
			}
			return f.sealed, nil
		case <-raised:
			raised = nil
			l.mu.Lock()
			l.raise(f, Demand)
			l.mu.Unlock()
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// cancelled reports, under Ladder.mu, that everyone who waited for f left
// before it had the object. Nobody joins it any more.
func (f *flight) cancelled() bool {
	select {
	case <-f.got:
		return false
	default:
		return f.wanting == 0
	}
}

// raise makes f as urgent as class, under Ladder.mu.
func (l *Ladder) raise(f *flight, class Class) {
	if class >= f.class {
		return
	}
	if class == Demand {
		close(f.raised)
		select {
		case <-f.got:
		default:
			if f.missed {
				l.gate.demandBegins()
				f.missedAt = time.Now()
			}
		}
	}
	f.class = class
}

// fly gets one object for everyone who wants it.
func (l *Ladder) fly(ctx context.Context, tag seal.Tag, f *flight) {
	defer l.going.Done()
	defer f.cancel()
	var (
		sealed []byte
		from   int
		err    error
	)
	for {
		class := ClassOf(ctx)
		sealed, from, err = l.climb(ctx, tag, f)
		if err == nil || ctx.Err() != nil || ClassOf(ctx) == class ||
			errors.Is(err, parcel.ErrNoObject) || errors.Is(err, seal.ErrCorrupt) {
			break
		}
		// A source that gave up on a prefetch may have more patience now that
		// it is a demand.
	}
	l.mu.Lock()
	f.sealed, f.err = sealed, err
	close(f.got)
	if f.missed && f.class == Demand {
		l.gate.demandEnds(time.Since(f.missedAt), err == nil)
	}
	if err != nil {
		l.forget(tag, f)
	}
	l.mu.Unlock()
	if err != nil {
		close(f.kept)
		return
	}
	// Those who come while it is being kept share the copy in memory. The
	// keeping ends even if nobody waits for it: cancelling ctx must not stop it.
	ctx = context.WithoutCancel(ctx)
	for i := range from {
		r := &l.rungs[i]
		if r.Keep == nil {
			continue
		}
		if err := r.Keep(ctx, tag, sealed); err != nil {
			err = fmt.Errorf("%s: keep object %s: %w", r.Name, tag, err)
			f.keep = errors.Join(f.keep, err)
			l.tell(r, tag, err)
		}
	}
	l.mu.Lock()
	l.forget(tag, f)
	l.mu.Unlock()
	close(f.kept)
}

func (l *Ladder) forget(tag seal.Tag, f *flight) {
	if l.flights[tag] == f {
		delete(l.flights, tag)
	}
}

// climb asks the rungs in order; from is the one that had it.
func (l *Ladder) climb(ctx context.Context, tag seal.Tag, f *flight) (sealed []byte, from int, err error) {
	var corrupt, other error
	for i := range l.rungs {
		r := &l.rungs[i]
		if r.far {
			l.mu.Lock()
			if !f.missed {
				f.missed = true
				if f.class == Demand {
					l.gate.demandBegins()
					f.missedAt = time.Now()
				}
			}
			l.mu.Unlock()
		}
		began := time.Now()
		sealed, err := r.Source.Get(ctx, tag)
		if err == nil && !r.verifies {
			err = tag.Verify(sealed)
		}
		r.counts.add(err, len(sealed), time.Since(began))
		if errors.Is(err, seal.ErrCorrupt) {
			l.tell(r, tag, err)
			if r.Heal != nil && !errors.Is(err, parcel.ErrNoObject) {
				if herr := r.Heal(tag); herr != nil {
					l.tell(r, tag, fmt.Errorf("heal: %w", herr))
				}
			}
		}
		switch {
		case err == nil:
			return sealed, i, nil
		case ctx.Err() != nil:
			return nil, i, ctx.Err()
		case errors.Is(err, parcel.ErrNoObject):
			// It may be both: a hoard that has removed what was corrupt. It
			// held a copy and does not any more, so it lacks the object.
		case errors.Is(err, seal.ErrCorrupt):
			corrupt = errors.Join(corrupt, fmt.Errorf("%s: %w", r.Name, err))
		default:
			if other != nil || i < len(l.rungs)-1 {
				l.tell(r, tag, err)
			}
			// The lowest rung's error is the one that matters most: it is
			// where every object is.
			other = fmt.Errorf("%s: %w", r.Name, err)
		}
	}
	switch {
	case other != nil:
		return nil, 0, other
	case corrupt != nil:
		return nil, 0, fmt.Errorf("%w: %w", parcel.NewError(parcel.Damaged, "object %s: no good copy anywhere", tag), corrupt)
	}
	return nil, 0, parcel.NewError(parcel.NoObject, "object %s: nowhere to be found", tag)
}

// Wait returns when every object on its way has arrived and been kept.
func (l *Ladder) Wait() { l.going.Wait() }

// Counts is what one rung has answered so far.
type Counts struct {
	Name    string
	Hits    int64         // objects it had
	Misses  int64         // objects it did not have
	Corrupt int64         // of these, something else under the name
	Errors  int64         // requests it could not answer
	Bytes   int64         // of the hits
	Total   time.Duration // that the hits took, summed
	Max     time.Duration // that one hit took at most

	// Within which half, nine tenths and all but a hundredth of the hits came,
	// an eighth too high at most, and no more than Max.
	P50, P90, P99 time.Duration
}

// Mean is how long a hit took on average.
func (c Counts) Mean() time.Duration {
	if c.Hits == 0 {
		return 0
	}
	return c.Total / time.Duration(c.Hits)
}

type counters struct {
	took histogram.Histogram // of the hits
	mu   sync.Mutex
	c    Counts
}

func (k *counters) add(err error, n int, took time.Duration) {
	k.mu.Lock()
	defer k.mu.Unlock()
	switch {
	case err == nil:
		k.c.Hits++
		k.c.Bytes += int64(n)
		k.c.Total += took
		k.c.Max = max(k.c.Max, took)
		k.took.Add(took)
	case errors.Is(err, seal.ErrCorrupt):
		k.c.Misses++
		k.c.Corrupt++
	case errors.Is(err, parcel.ErrNoObject):
		k.c.Misses++
	default:
		k.c.Errors++
	}
}

// Counts is what each rung has answered, nearest first.
func (l *Ladder) Counts() []Counts {
	cs := make([]Counts, len(l.rungs))
	for i := range l.rungs {
		k := &l.rungs[i].counts
		k.mu.Lock()
		cs[i] = k.c
		k.mu.Unlock()
		cs[i].Name = l.rungs[i].Name
		within := func(q float64) time.Duration { return min(k.took.Quantile(q), cs[i].Max) }
		cs[i].P50, cs[i].P90, cs[i].P99 = within(0.50), within(0.90), within(0.99)
	}
	return cs
}

var _ Source = (*Ladder)(nil)

// VerifiesTags says that Get never returns bytes that do not match the tag.
func (l *Ladder) VerifiesTags() {}
