package keyring

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"isr/store/seal"
)

var ctx = context.Background()

var errAbsent = errors.New("absent")

// objects is a store in memory that counts.
type objects struct {
	mu         sync.Mutex
	m          map[seal.Tag][]byte
	gets, puts int
}

func newObjects() *objects { return &objects{m: make(map[seal.Tag][]byte)} }

func (o *objects) Get(_ context.Context, tag seal.Tag) ([]byte, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.gets++
	p, ok := o.m[tag]
	if !ok {
		return nil, errAbsent
	}
	return p, nil
}

func (o *objects) Put(_ context.Context, tag seal.Tag, sealed []byte) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.puts++
	o.m[tag] = sealed
	return nil
}

var sealer = seal.Sealer{Suite: seal.AES256SHA256, Codec: seal.Gzip, Secret: []byte("s")}

// ref is a reference to no object, of sealer's suite.
func ref(n int) seal.Ref {
	k := sealer.Key([]byte(fmt.Sprint(n)))
	return seal.Ref{Tag: seal.Tag(sealer.Key([]byte(k))), Key: k}
}

const testChunk = 4096

func TestDepth(t *testing.T) {
	for _, c := range []struct {
		size   int64
		chunk  int
		chunks int64
		depth  int
	}{
		{0, testChunk, 0, 0}, {1, testChunk, 1, 0}, {testChunk - 1, testChunk, 1, 0}, {testChunk, testChunk, 1, 0}, {testChunk + 1, testChunk, 2, 1},
		{255 * testChunk, testChunk, 255, 1}, {256 * testChunk, testChunk, 256, 1}, {256*testChunk + 1, testChunk, 257, 2},
		{65536 * testChunk, testChunk, 65536, 2}, {65536*testChunk + 1, testChunk, 65537, 3},
		{10 << 30, 128 << 10, 81920, 3}, {1 << 40, 128 << 10, 8 << 20, 3}, {1 << 50, 128 << 10, 8 << 30, 5}, {1 << 56, 4096, 1 << 44, 6},
	} {
		im := NewImage(Disk, c.size, c.chunk)
		if im.Chunks() != c.chunks || im.Depth != c.depth {
			t.Errorf("%d bytes in chunks of %d: got %d chunks, depth %d, want %d, %d", c.size, c.chunk, im.Chunks(), im.Depth, c.chunks, c.depth)
		}
		if err := im.check(); err != nil {
			t.Error(err)
		}
	}
}

// sets stores refs in a new tree and returns its image.
func sets(t testing.TB, o *objects, size int64, refs map[int64]seal.Ref) Image {
	t.Helper()
	tree := NewTree(sealer, NewImage(Disk, size, testChunk), o)
	for n, r := range refs {
		tree.Set(n, r)
	}
	im, err := tree.Flush(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	return im
}

func TestTreeBounds(t *testing.T) {
	for _, chunks := range []int64{1, 2, 255, 256, 257, 65535, 65536, 65537} {
		o := newObjects()
		last := chunks - 1
		im := sets(t, o, chunks*testChunk, map[int64]seal.Ref{last: ref(1)})
		tree := NewTree(sealer, im, o)
		for n, want := range map[int64]seal.Ref{last: ref(1), last / 2: {}, 0: {}} {
			if n == last {
				want = ref(1)
			}
			if got, err := tree.Ref(ctx, n); got != want || err != nil {
				t.Errorf("%d chunks: chunk %d: got %s, %v, want %s", chunks, n, got, err, want)
			}
		}
		for _, n := range []int64{-1, chunks, chunks + 1, 1 << 40} {
			if _, err := tree.Ref(ctx, n); err == nil {
				t.Errorf("%d chunks: chunk %d was got", chunks, n)
			}
			func() {
				defer func() {
					if recover() == nil {
						t.Errorf("%d chunks: chunk %d was set", chunks, n)
					}
				}()
				tree.Set(n, ref(2))
			}()
		}
		if o.puts != im.Depth {
			t.Errorf("%d chunks: %d blocks stored for one chunk, want %d", chunks, o.puts, im.Depth)
		}
		// To zeros again: nothing is left of the tree.
		tree.Set(last, seal.Ref{})
		if im, err := tree.Flush(ctx, o); err != nil || !im.Ref.IsNil() || o.puts != im.Depth {
			t.Errorf("%d chunks: after zeros: got %s, %v, %d puts", chunks, im.Ref, err, o.puts)
		}
	}
}

// One chunk of 1 TiB costs the blocks on its path, and so do two versions that
// differ in it.
func TestPathCost(t *testing.T) {
	o := newObjects()
	const chunks = 1 << 28 // 1 TiB
	refs := make(map[int64]seal.Ref)
	for i := range int64(1000) {
		refs[i*(chunks/1000)] = ref(int(i))
	}
	old := sets(t, o, chunks*testChunk, refs)
	if old.Depth != 4 {
		t.Fatalf("depth %d", old.Depth)
	}
	o.gets, o.puts = 0, 0
	tree := NewTree(sealer, old, o)
	tree.Set(12345, ref(-1))
	cur, err := tree.Flush(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	if o.puts != 4 || o.gets > 4 {
		t.Errorf("one chunk: %d blocks stored, %d got, want 4 and at most 4", o.puts, o.gets)
	}
	o.gets = 0
	var seen []string
	err = Diff(ctx, sealer, o, old, cur, func(level int, n int64, a, b seal.Ref) error {
		seen = append(seen, fmt.Sprintf("%d/%d", level, n))
		return nil
	})
	if got := strings.Join(seen, " "); err != nil || got != "4/0 3/0 2/0 1/48 0/12345" {
		t.Errorf("diff: got %s, %v", got, err)
	}
	if o.gets > 8 {
		t.Errorf("diff: %d blocks got, want at most 8", o.gets)
	}
}

// The tree agrees with a map, whatever is set, flushed, read and reopened.
func TestTreeModel(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		o := newObjects()
		chunks := rapid.SampledFrom([]int64{1, 2, 256, 257, 600, 70000}).Draw(r, "chunks")
		im := NewImage(Disk, chunks*testChunk, testChunk)
		tree := NewTree(sealer, im, o)
		model := make(map[int64]seal.Ref)
		flushed := maps.Clone(model)
		last := im
		anyChunk := rapid.OneOf(rapid.Int64Range(0, chunks-1), rapid.Int64Range(0, min(3, chunks-1)), rapid.Int64Range(max(0, chunks-3), chunks-1))
		r.Repeat(map[string]func(*rapid.T){
			"set": func(r *rapid.T) {
				n := anyChunk.Draw(r, "n")
				v := rapid.IntRange(0, 5).Draw(r, "v")
				if v == 0 {
					tree.Set(n, seal.Ref{})
					delete(model, n)
					return
				}
				tree.Set(n, ref(v))
				model[n] = ref(v)
			},
			"get": func(r *rapid.T) {
				n := anyChunk.Draw(r, "n")
				if got, err := tree.Ref(ctx, n); got != model[n] || err != nil {
					r.Fatalf("chunk %d: got %s, %v, want %s", n, got, err, model[n])
				}
			},
			"flush": func(r *rapid.T) {
				im, err := tree.Flush(ctx, o)
				if err != nil {
					r.Fatal(err)
				}
				// What differs from the last flush is what was changed.
				got := make(map[int64]bool)
				if err := Diff(ctx, sealer, o, last, im, func(level int, n int64, a, b seal.Ref) error {
					if level == 0 {
						got[n] = true
						if a != flushed[n] || b != model[n] {
							r.Fatalf("diff of chunk %d: got %s to %s, want %s to %s", n, a, b, flushed[n], model[n])
						}
					}
					return nil
				}); err != nil {
					r.Fatal(err)
				}
				for n := range maps.Keys(merge(flushed, model)) {
					if (flushed[n] != model[n]) != got[n] {
						r.Fatalf("diff of chunk %d: visited %v", n, got[n])
					}
				}
				last, flushed = im, maps.Clone(model)
			},
			"reopen": func(r *rapid.T) {
				tree = NewTree(sealer, last, o)
				model = maps.Clone(flushed)
			},
			"again": func(r *rapid.T) {
				// The same content gives the same tree, however it came about.
				other := newObjects()
				if im := setsOf(r, other, chunks, flushed); im != last {
					r.Fatalf("got %s, made anew %s", last.Ref, im.Ref)
				}
			},
		})
		got := make(map[int64]seal.Ref)
		if err := Walk(ctx, sealer, o, last, func(level int, n int64, ref seal.Ref) error {
			if level == 0 {
				got[n] = ref
			}
			return nil
		}); err != nil || !maps.Equal(got, flushed) {
			r.Fatalf("walk: got %d chunks, %v, want %d", len(got), err, len(flushed))
		}
	})
}

func merge(a, b map[int64]seal.Ref) map[int64]seal.Ref {
	m := maps.Clone(a)
	maps.Copy(m, b)
	return m
}

func setsOf(r *rapid.T, o *objects, chunks int64, refs map[int64]seal.Ref) Image {
	tree := NewTree(sealer, NewImage(Disk, chunks*testChunk, testChunk), o)
	for n, ref := range refs {
		tree.Set(n, ref)
	}
	im, err := tree.Flush(ctx, o)
	if err != nil {
		r.Fatal(err)
	}
	return im
}

// Sets and flushes at once lose nothing.
func TestTreeConcurrent(t *testing.T) {
	o := newObjects()
	const chunks = 3000
	tree := NewTree(sealer, NewImage(Disk, chunks*testChunk, testChunk), o)
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			for n := g; n < chunks; n += 4 {
				tree.Set(int64(n), ref(n))
				if n%200 < 4 {
					if _, err := tree.Flush(ctx, o); err != nil {
						t.Error(err)
					}
				}
				if got, err := tree.Ref(ctx, int64(n)); got != ref(n) || err != nil {
					t.Errorf("chunk %d: got %s, %v", n, got, err)
				}
			}
		})
	}
	wg.Wait()
	im, err := tree.Flush(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	tree = NewTree(sealer, im, o)
	for n := range chunks {
		if got, err := tree.Ref(ctx, int64(n)); got != ref(n) || err != nil {
			t.Fatalf("chunk %d: got %s, %v", n, got, err)
		}
	}
}

// What is set while a flush is at work is not in it, and not lost.
func TestSetDuringFlush(t *testing.T) {
	o := newObjects()
	tree := NewTree(sealer, NewImage(Disk, 600*testChunk, testChunk), o)
	tree.Set(1, ref(1))
	tree.Set(2, ref(1))
	im, err := tree.Flush(ctx, putFunc(func(tag seal.Tag, sealed []byte) error {
		tree.Set(1, ref(2))
		tree.Set(599, ref(3))
		return o.Put(ctx, tag, sealed)
	}))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := NewTree(sealer, im, o).Ref(ctx, 1); got != ref(1) || err != nil {
		t.Errorf("flushed: got %s, %v", got, err)
	}
	for range 2 {
		for n, want := range map[int64]seal.Ref{1: ref(2), 2: ref(1), 599: ref(3)} {
			if got, err := tree.Ref(ctx, n); got != want || err != nil {
				t.Errorf("chunk %d: got %s, %v, want %s", n, got, err, want)
			}
		}
		if _, err := tree.Flush(ctx, o); err != nil {
			t.Fatal(err)
		}
	}
}

type putFunc func(seal.Tag, []byte) error

func (f putFunc) Put(_ context.Context, tag seal.Tag, sealed []byte) error { return f(tag, sealed) }

// A flush that fails half-way loses nothing: the next one completes it.
func TestFlushFails(t *testing.T) {
	o := newObjects()
	tree := NewTree(sealer, NewImage(Disk, 70000*testChunk, testChunk), o)
	for _, n := range []int64{0, 300, 69999} {
		tree.Set(n, ref(int(n)))
	}
	full := errors.New("full")
	for fail := range 6 {
		if _, err := tree.Flush(ctx, &failing{o, fail, full}); !errors.Is(err, full) {
			t.Errorf("put %d fails: got %v", fail, err)
		}
		for _, n := range []int64{0, 300, 69999} {
			if got, err := tree.Ref(ctx, n); got != ref(int(n)) || err != nil {
				t.Errorf("chunk %d: got %s, %v", n, got, err)
			}
		}
	}
	im, err := tree.Flush(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := NewTree(sealer, im, o).Ref(ctx, 300); got != ref(300) || err != nil {
		t.Errorf("got %s, %v", got, err)
	}
}

type failing struct {
	*objects
	left int
	err  error
}

func (f *failing) Put(ctx context.Context, tag seal.Tag, sealed []byte) error {
	if f.left--; f.left < 0 {
		return f.err
	}
	return f.objects.Put(ctx, tag, sealed)
}

// Missing and corrupt blocks are different errors, and neither is served.
func TestTreeDamage(t *testing.T) {
	o := newObjects()
	im := sets(t, o, 70000*testChunk, map[int64]seal.Ref{5: ref(1), 300: ref(2)})
	for tag, whole := range maps.Clone(o.m) {
		delete(o.m, tag)
		_, err1 := NewTree(sealer, im, o).Ref(ctx, 5)
		_, err2 := NewTree(sealer, im, o).Ref(ctx, 300)
		if !errors.Is(err1, errAbsent) && !errors.Is(err2, errAbsent) {
			t.Errorf("block %s missing: got %v, %v", tag, err1, err2)
		}
		if err := Walk(ctx, sealer, o, im, func(int, int64, seal.Ref) error { return nil }); !errors.Is(err, errAbsent) {
			t.Errorf("block %s missing: walk: got %v", tag, err)
		}
		bad := bytes.Clone(whole)
		bad[len(bad)/2] ^= 1
		o.m[tag] = bad
		if err := Walk(ctx, sealer, o, im, func(int, int64, seal.Ref) error { return nil }); !errors.Is(err, seal.ErrCorrupt) {
			t.Errorf("block %s flipped: walk: got %v", tag, err)
		}
		o.m[tag] = whole
	}
	// A block that is whole but belongs on another level.
	wrong := im
	wrong.Depth, wrong.Size = 2, 65536*testChunk
	if _, err := NewTree(sealer, wrong, o).Ref(ctx, 5); !errors.Is(err, ErrFormat) {
		t.Errorf("block of another level: got %v", err)
	}
	// References beyond the end of a smaller image.
	small := sets(t, o, 600*testChunk, map[int64]seal.Ref{599: ref(1)})
	small.Size = 599 * testChunk
	if err := Walk(ctx, sealer, o, small, func(int, int64, seal.Ref) error { return nil }); !errors.Is(err, ErrFormat) {
		t.Errorf("beyond the end: got %v", err)
	}
	// The same tags under wrong keys are not the same version.
	forged := im
	forged.Ref.Key = ref(9).Key
	if err := Diff(ctx, sealer, o, im, forged, func(int, int64, seal.Ref, seal.Ref) error { return nil }); !errors.Is(err, seal.ErrCorrupt) {
		t.Errorf("wrong key: got %v", err)
	}
	// A tree will not store a reference of another suite.
	tree := NewTree(sealer, im, o)
	tree.Set(1, seal.Ref{Tag: ref(1).Tag[:20], Key: ref(1).Key[:20]})
	if _, err := tree.Flush(ctx, o); err == nil {
		t.Error("a reference of another suite was stored")
	}
}

func TestDiffOfOtherShape(t *testing.T) {
	o := newObjects()
	a := sets(t, o, 200*testChunk, map[int64]seal.Ref{1: ref(1), 2: ref(2)})
	b := sets(t, o, 300*testChunk, map[int64]seal.Ref{1: ref(1), 299: ref(3)})
	var got []int64
	if err := Diff(ctx, sealer, o, a, b, func(level int, n int64, old, cur seal.Ref) error {
		if level == 0 {
			if !old.IsNil() {
				t.Errorf("chunk %d: old is %s", n, old)
			}
			got = append(got, n)
		}
		return nil
	}); err != nil || !slices.Equal(got, []int64{1, 299}) {
		t.Errorf("got %v, %v: want all of the new image", got, err)
	}
	var levels []int
	stop := errors.New("stop")
	if err := Walk(ctx, sealer, o, b, func(level int, n int64, _ seal.Ref) error {
		levels = append(levels, level)
		if level == 1 && n == 0 {
			return SkipBelow
		}
		if level == 0 {
			return stop
		}
		return nil
	}); !errors.Is(err, stop) || !slices.Equal(levels, []int{2, 1, 1, 0}) {
		t.Errorf("levels %v, %v", levels, err)
	}
}

func testRoot() *Root {
	im := NewImage(Disk, 1<<30, 128<<10)
	im.Ref = ref(1)
	return &Root{Format: 1, Suite: seal.AES256SHA256, Parent: 6, Time: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), Host: "thinkpad",
		Comment: `a "quoted" <tag> & such`, Suspended: "qemu", Requires: map[string]string{"machine": "pc-i440fx-7.2", "cpu": "qemu64"},
		CfgSize: 1234, Cfg: ref(2), Images: []Image{im, NewImage(Memory, 256<<20, 64<<10)}}
}

// The bytes of a root block, and of a tree block, are pinned: whoever changes
// them breaks what is stored.
func TestFormat(t *testing.T) {
	p, err := testRoot().encode()
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "root.json", p)
	var b Block
	b[0], b[1], b[255] = ref(1), ref(2), ref(3)
	golden(t, "block.bin", b.encode(2))
	b20 := Block{7: {Tag: ref(1).Tag[:20], Key: ref(1).Key[:20]}}
	golden(t, "block-sha1.bin", b20.encode(1))
	if got := len(b.encode(2)); got != 4+1+3*65+253 {
		t.Errorf("block of %d bytes", got)
	}
	got, err := decodeBlock(b20.encode(1), 1, 20)
	if err != nil || *got != b20 {
		t.Errorf("block of the pilot's suite: %v", err)
	}
}

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	want, err := os.ReadFile("testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s has changed: got %q", name, got)
	}
}

func TestRoot(t *testing.T) {
	for _, suite := range []seal.Suite{seal.AES256SHA256, seal.BlowfishSHA1} {
		s := sealer
		s.Suite = suite
		r := testRoot()
		if suite == seal.BlowfishSHA1 {
			r.Suite = suite
			r.Cfg = seal.Ref{}
			r.Images[0].Ref = seal.Ref{Tag: ref(1).Tag[:20], Key: ref(1).Key[:20]}
		}
		keyroot, sealed, err := SealRoot(s, r)
		if err != nil {
			t.Fatal(err)
		}
		got, err := OpenRoot(s, keyroot, sealed)
		if err != nil {
			t.Fatal(err)
		}
		a, _ := r.encode()
		b, _ := got.encode()
		if !bytes.Equal(a, b) {
			t.Errorf("got %s, want %s", b, a)
		}
		other := s
		other.Suite = map[seal.Suite]seal.Suite{seal.AES256SHA256: seal.BlowfishSHA1, seal.BlowfishSHA1: seal.AES256SHA256}[suite]
		if _, err := OpenRoot(other, keyroot, sealed); !errors.Is(err, seal.ErrCorrupt) {
			t.Errorf("by another suite: got %v", err)
		}
	}
	im, ok := testRoot().Image(Memory)
	if !ok || im.Size != 256<<20 {
		t.Errorf("memory: got %+v, %v", im, ok)
	}
	if _, ok := testRoot().Image("floppy"); ok {
		t.Error("there is a floppy")
	}
	r := testRoot()
	c := r.Clone()
	c.Requires["cpu"] = "other"
	c.SetImage(NewImage(Memory, 1, 4096))
	c.SetImage(NewImage("floppy", 1, 4096))
	if m, _ := r.Image(Memory); r.Requires["cpu"] != "qemu64" || m.Size != 256<<20 || len(r.Images) != 2 || len(c.Images) != 3 {
		t.Error("a clone shares something with its original")
	}
}

func TestRootRefused(t *testing.T) {
	for name, change := range map[string]func(*Root){
		"suite":           func(r *Root) { r.Suite = "x" },
		"parent":          func(r *Root) { r.Parent = -1 },
		"cfg size":        func(r *Root) { r.CfgSize = -1 },
		"cfg ref":         func(r *Root) { r.Cfg.Key = r.Cfg.Key[:20] },
		"huge cfg":        func(r *Root) { r.CfgSize = seal.MaxPlain + 1 },
		"image twice":     func(r *Root) { r.Images = append(r.Images, r.Images[0]) },
		"image name":      func(r *Root) { r.Images[0].Name = "" },
		"image name /":    func(r *Root) { r.Images[0].Name = "../disk" },
		"image size":      func(r *Root) { r.Images[0].Size = -1 },
		"image too large": func(r *Root) { r.Images[0].Size = 1<<56 + 1 },
		"chunk size":      func(r *Root) { r.Images[0].ChunkSize = 4097 },
		"chunk size 0":    func(r *Root) { r.Images[0].ChunkSize = 0 },
		"depth":           func(r *Root) { r.Images[0].Depth++ },
		"ref":             func(r *Root) { r.Images[0].Ref.Tag = r.Images[0].Ref.Tag[:20] },
		"comment":         func(r *Root) { r.Comment = strings.Repeat("x", maxRoot) },
		"year":            func(r *Root) { r.Time = time.Date(12345, 1, 1, 0, 0, 0, 0, time.UTC) },
	} {
		r := testRoot()
		change(r)
		if _, _, err := SealRoot(sealer, r); err == nil {
			t.Errorf("%s: sealed", name)
		}
	}
	good, _ := testRoot().encode()
	for name, p := range map[string]string{
		"nothing":        "",
		"not JSON":       "x",
		"no newline":     string(good[:len(good)-1]),
		"format 2":       strings.Replace(string(good), `"format":1`, `"format":2`, 1),
		"unknown field":  strings.Replace(string(good), `"format":1`, `"format":1,"new":2`, 1),
		"twice":          strings.Replace(string(good), `"parent":6`, `"parent":5,"parent":6`, 1),
		"space":          strings.Replace(string(good), `"parent":6`, `"parent": 6`, 1),
		"capital":        strings.Replace(string(good), `"parent":6`, `"Parent":6`, 1),
		"not UTC":        strings.Replace(string(good), "04:05Z", "04:05+00:00", 1),
		"fraction":       strings.Replace(string(good), "04:05Z", "04:05.5Z", 1),
		"null":           strings.Replace(string(good), `{"cpu":"qemu64","machine":"pc-i440fx-7.2"}`, "null", 1),
		"order":          strings.Replace(string(good), `{"cpu":"qemu64","machine":"pc-i440fx-7.2"}`, `{"machine":"pc-i440fx-7.2","cpu":"qemu64"}`, 1),
		"depth":          strings.Replace(string(good), `"depth":2`, `"depth":3`, 1),
		"two":            string(good) + string(good),
		"upper-case hex": strings.Replace(string(good), ref(1).Tag.String(), strings.ToUpper(ref(1).Tag.String()), 1),
	} {
		if p == string(good) {
			t.Fatalf("%s: nothing is changed", name)
		}
		if _, err := decodeRoot([]byte(p)); !errors.Is(err, ErrFormat) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

func TestBlockRefused(t *testing.T) {
	var b Block
	b[3], b[200] = ref(1), ref(2)
	good := b.encode(1)
	for name, p := range map[string][]byte{
		"nothing":   {},
		"magic":     append([]byte("isrX"), good[4:]...),
		"level":     append([]byte("isrK\x02"), good[5:]...),
		"truncated": good[:len(good)-1],
		"mid-ref":   good[:20],
		"longer":    append(bytes.Clone(good), 0),
		"kind":      append(append([]byte("isrK\x01"), 2), good[6:]...),
	} {
		if _, err := decodeBlock(p, 1, 32); !errors.Is(err, ErrFormat) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	if got, err := decodeBlock(good, 1, 32); err != nil || *got != b {
		t.Errorf("got %v", err)
	}
}

// What decodes re-encodes to the same bytes.
func FuzzBlock(f *testing.F) {
	var b Block
	f.Add(b.encode(1), 1, false)
	b[0], b[255] = ref(1), ref(2)
	f.Add(b.encode(3), 3, false)
	f.Add((&Block{7: {Tag: ref(1).Tag[:20], Key: ref(1).Key[:20]}}).encode(1), 1, true)
	f.Fuzz(func(t *testing.T, p []byte, level int, sha1 bool) {
		size := 32
		if sha1 {
			size = 20
		}
		b, err := decodeBlock(p, level, size)
		if err != nil {
			if !errors.Is(err, ErrFormat) {
				t.Errorf("got %v, which is not ErrFormat", err)
			}
			return
		}
		if again := b.encode(level); !bytes.Equal(again, p) {
			t.Errorf("re-encoded to %q", again)
		}
	})
}

func FuzzRoot(f *testing.F) {
	p, _ := testRoot().encode()
	f.Add(p)
	p, _ = (&Root{Format: 1, Suite: seal.BlowfishSHA1}).encode()
	f.Add(p)
	f.Fuzz(func(t *testing.T, p []byte) {
		r, err := decodeRoot(p)
		if err != nil {
			if !errors.Is(err, ErrFormat) {
				t.Errorf("got %v, which is not ErrFormat", err)
			}
			return
		}
		again, err := r.encode()
		if err != nil || !bytes.Equal(again, p) {
			t.Errorf("re-encoded to %q, %v", again, err)
		}
	})
}

func BenchmarkTreeRef(b *testing.B) {
	o := newObjects()
	refs := make(map[int64]seal.Ref)
	for n := range int64(81920) { // 10 GiB of 128 KiB chunks
		refs[n] = ref(int(n))
	}
	im := sets(b, o, 81920*testChunk, refs)
	b.Run("opened", func(b *testing.B) {
		tree := NewTree(sealer, im, o)
		for b.Loop() {
			tree.Ref(ctx, 4711)
		}
	})
	b.Run("first", func(b *testing.B) {
		for b.Loop() {
			NewTree(sealer, im, o).Ref(ctx, 4711)
		}
	})
}
