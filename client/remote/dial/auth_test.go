package dial

import (
	"bytes"
	"crypto/ed25519"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"

	"isr/client/remote/ask"
	"isr/client/remote/identity"
	"isr/client/remote/sshconf"
	"isr/client/remote/sshdtest"
)

// passwordServer is a server of the library's own, because OpenSSH takes passwords only of accounts of the machine.
// It logs in whoever passes the given checks and then answers no request.
func passwordServer(t *testing.T, config *ssh.ServerConfig) (host string, port int, known string) {
	t.Helper()
	_, private, _ := ed25519.GenerateKey(nil)
	signer, err := ssh.NewSignerFromKey(private)
	if err != nil {
		t.Fatal(err)
	}
	config.AddHostKey(signer)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				sc, chans, reqs, err := ssh.NewServerConn(conn, config)
				if err != nil {
					conn.Close()
					return
				}
				go ssh.DiscardRequests(reqs)
				for c := range chans {
					c.Reject(ssh.Prohibited, "nothing here")
				}
				sc.Close()
			}()
		}
	}()
	port = l.Addr().(*net.TCPAddr).Port
	return "127.0.0.1", port, fmt.Sprintf("[127.0.0.1]:%d %s", port, ssh.MarshalAuthorizedKey(signer.PublicKey()))
}

const password = "correct horse battery staple"

func passwordTarget(t *testing.T, config *ssh.ServerConfig) sshconf.Target {
	host, port, known := passwordServer(t, config)
	home := t.TempDir()
	sshdtest.Write(t, filepath.Join(home, ".ssh", "known_hosts"), known)
	return sshconf.Target{Host: host, Port: port, User: "alice", Home: home, ConfigFile: "none", Options: map[string]string{"IdentityAgent": "none"}}
}

func loggedIn(t *testing.T, c *ssh.Client, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("Dial: %v", err)
	}
	c.Close()
}

func TestDialPassword(t *testing.T) {
	check := func(user, pass string) (*ssh.Permissions, error) {
		if user == "alice" && pass == password {
			return nil, nil
		}
		return nil, errors.New("wrong")
	}
	for name, config := range map[string]*ssh.ServerConfig{
		"password": {PasswordCallback: func(c ssh.ConnMetadata, b []byte) (*ssh.Permissions, error) { return check(c.User(), string(b)) }},
		"keyboard-interactive": {KeyboardInteractiveCallback: func(c ssh.ConnMetadata, ask ssh.KeyboardInteractiveChallenge) (*ssh.Permissions, error) {
			a, err := ask("", "Hello.", []string{"Password: "}, []bool{false})
			if err != nil || len(a) != 1 {
				return nil, errors.New("no answer")
			}
			return check(c.User(), a[0])
		}},
	} {
		t.Run(name, func(t *testing.T) {
			config.MaxAuthTries = 10
			tg := passwordTarget(t, config)
			creds := new(ask.Credentials)
			p := &sshdtest.Person{Answers: []string{"wrong one", password}}
			c, err := Dial(sshdtest.Within(t), tg, p, creds)
			loggedIn(t, c, err)
			if len(p.Asked) != 2 || !strings.Contains(strings.ToLower(p.Asked[0]), "password") || !strings.Contains(p.Asked[0], "alice@127.0.0.1") {
				t.Errorf("asked %q; want the password of alice@127.0.0.1, twice", p.Asked)
			}
			c, err = Dial(sshdtest.Within(t), tg, nil, creds)
			loggedIn(t, c, err)
			text, err := json.Marshal(creds)
			if err != nil || !bytes.Contains(text, []byte("passwords")) || bytes.Contains(text, []byte("wrong one")) {
				t.Errorf("JSON: %d bytes, %v; want the password that works only", len(text), err)
			}
			other := new(ask.Credentials)
			if err := json.Unmarshal(text, other); err != nil {
				t.Fatal(err)
			}
			c, err = Dial(sshdtest.Within(t), tg, nil, other)
			loggedIn(t, c, err)

			// A remembered password that no longer works is forgotten, and asked for anew.
			stale := new(ask.Credentials)
			key := fmt.Sprintf("alice@127.0.0.1:%d", tg.Port)
			stale.SetPassword(key, []byte("old one"))
			if _, err := Dial(sshdtest.Within(t), tg, nil, stale); !errors.Is(err, identity.ErrAuth) || !stale.Empty() {
				t.Errorf("stale password, nobody to ask: got %v, forgotten %v; want ErrAuth and forgotten", err, stale.Empty())
			}
			stale.SetPassword(key, []byte("old one"))
			p = &sshdtest.Person{Answers: []string{password}}
			c, err = Dial(sshdtest.Within(t), tg, p, stale)
			loggedIn(t, c, err)
			if got, _ := stale.Password(key); string(got) != password {
				t.Error("the new password is not remembered")
			}

			// Three wrong ones; then the end of patience.
			p = &sshdtest.Person{Answers: []string{"x", "y", "z", password}}
			if _, err := Dial(sshdtest.Within(t), tg, p, nil); !errors.Is(err, identity.ErrAuth) || len(p.Asked) != 3 {
				t.Errorf("got %v after %q; want ErrAuth after three", err, p.Asked)
			}
			// End of file is no, once.
			p = &sshdtest.Person{}
			if _, err := Dial(sshdtest.Within(t), tg, p, nil); !errors.Is(err, identity.ErrAuth) || len(p.Asked) != 1 {
				t.Errorf("got %v after %q; want ErrAuth after one question", err, p.Asked)
			}
			// Batch mode never asks.
			tg.BatchMode = true
			p = &sshdtest.Person{Answers: []string{password}}
			if _, err := Dial(sshdtest.Within(t), tg, p, nil); !errors.Is(err, identity.ErrAuth) || len(p.Asked) != 0 {
				t.Errorf("batch mode: got %v after %q; want ErrAuth, nothing asked", err, p.Asked)
			}
		})
	}
}

// Key, then password, then a question: partial successes.
func TestDialSeveralFactors(t *testing.T) {
	key := filepath.Join(t.TempDir(), "key")
	sshdtest.NewKey(t, key, "ed25519", "")
	pub := sshdtest.PublicKey(t, key)
	third := ssh.ServerAuthCallbacks{KeyboardInteractiveCallback: func(_ ssh.ConnMetadata, ask ssh.KeyboardInteractiveChallenge) (*ssh.Permissions, error) {
		if a, err := ask("", "", []string{"Code: "}, []bool{true}); err == nil && a[0] == "123456" {
			return nil, nil
		}
		return nil, errors.New("wrong code")
	}}
	second := ssh.ServerAuthCallbacks{PasswordCallback: func(_ ssh.ConnMetadata, b []byte) (*ssh.Permissions, error) {
		if string(b) == password {
			return nil, &ssh.PartialSuccessError{Next: third}
		}
		return nil, errors.New("wrong")
	}}
	tg := passwordTarget(t, &ssh.ServerConfig{PublicKeyCallback: func(_ ssh.ConnMetadata, k ssh.PublicKey) (*ssh.Permissions, error) {
		if bytes.Equal(k.Marshal(), pub.Marshal()) {
			return nil, &ssh.PartialSuccessError{Next: second}
		}
		return nil, errors.New("wrong")
	}})
	tg.Options["IdentityFile"] = key
	creds := new(ask.Credentials)
	p := &sshdtest.Person{Answers: []string{password, "123456"}}
	c, err := Dial(sshdtest.Within(t), tg, p, creds)
	loggedIn(t, c, err)
	p = &sshdtest.Person{Answers: []string{"123456"}}
	c, err = Dial(sshdtest.Within(t), tg, p, creds)
	loggedIn(t, c, err)
	if _, err = Dial(sshdtest.Within(t), tg, nil, creds); !errors.Is(err, identity.ErrAuth) {
		t.Errorf("nobody to give the code: got %v; want ErrAuth", err)
	}
}

// A wrong host key that StrictHostKeyChecking=no lets pass must not be shown a password.
func TestNoPasswordForWrongHost(t *testing.T) {
	var seen bool
	tg := passwordTarget(t, &ssh.ServerConfig{PasswordCallback: func(ssh.ConnMetadata, []byte) (*ssh.Permissions, error) {
		seen = true
		return nil, nil
	}})
	pub, _, _ := ed25519.GenerateKey(nil)
	other, _ := ssh.NewPublicKey(pub)
	sshdtest.Write(t, filepath.Join(tg.Home, ".ssh", "known_hosts"), fmt.Sprintf("[127.0.0.1]:%d %s", tg.Port, ssh.MarshalAuthorizedKey(other)))
	tg.Options["StrictHostKeyChecking"] = "no"
	p := &sshdtest.Person{Answers: []string{password}}
	if _, err := Dial(sshdtest.Within(t), tg, p, nil); !errors.Is(err, identity.ErrAuth) || seen || len(p.Asked) > 0 {
		t.Errorf("got %v, asked %q, password sent: %v; want ErrAuth and nothing asked", err, p.Asked, seen)
	}
}

// A server that goes away in the middle is unreachable, not a refusal, and nobody is asked on its behalf.
func TestDialLostDuringAuthentication(t *testing.T) {
	key := filepath.Join(t.TempDir(), "key")
	sshdtest.NewKey(t, key, "ed25519", "")
	for name, config := range map[string]func(cut func()) *ssh.ServerConfig{
		"on the key": func(cut func()) *ssh.ServerConfig {
			return &ssh.ServerConfig{PublicKeyCallback: func(ssh.ConnMetadata, ssh.PublicKey) (*ssh.Permissions, error) {
				cut()
				return nil, errors.New("gone")
			}, PasswordCallback: func(ssh.ConnMetadata, []byte) (*ssh.Permissions, error) { return nil, nil }}
		},
	} {
		t.Run(name, func(t *testing.T) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			_, private, _ := ed25519.GenerateKey(nil)
			signer, _ := ssh.NewSignerFromKey(private)
			go func() {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				c := config(func() { conn.Close() })
				c.AddHostKey(signer)
				ssh.NewServerConn(conn, c)
			}()
			p := &sshdtest.Person{Answers: []string{password}}
			tg := sshconf.Target{Host: "127.0.0.1", Port: l.Addr().(*net.TCPAddr).Port, Home: t.TempDir(), ConfigFile: "none",
				Options: map[string]string{"IdentityAgent": "none", "IdentityFile": key, "StrictHostKeyChecking": "accept-new"}}
			if _, err := Dial(sshdtest.Within(t), tg, p, nil); !errors.Is(err, ErrUnreachable) || errors.Is(err, identity.ErrAuth) || len(p.Asked) > 0 {
				t.Errorf("got %v, asked %q; want ErrUnreachable and no question", err, p.Asked)
			}
		})
	}
}

func TestBannerIsHarmless(t *testing.T) {
	tg := passwordTarget(t, &ssh.ServerConfig{
		BannerCallback:   func(ssh.ConnMetadata) string { return "Welcome \x1b]0;title\x07 to \u009b31m here\r\n" },
		PasswordCallback: func(ssh.ConnMetadata, []byte) (*ssh.Permissions, error) { return nil, nil },
	})
	p := &sshdtest.Person{Answers: []string{password}}
	c, err := Dial(sshdtest.Within(t), tg, p, nil)
	loggedIn(t, c, err)
	if len(p.Notices) != 1 || strings.ContainsAny(p.Notices[0], "\x1b\x07\u009b\r") || !strings.HasPrefix(p.Notices[0], "Welcome ") {
		t.Errorf("notices: got %q; want the banner without control characters", p.Notices)
	}
}

// No secret in what is printed: errors, notices, the credentials themselves.
func TestSecretsStaySecret(t *testing.T) {
	t.Parallel()
	key := filepath.Join(t.TempDir(), "key")
	sshdtest.NewKey(t, key, "ed25519", "my passphrase")
	tg := passwordTarget(t, &ssh.ServerConfig{
		PublicKeyCallback: func(ssh.ConnMetadata, ssh.PublicKey) (*ssh.Permissions, error) { return nil, errors.New("no") },
		PasswordCallback:  func(ssh.ConnMetadata, []byte) (*ssh.Permissions, error) { return nil, errors.New("no") },
	})
	tg.Options["IdentityFile"] = key
	creds := new(ask.Credentials)
	p := &sshdtest.Person{Answers: []string{"my passphrase", "my password", "my password"}}
	if _, err := identity.Signers(sshdtest.Within(t), tg, p, creds); err != nil {
		t.Fatal(err)
	}
	s, err := identity.Signers(sshdtest.Within(t), tg, p, creds)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s[0].Sign(nil, []byte("x")); err != nil {
		t.Fatal(err)
	}
	creds.SetPassword("x", []byte("my password"))
	_, dialErr := Dial(sshdtest.Within(t), tg, p, creds)
	if dialErr == nil {
		t.Fatal("got in, want an error")
	}
	unlocked, _ := creds.Key(key)
	if block, _ := pem.Decode(unlocked); block == nil {
		t.Fatal("the unlocked key is not remembered")
	}
	var log bytes.Buffer
	slog.New(slog.NewTextHandler(&log, nil)).Info("x", "creds", creds)
	shown := fmt.Sprintf("%v %+v %#v %s %q %x %d", creds, creds, creds, creds, creds, creds, creds) + log.String() +
		fmt.Sprintf("%v %+v %#v", dialErr, dialErr, dialErr) + strings.Join(p.Notices, " ")
	for _, secret := range []string{"my passphrase", "my password", "6d79207061", "PRIVATE"} {
		if strings.Contains(shown, secret) {
			t.Errorf("%q can be read in %s", secret, shown)
		}
	}
}
