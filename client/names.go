package client

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"time"

	"isr/store/atomicfile"
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

// A listing serves completion for knownFor; that there was none to be had is
// remembered for unknownFor, so that not every key waits for a dead server.
const (
	knownFor   = 30 * time.Minute
	unknownFor = time.Minute
)

// namesFile is a listing kept for completion.
type namesFile struct {
	Server  string         `json:"server"`
	User    string         `json:"user"`
	Parcels []namedListing `json:"parcels"`
	Reached bool           `json:"reached"`
	Listed  time.Time      `json:"listed"`
}

type namedListing struct {
	Parcel   string `json:"parcel"`
	UUID     string `json:"uuid"`
	Versions []struct {
		Version int    `json:"version"`
		Comment string `json:"comment"`
	} `json:"versions"`
}

// There is the parcels of the default server and user, as it was last heard;
// if that is long ago the server is asked, which takes at most patience and
// asks the user nothing. It has no errors: what is not known is left out.
func (c *Client) There(ctx context.Context, patience time.Duration) []Known {
	if c.Server == "" {
		return nil
	}
	sum := sha256.Sum256([]byte(c.User + "\n" + c.Server))
	name := filepath.Join(c.Dir, "ls", "names-"+hex.EncodeToString(sum[:8]))
	var f namesFile
	if p, err := os.ReadFile(name); err == nil && json.Unmarshal(p, &f) == nil && f.Server == c.Server && f.User == c.User {
		age := time.Since(f.Listed)
		if age >= 0 && (f.Reached && age < knownFor || age < unknownFor) {
			return f.known()
		}
	}
	f = c.askNames(ctx, patience, f)
	if p, err := json.Marshal(f); err == nil && os.MkdirAll(filepath.Dir(name), 0o700) == nil {
		atomicfile.Write(name, p, 0o600) // a cache: losing it loses nothing
	}
	return f.known()
}

// askNames is the server's word, or if there is none to be had, what was.
func (c *Client) askNames(ctx context.Context, patience time.Duration, old namesFile) namesFile {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	f := namesFile{Server: c.Server, User: c.User, Listed: time.Now(), Parcels: old.Parcels}
	// A client of its own, for it may hang beyond this.
	quiet := newClient(c.Options, c.creds)
	quiet.Batch = true
	type answer struct {
		ls  []Listed
		err error
	}
	done := make(chan answer, 1)
	go func() {
		defer quiet.Close()
		ls, err := quiet.Ls(ctx, "", knownVersions)
		done <- answer{ls, err}
	}()
	select {
	case a := <-done:
		f.Reached = a.err == nil
		if a.err == nil || len(a.ls) > 0 {
			f.Parcels = nil
			if p, err := json.Marshal(a.ls); err == nil {
				json.Unmarshal(p, &f.Parcels)
			}
		}
	case <-ctx.Done():
		// Whatever it hangs in ends with this process.
	}
	return f
}

func (f *namesFile) known() []Known {
	var ks []Known
	for _, l := range f.Parcels {
		if parcel.CheckName(l.Parcel) != nil {
			continue // a server may say anything
		}
		k := Known{Parcel: l.Parcel, UUID: l.UUID, Server: f.Server, User: f.User}
		for _, v := range l.Versions {
			k.Versions = append(k.Versions, KnownVersion{v.Version, parcel.Clean(v.Comment)})
		}
		ks = append(ks, k)
	}
	return ks
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
