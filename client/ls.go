package client

import (
	"context"

	"isr/client/fusefs"
	"isr/locksrv/proto"
	"isr/store/parcel"
)

// Listed is what ls says of one parcel: the server's word and this host's.
type Listed struct {
	proto.Listing
	Here   string `json:"here,omitempty"`   // the checkout's state on this host, if there is one
	Server string `json:"server,omitempty"` // where it lives
}

// Ls lists the parcels of the default server, or one of them, with the n
// newest versions of each.
func (c *Client) Ls(ctx context.Context, name string, n int) ([]Listed, error) {
	srv, err := c.defaultServer()
	if err != nil {
		return nil, err
	}
	ls, err := srv.Ls(ctx, name, n)
	if err != nil {
		return nil, err
	}
	if name != "" && len(ls) == 0 {
		return nil, parcel.NewError(parcel.NoParcel, "parcel %s: no such parcel", name).WithHint("isr ls shows which there are")
	}
	here, err := c.Checkouts()
	if err != nil {
		return nil, err
	}
	out := make([]Listed, len(ls))
	for i, l := range ls {
		out[i] = Listed{Listing: l, Server: c.Server}
		for _, co := range here {
			if co.State.UUID == l.UUID && co.State.Server == c.Server {
				out[i].Here = co.Describe()
			}
		}
	}
	return out, nil
}

// Describe is the checkout's state in words.
func (co *Checkout) Describe() string {
	st := &co.State
	s := string(st.Status)
	switch {
	case st.Status == Suspended && st.Memory == "":
		s = "powered off, modified"
	case st.Status == CheckedOut && st.Memory == "":
		s = "checked out, powered off"
	case st.Status == Running && fusefs.Stale(st.Mount):
		s = "its keeper died; the next command puts it right"
	}
	if st.Damaged != "" {
		s += ", damaged"
	}
	if st.Orphaned != "" {
		s += ", orphaned"
	}
	return s
}
