package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"isr/locksrv"
	"isr/locksrv/event"
	"isr/locksrv/study"
	"isr/locksrv/study/page"
	"isr/store"
	"isr/store/atomicfile"
	"isr/store/parcel"
)

type harvest struct {
	Dir       string   `arg:"" optional:"" help:"Where to; ROOT/study if it is not given." type:"path"`
	Anonymous bool     `help:"Hold pseudonyms there instead of names."`
	Import    []string `help:"File with answers of a survey, calls for support, or exits; may come more than once." placeholder:"FILE.csv" sep:"none"`
	JSON      bool     `name:"json" help:"Print JSON."`
}

func (c *harvest) Run(ctx context.Context, e *env) error {
	files := make([][]byte, len(c.Import)) // while they are root's to read
	for i, file := range c.Import {
		var err error
		if files[i], err = readBounded(file); err != nil {
			return err
		}
	}
	s, root, err := e.open()
	if err != nil {
		return err
	}
	dir := c.Dir
	if dir == "" {
		dir = filepath.Join(root, "study")
	}
	d, err := study.Open(dir)
	if err != nil {
		return err
	}
	var names *study.Names
	if c.Anonymous || d.Found() && d.Anonymous() {
		if names, err = study.LoadNames(keyFile(root)); err != nil {
			return err
		}
	}
	imported := 0
	var done study.Harvested
	err = e.act(ctx, s, event.Event{Op: event.Harvest}, func(ctx context.Context) error {
		for i, text := range files {
			n, err := d.Import(bytes.NewReader(text), c.Import[i], s, names)
			if err != nil {
				return err
			}
			imported += n
		}
		v := locksrv.NewService(s)
		progress, end := e.counter("harvest")
		defer end()
		done, err = d.Harvest(ctx, study.Source{Realm: s, Events: v.Events, Reports: v.ReportsDir(), Parcel: parcelState(s),
			Warn: e.warning, Progress: progress}, names, time.Now().UTC())
		return err
	})
	if err != nil {
		return err
	}
	if c.JSON {
		return e.rows().Encode(struct {
			study.Harvested
			Imported int `json:"imported"`
		}{done, imported})
	}
	fmt.Fprintf(e.stderr, "isr-locksrv: %s: %d events and %d reports are new, %d records were imported; %d of %d users take part\n",
		done.Dir, done.Events, done.Reports, imported, done.Agreed, done.Users)
	if done.Removed > 0 {
		fmt.Fprintf(e.stderr, "isr-locksrv: %s: %d lines of users who no longer take part were removed\n", done.Dir, done.Removed)
	}
	return nil
}

// keyFile is the key of the pseudonyms: beside the realm, not in what is handed
// out.
func keyFile(root string) string { return filepath.Join(root, "study.key") }

// maxImport bounds a file of records, bytes.
const maxImport = 16 << 20

func readBounded(file string) ([]byte, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxImport+1))
	if err == nil && len(text) > maxImport {
		err = parcel.NewError(parcel.Usage, "%s: over %d bytes", file, maxImport)
	}
	return text, err
}

// parcelState is what there is of a parcel, for a harvest.
func parcelState(s *store.Store) func(user, name string) (study.ParcelState, error) {
	return func(user, name string) (is study.ParcelState, err error) {
		p, err := s.Parcel(user, name)
		if err != nil {
			return is, err
		}
		cfg, err := p.Config()
		if err != nil {
			return is, err
		}
		held, err := p.Holder()
		if err != nil {
			return is, err
		}
		all, err := p.Versions(cfg.Version)
		if err != nil {
			return is, err
		}
		is = study.ParcelState{Parcel: name, UUID: cfg.UUID, Created: cfg.Created, VMM: cfg.VMM, Disk: cfg.DiskSize, Memory: cfg.MemSize,
			Versions: len(all), Held: held != nil}
		for _, v := range all {
			is.Objects += v.Objects
			is.Bytes += v.Bytes
		}
		return is, nil
	}
}

type report struct {
	DB        string `name:"db" help:"Directory that was harvested into; ROOT/study if it is not given." placeholder:"DIR" type:"path"`
	Out       string `help:"File to write; without it, standard output." placeholder:"FILE.html" type:"path"`
	From      string `help:"First day." placeholder:"YYYY-MM-DD"`
	To        string `help:"Last day." placeholder:"YYYY-MM-DD"`
	Anonymous bool   `help:"Show pseudonyms instead of names."`
}

func (c *report) Run(ctx context.Context, e *env) error {
	sel, err := c.selection()
	if err != nil {
		return err
	}
	o := page.Options{From: sel.From, To: sel.To}
	dir := c.DB
	s, root, err := e.open()
	switch {
	case err == nil:
		if o.Realm = s.Realm(); dir == "" {
			dir = filepath.Join(root, "study")
		}
	case dir == "":
		return err
	}
	if c.Out == "" && e.stdout.TTY {
		return parcel.NewError(parcel.Usage, "report: standard output is a terminal").WithHint("--out FILE.html says where the page goes")
	}
	d, err := study.Open(dir)
	if err != nil {
		return err
	}
	if !d.Found() || d.Last().IsZero() {
		return parcel.NewError(parcel.Failed, "%s: nothing was harvested there", dir).WithHint("isr-locksrv harvest does it")
	}
	o.Made, o.Anonymous = d.Last(), d.Anonymous()
	if c.Anonymous && !d.Anonymous() {
		if s == nil {
			return parcel.NewError(parcel.Failed, "%s: the key of its pseudonyms is the realm's, which is not here", dir).
				WithHint("--root says where the realm is")
		}
		if sel.Names, err = study.LoadNames(keyFile(root)); err != nil {
			return err
		}
		o.Anonymous = true
	}
	file := filepath.Join(dir, study.Database)
	if sel != (study.Selection{}) {
		temp, err := os.MkdirTemp("", "isr-study-*")
		if err != nil {
			return err
		}
		defer os.RemoveAll(temp)
		file = filepath.Join(temp, study.Database)
		if err := d.Build(ctx, file, sel); err != nil {
			return err
		}
	}
	db, err := study.OpenDB(file)
	if errors.Is(err, fs.ErrNotExist) {
		return parcel.NewError(parcel.Failed, "%s: its database is gone", dir).WithHint("isr-locksrv harvest makes it again")
	}
	if err != nil {
		return err
	}
	defer db.Close()
	if c.Out == "" {
		return page.Write(ctx, e.stdout.Bytes(), db, o)
	}
	out, err := atomicfile.Create(c.Out, 0o600)
	if err != nil {
		return err
	}
	defer out.Abort()
	if err := page.Write(ctx, out, db, o); err != nil {
		return err
	}
	return out.Commit()
}

// selection reads the days.
func (c *report) selection() (sel study.Selection, err error) {
	for _, d := range []struct {
		name, text string
		into       *time.Time
	}{{"--from", c.From, &sel.From}, {"--to", c.To, &sel.To}} {
		if d.text == "" {
			continue
		}
		if *d.into, err = time.Parse(time.DateOnly, d.text); err != nil {
			return sel, parcel.NewError(parcel.Usage, "option %s: %s: want YYYY-MM-DD", d.name, parcel.Clean(d.text))
		}
	}
	if !sel.To.IsZero() && sel.To.Before(sel.From) {
		return sel, parcel.NewError(parcel.Usage, "option --to: is before --from")
	}
	return sel, nil
}
