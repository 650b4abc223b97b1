package auth

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/json"
	"errors"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"

	"isr/client/remote/ask"
	"isr/client/remote/dial"
	"isr/client/remote/sshconf"
	"isr/store/parcel"
)

// Keeper holds a login.
type Keeper struct {
	target  sshconf.Target
	dest    string
	creds   *ask.Credentials
	hostKey ssh.Signer // of the socket, for as long as it lives
	session string
	since   time.Time

	reachable func() bool // nil: always

	dialing sync.Mutex // one at a time logs in for the shared connection

	mu      sync.Mutex
	expires time.Time
	changed chan struct{} // holds a token when expires was moved
	shared  *upstream
	alone   []*upstream // each with one user at most
	local   map[net.Conn]bool
	over    bool
	end     context.CancelFunc
}

// upstream is a connection to the server.
type upstream struct {
	client *ssh.Client
	gone   chan struct{} // closed when it is lost
	users  int
	idle   *time.Timer
}

func newUpstream(c *ssh.Client) *upstream {
	u := &upstream{client: c, gone: make(chan struct{})}
	go func() { c.Wait(); close(u.gone) }()
	return u
}

func (u *upstream) live() bool {
	if u == nil {
		return false
	}
	select {
	case <-u.gone:
		return false
	default:
		return true
	}
}

// idleTime is how long a connection is kept that nobody uses, beside the
// shared one, which always is.
const idleTime = time.Minute

// NewKeeper logs in. p is asked for what is missing, now and never again.
func NewKeeper(ctx context.Context, t sshconf.Target, p ask.Prompter, lifetime time.Duration, session string) (*Keeper, error) {
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	signer, err := ssh.NewSignerFromKey(private)
	if err != nil {
		return nil, err
	}
	k := &Keeper{target: t, creds: new(ask.Credentials), hostKey: signer, session: session,
		changed: make(chan struct{}, 1), local: make(map[net.Conn]bool)}
	if k.dest, err = sshconf.Destination(t); err != nil {
		return nil, err
	}
	client, err := dial.Dial(ctx, t, p, k.creds)
	if err != nil {
		k.creds.Zero()
		return nil, err
	}
	k.shared = newUpstream(client)
	k.since = time.Now()
	k.expires = k.since.Add(lifetime)
	return k, nil
}

// Serve answers at ln until it is told to end, its time is over, or ctx is
// done. Then it closes ln and every connection, and forgets. Called once.
func (k *Keeper) Serve(ctx context.Context, ln *net.UnixListener) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	k.mu.Lock()
	k.end = cancel
	k.mu.Unlock()
	defer k.close()
	defer ln.Close()
	defer context.AfterFunc(ctx, func() { ln.Close() })()
	go k.watchClock(ctx)
	for {
		conn, err := ln.AcceptUnix()
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			// Out of descriptors: commands dial themselves then, and leave.
			select {
			case <-ctx.Done():
				return
			case <-time.After(100 * time.Millisecond):
			}
			continue
		}
		go k.serve(ctx, conn)
	}
}

// watchClock ends the Keeper when its time is over, by the clock on the wall:
// a host that slept has spent it too. So it does if nobody can reach it any
// more, because its socket was removed.
func (k *Keeper) watchClock(ctx context.Context) {
	for {
		k.mu.Lock()
		left := time.Until(k.expires.Round(0))
		k.mu.Unlock()
		if left <= 0 || k.reachable != nil && !k.reachable() {
			k.stop()
			return
		}
		timer := time.NewTimer(min(left, time.Minute))
		select {
		case <-timer.C:
		case <-k.changed:
		case <-ctx.Done():
		}
		timer.Stop()
		if ctx.Err() != nil {
			return
		}
	}
}

func (k *Keeper) stop() {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.end != nil {
		k.end()
	}
}

// close ends every connection and forgets what a person was asked for.
func (k *Keeper) close() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.over = true
	for _, u := range append(slices.Clone(k.alone), k.shared) {
		if u != nil {
			u.client.Close()
		}
	}
	for c := range k.local {
		c.Close()
	}
	k.creds.Zero()
}

// status is what Status asks for.
func (k *Keeper) status() *Status {
	k.mu.Lock()
	defer k.mu.Unlock()
	n := 0
	for _, u := range append(slices.Clone(k.alone), k.shared) {
		if u.live() {
			n++
		}
	}
	return &Status{Destination: k.dest, Since: k.since.Truncate(time.Second), Expires: k.expires.Truncate(time.Second),
		Session: k.session, Connections: n, Process: os.Getpid()}
}

// serve answers one connection.
func (k *Keeper) serve(ctx context.Context, conn *net.UnixConn) {
	defer conn.Close()
	if samePeer(conn) != nil || !k.opened(conn) {
		return
	}
	defer k.closed(conn)
	conn.SetDeadline(time.Now().Add(answerTime))
	var r request
	if receive(conn, &r) != nil {
		return
	}
	conn.SetDeadline(time.Time{})
	var a answer
	switch r.Op {
	case opStatus:
		a.Status = k.status()
	case opCredentials:
		a.Credentials, _ = json.Marshal(k.creds)
	case opLearn:
		if err := k.creds.Add(r.Credentials); err != nil {
			a.Error, a.Kind = err.Error(), parcel.Usage
		}
	case opExtend:
		k.mu.Lock()
		k.expires = time.Now().Add(r.Lifetime)
		k.mu.Unlock()
		select {
		case k.changed <- struct{}{}:
		default:
		}
	case opEnd:
		// The connection ends with the process, which is what they wait for.
		k.mu.Lock()
		delete(k.local, conn)
		k.mu.Unlock()
		send(conn, a)
		k.stop()
		select {}
	case opConnect:
		k.connect(ctx, conn, r.Alone)
		return
	default:
		a.Error, a.Kind = "auth: "+string(r.Op)+": not understood", parcel.Usage
	}
	send(conn, a)
	clear(a.Credentials)
}

func (k *Keeper) opened(c net.Conn) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.over {
		k.local[c] = true
	}
	return !k.over
}

func (k *Keeper) closed(c net.Conn) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.local, c)
}

// connect passes conn on to the server.
func (k *Keeper) connect(ctx context.Context, conn net.Conn, alone bool) {
	u, err := k.upstream(ctx, alone)
	if err != nil {
		kind := parcel.Denied
		if errors.Is(err, dial.ErrUnreachable) || errors.Is(err, context.Canceled) {
			kind = parcel.Unreachable
		}
		send(conn, answer{Error: err.Error(), Kind: kind})
		return
	}
	defer k.leave(u)
	if send(conn, answer{HostKey: k.hostKey.PublicKey().Marshal()}) == nil {
		pass(conn, u.client, u.gone, k.hostKey)
	}
}

// upstream is a connection to the server for one more user: the shared one, or
// one that nobody else uses. It is made if there is none, by what is known.
func (k *Keeper) upstream(ctx context.Context, alone bool) (*upstream, error) {
	if !alone {
		k.dialing.Lock()
		defer k.dialing.Unlock()
	}
	if u := k.present(alone); u != nil {
		return u, nil
	}
	client, err := dial.Dial(ctx, k.target, nil, k.creds)
	if err != nil {
		return nil, err
	}
	u := newUpstream(client)
	u.users = 1
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.over {
		client.Close()
		return nil, context.Canceled
	}
	if alone {
		k.alone = append(k.alone, u)
	} else {
		k.shared = u
	}
	return u, nil
}

// present is a connection that is there, with one more user.
func (k *Keeper) present(alone bool) *upstream {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.alone = slices.DeleteFunc(k.alone, func(u *upstream) bool { return !u.live() })
	if !alone {
		if !k.shared.live() {
			return nil
		}
		k.shared.users++
		return k.shared
	}
	for _, u := range k.alone {
		if u.users == 0 {
			u.users++
			if u.idle != nil {
				u.idle.Stop()
			}
			return u
		}
	}
	return nil
}

// leave takes a user away.
func (k *Keeper) leave(u *upstream) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if u.users--; u.users > 0 || u == k.shared {
		return
	}
	u.idle = time.AfterFunc(idleTime, func() {
		k.mu.Lock()
		defer k.mu.Unlock()
		if u.users == 0 && u != k.shared {
			u.client.Close()
		}
	})
}
