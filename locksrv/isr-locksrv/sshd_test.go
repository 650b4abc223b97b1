package main

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/crypto/ssh"

	"isr/client/remote/sshdtest"
	"isr/locksrv/locksrvtest"
)

// sshdHost is a host whose sshd is set up as contrib/sshd says: a mount
// namespace with accounts of its own, that ends with the test. What it runs is
// on tmpfs, where nobody but root can write, as sshd wants it.
const sshdHost = `set -eu
mount --make-rprivate /
for d in /home /run /usr/local/bin /var/lib; do mount -t tmpfs -o mode=755 tmpfs $d; done
mkdir -m 755 /run/sshd
install -m 755 "$PROGRAM" /usr/local/bin/isr-locksrv
for f in passwd group shadow; do cp /etc/$f /run/$f; done
# Password of alice and isr: correct horse.
hash='$6$isrisrisr$iab4THwNegFp78Brb5FJQlcS/71gziZWOLNJntu8.J76dw.iYg2XPwEHNpENUJK4NhoxiOVMNTiMu3KC2K6BF0'
cat >>/run/passwd <<-X
	isr:x:60001:60001::/var/lib/isr:/bin/sh
	alice:x:60002:60002::/home/alice:/bin/sh
	dora:x:60003:60003::/home/dora:/bin/sh
X
cat >>/run/group <<-X
	isr:x:60001:
	alice:x:60002:
	dora:x:60003:
	isr-users:x:60010:alice,dora
X
for u in isr alice dora; do echo "$u:$hash:19000:0:99999:7:::" >>/run/shadow; done
for f in passwd group shadow; do mount --bind /run/$f /etc/$f; done
install -d -m 700 -o isr -g isr /var/lib/isr
install -d -m 755 -o alice -g alice /home/alice
install -d -m 755 -o dora -g dora /home/dora
mkdir -m 755 /run/keys
cp "$KEYS"/key-*.pub /run/keys
chmod 644 /run/keys/*
runuser -u isr -- isr-locksrv --root /var/lib/isr user add alice --key /run/keys/key-alice.pub
runuser -u isr -- isr-locksrv --root /var/lib/isr user add bob --key /run/keys/key-bob.pub
runuser -u isr -- isr-locksrv --root /var/lib/isr parcel create alice winxp --disk 1M --memory 1M --chunk-size 4K --vmm none
runuser -u isr -- isr-locksrv --root /var/lib/isr parcel create bob other --disk 1M --vmm none
runuser -l alice -c 'isr-locksrv user add alice && isr-locksrv parcel create alice own --disk 1M --memory 1M --chunk-size 4K --vmm none'
install -d -m 700 -o alice -g alice /home/alice/.ssh
install -m 600 -o alice -g alice /run/keys/key-carol.pub /home/alice/.ssh/authorized_keys
chmod 600 "$HOSTKEY"
/usr/sbin/sshd -D -e -f "$CONFIG" -p "$PORT" </dev/null &
# It all ends when sshd does, and that when the test closes its end of the
# pipe, or is killed.
sshd=$!
exec 3<&0
{ read -r end <&3 || kill $sshd; } &
wait $sshd
`

// startSSHDHost runs it, with the fragments of contrib/sshd included as Debian's
// sshd_config does, and returns its address.
func startSSHDHost(t *testing.T, r *locksrvtest.Realm) (addr string) {
	t.Helper()
	sshdtest.Require(t, "sshd", "unshare", "runuser", "install")
	if os.Geteuid() != 0 {
		t.Skip("only root can make accounts, in a namespace of its own")
	}
	if out, err := exec.Command("unshare", "-mpf", "--kill-child", "--mount-proc", "mount", "-t", "tmpfs", "tmpfs", "/home").CombinedOutput(); err != nil {
		t.Skipf("no namespaces here: %v, %s", err, out)
	}
	dir := t.TempDir()
	hostKey := filepath.Join(dir, "host")
	sshdtest.NewKey(t, hostKey, "ed25519", "")
	config := ""
	for _, name := range []string{"sshd_config.isr", "sshd_config.isr-users"} {
		text, err := os.ReadFile(filepath.Join("../../contrib/sshd", name))
		if err != nil {
			t.Fatal(err)
		}
		config += "Include " + write(t, filepath.Join(dir, name+".conf"), strings.ReplaceAll(string(text), "/usr/bin/", "/usr/local/bin/")) + "\n"
	}
	config += "HostKey " + hostKey + "\nListenAddress 127.0.0.1\nPidFile none\nUsePAM yes\nKbdInteractiveAuthentication no\nPrintMotd no\n" +
		"SetEnv GORACE=" + promptExit + "\nLogLevel VERBOSE\nSubsystem sftp /usr/lib/openssh/sftp-server\n"
	file := write(t, filepath.Join(dir, "sshd_config"), config)
	// A free port is only found by trying: somebody else may take it in between.
	for attempt := 1; ; attempt++ {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		addr = ln.Addr().String()
		ln.Close()
		_, port, _ := net.SplitHostPort(addr)
		cmd := exec.Command("unshare", "-mpf", "--kill-child", "--mount-proc", "sh", "-c", sshdHost)
		cmd.Env = append(os.Environ(), "PROGRAM="+program(t), "KEYS="+filepath.Dir(r.Files["alice"]), "HOSTKEY="+hostKey,
			"CONFIG="+file, "PORT="+port, "PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "ISR_ROOT=")
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		stdin, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		stderr, err := cmd.StderrPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		log := new(locksrvtest.Log)
		listening, ended := make(chan bool, 1), make(chan struct{})
		go func() {
			defer close(ended)
			for lines := bufio.NewScanner(stderr); lines.Scan(); {
				fmt.Fprintln(log, lines.Text())
				if strings.Contains(lines.Text(), "Server listening on") {
					listening <- true
				}
			}
			cmd.Wait()
		}()
		select {
		case <-listening:
			t.Cleanup(func() {
				stdin.Close() // ends it, and with it all of its namespace
				<-ended
				if t.Failed() {
					t.Logf("log of sshd:\n%s", log)
				}
			})
			return addr
		case <-ended:
			if attempt == 5 || !strings.Contains(log.String(), "Address already in use") {
				t.Fatalf("sshd host: it ended at once\n%s", log)
			}
		}
	}
}

// Both ways behind stock sshd, by its real rules about accounts, owners and
// modes: one account with everybody's keys, and an account for each user.
func TestSSHDHost(t *testing.T) {
	r := locksrvtest.NewRealm(t)
	for _, name := range []string{"carol", "stranger"} {
		r.NewKey(t, name)
	}
	addr := startSSHDHost(t, r)
	dial := func(user string, auth ssh.AuthMethod) (*ssh.Client, error) {
		return ssh.Dial("tcp", addr, &ssh.ClientConfig{User: user, Auth: []ssh.AuthMethod{auth}, HostKeyCallback: ssh.InsecureIgnoreHostKey()})
	}
	login := func(t *testing.T, user string, auth ssh.AuthMethod) *ssh.Client {
		t.Helper()
		c, err := dial(user, auth)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	key := func(name string) ssh.AuthMethod { return ssh.PublicKeys(r.Keys[name]) }
	password := ssh.Password("correct horse")

	t.Run("one account", func(t *testing.T) {
		c := login(t, "isr", key("alice"))
		if _, errs, status := locksrvtest.Exec(c, "isr_cat_parcel_cfg other", nil); status != 10 {
			t.Errorf("bob's parcel by alice's key: %d, %s", status, errs)
		}
		locksrvtest.Story(t, &locksrvtest.Client{Peer: locksrvtest.Conn{Client: c}, Parcel: "winxp"})
		confined(t, c)
		if out, errs, status := locksrvtest.Exec(login(t, "isr", key("bob")), "isr_list_parcels", nil); status != 0 || string(out) != "other\n" {
			t.Errorf("bob: %d, %q, %s", status, out, errs)
		}
		for name, auth := range map[string]ssh.AuthMethod{"a stranger's key": key("stranger"), "the account's password": password} {
			if c, err := dial("isr", auth); err == nil {
				c.Close()
				t.Errorf("%s: lets in", name)
			}
		}
	})
	for name, auth := range map[string]ssh.AuthMethod{"own account by key": key("carol"), "own account by password": password} {
		t.Run(name, func(t *testing.T) {
			c := login(t, "alice", auth)
			locksrvtest.Story(t, &locksrvtest.Client{Peer: locksrvtest.Conn{Client: c}, Parcel: "own"})
			confined(t, c)
		})
	}
	t.Run("account without a realm", func(t *testing.T) {
		_, errs, status := locksrvtest.Exec(login(t, "dora", password), "isr_list_parcels", nil)
		if status != 1 || !strings.HasPrefix(string(errs), "isr: error: /home/dora/.local/share/isr: no realm is there\n") {
			t.Errorf("%d, %q", status, errs)
		}
	})
	// The realm's key of alice is none of the account's.
	if c, err := dial("alice", key("alice")); err == nil {
		c.Close()
		t.Errorf("a key of the realm opens the account")
	}
}

// confined: no shell, no terminal, no other program, no forwarding, and SFTP
// shows nothing but the parcels.
func confined(t *testing.T, c *ssh.Client) {
	t.Helper()
	for _, command := range []string{"id", "sh -c id", "cat /etc/passwd", "isr_list_parcels; id", "isr_list_parcels $(id)", "scp -t /tmp/x", ""} {
		if out, _, status := locksrvtest.Exec(c, command, nil); status == 0 || len(out) > 0 {
			t.Errorf("%q: status %d, %q; want it refused", command, status, out)
		}
	}
	s, err := c.NewSession()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := s.RequestPty("xterm", 24, 80, ssh.TerminalModes{}); err == nil {
		t.Errorf("it gives a terminal")
	}
	if nc, err := c.Dial("tcp", "127.0.0.1:22"); err == nil {
		nc.Close()
		t.Errorf("it forwards")
	}
	f, err := locksrvtest.Conn{Client: c}.SFTP()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	infos, err := f.ReadDir("/")
	if err != nil || len(infos) != 1 {
		t.Errorf("/: %v, %v; want one parcel", infos, err)
	}
	for _, name := range []string{"/etc/passwd", "/../../../etc/passwd", "/home"} {
		if _, err := f.Stat(name); err == nil {
			t.Errorf("sftp shows %s", name)
		}
	}
}
