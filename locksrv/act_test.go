package locksrv_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"isr/locksrv"
	"isr/locksrv/event"
	"isr/locksrv/locksrvtest"
	"isr/store/parcel"
)

// A hook that says no keeps a lock from being taken, in its own words, and the
// log has both the try and what followed.
func TestActVeto(t *testing.T) {
	r := locksrvtest.NewRealm(t)
	p := r.AddParcel(t, "alice", "winxp")
	hooks := filepath.Join(r.Root, "hooks")
	if err := os.Mkdir(hooks, 0o700); err != nil {
		t.Fatal(err)
	}
	hook := filepath.Join(hooks, "pre-lock")
	if err := os.WriteFile(hook, []byte("#!/bin/sh\ngrep -q '\"op\":\"lock\"' && echo maintenance until noon\nexit 1\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	alice := locksrvtest.Direct{Service: r.Service, Session: locksrv.Session{User: "alice", From: "192.0.2.7"}}
	lock := func() (string, int) {
		_, errs, status := alice.Exec("isr_acquire_lock winxp thinkpad", nil)
		return string(errs), status
	}
	if errs, status := lock(); status != int(parcel.Denied) || !strings.Contains(errs, "maintenance until noon") {
		t.Errorf("status %d, %s: want the hook's veto", status, errs)
	}
	if l, err := p.Holder(); l != nil || err != nil {
		t.Errorf("held by %v, %v", l, err)
	}
	if err := os.Remove(hook); err != nil {
		t.Fatal(err)
	}
	if errs, status := lock(); status != 0 {
		t.Fatal(errs)
	}
	var got []event.Event
	now := time.Now()
	for e, err := range r.Service.Events.Read(now.Add(-time.Hour), now) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, e)
	}
	if len(got) != 2 || got[0].Kind != int(parcel.Denied) || got[1].Error != "" || got[1].Epoch != 1 ||
		got[1].By != "alice" || got[1].Host != "thinkpad" || got[1].From != "192.0.2.7" {
		t.Errorf("got %+v", got)
	}
}

// An administrator is told what the audit trail lacks: nobody else can tell
// what he did.
func TestActUnlogged(t *testing.T) {
	r := locksrvtest.NewRealm(t)
	if err := os.WriteFile(filepath.Join(r.Root, "log"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	var warned []string
	s := locksrv.Session{Admin: true, By: "root", Warn: func(text string) { warned = append(warned, text) }}
	err := r.Service.Act(t.Context(), s, &event.Event{Op: event.UserDel, User: "bob"}, func(context.Context) error { return r.Store.DelUser("bob") })
	if err != nil || len(warned) != 1 || !strings.Contains(warned[0], "event log: user-del is not in it: ") {
		t.Errorf("%v, warned %q", err, warned)
	}
}
