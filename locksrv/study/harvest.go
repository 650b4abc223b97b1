package study

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/gofrs/flock"

	"isr/locksrv"
	"isr/locksrv/event"
	"isr/store/atomicfile"
	"isr/store/parcel"
)

// Realm is what a harvest reads of a realm: *store.Store.
type Realm interface {
	Root() string
	Users() ([]string, error)
	Consent(user string) (since time.Time, ok bool, err error)
	Groups(user string) ([]string, error)
	Parcels(user string) ([]string, error)
}

// Source is where a harvest gathers.
type Source struct {
	Realm   Realm
	Events  *event.Log
	Reports string                                       // directory of the reports of clients
	Parcel  func(user, name string) (ParcelState, error) // what there is of one now
	Warn    func(text string)                            // told what could not be read, and is left out

	// Progress is told of days of logs read and weeks written, if it is not nil.
	Progress func(done, total int64)
}

// Harvested is what a harvest did.
type Harvested struct {
	Events  int    `json:"events"`  // that are new
	Reports int    `json:"reports"` // that are new
	Removed int    `json:"removed"` // lines of users who no longer agree
	Agreed  int    `json:"agreed"`  // users who do
	Users   int    `json:"users"`
	Dir     string `json:"dir"`
	DB      string `json:"database"`
}

// step is called before each step of a harvest, for tests that kill it there.
var step = func(name string) {}

// Harvest gathers what is new since the last harvest, and makes the database.
// With names the directory holds pseudonyms; one that was begun with names, or
// without, stays so.
func (d *Dir) Harvest(ctx context.Context, src Source, names *Names, now time.Time) (h Harvested, err error) {
	if d.found && d.anonymous != (names != nil) {
		return h, parcel.NewError(parcel.Usage, "study %s: was begun with names in it: %v", d.path, !d.anonymous).
			WithHint("harvest into another directory")
	}
	if err := d.make(names != nil); err != nil {
		return h, err
	}
	unlock, err := d.lock()
	if err != nil {
		return h, err
	}
	defer unlock()
	who, err := census(src)
	if err != nil {
		return h, err
	}
	g := gathering{agree: make(consents), names: names, weeks: make(map[string]*week)}
	for _, m := range who {
		g.agree[m.User], g.agree[names.user(m.User)] = m, m
	}
	from, err := d.from(who, names)
	if err != nil {
		return h, err
	}
	progress := src.Progress
	if progress == nil {
		progress = func(int64, int64) {}
	}
	begin := from
	day := func(t time.Time) int64 {
		if begin.IsZero() { // the first event says when that was
			begin = t
		}
		return int64(t.Sub(begin) / (24 * time.Hour))
	}
	read := int64(-1)
	for e, err := range src.Events.Read(from, now) {
		if err := ctx.Err(); err != nil {
			return h, err
		}
		if err != nil {
			src.Warn(fmt.Sprintf("event log: %v", err))
			continue
		}
		if e.Time.Year() < 2000 || e.Time.After(now.AddDate(0, 0, 1)) {
			src.Warn(fmt.Sprintf("event log: left out: an event of %s", e.Time.Format(time.RFC3339)))
			continue
		}
		if n := day(e.Time); n > read {
			read = n
			progress(read, max(read, day(now))+1)
		}
		g.event(e)
	}
	if err := g.readReports(ctx, src, from); err != nil {
		return h, err
	}
	s := stateOf(who, src, now)
	g.week(now).states = []state{names.state(s)}
	have, err := d.weeks()
	if err != nil {
		return h, err
	}
	for name := range g.weeks {
		if !slices.Contains(have, name) {
			have = append(have, name)
		}
	}
	slices.Sort(have)
	for i, name := range have {
		if err := ctx.Err(); err != nil {
			return h, err
		}
		progress(read+1+int64(i), read+1+int64(len(have))+1)
		step("week " + name)
		if err := d.merge(name, &g, &h); err != nil {
			return h, err
		}
	}
	progress(read+1+int64(len(have)), read+1+int64(len(have))+1) // the database is the last
	step("config")
	d.last = now
	if err := d.saveConfig(); err != nil {
		return h, err
	}
	step("database")
	h.Dir, h.DB, h.Agreed, h.Users = d.path, filepath.Join(d.path, Database), s.Agreed, s.Users
	return h, d.Build(ctx, h.DB, Selection{})
}

// from is the day to read the logs from: that of the last harvest, or since
// when somebody has agreed of whom that did not know.
func (d *Dir) from(who []person, names *Names) (time.Time, error) {
	from := d.last
	weeks, err := d.weeks()
	if err != nil {
		return from, err
	}
	known := make(map[string]time.Time)
	if len(weeks) > 0 {
		w, err := d.read(weeks[len(weeks)-1])
		if err != nil {
			return from, err
		}
		for _, s := range w.states {
			clear(known)
			for _, m := range s.Members {
				known[m.User] = m.Since
			}
		}
	}
	for _, p := range who {
		since, ok := known[names.user(p.User)]
		if p.agreed && p.Since.Before(from) && (!ok || p.Since.Before(since)) {
			from = p.Since
		}
	}
	return from.UTC().Truncate(24 * time.Hour), nil // whole days
}

// make makes the directory, if it is not there. What else is in one that is
// there is not mixed up with a study.
func (d *Dir) make(anonymous bool) error {
	if d.found {
		return nil
	}
	if err := os.MkdirAll(d.path, 0o700); err != nil {
		return err
	}
	entries, err := os.ReadDir(d.path)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), atomicfile.TempPrefix) {
			return parcel.NewError(parcel.Exists, "%s: is there, and is no study's directory", d.path).WithHint("choose one that is empty, or not there")
		}
	}
	d.anonymous, d.found = anonymous, true
	step("new")
	return d.saveConfig()
}

// lock keeps two harvests apart.
func (d *Dir) lock() (unlock func(), err error) {
	l := flock.New(filepath.Join(d.path, "lock"), flock.SetPermissions(0o600))
	ok, err := l.TryLock()
	if err == nil && !ok {
		err = parcel.NewError(parcel.Busy, "study %s: another harvest is at it", d.path)
	}
	return func() { l.Close() }, err
}

// merge adds to a week what was gathered of it, and takes out whoever no longer
// agrees.
func (d *Dir) merge(name string, g *gathering, h *Harvested) error {
	old, err := d.read(name)
	if err != nil {
		return err
	}
	add := g.weeks[name]
	if add == nil {
		add = new(week)
	}
	var w week
	agree := g.agree
	// A day that was read is read whole, and what is known of it is that; but of
	// who has left the realm since nothing was read.
	read := make(map[string]bool)
	for _, t := range add.totals {
		read[t.Day] = true
	}
	for _, e := range old.events {
		was := e
		e, keep := strip(e, agree.old)
		if !keep || e.User != was.User {
			h.Removed++
		}
		if _, here := agree[e.User]; keep && !(read[dayOf(e.Time)] && (here || e.User == "")) {
			w.events = append(w.events, e)
		}
	}
	for _, k := range old.reports {
		if agree.old(k.User, k.Time) {
			w.reports = append(w.reports, k)
		} else {
			h.Removed++
		}
	}
	for _, s := range old.states {
		s.Members = slices.DeleteFunc(s.Members, func(m member) bool { return !agree.old(m.User, m.Since) })
		if !slices.ContainsFunc(add.states, func(t state) bool { return dayOf(t.Time) == dayOf(s.Time) }) {
			w.states = append(w.states, s)
		}
	}
	w.events = union(w.events, add.events, func(e event.Event) time.Time { return e.Time })
	w.reports = union(w.reports, add.reports, func(k locksrv.Kept) time.Time { return k.Time })
	h.Events += max(0, len(w.events)-len(old.events))
	h.Reports += max(0, len(w.reports)-len(old.reports))
	w.states = append(w.states, add.states...)
	slices.SortStableFunc(w.states, func(a, b state) int { return a.Time.Compare(b.Time) })
	for _, t := range old.totals { // the log of others may be gone
		if !read[t.Day] {
			w.totals = append(w.totals, t)
		}
	}
	w.totals = append(w.totals, add.totals...)
	slices.SortFunc(w.totals, func(a, b total) int { return strings.Compare(a.Day+a.Op, b.Day+b.Op) })
	return d.write(name, w)
}

// consents is who agreed and who did not, by name and by pseudonym.
type consents map[string]person

// agreed reports whether a user had agreed at t.
func (c consents) agreed(user string, t time.Time) bool {
	p, ok := c[user]
	return ok && p.agreed && !t.Before(p.Since)
}

// old is agreed of what was harvested before: who has left the realm did not
// take back what she agreed to.
func (c consents) old(user string, t time.Time) bool {
	_, ok := c[user]
	return !ok || c.agreed(user, t)
}

// strip takes out of an event what tells of users who have not agreed: of what
// administrators do it leaves what they did, of what users do nothing.
func strip(e event.Event, agreed func(user string, t time.Time) bool) (event.Event, bool) {
	if to, _, _ := strings.Cut(e.To, "/"); e.To != "" && to != e.User && !agreed(to, e.Time) && strings.Contains(e.To, "/") {
		e.To = ""
	}
	if e.User == "" || agreed(e.User, e.Time) {
		return e, true
	}
	if !e.Admin {
		return event.Event{}, false
	}
	e.User, e.Parcel, e.Version, e.Parent, e.Epoch = "", "", 0, 0, 0
	e.Host, e.From, e.Holder, e.What, e.Why = "", "", "", "", ""
	if e.Error != "" {
		e.Error = "failed"
	}
	return e, true
}

// gathering is what a harvest has read.
type gathering struct {
	agree consents
	names *Names
	weeks map[string]*week
}

func (g *gathering) week(t time.Time) *week {
	name := weekOf(t)
	if g.weeks[name] == nil {
		g.weeks[name] = new(week)
	}
	return g.weeks[name]
}

func (g *gathering) event(e event.Event) {
	if e.Op == event.Harvest {
		return // or each harvest would find another
	}
	w := g.week(e.Time)
	day := dayOf(e.Time)
	i := slices.IndexFunc(w.totals, func(t total) bool { return t.Day == day && t.Op == e.Op })
	if i < 0 {
		i = len(w.totals)
		w.totals = append(w.totals, total{Day: day, Op: e.Op})
	}
	t := &w.totals[i]
	t.Seconds += e.Seconds
	if e.Error == "" {
		t.Done++
	} else {
		t.Failed++
	}
	if e, keep := strip(e, g.agree.agreed); keep {
		w.events = append(w.events, g.names.event(e))
	}
}

// readReports reads the reports of those who agreed, from the day of from on.
func (g *gathering) readReports(ctx context.Context, src Source, from time.Time) error {
	root, err := os.OpenRoot(src.Reports) // nothing in it leads out
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer root.Close()
	users, err := fs.ReadDir(root.FS(), ".")
	if err != nil {
		return err
	}
	for _, u := range users {
		days, err := fs.ReadDir(root.FS(), u.Name())
		if !u.IsDir() || err != nil {
			src.Warn(fmt.Sprintf("reports: %s: is no user's directory", parcel.Clean(u.Name())))
			continue
		}
		for _, e := range days {
			day, ok := event.DayFile(e.Name())
			if err := ctx.Err(); err != nil {
				return err
			}
			if !ok || !e.Type().IsRegular() || day < dayOf(from) {
				continue
			}
			if err := g.readDay(root, u.Name(), e.Name(), src.Warn); err != nil {
				src.Warn(fmt.Sprintf("reports: %v", err))
			}
		}
	}
	return nil
}

func (g *gathering) readDay(root *os.Root, user, file string, warn func(string)) error {
	f, err := root.Open(filepath.Join(user, file))
	if err != nil {
		return err
	}
	defer f.Close()
	r, done, err := event.Unpack(file, f)
	if err != nil {
		return fmt.Errorf("%s/%s: %w", user, file, err)
	}
	defer done()
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, maxLine)
	for n := 1; lines.Scan(); n++ {
		var k locksrv.Kept
		err := json.Unmarshal(lines.Bytes(), &k)
		if err == nil {
			err = k.Report.Check()
		}
		if err == nil && (k.User != user || parcel.CheckName(k.Parcel) != nil) {
			err = errors.New("is of another user")
		}
		if err != nil {
			warn(fmt.Sprintf("reports: %s/%s line %d: %s", user, file, n, parcel.Clean(err.Error())))
			continue
		}
		if g.agree.agreed(user, k.Time) {
			w := g.week(k.Time)
			w.reports = append(w.reports, g.names.kept(k))
		}
	}
	return lines.Err()
}
