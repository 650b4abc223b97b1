package realm

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

	"golang.org/x/sys/unix"

	"isr/store"
	"isr/store/backup/target"
	"isr/store/parcel"
	"isr/store/seal"
)

// Objects are the objects of a realm, each once, by numbers from 0: parcels share
// them by the thousand.
type Objects struct {
	IDs  map[seal.Tag]uint32
	Tags []seal.Tag      // by number, as what follows
	Size []int64         // bytes; 0 of one that is missing
	From []*store.Parcel // some parcel that has it
	Bad  map[uint32]bool // not whole here
	Gone map[uint32]bool // not there any more, when it was wanted
}

// intern is the number of an object, a new one if need be.
func (in *Objects) intern(tag seal.Tag) uint32 {
	id, ok := in.IDs[tag]
	if !ok {
		id = uint32(len(in.Tags))
		in.IDs[tag] = id
		in.Tags, in.Size, in.From = append(in.Tags, tag), append(in.Size, 0), append(in.From, nil)
	}
	return id
}

// Parcel is a parcel as it was at one instant.
type Parcel struct {
	P       *store.Parcel
	Files   []File   // of its lock side, that are not derived
	Version int      // the head; 0 if parcel.cfg cannot be read
	Held    string   // by whom on which host; "": by nobody
	Objects []uint32 // numbers of those that it has
}

// Survey is what is read of a realm, of which parcels are used meanwhile.
type Survey struct {
	Store *store.Store
	warn  func(text string)
	In    Objects
	All   map[[2]string]*Parcel // by user and name
	lost  map[string]bool       // users and parcels that cannot be read
}

// NewSurvey is a survey that has read nothing yet. What it leaves out it tells
// to warn.
func NewSurvey(s *store.Store, warn func(text string)) *Survey {
	return &Survey{Store: s, warn: warn, All: make(map[[2]string]*Parcel), lost: make(map[string]bool),
		In: Objects{IDs: make(map[seal.Tag]uint32), Bad: make(map[uint32]bool), Gone: make(map[uint32]bool)}}
}

// Lost is how many parcels could not be read; all of a user count as one if not
// even their names could be.
func (s *Survey) Lost() int { return len(s.lost) }

// Lose reports whether a user or a parcel cannot be read, by the error of that,
// and tells it once. It keeps nobody else's from being copied.
func (s *Survey) Lose(what string, err error) bool {
	if !NotWhole(err) {
		return false
	}
	if !s.lost[what] {
		s.lost[what] = true
		s.warn(fmt.Sprintf("%s: %s", what, parcel.Clean(err.Error())))
	}
	return true
}

// Parcels are all parcels of the realm, by user and name.
func (s *Survey) Parcels() (keys [][2]string, err error) {
	users, err := s.Store.Users()
	for _, user := range users {
		names, err := s.Store.Parcels(user)
		if errors.Is(err, parcel.ErrNoParcel) || s.Lose(user, err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		for _, name := range names {
			keys = append(keys, [2]string{user, name})
		}
		s.orphans(user, names)
	}
	return keys, err
}

// orphans tells of content without a lock side, which is none of the names.
func (s *Survey) orphans(user string, names []string) {
	u := s.Store.UserAt(user)
	if fi, err := os.Lstat(u.ContentRoot); err != nil || !fi.IsDir() {
		return // no link is followed
	}
	contents, _ := os.ReadDir(u.ContentRoot)
	for _, e := range contents {
		if !e.IsDir() || parcel.CheckName(e.Name()) != nil || slices.Contains(names, e.Name()) {
			continue
		}
		p := u.At(e.Name())
		if fi, err := os.Lstat(p.LockDir()); err == nil && fi.IsDir() {
			continue // being made or removed, or just made
		}
		// What is being renamed is in there now, or has gone from here.
		if s.Store.OnTheWay()[p.ContentDir()] {
			continue
		}
		if _, err := os.Lstat(p.ContentDir()); err == nil {
			s.Lose(user+"/"+e.Name(), parcel.NewError(parcel.Damaged, "lock side is missing"))
		}
	}
}

// Users reads who the users are, of those without their parcels too.
func (s *Survey) Users(c *Collector) error {
	users, err := s.Store.Users()
	for _, user := range users {
		lock, _, err := s.Store.UserDirs(user)
		if err == nil || errors.Is(err, parcel.ErrDamaged) { // Parcels and Read tell that
			err = c.User(UserDir(lock), user)
		}
		if err != nil && !errors.Is(err, parcel.ErrNoParcel) {
			return err
		}
	}
	return err
}

// MaxHeld bounds who is said to hold a parcel, bytes.
const MaxHeld = 3 * 64 * 64

// MaxRounds bounds how often a parcel is read again because of what gc or
// prune took away meanwhile.
const MaxRounds = 20

// Read reads one parcel: its lock side at one instant, then the names of its
// objects. All that a recorded version needs is in hdk before the record is
// there, and until the record is removed; so if all versions that were
// recorded before the names were read are so after, nothing of them is missing.
func (s *Survey) Read(ctx context.Context, user, name string) (*Parcel, error) {
	p, err := s.Store.Parcel(user, name)
	if err != nil {
		return nil, err
	}
	for range MaxRounds {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		c := Collector{Skipped: func(name, why string) { s.warn(fmt.Sprintf("%s: %s: not in the backup", name, why)) }}
		err := p.Shared(func() error { return c.Parcel(p.LockDir(), user, name) })
		if err != nil {
			return nil, err
		}
		o := &Parcel{P: p, Files: c.Files}
		if cfg, err := parcel.ParseConfig(Find(c.Files, LockSide(user, name)+"/parcel.cfg")); err == nil {
			o.Version = cfg.Version
		} else {
			s.warn(fmt.Sprintf("%s/%s: %s: it cannot be restored from this backup alone", user, name, err))
		}
		if l, err := parcel.ParseLock(Find(c.Files, LockSide(user, name)+"/nonce")); err == nil {
			o.Held = parcel.Clean(l.User + " on " + l.Host)
			o.Held = strings.ToValidUTF8(o.Held[:min(len(o.Held), MaxHeld)], "")
		}
		if o.Objects, err = s.names(ctx, p); err != nil {
			return nil, err
		}
		there, err := Versions(p)
		if err != nil {
			return nil, err
		}
		if !slices.ContainsFunc(c.Files, func(f File) bool {
			v, ok := strings.CutPrefix(f.Name, LockSide(user, name)+"/keys/")
			return ok && !there[v]
		}) {
			return o, nil
		}
	}
	return nil, parcel.NewError(parcel.Busy, "parcel %s/%s: is being pruned again and again", user, name)
}

// Versions are the names of the files in keys.
func Versions(p *store.Parcel) (map[string]bool, error) {
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
func (s *Survey) names(ctx context.Context, p *store.Parcel) ([]uint32, error) {
	var ids []uint32
	hdk := filepath.Join(p.ContentDir(), "hdk")
	dirs, err := os.ReadDir(hdk)
	if errors.Is(err, fs.ErrNotExist) {
		s.warn(fmt.Sprintf("%s/%s: its content is missing", p.User(), p.Name()))
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
			id, known := s.In.IDs[tag]
			if known {
				ids = append(ids, id)
				if s.In.From[id] == nil {
					s.In.From[id] = p
				}
				continue
			}
			fi, err := e.Info()
			if err != nil {
				continue
			}
			id = s.In.intern(tag)
			s.In.Size[id], s.In.From[id] = fi.Size(), p
			ids = append(ids, id)
		}
	}
	return ids, nil
}

// Keys are the parcels, by user and name.
func (s *Survey) Keys() [][2]string {
	return slices.SortedFunc(maps.Keys(s.All), func(a, b [2]string) int { return slices.Compare(a[:], b[:]) })
}

// Object is an object that p is to have: p's, or another parcel's that has it
// whole. broken is why it is not p's, if p has it and not whole. The error is
// p's, fs.ErrNotExist or one of NotWhole, if nobody has it.
func (s *Survey) Object(p *store.Parcel, id uint32) (b []byte, broken, err error) {
	b, err = ReadObject(p, s.In.Tags[id])
	if NotWhole(err) {
		broken = err
	} else if !errors.Is(err, fs.ErrNotExist) {
		return b, nil, err
	}
	for _, o := range s.All {
		if b, oerr := ReadObject(o.P, s.In.Tags[id]); oerr == nil {
			return b, broken, nil
		}
	}
	return nil, broken, err
}

// Fits reports whether a copy of so many bytes may be the object: one of another
// size is not whole there or here, by a power cut or by another program.
func (in *Objects) Fits(id uint32, size int64) bool {
	return size == in.Size[id] && size > 0 && size <= target.MaxObject
}

// ReadObject is an object in the parcel's hdk, verified.
func ReadObject(p *store.Parcel, tag seal.Tag) ([]byte, error) {
	name := tag.String()
	f, err := os.OpenFile(filepath.Join(p.ContentDir(), "hdk", name[:2], name), os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return nil, err
	}
	mismatch := parcel.NewError(parcel.Damaged, "object %s: content does not match its name", tag)
	if fi.Size() > target.MaxObject {
		return nil, mismatch
	}
	b := make([]byte, fi.Size())
	switch _, err := io.ReadFull(f, b); {
	case err == io.EOF, err == io.ErrUnexpectedEOF, err == nil && tag.Verify(b) != nil:
		return nil, mismatch
	case err != nil:
		return nil, err
	}
	return b, nil
}

// NotWhole reports whether err says that an object is damaged, or its disk.
func NotWhole(err error) bool { return errors.Is(err, parcel.ErrDamaged) || errors.Is(err, unix.EIO) }
