package client

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/gofrs/flock"

	"isr/client/auth"
	"isr/client/remote/identity"
	"isr/client/remote/sshconf"
	"isr/client/wrap"
	"isr/store/atomicfile"
	"isr/store/parcel"
)

// authSuffix ends the names of the sockets of what isr auth leaves.
const authSuffix = ".auth"

// authSocket is where a login to dest is held. HOME decides which host one is,
// so the isr directory is part of the name. dest "*" is any.
func (c *Client) authSocket(dest string) (string, error) {
	base, err := runtimeBase()
	if err != nil {
		return "", err
	}
	short := func(s string) string {
		sum := sha256.Sum256([]byte(s))
		return hex.EncodeToString(sum[:6])
	}
	if dest != "*" {
		dest = short(dest)
	}
	return filepath.Join(base, short(c.Dir)+"-"+dest+authSuffix), nil
}

// held is the login that isr auth has left for t; nil if there is none. What
// it knows is known here from then on.
func (c *Client) held(t sshconf.Target) *auth.Held {
	dest, err := sshconf.Destination(t)
	if err != nil {
		return nil
	}
	h, known := c.logins[dest]
	if known {
		return h
	}
	if socket, err := c.authSocket(dest); err == nil {
		h = auth.Find(socket)
	}
	if h != nil {
		p, err := h.Credentials()
		if err == nil {
			err = c.creds.Add(p)
		}
		clear(p)
		if err != nil {
			h = nil
		}
	}
	if c.logins == nil {
		c.logins = make(map[string]*auth.Held)
	}
	c.logins[dest] = h
	return h
}

// Auth logs in to the default server and leaves the login to a process in the
// background, for so long. If one holds it already, that is said, and its time
// is set anew if extend is true.
func (c *Client) Auth(ctx context.Context, lifetime time.Duration, extend bool) (st auth.Status, already bool, err error) {
	t, err := c.target(c.Server, c.User)
	if err != nil {
		return st, false, err
	}
	dest, err := sshconf.Destination(t)
	if err != nil {
		return st, false, parcel.NewError(parcel.Usage, "%v", err)
	}
	socket, err := c.authSocket(dest)
	if err != nil {
		return st, false, err
	}
	if h := auth.Find(socket); h != nil {
		if extend {
			st, err = h.Extend(lifetime)
		} else {
			st, err = h.Status()
		}
		return st, true, err
	}
	st, err = auth.Start(ctx, []string{c.Program, "auth-keeper"}, t, socket, lifetime, c.Prompter)
	return st, false, err
}

// Deauth ends what Auth left for the default server, or for all servers of
// this host, and says how many there were.
func (c *Client) Deauth(all bool) (ended int, err error) {
	logins, err := c.authenticated(all)
	for _, h := range logins {
		if eerr := h.End(); eerr != nil {
			err = errors.Join(err, eerr)
			continue
		}
		ended++
	}
	return ended, err
}

// AuthStatus is how each login stands that is held for this host.
func (c *Client) AuthStatus() ([]auth.Status, error) {
	logins, err := c.authenticated(true)
	all := []auth.Status{}
	for _, h := range logins {
		if st, err := h.Status(); err == nil { // else it has just ended
			all = append(all, st)
		}
	}
	return all, err
}

func (c *Client) authenticated(all bool) ([]*auth.Held, error) {
	dest := "*"
	if !all {
		t, err := c.target(c.Server, c.User)
		if err == nil {
			dest, err = sshconf.Destination(t)
		}
		if err != nil {
			return nil, err
		}
	}
	socket, err := c.authSocket(dest)
	if err != nil {
		return nil, err
	}
	return auth.FindAll(socket), nil
}

// newKey makes a checkout's key and the record that protects it at rest: by
// the user's SSH keys, or if none of them can, by the password that has let us
// in to the server.
func (c *Client) newKey(ctx context.Context, t sshconf.Target) (record []byte, err error) {
	signers, err := c.signers(ctx, t)
	if err == nil {
		_, record, err = wrap.New(signers)
	}
	if err == nil || !errors.Is(err, wrap.ErrNoSigner) && !errors.Is(err, identity.ErrAuth) {
		return record, err
	}
	dest, derr := sshconf.Destination(t)
	if derr != nil {
		return nil, derr
	}
	password, _ := c.creds.Password(dest)
	if password == nil {
		return nil, wrap.ErrNoSigner
	}
	defer clear(password)
	_, record, err = wrap.NewWithPassword(password)
	return record, err
}

// maxTries is how often a password is asked for that does not open a checkout.
const maxTries = 3

// openKey gives back the key that record protects.
func (c *Client) openKey(ctx context.Context, t sshconf.Target, record []byte) ([]byte, error) {
	if !wrap.ByPassword(record) {
		signers, err := c.signers(ctx, t)
		if err != nil {
			return nil, err
		}
		return wrap.Open(record, signers)
	}
	c.held(t)
	dest, err := sshconf.Destination(t)
	if err != nil {
		return nil, err
	}
	if p, held := c.creds.Password(dest); held {
		defer clear(p)
		key, err := wrap.OpenWithPassword(record, p)
		if err == nil || !errors.Is(err, wrap.ErrPassword) {
			return key, err
		}
	}
	for range maxTries {
		p, err := c.askSecret(ctx, fmt.Sprintf("ISR password of %s, which protects the checkout here: ", dest))
		if err != nil {
			return nil, err
		}
		key, err := wrap.OpenWithPassword(record, p)
		if err == nil {
			c.creds.SetPassword(dest, p)
		}
		clear(p)
		if err == nil || !errors.Is(err, wrap.ErrPassword) {
			return key, err
		}
	}
	return nil, wrap.ErrPassword
}

// askSecret asks the person in front, if there is one, for as long as ctx
// lasts.
func (c *Client) askSecret(ctx context.Context, prompt string) ([]byte, error) {
	none := parcel.NewError(parcel.Denied, "password: nobody gives one").
		WithHint("it is asked for on the terminal; isr auth asks once for many commands")
	if c.Prompter == nil || c.Batch {
		return nil, none
	}
	type given struct {
		p   string
		err error
	}
	ch := make(chan given, 1)
	go func() { // it cannot be interrupted: it is left behind
		p, err := c.Prompter.Secret(prompt)
		ch <- given{p, err}
	}()
	select {
	case g := <-ch:
		if g.err != nil {
			return nil, none
		}
		return []byte(g.p), nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Passwd changes the ISR password on the server, and lets the checkouts of
// this host that the old one opens be opened by the new one. Until the server
// has answered either opens them, so that it may be killed at any instant and
// run again. other is how many checkouts an older password protects.
func (c *Client) Passwd(ctx context.Context) (other int, err error) {
	srv, err := c.defaultServer()
	if err != nil {
		return 0, err
	}
	t, err := c.target(c.Server, c.User)
	if err != nil {
		return 0, err
	}
	dest, err := sshconf.Destination(t)
	if err != nil {
		return 0, err
	}
	var old, password []byte
	defer func() { clear(old); clear(password) }()
	has, err := srv.HasPassword(ctx)
	if err != nil {
		return 0, err
	}
	// Under OpenSSH the password of the login is the Unix account's, and this
	// one need not be the same: only a user of that very name has it.
	if login, _, other := strings.Cut(c.Server, "@"); has && (!other || login == c.User) {
		old, _ = c.creds.Password(dest)
	}
	if has && old == nil {
		if old, err = c.askSecret(ctx, "Old ISR password: "); err != nil {
			return 0, err
		}
	}
	if password, err = c.askSecret(ctx, "New ISR password: "); err != nil {
		return 0, err
	}
	if err := parcel.CheckPassword(password); err != nil {
		return 0, err
	}
	again, err := c.askSecret(ctx, "Again: ")
	defer clear(again)
	if err != nil {
		return 0, err
	}
	if !bytes.Equal(password, again) {
		return 0, parcel.NewError(parcel.Usage, "password: not twice the same")
	}

	// The directory's lock leaves no file behind.
	lock := flock.New(c.Dir, flock.SetFlag(os.O_RDONLY))
	if err := lock.Lock(); err != nil {
		return 0, fmt.Errorf("directory %s: %w", c.Dir, err)
	}
	defer lock.Close()
	rewrapped, other, err := c.rewrap(dest, old, password)
	if err != nil {
		return other, err
	}
	err = srv.Passwd(ctx, old, password)
	keep := password
	switch {
	case err == nil:
		c.creds.SetPassword(dest, password)
		if h := c.held(t); h != nil {
			c.teach(h)
		}
	case errors.Is(err, parcel.ErrDenied), errors.Is(err, parcel.ErrUsage):
		keep = old // it is as it was
	default:
		return other, err // not known: both open
	}
	for _, name := range rewrapped {
		if rerr := replaceRecord(name, func(r []byte) ([]byte, error) { return wrap.OnlyPassword(r, keep) }); rerr != nil && err == nil {
			err = rerr
		}
	}
	return other, err
}

// teach tells what isr auth left what this process knows now.
func (c *Client) teach(h *auth.Held) {
	p, err := json.Marshal(c.creds)
	if err == nil {
		err = h.Learn(p)
	}
	clear(p)
	if err != nil {
		c.UI.Warn("auth: it does not know the new password: %v", err)
	}
}

// rewrap lets every checkout from dest that old opens be opened by password
// too, and counts those that it does not open.
func (c *Client) rewrap(dest string, old, password []byte) (done []string, other int, err error) {
	all, err := c.Checkouts()
	if err != nil {
		return nil, 0, err
	}
	for _, co := range all {
		t, err := c.target(co.State.Server, co.State.User)
		if err != nil {
			continue
		}
		if d, err := sshconf.Destination(t); err != nil || d != dest {
			continue
		}
		name := co.path("keys", "keyroot")
		err = replaceRecord(name, func(r []byte) ([]byte, error) {
			if !wrap.ByPassword(r) {
				return nil, nil
			}
			key, err := wrap.OpenWithPassword(r, old)
			if errors.Is(err, wrap.ErrPassword) {
				other++
				return nil, nil
			}
			if err != nil {
				return nil, err
			}
			defer clear(key)
			done = append(done, name)
			return wrap.AddPassword(r, key, password)
		})
		if err != nil {
			return done, other, fmt.Errorf("parcel %s: %w", co.State.Parcel, err)
		}
	}
	return done, other, nil
}

// replaceRecord replaces a file by what change makes of it; nil: it stays.
func replaceRecord(name string, change func([]byte) ([]byte, error)) error {
	p, err := os.ReadFile(name)
	if errors.Is(err, os.ErrNotExist) {
		return nil // checked in meanwhile
	}
	if err != nil {
		return err
	}
	next, err := change(p)
	if err != nil || next == nil {
		return err
	}
	return atomicfile.Write(name, next, 0o600)
}
