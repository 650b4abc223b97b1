package main

import (
	"context"
	"fmt"
	"strings"

	"isr/locksrv/event"
	"isr/store"
	"isr/store/check"
	"isr/store/parcel"
	"isr/store/repair"
)

type repairCommand struct {
	User   string   `arg:"" optional:"" help:"Only the parcels of one user."`
	Parcel string   `arg:"" optional:"" help:"Only this one of them."`
	From   []string `help:"A directory that may have what is lacking: a copy of the realm, a parcel, a hoard, any with objects; may come more than once." placeholder:"PLACE" type:"path" sep:"none"`
	sure
	DryRun bool `short:"n" help:"Say what would be put back, and change nothing."`
	JSON   bool `name:"json" help:"Print an object a line."`
}

// maxTold is how many objects are named that were put back: of a directory
// that was lost there may be a hundred thousand.
const maxTold = 20

// mendingRow is what --json prints of a mending.
type mendingRow struct {
	User    string `json:"user"`
	Parcel  string `json:"parcel"`
	Version int    `json:"version,omitempty"`
	Object  string `json:"object,omitempty"`
	Mended  string `json:"mended"`
	From    string `json:"from,omitempty"`
	Bytes   int64  `json:"bytes,omitempty"`
}

func (c *repairCommand) Run(ctx context.Context, e *env) error {
	s, _, err := e.open()
	if err != nil {
		return err
	}
	stages := &stages{e: e}
	var declined error
	fetched, fetchedAll := e.counter("putting back objects")
	o := repair.Options{User: c.User, Parcel: c.Parcel, From: c.From, DryRun: c.DryRun, Progress: stages.of("reading"),
		Fetched: func(done, total int64) {
			stages.end()
			fetched(done, total)
		},
		Discard: func(user, name string, n int) bool {
			stages.end()
			err := e.confirm(c.Yes, "%s/%s: remove %s, damaged and needed by no version?", user, name, count(n, "object"))
			if err != nil {
				declined = err
			}
			return err == nil
		}}
	lines := e.rows()
	objects := 0
	run := func(ctx context.Context) (sum repair.Summary, err error) {
		defer fetchedAll()
		defer stages.end()
		sum, err = repair.Run(ctx, s, o, func(m repair.Mending) {
			if !c.JSON {
				if m.Tag != "" {
					objects++
				}
				if m.Tag == "" || objects <= maxTold {
					fmt.Fprintf(e.stdout, "%s: %s\n", c.did(), parcel.Clean(m.String()))
				}
				return
			}
			row := mendingRow{User: m.User, Parcel: m.Parcel, Version: m.Version, Mended: m.Msg, From: m.From, Bytes: m.Bytes}
			if m.Tag != "" {
				row.Object = m.Tag.String()
			}
			lines.Encode(row)
		}, func(p check.Problem) { e.tell(p, c.JSON) })
		if err != nil {
			return sum, err
		}
		if c.JSON {
			lines.Encode(sum)
		} else {
			if objects > maxTold {
				fmt.Fprintf(e.stdout, "%s: %s more; --json names them all\n", c.did(), count(objects-maxTold, "object"))
			}
			fmt.Fprintf(e.stdout, "%s: %s, %s", c.did(), count(sum.Mended, "thing"), store.SizeText(sum.Bytes))
			if sum.Removed > 0 {
				fmt.Fprintf(e.stdout, "; removed: %s", count(sum.Removed, "object"))
			}
			fmt.Fprintf(e.stdout, "\n%s\n", summary(sum.Left))
		}
		if sum.Left.Errors == 0 {
			return sum, nil
		}
		left := parcel.NewError(parcel.Damaged, "store: %s left", count(sum.Left.Errors, "error"))
		switch {
		case c.DryRun:
			left = parcel.NewError(parcel.Damaged, "store: %s, and nothing was done", count(sum.Left.Errors, "error"))
		case declined != nil:
			left = left.WithHint("--yes answers the question in scripts")
		case len(c.From) == 0:
			left = left.WithHint("--from names a place that may have what is lacking: a backup, a replica, a client's ~/.isr/hoard")
		default:
			left = left.WithHint("ask another place with --from; or a holder to check in, or isr_rollback to a version that is whole")
		}
		return sum, left
	}
	if c.DryRun {
		_, err := run(ctx)
		return err
	}
	what := &event.Event{Op: event.Repair, User: c.User, Parcel: c.Parcel}
	return e.actOn(ctx, s, what, func(ctx context.Context) error {
		sum, err := run(ctx)
		what.Objects, what.Bytes = sum.Mended, sum.Bytes
		what.What = fmt.Sprintf("from %s: %s left", strings.Join(c.From, ", "), count(sum.Left.Errors, "error"))
		return err
	})
}

func (c *repairCommand) did() string {
	if c.DryRun {
		return "would mend"
	}
	return "mended"
}
