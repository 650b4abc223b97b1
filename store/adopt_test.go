package store_test

import (
	"context"
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"isr/store"
	"isr/store/parcel"
	"isr/store/seal"
	"isr/store/storetest"
	"isr/store/tree"
)

// adoption is a parcel as somebody else would have it from a backup.
func adoption(p *store.Parcel) store.Adoption {
	a := store.Adoption{Files: make(map[string][]byte)}
	filepath.WalkDir(p.LockDir(), func(path string, e fs.DirEntry, err error) error {
		if name, rerr := filepath.Rel(p.LockDir(), path); rerr == nil && err == nil && !e.IsDir() && !tree.IsTemp(e.Name()) {
			a.Files[name], _ = os.ReadFile(path)
		}
		return nil
	})
	a.Objects = func(_ context.Context, add func(tag seal.Tag, file string) error) error {
		return filepath.WalkDir(p.HdkDir(), func(path string, e fs.DirEntry, err error) error {
			if err != nil || e.IsDir() {
				return err
			}
			tag, err := seal.ParseTag(e.Name())
			if err != nil {
				return err
			}
			return add(tag, path)
		})
	}
	return a
}

// A parcel that is adopted has its versions and its holder; one that is to be
// another has neither UUID nor holder of the first.
func TestAdopt(t *testing.T) {
	s := storetest.New(t)
	p := storetest.NewParcel(t, s)
	storetest.Commit(t, p, storetest.Change{1: storetest.ChunkOf("one")})
	l, err := p.Acquire("alice", "laptop", "id")
	if err != nil {
		t.Fatal(err)
	}
	a := adoption(p)
	q, err := s.Adopt(ctx, "bob", "same", a)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := q.CheckLock(l.Nonce); err != nil || got.Host != "laptop" {
		t.Errorf("the holder: %v, %v", got, err)
	}
	storetest.WantChunk(t, q, 0, 1, "one")
	storetest.WantChunk(t, q, 1, 1, "")
	// The one that it is of may have been acquired often since.
	for range 3 {
		if _, err := p.Release("", true); err != nil {
			t.Fatal(err)
		}
		if l, err = p.Acquire("alice", "desk", ""); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := q.Release("", true); err != nil {
		t.Fatal(err)
	}
	if next, err := q.Acquire("bob", "desk", ""); err != nil || next.Epoch <= l.Epoch {
		t.Errorf("the next holder: %+v, %v; there was an epoch %d", next, err, l.Epoch)
	}
	a.Another = true
	r, err := s.Adopt(ctx, "bob", "another", a)
	if err != nil {
		t.Fatal(err)
	}
	if h, err := r.Holder(); h != nil || err != nil {
		t.Errorf("the other is held: %v, %v", h, err)
	}
	was, _ := p.Config()
	same, _ := q.Config()
	another, _ := r.Config()
	if same.UUID != was.UUID || another.UUID == was.UUID || same.User != "bob" || another.Parcel != "another" || another.Version != 2 {
		t.Errorf("got %+v and %+v", same, another)
	}
	if ps := storetest.WantSound(t, s); len(ps) > 0 {
		t.Errorf("notes: %v", ps)
	}
	if _, err := s.Adopt(ctx, "bob", "same", a); !errors.Is(err, parcel.ErrExists) {
		t.Errorf("again: %v", err)
	}

	for name, spoil := range map[string]func(files map[string][]byte){
		"no parcel.cfg":   func(f map[string][]byte) { delete(f, tree.ConfigFile) },
		"no head":         func(f map[string][]byte) { delete(f, "keys/000002") },
		"a damaged head":  func(f map[string][]byte) { f["keys/000002"] = []byte("x") },
		"a path":          func(f map[string][]byte) { f["../../../escaped"] = []byte("x") },
		"a path in keys":  func(f map[string][]byte) { f["keys/../../escaped"] = []byte("x") },
		"a hidden file":   func(f map[string][]byte) { f[".x"] = []byte("x") },
		"an absolute one": func(f map[string][]byte) { f["/tmp/escaped"] = []byte("x") },
	} {
		b := a
		b.Files = maps.Clone(a.Files)
		spoil(b.Files)
		if _, err := s.Adopt(ctx, "bob", "spoiled", b); !errors.Is(err, parcel.ErrDamaged) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if names, _ := s.Parcels("bob"); strings.Join(names, " ") != "another same" {
		t.Errorf("parcels: %v", names)
	}
	filepath.WalkDir(s.Root(), func(path string, e fs.DirEntry, err error) error {
		if strings.Contains(path, "escaped") {
			t.Errorf("%s is there", path)
		}
		return nil
	})
}

// A store that is put together is none before the end.
func TestAssemble(t *testing.T) {
	from := storetest.New(t)
	p := storetest.NewParcel(t, from)
	realm, err := os.ReadFile(filepath.Join(from.Root(), tree.RealmFile))
	if err != nil {
		t.Fatal(err)
	}
	root := filepath.Join(storetest.TempDir(t), "new")
	for range 2 { // as if it was killed in between
		s, err := store.Assemble(root, realm)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.AdoptUser("alice", nil); err != nil && !errors.Is(err, parcel.ErrExists) {
			t.Fatal(err)
		}
		if _, err := s.Adopt(ctx, "alice", "winxp", adoption(p)); err != nil && !errors.Is(err, parcel.ErrExists) {
			t.Fatal(err)
		}
		if _, err := store.Open(root); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("open before the end: %v", err)
		}
		if err := s.AdoptUser("../x", nil); !errors.Is(err, parcel.ErrUsage) {
			t.Errorf("user ../x: %v", err)
		}
	}
	s, err := store.Assemble(root, realm)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Publish(realm); err != nil {
		t.Fatal(err)
	}
	if s, err = store.Open(root); err != nil || s.Realm() != "test" {
		t.Fatal(err)
	}
	if ps := storetest.WantSound(t, s); len(ps) > 0 {
		t.Errorf("notes: %v", ps)
	}
	if _, err := store.Assemble(root, realm); !errors.Is(err, parcel.ErrExists) {
		t.Errorf("assemble over a store: %v", err)
	}
	if _, err := store.Assemble(filepath.Join(storetest.TempDir(t), "x"), []byte("FORMAT:=9\n")); err == nil {
		t.Error("another format: no error")
	}
}
