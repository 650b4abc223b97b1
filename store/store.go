// Package store keeps a realm's parcels as plain files, on the server: users,
// locks, versions, objects. isr-store(5) has the tree and every format.
//
// It promises that a version is published by one rename, whole and durable,
// or not at all; that what is visible in a parcel's hdk directory is whole,
// durable and matches its name; and that whatever is killed in the middle is
// undone or finished by the next call. Every change to a parcel happens under
// that parcel's flock, with the nonce checked under the same flock.
//
// It authenticates nobody and speaks to no network: that is locksrv's part.
// It needs Linux 5.8 or later, where syncfs(2) reports failed writes.
package store

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/gofrs/flock"
	"golang.org/x/sys/unix"

	"isr/store/atomicfile"
	"isr/store/parcel"
)

// Format is the version of the tree, in realm.cfg.
const Format = 1

// Names in the tree.
const (
	realmFile  = "realm.cfg"
	usersDir   = "users"
	flockFile  = "flock"
	configFile = "parcel.cfg"
)

const (
	dirMode    = 0o700
	fileMode   = 0o600
	objectMode = 0o400
)

// Store is a realm's tree. Its methods are safe for concurrent use, by any
// number of processes.
type Store struct {
	root   string
	realm  string
	secret []byte

	assembling bool // see Assemble
}

// step is called before each step that changes the tree, for tests that kill
// the process there.
var step = func(name string) {}

// now is the server's clock, in the resolution of records.
func now() time.Time { return time.Now().UTC().Truncate(time.Second) }

// Init makes an empty store in the directory root for a realm of that name,
// with a new convergence secret, and opens it. parcel.ErrExists if there is
// one.
func Init(root, realm string) (*Store, error) {
	if err := parcel.CheckName(realm); err != nil {
		return nil, fmt.Errorf("realm: %w", err)
	}
	root, err := filepath.Abs(root)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Join(root, usersDir), dirMode); err != nil {
		return nil, err
	}
	if err := atomicfile.SyncDir(filepath.Dir(root)); err != nil {
		return nil, err
	}
	var secret [32]byte
	rand.Read(secret[:])
	p, err := parcel.Record{{Key: "NAME", Value: realm}, {Key: "SECRET", Value: hex.EncodeToString(secret[:])},
		{Key: "FORMAT", Value: strconv.Itoa(Format)}}.Encode()
	if err != nil {
		return nil, err
	}
	step("realm")
	err = atomicfile.WriteNew(filepath.Join(root, realmFile), p, fileMode)
	if errors.Is(err, fs.ErrExist) {
		return nil, parcel.NewError(parcel.Exists, "store %s: exists", root)
	}
	if err != nil {
		return nil, err
	}
	return Open(root)
}

// Open opens the store in the directory root. The error wraps fs.ErrNotExist
// if there is none.
func Open(root string) (*Store, error) {
	root, err := filepath.Abs(root)
	if err != nil {
		return nil, err
	}
	p, err := readOwn(filepath.Join(root, realmFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: %w", parcel.NewError(parcel.Failed, "store %s: no realm.cfg", root).
			WithHint("isr-locksrv --root %s user add NAME makes a store", root), fs.ErrNotExist)
	}
	if err != nil {
		return nil, fmt.Errorf("store %s: %w", root, err)
	}
	return parseRealm(root, p)
}

// parseRealm is the store in root, by the content of its realm.cfg.
func parseRealm(root string, p []byte) (*Store, error) {
	r, err := parcel.ParseRecord(p)
	if err != nil {
		return nil, fmt.Errorf("store %s: realm.cfg: %w", root, err)
	}
	if f := r.Get("FORMAT"); f != strconv.Itoa(Format) {
		return nil, fmt.Errorf("store %s: format %q: this program reads %d", root, f, Format)
	}
	s := &Store{root: root, realm: r.Get("NAME")}
	if s.secret, err = hex.DecodeString(r.Get("SECRET")); err != nil {
		return nil, fmt.Errorf("store %s: realm.cfg: SECRET: %w", root, err)
	}
	return s, nil
}

// Realm is the name of the realm.
func (s *Store) Realm() string { return s.realm }

// Root is the store's directory, absolute.
func (s *Store) Root() string { return s.root }

// newFlock is the flock of the file name, which is made if it is not there;
// no link is followed to make one elsewhere, and no pipe waited for.
func newFlock(name string) *flock.Flock {
	return flock.New(name, flock.SetPermissions(fileMode), flock.SetFlag(os.O_CREATE|os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK))
}

// lockFile takes the flock of the file name, waiting for it. The file may be
// removed with its directory while we wait: then its successor is taken, or
// the error is fs.ErrNotExist.
func lockFile(name string, shared bool) (unlock func(), err error) {
	for {
		l := newFlock(name)
		take := l.Lock
		if shared {
			take = l.RLock
		}
		if err := take(); err != nil {
			return nil, err
		}
		same, err := isFile(l, name)
		if same {
			return func() { l.Close() }, nil
		}
		l.Close()
		if err != nil {
			return nil, err
		}
	}
}

// lockDir takes the flock of a directory, which needs no file in it.
func lockDir(dir string) (unlock func(), err error) {
	l := flock.New(dir, flock.SetFlag(os.O_RDONLY|unix.O_NOFOLLOW|unix.O_DIRECTORY))
	if err := l.Lock(); err != nil {
		return nil, err
	}
	return func() { l.Close() }, nil
}

// tryLockFile is lockFile without waiting; unlock is nil if another has it.
func tryLockFile(name string) (unlock func(), err error) {
	l := newFlock(name)
	got, err := l.TryLock()
	if err != nil || !got {
		return nil, err
	}
	if same, err := isFile(l, name); !same {
		l.Close()
		return nil, err
	}
	return func() { l.Close() }, nil
}

// isFile reports whether the locked file is still the one called name.
func isFile(l *flock.Flock, name string) (bool, error) {
	held, err := l.Stat()
	if err != nil {
		return false, err
	}
	there, err := os.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return os.SameFile(held, there), nil
}

// syncfs makes everything on dir's file system durable: thousands of objects
// at the price of one. After an error none of it is to be trusted. Tests
// replace it.
var syncfs = func(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := unix.Syncfs(int(d.Fd())); err != nil {
		return &fs.PathError{Op: "syncfs", Path: dir, Err: err}
	}
	return nil
}

// isTemp reports whether name is a leftover or work in progress.
func isTemp(name string) bool { return strings.HasPrefix(name, atomicfile.TempPrefix) }

// removeTemps removes the leftovers of killed writers in dir. The caller
// holds the flock that all writers there hold.
func removeTemps(dir string) {
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		if isTemp(e.Name()) {
			os.RemoveAll(filepath.Join(dir, e.Name()))
		}
	}
}

// subdirs are the names of the directories in dir, sorted, dot names left
// out; none if dir does not exist, or is itself no directory.
func subdirs(dir string) ([]string, error) {
	if ok, err := realDir(dir); !ok {
		return nil, err
	}
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var names []string
	for _, e := range entries {
		if e.IsDir() && e.Name()[0] != '.' {
			names = append(names, e.Name())
		}
	}
	return names, err
}
