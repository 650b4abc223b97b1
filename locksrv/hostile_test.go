package locksrv

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"
	"unsafe"

	gliderssh "github.com/gliderlabs/ssh"
	"golang.org/x/crypto/ssh"
)

// shiftingName is a user name that changes while a client that was given it
// goes on using it: the one thing x/crypto's client cannot be asked to do.
// The string's bytes are ours, so all copies of the string change with them.
type shiftingName struct{ bytes []byte }

func newShiftingName(first string) *shiftingName { return &shiftingName{[]byte(first)} }

func (n *shiftingName) String() string { return unsafe.String(&n.bytes[0], len(n.bytes)) }

func (n *shiftingName) become(name string) {
	if len(name) != len(n.bytes) {
		panic("names of different length")
	}
	copy(n.bytes, name)
}

// shiftingSigner is a key that is offered under a user name of its own.
type shiftingSigner struct {
	ssh.Signer
	name *shiftingName
	as   string
}

func (s shiftingSigner) PublicKey() ssh.PublicKey {
	s.name.become(s.as)
	return s.Signer.PublicKey()
}

func newSigner(t testing.TB) ssh.Signer {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := ssh.NewSignerFromKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return signer
}

// Offer is one key and the name it is offered under.
type Offer struct {
	Name string
	Key  ssh.Signer
}

// shiftingKey is a public key that turns into another after it was asked for.
type shiftingKey struct {
	ssh.PublicKey // that signs
	asked         ssh.PublicKey
	marshalled    int
}

func (k *shiftingKey) Marshal() []byte {
	// Once for the question, once to compare the answer with it.
	if k.marshalled++; k.marshalled <= 2 {
		return k.asked.Marshal()
	}
	return k.PublicKey.Marshal()
}

type shiftingKeySigner struct {
	ssh.Signer
	key ssh.PublicKey
}

func (s shiftingKeySigner) PublicKey() ssh.PublicKey { return s.key }

// Shifting asks the server about one key and signs with another: all that
// somebody can do who knows only the public half of the first.
func Shifting(asked, signs ssh.Signer) ssh.Signer {
	return shiftingKeySigner{signs, &shiftingKey{PublicKey: signs.PublicKey(), asked: asked.PublicKey()}}
}

// RunAs logs in by offering keys one after the other, each under a name of
// its own, after a first request without any, and runs a command.
func RunAs(addr, first string, offers []Offer, command string) (stdout, stderr string, err error) {
	name := newShiftingName(first)
	var signers []ssh.Signer
	for _, o := range offers {
		signers = append(signers, shiftingSigner{o.Key, name, o.Name})
	}
	config := &ssh.ClientConfig{
		User:            name.String(),
		HostKeyCallback: ssh.InsecureIgnoreHostKey(),
		Timeout:         time.Minute,
	}
	if len(signers) > 0 {
		config.Auth = []ssh.AuthMethod{ssh.PublicKeys(signers...)}
	}
	return runOver(addr, config, command)
}

func runOver(addr string, config *ssh.ClientConfig, command string) (stdout, stderr string, err error) {
	client, err := ssh.Dial("tcp", addr, config)
	if err != nil {
		return "", "", err
	}
	defer client.Close()
	session, err := client.NewSession()
	if err != nil {
		return "", "", err
	}
	var out, errs bytes.Buffer
	session.Stdout, session.Stderr = &out, &errs
	err = session.Run(command)
	return out.String(), errs.String(), err
}

// naiveServer is gliderlabs/ssh as its documentation suggests.
func naiveServer(t *testing.T, set func(*gliderssh.Server)) string {
	t.Helper()
	srv := &gliderssh.Server{Handler: func(s gliderssh.Session) {
		fmt.Fprintf(s, "session user=%s", s.User())
	}}
	set(srv)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go srv.Serve(ln)
	t.Cleanup(func() { srv.Close() })
	return ln.Addr().String()
}

// The attacks work on a naive server: so the tests below, in which they do
// not, show something.
func TestHolesAreReal(t *testing.T) {
	carol, junk := newSigner(t), newSigner(t)
	addr := naiveServer(t, func(srv *gliderssh.Server) {
		srv.PublicKeyHandler = func(ctx gliderssh.Context, key gliderssh.PublicKey) bool {
			return ctx.User() == "carol" && gliderssh.KeysEqual(key, carol.PublicKey())
		}
	})
	// Carol, with no key but her own, is let in as alice.
	out, _, err := RunAs(addr, "carol", []Offer{{"carol", junk}, {"alice", carol}}, "x")
	if err != nil || out != "session user=alice" {
		t.Errorf("hole 1: got %q, %v; want a session as alice", out, err)
	}
	if _, _, err := RunAs(addr, "alice", []Offer{{"alice", carol}}, "x"); err == nil {
		t.Errorf("without the change of name: got in; so the attack shows nothing")
	}

	// Carol, with her own password and the public half of alice's key, has a
	// session that says the key was alice's.
	alice := newSigner(t)
	addr = naiveServer(t, func(srv *gliderssh.Server) {
		srv.PublicKeyHandler = func(gliderssh.Context, gliderssh.PublicKey) bool { return true }
		srv.PasswordHandler = func(ctx gliderssh.Context, password string) bool { return password == "carol's secret" }
		srv.Handler = func(s gliderssh.Session) {
			if gliderssh.KeysEqual(s.PublicKey(), alice.PublicKey()) {
				fmt.Fprint(s, "alice's key")
			}
		}
	})
	out, _, err = OfferThenPassword(addr, "carol", "carol", ssh.Password("carol's secret"), "x", alice.PublicKey())
	if err != nil || out != "alice's key" {
		t.Errorf("offered key, then a password: got %q, %v; want a session with alice's key", out, err)
	}
	// And a password handler that is told the first name lets carol in as alice.
	addr = naiveServer(t, func(srv *gliderssh.Server) {
		srv.PublicKeyHandler = func(gliderssh.Context, gliderssh.PublicKey) bool { return true }
		srv.PasswordHandler = func(ctx gliderssh.Context, password string) bool {
			return ctx.User() == "carol" && password == "carol's secret"
		}
	})
	out, _, err = OfferThenPassword(addr, "carol", "alice", ssh.Password("carol's secret"), "x", alice.PublicKey())
	if err != nil || out != "session user=alice" {
		t.Errorf("password under another name: got %q, %v; want a session as alice", out, err)
	}

	addr = naiveServer(t, func(srv *gliderssh.Server) {
		srv.ServerConfigCallback = func(gliderssh.Context) *ssh.ServerConfig {
			return &ssh.ServerConfig{PublicKeyCallback: func(ssh.ConnMetadata, ssh.PublicKey) (*ssh.Permissions, error) {
				return nil, io.EOF // nobody
			}}
		}
	})
	out, _, err = RunAs(addr, "alice", nil, "x")
	if err != nil || !strings.Contains(out, "alice") {
		t.Errorf("hole 2: got %q, %v; want a session as alice", out, err)
	}
}

// OfferThenPassword is a client that asks the server about keys of which it
// has the public half only, under name, and then gives a password.
func OfferThenPassword(addr string, name, passwordName string, password ssh.AuthMethod, command string, asked ...ssh.PublicKey) (stdout, stderr string, err error) {
	shifting := newShiftingName(name)
	var signers []ssh.Signer
	for _, k := range asked {
		signers = append(signers, unsigning{k, func() { shifting.become(passwordName) }})
	}
	config := &ssh.ClientConfig{User: shifting.String(), HostKeyCallback: ssh.InsecureIgnoreHostKey(), Timeout: time.Minute,
		// Each key a method of its own: the client gives up a method whose signer fails.
		AuthCallback: func(*ssh.ClientAuthContext) (ssh.AuthMethod, error) {
			if len(signers) > 0 {
				s := signers[0]
				signers = signers[1:]
				return ssh.PublicKeys(s), nil
			}
			m := password
			password = nil
			return m, nil
		}}
	return runOver(addr, config, command)
}

// unsigning is the public half of a key.
type unsigning struct {
	key   ssh.PublicKey
	asked func()
}

func (u unsigning) PublicKey() ssh.PublicKey { return u.key }
func (u unsigning) Sign(io.Reader, []byte) (*ssh.Signature, error) {
	u.asked()
	return nil, errors.New("no private half")
}

// AddVerb adds a verb to the table until the returned function is called.
func AddVerb(name string, run func(ctx context.Context, begin func(context.Context) (context.Context, error), stdin io.Reader, stdout io.Writer) error) (remove func()) {
	table = append(table, verb{name, "", func(*words) runner {
		return func(ctx context.Context, c *call, stdin io.Reader, stdout io.Writer) error {
			return run(ctx, c.begin, stdin, stdout)
		}
	}})
	return func() { table = table[:len(table)-1] }
}
