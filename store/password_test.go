package store_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/bcrypt"
	"pgregory.net/rapid"

	"isr/store"
	"isr/store/parcel"
	"isr/store/storetest"
)

// cheapPasswords makes hashing quick until the end of the test.
func cheapPasswords(t *testing.T) {
	cost, pause := store.PasswordCost, *store.WrongPause
	store.PasswordCost, *store.WrongPause = bcrypt.MinCost, time.Millisecond
	t.Cleanup(func() { store.PasswordCost, *store.WrongPause = cost, pause })
}

func passwordStore(t *testing.T) *store.Store {
	t.Helper()
	cheapPasswords(t)
	s, err := store.Init(filepath.Join(storetest.TempDir(t), "root"), "test")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"alice", "bob"} {
		if err := s.AddUser(name, nil); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

func TestPassword(t *testing.T) {
	s := passwordStore(t)
	if s.AnyPassword() {
		t.Errorf("a new realm: some user has a password")
	}
	want := func(what string, err, target error) {
		t.Helper()
		if !errors.Is(err, target) || (err == nil) != (target == nil) {
			t.Errorf("%s: got %v, want %v", what, err, target)
		}
	}
	want("none set", s.CheckPassword("alice", []byte("alice's secret")), store.ErrPassword)
	want("none set, empty", s.CheckPassword("alice", nil), store.ErrPassword)
	want("change with an old one where none is", s.ChangePassword("alice", []byte("guessed one"), []byte("alice's secret")), store.ErrPassword)
	want("first", s.ChangePassword("alice", nil, []byte("alice's secret")), nil)
	want("right", s.CheckPassword("alice", []byte("alice's secret")), nil)
	want("wrong", s.CheckPassword("alice", []byte("alice's secrets")), store.ErrPassword)
	want("empty", s.CheckPassword("alice", nil), store.ErrPassword)
	want("another user's", s.CheckPassword("bob", []byte("alice's secret")), store.ErrPassword)
	want("no user", s.CheckPassword("nobody", []byte("alice's secret")), store.ErrPassword)
	want("no name", s.CheckPassword("../alice", []byte("alice's secret")), store.ErrPassword)
	want("change with none", s.ChangePassword("alice", nil, []byte("mallory's one")), store.ErrPassword)
	want("change with a wrong one", s.ChangePassword("alice", []byte("guessed one"), []byte("mallory's one")), store.ErrPassword)
	want("unchanged", s.CheckPassword("alice", []byte("alice's secret")), nil)
	want("change", s.ChangePassword("alice", []byte("alice's secret"), []byte("pässwörd 2")), nil)
	want("old", s.CheckPassword("alice", []byte("alice's secret")), store.ErrPassword)
	want("new", s.CheckPassword("alice", []byte("pässwörd 2")), nil)
	want("change of nobody's", s.ChangePassword("nobody", nil, []byte("alice's secret")), parcel.ErrNoParcel)

	// 72 bytes are the most, and what is longer is not taken for them.
	long := []byte(strings.Repeat("x", 72))
	want("long", s.SetPassword("bob", long), nil)
	want("long", s.CheckPassword("bob", long), nil)
	want("longer", s.CheckPassword("bob", append(long, 'x')), store.ErrPassword)

	file := filepath.Join(s.Root(), "users", "alice", "password")
	fi, err := os.Stat(file)
	if err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("%s: %v, %v; want mode 0600", file, fi.Mode(), err)
	}
	text, err := os.ReadFile(file)
	if err != nil || !strings.HasPrefix(string(text), "BCRYPT:=$2") {
		t.Errorf("%s: %q, %v; want a bcrypt hash", file, text, err)
	}
	if !s.AnyPassword() {
		t.Errorf("no user has a password")
	}
	want("remove", s.RemovePassword("alice"), nil)
	want("removed", s.CheckPassword("alice", []byte("pässwörd 2")), store.ErrPassword)
	if err := s.RemovePassword("alice"); err == nil {
		t.Errorf("remove again: no error")
	}
	// What cannot be read lets nobody in.
	for _, text := range []string{"", "BCRYPT:=\n", "BCRYPT:=x\n", "x\n"} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := s.CheckPassword("alice", nil); err == nil {
			t.Errorf("%q: lets in", text)
		}
		if err := s.ChangePassword("alice", nil, []byte("mallory's one")); err == nil {
			t.Errorf("%q: can be changed without the old", text)
		}
	}
}

// Whatever the rules let pass is a password, and no other is it.
func TestPasswordProperty(t *testing.T) {
	s := passwordStore(t)
	rapid.Check(t, func(t *rapid.T) {
		p := []byte(rapid.StringN(0, 80, 90).Draw(t, "password"))
		err := s.SetPassword("alice", p)
		if ok := parcel.CheckPassword(p) == nil; ok != (err == nil) {
			t.Fatalf("set %q: %v", p, err)
		} else if !ok {
			return
		}
		if err := s.CheckPassword("alice", p); err != nil {
			t.Fatalf("check %q: %v", p, err)
		}
		other := append([]byte(nil), p...)
		other[rapid.IntRange(0, len(p)-1).Draw(t, "byte")] ^= 1 << rapid.IntRange(0, 6).Draw(t, "bit")
		if err := s.CheckPassword("alice", other); err == nil {
			t.Fatalf("%q is taken for %q", other, p)
		}
	})
}

// Of many who change it at once from the same old one, one succeeds.
func TestPasswordChangedAtOnce(t *testing.T) {
	s := passwordStore(t)
	if err := s.SetPassword("alice", []byte("the first one")); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	done := make(chan string, 8)
	for i := range 8 {
		wg.Go(func() {
			p := strings.Repeat(string(rune('a'+i)), 10)
			if s.ChangePassword("alice", []byte("the first one"), []byte(p)) == nil {
				done <- p
			}
		})
	}
	wg.Wait()
	close(done)
	p := <-done
	if len(done) > 0 || s.CheckPassword("alice", []byte(p)) != nil {
		t.Errorf("%q and %d others were told that theirs is the password", p, len(done))
	}
}

// A name does not tell by the time it takes whether there is a password.
func TestPasswordTakesAsLong(t *testing.T) {
	s := passwordStore(t)
	store.PasswordCost = 8
	*store.NobodysHash = sync.OnceValue(store.NewNobodysHash)
	(*store.NobodysHash)()
	if err := s.SetPassword("alice", []byte("alice's secret")); err != nil {
		t.Fatal(err)
	}
	took := make(map[string]time.Duration)
	for _, name := range []string{"alice", "bob", "nobody", "alice", "bob", "nobody", "alice", "bob", "nobody"} {
		began := time.Now()
		s.CheckPassword(name, []byte("a wrong guess"))
		if d := time.Since(began); took[name] == 0 || d < took[name] {
			took[name] = d
		}
	}
	for _, name := range []string{"bob", "nobody"} {
		if took[name] < took["alice"]/4 || took[name] > 4*took["alice"] {
			t.Errorf("%s: %v, alice %v", name, took[name], took["alice"])
		}
	}
}
