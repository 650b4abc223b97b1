package repair_test

import (
	"os"
	"path/filepath"
	"testing"

	"isr/store"
	"isr/store/check"
	"isr/store/repair"
	"isr/store/seal"
	"isr/store/storetest"
	"isr/store/tree"
)

func TestMain(m *testing.M) {
	storetest.Main(m, func(c storetest.Crash) error {
		s, err := store.Open(c.Root)
		if err == nil {
			_, err = repair.Run(ctx, s, repair.Options{From: []string{c.Image}, Discard: func(string, string, int) bool { return true }},
				func(repair.Mending) {}, func(check.Problem) {})
		}
		return err
	})
}

func TestCrash(t *testing.T) {
	storetest.EveryStepOf(t, "repair", 12, false, func(t *testing.T, s *store.Store) storetest.Crash {
		p := storetest.NewParcel(t, s)
		storetest.Commit(t, p, storetest.Change{1: storetest.ChunkOf("one"), 300: storetest.ChunkOf("three hundred")})
		c := storetest.Crash{Image: storetest.Replica(t, s)}
		for level, tags := range storetest.TagsOf(t, p, 2) {
			if level < 2 {
				os.Remove(filepath.Join(p.HdkDir(), tree.ObjectName(tags[0])))
			} else {
				storetest.Flip(t, filepath.Join(p.HdkDir(), tree.ObjectName(tags[0])))
			}
		}
		useless := filepath.Join(p.HdkDir(), tree.ObjectName(seal.Tag(storetest.Random(32, 9))))
		os.MkdirAll(filepath.Dir(useless), 0o700)
		os.WriteFile(useless, []byte("x"), 0o400)
		os.Remove(p.VersionFile(1))
		os.Remove(filepath.Join(p.LockDir(), tree.ConfigFile))
		os.RemoveAll(filepath.Join(p.ContentDir(), "000001"))
		os.RemoveAll(p.StagingDir())
		return c
	}, func(t *testing.T, s *store.Store, c storetest.Crash) {
		if err := c.Run(); err != nil {
			t.Error(err)
		}
		p := storetest.Parcel(t, s)
		storetest.WantChunk(t, p, 0, 300, "three hundred")
		if l, err := p.Acquire("alice", "h", "id"); err != nil { // for what a kill left in staging
			t.Error(err)
		} else if _, err := p.Release(l.Nonce, false); err != nil {
			t.Error(err)
		}
	})
}
