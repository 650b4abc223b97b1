package store

import (
	"context"
	"fmt"
	"io/fs"
	"iter"
	"os"
	"runtime"
	"sync"

	"isr/store/keyring"
	"isr/store/parcel"
	"isr/store/seal"
)

// Export writes the disk of version v, 0 for the head, into the regular file
// w: raw and sparse, every chunk verified by tag and key. What w held is lost.
func (p *Parcel) Export(ctx context.Context, w *os.File, v int, progress func(done, total int64)) error {
	rec, cfg, err := p.published(v)
	if err != nil {
		return err
	}
	root, err := p.openRoot(ctx, p, cfg, rec.keyroot)
	if err != nil {
		return err
	}
	im, ok := root.Image(keyring.Disk)
	if !ok {
		return p.errorf(parcel.Damaged, "version %d: root block names no disk", rec.Version)
	}
	if fi, err := w.Stat(); err != nil || fi.Mode().Type() != 0 {
		if err == nil {
			err = &fs.PathError{Op: "export", Path: w.Name(), Err: fs.ErrInvalid}
		}
		return p.wrap(err)
	}
	// To nothing first, so that what is not written is a hole.
	for _, size := range []int64{0, im.Size} {
		if err := w.Truncate(size); err != nil {
			return p.wrap(err)
		}
	}
	chunk := int64(im.ChunkSize)
	sealer := cfg.Sealer()
	var mu sync.Mutex
	var farthest int64
	var walkErr error
	err = parallel(ctx, runtime.GOMAXPROCS(0), p.chunks(ctx, sealer, im, &walkErr), func(ctx context.Context, n int64, ref seal.Ref) error {
		sealed, err := p.Get(ctx, ref.Tag)
		if err != nil {
			return err
		}
		plain, err := sealer.Unseal(ref, sealed, im.ChunkSize)
		if err != nil {
			return fmt.Errorf("chunk %d: %w", n, err)
		}
		if _, err := w.WriteAt(plain[:min(int64(len(plain)), im.Size-n*chunk)], n*chunk); err != nil {
			return err
		}
		if progress != nil {
			mu.Lock()
			defer mu.Unlock()
			farthest = max(farthest, min((n+1)*chunk, im.Size))
			progress(farthest, im.Size)
		}
		return nil
	})
	if err == nil {
		err = walkErr
	}
	if err == nil {
		err = w.Sync()
	}
	if err != nil {
		return p.wrap(err)
	}
	if progress != nil {
		progress(im.Size, im.Size)
	}
	return nil
}

// chunks are the chunks of im that are not zeros, ascending. What ends it
// early is in *failed.
func (p *Parcel) chunks(ctx context.Context, s seal.Sealer, im keyring.Image, failed *error) iter.Seq2[int64, seal.Ref] {
	return func(yield func(int64, seal.Ref) bool) {
		stop := false
		err := keyring.Walk(ctx, s, p, im, func(level int, n int64, ref seal.Ref) error {
			if level == 0 && !stop && !yield(n, ref) {
				stop = true
			}
			if stop {
				return keyring.SkipBelow
			}
			return nil
		})
		if !stop {
			*failed = err
		}
	}
}
