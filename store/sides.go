package store

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"isr/store/parcel"
	"isr/store/tree"
)

// OwnDirs is that for the directories of a parcel.
func (p *Parcel) ownDirs() error {
	err := tree.OwnDirs(p.user.lockRoot, p.user.contentRoot, p.lock, filepath.Join(p.lock, "keys"),
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
			if err := tree.OwnDirs(filepath.Join(p.hdk(), e.Name())); err != nil {
				return p.wrap(err)
			}
		}
	}
	return nil
}

// openContent opens the content side.
func (p *Parcel) openContent() (*os.Root, error) {
	r, err := tree.OpenReal(p.user.contentRoot, p.name)
	return r, p.openError("content", p.content, err)
}

// openLock opens the lock side.
func (p *Parcel) openLock() (*os.Root, error) {
	r, err := tree.OpenReal(p.user.lockRoot, p.name)
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
