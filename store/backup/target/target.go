// Package target keeps files in a place: a directory, one of another host that
// is reached by ssh(1) and SFTP, or a part of an S3 bucket. Such are the targets
// of backups and mirrors.
//
// It promises that a file is there whole or not at all, and durable when Sync
// has returned; that what a run that was killed left is in nobody's way; and
// that nothing outside of the place is read or written, whatever links are in
// it. It does not know what the files are, nor keep two who write to one place
// apart.
package target

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"iter"

	"isr/store/parcel"
	"isr/store/seal"
)

// Target is where a backup is: files by names with slashes. Its methods are
// safe for concurrent use; what is not there is fs.ErrNotExist.
type Target interface {
	// Put makes a file, in place of what had its name: whole, or not at all.
	// It is there, and durable, when Sync has returned.
	Put(ctx context.Context, name string, content []byte) error
	// PutFrom is Put of what r has, for what is too large to hold.
	PutFrom(ctx context.Context, name string, r io.Reader, size int64) error
	Get(ctx context.Context, name string) (io.ReadCloser, error)
	// List is the files below the directory dir, in any order.
	List(ctx context.Context, dir string) iter.Seq2[Entry, error]
	Remove(ctx context.Context, name string) error
	Sync(ctx context.Context) error
	// Width is how many calls at once suit it.
	Width() int
	// String is the place as people write it, without secrets.
	String() string
	Close() error
}

// Entry is a file of a Target.
type Entry struct {
	Name string // whole
	Size int64
}

// Tree is a Target that can hold a realm's tree.
type Tree interface {
	Target
	Link(ctx context.Context, old, name string) error // no error if name is there
	Symlink(ctx context.Context, target, name string) error
	Chmod(ctx context.Context, name string, mode fs.FileMode) error
	Mkdir(ctx context.Context, name string) error
	RemoveAll(ctx context.Context, name string) error
}

// Read reads a whole file of at most limit bytes.
func Read(ctx context.Context, t Target, name string, limit int64) ([]byte, error) {
	r, err := t.Get(ctx, name)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	b, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err == nil && int64(len(b)) > limit {
		err = parcel.NewError(parcel.Damaged, "%s: over %d bytes", name, limit)
	}
	return b, err
}

// MaxObject bounds what is taken for an object, bytes.
const MaxObject = seal.MaxPlain + 1024

// ReadObject is the object in the file name, verified; parcel.ErrNoObject if it
// is not there, parcel.ErrDamaged if it does not match its tag.
func ReadObject(ctx context.Context, t Target, name string, tag seal.Tag) ([]byte, error) {
	b, err := Read(ctx, t, name, MaxObject)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, parcel.NewError(parcel.NoObject, "object %s: %s lacks it", tag, t)
	}
	if err != nil {
		return nil, err
	}
	if tag.Verify(b) != nil {
		return nil, parcel.NewError(parcel.Damaged, "object %s: content in %s does not match its name", tag, t)
	}
	return b, nil
}
