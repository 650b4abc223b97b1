package vmm

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"isr/contrib/guest"
)

// filePages is a memory image in a plain file.
type filePages struct {
	f     *os.File
	mu    sync.Mutex
	asked func(off int64, n int) bool // nil: everything
	begun int
	wrote int64
	runs  int
	fail  func(off int64) error // of WriteAt
}

func (p *filePages) BeginSave() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.begun++
	return nil
}

func (p *filePages) Asked(off int64, n int) bool { return p.asked == nil || p.asked(off, n) }

func (p *filePages) WriteAt(b []byte, off int64) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.fail != nil {
		if err := p.fail(off); err != nil {
			return 0, err
		}
	}
	p.wrote += int64(len(b))
	p.runs++
	return p.f.WriteAt(b, off)
}

func needQEMU(t testing.TB) {
	t.Helper()
	if _, err := findQEMU(""); err != nil {
		lacking(t, "qemu: %v", err)
	}
}

func lacking(t testing.TB, format string, args ...any) {
	t.Helper()
	if os.Getenv("ISR_TEST_REQUIRE") == "1" {
		t.Fatalf(format, args...)
	}
	t.Skipf(format, args...)
}

// rig is a machine with plain files for images.
type rig struct {
	testing.TB
	m                      *Machine
	pages                  *filePages
	console                *guest.Console
	mu                     sync.Mutex
	said                   []string
	startedIn, suspendedIn time.Duration // the last run
}

const testMemory = 256 << 20

// newRig makes a machine that boots from disk, or one with an empty disk, which
// stops in the firmware after a second.
func newRig(t testing.TB, disk string, memory int64) *rig {
	t.Helper()
	needQEMU(t)
	dir := t.TempDir()
	run, err := os.MkdirTemp("", "vmm") // short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(run) })
	if disk == "" {
		disk = filepath.Join(dir, "disk")
		if err := os.WriteFile(disk, make([]byte, 1<<20), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	st, err := os.Stat(disk)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(filepath.Join(dir, "memory"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if err := f.Truncate(memory); err != nil {
		t.Fatal(err)
	}
	r := &rig{TB: t, pages: &filePages{f: f}}
	r.m = &Machine{
		Name: "alice/box, the first", UUID: "6ab4f1d0-0f3c-4c57-9a51-4d0e8f2c9b11",
		Disk: disk, DiskSize: st.Size(), Memory: f.Name(), MemorySize: memory,
		CfgDir: filepath.Join(dir, "cfg"), RunDir: run,
		Options: map[string]string{"display": "none", "accel": "tcg", "serial": "unix:" + filepath.Join(run, "serial")},
		Pages:   r.pages,
		Say: func(f string, a ...any) {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.said = append(r.said, fmt.Sprintf(f, a...))
		},
	}
	if err := os.Mkdir(r.m.CfgDir, 0o700); err != nil {
		t.Fatal(err)
	}
	return r
}

func (r *rig) heard(text string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.ContainsFunc(r.said, func(s string) bool { return strings.Contains(s, text) })
}

// running is a machine in the middle of Run.
type running struct {
	*rig
	suspend func()
	kill    context.CancelCauseFunc
	end     chan ended
}

type ended struct {
	out Outcome
	err error
}

func (r *rig) run() *running {
	r.Helper()
	ctx, cancel := context.WithCancelCause(context.Background())
	stop := make(chan struct{})
	x := &running{rig: r, suspend: sync.OnceFunc(func() { close(stop) }), kill: cancel, end: make(chan ended, 1)}
	started, begin := make(chan struct{}), time.Now()
	r.m.Started = func() {
		close(started)
		r.startedIn = time.Since(begin)
		r.Logf("runs after %v", time.Since(begin).Round(time.Millisecond))
	}
	go func() {
		out, err := (&QEMU{}).Run(ctx, r.m, stop)
		x.end <- ended{out, err}
	}()
	r.Cleanup(func() { cancel(nil) })
	if strings.HasPrefix(r.m.Options["serial"], "unix:") {
		path := strings.TrimPrefix(r.m.Options["serial"], "unix:")
		dctx, done := context.WithTimeout(ctx, limit)
		defer done()
		// A run that fails has nobody to listen: do not wait for it.
		failed := make(chan struct{})
		go func() {
			select {
			case e := <-x.end:
				x.end <- e
				done()
			case <-failed:
			}
		}()
		var err error
		if r.console == nil {
			r.console, err = guest.Dial(dctx, path)
		} else {
			err = r.console.Redial(dctx, path)
		}
		close(failed)
		if err != nil {
			select {
			case e := <-x.end:
				r.Fatalf("run: %+v, %v", e.out, e.err)
			default:
				r.Fatal(err)
			}
		}
	}
	select {
	case <-started:
	case e := <-x.end:
		r.Fatalf("run: %+v, %v", e.out, e.err)
	case <-time.After(limit):
		r.Fatal("the machine does not start")
	}
	return x
}

// limit ends what hangs. A busy host may take minutes for what takes seconds.
const limit = 4 * time.Minute

func (x *running) wait() ended {
	x.Helper()
	select {
	case e := <-x.end:
		if x.console != nil {
			ctx, done := context.WithTimeout(context.Background(), limit)
			defer done()
			if err := x.console.WaitEnd(ctx); err != nil { // with its last lines
				x.Fatal(err)
			}
		}
		return e
	case <-time.After(limit):
		x.Fatal("run does not end")
		panic("unreachable")
	}
}

// suspended suspends, and records the outcome as a driver's caller does.
func (x *running) suspended() {
	x.Helper()
	begin := time.Now()
	x.suspend()
	e := x.wait()
	x.suspendedIn = time.Since(begin)
	x.Logf("suspended in %v", time.Since(begin).Round(time.Millisecond))
	if e.err != nil || !e.out.Suspended {
		x.Fatalf("suspend: got %+v, %v", e.out, e.err)
	}
	x.m.Suspended, x.m.Requires = "qemu", e.out.Requires
	x.m.Options = maps.Clone(x.m.Options)
	if _, err := os.Stat(filepath.Join(x.m.RunDir, pidName)); !errors.Is(err, fs.ErrNotExist) {
		x.Errorf("pid file after the run: %v", err)
	}
}

func (r *rig) tick(min int) int {
	r.Helper()
	ctx, done := context.WithTimeout(context.Background(), limit)
	defer done()
	n, err := r.console.WaitTick(ctx, min)
	if err != nil {
		r.Fatal(err)
	}
	return n
}

func (r *rig) command(line string) string {
	r.Helper()
	ctx, done := context.WithTimeout(context.Background(), limit)
	defer done()
	s, err := r.console.Command(ctx, line)
	if err != nil {
		r.Fatal(err)
	}
	return s
}

// One machine's life: it boots, works, is suspended and resumed twice, reboots,
// powers itself off.
func TestQEMULife(t *testing.T) {
	r := newRig(t, guest.Image(t), testMemory)
	x := r.run()
	r.tick(2)
	r.command("mem 24")
	sum := r.command("memsum")
	text := r.command("write /data/text hello") + r.command("cat /data/text")
	x.suspended()
	first := r.pages.wrote
	if first < 24<<20 {
		t.Errorf("wrote %d bytes of memory, expected at least what the guest filled", first)
	}
	if r.pages.begun != 1 {
		t.Errorf("BeginSave was called %d times", r.pages.begun)
	}

	// The record is all that a host needs to know before it has anything of the parcel.
	early := &Machine{Suspended: r.m.Suspended, Requires: r.m.Requires, Options: map[string]string{"display": "none"}}
	if i, err := (&QEMU{}).Info(t.Context(), early); err != nil || !i.Runnable {
		t.Errorf("early info: %+v, %v", i, err)
	}

	last := r.console.Last()
	x = r.run()
	if n := r.tick(last + 1); n != last+1 {
		t.Errorf("tick after resume: got %d, want %d", n, last+1)
	}
	if got := r.command("memsum"); got != sum {
		t.Errorf("memory after resume: got %s, want %s", got, sum)
	}
	if _, err := os.Stat(filepath.Join(r.m.CfgDir, stateName)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("device state while the machine runs: %v", err)
	}
	x.suspended()
	if again := r.pages.wrote - first; again > first/4 {
		t.Errorf("a short second run wrote %d bytes of memory, the first %d", again, first)
	}

	x = r.run()
	r.tick(r.console.Last() + 1)

	// A reboot goes on; a power-off ends the run without a memory image.
	if got := r.command("memsum"); got != sum {
		t.Errorf("memory after the last resume: got %s, want %s", got, sum)
	}
	ctx, done := context.WithTimeout(t.Context(), limit)
	defer done()
	r.command("reboot")
	if _, _, err := r.console.WaitBoot(ctx, 2); err != nil {
		t.Fatal(err)
	}
	r.tick(1)
	if got := r.command("write /data/text hello") + r.command("cat /data/text"); got != text {
		t.Errorf("disk after reboot: got %q, want %q", got, text)
	}
	r.command("poweroff")
	e := x.wait()
	if e.err != nil || e.out.Suspended || e.out.Requires[reqMachine] != r.m.Requires[reqMachine] {
		t.Errorf("power-off: got %+v, %v", e.out, e.err)
	}
	if left, _ := os.ReadDir(r.m.CfgDir); len(left) != 0 {
		t.Errorf("left in CfgDir after power-off: %v", left)
	}
	if err := r.console.Check(); err != nil {
		t.Error(err)
	}
}

// Memory comes on demand, and suspending fetches nothing: with the kernel's
// word on what was changed, and with what was asked for alone.
func TestQEMUMemoryOnDemand(t *testing.T) {
	r := newRig(t, guest.Image(t), testMemory)
	path := r.m.Memory
	f := r.lazyMemory(t, path)
	x := r.run()
	r.tick(2)
	r.command("mem 32")
	sum := r.command("memsum")
	x.suspended()
	defer func() { noPagemap = false }()
	for round, without := range []bool{false, true, false} {
		noPagemap = without
		f = r.lazyMemory(t, path)
		x = r.run()
		last := r.console.Last()
		if n := r.tick(last + 1); n != last+1 {
			t.Errorf("round %d: tick after resume: got %d, want %d", round, n, last+1)
		}
		fetched, _ := f.counts()
		if fetched*lazyChunk > 100<<20 {
			t.Errorf("round %d: fetched %d MiB before the first tick", round, fetched*lazyChunk>>20)
		}
		if round == 2 { // what two lazy rounds made of it is whole
			if got := r.command("memsum"); got != sum {
				t.Errorf("memory: got %s, want %s", got, sum)
			}
			x.suspended()
			break
		}
		before, _ := f.counts()
		x.suspended()
		after, faked := f.counts()
		// Between the count and the stop the guest may touch some more; a fetch of everything it is not.
		if after-before > 200 {
			t.Errorf("round %d: suspending fetched %d chunks", round, after-before)
		}
		if faked == 0 {
			t.Errorf("round %d: no read was answered with zeros", round)
		}
		t.Logf("round %d: fetched %d of %d chunks up to the first tick, %d in all", round, fetched, testMemory/lazyChunk, after)
	}
	if err := r.console.Check(); err != nil {
		t.Error(err)
	}
}

// A machine without a system is enough for what follows.

func TestQEMUKilled(t *testing.T) {
	for name, how := range map[string]func(x *running, pid int) error{
		"cancelled": func(x *running, pid int) error { x.kill(nil); return context.Canceled },
		"crashed":   func(x *running, pid int) error { syscall.Kill(pid, syscall.SIGSEGV); return &ExitError{} },
		"quit":      func(x *running, pid int) error { syscall.Kill(pid, syscall.SIGTERM); return ErrNotSaved },
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, "", 16<<20)
			x := r.run()
			pid := r.pid()
			want := how(x, pid)
			e := x.wait()
			var exit *ExitError
			if !errors.Is(e.err, want) && !(errors.As(want, &exit) && errors.As(e.err, &exit)) || e.out.Suspended {
				t.Errorf("got %+v, %v, want %v", e.out, e.err, want)
			}
			if err := syscall.Kill(pid, 0); err != syscall.ESRCH {
				t.Errorf("QEMU after the run: %v", err)
			}
			if left, _ := filepath.Glob(filepath.Join(r.m.CfgDir, "*")); len(left) > 0 {
				t.Errorf("left: %v", left)
			}
		})
	}
}

// pid is the running QEMU's.
func (r *rig) pid() int {
	r.Helper()
	b, err := os.ReadFile(filepath.Join(r.m.RunDir, pidName))
	if err != nil {
		r.Fatal(err)
	}
	var pid int
	if _, err := fmt.Sscan(string(b), &pid); err != nil {
		r.Fatal(err)
	}
	return pid
}

// A suspend that finds no space waits for some; another error loses the memory, and says so.
func TestQEMUSaveErrors(t *testing.T) {
	full := &os.PathError{Op: "write", Path: "overlay", Err: syscall.ENOSPC}
	for name, from := range map[string]int64{"memory": 0, "the end of memory": 16<<20 - runBytes} {
		t.Run("space for "+name, func(t *testing.T) {
			r := newRig(t, "", 16<<20)
			monitor := filepath.Join(r.m.RunDir, "monitor")
			r.m.Options["args"] = "-qmp unix:" + monitor + ",server=on,wait=off"
			var q *qmp
			n := 0
			r.pages.fail = func(off int64) error {
				if off < from {
					return nil
				}
				if n++; n > 1 {
					return nil
				}
				// At the end, QEMU has sent it all before.
				for from > 0 && status(t.Context(), q) != "postmigrate" && t.Context().Err() == nil {
					time.Sleep(time.Millisecond)
				}
				return full
			}
			noPagemap = true
			defer func() { noPagemap = false }()
			x := r.run()
			conn, err := net.Dial("unix", monitor)
			if err != nil {
				t.Fatal(err)
			}
			if q, err = newQMP(t.Context(), conn.(*net.UnixConn)); err != nil {
				t.Fatal(err)
			}
			defer q.close()
			x.suspended()
			if r.pages.wrote < testMemory/16 || n < 2 || !r.heard("until there is space") {
				t.Errorf("wrote %d bytes in %d writes, said %q", r.pages.wrote, n, r.said)
			}
			delete(r.m.Options, "args")
			x = r.run() // and it is whole
			x.suspended()
		})
	}
	t.Run("space for the devices", func(t *testing.T) {
		r := newRig(t, "", 16<<20)
		if err := syscall.Mount("tmpfs", r.m.CfgDir, "tmpfs", 0, "size=8m"); err != nil {
			lacking(t, "mount: %v", err)
		}
		defer syscall.Unmount(r.m.CfgDir, syscall.MNT_DETACH)
		x := r.run()
		filler := filepath.Join(r.m.CfgDir, "filler")
		if err := os.WriteFile(filler, make([]byte, 9<<20), 0o600); !errors.Is(err, syscall.ENOSPC) {
			t.Fatal(err)
		}
		x.suspend()
		wait(t, "a word on what is waited for", func() bool { return r.heard("until there is space") })
		if err := os.Remove(filler); err != nil {
			t.Fatal(err)
		}
		x.suspended()
		x = r.run()
		x.suspended()
	})
	t.Run("space that never comes", func(t *testing.T) {
		r := newRig(t, "", 16<<20)
		r.pages.fail = func(int64) error { return full }
		noPagemap = true
		defer func() { noPagemap = false }()
		x := r.run()
		x.suspend()
		wait(t, "a word on what is waited for", func() bool { return r.heard("until there is space") })
		x.kill(nil)
		if e := x.wait(); !errors.Is(e.err, context.Canceled) || e.out.Suspended {
			t.Errorf("got %+v, %v", e.out, e.err)
		}
		if left, _ := filepath.Glob(filepath.Join(r.m.CfgDir, "*")); len(left) > 0 {
			t.Errorf("left: %v", left)
		}
	})
	t.Run("broken", func(t *testing.T) {
		r := newRig(t, "", 16<<20)
		r.pages.fail = func(int64) error { return syscall.EIO }
		noPagemap = true
		defer func() { noPagemap = false }()
		x := r.run()
		x.suspend()
		e := x.wait()
		if !errors.Is(e.err, ErrNotSaved) || !errors.Is(e.err, syscall.EIO) || e.out.Suspended {
			t.Errorf("got %+v, %v", e.out, e.err)
		}
		if left, _ := filepath.Glob(filepath.Join(r.m.CfgDir, "*")); len(left) > 0 {
			t.Errorf("left: %v", left)
		}
	})
}

// status is QEMU's word on what its machine does.
func status(ctx context.Context, q *qmp) string {
	var s struct{ Status string }
	q.execute(ctx, "query-status", nil, &s)
	return s.Status
}

// Told to suspend before anything ran: what there was is still there.
func TestQEMUSuspendBeforeStart(t *testing.T) {
	r := newRig(t, "", 16<<20)
	stop := make(chan struct{})
	close(stop)
	out, err := (&QEMU{}).Run(t.Context(), r.m, stop)
	if err != nil || out.Suspended {
		t.Errorf("cold: got %+v, %v", out, err)
	}
	x := r.run()
	x.suspended()
	wrote := r.pages.wrote
	out, err = (&QEMU{}).Run(t.Context(), r.m, stop)
	if err != nil || !out.Suspended || out.Requires[reqMachine] == "" || r.pages.wrote != wrote || r.pages.begun != 2 {
		t.Errorf("suspended: got %+v, %v, wrote %d, began %d saves", out, err, r.pages.wrote-wrote, r.pages.begun)
	}
	x = r.run()
	x.suspended()
}

// A read the disk image cannot serve stops the machine instead of reaching the
// guest, and it goes on when the image can again. One that hangs can be cancelled.
func TestQEMUDiskTrouble(t *testing.T) {
	r := newRig(t, "", 16<<20)
	f := newLazy(t, r.m.Disk)
	f.errno = syscall.EIO
	r.m.Disk = filepath.Join(mountLazy(t, map[string]*lazyFile{"disk": f}), "disk")
	x := r.run()
	wait(t, "the machine to stand still", func() bool { return r.heard("stands still") })
	f.mu.Lock()
	f.errno = 0
	f.mu.Unlock()
	wait(t, "the disk to be read", func() bool { n, _ := f.counts(); return n > 0 })
	x.suspended()

	// Suspended while it stands still, it asks again when it is resumed.
	r = newRig(t, "", 16<<20)
	f = newLazy(t, r.m.Disk)
	f.errno = syscall.EIO
	r.m.Disk = filepath.Join(mountLazy(t, map[string]*lazyFile{"disk": f}), "disk")
	x = r.run()
	wait(t, "the machine to stand still", func() bool { return r.heard("stands still") })
	x.suspended()
	f.mu.Lock()
	f.errno = 0
	f.mu.Unlock()
	x = r.run()
	wait(t, "the disk to be read after resume", func() bool { n, _ := f.counts(); return n > 0 })
	x.suspended()
}

// Memory that does not come: the machine stands still with it, suspending
// waits for it and says so, and cancelling does not.
func TestQEMUMemoryTrouble(t *testing.T) {
	r := newRig(t, "", 16<<20)
	path := r.m.Memory
	r.lazyMemory(t, path)
	x := r.run()
	x.suspended()
	g := r.lazyMemory(t, path)
	g.block = make(chan struct{})
	r.console = nil
	delete(r.m.Options, "serial")
	x = r.run()
	<-g.reading
	x.suspend()
	wait(t, "a word on what is waited for", func() bool { return r.heard("waiting for the machine to stop") })
	g.unblock()
	x.suspended()

	g = r.lazyMemory(t, path)
	g.block = make(chan struct{})
	x = r.run()
	<-g.reading
	x.suspend()
	x.kill(nil)
	if e := x.wait(); !errors.Is(e.err, context.Canceled) {
		t.Errorf("got %+v, %v", e.out, e.err)
	}
}

// A start that hangs can be given up, and leaves all as it was.
func TestQEMUStartGivenUp(t *testing.T) {
	r := newRig(t, "", 16<<20)
	x := r.run()
	x.suspended()
	program, _ := findQEMU("")
	slow := filepath.Join(t.TempDir(), "qemu")
	body := fmt.Sprintf("#!/bin/sh\ncase $* in *incoming*) echo >%s.up; sleep 600;; esac\nexec %s \"$@\"\n", slow, program)
	if err := os.WriteFile(slow, []byte(body), 0o700); err != nil {
		t.Fatal(err)
	}
	r.m.Options["program"] = slow
	r.m.Started = nil
	for _, suspend := range []bool{true, false} {
		ctx, cancel := context.WithCancel(t.Context())
		stop := make(chan struct{})
		go func() {
			for ctx.Err() == nil {
				if os.Remove(slow+".up") == nil {
					break
				}
				time.Sleep(time.Millisecond)
			}
			if suspend {
				close(stop)
			} else {
				cancel()
			}
		}()
		out, err := (&QEMU{}).Run(ctx, r.m, stop)
		if suspend && (err != nil || !out.Suspended || out.Requires[reqMachine] == "") || !suspend && !errors.Is(err, context.Canceled) {
			t.Errorf("suspend %v: got %+v, %v", suspend, out, err)
		}
		cancel()
		if _, err := os.Stat(filepath.Join(r.m.CfgDir, stateName)); err != nil {
			t.Errorf("suspend %v: %v", suspend, err)
		}
	}
	delete(r.m.Options, "program")
	x = r.run()
	x.suspended()
}

func wait(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(limit); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("no end of waiting for %s", what)
		}
	}
}

// Cleanup ends a QEMU whose keeper is gone, and nothing else.
func TestQEMUCleanup(t *testing.T) {
	dir := t.TempDir()
	m := &Machine{UUID: "6ab4f1d0-0f3c-4c57-9a51-4d0e8f2c9b11", RunDir: dir, CfgDir: t.TempDir()}
	path := filepath.Join(dir, pidName)
	sleeper := func(args ...string) *child {
		c, err := start(exec.Command("sh", append([]string{"-c", "sleep 60; true", "sh"}, args...)...))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(c.kill)
		return c
	}
	alive := func(c *child) bool {
		select {
		case <-c.done:
			return false
		case <-time.After(50 * time.Millisecond):
			return true
		}
	}
	ours := sleeper("-uuid", m.UUID)
	other := sleeper("-uuid", "another")
	for name, c := range map[string]struct {
		child *child
		start string
	}{
		"another machine's": {other, ""},
		"number reused":     {ours, "1"},
	} {
		pid := c.child.cmd.Process.Pid
		if c.start == "" {
			if err := writePidFile(path, pid); err != nil {
				t.Fatal(err)
			}
		} else if err := os.WriteFile(path, fmt.Appendf(nil, "%d %s\n", pid, c.start), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := (&QEMU{}).Cleanup(t.Context(), m); err != nil || !alive(c.child) {
			t.Errorf("%s: %v, alive %v", name, err, alive(c.child))
		}
	}
	if err := writePidFile(path, ours.cmd.Process.Pid); err != nil {
		t.Fatal(err)
	}
	os.WriteFile(filepath.Join(m.CfgDir, stateName+".tmp"), nil, 0o600)
	os.WriteFile(filepath.Join(m.CfgDir, stateName), nil, 0o600)
	if err := (&QEMU{}).Cleanup(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	<-ours.done
	for p, want := range map[string]bool{path: false, filepath.Join(m.CfgDir, stateName+".tmp"): false, filepath.Join(m.CfgDir, stateName): true} {
		if _, err := os.Stat(p); (err == nil) != want {
			t.Errorf("%s: %v, want it there: %v", p, err, want)
		}
	}
	for range 2 { // nothing to do is fine
		if err := errors.Join((&QEMU{}).Cleanup(t.Context(), m), (&QEMU{}).Poweroff(t.Context(), m)); err != nil {
			t.Error(err)
		}
	}
	for _, text := range []string{"", "x", "0 1", "-1 1", "1 1", "99999999 1"} {
		os.WriteFile(path, []byte(text), 0o600)
		if err := (&QEMU{}).Cleanup(t.Context(), m); err != nil {
			t.Errorf("pid file %q: %v", text, err)
		}
	}
}
