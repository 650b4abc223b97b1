package proto

import (
	"encoding/json"
	"fmt"
	"math"
	"reflect"
	"slices"
	"strings"
	"time"

	"isr/store/parcel"
)

// ReportFormat is the format of a Report. A field that is new does not change
// it; one whose meaning changes does.
const ReportFormat = 1

// MaxReport bounds a Report, bytes of JSON.
const MaxReport = 64 << 10

const (
	maxReportText = 200
	maxReportList = 64 // runs, images, rungs
)

// Report is what a client tells of the use of one parcel between two commits:
// counts and times of the pilot's study. It is free of content: no name of a
// file, host, place or network, no tag, key, address or text of the user's.
// isr-study(5) says what each is for.
type Report struct {
	Format  int       `json:"format"`
	ID      string    `json:"id"`      // 32 hex digits: a report that comes twice counts once
	Made    time.Time `json:"made"`    // by the client's clock
	UUID    string    `json:"uuid"`    // of the parcel
	Epoch   int64     `json:"epoch"`   // of the lock under which it was used
	From    int       `json:"from"`    // version it was used from
	Version int       `json:"version"` // version that was made of it, or From
	Checkin bool      `json:"checkin"` // the lock went back; else it was a sync

	Machine ReportMachine `json:"machine"`
	Runs    []ReportRun   `json:"runs"`
	Sealed  []ReportImage `json:"sealed,omitempty"` // by image; none if nothing had changed
	Sent    ReportSent    `json:"sent"`
	Hoard   ReportHoard   `json:"hoard"`
}

// ReportMachine is where the parcel was used.
type ReportMachine struct {
	ISR    string `json:"isr"` // release of the client
	OS     string `json:"os"`
	Arch   string `json:"arch"`
	CPU    string `json:"cpu"` // model
	CPUs   int    `json:"cpus"`
	Memory int64  `json:"memory"` // bytes
}

// How a run ended.
const (
	EndSuspended = "suspended"
	EndOff       = "off"    // the guest shut itself down, or the VMM keeps no memory
	EndFailed    = "failed" // the VMM or its guest broke
	EndKilled    = "killed" // the client itself, or its host
)

// ReportRun is one run of the parcel: a resume or a boot, to its end.
type ReportRun struct {
	Start          time.Time        `json:"start"`
	Seconds        float64          `json:"seconds"`       // until its end; of one that was killed, 0
	StartSeconds   float64          `json:"start_seconds"` // of these, before the guest ran
	Ended          string           `json:"ended"`
	Resumed        bool             `json:"resumed"` // from memory; else booted
	Reboots        int              `json:"reboots"`
	VMM            string           `json:"vmm"`
	Accel          string           `json:"accel,omitempty"`
	CPUSeconds     float64          `json:"cpu_seconds"` // of the VMM, guest included
	Offline        bool             `json:"offline"`     // it was not to touch the network
	Outages        int              `json:"outages"`     // times that the guest waited for a network
	OutageSeconds  float64          `json:"outage_seconds"`
	RTT            float64          `json:"rtt"` // seconds, the shortest round trip seen; 0: not known
	In             int64            `json:"in"`  // bytes from the network, everything included
	Out            int64            `json:"out"`
	Down           float64          `json:"down"` // bytes a second, the most that came within one: bandwidth is no less
	Up             float64          `json:"up"`
	Places         int              `json:"places"`     // of objects, beside the lock server
	Answering      int              `json:"answering"`  // of these, those that answered anything
	Prefetched     int64            `json:"prefetched"` // chunks fetched ahead, by the last resume's order
	PrefetchWanted int64            `json:"prefetch_wanted"`
	Images         []ReportActivity `json:"images"`
	Rungs          []ReportRung     `json:"rungs"`
}

// ReportActivity is what a run did with an image. Bytes are of plaintext, but
// for FetchedBytes.
type ReportActivity struct {
	Image        string  `json:"image"` // disk or memory
	ChunkSize    int64   `json:"chunk_size"`
	Touched      int64   `json:"touched"`      // chunks asked for or written
	FirstWrites  int64   `json:"first_writes"` // of these, written before they were read
	Modified     int64   `json:"modified"`     // chunks written in this run
	Fetched      int64   `json:"fetched"`      // chunks unsealed, from wherever
	FetchedBytes int64   `json:"fetched_bytes"`
	FetchErrors  int64   `json:"fetch_errors"`
	Reads        int64   `json:"reads"`
	ReadBytes    int64   `json:"read_bytes"`
	Writes       int64   `json:"writes"`
	WrittenBytes int64   `json:"written_bytes"`
	Flushes      int64   `json:"flushes"`
	CacheHits    int64   `json:"cache_hits"` // of chunks that are unsealed already
	CacheMisses  int64   `json:"cache_misses"`
	SavedBytes   int64   `json:"saved_bytes"`   // of memory, pages that the suspend wrote
	SkippedBytes int64   `json:"skipped_bytes"` // of memory, pages that it found unchanged
	MissP50      float64 `json:"miss_p50"`      // seconds that a demand miss took, within an eighth
	MissP90      float64 `json:"miss_p90"`
	MissP99      float64 `json:"miss_p99"`
}

// The kinds of a rung: where objects were asked for.
const (
	RungModified = "modified"   // what this host changed and has not committed
	RungHoard    = "hoard"      // the client's cache
	RungLocal    = "lka-local"  // a look-aside directory of this host
	RungRemote   = "lka-remote" // a look-aside place on the network
	RungSource   = "source"     // a source of parcel.cfg that is not the lock server
	RungServer   = "server"     // the lock server
)

// ReportRung is what the places of one kind answered.
type ReportRung struct {
	Kind    string  `json:"kind"`
	Hits    int64   `json:"hits"`
	Misses  int64   `json:"misses"`
	Corrupt int64   `json:"corrupt"` // of the misses, something else under the name
	Errors  int64   `json:"errors"`
	Bytes   int64   `json:"bytes"`   // sealed, of the hits
	Seconds float64 `json:"seconds"` // that the hits took, summed
}

// ReportImage is how an image that was committed differs from the version
// before.
type ReportImage struct {
	Image     string `json:"image"`
	Size      int64  `json:"size"`
	ChunkSize int64  `json:"chunk_size"`
	Written   int64  `json:"written"` // chunks that had been written
	Same      int64  `json:"same"`    // of these, as they were before
	Zero      int64  `json:"zero"`    // of these, zeros now
	New       int64  `json:"new"`     // of these, sealed anew
	NewBytes  int64  `json:"new_bytes"`
}

// ReportSent is what the commit sent.
type ReportSent struct {
	Objects int64   `json:"objects"`
	Bytes   int64   `json:"bytes"`
	Seconds float64 `json:"seconds"`
	RTT     float64 `json:"rtt"` // seconds, the shortest round trip seen; 0: not known
}

// ReportHoard is the client's cache.
type ReportHoard struct {
	Quota  int64 `json:"quota"`  // bytes; 0: none
	Pinned bool  `json:"pinned"` // this parcel is to stay
	Memory bool  `json:"memory"` // its memory too
}

// Encode prints r on one line.
func (r *Report) Encode() ([]byte, error) {
	if err := r.Check(); err != nil {
		return nil, err
	}
	return json.Marshal(r)
}

// ParseReport reads a report that may be anything. Fields it does not know are
// left out of the result: what is kept is what is described here.
func ParseReport(p []byte) (*Report, error) {
	if len(p) > MaxReport {
		return nil, parcel.NewError(parcel.Usage, "report: over %d bytes", MaxReport)
	}
	var r Report
	if err := json.Unmarshal(p, &r); err != nil {
		return nil, parcel.NewError(parcel.Usage, "report: %s", parcel.Clean(err.Error()))
	}
	return &r, r.Check()
}

// Check says what of r cannot be.
func (r *Report) Check() error {
	bad := func(format string, args ...any) *parcel.Error {
		return parcel.NewError(parcel.Usage, "report: %s", fmt.Sprintf(format, args...))
	}
	if r.Format != ReportFormat {
		return bad("format %d: want %d", r.Format, ReportFormat).WithHint("another release of isr than the server's")
	}
	if len(r.ID) != 32 || strings.Trim(r.ID, "0123456789abcdef") != "" {
		return bad("id: want 32 hex digits")
	}
	if why := checkReport(reflect.ValueOf(r).Elem(), "report"); why != "" {
		return parcel.NewError(parcel.Usage, "%s", why)
	}
	for _, run := range r.Runs {
		if !slices.Contains([]string{EndSuspended, EndOff, EndFailed, EndKilled}, run.Ended) {
			return bad("ended %q: there is no such end", run.Ended)
		}
		for _, g := range run.Rungs {
			if !slices.Contains([]string{RungModified, RungHoard, RungLocal, RungRemote, RungSource, RungServer}, g.Kind) {
				return bad("rung %q: there is no such kind", g.Kind)
			}
		}
		for _, im := range run.Images {
			if im.Image != "disk" && im.Image != "memory" {
				return bad("image %q: there is no such image", im.Image)
			}
		}
	}
	for _, im := range r.Sealed {
		if im.Image != "disk" && im.Image != "memory" {
			return bad("image %q: there is no such image", im.Image)
		}
	}
	return nil
}

// maxCount bounds every number: it is one in any program's numbers.
const maxCount = 1 << 53

// checkReport says what in v is out of bounds, or "": numbers from 0 to
// maxCount, times that have a year, short lists, short lines of plain text.
func checkReport(v reflect.Value, where string) string {
	switch x := v.Interface().(type) {
	case time.Time:
		if x.Year() < 2000 || x.Year() > 9999 {
			return where + ": not a time of this age"
		}
		return ""
	case string:
		if len(x) > maxReportText || parcel.Clean(x) != x {
			return fmt.Sprintf("%s: want at most %d bytes of plain text", where, maxReportText)
		}
		return ""
	}
	switch v.Kind() {
	case reflect.Int, reflect.Int64:
		if v.Int() < 0 || v.Int() > maxCount {
			return where + ": number out of range"
		}
	case reflect.Float64:
		if f := v.Float(); math.IsNaN(f) || f < 0 || f > maxCount {
			return where + ": number out of range"
		}
	case reflect.Slice:
		if v.Len() > maxReportList {
			return fmt.Sprintf("%s: over %d entries", where, maxReportList)
		}
		for i := range v.Len() {
			if why := checkReport(v.Index(i), where); why != "" {
				return why
			}
		}
	case reflect.Struct:
		for i := range v.NumField() {
			name, _, _ := strings.Cut(v.Type().Field(i).Tag.Get("json"), ",")
			if why := checkReport(v.Field(i), where+"."+name); why != "" {
				return why
			}
		}
	}
	return ""
}
