package keyring

import (
	"errors"
	"math"
	"testing"

	"pgregory.net/rapid"

	"isr/store/seal"
)

// built is an image with those references, as if it was never another size.
func built(t interface{ Fatal(...any) }, o *objects, size int64, refs map[int64]seal.Ref) Image {
	tree := NewTree(sealer, NewImage(Disk, size, testChunk), o)
	for n, r := range refs {
		if n*testChunk < size {
			tree.Set(n, r)
		}
	}
	im, err := tree.Flush(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	return im
}

// A resized image is the one that would have been built so: whatever the two
// depths, and with as few blocks as there are levels.
func TestResizeDepths(t *testing.T) {
	sizes := []int64{0, 1, 2, 256, 257, 65536, 65537, 1 << 24, 1<<24 + 1, 1 << 32, 1<<32 + 1, 1 << 40, 1<<40 + 1, 1 << 44}
	for _, from := range sizes {
		for _, to := range sizes {
			o := newObjects()
			refs := make(map[int64]seal.Ref)
			for i, size := range sizes {
				for _, n := range []int64{size - 1, size} {
					if n >= 0 && n < from {
						refs[n] = ref(i)
					}
				}
			}
			old, want := built(t, o, from*testChunk, refs), built(t, o, to*testChunk, refs)
			before := o.puts
			got, err := Resize(ctx, sealer, o, o, old, to*testChunk)
			if err != nil || got != want {
				t.Errorf("%d chunks to %d: got %+v, %v, want %+v", from, to, got, err, want)
			}
			if puts := o.puts - before; puts > 6 {
				t.Errorf("%d chunks to %d: %d blocks put", from, to, puts)
			}
		}
	}
}

func TestResizeModel(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		o := newObjects()
		size := rapid.Int64Range(0, 70000*testChunk)
		from := size.Draw(r, "from")
		refs := make(map[int64]seal.Ref)
		for range rapid.IntRange(0, 20).Draw(r, "count") {
			if chunks := (from + testChunk - 1) / testChunk; chunks > 0 {
				refs[rapid.Int64Range(0, chunks-1).Draw(r, "chunk")] = ref(rapid.IntRange(0, 3).Draw(r, "content"))
			}
		}
		im := built(r, o, from, refs)
		for range 3 {
			to := size.Draw(r, "to")
			var err error
			if im, err = Resize(ctx, sealer, o, o, im, to); err != nil {
				r.Fatal(err)
			}
			for n := range refs {
				if n*testChunk >= to {
					delete(refs, n)
				}
			}
			if want := built(r, o, to, refs); im != want {
				r.Fatalf("to %d: got %+v, want %+v", to, im, want)
			}
		}
	})
}

func TestResizeRefused(t *testing.T) {
	o := newObjects()
	im := built(t, o, 70000*testChunk, map[int64]seal.Ref{3: ref(3), 69999: ref(4)})
	for _, size := range []int64{-1, 1<<56 + 1, math.MaxInt64} {
		if got, err := Resize(ctx, sealer, o, o, im, size); err == nil {
			t.Errorf("%d: got %+v", size, got)
		}
	}
	clear(o.m)
	if _, err := Resize(ctx, sealer, o, o, im, testChunk); !errors.Is(err, errAbsent) {
		t.Errorf("blocks are missing: got %v", err)
	}
	// To grow needs none of them.
	if _, err := Resize(ctx, sealer, o, o, im, 1<<40); err != nil {
		t.Error(err)
	}
}
