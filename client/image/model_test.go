package image

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"pgregory.net/rapid"

	"isr/store/keyring"
	"isr/store/seal"
)

// TestImageAgainstModel drives an image and a plain byte slice through the
// same reads, writes, flushes, reopenings, saves and check-ins.
func TestImageAgainstModel(t *testing.T) {
	all := inMemory(t)
	rapid.Check(t, func(rt *rapid.T) { imageModel(t, rt, all) })
}

func imageModel(tt *testing.T, t *rapid.T, all string) {
	ctx := context.Background()
	chunk := rapid.SampledFrom([]int{4096, 8192, 128 << 10}).Draw(t, "chunk size")
	size := int64(rapid.IntRange(1, 5*chunk+777).Draw(t, "size"))
	rng := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "content"), 3))
	fill := func(p []byte) { // compressible, with runs of zeros
		for i := 0; i < len(p); i += 8 {
			var b [8]byte
			if rng.IntN(3) > 0 {
				binary.LittleEndian.PutUint64(b[:], rng.Uint64())
			}
			copy(p[i:], b[:])
		}
	}
	model := make([]byte, size)
	fill(model)
	for n := range 6 { // some chunks are zeros
		if rng.IntN(2) == 0 && n*chunk < len(model) {
			clear(model[n*chunk : min((n+1)*chunk, len(model))])
		}
	}
	dir, err := os.MkdirTemp(all, "")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	o := new(objects)
	tree := pristineTree(tt, o, model, size, chunk)
	var im *Image
	open := func() {
		ov, err := OpenOverlay(dir, "test", size, chunk, testKey)
		if err != nil {
			t.Fatal(err)
		}
		im = New(Config{Name: "test", Size: size, ChunkSize: chunk, Sealer: testSealer, Refs: tree, Getter: o,
			Overlay: ov, Save: true, CacheBytes: int64(rapid.SampledFrom([]int{1, 2 * chunk, 100 * chunk}).Draw(t, "cache"))})
	}
	shut := func() {
		im.Close()
		if err := im.overlay.Close(); err != nil {
			t.Fatal(err)
		}
	}
	open()
	defer func() { shut() }()
	rangeOf := func() (off int64, n int) {
		off = rapid.OneOf(rapid.Int64Range(0, size), rapid.Map(rapid.Int64Range(0, size/512), func(s int64) int64 { return s * 512 })).Draw(t, "off")
		n = rapid.OneOf(rapid.IntRange(0, 1200), rapid.IntRange(0, 2*chunk), rapid.Map(rapid.IntRange(0, 16), func(s int) int { return s * 512 })).Draw(t, "len")
		return off, n
	}
	modified := make(map[int64]bool)
	check := func() {
		p := make([]byte, size)
		if _, err := im.ReadAt(ctx, p, 0); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(p, model) {
			t.Fatal("content differs")
		}
		if got := im.overlay.ModifiedCount(); got != int64(len(modified)) {
			t.Fatalf("%d chunks modified, want %d", got, len(modified))
		}
	}
	note := func(off int64, n int) {
		for c := off / int64(chunk); n > 0 && c*int64(chunk) < off+int64(n); c++ {
			modified[c] = true
		}
	}
	t.Repeat(map[string]func(*rapid.T){
		"": func(*rapid.T) {},
		"read": func(*rapid.T) {
			off, n := rangeOf()
			p := make([]byte, n)
			got, err := im.ReadAt(ctx, p, off)
			want := min(n, int(size-off))
			if got != want || (err == io.EOF) != (want < n) || err != nil && err != io.EOF {
				t.Fatalf("read %d at %d of %d: %d, %v", n, off, size, got, err)
			}
			if !bytes.Equal(p[:got], model[off:off+int64(got)]) {
				t.Fatalf("read %d at %d: content differs", n, off)
			}
		},
		"write": func(*rapid.T) {
			off, n := rangeOf()
			p := make([]byte, n)
			fill(p)
			keep := bytes.Clone(p)
			got, err := im.WriteAt(ctx, p, off)
			want := min(n, int(size-off))
			if got != want || (err != nil) != (want < n) {
				t.Fatalf("write %d at %d of %d: %d, %v", n, off, size, got, err)
			}
			if !bytes.Equal(p, keep) {
				t.Fatal("write changed its argument")
			}
			copy(model[off:], p[:got])
			note(off, got)
		},
		"flush": func(*rapid.T) {
			if err := im.Flush(ctx); err != nil {
				t.Fatal(err)
			}
		},
		"reopen": func(*rapid.T) {
			shut()
			open()
			check()
		},
		"save": func(*rapid.T) {
			// The guest has changed some pages in its own memory; what it
			// never saw it cannot have changed.
			guest := bytes.Clone(model)
			for range rng.IntN(4) {
				page := rng.Int64N((size + savePage - 1) / savePage)
				if im.Asked(page*savePage, savePage) {
					fill(guest[page*savePage : min((page+1)*savePage, size)])
				}
			}
			for off := int64(0); off < size; off += savePage {
				if end := min(off+savePage, size); !bytes.Equal(guest[off:end], model[off:end]) {
					note(off, 1)
				}
			}
			gets := o.count()
			if err := im.BeginSave(); err != nil {
				t.Fatal(err)
			}
			w := im.Pages()
			for off := int64(0); off < size; off += savePage {
				end := min(off+savePage, size)
				if !im.Asked(off, int(end-off)) {
					p := make([]byte, end-off)
					if _, err := im.ReadAt(ctx, p, off); err != nil || !seal.Zero(p) {
						t.Fatalf("page at %d, never handed out, reads as something (%v)", off, err)
					}
					continue
				}
				if _, err := w.WriteAt(guest[off:end], off); err != nil {
					t.Fatal(err)
				}
			}
			if rng.IntN(4) == 0 {
				// It fails, and the guest goes on: but pages that were
				// written are its content all the same.
				im.CancelSave()
				if err := im.BeginSave(); err != nil {
					t.Fatal(err)
				}
				for off := int64(0); off < size; off += savePage {
					if end := min(off+savePage, size); im.Asked(off, int(end-off)) {
						w.WriteAt(guest[off:end], off)
					}
				}
			}
			if got := o.count(); got != gets {
				t.Fatalf("saving fetched %d objects", got-gets)
			}
			if err := im.EndSave(ctx); err != nil {
				t.Fatal(err)
			}
			model = guest
			// A page that a partial read or a write made unsure is written
			// whether it changed or not.
			for n := range im.overlay.Modified() {
				modified[n] = true
			}
			shut()
			open()
			check()
		},
		"check in": func(*rapid.T) {
			check()
			next := keyring.NewTree(testSealer, tree.Image(), o)
			var mu sync.Mutex
			n, last := 0, int64(0)
			err := im.Seal(ctx, func(_ context.Context, c int64, ref seal.Ref, sealed []byte) error {
				mu.Lock()
				defer mu.Unlock()
				n++
				if !modified[c] {
					t.Fatalf("chunk %d is sealed, but was not modified", c)
				}
				was, err := tree.Ref(ctx, c)
				if err != nil {
					return err
				}
				if (sealed == nil) != (ref.IsNil() || ref == was) {
					t.Fatalf("chunk %d: object %v, reference %v", c, sealed != nil, ref)
				}
				if sealed != nil {
					o.Put(ctx, ref.Tag, sealed)
				}
				next.Set(c, ref)
				return nil
			}, func(done, total int64) {
				if done != last+1 || total != int64(len(modified)) {
					t.Fatalf("progress %d of %d after %d", done, total, last)
				}
				last = done
			})
			if err != nil || n != len(modified) || last != int64(n) {
				t.Fatalf("sealed %d of %d: %v", n, len(modified), err)
			}
			if _, err := next.Flush(ctx, o); err != nil {
				t.Fatal(err)
			}
			tree = next
			if rng.IntN(2) == 0 { // the overlay over the new version is the same content
				shut()
				open()
				check()
			}
			im.Close()
			if err := im.overlay.Reset(); err != nil {
				t.Fatal(err)
			}
			if err := im.overlay.Close(); err != nil {
				t.Fatal(err)
			}
			clear(modified)
			open()
			check()
		},
	})
	check()
}

func TestReadBoundaries(t *testing.T) {
	const chunk = 4096
	for _, size := range []int64{1, 511, 512, 513, chunk - 1, chunk, chunk + 1, 3*chunk - 1, 3 * chunk} {
		plain := randomBytes(int(size))
		o := new(objects)
		im := newTestImage(t, t.TempDir(), o, pristineTree(t, o, plain, size, chunk), size, chunk)
		for _, off := range []int64{0, 1, size - 1, size, size + 1, 1 << 40} {
			for _, n := range []int{0, 1, 2, chunk, chunk + 1} {
				p := make([]byte, n)
				got, err := im.ReadAt(t.Context(), p, off)
				want := int(max(0, min(int64(n), size-off)))
				var wantErr error
				if want < n || off > size {
					wantErr = io.EOF
				}
				if n == 0 && off == size {
					wantErr = nil
				}
				if got != want || err != wantErr {
					t.Errorf("size %d: read %d at %d: %d, %v; want %d, %v", size, n, off, got, err, want, wantErr)
				}
				if got > 0 && !bytes.Equal(p[:got], plain[off:off+int64(got)]) {
					t.Errorf("size %d: read %d at %d: content", size, n, off)
				}
			}
		}
		if _, err := im.ReadAt(t.Context(), make([]byte, 1), -1); err == nil {
			t.Error("read before the start")
		}
		if n, err := im.WriteAt(t.Context(), []byte("ab"), size-1); n != 1 || err == nil {
			t.Errorf("size %d: write over the end: %d, %v", size, n, err)
		}
		if n, err := im.WriteAt(t.Context(), []byte("ab"), size); n != 0 || err == nil {
			t.Errorf("size %d: write at the end: %d, %v", size, n, err)
		}
	}
}

// fiveChunks is an image of five chunks of 4 KiB, the fourth of zeros.
func fiveChunks(t *testing.T) (*Image, *objects, []byte) {
	plain := randomBytes(5 * 4096)
	clear(plain[3*4096 : 4*4096])
	o := new(objects)
	im := newTestImage(t, t.TempDir(), o, pristineTree(t, o, plain, int64(len(plain)), 4096), int64(len(plain)), 4096)
	if _, err := im.c.Refs.Ref(t.Context(), 0); err != nil { // the one block of the keyring
		t.Fatal(err)
	}
	o.mu.Lock()
	o.gets = 0
	o.mu.Unlock()
	return im, o, plain
}

func TestWhatFetchesAndWhatDoesNot(t *testing.T) {
	im, o, plain := fiveChunks(t)
	ctx := t.Context()
	step := func(what string, want int, f func() error) {
		t.Helper()
		before := o.count()
		if err := f(); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if got := o.count() - before; got != want {
			t.Errorf("%s fetched %d objects, want %d", what, got, want)
		}
	}
	read := func(off int64, n int) func() error {
		return func() error { _, err := im.ReadAt(ctx, make([]byte, n), off); return err }
	}
	write := func(off int64, n int) func() error {
		return func() error { _, err := im.WriteAt(ctx, plain[off:off+int64(n)], off); return err }
	}
	sealAll := func() error {
		return im.Seal(ctx, func(context.Context, int64, seal.Ref, []byte) error { return nil }, nil)
	}
	step("read of zeros", 0, read(3*4096, 4096))
	step("write of whole sectors", 0, write(512, 1024))
	step("read of them", 0, read(600, 900))
	step("write of a part of such a sector", 0, write(700, 3))
	step("write of a whole chunk", 0, write(4096, 4096))
	step("seal of a part of a chunk", 1, sealAll)
	step("read of the rest", 0, read(0, 512))
	step("write of a part of a sector", 1, write(2*4096+5, 7))
	step("write to zeros", 0, write(3*4096+5, 7))
	step("seal of all", 0, sealAll)
	step("read of all", 1, read(0, len(plain)))
	st := im.Snapshot()
	if st.Fetched != 3 || st.Refetched != 0 || st.Touched != 5 || st.FirstWrites != 3 || st.Modified != 4 || st.ModifiedNow != 4 {
		t.Errorf("counters: %+v", st)
	}
	if got := im.Trace(); len(got) != 2 || got[0] != 3 || got[1] != 4 {
		t.Errorf("trace: %v, want [3 4]", got)
	}
}

func TestOneFetchForAllWhoWait(t *testing.T) {
	im, o, plain := fiveChunks(t)
	release := make(chan struct{})
	arrived := make(chan struct{}, 100)
	o.setHook(func(ctx context.Context, _ seal.Tag, p []byte) ([]byte, error) {
		arrived <- struct{}{}
		select {
		case <-release:
			return p, nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	})
	before := o.count()
	var wg sync.WaitGroup
	first, cancelFirst := context.WithCancel(t.Context())
	firstDone := make(chan error, 1)
	wg.Go(func() {
		_, err := im.ReadAt(first, make([]byte, 10), 0)
		firstDone <- err
	})
	<-arrived
	for range 20 {
		wg.Go(func() {
			p := make([]byte, 100)
			if _, err := im.ReadAt(t.Context(), p, 50); err != nil || !bytes.Equal(p, plain[50:150]) {
				t.Errorf("waiting reader: %v", err)
			}
		})
	}
	waitFor(t, func() bool {
		im.fetcher.mu.Lock()
		defer im.fetcher.mu.Unlock()
		return im.fetcher.flights[0].waiters == 21
	})
	// The one who began it goes, and the fetch goes on.
	cancelFirst()
	if err := <-firstDone; !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled reader: %v", err)
	}
	// Stalled: what is at hand is read and written all the same.
	if _, err := im.ReadAt(t.Context(), make([]byte, 4096), 3*4096); err != nil {
		t.Error(err)
	}
	if _, err := im.WriteAt(t.Context(), plain[:1024], 4096); err != nil {
		t.Error(err)
	}
	if _, err := im.ReadAt(t.Context(), make([]byte, 1024), 4096); err != nil {
		t.Error(err)
	}
	if err := im.Flush(t.Context()); err != nil {
		t.Error(err)
	}
	if st := im.Snapshot(); st.Waiting != 1 || st.WaitingFor <= 0 {
		t.Errorf("waiting for %d chunks since %v, want 1", st.Waiting, st.WaitingFor)
	}
	close(release)
	wg.Wait()
	if got := o.count() - before; got != 1 {
		t.Errorf("%d fetches of one chunk", got)
	}
	if st := im.Snapshot(); st.Waiting != 0 || st.FetchP50 <= 0 {
		t.Errorf("after: %+v", st)
	}
}

// waitFor waits for an event that has no channel.
func waitFor(t *testing.T, f func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !f(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("it does not happen")
		}
	}
}

func TestGivenUpFetchIsCancelledAndTriedAgain(t *testing.T) {
	im, o, plain := fiveChunks(t)
	arrived, ended := make(chan struct{}, 1), make(chan struct{}, 1)
	o.setHook(func(ctx context.Context, _ seal.Tag, _ []byte) ([]byte, error) {
		arrived <- struct{}{}
		<-ctx.Done()
		ended <- struct{}{}
		return nil, ctx.Err()
	})
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-arrived; cancel() }()
	if _, err := im.ReadAt(ctx, make([]byte, 5), 0); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	<-ended // nobody waits: the getter is told
	o.setHook(nil)
	if got := readAll(t, im); !bytes.Equal(got, plain) {
		t.Error("content after a cancelled fetch")
	}
}

func TestLyingGetter(t *testing.T) {
	im, o, plain := fiveChunks(t)
	other, sealedOther, err := testSealer.Seal(randomBytes(4096))
	if err != nil {
		t.Fatal(err)
	}
	_ = other
	for name, lie := range map[string]func(p []byte) []byte{
		"a flipped bit":   func(p []byte) []byte { q := bytes.Clone(p); q[len(q)/2] ^= 1; return q },
		"cut short":       func(p []byte) []byte { return p[:len(p)-1] },
		"nothing":         func([]byte) []byte { return nil },
		"another's bytes": func([]byte) []byte { return sealedOther },
	} {
		o.setHook(func(_ context.Context, _ seal.Tag, p []byte) ([]byte, error) { return lie(p), nil })
		p := make([]byte, 4096)
		if _, err := im.ReadAt(t.Context(), p, 0); !errors.Is(err, seal.ErrCorrupt) {
			t.Errorf("%s: got %v, want ErrCorrupt", name, err)
		}
		if bytes.Contains(p, plain[:16]) {
			t.Errorf("%s: something was served", name)
		}
		if _, err := im.WriteAt(t.Context(), []byte{1}, 3); !errors.Is(err, seal.ErrCorrupt) {
			t.Errorf("%s: write of a part of a sector: %v", name, err)
		}
	}
	if im.Tainted() != nil {
		t.Error("a bad object taints the overlay")
	}
	o.setHook(nil)
	if got := readAll(t, im); !bytes.Equal(got, plain) {
		t.Error("content after the lies")
	}
	// An object that is what its reference says, but is no chunk.
	ref, sealed, err := testSealer.Seal(make([]byte, 100))
	if err != nil {
		t.Fatal(err)
	}
	o.Put(t.Context(), ref.Tag, sealed)
	im2 := newTestImage(t, t.TempDir(), o, oneRef(ref), 4096, 4096)
	if _, err := im2.ReadAt(t.Context(), make([]byte, 1), 0); !errors.Is(err, seal.ErrCorrupt) {
		t.Errorf("chunk of 100 bytes: %v", err)
	}
}

type oneRef seal.Ref

func (r oneRef) Ref(context.Context, int64) (seal.Ref, error) { return seal.Ref(r), nil }

func TestCloseEndsWhatWaits(t *testing.T) {
	im, o, _ := fiveChunks(t)
	arrived := make(chan struct{}, 1)
	o.setHook(func(ctx context.Context, _ seal.Tag, _ []byte) ([]byte, error) {
		arrived <- struct{}{}
		<-ctx.Done()
		return nil, ctx.Err()
	})
	done := make(chan error, 1)
	go func() {
		_, err := im.ReadAt(context.Background(), make([]byte, 5), 0)
		done <- err
	}()
	<-arrived
	im.Close()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("reader of a closed image: %v", err)
	}
	if _, err := im.ReadAt(context.Background(), make([]byte, 5), 0); !errors.Is(err, context.Canceled) {
		t.Errorf("read after close: %v", err)
	}
}

func TestSealStopsAtTheFirstError(t *testing.T) {
	im, o, plain := fiveChunks(t)
	for n := range int64(5) {
		if _, err := im.WriteAt(t.Context(), plain[:512], n*4096); err != nil {
			t.Fatal(err)
		}
	}
	stop := errors.New("no room")
	err := im.Seal(t.Context(), func(context.Context, int64, seal.Ref, []byte) error { return stop }, nil)
	if !errors.Is(err, stop) {
		t.Errorf("got %v, want %v", err, stop)
	}
	o.setHook(func(context.Context, seal.Tag, []byte) ([]byte, error) { return nil, errors.New("gone") })
	if err := im.Seal(t.Context(), func(context.Context, int64, seal.Ref, []byte) error { return nil }, nil); err == nil {
		t.Error("sealed without the pristine rest")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	o.setHook(nil)
	if err := im.Seal(ctx, func(context.Context, int64, seal.Ref, []byte) error { return nil }, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// TestConcurrentUse is for the race detector, and for partial sectors: each
// goroutine owns bytes that share sectors with others.
func TestConcurrentUse(t *testing.T) {
	const size, chunk, writers = 300_000, 4096, 8
	plain := randomBytes(size)
	o := new(objects)
	im := newTestImage(t, t.TempDir(), o, pristineTree(t, o, plain, size, chunk), size, chunk)
	model := bytes.Clone(plain)
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(w), 4))
			for range 300 {
				// Byte i belongs to writer i/100 mod writers.
				block := rng.Int64N(size/100/writers)*writers + int64(w)
				p := make([]byte, 100)
				for i := range p {
					p[i] = byte(rng.Uint32())
				}
				if _, err := im.WriteAt(t.Context(), p, block*100); err != nil {
					t.Error(err)
				}
				copy(model[block*100:], p)
				if rng.IntN(20) == 0 {
					if err := im.Flush(t.Context()); err != nil {
						t.Error(err)
					}
				}
				p = make([]byte, 100)
				if _, err := im.ReadAt(t.Context(), p, block*100); err != nil || !bytes.Equal(p, model[block*100:block*100+100]) {
					t.Errorf("writer %d reads back another block %d (%v)", w, block, err)
				}
				im.Snapshot()
			}
		})
	}
	wg.Wait()
	if got := readAll(t, im); !bytes.Equal(got, model) {
		t.Error("content differs")
	}
}

func TestSaveKeepsOnlyWhatChanged(t *testing.T) {
	const size, chunk = 10 * 4096, 8192
	plain := randomBytes(size)
	o := new(objects)
	im := newTestImage(t, t.TempDir(), o, pristineTree(t, o, plain, size, chunk), size, chunk)
	ctx := t.Context()
	im.ReadAt(ctx, make([]byte, 4*4096), 0)       // pages 0 to 3
	im.ReadAt(ctx, make([]byte, 10), 6*4096+5)    // a part of page 6
	im.WriteAt(ctx, randomBytes(4096), 8*4096)    // page 8, unseen
	im.WriteAt(ctx, plain[2*4096:3*4096], 2*4096) // page 2, as it was
	want := []bool{true, true, true, true, false, false, true, false, true, false}
	for i, w := range want {
		if got := im.Asked(int64(i)*4096, 4096); got != w {
			t.Errorf("page %d asked for: %v, want %v", i, got, w)
		}
	}
	if !im.Asked(0, size) || im.Asked(4*4096, 2*4096) || im.Asked(0, 0) {
		t.Error("ranges of pages")
	}
	if _, err := im.Pages().WriteAt(plain[:4096], 0); !errors.Is(err, errNotSaving) {
		t.Errorf("page outside a save: %v", err)
	}
	if err := im.BeginSave(); err != nil {
		t.Fatal(err)
	}
	if err := im.BeginSave(); err == nil {
		t.Error("two saves at once")
	}
	w := im.Pages()
	guest := bytes.Clone(plain)
	guest[4096]++
	for _, page := range []int64{0, 1, 2, 3, 6} {
		if _, err := w.WriteAt(guest[page*4096:(page+1)*4096], page*4096); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := w.WriteAt(guest[:4096], size-10); err == nil {
		t.Error("page past the end")
	}
	if err := im.EndSave(ctx); err != nil {
		t.Fatal(err)
	}
	// Pages 0 and 3 are as they were handed out; of 2 and 6 that is not known.
	if st := im.Snapshot(); st.SkippedBytes != 2*4096 || st.SavedBytes != 3*4096 {
		t.Errorf("saved %d, skipped %d bytes; want %d, %d", st.SavedBytes, st.SkippedBytes, 3*4096, 2*4096)
	}
	p := make([]byte, 8*4096)
	if _, err := im.ReadAt(ctx, p, 0); err != nil || !bytes.Equal(p, guest[:8*4096]) {
		t.Errorf("saved content differs (%v)", err)
	}
}

// TestSaveOnAFullDisk: what a failed write did not store is stored when the
// driver tries again, though it looks the same as the time before.
func TestSaveOnAFullDisk(t *testing.T) {
	const size = 64 * 4096
	d := newFaultDisk(1)
	ov, err := openOverlay(d, "test", size, 4096, testKey)
	if err != nil {
		t.Fatal(err)
	}
	im := New(Config{Name: "test", Size: size, ChunkSize: 4096, Sealer: testSealer, Refs: noRefs{},
		Getter: new(objects), Overlay: ov, Save: true})
	defer im.Close()
	guest := readAll(t, im)
	for page := range 64 {
		if page%3 > 0 {
			copy(guest[page*4096:], randomBytes(4096))
		}
	}
	if err := im.BeginSave(); err != nil {
		t.Fatal(err)
	}
	d.mu.Lock()
	d.fault, d.once, d.at = syscall.ENOSPC, true, d.steps+7
	d.mu.Unlock()
	if _, err := im.Pages().WriteAt(guest, 0); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("got %v, want no space", err)
	}
	if _, err := im.Pages().WriteAt(guest, 0); err != nil {
		t.Fatal(err)
	}
	if err := im.EndSave(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := readAll(t, im); !bytes.Equal(got, guest) {
		t.Error("saved content differs")
	}
}

// TestSaveOvertakesWaitingReads: with the network away, reads that nobody
// needs any more are answered, and count as never handed out.
func TestSaveOvertakesWaitingReads(t *testing.T) {
	im, o, plain := fiveChunks(t)
	if _, err := im.ReadAt(t.Context(), make([]byte, 4096), 4096); err != nil {
		t.Fatal(err)
	}
	arrived := make(chan struct{}, 1)
	ended := make(chan struct{}, 1)
	o.setHook(func(ctx context.Context, _ seal.Tag, p []byte) ([]byte, error) {
		arrived <- struct{}{}
		<-ctx.Done()
		ended <- struct{}{}
		return nil, ctx.Err()
	})
	done := make(chan []byte, 1)
	go func() { // over a page that is there and two that are not
		p := make([]byte, 3*4096)
		if _, err := im.ReadAt(context.Background(), p, 0); err != nil {
			t.Error(err)
		}
		done <- p
	}()
	<-arrived
	<-arrived
	writing := make(chan error, 1)
	go func() { // a write that needs the rest of its sector waits on
		_, err := im.WriteAt(context.Background(), []byte{1}, 4*4096)
		writing <- err
	}()
	<-arrived
	if err := im.BeginSave(); err != nil {
		t.Fatal(err)
	}
	if got := <-done; !seal.Zero(got[:4096]) || !bytes.Equal(got[4096:8192], plain[4096:8192]) || !seal.Zero(got[8192:]) {
		t.Error("the waiting read got something else than zeros around what was handed out before")
	}
	<-ended
	<-ended
	for page, want := range []bool{false, true, false, false, true} {
		if got := im.Asked(int64(page)*4096, 4096); got != want {
			t.Errorf("page %d handed out: %v, want %v", page, got, want)
		}
	}
	var unasked []int64
	for off, n := range im.Unasked() {
		unasked = append(unasked, off, n)
	}
	if !slices.Equal(unasked, []int64{0, 4096, 2 * 4096, 2 * 4096}) {
		t.Errorf("unasked: %v", unasked)
	}
	select {
	case err := <-writing:
		t.Fatalf("the save ended a write: %v", err)
	default:
	}
	im.CancelSave()
	o.setHook(nil)
	copy(plain[4*4096:], []byte{1})
	im.fetcher.mu.Lock()
	im.fetcher.flights[4].cancel() // the hook of before waits for that
	im.fetcher.mu.Unlock()
	if err := <-writing; !errors.Is(err, context.Canceled) {
		t.Errorf("write: %v", err)
	}
	if _, err := im.WriteAt(t.Context(), []byte{1}, 4*4096); err != nil {
		t.Fatal(err)
	}
	if got := readAll(t, im); !bytes.Equal(got, plain) {
		t.Error("content after CancelSave")
	}
	if !im.Asked(0, 4096) {
		t.Error("read after CancelSave does not count")
	}
}

// TestReadDoneAfterBeginSave: a read whose chunk comes as the save begins does
// not count as handed out, since the save may have read zeros there.
func TestReadDoneAfterBeginSave(t *testing.T) {
	im, _, plain := fiveChunks(t)
	p := make([]byte, 4096)
	if err := im.read(t.Context(), nil, p, 0, true); err != nil {
		t.Fatal(err)
	}
	if err := im.BeginSave(); err != nil {
		t.Fatal(err)
	}
	im.pages.handedOut(p, 0, im.Size())
	if im.Asked(0, 4096) || !bytes.Equal(p, plain[:4096]) {
		t.Error("it counts as handed out")
	}
}

func TestCacheIsBounded(t *testing.T) {
	const size, chunk = 64 * 4096, 4096
	plain := randomBytes(size)
	clear(plain[:8*4096])
	o := new(objects)
	im := newTestImage(t, t.TempDir(), o, pristineTree(t, o, plain, size, chunk), size, chunk)
	im.c.CacheBytes = 10 * 4096
	for range 3 {
		if got := readAll(t, im); !bytes.Equal(got, plain) {
			t.Fatal("content")
		}
		f := im.fetcher
		if f.bytes > im.c.CacheBytes || len(f.byNum) != f.recent.Len() {
			t.Errorf("cache of %d bytes, %d entries, %d in order", f.bytes, len(f.byNum), f.recent.Len())
		}
	}
	if st := im.Snapshot(); st.Fetched != 56 || st.Refetched == 0 {
		t.Errorf("fetched %d, again %d", st.Fetched, st.Refetched)
	}
}
