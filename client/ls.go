package client

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"time"

	"isr/client/fusefs"
	"isr/locksrv/proto"
	"isr/store/atomicfile"
	"isr/store/parcel"
)

// Listed is what ls says of one parcel: the server's word and this host's.
type Listed struct {
	proto.Listing
	Server  string     `json:"server,omitempty"`  // where it lives
	Here    string     `json:"here,omitempty"`    // the checkout's state on this host, if there is one
	Hoarded *HoardedIn `json:"hoarded,omitempty"` // if it is hoarded on this host
	Total   *Total     `json:"total,omitempty"`   // of all its versions, if versions were asked for
	Quota   *Quota     `json:"quota,omitempty"`   // of the user, if she has one
	AsOf    *time.Time `json:"as_of,omitempty"`   // when the server said so, if that is not now
}

// Tagged is the version of a parcel that has a tag; parcel.ErrNoVersion if
// there is none.
func (c *Client) Tagged(ctx context.Context, name, tag string) (int, error) {
	ls, err := c.Ls(ctx, name, maxVersions)
	if err != nil {
		return 0, err
	}
	for _, l := range ls {
		for _, v := range l.Versions {
			if slices.Contains(v.Tags, tag) {
				return v.Version, nil
			}
		}
	}
	return 0, parcel.ErrNoVersion
}

// HoardedIn is in which version a parcel is hoarded, and whether its memory is.
type HoardedIn struct {
	Version int  `json:"version"`
	Memory  bool `json:"memory"`
}

// Total is what a parcel takes on the server.
type Total struct {
	Versions int   `json:"versions"`
	Objects  int64 `json:"objects"`
	Bytes    int64 `json:"bytes"`
}

// Quota is what all parcels of a user on a server take, and may.
type Quota struct {
	Used  int64 `json:"used"`  // bytes
	Limit int64 `json:"limit"` // bytes
}

// Ls lists the parcels of the default server, or one of them, with the n
// newest versions of each. If the server cannot be reached it is the listing
// that was kept of the last time, with AsOf, and the error, of kind
// Unreachable. Quotas are not asked for.
func (c *Client) Ls(ctx context.Context, name string, n int) ([]Listed, error) {
	server, user, name := c.whose(name)
	srv, err := c.server(server, user)
	if err != nil {
		return nil, err
	}
	all := 0
	if n > 0 {
		all = maxVersions // their sum is told too
	}
	ls, err := srv.Ls(ctx, name, all)
	cache := c.lsFile(server, user)
	if errors.Is(err, parcel.ErrUnreachable) {
		return c.here(cache.read(name, n), server), err
	}
	if err != nil {
		return nil, err
	}
	if name != "" && len(ls) == 0 {
		return nil, parcel.NewError(parcel.NoParcel, "parcel %s: no such parcel", name).WithHint("isr ls shows which there are")
	}
	out := make([]Listed, len(ls))
	for i, l := range ls {
		out[i] = Listed{Listing: l, Server: server}
		if n > 0 {
			t := Total{Versions: len(l.Versions)}
			for _, v := range l.Versions {
				t.Objects, t.Bytes = t.Objects+v.Objects, t.Bytes+v.Bytes
			}
			out[i].Total, out[i].Versions = &t, l.Versions[:min(n, len(l.Versions))]
		}
	}
	if name == "" {
		cache.write(out)
	}
	return c.here(out, server), nil
}

// whose is where a parcel lives, and what it is called there: one that is here
// may be named by its UUID, any other is of the default server.
func (c *Client) whose(name string) (server, user, parcel string) {
	if co, err := c.Find(name); name != "" && err == nil {
		return co.State.Server, co.State.User, co.State.Parcel
	}
	return c.Server, c.User, name
}

// UserQuota is the quota of the user who has the parcel called name, or all
// that Ls lists; nil if there is none, or nobody says so: an older server.
func (c *Client) UserQuota(ctx context.Context, name string) *Quota {
	server, user, _ := c.whose(name)
	srv, err := c.server(server, user)
	if err != nil {
		return nil
	}
	u, err := srv.Quota(ctx)
	if err != nil || u.Quota <= 0 {
		return nil
	}
	return &Quota{Used: u.Bytes, Limit: u.Quota}
}

// maxVersions is more than a parcel has.
const maxVersions = 1 << 30

// here adds what this host knows of parcels of server.
func (c *Client) here(ls []Listed, server string) []Listed {
	all, err := c.Checkouts()
	if err != nil {
		c.UI.Warn("%v", err)
	}
	pins := c.pinsByUUID()
	for i := range ls {
		l := &ls[i]
		for _, co := range all {
			if co.State.UUID == l.UUID && co.State.Server == server {
				l.Here = co.Describe()
				if co.State.Version > l.Version && co.State.Lost == "" && l.AsOf == nil && l.Error == "" {
					l.Here += ", its version lost by the server"
				}
			}
		}
		if p, ok := pins[l.UUID]; ok {
			l.Hoarded = &HoardedIn{p.Version, p.Memory}
		}
	}
	return ls
}

// lsFile is the last listing of one user's parcels on one server, for when
// there is no network, and for completion: JSON, see LastListing. Losing it
// loses nothing.
type lsFile struct{ path, server, user string }

// LastListing is the content of a file in ~/.isr/ls, USERID@SERVER with % and
// two hex digits for what a file name cannot hold.
type LastListing struct {
	Server  string    `json:"server"`
	User    string    `json:"user"` // as given; "": the login name
	Time    time.Time `json:"time"`
	Parcels []Listed  `json:"parcels"` // as isr ls --json has them, with the versions last asked for
}

func (c *Client) lsFile(server, user string) lsFile {
	return lsFile{filepath.Join(c.Dir, "ls", url.PathEscape(user+"@"+server)), server, user}
}

func (f lsFile) load() (last LastListing, ok bool) {
	p, err := os.ReadFile(f.path)
	return last, err == nil && json.Unmarshal(p, &last) == nil
}

// read is what was kept: of all parcels, or of the one called name, by name or
// UUID, with n versions.
func (f lsFile) read(name string, n int) []Listed {
	last, ok := f.load()
	if !ok {
		return nil
	}
	var out []Listed
	for _, l := range last.Parcels {
		if name != "" && l.Parcel != name && l.UUID != name {
			continue
		}
		l.AsOf, l.Versions = &last.Time, l.Versions[:min(n, len(l.Versions))]
		if n == 0 {
			l.Total = nil
		}
		out = append(out, l)
	}
	return out
}

// write keeps a listing. Versions that were not asked for this time are kept
// from the last, as long as the newest is the same.
func (f lsFile) write(ls []Listed) {
	last, _ := f.load()
	kept := make(map[string]Listed)
	for _, l := range last.Parcels {
		kept[l.UUID] = l
	}
	now := LastListing{Server: f.server, User: f.user, Time: now(), Parcels: make([]Listed, len(ls))}
	for i, l := range ls {
		if old := kept[l.UUID]; l.Total == nil && old.Version == l.Version {
			l.Versions, l.Total = old.Versions, old.Total
		}
		now.Parcels[i] = l
	}
	f.save(now)
}

func (f lsFile) save(l LastListing) {
	p, err := json.MarshalIndent(l, "", "  ")
	if err != nil || privateDir(filepath.Dir(f.path)) != nil {
		return
	}
	atomicfile.Write(f.path, append(p, '\n'), 0o600)
}

// asked is when completion last asked the server, or a listing was kept; it is
// the file's mtime.
func (f lsFile) asked() time.Time {
	fi, err := os.Stat(f.path)
	if err != nil {
		return time.Time{}
	}
	return fi.ModTime()
}

// ask notes that completion is about to ask.
func (f lsFile) ask() {
	if err := os.Chtimes(f.path, time.Time{}, time.Now()); errors.Is(err, fs.ErrNotExist) {
		f.save(LastListing{Server: f.server, User: f.user})
	}
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
	if st.Lost != "" {
		s += ", its version lost by the server"
	}
	return s
}
