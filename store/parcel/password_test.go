package parcel

import (
	"errors"
	"strings"
	"testing"
)

func TestCheckPassword(t *testing.T) {
	for p, ok := range map[string]bool{
		"": false, "seven77": false, "eight888": true, "ünïcödé": true, strings.Repeat("x", 72): true,
		strings.Repeat("x", 73): false, "with space": true, "tab\tinside": false, "line\nbreak": false,
		"nul\x00inside": false, "not utf \xff": false, "c1 \u0085 control": false, "del \x7f inside": false,
	} {
		err := CheckPassword([]byte(p))
		if (err == nil) != ok || err != nil && !errors.Is(err, ErrUsage) {
			t.Errorf("%q: %v", p, err)
		}
	}
}
