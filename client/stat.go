package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"isr/client/image"
	"isr/client/remote"
	"isr/store/keyring"
	"isr/store/parcel"
	"isr/store/seal"
)

// Stat is what isr stat says of a checkout.
type Stat struct {
	Parcel   string               `json:"parcel"`
	UUID     string               `json:"uuid"`
	Server   string               `json:"server"`
	User     string               `json:"user"`
	Version  int                  `json:"version"`
	State    string               `json:"state"`
	Memory   string               `json:"memory_of,omitempty"` // VMM of the memory image
	Mount    string               `json:"mount,omitempty"`     // while running
	Images   map[string]ImageStat `json:"images"`
	Network  Traffic              `json:"network"`
	Rungs    []RungStat           `json:"rungs"`              // nearest first
	Hoarding *Hoarding            `json:"hoarding,omitempty"` // nil: not hoarded
}

// ImageStat is what of one image is where. Fetched counts since checkout.
type ImageStat struct {
	Total    Amount       `json:"total"`    // of the image
	Stored   Amount       `json:"stored"`   // not zeros: chunks that are objects
	Fetched  Amount       `json:"fetched"`  // from the source; bytes are sealed
	Modified Amount       `json:"modified"` // since checkout or sync
	Hoarded  Amount       `json:"hoarded"`  // of Stored, on this host
	Session  *image.Stats `json:"session,omitempty"`
}

// Traffic is network bytes since checkout.
type Traffic struct {
	In  int64 `json:"in"`
	Out int64 `json:"out"`
}

// sessionStats is what a run counts: shown under stats/ while it runs, and
// summed up in the file stats of the checkout afterwards.
type sessionStats struct {
	Fetched map[string]Amount      `json:"fetched"`
	Network Traffic                `json:"network"`
	Images  map[string]image.Stats `json:"images"`
	Rungs   []RungStat             `json:"rungs"`
}

func (k *keeper) sessionStats() sessionStats {
	st := sessionStats{Fetched: make(map[string]Amount), Images: make(map[string]image.Stats), Rungs: rungStats(k.s.ladder)}
	for name, sd := range k.s.images {
		st.Fetched[name] = k.s.fetched(name)
		st.Images[name] = sd.image.Snapshot()
	}
	st.Fetched["keyring"] = k.s.fetched("keyring")
	if k.s.srv != nil {
		st.Network.In, st.Network.Out = k.s.srv.Traffic()
	}
	return st
}

// stats are the counter files of the mount.
func (k *keeper) stats() map[string]func() []byte {
	files := map[string]func() []byte{
		"all":     show(func() any { return k.sessionStats() }),
		"network": show(func() any { return k.sessionStats().Network }),
		"ladder":  show(func() any { return k.s.ladder.Counts() }),
		"hoarded": show(func() any { return k.hoarded() }),
	}
	for name, sd := range k.s.images {
		files[name] = show(func() any { return sd.image.Snapshot() })
	}
	return files
}

// show is a counter file of what v says, as JSON.
func show(v func() any) func() []byte {
	return func() []byte {
		p, err := json.MarshalIndent(v(), "", "  ")
		if err != nil {
			panic(err) // only numbers and strings
		}
		return append(p, '\n')
	}
}

// hoarded counts what of each image is on this host, anew at each call.
func (k *keeper) hoarded() map[string]Amount {
	here := k.co.client.ladder(k.co.local(), k.s.hoard, nil)
	counts := make(map[string]Amount)
	for name, sd := range k.s.images {
		_, n, err := hoarded(context.Background(), k.co.sealer(), here, k.s.hoard.Size, sd.pristine)
		if err != nil {
			k.ui.Warn("parcel %s: stats: %v", k.co.State.Parcel, err)
		}
		counts[name] = n
	}
	return counts
}

// keepStats adds the run's counters to those of the checkout. They are for
// people: losing them loses nothing.
func (k *keeper) keepStats() {
	sum := k.co.pastStats()
	now := k.sessionStats()
	for name, a := range now.Fetched {
		b := sum.Fetched[name]
		sum.Fetched[name] = Amount{a.Chunks + b.Chunks, a.Bytes + b.Bytes}
	}
	sum.Network.In += now.Network.In
	sum.Network.Out += now.Network.Out
	sum.Images = now.Images
	sum.Rungs = addRungs(sum.Rungs, now.Rungs)
	k.co.writeStats(sum)
}

// noteTraffic adds to the checkout's counters what srv has carried for this
// command.
func (co *Checkout) noteTraffic(srv *remote.Server) {
	in, out := srv.Traffic()
	noted := &co.client.noted
	sum := co.pastStats()
	sum.Network.In += in - noted.In
	sum.Network.Out += out - noted.Out
	*noted = Traffic{in, out}
	co.writeStats(sum)
}

func (co *Checkout) writeStats(st sessionStats) {
	if p, err := json.Marshal(st); err == nil {
		os.WriteFile(co.path("stats"), p, 0o600)
	}
}

func (co *Checkout) pastStats() sessionStats {
	st := sessionStats{}
	if p, err := os.ReadFile(co.path("stats")); err == nil {
		json.Unmarshal(p, &st)
	}
	if st.Fetched == nil {
		st.Fetched = make(map[string]Amount)
	}
	return st
}

// Stat tells what of a checked-out parcel is on this host. It changes nothing
// and needs no network; it may be asked while the parcel runs.
func (c *Client) Stat(ctx context.Context, name string) (*Stat, error) {
	co, err := c.Find(name)
	if err != nil {
		return nil, err
	}
	if co.State.Status == Acquiring {
		// Another isr may be at it yet: then that is said.
		if err := co.seize(); err != nil {
			return nil, err
		}
		co.letGo()
	}
	if co.State.Status == Acquiring {
		return nil, parcel.NewError(parcel.Failed, "parcel %s: its checkout was interrupted", name).
			WithHint("run isr checkout %s again", name)
	}
	if err := co.unlock(ctx); err != nil {
		return nil, err
	}
	st := &Stat{Parcel: co.State.Parcel, UUID: co.State.UUID, Server: co.State.Server, User: co.State.User,
		Version: co.State.Version, State: co.Describe(), Memory: co.State.Memory, Images: make(map[string]ImageStat)}
	past := co.pastStats()
	st.Network, st.Rungs = past.Network, past.Rungs
	var live *sessionStats
	if co.State.Status == Running {
		st.Mount = co.State.Mount
		if p, err := os.ReadFile(filepath.Join(st.Mount, "stats", "all")); err == nil {
			live = new(sessionStats)
			if err := json.Unmarshal(p, live); err != nil {
				return nil, fmt.Errorf("parcel %s: stats: %w", name, err)
			}
			st.Network.In += live.Network.In
			st.Network.Out += live.Network.Out
			st.Rungs = addRungs(st.Rungs, live.Rungs)
		}
	}
	h, err := c.hoard()
	if err != nil {
		return nil, err
	}
	defer h.Close()
	here := c.ladder(co.local(), h, nil)
	root, err := co.root(ctx, co.State.pristine, here)
	if err != nil {
		return nil, err
	}
	if st.Hoarding, err = hoarding(ctx, h, co.State.UUID); err != nil {
		return nil, err
	}
	for _, im := range root.Images {
		is := ImageStat{Total: Amount{im.Chunks(), im.Size}, Fetched: past.Fetched[im.Name]}
		if is.Stored, is.Hoarded, err = hoarded(ctx, co.sealer(), here, h.Dir.Size, im); err != nil {
			return nil, fmt.Errorf("parcel %s: %w", name, err)
		}
		switch {
		case live != nil:
			f := live.Fetched[im.Name]
			is.Fetched = Amount{is.Fetched.Chunks + f.Chunks, is.Fetched.Bytes + f.Bytes}
			s := live.Images[im.Name]
			is.Session = &s
			is.Modified.Chunks = s.Modified
		case co.State.Status != Running:
			ov, err := image.OpenOverlay(co.path("hdk"), im.Name, im.Size, im.ChunkSize, co.key)
			if errors.Is(err, image.ErrBusy) {
				break // another command is at it
			}
			if err != nil {
				return nil, fmt.Errorf("parcel %s: %w", name, err)
			}
			is.Modified.Chunks = ov.ModifiedCount()
			ov.Close()
		}
		is.Modified.Bytes = is.Modified.Chunks * int64(im.ChunkSize)
		st.Images[im.Name] = is
	}
	return st, nil
}

// hoarded counts the chunks of an image that are objects, and of these the
// ones on this host, whose sizes size tells. Below a block that is not here
// nothing is known: its chunks count as stored, not as hoarded, and only
// where blocks are here is the count of stored chunks complete.
func hoarded(ctx context.Context, s seal.Sealer, here keyring.Getter, size func(seal.Tag) (int64, error), im keyring.Image) (stored, hoarded Amount, err error) {
	err = keyring.Walk(ctx, s, here, im, func(level int, n int64, ref seal.Ref) error {
		bytes, serr := size(ref.Tag)
		if level > 0 {
			if serr != nil {
				return keyring.SkipBelow
			}
			return nil
		}
		stored.Chunks++
		stored.Bytes += int64(im.ChunkSize)
		if serr == nil {
			hoarded.Chunks++
			hoarded.Bytes += bytes
		}
		return nil
	})
	return stored, hoarded, err
}

// HolderText says in a clause who holds a parcel, for a question; "" if it is
// not known.
func (c *Client) HolderText(ctx context.Context, name string) string {
	srv, err := c.defaultServer()
	if err != nil {
		return ""
	}
	ls, err := srv.Ls(ctx, name, 0)
	if err != nil || len(ls) != 1 || ls[0].Held == nil {
		return ""
	}
	h := ls[0].Held
	return fmt.Sprintf(" %s on %s holds it since %s, last contact %s: it cannot check in after this.",
		h.User, h.Host, h.Since.Local().Format("2006-01-02 15:04"), h.Contact.Local().Format("2006-01-02 15:04"))
}
