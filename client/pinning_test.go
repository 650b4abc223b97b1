package client

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync/atomic"
	"testing"

	"pgregory.net/rapid"

	"isr/client/hoard"
	"isr/store/keyring"
	"isr/store/parcel"
	"isr/store/seal"
)

// objects is a store in memory.
type objects map[seal.Tag][]byte

func (o objects) Get(_ context.Context, tag seal.Tag) ([]byte, error) {
	if p, ok := o[tag]; ok {
		return p, nil
	}
	return nil, parcel.ErrNoObject
}

func (o objects) Put(_ context.Context, tag seal.Tag, sealed []byte) error {
	o[tag] = sealed
	return nil
}

// A pin that follows from one keyring to another, by what differs, names what
// the other needs and nothing else: whatever changes, also when the memory
// comes, goes, or has another size than before.
func TestFollow(t *testing.T) {
	s := seal.Sealer{Suite: seal.AES256SHA256, Codec: seal.None}
	const chunk = keyring.MinChunk
	dir := t.TempDir()
	rapid.Check(t, func(t *rapid.T) {
		ctx, store := context.Background(), objects{}
		put := func(text string) seal.Ref {
			ref, sealed, err := s.Seal([]byte(text))
			if err != nil {
				t.Fatal(err)
			}
			store[ref.Tag] = sealed
			return ref
		}
		sizes := map[string][]int64{keyring.Disk: {300 * chunk}, keyring.Memory: {0, 3 * chunk, 40 * chunk, 400 * chunk}}
		version := func(from *keyring.Root, n int) tree {
			root := &keyring.Root{Suite: s.Suite, Requires: map[string]string{}, Comment: fmt.Sprint(n)}
			for _, name := range imageNames {
				size := rapid.SampledFrom(sizes[name]).Draw(t, name+" size")
				if size == 0 {
					continue
				}
				im := keyring.NewImage(name, size, chunk)
				if from != nil {
					if old, ok := from.Image(name); ok && old.Size == size {
						im = old
					}
				}
				k := keyring.NewTree(s, im, store)
				for range rapid.IntRange(0, 5).Draw(t, "changes") {
					ref := seal.Ref{}
					if c := rapid.IntRange(0, 4).Draw(t, "content"); c > 0 {
						ref = put(fmt.Sprint("content ", c)) // the same in many places
					}
					k.Set(rapid.Int64Range(0, im.Chunks()-1).Draw(t, "chunk"), ref)
				}
				im, err := k.Flush(ctx, store)
				if err != nil {
					t.Fatal(err)
				}
				root.SetImage(im)
			}
			if rapid.Bool().Draw(t, "cfg") {
				root.Cfg, root.CfgSize = put(fmt.Sprint("cfg ", rapid.IntRange(0, 1).Draw(t, "which"))), 1
			}
			keyroot, sealed, err := keyring.SealRoot(s, root)
			if err != nil {
				t.Fatal(err)
			}
			store[keyroot.Tag] = sealed
			return tree{s, store, keyroot, root}
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
		h, err := hoard.Open(dir, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer h.Close()
		pin := hoard.Pin{UUID: "6ba7b810-9dad-11d1-80b4-00c04fd430c8", Parcel: "box", User: "alice", Server: "h", Version: 1,
			Memory: rapid.Bool().Draw(t, "memory"), Time: now()}
		old := version(nil, 1)
		if err := h.Pin(pin, old.needs(ctx, pin.Memory)); err != nil {
			t.Fatal(err)
		}
		for v := 2; v <= 4; v++ {
			then := version(old.root, v)
			p := pin
			p.Version, p.Memory = v, false // what is remembered counts
			known := rapid.Bool().Draw(t, "old version known")
			if known && rapid.Bool().Draw(t, "by the difference alone") {
				p.Memory = pin.Memory
				less, more, err := old.changes(ctx, then, p.Memory)
				if err == nil {
					err = h.Repin(p, v-1, values(less), values(more))
				}
				if err != nil {
					t.Fatalf("version %d: %v", v, err)
				}
			}
			err := follow(ctx, h, p, then, func(was int) (tree, error) {
				if was != v-1 {
					t.Fatalf("asked for version %d, pinned is %d", was, v-1)
				}
				if !known {
					return tree{}, errors.New("gone")
				}
				return old, nil
			})
			if err != nil {
				t.Fatal(err)
			}
			var want []seal.Tag
			for need, err := range then.needs(ctx, pin.Memory) {
				if err != nil {
					t.Fatal(err)
				}
				want = append(want, need.Tag)
			}
			slices.Sort(want)
			want = slices.Compact(want)
			got, err := h.Tags(pin.UUID)
			now, perr := h.Pinned(pin.UUID)
			if err != nil || perr != nil || !slices.Equal(got, want) || now.Version != v || now.Memory != pin.Memory {
				t.Fatalf("version %d: %+v names %d objects, want %d: %v %v", v, now, len(got), len(want), err, perr)
			}
			old = then
		}
		// A version it is of already, and a parcel that is not hoarded, cost nothing.
		p := pin
		p.Version = 4
		never := func(int) (tree, error) { t.Fatal("asked for the old version"); return tree{}, nil }
		if err := follow(ctx, h, p, old, never); err != nil {
			t.Fatal(err)
		}
		if err := h.Unpin(p.UUID); err != nil {
			t.Fatal(err)
		}
		if err := follow(ctx, h, p, old, never); err != nil {
			t.Fatal(err)
		}
	})
}

// far counts what it is asked, and answers all but the first when many are
// asked for at a time.
type far struct {
	objects
	asked atomic.Int64
	many  chan struct{}
}

func (f *far) Get(ctx context.Context, tag seal.Tag) ([]byte, error) {
	switch f.asked.Add(1) {
	case 1:
		return f.objects.Get(ctx, tag)
	case 1 + 20:
		close(f.many)
	}
	<-f.many
	return f.objects.Get(ctx, tag)
}

// Walking a far keyring costs as many round trips as it is deep.
func TestWarm(t *testing.T) {
	s := seal.Sealer{Suite: seal.AES256SHA256, Codec: seal.None}
	ctx, store := context.Background(), objects{}
	k := keyring.NewTree(s, keyring.NewImage(keyring.Disk, 256*100*keyring.MinChunk, keyring.MinChunk), store)
	for n := range int64(100) {
		ref, _, err := s.Seal([]byte(fmt.Sprint(n)))
		if err != nil {
			t.Fatal(err)
		}
		k.Set(n*256, ref)
	}
	im, err := k.Flush(ctx, store)
	if err != nil {
		t.Fatal(err)
	}
	h, err := hoard.Open(t.TempDir(), 0)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	far := &far{objects: store, many: make(chan struct{})}
	l := (&Client{}).ladder(nil, h, far)
	then := tree{sealer: s, getter: l, root: &keyring.Root{Images: []keyring.Image{im}}}
	if err := (tree{}).warm(ctx, l, then, false); err != nil {
		t.Fatal(err)
	}
	if n := far.asked.Load(); n != 101 {
		t.Errorf("asked for %d blocks, want 101", n)
	}
	if err := keyring.Walk(ctx, s, l, im, func(int, int64, seal.Ref) error { return nil }); err != nil || far.asked.Load() != 101 {
		t.Errorf("the walk: %v, %d blocks were asked for", err, far.asked.Load()-101)
	}
}
