package client

import (
	"context"
	"errors"
	"fmt"

	"isr/client/fusefs"
	"isr/client/vmm"
	"isr/store/parcel"
	"isr/store/seal"
)

// recover puts right what a dead keeper left: its mount, its VMM, and a
// memory image that no longer goes with the disk. What the guest flushed is
// in the overlay and stays.
func (co *Checkout) recover(ctx context.Context) error {
	if co.State.Status != Running {
		return co.tidy()
	}
	co.clearRuntime(ctx)
	// The record was kept true while it ran: what it says of memory and
	// modification held at the moment of the kill.
	st := &co.State
	st.Status, st.Mount = CheckedOut, ""
	if st.Modified {
		st.Status = Suspended
	}
	if err := co.save(); err != nil {
		return err
	}
	switch {
	case !st.Modified:
		co.client.UI.Warn("parcel %s: its keeper died; nothing had changed, it is as checked out", st.Parcel)
	case st.Memory != "":
		co.client.UI.Warn("parcel %s: its keeper died before the guest went on; it is as suspended", st.Parcel)
	default:
		co.client.UI.Warn("parcel %s: its keeper died while it ran; its disk is kept as the guest last flushed it, its memory is lost, and it will boot", st.Parcel)
	}
	return co.tidy()
}

// clearRuntime ends what a dead keeper left behind outside the checkout.
func (co *Checkout) clearRuntime(ctx context.Context) {
	rt, err := co.runtime()
	if err != nil {
		return
	}
	// Any driver may have run it: the record does not say, and one that did
	// not has nothing to clean.
	for _, name := range vmm.List() {
		d, err := vmm.Lookup(name)
		if err != nil {
			continue
		}
		if err := d.Cleanup(ctx, co.machine(rt, nil)); err != nil {
			co.client.UI.Warn("parcel %s: %v", co.State.Parcel, err)
		}
	}
	if fusefs.Stale(rt.mount) {
		if err := fusefs.Recover(rt.mount); err != nil {
			co.client.UI.Warn("parcel %s: mount %s: %v", co.State.Parcel, rt.mount, err)
		}
	}
	rt.remove()
}

// Discard goes back to the pristine version: what changed here since checkout
// or sync is given up. It needs no network.
func (c *Client) Discard(ctx context.Context, name string) error {
	co, err := c.enter(ctx, name)
	if err != nil {
		return err
	}
	defer co.letGo()
	if co.State.Status == Releasing {
		return parcel.NewError(parcel.Failed, "parcel %s: its checkin was interrupted", name).
			WithHint("run isr checkin %s again", name)
	}
	if err := co.unlock(ctx); err != nil {
		return err
	}
	if st := &co.State; !st.base.IsNil() {
		return parcel.NewError(parcel.Failed, "parcel %s: its rescue was interrupted, and version %d on the server is not what is here", name, st.Version).
			WithHint("run isr rescue %s again, or give it up: isr clean %s", st.Rescue.From, name)
	}
	h, err := c.hoard()
	if err != nil {
		return err
	}
	root, err := co.root(ctx, co.State.pristine, c.ladder(nil, h, nil))
	if err != nil {
		return err
	}
	st := &co.State
	if st.Status == Staged {
		c.UI.Warn("parcel %s: its sync was interrupted: if the server has made a version of it, that stays (isr ls -l %s)", name, name)
	}
	st.Status, st.Modified, st.Damaged, st.staged = CheckedOut, false, "", seal.Ref{}
	st.Memory, st.Requires = root.Suspended, root.Requires
	if err := co.save(); err != nil {
		return err
	}
	return co.tidy()
}

// Clean takes a parcel off this host and gives its lock back, without saving
// anything. With force the lock is broken, whoever holds it.
func (c *Client) Clean(ctx context.Context, name string, force bool) error {
	co, err := c.Find(name)
	if errors.Is(err, parcel.ErrNoParcel) && force {
		srv, err := c.defaultServer()
		if err != nil {
			return err
		}
		was, err := srv.Release(ctx, name, "", true)
		if err != nil {
			return err
		}
		if was != nil && was.Host != "" {
			c.UI.Say("parcel %s: lock of %s is broken", name, was)
		}
		return nil
	}
	if errors.Is(err, parcel.ErrNoParcel) {
		return parcel.NewError(parcel.NoParcel, "%s", err).WithHint("isr ls %s shows who holds it, isr clean -f %s breaks the lock", name, name)
	}
	if err != nil {
		return err
	}
	if err := co.seize(); err != nil {
		return err
	}
	defer co.letGo()
	if co.State.Status == Running {
		co.clearRuntime(ctx)
	}
	if co.State.Status == Acquiring && co.nonceText() == "" {
		// The lock may have been given to us and the answer lost: the same
		// acquisition gets it again, or tells that it is another's.
		srv, err := c.server(co.State.Server, co.State.User)
		if err != nil {
			return err
		}
		l, err := srv.Acquire(ctx, name, c.Host, co.State.Acquisition)
		switch {
		case err == nil:
			if err := co.keepLock(l); err != nil {
				return err
			}
		case errors.Is(err, parcel.ErrLocked) && !force, errors.Is(err, parcel.ErrNoParcel):
			return co.remove()
		case !errors.Is(err, parcel.ErrLocked):
			return err
		}
	}
	co.State.Status = Releasing
	if err := co.save(); err != nil {
		return err
	}
	if err := co.release(ctx, force); err != nil {
		return fmt.Errorf("parcel %s: lock not given back: %w", name, err)
	}
	return nil
}

// Poweroff deletes the memory image: the next resume boots.
//
// options are for its driver.
func (c *Client) Poweroff(ctx context.Context, name, driver string, options map[string]string) error {
	co, err := c.enter(ctx, name)
	if err != nil {
		return err
	}
	defer co.letGo()
	st := &co.State
	if st.Status == Releasing {
		return parcel.NewError(parcel.Failed, "parcel %s: its checkin was interrupted", name).
			WithHint("run isr checkin %s again", name)
	}
	if st.Memory == "" {
		c.UI.Say("parcel %s: powered off already", name)
		return nil
	}
	if driver != "" && driver != st.Memory {
		return parcel.NewError(parcel.Usage, "parcel %s: its memory image is of %s, not of %s", name, st.Memory, driver)
	}
	if err := co.unlock(ctx); err != nil {
		return err
	}
	had := st.Memory
	d, err := vmm.Lookup(had)
	if err != nil {
		return driverError(name, err)
	}
	o := &ResumeOptions{VMM: had, Options: options}
	if len(options) > 0 {
		// Of what a driver says of a machine, only that it does not know an
		// option matters to one that is not to run.
		if _, err := d.Info(ctx, co.machine(runtime{}, o)); errors.Is(err, vmm.ErrOption) {
			return driverError(name, err)
		}
	}
	st.Status, st.Modified, st.Memory, st.Requires, st.staged = Suspended, true, "", nil, seal.Ref{}
	if err := co.save(); err != nil {
		return err
	}
	if err := co.resetOverlay("memory"); err != nil {
		return err
	}
	return co.dropMemory(ctx, d, o)
}

// dropMemory lets the driver delete its part of the memory image from the cfg
// archive. The record says already that there is none, so an interruption
// leaves nothing but dead weight.
func (co *Checkout) dropMemory(ctx context.Context, d vmm.Driver, o *ResumeOptions) error {
	rt, err := co.makeRuntime()
	if err != nil {
		return err
	}
	defer rt.remove()
	h, err := co.client.hoard()
	if err != nil {
		return err
	}
	g := co.client.ladder(co.local(), h, nil)
	root, err := co.root(ctx, co.State.pristine, g)
	if err != nil {
		return err
	}
	// A cfg archive that is not on this host is of the version that was
	// running: what it holds beside the memory image can be made again.
	if err := co.unpackCfg(ctx, rt.cfg, root, g); err != nil && !errors.Is(err, parcel.ErrNoObject) {
		return err
	}
	m := co.machine(rt, o)
	m.Suspended = d.Name()
	if err := d.Poweroff(ctx, m); err != nil {
		return err
	}
	return co.packCfg(rt.cfg)
}
