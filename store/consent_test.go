package store_test

import (
	"os"
	"path/filepath"
	"testing"

	"isr/store/storetest"
	"isr/store/tree"
)

func TestConsent(t *testing.T) {
	s := storetest.New(t)
	file := filepath.Join(s.UserAt("alice").Dir, tree.UserFile)
	check := func(text string, want bool, fails bool) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		since, ok, err := s.Consent("alice")
		if ok != want || (err != nil) != fails || ok && since.Year() != 2026 {
			t.Errorf("%q: got %v, %v, %v", text, since, ok, err)
		}
	}
	if _, ok, err := s.Consent("alice"); ok || err != nil {
		t.Errorf("without a record: %v, %v", ok, err)
	}
	check("", false, false)
	check("QUOTA:=5\n", false, false)
	check("CONSENT:=2026-11-26T10:00:00Z\nGROUP:=a\nGROUP:=b\n", true, false)
	if g, err := s.Groups("alice"); err != nil || len(g) != 2 {
		t.Errorf("groups: %v, %v", g, err)
	}
	check("CONSENT:=\n", false, true)
	check("CONSENT:=yes\n", false, true)
	check("nonsense\n", false, true)
	// What a link leads to is nobody's word.
	os.Remove(file)
	elsewhere := filepath.Join(storetest.TempDir(t), "cfg")
	if err := os.WriteFile(elsewhere, []byte("CONSENT:=2026-11-26T10:00:00Z\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(elsewhere, file); err != nil {
		t.Fatal(err)
	}
	if _, ok, err := s.Consent("alice"); ok || err == nil {
		t.Errorf("through a link: %v, %v", ok, err)
	}
	for _, name := range []string{"nobody", "../alice", ""} {
		if _, ok, err := s.Consent(name); ok || err == nil {
			t.Errorf("user %q: %v, %v", name, ok, err)
		}
	}
}
