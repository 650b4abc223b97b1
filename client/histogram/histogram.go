// Package histogram counts durations in fixed room, for percentiles.
//
// It promises that a quantile is at most an eighth above the truth from 8 µs
// on and a microsecond below that, and that adding costs an atomic increment
// and no lock. It keeps no order, no times of day, and forgets nothing.
package histogram

import (
	"math/bits"
	"sync/atomic"
	"time"
)

// Histogram counts durations in microseconds, in eight buckets an octave: 0 to
// 7, then 8 to 15 by 1, 16 to 31 by 2 and so on, up to years. The zero value
// is empty. Methods are safe for concurrent use.
type Histogram [8 * 40]atomic.Int64

func bucket(us uint64) int {
	if us < 8 {
		return int(us)
	}
	shift := bits.Len64(us) - 4
	return min(8*(shift+1)+int(us>>shift&7), len(Histogram{})-1)
}

// bucketTop is the largest number of microseconds in bucket b.
func bucketTop(b int) uint64 {
	if b < 8 {
		return uint64(b)
	}
	shift := b/8 - 1
	return uint64(8+b%8+1)<<shift - 1
}

// Add counts d.
func (h *Histogram) Add(d time.Duration) { h[bucket(uint64(max(d, 0)/time.Microsecond))].Add(1) }

// Quantile is the upper bound of the bucket in which the q-th part of all
// lies; 0 without any.
func (h *Histogram) Quantile(q float64) time.Duration {
	var total int64
	for i := range h {
		total += h[i].Load()
	}
	rank := int64(q*float64(total)+0.999999) - 1
	for i := range h {
		if n := h[i].Load(); rank < n && n > 0 {
			return time.Duration(bucketTop(i)) * time.Microsecond
		} else {
			rank -= n
		}
	}
	return 0
}
