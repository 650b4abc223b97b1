package target

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"iter"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"isr/store/atomicfile"
	"isr/store/seal"
)

// Dir is a Target in a directory of this host, and a Tree. Nothing outside of
// the directory is read or written, whatever links are in it.
type Dir struct {
	// Step, if it is there, is called, by several at once, before each step that
	// changes the place: for tests that kill the process there.
	Step func(name string)

	name string
	root *os.Root

	mu      sync.Mutex
	pending []renamed       // written, and not yet durable
	waits   map[string]bool // the names in pending
	made    map[string]bool
	removed bool // something, and not yet durably
}

// renamed is a file that waits under another name to be durable.
type renamed struct{ from, to string }

// maxPending bounds what waits for Sync, files.
const maxPending = 4096

func (d *Dir) step(name string) {
	if d.Step != nil {
		d.Step(name)
	}
}

// OpenDir opens the directory name, and makes it if its parent is there.
func OpenDir(name string, create bool) (*Dir, error) {
	name, err := filepath.Abs(name)
	if err != nil {
		return nil, err
	}
	if create {
		if err := os.Mkdir(name, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, err
		}
		if err := atomicfile.SyncDir(filepath.Dir(name)); err != nil {
			return nil, err
		}
	}
	root, err := os.OpenRoot(name)
	if err != nil {
		return nil, err
	}
	return &Dir{name: name, root: root, made: make(map[string]bool), waits: make(map[string]bool)}, nil
}

func (d *Dir) String() string { return d.name }

// Width is that of the processors: hashing is what takes the time.
func (d *Dir) Width() int { return max(2, runtime.GOMAXPROCS(0)) }

func (d *Dir) Close() error { return d.root.Close() }

// mkdir makes a directory and those above it, through no link.
func (d *Dir) mkdir(name string) error {
	if name == "." {
		return nil
	}
	d.mu.Lock()
	made := d.made[name]
	d.mu.Unlock()
	if made {
		return nil
	}
	if err := d.mkdir(path.Dir(name)); err != nil {
		return err
	}
	if err := d.root.Mkdir(name, 0o700); errors.Is(err, fs.ErrExist) {
		if fi, err := d.root.Lstat(name); err != nil {
			return err
		} else if !fi.IsDir() {
			return &fs.PathError{Op: "mkdir", Path: name, Err: unix.ENOTDIR}
		}
	} else if err != nil {
		return err
	}
	d.mu.Lock()
	d.made[name] = true
	d.mu.Unlock()
	return nil
}

func (d *Dir) Put(ctx context.Context, name string, content []byte) error {
	return d.PutFrom(ctx, name, bytes.NewReader(content), int64(len(content)))
}

func (d *Dir) PutFrom(ctx context.Context, name string, r io.Reader, size int64) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := d.mkdir(path.Dir(name)); err != nil {
		return err
	}
	d.step("write")
	// One name for all who put it: then what a killed run left is written over.
	temp := path.Join(path.Dir(name), atomicfile.TempPrefix+path.Base(name))
	if err := d.root.Remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := d.root.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, fileMode(name))
	if err != nil {
		return err
	}
	n, err := io.Copy(f, r)
	if err == nil && n != size {
		err = io.ErrUnexpectedEOF
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		d.root.Remove(temp)
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.waits[name] {
		d.waits[name] = true
		d.pending = append(d.pending, renamed{temp, name})
	}
	if len(d.pending) >= maxPending {
		return d.sync()
	}
	return nil
}

// FileMode: objects are never changed.
func fileMode(name string) fs.FileMode {
	dir, last := path.Split(name)
	if tag, err := seal.ParseTag(last); err == nil && strings.HasSuffix(dir, "/"+tag.String()[:2]+"/") {
		return 0o400
	}
	return 0o600
}

func (d *Dir) Sync(context.Context) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.sync()
}

// sync makes what is pending durable before it has its name: one syncfs costs
// as much as a few fsyncs, and there are thousands of objects.
func (d *Dir) sync() error {
	if len(d.pending) == 0 && !d.removed {
		return nil
	}
	d.step("sync")
	if err := d.syncfs(); err != nil {
		return err
	}
	for _, p := range d.pending {
		d.step("rename")
		if err := d.root.Rename(p.from, p.to); err != nil {
			return err
		}
	}
	d.pending, d.removed = nil, false
	clear(d.waits)
	d.step("sync names")
	return d.syncfs()
}

func (d *Dir) syncfs() error {
	f, err := d.root.Open(".")
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.Syncfs(int(f.Fd())); err != nil {
		return &fs.PathError{Op: "syncfs", Path: d.name, Err: err}
	}
	return nil
}

func (d *Dir) Get(_ context.Context, name string) (io.ReadCloser, error) {
	f, err := d.root.OpenFile(name, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	if fi, err := f.Stat(); err != nil || !fi.Mode().IsRegular() {
		f.Close()
		if err == nil {
			err = &fs.PathError{Op: "open", Path: name, Err: fs.ErrInvalid}
		}
		return nil, err
	}
	return f, nil
}

func (d *Dir) List(ctx context.Context, dir string) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) { d.list(ctx, dir, yield) }
}

func (d *Dir) list(ctx context.Context, dir string, yield func(Entry, error) bool) bool {
	if err := ctx.Err(); err != nil {
		return yield(Entry{}, err)
	}
	entries, err := fs.ReadDir(d.root.FS(), dir)
	if errors.Is(err, fs.ErrNotExist) {
		return true
	}
	if err != nil {
		return yield(Entry{}, err)
	}
	for _, e := range entries {
		name := path.Join(dir, e.Name())
		switch {
		case e.IsDir():
			if !d.list(ctx, name, yield) {
				return false
			}
		case e.Type().IsRegular() && !isTemp(e.Name()):
			fi, err := e.Info()
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err != nil {
				return yield(Entry{}, err)
			}
			if !yield(Entry{name, fi.Size()}, nil) {
				return false
			}
		}
	}
	return true
}

func isTemp(name string) bool { return strings.HasPrefix(name, atomicfile.TempPrefix) }

func (d *Dir) Remove(_ context.Context, name string) error {
	d.step("remove")
	d.mu.Lock()
	d.removed = true
	delete(d.made, name)
	d.mu.Unlock()
	return d.root.Remove(name)
}

// Link makes the file name another name of old.
func (d *Dir) Link(_ context.Context, old, name string) error {
	if err := d.mkdir(path.Dir(name)); err != nil {
		return err
	}
	d.step("link")
	err := d.root.Link(old, name)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	return err
}

// Symlink makes name a symbolic link to target.
func (d *Dir) Symlink(_ context.Context, target, name string) error {
	if got, err := d.root.Readlink(name); err == nil && got == target {
		return nil
	}
	if err := d.mkdir(path.Dir(name)); err != nil {
		return err
	}
	temp := path.Join(path.Dir(name), atomicfile.TempPrefix+path.Base(name))
	d.root.Remove(temp)
	if err := d.root.Symlink(target, temp); err != nil {
		return err
	}
	return d.root.Rename(temp, name)
}

// Mkdir makes a directory, and those above it.
func (d *Dir) Mkdir(_ context.Context, name string) error { return d.mkdir(name) }

// RemoveAll removes a directory with all that is in it.
func (d *Dir) RemoveAll(_ context.Context, name string) error {
	d.mu.Lock()
	d.removed = true
	clear(d.made)
	d.mu.Unlock()
	return d.root.RemoveAll(name)
}

// Chmod changes the mode of a file.
func (d *Dir) Chmod(_ context.Context, name string, mode fs.FileMode) error {
	return d.root.Chmod(name, mode)
}
