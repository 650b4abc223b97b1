// Package identity is who we are to a server: the keys of the agent and of files, with their certificates, in the
// order in which ssh would try them.
//
// It promises that a key which cannot be used (locked with nobody to ask, readable by others, refused by the agent)
// does not keep the others from being tried, and that its reason can be shown; that a passphrase is asked for when
// the key must sign, which is after the server has said that it would take it, and once for all who share
// credentials; and that signing ends with its context.
//
// It does not know PKCS#11, uses security keys only through an agent, and does not send anything to a server.
package identity

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"

	"golang.org/x/crypto/ssh"

	"isr/client/remote/ask"
	"isr/client/remote/sshconf"
)

// Identity is one way to sign: a key of the agent, or of a file, perhaps still locked. It is an ssh.Signer that asks
// for the passphrase when it must sign, which is after the server has said that it would take the key.
type Identity struct {
	name  string // for people: path, or the agent's comment
	agent bool
	pub   ssh.PublicKey // nil: not known before the file is unlocked
	algos []string      // signature algorithms in order of preference
	note  string        // why it cannot sign, when it cannot
	sign  func(ctx context.Context, data []byte, algo string) (*ssh.Signature, error)
	open  func(ctx context.Context) (ssh.PublicKey, error) // unlocks, when pub is nil

	ctx    context.Context // of the dial that offers it
	unused bool            // it would not sign
}

// PublicKey is the key or certificate to offer.
func (id *Identity) PublicKey() ssh.PublicKey { return id.pub }

// Algorithms are those it may sign with, best first.
func (id *Identity) Algorithms() []string { return id.algos }

// String is the path of its file, or the agent's comment.
func (id *Identity) String() string { return id.name }

// Title is its name with what it is, for a list of what was tried.
func (id *Identity) Title() string {
	if id.agent {
		return "key " + id.name + " of the agent"
	}
	return "key " + id.name
}

// Unused reports whether it would not sign when Next had given it: the Set's Skipped say why.
func (id *Identity) Unused() bool { return id.unused }

// Sign signs with the best algorithm; it may ask for a passphrase.
func (id *Identity) Sign(_ io.Reader, data []byte) (*ssh.Signature, error) {
	return id.sign(id.ctx, data, id.algos[0])
}

// SignWithAlgorithm is Sign with an algorithm of those.
func (id *Identity) SignWithAlgorithm(_ io.Reader, data []byte, algo string) (*ssh.Signature, error) {
	return id.sign(id.ctx, data, algo)
}

const noPrivate = "only its public half is here, and the agent does not hold it"

// skipped is an identity that cannot be tried, and why.
type skipped struct {
	name string
	why  string
}

// Set is the identities of one target, in the order in which ssh tries them. It is used by one dial.
type Set struct {
	r       *sshconf.Resolved
	asker   *ask.Asker
	list    []*Identity
	next    int
	skipped []skipped
}

func (s *Set) skip(name, format string, args ...any) {
	s.skipped = append(s.skipped, skipped{name, fmt.Sprintf(format, args...)})
}

// Collect puts the identities in the order in which ssh tries them: named certificates, keys that the agent holds and
// the configuration names, the agent's other keys (unless IdentitiesOnly), keys of files with their certificates.
// It asks nobody; they sign as long as ctx lasts.
func Collect(ctx context.Context, r *sshconf.Resolved, a *ask.Asker) *Set {
	s := &Set{r: r, asker: a}
	var files []*Identity
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
	signerFor := func(pub ssh.PublicKey) *Identity {
		for _, list := range [][]*Identity{held, files} {
			for _, id := range list {
				if id.sign != nil && samePublicKey(id.pub, pub) {
					return id
				}
			}
		}
		return nil
	}
	certify := func(path string, named bool) *Identity {
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
		return &Identity{name: path, agent: owner.agent, pub: cert, algos: r.SignatureAlgorithms(cert), sign: owner.sign}
	}
	add := func(id *Identity) {
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
	var others []*Identity
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

// ErrUnused is in the error of an identity that would not sign: not the server's refusal.
var ErrUnused = errors.New("key not used")

// Next is the next identity to offer, unlocked if that must come first; nil when there are no more.
func (s *Set) Next() *Identity {
	for s.next < len(s.list) {
		id := s.list[s.next]
		s.next++
		if id.pub == nil {
			if _, err := id.open(id.ctx); err != nil {
				s.skip(id.name, "%v", err)
				continue
			}
			if len(id.algos) == 0 {
				s.skip(id.name, "%s: not among PubkeyAcceptedAlgorithms", id.pub.Type())
				continue
			}
		}
		if id.agent {
			s.asker.Credentials.SetAgent(agentSocket(s.r, s.asker.Credentials))
		}
		sign := id.sign
		id.sign = func(ctx context.Context, data []byte, algo string) (*ssh.Signature, error) {
			sig, err := sign(ctx, data, algo)
			if err != nil && ctx.Err() == nil {
				s.skip(id.name, "%v", reason(err))
				id.unused = true
				err = fmt.Errorf("%w: %w", ErrUnused, err)
			}
			return sig, err
		}
		return id
	}
	return nil
}

// Skipped is what could not be tried, and why.
func (s *Set) Skipped() []string {
	var out []string
	for _, k := range s.skipped {
		out = append(out, k.name+" ("+k.why+")")
	}
	return out
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
	s := Collect(ctx, &r, &ask.Asker{Prompter: p, Credentials: c})
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
		return nil, &AuthError{Destination: r.Destination(), Skipped: s.Skipped()}
	}
	return out, nil
}

// ErrAuth: the server did not accept who we are, or there is nobody to be. See AuthError.
var ErrAuth = errors.New("permission denied")

// AuthError tells what was tried to log in. It wraps ErrAuth.
type AuthError struct {
	Destination string
	Tried       []string // what the server refused, in order
	Skipped     []string // what could not be tried, and why
	Allowed     []string // the methods the server would take; nil: it never said
	Cause       error
}

func (e *AuthError) Unwrap() []error {
	if e.Cause != nil {
		return []error{ErrAuth, e.Cause}
	}
	return []error{ErrAuth}
}

func (e *AuthError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %v", e.Destination, ErrAuth)
	if len(e.Allowed) > 0 {
		fmt.Fprintf(&b, " (%s)", strings.Join(e.Allowed, ","))
	}
	if len(e.Tried) > 0 {
		fmt.Fprintf(&b, "; tried %s", strings.Join(e.Tried, ", "))
	} else {
		b.WriteString("; there was nothing to try")
	}
	if len(e.Skipped) > 0 {
		fmt.Fprintf(&b, "; not tried: %s", strings.Join(e.Skipped, ", "))
	}
	if e.Cause != nil {
		fmt.Fprintf(&b, ": %v", e.Cause)
	}
	b.WriteString("; ssh -v to the same host tells more")
	return b.String()
}
