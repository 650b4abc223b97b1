// Package hoard keeps objects on this host, by tag: the hoard, a cache shared
// by all parcels of a user, and Dir, the plain directory of objects it is
// made of, which also holds what a parcel has sealed and not yet committed.
//
//	DIR/ab/abcdef…   an object, 0400, named by its tag
//	DIR/pins/UUID    which objects a hoarded parcel needs; UUID.done: when all were here
//	DIR/usage        bytes in the hoard, roughly
//	DIR/lock         for whoever changes pins, usage, or evicts
//
// It promises never to return bytes that do not match the tag, and that any
// number of processes of one machine may use one hoard at a time. A file
// appears whole under its name or not at all, but it is not forced to disk
// until a hoard run is completed: what a power cut leaves short, empty or wrong
// is found when it is read, is removed, and counts as missing, for everything
// in the hoard can be fetched again. What cannot, an object not yet committed,
// belongs in a Dir, which removes nothing by itself and has Sync.
//
// The hoard has a quota. Beyond it the objects least recently used go, never
// those of a pinned parcel; so pin first, then fetch. It does not fetch, and
// is not safe for two machines over a network file system.
package hoard

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/gofrs/flock"

	"isr/store/atomicfile"
	"isr/store/parcel"
	"isr/store/seal"
)

// useStep is how old an object's mtime may grow before a read renews it, so
// that reading does not become writing. An order of use finer than an hour
// gains nothing: a session uses its objects for longer than that.
const useStep = time.Hour

// tempLife is the age at which a temp file is left over from a killed process.
const tempLife = time.Hour

// Hoard is a user's cache of objects. Safe for concurrent use.
type Hoard struct {
	Dir
	quota int64

	added    atomic.Int64 // bytes put since usage was last brought up to date
	step     int64        // of added, at which it is
	tending  atomic.Bool  // a goroutine is at it
	tenders  sync.WaitGroup
	closed   atomic.Bool
	lifetime context.Context
	end      context.CancelFunc
}

// Open opens the hoard in dir and makes the directory if need be. Quota is in
// bytes; 0 is no limit. Close it.
func Open(dir string, quota int64) (*Hoard, error) {
	for _, d := range []string{dir, filepath.Join(dir, "pins")} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, fmt.Errorf("hoard: %w", err)
		}
	}
	h := &Hoard{Dir: Dir{path: dir}, quota: quota}
	// Often enough that the hoard stays within a few per cent of its quota
	// whatever the number of processes, seldom enough to cost nothing.
	h.step = max(min(quota/32, 64<<20), 1)
	h.lifetime, h.end = context.WithCancel(context.Background())
	return h, nil
}

// Close waits for an eviction in progress to stop at its next step and records
// how much was put. The Hoard may still be read.
func (h *Hoard) Close() error {
	if h.closed.Swap(true) {
		return nil
	}
	h.end()
	h.tenders.Wait()
	_, err := h.addUsage()
	return err
}

// Get returns the object that tag names; parcel.ErrNoObject if the hoard does
// not have it, or had something else under that name, which is then gone.
func (h *Hoard) Get(ctx context.Context, tag seal.Tag) ([]byte, error) {
	sealed, mtime, err := h.Dir.get(tag)
	switch {
	case errors.Is(err, seal.ErrCorrupt):
		if rerr := h.Remove(tag); rerr != nil {
			return nil, fmt.Errorf("hoard: %w: %w", err, rerr)
		}
		return nil, fmt.Errorf("hoard: %w: %w", noObject(tag), err)
	case err != nil:
		return nil, err
	}
	if time.Since(mtime) > useStep {
		// Whether this works only changes when the object goes.
		_ = os.Chtimes(h.file(tag), time.Time{}, time.Now())
	}
	return sealed, nil
}

// Put keeps an object; sealed must be what tag names. To put one that exists
// costs one stat.
func (h *Hoard) Put(ctx context.Context, tag seal.Tag, sealed []byte) error {
	name := h.file(tag)
	if fi, err := os.Lstat(name); err == nil && fi.Mode().IsRegular() && fi.Size() == int64(len(sealed)) {
		if time.Since(fi.ModTime()) > useStep {
			_ = os.Chtimes(name, time.Time{}, time.Now())
		}
		return nil
	}
	if err := h.Dir.write(tag, sealed); err != nil {
		return err
	}
	h.grew(int64(len(sealed)))
	return nil
}

// Take moves an object of d into the hoard, without copying where both are on
// one file system. It is for objects that the server has now committed.
func (h *Hoard) Take(ctx context.Context, d *Dir, tag seal.Tag) error {
	from, to := d.file(tag), h.file(tag)
	fi, err := os.Lstat(from)
	if errors.Is(err, fs.ErrNotExist) {
		return noObject(tag)
	} else if err != nil {
		return err
	}
	err = os.Rename(from, to)
	if errors.Is(err, fs.ErrNotExist) {
		if err = os.MkdirAll(filepath.Dir(to), 0o700); err == nil {
			err = os.Rename(from, to)
		}
	}
	if errors.Is(err, syscall.EXDEV) {
		sealed, gerr := d.Get(ctx, tag)
		if gerr != nil {
			return gerr
		}
		if err = h.Put(ctx, tag, sealed); err == nil {
			err = d.Remove(tag)
		}
		return err
	}
	if err != nil {
		return spaceError(err)
	}
	h.grew(fi.Size())
	return nil
}

// grew counts bytes put, and now and then has someone look at the quota.
func (h *Hoard) grew(n int64) {
	if h.added.Add(n) < h.step || h.quota <= 0 || h.closed.Load() || !h.tending.CompareAndSwap(false, true) {
		return
	}
	h.tenders.Go(func() {
		used, err := h.addUsage()
		if err != nil || used > h.quota {
			_, err = h.Evict(h.lifetime)
		}
		h.tending.Store(false)
		if err == nil { // else the next step tries again
			h.grew(0) // what was put meanwhile found somebody at it
		}
	})
}

// lock is the lock on pins, usage and eviction.
func (h *Hoard) lock() (unlock func(), err error) {
	l := flock.New(filepath.Join(h.path, "lock"), flock.SetPermissions(0o600))
	if err := l.Lock(); err != nil {
		return nil, fmt.Errorf("hoard: %w", err)
	}
	return func() { l.Close() }, nil
}

// addUsage adds what this process put to the usage on record, and returns it.
func (h *Hoard) addUsage() (int64, error) {
	n := h.added.Swap(0)
	unlock, err := h.lock()
	if err != nil {
		h.added.Add(n)
		return 0, err
	}
	defer unlock()
	used := h.usage() + n
	return used, h.setUsage(used)
}

// usage is the usage on record; a file that is missing or torn counts as 0,
// to be put right by the next Evict.
func (h *Hoard) usage() int64 {
	p, err := os.ReadFile(filepath.Join(h.path, "usage"))
	if err != nil {
		return 0
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(p)), 10, 64)
	if err != nil || n < 0 {
		return 0
	}
	return n
}

// setUsage needs the lock. It is not made durable: it is an estimate.
func (h *Hoard) setUsage(n int64) error {
	return os.WriteFile(filepath.Join(h.path, "usage"), fmt.Appendf(nil, "%d\n", n), 0o600)
}

// Usage is what a hoard holds.
type Usage struct {
	Objects, Bytes             int64
	PinnedObjects, PinnedBytes int64 // of these, what pinned parcels need
	Quota                      int64 // bytes; 0 is no limit
}

// Usage counts what is there. It looks at every file's size, not its content.
func (h *Hoard) Usage(ctx context.Context) (Usage, error) {
	u := Usage{Quota: h.quota}
	shards, err := h.shards()
	if err != nil {
		return u, err
	}
	for _, shard := range shards {
		pinned, err := h.pinnedIn(shard)
		if err != nil {
			return u, err
		}
		err = h.walkShard(ctx, shard, func(o Object) error {
			u.Objects++
			u.Bytes += o.Size
			if pinned[o.Tag] {
				u.PinnedObjects++
				u.PinnedBytes += o.Size
			}
			return nil
		})
		if err != nil {
			return u, err
		}
	}
	return u, nil
}

// Dir is a directory of objects, DIR/ab/abcdef…. The zero value is not usable:
// see NewDir. Safe for concurrent use, by several processes too.
type Dir struct {
	path   string
	public bool // others may read it

	mu   sync.Mutex
	root *os.File // for Sync: opened before the first write, to see its errors
}

// NewDir is the directory of objects at path. It is made when first put to.
func NewDir(path string) *Dir { return &Dir{path: path} }

// NewPublicDir is NewDir of a directory that others may read: objects say
// nothing to someone without a keyroot.
func NewPublicDir(path string) *Dir { return &Dir{path: path, public: true} }

// Open makes the directory if need be, so that it is known early whether it
// can be written to, and that Sync covers what an earlier process put.
func (d *Dir) Open() error { return d.openRoot() }

func (d *Dir) modes() (dir, file fs.FileMode) {
	if d.public {
		return 0o755, 0o444
	}
	return 0o700, 0o400
}

// Path is the directory's path.
func (d *Dir) Path() string { return d.path }

// file is where the object lies.
func (d *Dir) file(tag seal.Tag) string {
	name := tag.String()
	if len(name) < 2 {
		return filepath.Join(d.path, "nil", "nil") // no tag: never there
	}
	return filepath.Join(d.path, name[:2], name)
}

// VerifiesTags says that Get never returns bytes that do not match the tag.
func (d *Dir) VerifiesTags() {}

// Get returns the object that tag names; parcel.ErrNoObject if it is not
// here, an error that wraps seal.ErrCorrupt if the file holds something else.
func (d *Dir) Get(ctx context.Context, tag seal.Tag) ([]byte, error) {
	sealed, _, err := d.get(tag)
	return sealed, err
}

func (d *Dir) get(tag seal.Tag) (sealed []byte, mtime time.Time, err error) {
	// A FIFO would wait for a writer.
	f, err := os.OpenFile(d.file(tag), os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			err = noObject(tag)
		}
		return nil, mtime, err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return nil, mtime, err
	}
	if !fi.Mode().IsRegular() || fi.Size() == 0 || fi.Size() > seal.MaxPlain+1<<16 {
		return nil, mtime, fmt.Errorf("object %s: file of mode %v and %d bytes: %w", tag, fi.Mode(), fi.Size(), seal.ErrCorrupt)
	}
	sealed = make([]byte, fi.Size())
	if _, err := io.ReadFull(f, sealed); err != nil {
		if err == io.EOF || err == io.ErrUnexpectedEOF || errors.Is(err, syscall.EIO) {
			// A bad sector is as good as wrong bytes: another copy may be good.
			err = fmt.Errorf("object %s: %v: %w", tag, err, seal.ErrCorrupt)
		}
		return nil, mtime, err
	}
	if err := tag.Verify(sealed); err != nil {
		return nil, mtime, err
	}
	return sealed, fi.ModTime(), nil
}

// Has reports whether there is a file for tag that is not empty; its content
// is not looked at.
func (d *Dir) Has(tag seal.Tag) (bool, error) {
	fi, err := os.Lstat(d.file(tag))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil && fi.Mode().IsRegular() && fi.Size() > 0, err
}

// Put keeps an object; sealed must be what tag names. One that exists is
// compared, and replaced if it differs. It survives a power cut after Sync.
func (d *Dir) Put(ctx context.Context, tag seal.Tag, sealed []byte) error {
	if err := d.openRoot(); err != nil {
		return err
	}
	if old, _, err := d.get(tag); err == nil && bytes.Equal(old, sealed) {
		return nil
	}
	return d.write(tag, sealed)
}

// write makes the object's file appear whole.
func (d *Dir) write(tag seal.Tag, sealed []byte) error {
	if tag.NewHash() == nil || len(sealed) == 0 {
		return fmt.Errorf("object %q of %d bytes: not an object", tag.String(), len(sealed))
	}
	name := d.file(tag)
	dir := filepath.Dir(name)
	dirMode, mode := d.modes()
	f, err := createTemp(dir, mode)
	if errors.Is(err, fs.ErrNotExist) {
		if err = os.MkdirAll(dir, dirMode); err == nil {
			f, err = createTemp(dir, mode)
		}
	}
	if err != nil {
		return spaceError(err)
	}
	_, err = f.Write(sealed)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), name)
	}
	if err != nil {
		os.Remove(f.Name())
	}
	return spaceError(err)
}

// createTemp is os.CreateTemp with an object's mode from the start.
func createTemp(dir string, mode fs.FileMode) (*os.File, error) {
	name := filepath.Join(dir, atomicfile.TempPrefix+parcel.NewID())
	return os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
}

// Sync makes everything put so far survive a power cut: one syncfs, where an
// fsync for each object would take seconds.
func (d *Dir) Sync() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.root == nil {
		return nil // nothing was put through d
	}
	if err := syncfs(d.root); err != nil {
		return fmt.Errorf("sync of %s: %w", d.path, err)
	}
	// The directory's own name, if Put made it.
	return atomicfile.SyncDir(filepath.Dir(d.path))
}

// openRoot makes the directory and keeps it open for Sync.
func (d *Dir) openRoot() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.root != nil {
		return nil
	}
	mode, _ := d.modes()
	if err := os.MkdirAll(d.path, mode); err != nil {
		return spaceError(err)
	}
	f, err := os.Open(d.path)
	d.root = f
	return err
}

// Close lets go of the directory. Get still works.
func (d *Dir) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.root == nil {
		return nil
	}
	err := d.root.Close()
	d.root = nil
	return err
}

// Size is the size of an object in bytes; parcel.ErrNoObject if it is not here.
func (d *Dir) Size(tag seal.Tag) (int64, error) {
	fi, err := os.Lstat(d.file(tag))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, noObject(tag)
	} else if err != nil {
		return 0, err
	}
	return fi.Size(), nil
}

// Each calls f with every object, verified, in ascending order of tag, until f
// returns an error. A file that is not what its name says ends it with an
// error that wraps seal.ErrCorrupt.
func (d *Dir) Each(f func(tag seal.Tag, sealed []byte) error) error {
	return d.Walk(context.Background(), func(o Object) error {
		sealed, _, err := d.get(o.Tag)
		if errors.Is(err, parcel.ErrNoObject) {
			return nil // removed meanwhile
		} else if err != nil {
			return err
		}
		return f(o.Tag, sealed)
	})
}

// Remove removes an object; one that is not there is no error.
func (d *Dir) Remove(tag seal.Tag) error {
	err := os.Remove(d.file(tag))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// Object is one file of a Dir.
type Object struct {
	Tag  seal.Tag
	Size int64     // bytes
	Used time.Time // when last used, to the hour
}

// Walk calls f for every object, in ascending order of tag, until f returns an
// error. It looks at no content. What is not an object is passed over.
func (d *Dir) Walk(ctx context.Context, f func(Object) error) error {
	shards, err := d.shards()
	if err != nil {
		return err
	}
	for _, shard := range shards {
		if err := d.walkShard(ctx, shard, f); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// shards is the first bytes of tags for which there is a directory, ascending.
func (d *Dir) shards() ([]byte, error) {
	entries, err := os.ReadDir(d.path)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, nil
		}
		return nil, err
	}
	var shards []byte
	for _, e := range entries {
		b, err := hex.DecodeString(e.Name())
		if err == nil && len(b) == 1 && hex.EncodeToString(b) == e.Name() {
			shards = append(shards, b[0])
		}
	}
	return shards, nil
}

// walkShard is Walk over the objects whose tag begins with the byte shard.
// Temp files left by killed processes are removed on the way.
func (d *Dir) walkShard(ctx context.Context, shard byte, f func(Object) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	dir := filepath.Join(d.path, hex.EncodeToString([]byte{shard}))
	entries, err := os.ReadDir(dir)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	for _, e := range entries {
		fi, err := e.Info()
		if err != nil || !fi.Mode().IsRegular() {
			continue // gone meanwhile, or not ours
		}
		if strings.HasPrefix(e.Name(), atomicfile.TempPrefix) {
			if time.Since(fi.ModTime()) > tempLife {
				os.Remove(filepath.Join(dir, e.Name()))
			}
			continue
		}
		tag, err := seal.ParseTag(e.Name())
		if err != nil || tag[0] != shard {
			continue
		}
		if err := f(Object{tag, fi.Size(), fi.ModTime()}); err != nil {
			return err
		}
	}
	return nil
}

func noObject(tag seal.Tag) error {
	return parcel.NewError(parcel.NoObject, "object %s: not here", tag)
}

// spaceError gives an error of a full disk its kind.
func spaceError(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return fmt.Errorf("%w: %w", parcel.NewError(parcel.Full, "disk of this host is full"), err)
	}
	return err
}
