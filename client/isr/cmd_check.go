package main

import (
	"fmt"

	"isr/client"
	"isr/client/dirt"
	"isr/client/hoard"
	"isr/client/remote"
	"isr/store/parcel"
)

// contentFlag is shared by the checks.
type contentFlag struct {
	Content bool `short:"c" name:"checkstate" help:"Look at the content of everything, which takes long."`
}

type checkpCmd struct {
	parcelArg
	contentFlag
	jsonFlag
	Remote  bool `short:"e" name:"remote" help:"Check the server's copy, not what is here."`
	Version int  `short:"r" name:"rollback" placeholder:"VERSION" help:"With -e, this version; the newest if none is given."`
	Splice  bool `short:"Y" name:"splice" help:"Take damaged chunks of the disk back to the last checkout or sync."`
}

func (c *checkpCmd) Run(a *app) error {
	switch {
	case c.Splice && c.Remote:
		return parcel.NewError(parcel.Usage, "option -Y: it mends what is here, and -e looks at the server").WithHint("leave one of them out")
	case c.Version != 0 && !c.Remote:
		return parcel.NewError(parcel.Usage, "option -r: only the server has other versions").WithHint("say -e too")
	case c.Version < 0:
		return parcel.NewError(parcel.Usage, "version %d: want a number from 1", c.Version)
	}
	cl, err := a.open(remote.Limit{})
	if err != nil {
		return err
	}
	var found *client.Checked
	if c.Remote {
		found, err = cl.CheckServer(a.ctx, c.Parcel, c.Version, c.Content)
	} else {
		found, err = cl.CheckLocal(a.ctx, c.Parcel, client.CheckOptions{Content: c.Content, Splice: c.Splice})
	}
	if err != nil {
		return err
	}
	if err := a.printChecked(c.JSON, found, found.Findings, found.Errors); err != nil {
		return err
	}
	what := fmt.Sprintf("parcel %s: version %d on %s", found.Parcel, found.Version, found.Where)
	if !c.Remote {
		what = fmt.Sprintf("parcel %s on %s", found.Parcel, found.Where)
	}
	if found.Errors > 0 {
		return parcel.NewError(parcel.Damaged, "%s: %s", what, count(found.Errors, "fault")).WithHint("what to do about each is said with it")
	}
	depth := "its state is sound; -c looks at its content"
	if c.Content || c.Splice {
		depth = "state and content are sound"
	}
	if c.Remote {
		a.Say("%s: %s", what, depth)
		return nil
	}
	a.Say("%s: %s: %s changed, %s of version %d here, %d more on the server", what, depth,
		count(int(found.Chunks), "chunk"), count(int(found.Objects), "object"), found.Version, found.Absent)
	return nil
}

// printChecked shows what a check found: all of it as JSON, or its findings,
// which -q wants only if some of them are faults.
func (a *app) printChecked(asJSON bool, all any, findings []client.Finding, faults int) error {
	switch {
	case asJSON:
		return printJSON(all)
	case a.quiet && faults == 0:
		return nil
	}
	for _, f := range findings {
		fmt.Fprintln(stdout, f)
	}
	return nil
}

// count is "1 chunk" or "3 chunks".
func count[N int | int64](n N, what string) string {
	if n != 1 {
		what += "s"
	}
	return fmt.Sprintf("%d %s", n, what)
}

type checkhoardCmd struct {
	contentFlag
	jsonFlag
	Compact bool `short:"p" name:"compact" help:"Remove what no hoarded and no checked-out parcel needs."`
}

func (c *checkhoardCmd) Run(a *app) error {
	cl, err := a.open(remote.Limit{})
	if err != nil {
		return err
	}
	found, err := cl.CheckHoard(a.ctx, c.Content)
	if err != nil {
		return err
	}
	if err := a.printChecked(c.JSON, found, found.Findings, found.Errors); err != nil {
		return err
	}
	if c.Compact {
		refused := false
		freed, err := cl.CompactHoard(a.ctx, func(f hoard.Freed) bool {
			ok, _ := a.Confirm(fmt.Sprintf("%s (%s) of the hoard are needed by no hoarded and no checked-out parcel. Remove them?",
				count(int(f.Objects), "object"), dirt.Bytes(float64(f.Bytes))))
			refused = !ok
			return ok
		})
		switch {
		case err != nil:
			return err
		case refused:
			return parcel.NewError(parcel.Failed, "hoard: not compacted").WithHint("answer y, or say --yes")
		}
		a.Say("hoard: %s (%s) removed that nothing needs", count(freed.Objects, "object"), dirt.Bytes(float64(freed.Bytes)))
		found.Objects -= freed.Objects
		found.Bytes -= freed.Bytes
	}
	if found.Errors > 0 {
		return parcel.NewError(parcel.Damaged, "hoard: %s", count(found.Errors, "fault")).WithHint("what to do about each is said with it")
	}
	a.Say("hoard: sound: %s, %s", count(found.Objects, "object"), dirt.Bytes(float64(found.Bytes)))
	return nil
}

type rescueCmd struct {
	parcelArg
	NewName string `arg:"" optional:"" help:"Name of the new parcel; NAME-rescued if none is given."`
	limitFlag
}

func (c *rescueCmd) Run(a *app) error {
	cl, err := a.open(c.up())
	if err != nil {
		return err
	}
	done, err := cl.Rescue(a.ctx, c.Parcel, c.NewName)
	if err != nil {
		return err
	}
	a.committed(done.Parcel, done.Committed, "; "+done.Comment)
	return nil
}

// confirmDamaged asks before a damaged parcel is run.
func (a *app) confirmDamaged(cl *client.Client, name string) error {
	co, err := cl.Find(name)
	if err != nil || co.State.Damaged == "" {
		return nil // whoever goes on says what is wrong
	}
	a.Warn("parcel %s: damaged: %s", name, co.State.Damaged)
	if ok, _ := a.Confirm("Its guest may find its disk inconsistent. Resume it, to copy out what is needed?"); !ok {
		return parcel.NewError(parcel.Failed, "parcel %s: not resumed", name).WithHint("answer y, or say --yes")
	}
	return nil
}
