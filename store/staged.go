package store

import (
	"errors"
	"io/fs"
	"os"
)

// Staged is how much waits in the staging area for a commit: objects, some of
// which it may not want, and their bytes.
func (p *Parcel) Staged() (objects, bytes int64, err error) {
	entries, err := os.ReadDir(p.StagingDir())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return 0, 0, p.Wrap(err)
	}
	for _, entry := range entries {
		fi, err := entry.Info()
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return 0, 0, p.Wrap(err)
		}
		if fi.Mode().IsRegular() {
			objects++
			bytes += fi.Size()
		}
	}
	return objects, bytes, nil
}
