package store_test

import (
	"strings"
	"testing"

	"isr/store"
)

func TestSizeText(t *testing.T) {
	for n, want := range map[int64]string{0: "0B", 1023: "1023B", 1024: "1.00K", 10239: "10.0K", 102399: "100K", 1<<20 - 1: "1.00M", 1 << 20: "1.00M",
		5 << 30: "5.00G", 1234567890123: "1.12T", 1<<63 - 1: "8.00E"} {
		if got := store.SizeText(n); got != want {
			t.Errorf("%d: %s, want %s", n, got, want)
		}
	}
	for n := int64(1); n > 0; n *= 3 {
		if got := store.SizeText(n); len(got) > 5 || len(strings.Trim(got, "0123456789.")) != 1 {
			t.Errorf("%d: %s", n, got)
		}
	}
}
