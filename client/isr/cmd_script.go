package main

import (
	"errors"
	"fmt"
	"slices"

	"isr/client/remote"
	"isr/store/parcel"
)

// The client's scripts of the 2004 pilot: links to this program. Each is a
// command of isr under another name, so that there is one way to do a thing.

// scripts are the pilot's names, and what each is here.
var scripts = map[string]script{
	"isr_get_parcel_names":  {words: []string{"names"}, optional: true, help: "Print the names of your parcels."},
	"isr_parcel_co":         {words: []string{"checkout"}, help: "Take a parcel's lock and get what it needs to run."},
	"isr_parcel_hoard":      {words: []string{"hoard"}, help: "Copy all of a parcel's disk to this host."},
	"isr_parcel_verify":     {words: []string{"checkp", "-c"}, help: "Compare what is here of a parcel with its keyring."},
	"isr_parcel_run":        {words: []string{"run"}, help: "Run a parcel that is checked out here."},
	"isr_parcel_checkpoint": {words: []string{"sync"}, help: "Make a version of a parcel on the server and keep its lock."},
	"isr_parcel_ci":         {words: []string{"checkin"}, help: "Make a version of a parcel on the server and give its lock back."},
	"isr_connect_lka":       {words: []string{"connect-lka"}, path: true, help: "Look for content in a directory before asking the network."},
}

type script struct {
	words    []string // of isr
	optional bool     // the parcel may be left out
	path     bool     // it is about a path, not a parcel
	help     string
}

// scriptFlags are the options that every script has.
type scriptFlags struct {
	Parcel  string      `placeholder:"NAME" help:"The parcel."`
	Locksrv string      `placeholder:"[LOGIN@]HOST[:PORT]" help:"Lock server."`
	User    string      `placeholder:"USERID" help:"ISR user; the login name if none is given."`
	Version versionFlag `help:"Print the version."`
}

// commandLine is the command line of isr that stands for args of the script.
func (sc script) commandLine(s *screen, name string, args []string) ([]string, error) {
	var flags struct {
		scriptFlags
	}
	var withPath struct {
		scriptFlags
		Path string `arg:"" help:"Where the objects are."`
	}
	var g any = &flags
	if sc.path {
		g = &withPath
	}
	parser, err := newParser(g, s, name, sc.help)
	if err != nil {
		return nil, err
	}
	if _, err := parser.Parse(args); err != nil {
		return nil, usageError(parser.Model, name, nil, err)
	}
	f := flags.scriptFlags
	if sc.path {
		f = withPath.scriptFlags
	}
	if f.Parcel == "" && !sc.optional && !sc.path {
		return nil, parcel.NewError(parcel.Usage, "--parcel is missing").WithHint("%s --parcel NAME; isr_get_parcel_names lists them", name)
	}
	words := slices.Clone(sc.words)
	for _, o := range []struct{ flag, value string }{{"--server=", f.Locksrv}, {"--user=", f.User}} {
		if o.value != "" {
			words = append(words, o.flag+o.value)
		}
	}
	words = append(words, "--")
	switch {
	case sc.path:
		words = append(words, withPath.Path)
	case f.Parcel != "":
		words = append(words, f.Parcel)
	}
	return words, nil
}

// namesCmd is isr_get_parcel_names: what a program can read without parsing.
type namesCmd struct {
	Parcel string `arg:"" optional:""`
}

func (c *namesCmd) Run(a *app) error {
	cl, err := a.open(remote.Limit{})
	if err != nil {
		return err
	}
	ls, err := cl.Ls(a.ctx, c.Parcel, 0)
	for _, l := range ls {
		fmt.Fprintln(stdout, parcel.Clean(l.Parcel))
	}
	return err
}

// runCmd is isr_parcel_run: resume, of what is checked out and nothing else.
type runCmd struct{ resumeCmd }

func (c *runCmd) Run(a *app) error {
	cl, err := a.open(remote.Limit{})
	if err != nil {
		return err
	}
	if _, err := cl.Find(c.Parcel); err != nil {
		if errors.Is(err, parcel.ErrNoParcel) {
			return parcel.NewError(parcel.NoParcel, "%v", err).WithHint("isr_parcel_co --parcel %s", c.Parcel)
		}
		return err
	}
	return c.resumeCmd.Run(a)
}
