package knownhosts

import (
	"crypto/ed25519"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/crypto/ssh"
	xknownhosts "golang.org/x/crypto/ssh/knownhosts"

	"isr/client/remote/sshconf"
	"isr/client/remote/sshdtest"
)

func TestAppendKnownHostTogether(t *testing.T) {
	file := filepath.Join(t.TempDir(), "new", "known_hosts")
	pub, _, _ := ed25519.GenerateKey(nil)
	key, err := ssh.NewPublicKey(pub)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			if err := appendKnownHost(file, fmt.Sprintf("host%d:22", i), key, i%2 == 0); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	db, err := loadKnownHosts([]string{file})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 50 {
		if f, err := db.look(fmt.Sprintf("host%d:22", i), &net.TCPAddr{IP: net.IPv4zero}, key); err != nil || f.verdict != hostKnown {
			t.Errorf("host%d: got %v, %v; want known", i, f, err)
		}
	}
}

func TestAlgorithmsOrder(t *testing.T) {
	pub, _, _ := ed25519.GenerateKey(nil)
	key, _ := ssh.NewPublicKey(pub)
	file := filepath.Join(t.TempDir(), "known_hosts")
	sshdtest.Write(t, file, xknownhosts.Line([]string{"ed:22"}, key)+"\n@cert-authority *.ca "+string(ssh.MarshalAuthorizedKey(key)))
	db, err := loadKnownHosts([]string{file})
	if err != nil {
		t.Fatal(err)
	}
	get := func(host, spec string) []string {
		r, err := sshconf.Resolve(sshconf.Target{Host: host, ConfigFile: "none", Options: map[string]string{"HostKeyAlgorithms": spec}})
		if spec == "" {
			r, err = sshconf.Resolve(sshconf.Target{Host: host, ConfigFile: "none"})
		}
		if err != nil {
			t.Fatal(err)
		}
		return db.algorithms(&r)
	}
	if got := get("ed", ""); got[0] != ssh.KeyAlgoED25519 || slices.Contains(got, ssh.CertAlgoED25519v01) || !slices.Contains(got, ssh.KeyAlgoRSASHA256) {
		t.Errorf("known by Ed25519: got %q", got)
	}
	if got := get("new", ""); got[0] != ssh.KeyAlgoED25519 || got[1] != ssh.KeyAlgoECDSA256 {
		t.Errorf("unknown: got %q", got)
	}
	if got := get("x.ca", ""); !strings.Contains(got[0], "-cert-v01") || !slices.Contains(got, ssh.KeyAlgoED25519) {
		t.Errorf("with an authority: got %q", got)
	}
	if got := get("ed", "rsa-sha2-512,ssh-ed25519"); !slices.Equal(got, []string{"rsa-sha2-512", "ssh-ed25519"}) {
		t.Errorf("as configured: got %q", got)
	}
	if got := get("ed", "+ssh-rsa"); got[0] != ssh.KeyAlgoED25519 || !slices.Contains(got, ssh.KeyAlgoRSA) {
		t.Errorf("+ssh-rsa: got %q", got)
	}
}

func FuzzKnownHosts(f *testing.F) {
	pub := ed25519.NewKeyFromSeed(make([]byte, 32)).Public().(ed25519.PublicKey)
	key, _ := ssh.NewPublicKey(pub)
	line := xknownhosts.Line([]string{"host:22"}, key)
	f.Add([]byte(line))
	f.Add([]byte("rubbish\n@revoked * " + string(ssh.MarshalAuthorizedKey(key))))
	f.Add([]byte("|1|a|b ssh-ed25519 AAAA\n[x]:y ssh-ed25519 AAAA\n!,*,? k k"))
	other := ed25519.NewKeyFromSeed(append(make([]byte, 31), 1)).Public().(ed25519.PublicKey)
	stranger, _ := ssh.NewPublicKey(other)
	f.Fuzz(func(t *testing.T, text []byte) {
		file := filepath.Join(t.TempDir(), "known_hosts")
		if err := os.WriteFile(file, append(append(append([]byte{}, text...), '\n'), line...), 0o600); err != nil {
			t.Fatal(err)
		}
		db, err := loadKnownHosts([]string{file})
		if err != nil {
			t.Fatalf("no file may make all hosts unknown: %v", err)
		}
		// The good line at the end counts whatever stands before it, unless that revokes it.
		f, err := db.look("host:22", &net.TCPAddr{IP: net.IPv4zero}, key)
		if err == nil && f.verdict != hostKnown && f.verdict != hostRevoked {
			t.Errorf("got %v, want known", f)
		}
		if f, err := db.look("host:22", &net.TCPAddr{IP: net.IPv4zero}, stranger); err == nil && f.verdict == hostKnown && !strings.Contains(string(text), "AAAA") {
			t.Errorf("a stranger's key is known")
		}
	})
}
