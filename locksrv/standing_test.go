package locksrv_test

import (
	"bufio"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"isr/client/remote/sshdtest"
	"isr/locksrv"
	"isr/locksrv/locksrvtest"
	"isr/locksrv/proto"
	"isr/store"
	"isr/store/parcel"
)

// untilRefused asks again and again until it is refused, and returns how.
func untilRefused(t *testing.T, what string, ask func() error) error {
	t.Helper()
	for end := time.Now().Add(time.Minute); ; {
		err := ask()
		if err != nil {
			return err
		}
		if time.Now().After(end) {
			t.Fatalf("%s: goes on", what)
		}
		time.Sleep(10 * time.Millisecond) // it is asked about once in a while
	}
}

// A user who is locked out, or whose key is hers no more or on other terms, is
// refused in the midst of a session, whatever it is about, and by a client that
// is really there.
func TestSessionIsCut(t *testing.T) {
	sshdtest.Require(t, "ssh")
	for name, cut := range map[string]func(t *testing.T, r *locksrvtest.Realm, file, line string){
		"locked": func(t *testing.T, r *locksrvtest.Realm, _, _ string) {
			if err := r.Store.ChangeUser("alice", func(c *store.UserConfig) error { c.Locked, c.Why = time.Now(), "laptop stolen"; return nil }); err != nil {
				t.Fatal(err)
			}
		},
		"no key": func(t *testing.T, _ *locksrvtest.Realm, file, _ string) { write(t, file, "") },
		"expired": func(t *testing.T, _ *locksrvtest.Realm, file, line string) {
			write(t, file, `expiry-time="20200101" `+line)
		},
		"narrowed": func(t *testing.T, _ *locksrvtest.Realm, file, line string) { write(t, file, `isr-read-only `+line) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			j := newJailed(t)
			d := j.Start(t, nil)
			_, port, err := net.SplitHostPort(d.Addr)
			if err != nil {
				t.Fatal(err)
			}
			tag, object := j.one()
			there, err := filepath.Glob(j.dir + "/hdk/*/*")
			if err != nil || len(there) == 0 {
				t.Fatal(there, err)
			}
			args := append(locksrvtest.SSHArgs(j.Files["alice"], port, filepath.Join(t.TempDir(), "known_hosts")), "alice@127.0.0.1")
			f, err := locksrvtest.OpenSSH{Args: args}.SFTP()
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			reading, err := f.Open("/winxp/last/info")
			if err != nil {
				t.Fatal(err)
			}
			putting, err := f.OpenFile(j.client.ObjectPath(tag), os.O_WRONLY|os.O_CREATE)
			if err != nil {
				t.Fatal(err)
			}
			get, missing := stream(t, args, "isr_get winxp"), stream(t, args, "isr_missing winxp")
			read := func() error { _, err := reading.ReadAt(make([]byte, 4), 0); return err }
			got := func() error {
				if _, err := io.WriteString(get.in, filepath.Base(there[0])+"\n"); err != nil {
					return err
				}
				_, err := proto.ReadFrame(get.out)
				return err
			}
			lacks := func() error {
				if _, err := io.WriteString(missing.in, tag.String()+"\n"); err != nil {
					return err
				}
				_, err := missing.out.ReadString('\n')
				return err
			}
			for what, ask := range map[string]func() error{"read": read, "get": got, "missing": lacks} {
				if err := ask(); err != nil {
					t.Errorf("%s: %v", what, err)
				}
			}
			file := filepath.Join(j.Root, "users/alice/authorized_keys")
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			cut(t, j.Realm, file, string(text))
			if err := untilRefused(t, "read", read); !errors.Is(err, os.ErrPermission) {
				t.Errorf("read: %v", err)
			}
			for what, ask := range map[string]func() error{
				"open":     func() error { _, err := f.Open("/winxp/last/info"); return err },
				"stat":     func() error { _, err := f.Stat("/winxp"); return err },
				"lstat":    func() error { _, err := f.Lstat("/winxp"); return err },
				"list":     func() error { _, err := f.ReadDir("/"); return err },
				"readlink": func() error { _, err := f.ReadLink("/winxp/last"); return err },
				"statvfs":  func() error { _, err := f.StatVFS("/winxp"); return err },
				"write":    func() error { _, err := putting.WriteAt(object, 0); return err },
				"put":      func() error { _, err := f.OpenFile(j.client.ObjectPath(tag), os.O_WRONLY|os.O_CREATE); return err },
			} {
				if err := ask(); !errors.Is(err, os.ErrPermission) {
					t.Errorf("%s: %v", what, err)
				}
			}
			if err := putting.Close(); err == nil {
				t.Error("it was put")
			}
			untilRefused(t, "get", got)
			untilRefused(t, "missing", lacks)
			for _, s := range []*streaming{get, missing} {
				if err := s.end(); !errors.Is(err, parcel.ErrDenied) {
					t.Errorf("%s: %v", s.what, err)
				}
			}
			if staged, err := filepath.Glob(j.dir + "/staging/*"); err != nil || len(staged) > 0 {
				t.Errorf("left behind: %v", staged)
			}
		})
	}
}

// A password that is taken away lets nobody go on.
func TestPasswordSessionIsCut(t *testing.T) {
	r, d := withPasswords(t)
	r.AddParcel(t, "alice", "office")
	c, err := login(d.Addr, "alice", ssh.Password("alice's secret"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	f, err := locksrvtest.Conn{Client: c}.SFTP()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	stat := func() error { _, err := f.Stat("/office"); return err }
	if err := stat(); err != nil {
		t.Fatal(err)
	}
	if err := r.Store.RemovePassword("alice"); err != nil {
		t.Fatal(err)
	}
	if err := untilRefused(t, "stat", stat); !errors.Is(err, os.ErrPermission) {
		t.Error(err)
	}
	waitFor(t, d.Log, "has no password any more")
}

// statting is a realm, and what alice asks in an SFTP session there, of which no
// daemon knows the key.
func statting(t *testing.T) (r *locksrvtest.Realm, stat func() error) {
	t.Helper()
	r = locksrvtest.NewRealm(t)
	r.AddParcel(t, "alice", "winxp")
	f, err := locksrvtest.Direct{Service: r.Service, Session: locksrv.Session{User: "alice"}}.SFTP()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return r, func() error { _, err := f.Stat("/winxp"); return err }
}

// Without a daemon that knows the key, the user is asked about all the same.
func TestLockedOutOfSFTP(t *testing.T) {
	r, stat := statting(t)
	if err := stat(); err != nil {
		t.Fatal(err)
	}
	if err := r.Store.ChangeUser("alice", func(c *store.UserConfig) error { c.Locked = time.Now(); return nil }); err != nil {
		t.Fatal(err)
	}
	untilRefused(t, "stat", stat)
	// Who was refused is so for good: another session is another question.
	if err := r.Store.ChangeUser("alice", func(c *store.UserConfig) error { c.Locked = time.Time{}; return nil }); err != nil {
		t.Fatal(err)
	}
	if err := stat(); !errors.Is(err, os.ErrPermission) {
		t.Errorf("let in again: %v", err)
	}
}

// What cannot be found out is an error of that moment only: nobody denied it.
func TestSessionOutlastsAnError(t *testing.T) {
	r, stat := statting(t)
	file := filepath.Join(r.Root, "users/alice/user.cfg")
	good, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	write(t, file, "half a li")
	untilRefused(t, "stat", stat)
	write(t, file, string(good))
	if err := stat(); err != nil {
		t.Errorf("when it is whole again: %v", err)
	}
}

// streaming is a verb that lasts, over OpenSSH's ssh.
type streaming struct {
	what string
	cmd  *exec.Cmd
	in   io.WriteCloser
	out  *bufio.Reader
	errs *strings.Builder
}

func stream(t *testing.T, args []string, command string) *streaming {
	t.Helper()
	s := &streaming{what: command, errs: new(strings.Builder), cmd: exec.Command("ssh", append(args[:len(args):len(args)], "--", command)...)}
	s.cmd.Stderr = s.errs
	out, oerr := s.cmd.StdoutPipe()
	in, ierr := s.cmd.StdinPipe()
	if err := errors.Join(oerr, ierr, s.cmd.Start()); err != nil {
		t.Fatal(err)
	}
	s.in, s.out = in, bufio.NewReader(out)
	t.Cleanup(func() { s.in.Close(); s.cmd.Wait() })
	return s
}

// end is the error that the verb ended with.
func (s *streaming) end() error {
	s.in.Close()
	s.cmd.Wait()
	return proto.ReadError(s.what, s.cmd.ProcessState.ExitCode(), []byte(s.errs.String()))
}

func write(t *testing.T, file, text string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}
