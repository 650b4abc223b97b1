package store_test

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"isr/store"
	"isr/store/check"
	"isr/store/keep"
	"isr/store/parcel"
	"isr/store/prune"
	"isr/store/storetest"
	"isr/store/tree"
)

func TestMain(m *testing.M) { storetest.Main(m, crashed) }

// crashed makes the call of a crash.
func crashed(c storetest.Crash) error {
	if c.Op == "init" {
		_, err := store.Init(c.Root, "test")
		return err
	}
	s, err := store.Open(c.Root)
	if err != nil {
		return err
	}
	p := s.UserAt("alice").At("winxp")
	switch c.Op {
	case "commit":
		_, err = p.Commit(ctx, c.Request)
	case "rollback":
		_, err = p.Rollback(ctx, c.Request.Nonce, 1)
	case "acquire":
		_, err = p.Acquire("alice", "testhost", "crash")
	case "release":
		_, err = p.Release(c.Request.Nonce, false)
	case "break":
		_, err = p.Release("", true)
	case "create":
		_, err = s.Create(ctx, "alice", "new", store.CreateOptions{DiskSize: 1 << 20})
	case "import":
		*store.NoteEvery = 4 * storetest.Chunk
		_, err = s.Import(ctx, "alice", "new", c.Image, store.CreateOptions{ChunkSize: storetest.Chunk, Format: "raw"})
	case "copy":
		_, err = s.Copy(ctx, "alice", "winxp", "bob", "new")
	case "fork":
		_, err = s.Fork(ctx, "alice", "winxp", 1, "new", "saved", "testhost", "crash")
	case "resize":
		_, err = s.CopyVersion(ctx, p, "bob", "new", store.CopyOptions{DiskSize: 299 * storetest.Chunk, MemSize: storetest.Chunk})
	case "rename":
		err = s.Rename("alice", "winxp", "alice", "new")
	case "give":
		err = s.Rename("alice", "winxp", "bob", "new")
	case "tag":
		err = p.Tag(1, "gold", true)
	case "untag":
		_, err = p.Untag("gold")
	case "pin":
		err = p.Pin(1, "why")
	case "comment":
		err = p.Comment(0, "new")
	case "rollback free":
		_, err = p.RollbackFree(ctx, "server", 1, "why")
	case "delete":
		err = s.DelParcel("alice", "winxp", true)
	case "prune":
		var plan []prune.Plan
		if plan, err = prune.Choose(p, keep.Rules{Last: 2}); err == nil {
			_, _, err = prune.Run(ctx, p, prune.Prunable(plan))
		}
	case "user":
		err = s.AddUser("carol", nil)
	case "lock user":
		err = s.ChangeUser("alice", func(c *store.UserConfig) error {
			c.Quota, c.Locked = 1<<40, time.Now().UTC().Truncate(time.Second)
			return nil
		})
	case "adopt":
		_, err = s.Adopt(ctx, "bob", "new", adoption(p))
	case "adopt user":
		err = s.AdoptUser("carol", map[string][]byte{tree.KeysFile: nil, tree.PasswordFile: []byte("BCRYPT:=$2a$10$N9qo8uLOickgx2ZMRZoMyeIjZAgcfl7p92ldGxad68LJZdL17lhWy\n")})
	default:
		err = errors.New("unknown call " + c.Op)
	}
	return err
}

func TestCrash(t *testing.T) {
	staged := func(t *testing.T, s *store.Store) storetest.Crash {
		p := storetest.NewParcel(t, s)
		return storetest.Crash{Request: storetest.Holding(t, p, storetest.Change{1: storetest.ChunkOf("one"), 300: storetest.ChunkOf("three hundred")})}
	}
	storetest.EveryStep(t, "commit", 12, staged, func(t *testing.T, s *store.Store, c storetest.Crash) {
		p := storetest.Parcel(t, s)
		switch v := storetest.Head(t, p); v {
		case 1:
			storetest.WantChunk(t, p, 0, 1, "")
		case 2:
			storetest.WantChunk(t, p, 0, 1, "one")
		default:
			t.Errorf("head: got %d", v)
		}
		if v, err := p.Commit(ctx, c.Request); v != 2 || err != nil {
			t.Errorf("the same commit again: got %d, %v, want 2", v, err)
		}
		storetest.WantChunk(t, p, 0, 1, "one")
		storetest.WantChunk(t, p, 0, 300, "three hundred")
		if vs, err := p.Versions(0); len(vs) != 2 || vs[0].Objects != 6 || err != nil {
			t.Errorf("versions: got %+v, %v", vs, err)
		}
		if _, err := p.Release(c.Request.Nonce, false); err != nil {
			t.Error(err)
		}
	})
	storetest.EveryStep(t, "rollback", 5, func(t *testing.T, s *store.Store) storetest.Crash {
		p := storetest.NewParcel(t, s)
		storetest.Commit(t, p, storetest.Change{1: storetest.ChunkOf("one")})
		return storetest.Crash{Request: storetest.Holding(t, p, nil)}
	}, func(t *testing.T, s *store.Store, c storetest.Crash) {
		p := storetest.Parcel(t, s)
		if v := storetest.Head(t, p); v != 2 && v != 3 {
			t.Errorf("head: got %d", v)
		}
		if v, err := p.Rollback(ctx, c.Request.Nonce, 1); v != 3 || err != nil {
			t.Errorf("again: got %d, %v, want 3", v, err)
		}
		storetest.WantChunk(t, p, 0, 1, "")
		p.Release(c.Request.Nonce, false)
	})
	storetest.EveryStep(t, "acquire", 3, func(t *testing.T, s *store.Store) storetest.Crash {
		storetest.NewParcel(t, s)
		return storetest.Crash{}
	},
		func(t *testing.T, s *store.Store, c storetest.Crash) {
			p := storetest.Parcel(t, s)
			before, err := p.Holder()
			if err != nil {
				t.Error(err)
			}
			l, err := p.Acquire("alice", "testhost", "crash")
			if err != nil {
				t.Error(err)
			} else if before != nil && before.Epoch != l.Epoch {
				t.Errorf("epoch: got %d, was %d", l.Epoch, before.Epoch)
			}
			if _, err := p.Acquire("alice", "testhost", "other"); !errors.Is(err, parcel.ErrLocked) {
				t.Errorf("another: got %v", err)
			}
		})
	for _, op := range []string{"release", "break"} {
		storetest.EveryStep(t, op, 3, staged, func(t *testing.T, s *store.Store, c storetest.Crash) {
			p := storetest.Parcel(t, s)
			if _, err := p.Release(c.Request.Nonce, op == "break"); err != nil {
				t.Error(err)
			}
			if h, err := p.Holder(); h != nil || err != nil {
				t.Errorf("holder: got %v, %v", h, err)
			}
			if l, err := p.Acquire("bob", "desk", "id"); err != nil || l.Epoch != 2 {
				t.Errorf("the next: got %v, %v", l, err)
			} else if _, err := p.Release(l.Nonce, false); err != nil {
				t.Error(err)
			}
		})
	}
	again := func(user string, version int) func(t *testing.T, s *store.Store, c storetest.Crash) {
		return func(t *testing.T, s *store.Store, c storetest.Crash) {
			names, err := s.Parcels(user)
			if err != nil {
				t.Error(err)
			}
			there := strings.Contains(strings.Join(names, " "), "new")
			if err := c.Run(); there != errors.Is(err, parcel.ErrExists) || !there && err != nil {
				t.Errorf("again, after there was %v: got %v", names, err)
			}
			p, err := s.Parcel(user, "new")
			if err != nil {
				t.Fatal(err)
			}
			if storetest.Head(t, p) != version {
				t.Errorf("head: got %d", storetest.Head(t, p))
			}
			for _, p := range []*store.Parcel{p, s.UserAt("alice").At("winxp")} {
				l, err := p.Acquire("alice", "h", "id")
				if errors.Is(err, parcel.ErrNoParcel) {
					continue
				}
				if err != nil {
					t.Fatal(err)
				}
				if _, err := p.Release(l.Nonce, false); err != nil {
					t.Error(err)
				}
			}
		}
	}
	storetest.EveryStep(t, "create", 8, func(t *testing.T, s *store.Store) storetest.Crash { return storetest.Crash{} }, again("alice", 1))
	storetest.EveryStep(t, "import", 13, func(t *testing.T, s *store.Store) storetest.Crash {
		image := filepath.Join(storetest.TempDir(t), "image")
		if err := os.WriteFile(image, storetest.Random(20*storetest.Chunk, 3), 0o600); err != nil {
			t.Fatal(err)
		}
		return storetest.Crash{Image: image}
	}, again("alice", 1))
	storetest.EveryStep(t, "copy", 8, func(t *testing.T, s *store.Store) storetest.Crash {
		storetest.Commit(t, storetest.NewParcel(t, s), storetest.Change{1: storetest.ChunkOf("one")})
		return storetest.Crash{}
	}, again("bob", 1))
	storetest.EveryStep(t, "resize", 8, func(t *testing.T, s *store.Store) storetest.Crash {
		storetest.Commit(t, storetest.NewParcel(t, s), storetest.Change{1: storetest.ChunkOf("one"), 300: storetest.ChunkOf("cut off")})
		return storetest.Crash{}
	}, again("bob", 1))
	for op, user := range map[string]string{"rename": "alice", "give": "bob"} {
		storetest.EveryStep(t, op, 5, func(t *testing.T, s *store.Store) storetest.Crash {
			p := storetest.NewParcel(t, s)
			storetest.Commit(t, p, storetest.Change{1: storetest.ChunkOf("one")})
			return storetest.Crash{}
		}, func(t *testing.T, s *store.Store, c storetest.Crash) {
			// The old or the new one is there, whole; who asks for the other is
			// told. A list of them is enough to finish it.
			if c.Step%2 == 0 {
				for _, u := range []string{"alice", "bob"} {
					if _, err := s.Parcels(u); err != nil {
						t.Error(err)
					}
				}
				if ps := storetest.WantSound(t, s); slices.ContainsFunc(ps, func(p check.Problem) bool { return strings.Contains(p.Msg, "renamed") }) {
					t.Errorf("not finished: %v", ps)
				}
			}
			old, oldErr := s.Parcel("alice", "winxp")
			p, err := s.Parcel(user, "new")
			if (oldErr == nil) == (err == nil) {
				t.Fatalf("got both or none: %v, %v", oldErr, err)
			}
			if oldErr == nil {
				storetest.WantChunk(t, old, 0, 1, "one")
				if err := c.Run(); err != nil {
					t.Fatalf("again: %v", err)
				}
				if p, err = s.Parcel(user, "new"); err != nil {
					t.Fatal(err)
				}
			} else if err := c.Run(); !errors.Is(err, parcel.ErrNoParcel) {
				t.Errorf("again, after it was done: %v", err)
			}
			storetest.WantChunk(t, p, 0, 1, "one")
			if cfg, err := p.Config(); err != nil || cfg.User != user || cfg.Parcel != "new" {
				t.Errorf("config: %+v, %v", cfg, err)
			}
			storetest.Commit(t, p, storetest.Change{2: storetest.ChunkOf("two")})
			// The old name is free.
			storetest.NewParcel(t, s)
			storetest.WantChunk(t, p, 0, 1, "one")
		})
	}
	versions := func(t *testing.T, s *store.Store) storetest.Crash {
		p := storetest.Versioned(t, s, 2)
		if err := p.Tag(2, "gold", false); err != nil {
			t.Fatal(err)
		}
		return storetest.Crash{}
	}
	for _, op := range []string{"tag", "untag", "pin", "comment", "rollback free"} {
		storetest.EveryStep(t, op, 1, versions, func(t *testing.T, s *store.Store, c storetest.Crash) {
			p := storetest.Parcel(t, s)
			_, err := p.Resolve("gold")
			if op != "untag" && err != nil {
				t.Errorf("the tag is on no version: %v", err)
			}
			if err := c.Run(); err != nil && !(op == "untag" && errors.Is(err, parcel.ErrNoVersion)) {
				t.Errorf("again: %v", err)
			}
			switch v, err := p.Resolve("gold"); {
			case op == "untag" && !errors.Is(err, parcel.ErrNoVersion), op == "tag" && v != 1:
				t.Errorf("gold: got %d, %v", v, err)
			}
			if v, err := p.Version(1); err != nil || (v.Pin == "why") != (op == "pin") {
				t.Errorf("version 1: %+v, %v", v, err)
			}
			if vs, err := p.Versions(0); err != nil || (len(vs) == 3) != (op == "rollback free") {
				t.Errorf("versions: %+v, %v", vs, err)
			}
			if l, err := p.Acquire("alice", "h", "id"); err != nil {
				t.Error(err)
			} else if _, err := p.Release(l.Nonce, false); err != nil {
				t.Error(err)
			}
		})
	}
	storetest.EveryStep(t, "fork", 10, func(t *testing.T, s *store.Store) storetest.Crash {
		storetest.Commit(t, storetest.NewParcel(t, s), storetest.Change{1: storetest.ChunkOf("one")})
		return storetest.Crash{}
	}, func(t *testing.T, s *store.Store, c storetest.Crash) {
		if err := c.Run(); err != nil {
			t.Errorf("again: %v", err)
		}
		p, err := s.Parcel("alice", "new")
		if err != nil {
			t.Fatal(err)
		}
		if l, err := p.Holder(); storetest.Head(t, p) != 1 || err != nil || l == nil || l.Epoch > 2 {
			t.Errorf("version %d, held by %v, %v", storetest.Head(t, p), l, err)
		}
		storetest.WantChunk(t, p, 0, 1, "")
		if _, err := p.Release("", true); err != nil {
			t.Error(err)
		}
		p = s.UserAt("alice").At("winxp") // for what a kill left there
		if l, err := p.Acquire("alice", "h", "id"); err != nil {
			t.Error(err)
		} else if _, err := p.Release(l.Nonce, false); err != nil {
			t.Error(err)
		}
	})
	storetest.EveryStep(t, "adopt", 8, func(t *testing.T, s *store.Store) storetest.Crash {
		storetest.Commit(t, storetest.NewParcel(t, s), storetest.Change{1: storetest.ChunkOf("one")})
		return storetest.Crash{}
	}, again("bob", 2))
	storetest.EveryStep(t, "adopt user", 1, func(t *testing.T, s *store.Store) storetest.Crash { return storetest.Crash{} },
		func(t *testing.T, s *store.Store, c storetest.Crash) {
			if err := c.Run(); err != nil && !errors.Is(err, parcel.ErrExists) {
				t.Error(err)
			}
		})
	storetest.EveryStep(t, "delete", 5, func(t *testing.T, s *store.Store) storetest.Crash {
		storetest.NewParcel(t, s)
		return storetest.Crash{}
	},
		func(t *testing.T, s *store.Store, c storetest.Crash) {
			if err := c.Run(); err != nil && !errors.Is(err, parcel.ErrNoParcel) {
				t.Error(err)
			}
			if names, err := s.Parcels("alice"); len(names) != 0 || err != nil {
				t.Errorf("parcels: got %v, %v", names, err)
			}
			storetest.NewParcel(t, s)
		})
	storetest.EveryStep(t, "user", 2, func(t *testing.T, s *store.Store) storetest.Crash { return storetest.Crash{} },
		func(t *testing.T, s *store.Store, c storetest.Crash) {
			if err := c.Run(); err != nil && !errors.Is(err, parcel.ErrExists) {
				t.Error(err)
			}
			if _, err := s.Parcels("carol"); err != nil {
				t.Error(err)
			}
		})
	storetest.EveryStep(t, "lock user", 1, func(t *testing.T, s *store.Store) storetest.Crash { return storetest.Crash{} },
		func(t *testing.T, s *store.Store, c storetest.Crash) {
			was, err := s.UserConfig("alice")
			if err != nil || was.Quota != 0 && was.Locked.IsZero() {
				t.Errorf("half changed: %+v, %v", was, err)
			}
			if err := c.Run(); err != nil {
				t.Error(err)
			}
			if err := s.Admit("alice"); !errors.Is(err, parcel.ErrDenied) {
				t.Error(err)
			}
		})
}
