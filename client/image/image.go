// Package image shows a parcel's disk or memory as a flat byte array:
// pristine chunks below, an overlay of modified sectors above.
//
// A read takes each sector from the overlay if it is there, else from its
// chunk, which is got by tag, verified, unsealed and verified again. A write
// goes to the overlay and fetches nothing, unless it covers only a part of a
// sector of 512 bytes. What Flush has acknowledged survives a kill and a
// power cut. Plaintext is in memory only.
//
// A read lasts as long as the getter does: with the network away it waits,
// and no other read with it, until its context is done. An error of one read
// is not remembered: the next one tries again. A write or a flush that fails
// taints the overlay; see Overlay.Tainted.
//
// The package does not decide where objects come from (a Getter does), nor
// what a version is.
package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"syscall"

	"isr/store/keyring"
	"isr/store/seal"
)

// Refs is the pristine image: the reference of each chunk. *keyring.Tree is
// one. It may block on the network.
type Refs interface {
	Ref(ctx context.Context, n int64) (seal.Ref, error)
}

// Getter gets sealed objects by tag. It may block for as long as the network
// is away. What it returns is verified here, and not changed.
type Getter interface {
	Get(ctx context.Context, tag seal.Tag) ([]byte, error)
}

// Config says what an Image is made of. All but Name, CacheBytes, Save and
// OnTouch is needed.
type Config struct {
	Name      string // for messages
	Size      int64  // bytes
	ChunkSize int    // bytes, as in the keyring
	Sealer    seal.Sealer
	Refs      Refs
	Getter    Getter
	Overlay   *Overlay // of the same size and chunk size; the caller closes it

	// CacheBytes bounds the unsealed chunks kept; 0 is 16 MiB.
	CacheBytes int64
	// Save prepares for BeginSave: for each page handed out, 16 bytes are
	// kept.
	Save bool
	// OnTouch, if set, is told each chunk that a reader asks for the first
	// time, before it is fetched. It must return at once.
	OnTouch func(n int64)
}

// Image is one image of a parcel. Methods are safe for concurrent use.
type Image struct {
	c       Config
	overlay *Overlay
	fetcher *fetcher
	counts  counts
	pages   *pageTable // nil unless Config.Save
	saving  atomic.Bool

	touched  bitset // chunks asked for by a reader or written
	modified bitset // chunks written since New
	trace    trace

	mapOnce sync.Once
	before  bitset // chunks modified before the first Map
}

// New returns the image. Close it before its overlay.
func New(c Config) *Image {
	if err := keyring.CheckChunkSize(c.ChunkSize); err != nil {
		panic("image " + c.Name + ": " + err.Error())
	}
	if c.Overlay.Size() != c.Size || c.Overlay.chunk != c.ChunkSize {
		panic("image " + c.Name + ": overlay of another geometry")
	}
	if c.CacheBytes == 0 {
		c.CacheBytes = 16 << 20
	}
	im := &Image{c: c, overlay: c.Overlay}
	im.touched = newBitset(im.Chunks())
	im.modified = newBitset(im.Chunks())
	im.counts.seen = newBitset(im.Chunks())
	im.fetcher = newFetcher(im)
	if c.Save {
		im.pages = newPageTable()
	}
	return im
}

// Size is the size in bytes.
func (im *Image) Size() int64 { return im.c.Size }

// Chunks is the number of chunks, the last of which may be short.
func (im *Image) Chunks() int64 {
	return (im.c.Size + int64(im.c.ChunkSize) - 1) / int64(im.c.ChunkSize)
}

// Close cancels what is being fetched and waits for it to end.
func (im *Image) Close() { im.fetcher.close() }

// Tainted is the overlay's Tainted.
func (im *Image) Tainted() error { return im.overlay.Tainted() }

func (im *Image) wrap(op string, off int64, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("image %s: %s at %d: %w", im.c.Name, op, off, err)
}

// ReadAt fills p from off. It is short, with io.EOF, only at the image's end;
// with any other error what is in p is undefined.
func (im *Image) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, im.wrap("read", off, syscall.EINVAL)
	}
	var eof error
	if left := im.c.Size - off; int64(len(p)) > left {
		if left <= 0 {
			return 0, io.EOF
		}
		p, eof = p[:left], io.EOF
	}
	if len(p) == 0 {
		return 0, eof
	}
	im.counts.reads.Add(1)
	im.counts.readBytes.Add(int64(len(p)))
	giveUp := im.fetcher.untilSave() // before the look at saving, to miss none
	err := errOvertaken
	if !im.saving.Load() {
		err = im.read(ctx, giveUp, p, off, true)
	}
	if errors.Is(err, errOvertaken) {
		if err := im.readSaving(ctx, p, off); err != nil {
			return 0, im.wrap("read", off, err)
		}
		return len(p), eof
	}
	if err != nil {
		return 0, im.wrap("read", off, err)
	}
	if im.pages != nil {
		im.pages.handedOut(p, off, im.c.Size)
	}
	return len(p), eof
}

// read fills p; the range is within the image. touch says that a guest asks;
// giveUp is as in fetcher.chunk.
func (im *Image) read(ctx context.Context, giveUp <-chan struct{}, p []byte, off int64, touch bool) error {
	chunk := int64(im.c.ChunkSize)
	first, last := off/chunk, (off+int64(len(p))-1)/chunk
	if touch {
		for n := first; n <= last; n++ {
			im.touchRead(n)
		}
	}
	if first == last {
		return im.readChunk(ctx, giveUp, p, off)
	}
	// The parts that need the network go on together.
	var wg sync.WaitGroup
	errs := make([]error, last-first+1)
	for n := first; n <= last; n++ {
		from, to := max(off, n*chunk), min(off+int64(len(p)), (n+1)*chunk)
		part := p[from-off : to-off]
		if n == last || im.covered(from, to) || im.fetcher.cached(n) {
			errs[n-first] = im.readChunk(ctx, giveUp, part, from)
			continue
		}
		wg.Go(func() { errs[n-first] = im.readChunk(ctx, giveUp, part, from) })
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// covered reports whether the overlay holds all of bytes [from, to).
func (im *Image) covered(from, to int64) bool {
	return im.overlay.set.all(from/sectorSize, (to+sectorSize-1)/sectorSize)
}

// readChunk fills p, which lies within one chunk.
func (im *Image) readChunk(ctx context.Context, giveUp <-chan struct{}, p []byte, off int64) error {
	end := off + int64(len(p))
	if err := im.overlay.vouchFor(off, end); err != nil {
		return err
	}
	var below []byte // the pristine chunk, nil for zeros
	chunk := int64(im.c.ChunkSize)
	if !im.covered(off, end) {
		var err error
		if below, err = im.fetcher.chunk(ctx, giveUp, off/chunk); err != nil {
			return err
		}
	}
	return im.merge(p, off, below)
}

// merge fills p, which lies within one chunk, from the overlay and else from
// below, that pristine chunk (nil: zeros).
func (im *Image) merge(p []byte, off int64, below []byte) error {
	end := off + int64(len(p))
	chunk := int64(im.c.ChunkSize)
	lastSector := (end + sectorSize - 1) / sectorSize
	for at := off; at < end; {
		n, in := im.overlay.set.run(at/sectorSize, lastSector)
		to := min(end, (at/sectorSize+n)*sectorSize)
		part := p[at-off : to-off]
		switch {
		case in:
			if err := im.readOverlay(part, at); err != nil {
				return err
			}
		case below == nil:
			clear(part)
		default:
			copy(part, below[at%chunk:])
		}
		at = to
	}
	return nil
}

// readOverlay fills p from modified sectors, of which it may begin and end
// inside one.
func (im *Image) readOverlay(p []byte, off int64) error {
	var sector [sectorSize]byte
	for len(p) > 0 {
		skip := off % sectorSize
		if skip == 0 && len(p) >= sectorSize {
			whole := len(p) / sectorSize * sectorSize
			if err := im.overlay.readSectors(p[:whole], off/sectorSize); err != nil {
				return err
			}
			p, off = p[whole:], off+int64(whole)
			continue
		}
		if err := im.overlay.readSectors(sector[:], off/sectorSize); err != nil {
			return err
		}
		n := copy(p, sector[skip:])
		p, off = p[n:], off+int64(n)
	}
	return nil
}

// WriteAt puts p at off, into the overlay. What lies past the end of the
// image is left out, with ENOSPC. A context that is done ends the wait for
// the pristine chunk, which only a write of a part of a sector can need.
func (im *Image) WriteAt(ctx context.Context, p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, im.wrap("write", off, syscall.EINVAL)
	}
	var short error
	if left := im.c.Size - off; int64(len(p)) > left {
		short = im.wrap("write", off, syscall.ENOSPC)
		if left <= 0 {
			return 0, short
		}
		p = p[:left]
	}
	if len(p) == 0 {
		return 0, short
	}
	im.counts.writes.Add(1)
	im.counts.writtenBytes.Add(int64(len(p)))
	if im.pages != nil {
		im.pages.changing(off, int64(len(p)))
	}
	if err := im.write(ctx, p, off); err != nil {
		return 0, im.wrap("write", off, err)
	}
	return len(p), short
}

func (im *Image) write(ctx context.Context, p []byte, off int64) error {
	end := off + int64(len(p))
	chunk := int64(im.c.ChunkSize)
	for n := off / chunk; n*chunk < end; n++ {
		im.touchWrite(n)
	}
	// A sector cut short by the end of the image is whole: zeros follow.
	head := off%sectorSize != 0
	tail := end%sectorSize != 0 && end != im.c.Size
	if !head && !tail && len(p)%sectorSize == 0 {
		im.overlay.partial.RLock()
		defer im.overlay.partial.RUnlock()
		return im.overlay.writeSectors(p, off/sectorSize)
	}
	first, last := off/sectorSize, (end-1)/sectorSize // sectors
	buf := make([]byte, (last-first+1)*sectorSize)
	// Wait for the network without the lock.
	edge := func(sector int64) ([]byte, error) {
		if im.overlay.set.all(sector, sector+1) {
			return nil, nil
		}
		n := sector * sectorSize / chunk
		return im.fetcher.chunk(ctx, nil, n)
	}
	var below [2][]byte
	var err error
	if head || tail && first == last {
		if below[0], err = edge(first); err != nil {
			return err
		}
	}
	if tail && first != last {
		if below[1], err = edge(last); err != nil {
			return err
		}
	}
	im.overlay.partial.Lock()
	defer im.overlay.partial.Unlock()
	fill := func(sector int64, below []byte) error {
		at := sector * sectorSize
		part := buf[(sector-first)*sectorSize:][:min(sectorSize, im.c.Size-at)]
		return im.merge(part, at, below)
	}
	if head || tail && first == last {
		if err := fill(first, below[0]); err != nil {
			return err
		}
	}
	if tail && first != last {
		if err := fill(last, below[1]); err != nil {
			return err
		}
	}
	copy(buf[off-first*sectorSize:], p)
	return im.overlay.writeSectors(buf, first)
}

// Flush returns when all writes that were complete at the call are durable.
// ctx does not cut it short.
func (im *Image) Flush(context.Context) error {
	im.counts.flushes.Add(1)
	return im.overlay.Flush()
}

func (im *Image) touchRead(n int64) {
	if im.touched.set(n) {
		im.counts.touched.Add(1)
		im.trace.add(n)
		if im.c.OnTouch != nil {
			im.c.OnTouch(n)
		}
	}
}

func (im *Image) touchWrite(n int64) {
	if im.touched.set(n) {
		im.counts.touched.Add(1)
		im.counts.firstWrites.Add(1)
	}
	if im.modified.set(n) {
		im.counts.modified.Add(1)
	}
}

// bitset is a fixed number of bits.
type bitset []atomic.Uint64

func newBitset(n int64) bitset { return make(bitset, (n+63)/64) }

// set sets bit n and reports whether it was clear.
func (b bitset) set(n int64) bool {
	mask := uint64(1) << (n % 64)
	return b[n/64].Load()&mask == 0 && b[n/64].Or(mask)&mask == 0
}

// has reports whether bit n is set.
func (b bitset) has(n int64) bool { return b[n/64].Load()&(1<<(n%64)) != 0 }
