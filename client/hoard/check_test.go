package hoard

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"isr/store/seal"
)

const testID = "6ba7b810-9dad-11d1-80b4-00c04fd430c8"

func pin(t testing.TB, h *Hoard, id string, tags ...seal.Tag) {
	t.Helper()
	if err := h.Pin(Pin{UUID: id, Parcel: "box", User: "alice", Server: "h", Version: 1, Time: time.Now()}, disk(tags)); err != nil {
		t.Fatal(err)
	}
}

// Files that are not the hoard's are named, and only those.
func TestStray(t *testing.T) {
	h := open(t, t.TempDir(), 0)
	tags := aged(t, h, 3, 100)
	pin(t, h, testID, tags...)
	h.Close()
	h.Evict(bg)
	if got, err := h.Stray(); err != nil || len(got) != 0 {
		t.Errorf("of a hoard as it should be: %q, %v", got, err)
	}
	first := tags[0].String()
	want := []string{first[:2] + "/" + tags[0].String()[:10], "notes", "pins/readme", "sub", "zz"}
	for _, name := range want {
		path := filepath.Join(h.path, name)
		if name == "sub" || name == "zz" {
			if err := os.Mkdir(path, 0o700); err != nil {
				t.Fatal(err)
			}
			path = filepath.Join(path, "inside")
		}
		if err := os.WriteFile(path, []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	// An object in another's directory is never found there.
	wrong := filepath.Join(h.path, "zz", first)
	if err := os.WriteFile(wrong, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := h.Stray()
	slices.Sort(want)
	slices.Sort(got)
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("stray %q, %v; want %q", got, err, want)
	}
}

// A pin that cannot be read is named, and what a good one lacks.
func TestPinsChecked(t *testing.T) {
	h := open(t, t.TempDir(), 0)
	tags := aged(t, h, 4, 100)
	pin(t, h, testID, tags...)
	if bad, err := h.BadPins(); err != nil || len(bad) != 0 {
		t.Errorf("bad pins %v, %v", bad, err)
	}
	for _, gone := range tags[:2] {
		if err := h.Remove(gone); err != nil {
			t.Fatal(err)
		}
	}
	lacking, err := h.Lacking(testID)
	slices.Sort(lacking)
	want := slices.Sorted(slices.Values(tags[:2]))
	if err != nil || !slices.Equal(lacking, want) {
		t.Errorf("lacking %v, %v", lacking, err)
	}
	if err := os.WriteFile(h.pinFile(testID), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	bad, err := h.BadPins()
	if err != nil || len(bad) != 1 || bad[testID] == nil {
		t.Errorf("bad pins %v, %v", bad, err)
	}
}

// Compact removes exactly what neither a pin nor the caller needs, counts it
// the same beforehand, and leaves the usage right.
func TestCompact(t *testing.T) {
	all := inMemory(t)
	rapid.Check(t, func(rt *rapid.T) {
		dir, err := os.MkdirTemp(all, "")
		if err != nil {
			rt.Fatal(err)
		}
		defer os.RemoveAll(dir)
		h, err := Open(dir, 0)
		if err != nil {
			rt.Fatal(err)
		}
		defer h.Close()
		n := rapid.IntRange(0, 30).Draw(rt, "objects")
		tags := aged(t, h, n, 50)
		var pinned []seal.Tag
		needed := make(map[seal.Tag]bool)
		want := make(map[seal.Tag]bool)
		for _, tag := range tags {
			switch rapid.IntRange(0, 2).Draw(rt, "who") {
			case 0:
				pinned = append(pinned, tag)
				want[tag] = true
			case 1:
				needed[tag] = true
				want[tag] = true
			}
		}
		pin(t, h, testID, pinned...)
		need := func(tag seal.Tag) bool { return needed[tag] }
		would, err := h.Compact(bg, need, true)
		if err != nil {
			rt.Fatal(err)
		}
		if got := present(t, h, tags); got != n {
			rt.Fatalf("the count removed %d objects", n-got)
		}
		freed, err := h.Compact(bg, need, false)
		if err != nil || freed != would || freed.Objects != int64(n-len(want)) {
			rt.Fatalf("freed %+v, %v; would %+v; want %d objects", freed, err, would, n-len(want))
		}
		for _, tag := range tags {
			if has, _ := h.Has(tag); has != want[tag] {
				rt.Fatalf("object %s: here %v, want %v", tag, has, want[tag])
			}
		}
		if u, err := h.Usage(context.Background()); err != nil || h.usage() != u.Bytes {
			rt.Fatalf("usage on record %d, is %d, %v", h.usage(), u.Bytes, err)
		}
	})
}
