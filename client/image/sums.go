package image

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"runtime"
	"slices"
	"sync"

	"isr/store/seal"
)

// sumSize is the size of a chunk's sum: half an HMAC-SHA-256, in bytes.
const sumSize = 16

type chunkSum [sumSize]byte

// sums are what an overlay that lies at rest is checked by: of each modified
// chunk, the HMAC-SHA-256 of its number, its bits of the map and its modified
// sectors as they are on disk. They are made when an overlay that was written
// to is closed, and taken away before the first write after that, so they are
// true whenever they are there: what does not match has changed underneath.
// After a kill or a power cut there are none, and what is there is trusted,
// as it is without them.
//
//	NAME.sums:  0  8  "isrSUMS1"
//	            8  8  number of entries
//	           16 32  HMAC-SHA-256 of the rest, the number in front
//	           48     entries, ascending: number of the chunk, 8; its sum, 16
//	                  then zeros up to a sector's end
type sums struct {
	of      map[int64]chunkSum
	known   bitset // chunks found to match, or written to: looked at no more
	written bitset // chunks written to since: the sum is void
}

const (
	sumsMagic = "isrSUMS1"
	sumsHead  = 48
	sumsEntry = 8 + sumSize
)

// ErrChanged is wrapped by the error for a modified chunk that is not what it
// was when the overlay was closed.
var ErrChanged error = changed{}

type changed struct{}

func (changed) Error() string { return "changed since it was written" }
func (changed) Unwrap() error { return seal.ErrCorrupt }

// loadSums reads the sums of a non-empty overlay, if it has any. Sums that
// cannot be read are remembered as SumsError, and do without.
func (o *Overlay) loadSums() error {
	f, err := o.disk.Open(o.name + ".sums")
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	o.summed.Store(true)
	of, err := o.readSums(f)
	if err != nil {
		o.sumsErr = fmt.Errorf("overlay %s: sums: %w", o.name, err)
		return nil
	}
	n := o.chunks()
	o.sums = &sums{of: of, known: newBitset(n), written: newBitset(n)}
	return nil
}

func (o *Overlay) chunks() int64 { return (o.size + int64(o.chunk) - 1) / int64(o.chunk) }

func (o *Overlay) readSums(f io.ReaderAt) (map[int64]chunkSum, error) {
	head := make([]byte, sumsHead)
	if _, err := f.ReadAt(head, 0); err != nil {
		return nil, err
	}
	count := binary.LittleEndian.Uint64(head[8:])
	if string(head[:8]) != sumsMagic || count > uint64(o.chunks()) {
		return nil, seal.ErrCorrupt
	}
	entries := make([]byte, count*sumsEntry)
	if _, err := f.ReadAt(entries, sumsHead); err != nil && len(entries) > 0 {
		return nil, err
	}
	if !hmac.Equal(head[16:], o.sumsMAC(head[8:16], entries)) {
		return nil, seal.ErrCorrupt
	}
	of := make(map[int64]chunkSum, count)
	for ; len(entries) > 0; entries = entries[sumsEntry:] {
		of[int64(binary.LittleEndian.Uint64(entries))] = chunkSum(entries[8:])
	}
	return of, nil
}

func (o *Overlay) sumsMAC(parts ...[]byte) []byte {
	h := hmac.New(sha256.New, o.sumKey)
	h.Write([]byte(sumsMagic))
	for _, p := range parts {
		h.Write(p)
	}
	return h.Sum(nil)
}

// sumChunk is the sum of chunk n as it is now; buf is room for a chunk. The
// caller holds files, and nobody writes to the chunk.
func (o *Overlay) sumChunk(n int64, buf []byte) (sum chunkSum, err error) {
	per := int64(o.chunk / sectorSize)
	first, last := n*per, min((n+1)*per, o.sectors())
	h := hmac.New(sha256.New, o.sumKey)
	binary.Write(h, binary.LittleEndian, n)
	h.Write(o.set.bits(n))
	for at := first; at < last; {
		count, in := o.set.run(at, last)
		if in {
			p := buf[:count*sectorSize]
			if k, err := o.data.ReadAt(p, at*sectorSize); k < len(p) {
				if err == nil || err == io.EOF {
					err = io.ErrUnexpectedEOF
				}
				return sum, fmt.Errorf("%v: %w", err, ErrChanged)
			}
			h.Write(p)
		}
		at += count
	}
	copy(sum[:], h.Sum(nil))
	return sum, nil
}

// compare says whether chunk n is what its sum says; without sums, whether it
// can be read.
func (o *Overlay) compare(n int64, buf []byte) error {
	sum, err := o.sumChunk(n, buf)
	if err != nil || o.sums == nil {
		return err
	}
	if want, ok := o.sums.of[n]; ok != (o.set.any(n)) || ok && want != sum {
		return ErrChanged
	}
	return nil
}

// vouchFor is vouch for a read of bytes [from, to), whether they are modified
// or not: a bit of the map may be what is wrong.
func (o *Overlay) vouchFor(from, to int64) error {
	o.files.RLock()
	defer o.files.RUnlock()
	if o.data == nil {
		return nil
	}
	return o.vouch(from/sectorSize, (to+sectorSize-1)/sectorSize, false)
}

// vouch makes sure, at the first use of each chunk of sectors [first, last),
// that it is what it was when the overlay was closed. For a write its sum is
// void from now on, and a chunk that is written whole is not looked at. The
// caller holds files.
func (o *Overlay) vouch(first, last int64, write bool) error {
	if o.sums == nil {
		return nil
	}
	per := int64(o.chunk / sectorSize)
	for n := first / per; n*per < last; n++ {
		if !o.sums.known.has(n) {
			// What is about to be written over may be whatever it is.
			over := write && first <= n*per && min((n+1)*per, o.sectors()) <= last
			if err := o.vouchChunk(n, over); err != nil {
				return fmt.Errorf("overlay %s: chunk %d: %w", o.name, n, err)
			}
		}
		if write {
			o.sums.written.set(n)
		}
	}
	return nil
}

func (o *Overlay) vouchChunk(n int64, over bool) error {
	// Whoever writes to the chunk comes through here first, so it stays as it
	// is while it is looked at.
	mu := &o.vouching[n%int64(len(o.vouching))]
	mu.Lock()
	defer mu.Unlock()
	if o.sums.known.has(n) {
		return nil
	}
	if !over {
		if err := o.compare(n, make([]byte, o.chunk)); err != nil {
			return err
		}
	}
	o.sums.known.set(n)
	return nil
}

// dropSums takes the sums off the disk, before the first write makes them
// untrue.
func (o *Overlay) dropSums() error {
	if !o.summed.Load() {
		return nil
	}
	o.summing.Lock()
	defer o.summing.Unlock()
	if !o.summed.Load() {
		return nil
	}
	if err := o.disk.Remove(o.name + ".sums"); err != nil {
		return err
	}
	o.summed.Store(false)
	return nil
}

// Summed reports whether there are sums to check the overlay by. Without
// them, as after a kill, a check can tell only what cannot be read.
func (o *Overlay) Summed() bool { return o.sums != nil }

// SumsError is why sums that are there cannot be used, or nil.
func (o *Overlay) SumsError() error { return o.sumsErr }

// Check looks at every modified chunk, on all cores, and tells report of each
// that is not what it was when the overlay was last closed, or cannot be
// read; one call at a time, in no order. progress, if not nil, is told chunks
// done and to do. Nothing may be written meanwhile.
func (o *Overlay) Check(ctx context.Context, report func(n int64, err error), progress func(done, total int64)) error {
	o.files.RLock()
	defer o.files.RUnlock()
	if o.data == nil {
		return nil
	}
	nums := slices.Collect(o.Modified())
	if o.sums != nil {
		for n := range o.sums.of {
			if !o.set.any(n) {
				nums = append(nums, n)
			}
		}
	}
	return o.each(ctx, nums, func(n int64, buf []byte) (func(), error) {
		err := o.compare(n, buf)
		return func() {
			if err != nil {
				report(n, err)
			}
		}, nil
	}, progress)
}

// each calls f for chunks on all cores, and what it returns one at a time.
func (o *Overlay) each(ctx context.Context, nums []int64, f func(n int64, buf []byte) (func(), error), progress func(done, total int64)) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	work := make(chan int64)
	go func() {
		defer close(work)
		for _, n := range nums {
			select {
			case work <- n:
			case <-ctx.Done():
				return
			}
		}
	}()
	var wg sync.WaitGroup
	var mu sync.Mutex
	done := int64(0)
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			buf := make([]byte, o.chunk)
			for n := range work {
				then, err := f(n, buf)
				if err != nil {
					cancel(err)
					return
				}
				mu.Lock()
				then()
				done++
				if progress != nil {
					progress(done, int64(len(nums)))
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return context.Cause(ctx)
}

// Revert forgets what was modified of chunks: they are pristine again,
// durably. It may be interrupted and repeated; Check then reports what is
// left. Nothing else may use the overlay meanwhile.
func (o *Overlay) Revert(ctx context.Context, nums []int64) error {
	if o.data == nil {
		return nil
	}
	per := int64(o.chunk / sectorSize)
	for _, n := range nums {
		o.set.clear(n*per, min((n+1)*per, o.sectors()))
	}
	// The sums stay until the bits are durable: a chunk whose bits are gone
	// does not match them either.
	o.unsynced.Store(true)
	if err := o.Flush(); err != nil {
		return err
	}
	if o.sums != nil {
		for _, n := range nums {
			delete(o.sums.of, n)
		}
	}
	return o.Sum(ctx)
}

// Sum makes sums of what is there now, and has it durable before.
func (o *Overlay) Sum(ctx context.Context) error {
	if err := o.Flush(); err != nil {
		return err
	}
	o.files.RLock()
	defer o.files.RUnlock()
	if o.data == nil {
		return nil
	}
	of := make(map[int64]chunkSum)
	var nums []int64
	if o.sums != nil {
		for n, sum := range o.sums.of {
			if !o.sums.written.has(n) {
				of[n] = sum // perhaps not looked at yet
			}
		}
	}
	for n := range o.Modified() {
		if o.sums == nil || o.sums.written.has(n) {
			nums = append(nums, n)
		}
	}
	err := o.each(ctx, nums, func(n int64, buf []byte) (func(), error) {
		sum, err := o.sumChunk(n, buf)
		return func() { of[n] = sum }, err
	}, nil)
	if err != nil {
		return err
	}
	if err := o.writeSums(of); err != nil {
		return err
	}
	n := o.chunks()
	o.sums, o.sumsErr = &sums{of: of, known: newBitset(n), written: newBitset(n)}, nil
	return nil
}

func (o *Overlay) writeSums(of map[int64]chunkSum) error {
	nums := make([]int64, 0, len(of))
	for n := range of {
		nums = append(nums, n)
	}
	slices.Sort(nums)
	p := bytes.NewBuffer(make([]byte, sumsHead, sumsHead+len(of)*sumsEntry+sectorSize))
	for _, n := range nums {
		sum := of[n]
		binary.Write(p, binary.LittleEndian, n)
		p.Write(sum[:])
	}
	b := p.Bytes()
	copy(b, sumsMagic)
	binary.LittleEndian.PutUint64(b[8:], uint64(len(nums)))
	copy(b[16:], o.sumsMAC(b[8:16], b[sumsHead:]))
	b = append(b, make([]byte, (sectorSize-len(b)%sectorSize)%sectorSize)...)
	o.summing.Lock()
	defer o.summing.Unlock()
	f, err := o.disk.Create(o.name+".sums", b, int64(len(b)))
	if err != nil {
		return fmt.Errorf("overlay %s: %w", o.name, err)
	}
	o.summed.Store(true)
	return f.Close()
}
