// Package du says what parcels take of the disk: what each has alone and what it
// shares, what no version needs, and what a prune would free.
//
// It counts as du(1) does, changes nothing and needs no lock: of a parcel that
// is changed meanwhile it tells what it saw.
package du

import (
	"context"
	"errors"
	"os"

	"golang.org/x/sys/unix"

	"isr/store"
	"isr/store/keep"
	"isr/store/keyring"
	"isr/store/parcel"
	"isr/store/prune"
	"isr/store/reach"
	"isr/store/seal"
	"isr/store/tree"
)

// Options choose what is measured.
type Options struct {
	User, Parcel string     // empty: all
	Keep         keep.Rules // with rules: say what a prune by them would free
}

// Disk is what one parcel takes of the disk. Its objects are Unique, Own and
// Shared, each in one of them; bytes of the disk are counted as du(1) does.
type Disk struct {
	User     string    `json:"user"`
	Parcel   string    `json:"parcel"`
	Logical  int64     `json:"logical"` // bytes of the head's images
	Data     int64     `json:"data"`    // of them, in chunks that are not zeros
	Objects  int64     `json:"objects"` // files below hdk
	Sealed   int64     `json:"sealed"`  // bytes in them
	Unique   int64     `json:"unique"`  // bytes of the disk for those that no other parcel has
	Own      int64     `json:"own"`     // for those that only parcels of the same user have
	Shared   int64     `json:"shared"`  // for those that others have too
	Garbage  int64     `json:"garbage"` // of Unique, for those that no version needs: gc frees it
	Frees    int64     `json:"frees"`   // what a prune of this parcel alone would free, garbage included
	Versions []Version `json:"versions"`
	Error    error     `json:"-"` // why it is not known
}

// Version is one version's part of a Disk.
type Version struct {
	Version int      `json:"version"`
	Only    int64    `json:"only"`           // bytes of the disk for what no other version or parcel has
	Kept    []string `json:"kept,omitempty"` // with rules: those that keep it
}

// Sum is what parcels take together: of a user, or of all.
type Sum struct {
	Parcels  int   `json:"parcels"`
	Versions int   `json:"versions"`
	Logical  int64 `json:"logical"`
	Data     int64 `json:"data"`
	Objects  int64 `json:"objects"` // each counted once, however many parcels have it
	Sealed   int64 `json:"sealed"`
	Disk     int64 `json:"disk"`  // bytes of the disk
	Alone    int64 `json:"alone"` // of them, what would be free if these parcels were removed
	Frees    int64 `json:"frees"` // what a prune of all of them would free
}

// Run measures parcels, in the order of the tree, and calls report for each,
// and total for each user and for all; then user is empty. It changes nothing
// and needs no lock: of a parcel that is changed meanwhile it tells what it
// saw. Of all users, one who is damaged is reported with no parcel, and does not
// keep the others from it.
func Run(ctx context.Context, s *store.Store, o Options, report func(Disk), total func(user string, sum Sum)) error {
	users, err := s.SelectUsers(o.User)
	if err != nil {
		return err
	}
	sound, parcels := users[:0:0], make(map[string][]*store.Parcel)
	for _, u := range users {
		ps, err := s.Select(u, o.Parcel)
		if o.User == "" && errors.Is(err, parcel.ErrDamaged) {
			report(Disk{User: u, Error: err})
			continue
		}
		if err != nil {
			return err
		}
		sound, parcels[u] = append(sound, u), ps
	}
	cache := reach.NewCache()
	all := newTally()
	for _, name := range sound {
		u, mine := s.UserAt(name), newTally()
		names, err := tree.Subdirs(u.LockRoot)
		if err != nil {
			return err
		}
		for _, p := range parcels[name] {
			m := &measurer{p: p, keep: o.Keep, cache: cache, tallies: []*tally{mine, all}}
			for _, n := range names {
				if n != p.Name() {
					m.siblings = append(m.siblings, u.At(n))
				}
			}
			err := m.measure(ctx)
			m.close()
			switch {
			case ctx.Err() != nil:
				return ctx.Err()
			case errors.Is(err, parcel.ErrNoParcel) && o.Parcel == "":
				continue // it was removed meanwhile
			}
			m.disk.User, m.disk.Parcel, m.disk.Error = p.User(), p.Name(), err
			report(m.disk)
		}
		total(name, mine.sum)
	}
	if o.User == "" {
		total("", all.sum)
	}
	return nil
}

// tally adds up parcels, and counts what they share once.
type tally struct {
	sum  Sum
	seen map[tree.Inode]*sharedInode // with more than one link
}

type sharedInode struct{ links, seen, going uint64 }

func newTally() *tally { return &tally{seen: make(map[tree.Inode]*sharedInode)} }

// object counts one link of an object; going says that a prune removes it.
func (t *tally) object(tag seal.Tag, st *unix.Stat_t, going bool) {
	disk := st.Blocks * 512
	shared := &sharedInode{links: 1}
	if st.Nlink > 1 {
		id := tree.InodeOf(st.Dev, st.Ino, tag)
		if t.seen[id] == nil {
			t.seen[id] = &sharedInode{links: uint64(st.Nlink)}
		}
		shared = t.seen[id]
	}
	if shared.seen++; shared.seen == 1 {
		t.sum.Objects++
		t.sum.Sealed += st.Size
		t.sum.Disk += disk
	}
	if shared.seen == shared.links {
		t.sum.Alone += disk
	}
	if going {
		if shared.going++; shared.going == shared.links {
			t.sum.Frees += disk
		}
	}
}

// measurer measures one parcel.
type measurer struct {
	p        *store.Parcel
	keep     keep.Rules
	cache    *reach.Cache
	tallies  []*tally
	siblings []*store.Parcel // other parcels of the same user

	disk Disk
	hdks []*os.File // of the siblings

	only   *reach.Reach // each version has a class of its own
	pruned *reach.Reach // by the plan, if there is one
}

// The classes of a plan.
const (
	stays reach.Class = 1 + iota
	goes
)

func (m *measurer) measure(ctx context.Context) error {
	content, err := m.p.OpenContent()
	if err != nil {
		if _, cerr := m.p.Config(); errors.Is(cerr, parcel.ErrNoParcel) {
			return cerr
		}
		return err
	}
	defer content.Close()
	for _, q := range m.siblings {
		root, err := q.OpenContent()
		if err != nil {
			continue
		}
		if hdk, err := root.Open("hdk"); err == nil {
			m.hdks = append(m.hdks, hdk)
		}
		root.Close()
	}
	m.only, m.pruned = reach.New(m.p, m.cache), reach.New(m.p, m.cache)
	// What is on the disk can be told even of a parcel that is damaged.
	werr := m.walk(ctx)
	hdk, dirs, err := tree.ObjectDirs(content)
	if err != nil {
		return m.p.Wrap(err)
	}
	defer hdk.Close()
	for _, ab := range dirs {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := m.directory(hdk, ab, werr == nil); err != nil {
			return m.p.Wrap(err)
		}
	}
	for _, t := range m.tallies {
		t.sum.Parcels++
		t.sum.Versions += len(m.disk.Versions)
		t.sum.Logical += m.disk.Logical
		t.sum.Data += m.disk.Data
	}
	return werr
}

// walk walks all versions; those that a plan removes apart from the others.
func (m *measurer) walk(ctx context.Context) error {
	cfg, err := m.p.Config()
	if err != nil {
		return err
	}
	plan, err := prune.Choose(m.p, m.keep)
	if err != nil {
		return err
	}
	for _, v := range plan {
		rec, err := m.p.Record(v.Version)
		if errors.Is(err, parcel.ErrNoVersion) {
			continue // it was pruned meanwhile
		}
		if err != nil {
			return err
		}
		m.disk.Versions = append(m.disk.Versions, Version{Version: v.Version})
		root, err := m.only.Version(ctx, cfg, rec.Keyroot, reach.Class(len(m.disk.Versions)))
		if err != nil {
			return err
		}
		if v.Version == cfg.Version {
			m.images(root)
		}
		if m.keep.Empty() {
			continue
		}
		m.disk.Versions[len(m.disk.Versions)-1].Kept = v.Kept
		c := stays
		if len(v.Kept) == 0 {
			c = goes
		}
		if _, err := m.pruned.Version(ctx, cfg, rec.Keyroot, c); err != nil {
			return err
		}
	}
	// GC leaves what a commit that was killed had ready.
	recorded, err := m.p.Recorded()
	if err != nil {
		return err
	}
	for _, v := range recorded {
		if v <= cfg.Version {
			continue
		}
		if rec, err := m.p.Record(v); err == nil {
			m.only.Version(ctx, cfg, rec.Keyroot, reach.Several)
			m.pruned.Version(ctx, cfg, rec.Keyroot, stays)
		}
	}
	return ctx.Err()
}

// directory counts the objects in hdk/ab; walked says that it is known who
// needs them.
func (m *measurer) directory(hdk *os.File, ab string, walked bool) error {
	d, err := tree.OpenObjects(hdk, ab)
	if err != nil {
		return err
	}
	defer d.Close()
	for _, tag := range d.Tags {
		st, ok := d.Stat(tag)
		if !ok {
			continue
		}
		c := m.only.Class(tag)
		going := c == 0
		if !m.keep.Empty() {
			p := m.pruned.Class(tag)
			going = p == goes || p == 0
		}
		m.object(tag, &st, going && walked)
		switch {
		case st.Nlink > 1 || !walked:
		case c == 0:
			m.disk.Garbage += st.Blocks * 512
		case c != reach.Several:
			m.disk.Versions[c-1].Only += st.Blocks * 512
		}
	}
	return nil
}

// images counts the bytes of a version's images.
func (m *measurer) images(root *keyring.Root) {
	for _, im := range root.Images {
		m.disk.Logical += im.Size
		chunks := m.only.Chunks(im)
		m.disk.Data += min(chunks*int64(im.ChunkSize), im.Size)
	}
}

// object counts one object.
func (m *measurer) object(tag seal.Tag, st *unix.Stat_t, going bool) {
	disk := st.Blocks * 512
	m.disk.Objects++
	m.disk.Sealed += st.Size
	switch {
	case st.Nlink == 1:
		m.disk.Unique += disk
		if going {
			m.disk.Frees += disk
		}
	case m.ownLinks(tag, st) == uint64(st.Nlink):
		m.disk.Own += disk
	default:
		m.disk.Shared += disk
	}
	for _, t := range m.tallies {
		t.object(tag, st, going)
	}
}

// ownLinks is how many links to an object the user's parcels have: it has the
// same name in all of them, so there are no more than parcels.
func (m *measurer) ownLinks(tag seal.Tag, st *unix.Stat_t) uint64 {
	links := uint64(1)
	if uint64(st.Nlink) > links+uint64(len(m.hdks)) {
		return links
	}
	for _, hdk := range m.hdks {
		if o, ok := tree.StatObject(int(hdk.Fd()), tree.ObjectName(tag)); ok && o.Dev == st.Dev && o.Ino == st.Ino {
			links++
		}
	}
	return links
}

func (m *measurer) close() {
	for _, hdk := range m.hdks {
		hdk.Close()
	}
}
