package backup

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"isr/store"
	"isr/store/backup/mirror"
	"isr/store/backup/realm"
	"isr/store/backup/snapshot"
	"isr/store/backup/target"
	"isr/store/backup/target/targettest"
	"isr/store/check"
	"isr/store/keyring"
	"isr/store/parcel"
	"isr/store/seal"
	"isr/store/storetest"
)

// objectOf is where a parcel has an object of the disk of a version, at a
// level, that the version before has not; at level -1 the root block.
func objectOf(t testing.TB, p *store.Parcel, v, level int) string {
	t.Helper()
	cfg, err := p.Config()
	if err != nil {
		t.Fatal(err)
	}
	keyroot, err := p.Keyroot(v)
	if err != nil {
		t.Fatal(err)
	}
	tag := keyroot.Tag
	if level >= 0 {
		tag = ""
		var disks [2]keyring.Image
		for i := range disks {
			root, err := p.Root(ctx, v-1+i)
			if err != nil {
				t.Fatal(err)
			}
			disks[i], _ = root.Image(keyring.Disk)
		}
		err := keyring.Diff(ctx, cfg.Sealer(), p, disks[0], disks[1], func(at int, _ int64, _, ref seal.Ref) error {
			if at == level {
				tag = ref.Tag
			}
			return nil
		})
		if err != nil || tag == "" {
			t.Fatalf("version %d, level %d: %q, %v", v, level, tag, err)
		}
	}
	return filepath.Join(p.ContentDir(), "hdk", tag.String()[:2], tag.String())
}

// harms are ways to lose what versions need of alice's winxp, as threeVersions
// makes it: how many objects that is, as far as can be seen, and what versions
// lack.
var harms = map[string]struct {
	harm    func(t *testing.T, p *store.Parcel) []string // the files it removed
	damaged int
	lacks   []realm.Lack
}{
	"nothing":      {func(*testing.T, *store.Parcel) []string { return nil }, 0, nil},
	"a chunk":      {lose(3, 0), 1, []realm.Lack{lack(3, 1)}},
	"a block":      {lose(3, 1), 1, []realm.Lack{lack(3, 1)}},
	"a root block": {lose(3, -1), 1, []realm.Lack{lack(3, 1)}},
	"an old root":  {lose(1, -1), 1, []realm.Lack{lack(1, 1)}},
	// What is below a missing block nobody knows.
	"a chunk and its block": {func(t *testing.T, p *store.Parcel) []string {
		files := []string{objectOf(t, p, 3, 0), objectOf(t, p, 3, 1)}
		return remove(t, files...)
	}, 1, []realm.Lack{lack(3, 1)}},
	"a chunk of two versions": {lose(2, 0), 1, []realm.Lack{lack(2, 1), lack(3, 1)}},
	"two chunks": {func(t *testing.T, p *store.Parcel) []string {
		return remove(t, objectOf(t, p, 3, 0), objectOf(t, p, 2, 0))
	}, 2, []realm.Lack{lack(2, 1), lack(3, 2)}},
	"all": {func(t *testing.T, p *store.Parcel) []string {
		all, _ := filepath.Glob(filepath.Join(p.ContentDir(), "hdk/*/*"))
		return remove(t, all...)
	}, 3, []realm.Lack{lack(1, 1), lack(2, 1), lack(3, 1)}},
}

func lose(v, level int) func(t *testing.T, p *store.Parcel) []string {
	return func(t *testing.T, p *store.Parcel) []string { return remove(t, objectOf(t, p, v, level)) }
}

// remove moves files out of a realm.
func remove(t *testing.T, files ...string) []string {
	t.Helper()
	for _, f := range files {
		if err := os.Rename(f, aside(f)); err != nil {
			t.Fatal(err)
		}
	}
	return files
}

// putBack undoes remove.
func putBack(t *testing.T, files ...string) {
	t.Helper()
	for _, f := range files {
		if err := os.Rename(aside(f), f); err != nil {
			t.Fatal(err)
		}
	}
}

// aside is where remove puts a file: no realm has names with dots there.
func aside(file string) string { return file + ".aside" }

// lack is one of alice's winxp.
func lack(version int, objects int64) realm.Lack {
	return realm.Lack{User: "alice", Name: "winxp", Version: version, Objects: objects}
}

func threeVersions(t testing.TB, s *store.Store) *store.Parcel {
	t.Helper()
	p := newParcel(t, s, "alice", "winxp")
	commit(t, p, "", map[int64]string{300: "three hundred"})
	commit(t, p, "", map[int64]string{2: "two"})
	// Of another size: it shares nothing.
	if _, err := s.Create(ctx, "bob", "other", store.CreateOptions{DiskSize: 700 * storetest.Chunk, ChunkSize: storetest.Chunk, VMM: "none"}); err != nil {
		t.Fatal(err)
	}
	return p
}

func newWarnings() (texts *[]string, warn func(string)) {
	texts = new([]string)
	return texts, func(text string) { *texts = append(*texts, text) }
}

// What a version needs and the realm lacks is told by parcel and version, the
// snapshot keeps it in mind, and all else is backed up.
func TestMissing(t *testing.T) {
	for name, test := range harms {
		t.Run(name, func(t *testing.T) {
			s, place := newRealm(t), memPlace(t)
			p := threeVersions(t, s)
			lost := test.harm(t, p)
			warnings, warn := newWarnings()
			res, err := Make(ctx, s, place, Options{Warn: warn})
			if err != nil {
				t.Fatal(err)
			}
			if res.Damaged != test.damaged || !reflect.DeepEqual(res.Snapshot.Lacks, test.lacks) {
				t.Errorf("%d objects damaged, want %d; lacks %v, want %v", res.Damaged, test.damaged, res.Snapshot.Lacks, test.lacks)
			}
			if len(*warnings) != len(test.lacks) {
				t.Errorf("warnings: %q", *warnings)
			}
			problems, problem := newWarnings()
			if _, err := Verify(ctx, place, VerifyOptions{Sample: 1, Problem: problem}); err != nil || len(*problems) != len(test.lacks) {
				t.Errorf("verify: %q, %v", *problems, err)
			}
			for i, l := range test.lacks {
				if want := "snapshot " + res.Snapshot.ID + ": " + l.String(); (*problems)[i] != want || !strings.Contains((*warnings)[i], l.String()) {
					t.Errorf("lack %d: verify says %q, make %q; want %q", i, (*problems)[i], (*warnings)[i], want)
				}
			}
			told, warn := newWarnings()
			n, r, err := Restore(ctx, filepath.Join(targettest.MemDir(t), "new"), place, RestoreOptions{Warn: warn})
			if err != nil || (r.Lacking > 0) != (test.lacks != nil) || len(*told) != len(test.lacks) || r.Parcels != 2 {
				t.Errorf("restore: %+v, %v, %q", r, err, *told)
			}
			sum, err := check.Run(ctx, n, check.Options{Content: true}, func(check.Problem) {})
			if err != nil || (sum.Errors > 0) != (test.lacks != nil) {
				t.Errorf("check of what was restored: %+v, %v", sum, err)
			}
			// When they are back, nothing is lacking from the next one on.
			putBack(t, lost...)
			make_(t, s, place)
			if v, err := Verify(ctx, place, VerifyOptions{Snapshot: "latest", Sample: 1, Problem: func(text string) { t.Error(text) }}); err != nil || v.Errors > 0 {
				t.Errorf("verify: %+v, %v", v, err)
			}
			wantEqual(t, s.Root(), restored(t, place, RestoreOptions{}).Root())
		})
	}
}

// What the backup has from before is not lacking: it stays in it, also when
// the older snapshots go, and comes back in a restore.
func TestMissingBackedUp(t *testing.T) {
	for name, test := range harms {
		t.Run(name, func(t *testing.T) {
			s, place := newRealm(t), memPlace(t)
			p := threeVersions(t, s)
			first := make_(t, s, place)
			lost := test.harm(t, p)
			warnings, warn := newWarnings()
			res, err := Make(ctx, s, place, Options{Warn: warn})
			if err != nil || res.Damaged != len(lost) || len(res.Snapshot.Lacks) > 0 || res.Snapshot.Objects != first.Snapshot.Objects {
				t.Fatalf("%+v, %+v, %v; want %d objects damaged, none lacking", res, res.Snapshot, err, len(lost))
			}
			if (len(*warnings) > 0) != (len(lost) > 0) {
				t.Errorf("warnings: %q", *warnings)
			}
			if _, err := Prune(ctx, place, []string{first.Snapshot.ID}, nil); err != nil {
				t.Fatal(err)
			}
			putBack(t, lost...)
			wantEqual(t, s.Root(), restored(t, place, RestoreOptions{}).Root())
		})
	}
}

// What another parcel has is not lacking either, nor is what is damaged here
// and whole in the backup.
func TestMissingElsewhere(t *testing.T) {
	s, place := newRealm(t), memPlace(t)
	p := threeVersions(t, s)
	if _, err := s.Copy(ctx, "alice", "winxp", "bob", "copy"); err != nil {
		t.Fatal(err)
	}
	chunk := objectOf(t, p, 3, 0)
	remove(t, chunk)
	res, err := Make(ctx, s, place, Options{Warn: func(string) {}})
	if err != nil || res.Damaged != 1 || len(res.Snapshot.Lacks) > 0 {
		t.Errorf("%+v, %+v, %v", res, res.Snapshot, err)
	}
	wantSound(t, restored(t, place, RestoreOptions{}), true)
	for _, size := range []int64{0, 100, target.MaxObject + 1} {
		if err := os.WriteFile(chunk, make([]byte, size), 0o600); err != nil {
			t.Fatal(err)
		}
		res, err = Make(ctx, s, place, Options{Warn: func(string) {}})
		if err != nil || res.Damaged != 1 || len(res.Snapshot.Lacks) > 0 {
			t.Errorf("%d bytes: %+v, %+v, %v", size, res, res.Snapshot, err)
		}
		wantSound(t, restored(t, place, RestoreOptions{}), true)
	}
}

// A head without a record, and records that are none.
func TestMissingRecords(t *testing.T) {
	s, place := newRealm(t), memPlace(t)
	p := threeVersions(t, s)
	keys := filepath.Join(p.LockDir(), "keys")
	remove(t, filepath.Join(keys, "000003"))
	if err := os.WriteFile(filepath.Join(keys, "000002"), []byte("KEYROOT:=x\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	res, err := Make(ctx, s, place, Options{Warn: func(string) {}})
	want := []realm.Lack{lack(2, 0), lack(3, 0)}
	if err != nil || !reflect.DeepEqual(res.Snapshot.Lacks, want) {
		t.Errorf("%+v, %+v, %v", res, res.Snapshot, err)
	}
	if h, err := snapshot.Header(ctx, place, res.Snapshot.ID); err != nil || !reflect.DeepEqual(h.Lacks, want) {
		t.Errorf("%+v, %v", h, err)
	}
}

// A mirror tells what the realm lacks at every pass until it is back, and keeps
// what it has: what a fault took from the realm is nothing to be removed.
func TestMirrorMissing(t *testing.T) {
	for name, test := range harms {
		for _, before := range []bool{false, true} {
			if name == "nothing" {
				continue
			}
			t.Run(map[bool]string{false: name, true: name + ", mirrored before"}[before], func(t *testing.T) {
				s, place := newRealm(t), memPlace(t)
				p := threeVersions(t, s)
				damaged, lacks := test.damaged, test.lacks
				if before {
					mirrored(t, s, place, mirror.Options{})
				}
				lost := test.harm(t, p)
				if before {
					// The parcel changed, or the pass passes it over.
					if _, err := p.Acquire("alice", "laptop", parcel.NewID()); err != nil {
						t.Fatal(err)
					}
					damaged, lacks = len(lost), nil
				}
				for range 2 {
					warnings, warn := newWarnings()
					res, err := mirror.Pass(ctx, s, place, mirror.Options{Delete: true, Warn: warn})
					if err != nil || res.Damaged != damaged || !reflect.DeepEqual(res.Lacks, lacks) || len(*warnings) == 0 {
						t.Errorf("%+v, %v, %q; want %d damaged, lacks %v", res, err, *warnings, damaged, lacks)
					}
				}
				if before {
					m, err := store.Open(place.String())
					if err != nil {
						t.Fatal(err)
					}
					wantSound(t, m, true)
				}
				putBack(t, lost...)
				mirrored(t, s, place, mirror.Options{Delete: true})
				wantMirror(t, s.Root(), place.String())
				if res := mirrored(t, s, place, mirror.Options{}); !reflect.DeepEqual(res, &mirror.Result{Parcels: 2}) {
					t.Errorf("unchanged: %+v", res)
				}
			})
		}
	}
}
