package target

import (
	"context"
	"slices"

	"isr/store/tree"
)

// Parallel calls f for each of values, n at once, as Width of a target is for
// calls of it, and returns the first error; the others are then cancelled.
func Parallel[T any](ctx context.Context, n int, values []T, f func(context.Context, T) error) error {
	return tree.Parallel(ctx, n, slices.All(values), func(ctx context.Context, _ int, v T) error { return f(ctx, v) })
}
