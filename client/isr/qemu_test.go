package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"isr/contrib/guest"
)

// machine is alice's parcel, with a real guest, on one host after another.
type machine struct {
	testing.TB
	w      *world
	parcel string // "" = box
	host   string
	front  *running
	con    *guest.Console
	in     func(host string, cmd *exec.Cmd) *exec.Cmd // where hosts are in networks of their own
}

func (m *machine) name() string {
	if m.parcel == "" {
		return "box"
	}
	return m.parcel
}

// resume runs isr resume on host until its guest can be heard.
func (m *machine) resume(host string, more ...string) {
	m.Helper()
	m.resumeBy(host, start, more...)
}

func (m *machine) resumeBy(host string, start func(testing.TB, *exec.Cmd) *running, more ...string) {
	m.Helper()
	serial := filepath.Join(m.w.dir, host+m.parcel+".serial")
	m.host = host
	os.Remove(serial) // of a guest that was killed
	cmd := m.w.command(host, "isr", append([]string{"resume", m.name(), "-o", "display=none,accel=tcg,serial=unix:" + serial}, more...)...)
	if m.in != nil {
		cmd = m.in(host, cmd)
	}
	m.front = start(m, cmd)
	ctx, cancel := context.WithTimeout(context.Background(), tooLong)
	defer cancel()
	ended := m.front.ended
	go func() {
		select {
		case <-ended:
			cancel()
		case <-ctx.Done():
		}
	}()
	var err error
	if m.con == nil {
		m.con, err = guest.Dial(ctx, serial)
	} else {
		err = m.con.Redial(ctx, serial)
	}
	if err != nil {
		m.Fatalf("%s: isr resume: %v\n%s%s", host, err, m.front.out.String(), m.front.err.String())
	}
}

// within is a context for one step.
func (m *machine) within() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), tooLong)
	m.Cleanup(cancel)
	return ctx
}

// tick waits for a tick of at least min.
func (m *machine) tick(min int) int {
	m.Helper()
	n, err := m.con.WaitTick(m.within(), min)
	if err != nil {
		m.Fatalf("%v\n%s", err, m.front.err.String())
	}
	return n
}

// ask has the guest carry out a command.
func (m *machine) ask(line string) string {
	m.Helper()
	s, err := m.con.Command(m.within(), line)
	if err != nil {
		m.Fatalf("%v\n%s", err, m.front.err.String())
	}
	return s
}

// ended waits for the end of isr resume and of the guest's line.
func (m *machine) ended(status int) result {
	m.Helper()
	r := m.front.wait(m)
	if r.status != status {
		m.Fatalf("%s: isr resume ended with %v, want status %d", m.host, r, status)
	}
	m.con.Close()
	return r
}

// suspend interrupts isr resume, as control-C does; it gives the last tick.
func (m *machine) suspend() int {
	m.Helper()
	began := time.Now()
	m.front.cmd.Process.Signal(syscall.SIGINT)
	m.ended(0)
	m.Logf("%s: suspended in %v", m.host, time.Since(began).Round(time.Millisecond))
	m.suspended()
	return m.con.Last()
}

// suspended wants the parcel to be so, with its memory, and nothing left over.
func (m *machine) suspended() {
	m.Helper()
	if st := stat(m, m.w, m.host, m.name()); st.State != "suspended" || st.Memory != "qemu" {
		m.Fatalf("%s: state %q with memory of %q, want suspended with that of qemu", m.host, st.State, st.Memory)
	}
	m.w.wantClean(m)
}

// goesOn wants the guest to go on with the tick after last.
func (m *machine) goesOn(last int) {
	m.Helper()
	m.tick(last + 1)
	if err := m.con.Check(); err != nil {
		m.Fatalf("%s: %v", m.host, err)
	}
}

// weigh is the bytes of all objects in a host's hoard.
func (m *machine) weigh(host string) (sum int64) {
	m.Helper()
	for _, f := range files(m, filepath.Join(m.w.dir, host, ".isr", "hoard")) {
		fi, err := os.Stat(f)
		if err != nil {
			m.Fatal(err)
		}
		if len(filepath.Base(f)) == 64 {
			sum += fi.Size()
		}
	}
	return sum
}

// TestGuest is a real guest's life: on three hosts, through a network that
// fails, and with everything killed that can be.
func TestGuest(t *testing.T) {
	requireFUSE(t)
	t.Parallel()
	image := guest.Image(t)
	w := newQuickWorld(t, shortDir(t), "serve")
	x := newWire(t, w, false)
	for _, host := range []string{"A", "B", "C"} {
		w.home(t, host, "alice", "alice")
	}
	w.must(t, "isr-locksrv", "parcel", "import", "alice", "box", image, "--memory", "256M")
	m := &machine{TB: t, w: w}

	// Host A: boot, work, suspend, check in.
	m.resume("A")
	m.tick(2)
	m.ask("mem 64")
	memory := m.ask("memsum")
	m.ask("write /data/note written on host A")
	note := m.ask("sum /data/note")
	last := m.suspend()
	w.ok(t, "A", "checkin", "box")
	w.must(t, "isr-locksrv", "check", "-c")

	// What all of it weighs: a third host hoards it, without a checkout.
	w.ok(t, "C", "hoard", "-d", "box")
	weight := m.weigh("C")

	// Host B: the next tick, before most of it has come.
	in := x.in.Load()
	began := time.Now()
	m.resume("B")
	m.goesOn(last)
	st, got := stat(t, w, "B", "box"), x.in.Load()-in
	fetched := st.Images["disk"].Fetched.Bytes + st.Images["memory"].Fetched.Bytes
	t.Logf("B: next tick after %v; fetched %d of %d bytes, %d %%; %d over the wire, all told",
		time.Since(began).Round(time.Millisecond), fetched, weight, fetched*100/weight, got)
	if fetched == 0 || got*100 > weight*40 {
		t.Errorf("B: %d bytes came over the wire for the first tick, %d of them objects: want some, and at most 40 %% of %d", got, fetched, weight)
	}
	if st.State != "running" || st.Mount == "" || st.Images["memory"].Total.Bytes != 256<<20 {
		t.Errorf("B: stat while it runs: %+v", st)
	}
	if s := m.ask("memsum"); s != memory {
		t.Errorf("B: memory is %s, was %s", s, memory)
	}
	if s := m.ask("sum /data/note"); s != note {
		t.Errorf("B: file is %s, was %s", s, note)
	}
	fill := m.ask("sum /fill/3")
	// A moment without wishes, then suspending fetches nothing.
	m.tick(m.con.Last() + 2)
	in = x.in.Load()
	last = m.suspend()
	if got := x.in.Load() - in; got > 64<<10 {
		t.Errorf("B: suspending fetched %d bytes", got)
	}
	w.ok(t, "B", "checkin", "box")
	w.must(t, "isr-locksrv", "check", "-c")

	// Host C: hoarded, so that it needs no network.
	w.ok(t, "C", "checkout", "-d", "box")
	x.cut()
	began = time.Now()
	m.resume("C", "-d")
	m.goesOn(last)
	took := time.Since(began)
	t.Logf("C: next tick of the hoarded parcel after %v", took.Round(time.Millisecond))
	if took > 30*time.Second { // 5 s were seen at a load of 25
		t.Errorf("C: next tick of the hoarded parcel took %v", took)
	}
	if s := m.ask("memsum"); s != memory {
		t.Errorf("C: memory is %s, was %s", s, memory)
	}
	if n := x.attempts.Load(); n != 0 {
		t.Errorf("C: %d attempts to connect with resume -d", n)
	}
	// The guest powers itself off: the run ends, and there is no memory.
	m.ask("poweroff")
	m.ended(0)
	last = m.con.Last()
	if st := stat(t, w, "C", "box"); st.State != "powered off, modified" || st.Memory != "" {
		t.Errorf("C: state %q with memory of %q after power-off", st.State, st.Memory)
	}
	x.mend()
	w.ok(t, "C", "checkin", "box")

	// Host A: it boots from the same disk.
	m.resume("A")
	m.boots(2, last)
	if s := m.ask("sum /data/note"); s != note {
		t.Errorf("A: file is %s after a boot, was %s", s, note)
	}

	// The network goes while the guest wants what is not here. It waits, and
	// sees no error.
	x.cut()
	answer := make(chan string, 1)
	go func() {
		s, err := m.con.Command(m.within(), "sum /fill/3")
		if err != nil {
			s = err.Error()
		}
		answer <- s
	}()
	m.front.waitFor(t, "the guest waits")
	within(t, tooLong, "attempts to connect", func() bool { return x.attempts.Load() >= 3 })
	select {
	case s := <-answer:
		t.Errorf("A: guest answers %q without a network", s)
	default:
	}
	x.mend()
	if s := <-answer; s != fill {
		t.Errorf("A: after the network came back the guest answers %q, want %q", s, fill)
	}
	if !strings.Contains(m.front.err.String(), "connected again") {
		t.Errorf("A: nobody said that it is connected again: %s", m.front.err.String())
	}
	if s := m.ask("cat /mem/errors"); s != "" {
		t.Errorf("A: errors in the guest: %s", s)
	}
	if log := string(m.con.Log()); strings.Contains(log, "I/O error") || strings.Contains(log, "lost ") {
		t.Errorf("A: errors in the guest's log: %s", log)
	}

	// The keeper dies: a power cut. What was acknowledged is there.
	last = m.tick(m.con.Last() + 1)
	pid := keeperOf(t, m.front.cmd.Process.Pid)
	syscall.Kill(pid, syscall.SIGKILL)
	if r := m.ended(1); !strings.Contains(r.err, "keeper died") {
		t.Errorf("A: front of a killed keeper: %v", r)
	}
	last = max(last, m.con.Last())
	m.resume("A")
	if !m.saidSoon("its memory is lost, and it will boot") {
		t.Errorf("A: nobody said that memory is lost: %s", m.front.err.String())
	}
	m.boots(3, last)

	// Whoever stands in front of the keeper may die: it suspends by itself.
	m.tick(2)
	m.front.cmd.Process.Kill()
	m.con.WaitEnd(m.within())
	m.ended(128 + int(syscall.SIGKILL))
	m.settled()
	last = m.con.Last()
	m.resume("A")
	m.goesOn(last)

	// So it does when the terminal goes.
	m.front.cmd.Process.Signal(syscall.SIGHUP)
	m.ended(0)
	m.suspended()
	last = m.con.Last()
	tty := openTerminal(t)
	m.resumeBy("A", tty.start)
	m.goesOn(last)
	tty.close()
	m.front.wait(t)
	m.con.Close()
	m.settled()
	last = m.con.Last()
	w.ok(t, "A", "checkin", "box")

	m.resume("B")
	m.goesOn(last)
	m.suspend()
	w.ok(t, "B", "checkin", "box")
	w.must(t, "isr-locksrv", "check", "-c")
	w.wantClean(t)
}

// boots wants the guest to have booted for the n-th time, with no tick lost
// that it had printed.
func (m *machine) boots(n, last int) {
	m.Helper()
	boots, on, err := m.con.WaitBoot(m.within(), n)
	if err != nil {
		m.Fatalf("%v\n%s", err, m.front.err.String())
	}
	if boots != n || on < last {
		m.Fatalf("%s: boot %d last %d, want boot %d last %d or more", m.host, boots, on, n, last)
	}
	m.tick(1)
}

func (m *machine) saidSoon(text string) bool { return strings.Contains(m.front.err.String(), text) }

// settled waits until a keeper with nobody in front has suspended the parcel.
func (m *machine) settled() {
	m.Helper()
	within(m, tooLong, "suspension", func() bool {
		st := stat(m, m.w, m.host, "box")
		return st.State != "running"
	})
	within(m, tooLong, "end of the keeper", func() bool { return len(entries(m, filepath.Join(m.w.dir, "run", "isr"))) == 0 })
	m.suspended()
}

// terminal is a pseudo terminal that a program is run on.
type terminal struct {
	t    testing.TB
	main *os.File
	tty  string
}

func openTerminal(t testing.TB) *terminal {
	t.Helper()
	main, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { main.Close() })
	// Not by Fd, after which Close would wait for Read.
	raw, err := main.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	cerr := raw.Control(func(fd uintptr) {
		if n, err = unix.IoctlGetInt(int(fd), unix.TIOCGPTN); err == nil {
			err = unix.IoctlSetPointerInt(int(fd), unix.TIOCSPTLCK, 0)
		}
	})
	if err == nil {
		err = cerr
	}
	if err != nil {
		t.Fatal(err)
	}
	return &terminal{t, main, fmt.Sprintf("/dev/pts/%d", n)}
}

// start starts cmd as the leader of a session that has the terminal.
func (tt *terminal) start(t testing.TB, cmd *exec.Cmd) *running {
	t.Helper()
	tty, err := os.OpenFile(tt.tty, os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer tty.Close()
	p := &running{cmd: cmd, in: tt.main, ended: make(chan struct{})}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = tty, tty, tty
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		buf := make([]byte, 4096)
		for {
			n, err := tt.main.Read(buf)
			p.out.Write(buf[:n])
			if err != nil {
				return
			}
		}
	}()
	go func() { p.err1 = cmd.Wait(); close(p.ended) }()
	t.Cleanup(func() {
		select {
		case <-p.ended:
		default:
			cmd.Process.Kill()
			<-p.ended
		}
	})
	return p
}

// close takes the terminal away, as a closed window does.
func (tt *terminal) close() { tt.main.Close() }
