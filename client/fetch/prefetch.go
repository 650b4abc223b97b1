package fetch

import (
	"context"
	"errors"
	"iter"
	"sync"

	"isr/store/parcel"
	"isr/store/seal"
)

// Progress is how far a Prefetch has come.
type Progress struct {
	Objects int64 // there now, of those asked for
	Bytes   int64 // of these
	Missing int64 // nowhere to be found
	Corrupt int64 // no good copy anywhere
}

// Prefetch gets the objects of tags into the rungs that keep, workers at a
// time, in about that order, in the class of ctx (Prefetch if that is
// Demand). It gives way to demand. Objects that are missing or corrupt are
// counted and passed over; any other error ends it, and is returned when the
// objects on their way have ended. onProgress, if not nil, is called after
// each object, one call at a time.
func (l *Ladder) Prefetch(ctx context.Context, tags iter.Seq[seal.Tag], workers int, onProgress func(Progress)) (Progress, error) {
	if ClassOf(ctx) == Demand {
		ctx = WithClass(ctx, Prefetch)
	}
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	var (
		mu     sync.Mutex
		done   Progress
		going  sync.WaitGroup
		places = make(chan struct{}, max(1, workers))
	)
	one := func(tag seal.Tag) {
		defer going.Done()
		defer func() { <-places }()
		defer l.gate.leave()
		sealed, err := l.Get(ctx, tag)
		mu.Lock()
		defer mu.Unlock()
		switch {
		case err == nil:
			done.Objects++
			done.Bytes += int64(len(sealed))
		case errors.Is(err, parcel.ErrNoObject):
			done.Missing++
		case errors.Is(err, seal.ErrCorrupt):
			done.Corrupt++
		default:
			stop(err)
			return
		}
		if onProgress != nil {
			onProgress(done)
		}
	}
	for tag := range tags {
		select {
		case places <- struct{}{}:
		case <-ctx.Done():
		}
		if ctx.Err() != nil || l.gate.enter(ctx) != nil {
			break
		}
		going.Add(1)
		go one(tag)
	}
	going.Wait()
	mu.Lock()
	defer mu.Unlock()
	return done, context.Cause(ctx)
}
