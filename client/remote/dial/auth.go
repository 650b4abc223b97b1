package dial

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/crypto/ssh"

	"isr/client/remote/ask"
	"isr/client/remote/identity"
	"isr/client/remote/knownhosts"
)

// authenticator chooses what to try next: the methods in the order preferred, one key at a time, so that a key whose
// passphrase is not given, or that the agent refuses to use, does not keep the others from being tried.
type authenticator struct {
	d     *dialer
	asker *ask.Asker
	conn  *watched
	host  *knownhosts.Checker
	ctx   context.Context

	started    bool
	keys       *identity.Set
	attempts   map[string]int // by method, of those that need a person
	partial    int            // methods that were accepted, but not enough
	allowed    []string
	tried      []attempt
	lastSecret []byte // the password that is being tried, if the person has just typed it
	fromStore  bool
	aborted    error
}

func (a *authenticator) next(c *ssh.ClientAuthContext) (ssh.AuthMethod, error) {
	a.started = true
	a.allowed = c.AllowedMethods
	if end := a.conn.ended.Load(); end != nil {
		if a.asker.Asked() {
			return nil, fmt.Errorf("%w: %w: %w", errLost, ErrLate, *end)
		}
		return nil, fmt.Errorf("%w: %w", errLost, *end)
	}
	if a.ctx.Err() != nil {
		return nil, a.ctx.Err()
	}
	if a.attempts == nil {
		a.attempts = map[string]int{}
	}
	a.forgetRejected(c)
	r := a.d.r
	for _, method := range r.PreferredAuthentications {
		if !slices.Contains(c.AllowedMethods, method) {
			continue
		}
		switch method {
		case "publickey":
			if m := a.nextKey(); m != nil {
				return m, nil
			}
		case "keyboard-interactive":
			if r.KbdInteractive && a.mayAsk(method) {
				a.tried = append(a.tried, attempt{what: method})
				return ssh.KeyboardInteractive(a.answer), nil
			}
		case "password":
			if r.PasswordAuthentication && a.mayAsk(method) {
				a.tried = append(a.tried, attempt{what: method})
				return ssh.PasswordCallback(func() (string, error) { return a.password(fmt.Sprintf("%s@%s's password: ", r.User, r.HostName)) }), nil
			}
		}
		if a.ctx.Err() != nil {
			return nil, a.ctx.Err()
		}
	}
	return nil, nil
}

func (a *authenticator) nextKey() ssh.AuthMethod {
	r := a.d.r
	if !r.PubkeyAuthentication {
		return nil
	}
	if a.keys == nil {
		a.keys = identity.Collect(a.ctx, r, a.asker)
	}
	id := a.keys.Next()
	if id == nil {
		return nil
	}
	a.tried = append(a.tried, attempt{id.Title(), id})
	return ssh.PublicKeys(id)
}

// attempt is a way to log in that was tried.
type attempt struct {
	what string
	key  *identity.Identity // nil: not a key
}

// mayAsk counts the attempts of a method that needs a person, or a password remembered.
func (a *authenticator) mayAsk(method string) bool {
	if a.host.Degraded || a.aborted != nil {
		return false
	}
	_, stored := a.asker.Credentials.Password(a.d.r.Destination())
	if !stored && !a.asker.Present() {
		return false
	}
	a.attempts[method]++
	return a.attempts[method] <= a.d.r.NumberOfPasswordPrompts
}

// forgetRejected drops a remembered password that the server has just refused.
func (a *authenticator) forgetRejected(c *ssh.ClientAuthContext) {
	if a.lastSecret == nil {
		return
	}
	if n := len(c.PartialSuccessMethods); n > a.partial {
		a.partial = n
		a.keepSecret()
		return
	}
	if a.fromStore {
		a.asker.Credentials.DropPassword(a.d.r.Destination())
	}
	clear(a.lastSecret)
	a.lastSecret, a.fromStore = nil, false
}

func (a *authenticator) keepSecret() {
	if a.lastSecret != nil {
		a.asker.Credentials.SetPassword(a.d.r.Destination(), a.lastSecret)
		clear(a.lastSecret)
		a.lastSecret = nil
	}
}

// succeeded keeps the password that has worked.
func (a *authenticator) succeeded() { a.keepSecret() }

// password gives the one remembered, else the one typed.
func (a *authenticator) password(prompt string) (string, error) {
	c := a.asker.Credentials
	key := a.d.r.Destination()
	if b, ok := c.Password(key); ok {
		a.lastSecret, a.fromStore = b, true
		return string(b), nil
	}
	done, err := a.asker.Turn(a.ctx)
	if err != nil {
		return "", err
	}
	defer done()
	if b, ok := c.Password(key); ok { // typed meanwhile, for another connection
		a.lastSecret, a.fromStore = b, true
		return string(b), nil
	}
	s, err := a.asker.Secret(a.ctx, prompt)
	if err != nil {
		return "", a.abort()
	}
	a.lastSecret, a.fromStore = []byte(s), false
	return s, nil
}

// answer answers keyboard-interactive: one hidden question is the password, anything else is asked each time.
func (a *authenticator) answer(name, instruction string, questions []string, echos []bool) ([]string, error) {
	r := a.d.r
	for _, text := range []string{name, instruction} {
		if text = ask.Printable(text); text != "" {
			a.asker.Notice("%s", text)
		}
	}
	answers := make([]string, len(questions))
	for i, q := range questions {
		prompt := fmt.Sprintf("(%s@%s) %s", r.User, r.HostName, ask.Printable(q))
		var err error
		if len(questions) == 1 && !echos[0] && strings.Contains(strings.ToLower(q), "password") {
			answers[i], err = a.password(prompt)
		} else {
			answers[i], err = a.question(prompt)
		}
		if err != nil {
			return nil, a.abort()
		}
	}
	return answers, nil
}

func (a *authenticator) question(prompt string) (string, error) {
	done, err := a.asker.Turn(a.ctx)
	if err != nil {
		return "", err
	}
	defer done()
	return a.asker.Secret(a.ctx, prompt)
}

// abort: a person who gives no answer is not asked again.
func (a *authenticator) abort() error {
	if a.asker.Present() {
		a.aborted = ask.ErrNoAnswer
	}
	return ask.ErrNoAnswer
}

var (
	errLost = errors.New("connection lost during authentication")
)

// refused tells a server's refusal from a connection that broke.
func (a *authenticator) refused(err error) bool {
	if errors.Is(err, errLost) {
		return false
	}
	if errors.Is(err, identity.ErrUnused) || errors.Is(err, ask.ErrNoAnswer) {
		return true
	}
	// The library has no types for these.
	text := err.Error()
	return strings.Contains(text, "ssh: unable to authenticate") || strings.Contains(text, "no common public key signature algorithm") ||
		strings.Contains(text, "ssh: disconnect, reason 14:") || strings.Contains(text, "authentication failures")
}

func (a *authenticator) failure(err error) error {
	e := &identity.AuthError{Destination: a.d.r.Destination(), Allowed: a.allowed}
	for _, t := range a.tried {
		if t.key == nil || !t.key.Unused() {
			e.Tried = append(e.Tried, t.what)
		}
	}
	if a.keys != nil {
		e.Skipped = a.keys.Skipped()
	}
	if a.host.Degraded {
		e.Skipped = append(e.Skipped, "passwords (the host key is wrong)")
	}
	if strings.Contains(err.Error(), "ssh: disconnect") {
		e.Cause = err
	}
	if a.aborted != nil {
		e.Cause = a.aborted
	}
	return e
}
