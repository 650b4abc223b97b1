package gc_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"pgregory.net/rapid"

	"isr/store"
	"isr/store/check"
	"isr/store/du"
	"isr/store/gc"
	"isr/store/keep"
	"isr/store/keyring"
	"isr/store/parcel"
	"isr/store/prune"
	"isr/store/seal"
	"isr/store/storetest"
	"isr/store/tree"
)

var ctx = context.Background()

func TestGC(t *testing.T) {
	s := storetest.New(t)
	p := storetest.NewParcel(t, s)
	storetest.Commit(t, p, storetest.Change{0: storetest.ChunkOf("two"), 300: storetest.ChunkOf("shared")})
	storetest.Commit(t, p, storetest.Change{0: storetest.ChunkOf("three")})
	if _, err := s.Copy(ctx, "alice", "winxp", "bob", "his"); err != nil {
		t.Fatal(err)
	}
	his, _ := s.Parcel("bob", "his")
	before := storetest.ObjectsIn(t, p)
	if got := storetest.Collect(t, s, gc.Options{}); got["alice/winxp"].Objects != 0 || len(storetest.ObjectsIn(t, p)) != len(before) {
		t.Errorf("nothing to collect: got %+v", got)
	}
	// As by hand: the directory, then the record.
	for _, v := range []int{1, 2} {
		os.RemoveAll(p.VersionDir(v))
		os.Remove(p.VersionFile(v))
	}
	dry := storetest.Collect(t, s, gc.Options{DryRun: true})
	if len(storetest.ObjectsIn(t, p)) != len(before) {
		t.Error("a dry run removed something")
	}
	got := storetest.Collect(t, s, gc.Options{User: "alice", Parcel: "winxp"})
	if c := got["alice/winxp"]; c.Objects == 0 || c.Freed == 0 || c != dry["alice/winxp"] || len(got) != 1 {
		t.Errorf("got %+v, dry run %+v", got, dry)
	}
	if !slices.Equal(storetest.ObjectsIn(t, p), storetest.Reachable(t, p)) {
		t.Errorf("got %d objects, want %d", len(storetest.ObjectsIn(t, p)), len(storetest.Reachable(t, p)))
	}
	storetest.WantChunk(t, p, 3, 0, "three")
	storetest.WantChunk(t, p, 3, 300, "shared")
	storetest.WantChunk(t, his, 1, 300, "shared")
	for _, problem := range storetest.WantSound(t, s) {
		t.Errorf("left: %s", problem)
	}
	// An object that another parcel has is no room made.
	if err := s.DelParcel("bob", "his", false); err != nil {
		t.Fatal(err)
	}
	for _, o := range []gc.Options{{User: "nobody"}, {User: "alice", Parcel: "none"}, {User: "../x"}} {
		if err := gc.Run(ctx, s, o, func(gc.Collected) {}); err == nil {
			t.Errorf("%+v: no error", o)
		}
	}
}

// Who was told that the parcel has an object may refer to it, whatever was
// collected since.
func TestGCOfHeldParcel(t *testing.T) {
	s := storetest.New(t)
	p := storetest.NewParcel(t, s)
	storetest.Commit(t, p, storetest.Change{5: storetest.ChunkOf("once")})
	storetest.Commit(t, p, storetest.Change{5: storetest.ChunkOf("")})
	os.RemoveAll(p.VersionDir(2))
	os.Remove(p.VersionFile(2))
	l, err := p.Acquire("alice", "h", "id")
	if err != nil {
		t.Fatal(err)
	}
	cfg, _ := p.Config()
	ref, sealedOnce, err := cfg.Sealer().Seal(storetest.ChunkOf("once"))
	if err != nil {
		t.Fatal(err)
	}
	if has, err := p.Has(ref.Tag); !has || err != nil {
		t.Fatalf("has: %v, %v", has, err)
	}
	if c := storetest.Collect(t, s, gc.Options{})["alice/winxp"]; c.Objects == 0 || c.Freed == 0 {
		t.Errorf("got %+v", c)
	}
	if !slices.Equal(storetest.ObjectsIn(t, p), storetest.Reachable(t, p)) {
		t.Error("hdk has what no version needs")
	}
	// The version of it, without putting the chunk again: it must be put.
	root, err := p.Root(ctx, 0)
	if err != nil {
		t.Fatal(err)
	}
	im, _ := root.Image(keyring.Disk)
	tree := keyring.NewTree(cfg.Sealer(), im, p)
	tree.Set(5, ref)
	if im, err = tree.Flush(ctx, &storetest.Stager{Parcel: p}); err != nil {
		t.Fatal(err)
	}
	root = root.Clone()
	root.SetImage(im)
	keyroot, sealed, err := keyring.SealRoot(cfg.Sealer(), root)
	if err != nil {
		t.Fatal(err)
	}
	if err := storetest.Stage(p, keyroot.Tag, sealed); err != nil {
		t.Fatal(err)
	}
	req := store.CommitRequest{Nonce: l.Nonce, Parent: 3, Keyroot: keyroot, ID: "id"}
	if v, err := p.Commit(ctx, req); !errors.Is(err, parcel.ErrNoObject) {
		t.Fatalf("commit without an object that was collected: %d, %v", v, err)
	}
	if err := storetest.Stage(p, ref.Tag, sealedOnce); err != nil {
		t.Fatal(err)
	}
	v, err := p.Commit(ctx, req)
	if v != 4 || err != nil {
		t.Fatalf("commit: %d, %v", v, err)
	}
	storetest.WantChunk(t, p, 4, 5, "once")
	if _, err := p.Release(l.Nonce, false); err != nil {
		t.Fatal(err)
	}
	// What waits of a parcel that was put without a lock goes too.
	if err := storetest.Stage(p, ref.Tag, []byte("x")); err == nil {
		t.Error("a damaged object was staged")
	}
	os.WriteFile(filepath.Join(p.StagingDir(), ".tmp-x"), nil, 0o600)
	storetest.Collect(t, s, gc.Options{})
	if left, _ := os.ReadDir(p.StagingDir()); len(left) > 0 {
		t.Errorf("staging of a free parcel: %v", left)
	}
	storetest.WantSound(t, s)
}

// A parcel that is not whole is left alone, the others are not.
func TestGCOfDamage(t *testing.T) {
	s := storetest.New(t)
	p := storetest.NewParcel(t, s)
	storetest.Commit(t, p, storetest.Change{5: storetest.ChunkOf("old"), 700: storetest.ChunkOf("kept")})
	storetest.Commit(t, p, storetest.Change{5: storetest.ChunkOf("new")})
	gold, err := s.Create(ctx, "bob", "other", store.CreateOptions{DiskSize: 600 * storetest.Chunk, ChunkSize: storetest.Chunk})
	if err != nil {
		t.Fatal(err)
	}
	storetest.Commit(t, gold, storetest.Change{1: storetest.ChunkOf("x")})
	storetest.Commit(t, gold, storetest.Change{1: storetest.ChunkOf("y")})
	garbage := func(p *store.Parcel) {
		os.RemoveAll(p.VersionDir(2))
		os.Remove(p.VersionFile(2))
	}
	spoil := map[string]func() (restore func()){
		"block": func() func() {
			root, _ := p.Root(ctx, 3)
			im, _ := root.Image(keyring.Disk)
			return moved(t, filepath.Join(p.HdkDir(), tree.ObjectName(im.Ref.Tag)))
		},
		"root": func() func() {
			k, _ := p.Keyroot(1)
			return moved(t, filepath.Join(p.HdkDir(), tree.ObjectName(k.Tag)))
		},
		"keyroot": func() func() { return moved(t, p.VersionFile(1)) },
		"head":    func() func() { return moved(t, p.VersionFile(3)) },
		"config":  func() func() { return moved(t, filepath.Join(p.LockDir(), tree.ConfigFile)) },
		"content": func() func() { return moved(t, p.HdkDir()) },
	}
	garbage(p)
	for name, f := range spoil {
		want := storetest.ObjectsIn(t, p)
		restore := f()
		for _, o := range []gc.Options{{DryRun: true}, {}} {
			c := storetest.Collect(t, s, o)["alice/winxp"]
			if kind := parcel.KindOf(c.Error); c.Error == nil || c.Objects > 0 || kind != parcel.Damaged && name != "content" {
				t.Errorf("%s: got %+v", name, c)
			}
		}
		restore()
		if !slices.Equal(storetest.ObjectsIn(t, p), want) {
			t.Errorf("%s: objects were removed", name)
		}
	}
	garbage(gold)
	if got := storetest.Collect(t, s, gc.Options{}); got["bob/other"].Objects == 0 || got["bob/other"].Error != nil || got["alice/winxp"].Objects == 0 {
		t.Errorf("in the end: got %+v", got)
	}
	storetest.WantSound(t, s)
}

// moved hides a file until restore.
func moved(t testing.TB, path string) (restore func()) {
	t.Helper()
	aside := filepath.Join(storetest.TempDir(t), "aside")
	if err := os.Rename(path, aside); err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := os.Rename(aside, path); err != nil {
			t.Fatal(err)
		}
	}
}

// Links that were planted lead nowhere.
func TestGCFollowsNoLink(t *testing.T) {
	s := storetest.New(t)
	p := storetest.NewParcel(t, s)
	storetest.Commit(t, p, storetest.Change{5: storetest.ChunkOf("alice's")})
	q, err := s.Create(ctx, "bob", "his", store.CreateOptions{DiskSize: 600 * storetest.Chunk, ChunkSize: storetest.Chunk})
	if err != nil {
		t.Fatal(err)
	}
	storetest.Commit(t, q, storetest.Change{1: storetest.ChunkOf("bob's")})
	his := storetest.ObjectsIn(t, q)
	ab := his[0][:2]
	outside := filepath.Join(storetest.TempDir(t), "outside")
	if err := os.MkdirAll(filepath.Join(outside, ab), 0o700); err != nil {
		t.Fatal(err)
	}
	victim := filepath.Join(outside, ab, ab+strings.Repeat("0", 62))
	os.WriteFile(victim, []byte("precious"), 0o600)
	for name, plant := range map[string]func() (restore func()){
		"hdk/xx": func() func() {
			link := filepath.Join(p.HdkDir(), ab)
			restore := func() {}
			if _, err := os.Lstat(link); err == nil {
				restore = moved(t, link)
			}
			os.Symlink(filepath.Join(q.HdkDir(), ab), link)
			return func() { os.Remove(link); restore() }
		},
		"hdk": func() func() {
			restore := moved(t, p.HdkDir())
			os.Symlink(q.HdkDir(), p.HdkDir())
			return func() { os.Remove(p.HdkDir()); restore() }
		},
		"hdk, outside": func() func() {
			restore := moved(t, p.HdkDir())
			os.Symlink(outside, p.HdkDir())
			return func() { os.Remove(p.HdkDir()); restore() }
		},
		"content": func() func() {
			restore := moved(t, p.ContentDir())
			os.Symlink(q.ContentDir(), p.ContentDir())
			return func() { os.Remove(p.ContentDir()); restore() }
		},
		"all content": func() func() {
			hers, his := filepath.Dir(p.ContentDir()), filepath.Dir(q.ContentDir())
			restore := moved(t, hers)
			os.Symlink(his, hers)
			return func() { os.Remove(hers); restore() }
		},
		"object": func() func() {
			link := filepath.Join(p.HdkDir(), ab, ab+strings.Repeat("1", 62))
			os.Mkdir(filepath.Dir(link), 0o700)
			os.Symlink(victim, link)
			return func() { os.Remove(link) }
		},
	} {
		restore := plant()
		storetest.Collect(t, s, gc.Options{DryRun: true})
		storetest.Collect(t, s, gc.Options{})
		du.Run(ctx, s, du.Options{}, func(d du.Disk) {
			if d.User == "alice" && (name == "content" || name == "hdk") && d.Objects > 0 {
				t.Errorf("%s: du counted %d objects", name, d.Objects)
			}
		}, func(string, du.Sum) {})
		restore()
		if got := storetest.ObjectsIn(t, q); !slices.Equal(got, his) {
			t.Errorf("%s: bob's objects: got %d, want %d", name, len(got), len(his))
		}
		if b, err := os.ReadFile(victim); string(b) != "precious" {
			t.Fatalf("%s: outside: %v", name, err)
		}
		storetest.WantChunk(t, p, 2, 5, "alice's")
	}
	storetest.WantSound(t, s)
}

// smallBatches makes a collection give way to others after every few objects.
func smallBatches(t *testing.T) {
	n := *gc.SweepBatch
	*gc.SweepBatch = 2
	t.Cleanup(func() { *gc.SweepBatch = n })
}

// Commits, prunes, copies and collections in any order: what is left is what
// is reachable, and every version has what was committed.
func TestGCModel(t *testing.T) {
	s := storetest.New(t)
	storetest.Fewer(t, 40)
	smallBatches(t)
	round := 0
	rapid.Check(t, func(r *rapid.T) {
		round++
		name := fmt.Sprintf("p%d", round)
		p, err := s.Create(ctx, "alice", name, store.CreateOptions{DiskSize: 600 * storetest.Chunk, ChunkSize: storetest.Chunk})
		if err != nil {
			r.Fatal(err)
		}
		defer s.DelParcel("alice", name, true)
		disks := map[int]map[int64]string{1: {}}
		head := 1
		held := ""
		release := func() {
			if _, err := p.Release(held, false); err != nil {
				r.Fatal(err)
			}
			held = ""
		}
		r.Repeat(map[string]func(*rapid.T){
			"commit": func(r *rapid.T) {
				if held == "" {
					l, err := p.Acquire("alice", "h", "")
					if err != nil {
						r.Fatal(err)
					}
					held = l.Nonce
				}
				next, c := maps.Clone(disks[head]), storetest.Change{}
				for range rapid.IntRange(1, 4).Draw(r, "chunks") {
					n := rapid.SampledFrom([]int64{0, 1, 255, 256, 599}).Draw(r, "chunk")
					v := rapid.StringMatching("[a-c]{0,2}").Draw(r, "content")
					c[n], next[n] = storetest.ChunkOf(v), v
				}
				keyroot, _ := storetest.StageVersion(t, p, c, rapid.SampledFrom([]string{"", "cfg"}).Draw(r, "cfg"))
				v, err := p.Commit(ctx, store.CommitRequest{Nonce: held, Parent: head, Keyroot: keyroot, ID: parcel.NewID()})
				if err != nil {
					r.Fatal(err)
				}
				head, disks[v] = v, next
			},
			"release": func(r *rapid.T) {
				if held != "" {
					release()
				}
			},
			"prune": func(r *rapid.T) {
				plan, err := prune.Choose(p, keep.Rules{Last: rapid.IntRange(1, 4).Draw(r, "keep")})
				if err != nil {
					r.Fatal(err)
				}
				want := prune.Prunable(plan)
				gone, _, err := prune.Run(ctx, p, want)
				if err != nil || !slices.Equal(gone, want) {
					r.Fatalf("prune: got %v, %v, want %v", gone, err, want)
				}
				for _, v := range gone {
					delete(disks, v)
				}
			},
			"staged": func(r *rapid.T) {
				if held != "" {
					storetest.StageVersion(t, p, storetest.Change{3: storetest.ChunkOf("never committed")}, "")
				}
			},
			"gc": func(r *rapid.T) {
				c := storetest.Collect(t, s, gc.Options{User: "alice", Parcel: name})["alice/"+name]
				if c.Error != nil {
					r.Fatal(c.Error)
				}
				if got, want := storetest.ObjectsIn(t, p), storetest.Reachable(t, p); !slices.Equal(got, want) {
					r.Fatalf("objects: got %d, want %d", len(got), len(want))
				}
				if again := storetest.Collect(t, s, gc.Options{User: "alice", Parcel: name})["alice/"+name]; again.Objects > 0 {
					r.Fatalf("again: got %+v", again)
				}
			},
			"": func(r *rapid.T) {
				infos, err := p.Versions(0)
				if err != nil || len(infos) != len(disks) {
					r.Fatalf("versions: got %v, %v, want %v", infos, err, disks)
				}
			},
		})
		for v, disk := range disks {
			for n, want := range disk {
				storetest.WantChunk(t, p, v, n, want)
			}
		}
		if held != "" {
			release()
		}
		sum, err := check.Run(ctx, s, check.Options{User: "alice", Parcel: name, Content: true}, func(p check.Problem) {
			if p.Severity == check.Bad {
				r.Errorf("%s", p)
			}
		})
		if err != nil || sum.Errors > 0 {
			r.Fatalf("check: %v", err)
		}
	})
}

// While users commit, roll back, copy and read, and administrators prune,
// processes collect: nothing that any version needs is lost.
func TestGCRace(t *testing.T) {
	s := storetest.New(t)
	smallBatches(t)
	const rounds = 9
	var users, admins sync.WaitGroup
	stop := make(chan struct{})
	var parcels []*store.Parcel
	disks := make([]map[int]map[int64]string, 3)
	for i := range disks {
		p, err := s.Create(ctx, "alice", fmt.Sprint("p", i), store.CreateOptions{DiskSize: 600 * storetest.Chunk, ChunkSize: storetest.Chunk})
		if err != nil {
			t.Fatal(err)
		}
		parcels = append(parcels, p)
	}
	for i, p := range parcels {
		users.Go(func() {
			disk := map[int64]string{}
			all := map[int]map[int64]string{1: {}}
			disks[i] = all
			for n := range rounds {
				l, err := p.Acquire("alice", "h", "")
				if err != nil {
					t.Error(err)
					return
				}
				c := storetest.Change{}
				for k := range int64(4) {
					// The same contents come and go, so that garbage comes alive again.
					at, v := (k*97+int64(n*31))%600, fmt.Sprint("content", (n+int(k))%3)
					c[at], disk[at] = storetest.ChunkOf(v), v
				}
				keyroot, err := lackingOnly(p, c)
				if err != nil {
					t.Error(err)
					return
				}
				v, err := p.Commit(ctx, store.CommitRequest{Nonce: l.Nonce, Parent: l.Version, Keyroot: keyroot, ID: fmt.Sprint("id", n)})
				if err != nil {
					t.Error(err)
					return
				}
				all[v] = maps.Clone(disk)
				for at, want := range disk {
					storetest.WantChunk(t, p, v, at, want)
				}
				if n%3 == 2 {
					if _, err := s.Copy(ctx, "alice", p.Name(), "bob", fmt.Sprintf("copy%d-%d", i, n)); err != nil {
						t.Error(err)
					}
				}
				if _, err := p.Release(l.Nonce, false); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for range 2 {
		admins.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				if err := gc.Run(ctx, s, gc.Options{}, func(c gc.Collected) {
					if c.Error != nil {
						t.Errorf("gc: %v", c.Error)
					}
				}); err != nil {
					t.Error(err)
				}
				if plan, err := prune.Choose(parcels[n%len(parcels)], keep.Rules{Last: 2}); err != nil {
					t.Error(err)
				} else if _, _, err := prune.Run(ctx, parcels[n%len(parcels)], prune.Prunable(plan)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	// Another process, too, that is killed now and then.
	admins.Go(func() {
		for n := 0; ; n++ {
			select {
			case <-stop:
				return
			default:
			}
			c := storetest.Crash{Op: "gc", Root: s.Root(), Step: n % 7}
			cmd := exec.Command(os.Args[0])
			cmd.Env = append(os.Environ(), c.Env(t))
			if out, err := cmd.CombinedOutput(); err != nil && !strings.Contains(err.Error(), "killed") {
				t.Errorf("gc of another process: %v: %s", err, out)
			}
		}
	})
	users.Wait()
	close(stop)
	admins.Wait()
	for i, p := range parcels {
		infos, err := p.Versions(0)
		if err != nil || len(infos) < 2 {
			t.Fatalf("versions: %v, %v", infos, err)
		}
		for _, v := range infos {
			for n, want := range disks[i][v.Version] {
				storetest.WantChunk(t, p, v.Version, n, want)
			}
		}
	}
	storetest.Collect(t, s, gc.Options{})
	storetest.WantSound(t, s)
	for _, p := range parcels {
		if !slices.Equal(storetest.ObjectsIn(t, p), storetest.Reachable(t, p)) {
			t.Errorf("%s: hdk has what no version needs", p.Name())
		}
	}
}

// lackingOnly is StageVersion as a client does it: asks first what is lacking
// and puts only that.
func lackingOnly(p *store.Parcel, c storetest.Change) (seal.Ref, error) {
	cfg, err := p.Config()
	if err != nil {
		return seal.Ref{}, err
	}
	root, err := p.Root(ctx, 0)
	if err != nil {
		return seal.Ref{}, err
	}
	made := &kept{objects: make(map[seal.Tag][]byte)}
	s := cfg.Sealer()
	im, _ := root.Image(keyring.Disk)
	tree := keyring.NewTree(s, im, p)
	for n, plain := range c {
		ref, sealed, err := s.Seal(plain)
		if err != nil {
			return ref, err
		}
		made.Put(ctx, ref.Tag, sealed)
		tree.Set(n, ref)
	}
	if im, err = tree.Flush(ctx, made); err != nil {
		return seal.Ref{}, err
	}
	root = root.Clone()
	root.SetImage(im)
	keyroot, sealed, err := keyring.SealRoot(s, root)
	if err != nil {
		return keyroot, err
	}
	made.Put(ctx, keyroot.Tag, sealed)
	var lacking []seal.Tag
	for tag := range made.objects {
		has, err := p.Has(tag)
		if err != nil {
			return keyroot, err
		}
		if !has {
			lacking = append(lacking, tag)
		}
	}
	for _, tag := range lacking {
		if err := storetest.Stage(p, tag, made.objects[tag]); err != nil {
			return keyroot, err
		}
	}
	return keyroot, nil
}

// kept is objects in memory.
type kept struct {
	mu      sync.Mutex
	objects map[seal.Tag][]byte
}

func (k *kept) Put(_ context.Context, tag seal.Tag, sealed []byte) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.objects[tag] = sealed
	return nil
}

// What was half made or removed goes, but for an import that can be gone on
// with; what others are at work on stays.
func TestGCOfLeftovers(t *testing.T) {
	s := storetest.New(t)
	p := storetest.NewParcel(t, s)
	u := s.UserAt("alice")
	for name, mark := range map[string]string{"halfmade": "", "imported": "PART:=1\n"} {
		dir := u.At(name).LockDir()
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		os.WriteFile(filepath.Join(dir, tree.UnfinishedFile), []byte(mark), 0o600)
	}
	for _, dir := range []string{u.LockRoot, filepath.Join(s.Root(), tree.UsersDir), p.LockDir(), p.ContentDir()} {
		os.WriteFile(filepath.Join(dir, ".tmp-left"), nil, 0o600)
	}
	busy := u.At("busy")
	os.Mkdir(busy.LockDir(), 0o700)
	os.WriteFile(filepath.Join(busy.LockDir(), tree.UnfinishedFile), nil, 0o600)
	unlock, err := tree.Lock(filepath.Join(busy.LockDir(), tree.FlockFile), false)
	if err != nil {
		t.Fatal(err)
	}
	os.Mkdir(filepath.Join(p.StagingDir(), ".tmp-repair"), 0o700)
	os.WriteFile(filepath.Join(p.StagingDir(), ".tmp-upload"), nil, 0o600)
	if got := storetest.Collect(t, s, gc.Options{}); len(got) != 1 || got["alice/winxp"].Error != nil {
		t.Errorf("got %+v", got)
	}
	unlock()
	for path, want := range map[string]bool{u.At("halfmade").LockDir(): false, u.At("imported").LockDir(): true, busy.LockDir(): true,
		filepath.Join(u.LockRoot, ".tmp-left"): false, filepath.Join(s.Root(), tree.UsersDir, ".tmp-left"): false,
		filepath.Join(p.LockDir(), ".tmp-left"): false, filepath.Join(p.ContentDir(), ".tmp-left"): false,
		filepath.Join(p.StagingDir(), ".tmp-repair"): true, filepath.Join(p.StagingDir(), ".tmp-upload"): false} {
		if _, err := os.Lstat(path); (err == nil) != want {
			t.Errorf("%s: there %v, want %v", path, err == nil, want)
		}
	}
}
