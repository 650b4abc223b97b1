package vmm

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) {
	if os.Getenv("VMM_TEST_TERMINAL") != "" {
		os.Exit(terminalHelper())
	}
	patience, retryLow = 100*time.Millisecond, 100*time.Millisecond
	os.Exit(m.Run())
}

func TestLookup(t *testing.T) {
	dir, libexec := t.TempDir(), t.TempDir()
	t.Setenv("PATH", dir)
	defer func(d []string) { LibexecDirs = d }(LibexecDirs)
	LibexecDirs = []string{libexec}
	put := func(path string, mode os.FileMode) {
		if err := os.WriteFile(path, []byte("#!/bin/sh\n"), mode); err != nil {
			t.Fatal(err)
		}
	}
	put(filepath.Join(dir, "isr-vmm-bochs"), 0o755)
	put(filepath.Join(libexec, "isr-vmm-bochs"), 0o755)
	put(filepath.Join(libexec, "isr-vmm-simh"), 0o755)
	put(filepath.Join(dir, "isr-vmm-text"), 0o644)
	put(filepath.Join(dir, "isr-vmm-Odd"), 0o755)
	put(filepath.Join(dir, "isr-vmm-qemu"), 0o755) // a built-in one goes first
	if got, want := List(), []string{"qemu", "none", "shell", "bochs", "simh"}; !slices.Equal(got, want) {
		t.Errorf("List: got %v, want %v", got, want)
	}
	for name, want := range map[string]string{
		"qemu": "*vmm.QEMU", "none": "vmm.None", "shell": "vmm.Shell", "bochs": "*vmm.External", "simh": "*vmm.External",
	} {
		d, err := Lookup(name)
		if err != nil || d.Name() != name || fmt.Sprintf("%T", d) != want {
			t.Errorf("Lookup(%s): got %T, %v", name, d, err)
		}
	}
	if d, _ := Lookup("bochs"); d.(*External).Program != filepath.Join(dir, "isr-vmm-bochs") {
		t.Errorf("bochs: got %v", d)
	}
	for _, name := range []string{"", "text", "Odd", "../bochs", "a/b", "vmware"} {
		if d, err := Lookup(name); !errors.Is(err, ErrUnknown) {
			t.Errorf("Lookup(%q): got %v, %v", name, d, err)
		}
	}
}

func TestInfoErr(t *testing.T) {
	if err := (Info{Runnable: true}).Err(); err != nil {
		t.Errorf("runnable: got %v", err)
	}
	err := Info{Reason: "no", Hint: "do"}.Err()
	if !errors.Is(err, ErrNotRunnable) || err.Error() != "not runnable here: no (do)" {
		t.Errorf("got %v", err)
	}
}

func closed() chan struct{} { c := make(chan struct{}); close(c); return c }

func TestNone(t *testing.T) {
	m := &Machine{}
	if out, err := (None{}).Run(t.Context(), m, closed()); err != nil || out.Suspended {
		t.Errorf("got %+v, %v", out, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := (None{}).Run(ctx, m, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if _, err := (None{}).Info(t.Context(), &Machine{Options: map[string]string{"x": "1"}}); !errors.Is(err, ErrOption) || !strings.Contains(err.Error(), "know x") {
		t.Errorf("option: got %v", err)
	}
	if _, err := (None{}).Run(t.Context(), &Machine{Suspended: "qemu"}, closed()); !errors.Is(err, ErrNotRunnable) || !strings.Contains(err.Error(), "-m qemu") {
		t.Errorf("suspended by qemu: got %v", err)
	}
}

// output is a file to give as standard output, and what arrived there.
func output(t *testing.T) (*os.File, func() string) {
	t.Helper()
	f, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f, func() string {
		b, err := os.ReadFile(f.Name())
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
}

func TestShell(t *testing.T) {
	in, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	fmt.Fprintf(in, "echo disk $DISK memory $MEMORY\nexit 3\n")
	for _, c := range []struct {
		shell, command, memory string
		status                 int
		want                   string
	}{
		{"/bin/sh", "", "/m", 3, "disk /d memory /m\n"},
		{"/bin/sh", "", "", 3, "disk /d memory\n"},
		{"/bin/false", "echo $NAME; cat >/dev/null", "", 0, "alice/box\n"},
		{"", "kill -9 $$", "", 128 + 9, ""},
	} {
		t.Setenv("SHELL", c.shell)
		in.Seek(0, 0)
		out, said := output(t)
		m := &Machine{Name: "alice/box", Disk: "/d", Memory: c.memory, Stdin: in, Stdout: out, Options: map[string]string{}}
		if c.command != "" {
			m.Options["command"] = c.command
		}
		_, err := Shell{}.Run(t.Context(), m, nil)
		var exit *ExitError
		status := 0
		if errors.As(err, &exit) {
			status = exit.Status
		} else if err != nil {
			t.Errorf("%+v: %v", c, err)
		}
		if status != c.status || said() != c.want {
			t.Errorf("%+v: got status %d, %q", c, status, said())
		}
	}
}

func TestShellEnds(t *testing.T) {
	running := func(command string, run func(ctx context.Context, m *Machine)) {
		out, said := output(t)
		m := &Machine{Stdout: out, Options: map[string]string{"command": command}}
		run(t.Context(), m)
		_ = said
	}
	// Told to suspend, it hangs up.
	running("trap 'echo bye; exit 9' HUP; echo ready; while :; do sleep 0.01; done", func(ctx context.Context, m *Machine) {
		stop := make(chan struct{})
		m.Started = func() {
			go func() {
				for {
					b, _ := os.ReadFile(m.Stdout.Name())
					if strings.Contains(string(b), "ready") {
						break
					}
					time.Sleep(time.Millisecond)
				}
				close(stop)
			}()
		}
		if _, err := (Shell{}).Run(ctx, m, stop); err != nil {
			t.Errorf("suspend: got %v", err)
		}
		if b, _ := os.ReadFile(m.Stdout.Name()); !strings.Contains(string(b), "bye") {
			t.Errorf("said %q", b)
		}
	})
	running("sleep 60 & wait", func(ctx context.Context, m *Machine) {
		ctx, cancel := context.WithCancel(ctx)
		m.Started = cancel
		if _, err := (Shell{}).Run(ctx, m, nil); !errors.Is(err, context.Canceled) {
			t.Errorf("cancel: got %v", err)
		}
	})
	if _, err := (Shell{}).Run(t.Context(), &Machine{Options: map[string]string{"shell": "x"}}, nil); !errors.Is(err, ErrOption) {
		t.Errorf("option: got %v", err)
	}
}

// A shell on a terminal is in the foreground there, and we are again after it.
func TestShellTerminal(t *testing.T) {
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Skipf("pty: %v", err)
	}
	defer master.Close()
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	slave, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "VMM_TEST_TERMINAL=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true, Ctty: 0}
	c, err := start(cmd)
	slave.Close()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.kill)
	seen := make(chan string, 100)
	go func() {
		defer close(seen)
		sc := bufio.NewScanner(master)
		for sc.Scan() {
			seen <- sc.Text()
		}
	}()
	until := func(text string) {
		t.Helper()
		for {
			select {
			case line, ok := <-seen:
				if !ok {
					t.Fatalf("terminal ended before %q", text)
				}
				if strings.Contains(line, text) {
					return
				}
			case <-time.After(limit):
				t.Fatalf("no %q on the terminal", text)
			}
		}
	}
	until("ready")
	fmt.Fprintln(master, "one")
	until("shell got one, foreground yes")
	until("helper in the foreground: true")
	fmt.Fprintln(master, "two")
	until("helper got two")
	<-c.done
	if c.err != nil {
		t.Errorf("helper: %v", c.err)
	}
}

func terminalHelper() int {
	const script = `echo ready; read x; set -- $(cat /proc/$$/stat); fg=no; [ "$5" = "$8" ] && fg=yes; echo "shell got $x, foreground $fg"`
	m := &Machine{Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr, Options: map[string]string{"command": script}}
	if _, err := (Shell{}).Run(context.Background(), m, nil); err != nil {
		fmt.Println("run:", err)
		return 1
	}
	front, _ := unix.IoctlGetInt(0, unix.TIOCGPGRP)
	fmt.Println("helper in the foreground:", front == syscall.Getpgrp())
	line, err := bufio.NewReader(os.Stdin).ReadString('\n')
	if err != nil {
		return 1
	}
	fmt.Println("helper got", strings.TrimSpace(line))
	return 0
}

// script installs an external driver.
func script(t *testing.T, body string) Driver {
	t.Helper()
	dir := t.TempDir()
	p := filepath.Join(dir, "isr-vmm-toy")
	if err := os.WriteFile(p, []byte("#!/bin/sh\n"+body), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	d, err := Lookup("toy")
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestExternal(t *testing.T) {
	d := script(t, `
case $1 in
info) echo VMM=Toy; echo "what is this"; echo RUNNABLE=yes; [ -z "$DISK" ] || exit 7 ;;
run)
	echo "NOTICE=$NAME $UUID disk $DISK of $DISKSIZE, memory $MEMORY of $MEMSIZE, $SUSPENDED, $FULLSCREEN, $OPTION_a_b, $REQUIRE_version"
	case $OPTION_how in
	off) ;;
	fail) echo ERROR=on fire; exit 1 ;;
	status) exit 4 ;;
	sigint) while :; do sleep 0.01; done ;;
	suspend)
		trap 'echo state >$CFGDIR/toy; echo SUSPENDED=yes; echo REQUIRE_version=3; exit 0' INT
		echo NOTICE=ready
		while :; do sleep 0.01; done ;;
	leave) sleep 60 & ;;
	esac ;;
poweroff) rm -f $CFGDIR/toy ;;
cleanup) echo SUCCESS=no; echo "ERROR=cannot" ;;
esac
`)
	said := make(chan string, 10)
	m := &Machine{
		Name: "alice/box", UUID: "u", Disk: "/d", DiskSize: 5, Memory: "/m", MemorySize: 6, CfgDir: t.TempDir(),
		Options: map[string]string{"a-b": "x y", "how": "off"}, Requires: map[string]string{"version": "2"},
		Say: func(f string, a ...any) { said <- fmt.Sprintf(f, a...) },
	}
	i, err := d.Info(t.Context(), m)
	if err != nil || !i.Runnable || i.Title != "Toy" {
		t.Errorf("info: %+v, %v", i, err)
	}
	out, err := d.Run(t.Context(), m, nil)
	if err != nil || out.Suspended || out.Requires["vmm"] != "toy" {
		t.Errorf("off: %+v, %v", out, err)
	}
	if got, want := <-said, "alice/box u disk /d of 5, memory /m of 6, no, no, x y, 2"; got != want {
		t.Errorf("environment: got %q, want %q", got, want)
	}
	m.Options["how"] = "fail"
	if _, err := d.Run(t.Context(), m, nil); err == nil || !strings.Contains(err.Error(), "on fire") {
		t.Errorf("fail: %v", err)
	}
	m.Options["how"] = "status"
	var exit *ExitError
	if _, err := d.Run(t.Context(), m, nil); !errors.As(err, &exit) || exit.Status != 4 {
		t.Errorf("status: %v", err)
	}
	for len(said) > 0 {
		<-said
	}
	m.Options["how"] = "suspend"
	stop := make(chan struct{})
	go func() {
		for s := range said {
			if s == "ready" {
				close(stop)
				return
			}
		}
	}()
	pages := &filePages{}
	m.Pages = pages
	out, err = d.Run(t.Context(), m, stop)
	if err != nil || !out.Suspended || out.Requires["version"] != "3" || pages.begun != 1 {
		t.Errorf("suspend: %+v, %v, began %d saves", out, err, pages.begun)
	}
	if b, _ := os.ReadFile(filepath.Join(m.CfgDir, "toy")); string(b) != "state\n" {
		t.Errorf("state: %q", b)
	}
	m.Options["how"] = "sigint" // dies of the signal: success, and nothing saved
	if out, err := d.Run(t.Context(), m, closed()); err != nil || out.Suspended {
		t.Errorf("death by SIGINT: %+v, %v", out, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := d.Run(ctx, m, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("cancel: %v", err)
	}
	m.Options["how"] = "leave" // a child that keeps the pipe open does not keep us
	if _, err := d.Run(t.Context(), m, nil); err != nil {
		t.Errorf("leave: %v", err)
	}
	if err := d.Poweroff(t.Context(), m); err != nil {
		t.Errorf("poweroff: %v", err)
	}
	if _, err := os.Stat(filepath.Join(m.CfgDir, "toy")); err == nil {
		t.Error("state after poweroff")
	}
	if err := d.Cleanup(t.Context(), m); err == nil || !strings.Contains(err.Error(), "cannot") {
		t.Errorf("cleanup: %v", err)
	}
	m.Suspended = "qemu" // it says runnable, but cannot know what it says
	if i, err := d.Info(t.Context(), m); err != nil || i.Runnable {
		t.Errorf("suspended by another: %+v, %v", i, err)
	}
}

func FuzzListen(f *testing.F) {
	f.Add([]byte("A=b\nNOTICE=x\n=\nA B=c\nERROR="))
	f.Fuzz(func(t *testing.T, in []byte) {
		s, _ := listen(bytes.NewReader(in), func(string) {})
		for k, v := range s {
			if k == "" || notVariable.MatchString(k) || strings.Contains(v, "\n") || k == "NOTICE" {
				t.Errorf("heard %q=%q", k, v)
			}
		}
	})
}
