package client

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	goruntime "runtime"
	"slices"
	"sync"

	"isr/client/fetch"
	"isr/client/hoard"
	"isr/client/image"
	"isr/client/remote"
	"isr/store/keyring"
	"isr/store/parcel"
	"isr/store/seal"
)

// Hoarded is what a hoard run did.
type Hoarded struct {
	Objects int64 `json:"objects"` // of the version, all here now
	Fetched int64 `json:"fetched"` // of these, fetched by this run
	Bytes   int64 `json:"bytes"`   // sealed bytes fetched
	Damaged int64 `json:"damaged"` // found so by Verify, and fetched anew
	Version int   `json:"version"`
	Memory  bool  `json:"memory"` // the memory is kept too
}

// HoardOptions are what a hoard run may be asked for.
type HoardOptions struct {
	Memory bool // the memory image too, from now on
	Verify bool // look at the content of all that is here afterwards
}

// hoardWorkers is how many objects are fetched at a time; the link decides
// over how many connections.
const hoardWorkers = 256

// Hoard fetches a parcel's whole disk into the hoard, and its memory if that
// is asked for or was before, and keeps them from eviction: the parcel is
// hoarded from then on, see pinning. It may run at any time, beside anything,
// for a parcel that is checked out or not, and be killed and run again: it
// fetches what is missing. Once it has begun it waits out any outage.
func (c *Client) Hoard(ctx context.Context, name string, o HoardOptions) (Hoarded, error) {
	h, err := c.hoard()
	if err != nil {
		return Hoarded{}, err
	}
	defer h.Close()
	j, err := c.hoardJob(ctx, h, name)
	if err != nil {
		return Hoarded{}, err
	}
	if j.co != nil && j.co.State.Version != 0 {
		defer j.co.noteTraffic(j.srv)
		defer j.co.noteLadder(j.ladder)
	}
	// From here on only a signal ends it.
	j.srv.OnOutage(func(down bool, err error) {
		if down {
			c.UI.Warn("parcel %s: hoarding waits: %v", j.name, err)
		} else {
			c.UI.Say("parcel %s: connected again, hoarding goes on", j.name)
		}
	})
	defer j.srv.OnOutage(nil)
	ctx = remote.WithPolicy(fetch.WithClass(ctx, fetch.Hoard), remote.Policy{Forever: true})
	done, err := j.pin(ctx, o.Memory)
	if err == nil {
		err = j.fill(ctx, &done)
	}
	if err == nil && o.Verify {
		if done.Damaged, err = j.verify(ctx); err == nil && done.Damaged > 0 {
			c.UI.Warn("parcel %s: %d objects were damaged here, they are fetched anew", j.name, done.Damaged)
			err = j.fill(ctx, &done)
		}
	}
	if err == nil {
		err = h.Completed(j.uuid, now())
	}
	return done, err
}

// hoardJob is one run of Hoard.
type hoardJob struct {
	c      *Client
	h      *hoard.Hoard
	srv    *remote.Server
	ladder *fetch.Ladder
	co     *Checkout // nil: not checked out here
	name   string
	uuid   string
	server string
	cfg    *parcel.Config // as it was when the run began
}

// hoardJob finds out what name is: a checkout, or the UUID of a parcel that is
// hoarded already, or a parcel of the default server.
func (c *Client) hoardJob(ctx context.Context, h *hoard.Hoard, name string) (*hoardJob, error) {
	j := &hoardJob{c: c, h: h, name: name, server: c.Server}
	user := c.User
	co, err := c.Find(name)
	switch {
	case err == nil:
		j.co, j.server, user, j.name = co, co.State.Server, co.State.User, co.State.Parcel
	case !errors.Is(err, parcel.ErrNoParcel):
		return nil, err
	default:
		if p := pinned(h, name); p != nil {
			j.server, user, j.name = p.Server, p.User, p.Parcel
		}
	}
	if j.srv, err = c.server(j.server, user); err != nil {
		return nil, err
	}
	cfg, _, err := j.srv.Config(ctx, j.name)
	if err != nil {
		return nil, err
	}
	j.uuid, j.cfg = cfg.UUID, cfg
	far := j.srv.Objects(j.name)
	j.ladder = c.ladder(nil, h, far, c.sources(cfg, j.server, far)...)
	return j, nil
}

// pin pins the version that is checked out here, or else the newest. It is
// pinned first, so that what is fetched first is not evicted for the rest; and
// only if there is room for all of it.
func (j *hoardJob) pin(ctx context.Context, memory bool) (Hoarded, error) {
	cfg := j.cfg
	for {
		was := hoard.Pin{}
		if p := pinned(j.h, j.uuid); p != nil {
			was = *p
		}
		version := cfg.Version
		if j.co != nil && j.co.load() == nil && j.co.State.Version != 0 {
			version = j.co.State.Version
		}
		p := hoard.Pin{UUID: j.uuid, Parcel: j.name, User: cfg.User, Server: j.server, Version: version,
			Memory: memory || was.Memory, Time: now()}
		if was.Version == version && was.Memory == p.Memory {
			return Hoarded{Objects: was.Count, Version: version, Memory: p.Memory}, nil
		}
		keyroot, err := j.srv.Keyroot(ctx, j.name, version)
		if err != nil {
			return Hoarded{}, err
		}
		_, root, err := rootOf(ctx, j.name, cfg, j.ladder, keyroot)
		if err != nil {
			return Hoarded{}, err
		}
		n := needed{tags: make(map[seal.Tag]bool)}
		t := tree{cfg.Sealer(), j.ladder, keyroot, root}
		if err := (tree{}).warm(ctx, j.ladder, t, p.Memory); err != nil {
			return Hoarded{}, fmt.Errorf("parcel %s: %w", j.name, err)
		}
		all := t.needs(ctx, p.Memory)
		err = j.h.PinAfter(was, p, func(yield func(hoard.Need, error) bool) {
			for need, err := range all {
				if err == nil {
					err = n.add(j.h, need.Tag)
				}
				if !yield(need, err) {
					return
				}
			}
			if err := j.room(ctx, cfg, n); err != nil {
				yield(hoard.Need{}, err)
			}
		})
		switch {
		case err == nil:
			return Hoarded{Objects: int64(len(n.tags)), Version: version, Memory: p.Memory}, nil
		case errors.Is(err, hoard.ErrPinChanged):
			// By a sync, or by another hoard: the head may be another now.
			if cfg, _, err = j.srv.Config(ctx, j.name); err != nil {
				return Hoarded{}, err
			}
			if cfg.UUID != j.uuid {
				return Hoarded{}, parcel.NewError(parcel.Conflict, "parcel %s: another parcel has that name now", j.name)
			}
			continue
		}
		return Hoarded{}, fmt.Errorf("parcel %s: %w", j.name, err)
	}
}

// needed is what a version needs, and how much of it is not here.
type needed struct {
	tags    map[seal.Tag]bool
	missing int64
}

func (n *needed) add(h *hoard.Hoard, tag seal.Tag) error {
	if n.tags[tag] {
		return nil
	}
	n.tags[tag] = true
	has, err := h.Has(tag)
	if !has {
		n.missing++
	}
	return err
}

// room is an error if what is missing will not fit, into the quota or on the
// disk. How large the missing objects are is estimated by the parcel's mean.
func (j *hoardJob) room(ctx context.Context, cfg *parcel.Config, n needed) error {
	if n.missing == 0 {
		return nil
	}
	need := n.missing * j.meanObject(ctx, cfg)
	if quota := j.h.Quota(); quota > 0 {
		pinned, err := j.h.PinnedWith(ctx, j.uuid, n.tags)
		if err != nil {
			return err
		}
		if pinned+need > quota {
			return parcel.NewError(parcel.Full, "hoard: what is hoarded would take about %s, its quota is %s", sizeText(pinned+need), sizeText(quota)).
				WithHint("raise hoard_quota, or give up another parcel: isr lshoard lists them, isr rmhoard removes one")
		}
	}
	free, err := j.h.Free()
	if err != nil {
		return err
	}
	if need > free {
		return parcel.NewError(parcel.Full, "hoard: about %s are missing, the disk has room for %s", sizeText(need), sizeText(free)).
			WithHint("make room in %s, then run it again", j.h.Path())
	}
	return nil
}

// meanObject is the mean size of the parcel's objects on the server, bytes.
func (j *hoardJob) meanObject(ctx context.Context, cfg *parcel.Config) int64 {
	var bytes, objects int64
	if ls, err := j.srv.Ls(ctx, j.name, cfg.Version); err == nil && len(ls) == 1 {
		for _, v := range ls[0].Versions {
			bytes, objects = bytes+v.Bytes, objects+v.Objects
		}
	}
	if objects == 0 {
		return int64(cfg.ChunkSize)
	}
	return bytes / objects
}

// fill fetches what the pin names and is not here, until nothing is missing:
// the pin may have followed a sync meanwhile.
func (j *hoardJob) fill(ctx context.Context, done *Hoarded) error {
	for {
		missing, err := j.h.Missing(ctx, j.uuid)
		if errors.Is(err, fs.ErrNotExist) {
			return parcel.NewError(parcel.Failed, "parcel %s: its hoard was removed meanwhile", j.name)
		} else if err != nil {
			return fmt.Errorf("hoard: %w", err)
		}
		if len(missing) == 0 {
			if p := pinned(j.h, j.uuid); p != nil {
				done.Objects, done.Version, done.Memory = p.Count, p.Version, p.Memory
			}
			return nil
		}
		got, err := j.fetch(ctx, missing)
		done.Fetched, done.Bytes = done.Fetched+got.Objects, done.Bytes+got.Bytes
		if err != nil {
			return fmt.Errorf("parcel %s: hoarding: %w", j.name, err)
		}
		if err := incomplete(j.name, done.Version, got); err != nil {
			return err
		}
	}
}

func (j *hoardJob) fetch(ctx context.Context, missing []seal.Tag) (fetch.Progress, error) {
	p := j.c.UI.Progress("hoarding "+j.name, "bytes", 0)
	defer p.Done()
	got, err := j.ladder.Prefetch(ctx, slices.Values(missing), hoardWorkers, func(g fetch.Progress) {
		if g.Objects > 0 {
			p.Set(g.Bytes, g.Bytes/g.Objects*(int64(len(missing))-g.Objects)+g.Bytes)
		}
	})
	j.ladder.Wait()
	return got, err
}

// verify reads all that the pin names and counts what is damaged, which is
// then gone.
func (j *hoardJob) verify(ctx context.Context) (damaged int64, err error) {
	tags, err := j.h.Tags(j.uuid)
	if err != nil {
		return 0, err
	}
	p := j.c.UI.Progress("checking "+j.name, "objects", int64(len(tags)))
	defer p.Done()
	var (
		mu   sync.Mutex
		wg   sync.WaitGroup
		done int64
	)
	todo := make(chan seal.Tag)
	for range goruntime.GOMAXPROCS(0) {
		wg.Go(func() {
			for tag := range todo {
				_, gerr := j.h.Get(ctx, tag)
				mu.Lock()
				done++
				switch {
				case errors.Is(gerr, parcel.ErrNoObject):
					damaged++
				case gerr != nil:
					err = errors.Join(err, gerr)
				}
				p.Set(done, int64(len(tags)))
				mu.Unlock()
			}
		})
	}
	for _, tag := range tags {
		if ctx.Err() != nil {
			break
		}
		todo <- tag
	}
	close(todo)
	wg.Wait()
	if ctx.Err() != nil {
		return damaged, ctx.Err()
	}
	return damaged, err
}

// sizeText is a number of bytes for a message.
func sizeText(n int64) string {
	const units = "KMGTPE"
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	f, u := float64(n)/1024, 0
	for f >= 1024 && u < len(units)-1 {
		f, u = f/1024, u+1
	}
	return fmt.Sprintf("%.1f %ciB", f, units[u])
}

// wantHoarded is an error unless all that an unlocked checkout may want while
// it runs is on this host. A guest whose disk fails under it is worse off
// than one that did not start.
func (co *Checkout) wantHoarded(ctx context.Context) error {
	st := &co.State
	h, err := co.client.hoard()
	if err != nil {
		return err
	}
	defer h.Close()
	// What is pinned and wholly here need not be looked at chunk by chunk.
	if p := pinned(h, st.UUID); p != nil && p.Version == st.Version && (p.Memory || st.Memory == "") {
		if whole, err := h.Whole(ctx, st.UUID); err == nil && whole {
			return nil
		}
	}
	local := co.local()
	// Directories of look-aside are on this host too.
	aside := co.client.localPlaces()
	here := co.client.ladder(local, h, nil, rungsOf(aside)...)
	has := func(tag seal.Tag) bool {
		_, err := h.Size(tag)
		if err != nil {
			_, err = local.Size(tag)
		}
		for i := 0; err != nil && i < len(aside); i++ {
			_, err = aside[i].Size(tag)
		}
		return err == nil
	}
	lacking := func(what string, args ...any) error {
		return parcel.NewError(parcel.Unreachable, "parcel %s: not fully hoarded: %s", st.Parcel, fmt.Sprintf(what, args...)).
			WithHint("connect and run isr checkout -d %s", st.Parcel)
	}
	root, err := co.root(ctx, st.pristine, here)
	switch {
	case errors.Is(err, parcel.ErrNoObject):
		return lacking("its keyring is not here")
	case err != nil:
		return err
	}
	if _, err := os.Stat(co.path("cfg", cfgFile)); err != nil && !root.Cfg.IsNil() && !has(root.Cfg.Tag) {
		return lacking("the files of its VMM are not here")
	}
	for _, im := range root.Images {
		if im.Name == keyring.Memory && st.Memory == "" {
			continue
		}
		ov, err := image.OpenOverlay(co.path("hdk"), im.Name, im.Size, im.ChunkSize, co.key)
		if err != nil {
			return fmt.Errorf("parcel %s: %w", st.Parcel, err)
		}
		missing := 0
		err = keyring.Walk(ctx, co.sealer(), here, im, func(level int, n int64, ref seal.Ref) error {
			if level == 0 && ov.Covers(n) || has(ref.Tag) {
				return nil
			}
			missing++
			if level > 0 {
				return keyring.SkipBelow
			}
			return nil
		})
		ov.Close()
		switch {
		case err != nil:
			return fmt.Errorf("parcel %s: %w", st.Parcel, err)
		case missing > 0:
			return lacking("of its %s, %d objects or more are not here", im.Name, missing)
		}
	}
	return nil
}
