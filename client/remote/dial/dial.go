// Package dial connects to an SSH server and logs in, as ssh would.
//
// It promises that what works with ssh works here: what ssh_config says, the agent, key files and certificates,
// passphrases, passwords, jump hosts and proxy commands, known hosts. A secret is never part of an error, and never
// written to disk. A failure to connect is one of ErrUnreachable (asking again may help), knownhosts.ErrHostKey,
// identity.ErrAuth and sshconf.ErrConfig, or the context's. What is closed leaves no process, goroutine or descriptor
// behind.
//
// It does not forward agents, ports or X11, does not share ControlMaster sockets, does not compress, and knows no
// GSSAPI or host-based authentication. Settings about these are ignored.
package dial

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/ssh"

	"isr/client/remote/ask"
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
	return hop(ctx, t, p, c, 0, nil)
}

// Tapped is Dial with something between the byte stream and the login: what tap makes of the stream. c is not nil.
func Tapped(ctx context.Context, t sshconf.Target, p ask.Prompter, c *ask.Credentials, tap func(net.Conn) net.Conn) (*ssh.Client, error) {
	return hop(ctx, t, p, c, 0, tap)
}

// hop is Dial at some depth of jump hosts.
func hop(ctx context.Context, t sshconf.Target, p ask.Prompter, c *ask.Credentials, depth int, tap func(net.Conn) net.Conn) (*ssh.Client, error) {
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
