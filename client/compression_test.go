package client

import (
	"testing"

	"isr/store/parcel"
	"isr/store/seal"
)

// A fast link is not kept waiting, a slow one is worth some work, and more
// cores make more work worth while.
func TestSuited(t *testing.T) {
	for _, c := range []struct {
		rate  float64
		cores int
		want  Profile
	}{
		{1e9, 2, Mild}, {125e6, 2, Mild}, {125e6, 8, Moderate}, {12.5e6, 2, Moderate}, {2e6, 2, Moderate},
		{500e3, 2, Painful}, {2e6, 8, Painful}, {50e3, 1, Painful},
	} {
		if got := suited(c.rate, c.cores); got != c.want {
			t.Errorf("%.0f bytes a second, %d cores: %s, want %s", c.rate, c.cores, got, c.want)
		}
	}
}

func TestProfiles(t *testing.T) {
	for s, want := range map[string]Profile{"": Auto, "auto": Auto, "none": None, "disabled": None, "mild": Mild, "moderate": Moderate, "painful": Painful} {
		if got, err := ParseProfile(s); err != nil || got != want {
			t.Errorf("%q: %s %v", s, got, err)
		}
	}
	if _, err := ParseProfile("Mild"); parcel.KindOf(err) != parcel.Usage {
		t.Errorf("a profile there is not: %v", err)
	}
	plain := make([]byte, 4096)
	copy(plain, "some plaintext")
	for name, c := range codings {
		for _, suite := range []seal.Suite{seal.AES256SHA256, seal.BlowfishSHA1} {
			co := &Checkout{coding: &c}
			s := co.coded(seal.Sealer{Suite: suite, Codec: seal.Gzip})
			if suite == seal.BlowfishSHA1 && s.Codec == seal.Zstd {
				t.Errorf("%s: zstd under the pilot's suite", name)
			}
			if _, _, err := s.Seal(plain); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
	if s := (&Checkout{}).coded(seal.Sealer{Codec: seal.Zstd}); s.Codec != seal.Zstd || s.Level != seal.Usual {
		t.Errorf("without a profile: %+v", s)
	}
}
