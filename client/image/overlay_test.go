package image

import (
	"bufio"
	"bytes"
	"context"
	"crypto/aes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/crypto/xts"
	"pgregory.net/rapid"

	"isr/store/seal"
)

// A chunk is covered when every sector of it was written, the short last one
// too.
func TestCovers(t *testing.T) {
	key := make([]byte, 64)
	o, err := OpenOverlay(t.TempDir(), "disk", 2*4096+700, 4096, key)
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	write := func(first int64, n int) {
		t.Helper()
		if err := o.writeSectors(make([]byte, n*sectorSize), first); err != nil {
			t.Fatal(err)
		}
	}
	want := func(when string, want ...bool) {
		t.Helper()
		for n, w := range want {
			if got := o.Covers(int64(n)); got != w {
				t.Errorf("%s: chunk %d: %v", when, n, got)
			}
		}
	}
	want("nothing is written", false, false, false, false)
	write(0, 7)
	write(8, 8)
	want("but for a sector", false, true, false, false)
	write(7, 1)
	write(16, 2)
	want("all is", true, true, true, false)
}

func TestMain(m *testing.M) {
	switch os.Getenv("IMAGE_HELPER") {
	case "":
		os.Exit(m.Run())
	case "writer":
		writerMain()
	case "guest":
		guestMain()
	}
}

// noRefs is a pristine image of zeros.
type noRefs struct{}

func (noRefs) Ref(context.Context, int64) (seal.Ref, error) { return seal.Ref{}, nil }

// overlayImage is an image of zeros over an overlay on d.
func overlayImage(d disk, size int64, chunk int) (*Image, error) {
	ov, err := openOverlay(d, "test", size, chunk, testKey)
	if err != nil {
		return nil, err
	}
	return New(Config{Name: "test", Size: size, ChunkSize: chunk, Sealer: testSealer,
		Refs: noRefs{}, Getter: new(objects), Overlay: ov}), nil
}

// TestPowerCut writes and flushes at random until the disk fails at a chosen
// step, cuts the power, and looks at what is left: each sector must be what
// the last acknowledged flush covered, or something written after it.
func TestPowerCut(t *testing.T) {
	for name, fault := range map[string]error{"power": errPower, "eio": syscall.EIO, "enospc": syscall.ENOSPC} {
		t.Run(name, func(t *testing.T) { rapid.Check(t, func(t *rapid.T) { powerCut(t, fault) }) })
	}
}

func powerCut(t *rapid.T, fault error) {
	const sectors = 3*pageSectors + 100 // four pages of map
	size := int64(sectors * sectorSize)
	d := newFaultDisk(rapid.Uint64().Draw(t, "seed"))
	d.fault = fault
	d.once = fault != errPower
	// may holds, for each sector ever written, the stamps it may show.
	may := make(map[int64]map[uint64]bool)
	// Few places, so that they meet; on both sides of a page of map.
	places := rapid.SampledFrom([]int64{0, 1, 2, 3, 8, pageSectors - 2, pageSectors - 1, pageSectors, 2*pageSectors + 77, sectors - 1})
	stamp := uint64(0)
	for life := range rapid.IntRange(1, 4).Draw(t, "lives") {
		im, err := overlayImage(d, size, 64<<10)
		if err != nil {
			t.Fatalf("life %d: open: %v", life, err)
		}
		buf := make([]byte, sectorSize)
		for sector, stamps := range may {
			if _, err := im.ReadAt(context.Background(), buf, sector*sectorSize); err != nil {
				t.Fatalf("life %d: read sector %d: %v", life, sector, err)
			}
			got := binary.LittleEndian.Uint64(buf)
			if !stamps[got] {
				t.Fatalf("life %d: sector %d shows write %d, allowed %v", life, sector, got, stamps)
			}
			if !bytes.Equal(buf, stampSector(got)) {
				t.Fatalf("life %d: sector %d is torn or garbage", life, sector)
			}
			may[sector] = map[uint64]bool{got: true} // seen once, it stays
		}
		d.mu.Lock()
		d.steps, d.at = 0, rapid.IntRange(1, 40).Draw(t, "fails at")
		d.mu.Unlock()
		var failed error
		for range rapid.IntRange(0, 25).Draw(t, "steps") {
			if rapid.IntRange(0, 3).Draw(t, "flush") == 0 {
				err := im.Flush(context.Background())
				if err != nil {
					failed = err
					if im.Tainted() == nil && !errors.Is(err, syscall.ENOSPC) {
						t.Fatalf("flush failed with %v and left no taint", err)
					}
					continue
				}
				if im.Tainted() != nil {
					t.Fatalf("flush of a tainted overlay succeeded")
				}
				for sector := range may {
					may[sector] = map[uint64]bool{slices.Max(slices.Collect(maps.Keys(may[sector]))): true}
				}
				continue
			}
			first := places.Draw(t, "sector")
			n := min(rapid.Int64Range(1, 5).Draw(t, "sectors"), sectors-first)
			stamp++
			p := bytes.Repeat(stampSector(stamp), int(n))
			_, err := im.WriteAt(context.Background(), p, first*sectorSize)
			for s := first; s < first+n; s++ {
				if may[s] == nil {
					may[s] = map[uint64]bool{0: true}
				}
				may[s][stamp] = true
			}
			if err != nil {
				failed = err
				if full := errors.Is(err, syscall.ENOSPC); full == errors.Is(err, syscall.EIO) || full != (im.Tainted() == nil) {
					t.Fatalf("write failed with %v: tainted: %v", err, im.Tainted())
				}
			}
			if err != nil {
				// Each sector of a failed write shows it or what was before,
				// also after a flush. No stamp orders them, so this life ends.
				if im.Flush(context.Background()) == nil {
					for sector := range may {
						if sector < first || sector >= first+n {
							may[sector] = map[uint64]bool{slices.Max(slices.Collect(maps.Keys(may[sector]))): true}
						}
					}
				}
				break
			}
		}
		if failed != nil && fault == errPower {
			if err := im.Flush(context.Background()); err == nil && im.Tainted() != nil {
				t.Fatal("flush after a failure succeeded")
			}
		}
		d.cut()
		im.Close()
	}
}

// TestWriteDuringFlush: a sector written while a flush is at work may be lost
// to a power cut, but what it held before may not.
func TestWriteDuringFlush(t *testing.T) {
	for seed := range uint64(20) {
		d := newFaultDisk(seed)
		im, err := overlayImage(d, 1<<20, 64<<10)
		if err != nil {
			t.Fatal(err)
		}
		im.WriteAt(t.Context(), stampSector(1), 0)
		d.onSync = func() { im.WriteAt(t.Context(), stampSector(2), 10*sectorSize) }
		if err := im.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		d.onSync = nil
		d.cut()
		if im, err = overlayImage(d, 1<<20, 64<<10); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, sectorSize)
		for at, stamps := range map[int64][]uint64{0: {1}, 10: {0, 2}} {
			if _, err := im.ReadAt(t.Context(), buf, at*sectorSize); err != nil {
				t.Fatal(err)
			}
			if !slices.ContainsFunc(stamps, func(s uint64) bool { return bytes.Equal(buf, stampSector(s)) }) {
				t.Fatalf("seed %d: sector %d is none of the writes %v", seed, at, stamps)
			}
		}
	}
}

// stampSector is a sector that shows which write it came from; 0 is zeros.
func stampSector(stamp uint64) []byte {
	p := make([]byte, sectorSize)
	for i := 0; i < sectorSize && stamp != 0; i += 8 {
		binary.LittleEndian.PutUint64(p[i:], stamp+uint64(i/8)<<32)
	}
	return p
}

// writerMain writes stamped sectors for ever and says each flush.
func writerMain() {
	im, err := overlayImage(osDisk{os.Args[1]}, killSize, 64<<10)
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	seed, _ := strconv.ParseUint(os.Args[2], 10, 64)
	rng := rand.New(rand.NewPCG(seed, 2))
	for stamp := seed<<20 + 1; ; stamp++ {
		for range 1 + rng.IntN(8) {
			sector := rng.Int64N(killSize / sectorSize)
			if _, err := im.WriteAt(context.Background(), stampSector(stamp), sector*sectorSize); err != nil {
				fmt.Println(err)
				os.Exit(1)
			}
			fmt.Println("w", sector, stamp)
		}
		if err := im.Flush(context.Background()); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Println("f", stamp, 0)
	}
}

const killSize = 40 << 20

// TestKill kills a writer at random moments; what it had flushed is there.
func TestKill(t *testing.T) {
	dir := t.TempDir()
	flushed := make(map[int64]uint64)
	for life := uint64(1); life <= 12; life++ {
		cmd := exec.Command(os.Args[0], dir, strconv.FormatUint(life, 10))
		cmd.Env = append(os.Environ(), "IMAGE_HELPER=writer")
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		r := bufio.NewReader(out)
		since := make(map[int64]uint64)
		lines := rand.IntN(400)
		for i := 0; ; i++ {
			if i == lines {
				cmd.Process.Kill()
			}
			var what string
			var a, b uint64
			if _, err := fmt.Fscanln(r, &what, &a, &b); err != nil {
				break // what it said before it died counts
			}
			switch what {
			case "w":
				since[int64(a)] = b
			case "f":
				for s, stamp := range since {
					flushed[s] = stamp
				}
				clear(since)
			default:
				t.Fatalf("writer: %q", what)
			}
		}
		cmd.Wait()
		im, err := overlayImage(osDisk{dir}, killSize, 64<<10)
		if err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, sectorSize)
		for s, want := range flushed {
			if _, err := im.ReadAt(t.Context(), buf, s*sectorSize); err != nil {
				t.Fatal(err)
			}
			got := binary.LittleEndian.Uint64(buf)
			// A later write may have arrived unasked.
			if got < want || !bytes.Equal(buf, stampSector(got)) {
				t.Fatalf("life %d: sector %d shows write %d, flushed was %d", life, s, got, want)
			}
		}
		im.Close()
		if err := im.overlay.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if len(flushed) == 0 {
		t.Fatal("nothing was flushed: the test proves nothing")
	}
}

func TestOverlayRefusesWhatIsNotItsOwn(t *testing.T) {
	const size = 1 << 20
	fresh := func() string {
		dir := t.TempDir()
		im := newTestImage(t, dir, new(objects), noRefs{}, size, 4096)
		im.WriteAt(t.Context(), []byte("x"), 5)
		if err := im.overlay.Close(); err != nil {
			t.Fatal(err)
		}
		return dir
	}
	for _, tt := range []struct {
		name   string
		break_ func(dir string) error
		size   int64
		key    string
		want   error
	}{
		{"nothing", func(string) error { return nil }, size, string(testKey), nil},
		{"other key", func(string) error { return nil }, size, "another key altogether", ErrOverlay},
		{"other size", func(string) error { return nil }, size + 1, string(testKey), ErrOverlay},
		{"no data", func(dir string) error { return os.Remove(dir + "/test.data") }, size, string(testKey), ErrOverlay},
		{"no map", func(dir string) error { return os.Remove(dir + "/test.map") }, size, string(testKey), nil},
		{"magic", func(dir string) error { return poke(dir+"/test.map", 0, 'X') }, size, string(testKey), ErrOverlay},
		{"header bit", func(dir string) error { return poke(dir+"/test.map", 17, 9) }, size, string(testKey), ErrOverlay},
		{"header end", func(dir string) error { return poke(dir+"/test.map", 4095, 9) }, size, string(testKey), ErrOverlay},
		{"map cut by a page", func(dir string) error { return os.Truncate(dir+"/test.map", pageBytes) }, size, string(testKey), ErrOverlay},
		{"map cut by a byte", func(dir string) error { return os.Truncate(dir+"/test.map", 2*pageBytes-1) }, size, string(testKey), ErrOverlay},
		{"empty map", func(dir string) error { return os.Truncate(dir+"/test.map", 0) }, size, string(testKey), ErrOverlay},
	} {
		dir := fresh()
		if err := tt.break_(dir); err != nil {
			t.Fatal(err)
		}
		ov, err := OpenOverlay(dir, "test", tt.size, 4096, []byte(tt.key))
		if !errors.Is(err, tt.want) || tt.want == nil && err != nil {
			t.Errorf("%s: got %v, want %v", tt.name, err, tt.want)
		}
		if err == nil {
			ov.Close()
		}
	}
	for _, tt := range []struct {
		size  int64
		chunk int
		key   string
	}{{-1, 4096, "0123456789abcdef"}, {1, 5000, "0123456789abcdef"}, {1, 2048, "0123456789abcdef"}, {1, 4096, "short"}, {1, 32 << 20, "0123456789abcdef"}} {
		if ov, err := OpenOverlay(t.TempDir(), "x", tt.size, tt.chunk, []byte(tt.key)); err == nil {
			ov.Close()
			t.Errorf("overlay of %+v was opened", tt)
		}
	}
}

func poke(name string, off int64, b byte) error {
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.WriteAt([]byte{b}, off)
	return err
}

func TestOverlayIsForOneProcess(t *testing.T) {
	dir := t.TempDir()
	im := newTestImage(t, dir, new(objects), noRefs{}, 1<<20, 4096)
	if _, err := im.WriteAt(t.Context(), make([]byte, 512), 0); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenOverlay(dir, "test", 1<<20, 4096, testKey); !errors.Is(err, ErrBusy) {
		t.Errorf("second open: got %v, want ErrBusy", err)
	}
}

func TestOverlayFilesComeWithTheFirstWriteAndGoWithReset(t *testing.T) {
	dir := t.TempDir()
	im := newTestImage(t, dir, new(objects), noRefs{}, 1<<20, 4096)
	count := func() int {
		names, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		return len(names)
	}
	readAll(t, im)
	if err := im.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := count(); n != 0 || !im.overlay.Empty() {
		t.Errorf("%d files without a write", n)
	}
	im.WriteAt(t.Context(), []byte{1}, 9000)
	for _, name := range []string{"test.data", "test.map"} {
		st, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if st.Mode().Perm() != 0o600 {
			t.Errorf("%s: mode %v", name, st.Mode())
		}
	}
	if got := slices.Collect(im.overlay.Modified()); !slices.Equal(got, []int64{2}) {
		t.Errorf("modified: %v, want [2]", got)
	}
	if err := im.overlay.Reset(); err != nil {
		t.Fatal(err)
	}
	if n := count(); n != 0 || !im.overlay.Empty() {
		t.Errorf("%d files after Reset", n)
	}
	if got := readAll(t, im); !seal.Zero(got) {
		t.Error("content after Reset")
	}
	// It can be used again.
	if _, err := im.WriteAt(t.Context(), []byte{1}, 0); err != nil {
		t.Fatal(err)
	}
	if err := im.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := count(); n != 2 {
		t.Errorf("%d files after Reset and a write", n)
	}
}

func TestNothingReadableOnDisk(t *testing.T) {
	dir := t.TempDir()
	im := newTestImage(t, dir, new(objects), noRefs{}, 8<<20, 128<<10)
	word := "a sentence that only the guest may read. "
	p := bytes.Repeat([]byte(word), 1<<20/len(word))
	for _, off := range []int64{0, 3<<20 + 17, 5 << 20} {
		if _, err := im.WriteAt(t.Context(), p, off); err != nil {
			t.Fatal(err)
		}
	}
	if err := im.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	seen := make(map[[16]byte]bool)
	for _, name := range []string{"test.data", "test.map"} {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		for _, w := range []string{"only the guest", "sentence"} {
			if bytes.Contains(b, []byte(w)) {
				t.Errorf("%s holds %q", name, w)
			}
		}
		if name == "test.map" {
			continue
		}
		// Equal plaintext at two places gives no equal ciphertext.
		for i := 0; i+16 <= len(b); i += 16 {
			block := [16]byte(b[i:])
			if block != ([16]byte{}) && seen[block] {
				t.Fatalf("block at %d repeats", i)
			}
			seen[block] = true
		}
	}
}

// TestTerabyte: what is modified counts, not the size.
func TestTerabyte(t *testing.T) {
	const size, chunk = 1 << 40, 128 << 10
	dir := t.TempDir()
	began := time.Now()
	im := newTestImage(t, dir, new(objects), noRefs{}, size, chunk)
	var want []int64
	for i := int64(0); i < 100; i++ {
		n := i * (size / chunk / 100)
		want = append(want, n)
		if _, err := im.WriteAt(t.Context(), randomBytes(4096), n*chunk+4096); err != nil {
			t.Fatal(err)
		}
	}
	want = append(want, size/chunk-1)
	if _, err := im.WriteAt(t.Context(), []byte{1}, size-1); err != nil {
		t.Fatal(err)
	}
	if err := im.overlay.Close(); err != nil {
		t.Fatal(err)
	}
	wrote := time.Since(began)
	began = time.Now()
	im = newTestImage(t, dir, new(objects), noRefs{}, size, chunk)
	if got := slices.Collect(im.overlay.Modified()); !slices.Equal(got, want) {
		t.Errorf("modified: %v, want %v", got, want)
	}
	opened := time.Since(began)
	var blocks int64
	for _, name := range []string{"test.data", "test.map"} {
		st, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		blocks += st.Sys().(*syscall.Stat_t).Blocks
	}
	if limit := int64(101 * 4 * 16); blocks > limit {
		t.Errorf("%d blocks of 512 bytes on disk, want %d or fewer", blocks, limit)
	}
	sealed := 0
	var mu sync.Mutex
	err := im.Seal(t.Context(), func(_ context.Context, n int64, ref seal.Ref, p []byte) error {
		mu.Lock()
		defer mu.Unlock()
		sealed++
		return nil
	}, nil)
	if err != nil || sealed != 101 {
		t.Errorf("sealed %d chunks (%v), want 101", sealed, err)
	}
	t.Logf("wrote and flushed in %v, opened and listed in %v, %d KiB on disk", wrote, opened, blocks/2)
	if opened > time.Minute { // all of it would take longer
		t.Errorf("opening took %v", opened)
	}
}

func TestXTSAgreesWithTheLibrary(t *testing.T) {
	key := randomBytes(64)
	ours, err := newSectorCipher(key)
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := xts.NewCipher(aes.NewCipher, key)
	if err != nil {
		t.Fatal(err)
	}
	for _, sectors := range []int{0, 1, 2, 127, 128, 255, 256, 257} {
		for _, first := range []int64{0, 1, 1<<31 - 1, 1 << 47} {
			p := randomBytes(sectors * sectorSize)
			want := make([]byte, len(p))
			for i := range sectors {
				theirs.Encrypt(want[i*sectorSize:], p[i*sectorSize:(i+1)*sectorSize], uint64(first)+uint64(i))
			}
			got := make([]byte, len(p))
			ours.crypt(got, p, first, true)
			if !bytes.Equal(got, want) {
				t.Fatalf("%d sectors from %d: ciphertext differs", sectors, first)
			}
			ours.crypt(got, got, first, false)
			if !bytes.Equal(got, p) {
				t.Fatalf("%d sectors from %d: not its own inverse in place", sectors, first)
			}
		}
	}
}

func TestSectorMapAgainstModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const total = 2*pageSectors + 300
		m := newSectorMap(4096 << rapid.IntRange(0, 10).Draw(t, "chunk"))
		model := make([]bool, total)
		pos := rapid.OneOf(rapid.Int64Range(0, total), rapid.Int64Range(pageSectors-70, pageSectors+70), rapid.Int64Range(0, 130))
		for range rapid.IntRange(1, 12).Draw(t, "steps") {
			a, b := pos.Draw(t, "a"), pos.Draw(t, "b")
			if a > b {
				a, b = b, a
			}
			if rapid.Bool().Draw(t, "set") {
				m.set(a, b)
				for i := a; i < b; i++ {
					model[i] = true
				}
			}
			if rapid.IntRange(0, 5).Draw(t, "write down") == 0 {
				again := newSectorMap(int(m.chunk * sectorSize))
				buf := make([]byte, pageBytes)
				for n, p := range m.pages {
					p.encode(buf)
					q := new(mapPage)
					q.decode(buf)
					again.load(n, q)
				}
				if again.chunks != m.chunks {
					t.Fatalf("loaded: %d chunks, want %d", again.chunks, m.chunks)
				}
				m = again
			}
			at, to := pos.Draw(t, "from"), pos.Draw(t, "to")
			if at > to {
				at, to = to, at
			}
			for at < to {
				n, in := m.run(at, to)
				want := int64(1)
				for at+want < to && model[at+want] == model[at] {
					want++
				}
				if in != model[at] || n != want {
					t.Fatalf("run(%d, %d) = %d %v, want %d %v", at, to, n, in, want, model[at])
				}
				at += n
			}
		}
		var want []int64
		for c := int64(0); c*m.chunk < total; c++ {
			if slices.Contains(model[c*m.chunk:min((c+1)*m.chunk, total)], true) {
				want = append(want, c)
			}
		}
		if got := slices.Collect(m.modifiedChunks()); !slices.Equal(got, want) || m.modified() != int64(len(want)) {
			t.Fatalf("modified %v (%d), want %v", got, m.modified(), want)
		}
	})
}

// memFile is the map file of a fuzzer.
type memFile struct{ *bytes.Reader }

func (memFile) WriteAt([]byte, int64) (int, error) { return 0, io.ErrShortWrite }
func (memFile) Sync() error                        { return nil }
func (memFile) Close() error                       { return nil }
func (f memFile) Data(off int64) (int64, int64, error) {
	if off >= f.Size() {
		return 0, 0, io.EOF
	}
	return off, f.Size(), nil
}

func FuzzMap(f *testing.F) {
	o, err := openOverlay(newFaultDisk(1), "test", 100<<20, 4096, testKey)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(o.head)
	f.Add(append(bytes.Clone(o.head), make([]byte, 7*pageBytes)...))
	f.Add(append(bytes.Clone(o.head), bytes.Repeat([]byte{0xff}, 8*pageBytes)...))
	f.Add([]byte(overlayMagic))
	f.Fuzz(func(t *testing.T, b []byte) {
		o, err := openOverlay(newFaultDisk(1), "test", 100<<20, 4096, testKey)
		if err != nil {
			t.Fatal(err)
		}
		if err := o.load(memFile{bytes.NewReader(b)}); err != nil {
			return
		}
		if len(b) < 8*pageBytes || !bytes.Equal(b[:pageBytes], o.head) {
			t.Fatal("a wrong or short map was taken")
		}
		for n := range o.Modified() {
			if n < 0 || n >= 100<<20/4096 {
				t.Fatalf("chunk %d of an image that has not so many", n)
			}
		}
	})
}
