package backup

import (
	"encoding/json"
	"errors"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"

	"isr/store"
	"isr/store/backup/mirror"
	"isr/store/backup/realm"
	"isr/store/backup/snapshot"
	"isr/store/backup/target"
	"isr/store/backup/target/targettest"
	"isr/store/parcel"
)

// A crash is one call, made in a child process that is killed at one step.
type crash struct {
	Op          string
	Root, Place string
	Remove      []string // snapshots, of prune
	Step        int      // the child is killed before this step, from 0
}

func (c *crash) run() error {
	place, err := target.OpenDir(c.Place, true)
	if err != nil {
		return err
	}
	defer place.Close()
	place.Step = step
	if c.Op == "restore" {
		_, _, err := Restore(ctx, c.Root, place, RestoreOptions{})
		return err
	}
	s, err := store.Open(c.Root)
	if err != nil {
		return err
	}
	switch c.Op {
	case "make":
		_, err = Make(ctx, s, place, Options{})
	case "prune":
		_, err = Prune(ctx, place, c.Remove, nil)
	case "mirror":
		_, err = mirror.Pass(ctx, s, place, mirror.Options{Delete: true})
	case "into":
		_, err = RestoreInto(ctx, s, place, RestoreOptions{User: "bob"})
	}
	return err
}

// TestMain is also the child.
func TestMain(m *testing.M) {
	arg := os.Getenv("BACKUP_TEST_CRASH")
	if arg == "" {
		os.Exit(m.Run())
	}
	var c crash
	if err := json.Unmarshal([]byte(arg), &c); err != nil {
		panic(err)
	}
	var n int
	var stepping sync.Mutex
	step = func(string) {
		stepping.Lock()
		defer stepping.Unlock()
		if n == c.Step {
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

func (c crash) killed(t *testing.T) bool {
	t.Helper()
	arg, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "BACKUP_TEST_CRASH="+string(arg))
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

// someSteps kills c at steps further and further apart, each time on what
// prepare makes, and calls after to look at what is left and call again.
func someSteps(t *testing.T, op string, atLeast int, prepare func(*testing.T) crash, after func(*testing.T, crash)) {
	t.Run(op, func(t *testing.T) {
		t.Parallel()
		for n := 0; ; n += 1 + n {
			c := prepare(t)
			c.Op, c.Step = op, n
			killed := c.killed(t)
			after(t, c)
			if t.Failed() {
				t.Fatalf("%s, killed at step %d", op, n)
			}
			if !killed {
				if n < atLeast {
					t.Errorf("%s has %d steps, want at least %d: does the test see them?", op, n, atLeast)
				}
				return
			}
		}
	})
}

func TestCrash(t *testing.T) {
	open := func(t *testing.T, root string) *store.Store {
		t.Helper()
		s, err := store.Open(root)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	verified := func(t *testing.T, place *target.Dir, snapshots int) {
		t.Helper()
		if ids, err := snapshot.IDs(ctx, place); err != nil || len(ids) != snapshots {
			t.Errorf("snapshots: %v, %v; want %d", ids, err, snapshots)
		}
		if snapshots == 0 {
			return
		}
		if _, err := Verify(ctx, place, VerifyOptions{Sample: 1, Problem: func(text string) { t.Error(text) }}); err != nil {
			t.Error(err)
		}
	}
	dir := func(t *testing.T, name string) *target.Dir {
		t.Helper()
		d, err := target.OpenDir(name, true)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { d.Close() })
		return d
	}
	// A realm, a backup of it, and something new in the realm.
	backedUp := func(t *testing.T) crash {
		s := newRealm(t)
		populate(t, s)
		c := crash{Root: s.Root(), Place: filepath.Join(targettest.MemDir(t), "place")}
		make_(t, s, dir(t, c.Place))
		commit(t, mustParcel(t, s, "bob", "mine"), "", map[int64]string{7: "seven", 500: "five hundred"})
		return c
	}
	someSteps(t, "make", 10, backedUp, func(t *testing.T, c crash) {
		place := dir(t, c.Place)
		ids, err := snapshot.IDs(ctx, place)
		if err != nil || len(ids) < 1 {
			t.Errorf("%v, %v", ids, err)
		}
		verified(t, place, len(ids))
		make_(t, open(t, c.Root), place)
		verified(t, place, len(ids)+1)
		wantEqual(t, c.Root, restored(t, place, RestoreOptions{}).Root())
	})
	someSteps(t, "prune", 4, func(t *testing.T) crash {
		c := backedUp(t)
		place := dir(t, c.Place)
		ids, _ := snapshot.IDs(ctx, place)
		s := open(t, c.Root)
		if err := s.DelParcel("alice", "winxp", true); err != nil {
			t.Fatal(err)
		}
		make_(t, s, place)
		c.Remove = ids
		return c
	}, func(t *testing.T, c crash) {
		place := dir(t, c.Place)
		ids, err := snapshot.IDs(ctx, place)
		if err != nil {
			t.Error(err)
		}
		verified(t, place, len(ids))
		if _, err := Prune(ctx, place, c.Remove, nil); err != nil {
			t.Error(err)
		}
		verified(t, place, 1)
		if v, err := Verify(ctx, place, VerifyOptions{Problem: func(string) {}}); err != nil || v.Spare != 0 {
			t.Errorf("left over: %+v, %v", v, err)
		}
		wantEqual(t, c.Root, restored(t, place, RestoreOptions{}).Root())
	})
	someSteps(t, "restore", 12, func(t *testing.T) crash {
		c := backedUp(t)
		make_(t, open(t, c.Root), dir(t, c.Place))
		c.Root = filepath.Join(targettest.MemDir(t), "new")
		return c
	}, func(t *testing.T, c crash) {
		_, err := store.Open(c.Root)
		published := err == nil
		if published {
			wantSound(t, open(t, c.Root), true) // whole, or not there
		}
		_, res, err := Restore(ctx, c.Root, dir(t, c.Place), RestoreOptions{Warn: func(text string) { t.Error(text) }})
		if errors.Is(err, parcel.ErrExists) {
			err = nil // it had ended
		} else if err == nil && !published && c.Step > 30 && res.Kept == 0 && res.Parcels < 3 {
			t.Errorf("nothing was kept: %+v", res)
		}
		if err != nil {
			t.Fatal(err)
		}
		wantEqual(t, c.Root, restored(t, dir(t, c.Place), RestoreOptions{}).Root())
	})
	someSteps(t, "into", 3, func(t *testing.T) crash {
		c := backedUp(t)
		for _, name := range []string{"bob/mine", "bob/empty", "alice/winxp"} {
			if err := open(t, c.Root).DelParcel(filepath.Dir(name), filepath.Base(name), true); err != nil {
				t.Fatal(err)
			}
		}
		return c
	}, func(t *testing.T, c crash) {
		s := open(t, c.Root)
		wantSound(t, s, true)
		if _, err := RestoreInto(ctx, s, dir(t, c.Place), RestoreOptions{User: "bob"}); err != nil && !errors.Is(err, parcel.ErrExists) {
			t.Error(err)
		}
		wantSound(t, s, true)
		mustParcel(t, s, "bob", "mine")
	})
	someSteps(t, "mirror", 20, func(t *testing.T) crash {
		s := newRealm(t)
		populate(t, s)
		c := crash{Root: s.Root(), Place: filepath.Join(targettest.MemDir(t), "place")}
		if _, err := mirror.Pass(ctx, s, dir(t, c.Place), mirror.Options{}); err != nil {
			t.Fatal(err)
		}
		p := mustParcel(t, s, "bob", "mine")
		for i := range 3 {
			commit(t, p, "", map[int64]string{7: "seven", int64(500 + i): "five hundred"})
		}
		forget(t, p, 2)
		if _, err := mustParcel(t, s, "alice", "winxp").Release("", true); err != nil {
			t.Fatal(err)
		}
		if err := s.DelParcel("bob", "empty", false); err != nil {
			t.Fatal(err)
		}
		return c
	}, func(t *testing.T, c crash) {
		// Whatever is there can be served: every version to the head is whole.
		wantSound(t, open(t, c.Place), true)
		if _, err := mirror.Pass(ctx, open(t, c.Root), dir(t, c.Place), mirror.Options{Delete: true}); err != nil {
			t.Error(err)
		}
		wantMirror(t, c.Root, c.Place)
	})
}

// wantMirror fails unless a mirror is as its realm.
func wantMirror(t *testing.T, root, place string) {
	t.Helper()
	s, err := store.Open(place)
	if err != nil {
		t.Fatal(err)
	}
	wantSound(t, s, false)
	x, y := files(t, root), files(t, place)
	delete(y, realm.StandbyFile)
	if !maps.Equal(x, y) {
		wantEqual(t, root, place, realm.StandbyFile)
	}
}
