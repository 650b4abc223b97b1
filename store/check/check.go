// Package check finds out whether a realm's tree is sound, or what in it is
// not: its structure, that every version is whole, and with Options.Content
// that every object is what its name says.
//
// It changes nothing, takes no lock and disturbs nobody: what is in the middle
// of a change is told from what is damaged. It mends nothing either: that is
// package repair's.
package check

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"isr/store"
	"isr/store/keyring"
	"isr/store/parcel"
	"isr/store/seal"
	"isr/store/tree"
)

// Severity tells a Problem that makes a store unsound from one that does not.
type Severity string

// The severities. What the next call repairs by itself, and what no version
// needs, is a note.
const (
	Bad  Severity = "error"
	Note Severity = "note"
)

// Problem is one finding.
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

// Options choose what is looked at.
type Options struct {
	User, Parcel string // empty: all
	Version      int    // 0: all; else what only other versions need is passed over
	Content      bool   // hash every object of Sample too
	Sample       Sample
	Progress     func(done, total int64) // bytes hashed; may be nil
}

// Summary counts what was seen. What was looked at is sound if Errors is 0.
type Summary struct {
	Parcels   int   `json:"parcels"`
	Versions  int   `json:"versions"`
	Objects   int64 `json:"objects"` // files below hdk, each parcel's counted
	Bytes     int64 `json:"bytes"`
	Read      int64 `json:"read"` // those of them whose content was looked at
	ReadBytes int64 `json:"read_bytes"`
	Errors    int   `json:"errors"`
	Notes     int   `json:"notes"`
}

// Run looks at all that o names and reports every problem, in the order of
// the tree. The error says why it could not look; that there are problems is
// no error. It changes nothing and needs no lock: a parcel in use is sound.
func Run(ctx context.Context, s *store.Store, o Options, report func(Problem)) (Summary, error) {
	c := New(s, o)
	if o.Content && o.Progress != nil {
		if err := c.Expect(); err != nil {
			return Summary{}, err
		}
	}
	return c.Run(ctx, report)
}

// Checker is Run for who looks again and again, and mends in between: what it
// hashed and found whole it does not hash again.
type Checker struct {
	Progress func(done, total int64) // bytes hashed; may be nil

	store    *store.Store
	opts     Options
	report   func(Problem)
	sum      Summary
	where    Problem             // User, Parcel, Version of what is looked at
	whole    map[tree.Inode]bool // objects hashed: links of copied parcels are hashed once
	onTheWay map[string]bool
	total    int64 // bytes to hash, for Progress
}

// New is a Checker of what o names.
func New(s *store.Store, o Options) *Checker {
	return &Checker{Progress: o.Progress, store: s, opts: o, whole: make(map[tree.Inode]bool), onTheWay: s.OnTheWay()}
}

// Expect finds out how many bytes there are to be hashed, for Progress.
func (c *Checker) Expect() error {
	users, err := c.users()
	for _, name := range users {
		c.total += c.toRead(c.store.UserAt(name))
	}
	return err
}

func (c *Checker) users() ([]string, error) {
	if c.opts.User != "" {
		return []string{c.opts.User}, nil
	}
	return c.store.Users()
}

// Run looks at all there is to look at, as the function does.
func (c *Checker) Run(ctx context.Context, report func(Problem)) (Summary, error) {
	c.sum, c.report = Summary{}, report
	err := c.all(ctx)
	return c.sum, err
}

// Parcel looks at one parcel only.
func (c *Checker) Parcel(ctx context.Context, p *store.Parcel, report func(Problem)) error {
	c.where, c.report = Problem{User: p.User(), Parcel: p.Name()}, report
	return c.parcel(ctx, p)
}

func (c *Checker) problem(s Severity, hint, format string, args ...any) {
	p := c.where
	p.Severity, p.Hint, p.Msg = s, hint, fmt.Sprintf(format, args...)
	c.tell(p)
}

func (c *Checker) tell(p Problem) {
	if p.Severity == Bad {
		c.sum.Errors++
	} else {
		c.sum.Notes++
	}
	c.report(p)
}

// bad reports err as found.
func (c *Checker) bad(err error) {
	var e *parcel.Error
	hint := ""
	if errors.As(err, &e) {
		hint = e.Hint
	}
	c.problem(Bad, hint, "%s", strings.TrimPrefix(err.Error(), "parcel "+c.where.Parcel+": "))
}

func (c *Checker) all(ctx context.Context) error {
	users, err := c.users()
	if err != nil {
		return err
	}
	if c.opts.User == "" {
		c.private(filepath.Join(c.store.Root(), tree.RealmFile))
		c.private(filepath.Join(c.store.Root(), tree.UsersDir))
		// The last are the server's, and of backups and mirrors.
		c.known(c.store.Root(), tree.RealmFile, tree.UsersDir, tree.FlockFile, "hostkeys", "motd", "hooks", "hooks.conf", "log", "study", "study.key", "backup.flock", "standby")
		c.known(filepath.Join(c.store.Root(), tree.UsersDir), "*")
	}
	owner := make(map[string]string) // of each key
	for _, name := range users {
		u, err := c.store.User(name)
		if err != nil {
			return err
		}
		c.where = Problem{User: name}
		c.user(u, owner)
		names, err := c.store.Names(name)
		if err != nil {
			c.bad(err)
			continue
		}
		if c.opts.Parcel != "" {
			if _, err := c.store.Find(name, c.opts.Parcel); err != nil {
				return err
			}
			names = []string{c.opts.Parcel}
		}
		for _, n := range names {
			c.where = Problem{User: name, Parcel: n}
			p := u.At(n)
			if from, err := c.store.RenamedFrom(p); err == nil && from != nil && !tree.Exists(p.ContentDir()) {
				p = p.WithContent(from)
			}
			if err := c.parcel(ctx, p); err != nil {
				return err
			}
		}
	}
	return nil
}

// toRead is how many bytes of a user's are going to be hashed; what cannot be
// found out now is not counted.
func (c *Checker) toRead(u store.User) (sum int64) {
	names, _ := tree.Subdirs(u.LockRoot)
	for _, n := range names {
		if c.opts.Parcel != "" && c.opts.Parcel != n {
			continue
		}
		filepath.WalkDir(u.At(n).HdkDir(), func(_ string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return nil
			}
			if tag, err := seal.ParseTag(d.Name()); err == nil && c.opts.Sample.Has(tag) {
				if fi, err := d.Info(); err == nil {
					sum += fi.Size()
				}
			}
			return nil
		})
	}
	return sum
}

// read counts an object whose content was looked at. The caller has the lock
// of what it counts.
func (c *Checker) read(size int64) {
	c.sum.Read++
	c.sum.ReadBytes += size
	if c.Progress != nil {
		c.Progress(c.sum.ReadBytes, max(c.total, c.sum.ReadBytes))
	}
}

// private reports a file or directory that others can read.
func (c *Checker) private(path string) {
	if fi, err := os.Lstat(path); err == nil && fi.Mode().Type()&fs.ModeSymlink == 0 && fi.Mode().Perm()&0o077 != 0 {
		c.problem(Bad, "chmod go= "+path, "%s: mode %04o lets others in", path, fi.Mode().Perm())
	}
}

// known reports entries of dir that have no business there; "*" allows
// directories that can be a user's or parcel's, "0*" those of versions.
func (c *Checker) known(dir string, names ...string) {
	if err := tree.OwnDirs(dir); err != nil {
		c.bad(err)
		return
	}
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
		case tree.IsTemp(name):
			c.problem(Note, "gc removes what was left", "%s: left by a process that was killed, or still at work", filepath.Join(dir, name))
		default:
			c.problem(Note, "", "%s: unknown file", filepath.Join(dir, name))
		}
	}
}

func (c *Checker) user(u store.User, owner map[string]string) {
	for _, dir := range []string{u.Dir, u.LockRoot, u.ContentRoot, filepath.Join(u.Dir, tree.KeysFile)} {
		c.private(dir)
	}
	c.known(u.Dir, tree.KeysFile, filepath.Base(u.LockRoot), filepath.Base(u.ContentRoot), tree.PasswordFile, tree.UserFile)
	if _, err := c.store.UserConfig(u.Name); err != nil {
		c.bad(err)
	} else {
		c.private(filepath.Join(u.Dir, tree.UserFile))
	}
	if _, err := c.store.HasPassword(u.Name); err != nil {
		c.bad(err)
	} else if _, err := os.Lstat(filepath.Join(u.Dir, tree.PasswordFile)); err == nil {
		c.private(filepath.Join(u.Dir, tree.PasswordFile))
	}
	c.known(u.LockRoot, "*")
	c.known(u.ContentRoot, "*")
	lines, err := c.store.Keys(u.Name)
	if err != nil {
		c.bad(err)
	}
	for _, l := range lines {
		if l.Err != nil {
			c.problem(Bad, "isr-locksrv user key list "+u.Name+" shows it", "authorized_keys line %d lets nobody in: %v", l.N, l.Err)
			continue
		}
		id := string(l.Key.Marshal())
		if o, ok := owner[id]; ok && o != u.Name {
			c.problem(Bad, "a key belongs to one user", "authorized_keys: a key is also %s's: it lets nobody in", o)
		}
		owner[id] = u.Name
	}
	sides := make(map[string]bool)
	locks, _ := tree.Subdirs(u.LockRoot)
	contents, _ := tree.Subdirs(u.ContentRoot)
	for _, n := range append(locks, contents...) {
		p := u.At(n)
		if sides[n] || c.opts.Parcel != "" && c.opts.Parcel != n {
			continue
		}
		sides[n] = true
		c.where.Parcel = n
		switch {
		case c.onTheWay[p.ContentDir()]:
			// Its new owner's check has it.
		case !slices.Contains(locks, n):
			c.problem(Bad, fmt.Sprintf("restore %s from a backup", p.LockDir()), "lock side is missing: without it the content cannot be read")
		case p.Unfinished():
			c.problem(Note, "gc clears away what was left", "being made or removed, or left so by a process that was killed")
		case tree.Exists(filepath.Join(p.LockDir(), tree.RenameFile)):
			from, err := c.store.RenamedFrom(p)
			switch {
			case err != nil:
				c.bad(err)
			case !tree.Exists(p.ContentDir()) && !tree.IsDir(from.ContentDir()):
				c.problem(Bad, fmt.Sprintf("restore %s from a backup", p.ContentDir()), "content is missing")
			default:
				c.problem(Note, "the next command that names it sees to it", "being renamed from %s, or left so by a process that was killed", from.Name())
			}
		case !slices.Contains(contents, n):
			c.problem(Bad, fmt.Sprintf("restore %s from a backup", p.ContentDir()), "content is missing")
		}
		c.where.Parcel = ""
	}
}
