package tree

import (
	"errors"
	"io/fs"
	"os"

	"github.com/gofrs/flock"
	"golang.org/x/sys/unix"
)

// newFlock is the flock of the file name, which is made if it is not there;
// no link is followed to make one elsewhere, and no pipe waited for.
func newFlock(name string) *flock.Flock {
	return flock.New(name, flock.SetPermissions(FileMode), flock.SetFlag(os.O_CREATE|os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK))
}

// Lock takes the flock of the file name, waiting for it. The file may be
// removed with its directory while we wait: then its successor is taken, or
// the error is fs.ErrNotExist.
func Lock(name string, shared bool) (unlock func(), err error) {
	for {
		l := newFlock(name)
		take := l.Lock
		if shared {
			take = l.RLock
		}
		if err := take(); err != nil {
			return nil, err
		}
		same, err := isFile(l, name)
		if same {
			return func() { l.Close() }, nil
		}
		l.Close()
		if err != nil {
			return nil, err
		}
	}
}

// LockDir takes the flock of a directory, which needs no file in it.
func LockDir(dir string) (unlock func(), err error) {
	l := flock.New(dir, flock.SetFlag(os.O_RDONLY|unix.O_NOFOLLOW|unix.O_DIRECTORY))
	if err := l.Lock(); err != nil {
		return nil, err
	}
	return func() { l.Close() }, nil
}

// TryLock is Lock without waiting; unlock is nil if another has it.
func TryLock(name string) (unlock func(), err error) {
	l := newFlock(name)
	got, err := l.TryLock()
	if err != nil || !got {
		return nil, err
	}
	if same, err := isFile(l, name); !same {
		l.Close()
		return nil, err
	}
	return func() { l.Close() }, nil
}

// isFile reports whether the locked file is still the one called name.
func isFile(l *flock.Flock, name string) (bool, error) {
	held, err := l.Stat()
	if err != nil {
		return false, err
	}
	there, err := os.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return os.SameFile(held, there), nil
}
