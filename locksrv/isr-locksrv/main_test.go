package main

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/pkg/sftp"
	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/crypto/ssh"

	"isr/client/remote/sshdtest"
	"isr/locksrv/locksrvtest"
	"isr/locksrv/proto"
	"isr/store/parcel"
)

// promptExit keeps a program that the race detector watches from waiting a
// second before it ends.
const promptExit = "atexit_sleep_ms=0"

// raceEnabled says that the tests run under the race detector.
var raceEnabled bool

func TestMain(m *testing.M) { os.Exit(testMain(m)) }

// testMain puts the program where scripts find it, as it is installed: without
// the race detector, under which the tests of client/isr run it.
func testMain(m *testing.M) int {
	os.Setenv("GORACE", promptExit+" "+os.Getenv("GORACE"))
	dir, err := os.MkdirTemp("", "isr-bin")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	if out, err := exec.Command("go", "build", "-o", dir, ".").CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build: %v\n%s", err, out)
		return 1
	}
	for _, verb := range []string{proto.ListParcels, proto.CatConfig, proto.CatKeyroot, proto.Acquire, proto.Release} {
		if err := os.Symlink("isr-locksrv", filepath.Join(dir, verb)); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	os.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	return locksrvtest.InMemory(m)
}

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata",
		RequireExplicitExec: true,
		Setup: func(e *testscript.Env) error {
			e.Setenv("GORACE", os.Getenv("GORACE"))
			e.Setenv("ISR_ROOT", filepath.Join(e.WorkDir, "root"))
			samples, err := filepath.Abs("../../hooks/samples")
			if err != nil {
				return err
			}
			e.Setenv("SAMPLES", samples)
			return os.WriteFile(filepath.Join(e.WorkDir, "alice.pub"),
				[]byte("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIFEtJEaQcVHGkYWtYjz0ptJO7/hc27xOI7EF7+PF7zQc alice@laptop\n"), 0o644)
		},
		Condition: condition,
		Cmds:      map[string]func(*testscript.TestScript, bool, []string){"status": status, "commit": commit},
	})
}

// status N COMMAND... runs a command that must end with that exit status, and
// leaves its output for stdout and stderr as exec does.
func status(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: status N COMMAND [ARG...]")
	}
	err := ts.Exec(args[1], args[2:]...)
	got := 0
	if exit, ok := err.(*exec.ExitError); ok {
		got = exit.ExitCode()
	} else if err != nil {
		ts.Fatalf("%s: %v", args[1], err)
	}
	if fmt.Sprint(got) != args[0] {
		ts.Fatalf("%s: exit status %d, want %s", strings.Join(args[1:], " "), got, args[0])
	}
}

func TestParseSize(t *testing.T) {
	for text, want := range map[string]int64{"0": 0, "1": 1, "4096": 4096, "128K": 128 << 10, "256M": 256 << 20, "10G": 10 << 30, "1T": 1 << 40,
		"2g": 2 << 30, "9223372036854775807": math.MaxInt64, "8388607T": 8388607 << 40} {
		if got, err := parseSize(text); err != nil || got != want {
			t.Errorf("%s: got %d, %v; want %d", text, got, err, want)
		}
	}
	for _, text := range []string{"", "K", "-1", "+1", "1.5G", "1KB", "1 K", "0x10", "9223372036854775808", "8388608T", "18446744073709551615", "99999999999999999999", "1P"} {
		if got, err := parseSize(text); err == nil {
			t.Errorf("%q: got %d, want an error", text, got)
		}
	}
}

func TestRootDir(t *testing.T) {
	dir := t.TempDir()
	conf := filepath.Join(dir, "locksrv.conf")
	t.Setenv("ISR_ROOT", "")
	t.Setenv("HOME", dir)
	t.Setenv("XDG_DATA_HOME", "")
	check := func(option, want string) {
		t.Helper()
		if got, err := rootDir(option, conf); err != nil || got != want {
			t.Errorf("--root %q: got %s, %v; want %s", option, got, err, want)
		}
	}
	check("", defaultRoot())
	if err := os.WriteFile(conf, []byte("# where\nROOT:=/srv/isr\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	check("", "/srv/isr")
	t.Setenv("ISR_ROOT", "/env")
	check("", "/env")
	check("/option", "/option")
	t.Setenv("ISR_ROOT", "")
	for _, text := range []string{"nonsense\n", "ROOT:=relative\n"} {
		if err := os.WriteFile(conf, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if got, err := rootDir("", conf); err == nil {
			t.Errorf("%q: got %s, want an error", text, got)
		}
	}
}

func TestShellQuote(t *testing.T) {
	for _, s := range []string{"plain", "/usr/bin/isr-locksrv", "with space", `it's "quoted"`, "$HOME", "", "a;b", "ü"} {
		out, err := exec.Command("/bin/sh", "-c", "printf %s "+shellQuote(s)).Output()
		if err != nil || string(out) != s {
			t.Errorf("%q: the shell reads %q, %v", s, out, err)
		}
	}
}

// program is this program as others run it.
func program(t *testing.T) string {
	t.Helper()
	path, err := exec.LookPath("isr-locksrv") // testscript.Main made it
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// The story of a parcel behind Debian's sshd: the user is the forced command's.
func TestStoryOverSSHD(t *testing.T) {
	sshdtest.Require(t, "sshd", "ssh", "sftp")
	r := locksrvtest.NewRealm(t)
	r.AddParcel(t, "alice", "winxp")
	r.AddParcel(t, "bob", "other")
	keys, err := exec.Command(program(t), "--root", r.Root, "authorized-keys").Output()
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Count(string(keys), "command="); got != 2 {
		t.Fatalf("authorized-keys: %d lines, want one for alice and one for bob:\n%s", got, keys)
	}
	server := sshdtest.Start(t, sshdtest.Options{AuthorizedKeys: string(keys), ExtraConfig: "SetEnv GORACE=" + promptExit + "\n"})
	args := locksrvtest.SSHArgs(r.Files["alice"], fmt.Sprint(server.Port), filepath.Join(t.TempDir(), "known_hosts"))
	peer := locksrvtest.OpenSSH{Args: append(args, server.User+"@"+server.Host)}
	c, err := r.Dial(server.Addr, server.User, "alice")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	locksrvtest.Story(t, &locksrvtest.Client{Peer: locksrvtest.Conn{Client: c}, Parcel: "winxp"})

	// Alice's key is alice, whatever she asks for.
	for _, command := range []string{"isr_cat_parcel_cfg other", "isr_acquire_lock other h"} {
		if _, errs, status := peer.Exec(command, nil); status != 10 {
			t.Errorf("%s: status %d, %s; want 10", command, status, errs)
		}
	}
	// The subsystem is the jail, not sshd's own.
	f, err := peer.SFTP()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	infos, err := f.ReadDir("/")
	if err != nil || len(infos) != 1 || infos[0].Name() != "winxp" {
		t.Errorf("/: %v, %v; want winxp alone", infos, err)
	}
	// Without a command there is no shell.
	cmd := exec.Command("ssh", append([]string{"-T"}, peer.Args...)...)
	cmd.Stdin = strings.NewReader("id\n")
	out, err := cmd.CombinedOutput()
	if exit, ok := err.(*exec.ExitError); !ok || exit.ExitCode() != 2 || !strings.Contains(string(out), proto.Acquire) || strings.Contains(string(out), "uid=") {
		t.Errorf("no command: %v, %s; want status 2 and the verbs", err, out)
	}
	// A stranger's key is nobody's.
	stranger := peer
	r.NewKey(t, "stranger")
	stranger.Args = append([]string{}, peer.Args...)
	for i, a := range stranger.Args {
		if a == r.Files["alice"] {
			stranger.Args[i] = r.Files["stranger"]
		}
	}
	if _, _, status := stranger.Exec("isr_list_parcels", nil); status != 255 {
		t.Errorf("stranger: status %d, want 255", status)
	}
}

// The same with the server's own ForceCommand instead of a key's.
func TestStoryOverForceCommand(t *testing.T) {
	sshdtest.Require(t, "sshd")
	r := locksrvtest.NewRealm(t)
	r.AddParcel(t, "alice", "winxp")
	pub, err := os.ReadFile(r.Files["alice"] + ".pub")
	if err != nil {
		t.Fatal(err)
	}
	server := sshdtest.Start(t, sshdtest.Options{AuthorizedKeys: string(pub),
		ForceCommand: program(t) + " --root " + shellQuote(r.Root) + " shell --user alice",
		ExtraConfig:  "DisableForwarding yes\nPermitTTY no\nSetEnv GORACE=" + promptExit + "\n"})
	c, err := r.Dial(server.Addr, server.User, "alice")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	locksrvtest.Story(t, &locksrvtest.Client{Peer: locksrvtest.Conn{Client: c}, Parcel: "winxp"})
}

// The fragment in contrib is one that sshd takes.
func TestSSHDFragment(t *testing.T) {
	sshdtest.Require(t, "sshd")
	fragment, err := os.ReadFile("../../contrib/sshd/sshd_config.isr")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	key := filepath.Join(dir, "host")
	sshdtest.NewKey(t, key, "ed25519", "")
	conf := filepath.Join(dir, "sshd_config")
	if err := os.WriteFile(conf, append([]byte("HostKey "+key+"\n"), fragment...), 0o600); err != nil {
		t.Fatal(err)
	}
	path, err := exec.LookPath("sshd")
	if err != nil {
		path = "/usr/sbin/sshd"
	}
	out, err := exec.Command(path, "-T", "-f", conf, "-C", "user=isr,host=h,addr=127.0.0.1").CombinedOutput()
	if err != nil {
		t.Fatalf("sshd -T: %v\n%s", err, out)
	}
	for _, want := range []string{"authorizedkeyscommand /usr/bin/isr-locksrv --root /var/lib/isr authorized-keys --key %k", "disableforwarding yes", "permittty no"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("sshd does not read %q from it", want)
		}
	}
}

// serve says where it listens, and ends with status 0 when told to.
func TestServe(t *testing.T) {
	r := locksrvtest.NewRealm(t)
	r.AddParcel(t, "alice", "winxp")
	for _, signal := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
		cmd := exec.Command(program(t), "--root", r.Root, "serve", "--listen", "127.0.0.1:0")
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		log := new(locksrvtest.Log)
		cmd.Stderr = log
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		ended := false
		defer func() {
			if !ended {
				cmd.Process.Kill()
				cmd.Wait()
			}
		}()
		var addr string
		if _, err := fmt.Fscanf(out, "listening on %s\n", &addr); err != nil {
			t.Fatalf("first line: %v\n%s", err, log)
		}
		host, _, err := net.SplitHostPort(addr)
		if err != nil || host != "127.0.0.1" {
			t.Errorf("listening on %q: %v", addr, err)
		}
		c, err := r.Dial(addr, "alice", "alice")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		got, errs, code := locksrvtest.Exec(c, proto.ListParcels, nil)
		if code != 0 || string(got) != "winxp\n" {
			t.Errorf("list: %d, %q, %q", code, got, errs)
		}
		if !strings.Contains(log.String(), "SHA256:") {
			t.Errorf("no fingerprint in the log:\n%s", log)
		}
		start := time.Now()
		if err := cmd.Process.Signal(signal); err != nil {
			t.Fatal(err)
		}
		err = cmd.Wait()
		ended = true
		if err != nil {
			t.Errorf("%v: %v\n%s", signal, err, log)
		}
		if took := time.Since(start); took > 20*time.Second {
			t.Errorf("%v: took %v to stop", signal, took)
		}
	}
	for _, name := range []string{"ssh_host_ed25519_key", "ssh_host_rsa_key"} {
		fi, err := os.Stat(filepath.Join(r.Root, "hostkeys", name))
		if err != nil || fi.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v; want mode 0600", name, fi, err)
		}
	}
}

// An import that is interrupted leaves nothing, and says so by its status.
func TestInterruptedImport(t *testing.T) {
	r := locksrvtest.NewRealm(t)
	image := filepath.Join(t.TempDir(), "image")
	f, err := os.Create(image)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := io.CopyN(f, rand.Reader, 128<<20); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program(t), "--root", r.Root, "parcel", "import", "alice", "box", image, "--vmm", "none", "--chunk-size", "4K")
	errs := new(locksrvtest.Log)
	cmd.Stderr = errs
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	// Once something of it is there, it is in the middle.
	content := filepath.Join(r.Root, "users/alice/isr")
	for begun := false; !begun; {
		select {
		case err := <-ended:
			t.Fatalf("it ended before it was interrupted: %v\n%s", err, errs)
		default:
			entries, err := os.ReadDir(content)
			begun = err == nil && len(entries) > 0
		}
	}
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	err = <-ended
	if cmd.ProcessState.ExitCode() != 130 || errs.String() != "isr-locksrv: error: interrupted\n" {
		t.Errorf("got %v and %q; want status 130 and that it was interrupted", err, errs)
	}
	if names, err := r.Store.Parcels("alice"); err != nil || len(names) > 0 {
		t.Errorf("parcels: %v, %v; want none", names, err)
	}
	out, err := exec.Command(program(t), "--root", r.Root, "check").CombinedOutput()
	if err != nil {
		t.Errorf("check: %v\n%s", err, out)
	}
	if entries, err := os.ReadDir(content); err != nil || len(entries) > 0 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
}

// A verb that waits for its input ends with a signal.
func TestSignalEndsSessionThatWaits(t *testing.T) {
	r := locksrvtest.NewRealm(t)
	r.AddParcel(t, "alice", "winxp")
	for _, signal := range endings {
		cmd := exec.Command(program(t), "--root", r.Root, "shell", "--user", "alice")
		cmd.Env = append(os.Environ(), "SSH_ORIGINAL_COMMAND=isr_get winxp")
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		io.WriteString(in, strings.Repeat("ab", 32)+"\n")
		if _, err := proto.ReadFrame(out); !errors.Is(err, parcel.ErrNoObject) {
			t.Errorf("first answer: %v", err)
		}
		if err := cmd.Process.Signal(signal); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Wait(); err == nil {
			t.Errorf("%v: it ended well", signal)
		}
	}
}

// A verb that changes something does not heed signals; its hooks do.
func TestHookHeedsSignals(t *testing.T) {
	r := locksrvtest.NewRealm(t)
	r.AddParcel(t, "alice", "winxp")
	if err := os.Mkdir(filepath.Join(r.Root, "hooks"), 0o700); err != nil {
		t.Fatal(err)
	}
	// Which signals it ignores, in hexadecimal: 1 is SIGHUP, 2 SIGINT, 4000
	// SIGTERM. The program that runs it is asked to end meanwhile.
	hook := "#!/bin/sh\nsed -n 's/^SigIgn:[^0-9a-f]*//p' /proc/self/status >ignored\nkill -HUP $PPID; kill -INT $PPID; kill -TERM $PPID\n"
	if err := os.WriteFile(filepath.Join(r.Root, "hooks", "pre-lock"), []byte(hook), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"shell", "--user", "alice"}, {"isr_acquire_lock", "alice", "winxp"}} {
		cmd := exec.Command(program(t), append([]string{"--root", r.Root}, args...)...)
		cmd.Env = append(os.Environ(), "SSH_ORIGINAL_COMMAND=isr_acquire_lock winxp")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", args, err, out)
		}
		text, err := os.ReadFile(filepath.Join(r.Root, "ignored"))
		if err != nil {
			t.Fatal(err)
		}
		ignored, err := strconv.ParseUint(strings.TrimSpace(string(text)), 16, 64)
		if err != nil || ignored&0x4003 != 0 {
			t.Errorf("%v: its hook ignores signals %x, %v", args, ignored, err)
		}
		if out, err := exec.Command(program(t), "--root", r.Root, "isr_release_lock", "alice", "winxp", "--force").CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
}

// SFTP without sshd, under the names sshd has for it.
func TestShellServesSFTP(t *testing.T) {
	r := locksrvtest.NewRealm(t)
	r.AddParcel(t, "alice", "winxp")
	for _, name := range []string{"internal-sftp", "internal-sftp -f AUTH -l INFO", "/usr/lib/openssh/sftp-server", "/usr/libexec/sftp-server -R"} {
		cmd := exec.Command(program(t), "--root", r.Root, "shell", "--user", "alice")
		cmd.Env = append(os.Environ(), "SSH_ORIGINAL_COMMAND="+name)
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		c, err := sftp.NewClientPipe(out, in)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if infos, err := c.ReadDir("/"); err != nil || len(infos) != 1 || infos[0].Name() != "winxp" {
			t.Errorf("%s: /: %v, %v; want winxp alone", name, infos, err)
		}
		c.Close()
		if err := cmd.Wait(); err != nil {
			t.Errorf("%s: %v; want status 0 at the end of the input", name, err)
		}
	}
}

// A key's terms hold behind Debian's sshd, which keeps some of them itself.
func TestKeyTermsOverSSHD(t *testing.T) {
	sshdtest.Require(t, "sshd", "ssh", "sftp")
	r := locksrvtest.NewRealm(t)
	r.AddParcel(t, "alice", "winxp")
	r.AddParcel(t, "alice", "other")
	tests := []struct {
		options, command string
		status           int
		says             string
	}{
		{`isr-parcel="winxp,absent",from="127.0.0.0/8,!127.9.9.9",expiry-time="20991231235959Z" `, "isr_list_parcels", 0, "winxp\n"},
		{`isr-parcel="winxp" `, "isr_cat_parcel_cfg other", 10, "no such parcel"},
		{`isr-read-only `, "isr_acquire_lock winxp host", 16, "for reading only"},
		{`expiry-time="20200101" `, "isr_list_parcels", 255, "Permission denied"},
		{`from="192.0.2.0/24" `, "isr_list_parcels", 255, "Permission denied"},
	}
	var lines []byte
	for i, test := range tests {
		key := r.NewKey(t, fmt.Sprint("key", i))
		lines = append(append(lines, test.options...), ssh.MarshalAuthorizedKey(key.PublicKey())...)
	}
	if err := os.WriteFile(filepath.Join(r.Root, "users/alice/authorized_keys"), lines, 0o600); err != nil {
		t.Fatal(err)
	}
	keys, err := exec.Command(program(t), "--root", r.Root, "authorized-keys").Output()
	if err != nil {
		t.Fatal(err)
	}
	server := sshdtest.Start(t, sshdtest.Options{AuthorizedKeys: string(keys), ExtraConfig: "SetEnv GORACE=" + promptExit + "\n"})
	for i, test := range tests {
		args := locksrvtest.SSHArgs(r.Files[fmt.Sprint("key", i)], fmt.Sprint(server.Port), filepath.Join(t.TempDir(), "known_hosts"))
		out, errs, status := locksrvtest.OpenSSH{Args: append(args, server.User+"@"+server.Host)}.Exec(test.command, nil)
		if status != test.status || !strings.Contains(string(out)+string(errs), test.says) || strings.Contains(string(out), "other") {
			t.Errorf("%d, %s%s: status %d, %s%s; want %d and %q\n%s", i, test.options, test.command, status, out, errs, test.status, test.says, keys)
		}
	}
}

// A backup and a mirror on another host, over its sshd: the host has nothing of
// ours. A connection that is lost loses nothing.
func TestBackupOverSSH(t *testing.T) {
	sshdtest.Require(t, "sshd", "ssh")
	r := locksrvtest.NewRealm(t)
	r.AddParcel(t, "alice", "winxp")
	server := sshdtest.Start(t, sshdtest.Options{})
	home := server.Home(t, "")
	config := filepath.Join(home, ".ssh", "config")
	if err := os.WriteFile(config, []byte(fmt.Sprintf("Host vault\nHostName 127.0.0.1\nPort %d\nIdentityFile %s\nIdentitiesOnly yes\nUserKnownHostsFile %s\nBatchMode yes\n",
		server.Port, server.KeyFile, filepath.Join(home, ".ssh/known_hosts"))), 0o600); err != nil {
		t.Fatal(err)
	}
	run := func(want int, args ...string) string {
		t.Helper()
		out, err := exec.Command(program(t), args...).CombinedOutput()
		status := 0
		if exit, ok := err.(*exec.ExitError); ok {
			status = exit.ExitCode()
		} else if err != nil {
			t.Fatal(err)
		}
		if status != want {
			t.Errorf("%s: status %d, want %d\n%s", strings.Join(args, " "), status, want, out)
		}
		return string(out)
	}
	ssh := "ssh -F " + config
	dir := t.TempDir()
	place := "vault:" + filepath.Join(dir, "backup")
	run(0, "--root", r.Root, "backup", place, "--ssh", ssh)
	run(0, "backup", "verify", "ssh://vault"+filepath.Join(dir, "backup"), "--ssh", ssh)
	run(0, "--root", filepath.Join(dir, "new"), "restore", place, "--ssh", ssh)
	run(0, "--root", filepath.Join(dir, "new"), "check", "-c")
	run(0, "--root", r.Root, "mirror", "vault:"+filepath.Join(dir, "standby"), "--ssh", ssh)
	if out := run(0, "--root", filepath.Join(dir, "standby"), "check", "-c"); !strings.Contains(out, "0 errors, 0 notes") {
		t.Errorf("check of the mirror: %s", out)
	}
	if out := run(14, "--root", r.Root, "backup", "nobody@vault:x", "--ssh", ssh); !strings.Contains(out, "ermission denied") {
		t.Errorf("nobody: %s", out)
	}
	// A mirror in a row of passes ends when it is told to.
	cmd := exec.Command(program(t), "--root", r.Root, "mirror", "vault:"+filepath.Join(dir, "standby"), "--ssh", ssh, "--every", "1h")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line := make([]byte, 256)
	if n, err := out.Read(line); err != nil || !strings.Contains(string(line[:n]), "1 parcel, 0 changed") {
		t.Errorf("first pass: %q, %v", line[:n], err)
	}
	cmd.Process.Signal(syscall.SIGTERM)
	if err := cmd.Wait(); err != nil {
		t.Errorf("told to stop: %v", err)
	}
	server.Stop()
	run(14, "--root", r.Root, "backup", place, "--ssh", ssh)
}
