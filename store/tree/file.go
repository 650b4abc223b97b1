package tree

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"isr/store/atomicfile"
	"isr/store/parcel"
)

// maxOwn bounds what is read of a user's own files, bytes.
const maxOwn = 1 << 20

// ReadOwn reads a file in a user's directory, which may be her home and hold
// anything: no link is followed, no pipe waited for, and no end of it needed.
func ReadOwn(path string) ([]byte, error) {
	f, err := OpenOwn(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !fi.Mode().IsRegular() || fi.Size() > maxOwn {
		return nil, parcel.NewError(parcel.Damaged, "%s: want a file of at most %d bytes", path, maxOwn)
	}
	return io.ReadAll(io.LimitReader(f, maxOwn))
}

// OpenOwn opens what ReadOwn reads, and objects, for reading; parcel.ErrDamaged if it is a
// link.
func OpenOwn(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if errors.Is(err, syscall.ELOOP) {
		return nil, parcel.NewError(parcel.Damaged, "%s: is a symbolic link, which is not followed", path)
	}
	return f, err
}

// IsLink reports whether path is a symbolic link to target, or not there if
// target is empty.
func IsLink(path, target string) bool {
	got, err := os.Readlink(path)
	if target == "" {
		return errors.Is(err, fs.ErrNotExist)
	}
	return err == nil && got == target
}

// IsTemp reports whether name is a leftover or work in progress.
func IsTemp(name string) bool { return strings.HasPrefix(name, atomicfile.TempPrefix) }

// RemoveTemps removes the leftovers of killed writers in dir. The caller
// holds the flock that all writers there hold.
func RemoveTemps(dir string) {
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		if IsTemp(e.Name()) {
			os.RemoveAll(filepath.Join(dir, e.Name()))
		}
	}
}

// Syncfs makes everything on dir's file system durable: thousands of objects
// at the price of one. After an error none of it is to be trusted. Tests
// replace it.
var Syncfs = func(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := unix.Syncfs(int(d.Fd())); err != nil {
		return &fs.PathError{Op: "syncfs", Path: dir, Err: err}
	}
	return nil
}
