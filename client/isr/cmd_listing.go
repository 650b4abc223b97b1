package main

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"isr/client"
	"isr/client/remote"
	"isr/store/parcel"
)

// The commands that show: ls and stat.

type lsCmd struct {
	Parcel string `arg:"" optional:"" help:"Name of the parcel, or UUID of one that is here; all of them if none is given."`
	Long   bool   `short:"l" help:"Show the newest versions too."`
	Count  int    `short:"L" name:"longvers" placeholder:"N" help:"Show the N newest versions too."`
	jsonFlag
}

func (c *lsCmd) Run(a *app) error {
	if c.Count < 0 {
		return parcel.NewError(parcel.Usage, "option -L %d: want a number from 0", c.Count)
	}
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
	if err != nil && len(ls) == 0 {
		return err
	}
	if err != nil {
		a.Warn("this is the listing of %s, %s old", when(*ls[0].AsOf), age(time.Since(*ls[0].AsOf)))
	}
	var quota *client.Quota
	if err == nil {
		quota = cl.UserQuota(a.ctx, c.Parcel)
		for i := range ls {
			ls[i].Quota = quota
		}
	}
	if c.JSON {
		return errors.Join(err, printJSON(ls))
	}
	if len(ls) > 0 {
		fmt.Fprintf(stdout, "Parcels on %s\n", ls[0].Server)
	}
	w := stdout.Table()
	for _, l := range ls {
		switch {
		case l.Error != "":
			w.Rowf("%s\tdamaged\t%s", l.Parcel, l.Error)
		case l.Held != nil:
			w.Rowf("%s\tacquired\t%s\t%s\t%s", l.Parcel, l.Held.User, l.Held.Host, when(l.Held.Since))
			w.Rowf("\tcontact %s", when(l.Held.Contact))
		case l.Released != nil:
			w.Rowf("%s\treleased\t%s\t%s\t%s", l.Parcel, l.Released.User, l.Released.Host, when(l.Released.Since))
		default:
			w.Rowf("%s\treleased\tnever checked out", l.Parcel)
		}
		if l.Held == nil && l.Released != nil && l.Released.BrokenBy != "" {
			w.Rowf("\tlock broken by %s", because(l.Released.BrokenBy, l.Released.Why))
		}
		if l.Here != "" {
			w.Rowf("\there: %s", l.Here)
		}
		if l.Hoarded != nil {
			w.Rowf("\thoarded: version %d%s", l.Hoarded.Version, andMemory(l.Hoarded.Memory))
		}
		if c.Count == 0 {
			continue
		}
		w.Rowf("\tuuid %s", l.UUID)
		w.Rowf("\tvmm %s, memory %s, disk %s", l.VMM, bytesText(l.MemSize), bytesText(l.DiskSize))
		for _, v := range l.Versions {
			w.Rowf("\t%06d\t%s\t%s\t%s\t%s", v.Version, bytesText(v.Bytes), when(v.Time), v.Host, marks(v.Tags, v.Pin)+v.Comment)
		}
		if l.Total != nil {
			w.Rowf("\tin all\t%s\tin %s", bytesText(l.Total.Bytes), count(l.Total.Versions, "version"))
		}
	}
	w.Print()
	if quota != nil {
		fmt.Fprintf(stdout, "Quota: %s of %s used, %s\n", bytesText(quota.Used), bytesText(quota.Limit), percent(quota.Used, quota.Limit))
	}
	return err
}

// marks are a version's tags and that it is pinned, in front of its comment.
func marks(tags []string, pin string) string {
	if pin != "" {
		tags = append(slices.Clone(tags), "pinned")
	}
	if len(tags) == 0 {
		return ""
	}
	return "[" + strings.Join(tags, ", ") + "] "
}

// because is who, with the reason if there is one.
func because(who, why string) string {
	if why == "" {
		return who
	}
	return who + ": " + why
}

// andMemory says whether memory is kept beside the disk.
func andMemory(memory bool) string {
	if memory {
		return ", memory too"
	}
	return ", disk only"
}

// age is how long ago something was, to one unit.
func age(d time.Duration) string {
	for _, u := range []struct {
		unit time.Duration
		name string
	}{{24 * time.Hour, "days"}, {time.Hour, "hours"}, {time.Minute, "minutes"}} {
		if d >= 2*u.unit {
			return fmt.Sprintf("%d %s", d/u.unit, u.name)
		}
	}
	return fmt.Sprintf("%d seconds", max(0, d/time.Second))
}

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
	switch h := st.Hoarding; {
	case h == nil:
		fmt.Fprintf(stdout, "hoarded: no\n")
	case h.Missing == 0 && h.Version == st.Version:
		fmt.Fprintf(stdout, "hoarded: all%s\n", andMemory(h.Memory))
	case h.Missing == 0:
		fmt.Fprintf(stdout, "hoarded: version %d%s\n", h.Version, andMemory(h.Memory))
	default:
		fmt.Fprintf(stdout, "hoarded: version %d%s\n  %d of %d objects are missing\n", h.Version, andMemory(h.Memory), h.Missing, h.Objects)
	}
	// Lines of 40 columns: fetched and hoarded in per cent of what is not zeros.
	for _, name := range []string{"disk", "memory"} {
		im, ok := st.Images[name]
		if !ok {
			continue
		}
		fmt.Fprintf(stdout, "%s: %s, %d chunks\n", name, bytesText(im.Total.Bytes), im.Total.Chunks)
		for _, row := range []struct {
			what  string
			is    client.Amount
			whole int64 // chunks
		}{{"fetched", im.Fetched, im.Stored.Chunks}, {"modified", im.Modified, im.Total.Chunks}, {"hoarded", im.Hoarded, im.Stored.Chunks}} {
			fmt.Fprintf(stdout, "  %-8s %10s %8d %5s\n", row.what, bytesText(row.is.Bytes), row.is.Chunks, percent(row.is.Chunks, row.whole))
		}
	}
	fmt.Fprintf(stdout, "network: %s in, %s out\n", bytesText(st.Network.In), bytesText(st.Network.Out))
	printRungs(st.Rungs)
	return nil
}

// percent is a share, rounded towards neither end: 100 % is all, 0 % nothing.
func percent(n, of int64) string {
	switch {
	case of == 0 || n == 0:
		return "0 %"
	case n >= of:
		return "100 %"
	}
	return fmt.Sprintf("%d %%", max(1, min(99, n*100/of)))
}
