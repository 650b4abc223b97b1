package locksrv

import (
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/crypto/ssh"

	"isr/store/atomicfile"
)

// rsaBits is the size of a new RSA host key: for clients without ed25519.
const rsaBits = 3072

// HostKeys loads the daemon's keys from dir, and makes those that are not
// there. The files are as sshd's, so keys can move between the two.
func HostKeys(dir string) ([]ssh.Signer, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("host keys: %w", err)
	}
	var signers []ssh.Signer
	for _, k := range []struct {
		name     string
		generate func() (crypto.PrivateKey, error)
	}{
		{"ssh_host_ed25519_key", func() (crypto.PrivateKey, error) {
			_, key, err := ed25519.GenerateKey(rand.Reader)
			return key, err
		}},
		{"ssh_host_rsa_key", func() (crypto.PrivateKey, error) { return rsa.GenerateKey(rand.Reader, rsaBits) }},
	} {
		signer, err := hostKey(filepath.Join(dir, k.name), k.generate)
		if err != nil {
			return nil, fmt.Errorf("host key %s: %w", k.name, err)
		}
		signers = append(signers, signer)
	}
	return signers, nil
}

func hostKey(name string, generate func() (crypto.PrivateKey, error)) (ssh.Signer, error) {
	text, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return newHostKey(name, generate)
	}
	if err != nil {
		return nil, err
	}
	fi, err := os.Stat(name)
	if err != nil {
		return nil, err
	}
	if fi.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("mode %04o lets others read it: want 0600", fi.Mode().Perm())
	}
	return ssh.ParsePrivateKey(text)
}

// newHostKey makes a key, unless another daemon that starts on the same root
// at the same time was first: then that one's.
func newHostKey(name string, generate func() (crypto.PrivateKey, error)) (ssh.Signer, error) {
	key, err := generate()
	if err != nil {
		return nil, err
	}
	block, err := ssh.MarshalPrivateKey(key, "isr-locksrv")
	if err != nil {
		return nil, err
	}
	if err := atomicfile.WriteNew(name, pem.EncodeToMemory(block), 0o600); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	text, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	signer, err := ssh.ParsePrivateKey(text)
	if err != nil {
		return nil, err
	}
	return signer, atomicfile.Write(name+".pub", ssh.MarshalAuthorizedKey(signer.PublicKey()), 0o644)
}
