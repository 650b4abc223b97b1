package store

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"isr/store/keyring"
	"isr/store/parcel"
	"isr/store/seal"
)

// Copy makes a parcel, with a UUID of its own, whose version 1 equals the head
// of another one, maybe another user's, which may be held. It shares the
// objects: they are hard links, and cost no space.
func (s *Store) Copy(ctx context.Context, fromUser, fromName, toUser, toName string) (*Parcel, error) {
	src, err := s.Parcel(fromUser, fromName)
	if err != nil {
		return nil, err
	}
	return s.create(ctx, toUser, toName, copied(src, 0))
}

// copied fills a parcel with version v of src, 0 for the head.
func copied(src *Parcel, v int) fill {
	return func(ctx context.Context, b *building) (*parcel.Config, seal.Ref, error) {
		unlock, err := lockFile(filepath.Join(src.lock, flockFile), true)
		if errors.Is(err, fs.ErrNotExist) {
			err = src.errAbsent()
		}
		if err != nil {
			return nil, seal.Ref{}, err
		}
		defer unlock()
		head, cfg, err := src.published(v)
		if err != nil {
			return nil, seal.Ref{}, err
		}
		root, err := src.openRoot(ctx, src, cfg, head.keyroot)
		if err != nil {
			return nil, seal.Ref{}, err
		}
		for _, ref := range []seal.Ref{head.keyroot, root.Cfg} {
			if !ref.IsNil() {
				if err := src.share(ref.Tag, b); err != nil {
					return nil, seal.Ref{}, err
				}
			}
		}
		for _, im := range root.Images {
			err := keyring.Walk(ctx, cfg.Sealer(), src, im, func(_ int, _ int64, ref seal.Ref) error {
				return src.share(ref.Tag, b)
			})
			if err != nil {
				return nil, seal.Ref{}, err
			}
		}
		copied := *cfg
		// Its sources have this parcel's content, under this parcel's name.
		copied.Src = nil
		return &copied, head.keyroot, nil
	}
}

// share makes an object of p one of b's too: by a hard link, or where there
// can be none (another file system, another owner, too many links), by a
// verified copy.
func (p *Parcel) share(tag seal.Tag, b *building) error {
	from := filepath.Join(p.hdk(), objectName(tag))
	fi, err := os.Lstat(from)
	if errors.Is(err, fs.ErrNotExist) {
		return parcel.NewError(parcel.Damaged, "object %s: is missing", tag)
	}
	if err != nil {
		return err
	}
	return b.add(tag, func(path string) (int64, error) {
		err := os.Link(from, path)
		if errors.Is(err, syscall.EXDEV) || errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.EMLINK) {
			return copyObject(from, path, tag)
		}
		if err == nil {
			err = b.take(fi.Size()) // no space, but room of the quota
		}
		return 0, err
	})
}

func copyObject(from, to string, tag seal.Tag) (int64, error) {
	src, err := os.Open(from)
	if err != nil {
		return 0, err
	}
	defer src.Close()
	dst, err := os.OpenFile(to, os.O_RDWR|os.O_CREATE|os.O_EXCL, objectMode)
	if err != nil {
		return 0, err
	}
	defer dst.Close()
	n, err := io.Copy(dst, src)
	if err != nil {
		return 0, err
	}
	return n, verifyFile(dst, tag)
}
