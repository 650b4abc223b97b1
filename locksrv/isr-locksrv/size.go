package main

import (
	"fmt"
	"math"
	"math/bits"
	"strconv"
	"strings"
)

// size is a number of bytes on the command line: digits, and K, M, G or T for
// powers of 1024.
type size int64

func (s *size) UnmarshalText(text []byte) error {
	n, err := parseSize(string(text))
	*s = size(n)
	return err
}

func parseSize(text string) (int64, error) {
	digits, shift := text, 0
	if i := strings.IndexAny(text, "KMGTkmgt"); i >= 0 && i == len(text)-1 {
		digits = text[:i]
		shift = 10 * (1 + strings.Index("KMGT", strings.ToUpper(text[i:])))
	}
	n, err := strconv.ParseUint(digits, 10, 64)
	if err != nil || digits[0] == '+' || bits.Len64(n)+shift > 63 || n<<shift > math.MaxInt64 {
		return 0, fmt.Errorf("size %q: want bytes, or a number with K, M, G or T", text)
	}
	return int64(n << shift), nil
}
