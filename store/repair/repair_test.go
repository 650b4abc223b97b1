package repair_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"pgregory.net/rapid"

	"isr/store"
	"isr/store/check"
	"isr/store/parcel"
	"isr/store/repair"
	"isr/store/seal"
	"isr/store/storetest"
	"isr/store/tree"
)

var ctx = context.Background()

// treeOf is all there is below dir: content of files, targets of links. Flocks
// and what staging areas are for do not count.
func treeOf(t testing.TB, dir string) map[string]string {
	t.Helper()
	m := make(map[string]string)
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.Name() == tree.FlockFile {
			return err
		}
		rel, _ := filepath.Rel(dir, path)
		switch {
		case d.Type()&fs.ModeSymlink != 0:
			target, _ := os.Readlink(path)
			m[rel] = "-> " + target
		case d.IsDir():
			m[rel] = "dir"
		default:
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			fi, err := d.Info()
			if err != nil {
				return err
			}
			m[rel] = fmt.Sprintf("%v %s", fi.Mode(), b)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func wantEqualTrees(t testing.TB, got, want map[string]string) {
	t.Helper()
	for name, w := range want {
		if got[name] != w {
			t.Errorf("%s: got %.80q, want %.80q", name, got[name], w)
		}
	}
	for name := range got {
		if _, ok := want[name]; !ok {
			t.Errorf("%s: is too much", name)
		}
	}
}

// mend repairs, and returns what was mended and what is left.
func mend(t testing.TB, s *store.Store, o repair.Options) (repair.Summary, []repair.Mending, []check.Problem) {
	t.Helper()
	var ms []repair.Mending
	var ps []check.Problem
	sum, err := repair.Run(ctx, s, o, func(m repair.Mending) { ms = append(ms, m) }, func(p check.Problem) { ps = append(ps, p) })
	if err != nil {
		t.Fatalf("repair: %v", err)
	}
	if int(sum.Mended) != len(ms) {
		t.Errorf("summary says %d mended, told of %d", sum.Mended, len(ms))
	}
	return sum, ms, ps
}

// threeVersions is alice's winxp with three versions: chunks 1 and 300, then
// another chunk 1.
func threeVersions(t testing.TB) (*store.Store, *store.Parcel) {
	t.Helper()
	s := storetest.New(t)
	p := storetest.NewParcel(t, s)
	storetest.Commit(t, p, storetest.Change{1: storetest.ChunkOf("two"), 300: storetest.ChunkOf("both")})
	storetest.Commit(t, p, storetest.Change{1: storetest.ChunkOf("three"), 999: storetest.ChunkOf("last")})
	return s, p
}

// Wherever objects may be had from, and however they lie there.
func TestRepairFrom(t *testing.T) {
	s, p := threeVersions(t)
	replica := storetest.Replica(t, s)
	want := treeOf(t, s.Root())
	hdk := filepath.Join(replica, "users/alice/isr/winxp/hdk")
	layouts := storetest.TempDir(t)
	for _, dir := range []string{"flat", "caps", "dot/isr/hoard", "mixed/some/where"} {
		os.MkdirAll(filepath.Join(layouts, dir), 0o700)
	}
	filepath.WalkDir(hdk, func(path string, d fs.DirEntry, _ error) error {
		if !d.IsDir() {
			os.Link(path, filepath.Join(layouts, "flat", d.Name()))
			os.Link(path, filepath.Join(layouts, "caps", strings.ToUpper(d.Name())))
			for i, dir := range []string{"dot/isr/hoard", "mixed/some/where"} {
				sub := filepath.Join(layouts, dir, d.Name()[:2])
				os.Mkdir(sub, 0o700)
				os.Link(path, filepath.Join(sub, d.Name()))
				_ = i
			}
		}
		return nil
	})
	for name, place := range map[string]string{
		"realm": replica, "users": filepath.Join(replica, "users"), "parcel": filepath.Dir(hdk), "hdk": hdk, "flat look-aside": filepath.Join(layouts, "flat"),
		"look-aside in capitals": filepath.Join(layouts, "caps"), "client": filepath.Join(layouts, "dot"), "hoard": filepath.Join(layouts, "dot/isr/hoard"),
		"deep": filepath.Join(layouts, "mixed"),
	} {
		// All objects of the head's tree, and one that has other bytes.
		os.RemoveAll(p.HdkDir())
		if sum, _, ps := mend(t, s, repair.Options{From: []string{place}}); sum.Left.Errors > 0 {
			t.Errorf("%s: left: %v", name, ps)
		}
		storetest.Flip(t, filepath.Join(p.HdkDir(), tree.ObjectName(storetest.TagsOf(t, p, 2)[1][0])))
		sum, ms, ps := mend(t, s, repair.Options{From: []string{place}})
		if sum.Left.Errors > 0 || sum.Left.Notes > 0 || sum.Mended != 1 || ms[0].From != place || ms[0].Bytes == 0 {
			t.Errorf("%s: mended %v, left %v", name, ms, ps)
		}
		wantEqualTrees(t, treeOf(t, s.Root()), want)
	}
	// Nothing wrong: nothing done.
	if sum, ms, ps := mend(t, s, repair.Options{From: []string{replica}}); sum.Mended != 0 || len(ps) > 0 {
		t.Errorf("of a sound store: mended %v, left %v", ms, ps)
	}
	// No place at all has it.
	os.Remove(filepath.Join(p.HdkDir(), tree.ObjectName(storetest.TagsOf(t, p, 3)[0][0])))
	before := treeOf(t, s.Root())
	sum, _, ps := mend(t, s, repair.Options{From: []string{storetest.TempDir(t)}})
	if sum.Mended != 0 || sum.Left.Errors != 2 || ps[0].Version != 3 || ps[0].Chunks.String() != "chunk 1" {
		t.Errorf("nowhere to be had: %+v, %v", sum, ps)
	}
	wantEqualTrees(t, treeOf(t, s.Root()), before)
	// What would be: nothing is changed.
	sum, ms, _ := mend(t, s, repair.Options{From: []string{replica}, DryRun: true})
	if sum.Mended != 1 || sum.Left.Errors != 2 || !strings.Contains(ms[0].String(), "alice/winxp: version 3: disk: chunk 1: object ") {
		t.Errorf("dry run: %+v, %v", sum, ms)
	}
	wantEqualTrees(t, treeOf(t, s.Root()), before)
	for _, o := range []repair.Options{{From: []string{"/nowhere"}}, {From: []string{filepath.Join(replica, tree.RealmFile)}}} {
		if _, err := repair.Run(ctx, s, o, nil, nil); !errors.Is(err, parcel.ErrUsage) {
			t.Errorf("%v: got %v", o.From, err)
		}
	}
	for _, o := range []repair.Options{{User: "nobody"}, {User: "alice", Parcel: "none"}, {User: "bob", Parcel: "winxp"}} {
		if _, err := repair.Run(ctx, s, o, nil, nil); !errors.Is(err, parcel.ErrNoParcel) {
			t.Errorf("%v: got %v", o, err)
		}
	}
}

// A side of all of a user's parcels that is gone altogether comes back as well.
func TestRepairLostSide(t *testing.T) {
	for _, side := range []string{"isr", ".isr"} {
		s, p := threeVersions(t)
		replica := storetest.Replica(t, s)
		want := treeOf(t, s.Root())
		if err := os.RemoveAll(filepath.Join(filepath.Dir(filepath.Dir(p.LockDir())), side)); err != nil {
			t.Fatal(err)
		}
		sum, _, ps := mend(t, s, repair.Options{From: []string{replica}})
		if sum.Left.Errors > 0 {
			t.Errorf("%s: left %v", side, ps)
		}
		got := treeOf(t, s.Root())
		for _, name := range []string{"users/alice/.isr/winxp/epoch", "users/alice/.isr/winxp/released"} {
			delete(want, name) // said of nobody's holding it
			delete(got, name)
		}
		wantEqualTrees(t, got, want)
	}
}

// Records come from a replica of the realm, or are made again; never of
// another parcel, nor behind what was committed since.
func TestRepairRecords(t *testing.T) {
	for name, c := range map[string]struct {
		damage  func(p *store.Parcel)
		from    bool // a replica
		changed []string
		errors  int
	}{
		"parcel.cfg": {func(p *store.Parcel) { os.Remove(filepath.Join(p.LockDir(), tree.ConfigFile)) }, true, nil, 0},
		"parcel.cfg garbled": {func(p *store.Parcel) {
			os.WriteFile(filepath.Join(p.LockDir(), tree.ConfigFile), []byte("UUID:=x\n"), 0o600)
		}, true, nil, 0},
		"parcel.cfg, no replica":     {func(p *store.Parcel) { os.Remove(filepath.Join(p.LockDir(), tree.ConfigFile)) }, false, []string{tree.ConfigFile}, 1},
		"head's keyroot":             {func(p *store.Parcel) { os.Remove(p.VersionFile(3)) }, true, nil, 0},
		"head's keyroot, no replica": {func(p *store.Parcel) { os.Remove(p.VersionFile(3)) }, false, []string{"000003"}, 0},
		"old keyroot":                {func(p *store.Parcel) { os.WriteFile(p.VersionFile(2), []byte("KEYROOT:=-\n"), 0o600) }, true, nil, 0},
		"old keyroot, no replica":    {func(p *store.Parcel) { os.Remove(p.VersionFile(2)) }, false, []string{"000002"}, 1},
		"version removed": {func(p *store.Parcel) {
			os.Remove(p.VersionFile(2))
			os.RemoveAll(filepath.Join(p.ContentDir(), "000002"))
		}, true, []string{"000002"}, 0},
		"lock side":             {func(p *store.Parcel) { os.RemoveAll(p.LockDir()) }, true, []string{"released"}, 0},
		"lock side, no replica": {func(p *store.Parcel) { os.RemoveAll(p.LockDir()) }, false, []string{".isr"}, 1},
		"content side":          {func(p *store.Parcel) { os.RemoveAll(p.ContentDir()) }, true, nil, 0},
		"modes": {func(p *store.Parcel) {
			os.Chmod(p.LockDir(), 0o755)
			os.Chmod(filepath.Join(p.LockDir(), tree.ConfigFile), 0o644)
			os.Chmod(p.ContentDir(), 0o750)
		}, false, nil, 0},
		"epoch": {func(p *store.Parcel) { os.WriteFile(filepath.Join(p.LockDir(), tree.EpochFile), []byte("many"), 0o600) }, false, nil, 0},
		"links": {func(p *store.Parcel) {
			os.Remove(filepath.Join(p.ContentDir(), "last"))
			os.Remove(filepath.Join(p.LockDir(), "keys/keyroot"))
			os.RemoveAll(filepath.Join(p.ContentDir(), "000001"))
			os.Remove(filepath.Join(p.ContentDir(), "000002/info"))
			os.Remove(filepath.Join(p.ContentDir(), "000003/keyring.enc"))
			os.Symlink("/etc/passwd", filepath.Join(p.ContentDir(), "000003/keyring.enc"))
		}, false, nil, 0},
	} {
		t.Run(name, func(t *testing.T) {
			s, p := threeVersions(t)
			want, from := treeOf(t, s.Root()), []string{storetest.Replica(t, s)}
			if !c.from {
				from = nil
			}
			c.damage(p)
			sum, ms, ps := mend(t, s, repair.Options{From: from})
			if sum.Left.Errors != c.errors {
				t.Errorf("mended %v, left %v; want %d errors", ms, ps, c.errors)
			}
			got := treeOf(t, s.Root())
			for _, part := range c.changed {
				for _, m := range []map[string]string{got, want} {
					for name := range m {
						if strings.Contains(name, part) {
							delete(m, name)
						}
					}
				}
			}
			wantEqualTrees(t, got, want)
			if c.errors == 0 {
				// It is as good as ever.
				storetest.Commit(t, p, storetest.Change{5: storetest.ChunkOf("five")})
				if ps := storetest.WantSound(t, s); len(ps) > 0 && name != "version removed" {
					t.Errorf("notes: %v", ps)
				}
			}
		})
	}
	// A replica that is older than the head, and one of another parcel.
	s, p := threeVersions(t)
	old := storetest.Replica(t, s)
	storetest.Commit(t, p, storetest.Change{7: storetest.ChunkOf("since")})
	os.Remove(filepath.Join(p.LockDir(), tree.ConfigFile))
	if sum, _, ps := mend(t, s, repair.Options{From: []string{old}}); sum.Left.Errors > 0 {
		t.Errorf("older replica: left %v", ps)
	}
	if storetest.Head(t, p) != 4 {
		t.Errorf("older replica: the head is %d", storetest.Head(t, p))
	}
	storetest.WantChunk(t, p, 0, 7, "since")
	if err := s.DelParcel("alice", "winxp", false); err != nil {
		t.Fatal(err)
	}
	p = storetest.NewParcel(t, s)
	os.Remove(p.VersionFile(1))
	os.Remove(filepath.Join(p.LockDir(), "keys/keyroot"))
	if sum, ms, _ := mend(t, s, repair.Options{From: []string{old}}); sum.Mended != 0 || sum.Left.Errors == 0 {
		t.Errorf("another parcel's replica: mended %v", ms)
	}
}

// A parcel that took the name of another is not taken for it, even if its own
// parcel.cfg is lost; and a rename that was killed is finished first.
func TestRepairOfRenamed(t *testing.T) {
	s, p := threeVersions(t)
	replica := storetest.Replica(t, s)
	if err := s.DelParcel("alice", "winxp", false); err != nil {
		t.Fatal(err)
	}
	p = storetest.NewParcel(t, s)
	storetest.Commit(t, p, storetest.Change{1: storetest.ChunkOf("another")})
	os.Remove(filepath.Join(p.LockDir(), tree.ConfigFile))
	if sum, ms, _ := mend(t, s, repair.Options{From: []string{replica}}); sum.Left.Errors == 0 || sum.Mended != 0 {
		t.Errorf("another of that name: mended %v", ms)
	}

	s, p = threeVersions(t)
	replica = storetest.Replica(t, s)
	q := s.UserAt(p.User()).At("xp")
	mark := "USER:=alice\nPARCEL:=winxp\n"
	os.WriteFile(filepath.Join(p.LockDir(), tree.RenameFile), []byte(mark), 0o600)
	if err := os.Rename(p.LockDir(), q.LockDir()); err != nil { // and killed
		t.Fatal(err)
	}
	os.Remove(filepath.Join(p.HdkDir(), tree.ObjectName(storetest.TagsOf(t, q.WithContent(p), 3)[0][0])))
	mend(t, s, repair.Options{From: []string{replica}, DryRun: true})
	if tree.Exists(p.LockDir()) || tree.Exists(q.ContentDir()) {
		t.Error("the dry run made a side of it")
	}
	if sum, ms, ps := mend(t, s, repair.Options{From: []string{replica}}); sum.Left.Errors > 0 || sum.Mended != 1 {
		t.Errorf("half renamed: mended %v, left %v", ms, ps)
	}
	if names, err := s.Parcels("alice"); len(names) != 1 || names[0] != "xp" || tree.Exists(p.ContentDir()) {
		t.Errorf("parcels: %v, %v", names, err)
	}
}

// A release or a gc that sweeps the staging area in the middle costs a second
// try, no more.
func TestRepairSweptUnder(t *testing.T) {
	s, p := threeVersions(t)
	replica := storetest.Replica(t, s)
	os.Remove(filepath.Join(p.HdkDir(), tree.ObjectName(storetest.TagsOf(t, p, 3)[0][0])))
	sweeps := 0
	old := tree.Step
	t.Cleanup(func() { tree.Step = old })
	tree.Step = func(name string) {
		if name == "sync" && sweeps == 0 {
			sweeps++
			entries, _ := os.ReadDir(p.StagingDir())
			for _, e := range entries {
				os.RemoveAll(filepath.Join(p.StagingDir(), e.Name()))
			}
		}
	}
	if sum, ms, ps := mend(t, s, repair.Options{From: []string{replica}}); sum.Left.Errors > 0 || sum.Mended != 1 || sweeps != 1 {
		t.Errorf("swept %d times: mended %v, left %v", sweeps, ms, ps)
	}
}

// A place may be anybody's: it is not left, not waited for, and not believed.
func TestRepairHostilePlace(t *testing.T) {
	s, p := threeVersions(t)
	tags := append(storetest.TagsOf(t, p, 3)[0], storetest.TagsOf(t, p, 2)[0][0])
	elsewhere, place := storetest.TempDir(t), storetest.TempDir(t)
	good := make([]string, len(tags))
	for i, tag := range tags {
		good[i] = filepath.Join(elsewhere, tag.String())
		b, err := os.ReadFile(filepath.Join(p.HdkDir(), tree.ObjectName(tag)))
		if err != nil {
			t.Fatal(err)
		}
		os.WriteFile(good[i], b, 0o400)
		os.Remove(filepath.Join(p.HdkDir(), tree.ObjectName(tag)))
		os.MkdirAll(filepath.Join(place, tag.String()[:2]), 0o700)
	}
	at := func(i int) string { return filepath.Join(place, tree.ObjectName(tags[i])) }
	// The real bytes behind a link that leads out, a FIFO, a directory.
	os.Symlink(good[0], at(0))
	if err := syscall.Mkfifo(at(1), 0o600); err != nil {
		t.Fatal(err)
	}
	os.Mkdir(at(2), 0o700)
	// Another object's bytes, and a file of 1 TiB.
	b, _ := os.ReadFile(good[2])
	os.WriteFile(at(3), b, 0o600)
	f, _ := os.Create(filepath.Join(place, tags[0].String()))
	f.Truncate(1 << 40)
	f.Close()
	// Ways out, and round in circles.
	os.Symlink(elsewhere, filepath.Join(place, "hdk"))
	os.Symlink("..", filepath.Join(place, "hoard"))
	os.Symlink("/", filepath.Join(place, "root"))
	// A replica whose records lead elsewhere.
	os.MkdirAll(filepath.Join(place, "users/alice/.isr"), 0o700)
	os.Symlink(filepath.Join(s.Root(), "users/alice/.isr/winxp"), filepath.Join(place, "users/alice/.isr/winxp"))
	before := treeOf(t, s.Root())
	sum, ms, _ := mend(t, s, repair.Options{From: []string{place}})
	if sum.Mended != 0 || sum.Left.Errors == 0 {
		t.Errorf("mended %v", ms)
	}
	wantEqualTrees(t, treeOf(t, s.Root()), before)
	// A replica with an absurd head, and records full of nonsense.
	replica := storetest.Replica(t, s)
	lock := filepath.Join(replica, "users/alice/.isr/winxp")
	cfg, _ := os.ReadFile(filepath.Join(lock, tree.ConfigFile))
	os.WriteFile(filepath.Join(lock, tree.ConfigFile), []byte(strings.Replace(string(cfg), "VERSION:=3", "VERSION:=2000000000", 1)), 0o600)
	os.WriteFile(filepath.Join(lock, "keys/1999999999"), []byte("KEYROOT:=nonsense\n"), 0o600)
	os.Remove(filepath.Join(p.LockDir(), tree.ConfigFile))
	mend(t, s, repair.Options{From: []string{replica, elsewhere}})
	if ps := storetest.WantSound(t, s); len(ps) > 0 {
		t.Errorf("notes: %v", ps)
	}
	if storetest.Head(t, p) != 3 {
		t.Errorf("head: got %d", storetest.Head(t, p))
	}
}

// What is planted where a user may write leads the repair nowhere else.
func TestRepairHostileTree(t *testing.T) {
	s, p := threeVersions(t)
	replica := storetest.Replica(t, s)
	outside := storetest.TempDir(t)
	tag := storetest.TagsOf(t, p, 3)[0][0]
	precious := filepath.Join(outside, "precious")
	os.WriteFile(precious, []byte("keep"), 0o600)
	// In the object's place a link, or a directory; its directory a link out.
	os.Remove(filepath.Join(p.HdkDir(), tree.ObjectName(tag)))
	os.Symlink(precious, filepath.Join(p.HdkDir(), tree.ObjectName(tag)))
	if sum, _, ps := mend(t, s, repair.Options{From: []string{replica}}); sum.Left.Errors > 0 {
		t.Errorf("a link for an object: left %v", ps)
	}
	os.Remove(filepath.Join(p.HdkDir(), tree.ObjectName(tag)))
	os.MkdirAll(filepath.Join(p.HdkDir(), tree.ObjectName(tag), "deep"), 0o700)
	if sum, _, ps := mend(t, s, repair.Options{From: []string{replica}}); sum.Left.Errors > 0 {
		t.Errorf("a directory for an object: left %v", ps)
	}
	dir := filepath.Dir(filepath.Join(p.HdkDir(), tree.ObjectName(tag)))
	os.RemoveAll(dir)
	os.Symlink(outside, dir)
	if sum, _, ps := mend(t, s, repair.Options{From: []string{replica}}); sum.Left.Errors > 0 {
		t.Errorf("a link for a directory of objects: left %v", ps)
	}
	// The staging area leads out: that parcel is left alone, others are not.
	q, err := s.Create(ctx, "bob", "box", store.CreateOptions{DiskSize: storetest.Chunk})
	if err != nil {
		t.Fatal(err)
	}
	os.Remove(filepath.Join(q.ContentDir(), "last"))
	os.RemoveAll(dir)
	os.RemoveAll(p.StagingDir())
	os.Symlink(outside, p.StagingDir())
	if _, err := repair.Run(ctx, s, repair.Options{From: []string{replica}}, func(repair.Mending) {}, func(check.Problem) {}); err == nil || !strings.Contains(err.Error(), "winxp") {
		t.Errorf("a staging area that leads out: got %v", err)
	}
	if ps, _ := storetest.Check(t, s, check.Options{User: "bob", Content: true}); len(ps) > 0 {
		t.Errorf("bob's parcel: %v", ps)
	}
	entries, _ := os.ReadDir(outside)
	if b, err := os.ReadFile(precious); string(b) != "keep" || err != nil || len(entries) != 1 {
		t.Errorf("outside there is %v, %q, %v", entries, b, err)
	}
}

// Copies go on sharing what was put back, and mend each other.
func TestRepairShares(t *testing.T) {
	s, p := threeVersions(t)
	q, err := s.Copy(ctx, "alice", "winxp", "bob", "box")
	if err != nil {
		t.Fatal(err)
	}
	tag := storetest.TagsOf(t, p, 3)[0][0]
	one, two := filepath.Join(p.HdkDir(), tree.ObjectName(tag)), filepath.Join(q.HdkDir(), tree.ObjectName(tag))
	shared := func() bool {
		a, aerr := os.Lstat(one)
		b, berr := os.Lstat(two)
		return aerr == nil && berr == nil && os.SameFile(a, b)
	}
	if !shared() {
		t.Fatal("not shared to begin with")
	}
	os.Remove(two)
	if sum, ms, ps := mend(t, s, repair.Options{User: "bob"}); sum.Left.Errors > 0 || !shared() {
		t.Errorf("from the copy: mended %v, left %v, shared: %v", ms, ps, shared())
	}
	replica := storetest.Replica(t, s)
	storetest.Flip(t, one) // both are damaged
	sum, ms, ps := mend(t, s, repair.Options{From: []string{replica}})
	if sum.Left.Errors > 0 || sum.Mended != 2 || !shared() {
		t.Errorf("from a replica: mended %v, left %v, shared: %v", ms, ps, shared())
	}
}

// A damaged object that nothing needs goes, if one says so: it must not be
// taken for whole by a commit to come.
func TestRepairDiscards(t *testing.T) {
	s, p := threeVersions(t)
	tag := seal.Tag(storetest.Random(32, 77))
	name := filepath.Join(p.HdkDir(), tree.ObjectName(tag))
	os.MkdirAll(filepath.Dir(name), 0o700)
	os.WriteFile(name, []byte("x"), 0o400)
	for _, c := range []struct {
		o     repair.Options
		gone  bool
		asked int
	}{{repair.Options{}, false, 0}, {repair.Options{Discard: func(string, string, int) bool { return false }}, false, 1},
		{repair.Options{DryRun: true, Discard: func(string, string, int) bool { return true }}, false, 0},
		{repair.Options{Discard: func(string, string, int) bool { return true }}, true, 1}} {
		asked := 0
		if answer := c.o.Discard; answer != nil {
			c.o.Discard = func(user, name string, n int) bool {
				if asked++; user != "alice" || name != "winxp" || n != 1 {
					t.Errorf("asked of %s %s %d", user, name, n)
				}
				return answer(user, name, n)
			}
		}
		sum, _, _ := mend(t, s, c.o)
		if _, err := os.Lstat(name); (err != nil) != c.gone || asked != c.asked || (sum.Left.Errors == 0) != c.gone {
			t.Errorf("%+v: asked %d times, %v, %d errors left", c, asked, err, sum.Left.Errors)
		}
	}
}

// Whatever is damaged or lost at random, a replica makes it as it was, byte
// for byte.
func TestRepairProperty(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		dir, err := os.MkdirTemp("/dev/shm", "isr-store-test-")
		if err != nil {
			t.Skip(err)
		}
		defer os.RemoveAll(dir)
		s := storetest.NewIn(t, filepath.Join(dir, "root"))
		p := storetest.NewParcel(t, s)
		for i := range rapid.IntRange(1, 3).Draw(r, "versions") {
			storetest.Commit(t, p, storetest.Change{rapid.Int64Range(0, 999).Draw(r, "chunk"): storetest.ChunkOf(fmt.Sprint("a", i)), int64(i): storetest.ChunkOf(fmt.Sprint("b", i))})
		}
		if rapid.Bool().Draw(r, "copied") {
			if _, err := s.Copy(ctx, "alice", "winxp", "bob", "box"); err != nil {
				t.Fatal(err)
			}
		}
		replica := filepath.Join(dir, "replica")
		if out, err := exec.Command("cp", "-a", s.Root(), replica).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		want := treeOf(t, s.Root())
		var names []string
		for name, what := range want {
			rel := strings.TrimPrefix(name, "users/")
			_, inside, _ := strings.Cut(rel, "/") // .isr/winxp/… or isr/winxp/…
			parts := strings.Split(inside, "/")
			switch {
			// A version without record and directory is one that was removed.
			case what == "dir" && !strings.Contains(inside, "hdk"):
			case len(parts) < 3, strings.HasSuffix(name, "released"), strings.HasSuffix(name, tree.EpochFile):
			default:
				names = append(names, name)
			}
		}
		slices.Sort(names)
		for range rapid.IntRange(1, 12).Draw(r, "damages") {
			name := filepath.Join(s.Root(), rapid.SampledFrom(names).Draw(r, "what"))
			fi, err := os.Lstat(name)
			if err != nil {
				continue
			}
			how := rapid.IntRange(0, 3).Draw(r, "how")
			if fi.IsDir() || fi.Mode()&fs.ModeSymlink != 0 || how == 0 {
				os.RemoveAll(name)
				continue
			}
			b, _ := os.ReadFile(name)
			os.Chmod(name, 0o600)
			switch how {
			case 1:
				os.Truncate(name, int64(rapid.IntRange(0, max(len(b)-1, 0)).Draw(r, "to")))
			case 2:
				if len(b) > 0 {
					b[rapid.IntRange(0, len(b)-1).Draw(r, "at")] ^= 1 << rapid.IntRange(0, 7).Draw(r, "bit")
				}
				os.WriteFile(name, b, 0o600)
			case 3:
				os.WriteFile(name, append(b, "more"...), 0o600)
			}
			if strings.Contains(name, "/hdk/") {
				os.Chmod(name, tree.ObjectMode)
			}
			// A record that still can be read is not looked at again: such
			// damage is no repair's to find.
			if strings.Contains(name, "/.isr/") || strings.HasSuffix(name, "/info") {
				os.Remove(name)
			}
		}
		sum, ms, ps := mend(t, s, repair.Options{From: []string{replica}})
		if sum.Left.Errors > 0 || sum.Left.Notes > 0 {
			r.Fatalf("mended %v\nleft %v", ms, ps)
		}
		got := treeOf(t, s.Root())
		for name, w := range want {
			if got[name] != w {
				r.Fatalf("%s: got %.80q, want %.80q", name, got[name], w)
			}
		}
		if len(got) != len(want) {
			r.Fatalf("%d names, want %d", len(got), len(want))
		}
	})
}
