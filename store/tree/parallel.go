package tree

import (
	"context"
	"iter"
	"sync"
)

// Parallel calls f for every pair of seq, from n goroutines, and returns the
// first error; the others are then cancelled. seq is drawn by the caller's
// goroutine.
func Parallel[K, V any](ctx context.Context, n int, seq iter.Seq2[K, V], f func(context.Context, K, V) error) error {
	type pair struct {
		k K
		v V
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	work := make(chan pair)
	var wg sync.WaitGroup
	for range n {
		wg.Go(func() {
			for w := range work {
				if ctx.Err() != nil {
					continue
				}
				if err := f(ctx, w.k, w.v); err != nil {
					cancel(err)
				}
			}
		})
	}
	for k, v := range seq {
		if ctx.Err() != nil {
			break
		}
		work <- pair{k, v}
	}
	close(work)
	wg.Wait()
	return context.Cause(ctx)
}
