// Package store lays a realm's parcels out as plain files, and checks what it
// finds there. It is the server's tree: DESIGN in isr-store(5).
package store

import (
	"context"
	"errors"
	"os"
	"time"

	"golang.org/x/crypto/ssh"

	"isr/store/keyring"
	"isr/store/parcel"
	"isr/store/seal"
)

var errTodo = errors.New("store: not built yet")

// Store is a realm's tree.
type Store struct{}

// Parcel is one parcel of a Store.
type Parcel struct{}

// CreateOptions say what a new parcel is like; zero values are defaults.
type CreateOptions struct {
	DiskSize, MemSize   int64 // bytes
	ChunkSize, MemChunk int   // bytes
	VMM                 string
	Crypto              seal.Suite
	Compress            seal.Codec
	Src                 []string
	Comment             string
	Progress            func(done, total int64) // bytes; may be nil
}

// CommitRequest asks for a new version.
type CommitRequest struct {
	Nonce   string
	Parent  int
	Keyroot seal.Ref
	ID      string
}

// VersionInfo is what is known of one version without opening it.
type VersionInfo struct {
	Version   int
	Time      time.Time // when it was committed, server's clock
	Host      string
	Comment   string
	Parent    int
	Bytes     int64 // sealed bytes reachable from it and not from its parent
	Objects   int64 // likewise
	Suspended string
	Rollback  int // the version it equals, 0: none
}

// Severity tells a Problem that makes a store unsound from one that does not.
type Severity string

// The severities.
const (
	Bad  Severity = "error"
	Note Severity = "note"
)

// Problem is one finding of Check.
type Problem struct {
	User, Parcel string
	Version      int // 0: of the parcel
	Severity     Severity
	Msg, Hint    string
}

// CheckOptions choose what Check looks at.
type CheckOptions struct {
	User, Parcel string // empty: all
	Version      int    // 0: all
	Content      bool   // hash every object too
}

// CheckSummary counts what Check saw. The store is sound if Errors is 0.
type CheckSummary struct {
	Parcels, Versions     int
	Objects, Bytes, Files int64
	Errors, Notes         int
}

// Staged is an object being put.
type Staged struct{}

func (w *Staged) WriteAt(p []byte, off int64) (int, error) { return 0, errTodo }

// Close verifies the object and keeps it; parcel.ErrDamaged if it is not what
// its name says.
func (w *Staged) Close() error { return errTodo }

// Abort forgets it; after Close it does nothing.
func (w *Staged) Abort() {}

func Init(root, realm string) (*Store, error) { return nil, errTodo }
func Open(root string) (*Store, error)        { return nil, errTodo }

func (s *Store) Realm() string                                 { return "" }
func (s *Store) Users() ([]string, error)                      { return nil, errTodo }
func (s *Store) AddUser(name string, keys []string) error      { return errTodo }
func (s *Store) AddKeys(name string, keys []string) error      { return errTodo }
func (s *Store) DelUser(name string) error                     { return errTodo }
func (s *Store) UserOfKey(key ssh.PublicKey) (string, error)   { return "", errTodo }
func (s *Store) UserDirs(user string) (lock, content string)   { return "", "" }
func (s *Store) Parcels(user string) ([]string, error)         { return nil, errTodo }
func (s *Store) Parcel(user, name string) (*Parcel, error)     { return nil, errTodo }
func (s *Store) DelParcel(user, name string, force bool) error { return errTodo }
func (s *Store) Create(ctx context.Context, user, name string, o CreateOptions) (*Parcel, error) {
	return nil, errTodo
}
func (s *Store) Import(ctx context.Context, user, name, image string, o CreateOptions) (*Parcel, error) {
	return nil, errTodo
}
func (s *Store) Copy(ctx context.Context, fromUser, fromName, toUser, toName string) (*Parcel, error) {
	return nil, errTodo
}
func (s *Store) Check(ctx context.Context, o CheckOptions, report func(Problem)) (CheckSummary, error) {
	return CheckSummary{}, errTodo
}

func (p *Parcel) User() string                    { return "" }
func (p *Parcel) Name() string                    { return "" }
func (p *Parcel) Config() (*parcel.Config, error) { return nil, errTodo }
func (p *Parcel) ConfigFile() ([]byte, error)     { return nil, errTodo }
func (p *Parcel) Keyroot(v int) (seal.Ref, error) { return seal.Ref{}, errTodo }
func (p *Parcel) Versions(n int) ([]VersionInfo, error) {
	return nil, errTodo
}
func (p *Parcel) Root(ctx context.Context, v int) (*keyring.Root, error) { return nil, errTodo }
func (p *Parcel) Holder() (*parcel.Lock, error)                          { return nil, errTodo }
func (p *Parcel) LastReleased() (*parcel.Lock, error)                    { return nil, errTodo }
func (p *Parcel) Acquire(user, host, acquisition string) (*parcel.Lock, error) {
	return nil, errTodo
}
func (p *Parcel) Release(nonce string, force bool) (*parcel.Lock, error) { return nil, errTodo }
func (p *Parcel) CheckLock(nonce string) (*parcel.Lock, error)           { return nil, errTodo }
func (p *Parcel) Has(tag seal.Tag) (bool, error)                         { return false, errTodo }
func (p *Parcel) OpenObject(tag seal.Tag) (*os.File, error)              { return nil, errTodo }
func (p *Parcel) Stage(tag seal.Tag) (*Staged, error)                    { return nil, errTodo }
func (p *Parcel) Commit(ctx context.Context, r CommitRequest) (int, error) {
	return 0, errTodo
}
func (p *Parcel) Rollback(ctx context.Context, nonce string, v int) (int, error) { return 0, errTodo }
func (p *Parcel) Export(ctx context.Context, w *os.File, v int, progress func(done, total int64)) error {
	return errTodo
}
func (p *Parcel) ContentDir() string { return "" }
func (p *Parcel) LockDir() string    { return "" }
