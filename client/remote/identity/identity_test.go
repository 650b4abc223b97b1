package identity_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"

	"isr/client/remote/ask"
	"isr/client/remote/dial"
	"isr/client/remote/identity"
	"isr/client/remote/sshconf"
	"isr/client/remote/sshdtest"
)

func TestSigners(t *testing.T) {
	home := t.TempDir()
	dir := filepath.Join(home, ".ssh")
	os.Mkdir(dir, 0o700)
	tg := sshconf.Target{Host: "h", Home: home, ConfigFile: "none"}
	if _, err := identity.Signers(sshdtest.Within(t), tg, nil, nil); !errors.Is(err, identity.ErrAuth) {
		t.Errorf("no key at all: got %v; want ErrAuth", err)
	}
	file, other, locked := filepath.Join(dir, "id_ed25519"), filepath.Join(home, "other"), filepath.Join(dir, "id_rsa")
	sshdtest.NewKey(t, file, "ed25519", "")
	sshdtest.NewKey(t, other, "ecdsa", "")
	sshdtest.NewKey(t, locked, "rsa", "secret")
	names := func(s []ssh.Signer) (out []string) {
		for _, x := range s {
			out = append(out, strings.TrimPrefix(fmt.Sprint(x), home+"/"))
		}
		return out
	}
	check := func(what string, p ask.Prompter, want ...string) []ssh.Signer {
		t.Helper()
		s, err := identity.Signers(sshdtest.Within(t), tg, p, nil)
		if err != nil || !slices.Equal(names(s), want) {
			t.Fatalf("%s: got %q, %v; want %q", what, names(s), err, want)
		}
		for _, x := range s {
			sig, err := x.Sign(nil, []byte("data"))
			if err != nil {
				t.Fatalf("%s: %v signs: %v", what, x, err)
			}
			if err := x.PublicKey().Verify([]byte("data"), sig); err != nil {
				t.Errorf("%s: %v: %v", what, x, err)
			}
		}
		return s
	}
	check("files, nobody to ask", nil, ".ssh/id_ed25519")
	p := &sshdtest.Person{Answers: []string{"secret"}}
	check("files", p, ".ssh/id_rsa", ".ssh/id_ed25519")
	if len(p.Asked) != 1 {
		t.Errorf("asked %q; want one passphrase", p.Asked)
	}
	t.Setenv("SSH_AUTH_SOCK", sshdtest.Agent(t, other, file))
	// The agent's key that is also a file's comes first, then its others, then files.
	check("agent", &sshdtest.Person{Answers: []string{"secret"}}, "id_ed25519", "other", ".ssh/id_rsa")
	tg.Options = map[string]string{"IdentitiesOnly": "yes"}
	check("identities only", nil, "id_ed25519")
	tg.Options = map[string]string{"IdentityFile": other, "IdentityAgent": "none"}
	check("one named", nil, "other")
	tg.Options = map[string]string{"PubkeyAcceptedAlgorithms": "rsa-sha2-256"}
	s := check("RSA only", &sshdtest.Person{Answers: []string{"secret"}}, ".ssh/id_rsa")
	if sig, err := s[0].Sign(nil, []byte("x")); err != nil || sig.Format != "rsa-sha2-256" {
		t.Errorf("got a signature %v, %v; want rsa-sha2-256", sig, err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	tg.Options = nil
	if s, err := identity.Signers(ctx, tg, nil, nil); err == nil {
		if _, err := s[0].Sign(nil, nil); err != nil && !errors.Is(err, context.Canceled) {
			t.Errorf("cancelled: got %v", err)
		}
	}
}

func TestAddKeysToAgent(t *testing.T) {
	s := sshdtest.Start(t, sshdtest.Options{})
	home := s.Home(t, "AddKeysToAgent yes\n")
	key := filepath.Join(home, ".ssh", "id_ed25519")
	sshdtest.Run(t, "ssh-keygen", "-q", "-p", "-P", "", "-N", "secret", "-a", "1", "-f", key)
	t.Setenv("SSH_AUTH_SOCK", sshdtest.Agent(t))
	c, err := dial.Dial(sshdtest.Within(t), sshconf.Target{Host: s.Host, Port: s.Port, Home: home}, &sshdtest.Person{Answers: []string{"secret"}}, nil)
	sshdtest.Works(t, c, err)
	c, err = dial.Dial(sshdtest.Within(t), sshconf.Target{Host: s.Host, Port: s.Port, Home: home}, nil, nil)
	sshdtest.Works(t, c, err)
}
