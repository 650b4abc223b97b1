package main

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/creack/pty"

	"isr/client/remote/sshdtest"
	"isr/locksrv/locksrvtest"
)

// Where root became the account that owns the realm, ssh and what it runs by
// that account's configuration have no terminal: on root's they could type.
// Who backs up a realm of her own is asked by ssh.
func TestBackupTerminal(t *testing.T) {
	sshdtest.Require(t, "sshd", "ssh")
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	const nobody = 65534
	server := sshdtest.Start(t, sshdtest.Options{})
	for _, test := range []struct {
		name string
		uid  int
		want string
	}{{"root's realm", 0, "a terminal\n"}, {"another's realm", nobody, "no terminal\n"}} {
		t.Run(test.name, func(t *testing.T) {
			r := locksrvtest.NewRealm(t)
			r.AddParcel(t, "alice", "winxp")
			home := server.Home(t, "")
			said := filepath.Join(home, "said")
			// A program of the account's, which its ssh_config has ssh run.
			probe := filepath.Join(home, "probe")
			for name, text := range map[string]string{
				probe: "#!/bin/sh\nif true </dev/tty; then echo a terminal; else echo no terminal; fi 2>&- >" + said + "\n",
				filepath.Join(home, ".ssh/config"): fmt.Sprintf("Match exec %s\nHost vault\nHostName 127.0.0.1\nUser %s\nPort %d\nIdentityFile %s/.ssh/id_ed25519\nIdentitiesOnly yes\nUserKnownHostsFile %s/.ssh/known_hosts\n",
					probe, server.User, server.Port, home, home),
			} {
				if err := os.WriteFile(name, []byte(text), 0o700); err != nil {
					t.Fatal(err)
				}
			}
			own(t, home, test.uid)
			own(t, r.Root, test.uid)
			here, tty, err := pty.Open()
			if err != nil {
				t.Fatal(err)
			}
			defer here.Close()
			defer tty.Close()
			cmd := exec.Command(program(t), "--root", r.Root, "backup", "vault:"+filepath.Join(t.TempDir(), "backup"), "--ssh", "ssh -F "+filepath.Join(home, ".ssh/config"))
			cmd.Stdin, cmd.Stdout, cmd.Stderr = tty, tty, tty
			cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
			shown := new(locksrvtest.Log)
			go io.Copy(shown, here)
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			timer := time.AfterFunc(time.Minute, func() { cmd.Process.Kill() })
			defer timer.Stop()
			if err := cmd.Wait(); err != nil {
				t.Errorf("%v: %s", err, shown)
			}
			if got, err := os.ReadFile(said); string(got) != test.want {
				t.Errorf("it has %q, %v; want %q: %s", got, err, test.want, shown)
			}
		})
	}
}

// own gives dir and all in it to uid, and lets everybody through to it.
func own(t *testing.T, dir string, uid int) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		if err == nil {
			err = os.Lchown(path, uid, uid)
		}
		return err
	})
	for up := filepath.Dir(dir); err == nil && up != filepath.Clean(os.TempDir()) && up != "/"; up = filepath.Dir(up) {
		err = os.Chmod(up, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
}
