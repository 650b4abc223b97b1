package remote

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"strings"
	"syscall"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"

	"isr/client/remote/ask"
	"isr/client/remote/sshconf"
)

// identity is one way to sign: a key of the agent, or of a file, perhaps still locked. It is an ssh.Signer that asks
// for the passphrase when it must sign, which is after the server has said that it would take the key.
type identity struct {
	name  string // for people: path, or the agent's comment
	agent bool
	pub   ssh.PublicKey // nil: not known before the file is unlocked
	algos []string      // signature algorithms in order of preference
	note  string        // why it cannot sign, when it cannot
	sign  func(ctx context.Context, data []byte, algo string) (*ssh.Signature, error)
	open  func(ctx context.Context) (ssh.PublicKey, error) // unlocks, when pub is nil

	ctx context.Context // of the dial that offers it
}

func (id *identity) PublicKey() ssh.PublicKey { return id.pub }
func (id *identity) Algorithms() []string     { return id.algos }
func (id *identity) String() string           { return id.name }

func (id *identity) Sign(_ io.Reader, data []byte) (*ssh.Signature, error) {
	return id.sign(id.ctx, data, id.algos[0])
}

func (id *identity) SignWithAlgorithm(_ io.Reader, data []byte, algo string) (*ssh.Signature, error) {
	return id.sign(id.ctx, data, algo)
}

const noPrivate = "only its public half is here, and the agent does not hold it"

// skipped is an identity that cannot be tried, and why.
type skipped struct {
	name string
	why  string
}

// identities collects the identities of one target.
type identities struct {
	r       *sshconf.Resolved
	asker   *ask.Asker
	list    []*identity
	skipped []skipped
}

func (s *identities) skip(name, format string, args ...any) {
	s.skipped = append(s.skipped, skipped{name, fmt.Sprintf(format, args...)})
}

// collect puts the identities in the order in which ssh tries them: named certificates, keys that the agent holds and
// the configuration names, the agent's other keys (unless IdentitiesOnly), keys of files with their certificates.
func collect(ctx context.Context, r *sshconf.Resolved, a *ask.Asker) *identities {
	s := &identities{r: r, asker: a}
	var files []*identity
	for _, path := range r.IdentityFiles {
		id, err := s.file(ctx, path)
		if err != nil {
			if r.IdentitiesNamed || !errors.Is(err, fs.ErrNotExist) {
				s.skip(path, "%v", reason(err))
			}
			continue
		}
		files = append(files, id)
	}
	held := s.agentKeys(ctx)

	// signerFor finds who can sign for a certificate's key.
	signerFor := func(pub ssh.PublicKey) *identity {
		for _, list := range [][]*identity{held, files} {
			for _, id := range list {
				if id.sign != nil && samePublicKey(id.pub, pub) {
					return id
				}
			}
		}
		return nil
	}
	certify := func(path string, named bool) *identity {
		cert, err := readCertificate(path)
		if err != nil {
			if named || !errors.Is(err, fs.ErrNotExist) {
				s.skip(path, "%v", reason(err))
			}
			return nil
		}
		owner := signerFor(cert.Key)
		if owner == nil {
			s.skip(path, "no private key for this certificate")
			return nil
		}
		return &identity{name: path, agent: owner.agent, pub: cert, algos: r.SignatureAlgorithms(cert), sign: owner.sign}
	}
	add := func(id *identity) {
		if id == nil || id.sign == nil {
			return
		}
		if id.pub != nil && len(id.algos) == 0 {
			s.skip(id.name, "%s: not among PubkeyAcceptedAlgorithms", id.pub.Type())
			return
		}
		if id.pub != nil {
			for _, have := range s.list {
				if samePublicKey(have.pub, id.pub) {
					return
				}
			}
		}
		id.ctx = ctx
		s.list = append(s.list, id)
	}

	for _, path := range r.CertificateFiles {
		add(certify(path, true))
	}
	var others []*identity
	for _, h := range held {
		named := false
		for _, f := range files {
			named = named || samePublicKey(f.pub, h.pub)
		}
		if named {
			add(h)
		} else if !r.IdentitiesOnly {
			others = append(others, h)
		}
	}
	for _, h := range others {
		add(h)
	}
	for _, f := range files {
		if f.sign == nil && signerFor(f.pub) == nil {
			s.skip(f.name, "%s", f.note)
		}
		add(f)
		if len(r.CertificateFiles) == 0 {
			add(certify(strings.TrimSuffix(f.name, ".pub")+"-cert.pub", false))
		}
	}
	return s
}

// file reads the public half of a key file and arranges for the private one. A locked key is asked for only if
// somebody is there to answer, or its passphrase was given before.
func (s *identities) file(ctx context.Context, path string) (*identity, error) {
	id := &identity{name: path}
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

func (s *identities) signWith(id *identity, signer ssh.Signer) {
	id.pub = signer.PublicKey()
	id.algos = s.r.SignatureAlgorithms(id.pub)
	id.sign = func(_ context.Context, data []byte, algo string) (*ssh.Signature, error) {
		return signWithAlgorithm(signer, data, algo)
	}
}

// unlocked is the key of a file whose passphrase has been given before; nil if it has not.
func (s *identities) unlocked(path string) (ssh.Signer, error) {
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
func (s *identities) unlock(ctx context.Context, path string) (ssh.Signer, error) {
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

func (s *identities) remember(path string, raw any) {
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

// agentSocket is where the agent is: as configured, else as remembered; "" is none.
func agentSocket(r *sshconf.Resolved, c *ask.Credentials) string {
	if r.IdentityAgent != "" || r.NoAgent {
		return r.IdentityAgent
	}
	return c.Agent()
}

// agentPatience is how long an agent may take to list its keys, which asks nobody.
const agentPatience = 10 * time.Second

// agentKeys lists what the agent holds. A missing agent is no error: files remain.
func (s *identities) agentKeys(ctx context.Context) []*identity {
	socket := agentSocket(s.r, s.asker.Credentials)
	if socket == "" {
		return nil
	}
	var keys []*agent.Key
	soon, cancel := context.WithTimeout(ctx, agentPatience)
	defer cancel()
	err := withAgent(soon, socket, func(a agent.ExtendedAgent) (err error) {
		keys, err = a.List()
		return err
	})
	if err != nil {
		s.skip("agent "+socket, "%v", reason(err))
		return nil
	}
	var out []*identity
	for _, k := range keys {
		pub, err := ssh.ParsePublicKey(k.Blob)
		if err != nil {
			s.skip("agent key "+k.Comment, "not a kind of key this client can use")
			continue
		}
		if cert, ok := pub.(*ssh.Certificate); ok && cert.CertType != ssh.UserCert {
			continue
		}
		out = append(out, &identity{
			name: k.Comment, agent: true, pub: pub,
			algos: s.r.SignatureAlgorithms(pub),
			sign: func(ctx context.Context, data []byte, algo string) (sig *ssh.Signature, err error) {
				flags := map[string]agent.SignatureFlags{
					ssh.KeyAlgoRSASHA256: agent.SignatureFlagRsaSha256, ssh.KeyAlgoRSASHA512: agent.SignatureFlagRsaSha512}[algo]
				// An agent that wants a touch or a confirmation keeps the person busy, not the line.
				defer s.asker.Hold()()
				err = withAgent(ctx, socket, func(a agent.ExtendedAgent) error {
					sig, err = a.SignWithFlags(pub, data, flags)
					return err
				})
				return sig, err
			},
		})
	}
	return out
}

// withAgent talks to the agent over a connection of its own, so that signers outlive whoever listed them.
func withAgent(ctx context.Context, socket string, do func(agent.ExtendedAgent) error) error {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", socket)
	if err != nil {
		return err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	err = do(agent.NewClient(conn))
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return err
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

// Signers gives the user's signers in the order ssh would offer them: those of the agent that the configuration names,
// the agent's others, then key files. A locked key asks for its passphrase when it signs, once per Credentials; without a
// Prompter (or in batch mode) locked keys are left out. Signing uses ctx. Each signer's String method names its key. An
// error wraps sshconf.ErrConfig, or ErrAuth when there is no signer at all.
func Signers(ctx context.Context, t sshconf.Target, p ask.Prompter, c *ask.Credentials) ([]ssh.Signer, error) {
	r, err := sshconf.Resolve(t)
	if err != nil {
		return nil, err
	}
	if c == nil {
		c = new(ask.Credentials)
	}
	if r.BatchMode {
		p = nil
	}
	s := collect(ctx, &r, &ask.Asker{Prompter: p, Credentials: c})
	var out []ssh.Signer
	for _, id := range s.list {
		if id.pub == nil {
			if _, err := id.open(ctx); err != nil {
				if ctx.Err() != nil {
					return nil, ctx.Err()
				}
				s.skip(id.name, "%v", err)
				continue
			}
		}
		out = append(out, id)
	}
	if len(out) == 0 {
		return nil, &AuthError{Destination: r.Destination(), Skipped: describe(s.skipped)}
	}
	return out, nil
}
