package fusefs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// mount attaches raw to m.dir and serves it.
//
// As root it calls mount(2) itself and hands the library an open device: the
// library's own way leaves the device open in every child process, and then a
// killed server would not end its mount, and its readers would hang for ever.
// Else, or where mount(2) is refused, fusermount3 does it.
func (m *Mount) mount(raw fuse.RawFileSystem, opts *fuse.MountOptions) error {
	point := m.dir
	if os.Geteuid() == 0 {
		fd, err := mountDirect(m.dir, opts)
		if err == nil {
			m.direct = true
			point = fmt.Sprintf("/dev/fd/%d", fd)
		} else if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTCONN) || errors.Is(err, unix.ENOTDIR) {
			return err // of the directory: fusermount3 would say it less well
		}
	}
	server, err := fuse.NewServer(raw, point, opts)
	if err != nil {
		if m.direct {
			unix.Unmount(m.dir, unix.MNT_DETACH)
		}
		return err
	}
	m.server, m.served = server, make(chan struct{})
	go func() {
		server.Serve()
		close(m.served)
	}()
	return server.WaitMount()
}

func mountDirect(dir string, opts *fuse.MountOptions) (fd int, err error) {
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return -1, err
	}
	fd, err = unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	data := fmt.Sprintf("fd=%d,rootmode=%o,user_id=%d,group_id=%d,max_read=%d",
		fd, st.Mode&unix.S_IFMT, os.Geteuid(), os.Getegid(), opts.MaxWrite)
	err = unix.Mount(opts.FsName, dir, "fuse."+opts.Name, unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOATIME, data)
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// unmount waits closeWait for the mount's users to go, then detaches it.
func (m *Mount) unmount() error {
	deadline := time.Now().Add(closeWait)
	for pause := time.Millisecond; ; pause = min(2*pause, 100*time.Millisecond) {
		err := unmount(m.dir, false)
		if err == nil {
			<-m.served
			return nil
		}
		select {
		case <-m.served: // somebody else unmounted it
			return nil
		default:
		}
		if time.Now().After(deadline) {
			// The connection lives until the last file is closed; until
			// then its requests are refused.
			return unmount(m.dir, true)
		}
		time.Sleep(pause)
	}
}

func unmount(dir string, lazy bool) error {
	if os.Geteuid() == 0 {
		flags := unix.UMOUNT_NOFOLLOW
		if lazy {
			flags |= unix.MNT_DETACH
		}
		return unix.Unmount(dir, flags)
	}
	args := []string{"-u", "-q", "--", dir}
	if lazy {
		args = []string{"-u", "-z", "--", dir}
	}
	bin, err := exec.LookPath("fusermount3")
	if err != nil {
		if bin, err = exec.LookPath("fusermount"); err != nil {
			return err
		}
	}
	var stderr bytes.Buffer
	cmd := exec.Command(bin, args...)
	cmd.Stderr = &stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %v: %s", bin, err, bytes.TrimSpace(stderr.Bytes()))
	}
	return nil
}

// dying reports whether the thread that made a request is being killed: then
// the kernel has put SIGKILL among its pending signals, whichever the signal
// was that ended it.
func dying(ctx context.Context) bool {
	caller, ok := fuse.FromContext(ctx)
	if !ok || caller.Pid == 0 { // of a process we cannot see
		return false
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", caller.Pid))
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESRCH) {
		return true
	}
	for line := range strings.Lines(string(status)) {
		if hex, ok := strings.CutPrefix(line, "SigPnd:"); ok {
			pending, err := strconv.ParseUint(strings.TrimSpace(hex), 16, 64)
			return err == nil && pending&(1<<(unix.SIGKILL-1)) != 0
		}
	}
	return false
}

// Stale reports whether dir is a mount whose server is gone: "transport
// endpoint is not connected". It asks the server if there is one.
func Stale(dir string) bool {
	// stat could be answered from the kernel's cache.
	var st unix.Statfs_t
	return errors.Is(unix.Statfs(dir, &st), unix.ENOTCONN)
}

// Recover detaches every stale mount at dir; where there is none it does
// nothing. Processes that had files of it open keep getting errors.
func Recover(dir string) error {
	for Stale(dir) {
		if err := unmount(dir, true); err != nil {
			return fmt.Errorf("recover mount %s: %w", dir, err)
		}
	}
	return nil
}
