package main

import (
	"bufio"
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"os/user"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"isr/client/auth"
	"isr/client/remote/sshdtest"
)

// raceEnabled says that the tests run under the race detector: so do the
// programs then.
var raceEnabled bool

// programs is where isr and isr-locksrv are, built once for all tests; quick is
// where they are without the race detector, with which each command takes three
// to five times as long. What an administrator types does one thing and ends,
// so isr-locksrv is under it only as the daemon.
var programs, quick, daemonProgram string

// drivers is where isr-vmm-toy is.
var drivers string

func TestMain(m *testing.M) { os.Exit(testMain(m)) }

func testMain(m *testing.M) int {
	// What was ignored stays ignored in programs: tests under nohup, or in a
	// script's background, would wait for ever.
	for _, sig := range []os.Signal{syscall.SIGINT, syscall.SIGHUP} {
		if signal.Ignored(sig) {
			signal.Notify(make(chan os.Signal, 1), sig)
		}
	}
	dir, err := os.MkdirTemp("", "isr-bin")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	programs, quick, daemonProgram = dir, dir, filepath.Join(dir, "isr-locksrv")
	if drivers, err = filepath.Abs("testdata/vmm"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if raceEnabled {
		quick, daemonProgram = filepath.Join(dir, "quick"), filepath.Join(dir, "daemon", "isr-locksrv")
	}
	builds := [][]string{{"build", "-o", quick + "/", "isr/client/isr", "isr/locksrv/isr-locksrv"}}
	if raceEnabled {
		builds = append(builds, []string{"build", "-race", "-o", dir + "/", "isr/client/isr"},
			[]string{"build", "-race", "-o", filepath.Dir(daemonProgram) + "/", "isr/locksrv/isr-locksrv"})
	}
	built := make([]error, len(builds))
	var wg sync.WaitGroup
	for i, args := range builds {
		wg.Go(func() {
			if out, err := exec.Command("go", args...).CombinedOutput(); err != nil {
				built[i] = fmt.Errorf("build: %w\n%s", err, out)
			}
		})
	}
	wg.Wait()
	if raceEnabled {
		built = append(built, os.Link(filepath.Join(quick, "isr-locksrv"), filepath.Join(programs, "isr-locksrv")))
	}
	if err := errors.Join(built...); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	// Most of a test is waiting: for a disk, a clock, a connection.
	flag.Set("test.parallel", strconv.Itoa(3*runtime.GOMAXPROCS(0)))
	// A keeper's exit status is nobody's: its races go to a file.
	races := filepath.Join(dir, "race")
	os.Setenv("GORACE", "log_path="+races+" atexit_sleep_ms=0")
	status := m.Run()
	found, _ := filepath.Glob(races + ".*")
	for _, f := range found {
		text, _ := os.ReadFile(f)
		fmt.Printf("%s\n", text)
		status = 1
	}
	return status
}

// server is a way to run a realm's lock server, with its parcels at root.
type server interface {
	// hostKeys is for known_hosts: type and key, a line each.
	hostKeys() []string
	login() string // what stands before @ in -s, or ""
	port() int
	start(t testing.TB)   // again, at the same port
	stop(t testing.TB)    // in good order, if there is such a thing
	kill(t testing.TB)    // with all its connections, at once
	log() string          // what it said
	secrets() (pid []int) // processes, for ps
}

// kinds are the servers that every story is told to.
var kinds = []struct {
	name  string
	serve func(t testing.TB, w *world) server
}{{"serve", newDaemon}, {"sshd", newSSHD}}

// world is a realm, a server, and hosts: a home directory each.
type world struct {
	dir, root string
	programs  string
	server    server
	keys      map[string]string // of users: the private key's file
	port      int               // where hosts connect: the server's, or a proxy's
	kind      string
	authed    bool // some host is authenticated
	t         testing.TB
}

// newWorld makes a realm with alice and bob under dir, and starts its server.
// Under the race detector its programs are too: for one telling of everything,
// and for what one program does at once.
func newWorld(t testing.TB, dir, kind string) *world { return makeWorld(t, dir, kind, false) }

// newQuickWorld is newWorld with quick programs: for many runs of a few
// commands, and for what happens between programs, which no detector sees.
func newQuickWorld(t testing.TB, dir, kind string) *world { return makeWorld(t, dir, kind, true) }

func makeWorld(t testing.TB, dir, kind string, quickly bool) *world {
	t.Helper()
	requireFUSE(t)
	w := &world{dir: dir, root: filepath.Join(dir, "root"), keys: make(map[string]string), programs: programs, kind: kind, t: t}
	if quickly {
		w.programs = quick
	}
	for _, d := range []string{"run", "keys", "tmp"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"alice", "bob", "mallory"} {
		w.keys[name] = filepath.Join(dir, "keys", name)
		newKey(t, w.keys[name])
	}
	for _, name := range []string{"alice", "bob"} {
		w.must(t, "isr-locksrv", "user", "add", name, "--key", w.keys[name]+".pub")
	}
	for _, k := range kinds {
		if k.name == kind {
			w.server = k.serve(t, w)
		}
	}
	w.port = w.server.port()
	t.Cleanup(func() {
		for _, h := range auth.FindAll(filepath.Join(dir, "run", "isr", "*.auth")) {
			h.End()
		}
	})
	return w
}

// requireFUSE skips a test, or fails it under ISR_TEST_REQUIRE=1, where there
// are no mounts to be had.
func requireFUSE(t testing.TB) {
	t.Helper()
	sshdtest.Require(t, "fusermount3")
	if _, err := os.Stat("/dev/fuse"); err != nil {
		if os.Getenv("ISR_TEST_REQUIRE") == "1" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
}

// shortDir is a directory for a world: below it lie Unix sockets, whose paths
// have 107 bytes at most.
func shortDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "isr")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func newKey(t testing.TB, file string) {
	t.Helper()
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	writeKey(t, file, private)
}

func writeKey(t testing.TB, file string, private any) {
	t.Helper()
	block, err := ssh.MarshalPrivateKey(private, filepath.Base(file))
	if err != nil {
		t.Fatal(err)
	}
	signer, err := ssh.NewSignerFromKey(private)
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, file, string(pem.EncodeToMemory(block)))
	writeFile(t, file+".pub", string(ssh.MarshalAuthorizedKey(signer.PublicKey())))
}

func writeFile(t testing.TB, file, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// home makes host's home directory, of user, with a key and a configuration.
func (w *world) home(t testing.TB, host, user, key string) string {
	t.Helper()
	home := filepath.Join(w.dir, host)
	for _, suffix := range []string{"", ".pub"} {
		text, err := os.ReadFile(w.keys[key] + suffix)
		if err != nil {
			t.Fatal(err)
		}
		writeFile(t, filepath.Join(home, ".ssh", "id_ed25519"+suffix), string(text))
	}
	w.point(t, home, host, user)
	return home
}

// point writes where a home's server is.
func (w *world) point(t testing.TB, home, host, user string) {
	t.Helper()
	writeFile(t, filepath.Join(home, ".ssh", "known_hosts"), w.known())
	writeFile(t, filepath.Join(home, ".openisrrc"), fmt.Sprintf("server = %s\nuserid = %s\nhostname = host%s\n", w.addr(), user, host))
}

// known is the server for known_hosts.
func (w *world) known() string {
	var b strings.Builder
	for _, key := range w.server.hostKeys() {
		fmt.Fprintf(&b, "[127.0.0.1]:%d %s\n", w.port, key)
	}
	return b.String()
}

// addr is the server as -s has it.
func (w *world) addr() string {
	login := w.server.login()
	if login != "" {
		login += "@"
	}
	return fmt.Sprintf("%s127.0.0.1:%d", login, w.port)
}

// env is the environment of host, and nothing of the test's own beside PATH.
func (w *world) env(host string) []string {
	return []string{"PATH=" + w.programs + ":" + drivers + ":" + os.Getenv("PATH") + ":/usr/sbin:/sbin", "HOME=" + filepath.Join(w.dir, host),
		"XDG_RUNTIME_DIR=" + filepath.Join(w.dir, "run"), "TMPDIR=" + filepath.Join(w.dir, "tmp"), "SHELL=/bin/sh",
		"ISR_ROOT=" + w.root, "GORACE=" + os.Getenv("GORACE")}
}

// command is a program on host, which "" is the server's.
func (w *world) command(host, name string, args ...string) *exec.Cmd {
	path := name
	if !strings.Contains(name, "/") {
		if p := filepath.Join(w.programs, name); exists(p) {
			path = p
		}
	}
	cmd := exec.Command(path, args...)
	cmd.Env = w.env(host)
	return cmd
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// result is what a program did.
type result struct {
	out, err string
	status   int    // 128+N after signal N
	sig      string // that killedAt sent
}

func (r result) String() string {
	return fmt.Sprintf("status %d\n%s%s", r.status, r.out, r.err)
}

// execute runs a command to its end. One that takes too long says what it and
// those below it are at, and ends.
func execute(cmd *exec.Cmd, stdin string) result {
	var out, errs bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &errs
	err := cmd.Start()
	if err == nil {
		timer := time.AfterFunc(tooLong, func() { quit(cmd.Process.Pid) })
		defer timer.Stop()
		err = cmd.Wait()
	}
	return result{out: out.String(), err: errs.String(), status: statusOf(cmd, err)}
}

// quit has a process and those below it print their stacks and end, the
// youngest first: a strace that goes takes nobody along.
func quit(pid int) {
	children, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, f := range children {
		text, _ := os.ReadFile(f)
		for _, word := range strings.Fields(string(text)) {
			if child, err := strconv.Atoi(word); err == nil {
				quit(child)
			}
		}
	}
	syscall.Kill(pid, syscall.SIGQUIT)
}

func statusOf(cmd *exec.Cmd, err error) int {
	if cmd.ProcessState == nil {
		return -1
	}
	if ws, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		return 128 + int(ws.Signal())
	}
	return cmd.ProcessState.ExitCode()
}

// isr runs isr on host.
func (w *world) isr(host string, args ...string) result {
	return execute(w.command(host, "isr", args...), "")
}

// ok runs isr on host and wants it to succeed.
func (w *world) ok(t testing.TB, host string, args ...string) result {
	t.Helper()
	r := w.isr(host, args...)
	if r.status != 0 {
		t.Fatalf("%s: isr %s: %v", host, strings.Join(args, " "), r)
	}
	return r
}

// disk runs a line of shell with the parcel's images.
func (w *world) disk(t testing.TB, host, parcel, line string) string {
	t.Helper()
	r := execute(w.command(host, "isr", "resume", parcel, "-m", "shell"), line+"\n")
	if r.status != 0 {
		t.Fatalf("%s: isr resume %s: %s: %v", host, parcel, line, r)
	}
	return r.out
}

// must runs a program on the server and gives its output.
func (w *world) must(t testing.TB, name string, args ...string) string {
	t.Helper()
	r := execute(w.command("", name, args...), "")
	if r.status != 0 {
		t.Fatalf("%s %s: %v", name, strings.Join(args, " "), r)
	}
	return r.out
}

// mounts are isr's mounts below the world's directory.
func (w *world) mounts(t testing.TB) []string {
	t.Helper()
	text, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	var ms []string
	for _, line := range strings.Split(string(text), "\n") {
		if f := strings.Fields(line); len(f) > 2 && strings.HasPrefix(f[2], "fuse") && strings.HasPrefix(f[1], w.dir+"/") {
			ms = append(ms, f[1])
		}
	}
	return ms
}

// files are the files below dir.
func files(t testing.TB, dir string) []string {
	t.Helper()
	var fs_ []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err == nil && !d.IsDir() {
			fs_ = append(fs_, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return fs_
}

// daemon is isr-locksrv serve.
type daemon struct {
	w    *world
	p    int
	cmd  *exec.Cmd
	done chan struct{}
	said *lockedBuffer
}

// The daemon makes an RSA key if it has none, which takes long: all share one.
var hostRSA = sync.OnceValues(func() (*rsa.PrivateKey, error) { return rsa.GenerateKey(rand.Reader, 2048) })

func newDaemon(t testing.TB, w *world) server {
	t.Helper()
	key, err := hostRSA()
	if err != nil {
		t.Fatal(err)
	}
	writeKey(t, filepath.Join(w.root, "hostkeys", "ssh_host_rsa_key"), key)
	newKey(t, filepath.Join(w.root, "hostkeys", "ssh_host_ed25519_key"))
	d := &daemon{w: w, said: new(lockedBuffer)}
	d.start(t)
	t.Cleanup(func() {
		d.kill(t)
		if t.Failed() {
			t.Logf("log of the daemon:\n%s", d.log())
		}
	})
	return d
}

func (d *daemon) start(t testing.TB) {
	t.Helper()
	program := daemonProgram
	if d.w.programs == quick {
		program = "isr-locksrv"
	}
	cmd := d.w.command("", program, "serve", "--listen", fmt.Sprintf("127.0.0.1:%d", d.p))
	cmd.Stderr = d.said
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err == nil {
		_, err = fmt.Sscanf(line, "listening on 127.0.0.1:%d", &d.p)
	}
	done := make(chan struct{})
	go func() { cmd.Wait(); close(done) }()
	d.cmd, d.done = cmd, done
	if err != nil {
		t.Fatalf("daemon: %q: %v\n%s", line, err, d.log())
	}
}

func (d *daemon) end(sig syscall.Signal) {
	if d.cmd != nil {
		d.cmd.Process.Signal(sig)
		<-d.done
		d.cmd = nil
	}
}

func (d *daemon) stop(testing.TB) { d.end(syscall.SIGTERM) }
func (d *daemon) kill(testing.TB) { d.end(syscall.SIGKILL) }
func (d *daemon) port() int       { return d.p }
func (d *daemon) login() string   { return "" }
func (d *daemon) log() string     { return d.said.String() }
func (d *daemon) secrets() []int  { return []int{d.cmd.Process.Pid} }

func (d *daemon) hostKeys() []string {
	var keys []string
	pubs, _ := filepath.Glob(filepath.Join(d.w.root, "hostkeys", "*.pub"))
	for _, f := range pubs {
		text, _ := os.ReadFile(f)
		keys = append(keys, strings.TrimSpace(string(text)))
	}
	return keys
}

// sshd is Debian's, with isr-locksrv as the forced command of each key.
type sshd struct {
	*sshdtest.Server
	user string
}

func newSSHD(t testing.TB, w *world) server {
	t.Helper()
	u, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	o := sshdtest.Options{AuthorizedKeys: w.authorizedKeys(t)}
	return &sshd{sshdtest.Start(t, o), u.Username}
}

// authorizedKeys is the keys of the realm's users, with their forced commands.
func (w *world) authorizedKeys(t testing.TB) string {
	// Started anew for each verb; little happens at once in it.
	return w.must(t, filepath.Join(quick, "isr-locksrv"), "authorized-keys")
}

func (s *sshd) hostKeys() []string {
	return []string{strings.TrimSpace(string(ssh.MarshalAuthorizedKey(s.HostKey)))}
}
func (s *sshd) login() string      { return s.user }
func (s *sshd) port() int          { return s.Port }
func (s *sshd) start(t testing.TB) { s.Restart(t) }
func (s *sshd) stop(testing.TB)    { s.Stop() }
func (s *sshd) kill(testing.TB)    { s.Stop() } // that is a kill
func (s *sshd) log() string        { return s.Log() }
func (s *sshd) secrets() []int     { return nil }

type lockedBuffer struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

// within waits until f says so, asking often; what and how it stands are told
// if it never does.
func within(t testing.TB, d time.Duration, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(d); !f(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not within %v", what, d)
		}
	}
}

// newSilentListener takes connections, which are counted, and never says
// anything.
func newSilentListener(t testing.TB) (l net.Listener, taken *atomic.Int64) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	taken = new(atomic.Int64)
	var conns []net.Conn
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			conns = append(conns, c)
			taken.Add(1)
		}
	}()
	t.Cleanup(func() {
		l.Close()
		<-ended
		for _, c := range conns {
			c.Close()
		}
	})
	return l, taken
}
