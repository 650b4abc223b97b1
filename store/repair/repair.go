// Package repair puts back what is missing or damaged in a realm's tree, from
// wherever it can be had: another parcel of the realm, a replica, a client's
// hoard, a directory of objects.
//
// It believes nothing that a tag does not prove, and replaces nothing that is
// good. Parcels may be in use meanwhile. What a lost keyroot led to it cannot
// bring back, but from a replica that has the keyroot.
package repair

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"isr/store"
	"isr/store/atomicfile"
	"isr/store/check"
	"isr/store/parcel"
	"isr/store/seal"
	"isr/store/tree"
)

// Options choose what is mended, and from where.
type Options struct {
	User, Parcel string   // empty: all
	From         []string // directories, asked in this order, after the realm itself
	DryRun       bool     // change nothing, only say what would be
	// Discard is asked before damaged objects that nothing needs are removed;
	// nil: they are not.
	Discard  func(user, parcel string, n int) bool
	Progress func(done, total int64) // bytes read of what is there; may be nil
	Fetched  func(done, total int64) // objects asked for, of those that lack; may be nil
}

// Mending is one thing that was put right, or with DryRun would be.
type Mending struct {
	check.Problem        // what was wrong; Severity is Note
	From          string // the place it came from; "": it was made again, or removed
	Bytes         int64
}

// Summary says what was done, and what is left.
type Summary struct {
	Mended  int64         `json:"mended"`
	Bytes   int64         `json:"bytes"`
	Removed int64         `json:"removed"` // objects, damaged and needed by nothing
	Left    check.Summary `json:"left"`
}

// Run looks at all that o names, every byte of it, and puts back what is
// missing or damaged: objects from any place that has them, records of the
// lock side from a replica of the realm, and what is derived. It calls mended
// for each, and left for every problem that remains; the realm is sound if
// there is no error among those.
//
// An object is taken for what its tag proves, a record only where there is
// none that can be read and of a parcel with the same UUID. Nothing good is
// replaced. Parcels may be in use; after a kill the next Run goes on.
func Run(ctx context.Context, s *store.Store, o Options, mended func(Mending), left func(check.Problem)) (Summary, error) {
	r := &repairer{store: s, opts: o, mended: mended, absent: make(map[seal.Tag]bool)}
	defer r.close()
	if err := r.settle(); err != nil {
		return r.sum, err
	}
	for _, dir := range append([]string{s.Root()}, o.From...) {
		p, err := openSupply(dir)
		if err != nil {
			return r.sum, err
		}
		r.places = append(r.places, p)
	}
	c := check.New(s, check.Options{User: o.User, Parcel: o.Parcel, Content: true, Progress: o.Progress})
	if o.Progress != nil {
		if err := c.Expect(); err != nil {
			return r.sum, err
		}
	}
	r.check, r.onTheWay = c, s.OnTheWay()
	if err := r.all(ctx); err != nil {
		return r.sum, err
	}
	// What was read once is not read again, so this costs little.
	c.Progress = nil
	var err error
	r.sum.Left, err = c.Run(ctx, left)
	return r.sum, errors.Join(r.failed, err)
}

type repairer struct {
	store    *store.Store
	opts     Options
	mended   func(Mending)
	places   []*supply // the first is the realm itself
	check    *check.Checker
	onTheWay map[string]bool   // content sides of parcels that are being renamed
	absent   map[seal.Tag]bool // no place has them
	failed   error             // why parcels could not be mended
	sum      Summary
}

func (r *repairer) close() {
	for _, p := range r.places {
		p.close()
	}
}

// settle finishes renames that were killed half-way: until then the two sides
// of a parcel have different names. One that cannot be finished is left alone.
func (r *repairer) settle() error {
	users, err := r.store.Users()
	if err != nil || r.opts.DryRun {
		return err
	}
	for _, name := range users {
		u := r.store.UserAt(name)
		names, err := tree.Subdirs(u.LockRoot)
		if err != nil {
			return err
		}
		for _, n := range names {
			if p := u.At(n); tree.Exists(filepath.Join(p.LockDir(), tree.RenameFile)) && parcel.CheckName(n) == nil {
				if _, err := r.store.Parcel(name, n); err != nil {
					r.failed = errors.Join(r.failed, err)
				}
			}
		}
	}
	return nil
}

func (r *repairer) all(ctx context.Context) error {
	users := []string{r.opts.User}
	if r.opts.User == "" {
		var err error
		if users, err = r.store.Users(); err != nil {
			return err
		}
	}
	var ps []*store.Parcel
	for _, name := range users {
		u, err := r.store.User(name)
		if err != nil {
			return err
		}
		names, err := anyParcels(u)
		if err != nil {
			return err
		}
		if only := r.opts.Parcel; only != "" {
			if err := parcel.CheckName(only); err != nil {
				return fmt.Errorf("parcel: %w", err)
			}
			if !slices.Contains(names, only) {
				return u.At(only).ErrAbsent()
			}
			names = []string{only}
		}
		for _, n := range names {
			if p := u.At(n); !tree.Exists(filepath.Join(p.LockDir(), tree.RenameFile)) && !r.onTheWay[p.ContentDir()] {
				ps = append(ps, p)
			}
		}
	}
	for _, p := range ps {
		err := r.parcel(ctx, p)
		switch {
		case err == nil:
		case errors.Is(err, parcel.ErrNoParcel) && r.opts.Parcel == "":
			// It was removed meanwhile.
		case ctx.Err() != nil || parcel.KindOf(err) == parcel.Full:
			return err
		default:
			// One that cannot be mended does not hold up the others.
			r.failed = errors.Join(r.failed, err)
		}
	}
	return nil
}

// anyParcels are the names of parcels of which at least one side is there.
func anyParcels(u store.User) ([]string, error) {
	names, err := tree.Subdirs(u.LockRoot)
	if err != nil {
		return nil, err
	}
	contents, err := tree.Subdirs(u.ContentRoot)
	names = append(names, contents...)
	slices.Sort(names)
	return slices.DeleteFunc(slices.Compact(names), func(n string) bool {
		return parcel.CheckName(n) != nil || u.At(n).Unfinished()
	}), err
}

// did counts and tells a mending.
func (r *repairer) did(p *store.Parcel, m Mending) {
	m.User, m.Parcel, m.Severity = p.User(), p.Name(), check.Note
	r.sum.Mended++
	r.sum.Bytes += m.Bytes
	r.mended(m)
}

// parcel mends one parcel: first what leads to the objects, then the objects,
// those of a tree from its top, then what is derived.
func (r *repairer) parcel(ctx context.Context, p *store.Parcel) error {
	if err := r.lockSide(p); err != nil || r.opts.DryRun && !readable(p) {
		return err
	}
	if !readable(p) {
		return nil // as the check at the end says
	}
	tried := make(map[seal.Tag]bool)
	for swept := 0; ; {
		var wanted []check.Problem
		err := r.check.Parcel(ctx, p, func(q check.Problem) {
			if q.Severity == check.Bad && q.Tag != "" && !tried[q.Tag] {
				tried[q.Tag] = true
				wanted = append(wanted, q)
			}
		})
		if err != nil {
			return err
		}
		before := r.sum.Mended
		done := int64(0)
		// Not all at once: what was put back stays, if we are killed.
		for batch := range slices.Chunk(wanted, batchSize) {
			err := r.objects(ctx, p, batch, func() {
				if done++; r.opts.Fetched != nil {
					r.opts.Fetched(done, int64(len(wanted)))
				}
			})
			if errors.Is(err, fs.ErrNotExist) && swept < 3 {
				// A release or a gc swept the staging area under us.
				swept++
				before = -1
				for _, q := range batch {
					delete(tried, q.Tag)
				}
			} else if err != nil {
				return err
			}
		}
		if r.opts.DryRun {
			return nil
		}
		// Below a block that was put back others may be missing.
		if r.sum.Mended == before {
			return r.derived(ctx, p)
		}
	}
}

// batchSize is how many objects become durable together.
const batchSize = 1024

// readable reports whether there is enough of a parcel to look at the rest.
func readable(p *store.Parcel) bool {
	if _, err := p.Config(); err != nil {
		return false
	}
	_, err := os.Lstat(p.ContentDir())
	return err == nil
}

// objects puts back the objects that problems name, as far as there are any to
// be had. It calls fetched for each, one at a time.
func (r *repairer) objects(ctx context.Context, p *store.Parcel, problems []check.Problem, fetched func()) error {
	in, err := r.installer(p)
	if err != nil {
		return p.Wrap(err)
	}
	defer in.close()
	var useless []seal.Tag
	var mu sync.Mutex
	err = tree.Parallel(ctx, 4, slices.All(problems), func(ctx context.Context, _ int, q check.Problem) error {
		mu.Lock()
		absent := r.absent[q.Tag]
		mu.Unlock()
		var size int64
		var from *supply
		if !absent {
			var err error
			if size, from, err = in.fetch(q.Tag); err != nil {
				return err
			}
		}
		mu.Lock()
		defer mu.Unlock()
		if fetched(); from != nil {
			in.ready = append(in.ready, Mending{Problem: q, From: from.name, Bytes: size})
			return nil
		}
		if r.absent[q.Tag] = true; q.Version == 0 {
			useless = append(useless, q.Tag)
		}
		return nil
	})
	if err != nil {
		return p.Wrap(err)
	}
	if !r.opts.DryRun {
		if err := in.install(); err != nil {
			return err
		}
	}
	slices.SortFunc(in.ready, func(a, b Mending) int { return strings.Compare(string(a.Tag), string(b.Tag)) })
	for _, m := range in.ready {
		r.did(p, m)
	}
	return r.discard(p, useless)
}

// discard removes objects that do not match their names and that no version
// needs: a later commit would take them for whole.
func (r *repairer) discard(p *store.Parcel, tags []seal.Tag) error {
	if len(tags) == 0 || r.opts.DryRun || r.opts.Discard == nil || !r.opts.Discard(p.User(), p.Name(), len(tags)) {
		return nil
	}
	return p.Exclusive(func() error {
		root, err := p.OpenContent()
		if err != nil {
			return err
		}
		defer root.Close()
		for _, tag := range tags {
			// A disk that cannot be read today may be read tomorrow.
			err := tree.VerifyObject(filepath.Join(p.HdkDir(), tree.ObjectName(tag)), tag)
			if !errors.Is(err, parcel.ErrDamaged) {
				continue
			}
			tree.Step("discard")
			if err := root.Remove(filepath.Join("hdk", tree.ObjectName(tag))); err != nil {
				return p.Wrap(err)
			}
			r.sum.Removed++
		}
		return nil
	})
}

// installer puts objects into one parcel. Through roots, so that no link which
// was planted in the tree leads it elsewhere.
type installer struct {
	r       *repairer
	p       *store.Parcel
	content *os.Root
	temp    string // directory in content for objects not yet in hdk
	ready   []Mending
}

func (r *repairer) installer(p *store.Parcel) (*installer, error) {
	if err := p.OwnDirs(); err != nil {
		return nil, err
	}
	root, err := p.OpenContent()
	if err != nil {
		return nil, err
	}
	in := &installer{r: r, p: p, content: root}
	if r.opts.DryRun {
		return in, nil
	}
	// In the staging area nobody else removes it, until the next release.
	in.temp = filepath.Join("staging", atomicfile.TempPrefix+parcel.NewID())
	for _, dir := range []string{"hdk", "staging", in.temp} {
		if err := root.Mkdir(dir, tree.DirMode); err != nil && !errors.Is(err, fs.ErrExist) {
			root.Close()
			return nil, err
		}
	}
	return in, nil
}

func (in *installer) close() {
	if in.temp != "" {
		in.content.RemoveAll(in.temp)
	}
	in.content.Close()
}

// fetch finds an object in a place, verified, and puts it in temp; from is nil
// if no place has it.
func (in *installer) fetch(tag seal.Tag) (size int64, from *supply, err error) {
	prefer := parcelHdk(in.p.User(), in.p.Name())
	for i, pl := range in.r.places {
		pl.find(tag, prefer, func(name string) bool {
			sealed, rerr := pl.read(name, tree.MaxObject)
			if rerr != nil || tag.Verify(sealed) != nil {
				return false
			}
			if !in.r.opts.DryRun && !(i == 0 && in.link(pl, name, tag)) {
				if err = in.write(tag, sealed); err != nil {
					return true
				}
			}
			size, from = int64(len(sealed)), pl
			return true
		})
		if from != nil || err != nil {
			return size, from, err
		}
	}
	return 0, nil, nil
}

// link has the parcel share an object with another of the realm.
func (in *installer) link(realm *supply, name string, tag seal.Tag) bool {
	to, ok := realm.within(filepath.Join(in.p.ContentDir(), in.temp, tag.String()))
	if !ok || realm.root.Link(name, to) != nil {
		return false
	}
	// What is linked is looked at once more: it is one file with the other.
	fi, err := realm.root.Lstat(to)
	if err == nil && fi.Mode() == tree.ObjectMode && fi.Sys().(*syscall.Stat_t).Uid == uint32(os.Geteuid()) {
		if sealed, err := realm.read(to, tree.MaxObject); err == nil && tag.Verify(sealed) == nil {
			return true
		}
	}
	realm.root.Remove(to)
	return false
}

// write puts an object in temp.
func (in *installer) write(tag seal.Tag, sealed []byte) error {
	f, err := in.content.OpenFile(filepath.Join(in.temp, tag.String()), os.O_WRONLY|os.O_CREATE|os.O_EXCL, tree.ObjectMode)
	if err != nil {
		return err
	}
	_, err = f.Write(sealed)
	// In a user's own directory it is the user's.
	if fi, serr := in.content.Stat("hdk"); serr == nil && err == nil && os.Geteuid() == 0 {
		st := fi.Sys().(*syscall.Stat_t)
		err = f.Chown(int(st.Uid), int(st.Gid))
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return err
}

// install moves what was fetched to hdk: durable first, then visible, as a
// commit does.
func (in *installer) install() error {
	if len(in.ready) == 0 {
		return nil
	}
	tree.Step("sync")
	if err := tree.Syncfs(in.p.ContentDir()); err != nil {
		return in.p.Wrap(err)
	}
	err := in.p.Exclusive(func() error {
		for _, m := range in.ready {
			tree.Step("install")
			from, to := filepath.Join(in.temp, m.Tag.String()), filepath.Join("hdk", tree.ObjectName(m.Tag))
			// What is in the way there is none of ours; a link itself is removed,
			// not what it leads to.
			if fi, err := in.content.Lstat(filepath.Dir(to)); err == nil && !fi.IsDir() {
				if err := in.content.Remove(filepath.Dir(to)); err != nil {
					return in.p.Wrap(err)
				}
			}
			if fi, err := in.content.Lstat(to); err == nil && !fi.Mode().IsRegular() {
				if err := in.content.RemoveAll(to); err != nil {
					return in.p.Wrap(err)
				}
			}
			err := in.content.Rename(from, to)
			if errors.Is(err, fs.ErrNotExist) {
				if err = in.content.MkdirAll(filepath.Dir(to), tree.DirMode); err == nil {
					err = in.content.Rename(from, to)
				}
			}
			if err != nil {
				return in.p.Wrap(err)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	tree.Step("sync names")
	return tree.Syncfs(in.p.ContentDir())
}

// lockSide puts back directories, parcel.cfg and the records of versions.
func (r *repairer) lockSide(p *store.Parcel) error {
	if err := p.OwnDirs(); err != nil {
		return err
	}
	var replica *parcel.Config
	var from *supply
	for _, pl := range r.places[1:] {
		if c, err := pl.config(p.User(), p.Name()); err == nil {
			replica, from = c, pl
			break
		}
	}
	if _, err := os.Lstat(p.LockDir()); errors.Is(err, fs.ErrNotExist) && replica == nil {
		return nil // nobody knows what the content is
	}
	if !r.opts.DryRun {
		for _, dir := range []string{filepath.Dir(p.LockDir()), p.LockDir(), filepath.Join(p.LockDir(), "keys"), filepath.Dir(p.ContentDir()), p.ContentDir(), p.HdkDir(), p.StagingDir(), filepath.Join(p.ContentDir(), "keys")} {
			tree.Step("mkdir")
			if err := os.Mkdir(dir, tree.DirMode); err != nil && !errors.Is(err, fs.ErrExist) {
				return p.Wrap(err)
			}
		}
		if err := p.Exclusive(func() error {
			if err := r.records(p, replica, from); err != nil {
				return err
			}
			return r.epoch(p)
		}); err != nil {
			return err
		}
		return private(p)
	}
	return r.records(p, replica, from)
}

// records puts back what of the lock side cannot be read. The caller has the
// flock.
func (r *repairer) records(p *store.Parcel, replica *parcel.Config, from *supply) error {
	recorded, err := p.Recorded()
	if err != nil && !r.opts.DryRun {
		return err
	}
	cfg, err := p.Config()
	if errors.Is(err, parcel.ErrNoParcel) || errors.Is(err, parcel.ErrDamaged) {
		if replica == nil || !agrees(p, from, recorded) {
			return nil
		}
		// What was committed since the replica was made has records here: the
		// head is not set back behind them.
		c := *replica
		c.Version = 0
		there := from.versions(p.User(), p.Name(), replica.Version)
		for _, v := range there {
			c.Version = max(c.Version, v)
		}
		for _, v := range recorded {
			if _, err := p.Record(v); err == nil {
				c.Version = max(c.Version, v)
			}
		}
		text, err := c.Encode()
		if err != nil {
			return p.Wrap(err)
		}
		// The records first: with parcel.cfg the parcel is there.
		if err := r.versions(p, c.Version, append(recorded, there...), from); err != nil {
			return err
		}
		if err := r.write(p, filepath.Join(p.LockDir(), tree.ConfigFile), text); err != nil {
			return err
		}
		r.did(p, Mending{Problem: check.Problem{Msg: "parcel.cfg was missing or damaged"}, From: from.name})
		return nil
	}
	if err != nil {
		return err
	}
	if replica == nil || replica.UUID != cfg.UUID {
		from = nil // none, or another parcel of that name
	}
	return r.versions(p, cfg.Version, recorded, from)
}

// agrees reports whether no record here contradicts one of the replica's: then
// that would be another parcel, of the same name.
func agrees(p *store.Parcel, from *supply, recorded []int) bool {
	for _, v := range recorded {
		here, err := p.Record(v)
		there, terr := from.version(p.User(), p.Name(), v)
		if err == nil && terr == nil && here.Keyroot != there.Keyroot {
			return false
		}
	}
	return true
}

// versions puts back the records of the versions in want, of those that have a
// directory, and of the head, where they cannot be read. Of others none is
// missing: versions may be removed.
func (r *repairer) versions(p *store.Parcel, head int, want []int, from *supply) error {
	entries, _ := os.ReadDir(p.ContentDir())
	for _, e := range entries {
		if v, ok := parcel.ParseVersionDir(e.Name()); ok {
			want = append(want, v)
		}
	}
	want = append(slices.Clone(want), head)
	slices.Sort(want)
	for _, v := range slices.Compact(want) {
		if _, err := p.Record(v); err == nil || v > head {
			continue
		}
		info, _ := p.Info(v)
		rec, place := rebuilt(p, v, info), ""
		if from != nil {
			if there, err := from.version(p.User(), p.Name(), v); err == nil {
				rec, place = there, from.name
			}
		}
		if rec == nil || info != nil && info.Get("KEYRING") != rec.Keyroot.Tag.String() {
			continue
		}
		text, err := rec.Encode()
		if err != nil {
			return p.Wrap(err)
		}
		if err := r.write(p, p.VersionFile(v), text); err != nil {
			return err
		}
		r.did(p, Mending{Problem: check.Problem{Version: v, Msg: "record of its keyroot was missing or damaged"}, From: place})
	}
	return nil
}

// epoch sees that the next acquisition's number is above all that were. The
// caller has the flock.
func (r *repairer) epoch(p *store.Parcel) error {
	now, err := p.Epoch()
	if err != nil && !errors.Is(err, parcel.ErrDamaged) {
		return err
	}
	least := int64(0)
	if l, lerr := p.Holder(); lerr == nil && l != nil {
		least = l.Epoch
	}
	if l, lerr := p.LastReleased(); lerr == nil && l != nil {
		least = max(least, l.Epoch)
	}
	recorded, _ := p.Recorded()
	for _, v := range recorded {
		if rec, verr := p.Record(v); verr == nil {
			least = max(least, rec.Epoch)
		}
	}
	if err == nil && now >= least {
		return nil
	}
	if err := r.write(p, filepath.Join(p.LockDir(), tree.EpochFile), fmt.Appendf(nil, "%d\n", least)); err != nil {
		return err
	}
	r.did(p, Mending{Problem: check.Problem{Msg: "epoch was missing or damaged"}})
	return nil
}

// rebuilt is the record of the head, made again of its info and the copy of
// its keyroot; nil if there is no such copy. The id of its commit is lost.
func rebuilt(p *store.Parcel, v int, info parcel.Record) *store.VersionRecord {
	text, err := tree.ReadOwn(filepath.Join(p.LockDir(), "keys", "keyroot"))
	if err != nil || info == nil {
		return nil
	}
	copied, err := parcel.ParseRecord(text)
	if err != nil || copied.Get("VERSION") != strconv.Itoa(v) {
		return nil
	}
	again := parcel.Record{{Key: "KEYROOT", Value: copied.Get("KEYROOT")}, {Key: "COMMIT", Value: parcel.NewID()}}
	for _, f := range info {
		switch f.Key {
		case "VERSION", "KEYRING", "CFG", "IMAGE":
		default:
			again = append(again, f)
		}
	}
	if text, err = again.Encode(); err != nil {
		return nil
	}
	rec, err := store.ParseVersion(text, v)
	if err != nil {
		return nil
	}
	return rec
}

// write writes a record.
func (r *repairer) write(p *store.Parcel, name string, text []byte) error {
	if r.opts.DryRun {
		return nil
	}
	tree.Step("record")
	if err := atomicfile.Write(name, text, tree.FileMode); err != nil {
		return p.Wrap(err)
	}
	return nil
}

// private takes from others what only the owner may read.
func private(p *store.Parcel) error {
	for dir, names := range map[string][]string{
		p.LockDir():    {".", "keys", tree.ConfigFile, tree.NonceFile, tree.HolderFile, tree.ReleasedFile, tree.EpochFile, tree.FlockFile},
		p.ContentDir(): {"."},
	} {
		root, err := os.OpenRoot(dir)
		if err != nil {
			return p.Wrap(err)
		}
		for _, name := range names {
			fi, err := root.Lstat(name)
			if err == nil && fi.Mode().Type()&^fs.ModeDir == 0 && fi.Mode().Perm()&0o077 != 0 {
				if err := root.Chmod(name, fi.Mode().Perm()&^0o077); err != nil {
					root.Close()
					return p.Wrap(err)
				}
			}
		}
		root.Close()
	}
	return nil
}

// derived makes again what follows from the rest.
func (r *repairer) derived(ctx context.Context, p *store.Parcel) error {
	err := p.Derive(ctx, func(v int) {
		r.did(p, Mending{Problem: check.Problem{Version: v, Msg: "directory was missing or wrong"}})
	})
	if errors.Is(err, parcel.ErrDamaged) || errors.Is(err, parcel.ErrNoVersion) || errors.Is(err, parcel.ErrNoParcel) {
		return nil // as the check at the end says
	}
	return err
}

// String is the mending on one line.
func (m Mending) String() string {
	where := ""
	if m.Version > 0 {
		where = fmt.Sprintf("version %d: ", m.Version)
	}
	from := ""
	if m.From != "" {
		from = " (from " + m.From + ")"
	}
	return fmt.Sprintf("%s/%s: %s%s%s", m.User, m.Parcel, where, m.Msg, from)
}
