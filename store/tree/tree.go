// Package tree is what all that work on a realm's tree need of the file system:
// the names in it, and its files, directories, objects and flocks, opened as
// whoever cannot trust what lies there must open them.
//
// It promises to follow no symbolic link and to wait for no pipe: one that was
// planted below a user's directory must not lead to another parcel, nor out of
// the tree. It knows nothing of users, parcels or versions: that is package
// store's. isr-store(5) has the tree.
package tree

import "isr/store/seal"

// Names in the tree.
const (
	RealmFile = "realm.cfg"
	UsersDir  = "users"
	FlockFile = "flock" // of the store, and of each parcel
)

// Names in a user's directory.
const (
	KeysFile     = "authorized_keys"
	PasswordFile = "password" // as bcrypt has it
	UserFile     = "user.cfg" // what is known of her; without one she has the defaults
)

// Names on a parcel's lock side. The nonce file is the semaphore; the three
// after it tell people.
const (
	ConfigFile   = "parcel.cfg"
	NonceFile    = "nonce"      // parcel.Lock, secret: present exactly while held
	HolderFile   = "lockholder" // its public part; derived
	ReleasedFile = "released"   // the last holder's Lock, SINCE when it is free; BY and WHY if it was broken
	EpochFile    = "epoch"      // the number of the last acquisition

	// UsageFile keeps what a parcel's hdk takes, and what its directories'
	// times were then. It holds as long as they are the same, whoever changed
	// the objects by whatever means; else they are counted again.
	UsageFile = "usage"

	// UnfinishedFile marks a lock side that is being made or removed. With it
	// and without parcel.cfg, there is no parcel: the next to come clears it
	// away.
	UnfinishedFile = "unfinished"

	// RenameFile marks a lock side that is being renamed, and names the parcel
	// it was: USER and PARCEL. The lock side is renamed in one instant, and
	// with it the parcel. If the mark is there after that, the content side and
	// parcel.cfg may have to follow: the next to open the parcel sees to it.
	RenameFile = "renaming"
)

// Modes of what is made.
const (
	DirMode    = 0o700
	FileMode   = 0o600
	ObjectMode = 0o400
)

// Step is called before each step that changes a tree, for tests that kill the
// process there.
var Step = func(name string) {}

// MaxObject bounds what is taken for an object, bytes.
const MaxObject = seal.MaxPlain + 1024
