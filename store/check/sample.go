package check

import (
	"encoding/binary"
	"math"
	"math/bits"
	"math/rand/v2"
	"strconv"
	"strings"

	"isr/store/parcel"
	"isr/store/seal"
)

// Sample is a part of all objects. Tags are spread evenly, so a range of them
// is as good a sample as any. The zero value is all objects.
type Sample struct {
	first, length uint64 // of the first 8 bytes of a tag, wrapping; length 0: all
}

// ParseSample reads what part is meant: "5%" or "5" is another part, chosen at
// random, each time; "3/20" is always the third of twenty parts, which together
// are all.
func ParseSample(text string) (Sample, error) {
	bad := parcel.NewError(parcel.Usage, "sample %q: want a percentage, or N/M", text)
	if a, b, ok := strings.Cut(text, "/"); ok {
		n, err := strconv.ParseUint(a, 10, 32)
		m, merr := strconv.ParseUint(b, 10, 32)
		if err != nil || merr != nil || n < 1 || n > m {
			return Sample{}, bad
		}
		if m == 1 {
			return Sample{}, nil
		}
		first, _ := bits.Div64(n-1, 0, m)
		end := uint64(0)
		if n < m {
			end, _ = bits.Div64(n, 0, m)
		}
		return Sample{first, end - first}, nil
	}
	percent, err := strconv.ParseFloat(strings.TrimSuffix(text, "%"), 64)
	if err != nil || !(percent > 0 && percent <= 100) || strings.ContainsAny(text, "xXpPiInN+_") {
		return Sample{}, bad
	}
	if percent == 100 {
		return Sample{}, nil
	}
	length := uint64(math.Ldexp(percent/100, 64))
	return Sample{rand.Uint64(), max(length, 1)}, nil
}

// Has reports whether the object is in the sample.
func (s Sample) Has(tag seal.Tag) bool {
	return s.length == 0 || len(tag) >= 8 && binary.BigEndian.Uint64([]byte(tag[:8]))-s.first < s.length
}
