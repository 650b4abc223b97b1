package client

import (
	"context"
	"errors"
	"io/fs"
	"iter"
	"slices"

	"isr/client/fetch"
	"isr/client/hoard"
	"isr/client/remote"
	"isr/store/keyring"
	"isr/store/seal"
)

// Being hoarded is remembered: a pin says which version of a parcel is kept
// here, and whether its memory is. It follows every version that comes to be
// here, and outlives the checkout.

// tree is a version's keyring, with all it takes to walk it.
type tree struct {
	sealer  seal.Sealer
	getter  keyring.Getter
	keyroot seal.Ref
	root    *keyring.Root
}

// partOf is what an image is for a pin.
func partOf(image string) hoard.Part {
	if image == keyring.Memory {
		return hoard.Memory
	}
	return hoard.Disk
}

// needs is every place of the version that leads to an object, the memory's
// only if it is to be kept.
func (t tree) needs(ctx context.Context, memory bool) iter.Seq2[hoard.Need, error] {
	return func(yield func(hoard.Need, error) bool) {
		for _, ref := range []seal.Ref{t.keyroot, t.root.Cfg} {
			if !ref.IsNil() && !yield(hoard.Need{Tag: ref.Tag}, nil) {
				return
			}
		}
		for _, im := range t.root.Images {
			if im.Name == keyring.Memory && !memory {
				continue
			}
			err := keyring.Walk(ctx, t.sealer, t.getter, im, func(_ int, _ int64, ref seal.Ref) error {
				if !yield(hoard.Need{Tag: ref.Tag, Part: partOf(im.Name)}, nil) {
					return errEnough
				}
				return nil
			})
			switch {
			case errors.Is(err, errEnough):
				return
			case err != nil:
				yield(hoard.Need{}, err)
				return
			}
		}
	}
}

var errEnough = errors.New("enough")

// changes is what needs of t are not any more, and are new, in then.
func (t tree) changes(ctx context.Context, then tree, memory bool) (less, more []hoard.Need, err error) {
	note := func(old, cur seal.Ref, part hoard.Part) {
		if !old.IsNil() {
			less = append(less, hoard.Need{Tag: old.Tag, Part: part})
		}
		if !cur.IsNil() {
			more = append(more, hoard.Need{Tag: cur.Tag, Part: part})
		}
	}
	note(t.keyroot, then.keyroot, hoard.Disk)
	note(t.root.Cfg, then.root.Cfg, hoard.Disk)
	for _, name := range imageNames {
		if name == keyring.Memory && !memory {
			continue
		}
		old, _ := t.root.Image(name)
		cur, _ := then.root.Image(name)
		pairs := [][2]keyring.Image{{old, cur}}
		if old.Depth != cur.Depth || old.ChunkSize != cur.ChunkSize {
			// They share no position.
			pairs = [][2]keyring.Image{{old, keyring.NewImage(name, old.Size, max(old.ChunkSize, 1))},
				{keyring.NewImage(name, cur.Size, max(cur.ChunkSize, 1)), cur}}
		}
		for _, p := range pairs {
			if p[0].Ref.IsNil() && p[1].Ref.IsNil() {
				continue
			}
			// The longer of the two, so that no reference is beyond its end.
			p[1].Size = max(p[0].Size, p[1].Size)
			err := keyring.Diff(ctx, then.sealer, then.getter, p[0], p[1], func(_ int, _ int64, old, cur seal.Ref) error {
				note(old, cur, partOf(name))
				return nil
			})
			if err != nil {
				return nil, nil, err
			}
		}
	}
	return less, more, nil
}

// warm gets the keyring blocks in which then differs from t, a level at a time,
// so that walking them costs as many round trips as the tree is deep, and not
// one for each block. What it does not get, the walk will ask for again.
func (t tree) warm(ctx context.Context, l *fetch.Ladder, then tree, memory bool) error {
	for _, im := range then.root.Images {
		if im.Name == keyring.Memory && !memory {
			continue
		}
		old, ok := keyring.Image{}, false
		if t.root != nil {
			old, ok = t.root.Image(im.Name)
		}
		if !ok || old.Depth != im.Depth || old.ChunkSize != im.ChunkSize {
			old = keyring.NewImage(im.Name, im.Size, im.ChunkSize)
		}
		for at := im.Depth; at > 0; at-- {
			var tags []seal.Tag
			err := keyring.Diff(ctx, then.sealer, then.getter, old, im, func(level int, _ int64, old, cur seal.Ref) error {
				if level > at {
					return nil
				}
				for _, ref := range []seal.Ref{old, cur} {
					if !ref.IsNil() {
						tags = append(tags, ref.Tag)
					}
				}
				return keyring.SkipBelow
			})
			if err != nil {
				return err
			}
			if _, err := l.Prefetch(ctx, slices.Values(tags), hoardWorkers, nil); err != nil {
				return err
			}
			l.Wait() // until they are kept
		}
	}
	return nil
}

// pinned is the pin of a parcel; nil if it is not hoarded.
func pinned(h *hoard.Hoard, uuid string) *hoard.Pin {
	p, err := h.Pinned(uuid)
	if err != nil {
		return nil
	}
	return &p
}

// follow makes the pin of a hoarded parcel that of version p.Version, whose
// keyring is then; was gives the keyring of the version that is pinned. A pin
// that cannot follow by what differs is made anew. What it does not find here
// it does not fetch, except blocks of the keyring.
func follow(ctx context.Context, h *hoard.Hoard, p hoard.Pin, then tree, was func(version int) (tree, error)) error {
	for {
		now := pinned(h, p.UUID)
		if now == nil || now.Version == p.Version {
			return nil
		}
		p.Memory, p.Time = now.Memory, now.Time
		err := hoard.ErrPinChanged
		if old, werr := was(now.Version); werr == nil {
			less, more, cerr := old.changes(ctx, then, p.Memory)
			if cerr != nil {
				return cerr
			}
			if err = h.Repin(p, now.Version, values(less), values(more)); err == nil {
				return nil
			}
		}
		if !errors.Is(err, hoard.ErrPinChanged) {
			return err
		}
		if err = h.PinAfter(*now, p, then.needs(ctx, p.Memory)); !errors.Is(err, hoard.ErrPinChanged) {
			return err
		}
	}
}

func values(list []hoard.Need) iter.Seq[hoard.Need] {
	return func(yield func(hoard.Need) bool) {
		for _, n := range list {
			if !yield(n) {
				return
			}
		}
	}
}

// pin is the pin of a checkout in version.
func (co *Checkout) pin(version int) hoard.Pin {
	st := &co.State
	return hoard.Pin{UUID: st.UUID, Parcel: st.Parcel, User: st.User, Server: st.Server, Version: version, Time: now()}
}

// followCommit has the pin follow a version that was made here. The hoard is a
// cache: that it cannot is told, and is no reason to fail.
func (s *session) followCommit(ctx context.Context, root *keyring.Root, version int) {
	co, st := s.co, &s.co.State
	then := tree{co.sealer(), s.ladder, st.staged, root}
	err := follow(ctx, s.hoard, co.pin(version), then, func(v int) (tree, error) {
		if v != st.Version {
			return tree{}, hoard.ErrPinChanged
		}
		return tree{co.sealer(), s.ladder, st.pristine, s.root}, nil
	})
	if err != nil {
		co.client.UI.Warn("parcel %s: it is not hoarded in version %d: %v", st.Parcel, version, err)
	}
}

// followHead has the pin follow the version that was checked out, and tells
// what of it is not here.
func (co *Checkout) followHead(ctx context.Context, srv *remote.Server, h *hoard.Hoard, g *fetch.Ladder, head *head) {
	name, ui := co.State.Parcel, co.client.UI
	was := pinned(h, head.cfg.UUID)
	if was == nil {
		return
	}
	version := head.cfg.Version
	then := tree{head.cfg.Sealer(), g, head.keyroot, head.root}
	err := follow(ctx, h, co.pin(version), then, func(v int) (tree, error) {
		keyroot, err := srv.Keyroot(ctx, name, v)
		if err != nil {
			return tree{}, err
		}
		_, root, err := rootOf(ctx, name, head.cfg, g, keyroot)
		if err != nil {
			return tree{}, err
		}
		old := tree{then.sealer, g, keyroot, root}
		return old, old.warm(ctx, g, then, was.Memory)
	})
	if err != nil {
		ui.Warn("parcel %s: hoarded as of version %d, not %d: %v", name, was.Version, version, err)
		return
	}
	missing, err := h.Missing(ctx, head.cfg.UUID)
	if err == nil && len(missing) > 0 {
		if was.Version == version {
			ui.Say("parcel %s: not wholly hoarded, %d objects are missing: isr hoard %s", name, len(missing), name)
		} else {
			ui.Say("parcel %s: hoarded as of version %d; of version %d, %d objects are missing: isr hoard %s", name, was.Version, version, len(missing), name)
		}
	}
}

// Hoarding is what is remembered of a hoarded parcel.
type Hoarding struct {
	Version int   `json:"version"`
	Memory  bool  `json:"memory"` // kept too
	Objects int64 `json:"objects"`
	Missing int64 `json:"missing"` // of these, not here
}

// hoarding is how a parcel is hoarded; nil if it is not.
func hoarding(ctx context.Context, h *hoard.Hoard, uuid string) (*Hoarding, error) {
	p, err := h.Pinned(uuid)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	missing, err := h.Missing(ctx, uuid)
	if err != nil {
		return nil, err
	}
	return &Hoarding{Version: p.Version, Memory: p.Memory, Objects: p.Count, Missing: int64(len(missing))}, nil
}

// pinsByUUID is the pins there are, without what is here of them.
func (c *Client) pinsByUUID() map[string]hoard.Pin {
	pins := make(map[string]hoard.Pin)
	h, err := c.hoard()
	if err != nil {
		return pins
	}
	defer h.Close()
	list, err := h.Pins()
	if err != nil {
		c.UI.Warn("hoard: %v", err)
	}
	for _, p := range list {
		pins[p.UUID] = p
	}
	return pins
}
