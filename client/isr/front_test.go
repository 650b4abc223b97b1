package main

import (
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
)

// TestFront: whatever becomes of the one in front, or of its terminal, the
// keeper suspends; and resume needs no terminal at all. With every driver that
// needs no guest; TestGuest does the same with QEMU.
func TestFront(t *testing.T) {
	t.Parallel()
	w := newQuickWorld(t, shortDir(t), "serve")
	w.home(t, "A", "alice", "alice")
	w.must(t, "isr-locksrv", "parcel", "create", "alice", "box", "--disk", "1M", "--vmm", "none")
	w.ok(t, "A", "checkout", "box")
	waiter := w.dir + "/waiter"
	// A machine that says when it runs, writes, and waits to be told to suspend.
	writeFile(t, waiter+"/isr-vmm-waiter", `#!/bin/sh
case $1 in
info) printf 'VMM=waiter\nRUNNABLE=yes\n' ;;
run)
	trap 'printf "SUSPENDED=no\n"; exit 0' INT
	printf here | dd of="$DISK" conv=notrunc,fsync 2>/dev/null
	while :; do sleep 1; done
	;;
esac
`)
	if err := os.Chmod(waiter+"/isr-vmm-waiter", 0o700); err != nil {
		t.Fatal(err)
	}
	resume := func(driver string, more ...string) *exec.Cmd {
		cmd := w.command("A", "isr", append([]string{"resume", "-v", "box", "-m", driver}, more...)...)
		for i, v := range cmd.Env {
			if path, ok := strings.CutPrefix(v, "PATH="); ok {
				cmd.Env[i] = "PATH=" + waiter + ":" + path
			}
		}
		return cmd
	}
	settled := func(what string) {
		t.Helper()
		within(t, tooLong, what+": suspension", func() bool {
			return len(w.processes()) == 0 && len(entries(t, w.dir+"/run/isr")) == 0
		})
		if st := stat(t, w, "A", "box"); st.State == "running" || strings.Contains(st.State, "died") {
			t.Errorf("%s: state %q", what, st.State)
		}
		w.wantClean(t)
	}
	drivers := []struct{ name, option string }{{"none", ""}, {"shell", "command=sleep 1000"}, {"waiter", ""}}
	for _, d := range drivers {
		var more []string
		if d.option != "" {
			more = []string{"-o", d.option}
		}
		for _, way := range []struct {
			name string
			end  func(p *running)
		}{
			{"front killed", func(p *running) { p.cmd.Process.Kill() }},
			{"SIGHUP", func(p *running) { p.cmd.Process.Signal(syscall.SIGHUP) }},
			// As a host that goes down does.
			{"SIGTERM to all", func(p *running) {
				keeper := keeperOf(t, p.cmd.Process.Pid)
				syscall.Kill(keeper, syscall.SIGTERM)
				p.cmd.Process.Signal(syscall.SIGTERM)
			}},
			{"SIGTERM to the keeper", func(p *running) { syscall.Kill(keeperOf(t, p.cmd.Process.Pid), syscall.SIGTERM) }},
			{"control-C again and again", func(p *running) {
				for range 20 {
					p.cmd.Process.Signal(syscall.SIGINT)
				}
			}},
		} {
			what := d.name + ": " + way.name
			p := start(t, resume(d.name, more...))
			p.waitFor(t, "the guest runs")
			way.end(p)
			settled(what)
			if r := p.wait(t); r.status != 0 && r.status != 137 {
				t.Errorf("%s: %v", what, r)
			}
		}
		// The terminal is closed.
		tty := openTerminal(t)
		p := tty.start(t, resume(d.name, more...))
		p.waitFor(t, "the guest runs")
		tty.close()
		settled(d.name + ": terminal closed")
		p.wait(t)

		// In a shell's background, where SIGINT is ignored, with no input; and
		// as cron starts it: no terminal, no session.
		cmd := resume(d.name, more...)
		line := `"$@" </dev/null & echo $!; wait`
		background := exec.Command("/bin/sh", append([]string{"-c", line, "sh"}, cmd.Args...)...)
		background.Env, background.SysProcAttr = cmd.Env, &syscall.SysProcAttr{Setsid: true}
		p = start(t, background)
		p.waitFor(t, "the guest runs")
		syscall.Kill(-background.Process.Pid, syscall.SIGINT) // to its whole group; the shell dies of it
		if len(keepersOfWorld(w)) != 1 {
			t.Errorf("%s: not running in the background after a SIGINT that is ignored", d.name)
		}
		for _, pid := range keepersOfWorld(w) {
			syscall.Kill(pid, syscall.SIGTERM)
		}
		settled(d.name + ": in the background")
		p.wait(t)
	}
	w.ok(t, "A", "checkin", "box")
	w.must(t, "isr-locksrv", "check", "-c")
}

// TestSleep: the host sleeps while its guest reads, and its connections do not
// outlive that, with a word or without one. The guest sees no error.
func TestSleep(t *testing.T) {
	t.Parallel()
	w := newWorld(t, shortDir(t), "serve")
	x := newWire(t, w, false)
	for _, host := range []string{"A", "B"} {
		w.home(t, host, "alice", "alice")
	}
	w.must(t, "isr-locksrv", "parcel", "create", "alice", "box", "--disk", "16M", "--vmm", "shell")
	sum := w.disk(t, "A", "box", "head -c 12M /dev/urandom | dd of=$DISK bs=128k iflag=fullblock conv=notrunc,fsync 2>/dev/null; sha256sum <$DISK")
	w.ok(t, "A", "checkin", "box")
	for name, lose := range map[string]func(){"cut": func() { x.cut(); x.mend() }, "silent": x.silence} {
		if err := os.RemoveAll(w.dir + "/B/.isr"); err != nil { // its hoard
			t.Fatal(err)
		}
		p := start(t, w.command("B", "isr", "--ssh-option", "ServerAliveInterval=1", "--ssh-option", "ServerAliveCountMax=1", "resume", "box"))
		p.send("head -c 64K $DISK >/dev/null && echo begun; sha256sum <$DISK; exit\n")
		p.waitFor(t, "begun")
		asleep := w.processes()
		for _, a := range asleep {
			syscall.Kill(a.pid, syscall.SIGSTOP)
		}
		lose()
		for _, a := range asleep {
			syscall.Kill(a.pid, syscall.SIGCONT)
		}
		if r := p.wait(t); r.status != 0 || !strings.Contains(r.out, sum) || strings.Contains(r.err, "I/O error") {
			t.Errorf("%s: after a sleep: want %s, got %v", name, sum, r)
		}
		w.ok(t, "B", "checkin", "box")
	}
	w.wantClean(t)
}

// keepersOfWorld are the keepers of the world's hosts.
func keepersOfWorld(w *world) (pids []int) {
	for _, p := range w.processes() {
		if strings.Contains(p.command, " keeper ") {
			pids = append(pids, p.pid)
		}
	}
	return pids
}
