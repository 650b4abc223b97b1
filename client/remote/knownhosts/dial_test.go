package knownhosts_test

import (
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"

	"isr/client/remote/ask"
	"isr/client/remote/dial"
	"isr/client/remote/knownhosts"
	"isr/client/remote/sshconf"
	"isr/client/remote/sshdtest"
)

func TestUnknownHost(t *testing.T) {
	t.Parallel()
	s := sshdtest.Start(t, sshdtest.Options{})
	fingerprint := ssh.FingerprintSHA256(s.HostKey)
	for _, c := range []struct {
		name  string
		mode  string // StrictHostKeyChecking
		yes   []bool
		batch bool
		kind  knownhosts.Kind // 0: it goes on
		asked int
	}{
		{name: "ask, yes", yes: []bool{true}, asked: 1},
		{name: "ask, no", yes: []bool{false}, asked: 1, kind: knownhosts.Declined},
		{name: "ask, end of file", asked: 1, kind: knownhosts.Declined},
		{name: "ask, batch", batch: true, yes: []bool{true}, kind: knownhosts.Unknown},
		{name: "yes", mode: "yes", yes: []bool{true}, kind: knownhosts.Unknown},
		{name: "accept-new", mode: "accept-new"},
		{name: "no", mode: "no"},
	} {
		t.Run(c.name, func(t *testing.T) {
			home := s.Home(t, "HashKnownHosts no\n")
			file := filepath.Join(home, ".ssh", "known_hosts")
			os.Remove(file)
			p := &sshdtest.Person{Yes: c.yes}
			tg := sshconf.Target{Host: s.Host, Port: s.Port, Home: home}
			tg.BatchMode = c.batch
			if c.mode != "" {
				tg.Options = map[string]string{"StrictHostKeyChecking": c.mode}
			}
			client, err := dial.Dial(sshdtest.Within(t), tg, p, nil)
			if len(p.Asked) != c.asked {
				t.Errorf("asked %q; want %d questions", p.Asked, c.asked)
			}
			if c.asked > 0 && (!strings.Contains(p.Asked[0], fingerprint) || !strings.Contains(p.Asked[0], s.Addr[:9])) {
				t.Errorf("asked %q; want host and %s", p.Asked[0], fingerprint)
			}
			if c.kind != 0 {
				var he *knownhosts.Error
				if !errors.Is(err, knownhosts.ErrHostKey) || !errors.As(err, &he) || he.Kind != c.kind {
					t.Errorf("got %v; want knownhosts.ErrHostKey of kind %d", err, c.kind)
				}
				if _, err := os.Stat(file); err == nil {
					t.Error("a refused key was added")
				}
				return
			}
			sshdtest.Works(t, client, err)
			info, err := os.Stat(file)
			if err != nil || info.Mode().Perm() != 0o600 {
				t.Fatalf("known_hosts: %v, %v; want mode 0600", info, err)
			}
			if got, want := sshdtest.Read(t, file), s.KnownHostsLine; strings.Fields(got)[0] != strings.Fields(want)[0] || strings.Fields(got)[2] != strings.Fields(want)[2] {
				t.Errorf("known_hosts: got %q, want %q", got, want)
			}
			if len(p.Notices) != 1 || !strings.HasPrefix(p.Notices[0], "Warning: Permanently added") {
				t.Errorf("notices: got %q", p.Notices)
			}
			// Known from now on, to us and to ssh.
			tg.Options = map[string]string{"StrictHostKeyChecking": "yes"}
			client, err = dial.Dial(sshdtest.Within(t), tg, nil, nil)
			sshdtest.Works(t, client, err)
			sshAgrees(t, s, home)
		})
	}
}

// sshAgrees: the real client takes the host for known.
func sshAgrees(t *testing.T, s *sshdtest.Server, home string, options ...string) {
	t.Helper()
	args := []string{"-F", "none", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=yes", "-o", "GlobalKnownHostsFile=none",
		"-o", "UserKnownHostsFile=" + filepath.Join(home, ".ssh", "known_hosts"), "-i", s.KeyFile, "-p", fmt.Sprint(s.Port)}
	args = append(append(args, options...), s.Host, "true")
	if out, err := exec.Command("ssh", args...).CombinedOutput(); err != nil {
		t.Errorf("ssh with the same known_hosts: %v\n%s", err, out)
	}
}

func TestUnknownHostHashed(t *testing.T) {
	t.Parallel()
	s := sshdtest.Start(t, sshdtest.Options{})
	home := s.Home(t, "HashKnownHosts yes\nStrictHostKeyChecking accept-new\n")
	file := filepath.Join(home, ".ssh", "known_hosts")
	sshdtest.Write(t, file, "# a comment without an end of line")
	c, err := dial.Dial(sshdtest.Within(t), sshconf.Target{Host: s.Host, Port: s.Port, Home: home}, nil, nil)
	sshdtest.Works(t, c, err)
	if got := sshdtest.Read(t, file); !strings.HasPrefix(got, "# a comment without an end of line\n|1|") || strings.Contains(got, "127.0.0.1") {
		t.Errorf("known_hosts: got %q; want the comment and a hashed line", got)
	}
	sshAgrees(t, s, home)
	tg := sshconf.Target{Host: s.Host, Port: s.Port, Home: home}
	tg.Options = map[string]string{"StrictHostKeyChecking": "yes"}
	c, err = dial.Dial(sshdtest.Within(t), tg, nil, nil)
	sshdtest.Works(t, c, err)
}

// A file that keeps nothing, or cannot be written, asks once per credentials.
func TestUnknownHostNotKept(t *testing.T) {
	t.Parallel()
	s := sshdtest.Start(t, sshdtest.Options{})
	home := s.Home(t, "")
	for _, file := range []string{"/dev/null", filepath.Join(home, ".ssh", "config", "not-a-directory"), "none"} {
		p := &sshdtest.Person{Yes: []bool{true}}
		creds := new(ask.Credentials)
		tg := sshconf.Target{Host: s.Host, Port: s.Port, Home: home}
		tg.Options = map[string]string{"UserKnownHostsFile": file}
		c, err := dial.Dial(sshdtest.Within(t), tg, p, creds)
		sshdtest.Works(t, c, err)
		c, err = dial.Dial(sshdtest.Within(t), tg, nil, creds)
		sshdtest.Works(t, c, err)
		if _, err = dial.Dial(sshdtest.Within(t), tg, nil, nil); !errors.Is(err, knownhosts.ErrHostKey) {
			t.Errorf("%s, without the credentials: got %v; want knownhosts.ErrHostKey", file, err)
		}
	}
}

func TestChangedHost(t *testing.T) {
	t.Parallel()
	sshdtest.Require(t, "ssh-keygen")
	s := sshdtest.Start(t, sshdtest.Options{})
	home := s.Home(t, "")
	file := filepath.Join(home, ".ssh", "known_hosts")
	other := filepath.Join(t.TempDir(), "other")
	sshdtest.NewKey(t, other, "ed25519", "")
	sshdtest.Write(t, file, "# first line\n"+fmt.Sprintf("[127.0.0.1]:%d %s", s.Port, ssh.MarshalAuthorizedKey(sshdtest.PublicKey(t, other))))
	for _, mode := range []string{"ask", "accept-new", "yes"} {
		p := &sshdtest.Person{Yes: []bool{true}}
		tg := sshconf.Target{Host: s.Host, Port: s.Port, Home: home}
		tg.Options = map[string]string{"StrictHostKeyChecking": mode}
		_, err := dial.Dial(sshdtest.Within(t), tg, p, nil)
		var he *knownhosts.Error
		if !errors.As(err, &he) || !errors.Is(err, knownhosts.ErrHostKey) || he.Kind != knownhosts.Changed || he.File != file || he.Line != 2 || len(p.Asked) > 0 {
			t.Fatalf("%s: got %v, asked %q; want a changed key at %s:2 and no question", mode, err, p.Asked, file)
		}
		if !strings.Contains(err.Error(), file+":2") || !strings.Contains(err.Error(), "ssh-keygen -f") {
			t.Errorf("%s: %q does not say where, or what to do", mode, err)
		}
	}
	p := &sshdtest.Person{}
	tg := sshconf.Target{Host: s.Host, Port: s.Port, Home: home}
	tg.Options = map[string]string{"StrictHostKeyChecking": "no"}
	c, err := dial.Dial(sshdtest.Within(t), tg, p, nil)
	sshdtest.Works(t, c, err)
	if len(p.Notices) != 1 || !strings.Contains(p.Notices[0], "without passwords") {
		t.Errorf("no: notices %q; want a warning", p.Notices)
	}
	// The remedy that the error gives works.
	tg.Options = nil
	_, err = dial.Dial(sshdtest.Within(t), tg, nil, nil)
	_, remedy, _ := strings.Cut(err.Error(), "sure of that: ")
	sshdtest.Run(t, "sh", "-c", remedy)
	p = &sshdtest.Person{Yes: []bool{true}}
	c, err = dial.Dial(sshdtest.Within(t), tg, p, nil)
	sshdtest.Works(t, c, err)
	if len(p.Asked) != 1 {
		t.Errorf("after ssh-keygen -R: asked %q, want one question", p.Asked)
	}
}

func TestRevokedHost(t *testing.T) {
	t.Parallel()
	s := sshdtest.Start(t, sshdtest.Options{})
	home := s.Home(t, "")
	file := filepath.Join(home, ".ssh", "known_hosts")
	sshdtest.Write(t, file, s.KnownHostsLine+"@revoked * "+string(ssh.MarshalAuthorizedKey(s.HostKey)))
	tg := sshconf.Target{Host: s.Host, Port: s.Port, Home: home}
	_, err := dial.Dial(sshdtest.Within(t), tg, &sshdtest.Person{Yes: []bool{true}}, nil)
	var he *knownhosts.Error
	if !errors.As(err, &he) || he.Kind != knownhosts.Revoked || he.File != file || he.Line != 2 {
		t.Errorf("got %v; want a revoked key at line 2", err)
	}
	sshdtest.Write(t, file, s.KnownHostsLine)
	revoked := filepath.Join(home, "revoked")
	tg.Options = map[string]string{"RevokedHostKeys": revoked}
	if _, err := dial.Dial(sshdtest.Within(t), tg, nil, nil); !errors.Is(err, knownhosts.ErrHostKey) {
		t.Errorf("RevokedHostKeys missing: got %v; want knownhosts.ErrHostKey", err)
	}
	other := filepath.Join(t.TempDir(), "other")
	sshdtest.NewKey(t, other, "ed25519", "")
	sshdtest.Write(t, revoked, "# none of ours\n"+sshdtest.Read(t, other+".pub"))
	c, err := dial.Dial(sshdtest.Within(t), tg, nil, nil)
	sshdtest.Works(t, c, err)
	sshdtest.Write(t, revoked, sshdtest.Read(t, other+".pub")+sshdtest.Read(t, s.HostKeyFiles[0]+".pub"))
	if _, err := dial.Dial(sshdtest.Within(t), tg, nil, nil); !errors.As(err, &he) || he.Kind != knownhosts.Revoked || he.Line != 2 {
		t.Errorf("RevokedHostKeys: got %v; want revoked at line 2", err)
	}
	sshdtest.Write(t, revoked, "SSHKRL\n\x00binary")
	if _, err := dial.Dial(sshdtest.Within(t), tg, nil, nil); !errors.As(err, &he) || he.Kind != knownhosts.Invalid {
		t.Errorf("a binary list: got %v; want knownhosts.ErrHostKey, not checked", err)
	}
}

// The server has three keys; the one that is known is asked for.
func TestKnownTypeFirst(t *testing.T) {
	t.Parallel()
	types := []string{"ed25519", "ecdsa", "rsa"}
	s := sshdtest.Start(t, sshdtest.Options{HostKeys: types})
	lines := strings.SplitAfter(s.KnownHostsLine, "\n")
	for i, kind := range types {
		home := s.Home(t, "StrictHostKeyChecking yes\n")
		sshdtest.Write(t, filepath.Join(home, ".ssh", "known_hosts"), lines[i])
		c, err := dial.Dial(sshdtest.Within(t), sshconf.Target{Host: s.Host, Port: s.Port, Home: home}, nil, nil)
		sshdtest.Works(t, c, err)
		// A plain line without port serves other ports too, as for ssh.
		sshdtest.Write(t, filepath.Join(home, ".ssh", "known_hosts"), strings.Replace(lines[i], fmt.Sprintf("[127.0.0.1]:%d", s.Port), "127.0.0.1", 1))
		c, err = dial.Dial(sshdtest.Within(t), sshconf.Target{Host: s.Host, Port: s.Port, Home: home}, nil, nil)
		sshdtest.Works(t, c, err)
		if kind == "ed25519" { // ssh takes the others too, but does not ask for them first
			sshAgrees(t, s, home)
		}
		// And a wrong one of that type is a change, whatever else the server could show.
		other := filepath.Join(t.TempDir(), "other")
		sshdtest.NewKey(t, other, kind, "")
		sshdtest.Write(t, filepath.Join(home, ".ssh", "known_hosts"), fmt.Sprintf("[127.0.0.1]:%d %s", s.Port, sshdtest.Read(t, other+".pub")))
		var he *knownhosts.Error
		if _, err := dial.Dial(sshdtest.Within(t), sshconf.Target{Host: s.Host, Port: s.Port, Home: home}, nil, nil); !errors.As(err, &he) || he.Kind != knownhosts.Changed {
			t.Errorf("%s: got %v; want a changed key", kind, err)
		}
	}
}

func TestHostCertificate(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	ca, strange := filepath.Join(dir, "ca"), filepath.Join(dir, "strange")
	sshdtest.NewKey(t, ca, "rsa", "")
	sshdtest.NewKey(t, strange, "ed25519", "")
	host := filepath.Join(dir, "host")
	sshdtest.NewKey(t, host, "ed25519", "")
	sshdtest.Certify(t, ca, host, "-h", "-n", "127.0.0.1,box.example.org")
	s := sshdtest.Start(t, sshdtest.Options{ExtraConfig: "HostKey " + host + "\nHostCertificate " + host + "-cert.pub\n"})
	caLine := func(pattern, key string) string {
		return "@cert-authority " + pattern + " " + string(ssh.MarshalAuthorizedKey(sshdtest.PublicKey(t, key)))
	}
	plain := fmt.Sprintf("[127.0.0.1]:%d %s", s.Port, sshdtest.Read(t, host+".pub"))
	for _, c := range []struct {
		name, known string
		alias       string
		want        knownhosts.Kind // 0: it goes on
	}{
		{"authority", caLine("127.0.0.*", ca), "", 0},
		{"authority with port", caLine(fmt.Sprintf("[127.0.0.1]:%d", s.Port), ca), "", 0},
		{"authority, alias", caLine("box.example.org", ca), "box.example.org", 0},
		{"authority of other hosts", caLine("10.*", ca), "", knownhosts.Unknown},
		{"another authority", caLine("*", strange), "", knownhosts.Unknown},
		{"another authority, and the key itself", caLine("*", strange) + plain, "", 0},
		{"the certificate names another host", caLine("*", ca), "elsewhere.example.org", knownhosts.Invalid},
		{"no authority, the key itself", plain, "", 0},
		{"revoked authority", caLine("*", ca) + "@revoked * " + sshdtest.Read(t, ca+".pub"), "", knownhosts.Invalid},
	} {
		t.Run(c.name, func(t *testing.T) {
			home := s.Home(t, "StrictHostKeyChecking yes\n")
			sshdtest.Write(t, filepath.Join(home, ".ssh", "known_hosts"), c.known)
			tg := sshconf.Target{Host: s.Host, Port: s.Port, Home: home}
			if c.alias != "" {
				tg.Options = map[string]string{"HostKeyAlias": c.alias}
			}
			client, err := dial.Dial(sshdtest.Within(t), tg, nil, nil)
			if c.want == 0 {
				sshdtest.Works(t, client, err)
				options := []string{}
				if c.alias != "" {
					options = []string{"-o", "HostKeyAlias=" + c.alias}
				}
				sshAgrees(t, s, home, options...)
				return
			}
			var he *knownhosts.Error
			if !errors.As(err, &he) || he.Kind != c.want {
				t.Errorf("got %v; want kind %d", err, c.want)
			}
		})
	}
}

func TestHostKeyAlias(t *testing.T) {
	t.Parallel()
	s := sshdtest.Start(t, sshdtest.Options{})
	home := s.Home(t, "HashKnownHosts no\nHostKeyAlias TheBox\nStrictHostKeyChecking accept-new\n")
	file := filepath.Join(home, ".ssh", "known_hosts")
	os.Remove(file)
	c, err := dial.Dial(sshdtest.Within(t), sshconf.Target{Host: s.Host, Port: s.Port, Home: home}, nil, nil)
	sshdtest.Works(t, c, err)
	if got := sshdtest.Read(t, file); !strings.HasPrefix(got, "thebox ") {
		t.Errorf("known_hosts: got %q; want the alias, in lower case, without port", got)
	}
	sshAgrees(t, s, home, "-o", "HostKeyAlias=TheBox")
}

// Lines that nobody can read must not hide the others, nor shift their numbers.
func TestKnownHostsWithRubbish(t *testing.T) {
	t.Parallel()
	s := sshdtest.Start(t, sshdtest.Options{})
	home := s.Home(t, "StrictHostKeyChecking yes\n")
	file := filepath.Join(home, ".ssh", "known_hosts")
	rubbish := []string{"rubbish", "host ssh-future AAAAC3NzaC1mdXR1cmU=", "@unknown-marker x ssh-ed25519 AAAA", "host ssh-ed25519 !!!",
		"|1|notbase64|x ssh-ed25519 AAAA", "host ssh-rsa " + base64.StdEncoding.EncodeToString([]byte("short")), "", "# comment",
		strings.Repeat("x", 100_000), "host 1024 35 1234567890"}
	sshdtest.Write(t, file, strings.Join(rubbish, "\n")+"\n"+s.KnownHostsLine+strings.Join(rubbish, "\n"))
	c, err := dial.Dial(sshdtest.Within(t), sshconf.Target{Host: s.Host, Port: s.Port, Home: home}, nil, nil)
	sshdtest.Works(t, c, err)
	other := filepath.Join(t.TempDir(), "other")
	sshdtest.NewKey(t, other, "ed25519", "")
	sshdtest.Write(t, file, strings.Join(rubbish, "\n")+"\n"+fmt.Sprintf("[127.0.0.1]:%d %s", s.Port, sshdtest.Read(t, other+".pub")))
	var he *knownhosts.Error
	if _, err := dial.Dial(sshdtest.Within(t), sshconf.Target{Host: s.Host, Port: s.Port, Home: home}, nil, nil); !errors.As(err, &he) || he.Kind != knownhosts.Changed || he.File != file || he.Line != len(rubbish)+1 {
		t.Errorf("got %v; want a changed key at %s:%d", err, file, len(rubbish)+1)
	}
}
