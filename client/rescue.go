package client

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"

	"isr/client/image"
	"isr/client/remote"
	"isr/client/wrap"
	"isr/store/atomicfile"
	"isr/store/keyring"
	"isr/store/parcel"
	"isr/store/seal"
)

// Rescue is a rescue that was begun. It is in the record before anything
// happens, and until all of it is done, so that it may be killed at any
// instant and run again.
type Rescue struct {
	From        string // the parcel whose checkout this was
	Name        string // the parcel that it becomes
	Acquisition string // what that one's lock is asked for with
	Reason      string // why it was rescued
	Comment     string // what its version is remembered by
}

// Rescued is what a rescue did.
type Rescued struct {
	Committed
	Parcel  string // the new one
	Comment string
}

// maxNames bounds how many names are tried for a parcel that was given none.
const maxNames = 100

// Rescue makes a new parcel of a checkout that cannot be checked in: its lock
// was taken, the server lost the version that it was made from, or it is
// damaged. On the server the new parcel begins as a copy of the version that
// was pristine here, or of the newest if that was lost; the checkout becomes
// its checkout, less what is damaged, and what changed since, or what of the
// lost version the server lacks, is committed as its next version, with a
// comment that says where it came from. The old parcel stays as it is,
// and if its lock is still held here it goes back. newName "" is NAME-rescued.
func (c *Client) Rescue(ctx context.Context, name, newName string) (Rescued, error) {
	if newName != "" {
		if err := parcel.CheckName(newName); err != nil {
			return Rescued{}, fmt.Errorf("parcel: %w", err)
		}
	}
	co, err := c.findRescued(name)
	if err != nil {
		return Rescued{}, err
	}
	if err := co.enter(ctx); err != nil {
		return Rescued{}, err
	}
	defer co.letGo()
	st := &co.State
	if st.Status == Releasing {
		return Rescued{}, parcel.NewError(parcel.Failed, "parcel %s: its checkin or clean was interrupted", name).
			WithHint("run that again")
	}
	if err := co.unlock(ctx); err != nil {
		return Rescued{}, err
	}
	srv, err := c.server(st.Server, st.User)
	if err != nil {
		return Rescued{}, err
	}
	if st.Rescue == nil {
		if newName == st.Parcel {
			return Rescued{}, parcel.NewError(parcel.Exists, "parcel %s: is there already, and stays as it is", newName).
				WithHint("isr rescue %s OTHERNAME", name)
		}
		if err := co.wantRescue(ctx, srv); err != nil {
			return Rescued{}, err
		}
		st.Rescue = &Rescue{From: st.Parcel, Name: newName, Acquisition: parcel.NewID(), Reason: co.troubles()}
		if newName == "" {
			if st.Rescue.Name, err = freeName(ctx, srv, st.Parcel); err != nil {
				return Rescued{}, err
			}
		}
		if err := co.save(); err != nil {
			return Rescued{}, err
		}
	} else {
		c.UI.Say("parcel %s: going on with its rescue as %s", name, st.Rescue.Name)
	}
	if st.Parcel != st.Rescue.Name {
		if err := co.fork(ctx, srv); err != nil {
			return Rescued{}, err
		}
	} else if !st.base.IsNil() && st.Status != Staged {
		if err := co.wantWhole(ctx, srv, st.base); err != nil {
			return Rescued{}, err
		}
	}
	out := Rescued{Parcel: st.Parcel, Comment: st.Rescue.Comment}
	out.Committed, err = co.sync(ctx, "")
	return out, err
}

// findRescued is the checkout that name means, or meant before it was rescued.
func (c *Client) findRescued(name string) (*Checkout, error) {
	co, err := c.Find(name)
	if !errors.Is(err, parcel.ErrNoParcel) {
		return co, err
	}
	all, aerr := c.Checkouts()
	if aerr != nil {
		return nil, aerr
	}
	for _, co := range all {
		if co.State.Rescue != nil && co.State.Rescue.From == name {
			return co, nil
		}
	}
	return nil, err
}

// troubles is why a checkout needs to be rescued, "" if nothing is known.
func (co *Checkout) troubles() string {
	switch st := &co.State; {
	case st.Lost != "":
		return lostReason
	case st.Orphaned != "":
		return "its lock was lost"
	case st.Damaged != "":
		return "damaged"
	}
	return ""
}

// wantRescue is an error if an ordinary sync would do.
func (co *Checkout) wantRescue(ctx context.Context, srv *remote.Server) error {
	st := &co.State
	if st.Orphaned == "" {
		// It may not have been noticed yet.
		err := co.checkServer(ctx, srv)
		if errors.Is(err, parcel.ErrNoParcel) {
			return co.gone()
		}
		if err != nil && !errors.Is(err, parcel.ErrNotHolder) && !errors.Is(err, parcel.ErrDamaged) && st.Lost == "" {
			return err
		}
		if errors.Is(err, parcel.ErrDamaged) {
			co.client.UI.Warn("parcel %s: it stays locked on the server: isr clean -f %s breaks the lock", st.Parcel, st.Parcel)
			return nil
		}
	}
	if co.troubles() != "" {
		return nil
	}
	bad, err := co.damaged(ctx)
	switch {
	case err != nil:
		return err
	case len(bad) > 0:
		return nil
	}
	return parcel.NewError(parcel.Failed, "parcel %s: neither damaged, nor is its lock or its version lost", st.Parcel).
		WithHint("isr sync %s saves it", st.Parcel)
}

// gone says that there is nothing on the server that could be gone on from.
func (co *Checkout) gone() error {
	st := &co.State
	return parcel.NewError(parcel.NoParcel, "parcel %s: is no longer on the server, and its version %d with it", st.Parcel, st.Version).
		WithHint("ask the administrator to make one of that name (isr-locksrv parcel create %s %s), then run isr rescue %s again; isr resume -d %s runs what is here", st.User, st.Parcel, st.Parcel, st.Parcel)
}

// damaged is what is wrong with the overlays: chunks, by image. One that
// cannot be opened at all has a nil list.
func (co *Checkout) damaged(ctx context.Context) (map[string][]int64, error) {
	bad := make(map[string][]int64)
	return bad, co.eachOverlay(ctx, func(name string, ov *image.Overlay, err error) error {
		if err != nil {
			bad[name] = nil
			return nil
		}
		p := co.client.UI.Progress("checking "+name, "chunks", 0)
		defer p.Done()
		return ov.Check(ctx, func(n int64, err error) { bad[name] = append(bad[name], n) }, p.Set)
	})
}

// eachOverlay opens the overlays of an unlocked checkout, one after another.
// The overlay is nil if err says why it is unusable.
func (co *Checkout) eachOverlay(ctx context.Context, do func(name string, ov *image.Overlay, err error) error) error {
	h, err := co.client.hoard()
	if err != nil {
		return err
	}
	defer h.Close()
	srv, err := co.client.server(co.State.Server, co.State.User)
	if err != nil {
		return err
	}
	root, err := co.root(ctx, co.State.pristine, co.client.ladder(co.local(), h, srv.Objects(co.State.Parcel)))
	if err != nil {
		return err
	}
	for _, im := range root.Images {
		if im.Name == keyring.Memory && co.State.Memory == "" {
			continue
		}
		ov, err := image.OpenOverlay(co.path("hdk"), im.Name, im.Size, im.ChunkSize, co.key)
		if err != nil && !errors.Is(err, image.ErrOverlay) {
			return fmt.Errorf("parcel %s: %w", co.State.Parcel, err)
		}
		err = do(im.Name, ov, err)
		if ov != nil {
			ov.Close()
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// freeName is a name for what is rescued of a parcel that the user has no
// parcel of yet.
func freeName(ctx context.Context, srv *remote.Server, name string) (string, error) {
	taken, err := srv.ListParcels(ctx)
	if err != nil {
		return "", err
	}
	for i := 1; i <= maxNames; i++ {
		suffix := "-rescued"
		if i > 1 {
			suffix = fmt.Sprintf("-rescued-%d", i)
		}
		free := name[:min(len(name), parcel.MaxName-len(suffix))] + suffix
		if !slices.Contains(taken, free) {
			return free, nil
		}
	}
	return "", parcel.NewError(parcel.Exists, "parcel %s: rescued %d times already", name, maxNames).
		WithHint("give it a name: isr rescue %s NAME", name)
}

// lostReason is why a checkout is rescued whose version the server lacks.
const lostReason = "the server lost that version"

// fork makes the new parcel on the server and turns the checkout into its.
// Each step may be repeated, and the record that names the new parcel is the
// last of them.
func (co *Checkout) fork(ctx context.Context, srv *remote.Server) error {
	c, st := co.client, &co.State
	version, keyroot, err := co.origin(ctx, srv)
	if err != nil {
		return err
	}
	lost, err := co.salvage(ctx)
	if err != nil {
		return err
	}
	r := st.Rescue
	if keyroot != st.pristine {
		if err := co.wantWhole(ctx, srv, keyroot); err != nil {
			return err
		}
		r.Reason = lostReason
	}
	if r.Reason == "" {
		r.Reason = "damaged"
	}
	r.Comment = fmt.Sprintf("rescued from %s version %d on %s: %s", st.Parcel, st.Version, c.Host, r.Reason)
	if lost != "" {
		r.Comment += "; " + lost
	}
	if err := co.save(); err != nil {
		return err
	}
	lock, err := srv.Fork(ctx, st.Parcel, version, r.Name, r.Comment, c.Host, r.Acquisition)
	switch {
	case errors.Is(err, parcel.ErrExists), errors.Is(err, parcel.ErrUsage):
		// A name that will not do: let another be given.
		st.Rescue = nil
		if serr := co.save(); serr != nil {
			return serr
		}
		return parcel.NewError(parcel.KindOf(err), "%s", err).WithHint("isr rescue %s OTHERNAME", st.Parcel)
	case errors.Is(err, parcel.ErrNoVersion):
		return parcel.NewError(parcel.NoVersion, "%s", err).
			WithHint("isr resume -d %s runs what is here of it", st.Parcel)
	case err != nil:
		return err
	}
	// The old lock, if it is ours yet, goes back before its proof is written
	// over: nobody is to be locked out for ever.
	if old, err := co.nonce(); err == nil && old.Acquisition != r.Acquisition {
		_, err := srv.Release(ctx, st.Parcel, old.Nonce, false)
		if err != nil && !errors.Is(err, parcel.ErrNotHolder) && !errors.Is(err, parcel.ErrNoParcel) {
			return err
		}
	}
	made, _, err := srv.Config(ctx, r.Name)
	if err != nil {
		return err
	}
	// What it was made of the first time, if this is the second.
	if keyroot, err = srv.Keyroot(ctx, r.Name, 1); err != nil {
		return err
	}
	if err := co.keepLock(lock); err != nil {
		return err
	}
	open := *made
	open.Secret = nil
	p, err := open.Encode()
	if err != nil {
		return err
	}
	if err := atomicfile.Write(co.path("parcel.cfg"), p, 0o600); err != nil {
		return err
	}
	co.cfg = made
	if st.Status == Staged {
		st.Status = Suspended
	}
	st.Parcel, st.UUID, st.Acquisition, st.Version = made.Parcel, made.UUID, r.Acquisition, 1
	st.Orphaned, st.Lost, st.Damaged, st.staged = "", "", "", seal.Ref{}
	if keyroot != st.pristine {
		// All of what is here is to be made a version of again.
		st.base, st.Modified = keyroot, true
		if st.Status == CheckedOut {
			st.Status = Suspended
		}
	}
	if err := co.save(); err != nil {
		return err
	}
	return co.rename()
}

// rename gives the checkout's directory the parcel's name. It is for people:
// the record says what is in it.
func (co *Checkout) rename() error {
	dir := co.client.dirFor(co.State.Parcel, co.State.UUID)
	if err := os.Rename(co.Dir, dir); err != nil {
		return err
	}
	co.Dir = dir
	return atomicfile.SyncDir(co.client.Dir)
}

// salvage takes damaged chunks of the disk back to the pristine version, and
// gives up a memory image of which anything is damaged. It says what was lost.
func (co *Checkout) salvage(ctx context.Context) (string, error) {
	st := &co.State
	memory := ""
	if box, err := os.ReadFile(co.path("cfg", cfgFile)); err == nil {
		archive, err := wrap.Unseal(co.key, box, cfgFile)
		if err == nil {
			err = testArchive(archive)
		}
		if err != nil {
			memory = "the files of its VMM were damaged"
			if err := os.Remove(co.path("cfg", cfgFile)); err != nil {
				return "", err
			}
		}
	}
	err := co.eachOverlay(ctx, func(name string, ov *image.Overlay, err error) error {
		var bad []int64
		if err == nil {
			p := co.client.UI.Progress("checking "+name, "chunks", 0)
			err := ov.Check(ctx, func(n int64, err error) { bad = append(bad, n) }, p.Set)
			p.Done()
			if err != nil {
				return err
			}
			if len(bad) == 0 {
				return nil
			}
		}
		switch {
		case name == keyring.Memory:
			memory = "its memory image was damaged"
			return nil
		case err != nil:
			return parcel.NewError(parcel.Damaged, "parcel %s: nothing of what changed on its disk can be read: %v", st.Parcel, err).
				WithHint("isr discard %s goes back to version %d", st.Parcel, st.Version)
		}
		co.client.UI.Warn("parcel %s: disk %s: damaged, and as in version %d again", st.Parcel, keyring.RangesOf(bad...), st.Version)
		return co.splice(ctx, ov, bad)
	})
	if err != nil || memory == "" {
		return st.Damaged, err
	}
	co.client.UI.Warn("parcel %s: %s: it will boot", st.Parcel, memory)
	if st.Damaged != "" {
		st.Damaged += "; "
	}
	st.Damaged += memory
	if st.Memory != "" {
		st.Status, st.Modified, st.Memory, st.Requires, st.staged = Suspended, true, "", nil, seal.Ref{}
	}
	if err := co.save(); err != nil {
		return "", err
	}
	return st.Damaged, co.resetOverlay(keyring.Memory)
}
