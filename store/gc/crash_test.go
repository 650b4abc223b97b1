package gc_test

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"isr/store"
	"isr/store/gc"
	"isr/store/keep"
	"isr/store/prune"
	"isr/store/storetest"
)

func TestMain(m *testing.M) {
	storetest.Main(m, func(c storetest.Crash) error {
		s, err := store.Open(c.Root)
		if err != nil {
			return err
		}
		switch c.Op {
		case "gc":
			err = gc.Run(ctx, s, gc.Options{}, func(c gc.Collected) { err = errors.Join(err, c.Error) })
		case "prune":
			var plan []prune.Plan
			p := s.UserAt("alice").At("winxp")
			if plan, err = prune.Choose(p, keep.Rules{Last: 2}); err == nil {
				_, _, err = prune.Run(ctx, p, prune.Prunable(plan))
			}
		default:
			err = errors.New("unknown call " + c.Op)
		}
		return err
	})
}

// Killed at any step, a prune or a collection is finished by the next.
func TestCrash(t *testing.T) {
	// Four versions, of which a prune leaves two.
	full := func(t *testing.T, s *store.Store) storetest.Crash {
		p := storetest.NewParcel(t, s)
		for _, v := range []string{"two", "three", "four"} {
			storetest.Commit(t, p, storetest.Change{1: storetest.ChunkOf(v), 300: storetest.ChunkOf("shared")})
		}
		if _, err := s.Copy(ctx, "alice", "winxp", "bob", "copy"); err != nil {
			t.Fatal(err)
		}
		return storetest.Crash{}
	}
	left := func(t *testing.T, s *store.Store, c storetest.Crash) {
		p := storetest.Parcel(t, s)
		if err := c.Run(); err != nil {
			t.Error(err)
		}
		storetest.Collect(t, s, gc.Options{})
		if !slices.Equal(storetest.ObjectsIn(t, p), storetest.Reachable(t, p)) {
			t.Error("hdk has what no version needs")
		}
		storetest.WantChunk(t, p, 4, 1, "four")
		storetest.WantChunk(t, p, 4, 300, "shared")
		storetest.WantChunk(t, p, 3, 1, "three")
	}
	storetest.EveryStep(t, "prune", 8, full, func(t *testing.T, s *store.Store, c storetest.Crash) {
		left(t, s, c)
		vs, err := storetest.Parcel(t, s).Versions(0)
		if len(vs) != 2 || err != nil {
			t.Errorf("versions: %v, %v", vs, err)
		}
	})
	storetest.EveryStep(t, "gc", 7, func(t *testing.T, s *store.Store) storetest.Crash {
		c := full(t, s)
		p := storetest.Parcel(t, s)
		for _, v := range []int{1, 2} {
			os.RemoveAll(p.VersionDir(v))
			os.Remove(p.VersionFile(v))
		}
		os.RemoveAll(p.VersionDir(3))    // as of a prune that was killed
		os.Mkdir(p.VersionDir(5), 0o700) // as of a commit that was killed
		os.WriteFile(filepath.Join(p.StagingDir(), "left"), nil, 0o600)
		return c
	}, left)
}
