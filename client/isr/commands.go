package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/alecthomas/kong"

	"isr/client"
	"isr/client/conf"
	"isr/client/dirt"
	"isr/client/remote"
	"isr/client/vmm"
	"isr/store/parcel"
)

// The flags that several commands share.
type (
	parcelArg struct {
		Parcel string `arg:"" help:"Name or UUID of the parcel."`
	}
	limitFlag struct {
		Limit int64 `short:"b" name:"bwlimit" placeholder:"KB/S" help:"Send and fetch at most so many KiB a second."`
	}
	jsonFlag struct {
		JSON bool `name:"json" help:"Print JSON."`
	}
	commentFlag struct {
		Comment string `name:"comment" placeholder:"TEXT" help:"What to remember the version by."`
	}
	vmmFlags struct {
		VMM     string            `short:"m" name:"vmm" placeholder:"VMM" help:"Another VMM than the parcel's."`
		Options map[string]string `short:"o" name:"vmmopt" mapsep:"," placeholder:"KEY=VALUE" help:"Options for the VMM."`
	}
)

func (l limitFlag) limit() remote.Limit { return remote.Limit{Up: l.Limit << 10, Down: l.Limit << 10} }

type checkoutCmd struct {
	parcelArg
	Rollback int  `short:"r" placeholder:"VERSION" help:"Make the head equal to this version first."`
	Offline  bool `short:"d" name:"disconnected" help:"Hoard all of it too, to run without a network."`
}

func (c *checkoutCmd) Run(a *app) error {
	cl, err := a.open(remote.Limit{})
	if err != nil {
		return err
	}
	if _, err := cl.Find(c.Parcel); err == nil {
		a.Say("parcel %s: checked out here already", c.Parcel)
	}
	co, err := cl.Checkout(a.ctx, c.Parcel, client.CheckoutOptions{Rollback: c.Rollback})
	if err != nil {
		return err
	}
	a.Say("parcel %s: version %d, %s", c.Parcel, co.State.Version, co.Describe())
	if c.Offline {
		done, err := cl.Hoard(a.ctx, c.Parcel, true)
		if err != nil {
			return err
		}
		a.Say("parcel %s: hoarded, %d objects; it can run without a network: isr resume -d %s", c.Parcel, done.Objects, c.Parcel)
	}
	return nil
}

type resumeCmd struct {
	parcelArg
	vmmFlags
	Rollback     int  `short:"r" placeholder:"VERSION" help:"Make the head equal to this version first."`
	Offline      bool `short:"d" name:"disconnected" help:"Do not touch the network."`
	NoFullscreen bool `short:"F" name:"no-fullscreen" help:"Show the guest in a window."`
	Dirtometer   bool `short:"D" name:"dirtometer" help:"Show what the guest does with its disk and memory."`
}

func (c *resumeCmd) Run(a *app) error {
	cl, err := a.open(remote.Limit{})
	if err != nil {
		return err
	}
	if err := a.confirmDamaged(cl, c.Parcel); err != nil {
		return err
	}
	o := client.ResumeOptions{VMM: c.VMM, Options: c.Options,
		Fullscreen: !c.NoFullscreen, Offline: c.Offline, Rollback: c.Rollback}
	if c.Dirtometer || a.conf.Bool("dirtometer") && stdout.tty {
		w := a.watch()
		defer w.stop()
		cl.UI, o.Watcher = w, w
	}
	return cl.Resume(a.ctx, c.Parcel, o)
}

type checkinCmd struct {
	parcelArg
	limitFlag
	commentFlag
}

func (c *checkinCmd) Run(a *app) error {
	cl, err := a.open(c.limit())
	if err != nil {
		return err
	}
	done, err := cl.Checkin(a.ctx, c.Parcel, c.Comment)
	if err == nil {
		a.committed(c.Parcel, done, "; lock given back")
	}
	return err
}

type syncCmd struct {
	parcelArg
	limitFlag
	commentFlag
}

func (c *syncCmd) Run(a *app) error {
	cl, err := a.open(c.limit())
	if err != nil {
		return err
	}
	done, err := cl.Sync(a.ctx, c.Parcel, c.Comment)
	if err == nil {
		a.committed(c.Parcel, done, "")
	}
	return err
}

func (a *app) committed(name string, done client.Committed, more string) {
	if !done.New {
		a.Say("parcel %s: nothing changed since version %d%s", name, done.Version, more)
		return
	}
	a.Say("parcel %s: version %d, %d objects (%s) sent%s", name, done.Version, done.Objects, bytesText(done.Bytes), more)
}

type cleanCmd struct {
	parcelArg
	Force bool `short:"f" help:"Break the lock, whichever host holds it."`
}

func (c *cleanCmd) Run(a *app) error {
	cl, err := a.open(remote.Limit{})
	if err != nil {
		return err
	}
	question := ""
	co, err := cl.Find(c.Parcel)
	switch {
	case err == nil && co.State.Modified:
		question = fmt.Sprintf("What changed in %s on this host since version %d will be lost. Clean it?", c.Parcel, co.State.Version)
	case err == nil && !c.Force:
	case c.Force:
		question = fmt.Sprintf("The lock of %s will be broken.%s Clean it?", c.Parcel, cl.HolderText(a.ctx, c.Parcel))
	}
	if question != "" {
		if ok, _ := a.Confirm(question); !ok {
			return parcel.NewError(parcel.Failed, "parcel %s: not cleaned", c.Parcel).WithHint("answer y, or say --yes")
		}
	}
	return cl.Clean(a.ctx, c.Parcel, c.Force)
}

type discardCmd struct{ parcelArg }

func (c *discardCmd) Run(a *app) error {
	cl, err := a.open(remote.Limit{})
	if err != nil {
		return err
	}
	co, err := cl.Find(c.Parcel)
	if err != nil {
		return err
	}
	if co.State.Modified {
		ok, _ := a.Confirm(fmt.Sprintf("What changed in %s since version %d will be lost. Discard it?", c.Parcel, co.State.Version))
		if !ok {
			return parcel.NewError(parcel.Failed, "parcel %s: not discarded", c.Parcel).WithHint("answer y, or say --yes")
		}
	}
	if err := cl.Discard(a.ctx, c.Parcel); err != nil {
		return err
	}
	a.Say("parcel %s: as version %d again", c.Parcel, co.State.Version)
	return nil
}

type poweroffCmd struct {
	parcelArg
	VMM string `short:"m" name:"vmm" placeholder:"VMM" help:"The memory image of this VMM."`
}

func (c *poweroffCmd) Run(a *app) error {
	cl, err := a.open(remote.Limit{})
	if err != nil {
		return err
	}
	co, err := cl.Find(c.Parcel)
	if err != nil {
		return err
	}
	if co.State.Memory != "" {
		ok, _ := a.Confirm(fmt.Sprintf("The memory of %s will be deleted, its programs with it. Power it off?", c.Parcel))
		if !ok {
			return parcel.NewError(parcel.Failed, "parcel %s: not powered off", c.Parcel).WithHint("answer y, or say --yes")
		}
	}
	return cl.Poweroff(a.ctx, c.Parcel, c.VMM)
}

type hoardCmd struct {
	parcelArg
	limitFlag
	Offline bool `short:"d" name:"disconnected" help:"Hoard the memory image too."`
}

func (c *hoardCmd) Run(a *app) error {
	cl, err := a.open(c.limit())
	if err != nil {
		return err
	}
	done, err := cl.Hoard(a.ctx, c.Parcel, c.Offline)
	if err == nil {
		a.Say("parcel %s: hoarded, %d objects, %d of them (%s) fetched now", c.Parcel, done.Objects, done.Fetched, bytesText(done.Bytes))
	}
	return err
}

type uuidCmd struct{ parcelArg }

func (c *uuidCmd) Run(a *app) error {
	cl, err := a.open(remote.Limit{})
	if err != nil {
		return err
	}
	co, err := cl.Find(c.Parcel)
	if err == nil {
		fmt.Fprintln(stdout, co.State.UUID)
	}
	return err
}

type versionCmd struct{}

func (versionCmd) Run(a *app) error {
	fmt.Fprintf(stdout, "isr %s\nvmm: %s\n", version(), strings.Join(vmm.List(), " "))
	return nil
}

type helpCmd struct {
	Command []string `arg:"" optional:"" help:"Command to explain."`
}

func (c *helpCmd) Run(a *app, parser *kong.Kong) error {
	trace, err := kong.Trace(parser, c.Command)
	if err != nil {
		return err
	}
	if trace.Error != nil {
		return usageError(parser.Model, "isr", trace, trace.Error)
	}
	return trace.PrintUsage(false)
}

type configCmd struct {
	Name string `arg:"" optional:"" help:"Variable; all of them if none is given."`
	jsonFlag
}

func (c *configCmd) Run(a *app) error {
	cfg, err := a.configuration()
	if err != nil {
		return err
	}
	var values []conf.Value
	for _, v := range cfg.All() {
		if c.Name == "" || v.Name == c.Name {
			values = append(values, v)
		}
	}
	switch {
	case len(values) == 0:
		return parcel.NewError(parcel.Usage, "variable %s: there is none", c.Name).WithHint("isr config lists them, isr.conf(5) explains them")
	case c.JSON:
		return printJSON(values)
	case c.Name != "":
		for _, v := range values {
			fmt.Fprintln(stdout, v.Value)
		}
		return nil
	}
	var t table
	for _, v := range values {
		t.row(v.Name+" = "+v.Value, "# "+v.From)
	}
	t.print()
	return nil
}

type keeperCmd struct {
	Parcel string `arg:""`
}

func (keeperCmd) Run(a *app) error { return client.Keeper() }

type lsCmd struct {
	Parcel string `arg:"" optional:"" help:"Name of the parcel; all of them if none is given."`
	Long   bool   `short:"l" help:"Show the newest versions too."`
	Count  int    `short:"L" name:"longvers" placeholder:"N" help:"Show the N newest versions too."`
	jsonFlag
}

func (c *lsCmd) Run(a *app) error {
	cl, err := a.open(remote.Limit{})
	if err != nil {
		return err
	}
	if c.Long && c.Count == 0 {
		cfg, err := a.configuration()
		if err != nil {
			return err
		}
		c.Count = int(cfg.Count("ls_versions"))
	}
	ls, err := cl.Ls(a.ctx, c.Parcel, c.Count)
	if err != nil {
		return err
	}
	if c.JSON {
		return printJSON(ls)
	}
	if len(ls) > 0 {
		fmt.Fprintf(stdout, "Parcels on %s\n", ls[0].Server)
	}
	var t table
	for _, l := range ls {
		switch {
		case l.Error != "":
			t.rowf("%s\tdamaged\t%s", l.Parcel, l.Error)
		case l.Held != nil:
			t.rowf("%s\tacquired\t%s\t%s\t%s\tcontact %s", l.Parcel, l.Held.User, l.Held.Host, when(l.Held.Since), when(l.Held.Contact))
		case l.Released != nil:
			t.rowf("%s\treleased\t%s\t%s\t%s", l.Parcel, l.Released.User, l.Released.Host, when(l.Released.Since))
		default:
			t.rowf("%s\treleased\tnever checked out", l.Parcel)
		}
		if l.Here != "" {
			t.rowf("\there: %s", l.Here)
		}
		if c.Count == 0 {
			continue
		}
		t.rowf("\tuuid %s\tvmm %s\tmemory %s\tdisk %s", l.UUID, l.VMM, bytesText(l.MemSize), bytesText(l.DiskSize))
		for _, v := range l.Versions {
			t.rowf("\t%06d\t%s\t%s\t%s\t%s", v.Version, bytesText(v.Bytes), when(v.Time), v.Host, v.Comment)
		}
	}
	t.print()
	return nil
}

func when(t time.Time) string { return t.Local().Format("2006-01-02 15:04:05") }

// bytesText is a number of bytes for people.
func bytesText(n int64) string { return dirt.Bytes(float64(n)) }

type statCmd struct {
	parcelArg
	jsonFlag
}

func (c *statCmd) Run(a *app) error {
	cl, err := a.open(remote.Limit{})
	if err != nil {
		return err
	}
	st, err := cl.Stat(a.ctx, c.Parcel)
	if err != nil {
		return err
	}
	if c.JSON {
		return printJSON(st)
	}
	fmt.Fprintf(stdout, "%s: version %d, %s\n", st.Parcel, st.Version, st.State)
	t := table{heads: []string{"", "total", "fetched", "modified", "hoarded"}, right: true}
	for _, name := range []string{"disk", "memory"} {
		im, ok := st.Images[name]
		if !ok {
			continue
		}
		t.row(name, bytesText(im.Total.Bytes), bytesText(im.Fetched.Bytes), bytesText(im.Modified.Bytes), bytesText(im.Hoarded.Bytes))
		t.row("chunks", fmt.Sprint(im.Total.Chunks), fmt.Sprint(im.Fetched.Chunks), fmt.Sprint(im.Modified.Chunks),
			fmt.Sprintf("%d of %d", im.Hoarded.Chunks, im.Stored.Chunks))
	}
	t.print()
	fmt.Fprintf(stdout, "network: %s in, %s out\n", bytesText(st.Network.In), bytesText(st.Network.Out))
	printRungs(st.Rungs)
	return nil
}
