package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"isr/locksrv"
	"isr/locksrv/event"
	"isr/store"
	"isr/store/parcel"
)

// The commands about whole parcels: list, copy, rename, delete, rollback and
// unlock.

// sure is the --yes of every command that destroys something.
type sure struct {
	Yes bool `short:"y" help:"Do not ask."`
}

// openParcel is the realm with the parcel that the command line names.
func (e *env) openParcel(o owned) (*store.Store, *store.Parcel, error) {
	s, _, err := e.open()
	if err != nil {
		return nil, nil, err
	}
	p, err := s.Parcel(o.User, o.Parcel)
	return s, p, err
}

// versioned names a version of a parcel on the command line.
type versioned struct {
	owned
	Version string `arg:"" help:"A number, a tag, head, or head~1 for the one before."`
}

// openVersion is openParcel with the number of the version.
func (e *env) openVersion(o versioned) (s *store.Store, p *store.Parcel, v int, err error) {
	if s, p, err = e.openParcel(o.owned); err == nil {
		v, err = p.Resolve(o.Version)
	}
	return s, p, v, err
}

func (o owned) String() string { return o.User + "/" + o.Parcel }

type parcelList struct {
	User string `arg:"" optional:"" help:"Only the parcels of one user."`
	JSON bool   `name:"json" help:"Print an object a line."`
}

// listed is a parcel as list --json has it.
type listed struct {
	User string `json:"user"`
	locksrv.Listing
	Kept      int       `json:"kept"`  // versions that are there
	Bytes     int64     `json:"bytes"` // that its versions brought
	Committed time.Time `json:"committed,omitzero"`
}

func (c *parcelList) Run(e *env) error {
	s, _, err := e.open()
	if err != nil {
		return err
	}
	users := []string{c.User}
	if c.User == "" {
		if users, err = s.Users(); err != nil {
			return err
		}
	}
	table := e.stdout.Table("USER", "PARCEL", "VERSION", "KEPT", "NEW", "COMMITTED", "STATE")
	lines := e.rows()
	empty := true
	var failed worst
	for _, user := range users {
		names, err := s.Parcels(user)
		if errors.Is(err, parcel.ErrDamaged) && c.User == "" {
			failed.named(e, user, "", err)
			continue
		}
		if err != nil {
			return err
		}
		for _, name := range names {
			l := listed{User: user, Listing: locksrv.Describe(s, user, name, 0)}
			if p, err := s.Parcel(user, name); err == nil {
				versions, err := p.Versions(0)
				if err != nil && l.Error == "" {
					l.Error = parcel.Clean(err.Error())
				}
				l.Kept = len(versions)
				for i, v := range versions {
					if l.Bytes += v.Bytes; i == 0 {
						l.Committed = v.Time
					}
				}
			}
			if c.JSON {
				if err := lines.Encode(l); err != nil {
					return err
				}
				continue
			}
			empty = false
			state := "released"
			switch {
			case l.Error != "":
				state = "damaged: " + l.Error
			case l.Held != nil:
				state = fmt.Sprintf("held by %s on %s since %s", l.Held.User, l.Held.Host, timeText(l.Held.Since))
			}
			if l.Comment != "" {
				state += "; " + l.Comment
			}
			committed := "-"
			if !l.Committed.IsZero() {
				committed = timeText(l.Committed)
			}
			table.Row(user, name, fmt.Sprint(l.Version), fmt.Sprint(l.Kept), store.SizeText(l.Bytes), committed, state)
		}
	}
	if empty {
		return failed.err
	}
	if err := table.Print(); err != nil {
		return err
	}
	return failed.err
}

type parcelCopy struct {
	owned
	ToUser  string `arg:"" help:"Who is to own the copy."`
	ToName  string `arg:"" help:"The copy's name."`
	Version string `help:"Which version; default: the head." placeholder:"V" default:"head"`
	Disk    *size  `help:"Size of the copy's disk." placeholder:"SIZE"`
	Memory  *size  `help:"Memory of the copy." placeholder:"SIZE"`
	Comment string `help:"What it is." placeholder:"TEXT"`
	sure
}

func (c *parcelCopy) Run(ctx context.Context, e *env) error {
	to := owned{c.ToUser, c.ToName}
	if err := to.check(); err != nil {
		return err
	}
	s, p, err := e.openParcel(c.owned)
	if err != nil {
		return err
	}
	o := store.CopyOptions{Comment: c.Comment}
	for _, f := range []struct {
		name string
		size *size
		to   *int64
	}{{"disk", c.Disk, &o.DiskSize}, {"memory", c.Memory, &o.MemSize}} {
		if f.size == nil {
			continue
		}
		if *f.to = int64(*f.size); *f.to == 0 {
			return parcel.NewError(parcel.Usage, "--%s 0: want a size", f.name)
		}
	}
	if o.Version, err = p.Resolve(c.Version); err != nil {
		return err
	}
	if err := c.mayCut(ctx, e, p, o); err != nil {
		return err
	}
	var done func()
	o.Progress, done = e.progress(c.ToName)
	defer done()
	what := event.Event{Op: event.ParcelCopy, User: c.User, Parcel: c.Parcel, Version: o.Version, To: to.String()}
	return e.act(ctx, s, what, func(ctx context.Context) error {
		_, err := s.CopyVersion(ctx, p, c.ToUser, c.ToName, o)
		return err
	})
}

// mayCut asks before the end of a disk is left out of its copy.
func (c *parcelCopy) mayCut(ctx context.Context, e *env, p *store.Parcel, o store.CopyOptions) error {
	root, err := p.Root(ctx, o.Version)
	if err != nil {
		return err
	}
	disk, ok := root.Image("disk")
	if !ok || o.DiskSize == 0 || o.DiskSize >= disk.Size || root.Suspended != "" {
		return nil
	}
	n, err := p.Beyond(ctx, o.Version, o.DiskSize)
	if err != nil {
		return err
	}
	return e.confirm(c.Yes, "copy %s with a disk of %s instead of %s, which cuts off %s of data?",
		c.owned, store.SizeText(o.DiskSize), store.SizeText(disk.Size), count(n, "chunk"))
}

type parcelRename struct {
	owned
	NewName string `arg:"" help:"Its new name."`
	To      string `help:"Give it to this user." placeholder:"USER"`
}

func (c *parcelRename) Run(ctx context.Context, e *env) error {
	to := owned{c.User, c.NewName}
	if c.To != "" {
		to.User = c.To
	}
	if err := to.check(); err != nil {
		return err
	}
	s, p, err := e.openParcel(c.owned)
	if err != nil {
		return err
	}
	cfg, err := p.Config()
	if err != nil {
		return err
	}
	what := event.Event{Op: event.ParcelRename, User: c.User, Parcel: c.Parcel, To: to.String()}
	err = e.act(ctx, s, what, func(context.Context) error { return s.Rename(c.User, c.Parcel, to.User, to.Parcel) })
	if err == nil && len(cfg.Src) > 0 {
		e.warn("parcel %s: its sources are as they were: %s", to.Parcel, strings.Join(cfg.Src, " "))
	}
	return err
}

type parcelDelete struct {
	owned
	Force bool `help:"Even if it is checked out."`
	sure
}

func (c *parcelDelete) Run(ctx context.Context, e *env) error {
	s, p, err := e.openParcel(c.owned)
	if errors.Is(err, parcel.ErrNoParcel) && s.Unfinished(c.User, c.Parcel) {
		if err := e.confirm(c.Yes, "delete what there is of parcel %s, which was never finished?", c.owned); err != nil {
			return err
		}
		what := event.Event{Op: event.ParcelDel, User: c.User, Parcel: c.Parcel, What: "unfinished"}
		return e.act(ctx, s, what, func(context.Context) error { return s.DelParcel(c.User, c.Parcel, false) })
	}
	if err != nil {
		return err
	}
	held, err := p.Holder()
	if !c.Force && err != nil {
		return err
	}
	if !c.Force && held != nil {
		return parcel.NewError(parcel.Locked, "parcel %s: locked by %s", c.Parcel, held).WithHint("--force removes it all the same")
	}
	question := "delete parcel " + c.owned.String() + ":"
	versions, verr := p.Versions(0)
	size, serr := p.Size()
	if verr == nil && serr == nil {
		question += fmt.Sprintf(" %s, %s, of which %s only here;", count(len(versions), "version"), store.SizeText(size.Bytes), store.SizeText(size.Own))
	}
	if held != nil {
		question += fmt.Sprintf(" held by %s;", held)
	}
	for _, v := range versions {
		if v.Pin != "" {
			question += fmt.Sprintf(" version %d pinned: %s;", v.Version, v.Pin)
		}
	}
	if err := e.confirm(c.Yes, "%s?", strings.TrimRight(question, ":;")); err != nil {
		return err
	}
	what := event.Event{Op: event.ParcelDel, User: c.User, Parcel: c.Parcel, Forced: held != nil, Bytes: size.Own}
	if held != nil {
		what.Holder = held.String()
	}
	return e.act(ctx, s, what, func(context.Context) error { return s.DelParcel(c.User, c.Parcel, c.Force) })
}

type parcelRollback struct {
	versioned
	Force bool   `help:"Break the lock first if it is checked out."`
	Why   string `help:"The reason, for the record." placeholder:"TEXT"`
	sure
}

func (c *parcelRollback) Run(ctx context.Context, e *env) error {
	s, p, v, err := e.openVersion(c.versioned)
	if err != nil {
		return err
	}
	old, err := p.Version(v)
	if err != nil {
		return err
	}
	head, err := p.Version(0)
	if err != nil {
		return err
	}
	if _, err := p.Root(ctx, v); err != nil {
		return err // before a lock is broken for it
	}
	lock, err := e.lockOf(p)
	if err != nil {
		return err
	}
	question := fmt.Sprintf("%s: make version %d of %s the newest, after version %d", c.owned, v, timeText(old.Time), head.Version)
	if lock != nil {
		if !c.Force {
			return parcel.NewError(parcel.Locked, "parcel %s: locked by %s", c.Parcel, lock).WithHint("--force breaks the lock first")
		}
		question += ", and break the lock of " + lock.String()
	}
	if err := e.confirm(c.Yes, "%s?", question); err != nil {
		return err
	}
	if lock != nil {
		if err := e.unlock(ctx, s, p, lock, c.Why); err != nil {
			return err
		}
	}
	host, err := os.Hostname()
	if err != nil {
		host = "server"
	}
	made := 0
	what := event.Event{Op: event.Rollback, User: c.User, Parcel: c.Parcel, Parent: v, Why: parcel.Clean(c.Why)}
	err = e.actOn(ctx, s, &what, func(ctx context.Context) error {
		made, err = p.RollbackFree(ctx, host, v, c.Why)
		what.Version = made
		if v, verr := p.Version(made); err == nil && verr == nil {
			what.Host, what.State = v.Host, stateOf(v)
		}
		return err
	})
	if err != nil {
		return err
	}
	already := ""
	if made == head.Version {
		already = " already"
	}
	_, err = fmt.Fprintf(e.stdout, "%s: version %d equals version %d%s\n", c.owned, made, v, already)
	return err
}

// lockOf is the lock of p, nil if it is free. One that cannot be read is
// nobody's we know: it has no epoch.
func (e *env) lockOf(p *store.Parcel) (*parcel.Lock, error) {
	l, err := p.Holder()
	if errors.Is(err, parcel.ErrDamaged) {
		return &parcel.Lock{User: "unknown", Host: "unknown", Epoch: store.AnyEpoch}, nil
	}
	return l, err
}

// unlock breaks a lock, and says whose it was.
func (e *env) unlock(ctx context.Context, s *store.Store, p *store.Parcel, l *parcel.Lock, why string) error {
	what := event.Event{Op: event.Release, User: p.User(), Parcel: p.Name(), Host: l.Host, Epoch: max(l.Epoch, 0), Version: l.Version,
		Forced: true, Holder: l.String(), Why: parcel.Clean(why)}
	err := e.act(ctx, s, what, func(context.Context) error {
		_, err := p.Break(l.Epoch, e.session().By, why)
		return err
	})
	if err == nil {
		_, err = fmt.Fprintf(e.stdout, "%s/%s: lock broken; it was held by %s\n", p.User(), p.Name(), l)
	}
	return err
}

type parcelUnlock struct {
	owned
	Why string `required:"" help:"The reason: its holder is told." placeholder:"TEXT"`
	sure
}

func (c *parcelUnlock) Run(ctx context.Context, e *env) error {
	s, p, err := e.openParcel(c.owned)
	if err != nil {
		return err
	}
	l, err := e.lockOf(p)
	if err != nil {
		return err
	}
	if l == nil {
		return parcel.NewError(parcel.NotHolder, "parcel %s: nobody holds it", c.Parcel)
	}
	if parcel.Clean(c.Why) == "" {
		return parcel.NewError(parcel.Usage, "--why: want a reason")
	}
	seen := ""
	if !l.Contact.IsZero() {
		seen = fmt.Sprintf(", last seen %s, %s", timeText(l.Contact), ago(l.Contact, time.Now()))
	}
	err = e.confirm(c.Yes, "%s is held by %s%s; what was done there since can then only be saved as another parcel. Break the lock?", c.owned, l, seen)
	if err != nil {
		return err
	}
	return e.unlock(ctx, s, p, l, c.Why)
}
