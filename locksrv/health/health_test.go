package health_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"isr/locksrv/event"
	"isr/locksrv/health"
	"isr/locksrv/locksrvtest"
)

// now is when the tests play.
var now = time.Date(2026, 11, 26, 12, 0, 0, 0, time.UTC)

func ago(days int) time.Time { return now.AddDate(0, 0, -days) }

func TestHistory(t *testing.T) {
	commit := func(days int) event.Event {
		return event.Event{Time: ago(days), Op: event.Commit, User: "alice", Parcel: "p"}
	}
	refused := commit(0)
	refused.Error = "no"
	for _, test := range []struct {
		name        string
		events      []event.Event
		today, week int
		warnings    []string // what each holds
	}{
		{"a new realm", nil, 0, 0, []string{"backup: there was never one"}},
		{"commits", []event.Event{commit(0), commit(0), refused, commit(6), commit(7), {Time: ago(1), Op: event.Backup}}, 2, 3, nil},
		{"old upkeep", []event.Event{{Time: ago(40), Op: event.Check}, {Time: ago(31), Op: event.Backup}}, 0, 0,
			[]string{"check: the last one was 40 days ago", "backup: the last one was 31 days ago"}},
		{"never checked", []event.Event{commit(50), {Time: ago(1), Op: event.Backup}}, 0, 0, []string{"check: there was none in 50 days"}},
		{"the last one counts", []event.Event{{Time: ago(3), Op: event.Backup}, {Time: ago(2), Op: event.Check, Error: "store: 3 errors"},
			{Time: ago(2).Add(time.Hour), Op: event.Check}, {Time: ago(1), Op: event.Backup, Error: "no\x1b[2J\nspace"}}, 0, 0,
			[]string{"backup: the last one failed: no [2J space"}},
		{"one user's is not the realm's", []event.Event{{Time: ago(1), Op: event.Check, User: "alice"}, {Time: ago(45), Op: event.Check}, {Time: ago(1), Op: event.Backup}}, 0, 0,
			[]string{"check: the last one was 45 days ago"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := locksrvtest.NewRealm(t)
			slices.SortStableFunc(test.events, func(a, b event.Event) int { return a.Time.Compare(b.Time) })
			for _, e := range test.events {
				if err := r.Service.Events.Append(e); err != nil {
					t.Fatal(err)
				}
			}
			st, err := health.Get(r.Store, r.Service.Events, now)
			if err != nil {
				t.Fatal(err)
			}
			if st.Commits.Today != test.today || st.Commits.Week != test.week {
				t.Errorf("commits: %+v, want %d and %d", st.Commits, test.today, test.week)
			}
			if len(st.Warnings) != len(test.warnings) {
				t.Errorf("warnings: %q, want %q", st.Warnings, test.warnings)
			}
			for i, w := range test.warnings {
				if i < len(st.Warnings) && !slices.ContainsFunc(st.Warnings, func(s string) bool { return strings.Contains(s, w) }) {
					t.Errorf("warnings: %q, want %q", st.Warnings, w)
				}
			}
			if _, err := json.Marshal(st); err != nil {
				t.Error(err)
			}
		})
	}
}

// A disk that the kernel no longer writes to is none that is well.
func TestReadOnly(t *testing.T) {
	r := locksrvtest.NewRealm(t)
	if os.Getuid() != 0 {
		t.Skip("only root can mount")
	}
	if err := unix.Mount(r.Root, r.Root, "", unix.MS_BIND, ""); err != nil {
		t.Skip(err) // in a container, say
	}
	defer unix.Unmount(r.Root, unix.MNT_DETACH)
	if err := unix.Mount("", r.Root, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	st, err := health.Get(r.Store, r.Service.Events, now)
	if err != nil || !st.Disk.ReadOnly || !slices.Contains(st.Warnings, "disk: is mounted read-only") {
		t.Errorf("%v, %+v, warnings %q", err, st.Disk, st.Warnings)
	}
}

func TestHeld(t *testing.T) {
	r := locksrvtest.NewRealm(t)
	for _, name := range []string{"new", "old", "free", "broken"} {
		p := r.AddParcel(t, "alice", name)
		if name == "free" {
			continue
		}
		if _, err := p.Acquire("alice", "host-"+name, ""); err != nil {
			t.Fatal(err)
		}
		nonce := filepath.Join(p.LockDir(), "nonce")
		switch name {
		case "old":
			long := time.Now().Add(-8*24*time.Hour - time.Hour)
			if err := os.Chtimes(nonce, long, long); err != nil {
				t.Fatal(err)
			}
		case "broken":
			if err := os.WriteFile(nonce, []byte("nonsense\n"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	// What is planted in the log's place hides nothing.
	if err := os.MkdirAll(filepath.Join(r.Root, "log", time.Now().UTC().Format("2006-01-02")+".jsonl"), 0o700); err != nil {
		t.Fatal(err)
	}
	st, err := health.Get(r.Store, r.Service.Events, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if st.Users != 2 || st.Parcels != 4 || len(st.Held) != 2 {
		t.Errorf("%d users, %d parcels, held %+v; want 2, 4 and 2", st.Users, st.Parcels, st.Held)
	}
	if h, ok := st.Silent(); !ok || h.Parcel != "old" {
		t.Errorf("silent: %+v, want old", h)
	}
	if st.Disk.Size == 0 || st.Disk.Free == 0 || st.Disk.Used() <= 0 || st.Disk.Used() > 1 {
		t.Errorf("disk: %+v", st.Disk)
	}
	all := strings.Join(st.Warnings, "\n")
	for _, want := range []string{"alice/old: its holder, host-old, was not heard of for 8 days", "alice/broken: ", "event log: "} {
		if !strings.Contains(all, want) {
			t.Errorf("%q is not among the warnings:\n%s", want, all)
		}
	}
	if strings.Contains(all, "alice/new") {
		t.Errorf("a warning of a lock that is all right:\n%s", all)
	}
}
