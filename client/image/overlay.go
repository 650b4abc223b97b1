package image

import (
	"bytes"
	"context"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
)

// Overlay holds the modified sectors of one image in two files of a
// directory, encrypted; it survives a kill at any instant, and a power cut
// after Flush. Methods are safe for concurrent use.
//
// NAME.data is as long as the image, rounded up to sectors, and sparse; a
// modified sector is at its own offset, as XTS-AES-256 ciphertext with its
// number for a tweak. NAME.map is a header of 4096 bytes and then one bit for
// each sector, least significant first, 1 for modified; it is sparse too.
//
//	header:  0  8  "isrOVLY1"
//	         8  4  sector size, 512
//	        12  4  zero
//	        16  8  size of the image in bytes
//	        24 16  key check
//	        40 32  SHA-256 of bytes 0 to 39
//	        72     zeros
//
// Integers are little-endian. The XTS key and the key check come from the
// caller's key by HKDF-SHA-256, with the image's name in the info. Neither
// file exists before the first write. NAME.sums is to check an overlay at rest
// by; see sums.
//
// The order of writes makes it safe: data, its fdatasync, then the bits of
// that data, their fdatasync. So a bit never stands for a sector that is not
// there; and as bits are only added, a torn page of them is a state between
// two others.
type Overlay struct {
	disk  disk
	name  string
	size  int64
	chunk int
	crypt *sectorCipher
	head  []byte
	set   *sectorMap

	// files guards the two files, which the first write makes: held for
	// reading while they are used.
	files  sync.RWMutex
	data   file
	bits   file
	closed bool

	// partial is held for writing by whoever reads a sector, changes a part
	// of it and writes it back, and for reading by other writers.
	partial sync.RWMutex

	sumKey   []byte
	sums     *sums // nil: none, or of no use
	sumsErr  error // why they are of no use
	vouching [64]sync.Mutex
	summing  sync.Mutex
	summed   atomic.Bool // the file of sums is there
	wrote    atomic.Bool // anything, since it was opened

	unsynced atomic.Bool // data was written since the last fdatasync began
	tainted  atomic.Pointer[error]

	flushing sync.Mutex // held by the flush that is under way
	queue    sync.Mutex // guards next
	next     *flushCall // the flush that will begin after it
}

type flushCall struct {
	done chan struct{}
	err  error
}

// ErrOverlay is wrapped by errors for overlay files that cannot be used: of
// another size, key or format, or damaged.
var ErrOverlay = errors.New("unusable overlay")

var errClosed = errors.New("overlay is closed")

const overlayMagic = "isrOVLY1"

// OpenOverlay opens the overlay of the image called name in dir, or makes
// ready for an empty one. size is in bytes, chunkSize a chunk size as in the
// keyring, key at least 16 secret bytes, the same each time, of which nothing
// is kept in dir. The caller closes it.
func OpenOverlay(dir, name string, size int64, chunkSize int, key []byte) (*Overlay, error) {
	return openOverlay(osDisk{dir}, name, size, chunkSize, key)
}

func openOverlay(d disk, name string, size int64, chunkSize int, key []byte) (_ *Overlay, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("overlay %s: %w", name, err)
		}
	}()
	if size < 0 || chunkSize < 8*sectorSize || chunkSize > pageSectors*sectorSize || chunkSize&(chunkSize-1) != 0 {
		return nil, fmt.Errorf("%d bytes in chunks of %d: not possible", size, chunkSize)
	}
	if len(key) < 16 {
		return nil, fmt.Errorf("key of %d bytes: want 16 or more", len(key))
	}
	derived, err := hkdf.Key(sha256.New, key, nil, "isr overlay 1 "+name, 64+16+32)
	if err != nil {
		return nil, err
	}
	crypt, err := newSectorCipher(derived[:64])
	if err != nil {
		return nil, err
	}
	o := &Overlay{disk: d, name: name, size: size, chunk: chunkSize, crypt: crypt,
		head: overlayHead(size, derived[64:80]), set: newSectorMap(chunkSize), sumKey: derived[80:]}
	bits, err := d.Open(name + ".map")
	if errors.Is(err, fs.ErrNotExist) {
		return o, nil // data without a map was never flushed, or has been reset
	}
	if err != nil {
		return nil, err
	}
	if err := o.load(bits); err != nil {
		bits.Close()
		return nil, err
	}
	data, err := d.Open(name + ".data")
	if errors.Is(err, fs.ErrNotExist) && o.Empty() {
		bits.Close()
		return o, nil
	}
	if errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("%w: %w", err, ErrOverlay)
	}
	if err != nil {
		bits.Close()
		return nil, err
	}
	if err := o.loadSums(); err != nil {
		data.Close()
		bits.Close()
		return nil, err
	}
	o.data, o.bits = data, bits
	return o, nil
}

func overlayHead(size int64, check []byte) []byte {
	h := make([]byte, pageBytes)
	copy(h, overlayMagic)
	binary.LittleEndian.PutUint32(h[8:], sectorSize)
	binary.LittleEndian.PutUint64(h[16:], uint64(size))
	copy(h[24:40], check)
	sum := sha256.Sum256(h[:40])
	copy(h[40:], sum[:])
	return h
}

// load checks the header and reads the pages that are there.
func (o *Overlay) load(f file) error {
	page := make([]byte, pageBytes)
	for _, off := range []int64{pageBytes * o.pages(), 0} { // last page first: it may not be cut short
		if n, err := f.ReadAt(page, off); n < pageBytes {
			if err == io.EOF {
				err = fmt.Errorf("map cut short: %w", ErrOverlay)
			}
			return err
		}
	}
	if !bytes.Equal(page, o.head) {
		sum := sha256.Sum256(page[:40])
		switch {
		case string(page[:len(overlayMagic)]) != overlayMagic:
			return fmt.Errorf("map without magic: %w", ErrOverlay)
		case !bytes.Equal(sum[:], page[40:72]):
			return fmt.Errorf("map header damaged: %w", ErrOverlay)
		case !bytes.Equal(page[24:40], o.head[24:40]):
			return fmt.Errorf("made with another key: %w", ErrOverlay)
		case !bytes.Equal(page[16:24], o.head[16:24]):
			return fmt.Errorf("image of %d bytes, not %d: %w",
				binary.LittleEndian.Uint64(page[16:24]), o.size, ErrOverlay)
		}
		return fmt.Errorf("map header of another format: %w", ErrOverlay)
	}
	for off := int64(pageBytes); ; {
		from, to, err := f.Data(off)
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		for off = from / pageBytes * pageBytes; off < to; off += pageBytes {
			if off < pageBytes {
				continue
			}
			if off/pageBytes > o.pages() {
				return nil
			}
			if n, err := f.ReadAt(page, off); n < pageBytes {
				return err
			}
			p := new(mapPage)
			p.decode(page)
			first := (off/pageBytes - 1) * pageSectors
			if end := o.sectors() - first; end < pageSectors && p.count(end, pageSectors) > 0 {
				return fmt.Errorf("map marks what is past the end: %w", ErrOverlay)
			}
			if *p != (mapPage{}) {
				o.set.load(off/pageBytes-1, p)
			}
		}
	}
}

// sectors is the number of sectors of the image, the last of which may be
// short.
func (o *Overlay) sectors() int64 { return (o.size + sectorSize - 1) / sectorSize }

// pages is the number of pages of the map.
func (o *Overlay) pages() int64 { return (o.sectors() + pageSectors - 1) / pageSectors }

// Empty reports whether nothing is modified.
func (o *Overlay) Empty() bool { return o.set.modified() == 0 }

// Modified gives the numbers of the chunks of which any sector is modified,
// ascending.
func (o *Overlay) Modified() iter.Seq[int64] { return o.set.modifiedChunks() }

// ModifiedCount is how many they are.
func (o *Overlay) ModifiedCount() int64 { return o.set.modified() }

// Covers reports whether all of chunk n is modified: nothing of what it was is
// needed.
func (o *Overlay) Covers(n int64) bool {
	from := n * o.set.chunk
	to := min(from+o.set.chunk, o.sectors())
	return from < to && o.set.all(from, to)
}

// Size is the size of the image in bytes.
func (o *Overlay) Size() int64 { return o.size }

// Tainted is the first error that left it unknown whether what was written is
// there, or nil. It wraps syscall.EIO. A full disk alone does not taint. A tainted overlay refuses writes and Flush for good: what it
// acknowledged before the error still holds.
func (o *Overlay) Tainted() error {
	if p := o.tainted.Load(); p != nil {
		return *p
	}
	return nil
}

// taint marks o, and gives the error that a guest is to see from now on: for
// good, whatever the cause.
func (o *Overlay) taint(cause error) error {
	err := fmt.Errorf("overlay %s: %v: %w", o.name, cause, syscall.EIO)
	o.tainted.CompareAndSwap(nil, &err)
	return err
}

// failed is taint, but for a disk without room: then nothing was acknowledged,
// each sector is as whole as one on a disk, and the guest may try again.
func (o *Overlay) failed(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return fmt.Errorf("overlay %s: %w", o.name, err)
	}
	return o.taint(err)
}

// usable makes the files if there are none, and returns holding files for
// reading.
func (o *Overlay) usable() error {
	for {
		if err := o.Tainted(); err != nil {
			return err
		}
		o.files.RLock()
		if o.closed {
			o.files.RUnlock()
			return fmt.Errorf("overlay %s: %w", o.name, errClosed)
		}
		if o.data != nil {
			return nil
		}
		o.files.RUnlock()
		if err := o.create(); err != nil {
			return o.failed(err)
		}
	}
}

// create makes the files: data first, as a map stands for data that is there.
func (o *Overlay) create() error {
	o.files.Lock()
	defer o.files.Unlock()
	if o.data != nil || o.closed {
		return nil
	}
	// Of an overlay that was reset, if any.
	if err := o.disk.Remove(o.name + ".sums"); err != nil {
		return err
	}
	data, err := o.disk.Create(o.name+".data", nil, o.sectors()*sectorSize)
	if err != nil {
		return err
	}
	bits, err := o.disk.Create(o.name+".map", o.head, pageBytes*(1+o.pages()))
	if err != nil {
		data.Close()
		return err
	}
	o.data, o.bits = data, bits
	return nil
}

// readSectors reads modified sectors; len(p) is a multiple of the sector.
func (o *Overlay) readSectors(p []byte, first int64) error {
	o.files.RLock()
	defer o.files.RUnlock()
	if o.data == nil {
		return fmt.Errorf("overlay %s: %w", o.name, errClosed)
	}
	if n, err := o.data.ReadAt(p, first*sectorSize); n < len(p) {
		if err == nil || err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return o.taint(err)
	}
	o.crypt.crypt(p, p, first, false)
	return nil
}

var sectorBuffers = sync.Pool{New: func() any { return new([]byte) }}

// writeSectors writes whole sectors; partial is held. p is not changed.
func (o *Overlay) writeSectors(p []byte, first int64) error {
	if err := o.usable(); err != nil {
		return err
	}
	defer o.files.RUnlock()
	if err := o.vouch(first, first+int64(len(p)/sectorSize), true); err != nil {
		return err
	}
	if err := o.dropSums(); err != nil {
		return o.failed(err)
	}
	o.wrote.Store(true)
	buf := sectorBuffers.Get().(*[]byte)
	defer sectorBuffers.Put(buf)
	if cap(*buf) < len(p) {
		*buf = make([]byte, len(p))
	}
	sealed := (*buf)[:len(p)]
	o.crypt.crypt(sealed, p, first, true)
	if _, err := o.data.WriteAt(sealed, first*sectorSize); err != nil {
		return o.failed(err)
	}
	o.set.set(first, first+int64(len(p)/sectorSize))
	o.unsynced.Store(true) // last, or a flush between the two would miss the bits
	return nil
}

// Flush returns when all writes that were complete at the call are durable.
// Calls that come while one is under way share the next.
func (o *Overlay) Flush() error {
	o.queue.Lock()
	c := o.next
	mine := c == nil
	if mine {
		c = &flushCall{done: make(chan struct{})}
		o.next = c
	}
	o.queue.Unlock()
	if !mine {
		<-c.done
		return c.err
	}
	o.flushing.Lock()
	o.queue.Lock()
	o.next = nil // who comes now may have written what this one misses
	o.queue.Unlock()
	c.err = o.flush()
	o.flushing.Unlock()
	close(c.done)
	return c.err
}

func (o *Overlay) flush() error {
	if err := o.Tainted(); err != nil {
		return err
	}
	o.files.RLock()
	defer o.files.RUnlock()
	if o.data == nil {
		if o.closed {
			return fmt.Errorf("overlay %s: %w", o.name, errClosed)
		}
		return nil
	}
	if !o.unsynced.Swap(false) {
		return nil // bits follow data, so there are none either
	}
	// The copy is made before the sync: it has no bit whose data came after.
	pages := o.set.takeDirty()
	if err := o.data.Sync(); err != nil {
		return o.taint(err)
	}
	if len(pages) == 0 {
		return nil
	}
	buf := make([]byte, pageBytes)
	for _, n := range slices.Sorted(maps.Keys(pages)) {
		pages[n].encode(buf)
		if _, err := o.bits.WriteAt(buf, pageBytes*(n+1)); err != nil {
			o.set.giveBack(pages) // for the next flush, if there will be one
			o.unsynced.Store(true)
			return o.failed(err)
		}
	}
	if err := o.bits.Sync(); err != nil {
		return o.taint(err)
	}
	return nil
}

// Reset makes the overlay empty and removes its files, durably: what was
// modified is now pristine. Nothing may be read or written meanwhile.
func (o *Overlay) Reset() error {
	o.flushing.Lock()
	defer o.flushing.Unlock()
	o.files.Lock()
	defer o.files.Unlock()
	err := errors.Join(o.closeFiles(),
		o.disk.Remove(o.name+".sums"),
		o.disk.Remove(o.name+".map"), // data without a map is nothing
		o.disk.Remove(o.name+".data"))
	if err != nil {
		return o.taint(err)
	}
	o.unsynced.Store(false)
	o.summed.Store(false)
	o.wrote.Store(false)
	o.sums, o.sumsErr = nil, nil
	o.set.reset()
	return nil
}

// Close flushes, sums up what was written, and releases the files. Without
// room for the sums there are none, and that is no error.
func (o *Overlay) Close() error {
	var err error
	if o.Tainted() == nil {
		err = o.Flush()
		if errors.Is(err, errClosed) {
			return nil
		}
		if err == nil && o.wrote.Load() {
			_ = o.Sum(context.Background())
		}
	}
	o.files.Lock()
	defer o.files.Unlock()
	o.closed = true
	return errors.Join(err, o.closeFiles())
}

func (o *Overlay) closeFiles() error {
	if o.data == nil {
		return nil
	}
	err := errors.Join(o.data.Close(), o.bits.Close())
	o.data, o.bits = nil, nil
	return err
}
