package backup

import (
	"context"
	"iter"
	"sync"
)

// parallel calls f for every value of seq, n at once, and returns the first
// error; the others are then cancelled.
func parallel[T any](ctx context.Context, n int, seq iter.Seq[T], f func(context.Context, T) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	work := make(chan T)
	var wg sync.WaitGroup
	for range n {
		wg.Go(func() {
			for v := range work {
				if ctx.Err() != nil {
					continue
				}
				if err := f(ctx, v); err != nil {
					cancel(err)
				}
			}
		})
	}
	for v := range seq {
		if ctx.Err() != nil {
			break
		}
		work <- v
	}
	close(work)
	wg.Wait()
	return context.Cause(ctx)
}
