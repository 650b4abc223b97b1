package store_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"isr/store"
	"isr/store/check"
	"isr/store/parcel"
	"isr/store/storetest"
	"isr/store/tree"
)

func TestRename(t *testing.T) {
	s := storetest.New(t)
	p := storetest.Versioned(t, s, 3)
	if err := p.Tag(2, "gold", false); err != nil {
		t.Fatal(err)
	}
	cfg, _ := p.Config()
	l, err := p.Acquire("alice", "thinkpad", "id")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Rename("alice", "winxp", "alice", "work"); !errors.Is(err, parcel.ErrLocked) {
		t.Errorf("held: got %v", err)
	}
	p.Release(l.Nonce, false)
	if err := s.Rename("alice", "winxp", "alice", "work"); err != nil {
		t.Fatal(err)
	}
	// Who knows it by its old name is told the new one; what was opened before
	// is gone.
	for what, err := range map[string]error{"opened": second(p.Acquire("alice", "h", "id")), "config": second(p.Config()), "again": second(s.Parcel("alice", "winxp"))} {
		if !errors.Is(err, parcel.ErrNoParcel) {
			t.Errorf("%s: got %v", what, err)
		}
	}
	if _, err := s.Parcel("alice", "winxp"); storetest.HintOf(err) != "it was renamed to work" {
		t.Errorf("hint: got %q", storetest.HintOf(err))
	}
	if _, err := s.Parcel("bob", "winxp"); storetest.HintOf(err) != "" {
		t.Errorf("bob is told of alice's: %q", storetest.HintOf(err))
	}
	q, err := s.Parcel("alice", "work")
	if err != nil {
		t.Fatal(err)
	}
	now, err := q.Config()
	if err != nil || now.UUID != cfg.UUID || now.Parcel != "work" || now.Version != 3 {
		t.Errorf("config: got %+v, %v", now, err)
	}
	if v, err := q.Resolve("gold"); v != 2 || err != nil {
		t.Errorf("tag: got %d, %v", v, err)
	}
	storetest.WantChunk(t, q, 3, 3, "version 3")
	storetest.Commit(t, q, storetest.Change{1: storetest.ChunkOf("more")})
	// Twice, and back; a copy was never called so.
	if _, err := s.Copy(ctx, "alice", "work", "alice", "copy"); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(s.Rename("alice", "work", "alice", "play"), s.Rename("alice", "play", "alice", "winxp")); err != nil {
		t.Fatal(err)
	}
	for _, old := range []string{"work", "play"} {
		if _, err := s.Parcel("alice", old); storetest.HintOf(err) != "it was renamed to winxp" {
			t.Errorf("%s: got %v, %q", old, err, storetest.HintOf(err))
		}
	}
	if q, err = s.Parcel("alice", "winxp"); err != nil {
		t.Fatal(err)
	}
	if now, _ := q.Config(); len(now.Other) != 2 {
		t.Errorf("former names: got %v", now.Other)
	}
	// To another user.
	if err := s.Rename("alice", "winxp", "bob", "winxp"); err != nil {
		t.Fatal(err)
	}
	if q, err = s.Parcel("bob", "winxp"); err != nil {
		t.Fatal(err)
	}
	if now, _ := q.Config(); now.User != "bob" || now.UUID != cfg.UUID {
		t.Errorf("given away: got %+v", now)
	}
	storetest.Commit(t, q, storetest.Change{1: storetest.ChunkOf("bob's")})
	if ps := storetest.WantSound(t, s); len(ps) != 0 {
		t.Errorf("notes: %v", ps)
	}
	if err := errors.Join(s.DelParcel("alice", "copy", false), s.DelUser("alice")); err != nil {
		t.Errorf("what is left of alice: %v", err)
	}
}

// Others acquire, tag and copy what is renamed to and fro: each of their calls
// finds the parcel whole or not at all, and none waits for ever.
func TestRenameConcurrent(t *testing.T) {
	s := storetest.New(t)
	p := storetest.Versioned(t, s, 2)
	if err := p.Tag(2, "gold", false); err != nil {
		t.Fatal(err)
	}
	names := []string{"winxp", "work"}
	var stop atomic.Bool
	var done [3]int
	var wg sync.WaitGroup
	for i, f := range []func(*store.Parcel) error{
		func(p *store.Parcel) error {
			l, err := p.Acquire("alice", "h", "id")
			if err == nil {
				_, err = p.Release(l.Nonce, false)
			}
			return err
		},
		func(p *store.Parcel) error { return p.Tag(2, "gold", false) },
		func(p *store.Parcel) error {
			_, err := s.Copy(ctx, "alice", p.Name(), "bob", "copy")
			if err == nil {
				err = s.DelParcel("bob", "copy", false)
			}
			return err
		},
	} {
		wg.Go(func() {
			for !stop.Load() {
				for _, name := range names {
					p, err := s.Parcel("alice", name)
					if err == nil {
						err = f(p)
					}
					if err == nil {
						done[i]++
					} else if !errors.Is(err, parcel.ErrNoParcel) {
						t.Errorf("%d: %v", i, err)
						return
					}
				}
			}
		})
	}
	moved := 0
	for n := 0; moved < 100 && n < 100000; n++ {
		err := s.Rename("alice", names[moved%2], "alice", names[1-moved%2])
		if err == nil {
			moved++
		} else if !errors.Is(err, parcel.ErrLocked) {
			t.Errorf("rename %d: %v", moved, err)
			break
		}
	}
	stop.Store(true)
	wg.Wait()
	t.Logf("%d renames, %v of the others", moved, done)
	if moved < 100 {
		t.Errorf("only %d renames", moved)
	}
	if ps := storetest.WantSound(t, s); len(ps) != 0 {
		t.Errorf("notes: %v", ps)
	}
	if q, err := s.Parcel("alice", names[moved%2]); err != nil {
		t.Error(err)
	} else {
		storetest.WantChunk(t, q, 0, 2, "version 2")
	}
}

func TestRenameRefused(t *testing.T) {
	s := storetest.New(t)
	storetest.NewParcel(t, s)
	if _, err := s.Create(ctx, "alice", "other", store.CreateOptions{DiskSize: 1 << 20}); err != nil {
		t.Fatal(err)
	}
	lost := filepath.Join(s.UserAt("alice").ContentRoot, "lost")
	if err := os.Mkdir(lost, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		user, name, toUser, toName string
		want                       error
	}{
		{"alice", "winxp", "alice", "winxp", parcel.ErrExists}, {"alice", "winxp", "alice", "other", parcel.ErrExists},
		{"alice", "winxp", "alice", "lost", parcel.ErrExists}, {"alice", "none", "alice", "x", parcel.ErrNoParcel},
		{"nobody", "winxp", "alice", "x", parcel.ErrNoParcel}, {"alice", "winxp", "nobody", "x", parcel.ErrNoParcel},
		{"alice", "winxp", "alice", "hoard", parcel.ErrUsage}, {"alice", "winxp", "alice", "log", parcel.ErrUsage},
		{"alice", "winxp", "alice", "../bob/x", parcel.ErrUsage}, {"alice", "winxp", "alice", "", parcel.ErrUsage},
		{"alice", "winxp", "..", "x", parcel.ErrUsage}, {"alice", "winxp", "alice", strings.Repeat("x", 65), parcel.ErrUsage},
		{"alice", "winxp", "alice", "a\nb", parcel.ErrUsage}, {"alice", "..", "alice", "x", parcel.ErrUsage},
	} {
		if err := s.Rename(c.user, c.name, c.toUser, c.toName); !errors.Is(err, c.want) {
			t.Errorf("%+v: got %v", c, err)
		}
	}
	if names, err := s.Parcels("alice"); err != nil || strings.Join(names, " ") != "other winxp" {
		t.Errorf("got %v, %v", names, err)
	}
	os.Remove(lost)
	if ps := storetest.WantSound(t, s); len(ps) != 0 {
		t.Errorf("notes: %v", ps)
	}
}

// A mark that somebody planted takes nothing from anybody.
func TestRenamePlanted(t *testing.T) {
	s := storetest.New(t)
	p := storetest.NewParcel(t, s)
	if _, err := s.Create(ctx, "bob", "box", store.CreateOptions{DiskSize: 1 << 20}); err != nil {
		t.Fatal(err)
	}
	for _, mark := range []string{"USER:=alice\nPARCEL:=winxp\n", "USER:=../users/alice\nPARCEL:=winxp\n", "USER:=alice\nPARCEL:=../../..\n", "", "nonsense"} {
		dir := filepath.Join(s.UserAt("bob").LockRoot, "mine")
		os.MkdirAll(dir, 0o700)
		cfg, err := s.UserAt("bob").At("box").ConfigFile()
		if err != nil {
			t.Fatal(err)
		}
		os.WriteFile(filepath.Join(dir, tree.ConfigFile), cfg, 0o600)
		os.WriteFile(filepath.Join(dir, tree.RenameFile), []byte(mark), 0o600)
		s.Parcel("bob", "mine")
		s.Create(ctx, "alice", "winxp", store.CreateOptions{DiskSize: 1 << 20})
		if _, err := os.Lstat(p.ContentDir()); err != nil {
			t.Fatalf("mark %q took alice's content", mark)
		}
		if _, sum := storetest.Check(t, s, check.Options{User: "alice"}); sum.Errors > 0 {
			t.Errorf("mark %q: alice's is not sound", mark)
		}
		if _, sum := storetest.Check(t, s, check.Options{}); sum.Errors == 0 {
			t.Errorf("mark %q: check finds all well", mark)
		}
		os.RemoveAll(dir)
	}
	storetest.WantSound(t, s)
}

// The loser of a lock is told who broke it and why, also when another has it.
func TestBreak(t *testing.T) {
	s := storetest.New(t)
	p := storetest.NewParcel(t, s)
	a, err := p.Acquire("alice", "thinkpad", "id")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Break(a.Epoch+1, "root", ""); !errors.Is(err, parcel.ErrConflict) || !strings.Contains(err.Error(), "alice on thinkpad") {
		t.Errorf("another epoch: got %v", err)
	}
	l, err := p.Break(a.Epoch, "root for\n carol", "laptop broken\x1b")
	if err != nil || l.Host != "thinkpad" || l.Nonce != "" {
		t.Fatalf("got %+v, %v", l, err)
	}
	told := func(format string) {
		t.Helper()
		for what, err := range map[string]error{"check": second(p.CheckLock(a.Nonce)), "release": second(p.Release(a.Nonce, false)), "rollback": second(p.Rollback(ctx, a.Nonce, 1))} {
			if !errors.Is(err, parcel.ErrNotHolder) || !strings.Contains(err.Error(), format) || !strings.HasSuffix(err.Error(), ": laptop broken") {
				t.Errorf("%s: got %v", what, err)
			}
		}
	}
	told("lock is no longer held: it was broken by root for  carol on 2")
	if r, err := p.LastReleased(); err != nil || r.BrokenBy != "root for  carol" || r.Why != "laptop broken" || r.Host != "thinkpad" {
		t.Errorf("released: got %+v, %v", r, err)
	}
	b, err := p.Acquire("alice", "desk", "id2")
	if err != nil {
		t.Fatal(err)
	}
	told("alice on desk since")
	if err := second(p.Release(b.Nonce, false)); err != nil {
		t.Fatal(err)
	}
	// Given back in peace, there is nothing to tell.
	if r, err := p.LastReleased(); err != nil || r.BrokenBy+r.Why != "" {
		t.Errorf("released: got %+v, %v", r, err)
	}
	if ps := storetest.WantSound(t, s); len(ps) != 0 {
		t.Errorf("notes: %v", ps)
	}
}

func TestRollbackFree(t *testing.T) {
	s := storetest.New(t)
	p := storetest.Versioned(t, s, 3)
	l, err := p.Acquire("alice", "thinkpad", "id")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.RollbackFree(ctx, "server", 1, ""); !errors.Is(err, parcel.ErrLocked) {
		t.Errorf("held: got %v", err)
	}
	p.Release(l.Nonce, false)
	if v, err := p.RollbackFree(ctx, "server", 2, "virus\nagain"); v != 4 || err != nil {
		t.Fatalf("got %d, %v", v, err)
	}
	if v, err := p.Version(4); err != nil || v.Comment != "rollback to version 2: virus again" || v.Rollback != 2 || v.Host != "server" || v.Epoch != 0 || v.Parent != 3 {
		t.Errorf("got %+v, %v", v, err)
	}
	if v, err := p.RollbackFree(ctx, "server", 2, ""); v != 4 || err != nil {
		t.Errorf("again: got %d, %v", v, err)
	}
	if _, err := p.RollbackFree(ctx, "server", 9, ""); !errors.Is(err, parcel.ErrNoVersion) {
		t.Errorf("no version: got %v", err)
	}
	storetest.WantChunk(t, p, 0, 2, "version 2")
	storetest.WantChunk(t, p, 0, 3, "")
	storetest.Commit(t, p, storetest.Change{5: storetest.ChunkOf("on from there")})
	if ps := storetest.WantSound(t, s); len(ps) != 0 {
		t.Errorf("notes: %v", ps)
	}
}
