package main

import (
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"isr/locksrv/event"
	"isr/store"
	"isr/store/parcel"
)

// usage is the pilot's getusage: who works with what, and since when not.
type usage struct {
	User string `arg:"" optional:"" help:"Only the parcels of one user."`
	Days int    `help:"Count what happened in so many days, up to now." default:"30" placeholder:"N"`
	JSON bool   `name:"json" help:"Print an object a line."`
}

// used is how a parcel is used. Times that are not known are left out.
type used struct {
	User       string     `json:"user"`
	Parcel     string     `json:"parcel,omitempty"` // none: the user has no parcel
	Held       bool       `json:"held"`
	Host       string     `json:"host,omitempty"`        // that holds it, or held it last
	LastLock   *time.Time `json:"last_lock,omitempty"`   // when it was taken last; if that is not known, given back
	LastUse    *time.Time `json:"last_use,omitempty"`    // last contact of the holder, or when it was given back
	LastCommit *time.Time `json:"last_commit,omitempty"` // but for version 1, which an administrator made
	Head       int        `json:"head"`
	Versions   int        `json:"versions"`
	Bytes      int64      `json:"bytes"`   // sealed, that the versions brought
	Locks      int        `json:"locks"`   // in the days that were asked for
	Commits    int        `json:"commits"` // the same
	Error      string     `json:"error,omitempty"`
}

// logged is what the event log knows of a parcel.
type logged struct {
	locks, commits int
	last           time.Time // lock
}

// maxDays bounds how far back usage counts: 100 years.
const maxDays = 36500

func (c *usage) Run(e *env) error {
	if c.Days < 1 || c.Days > maxDays {
		return parcel.NewError(parcel.Usage, "--days %d: want 1 to %d", c.Days, maxDays)
	}
	s, root, err := e.open()
	if err != nil {
		return err
	}
	users := []string{c.User}
	if c.User == "" {
		if users, err = s.Users(); err != nil {
			return err
		}
	}
	if c.User != "" {
		if _, err := s.Parcels(c.User); err != nil {
			return err
		}
	}
	known := c.log(e, root)
	var failed worst
	table := e.stdout.Table("USER", "PARCEL", "LAST LOCK", "LAST COMMIT", "VERSIONS", "BYTES", "LOCKS", "COMMITS", "HOST")
	lines := e.rows()
	show := func(u used) {
		if c.JSON {
			lines.Encode(u)
			return
		}
		if u.Parcel == "" {
			table.Row(u.User, "-")
			return
		}
		host := u.Host
		if u.Held {
			host += " (held)"
		}
		table.Row(u.User, u.Parcel, date(u.LastLock), date(u.LastCommit), fmt.Sprint(u.Versions), store.SizeText(u.Bytes),
			fmt.Sprint(u.Locks), fmt.Sprint(u.Commits), host)
	}
	for _, user := range users {
		damaged := 0
		parcels, err := chosen(s, some{User: user}, func(user, name string, err error) {
			damaged++
			show(used{User: user, Parcel: name, Error: errorText(err)})
			failed.named(e, user, name, err)
		})
		if errors.Is(err, parcel.ErrDamaged) {
			failed.named(e, user, "", err)
			continue
		}
		if err != nil {
			return err
		}
		if len(parcels)+damaged == 0 {
			show(used{User: user})
		}
		for _, p := range parcels {
			u := used{User: user, Parcel: p.Name()}
			err := u.fill(p, known[[2]string{user, p.Name()}])
			if err != nil {
				u.Error = errorText(err)
				failed.add(e, p, err)
			}
			show(u)
		}
	}
	if !c.JSON {
		if err := table.Print(); err != nil {
			return err
		}
	}
	return failed.err
}

// fill says what is known of p.
func (u *used) fill(p *store.Parcel, l logged) error {
	u.Locks, u.Commits = l.locks, l.commits
	if !l.last.IsZero() {
		u.LastLock = &l.last
	}
	held, err := p.Holder()
	if err != nil {
		return err
	}
	if held != nil {
		u.Held, u.Host, u.LastLock, u.LastUse = true, held.Host, &held.Since, &held.Contact
	}
	last, err := p.LastReleased()
	if err != nil {
		return err
	}
	if last != nil {
		u.Host, u.LastUse = last.Host, &last.Since
		if u.LastLock == nil {
			u.LastLock = u.LastUse
		}
	}
	versions, err := p.Versions(0)
	if err != nil {
		return err
	}
	u.Versions = len(versions)
	for _, v := range versions {
		u.Bytes += v.Bytes
	}
	if len(versions) > 0 {
		u.Head = versions[0].Version
		if u.Head > 1 {
			u.LastCommit = &versions[0].Time
		}
	}
	return nil
}

// log counts what the event log has of each parcel.
func (c *usage) log(e *env, root string) map[[2]string]logged {
	known := make(map[[2]string]logged)
	now := time.Now()
	for ev, err := range event.NewLog(filepath.Join(root, "log")).Read(now.AddDate(0, 0, -c.Days), now) {
		if err != nil {
			e.warn("event log: %v", err)
			continue
		}
		at := [2]string{ev.User, ev.Parcel}
		l := known[at]
		switch {
		case ev.Error != "":
			continue
		case ev.Op == event.Lock:
			l.locks++
			if ev.Time.After(l.last) {
				l.last = ev.Time
			}
		case ev.Op == event.Commit:
			l.commits++
		default:
			continue
		}
		known[at] = l
	}
	return known
}

func date(t *time.Time) string {
	if t == nil {
		return "never"
	}
	return timeText(*t)
}
