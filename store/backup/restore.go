package backup

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"filippo.io/age"
	"golang.org/x/sys/unix"

	"isr/store"
	"isr/store/atomicfile"
	"isr/store/backup/realm"
	"isr/store/backup/snapshot"
	"isr/store/backup/target"
	"isr/store/parcel"
	"isr/store/seal"
)

// RestoreOptions say what is restored, and how.
type RestoreOptions struct {
	Snapshot   string         // "": the newest
	Identities []age.Identity // to open sealed lock sides
	Free       bool           // nobody holds what is restored; else who held it then
	User       string         // only her parcels; "": all
	Parcel     string         // only this one of them; "": all
	As         string         // name of the parcel restored, if not its own
	Warn       func(text string)
	Progress   Progress
}

// Restored is what a restore did.
type Restored struct {
	Snapshot *snapshot.Snapshot
	Parcels  int
	Fetched  int64 // objects
	Bytes    int64 // of them
	Kept     int64 // objects that were there, from an earlier run or in other parcels
	Lacking  int   // objects that the backup has not, or not whole
	Failed   int   // parcels that could not be restored
}

// step is called, by several at once, before each step that changes a realm, for
// tests that kill the process there.
var step = func(name string) {}

// poolPrefix and a snapshot's ID name the directory where a restore gathers
// objects; it is there until the restore is done.
const poolPrefix = atomicfile.TempPrefix + "restore-"

// restorer is a restore at work.
type restorer struct {
	t    target.Target
	o    RestoreOptions
	s    *store.Store
	pool string
	snap *snapshot.Snapshot
	sets []snapshot.Set
	recs *snapshot.Records
	res  Restored
}

// open reads a snapshot, and verifies all of it but the objects.
func open(ctx context.Context, t target.Target, o RestoreOptions, root string) (*restorer, error) {
	if o.Warn == nil {
		o.Warn = func(string) {}
	}
	r := &restorer{t: t, o: o}
	var err error
	if r.snap, r.sets, err = snapshot.Load(ctx, t, o.Snapshot); err != nil {
		return nil, err
	}
	r.res.Snapshot = r.snap
	r.pool = filepath.Join(root, poolPrefix+r.snap.ID)
	return r, nil
}

// records reads the snapshot's archive.
func (r *restorer) records(ctx context.Context) error {
	f, err := spool()
	if err != nil {
		return err
	}
	defer f.Close()
	if err := fetchRecords(ctx, r.t, r.snap, f); err != nil {
		return err
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return err
	}
	files, err := snapshot.ReadArchive(f, r.snap.Sealed, r.o.Identities)
	if err != nil {
		return snapshot.Damaged(r.snap.ID, err)
	}
	if r.recs, err = snapshot.Sort(files); err != nil {
		return snapshot.Damaged(r.snap.ID, err)
	}
	return nil
}

// fetchRecords gets the archive of a snapshot, and verifies it.
func fetchRecords(ctx context.Context, t target.Target, s *snapshot.Snapshot, w io.Writer) error {
	in, err := t.Get(ctx, s.Records.Name)
	if errors.Is(err, fs.ErrNotExist) {
		return parcel.NewError(parcel.Damaged, "snapshot %s: its archive of lock sides is missing", s.ID)
	}
	if err != nil {
		return err
	}
	defer in.Close()
	sum := sha256.New()
	n, err := io.Copy(io.MultiWriter(w, sum), io.LimitReader(in, s.Records.Size+1))
	if err != nil {
		return err
	}
	if n != s.Records.Size || hex.EncodeToString(sum.Sum(nil)) != s.Sum {
		return parcel.NewError(parcel.Damaged, "snapshot %s: its archive of lock sides does not match its sum", s.ID).
			WithHint("restore an older one: --snapshot")
	}
	return nil
}

// Restore makes the realm of a snapshot in the directory root, which is empty
// or not there, or where the same was begun before: then it goes on. The realm
// is there when all of it is.
func Restore(ctx context.Context, root string, t target.Target, o RestoreOptions) (*store.Store, *Restored, error) {
	root, err := filepath.Abs(root)
	if err != nil {
		return nil, nil, err
	}
	if o.User != "" {
		return nil, nil, parcel.NewError(parcel.Usage, "restore of one user's parcels: want a realm to put them in")
	}
	r, err := open(ctx, t, o, root)
	if err != nil {
		return nil, nil, err
	}
	done, err := r.begin(root)
	if err != nil {
		return nil, nil, err
	}
	if err := r.records(ctx); err != nil {
		return nil, nil, err
	}
	cfg := slices.IndexFunc(r.recs.Root, func(f realm.File) bool { return f.Name == "realm.cfg" })
	if cfg < 0 {
		return nil, nil, parcel.NewError(parcel.Damaged, "snapshot %s: realm.cfg is missing", r.snap.ID)
	}
	if done {
		r.s, err = store.Open(root)
		if err == nil {
			err = os.RemoveAll(r.pool)
		}
		return r.s, &r.res, err
	}
	if r.s, err = store.Assemble(root, r.recs.Root[cfg].Data); err != nil {
		return nil, nil, snapshot.Damaged(r.snap.ID, err)
	}
	for user, files := range r.recs.Users {
		if err := r.s.AdoptUser(user, files); err != nil && !errors.Is(err, parcel.ErrExists) {
			return nil, nil, err
		}
	}
	if err := r.parcels(ctx, r.wanted()); err != nil {
		return nil, nil, err
	}
	if err := r.rootFiles(root); err != nil {
		return nil, nil, err
	}
	step("publish")
	if err := r.s.Publish(r.recs.Root[cfg].Data); err != nil {
		return nil, nil, err
	}
	step("clear")
	return r.s, &r.res, os.RemoveAll(r.pool)
}

// begin refuses a root where something else is. It reports whether there is
// nothing left to do but to clear up.
func (r *restorer) begin(root string) (done bool, err error) {
	entries, err := os.ReadDir(root)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	begun := slices.ContainsFunc(entries, func(e fs.DirEntry) bool { return e.Name() == filepath.Base(r.pool) && e.IsDir() })
	if len(entries) > 0 && !begun {
		what := "is not empty"
		for _, e := range entries {
			if id, ok := strings.CutPrefix(e.Name(), poolPrefix); ok {
				what = "has an unfinished restore of snapshot " + parcel.Clean(id)
			}
		}
		return false, parcel.NewError(parcel.Exists, "%s: %s", root, what).
			WithHint("restore into an empty directory; or one parcel into a realm: restore TARGET USER PARCEL --as NAME")
	}
	if !begun {
		if err := os.MkdirAll(root, 0o700); err != nil {
			return false, err
		}
		if err := os.Mkdir(r.pool, 0o700); err != nil {
			return false, err
		}
	}
	_, err = os.Lstat(filepath.Join(root, "realm.cfg"))
	return err == nil, nil
}

// RestoreInto restores what o names into a realm that is in use. What is there
// already is not touched: parcel.ErrExists.
func RestoreInto(ctx context.Context, s *store.Store, t target.Target, o RestoreOptions) (*Restored, error) {
	if o.As != "" && o.Parcel == "" {
		return nil, parcel.NewError(parcel.Usage, "--as: want the parcel that is to have another name")
	}
	r, err := open(ctx, t, o, s.Root())
	if err != nil {
		return nil, err
	}
	r.s = s
	wanted := r.wanted()
	if len(wanted) == 0 {
		return nil, parcel.NewError(parcel.NoParcel, "snapshot %s: has no parcel %s", r.snap.ID, strings.Trim(o.User+"/"+o.Parcel, "/"))
	}
	for _, n := range wanted {
		e := r.snap.Parcels[n]
		if _, err := s.Parcel(e.User, cmp.Or(o.As, e.Name)); err == nil {
			return nil, parcel.NewError(parcel.Exists, "parcel %s/%s: exists", e.User, cmp.Or(o.As, e.Name)).
				WithHint("--as gives the one from the backup another name")
		}
	}
	if err := os.Mkdir(r.pool, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	if err := r.records(ctx); err != nil {
		return nil, err
	}
	if _, _, err := s.UserDirs(o.User); errors.Is(err, parcel.ErrNoParcel) {
		if err := s.AdoptUser(o.User, r.recs.Users[o.User]); err != nil {
			return nil, err
		}
	}
	if err := r.parcels(ctx, wanted); err != nil {
		return nil, err
	}
	return &r.res, os.RemoveAll(r.pool)
}

// wanted are the numbers of the parcels that are to be restored.
func (r *restorer) wanted() []int {
	var numbers []int
	for n, e := range r.snap.Parcels {
		if (r.o.User == "" || e.User == r.o.User) && (r.o.Parcel == "" || e.Name == r.o.Parcel) {
			numbers = append(numbers, n)
		}
	}
	return numbers
}

// parcels gathers the objects of all parcels, then makes each. One that is
// there is from an earlier run.
func (r *restorer) parcels(ctx context.Context, numbers []int) error {
	todo := make(map[int]bool)
	for _, l := range r.snap.Lacks {
		if slices.ContainsFunc(numbers, func(n int) bool { e := r.snap.Parcels[n]; return e.User == l.User && e.Name == l.Name }) {
			r.o.Warn(l.String() + ", as it did in the realm")
			r.res.Lacking += int(l.Objects)
		}
	}
	for _, n := range numbers {
		e := r.snap.Parcels[n]
		if _, err := r.s.Parcel(e.User, cmp.Or(r.o.As, e.Name)); err != nil {
			todo[n] = true
		} else {
			r.res.Parcels++
		}
	}
	if err := r.gather(ctx, todo); err != nil {
		return err
	}
	for _, n := range numbers {
		if !todo[n] {
			continue
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		err := r.adopt(ctx, n)
		if errors.Is(err, parcel.ErrDamaged) {
			e := r.snap.Parcels[n]
			r.o.Warn(fmt.Sprintf("%s/%s: %s: not restored", e.User, e.Name, parcel.Clean(err.Error())))
			r.res.Failed++
			continue
		}
		if err != nil {
			return err
		}
		r.res.Parcels++
	}
	return nil
}

// gather puts every object that the parcels todo need into the pool.
func (r *restorer) gather(ctx context.Context, todo map[int]bool) error {
	type want struct {
		snapshot.Object
		parcels []int
	}
	var wants []want
	var total, done int64
	for _, s := range r.sets {
		if slices.ContainsFunc(s.Parcels, func(n int) bool { return todo[n] }) {
			for _, o := range s.Objects {
				wants = append(wants, want{o, s.Parcels})
				total += o.Size
			}
		}
	}
	for _, dir := range hexPairs() {
		if err := os.Mkdir(filepath.Join(r.pool, dir), 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	var mu sync.Mutex
	return target.Parallel(ctx, r.t.Width(), wants, func(ctx context.Context, w want) error {
		fetched, err := r.gatherOne(ctx, w.Object, w.parcels)
		mu.Lock()
		defer mu.Unlock()
		done += w.Size
		switch {
		case errors.Is(err, parcel.ErrNoObject) || errors.Is(err, parcel.ErrDamaged):
			r.res.Lacking++
			r.o.Warn(parcel.Clean(err.Error()))
		case err != nil:
			return err
		case fetched:
			r.res.Fetched, r.res.Bytes = r.res.Fetched+1, r.res.Bytes+w.Size
		default:
			r.res.Kept++
		}
		if r.o.Progress != nil {
			r.o.Progress(done, total)
		}
		return nil
	})
}

// hexPairs are 00 to ff.
func hexPairs() []string {
	pairs := make([]string, 256)
	for i := range pairs {
		pairs[i] = fmt.Sprintf("%02x", i)
	}
	return pairs
}

func (r *restorer) pooled(tag seal.Tag) string {
	name := tag.String()
	return filepath.Join(r.pool, name[:2], name)
}

// gatherOne puts one object into the pool: it may be there, or in a parcel of
// the realm, or it comes from the backup.
func (r *restorer) gatherOne(ctx context.Context, o snapshot.Object, parcels []int) (fetched bool, err error) {
	path := r.pooled(o.Tag)
	if wholeFile(path, o.Tag) {
		return false, nil
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	name := o.Tag.String()
	for _, n := range parcels {
		e := r.snap.Parcels[n]
		p, err := r.s.Parcel(e.User, e.Name)
		if err != nil {
			continue
		}
		there := filepath.Join(p.ContentDir(), "hdk", name[:2], name)
		if wholeFile(there, o.Tag) && os.Link(there, path) == nil {
			return false, nil
		}
	}
	b, err := getObject(ctx, r.t, o.Tag)
	if err != nil {
		return false, err
	}
	temp := filepath.Join(filepath.Dir(path), atomicfile.TempPrefix+name)
	os.Remove(temp)
	step("pool")
	if err := os.WriteFile(temp, b, 0o400); err != nil {
		return false, err
	}
	return true, os.Rename(temp, path)
}

// wholeFile reports whether path is the object tag.
func wholeFile(path string, tag seal.Tag) bool {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return false
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil || !fi.Mode().IsRegular() || fi.Size() > target.MaxObject {
		return false
	}
	h := tag.NewHash()
	_, err = io.Copy(h, f)
	return err == nil && seal.Tag(h.Sum(nil)) == tag
}

// adopt makes one parcel of what is in the pool.
func (r *restorer) adopt(ctx context.Context, n int) error {
	e := r.snap.Parcels[n]
	key := [2]string{e.User, e.Name}
	a := store.Adoption{Files: make(map[string][]byte), Another: r.o.As != "" && r.o.As != e.Name}
	for _, f := range r.recs.Parcels[key] {
		if f.Name != "nonce" || !r.o.Free {
			a.Files[f.Name] = f.Data
		}
	}
	a.Objects = func(ctx context.Context, add func(tag seal.Tag, file string) error) error {
		for _, s := range r.sets {
			if !slices.Contains(s.Parcels, n) {
				continue
			}
			for _, o := range s.Objects {
				path := r.pooled(o.Tag)
				if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
					continue // lacking, as was said
				}
				if err := add(o.Tag, path); err != nil {
					return err
				}
			}
			if err := ctx.Err(); err != nil {
				return err
			}
		}
		return nil
	}
	p, err := r.s.Adopt(ctx, e.User, cmp.Or(r.o.As, e.Name), a)
	if err != nil {
		return err
	}
	if contact, ok := r.recs.Nonce[key]; ok {
		os.Chtimes(filepath.Join(p.LockDir(), "nonce"), contact, contact)
	}
	return nil
}

// rootFiles writes what is beside the users, but realm.cfg, which comes last.
// Links come after all files, and nothing is below one: what an earlier run
// made is not written through either.
func (r *restorer) rootFiles(root string) error {
	dir, err := os.OpenRoot(root)
	if err != nil {
		return err
	}
	defer dir.Close()
	for _, links := range []bool{false, true} {
		for _, f := range r.recs.Root {
			if f.Name == "realm.cfg" || f.IsLink() != links {
				continue
			}
			if err := r.rootFile(dir, f); err != nil {
				return err
			}
		}
	}
	for _, f := range r.recs.Root {
		if !f.IsLink() {
			continue
		}
		if _, err := os.Stat(filepath.Join(root, f.Name)); errors.Is(err, fs.ErrNotExist) {
			r.o.Warn(fmt.Sprintf("%s: leads to %s, which is not here", f.Name, f.Data))
		}
	}
	return nil
}

func (r *restorer) rootFile(dir *os.Root, f realm.File) error {
	if err := dir.MkdirAll(filepath.Dir(f.Name), 0o700); err != nil {
		return err
	}
	step("file")
	// A link left there is not written through.
	if err := dir.Remove(f.Name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if f.IsLink() {
		return dir.Symlink(string(f.Data), f.Name)
	}
	mode := fs.FileMode(0o600)
	if realm.LinkPlace(f.Name) {
		mode = f.Mode & 0o700
	}
	w, err := dir.OpenFile(f.Name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	_, err = w.Write(f.Data)
	if cerr := w.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	dir.Chtimes(f.Name, f.Time, f.Time)
	return nil
}
