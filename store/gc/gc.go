// Package gc removes the objects that no version leads to, and what killed
// processes left in a tree.
//
// It is a mark and sweep of one parcel at a time, which never races a commit or
// an upload and may be killed at any instant. What it cannot be sure of, because
// a version is damaged, say, it leaves alone.
package gc

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"syscall"

	"isr/store"
	"isr/store/atomicfile"
	"isr/store/parcel"
	"isr/store/reach"
	"isr/store/seal"
	"isr/store/tree"
)

// Options choose what is collected.
type Options struct {
	User, Parcel string // empty: all
	DryRun       bool   // say what would be removed, and change nothing
}

// Collected is what was done to one parcel.
type Collected struct {
	User    string `json:"user"`
	Parcel  string `json:"parcel"`
	Objects int64  `json:"objects"` // that no version leads to, removed
	Freed   int64  `json:"freed"`   // bytes of the disk; none for an object that another parcel has too
	Error   error  `json:"-"`       // why the parcel was left alone
}

// Run removes the objects that no version leads to, and what killed processes
// left. It calls report for each parcel, by one at a time; a parcel that it
// cannot be sure of, because a version is damaged, say, it leaves alone. Of all users, one
// who is damaged is reported with no parcel.
//
// It never races anybody: a parcel's versions are walked, and its objects
// listed, while it is in use; then under its flock what was committed
// meanwhile is walked, and what is left of the list removed, some at a time.
// Who was told that the parcel has an object which no version needs, and refers
// to it in a commit, is told that it is gone, puts it, and commits again.
func Run(ctx context.Context, s *store.Store, o Options, report func(Collected)) error {
	users, err := s.SelectUsers(o.User)
	if err != nil {
		return err
	}
	var parcels []*store.Parcel
	sound := users[:0:0]
	for _, u := range users {
		ps, err := s.Select(u, o.Parcel)
		if o.User == "" && errors.Is(err, parcel.ErrDamaged) {
			report(Collected{User: u, Error: err})
			continue
		}
		if err != nil {
			return err
		}
		sound, parcels = append(sound, u), append(parcels, ps...)
	}
	if !o.DryRun {
		if err := s.ClearLeftovers(sound); err != nil {
			return err
		}
	}
	g := &collector{dry: o.DryRun, cache: reach.NewCache(), going: make(map[tree.Inode]uint64)}
	var mu sync.Mutex
	return tree.Parallel(ctx, runtime.GOMAXPROCS(0), slices.All(parcels), func(ctx context.Context, _ int, p *store.Parcel) error {
		c, err := g.parcel(ctx, p)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, parcel.ErrNoParcel):
			return nil // it was removed meanwhile
		}
		c.Error = err
		mu.Lock()
		defer mu.Unlock()
		report(c)
		return nil
	})
}

type collector struct {
	dry   bool
	cache *reach.Cache

	mu    sync.Mutex            // while an object is looked at and removed
	going map[tree.Inode]uint64 // of a dry run: links that would be removed
}

// sweepBatch bounds the objects that are removed under one hold of the flock.
// Tests have it smaller.
var sweepBatch = 4096

// One is Run for one parcel.
func One(ctx context.Context, p *store.Parcel) (Collected, error) {
	g := &collector{cache: reach.NewCache()}
	return g.parcel(ctx, p)
}

func (g *collector) parcel(ctx context.Context, p *store.Parcel) (Collected, error) {
	c := Collected{User: p.User(), Parcel: p.Name()}
	content, err := p.OpenContent()
	if err != nil {
		return c, err
	}
	defer content.Close()
	r := reach.New(p, g.cache)
	cfg, err := p.Config()
	if err != nil {
		return c, err
	}
	// Whatever cannot be walked now is tried again under the flock.
	rerr := r.All(ctx, cfg)
	if err := ctx.Err(); err != nil {
		return c, err
	}
	list, bare, err := unreached(content, r)
	if err != nil {
		return c, p.Wrap(err)
	}
	if g.dry {
		if err := errors.Join(rerr, keyrootsMissing(p, content, cfg)); err != nil {
			return c, err
		}
		for _, tag := range list {
			g.count(&c, content, tag)
		}
		return c, nil
	}
	for first := true; first || len(list) > 0; first = false {
		batch := list[:min(len(list), sweepBatch)]
		list = list[len(batch):]
		err := p.Exclusive(func() error {
			if first {
				if err := p.Tidy(ctx, content); err != nil {
					return err
				}
			}
			return g.sweep(ctx, &c, p, content, r, batch)
		})
		if err != nil {
			return c, err
		}
	}
	if len(bare) == 0 {
		return c, nil
	}
	return c, p.Exclusive(func() error { return removeEmpty(content, bare) })
}

// unreached lists the objects that r has not, and the directories of hdk that
// have no others.
func unreached(content *os.Root, r *reach.Reach) (list []seal.Tag, bare []string, err error) {
	hdk, dirs, err := tree.ObjectDirs(content)
	if err != nil {
		return nil, nil, err
	}
	defer hdk.Close()
	for _, ab := range dirs {
		d, err := tree.OpenObjects(hdk, ab)
		if err != nil {
			return nil, nil, err
		}
		d.Close()
		reached := false
		for _, tag := range d.Tags {
			if r.Has(tag) {
				reached = true
			} else {
				list = append(list, tag)
			}
		}
		if !reached {
			bare = append(bare, ab)
		}
	}
	return list, bare, nil
}

// sweep removes those of the batch that no version leads to by now. The
// caller has the flock.
func (g *collector) sweep(ctx context.Context, c *Collected, p *store.Parcel, content *os.Root, r *reach.Reach, batch []seal.Tag) error {
	cfg, err := p.Config()
	if err != nil {
		return err
	}
	if err := r.All(ctx, cfg); err != nil {
		return err
	}
	if err := keyrootsMissing(p, content, cfg); err != nil {
		return err
	}
	if len(batch) == 0 {
		return nil
	}
	// No power cut may bring back the record of a version whose objects went.
	if err := atomicfile.SyncDir(filepath.Join(p.LockDir(), "keys")); err != nil {
		return p.Wrap(err)
	}
	for _, tag := range batch {
		if err := ctx.Err(); err != nil {
			return err
		}
		if r.Has(tag) {
			continue
		}
		tree.Step("sweep")
		if err := g.remove(c, content, tag); err != nil {
			return p.Wrap(err)
		}
	}
	return nil
}

// remove removes an object.
func (g *collector) remove(c *Collected, content *os.Root, tag seal.Tag) error {
	name := filepath.Join("hdk", tree.ObjectName(tag))
	g.mu.Lock()
	defer g.mu.Unlock()
	fi, err := content.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) || err == nil && fi.IsDir() {
		return nil
	}
	if err != nil {
		return err
	}
	if err := content.Remove(name); err != nil {
		return err
	}
	c.Objects++
	if st := fi.Sys().(*syscall.Stat_t); st.Nlink == 1 {
		c.Freed += st.Blocks * 512
	}
	return nil
}

// count is remove in a dry run.
func (g *collector) count(c *Collected, content *os.Root, tag seal.Tag) {
	fi, err := content.Lstat(filepath.Join("hdk", tree.ObjectName(tag)))
	if err != nil || fi.IsDir() {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	st := fi.Sys().(*syscall.Stat_t)
	id := tree.InodeOf(st.Dev, st.Ino, tag)
	c.Objects++
	n := g.going[id] + 1
	if st.Nlink > 1 {
		g.going[id] = n
	}
	if n == uint64(st.Nlink) {
		c.Freed += st.Blocks * 512
	}
}

// keyrootsMissing is an error if a version's directory is there and its record
// is not: it may be all that is left of a version whose keyroot was lost.
func keyrootsMissing(p *store.Parcel, content *os.Root, cfg *parcel.Config) error {
	if _, _, err := p.Published(0); err != nil {
		return err
	}
	entries, err := tree.ReadDir(content, ".")
	if err != nil {
		return p.Wrap(err)
	}
	for _, e := range entries {
		v, ok := parcel.ParseVersionDir(e.Name())
		if !ok || v > cfg.Version {
			continue
		}
		if _, err := os.Lstat(p.VersionFile(v)); errors.Is(err, fs.ErrNotExist) {
			return p.Errorf(parcel.Damaged, "version %d: its keyroot is missing", v).
				WithHint("restore %s from a backup; if the version is to go, remove %s", p.VersionFile(v), p.VersionDir(v))
		}
	}
	return nil
}

// removeEmpty removes those directories of hdk that are empty. The caller has
// the flock.
func removeEmpty(content *os.Root, dirs []string) error {
	for _, ab := range dirs {
		err := content.Remove(filepath.Join("hdk", ab))
		if err != nil && !errors.Is(err, syscall.ENOTEMPTY) && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}
