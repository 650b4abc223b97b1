package store

import (
	"io/fs"
	"path/filepath"
	"syscall"
)

// Size is what a parcel takes on the disk.
type Size struct {
	Objects, Bytes int64 // of all its versions together
	Own            int64 // bytes of those that no other parcel shares: what its removal frees
}

// Size counts the parcel's objects.
func (p *Parcel) Size() (Size, error) {
	var s Size
	err := filepath.WalkDir(p.HdkDir(), func(_ string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		fi, err := e.Info()
		if err != nil {
			return err
		}
		s.Objects++
		s.Bytes += fi.Size()
		if st, ok := fi.Sys().(*syscall.Stat_t); ok && st.Nlink == 1 {
			s.Own += fi.Size()
		}
		return nil
	})
	if err != nil {
		return s, p.Wrap(err)
	}
	return s, nil
}
