package keyring

import (
	"context"
	"fmt"

	"isr/store/seal"
)

// Resize is im with another size: chunks beyond its end are zeros, those
// beyond the new end are left out. It stores the few blocks on the path to the
// new end. The last chunk is not looked into: what it has beyond the new end
// is the caller's to clear.
func Resize(ctx context.Context, s seal.Sealer, g Getter, dst Putter, im Image, size int64) (Image, error) {
	out := NewImage(im.Name, size, im.ChunkSize)
	if err := out.check(); err != nil {
		return Image{}, err
	}
	r := resizer{ctx, s, g, dst, out.Chunks()}
	ref := im.Ref
	// What lies beyond the first block of a level that goes is cut with it.
	for level := im.Depth; level > out.Depth && !ref.IsNil(); level-- {
		b, err := GetBlock(ctx, s, g, ref, level)
		if err != nil {
			return Image{}, fmt.Errorf("image %s: %w", im.Name, err)
		}
		ref = b[0]
	}
	var err error
	if size < im.Size {
		ref, err = r.cut(ref, out.Depth, 0)
	}
	for level := im.Depth; err == nil && level < out.Depth && !ref.IsNil(); level++ {
		ref, err = putBlock(ctx, s, dst, &Block{ref}, level+1)
	}
	if err != nil {
		return Image{}, fmt.Errorf("image %s: %w", im.Name, err)
	}
	out.Ref = ref
	return out, nil
}

type resizer struct {
	ctx    context.Context
	sealer seal.Sealer
	getter Getter
	putter Putter
	chunks int64 // of the new image
}

// cut is the reference at number n of a level without what is beyond the end.
func (r *resizer) cut(ref seal.Ref, level int, n int64) (seal.Ref, error) {
	switch {
	case ref.IsNil() || n<<(8*level) >= r.chunks:
		return seal.Ref{}, nil
	case (n+1)<<(8*level) <= r.chunks:
		return ref, nil
	}
	b, err := GetBlock(r.ctx, r.sealer, r.getter, ref, level)
	if err != nil {
		return seal.Ref{}, err
	}
	cut := new(Block)
	for i := range b {
		if cut[i], err = r.cut(b[i], level-1, n*Fanout+int64(i)); err != nil {
			return seal.Ref{}, err
		}
	}
	if *cut == *b {
		return ref, nil
	}
	return putBlock(r.ctx, r.sealer, r.putter, cut, level)
}
