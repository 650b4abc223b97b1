package target

import (
	"context"
	"iter"
	"sync"
)

// Parallel calls f for every value of seq, n at once, as Width of a target is for
// calls of it, and returns the first error; the others are then cancelled.
func Parallel[T any](ctx context.Context, n int, seq iter.Seq[T], f func(context.Context, T) error) error {
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
