package study

import (
	"cmp"
	"context"
	"database/sql"
	_ "embed"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"time"

	_ "modernc.org/sqlite" // the driver

	"isr/locksrv"
	"isr/locksrv/event"
	"isr/locksrv/proto"
	"isr/store/atomicfile"
)

//go:embed views.sql
var views string

// The tables. A column is a field by its name in JSON; fields of a part have
// the part's name in front. Times are RFC 3339, UTC; yes is 1.
type (
	userRow struct {
		User    string    `json:"user"`
		Since   time.Time `json:"since"`  // agreed
		Groups  string    `json:"groups"` // separated by spaces
		Present bool      `json:"present"`
	}
	groupRow struct {
		User  string `json:"user"`
		Group string `json:"grp"`
	}
	parcelRow struct {
		User string `json:"user"`
		ParcelState
	}
	eventRow struct {
		when
		Life int `json:"life"` // which parcel of that name, from 0
		event.Event
	}
	versionRow struct {
		when
		User    string    `json:"user"`
		Parcel  string    `json:"parcel"`
		Life    int       `json:"life"`
		Version int       `json:"version"`
		Time    time.Time `json:"time"`
		How     string    `json:"how"` // the event's op
		Parent  int       `json:"parent"`
		Epoch   int64     `json:"epoch"`
		Admin   bool      `json:"admin"`
		Objects int64     `json:"objects"`
		Bytes   int64     `json:"bytes"`
		Memory  int64     `json:"memory"`
		State   string    `json:"state"`
	}
	sessionRow struct {
		when
		User      string    `json:"user"`
		Parcel    string    `json:"parcel"`
		Life      int       `json:"life"`
		Epoch     int64     `json:"epoch"`
		Host      string    `json:"host"`
		From      string    `json:"from"`
		Start     time.Time `json:"start"`
		End       time.Time `json:"end"`     // NULL: it goes on
		Seconds   float64   `json:"seconds"` // until End, or the harvest
		Forced    bool      `json:"forced"`  // the lock was broken
		Version   int       `json:"version"` // it began with
		Commits   int       `json:"commits"`
		Rollbacks int       `json:"rollbacks"`
	}
	reportRow struct {
		when
		Time   time.Time `json:"time"` // when it came
		User   string    `json:"user"`
		Parcel string    `json:"parcel"`
		proto.Report
	}
	runRow struct {
		when
		Report string `json:"report"` // its id
		N      int    `json:"n"`
		User   string `json:"user"`
		Parcel string `json:"parcel"`
		Epoch  int64  `json:"epoch"`
		proto.ReportRun
	}
	activityRow struct {
		when
		Report string `json:"report"`
		N      int    `json:"n"` // of the run
		User   string `json:"user"`
		proto.ReportActivity
	}
	rungRow struct {
		when
		Report string `json:"report"`
		N      int    `json:"n"`
		User   string `json:"user"`
		proto.ReportRung
	}
	sealedRow struct {
		when
		Report  string `json:"report"`
		User    string `json:"user"`
		Parcel  string `json:"parcel"`
		Version int    `json:"version"`
		proto.ReportImage
	}
	manualRow struct {
		when
		manual
	}
)

// when is a time as one wants to count by it.
type when struct {
	Month string `json:"month"`
	Week  string `json:"week"`
	Day   string `json:"day"`
}

func at(t time.Time) when { return when{monthOf(t), weekOf(t), dayOf(t)} }

// tables are all tables, by name, with what a row is.
var tables = []struct {
	name string
	row  any
}{
	{"users", userRow{}}, {"groups", groupRow{}}, {"parcels", parcelRow{}}, {"events", eventRow{}}, {"versions", versionRow{}},
	{"sessions", sessionRow{}}, {"reports", reportRow{}}, {"runs", runRow{}}, {"activity", activityRow{}}, {"rungs", rungRow{}},
	{"sealed", sealedRow{}}, {"totals", total{}}, {"realm", state{}}, {"manual", manualRow{}},
}

// column is a field of a row.
type column struct {
	name, kind string
	index      []int
}

var timeType = reflect.TypeFor[time.Time]()

func columns(t reflect.Type, prefix string, index []int) []column {
	var all []column
	for i := range t.NumField() {
		f := t.Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		at := append(slices.Clone(index), i)
		kind := "TEXT"
		switch {
		case f.Anonymous:
			all = append(all, columns(f.Type, prefix, at)...)
			continue
		case f.Type == timeType:
		case f.Type.Kind() == reflect.Struct:
			all = append(all, columns(f.Type, prefix+name+"_", at)...)
			continue
		case f.Type.Kind() == reflect.Slice:
			continue
		case f.Type.Kind() == reflect.Float64:
			kind = "REAL"
		case f.Type.Kind() != reflect.String:
			kind = "INTEGER"
		}
		if slices.ContainsFunc(all, func(c column) bool { return c.name == prefix+name }) {
			continue // it is there by the row's own word
		}
		all = append(all, column{prefix + name, kind, at})
	}
	return all
}

func (c column) value(row reflect.Value) any {
	v := row.FieldByIndex(c.index)
	switch x := v.Interface().(type) {
	case time.Time:
		if x.IsZero() {
			return nil
		}
		return x.UTC().Format("2006-01-02T15:04:05Z")
	case bool:
		if x {
			return 1
		}
		return 0
	default:
		return x
	}
}

// Selection is what of a study goes into a database.
type Selection struct {
	From, To time.Time // days, both included; zero: no bound
	Names    *Names    // pseudonyms, if the directory has names
}

func (s Selection) has(t time.Time) bool {
	return (s.From.IsZero() || !t.Before(s.From)) && (s.To.IsZero() || t.Before(s.To.AddDate(0, 0, 1)))
}

// Build makes the database of what is gathered, in a file that is replaced
// whole.
func (d *Dir) Build(ctx context.Context, file string, sel Selection) error {
	dir, name := filepath.Split(file)
	temp := filepath.Join(dir, atomicfile.TempPrefix+name)
	if err := os.Remove(temp); err != nil && !os.IsNotExist(err) {
		return err
	}
	defer os.Remove(temp)
	// It is private from its first byte.
	if f, err := os.OpenFile(temp, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600); err != nil {
		return err
	} else if err := f.Close(); err != nil {
		return err
	}
	if err := d.fill(ctx, temp, sel); err != nil {
		return fmt.Errorf("study %s: database: %w", d.path, err)
	}
	step("rename")
	f, err := os.OpenFile(temp, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	err = f.Sync()
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(temp, file)
	}
	if err == nil {
		err = atomicfile.SyncDir(filepath.Clean(dir))
	}
	return err
}

// OpenDB opens a database, to read.
func OpenDB(file string) (*sql.DB, error) {
	if _, err := os.Stat(file); err != nil {
		return nil, err
	}
	return sql.Open("sqlite", "file:"+(&url.URL{Path: file}).EscapedPath()+"?mode=ro&immutable=1")
}

func (d *Dir) fill(ctx context.Context, file string, sel Selection) error {
	db, err := sql.Open("sqlite", "file:"+(&url.URL{Path: file}).EscapedPath()+"?_pragma=journal_mode(off)&_pragma=synchronous(off)")
	if err != nil {
		return err
	}
	defer db.Close()
	db.SetMaxOpenConns(1)
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	b := &builder{ctx: ctx, sel: sel, tables: make(map[reflect.Type]*table), lives: make(map[string]int), open: make(map[string]*sessionRow),
		seen: make(map[string]bool), anonymous: d.anonymous || sel.Names != nil}
	for _, t := range tables {
		cols := columns(reflect.TypeOf(t.row), "", nil)
		var define, names, marks []string
		for _, c := range cols {
			define = append(define, fmt.Sprintf("%q %s", c.name, c.kind))
			names, marks = append(names, fmt.Sprintf("%q", c.name)), append(marks, "?")
		}
		if _, err := tx.ExecContext(ctx, fmt.Sprintf("CREATE TABLE %s (%s)", t.name, strings.Join(define, ", "))); err != nil {
			return fmt.Errorf("table %s: %w", t.name, err)
		}
		stmt, err := tx.PrepareContext(ctx, fmt.Sprintf("INSERT INTO %s (%s) VALUES (%s)", t.name, strings.Join(names, ", "), strings.Join(marks, ", ")))
		if err != nil {
			return err
		}
		b.tables[reflect.TypeOf(t.row)] = &table{cols, stmt}
	}
	if err := b.all(d); err != nil {
		return err
	}
	if _, err := tx.ExecContext(ctx, views); err != nil {
		return err
	}
	return tx.Commit()
}

type table struct {
	cols   []column
	insert *sql.Stmt
}

// builder makes rows of lines.
type builder struct {
	ctx       context.Context
	sel       Selection
	anonymous bool
	tables    map[reflect.Type]*table
	lives     map[string]int         // parcels of a name that are gone
	open      map[string]*sessionRow // that go on
	seen      map[string]bool        // versions and reports that have their row
	last      state
	members   map[string]userRow
	groups    map[string][]string
}

func (b *builder) add(row any) error {
	t := b.tables[reflect.TypeOf(row)]
	values := make([]any, len(t.cols))
	v := reflect.ValueOf(row)
	for i, c := range t.cols {
		values[i] = c.value(v)
	}
	_, err := t.insert.ExecContext(b.ctx, values...)
	return err
}

func (b *builder) all(d *Dir) error {
	b.members, b.groups = make(map[string]userRow), make(map[string][]string)
	weeks, err := d.weeks()
	if err != nil {
		return err
	}
	for _, name := range weeks {
		w, err := d.read(name)
		if err != nil {
			return err
		}
		if err := b.week(w); err != nil {
			return err
		}
	}
	for _, key := range sorted(b.open) {
		s := b.open[key]
		s.Seconds = max(0, b.last.Time.Sub(s.Start).Seconds())
		if err := b.add(*s); err != nil {
			return err
		}
	}
	if err := b.people(); err != nil {
		return err
	}
	all, err := readLines[manual](filepath.Join(d.path, manualFile))
	if err != nil {
		return err
	}
	for _, m := range all {
		t, err := time.Parse(time.DateOnly, m.Date)
		if _, known := b.members[b.sel.Names.user(m.User)]; err != nil || !b.sel.has(t) || m.User != "" && !known {
			continue
		}
		if err := b.add(manualRow{at(t), b.sel.Names.manual(m)}); err != nil {
			return err
		}
	}
	return nil
}

func sorted[V any](m map[string]V) []string {
	var keys []string
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

func (b *builder) week(w week) error {
	for _, e := range w.events {
		if b.sel.has(e.Time) {
			if err := b.event(b.sel.Names.event(e)); err != nil {
				return err
			}
		}
	}
	for _, k := range w.reports {
		if b.sel.has(k.Time) {
			if err := b.report(b.sel.Names.kept(k)); err != nil {
				return err
			}
		}
	}
	for _, t := range w.totals {
		if day, err := time.Parse(time.DateOnly, t.Day); err == nil && b.sel.has(day) {
			if err := b.add(t); err != nil {
				return err
			}
		}
	}
	for _, s := range w.states {
		if !b.sel.has(s.Time) {
			continue
		}
		s = b.sel.Names.state(s)
		if err := b.add(s); err != nil {
			return err
		}
		for name, u := range b.members {
			u.Present = false
			b.members[name] = u
		}
		for _, m := range s.Members {
			u, ok := b.members[m.User]
			if !ok {
				u = userRow{User: m.User, Since: m.Since}
			}
			if m.Since.Before(u.Since) {
				u.Since = m.Since
			}
			u.Present = true
			b.members[m.User], b.groups[m.User] = u, m.Groups
		}
		b.last = s
	}
	return nil
}

// people makes the rows of users, groups and parcels, as of the last harvest.
func (b *builder) people() error {
	count := make(map[string]int)
	for _, gs := range b.groups {
		for _, g := range gs {
			count[g]++
		}
	}
	for _, name := range sorted(b.members) {
		u := b.members[name]
		var gs []string
		for _, g := range b.groups[name] {
			// Who is one of two is no more anonymous than by name.
			if b.anonymous && count[g] < 3 {
				g = "other"
			}
			if !slices.Contains(gs, g) {
				gs = append(gs, g)
			}
		}
		u.Groups = strings.Join(gs, " ")
		if err := b.add(u); err != nil {
			return err
		}
		for _, g := range gs {
			if err := b.add(groupRow{name, g}); err != nil {
				return err
			}
		}
	}
	for _, m := range b.last.Members {
		for _, p := range m.Parcels {
			if err := b.add(parcelRow{m.User, p}); err != nil {
				return err
			}
		}
	}
	return nil
}

// event makes the rows of an event: its own, of the version that it made, and
// of the session that it ends.
func (b *builder) event(e event.Event) error {
	name := e.User + "/" + e.Parcel
	life := b.lives[name]
	if err := b.add(eventRow{at(e.Time), life, e}); err != nil {
		return err
	}
	if e.Error != "" || e.User == "" {
		return nil
	}
	session := fmt.Sprint(name, " ", life, " ", e.Epoch)
	switch e.Op {
	case event.Lock:
		return b.begin(session, e, e.Parcel, life, e.Version)
	case event.Fork:
		_, to, _ := strings.Cut(e.To, "/")
		to = cmp.Or(to, e.To)
		l := b.lives[e.User+"/"+to]
		return b.begin(fmt.Sprint(e.User, "/", to, " ", l, " ", e.Epoch), e, to, l, 1)
	case event.Release:
		s := b.open[session]
		if s == nil {
			return nil // it was released before, or began before the study
		}
		delete(b.open, session)
		s.End, s.Forced, s.Seconds = e.Time, e.Forced, e.Time.Sub(s.Start).Seconds()
		return b.add(*s)
	case event.Commit, event.Rollback:
		// The same commit may have been asked for again.
		key := fmt.Sprint("version ", name, " ", life, " ", e.Version)
		if b.seen[key] {
			return nil
		}
		b.seen[key] = true
		if s := b.open[session]; s != nil && e.Op == event.Commit {
			s.Commits++
		} else if s != nil {
			s.Rollbacks++
		}
		return b.add(versionRow{at(e.Time), e.User, e.Parcel, life, e.Version, e.Time, e.Op, e.Parent, e.Epoch, e.Admin, e.Objects, e.Bytes, e.Memory, e.State})
	case event.ParcelDel, event.ParcelRename:
		b.lives[name]++
	}
	return nil
}

// begin begins a session; the same lock may have been asked for again.
func (b *builder) begin(key string, e event.Event, name string, life, version int) error {
	if b.seen["session "+key] {
		return nil
	}
	b.seen["session "+key] = true
	b.open[key] = &sessionRow{when: at(e.Time), User: e.User, Parcel: name, Life: life, Epoch: e.Epoch, Host: e.Host, From: e.From,
		Start: e.Time, Version: version}
	return nil
}

func (b *builder) report(k locksrv.Kept) error {
	r := k.Report
	if b.seen["report "+r.ID] {
		return nil
	}
	b.seen["report "+r.ID] = true
	if err := b.add(reportRow{at(k.Time), k.Time, k.User, k.Parcel, r}); err != nil {
		return err
	}
	for i, run := range r.Runs {
		n, w := i+1, at(run.Start)
		if err := b.add(runRow{w, r.ID, n, k.User, k.Parcel, r.Epoch, run}); err != nil {
			return err
		}
		for _, im := range run.Images {
			if err := b.add(activityRow{w, r.ID, n, k.User, im}); err != nil {
				return err
			}
		}
		for _, g := range run.Rungs {
			if err := b.add(rungRow{w, r.ID, n, k.User, g}); err != nil {
				return err
			}
		}
	}
	for _, im := range r.Sealed {
		if err := b.add(sealedRow{at(k.Time), r.ID, k.User, k.Parcel, r.Version, im}); err != nil {
			return err
		}
	}
	return nil
}

// Tables are the names of the database's tables.
func Tables() []string {
	var names []string
	for _, t := range tables {
		names = append(names, t.name)
	}
	return names
}
