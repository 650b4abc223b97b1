package image

import (
	"context"
	"fmt"
	"runtime"
	"sync"

	"isr/store/seal"
)

// Seal seals every modified chunk, on all cores, and gives each to put: its
// number, its new reference and the object. sealed is nil where there is
// nothing to store: the chunk is zeros (ref is nil), or it is what it was (ref
// is the pristine one). put is called concurrently, in no order, may keep
// sealed, and ends the work by an error. progress, if not nil, is told chunks
// done and to do, one call at a time.
//
// A chunk of which a part was modified needs its pristine rest from the
// getter; one wholly overwritten fetches nothing. Chunks written meanwhile may
// be taken before or after: have the guest stopped. Nothing is flushed and the
// overlay stays as it is: the caller resets it once its new version is safe.
func (im *Image) Seal(ctx context.Context, put func(ctx context.Context, n int64, ref seal.Ref, sealed []byte) error, progress func(done, total int64)) error {
	if err := im.Tainted(); err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	total := im.overlay.ModifiedCount()
	nums := make(chan int64)
	go func() {
		defer close(nums)
		for n := range im.overlay.Modified() {
			select {
			case nums <- n:
			case <-ctx.Done():
				return
			}
		}
	}()
	var (
		wg   sync.WaitGroup
		mu   sync.Mutex
		done int64
	)
	// One more than the cores, for what waits on the getter.
	for range runtime.GOMAXPROCS(0) + 1 {
		wg.Go(func() {
			plain := make([]byte, im.c.ChunkSize)
			for n := range nums {
				ref, sealed, err := im.sealChunk(ctx, n, plain)
				if err == nil {
					err = put(ctx, n, ref, sealed)
				}
				if err != nil {
					cancel(fmt.Errorf("image %s: seal chunk %d: %w", im.c.Name, n, err))
					return
				}
				mu.Lock()
				done++
				if progress != nil {
					progress(done, max(total, done))
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return context.Cause(ctx)
}

// sealChunk seals chunk n as it is now; plain is room for it.
func (im *Image) sealChunk(ctx context.Context, n int64, plain []byte) (seal.Ref, []byte, error) {
	off := n * int64(im.c.ChunkSize)
	size := min(int64(im.c.ChunkSize), im.c.Size-off)
	clear(plain[size:]) // a short last chunk is padded with zeros
	if err := im.readChunk(ctx, nil, plain[:size], off); err != nil {
		return seal.Ref{}, nil, err
	}
	if seal.Zero(plain) {
		return seal.Ref{}, nil, nil
	}
	was, err := im.c.Refs.Ref(ctx, n)
	if err != nil {
		return seal.Ref{}, nil, err
	}
	if !was.IsNil() && im.c.Sealer.Key(plain) == was.Key {
		return was, nil, nil
	}
	return im.c.Sealer.Seal(plain)
}
