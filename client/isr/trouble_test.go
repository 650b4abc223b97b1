package main

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// TestAtOnce runs commands on one parcel at the same time, on one host and on
// two. One of them has it; the others are told so, and nothing is in between.
func TestAtOnce(t *testing.T) {
	t.Parallel()
	w := newQuickWorld(t, shortDir(t), "serve")
	for _, host := range []string{"A", "B"} {
		w.home(t, host, "alice", "alice")
	}
	atOnce := func(n int, command func(i int) []string) (ended []result) {
		ended = make([]result, n)
		var wg sync.WaitGroup
		for i := range n {
			args := command(i)
			wg.Go(func() { ended[i] = w.isr(args[0], args[1:]...) })
		}
		wg.Wait()
		return ended
	}
	// with counts results by status, and wants no others than these.
	with := func(rs []result, statuses ...int) map[int]int {
		t.Helper()
		count := make(map[int]int)
		for _, r := range rs {
			count[r.status]++
			if !strings.Contains(fmt.Sprint(statuses), fmt.Sprint(r.status)) {
				t.Errorf("want one of the statuses %v: %v", statuses, r)
			}
		}
		return count
	}
	for round := range 4 {
		p := fmt.Sprint("box", round)
		w.must(t, "isr-locksrv", "parcel", "create", "alice", p, "--disk", "4M", "--vmm", "shell")
		// On one host: done, or done already, or busy.
		got := with(atOnce(5, func(int) []string { return []string{"A", "checkout", p} }), 0, 11, 22)
		if got[0] == 0 {
			t.Errorf("round %d: no checkout of five succeeded", round)
		}
		if n, _ := filepath.Glob(filepath.Join(w.dir, "A", ".isr", p+"*")); len(n) != 1 {
			t.Fatalf("round %d: checkouts of %s: %q", round, p, n)
		}
		if e := w.listed(t, p, "held.host"); e != "hostA" {
			t.Errorf("round %d: held by %s", round, e)
		}
		w.disk(t, "A", p, "head -c 1M /dev/urandom | dd of=$DISK bs=128k iflag=fullblock conv=notrunc,fsync 2>/dev/null")
		// One version of one change.
		got = with(atOnce(4, func(i int) []string { return []string{"A", "sync", p} }), 0, 22)
		if got[0] == 0 {
			t.Errorf("round %d: no sync of four succeeded", round)
		}
		if v := w.listed(t, p, "version"); v != "2" {
			t.Errorf("round %d: version %s after syncs at once, want 2", round, v)
		}
		// Whatever comes beside a checkin: it is checked in, once.
		with(atOnce(4, func(i int) []string {
			return []string{"A", []string{"checkin", "sync", "stat", "hoard"}[i], p}
		}), 0, 10, 22)
		if exists(filepath.Join(w.dir, "A", ".isr", p)) {
			w.ok(t, "A", "checkin", p)
		}
		// Two hosts: one has it.
		got = with(atOnce(4, func(i int) []string { return []string{[]string{"A", "B"}[i%2], "checkout", p} }), 0, 11, 22)
		a, b := exists(filepath.Join(w.dir, "A", ".isr", p)), exists(filepath.Join(w.dir, "B", ".isr", p))
		if a == b || got[0] == 0 {
			t.Fatalf("round %d: on A: %v, on B: %v; statuses %v", round, a, b, got)
		}
		host := "A"
		if b {
			host = "B"
		}
		if e := w.listed(t, p, "held.host"); e != "host"+host {
			t.Errorf("round %d: held by %s, is on %s", round, e, host)
		}
		w.ok(t, host, "checkin", p)
		if n, _ := filepath.Glob(filepath.Join(w.dir, "*", ".isr", p+"*")); len(n) != 0 {
			t.Errorf("round %d: left: %q", round, n)
		}
	}
	w.must(t, "isr-locksrv", "check", "-c")
	w.wantClean(t)
}

// TestInterrupt: a command that waits for a server which does not answer ends
// at control-C, and can be run again.
func TestInterrupt(t *testing.T) {
	t.Parallel()
	w := newWorld(t, shortDir(t), "serve")
	w.home(t, "A", "alice", "alice")
	pid := w.server.(*daemon).cmd.Process.Pid
	w.must(t, "isr-locksrv", "parcel", "create", "alice", "box", "--disk", "8M", "--vmm", "shell")
	for _, c := range []struct{ before, args []string }{
		{nil, []string{"ls"}},
		{nil, []string{"checkout", "box"}},
		{[]string{"checkout", "box"}, []string{"hoard", "box"}},
		{nil, []string{"resume", "box", "-m", "shell"}},
		{nil, []string{"sync", "box"}},
		{nil, []string{"checkin", "box"}},
	} {
		if c.before != nil {
			w.ok(t, "A", c.before...)
		}
		if c.args[0] == "sync" {
			w.disk(t, "A", "box", "head -c 2M /dev/urandom | dd of=$DISK bs=128k iflag=fullblock conv=notrunc,fsync 2>/dev/null")
		}
		syscall.Kill(pid, syscall.SIGSTOP)
		p := start(t, w.command("A", "isr", c.args...))
		p.in.Close()
		within(t, tooLong, "connection", func() bool { return connected(t, p.cmd.Process.Pid) })
		p.cmd.Process.Signal(syscall.SIGINT)
		began := time.Now()
		r := p.wait(t)
		if took := time.Since(began); r.status != 130 || took > 10*time.Second || !strings.Contains(r.err, "interrupted") {
			t.Errorf("isr %s: interrupted: after %v: %v", strings.Join(c.args, " "), took, r)
		}
		syscall.Kill(pid, syscall.SIGCONT)
		cmd := w.command("A", "isr", c.args...)
		if r := execute(cmd, "exit\n"); r.status != 0 {
			t.Errorf("isr %s: again: %v", strings.Join(c.args, " "), r)
		}
	}
	w.must(t, "isr-locksrv", "check", "-c")
	w.wantClean(t)
}

// connected reports whether a process has a TCP connection.
func connected(t testing.TB, pid int) bool {
	fds, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	table, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/tcp", pid))
	if err != nil {
		return false
	}
	for _, fd := range fds {
		name, _ := os.Readlink(fd)
		if inode, ok := strings.CutPrefix(name, "socket:["); ok &&
			regexp.MustCompile(`(?m) 01 .* `+strings.TrimSuffix(inode, "]")+` `).Match(table) {
			return true
		}
	}
	return false
}

// tmpfs mounts a file system of a size at dir, or skips the test.
func tmpfs(t testing.TB, dir, size string) (resize func(size string)) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size="+size+",mode=0700"); err != nil {
		t.Skipf("mount tmpfs: %v", err) // for root alone
	}
	t.Cleanup(func() { syscall.Unmount(dir, syscall.MNT_DETACH) })
	return func(size string) {
		if err := syscall.Mount("tmpfs", dir, "tmpfs", syscall.MS_REMOUNT, "size="+size); err != nil {
			t.Fatal(err)
		}
	}
}

// TestNoSpace: a full disk, on either side, is said, and loses nothing.
func TestNoSpace(t *testing.T) {
	t.Parallel()
	t.Run("client", func(t *testing.T) {
		t.Parallel()
		w := newQuickWorld(t, shortDir(t), "serve")
		home := filepath.Join(w.dir, "A")
		resize := tmpfs(t, home, "6M")
		w.home(t, "A", "alice", "alice")
		w.must(t, "isr-locksrv", "parcel", "create", "alice", "box", "--disk", "16M", "--vmm", "shell")
		// The guest sees that its disk is full; what it had flushed is there.
		r := execute(w.command("A", "isr", "resume", "box"), `head -c 1M /dev/urandom | dd of=$DISK bs=64k iflag=fullblock conv=notrunc,fsync 2>/dev/null || echo early
head -c 1M $DISK | sha256sum
head -c 12M /dev/urandom | dd of=$DISK bs=64k seek=16 iflag=fullblock conv=notrunc,fsync 2>/dev/null && echo no error
exit 0
`)
		// How it ended is written down all the same: there is a reserve.
		if r.status != 0 || strings.Contains(r.out, "early") || strings.Contains(r.out, "no error") {
			t.Errorf("guest on a full disk: %v", r)
		}
		if !strings.Contains(r.err, "no space left on device") {
			t.Errorf("nobody said that the disk is full: %v", r)
		}
		if st := stat(t, w, "A", "box"); st.State != "powered off, modified" {
			t.Errorf("state %q after a run on a full disk", st.State)
		}
		// Where there is no room for the reserve, nothing is run.
		if r := execute(w.command("A", "isr", "resume", "box"), "exit\n"); r.status != 20 || !strings.Contains(r.err, "no room to run it") {
			t.Errorf("resume on a full disk: %v", r)
		}
		sum := strings.SplitAfter(r.out, "\n")[0]
		// Sealing needs room too.
		resize(used(t, home))
		if r := w.isr("A", "sync", "box"); r.status != 20 || !strings.Contains(r.err, "no space left on device") {
			t.Errorf("sync on a full disk: %v", r)
		}
		w.sound(t, "box")
		resize("64M")
		if got := w.disk(t, "A", "box", "head -c 1M $DISK | sha256sum"); got != sum {
			t.Errorf("what was flushed: got %s, want %s", got, sum)
		}
		w.ok(t, "A", "sync", "box")
		// Nor can it be hoarded where there is no room; then it can.
		w.ok(t, "A", "checkin", "box")
		if err := os.RemoveAll(filepath.Join(home, ".isr")); err != nil {
			t.Fatal(err)
		}
		resize("1M")
		if r := w.isr("A", "hoard", "box"); r.status != 20 {
			t.Errorf("hoard on a full disk: %v", r)
		}
		resize("64M")
		w.ok(t, "A", "hoard", "box")
		if got := w.disk(t, "A", "box", "head -c 1M $DISK | sha256sum"); got != sum {
			t.Errorf("on a hoard that was full: got %s, want %s", got, sum)
		}
		w.ok(t, "A", "checkin", "box")
	})
	t.Run("server", func(t *testing.T) {
		t.Parallel()
		dir := shortDir(t)
		resize := tmpfs(t, filepath.Join(dir, "root"), "4M")
		w := newQuickWorld(t, dir, "serve")
		w.home(t, "A", "alice", "alice")
		w.home(t, "B", "alice", "alice")
		w.must(t, "isr-locksrv", "parcel", "create", "alice", "box", "--disk", "16M", "--vmm", "shell")
		sum := w.disk(t, "A", "box", "head -c 8M /dev/urandom | dd of=$DISK bs=64k iflag=fullblock conv=notrunc,fsync 2>/dev/null; sha256sum <$DISK")
		for range 2 {
			if r := w.isr("A", "sync", "box"); r.status != 20 || !strings.Contains(r.err, "isr: hint: ") {
				t.Errorf("sync to a full server: %v", r)
			}
			w.sound(t, "box")
		}
		if got := w.listed(t, "box", "version"); got != "1" {
			t.Errorf("version is %s, want 1", got)
		}
		resize("64M")
		w.ok(t, "A", "checkin", "box")
		w.sound(t, "box")
		if got := w.disk(t, "B", "box", "sha256sum <$DISK"); got != sum {
			t.Errorf("disk is %s, was %s", got, sum)
		}
	})
}

// TestLimit: -b bounds what is sent and fetched a second.
func TestLimit(t *testing.T) {
	t.Parallel()
	w := newQuickWorld(t, shortDir(t), "serve")
	w.home(t, "A", "alice", "alice")
	w.home(t, "B", "alice", "alice")
	w.must(t, "isr-locksrv", "parcel", "create", "alice", "box", "--disk", "2M", "--vmm", "shell")
	w.disk(t, "A", "box", "head -c 512K /dev/urandom | dd of=$DISK bs=128k iflag=fullblock conv=notrunc,fsync 2>/dev/null")
	timed := func(host string, args ...string) {
		t.Helper()
		began := time.Now()
		w.ok(t, host, args...)
		// 512 KiB at 400 KiB a second, less a burst.
		if took := time.Since(began); took < time.Second {
			t.Errorf("isr %s took %v", strings.Join(args, " "), took)
		}
	}
	timed("A", "sync", "box", "-b", "400")
	w.ok(t, "A", "checkin", "box")
	timed("B", "hoard", "box", "-b", "400")
}
