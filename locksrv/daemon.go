package locksrv

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	gliderssh "github.com/gliderlabs/ssh"
	"golang.org/x/crypto/ssh"

	"isr/locksrv/proto"
	"isr/store/parcel"
)

// This is the one file that knows gliderlabs/ssh. Its version 0.3.8 lets one
// key log in as another user, and anybody in under some configurations, and a
// panic in a handler of it ends the whole server. So, here:
//
//   - PublicKeyHandler ignores every name and only says whether somebody owns
//     the key; nothing is remembered from it. Since it is set,
//     ServerConfigCallback cannot switch authentication off.
//   - Passwords do not go through the library, whose handlers are told the
//     first user name only, but through callbacks of our own that are told
//     the one the password came with. They are there only while some user has
//     a password, never for ServiceUser, and throttled.
//   - Who it is, is derived in the session, from what was proven: the key whose
//     signature was verified, or the password of exactly that name. Two
//     accounts of it must agree, ours and the permissions that the SSH library
//     kept of the last success. Refused if the user name changed on the way
//     (principal). So a victim's public key that was offered and not signed
//     with, before one's own password, is worth nothing.
//   - Handler is always set, and every callback and handler recovers.
//   - A channel passes on exec, subsystem and shell requests only: no pty, no
//     env, no agent; no other channel or global request has a handler.
//   - Handshake timeout, keep-alives, limits by address, user and connection.

// Daemon serves the verbs and SFTP over SSH on its own. The fields are set
// before Serve and not changed after.
type Daemon struct {
	*Service
	Log              *slog.Logger  // what happens, never a secret; nil: nowhere
	HostKeys         []ssh.Signer  // at least one
	Limits           Limits        // zero: the defaults
	HandshakeTimeout time.Duration // from connection to the first request for authentication; default 20 s
	LoginTimeout     time.Duration // from there to login: a person may be typing; default 2 min
	KeepAlive        time.Duration // a silent client is asked this often, and dropped after three silences; default 15 s
	Grace            time.Duration // how long Serve waits for what must finish; default 30 s

	users     counter
	addresses counter
	guesses   throttle

	mu        sync.Mutex
	stopping  bool
	finishing sync.WaitGroup // sessions that change the store, until they told; grows under mu
}

// maxAuthTries is how many keys a client may offer in vain: agents hold many.
const maxAuthTries = 12

// maxWrong is how many wrong passwords end a connection's guessing.
const maxWrong = 3

// conn is the state of one connection, from accept to close.
type conn struct {
	net.Conn // as the transport sees it: without deadlines

	mu       sync.Mutex
	names    int    // how many user names it used in a row
	name     string // the last
	proven   ssh.PublicKey
	password string // the user whose password was given
	owner    string // of proven, when a session asked last
	wrong    int    // passwords that were not
	sessions atomic.Int64
	keepOnce sync.Once
	begun    sync.Once // authentication
}

// The deadline of the handshake is the daemon's: the library would lift it at
// each read.
func (c *conn) SetDeadline(time.Time) error      { return nil }
func (c *conn) SetReadDeadline(time.Time) error  { return nil }
func (c *conn) SetWriteDeadline(time.Time) error { return nil }

// uses records the user name of a request for authentication.
func (c *conn) uses(name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.names == 0 || c.name != name {
		c.names++
		c.name = name
	}
}

// login is what was proven. key is the library's account of it, which may be
// a key that was only asked about; p that of the SSH library.
func (c *conn) login(sessionName, firstName string, key ssh.PublicKey, p *ssh.Permissions) login {
	c.uses(firstName)
	c.uses(sessionName)
	c.mu.Lock()
	defer c.mu.Unlock()
	l := login{name: sessionName, changed: c.names > 1}
	// Two accounts of one fact; a login in which they differ proves nothing.
	by := ""
	if p != nil {
		by = p.Extensions[provenBy]
	}
	if c.proven != nil && gliderssh.KeysEqual(key, c.proven) && by == byKey(key) {
		l.key = key
	}
	if c.password != "" && by == byPassword(c.password) {
		l.proven = c.password
	}
	return l
}

// provenBy names the permission that says what let a connection in: no client
// can set it.
const provenBy = "isr-proven-by"

func byKey(key ssh.PublicKey) string { return "key " + string(key.Marshal()) }
func byPassword(user string) string  { return "password " + user }
func permit(by string) *ssh.Permissions {
	return &ssh.Permissions{Extensions: map[string]string{provenBy: by}}
}

// connKey finds the conn in a connection's context.
type connKey struct{}

func connOf(ctx gliderssh.Context) *conn { return ctx.Value(connKey{}).(*conn) }

// Serve serves connections of ln until ctx is done. Then it stops accepting,
// lets what changes the store finish, for at most Grace, ends all else and
// returns nil. It owns ln, and is called once.
func (d *Daemon) Serve(ctx context.Context, ln net.Listener) error {
	defer ln.Close()
	if len(d.HostKeys) == 0 {
		return errors.New("daemon: no host key")
	}
	if d.Log == nil {
		d.Log = slog.New(slog.DiscardHandler)
	}
	verbs, cancelVerbs := context.WithCancel(context.WithoutCancel(ctx))
	defer cancelVerbs()
	server := d.server(verbs)

	var open sync.Map // conn → struct{}: all that are open
	var handlers sync.WaitGroup
	stop := context.AfterFunc(ctx, func() { ln.Close() })
	defer stop()
	var pause time.Duration
	var err error
	for {
		var nc net.Conn
		if nc, err = ln.Accept(); err != nil {
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				break
			}
			// Out of descriptors, most likely: others will end.
			pause = min(max(2*pause, 5*time.Millisecond), time.Second)
			d.Log.Error("accept", "error", err, "pause", pause)
			select {
			case <-time.After(pause):
			case <-ctx.Done():
			}
			continue
		}
		pause = 0
		leave, ok := d.addresses.enter(address(nc.RemoteAddr()), d.Limits.withDefaults().PerAddress, d.Limits.withDefaults().Connections)
		if !ok {
			d.Log.Warn("connection refused: too many", "from", nc.RemoteAddr())
			nc.Close()
			continue
		}
		c := &conn{Conn: nc}
		open.Store(c, nil)
		handlers.Go(func() {
			defer leave()
			defer open.Delete(c)
			defer nc.Close()
			defer d.recover("connection")
			nc.SetDeadline(time.Now().Add(orDefault(d.HandshakeTimeout, 20*time.Second)))
			server.HandleConn(c)
		})
	}
	if ctx.Err() == nil {
		d.Log.Error("listener", "error", err)
	}
	d.Log.Info("stopping")
	d.mu.Lock()
	d.stopping = true
	d.mu.Unlock()
	cancelVerbs()
	finished := make(chan struct{})
	go func() {
		defer close(finished)
		d.finishing.Wait()
	}()
	select {
	case <-finished:
	case <-time.After(orDefault(d.Grace, 30*time.Second)):
		d.Log.Error("stopping: a verb did not finish in time")
	}
	open.Range(func(c, _ any) bool { c.(*conn).Close(); return true })
	handlers.Wait()
	if ctx.Err() != nil {
		return nil
	}
	return fmt.Errorf("listener %s: %w", ln.Addr(), err)
}

func orDefault(d, value time.Duration) time.Duration {
	if d == 0 {
		return value
	}
	return d
}

// server sets up the library. verbs ends all verbs when it is done.
func (d *Daemon) server(verbs context.Context) *gliderssh.Server {
	server := &gliderssh.Server{
		Version: "isr-locksrv",
		Handler: func(s gliderssh.Session) { d.session(verbs, s, s.RawCommand()) },
		SubsystemHandlers: map[string]gliderssh.SubsystemHandler{
			"sftp": func(s gliderssh.Session) { d.session(verbs, s, sftpCommand) },
		},
		ChannelHandlers:  map[string]gliderssh.ChannelHandler{"session": d.channel},
		RequestHandlers:  map[string]gliderssh.RequestHandler{},
		PtyCallback:      func(gliderssh.Context, gliderssh.Pty) bool { return false },
		PublicKeyHandler: d.mayTry,
		ConnCallback: func(ctx gliderssh.Context, nc net.Conn) net.Conn {
			ctx.SetValue(connKey{}, nc)
			return nc
		},
		ServerConfigCallback: d.config,
		ConnectionFailedCallback: func(nc net.Conn, err error) {
			d.Log.Info("no login", "from", nc.RemoteAddr(), "error", err)
		},
	}
	for _, key := range d.HostKeys {
		server.AddHostKey(key)
	}
	return server
}

// mayTry says whether the key lets anybody in. It decides nothing else: a client
// may ask it about keys that are not its own.
func (d *Daemon) mayTry(ctx gliderssh.Context, key gliderssh.PublicKey) (ok bool) {
	defer d.recover("key")
	user, _, err := d.Store.UserOfKey(key, ip(ctx.RemoteAddr()))
	if err != nil && user != "" {
		d.Log.Warn("key refused", "user", user, "from", ctx.RemoteAddr(), "error", err)
	}
	return err == nil
}

// config completes the library's configuration of one connection.
func (d *Daemon) config(ctx gliderssh.Context) *ssh.ServerConfig {
	c := connOf(ctx)
	config := &ssh.ServerConfig{
		MaxAuthTries: maxAuthTries,
		VerifiedPublicKeyCallback: func(meta ssh.ConnMetadata, key ssh.PublicKey, _ *ssh.Permissions, _ string) (*ssh.Permissions, error) {
			c.uses(meta.User())
			c.mu.Lock()
			c.proven = key
			c.mu.Unlock()
			return permit(byKey(key)), nil
		},
		AuthLogCallback: func(meta ssh.ConnMetadata, method string, err error) {
			c.uses(meta.User())
			c.begun.Do(func() { c.Conn.SetDeadline(time.Now().Add(orDefault(d.LoginTimeout, 2*time.Minute))) })
			if err == nil {
				c.Conn.SetDeadline(time.Time{}) // the handshake is over
			}
		},
	}
	if d.Store.AnyPassword() {
		config.PasswordCallback = func(meta ssh.ConnMetadata, password []byte) (*ssh.Permissions, error) {
			return d.password(ctx, c, meta, password)
		}
		config.KeyboardInteractiveCallback = func(meta ssh.ConnMetadata, ask ssh.KeyboardInteractiveChallenge) (*ssh.Permissions, error) {
			answers, err := ask("", "", []string{"Password: "}, []bool{false})
			if err != nil {
				return nil, err
			}
			if len(answers) != 1 {
				return nil, errNoLogin
			}
			return d.password(ctx, c, meta, []byte(answers[0]))
		}
	}
	return config
}

// errNoLogin is all that a client hears.
var errNoLogin = errors.New("permission denied")

// password lets in whoever knows the password of the name it came with.
func (d *Daemon) password(ctx context.Context, c *conn, meta ssh.ConnMetadata, password []byte) (p *ssh.Permissions, err error) {
	err = errNoLogin
	defer d.recover("password")
	defer clear(password)
	user, from := meta.User(), address(meta.RemoteAddr())
	c.uses(user)
	c.mu.Lock()
	c.wrong++ // unless it is right
	wrong := c.wrong
	c.mu.Unlock()
	if wrong > maxWrong || user == ServiceUser {
		return nil, errNoLogin
	}
	wait, ok := d.guesses.guess(user, from)
	if !ok {
		d.Log.Warn("password not heard: too many were wrong", "name", user, "from", meta.RemoteAddr())
		return nil, errNoLogin
	}
	if wait > 0 {
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	if err := d.Store.CheckPassword(user, password); err != nil {
		d.Log.Warn("password refused", "name", user, "from", meta.RemoteAddr(), "error", err)
		return nil, errNoLogin
	}
	d.guesses.done(user, from)
	c.mu.Lock()
	c.password = user
	c.mu.Unlock()
	return permit(byPassword(user)), nil
}

// channel hands a session channel to the library without the requests that
// are not served.
func (d *Daemon) channel(srv *gliderssh.Server, sc *ssh.ServerConn, nc ssh.NewChannel, ctx gliderssh.Context) {
	defer d.recover("channel")
	c := connOf(ctx)
	c.keepOnce.Do(func() { go d.keepAlive(ctx, sc) })
	if max := d.Limits.withDefaults().PerConn; c.sessions.Add(1) > int64(max) {
		c.sessions.Add(-1)
		nc.Reject(ssh.ResourceShortage, fmt.Sprintf("%d sessions are the limit", max))
		return
	}
	defer c.sessions.Add(-1)
	gliderssh.DefaultSessionHandler(srv, sc, servedOnly{nc}, ctx)
}

type servedOnly struct{ ssh.NewChannel }

func (s servedOnly) Accept() (ssh.Channel, <-chan *ssh.Request, error) {
	ch, requests, err := s.NewChannel.Accept()
	if err != nil {
		return nil, nil, err
	}
	served := make(chan *ssh.Request)
	go func() {
		defer close(served)
		for r := range requests {
			switch r.Type {
			case "exec", "subsystem", "shell":
				served <- r
			default:
				r.Reply(false, nil)
			}
		}
	}()
	return ch, served, nil
}

// keepAlive closes the connection of a client that is silent for three
// intervals, so that its sessions end.
func (d *Daemon) keepAlive(ctx context.Context, sc *ssh.ServerConn) {
	defer d.recover("keep-alive")
	interval := orDefault(d.KeepAlive, 15*time.Second)
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(interval):
		}
		answered := make(chan struct{})
		go func() {
			defer close(answered)
			sc.SendRequest("keepalive@openssh.com", true, nil) // any answer will do, and the end of the connection too
		}()
		select {
		case <-answered:
		case <-time.After(3 * interval):
			d.Log.Info("client is silent", "from", sc.RemoteAddr())
			sc.Close()
			return
		}
	}
}

// session serves one command, or SFTP.
func (d *Daemon) session(verbs context.Context, s gliderssh.Session, command string) {
	status, begun := int(parcel.Failed), false
	defer func() {
		s.Exit(status)
		if begun {
			d.finishing.Done()
		}
	}()
	defer d.recover("session")
	ctx, cancel := context.WithCancel(s.Context())
	defer cancel()
	defer context.AfterFunc(verbs, cancel)()

	var permissions *ssh.Permissions
	if sc, ok := s.Context().Value(gliderssh.ContextKeyConn).(*ssh.ServerConn); ok {
		permissions = sc.Permissions
	}
	c := connOf(s.Context())
	l := c.login(s.User(), s.Context().User(), s.PublicKey(), permissions)
	l.from = ip(s.RemoteAddr())
	c.mu.Lock()
	owners := remembered{d.Store, c.owner}
	c.mu.Unlock()
	user, rights, err := principal(owners, l)
	if err == nil && l.key != nil {
		c.mu.Lock()
		c.owner = user
		c.mu.Unlock()
	}
	if err == nil && verbs.Err() != nil {
		err = parcel.NewError(parcel.Unreachable, "server: is stopping")
	}
	if err != nil {
		d.Log.Warn("session refused", "name", s.User(), "from", s.RemoteAddr(), "error", err)
		status = proto.WriteError(s.Stderr(), err)
		return
	}
	max := d.Limits.withDefaults().PerUser
	leave, ok := d.users.enter(user, max, 0)
	if !ok {
		d.Log.Warn("session refused: too many", "user", user, "from", s.RemoteAddr())
		status = proto.WriteError(s.Stderr(), tooMany("user", user, max))
		return
	}
	defer leave()
	host, _, _ := net.SplitHostPort(s.RemoteAddr().String())
	log := d.Log.With("user", user, "from", s.RemoteAddr().String())
	if l.key != nil {
		log = log.With("key", ssh.FingerprintSHA256(l.key))
	}
	status = d.Run(ctx, Session{User: user, Rights: rights, Host: host, From: host, Log: log,
		Warn: warner(s.Stderr()),
		Begin: func() bool {
			d.mu.Lock()
			defer d.mu.Unlock()
			if !d.stopping && !begun {
				begun = true
				d.finishing.Add(1)
			}
			return begun
		}}, command, stdio{s})
}

// stdio is a session's streams as Run wants them.
type stdio struct{ gliderssh.Session }

func (s stdio) Errors() io.Writer { return s.Stderr() }

// recover keeps a panic from ending the server.
func (d *Daemon) recover(where string) {
	if p := recover(); p != nil {
		d.Log.Error("panic", "in", where, "panic", p, "stack", string(debug.Stack()))
	}
}
