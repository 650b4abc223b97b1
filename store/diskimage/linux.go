package diskimage

import (
	"syscall"

	"golang.org/x/sys/unix"

	"isr/store/parcel"
)

// alone ends qemu-img if this process is killed: nobody else would. And it has
// no terminal: it reads images that come from anybody, maybe as an account that
// is not whose terminal that is, and could type there.
var alone = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setsid: true}

// room refuses what does not fit dir's file system.
func room(dir string, need int64) error {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return nil // then the copy itself will tell
	}
	if free := int64(st.Bavail) * st.Bsize; need > free {
		return parcel.NewError(parcel.Full, "it holds %d bytes, and %d are free in %s", need, free, dir).
			WithHint("make room there; the copy goes when the parcel is made")
	}
	return nil
}
