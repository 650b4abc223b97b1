package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"isr/client"
	"isr/client/conf"
	"isr/client/remote"
	"isr/store/parcel"
)

// The commands of look-aside places.

type lkaCmd struct {
	Place  string `arg:"" optional:"" help:"A directory, or a URL; those in force are listed if none is given."`
	Remove bool   `help:"Ask that place no longer."`
	List   bool   `help:"List the places in force."`
	jsonFlag
}

func (c *lkaCmd) Run(a *app) error {
	switch {
	case c.Place == "" && c.Remove:
		return parcel.NewError(parcel.Usage, "place: none given").WithHint("say which: isr connect-lka lists them")
	case c.Place != "" && c.List, c.List && c.Remove:
		return parcel.NewError(parcel.Usage, "option --list: not together with a place")
	case c.Place == "":
		return a.listLKA(c.JSON)
	case c.JSON:
		return parcel.NewError(parcel.Usage, "option --json: only with --list")
	case c.Remove:
		return a.disconnectLKA(c.Place)
	}
	return a.connectLKA(c.Place)
}

// connectLKA has place asked before the network from now on. It is what the
// pilot's isr_connect_lka does.
func (a *app) connectLKA(place string) error {
	place, cfg, err := a.placeAndConfig(place)
	if err != nil {
		return err
	}
	cl, err := a.open(remote.Limit{})
	if err != nil {
		return err
	}
	info, err := cl.Survey(a.ctx, place)
	if err != nil {
		return err
	}
	if from := whereSet(cfg, place); from != "" {
		a.Say("%s: is asked already (%s)", info.Place, from)
	} else if err := conf.Add(userHome(), userFile(), "lookaside", place); err != nil {
		return err
	} else {
		a.Say("%s: will be asked before the network", info.Place)
	}
	a.describe(info)
	if cfg.Bool("disable_lookaside") {
		a.Warn("no place is asked while disable_lookaside is set")
	}
	return nil
}

// describe says what a place looks like.
func (a *app) describe(info client.PlaceInfo) {
	switch {
	case info.Error != "":
		a.Warn("%s: does not answer: %s", info.Place, info.Error)
	case !info.There:
		a.Warn("%s: is not there now; it will be asked whenever it is", info.Place)
	case info.Counted && info.Objects == 0:
		a.Warn("%s: has no objects; isr export-lka fills a directory", info.Place)
	case info.Counted:
		a.Say("%s: %s, %s", info.Place, count(info.Objects, "object"), bytesText(info.Bytes))
	default:
		a.Say("%s: answers", info.Place)
	}
}

func (a *app) disconnectLKA(place string) error {
	place, _, err := a.placeAndConfig(place)
	if err != nil {
		return err
	}
	n, err := conf.Remove(userHome(), userFile(), "lookaside", place)
	if err != nil {
		return err
	}
	a.conf = nil // it has changed
	cfg, err := a.configuration()
	if err != nil {
		return err
	}
	switch from := whereSet(cfg, place); {
	case from != "":
		return parcel.NewError(parcel.Failed, "%s: is asked yet (%s)", place, from).
			WithHint("an empty lookaside = in ~/.openisrrc forgets those before it")
	case n == 0:
		return parcel.NewError(parcel.Failed, "%s: was not asked", place).WithHint("isr connect-lka lists those that are")
	}
	a.Say("%s: is asked no longer", place)
	return nil
}

// listedLKA is a place in a listing.
type listedLKA struct {
	client.PlaceInfo
	From string `json:"from"`
}

func (a *app) listLKA(asJSON bool) error {
	cfg, err := a.configuration()
	if err != nil {
		return err
	}
	cl, err := a.open(remote.Limit{})
	if err != nil {
		return err
	}
	list := []listedLKA{}
	places := cfg.List("lookaside")
	for i, v := range cfg.All() {
		if v.Name != "lookaside" || v.Value == "" {
			continue
		}
		place := places[0]
		places = places[1:]
		info, err := cl.Survey(a.ctx, place)
		if a.ctx.Err() != nil {
			return err
		}
		if err != nil {
			info = client.PlaceInfo{Place: fmt.Sprintf("place %d", i), Error: err.Error()}
		}
		list = append(list, listedLKA{info, v.From})
	}
	if asJSON {
		return printJSON(list)
	}
	w := stdout.Table()
	for _, l := range list {
		what := "answers"
		switch {
		case l.Error != "":
			what = l.Error
		case !l.There:
			what = "not there"
		case l.Counted:
			what = fmt.Sprintf("%s, %s", count(l.Objects, "object"), bytesText(l.Bytes))
		}
		w.Rowf("%s\t%s\t# %s", l.Place, what, l.From)
	}
	w.Print()
	return nil
}

// placeAndConfig is place as a configuration has it, and the one in force.
func (a *app) placeAndConfig(place string) (string, *conf.Config, error) {
	if !strings.Contains(place, "://") {
		abs, err := filepath.Abs(place)
		if err != nil {
			return "", nil, err
		}
		place = abs
	}
	cfg, err := a.configuration()
	return place, cfg, err
}

// whereSet is where the configuration has place, "" if it has not.
func whereSet(cfg *conf.Config, place string) string {
	places := cfg.List("lookaside")
	for _, v := range cfg.All() {
		if v.Name != "lookaside" || len(places) == 0 {
			continue
		}
		if places[0] == place {
			return v.From
		}
		places = places[1:]
	}
	return ""
}

func userHome() string {
	home, _ := os.UserHomeDir() // configuration has asked for it already
	return home
}

// userFile is the configuration file of the user, the last of all.
func userFile() string {
	files := conf.Files(userHome())
	return files[len(files)-1]
}

type exportCmd struct {
	parcelArg
	Dir string `arg:"" help:"Directory to write the objects to."`
	limitFlag
	Offline bool `short:"d" name:"disconnected" help:"Write the objects of the memory image too."`
	Content bool `short:"c" name:"checkstate" help:"Verify the content of what is there already."`
	jsonFlag
}

func (c *exportCmd) Run(a *app) error {
	dir, err := filepath.Abs(c.Dir)
	if err != nil {
		return err
	}
	cl, err := a.open(c.down())
	if err != nil {
		return err
	}
	done, err := cl.ExportLKA(a.ctx, c.Parcel, dir, client.ExportOptions{Memory: c.Offline, Content: c.Content})
	if err != nil {
		if a.ctx.Err() != nil {
			return context.Canceled
		}
		return err
	}
	if c.JSON {
		return printJSON(done)
	}
	a.Say("parcel %s: version %d is at %s, %d objects, %d of them (%s) written now", done.Parcel, done.Version, done.Dir,
		done.Objects, done.Written, bytesText(done.Bytes))
	return nil
}

// printRungs shows what each rung of the ladder had.
func printRungs(rungs []client.RungStat) {
	if len(rungs) == 0 {
		return
	}
	w := stdout.Table("from", "objects", "bytes", "missed", "corrupt", "errors")
	for _, r := range rungs {
		w.Rowf("%s\t%d\t%s\t%d\t%d\t%d", r.Name, r.Hits, bytesText(r.Bytes), r.Misses-r.Corrupt, r.Corrupt, r.Errors)
	}
	w.Print()
}
