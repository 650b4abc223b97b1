package locksrv_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"isr/locksrv"
	"isr/locksrv/locksrvtest"
	"isr/locksrv/proto"
	"isr/store/parcel"
)

// aReport is a good report of a parcel.
func aReport(t testing.TB, uuid string) []byte {
	t.Helper()
	now := time.Now().UTC()
	r := &proto.Report{Format: proto.ReportFormat, ID: parcel.NewID(), Made: now, UUID: uuid, Epoch: 1, From: 1, Version: 2,
		Runs: []proto.ReportRun{{Start: now, Ended: proto.EndOff}}}
	p, err := r.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestReport(t *testing.T) {
	r := locksrvtest.NewRealm(t)
	p := r.AddParcel(t, "alice", "winxp")
	cfg, err := p.Config()
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(r.Root, "log", "reports", "alice")
	put := func(user, name string, text []byte, want parcel.Kind, says string) {
		t.Helper()
		d := locksrvtest.Direct{Service: r.Service, Session: locksrv.Session{User: user}}
		_, errs, status := d.Exec("isr_report "+name, text)
		if status != int(want) || !strings.Contains(string(errs), says) {
			t.Errorf("%s %s: status %d, %s; want %d, %q", user, name, status, errs, want, says)
		}
	}
	good := aReport(t, cfg.UUID)
	put("alice", "winxp", good, parcel.Denied, "does not take part in the study")
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("kept of who has not agreed: %v", err)
	}
	agree := func(text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(r.Root, "users", "alice", "user.cfg"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	agree("CONSENT:=2026-11-01T00:00:00Z\n")
	put("alice", "winxp", good, 0, "")
	put("alice", "winxp", good, 0, "") // an answer was lost
	put("alice", "nothing", good, parcel.NoParcel, "nothing")
	put("alice", "../bob", good, parcel.Usage, "")
	put("bob", "winxp", good, parcel.NoParcel, "winxp")
	put("alice", "winxp", aReport(t, "another"), parcel.Usage, "another parcel")
	put("alice", "winxp", nil, parcel.Usage, "report")
	put("alice", "winxp", []byte(`{"format":1}`), parcel.Usage, "id")
	put("alice", "winxp", []byte(strings.Repeat(" ", 1<<20)), parcel.Usage, "over")
	// What was not asked for is not kept.
	put("alice", "winxp", []byte(strings.Replace(string(good), "{", `{"browser_history":["secret"],`, 1)), 0, "")
	files, err := filepath.Glob(filepath.Join(dir, "*.jsonl"))
	if err != nil || len(files) == 0 {
		t.Fatalf("%v, %v", files, err)
	}
	lines := 0
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if fi, err := os.Stat(f); err != nil || fi.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", f, fi.Mode(), err)
		}
		for line := range strings.Lines(string(text)) {
			var k locksrv.Kept
			if err := json.Unmarshal([]byte(line), &k); err != nil || k.User != "alice" || k.Parcel != "winxp" || k.Report.UUID != cfg.UUID {
				t.Errorf("%s: %v", line, err)
			}
			if strings.Contains(line, "secret") {
				t.Errorf("%s", line)
			}
			lines++
		}
	}
	if lines != 3 {
		t.Errorf("%d lines, want 3", lines)
	}
	agree("# she has changed her mind\n")
	put("alice", "winxp", good, parcel.Denied, "does not take part")
	agree("CONSENT:=maybe\n")
	put("alice", "winxp", good, parcel.Damaged, "CONSENT")
}

// A client that never stops reporting fills no disk.
func TestReportsBounded(t *testing.T) {
	r := locksrvtest.NewRealm(t)
	p := r.AddParcel(t, "alice", "winxp")
	cfg, err := p.Config()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(r.Root, "users", "alice", "user.cfg"), []byte("CONSENT:=2026-11-01T00:00:00Z\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(r.Root, "log", "reports", "alice")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	now := time.Now().UTC()
	for _, day := range []time.Time{now, now.Add(time.Minute)} { // it may be midnight
		name := filepath.Join(dir, fmt.Sprintf("%s.jsonl", day.Format(time.DateOnly)))
		if err := os.WriteFile(name, make([]byte, 4<<20), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	d := locksrvtest.Direct{Service: r.Service, Session: locksrv.Session{User: "alice"}}
	if _, errs, status := d.Exec("isr_report winxp", aReport(t, cfg.UUID)); status != int(parcel.Full) {
		t.Errorf("status %d, %s", status, errs)
	}
}
