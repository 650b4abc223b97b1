package store_test

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"isr/store"
	"isr/store/parcel"
	"isr/store/seal"
	"isr/store/storetest"
	"isr/store/tree"
)

// noteOften has imports note every few chunks how far they are.
func noteOften(t testing.TB) {
	old := *store.NoteEvery
	*store.NoteEvery = 4 * storetest.Chunk
	t.Cleanup(func() { *store.NoteEvery = old })
}

// An import that was interrupted goes on where it was: what it had sealed is
// not written again, what is not whole is, and of what is not needed nothing
// is left.
func TestImportGoesOn(t *testing.T) {
	noteOften(t)
	s := storetest.New(t)
	const size = 600*storetest.Chunk + 100
	image := storetest.WriteImage(t, size, map[int64][]byte{0: storetest.Random(size, 7)})
	o := store.CreateOptions{ChunkSize: storetest.Chunk, Format: "raw"}
	interrupted := func(o store.CreateOptions) error {
		cancelled, cancel := context.WithCancel(ctx)
		defer cancel()
		o.Progress = func(done, total int64) {
			if done > total/2 {
				cancel()
			}
		}
		_, err := s.Import(cancelled, "alice", "box", image, o)
		return err
	}
	err := interrupted(o)
	var e *parcel.Error
	if !errors.As(err, &e) || e.Kind != parcel.Interrupted || e.Hint == "" {
		t.Fatalf("interrupted: got %v, want a hint how to go on", err)
	}
	if names, _ := s.Parcels("alice"); len(names) > 0 {
		t.Errorf("parcels: %v", names)
	}
	p := s.UserAt("alice").At("box")
	dir := filepath.Join(p.StagingDir(), "hdk")
	before := make(map[string]os.FileInfo)
	filepath.WalkDir(dir, func(path string, d fs.DirEntry, _ error) error {
		if !d.IsDir() {
			before[d.Name()], _ = d.Info()
		}
		return nil
	})
	// A power cut left one object short, and one with other bytes.
	torn := 0
	for name := range before {
		path := filepath.Join(dir, name[:2], name)
		if torn++; torn == 1 {
			os.Chmod(path, 0o600)
			os.Truncate(path, 10)
		} else if torn == 2 {
			storetest.Flip(t, path)
		} else {
			break
		}
	}
	os.WriteFile(filepath.Join(p.StagingDir(), "import-1.raw"), []byte("left"), 0o600)
	if p, err = s.Import(ctx, "alice", "box", image, o); err != nil {
		t.Fatal(err)
	}
	kept := 0
	filepath.WalkDir(p.HdkDir(), func(path string, d fs.DirEntry, _ error) error {
		if !d.IsDir() {
			fi, _ := d.Info()
			if old := before[d.Name()]; old != nil && os.SameFile(fi, old) && fi.ModTime() == old.ModTime() {
				kept++
			}
		}
		return nil
	})
	if kept < 280 {
		t.Errorf("%d objects of %d were kept, want almost all of half the disk", kept, len(before))
	}
	storetest.WantDisk(t, p, 1, image)
	if ps := storetest.WantSound(t, s); len(ps) > 0 {
		t.Errorf("left over: %v", ps)
	}
	if v, _ := p.Version(1); v.Objects != 601+3+1+1 {
		t.Errorf("version 1 has %d objects", v.Objects)
	}

	// It goes on only with what is the same: not another image, chunk size or
	// codec, nor does another command.
	for name, again := range map[string]func() error{
		"another image": func() error {
			_, err := s.Import(ctx, "alice", "box", storetest.WriteImage(t, size, map[int64][]byte{0: storetest.Random(size, 8)}), o)
			return err
		},
		"another chunk size": func() error {
			_, err := s.Import(ctx, "alice", "box", image, store.CreateOptions{Format: "raw", ChunkSize: 2 * storetest.Chunk})
			return err
		},
		"another codec": func() error {
			_, err := s.Import(ctx, "alice", "box", image, store.CreateOptions{Format: "raw", ChunkSize: storetest.Chunk, Compress: seal.Zstd})
			return err
		},
		"create": func() error { _, err := s.Create(ctx, "alice", "box", store.CreateOptions{DiskSize: 1}); return err },
		"del": func() error {
			if err := s.DelParcel("alice", "box", false); err != nil {
				return err
			}
			if left, err := os.ReadDir(s.UserAt("alice").ContentRoot); err != nil || len(left) > 0 {
				t.Errorf("del: left %v, %v", left, err)
			}
			_, err := s.Create(ctx, "alice", "box", store.CreateOptions{DiskSize: 1})
			return err
		},
		"garbage for a note": func() error {
			os.WriteFile(filepath.Join(s.UserAt("alice").At("box").LockDir(), tree.UnfinishedFile), []byte("KEYROOT:=x\n"), 0o600)
			_, err := s.Import(ctx, "alice", "box", image, o)
			return err
		},
		"the note's root gone": func() error {
			p := s.UserAt("alice").At("box")
			os.Remove(filepath.Join(p.StagingDir(), "hdk", tree.ObjectName(p.Noted(&parcel.Config{Compress: seal.Gzip}).Tag)))
			_, err := s.Import(ctx, "alice", "box", image, o)
			return err
		},
	} {
		if err := s.DelParcel("alice", "box", false); err != nil {
			t.Fatal(err)
		}
		if err := interrupted(o); !errors.Is(err, parcel.ErrInterrupted) {
			t.Fatal(err)
		}
		if err := again(); err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if ps := storetest.WantSound(t, s); len(ps) > 0 {
			t.Errorf("%s: left over: %v", name, ps)
		}
	}
}
