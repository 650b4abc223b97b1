// Package sshdtest gives tests a real OpenSSH: a server on the loopback interface, keys made by ssh-keygen, an agent;
// and a person who answers by a script.
//
// A server runs as the user of the test, in the foreground, from a temporary directory, and is ended by its process
// id with everything it started. Logs of a server are shown when its test fails. Where a program is missing the test
// is skipped, by name; with ISR_TEST_REQUIRE=1 it fails instead. Nothing here is safe outside tests: the server does
// not mind the permissions of files.
package sshdtest

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
)

// Tests know no agent but those they start: not that of whoever runs them.
func init() { os.Unsetenv("SSH_AUTH_SOCK") }

// Options of a server. The zero value is a server that lets KeyFile in and runs what the client asks for.
type Options struct {
	// AuthorizedKeys is the text of authorized_keys, options and all. "" authorises KeyFile alone; any "%KEY%" in it
	// stands for the public half of KeyFile.
	AuthorizedKeys string
	// ForceCommand is run whatever the client asks for, as by the setting of that name; "": none.
	ForceCommand string
	// ExtraConfig is lines of sshd_config, which win over those written here. What follows a Match line in it comes last.
	ExtraConfig string
	// HostKeys are the types of the host keys, as ssh-keygen -t takes them; nil: ed25519.
	HostKeys []string
	// Env is added to the environment of the server: "KEY=value". Sessions do not inherit it (see SetEnv of sshd_config).
	Env []string
}

// Server is a running sshd.
type Server struct {
	Addr           string // 127.0.0.1:PORT
	Host           string // 127.0.0.1
	Port           int
	User           string        // who can log in: the user of the test
	HostKey        ssh.PublicKey // the first of HostKeys
	HostKeyFiles   []string      // private; .pub beside them
	KnownHostsLine string        // for known_hosts, with end of line; one per host key
	KeyFile        string        // a private key (Ed25519) that the zero Options authorise; .pub beside it
	Dir            string        // everything of this server

	config string
	env    []string
	cmd    *exec.Cmd
	exited chan struct{}
	log    *lockedBuffer
}

// Require skips the test, or fails it under ISR_TEST_REQUIRE=1, unless all programs are there.
func Require(t testing.TB, programs ...string) {
	t.Helper()
	for _, p := range programs {
		if _, err := lookPath(p); err != nil {
			if os.Getenv("ISR_TEST_REQUIRE") == "1" {
				t.Fatalf("%s: needed by this test, and ISR_TEST_REQUIRE is set: %v", p, err)
			}
			t.Skipf("%s: not installed", p)
		}
	}
}

func lookPath(name string) (string, error) {
	if path, err := exec.LookPath(name); err == nil {
		return path, nil
	}
	for _, dir := range []string{"/usr/sbin", "/sbin", "/usr/local/sbin"} {
		path := filepath.Join(dir, name)
		if info, err := os.Stat(path); err == nil && info.Mode()&0o111 != 0 {
			return path, nil
		}
	}
	return "", fmt.Errorf("%s: %w", name, exec.ErrNotFound)
}

// Start runs a server until the test ends.
func Start(t testing.TB, o Options) *Server {
	t.Helper()
	Require(t, "sshd", "ssh-keygen")
	if os.Getuid() == 0 {
		// Privilege separation wants this directory, which the distribution makes when the service starts.
		if err := os.MkdirAll("/run/sshd", 0o755); err != nil {
			t.Fatalf("sshd: %v", err)
		}
	}
	u, err := user.Current()
	if err != nil {
		t.Fatalf("sshd: %v", err)
	}
	dir := t.TempDir()
	s := &Server{Host: "127.0.0.1", User: u.Username, Dir: dir, env: o.Env, log: new(lockedBuffer)}
	s.KeyFile = filepath.Join(dir, "client_key")
	NewKey(t, s.KeyFile, "ed25519", "")
	types := o.HostKeys
	if types == nil {
		types = []string{"ed25519"}
	}
	var hostKeyLines string
	for _, kind := range types {
		file := filepath.Join(dir, "host_"+kind)
		NewKey(t, file, kind, "")
		s.HostKeyFiles = append(s.HostKeyFiles, file)
		hostKeyLines += "HostKey " + file + "\n"
	}
	s.HostKey = PublicKey(t, s.HostKeyFiles[0])

	keys := o.AuthorizedKeys
	if keys == "" {
		keys = "%KEY%\n"
	}
	keys = strings.ReplaceAll(keys, "%KEY%", strings.TrimSpace(string(ssh.MarshalAuthorizedKey(PublicKey(t, s.KeyFile)))))
	authorized := filepath.Join(dir, "authorized_keys")
	Write(t, authorized, keys)

	before, after := o.ExtraConfig, ""
	if i := strings.Index("\n"+strings.ToLower(o.ExtraConfig), "\nmatch "); i >= 0 {
		before, after = o.ExtraConfig[:i], o.ExtraConfig[i:]
	}
	if o.ForceCommand != "" {
		before = "ForceCommand " + o.ForceCommand + "\n" + before
	}
	// SHLVL keeps bash from reading the .bashrc of whoever runs the tests before each command.
	s.config = before + "\n" + hostKeyLines + `ListenAddress 127.0.0.1
AuthorizedKeysFile ` + authorized + `
StrictModes no
PidFile none
UsePAM no
UseDNS no
PermitRootLogin yes
PasswordAuthentication no
KbdInteractiveAuthentication no
MaxStartups 200
MaxSessions 100
LoginGraceTime 60
LogLevel VERBOSE
Subsystem sftp internal-sftp
SetEnv SHLVL=5
` + after + "\n"
	t.Cleanup(func() {
		s.Stop()
		if t.Failed() {
			log := s.Log()
			if cut := len(log) - 6000; cut > 0 {
				log = "…" + log[cut:]
			}
			t.Logf("log of sshd at %s:\n%s", s.Addr, log)
		}
	})
	// A free port is only found by trying: somebody else may take it in between.
	for attempt := 1; ; attempt++ {
		if s.Port, err = freePort(); err == nil {
			err = s.start()
		}
		if err == nil {
			break
		}
		if attempt == 10 {
			t.Fatalf("sshd: %v\n%s", err, s.Log())
		}
	}
	for _, f := range s.HostKeyFiles {
		s.KnownHostsLine += fmt.Sprintf("[127.0.0.1]:%d %s", s.Port, ssh.MarshalAuthorizedKey(PublicKey(t, f)))
	}
	return s
}

func (s *Server) start() error {
	s.Addr = net.JoinHostPort(s.Host, fmt.Sprint(s.Port))
	file := filepath.Join(s.Dir, "sshd_config")
	if err := os.WriteFile(file, []byte(s.config), 0o600); err != nil {
		return err
	}
	sshd, err := lookPath("sshd")
	if err != nil {
		return err
	}
	cmd := exec.Command(sshd, "-D", "-e", "-f", file, "-p", fmt.Sprint(s.Port))
	cmd.Env = append(os.Environ(), s.env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	out, err := cmd.StderrPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	s.cmd, s.exited = cmd, make(chan struct{})
	listening := make(chan bool, 1)
	exited := s.exited
	missing := strings.Count(s.config, "ListenAddress ")
	go func() {
		sc := bufio.NewScanner(out)
		for sc.Scan() {
			s.log.add(sc.Text())
			if strings.Contains(sc.Text(), "Server listening on") {
				if missing--; missing == 0 {
					listening <- true
				}
			}
		}
		cmd.Wait()
		close(exited)
	}()
	select {
	case <-listening:
		return nil
	case <-exited:
		s.cmd = nil
		return errors.New("it ended at once")
	case <-time.After(20 * time.Second):
		s.Stop()
		return errors.New("it does not listen after 20 s")
	}
}

// Stop ends the server and every connection it has. Calling it again does nothing.
func (s *Server) Stop() {
	if s.cmd == nil {
		return
	}
	stopped := s.signal(syscall.SIGSTOP) // so that nothing is started while it is being ended
	s.signal(syscall.SIGKILL)
	for _, pid := range stopped {
		syscall.Kill(pid, syscall.SIGKILL) // its parent may have ended before it was stopped
	}
	select {
	case <-s.exited:
	case <-time.After(5 * time.Second): // a command of a session still holds the log open
	}
	s.cmd = nil
}

// Restart starts a stopped server again, on the same port with the same keys.
func (s *Server) Restart(t testing.TB) {
	t.Helper()
	s.Stop()
	if err := s.start(); err != nil {
		t.Fatalf("sshd: %v\n%s", err, s.Log())
	}
}

// Freeze stops all processes of the server where they are, as a dead machine would; Thaw lets them go on.
func (s *Server) Freeze() { s.signal(syscall.SIGSTOP) }

// Thaw undoes Freeze.
func (s *Server) Thaw() { s.signal(syscall.SIGCONT) }

// Pid is the process id of the listener.
func (s *Server) Pid() int { return s.cmd.Process.Pid }

// Processes counts what the server runs besides its listener: none when nobody is connected.
func (s *Server) Processes() int {
	if s.cmd == nil {
		return 0
	}
	return len(descendants(s.cmd.Process.Pid)) - 1
}

// signal reaches the listener, the processes of its connections, each of which is a session of its own, and what they
// run.
func (s *Server) signal(sig syscall.Signal) (pids []int) {
	if s.cmd == nil {
		return nil
	}
	pids = descendants(s.cmd.Process.Pid)
	for _, pid := range pids {
		syscall.Kill(pid, sig)
	}
	return pids
}

// descendants lists a process and all it has started that still has its parents, parents first.
func descendants(pid int) []int {
	children := map[int][]int{}
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, file := range stats {
		text, err := os.ReadFile(file)
		if err != nil {
			continue // it has ended meanwhile
		}
		// PID (NAME) STATE PARENT …; the name may hold anything.
		i := bytes.LastIndexByte(text, ')')
		var id, parent int
		var state string
		if _, err := fmt.Sscan(string(text), &id); err != nil || i < 0 {
			continue
		}
		if _, err := fmt.Sscan(string(text[i+1:]), &state, &parent); err == nil {
			children[parent] = append(children[parent], id)
		}
	}
	all := []int{pid}
	for i := 0; i < len(all); i++ {
		all = append(all, children[all[i]]...)
	}
	return all
}

// Log is what the server has said so far.
func (s *Server) Log() string { return s.log.String() }

// Home makes a home directory that can log in without a question: KeyFile as .ssh/id_ed25519, known_hosts, and config
// as .ssh/config.
func (s *Server) Home(t testing.TB, config string) string {
	t.Helper()
	home := t.TempDir()
	dir := filepath.Join(home, ".ssh")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, suffix := range []string{"", ".pub"} {
		text, err := os.ReadFile(s.KeyFile + suffix)
		if err != nil {
			t.Fatal(err)
		}
		Write(t, filepath.Join(dir, "id_ed25519"+suffix), string(text))
	}
	Write(t, filepath.Join(dir, "known_hosts"), s.KnownHostsLine)
	Write(t, filepath.Join(dir, "config"), config)
	return home
}

// NewKey makes a private key at path, mode 0600, and its public half at path.pub. kind is ssh-keygen's: ed25519, ecdsa,
// rsa. More arguments may follow, as -m PEM. A passphrase is as cheap to try as it can be.
func NewKey(t testing.TB, path, kind, passphrase string, more ...string) {
	t.Helper()
	args := append([]string{"-q", "-t", kind, "-N", passphrase, "-C", filepath.Base(path), "-f", path, "-a", "1"}, more...)
	if kind == "rsa" {
		args = append(args, "-b", "2048")
	}
	Run(t, "ssh-keygen", args...)
}

// Certify signs the public key at path.pub with the authority at ca; the result is at path-cert.pub. Arguments are
// ssh-keygen's: -n principals, -h for hosts, -V validity.
func Certify(t testing.TB, ca, path string, args ...string) {
	t.Helper()
	Run(t, "ssh-keygen", append(append([]string{"-q", "-s", ca, "-I", filepath.Base(path)}, args...), path+".pub")...)
}

// PublicKey reads the public half of the key at path.
func PublicKey(t testing.TB, path string) ssh.PublicKey {
	t.Helper()
	text, err := os.ReadFile(path + ".pub")
	if err != nil {
		t.Fatal(err)
	}
	pub, _, _, _, err := ssh.ParseAuthorizedKey(text)
	if err != nil {
		t.Fatalf("%s.pub: %v", path, err)
	}
	return pub
}

// Agent runs an ssh-agent holding the given key files until the test ends, and returns its socket.
func Agent(t testing.TB, keys ...string) (socket string) {
	t.Helper()
	Require(t, "ssh-agent", "ssh-add")
	dir, err := os.MkdirTemp("", "agent") // short: a socket's path has 107 bytes
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket = filepath.Join(dir, "s")
	cmd := exec.Command("ssh-agent", "-D", "-a", socket)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil { // it says so when it listens
		t.Fatalf("ssh-agent: %v", err)
	}
	for _, k := range keys {
		add := exec.Command("ssh-add", "-q", k)
		add.Env = append(os.Environ(), "SSH_AUTH_SOCK="+socket)
		if text, err := add.CombinedOutput(); err != nil {
			t.Fatalf("ssh-add %s: %v\n%s", k, err, text)
		}
	}
	return socket
}

// Run runs a program and gives its output; the test ends if it fails.
func Run(t testing.TB, program string, args ...string) string {
	t.Helper()
	Require(t, program)
	cmd := exec.Command(program, args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s %s: %v\n%s", program, strings.Join(args, " "), err, errs.String())
	}
	return out.String()
}

func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}

type lockedBuffer struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (b *lockedBuffer) add(line string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.text.WriteString(line + "\n")
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}
