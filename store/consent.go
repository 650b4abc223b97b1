package store

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"isr/store/parcel"
)

const userFile = "user.cfg"

// Consent is since when a user takes part in the study of how parcels are
// used; not ok: she does not.
func (s *Store) Consent(name string) (since time.Time, ok bool, err error) {
	r, err := s.userRecord(name)
	if err != nil {
		return time.Time{}, false, err
	}
	text := r.Get("CONSENT")
	if text == "" {
		return time.Time{}, false, nil
	}
	if since, err = time.Parse(time.RFC3339, text); err != nil {
		return time.Time{}, false, parcel.NewError(parcel.Failed, "user %s: CONSENT %q: want a time", name, parcel.Clean(text)).
			WithHint("repair %s", filepath.Join(s.userAt(name).dir, userFile))
	}
	return since.UTC(), true, nil
}

// Groups are the groups that a user was put into, for what tells users apart
// in a study.
func (s *Store) Groups(name string) ([]string, error) {
	r, err := s.userRecord(name)
	return r.All("GROUP"), err
}

// userRecord is what is written down of a user; there need be nothing.
func (s *Store) userRecord(name string) (parcel.Record, error) {
	u, err := s.user(name)
	if err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(u.dir, userFile), os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	p, err := io.ReadAll(io.LimitReader(f, 64<<10))
	if err != nil {
		return nil, err
	}
	r, err := parcel.ParseRecord(p)
	if err != nil {
		return nil, fmt.Errorf("user %s: %s: %w", name, userFile, err)
	}
	return r, nil
}
