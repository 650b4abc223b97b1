package store

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"isr/store/atomicfile"
	"isr/store/parcel"
	"isr/store/tree"
)

// formerKey is a line of parcel.cfg: a name that the parcel had.
const formerKey = "FORMERLY"

// Rename gives a parcel another name, or another owner, or both: its versions,
// UUID and sources stay. parcel.ErrLocked if it is held, parcel.ErrExists if
// there is one of the new name.
func (s *Store) Rename(userName, name, toUser, toName string) error {
	if err := checkNewName(toName); err != nil {
		return err
	}
	unlockStore, err := tree.Lock(filepath.Join(s.root, tree.FlockFile), false)
	if err != nil {
		return err
	}
	defer unlockStore()
	p, err := s.Parcel(userName, name)
	if err != nil {
		return err
	}
	u, err := s.User(toUser)
	if err != nil {
		return err
	}
	return p.Exclusive(func() error {
		l, err := p.held()
		if err != nil {
			return err
		}
		if l != nil {
			return p.Errorf(parcel.Locked, "locked by %s", l).
				WithHint("rename it when it was checked in, or break the lock first")
		}
		if _, err := p.Config(); err != nil {
			return err
		}
		q := u.At(toName)
		if err := s.vacant(q); err != nil {
			return err
		}
		if !sameOwner(p.lock, u.LockRoot) || !sameOwner(p.content, u.ContentRoot) {
			return p.Errorf(parcel.Usage, "users %s and %s have their own accounts or file systems", p.user.Name, u.Name).
				WithHint("copy the parcel, then delete it here")
		}
		mark, err := parcel.Record{{Key: "USER", Value: p.user.Name}, {Key: "PARCEL", Value: p.name}}.Encode()
		if err != nil {
			return p.Wrap(err)
		}
		tree.Step("mark")
		if err := atomicfile.Write(filepath.Join(p.lock, tree.RenameFile), mark, tree.FileMode); err != nil {
			return p.Wrap(err)
		}
		tree.Step("rename")
		if err := renameDir(p.lock, q.lock); err != nil {
			os.Remove(filepath.Join(p.lock, tree.RenameFile))
			return p.Wrap(err)
		}
		return s.settle(q)
	})
}

// renameDir renames a directory, durably, to a name that is free.
func renameDir(from, to string) error {
	if err := os.Rename(from, to); err != nil {
		return err
	}
	if err := atomicfile.SyncDir(filepath.Dir(to)); err != nil {
		return err
	}
	return atomicfile.SyncDir(filepath.Dir(from))
}

// RenamedFrom is what the mark of a rename says p was: p itself if the rename
// was not done, nil if there is no mark.
func (s *Store) RenamedFrom(p *Parcel) (*Parcel, error) {
	b, err := tree.ReadOwn(filepath.Join(p.lock, tree.RenameFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, p.Wrap(err)
	}
	r, err := parcel.ParseRecord(b)
	user, name := r.Get("USER"), r.Get("PARCEL")
	if err == nil {
		err = errors.Join(parcel.CheckName(user), parcel.CheckName(name))
	}
	if err != nil {
		return nil, p.Errorf(parcel.Damaged, "record of its rename: %v", err)
	}
	return s.UserAt(user).At(name), nil
}

// settle finishes the rename of a parcel whose lock side has the new name. The
// caller has its flock.
func (s *Store) settle(p *Parcel) error {
	from, err := s.RenamedFrom(p)
	if from == nil || err != nil {
		return err
	}
	if from.lock != p.lock {
		// A lock side that is there owns the content, whatever the mark says.
		if !tree.Exists(p.content) && tree.IsDir(from.content) && !tree.Exists(from.lock) {
			tree.Step("content")
			if err := renameDir(from.content, p.content); err != nil {
				return p.Wrap(err)
			}
		}
		cfg, err := p.Config()
		if err != nil {
			return err
		}
		if cfg.User != p.user.Name || cfg.Parcel != p.name {
			cfg.Other = slices.DeleteFunc(cfg.Other, func(f parcel.Field) bool { return f.Key == formerKey && f.Value == p.name })
			if from.user.Name == p.user.Name && from.name != p.name {
				cfg.Other = append(cfg.Other, parcel.Field{Key: formerKey, Value: from.name})
			}
			cfg.User, cfg.Parcel = p.user.Name, p.name
			if err := p.writeConfig(cfg); err != nil {
				return err
			}
		}
	}
	tree.Step("unmark")
	if err := os.Remove(filepath.Join(p.lock, tree.RenameFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return p.Wrap(err)
	}
	return nil
}

// settled finishes the rename of p, if there is one to finish.
func (s *Store) settled(p *Parcel) error {
	if !tree.Exists(filepath.Join(p.lock, tree.RenameFile)) {
		return nil
	}
	return p.Exclusive(func() error { return s.settle(p) })
}

// vacant makes sure that nothing is where p is to be. parcel.ErrExists if
// something is. The caller has the store's flock.
func (s *Store) vacant(p *Parcel) error {
	for _, dir := range []string{p.user.LockRoot, p.user.ContentRoot} {
		if err := os.MkdirAll(dir, tree.DirMode); err != nil {
			return p.Wrap(err)
		}
	}
	if err := p.user.ownDirs(); err != nil {
		return err
	}
	if err := s.settleInto(p); err != nil {
		return err
	}
	switch {
	case p.Unfinished():
		return p.Errorf(parcel.Exists, "is being made or removed, or left so by a process that was killed").
			WithHint("parcel create of that name clears it away")
	case tree.Exists(p.lock):
		return p.Errorf(parcel.Exists, "exists")
	case tree.Exists(p.content):
		return p.Errorf(parcel.Exists, "its content is there, in %s, without its lock side", p.content).
			WithHint("restore %s from a backup, or remove the content", p.lock)
	}
	return nil
}

// settleInto finishes the rename of whatever parcel still has its content side
// where p's is to be.
func (s *Store) settleInto(p *Parcel) error {
	if tree.Exists(p.lock) || !tree.Exists(p.content) {
		return nil
	}
	users, err := s.Users()
	for _, name := range users {
		u := s.UserAt(name)
		names, _ := tree.Subdirs(u.LockRoot)
		for _, n := range names {
			q := u.At(n)
			if from, ferr := s.RenamedFrom(q); ferr == nil && from != nil && from.content == p.content {
				err = errors.Join(err, s.settled(q))
			}
		}
	}
	return err
}

// renamed is the name of the user's parcel that was called name once, "" if there
// is none.
func (u User) renamed(name string) string {
	names, _ := tree.Subdirs(u.LockRoot)
	for _, n := range names {
		cfg, err := u.At(n).Config()
		if err == nil && slices.Contains(cfg.Other.All(formerKey), name) {
			return n
		}
	}
	return ""
}

// sameOwner reports whether two directories are one account's, on one file
// system: so that what is renamed from one into the other is as good there.
func sameOwner(a, b string) bool {
	var sa, sb unix.Stat_t
	return unix.Lstat(a, &sa) == nil && unix.Lstat(b, &sb) == nil && sa.Dev == sb.Dev && sa.Uid == sb.Uid
}

// checkNewName refuses what is no name for a parcel.
func checkNewName(name string) error {
	if err := parcel.CheckName(name); err != nil {
		return fmt.Errorf("parcel: %w", err)
	}
	if reserved[name] {
		return parcel.NewError(parcel.Usage, "parcel %s: the name is reserved", name)
	}
	return nil
}

// OnTheWay are the content sides of parcels whose rename was killed half-way.
func (s *Store) OnTheWay() map[string]bool {
	dirs := make(map[string]bool)
	users, _ := s.Users()
	for _, name := range users {
		u := s.UserAt(name)
		names, _ := tree.Subdirs(u.LockRoot)
		for _, n := range names {
			p := u.At(n)
			if from, err := s.RenamedFrom(p); err == nil && from != nil && from.lock != p.lock && !tree.Exists(p.content) {
				dirs[from.content] = true
			}
		}
	}
	return dirs
}

// WithContent is p with the content side of another parcel, which is where a
// rename that was killed half-way has left it.
func (p *Parcel) WithContent(of *Parcel) *Parcel {
	c := *p
	c.content = of.content
	return &c
}
