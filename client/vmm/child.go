package vmm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// child is a started program that dies with us.
type child struct {
	cmd  *exec.Cmd
	done chan struct{} // closed when it is gone
	err  error         // of Wait; valid after done
}

// start starts cmd so that the kernel kills it if this process dies. The kernel
// ties that to the thread that started it, so one thread is kept for as long as the child lives.
// Each of before is called on that thread first: what it does to the thread, the child inherits.
func start(cmd *exec.Cmd, before ...func() error) (*child, error) {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	c := &child{cmd: cmd, done: make(chan struct{})}
	started := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with this goroutine
		var err error
		for _, f := range before {
			err = errors.Join(err, f())
		}
		if err == nil {
			err = cmd.Start()
		}
		started <- err
		if err == nil {
			c.err = cmd.Wait()
			close(c.done)
		}
	}()
	return c, <-started
}

// signal sends sig to the child's whole process group if it leads one, else to the child.
func (c *child) signal(sig syscall.Signal) {
	select {
	case <-c.done:
		return // the number may be another's by now
	default:
	}
	if a := c.cmd.SysProcAttr; a.Setpgid || a.Setsid {
		syscall.Kill(-c.cmd.Process.Pid, sig)
		return
	}
	c.cmd.Process.Signal(sig)
}

// kill ends the child and waits until it is gone.
func (c *child) kill() {
	c.signal(syscall.SIGKILL)
	<-c.done
}

// cpu is the processor time that the child took; 0 while it lives.
func (c *child) cpu() time.Duration {
	select {
	case <-c.done:
		if ps := c.cmd.ProcessState; ps != nil {
			return ps.UserTime() + ps.SystemTime()
		}
	default:
	}
	return 0
}

// status is the child's exit status as shells count it.
func (c *child) status() int { return exitStatus(c.cmd.ProcessState) }

func exitStatus(ps *os.ProcessState) int {
	if ws, ok := ps.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		return 128 + int(ws.Signal())
	}
	return ps.ExitCode()
}

// tail keeps the last lines of what is written to it.
type tail struct {
	mu  sync.Mutex
	buf []byte
}

const tailBytes = 4096

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf = append(t.buf, p...)
	if len(t.buf) > tailBytes {
		t.buf = append(t.buf[:0], t.buf[len(t.buf)-tailBytes:]...)
	}
	return len(p), nil
}

// String is the last n lines, joined to one.
func (t *tail) last(n int) string {
	t.mu.Lock()
	defer t.mu.Unlock()
	lines := strings.Split(string(bytes.TrimSpace(t.buf)), "\n")
	if len(lines) > n {
		lines = lines[len(lines)-n:]
	}
	return strings.Join(lines, "; ")
}

// A pid file holds "PID STARTTIME": the number alone may have gone to another
// process by the time somebody reads it.

func writePidFile(path string, pid int) error {
	start, err := startTime(pid)
	if err != nil {
		return err
	}
	return os.WriteFile(path, fmt.Appendf(nil, "%d %s\n", pid, start), 0o600)
}

// killStale ends the process a pid file names if it is still that one and its
// command line holds every one of words, waits until it is gone, and deletes the file.
func killStale(ctx context.Context, path string, words ...string) error {
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	var pid int
	var start string
	if _, err := fmt.Sscanf(string(b), "%d %s", &pid, &start); err == nil && pid > 1 {
		if err := killIf(ctx, pid, start, words); err != nil {
			return fmt.Errorf("process %d of %s: %w", pid, path, err)
		}
	}
	return os.Remove(path)
}

func killIf(ctx context.Context, pid int, start string, words []string) error {
	// A pidfd names the process, not the number: what is checked is what is killed.
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if errors.Is(err, unix.ESRCH) {
		return nil
	} else if err != nil {
		return err
	}
	defer unix.Close(fd)
	if now, err := startTime(pid); err != nil || now != start {
		return nil
	}
	cmdline, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "cmdline"))
	if err != nil {
		return nil
	}
	for _, w := range words {
		if !bytes.Contains(cmdline, []byte(w)) {
			return nil
		}
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return err
	}
	for ctx.Err() == nil {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 200)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
		if n > 0 {
			return nil
		}
	}
	return ctx.Err()
}

// startTime is when a process started, in clock ticks since boot: field 22 of its stat.
func startTime(pid int) (string, error) {
	b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return "", err
	}
	// The second field is the name in parentheses, and may hold anything.
	f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	if len(f) < 20 {
		return "", fmt.Errorf("stat of process %d: %d fields", pid, len(f))
	}
	return f[19], nil
}

func newGroup() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }
