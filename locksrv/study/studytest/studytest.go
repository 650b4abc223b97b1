// Package studytest makes up the use of a realm, for tests of the study: the
// log of so many users in so many weeks, and what their clients told. The same
// seed gives the same. No program uses it.
package studytest

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"isr/locksrv"
	"isr/locksrv/event"
	"isr/locksrv/proto"
	"isr/locksrv/study"
)

// Realm is a realm of which only the study's questions are answered.
type Realm struct {
	Dir     string
	Names   []string
	Agreed  map[string]time.Time
	Group   map[string][]string
	Version map[string]int // of each user's parcel box
}

// Start is when the first week begins.
var Start = time.Date(2026, 8, 31, 0, 0, 0, 0, time.UTC)

func (r *Realm) Root() string             { return r.Dir }
func (r *Realm) Users() ([]string, error) { return r.Names, nil }
func (r *Realm) Consent(user string) (time.Time, bool, error) {
	t, ok := r.Agreed[user]
	return t, ok, nil
}
func (r *Realm) Groups(user string) ([]string, error)  { return r.Group[user], nil }
func (r *Realm) Parcels(user string) ([]string, error) { return []string{"box"}, nil }

// UUID is that of a user's parcel.
func UUID(user string) string { return fmt.Sprintf("%08x-0000-4000-8000-000000000000", len(user)*7919) }

// Source is the realm for a harvest. What it warns of fails the test.
func (r *Realm) Source(t testing.TB) study.Source {
	return study.Source{Realm: r, Events: event.NewLog(filepath.Join(r.Dir, "log")), Reports: filepath.Join(r.Dir, "log", "reports"),
		Parcel: func(user, name string) (study.ParcelState, error) {
			v := r.Version[user]
			return study.ParcelState{Parcel: name, UUID: UUID(user), Created: Start, VMM: "qemu", Disk: 10 << 30, Memory: 256 << 20,
				Versions: v, Objects: int64(v) * 200, Bytes: int64(v) * 9 << 20}, nil
		},
		Warn: func(text string) { t.Errorf("warning: %s", text) }}
}

// Make makes up a realm and its log: users user01, user02, …, who come week by
// week, and all but the last of whom agreed. It draws on few numbers and some
// chance.
func Make(t testing.TB, dir string, users, weeks int) *Realm {
	t.Helper()
	r := &Realm{Dir: dir, Agreed: make(map[string]time.Time), Group: make(map[string][]string), Version: make(map[string]int)}
	files := make(map[string][]byte)
	add := func(file string, v any) {
		p, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		files[file] = append(append(files[file], p...), '\n')
	}
	log := func(e event.Event) {
		if e.By == "" {
			e.By = e.User
		}
		add(filepath.Join("log", e.Time.Format(time.DateOnly)+".jsonl"), e)
	}
	rnd := rand.New(rand.NewPCG(1, 2))
	for u := range users {
		name := fmt.Sprintf("user%02d", u+1)
		r.Names = append(r.Names, name)
		r.Group[name] = []string{[]string{"developers", "students", "students", "staff"}[u%4]}
		joined := Start.AddDate(0, 0, 7*(u*weeks/(2*users))).Add(9 * time.Hour)
		if u < users-1 {
			r.Agreed[name] = joined
		}
		log(event.Event{Time: joined.Add(time.Second), Op: event.UserAdd, User: name, By: "root", Admin: true, Seconds: 0.02})
		log(event.Event{Time: joined.Add(2 * time.Second), Op: event.ParcelCopy, User: "gold", Parcel: "xp", To: name + "/box", By: "root", Admin: true, Seconds: 1.5})
		version, epoch := 1, int64(0)
		for day := joined.Truncate(24 * time.Hour); day.Before(Start.AddDate(0, 0, 7*weeks)); day = day.AddDate(0, 0, 1) {
			if wd := day.Weekday(); wd == time.Saturday || wd == time.Sunday || rnd.IntN(10) == 0 {
				continue
			}
			for _, at := range []struct {
				host, from string
				hour       int
			}{{"office", fmt.Sprintf("192.0.2.%d", 10+u), 9}, {"home", fmt.Sprintf("198.51.100.%d", 10+u), 20}} {
				if at.host == "home" && rnd.IntN(3) > 0 {
					continue
				}
				start := day.Add(time.Duration(at.hour)*time.Hour + time.Duration(rnd.IntN(3600))*time.Second)
				hours := 1 + 3*rnd.Float64()
				end := start.Add(time.Duration(hours * float64(time.Hour)))
				epoch++
				e := event.Event{User: name, Parcel: "box", Host: at.host, From: at.from, Epoch: epoch, Seconds: 0.01}
				if rnd.IntN(20) == 0 {
					c := e
					c.Time, c.Op, c.Epoch, c.Error, c.Kind, c.Holder = start.Add(-time.Minute), event.Lock, 0, "parcel box: held", 11, name+" on office"
					log(c)
				}
				e.Time, e.Op, e.Version = start, event.Lock, version
				log(e)
				suspended := rnd.IntN(6) > 0
				version++
				c := e
				c.Time, c.Op, c.Version, c.Parent, c.Objects, c.Bytes, c.Memory, c.State = end, event.Commit, version, version-1, 200+rnd.Int64N(200), 8<<20+rnd.Int64N(8<<20), 256<<20, "off"
				if suspended {
					c.State = "suspended"
				}
				log(c)
				if rnd.IntN(25) == 0 { // the answer was lost: it is asked for again
					c.Time = c.Time.Add(time.Second)
					log(c)
				}
				e.Time, e.Op, e.Version = end.Add(2*time.Second), event.Release, version
				log(e)
				add(filepath.Join("log", "reports", name, end.Format(time.DateOnly)+".jsonl"),
					locksrv.Kept{Time: end.Add(3 * time.Second), User: name, Parcel: "box", Report: madeUp(rnd, name, start, end, epoch, version, suspended, at.host == "home")})
			}
		}
		r.Version[name] = version
	}
	for w := range weeks {
		at := Start.AddDate(0, 0, 7*w+6).Add(3 * time.Hour)
		log(event.Event{Time: at, Op: event.GC, By: "root", Admin: true, Seconds: 2 + float64(w)/4})
		log(event.Event{Time: at.Add(time.Hour), Op: event.Backup, By: "root", Admin: true, Seconds: 30 + float64(w)})
	}
	for name, p := range files {
		file := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, p, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return r
}

func madeUp(rnd *rand.Rand, user string, start, end time.Time, epoch int64, version int, suspended, home bool) proto.Report {
	run := proto.ReportRun{Start: start.Add(5 * time.Second), Seconds: end.Sub(start).Seconds() - 10, StartSeconds: 1 + rnd.Float64(), Ended: proto.EndOff,
		Resumed: rnd.IntN(6) > 0, VMM: "qemu", Accel: "kvm", RTT: 0.001, In: 20<<20 + rnd.Int64N(20<<20), Out: 1 << 20, Down: 60e6, Up: 20e6, Places: 1}
	if suspended {
		run.Ended = proto.EndSuspended
	}
	switch rnd.IntN(60) {
	case 0:
		run.Ended = proto.EndFailed
	case 1:
		run.Ended, run.Seconds = proto.EndKilled, 0
	case 2:
		run.Reboots = 1
	}
	if home {
		run.RTT, run.Down, run.Up = 0.03, 1.5e6, 0.3e6
		if rnd.IntN(8) == 0 {
			run.Outages, run.OutageSeconds = 1, 40*rnd.Float64()
		}
	}
	if run.Resumed {
		run.StartSeconds /= 3
	} else {
		run.StartSeconds *= 20
	}
	run.CPUSeconds = run.Seconds * (0.05 + 0.2*rnd.Float64())
	chunks := 300 + rnd.Int64N(500)
	run.Images = []proto.ReportActivity{
		{Image: "disk", ChunkSize: 128 << 10, Touched: chunks, FirstWrites: chunks / 10, Modified: chunks / 4, Fetched: chunks * 3 / 4, FetchedBytes: chunks * 50000,
			Reads: chunks * 9, ReadBytes: chunks * 90000, Writes: chunks * 3, WrittenBytes: chunks * 30000, Flushes: 40, CacheHits: chunks * 8, CacheMisses: chunks, MissP50: run.RTT + 0.004, MissP90: run.RTT*2 + 0.01, MissP99: run.RTT*4 + 0.05},
		{Image: "memory", ChunkSize: 128 << 10, Touched: chunks / 2, Modified: chunks / 3, Fetched: chunks / 2, SavedBytes: chunks * 20000, SkippedBytes: chunks * 9000, MissP50: run.RTT + 0.003, MissP90: run.RTT + 0.01, MissP99: run.RTT * 5}}
	hoarded := chunks / 2
	if home {
		hoarded = chunks / 4
	}
	run.Rungs = []proto.ReportRung{{Kind: proto.RungHoard, Hits: hoarded, Misses: chunks - hoarded, Bytes: hoarded * 50000, Seconds: 0.3},
		{Kind: proto.RungLocal, Hits: chunks / 10, Misses: chunks / 3, Bytes: chunks * 5000, Seconds: 0.2},
		{Kind: proto.RungServer, Hits: chunks - hoarded - chunks/10, Bytes: chunks * 20000, Seconds: float64(chunks) * run.RTT}}
	id := fmt.Sprintf("%016x%016x", rnd.Uint64(), rnd.Uint64())
	return proto.Report{Format: proto.ReportFormat, ID: id, Made: end.Add(3 * time.Second), UUID: UUID(user), Epoch: epoch, From: version - 1, Version: version, Checkin: true,
		Machine: proto.ReportMachine{ISR: "1.0", OS: "linux", Arch: "amd64", CPU: []string{"Thinkpad T41p", "Desk <b>PC</b>"}[map[bool]int{true: 0, false: 1}[home]], CPUs: 8, Memory: 16 << 30},
		Runs:    []proto.ReportRun{run},
		Sealed: []proto.ReportImage{{Image: "disk", Size: 10 << 30, ChunkSize: 128 << 10, Written: chunks / 4, Same: chunks / 40, Zero: chunks / 50, New: chunks / 5, NewBytes: chunks * 9000},
			{Image: "memory", Size: 256 << 20, ChunkSize: 128 << 10, Written: chunks / 3, Same: 10, Zero: 5, New: chunks/3 - 15, NewBytes: chunks * 20000}},
		Sent:  proto.ReportSent{Objects: chunks / 2, Bytes: chunks * 29000, Seconds: float64(chunks) * 29000 / run.Up, RTT: run.RTT},
		Hoard: proto.ReportHoard{Quota: 8 << 30, Pinned: home, Memory: home}}
}
