// Package mirror keeps a warm standby of a realm: a tree like the realm's own,
// which can be served at once.
//
// It promises that each parcel in the tree is whole whenever a pass ends, or is
// killed; that a pass costs what changed since the last; that what the realm
// lost by a fault is not taken from the tree too; and that a tree which was
// served in the realm's stead, or is none of its mirrors, is not written to. It
// does not keep two passes of one realm apart: who calls does, with backup.Lock.
package mirror

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"isr/store"
	"isr/store/backup/realm"
	"isr/store/backup/target"
	"isr/store/check"
	"isr/store/parcel"
	"isr/store/seal"
)

// Options say how a mirror is brought up to date.
type Options struct {
	Delete   bool // what the realm has no more goes from the mirror too
	Warn     func(text string)
	Progress func(done, total int64) // bytes; may be nil
}

// Result is what a pass did.
type Result struct {
	Parcels int   // in the realm
	Changed int   // of them, since the last pass
	Sent    int64 // objects
	Bytes   int64 // of them
	Linked  int64 // objects that another parcel of the mirror had
	Removed int64 // files
	Damaged int   // objects that are not whole in the realm, or missing, of parcels that changed
	Lost    int   // parcels that cannot be read, or users with all of theirs: the mirror has them as before
	Lacks   []realm.Lack
}

// digest is that of files.
func digest(files []realm.File) string {
	h := sha256.New()
	for _, f := range files {
		fmt.Fprintf(h, "%d %s %o %d\n%s", len(f.Name), f.Name, f.Mode, len(f.Data), f.Data)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// mirror is a pass at work.
type mirror struct {
	*realm.Survey
	tree  target.Tree
	o     Options
	old   *standby
	next  *standby
	res   Result
	where map[seal.Tag]string    // an object of the mirror, by which to link
	extra map[[2]string][]string // objects of the mirror that the realm has not
	mu    sync.Mutex
}

// Pass brings a tree up to date with the realm: objects first, then records,
// heads last, so that it can be served whenever the pass ends, and each parcel
// in it is whole in between. A tree that is no mirror of the realm is refused,
// and so is one that has what the realm has not: that was served.
func Pass(ctx context.Context, s *store.Store, t target.Tree, o Options) (*Result, error) {
	if o.Warn == nil {
		o.Warn = func(string) {}
	}
	m := &mirror{tree: t, o: o, where: make(map[seal.Tag]string), Survey: realm.NewSurvey(s, o.Warn)}
	files, err := m.begin(ctx)
	if err != nil {
		return nil, err
	}
	changed, err := m.changed(ctx)
	if err != nil {
		return nil, err
	}
	for _, key := range changed {
		if err := m.ahead(ctx, key); err != nil {
			return nil, err
		}
	}
	if err := m.objects(ctx, changed); err != nil {
		return nil, err
	}
	spared, err := m.walk(ctx, changed)
	if err == nil && spared {
		err = m.objects(ctx, changed)
	}
	if err != nil {
		return nil, err
	}
	if err := t.Sync(ctx); err != nil {
		return nil, err
	}
	// From here on a pass that is killed leaves what it is about to bring.
	for _, key := range changed {
		n := m.old.parcels[key]
		m.old.parcels[key] = noted{damagedDigest, append(slices.Clip(n.epochs), m.next.parcels[key].epochs...)}
	}
	if len(changed) > 0 {
		if err := m.note(ctx, m.old); err != nil {
			return nil, err
		}
	}
	for _, part := range []func(ctx context.Context, key [2]string) error{m.records, m.head} {
		err := target.Parallel(ctx, t.Width(), changed, part)
		if err == nil {
			err = t.Sync(ctx)
		}
		if err != nil {
			return nil, err
		}
	}
	m.res.Lost = m.Lost()
	return &m.res, m.end(ctx, files)
}

// begin looks at what is there, and marks it. files are those beside the
// parcels.
func (m *mirror) begin(ctx context.Context) (files []realm.File, err error) {
	c := realm.Collector{Skipped: func(name, why string) { m.o.Warn(fmt.Sprintf("%s: %s: not in the mirror", name, why)) }}
	if err := c.Realm(m.Store.Root()); err != nil {
		return nil, err
	}
	if err := m.Users(&c); err != nil {
		return nil, err
	}
	host, _ := os.Hostname()
	m.next = &standby{realm: m.Store.Realm(), from: parcel.Clean(host + ":" + m.Store.Root()), files: make(map[string]string), parcels: make(map[[2]string]noted)}
	text, err := target.Read(ctx, m.tree, realm.StandbyFile, realm.MaxRootFile)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		for e, err := range m.tree.List(ctx, ".") {
			if err != nil {
				return nil, err
			}
			return nil, parcel.NewError(parcel.Conflict, "%s: has files, %s first, and is no mirror: file standby is missing", m.tree, parcel.Clean(e.Name)).
				WithHint("mirror into an empty directory; a mirror that was promoted is one no more")
		}
		m.old = &standby{realm: m.next.realm, from: m.next.from, files: make(map[string]string), parcels: make(map[[2]string]noted)}
		return c.Files, m.note(ctx, m.old)
	case err != nil:
		return nil, err
	}
	if m.old, err = parseStandby(text); err != nil {
		return nil, parcel.NewError(parcel.Damaged, "%s: standby: %v", m.tree, err)
	}
	text, err = target.Read(ctx, m.tree, "realm.cfg", realm.MaxRootFile)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	theirs, terr := parcel.ParseRecord(text)
	ours, oerr := parcel.ParseRecord(realm.Find(c.Files, "realm.cfg"))
	if m.old.realm != m.Store.Realm() || len(text) > 0 && (terr != nil || oerr != nil || theirs.Get("SECRET") != ours.Get("SECRET")) {
		return nil, parcel.NewError(parcel.Conflict, "%s: is a mirror of another realm: %s, from %s", m.tree, parcel.Clean(m.old.realm), parcel.Clean(m.old.from))
	}
	return c.Files, nil
}

// changed reads all lock sides, and the object names of those parcels that
// changed since the last pass.
func (m *mirror) changed(ctx context.Context) (keys [][2]string, err error) {
	all, err := m.Parcels()
	if err != nil {
		return nil, err
	}
	m.res.Parcels = len(all)
	for _, key := range all {
		changed, err := m.look(ctx, key)
		if err != nil && !errors.Is(err, parcel.ErrNoParcel) && !m.Lose(key[0]+"/"+key[1], err) {
			return nil, err
		}
		if changed {
			keys = append(keys, key)
		}
	}
	m.res.Changed = len(keys)
	return keys, nil
}

// look is changed of one parcel.
func (m *mirror) look(ctx context.Context, key [2]string) (changed bool, err error) {
	user, name := key[0], key[1]
	p, err := m.Store.Parcel(user, name)
	if err != nil {
		return false, err
	}
	c := realm.Collector{Skipped: func(string, string) {}}
	if err := p.Shared(func() error { return c.Parcel(p.LockDir(), user, name) }); err != nil {
		return false, err
	}
	if n := m.old.parcels[key]; digest(c.Files) == n.digest {
		m.next.parcels[key] = n
		return false, nil
	}
	o, err := m.Read(ctx, user, name)
	if err != nil {
		return false, err
	}
	if o.Version == 0 {
		m.o.Warn(fmt.Sprintf("%s/%s: left as it is in the mirror", user, name))
		m.res.Lacks = append(m.res.Lacks, realm.Lack{User: user, Name: name})
		return false, nil
	}
	m.All[key] = o
	sum := digest(o.Files)
	m.next.parcels[key] = noted{sum, []int64{raiseEpoch(o, realm.LockSide(user, name)+"/epoch")}}
	return true, nil
}

// raiseEpoch raises the epoch of what goes into the mirror, as a restore does:
// who is the first to hold the parcel there, when the mirror has become the
// realm, comes after all whom the realm let hold it since this pass.
func raiseEpoch(o *realm.Parcel, name string) int64 {
	n := slices.IndexFunc(o.Files, func(f realm.File) bool { return f.Name == name })
	if n < 0 {
		n = len(o.Files)
		o.Files = append(o.Files, realm.File{Name: name, Mode: 0o600, Data: []byte("0")})
	}
	epoch, err := strconv.ParseInt(strings.TrimSpace(string(o.Files[n].Data)), 10, 64)
	if err != nil {
		return 0 // as it is, for check to tell
	}
	epoch = store.RaisedEpoch(epoch)
	o.Files[n].Data = fmt.Appendf(nil, "%d\n", epoch)
	return epoch
}

// ahead refuses a mirror in which a parcel went on by itself.
func (m *mirror) ahead(ctx context.Context, key [2]string) error {
	side := realm.LockSide(key[0], key[1])
	text, err := target.Read(ctx, m.tree, side+"/parcel.cfg", realm.MaxRootFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	conflict := func(format string, args ...any) error {
		return parcel.NewError(parcel.Conflict, "parcel %s/%s: the mirror %s", key[0], key[1], fmt.Sprintf(format, args...)).
			WithHint("if the mirror was served, it is the realm now: remove its file standby; else move the parcel away there")
	}
	o := m.All[key]
	theirs, terr := parcel.ParseConfig(text)
	ours, err := parcel.ParseConfig(realm.Find(o.Files, side+"/parcel.cfg"))
	if terr != nil || err != nil {
		return conflict("has a parcel.cfg that cannot be read")
	}
	if theirs.UUID != ours.UUID {
		return conflict("has another parcel of that name")
	}
	if theirs.Version > ours.Version {
		return conflict("has version %d, the realm %d", theirs.Version, ours.Version)
	}
	b, err := target.Read(ctx, m.tree, side+"/epoch", 64)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if was := m.old.parcels[key].epochs; err == nil && !slices.Contains(was, epochOf(b)) {
		return conflict("was locked: its epoch is %d, and was %v when it was mirrored", epochOf(b), was)
	}
	name := side + "/keys/" + parcel.VersionDir(theirs.Version)
	if b, err = target.Read(ctx, m.tree, name, realm.MaxRootFile); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if mine := realm.Find(o.Files, name); len(b) > 0 && mine != nil && commitOf(b) != commitOf(mine) {
		return conflict("has another version %d", theirs.Version)
	}
	return nil
}

// epochOf is the number in a parcel's epoch file.
func epochOf(text []byte) int64 {
	n, _ := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
	return n
}

// note writes the mark of the mirror.
func (m *mirror) note(ctx context.Context, b *standby) error {
	text, err := b.encode()
	if err == nil {
		err = m.tree.Put(ctx, realm.StandbyFile, text)
	}
	if err == nil {
		err = m.tree.Sync(ctx)
	}
	return err
}

// commitOf is what tells a version from others of its number.
func commitOf(record []byte) string {
	r, _ := parcel.ParseRecord(record)
	return r.Get("COMMIT") + " " + r.Get("KEYROOT")
}

func contentSide(key [2]string) string { return "users/" + key[0] + "/isr/" + key[1] }

func hdkName(key [2]string, tag seal.Tag) string {
	name := tag.String()
	return contentSide(key) + "/hdk/" + name[:2] + "/" + name
}

// walk finds out what versions need that is not there, but in the mirror or in
// another parcel it may be: spared then, and the parcel's now.
func (m *mirror) walk(ctx context.Context, changed [][2]string) (spared bool, err error) {
	w := realm.NewWalker(&m.In, func(ctx context.Context, key [2]string, tag seal.Tag) ([]byte, error) {
		return target.ReadObject(ctx, m.tree, hdkName(key, tag), tag)
	})
	for _, key := range changed {
		found, err := w.Parcel(ctx, key, m.All[key])
		if err != nil {
			return false, err
		}
		if len(found.Lacks) == 0 && len(found.Absent) == 0 {
			continue
		}
		there, err := realm.Versions(m.All[key].P)
		if err != nil && !errors.Is(err, parcel.ErrNoParcel) {
			return false, err
		}
		for v := range realm.Recorded(m.All[key].Files, realm.LockSide(key[0], key[1]), m.All[key].Version) {
			if !there[parcel.VersionDir(v)] && realm.Find(m.All[key].Files, realm.LockSide(key[0], key[1])+"/keys/"+parcel.VersionDir(v)) != nil {
				return false, wentAway(key)
			}
		}
		found.Tell(m.o.Warn, key, "mirror")
		m.res.Lacks = append(m.res.Lacks, found.Lacks...)
		missing := 0
		for _, gone := range found.Absent {
			if gone {
				missing++ // what is not whole was counted when it was read
			}
		}
		m.damaged(key, missing)
		spared = spared || found.Spared > 0
	}
	return spared, nil
}

// damagedDigest is that of no files: the parcel counts as changed at each pass.
const damagedDigest = "-"

// damaged notes that a parcel is not whole: the next pass looks at it again.
func (m *mirror) damaged(key [2]string, objects int, why ...string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, text := range why {
		m.o.Warn(fmt.Sprintf("%s/%s: %s", key[0], key[1], text))
	}
	m.res.Damaged += objects
	n := m.next.parcels[key]
	n.digest = damagedDigest
	m.next.parcels[key] = n
}

func wentAway(key [2]string) error {
	return parcel.NewError(parcel.Busy, "parcel %s/%s: objects went away while it was copied", key[0], key[1]).
		WithHint("run it again")
}

// objects puts or links what the mirror's parcels lack.
func (m *mirror) objects(ctx context.Context, changed [][2]string) error {
	type want struct {
		key [2]string
		id  uint32
	}
	var wants []want
	var total, done int64
	m.extra = make(map[[2]string][]string)
	for _, key := range changed {
		there := make(map[seal.Tag]int64)
		for e, err := range m.tree.List(ctx, contentSide(key)+"/hdk") {
			if err != nil {
				return err
			}
			last := path.Base(e.Name)
			if tag, err := seal.ParseTag(last); err == nil && e.Name == hdkName(key, tag) {
				there[tag] = e.Size
				if id, ok := m.In.IDs[tag]; ok && m.In.Size[id] == e.Size {
					m.where[tag] = e.Name
				}
			}
		}
		for _, id := range m.All[key].Objects {
			if m.In.Bad[id] {
				delete(there, m.In.Tags[id]) // better than nothing
				continue
			}
			if !m.In.Fits(id, there[m.In.Tags[id]]) {
				wants = append(wants, want{key, id})
				total += m.In.Size[id]
			}
			delete(there, m.In.Tags[id])
		}
		for tag := range there {
			m.extra[key] = append(m.extra[key], hdkName(key, tag))
		}
	}
	if len(wants) > 0 {
		if err := m.index(changed); err != nil {
			return err
		}
	}
	send := func(ctx context.Context, w want) error {
		how, err := m.object(ctx, w.key, w.id)
		if err != nil {
			return err
		}
		m.mu.Lock()
		defer m.mu.Unlock()
		switch how {
		case linked:
			m.res.Linked++
		case sent:
			m.res.Sent, m.res.Bytes = m.res.Sent+1, m.res.Bytes+m.In.Size[w.id]
		}
		done += m.In.Size[w.id]
		if m.o.Progress != nil {
			m.o.Progress(done, total)
		}
		return nil
	}
	// The first of each object is put, and the others are linked to it then.
	first := make(map[uint32]bool)
	var others []want
	firsts := slices.DeleteFunc(slices.Clone(wants), func(w want) bool {
		if first[w.id] {
			others = append(others, w)
			return true
		}
		first[w.id] = true
		return false
	})
	if err := target.Parallel(ctx, m.tree.Width(), firsts, send); err != nil {
		return err
	}
	if len(others) == 0 {
		return nil
	}
	if err := m.tree.Sync(ctx); err != nil { // what is linked to is to have its name
		return err
	}
	return target.Parallel(ctx, m.tree.Width(), others, send)
}

// index notes where the mirror has objects: in parcels that did not change.
func (m *mirror) index(changed [][2]string) error {
	for key := range m.next.parcels {
		if m.All[key] != nil {
			continue
		}
		p, err := m.Store.Parcel(key[0], key[1])
		if err != nil {
			continue
		}
		dirs, _ := os.ReadDir(filepath.Join(p.ContentDir(), "hdk"))
		for _, d := range dirs {
			entries, _ := os.ReadDir(filepath.Join(p.ContentDir(), "hdk", d.Name()))
			for _, e := range entries {
				if tag, err := seal.ParseTag(e.Name()); err == nil {
					if _, wanted := m.In.IDs[tag]; wanted {
						m.where[tag] = hdkName(key, tag)
					}
				}
			}
		}
	}
	return nil
}

// How an object came into a mirror.
const (
	sent = iota + 1
	linked
)

// object links or puts one object, and says how; 0 if it is not whole.
func (m *mirror) object(ctx context.Context, key [2]string, id uint32) (how int, err error) {
	tag := m.In.Tags[id]
	name := hdkName(key, tag)
	m.mu.Lock()
	old := m.where[tag]
	m.mu.Unlock()
	if old != "" && old != name {
		if err := m.tree.Link(ctx, old, name); err == nil {
			return linked, nil
		}
	}
	b, broken, err := m.Object(m.All[key].P, id)
	if broken != nil {
		m.damaged(key, 1, parcel.Clean(broken.Error()))
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return 0, wentAway(key)
	case realm.NotWhole(err):
		m.mu.Lock()
		defer m.mu.Unlock()
		m.In.Bad[id] = true
		return 0, nil
	case err != nil:
		return 0, err
	}
	if err := m.tree.Put(ctx, name, b); err != nil {
		return 0, err
	}
	m.mu.Lock()
	m.where[tag] = cmp.Or(m.where[tag], name)
	m.In.Size[id] = int64(len(b))
	m.mu.Unlock()
	return sent, nil
}

// records puts what describes versions: the records of the lock side, and the
// directories of the content side.
func (m *mirror) records(ctx context.Context, key [2]string) error {
	o := m.All[key]
	side := realm.LockSide(key[0], key[1])
	for _, f := range o.Files {
		if name := strings.TrimPrefix(f.Name, side+"/"); name == "parcel.cfg" || name == "nonce" {
			continue
		}
		if err := m.tree.Put(ctx, f.Name, f.Data); err != nil {
			return err
		}
	}
	for _, dir := range []string{side + "/keys", contentSide(key) + "/staging", contentSide(key) + "/keys", contentSide(key) + "/hdk"} {
		if err := m.tree.Mkdir(ctx, dir); err != nil {
			return err
		}
	}
	for _, f := range o.Files {
		v, ok := strings.CutPrefix(f.Name, side+"/keys/")
		if n, isVersion := parcel.ParseVersionDir(v); !ok || !isVersion || n > o.Version {
			continue
		}
		if err := m.view(ctx, key, v, "info", "keyring.enc", "cfg.tgz.enc"); err != nil {
			return err
		}
	}
	if !m.o.Delete {
		return nil
	}
	// What was pruned: the record first, as prune does.
	have := make(map[string]bool)
	for _, f := range o.Files {
		have[f.Name] = true
	}
	var gone []string
	for e, err := range m.tree.List(ctx, side+"/keys") {
		if err != nil {
			return err
		}
		last := path.Base(e.Name)
		if _, ok := parcel.ParseVersionDir(last); ok && !have[e.Name] {
			gone = append(gone, last)
		}
	}
	if len(gone) > 0 && !m.sound(ctx, key) {
		return nil
	}
	for _, v := range gone {
		m.remove(ctx, side+"/keys/"+v)
		for _, name := range []string{"/info", "/keyring.enc", "/cfg.tgz.enc", ""} {
			m.remove(ctx, contentSide(key)+"/"+v+name)
		}
	}
	return nil
}

// sound reports whether the realm's parcel has all that its versions need: what
// it has no more was pruned then, and not lost, and may go from the mirror too.
func (m *mirror) sound(ctx context.Context, key [2]string) bool {
	m.mu.Lock()
	whole := m.next.parcels[key].digest != damagedDigest
	m.mu.Unlock()
	if !whole {
		return false
	}
	sum, err := check.Run(ctx, m.Store, check.Options{User: key[0], Parcel: key[1]}, func(check.Problem) {})
	if err == nil && sum.Errors == 0 {
		return true
	}
	m.damaged(key, 0, "is not sound in the realm: nothing of it is removed from the mirror")
	return false
}

// view copies files and links of a directory of the content side. They are
// derived: one that is not there is none.
func (m *mirror) view(ctx context.Context, key [2]string, dir string, names ...string) error {
	root, err := os.OpenRoot(m.All[key].P.ContentDir())
	if err != nil {
		return nil
	}
	defer root.Close()
	for _, n := range names {
		name := filepath.Join(dir, n)
		called := contentSide(key) + "/" + name
		if target, err := root.Readlink(name); err == nil {
			if strings.HasPrefix(target, "/") || len(target) > 256 || !filepath.IsLocal(filepath.Join(filepath.Dir(name), target)) {
				continue
			}
			if err := m.tree.Symlink(ctx, target, called); err != nil {
				return err
			}
			continue
		}
		c := realm.Collector{Skipped: func(string, string) {}}
		if err := c.Add(root, name, called); err != nil {
			return err
		}
		for _, f := range c.Files {
			if err := m.tree.Put(ctx, f.Name, f.Data); err != nil {
				return err
			}
		}
	}
	return nil
}

// head puts what makes the rest count: the lock, and the head.
func (m *mirror) head(ctx context.Context, key [2]string) error {
	o := m.All[key]
	side := realm.LockSide(key[0], key[1])
	if nonce := realm.Find(o.Files, side+"/nonce"); nonce != nil {
		if err := m.tree.Put(ctx, side+"/nonce", nonce); err != nil {
			return err
		}
		if l, err := parcel.ParseLock(nonce); err == nil {
			public := l.Public()
			if err := m.derived(ctx, side+"/lockholder", public.Encode); err != nil {
				return err
			}
		}
	} else {
		for _, name := range []string{"/nonce", "/lockholder"} {
			if err := m.tree.Remove(ctx, side+name); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
	}
	if err := m.tree.Put(ctx, side+"/parcel.cfg", realm.Find(o.Files, side+"/parcel.cfg")); err != nil {
		return err
	}
	r, _ := parcel.ParseRecord(realm.Find(o.Files, side+"/keys/"+parcel.VersionDir(o.Version)))
	keyroot := parcel.Record{{Key: "VERSION", Value: strconv.Itoa(o.Version)}, {Key: "KEYROOT", Value: r.Get("KEYROOT")}}
	if err := m.derived(ctx, side+"/keys/keyroot", keyroot.Encode); err != nil {
		return err
	}
	return m.view(ctx, key, ".", "last", "cfg.tgz.enc", "keys/keyring.enc")
}

// derived puts a file that follows from others.
func (m *mirror) derived(ctx context.Context, name string, encode func() ([]byte, error)) error {
	text, err := encode()
	if err != nil {
		return nil // check says what is wrong with the others
	}
	return m.tree.Put(ctx, name, text)
}

// remove removes a file of the mirror, if it is there.
func (m *mirror) remove(ctx context.Context, name string) {
	err := m.tree.Remove(ctx, name)
	m.mu.Lock()
	defer m.mu.Unlock()
	if err == nil {
		m.res.Removed++
	} else if !errors.Is(err, fs.ErrNotExist) {
		m.o.Warn(fmt.Sprintf("%s: %s", name, parcel.Clean(err.Error())))
	}
}

// gone reports whether the realm has neither side of a parcel. One that has a
// side left was not removed by anybody who meant it.
func (m *mirror) gone(key [2]string) bool {
	_, contents, err := m.Store.UserDirs(key[0])
	if err != nil {
		return errors.Is(err, parcel.ErrNoParcel)
	}
	_, err = m.Store.Parcel(key[0], key[1])
	_, cerr := os.Lstat(filepath.Join(contents, key[1]))
	return errors.Is(err, parcel.ErrNoParcel) && errors.Is(cerr, fs.ErrNotExist)
}

// end puts what is beside the parcels, and notes what the mirror has now.
func (m *mirror) end(ctx context.Context, files []realm.File) error {
	m.next.time = time.Now().UTC().Truncate(time.Second)
	for _, f := range files {
		if !f.Mode.IsDir() && f.Name != "realm.cfg" && f.Name == parcel.Clean(f.Name) {
			m.next.files[f.Name] = digest([]realm.File{f})
		}
	}
	// A key or a password that was taken away lets nobody in there either. And
	// nothing is written through a link that was one.
	for name := range m.old.files {
		if _, ok := m.next.files[name]; !ok && !strings.HasPrefix(name, "log/") {
			m.remove(ctx, name)
		}
	}
	var hooks []realm.File
	for _, f := range files {
		var err error
		switch {
		case f.Mode.IsDir():
			for _, dir := range []string{".isr", "isr"} {
				if err == nil {
					err = m.tree.Mkdir(ctx, f.Name+dir)
				}
			}
		case m.old.files[f.Name] == m.next.files[f.Name]:
		case f.IsLink():
			if err = m.tree.Symlink(ctx, string(f.Data), f.Name); err != nil {
				// It was a directory.
				if err = m.tree.RemoveAll(ctx, f.Name); err == nil {
					err = m.tree.Symlink(ctx, string(f.Data), f.Name)
				}
			}
		default:
			err = m.tree.Put(ctx, f.Name, f.Data)
			if realm.LinkPlace(f.Name) && f.Mode&0o100 != 0 {
				hooks = append(hooks, f)
			}
		}
		if err != nil {
			return err
		}
	}
	for key, d := range m.old.parcels {
		if _, ok := m.next.parcels[key]; ok {
			continue
		}
		if m.o.Delete && m.gone(key) {
			m.remove(ctx, realm.LockSide(key[0], key[1])+"/parcel.cfg")
			for _, dir := range []string{realm.LockSide(key[0], key[1]), contentSide(key)} {
				if err := m.tree.RemoveAll(ctx, dir); err != nil {
					return err
				}
			}
			continue
		}
		m.next.parcels[key] = d // to be removed when that is wanted
	}
	if m.o.Delete {
		for key, names := range m.extra {
			if !m.sound(ctx, key) {
				continue
			}
			for _, name := range names {
				m.remove(ctx, name)
			}
		}
	}
	if err := m.tree.Sync(ctx); err != nil {
		return err
	}
	for _, f := range hooks {
		if err := m.tree.Chmod(ctx, f.Name, 0o700); err != nil {
			return err
		}
	}
	// Without it nobody serves an unfinished mirror.
	if err := m.tree.Put(ctx, "realm.cfg", realm.Find(files, "realm.cfg")); err != nil {
		return err
	}
	if err := m.tree.Sync(ctx); err != nil {
		return err
	}
	return m.note(ctx, m.next)
}
