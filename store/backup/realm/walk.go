package realm

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"isr/store/keyring"
	"isr/store/parcel"
	"isr/store/seal"
)

// Lack is a version that a snapshot, or a mirror, has not whole, as the realm
// had it not.
type Lack struct {
	User, Name string
	Version    int   // 0: all of the parcel, whose parcel.cfg cannot be read
	Objects    int64 // that it needs and that are missing, as far as is known; 0: its record cannot be read
}

// String is the lack on one line: "alice/winxp: version 7: …".
func (l Lack) String() string {
	switch {
	case l.Version == 0:
		return fmt.Sprintf("%s/%s: parcel.cfg cannot be read", l.User, l.Name)
	case l.Objects == 0:
		return fmt.Sprintf("%s/%s: version %d: record of its keyroot cannot be read", l.User, l.Name, l.Version)
	}
	return fmt.Sprintf("%s/%s: version %d: lacks %s", l.User, l.Name, l.Version, objectsText(l.Objects))
}

func objectsText(n int64) string {
	if n == 1 {
		return "an object"
	}
	return fmt.Sprintf("%d objects", n)
}

// Walker finds out what versions need that is not there. Each block is opened
// once, however many versions and parcels share it.
type Walker struct {
	in    *Objects
	spare func(ctx context.Context, key [2]string, tag seal.Tag) ([]byte, error)

	blocks map[levelRef]*node
	of     []int32 // by id: the parcel that has it whole, of those walked the last
	n      int32   // the parcel at hand
}

// levelRef is a block, which opens at one level only.
type levelRef struct {
	ref   seal.Ref
	level int
}

// node is what an opened block refers to.
type node struct {
	ids  []uint32
	refs []seal.Ref // of blocks; none at level 1
	of   int32      // the parcel for which lack was found out
	lack []uint32   // what is not there of all below
}

// NewWalker is a walker of parcels with objects of in, which it adds to. spare gets
// an object that a parcel has not, or not whole, from where its copies are;
// parcel.ErrNoObject or parcel.ErrDamaged if it is not there.
func NewWalker(in *Objects, spare func(ctx context.Context, key [2]string, tag seal.Tag) ([]byte, error)) *Walker {
	return &Walker{in: in, spare: spare, blocks: make(map[levelRef]*node)}
}

// Missing is what a parcel has not whole of what its versions need.
type Missing struct {
	Lacks  []Lack
	Absent map[uint32]bool // objects that are not there, the spare ones too; false for one that is there and not whole
	Spared int             // objects that spare had: they count as the parcel's now
}

// Parcel walks the versions of a parcel, and adds to its objects those that
// spare has.
func (w *Walker) Parcel(ctx context.Context, key [2]string, o *Parcel) (*Missing, error) {
	m := &Missing{Absent: make(map[uint32]bool)}
	side := LockSide(key[0], key[1])
	cfg, err := parcel.ParseConfig(Find(o.Files, side+"/parcel.cfg"))
	if err != nil {
		m.Lacks = append(m.Lacks, Lack{User: key[0], Name: key[1]})
		return m, nil
	}
	w.n++
	w.grow()
	for _, id := range o.Objects {
		if !w.in.Bad[id] {
			w.of[id] = w.n
		}
	}
	at := &walk{Walker: w, Missing: m, ctx: ctx, key: key, o: o, sealer: cfg.Sealer()}
	for v, record := range Recorded(o.Files, side, cfg.Version) {
		r, err := parcel.ParseRecord(record)
		var keyroot seal.Ref
		if err == nil {
			keyroot, err = seal.ParseRef(r.Get("KEYROOT"))
		}
		if err != nil || keyroot.IsNil() {
			m.Lacks = append(m.Lacks, Lack{User: key[0], Name: key[1], Version: v})
			continue
		}
		lack, err := at.version(keyroot), at.err
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return nil, err
		}
		if len(lack) > 0 {
			m.Lacks = append(m.Lacks, Lack{key[0], key[1], v, int64(len(lack))})
		}
	}
	slices.SortFunc(m.Lacks, func(a, b Lack) int { return a.Version - b.Version })
	slices.Sort(o.Objects)
	o.Objects = slices.Compact(o.Objects) // one that was not whole was the parcel's before
	return m, nil
}

// Tell warns of what is missing in the parcel, and in its copy of that kind.
func (m *Missing) Tell(warn func(string), key [2]string, kind string) {
	for _, l := range m.Lacks {
		warn(fmt.Sprintf("%s: not whole in the %s", l, kind))
	}
	if m.Spared > 0 {
		warn(fmt.Sprintf("%s/%s: lacks %s that the %s has", key[0], key[1], objectsText(int64(m.Spared)), kind))
	}
}

// Recorded are the records of the versions up to the head, which has one in
// any case.
func Recorded(files []File, side string, head int) map[int][]byte {
	records := map[int][]byte{head: nil}
	for _, f := range files {
		name, ok := strings.CutPrefix(f.Name, side+"/keys/")
		if v, isVersion := parcel.ParseVersionDir(name); ok && isVersion && v <= head {
			records[v] = f.Data
		}
	}
	return records
}

// grow makes room for what was interned.
func (w *Walker) grow() { w.of = append(w.of, make([]int32, len(w.in.Tags)-len(w.of))...) }

// walk is a walker at work on a parcel.
type walk struct {
	*Walker
	*Missing
	ctx    context.Context
	key    [2]string
	o      *Parcel
	sealer seal.Sealer
	err    error // why spare could not look
}

// version is what is not there of all that a keyroot leads to.
func (w *walk) version(keyroot seal.Ref) []uint32 {
	id, ok := w.want(keyroot.Tag)
	if !ok {
		return []uint32{id}
	}
	sealed, err := w.Get(w.ctx, keyroot.Tag)
	var root *keyring.Root
	if err == nil {
		root, err = keyring.OpenRoot(w.sealer, keyroot, sealed)
	}
	if err != nil {
		return []uint32{id}
	}
	refs := []levelRef{{root.Cfg, 0}}
	for _, im := range root.Images {
		refs = append(refs, levelRef{im.Ref, im.Depth})
	}
	var lack []uint32
	for _, at := range refs {
		if at.ref.IsNil() {
			continue
		}
		if id, ok := w.want(at.ref.Tag); !ok {
			lack = append(lack, id)
		} else {
			lack = append(lack, w.below(id, at)...)
		}
	}
	slices.Sort(lack)
	return slices.Compact(lack)
}

// below is what is not there of all below an object that is: each once.
func (w *walk) below(id uint32, at levelRef) []uint32 {
	if at.level == 0 || w.err != nil {
		return nil
	}
	b := w.blocks[at]
	if b == nil {
		block, err := keyring.GetBlock(w.ctx, w.sealer, w, at.ref, at.level)
		if err != nil {
			return []uint32{id}
		}
		b = new(node)
		for _, sub := range block {
			if sub.IsNil() {
				continue
			}
			b.ids = append(b.ids, w.in.intern(sub.Tag))
			if at.level > 1 {
				b.refs = append(b.refs, sub)
			}
		}
		w.grow()
		w.blocks[at] = b
	}
	if b.of == w.n {
		return b.lack
	}
	b.of, b.lack = w.n, nil
	for i, id := range b.ids {
		if w.of[id] != w.n {
			if _, ok := w.want(w.in.Tags[id]); !ok {
				b.lack = append(b.lack, id)
				continue
			}
		}
		if at.level > 1 {
			b.lack = append(b.lack, w.below(id, levelRef{b.refs[i], at.level - 1})...)
		}
	}
	slices.Sort(b.lack)
	b.lack = slices.Compact(b.lack)
	return b.lack
}

// want is the number of an object that a version needs, and whether it is
// there. If it is not the parcel's, a copy elsewhere counts.
func (w *walk) want(tag seal.Tag) (id uint32, ok bool) {
	id = w.in.intern(tag)
	w.grow()
	if w.of[id] == w.n {
		return id, true
	}
	bad := w.in.Bad[id]
	w.Absent[id] = !bad
	if w.in.From[id] == nil || bad { // else another parcel has it
		b, err := w.get(w.ctx, tag)
		if err != nil {
			return id, false
		}
		w.in.Size[id] = int64(len(b))
		delete(w.in.Bad, id)
	}
	w.of[id] = w.n
	w.o.Objects = append(w.o.Objects, id)
	w.Spared++
	return id, true
}

// get is spare.
func (w *walk) get(ctx context.Context, tag seal.Tag) ([]byte, error) {
	b, err := w.spare(ctx, w.key, tag)
	if err != nil && !errors.Is(err, parcel.ErrNoObject) && !errors.Is(err, parcel.ErrDamaged) {
		w.err = err
	}
	return b, err
}

// Get is the content of an object: the parcel's, or the spare one.
func (w *walk) Get(ctx context.Context, tag seal.Tag) ([]byte, error) {
	if b, err := ReadObject(w.o.P, tag); err == nil {
		return b, nil
	}
	return w.get(ctx, tag)
}
