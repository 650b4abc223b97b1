// Package atomicfile makes a file appear whole and durable, or not at all.
//
// Write is temp file, fsync, rename, fsync of the directory. When it returns
// nil the content survives a power cut; when it returns an error, or the
// process is killed, the old file (or none) is still there. A temp file may
// remain after a kill: its name begins with TempPrefix, and nothing else does.
// It does not lock: two writers race, and one of the two wins whole (with
// WriteNew the first, else the last).
package atomicfile

import (
	"crypto/rand"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// TempPrefix begins the name of every temp file.
const TempPrefix = ".tmp-"

// Write puts data in the file name with the given mode.
func Write(name string, data []byte, mode fs.FileMode) error {
	f, err := Create(name, mode)
	if err != nil {
		return err
	}
	if _, err := f.Write(data); err != nil {
		f.Abort()
		return named(err, name)
	}
	return f.Commit()
}

// named is an error about a temp file, by the name that people know.
func named(err error, name string) error {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		return &fs.PathError{Op: pe.Op, Path: name, Err: pe.Err}
	}
	return err
}

// WriteNew is Write for a name that must be free: link(2) puts the whole file
// there, or nothing. The error wraps fs.ErrExist if the name is taken.
func WriteNew(name string, data []byte, mode fs.FileMode) error {
	f, err := Create(name, mode)
	if err != nil {
		return err
	}
	defer f.Abort()
	if _, err := f.Write(data); err != nil {
		return named(err, name)
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := os.Link(f.Name(), name); err != nil {
		return err
	}
	f.Abort()
	return SyncDir(filepath.Dir(name))
}

// File is a file being written, that will appear under its name at Commit.
type File struct {
	*os.File
	name string
	done bool
}

// Create begins a file that is to appear as name. End it by Commit or Abort.
func Create(name string, mode fs.FileMode) (*File, error) {
	f, err := os.CreateTemp(filepath.Dir(name), TempPrefix+"*")
	if err != nil {
		return nil, named(err, name)
	}
	if err := f.Chmod(mode); err != nil {
		f.Close()
		os.Remove(f.Name())
		return nil, err
	}
	return &File{File: f, name: name}, nil
}

// Commit makes the file durable under its name. After an error of fsync the
// content is not to be trusted, so the temp file is removed.
func (f *File) Commit() error {
	if f.done {
		return errors.New("atomicfile: commit after the end")
	}
	f.done = true
	err := f.Sync()
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), f.name)
	}
	if err != nil {
		os.Remove(f.Name())
		return err
	}
	return SyncDir(filepath.Dir(f.name))
}

// CommitNew is Commit for a name that must be free. The error wraps
// fs.ErrExist if it is taken.
func (f *File) CommitNew() error {
	if f.done {
		return errors.New("atomicfile: commit after the end")
	}
	if err := f.Sync(); err != nil {
		f.Abort()
		return err
	}
	err := os.Link(f.Name(), f.name)
	if errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.ENOTSUP) || errors.Is(err, syscall.ENOSYS) {
		// A file system without links, a stick's: nearly as good.
		if _, err := os.Lstat(f.name); err == nil {
			f.Abort()
			return &fs.PathError{Op: "create", Path: f.name, Err: fs.ErrExist}
		}
		return f.Commit()
	}
	f.Abort()
	if err != nil {
		return err
	}
	return SyncDir(filepath.Dir(f.name))
}

// Abort removes the temp file; after Commit it does nothing, so it may be
// deferred.
func (f *File) Abort() {
	if f.done {
		return
	}
	f.done = true
	f.Close()
	os.Remove(f.Name())
}

// Symlink makes name a symbolic link to target, in place of whatever link or
// file was there, durably.
func Symlink(target, name string) error {
	dir := filepath.Dir(name)
	temp := filepath.Join(dir, TempPrefix+rand.Text())
	if err := os.Symlink(target, temp); err != nil {
		return err
	}
	if err := os.Rename(temp, name); err != nil {
		os.Remove(temp)
		return err
	}
	return SyncDir(dir)
}

// SyncDir makes the names in dir durable.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	err = d.Sync()
	if cerr := d.Close(); err == nil {
		err = cerr
	}
	// Some network file systems do not know fsync of a directory.
	if errors.Is(err, syscall.EINVAL) || errors.Is(err, syscall.ENOTSUP) {
		return nil
	}
	return err
}
