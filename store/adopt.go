package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/google/uuid"

	"isr/store/atomicfile"
	"isr/store/authkey"
	"isr/store/parcel"
	"isr/store/seal"
	"isr/store/tree"
)

// Shared runs f while nobody changes the parcel, so that what f reads on its
// lock side belongs together. It keeps commits waiting: f is to be short.
func (p *Parcel) Shared(f func() error) error {
	unlock, err := tree.Lock(filepath.Join(p.lock, tree.FlockFile), true)
	if errors.Is(err, fs.ErrNotExist) || err == nil && p.Unfinished() {
		if err == nil {
			unlock()
		}
		return p.ErrAbsent()
	}
	if err != nil {
		return p.Wrap(err)
	}
	defer unlock()
	return f()
}

// Assemble is a store that is being put together from a backup in the
// directory root, with the content of its realm.cfg to be. Nobody else finds
// a store there before Publish. What an earlier call began is kept.
func Assemble(root string, realm []byte) (*Store, error) {
	root, err := filepath.Abs(root)
	if err != nil {
		return nil, err
	}
	s, err := parseRealm(root, realm)
	if err != nil {
		return nil, err
	}
	if _, err := os.Lstat(filepath.Join(root, tree.RealmFile)); err == nil {
		return nil, parcel.NewError(parcel.Exists, "store %s: exists", root)
	}
	s.assembling = true
	return s, os.MkdirAll(filepath.Join(root, tree.UsersDir), tree.DirMode)
}

// Publish ends Assemble: from here on there is a store.
func (s *Store) Publish(realm []byte) error {
	if err := tree.Syncfs(s.root); err != nil {
		return err
	}
	tree.Step("realm")
	return atomicfile.Write(filepath.Join(s.root, tree.RealmFile), realm, tree.FileMode)
}

// AdoptUser makes a user who has the given files, named as in her directory:
// authorized_keys, password. parcel.ErrExists if there is one of that name.
func (s *Store) AdoptUser(name string, files map[string][]byte) error {
	if err := parcel.CheckName(name); err != nil {
		return fmt.Errorf("user: %w", err)
	}
	unlock, err := tree.Lock(filepath.Join(s.root, tree.FlockFile), false)
	if err != nil {
		return err
	}
	defer unlock()
	users := filepath.Join(s.root, tree.UsersDir)
	tree.RemoveTemps(users)
	u := s.UserAt(name)
	if _, err := os.Lstat(u.Dir); err == nil {
		return parcel.NewError(parcel.Exists, "user %s: exists", name)
	}
	if !s.assembling { // else nobody is shut out by it who was not before
		if err := s.checkUnshared(name, readableKeys(files[tree.KeysFile])); err != nil {
			return err
		}
	}
	return s.makeUser(u, files)
}

// readableKeys are the keys of an authorized_keys file. Lines that are none
// let nobody in, here or there.
func readableKeys(text []byte) []authkey.Key {
	var keys []authkey.Key
	for _, l := range authkey.Parse(text) {
		if l.Err == nil {
			keys = append(keys, l.Key)
		}
	}
	return keys
}

// Adoption is a parcel with all its history, that comes from elsewhere.
type Adoption struct {
	Files   map[string][]byte // of the lock side: parcel.cfg, keys/000001, nonce, …
	Another bool              // it is not to be the one it was: it gets an UUID of its own, and nobody holds it
	// Objects calls add with the file of every object the parcel had. The file
	// is shared by a hard link where that can be.
	Objects func(ctx context.Context, add func(tag seal.Tag, file string) error) error
}

// Adopt makes a parcel of a user with the versions it had, under its name or
// another. Who held it holds it still. The next acquisition's number is above
// all that were given out after the files were read, and that they do not know
// of. parcel.ErrExists if there is one of that name.
func (s *Store) Adopt(ctx context.Context, userName, name string, a Adoption) (*Parcel, error) {
	cfg, err := parcel.ParseConfig(a.Files[tree.ConfigFile])
	if err != nil {
		return nil, parcel.NewError(parcel.Damaged, "parcel %s: %v", name, err)
	}
	head, err := ParseVersion(a.Files["keys/"+parcel.VersionDir(cfg.Version)], cfg.Version)
	if err != nil {
		return nil, parcel.NewError(parcel.Damaged, "parcel %s: version %d: record of its keyroot: %v", name, cfg.Version, err)
	}
	p, unlock, err := s.reserve(userName, name, false)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := p.adopt(ctx, cfg, head, a); err != nil {
		if p.Unfinished() {
			p.remove()
		}
		return nil, p.Wrap(err)
	}
	return p, nil
}

// underived reports whether a file of a lock side is to be kept: one that is
// not derived from others, nor about the process that has the parcel.
func underived(name string) bool {
	switch name {
	case tree.ConfigFile, tree.FlockFile, tree.UnfinishedFile, tree.RenameFile, tree.HolderFile, tree.UsageFile, "keys/keyroot":
		return false
	}
	return true
}

func (p *Parcel) adopt(ctx context.Context, cfg *parcel.Config, head *VersionRecord, a Adoption) error {
	b := &building{p: p, dir: filepath.Join(p.StagingDir(), "hdk")}
	if err := os.Mkdir(b.dir, tree.DirMode); err != nil {
		return err
	}
	err := a.Objects(ctx, func(tag seal.Tag, file string) error {
		return b.add(tag, func(path string) (int64, error) {
			err := os.Link(file, path)
			if errors.Is(err, syscall.EXDEV) || errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.EMLINK) {
				return tree.CopyObject(file, path, tag)
			}
			return 0, err
		})
	})
	if err != nil {
		return err
	}
	tree.Step("hdk")
	if err := os.Rename(b.dir, p.HdkDir()); err != nil {
		return err
	}
	for name, content := range a.Files {
		if !underived(name) || a.Another && name == tree.NonceFile {
			continue
		}
		version, inKeys := cutKeys(name)
		_, ok := parcel.ParseVersionDir(version)
		if inKeys && !ok || !inKeys && parcel.CheckName(name) != nil {
			return parcel.NewError(parcel.Damaged, "file %q: not one of a lock side", parcel.Clean(name))
		}
		if err := os.WriteFile(filepath.Join(p.lock, name), content, tree.FileMode); err != nil {
			return err
		}
	}
	if err := p.raiseEpoch(); err != nil {
		return err
	}
	c := *cfg
	c.User, c.Parcel = p.user.Name, p.name
	if a.Another {
		c.UUID = uuid.NewString()
		c.Src = nil // they have the content of the one it was
	}
	text, err := c.Encode()
	if err != nil {
		return err
	}
	p.derive(ctx, &c)
	tree.Step("sync")
	if err := tree.Syncfs(p.lock); err != nil {
		return err
	}
	if err := tree.Syncfs(p.content); err != nil {
		return err
	}
	tree.Step("head")
	if err := atomicfile.Write(filepath.Join(p.lock, tree.ConfigFile), text, tree.FileMode); err != nil {
		return err
	}
	tree.Step("derived")
	p.repair(&c, head)
	return nil
}

// RaisedEpoch is the epoch of a copy of a parcel that had this one, for the copy
// to be acquired when the parcel was, nobody knows how often, since: at least
// the seconds since 1970. No parcel is acquired once a second for years, and one
// that is copied again later has a larger one again.
func RaisedEpoch(epoch int64) int64 { return max(epoch, now().Unix()) }

// raiseEpoch raises the epoch. What cannot be read stays as it is, for check to
// tell.
func (p *Parcel) raiseEpoch() error {
	epoch, err := p.Epoch()
	if err != nil {
		return nil
	}
	return os.WriteFile(filepath.Join(p.lock, tree.EpochFile), fmt.Appendf(nil, "%d\n", RaisedEpoch(epoch)), tree.FileMode)
}

func cutKeys(name string) (version string, inKeys bool) {
	const dir = "keys/"
	if len(name) > len(dir) && name[:len(dir)] == dir {
		return name[len(dir):], true
	}
	return name, false
}

// derive makes the directories of all versions. One that cannot be opened has
// none, as check says.
func (p *Parcel) derive(ctx context.Context, cfg *parcel.Config) {
	versions, _ := p.Recorded()
	for _, v := range versions {
		rec, err := p.Record(v)
		if err != nil || v > cfg.Version {
			continue
		}
		if root, err := p.OpenRoot(ctx, p, cfg, rec.Keyroot); err == nil {
			p.writeVersionDir(rec, root)
		}
	}
}
