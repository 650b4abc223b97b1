package client

import (
	"context"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"time"

	"isr/store/parcel"
)

// Known is a parcel that this host has heard of: what completion offers.
type Known struct {
	Parcel, UUID string
	Server, User string // "" if not known
	Here         string // the checkout's state, if there is one
	Running      bool
	Hoarded      bool
	Versions     []KnownVersion // newest first
}

// KnownVersion is one version of a Known.
type KnownVersion struct {
	Version int
	Comment string
}

// Here is the checkouts and pinned parcels of this host: no network, nothing
// asked. What cannot be read is left out.
func (c *Client) Here() []Known {
	var ks []Known
	at := make(map[string]int)
	cos, _ := c.Checkouts()
	for _, co := range cos {
		st := &co.State
		at[st.UUID] = len(ks)
		k := Known{Parcel: st.Parcel, UUID: st.UUID, Server: st.Server, User: st.User, Here: co.Describe(), Running: st.Status == Running}
		for v := st.Version; v > 0 && len(k.Versions) < knownVersions; v-- {
			k.Versions = append(k.Versions, KnownVersion{Version: v})
		}
		ks = append(ks, k)
	}
	if _, err := os.Stat(filepath.Join(c.Dir, "hoard", "pins")); err != nil {
		return ks // to open the hoard would make one
	}
	h, err := c.hoard()
	if err != nil {
		return ks
	}
	defer h.Close()
	pins, _ := h.Pins()
	for _, p := range pins {
		if i, ok := at[p.UUID]; ok {
			ks[i].Hoarded = true
			continue
		}
		ks = append(ks, Known{Parcel: p.Parcel, UUID: p.UUID, Server: p.Server, User: p.User, Hoarded: true})
	}
	return ks
}

// knownVersions is how many versions of a parcel are offered.
const knownVersions = 20

// The last listing serves completion for knownFor; a server that gave none is
// not asked again for unknownFor, so that not every key waits for a dead one.
const (
	knownFor   = 30 * time.Minute
	unknownFor = time.Minute
)

// There is the parcels of the default server and user, as they were last
// listed; if that is long ago the server is asked, which takes at most
// patience and asks the user nothing. It has no errors: what is not known is
// left out.
func (c *Client) There(ctx context.Context, patience time.Duration) []Known {
	if c.Server == "" {
		return nil
	}
	f := c.lsFile(c.Server, c.User)
	last, _ := f.load()
	if !within(last.Time, knownFor) && !within(f.asked(), unknownFor) {
		f.ask()
		c.askNames(ctx, patience)
		last, _ = f.load()
	}
	var ks []Known
	for _, l := range last.Parcels {
		if parcel.CheckName(l.Parcel) != nil {
			continue // a server may say anything
		}
		k := Known{Parcel: l.Parcel, UUID: l.UUID, Server: c.Server, User: c.User}
		for _, v := range l.Versions {
			k.Versions = append(k.Versions, KnownVersion{v.Version, parcel.Clean(v.Comment)})
		}
		for v := l.Version; len(l.Versions) == 0 && v > 0 && len(k.Versions) < knownVersions; v-- {
			k.Versions = append(k.Versions, KnownVersion{Version: v})
		}
		ks = append(ks, k)
	}
	return ks
}

// within reports whether t is less than d ago.
func within(t time.Time, d time.Duration) bool {
	age := time.Since(t)
	return age >= 0 && age < d
}

// askNames has the server list its parcels, which renews the last listing; if
// there is no answer to be had in time, there is none.
func (c *Client) askNames(ctx context.Context, patience time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	// A client of its own, for it may hang beyond this.
	quiet := newClient(c.Options, c.creds)
	quiet.Batch = true
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer quiet.Close()
		quiet.Ls(ctx, "", knownVersions)
	}()
	select {
	case <-done:
	case <-ctx.Done():
		// Whatever it hangs in ends with this process.
	}
}

// Servers are the lock servers that this host has heard of: the default one,
// those of checkouts and pins.
func (c *Client) Servers() []string {
	seen := map[string]bool{c.Server: true}
	for _, k := range c.Here() {
		seen[k.Server] = true
	}
	var names []string
	for s := range seen {
		if s = strings.TrimSpace(s); s != "" {
			names = append(names, s)
		}
	}
	sort.Strings(names)
	return names
}
