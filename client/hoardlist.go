package client

import (
	"context"
	"errors"
	"io/fs"
	"time"

	"isr/client/hoard"
	"isr/store/parcel"
)

// HoardedParcel is what lshoard says of one.
type HoardedParcel struct {
	Parcel    string     `json:"parcel"`
	User      string     `json:"user"`
	UUID      string     `json:"uuid"`
	Server    string     `json:"server"`
	Version   int        `json:"version"`
	Memory    bool       `json:"memory"` // kept too: it can be resumed without a network
	Complete  bool       `json:"complete"`
	Objects   int64      `json:"objects"`
	Here      int64      `json:"here"`       // of Objects
	Bytes     int64      `json:"bytes"`      // of what is here
	DiskOnly  int64      `json:"disk_bytes"` // of Bytes, for the disk alone
	MemOnly   int64      `json:"memory_bytes"`
	Shared    int64      `json:"shared_bytes"` // of Bytes, needed by another hoarded parcel too
	Pinned    time.Time  `json:"pinned"`
	Completed *time.Time `json:"completed,omitempty"`   // when all was last seen to be here
	Checkout  string     `json:"checked_out,omitempty"` // its state, if it is checked out here
}

// HoardTotal is what the hoard holds.
type HoardTotal struct {
	Objects  int64 `json:"objects"`
	Bytes    int64 `json:"bytes"`
	Quota    int64 `json:"quota"`          // bytes; 0: none
	Pinned   int64 `json:"pinned_bytes"`   // for hoarded parcels
	Unpinned int64 `json:"unpinned_bytes"` // what may be evicted
}

// HoardList is what lshoard says.
type HoardList struct {
	Parcels []HoardedParcel `json:"parcels"`
	Total   HoardTotal      `json:"total"`
}

// HoardList lists the hoarded parcels. It needs no network and no lock. With
// an error that wraps hoard.ErrBadPin the list is good all the same.
func (c *Client) HoardList(ctx context.Context) (HoardList, error) {
	h, err := c.hoard()
	if err != nil {
		return HoardList{}, err
	}
	defer h.Close()
	kept, u, err := h.Survey(ctx)
	if err != nil && !errors.Is(err, hoard.ErrBadPin) {
		return HoardList{}, err
	}
	list := HoardList{Parcels: []HoardedParcel{}, Total: HoardTotal{Objects: u.Objects, Bytes: u.Bytes, Quota: u.Quota,
		Pinned: u.PinnedBytes, Unpinned: u.Bytes - u.PinnedBytes}}
	here, cerr := c.Checkouts()
	if cerr != nil {
		return HoardList{}, cerr
	}
	for _, k := range kept {
		p := HoardedParcel{Parcel: k.Parcel, User: k.User, UUID: k.UUID, Server: k.Server, Version: k.Version, Memory: k.Memory,
			Complete: k.Complete(), Objects: k.Count, Here: k.Here, Bytes: k.Bytes, DiskOnly: k.DiskOnly, MemOnly: k.MemOnly,
			Shared: k.Shared, Pinned: k.Time}
		if !k.Completed.IsZero() {
			p.Completed = &k.Completed
		}
		for _, co := range here {
			if co.State.UUID == k.UUID {
				p.Checkout = co.Describe()
			}
		}
		list.Parcels = append(list.Parcels, p)
	}
	if err != nil {
		err = parcel.NewError(parcel.Damaged, "hoard: %v", err).
			WithHint("hoard that parcel again, or give it up: isr rmhoard and the UUID")
	}
	return list, err
}

// FindHoarded is the pin that name means, a checkout's, or that of the UUID, or
// the only one of that name, on server and of user if they are not ""; and the
// checkout of the same parcel, if there is one.
func (c *Client) FindHoarded(name, server, user string) (hoard.Pin, *Checkout, error) {
	p, err := c.findHoarded(name, server, user)
	if err != nil {
		return p, nil, err
	}
	all, err := c.Checkouts()
	for _, co := range all {
		if co.State.UUID == p.UUID {
			return p, co, err
		}
	}
	return p, nil, err
}

func (c *Client) findHoarded(name, server, user string) (hoard.Pin, error) {
	h, err := c.hoard()
	if err != nil {
		return hoard.Pin{}, err
	}
	defer h.Close()
	co, err := c.Find(name)
	if err != nil && !errors.Is(err, parcel.ErrNoParcel) {
		return hoard.Pin{}, err
	}
	if err == nil {
		if p := pinned(h, co.State.UUID); p != nil {
			return *p, nil
		}
	}
	switch p, err := h.Pinned(name); {
	case err == nil:
		return p, nil
	case errors.Is(err, hoard.ErrBadPin):
		// Which parcel it was of is lost; it can be given up all the same.
		return hoard.Pin{UUID: name, Parcel: name}, nil
	}
	pins, err := h.Pins()
	if err != nil {
		c.UI.Warn("hoard: %v", err)
	}
	var found []hoard.Pin
	for _, p := range pins {
		if p.Parcel == name && (server == "" || p.Server == server) && (user == "" || p.User == user) {
			found = append(found, p)
		}
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		return hoard.Pin{}, parcel.NewError(parcel.NoParcel, "parcel %s: not hoarded on this host", name).
			WithHint("isr lshoard shows which are")
	}
	return hoard.Pin{}, parcel.NewError(parcel.Usage, "parcel %s: %d of that name are hoarded", name, len(found)).
		WithHint("say which by -s and -u, or by the UUID that isr lshoard -l shows")
}

// RmHoard gives up what is hoarded of a parcel: what no other hoarded parcel
// needs is removed, and the parcel is hoarded no more. Not while it runs: it
// may run without a network, on what would go.
func (c *Client) RmHoard(ctx context.Context, p hoard.Pin, co *Checkout) (hoard.Freed, error) {
	if co != nil && co.State.Status == Running {
		if err := co.seize(); err != nil {
			return hoard.Freed{}, err
		}
		defer co.letGo()
	}
	h, err := c.hoard()
	if err != nil {
		return hoard.Freed{}, err
	}
	defer h.Close()
	freed, err := h.Drop(ctx, p.UUID)
	if errors.Is(err, hoard.ErrBadPin) || errors.Is(err, fs.ErrNotExist) {
		err = h.Unpin(p.UUID)
	}
	return freed, err
}
