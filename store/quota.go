package store

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"isr/store/atomicfile"
	"isr/store/parcel"
	"isr/store/tree"
)

// A quota bounds the bytes of all objects of a user's parcels, those that wait
// in staging areas included. What a parcel shares with others counts whole, so
// that what a user may still store depends on nobody else. What is put is asked
// about beforehand, roughly; what becomes part of a parcel, exactly (bring).

// Usage is what objects take.
type Usage struct{ Objects, Bytes int64 }

func (a Usage) plus(b Usage) Usage { return Usage{a.Objects + b.Objects, a.Bytes + b.Bytes} }

// settled is how old the last change of hdk must be for its time to tell it
// from the next one: some ticks of the kernel's clock.
const settled = 50 * time.Millisecond

// Usage is what the parcel's objects take, each counted whole.
func (p *Parcel) Usage() (Usage, error) {
	begun := time.Now()
	state, last, err := p.hdkState()
	if err != nil {
		return Usage{}, err
	}
	u, ok := p.recordedUsage(state)
	if !ok {
		if u, err = count(p.HdkDir(), 1); err != nil {
			return u, p.Wrap(err)
		}
		if begun.Sub(last) > settled {
			p.recordUsage(u, state)
		}
	}
	staged, err := p.staged()
	return u.plus(staged), err
}

// staged is what waits in the staging area.
func (p *Parcel) staged() (Usage, error) {
	u, err := count(p.StagingDir(), 2) // staging/hdk/ab, of a parcel that is being made
	if err != nil {
		err = p.Wrap(err)
	}
	return u, err
}

// hdkState sums up the names and times of the directories below hdk, which
// change with every object that comes or goes; last is the newest time.
func (p *Parcel) hdkState() (state string, last time.Time, err error) {
	dirs, err := os.ReadDir(p.HdkDir())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", last, p.Wrap(err)
	}
	h := sha256.New()
	for _, d := range dirs {
		fi, err := d.Info()
		if err != nil {
			return "", last, p.Wrap(err)
		}
		fmt.Fprintf(h, "%s %d\n", d.Name(), fi.ModTime().UnixNano())
		if fi.ModTime().After(last) {
			last = fi.ModTime()
		}
	}
	return hex.EncodeToString(h.Sum(nil)[:16]), last, nil
}

// KeptUsage is what hdk takes, if that was counted before and holds.
func (p *Parcel) KeptUsage() (Usage, bool) {
	if _, err := os.Lstat(filepath.Join(p.lock, tree.UsageFile)); err != nil {
		return Usage{}, false // nobody ever asked
	}
	state, _, err := p.hdkState()
	if err != nil {
		return Usage{}, false
	}
	return p.recordedUsage(state)
}

func (p *Parcel) recordedUsage(state string) (u Usage, ok bool) {
	b, err := tree.ReadOwn(filepath.Join(p.lock, tree.UsageFile))
	if err != nil {
		return u, false
	}
	r, err := parcel.ParseRecord(b)
	if err != nil || r.Get("STATE") != state {
		return u, false
	}
	var oerr, berr error
	u.Objects, oerr = strconv.ParseInt(r.Get("OBJECTS"), 10, 64)
	u.Bytes, berr = strconv.ParseInt(r.Get("BYTES"), 10, 64)
	return u, oerr == nil && berr == nil && u.Objects >= 0 && u.Bytes >= 0
}

// recordUsage keeps u for the next to ask. If it cannot, they count.
func (p *Parcel) recordUsage(u Usage, state string) {
	b, err := parcel.Record{{Key: "OBJECTS", Value: strconv.FormatInt(u.Objects, 10)},
		{Key: "BYTES", Value: strconv.FormatInt(u.Bytes, 10)}, {Key: "STATE", Value: state}}.Encode()
	if err == nil {
		atomicfile.Write(filepath.Join(p.lock, tree.UsageFile), b, tree.FileMode)
	}
}

// count sums up the objects in dir, and so many levels below it. What goes
// meanwhile is not counted, nor what is too large for an object.
func count(dir string, below int) (u Usage, err error) {
	if ok, err := tree.RealDir(dir); !ok {
		return u, err
	}
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return u, err
	}
	for _, e := range entries {
		if below > 0 && e.IsDir() {
			sub, err := count(filepath.Join(dir, e.Name()), below-1)
			if err != nil {
				return u, err
			}
			u = u.plus(sub)
			continue
		}
		fi, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return u, err
		}
		if fi.Mode().IsRegular() && fi.Size() <= tree.MaxObject {
			u = u.plus(Usage{1, fi.Size()})
		}
	}
	return u, nil
}

// Usage is what a user's parcels take, those that are being made included.
func (s *Store) Usage(name string) (Usage, error) {
	u, err := s.User(name)
	if err != nil {
		return Usage{}, err
	}
	return u.usage()
}

func (u User) usage() (sum Usage, err error) {
	names, err := tree.Subdirs(u.LockRoot)
	if err != nil {
		return sum, err
	}
	for _, n := range names {
		one, err := u.At(n).Usage()
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return sum, err
		}
		sum = sum.plus(one)
	}
	return sum, nil
}

// Room is how many bytes more a user may store; limited is false if there is
// no bound. It may be below 0: quotas shrink.
func (s *Store) Room(name string) (room int64, limited bool, err error) {
	u, err := s.User(name)
	if err != nil {
		return 0, false, err
	}
	return u.room()
}

func (u User) room() (room int64, limited bool, err error) {
	c, err := u.config()
	if err != nil || c.Quota == 0 {
		return 0, false, err
	}
	used, err := u.usage()
	return c.Quota - used.Bytes, true, err
}

// bring runs move, which brings so many bytes from the parcel's staging area to
// its hdk, if they fit the user's quota; the rest of what waits there goes.
//
// Of a user who has a quota nobody else measures or moves meanwhile: else two
// who publish in one instant may both find room for one, or miss objects that
// are between staging and hdk. The flock is that of the directory of her lock
// sides. It is the last to be taken, after the store's and the parcel's, and
// under it nobody waits for another; so no two wait for each other.
func (p *Parcel) bring(bytes int64, move func() error) error {
	c, err := p.user.config()
	if err != nil {
		return err
	}
	if c.Quota == 0 || bytes == 0 {
		return move()
	}
	unlock, err := tree.LockDir(p.user.LockRoot)
	if err != nil {
		return p.Wrap(err)
	}
	defer unlock()
	if err := p.allow(bytes); err != nil {
		return err
	}
	return move()
}

// allow is nil if so many bytes may move from the parcel's staging area to its
// hdk, and the rest of what waits there goes.
func (p *Parcel) allow(bytes int64) error {
	room, limited, err := p.user.room()
	if err != nil || !limited {
		return err
	}
	staged, err := p.staged()
	if err == nil && bytes-staged.Bytes > room {
		err = p.user.errQuota()
	}
	return err
}

// errQuota says that a user's quota is used up. It wraps the errno that SFTP
// clients know it by.
func (u User) errQuota() error {
	quota := ""
	if c, err := u.config(); err == nil && c.Quota > 0 {
		quota = " of " + SizeText(c.Quota)
	}
	return fmt.Errorf("%w (%w)", parcel.NewError(parcel.Full, "user %s: quota%s is used up", u.Name, quota).
		WithHint("remove versions that are no longer needed, or ask the administrator for a larger quota"), syscall.EDQUOT)
}

// ErrQuota is the error for a user whose quota is used up.
func (s *Store) ErrQuota(name string) error { return s.UserAt(name).errQuota() }

// SizeText is a number of bytes for people: at most three digits that count and
// a unit, powers of 1024, as sizes are typed: 512B, 1.50K, 20.0G. It is the one
// way to print a size.
func SizeText(n int64) string {
	if n < 1024 {
		return fmt.Sprintf("%dB", n)
	}
	f := float64(n)
	for _, unit := range "KMGTP" {
		f /= 1024
		switch {
		case f < 9.995:
			return fmt.Sprintf("%.2f%c", f, unit)
		case f < 99.95:
			return fmt.Sprintf("%.1f%c", f, unit)
		case f < 1023.5:
			return fmt.Sprintf("%.0f%c", f, unit)
		}
	}
	return fmt.Sprintf("%.2fE", f/1024)
}
