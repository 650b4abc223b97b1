package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"isr/locksrv/event"
	"isr/store"
	"isr/store/parcel"
)

// quota is a number of bytes, or none.
type quota int64

func (q *quota) UnmarshalText(text []byte) error {
	if string(text) == "none" {
		*q = 0
		return nil
	}
	n, err := parseSize(string(text))
	if err == nil && n == 0 {
		err = fmt.Errorf("quota 0: want none, or 1 or more")
	}
	*q = quota(n)
	return err
}

func (q quota) String() string {
	if q == 0 {
		return "none"
	}
	return store.SizeText(int64(q))
}

type userAdd struct {
	Name    string   `arg:"" help:"The user."`
	Key     []string `help:"File with public keys, as ssh-keygen writes it; may come more than once." placeholder:"FILE.pub" type:"existingfile" sep:"none"`
	Group   []string `help:"A group she is in; may come more than once." placeholder:"GROUP" sep:"none"`
	Quota   quota    `help:"How much her parcels may take, or none." placeholder:"SIZE" default:"none"`
	Comment string   `help:"Who she is." placeholder:"TEXT"`
}

func (c *userAdd) Run(ctx context.Context, e *env) error {
	if err := parcel.CheckName(c.Name); err != nil {
		return err
	}
	if err := checkGroups(c.Group); err != nil {
		return err
	}
	keys, err := readKeys(c.Key)
	if err != nil {
		return err
	}
	s, _, err := e.openOrInit()
	if err != nil {
		return err
	}
	if users, err := s.Users(); err != nil {
		return err
	} else if slices.Contains(users, c.Name) && len(keys) > 0 && c.Group == nil && c.Quota == 0 && c.Comment == "" {
		return addKeys(ctx, e, s, c.Name, keys)
	}
	what := event.Event{Op: event.UserAdd, User: c.Name}
	if len(keys) > 0 {
		what.What = "keys: " + describeKeys(keys)
	}
	return e.act(ctx, s, what, func(context.Context) error {
		return s.CreateUser(c.Name, keyTexts(keys), store.UserConfig{Quota: int64(c.Quota), Groups: c.Group, Comment: parcel.Clean(c.Comment)})
	})
}

func checkGroups(groups []string) error {
	for _, g := range groups {
		if err := parcel.CheckName(g); err != nil {
			return fmt.Errorf("group: %w", err)
		}
	}
	return nil
}

type userList struct {
	Name  []string `arg:"" optional:"" help:"Only these users."`
	JSON  bool     `name:"json" help:"Print an object a line." xor:"form"`
	Quiet bool     `short:"q" help:"Print names only." xor:"form"`
}

// userRow is a user as user list has her.
type userRow struct {
	User     string     `json:"user"`
	Keys     int        `json:"keys"` // that could let her in
	Password bool       `json:"password,omitempty"`
	Parcels  int        `json:"parcels"`
	Held     int        `json:"held"` // of them
	Objects  int64      `json:"objects"`
	Bytes    int64      `json:"bytes"`
	Quota    int64      `json:"quota,omitempty"`
	Groups   []string   `json:"groups,omitempty"`
	Consent  *time.Time `json:"consent,omitempty"`
	Locked   *time.Time `json:"locked,omitempty"`
	Why      string     `json:"why,omitempty"`
	Created  *time.Time `json:"created,omitempty"`
	Comment  string     `json:"comment,omitempty"`
	Error    string     `json:"error,omitempty"` // what is wrong with her; the others list all the same
}

func (c *userList) Run(ctx context.Context, e *env) error {
	s, _, err := e.open()
	if err != nil {
		return err
	}
	names := c.Name
	if names == nil {
		if names, err = s.Users(); err != nil {
			return err
		}
	}
	for _, name := range names {
		if _, _, err := s.UserDirs(name); err != nil && !errors.Is(err, parcel.ErrDamaged) { // which her row has
			return err
		}
	}
	if c.Quiet {
		for _, name := range names {
			if _, err := fmt.Fprintln(e.stdout, name); err != nil {
				return err
			}
		}
		return nil
	}
	out := e.rows()
	table := e.stdout.Table("USER", "KEYS", "PARCELS", "HELD", "USED", "QUOTA", "GROUPS", "STATE")
	for _, name := range names {
		if err := ctx.Err(); err != nil {
			return err
		}
		r := describeUser(s, name)
		if c.JSON {
			if err := out.Encode(r); err != nil {
				return err
			}
			continue
		}
		table.Row(r.User, fmt.Sprint(r.Keys), fmt.Sprint(r.Parcels), fmt.Sprint(r.Held), store.SizeText(r.Bytes),
			quota(r.Quota).String(), orDash(strings.Join(r.Groups, ",")), orDash(r.state()))
	}
	if c.JSON || len(names) == 0 {
		return nil
	}
	return table.Print()
}

// orDash shows that nothing is there.
func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func (r userRow) state() string {
	var s []string
	if r.Error != "" {
		s = append(s, "damaged: "+r.Error)
	}
	if r.Locked != nil {
		s = append(s, "locked: "+r.Why)
	}
	if r.Keys == 0 && !r.Password {
		s = append(s, "nothing lets her in")
	}
	if r.Consent != nil {
		s = append(s, "consented")
	}
	return strings.Join(s, ", ")
}

func describeUser(s *store.Store, name string) userRow {
	r := userRow{User: name}
	err := func() error {
		lines, err := s.Keys(name)
		for _, l := range lines {
			if l.Err == nil && (l.Key.Expires.IsZero() || time.Now().Before(l.Key.Expires)) {
				r.Keys++
			}
		}
		if err != nil {
			return err
		}
		if r.Password, err = s.HasPassword(name); err != nil {
			return err
		}
		all, held, err := parcelsOf(s, name)
		if err != nil {
			return err
		}
		r.Parcels, r.Held = len(all), len(held)
		used, err := s.Usage(name)
		if err != nil {
			return err
		}
		r.Objects, r.Bytes = used.Objects, used.Bytes
		c, err := s.UserConfig(name)
		if err != nil {
			return err
		}
		r.Quota, r.Groups, r.Why, r.Comment = c.Quota, c.Groups, c.Why, c.Comment
		for _, t := range []struct {
			from time.Time
			to   **time.Time
		}{{c.Consent, &r.Consent}, {c.Locked, &r.Locked}, {c.Created, &r.Created}} {
			if !t.from.IsZero() {
				*t.to = &t.from
			}
		}
		return nil
	}()
	if err != nil {
		r.Error = parcel.Clean(err.Error())
	}
	return r
}

// parcelsOf are a user's parcels, and those that somebody holds or may.
func parcelsOf(s *store.Store, user string) (all, held []string, err error) {
	all, err = s.Parcels(user)
	for _, n := range all {
		p, err := s.Parcel(user, n)
		if err != nil {
			continue // it went
		}
		if l, err := p.Holder(); l != nil || err != nil {
			held = append(held, n)
		}
	}
	return all, held, err
}

type userChange struct {
	Name     string   `arg:"" help:"The user."`
	Quota    *quota   `help:"How much her parcels may take, or none." placeholder:"SIZE"`
	Group    []string `help:"A group to put her in; may come more than once." placeholder:"GROUP" sep:"none"`
	Ungroup  []string `help:"A group to take her out of; may come more than once." placeholder:"GROUP" sep:"none"`
	Comment  *string  `help:"Who she is." placeholder:"TEXT"`
	Consent  bool     `help:"She consents to take part in the study." xor:"consent"`
	Withdraw bool     `help:"She does no longer; removes what her clients told for it." xor:"consent"`
	sure
}

func (c *userChange) Run(ctx context.Context, e *env) error {
	if err := checkGroups(append(slices.Clone(c.Group), c.Ungroup...)); err != nil {
		return err
	}
	var what []string
	say := func(format string, args ...any) { what = append(what, fmt.Sprintf(format, args...)) }
	if c.Quota != nil {
		say("quota %s", *c.Quota)
	}
	if c.Group != nil {
		say("into %s", strings.Join(c.Group, ","))
	}
	if c.Ungroup != nil {
		say("out of %s", strings.Join(c.Ungroup, ","))
	}
	if c.Comment != nil {
		say("comment %s", parcel.Clean(*c.Comment))
	}
	if c.Consent {
		say("consent")
	}
	var after []func(*store.Store) error
	if c.Withdraw {
		say("consent withdrawn")
		removed, remove, err := c.withdraw(e)
		if err != nil {
			return err
		}
		if removed != "" {
			say("%s", removed)
		}
		after = append(after, remove)
	}
	if what == nil {
		return parcel.NewError(parcel.Usage, "nothing is to be changed").WithHint("isr-locksrv help user change has the options")
	}
	return changeUser(ctx, e, event.Event{User: c.Name, What: strings.Join(what, ", ")}, func(u *store.UserConfig) error {
		if c.Quota != nil {
			u.Quota = int64(*c.Quota)
		}
		u.Groups = append(u.Groups, c.Group...)
		slices.Sort(u.Groups)
		u.Groups = slices.DeleteFunc(slices.Compact(u.Groups), func(g string) bool { return slices.Contains(c.Ungroup, g) })
		if c.Comment != nil {
			u.Comment = parcel.Clean(*c.Comment)
		}
		if c.Consent && u.Consent.IsZero() {
			u.Consent = time.Now()
		}
		if c.Withdraw {
			u.Consent = time.Time{}
		}
		return nil
	}, after...)
}

// changeUser changes what is known of a user, does what comes after that, and
// writes it down.
func changeUser(ctx context.Context, e *env, what event.Event, change func(*store.UserConfig) error, after ...func(*store.Store) error) error {
	s, _, err := e.open()
	if err != nil {
		return err
	}
	if _, _, err := s.UserDirs(what.User); err != nil {
		return err
	}
	what.Op = event.UserChange
	return e.act(ctx, s, what, func(context.Context) error {
		err := s.ChangeUser(what.User, change)
		for _, f := range after {
			if err == nil {
				err = f(s)
			}
		}
		return err
	})
}

type userLock struct {
	Name string `arg:"" help:"The user."`
	Why  string `help:"Why; she is told." required:"" placeholder:"TEXT"`
}

func (c *userLock) Run(ctx context.Context, e *env) error {
	why := parcel.Clean(c.Why)
	if why == "" {
		return parcel.NewError(parcel.Usage, "--why: want a reason")
	}
	return changeUser(ctx, e, event.Event{User: c.Name, What: "locked", Why: why}, func(u *store.UserConfig) error {
		u.Why = why
		if u.Locked.IsZero() {
			u.Locked = time.Now()
		}
		return nil
	})
}

type userUnlock struct {
	Name string `arg:"" help:"The user."`
}

func (c *userUnlock) Run(ctx context.Context, e *env) error {
	return changeUser(ctx, e, event.Event{User: c.Name, What: "unlocked"}, func(u *store.UserConfig) error {
		if u.Locked.IsZero() {
			return parcel.NewError(parcel.Failed, "user %s: is not locked", c.Name)
		}
		u.Locked, u.Why = time.Time{}, ""
		return nil
	})
}

type userDel struct {
	Name    string `arg:"" help:"The user."`
	Parcels bool   `help:"Remove her parcels too."`
	Force   bool   `help:"Even those that are checked out."`
	Reports bool   `help:"Remove what her clients told for the study too."`
	sure
}

func (c *userDel) Run(ctx context.Context, e *env) error {
	s, _, err := e.open()
	if err != nil {
		return err
	}
	names, held, err := parcelsOf(s, c.Name)
	if err != nil {
		return err
	}
	if len(names) > 0 && !c.Parcels {
		return parcel.NewError(parcel.Exists, "user %s: has parcels: %s", c.Name, strings.Join(names, " ")).
			WithHint("--parcels removes them too")
	}
	if len(held) > 0 && !c.Force {
		return parcel.NewError(parcel.Locked, "user %s: checked out: %s", c.Name, strings.Join(held, " ")).
			WithHint("--force removes them all the same")
	}
	of := ""
	if len(names) > 0 {
		used, err := s.Usage(c.Name)
		if err != nil {
			return err
		}
		of = fmt.Sprintf(" and all versions of %s, %s in all", strings.Join(names, " "), store.SizeText(used.Bytes))
		if len(held) > 0 {
			of += ", though checked out: " + strings.Join(held, " ")
		}
	}
	told, err := service(s).ReportDays(c.Name)
	if err != nil {
		return err
	}
	if told > 0 && c.Reports {
		of += ", and " + reportsOf(told)
	}
	if err := e.confirm(c.Yes, "remove user %s%s?", c.Name, of); err != nil {
		return err
	}
	for _, n := range names {
		what := event.Event{Op: event.ParcelDel, User: c.Name, Parcel: n, Forced: c.Force, Why: "the user is removed"}
		err := e.act(ctx, s, what, func(context.Context) error { return s.DelParcel(c.Name, n, c.Force) })
		if err != nil && !errors.Is(err, parcel.ErrNoParcel) {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
	what := event.Event{Op: event.UserDel, User: c.Name}
	if told > 0 && c.Reports {
		what.What = "with " + reportsOf(told)
	}
	err = e.act(ctx, s, what, func(context.Context) error {
		if c.Reports { // first: of a user who is gone nobody could order it again
			if err := service(s).RemoveReports(c.Name); err != nil {
				return err
			}
		}
		return s.DelUser(c.Name)
	})
	if err == nil && told > 0 && !c.Reports {
		fmt.Fprintf(e.stderr, "isr-locksrv: user %s: %s are kept, in %s\n", c.Name, reportsOf(told), filepath.Join(service(s).ReportsDir(), c.Name))
	}
	return err
}
