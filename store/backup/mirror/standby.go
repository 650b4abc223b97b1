package mirror

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"isr/store/backup/realm"
	"isr/store/parcel"
)

// standby is the record that makes a tree a mirror: what it is of, and how
// each parcel's lock side was when the last pass had all of it. Who serves the
// tree in the realm's stead removes it.
type standby struct {
	realm, from string
	time        time.Time         // of the last whole pass; zero: none yet
	files       map[string]string // what is beside the parcels, with digests
	parcels     map[[2]string]noted
}

// noted is what is known of a parcel of a mirror.
type noted struct {
	digest string  // of its lock side; "-": a pass was at it, or the realm had it not whole
	epochs []int64 // that it may have there: of the last pass, and of one that was at it
}

func parseStandby(text []byte) (*standby, error) {
	r, err := parcel.ParseRecord(text)
	if err != nil {
		return nil, err
	}
	b := &standby{realm: r.Get("REALM"), from: r.Get("FROM"), files: make(map[string]string), parcels: make(map[[2]string]noted)}
	if t := r.Get("TIME"); t != "" {
		if b.time, err = time.Parse(time.RFC3339, t); err != nil {
			return nil, err
		}
	}
	for _, line := range r.All("FILE") {
		if sum, name, ok := strings.Cut(line, " "); ok && fs.ValidPath(name) {
			b.files[name] = sum
		}
	}
	for _, line := range r.All("PARCEL") {
		f := strings.Fields(line)
		if len(f) < 3 || parcel.CheckName(f[0]) != nil || parcel.CheckName(f[1]) != nil {
			continue
		}
		n := noted{digest: f[2]}
		for _, text := range f[3:] {
			epoch, err := strconv.ParseInt(text, 10, 64)
			if err != nil {
				return nil, fmt.Errorf("PARCEL: %q", line)
			}
			n.epochs = append(n.epochs, epoch)
		}
		b.parcels[[2]string{f[0], f[1]}] = n
	}
	return b, nil
}

func (b *standby) encode() ([]byte, error) {
	r := parcel.Record{{Key: "REALM", Value: b.realm}, {Key: "FROM", Value: b.from}}
	if !b.time.IsZero() {
		r = append(r, parcel.Field{Key: "TIME", Value: b.time.UTC().Format(time.RFC3339)})
	}
	for _, name := range slices.Sorted(maps.Keys(b.files)) {
		r = append(r, parcel.Field{Key: "FILE", Value: b.files[name] + " " + name})
	}
	keys := make([][2]string, 0, len(b.parcels))
	for key := range b.parcels {
		keys = append(keys, key)
	}
	slices.SortFunc(keys, func(a, b [2]string) int { return slices.Compare(a[:], b[:]) })
	for _, key := range keys {
		n := b.parcels[key]
		line := key[0] + " " + key[1] + " " + n.digest
		for _, epoch := range n.epochs {
			line += " " + strconv.FormatInt(epoch, 10)
		}
		r = append(r, parcel.Field{Key: "PARCEL", Value: line})
	}
	return r.Encode()
}

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
