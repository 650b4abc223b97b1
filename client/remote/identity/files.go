package identity

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"syscall"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
)

// file reads the public half of a key file and arranges for the private one. A locked key is asked for only if
// somebody is there to answer, or its passphrase was given before.
func (s *Set) file(ctx context.Context, path string) (*Identity, error) {
	id := &Identity{name: path}
	// What was unlocked once serves, even if its file is gone meanwhile.
	if unlocked, err := s.unlocked(path); err != nil || unlocked != nil {
		if err != nil {
			return nil, err
		}
		s.signWith(id, unlocked)
		return id, nil
	}
	data, err := os.ReadFile(path)
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		if id.pub, err = readPublicKey(path + ".pub"); err != nil {
			return nil, fs.ErrNotExist
		}
		id.note = noPrivate // the agent may hold it
		return id, nil
	}
	defer clear(data)
	if pub, _, _, _, err := ssh.ParseAuthorizedKey(data); err == nil {
		id.pub, id.note = pub, noPrivate // a public key named as IdentityFile picks the key of the agent
		return id, nil
	}
	if err := checkPrivate(path); err != nil {
		return nil, err
	}
	unlocked, err := ssh.ParsePrivateKey(data)
	var locked *ssh.PassphraseMissingError
	switch {
	case err == nil:
		s.signWith(id, unlocked)
		return id, nil
	case !errors.As(err, &locked):
		if id.pub, _ = readPublicKey(path + ".pub"); id.pub != nil {
			id.note = noPrivate // a security key: its file is a handle that only an agent can use
			return id, nil
		}
		return nil, errors.New("not a private key this client can read")
	}
	if id.pub = locked.PublicKey; id.pub == nil {
		id.pub, _ = readPublicKey(path + ".pub")
	}
	if id.pub != nil {
		id.algos = s.r.SignatureAlgorithms(id.pub)
	}
	if !s.asker.Present() {
		id.note = "needs its passphrase, and there is nobody to ask (ssh-add it)"
		return id, nil // an agent may still sign for it
	}
	unlock := func(ctx context.Context) (ssh.Signer, error) {
		signer, err := s.unlock(ctx, path)
		if err == nil && id.pub != nil && !samePublicKey(signer.PublicKey(), id.pub) {
			err = fmt.Errorf("identity %s: the public key beside it is another one", path)
		}
		return signer, err
	}
	id.open = func(ctx context.Context) (ssh.PublicKey, error) {
		signer, err := unlock(ctx)
		if err != nil {
			return nil, err
		}
		s.signWith(id, signer)
		return id.pub, nil
	}
	id.sign = func(ctx context.Context, data []byte, algo string) (*ssh.Signature, error) {
		signer, err := unlock(ctx)
		if err != nil {
			return nil, err
		}
		return signWithAlgorithm(signer, data, algo)
	}
	return id, nil
}

func (s *Set) signWith(id *Identity, signer ssh.Signer) {
	id.pub = signer.PublicKey()
	id.algos = s.r.SignatureAlgorithms(id.pub)
	id.sign = func(_ context.Context, data []byte, algo string) (*ssh.Signature, error) {
		return signWithAlgorithm(signer, data, algo)
	}
}

// unlocked is the key of a file whose passphrase has been given before; nil if it has not.
func (s *Set) unlocked(path string) (ssh.Signer, error) {
	text, ok := s.asker.Credentials.Key(path)
	if !ok {
		return nil, nil
	}
	defer clear(text)
	signer, err := ssh.ParsePrivateKey(text)
	if err != nil {
		return nil, errors.New("the key remembered for it is damaged")
	}
	return signer, nil
}

// unlock asks for a passphrase, once for all who share the credentials, and remembers the key.
func (s *Set) unlock(ctx context.Context, path string) (ssh.Signer, error) {
	done, err := s.asker.Turn(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	if signer, err := s.unlocked(path); err != nil || signer != nil {
		return signer, err // another connection has asked meanwhile
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("identity %s: %w", path, err)
	}
	defer clear(data)
	prompt := fmt.Sprintf("Enter passphrase for key '%s': ", path)
	for range s.r.NumberOfPasswordPrompts {
		phrase, err := s.asker.Secret(ctx, prompt)
		if err != nil || phrase == "" {
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			return nil, fmt.Errorf("identity %s: no passphrase given", path)
		}
		raw, err := ssh.ParseRawPrivateKeyWithPassphrase(data, []byte(phrase))
		if err != nil {
			prompt = fmt.Sprintf("Bad passphrase, try again for '%s': ", path)
			continue
		}
		signer, err := ssh.NewSignerFromKey(raw)
		if err != nil {
			return nil, fmt.Errorf("identity %s: not a kind of key this client can use", path)
		}
		s.remember(path, raw)
		return signer, nil
	}
	return nil, fmt.Errorf("identity %s: wrong passphrase", path)
}

func (s *Set) remember(path string, raw any) {
	if k, ok := raw.(*ed25519.PrivateKey); ok {
		raw = *k
	}
	if block, err := ssh.MarshalPrivateKey(raw, ""); err == nil {
		text := pem.EncodeToMemory(block)
		s.asker.Credentials.SetKey(path, text)
		clear(text)
		clear(block.Bytes)
	}
	policy := s.r.AddKeysToAgent
	socket := agentSocket(s.r, s.asker.Credentials)
	if !policy.Add || socket == "" {
		return
	}
	conn, err := net.Dial("unix", socket)
	if err != nil {
		return // a convenience: the key works without
	}
	defer conn.Close()
	err = agent.NewClient(conn).Add(agent.AddedKey{PrivateKey: raw, Comment: path,
		LifetimeSecs: uint32(policy.Lifetime.Seconds()), ConfirmBeforeUse: policy.Confirm})
	if err != nil {
		s.asker.Notice("The agent did not take %s.", path)
	}
}

func signWithAlgorithm(s ssh.Signer, data []byte, algo string) (*ssh.Signature, error) {
	if as, ok := s.(ssh.AlgorithmSigner); ok {
		return as.SignWithAlgorithm(nil, data, algo)
	}
	return s.Sign(nil, data)
}

func samePublicKey(a, b ssh.PublicKey) bool {
	return a != nil && b != nil && bytes.Equal(a.Marshal(), b.Marshal())
}

func readPublicKey(path string) (ssh.PublicKey, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	pub, _, _, _, err := ssh.ParseAuthorizedKey(data)
	return pub, err
}

func readCertificate(path string) (*ssh.Certificate, error) {
	pub, err := readPublicKey(path)
	if err != nil {
		return nil, err
	}
	cert, ok := pub.(*ssh.Certificate)
	if !ok || cert.CertType != ssh.UserCert {
		return nil, errors.New("not a user certificate")
	}
	return cert, nil
}

// checkPrivate refuses a private key that others can read, as ssh does.
func checkPrivate(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok && int(st.Uid) == os.Getuid() && info.Mode().Perm()&0o077 != 0 {
		return fmt.Errorf("permissions %04o are too open: others could read it (chmod 600)", info.Mode().Perm())
	}
	return nil
}

// reason strips the path that an error repeats.
func reason(err error) error {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		return pe.Err
	}
	return err
}
