package dial

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"isr/client/remote/ask"
	"isr/client/remote/identity"
	"isr/client/remote/sshconf"
	"isr/client/remote/sshdtest"
)

func target(s *sshdtest.Server, home string) sshconf.Target {
	return sshconf.Target{Host: s.Host, Port: s.Port, Home: home}
}

func TestDialKey(t *testing.T) {
	t.Parallel()
	s := sshdtest.Start(t, sshdtest.Options{})
	home := s.Home(t, fmt.Sprintf("Host box\n HostName 127.0.0.1\n Port %d\n", s.Port))
	c, err := Dial(sshdtest.Within(t), sshconf.Target{Host: "box", Home: home}, nil, nil)
	sshdtest.Works(t, c, err)
	c, err = Dial(sshdtest.Within(t), target(s, home), nil, nil)
	sshdtest.Works(t, c, err)
}

func TestDialIPv6(t *testing.T) {
	t.Parallel()
	if l, err := net.Listen("tcp", "[::1]:0"); err != nil {
		t.Skipf("no IPv6 here: %v", err)
	} else {
		l.Close()
	}
	s := sshdtest.Start(t, sshdtest.Options{ExtraConfig: "ListenAddress ::1\n"})
	home := s.Home(t, "StrictHostKeyChecking accept-new\nHashKnownHosts no\n")
	host, port, err := sshconf.ParseHostPort(fmt.Sprintf("[::1]:%d", s.Port))
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		c, err := Dial(sshdtest.Within(t), sshconf.Target{Host: host, Port: port, Home: home}, nil, nil)
		sshdtest.Works(t, c, err)
	}
	if got, want := sshdtest.Read(t, filepath.Join(home, ".ssh", "known_hosts")), fmt.Sprintf("\n[::1]:%d ssh-ed25519 ", s.Port); strings.Count(got, want) != 1 {
		t.Errorf("known_hosts: got %q; want one line %q", got, want)
	}
	if _, err := Dial(sshdtest.Within(t), sshconf.Target{Host: host, Port: port, Home: home, Options: map[string]string{"AddressFamily": "inet"}}, nil, nil); !errors.Is(err, ErrUnreachable) {
		t.Errorf("IPv4 only: got %v; want ErrUnreachable", err)
	}
}

func TestDialPassphrase(t *testing.T) {
	t.Parallel()
	s := sshdtest.Start(t, sshdtest.Options{})
	for _, kind := range []struct {
		name string
		args []string // ssh-keygen's
		pub  bool     // keep the public half beside it
	}{
		{"ed25519", []string{"-t", "ed25519"}, true},
		{"ed25519, no .pub", []string{"-t", "ed25519"}, false},
		{"rsa", []string{"-t", "rsa", "-b", "2048"}, true},
		{"rsa as PEM", []string{"-t", "rsa", "-b", "2048", "-m", "PEM"}, true},
		{"rsa as PEM, no .pub", []string{"-t", "rsa", "-b", "2048", "-m", "PEM"}, false},
		{"ecdsa", []string{"-t", "ecdsa", "-b", "521"}, true},
	} {
		t.Run(kind.name, func(t *testing.T) {
			home := s.Home(t, "")
			key := filepath.Join(home, ".ssh", "id_ed25519")
			os.Remove(key)
			os.Remove(key + ".pub")
			sshdtest.Run(t, "ssh-keygen", append([]string{"-q", "-N", "open sesame", "-a", "1", "-f", key}, kind.args...)...)
			pub, _ := os.ReadFile(key + ".pub")
			s.Authorize(t, string(pub))
			if !kind.pub {
				os.Remove(key + ".pub")
			}
			creds := new(ask.Credentials)
			p := &sshdtest.Person{Answers: []string{"wrong", "open sesame"}}
			c, err := Dial(sshdtest.Within(t), target(s, home), p, creds)
			sshdtest.Works(t, c, err)
			if len(p.Asked) != 2 || !strings.Contains(p.Asked[0], key) || !strings.HasPrefix(p.Asked[1], "Bad passphrase") {
				t.Errorf("asked %q; want the passphrase of %s, twice", p.Asked, key)
			}
			// Again, and in another process, without a question.
			c, err = Dial(sshdtest.Within(t), target(s, home), nil, creds)
			sshdtest.Works(t, c, err)
			text, err := json.Marshal(creds)
			if err != nil {
				t.Fatal(err)
			}
			other := new(ask.Credentials)
			if err := json.Unmarshal(text, other); err != nil {
				t.Fatal(err)
			}
			c, err = Dial(sshdtest.Within(t), target(s, home), nil, other)
			sshdtest.Works(t, c, err)
			other.Zero()
			if !other.Empty() {
				t.Error("not empty after Zero")
			}
			_, err = Dial(sshdtest.Within(t), target(s, home), nil, other)
			var auth *identity.AuthError
			if !errors.As(err, &auth) || !errors.Is(err, identity.ErrAuth) || len(auth.Skipped) != 1 || !strings.Contains(auth.Skipped[0], "passphrase") {
				t.Errorf("without anybody to ask: got %v; want ErrAuth about a passphrase", err)
			}
			// Three wrong ones are enough.
			p = &sshdtest.Person{Answers: []string{"a", "b", "c", "open sesame"}}
			_, err = Dial(sshdtest.Within(t), target(s, home), p, nil)
			if !errors.Is(err, identity.ErrAuth) || len(p.Asked) != 3 || !strings.Contains(err.Error(), "wrong passphrase") {
				t.Errorf("after %d wrong passphrases: got %v; want ErrAuth after 3", len(p.Asked), err)
			}
		})
	}
}

// A key given up does not keep the next from being tried.
func TestDialPassphraseGivenUp(t *testing.T) {
	t.Parallel()
	s := sshdtest.Start(t, sshdtest.Options{})
	home := s.Home(t, "IdentityFile ~/.ssh/locked\nIdentityFile ~/.ssh/id_ed25519\n")
	locked := filepath.Join(home, ".ssh", "locked")
	sshdtest.NewKey(t, locked, "ed25519", "secret")
	s.Authorize(t, sshdtest.Read(t, locked+".pub")+sshdtest.Read(t, s.KeyFile+".pub"))
	for _, answers := range [][]string{nil, {""}, {"x", "y", "z"}} {
		p := &sshdtest.Person{Answers: answers}
		c, err := Dial(sshdtest.Within(t), target(s, home), p, nil)
		sshdtest.Works(t, c, err)
		if len(p.Asked) == 0 {
			t.Errorf("answers %q: nothing asked, want the passphrase of the first key", answers)
		}
	}
}

func TestDialWrongKey(t *testing.T) {
	t.Parallel()
	s := sshdtest.Start(t, sshdtest.Options{})
	home := s.Home(t, "")
	key := filepath.Join(home, ".ssh", "id_ed25519")
	os.Remove(key)
	os.Remove(key + ".pub")
	_, err := Dial(sshdtest.Within(t), target(s, home), nil, nil)
	if !errors.Is(err, identity.ErrAuth) || !strings.Contains(err.Error(), "nothing to try") {
		t.Errorf("no key: got %v; want ErrAuth, nothing to try", err)
	}
	sshdtest.NewKey(t, key, "ed25519", "")
	_, err = Dial(sshdtest.Within(t), target(s, home), nil, nil)
	var auth *identity.AuthError
	if !errors.As(err, &auth) || !errors.Is(err, identity.ErrAuth) || len(auth.Tried) != 1 || !strings.Contains(auth.Tried[0], key) || auth.Allowed[0] != "publickey" {
		t.Errorf("wrong key: got %v; want ErrAuth naming %s", err, key)
	}
	os.Chmod(key, 0o644)
	if _, err = Dial(sshdtest.Within(t), target(s, home), nil, nil); !errors.Is(err, identity.ErrAuth) || !strings.Contains(err.Error(), "too open") {
		t.Errorf("readable key: got %v; want ErrAuth about permissions", err)
	}
	os.Chmod(key, 0o600)
	sshdtest.Write(t, key, "not a key")
	os.Remove(key + ".pub")
	if _, err = Dial(sshdtest.Within(t), target(s, home), nil, nil); !errors.Is(err, identity.ErrAuth) || !strings.Contains(err.Error(), "not a private key") {
		t.Errorf("no key in the file: got %v; want ErrAuth about it", err)
	}
	tg := target(s, home)
	tg.User = "nobodyatall"
	if _, err = Dial(sshdtest.Within(t), tg, nil, nil); !errors.Is(err, identity.ErrAuth) || !strings.Contains(err.Error(), "nobodyatall@127.0.0.1") {
		t.Errorf("wrong user: got %v; want ErrAuth naming the login", err)
	}
}

func TestDialAgent(t *testing.T) {
	s := sshdtest.Start(t, sshdtest.Options{})
	home := s.Home(t, "")
	dir := filepath.Join(home, ".ssh")
	os.Remove(filepath.Join(dir, "id_ed25519"))
	os.Remove(filepath.Join(dir, "id_ed25519.pub"))
	other := filepath.Join(t.TempDir(), "other")
	sshdtest.NewKey(t, other, "rsa", "")
	sock := sshdtest.Agent(t, other, s.KeyFile)
	t.Setenv("SSH_AUTH_SOCK", sock)
	creds := new(ask.Credentials)
	c, err := Dial(sshdtest.Within(t), target(s, home), nil, creds)
	sshdtest.Works(t, c, err)

	t.Run("remembered", func(t *testing.T) {
		t.Setenv("SSH_AUTH_SOCK", "")
		c, err := Dial(sshdtest.Within(t), target(s, home), nil, creds)
		sshdtest.Works(t, c, err)
		tg := target(s, home)
		tg.Options = map[string]string{"IdentityAgent": "none"}
		if _, err := Dial(sshdtest.Within(t), tg, nil, creds); !errors.Is(err, identity.ErrAuth) {
			t.Errorf("IdentityAgent none: got %v; want ErrAuth", err)
		}
	})
	t.Run("IdentityAgent", func(t *testing.T) {
		t.Setenv("SSH_AUTH_SOCK", "")
		tg := target(s, home)
		tg.Options = map[string]string{"IdentityAgent": sock}
		c, err := Dial(sshdtest.Within(t), tg, nil, nil)
		sshdtest.Works(t, c, err)
	})
	t.Run("IdentitiesOnly", func(t *testing.T) {
		tg := target(s, home)
		tg.Options = map[string]string{"IdentitiesOnly": "yes"}
		if _, err := Dial(sshdtest.Within(t), tg, nil, nil); !errors.Is(err, identity.ErrAuth) {
			t.Errorf("got %v; want ErrAuth: the key is not named", err)
		}
		// A public key alone picks the agent's.
		sshdtest.Write(t, filepath.Join(home, "pick.pub"), sshdtest.Read(t, s.KeyFile+".pub"))
		tg.Options["IdentityFile"] = "~/pick.pub"
		c, err := Dial(sshdtest.Within(t), tg, nil, nil)
		sshdtest.Works(t, c, err)
		tg.Options["IdentityFile"] = "~/pick"
		c, err = Dial(sshdtest.Within(t), tg, nil, nil)
		sshdtest.Works(t, c, err)
	})
	t.Run("rsa", func(t *testing.T) {
		s.Authorize(t, sshdtest.Read(t, other+".pub"))
		defer s.Authorize(t, sshdtest.Read(t, s.KeyFile+".pub"))
		c, err := Dial(sshdtest.Within(t), target(s, home), nil, nil)
		sshdtest.Works(t, c, err)
	})
	t.Run("locked key is in the agent", func(t *testing.T) {
		// The agent signs, so nobody is asked.
		key := filepath.Join(dir, "id_rsa")
		sshdtest.Run(t, "cp", other, key)
		sshdtest.Run(t, "ssh-keygen", "-q", "-p", "-P", "", "-N", "secret", "-a", "1", "-f", key)
		s.Authorize(t, sshdtest.Read(t, other+".pub"))
		defer s.Authorize(t, sshdtest.Read(t, s.KeyFile+".pub"))
		p := &sshdtest.Person{}
		c, err := Dial(sshdtest.Within(t), target(s, home), p, nil)
		sshdtest.Works(t, c, err)
		if len(p.Asked) > 0 {
			t.Errorf("asked %q; want nothing", p.Asked)
		}
		os.Remove(key)
	})
	t.Run("dead", func(t *testing.T) {
		t.Setenv("SSH_AUTH_SOCK", filepath.Join(t.TempDir(), "nosuch"))
		if _, err := Dial(sshdtest.Within(t), target(s, home), nil, nil); !errors.Is(err, identity.ErrAuth) || !strings.Contains(err.Error(), "nosuch") {
			t.Errorf("got %v; want ErrAuth naming the socket", err)
		}
		sshdtest.Write(t, filepath.Join(dir, "id_ed25519"), sshdtest.Read(t, s.KeyFile))
		c, err := Dial(sshdtest.Within(t), target(s, home), nil, nil)
		sshdtest.Works(t, c, err)
	})
	t.Run("too many keys", func(t *testing.T) {
		var keys []string
		for i := range 8 {
			k := filepath.Join(t.TempDir(), fmt.Sprint("k", i))
			sshdtest.NewKey(t, k, "ed25519", "")
			keys = append(keys, k)
		}
		t.Setenv("SSH_AUTH_SOCK", sshdtest.Agent(t, keys...))
		if _, err := Dial(sshdtest.Within(t), target(s, home), nil, nil); !errors.Is(err, identity.ErrAuth) || !strings.Contains(err.Error(), "Too many authentication failures") {
			t.Errorf("got %v; want ErrAuth, too many", err)
		}
	})
}

// An agent that does not sign is passed over, as ssh does.
func TestDialAgentRefuses(t *testing.T) {
	s := sshdtest.Start(t, sshdtest.Options{})
	home := s.Home(t, "")
	key := filepath.Join(t.TempDir(), "refused")
	sshdtest.NewKey(t, key, "ed25519", "")
	sock := sshdtest.Agent(t)
	t.Setenv("SSH_AUTH_SOCK", sock)
	t.Setenv("SSH_ASKPASS", "/bin/false")
	cmd := exec.Command("ssh-add", "-q", "-c", key) // ask before each use; the agent's askpass says no
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("ssh-add: %v %s", err, out)
	}
	s.Authorize(t, sshdtest.Read(t, key+".pub")+sshdtest.Read(t, s.KeyFile+".pub"))
	c, err := Dial(sshdtest.Within(t), target(s, home), nil, nil)
	sshdtest.Works(t, c, err)
	s.Authorize(t, sshdtest.Read(t, key+".pub"))
	if _, err := Dial(sshdtest.Within(t), target(s, home), nil, nil); !errors.Is(err, identity.ErrAuth) || !strings.Contains(err.Error(), "not tried: refused") {
		t.Errorf("got %v; want ErrAuth naming the key of the agent as not tried", err)
	}
}

func TestDialCertificate(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	ca := filepath.Join(dir, "ca")
	sshdtest.NewKey(t, ca, "ed25519", "")
	s := sshdtest.Start(t, sshdtest.Options{AuthorizedKeys: "# nobody\n", ExtraConfig: "TrustedUserCAKeys " + ca + ".pub\n"})
	for _, kind := range []string{"ed25519", "ecdsa", "rsa"} {
		t.Run(kind, func(t *testing.T) {
			home := s.Home(t, "IdentityFile ~/.ssh/mine\n")
			key := filepath.Join(home, ".ssh", "mine")
			sshdtest.NewKey(t, key, kind, "")
			if _, err := Dial(sshdtest.Within(t), target(s, home), nil, nil); !errors.Is(err, identity.ErrAuth) {
				t.Fatalf("without certificate: got %v; want ErrAuth", err)
			}
			sshdtest.Certify(t, ca, key, "-n", s.User)
			c, err := Dial(sshdtest.Within(t), target(s, home), nil, nil)
			sshdtest.Works(t, c, err)

			// The certificate elsewhere, the key in an agent.
			cert := filepath.Join(home, "elsewhere.pub")
			os.Rename(key+"-cert.pub", cert)
			sock := sshdtest.Agent(t, key)
			os.Remove(key)
			tg := target(s, home)
			tg.Options = map[string]string{"CertificateFile": "~/elsewhere.pub", "IdentityAgent": sock}
			c, err = Dial(sshdtest.Within(t), tg, nil, nil)
			sshdtest.Works(t, c, err)
		})
	}
	t.Run("agent holds both", func(t *testing.T) {
		home := s.Home(t, "")
		key := filepath.Join(dir, "both")
		sshdtest.NewKey(t, key, "rsa", "")
		sshdtest.Certify(t, ca, key, "-n", s.User)
		tg := target(s, home)
		tg.Options = map[string]string{"IdentityAgent": sshdtest.Agent(t, key)}
		c, err := Dial(sshdtest.Within(t), tg, nil, nil)
		sshdtest.Works(t, c, err)
	})
}

func TestDialJump(t *testing.T) {
	t.Parallel()
	inner := sshdtest.Start(t, sshdtest.Options{})
	gate := sshdtest.Start(t, sshdtest.Options{})
	gate2 := sshdtest.Start(t, sshdtest.Options{})
	home := inner.Home(t, fmt.Sprintf(`Host gate
 HostName 127.0.0.1
 Port %d
 IdentityFile ~/.ssh/gate
Host gate2
 HostName 127.0.0.1
 Port %d
 IdentityFile ~/.ssh/gate2
Host inner
 HostName 127.0.0.1
 Port %d
 ProxyJump gate
Host loop
 ProxyJump pool
Host pool
 ProxyJump loop
`, gate.Port, gate2.Port, inner.Port))
	sshdtest.Write(t, filepath.Join(home, ".ssh", "gate"), sshdtest.Read(t, gate.KeyFile))
	sshdtest.Write(t, filepath.Join(home, ".ssh", "gate2"), sshdtest.Read(t, gate2.KeyFile))
	sshdtest.Write(t, filepath.Join(home, ".ssh", "known_hosts"), inner.KnownHostsLine+gate.KnownHostsLine+gate2.KnownHostsLine)

	c, err := Dial(sshdtest.Within(t), sshconf.Target{Host: "inner", Home: home}, nil, nil)
	sshdtest.Works(t, c, err)
	if !strings.Contains(gate.Log(), "Accepted publickey") {
		t.Error("the jump host saw nobody")
	}
	c, err = Dial(sshdtest.Within(t), sshconf.Target{Host: "inner", Home: home, Options: map[string]string{"ProxyJump": "gate2,gate"}}, nil, nil)
	sshdtest.Works(t, c, err)
	if !strings.Contains(gate2.Log(), "Accepted publickey") {
		t.Error("the first of two jump hosts saw nobody")
	}
	// A login that fails half-way says where.
	os.Remove(filepath.Join(home, ".ssh", "gate"))
	if _, err := Dial(sshdtest.Within(t), sshconf.Target{Host: "inner", Home: home}, nil, nil); !errors.Is(err, identity.ErrAuth) || !strings.Contains(err.Error(), "jump host gate") {
		t.Errorf("wrong key for the jump host: got %v; want ErrAuth naming it", err)
	}
	if _, err := Dial(sshdtest.Within(t), sshconf.Target{Host: "loop", Home: home}, nil, nil); !errors.Is(err, sshconf.ErrConfig) || !strings.Contains(err.Error(), "loop") {
		t.Errorf("hosts that jump over each other: got %v; want ErrConfig", err)
	}
	inner.Stop()
	_, err = Dial(sshdtest.Within(t), sshconf.Target{Host: "inner", Home: home, Options: map[string]string{"ProxyJump": "gate2"}}, nil, nil)
	if !errors.Is(err, ErrUnreachable) || !strings.Contains(err.Error(), "through gate2") {
		t.Errorf("inner host down: got %v; want ErrUnreachable", err)
	}
	// Nothing is left on a jump host: its connections end with those through it.
	for _, g := range []*sshdtest.Server{gate, gate2} {
		waitFor(t, "the jump hosts to be free", func() bool {
			return g.Processes() == 0
		})
	}
}

func TestDialProxyCommand(t *testing.T) {
	t.Parallel()
	sshdtest.Require(t, "socat")
	s := sshdtest.Start(t, sshdtest.Options{})
	home := s.Home(t, "")
	pidFile := filepath.Join(home, "pid")
	tg := target(s, home)
	tg.Options = map[string]string{"ProxyCommand": "sh -c 'echo $$ >" + pidFile + "; exec socat - TCP:%h:%p'"}
	for _, p := range []ask.Prompter{nil, &sshdtest.Person{}} {
		c, err := Dial(sshdtest.Within(t), tg, p, nil)
		if err != nil {
			t.Fatal(err)
		}
		pid := strings.TrimSpace(sshdtest.Read(t, pidFile))
		sshdtest.Works(t, c, nil)
		waitFor(t, "the command to end with the connection", func() bool {
			_, err := os.Stat("/proc/" + pid)
			return err != nil
		})
	}
	t.Run("ssh -W", func(t *testing.T) {
		gate := sshdtest.Start(t, sshdtest.Options{})
		tg := tg
		tg.Options = map[string]string{"ProxyCommand": fmt.Sprintf("ssh -F none -o BatchMode=yes -o IdentityAgent=none -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -i %s -p %d -W %%h:%%p 127.0.0.1", gate.KeyFile, gate.Port)}
		c, err := Dial(sshdtest.Within(t), tg, nil, nil)
		sshdtest.Works(t, c, err)
	})
	t.Run("it fails", func(t *testing.T) {
		tg := tg
		tg.Options = map[string]string{"ProxyCommand": "echo no route to there >&2; exit 3"}
		if _, err := Dial(sshdtest.Within(t), tg, nil, nil); !errors.Is(err, ErrUnreachable) || !strings.Contains(err.Error(), "no route to there") {
			t.Errorf("got %v; want ErrUnreachable with what the command said", err)
		}
	})
	t.Run("it hangs", func(t *testing.T) {
		tg := tg
		tg.Options = map[string]string{"ProxyCommand": "trap '' HUP; echo $$ >" + pidFile + "; sleep 1000", "ConnectTimeout": "1"}
		if _, err := Dial(sshdtest.Within(t), tg, nil, nil); !errors.Is(err, ErrUnreachable) {
			t.Errorf("got %v; want ErrUnreachable", err)
		}
		waitFor(t, "the command to be killed", func() bool {
			_, err := os.Stat("/proc/" + strings.TrimSpace(sshdtest.Read(t, pidFile)))
			return err != nil
		})
	})
}

func TestDialUnreachable(t *testing.T) {
	t.Parallel()
	home := t.TempDir()
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	port := silent.Addr().(*net.TCPAddr).Port
	tg := sshconf.Target{Host: "127.0.0.1", Port: port, Home: home, ConfigFile: "none", Options: map[string]string{"ConnectTimeout": "1"}}
	if _, err := Dial(sshdtest.Within(t), tg, nil, nil); !errors.Is(err, ErrUnreachable) || !strings.Contains(err.Error(), "no answer within 1s") {
		t.Errorf("silent server: got %v; want ErrUnreachable after 1 s", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		c, err := silent.Accept() // of the first Dial, or of this one: the handshake has not begun
		if err == nil {
			defer c.Close()
		}
		cancel()
	}()
	tg.Options = nil
	start := time.Now()
	if _, err := Dial(ctx, tg, nil, nil); !errors.Is(err, context.Canceled) || errors.Is(err, ErrUnreachable) {
		t.Errorf("cancelled: got %v; want context.Canceled", err)
	}
	if d := time.Since(start); d > 10*time.Second {
		t.Errorf("cancelling took %v", d)
	}
	silent.Close()
	if _, err := Dial(sshdtest.Within(t), tg, nil, nil); !errors.Is(err, ErrUnreachable) || !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("nobody listens: got %v; want ErrUnreachable, connection refused", err)
	}
	tg.Host = "no-such-host.invalid"
	if _, err := Dial(sshdtest.Within(t), tg, nil, nil); !errors.Is(err, ErrUnreachable) {
		t.Errorf("no such host: got %v; want ErrUnreachable", err)
	}
	web, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer web.Close()
	go func() {
		for {
			c, err := web.Accept()
			if err != nil {
				return
			}
			io.WriteString(c, "HTTP/1.1 400 Bad Request\r\n\r\n")
			c.Close()
		}
	}()
	tg.Host, tg.Port = "127.0.0.1", web.Addr().(*net.TCPAddr).Port
	if _, err := Dial(sshdtest.Within(t), tg, nil, nil); !errors.Is(err, ErrUnreachable) {
		t.Errorf("a web server: got %v; want ErrUnreachable", err)
	}
}

// A server whose machine is gone is noticed; one that answers is left alone.
func TestKeepAlive(t *testing.T) {
	t.Parallel()
	s := sshdtest.Start(t, sshdtest.Options{})
	tg := target(s, s.Home(t, ""))
	tg.Options = map[string]string{"ServerAliveInterval": "1", "ServerAliveCountMax": "2", "IdentityAgent": "none"}
	c, err := Dial(sshdtest.Within(t), tg, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ended := make(chan error, 1)
	go func() { ended <- c.Wait() }()
	select {
	case err := <-ended:
		t.Fatalf("an idle connection ended: %v", err)
	case <-time.After(3500 * time.Millisecond): // longer than interval × (count + 1): only answers keep it
	}
	s.Freeze()
	defer s.Thaw()
	select {
	case <-ended:
	case <-time.After(2 * time.Minute):
		t.Fatal("a dead server is not noticed after two minutes")
	}
	if _, err := c.NewSession(); err == nil {
		t.Error("a session over a dead link: got none, want an error")
	}
}

func TestDialCancelWhileAsking(t *testing.T) {
	t.Parallel()
	s := sshdtest.Start(t, sshdtest.Options{})
	home := s.Home(t, "")
	os.Remove(filepath.Join(home, ".ssh", "known_hosts"))
	ctx, cancel := context.WithCancel(context.Background())
	p := &stuck{cancel: cancel, done: make(chan struct{})}
	defer close(p.done)
	if _, err := Dial(ctx, target(s, home), p, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v; want context.Canceled", err)
	}
}

// A server has no patience without end: it is no fault of the network then.
func TestDialServerDoesNotWait(t *testing.T) {
	t.Parallel()
	s := sshdtest.Start(t, sshdtest.Options{ExtraConfig: "PasswordAuthentication yes\nPubkeyAuthentication no\n"})
	p := &leaving{stop: s.Stop}
	_, err := Dial(sshdtest.Within(t), target(s, s.Home(t, "")), p, nil)
	if !errors.Is(err, ErrUnreachable) || !errors.Is(err, ErrLate) {
		t.Errorf("got %v; want ErrUnreachable, for it did not wait", err)
	}
}

// leaving answers when the server has left.
type leaving struct{ stop func() }

func (p *leaving) Secret(string) (string, error) { p.stop(); return "late", nil }
func (p *leaving) Confirm(string) (bool, error)  { return true, nil }

// stuck never answers.
type stuck struct {
	cancel context.CancelFunc
	done   chan struct{}
}

func (p *stuck) Secret(string) (string, error) { p.cancel(); <-p.done; return "", io.EOF }
func (p *stuck) Confirm(string) (bool, error)  { p.cancel(); <-p.done; return false, io.EOF }

// The time a person takes is not the server's.
func TestDialSlowPerson(t *testing.T) {
	t.Parallel()
	s := sshdtest.Start(t, sshdtest.Options{})
	home := s.Home(t, "")
	os.Remove(filepath.Join(home, ".ssh", "known_hosts"))
	tg := target(s, home)
	tg.Options = map[string]string{"ConnectTimeout": "4"}
	c, err := Dial(sshdtest.Within(t), tg, slow(4500*time.Millisecond), nil)
	sshdtest.Works(t, c, err)
}

// Nor is the time that one connection waits for what another one's person is asked.
func TestDialSlowPersonTogether(t *testing.T) {
	t.Parallel()
	s := sshdtest.Start(t, sshdtest.Options{})
	home := s.Home(t, "ConnectTimeout 4\n")
	os.Remove(filepath.Join(home, ".ssh", "known_hosts"))
	creds := new(ask.Credentials)
	ctx := sshdtest.Within(t)
	var clients [3]*ssh.Client
	var errs [3]error
	var wg sync.WaitGroup
	for i := range clients {
		wg.Go(func() { clients[i], errs[i] = Dial(ctx, target(s, home), slow(4500*time.Millisecond), creds) })
	}
	wg.Wait()
	for i := range clients {
		sshdtest.Works(t, clients[i], errs[i])
	}
}

type slow time.Duration

func (p slow) Secret(string) (string, error) { return "", io.EOF }
func (p slow) Confirm(string) (bool, error)  { time.Sleep(time.Duration(p)); return true, nil }

// Several connections at once, one question.
func TestDialTogether(t *testing.T) {
	t.Parallel()
	s := sshdtest.Start(t, sshdtest.Options{})
	home := s.Home(t, "")
	os.Remove(filepath.Join(home, ".ssh", "known_hosts"))
	key := filepath.Join(home, ".ssh", "id_ed25519")
	sshdtest.Run(t, "ssh-keygen", "-q", "-p", "-P", "", "-N", "secret", "-a", "1", "-f", key)
	p := &sshdtest.Person{Answers: []string{"secret"}, Yes: []bool{true}}
	creds := new(ask.Credentials)
	ctx := sshdtest.Within(t)
	clients := make([]*ssh.Client, 6)
	errs := make([]error, len(clients))
	var wg sync.WaitGroup
	for i := range clients {
		wg.Go(func() { clients[i], errs[i] = Dial(ctx, target(s, home), p, creds) })
	}
	wg.Wait()
	for i := range clients {
		sshdtest.Works(t, clients[i], errs[i])
	}
	if len(p.Asked) != 2 {
		t.Errorf("asked %q; want one question about the host and one about the key", p.Asked)
	}
	if n := strings.Count(sshdtest.Read(t, filepath.Join(home, ".ssh", "known_hosts")), "\n"); n != 1 {
		t.Errorf("known_hosts has %d lines; want 1", n)
	}
}

// waitFor polls: the event is in another process.
func waitFor(t *testing.T, what string, done func() bool) {
	t.Helper()
	for end := time.Now().Add(2 * time.Minute); !done(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited two minutes for %s", what)
		}
	}
}

// What is dialled and closed, or not let in, leaves no goroutine, process or descriptor behind.
func TestDialLeavesNothing(t *testing.T) {
	s := sshdtest.Start(t, sshdtest.Options{})
	gate := sshdtest.Start(t, sshdtest.Options{AuthorizedKeys: sshdtest.Read(t, s.KeyFile+".pub")})
	home := s.Home(t, fmt.Sprintf("Host gate\n HostName 127.0.0.1\n Port %d\n", gate.Port))
	sshdtest.Write(t, filepath.Join(home, ".ssh", "known_hosts"), s.KnownHostsLine+gate.KnownHostsLine)
	descriptors := func() int {
		list, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Skip("no /proc")
		}
		return len(list)
	}
	once := func() {
		for _, options := range []map[string]string{nil, {"ProxyJump": "gate"}, {"ProxyCommand": fmt.Sprintf("ssh -F none -o BatchMode=yes -o IdentityAgent=none -o UserKnownHostsFile=%s/.ssh/known_hosts -i %s -p %d -W %%h:%%p 127.0.0.1", home, s.KeyFile, gate.Port)},
			{"IdentityFile": "none"}, {"IdentityFile": "none", "ProxyJump": "gate"}, {"UserKnownHostsFile": "none", "ProxyJump": "gate", "BatchMode": "yes"}} {
			tg := target(s, home)
			tg.Options = options
			c, err := Dial(sshdtest.Within(t), tg, nil, nil)
			if options["IdentityFile"] == "none" || options["BatchMode"] != "" {
				if err == nil {
					t.Errorf("%v: got in, want an error", options)
				}
				continue
			}
			sshdtest.Works(t, c, err)
		}
	}
	once() // what the libraries start once and keep
	goroutines, files := runtime.NumGoroutine(), descriptors()
	for range 3 {
		once()
	}
	waitFor(t, "goroutines and descriptors to go", func() bool {
		return runtime.NumGoroutine() <= goroutines && descriptors() <= files && s.Processes() == 0 && gate.Processes() == 0
	})
}
