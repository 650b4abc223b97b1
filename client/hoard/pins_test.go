package hoard

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"os"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"isr/store/parcel"
	"isr/store/seal"
)

// needs is the places of a version: index is the place, "" leads nowhere.
func needs(places []Need) iter.Seq2[Need, error] {
	return func(yield func(Need, error) bool) {
		for _, n := range places {
			if n.Tag != "" && !yield(n, nil) {
				return
			}
		}
	}
}

// A pin that follows from version to version, by what differs, is the pin that
// is made of the last one anew, whatever other pinning goes on.
func TestRepinModel(t *testing.T) {
	h, fresh := open(t, inMemory(t), 0), open(t, inMemory(t), 0)
	var tags []seal.Tag
	for range 12 {
		tag, _ := object(1)
		tags = append(tags, tag)
	}
	rapid.Check(t, func(t *rapid.T) {
		anyTag := rapid.SampledFrom(append([]seal.Tag{""}, tags...))
		pin := newPin()
		pin.Version = 1
		if err := h.Unpin(pin.UUID); err != nil {
			t.Fatal(err)
		}
		places := make([]Need, 10)
		for i := range places {
			places[i].Part = Part(i % 2)
		}
		change := func() []Need {
			next := slices.Clone(places)
			for range rapid.IntRange(0, 4).Draw(t, "changes") {
				next[rapid.IntRange(0, len(next)-1).Draw(t, "place")].Tag = anyTag.Draw(t, "tag")
			}
			return next
		}
		places = change()
		if err := h.Pin(pin, needs(places)); err != nil {
			t.Fatal(err)
		}
		for range rapid.IntRange(1, 8).Draw(t, "versions") {
			next := change()
			var less, more []Need
			for i := range next {
				if next[i] != places[i] {
					less, more = append(less, places[i]), append(more, next[i])
				}
			}
			given := func(list []Need) iter.Seq[Need] {
				return slices.Values(slices.DeleteFunc(slices.Clone(list), func(n Need) bool { return n.Tag == "" }))
			}
			newer := pin
			newer.Version++
			// Who comes late, with what was the pin before, changes nothing.
			if rapid.Bool().Draw(t, "late") {
				if err := h.Repin(newer, pin.Version-1, given(less), given(more)); !errors.Is(err, ErrPinChanged) {
					t.Fatalf("repin from another version: %v", err)
				}
				if err := h.PinAfter(Pin{}, newer, needs(next)); !errors.Is(err, ErrPinChanged) {
					t.Fatalf("pin after none, while there is one: %v", err)
				}
			}
			if err := h.Repin(newer, pin.Version, given(less), given(more)); err != nil {
				t.Fatal(err)
			}
			pin, places = newer, next
		}
		if err := fresh.Pin(pin, needs(places)); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(h.pinFile(pin.UUID))
		want, err2 := os.ReadFile(fresh.pinFile(pin.UUID))
		if err != nil || err2 != nil || !slices.Equal(got, want) {
			t.Fatalf("the pin that followed: %v %v\n%q, want\n%q", err, err2, got, want)
		}
	})
}

// Needs that fail leave the pin as it is; so does a difference that does not
// fit it.
func TestPinRefused(t *testing.T) {
	h := open(t, t.TempDir(), 0)
	a, _ := object(1)
	b, _ := object(1)
	pin := newPin()
	boom := errors.New("boom")
	err := h.Pin(pin, func(yield func(Need, error) bool) {
		if yield(Need{Tag: a}, nil) {
			yield(Need{}, boom)
		}
	})
	if !errors.Is(err, boom) {
		t.Errorf("needs that fail: %v", err)
	}
	if _, err := h.Pinned(pin.UUID); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("pinned all the same: %v", err)
	}
	if err := h.Pin(pin, disk([]seal.Tag{a})); err != nil {
		t.Fatal(err)
	}
	none := slices.Values([]Need(nil))
	newer := pin
	newer.Version++
	for what, err := range map[string]error{
		"less of what is not there": h.Repin(newer, pin.Version, slices.Values([]Need{{Tag: b}}), none),
		"less than there is":        h.Repin(newer, pin.Version, slices.Values([]Need{{Tag: a}, {Tag: a}}), none),
		"another suite":             h.Repin(newer, pin.Version, none, slices.Values([]Need{{Tag: a[:20]}})),
	} {
		if !errors.Is(err, ErrPinChanged) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if tags, err := h.Tags(pin.UUID); err != nil || !slices.Equal(tags, []seal.Tag{a}) {
		t.Errorf("afterwards: %v %v", tags, err)
	}
}

// A pin as it was written before still keeps its objects, and does not follow.
func TestOldPin(t *testing.T) {
	dir := t.TempDir()
	tags := aged(t, open(t, dir, 0), 10, 1000)
	h := open(t, dir, 1000)
	pin := newPin()
	if err := h.Pin(pin, disk(tags[:4])); err != nil {
		t.Fatal(err)
	}
	kept, err := h.Tags(pin.UUID)
	if err != nil {
		t.Fatal(err)
	}
	head, err := parcel.Record{{Key: "UUID", Value: pin.UUID}, {Key: "PARCEL", Value: pin.Parcel}, {Key: "USER", Value: pin.User},
		{Key: "SERVER", Value: pin.Server}, {Key: "VERSION", Value: "7"}, {Key: "TIME", Value: pin.Time.Format(time.RFC3339)},
		{Key: "WIDTH", Value: "32"}, {Key: "COUNT", Value: "4"}}.Encode()
	if err != nil {
		t.Fatal(err)
	}
	old := pinMagic1 + string(head) + "\n"
	for _, tag := range kept {
		old += string(tag)
	}
	if err := os.WriteFile(h.pinFile(pin.UUID), []byte(old), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := h.Evict(bg); err != nil {
		t.Fatal(err)
	}
	if n := present(t, h, tags[:4]); n != 4 {
		t.Errorf("%d of 4 are left", n)
	}
	if got, err := h.Tags(pin.UUID); err != nil || !slices.Equal(got, kept) {
		t.Errorf("tags: %v %v", got, err)
	}
	none := slices.Values([]Need(nil))
	newer := pin
	newer.Version++
	if err := h.Repin(newer, pin.Version, none, none); !errors.Is(err, ErrPinChanged) {
		t.Errorf("it followed: %v", err)
	}
}

func TestSurvey(t *testing.T) {
	h := open(t, t.TempDir(), 0)
	a, b, c := aged(t, h, 3, 100), aged(t, h, 2, 1000), aged(t, h, 1, 10_000)
	aged(t, h, 1, 7) // nobody's
	lacking, _ := object(10)
	one, two := newPin(), newPin()
	one.Memory = true
	two.UUID, two.Parcel = "6ba7b811-9dad-11d1-80b4-00c04fd430c8", "box"
	var list []Need
	for _, tag := range a {
		list = append(list, Need{tag, Disk}, Need{tag, Disk})
	}
	for _, tag := range b {
		list = append(list, Need{tag, Memory})
	}
	list = append(list, Need{c[0], Disk}, Need{c[0], Memory}, Need{lacking, Memory})
	if err := h.Pin(one, needs(list)); err != nil {
		t.Fatal(err)
	}
	if err := h.Pin(two, disk(append(slices.Clone(b), a[0]))); err != nil {
		t.Fatal(err)
	}
	done := time.Date(2026, 2, 3, 4, 5, 6, 0, time.UTC)
	if err := h.Completed(two.UUID, done); err != nil {
		t.Fatal(err)
	}
	one.Count, two.Count = 7, 3
	kept, u, err := h.Survey(bg)
	want := []Kept{
		{Pin: one, Here: 6, Bytes: 12_300, DiskOnly: 300, MemOnly: 2000, Shared: 2100},
		{Pin: two, Here: 3, Bytes: 2100, DiskOnly: 2100, Shared: 2100, Completed: done},
	}
	if err != nil || !slices.Equal(kept, want) || kept[0].Complete() || !kept[1].Complete() {
		t.Errorf("survey: %v\n%+v, want\n%+v", err, kept, want)
	}
	if want := (Usage{Objects: 7, Bytes: 12_307, PinnedObjects: 6, PinnedBytes: 12_300}); u != want {
		t.Errorf("usage %+v, want %+v", u, want)
	}
	if u2, err := h.Usage(bg); err != nil || u2 != u {
		t.Errorf("usage counted otherwise: %+v %v", u2, err)
	}
	for _, c := range []struct {
		id   string
		want bool
	}{{one.UUID, false}, {two.UUID, true}, {"6ba7b812-9dad-11d1-80b4-00c04fd430c8", false}} {
		if whole, err := h.Whole(bg, c.id); whole != c.want || err != nil {
			t.Errorf("whole %s: %v %v", c.id, whole, err)
		}
	}
	missing, err := h.Missing(bg, one.UUID)
	if err != nil || !slices.Equal(missing, []seal.Tag{lacking}) {
		t.Errorf("missing: %v %v", missing, err)
	}
	// What cannot be read spoils nothing else.
	if err := os.WriteFile(h.pinFile(one.UUID), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	kept, _, err = h.Survey(bg)
	if !errors.Is(err, ErrBadPin) || len(kept) != 1 || kept[0].Parcel != "box" {
		t.Errorf("with a bad pin: %+v %v", kept, err)
	}
	ctx, cancel := context.WithCancel(bg)
	cancel()
	if _, _, err := h.Survey(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	// Unpinning forgets it all.
	if err := h.Unpin(one.UUID); err != nil {
		t.Fatal(err)
	}
	if _, err := h.Drop(bg, two.UUID); err != nil || !h.CompletedAt(two.UUID).IsZero() {
		t.Errorf("drop: %v, completed %v", err, h.CompletedAt(two.UUID))
	}
}

// BenchmarkPin: what pinning, and following, a parcel of 8 GiB of 128 KiB
// chunks costs, of which 100 change.
func BenchmarkPin(b *testing.B) {
	h, err := Open(b.TempDir(), 0)
	if err != nil {
		b.Fatal(err)
	}
	places := make([]Need, 64<<10)
	for i := range places {
		p := make([]byte, 32)
		binary.BigEndian.PutUint64(p, uint64(i)*0x9e3779b97f4a7c15)
		places[i].Tag = seal.Tag(p)
	}
	pin := newPin()
	if err := h.Pin(pin, needs(places)); err != nil {
		b.Fatal(err)
	}
	b.Run("anew", func(b *testing.B) {
		for b.Loop() {
			if err := h.Pin(pin, needs(places)); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("follow", func(b *testing.B) {
		none := slices.Values([]Need(nil))
		for n := 0; b.Loop(); n++ {
			more := make([]Need, 100)
			for i := range more {
				more[i].Tag = seal.Tag(fmt.Sprintf("%032d", n*100+i))
			}
			newer := pin
			newer.Version++
			if err := h.Repin(newer, pin.Version, none, slices.Values(more)); err != nil {
				b.Fatal(err)
			}
			pin = newer
		}
	})
	b.Run("missing", func(b *testing.B) {
		for b.Loop() {
			if _, err := h.Missing(bg, pin.UUID); err != nil {
				b.Fatal(err)
			}
		}
	})
}
