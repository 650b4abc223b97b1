package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"isr/store/keyring"
	"isr/store/parcel"
	"isr/store/seal"
)

// Severity tells a Problem that makes a store unsound from one that does not.
type Severity string

// The severities. What the next call repairs by itself, and what no version
// needs, is a note.
const (
	Bad  Severity = "error"
	Note Severity = "note"
)

// Problem is one finding of Check.
type Problem struct {
	User, Parcel string // empty: of the store, of the user
	Version      int    // 0: of the parcel
	Severity     Severity
	Msg, Hint    string
	Image        string         // with Chunks: that the problem touches
	Chunks       keyring.Ranges // which of it
	Tag          seal.Tag       // the object that is missing or damaged, if that is it
}

// String is the problem on one line: "alice winxp version 7: error: …".
func (p Problem) String() string {
	var b strings.Builder
	for _, s := range []string{p.User, p.Parcel} {
		if s != "" {
			b.WriteString(s + " ")
		}
	}
	if p.Version > 0 {
		fmt.Fprintf(&b, "version %d: ", p.Version)
	}
	fmt.Fprintf(&b, "%s: %s", p.Severity, p.Msg)
	if p.Hint != "" {
		b.WriteString("; " + p.Hint)
	}
	return b.String()
}

// CheckOptions choose what Check looks at.
type CheckOptions struct {
	User, Parcel string // empty: all
	Version      int    // 0: all; else what only other versions need is passed over
	Content      bool   // hash every object too
}

// CheckSummary counts what Check saw. What it looked at is sound if Errors is
// 0.
type CheckSummary struct {
	Parcels, Versions int
	Objects, Bytes    int64 // files below hdk, each parcel's counted
	Errors, Notes     int
}

// Check looks at all that o names and reports every problem, in the order of
// the tree. The error says why it could not look; that there are problems is
// no error. It changes nothing and needs no lock: a parcel in use is sound.
func (s *Store) Check(ctx context.Context, o CheckOptions, report func(Problem)) (CheckSummary, error) {
	c := &checker{store: s, opts: o, report: report, whole: make(map[inode]bool)}
	err := c.all(ctx)
	return c.sum, err
}

type checker struct {
	store  *Store
	opts   CheckOptions
	report func(Problem)
	sum    CheckSummary
	where  Problem        // User, Parcel, Version of what is looked at
	whole  map[inode]bool // objects hashed: links of copied parcels are hashed once
}

type inode struct {
	dev, ino uint64
	tag      seal.Tag
}

func (c *checker) problem(s Severity, hint, format string, args ...any) {
	p := c.where
	p.Severity, p.Hint, p.Msg = s, hint, fmt.Sprintf(format, args...)
	c.tell(p)
}

func (c *checker) tell(p Problem) {
	if p.Severity == Bad {
		c.sum.Errors++
	} else {
		c.sum.Notes++
	}
	c.report(p)
}

// bad reports err as found.
func (c *checker) bad(err error) {
	var e *parcel.Error
	hint := ""
	if errors.As(err, &e) {
		hint = e.Hint
	}
	c.problem(Bad, hint, "%s", strings.TrimPrefix(err.Error(), "parcel "+c.where.Parcel+": "))
}

func (c *checker) all(ctx context.Context) error {
	users := []string{c.opts.User}
	if c.opts.User == "" {
		c.private(filepath.Join(c.store.root, realmFile))
		c.private(filepath.Join(c.store.root, usersDir))
		// The last are the server's, and of backups and mirrors.
		c.known(c.store.root, realmFile, usersDir, flockFile, "hostkeys", "motd", "hooks", "log", "backup.flock", "standby")
		c.known(filepath.Join(c.store.root, usersDir), "*")
		var err error
		if users, err = c.store.Users(); err != nil {
			return err
		}
	}
	owner := make(map[string]string) // of each key
	for _, name := range users {
		u, err := c.store.user(name)
		if err != nil {
			return err
		}
		c.where = Problem{User: name}
		c.user(u, owner)
		names, err := c.store.Parcels(name)
		if err != nil {
			return err
		}
		if c.opts.Parcel != "" {
			if _, err := c.store.Parcel(name, c.opts.Parcel); err != nil {
				return err
			}
			names = []string{c.opts.Parcel}
		}
		for _, n := range names {
			c.where = Problem{User: name, Parcel: n}
			if err := c.parcel(ctx, u.parcel(n)); err != nil {
				return err
			}
		}
	}
	return nil
}

// private reports a file or directory that others can read.
func (c *checker) private(path string) {
	if fi, err := os.Lstat(path); err == nil && fi.Mode().Type()&fs.ModeSymlink == 0 && fi.Mode().Perm()&0o077 != 0 {
		c.problem(Bad, "chmod go= "+path, "%s: mode %04o lets others in", path, fi.Mode().Perm())
	}
}

// known reports entries of dir that have no business there; "*" allows
// directories that can be a user's or parcel's, "0*" those of versions.
func (c *checker) known(dir string, names ...string) {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		c.bad(err)
	}
	for _, e := range entries {
		name := e.Name()
		_, version := parcel.ParseVersionDir(name)
		switch {
		case slices.Contains(names, name):
		case slices.Contains(names, "*") && e.IsDir() && parcel.CheckName(name) == nil:
		case slices.Contains(names, "0*") && version:
		case isTemp(name):
			c.problem(Note, "", "%s: left by a process that was killed, or still at work", filepath.Join(dir, name))
		default:
			c.problem(Note, "", "%s: unknown file", filepath.Join(dir, name))
		}
	}
}

func (c *checker) user(u user, owner map[string]string) {
	for _, dir := range []string{u.dir, u.lockRoot, u.contentRoot, filepath.Join(u.dir, keysFile)} {
		c.private(dir)
	}
	c.known(u.dir, keysFile, filepath.Base(u.lockRoot), filepath.Base(u.contentRoot), passwordFile)
	if _, err := u.passwordHash(); err != nil {
		c.bad(err)
	} else if _, err := os.Lstat(filepath.Join(u.dir, passwordFile)); err == nil {
		c.private(filepath.Join(u.dir, passwordFile))
	}
	c.known(u.lockRoot, "*")
	c.known(u.contentRoot, "*")
	keys, err := c.store.keysOf(u.name)
	if err != nil {
		c.bad(err)
	}
	for _, k := range keys {
		id := string(k.Marshal())
		if o, ok := owner[id]; ok && o != u.name {
			c.problem(Bad, "a key belongs to one user", "authorized_keys: a key is also %s's: it lets nobody in", o)
		}
		owner[id] = u.name
	}
	sides := make(map[string]bool)
	locks, _ := subdirs(u.lockRoot)
	contents, _ := subdirs(u.contentRoot)
	for _, n := range append(locks, contents...) {
		p := u.parcel(n)
		if sides[n] || c.opts.Parcel != "" && c.opts.Parcel != n {
			continue
		}
		sides[n] = true
		c.where.Parcel = n
		switch {
		case !slices.Contains(locks, n):
			c.problem(Bad, fmt.Sprintf("restore %s from a backup", p.lock), "lock side is missing: without it the content cannot be read")
		case p.unfinished():
			c.problem(Note, "the next create of that name clears it away", "being made or removed, or left so by a process that was killed")
		case !slices.Contains(contents, n):
			c.problem(Bad, fmt.Sprintf("restore %s from a backup", p.content), "content is missing")
		}
		c.where.Parcel = ""
	}
}
