package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/creack/pty"
	"golang.org/x/crypto/ssh"

	"isr/locksrv/event"
	"isr/locksrv/locksrvtest"
	"isr/locksrv/proto"
	"isr/store/parcel"
)

// served is a running serve.
type served struct {
	cmd   *exec.Cmd
	addrs []string
	log   *locksrvtest.Log
	ended chan error
}

// startServe runs serve until the test ends, on so many addresses. set may
// change the command first.
func startServe(t *testing.T, r *locksrvtest.Realm, addresses int, set func(*exec.Cmd), args ...string) *served {
	t.Helper()
	s := &served{cmd: exec.Command(program(t), append([]string{"--root", r.Root, "serve"}, args...)...),
		log: new(locksrvtest.Log), ended: make(chan error, 1)}
	s.cmd.Stderr = s.log
	out, err := s.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if set != nil {
		set(s.cmd)
	}
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		s.cmd.Process.Kill()
		<-s.ended
	})
	lines := bufio.NewScanner(out)
	for len(s.addrs) < addresses && lines.Scan() {
		addr, ok := strings.CutPrefix(lines.Text(), "listening on ")
		if !ok {
			t.Errorf("line %q", lines.Text())
		}
		s.addrs = append(s.addrs, addr)
	}
	go func() {
		s.ended <- s.cmd.Wait()
		close(s.ended)
	}()
	if len(s.addrs) < addresses {
		t.Fatalf("serve: it does not listen\n%s", s.log)
	}
	return s
}

// wait waits until the log has the text so many times.
func (s *served) wait(t *testing.T, text string, times int) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); strings.Count(s.log.String(), text) < times; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%q does not come into the log:\n%s", text, s.log)
		}
	}
}

func (s *served) signal(t *testing.T, sig os.Signal) {
	t.Helper()
	if err := s.cmd.Process.Signal(sig); err != nil {
		t.Fatal(err)
	}
}

// stop ends it as a service manager does.
func (s *served) stop(t *testing.T) {
	t.Helper()
	s.signal(t, syscall.SIGTERM)
	if err := <-s.ended; err != nil {
		t.Errorf("serve: %v\n%s", err, s.log)
	}
}

func write(t *testing.T, name, text string) string {
	t.Helper()
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

func TestParseSettings(t *testing.T) {
	s, root, err := parseSettings([]byte("# of this host\nROOT:=/srv/isr\nLISTEN:=:22\nLISTEN:= [::1]:2222\nMAX_PER_USER:=8\nLOGIN_TIME:=90s\n" +
		"KEEP_ALIVE:=1m\nLOG:=json\nLOG_LEVEL:=debug\nMETRICS:=0.0.0.0:9722\nMETRICS_REMOTE:=yes\n"))
	want := settings{Listen: []string{":22", "[::1]:2222"}, MaxPerUser: 8, LoginTime: 90 * time.Second, KeepAlive: time.Minute,
		Log: "json", LogLevel: "debug", Metrics: "0.0.0.0:9722", MetricsRemote: true}
	if err != nil || root != "/srv/isr" || !reflect.DeepEqual(s, want) {
		t.Errorf("got %+v, %s, %v; want %+v", s, root, err, want)
	}
	if got := (settings{Listen: []string{":1"}, MaxPerUser: 1}).or(want); !slices.Equal(got.Listen, []string{":1"}) || got.MaxPerUser != 1 || got.Log != "json" {
		t.Errorf("options and file: %+v; want the options first", got)
	}
	for text, why := range map[string]string{
		"MAX_PER_USER:=many":                 "max-per-user",
		"MAX_PER_USER:=-1":                   "max-per-user",
		"MAX_PER_USER:=99999999999999999999": "max-per-user",
		"LOGIN_TIME:=0.5us":                  "login-time",
		"LOGIN_TIME:=-5s":                    "login-time",
		"LOGIN_TIME:=30":                     "login-time",
		"STOP_TIME:=1000h":                   "stop-time",
		"LISTEN:=22":                         "listen",
		"LISTEN:=":                           "listen",
		"LOG:=xml":                           "log",
		"LOG_LEVEL:=loud":                    "log-level",
		"METRICS:=:9722":                     "others reach",
		"METRICS:=0.0.0.0:9722":              "others reach",
		"METRICS:=example.org:9722":          "others reach",
		"METRICS:=9722":                      "metrics",
		"HELP:=yes":                          "HELP: no such setting",
		"NOBODY_KNOWS:=this":                 "NOBODY_KNOWS: no such setting",
		"CONFIG:=/etc/passwd":                "CONFIG: no such setting",
		"nonsense":                           "line 1",
		"LISTEN:=:22\nLOG:=json --metrics-remote=on": "log",
	} {
		if _, _, err := parseSettings([]byte(text)); err == nil || !strings.Contains(err.Error(), why) {
			t.Errorf("%q: %v; want an error about %q", text, err, why)
		}
	}
}

func FuzzParseSettings(f *testing.F) {
	f.Add([]byte("ROOT:=/x\nLISTEN:=:22\nLOGIN_TIME:=3s\n"))
	f.Add([]byte("HELP:=\n_:=--\nMAX_PER_USER:=1e9"))
	f.Fuzz(func(t *testing.T, text []byte) {
		if s, _, err := parseSettings(text); err == nil && s.check() != nil {
			t.Errorf("%q: read, though it makes no sense", text)
		}
	})
}

// The host's file is about the realm it names; one that was named for it is
// about any.
func TestReadSettings(t *testing.T) {
	dir := t.TempDir()
	conf := write(t, filepath.Join(dir, "conf"), "ROOT:="+dir+"/realm/\nMAX_PER_USER:=8\n")
	for _, test := range []struct {
		root string
		must bool
		want int
	}{{dir + "/realm", false, 8}, {dir + "/other", false, 0}, {dir + "/other", true, 8}} {
		if s, err := readSettings(conf, test.root, test.must); err != nil || s.MaxPerUser != test.want {
			t.Errorf("%+v: %d, %v", test, s.MaxPerUser, err)
		}
	}
	none := filepath.Join(dir, "none")
	if _, err := readSettings(none, dir, false); err != nil {
		t.Errorf("no file: %v", err)
	}
	if _, err := readSettings(none, dir, true); err == nil {
		t.Errorf("the file that was named is not there, and that is no error")
	}
	write(t, conf, "MAX_PER_USER:=8\n")
	if s, err := readSettings(conf, hostRoot, false); err != nil || s.MaxPerUser != 8 {
		t.Errorf("without ROOT: %d, %v; want it for the realm of the host", s.MaxPerUser, err)
	}
}

// A hangup has the settings read: good ones count, bad ones change nothing,
// and whoever is connected stays so.
func TestReload(t *testing.T) {
	r := locksrvtest.NewRealm(t)
	conf := write(t, filepath.Join(t.TempDir(), "conf"), "LISTEN:=127.0.0.1:0\nLISTEN:=127.0.0.1:0\nLOG:=text\n")
	s := startServe(t, r, 2, nil, "--config", conf)
	var conns []*ssh.Client
	for _, addr := range s.addrs {
		c, err := r.Dial(addr, "alice", "alice")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		conns = append(conns, c)
	}
	works := func() {
		t.Helper()
		for _, c := range conns {
			if _, errs, status := locksrvtest.Exec(c, proto.ListParcels, nil); status != 0 {
				t.Errorf("a connection that was there: %d, %s", status, errs)
			}
		}
	}
	write(t, conf, "LISTEN:=127.0.0.1:0\nLISTEN:=127.0.0.1:0\nLOG:=text\nMAX_PER_ADDRESS:=2\nLOG_LEVEL:=debug\n")
	s.signal(t, syscall.SIGHUP)
	s.wait(t, "settings read", 1)
	if c, err := r.Dial(s.addrs[0], "alice", "alice"); err == nil {
		c.Close()
		t.Errorf("a third connection: open; 2 are the limit now")
	}
	works()
	for i, bad := range []string{"MAX_PER_ADDRESS:=x\n", "nonsense\n"} {
		write(t, conf, bad)
		s.signal(t, syscall.SIGHUP)
		s.wait(t, "settings are not changed", i+1)
	}
	if c, err := r.Dial(s.addrs[0], "alice", "alice"); err == nil {
		c.Close()
		t.Errorf("a third connection: open, after settings that cannot be read")
	}
	works()
	write(t, conf, "LISTEN:=127.0.0.1:1\n")
	s.signal(t, syscall.SIGHUP)
	s.wait(t, "settings read", 2)
	if c, err := r.Dial(s.addrs[0], "alice", "alice"); err != nil {
		t.Errorf("a third connection: %v; there is no limit any more", err)
	} else {
		c.Close()
	}
	if !strings.Contains(s.log.String(), "setting waits for a restart\" name=listen") {
		t.Errorf("that it listens elsewhere only after a restart is not said:\n%s", s.log)
	}
	// A new host key counts too.
	if err := os.Remove(filepath.Join(r.Root, "hostkeys/ssh_host_ed25519_key")); err != nil {
		t.Fatal(err)
	}
	s.signal(t, syscall.SIGHUP)
	s.wait(t, "settings read", 3)
	works()
	pub, err := os.ReadFile(filepath.Join(r.Root, "hostkeys/ssh_host_ed25519_key.pub"))
	if err != nil {
		t.Fatal(err)
	}
	var shown ssh.PublicKey
	c, err := ssh.Dial("tcp", s.addrs[0], &ssh.ClientConfig{User: "alice", Auth: []ssh.AuthMethod{ssh.PublicKeys(r.Keys["alice"])},
		HostKeyAlgorithms: []string{ssh.KeyAlgoED25519},
		HostKeyCallback:   func(_ string, _ net.Addr, k ssh.PublicKey) error { shown = k; return nil }})
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	if !bytes.Equal(ssh.MarshalAuthorizedKey(shown), pub) {
		t.Errorf("it shows the old host key")
	}
	s.stop(t)
}

// Settings that make no sense are fatal at the start.
func TestServeRefusesSettings(t *testing.T) {
	r := locksrvtest.NewRealm(t)
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	for _, test := range []struct {
		status int
		args   []string
	}{
		{2, []string{"--listen", "127.0.0.1"}},
		{2, []string{"--max-per-user", "-3"}},
		{2, []string{"--login-time", "0.1us"}},
		{2, []string{"--log", "xml"}},
		{2, []string{"--log-level", "loud"}},
		{2, []string{"--listen", "127.0.0.1:0", "--metrics", "0.0.0.0:0"}},
		{1, []string{"--listen", "127.0.0.1:0", "--metrics", taken.Addr().String()}},
		{1, []string{"--listen", "127.0.0.1:0", "--listen", taken.Addr().String()}},
		{1, []string{"--config", filepath.Join(r.Root, "none")}},
		{2, []string{"--config", write(t, filepath.Join(t.TempDir(), "conf"), "LISTEN:=x\n")}},
		{2, []string{"--config", write(t, filepath.Join(t.TempDir(), "conf"), "FOO:=x\n")}},
	} {
		cmd := exec.Command(program(t), append([]string{"--root", r.Root, "serve"}, test.args...)...)
		out, _ := cmd.CombinedOutput()
		if code := cmd.ProcessState.ExitCode(); code != test.status || !strings.HasPrefix(string(out), "isr-locksrv: error: ") {
			t.Errorf("%v: status %d, %s; want %d", test.args, code, out, test.status)
		}
	}
}

// The service manager is told what goes on, and that the server lives.
func TestServiceManager(t *testing.T) {
	r := locksrvtest.NewRealm(t)
	socket := filepath.Join(t.TempDir(), "notify")
	manager, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer manager.Close()
	manager.SetReadDeadline(time.Now().Add(time.Minute))
	told := func(want string) (got string) {
		t.Helper()
		p := make([]byte, 4096)
		for {
			n, err := manager.Read(p)
			if err != nil {
				t.Fatalf("%s: %v", want, err)
			}
			if got = string(p[:n]); strings.HasPrefix(got, want) {
				return got
			}
			if got != "WATCHDOG=1" {
				t.Errorf("the manager is told %q, want %s", got, want)
			}
		}
	}
	s := startServe(t, r, 1, func(cmd *exec.Cmd) {
		cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+socket, "WATCHDOG_USEC=60000")
	}, "--listen", "127.0.0.1:0")
	told("READY=1")
	told("WATCHDOG=1")
	told("WATCHDOG=1")
	s.signal(t, syscall.SIGHUP)
	if got := told("RELOADING=1\n"); !strings.Contains(got, "MONOTONIC_USEC=") {
		t.Errorf("reloading: %q; want when", got)
	}
	told("READY=1")
	s.signal(t, syscall.SIGTERM)
	told("STOPPING=1")
	if err := <-s.ended; err != nil {
		t.Error(err)
	}
}

// Sockets that the service manager opened are served: ports of root's without
// being root.
func TestSocketActivation(t *testing.T) {
	r := locksrvtest.NewRealm(t)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	f, err := ln.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	hand := func(file *os.File) func(*exec.Cmd) {
		return func(cmd *exec.Cmd) {
			cmd.Args = append([]string{"sh", "-c", `LISTEN_PID=$$ LISTEN_FDS=1 exec "$@"`, "sh", cmd.Path}, cmd.Args[1:]...)
			cmd.Path = "/bin/sh"
			cmd.ExtraFiles = []*os.File{file}
		}
	}
	s := startServe(t, r, 1, hand(f), "--listen", "127.0.0.1:1")
	if s.addrs[0] != ln.Addr().String() {
		t.Errorf("it listens at %s, want %s", s.addrs[0], ln.Addr())
	}
	c, err := r.Dial(ln.Addr().String(), "alice", "alice")
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	s.stop(t)
	if !strings.Contains(s.log.String(), "--listen is not heeded") {
		t.Errorf("it does not say that --listen is not heeded")
	}
	// What is no such socket is refused.
	cmd := exec.Command(program(t), "--root", r.Root, "serve")
	plain, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Close()
	hand(plain)(cmd)
	if out, _ := cmd.CombinedOutput(); cmd.ProcessState.ExitCode() != 2 {
		t.Errorf("/dev/null for a socket: %s", out)
	}
}

// The first signal waits for what changes the store and tells its client; the
// second does not wait.
func TestStop(t *testing.T) {
	for _, twice := range []bool{false, true} {
		r := locksrvtest.NewRealm(t)
		r.AddParcel(t, "alice", "winxp")
		dir := t.TempDir()
		gate, begun := filepath.Join(dir, "gate"), filepath.Join(dir, "begun")
		for _, fifo := range []string{gate, begun} {
			if err := syscall.Mkfifo(fifo, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		hooks := filepath.Join(r.Root, "hooks")
		if err := os.Mkdir(hooks, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(hooks, "pre-lock"), fmt.Appendf(nil, "#!/bin/sh\nexec <%s >%s\necho begun\nread x\n", gate, begun), 0o700); err != nil {
			t.Fatal(err)
		}
		open, err := os.OpenFile(gate, os.O_RDWR, 0) // the hook waits for a line, or for the test to end
		if err != nil {
			t.Fatal(err)
		}
		defer open.Close()
		s := startServe(t, r, 1, nil, "--listen", "127.0.0.1:0")
		c, err := r.Dial(s.addrs[0], "alice", "alice")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		answered := make(chan int, 1)
		go func() {
			_, _, status := locksrvtest.Exec(c, "isr_acquire_lock winxp", nil)
			answered <- status
		}()
		hook, err := os.Open(begun)
		if err != nil {
			t.Fatal(err)
		}
		defer hook.Close()
		if line, err := bufio.NewReader(hook).ReadString('\n'); err != nil {
			t.Fatalf("hook: %q, %v", line, err)
		}
		s.signal(t, syscall.SIGTERM)
		s.wait(t, "msg=stopping", 1)
		select {
		case err := <-s.ended:
			t.Fatalf("it ended in the middle of a verb: %v", err)
		default:
		}
		if twice {
			s.signal(t, syscall.SIGTERM)
		} else {
			io.WriteString(open, "go on\n")
		}
		err = <-s.ended
		status := <-answered
		l, lerr := mustParcel(t, r, "alice", "winxp").Holder()
		if lerr != nil {
			t.Error(lerr)
		}
		if twice && (!s.cmd.ProcessState.Sys().(syscall.WaitStatus).Signaled() || status == 0 || l != nil) {
			t.Errorf("the second signal: %v, the client has status %d, holder %v; want it ended at once and nothing done", err, status, l)
		}
		if !twice && (err != nil || status != 0 || l == nil) {
			t.Errorf("the first signal: %v, the client has status %d, holder %v; want the lock taken and told", err, status, l)
		}
	}
}

// A real scrape of a real server, and its health.
// A mirror that is served without being made the realm says so.
func TestServeStandby(t *testing.T) {
	r := locksrvtest.NewRealm(t)
	write(t, filepath.Join(r.Root, "standby"), "REALM:=test\nFROM:=old:/var/lib/isr\nTIME:=2026-11-26T10:00:00Z\n")
	s := startServe(t, r, 1, nil, "--listen", "127.0.0.1:0")
	s.wait(t, `msg="this is a standby`, 1)
	s.wait(t, `standby="of old:/var/lib/isr, as of 2026-11-26 10:00:00 UTC"`, 1)
}

func TestServeMetrics(t *testing.T) {
	r := locksrvtest.NewRealm(t)
	s := startServe(t, r, 1, nil, "--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0", "--log", "json")
	s.wait(t, `"msg":"metrics"`, 1)
	var at struct{ At string }
	for line := range strings.Lines(s.log.String()) {
		if strings.Contains(line, `"msg":"metrics"`) {
			if err := json.Unmarshal([]byte(line), &at); err != nil {
				t.Fatal(err)
			}
		}
	}
	get := func(url string) string {
		t.Helper()
		answer, err := http.Get(url)
		if err != nil {
			t.Fatal(err)
		}
		defer answer.Body.Close()
		text, err := io.ReadAll(answer.Body)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	c, err := r.Dial(s.addrs[0], "alice", "alice")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	locksrvtest.Exec(c, proto.ListParcels, nil)
	text := get(at.At)
	for _, want := range []string{`isr_verbs_total{status="0",verb="isr_list_parcels"} 1`, "isr_connections_open 1", "process_network_receive_bytes_total"} {
		if !strings.Contains(text, want) {
			t.Errorf("%s: not in the scrape", want)
		}
	}
	if got := get(strings.Replace(at.At, "/metrics", "/healthz", 1)); got != "ok\n" {
		t.Errorf("healthz: %q", got)
	}
	c.Close()
	s.stop(t)
	if _, err := http.Get(at.At); err == nil {
		t.Errorf("metrics are still there")
	}
}

// What the journal reads has priorities and no times of its own.
func TestLogForms(t *testing.T) {
	file := func() *os.File {
		f, err := os.Create(filepath.Join(t.TempDir(), "log"))
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	text := func(f *os.File) string {
		defer f.Close()
		p, err := os.ReadFile(f.Name())
		if err != nil {
			t.Fatal(err)
		}
		return string(p)
	}
	say := func(l *slog.Logger) {
		l.Debug("not shown")
		l.With("user", "alice").Info("lock", "parcel", "a b", "time", 3)
		l.WithGroup("g").Warn("evil\nline\x1b[2J", "time", 4)
		l.Error("x")
	}
	f := file()
	fi, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	st := fi.Sys().(*syscall.Stat_t)
	t.Setenv("JOURNAL_STREAM", fmt.Sprintf("%d:%d", st.Dev, st.Ino))
	say(newLog(f, "", slog.LevelInfo))
	want := "<6>msg=lock user=alice parcel=\"a b\"\n<4>msg=\"evil\\nline\\x1b[2J\" g.time=4\n<3>msg=x\n"
	if got := text(f); got != want {
		t.Errorf("journal: %q, want %q", got, want)
	}
	for _, stream := range []string{"", "1:2", "nonsense", "999999999999999999999:1"} {
		t.Setenv("JOURNAL_STREAM", stream)
		f := file()
		say(newLog(f, "", slog.LevelInfo))
		if got := text(f); strings.Count(got, "\n") != 3 || !strings.HasPrefix(got, "time=") {
			t.Errorf("JOURNAL_STREAM=%s: %q; want text", stream, got)
		}
	}
	f = file()
	say(newLog(f, "json", slog.LevelInfo))
	for line := range strings.Lines(text(f)) {
		if !json.Valid([]byte(line)) {
			t.Errorf("%s: not JSON", line)
		}
	}
}

// A session under sshd logs to the host.
func TestSessionLog(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "log")
	host, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer host.Close()
	log := syslogAt("unixgram", socket)
	log.With("user", "alice").Warn("refused", "verb", "x\ny")
	host.SetReadDeadline(time.Now().Add(time.Minute))
	p := make([]byte, 4096)
	n, err := host.Read(p)
	if err != nil {
		t.Fatal(err)
	}
	// daemon.warning is 3*8+4.
	if got := string(p[:n]); !strings.HasPrefix(got, "<28>") || !strings.Contains(got, "isr-locksrv") || !strings.Contains(got, `msg=refused user=alice verb="x\ny"`) {
		t.Errorf("got %q", got)
	}
	syslogAt("unixgram", socket+".none").Info("nobody is there") // and nothing happens
}

func mustParcel(t *testing.T, r *locksrvtest.Realm, user, name string) interface {
	Holder() (*parcel.Lock, error)
} {
	t.Helper()
	p, err := r.Store.Parcel(user, name)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// Who follows the log is told what others do, once, until told to stop.
func TestLogFollow(t *testing.T) {
	r := locksrvtest.NewRealm(t)
	r.AddParcel(t, "alice", "winxp")
	do := func(words ...string) {
		t.Helper()
		if out, err := exec.Command(program(t), append([]string{"--root", r.Root}, words...)...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v, %s", words, err, out)
		}
	}
	do("isr_acquire_lock", "alice", "winxp")
	cmd := exec.Command(program(t), "--root", r.Root, "log", "-f", "--json")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Process.Kill()
	lines := bufio.NewScanner(out)
	op := func() string {
		t.Helper()
		var e struct{ Op string }
		if !lines.Scan() {
			t.Fatal("it ended")
		}
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			t.Fatal(err)
		}
		return e.Op
	}
	if got := op(); got != "lock" {
		t.Errorf("first %s, want what was there", got)
	}
	do("isr_release_lock", "alice", "winxp")
	if got := op(); got != "release" {
		t.Errorf("then %s, want release", got)
	}
	do("user", "add", "zoe")
	if got := op(); got != "user-add" {
		t.Errorf("then %s, want user-add", got)
	}
	cmd.Process.Signal(os.Interrupt)
	if err := cmd.Wait(); cmd.ProcessState.ExitCode() != 130 {
		t.Errorf("interrupted: %v, want status 130", err)
	}
}

func TestOthersRealm(t *testing.T) {
	dir, me := t.TempDir(), os.Geteuid()
	for _, test := range []struct {
		dir  string
		uid  int
		want bool
	}{{dir, me, false}, {dir, me + 1, true}, {dir, 0, false}, {filepath.Join(dir, "none"), me + 1, false}} {
		if got := othersRealm(test.dir, test.uid); got != test.want {
			t.Errorf("%+v: %v", test, got)
		}
	}
}

// On a terminal that is closed, serve ends.
func TestHangupOfTerminal(t *testing.T) {
	r := locksrvtest.NewRealm(t)
	master, terminal, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer master.Close()
	go io.Copy(io.Discard, master)
	s := startServe(t, r, 1, func(cmd *exec.Cmd) { cmd.Stderr = terminal }, "--listen", "127.0.0.1:0")
	terminal.Close()
	s.signal(t, syscall.SIGHUP)
	if err := <-s.ended; err != nil {
		t.Errorf("serve: %v", err)
	}
}

func TestParseWhen(t *testing.T) {
	now := time.Date(2026, 11, 26, 14, 30, 0, 0, time.UTC)
	for text, want := range map[string]time.Time{
		"2026-11-26":                time.Date(2026, 11, 26, 0, 0, 0, 0, time.UTC),
		"2026-11-26 14:05":          time.Date(2026, 11, 26, 14, 5, 0, 0, time.UTC),
		"2026-11-26T14:05:07":       time.Date(2026, 11, 26, 14, 5, 7, 0, time.UTC),
		"2026-11-26T14:05:07+02:00": time.Date(2026, 11, 26, 12, 5, 7, 0, time.UTC),
		"0s":                        now,
		"90m":                       now.Add(-90 * time.Minute),
		"7d":                        now.AddDate(0, 0, -7),
		"2w":                        now.AddDate(0, 0, -14),
	} {
		if got, err := parseWhen(text, now); err != nil || !got.Equal(want) {
			t.Errorf("%q: %v, %v; want %v", text, got, err, want)
		}
	}
	for _, text := range []string{"", "d", "-7d", "-1h", "7", "7y", "w", "2026-13-01", "2026-11-26 25:00", "tomorrow", "99999999d", "1e9h"} {
		if got, err := parseWhen(text, now); err == nil {
			t.Errorf("%q: %v, want an error", text, got)
		}
	}
}

func FuzzParseWhen(f *testing.F) {
	f.Add("7d")
	f.Add("2026-11-26T14:05:07+02:00")
	now := time.Now()
	f.Fuzz(func(t *testing.T, text string) {
		if got, err := parseWhen(text, now); err == nil && got.Location() != time.UTC {
			t.Errorf("%q: %v is not UTC", text, got)
		}
	})
}

// Whatever is in the log, what is printed of it is one line, and nothing that
// a terminal obeys.
func FuzzEventLine(f *testing.F) {
	f.Add(`{"time":"2026-11-26T10:00:00Z","op":"commit","user":"a\u001b","parcel":"p\n","by":"\u202e","seconds":1e300,"bytes":-5,"why":"x"}`)
	f.Fuzz(func(t *testing.T, text string) {
		var e event.Event
		if json.Unmarshal([]byte(text), &e) != nil {
			return
		}
		line := eventLine(e)
		if line != parcel.Clean(line) || strings.ContainsAny(line, "\n\x1b") {
			t.Errorf("%q", line)
		}
	})
}
