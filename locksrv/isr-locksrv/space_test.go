package main

import (
	"fmt"
	"strings"
	"testing"
)

func TestVersionsText(t *testing.T) {
	for want, vs := range map[string][]int{"version 3": {3}, "versions 1-2": {1, 2}, "versions 1,3": {1, 3}, "versions 1-3,5,7-8": {1, 2, 3, 5, 7, 8}} {
		if got := versionsText(vs); got != want {
			t.Errorf("%v: %s, want %s", vs, got, want)
		}
	}
}

func TestIEC(t *testing.T) {
	for n, want := range map[int64]string{0: "0", 1023: "1023", 1024: "1.00K", 10239: "10.0K", 102399: "100K", 1<<20 - 1: "1.00M", 1 << 20: "1.00M",
		5 << 30: "5.00G", 1234567890123: "1.12T", 1<<63 - 1: "8.00E"} {
		if got := iec(n); got != want || len(strings.Trim(got, "0123456789.")) > 1 {
			t.Errorf("%d: %s, want %s", n, got, want)
		}
	}
	for n := int64(1); n > 0; n *= 3 {
		if got := iec(n); len(got) > 5 {
			t.Error(fmt.Sprint(n, ": ", got))
		}
	}
}
