package main

import (
	"fmt"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"isr/contrib/guest"
)

// used is the size that leaves no room on the file system of dir.
func used(t testing.TB, dir string) string {
	t.Helper()
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%dk", (int64(fs.Blocks)-int64(fs.Bfree))*int64(fs.Bsize)>>10)
}

// TestFullGuest: this host's disk fills up under a real guest. The guest
// stands still and sees no error, its suspension waits for room whatever the
// one in front does, and nothing is lost.
func TestFullGuest(t *testing.T) {
	requireFUSE(t)
	t.Parallel()
	image := guest.Image(t)
	w := newQuickWorld(t, shortDir(t), "serve")
	home := filepath.Join(w.dir, "A")
	resize := tmpfs(t, home, "400M")
	w.home(t, "A", "alice", "alice")
	w.must(t, "isr-locksrv", "parcel", "import", "alice", "box", image, "--memory", "256M")
	m := &machine{TB: t, w: w}
	fill := func() { resize(used(t, home)) }

	// It is said beforehand that the memory may not fit.
	resize("100M")
	m.resume("A")
	if !m.saidSoon("its memory may need 256 MiB") {
		t.Errorf("nobody said that memory may not fit: %s", m.front.err.String())
	}
	t.Cleanup(func() { resize("400M") }) // or its keeper waits for ever
	m.tick(2)
	m.ask("mem 24")
	memory := m.ask("memsum")

	// A write that has no room waits, and is made when there is some.
	fill()
	answer := make(chan string, 1)
	go func() {
		last := ""
		for i := 0; !m.saidSoon("the machine stands still"); i++ {
			var err error
			if last, err = m.con.Command(m.within(), fmt.Sprintf("write /data/%d %s", i, strings.Repeat("many words ", 20))); err != nil {
				last = err.Error()
				break
			}
		}
		answer <- last
	}()
	m.front.waitFor(t, "the machine stands still")
	m.front.waitFor(t, "no space left on device")
	resize("100M")
	select {
	case s := <-answer:
		if strings.Contains(s, "error") {
			t.Errorf("guest: %s", s)
		}
	case <-time.After(tooLong):
		t.Fatalf("guest does not go on: %s", m.front.err.String())
	}
	if s := m.ask("cat /mem/errors"); s != "" {
		t.Errorf("errors in the guest: %s", s)
	}
	m.tick(m.con.Last() + 2)

	// Suspended without room: it waits, and says so to whoever asks.
	fill()
	m.front.cmd.Process.Signal(syscall.SIGINT)
	m.front.waitFor(t, "the memory cannot be saved")
	for _, again := range []string{"waits for room", "waits for room"} {
		n := strings.Count(m.front.err.String(), again)
		m.front.cmd.Process.Signal(syscall.SIGINT)
		within(t, tooLong, "answer to control-C", func() bool { return strings.Count(m.front.err.String(), again) > n })
	}
	if r := w.isr("A", "sync", "box"); r.status != 22 || !strings.Contains(r.err, "waits for room") {
		t.Errorf("sync meanwhile: %v", r)
	}
	// Even with nobody in front.
	m.front.cmd.Process.Kill()
	if r := w.isr("A", "resume", "box"); r.status != 22 || !strings.Contains(r.err, "waits for room") {
		t.Errorf("resume meanwhile: %v", r)
	}
	last := m.con.Last()
	resize("400M")
	m.settled()
	m.ended(128 + int(syscall.SIGKILL))
	m.resume("A")
	m.goesOn(last)
	if s := m.ask("memsum"); s != memory {
		t.Errorf("memory is %s, was %s", s, memory)
	}
	if s := m.ask("cat /mem/errors"); s != "" {
		t.Errorf("errors in the guest: %s", s)
	}

	// A memory image that goes with the disk is given up for no lesser one:
	// now the record has to change first.
	m.suspend()
	m.resume("A")
	m.goesOn(m.con.Last())
	fill()
	m.front.cmd.Process.Signal(syscall.SIGTERM)
	within(t, tooLong, "end, or word of what it waits for", func() bool {
		select {
		case <-m.front.ended: // it fits in place of what was there, and the reserve
			return true
		default:
			return m.saidSoon("the memory cannot be saved")
		}
	})
	resize("400M")
	m.ended(0)
	m.suspended()
	last = m.con.Last()
	m.resume("A")
	m.goesOn(last)
	if s := m.ask("memsum"); s != memory {
		t.Errorf("memory is %s after the second time, was %s", s, memory)
	}
	m.suspend()
	w.ok(t, "A", "checkin", "box")
	w.must(t, "isr-locksrv", "check", "-c")
	w.wantClean(t)
}
