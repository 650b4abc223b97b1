package locksrvtest

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// InMemory runs a package's tests with their temporary directories in memory,
// if there is room and programs may be run from it. It is for tests that do not
// ask whether anything is durable: to wait for a disk, and for all that others
// write to it, is most of what they would do.
func InMemory(m *testing.M) (status int) {
	const room = 2 << 30 // bytes, several times of what they write
	var fs unix.Statfs_t
	if unix.Statfs("/dev/shm", &fs) != nil || fs.Type != unix.TMPFS_MAGIC || int64(fs.Bavail)*fs.Bsize < room || fs.Flags&unix.ST_NOEXEC != 0 {
		return m.Run()
	}
	dir, err := os.MkdirTemp("/dev/shm", "isr")
	if err != nil {
		return m.Run()
	}
	defer os.RemoveAll(dir)
	os.Chmod(dir, 0o755) // as /tmp: some run programs as other accounts
	os.Setenv("TMPDIR", dir)
	return m.Run()
}
