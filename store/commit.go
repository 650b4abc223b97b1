package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"

	"isr/store/atomicfile"
	"isr/store/keyring"
	"isr/store/parcel"
	"isr/store/seal"
	"isr/store/tree"
)

// CommitRequest asks for a new version.
type CommitRequest struct {
	Nonce   string
	Parent  int      // the head it was made from
	Keyroot seal.Ref // of its root block, which is staged
	ID      string   // the same ID is answered with the same version
}

// Commit makes the version that r.Keyroot leads to the head, and returns its
// number, once all of it is there, intact and durable.
//
// The same ID again gets the same number, whatever became of the lock since.
// Otherwise parcel.ErrNotHolder if r.Nonce does not prove holding the parcel,
// parcel.ErrConflict if r.Parent is not the head, parcel.ErrNoObject naming
// the first object that is lacking: then nothing has happened, and those that
// isr_missing names may be put and the commit repeated.
func (p *Parcel) Commit(ctx context.Context, r CommitRequest) (number int, err error) {
	if r.Keyroot.IsNil() || r.ID == "" || r.ID != parcel.Clean(r.ID) || r.Parent < 1 {
		return 0, p.Errorf(parcel.Usage, "commit without keyroot, parent or a printable id")
	}
	err = p.Exclusive(func() error {
		head, cfg, err := p.Published(0)
		if err != nil {
			return err
		}
		if number, err = p.committed(r, cfg.Version); number > 0 || err != nil {
			if number > 0 {
				p.repair(cfg, head)
			}
			return err
		}
		lock, err := p.holding(r.Nonce)
		if err != nil {
			return err
		}
		if r.Parent != cfg.Version {
			return p.Errorf(parcel.Conflict, "version %d is the head, not %d", cfg.Version, r.Parent)
		}
		rec := &VersionRecord{Keyroot: r.Keyroot, Commit: r.ID}
		number, err = p.advance(ctx, cfg, head, rec, lock)
		return err
	})
	return number, err
}

// committed is the version that r asked for, if it was published before; else
// 0. Parent itself is looked at too: only that is sure to be there.
func (p *Parcel) committed(r CommitRequest, head int) (int, error) {
	for v := head; v >= r.Parent && v > 0; v-- {
		rec, err := p.Record(v)
		if errors.Is(err, parcel.ErrNoVersion) {
			continue
		}
		if err != nil {
			return 0, err
		}
		if rec.Commit != r.ID {
			continue
		}
		if rec.Keyroot != r.Keyroot {
			return 0, p.Errorf(parcel.Conflict, "commit id %s is version %d's, which is another one", r.ID, v)
		}
		return v, nil
	}
	return 0, nil
}

// Rollback makes a new version that equals version v, and returns its number:
// one record, nothing is copied. If the head equals v already, that is it.
func (p *Parcel) Rollback(ctx context.Context, nonce string, v int) (number int, err error) {
	return p.rollback(ctx, v, "", func() (*parcel.Lock, error) { return p.holding(nonce) })
}

// RollbackFree is Rollback of a parcel that nobody holds, and that nobody can
// acquire meanwhile, by an administrator on a host. parcel.ErrLocked if
// somebody holds it.
func (p *Parcel) RollbackFree(ctx context.Context, host string, v int, why string) (number int, err error) {
	if err := checkText("reason", why); err != nil {
		return 0, p.Wrap(err)
	}
	return p.rollback(ctx, v, parcel.Clean(why), func() (*parcel.Lock, error) {
		l, err := p.held()
		if l != nil {
			err = p.Errorf(parcel.Locked, "locked by %s", l).WithHint("--force breaks the lock first")
		}
		return &parcel.Lock{Host: parcel.Clean(host)}, err
	})
}

func (p *Parcel) rollback(ctx context.Context, v int, why string, may func() (*parcel.Lock, error)) (number int, err error) {
	err = p.Exclusive(func() error {
		head, cfg, err := p.Published(0)
		if err != nil {
			return err
		}
		lock, err := may()
		if err != nil {
			return err
		}
		old, _, err := p.Published(v)
		if err != nil {
			return err
		}
		if old.Keyroot == head.Keyroot {
			number = cfg.Version
			p.repair(cfg, head)
			return nil
		}
		rec := &VersionRecord{Keyroot: old.Keyroot, Commit: parcel.NewID()}
		rec.Rollback, rec.Comment = v, fmt.Sprintf("rollback to version %d", v)
		if why != "" {
			rec.Comment += ": " + why
		}
		number, err = p.advance(ctx, cfg, head, rec, lock)
		return err
	})
	return number, err
}

// advance verifies that all of rec's version is there, makes it durable and
// publishes it after the head. The caller has the flock, and found lock to be
// the holder's.
func (p *Parcel) advance(ctx context.Context, cfg *parcel.Config, head, rec *VersionRecord, lock *parcel.Lock) (int, error) {
	if _, _, _, err := p.Where(rec.Keyroot.Tag); err != nil {
		return 0, p.Wrap(err)
	}
	root, err := p.OpenRoot(ctx, getter{p}, cfg, rec.Keyroot)
	if err != nil {
		return 0, err
	}
	if _, ok := root.Image(keyring.Disk); !ok {
		return 0, p.Errorf(parcel.Usage, "root block names no disk")
	}
	parent, err := p.OpenRoot(ctx, getter{p}, cfg, head.Keyroot)
	if err != nil {
		parent = new(keyring.Root) // what it leads to is not taken for granted
	}
	found, err := p.verify(ctx, cfg, parent, root, head.Keyroot, rec.Keyroot)
	if errors.Is(err, parcel.ErrDamaged) || errors.Is(err, seal.ErrCorrupt) {
		// Perhaps only the parent is damaged, which must not keep its holder
		// from saving what she has: the new version is verified by itself.
		found, err = p.verify(ctx, cfg, new(keyring.Root), root, seal.Ref{}, rec.Keyroot)
	}
	if err != nil {
		return 0, err
	}
	err = p.bring(found.arrived, func() error { return p.unstage(found.staged, found.arrived) })
	if err != nil {
		return 0, err
	}
	rec.Version, rec.Parent, rec.Time = cfg.Version+1, cfg.Version, now()
	rec.Host, rec.Epoch = lock.Host, lock.Epoch
	rec.Suspended = parcel.Clean(root.Suspended)
	if rec.Rollback == 0 {
		rec.Comment, rec.Objects, rec.Bytes = parcel.Clean(root.Comment), int64(len(found.seen)), found.bytes
	}
	if err := p.publish(cfg, rec, root); err != nil {
		return 0, err
	}
	p.clearStaged()
	return rec.Version, nil
}

// found is what verify saw.
type found struct {
	seen    map[seal.Tag]bool // each object that is new
	staged  []seal.Tag        // those that wait in staging, verified
	bytes   int64             // of all in seen
	arrived int64             // of those in staged
}

// verify finds every object that is reachable from root and not from parent,
// and hashes those in staging. What is in hdk was hashed when it came there.
func (p *Parcel) verify(ctx context.Context, cfg *parcel.Config, parent, root *keyring.Root, parentKeyroot, keyroot seal.Ref) (*found, error) {
	f := &found{seen: make(map[seal.Tag]bool)}
	// One object may be named as a chunk and be a block as well, again and
	// again: what is below it is walked once.
	walked := make(map[levelKey]bool)
	// see notes one object; again says that it was seen on that level before.
	see := func(level int, ref seal.Ref) (again bool, err error) {
		if err := ctx.Err(); err != nil {
			return false, err
		}
		at := levelKey{ref.Tag.MapKey(), int8(level)}
		if walked[at] {
			return true, nil
		}
		walked[at] = true
		if f.seen[ref.Tag] {
			return false, nil
		}
		_, size, staged, err := p.Where(ref.Tag)
		if err != nil {
			return false, err
		}
		f.seen[ref.Tag] = true
		f.bytes += size
		if staged {
			f.staged = append(f.staged, ref.Tag)
			f.arrived += size
		}
		return false, nil
	}
	for _, pair := range [][2]seal.Ref{{parentKeyroot, keyroot}, {parent.Cfg, root.Cfg}} {
		if old, ref := pair[0], pair[1]; ref != old && !ref.IsNil() {
			if _, err := see(0, ref); err != nil {
				return nil, p.Wrap(err)
			}
		}
	}
	for _, im := range root.Images {
		old, ok := parent.Image(im.Name)
		if !ok {
			old = keyring.NewImage(im.Name, im.Size, im.ChunkSize)
		}
		err := keyring.Diff(ctx, cfg.Sealer(), getter{p}, old, im, func(level int, n int64, _, ref seal.Ref) error {
			if ref.IsNil() {
				return keyring.SkipBelow
			}
			again, err := see(level, ref)
			if again {
				return keyring.SkipBelow
			}
			return err
		})
		if err != nil {
			return nil, p.Wrap(err)
		}
	}
	return f, p.verifyStaged(ctx, f.staged)
}

// getter gets root and blocks of a version that is to be committed. They may
// be staged: one that came damaged is removed, to be put again. verify saw
// that the new version's are there, so one that is missing is damage to the
// old.
type getter struct{ p *Parcel }

func (g getter) Get(ctx context.Context, tag seal.Tag) ([]byte, error) {
	path, _, staged, err := g.p.Where(tag)
	if errors.Is(err, parcel.ErrNoObject) {
		return nil, parcel.NewError(parcel.Damaged, "object %s: is missing", tag)
	}
	if err != nil {
		return nil, err
	}
	b, err := g.p.Get(ctx, tag)
	if err == nil && staged && tag.Verify(b) != nil {
		return nil, g.p.discard(path, tag)
	}
	return b, err
}

// discard removes a staged object that is damaged; the error says to put it
// again.
func (p *Parcel) discard(path string, tag seal.Tag) error {
	if err := os.Remove(path); err != nil {
		return p.Wrap(err)
	}
	return parcel.NewError(parcel.NoObject, "object %s: came damaged", tag)
}

// verifyStaged hashes objects in the staging area, where a crash may have
// left anything. What is not as its name says is removed, to be put again.
func (p *Parcel) verifyStaged(ctx context.Context, tags []seal.Tag) error {
	bad := make([]error, len(tags))
	err := tree.Parallel(ctx, runtime.GOMAXPROCS(0), slices.All(tags), func(_ context.Context, i int, tag seal.Tag) error {
		path := filepath.Join(p.StagingDir(), tag.String())
		err := tree.VerifyObject(path, tag)
		if !errors.Is(err, parcel.ErrDamaged) {
			return err
		}
		bad[i] = p.discard(path, tag) // go on: all of them are to be put again
		return nil
	})
	if err != nil {
		return p.Wrap(err)
	}
	for _, err := range bad {
		if err != nil {
			return p.Wrap(err)
		}
	}
	return nil
}

// unstage moves verified objects, of so many bytes, from staging to hdk,
// durable before they are visible there.
func (p *Parcel) unstage(tags []seal.Tag, bytes int64) error {
	if len(tags) == 0 {
		return nil
	}
	if err := p.ownObjectDirs(); err != nil {
		return err
	}
	usage, counted := p.KeptUsage()
	tree.Step("sync")
	if err := tree.Syncfs(p.content); err != nil {
		// The kernel may take for clean what it failed to write: from here on
		// no hash of a staged object proves that it is on disk.
		p.clearStaging()
		return p.Wrap(err)
	}
	for _, tag := range tags {
		tree.Step("move")
		from, to := filepath.Join(p.StagingDir(), tag.String()), filepath.Join(p.HdkDir(), tree.ObjectName(tag))
		err := os.Rename(from, to)
		if errors.Is(err, fs.ErrNotExist) {
			if err = os.MkdirAll(filepath.Dir(to), tree.DirMode); err == nil {
				err = os.Rename(from, to)
			}
		}
		if err != nil {
			return p.Wrap(err)
		}
	}
	if counted {
		if state, _, err := p.hdkState(); err == nil {
			p.recordUsage(usage.plus(Usage{int64(len(tags)), bytes}), state)
		}
	}
	return nil
}

// publish makes rec the head: its objects are in hdk. The rename of
// parcel.cfg is the one instant before which there is nothing, and after
// which there is all.
func (p *Parcel) publish(cfg *parcel.Config, rec *VersionRecord, root *keyring.Root) error {
	tree.Step("directory")
	if err := p.writeVersionDir(rec, root); err != nil {
		return p.Wrap(err)
	}
	// Names too: those of this commit, and of one killed after its renames.
	tree.Step("sync names")
	if err := tree.Syncfs(p.content); err != nil {
		return p.Wrap(err)
	}
	b, err := rec.Encode()
	if err != nil {
		return p.Wrap(err)
	}
	tree.Step("keyroot")
	if err := atomicfile.Write(p.VersionFile(rec.Version), b, tree.FileMode); err != nil {
		return p.Wrap(err)
	}
	c := *cfg
	c.Version = rec.Version
	if im, ok := root.Image(keyring.Disk); ok {
		c.DiskSize, c.ChunkSize = im.Size, im.ChunkSize
	}
	if im, ok := root.Image(keyring.Memory); ok {
		c.MemSize, c.MemChunk = im.Size, im.ChunkSize
	}
	if b, err = c.Encode(); err != nil {
		return p.Wrap(err)
	}
	tree.Step("head")
	if err := atomicfile.Write(filepath.Join(p.lock, tree.ConfigFile), b, tree.FileMode); err != nil {
		return p.Wrap(err)
	}
	tree.Step("derived")
	p.repair(&c, rec)
	return nil
}

// clearStaging removes all that waits in the staging area. Who is still
// writing there will be told, at Close.
func (p *Parcel) clearStaging() { p.clearStagingOf(func(fs.DirEntry) bool { return true }) }

// clearStaged removes what waits in the staging area and was not committed,
// but not what is still being written.
func (p *Parcel) clearStaged() {
	p.clearStagingOf(func(e fs.DirEntry) bool { return !tree.IsTemp(e.Name()) })
}

func (p *Parcel) clearStagingOf(which func(fs.DirEntry) bool) {
	entries, _ := os.ReadDir(p.StagingDir())
	for _, e := range entries {
		if which(e) {
			os.RemoveAll(filepath.Join(p.StagingDir(), e.Name()))
		}
	}
}
