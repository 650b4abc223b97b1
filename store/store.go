// Package store keeps a realm's parcels as plain files, on the server: users,
// locks, versions, objects. isr-store(5) has the tree and every format.
//
// It promises that a version is published by one rename, whole and durable,
// or not at all; that what is visible in a parcel's hdk directory is whole,
// durable and matches its name; and that whatever is killed in the middle is
// undone or finished by the next call. Every change to a parcel happens under
// that parcel's flock, with the nonce checked under the same flock.
//
// It is the core, that the verbs of a lock server need. What an administrator
// asks of a whole tree is in packages beside it: check, repair, gc, prune, du,
// diff, export, backup. They use what anybody may ask of a Store and a Parcel,
// and take the same flocks.
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
	"time"

	"isr/store/atomicfile"
	"isr/store/parcel"
	"isr/store/tree"
)

// Format is the version of the tree, in realm.cfg.
const Format = 1

// Store is a realm's tree. Its methods are safe for concurrent use, by any
// number of processes.
type Store struct {
	root   string
	realm  string
	secret []byte

	assembling bool // see Assemble
}

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
	if err := os.MkdirAll(filepath.Join(root, tree.UsersDir), tree.DirMode); err != nil {
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
	tree.Step("realm")
	err = atomicfile.WriteNew(filepath.Join(root, tree.RealmFile), p, tree.FileMode)
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
	p, err := tree.ReadOwn(filepath.Join(root, tree.RealmFile))
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
