package store

import (
	"context"
	"errors"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"isr/store/atomicfile"
	"isr/store/parcel"
	"isr/store/seal"
	"isr/store/tree"
)

// HdkDir is the directory of the parcel's objects.
func (p *Parcel) HdkDir() string { return filepath.Join(p.content, "hdk") }

// StagingDir is the directory of those that wait for a commit.
func (p *Parcel) StagingDir() string { return filepath.Join(p.content, "staging") }

func checkTag(tag seal.Tag) error {
	if tag.NewHash() == nil {
		return parcel.NewError(parcel.Usage, "tag of %d bytes", len(tag))
	}
	return nil
}

// Where is the path of an object and its size: in hdk, or in the staging
// area, where it is not yet trusted. parcel.ErrNoObject if it is in neither.
func (p *Parcel) Where(tag seal.Tag) (path string, size int64, staged bool, err error) {
	if err := checkTag(tag); err != nil {
		return "", 0, false, err
	}
	for _, path := range []string{filepath.Join(p.HdkDir(), tree.ObjectName(tag)), filepath.Join(p.StagingDir(), tag.String())} {
		fi, err := os.Lstat(path)
		if err == nil && fi.Mode().IsRegular() {
			return path, fi.Size(), staged, nil
		}
		if err == nil {
			return "", 0, false, parcel.NewError(parcel.Damaged, "object %s: not a file", tag)
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return "", 0, false, p.Wrap(err)
		}
		staged = true
	}
	return "", 0, false, parcel.NewError(parcel.NoObject, "object %s: the store lacks it", tag)
}

// Has reports whether the parcel has the object, staged ones included.
func (p *Parcel) Has(tag seal.Tag) (bool, error) {
	_, _, _, err := p.Where(tag)
	if errors.Is(err, parcel.ErrNoObject) {
		return false, nil
	}
	return err == nil, err
}

// OpenObject opens the object for reading, staged ones included;
// parcel.ErrNoObject if the parcel lacks it. Its content is not verified.
func (p *Parcel) OpenObject(tag seal.Tag) (*os.File, error) {
	for range 2 { // it may move from staging to hdk between the two calls
		path, _, _, err := p.Where(tag)
		if err != nil {
			return nil, err
		}
		f, err := tree.OpenOwn(path)
		if err == nil || !errors.Is(err, fs.ErrNotExist) {
			return f, err
		}
	}
	return nil, parcel.NewError(parcel.NoObject, "object %s: the store lacks it", tag)
}

// Get is the sealed bytes of the object, not verified: who unseals verifies.
// It makes Parcel a keyring.Getter.
func (p *Parcel) Get(ctx context.Context, tag seal.Tag) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	f, err := p.OpenObject(tag)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return nil, p.Wrap(err)
	}
	if fi.Size() > tree.MaxObject {
		return nil, parcel.NewError(parcel.Damaged, "object %s: %d bytes", tag, fi.Size())
	}
	b := make([]byte, fi.Size())
	if _, err := io.ReadFull(f, b); err != nil {
		return nil, p.Wrap(err)
	}
	return b, nil
}

// Staged is an object being put: it is kept by Close, if it is what its tag
// says. Safe for concurrent use.
type Staged struct {
	p   *Parcel
	tag seal.Tag

	mu   sync.Mutex
	f    *os.File // nil after the end
	hash hash.Hash
	next int64 // so far all was written in order, up to here; -1: it was not
}

// Stage begins to put an object. It does not take effect before Close, nor
// need it be durable after: Commit sees to that.
func (p *Parcel) Stage(tag seal.Tag) (*Staged, error) {
	if err := checkTag(tag); err != nil {
		return nil, err
	}
	f, err := os.CreateTemp(p.StagingDir(), atomicfile.TempPrefix+"*")
	if err != nil {
		return nil, p.Wrap(err)
	}
	return &Staged{p: p, tag: tag, f: f, hash: tag.NewHash()}, nil
}

// WriteAt writes part of the object, in any order. It is hashed on the way if
// the order is ascending.
func (w *Staged) WriteAt(b []byte, off int64) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.f == nil {
		return 0, os.ErrClosed
	}
	if off < 0 || off+int64(len(b)) > tree.MaxObject {
		return 0, parcel.NewError(parcel.Usage, "object %s: over %d bytes", w.tag, tree.MaxObject)
	}
	n, err := w.f.WriteAt(b, off)
	if off == w.next && w.next >= 0 {
		w.hash.Write(b[:n])
		w.next += int64(n)
	} else {
		w.next = -1
	}
	return n, err
}

// Close verifies the object and keeps it; parcel.ErrDamaged if its bytes do
// not match its name: then it is gone.
func (w *Staged) Close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.f == nil {
		return os.ErrClosed
	}
	f := w.f
	w.f = nil
	err := w.verify(f)
	if err == nil {
		err = f.Chmod(tree.ObjectMode)
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		tree.Step("stage")
		err = os.Rename(f.Name(), filepath.Join(w.p.StagingDir(), w.tag.String()))
	}
	if err != nil {
		os.Remove(f.Name())
		return w.p.Wrap(err)
	}
	return nil
}

func (w *Staged) verify(f *os.File) error {
	if w.next < 0 {
		return tree.VerifyFile(f, w.tag)
	}
	if seal.Tag(w.hash.Sum(nil)) != w.tag {
		return tree.ErrMismatch(w.tag)
	}
	return nil
}

// Abort forgets the object; after Close it does nothing.
func (w *Staged) Abort() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.f == nil {
		return
	}
	w.f.Close()
	os.Remove(w.f.Name())
	w.f = nil
}

// levelKey is a block at a level; it opens at one level only.
type levelKey struct {
	tag   seal.TagKey
	level int8
}
