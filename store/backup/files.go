package backup

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

// standbyFile marks a tree as a mirror.
const standbyFile = "standby"

// file is a file of the lock side of a realm, by its path below the root; of a
// symbolic link, data is where it leads.
type file struct {
	name string
	mode fs.FileMode
	time time.Time
	data []byte
}

func (f file) isLink() bool { return f.mode&fs.ModeSymlink != 0 }

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

// maxRootFile bounds what is taken for a file of the realm, bytes.
const maxRootFile = 64 << 20

// collector reads files of a realm.
type collector struct {
	files   []file
	skipped func(name, why string)
}

// add reads the file name below dir, which is called as below the root. What
// is no file is left out, and so is one that has gone.
func (c *collector) add(dir *os.Root, name, called string) error {
	fi, err := dir.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if fi.Mode().Type() == fs.ModeSymlink && linkPlace(called) {
		return c.link(dir, name, called, fi.ModTime())
	}
	if !fi.Mode().IsRegular() {
		c.skipped(called, "is not a file")
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
	limit := int64(maxRootFile)
	if strings.HasPrefix(called, "log/") || strings.HasPrefix(called, "study/") {
		limit = maxFile
	}
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return err
	}
	if int64(len(b)) > limit {
		c.skipped(called, fmt.Sprintf("is over %d bytes", limit))
		return nil
	}
	c.files = append(c.files, file{called, fi.Mode().Perm(), fi.ModTime(), b})
	return nil
}

// linkPlace reports whether a symbolic link may have that name: hooks are
// links to programs, as packages bring them, or to directories of those. It is
// kept as one, and never followed: what it leads to is not the realm's.
func linkPlace(name string) bool { return name == hooksDir || strings.HasPrefix(name, hooksDir+"/") }

const hooksDir = "hooks"

// maxLink bounds where a link leads, bytes: PATH_MAX.
const maxLink = 4096

// plainLink reports whether a link that leads to target can be kept.
func plainLink(target string) bool {
	return target != "" && len(target) < maxLink && target == parcel.Clean(target)
}

// link keeps a symbolic link.
func (c *collector) link(dir *os.Root, name, called string, at time.Time) error {
	target, err := dir.Readlink(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if !plainLink(target) {
		c.skipped(called, "leads to what is no plain path")
		return nil
	}
	c.files = append(c.files, file{called, fs.ModeSymlink | 0o700, at, []byte(target)})
	return nil
}

// isTemp reports whether a file is one that was not finished.
func isTemp(name string) bool { return strings.HasPrefix(name, atomicfile.TempPrefix) }

// tree reads all files below name in dir, but for those that which leaves out.
func (c *collector) tree(dir *os.Root, name, called string, which func(name string) bool) error {
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
		case (e.Type().IsRegular() || linkPlace(calledBelow)) && (file{name: calledBelow, mode: e.Type()}).check() != nil:
			c.skipped(parcel.Clean(calledBelow), "has no place in a realm")
		default:
			err = c.add(dir, below, calledBelow)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// realm reads the files of the root.
func (c *collector) realm(root string) error {
	dir, err := os.OpenRoot(root)
	if err != nil {
		return err
	}
	defer dir.Close()
	if fi, err := dir.Lstat("study"); err == nil && fi.IsDir() { // no link
		if err := c.add(dir, studyConfig, studyConfig); err != nil {
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
		return err == nil && !fi.IsDir() && name[0] != '.' && !strings.HasSuffix(name, "flock") && name != standbyFile
	})
}

// user reads the files of a user's directory.
func (c *collector) user(userDir, name string) error {
	dir, err := os.OpenRoot(userDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer dir.Close()
	called := "users/" + name
	c.files = append(c.files, file{name: called + "/", mode: fs.ModeDir | 0o700})
	return c.tree(dir, ".", called, func(name string) bool {
		fi, err := dir.Lstat(name)
		return err == nil && !fi.IsDir() && parcel.CheckName(name) == nil
	})
}

// parcel reads the files of a parcel's lock side that are not derived. What a
// restore would not take for one of those, an editor's backup say, is left out.
func (c *collector) parcel(lockDir, user, parcelName string) error {
	dir, err := os.OpenRoot(lockDir)
	if err != nil {
		return err
	}
	defer dir.Close()
	side := lockSide(user, parcelName)
	return c.tree(dir, ".", side, func(name string) bool {
		switch name {
		case "flock", "unfinished", "renaming", "usage", "lockholder", "keys/keyroot":
			return false
		}
		v, inKeys := strings.CutPrefix(name, "keys/")
		_, isVersion := parcel.ParseVersionDir(v)
		if ok := inKeys && isVersion || parcel.CheckName(name) == nil; !ok {
			c.skipped(parcel.Clean(side+"/"+name), "is not one of a lock side")
			return false
		}
		return true
	})
}

// lockSide is a parcel's lock side below the root.
func lockSide(user, name string) string { return "users/" + user + "/.isr/" + name }

// find is the content of a file; nil if it is not there.
func find(files []file, name string) []byte {
	for _, f := range files {
		if f.name == name {
			return f.data
		}
	}
	return nil
}

// check refuses a file that has no place in a realm, by its name or its kind:
// such a one is neither put into an archive nor taken out of one.
func (f file) check() error {
	name := strings.TrimSuffix(f.name, "/")
	parts := strings.Split(name, "/")
	isFile, top := !f.mode.IsDir(), parts[0]
	ok := false
	switch {
	case !fs.ValidPath(name) || name == "." || name != parcel.Clean(name) || strings.Contains(name, `\`) || len(name) > 1024:
	case f.isLink():
		ok = linkPlace(name)
	case top != "users":
		ok = isFile && (len(parts) > 1 && slices.Contains(rootDirs, top) ||
			len(parts) == 1 && top[0] != '.' && !strings.HasSuffix(top, "flock") && top != standbyFile && !slices.Contains(rootDirs, top))
	case len(parts) < 2 || parcel.CheckName(parts[1]) != nil:
	case len(parts) == 2:
		ok = !isFile
	case len(parts) == 3:
		ok = isFile && parcel.CheckName(parts[2]) == nil && parts[2] != "isr"
	case len(parts) > 4:
		ok = isFile && parts[2] == ".isr" && parcel.CheckName(parts[3]) == nil
	}
	if !ok {
		return fmt.Errorf("file %q: no place for it in a realm", parcel.Clean(f.name))
	}
	return nil
}

// userDir is the directory of who a user is.
func userDir(lockRoot string) string { return filepath.Dir(lockRoot) }
