package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/creack/pty"

	"isr/client/remote/linktest"
)

// typed is what a person types when the terminal shows a prompt; an empty
// answer is the end of file.
type typed struct{ prompt, answer string }

// atTerminal runs cmd with a terminal of its own, on which a person answers as
// told, and whatever it says beside that goes to result. shown is what the
// terminal showed.
func atTerminal(t testing.TB, cmd *exec.Cmd, answers ...typed) (r result, shown string) {
	t.Helper()
	r, shown, left := atTerminalOr(t, cmd, answers...)
	if len(left) > 0 {
		t.Fatalf("never asked: %q; the terminal shows %q, %v", left[0].prompt, shown, r)
	}
	return r, shown
}

// atTerminalOr is atTerminal of a command that may end before it has asked
// for all that is told; left is what it has not.
func atTerminalOr(t testing.TB, cmd *exec.Cmd, answers ...typed) (r result, shown string, left []typed) {
	t.Helper()
	far, near, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer far.Close()
	began := time.Now()
	defer func() { t.Logf("%v: %q", time.Since(began), cmd.Args[1:]) }()
	var out, errs lockedBuffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = near, &out, &errs
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true, Ctty: 0}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	near.Close()
	var mu sync.Mutex
	var all, fresh strings.Builder // fresh: since the last answer
	read := make(chan struct{})
	go func() {
		defer close(read)
		buf := make([]byte, 1024)
		for {
			n, err := far.Read(buf)
			mu.Lock()
			all.Write(buf[:n])
			fresh.Write(buf[:n])
			if len(answers) > 0 && strings.Contains(fresh.String(), answers[0].prompt) {
				text := answers[0].answer + "\n"
				if answers[0].answer == "" {
					text = "\x04"
				}
				io.WriteString(far, text)
				fresh.Reset()
				answers = answers[1:]
			}
			mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	select {
	case err = <-ended:
	case <-time.After(tooLong):
		cmd.Process.Kill()
		mu.Lock()
		defer mu.Unlock()
		t.Fatalf("it does not end; the terminal shows %q\n%s", all.String(), errs.String())
	}
	// The command has ended and must have let the terminal go.
	select {
	case <-read:
	case <-time.After(tooLong):
		t.Fatalf("the terminal is still in use")
	}
	mu.Lock()
	defer mu.Unlock()
	return result{out: out.String(), err: errs.String(), status: statusOf(cmd, err)}, all.String(), answers
}

// types is atTerminal for isr on host, which must succeed.
func (w *world) types(t testing.TB, host string, answers []typed, args ...string) result {
	t.Helper()
	r, shown := atTerminal(t, w.command(host, "isr", args...), answers...)
	if r.status != 0 {
		t.Fatalf("%s: isr %s: %v; the terminal shows %q", host, strings.Join(args, " "), r, shown)
	}
	for _, a := range answers {
		if a.answer != "" && strings.Contains(shown, a.answer) {
			t.Errorf("isr %s: the terminal shows what was typed: %q", strings.Join(args, " "), shown)
		}
	}
	return r
}

// silently is types of nothing: it must ask nothing on its terminal.
func (w *world) silently(t testing.TB, host string, args ...string) result {
	t.Helper()
	r, shown := atTerminal(t, w.command(host, "isr", args...))
	if r.status != 0 || shown != "" {
		t.Fatalf("%s: isr %s: %v; the terminal shows %q", host, strings.Join(args, " "), r, shown)
	}
	return r
}

// guestWrites resumes a parcel in a shell, of which line is all.
func (w *world) guestWrites(t testing.TB, host, parcel, line string, answers []typed, args ...string) {
	t.Helper()
	args = append([]string{"resume", parcel, "-m", "shell", "-o", "command=" + line}, args...)
	w.types(t, host, answers, args...)
}

// authKeeper is the process that holds host's login; 0 if none does.
func (w *world) authKeeper(t testing.TB, host string) int {
	t.Helper()
	var all []struct{ Process int }
	if err := json.Unmarshal([]byte(w.isr(host, "auth", "--status", "--json").out), &all); err != nil {
		t.Fatal(err)
	}
	if len(all) == 0 {
		return 0
	}
	return all[0].Process
}

// waitNoProcess waits for the end of a process that is not ours.
func waitNoProcess(t testing.TB, pid int) {
	t.Helper()
	within(t, tooLong, fmt.Sprintf("end of process %d", pid), func() bool {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		return err != nil || strings.Contains(string(text), ") Z ") // nobody waits for it here
	})
}

// password gives a user an ISR password on the server.
func (w *world) password(t testing.TB, user, password string) {
	t.Helper()
	if r := execute(w.command("", "isr-locksrv", "user", "passwd", user), password+"\n"); r.status != 0 {
		t.Fatal(r)
	}
}

// nowhere fails the test if a secret is in any file of the world, in the log
// of its server, or in the arguments or environment of any process.
func (w *world) nowhere(t testing.TB, when string, secrets ...string) {
	t.Helper()
	for _, dir := range []string{"A", "root", "run", "tmp"} {
		found, _ := holding(t, filepath.Join(w.dir, dir), secrets...)
		for _, f := range found {
			t.Errorf("%s: a secret is in %s", when, f)
		}
	}
	procs, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	looked := 0
	for _, p := range procs {
		for _, name := range []string{p, filepath.Join(filepath.Dir(p), "environ")} {
			text, err := os.ReadFile(name)
			if err != nil {
				continue
			}
			looked += len(text)
			for _, s := range secrets {
				if strings.Contains(string(text), s) {
					t.Errorf("%s: a secret is in %s", when, name)
				}
			}
		}
	}
	if looked == 0 {
		t.Errorf("%s: no process was looked at", when)
	}
	for _, s := range secrets {
		if strings.Contains(w.server.log(), s) {
			t.Errorf("%s: a secret is in the server's log", when)
		}
	}
}

// lockKey puts a passphrase on a host's key, with no more rounds than ssh-keygen
// must make: that it is slow to guess is not our work.
func (w *world) lockKey(t testing.TB, host, phrase string) (file string) {
	t.Helper()
	file = filepath.Join(w.dir, host, ".ssh", "id_ed25519")
	if out, err := exec.Command("ssh-keygen", "-q", "-p", "-a", "1", "-P", "", "-N", phrase, "-f", file).CombinedOutput(); err != nil {
		t.Fatalf("ssh-keygen: %v\n%s", err, out)
	}
	return file
}

// "Authenticate to the ISR server. … Run this command once, at the beginning
// of each X session to avoid having to keep typing your ISR password."
//
// A key with a passphrase: it is asked for once, and then neither key nor agent
// is needed for a whole day.
func TestAuthByKey(t *testing.T) {
	t.Parallel()
	for _, kind := range kinds {
		t.Run(kind.name, func(t *testing.T) {
			t.Parallel()
			const phrase = "a-phrase-for-the-key"
			w := newWorld(t, shortDir(t), kind.name)
			w.must(t, "isr-locksrv", "parcel", "create", "alice", "box", "--disk", "8M", "--vmm", "shell")
			w.home(t, "A", "alice", "alice")
			key := w.lockKey(t, "A", phrase)
			if r := w.isr("A", "auth", "--status"); r.status != 1 || r.out != "" {
				t.Errorf("status before: %v", r)
			}
			if r := w.isr("A", "auth"); r.status != 16 {
				t.Errorf("auth without a terminal: %v", r)
			}
			r := w.types(t, "A", []typed{{"Enter passphrase for key", "no-such-phrase"}, {"Bad passphrase", phrase}}, "auth")
			if !strings.Contains(r.err, "authenticated, until ") {
				t.Errorf("auth: %v", r)
			}
			pid := w.authKeeper(t, "A")
			if pid == 0 {
				t.Fatal("nothing is authenticated")
			}
			t.Cleanup(func() { syscall.Kill(pid, syscall.SIGKILL) })
			if err := os.Remove(key); err != nil {
				t.Fatal(err)
			}
			if err := os.Remove(key + ".pub"); err != nil {
				t.Fatal(err)
			}
			unlocked := func() {
				t.Helper()
				for _, dir := range []string{"A", "run", "tmp"} {
					if found, _ := holding(t, filepath.Join(w.dir, dir), "PRIVATE KEY"); len(found) > 0 {
						t.Errorf("a private key is in %q", found)
					}
				}
			}
			w.nowhere(t, "authenticated", phrase)
			unlocked()
			if r := w.silently(t, "A", "auth"); !strings.Contains(r.err, "authenticated already, until") {
				t.Errorf("auth again: %v", r)
			}
			w.silently(t, "A", "ls")
			w.silently(t, "A", "checkout", "box")
			w.guestWrites(t, "A", "box", "dd if=/dev/urandom of=$DISK bs=100k count=3 conv=notrunc 2>/dev/null && sync $DISK", nil)
			w.silently(t, "A", "sync", "box")
			w.guestWrites(t, "A", "box", "dd if=/dev/urandom of=$DISK bs=100k count=3 conv=notrunc 2>/dev/null && sync $DISK", nil)
			w.silently(t, "A", "hoard", "box")
			w.guestWrites(t, "A", "box", "true", nil, "-d")
			w.silently(t, "A", "checkin", "box")
			w.nowhere(t, "after a day", phrase)
			unlocked()

			// The connection breaks: what is held is used again.
			w.server.kill(t)
			if r := w.isr("A", "ls"); r.status != 14 {
				t.Errorf("ls without a server: %v", r)
			}
			w.server.start(t)
			w.silently(t, "A", "ls")
			if got := w.authKeeper(t, "A"); got != pid {
				t.Errorf("process %d holds it, and %d did", got, pid)
			}

			// "Remove the authentication credentials that were established by the
			// auth command."
			if r := w.silently(t, "A", "deauth"); !strings.Contains(r.err, "no longer authenticated") {
				t.Errorf("deauth: %v", r)
			}
			waitNoProcess(t, pid)
			w.wantClean(t)
			if r := w.isr("A", "ls"); r.status != 16 {
				t.Errorf("ls after deauth, without a key: %v", r)
			}
			if r := w.silently(t, "A", "deauth"); !strings.Contains(r.err, "nothing was authenticated") {
				t.Errorf("deauth again: %v", r)
			}
		})
	}
}

// passwordWorld is a world in which alice has a password on host A, and no key.
func passwordWorld(t testing.TB, password string) *world {
	t.Helper()
	w := newQuickWorld(t, shortDir(t), "serve")
	w.password(t, "alice", password)
	w.must(t, "isr-locksrv", "parcel", "create", "alice", "box", "--disk", "8M", "--vmm", "shell")
	w.bare(t, "A")
	return w
}

// bare makes a home without a key.
func (w *world) bare(t testing.TB, host string) {
	t.Helper()
	home := filepath.Join(w.dir, host)
	if err := os.MkdirAll(home, 0o700); err != nil {
		t.Fatal(err)
	}
	w.point(t, home, host, "alice")
}

// "You will be prompted for your ISR password." Who has no SSH key at all can
// do everything by it; also with the server gone.
func TestPasswordOnly(t *testing.T) {
	t.Parallel()
	const secret, other, write = "alice-her-secret", "another-secret-of-hers", "dd if=/dev/urandom of=$DISK bs=100k count=3 conv=notrunc 2>/dev/null && sync $DISK"
	w := passwordWorld(t, secret)
	ask := []typed{{"assword", secret}}

	// Each command for itself asks.
	w.types(t, "A", ask, "ls")
	if r := w.isr("A", "ls"); r.status != 16 {
		t.Errorf("ls without a terminal: %v", r)
	}
	if r, _ := atTerminal(t, w.command("A", "isr", "ls"), typed{"assword", "wrong-secret"}, typed{"assword", ""}); r.status != 16 || r.out != "" {
		t.Errorf("ls with a wrong password: %v", r)
	}
	w.types(t, "A", ask, "checkout", "-d", "box")
	w.nowhere(t, "checked out", secret)
	w.server.stop(t)
	w.guestWrites(t, "A", "box", write, ask, "-d")
	w.guestWrites(t, "A", "box", write, []typed{{"ISR password of alice@127.0.0.1:" + strconv.Itoa(w.port) + ", which protects the checkout here: ", "wrong-secret"}, {"assword", secret}}, "-d")
	r, _ := atTerminal(t, w.command("A", "isr", "resume", "-d", "box", "-m", "shell"), typed{"assword", "wrong-secret"}, typed{"assword", "wrong-secret"}, typed{"assword", "wrong-secret"})
	if r.status != 16 || !strings.Contains(r.err, "password: does not open this checkout") {
		t.Errorf("resume -d with a wrong password: %v", r)
	}
	if r := w.isr("A", "resume", "-d", "box", "-m", "shell"); r.status != 16 {
		t.Errorf("resume -d without a terminal: %v", r)
	}
	w.server.start(t)
	w.types(t, "A", ask, "sync", "box")

	// Once asked, none does; -d with the server gone neither.
	w.types(t, "A", ask, "auth")
	pid := w.authKeeper(t, "A")
	t.Cleanup(func() { syscall.Kill(pid, syscall.SIGKILL) })
	w.guestWrites(t, "A", "box", write, nil)
	w.server.stop(t)
	w.guestWrites(t, "A", "box", write, nil, "-d")
	w.server.start(t)
	w.silently(t, "A", "sync", "box")
	w.nowhere(t, "authenticated", secret)

	// "Change your ISR password." The old one is known.
	w.types(t, "A", []typed{{"New ISR password", other}, {"Again", other}}, "passwd")
	w.guestWrites(t, "A", "box", write, nil, "-d")
	w.silently(t, "A", "sync", "box")
	w.silently(t, "A", "deauth")
	waitNoProcess(t, pid)
	w.guestWrites(t, "A", "box", write, []typed{{"assword", secret}, {"assword", other}}, "-d")
	ask[0].answer = other
	w.types(t, "A", ask, "checkin", "box")
	w.nowhere(t, "checked in", secret, other)
	w.wantClean(t)
	if r, _ := atTerminal(t, w.command("A", "isr", "ls"), typed{"assword", secret}, typed{"assword", ""}); r.status != 16 {
		t.Errorf("the old password: %v", r)
	}
}

// Passwd may be refused, given up and cut off, and nothing is lost.
func TestPasswd(t *testing.T) {
	t.Parallel()
	const secret, other = "alice-her-secret", "another-secret-of-hers"
	w := passwordWorld(t, secret)
	ask := typed{"assword", secret}
	w.types(t, "A", []typed{ask}, "checkout", "-d", "box")
	for what, answers := range map[string][]typed{
		"not the same":    {ask, {"New ISR", other}, {"Again", "something-else"}},
		"too short":       {ask, {"New ISR", "short"}},
		"end of file":     {ask, {"New ISR", ""}},
		"end, a bit on":   {ask, {"New ISR", other}, {"Again", ""}},
		"no login at all": {{"assword", ""}},
	} {
		if r, _ := atTerminal(t, w.command("A", "isr", "passwd"), answers...); r.status == 0 || strings.Contains(r.err, "secret") {
			t.Errorf("%s: %v", what, r)
		}
		if r := execute(w.command("", "isr-locksrv", "--root", w.root, "check"), ""); r.status != 0 {
			t.Errorf("%s: %v", what, r)
		}
	}
	if r := w.isr("A", "passwd"); r.status != 16 {
		t.Errorf("without a terminal: %v", r)
	}
	w.types(t, "A", []typed{ask}, "sync", "box")
	w.server.stop(t)
	w.guestWrites(t, "A", "box", "true", []typed{ask}, "-d")
	w.server.start(t)
	// A second host has the parcel's sibling under the old password.
	w.must(t, "isr-locksrv", "parcel", "create", "alice", "two", "--disk", "1M", "--vmm", "shell")
	w.bare(t, "B")
	w.types(t, "B", []typed{ask}, "checkout", "-d", "two")

	w.types(t, "A", []typed{ask, {"New ISR", other}, {"Again", other}}, "passwd")
	w.server.stop(t)
	w.guestWrites(t, "A", "box", "true", []typed{{"assword", other}}, "-d")
	// "checkouts on other hosts open with the one they were made with"
	w.guestWrites(t, "B", "two", "true", []typed{{"assword", other}, {"assword", secret}}, "-d")
	w.server.start(t)
	w.types(t, "B", []typed{{"assword", other}}, "checkin", "two")
	w.types(t, "A", []typed{{"assword", other}}, "checkin", "box")
	w.wantClean(t)
}

// The line breaks before the server's answer to isr passwd arrives: whichever
// password counts there, this host's checkouts open.
func TestPasswdInterrupted(t *testing.T) {
	t.Parallel()
	const secret, other = "alice-her-secret", "another-secret-of-hers"
	w := newQuickWorld(t, shortDir(t), "serve")
	w.password(t, "alice", secret)
	w.must(t, "isr-locksrv", "parcel", "create", "alice", "box", "--disk", "1M", "--vmm", "shell")
	link := linktest.New(t, fmt.Sprintf("127.0.0.1:%d", w.server.port()))
	_, port, _ := net.SplitHostPort(link.Addr)
	w.port, _ = strconv.Atoi(port)
	w.bare(t, "A")
	w.types(t, "A", []typed{{"assword", secret}}, "checkout", "-d", "box")
	link.RTT(500 * time.Millisecond)
	record := filepath.Join(w.dir, "A", ".isr", "box", "keys", "keyroot")
	lines := func() int {
		text, err := os.ReadFile(record)
		if err != nil {
			t.Error(err)
		}
		return strings.Count(string(text), "PASSWORD:=")
	}
	// Between the two lines of the record and the answer is a round trip.
	cut := make(chan bool)
	stop := make(chan bool)
	go func() {
		defer close(cut)
		for lines() < 2 {
			select {
			case <-stop:
				return
			case <-time.After(5 * time.Millisecond):
			}
		}
		link.Refuse(true)
		link.Cut()
	}()
	r, shown := atTerminal(t, w.command("A", "isr", "passwd"), typed{"assword", secret}, typed{"New ISR", other}, typed{"Again", other})
	close(stop)
	<-cut
	if r.status != 14 {
		t.Fatalf("passwd: %v; the terminal shows %q", r, shown)
	}
	for _, p := range []string{secret, other} {
		w.guestWrites(t, "A", "box", "true", []typed{{"assword", p}}, "-d")
	}
	// Again, with whichever it is.
	link.RTT(0)
	link.Refuse(false)
	r, _ = atTerminal(t, w.command("A", "isr", "passwd"), typed{"assword", secret}, typed{"New ISR", other}, typed{"Again", other})
	if r.status == 16 {
		r, _ = atTerminal(t, w.command("A", "isr", "passwd"), typed{"assword", other}, typed{"New ISR", other}, typed{"Again", other})
	}
	if r.status != 0 || lines() != 1 {
		t.Errorf("passwd again: %v; %d passwords open the record", r, lines())
	}
	w.guestWrites(t, "A", "box", "true", []typed{{"assword", other}}, "-d")
	w.types(t, "A", []typed{{"assword", other}}, "checkin", "box")
	w.wantClean(t)
}

// A user with a key may set a password too, and has no old one to give.
func TestPasswdWithKey(t *testing.T) {
	t.Parallel()
	for _, kind := range kinds {
		t.Run(kind.name, func(t *testing.T) {
			t.Parallel()
			w := newQuickWorld(t, shortDir(t), kind.name)
			w.home(t, "A", "alice", "alice")
			w.types(t, "A", []typed{{"New ISR", "alice-her-secret"}, {"Again", "alice-her-secret"}}, "passwd")
			r, _ := atTerminal(t, w.command("A", "isr", "passwd"), typed{"Old ISR", "wrong-secret"}, typed{"New ISR", "another-secret"}, typed{"Again", "another-secret"})
			if r.status != 16 || !strings.Contains(r.err, "password: wrong") {
				t.Errorf("wrong old password: %v", r)
			}
			w.types(t, "A", []typed{{"Old ISR", "alice-her-secret"}, {"New ISR", "another-secret"}, {"Again", "another-secret"}}, "passwd")
			w.nowhere(t, "changed", "alice-her-secret", "another-secret", "wrong-secret")
			if r := execute(w.command("", "isr-locksrv", "check"), ""); r.status != 0 {
				t.Error(r)
			}
		})
	}
}

// "You are now authenticated and will not need to type this password again
// until you either explicitly deauth or terminate your X session." Or the time
// is over, or the process is killed.
func TestAuthEnds(t *testing.T) {
	t.Parallel()
	w := newQuickWorld(t, shortDir(t), "serve")
	w.home(t, "A", "alice", "alice")
	began := func(how string) int {
		t.Helper()
		pid := w.authKeeper(t, "A")
		if pid == 0 {
			t.Fatalf("%s: nothing is authenticated", how)
		}
		t.Cleanup(func() { syscall.Kill(pid, syscall.SIGKILL) })
		return pid
	}
	w.silently(t, "A", "auth", "--lifetime", "1s")
	if pid := w.authKeeper(t, "A"); pid != 0 { // a slow host may be too late to see it
		waitNoProcess(t, pid)
	}
	within(t, tooLong, "end of a second", func() bool { return w.isr("A", "auth", "--status").status == 1 })
	w.wantClean(t)

	w.silently(t, "A", "auth")
	pid := began("auth")
	if r := w.silently(t, "A", "auth", "--lifetime", "1s"); !strings.Contains(r.err, "already") {
		t.Errorf("a shorter time: %v", r)
	}
	waitNoProcess(t, pid)

	// The session that it was begun in ends.
	sh := w.command("A", "sh", "-c", "isr auth && echo begun && read x")
	sh.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	p := start(t, sh)
	p.waitFor(t, "begun")
	pid = began("in a session")
	if r := w.ok(t, "A", "auth", "--status"); !strings.Contains(r.out, fmt.Sprintf("or the end of the session of process %d", sh.Process.Pid)) {
		t.Errorf("status: %v", r)
	}
	p.send("on\n")
	if r := p.wait(t); r.status != 0 {
		t.Errorf("session: %v", r)
	}
	waitNoProcess(t, pid)
	w.wantClean(t)

	// Killed: the next command logs in itself, and auth begins anew.
	w.silently(t, "A", "auth")
	pid = began("before a kill")
	syscall.Kill(pid, syscall.SIGKILL)
	waitNoProcess(t, pid)
	w.silently(t, "A", "ls")
	if r := w.isr("A", "auth", "--status"); r.status != 1 {
		t.Errorf("status after a kill: %v", r)
	}
	w.silently(t, "A", "auth")
	pid = began("after a kill")
	// Asked to end by the host that goes down.
	syscall.Kill(pid, syscall.SIGTERM)
	waitNoProcess(t, pid)
	w.wantClean(t)

	// Two at once: one holds it, neither harms the other.
	one, two := start(t, w.command("A", "isr", "auth")), start(t, w.command("A", "isr", "auth"))
	for _, p := range []*running{one, two} {
		if r := p.wait(t); r.status != 0 && r.status != 17 {
			t.Errorf("two at once: %v", r)
		}
	}
	pid = began("two at once")
	w.silently(t, "A", "ls")
	w.silently(t, "A", "deauth")
	waitNoProcess(t, pid)
	w.wantClean(t)
}

// "…at the beginning of each X session": it ends with that.
func TestAuthEndsWithX(t *testing.T) {
	if _, err := exec.LookPath("Xvfb"); err != nil {
		if os.Getenv("ISR_TEST_REQUIRE") == "1" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	t.Parallel()
	w := newQuickWorld(t, shortDir(t), "serve")
	w.home(t, "A", "alice", "alice")
	ready, fd, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer ready.Close()
	x := exec.Command("Xvfb", "-displayfd", "3", "-nolisten", "tcp", "-screen", "0", "64x64x8")
	x.ExtraFiles = []*os.File{fd}
	if err := x.Start(); err != nil {
		t.Fatal(err)
	}
	fd.Close()
	ended := make(chan error, 1)
	go func() { ended <- x.Wait() }()
	t.Cleanup(func() { x.Process.Kill() })
	number := make([]byte, 16)
	n, err := ready.Read(number)
	if err != nil {
		t.Fatal(err)
	}
	cmd := w.command("A", "isr", "auth")
	cmd.Env = append(cmd.Env, "DISPLAY=:"+strings.TrimSpace(string(number[:n])))
	if r := execute(cmd, ""); r.status != 0 || !strings.Contains(r.err, "or the end of the X session") {
		t.Fatal(r)
	}
	pid := w.authKeeper(t, "A")
	t.Cleanup(func() { syscall.Kill(pid, syscall.SIGKILL) })
	x.Process.Signal(syscall.SIGTERM)
	<-ended
	waitNoProcess(t, pid)
	w.wantClean(t)
}

// Another user gets nothing from the socket, even if the directory lets him
// reach it; nor does one user's auth serve another home.
func TestAuthIsPrivate(t *testing.T) {
	t.Parallel()
	w := newQuickWorld(t, shortDir(t), "serve")
	w.home(t, "A", "alice", "alice")
	w.bare(t, "B")
	w.silently(t, "A", "auth")
	pid := w.authKeeper(t, "A")
	t.Cleanup(func() { syscall.Kill(pid, syscall.SIGKILL) })
	if r := w.isr("B", "ls"); r.status != 16 {
		t.Errorf("another home: %v", r)
	}
	if r := w.isr("B", "auth", "--status"); r.status != 1 {
		t.Errorf("another home: %v", r)
	}
	sockets, _ := filepath.Glob(filepath.Join(w.dir, "run", "isr", "*.auth"))
	if len(sockets) != 1 {
		t.Fatalf("sockets: %q", sockets)
	}
	fi, err := os.Lstat(sockets[0])
	if err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("socket: %v, %v", fi.Mode(), err)
	}
	// What it keeps open: no terminal, no pipe, no file of the user's.
	fds, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	if err != nil || len(fds) == 0 {
		t.Fatalf("descriptors: %q, %v", fds, err)
	}
	for _, fd := range fds {
		target, err := os.Readlink(fd)
		if err != nil {
			continue
		}
		if target != "/dev/null" && !strings.HasPrefix(target, "socket:") && !strings.HasPrefix(target, "anon_inode:") &&
			!strings.HasPrefix(target, "/sys/fs/cgroup/") { // Go's runtime looks at how many processors it has
			t.Errorf("it keeps %s open", target)
		}
	}
	if os.Getuid() != 0 {
		t.Log("not root: no other user to try as")
		return
	}
	ask := `{"Op":"credentials"}`
	message := "\x00\x00\x00" + string(rune(len(ask))) + ask
	say := func() string {
		conn, err := net.Dial("unix", sockets[0])
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(tooLong))
		io.WriteString(conn, message)
		got, _ := io.ReadAll(conn)
		return string(got)
	}
	if got := say(); !strings.Contains(got, "Credentials") {
		t.Errorf("its user: %q", got)
	}
	for dir := sockets[0]; dir != filepath.Dir(w.dir); dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o777); err != nil {
			t.Fatal(err)
		}
	}
	// First that the program would get it, if it were let.
	control := exec.Command("perl", "-MIO::Socket::UNIX", "-e",
		`$s = IO::Socket::UNIX->new(Peer => $ARGV[0]) or die "connect: $!"; $s->autoflush(1); print $s pack("N/a*", $ARGV[1]); print <$s>`, sockets[0], ask)
	if r := execute(control, ""); !strings.Contains(r.out, "Credentials") {
		t.Errorf("its user, by a program: %v", r)
	}
	// By a program, since a thread with another user is not what a process is.
	other := exec.Command("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "perl", "-MIO::Socket::UNIX", "-e",
		`$s = IO::Socket::UNIX->new(Peer => $ARGV[0]) or die "connect: $!"; print "connected\n"; $s->autoflush(1); $SIG{PIPE}="IGNORE"; print $s pack("N/a*", $ARGV[1]); print <$s>`,
		sockets[0], ask)
	r := execute(other, "")
	if r.status != 0 || r.out != "connected\n" {
		t.Errorf("another user: %v; want connected, and nothing said", r)
	}
	if r := execute(exec.Command("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "cat", fmt.Sprintf("/proc/%d/environ", pid)), ""); r.status == 0 {
		t.Errorf("another user reads its environment")
	}
}

// TestAuthSpares measures what auth is for.
func TestAuthSpares(t *testing.T) {
	w := newQuickWorld(t, shortDir(t), "serve")
	link := linktest.New(t, fmt.Sprintf("127.0.0.1:%d", w.server.port()))
	_, port, _ := net.SplitHostPort(link.Addr)
	w.port, _ = strconv.Atoi(port)
	w.home(t, "A", "alice", "alice")
	best := func() time.Duration {
		var least time.Duration
		for range 5 {
			began := time.Now()
			w.ok(t, "A", "ls")
			if d := time.Since(began); least == 0 || d < least {
				least = d
			}
		}
		return least
	}
	for _, rtt := range []time.Duration{0, 50 * time.Millisecond} {
		link.RTT(rtt)
		without := best()
		w.ok(t, "A", "auth")
		pid := w.authKeeper(t, "A")
		with := best()
		w.ok(t, "A", "deauth")
		waitNoProcess(t, pid)
		t.Logf("round trip %v: isr ls takes %v, authenticated %v", rtt, without, with)
		if rtt > 0 && with > without-2*rtt {
			t.Errorf("round trip %v: isr ls takes %v, and %v authenticated: want two round trips less", rtt, without, with)
		}
	}
}
