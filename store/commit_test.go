package store_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"isr/store"
	"isr/store/check"
	"isr/store/keyring"
	"isr/store/parcel"
	"isr/store/seal"
	"isr/store/storetest"
	"isr/store/tree"
)

func TestCommitRefused(t *testing.T) {
	s := storetest.New(t)
	p := storetest.NewParcel(t, s)
	r := storetest.Holding(t, p, storetest.Change{1: storetest.ChunkOf("one")})
	with := func(f func(*store.CommitRequest)) store.CommitRequest { c := r; f(&c); return c }
	unknown := seal.Ref{Tag: seal.Tag(storetest.Random(32, 1)), Key: seal.Key(storetest.Random(32, 2))}
	wrongKey := seal.Ref{Tag: r.Keyroot.Tag, Key: unknown.Key}
	for name, c := range map[string]struct {
		r    store.CommitRequest
		want error
	}{
		"no nonce":     {with(func(c *store.CommitRequest) { c.Nonce = "" }), parcel.ErrNotHolder},
		"other nonce":  {with(func(c *store.CommitRequest) { c.Nonce += "x" }), parcel.ErrNotHolder},
		"later parent": {with(func(c *store.CommitRequest) { c.Parent = 2 }), parcel.ErrConflict},
		"no parent":    {with(func(c *store.CommitRequest) { c.Parent = 0 }), parcel.ErrUsage},
		"no id":        {with(func(c *store.CommitRequest) { c.ID = "" }), parcel.ErrUsage},
		"id of lines":  {with(func(c *store.CommitRequest) { c.ID = "a\nKEYROOT:=-" }), parcel.ErrUsage},
		"no keyroot":   {with(func(c *store.CommitRequest) { c.Keyroot = seal.Ref{} }), parcel.ErrUsage},
		"unknown root": {with(func(c *store.CommitRequest) { c.Keyroot = unknown }), parcel.ErrNoObject},
		"wrong key":    {with(func(c *store.CommitRequest) { c.Keyroot = wrongKey }), seal.ErrCorrupt},
	} {
		if v, err := p.Commit(ctx, c.r); v != 0 || !errors.Is(err, c.want) {
			t.Errorf("%s: got %d, %v, want %v", name, v, err, c.want)
		}
	}
	if v, err := p.Commit(ctx, r); v != 2 || err != nil {
		t.Errorf("after all: got %d, %v, want 2", v, err)
	}
	// Now its parent is no longer the head, but its id is known.
	if v, err := p.Commit(ctx, r); v != 2 || err != nil {
		t.Errorf("again: got %d, %v, want 2", v, err)
	}
	if _, err := p.Commit(ctx, with(func(c *store.CommitRequest) { c.ID = parcel.NewID() })); !errors.Is(err, parcel.ErrConflict) {
		t.Errorf("old parent: got %v", err)
	}
	if _, err := p.Commit(ctx, with(func(c *store.CommitRequest) { c.Keyroot = unknown })); !errors.Is(err, parcel.ErrConflict) {
		t.Errorf("same id, other version: got %v", err)
	}
	if _, err := p.Release(r.Nonce, false); err != nil {
		t.Fatal(err)
	}
	if v, err := p.Commit(ctx, r); v != 2 || err != nil {
		t.Errorf("again after release: got %d, %v, want 2", v, err)
	}
	storetest.Commit(t, p, storetest.Change{2: storetest.ChunkOf("two")})
	if v, err := p.Commit(ctx, r); v != 2 || err != nil {
		t.Errorf("again after the next version: got %d, %v, want 2", v, err)
	}
	storetest.WantSound(t, s)
}

// Whichever object is missing or damaged, nothing is published, and once it is
// put again the same commit goes through.
func TestCommitLacking(t *testing.T) {
	s := storetest.New(t)
	p := storetest.NewParcel(t, s)
	r := storetest.Holding(t, p, storetest.Change{1: storetest.ChunkOf("one"), 300: storetest.ChunkOf("three hundred"), 999: storetest.ChunkOf("last")})
	entries, err := os.ReadDir(p.StagingDir())
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) != 3+3+1+1 {
		t.Fatalf("staged: got %d objects, want 3 chunks, 3 blocks, their parent and the root", len(entries))
	}
	for _, e := range entries {
		path := filepath.Join(p.StagingDir(), e.Name())
		whole, _ := os.ReadFile(path)
		tag, _ := seal.ParseTag(e.Name())
		for name, damage := range map[string]func() error{
			"missing":   func() error { return os.Remove(path) },
			"empty":     func() error { return os.Truncate(path, 0) },
			"truncated": func() error { return os.Truncate(path, int64(len(whole)-1)) },
			"flipped": func() error {
				bad := append([]byte(nil), whole...)
				bad[len(bad)/2] ^= 1
				os.Remove(path)
				return os.WriteFile(path, bad, 0o400)
			},
		} {
			if err := damage(); err != nil {
				t.Fatal(err)
			}
			// A damaged one is thrown out by the first commit that reads it, at
			// the latest by the second.
			_, err := p.Commit(ctx, r)
			if err == nil {
				t.Fatalf("%s %s: committed", name, e.Name())
			}
			if !errors.Is(err, parcel.ErrNoObject) || !strings.Contains(err.Error(), e.Name()) {
				t.Errorf("%s %s: got %v", name, e.Name(), err)
			}
			if has, err := p.Has(tag); has || err != nil {
				t.Errorf("%s %s: has: got %v, %v", name, e.Name(), has, err)
			}
			if got := storetest.Head(t, p); got != 1 {
				t.Fatalf("%s %s: head is %d", name, e.Name(), got)
			}
			if err := storetest.Stage(p, tag, whole); err != nil {
				t.Fatal(err)
			}
		}
	}
	if v, err := p.Commit(ctx, r); v != 2 || err != nil {
		t.Errorf("all there: got %d, %v", v, err)
	}
	storetest.WantSound(t, s)
}

func TestCommitCounts(t *testing.T) {
	s := storetest.New(t)
	p := storetest.NewParcel(t, s)
	r := storetest.Holding(t, p, storetest.Change{1: storetest.ChunkOf("one"), 2: storetest.ChunkOf("one"), 300: storetest.ChunkOf("three hundred")})
	// Something that no version needs waits too: it does not stay.
	extra := seal.Sealer{Suite: seal.AES256SHA256, Codec: seal.None}
	ref, sealed, _ := extra.Seal([]byte("not needed"))
	if err := storetest.Stage(p, ref.Tag, sealed); err != nil {
		t.Fatal(err)
	}
	var size int64
	entries, _ := os.ReadDir(p.StagingDir())
	for _, e := range entries {
		fi, _ := e.Info()
		size += fi.Size()
	}
	if _, err := p.Commit(ctx, r); err != nil {
		t.Fatal(err)
	}
	vs, err := p.Versions(0)
	if err != nil || len(vs) != 2 || vs[0].Version != 2 || vs[1].Version != 1 {
		t.Fatalf("versions: got %+v, %v", vs, err)
	}
	// Two chunks (the equal ones are one object), two blocks, their parent, the root.
	if got := vs[0]; got.Objects != 6 || got.Bytes != size-int64(len(sealed)) || got.Parent != 1 || got.Host != "testhost" || got.Comment != "changed" || got.Epoch != 1 {
		t.Errorf("version 2: got %+v, want 6 objects of %d bytes", got, size-int64(len(sealed)))
	}
	if has, _ := p.Has(ref.Tag); has {
		t.Error("what no version needs is still there")
	}
	if vs, _ := p.Versions(1); len(vs) != 1 || vs[0].Version != 2 {
		t.Errorf("versions 1: got %+v", vs)
	}
	// One chunk of a tree of depth two: chunk, block, parent, root.
	p.Release(r.Nonce, false)
	storetest.Commit(t, p, storetest.Change{1: storetest.ChunkOf("changed")})
	if vs, _ := p.Versions(1); vs[0].Objects != 4 {
		t.Errorf("one chunk: got %+v, want 4 objects", vs[0])
	}
	// No change at all: a new root only.
	storetest.Commit(t, p, nil)
	if vs, _ := p.Versions(1); vs[0].Objects != 1 {
		t.Errorf("no chunk: got %+v, want 1 object", vs[0])
	}
	storetest.WantSound(t, s)
}

func TestCommitRace(t *testing.T) {
	s := storetest.New(t)
	p := storetest.NewParcel(t, s)
	r := storetest.Holding(t, p, storetest.Change{1: storetest.ChunkOf("one")})
	var wg sync.WaitGroup
	for range 10 {
		q := storetest.Reopen(t, p)
		wg.Go(func() {
			if v, err := q.Commit(ctx, r); v != 2 || err != nil {
				t.Errorf("got %d, %v, want 2", v, err)
			}
		})
	}
	wg.Wait()
	if got := storetest.Head(t, p); got != 2 {
		t.Errorf("head: got %d, want 2", got)
	}
	storetest.WantSound(t, s)
}

func TestLinks(t *testing.T) {
	s := storetest.New(t)
	p := storetest.NewParcel(t, s)
	if _, err := os.Lstat(filepath.Join(p.ContentDir(), "cfg.tgz.enc")); err == nil {
		t.Error("cfg.tgz.enc is there, and there is no cfg archive")
	}
	l, err := p.Acquire("alice", "h", "id")
	if err != nil {
		t.Fatal(err)
	}
	const archive = "what the VMM keeps"
	keyroot, _ := storetest.StageVersion(t, p, storetest.Change{3: storetest.ChunkOf("x")}, archive)
	if _, err := p.Commit(ctx, store.CommitRequest{Nonce: l.Nonce, Parent: 1, Keyroot: keyroot, ID: "c"}); err != nil {
		t.Fatal(err)
	}
	for name, target := range map[string]string{"last": "000002", "keys/keyring.enc": "../last/keyring.enc", "cfg.tgz.enc": "last/cfg.tgz.enc"} {
		if got, err := os.Readlink(filepath.Join(p.ContentDir(), name)); got != target {
			t.Errorf("%s: got %q, %v, want %q", name, got, err, target)
		}
	}
	cfg, _ := p.Config()
	sealed, err := os.ReadFile(filepath.Join(p.ContentDir(), "keys", "keyring.enc"))
	if err != nil {
		t.Fatal(err)
	}
	root, err := keyring.OpenRoot(cfg.Sealer(), keyroot, sealed)
	if err != nil {
		t.Fatal(err)
	}
	if sealed, err = os.ReadFile(filepath.Join(p.ContentDir(), "cfg.tgz.enc")); err != nil {
		t.Fatal(err)
	}
	if got, err := cfg.Sealer().Unseal(root.Cfg, sealed, seal.MaxPlain); string(got) != archive {
		t.Errorf("cfg archive: got %q, %v", got, err)
	}
	info, err := os.ReadFile(filepath.Join(p.ContentDir(), "last", "info"))
	if err != nil {
		t.Fatal(err)
	}
	for _, secret := range []string{keyroot.Key.Hex(), l.Nonce, fmt.Sprintf("%x", cfg.Secret)} {
		if strings.Contains(string(info), secret) {
			t.Errorf("info holds a secret: %s", info)
		}
	}
	// Whatever becomes of the derived files, the next acquire repairs it.
	for _, damage := range []func(){
		func() { os.Remove(filepath.Join(p.ContentDir(), "last")) },
		func() {
			os.Remove(filepath.Join(p.ContentDir(), "last"))
			os.Symlink("000001", filepath.Join(p.ContentDir(), "last"))
		},
		func() { os.RemoveAll(filepath.Join(p.ContentDir(), "keys")) },
		func() { os.Remove(filepath.Join(p.ContentDir(), "cfg.tgz.enc")) },
		func() { os.RemoveAll(filepath.Join(p.ContentDir(), "000002")) },
		func() { os.WriteFile(filepath.Join(p.LockDir(), "keys", "keyroot"), []byte("x"), 0o600) },
		func() { os.Remove(filepath.Join(p.LockDir(), "lockholder")) },
		func() { os.WriteFile(filepath.Join(p.LockDir(), ".tmp-1"), nil, 0o600) },
		func() { os.Mkdir(filepath.Join(p.ContentDir(), ".tmp-1"), 0o700) },
	} {
		damage()
		if _, err := p.Acquire("alice", "h", "id"); err != nil {
			t.Fatal(err)
		}
		if ps := storetest.WantSound(t, s); len(ps) != 0 {
			t.Errorf("not repaired: %v", ps)
		}
		if got, _ := os.ReadFile(filepath.Join(p.LockDir(), "keys", "keyroot")); !strings.Contains(string(got), keyroot.String()) {
			t.Errorf("keys/keyroot: got %q", got)
		}
	}
}

func TestRollback(t *testing.T) {
	s := storetest.New(t)
	p := storetest.NewParcel(t, s)
	storetest.Commit(t, p, storetest.Change{1: storetest.ChunkOf("two")})
	storetest.Commit(t, p, storetest.Change{1: storetest.ChunkOf("three")})
	if _, err := p.Rollback(ctx, "x", 2); !errors.Is(err, parcel.ErrNotHolder) {
		t.Errorf("without lock: got %v", err)
	}
	l, err := p.Acquire("alice", "h", "id")
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range []int{-1, 4} {
		if _, err := p.Rollback(ctx, l.Nonce, v); !errors.Is(err, parcel.ErrNoVersion) {
			t.Errorf("to %d: got %v", v, err)
		}
	}
	before, _ := storetest.Check(t, s, check.Options{})
	for range 2 { // the second finds it done
		if v, err := p.Rollback(ctx, l.Nonce, 2); v != 4 || err != nil {
			t.Fatalf("got %d, %v, want 4", v, err)
		}
	}
	if v, err := p.Rollback(ctx, l.Nonce, 4); v != 4 || err != nil {
		t.Errorf("to the head: got %d, %v", v, err)
	}
	storetest.WantChunk(t, p, 3, 1, "three")
	storetest.WantChunk(t, p, 4, 1, "two")
	vs, _ := p.Versions(1)
	if got := vs[0]; got.Rollback != 2 || got.Parent != 3 || got.Objects != 0 || got.Comment != "rollback to version 2" {
		t.Errorf("version 4: got %+v", got)
	}
	// On from there.
	keyroot, _ := storetest.StageVersion(t, p, storetest.Change{2: storetest.ChunkOf("five")}, "")
	if v, err := p.Commit(ctx, store.CommitRequest{Nonce: l.Nonce, Parent: 4, Keyroot: keyroot, ID: "five"}); v != 5 || err != nil {
		t.Fatalf("commit: got %d, %v", v, err)
	}
	storetest.WantChunk(t, p, 5, 1, "two")
	storetest.WantChunk(t, p, 5, 2, "five")
	p.Release(l.Nonce, false)
	if after := storetest.WantSound(t, s); len(after) != len(before) {
		t.Errorf("notes: got %v, want %v", after, before)
	}
}

// Damage to the parent must not keep its holder from saving what she has, as
// long as that is whole.
func TestCommitOnDamagedParent(t *testing.T) {
	s := storetest.New(t)
	p := storetest.NewParcel(t, s)
	storetest.Commit(t, p, storetest.Change{1: storetest.ChunkOf("a"), 300: storetest.ChunkOf("b")})
	l, _ := p.Acquire("alice", "h", "id")
	// The whole disk is made again, as by a client that has it all.
	keyroot, _ := storetest.StageVersion(t, p, storetest.Change{1: storetest.ChunkOf("A"), 300: storetest.ChunkOf("B")}, "")
	cfg, _ := p.Config()
	root, _ := p.Root(ctx, 0)
	im, _ := root.Image(keyring.Disk)
	var blocks []seal.Tag
	keyring.Walk(ctx, cfg.Sealer(), p, im, func(level int, _ int64, ref seal.Ref) error {
		if level == 1 {
			blocks = append(blocks, ref.Tag)
		}
		return nil
	})
	os.Remove(filepath.Join(p.HdkDir(), tree.ObjectName(blocks[0])))
	if v, err := p.Commit(ctx, store.CommitRequest{Nonce: l.Nonce, Parent: 2, Keyroot: keyroot, ID: "c"}); v != 3 || err != nil {
		t.Fatalf("got %d, %v, want 3", v, err)
	}
	storetest.WantChunk(t, p, 3, 1, "A")
	_, sum := storetest.Check(t, s, check.Options{Version: 3, User: "alice", Parcel: "winxp"})
	if sum.Errors != 0 {
		t.Errorf("version 3 is not sound")
	}
	if _, sum := storetest.Check(t, s, check.Options{}); sum.Errors == 0 {
		t.Errorf("version 2 is sound?")
	}
}

// After a failed sync nothing staged is believed, whatever its hash says: the
// kernel may hold pages for clean that never reached the disk.
func TestCommitSyncFails(t *testing.T) {
	s := storetest.New(t)
	p := storetest.NewParcel(t, s)
	r := storetest.Holding(t, p, storetest.Change{1: storetest.ChunkOf("one")})
	real := tree.Syncfs
	defer func() { tree.Syncfs = real }()
	for fail := range 2 {
		n := 0
		tree.Syncfs = func(dir string) error {
			if n++; n == fail+1 {
				return syscall.EIO
			}
			return real(dir)
		}
		if v, err := p.Commit(ctx, r); v != 0 || !errors.Is(err, syscall.EIO) {
			t.Errorf("sync %d fails: got %d, %v", fail, v, err)
		}
		if got := storetest.Head(t, p); got != 1 {
			t.Errorf("sync %d fails: head is %d", fail, got)
		}
		if entries, _ := os.ReadDir(p.StagingDir()); len(entries) != 0 {
			t.Errorf("sync %d fails: %d objects are still staged", fail, len(entries))
		}
		if fail == 0 {
			if _, err := p.Commit(ctx, r); !errors.Is(err, parcel.ErrNoObject) {
				t.Errorf("sync %d failed: commit again: got %v", fail, err)
			}
		}
		storetest.StageVersion(t, p, storetest.Change{1: storetest.ChunkOf("one")}, "")
	}
	tree.Syncfs = real
	keyroot, _ := storetest.StageVersion(t, p, storetest.Change{1: storetest.ChunkOf("one")}, "")
	r.Keyroot, r.ID = keyroot, parcel.NewID()
	if v, err := p.Commit(ctx, r); v != 2 || err != nil {
		t.Errorf("got %d, %v", v, err)
	}
	p.Release(r.Nonce, false)
	storetest.WantSound(t, s)
}

func TestStage(t *testing.T) {
	s := storetest.New(t)
	p := storetest.NewParcel(t, s)
	ref, sealed, err := seal.Sealer{Suite: seal.AES256SHA256, Codec: seal.None}.Seal(storetest.Random(100_000, 7))
	if err != nil {
		t.Fatal(err)
	}
	n := int64(len(sealed))
	for name, c := range map[string]struct {
		parts [][2]int64
		want  error
	}{
		"whole":        {[][2]int64{{0, n}}, nil},
		"in order":     {[][2]int64{{0, 1}, {1, 4096}, {4096, n}}, nil},
		"backwards":    {[][2]int64{{4096, n}, {1, 4096}, {0, 1}}, nil},
		"twice":        {[][2]int64{{0, n}, {0, n}}, nil},
		"nothing":      {nil, parcel.ErrDamaged},
		"short":        {[][2]int64{{0, n - 1}}, parcel.ErrDamaged},
		"hole":         {[][2]int64{{0, 10}, {11, n}}, parcel.ErrDamaged},
		"wrong offset": {[][2]int64{{1, n}}, parcel.ErrDamaged},
	} {
		w, err := p.Stage(ref.Tag)
		if err != nil {
			t.Fatal(err)
		}
		for _, part := range c.parts {
			if _, err := w.WriteAt(sealed[part[0]:part[1]], part[0]); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
		err = w.Close()
		if !errors.Is(err, c.want) || (err == nil) != (c.want == nil) {
			t.Errorf("%s: got %v, want %v", name, err, c.want)
		}
		if has, err := p.Has(ref.Tag); has != (c.want == nil) || err != nil {
			t.Errorf("%s: has: got %v, %v", name, has, err)
		}
		if err := w.Close(); !errors.Is(err, os.ErrClosed) {
			t.Errorf("%s: second close: got %v", name, err)
		}
		w.Abort()
		p.ClearStaging()
	}
	// One byte more than the object: the name does not match.
	w, _ := p.Stage(ref.Tag)
	w.WriteAt(append(sealed, 0), 0)
	if err := w.Close(); !errors.Is(err, parcel.ErrDamaged) {
		t.Errorf("long: got %v", err)
	}
	w, _ = p.Stage(ref.Tag)
	if _, err := w.WriteAt([]byte{0}, tree.MaxObject); !errors.Is(err, parcel.ErrUsage) {
		t.Errorf("far beyond: got %v", err)
	}
	w.Abort()
	if _, err := w.WriteAt([]byte{0}, 0); !errors.Is(err, os.ErrClosed) {
		t.Errorf("write after abort: got %v", err)
	}
	for _, tag := range []seal.Tag{"", "x", seal.Tag(storetest.Random(31, 1)), "../../../../../../../../etc/passwd"} {
		if _, err := p.Stage(tag); !errors.Is(err, parcel.ErrUsage) {
			t.Errorf("stage %q: got %v", tag, err)
		}
		if _, err := p.OpenObject(tag); !errors.Is(err, parcel.ErrUsage) {
			t.Errorf("open %q: got %v", tag, err)
		}
	}
	if entries, _ := os.ReadDir(p.StagingDir()); len(entries) != 0 {
		t.Errorf("staging: %d files are left", len(entries))
	}
}
