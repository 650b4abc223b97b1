//go:build !linux

package hoard

import (
	"io/fs"
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
