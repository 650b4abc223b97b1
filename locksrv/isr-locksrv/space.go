package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"isr/locksrv/event"
	"isr/store"
	"isr/store/du"
	"isr/store/gc"
	"isr/store/keep"
	"isr/store/parcel"
	"isr/store/prune"
)

// some names all parcels, one user's, or one.
type some struct {
	User   string `arg:"" optional:"" help:"Only the parcels of one user."`
	Parcel string `arg:"" optional:"" help:"Only this one of them."`
}

// keepRules are the rules of a prune.
type keepRules struct {
	Keep        int       `help:"Keep the newest, so many." placeholder:"N"`
	KeepDaily   int       `help:"Keep the newest of each of so many days that have one." placeholder:"N"`
	KeepWeekly  int       `help:"The same for weeks." placeholder:"N"`
	KeepMonthly int       `help:"The same for months." placeholder:"N"`
	KeepYearly  int       `help:"The same for years." placeholder:"N"`
	KeepWithin  keep.Span `help:"Keep all that are no older than this, seen from the newest: 30d, 1y6m." placeholder:"TIME"`
}

func (r keepRules) rules() (keep.Rules, error) {
	k := keep.Rules{Last: r.Keep, Daily: r.KeepDaily, Weekly: r.KeepWeekly, Monthly: r.KeepMonthly, Yearly: r.KeepYearly, Within: r.KeepWithin}
	return k, k.Check()
}

// errNoRule refuses a prune without a rule.
func errNoRule(command string) error {
	return parcel.NewError(parcel.Usage, "%s: without a rule", command).WithHint("--keep 4 keeps the newest four; --keep-daily and others add to it")
}

// keptText says whether something goes, or by which rules it is kept.
func keptText(kept []string) string {
	if len(kept) == 0 {
		return "goes"
	}
	return "kept: " + strings.Join(kept, ", ")
}

type parcelPrune struct {
	some
	All bool `help:"Every parcel, or every one of the user."`
	keepRules
	sure
	DryRun bool `short:"n" help:"Say what would go, and change nothing."`
	JSON   bool `name:"json" help:"Print an object a line."`
}

// pruning is one parcel on its way to fewer versions.
type pruning struct {
	p    *store.Parcel
	plan []prune.Plan
	gone []int
}

// planned is a version as prune lists it.
type planned struct {
	User    string    `json:"user"`
	Parcel  string    `json:"parcel"`
	Version int       `json:"version"`
	Time    time.Time `json:"time"`
	Kept    []string  `json:"kept,omitempty"`
	Goes    bool      `json:"goes"`
}

// pruned is what became of a parcel.
type pruned struct {
	User    string `json:"user"`
	Parcel  string `json:"parcel"`
	Pruned  []int  `json:"pruned"`
	Objects int64  `json:"objects"`
	Freed   int64  `json:"freed"`
}

func (c *parcelPrune) Run(ctx context.Context, e *env) error {
	rules, err := c.rules()
	if err != nil {
		return err
	}
	switch {
	case rules.Empty():
		return errNoRule("parcel prune")
	case c.All && c.Parcel != "":
		return parcel.NewError(parcel.Usage, "--all with a parcel")
	case !c.All && c.Parcel == "":
		return parcel.NewError(parcel.Usage, "prune without a parcel").WithHint("--all prunes every one")
	}
	s, _, err := e.open()
	if err != nil {
		return err
	}
	var failed worst
	work, err := c.plan(s, rules, e, &failed)
	if err != nil {
		return err
	}
	c.list(e, work)
	work = slices.DeleteFunc(work, func(w pruning) bool { return len(w.gone) == 0 })
	if len(work) == 0 {
		if !c.JSON {
			fmt.Fprintln(e.stdout, "nothing to prune")
		}
		return failed.err
	}
	if c.DryRun || !c.Yes {
		question, err := c.question(ctx, s, rules, work)
		if err != nil {
			return err
		}
		if c.DryRun {
			if !c.JSON {
				fmt.Fprintln(e.stdout, "would "+question)
			}
			return failed.err
		}
		if err := e.confirm(c.Yes, "%s?", question); err != nil {
			return err
		}
	}
	report, done := e.eachParcel("prune", len(work))
	defer done()
	for _, w := range work {
		if err := c.prune(ctx, e, s, w); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			failed.add(e, w.p, err)
		}
		report()
	}
	return failed.err
}

// plan looks at the parcels that were named.
func (c *parcelPrune) plan(s *store.Store, rules keep.Rules, e *env, failed *worst) ([]pruning, error) {
	parcels, err := chosen(s, c.some, func(user, name string, err error) { failed.named(e, user, name, err) })
	if err != nil {
		return nil, err
	}
	var work []pruning
	for _, p := range parcels {
		plan, err := prune.Choose(p, rules)
		if err != nil {
			if !c.All {
				return nil, err
			}
			failed.add(e, p, err)
			continue
		}
		work = append(work, pruning{p, plan, prune.Prunable(plan)})
	}
	return work, nil
}

// list prints what is to stay and what to go; of all parcels, those only of
// which something goes.
func (c *parcelPrune) list(e *env, work []pruning) {
	table := e.stdout.Table()
	lines := e.rows()
	for _, w := range work {
		if c.All && len(w.gone) == 0 && !c.JSON {
			continue
		}
		for _, v := range w.plan {
			if c.JSON {
				lines.Encode(planned{w.p.User(), w.p.Name(), v.Version, v.Time, v.Kept, len(v.Kept) == 0})
				continue
			}
			table.Row(w.p.User(), w.p.Name(), fmt.Sprint("version ", v.Version), timeText(v.Time), keptText(v.Kept))
		}
	}
	table.Print()
}

// question says what is about to be done.
func (c *parcelPrune) question(ctx context.Context, s *store.Store, rules keep.Rules, work []pruning) (string, error) {
	var frees int64
	o := du.Options{User: c.User, Parcel: c.Parcel, Keep: rules}
	err := du.Run(ctx, s, o, func(du.Disk) {}, func(user string, sum du.Sum) {
		if user == c.User {
			frees = sum.Frees
		}
	})
	if err != nil {
		return "", err
	}
	if len(work) == 1 {
		w := work[0]
		return fmt.Sprintf("prune %s of %s/%s and keep %d, which frees %s", versionsText(w.gone), w.p.User(), w.p.Name(), len(w.plan)-len(w.gone), store.SizeText(frees)), nil
	}
	n := 0
	for _, w := range work {
		n += len(w.gone)
	}
	return fmt.Sprintf("prune %s of %s, which frees %s", count(n, "version"), count(len(work), "parcel"), store.SizeText(frees)), nil
}

func (c *parcelPrune) prune(ctx context.Context, e *env, s *store.Store, w pruning) error {
	ev := event.Event{Op: event.ParcelPrune, User: w.p.User(), Parcel: w.p.Name(), What: versionsText(w.gone)}
	return e.actOn(ctx, s, &ev, func(ctx context.Context) error {
		gone, got, err := prune.Run(ctx, w.p, w.gone)
		ev.Objects, ev.Bytes = got.Objects, got.Freed
		if len(gone) == 0 {
			return err
		}
		ev.What = versionsText(gone)
		if c.JSON {
			e.rows().Encode(pruned{w.p.User(), w.p.Name(), gone, got.Objects, got.Freed})
			return err
		}
		fmt.Fprintf(e.stdout, "%s/%s: pruned %s: %s\n", w.p.User(), w.p.Name(), ev.What, removed(got.Objects, got.Freed))
		return err
	})
}

// chosen are the parcels that the command line names. Of all that somebody has,
// one that is damaged is told to bad, and does not keep the others from it.
func chosen(s *store.Store, o some, bad func(user, name string, err error)) ([]*store.Parcel, error) {
	users := []string{o.User}
	if o.User == "" {
		var err error
		if users, err = s.Users(); err != nil {
			return nil, err
		}
	}
	var all []*store.Parcel
	for _, user := range users {
		names := []string{o.Parcel}
		if o.Parcel == "" {
			var err error
			names, err = s.Parcels(user)
			if errors.Is(err, parcel.ErrDamaged) && o.User == "" {
				bad(user, "", err)
				continue
			}
			if err != nil {
				return nil, err
			}
		}
		for _, name := range names {
			p, err := s.Parcel(user, name)
			switch {
			case err == nil:
				all = append(all, p)
			case o.Parcel != "":
				return nil, err
			case errors.Is(err, parcel.ErrNoParcel): // it was removed meanwhile
			case errors.Is(err, parcel.ErrDamaged):
				bad(user, name, err)
			default:
				return nil, err
			}
		}
	}
	return all, nil
}

// worst remembers the first error of many parcels; the others go on.
type worst struct{ err error }

func (w *worst) add(e *env, p *store.Parcel, err error) { w.named(e, p.User(), p.Name(), err) }

func (w *worst) named(e *env, user, name string, err error) {
	err = explain(err)
	where, text := user+"/"+name, strings.TrimPrefix(err.Error(), "parcel "+name+": ")
	if name == "" { // all of hers
		where, text = user, strings.TrimPrefix(text, "user "+user+": ")
	}
	told := parcel.NewError(parcel.KindOf(err), "%s: %s", where, text)
	if of := new(parcel.Error); errors.As(err, &of) {
		told.Hint = of.Hint
	}
	status := complain(e.stderr, programName, told)
	if w.err == nil {
		w.err = status_(status)
	}
}

type gcCommand struct {
	some
	DryRun bool `short:"n" help:"Say what would be removed, and change nothing."`
	JSON   bool `name:"json" help:"Print an object a line."`
}

func (c *gcCommand) Run(ctx context.Context, e *env) error {
	s, _, err := e.open()
	if err != nil {
		return err
	}
	parcels, err := chosen(s, c.some, func(string, string, error) {}) // of which is told below
	if err != nil {
		return err
	}
	var failed worst
	var all []gc.Collected
	ev := event.Event{Op: event.GC, User: c.User, Parcel: c.Parcel}
	collect := func(ctx context.Context) error {
		report, done := e.eachParcel("gc", len(parcels))
		defer done()
		err := gc.Run(ctx, s, gc.Options{User: c.User, Parcel: c.Parcel, DryRun: c.DryRun}, func(got gc.Collected) {
			all = append(all, got)
			ev.Objects += got.Objects
			ev.Bytes += got.Freed
			report()
		})
		return err
	}
	if c.DryRun {
		err = collect(ctx)
	} else {
		err = e.actOn(ctx, s, &ev, collect)
	}
	// What was done is told, however it ended.
	slices.SortFunc(all, func(a, b gc.Collected) int {
		return cmp.Or(strings.Compare(a.User, b.User), strings.Compare(a.Parcel, b.Parcel))
	})
	lines := e.rows()
	var sum gc.Collected
	parcelsSeen := 0
	for _, got := range all {
		if got.Parcel != "" { // else it is a user, of whom none could be told
			parcelsSeen++
		}
		sum.Objects, sum.Freed = sum.Objects+got.Objects, sum.Freed+got.Freed
		switch {
		case c.JSON:
			lines.Encode(struct {
				gc.Collected
				Error string `json:"error,omitempty"`
			}{got, errorText(got.Error)})
		case got.Objects > 0:
			fmt.Fprintf(e.stdout, "%s/%s: %s\n", got.User, got.Parcel, removed(got.Objects, got.Freed))
		}
		if got.Error != nil {
			failed.named(e, got.User, got.Parcel, got.Error)
		}
	}
	if !c.JSON {
		would := ""
		if c.DryRun {
			would = "would be "
		}
		fmt.Fprintf(e.stdout, "%s: %s%s\n", count(parcelsSeen, "parcel"), would, removed(sum.Objects, sum.Freed))
	}
	if err != nil {
		return err
	}
	return failed.err
}

// removed says what a collection did.
func removed(objects, freed int64) string {
	return fmt.Sprintf("%s removed, %s freed", count(objects, "object"), store.SizeText(freed))
}

type duCommand struct {
	some
	keepRules
	Summary bool `short:"s" help:"Print users and the total only."`
	JSON    bool `name:"json" help:"Print an object a line, sizes in bytes."`
}

func (c *duCommand) Run(ctx context.Context, e *env) error {
	rules, err := c.rules()
	if err != nil {
		return err
	}
	s, _, err := e.open()
	if err != nil {
		return err
	}
	parcels, err := chosen(s, c.some, func(string, string, error) {}) // of which is told below
	if err != nil {
		return err
	}
	ctx = e.reading(ctx)
	var failed worst
	table := e.stdout.Table()
	table.Right = true
	lines := e.rows()
	// Numbers first, as du(1) has it: names may be long.
	row := func(name string, cells ...any) {
		if rules.Empty() {
			cells = cells[:len(cells)-1]
		}
		var line []string
		for _, cell := range cells {
			if n, ok := cell.(int64); ok {
				cell = store.SizeText(n)
			}
			line = append(line, fmt.Sprint(cell))
		}
		table.Row(append(line, name)...)
	}
	if !c.JSON {
		row("PARCEL", "VERSIONS", "LOGICAL", "DATA", "UNIQUE", "OWN", "SHARED", "GARBAGE", "FREES")
	}
	report, done := e.eachParcel("du", len(parcels))
	err = du.Run(ctx, s, du.Options{User: c.User, Parcel: c.Parcel, Keep: rules}, func(d du.Disk) {
		report()
		switch {
		case c.Summary:
		case c.JSON:
			lines.Encode(struct {
				du.Disk
				Error string `json:"error,omitempty"`
			}{d, errorText(d.Error)})
		case d.Parcel == "":
		default:
			row(d.User+"/"+d.Parcel, len(d.Versions), d.Logical, d.Data, d.Unique, d.Own, d.Shared, d.Garbage, d.Frees)
			if c.Parcel == "" {
				break
			}
			for _, v := range d.Versions {
				name := fmt.Sprint("  version ", v.Version)
				if !rules.Empty() {
					name += "  " + keptText(v.Kept)
				}
				row(name, "", "", "", v.Only, "", "", "", "")
			}
		}
		if d.Error != nil {
			failed.named(e, d.User, d.Parcel, d.Error)
		}
	}, func(user string, sum du.Sum) {
		switch {
		case c.Parcel != "":
		case c.JSON:
			lines.Encode(struct {
				User string `json:"user,omitempty"`
				Sum  du.Sum `json:"sum"`
			}{user, sum})
		case user == "" || c.Summary || sum.Parcels > 1:
			row(cmp.Or(user, "total"), sum.Versions, sum.Logical, sum.Data, sum.Alone, "", sum.Disk-sum.Alone, "", sum.Frees)
		}
	})
	done()
	if perr := table.Print(); err == nil {
		err = perr
	}
	if err != nil {
		return err
	}
	return failed.err
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return parcel.Clean(err.Error())
}

// versionsText is "version 3" or "versions 1-3,5" for numbers that ascend.
func versionsText(vs []int) string {
	var b strings.Builder
	for i := 0; i < len(vs); {
		end := i
		for end+1 < len(vs) && vs[end+1] == vs[end]+1 {
			end++
		}
		if i > 0 {
			b.WriteByte(',')
		}
		fmt.Fprint(&b, vs[i])
		if end > i {
			fmt.Fprintf(&b, "-%d", vs[end])
		}
		i = end + 1
	}
	if len(vs) == 1 {
		return "version " + b.String()
	}
	return "versions " + b.String()
}
