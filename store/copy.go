package store

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	"isr/store/keyring"
	"isr/store/parcel"
	"isr/store/seal"
	"isr/store/tree"
)

// Copy makes a parcel, with a UUID of its own, whose version 1 equals the head
// of another one, maybe another user's, which may be held. It shares the
// objects: they are hard links, and cost no space.
func (s *Store) Copy(ctx context.Context, fromUser, fromName, toUser, toName string) (*Parcel, error) {
	src, err := s.Parcel(fromUser, fromName)
	if err != nil {
		return nil, err
	}
	return s.CopyVersion(ctx, src, toUser, toName, CopyOptions{})
}

// CopyOptions say in what a copy differs from its original. Zero values are
// the original's.
type CopyOptions struct {
	Version  int                     // which one to copy; 0: the head
	DiskSize int64                   // bytes; what is beyond is zeros, or cut off
	MemSize  int64                   // bytes
	Comment  string                  // of the parcel and of its version 1
	Progress func(done, total int64) // bytes of its images; may be nil
}

// CopyVersion is Copy of any version, with other sizes if o has them: then
// only of one that is powered off.
func (s *Store) CopyVersion(ctx context.Context, src *Parcel, toUser, toName string, o CopyOptions) (*Parcel, error) {
	if err := checkText("comment", o.Comment); err != nil {
		return nil, err
	}
	if o.DiskSize < 0 || o.MemSize < 0 || o.DiskSize > maxImage || o.MemSize > maxImage {
		return nil, parcel.NewError(parcel.Usage, "disk of %d bytes, memory of %d bytes", o.DiskSize, o.MemSize)
	}
	return s.create(ctx, toUser, toName, copied(src, o))
}

// copied fills a parcel with a version of src.
func copied(src *Parcel, o CopyOptions) fill {
	return func(ctx context.Context, b *building) (*parcel.Config, seal.Ref, error) {
		unlock, err := tree.Lock(filepath.Join(src.lock, tree.FlockFile), true)
		if errors.Is(err, fs.ErrNotExist) {
			err = src.ErrAbsent()
		}
		if err != nil {
			return nil, seal.Ref{}, err
		}
		defer unlock()
		head, cfg, err := src.Published(o.Version)
		if err != nil {
			return nil, seal.Ref{}, err
		}
		root, err := src.OpenRoot(ctx, src, cfg, head.Keyroot)
		if err != nil {
			return nil, seal.Ref{}, err
		}
		copied := *cfg
		// Its sources have this parcel's content, under this parcel's name.
		copied.Src = nil
		copied.Other = slices.DeleteFunc(slices.Clone(cfg.Other), func(f parcel.Field) bool { return f.Key == formerKey })
		if o.Comment != "" {
			copied.Comment = parcel.Clean(o.Comment)
			b.comment = copied.Comment
		}
		keyroot := head.Keyroot
		made := keyring.Scratch{}
		resized, err := src.resized(ctx, made, &copied, root, o)
		if err != nil {
			return nil, seal.Ref{}, err
		}
		if resized != nil {
			root = resized
			var sealed []byte
			if keyroot, sealed, err = keyring.SealRoot(copied.Sealer(), root); err != nil {
				return nil, seal.Ref{}, err
			}
			made.Put(ctx, keyroot.Tag, sealed)
		}
		put := func(tag seal.Tag) error {
			if sealed, ok := made[tag]; ok {
				return b.Put(ctx, tag, sealed)
			}
			return src.share(tag, b)
		}
		for _, ref := range []seal.Ref{keyroot, root.Cfg} {
			if !ref.IsNil() {
				if err := put(ref.Tag); err != nil {
					return nil, seal.Ref{}, err
				}
			}
		}
		var before, total int64
		for _, im := range root.Images {
			total += im.Size
		}
		// A block may be referred to any number of times.
		walked := make(map[levelKey]bool)
		for _, im := range root.Images {
			err := keyring.Walk(ctx, cfg.Sealer(), made.Before(src), im, func(level int, n int64, ref seal.Ref) error {
				if at := (levelKey{ref.Tag.MapKey(), int8(level)}); level > 0 {
					if walked[at] {
						return keyring.SkipBelow
					}
					walked[at] = true
				}
				if level == 0 && o.Progress != nil {
					o.Progress(before+n*int64(im.ChunkSize), total)
				}
				return put(ref.Tag)
			})
			if err != nil {
				return nil, seal.Ref{}, err
			}
			before += im.Size
		}
		if o.Progress != nil {
			o.Progress(total, total)
		}
		return &copied, keyroot, nil
	}
}

// share makes an object of p one of b's too: by a hard link, or where there
// can be none (another file system, another owner, too many links), by a
// verified copy.
func (p *Parcel) share(tag seal.Tag, b *building) error {
	from := filepath.Join(p.HdkDir(), tree.ObjectName(tag))
	fi, err := os.Lstat(from)
	if errors.Is(err, fs.ErrNotExist) {
		return parcel.NewError(parcel.Damaged, "object %s: is missing", tag)
	}
	if err == nil && !fi.Mode().IsRegular() {
		err = parcel.NewError(parcel.Damaged, "object %s: not a file", tag)
	}
	if err != nil {
		return err
	}
	return b.add(tag, func(path string) (int64, error) {
		err := os.Link(from, path)
		if errors.Is(err, syscall.EXDEV) || errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.EMLINK) {
			return tree.CopyObject(from, path, tag)
		}
		if err == nil {
			err = b.take(fi.Size()) // no space, but room of the quota
		}
		return 0, err
	})
}
