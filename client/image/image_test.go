package image

import (
	"bytes"
	"context"
	"crypto/rand"
	"os"
	"sync"
	"testing"

	"isr/store/keyring"
	"isr/store/seal"
)

// objects is a store in memory.
type objects struct {
	mu   sync.Mutex
	m    map[seal.Tag][]byte
	gets int
	hook func(ctx context.Context, tag seal.Tag, sealed []byte) ([]byte, error)
}

func (o *objects) Get(ctx context.Context, tag seal.Tag) ([]byte, error) {
	o.mu.Lock()
	p, ok := o.m[tag]
	o.gets++
	hook := o.hook
	o.mu.Unlock()
	if !ok {
		panic("no object " + tag.String())
	}
	if hook != nil {
		return hook(ctx, tag, p)
	}
	return p, nil
}

func (o *objects) Put(_ context.Context, tag seal.Tag, sealed []byte) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.m == nil {
		o.m = make(map[seal.Tag][]byte)
	}
	o.m[tag] = sealed
	return nil
}

func (o *objects) setHook(h func(ctx context.Context, tag seal.Tag, sealed []byte) ([]byte, error)) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.hook = h
}

func (o *objects) count() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.gets
}

var testSealer = seal.Sealer{Suite: seal.AES256SHA256, Codec: seal.Gzip, Secret: []byte("realm")}

// pristine stores plain and returns the tree that leads to it.
func pristineTree(t testing.TB, o *objects, plain []byte, size int64, chunk int) *keyring.Tree {
	t.Helper()
	im := keyring.NewImage("test", size, chunk)
	tree := keyring.NewTree(testSealer, im, o)
	for n := int64(0); n*int64(chunk) < int64(len(plain)); n++ {
		buf := make([]byte, chunk)
		copy(buf, plain[n*int64(chunk):])
		if seal.Zero(buf) {
			continue
		}
		ref, sealed, err := testSealer.Seal(buf)
		if err != nil {
			t.Fatal(err)
		}
		o.Put(t.Context(), ref.Tag, sealed)
		tree.Set(n, ref)
	}
	if _, err := tree.Flush(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	return tree
}

var testKey = []byte("a key of this parcel, of 32 byte")

func newTestImage(t testing.TB, dir string, o *objects, tree Refs, size int64, chunk int) *Image {
	t.Helper()
	ov, err := OpenOverlay(dir, "test", size, chunk, testKey)
	if err != nil {
		t.Fatal(err)
	}
	im := New(Config{Name: "test", Size: size, ChunkSize: chunk, Sealer: testSealer,
		Refs: tree, Getter: o, Overlay: ov, Save: true})
	t.Cleanup(func() {
		im.Close()
		if err := ov.Close(); err != nil && ov.Tainted() == nil {
			t.Error(err)
		}
	})
	return im
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

func randomBytes(n int) []byte {
	p := make([]byte, n)
	rand.Read(p)
	return p
}

func readAll(t testing.TB, im *Image) []byte {
	t.Helper()
	p := make([]byte, im.Size())
	if _, err := im.ReadAt(t.Context(), p, 0); err != nil {
		t.Fatal(err)
	}
	return p
}

func TestReadsThroughToPristineAndOverlay(t *testing.T) {
	o := new(objects)
	plain := randomBytes(300_001)
	copy(plain[131072:2*131072], make([]byte, 131072))
	tree := pristineTree(t, o, plain, int64(len(plain)), 128<<10)
	dir := t.TempDir()
	im := newTestImage(t, dir, o, tree, int64(len(plain)), 128<<10)
	if got := readAll(t, im); !bytes.Equal(got, plain) {
		t.Fatal("pristine image differs")
	}
	p := randomBytes(5000)
	if _, err := im.WriteAt(t.Context(), p, 130_000); err != nil {
		t.Fatal(err)
	}
	copy(plain[130_000:], p)
	if got := readAll(t, im); !bytes.Equal(got, plain) {
		t.Fatal("modified image differs")
	}
	if err := im.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
}
