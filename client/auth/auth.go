// Package auth keeps a login to a lock server open in the background, so that
// later commands need no handshake and no password: what isr auth leaves.
//
// A Keeper is a process that has logged in and listens on a Unix socket. A
// command finds it by the socket (Held), is given what it would have to ask a
// person for, and a connection that the Keeper passes on, channel by channel,
// over its own: an ordinary SSH connection, whose far end is the server.
//
// It promises that secrets are in the memory of processes of one user and on
// no disk, command line or environment; that whoever has another user id gets
// nothing from the socket; and that the Keeper ends, and forgets, when it is
// told to, when its time is over, and with the session it was started in. It
// does not protect from root or from other processes of the same user.
package auth

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/sys/unix"

	"isr/client/remote"
	"isr/client/remote/dial"
	"isr/store/parcel"
)

// Status is what a Keeper says of itself.
type Status struct {
	Destination string    `json:"server"`  // USER@HOST[:PORT]
	Since       time.Time `json:"since"`   // of the login
	Expires     time.Time `json:"expires"` // when it ends by itself
	Session     string    `json:"session"` // what else ends it; "" = nothing
	Connections int       `json:"connections"`
	Process     int       `json:"process"`
}

// request is what a command asks a Keeper, one for each connection.
type request struct {
	Op          op
	Alone       bool            // connect: on a connection of its own
	Credentials json.RawMessage // learn
	Lifetime    time.Duration   // extend
}

type op string

const (
	opStatus      op = "status"
	opCredentials op = "credentials"
	opConnect     op = "connect"
	opLearn       op = "learn"
	opExtend      op = "extend"
	opEnd         op = "end"
)

// answer is what it is told. After a connect without an error the connection
// speaks SSH.
type answer struct {
	Error       string
	Kind        parcel.Kind
	HostKey     []byte
	Status      *Status
	Credentials json.RawMessage
}

// maxMessage bounds a message, bytes.
const maxMessage = 1 << 20

func send(w io.Writer, v any) error {
	p, err := json.Marshal(v)
	if err != nil {
		return err
	}
	p = append(binary.BigEndian.AppendUint32(nil, uint32(len(p))), p...)
	defer clear(p)
	_, err = w.Write(p)
	return err
}

// receive reads one message, and nothing after it.
func receive(r io.Reader, v any) error {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n > maxMessage {
		return fmt.Errorf("message of %d bytes", n)
	}
	p := make([]byte, n)
	defer clear(p)
	if _, err := io.ReadFull(r, p); err != nil {
		return err
	}
	if err := json.Unmarshal(p, v); err != nil {
		return errors.New("message: not the JSON it should be") // the cause may quote it
	}
	return nil
}

// answerTime is how long a Keeper may take for what needs no network.
const answerTime = 10 * time.Second

// Held is a login that a Keeper holds.
type Held struct{ socket string }

// Find is the Keeper that listens at socket; nil if none does.
func Find(socket string) *Held {
	h := &Held{socket}
	if _, err := h.Status(); err != nil {
		return nil
	}
	return h
}

// FindAll are the Keepers whose sockets match pattern.
func FindAll(pattern string) []*Held {
	var all []*Held
	names, _ := filepath.Glob(pattern)
	for _, name := range names {
		if h := Find(name); h != nil {
			all = append(all, h)
		}
	}
	return all
}

// ask connects, asks and gives the answer and the connection, which is to be
// closed.
func (h *Held) ask(ctx context.Context, r request) (net.Conn, *answer, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", h.socket)
	if err != nil {
		return nil, nil, err
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	var a answer
	if err = samePeer(conn.(*net.UnixConn)); err == nil {
		if err = send(conn, r); err == nil {
			err = receive(conn, &a)
		}
	}
	if err == nil && a.Error != "" {
		err = &parcel.Error{Kind: a.Kind, Msg: a.Error}
	}
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	if err != nil {
		conn.Close()
		return nil, nil, err
	}
	return conn, &a, nil
}

func (h *Held) quick(r request) (*answer, error) {
	ctx, cancel := context.WithTimeout(context.Background(), answerTime)
	defer cancel()
	conn, a, err := h.ask(ctx, r)
	if err == nil {
		conn.Close()
	}
	return a, err
}

// Status asks how it stands.
func (h *Held) Status() (Status, error) {
	a, err := h.quick(request{Op: opStatus})
	if err != nil {
		return Status{}, err
	}
	if a.Status == nil {
		return Status{}, errors.New("auth: no status")
	}
	return *a.Status, nil
}

// Credentials is what the Keeper knows, as JSON of ask.Credentials.
func (h *Held) Credentials() ([]byte, error) {
	a, err := h.quick(request{Op: opCredentials})
	if err != nil {
		return nil, err
	}
	return a.Credentials, nil
}

// Learn adds to what the Keeper knows: a password that has changed.
func (h *Held) Learn(credentials []byte) error {
	_, err := h.quick(request{Op: opLearn, Credentials: credentials})
	return err
}

// Extend gives the Keeper so long from now.
func (h *Held) Extend(d time.Duration) (Status, error) {
	if _, err := h.quick(request{Op: opExtend, Lifetime: d}); err != nil {
		return Status{}, err
	}
	return h.Status()
}

// End has the Keeper forget everything and end, and waits until it has.
func (h *Held) End() error {
	ctx, cancel := context.WithTimeout(context.Background(), answerTime)
	defer cancel()
	conn, _, err := h.ask(ctx, request{Op: opEnd})
	if err != nil {
		return err
	}
	defer conn.Close()
	conn.SetReadDeadline(time.Now().Add(answerTime))
	if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, io.EOF) && !errors.Is(err, unix.ECONNRESET) {
		return fmt.Errorf("auth: it does not end: %w", err)
	}
	return nil
}

// Dial is a remote.Via by this Keeper.
func (h *Held) Dial(ctx context.Context, alone bool) (net.Conn, ssh.PublicKey, error) {
	conn, a, err := h.ask(ctx, request{Op: opConnect, Alone: alone})
	switch {
	case ctx.Err() != nil:
		return nil, nil, ctx.Err()
	case errors.Is(err, parcel.ErrUnreachable):
		return nil, nil, unreachable(err.Error())
	case err != nil:
		// It is gone, or the server does not take what it knows any more.
		return nil, nil, fmt.Errorf("%w: %w", remote.ErrNoWay, err)
	}
	key, err := ssh.ParsePublicKey(a.HostKey)
	if err != nil {
		conn.Close()
		return nil, nil, fmt.Errorf("%w: %w", remote.ErrNoWay, err)
	}
	return conn, key, nil
}

// unreachable is a Keeper's error of that kind, whose text says so already.
type unreachable string

func (u unreachable) Error() string { return string(u) }
func (u unreachable) Unwrap() error { return dial.ErrUnreachable }

// samePeer refuses a process of another user.
func samePeer(conn *net.UnixConn) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var cred *unix.Ucred
	cerr := raw.Control(func(fd uintptr) { cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if err = errors.Join(err, cerr); err != nil {
		return err
	}
	if int(cred.Uid) != os.Getuid() {
		return parcel.NewError(parcel.Denied, "auth: the other process is of user %d", cred.Uid)
	}
	return nil
}
