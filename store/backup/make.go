package backup

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"filippo.io/age"
	"golang.org/x/sys/unix"

	"isr/store"
	"isr/store/backup/target"
	"isr/store/parcel"
	"isr/store/seal"
)

// Options say how a backup is made.
type Options struct {
	Recipients []age.Recipient // who can open the lock sides; none: whoever can read them
	Warn       func(text string)
	Progress   Progress
}

// Result is what a run did.
type Result struct {
	Snapshot *Snapshot
	Sent     int64 // objects
	Bytes    int64 // of them
	Damaged  int   // objects that are not whole here, or missing
}

// interned are the objects of a realm, each once: parcels share them by the
// thousand.
type interned struct {
	ids  map[seal.Tag]uint32
	tags []seal.Tag
	size []int64
	from []*store.Parcel // some parcel that has it
	bad  map[uint32]bool // not whole here
	gone map[uint32]bool // not there any more, when it was wanted
}

// intern is the number of an object, a new one if need be.
func (in *interned) intern(tag seal.Tag) uint32 {
	id, ok := in.ids[tag]
	if !ok {
		id = uint32(len(in.tags))
		in.ids[tag] = id
		in.tags, in.size, in.from = append(in.tags, tag), append(in.size, 0), append(in.from, nil)
	}
	return id
}

// one is a parcel as it is to be in the snapshot.
type one struct {
	p       *store.Parcel
	files   []file
	version int
	held    string
	objects []uint32
}

// run is a backup at work.
type run struct {
	s    *store.Store
	t    target.Target
	o    Options
	in   interned
	have map[seal.Tag]int64
	all  map[[2]string]*one
	last string // the newest snapshot that was there
	lack []Lack
	res  Result
}

// maxRounds bounds how often a parcel is read again because of what gc or
// prune took away meanwhile.
const maxRounds = 20

// Make makes a snapshot of the realm in t, and sends what t lacks. Parcels may
// be used meanwhile. An object that is missing in the realm, or not whole, is
// left out, unless t has it from before, and counted: the rest is kept all the
// same, and the snapshot says what it lacks.
func Make(ctx context.Context, s *store.Store, t target.Target, o Options) (*Result, error) {
	if o.Warn == nil {
		o.Warn = func(string) {}
	}
	last, err := sameRealm(ctx, s, t)
	if err != nil {
		return nil, err
	}
	r := &run{s: s, t: t, o: o, last: last, all: make(map[[2]string]*one),
		in: interned{ids: make(map[seal.Tag]uint32), bad: make(map[uint32]bool), gone: make(map[uint32]bool)}}
	if r.have, err = objects(ctx, t); err != nil {
		return nil, err
	}
	for round := 0; ; round++ {
		changed, err := r.survey(ctx)
		if err != nil {
			return nil, err
		}
		if !changed && round > 0 {
			break
		}
		if round == maxRounds {
			return nil, parcel.NewError(parcel.Busy, "backup: objects go away as fast as they are read").
				WithHint("run it when no prune or gc is at work")
		}
		if err := r.send(ctx); err != nil {
			return nil, err
		}
	}
	if err := t.Sync(ctx); err != nil {
		return nil, err
	}
	if err := r.walk(ctx); err != nil {
		return nil, err
	}
	return &r.res, r.publish(ctx)
}

// sameRealm refuses a place where another realm's backup is. last is the
// newest snapshot there, "" if there is none.
func sameRealm(ctx context.Context, s *store.Store, t target.Target) (last string, err error) {
	ids, err := IDs(ctx, t)
	if err != nil || len(ids) == 0 {
		return "", err
	}
	last = ids[len(ids)-1]
	h, err := Header(ctx, t, last)
	if errors.Is(err, parcel.ErrDamaged) {
		return last, nil // verify says what is wrong with it; it is no reason to make none
	}
	if err == nil && h.Realm != s.Realm() {
		err = parcel.NewError(parcel.Conflict, "%s: has the backup of realm %s, not of %s", t, h.Realm, s.Realm()).
			WithHint("each realm wants a place of its own")
	}
	return last, err
}

// survey reads the parcels that were not read yet, and those again of which
// something went away. It reports whether there were any.
func (r *run) survey(ctx context.Context) (changed bool, err error) {
	if len(r.in.gone) > 0 {
		for key, one := range r.all {
			if slices.ContainsFunc(one.objects, func(id uint32) bool { return r.in.gone[id] }) {
				delete(r.all, key)
			}
		}
		clear(r.in.gone)
	}
	users, err := r.s.Users()
	if err != nil {
		return false, err
	}
	present := make(map[[2]string]bool)
	for _, user := range users {
		names, err := r.s.Parcels(user)
		if errors.Is(err, parcel.ErrNoParcel) {
			continue
		}
		if err != nil {
			return false, err
		}
		for _, name := range names {
			key := [2]string{user, name}
			present[key] = true
			if r.all[key] != nil {
				continue
			}
			changed = true
			o, err := r.read(ctx, user, name)
			if errors.Is(err, parcel.ErrNoParcel) {
				delete(present, key)
				continue
			}
			if err != nil {
				return false, err
			}
			r.all[key] = o
		}
	}
	for key := range r.all {
		if !present[key] {
			delete(r.all, key) // removed, or renamed, which is read by its new name
		}
	}
	return changed, nil
}

// read reads one parcel: its lock side at one instant, then the names of its
// objects. All that a recorded version needs is in hdk before the record is
// there, and until the record is removed; so if all versions that were
// recorded before the names were read are so after, nothing of them is missing.
func (r *run) read(ctx context.Context, user, name string) (*one, error) {
	p, err := r.s.Parcel(user, name)
	if err != nil {
		return nil, err
	}
	for range maxRounds {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		c := collector{skipped: func(name, why string) { r.o.Warn(fmt.Sprintf("%s: %s: not in the backup", name, why)) }}
		err := p.Shared(func() error { return c.parcel(p.LockDir(), user, name) })
		if err != nil {
			return nil, err
		}
		o := &one{p: p, files: c.files}
		if cfg, err := parcel.ParseConfig(find(c.files, lockSide(user, name)+"/parcel.cfg")); err == nil {
			o.version = cfg.Version
		} else {
			r.o.Warn(fmt.Sprintf("%s/%s: %s: it cannot be restored from this backup alone", user, name, err))
		}
		if l, err := parcel.ParseLock(find(c.files, lockSide(user, name)+"/nonce")); err == nil {
			o.held = parcel.Clean(l.User + " on " + l.Host)
			o.held = strings.ToValidUTF8(o.held[:min(len(o.held), maxHeldName)], "")
		}
		if o.objects, err = r.names(ctx, p); err != nil {
			return nil, err
		}
		there, err := versions(p)
		if err != nil {
			return nil, err
		}
		if !slices.ContainsFunc(c.files, func(f file) bool {
			v, ok := strings.CutPrefix(f.name, lockSide(user, name)+"/keys/")
			return ok && !there[v]
		}) {
			return o, nil
		}
	}
	return nil, parcel.NewError(parcel.Busy, "parcel %s/%s: is being pruned again and again", user, name)
}

// versions are the names of the files in keys.
func versions(p *store.Parcel) (map[string]bool, error) {
	entries, err := os.ReadDir(filepath.Join(p.LockDir(), "keys"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, parcel.NewError(parcel.NoParcel, "parcel %s: no such parcel", p.Name())
	}
	there := make(map[string]bool)
	for _, e := range entries {
		there[e.Name()] = true
	}
	return there, err
}

// names reads the names of a parcel's objects.
func (r *run) names(ctx context.Context, p *store.Parcel) ([]uint32, error) {
	var ids []uint32
	hdk := filepath.Join(p.ContentDir(), "hdk")
	dirs, err := os.ReadDir(hdk)
	if errors.Is(err, fs.ErrNotExist) {
		r.o.Warn(fmt.Sprintf("%s/%s: its content is missing", p.User(), p.Name()))
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	for _, d := range dirs {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if !d.IsDir() || len(d.Name()) != 2 {
			continue
		}
		entries, err := os.ReadDir(filepath.Join(hdk, d.Name()))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		for _, e := range entries {
			tag, err := seal.ParseTag(e.Name())
			if err != nil || tag.NewHash() == nil || e.Name()[:2] != d.Name() || !e.Type().IsRegular() {
				continue // check says what it is
			}
			id, known := r.in.ids[tag]
			if known {
				ids = append(ids, id)
				if r.in.from[id] == nil {
					r.in.from[id] = p
				}
				continue
			}
			fi, err := e.Info()
			if err != nil {
				continue
			}
			id = r.in.intern(tag)
			r.in.size[id], r.in.from[id] = fi.Size(), p
			ids = append(ids, id)
			if fi.Size() < 1 || fi.Size() > maxObject {
				r.in.bad[id] = true
				r.res.Damaged++
				r.o.Warn(fmt.Sprintf("%s/%s: object %s: has %d bytes", p.User(), p.Name(), tag, fi.Size()))
			}
		}
	}
	return ids, nil
}

// send sends what the target lacks.
func (r *run) send(ctx context.Context) error {
	var lacking []uint32
	var total int64
	wanted := make([]bool, len(r.in.tags))
	for _, o := range r.all {
		for _, id := range o.objects {
			wanted[id] = true
		}
	}
	for id := range r.in.tags {
		// One of another size is not whole there: another program's doing.
		if size, ok := r.have[r.in.tags[id]]; wanted[id] && !r.in.bad[uint32(id)] && (!ok || size != r.in.size[id]) {
			lacking = append(lacking, uint32(id))
			total += r.in.size[id]
		}
	}
	var mu sync.Mutex
	var done int64
	return target.Parallel(ctx, r.t.Width(), slices.Values(lacking), func(ctx context.Context, id uint32) error {
		tag := r.in.tags[id]
		b, err := readObject(r.in.from[id], tag)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			mu.Lock()
			defer mu.Unlock()
			r.in.gone[id], r.in.from[id] = true, nil
			return nil
		case notWhole(err):
			mu.Lock()
			defer mu.Unlock()
			r.in.bad[id] = true
			r.res.Damaged++
			r.o.Warn(fmt.Sprintf("%s/%s: %s", r.in.from[id].User(), r.in.from[id].Name(), parcel.Clean(err.Error())))
			return nil
		case err != nil:
			return err
		}
		if err := r.t.Put(ctx, objectName(tag), b); err != nil {
			return err
		}
		mu.Lock()
		defer mu.Unlock()
		r.have[tag] = r.in.size[id]
		done += r.in.size[id]
		r.res.Sent, r.res.Bytes = r.res.Sent+1, r.res.Bytes+r.in.size[id]
		if r.o.Progress != nil {
			r.o.Progress(done, total)
		}
		return nil
	})
}

// readObject is an object in the parcel's hdk, verified.
func readObject(p *store.Parcel, tag seal.Tag) ([]byte, error) {
	name := tag.String()
	f, err := os.OpenFile(filepath.Join(p.ContentDir(), "hdk", name[:2], name), os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxObject+1))
	if err != nil {
		return nil, err
	}
	if int64(len(b)) > maxObject || tag.Verify(b) != nil {
		return nil, parcel.NewError(parcel.Damaged, "object %s: content does not match its name", tag)
	}
	return b, nil
}

// walk finds out what versions need that is not there. All that is there has
// been sent: what is read of a block that has gone since is the backup's.
func (r *run) walk(ctx context.Context) error {
	w := newWalker(&r.in, func(ctx context.Context, _ [2]string, tag seal.Tag) ([]byte, error) {
		if _, ok := r.have[tag]; !ok {
			return nil, parcel.NewError(parcel.NoObject, "object %s: the backup lacks it", tag)
		}
		return getObject(ctx, r.t, tag)
	})
	absent := make(map[uint32]bool)
	for _, key := range r.keys() {
		m, err := w.parcel(ctx, key, r.all[key])
		if err != nil {
			return err
		}
		m.tell(r.o.Warn, key, "backup")
		r.lack = append(r.lack, m.lacks...)
		for id, missing := range m.absent {
			if missing {
				absent[id] = true
			}
		}
	}
	r.res.Damaged += len(absent)
	return nil
}

// keys are the parcels, by user and name.
func (r *run) keys() [][2]string {
	return slices.SortedFunc(maps.Keys(r.all), func(a, b [2]string) int { return slices.Compare(a[:], b[:]) })
}

// notWhole reports whether err says that an object is damaged, or its disk.
func notWhole(err error) bool { return errors.Is(err, parcel.ErrDamaged) || errors.Is(err, unix.EIO) }

// publish puts the archive of the lock sides, then the list, which makes it a
// snapshot.
func (r *run) publish(ctx context.Context) error {
	now := time.Now().UTC().Truncate(time.Second)
	host, _ := os.Hostname()
	snap := &Snapshot{ID: newID(now, r.last), Realm: r.s.Realm(), Time: now, Host: parcel.Clean(host), Sealed: len(r.o.Recipients) > 0, Lacks: r.lack}
	c := collector{skipped: func(name, why string) { r.o.Warn(fmt.Sprintf("%s: %s: not in the backup", name, why)) }}
	if err := c.realm(r.s.Root()); err != nil {
		return err
	}
	users, err := r.s.Users()
	if err != nil {
		return err
	}
	for _, user := range users {
		lock, _, err := r.s.UserDirs(user)
		if errors.Is(err, parcel.ErrNoParcel) {
			continue
		}
		if err != nil {
			return err
		}
		if err := c.user(userDir(lock), user); err != nil {
			return err
		}
	}
	keys := r.keys()
	lists := make([][]uint32, 0, len(keys))
	for _, key := range keys {
		o := r.all[key]
		c.files = append(c.files, o.files...)
		e := ParcelEntry{User: key[0], Name: key[1], Version: o.version, Held: o.held}
		o.objects = slices.DeleteFunc(o.objects, func(id uint32) bool { return r.in.bad[id] })
		for _, id := range o.objects {
			e.Objects++
			e.Bytes += r.in.size[id]
		}
		snap.Parcels = append(snap.Parcels, e)
		lists = append(lists, o.objects)
	}
	sets := r.in.sets(lists)
	for _, s := range sets {
		for _, o := range s.objects {
			snap.Objects++
			snap.Bytes += o.size
		}
	}
	archive, err := spool(r.s.Root())
	if err != nil {
		return err
	}
	defer archive.Close()
	if snap.Sum, snap.Records.Size, err = writeRecords(archive, c.files, r.o.Recipients); err != nil {
		return err
	}
	snap.Records.Name = recordsName(snap.ID, snap.Sealed)
	list, err := spool(r.s.Root())
	if err != nil {
		return err
	}
	defer list.Close()
	if err := writeSnapshot(list, snap, sets); err != nil {
		return err
	}
	for _, f := range []struct {
		name string
		f    *os.File
	}{{snap.Records.Name, archive}, {snapshotName(snap.ID), list}} {
		size, err := f.f.Seek(0, io.SeekEnd)
		if err == nil {
			_, err = f.f.Seek(0, io.SeekStart)
		}
		if err == nil {
			err = r.t.PutFrom(ctx, f.name, f.f, size)
		}
		if err == nil {
			err = r.t.Sync(ctx)
		}
		if err != nil {
			return err
		}
	}
	r.res.Snapshot = snap
	return nil
}

// sets are the objects of the lists, those together that are in the same
// lists. Most parcels share most objects with many others: a list for each
// parcel would be as many times as long.
func (in *interned) sets(lists [][]uint32) []set {
	of := make([]int32, len(in.tags)) // the set of each object so far
	sets := []set{{}}                 // the first is that of no parcel
	for n, list := range lists {
		next := make(map[int32]int32)
		for _, id := range list {
			to, ok := next[of[id]]
			if !ok {
				to = int32(len(sets))
				next[of[id]] = to
				sets = append(sets, set{parcels: append(slices.Clip(sets[of[id]].parcels), n)})
			}
			of[id] = to
		}
	}
	for id, s := range of {
		if s > 0 {
			sets[s].objects = append(sets[s].objects, object{in.tags[id], in.size[id]})
		}
	}
	sets = slices.DeleteFunc(sets, func(s set) bool { return len(s.objects) == 0 })
	for _, s := range sets {
		sortObjects(s.objects)
	}
	return sets
}
