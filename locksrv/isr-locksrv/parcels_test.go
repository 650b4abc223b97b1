package main

import (
	"strconv"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"isr/locksrv"
	"isr/locksrv/locksrvtest"
	"isr/store"
	"isr/store/parcel"
)

// commit USER PARCEL CHUNK... makes a version for each chunk, in which that
// one has changed, as a client does.
func commit(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 3 {
		ts.Fatalf("usage: commit USER PARCEL CHUNK...")
	}
	s, err := store.Open(ts.Getenv("ISR_ROOT"))
	ts.Check(err)
	c := &locksrvtest.Client{Parcel: args[1], Peer: locksrvtest.Direct{Service: locksrv.NewService(s), Session: locksrv.Session{User: args[0]}}}
	for _, word := range args[2:] {
		n, err := strconv.ParseInt(word, 10, 64)
		ts.Check(err)
		l, err := c.Acquire("laptop", parcel.NewID())
		ts.Check(err)
		d, err := c.Draft(n)
		ts.Check(err)
		ts.Check(c.Put(d.Objects))
		_, err = c.Commit(d, l.Nonce, parcel.NewID())
		ts.Check(err)
		_, err = c.Verb("isr_release_lock", "", []byte(l.Nonce+"\n"))
		ts.Check(err)
	}
}

func TestTexts(t *testing.T) {
	now := time.Now()
	for d, want := range map[time.Duration]string{0: "just now", -time.Hour: "just now", 119 * time.Second: "just now", 2 * time.Minute: "2 minutes ago",
		119 * time.Minute: "119 minutes ago", 47 * time.Hour: "47 hours ago", 100 * 24 * time.Hour: "100 days ago"} {
		if got := ago(now.Add(-d), now); got != want {
			t.Errorf("%v: got %s, want %s", d, got, want)
		}
	}
}
