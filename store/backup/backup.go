// Package backup keeps copies of a realm elsewhere, and makes realms of them.
//
// A backup is a place (a directory, one on another host over SFTP, a part of
// an S3 bucket) with objects/ab/abcdef…, each object of the realm once however
// many parcels share it, and snapshots: for each run a list of the objects
// that every parcel had, and an archive of the lock sides. isr-store(5) has
// the formats.
//
// It promises that a snapshot is there only when all it needs is there and
// durable; that each parcel in it is as it was at one instant, and whole,
// whatever users, prune and gc do meanwhile; that what was sent once is not
// sent again, also by a run that was killed; and that a backup is verified
// without any key. What it reads from a backup it takes for hostile: nothing
// gets out of the new tree, and every object is hashed before it counts.
//
// A mirror is another thing: see store/backup/mirror.
//
// It does not keep two runs from one realm apart: who calls does, with Lock.
// Nor does it vouch for who can write to the place: whoever can, decides what
// a restore finds.
package backup

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"

	"github.com/gofrs/flock"
	"golang.org/x/sys/unix"

	"isr/store"
	"isr/store/backup/target"
	"isr/store/parcel"
	"isr/store/seal"
)

const objectsDir = "objects"

// objectName is where an object is in a backup.
func objectName(tag seal.Tag) string {
	name := tag.String()
	return objectsDir + "/" + name[:2] + "/" + name
}

// parseObjectName is the tag of objectName; false if name is not one.
func parseObjectName(name string) (seal.Tag, bool) {
	tag, err := seal.ParseTag(path.Base(name))
	return tag, err == nil && tag.NewHash() != nil && objectName(tag) == name
}

// objects are those of a backup, with their sizes. What is not whole by its
// size is for whoever knows the size.
func objects(ctx context.Context, t target.Target) (map[seal.Tag]int64, error) {
	have := make(map[seal.Tag]int64)
	for e, err := range t.List(ctx, objectsDir) {
		if err != nil {
			return nil, err
		}
		if tag, ok := parseObjectName(e.Name); ok {
			have[tag] = e.Size
		}
	}
	return have, nil
}

// getObject is an object of a backup, verified; parcel.ErrNoObject if it is
// not there, parcel.ErrDamaged if it is not what its name says.
func getObject(ctx context.Context, t target.Target, tag seal.Tag) ([]byte, error) {
	return target.ReadObject(ctx, t, objectName(tag), tag)
}

// Lock keeps other backups, prunes of backups and mirrors of the realm away;
// parcel.ErrBusy if there is one.
func Lock(s *store.Store) (unlock func(), err error) {
	l := flock.New(filepath.Join(s.Root(), "backup.flock"), flock.SetPermissions(0o600))
	got, err := l.TryLock()
	if errors.Is(err, unix.EROFS) {
		return func() {}, nil // the disk is failing, and nobody ever had the lock
	}
	if err != nil {
		return nil, fmt.Errorf("backup: %w", err)
	}
	if !got {
		return nil, parcel.NewError(parcel.Busy, "backup: another one of this realm is at work")
	}
	return func() { l.Close() }, nil
}

// Progress is told how many bytes of how many are done; it may be nil. It is
// called by one at a time.
type Progress func(done, total int64)

// spool is a file in memory, for what is to be put with its size: what is secret
// gets to no other disk, and a realm whose own is full, or no longer written
// to, can be backed up all the same.
func spool() (*os.File, error) {
	fd, err := unix.MemfdCreate("isr-backup", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	return os.NewFile(uintptr(fd), "memory"), nil
}
