package image

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"isr/store/atomicfile"
)

// ErrBusy is wrapped by OpenOverlay when another process has the overlay open.
var ErrBusy = errors.New("overlay in use")

// file is what an overlay needs of one of its files. Tests put one here that
// fails, tears writes and forgets what was not synced.
type file interface {
	io.ReaderAt
	io.WriterAt
	// Sync returns when what was written is durable.
	Sync() error
	// Data is the first range of bytes at or after off that may hold
	// anything but zeros, or io.EOF.
	Data(off int64) (from, to int64, err error)
	Close() error
}

// disk is where an overlay's files are.
type disk interface {
	// Open opens a file for this process alone, or says fs.ErrNotExist.
	Open(name string) (file, error)
	// Create makes a file of size bytes that begins with head and is zeros
	// from there, in place of any that was. It appears whole and durable.
	Create(name string, head []byte, size int64) (file, error)
	// Remove makes a file vanish durably; there may be none.
	Remove(name string) error
}

// osDisk is a directory of the host.
type osDisk struct{ dir string }

func (d osDisk) Open(name string) (file, error) {
	f, err := os.OpenFile(filepath.Join(d.dir, name), os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	// A child between its fork and its exec still has what a parent has
	// closed: give it a moment.
	for try := 0; ; try++ {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return &osFile{f}, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) || try == 20 {
			f.Close()
			if errors.Is(err, unix.EWOULDBLOCK) {
				err = ErrBusy
			}
			return nil, fmt.Errorf("lock %s: %w", f.Name(), err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func (d osDisk) Create(name string, head []byte, size int64) (file, error) {
	f, err := atomicfile.Create(filepath.Join(d.dir, name), 0o600)
	if err != nil {
		return nil, err
	}
	defer f.Abort()
	if _, err := f.Write(head); err != nil {
		return nil, err
	}
	if err := f.Truncate(size); err != nil {
		return nil, err
	}
	if err := f.Commit(); err != nil {
		return nil, err
	}
	return d.Open(name)
}

func (d osDisk) Remove(name string) error {
	err := os.Remove(filepath.Join(d.dir, name))
	if err == nil {
		return atomicfile.SyncDir(d.dir)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

type osFile struct{ *os.File }

// Sync is fdatasync: the size never changes, and times do not matter. Blocks
// that a write allocated are part of it.
func (f *osFile) Sync() error {
	for {
		if err := unix.Fdatasync(int(f.Fd())); err != unix.EINTR {
			return os.NewSyscallError("fdatasync", err)
		}
	}
}

func (f *osFile) Data(off int64) (from, to int64, err error) {
	from, err = unix.Seek(int(f.Fd()), off, unix.SEEK_DATA)
	switch {
	case errors.Is(err, unix.ENXIO):
		return 0, 0, io.EOF
	case err != nil: // a file system without holes
		st, err := f.Stat()
		if err != nil || off >= st.Size() {
			return 0, 0, errors.Join(err, io.EOF)
		}
		return off, st.Size(), nil
	}
	to, err = unix.Seek(int(f.Fd()), from, unix.SEEK_HOLE)
	return from, to, err
}
