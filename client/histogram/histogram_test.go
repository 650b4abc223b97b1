package histogram

import (
	"testing"
	"time"
)

func TestHistogram(t *testing.T) {
	for _, us := range []uint64{0, 1, 7, 8, 9, 15, 16, 17, 100, 999, 1000, 1 << 20, 3_600_000_000} {
		b := bucket(us)
		if top := bucketTop(b); us > top || top > us+us/8 {
			t.Errorf("%d µs in bucket %d, which ends at %d", us, b, top)
		}
		if b > 0 && bucketTop(b-1) >= us {
			t.Errorf("%d µs would fit in bucket %d", us, b-1)
		}
	}
	var h Histogram
	if h.Quantile(0.5) != 0 {
		t.Error("quantile of nothing")
	}
	for i := 1; i <= 100; i++ {
		h.Add(time.Duration(i) * time.Millisecond)
	}
	for q, want := range map[float64]time.Duration{0.5: 50, 0.95: 95, 0.99: 99, 1: 100} {
		want *= time.Millisecond
		if got := h.Quantile(q); got < want || got > want*9/8 {
			t.Errorf("quantile %v: %v, want about %v", q, got, want)
		}
	}
	h.Add(-1)
	h.Add(1 << 62)
}
