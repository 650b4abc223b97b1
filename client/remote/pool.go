package remote

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pkg/sftp"
	"golang.org/x/crypto/ssh"
	"golang.org/x/time/rate"

	"isr/client/remote/dial"
)

// tap is the byte stream of a connection: it counts, bounds the rate, and
// remembers when the server was last heard.
type tap struct {
	net.Conn
	s      *Server
	urgent atomic.Bool  // demand: it draws on the limit before others do
	heard  atomic.Int64 // when the server was last heard, nanoseconds after start
	wall   atomic.Int64 // the same by the wall clock, which goes on while the host sleeps
	start  time.Time
}

// advance is how far demand may draw on the limit before it has to wait too.
const advance = 250 * time.Millisecond

func (t *tap) hold(l *rate.Limiter, n int) {
	if l == nil || n <= 0 {
		return
	}
	for n > 0 {
		part := min(n, l.Burst())
		d := l.ReserveN(time.Now(), part).Delay()
		if t.urgent.Load() {
			d -= advance
		}
		if d > 0 {
			timer := time.NewTimer(d)
			select {
			case <-timer.C:
			case <-t.s.life.Done():
				timer.Stop()
				return
			}
		}
		n -= part
	}
}

func (t *tap) Read(p []byte) (int, error) {
	l := t.s.down.Load()
	if l != nil {
		p = p[:min(len(p), l.Burst())]
	}
	n, err := t.Conn.Read(p)
	t.s.in.Add(int64(n))
	if n > 0 {
		t.hear()
	}
	t.hold(l, n)
	return n, err
}

func (t *tap) Write(p []byte) (int, error) {
	l := t.s.up.Load()
	done := 0
	for {
		part := p[done:]
		if l != nil {
			part = part[:min(len(part), l.Burst())]
			t.hold(l, len(part))
		}
		n, err := t.Conn.Write(part)
		t.s.out.Add(int64(n))
		done += n
		if err != nil || done == len(p) {
			return done, err
		}
	}
}

func (t *tap) hear() {
	now := time.Now()
	t.heard.Store(int64(now.Sub(t.start)))
	t.wall.Store(now.UnixNano())
}

// silence is how long nothing was heard.
func (t *tap) silence() time.Duration {
	return time.Since(t.start) - time.Duration(t.heard.Load())
}

// conn is one connection.
type conn struct {
	s      *Server
	client *ssh.Client
	tap    *tap

	gone   chan struct{} // closed when it is lost
	cause  error         // set before gone is closed
	pinged chan struct{} // closed when the round trip was measured, or could not be

	mu     sync.Mutex
	failed error
	busy   int           // things under way
	limit  time.Duration // of silence while busy, before a probe
	mark   int64         // tap.heard when it became busy
	watch  *time.Timer
	files  *openSFTP
}

// dialSSH is Dial with a tap on the byte stream, or the way of another process
// that has logged in.
func (s *Server) dialSSH(ctx context.Context, alone bool, tapped func(*tap)) (*conn, error) {
	var t *tap
	tapping := func(nc net.Conn) net.Conn {
		t = &tap{Conn: nc, s: s, start: time.Now()}
		t.hear()
		tapped(t)
		return t
	}
	if s.via != nil {
		client, err := s.dialVia(ctx, alone, tapping)
		if err == nil {
			return s.newConn(client, t), nil
		}
		if !errors.Is(err, ErrNoWay) {
			return nil, err
		}
	}
	client, err := dial.Tapped(ctx, s.target, s.prompter, s.creds, tapping)
	if err != nil {
		return nil, err
	}
	return s.newConn(client, t), nil
}

func (s *Server) dialVia(ctx context.Context, alone bool, tapping func(net.Conn) net.Conn) (*ssh.Client, error) {
	nc, hostKey, err := s.via(ctx, alone)
	if err != nil {
		return nil, err
	}
	defer context.AfterFunc(ctx, func() { nc.Close() })()
	sc, chans, reqs, err := ssh.NewClientConn(tapping(nc), "", &ssh.ClientConfig{User: "isr", HostKeyCallback: ssh.FixedHostKey(hostKey)})
	if err != nil {
		nc.Close()
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, fmt.Errorf("%w: %w", ErrNoWay, err)
	}
	return ssh.NewClient(sc, chans, reqs), nil
}

func (s *Server) newConn(client *ssh.Client, t *tap) *conn {
	c := &conn{s: s, client: client, tap: t, gone: make(chan struct{}), pinged: make(chan struct{})}
	go func() {
		err := client.Wait()
		c.mu.Lock()
		if c.failed != nil {
			err = c.failed
		}
		if c.watch != nil {
			c.watch.Stop()
		}
		c.mu.Unlock()
		if err == nil {
			err = errClosed
		}
		c.cause = err
		close(c.gone)
	}()
	go c.ping()
	return c
}

// ping measures the round trip.
func (c *conn) ping() {
	defer close(c.pinged)
	for range 2 {
		began := time.Now()
		if _, _, err := c.client.SendRequest("keepalive@openssh.com", true, nil); err != nil {
			return
		}
		c.s.sawRTT(time.Since(began))
	}
}

// lost is the error of what was under way when err happened on c: that of the
// connection, if it is gone. Then, too, the next get makes a new one.
func (c *conn) lost(err error) error {
	// What was under way may hear of it a moment before we do.
	t := time.NewTimer(100 * time.Millisecond)
	defer t.Stop()
	select {
	case <-c.gone:
		err = c.cause
	case <-t.C:
	}
	return c.s.lost(err)
}

// begin says that something is under way, of which the server must be heard
// sooner or later. Call end when it is over.
func (c *conn) begin() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.busy++; c.busy > 1 {
		return
	}
	// A connection not used for long may be one of before the host slept or
	// changed its network. Someone waits: find out sooner.
	c.limit = c.s.stall
	if time.Now().UnixNano()-c.tap.wall.Load() > int64(3*c.s.stall) {
		c.limit = c.s.stall / 4
	}
	// What was heard before does not count for or against it.
	c.tap.hear()
	c.mark = c.tap.heard.Load()
	if c.watch == nil {
		c.watch = time.AfterFunc(c.limit, c.look)
	} else {
		c.watch.Reset(c.limit)
	}
}

func (c *conn) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.busy--; c.busy == 0 {
		c.watch.Stop()
	}
}

// look probes a connection that is silent, and gives it up if it stays so.
func (c *conn) look() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.busy == 0 || c.failed != nil {
		return
	}
	if c.tap.heard.Load() != c.mark {
		c.limit = c.s.stall
	}
	switch silence := c.tap.silence(); {
	case silence < c.limit:
		c.watch.Reset(c.limit - silence)
	case silence < 2*c.limit:
		// The answer is as good as any other sign of life.
		go c.client.SendRequest("keepalive@openssh.com", true, nil)
		c.watch.Reset(2*c.limit - silence)
	default:
		c.failed = fmt.Errorf("nothing heard for %v", silence.Round(time.Second/10))
		go c.client.Close()
	}
}

// putPacket is the largest SFTP packet we send, bytes: a sealed chunk of
// 128 KiB goes in one, so that the server hashes it as it comes, and for two
// fifths less system time than in packets of 32 KiB. More than 256 KiB pkg/sftp
// and OpenSSH refuse.
const putPacket = 192 << 10

// sftp is the connection's SFTP client, opened once for all who want it.
func (c *conn) sftp(ctx context.Context) (*sftp.Client, error) {
	c.mu.Lock()
	o := c.files
	if o == nil {
		o = &openSFTP{done: make(chan struct{})}
		c.files = o
		go c.openSFTP(o)
	}
	c.mu.Unlock()
	select {
	case <-o.done:
		return o.client, o.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

type openSFTP struct {
	done   chan struct{} // closed when client and err are set
	client *sftp.Client
	err    error
}

func (c *conn) openSFTP(o *openSFTP) {
	c.begin()
	o.client, o.err = sftp.NewClient(c.client, sftp.UseConcurrentWrites(true), sftp.MaxPacketUnchecked(putPacket))
	c.end()
	if o.err != nil {
		o.err = c.refused(fmt.Errorf("sftp: %w", o.err))
		c.forgetSFTP(o)
	}
	close(o.done)
	if o.err == nil {
		o.client.Wait()
		c.forgetSFTP(o)
	}
}

func (c *conn) forgetSFTP(o *openSFTP) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.files == o {
		c.files = nil
	}
}

// link is the place of one connection, made when it is needed.
type link struct {
	s    *Server
	keep bool // do not close it for being idle

	mu      sync.Mutex
	conn    *conn
	dialing *dialing
	before  bool // it was connected once
	users   int
	idle    *time.Timer
	closed  bool
	failed  error     // of the last attempt, for
	until   time.Time // if there are other connections to use
}

// idleTime is how long a connection for bulk work outlives it.
const idleTime = 30 * time.Second

type dialing struct {
	done    chan struct{} // closed when conn and err are set
	conn    *conn
	err     error
	waiting int
	cancel  context.CancelFunc
}

// live is the connection if there is one.
func (k *link) live() *conn {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.liveLocked()
}

func (k *link) liveLocked() *conn {
	if k.conn != nil {
		select {
		case <-k.conn.gone:
			k.conn = nil
		default:
		}
	}
	return k.conn
}

// get is the connection, made if there is none. Everyone who asks meanwhile
// waits for the same attempt; it ends when nobody does any more.
func (k *link) get(ctx context.Context) (*conn, error) {
	k.mu.Lock()
	if c := k.liveLocked(); c != nil {
		k.mu.Unlock()
		return c, nil
	}
	if k.closed {
		k.mu.Unlock()
		return nil, k.s.lost(errClosed)
	}
	d := k.dialing
	if d == nil {
		d = &dialing{done: make(chan struct{})}
		k.dialing = d
		dctx := k.s.life
		if k.before && k.s.prompter == nil { // a person takes longer
			dctx, d.cancel = context.WithTimeout(dctx, redialTime)
		} else {
			dctx, d.cancel = context.WithCancel(dctx)
		}
		go k.dial(dctx, d)
	}
	d.waiting++
	k.mu.Unlock()
	defer func() {
		k.mu.Lock()
		defer k.mu.Unlock()
		if d.waiting--; d.waiting == 0 {
			if k.dialing == d {
				k.dialing = nil
			}
			d.cancel()
		}
	}()
	select {
	case <-d.done:
		return d.conn, d.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (k *link) dial(ctx context.Context, d *dialing) {
	c, err := k.s.dial(ctx, k != k.s.main, func(t *tap) { t.urgent.Store(k == k.s.demand) })
	k.mu.Lock()
	defer k.mu.Unlock()
	if err == nil && (k.closed || k.dialing != d) {
		c.client.Close() // nobody waits for it
		err = errClosed
	}
	if err == nil {
		k.conn, k.before, k.failed, d.conn = c, true, nil, c
	} else if errors.Is(err, errClosed) || k.closed {
		d.err = k.s.lost(errClosed)
	} else {
		d.err = k.s.sorted(err)
		k.failed, k.until = d.err, time.Now().Add(openPause)
	}
	if k.dialing == d {
		k.dialing = nil
	}
	close(d.done)
}

// extra is the connection, or at once an error if it could not be had lately:
// there are others to use.
func (k *link) extra(ctx context.Context) (*conn, error) {
	k.mu.Lock()
	if k.liveLocked() == nil && k.failed != nil && time.Now().Before(k.until) {
		defer k.mu.Unlock()
		return nil, k.failed
	}
	k.mu.Unlock()
	return k.get(ctx)
}

// use keeps the connection from being closed for idleness until unuse.
func (k *link) use() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.users++
	if k.idle != nil {
		k.idle.Stop()
		k.idle = nil
	}
}

func (k *link) unuse() {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.users--; k.users == 0 && !k.keep && !k.closed {
		k.idle = time.AfterFunc(idleTime, k.hangUp)
	}
}

// hangUp closes a connection that nobody uses.
func (k *link) hangUp() {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.users == 0 && k.conn != nil {
		k.conn.client.Close()
		k.conn = nil
	}
}

func (k *link) close() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.closed = true
	if k.idle != nil {
		k.idle.Stop()
	}
	if k.conn != nil {
		k.conn.client.Close()
		k.conn = nil
	}
}
