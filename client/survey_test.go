package client

import (
	"context"
	"encoding/binary"
	"os"
	"sync"
	"testing"
	"time"

	"isr/client/hoard"
	"isr/client/image"
	"isr/store/keyring"
	"isr/store/parcel"
	"isr/store/seal"
)

// here is objects in memory.
type here struct {
	mu sync.Mutex
	m  map[seal.Tag][]byte
}

func (h *here) Get(_ context.Context, tag seal.Tag) ([]byte, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if p, ok := h.m[tag]; ok {
		return p, nil
	}
	return nil, parcel.ErrNoObject
}

func (h *here) Put(_ context.Context, tag seal.Tag, sealed []byte) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.m == nil {
		h.m = make(map[seal.Tag][]byte)
	}
	h.m[tag] = sealed
	return nil
}

func (h *here) has(tag seal.Tag) bool { _, err := h.Get(nil, tag); return err == nil }

var surveySealer = seal.Sealer{Suite: seal.AES256SHA256, Codec: seal.Gzip, Secret: []byte("realm")}

// surveyOf is a survey of one image, of those chunks of which set says so.
func surveyOf(t testing.TB, h *here, chunks int64, set func(n int64) bool) (*survey, []seal.Ref) {
	t.Helper()
	im := keyring.NewImage(keyring.Disk, chunks*4096, 4096)
	tree := keyring.NewTree(surveySealer, im, h)
	refs := make([]seal.Ref, chunks)
	plain := make([]byte, 4096)
	for n := range chunks {
		if !set(n) {
			continue
		}
		binary.LittleEndian.PutUint64(plain, uint64(n)+1)
		ref, _, err := surveySealer.Seal(plain)
		if err != nil {
			t.Fatal(err)
		}
		refs[n] = ref
		tree.Set(n, ref)
	}
	im, err := tree.Flush(t.Context(), h)
	if err != nil {
		t.Fatal(err)
	}
	return &survey{sealer: surveySealer, here: h, has: h.has, wake: make(chan struct{}, 1),
		images: map[string]*surveyed{keyring.Disk: {pristine: im, presence: image.NewPresence(chunks)}}}, refs
}

// TestSurvey: what comes to this host and what goes from it is found out, for
// as long as somebody looks.
func TestSurvey(t *testing.T) {
	const chunks = 300 // two blocks and what is above them
	h := new(here)
	v, refs := surveyOf(t, h, chunks, func(n int64) bool { return n%3 == 0 })
	im := v.images[keyring.Disk]
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer stop()
	wg.Go(func() { v.run(ctx) })
	becomes := func(what string, want func(n int64) (stored, here bool)) {
		t.Helper()
		for end := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
			v.look()
			wrong := int64(-1)
			for n := range int64(chunks) {
				stored, here := im.presence.Known(n)
				if ws, wh := want(n); stored != ws || here != wh {
					wrong = n
				}
			}
			if wrong < 0 && im.seen.Load() {
				return
			}
			if time.Now().After(end) {
				t.Fatalf("%s: chunk %d", what, wrong)
			}
		}
	}
	becomes("nothing here", func(n int64) (bool, bool) { return n%3 == 0, false })
	h.Put(ctx, refs[3].Tag, nil)
	h.Put(ctx, refs[297].Tag, nil)
	becomes("two have come", func(n int64) (bool, bool) { return n%3 == 0, n == 3 || n == 297 })
	h.mu.Lock()
	delete(h.m, refs[3].Tag)
	h.mu.Unlock()
	becomes("one has gone", func(n int64) (bool, bool) { return n%3 == 0, n == 297 })
	// Without the blocks of the keyring nothing is known: all counts as objects
	// elsewhere.
	h.mu.Lock()
	kept := h.m
	h.m = nil
	h.mu.Unlock()
	becomes("no keyring", func(int64) (bool, bool) { return true, false })
	h.mu.Lock()
	h.m = kept
	h.mu.Unlock()
	becomes("the keyring is back", func(n int64) (bool, bool) { return n%3 == 0, n == 297 })
}

// TestSurveyRests: nothing is done when nobody looks, and a run that ends ends
// the wait.
func TestSurveyRests(t *testing.T) {
	v, _ := surveyOf(t, new(here), 10, func(int64) bool { return true })
	v.has = func(seal.Tag) bool { t.Error("it works for nobody"); return false }
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { defer close(ended); v.run(ctx) }()
	stop()
	<-ended
	if v.images[keyring.Disk].seen.Load() {
		t.Error("seen by nobody")
	}
}

// BenchmarkSurvey is a pass over 8 GiB of disk, all of it objects in a hoard:
// multiply by 128 for 1 TiB.
func BenchmarkSurvey(b *testing.B) {
	const chunks = 8 << 30 >> 17
	h := new(here)
	v, _ := surveyOf(b, h, chunks, func(int64) bool { return true })
	dir := hoard.NewDir(b.TempDir())
	for i := range 256 { // directories to look in, as a hoard has
		os.MkdirAll(dir.Path()+"/"+string("0123456789abcdef"[i>>4])+string("0123456789abcdef"[i&15]), 0o700)
	}
	v.has = func(tag seal.Tag) bool { _, err := dir.Size(tag); return err == nil }
	im := v.images[keyring.Disk]
	v.look()
	for b.Loop() {
		v.began = time.Now().Add(time.Hour) // no pauses
		if err := v.block(b.Context(), im, im.pristine.Ref, im.pristine.Depth, 0); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/chunks, "ns/chunk")
}
