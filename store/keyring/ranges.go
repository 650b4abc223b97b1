package keyring

import (
	"fmt"
	"slices"
	"strings"
)

// Range is the chunks from First to Last, both included.
type Range struct {
	First int64 `json:"first"`
	Last  int64 `json:"last"`
}

// Ranges are chunk numbers, ascending, no two ranges touching.
type Ranges []Range

// RangesOf makes ranges of numbers in any order.
func RangesOf(nums ...int64) Ranges {
	nums = slices.Clone(nums)
	slices.Sort(nums)
	var r Ranges
	for _, n := range nums {
		r = r.Add(Range{n, n})
	}
	return r
}

// Add is r with a range that does not begin before r's last one.
func (r Ranges) Add(x Range) Ranges {
	if k := len(r) - 1; k >= 0 && x.First <= r[k].Last+1 {
		r[k].Last = max(r[k].Last, x.Last)
		return r
	}
	return append(r, x)
}

// Count is the number of chunks.
func (r Ranges) Count() (n int64) {
	for _, x := range r {
		n += x.Last - x.First + 1
	}
	return n
}

// String is "chunk 3" or "chunks 3-5,9".
func (r Ranges) String() string {
	var b strings.Builder
	b.WriteString("chunk")
	if r.Count() != 1 {
		b.WriteByte('s')
	}
	for i, x := range r {
		b.WriteByte(" ,"[min(i, 1)])
		if x.First == x.Last {
			fmt.Fprintf(&b, "%d", x.First)
		} else {
			fmt.Fprintf(&b, "%d-%d", x.First, x.Last)
		}
	}
	return b.String()
}
