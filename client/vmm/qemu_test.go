package vmm

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
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
	fail  func() error // of WriteAt
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
		if err := p.fail(); err != nil {
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
	m       *Machine
	pages   *filePages
	console *guest.Console
	mu      sync.Mutex
	said    []string
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
	return x
}

const limit = 90 * time.Second

func (x *running) wait() ended {
	x.Helper()
	select {
	case e := <-x.end:
		if x.console != nil {
			x.console.Close() // its last lines are in
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
	x.suspend()
	e := x.wait()
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

// One machine's life: it boots, works, is suspended and resumed, first going
// by the kernel's word on which pages were changed, then by what was asked for;
// reboots; powers itself off.
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

	// Without the kernel's word: whatever was asked for is written, here everything.
	x = r.run()
	r.tick(r.console.Last() + 1)
	noPagemap = true
	defer func() { noPagemap = false }()
	before := r.pages.wrote
	x.suspended()
	if n := r.pages.wrote - before; n != testMemory {
		t.Errorf("without knowing, wrote %d bytes of %d", n, testMemory)
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
