package tree

import (
	"errors"
	"io/fs"
	"os"
	"slices"
	"strings"

	"isr/store/parcel"
)

// Whoever removes or measures objects reaches them through directories that
// are open, and opened without following a link.

// OwnDirs makes sure that each of dirs is a directory, or not there;
// parcel.ErrDamaged if it is a link. Who plants one is whoever could write
// here once, or made the backup that was restored.
func OwnDirs(dirs ...string) error {
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

// RealDir reports whether path is a directory itself, and no link to one: who
// can make a link in the tree must not be able to make others' files part of
// it.
func RealDir(path string) (bool, error) {
	fi, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil && fi.IsDir(), err
}

// IsDir is RealDir where an error is no matter.
func IsDir(path string) bool {
	ok, err := RealDir(path)
	return ok && err == nil
}

// Exists reports whether there is anything at path; a link itself counts.
func Exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// Subdirs are the names of the directories in dir, sorted, dot names left
// out; none if dir does not exist, or is itself no directory.
func Subdirs(dir string) ([]string, error) {
	if ok, err := RealDir(dir); !ok {
		return nil, err
	}
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var names []string
	for _, e := range entries {
		if e.IsDir() && e.Name()[0] != '.' {
			names = append(names, e.Name())
		}
	}
	return names, err
}

// ReadDir lists a directory, sorted.
func ReadDir(root *os.Root, name string) ([]fs.DirEntry, error) {
	d, err := root.Open(name)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	entries, err := d.ReadDir(-1)
	slices.SortFunc(entries, func(a, b fs.DirEntry) int { return strings.Compare(a.Name(), b.Name()) })
	return entries, err
}

// OpenReal opens the directory dir/name, which must not be a link.
func OpenReal(dir, name string) (*os.Root, error) {
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
