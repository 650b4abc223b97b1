package client

import (
	"context"
	"errors"
	"fmt"
	"os"

	"isr/client/fetch"
	"isr/client/hoard"
	"isr/client/image"
	"isr/store/keyring"
	"isr/store/parcel"
	"isr/store/seal"
)

// Hoarded is what a hoard run did.
type Hoarded struct {
	Objects int64 `json:"objects"` // of the version, all here now
	Fetched int64 `json:"fetched"` // of these, fetched by this run
	Bytes   int64 `json:"bytes"`   // sealed bytes fetched
}

// hoardWorkers is how many objects are fetched at a time; the link decides
// over how many connections.
const hoardWorkers = 256

// Hoard fetches a parcel's whole disk into the hoard, and with memory its
// memory too, and keeps them from eviction. It may run at any time, beside
// anything, for a parcel that is checked out or not, and be killed and run
// again: it fetches what is missing.
func (c *Client) Hoard(ctx context.Context, name string, memory bool) (Hoarded, error) {
	server, user, version := c.Server, c.User, 0
	co, err := c.Find(name)
	switch {
	case err == nil:
		server, user, name = co.State.Server, co.State.User, co.State.Parcel
		version = co.State.Version
	case !errors.Is(err, parcel.ErrNoParcel):
		return Hoarded{}, err
	}
	srv, err := c.server(server, user)
	if err != nil {
		return Hoarded{}, err
	}
	if version != 0 {
		defer co.noteTraffic(srv)
	}
	checkedOut := version != 0
	cfg, _, err := srv.Config(ctx, name)
	if err != nil {
		return Hoarded{}, err
	}
	if version == 0 {
		version = cfg.Version
	}
	keyroot, err := srv.Keyroot(ctx, name, version)
	if err != nil {
		return Hoarded{}, err
	}
	h, err := c.hoard()
	if err != nil {
		return Hoarded{}, err
	}
	defer h.Close()
	far := srv.Objects(name)
	ladder := c.ladder(nil, h, far, c.sources(cfg, server, far)...)
	if checkedOut {
		defer co.noteLadder(ladder)
	}
	ctx = fetch.WithClass(ctx, fetch.Hoard)
	tags, err := versionTags(ctx, name, cfg, ladder, keyroot, memory)
	if err != nil {
		return Hoarded{}, err
	}
	each := func(yield func(seal.Tag) bool) {
		for t := range tags {
			if !yield(t) {
				return
			}
		}
	}
	// Pinned first, so that what is fetched first is not evicted for the rest.
	if err := h.Pin(hoard.Pin{UUID: cfg.UUID, Parcel: name, User: cfg.User, Server: server, Version: version, Time: now()}, each); err != nil {
		return Hoarded{}, fmt.Errorf("hoard: %w", err)
	}
	done := Hoarded{Objects: int64(len(tags))}
	missing := make([]seal.Tag, 0, len(tags))
	for t := range tags {
		has, err := h.Has(t)
		if err != nil {
			return done, fmt.Errorf("hoard: %w", err)
		}
		if !has {
			missing = append(missing, t)
		}
	}
	p := c.UI.Progress("hoarding "+name, "objects", int64(len(missing)))
	defer p.Done()
	got, err := ladder.Prefetch(ctx, func(yield func(seal.Tag) bool) {
		for _, t := range missing {
			if !yield(t) {
				return
			}
		}
	}, hoardWorkers, func(g fetch.Progress) { p.Set(g.Objects, int64(len(missing))) })
	done.Fetched, done.Bytes = got.Objects, got.Bytes
	if err != nil {
		return done, fmt.Errorf("parcel %s: hoarding: %w", name, err)
	}
	ladder.Wait()
	return done, incomplete(name, version, got)
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
		changed := make(map[int64]bool)
		if im.Name == keyring.Memory {
			if st.Memory == "" {
				continue
			}
			// A chunk that a suspended guest changed came here first, or was
			// written whole.
			ov, err := image.OpenOverlay(co.path("hdk"), im.Name, im.Size, im.ChunkSize, co.key)
			if err != nil {
				return fmt.Errorf("parcel %s: %w", st.Parcel, err)
			}
			for n := range ov.Modified() {
				changed[n] = true
			}
			ov.Close()
		}
		missing := 0
		err := keyring.Walk(ctx, co.sealer(), here, im, func(level int, n int64, ref seal.Ref) error {
			if level == 0 && changed[n] || has(ref.Tag) {
				return nil
			}
			missing++
			if level > 0 {
				return keyring.SkipBelow
			}
			return nil
		})
		switch {
		case err != nil:
			return fmt.Errorf("parcel %s: %w", st.Parcel, err)
		case missing > 0:
			return lacking("of its %s, %d objects or more are not here", im.Name, missing)
		}
	}
	return nil
}
