package remote

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	mathrand "math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"isr/client/remote/dial"
	"isr/client/remote/linktest"
	"isr/client/remote/sshconf"
	"isr/locksrv/proto"
	"isr/store/parcel"
	"isr/store/seal"
)

// program builds isr-locksrv, once.
var program = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "isr-locksrv-")
	if err != nil {
		return "", err
	}
	file := filepath.Join(dir, "isr-locksrv")
	out, err := exec.Command("go", "build", "-o", file, "isr/locksrv/isr-locksrv").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("build isr-locksrv: %v\n%s", err, out)
	}
	return file, nil
})

func TestMain(m *testing.M) {
	flag.Parse()
	flag.Set("test.parallel", "8") // they wait more than they work
	code := m.Run()
	if file, err := program(); err == nil {
		os.RemoveAll(filepath.Dir(file))
	}
	os.Exit(code)
}

// realm is a lock server of the real program, with user alice and her parcel
// "box", behind a link.
type realm struct {
	*linktest.Link
	t       testing.TB
	program string
	root    string
	home    string
	server  *exec.Cmd
	log     *bytes.Buffer
}

func newRealm(t testing.TB) *realm {
	t.Helper()
	file, err := program()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	r := &realm{t: t, program: file, root: filepath.Join(dir, "root"), home: filepath.Join(dir, "home")}
	if err := os.MkdirAll(filepath.Join(r.home, ".ssh"), 0o700); err != nil {
		t.Fatal(err)
	}
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	block, err := ssh.MarshalPrivateKey(private, "")
	if err != nil {
		t.Fatal(err)
	}
	public, err := ssh.NewPublicKey(private.Public())
	if err != nil {
		t.Fatal(err)
	}
	key := filepath.Join(r.home, ".ssh", "id_ed25519")
	for name, p := range map[string][]byte{key: pem.EncodeToMemory(block), key + ".pub": ssh.MarshalAuthorizedKey(public)} {
		if err := os.WriteFile(name, p, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	r.admin("user", "add", "alice", "--key", key+".pub")
	r.admin("parcel", "create", "alice", "box", "--disk", "64M", "--chunk-size", "128K")
	addr := r.start()
	r.Link = linktest.New(t, addr)
	t.Cleanup(func() { r.kill() })
	return r
}

// admin runs the program on the host.
func (r *realm) admin(words ...string) string {
	r.t.Helper()
	out, err := exec.Command(r.program, append([]string{"--root", r.root}, words...)...).CombinedOutput()
	if err != nil {
		r.t.Fatalf("isr-locksrv %s: %v\n%s", strings.Join(words, " "), err, out)
	}
	return string(out)
}

// start starts the daemon and returns where it listens.
func (r *realm) start() string {
	r.t.Helper()
	cmd := exec.Command(r.program, "--root", r.root, "serve", "--listen", "127.0.0.1:0")
	r.log = new(bytes.Buffer)
	cmd.Stderr = r.log
	out, err := cmd.StdoutPipe()
	if err != nil {
		r.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	addr, ok := strings.CutPrefix(strings.TrimSpace(line), "listening on ")
	if err != nil || !ok {
		cmd.Process.Kill()
		cmd.Wait()
		r.t.Fatalf("serve: %q %v\n%s", line, err, r.log)
	}
	r.server = cmd
	return addr
}

// kill kills the daemon, as by kill -9.
func (r *realm) kill() {
	if r.server != nil {
		r.server.Process.Kill()
		r.server.Wait()
		r.server = nil
	}
}

// restart starts it anew behind the same link.
func (r *realm) restart() { r.Target(r.start()) }

// target is alice at the server.
func (r *realm) target() sshconf.Target {
	host, port, err := sshconf.ParseHostPort(r.Addr)
	if err != nil {
		r.t.Fatal(err)
	}
	return sshconf.Target{Host: host, Port: port, User: "alice", Home: r.home, ConfigFile: "none", BatchMode: true,
		Options: map[string]string{"StrictHostKeyChecking": "accept-new", "IdentityAgent": "none",
			"GlobalKnownHostsFile": "none"}}
}

// open is the Server for alice until the test ends.
func (r *realm) open() *Server {
	s := Open(r.target(), nil, nil)
	r.t.Cleanup(func() { s.Close() })
	return s
}

// object makes an object of n random bytes.
func object(n int) (seal.Tag, []byte) {
	p := make([]byte, n)
	rand.Read(p)
	sum := sha256.Sum256(p)
	return seal.Tag(sum[:]), p
}

// stock puts n objects of about size bytes into the store, behind the
// server's back.
func (r *realm) stock(n, size int) map[seal.Tag][]byte {
	r.t.Helper()
	all := make(map[seal.Tag][]byte)
	for range n {
		tag, p := object(max(1, size/2+mathrand.IntN(size)))
		all[tag] = p
		r.plant(tag, p)
	}
	return all
}

// file is where the store keeps an object.
func (r *realm) file(tag seal.Tag) string {
	name := tag.String()
	return filepath.Join(r.root, "users", "alice", "isr", "box", "hdk", name[:2], name)
}

func (r *realm) plant(tag seal.Tag, p []byte) {
	r.t.Helper()
	file := r.file(tag)
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		r.t.Fatal(err)
	}
	if err := os.WriteFile(file, p, 0o400); err != nil {
		r.t.Fatal(err)
	}
}

func tagsOf(all map[seal.Tag][]byte) []seal.Tag {
	var tags []seal.Tag
	for t := range all {
		tags = append(tags, t)
	}
	return tags
}

// inTime fails the test if f hangs.
func inTime(t testing.TB, what string, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	select {
	case <-done:
	case <-time.After(2 * time.Minute):
		t.Fatalf("%s: not done after two minutes", what)
	}
}

// within waits for something that sends no event.
func within(t testing.TB, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(2 * time.Minute); !f(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within two minutes: %s", what)
		}
	}
}

// atTimes fails the test if f fails each of n times: what is measured is the
// machine's too, and a busy one is late, but not each time.
func atTimes(t testing.TB, n int, f func(i int) error) {
	t.Helper()
	var err error
	for i := range n {
		if err = f(i); err == nil {
			return
		}
		t.Logf("%d: %v", i, err)
	}
	t.Errorf("each of %d times: %v", n, err)
}

var bg = context.Background()

func TestVerbs(t *testing.T) {
	t.Parallel()
	r := newRealm(t)
	s := r.open()
	names, err := s.ListParcels(bg)
	if err != nil || len(names) != 1 || names[0] != "box" {
		t.Fatalf("ListParcels: %v %v, want [box]", names, err)
	}
	cfg, text, err := s.Config(bg, "box")
	if err != nil || cfg.Parcel != "box" || !bytes.Contains(text, []byte("UUID:="+cfg.UUID)) {
		t.Fatalf("Config: %+v %q %v", cfg, text, err)
	}
	list, err := s.Ls(bg, "", 3)
	if err != nil || len(list) != 1 || list[0].UUID != cfg.UUID || list[0].Version != cfg.Version || len(list[0].Versions) != 1 {
		t.Fatalf("Ls: %+v %v", list, err)
	}
	head, err := s.Keyroot(bg, "box", 0)
	if err != nil {
		t.Fatal(err)
	}
	if first, err := s.Keyroot(bg, "box", 1); err != nil || first != head {
		t.Errorf("Keyroot of version 1: %v %v, want the head's", first.Tag, err)
	}
	if _, err := s.Objects("box").Get(bg, head.Tag); err != nil {
		t.Errorf("get keyring: %v", err)
	}
	l, err := s.Acquire(bg, "box", "a host; with `characters`", "acq-1")
	if err != nil {
		t.Fatal(err)
	}
	if again, err := s.Acquire(bg, "box", "a host; with `characters`", "acq-1"); err != nil || again.Nonce != l.Nonce || again.Epoch != l.Epoch {
		t.Errorf("acquired again: %+v %v, want the same lock", again, err)
	}
	if _, err := s.Acquire(bg, "box", "other", "acq-2"); !errors.Is(err, parcel.ErrLocked) {
		t.Errorf("acquire of a locked parcel: %v, want ErrLocked", err)
	}
	if c, err := s.CheckLock(bg, "box", l.Nonce); err != nil || c.Epoch != l.Epoch || c.Nonce != "" {
		t.Errorf("CheckLock: %+v %v", c, err)
	}
	if _, err := s.CheckLock(bg, "box", "wrong"); !errors.Is(err, parcel.ErrNotHolder) {
		t.Errorf("CheckLock with a wrong nonce: %v, want ErrNotHolder", err)
	}
	if v, err := s.Rollback(bg, "box", l.Nonce, 1); err != nil || v != 1 {
		t.Errorf("Rollback to the head: version %d %v, want 1", v, err)
	}
	if _, err := s.Commit(bg, "box", proto.CommitRequest{Nonce: l.Nonce, Parent: 7, Keyroot: head, ID: "c1"}); !errors.Is(err, parcel.ErrConflict) {
		t.Errorf("commit on another head: %v, want ErrConflict", err)
	}
	have, lack := head.Tag, seal.Tag(bytes.Repeat([]byte{1}, 32))
	if miss, err := s.Missing(bg, "box", []seal.Tag{have, lack}); err != nil || len(miss) != 1 || miss[0] != lack {
		t.Errorf("Missing: %v %v, want the one it lacks", miss, err)
	}
	if was, err := s.Release(bg, "box", l.Nonce, false); err != nil || was == nil || was.Epoch != l.Epoch {
		t.Errorf("Release: %+v %v", was, err)
	}
	if was, err := s.Release(bg, "box", l.Nonce, false); err != nil || was == nil || was.Epoch != l.Epoch {
		t.Errorf("released again: %+v %v, want the same answer", was, err)
	}
	if _, err := s.Release(bg, "box", "wrong", false); !errors.Is(err, parcel.ErrNotHolder) {
		t.Errorf("Release with a wrong nonce: %v, want ErrNotHolder", err)
	}
	if lines, err := s.CheckParcel(bg, "box", 0, true); err != nil {
		t.Errorf("CheckParcel: %v %v", lines, err)
	}
	if _, err := s.Motd(bg); err != nil {
		t.Errorf("Motd: %v", err)
	}
	for what, f := range map[string]func() error{
		"Config":  func() error { _, _, err := s.Config(bg, "none"); return err },
		"Keyroot": func() error { _, err := s.Keyroot(bg, "none", 0); return err },
		"Get":     func() error { _, err := s.Objects("none").Get(bg, lack); return err },
		"Missing": func() error { _, err := s.Missing(bg, "none", []seal.Tag{lack}); return err },
	} {
		if err := f(); !errors.Is(err, parcel.ErrNoParcel) {
			t.Errorf("%s of no parcel: %v, want ErrNoParcel", what, err)
		}
	}
	if _, err := s.Keyroot(bg, "box", 99); !errors.Is(err, parcel.ErrNoVersion) {
		t.Errorf("Keyroot of version 99: %v, want ErrNoVersion", err)
	}
	if _, _, err := s.Config(bg, "box; rm"); !errors.Is(err, parcel.ErrUsage) {
		t.Errorf("a name with a semicolon: %v, want ErrUsage", err)
	}
	if now, made := r.Conns(); made != 1 {
		t.Errorf("%d connections, %d made: one is enough for verbs and a single get", now, made)
	}
	in, out := s.Traffic()
	up, down := r.Bytes()
	if in < down-4096 || in > down+4096 || out < up-4096 || out > up+4096 {
		t.Errorf("Traffic: %d in, %d out; the link carried %d and %d", in, out, down, up)
	}
}

func TestMissingMany(t *testing.T) {
	t.Parallel()
	r := newRealm(t)
	s := r.open()
	stocked := r.stock(50, 200)
	var ask, want []seal.Tag
	for tag := range stocked {
		ask = append(ask, tag)
		for range 200 {
			lack, _ := object(8)
			ask, want = append(ask, lack), append(want, lack)
		}
	}
	got, err := s.Missing(bg, "box", ask)
	if err != nil || len(got) != len(want) {
		t.Fatalf("Missing: %d %v, want %d", len(got), err, len(want))
	}
	for i := range got {
		if got[i] != want[i] {
			t.Fatalf("tag %d is out of order", i)
		}
	}
	if got, err := s.Missing(bg, "box", nil); err != nil || got != nil {
		t.Errorf("Missing of nothing: %v %v", got, err)
	}
}

func TestUnreachable(t *testing.T) {
	t.Parallel()
	r := newRealm(t)
	s := r.open()
	r.Refuse(true)
	_, err := s.ListParcels(bg)
	if !errors.Is(err, parcel.ErrUnreachable) || !errors.Is(err, dial.ErrUnreachable) || parcel.KindOf(err) != parcel.Unreachable {
		t.Errorf("no connection: %v, want ErrUnreachable", err)
	}
	if err != nil && !strings.Contains(err.Error(), "127.0.0.1") {
		t.Errorf("error %q names no host", err)
	}
	r.Refuse(false)
	if _, err := s.ListParcels(bg); err != nil {
		t.Fatalf("after it is back: %v", err)
	}
	// An old connection that has died is no error: the verb is asked again.
	r.Cut()
	if _, err := s.ListParcels(bg); err != nil {
		t.Errorf("after the connection was cut: %v", err)
	}
	r.Cut()
	r.Refuse(true)
	if _, err := s.ListParcels(bg); !errors.Is(err, parcel.ErrUnreachable) {
		t.Errorf("cut and refused: %v, want ErrUnreachable", err)
	}
	// By policy it is waited for.
	ctx := WithPolicy(bg, Policy{For: time.Minute})
	done := make(chan error, 1)
	go func() { _, err := s.ListParcels(ctx); done <- err }()
	select {
	case err := <-done:
		t.Fatalf("ended while the server was away: %v", err)
	case <-time.After(300 * time.Millisecond):
	}
	r.Refuse(false)
	inTime(t, "verb by policy", func() {
		if err := <-done; err != nil {
			t.Errorf("verb by policy: %v", err)
		}
	})

	other := r.target()
	other.User = "mallory"
	bad := Open(other, nil, nil)
	defer bad.Close()
	if _, err := bad.ListParcels(bg); !errors.Is(err, parcel.ErrDenied) {
		t.Errorf("as a user that is not: %v, want ErrDenied", err)
	}
	s.Close()
	if _, err := s.ListParcels(bg); !errors.Is(err, parcel.ErrUnreachable) {
		t.Errorf("after Close: %v, want ErrUnreachable", err)
	}
}

// Breaking a lock, asked for again, would break the next holder's: it is asked
// for once, whatever happens.
func TestOnceIsOnce(t *testing.T) {
	t.Parallel()
	r := newRealm(t)
	s := r.open()
	l, err := s.Acquire(bg, "box", "h", "a")
	if err != nil {
		t.Fatal(err)
	}
	r.Cut()
	r.Refuse(true)
	_, err = s.Release(WithPolicy(bg, Policy{Forever: true}), "box", l.Nonce, true)
	if !errors.Is(err, parcel.ErrUnreachable) {
		t.Fatalf("release by force: %v, want ErrUnreachable", err)
	}
	// A rollback finds itself done.
	r.Refuse(false)
	if v, err := s.Rollback(bg, "box", l.Nonce, 1); err != nil || v != 1 {
		t.Fatalf("rollback to the head: version %d, %v", v, err)
	}
	r.Cut()
	if v, err := s.Rollback(bg, "box", l.Nonce, 1); err != nil || v != 1 {
		t.Fatalf("rollback over a dead connection: version %d, %v", v, err)
	}
}

func TestCancel(t *testing.T) {
	t.Parallel()
	r := newRealm(t)
	s := r.open()
	if _, err := s.ListParcels(bg); err != nil {
		t.Fatal(err)
	}
	r.Stall(true)
	for what, f := range map[string]func(context.Context) error{
		"verb": func(ctx context.Context) error { _, err := s.ListParcels(ctx); return err },
		"missing": func(ctx context.Context) error {
			_, err := s.Missing(ctx, "box", []seal.Tag{seal.Tag(make([]byte, 32))})
			return err
		},
		"get": func(ctx context.Context) error {
			_, err := s.Objects("box").Get(ctx, seal.Tag(make([]byte, 32)))
			return err
		},
		"put": func(ctx context.Context) error {
			tag, p := object(10)
			return s.Objects("box").PutAll(ctx, []seal.Tag{tag}, func(context.Context, seal.Tag) ([]byte, error) { return p, nil }, nil)
		},
	} {
		ctx, cancel := context.WithCancel(bg)
		time.AfterFunc(50*time.Millisecond, cancel)
		inTime(t, what, func() {
			if err := f(ctx); !errors.Is(err, context.Canceled) {
				t.Errorf("%s: %v, want Canceled", what, err)
			}
		})
	}
}

// Whoever was asked is told to be quicker.
func TestLate(t *testing.T) {
	s := Open(sshconf.Target{Host: "h"}, nil, nil)
	defer s.Close()
	err := s.sorted(fmt.Errorf("%w: %w", dial.ErrUnreachable, dial.ErrLate))
	var pe *parcel.Error
	if !errors.As(err, &pe) || pe.Kind != parcel.Unreachable || !strings.Contains(pe.Hint, "sooner") {
		t.Errorf("sorted: %v, hint of %+v", err, pe)
	}
}

func TestWord(t *testing.T) {
	for in, want := range map[string]string{"thinkpad": "thinkpad", "a b": "a_b", "": "unknown", "--force": "force", "x`$(y)": "x___y_", "é": "_"} {
		if got := word(in); got != want {
			t.Errorf("word(%q) = %q, want %q", in, got, want)
		}
		if w, err := proto.Split(word(in)); err != nil || len(w) != 1 {
			t.Errorf("word(%q): the server splits it into %q, %v", in, w, err)
		}
	}
}

var _ net.Conn = (*tap)(nil)
