package hoard

import (
	"os"

	"golang.org/x/sys/unix"
)

// syncfs writes out the file system that root is on, and reports errors of
// writing since root was opened (Linux 5.8 and later).
func syncfs(root *os.File) error { return unix.Syncfs(int(root.Fd())) }

// free is how many bytes a user may still write to the file system of dir.
func free(dir string) (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, err
	}
	return int64(st.Bavail) * st.Bsize, nil
}
