package tree

import (
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"isr/store/parcel"
	"isr/store/seal"
)

// ObjectName is the path of an object below hdk: ab/abcdef….
func ObjectName(tag seal.Tag) string {
	name := tag.String()
	return filepath.Join(name[:2], name)
}

// ObjectDirs opens hdk, and names the directories there that objects can be
// in. The caller closes hdk.
func ObjectDirs(content *os.Root) (hdk *os.File, names []string, err error) {
	if hdk, err = content.Open("hdk"); err != nil {
		return nil, nil, err
	}
	entries, err := hdk.ReadDir(-1)
	if err != nil {
		hdk.Close()
		return nil, nil, err
	}
	for _, e := range entries {
		if e.IsDir() && len(e.Name()) == 2 && strings.Trim(e.Name(), "0123456789abcdef") == "" {
			names = append(names, e.Name())
		}
	}
	slices.Sort(names)
	return hdk, names, nil
}

// Objects is an open directory of objects, hdk/ab. There are 256 in each
// parcel: it asks the kernel no more than it must.
type Objects struct {
	fd   int
	Tags []seal.Tag // what is named otherwise, or belongs elsewhere, is left out
}

// OpenObjects opens hdk/ab; without tags if it is gone.
func OpenObjects(hdk *os.File, ab string) (*Objects, error) {
	d := &Objects{fd: -1}
	err := retry(func() (err error) {
		d.fd, err = unix.Openat(int(hdk.Fd()), ab, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		return err
	})
	buf := make([]byte, 16<<10)
	var names []string
	for err == nil {
		n := 0
		err = retry(func() (err error) {
			n, err = unix.ReadDirent(d.fd, buf)
			return err
		})
		if err != nil || n == 0 {
			break
		}
		_, _, names = unix.ParseDirent(buf[:n], -1, names)
	}
	// Whoever emptied it may have removed it by now.
	if err != nil && err != unix.ENOENT {
		d.Close()
		return nil, &fs.PathError{Op: "list", Path: filepath.Join(hdk.Name(), ab), Err: err}
	}
	for _, n := range names {
		if tag, err := seal.ParseTag(n); err == nil && n[:2] == ab {
			d.Tags = append(d.Tags, tag)
		}
	}
	return d, nil
}

// Stat describes an object; ok is false if it is gone, or no file.
func (d *Objects) Stat(tag seal.Tag) (st unix.Stat_t, ok bool) {
	return StatObject(d.fd, tag.String())
}

// Close closes the directory.
func (d *Objects) Close() {
	if d.fd >= 0 {
		unix.Close(d.fd)
	}
}

// StatObject describes the object called name, from the open directory fd; ok
// is false if it is gone, or no file.
func StatObject(fd int, name string) (st unix.Stat_t, ok bool) {
	err := retry(func() error { return unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW) })
	return st, err == nil && st.Mode&unix.S_IFMT == unix.S_IFREG
}

// retry repeats a call that a signal interrupted.
func retry(f func() error) error {
	for {
		if err := f(); err != unix.EINTR {
			return err
		}
	}
}

// VerifyFile hashes all of f; parcel.ErrDamaged if it is not the object tag.
func VerifyFile(f *os.File, tag seal.Tag) error {
	h := tag.NewHash()
	if h == nil {
		return fmt.Errorf("tag of %d bytes", len(tag))
	}
	if _, err := io.Copy(h, io.NewSectionReader(f, 0, 1<<62)); err != nil {
		return err
	}
	if seal.Tag(h.Sum(nil)) != tag {
		return ErrMismatch(tag)
	}
	return nil
}

// VerifyObject is VerifyFile by name.
func VerifyObject(path string, tag seal.Tag) error {
	f, err := OpenOwn(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return VerifyFile(f, tag)
}

// ErrMismatch is the error for an object that is not what its name says.
func ErrMismatch(tag seal.Tag) error {
	return parcel.NewError(parcel.Damaged, "object %s: content does not match its name", tag)
}

// CopyObject makes the file to, which must not be there, of the object in from,
// verified, and says how large it is.
func CopyObject(from, to string, tag seal.Tag) (int64, error) {
	src, err := OpenOwn(from)
	if err != nil {
		return 0, err
	}
	defer src.Close()
	dst, err := os.OpenFile(to, os.O_RDWR|os.O_CREATE|os.O_EXCL, ObjectMode)
	if err != nil {
		return 0, err
	}
	defer dst.Close()
	n, err := io.Copy(dst, src)
	if err != nil {
		return 0, err
	}
	return n, VerifyFile(dst, tag)
}

// Inode tells the file of an object from others, whatever links to it are
// called, to count it once.
type Inode struct {
	dev, ino uint64
	tag      seal.Tag
}

// InodeOf is the Inode of an object, from its stat.
func InodeOf(dev, ino uint64, tag seal.Tag) Inode { return Inode{dev, ino, tag} }
