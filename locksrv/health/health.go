// Package health is how a realm is doing, for people and for monitors: who
// holds what, what was done of late, how full the disk is, and what of that
// wants an administrator's attention.
//
// It promises to read records only, no objects, so that it answers in the time
// that takes however much is stored; and that what it cannot read is said and
// hides nothing else. It changes nothing, and shows no secret.
package health

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"isr/locksrv/event"
	"isr/store"
	"isr/store/parcel"
)

// Status is all of it.
type Status struct {
	Realm     string     `json:"realm"`
	Root      string     `json:"root"`
	Version   string     `json:"version"`           // of the program
	Standby   string     `json:"standby,omitempty"` // what it is a mirror of, in words: for who asks for it to fill in
	Time      time.Time  `json:"time"`
	Users     int        `json:"users"`
	LockedOut []string   `json:"lockedout,omitempty"`
	Parcels   int        `json:"parcels"`
	Held      []Held     `json:"held"` // oldest first
	Commits   Commits    `json:"commits"`
	Last      []Last     `json:"last"` // of each of Upkeep
	Disk      Disk       `json:"disk"`
	Damaged   []string   `json:"damaged,omitempty"` // what could not be read
	Warnings  []string   `json:"warnings"`
	lastSeen  *time.Time // the first day that the event log reaches back to
}

// Held is a parcel that somebody holds.
type Held struct {
	User    string    `json:"user"` // the owner
	Parcel  string    `json:"parcel"`
	Host    string    `json:"host"`
	Since   time.Time `json:"since"`
	Contact time.Time `json:"contact"` // the last
	Epoch   int64     `json:"epoch"`
}

// Commits are the versions that were made, by the event log.
type Commits struct {
	Today int `json:"today"` // UTC
	Week  int `json:"week"`  // today and the six days before
}

// Upkeep is what an administrator, or a timer, does to the whole realm.
var Upkeep = []string{event.Check, event.GC, event.Backup, event.Harvest}

// Last is when something of Upkeep was last done, and what became of it.
type Last struct {
	Op    string    `json:"op"`
	Time  time.Time `json:"time,omitzero"` // zero: the event log has none
	Error string    `json:"error,omitempty"`
}

// Disk is the realm's file system.
type Disk struct {
	Size      uint64 `json:"size"`      // bytes
	Free      uint64 `json:"free"`      // bytes for who is not root
	Files     uint64 `json:"files"`     // inodes; 0: it does not count them
	FilesFree uint64 `json:"filesfree"` // inodes
	ReadOnly  bool   `json:"readonly,omitempty"`
	used      float64
}

// Used is the part that is used, as df(1) says it, from 0 to 1.
func (d Disk) Used() float64 { return d.used }

// FilesUsed is the part of the inodes that is used.
func (d Disk) FilesUsed() float64 {
	if d.Files == 0 {
		return 0
	}
	return 1 - float64(d.FilesFree)/float64(d.Files)
}

// From when on something is worth a warning.
const (
	full      = 0.90
	silent    = 7 * 24 * time.Hour  // a holder
	unchecked = 30 * 24 * time.Hour // the realm
	unsaved   = 30 * 24 * time.Hour // the same
)

// Look is who has what, and the disk: what changes by the minute. It reads a
// few small files for each parcel.
func Look(s *store.Store) (Status, error) {
	st := Status{Realm: s.Realm(), Root: s.Root(), Held: []Held{}, Warnings: []string{}}
	users, err := s.Users()
	if err != nil {
		return st, err
	}
	damaged := func(err error) { st.Damaged = append(st.Damaged, parcel.Clean(err.Error())) }
	st.Users = len(users)
	for _, user := range users {
		names, err := s.Parcels(user)
		if err != nil {
			damaged(fmt.Errorf("user %s: %w", user, err))
		}
		if cfg, err := s.UserConfig(user); err != nil {
			damaged(err)
		} else if !cfg.Locked.IsZero() {
			st.LockedOut = append(st.LockedOut, user)
		}
		st.Parcels += len(names)
		for _, name := range names {
			p, err := s.Parcel(user, name)
			if err != nil {
				continue // removed meanwhile
			}
			l, err := p.Holder()
			if err != nil {
				damaged(fmt.Errorf("%s/%s: %w", user, name, err))
			}
			if l == nil {
				continue
			}
			st.Held = append(st.Held, Held{User: user, Parcel: name, Host: l.Host, Since: l.Since.UTC(), Contact: l.Contact.UTC(), Epoch: l.Epoch})
		}
	}
	slices.SortStableFunc(st.Held, func(a, b Held) int { return a.Since.Compare(b.Since) })
	st.Disk, err = disk(s.Root())
	return st, err
}

func disk(dir string) (Disk, error) {
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return Disk{}, fmt.Errorf("file system of %s: %w", dir, err)
	}
	block := uint64(fs.Bsize)
	d := Disk{Size: fs.Blocks * block, Free: fs.Bavail * block, Files: fs.Files, FilesFree: fs.Ffree, ReadOnly: fs.Flags&unix.MS_RDONLY != 0}
	if used := fs.Blocks - fs.Bfree; used+fs.Bavail > 0 {
		d.used = float64(used) / float64(used+fs.Bavail)
	}
	return d, nil
}

// Get is the whole status at that time, by the realm and its event log.
func Get(s *store.Store, log *event.Log, now time.Time) (Status, error) {
	st, err := Look(s)
	if err != nil {
		return st, err
	}
	st.Time = now.UTC().Truncate(time.Second)
	if err := st.history(log, now); err != nil {
		return st, err
	}
	st.warn(now)
	return st, nil
}

// history reads the event log back to the last of each of Upkeep, or to its
// beginning.
func (st *Status) history(log *event.Log, now time.Time) error {
	days, err := log.Days()
	if err != nil {
		return err
	}
	today := now.UTC().Truncate(24 * time.Hour)
	week := today.AddDate(0, 0, -6)
	last := make(map[string]Last)
	for _, day := range slices.Backward(days) {
		if day.Before(week) && len(last) == len(Upkeep) {
			break
		}
		st.lastSeen = &day
		of := make(map[string]Last)
		for e, err := range log.Read(day, day) {
			switch {
			case err != nil:
				st.Damaged = append(st.Damaged, parcel.Clean("event log: "+err.Error()))
			case e.Op == event.Commit && e.Error == "" && !day.Before(week):
				st.Commits.Week++
				if !day.Before(today) {
					st.Commits.Today++
				}
			case slices.Contains(Upkeep, e.Op) && e.User == "" && e.Parcel == "":
				of[e.Op] = Last{e.Op, e.Time.UTC().Truncate(time.Second), parcel.Clean(e.Error)}
			}
		}
		for op, l := range of {
			if _, later := last[op]; !later {
				last[op] = l
			}
		}
	}
	for _, op := range Upkeep {
		l := last[op]
		l.Op = op
		st.Last = append(st.Last, l)
	}
	return nil
}

// warn says what an administrator should look at.
func (st *Status) warn(now time.Time) {
	warn := func(format string, args ...any) {
		st.Warnings = append(st.Warnings, parcel.Clean(fmt.Sprintf(format, args...)))
	}
	if u := st.Disk.Used(); u > full {
		warn("disk: %.0f %% is used", 100*u)
	}
	if u := st.Disk.FilesUsed(); u > full {
		warn("disk: %.0f %% of its inodes are used", 100*u)
	}
	if st.Disk.ReadOnly {
		warn("disk: is mounted read-only")
	}
	for _, h := range st.Held {
		if since := now.Sub(h.Contact); since > silent {
			warn("%s/%s: its holder, %s, was not heard of for %d days", h.User, h.Parcel, h.Host, Days(since))
		}
	}
	for _, what := range st.Damaged {
		warn("%s", what)
	}
	for _, l := range st.Last {
		if l.Error != "" {
			warn("%s: the last one failed: %s", l.Op, l.Error)
		}
		age := now.Sub(l.Time)
		switch {
		case l.Op == event.Backup && l.Time.IsZero():
			warn("backup: there was never one")
		case l.Op == event.Backup && age > unsaved:
			warn("backup: the last one was %d days ago", Days(age))
		case l.Op == event.Check && !l.Time.IsZero() && age > unchecked:
			warn("check: the last one was %d days ago", Days(age))
		case l.Op == event.Check && l.Time.IsZero() && st.lastSeen != nil && now.Sub(*st.lastSeen) > unchecked:
			warn("check: there was none in %d days", Days(now.Sub(*st.lastSeen)))
		}
	}
}

// Days is whole days.
func Days(d time.Duration) int { return int(d / (24 * time.Hour)) }

// Silent is the holder that was longest not heard of.
func (st *Status) Silent() (h Held, ok bool) {
	if len(st.Held) == 0 {
		return Held{}, false
	}
	return slices.MinFunc(st.Held, func(a, b Held) int {
		return cmp.Or(a.Contact.Compare(b.Contact), a.Since.Compare(b.Since))
	}), true
}
