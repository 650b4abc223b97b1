package store

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"isr/store/atomicfile"
	"isr/store/parcel"
	"isr/store/tree"
)

func readLock(path string) (*parcel.Lock, error) {
	b, err := tree.ReadOwn(path)
	if err != nil {
		return nil, err
	}
	l, err := parcel.ParseLock(b)
	if err != nil {
		return nil, err
	}
	if fi, err := os.Lstat(path); err == nil {
		l.Contact = fi.ModTime().UTC()
	}
	return l, nil
}

// held is the lock as it is, secrets included; nil if the parcel is free.
func (p *Parcel) held() (*parcel.Lock, error) {
	l, err := readLock(filepath.Join(p.lock, tree.NonceFile))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case err == nil && l.Nonce == "":
		err = errors.New("it has no nonce")
	case err == nil:
		return l, nil
	}
	return nil, p.Errorf(parcel.Damaged, "lock cannot be read: %v", err).
		WithHint("break it: release with --force")
}

// Holder is who holds the parcel, without secrets; nil if it is free.
func (p *Parcel) Holder() (*parcel.Lock, error) {
	l, err := p.held()
	if l == nil || err != nil {
		return nil, err
	}
	l.Nonce, l.Acquisition = "", ""
	return l, nil
}

// LastReleased is who held the parcel last, without secrets, with Since when
// it was released; nil if nobody ever did, or somebody holds it.
func (p *Parcel) LastReleased() (*parcel.Lock, error) {
	l, err := p.released()
	if l == nil || err != nil {
		return nil, err
	}
	l.Nonce, l.Acquisition = "", ""
	return l, nil
}

// released is LastReleased with the nonce, unless the lock was broken.
func (p *Parcel) released() (*parcel.Lock, error) {
	if _, err := os.Lstat(filepath.Join(p.lock, tree.NonceFile)); err == nil {
		return nil, nil
	}
	l, err := readLock(filepath.Join(p.lock, tree.ReleasedFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, p.Errorf(parcel.Damaged, "record of the last release: %v", err)
	}
	return l, nil
}

// Acquire takes the parcel's lock for a user on a host. The same acquisition
// id, not empty, gets the same lock again: a lost answer strands nothing.
// parcel.ErrLocked names the present holder.
func (p *Parcel) Acquire(userName, host, acquisition string) (lock *parcel.Lock, err error) {
	err = p.Exclusive(func() error {
		rec, cfg, err := p.Published(0)
		if err != nil {
			return err
		}
		p.repair(cfg, rec)
		l, err := p.held()
		if err != nil {
			return err
		}
		if l != nil && acquisition != "" && l.Acquisition == acquisition && l.User == userName {
			lock = l
			return nil
		}
		if l != nil {
			return p.Errorf(parcel.Locked, "locked by %s", l).
				WithHint("release it there, or break the lock with isr clean -f %s", p.name)
		}
		epoch, err := p.Epoch()
		if err != nil {
			return err
		}
		l = &parcel.Lock{Nonce: parcel.NewNonce(now(), cfg.Version), Acquisition: acquisition,
			User: userName, Host: parcel.Clean(host), Since: now(), Epoch: epoch + 1, Version: cfg.Version}
		b, err := l.Encode()
		if err != nil {
			return p.Errorf(parcel.Usage, "%v", err)
		}
		// The epoch first: no two holders ever have the same one.
		tree.Step("epoch")
		if err := atomicfile.Write(filepath.Join(p.lock, tree.EpochFile),
			[]byte(strconv.FormatInt(l.Epoch, 10)+"\n"), tree.FileMode); err != nil {
			return p.Wrap(err)
		}
		tree.Step("nonce")
		if err := atomicfile.WriteNew(filepath.Join(p.lock, tree.NonceFile), b, tree.FileMode); err != nil {
			return p.Wrap(err)
		}
		tree.Step("holder")
		p.repair(cfg, rec)
		l.Contact = now()
		lock = l
		return nil
	})
	return lock, err
}

// Epoch is the number of the last acquisition, 0 for none.
func (p *Parcel) Epoch() (int64, error) {
	b, err := tree.ReadOwn(filepath.Join(p.lock, tree.EpochFile))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, p.Wrap(err)
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
	if err != nil || n < 0 {
		return 0, p.Errorf(parcel.Damaged, "epoch: want a number, not %q", b)
	}
	return n, nil
}

// holding is the lock that nonce proves holding; parcel.ErrNotHolder says who
// holds it instead. The caller has the flock, if the answer is to last.
func (p *Parcel) holding(nonce string) (*parcel.Lock, error) {
	l, err := p.held()
	switch {
	case err != nil:
		return nil, err
	case l != nil && l.Is(nonce):
		return l, nil
	}
	last, err := readLock(filepath.Join(p.lock, tree.ReleasedFile))
	if err != nil {
		last = nil
	}
	switch {
	case l != nil && last != nil && last.BrokenBy != "":
		return nil, p.Errorf(parcel.NotHolder, "lock is not held with this nonce: %s holds it; the one before, of %s on %s, was %s",
			l, last.User, last.Host, broken(last))
	case l != nil:
		return nil, p.Errorf(parcel.NotHolder, "lock is not held with this nonce: %s holds it", l)
	case last != nil && last.BrokenBy != "":
		return nil, p.Errorf(parcel.NotHolder, "lock is no longer held: it was %s", broken(last))
	case last != nil:
		return nil, p.Errorf(parcel.NotHolder, "lock is no longer held: it is free since %s", stamp(last.Since))
	}
	return nil, p.Errorf(parcel.NotHolder, "lock is not held: it is free")
}

// broken says who broke a lock, when and why.
func broken(l *parcel.Lock) string {
	s := fmt.Sprintf("broken by %s on %s", l.BrokenBy, stamp(l.Since))
	if l.Why != "" {
		s += ": " + l.Why
	}
	return s
}

// stamp is a time as messages have it.
func stamp(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05 MST") }

// CheckLock is the lock that nonce proves holding, without secrets, and notes
// the contact. parcel.ErrNotHolder says who holds it instead.
func (p *Parcel) CheckLock(nonce string) (*parcel.Lock, error) {
	var lock *parcel.Lock
	err := p.Exclusive(func() error {
		if _, err := p.Config(); err != nil {
			return err
		}
		l, err := p.holding(nonce)
		if err != nil {
			return err
		}
		t := time.Now()
		if err := os.Chtimes(filepath.Join(p.lock, tree.NonceFile), t, t); err != nil {
			return p.Wrap(err)
		}
		l.Nonce, l.Acquisition, l.Contact = "", "", t.UTC()
		lock = l
		return nil
	})
	return lock, err
}

// Release gives the lock back, with its nonce or by force, and says who held
// it. The same question again is answered, by who held it until when, as long
// as nobody else has held the parcel since; but a broken lock's nonce is not.
func (p *Parcel) Release(nonce string, force bool) (*parcel.Lock, error) {
	if force {
		return p.Break(AnyEpoch, "", "")
	}
	return p.release(nonce, nil)
}

// AnyEpoch is the epoch of whoever holds the lock.
const AnyEpoch = -1

// Break takes the lock away from who holds it in that epoch, and says who that
// was. Who does it, and why, is kept for the loser to be told.
// parcel.ErrConflict if another has it by now, parcel.ErrNotHolder if nobody
// has. With AnyEpoch the same question again is answered, as Release does.
func (p *Parcel) Break(epoch int64, by, why string) (*parcel.Lock, error) {
	if err := checkText("reason", why); err != nil {
		return nil, p.Wrap(err)
	}
	return p.release("", &breaking{epoch, parcel.Clean(by), parcel.Clean(why)})
}

// breaking is how a lock is broken.
type breaking struct {
	epoch   int64
	by, why string
}

// release is Release, by force unless that is nil.
func (p *Parcel) release(nonce string, force *breaking) (*parcel.Lock, error) {
	var lock *parcel.Lock
	err := p.Exclusive(func() error {
		l, err := p.held()
		switch {
		case force != nil && errors.Is(err, parcel.ErrDamaged):
			l = &parcel.Lock{User: "unknown", Host: "unknown", Since: now()}
		case err != nil:
			return err
		case l == nil:
			r, err := p.released()
			if err == nil && r != nil && (force != nil && force.epoch == AnyEpoch || r.Is(nonce)) {
				lock = r
				return nil
			}
			_, err = p.holding(nonce)
			return err
		case force == nil:
			if _, err := p.holding(nonce); err != nil {
				return err
			}
		case force.epoch != AnyEpoch && force.epoch != l.Epoch:
			return p.Errorf(parcel.Conflict, "lock has changed hands: %s holds it", l)
		}
		// For the record: when it became free, and by which nonce, so that the
		// question may be repeated. A broken lock's nonce is worth nothing.
		free := *l
		free.Since = now()
		if !l.Is(nonce) {
			free = free.Public()
		}
		if force != nil {
			free.BrokenBy, free.Why = force.by, force.why
		}
		b, err := free.Encode()
		if err != nil {
			return p.Wrap(err)
		}
		tree.Step("released")
		if err := atomicfile.Write(filepath.Join(p.lock, tree.ReleasedFile), b, tree.FileMode); err != nil {
			return p.Wrap(err)
		}
		tree.Step("nonce")
		if err := os.Remove(filepath.Join(p.lock, tree.NonceFile)); err != nil {
			return p.Wrap(err)
		}
		if err := atomicfile.SyncDir(p.lock); err != nil {
			return p.Wrap(err)
		}
		tree.Step("holder")
		// What follows is derived, or left over from the holder.
		p.clearStaging()
		if rec, cfg, err := p.Published(0); err == nil {
			p.repair(cfg, rec)
		} else {
			os.Remove(filepath.Join(p.lock, tree.HolderFile))
		}
		lock = l
		return nil
	})
	if lock != nil {
		lock.Nonce, lock.Acquisition = "", ""
	}
	return lock, err
}
