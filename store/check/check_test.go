package check_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"isr/store"
	"isr/store/check"
	"isr/store/parcel"
	"isr/store/prune"
	"isr/store/seal"
	"isr/store/storetest"
	"isr/store/tree"
)

var ctx = context.Background()

// Each kind of damage is found, and called what it is. Version 2 has chunks 1
// and 300, version 3 (the head) another chunk 1.
func TestCheck(t *testing.T) {
	object := func(p *store.Parcel, tag seal.Tag) string { return filepath.Join(p.HdkDir(), tree.ObjectName(tag)) }
	chunk := func(t *testing.T, p *store.Parcel, v int) string { return object(p, storetest.TagsOf(t, p, v)[0][0]) }
	keyroot := func(t *testing.T, p *store.Parcel, v int) string {
		ref, err := p.Keyroot(v)
		if err != nil {
			t.Fatal(err)
		}
		return object(p, ref.Tag)
	}
	for name, c := range map[string]struct {
		damage func(t *testing.T, s *store.Store, p *store.Parcel)
		// Errors and notes wanted, and what some of the problems must say.
		errors, notes int
		want          []string
	}{
		"nothing": {func(*testing.T, *store.Store, *store.Parcel) {}, 0, 0, nil},
		"version directory removed": {func(t *testing.T, s *store.Store, p *store.Parcel) {
			os.RemoveAll(filepath.Join(p.ContentDir(), "000002"))
		},
			0, 1, []string{"version 2: note: directory is missing; its content is whole"}},
		"all version directories removed": {func(t *testing.T, s *store.Store, p *store.Parcel) {
			for _, d := range []string{"000001", "000002", "000003"} {
				os.RemoveAll(filepath.Join(p.ContentDir(), d))
			}
		}, 0, 3, []string{"version 1: note: directory is missing", "version 3: note: directory is missing; its content is whole, and can still be checked out; the next"}},
		"versions pruned by hand": {func(t *testing.T, s *store.Store, p *store.Parcel) {
			os.RemoveAll(filepath.Join(p.ContentDir(), "000001"))
			os.RemoveAll(filepath.Join(p.ContentDir(), "000002"))
			os.Remove(p.VersionFile(1))
			os.Remove(p.VersionFile(2))
		}, 0, 1, []string{"objects of", "gc removes them"}},
		"keyroot of an old version removed": {func(t *testing.T, s *store.Store, p *store.Parcel) { os.Remove(p.VersionFile(2)) },
			1, 1, []string{"version 2: error: keyroot is missing"}},
		"keyroot of the head removed": {func(t *testing.T, s *store.Store, p *store.Parcel) { os.Remove(p.VersionFile(3)) },
			1, 1, []string{"version 3: error: keyroot is missing"}},
		"keyroot garbled": {func(t *testing.T, s *store.Store, p *store.Parcel) {
			os.WriteFile(p.VersionFile(2), []byte("KEYROOT:=x\n"), 0o600)
		},
			1, 1, []string{"version 2: error: version 2: record of its keyroot: KEYROOT: "}},
		"chunk missing in the head": {func(t *testing.T, s *store.Store, p *store.Parcel) { os.Remove(chunk(t, p, 3)) },
			2, 0, []string{"version 3: error: disk: chunk 1: object ", "version 3: error: cannot be restored whole: damage in one place"}},
		"chunk missing that two versions share": {func(t *testing.T, s *store.Store, p *store.Parcel) {
			os.Remove(object(p, storetest.TagsOf(t, p, 3)[0][1]))
		},
			3, 0, []string{"version 3: error: disk: chunk 300: object ", "version 2: error: cannot be restored whole"}},
		"chunk flipped": {func(t *testing.T, s *store.Store, p *store.Parcel) { storetest.Flip(t, chunk(t, p, 2)) },
			2, 0, []string{"version 2: error: disk: chunk 1: object ", "does not match its name"}},
		"chunk emptied": {func(t *testing.T, s *store.Store, p *store.Parcel) {
			os.Chmod(chunk(t, p, 2), 0o600)
			os.Truncate(chunk(t, p, 2), 0)
		},
			2, 1, []string{"is empty"}},
		"block flipped": {func(t *testing.T, s *store.Store, p *store.Parcel) {
			storetest.Flip(t, object(p, storetest.TagsOf(t, p, 2)[1][0]))
		},
			2, 1, []string{"version 2: error: disk: keyring block 0 of level 1: object "}},
		"top block missing": {func(t *testing.T, s *store.Store, p *store.Parcel) {
			os.Remove(object(p, storetest.TagsOf(t, p, 2)[2][0]))
		},
			2, 1, []string{"version 2: error: disk: keyring block 0 of level 2: object "}},
		"root missing": {func(t *testing.T, s *store.Store, p *store.Parcel) { os.Remove(keyroot(t, p, 2)) },
			2, 1, []string{"version 2: error: root block: object ", "needed by no version that is whole"}},
		"object nobody needs, damaged": {func(t *testing.T, s *store.Store, p *store.Parcel) {
			os.WriteFile(object(p, seal.Tag(append([]byte{storetest.TagsOf(t, p, 2)[0][0][0]}, storetest.Random(31, 5)...))), []byte("x"), 0o400)
		}, 1, 1, []string{"which no version needs, does not match its name"}},
		"unknown files": {func(t *testing.T, s *store.Store, p *store.Parcel) {
			for _, dir := range []string{s.Root(), filepath.Join(p.LockDir(), "../.."), p.LockDir(), p.ContentDir(), p.HdkDir(), filepath.Dir(chunk(t, p, 2))} {
				os.WriteFile(filepath.Join(dir, "notes.txt"), nil, 0o600)
			}
		}, 0, 6, []string{"notes.txt: unknown file"}},
		"left over": {func(t *testing.T, s *store.Store, p *store.Parcel) {
			os.WriteFile(filepath.Join(p.LockDir(), ".tmp-1"), nil, 0o600)
			os.WriteFile(filepath.Join(p.StagingDir(), "x"), nil, 0o600)
			os.Mkdir(filepath.Join(p.ContentDir(), "000004"), 0o700)
		}, 0, 3, []string{"version 4: unfinished", "1 files wait in staging", ".tmp-1: left by"}},
		"links": {func(t *testing.T, s *store.Store, p *store.Parcel) {
			os.Remove(filepath.Join(p.ContentDir(), "last"))
			os.Remove(filepath.Join(p.ContentDir(), "000002", "keyring.enc"))
			os.Remove(filepath.Join(p.ContentDir(), "000002", "info"))
		}, 0, 3, []string{"link last is missing", "link keyring.enc is missing", "info is missing"}},
		"modes": {func(t *testing.T, s *store.Store, p *store.Parcel) {
			os.Chmod(p.LockDir(), 0o755)
			os.Chmod(filepath.Join(p.LockDir(), tree.ConfigFile), 0o644)
			os.Chmod(chunk(t, p, 2), 0o644)
		}, 2, 1, []string{"mode 0755 lets others in", "mode 0644 lets others in", "note: object "}},
		"config missing": {func(t *testing.T, s *store.Store, p *store.Parcel) {
			os.Remove(filepath.Join(p.LockDir(), tree.ConfigFile))
		},
			1, 0, []string{"parcel.cfg is missing; restore"}},
		"config garbled": {func(t *testing.T, s *store.Store, p *store.Parcel) {
			os.WriteFile(filepath.Join(p.LockDir(), tree.ConfigFile), []byte("VERSION:=3"), 0o600)
		}, 1, 0, []string{"parcel.cfg: "}},
		"renamed by hand": {func(t *testing.T, s *store.Store, p *store.Parcel) {
			os.Rename(p.LockDir(), filepath.Join(filepath.Dir(p.LockDir()), "other"))
			os.Rename(p.ContentDir(), filepath.Join(filepath.Dir(p.ContentDir()), "other"))
		}, 1, 0, []string{"parcel.cfg is of alice winxp"}},
		"lock side missing": {func(t *testing.T, s *store.Store, p *store.Parcel) { os.RemoveAll(p.LockDir()) },
			1, 0, []string{"lock side is missing"}},
		"content missing": {func(t *testing.T, s *store.Store, p *store.Parcel) { os.RemoveAll(p.ContentDir()) },
			1, 0, []string{"content is missing"}},
		"staging missing": {func(t *testing.T, s *store.Store, p *store.Parcel) { os.RemoveAll(p.StagingDir()) },
			0, 1, []string{"staging is missing"}},
		"epoch behind": {func(t *testing.T, s *store.Store, p *store.Parcel) {
			p.Acquire("alice", "h", "id")
			os.WriteFile(filepath.Join(p.LockDir(), tree.EpochFile), []byte("1\n"), 0o600)
		}, 1, 0, []string{"epoch is 1, the holder's is 3"}},
		"epoch garbled": {func(t *testing.T, s *store.Store, p *store.Parcel) {
			os.WriteFile(filepath.Join(p.LockDir(), tree.EpochFile), []byte("x"), 0o600)
		}, 1, 0, []string{"epoch: want a number"}},
	} {
		t.Run(name, func(t *testing.T) {
			s := storetest.New(t)
			p := storetest.NewParcel(t, s)
			storetest.Commit(t, p, storetest.Change{1: storetest.ChunkOf("two"), 300: storetest.ChunkOf("both")})
			storetest.Commit(t, p, storetest.Change{1: storetest.ChunkOf("three")})
			c.damage(t, s, p)
			ps, sum := storetest.Check(t, s, check.Options{Content: true})
			var all strings.Builder
			for _, p := range ps {
				all.WriteString(p.String() + "\n")
			}
			if sum.Errors != c.errors || sum.Notes != c.notes {
				t.Errorf("got %d errors and %d notes, want %d and %d", sum.Errors, sum.Notes, c.errors, c.notes)
			}
			for _, want := range c.want {
				if !strings.Contains(all.String(), want) {
					t.Errorf("it does not say %q", want)
				}
			}
			if t.Failed() {
				t.Logf("it says:\n%s", all.String())
			}
		})
	}
}

// One version, one parcel, one user: others' problems are not reported.
func TestCheckOptions(t *testing.T) {
	s := storetest.New(t)
	p := storetest.NewParcel(t, s)
	storetest.Commit(t, p, storetest.Change{1: storetest.ChunkOf("two")})
	storetest.Commit(t, p, storetest.Change{1: storetest.ChunkOf("three")})
	q, err := s.Copy(ctx, "alice", "winxp", "bob", "box")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(p.HdkDir(), tree.ObjectName(storetest.TagsOf(t, p, 2)[0][0]))
	storetest.Flip(t, path)
	for _, c := range []struct {
		o      check.Options
		errors int
	}{
		{check.Options{Content: true}, 2},
		{check.Options{}, 0},
		{check.Options{User: "bob", Content: true}, 0},
		{check.Options{User: "alice", Content: true}, 2},
		{check.Options{User: "alice", Parcel: "winxp", Content: true}, 2},
		{check.Options{User: "alice", Parcel: "winxp", Version: 3, Content: true}, 0},
		{check.Options{User: "alice", Parcel: "winxp", Version: 2, Content: true}, 2},
	} {
		if ps, sum := storetest.Check(t, s, c.o); sum.Errors != c.errors {
			t.Errorf("%+v: got %d errors, want %d: %v", c.o, sum.Errors, c.errors, ps)
		}
	}
	for _, c := range []struct {
		o    check.Options
		want error
	}{
		{check.Options{User: "nobody"}, parcel.ErrNoParcel},
		{check.Options{User: "bob", Parcel: "winxp"}, parcel.ErrNoParcel},
		{check.Options{User: "alice", Parcel: "winxp", Version: 4}, parcel.ErrNoVersion},
	} {
		if _, err := check.Run(ctx, s, c.o, func(p check.Problem) { t.Errorf("%+v: %v", c.o, p) }); !errors.Is(err, c.want) {
			t.Errorf("%+v: got %v, want %v", c.o, err, c.want)
		}
	}
	// A flipped bit in an object that is linked into two parcels is in both.
	storetest.Flip(t, filepath.Join(q.HdkDir(), tree.ObjectName(storetest.TagsOf(t, q, 1)[0][0])))
	if _, sum := storetest.Check(t, s, check.Options{Content: true}); sum.Errors != 6 {
		t.Errorf("shared damage: got %d errors, want 6", sum.Errors)
	}
	if _, sum := storetest.Check(t, s, check.Options{User: "bob", Content: true}); sum.Errors != 2 {
		t.Errorf("shared damage, bob's: got %d errors, want 2", sum.Errors)
	}
}

// The parts of a sample are all objects, each once; a percentage is about that,
// and another one each time.
func TestSample(t *testing.T) {
	tags := make([]seal.Tag, 2000)
	for i := range tags {
		tags[i] = seal.Tag(storetest.Random(32, uint64(i)))
	}
	tags[0] = seal.Tag(strings.Repeat("\x00", 32))
	tags[1] = seal.Tag(strings.Repeat("\xff", 20))
	sample := func(text string) check.Sample {
		t.Helper()
		s, err := check.ParseSample(text)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	for _, m := range []int{1, 2, 3, 7, 20, 4294967295} {
		for _, tag := range tags {
			in := 0
			for n := 1; n <= min(m, 20); n++ {
				if sample(fmt.Sprintf("%d/%d", n, m)).Has(tag) {
					in++
				}
			}
			if in > 1 || m <= 20 && in != 1 {
				t.Fatalf("%s is in %d of %d parts", tag, in, m)
			}
		}
	}
	for text, want := range map[string]int{"5%": 100, "50": 1000, "100%": 2000, "0.05%": 1, "1e-18": 0} {
		got := 0
		for _, tag := range tags {
			if sample(text).Has(tag) {
				got++
			}
		}
		// Each tag is asked of a sample of its own.
		if got < want-want/2-5 || got > want+want/2+5 {
			t.Errorf("%s: %d of %d, want about %d", text, got, len(tags), want)
		}
	}
	for _, text := range []string{"", "%", "0", "0%", "-1", "100.1", "NaN", "Inf", "+5", "0x1p3", "5%%", "1/", "/2", "0/2", "3/2", "1/2/3", "-1/2", "1/0", "1.5/3", "5_0"} {
		if s, err := check.ParseSample(text); !errors.Is(err, parcel.ErrUsage) {
			t.Errorf("%q: got %v, %v", text, s, err)
		}
	}
}

// A sample finds what is damaged in it, and only that.
func TestCheckSample(t *testing.T) {
	s := storetest.New(t)
	p := storetest.NewParcel(t, s)
	all := storetest.Change{}
	for i := range int64(200) {
		all[i] = storetest.ChunkOf(fmt.Sprint("chunk ", i))
	}
	storetest.Commit(t, p, all)
	tag := storetest.TagsOf(t, p, 2)[0][100]
	storetest.Flip(t, filepath.Join(p.HdkDir(), tree.ObjectName(tag)))
	found := 0
	var read, bytes int64
	var whole check.Summary
	for n := 1; n <= 10; n++ {
		part, err := check.ParseSample(fmt.Sprintf("%d/10", n))
		if err != nil {
			t.Fatal(err)
		}
		var last, total int64
		ps, sum := storetest.Check(t, s, check.Options{Content: true, Sample: part, Progress: func(done, of int64) { last, total = done, of }})
		if wrong := sum.Errors > 0; wrong != part.Has(tag) {
			t.Errorf("part %d: %d errors: %v", n, sum.Errors, ps)
		} else if wrong {
			found++
		}
		if last != sum.ReadBytes || total != last {
			t.Errorf("part %d: progress ended at %d of %d, read %d", n, last, total, sum.ReadBytes)
		}
		read, bytes, whole = read+sum.Read, bytes+sum.ReadBytes, sum
	}
	if found != 1 || read != whole.Objects || bytes != whole.Bytes {
		t.Errorf("found %d times; all parts read %d objects, %d bytes; there are %d, %d", found, read, bytes, whole.Objects, whole.Bytes)
	}
}

// A version that is pruned between the list of versions and its turn is none,
// and its objects are not missing from any.
func TestPrunedMeanwhile(t *testing.T) {
	for _, asked := range []int{0, 1} {
		s := storetest.New(t)
		p := storetest.Versioned(t, s, 3)
		os.Remove(filepath.Join(p.ContentDir(), parcel.VersionDir(3), "info")) // so that something is told of the head
		takeAway := func() {
			if gone, _, err := prune.Run(ctx, p, []int{1, 2}); err != nil || len(gone) != 2 {
				t.Fatal(gone, err)
			}
		}
		o := check.Options{User: "alice", Parcel: p.Name(), Version: asked}
		if asked == 1 {
			// The objects are hashed before the versions are listed.
			o.Content, o.Progress = true, func(done, total int64) {
				if done == total {
					takeAway()
				}
			}
		}
		var found []string
		sum, err := check.Run(ctx, s, o, func(q check.Problem) {
			found = append(found, q.String())
			if q.Version == 3 {
				takeAway()
			}
		})
		switch {
		case asked == 1 && !errors.Is(err, parcel.ErrNoVersion):
			t.Errorf("a version that is asked for and pruned: %v, %v", err, found)
		case asked == 0 && (err != nil || sum.Errors != 0 || sum.Versions != 1):
			t.Errorf("%+v, %v: %q", sum, err, found)
		}
	}
}
