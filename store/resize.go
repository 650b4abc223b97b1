package store

import (
	"context"

	"isr/store/keyring"
	"isr/store/parcel"
	"isr/store/seal"
)

// resized is root, of a version of p, with the sizes that o asks for, its new
// blocks put into made, and its new sizes in cfg; nil if it has them already.
func (p *Parcel) resized(ctx context.Context, made keyring.Scratch, cfg *parcel.Config, root *keyring.Root, o CopyOptions) (*keyring.Root, error) {
	disk, ok := root.Image(keyring.Disk)
	if !ok {
		return nil, p.Errorf(parcel.Damaged, "root block names no disk")
	}
	memory, ok := root.Image(keyring.Memory)
	if !ok {
		memory = keyring.NewImage(keyring.Memory, 0, cfg.MemChunk)
	}
	newDisk := o.DiskSize > 0 && o.DiskSize != disk.Size
	newMemory := o.MemSize > 0 && o.MemSize != memory.Size
	if !newDisk && !newMemory {
		return nil, nil
	}
	if root.Suspended != "" {
		return nil, p.Errorf(parcel.Usage, "a machine that is suspended keeps its disk and memory as they are").
			WithHint("copy a version that is powered off, or power it off with isr poweroff and check it in")
	}
	root = root.Clone()
	if newDisk {
		im, err := p.resizedImage(ctx, made, cfg.Sealer(), disk, o.DiskSize)
		if err != nil {
			return nil, p.Wrap(err)
		}
		root.SetImage(im)
		cfg.DiskSize = im.Size
	}
	if newMemory {
		// What a machine that is off has in its memory is nothing.
		root.SetImage(keyring.NewImage(keyring.Memory, o.MemSize, memory.ChunkSize))
		cfg.MemSize = o.MemSize
	}
	return root, nil
}

// resizedImage is im with another size. What the last chunk has beyond the new
// end is cleared, so that it is not found there if the image grows again.
func (p *Parcel) resizedImage(ctx context.Context, made keyring.Scratch, s seal.Sealer, im keyring.Image, size int64) (keyring.Image, error) {
	get := made.Before(p)
	old := im.Size
	im, err := keyring.Resize(ctx, s, get, made, im, size)
	chunk := int64(im.ChunkSize)
	if err != nil || size >= old || size%chunk == 0 {
		return im, err
	}
	tree := keyring.NewTree(s, im, get)
	last := im.Chunks() - 1
	ref, err := tree.Ref(ctx, last)
	if err != nil || ref.IsNil() {
		return im, err
	}
	sealed, err := p.Get(ctx, ref.Tag)
	if err != nil {
		return im, err
	}
	plain, err := s.Unseal(ref, sealed, im.ChunkSize)
	if err != nil {
		return im, err
	}
	clear(plain[min(size%chunk, int64(len(plain))):])
	if seal.Zero(plain) {
		ref = seal.Ref{}
	} else {
		if ref, sealed, err = s.Seal(plain); err != nil {
			return im, err
		}
		if err := made.Put(ctx, ref.Tag, sealed); err != nil {
			return im, err
		}
	}
	tree.Set(last, ref)
	return tree.Flush(ctx, made)
}

// Beyond is the number of chunks of the disk of version v, 0 for the head,
// that are not zeros and lie beyond size, wholly or in part: a copy with a
// disk of that size lacks them.
func (p *Parcel) Beyond(ctx context.Context, v int, size int64) (n int64, err error) {
	rec, cfg, err := p.Published(v)
	if err != nil {
		return 0, err
	}
	root, err := p.OpenRoot(ctx, p, cfg, rec.Keyroot)
	if err != nil {
		return 0, err
	}
	im, ok := root.Image(keyring.Disk)
	if !ok || size < 0 || size >= im.Size {
		return 0, nil
	}
	first := size / int64(im.ChunkSize) // that loses something
	err = keyring.Walk(ctx, cfg.Sealer(), p, im, func(level int, i int64, ref seal.Ref) error {
		if (i+1)<<(8*level) <= first {
			return keyring.SkipBelow
		}
		if level == 0 {
			n++
		}
		return nil
	})
	if err != nil {
		return 0, p.Wrap(err)
	}
	return n, nil
}
