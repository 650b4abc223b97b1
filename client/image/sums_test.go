package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"isr/store/seal"
)

const (
	sumsSize  = 18 << 20 // two pages of map
	sumsChunk = 64 << 10
)

// written is the overlay of a session that wrote to some chunks, closed.
func writtenOverlay(t testing.TB, dir string, chunks ...int64) {
	t.Helper()
	im, err := overlayImage(osDisk{dir}, sumsSize, sumsChunk)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range chunks {
		// Not all of its sectors, so that the map counts too.
		if _, err := im.WriteAt(context.Background(), sumsContent(n), n*sumsChunk+512); err != nil {
			t.Fatal(err)
		}
	}
	closeImage(t, im)
}

func closeImage(t testing.TB, im *Image) {
	t.Helper()
	im.Close()
	if err := im.overlay.Close(); err != nil {
		t.Fatal(err)
	}
}

func sumsContent(n int64) []byte { return bytes.Repeat([]byte{byte(n), 1, 2, 3}, 1024) }

func flipByte(t testing.TB, file string, off int64) {
	t.Helper()
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var b [1]byte
	if _, err := f.ReadAt(b[:], off); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 0x10
	if _, err := f.WriteAt(b[:], off); err != nil {
		t.Fatal(err)
	}
}

// bad are the chunks that a check of an image's overlay reports.
func bad(t testing.TB, im *Image) []int64 {
	t.Helper()
	var nums []int64
	if err := im.overlay.Check(context.Background(), func(n int64, err error) { nums = append(nums, n) }, nil); err != nil {
		t.Fatal(err)
	}
	slices.Sort(nums)
	return nums
}

// What changed underneath a closed overlay is found by Check and by the first
// use of the chunk, never handed out, and can be reverted.
func TestSums(t *testing.T) {
	for name, c := range map[string]struct {
		spoil func(t *testing.T, dir string)
		bad   []int64
	}{
		"nothing":                     {func(*testing.T, string) {}, nil},
		"data":                        {func(t *testing.T, dir string) { flipByte(t, dir+"/test.data", 3*sumsChunk+600) }, []int64{3}},
		"data that was never written": {func(t *testing.T, dir string) { flipByte(t, dir+"/test.data", 3*sumsChunk) }, nil},
		"two chunks": {func(t *testing.T, dir string) {
			flipByte(t, dir+"/test.data", 3*sumsChunk+600)
			flipByte(t, dir+"/test.data", 260*sumsChunk+4096+511)
		}, []int64{3, 260}},
		"a bit of the map that was set": {func(t *testing.T, dir string) { // chunk 3: sectors 385 to 392, byte 48
			f, _ := os.OpenFile(dir+"/test.map", os.O_RDWR, 0)
			defer f.Close()
			f.WriteAt(make([]byte, 2), pageBytes+48)
		}, []int64{3}},
		"a bit of the map that was clear": {func(t *testing.T, dir string) { flipByte(t, dir+"/test.map", pageBytes+16*5) }, []int64{5}},
		"data cut short":                  {func(t *testing.T, dir string) { os.Truncate(dir+"/test.data", 260*sumsChunk) }, []int64{260}},
		"data cut to nothing":             {func(t *testing.T, dir string) { os.Truncate(dir+"/test.data", 0) }, []int64{3, 4, 260}},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			writtenOverlay(t, dir, 3, 4, 260)
			c.spoil(t, dir)
			im, err := overlayImage(osDisk{dir}, sumsSize, sumsChunk)
			if err != nil {
				t.Fatal(err)
			}
			if !im.overlay.Summed() {
				t.Fatal("no sums")
			}
			if got := bad(t, im); !slices.Equal(got, c.bad) {
				t.Fatalf("bad chunks %v, want %v", got, c.bad)
			}
			p := make([]byte, 4096)
			for _, n := range []int64{3, 4, 5, 260} {
				_, err := im.ReadAt(context.Background(), p, n*sumsChunk+512)
				switch isBad := slices.Contains(c.bad, n); {
				case isBad && !errors.Is(err, seal.ErrCorrupt):
					t.Errorf("read of bad chunk %d: %v", n, err)
				case !isBad && err != nil:
					t.Errorf("read of chunk %d: %v", n, err)
				case !isBad && n != 5 && !bytes.Equal(p, sumsContent(n)):
					t.Errorf("chunk %d: other bytes than written", n)
				}
				if _, err := im.WriteAt(context.Background(), p[:512], n*sumsChunk); (err != nil) != slices.Contains(c.bad, n) {
					t.Errorf("write to chunk %d: %v", n, err)
				}
			}
			if im.Tainted() != nil {
				t.Errorf("tainted: %v", im.Tainted())
			}
			closeImage(t, im)

			// A session that wrote elsewhere blesses nothing.
			if im, err = overlayImage(osDisk{dir}, sumsSize, sumsChunk); err != nil {
				t.Fatal(err)
			}
			if got := bad(t, im); !slices.Equal(got, c.bad) {
				t.Fatalf("after another session: bad chunks %v, want %v", got, c.bad)
			}
			if err := im.overlay.Revert(context.Background(), c.bad); err != nil {
				t.Fatal(err)
			}
			closeImage(t, im)
			if im, err = overlayImage(osDisk{dir}, sumsSize, sumsChunk); err != nil {
				t.Fatal(err)
			}
			defer closeImage(t, im)
			if got := bad(t, im); len(got) != 0 {
				t.Errorf("after a revert: bad chunks %v", got)
			}
			for _, n := range c.bad {
				if _, err := im.ReadAt(context.Background(), p, n*sumsChunk+512); err != nil || !seal.Zero(p) {
					t.Errorf("reverted chunk %d: %v", n, err)
				}
			}
			if mods := slices.Collect(im.overlay.Modified()); slices.ContainsFunc(mods, func(n int64) bool { return slices.Contains(c.bad, n) }) {
				t.Errorf("reverted chunks are modified: %v", mods)
			}
		})
	}
}

// A bad chunk that is written whole is good again.
func TestSumsOverwritten(t *testing.T) {
	dir := t.TempDir()
	writtenOverlay(t, dir, 3, 4)
	flipByte(t, dir+"/test.data", 3*sumsChunk+600)
	flipByte(t, dir+"/test.data", 4*sumsChunk+600)
	im, err := overlayImage(osDisk{dir}, sumsSize, sumsChunk)
	if err != nil {
		t.Fatal(err)
	}
	whole := bytes.Repeat([]byte{7}, sumsChunk)
	if _, err := im.WriteAt(context.Background(), whole, 3*sumsChunk); err != nil {
		t.Errorf("write of a whole chunk: %v", err)
	}
	if _, err := im.WriteAt(context.Background(), whole[:sumsChunk-512], 4*sumsChunk); !errors.Is(err, ErrChanged) {
		t.Errorf("write of a part: %v", err)
	}
	closeImage(t, im)
	if im, err = overlayImage(osDisk{dir}, sumsSize, sumsChunk); err != nil {
		t.Fatal(err)
	}
	defer closeImage(t, im)
	if got := bad(t, im); !slices.Equal(got, []int64{4}) {
		t.Errorf("bad %v, want 4", got)
	}
	p := make([]byte, sumsChunk)
	if _, err := im.ReadAt(context.Background(), p, 3*sumsChunk); err != nil || !bytes.Equal(p, whole) {
		t.Errorf("read of what was written: %v", err)
	}
}

// Sums that cannot be read are said, and do without; sums of a session that
// was killed are not there.
func TestSumsGone(t *testing.T) {
	dir := t.TempDir()
	writtenOverlay(t, dir, 3)
	sums := filepath.Join(dir, "test.sums")
	whole, err := os.ReadFile(sums)
	if err != nil {
		t.Fatal(err)
	}
	for _, size := range []int{0, 7, sumsHead - 1, sumsHead + 3} {
		if err := os.WriteFile(sums, whole[:size], 0o600); err != nil {
			t.Fatal(err)
		}
		im, err := overlayImage(osDisk{dir}, sumsSize, sumsChunk)
		if err != nil {
			t.Fatal(err)
		}
		if im.overlay.SumsError() == nil || im.overlay.Summed() {
			t.Errorf("sums of %d bytes: no error", size)
		}
		closeImage(t, im)
	}
	im, err := overlayImage(osDisk{dir}, sumsSize, sumsChunk)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := im.WriteAt(context.Background(), sumsContent(9), 9*sumsChunk); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(sums); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("sums are there after a write: %v", err)
	}
	if err := im.Flush(context.Background()); err != nil {
		t.Fatal(err)
	}
	// Killed: the files as they are, opened by another.
	copied := t.TempDir()
	for _, n := range []string{"test.data", "test.map"} {
		p, err := os.ReadFile(filepath.Join(dir, n))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(copied, n), p, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	closeImage(t, im)
	if im, err = overlayImage(osDisk{copied}, sumsSize, sumsChunk); err != nil {
		t.Fatal(err)
	}
	if got := bad(t, im); len(got) > 0 || im.overlay.Summed() {
		t.Errorf("after a kill: bad %v, summed %v", got, im.overlay.Summed())
	}
	if err := im.overlay.Sum(context.Background()); err != nil {
		t.Fatal(err)
	}
	closeImage(t, im)
	flipByte(t, filepath.Join(copied, "test.data"), 9*sumsChunk)
	if im, err = overlayImage(osDisk{copied}, sumsSize, sumsChunk); err != nil {
		t.Fatal(err)
	}
	defer closeImage(t, im)
	if got := bad(t, im); !slices.Equal(got, []int64{9}) {
		t.Errorf("summed anew: bad %v", got)
	}
}

// Whatever byte of an overlay at rest changes: what is read is what was
// written, or an error; and a check reports it.
func TestFlipProperty(t *testing.T) {
	content := []int64{0, 3, 4, 255, 256, 260, sumsSize/sumsChunk - 1}
	whole, all := inMemory(t), inMemory(t)
	writtenOverlay(t, whole, content...)
	rapid.Check(t, func(rt *rapid.T) {
		dir, err := os.MkdirTemp(all, "")
		if err != nil {
			rt.Fatal(err)
		}
		defer os.RemoveAll(dir)
		name := rapid.SampledFrom([]string{"test.data", "test.map", "test.sums"}).Draw(rt, "file")
		for _, n := range []string{"test.data", "test.map", "test.sums"} {
			cloneSparse(t, filepath.Join(whole, n), filepath.Join(dir, n))
		}
		fi, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			rt.Fatal(err)
		}
		off := rapid.Int64Range(0, fi.Size()-1).Draw(rt, "offset")
		if name == "test.data" { // most of it is holes
			off = rapid.SampledFrom(content).Draw(rt, "chunk")*sumsChunk + rapid.Int64Range(0, 8191).Draw(rt, "in it")
		}
		flipByte(t, filepath.Join(dir, name), off)
		im, err := overlayImage(osDisk{dir}, sumsSize, sumsChunk)
		if err != nil {
			if !errors.Is(err, ErrOverlay) {
				rt.Fatal(err)
			}
			return
		}
		defer closeImage(t, im)
		found := bad(t, im)
		p := make([]byte, sumsChunk)
		for n := range im.Chunks() {
			want := make([]byte, sumsChunk)
			if slices.Contains(content, n) {
				copy(want[512:], sumsContent(n))
			}
			_, err := im.ReadAt(context.Background(), p, n*sumsChunk)
			if (err != nil) != slices.Contains(found, n) {
				rt.Fatalf("chunk %d: read: %v; check found %v", n, err, found)
			}
			if err == nil && !bytes.Equal(p, want) {
				rt.Fatalf("chunk %d: wrong bytes, and no error", n)
			}
		}
		if name == "test.sums" && off < sumsHead+int64(len(content))*sumsEntry && im.overlay.SumsError() == nil {
			rt.Fatal("sums spoilt, and no error")
		}
	})
}

// cloneSparse copies what a file has that is not zeros.
func cloneSparse(t testing.TB, from, to string) {
	t.Helper()
	src, err := os.Open(from)
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	dst, err := os.Create(to)
	if err != nil {
		t.Fatal(err)
	}
	defer dst.Close()
	fi, err := src.Stat()
	if err != nil {
		t.Fatal(err)
	}
	if err := dst.Truncate(fi.Size()); err != nil {
		t.Fatal(err)
	}
	f := &osFile{src}
	for off := int64(0); ; {
		from, to, err := f.Data(off)
		if err != nil {
			return
		}
		p := make([]byte, to-from)
		src.ReadAt(p, from)
		if _, err := dst.WriteAt(p, from); err != nil {
			t.Fatal(err)
		}
		off = to
	}
}

// A damaged file of sums never harms who reads it.
func FuzzSums(f *testing.F) {
	dir := f.TempDir()
	writtenOverlay(f, dir, 3, 4)
	p, err := os.ReadFile(filepath.Join(dir, "test.sums"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(p)
	f.Add(p[:50])
	o := &Overlay{size: sumsSize, chunk: sumsChunk, sumKey: make([]byte, 32)}
	f.Fuzz(func(t *testing.T, p []byte) {
		if of, err := o.readSums(bytes.NewReader(p)); err == nil && len(of) > 0 {
			t.Errorf("%d sums of another key", len(of))
		}
	})
}

func BenchmarkSum(b *testing.B) {
	const size = 256 << 20
	for _, chunk := range []int{64 << 10, 128 << 10} {
		b.Run(fmt.Sprint(chunk), func(b *testing.B) {
			im := newTestImage(b, b.TempDir(), new(objects), noRefs{}, size, chunk)
			p := randomBytes(1 << 20)
			for off := int64(0); off < size; off += 1 << 20 {
				if _, err := im.WriteAt(context.Background(), p, off); err != nil {
					b.Fatal(err)
				}
			}
			if err := im.Flush(context.Background()); err != nil {
				b.Fatal(err)
			}
			b.SetBytes(size)
			for b.Loop() {
				im.overlay.sums = nil
				if err := im.overlay.Sum(context.Background()); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
