package store

import (
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"isr/store/keep"
	"isr/store/parcel"
	"isr/store/seal"
	"isr/store/tree"
)

// A crash is one call, made in a child process that is killed at one step.
type crash struct {
	Op      string
	Root    string
	Image   string        // for import; the replica for repair
	Request CommitRequest // for commit; its nonce for all
	Step    int           // the child is killed before this step, from 0
}

// run makes the call in this process.
func (c *crash) run() error {
	if c.Op == "init" {
		_, err := Init(c.Root, "test")
		return err
	}
	s, err := Open(c.Root)
	if err != nil {
		return err
	}
	p := s.userAt("alice").parcel("winxp")
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
		_, err = s.Create(ctx, "alice", "new", CreateOptions{DiskSize: 1 << 20})
	case "import":
		noteEvery = 4 * testChunk
		_, err = s.Import(ctx, "alice", "new", c.Image, CreateOptions{ChunkSize: testChunk, Format: "raw"})
	case "copy":
		_, err = s.Copy(ctx, "alice", "winxp", "bob", "new")
	case "fork":
		_, err = s.Fork(ctx, "alice", "winxp", 1, "new", "saved", "testhost", "crash")
	case "resize":
		_, err = s.CopyVersion(ctx, p, "bob", "new", CopyOptions{DiskSize: 299 * testChunk, MemSize: testChunk})
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
	case "gc":
		err = s.GC(ctx, GCOptions{}, func(c Collected) { err = errors.Join(err, c.Error) })
	case "prune":
		var plan []Plan
		if plan, err = p.Plan(keep.Rules{Last: 2}); err == nil {
			_, _, err = p.Prune(ctx, Prunable(plan))
		}
	case "repair":
		_, err = s.Repair(ctx, RepairOptions{From: []string{c.Image}, Discard: func(string, string, int) bool { return true }},
			func(Mending) {}, func(Problem) {})
	case "user":
		err = s.AddUser("carol", nil)
	case "lock user":
		err = s.ChangeUser("alice", func(c *UserConfig) error { c.Quota, c.Locked = 1<<40, now(); return nil })
	case "adopt":
		_, err = s.Adopt(ctx, "bob", "new", adoption(p))
	case "adopt user":
		err = s.AdoptUser("carol", map[string][]byte{tree.KeysFile: nil, tree.PasswordFile: []byte("BCRYPT:=$2a$10$N9qo8uLOickgx2ZMRZoMyeIjZAgcfl7p92ldGxad68LJZdL17lhWy\n")})
	default:
		err = errors.New("unknown call " + c.Op)
	}
	return err
}

// TestMain is also the child: it makes the call and kills itself on the way,
// as hard as can be, leaving a temp file wherever one might be left.
func TestMain(m *testing.M) {
	arg := os.Getenv("STORE_TEST_CRASH")
	if arg == "" {
		os.Exit(m.Run())
	}
	var c crash
	if err := json.Unmarshal([]byte(arg), &c); err != nil {
		panic(err)
	}
	n := 0
	tree.Step = func(string) {
		if n == c.Step {
			p := (&Store{root: c.Root}).userAt("alice").parcel("winxp")
			for _, dir := range []string{p.lock, p.lock + "/keys", p.content, p.content + "/keys"} {
				os.WriteFile(filepath.Join(dir, ".tmp-crash"), []byte("half"), 0o600)
			}
			syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {}
		}
		n++
	}
	if err := c.run(); err != nil {
		os.Stderr.WriteString(err.Error())
		os.Exit(1)
	}
	os.Exit(0)
}

// arg is c for the child.
func (c crash) arg(t testing.TB) []byte {
	arg, err := json.Marshal(c)
	if err != nil {
		t.Error(err)
	}
	return arg
}

// killed runs c in a child; true if it was killed, false if it had no more
// steps and succeeded.
func (c crash) killed(t *testing.T) bool {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "STORE_TEST_CRASH="+string(c.arg(t)))
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.Sys().(syscall.WaitStatus).Signal() == syscall.SIGKILL {
		return true
	}
	if err != nil {
		t.Fatalf("%s, step %d: %v: %s", c.Op, c.Step, err, out)
	}
	return false
}

// everyStep kills c at every step in turn, each time on a fresh store from
// prepare, and calls after to look at what is left and call again.
func everyStep(t *testing.T, op string, atLeast int, prepare func(*testing.T, *Store) crash, after func(*testing.T, *Store, crash)) {
	everyStepOf(t, op, atLeast, true, prepare, after)
}

// everyStepOf is everyStep of what begins with a store that is not sound.
func everyStepOf(t *testing.T, op string, atLeast int, sound bool, prepare func(*testing.T, *Store) crash, after func(*testing.T, *Store, crash)) {
	t.Run(op, func(t *testing.T) {
		t.Parallel()
		for n := 0; ; n++ {
			s := newStore(t)
			c := prepare(t, s)
			c.Op, c.Root, c.Step = op, s.root, n
			killed := c.killed(t)
			if sound {
				// Before anything is repaired: nothing is half there.
				wantSound(t, s)
			}
			after(t, s, c)
			if ps := wantSound(t, s); len(ps) != 0 {
				t.Errorf("%s, killed at step %d: left over in the end: %v", op, n, ps)
			}
			if t.Failed() {
				t.Fatalf("%s, killed at step %d", op, n)
			}
			if !killed {
				if n < atLeast {
					t.Errorf("%s has %d steps, want at least %d: does the test see them?", op, n, atLeast)
				}
				t.Logf("%s: %d steps", op, n)
				return
			}
		}
	})
}

func TestCrash(t *testing.T) {
	staged := func(t *testing.T, s *Store) crash {
		p := newParcel(t, s)
		return crash{Request: holding(t, p, change{1: chunkOf("one"), 300: chunkOf("three hundred")})}
	}
	parcelOf := func(t *testing.T, s *Store) *Parcel {
		p, err := s.Parcel("alice", "winxp")
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	everyStep(t, "commit", 12, staged, func(t *testing.T, s *Store, c crash) {
		p := parcelOf(t, s)
		switch v := head(t, p); v {
		case 1:
			wantChunk(t, p, 0, 1, "")
		case 2:
			wantChunk(t, p, 0, 1, "one")
		default:
			t.Errorf("head: got %d", v)
		}
		if v, err := p.Commit(ctx, c.Request); v != 2 || err != nil {
			t.Errorf("the same commit again: got %d, %v, want 2", v, err)
		}
		wantChunk(t, p, 0, 1, "one")
		wantChunk(t, p, 0, 300, "three hundred")
		if vs, err := p.Versions(0); len(vs) != 2 || vs[0].Objects != 6 || err != nil {
			t.Errorf("versions: got %+v, %v", vs, err)
		}
		if _, err := p.Release(c.Request.Nonce, false); err != nil {
			t.Error(err)
		}
	})
	everyStep(t, "rollback", 5, func(t *testing.T, s *Store) crash {
		p := newParcel(t, s)
		commit(t, p, change{1: chunkOf("one")})
		return crash{Request: holding(t, p, nil)}
	}, func(t *testing.T, s *Store, c crash) {
		p := parcelOf(t, s)
		if v := head(t, p); v != 2 && v != 3 {
			t.Errorf("head: got %d", v)
		}
		if v, err := p.Rollback(ctx, c.Request.Nonce, 1); v != 3 || err != nil {
			t.Errorf("again: got %d, %v, want 3", v, err)
		}
		wantChunk(t, p, 0, 1, "")
		p.Release(c.Request.Nonce, false)
	})
	everyStep(t, "acquire", 3, func(t *testing.T, s *Store) crash { newParcel(t, s); return crash{} },
		func(t *testing.T, s *Store, c crash) {
			p := parcelOf(t, s)
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
		everyStep(t, op, 3, staged, func(t *testing.T, s *Store, c crash) {
			p := parcelOf(t, s)
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
	again := func(user string, version int) func(t *testing.T, s *Store, c crash) {
		return func(t *testing.T, s *Store, c crash) {
			names, err := s.Parcels(user)
			if err != nil {
				t.Error(err)
			}
			there := strings.Contains(strings.Join(names, " "), "new")
			if err := c.run(); there != errors.Is(err, parcel.ErrExists) || !there && err != nil {
				t.Errorf("again, after there was %v: got %v", names, err)
			}
			p, err := s.Parcel(user, "new")
			if err != nil {
				t.Fatal(err)
			}
			if head(t, p) != version {
				t.Errorf("head: got %d", head(t, p))
			}
			for _, p := range []*Parcel{p, s.userAt("alice").parcel("winxp")} {
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
	everyStep(t, "create", 8, func(t *testing.T, s *Store) crash { return crash{} }, again("alice", 1))
	everyStep(t, "import", 13, func(t *testing.T, s *Store) crash {
		image := filepath.Join(t.TempDir(), "image")
		if err := os.WriteFile(image, random(20*testChunk, 3), 0o600); err != nil {
			t.Fatal(err)
		}
		return crash{Image: image}
	}, again("alice", 1))
	everyStep(t, "copy", 8, func(t *testing.T, s *Store) crash {
		commit(t, newParcel(t, s), change{1: chunkOf("one")})
		return crash{}
	}, again("bob", 1))
	everyStep(t, "resize", 8, func(t *testing.T, s *Store) crash {
		commit(t, newParcel(t, s), change{1: chunkOf("one"), 300: chunkOf("cut off")})
		return crash{}
	}, again("bob", 1))
	for op, user := range map[string]string{"rename": "alice", "give": "bob"} {
		everyStep(t, op, 5, func(t *testing.T, s *Store) crash {
			p := newParcel(t, s)
			commit(t, p, change{1: chunkOf("one")})
			return crash{}
		}, func(t *testing.T, s *Store, c crash) {
			// The old or the new one is there, whole; who asks for the other is
			// told. A list of them is enough to finish it.
			if c.Step%2 == 0 {
				for _, u := range []string{"alice", "bob"} {
					if _, err := s.Parcels(u); err != nil {
						t.Error(err)
					}
				}
				if ps := wantSound(t, s); slices.ContainsFunc(ps, func(p Problem) bool { return strings.Contains(p.Msg, "renamed") }) {
					t.Errorf("not finished: %v", ps)
				}
			}
			old, oldErr := s.Parcel("alice", "winxp")
			p, err := s.Parcel(user, "new")
			if (oldErr == nil) == (err == nil) {
				t.Fatalf("got both or none: %v, %v", oldErr, err)
			}
			if oldErr == nil {
				wantChunk(t, old, 0, 1, "one")
				if err := c.run(); err != nil {
					t.Fatalf("again: %v", err)
				}
				if p, err = s.Parcel(user, "new"); err != nil {
					t.Fatal(err)
				}
			} else if err := c.run(); !errors.Is(err, parcel.ErrNoParcel) {
				t.Errorf("again, after it was done: %v", err)
			}
			wantChunk(t, p, 0, 1, "one")
			if cfg, err := p.Config(); err != nil || cfg.User != user || cfg.Parcel != "new" {
				t.Errorf("config: %+v, %v", cfg, err)
			}
			commit(t, p, change{2: chunkOf("two")})
			// The old name is free.
			newParcel(t, s)
			wantChunk(t, p, 0, 1, "one")
		})
	}
	versions := func(t *testing.T, s *Store) crash {
		p := versioned(t, s, 2)
		if err := p.Tag(2, "gold", false); err != nil {
			t.Fatal(err)
		}
		return crash{}
	}
	for _, op := range []string{"tag", "untag", "pin", "comment", "rollback free"} {
		everyStep(t, op, 1, versions, func(t *testing.T, s *Store, c crash) {
			p := parcelOf(t, s)
			_, err := p.Resolve("gold")
			if op != "untag" && err != nil {
				t.Errorf("the tag is on no version: %v", err)
			}
			if err := c.run(); err != nil && !(op == "untag" && errors.Is(err, parcel.ErrNoVersion)) {
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
	everyStep(t, "fork", 10, func(t *testing.T, s *Store) crash {
		commit(t, newParcel(t, s), change{1: chunkOf("one")})
		return crash{}
	}, func(t *testing.T, s *Store, c crash) {
		if err := c.run(); err != nil {
			t.Errorf("again: %v", err)
		}
		p, err := s.Parcel("alice", "new")
		if err != nil {
			t.Fatal(err)
		}
		if l, err := p.Holder(); head(t, p) != 1 || err != nil || l == nil || l.Epoch > 2 {
			t.Errorf("version %d, held by %v, %v", head(t, p), l, err)
		}
		wantChunk(t, p, 0, 1, "")
		if _, err := p.Release("", true); err != nil {
			t.Error(err)
		}
		p = s.userAt("alice").parcel("winxp") // for what a kill left there
		if l, err := p.Acquire("alice", "h", "id"); err != nil {
			t.Error(err)
		} else if _, err := p.Release(l.Nonce, false); err != nil {
			t.Error(err)
		}
	})
	everyStep(t, "adopt", 8, func(t *testing.T, s *Store) crash {
		commit(t, newParcel(t, s), change{1: chunkOf("one")})
		return crash{}
	}, again("bob", 2))
	everyStep(t, "adopt user", 1, func(t *testing.T, s *Store) crash { return crash{} },
		func(t *testing.T, s *Store, c crash) {
			if err := c.run(); err != nil && !errors.Is(err, parcel.ErrExists) {
				t.Error(err)
			}
		})
	everyStep(t, "delete", 5, func(t *testing.T, s *Store) crash { newParcel(t, s); return crash{} },
		func(t *testing.T, s *Store, c crash) {
			if err := c.run(); err != nil && !errors.Is(err, parcel.ErrNoParcel) {
				t.Error(err)
			}
			if names, err := s.Parcels("alice"); len(names) != 0 || err != nil {
				t.Errorf("parcels: got %v, %v", names, err)
			}
			newParcel(t, s)
		})
	// Four versions, of which a prune leaves two.
	full := func(t *testing.T, s *Store) crash {
		p := newParcel(t, s)
		for _, v := range []string{"two", "three", "four"} {
			commit(t, p, change{1: chunkOf(v), 300: chunkOf("shared")})
		}
		if _, err := s.Copy(ctx, "alice", "winxp", "bob", "copy"); err != nil {
			t.Fatal(err)
		}
		return crash{}
	}
	left := func(t *testing.T, s *Store, c crash) {
		p := parcelOf(t, s)
		if err := c.run(); err != nil {
			t.Error(err)
		}
		collect(t, s, GCOptions{})
		if !slices.Equal(objectsIn(t, p), reachable(t, p)) {
			t.Error("hdk has what no version needs")
		}
		wantChunk(t, p, 4, 1, "four")
		wantChunk(t, p, 4, 300, "shared")
		wantChunk(t, p, 3, 1, "three")
	}
	everyStep(t, "prune", 8, full, func(t *testing.T, s *Store, c crash) {
		left(t, s, c)
		vs, err := parcelOf(t, s).Versions(0)
		if len(vs) != 2 || err != nil {
			t.Errorf("versions: %v, %v", vs, err)
		}
	})
	everyStep(t, "gc", 7, func(t *testing.T, s *Store) crash {
		c := full(t, s)
		p := parcelOf(t, s)
		for _, v := range []int{1, 2} {
			os.RemoveAll(p.versionDir(v))
			os.Remove(p.versionFile(v))
		}
		os.RemoveAll(p.versionDir(3))    // as of a prune that was killed
		os.Mkdir(p.versionDir(5), 0o700) // as of a commit that was killed
		os.WriteFile(filepath.Join(p.staging(), "left"), nil, 0o600)
		return c
	}, left)
	everyStepOf(t, "repair", 12, false, func(t *testing.T, s *Store) crash {
		p := newParcel(t, s)
		commit(t, p, change{1: chunkOf("one"), 300: chunkOf("three hundred")})
		c := crash{Image: replicaOf(t, s)}
		for level, tags := range tagsOf(t, p, 2) {
			if level < 2 {
				os.Remove(filepath.Join(p.hdk(), tree.ObjectName(tags[0])))
			} else {
				flip(t, filepath.Join(p.hdk(), tree.ObjectName(tags[0])))
			}
		}
		useless := filepath.Join(p.hdk(), tree.ObjectName(seal.Tag(random(32, 9))))
		os.MkdirAll(filepath.Dir(useless), 0o700)
		os.WriteFile(useless, []byte("x"), 0o400)
		os.Remove(p.versionFile(1))
		os.Remove(filepath.Join(p.lock, tree.ConfigFile))
		os.RemoveAll(filepath.Join(p.content, "000001"))
		os.RemoveAll(p.staging())
		return c
	}, func(t *testing.T, s *Store, c crash) {
		if err := c.run(); err != nil {
			t.Error(err)
		}
		p := parcelOf(t, s)
		wantChunk(t, p, 0, 300, "three hundred")
		if l, err := p.Acquire("alice", "h", "id"); err != nil { // for what a kill left in staging
			t.Error(err)
		} else if _, err := p.Release(l.Nonce, false); err != nil {
			t.Error(err)
		}
	})
	everyStep(t, "user", 2, func(t *testing.T, s *Store) crash { return crash{} },
		func(t *testing.T, s *Store, c crash) {
			if err := c.run(); err != nil && !errors.Is(err, parcel.ErrExists) {
				t.Error(err)
			}
			if _, err := s.Parcels("carol"); err != nil {
				t.Error(err)
			}
		})
	everyStep(t, "lock user", 1, func(t *testing.T, s *Store) crash { return crash{} },
		func(t *testing.T, s *Store, c crash) {
			was, err := s.UserConfig("alice")
			if err != nil || was.Quota != 0 && was.Locked.IsZero() {
				t.Errorf("half changed: %+v, %v", was, err)
			}
			if err := c.run(); err != nil {
				t.Error(err)
			}
			if err := s.Admit("alice"); !errors.Is(err, parcel.ErrDenied) {
				t.Error(err)
			}
		})
}
