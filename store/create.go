package store

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"

	"github.com/google/uuid"

	"isr/store/atomicfile"
	"isr/store/keyring"
	"isr/store/parcel"
	"isr/store/seal"
	"isr/store/tree"
)

// CreateOptions say what a new parcel is like. Zero values are defaults.
type CreateOptions struct {
	DiskSize  int64                   // bytes; of an import, at least the image's: the default
	MemSize   int64                   // bytes
	ChunkSize int                     // of the disk, bytes: 128 KiB
	MemChunk  int                     // of the memory, bytes: half of ChunkSize
	VMM       string                  // qemu
	Crypto    seal.Suite              // AES256SHA256
	Compress  seal.Codec              // Gzip
	Src       []string                // where clients may read content from
	Comment   string                  // of the parcel and of version 1
	Format    string                  // of an image to import, as qemu-img calls it; "": found out
	DiskFile  string                  // of an OVA to import: which of its disks; "": the only one
	Progress  func(done, total int64) // bytes of the disk; may be nil; called by one at a time
	Copying   func(done, total int64) // the same, before, of an image that must be made raw first
}

// maxImage bounds what an image is made with, bytes.
const maxImage = 1 << 50

// DefaultChunkSize is the size of a chunk in bytes.
const DefaultChunkSize = 128 << 10

// Unfinished reports whether the parcel is being made or removed, or was left so
// by a process that was killed: then there is none.
func (p *Parcel) Unfinished() bool {
	if _, err := os.Lstat(filepath.Join(p.lock, tree.ConfigFile)); err == nil {
		return false
	}
	_, err := os.Lstat(filepath.Join(p.lock, tree.UnfinishedFile))
	return err == nil
}

// reserved may not name a parcel: they have another meaning in a client's
// directory, which may be the same as the lock sides'.
var reserved = map[string]bool{"hoard": true, "log": true}

// config is the parcel.cfg of a parcel made with o.
func (s *Store) config(o CreateOptions) (*parcel.Config, error) {
	c := &parcel.Config{Src: o.Src, ChunkSize: o.ChunkSize, MemChunk: o.MemChunk, DiskSize: o.DiskSize, MemSize: o.MemSize,
		VMM: o.VMM, Crypto: o.Crypto, Compress: o.Compress, Secret: s.secret, Comment: parcel.Clean(o.Comment)}
	if c.ChunkSize == 0 {
		c.ChunkSize = DefaultChunkSize
	}
	if c.MemChunk == 0 {
		// A resumed guest touches its memory here and there: in a 256 MiB
		// guest chunks of 128, 64 and 32 KiB made 9.9, 6.5 and 5.2 MB to
		// fetch before its first tick, in 222, 294 and 432 objects.
		c.MemChunk = max(c.ChunkSize/2, keyring.MinChunk)
	}
	if c.VMM == "" {
		c.VMM = "qemu"
	}
	if c.Crypto == "" {
		c.Crypto = seal.AES256SHA256
	}
	if c.Compress == "" {
		c.Compress = seal.Gzip
	}
	// What parcel.cfg is not read with is not written.
	if err := parcel.CheckName(c.VMM); err != nil {
		return nil, fmt.Errorf("vmm: %w", err)
	}
	for _, src := range c.Src {
		if !strings.Contains(src, "://") || parcel.Clean(src) != src || len(src) > maxText {
			return nil, parcel.NewError(parcel.Usage, "source %.80q: want SCHEME://… of at most %d bytes", src, maxText)
		}
	}
	if err := checkText("comment", c.Comment); err != nil {
		return nil, err
	}
	for _, n := range []int{c.ChunkSize, c.MemChunk} {
		if err := keyring.CheckChunkSize(n); err != nil {
			return nil, parcel.NewError(parcel.Usage, "%v", err)
		}
	}
	if _, err := seal.ParseSuite(string(c.Crypto)); err != nil {
		return nil, parcel.NewError(parcel.Usage, "%v", err)
	}
	if _, err := seal.ParseCodec(string(c.Compress)); err != nil {
		return nil, parcel.NewError(parcel.Usage, "%v", err)
	}
	if c.DiskSize < 1 || c.DiskSize > maxImage {
		return nil, parcel.NewError(parcel.Usage, "disk of %d bytes: want 1 to %d", c.DiskSize, int64(maxImage))
	}
	if c.MemSize < 0 || c.MemSize > maxImage {
		return nil, parcel.NewError(parcel.Usage, "memory of %d bytes: want 0 to %d", c.MemSize, int64(maxImage))
	}
	return c, nil
}

// root is a root block of zeros for a parcel with configuration c.
func zeroRoot(c *parcel.Config) *keyring.Root {
	host, _ := os.Hostname()
	return &keyring.Root{Format: keyring.Format, Suite: c.Crypto, Time: now(), Host: parcel.Clean(host), Comment: c.Comment,
		Images: []keyring.Image{keyring.NewImage(keyring.Disk, c.DiskSize, c.ChunkSize),
			keyring.NewImage(keyring.Memory, c.MemSize, c.MemChunk)}}
}

// Create makes a parcel whose disk and memory are zeros, as version 1.
// parcel.ErrExists if there is one of that name.
func (s *Store) Create(ctx context.Context, userName, name string, o CreateOptions) (*Parcel, error) {
	c, err := s.config(o)
	if err != nil {
		return nil, fmt.Errorf("parcel %s: %w", name, err)
	}
	return s.create(ctx, userName, name, func(ctx context.Context, b *building) (*parcel.Config, seal.Ref, error) {
		keyroot, err := b.putRoot(ctx, c, zeroRoot(c))
		return c, keyroot, err
	})
}

// fill puts the objects of version 1 into b; the result is the parcel's
// configuration, less what identifies it, and the version's keyroot.
type fill func(ctx context.Context, b *building) (*parcel.Config, seal.Ref, error)

// create makes a parcel with what fill puts in. Until the parcel.cfg is there
// nobody sees it; if it is killed before, the next create of that name clears
// away what there is.
func (s *Store) create(ctx context.Context, userName, name string, fill fill) (*Parcel, error) {
	p, unlock, err := s.reserve(userName, name, false)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := p.build(ctx, fill); err != nil {
		if p.Unfinished() {
			p.remove()
		}
		return nil, err
	}
	return p, nil
}

// reserve makes the directories of a new parcel, marked unfinished, and takes
// its flock. If resume, it leaves there what a killed import noted.
func (s *Store) reserve(userName, name string, resume bool) (p *Parcel, unlock func(), err error) {
	if err := checkNewName(name); err != nil {
		return nil, nil, err
	}
	unlockStore, err := tree.Lock(filepath.Join(s.root, tree.FlockFile), false)
	if err != nil {
		return nil, nil, err
	}
	defer unlockStore()
	u, err := s.User(userName)
	if err != nil {
		return nil, nil, err
	}
	p = u.At(name)
	for _, dir := range []string{u.LockRoot, u.ContentRoot} {
		if err := os.MkdirAll(dir, tree.DirMode); err != nil {
			return nil, nil, err
		}
	}
	if err := u.ownDirs(); err != nil {
		return nil, nil, err
	}
	tree.RemoveTemps(u.LockRoot)
	if err := s.settleInto(p); err != nil {
		return nil, nil, err
	}
	if _, err := os.Lstat(p.lock); err == nil {
		if !p.Unfinished() {
			return nil, nil, p.Errorf(parcel.Exists, "exists")
		}
		if unlock, err := p.clearUnfinished(resume); unlock != nil || err != nil {
			return p, unlock, err
		}
	} else if _, err := os.Lstat(p.content); err == nil {
		return nil, nil, p.Errorf(parcel.Exists, "its content is there, in %s, without its lock side", p.content).
			WithHint("restore %s from a backup, or remove the content", p.lock)
	}
	// The mark is there from the first instant: made aside, then renamed.
	temp, err := os.MkdirTemp(u.LockRoot, atomicfile.TempPrefix+"*")
	if err != nil {
		return nil, nil, err
	}
	defer os.RemoveAll(temp)
	if err := os.WriteFile(filepath.Join(temp, tree.UnfinishedFile), nil, tree.FileMode); err != nil {
		return nil, nil, p.Wrap(err)
	}
	if err := os.Mkdir(filepath.Join(temp, "keys"), tree.DirMode); err != nil {
		return nil, nil, p.Wrap(err)
	}
	tree.Step("reserve")
	if err := os.Rename(temp, p.lock); err != nil {
		return nil, nil, p.Wrap(err)
	}
	if unlock, err = tree.Lock(filepath.Join(p.lock, tree.FlockFile), false); err != nil {
		return nil, nil, p.Wrap(err)
	}
	tree.Step("content")
	for _, dir := range []string{p.content, p.StagingDir(), filepath.Join(p.content, "keys")} {
		if err := os.Mkdir(dir, tree.DirMode); err != nil {
			unlock()
			return nil, nil, p.Wrap(err)
		}
	}
	return p, unlock, nil
}

// build fills and publishes a reserved parcel.
func (p *Parcel) build(ctx context.Context, fill fill) error {
	b := &building{p: p, dir: filepath.Join(p.StagingDir(), "hdk")}
	var err error
	if b.room, b.limited, err = p.user.room(); err != nil {
		return err
	}
	if err := b.begin(); err != nil {
		return p.Wrap(err)
	}
	cfg, keyroot, err := fill(ctx, b)
	if err != nil {
		return p.Wrap(err)
	}
	cfg.UUID, cfg.User, cfg.Parcel, cfg.Version, cfg.Created = uuid.NewString(), p.user.Name, p.name, 0, now()
	tree.Step("sync")
	if err := tree.Syncfs(p.content); err != nil {
		return p.Wrap(err)
	}
	tree.Step("hdk")
	var all Usage // of a limited user: others may have taken what room there was
	if b.limited {
		if all, err = p.staged(); err != nil {
			return err
		}
	}
	if err := p.bring(all.Bytes, func() error { return os.Rename(b.dir, p.HdkDir()) }); err != nil {
		return p.Wrap(err)
	}
	root, err := p.OpenRoot(ctx, p, cfg, keyroot)
	if err != nil {
		return err
	}
	rec := &VersionRecord{Keyroot: keyroot, Commit: cmp.Or(b.commit, parcel.NewID())}
	rec.Version, rec.Time, rec.Host = 1, now(), root.Host
	rec.Comment, rec.Suspended = parcel.Clean(cmp.Or(b.comment, root.Comment)), parcel.Clean(root.Suspended)
	rec.Objects, rec.Bytes = b.objects.Load(), b.bytes.Load()
	for _, dir := range []string{p.user.Dir, p.user.LockRoot, p.user.ContentRoot} {
		if err := atomicfile.SyncDir(dir); err != nil {
			return p.Wrap(err)
		}
	}
	return p.publish(cfg, rec, root)
}

// remove clears away an unfinished parcel. The mark goes last.
func (p *Parcel) remove() error {
	tree.Step("remove content")
	if err := os.RemoveAll(p.content); err != nil {
		return err
	}
	temp := filepath.Join(p.user.LockRoot, atomicfile.TempPrefix+parcel.NewID())
	tree.Step("remove lock side")
	if err := os.Rename(p.lock, temp); err != nil {
		return err
	}
	tree.Step("remove")
	if err := os.RemoveAll(temp); err != nil {
		return err
	}
	return atomicfile.SyncDir(p.user.LockRoot)
}

// clearUnfinished removes what a killed create or delete left; parcel.ErrBusy
// if that is not killed but at work. If resume, what a killed import noted is
// left, with the parcel's flock. The caller has the store's.
func (p *Parcel) clearUnfinished(resume bool) (unlock func(), err error) {
	unlock, err = tree.TryLock(filepath.Join(p.lock, tree.FlockFile))
	if err != nil {
		return nil, p.Wrap(err)
	}
	if unlock == nil {
		return nil, p.Errorf(parcel.Busy, "is being made or removed by another process")
	}
	if p.Unfinished() && resume {
		if fi, err := os.Lstat(filepath.Join(p.lock, tree.UnfinishedFile)); err == nil && fi.Size() > 0 {
			return unlock, nil
		}
	}
	defer unlock()
	if !p.Unfinished() {
		return nil, p.Errorf(parcel.Busy, "was made meanwhile")
	}
	if err := p.remove(); err != nil {
		return nil, p.Wrap(err)
	}
	return nil, nil
}

// DelParcel removes a parcel, all versions of it, for ever. parcel.ErrLocked
// if it is held, unless force.
func (s *Store) DelParcel(userName, name string, force bool) error {
	unlockStore, err := tree.Lock(filepath.Join(s.root, tree.FlockFile), false)
	if err != nil {
		return err
	}
	defer unlockStore()
	p, err := s.Parcel(userName, name)
	if errors.Is(err, parcel.ErrNoParcel) {
		if done, uerr := s.delUnfinished(userName, name); done || uerr != nil {
			return uerr
		}
	}
	if err != nil {
		return err
	}
	return p.Exclusive(func() error {
		if p.Unfinished() {
			return p.ErrAbsent()
		}
		if l, err := p.held(); !force && (l != nil || err != nil) {
			if err != nil {
				return err
			}
			return p.Errorf(parcel.Locked, "locked by %s", l)
		}
		tree.Step("unfinished")
		if err := atomicfile.Write(filepath.Join(p.lock, tree.UnfinishedFile), nil, tree.FileMode); err != nil {
			return p.Wrap(err)
		}
		tree.Step("config")
		if err := os.Remove(filepath.Join(p.lock, tree.ConfigFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return p.Wrap(err)
		}
		if err := atomicfile.SyncDir(p.lock); err != nil {
			return p.Wrap(err)
		}
		if err := p.remove(); err != nil {
			return p.Wrap(err)
		}
		return nil
	})
}

// Unfinished reports whether there is what a killed import, create or delete
// left of a parcel; DelParcel removes it.
func (s *Store) Unfinished(userName, name string) bool {
	u, err := s.User(userName)
	return err == nil && parcel.CheckName(name) == nil && u.At(name).Unfinished()
}

// delUnfinished removes what a killed process left of a parcel that it was
// making; done says that there was something.
func (s *Store) delUnfinished(userName, name string) (done bool, err error) {
	u, err := s.User(userName)
	if err != nil || parcel.CheckName(name) != nil {
		return false, err
	}
	p := u.At(name)
	if !p.Unfinished() {
		return false, nil
	}
	_, err = p.clearUnfinished(false)
	return err == nil, err
}

// building puts the objects of a parcel that nobody sees yet, where SFTP does
// not show them, to be made durable all at once. Safe for concurrent use.
type building struct {
	p              *Parcel
	dir            string // what will be hdk
	commit         string // id of version 1's commit; "": some
	comment        string // of version 1; "": its root block's
	again          bool   // dir may have what is not needed, or not whole: of a killed import
	objects, bytes atomic.Int64
	room           int64 // bytes that the user may store, if limited
	limited        bool
	taken          atomic.Int64 // of room
}

// take is nil if so many bytes more fit the user's quota.
func (b *building) take(bytes int64) error {
	if b.taken.Add(bytes) > b.room && b.limited {
		return b.p.user.errQuota()
	}
	return nil
}

// begin makes the directory, or takes over that of a killed import.
func (b *building) begin() error {
	if err := b.p.OwnDirs(); err != nil {
		return err
	}
	if _, err := os.Lstat(b.p.HdkDir()); err == nil { // killed right before the end
		if err := os.Rename(b.p.HdkDir(), b.dir); err != nil {
			return err
		}
	}
	err := os.Mkdir(b.dir, tree.DirMode)
	if !errors.Is(err, fs.ErrExist) {
		return err
	}
	b.again = true
	b.p.clearStagingOf(func(e fs.DirEntry) bool { return e.Name() != filepath.Base(b.dir) })
	return nil
}

func (b *building) path(tag seal.Tag) string { return filepath.Join(b.dir, tree.ObjectName(tag)) }

// Get is an object that was put. It makes building a keyring.Getter.
func (b *building) Get(_ context.Context, tag seal.Tag) ([]byte, error) {
	f, err := tree.OpenOwn(b.path(tag))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, tree.MaxObject))
}

// Put writes an object. It makes building a keyring.Putter.
func (b *building) Put(_ context.Context, tag seal.Tag, sealed []byte) error {
	if b.again {
		if err := tree.VerifyObject(b.path(tag), tag); err == nil {
			return nil
		} else if !errors.Is(err, fs.ErrNotExist) {
			if err := os.Remove(b.path(tag)); err != nil {
				return err
			}
		}
	}
	return b.add(tag, func(path string) (int64, error) {
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, tree.ObjectMode)
		if err != nil {
			return 0, err
		}
		_, err = f.Write(sealed)
		if cerr := f.Close(); err == nil {
			err = cerr
		}
		return int64(len(sealed)), err
	})
}

// add makes the file of an object that is not there yet by calling make with
// its path, and counts it.
func (b *building) add(tag seal.Tag, make func(path string) (size int64, err error)) error {
	path := b.path(tag)
	size, err := make(path)
	if errors.Is(err, fs.ErrNotExist) {
		if err := os.Mkdir(filepath.Dir(path), tree.DirMode); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		size, err = make(path)
	}
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err == nil {
		b.objects.Add(1)
		b.bytes.Add(size)
		err = b.take(size)
	}
	return err
}

// putRoot seals and puts the root block.
func (b *building) putRoot(ctx context.Context, c *parcel.Config, root *keyring.Root) (seal.Ref, error) {
	keyroot, sealed, err := keyring.SealRoot(c.Sealer(), root)
	if err != nil {
		return seal.Ref{}, err
	}
	return keyroot, b.Put(ctx, keyroot.Tag, sealed)
}

// ClearLeftovers removes half-made and half-removed parcels, and what killed
// processes left beside those users and their parcels.
func (s *Store) ClearLeftovers(users []string) error {
	unlock, err := tree.Lock(filepath.Join(s.root, tree.FlockFile), false)
	if err != nil {
		return err
	}
	defer unlock()
	tree.RemoveTemps(filepath.Join(s.root, tree.UsersDir))
	for _, name := range users {
		u := s.UserAt(name)
		tree.RemoveTemps(u.LockRoot)
		names, err := tree.Subdirs(u.LockRoot)
		if err != nil {
			return err
		}
		for _, n := range names {
			if p := u.At(n); p.Unfinished() {
				// An import that was killed may be gone on with.
				unlock, err := p.clearUnfinished(true)
				if err != nil && !errors.Is(err, parcel.ErrBusy) {
					return err
				}
				if unlock != nil {
					unlock()
				}
			}
		}
	}
	return nil
}
