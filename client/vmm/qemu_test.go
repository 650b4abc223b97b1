package vmm

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
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
		if os.Getenv("ISR_TEST_REQUIRE") == "1" {
			t.Fatalf("qemu: %v", err)
		}
		t.Skipf("qemu: %v", err)
	}
}

// guestDisk is a private copy of the test guest's disk.
func guestDisk(t testing.TB) string {
	t.Helper()
	needQEMU(t)
	img := os.Getenv("ISR_TEST_GUEST")
	if img == "" {
		t.Skip("ISR_TEST_GUEST: not set")
	}
	out := filepath.Join(t.TempDir(), "disk")
	if b, err := exec.Command("cp", "--sparse=always", img, out).CombinedOutput(); err != nil {
		t.Fatalf("cp: %v: %s", err, b)
	}
	return out
}

// rig is a machine with plain files for images.
type rig struct {
	testing.TB
	m       *Machine
	pages   *filePages
	mu      sync.Mutex
	said    []string
	console net.Conn
	lines   *bufio.Reader
}

func newRig(t testing.TB, disk string, memory int64) *rig {
	t.Helper()
	dir := t.TempDir()
	run, err := os.MkdirTemp("", "vmm")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(run) })
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
			t.Logf("said: "+f, a...)
		},
	}
	os.Mkdir(r.m.CfgDir, 0o700)
	return r
}

type ended struct {
	out Outcome
	err error
}

// run starts the machine and connects to its serial port.
func (r *rig) run(ctx context.Context) (suspend func(), end <-chan ended) {
	r.Helper()
	ch, stop := make(chan ended, 1), make(chan struct{})
	go func() {
		out, err := (&QEMU{}).Run(ctx, r.m, stop)
		ch <- ended{out, err}
	}()
	path := filepath.Join(r.m.RunDir, "serial")
	for deadline := time.Now().Add(20 * time.Second); ; {
		c, err := net.Dial("unix", path)
		if err == nil {
			r.console, r.lines = c, bufio.NewReader(c)
			break
		}
		select {
		case e := <-ch:
			r.Fatalf("run ended early: %+v", e)
		case <-time.After(5 * time.Millisecond): // the socket has no event of its own
		}
		if time.Now().After(deadline) {
			r.Fatalf("no serial port: %v", err)
		}
	}
	var once sync.Once
	return func() { once.Do(func() { close(stop) }) }, ch
}

// tick reads the console up to the next whole "tick N".
func (r *rig) tick() int {
	r.Helper()
	r.console.SetReadDeadline(time.Now().Add(90 * time.Second))
	var seen bytes.Buffer
	for {
		line, err := r.lines.ReadString('\n')
		seen.WriteString(line)
		if err != nil {
			r.Fatalf("console: %v after %q", err, seen.String())
		}
		if n, ok := strings.CutPrefix(strings.TrimSpace(line), "tick "); ok {
			if v, err := strconv.Atoi(n); err == nil {
				return v
			}
		}
	}
}

// until reads the console up to a line with text in it.
func (r *rig) until(text string) string {
	r.Helper()
	r.console.SetReadDeadline(time.Now().Add(90 * time.Second))
	for {
		line, err := r.lines.ReadString('\n')
		if err != nil {
			r.Fatalf("console: %v, waiting for %q", err, text)
		}
		if strings.Contains(line, text) {
			return strings.TrimSpace(line)
		}
	}
}

func (r *rig) wait(end <-chan ended) ended {
	r.Helper()
	select {
	case e := <-end:
		return e
	case <-time.After(60 * time.Second):
		r.Fatal("run does not end")
		panic("unreachable")
	}
}

// rest is what the console says until QEMU closes it: the last tick in it, or 0.
func (r *rig) lastTick() int {
	b, _ := io.ReadAll(r.lines)
	last := 0
	for _, line := range strings.Split(string(b), "\n") {
		if n, ok := strings.CutPrefix(strings.TrimSpace(line), "tick "); ok {
			if v, err := strconv.Atoi(n); err == nil {
				last = v
			}
		}
	}
	return last
}

// suspended records an outcome in the machine, as the caller of a driver does.
func (r *rig) suspended(out Outcome) {
	r.m.Suspended, r.m.Requires = "", out.Requires
	if out.Suspended {
		r.m.Suspended = "qemu"
	}
}

func TestQEMUSuspendAndResume(t *testing.T) {
	r := newRig(t, guestDisk(t), 256<<20)
	ctx := t.Context()
	suspend, end := r.run(ctx)
	last := 0
	for last < 3 {
		last = r.tick()
	}
	for round := range 3 {
		before := r.pages.wrote
		t0 := time.Now()
		suspend()
		e := r.wait(end)
		took := time.Since(t0)
		if e.err != nil || !e.out.Suspended {
			t.Fatalf("round %d: got %+v, %v", round, e.out, e.err)
		}
		if n := r.lastTick(); n > last {
			last = n
		}
		st, err := os.Stat(filepath.Join(r.m.CfgDir, stateName))
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("round %d: suspended in %v at tick %d: %d bytes of memory written, %d of state", round, took, last, r.pages.wrote-before, st.Size())
		r.suspended(e.out)
		if i, err := (&QEMU{}).Info(ctx, r.m); err != nil || !i.Runnable {
			t.Fatalf("info of the suspended machine: %+v, %v", i, err)
		}
		t0 = time.Now()
		suspend, end = r.run(ctx)
		n := r.tick()
		t.Logf("round %d: tick %d, %v after resume", round, n, time.Since(t0))
		if n != last+1 {
			t.Errorf("round %d: tick after resume: got %d, want %d", round, n, last+1)
		}
		last = n
	}
	suspend()
	if e := r.wait(end); e.err != nil {
		t.Fatal(e.err)
	}
}

var _ = errors.Is
