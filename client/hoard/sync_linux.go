package hoard

import (
	"os"

	"golang.org/x/sys/unix"
)

// syncfs writes out the file system that root is on, and reports errors of
// writing since root was opened (Linux 5.8 and later).
func syncfs(root *os.File) error { return unix.Syncfs(int(root.Fd())) }
