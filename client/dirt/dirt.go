// Package dirt is the model of the dirtometer: what a running parcel does with
// its disk and its memory, and where what it lacks comes from.
//
// A Meter reads the counter files that the parcel's mount shows and makes
// Snapshots of them, with rates over the last few seconds. It reads counts and
// nothing else: no content, no tag and no key is in a Snapshot. It changes
// nothing. How a Snapshot is shown is for packages tui and web.
package dirt

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"isr/client/fetch"
	"isr/client/image"
)

// Source gives the counter files of a running parcel, by name.
type Source interface {
	Read(name string) ([]byte, error)
}

// Mount is the directory where a running parcel is shown, as a Source.
type Mount string

// Read reads the counter file name.
func (m Mount) Read(name string) ([]byte, error) {
	return os.ReadFile(filepath.Join(string(m), "stats", name))
}

// Snapshot is a running parcel at a glance.
type Snapshot struct {
	Parcel  string    `json:"parcel"`
	Version int       `json:"version"` // that it was checked out as
	VMM     string    `json:"vmm"`
	Since   time.Time `json:"since"`
	Offline bool      `json:"offline"`
	Time    time.Time `json:"time"`

	In       Flow     `json:"in"` // over the network
	Out      Flow     `json:"out"`
	Prefetch Progress `json:"prefetch"`
	Images   []Image  `json:"images"` // the disk first
	Rungs    []Rung   `json:"rungs"`  // the nearest first
}

// Flow is bytes since the run began, and a second of late.
type Flow struct {
	Bytes int64   `json:"bytes"`
	Rate  float64 `json:"rate"`
}

// Progress is how far something has come.
type Progress struct {
	Done  int64 `json:"done"`
	Total int64 `json:"total"`
	Over  bool  `json:"over"`
}

// Image is the disk or the memory.
type Image struct {
	Name      string `json:"name"`
	Size      int64  `json:"size"`
	ChunkSize int    `json:"chunk_size"`

	Read    Flow `json:"read"`    // by the guest
	Written Flow `json:"written"` // by the guest
	Loaded  Flow `json:"loaded"`  // chunks unsealed, from wherever
	Network Flow `json:"network"` // of these, sealed, from the source

	Accessed    int64 `json:"accessed"`     // chunks read or written in this run
	ModifiedNow int64 `json:"modified_now"` // chunks written in this run
	Pending     int64 `json:"pending"`      // chunks modified since checkout or sync: what a checkin would send

	Hits      Percent `json:"hits"` // of chunks wanted, found unsealed
	Evictions int64   `json:"evictions"`
	Spared    Percent `json:"spared"` // of chunks accessed, those that cost no fetch over the network

	Waiting    int           `json:"waiting"`     // chunks on their way now
	WaitingFor time.Duration `json:"waiting_for"` // nanoseconds, of the one that waits longest
	Latency    Latency       `json:"latency"`     // of what the guest had to wait for

	Here     int64   `json:"here"`      // objects of it on this host
	Stored   int64   `json:"stored"`    // objects it has, as far as known
	HereRate float64 `json:"here_rate"` // objects that arrive a second: a prefetch, or a hoard beside
	Surveyed bool    `json:"surveyed"`  // Here and Stored are known of all of it
	Map      Map     `json:"map"`
}

// Map is an image in cells of equally many chunks.
type Map struct {
	PerCell int64            `json:"per_cell"`
	Cells   string           `json:"cells"`  // the states, as in image.CellStates
	Shares  string           `json:"shares"` // how much of each cell is in its state, in ninths
	Counts  map[string]int64 `json:"counts"` // chunks by state
}

// Rung is where objects were asked for.
type Rung struct {
	Name    string        `json:"name"`
	Objects int64         `json:"objects"` // that it had
	Bytes   Flow          `json:"bytes"`
	Hits    Percent       `json:"hits"` // of the objects asked for
	Errors  int64         `json:"errors"`
	Latency Latency       `json:"latency"`
	Max     time.Duration `json:"max"`
}

// Latency is within what time, in nanoseconds, so many of a hundred came.
type Latency struct {
	P50 time.Duration `json:"p50"`
	P90 time.Duration `json:"p90"`
	P99 time.Duration `json:"p99"`
}

// Percent is a part of a hundred, or None.
type Percent float64

// None is the percentage of nothing.
const None Percent = -1

func percent(part, whole int64) Percent {
	if whole <= 0 {
		return None
	}
	return Percent(100 * float64(max(part, 0)) / float64(whole))
}

// window is the time over which rates are taken.
const window = 3 * time.Second

// Meter makes snapshots of one run. It is not safe for concurrent use.
type Meter struct {
	src   Source
	flows map[string][]reading
}

// reading is a counter at a time.
type reading struct {
	at time.Time
	n  int64
}

// New is a meter of what src shows.
func New(src Source) *Meter { return &Meter{src: src, flows: make(map[string][]reading)} }

// The counter files, as far as they are wanted here.
type (
	parcelFile struct {
		Parcel  string
		Version int
		VMM     string
		Since   time.Time
		Offline bool
	}
	allFile struct {
		Fetched map[string]struct{ Chunks, Bytes int64 }
		Network struct{ In, Out int64 }
		Images  map[string]image.Stats
	}
	mapFile map[string]struct {
		image.Map
		Surveyed bool
	}
)

// Sample is the parcel now. An error that is not of a file's text says that
// the run has ended, or its keeper died: it is that of the source.
func (m *Meter) Sample(now time.Time) (*Snapshot, error) {
	var (
		what  parcelFile
		all   allFile
		maps  mapFile
		rungs []fetch.Counts
		s     = &Snapshot{Time: now}
	)
	for name, v := range map[string]any{"parcel": &what, "all": &all, "map": &maps, "ladder": &rungs, "prefetch": &s.Prefetch} {
		p, err := m.src.Read(name)
		if err != nil {
			return nil, err
		}
		if err := json.Unmarshal(p, v); err != nil {
			return nil, fmt.Errorf("stats/%s: %w", name, err)
		}
	}
	s.Parcel, s.Version, s.VMM, s.Since, s.Offline = what.Parcel, what.Version, what.VMM, what.Since, what.Offline
	s.In, s.Out = m.flow("in", now, all.Network.In), m.flow("out", now, all.Network.Out)
	for _, name := range []string{"disk", "memory"} {
		st, ok := all.Images[name]
		if !ok {
			continue
		}
		mp := maps[name]
		im := Image{Name: name, Size: st.Size, ChunkSize: st.ChunkSize,
			Read:     m.flow(name+" read", now, st.ReadBytes),
			Written:  m.flow(name+" written", now, st.WrittenBytes),
			Loaded:   m.flow(name+" loaded", now, (st.Fetched+st.Refetched)*int64(st.ChunkSize)),
			Network:  m.flow(name+" network", now, all.Fetched[name].Bytes),
			Accessed: st.Touched, ModifiedNow: st.ModifiedNow, Pending: st.Modified,
			Hits: percent(st.CacheHits, st.CacheHits+st.CacheMisses), Evictions: st.CacheEvictions,
			Spared:  percent(st.Touched-all.Fetched[name].Chunks, st.Touched),
			Waiting: st.Waiting, WaitingFor: st.WaitingFor,
			Latency: Latency{st.FetchP50, st.FetchP90, st.FetchP99},
			Here:    mp.Here, Stored: mp.Stored, HereRate: m.flow(name+" here", now, mp.Here).Rate, Surveyed: mp.Surveyed,
			Map: Map{mp.PerCell, mp.Cells, mp.Shares, mp.Counts}}
		s.Images = append(s.Images, im)
	}
	for _, r := range rungs {
		s.Rungs = append(s.Rungs, Rung{Name: r.Name, Objects: r.Hits, Bytes: m.flow("rung "+r.Name, now, r.Bytes),
			Hits: percent(r.Hits, r.Hits+r.Misses), Errors: r.Errors, Latency: Latency{r.P50, r.P90, r.P99}, Max: r.Max})
	}
	return s, nil
}

// flow notes that counter name stands at n, and gives its rate over the last
// window. A counter that has gone back counts from there.
func (m *Meter) flow(name string, now time.Time, n int64) Flow {
	rs := m.flows[name]
	if len(rs) > 0 && n < rs[len(rs)-1].n {
		rs = nil
	}
	rs = append(rs, reading{now, n})
	for len(rs) > 2 && now.Sub(rs[1].at) >= window {
		rs = rs[1:]
	}
	m.flows[name] = rs
	f := Flow{Bytes: n}
	if d := now.Sub(rs[0].at).Seconds(); d > 0 {
		f.Rate = float64(n-rs[0].n) / d
	}
	return f
}
