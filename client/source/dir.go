package source

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"

	"isr/store/seal"
)

// dir is a tree in a directory. Its own files only are read: not a device, a
// FIFO or a socket, whatever links lead there.
type dir struct {
	path string
	find func() (path string, ok bool) // of a mount that may come and go; nil: path
	lost atomic.Int32                  // reads that the file system has not let go of

	mu     sync.Mutex
	device uint64 // it was on when first seen
	seen   bool
}

// maxLost is how many reads may hang in the kernel, each with a thread, before
// no more are begun.
const maxLost = 32

func (d *dir) root() (string, bool) {
	if d.find == nil {
		return d.path, true
	}
	return d.find()
}

func (d *dir) read(ctx context.Context, name string, w *sink) error {
	if d.lost.Add(1) > maxLost {
		d.lost.Add(-1)
		return errors.New("the file system does not answer")
	}
	defer d.lost.Add(-1)
	root, ok := d.root()
	if !ok {
		return errAbsent
	}
	f, size, err := openFile(filepath.Join(root, name))
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ENOTDIR), errors.Is(err, syscall.ENAMETOOLONG):
		return errAbsent
	case errors.Is(err, syscall.ELOOP):
		return fmt.Errorf("%v: %w", err, seal.ErrCorrupt)
	case err != nil:
		return err
	}
	defer f.Close()
	d.note(root)
	if err := w.expect(size); err != nil {
		return err
	}
	if err := w.from(f); err != nil {
		if errors.Is(err, syscall.EIO) && d.present() {
			// A bad sector is as good as wrong bytes; a stick that was pulled
			// is not.
			err = fmt.Errorf("%v: %w", err, seal.ErrCorrupt)
		}
		return err
	}
	return nil
}

// openFile opens a regular file.
func openFile(name string) (*os.File, int64, error) {
	regular := func(fi fs.FileInfo) error {
		if !fi.Mode().IsRegular() {
			return fmt.Errorf("%s: is no file but %v: %w", name, fi.Mode().Type(), seal.ErrCorrupt)
		}
		return nil
	}
	// To open a device may be to do something.
	fi, err := os.Stat(name)
	if err == nil {
		err = regular(fi)
	}
	if err != nil {
		return nil, 0, err
	}
	f, err := os.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_NOCTTY, 0)
	if err != nil {
		return nil, 0, err
	}
	if fi, err = f.Stat(); err == nil {
		err = regular(fi)
	}
	if err != nil {
		f.Close()
		return nil, 0, err
	}
	return f, fi.Size(), nil
}

func (d *dir) size(name string) (int64, error) {
	root, ok := d.root()
	if !ok {
		return 0, errAbsent
	}
	fi, err := os.Stat(filepath.Join(root, name))
	if err == nil && (!fi.Mode().IsRegular() || fi.Size() == 0) {
		err = errAbsent
	}
	if err != nil {
		return 0, err
	}
	d.note(root)
	return fi.Size(), nil
}

// note remembers which file system the tree is on.
func (d *dir) note(root string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.seen {
		d.device, d.seen = deviceOf(root)
	}
}

// present reports whether the directory is there, on the file system it was
// on: an empty mount point is not the stick.
func (d *dir) present() bool {
	root, ok := d.root()
	if !ok {
		return false
	}
	device, ok := deviceOf(root)
	if !ok {
		return false
	}
	// A stick that is gone and still mounted has a name, and nothing in it.
	f, err := os.Open(root)
	if err != nil {
		return false
	}
	defer f.Close()
	if _, err := f.ReadDir(1); errors.Is(err, syscall.EIO) {
		return false
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return !d.seen || d.device == device
}

func deviceOf(name string) (uint64, bool) {
	fi, err := os.Stat(name)
	if err != nil || !fi.IsDir() {
		return 0, false
	}
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok {
		return 0, true
	}
	return uint64(st.Dev), true
}

func (d *dir) reset() {}
