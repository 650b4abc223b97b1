package locksrv

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	gliderssh "github.com/gliderlabs/ssh"
	"golang.org/x/crypto/ssh"

	"isr/locksrv/proto"
	"isr/store/authkey"
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
// before Serve and not changed after; Reconfigure is for that.
type Daemon struct {
	*Service
	Settings              // to begin with
	Log      *slog.Logger // what happens, never a secret; nil: nowhere

	now       atomic.Pointer[Settings] // nil until Reconfigure
	users     counter
	addresses counter
	guesses   throttle

	mu        sync.Mutex
	stopping  bool
	finishing sync.WaitGroup // sessions that change the store, until they told; grows under mu
}

// Settings is what may be changed while a daemon serves.
type Settings struct {
	HostKeys         []ssh.Signer  // at least one
	Limits           Limits        // zero: the defaults
	HandshakeTimeout time.Duration // from connection to the first request for authentication; default 20 s
	LoginTimeout     time.Duration // from there to login: a person may be typing; default 2 min
	KeepAlive        time.Duration // a silent client is asked this often, and dropped after three silences; default 15 s
	Grace            time.Duration // how long Serve waits for what must finish; default 30 s
}

// Reconfigure gives the daemon other settings: for connections and sessions
// that begin from then on, and for the next keep-alive of those that are
// there. It ends nothing. Without a host key it refuses.
func (d *Daemon) Reconfigure(s Settings) error {
	if len(s.HostKeys) == 0 {
		return errNoHostKey
	}
	d.now.Store(&s)
	return nil
}

var errNoHostKey = errors.New("daemon: no host key")

// settings are those of this moment, without gaps.
func (d *Daemon) settings() Settings {
	s := d.Settings
	if p := d.now.Load(); p != nil {
		s = *p
	}
	s.Limits = s.Limits.withDefaults()
	s.HandshakeTimeout = cmp.Or(s.HandshakeTimeout, 20*time.Second)
	s.LoginTimeout = cmp.Or(s.LoginTimeout, 2*time.Minute)
	s.KeepAlive = cmp.Or(s.KeepAlive, 15*time.Second)
	s.Grace = cmp.Or(s.Grace, 30*time.Second)
	return s
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

// Serve serves connections of the listeners until ctx is done, or one of them
// fails for good. Then it stops accepting, lets what changes the store finish,
// for at most Grace, ends all else and returns nil, or what failed. It owns
// the listeners, and is called once.
func (d *Daemon) Serve(ctx context.Context, listeners ...net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() {
		for _, ln := range listeners {
			ln.Close()
		}
	})
	defer func() {
		if stop() {
			for _, ln := range listeners {
				ln.Close()
			}
		}
	}()
	if len(d.settings().HostKeys) == 0 {
		return errNoHostKey
	}
	if d.Log == nil {
		d.Log = slog.New(slog.DiscardHandler)
	}
	verbs, cancelVerbs := context.WithCancel(context.WithoutCancel(ctx))
	defer cancelVerbs()
	server := d.server(verbs)

	var open sync.Map // conn → nil: all that are open
	var accepting, handlers sync.WaitGroup
	failed := make(chan error, len(listeners))
	for _, ln := range listeners {
		accepting.Go(func() {
			err := d.accept(ctx, ln, func(c *conn, leave func()) {
				open.Store(c, nil)
				handlers.Go(func() {
					defer leave()
					defer open.Delete(c)
					defer c.Conn.Close()
					defer d.recover("connection")
					d.meter().Connection(+1)
					defer d.meter().Connection(-1)
					c.Conn.SetDeadline(time.Now().Add(d.settings().HandshakeTimeout))
					server.HandleConn(c)
				})
			})
			if err != nil {
				d.Log.Error("listener", "at", ln.Addr(), "error", err)
				failed <- fmt.Errorf("listener %s: %w", ln.Addr(), err)
				cancel()
			}
		})
	}
	accepting.Wait()
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
	case <-time.After(d.settings().Grace):
		d.Log.Error("stopping: a verb did not finish in time")
	}
	open.Range(func(c, _ any) bool { c.(*conn).Close(); return true })
	handlers.Wait()
	select {
	case err := <-failed:
		return err
	default:
		return nil
	}
}

// accept hands on the connections of one listener until ctx is done: then nil,
// else why it cannot go on. leave is to be called when the connection ends.
func (d *Daemon) accept(ctx context.Context, ln net.Listener, serve func(c *conn, leave func())) error {
	var pause time.Duration
	for {
		nc, err := ln.Accept()
		switch {
		case err == nil:
			pause = 0
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, net.ErrClosed):
			return err
		default:
			// Out of descriptors, most likely: others will end.
			pause = min(max(2*pause, 5*time.Millisecond), time.Second)
			d.Log.Error("accept", "error", err, "pause", pause)
			select {
			case <-time.After(pause):
			case <-ctx.Done():
			}
			continue
		}
		limits := d.settings().Limits
		leave, ok := d.addresses.enter(address(nc.RemoteAddr()), limits.PerAddress, limits.Connections)
		if !ok {
			d.Log.Warn("connection refused: too many", "from", nc.RemoteAddr())
			d.meter().Refused("connection")
			nc.Close()
			continue
		}
		serve(&conn{Conn: nc}, leave)
	}
}

// Stopping reports whether the daemon was told to stop.
func (d *Daemon) Stopping() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.stopping
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
	// The host keys are not the server's but of each connection (config): they
	// may change while it serves.
	return server
}

// mayTry says whether the key lets anybody in. It decides nothing else: a client
// may ask it about keys that are not its own.
func (d *Daemon) mayTry(ctx gliderssh.Context, key gliderssh.PublicKey) (ok bool) {
	defer d.recover("key")
	user, _, err := d.Store.UserOfKey(key, ip(ctx.RemoteAddr()))
	switch {
	case err != nil && user != "":
		d.Log.Warn("key refused", "user", user, "from", ctx.RemoteAddr(), "error", err)
	case err != nil:
		d.Log.Debug("key refused", "from", ctx.RemoteAddr(), "error", err)
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
			c.begun.Do(func() { c.Conn.SetDeadline(time.Now().Add(d.settings().LoginTimeout)) })
			if err == nil {
				c.Conn.SetDeadline(time.Time{}) // the handshake is over
			}
			if method != "none" { // which only asks what there is
				d.meter().Login(method, err == nil)
			}
		},
	}
	for _, key := range d.settings().HostKeys {
		config.AddHostKey(key)
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
	if max := d.settings().Limits.PerConn; c.sessions.Add(1) > int64(max) {
		c.sessions.Add(-1)
		d.meter().Refused("session")
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
	for {
		interval := d.settings().KeepAlive
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
		d.meter().Refused("login")
		status = proto.WriteError(s.Stderr(), err)
		return
	}
	max := d.settings().Limits.PerUser
	leave, ok := d.users.enter(user, max, 0)
	if !ok {
		d.Log.Warn("session refused: too many", "user", user, "from", s.RemoteAddr())
		d.meter().Refused("session")
		status = proto.WriteError(s.Stderr(), tooMany("user", user, max))
		return
	}
	defer leave()
	d.meter().Session(+1)
	defer d.meter().Session(-1)
	host, _, _ := net.SplitHostPort(s.RemoteAddr().String())
	log := d.Log.With("user", user, "from", s.RemoteAddr().String())
	if l.key != nil {
		log = log.With("key", ssh.FingerprintSHA256(l.key))
	}
	status = d.Run(ctx, Session{User: user, Rights: rights, Host: host, From: host, Log: log,
		Warn: warner(s.Stderr()), Still: func() error { return d.still(l, user, rights) },
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

// still is nil if what let a user in lets her in yet, with the same rights.
func (d *Daemon) still(l login, user string, rights authkey.Rights) error {
	if l.key == nil {
		has, err := d.Store.HasPassword(user)
		if err == nil && !has {
			err = parcel.NewError(parcel.Denied, "user %s: has no password any more", user)
		}
		return err
	}
	k, err := d.Store.KeyOf(user, l.key, l.from)
	if err == nil && (k.ReadOnly != rights.ReadOnly || !slices.Equal(k.Parcels, rights.Parcels)) {
		err = parcel.NewError(parcel.Denied, "key %s: has other rights now", ssh.FingerprintSHA256(l.key)).WithHint("come again")
	}
	return err
}

// stdio is a session's streams as Run wants them.
type stdio struct{ gliderssh.Session }

func (s stdio) Errors() io.Writer { return s.Stderr() }

// recover keeps a panic from ending the server.
func (d *Daemon) recover(where string) {
	if p := recover(); p != nil {
		d.meter().Failed("panic")
		d.Log.Error("panic", "in", where, "panic", p, "stack", string(debug.Stack()))
	}
}
