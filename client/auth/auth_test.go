package auth

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"isr/client/remote"
	"isr/client/remote/dial"
	"isr/client/remote/linktest"
	"isr/client/remote/sshconf"
	"isr/locksrv/locksrvtest"
	"isr/locksrv/proto"
	"isr/store/parcel"
)

// kept is a Keeper of alice's login to a real daemon, over a link.
func kept(t *testing.T) (*Held, *linktest.Link, *locksrvtest.Realm) {
	t.Helper()
	r := locksrvtest.NewRealm(t)
	r.AddParcel(t, "alice", "hers")
	link := linktest.New(t, r.Start(t, nil).Addr)
	tcp, err := net.ResolveTCPAddr("tcp", link.Addr)
	if err != nil {
		t.Fatal(err)
	}
	target := sshconf.Target{Host: "127.0.0.1", Port: tcp.Port, User: "alice", Home: t.TempDir(), ConfigFile: "none",
		Options: map[string]string{"StrictHostKeyChecking": "no", "IdentityFile": r.Files["alice"], "IdentityAgent": "none"}}
	k, err := NewKeeper(context.Background(), target, nil, time.Hour, "")
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "isr")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket := filepath.Join(dir, "s")
	ln, _, release, err := listen(socket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var served sync.WaitGroup
	served.Go(func() { k.Serve(ctx, ln) })
	t.Cleanup(func() { cancel(); served.Wait(); release() })
	return &Held{socket}, link, r
}

// through is an ordinary SSH client by way of a Keeper.
func through(t *testing.T, h *Held, alone bool) *ssh.Client {
	t.Helper()
	conn, key, err := h.Dial(context.Background(), alone)
	if err != nil {
		t.Fatal(err)
	}
	sc, chans, reqs, err := ssh.NewClientConn(conn, "", &ssh.ClientConfig{HostKeyCallback: ssh.FixedHostKey(key)})
	if err != nil {
		t.Fatal(err)
	}
	c := ssh.NewClient(sc, chans, reqs)
	t.Cleanup(func() { c.Close() })
	return c
}

// All that a session is comes through: output, errors, status, SFTP, refusals.
func TestPass(t *testing.T) {
	h, _, _ := kept(t)
	c := through(t, h, false)
	out, errs, status := locksrvtest.Exec(c, proto.ListParcels, nil)
	if status != 0 || string(out) != "hers\n" {
		t.Errorf("list: %d, %q, %q", status, out, errs)
	}
	out, errs, status = locksrvtest.Exec(c, proto.CatConfig+" none", nil)
	if status != int(parcel.NoParcel) || len(out) > 0 || !bytes.HasPrefix(errs, []byte("isr: error: ")) {
		t.Errorf("an error: %d, %q, %q", status, out, errs)
	}
	var refused *ssh.OpenChannelError
	if _, err := c.Dial("tcp", "127.0.0.1:1"); !errors.As(err, &refused) || refused.Reason != ssh.UnknownChannelType {
		t.Errorf("a channel that is not served: %v", err)
	}
	s, err := c.NewSession()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.RequestSubsystem("netconf"); err == nil {
		t.Errorf("a subsystem that is not served: granted")
	}
	f, err := locksrvtest.Conn{Client: c}.SFTP()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Stat("/hers/last/keyring.enc"); err != nil {
		t.Error(err)
	}
	f.Close()
	// The life of a parcel, with uploads.
	locksrvtest.Story(t, &locksrvtest.Client{Peer: locksrvtest.Conn{Client: c}, Parcel: "hers"})
}

// A command that ends at once is not closed before its request is answered.
func TestPassShort(t *testing.T) {
	h, _, _ := kept(t)
	c := through(t, h, false)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 100 {
				if out, errs, status := locksrvtest.Exec(c, proto.ListParcels, nil); status != 0 || string(out) != "hers\n" {
					t.Errorf("list: %d, %q, %q", status, out, errs)
					return
				}
			}
		})
	}
	wg.Wait()
}

// A server that is lost before it answers refuses nothing: the connection ends,
// as it would without anybody between.
func TestPassLost(t *testing.T) {
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := ssh.NewSignerFromKey(private)
	if err != nil {
		t.Fatal(err)
	}
	config := &ssh.ServerConfig{NoClientAuth: true}
	config.AddHostKey(signer)
	for _, opens := range []bool{false, true} {
		// Its end comes with the first channel, or with the first request in it.
		up := joined(t, func(conn net.Conn) {
			sc, chans, _, err := ssh.NewServerConn(conn, config)
			if err != nil {
				return
			}
			defer sc.Close()
			if nc := <-chans; opens && nc != nil {
				if _, reqs, err := nc.Accept(); err == nil {
					<-reqs
				}
			}
		})
		c := joined(t, func(conn net.Conn) { pass(conn, up, make(chan struct{}), signer) })
		s, err := c.NewSession()
		if opens && err == nil {
			err = s.Start("list")
		}
		var refused *ssh.OpenChannelError
		if err == nil || errors.As(err, &refused) || strings.Contains(err.Error(), "ssh: command") {
			t.Errorf("it opens a session: %v; it is lost: %v", opens, err)
		}
	}
}

// joined is a client of what serves the other end of its connection.
func joined(t *testing.T, serve func(net.Conn)) *ssh.Client {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	near, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	far, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	var served sync.WaitGroup
	served.Go(func() { defer far.Close(); serve(far) })
	sc, chans, reqs, err := ssh.NewClientConn(near, "", &ssh.ClientConfig{HostKeyCallback: ssh.InsecureIgnoreHostKey()})
	if err != nil {
		t.Fatal(err)
	}
	c := ssh.NewClient(sc, chans, reqs)
	t.Cleanup(func() { c.Close(); served.Wait() })
	return c
}

// Who shares shares one connection; who wants one alone has one, made once.
func TestConnections(t *testing.T) {
	h, link, _ := kept(t)
	count := func(want int) {
		t.Helper()
		st, err := h.Status()
		if err != nil || st.Connections != want {
			t.Errorf("%d connections, %v; want %d", st.Connections, err, want)
		}
	}
	count(1)
	through(t, h, false)
	through(t, h, false)
	count(1)
	one, two := through(t, h, true), through(t, h, true)
	count(3)
	two.Close()
	two.Wait()
	// It is used again, as soon as the Keeper knows that it is free.
	within(t, func() bool {
		before, err := h.Status()
		if err != nil {
			t.Fatal(err)
		}
		c := through(t, h, true)
		after, err := h.Status()
		c.Close()
		return err == nil && after.Connections == before.Connections
	})
	// A line that breaks ends what goes over it; then it is made anew.
	link.Cut()
	one.Wait()
	within(t, func() bool { st, err := h.Status(); return err == nil && st.Connections == 0 })
	if out, errs, status := locksrvtest.Exec(through(t, h, false), proto.ListParcels, nil); status != 0 {
		t.Errorf("after a cut: %d, %q, %q", status, out, errs)
	}
}

// What the Keeper cannot have is told as what it is.
func TestNoServer(t *testing.T) {
	h, link, r := kept(t)
	link.Refuse(true)
	link.Cut()
	within(t, func() bool { st, err := h.Status(); return err == nil && st.Connections == 0 })
	if _, _, err := h.Dial(context.Background(), false); !errors.Is(err, dial.ErrUnreachable) {
		t.Errorf("no server: %v", err)
	}
	link.Refuse(false)
	if err := os.Remove(r.Files["alice"]); err != nil {
		t.Fatal(err)
	}
	// Nobody to ask: the command is to try itself.
	if _, _, err := h.Dial(context.Background(), false); !errors.Is(err, remote.ErrNoWay) {
		t.Errorf("no key any more: %v", err)
	}
	if _, _, err := (&Held{h.socket + "-none"}).Dial(context.Background(), false); !errors.Is(err, remote.ErrNoWay) {
		t.Errorf("no keeper: %v", err)
	}
}

func within(t *testing.T, f func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !f(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("not within a minute")
		}
	}
}

// What is said on the socket without sense is not answered, and harms nobody.
func TestNonsense(t *testing.T) {
	h, _, _ := kept(t)
	frame := func(text string) []byte {
		return append(binary.BigEndian.AppendUint32(nil, uint32(len(text))), text...)
	}
	for _, text := range [][]byte{nil, {1}, {0xff, 0xff, 0xff, 0xff}, frame(""), frame("x"), frame(`{"Op":"what"}`), frame(`{"Op":"learn","Credentials":"x"}`)} {
		conn, err := net.Dial("unix", h.socket)
		if err != nil {
			t.Fatal(err)
		}
		conn.Write(text)
		conn.(*net.UnixConn).CloseWrite()
		got, _ := io.ReadAll(conn)
		conn.Close()
		if bytes.Contains(got, []byte("HostKey\":\"")) {
			t.Errorf("%q: answered %q", text, got)
		}
	}
	if _, err := h.Status(); err != nil {
		t.Error(err)
	}
	if Find(h.socket+"-none") != nil {
		t.Errorf("found where none is")
	}
}

func FuzzReceive(f *testing.F) {
	var b bytes.Buffer
	send(&b, request{Op: opConnect, Alone: true})
	f.Add(b.Bytes())
	f.Add([]byte{0, 0, 0, 2, '{', '}'})
	f.Add([]byte{0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, p []byte) {
		r := bytes.NewReader(append(p, "rest"...))
		var q request
		if receive(r, &q) != nil {
			return
		}
		n := int(binary.BigEndian.Uint32(p))
		if got := r.Size() - int64(r.Len()); got != int64(4+n) {
			t.Errorf("%d bytes read of a message of %d", got, n)
		}
	})
}
