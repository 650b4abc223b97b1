package hoard

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha1"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"isr/client/fetch"
	"isr/client/fetch/fetchtest"
	"isr/store/parcel"
	"isr/store/seal"
)

var bg = context.Background()

func object(n int) (seal.Tag, []byte) {
	p := make([]byte, n)
	rand.Read(p)
	sum := sha256.Sum256(p)
	return seal.Tag(sum[:]), p
}

func open(t testing.TB, dir string, quota int64) *Hoard {
	t.Helper()
	h, err := Open(dir, quota)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := h.Close(); err != nil {
			t.Error(err)
		}
	})
	return h
}

// inMemory is a directory in memory, if this host has such a place: a model is
// about what is there, not about what is durable.
func inMemory(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "isr-test-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// spoil puts other bytes into an object's file.
func spoil(t testing.TB, d *Dir, tag seal.Tag, with []byte) {
	t.Helper()
	file := d.file(tag)
	os.MkdirAll(filepath.Dir(file), 0o700)
	os.Remove(file)
	if err := os.WriteFile(file, with, 0o400); err != nil {
		t.Fatal(err)
	}
}

var (
	_ fetch.TagVerifier = (*Dir)(nil)
	_ fetch.TagVerifier = (*Hoard)(nil)
)

func TestDirSource(t *testing.T) {
	var last *Dir
	fetchtest.Run(t, fetchtest.Subject{
		New: func(t testing.TB, objects map[seal.Tag][]byte) fetch.Source {
			last = NewDir(filepath.Join(t.TempDir(), "a", "b"))
			for tag, p := range objects {
				if err := last.Put(bg, tag, p); err != nil {
					t.Fatal(err)
				}
			}
			if err := last.Sync(); err != nil {
				t.Fatal(err)
			}
			return last
		},
		Spoil: func(t testing.TB, tag seal.Tag, with []byte) { spoil(t, last, tag, with) },
	})
}

func TestHoardSource(t *testing.T) {
	var last *Hoard
	fetchtest.Run(t, fetchtest.Subject{
		New: func(t testing.TB, objects map[seal.Tag][]byte) fetch.Source {
			last = open(t, t.TempDir(), 0)
			for tag, p := range objects {
				if err := last.Put(bg, tag, p); err != nil {
					t.Fatal(err)
				}
			}
			return last
		},
		Spoil: func(t testing.TB, tag seal.Tag, with []byte) { spoil(t, &last.Dir, tag, with) },
	})
}

// What is spoilt is a miss, and is gone from a hoard; a Dir, which may hold
// the only copy, keeps it and says so.
func TestHeals(t *testing.T) {
	h, d := open(t, t.TempDir(), 0), NewDir(t.TempDir())
	tag, p := object(5000)
	for what, bad := range map[string][]byte{"empty": {}, "short": p[:100], "zeros": make([]byte, 5000)} {
		spoil(t, &h.Dir, tag, bad)
		if _, err := h.Get(bg, tag); !errors.Is(err, parcel.ErrNoObject) || !errors.Is(err, seal.ErrCorrupt) {
			t.Errorf("%s: %v, want ErrNoObject and ErrCorrupt", what, err)
		}
		if has, err := h.Has(tag); has || err != nil {
			t.Errorf("%s: still there", what)
		}
		spoil(t, d, tag, bad)
		if _, err := d.Get(bg, tag); errors.Is(err, parcel.ErrNoObject) || !errors.Is(err, seal.ErrCorrupt) {
			t.Errorf("Dir, %s: %v, want ErrCorrupt", what, err)
		}
		if _, err := os.Stat(d.file(tag)); err != nil {
			t.Errorf("Dir, %s: removed", what)
		}
		// Putting it again mends a Dir at once.
		if err := d.Put(bg, tag, p); err != nil {
			t.Fatal(err)
		}
		if got, err := d.Get(bg, tag); err != nil || !bytes.Equal(got, p) {
			t.Errorf("Dir, %s, mended: %v", what, err)
		}
	}
}

func TestFiles(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "hoard")
	h := open(t, dir, 0)
	tag, p := object(100)
	if err := h.Put(bg, tag, p); err != nil {
		t.Fatal(err)
	}
	fi, err := os.Stat(filepath.Join(dir, tag.String()[:2], tag.String()))
	if err != nil || fi.Mode() != 0o400 || fi.Size() != 100 {
		t.Errorf("object's file: %v %v", fi, err)
	}
	for _, d := range []string{dir, filepath.Join(dir, tag.String()[:2]), filepath.Join(dir, "pins")} {
		if fi, err := os.Stat(d); err != nil || fi.Mode().Perm() != 0o700 {
			t.Errorf("%s: %v %v, want 0700", d, fi.Mode(), err)
		}
	}
	if err := h.Put(bg, tag, nil); err == nil {
		t.Error("an empty object was put")
	}
	if err := h.Put(bg, "short", p); err == nil {
		t.Error("an object was put under no tag")
	}
	if n, err := h.Size(tag); n != 100 || err != nil {
		t.Errorf("size %d %v", n, err)
	}
	lacking, _ := object(1)
	if _, err := h.Size(lacking); !errors.Is(err, parcel.ErrNoObject) {
		t.Errorf("size of what is not there: %v", err)
	}
	if err := h.Remove(lacking); err != nil {
		t.Errorf("remove what is not there: %v", err)
	}
}

// A killed process leaves temp files; they go when they are old, and are
// never taken for objects.
func TestTempFiles(t *testing.T) {
	h := open(t, t.TempDir(), 0)
	tag, p := object(10)
	if err := h.Put(bg, tag, p); err != nil {
		t.Fatal(err)
	}
	shard := filepath.Dir(h.file(tag))
	for name, age := range map[string]time.Duration{".tmp-new": 0, ".tmp-old": 2 * tempLife, "notes": 2 * tempLife} {
		file := filepath.Join(shard, name)
		os.WriteFile(file, []byte("x"), 0o600)
		os.Chtimes(file, time.Time{}, time.Now().Add(-age))
	}
	n := 0
	if err := h.Walk(bg, func(o Object) error { n++; return nil }); err != nil || n != 1 {
		t.Errorf("walk: %d objects, %v", n, err)
	}
	for name, want := range map[string]bool{".tmp-new": true, ".tmp-old": false, "notes": true} {
		if _, err := os.Stat(filepath.Join(shard, name)); (err == nil) != want {
			t.Errorf("%s is there: %v, want %v", name, err == nil, want)
		}
	}
}

func TestWalk(t *testing.T) {
	d := NewDir(t.TempDir())
	want := make(map[seal.Tag][]byte)
	for range 300 {
		tag, p := object(50)
		want[tag] = p
		d.Put(bg, tag, p)
	}
	got := make(map[seal.Tag][]byte)
	var last seal.Tag
	err := d.Each(func(tag seal.Tag, p []byte) error {
		if tag <= last {
			t.Errorf("out of order")
		}
		last, got[tag] = tag, p
		return nil
	})
	if err != nil || !maps.EqualFunc(got, want, bytes.Equal) {
		t.Errorf("each: %d of %d, %v", len(got), len(want), err)
	}
	boom := errors.New("boom")
	if err := d.Walk(bg, func(Object) error { return boom }); !errors.Is(err, boom) {
		t.Errorf("walk: %v, want the function's error", err)
	}
	spoil(t, d, last, []byte("x"))
	if err := d.Each(func(seal.Tag, []byte) error { return nil }); !errors.Is(err, seal.ErrCorrupt) {
		t.Errorf("each over a spoilt file: %v", err)
	}
	if err := NewDir(filepath.Join(t.TempDir(), "none")).Walk(bg, func(Object) error { return boom }); err != nil {
		t.Errorf("walk of no directory: %v", err)
	}
}

func TestTake(t *testing.T) {
	h, d := open(t, t.TempDir(), 0), NewDir(t.TempDir())
	tag, p := object(100)
	d.Put(bg, tag, p)
	if err := h.Take(bg, d, tag); err != nil {
		t.Fatal(err)
	}
	if got, err := h.Get(bg, tag); err != nil || !bytes.Equal(got, p) {
		t.Errorf("taken: %v", err)
	}
	if has, _ := d.Has(tag); has {
		t.Error("still in the directory")
	}
	if err := h.Take(bg, d, tag); !errors.Is(err, parcel.ErrNoObject) {
		t.Errorf("take what is not there: %v", err)
	}
	other, err := os.MkdirTemp("/dev/shm", "hoard-test-")
	if err != nil {
		t.Skipf("no second file system: %v", err)
	}
	defer os.RemoveAll(other)
	far := NewDir(other)
	tag, p = object(100)
	far.Put(bg, tag, p)
	if err := h.Take(bg, far, tag); err != nil {
		t.Fatal(err)
	}
	if got, err := h.Get(bg, tag); err != nil || !bytes.Equal(got, p) {
		t.Errorf("taken across file systems: %v", err)
	}
	if has, _ := far.Has(tag); has {
		t.Error("still on the other file system")
	}
}

// aged puts n objects of size bytes, each used an hour before the next, and
// returns their tags, oldest first.
func aged(t testing.TB, h *Hoard, n, size int) []seal.Tag {
	t.Helper()
	var tags []seal.Tag
	for i := range n {
		tag, p := object(size)
		if err := h.Put(bg, tag, p); err != nil {
			t.Fatal(err)
		}
		used := time.Now().Add(-time.Duration(n-i+2) * time.Hour)
		if err := os.Chtimes(h.file(tag), time.Time{}, used); err != nil {
			t.Fatal(err)
		}
		tags = append(tags, tag)
	}
	return tags
}

func present(t testing.TB, h *Hoard, tags []seal.Tag) (n int) {
	t.Helper()
	for _, tag := range tags {
		if has, err := h.Has(tag); err != nil {
			t.Fatal(err)
		} else if has {
			n++
		}
	}
	return n
}

func TestEvict(t *testing.T) {
	dir := t.TempDir()
	all := open(t, dir, 0)
	tags := aged(t, all, 100, 1000)
	if freed, err := all.Evict(bg); err != nil || freed != (Freed{}) {
		t.Errorf("evict without a quota: %+v %v", freed, err)
	}
	h := open(t, dir, 100_000)
	if freed, err := h.Evict(bg); err != nil || freed != (Freed{}) {
		t.Errorf("evict at the quota: %+v %v", freed, err)
	}
	// A read makes an object young, the oldest here.
	if _, err := h.Get(bg, tags[0]); err != nil {
		t.Fatal(err)
	}
	h = open(t, dir, 50_000)
	freed, err := h.Evict(bg)
	if err != nil {
		t.Fatal(err)
	}
	// Down to the quota and a sixteenth less.
	want := Freed{54, 54_000}
	if freed != want {
		t.Errorf("freed %+v, want %+v", freed, want)
	}
	if present(t, h, tags[:1]) != 1 {
		t.Error("an object just read was evicted")
	}
	if n := present(t, h, tags[1:55]); n != 0 {
		t.Errorf("%d of the oldest are left", n)
	}
	if n := present(t, h, tags[55:]); n != 45 {
		t.Errorf("%d of the 45 youngest are left", n)
	}
	u, err := h.Usage(bg)
	if err != nil || u.Objects != 46 || u.Bytes != 46_000 || u.Quota != 50_000 {
		t.Errorf("usage %+v %v", u, err)
	}
}

// Objects of the same minute go only as far as needed.
func TestEvictWithinMinute(t *testing.T) {
	h := open(t, t.TempDir(), 60_000)
	var tags []seal.Tag
	for range 100 {
		tag, p := object(1000)
		if err := h.Dir.write(tag, p); err != nil {
			t.Fatal(err)
		}
		os.Chtimes(h.file(tag), time.Time{}, time.Now().Add(-time.Hour).Truncate(time.Minute))
		tags = append(tags, tag)
	}
	if _, err := h.Evict(bg); err != nil {
		t.Fatal(err)
	}
	if n := present(t, h, tags); n != 56 {
		t.Errorf("%d are left, want 56: quota less a sixteenth", n)
	}
}

// Puts alone keep the hoard near its quota, and a read object of an earlier
// process counts.
func TestQuotaHolds(t *testing.T) {
	dir := t.TempDir()
	const quota = 1 << 20
	for range 3 { // processes, one after another
		h := open(t, dir, quota)
		for range 100 {
			tag, p := object(10_000)
			if err := h.Put(bg, tag, p); err != nil {
				t.Fatal(err)
			}
		}
		if err := h.Close(); err != nil {
			t.Fatal(err)
		}
	}
	h := open(t, dir, quota)
	// Nobody waits for eviction, so the last step may be due.
	if _, err := h.Evict(bg); err != nil {
		t.Fatal(err)
	}
	u, err := h.Usage(bg)
	if err != nil || u.Bytes > quota || u.Bytes < quota/2 {
		t.Errorf("usage %+v %v, want at most %d and not much less", u, err, quota)
	}
}

// grew starts an eviction by itself.
func TestEvictsByItself(t *testing.T) {
	h := open(t, t.TempDir(), 100_000)
	for range 1000 {
		tag, p := object(10_000)
		if err := h.Put(bg, tag, p); err != nil {
			t.Fatal(err)
		}
	}
	h.tenders.Wait()
	u, err := h.Usage(bg)
	if err != nil || u.Bytes > 100_000 {
		t.Errorf("usage %+v %v after 10 MB were put under a quota of 100 kB", u, err)
	}
}

// disk is tags as needs of a disk.
func disk(tags []seal.Tag) iter.Seq2[Need, error] {
	return func(yield func(Need, error) bool) {
		for _, t := range tags {
			if !yield(Need{Tag: t}, nil) {
				return
			}
		}
	}
}

func newPin() Pin {
	return Pin{UUID: "6ba7b810-9dad-11d1-80b4-00c04fd430c8", Parcel: "winxp", User: "alice", Server: "isr.example.org:22",
		Version: 7, Time: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)}
}

func TestPins(t *testing.T) {
	dir := t.TempDir()
	large := open(t, dir, 0)
	pinned, rest := aged(t, large, 20, 1000), aged(t, large, 20, 1000)
	h := open(t, dir, 10_000)
	lacking, _ := object(1000)
	pin := newPin()
	asked := append(slices.Clone(pinned), lacking, pinned[3])
	if err := h.Pin(pin, disk(asked)); err != nil {
		t.Fatal(err)
	}
	pins, err := h.Pins()
	pin.Count = 21
	if err != nil || len(pins) != 1 || pins[0] != pin {
		t.Errorf("pins: %+v %v, want %+v", pins, err, pin)
	}
	n, bytes, err := h.Present(bg, pin.UUID)
	if err != nil || n != 20 || bytes != 20_000 {
		t.Errorf("present: %d objects, %d bytes, %v", n, bytes, err)
	}
	tags, err := h.Tags(pin.UUID)
	want := append(slices.Clone(pinned), lacking)
	slices.Sort(want)
	if err != nil || !slices.Equal(tags, want) {
		t.Errorf("tags: %d, %v; want %d, sorted", len(tags), err, len(want))
	}
	if _, err := h.Evict(bg); err != nil {
		t.Fatal(err)
	}
	if present(t, h, pinned) != 20 || present(t, h, rest) != 0 {
		t.Errorf("%d pinned and %d other objects are left, want 20 and 0", present(t, h, pinned), present(t, h, rest))
	}
	u, err := h.Usage(bg)
	if err != nil || u.PinnedObjects != 20 || u.PinnedBytes != 20_000 || u.Bytes != 20_000 {
		t.Errorf("usage %+v %v", u, err)
	}

	// A second parcel shares half of them; dropping the first leaves those.
	other := newPin()
	other.UUID = "6ba7b811-9dad-11d1-80b4-00c04fd430c8"
	if err := h.Pin(other, disk(pinned[:10])); err != nil {
		t.Fatal(err)
	}
	freed, err := h.Drop(bg, pin.UUID)
	if err != nil || freed != (Freed{10, 10_000}) || present(t, h, pinned[:10]) != 10 {
		t.Errorf("drop: %+v %v", freed, err)
	}
	if _, _, err := h.Present(bg, pin.UUID); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("present of an unpinned parcel: %v", err)
	}
	if freed, err := h.Drop(bg, pin.UUID); err != nil || freed != (Freed{}) {
		t.Errorf("drop of an unpinned parcel: %+v %v", freed, err)
	}
	for range 2 {
		if err := h.Unpin(other.UUID); err != nil {
			t.Error(err)
		}
	}
	if pins, err := h.Pins(); err != nil || len(pins) != 0 {
		t.Errorf("pins: %v %v", pins, err)
	}
}

func TestPinSuites(t *testing.T) {
	h := open(t, t.TempDir(), 0)
	short := func(p []byte) seal.Tag { s := sha1.Sum(p); return seal.Tag(s[:]) }
	var tags []seal.Tag
	for i := range 600 {
		p := fmt.Appendf(nil, "object %d", i)
		tags = append(tags, short(p))
		if i%2 == 0 {
			h.Put(bg, short(p), p)
		}
	}
	pin := newPin()
	if err := h.Pin(pin, disk(tags)); err != nil {
		t.Fatal(err)
	}
	if n, _, err := h.Present(bg, pin.UUID); err != nil || n != 300 {
		t.Errorf("present: %d %v", n, err)
	}
	long, _ := object(1)
	if err := h.Pin(pin, disk([]seal.Tag{tags[0], long})); err == nil {
		t.Error("tags of two suites were pinned")
	}
	if err := h.Pin(pin, disk(nil)); err != nil {
		t.Errorf("pin of nothing: %v", err)
	}
	if got, err := h.Tags(pin.UUID); err != nil || len(got) != 0 {
		t.Errorf("tags of nothing: %v %v", got, err)
	}
	for _, bad := range []string{"", "../../etc/passwd", "6BA7B810-9dad-11d1-80b4-00c04fd430c8", "x"} {
		p := pin
		p.UUID = bad
		if h.Pin(p, disk(tags)) == nil || h.Unpin(bad) == nil {
			t.Errorf("uuid %q was taken", bad)
		}
		if _, err := h.Drop(bg, bad); err == nil {
			t.Errorf("uuid %q was taken", bad)
		}
	}
}

// A pin that cannot be read may name anything: nothing is evicted.
func TestBadPin(t *testing.T) {
	dir := t.TempDir()
	tags := aged(t, open(t, dir, 0), 10, 1000)
	h := open(t, dir, 1000)
	pin := newPin()
	if err := h.Pin(pin, disk(tags[:1])); err != nil {
		t.Fatal(err)
	}
	good, err := os.ReadFile(h.pinFile(pin.UUID))
	if err != nil {
		t.Fatal(err)
	}
	other := bytes.ReplaceAll(good, []byte("6ba7b810"), []byte("6ba7b811"))
	for what, bad := range map[string][]byte{"empty": {}, "short": good[:len(good)-1], "long": append(slices.Clone(good), 0),
		"cut in the head": good[:20], "of another": other} {
		if err := os.WriteFile(h.pinFile(pin.UUID), bad, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := h.Pins(); !errors.Is(err, ErrBadPin) {
			t.Errorf("%s pin: %v, want ErrBadPin", what, err)
		}
		if freed, err := h.Evict(bg); !errors.Is(err, ErrBadPin) || freed != (Freed{}) {
			t.Errorf("evict with a pin that is %s: %+v %v", what, freed, err)
		}
		if present(t, h, tags) != 10 {
			t.Fatalf("%s pin: something was evicted", what)
		}
	}
	if err := h.Unpin(pin.UUID); err != nil {
		t.Fatal(err)
	}
	if _, err := h.Evict(bg); err != nil || present(t, h, tags) != 0 {
		t.Errorf("after unpinning: %v, %d left", err, present(t, h, tags))
	}
}

func TestCheck(t *testing.T) {
	h := open(t, t.TempDir(), 0)
	tags := aged(t, h, 10, 100)
	spoil(t, &h.Dir, tags[1], make([]byte, 100))
	spoil(t, &h.Dir, tags[2], nil)
	for _, c := range []struct {
		content bool
		want    []seal.Tag
	}{{false, []seal.Tag{tags[2]}}, {true, []seal.Tag{tags[1]}}, {true, nil}} {
		var got []seal.Tag
		_, err := h.Check(bg, c.content, func(tag seal.Tag, err error) {
			if !errors.Is(err, seal.ErrCorrupt) {
				t.Errorf("reported with %v", err)
			}
			got = append(got, tag)
		}, nil)
		if err != nil || !slices.Equal(got, c.want) {
			t.Errorf("check, content %v: %v %v, want %v", c.content, got, err, c.want)
		}
	}
	if n := present(t, h, tags); n != 8 {
		t.Errorf("%d are left, want 8", n)
	}
}

func TestCancelled(t *testing.T) {
	dir := t.TempDir()
	aged(t, open(t, dir, 0), 3, 100)
	h := open(t, dir, 10)
	ctx, cancel := context.WithCancel(bg)
	cancel()
	if _, err := h.Evict(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("evict: %v", err)
	}
	if _, err := h.Usage(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("usage: %v", err)
	}
	if _, err := h.Check(ctx, true, nil, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("check: %v", err)
	}
}

// Against a map: any order of operations, by any of several processes' views.
func TestModel(t *testing.T) {
	all := inMemory(t)
	rapid.Check(t, func(t *rapid.T) {
		dir, err := os.MkdirTemp(all, "")
		if err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(dir)
		var views []*Hoard
		for range 2 {
			h, err := Open(dir, 3000)
			if err != nil {
				t.Fatal(err)
			}
			defer h.Close()
			views = append(views, h)
		}
		content := make(map[seal.Tag][]byte) // every object there ever was
		var tags []seal.Tag
		for i := range 8 {
			p := bytes.Repeat([]byte{byte(i)}, 100+i*200)
			sum := sha256.Sum256(p)
			tag := seal.Tag(sum[:])
			content[tag], tags = p, append(tags, tag)
		}
		has := make(map[seal.Tag]bool)
		pinned := make(map[seal.Tag]bool)
		spoilt := make(map[seal.Tag]int) // its size now
		anyTag := rapid.SampledFrom(tags)
		which := rapid.IntRange(0, len(views)-1)
		view := func(t *rapid.T) *Hoard { return views[which.Draw(t, "view")] }
		settle := func() { // an eviction may be under way, begun by a put
			for _, h := range views {
				h.tenders.Wait()
			}
			for tag := range has {
				if _, err := os.Stat(views[0].file(tag)); err != nil {
					if pinned[tag] {
						t.Fatalf("a pinned object was evicted")
					}
					delete(has, tag)
					delete(spoilt, tag)
				}
			}
		}
		t.Repeat(map[string]func(*rapid.T){
			"put": func(t *rapid.T) {
				tag := anyTag.Draw(t, "tag")
				if err := view(t).Put(bg, tag, content[tag]); err != nil {
					t.Fatal(err)
				}
				if has[tag] && spoilt[tag] != len(content[tag]) {
					delete(spoilt, tag) // it was seen by its size, and replaced
				}
				has[tag] = true
				settle()
			},
			"get": func(t *rapid.T) {
				tag := anyTag.Draw(t, "tag")
				got, err := view(t).Get(bg, tag)
				_, bad := spoilt[tag]
				want := has[tag] && !bad
				switch {
				case want && (err != nil || !bytes.Equal(got, content[tag])):
					t.Fatalf("get: %v", err)
				case !want && (got != nil || !errors.Is(err, parcel.ErrNoObject)):
					t.Fatalf("get of what is not there: %v", err)
				}
				if !want {
					delete(has, tag)
					delete(spoilt, tag)
				}
			},
			"remove": func(t *rapid.T) {
				tag := anyTag.Draw(t, "tag")
				if err := view(t).Remove(tag); err != nil {
					t.Fatal(err)
				}
				delete(has, tag)
				delete(spoilt, tag)
			},
			"spoil": func(t *rapid.T) { // a power cut
				tag := anyTag.Draw(t, "tag")
				if !has[tag] {
					t.Skip()
				}
				file := views[0].file(tag)
				os.Remove(file)
				n := rapid.SampledFrom([]int{0, 1, len(content[tag])}).Draw(t, "size")
				os.WriteFile(file, slices.Repeat([]byte{0xff}, n), 0o400)
				spoilt[tag] = n
			},
			"pin": func(t *rapid.T) {
				list := rapid.SliceOfDistinct(anyTag, rapid.ID[seal.Tag]).Draw(t, "tags")
				if err := view(t).Pin(newPin(), disk(list)); err != nil {
					t.Fatal(err)
				}
				clear(pinned)
				for _, tag := range list {
					pinned[tag] = true
				}
			},
			"unpin": func(t *rapid.T) {
				if err := view(t).Unpin(newPin().UUID); err != nil {
					t.Fatal(err)
				}
				clear(pinned)
			},
			"evict": func(t *rapid.T) {
				if _, err := view(t).Evict(bg); err != nil {
					t.Fatal(err)
				}
				settle()
				u, err := view(t).Usage(bg)
				if err != nil || u.Bytes > 3000 && u.Bytes > u.PinnedBytes {
					t.Fatalf("usage %+v %v after eviction", u, err)
				}
			},
			"check": func(t *rapid.T) {
				n := 0
				if _, err := view(t).Check(bg, true, func(seal.Tag, error) { n++ }, nil); err != nil {
					t.Fatal(err)
				}
				if n != len(spoilt) {
					t.Fatalf("check found %d, want %d", n, len(spoilt))
				}
				for tag := range spoilt {
					delete(has, tag)
				}
				clear(spoilt)
			},
			"": func(t *rapid.T) {
				settle()
				n := 0
				views[1].Walk(bg, func(o Object) error { n++; return nil })
				if n != len(has) {
					t.Fatalf("%d objects, want %d", n, len(has))
				}
			},
		})
	})
}

// storm is what each of several processes does to one hoard at a time.
func storm(h *Hoard, seed byte) error {
	var tags []seal.Tag
	content := make(map[seal.Tag][]byte)
	for i := range 60 {
		p := bytes.Repeat([]byte{byte(i)}, 500+i*10) // the same in every process
		sum := sha256.Sum256(p)
		tags, content[seal.Tag(sum[:])] = append(tags, seal.Tag(sum[:])), p
	}
	pin := newPin()
	pin.UUID = fmt.Sprintf("%08x-9dad-11d1-80b4-00c04fd430c8", seed)
	mine := tags[int(seed)%20 : int(seed)%20+5]
	if err := h.Pin(pin, disk(mine)); err != nil {
		return err
	}
	for _, tag := range mine {
		if err := h.Put(bg, tag, content[tag]); err != nil {
			return err
		}
	}
	var wg sync.WaitGroup
	failed := make(chan error, 100)
	for g := range 4 {
		wg.Go(func() {
			for i := range 300 {
				tag := tags[(i*7+g*13+int(seed))%len(tags)]
				if err := h.Put(bg, tag, content[tag]); err != nil {
					failed <- err
					return
				}
				p, err := h.Get(bg, tag)
				if err == nil && !bytes.Equal(p, content[tag]) || err != nil && !errors.Is(err, parcel.ErrNoObject) {
					failed <- fmt.Errorf("get: %w", err)
					return
				}
				if i%100 == 50 {
					if _, err := h.Evict(bg); err != nil {
						failed <- err
						return
					}
				}
			}
		})
	}
	wg.Wait()
	close(failed)
	for err := range failed {
		return err
	}
	for _, tag := range mine {
		if _, err := h.Get(bg, tag); err != nil {
			return fmt.Errorf("pinned: %w", err)
		}
	}
	return nil
}

const stormDir, stormSeed = "HOARD_TEST_DIR", "HOARD_TEST_SEED"

func TestMain(m *testing.M) {
	if dir := os.Getenv(stormDir); dir != "" {
		seed, _ := strconv.Atoi(os.Getenv(stormSeed))
		h, err := Open(dir, 20_000)
		if err == nil {
			err = storm(h, byte(seed))
			h.Close()
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// Several processes at one hoard; one of them is killed in the middle.
func TestProcesses(t *testing.T) {
	dir := t.TempDir()
	start := func(seed int) *exec.Cmd {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), stormDir+"="+dir, stormSeed+"="+strconv.Itoa(seed))
		cmd.Stderr = os.Stderr
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		return cmd
	}
	var running []*exec.Cmd
	for seed := range 4 {
		running = append(running, start(seed))
	}
	victim := start(9)
	h := open(t, dir, 20_000)
	// It is at work when its pin is there.
	for {
		pins, err := h.Pins()
		if err != nil {
			t.Fatal(err)
		}
		if slices.ContainsFunc(pins, func(p Pin) bool { return p.UUID[:8] == "00000009" }) {
			break
		}
	}
	victim.Process.Kill()
	victim.Wait()
	for _, cmd := range running {
		if err := cmd.Wait(); err != nil {
			t.Errorf("process: %v", err)
		}
	}
	if _, err := h.Check(bg, true, func(tag seal.Tag, err error) { t.Errorf("after the storm: %v", err) }, nil); err != nil {
		t.Error(err)
	}
	if _, err := h.Evict(bg); err != nil {
		t.Error(err)
	}
	u, err := h.Usage(bg)
	if err != nil || u.Bytes > 20_000 && u.Bytes > u.PinnedBytes {
		t.Errorf("usage %+v %v", u, err)
	}
}

func FuzzPinHead(f *testing.F) {
	h, err := Open(f.TempDir(), 0)
	if err != nil {
		f.Fatal(err)
	}
	tag, _ := object(1)
	if err := h.Pin(newPin(), disk([]seal.Tag{tag})); err != nil {
		f.Fatal(err)
	}
	good, err := os.ReadFile(h.pinFile(newPin().UUID))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte(pinMagic + "\n"))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, p []byte) {
		var pin Pin
		size, err := parsePinHead(p, &pin)
		if err != nil {
			return
		}
		if size.width != 20 && size.width != 32 || size.start > int64(len(p)) || pin.Count < 0 {
			t.Errorf("accepted %+v of %q", size, p)
		}
	})
}

func BenchmarkGet(b *testing.B) {
	h, err := Open(b.TempDir(), 0)
	if err != nil {
		b.Fatal(err)
	}
	tag, p := object(128 << 10)
	h.Put(bg, tag, p)
	b.SetBytes(int64(len(p)))
	for b.Loop() {
		if _, err := h.Get(bg, tag); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkPut(b *testing.B) {
	h, err := Open(b.TempDir(), 0)
	if err != nil {
		b.Fatal(err)
	}
	tag, p := object(128 << 10)
	b.SetBytes(int64(len(p)))
	for b.Loop() {
		h.Remove(tag)
		if err := h.Put(bg, tag, p); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkEvictScan looks at 20,000 objects of which none need go: 2.6 GB of
// 128 KiB chunks.
func BenchmarkEvictScan(b *testing.B) {
	h, err := Open(b.TempDir(), 1<<40)
	if err != nil {
		b.Fatal(err)
	}
	for range 20_000 {
		tag, p := object(16)
		if err := h.Put(bg, tag, p); err != nil {
			b.Fatal(err)
		}
	}
	for b.Loop() {
		if _, err := h.Evict(bg); err != nil {
			b.Fatal(err)
		}
	}
}
