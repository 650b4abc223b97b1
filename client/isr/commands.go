package main

import (
	"errors"
	"fmt"
	"strconv"
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
		Limit int64 `short:"b" name:"bwlimit" placeholder:"KB/S" help:"Transfer at most so many KiB a second."`
	}
	compressionFlag struct {
		Compression string `short:"C" name:"compression" placeholder:"PROFILE" enum:",auto,none,disabled,mild,moderate,painful" default:"" help:"How hard to compress: auto, none, mild, moderate or painful."`
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

// Validate is called by kong.
func (l limitFlag) Validate() error {
	if l.Limit < 0 {
		return fmt.Errorf("--bwlimit: %d: want KiB a second", l.Limit)
	}
	return nil
}

// up bounds what is sent, down what is fetched.
func (l limitFlag) up() remote.Limit   { return remote.Limit{Up: l.Limit << 10} }
func (l limitFlag) down() remote.Limit { return remote.Limit{Down: l.Limit << 10} }

// rollbackFlag is a version to go back to: a number, or a tag that an
// administrator gave it.
type rollbackFlag struct {
	Rollback string `short:"r" placeholder:"VERSION" help:"Make the head equal to this version first."`
}

// version is its number; 0 if there is none to go back to.
func (f rollbackFlag) version(a *app, cl *client.Client, name string) (int, error) {
	if f.Rollback == "" {
		return 0, nil
	}
	if n, err := strconv.Atoi(f.Rollback); err == nil && n > 0 {
		return n, nil
	}
	if err := parcel.CheckName(f.Rollback); err != nil || strings.Trim(f.Rollback, "0123456789") == "" {
		return 0, parcel.NewError(parcel.Usage, "option -r %s: want a version's number or its tag", f.Rollback)
	}
	n, err := cl.Tagged(a.ctx, name, f.Rollback)
	if errors.Is(err, parcel.ErrNoVersion) {
		return 0, parcel.NewError(parcel.NoVersion, "parcel %s: no version has the tag %s", name, f.Rollback).
			WithHint("isr ls -L 100 %s lists versions with their tags", name)
	}
	return n, err
}

type resumeCmd struct {
	parcelArg
	vmmFlags
	compressionFlag
	rollbackFlag
	Offline      bool `short:"d" name:"disconnected" help:"Do not touch the network."`
	NoFullscreen bool `short:"F" name:"no-fullscreen" help:"Show the guest in a window."`
	Dirtometer   bool `short:"D" name:"dirtometer" help:"Show what the guest does with its disk and memory."`
}

func (c *resumeCmd) Run(a *app) error {
	cl, err := a.openWith(remote.Limit{}, c.Compression)
	if err != nil {
		return err
	}
	if err := a.confirmDamaged(cl, c.Parcel); err != nil {
		return err
	}
	rollback, err := c.version(a, cl, c.Parcel)
	if err != nil {
		return err
	}
	o := client.ResumeOptions{VMM: c.VMM, Options: c.Options,
		Fullscreen: !c.NoFullscreen, Offline: c.Offline, Rollback: rollback}
	if c.Dirtometer || a.conf.Bool("dirtometer") && stdout.TTY {
		w := a.watch()
		defer w.stop()
		cl.UI, o.Watcher = w, w
	}
	if err := cl.Resume(a.ctx, c.Parcel, o); err != nil {
		return err
	}
	a.stands(cl, c.Parcel)
	return nil
}

// stands tells where a parcel stands after a command that changed that.
func (a *app) stands(cl *client.Client, name string) {
	if co, err := cl.Find(name); err == nil {
		a.Say("parcel %s: version %d, %s", name, co.State.Version, co.Describe())
	}
}

type checkinCmd struct {
	parcelArg
	limitFlag
	compressionFlag
	commentFlag
}

func (c *checkinCmd) Run(a *app) error {
	cl, err := a.openWith(c.up(), c.Compression)
	if err != nil {
		return err
	}
	done, err := cl.Checkin(a.ctx, c.Parcel, c.Comment)
	if err == nil {
		a.committed(c.Parcel, done, "; lock given back")
		a.report(cl)
	}
	return err
}

type syncCmd struct {
	parcelArg
	limitFlag
	compressionFlag
	commentFlag
}

func (c *syncCmd) Run(a *app) error {
	cl, err := a.openWith(c.up(), c.Compression)
	if err != nil {
		return err
	}
	done, err := cl.Sync(a.ctx, c.Parcel, c.Comment)
	if err == nil {
		a.committed(c.Parcel, done, "")
		a.report(cl)
	}
	return err
}

func (a *app) committed(name string, done client.Committed, more string) {
	if !done.New {
		a.Say("parcel %s: nothing changed since version %d%s", name, done.Version, more)
		return
	}
	a.Say("parcel %s: version %d, %s (%s) sent%s", name, done.Version, count(done.Objects, "object"), bytesText(done.Bytes), more)
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
	case err == nil && cl.IsLost(a.ctx, co):
		question = fmt.Sprintf("The server lost version %d of %s, which this host has; isr rescue %s saves it. Clean it all the same?", co.State.Version, c.Parcel, c.Parcel)
	case err == nil && !c.Force:
	case c.Force:
		question = fmt.Sprintf("The lock of %s will be broken.%s Clean it?", c.Parcel, cl.HolderText(a.ctx, c.Parcel))
	}
	if question != "" {
		if ok, _ := a.Confirm(question); !ok {
			return parcel.NewError(parcel.Failed, "parcel %s: not cleaned", c.Parcel).WithHint("answer y, or say --yes")
		}
	}
	if err := cl.Clean(a.ctx, c.Parcel, c.Force); err != nil {
		return err
	}
	if co != nil {
		a.Say("parcel %s: removed from this host", c.Parcel)
	}
	return nil
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
	vmmFlags
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
	if err := cl.Poweroff(a.ctx, c.Parcel, c.VMM, c.Options); err != nil {
		return err
	}
	if co.State.Memory != "" {
		a.stands(cl, c.Parcel)
	}
	return nil
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
	t := stdout.Table()
	for _, v := range values {
		t.Row(v.Name+" = "+v.Value, "# "+v.From)
	}
	t.Print()
	return nil
}

type keeperCmd struct {
	Parcel string `arg:""`
}

func (keeperCmd) Run(a *app) error { return client.Keeper() }

func when(t time.Time) string { return t.Local().Format("2006-01-02 15:04:05") }

// bytesText is a number of bytes for people.
func bytesText(n int64) string { return dirt.Bytes(float64(n)) }
