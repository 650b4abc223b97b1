package mirror

import (
	"os"
	"path/filepath"
	"testing"

	"isr/store/backup/realm"
	"isr/store/parcel"
)

func TestStandbyOf(t *testing.T) {
	for name, test := range map[string]struct {
		make func(file string) error
		from string
		kind parcel.Kind
	}{
		"none":    {func(string) error { return nil }, "", 0},
		"one":     {func(f string) error { return os.WriteFile(f, []byte("REALM:=r\nFROM:=h:/r\n"), 0o600) }, "h:/r", 0},
		"hostile": {func(f string) error { return os.WriteFile(f, []byte("REALM:=r\nFROM:=h:/r\nTIME:=never\n"), 0o600) }, "", parcel.Damaged},
		"empty":   {func(f string) error { return os.WriteFile(f, nil, 0o600) }, "", parcel.Damaged},
		"link":    {func(f string) error { return os.Symlink("/etc/passwd", f) }, "", parcel.Damaged},
		"dir":     {func(f string) error { return os.Mkdir(f, 0o700) }, "", parcel.Damaged},
	} {
		root := t.TempDir()
		if err := test.make(filepath.Join(root, realm.StandbyFile)); err != nil {
			t.Fatal(err)
		}
		from, asOf, err := StandbyOf(root)
		if from != test.from || !asOf.IsZero() || parcel.KindOf(err) != test.kind {
			t.Errorf("%s: %q, %v, %v", name, from, asOf, err)
		}
	}
}

func FuzzStandby(f *testing.F) {
	f.Add([]byte("REALM:=test\nFROM:=h:/x\nTIME:=2026-11-26T14:03:11Z\nFILE:=ab motd\nPARCEL:=alice winxp ab 1\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := parseStandby(b)
		if err != nil {
			return
		}
		for key := range s.parcels {
			if parcel.CheckName(key[0]) != nil || parcel.CheckName(key[1]) != nil {
				t.Fatalf("parcel %q", key)
			}
		}
		s.encode()
	})
}
