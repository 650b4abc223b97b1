package remote

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"

	"isr/client/remote/sshconf"
)

// Prompter asks the person in front. Both methods may block for as long as that takes; io.EOF, or any other error,
// means no answer. A Prompter that also implements Notifier is told what is worth knowing.
type Prompter interface {
	Secret(prompt string) (string, error)
	Confirm(prompt string) (bool, error)
}

// Notifier shows a line that needs no answer: a server's banner, a host key added, a setting skipped.
type Notifier interface {
	Notice(text string)
}

// Credentials is what a person was asked for, so that a process without a terminal can connect again: the agent's
// socket, keys that needed a passphrase, passwords, and host keys that were accepted (known_hosts may not keep them). Give an
// empty one to Dial and it is filled; give it, or its JSON, to another process and Dial there asks nothing.
//
// It is secret whole: it may go through a pipe to a process of the same user, never to a disk. Printing it prints nothing.
// All methods may be called at the same time; copies must not be made.
type Credentials struct {
	mu       sync.Mutex
	asking   chan struct{}   // holds a token while a question is open: one at a time, whoever dials
	shown    map[string]bool // notices given: several connections say the same things
	agent    string
	keys     map[string][]byte // path of the key file → the private key, PEM, without passphrase
	password map[string][]byte // destination → password
	hostKeys map[string][]byte // known name → host key, wire format
}

type credentialsJSON struct {
	Agent     string            `json:"agent,omitempty"`
	Keys      map[string][]byte `json:"keys,omitempty"`
	Passwords map[string][]byte `json:"passwords,omitempty"`
	HostKeys  map[string][]byte `json:"hostKeys,omitempty"`
}

// MarshalJSON gives the snapshot, secrets in clear.
func (c *Credentials) MarshalJSON() ([]byte, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return json.Marshal(credentialsJSON{c.agent, c.keys, c.password, c.hostKeys})
}

// UnmarshalJSON replaces what c holds.
func (c *Credentials) UnmarshalJSON(b []byte) error {
	var j credentialsJSON
	if err := json.Unmarshal(b, &j); err != nil {
		return errors.New("credentials: not the JSON of credentials") // the cause may quote the input
	}
	c.Zero()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.agent, c.keys, c.password, c.hostKeys = j.Agent, j.Keys, j.Passwords, j.HostKeys
	return nil
}

// Add takes what the JSON of other credentials holds; where both hold
// something, the other's.
func (c *Credentials) Add(b []byte) error {
	var other Credentials
	if err := other.UnmarshalJSON(b); err != nil {
		return err
	}
	defer other.Zero()
	for k, v := range other.keys {
		c.put(&c.keys, k, v)
	}
	for k, v := range other.password {
		c.put(&c.password, k, v)
	}
	for k, v := range other.hostKeys {
		c.put(&c.hostKeys, k, v)
	}
	if other.agent != "" {
		c.rememberAgent(other.agent)
	}
	return nil
}

// Password is the password that is held for a destination; nil if none is.
func (c *Credentials) Password(destination string) []byte {
	p, _ := c.get(&c.password, destination)
	return p
}

// SetPassword holds a password for a destination.
func (c *Credentials) SetPassword(destination string, password []byte) {
	c.put(&c.password, destination, password)
}

// Zero overwrites every secret and forgets everything. What was handed to the SSH library or is inside a Prompter's
// strings is beyond its reach.
func (c *Credentials) Zero() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, m := range []map[string][]byte{c.keys, c.password} {
		for _, b := range m {
			clear(b)
		}
	}
	c.agent, c.keys, c.password, c.hostKeys = "", nil, nil, nil
}

// Empty tells whether nothing has been filled in.
func (c *Credentials) Empty() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.agent == "" && len(c.keys)+len(c.password)+len(c.hostKeys) == 0
}

const redacted = "credentials(not shown)"

func (c *Credentials) String() string             { return redacted }
func (c *Credentials) GoString() string           { return redacted }
func (c *Credentials) LogValue() slog.Value       { return slog.StringValue(redacted) }
func (c *Credentials) Format(f fmt.State, _ rune) { io.WriteString(f, redacted) }

func (c *Credentials) get(m *map[string][]byte, key string) ([]byte, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	b, ok := (*m)[key]
	return append([]byte(nil), b...), ok
}

func (c *Credentials) put(m *map[string][]byte, key string, b []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if *m == nil {
		*m = map[string][]byte{}
	}
	clear((*m)[key])
	(*m)[key] = append([]byte(nil), b...)
}

func (c *Credentials) drop(m *map[string][]byte, key string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	clear((*m)[key])
	delete(*m, key)
}

// agentSocket is where the agent is: as configured, else as remembered; "" is none.
func (c *Credentials) agentSocket(r *sshconf.Resolved) string {
	if r.IdentityAgent != "" || r.NoAgent {
		return r.IdentityAgent
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.agent
}

func (c *Credentials) rememberAgent(socket string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.agent == "" {
		c.agent = socket
	}
}

// asker puts questions to the person, one at a time over all dials that share credentials, and gives up waiting when
// the context ends. The clock of the connection stands still meanwhile.
type asker struct {
	prompter Prompter // nil: nobody to ask
	creds    *Credentials
	pause    func() (resume func())
	asked    atomic.Bool // a question was put
}

// errNobody: there is nobody to ask, or no answer came.
var errNobody = errors.New("no answer")

func (a *asker) present() bool { return a.prompter != nil }

func (a *asker) secret(ctx context.Context, prompt string) (string, error) {
	return ask(ctx, a, func(p Prompter) (string, error) { return p.Secret(prompt) })
}

func (a *asker) confirm(ctx context.Context, prompt string) (bool, error) {
	yes, err := ask(ctx, a, func(p Prompter) (bool, error) { return p.Confirm(prompt) })
	if errors.Is(err, io.EOF) {
		return false, nil
	}
	return yes, err
}

// turn waits until nobody else is being asked. What was to be asked may have been answered meanwhile.
func (a *asker) turn(ctx context.Context) (done func(), err error) {
	resume := func() {}
	if a.pause != nil {
		resume = a.pause()
	}
	c := a.creds
	c.mu.Lock()
	if c.asking == nil {
		c.asking = make(chan struct{}, 1)
	}
	asking := c.asking
	c.mu.Unlock()
	select {
	case asking <- struct{}{}:
		return func() { <-asking; resume() }, nil
	case <-ctx.Done():
		resume()
		return nil, ctx.Err()
	}
}

// notice shows a text, once for all who share the credentials.
func (a *asker) notice(format string, args ...any) {
	n, ok := a.prompter.(Notifier)
	if !ok {
		return
	}
	text := fmt.Sprintf(format, args...)
	a.creds.mu.Lock()
	again := a.creds.shown[text]
	if a.creds.shown == nil {
		a.creds.shown = map[string]bool{}
	}
	a.creds.shown[text] = true
	a.creds.mu.Unlock()
	if !again {
		n.Notice(text)
	}
}

func ask[T any](ctx context.Context, a *asker, question func(Prompter) (T, error)) (T, error) {
	type answer struct {
		v   T
		err error
	}
	var none T
	if !a.present() {
		return none, errNobody
	}
	if a.pause != nil {
		defer a.pause()()
	}
	a.asked.Store(true)
	ch := make(chan answer, 1)
	go func() { // a Prompter cannot be interrupted: it is left behind when the context ends
		v, err := question(a.prompter)
		ch <- answer{v, err}
	}()
	select {
	case got := <-ch:
		return got.v, got.err
	case <-ctx.Done():
		return none, ctx.Err()
	}
}
