package store

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"isr/store/parcel"
	"isr/store/seal"
)

// Whoever removes or measures objects reaches them through directories that
// are open, and opened without following a link: one that was planted below
// a user's directory must not lead to another parcel, nor out of the tree.

// ownDirs makes sure that each of dirs is a directory, or not there;
// parcel.ErrDamaged if it is a link. Who plants one is whoever could write
// here once, or made the backup that was restored.
func ownDirs(dirs ...string) error {
	for _, dir := range dirs {
		fi, err := os.Lstat(dir)
		if err == nil && !fi.IsDir() {
			return errNoDir(dir, fi.Mode())
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

func errNoDir(path string, mode fs.FileMode) error {
	what := "is no directory"
	if mode&fs.ModeSymlink != 0 {
		what = "is a symbolic link, which is not followed"
	}
	return parcel.NewError(parcel.Damaged, "%s: %s", path, what).
		WithHint("find out who put it there, remove it, and put back what was there from a backup")
}

// ownDirs is that for the directories of a parcel.
func (p *Parcel) ownDirs() error {
	err := ownDirs(p.user.lockRoot, p.user.contentRoot, p.lock, filepath.Join(p.lock, "keys"),
		p.content, p.hdk(), p.staging(), filepath.Join(p.content, "keys"))
	if err != nil {
		return p.wrap(err)
	}
	return nil
}

// ownObjectDirs is that for the directories of its objects, of which there are
// many: who makes objects appear there asks.
func (p *Parcel) ownObjectDirs() error {
	entries, err := os.ReadDir(p.hdk())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return p.wrap(err)
	}
	for _, e := range entries {
		if !e.IsDir() && len(e.Name()) == 2 {
			return p.wrap(errNoDir(filepath.Join(p.hdk(), e.Name()), e.Type()))
		}
	}
	return nil
}

// openReal opens the directory dir/name, which must not be a link.
func openReal(dir, name string) (*os.Root, error) {
	parent, err := realRoot(dir, os.Lstat, os.OpenRoot)
	if err != nil {
		return nil, err
	}
	defer parent.Close()
	return realRoot(name, parent.Lstat, parent.OpenRoot)
}

func realRoot(name string, lstat func(string) (fs.FileInfo, error), open func(string) (*os.Root, error)) (*os.Root, error) {
	fi, err := lstat(name)
	if err != nil {
		return nil, err
	}
	if !fi.IsDir() {
		return nil, parcel.NewError(parcel.Damaged, "%s: not a directory", name)
	}
	root, err := open(name)
	if err != nil {
		return nil, err
	}
	// What was opened is what was looked at.
	if opened, err := root.Stat("."); err != nil || !os.SameFile(fi, opened) {
		root.Close()
		return nil, errors.Join(err, parcel.NewError(parcel.Damaged, "%s: not a directory", name))
	}
	return root, nil
}

// openContent opens the content side.
func (p *Parcel) openContent() (*os.Root, error) {
	r, err := openReal(p.user.contentRoot, p.name)
	return r, p.openError("content", p.content, err)
}

// openLock opens the lock side.
func (p *Parcel) openLock() (*os.Root, error) {
	r, err := openReal(p.user.lockRoot, p.name)
	return r, p.openError("lock side", p.lock, err)
}

func (p *Parcel) openError(what, path string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, fs.ErrNotExist):
		return p.errorf(parcel.Damaged, "%s is missing", what).WithHint("restore %s from a backup", path)
	}
	return p.wrap(err)
}

// objectDirs opens hdk, and names the directories there that objects can be
// in. The caller closes hdk.
func objectDirs(content *os.Root) (hdk *os.File, names []string, err error) {
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

// hdkDir is an open directory of objects, hdk/ab. There are 256 in each
// parcel: it asks the kernel no more than it must.
type hdkDir struct {
	fd   int
	tags []seal.Tag // what is named otherwise, or belongs elsewhere, is left out
}

// openObjects opens hdk/ab; without tags if it is gone.
func openObjects(hdk *os.File, ab string) (*hdkDir, error) {
	d := &hdkDir{fd: -1}
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
		d.close()
		return nil, &fs.PathError{Op: "list", Path: filepath.Join(hdk.Name(), ab), Err: err}
	}
	for _, n := range names {
		if tag, err := seal.ParseTag(n); err == nil && n[:2] == ab {
			d.tags = append(d.tags, tag)
		}
	}
	return d, nil
}

// stat describes an object; ok is false if it is gone, or no file.
func (d *hdkDir) stat(tag seal.Tag) (st unix.Stat_t, ok bool) {
	return statObject(d.fd, tag.String())
}

func (d *hdkDir) close() {
	if d.fd >= 0 {
		unix.Close(d.fd)
	}
}

func statObject(fd int, name string) (st unix.Stat_t, ok bool) {
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

// readDir lists a directory, sorted.
func readDir(root *os.Root, name string) ([]fs.DirEntry, error) {
	d, err := root.Open(name)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	entries, err := d.ReadDir(-1)
	slices.SortFunc(entries, func(a, b fs.DirEntry) int { return strings.Compare(a.Name(), b.Name()) })
	return entries, err
}
