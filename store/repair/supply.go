package repair

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"syscall"

	"isr/store"
	"isr/store/parcel"
	"isr/store/seal"
	"isr/store/tree"
)

// A supply is a place where objects may be had by tag: another realm's tree, a
// parcel's directory or its hdk, a client's hoard, a look-aside directory.
// Objects lie in it, or a few levels below, at ab/abcdef… or flat,
// named in lower or upper case.
//
// Anybody may have written there: it is never left by a symbolic link, only
// files are opened, and nothing is believed that its tag does not prove.
type supply struct {
	name string // as it was given
	root *os.Root
	dirs []objectDir
}

// objectDir is a directory of objects, below the root of a place.
type objectDir struct {
	path               string
	levels, flat, caps bool // which files there are
}

// Bounds of what is looked for in a place.
const (
	placeDepth = 5      // ROOT/users/alice/isr/winxp/hdk
	placeDirs  = 10_000 // of objects
)

// openSupply looks for the directories of objects in dir. Close it.
func openSupply(dir string) (*supply, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, parcel.NewError(parcel.Usage, "place %s: %v", dir, errors.Unwrap(err)).
			WithHint("a place is a directory: a realm, a parcel, a hoard, or any with objects in it")
	}
	p := &supply{name: dir, root: root}
	p.scan(".", 0)
	return p, nil
}

func (p *supply) close() { p.root.Close() }

func (p *supply) scan(dir string, depth int) {
	f, err := p.root.Open(dir)
	if err != nil {
		return
	}
	defer f.Close()
	found := objectDir{path: dir}
	var below []string
	for {
		entries, err := f.ReadDir(1000)
		for _, e := range entries {
			name := e.Name()
			switch {
			case e.IsDir() && isPrefix(name):
				found.levels = true
			case e.IsDir() && len(below) < placeDirs:
				below = append(below, name)
			case found.flat && found.caps || e.IsDir():
			default:
				if _, err := seal.ParseTag(strings.ToLower(name)); err == nil {
					found.flat = found.flat || name == strings.ToLower(name)
					found.caps = found.caps || name == strings.ToUpper(name)
				}
			}
		}
		if err != nil {
			break
		}
	}
	if found.levels || found.flat || found.caps {
		p.dirs = append(p.dirs, found)
	}
	for _, name := range below {
		if _, version := parcel.ParseVersionDir(name); depth < placeDepth && len(p.dirs) < placeDirs && !version {
			p.scan(path.Join(dir, name), depth+1)
		}
	}
}

// isPrefix reports whether name is two digits that tags begin with.
func isPrefix(name string) bool {
	return len(name) == 2 && strings.Trim(name, "0123456789abcdef") == ""
}

// find calls f with the name of every file that may be the object, until f
// returns true. Those of prefer, a directory in the place, come first.
func (p *supply) find(tag seal.Tag, prefer string, f func(name string) bool) bool {
	text := tag.String()
	try := func(d objectDir) bool {
		var names []string
		if d.levels {
			names = append(names, path.Join(d.path, text[:2], text))
		}
		if d.flat {
			names = append(names, path.Join(d.path, text))
		}
		if d.caps {
			names = append(names, path.Join(d.path, strings.ToUpper(text)))
		}
		for _, name := range names {
			if fi, err := p.root.Lstat(name); err == nil && fi.Mode().IsRegular() && fi.Size() <= tree.MaxObject && f(name) {
				return true
			}
		}
		return false
	}
	for _, d := range p.dirs {
		if d.path == prefer && try(d) {
			return true
		}
	}
	for _, d := range p.dirs {
		if d.path != prefer && try(d) {
			return true
		}
	}
	return false
}

// read is a file of at most limit bytes.
func (p *supply) read(name string, limit int64) ([]byte, error) {
	if fi, err := p.root.Lstat(name); err != nil {
		return nil, err
	} else if !fi.Mode().IsRegular() {
		return nil, fmt.Errorf("%s: is no file", name)
	}
	// It may be a FIFO by now.
	f, err := p.root.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err == nil && (!fi.Mode().IsRegular() || fi.Size() > limit) {
		err = fmt.Errorf("%s: is no file of at most %d bytes", name, limit)
	}
	if err != nil {
		return nil, err
	}
	return io.ReadAll(io.LimitReader(f, limit))
}

// parcelHdk is where the tree of a realm has a parcel's objects.
func parcelHdk(user, name string) string { return path.Join(tree.UsersDir, user, "isr", name, "hdk") }

// records is the lock side of a parcel in the tree of a realm, "" if the place
// is none or lacks it.
func (p *supply) records(user, name string) string {
	dir := path.Join(tree.UsersDir, user, ".isr", name)
	if fi, err := p.root.Lstat(path.Join(dir, tree.ConfigFile)); err != nil || fi.Mode().Type()&^fs.ModeDir != 0 {
		return ""
	}
	return dir
}

// maxRecord bounds a record that is read from a place, bytes.
const maxRecord = 1 << 20

// config is the parcel.cfg of a parcel in a replica of the realm.
func (p *supply) config(user, name string) (*parcel.Config, error) {
	dir := p.records(user, name)
	if dir == "" {
		return nil, fs.ErrNotExist
	}
	text, err := p.read(path.Join(dir, tree.ConfigFile), maxRecord)
	if err != nil {
		return nil, err
	}
	c, err := parcel.ParseConfig(text)
	if err != nil {
		return nil, err
	}
	if c.User != user || c.Parcel != name || c.Version < 1 {
		return nil, parcel.NewError(parcel.Damaged, "parcel.cfg is of %s %s", c.User, c.Parcel)
	}
	return c, nil
}

// versions are the numbers of the versions of a parcel in a replica that have a
// record, up to head.
func (p *supply) versions(user, name string, head int) (numbers []int) {
	dir := p.records(user, name)
	f, err := p.root.Open(path.Join(dir, "keys"))
	if dir == "" || err != nil {
		return nil
	}
	defer f.Close()
	entries, _ := f.ReadDir(-1)
	for _, e := range entries {
		if v, ok := parcel.ParseVersionDir(e.Name()); ok && v <= head {
			if _, err := p.version(user, name, v); err == nil {
				numbers = append(numbers, v)
			}
		}
	}
	return numbers
}

// VersionRecord is the record of a version of a parcel in a replica of the realm.
func (p *supply) version(user, name string, v int) (*store.VersionRecord, error) {
	dir := p.records(user, name)
	if dir == "" {
		return nil, fs.ErrNotExist
	}
	text, err := p.read(path.Join(dir, "keys", parcel.VersionDir(v)), maxRecord)
	if err != nil {
		return nil, err
	}
	return store.ParseVersion(text, v)
}

// within is the path of file below the place, if it is.
func (p *supply) within(file string) (string, bool) {
	dir, err := filepath.Abs(p.name)
	if err != nil {
		return "", false
	}
	rel, err := filepath.Rel(dir, file)
	return rel, err == nil && filepath.IsLocal(rel)
}
