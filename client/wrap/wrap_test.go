package wrap

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"errors"
	"net"
	"testing"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"

	"isr/store/parcel"
)

func signer(t *testing.T, key crypto.Signer) ssh.Signer {
	t.Helper()
	s, err := ssh.NewSignerFromSigner(key)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func ed(t *testing.T) ed25519.PrivateKey {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func TestOpenByAnyOfTheKeys(t *testing.T) {
	rk, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	ek, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	e, r, c := signer(t, ed(t)), signer(t, rk), signer(t, ek)
	key, record, err := New([]ssh.Signer{c, e, r})
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(record, key) {
		t.Fatal("record holds the key in the clear")
	}
	for name, s := range map[string]ssh.Signer{"ed25519": e, "rsa": r} {
		got, err := Open(record, []ssh.Signer{c, s})
		if err != nil || !bytes.Equal(got, key) {
			t.Errorf("%s: Open = %x, %v, want %x", name, got, err, key)
		}
	}
	for name, ss := range map[string][]ssh.Signer{"nobody": nil, "a stranger": {signer(t, ed(t))}, "ecdsa": {c}} {
		if _, err := Open(record, ss); !errors.Is(err, parcel.ErrDenied) {
			t.Errorf("%s: Open = %v, want denied", name, err)
		}
	}
	if _, _, err := New([]ssh.Signer{c}); !errors.Is(err, ErrNoSigner) {
		t.Errorf("New with ecdsa only = %v, want ErrNoSigner", err)
	}
}

func TestAgentOpensWhatTheFileWrapped(t *testing.T) {
	key := ed(t)
	want, record, err := New([]ssh.Signer{signer(t, key)})
	if err != nil {
		t.Fatal(err)
	}
	here, there := net.Pipe()
	defer here.Close()
	ring := agent.NewKeyring()
	if err := ring.Add(agent.AddedKey{PrivateKey: key}); err != nil {
		t.Fatal(err)
	}
	go agent.ServeAgent(ring, there)
	signers, err := agent.NewClient(here).Signers()
	if err != nil {
		t.Fatal(err)
	}
	if got, err := Open(record, signers); err != nil || !bytes.Equal(got, want) {
		t.Errorf("Open through the agent = %x, %v, want %x", got, err, want)
	}
}

func TestBox(t *testing.T) {
	key := bytes.Repeat([]byte{7}, KeySize)
	box := Seal(key, []byte("plain"), "state")
	if got, err := Unseal(key, box, "state"); err != nil || string(got) != "plain" {
		t.Fatalf("Unseal = %q, %v", got, err)
	}
	box2 := bytes.Clone(box)
	box2[len(box2)-1] ^= 1
	for name, f := range map[string]func() ([]byte, error){
		"another label": func() ([]byte, error) { return Unseal(key, box, "cfg") },
		"another key":   func() ([]byte, error) { return Unseal(bytes.Repeat([]byte{8}, KeySize), box, "state") },
		"a flipped bit": func() ([]byte, error) { return Unseal(key, box2, "state") },
		"cut short":     func() ([]byte, error) { return Unseal(key, box[:5], "state") },
	} {
		if got, err := f(); !errors.Is(err, parcel.ErrDamaged) {
			t.Errorf("%s: Unseal = %q, %v, want damaged", name, got, err)
		}
	}
}

func FuzzOpen(f *testing.F) {
	f.Add([]byte("SALT:=AAAA\nKEY:=SHA256:x AAAA\n"))
	f.Fuzz(func(t *testing.T, record []byte) {
		if key, err := Open(record, nil); err == nil {
			t.Fatalf("Open without a signer = %x", key)
		}
	})
}
