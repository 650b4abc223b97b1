package client

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"isr/client/fetch"
	"isr/client/hoard"
	"isr/locksrv/proto"
	"isr/store/keyring"
	"isr/store/parcel"
	"isr/store/seal"
)

// HoardChecked is what a check of the hoard looked at, found and mended.
type HoardChecked struct {
	Content  bool      `json:"content"`
	Objects  int64     `json:"objects"`
	Bytes    int64     `json:"bytes"`
	Removed  int64     `json:"removed"` // damaged objects
	Fetched  int64     `json:"fetched"` // in their place, and of what pinned parcels lacked
	Errors   int       `json:"errors"`  // what is not mended
	Findings []Finding `json:"findings"`
}

func (c *HoardChecked) add(severity, do, format string, args ...any) {
	if severity == proto.Bad {
		c.Errors++
	}
	c.Findings = append(c.Findings, Finding{Severity: severity, What: fmt.Sprintf(format, args...), Do: do})
}

// CheckHoard checks the hoard, with content every byte of it. What is damaged
// is removed; with content, what a hoarded parcel then lacks is fetched from
// its server, if that can be reached. It may run beside anything.
func (c *Client) CheckHoard(ctx context.Context, content bool) (*HoardChecked, error) {
	h, err := c.hoard()
	if err != nil {
		return nil, err
	}
	defer h.Close()
	out := &HoardChecked{Content: content, Findings: []Finding{}}
	stray, err := h.Stray()
	if err != nil {
		return nil, err
	}
	for _, name := range stray {
		out.add(proto.Note, "remove it", "%s: not a file of the hoard", name)
	}
	names, err := c.parcelNames()
	if err != nil {
		return nil, err
	}
	bad, err := h.BadPins()
	if err != nil {
		return nil, err
	}
	for _, id := range slices.Sorted(maps.Keys(bad)) {
		// Nothing is ever evicted while it is there.
		if err := h.Unpin(id); err != nil {
			return nil, err
		}
		name := names[id]
		if name == "" {
			name = "PARCEL"
		}
		out.add(proto.Bad, "isr hoard "+name+" keeps it again", "what parcel %s needs could not be read, and was forgotten: %v", id, bad[id])
	}
	p := c.UI.Progress("checking the hoard", "bytes", 0)
	u, err := h.Check(ctx, content, func(tag seal.Tag, err error) {
		if errors.Is(err, seal.ErrCorrupt) {
			out.Removed++
			out.add(proto.Note, "", "object %s: damaged, and removed", tag)
			return
		}
		out.add(proto.Bad, "look at the disk of this host", "object %s: %v", tag, err)
	}, p.Set)
	p.Done()
	if err != nil {
		return nil, err
	}
	out.Objects, out.Bytes = u.Objects, u.Bytes
	pins, err := h.Pins()
	if err != nil && !errors.Is(err, hoard.ErrBadPin) {
		return nil, err
	}
	for _, pin := range pins {
		lacking, err := h.Lacking(pin.UUID)
		if err != nil {
			return nil, fmt.Errorf("hoard: %w", err)
		}
		if len(lacking) == 0 {
			continue
		}
		do := "isr hoard " + pin.Parcel + " fetches them"
		left := int64(len(lacking))
		if content {
			got, err := c.heal(ctx, h, pin, lacking)
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			out.Fetched += got.Objects
			out.Objects += got.Objects
			out.Bytes += got.Bytes
			left -= got.Objects
			if got.Objects > 0 {
				out.add(proto.Note, "", "parcel %s: %d of %d objects were not here, and were fetched", pin.Parcel, got.Objects, pin.Count)
			}
			if err != nil {
				do = fmt.Sprintf("connect, and isr hoard %s fetches them (%v)", pin.Parcel, err)
			} else if left > 0 {
				do = "isr checkp -e -c " + pin.Parcel + " says whether the server has them"
			}
		}
		if left > 0 {
			out.add(proto.Bad, do, "parcel %s: hoarded, and lacks %d of %d objects", pin.Parcel, left, pin.Count)
		}
	}
	return out, nil
}

// parcelNames are the names of the checkouts here, by UUID.
func (c *Client) parcelNames() (map[string]string, error) {
	all, err := c.Checkouts()
	names := make(map[string]string)
	for _, co := range all {
		names[co.State.UUID] = co.State.Parcel
	}
	return names, err
}

// heal fetches what a hoarded parcel lacks.
func (c *Client) heal(ctx context.Context, h *hoard.Hoard, pin hoard.Pin, lacking []seal.Tag) (fetch.Progress, error) {
	srv, err := c.server(pin.Server, pin.User)
	if err != nil {
		return fetch.Progress{}, err
	}
	// A server that is away is told at once, by a question that is not repeated.
	if cfg, _, err := srv.Config(ctx, pin.Parcel); err != nil {
		return fetch.Progress{}, err
	} else if cfg.UUID != pin.UUID {
		return fetch.Progress{}, parcel.NewError(parcel.NoParcel, "parcel %s: another parcel has that name now", pin.Parcel)
	}
	ladder := c.ladder(nil, h, srv.Objects(pin.Parcel))
	defer ladder.Wait()
	p := c.UI.Progress("fetching for "+pin.Parcel, "objects", int64(len(lacking)))
	defer p.Done()
	return ladder.Prefetch(fetch.WithClass(ctx, fetch.Hoard), slices.Values(lacking), hoardWorkers,
		func(g fetch.Progress) { p.Set(g.Objects, int64(len(lacking))) })
}

// CompactHoard removes the objects that no hoarded parcel and no checkout on
// this host needs. confirm is told how much that is, and may refuse.
func (c *Client) CompactHoard(ctx context.Context, confirm func(hoard.Freed) bool) (hoard.Freed, error) {
	h, err := c.hoard()
	if err != nil {
		return hoard.Freed{}, err
	}
	defer h.Close()
	all, err := c.Checkouts()
	if err != nil {
		return hoard.Freed{}, err
	}
	needed := make(map[seal.Tag]bool)
	for _, co := range all {
		if co.State.Status == Acquiring {
			continue
		}
		if err := co.needs(ctx, h, needed); err != nil {
			return hoard.Freed{}, fmt.Errorf("parcel %s: what it needs is not known: %w", co.State.Parcel, err)
		}
	}
	need := func(t seal.Tag) bool { return needed[t] }
	would, err := h.Compact(ctx, need, true)
	if err != nil || would.Objects == 0 || !confirm(would) {
		return hoard.Freed{}, err
	}
	return h.Compact(ctx, need, false)
}

// needs adds the tags of the checkout's pristine version, as far as its
// keyring is here: below a block that is not, nothing is here either, or it is
// a mere cache.
func (co *Checkout) needs(ctx context.Context, h *hoard.Hoard, needed map[seal.Tag]bool) error {
	if err := co.unlock(ctx); err != nil {
		return err
	}
	here := co.client.ladder(co.local(), h, nil)
	needed[co.State.pristine.Tag] = true
	root, err := co.root(ctx, co.State.pristine, here)
	if errors.Is(err, parcel.ErrNoObject) {
		return nil
	}
	if err != nil {
		return err
	}
	if !root.Cfg.IsNil() {
		needed[root.Cfg.Tag] = true
	}
	for _, im := range root.Images {
		err := keyring.Walk(ctx, co.sealer(), here, im, func(level int, n int64, ref seal.Ref) error {
			needed[ref.Tag] = true
			if level > 0 {
				if _, err := here.Get(ctx, ref.Tag); errors.Is(err, parcel.ErrNoObject) {
					return keyring.SkipBelow
				} else if err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}
