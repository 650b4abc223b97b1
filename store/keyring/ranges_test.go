package keyring

import "testing"

func TestRanges(t *testing.T) {
	for want, nums := range map[string][]int64{
		"chunks":         nil,
		"chunk 0":        {0},
		"chunk 7":        {7, 7},
		"chunks 0-1":     {1, 0},
		"chunks 3-5,9":   {9, 4, 3, 5},
		"chunks 1,3,5-6": {6, 3, 5, 1},
	} {
		if got := RangesOf(nums...).String(); got != want {
			t.Errorf("%v: %q, want %q", nums, got, want)
		}
	}
	if n := (Ranges{}).Add(Range{0, 255}).Add(Range{256, 511}).Add(Range{600, 600}).Count(); n != 513 {
		t.Errorf("count %d, want 513", n)
	}
}
