// Package locksrvtest gives tests a realm and a lock server: users with keys,
// parcels, the built-in daemon on the loopback interface, and a little client
// that makes versions. Everything ends with the test.
package locksrvtest

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"isr/locksrv"
	"isr/store"
)

// Realm is a store with users alice and bob.
type Realm struct {
	Root    string
	Store   *store.Store
	Service *locksrv.Service
	Keys    map[string]ssh.Signer // of each user
	Files   map[string]string     // the private key's file, .pub beside it
	dir     string
}

// NewRealm makes a realm in a temporary directory.
func NewRealm(t testing.TB) *Realm {
	t.Helper()
	dir := t.TempDir()
	r := &Realm{Root: filepath.Join(dir, "root"), Keys: make(map[string]ssh.Signer),
		Files: make(map[string]string), dir: dir}
	s, err := store.Init(r.Root, "test")
	if err != nil {
		t.Fatal(err)
	}
	r.Store = s
	r.Service = locksrv.NewService(s)
	r.AddUser(t, "alice")
	r.AddUser(t, "bob")
	return r
}

// AddUser makes a user with a key.
func (r *Realm) AddUser(t testing.TB, name string) {
	t.Helper()
	key := r.NewKey(t, name)
	if err := r.Store.AddUser(name, []string{string(ssh.MarshalAuthorizedKey(key.PublicKey()))}); err != nil {
		t.Fatal(err)
	}
}

// NewKey makes a key that no user has, under a name of its own.
func (r *Realm) NewKey(t testing.TB, name string) ssh.Signer {
	t.Helper()
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := ssh.NewSignerFromKey(private)
	if err != nil {
		t.Fatal(err)
	}
	block, err := ssh.MarshalPrivateKey(private, name)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(r.dir, "key-"+name)
	if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file+".pub", ssh.MarshalAuthorizedKey(signer.PublicKey()), 0o644); err != nil {
		t.Fatal(err)
	}
	r.Keys[name], r.Files[name] = signer, file
	return signer
}

// AddParcel makes a parcel with a disk of 1 MiB in chunks of 4 KiB.
func (r *Realm) AddParcel(t testing.TB, user, name string) *store.Parcel {
	t.Helper()
	p, err := r.Store.Create(context.Background(), user, name,
		store.CreateOptions{DiskSize: 1 << 20, MemSize: 1 << 20, ChunkSize: 4 << 10, VMM: "none"})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// Daemon is a running daemon.
type Daemon struct {
	*locksrv.Daemon
	Addr string
	Log  *Log
	stop func() error
}

// Stop tells the daemon to stop, waits for it, and returns what Serve did.
func (d *Daemon) Stop() error { return d.stop() }

// Start runs the daemon until the test ends. set may change it first.
func (r *Realm) Start(t testing.TB, set func(*locksrv.Daemon)) *Daemon {
	t.Helper()
	log := new(Log)
	d := &locksrv.Daemon{Service: r.Service, Settings: locksrv.Settings{HostKeys: []ssh.Signer{r.NewKey(t, "host")}},
		Log: slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug}))}
	if set != nil {
		set(d)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- d.Serve(ctx, ln) }()
	stop := sync.OnceValue(func() error {
		cancel()
		return <-served
	})
	t.Cleanup(func() {
		if err := stop(); err != nil {
			t.Errorf("daemon: %v", err)
		}
		if t.Failed() {
			t.Logf("log of the daemon:\n%s", log)
		}
	})
	return &Daemon{Daemon: d, Addr: ln.Addr().String(), Log: log, stop: stop}
}

// Worked is how long this process has had a processor: on a busy host, that is
// less than what went by.
func Worked(t testing.TB) time.Duration {
	t.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// Log is a log that can be read while it is written.
type Log struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *Log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *Log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// Dial logs in to a daemon.
func (r *Realm) Dial(addr, name, key string) (*ssh.Client, error) {
	return ssh.Dial("tcp", addr, &ssh.ClientConfig{User: name,
		Auth:            []ssh.AuthMethod{ssh.PublicKeys(r.Keys[key])},
		HostKeyCallback: ssh.InsecureIgnoreHostKey()})
}

// Exec runs a command over a connection.
func Exec(c *ssh.Client, command string, stdin []byte) (stdout, stderr []byte, status int) {
	s, err := c.NewSession()
	if err != nil {
		return nil, fmt.Append(nil, err), -1
	}
	defer s.Close()
	var out, errs bytes.Buffer
	s.Stdin, s.Stdout, s.Stderr = bytes.NewReader(stdin), &out, &errs
	err = s.Run(command)
	var exit *ssh.ExitError
	switch {
	case errors.As(err, &exit):
		status = exit.ExitStatus()
	case err != nil:
		status = -1
		fmt.Fprintln(&errs, err)
	}
	return out.Bytes(), errs.Bytes(), status
}
