package store_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"isr/store/check"
	"isr/store/parcel"
	"isr/store/storetest"
	"isr/store/tree"
)

func TestLock(t *testing.T) {
	s := storetest.New(t)
	p := storetest.NewParcel(t, s)
	if h, err := p.Holder(); h != nil || err != nil {
		t.Errorf("holder of a new parcel: got %v, %v", h, err)
	}
	if r, err := p.LastReleased(); r != nil || err != nil {
		t.Errorf("last released of a new parcel: got %v, %v", r, err)
	}
	if _, err := p.CheckLock("x"); !errors.Is(err, parcel.ErrNotHolder) || !strings.Contains(err.Error(), "it is free") {
		t.Errorf("check of no lock: got %v", err)
	}
	if _, err := p.Release("", true); !errors.Is(err, parcel.ErrNotHolder) {
		t.Errorf("break of no lock: got %v", err)
	}
	a, err := p.Acquire("alice", "thinkpad\n x", "id1")
	if err != nil {
		t.Fatal(err)
	}
	if a.Epoch != 1 || a.Version != 1 || a.Host != "thinkpad  x" || a.User != "alice" || a.Nonce == "" {
		t.Errorf("lock: got %+v", a)
	}
	again, err := storetest.Reopen(t, p).Acquire("alice", "thinkpad", "id1")
	if err != nil || again.Nonce != a.Nonce || again.Epoch != 1 {
		t.Errorf("same acquisition: got %+v, %v", again, err)
	}
	for _, other := range [][2]string{{"alice", "id2"}, {"alice", ""}, {"bob", "id1"}} {
		_, err = p.Acquire(other[0], "desk", other[1])
		if want := "parcel winxp: locked by alice on thinkpad  x since " + a.Since.Format("2006-01-02 15:04:05 UTC"); !errors.Is(err, parcel.ErrLocked) || err.Error() != want {
			t.Errorf("acquire by %v: got %v, want %s", other, err, want)
		}
	}
	h, err := p.Holder()
	if err != nil || h.Nonce != "" || h.Acquisition != "" || h.Host != a.Host || h.Contact.IsZero() {
		t.Errorf("holder: got %+v, %v", h, err)
	}
	// The record for people says the same, less the secrets.
	public, err := os.ReadFile(filepath.Join(p.LockDir(), tree.HolderFile))
	if err != nil || strings.Contains(string(public), a.Nonce) || !strings.Contains(string(public), "HOST:=thinkpad") {
		t.Errorf("lockholder: got %q, %v", public, err)
	}
	old := time.Now().Add(-time.Hour)
	os.Chtimes(filepath.Join(p.LockDir(), tree.NonceFile), old, old)
	c, err := p.CheckLock(a.Nonce)
	if err != nil || c.Nonce != "" || time.Since(c.Contact) > time.Minute {
		t.Errorf("check: got %+v, %v", c, err)
	}
	if h, _ := p.Holder(); time.Since(h.Contact) > time.Minute {
		t.Errorf("contact: got %v, want now", h.Contact)
	}
	for _, nonce := range []string{"", "x", a.Nonce + "0", a.Nonce[:len(a.Nonce)-1]} {
		if _, err := p.CheckLock(nonce); !errors.Is(err, parcel.ErrNotHolder) || !strings.Contains(err.Error(), "alice on thinkpad") {
			t.Errorf("check of nonce %q: got %v", nonce, err)
		}
		if _, err := p.Release(nonce, false); !errors.Is(err, parcel.ErrNotHolder) {
			t.Errorf("release of nonce %q: got %v", nonce, err)
		}
	}
	for range 2 { // the second is answered alike
		r, err := p.Release(a.Nonce, false)
		if err != nil || r.Host != a.Host || r.Nonce != "" {
			t.Errorf("release: got %+v, %v", r, err)
		}
	}
	if _, err := os.Lstat(filepath.Join(p.LockDir(), tree.HolderFile)); err == nil {
		t.Error("lockholder is there after release")
	}
	if r, err := p.LastReleased(); err != nil || r.Host != a.Host || r.Nonce != "" || r.Epoch != 1 {
		t.Errorf("last released: got %+v, %v", r, err)
	}
	if _, err := p.CheckLock(a.Nonce); !errors.Is(err, parcel.ErrNotHolder) || !strings.Contains(err.Error(), "free since") {
		t.Errorf("check after release: got %v", err)
	}

	// Bob takes it, alice breaks his lock, he is told.
	b, err := p.Acquire("bob", "desk", "id3")
	if err != nil || b.Epoch != 2 {
		t.Fatalf("next acquire: got %+v, %v", b, err)
	}
	if _, err := p.Release(a.Nonce, false); !errors.Is(err, parcel.ErrNotHolder) || !strings.Contains(err.Error(), "bob on desk since") {
		t.Errorf("release after the next has it: got %v", err)
	}
	for range 2 {
		if r, err := p.Release("", true); err != nil || r.Host != "desk" {
			t.Errorf("break: got %+v, %v", r, err)
		}
	}
	if _, err := p.Release(b.Nonce, false); !errors.Is(err, parcel.ErrNotHolder) {
		t.Errorf("release of a broken lock: got %v", err)
	}
	if ps := storetest.WantSound(t, s); len(ps) != 0 {
		t.Errorf("notes: %v", ps)
	}
}

// A record that nobody can have written by link(2) is damage, and only force
// gets past it.
func TestLockGarbled(t *testing.T) {
	for _, content := range []string{"", "\x00\x00\x00", "USER:=alice\nHOST:=x\nSINCE:=2026-01-02T03:04:05Z\nEPOCH:=1\nVERSION:=1\n", "nonsense"} {
		s := storetest.New(t)
		p := storetest.NewParcel(t, s)
		if err := os.WriteFile(filepath.Join(p.LockDir(), tree.NonceFile), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := p.Holder()
		for _, err := range []error{err, second(p.Acquire("alice", "h", "id")), second(p.CheckLock("x")), second(p.Release("x", false))} {
			if !errors.Is(err, parcel.ErrDamaged) {
				t.Errorf("nonce %q: got %v, want damaged", content, err)
			}
		}
		if _, sum := storetest.Check(t, s, check.Options{}); sum.Errors != 1 {
			t.Errorf("nonce %q: check: got %d errors, want 1", content, sum.Errors)
		}
		if r, err := p.Release("", true); err != nil || r.User != "unknown" {
			t.Errorf("nonce %q: force: got %v, %v", content, r, err)
		}
		if _, err := p.Acquire("alice", "h", "id"); err != nil {
			t.Errorf("nonce %q: acquire after force: %v", content, err)
		}
		storetest.WantSound(t, s)
	}
}

func second[T any](_ T, err error) error { return err }

func TestAcquireRace(t *testing.T) {
	s := storetest.New(t)
	p := storetest.NewParcel(t, s)
	const rounds, racers = 10, 4
	for round := range rounds {
		locks := make([]*parcel.Lock, racers)
		errs := make([]error, racers)
		var wg sync.WaitGroup
		for i := range racers {
			q := storetest.Reopen(t, p)
			wg.Go(func() { locks[i], errs[i] = q.Acquire("alice", "h", parcel.NewID()) })
		}
		wg.Wait()
		var winner *parcel.Lock
		for i := range racers {
			switch {
			case errs[i] == nil && winner == nil:
				winner = locks[i]
			case errs[i] == nil:
				t.Fatal("two hold the lock")
			case !errors.Is(errs[i], parcel.ErrLocked):
				t.Error(errs[i])
			}
		}
		if winner == nil {
			t.Fatal("nobody holds the lock")
		}
		if winner.Epoch != int64(round+1) {
			t.Errorf("epoch: got %d, want %d", winner.Epoch, round+1)
		}
		if _, err := p.Release(winner.Nonce, false); err != nil {
			t.Fatal(err)
		}
	}
}

// Who waits for the flock of a parcel that is removed and made again gets that
// of the new one.
func TestLockFileReplaced(t *testing.T) {
	dir := filepath.Join(storetest.TempDir(t), "p")
	name := filepath.Join(dir, tree.FlockFile)
	os.Mkdir(dir, 0o700)
	unlock, err := tree.Lock(name, false)
	if err != nil {
		t.Fatal(err)
	}
	fi, err := os.Stat(name)
	if err != nil {
		t.Fatal(err)
	}
	waiting := fmt.Sprintf(":%d 0 EOF", fi.Sys().(*syscall.Stat_t).Ino)
	got := make(chan func())
	go func() {
		unlock, err := tree.Lock(name, false)
		if err != nil {
			t.Error(err)
		}
		got <- unlock
	}()
	for deadline := time.Now().Add(10 * time.Second); ; {
		locks, err := os.ReadFile("/proc/locks")
		if err != nil {
			t.Skip(err)
		}
		if slices.ContainsFunc(strings.Split(string(locks), "\n"), func(l string) bool {
			return strings.Contains(l, "-> FLOCK") && strings.HasSuffix(l, waiting)
		}) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("nobody waits")
		}
	}
	os.Rename(dir, dir+"2")
	os.Mkdir(dir, 0o700)
	if err := os.WriteFile(name, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	unlock()
	unlock = <-got
	if other, err := tree.TryLock(name); other != nil || err != nil {
		t.Errorf("two have the flock, %v", err)
	}
	unlock()
	if other, err := tree.TryLock(name); other == nil || err != nil {
		t.Errorf("nobody can have the flock, %v", err)
	}
	// And of one that is gone for good, none.
	os.RemoveAll(dir)
	if _, err := tree.Lock(name, false); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v", err)
	}
}
