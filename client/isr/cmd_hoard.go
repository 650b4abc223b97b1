package main

import (
	"fmt"

	"isr/client"
	"isr/client/remote"
	"isr/store/parcel"
)

// The commands of disconnected work: checkout -d, hoard, lshoard, rmhoard.

type checkoutCmd struct {
	parcelArg
	rollbackFlag
	Offline bool `short:"d" name:"disconnected" help:"Hoard all of it too, to run without a network."`
	Check   bool `short:"c" name:"checkstate" help:"With -d, read all that is hoarded and mend what is damaged."`
}

func (c *checkoutCmd) Run(a *app) error {
	if c.Check && !c.Offline {
		return parcel.NewError(parcel.Usage, "option -c: it checks what -d hoards").WithHint("isr checkout -d -c %s", c.Parcel)
	}
	cl, err := a.open(remote.Limit{})
	if err != nil {
		return err
	}
	rollback, err := c.version(a, cl, c.Parcel)
	if err != nil {
		return err
	}
	if _, err := cl.Find(c.Parcel); err == nil && rollback == 0 {
		a.Say("parcel %s: checked out here already", c.Parcel)
	}
	co, err := cl.Checkout(a.ctx, c.Parcel, client.CheckoutOptions{Rollback: rollback})
	if err != nil {
		return err
	}
	a.Say("parcel %s: version %d, %s", c.Parcel, co.State.Version, co.Describe())
	if c.Offline {
		done, err := cl.Hoard(a.ctx, c.Parcel, client.HoardOptions{Memory: true, Verify: c.Check})
		if err != nil {
			return err
		}
		a.hoarded(c.Parcel, done, c.Check)
		a.Say("parcel %s: it can run without a network: isr resume -d %s", c.Parcel, c.Parcel)
	}
	return nil
}

type hoardCmd struct {
	parcelArg
	limitFlag
	Offline bool `short:"d" name:"disconnected" help:"Hoard the memory image too, now and from now on."`
}

func (c *hoardCmd) Run(a *app) error {
	cl, err := a.open(c.down())
	if err != nil {
		return err
	}
	done, err := cl.Hoard(a.ctx, c.Parcel, client.HoardOptions{Memory: c.Offline})
	if err == nil {
		a.hoarded(c.Parcel, done, false)
	}
	return err
}

// hoarded tells what a hoard run did.
func (a *app) hoarded(name string, done client.Hoarded, checked bool) {
	what := "its disk"
	if done.Memory {
		what = "disk and memory"
	}
	a.Say("parcel %s: hoarded, %s of version %d: %s, %d of them (%s) fetched now",
		name, what, done.Version, count(done.Objects, "object"), done.Fetched, bytesText(done.Bytes))
	switch {
	case checked && done.Damaged == 0:
		a.Say("parcel %s: all that is hoarded was read, and is sound", name)
	case checked:
		a.Say("parcel %s: all that is hoarded was read, and what was damaged mended: %s", name, count(done.Damaged, "object"))
	}
}

type lshoardCmd struct {
	Long bool `short:"l" help:"Show UUIDs, servers and times too."`
	jsonFlag
}

func (c *lshoardCmd) Run(a *app) error {
	cl, err := a.open(remote.Limit{})
	if err != nil {
		return err
	}
	list, err := cl.HoardList(a.ctx)
	if err != nil && len(list.Parcels) == 0 {
		return err
	}
	if c.JSON {
		if perr := printJSON(list); perr != nil {
			return perr
		}
		return err
	}
	// Lines of 40 columns, as long as names and numbers are.
	for _, p := range list.Parcels {
		state := "complete"
		if !p.Complete {
			state = fmt.Sprintf("%s missing", count(p.Objects-p.Here, "object"))
		}
		fmt.Fprintf(stdout, "%s/%s version %d, %s\n", p.User, p.Parcel, p.Version, state)
		fmt.Fprintf(stdout, "  %d of %s, %s\n", p.Here, count(p.Objects, "object"), bytesText(p.Bytes))
		if p.Memory {
			fmt.Fprintf(stdout, "  disk %s, memory %s\n", bytesText(p.DiskOnly), bytesText(p.MemOnly))
		} else {
			fmt.Fprintf(stdout, "  disk only, its memory is not kept\n")
		}
		fmt.Fprintf(stdout, "  unique %s, shared %s\n", bytesText(p.Bytes-p.Shared), bytesText(p.Shared))
		if p.Checkout != "" {
			fmt.Fprintf(stdout, "  here: %s\n", p.Checkout)
		}
		if !c.Long {
			continue
		}
		fmt.Fprintf(stdout, "  uuid %s\n  server %s\n  since %s\n", p.UUID, p.Server, when(p.Pinned))
		if p.Completed != nil {
			fmt.Fprintf(stdout, "  complete %s\n", when(*p.Completed))
		} else {
			fmt.Fprintf(stdout, "  complete never\n")
		}
	}
	quota := "no quota"
	if list.Total.Quota > 0 {
		quota = "quota " + bytesText(list.Total.Quota)
	}
	fmt.Fprintf(stdout, "hoard: %s, %s, %s\n", count(list.Total.Objects, "object"), bytesText(list.Total.Bytes), quota)
	fmt.Fprintf(stdout, "  hoarded %s, the rest %s\n", bytesText(list.Total.Pinned), bytesText(list.Total.Unpinned))
	return err
}

type rmhoardCmd struct{ parcelArg }

func (c *rmhoardCmd) Run(a *app) error {
	cl, err := a.open(remote.Limit{})
	if err != nil {
		return err
	}
	// The configured server is no choice among parcels of one name.
	p, co, err := cl.FindHoarded(c.Parcel, a.g.Server, a.g.User)
	if err != nil {
		return err
	}
	if co != nil {
		ok, _ := a.Confirm(fmt.Sprintf("%s is checked out here: without its hoard it cannot run or be discarded without a network. Remove it?", p.Parcel))
		if !ok {
			return parcel.NewError(parcel.Failed, "parcel %s: its hoard is kept", p.Parcel).WithHint("answer y, or say --yes")
		}
	}
	freed, err := cl.RmHoard(a.ctx, p, co)
	if err == nil {
		a.Say("parcel %s: hoarded no more, %s (%s) removed", p.Parcel, count(freed.Objects, "object"), bytesText(freed.Bytes))
	}
	return err
}
