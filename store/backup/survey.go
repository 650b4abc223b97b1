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

	"golang.org/x/sys/unix"

	"isr/store"
	"isr/store/backup/target"
	"isr/store/parcel"
	"isr/store/seal"
)

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

// survey is what is read of a realm, of which parcels are used meanwhile.
type survey struct {
	store   *store.Store
	warn    func(text string)
	in      interned
	all     map[[2]string]*one // by user and name
	damaged int                // objects that are no objects by their size
}

func newSurvey(s *store.Store, warn func(text string)) *survey {
	return &survey{store: s, warn: warn, all: make(map[[2]string]*one),
		in: interned{ids: make(map[seal.Tag]uint32), bad: make(map[uint32]bool), gone: make(map[uint32]bool)}}
}

// maxRounds bounds how often a parcel is read again because of what gc or
// prune took away meanwhile.
const maxRounds = 20

// read reads one parcel: its lock side at one instant, then the names of its
// objects. All that a recorded version needs is in hdk before the record is
// there, and until the record is removed; so if all versions that were
// recorded before the names were read are so after, nothing of them is missing.
func (s *survey) read(ctx context.Context, user, name string) (*one, error) {
	p, err := s.store.Parcel(user, name)
	if err != nil {
		return nil, err
	}
	for range maxRounds {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		c := collector{skipped: func(name, why string) { s.warn(fmt.Sprintf("%s: %s: not in the backup", name, why)) }}
		err := p.Shared(func() error { return c.parcel(p.LockDir(), user, name) })
		if err != nil {
			return nil, err
		}
		o := &one{p: p, files: c.files}
		if cfg, err := parcel.ParseConfig(find(c.files, lockSide(user, name)+"/parcel.cfg")); err == nil {
			o.version = cfg.Version
		} else {
			s.warn(fmt.Sprintf("%s/%s: %s: it cannot be restored from this backup alone", user, name, err))
		}
		if l, err := parcel.ParseLock(find(c.files, lockSide(user, name)+"/nonce")); err == nil {
			o.held = parcel.Clean(l.User + " on " + l.Host)
			o.held = strings.ToValidUTF8(o.held[:min(len(o.held), maxHeldName)], "")
		}
		if o.objects, err = s.names(ctx, p); err != nil {
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
func (s *survey) names(ctx context.Context, p *store.Parcel) ([]uint32, error) {
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
			id, known := s.in.ids[tag]
			if known {
				ids = append(ids, id)
				if s.in.from[id] == nil {
					s.in.from[id] = p
				}
				continue
			}
			fi, err := e.Info()
			if err != nil {
				continue
			}
			id = s.in.intern(tag)
			s.in.size[id], s.in.from[id] = fi.Size(), p
			ids = append(ids, id)
			if fi.Size() < 1 || fi.Size() > target.MaxObject {
				s.in.bad[id] = true
				s.damaged++
				s.warn(fmt.Sprintf("%s/%s: object %s: has %d bytes", p.User(), p.Name(), tag, fi.Size()))
			}
		}
	}
	return ids, nil
}

// keys are the parcels, by user and name.
func (s *survey) keys() [][2]string {
	return slices.SortedFunc(maps.Keys(s.all), func(a, b [2]string) int { return slices.Compare(a[:], b[:]) })
}

// readObject is an object in the parcel's hdk, verified.
func readObject(p *store.Parcel, tag seal.Tag) ([]byte, error) {
	name := tag.String()
	f, err := os.OpenFile(filepath.Join(p.ContentDir(), "hdk", name[:2], name), os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, target.MaxObject+1))
	if err != nil {
		return nil, err
	}
	if int64(len(b)) > target.MaxObject || tag.Verify(b) != nil {
		return nil, parcel.NewError(parcel.Damaged, "object %s: content does not match its name", tag)
	}
	return b, nil
}

// notWhole reports whether err says that an object is damaged, or its disk.
func notWhole(err error) bool { return errors.Is(err, parcel.ErrDamaged) || errors.Is(err, unix.EIO) }
