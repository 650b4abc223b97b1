package store

import (
	"errors"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"isr/store/parcel"
	"isr/store/seal"
)

// Whoever removes or measures objects reaches them through directories that
// are open, and opened without following a link: one that was planted below
// a user's directory must not lead to another parcel, nor out of the tree.

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

// objectDirs are the directories below hdk that objects can be in.
func objectDirs(content *os.Root) ([]string, error) {
	entries, err := readDir(content, "hdk")
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		if e.IsDir() && len(e.Name()) == 2 && strings.Trim(e.Name(), "0123456789abcdef") == "" {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// objectTags are the tags that the files in hdk/ab are named by. What is
// named otherwise, or belongs elsewhere, is left out.
func objectTags(content *os.Root, ab string) (iter.Seq[seal.Tag], error) {
	var names []string
	d, err := content.Open(filepath.Join("hdk", ab))
	if err == nil {
		defer d.Close()
		names, err = d.Readdirnames(-1)
	}
	// Whoever emptied it may have removed it by now.
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	return func(yield func(seal.Tag) bool) {
		for _, n := range names {
			if tag, err := seal.ParseTag(n); err == nil && n[:2] == ab && !yield(tag) {
				return
			}
		}
	}, nil
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
