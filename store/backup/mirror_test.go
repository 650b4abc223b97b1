package backup

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"isr/store"
	"isr/store/backup/mirror"
	"isr/store/backup/realm"
	"isr/store/backup/target"
	"isr/store/backup/target/targettest"
	"isr/store/parcel"
)

func mirrored(t *testing.T, s *store.Store, tree target.Tree, o mirror.Options) *mirror.Result {
	t.Helper()
	o.Warn = func(text string) { t.Error("warning:", text) }
	res, err := mirror.Pass(ctx, s, tree, o)
	if err != nil {
		t.Fatal(err)
	}
	return res
}

// A mirror is as its realm is, after each pass, and costs what changed.
func TestMirror(t *testing.T) {
	for kind, tree := range targettest.Trees(t) {
		t.Run(kind, func(t *testing.T) {
			s := newRealm(t)
			populate(t, s)
			if res := mirrored(t, s, tree, mirror.Options{}); res.Parcels != 3 || res.Changed != 3 || res.Sent == 0 || res.Linked == 0 {
				t.Errorf("first: %+v", res)
			}
			wantMirror(t, s.Root(), targettest.Root(tree))
			if res := mirrored(t, s, tree, mirror.Options{}); !reflect.DeepEqual(res, &mirror.Result{Parcels: 3}) {
				t.Errorf("unchanged: %+v", res)
			}
			commit(t, mustParcel(t, s, "bob", "mine"), "", map[int64]string{9: "nine"})
			if _, err := s.Copy(ctx, "bob", "mine", "alice", "lab"); err != nil {
				t.Fatal(err)
			}
			if _, err := mustParcel(t, s, "alice", "winxp").Release("", true); err != nil {
				t.Fatal(err)
			}
			if err := os.Remove(filepath.Join(s.Root(), "users/alice/password")); err != nil {
				t.Fatal(err)
			}
			if res := mirrored(t, s, tree, mirror.Options{}); res.Changed != 3 || res.Sent != 4 || res.Linked == 0 {
				t.Errorf("after a commit, a copy and a release: %+v", res)
			}
			wantMirror(t, s.Root(), targettest.Root(tree))

			// What the realm has no more stays, unless it is to go.
			if err := s.DelParcel("alice", "lab", false); err != nil {
				t.Fatal(err)
			}
			commit(t, mustParcel(t, s, "bob", "mine"), "", map[int64]string{9: "ten"})
			forget(t, mustParcel(t, s, "bob", "mine"), 2)
			if res := mirrored(t, s, tree, mirror.Options{}); res.Removed != 0 {
				t.Errorf("%+v; want nothing removed", res)
			}
			m, err := store.Open(targettest.Root(tree))
			if err != nil {
				t.Fatal(err)
			}
			mustParcel(t, m, "alice", "lab")
			if got := chunk(t, mustParcel(t, m, "bob", "mine"), 2, 9); got != "nine" {
				t.Errorf("version 2: %q", got)
			}
			wantSound(t, m, true)
			commit(t, mustParcel(t, s, "bob", "mine"), "", map[int64]string{9: "eleven"})
			if res := mirrored(t, s, tree, mirror.Options{Delete: true}); res.Removed == 0 {
				t.Errorf("%+v; want something removed", res)
			}
			wantMirror(t, s.Root(), targettest.Root(tree))
		})
	}
}

// A mirror that was served is not written over, nor is anything that is none.
func TestMirrorRefuses(t *testing.T) {
	serve := func(f func(t *testing.T, m *store.Store)) func(t *testing.T, place *target.Dir) {
		return func(t *testing.T, place *target.Dir) {
			m, err := store.Open(place.String())
			if err != nil {
				t.Fatal(err)
			}
			f(t, m)
		}
	}
	for name, change := range map[string]func(t *testing.T, place *target.Dir){
		"a commit": serve(func(t *testing.T, m *store.Store) {
			commit(t, mustParcel(t, m, "bob", "mine"), "", map[int64]string{1: "on the mirror"})
		}),
		"a lock": serve(func(t *testing.T, m *store.Store) {
			if _, err := mustParcel(t, m, "bob", "mine").Acquire("bob", "h", "id"); err != nil {
				t.Fatal(err)
			}
		}),
		"promoted": func(t *testing.T, place *target.Dir) { os.Remove(filepath.Join(place.String(), realm.StandbyFile)) },
		"a spoiled mark": func(t *testing.T, place *target.Dir) {
			os.WriteFile(filepath.Join(place.String(), realm.StandbyFile), []byte("REALM:=other\n"), 0o600)
		},
		"another secret": func(t *testing.T, place *target.Dir) {
			os.WriteFile(filepath.Join(place.String(), "realm.cfg"), []byte("NAME:=test\nSECRET:=00\nFORMAT:=1\n"), 0o600)
		},
	} {
		t.Run(name, func(t *testing.T) {
			s, place := newRealm(t), memPlace(t)
			populate(t, s)
			mirrored(t, s, place, mirror.Options{})
			change(t, place)
			// The realm goes on too, by another version of that number.
			commit(t, mustParcel(t, s, "bob", "mine"), "", map[int64]string{1: "in the realm"})
			before := files(t, place.String())
			if _, err := mirror.Pass(ctx, s, place, mirror.Options{Delete: true}); !errors.Is(err, parcel.ErrConflict) {
				t.Errorf("got %v, want a conflict", err)
			}
			for file, content := range files(t, place.String()) {
				if before[file] != content {
					t.Errorf("%s changed", file)
				}
			}
		})
	}
	// Somebody's files, and a realm that is served.
	s, place := newRealm(t), memPlace(t)
	if err := os.WriteFile(filepath.Join(place.String(), "precious"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, d := range []*target.Dir{place, openDir(t, newRealm(t).Root())} {
		if _, err := mirror.Pass(ctx, s, d, mirror.Options{Delete: true}); !errors.Is(err, parcel.ErrConflict) {
			t.Errorf("%s: %v", d, err)
		}
	}
	// A mark that names files elsewhere removes none of them.
	place = memPlace(t)
	mirrored(t, s, place, mirror.Options{})
	out := filepath.Join(filepath.Dir(place.String()), "out")
	if err := os.WriteFile(out, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	mark, err := os.ReadFile(filepath.Join(place.String(), realm.StandbyFile))
	if err != nil {
		t.Fatal(err)
	}
	mark = append(mark, "FILE:=00 ../out\nFILE:=00 "+out+"\nPARCEL:=.. x 00\nPARCEL:=alice ../../out 00\n"...)
	if err := os.WriteFile(filepath.Join(place.String(), realm.StandbyFile), mark, 0o600); err != nil {
		t.Fatal(err)
	}
	mirrored(t, s, place, mirror.Options{Delete: true})
	if _, err := os.Stat(out); err != nil {
		t.Error(err)
	}
	if text, _ := os.ReadFile(filepath.Join(place.String(), realm.StandbyFile)); strings.Contains(string(text), "out") {
		t.Errorf("the mark kept it: %s", text)
	}
}

// Who holds a parcel of a mirror that became the realm has a larger epoch than
// all who held it in the realm, also after the last pass, and by whatever passes
// the mirror came about.
func TestPromotedEpoch(t *testing.T) {
	s, place := newRealm(t), memPlace(t)
	populate(t, s)
	acquire := func(p *store.Parcel) int64 {
		t.Helper()
		p.Release("", true)
		l, err := p.Acquire(p.User(), "h", parcel.NewID())
		if err != nil {
			t.Fatal(err)
		}
		return l.Epoch
	}
	names := map[string]string{"winxp": "alice", "never": "alice", "mine": "bob", "empty": "bob"}
	newParcel(t, s, "alice", "never")
	for range 3 {
		acquire(mustParcel(t, s, "bob", "mine"))
		mirrored(t, s, place, mirror.Options{})
	}
	wantMirror(t, s.Root(), place.String())
	last := make(map[string]int64)
	for name, user := range names {
		for range 3 {
			last[name] = acquire(mustParcel(t, s, user, name))
		}
	}
	if err := os.Remove(filepath.Join(place.String(), realm.StandbyFile)); err != nil {
		t.Fatal(err)
	}
	m, err := store.Open(place.String())
	if err != nil {
		t.Fatal(err)
	}
	wantSound(t, m, true)
	for name, user := range names {
		first := acquire(mustParcel(t, m, user, name))
		if first <= last[name] {
			t.Errorf("%s: epoch %d on what was the mirror, %d in the realm", name, first, last[name])
		}
		// It is mirrored in its turn.
		last[name] = first
	}
	back := memPlace(t)
	mirrored(t, m, back, mirror.Options{})
	os.Remove(filepath.Join(back.String(), realm.StandbyFile))
	b, err := store.Open(back.String())
	if err != nil {
		t.Fatal(err)
	}
	for name, user := range names {
		if first := acquire(mustParcel(t, b, user, name)); first <= last[name] {
			t.Errorf("%s: epoch %d after two promotions, %d after one", name, first, last[name])
		}
	}
}

// What is broken in the realm and cannot be mirrored is said at each pass, and
// brought when it was mended.
func TestMirrorBroken(t *testing.T) {
	for name, content := range map[string]func(whole []byte) []byte{
		"empty": func([]byte) []byte { return nil },
		"other": func(whole []byte) []byte { return random(len(whole)) },
	} {
		t.Run(name, func(t *testing.T) {
			s, tree := newRealm(t), memPlace(t)
			p := threeVersions(t, s)
			path := objectOf(t, p, 3, 0)
			whole := read(t, path)
			spoil(t, path, content(whole))
			for range 2 {
				warnings, warn := newWarnings()
				res, err := mirror.Pass(ctx, s, tree, mirror.Options{Warn: warn})
				if err != nil || res.Damaged != 1 || !reflect.DeepEqual(res.Lacks, []realm.Lack{lack(3, 1)}) || len(*warnings) != 2 {
					t.Errorf("%+v, %v, warned %q", res, err, *warnings)
				}
			}
			// Another parcel that has it whole brings it.
			spoil(t, path, whole)
			if _, err := s.Copy(ctx, "alice", "winxp", "bob", "copy"); err != nil {
				t.Fatal(err)
			}
			spoil(t, path, content(whole))
			res, err := mirror.Pass(ctx, s, tree, mirror.Options{Warn: func(string) {}})
			if err != nil || res.Damaged != 1 || res.Lacks != nil {
				t.Errorf("whole elsewhere: %+v, %v", res, err)
			}
			m, err := store.Open(tree.String())
			if err != nil {
				t.Fatal(err)
			}
			wantSound(t, m, true)
			spoil(t, path, whole)
			if res := mirrored(t, s, tree, mirror.Options{}); res.Damaged != 0 || res.Changed != 1 {
				t.Errorf("mended: %+v", res)
			}
			wantMirror(t, s.Root(), tree.String())
		})
	}
}

// What was lost in the realm, and not pruned, is not removed from the mirror:
// nobody else may have it.
func TestMirrorKeepsWhatWasLost(t *testing.T) {
	for what, lose := range map[string]func(t *testing.T, p *store.Parcel){
		"record": func(t *testing.T, p *store.Parcel) { remove(t, filepath.Join(p.LockDir(), "keys/000002")) },
		"object": func(t *testing.T, p *store.Parcel) { remove(t, objectOf(t, p, 2, 0)) },
		// What is below is not known then.
		"broken block and what is below": func(t *testing.T, p *store.Parcel) {
			block := objectOf(t, p, 2, 1)
			remove(t, objectOf(t, p, 2, 0))
			spoil(t, block, nil)
		},
	} {
		t.Run(what, func(t *testing.T) {
			s, tree := newRealm(t), memPlace(t)
			p := threeVersions(t, s)
			mirrored(t, s, tree, mirror.Options{Delete: true})
			before := files(t, tree.String())
			lose(t, p)
			if _, err := p.Acquire("alice", "laptop", parcel.NewID()); err != nil {
				t.Fatal(err)
			}
			for range 2 {
				warnings, warn := newWarnings()
				if _, err := mirror.Pass(ctx, s, tree, mirror.Options{Delete: true, Warn: warn}); err != nil || len(*warnings) == 0 {
					t.Fatalf("%v, warned %q", err, *warnings)
				}
			}
			after := files(t, tree.String())
			for name := range before {
				if _, ok := after[name]; !ok {
					t.Errorf("%s: is gone", name)
				}
			}
		})
	}
}

func openDir(t *testing.T, name string) *target.Dir {
	t.Helper()
	d, err := target.OpenDir(name, false)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}
