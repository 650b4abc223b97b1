// Package remote reaches the lock server: it dials, authenticates and checks host keys.
//
// It promises that what works with ssh works here: ssh_config (Host, Match, Include, tokens), the agent, key files and
// certificates, passphrases, passwords, jump hosts and proxy commands, known hosts. A host key that changed is never
// accepted quietly; a secret is never part of an error, and never written to disk. A failure to connect is one of
// ErrUnreachable (asking again may help), knownhosts.ErrHostKey, identity.ErrAuth and sshconf.ErrConfig, or the context's.
//
// It does not forward agents, ports or X11, does not share ControlMaster sockets, does not compress, does not
// canonicalise host names, knows no GSSAPI, host-based authentication or PKCS#11, and uses security keys only through
// an agent. Settings about these are ignored.
package remote

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/ssh"

	"isr/client/remote/ask"
	"isr/client/remote/identity"
	"isr/client/remote/knownhosts"
	"isr/client/remote/sshconf"
)

// Dial connects and logs in. The client stays connected until it is closed or the link is found dead
// (silent for ServerAliveInterval, and after ServerAliveCountMax probes); then all its calls fail. Closing it
// closes what it was reached through. ctx ends dialling and logging in, not the connection.
//
// p is asked for what is missing; nil, or batch mode, asks nothing. c may be nil; what it holds is used first, and what
// p answered is put into it.
func Dial(ctx context.Context, t sshconf.Target, p ask.Prompter, c *ask.Credentials) (*ssh.Client, error) {
	if c == nil {
		c = new(ask.Credentials)
		defer c.Zero()
	}
	return dialHop(ctx, t, p, c, 0, nil)
}

// dialHop is Dial at some depth of jump hosts. tap, if not nil, may put
// something between the byte stream and the login.
func dialHop(ctx context.Context, t sshconf.Target, p ask.Prompter, c *ask.Credentials, depth int, tap func(net.Conn) net.Conn) (*ssh.Client, error) {
	r, err := sshconf.Resolve(t)
	if err != nil {
		return nil, err
	}
	if depth > sshconf.MaxHops {
		return nil, fmt.Errorf("%w: host %s: more than %d jump hosts, or a loop of them", sshconf.ErrConfig, t.Host, sshconf.MaxHops)
	}
	if r.BatchMode {
		p = nil
	}
	d := &dialer{target: t, r: &r, asker: &ask.Asker{Prompter: p, Credentials: c}, depth: depth, tap: tap}
	for _, n := range r.Notices {
		d.asker.Notice("%s", n)
	}
	for attempt := 1; ; attempt++ {
		client, err := d.dial(ctx)
		if err == nil || attempt >= r.ConnectionAttempts || !errors.Is(err, ErrUnreachable) || ctx.Err() != nil {
			return client, err
		}
		select {
		case <-time.After(time.Second):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

type dialer struct {
	target sshconf.Target
	r      *sshconf.Resolved
	asker  *ask.Asker
	depth  int
	tap    func(net.Conn) net.Conn
}

// route is a byte stream to the server, and what must be ended with it.
type route struct {
	net.Conn
	addr  string        // of the other end; "" behind a proxy
	end   func()        // nil: nothing but Conn
	cause func() string // why the stream ended, if the route knows; nil: it does not
}

func (d *dialer) dial(ctx context.Context) (*ssh.Client, error) {
	rt, err := d.connect(ctx)
	if err != nil {
		if ctx.Err() != nil && errors.Is(err, ErrUnreachable) {
			err = fmt.Errorf("connect to %s: %w", d.r.Destination(), ctx.Err())
		}
		return nil, err
	}
	if d.tap != nil {
		rt.Conn = d.tap(rt.Conn)
	}
	client, err := d.login(ctx, rt)
	if err != nil {
		rt.Conn.Close()
		if rt.end != nil {
			rt.end()
		}
		return nil, err
	}
	if rt.end != nil {
		go func() {
			client.Wait()
			rt.end()
		}()
	}
	return client, nil
}

// patience closes a connection that lets time pass without getting on. It stands still while a person is asked.
type patience struct {
	mu      sync.Mutex
	limit   time.Duration
	timer   *time.Timer
	paused  int
	expired atomic.Bool
}

func newPatience(limit time.Duration, conn net.Conn) *patience {
	w := &patience{limit: limit}
	w.timer = time.AfterFunc(limit, func() {
		w.expired.Store(true)
		conn.Close()
	})
	return w
}

func (w *patience) pause() (resume func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.paused++
	w.timer.Stop()
	return func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.paused--; w.paused == 0 && !w.expired.Load() {
			w.timer.Reset(w.limit)
		}
	}
}

// stop ends it for good; false if it was too late.
func (w *patience) stop() bool {
	w.pause()
	return !w.expired.Load()
}

// watched remembers when the peer was last heard, and whether it has ended the stream.
type watched struct {
	net.Conn
	heard atomic.Int64 // nanoseconds since start
	start time.Time
	ended atomic.Pointer[error]
	ack   func() // nil: not a TCP connection
}

func (w *watched) Read(b []byte) (int, error) {
	n, err := w.Conn.Read(b)
	if n > 0 {
		w.heard.Store(int64(time.Since(w.start)))
		if n < len(b) && w.ack != nil {
			w.ack()
		}
	}
	if err != nil {
		w.ended.CompareAndSwap(nil, &err)
	}
	return n, err
}

func (w *watched) silence() time.Duration {
	return time.Since(w.start) - time.Duration(w.heard.Load())
}

// login does the key exchange and the authentication over rt.
func (d *dialer) login(ctx context.Context, rt *route) (*ssh.Client, error) {
	r := d.r
	conn := &watched{Conn: rt.Conn, start: time.Now(), ack: acknowledger(rt.Conn)}
	clock := newPatience(r.ConnectTimeout, conn)
	defer clock.stop()
	defer context.AfterFunc(ctx, func() { conn.Close() })()

	loginAsker := &ask.Asker{Prompter: d.asker.Prompter, Credentials: d.asker.Credentials, Clock: clock.pause}
	host := &knownhosts.Checker{Config: r, Asker: loginAsker, Addr: rt.addr}
	algorithms, err := host.Algorithms()
	if err != nil {
		return nil, err
	}
	auth := &authenticator{d: d, asker: loginAsker, conn: conn, host: host, ctx: ctx}
	var hostErr error
	config := &ssh.ClientConfig{
		User:              r.User,
		HostKeyAlgorithms: algorithms,
		HostKeyCallback: func(_ string, remote net.Addr, key ssh.PublicKey) error {
			hostErr = host.Check(ctx, remote, key)
			return hostErr
		},
		BannerCallback: func(text string) error {
			if text = ask.Printable(text); text != "" {
				d.asker.Notice("%s", text)
			}
			return nil
		},
		AuthCallback: auth.next,
	}
	config.KeyExchanges, config.Ciphers, config.MACs = r.KexAlgorithms, r.Ciphers, r.MACs

	sc, chans, reqs, err := ssh.NewClientConn(conn, r.Address(), config)
	if err == nil && !clock.stop() {
		sc.Close()
		err = errors.New("timed out")
	}
	if err != nil {
		return nil, d.explain(ctx, err, hostErr, auth, clock, rt)
	}
	auth.succeeded()
	client := ssh.NewClient(sc, chans, reqs)
	if r.ServerAliveInterval > 0 && r.ServerAliveCountMax > 0 {
		go keepAlive(client, conn, r.ServerAliveInterval, r.ServerAliveCountMax)
	}
	return client, nil
}

// explain sorts a failed login into the errors of this package.
func (d *dialer) explain(ctx context.Context, err, hostErr error, auth *authenticator, clock *patience, rt *route) error {
	where := d.r.Destination()
	var negotiation *ssh.AlgorithmNegotiationError
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("connect to %s: %w", where, ctx.Err())
	case clock.expired.Load():
		return fmt.Errorf("connect to %s: %w: no answer within %v", where, ErrUnreachable, d.r.ConnectTimeout)
	case hostErr != nil:
		return hostErr
	case errors.As(err, &negotiation):
		return fmt.Errorf("%w: connect to %s: %w", sshconf.ErrConfig, where, err)
	case auth.started && auth.refused(err):
		return auth.failure(err)
	}
	if rt.cause != nil {
		if why := rt.cause(); why != "" {
			return fmt.Errorf("connect to %s: %w: %w (%s)", where, ErrUnreachable, err, why)
		}
	}
	return fmt.Errorf("connect to %s: %w: %w", where, ErrUnreachable, err)
}

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
			return nil, fmt.Errorf("%w: %w: %w", errLost, errWaited, *end)
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
	errLost   = errors.New("connection lost during authentication")
	errWaited = errors.New("the server did not wait for an answer")
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

// keepAlive probes a server that has been silent for an interval, and closes the connection when it is still silent an
// interval after count probes. Whatever arrives is a sign of life: on a slow link the answer to a probe may stand behind
// megabytes of data. Silence is counted in intervals that this process has lived through, so that being stopped or
// suspended is not taken for the server's silence.
func keepAlive(client *ssh.Client, conn *watched, interval time.Duration, count int) {
	done := make(chan struct{})
	go func() {
		client.Wait()
		close(done)
	}()
	probing := make(chan struct{}, 1) // holds a token while a probe is on its way
	timer := time.NewTimer(interval)
	defer timer.Stop()
	unanswered := 0
	last := conn.heard.Load()
	for {
		select {
		case <-done:
			return
		case <-timer.C:
		}
		if heard := conn.heard.Load(); heard != last {
			last, unanswered = heard, 0
			if wait := interval - conn.silence(); wait > 0 {
				timer.Reset(wait)
				continue
			}
		}
		if unanswered++; unanswered > count {
			client.Close()
			return
		}
		timer.Reset(interval)
		select {
		case probing <- struct{}{}:
			go func() {
				client.SendRequest("keepalive@openssh.com", true, nil)
				<-probing
			}()
		default:
		}
	}
}
