package store

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"isr/store/parcel"
	"isr/store/tree"
)

// OwnDirs makes sure that none of the parcel's directories is a link;
// parcel.ErrDamaged if one is.
func (p *Parcel) OwnDirs() error {
	err := tree.OwnDirs(p.user.LockRoot, p.user.ContentRoot, p.lock, filepath.Join(p.lock, "keys"),
		p.content, p.HdkDir(), p.StagingDir(), filepath.Join(p.content, "keys"))
	if err != nil {
		return p.Wrap(err)
	}
	return nil
}

// ownObjectDirs is that for the directories of its objects, of which there are
// many: who makes objects appear there asks.
func (p *Parcel) ownObjectDirs() error {
	entries, err := os.ReadDir(p.HdkDir())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return p.Wrap(err)
	}
	for _, e := range entries {
		if !e.IsDir() && len(e.Name()) == 2 {
			if err := tree.OwnDirs(filepath.Join(p.HdkDir(), e.Name())); err != nil {
				return p.Wrap(err)
			}
		}
	}
	return nil
}

// OpenContent opens the content side, through no link.
func (p *Parcel) OpenContent() (*os.Root, error) {
	r, err := tree.OpenReal(p.user.ContentRoot, p.name)
	return r, p.openError("content", p.content, err)
}

// OpenLock opens the lock side, through no link.
func (p *Parcel) OpenLock() (*os.Root, error) {
	r, err := tree.OpenReal(p.user.LockRoot, p.name)
	return r, p.openError("lock side", p.lock, err)
}

func (p *Parcel) openError(what, path string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, fs.ErrNotExist):
		return p.Errorf(parcel.Damaged, "%s is missing", what).WithHint("restore %s from a backup", path)
	}
	return p.Wrap(err)
}
