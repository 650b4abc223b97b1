package vmm

import (
	"context"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Shell runs $SHELL, or with the option command= that line by /bin/sh -c, with
// DISK and MEMORY in the environment set to the paths of the images (MEMORY is
// left out if there is none), NAME, UUID and CFGDIR beside them. Standard input,
// output and error are the caller's; a terminal is lent to the shell as its
// foreground process group.
//
// The run ends when the shell does: status 0 is success, anything else an
// *ExitError. A request to suspend is passed on as SIGHUP, which is what ends
// an interactive shell, and as SIGKILL five seconds later. It writes no memory image.
type Shell struct{}

const shellGrace = 5 * time.Second

func (Shell) Name() string { return "shell" }

func (Shell) Info(ctx context.Context, m *Machine) (Info, error) {
	if err := checkOptions("shell", m.Options, "command"); err != nil {
		return Info{}, err
	}
	if i, no := suspendedElsewhere("shell", m, "shell"); no {
		return i, nil
	}
	return Info{Title: "shell", Runnable: true}, nil
}

func (d Shell) Run(ctx context.Context, m *Machine, suspend <-chan struct{}) (Outcome, error) {
	i, err := d.Info(ctx, m)
	if err == nil {
		err = i.Err()
	}
	if err != nil {
		return Outcome{}, err
	}
	program := os.Getenv("SHELL")
	if program == "" {
		program = "/bin/sh"
	}
	cmd := exec.Command(program)
	if c := m.Options["command"]; c != "" {
		cmd = exec.Command("/bin/sh", "-c", c)
	}
	cmd.Env = append(os.Environ(), "DISK="+m.Disk, "NAME="+m.Name, "UUID="+m.UUID, "CFGDIR="+m.CfgDir)
	if m.Memory != "" {
		cmd.Env = append(cmd.Env, "MEMORY="+m.Memory)
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = file(m.Stdin), file(m.Stdout), file(m.Stderr)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	giveBack := lendTerminal(cmd, m.Stdin)
	c, err := start(cmd)
	if err != nil {
		giveBack()
		return Outcome{}, err
	}
	defer giveBack()
	m.started()
	var late <-chan time.Time
	told := false
	for {
		select {
		case <-c.done:
			if st := c.status(); st != 0 && !told {
				return Outcome{CPU: c.cpu()}, &ExitError{Program: program, Status: st}
			}
			return Outcome{CPU: c.cpu()}, nil
		case <-ctx.Done():
			c.kill()
			return Outcome{}, ctx.Err()
		case <-suspend:
			suspend, told, late = nil, true, time.After(shellGrace)
			c.signal(syscall.SIGHUP)
			c.signal(syscall.SIGCONT) // a stopped shell would not see it
		case <-late:
			c.kill()
		}
	}
}

// file keeps a nil *os.File from becoming a non-nil io.Reader.
func file(f *os.File) *os.File {
	if f == nil {
		f, _ = os.OpenFile(os.DevNull, os.O_RDWR, 0)
	}
	return f
}

// lendTerminal makes cmd's group the foreground group of the terminal tty, if
// tty is our controlling terminal and the foreground is ours or our parent's to
// give away, and returns what gives it back.
func lendTerminal(cmd *exec.Cmd, tty *os.File) func() {
	if tty == nil {
		return func() {}
	}
	fd := int(tty.Fd())
	front, err := unix.IoctlGetInt(fd, unix.TIOCGPGRP)
	if err != nil {
		return func() {} // no terminal, or not ours
	}
	if parents, err := syscall.Getpgid(os.Getppid()); front != syscall.Getpgrp() && (err != nil || front != parents) {
		return func() {} // we were started in the background
	}
	cmd.SysProcAttr.Foreground, cmd.SysProcAttr.Ctty = true, fd
	return func() {
		// We are in the background now: unless ignored, this signal would stop us here.
		signal.Ignore(syscall.SIGTTOU)
		unix.IoctlSetPointerInt(fd, unix.TIOCSPGRP, front)
		signal.Reset(syscall.SIGTTOU)
	}
}

func (Shell) Poweroff(ctx context.Context, m *Machine) error { return nil }
func (Shell) Cleanup(ctx context.Context, m *Machine) error  { return nil }
