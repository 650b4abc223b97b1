// Package export writes the disk of a version out of a store, in plain: into a
// file, sparse, or as a stream.
//
// Every chunk is verified by tag and key before it is written. Other formats
// than raw are package diskimage's.
package export

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"runtime"
	"sync"

	"isr/store"
	"isr/store/keyring"
	"isr/store/parcel"
	"isr/store/seal"
	"isr/store/tree"
)

// Disk writes the disk of version v, 0 for the head, into the regular file
// w: raw and sparse, every chunk verified by tag and key. What w held is lost.
func Disk(ctx context.Context, p *store.Parcel, w *os.File, v int, progress func(done, total int64)) error {
	cfg, im, err := diskOf(ctx, p, v)
	if err != nil {
		return err
	}
	if fi, err := w.Stat(); err != nil || fi.Mode().Type() != 0 {
		if err == nil {
			err = &fs.PathError{Op: "export", Path: w.Name(), Err: fs.ErrInvalid}
		}
		return p.Wrap(err)
	}
	// To nothing first, so that what is not written is a hole.
	for _, size := range []int64{0, im.Size} {
		if err := w.Truncate(size); err != nil {
			return p.Wrap(err)
		}
	}
	chunk := int64(im.ChunkSize)
	sealer := cfg.Sealer()
	var mu sync.Mutex
	var farthest int64
	var walkErr error
	err = tree.Parallel(ctx, runtime.GOMAXPROCS(0), chunks(ctx, p, sealer, im, &walkErr), func(ctx context.Context, n int64, ref seal.Ref) error {
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
		return p.Wrap(err)
	}
	if progress != nil {
		progress(im.Size, im.Size)
	}
	return nil
}

// Stream writes the disk of version v, 0 for the head, to w from its first byte
// to its last, verified as Disk does.
func Stream(ctx context.Context, p *store.Parcel, w io.Writer, v int, progress func(done, total int64)) error {
	cfg, im, err := diskOf(ctx, p, v)
	if err != nil {
		return err
	}
	chunk, sealer := int64(im.ChunkSize), cfg.Sealer()
	zeros := make([]byte, chunk)
	done := int64(0)
	write := func(b []byte) error {
		n, err := w.Write(b[:min(int64(len(b)), im.Size-done)])
		done += int64(n)
		if progress != nil {
			progress(done, im.Size)
		}
		return err
	}
	upTo := func(end int64) error {
		for done < end {
			if err := ctx.Err(); err != nil {
				return err
			}
			if err := write(zeros); err != nil {
				return err
			}
		}
		return nil
	}
	var walkErr error
	for n, ref := range chunks(ctx, p, sealer, im, &walkErr) {
		if err := upTo(n * chunk); err != nil {
			return p.Wrap(err)
		}
		sealed, err := p.Get(ctx, ref.Tag)
		if err != nil {
			return p.Wrap(err)
		}
		plain, err := sealer.Unseal(ref, sealed, im.ChunkSize)
		if err != nil {
			return p.Wrap(fmt.Errorf("chunk %d: %w", n, err))
		}
		if err := write(plain); err != nil {
			return p.Wrap(err)
		}
	}
	if walkErr != nil {
		return p.Wrap(walkErr)
	}
	if err := upTo(im.Size); err != nil {
		return p.Wrap(err)
	}
	return nil
}

// diskOf is the disk of version v, 0 for the head.
func diskOf(ctx context.Context, p *store.Parcel, v int) (*parcel.Config, keyring.Image, error) {
	rec, cfg, err := p.Published(v)
	if err != nil {
		return nil, keyring.Image{}, err
	}
	root, err := p.OpenRoot(ctx, p, cfg, rec.Keyroot)
	if err != nil {
		return nil, keyring.Image{}, err
	}
	im, ok := root.Image(keyring.Disk)
	if !ok {
		return nil, im, p.Errorf(parcel.Damaged, "version %d: root block names no disk", rec.Version)
	}
	return cfg, im, nil
}

// chunks are the chunks of im that are not zeros, ascending. What ends it
// early is in *failed.
func chunks(ctx context.Context, p *store.Parcel, s seal.Sealer, im keyring.Image, failed *error) iter.Seq2[int64, seal.Ref] {
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
