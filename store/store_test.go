package store_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"

	"isr/store"
	"isr/store/check"
	"isr/store/parcel"
	"isr/store/storetest"
	"isr/store/tree"
)

var ctx = context.Background()

func TestInitOpen(t *testing.T) {
	dir := filepath.Join(storetest.TempDir(t), "a", "b")
	if _, err := store.Open(dir); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "no realm.cfg") {
		t.Errorf("open of nothing: got %v", err)
	}
	s, err := store.Init(dir, "cmu")
	if err != nil {
		t.Fatal(err)
	}
	if got := s.Realm(); got != "cmu" {
		t.Errorf("realm: got %q", got)
	}
	if _, err := store.Init(dir, "cmu"); !errors.Is(err, parcel.ErrExists) {
		t.Errorf("init of a store: got %v", err)
	}
	again, err := store.Open(dir)
	if err != nil || !bytes.Equal(*again.Secret(), *s.Secret()) || len(*s.Secret()) != 32 {
		t.Errorf("open: got %v, secrets %x %x", err, *again.Secret(), *s.Secret())
	}
	if _, err := store.Init(storetest.TempDir(t), "a b"); !errors.Is(err, parcel.ErrUsage) {
		t.Errorf("realm of two words: got %v", err)
	}
	cfg := filepath.Join(dir, tree.RealmFile)
	p, _ := os.ReadFile(cfg)
	os.WriteFile(cfg, bytes.Replace(p, []byte("FORMAT:=1"), []byte("FORMAT:=2"), 1), 0o600)
	if _, err := store.Open(dir); err == nil || !strings.Contains(err.Error(), "format") {
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
	s := storetest.New(t)
	key1, line1 := newKey(t)
	key2, line2 := newKey(t)
	if err := s.AddUser("carol", []string{"# hers\n" + line1 + " carol@laptop\n"}); err != nil {
		t.Fatal(err)
	}
	users, err := s.Users()
	if got := strings.Join(users, " "); err != nil || got != "alice bob carol" {
		t.Errorf("users: got %q, %v", got, err)
	}
	if u, err := ownerOf(s, key1); u != "carol" || err != nil {
		t.Errorf("user of key 1: got %q, %v", u, err)
	}
	if u, err := ownerOf(s, key2); u != "" || !errors.Is(err, parcel.ErrDenied) {
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
	file := filepath.Join(s.UserAt("carol").Dir, tree.KeysFile)
	if p, _ := os.ReadFile(file); bytes.Count(p, []byte("\n")) != 2 {
		t.Errorf("authorized_keys: want 2 lines, got %q", p)
	}
	if u, err := ownerOf(s, key2); u != "carol" || err != nil {
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
	storetest.WantSound(t, s)

	// By hand, all the same: nobody gets in with a key of two.
	os.WriteFile(filepath.Join(s.UserAt("bob").Dir, tree.KeysFile), []byte(line1), 0o600)
	if u, err := ownerOf(s, key1); u != "" || !errors.Is(err, parcel.ErrDenied) || !strings.Contains(err.Error(), "bob and carol") {
		t.Errorf("shared key: got %q, %v", u, err)
	}
	if _, sum := storetest.Check(t, s, check.Options{}); sum.Errors != 1 {
		t.Errorf("check with a shared key: got %d errors, want 1", sum.Errors)
	}
	// A line with an option that is not kept lets nobody in.
	os.WriteFile(filepath.Join(s.UserAt("bob").Dir, tree.KeysFile), []byte("command=\"id\" "+line1+"\n"), 0o600)
	if u, err := ownerOf(s, key1); u != "carol" || err != nil {
		t.Errorf("bob's with options: got %q, %v", u, err)
	}
	if err := s.DelUser("bob"); err != nil {
		t.Error(err)
	}
	storetest.NewParcel(t, s)
	if err := s.DelUser("alice"); !errors.Is(err, parcel.ErrExists) {
		t.Errorf("delete of a user with a parcel: got %v", err)
	}
	// What a killed import left is no parcel, and shows in no list.
	if unlock, err := s.Reserve("carol", "half"); err != nil {
		t.Error(err)
	} else {
		if err := s.DelUser("carol"); !errors.Is(err, parcel.ErrBusy) {
			t.Errorf("delete of a user with a parcel in the making: got %v", err)
		}
		unlock()
	}
	if err := s.DelUser("carol"); err != nil {
		t.Errorf("delete of a user with half a parcel: got %v", err)
	}
	if err := s.DelUser("nobody"); !errors.Is(err, parcel.ErrNoParcel) {
		t.Errorf("delete of nobody: got %v", err)
	}
	for _, name := range []string{"", ".", "..", "../x", "a/b", ".isr", "-f", "a b"} {
		if err := s.AddUser(name, nil); !errors.Is(err, parcel.ErrUsage) {
			t.Errorf("user %q: got %v", name, err)
		}
	}
	storetest.WantSound(t, s)
}

func TestCommit(t *testing.T) {
	s := storetest.New(t)
	p := storetest.NewParcel(t, s)
	if v := storetest.Commit(t, p, storetest.Change{0: storetest.ChunkOf("zero"), 999: storetest.ChunkOf("last but one")}); v != 2 {
		t.Fatalf("got version %d, want 2", v)
	}
	if v := storetest.Commit(t, p, storetest.Change{0: storetest.ChunkOf("zero again"), 1000: storetest.ChunkOf("")}); v != 3 {
		t.Fatalf("got version %d, want 3", v)
	}
	p = storetest.Reopen(t, p)
	storetest.WantChunk(t, p, 1, 0, "")
	storetest.WantChunk(t, p, 2, 0, "zero")
	storetest.WantChunk(t, p, 2, 999, "last but one")
	storetest.WantChunk(t, p, 3, 0, "zero again")
	storetest.WantChunk(t, p, 3, 999, "last but one")
	if ps := storetest.WantSound(t, s); len(ps) != 0 {
		t.Errorf("notes: %v", ps)
	}
}
