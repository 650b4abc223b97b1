package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"isr/client/remote/sshdtest"
	"isr/contrib/guest"
)

// lan is a server and hosts, each in a network namespace of its own, joined by
// a cable that can be unplugged.
type lan struct {
	t     testing.TB
	id    string
	hosts map[string]bool
}

// lanServer is the server's address on every lan, of the block for examples
// (RFC 5737).
const lanServer = "192.0.2.1"

// newLAN makes the server's namespace. It skips the test without the right to
// make one.
func newLAN(t testing.TB) *lan {
	t.Helper()
	sshdtest.Require(t, "ip")
	sshdtest.Require(t, "nsenter")
	if os.Getuid() != 0 {
		t.Skip("only root makes network namespaces")
	}
	l := &lan{t: t, id: fmt.Sprintf("isr%d", os.Getpid()), hosts: make(map[string]bool)}
	l.add("srv")
	l.ip("-n", l.ns("srv"), "addr", "add", lanServer+"/32", "dev", "lo")
	return l
}

func (l *lan) ns(host string) string { return l.id + host }

func (l *lan) ip(args ...string) {
	l.t.Helper()
	if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
		l.t.Fatalf("ip %s: %v: %s", strings.Join(args, " "), err, out)
	}
}

func (l *lan) add(host string) {
	l.t.Helper()
	l.ip("netns", "add", l.ns(host))
	l.t.Cleanup(func() { exec.Command("ip", "netns", "del", l.ns(host)).Run() })
	l.ip("-n", l.ns(host), "link", "set", "lo", "up")
}

// join makes a host's namespace with a cable to the server.
func (l *lan) join(host string) {
	l.t.Helper()
	l.add(host)
	n := len(l.hosts) + 2
	l.hosts[host] = true
	far, addr := fmt.Sprintf("to%d", n), fmt.Sprintf("192.0.2.%d", n)
	l.ip("-n", l.ns("srv"), "link", "add", far, "type", "veth", "peer", "name", "eth0", "netns", l.ns(host))
	l.ip("-n", l.ns("srv"), "link", "set", far, "up")
	l.ip("-n", l.ns("srv"), "route", "add", addr+"/32", "dev", far)
	l.ip("-n", l.ns(host), "addr", "add", addr+"/32", "dev", "eth0")
	l.plug(host)
}

func (l *lan) plug(host string) {
	l.t.Helper()
	l.ip("-n", l.ns(host), "link", "set", "eth0", "up")
	l.ip("-n", l.ns(host), "route", "replace", lanServer+"/32", "dev", "eth0")
}

func (l *lan) unplug(host string) {
	l.t.Helper()
	l.ip("-n", l.ns(host), "link", "set", "eth0", "down")
}

// in has cmd run in a host's namespace.
func (l *lan) in(host string, cmd *exec.Cmd) *exec.Cmd {
	enter, err := exec.LookPath("nsenter")
	if err != nil {
		l.t.Fatal(err)
	}
	cmd.Args = append([]string{enter, "--net=/run/netns/" + l.ns(host), "--", cmd.Path}, cmd.Args[1:]...)
	cmd.Path = enter
	return cmd
}

// TestDay is the day of the EXAMPLES section of the seed page, from top to
// bottom, with a real guest, an ISR password and no SSH key, and a cable that
// is really unplugged. The quotations are the page's.
func TestDay(t *testing.T) {
	requireFUSE(t)
	l := newLAN(t)
	t.Parallel()
	image := guest.Image(t)
	const password = "correct horse battery"
	w := newQuickWorld(t, shortDir(t), "serve")
	w.server.stop(t)
	w.must(t, "isr-locksrv", "parcel", "import", "alice", "box", image, "--memory", "256M")
	if r := execute(w.command("", "isr-locksrv", "user", "passwd", "alice"), password+"\n"); r.status != 0 {
		t.Fatalf("user passwd: %v", r)
	}
	l.serve(w)
	for _, host := range []string{"work", "home"} {
		l.join(host)
		home := w.home(t, host, "alice", "alice")
		for _, key := range []string{"id_ed25519", "id_ed25519.pub"} {
			if err := os.Remove(filepath.Join(home, ".ssh", key)); err != nil {
				t.Fatal(err)
			}
		}
		var known strings.Builder
		for _, key := range w.server.hostKeys() {
			fmt.Fprintf(&known, "[%s]:2222 %s\n", lanServer, key)
		}
		writeFile(t, filepath.Join(home, ".ssh", "known_hosts"), known.String())
		writeFile(t, filepath.Join(home, ".openisrrc"), fmt.Sprintf("server = %s:2222\nuserid = alice\nhostname = host%s\n", lanServer, host))
	}
	isr := func(host string, args ...string) *exec.Cmd { return l.in(host, w.command(host, "isr", args...)) }
	ok := func(host string, args ...string) result {
		t.Helper()
		r := execute(isr(host, args...), "")
		if r.status != 0 {
			t.Fatalf("%s: isr %s: %v", host, strings.Join(args, " "), r)
		}
		return r
	}
	m := &machine{TB: t, w: w, in: l.in}
	w.authed = true

	// "After arriving at work, you login to your ISR client host. Next, you
	// will need to authenticate to the ISR server, which prompts you for your
	// ISR password. You are now authenticated and will not need to type this
	// password again until you either explicitly deauth or terminate your X
	// session."
	r, shown := atTerminal(t, isr("work", "auth"), typed{"assword", password})
	if r.status != 0 || strings.Contains(shown, password) {
		t.Fatalf("isr auth: %v%s", r, shown)
	}
	defer execute(isr("work", "deauth"), "")

	// "After listing your available parcels,"
	if r := ok("work", "ls"); !strings.Contains(r.out, "box") {
		t.Fatalf("isr ls: %v", r)
	}

	// "you decide to resume the Windows parcel called winxp in connected mode:
	// This downloads parcel winxp (if necessary) and executes it inside the
	// virtual machine monitor (VMM)."
	m.resume("work")
	m.tick(2)
	m.ask("mem 16")
	memory := m.ask("memsum")
	m.ask("write /data/note written in the morning")
	note := m.ask("sum /data/note")

	// "After running the parcel all morning, you realize you need to head out
	// to a lunch meeting in a conference room with poor wireless connectivity.
	// So you suspend the current running parcel, which causes the VMM to
	// return control to the Linux shell."
	last := m.suspend()

	// "After making sure that it is safe to run disconnected (i.e., your
	// parcel state is hoarded),"
	r = ok("work", "checkout", "-d", "box")
	if !strings.Contains(r.err, "isr resume -d box") {
		t.Errorf("isr checkout -d: %v", r)
	}

	// "you unplug the network cable, carry your laptop to the noon meeting,
	// and then run you parcel disconnected during the meeting:"
	l.unplug("work")
	if r := execute(isr("work", "-s", lanServer+":2222", "--ssh-option", "ConnectTimeout=1", "sync", "box"), ""); r.status != 14 {
		t.Fatalf("isr sync without a cable: %v", r)
	}
	m.resume("work", "-d")
	m.goesOn(last)
	if s := m.ask("memsum"); s != memory {
		t.Errorf("memory is %s, was %s", s, memory)
	}
	m.ask("write /data/lunch written at lunch")
	lunch := m.ask("sum /data/lunch")
	last = m.suspend()

	// "After the meeting, you head back to the office, plug your network cable
	// back in, and create a checkpointed version of your current parcel state
	// on the server:"
	l.plug("work")
	if r := ok("work", "sync", "box"); !strings.Contains(r.err, "version 2") {
		t.Errorf("isr sync: %v", r)
	}

	// "After running connected for the rest of the day, it's time to head
	// home. So you terminate the ISR session by checking in your parcel:"
	m.resume("work")
	m.goesOn(last)
	m.ask("write /data/evening written in the evening")
	last = m.suspend()
	if r := ok("work", "checkin", "box"); !strings.Contains(r.err, "version 3") {
		t.Errorf("isr checkin: %v", r)
	}
	if exists(filepath.Join(w.dir, "work", ".isr", "box")) {
		t.Error("the parcel is still at work")
	}
	ok("work", "deauth")

	// "Once home, you login to your home ISR client, authenticate to the ISR
	// server, and then checkout the parcel that you were working on at work:"
	if r, shown := atTerminal(t, isr("home", "auth"), typed{"assword", password}); r.status != 0 {
		t.Fatalf("isr auth at home: %v%s", r, shown)
	}
	defer execute(isr("home", "deauth"), "")
	ok("home", "checkout", "box")
	m.resume("home")
	m.goesOn(last)
	for file, sum := range map[string]string{"note": note, "lunch": lunch} {
		if s := m.ask("sum /data/" + file); s != sum {
			t.Errorf("home: file %s is %s, was %s", file, s, sum)
		}
	}
	if s := m.ask("memsum"); s != memory {
		t.Errorf("home: memory is %s, was %s", s, memory)
	}
	m.suspend()
	ok("home", "checkin", "box")
	ok("home", "deauth")
	w.authed = false
	w.must(t, "isr-locksrv", "check", "-c")
	w.wantClean(t)
}

// serve runs the realm's server on the lan, until the end of the test.
func (l *lan) serve(w *world) {
	l.t.Helper()
	var said lockedBuffer
	cmd := l.in("srv", w.command("", "isr-locksrv", "serve", "--listen", lanServer+":2222"))
	cmd.Stderr = &said
	out, err := cmd.StdoutPipe()
	if err != nil {
		l.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		cmd.Wait()
		if l.t.Failed() {
			l.t.Logf("log of the server:\n%s", said.String())
		}
	})
	ready := make(chan bool, 1)
	go func() {
		buf := make([]byte, 256)
		n, _ := out.Read(buf)
		ready <- bytes.HasPrefix(buf[:n], []byte("listening on "))
	}()
	select {
	case ok := <-ready:
		if !ok {
			l.t.Fatalf("server on the lan: %s", said.String())
		}
	case <-time.After(tooLong):
		l.t.Fatal("server on the lan: says nothing")
	}
}
