package backup

import (
	"errors"
	"io/fs"
	"os"
	"time"

	"isr/store/backup/realm"
	"isr/store/parcel"
)

// StandbyOf says what the realm in root is a mirror of (host:directory), and
// as of when, if its last pass came to its end. It is "" for a realm that is
// nobody's mirror, as one is from when its file standby was removed.
func StandbyOf(root string) (from string, asOf time.Time, err error) {
	dir, err := os.OpenRoot(root)
	if err != nil {
		return "", time.Time{}, err
	}
	defer dir.Close()
	fi, err := dir.Lstat(realm.StandbyFile)
	if errors.Is(err, fs.ErrNotExist) {
		return "", time.Time{}, nil
	}
	var text []byte
	if err == nil && (!fi.Mode().IsRegular() || fi.Size() > realm.MaxRootFile) {
		err = errors.New("is no record")
	}
	if err == nil {
		text, err = dir.ReadFile(realm.StandbyFile)
	}
	var b *standby
	if err == nil {
		b, err = parseStandby(text)
	}
	if err == nil && b.from == "" {
		err = errors.New("FROM is missing")
	}
	if err != nil {
		return "", time.Time{}, parcel.NewError(parcel.Damaged, "%s: standby: %v", root, err)
	}
	return parcel.Clean(b.from), b.time, nil
}
