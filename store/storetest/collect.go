package storetest

import (
	"context"
	"testing"

	"isr/store"
	"isr/store/gc"
)

// Collect is GC of all; errors of parcels are in the results.
func Collect(t testing.TB, s *store.Store, o gc.Options) map[string]gc.Collected {
	t.Helper()
	got := make(map[string]gc.Collected)
	if err := gc.Run(context.Background(), s, o, func(c gc.Collected) { got[c.User+"/"+c.Parcel] = c }); err != nil {
		t.Fatalf("gc: %v", err)
	}
	return got
}
