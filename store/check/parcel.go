package check

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"

	"isr/store"
	"isr/store/keyring"
	"isr/store/parcel"
	"isr/store/seal"
	"isr/store/tree"
)

// objectState is what is known of one object of a parcel.
type objectState struct {
	size    int64
	bad     string // what is wrong with it, "" nothing
	reached bool
}

// parcelCheck is the check of one parcel.
type parcelCheck struct {
	*Checker
	p       *store.Parcel
	cfg     *parcel.Config
	objects map[seal.Tag]*objectState
	blocks  map[seal.Ref]int // damaged references at or below each block walked
	told    map[seal.Tag]bool
	places  map[seal.Tag]*place // of damaged objects, in the version being walked
	damaged bool                // some version
}

// parcel looks at one parcel; the caller set c.where.
func (c *Checker) parcel(ctx context.Context, p *store.Parcel) error {
	c.sum.Parcels++
	pc := &parcelCheck{Checker: c, p: p, objects: make(map[seal.Tag]*objectState),
		blocks: make(map[seal.Ref]int), told: make(map[seal.Tag]bool)}
	if err := p.OwnDirs(); err != nil {
		c.bad(err)
		return ctx.Err()
	}
	pc.lockSide()
	cfg, err := p.Config()
	if err != nil {
		c.bad(err)
		return ctx.Err()
	}
	pc.cfg = cfg
	if (cfg.User != p.User() || cfg.Parcel != p.Name()) && !tree.Exists(filepath.Join(p.LockDir(), tree.RenameFile)) {
		c.problem(Bad, "correct USER and PARCEL in parcel.cfg", "parcel.cfg is of %s %s", cfg.User, cfg.Parcel)
	}
	if _, err := os.Lstat(p.ContentDir()); errors.Is(err, fs.ErrNotExist) {
		return ctx.Err() // as the user's check said
	}
	if c.opts.Version > cfg.Version {
		_, _, err := p.Published(c.opts.Version)
		return err
	}
	if err := pc.hdk(ctx); err != nil {
		return err
	}
	versions, err := pc.versions()
	if err != nil {
		c.bad(err)
	}
	if v := c.opts.Version; v != 0 && !slices.Contains(versions, v) {
		if _, _, err := p.Published(v); errors.Is(err, parcel.ErrNoVersion) {
			return err
		}
	}
	// The newest first: damage that versions share is reported for the newest.
	for _, v := range slices.Backward(versions) {
		if c.opts.Version == 0 || c.opts.Version == v {
			c.where.Version = v
			if pc.unlessPruned(ctx, v) {
				c.sum.Versions++
			} else if c.opts.Version == v {
				_, _, err := p.Published(v)
				return err
			}
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
	c.where.Version = 0
	if c.opts.Version == 0 {
		pc.rest()
		pc.contentSide()
	}
	return ctx.Err()
}

// lockSide looks at the lock, and who can see it.
func (c *parcelCheck) lockSide() {
	p := c.p
	names := []string{tree.ConfigFile, tree.NonceFile, tree.HolderFile, tree.ReleasedFile, tree.EpochFile, tree.FlockFile, tree.UsageFile, tree.RenameFile}
	c.known(p.LockDir(), append(names, "keys", tree.UnfinishedFile)...)
	for _, n := range append(names, "", "keys") {
		c.private(filepath.Join(p.LockDir(), n))
	}
	c.known(filepath.Join(p.LockDir(), "keys"), "0*", "keyroot")
	if _, err := os.Lstat(filepath.Join(p.LockDir(), tree.UnfinishedFile)); err == nil {
		c.problem(Note, "the next acquire or commit repairs it", "the process that made the parcel was killed right after")
	}
	l, err := p.Holder()
	if err != nil {
		c.bad(err)
	}
	if _, err := p.LastReleased(); err != nil {
		c.bad(err)
	}
	epoch, err := p.Epoch()
	if err != nil {
		c.bad(err)
	} else if l != nil && l.Epoch > epoch {
		c.problem(Bad, "write the larger one into it", "epoch is %d, the holder's is %d", epoch, l.Epoch)
	}
}

// hdk reads the names of all objects, and with Content the objects.
func (c *parcelCheck) hdk(ctx context.Context) error {
	var mu sync.Mutex
	before, counted := c.p.KeptUsage()
	var there store.Usage
	dirs, err := os.ReadDir(c.p.HdkDir())
	if err != nil {
		c.bad(err)
	}
	for _, d := range dirs {
		dir := filepath.Join(c.p.HdkDir(), d.Name())
		entries, err := os.ReadDir(dir)
		if err != nil || len(d.Name()) != 2 {
			c.problem(Note, "", "%s: unknown file", dir)
			continue
		}
		err = tree.Parallel(ctx, runtime.GOMAXPROCS(0), slices.All(entries), func(_ context.Context, _ int, e fs.DirEntry) error {
			o, tag, err := c.object(dir, e, &mu)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				c.problem(Note, "", "%s: unknown file", filepath.Join(dir, e.Name()))
				return nil
			}
			c.objects[tag] = o
			c.sum.Objects++
			c.sum.Bytes += o.size
			there.Objects++
			there.Bytes += o.size
			return nil
		})
		if err != nil {
			return err
		}
	}
	if u, ok := c.p.KeptUsage(); ok && counted && u == before && u != there {
		c.problem(Note, "remove it, and it is made again", "usage says %d objects, %d bytes: there are %d, %d", u.Objects, u.Bytes, there.Objects, there.Bytes)
	}
	return nil
}

// object looks at one file below hdk; the error says that it is none of ours.
func (c *parcelCheck) object(dir string, e fs.DirEntry, mu *sync.Mutex) (*objectState, seal.Tag, error) {
	tag, err := seal.ParseTag(e.Name())
	if err != nil {
		return nil, "", err
	}
	if !strings.HasPrefix(e.Name(), filepath.Base(dir)) {
		return nil, "", errors.New("in the wrong directory")
	}
	path := filepath.Join(dir, e.Name())
	fi, err := os.Lstat(path)
	if err != nil {
		return nil, "", err
	}
	o := &objectState{size: fi.Size()}
	switch {
	case !fi.Mode().IsRegular():
		o.bad = "is not a file"
	case fi.Size() == 0:
		o.bad = "is empty"
	case len(tag) != c.cfg.Crypto.HashSize():
		o.bad = fmt.Sprintf("is of another suite than %s", c.cfg.Crypto)
	case c.opts.Content && c.opts.Sample.Has(tag):
		st := fi.Sys().(*syscall.Stat_t)
		id := tree.InodeOf(st.Dev, st.Ino, tag)
		mu.Lock()
		whole := c.whole[id]
		mu.Unlock()
		if !whole {
			if err := tree.VerifyObject(path, tag); errors.Is(err, parcel.ErrDamaged) {
				o.bad = "does not match its name"
			} else if err != nil {
				o.bad = "cannot be read: " + err.Error()
			}
		}
		mu.Lock()
		c.whole[id] = o.bad == ""
		c.read(o.size)
		mu.Unlock()
	}
	if fi.Mode().IsRegular() && fi.Mode().Perm() != tree.ObjectMode {
		mu.Lock()
		c.problem(Note, "chmod 0400 it", "object %s: mode %04o", tag, fi.Mode().Perm())
		mu.Unlock()
	}
	return o, tag, nil
}

// versions are the versions that are there. Those that were pruned left no
// trace; others that are not there it reports.
func (c *parcelCheck) versions() ([]int, error) {
	head := c.cfg.Version
	recorded, err := c.p.Recorded()
	if err != nil {
		return nil, err
	}
	all := map[int]bool{head: true}
	for _, v := range recorded {
		all[v] = true
	}
	entries, _ := os.ReadDir(c.p.ContentDir())
	for _, e := range entries {
		if v, ok := parcel.ParseVersionDir(e.Name()); ok {
			all[v] = true
		}
	}
	there := recorded[:0:0]
	for _, v := range slices.Sorted(maps.Keys(all)) {
		_, keyed := slices.BinarySearch(recorded, v)
		switch {
		case v > head:
			c.problem(Note, "the next commit overwrites it", "version %d: unfinished: the head is %d", v, head)
		case keyed:
			there = append(there, v)
		default:
			c.where.Version = v
			c.problem(Bad, fmt.Sprintf("restore %s from a backup", c.p.VersionFile(v)),
				"keyroot is missing: the version cannot be opened")
			c.where.Version = 0
		}
	}
	return there, nil
}

// place is where a version needs a damaged object.
type place struct {
	image  string // "" not in one
	what   string // a block
	chunks keyring.Ranges
}

// unlessPruned walks one version, and reports whether it is there yet. What is
// wrong with one that was pruned meanwhile is nothing to tell: prune takes the
// directory and the record first.
func (c *parcelCheck) unlessPruned(ctx context.Context, v int) bool {
	var found []Problem
	tell, damaged := c.report, c.damaged
	before := c.sum
	c.places = nil
	c.report = func(p Problem) { found = append(found, p) }
	c.version(ctx, v)
	c.report = tell
	if len(found) > 0 && c.pruned(v) {
		c.sum.Errors, c.sum.Notes, c.damaged = before.Errors, before.Notes, damaged
		for tag := range c.places {
			delete(c.told, tag)
		}
		maps.DeleteFunc(c.blocks, func(_ seal.Ref, damaged int) bool { return damaged > 0 })
		return false
	}
	for _, p := range found {
		c.report(p)
	}
	return true
}

// pruned reports whether nothing is left of a version that is not the head.
func (c *parcelCheck) pruned(v int) bool {
	_, err := os.Lstat(c.p.VersionFile(v))
	_, derr := os.Lstat(filepath.Join(c.p.ContentDir(), parcel.VersionDir(v)))
	cfg, cerr := c.p.Config()
	return errors.Is(err, fs.ErrNotExist) && errors.Is(derr, fs.ErrNotExist) && cerr == nil && cfg.Version > v
}

// version walks one version.
func (c *parcelCheck) version(ctx context.Context, v int) {
	rec, err := c.p.Record(v)
	if err != nil {
		c.bad(err)
		return
	}
	c.places = make(map[seal.Tag]*place)
	damaged := c.present(rec.Keyroot.Tag, place{what: "root block"})
	var root *keyring.Root
	if damaged == 0 {
		if root, err = c.p.OpenRoot(ctx, c.p, c.cfg, rec.Keyroot); err != nil {
			c.bad(err)
			damaged++
		}
	}
	if root != nil {
		if !root.Cfg.IsNil() {
			damaged += c.present(root.Cfg.Tag, place{what: "cfg archive"})
		}
		for _, im := range root.Images {
			damaged += c.tree(ctx, im, im.Ref, im.Depth, 0)
		}
	}
	if ctx.Err() != nil {
		return
	}
	c.tellPlaces()
	if damaged > 0 {
		c.damaged = true
		places := "one place"
		if damaged > 1 {
			places = fmt.Sprintf("%d places", damaged)
		}
		c.problem(Bad, "put the objects back from a backup, a client's hoard or a copy of the parcel",
			"cannot be restored whole: damage in %s", places)
	}
	c.directory(rec, root, damaged == 0)
}

// tellPlaces reports each damaged object of the version once, with all the
// chunks that need it. What a newer version shares was reported for that.
func (c *parcelCheck) tellPlaces() {
	// Objects have no order of their own: that of the first chunk.
	tags := slices.SortedFunc(maps.Keys(c.places), func(a, b seal.Tag) int {
		x, y := c.places[a], c.places[b]
		if d := strings.Compare(x.image, y.image); d != 0 {
			return d
		}
		if len(x.chunks) > 0 && len(y.chunks) > 0 && x.chunks[0] != y.chunks[0] {
			return int(min(1, max(-1, x.chunks[0].First-y.chunks[0].First)))
		}
		return strings.Compare(string(a), string(b))
	})
	for _, tag := range tags {
		if c.told[tag] {
			continue
		}
		c.told[tag] = true
		at := c.places[tag]
		what := at.what
		switch {
		case what == "":
			what = fmt.Sprintf("%s: %s", at.image, at.chunks)
		case at.image != "":
			what = at.image + ": " + what
		}
		p := c.where
		p.Severity, p.Msg = Bad, fmt.Sprintf("%s: object %s %s", what, tag, c.objects[tag].bad)
		p.Image, p.Chunks, p.Tag = at.image, at.chunks, tag
		c.tell(p)
	}
}

// present is the number of damaged objects, 0 or 1, at tag, which the version
// needs at that place.
func (c *parcelCheck) present(tag seal.Tag, at place) int {
	o := c.objects[tag]
	if o == nil {
		// It may have come after hdk was listed.
		fi, err := os.Lstat(filepath.Join(c.p.HdkDir(), tree.ObjectName(tag)))
		if err != nil {
			o = &objectState{bad: "is missing"}
		} else {
			o = &objectState{size: fi.Size()}
		}
		c.objects[tag] = o
	}
	o.reached = true
	if o.bad == "" {
		return 0
	}
	p := c.places[tag]
	if p == nil {
		c.places[tag] = &at
		return 1
	}
	// In the order of the chunks, as the tree is walked.
	if p.image == at.image {
		for _, r := range at.chunks {
			p.chunks = p.chunks.Add(r)
		}
	}
	return 1
}

// tree is the number of damaged objects at and below ref, one of im's on
// level with number n there.
func (c *parcelCheck) tree(ctx context.Context, im keyring.Image, ref seal.Ref, level int, n int64) int {
	if ref.IsNil() || ctx.Err() != nil {
		return 0
	}
	at := place{image: im.Name, chunks: keyring.Ranges{{First: n << (8 * level), Last: min((n+1)<<(8*level), im.Chunks()) - 1}}}
	if level == 0 {
		return c.present(ref.Tag, at)
	}
	// A block that is damaged below is walked again, for the numbers of the
	// chunks there.
	if damaged, ok := c.blocks[ref]; ok && damaged == 0 {
		return 0
	}
	at.what = fmt.Sprintf("keyring block %d of level %d", n, level)
	damaged := c.present(ref.Tag, at)
	if damaged == 0 {
		b, err := keyring.GetBlock(ctx, c.cfg.Sealer(), c.p, ref, level)
		if err != nil {
			if _, ok := c.blocks[ref]; !ok {
				p := c.where
				p.Severity, p.Msg = Bad, fmt.Sprintf("%s: %s: %v", im.Name, at.what, err)
				p.Image, p.Chunks = im.Name, at.chunks
				c.tell(p)
			}
			damaged++
		} else {
			for i, r := range b {
				damaged += c.tree(ctx, im, r, level-1, n*keyring.Fanout+int64(i))
			}
		}
	}
	c.blocks[ref] = damaged
	return damaged
}

// directory looks at a version's directory, which is derived.
func (c *parcelCheck) directory(rec *store.VersionRecord, root *keyring.Root, whole bool) {
	state := "its content is whole, and can still be checked out"
	if !whole {
		state = "and its content is damaged"
	}
	hint := ""
	if rec.Version == c.cfg.Version {
		hint = "the next acquire or commit makes it again"
	}
	dir := filepath.Join(c.p.ContentDir(), parcel.VersionDir(rec.Version))
	if _, err := os.Lstat(dir); errors.Is(err, fs.ErrNotExist) {
		c.problem(Note, hint, "directory is missing; %s", state)
		return
	}
	links := [][2]string{{"keyring.enc", filepath.Join("..", "hdk", tree.ObjectName(rec.Keyroot.Tag))}}
	if root != nil && !root.Cfg.IsNil() {
		links = append(links, [2]string{"cfg.tgz.enc", filepath.Join("..", "hdk", tree.ObjectName(root.Cfg.Tag))})
	}
	for _, l := range links {
		if name, target := l[0], l[1]; !tree.IsLink(filepath.Join(dir, name), target) {
			c.problem(Note, hint, "link %s is missing or wrong; %s", name, state)
		}
	}
	if b, err := tree.ReadOwn(filepath.Join(dir, "info")); err != nil {
		c.problem(Note, "", "info is missing; %s", state)
	} else if public, err := rec.Public().Encode(); err == nil && !bytes.Contains(b, public) {
		c.problem(Note, "", "info is not as the version's record has it")
	}
	c.known(dir, "keyring.enc", "cfg.tgz.enc", "info")
}

// rest reports what no version reaches.
func (c *parcelCheck) rest() {
	var count, bytes int64
	for tag, o := range c.unreached() {
		count++
		bytes += o.size
		if o.bad != "" && o.bad != "is missing" {
			// A later commit would take it for whole.
			p := c.where
			p.Severity, p.Msg, p.Hint, p.Tag = Bad, fmt.Sprintf("object %s, which no version needs, %s", tag, o.bad), "remove it", tag
			c.tell(p)
		}
	}
	what, hint := "", "gc removes them"
	if c.damaged {
		what, hint = " that is whole", ""
	}
	if count > 0 {
		c.problem(Note, hint, "%d objects of %d bytes are needed by no version%s", count, bytes, what)
	}
}

func (c *parcelCheck) unreached() iter.Seq2[seal.Tag, *objectState] {
	return func(yield func(seal.Tag, *objectState) bool) {
		for tag, o := range c.objects {
			if !o.reached && !yield(tag, o) {
				return
			}
		}
	}
}

// contentSide looks at what surrounds versions and objects.
func (c *parcelCheck) contentSide() {
	p := c.p
	c.private(p.ContentDir())
	c.known(p.ContentDir(), "hdk", "staging", "keys", "last", "cfg.tgz.enc", "0*")
	c.known(filepath.Join(p.ContentDir(), "keys"), "keyring.enc")
	const hint = "the next acquire or commit repairs it"
	if rec, err := p.Record(c.cfg.Version); err == nil {
		for _, l := range p.Links(rec) {
			if !tree.IsLink(filepath.Join(p.ContentDir(), l.Name), l.Target) {
				c.problem(Note, hint, "link %s is missing or wrong", l.Name)
			}
		}
	}
	l, err := p.Holder()
	if err == nil {
		public, perr := shownHolder(p)
		if l == nil && perr == nil || l != nil && (perr != nil || public.Epoch != l.Epoch) {
			c.problem(Note, hint, "lockholder does not say who holds the parcel")
		}
	}
	if entries, err := os.ReadDir(p.StagingDir()); errors.Is(err, fs.ErrNotExist) {
		c.problem(Note, hint, "staging is missing")
	} else if err != nil {
		c.bad(err)
	} else if l == nil && len(entries) > 0 {
		c.problem(Note, "the next release removes them", "%d files wait in staging, and nobody holds the parcel", len(entries))
	}
}

// shownHolder is who the file for people says holds the parcel.
func shownHolder(p *store.Parcel) (*parcel.Lock, error) {
	text, err := tree.ReadOwn(filepath.Join(p.LockDir(), tree.HolderFile))
	if err != nil {
		return nil, err
	}
	return parcel.ParseLock(text)
}
