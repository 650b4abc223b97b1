package backup

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"sync"
	"time"

	"filippo.io/age"

	"isr/store"
	"isr/store/backup/realm"
	"isr/store/backup/snapshot"
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
	Snapshot *snapshot.Snapshot
	Sent     int64 // objects
	Bytes    int64 // of them
	Damaged  int   // objects that are not whole here, or missing
	Lost     int   // parcels that cannot be read and are not in it, or users with all of theirs
}

// run is a backup at work.
type run struct {
	*realm.Survey
	t    target.Target
	o    Options
	have map[seal.Tag]int64
	last string // the newest snapshot that was there
	lack []realm.Lack
	res  Result
}

// Make makes a snapshot of the realm in t, and sends what t lacks. Parcels may
// be used meanwhile. An object that is missing in a parcel, or not whole, is
// counted. It is taken from another parcel, or is what t has from before; if
// there is neither, it is left out: the rest is kept all the same, and the
// snapshot says what it lacks.
func Make(ctx context.Context, s *store.Store, t target.Target, o Options) (*Result, error) {
	if o.Warn == nil {
		o.Warn = func(string) {}
	}
	last, err := sameRealm(ctx, s, t)
	if err != nil {
		return nil, err
	}
	r := &run{Survey: realm.NewSurvey(s, o.Warn), t: t, o: o, last: last}
	if r.have, err = objects(ctx, t); err != nil {
		return nil, err
	}
	for round := 0; ; round++ {
		changed, err := r.look(ctx)
		if err != nil {
			return nil, err
		}
		if !changed && round > 0 {
			break
		}
		if round == realm.MaxRounds {
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
	r.res.Lost = r.Lost()
	return &r.res, r.publish(ctx)
}

// sameRealm refuses a place where another realm's backup is. last is the
// newest snapshot there, "" if there is none.
func sameRealm(ctx context.Context, s *store.Store, t target.Target) (last string, err error) {
	ids, err := snapshot.IDs(ctx, t)
	if err != nil || len(ids) == 0 {
		return "", err
	}
	last = ids[len(ids)-1]
	h, err := snapshot.Header(ctx, t, last)
	if errors.Is(err, parcel.ErrDamaged) {
		return last, nil // verify says what is wrong with it; it is no reason to make none
	}
	if err == nil && h.Realm != s.Realm() {
		err = parcel.NewError(parcel.Conflict, "%s: has the backup of realm %s, not of %s", t, h.Realm, s.Realm()).
			WithHint("each realm wants a place of its own")
	}
	return last, err
}

// look reads the parcels that were not read yet, and those again of which
// something went away. It reports whether there were any.
func (r *run) look(ctx context.Context) (changed bool, err error) {
	if len(r.In.Gone) > 0 {
		for key, one := range r.All {
			if slices.ContainsFunc(one.Objects, func(id uint32) bool { return r.In.Gone[id] }) {
				delete(r.All, key)
			}
		}
		clear(r.In.Gone)
	}
	keys, err := r.Parcels()
	if err != nil {
		return false, err
	}
	present := make(map[[2]string]bool)
	for _, key := range keys {
		if r.All[key] != nil {
			present[key] = true
			continue
		}
		o, err := r.Read(ctx, key[0], key[1])
		if r.Lose(key[0]+"/"+key[1], err) {
			continue
		}
		changed = true
		if errors.Is(err, parcel.ErrNoParcel) {
			continue
		}
		if err != nil {
			return false, err
		}
		r.All[key], present[key] = o, true
	}
	for key := range r.All {
		if !present[key] {
			delete(r.All, key) // removed, or renamed, which is read by its new name
		}
	}
	return changed, nil
}

// send sends what the target lacks.
func (r *run) send(ctx context.Context) error {
	var lacking []uint32
	var total int64
	wanted := make([]bool, len(r.In.Tags))
	for _, o := range r.All {
		for _, id := range o.Objects {
			wanted[id] = true
		}
	}
	for id := range r.In.Tags {
		if wanted[id] && !r.In.Bad[uint32(id)] && !r.In.Fits(uint32(id), r.have[r.In.Tags[id]]) {
			lacking = append(lacking, uint32(id))
			total += r.In.Size[id]
		}
	}
	var mu sync.Mutex
	var done int64
	return target.Parallel(ctx, r.t.Width(), lacking, func(ctx context.Context, id uint32) error {
		tag := r.In.Tags[id]
		from := r.In.From[id]
		b, broken, err := r.Object(from, id)
		if broken != nil {
			mu.Lock()
			r.res.Damaged++
			r.o.Warn(fmt.Sprintf("%s/%s: %s", from.User(), from.Name(), parcel.Clean(broken.Error())))
			mu.Unlock()
		}
		switch {
		case errors.Is(err, fs.ErrNotExist):
			mu.Lock()
			defer mu.Unlock()
			r.In.Gone[id], r.In.From[id] = true, nil
			return nil
		case realm.NotWhole(err):
			mu.Lock()
			defer mu.Unlock()
			r.In.Bad[id] = true
			return nil
		case err != nil:
			return err
		}
		if err := r.t.Put(ctx, objectName(tag), b); err != nil {
			return err
		}
		mu.Lock()
		defer mu.Unlock()
		r.In.Size[id] = int64(len(b))
		r.have[tag] = r.In.Size[id]
		done += r.In.Size[id]
		r.res.Sent, r.res.Bytes = r.res.Sent+1, r.res.Bytes+r.In.Size[id]
		if r.o.Progress != nil {
			r.o.Progress(done, total)
		}
		return nil
	})
}

// walk finds out what versions need that is not there. All that is there has
// been sent: what is read of a block that has gone since is the backup's.
func (r *run) walk(ctx context.Context) error {
	w := realm.NewWalker(&r.In, func(ctx context.Context, _ [2]string, tag seal.Tag) ([]byte, error) {
		if _, ok := r.have[tag]; !ok {
			return nil, parcel.NewError(parcel.NoObject, "object %s: the backup lacks it", tag)
		}
		return getObject(ctx, r.t, tag)
	})
	absent := make(map[uint32]bool)
	for _, key := range r.Keys() {
		m, err := w.Parcel(ctx, key, r.All[key])
		if err != nil {
			return err
		}
		m.Tell(r.o.Warn, key, "backup")
		r.lack = append(r.lack, m.Lacks...)
		for id, missing := range m.Absent {
			if missing {
				absent[id] = true
			}
		}
	}
	r.res.Damaged += len(absent)
	return nil
}

// publish puts the archive of the lock sides, then the list, which makes it a
// snapshot.
func (r *run) publish(ctx context.Context) error {
	now := time.Now().UTC().Truncate(time.Second)
	host, _ := os.Hostname()
	snap := &snapshot.Snapshot{ID: snapshot.NewID(now, r.last), Realm: r.Store.Realm(), Time: now, Host: parcel.Clean(host), Sealed: len(r.o.Recipients) > 0, Lacks: r.lack}
	c := realm.Collector{Skipped: func(name, why string) { r.o.Warn(fmt.Sprintf("%s: %s: not in the backup", name, why)) }}
	if err := c.Realm(r.Store.Root()); err != nil {
		return err
	}
	if err := r.Users(&c); err != nil {
		return err
	}
	keys := r.Keys()
	lists := make([][]uint32, 0, len(keys))
	for _, key := range keys {
		o := r.All[key]
		c.Files = append(c.Files, o.Files...)
		e := snapshot.Parcel{User: key[0], Name: key[1], Version: o.Version, Held: o.Held}
		o.Objects = slices.DeleteFunc(o.Objects, func(id uint32) bool { return r.In.Bad[id] })
		for _, id := range o.Objects {
			e.Objects++
			e.Bytes += r.In.Size[id]
		}
		snap.Parcels = append(snap.Parcels, e)
		lists = append(lists, o.Objects)
	}
	sets := snapshot.SetsOf(&r.In, lists)
	for _, s := range sets {
		for _, o := range s.Objects {
			snap.Objects++
			snap.Bytes += o.Size
		}
	}
	archive, err := spool()
	if err != nil {
		return err
	}
	defer archive.Close()
	if snap.Sum, snap.Records.Size, err = snapshot.WriteArchive(archive, c.Files, r.o.Recipients); err != nil {
		return err
	}
	snap.Records.Name = snapshot.ArchiveName(snap.ID, snap.Sealed)
	list, err := spool()
	if err != nil {
		return err
	}
	defer list.Close()
	if err := snapshot.Write(list, snap, sets); err != nil {
		return err
	}
	for _, f := range []struct {
		name string
		f    *os.File
	}{{snap.Records.Name, archive}, {snapshot.Name(snap.ID), list}} {
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
