//go:build !linux

package hoard

import (
	"io/fs"
	"math"
	"os"
	"path/filepath"

	"isr/store/atomicfile"
)

// syncfs forces each file and directory below root to disk: slow, and right
// where there is no such call.
func syncfs(root *os.File) error {
	return filepath.WalkDir(root.Name(), func(name string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if e.IsDir() {
			return atomicfile.SyncDir(name)
		}
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		defer f.Close()
		return f.Sync()
	})
}

// free is not known here: what does not fit is found when it is written.
func free(dir string) (int64, error) { return math.MaxInt64, nil }
