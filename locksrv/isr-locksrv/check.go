package main

import (
	"context"
	"fmt"

	"isr/locksrv"
	"isr/locksrv/event"
	"isr/locksrv/proto"
	"isr/store"
	"isr/store/check"
	"isr/store/parcel"
)

type checkCommand struct {
	User    string  `arg:"" optional:"" help:"Only the parcels of one user."`
	Parcel  string  `arg:"" optional:"" help:"Only this one of them."`
	Content bool    `short:"c" help:"Read and hash every object too."`
	Sample  *string `help:"Read and hash a part of the objects: 5%, another part each time, or 3/20, the third of twenty." placeholder:"PART"`
	JSON    bool    `name:"json" help:"Print an object a line."`
}

func (c *checkCommand) Run(ctx context.Context, e *env) error {
	o := check.Options{User: c.User, Parcel: c.Parcel, Content: c.Content || c.Sample != nil}
	depth := "structure"
	switch {
	case c.Content && c.Sample != nil:
		return parcel.NewError(parcel.Usage, "-c reads every object, --sample a part of them: want one of the two")
	case c.Content:
		depth = "every byte"
	case c.Sample != nil:
		var err error
		if o.Sample, err = check.ParseSample(*c.Sample); err != nil {
			return err
		}
		depth = "sample of " + *c.Sample
	}
	s, _, err := e.open()
	if err != nil {
		return err
	}
	var sum check.Summary
	ctx = e.reading(ctx)
	what := &event.Event{Op: event.Check, User: c.User, Parcel: c.Parcel, What: depth}
	return e.actOn(ctx, s, what, func(ctx context.Context) error {
		stages := &stages{e: e}
		defer stages.end()
		o.Progress = stages.of("reading")
		var err error
		if sum, err = check.Run(ctx, s, o, func(p check.Problem) { e.tell(p, c.JSON) }); err != nil {
			return err
		}
		stages.end()
		what.Objects, what.Bytes = sum.Read, sum.ReadBytes
		what.What = depth + ": " + summary(sum)
		if c.JSON {
			e.rows().Encode(sum)
		} else {
			fmt.Fprintln(e.stdout, summary(sum))
		}
		if sum.Errors > 0 {
			return parcel.NewError(parcel.Damaged, "store: %s", count(sum.Errors, "error")).
				WithHint("isr-locksrv repair puts back what another place still has")
		}
		return nil
	})
}

// tell prints a problem of the store.
func (e *env) tell(p check.Problem, asJSON bool) {
	if asJSON {
		e.rows().Encode(problemRow{p.User, p.Parcel, locksrv.FindingOf(p)})
	} else {
		fmt.Fprintln(e.stdout, locksrv.ProblemLine(p))
	}
}

// problemRow is what --json prints of a problem.
type problemRow struct {
	User   string `json:"user,omitempty"`
	Parcel string `json:"parcel,omitempty"`
	proto.Finding
}

// summary is what was looked at, and what was found, on one line.
func summary(s check.Summary) string {
	line := fmt.Sprintf("%s, %s, %s, %s: %s, %s", count(s.Parcels, "parcel"), count(s.Versions, "version"),
		count(s.Objects, "object"), store.SizeText(s.Bytes), count(s.Errors, "error"), count(s.Notes, "note"))
	if s.Read > 0 && s.Bytes > 0 {
		line += fmt.Sprintf("; read %s, %.3g%% of the bytes", count(s.Read, "object"), 100*float64(s.ReadBytes)/float64(s.Bytes))
	}
	return line
}
