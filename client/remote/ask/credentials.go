package ask

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
)

// Credentials is what a person was asked for, so that a process without a terminal can connect again: the agent's
// socket, keys that needed a passphrase, passwords, and host keys that were accepted (known_hosts may not keep them). Give an
// empty one to whoever dials and it is filled; give it, or its JSON, to another process and dialling there asks nothing.
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
		c.SetAgent(other.agent)
	}
	return nil
}

// Password is the password that is held for a destination.
func (c *Credentials) Password(destination string) ([]byte, bool) {
	return c.get(&c.password, destination)
}

// SetPassword holds a password for a destination.
func (c *Credentials) SetPassword(destination string, password []byte) {
	c.put(&c.password, destination, password)
}

// DropPassword forgets it.
func (c *Credentials) DropPassword(destination string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	clear(c.password[destination])
	delete(c.password, destination)
}

// Key is the private key, PEM, of a file whose passphrase was given. It is the caller's to clear.
func (c *Credentials) Key(file string) ([]byte, bool) { return c.get(&c.keys, file) }

// SetKey holds the private key of a file, unlocked.
func (c *Credentials) SetKey(file string, key []byte) { c.put(&c.keys, file, key) }

// HostKey is the key, wire format, that a host was accepted with.
func (c *Credentials) HostKey(name string) ([]byte, bool) { return c.get(&c.hostKeys, name) }

// SetHostKey holds the key that a host was accepted with.
func (c *Credentials) SetHostKey(name string, key []byte) { c.put(&c.hostKeys, name, key) }

// Agent is the socket of the agent that was used first; "" is none.
func (c *Credentials) Agent() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.agent
}

// SetAgent remembers the agent's socket, unless one is known.
func (c *Credentials) SetAgent(socket string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.agent == "" {
		c.agent = socket
	}
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
