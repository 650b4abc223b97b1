// Package realm reads what of a realm is copied by backups and mirrors: the
// files of the root, of users and of the lock sides, and the names of objects.
//
// The realm is in use meanwhile. It promises that a parcel is as it was at one
// instant, with the name of every object that its versions needed then; that no
// link is followed; and that a walk of the versions says what they need and the
// realm lacks. It writes nothing, and does not say where the copies go.
package realm

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"isr/store/atomicfile"
	"isr/store/parcel"
)

// StandbyFile marks a tree as a mirror.
const StandbyFile = "standby"

// File is a file of the lock side of a realm, by its path below the root; of a
// symbolic link, Data is where it leads.
type File struct {
	Name string
	Mode fs.FileMode
	Time time.Time
	Data []byte
}

// IsLink reports whether it is a symbolic link.
func (f File) IsLink() bool { return f.Mode&fs.ModeSymlink != 0 }

// Directories of a realm's root that are kept whole. What else is there (the
// users apart) is kept if it is a file: realm.cfg, motd and what is to come.
var rootDirs = []string{"hooks", "hostkeys", "log", "study"}

// The study is made of logs that may be gone by now, and of what people told.
// Its database is made of the rest. The time up to which it was harvested is
// read before what was: so a restored one misses nothing.
const (
	studyConfig   = "study/study.cfg"
	studyDatabase = "study/study.sqlite"
	studyLock     = "study/lock"
)

// MaxFile bounds any file of a realm that is copied, bytes.
const MaxFile = 1 << 30

// MaxRootFile bounds what is taken for a file of the realm, bytes.
const MaxRootFile = 64 << 20

// Collector reads files of a realm.
type Collector struct {
	Files   []File
	Skipped func(name, why string)
}

// Add reads the file name below dir, which is called as below the root. What
// is no file is left out, and so is one that has gone.
func (c *Collector) Add(dir *os.Root, name, called string) error {
	fi, err := dir.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if fi.Mode().Type() == fs.ModeSymlink && LinkPlace(called) {
		return c.link(dir, name, called, fi.ModTime())
	}
	if !fi.Mode().IsRegular() {
		c.Skipped(called, "is not a file")
		return nil
	}
	f, err := dir.OpenFile(name, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	if fi, err = f.Stat(); err != nil {
		return err
	}
	limit := int64(MaxRootFile)
	if strings.HasPrefix(called, "log/") || strings.HasPrefix(called, "study/") {
		limit = MaxFile
	}
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return err
	}
	if int64(len(b)) > limit {
		c.Skipped(called, fmt.Sprintf("is over %d bytes", limit))
		return nil
	}
	c.Files = append(c.Files, File{called, fi.Mode().Perm(), fi.ModTime(), b})
	return nil
}

// LinkPlace reports whether a symbolic link may have that name: hooks are
// links to programs, as packages bring them, or to directories of those. It is
// kept as one, and never followed: what it leads to is not the realm's.
func LinkPlace(name string) bool { return name == hooksDir || strings.HasPrefix(name, hooksDir+"/") }

const hooksDir = "hooks"

// maxLink bounds where a link leads, bytes: PATH_MAX.
const maxLink = 4096

// PlainLink reports whether a link that leads to target can be kept.
func PlainLink(target string) bool {
	return target != "" && len(target) < maxLink && target == parcel.Clean(target)
}

// link keeps a symbolic link.
func (c *Collector) link(dir *os.Root, name, called string, at time.Time) error {
	target, err := dir.Readlink(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if !PlainLink(target) {
		c.Skipped(called, "leads to what is no plain path")
		return nil
	}
	c.Files = append(c.Files, File{called, fs.ModeSymlink | 0o700, at, []byte(target)})
	return nil
}

// isTemp reports whether a file is one that was not finished.
func isTemp(name string) bool { return strings.HasPrefix(name, atomicfile.TempPrefix) }

// tree reads all files below name in dir, but for those that which leaves out.
func (c *Collector) tree(dir *os.Root, name, called string, which func(name string) bool) error {
	entries, err := fs.ReadDir(dir.FS(), name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		below, calledBelow := path.Join(name, e.Name()), path.Join(called, e.Name())
		switch {
		case isTemp(e.Name()) || !which(below):
		case e.IsDir():
			err = c.tree(dir, below, calledBelow, which)
		case (e.Type().IsRegular() || LinkPlace(calledBelow)) && (File{Name: calledBelow, Mode: e.Type()}).Check() != nil:
			c.Skipped(parcel.Clean(calledBelow), "has no place in a realm")
		default:
			err = c.Add(dir, below, calledBelow)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// Realm reads the files of the root.
func (c *Collector) Realm(root string) error {
	dir, err := os.OpenRoot(root)
	if err != nil {
		return err
	}
	defer dir.Close()
	if fi, err := dir.Lstat("study"); err == nil && fi.IsDir() { // no link
		if err := c.Add(dir, studyConfig, studyConfig); err != nil {
			return err
		}
	}
	return c.tree(dir, ".", ".", func(name string) bool {
		switch name {
		case studyConfig, studyDatabase, studyLock:
			return false
		}
		top, _, below := strings.Cut(name, "/")
		if below || slices.Contains(rootDirs, top) {
			return slices.Contains(rootDirs, top)
		}
		fi, err := dir.Lstat(name)
		// What is hidden there is the account's whose home it is.
		return err == nil && !fi.IsDir() && name[0] != '.' && !strings.HasSuffix(name, "flock") && name != StandbyFile
	})
}

// User reads the files of a user's directory.
func (c *Collector) User(userDir, name string) error {
	dir, err := os.OpenRoot(userDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer dir.Close()
	called := "users/" + name
	c.Files = append(c.Files, File{Name: called + "/", Mode: fs.ModeDir | 0o700})
	return c.tree(dir, ".", called, func(name string) bool {
		fi, err := dir.Lstat(name)
		return err == nil && !fi.IsDir() && parcel.CheckName(name) == nil
	})
}

// Parcel reads the files of a parcel's lock side that are not derived. What a
// restore would not take for one of those, an editor's backup say, is left out.
func (c *Collector) Parcel(lockDir, user, parcelName string) error {
	dir, err := os.OpenRoot(lockDir)
	if err != nil {
		return err
	}
	defer dir.Close()
	side := LockSide(user, parcelName)
	return c.tree(dir, ".", side, func(name string) bool {
		switch name {
		case "flock", "unfinished", "renaming", "usage", "lockholder", "keys/keyroot":
			return false
		}
		v, inKeys := strings.CutPrefix(name, "keys/")
		_, isVersion := parcel.ParseVersionDir(v)
		if ok := inKeys && isVersion || parcel.CheckName(name) == nil; !ok {
			c.Skipped(parcel.Clean(side+"/"+name), "is not one of a lock side")
			return false
		}
		return true
	})
}

// LockSide is a parcel's lock side below the root.
func LockSide(user, name string) string { return "users/" + user + "/.isr/" + name }

// Find is the content of a file; nil if it is not there.
func Find(files []File, name string) []byte {
	for _, f := range files {
		if f.Name == name {
			return f.Data
		}
	}
	return nil
}

// Check refuses a file that has no place in a realm, by its name or its kind:
// such a one is neither put into an archive nor taken out of one.
func (f File) Check() error {
	name := strings.TrimSuffix(f.Name, "/")
	parts := strings.Split(name, "/")
	isFile, top := !f.Mode.IsDir(), parts[0]
	ok := false
	switch {
	case !fs.ValidPath(name) || name == "." || name != parcel.Clean(name) || strings.Contains(name, `\`) || len(name) > 1024:
	case f.IsLink():
		ok = LinkPlace(name)
	case top != "users":
		ok = isFile && (len(parts) > 1 && slices.Contains(rootDirs, top) ||
			len(parts) == 1 && top[0] != '.' && !strings.HasSuffix(top, "flock") && top != StandbyFile && !slices.Contains(rootDirs, top))
	case len(parts) < 2 || parcel.CheckName(parts[1]) != nil:
	case len(parts) == 2:
		ok = !isFile
	case len(parts) == 3:
		ok = isFile && parcel.CheckName(parts[2]) == nil && parts[2] != "isr"
	case len(parts) > 4:
		ok = isFile && parts[2] == ".isr" && parcel.CheckName(parts[3]) == nil
	}
	if !ok {
		return fmt.Errorf("file %q: no place for it in a realm", parcel.Clean(f.Name))
	}
	return nil
}

// UserDir is the directory of who a user is.
func UserDir(lockRoot string) string { return filepath.Dir(lockRoot) }
