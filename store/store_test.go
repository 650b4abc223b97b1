package store

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"io/fs"
	mrand "math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"

	"isr/store/keyring"
	"isr/store/parcel"
	"isr/store/seal"
	"isr/store/tree"
)

var ctx = context.Background()

const testChunk = 4096

// newStore is a store with users alice and bob.
func newStore(t testing.TB) *Store {
	t.Helper()
	return newStoreIn(t, t.TempDir())
}

// newStoreInMemory is for tests that make thousands of small changes, and are
// not about the disk.
func newStoreInMemory(t testing.TB) *Store {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "isr-store-test-")
	if err != nil {
		return newStore(t)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return newStoreIn(t, dir)
}

func newStoreIn(t testing.TB, dir string) *Store {
	t.Helper()
	s, err := Init(dir, "test")
	if err != nil {
		t.Fatal(err)
	}
	for _, u := range []string{"alice", "bob"} {
		if err := s.AddUser(u, nil); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

// newParcel is alice's winxp: a disk of 1000 chunks and one byte, memory of 10
// chunks.
func newParcel(t testing.TB, s *Store) *Parcel {
	t.Helper()
	p, err := s.Create(ctx, "alice", "winxp", CreateOptions{DiskSize: 1000*testChunk + 1, MemSize: 10 * testChunk,
		ChunkSize: testChunk, Comment: "a test"})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// reopen is p by another Store, as another process sees it.
func reopen(t testing.TB, p *Parcel) *Parcel {
	t.Helper()
	s, err := Open(filepath.Dir(filepath.Dir(p.user.dir)))
	if err != nil {
		t.Fatal(err)
	}
	q, err := s.Parcel(p.User(), p.Name())
	if err != nil {
		t.Fatal(err)
	}
	return q
}

// wantSound fails unless the whole store is sound, content included; it
// returns the notes.
func wantSound(t testing.TB, s *Store) []Problem {
	t.Helper()
	ps, sum := check(t, s, CheckOptions{Content: true})
	if sum.Errors > 0 {
		t.Errorf("store is not sound:")
		for _, p := range ps {
			t.Errorf("  %s", p)
		}
	}
	return ps
}

func check(t testing.TB, s *Store, o CheckOptions) ([]Problem, CheckSummary) {
	t.Helper()
	var ps []Problem
	sum, err := s.Check(ctx, o, func(p Problem) { ps = append(ps, p) })
	if err != nil {
		t.Fatalf("check: %v", err)
	}
	return ps, sum
}

// stage puts an object, as the server does.
func stage(p *Parcel, tag seal.Tag, sealed []byte) error {
	w, err := p.Stage(tag)
	if err != nil {
		return err
	}
	defer w.Abort()
	if _, err := w.WriteAt(sealed, 0); err != nil {
		return err
	}
	return w.Close()
}

// stager makes stage a keyring.Putter, and counts.
type stager struct {
	p    *Parcel
	puts int
}

func (s *stager) Put(_ context.Context, tag seal.Tag, sealed []byte) error {
	s.puts++
	return stage(s.p, tag, sealed)
}

// change is one new content of a disk: chunk number → plaintext.
type change map[int64][]byte

func chunkOf(s string) []byte {
	b := make([]byte, testChunk)
	copy(b, s)
	return b
}

// stageVersion stages all objects of a version with c changed on the disk of
// the head; cfg is its cfg archive, may be empty.
func stageVersion(t testing.TB, p *Parcel, c change, cfgArchive string) (keyroot seal.Ref, put int) {
	t.Helper()
	cfg, err := p.Config()
	if err != nil {
		t.Fatal(err)
	}
	root, err := p.Root(ctx, 0)
	if err != nil {
		t.Fatal(err)
	}
	s, dst := cfg.Sealer(), &stager{p: p}
	im, _ := root.Image(keyring.Disk)
	tree := keyring.NewTree(s, im, p)
	for n, plain := range c {
		if seal.Zero(plain) {
			tree.Set(n, seal.Ref{})
			continue
		}
		ref, sealed, err := s.Seal(plain)
		if err != nil {
			t.Fatal(err)
		}
		if err := dst.Put(ctx, ref.Tag, sealed); err != nil {
			t.Fatal(err)
		}
		tree.Set(n, ref)
	}
	if im, err = tree.Flush(ctx, dst); err != nil {
		t.Fatal(err)
	}
	root = root.Clone()
	root.SetImage(im)
	root.Parent, root.Host, root.Comment = cfg.Version, "testhost", "changed"
	if cfgArchive != "" {
		ref, sealed, err := s.Seal([]byte(cfgArchive))
		if err != nil {
			t.Fatal(err)
		}
		if err := dst.Put(ctx, ref.Tag, sealed); err != nil {
			t.Fatal(err)
		}
		root.Cfg, root.CfgSize = ref, int64(len(cfgArchive))
	}
	keyroot, sealed, err := keyring.SealRoot(s, root)
	if err != nil {
		t.Fatal(err)
	}
	if err := dst.Put(ctx, keyroot.Tag, sealed); err != nil {
		t.Fatal(err)
	}
	return keyroot, dst.puts
}

// commit acquires, stages, commits and releases.
func commit(t testing.TB, p *Parcel, c change) int {
	t.Helper()
	l, err := p.Acquire("alice", "testhost", parcel.NewID())
	if err != nil {
		t.Fatal(err)
	}
	keyroot, _ := stageVersion(t, p, c, "")
	v, err := p.Commit(ctx, CommitRequest{Nonce: l.Nonce, Parent: l.Version, Keyroot: keyroot, ID: parcel.NewID()})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Release(l.Nonce, false); err != nil {
		t.Fatal(err)
	}
	return v
}

// wantChunk fails unless chunk n of version v's disk begins with want.
func wantChunk(t testing.TB, p *Parcel, v int, n int64, want string) {
	t.Helper()
	cfg, err := p.Config()
	if err != nil {
		t.Fatal(err)
	}
	root, err := p.Root(ctx, v)
	if err != nil {
		t.Fatal(err)
	}
	im, _ := root.Image(keyring.Disk)
	ref, err := keyring.NewTree(cfg.Sealer(), im, p).Ref(ctx, n)
	if err != nil {
		t.Fatal(err)
	}
	got := make([]byte, testChunk)
	if !ref.IsNil() {
		sealed, err := p.Get(ctx, ref.Tag)
		if err != nil {
			t.Fatal(err)
		}
		if got, err = cfg.Sealer().Unseal(ref, sealed, testChunk); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(got, chunkOf(want)) {
		t.Errorf("version %d chunk %d: got %.20q, want %q", v, n, got, want)
	}
}

func random(n int, seed uint64) []byte {
	b := make([]byte, n)
	r := mrand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)})
	r.Read(b)
	return b
}

func TestInitOpen(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b")
	if _, err := Open(dir); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "no realm.cfg") {
		t.Errorf("open of nothing: got %v", err)
	}
	s, err := Init(dir, "cmu")
	if err != nil {
		t.Fatal(err)
	}
	if got := s.Realm(); got != "cmu" {
		t.Errorf("realm: got %q", got)
	}
	if _, err := Init(dir, "cmu"); !errors.Is(err, parcel.ErrExists) {
		t.Errorf("init of a store: got %v", err)
	}
	again, err := Open(dir)
	if err != nil || !bytes.Equal(again.secret, s.secret) || len(s.secret) != 32 {
		t.Errorf("open: got %v, secrets %x %x", err, again.secret, s.secret)
	}
	if _, err := Init(t.TempDir(), "a b"); !errors.Is(err, parcel.ErrUsage) {
		t.Errorf("realm of two words: got %v", err)
	}
	cfg := filepath.Join(dir, tree.RealmFile)
	p, _ := os.ReadFile(cfg)
	os.WriteFile(cfg, bytes.Replace(p, []byte("FORMAT:=1"), []byte("FORMAT:=2"), 1), 0o600)
	if _, err := Open(dir); err == nil || !strings.Contains(err.Error(), "format") {
		t.Errorf("open of a later format: got %v", err)
	}
}

func newKey(t testing.TB) (ssh.PublicKey, string) {
	t.Helper()
	pub, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	key, err := ssh.NewPublicKey(pub)
	if err != nil {
		t.Fatal(err)
	}
	return key, strings.TrimSpace(string(ssh.MarshalAuthorizedKey(key)))
}

func TestUsers(t *testing.T) {
	s := newStore(t)
	key1, line1 := newKey(t)
	key2, line2 := newKey(t)
	if err := s.AddUser("carol", []string{"# hers\n" + line1 + " carol@laptop\n"}); err != nil {
		t.Fatal(err)
	}
	users, err := s.Users()
	if got := strings.Join(users, " "); err != nil || got != "alice bob carol" {
		t.Errorf("users: got %q, %v", got, err)
	}
	if u, err := s.owner(key1); u != "carol" || err != nil {
		t.Errorf("user of key 1: got %q, %v", u, err)
	}
	if u, err := s.owner(key2); u != "" || !errors.Is(err, parcel.ErrDenied) {
		t.Errorf("user of nobody's key: got %q, %v", u, err)
	}
	if err := s.AddUser("carol", nil); !errors.Is(err, parcel.ErrExists) {
		t.Errorf("carol again: got %v", err)
	}
	for range 2 { // the second time it is there
		if err := s.AddKeys("carol", []string{line2, line1}); err != nil {
			t.Fatal(err)
		}
	}
	file := filepath.Join(s.userAt("carol").dir, tree.KeysFile)
	if p, _ := os.ReadFile(file); bytes.Count(p, []byte("\n")) != 2 {
		t.Errorf("authorized_keys: want 2 lines, got %q", p)
	}
	if u, err := s.owner(key2); u != "carol" || err != nil {
		t.Errorf("user of key 2: got %q, %v", u, err)
	}
	for _, bad := range []string{"ssh-ed25519 AAAA", "nonsense", "command=\"id\" " + line1, "from=\"host\" " + line1, line1 + "\nx"} {
		if err := s.AddKeys("carol", []string{bad}); !errors.Is(err, parcel.ErrUsage) {
			t.Errorf("key %.20q: got %v", bad, err)
		}
	}
	if err := s.AddKeys("bob", []string{line1}); !errors.Is(err, parcel.ErrExists) {
		t.Errorf("carol's key for bob: got %v", err)
	}
	wantSound(t, s)

	// By hand, all the same: nobody gets in with a key of two.
	os.WriteFile(filepath.Join(s.userAt("bob").dir, tree.KeysFile), []byte(line1), 0o600)
	if u, err := s.owner(key1); u != "" || !errors.Is(err, parcel.ErrDenied) || !strings.Contains(err.Error(), "bob and carol") {
		t.Errorf("shared key: got %q, %v", u, err)
	}
	if _, sum := check(t, s, CheckOptions{}); sum.Errors != 1 {
		t.Errorf("check with a shared key: got %d errors, want 1", sum.Errors)
	}
	// A line with an option that is not kept lets nobody in.
	os.WriteFile(filepath.Join(s.userAt("bob").dir, tree.KeysFile), []byte("command=\"id\" "+line1+"\n"), 0o600)
	if u, err := s.owner(key1); u != "carol" || err != nil {
		t.Errorf("bob's with options: got %q, %v", u, err)
	}
	if err := s.DelUser("bob"); err != nil {
		t.Error(err)
	}
	newParcel(t, s)
	if err := s.DelUser("alice"); !errors.Is(err, parcel.ErrExists) {
		t.Errorf("delete of a user with a parcel: got %v", err)
	}
	if err := s.DelUser("nobody"); !errors.Is(err, parcel.ErrNoParcel) {
		t.Errorf("delete of nobody: got %v", err)
	}
	for _, name := range []string{"", ".", "..", "../x", "a/b", ".isr", "-f", "a b"} {
		if err := s.AddUser(name, nil); !errors.Is(err, parcel.ErrUsage) {
			t.Errorf("user %q: got %v", name, err)
		}
	}
	wantSound(t, s)
}

func TestCommit(t *testing.T) {
	s := newStore(t)
	p := newParcel(t, s)
	if v := commit(t, p, change{0: chunkOf("zero"), 999: chunkOf("last but one")}); v != 2 {
		t.Fatalf("got version %d, want 2", v)
	}
	if v := commit(t, p, change{0: chunkOf("zero again"), 1000: chunkOf("")}); v != 3 {
		t.Fatalf("got version %d, want 3", v)
	}
	p = reopen(t, p)
	wantChunk(t, p, 1, 0, "")
	wantChunk(t, p, 2, 0, "zero")
	wantChunk(t, p, 2, 999, "last but one")
	wantChunk(t, p, 3, 0, "zero again")
	wantChunk(t, p, 3, 999, "last but one")
	if ps := wantSound(t, s); len(ps) != 0 {
		t.Errorf("notes: %v", ps)
	}
}
