package store

import (
	"context"
	"errors"
	"flag"
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

	"isr/store/keep"
	"isr/store/keyring"
	"isr/store/parcel"
	"isr/store/seal"
	"isr/store/tree"
)

// collect is GC of all; errors of parcels are in the results.
func collect(t testing.TB, s *Store, o GCOptions) map[string]Collected {
	t.Helper()
	got := make(map[string]Collected)
	if err := s.GC(ctx, o, func(c Collected) { got[c.User+"/"+c.Parcel] = c }); err != nil {
		t.Fatalf("gc: %v", err)
	}
	return got
}

// objectsIn are the names of the files in hdk.
func objectsIn(t testing.TB, p *Parcel) []string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(p.hdk(), "??", "*"))
	if err != nil {
		t.Fatal(err)
	}
	for i := range names {
		names[i] = filepath.Base(names[i])
	}
	slices.Sort(names)
	return names
}

// reachable is what the versions of p lead to, found another way than GC does.
func reachable(t testing.TB, p *Parcel) []string {
	t.Helper()
	cfg, err := p.Config()
	if err != nil {
		t.Fatal(err)
	}
	infos, err := p.Versions(0)
	if err != nil {
		t.Fatal(err)
	}
	seen := make(map[string]bool)
	for _, v := range infos {
		keyroot, err := p.Keyroot(v.Version)
		if err != nil {
			t.Fatal(err)
		}
		root, err := p.Root(ctx, v.Version)
		if err != nil {
			t.Fatal(err)
		}
		seen[keyroot.Tag.String()] = true
		if !root.Cfg.IsNil() {
			seen[root.Cfg.Tag.String()] = true
		}
		for _, im := range root.Images {
			err := keyring.Walk(ctx, cfg.Sealer(), p, im, func(_ int, _ int64, ref seal.Ref) error {
				seen[ref.Tag.String()] = true
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	return slices.Sorted(maps.Keys(seen))
}

func TestGC(t *testing.T) {
	s := newStore(t)
	p := newParcel(t, s)
	commit(t, p, change{0: chunkOf("two"), 300: chunkOf("shared")})
	commit(t, p, change{0: chunkOf("three")})
	if _, err := s.Copy(ctx, "alice", "winxp", "bob", "his"); err != nil {
		t.Fatal(err)
	}
	his, _ := s.Parcel("bob", "his")
	before := objectsIn(t, p)
	if got := collect(t, s, GCOptions{}); got["alice/winxp"].Objects != 0 || len(objectsIn(t, p)) != len(before) {
		t.Errorf("nothing to collect: got %+v", got)
	}
	// As by hand: the directory, then the record.
	for _, v := range []int{1, 2} {
		os.RemoveAll(p.versionDir(v))
		os.Remove(p.versionFile(v))
	}
	dry := collect(t, s, GCOptions{DryRun: true})
	if len(objectsIn(t, p)) != len(before) {
		t.Error("a dry run removed something")
	}
	got := collect(t, s, GCOptions{User: "alice", Parcel: "winxp"})
	if c := got["alice/winxp"]; c.Objects == 0 || c.Freed == 0 || c != dry["alice/winxp"] || len(got) != 1 {
		t.Errorf("got %+v, dry run %+v", got, dry)
	}
	if !slices.Equal(objectsIn(t, p), reachable(t, p)) {
		t.Errorf("got %d objects, want %d", len(objectsIn(t, p)), len(reachable(t, p)))
	}
	wantChunk(t, p, 3, 0, "three")
	wantChunk(t, p, 3, 300, "shared")
	wantChunk(t, his, 1, 300, "shared")
	for _, problem := range wantSound(t, s) {
		t.Errorf("left: %s", problem)
	}
	// An object that another parcel has is no room made.
	if err := s.DelParcel("bob", "his", false); err != nil {
		t.Fatal(err)
	}
	for _, o := range []GCOptions{{User: "nobody"}, {User: "alice", Parcel: "none"}, {User: "../x"}} {
		if err := s.GC(ctx, o, func(Collected) {}); err == nil {
			t.Errorf("%+v: no error", o)
		}
	}
}

// Who was told that the parcel has an object may refer to it, whatever was
// collected since.
func TestGCOfHeldParcel(t *testing.T) {
	s := newStore(t)
	p := newParcel(t, s)
	commit(t, p, change{5: chunkOf("once")})
	commit(t, p, change{5: chunkOf("")})
	os.RemoveAll(p.versionDir(2))
	os.Remove(p.versionFile(2))
	l, err := p.Acquire("alice", "h", "id")
	if err != nil {
		t.Fatal(err)
	}
	cfg, _ := p.Config()
	ref, sealedOnce, err := cfg.Sealer().Seal(chunkOf("once"))
	if err != nil {
		t.Fatal(err)
	}
	if has, err := p.Has(ref.Tag); !has || err != nil {
		t.Fatalf("has: %v, %v", has, err)
	}
	if c := collect(t, s, GCOptions{})["alice/winxp"]; c.Objects == 0 || c.Freed == 0 {
		t.Errorf("got %+v", c)
	}
	if !slices.Equal(objectsIn(t, p), reachable(t, p)) {
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
	if im, err = tree.Flush(ctx, &stager{p: p}); err != nil {
		t.Fatal(err)
	}
	root = root.Clone()
	root.SetImage(im)
	keyroot, sealed, err := keyring.SealRoot(cfg.Sealer(), root)
	if err != nil {
		t.Fatal(err)
	}
	if err := stage(p, keyroot.Tag, sealed); err != nil {
		t.Fatal(err)
	}
	req := CommitRequest{Nonce: l.Nonce, Parent: 3, Keyroot: keyroot, ID: "id"}
	if v, err := p.Commit(ctx, req); !errors.Is(err, parcel.ErrNoObject) {
		t.Fatalf("commit without an object that was collected: %d, %v", v, err)
	}
	if err := stage(p, ref.Tag, sealedOnce); err != nil {
		t.Fatal(err)
	}
	v, err := p.Commit(ctx, req)
	if v != 4 || err != nil {
		t.Fatalf("commit: %d, %v", v, err)
	}
	wantChunk(t, p, 4, 5, "once")
	if _, err := p.Release(l.Nonce, false); err != nil {
		t.Fatal(err)
	}
	// What waits of a parcel that was put without a lock goes too.
	if err := stage(p, ref.Tag, []byte("x")); err == nil {
		t.Error("a damaged object was staged")
	}
	os.WriteFile(filepath.Join(p.staging(), ".tmp-x"), nil, 0o600)
	collect(t, s, GCOptions{})
	if left, _ := os.ReadDir(p.staging()); len(left) > 0 {
		t.Errorf("staging of a free parcel: %v", left)
	}
	wantSound(t, s)
}

// A parcel that is not whole is left alone, the others are not.
func TestGCOfDamage(t *testing.T) {
	s := newStore(t)
	p := newParcel(t, s)
	commit(t, p, change{5: chunkOf("old"), 700: chunkOf("kept")})
	commit(t, p, change{5: chunkOf("new")})
	gold, err := s.Create(ctx, "bob", "other", CreateOptions{DiskSize: 600 * testChunk, ChunkSize: testChunk})
	if err != nil {
		t.Fatal(err)
	}
	commit(t, gold, change{1: chunkOf("x")})
	commit(t, gold, change{1: chunkOf("y")})
	garbage := func(p *Parcel) {
		os.RemoveAll(p.versionDir(2))
		os.Remove(p.versionFile(2))
	}
	spoil := map[string]func() (restore func()){
		"block": func() func() {
			root, _ := p.Root(ctx, 3)
			im, _ := root.Image(keyring.Disk)
			return moved(t, filepath.Join(p.hdk(), tree.ObjectName(im.Ref.Tag)))
		},
		"root":    func() func() { k, _ := p.Keyroot(1); return moved(t, filepath.Join(p.hdk(), tree.ObjectName(k.Tag))) },
		"keyroot": func() func() { return moved(t, p.versionFile(1)) },
		"head":    func() func() { return moved(t, p.versionFile(3)) },
		"config":  func() func() { return moved(t, filepath.Join(p.lock, tree.ConfigFile)) },
		"content": func() func() { return moved(t, p.hdk()) },
	}
	garbage(p)
	for name, f := range spoil {
		want := objectsIn(t, p)
		restore := f()
		for _, o := range []GCOptions{{DryRun: true}, {}} {
			c := collect(t, s, o)["alice/winxp"]
			if kind := parcel.KindOf(c.Error); c.Error == nil || c.Objects > 0 || kind != parcel.Damaged && name != "content" {
				t.Errorf("%s: got %+v", name, c)
			}
		}
		restore()
		if !slices.Equal(objectsIn(t, p), want) {
			t.Errorf("%s: objects were removed", name)
		}
	}
	garbage(gold)
	if got := collect(t, s, GCOptions{}); got["bob/other"].Objects == 0 || got["bob/other"].Error != nil || got["alice/winxp"].Objects == 0 {
		t.Errorf("in the end: got %+v", got)
	}
	wantSound(t, s)
}

// moved hides a file until restore.
func moved(t testing.TB, path string) (restore func()) {
	t.Helper()
	aside := filepath.Join(t.TempDir(), "aside")
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
	s := newStore(t)
	p := newParcel(t, s)
	commit(t, p, change{5: chunkOf("alice's")})
	q, err := s.Create(ctx, "bob", "his", CreateOptions{DiskSize: 600 * testChunk, ChunkSize: testChunk})
	if err != nil {
		t.Fatal(err)
	}
	commit(t, q, change{1: chunkOf("bob's")})
	his := objectsIn(t, q)
	ab := his[0][:2]
	outside := filepath.Join(t.TempDir(), "outside")
	if err := os.MkdirAll(filepath.Join(outside, ab), 0o700); err != nil {
		t.Fatal(err)
	}
	victim := filepath.Join(outside, ab, ab+strings.Repeat("0", 62))
	os.WriteFile(victim, []byte("precious"), 0o600)
	for name, plant := range map[string]func() (restore func()){
		"hdk/xx": func() func() {
			link := filepath.Join(p.hdk(), ab)
			restore := func() {}
			if _, err := os.Lstat(link); err == nil {
				restore = moved(t, link)
			}
			os.Symlink(filepath.Join(q.hdk(), ab), link)
			return func() { os.Remove(link); restore() }
		},
		"hdk": func() func() {
			restore := moved(t, p.hdk())
			os.Symlink(q.hdk(), p.hdk())
			return func() { os.Remove(p.hdk()); restore() }
		},
		"hdk, outside": func() func() {
			restore := moved(t, p.hdk())
			os.Symlink(outside, p.hdk())
			return func() { os.Remove(p.hdk()); restore() }
		},
		"content": func() func() {
			restore := moved(t, p.content)
			os.Symlink(q.content, p.content)
			return func() { os.Remove(p.content); restore() }
		},
		"all content": func() func() {
			restore := moved(t, p.user.contentRoot)
			os.Symlink(q.user.contentRoot, p.user.contentRoot)
			return func() { os.Remove(p.user.contentRoot); restore() }
		},
		"object": func() func() {
			link := filepath.Join(p.hdk(), ab, ab+strings.Repeat("1", 62))
			os.Mkdir(filepath.Dir(link), 0o700)
			os.Symlink(victim, link)
			return func() { os.Remove(link) }
		},
	} {
		restore := plant()
		collect(t, s, GCOptions{DryRun: true})
		collect(t, s, GCOptions{})
		s.Disk(ctx, DiskOptions{}, func(d Disk) {
			if d.User == "alice" && (name == "content" || name == "hdk") && d.Objects > 0 {
				t.Errorf("%s: du counted %d objects", name, d.Objects)
			}
		}, func(string, DiskSum) {})
		restore()
		if got := objectsIn(t, q); !slices.Equal(got, his) {
			t.Errorf("%s: bob's objects: got %d, want %d", name, len(got), len(his))
		}
		if b, err := os.ReadFile(victim); string(b) != "precious" {
			t.Fatalf("%s: outside: %v", name, err)
		}
		wantChunk(t, p, 2, 5, "alice's")
	}
	wantSound(t, s)
}

// smallBatches makes a collection give way to others after every few objects.
func smallBatches(t *testing.T) {
	n := sweepBatch
	sweepBatch = 2
	t.Cleanup(func() { sweepBatch = n })
}

// fewer makes rapid run so many checks only, of a test whose checks are long;
// unless the command line asks for a number.
func fewer(t *testing.T, n int) {
	if f := flag.Lookup("rapid.checks"); f.Value.String() == f.DefValue {
		f.Value.Set(fmt.Sprint(n))
		t.Cleanup(func() { f.Value.Set(f.DefValue) })
	}
}

// Commits, prunes, copies and collections in any order: what is left is what
// is reachable, and every version has what was committed.
func TestGCModel(t *testing.T) {
	s := newStoreInMemory(t)
	fewer(t, 40)
	smallBatches(t)
	round := 0
	rapid.Check(t, func(r *rapid.T) {
		round++
		name := fmt.Sprintf("p%d", round)
		p, err := s.Create(ctx, "alice", name, CreateOptions{DiskSize: 600 * testChunk, ChunkSize: testChunk})
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
				next, c := maps.Clone(disks[head]), change{}
				for range rapid.IntRange(1, 4).Draw(r, "chunks") {
					n := rapid.SampledFrom([]int64{0, 1, 255, 256, 599}).Draw(r, "chunk")
					v := rapid.StringMatching("[a-c]{0,2}").Draw(r, "content")
					c[n], next[n] = chunkOf(v), v
				}
				keyroot, _ := stageVersion(t, p, c, rapid.SampledFrom([]string{"", "cfg"}).Draw(r, "cfg"))
				v, err := p.Commit(ctx, CommitRequest{Nonce: held, Parent: head, Keyroot: keyroot, ID: parcel.NewID()})
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
				plan, err := p.Plan(keep.Rules{Last: rapid.IntRange(1, 4).Draw(r, "keep")})
				if err != nil {
					r.Fatal(err)
				}
				want := Prunable(plan)
				gone, _, err := p.Prune(ctx, want)
				if err != nil || !slices.Equal(gone, want) {
					r.Fatalf("prune: got %v, %v, want %v", gone, err, want)
				}
				for _, v := range gone {
					delete(disks, v)
				}
			},
			"staged": func(r *rapid.T) {
				if held != "" {
					stageVersion(t, p, change{3: chunkOf("never committed")}, "")
				}
			},
			"gc": func(r *rapid.T) {
				c := collect(t, s, GCOptions{User: "alice", Parcel: name})["alice/"+name]
				if c.Error != nil {
					r.Fatal(c.Error)
				}
				if got, want := objectsIn(t, p), reachable(t, p); !slices.Equal(got, want) {
					r.Fatalf("objects: got %d, want %d", len(got), len(want))
				}
				if again := collect(t, s, GCOptions{User: "alice", Parcel: name})["alice/"+name]; again.Objects > 0 {
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
				wantChunk(t, p, v, n, want)
			}
		}
		if held != "" {
			release()
		}
		sum, err := s.Check(ctx, CheckOptions{User: "alice", Parcel: name, Content: true}, func(p Problem) {
			if p.Severity == Bad {
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
	s := newStoreInMemory(t)
	smallBatches(t)
	const rounds = 9
	var users, admins sync.WaitGroup
	stop := make(chan struct{})
	var parcels []*Parcel
	disks := make([]map[int]map[int64]string, 3)
	for i := range disks {
		p, err := s.Create(ctx, "alice", fmt.Sprint("p", i), CreateOptions{DiskSize: 600 * testChunk, ChunkSize: testChunk})
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
				c := change{}
				for k := range int64(4) {
					// The same contents come and go, so that garbage comes alive again.
					at, v := (k*97+int64(n*31))%600, fmt.Sprint("content", (n+int(k))%3)
					c[at], disk[at] = chunkOf(v), v
				}
				keyroot, err := lackingOnly(p, c)
				if err != nil {
					t.Error(err)
					return
				}
				v, err := p.Commit(ctx, CommitRequest{Nonce: l.Nonce, Parent: l.Version, Keyroot: keyroot, ID: fmt.Sprint("id", n)})
				if err != nil {
					t.Error(err)
					return
				}
				all[v] = maps.Clone(disk)
				for at, want := range disk {
					wantChunk(t, p, v, at, want)
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
				if err := s.GC(ctx, GCOptions{}, func(c Collected) {
					if c.Error != nil {
						t.Errorf("gc: %v", c.Error)
					}
				}); err != nil {
					t.Error(err)
				}
				if plan, err := parcels[n%len(parcels)].Plan(keep.Rules{Last: 2}); err != nil {
					t.Error(err)
				} else if _, _, err := parcels[n%len(parcels)].Prune(ctx, Prunable(plan)); err != nil {
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
			c := crash{Op: "gc", Root: s.root, Step: n % 7}
			cmd := exec.Command(os.Args[0])
			cmd.Env = append(os.Environ(), "STORE_TEST_CRASH="+string(c.arg(t)))
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
				wantChunk(t, p, v.Version, n, want)
			}
		}
	}
	collect(t, s, GCOptions{})
	wantSound(t, s)
	for _, p := range parcels {
		if !slices.Equal(objectsIn(t, p), reachable(t, p)) {
			t.Errorf("%s: hdk has what no version needs", p.Name())
		}
	}
}

// lackingOnly is stageVersion as a client does it: asks first what is lacking
// and puts only that.
func lackingOnly(p *Parcel, c change) (seal.Ref, error) {
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
		if err := stage(p, tag, made.objects[tag]); err != nil {
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
	s := newStore(t)
	p := newParcel(t, s)
	u := s.userAt("alice")
	for name, mark := range map[string]string{"halfmade": "", "imported": "PART:=1\n"} {
		dir := u.parcel(name).lock
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		os.WriteFile(filepath.Join(dir, tree.UnfinishedFile), []byte(mark), 0o600)
	}
	for _, dir := range []string{u.lockRoot, filepath.Join(s.root, tree.UsersDir), p.lock, p.content} {
		os.WriteFile(filepath.Join(dir, ".tmp-left"), nil, 0o600)
	}
	busy := u.parcel("busy")
	os.Mkdir(busy.lock, 0o700)
	os.WriteFile(filepath.Join(busy.lock, tree.UnfinishedFile), nil, 0o600)
	unlock, err := tree.Lock(filepath.Join(busy.lock, tree.FlockFile), false)
	if err != nil {
		t.Fatal(err)
	}
	os.Mkdir(filepath.Join(p.staging(), ".tmp-repair"), 0o700)
	os.WriteFile(filepath.Join(p.staging(), ".tmp-upload"), nil, 0o600)
	if got := collect(t, s, GCOptions{}); len(got) != 1 || got["alice/winxp"].Error != nil {
		t.Errorf("got %+v", got)
	}
	unlock()
	for path, want := range map[string]bool{u.parcel("halfmade").lock: false, u.parcel("imported").lock: true, busy.lock: true,
		filepath.Join(u.lockRoot, ".tmp-left"): false, filepath.Join(s.root, tree.UsersDir, ".tmp-left"): false,
		filepath.Join(p.lock, ".tmp-left"): false, filepath.Join(p.content, ".tmp-left"): false,
		filepath.Join(p.staging(), ".tmp-repair"): true, filepath.Join(p.staging(), ".tmp-upload"): false} {
		if _, err := os.Lstat(path); (err == nil) != want {
			t.Errorf("%s: there %v, want %v", path, err == nil, want)
		}
	}
}
