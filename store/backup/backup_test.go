package backup

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"filippo.io/age"

	"isr/client/remote/sshdtest"
	"isr/store"
	"isr/store/backup/mirror"
	"isr/store/backup/realm"
	"isr/store/backup/snapshot"
	"isr/store/backup/target"
	"isr/store/backup/target/targettest"
	"isr/store/check"
	"isr/store/keep"
	"isr/store/keyring"
	"isr/store/parcel"
	"isr/store/seal"
	"isr/store/storetest"
)

var ctx = context.Background()

func random(n int) []byte {
	b := make([]byte, n)
	rand.Read(b)
	return b
}

func tagOf(b []byte) seal.Tag {
	sum := sha256.Sum256(b)
	return seal.Tag(sum[:])
}

// newRealm is a realm with users alice and bob. It is in memory: what is
// tested here is not the disk.
func newRealm(t testing.TB) *store.Store {
	t.Helper()
	return storetest.NewIn(t, filepath.Join(targettest.MemDir(t), "root"))
}

func memPlace(t testing.TB) *target.Dir {
	t.Helper()
	d, err := target.OpenDir(filepath.Join(targettest.MemDir(t), "backup"), true)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

func newParcel(t testing.TB, s *store.Store, user, name string) *store.Parcel {
	t.Helper()
	p, err := s.Create(ctx, user, name, store.CreateOptions{DiskSize: 600 * storetest.Chunk, ChunkSize: storetest.Chunk, VMM: "none"})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// commit makes a version with some chunks changed. It takes the lock and gives
// it back, unless nonce is that of who holds it.
func commit(t testing.TB, p *store.Parcel, nonce string, change map[int64]string) int {
	t.Helper()
	v, err := tryCommit(p, nonce, change)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func tryCommit(p *store.Parcel, nonce string, change map[int64]string) (int, error) {
	release := nonce == ""
	if release {
		l, err := p.Acquire(p.User(), "testhost", parcel.NewID())
		if err != nil {
			return 0, err
		}
		nonce = l.Nonce
	}
	cfg, err := p.Config()
	if err != nil {
		return 0, err
	}
	root, err := p.Root(ctx, 0)
	if err != nil {
		return 0, err
	}
	sealer := cfg.Sealer()
	im, _ := root.Image(keyring.Disk)
	tree, dst := keyring.NewTree(sealer, im, p), &storetest.Stager{Parcel: p}
	for n, text := range change {
		ref, sealed, err := sealer.Seal(storetest.ChunkOf(text))
		if err == nil {
			err = dst.Put(ctx, ref.Tag, sealed)
		}
		if err != nil {
			return 0, err
		}
		tree.Set(n, ref)
	}
	if im, err = tree.Flush(ctx, dst); err != nil {
		return 0, err
	}
	next := root.Clone()
	next.SetImage(im)
	next.Parent, next.Host = cfg.Version, "testhost"
	keyroot, sealed, err := keyring.SealRoot(sealer, next)
	if err != nil {
		return 0, err
	}
	if err := dst.Put(ctx, keyroot.Tag, sealed); err != nil {
		return 0, err
	}
	v, err := p.Commit(ctx, store.CommitRequest{Nonce: nonce, Parent: cfg.Version, Keyroot: keyroot, ID: parcel.NewID()})
	if err == nil && release {
		_, err = p.Release(nonce, false)
	}
	return v, err
}

// chunk is what a version has.
func chunk(t testing.TB, p *store.Parcel, v int, n int64) string {
	t.Helper()
	return string(bytes.TrimRight(storetest.ChunkAt(t, p, v, n), "\x00"))
}

// forget removes a version and the objects that only it needs, as prune and gc
// do: the record first.
func forget(t testing.TB, p *store.Parcel, v int) {
	if err := os.Remove(filepath.Join(p.LockDir(), "keys", parcel.VersionDir(v))); err != nil {
		t.Error(err)
		return
	}
	os.RemoveAll(filepath.Join(p.ContentDir(), parcel.VersionDir(v)))
	err := p.Shared(func() error {
		cfg, err := p.Config()
		if err != nil {
			return err
		}
		vs, err := p.Versions(0)
		if err != nil {
			return err
		}
		needed := make(map[seal.Tag]bool)
		for _, info := range vs {
			ref, err := p.Keyroot(info.Version)
			if err != nil {
				return err
			}
			needed[ref.Tag] = true
			root, err := p.Root(ctx, info.Version)
			if err != nil {
				return err
			}
			for _, im := range root.Images {
				err := keyring.Walk(ctx, cfg.Sealer(), p, im, func(_ int, _ int64, ref seal.Ref) error {
					needed[ref.Tag] = true
					return nil
				})
				if err != nil {
					return err
				}
			}
		}
		return filepath.WalkDir(filepath.Join(p.ContentDir(), "hdk"), func(path string, e fs.DirEntry, err error) error {
			if err != nil || e.IsDir() {
				return err
			}
			if tag, err := seal.ParseTag(e.Name()); err == nil && !needed[tag] {
				return os.Remove(path)
			}
			return nil
		})
	})
	if err != nil {
		t.Error(err)
	}
}

// WantSound fails unless all of a realm is sound, content included.
func wantSound(t testing.TB, s *store.Store, notes bool) {
	t.Helper()
	_, err := check.Run(ctx, s, check.Options{Content: true}, func(p check.Problem) {
		if p.Severity == check.Bad || !notes && !strings.Contains(p.Msg, ": removed") {
			t.Errorf("%s: %s", s.Root(), p)
		}
	})
	if err != nil {
		t.Error(err)
	}
}

func make_(t testing.TB, s *store.Store, place target.Target) *Result {
	t.Helper()
	res, err := Make(ctx, s, place, Options{Warn: func(text string) { t.Error("warning:", text) }})
	if err != nil {
		t.Fatal(err)
	}
	return res
}

// restored is a realm made of a backup.
func restored(t testing.TB, place target.Target, o RestoreOptions) *store.Store {
	t.Helper()
	o.Warn = func(text string) { t.Error("warning:", text) }
	s, _, err := Restore(ctx, filepath.Join(targettest.MemDir(t), "new"), place, o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// files are all files below dir with what they hold, links with where they
// lead; flocks and the log apart.
func files(t testing.TB, dir string) map[string]string {
	t.Helper()
	all := make(map[string]string)
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || strings.HasSuffix(path, "flock") || e.Name() == "usage" || e.IsDir() {
			return err
		}
		name, _ := filepath.Rel(dir, path)
		if e.Type()&fs.ModeSymlink != 0 {
			all[name], err = os.Readlink(path)
			return err
		}
		fi, err := e.Info()
		if err != nil {
			return err
		}
		b, err := os.ReadFile(path)
		all[name] = fmt.Sprintf("%04o %s", fi.Mode().Perm(), b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// wantEqual wants the tree b to be like a, but for epochs, which a restore
// raises.
func wantEqual(t testing.TB, a, b string, less ...string) {
	t.Helper()
	x, y := files(t, a), files(t, b)
	for name, text := range y {
		if filepath.Base(name) == "epoch" && epoch(text) >= epoch(x[name]) {
			x[name] = text
		}
	}
	for _, name := range less {
		delete(x, name)
		delete(y, name)
	}
	for name := range x {
		if _, ok := y[name]; !ok {
			t.Errorf("%s: not in %s", name, b)
		} else if x[name] != y[name] {
			t.Errorf("%s: differs: %.80q, %.80q", name, x[name], y[name])
		}
	}
	for name := range y {
		if _, ok := x[name]; !ok {
			t.Errorf("%s: not in %s", name, a)
		}
	}
}

// epoch is the number in an epoch file, as files has it; 0 for none.
func epoch(text string) (n int64) {
	fmt.Sscanf(text, "0600 %d", &n)
	return n
}

// populate makes what a realm may have: versions, a copy, a held parcel, a
// password, hooks, host keys, a message, a log.
func populate(t testing.TB, s *store.Store) {
	t.Helper()
	p := newParcel(t, s, "alice", "winxp")
	commit(t, p, "", map[int64]string{1: "one", 300: "three hundred"})
	commit(t, p, "", map[int64]string{1: "another", 2: "two"})
	if _, err := s.Copy(ctx, "alice", "winxp", "bob", "mine"); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Acquire("alice", "laptop", parcel.NewID()); err != nil {
		t.Fatal(err)
	}
	newParcel(t, s, "bob", "empty")
	for name, mode := range map[string]fs.FileMode{"hooks/pre-lock": 0o700, "hooks/README": 0o600, "hostkeys/ssh_host_ed25519_key": 0o600,
		"motd": 0o600, "log/2026-11-26.jsonl": 0o600, "log/reports/alice/2026-11-26.jsonl": 0o600,
		"study/study.cfg": 0o600, "study/manual.jsonl": 0o600, "study/2026-W48/events.jsonl": 0o600, "users/alice/password": 0o600, "users/bob/user.cfg": 0o600} {
		path := filepath.Join(s.Root(), name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		text := "content of " + name
		switch name {
		case "users/bob/user.cfg":
			text = "QUOTA:=1073741824\nNEW:=what a later version writes\n"
		case "users/alice/password":
			text = "BCRYPT:=$2a$10$N9qo8uLOickgx2ZMRZoMyeIjZAgcfl7p92ldGxad68LJZdL17lhWy\n"
		}
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
	}
	for name, target := range map[string]string{"hooks/post-lock": "pre-lock", "hooks/post-commit.d": "/bin"} {
		if err := os.Symlink(target, filepath.Join(s.Root(), name)); err != nil {
			t.Fatal(err)
		}
	}
}

// What is backed up is what is restored, from every kind of place, and nothing
// is sent twice.
func TestBackupAndRestore(t *testing.T) {
	for kind, place := range targettest.All(t) {
		t.Run(kind, func(t *testing.T) {
			s := newRealm(t)
			populate(t, s)
			first := make_(t, s, place)
			if len(first.Snapshot.Parcels) != 3 || first.Sent != first.Snapshot.Objects || first.Sent == 0 {
				t.Errorf("first: %+v, %d sent", first.Snapshot, first.Sent)
			}
			n := restored(t, place, RestoreOptions{})
			wantEqual(t, s.Root(), n.Root())
			if l, err := mustParcel(t, n, "alice", "winxp").Holder(); err != nil || l == nil || l.Host != "laptop" {
				t.Errorf("holder: %v, %v", l, err)
			}
			// One copy of what parcels share.
			a, err := os.Stat(objectPath(t, n, "bob", "mine"))
			if err != nil {
				t.Fatal(err)
			}
			b, err := os.Stat(strings.Replace(objectPath(t, n, "bob", "mine"), "bob/isr/mine", "alice/isr/winxp", 1))
			if err != nil || !os.SameFile(a, b) {
				t.Errorf("shared objects are not shared: %v", err)
			}
			if second := make_(t, s, place); second.Sent != 0 || second.Snapshot.ID <= first.Snapshot.ID {
				t.Errorf("second: %d objects sent, %s after %s", second.Sent, second.Snapshot.ID, first.Snapshot.ID)
			}
			commit(t, mustParcel(t, s, "bob", "mine"), "", map[int64]string{5: "five"})
			if third := make_(t, s, place); third.Sent != 4 { // chunk, two blocks, root
				t.Errorf("third: %d objects sent, want 4", third.Sent)
			}
			n = restored(t, place, RestoreOptions{Free: true})
			if l, err := mustParcel(t, n, "alice", "winxp").Holder(); err != nil || l != nil {
				t.Errorf("holder: %v, %v; want nobody", l, err)
			}
			if got := chunk(t, mustParcel(t, n, "bob", "mine"), 0, 5); got != "five" {
				t.Errorf("chunk: %q", got)
			}
			if n := restored(t, place, RestoreOptions{Snapshot: first.Snapshot.ID}); len(mustVersions(t, n, "bob", "mine")) != 1 {
				t.Error("the first snapshot has what was committed later")
			}
			v, err := Verify(ctx, place, VerifyOptions{Sample: 1, Problem: func(text string) { t.Error(text) }})
			if err != nil || v.Snapshots != 3 || v.Read != v.Objects || v.Errors != 0 || v.Spare != 0 {
				t.Errorf("verify: %+v, %v", v, err)
			}
		})
	}
}

func mustParcel(t testing.TB, s *store.Store, user, name string) *store.Parcel {
	t.Helper()
	p, err := s.Parcel(user, name)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func mustVersions(t testing.TB, s *store.Store, user, name string) []store.VersionInfo {
	t.Helper()
	vs, err := mustParcel(t, s, user, name).Versions(0)
	if err != nil {
		t.Fatal(err)
	}
	return vs
}

// objectPath is where some object of a parcel is.
func objectPath(t testing.TB, s *store.Store, user, name string) string {
	t.Helper()
	found, _ := filepath.Glob(filepath.Join(mustParcel(t, s, user, name).ContentDir(), "hdk/*/*"))
	if len(found) == 0 {
		t.Fatal("no object")
	}
	return found[0]
}

// Sealed lock sides are opened by their identity only; all the rest is
// verified without it, and no secret is in the open.
func TestSealed(t *testing.T) {
	s := newRealm(t)
	populate(t, s)
	place := memPlace(t)
	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	other, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	res, err := Make(ctx, s, place, Options{Recipients: []age.Recipient{id.Recipient()}})
	if err != nil || !res.Snapshot.Sealed {
		t.Fatal(res, err)
	}
	if v, err := Verify(ctx, place, VerifyOptions{Sample: 1, Problem: func(text string) { t.Error(text) }}); err != nil || v.Read == 0 {
		t.Errorf("verify: %v, %v", v, err)
	}
	for _, ids := range [][]age.Identity{nil, {other}} {
		dir := filepath.Join(targettest.MemDir(t), "new")
		if _, _, err := Restore(ctx, dir, place, RestoreOptions{Identities: ids}); !errors.Is(err, parcel.ErrDenied) {
			t.Errorf("restore with another identity: %v", err)
		}
		if _, err := os.Stat(filepath.Join(dir, "realm.cfg")); err == nil {
			t.Error("it left a realm")
		}
	}
	wantEqual(t, s.Root(), restored(t, place, RestoreOptions{Identities: []age.Identity{other, id}}).Root())
	realm, err := os.ReadFile(filepath.Join(s.Root(), "realm.cfg"))
	if err != nil {
		t.Fatal(err)
	}
	r, _ := parcel.ParseRecord(realm)
	ref, err := mustParcel(t, s, "alice", "winxp").Keyroot(0)
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range files(t, place.String()) {
		for _, secret := range []string{r.Get("SECRET"), ref.Key.Hex()} {
			if strings.Contains(content, secret) {
				t.Errorf("%s has a secret", name)
			}
		}
	}
}

// One parcel, or a user, comes back into a realm that is in use.
func TestRestoreInto(t *testing.T) {
	s := newRealm(t)
	populate(t, s)
	place := memPlace(t)
	make_(t, s, place)
	before := files(t, s.Root())
	into := func(o RestoreOptions) (*Restored, error) {
		o.Warn = func(text string) { t.Error("warning:", text) }
		return RestoreInto(ctx, s, place, o)
	}
	for _, o := range []RestoreOptions{{User: "alice"}, {User: "alice", Parcel: "winxp"}, {User: "bob", Parcel: "mine", As: "empty"}} {
		if _, err := into(o); !errors.Is(err, parcel.ErrExists) {
			t.Errorf("%+v: %v; want that it exists", o, err)
		}
	}
	for _, o := range []RestoreOptions{{User: "carol"}, {User: "alice", Parcel: "none"}} {
		if _, err := into(o); !errors.Is(err, parcel.ErrNoParcel) {
			t.Errorf("%+v: %v; want that there is none", o, err)
		}
	}
	if _, err := into(RestoreOptions{User: "alice", As: "x"}); !errors.Is(err, parcel.ErrUsage) {
		t.Errorf("--as for many: %v", err)
	}
	if after := files(t, s.Root()); !maps.Equal(before, after) {
		t.Error("what was refused changed something")
	}
	res, err := into(RestoreOptions{User: "alice", Parcel: "winxp", As: "old"})
	if err != nil || res.Fetched != 0 {
		t.Errorf("under another name: %+v, %v; want nothing fetched", res, err)
	}
	a, b := mustParcel(t, s, "alice", "winxp"), mustParcel(t, s, "alice", "old")
	ca, _ := a.Config()
	cb, _ := b.Config()
	if ca.UUID == cb.UUID || cb.Parcel != "old" || len(mustVersions(t, s, "alice", "old")) != 3 || chunk(t, b, 2, 1) != "one" {
		t.Errorf("the other: %+v", cb)
	}
	if l, err := b.Holder(); l != nil || err != nil {
		t.Errorf("the other is held: %v, %v", l, err)
	}
	wantSound(t, s, false)

	// The disk with bob's parcels broke.
	for _, dir := range []string{".isr", "isr"} {
		if err := os.RemoveAll(filepath.Join(s.Root(), "users/bob", dir)); err != nil {
			t.Fatal(err)
		}
	}
	if res, err = into(RestoreOptions{User: "bob"}); err != nil || res.Parcels != 2 || res.Kept == 0 {
		t.Errorf("bob's: %+v, %v", res, err)
	}
	wantSound(t, s, false)
	// And with alice.
	if err := os.RemoveAll(filepath.Join(s.Root(), "users/alice")); err != nil {
		t.Fatal(err)
	}
	if _, err = into(RestoreOptions{User: "alice"}); err != nil {
		t.Fatal(err)
	}
	wantEqual(t, s.Root(), restored(t, place, RestoreOptions{}).Root())
}

// While users commit and versions are pruned, every snapshot is whole, and the
// commits of before it are in it.
func TestBackupWhileInUse(t *testing.T) {
	s := newRealm(t)
	place := memPlace(t)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for i := range 3 {
		p := newParcel(t, s, "alice", fmt.Sprint("p", i))
		wg.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				v, err := tryCommit(p, "", map[int64]string{int64(n % 7): fmt.Sprint(i, " ", n), 400: fmt.Sprint("far", n)})
				if err != nil {
					t.Error(err)
					return
				}
				if v > 3 {
					forget(t, p, v-2)
				}
			}
		})
	}
	for round := range 3 {
		heads := make(map[string]int)
		for i := range 3 {
			name := fmt.Sprint("p", i)
			cfg, err := mustParcel(t, s, "alice", name).Config()
			if err != nil {
				t.Fatal(err)
			}
			heads[name] = cfg.Version
		}
		res, err := Make(ctx, s, place, Options{})
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range res.Snapshot.Parcels {
			if p.Version < heads[p.Name] {
				t.Errorf("%s: version %d is in the backup, %d was committed before", p.Name, p.Version, heads[p.Name])
			}
		}
		if round%2 == 0 {
			n := restored(t, place, RestoreOptions{Free: true})
			wantSound(t, n, true)
		}
	}
	close(stop)
	wg.Wait()
}

// flawed is a Target that fails or lies.
type flawed struct {
	target.Target
	mu      sync.Mutex
	puts    int
	failAt  int              // this put fails; 0: none
	lose    func(n int) bool // this put is acknowledged, and lost
	lie     func(name string) bool
	quietly bool
}

var errFull = errors.New("no room")

func (f *flawed) Put(ctx context.Context, name string, b []byte) error {
	f.mu.Lock()
	f.puts++
	n := f.puts
	f.mu.Unlock()
	if n == f.failAt {
		return errFull
	}
	if f.lose != nil && f.lose(n) {
		return nil
	}
	return f.Target.Put(ctx, name, b)
}

func (f *flawed) PutFrom(ctx context.Context, name string, r io.Reader, size int64) error {
	f.mu.Lock()
	f.puts++
	n := f.puts
	f.mu.Unlock()
	if n == f.failAt {
		return errFull
	}
	return f.Target.PutFrom(ctx, name, r, size)
}

func (f *flawed) Width() int { return 1 }

func (f *flawed) Get(ctx context.Context, name string) (io.ReadCloser, error) {
	r, err := f.Target.Get(ctx, name)
	if err != nil || f.lie == nil || !f.lie(name) {
		return r, err
	}
	b, err := io.ReadAll(r)
	r.Close()
	if len(b) > 0 {
		b[len(b)/2] ^= 1
	}
	return io.NopCloser(bytes.NewReader(b)), err
}

// A put that fails leaves no snapshot, and the next run goes on from there.
func TestFailingTarget(t *testing.T) {
	s := newRealm(t)
	populate(t, s)
	whole := memPlace(t)
	make_(t, s, whole)
	wanted := targettest.List(t, whole, objectsDir)
	for n := 1; ; n += 3 {
		place := memPlace(t)
		f := &flawed{Target: place, failAt: n}
		_, err := Make(ctx, s, f, Options{})
		if err == nil {
			if n < 10 {
				t.Errorf("only %d puts", n)
			}
			break
		}
		if !errors.Is(err, errFull) {
			t.Fatal(err)
		}
		if ids, err := snapshot.IDs(ctx, place); err != nil || len(ids) > 0 {
			t.Fatalf("put %d failed: snapshots %v, %v", n, ids, err)
		}
		place.Sync(ctx)
		there := len(targettest.List(t, place, objectsDir))
		if res := make_(t, s, place); int(res.Sent) != len(wanted)-there {
			t.Errorf("put %d failed: %d were there of %d, and %d sent again", n, there, len(wanted), res.Sent)
		}
		if got := targettest.List(t, place, objectsDir); !slices.Equal(got, wanted) {
			t.Errorf("put %d failed: the backup is another one after", n)
		}
	}
}

// What a place loses or changes is found, by verify and by restore; the next
// backup sends again what is missing, and nothing damaged gets into a realm.
func TestLyingTarget(t *testing.T) {
	s := newRealm(t)
	populate(t, s)
	place := memPlace(t)
	f := &flawed{Target: place, lose: func(n int) bool { return n == 3 }}
	res, err := Make(ctx, s, f, Options{})
	if err != nil {
		t.Fatal(err)
	}
	problems := func(place target.Target) (texts []string) {
		v, err := Verify(ctx, place, VerifyOptions{Sample: 1, Problem: func(text string) { texts = append(texts, text) }})
		if err != nil {
			t.Fatal(err)
		}
		if v.Errors != len(texts) {
			t.Errorf("%d errors, %d told", v.Errors, len(texts))
		}
		return texts
	}
	if ps := problems(place); len(ps) != 1 || !strings.Contains(ps[0], "is missing") {
		t.Errorf("lost: %v", ps)
	}
	var lacking []string
	n, r, err := Restore(ctx, filepath.Join(targettest.MemDir(t), "new"), place, RestoreOptions{Warn: func(text string) { lacking = append(lacking, text) }})
	if err != nil || r.Lacking != 1 || len(lacking) != 1 || r.Parcels != 3 {
		t.Errorf("restore: %+v, %v, %v", r, err, lacking)
	}
	sum, err := check.Run(ctx, n, check.Options{Content: true}, func(check.Problem) {})
	if err != nil || sum.Errors == 0 {
		t.Errorf("check of what lacks an object: %+v, %v", sum, err)
	}
	if res := make_(t, s, place); res.Sent != 1 {
		t.Errorf("%d sent, want the one", res.Sent)
	}
	if ps := problems(place); len(ps) != 0 {
		t.Errorf("after the next backup: %v", ps)
	}

	var count int
	f = &flawed{Target: place, lie: func(name string) bool {
		if strings.HasPrefix(name, objectsDir) {
			count++
			return count%5 == 0
		}
		return false
	}}
	if ps := problems(f); len(ps) < 2 || !strings.Contains(ps[0], "does not match its name") {
		t.Errorf("changed: %v", ps)
	}
	n, r, err = Restore(ctx, filepath.Join(targettest.MemDir(t), "new"), f, RestoreOptions{Warn: func(string) {}})
	if err != nil || r.Lacking == 0 {
		t.Errorf("restore: %+v, %v", r, err)
	}
	if _, err := check.Run(ctx, n, check.Options{Content: true}, func(p check.Problem) {
		if strings.Contains(p.Msg, "does not match") {
			t.Errorf("damaged content was restored: %s", p)
		}
	}); err != nil {
		t.Error(err)
	}

	// Lists and archives.
	for name, want := range map[string]string{snapshot.Name(res.Snapshot.ID): "snapshot", res.Snapshot.Records.Name: "archive"} {
		f = &flawed{Target: place, lie: func(n string) bool { return n == name }}
		if ps := problems(f); len(ps) != 1 || !strings.Contains(ps[0], want) {
			t.Errorf("%s changed: %v", name, ps)
		}
		dir := filepath.Join(targettest.MemDir(t), "new")
		if _, _, err := Restore(ctx, dir, f, RestoreOptions{Snapshot: res.Snapshot.ID}); !errors.Is(err, parcel.ErrDamaged) {
			t.Errorf("%s changed: restore: %v", name, err)
		}
		if _, err := os.Stat(filepath.Join(dir, "users")); err == nil {
			t.Errorf("%s changed: restore began", name)
		}
	}
}

// What is damaged in the realm is not backed up, and does not keep the rest
// from it.
func TestDamagedRealm(t *testing.T) {
	s := newRealm(t)
	populate(t, s)
	path := objectPath(t, s, "alice", "winxp")
	if err := os.Chmod(path, 0o600); err != nil {
		t.Fatal(err)
	}
	fi, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, random(int(fi.Size())), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(s.Root(), "users/bob/.isr/empty/parcel.cfg"), []byte("nonsense"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/etc/passwd", filepath.Join(s.Root(), "users/alice/.isr/winxp/keys/000009")); err != nil {
		t.Fatal(err)
	}
	place := memPlace(t)
	var warnings []string
	res, err := Make(ctx, s, place, Options{Warn: func(text string) { warnings = append(warnings, text) }})
	lacks := res.Snapshot.Lacks // the empty parcel has no versions to go by, and winxp one or more
	if err != nil || res.Damaged != 1 || len(lacks) < 2 || len(warnings) != 3+len(lacks) {
		t.Fatalf("%+v, %v, %q", res, err, warnings)
	}
	if v, err := Verify(ctx, place, VerifyOptions{Sample: 1, Problem: func(string) {}}); err != nil || v.Errors != len(lacks) {
		t.Errorf("the backup: %+v, %v; want %d errors", v, err, len(lacks))
	}
	for name, content := range files(t, place.String()) {
		if strings.Contains(content, "root:") {
			t.Errorf("%s has what a link led to", name)
		}
	}
	_, r, err := Restore(ctx, filepath.Join(targettest.MemDir(t), "new"), place, RestoreOptions{Warn: func(string) {}})
	if err != nil || r.Parcels != 2 || r.Failed != 1 {
		t.Errorf("restore: %+v, %v", r, err)
	}
}

// What cannot be read of one user or parcel is said and counted, at each run,
// and keeps nobody else's from being copied. What a mirror has of it stays.
func TestLostParcel(t *testing.T) {
	planted := func(name string) error {
		return errors.Join(os.RemoveAll(name), os.Symlink(targettest.MemDir(t), name))
	}
	for what, lose := range map[string]func(p *store.Parcel) error{
		"content":           func(p *store.Parcel) error { return os.RemoveAll(p.ContentDir()) },
		"objects":           func(p *store.Parcel) error { return os.RemoveAll(filepath.Join(p.ContentDir(), "hdk")) },
		"configuration":     func(p *store.Parcel) error { return os.Remove(filepath.Join(p.LockDir(), "parcel.cfg")) },
		"lock side":         func(p *store.Parcel) error { return os.RemoveAll(p.LockDir()) },
		"lock side is":      func(p *store.Parcel) error { return planted(p.LockDir()) },
		"all lock sides":    func(p *store.Parcel) error { return os.RemoveAll(filepath.Dir(p.LockDir())) },
		"content is a link": func(p *store.Parcel) error { return planted(p.ContentDir()) },
		"contents are":      func(p *store.Parcel) error { return planted(filepath.Dir(p.ContentDir())) },
		"lock sides are":    func(p *store.Parcel) error { return planted(filepath.Dir(p.LockDir())) },
	} {
		t.Run(what, func(t *testing.T) {
			s, place, tree, before := newRealm(t), memPlace(t), memPlace(t), memPlace(t)
			p := newParcel(t, s, "alice", "lost")
			newParcel(t, s, "bob", "whole") // shares no object
			commit(t, p, "", map[int64]string{1: "one"})
			mirrored(t, s, before, mirror.Options{})
			had := files(t, before.String())
			if err := lose(p); err != nil {
				t.Fatal(err)
			}
			for range 2 {
				warnings, warn := newWarnings()
				res, err := Make(ctx, s, place, Options{Warn: warn})
				if err != nil || (res.Lost == 1) == (len(res.Snapshot.Lacks) > 0) || len(*warnings) == 0 {
					t.Fatalf("backup: %+v, %v, warned %q", res, err, *warnings)
				}
				warnings, warn = newWarnings()
				pass, err := mirror.Pass(ctx, s, tree, mirror.Options{Delete: true, Warn: warn})
				if err != nil || (pass.Lost == 1) == (len(pass.Lacks) > 0) || len(*warnings) == 0 {
					t.Fatalf("mirror: %+v, %v, warned %q", pass, err, *warnings)
				}
			}
			n, _, err := Restore(ctx, filepath.Join(targettest.MemDir(t), "new"), place, RestoreOptions{Warn: func(string) {}})
			if err != nil {
				t.Fatal(err)
			}
			standby, err := store.Open(tree.String())
			if err != nil {
				t.Fatal(err)
			}
			for _, s := range []*store.Store{n, standby} {
				if sum, err := check.Run(ctx, s, check.Options{User: "bob", Content: true}, func(check.Problem) {}); err != nil || sum.Parcels != 1 || sum.Errors > 0 {
					t.Errorf("%s: %+v, %v", s.Root(), sum, err)
				}
			}
			if _, err := mirror.Pass(ctx, s, before, mirror.Options{Delete: true, Warn: func(string) {}}); err != nil {
				t.Fatal(err)
			}
			has := files(t, before.String())
			for name := range had {
				if _, ok := has[name]; !ok {
					t.Errorf("%s: is gone from the mirror", name)
				}
			}
		})
	}
}

// spoil replaces an object of a parcel, and of no other that shares it.
func spoil(t testing.TB, path string, content []byte) {
	t.Helper()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, content, 0o400); err != nil {
		t.Fatal(err)
	}
}

// broken has breaks make an object of a parcel another, and of no other parcel
// that shares it.
func broken(t testing.TB, path string, breaks func(path string) error) {
	t.Helper()
	spoil(t, path, read(t, path))
	if err := breaks(path); err != nil {
		t.Fatal(err)
	}
}

// An object that is broken in one parcel is had from another, or was sent while
// it was whole: the newest snapshot has it, and it does not go with the others.
func TestBrokenHere(t *testing.T) {
	for name, breaks := range map[string]func(path string) error{
		"empty": func(path string) error { return os.Truncate(path, 0) },
		"short": func(path string) error { return os.Truncate(path, 10) },
		"long":  func(path string) error { return os.Truncate(path, target.MaxObject+1) },
		"other": func(path string) error { return os.WriteFile(path, random(100), 0o400) },
	} {
		t.Run(name, func(t *testing.T) {
			s, place := newRealm(t), memPlace(t)
			p := newParcel(t, s, "alice", "alone")
			commit(t, p, "", map[int64]string{1: "one", 2: "two"})
			make_(t, s, place)
			for _, path := range globbed(t, filepath.Join(p.ContentDir(), "hdk/*/*")) {
				broken(t, path, breaks)
			}
			q := newParcel(t, s, "alice", "another")
			commit(t, q, "", map[int64]string{3: "three"})
			if _, err := s.Copy(ctx, "alice", "another", "bob", "shared"); err != nil {
				t.Fatal(err)
			}
			shared := 0
			for _, path := range globbed(t, filepath.Join(q.ContentDir(), "hdk/*/*")) {
				if _, err := os.Stat(strings.Replace(path, "alice/isr/another", "bob/isr/shared", 1)); err == nil {
					broken(t, path, breaks)
					shared++
				}
			}
			res, err := Make(ctx, s, place, Options{Warn: func(string) {}})
			if err != nil || shared == 0 || res.Damaged < shared || len(res.Snapshot.Lacks) > 0 {
				t.Fatalf("%+v, %v, of %d shared", res, err, shared)
			}
			ids, err := snapshot.IDs(ctx, place)
			if err != nil || len(ids) != 2 {
				t.Fatal(ids, err)
			}
			if _, err := Prune(ctx, place, ids[:1], nil); err != nil {
				t.Fatal(err)
			}
			if v, err := Verify(ctx, place, VerifyOptions{Sample: 1, Problem: func(text string) { t.Error(text) }}); err != nil || v.Errors > 0 {
				t.Errorf("%+v, %v", v, err)
			}
			wantSound(t, restored(t, place, RestoreOptions{}), true)
		})
	}
}

func globbed(t testing.TB, pattern string) []string {
	t.Helper()
	found, err := filepath.Glob(pattern)
	if err != nil || len(found) == 0 {
		t.Fatal(pattern, err)
	}
	return found
}

func read(t testing.TB, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// What people and programs leave beside the files of a realm is left out, and
// keeps nothing from being restored.
func TestStrayFiles(t *testing.T) {
	s, place := newRealm(t), memPlace(t)
	populate(t, s)
	for _, name := range []string{".viminfo", "hooks/a\\b", "hooks/a\nb", "log/x\x1b", "motd\n", "users/alice/isr\n", "users/alice/.profile", "users/stray",
		"users/alice/.isr/stray", "users/alice/.isr/winxp/.parcel.cfg.swp", "users/alice/.isr/winxp/parcel.cfg~", "users/alice/.isr/winxp/keys/000001~",
		"users/alice/.isr/winxp/keys/a", "users/alice/.isr/winxp/more/x"} {
		path := filepath.Join(s.Root(), name)
		os.MkdirAll(filepath.Dir(path), 0o700)
		if err := os.WriteFile(path, []byte("stray"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	warnings, warn := newWarnings()
	if _, err := Make(ctx, s, place, Options{Warn: warn}); err != nil || len(*warnings) != 9 {
		t.Errorf("%q, %v; want 9 warnings", *warnings, err)
	}
	n := restored(t, place, RestoreOptions{})
	for name, content := range files(t, n.Root()) {
		if strings.Contains(content, "stray") {
			t.Errorf("%q: restored", name)
		}
	}
	wantSound(t, n, true)
	if names, err := n.Parcels("alice"); err != nil || len(names) != 1 {
		t.Errorf("parcels: %v, %v", names, err)
	}
	// A mirror is no realm with strays in it, either.
	dir := filepath.Join(targettest.MemDir(t), "mirror")
	standby, err := target.OpenDir(dir, true)
	if err != nil {
		t.Fatal(err)
	}
	defer standby.Close()
	if _, err := mirror.Pass(ctx, s, standby, mirror.Options{Warn: warn}); err != nil {
		t.Fatal(err)
	}
	for name, content := range files(t, dir) {
		if strings.Contains(content, "stray") {
			t.Errorf("%q: mirrored", name)
		}
	}
}

// A place has one realm; a restore wants an empty one.
func TestRefusals(t *testing.T) {
	s, place := newRealm(t), memPlace(t)
	if _, _, err := snapshot.Load(ctx, place, ""); !errors.Is(err, parcel.ErrNoVersion) {
		t.Errorf("no backup: %v", err)
	}
	make_(t, s, place)
	other, err := store.Init(filepath.Join(targettest.MemDir(t), "root"), "other")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Make(ctx, other, place, Options{}); !errors.Is(err, parcel.ErrConflict) {
		t.Errorf("another realm's place: %v", err)
	}
	if _, _, err := Restore(ctx, s.Root(), place, RestoreOptions{}); !errors.Is(err, parcel.ErrExists) {
		t.Errorf("restore over a realm: %v", err)
	}
	dir := targettest.MemDir(t)
	if err := os.WriteFile(filepath.Join(dir, "precious"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := Restore(ctx, dir, place, RestoreOptions{}); !errors.Is(err, parcel.ErrExists) {
		t.Errorf("restore beside others' files: %v", err)
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 1 {
		t.Errorf("it left %v", entries)
	}
	for _, id := range []string{"x", "../../etc/passwd", "20261126T140311Z-0a1b2c3d/..", "20261126T140311Z-0a1b2c3d\n"} {
		if _, _, err := Restore(ctx, filepath.Join(dir, "new"), place, RestoreOptions{Snapshot: id}); !errors.Is(err, parcel.ErrUsage) {
			t.Errorf("snapshot %q: %v", id, err)
		}
	}
	if _, _, err := Restore(ctx, filepath.Join(dir, "new"), place, RestoreOptions{Snapshot: "20261126T140311Z-0a1b2c3d"}); !errors.Is(err, parcel.ErrNoVersion) {
		t.Errorf("no such snapshot: %v", err)
	}
	unlock, err := Lock(s)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Lock(s); !errors.Is(err, parcel.ErrBusy) {
		t.Errorf("a second run: %v", err)
	}
	unlock()
	if unlock, err = Lock(s); err != nil {
		t.Error(err)
	} else {
		unlock()
	}
}

// Prune keeps what the rules keep, whole, and nothing else.
func TestPrune(t *testing.T) {
	s, place := newRealm(t), memPlace(t)
	p := newParcel(t, s, "alice", "winxp")
	var ids []string
	for i := range 4 {
		ids = append(ids, make_(t, s, place).Snapshot.ID)
		v := commit(t, p, "", map[int64]string{1: fmt.Sprint("version ", i)})
		if v > 2 {
			forget(t, p, v-1)
		}
	}
	plan, err := PlanPrune(ctx, place, keep.Rules{Last: 2})
	if err != nil || !slices.Equal(plan.Remove, ids[:2]) || len(plan.Keep) != 2 {
		t.Fatalf("%+v, %v", plan, err)
	}
	before := len(targettest.List(t, place, objectsDir))
	res, err := Prune(ctx, place, plan.Remove, nil)
	if err != nil || res.Snapshots != 2 || res.Objects == 0 || before-len(targettest.List(t, place, objectsDir)) != int(res.Objects) {
		t.Errorf("%+v, %v", res, err)
	}
	v, err := Verify(ctx, place, VerifyOptions{Sample: 1, Problem: func(text string) { t.Error(text) }})
	if err != nil || v.Snapshots != 2 || v.Spare != 0 {
		t.Errorf("after: %+v, %v", v, err)
	}
	if l := targettest.List(t, place, snapshot.Dir); len(l) != 4 {
		t.Errorf("left: %v", l)
	}
	// A list that cannot be read keeps every object.
	if err := place.Put(ctx, snapshot.Name(ids[2]), []byte("nonsense")); err != nil || place.Sync(ctx) != nil {
		t.Fatal(err)
	}
	before = len(targettest.List(t, place, objectsDir))
	if _, err := Prune(ctx, place, nil, nil); !errors.Is(err, parcel.ErrDamaged) || len(targettest.List(t, place, objectsDir)) != before {
		t.Errorf("beside a damaged list: %v", err)
	}
}

// Rules count snapshots from the newest, which stays whatever they say.
func TestPlanPrune(t *testing.T) {
	place := memPlace(t)
	for _, id := range []string{"20250101T000000Z-aaaaaaaa", "20251231T235959Z-bbbbbbbb", "20260101T000000Z-cccccccc", "20260102T010000Z-dddddddd"} {
		if err := place.Put(ctx, snapshot.Name(id), []byte("a list")); err != nil || place.Sync(ctx) != nil {
			t.Fatal(err)
		}
	}
	for want, rules := range map[string]keep.Rules{"cd": {Last: 2}, "bd": {Yearly: 2}, "bcd": {Daily: 3}, "d": {}} {
		plan, err := PlanPrune(ctx, place, rules)
		if err != nil {
			t.Fatal(err)
		}
		got := ""
		for _, k := range plan.Keep {
			got += k.ID[len(k.ID)-1:]
		}
		if got != want || len(plan.Keep)+len(plan.Remove) != 4 {
			t.Errorf("%+v: keeps %s, want %s", rules, got, want)
		}
	}
	if _, err := PlanPrune(ctx, place, keep.Rules{Last: -1}); !errors.Is(err, parcel.ErrUsage) {
		t.Errorf("a number below none: %v", err)
	}
}

// Objects are listed once for all parcels that have the same, however many.
func TestSets(t *testing.T) {
	in := realm.Objects{IDs: make(map[seal.Tag]uint32)}
	for i := range 4 {
		in.Tags, in.Size = append(in.Tags, tagOf([]byte{byte(i)})), append(in.Size, int64(i+1))
	}
	sets := snapshot.SetsOf(&in, [][]uint32{{0, 1}, {1, 0, 2}, {3}, {}})
	got := make(map[string]int)
	for _, s := range sets {
		got[fmt.Sprint(s.Parcels)] = len(s.Objects)
	}
	if !maps.Equal(got, map[string]int{"[0 1]": 2, "[1]": 1, "[2]": 1}) {
		t.Errorf("got %v", got)
	}
}

// The recipes of isr-store(5), as it has them, copy a realm while users commit:
// all that was committed before is there, and every version is whole.
func TestByHand(t *testing.T) {
	sshdtest.Require(t, "rsync", "tar")
	page, err := os.ReadFile("../../man/isr-store.5")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ name, begins, after string }{
		{"rsync", "rsync -amH", ""},
		{"rsync again", "rsync -amH", ""},
		{"tar", "cd ROOT &&\nfind users -name parcel.cfg", "cd BACKUP && tar -xf heads.tar && tar -xf rest.tar && rm *.tar"},
		{"sums", "cd TARGET && zcat", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, recipe, ok := strings.Cut(string(page), "\n"+c.begins)
			recipe, _, end := strings.Cut(c.begins+recipe, "\n.Ed")
			if !ok || !end {
				t.Fatalf("isr-store(5) has no lines that begin with %q", c.begins)
			}
			s := newRealm(t)
			copied := filepath.Join(targettest.MemDir(t), "copy")
			if err := os.Mkdir(copied, 0o700); err != nil {
				t.Fatal(err)
			}
			populate(t, s)
			var snapshot string
			if c.name == "sums" {
				snapshot = make_(t, s, openDir(t, copied)).Snapshot.ID
			}
			run := func(script string) (string, error) {
				script = strings.NewReplacer("\\e\n", "\\\n", "ROOT", s.Root(), "BACKUP", copied, "TARGET", copied,
					"20261126T140311Z-0a1b2c3d", snapshot).Replace(script)
				out, err := exec.Command("sh", "-c", script).CombinedOutput()
				return string(out), err
			}
			if c.name == "sums" {
				if out, err := run(recipe); err != nil || out != "" {
					t.Errorf("%v\n%s", err, out)
				}
				flip(t, openDir(t, copied))
				if out, err := run(recipe); err == nil {
					t.Errorf("a damaged object: no error\n%s", out)
				}
				return
			}
			if c.name == "rsync again" {
				if out, err := run(recipe); err != nil {
					t.Fatalf("%v\n%s", err, out)
				}
			}
			p := newParcel(t, s, "alice", "busy")
			commit(t, p, "", map[int64]string{1: "before"})
			stop := make(chan struct{})
			var wg sync.WaitGroup
			wg.Go(func() {
				for n := 0; ; n++ {
					select {
					case <-stop:
						return
					default:
					}
					if _, err := tryCommit(p, "", map[int64]string{int64(n % 5): fmt.Sprint("meanwhile ", n)}); err != nil {
						t.Error(err)
						return
					}
				}
			})
			out, err := run(recipe)
			close(stop)
			wg.Wait()
			// tar's own status 1, which the page explains.
			if exit := new(exec.ExitError); err != nil && !(c.name == "tar" && errors.As(err, &exit) && exit.ExitCode() == 1 &&
				strings.Count(out, "\n") == strings.Count(out, "file changed as we read it\n")) {
				t.Fatalf("%v\n%s", err, out)
			}
			if out, err := run(c.after); err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			n, err := store.Open(copied)
			if err != nil {
				t.Fatal(err)
			}
			wantSound(t, n, true)
			if vs := mustVersions(t, n, "alice", "busy"); len(vs) < 2 {
				t.Errorf("%d versions", len(vs))
			}
			if got := chunk(t, mustParcel(t, n, "alice", "busy"), 2, 1); got != "before" {
				t.Errorf("version 2: %q", got)
			}
			if l, err := mustParcel(t, n, "alice", "winxp").Holder(); l != nil || err != nil {
				t.Errorf("holder: %v, %v", l, err)
			}
		})
	}
}

// flip damages some object of a backup.
func flip(t *testing.T, d *target.Dir) {
	t.Helper()
	e := targettest.List(t, d, objectsDir)[0]
	path := filepath.Join(d.String(), e.Name)
	if err := os.Chmod(path, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, random(int(e.Size)), 0o600); err != nil {
		t.Fatal(err)
	}
}
