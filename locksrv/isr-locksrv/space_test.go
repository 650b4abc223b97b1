package main

import (
	"os/exec"
	"sync"
	"testing"

	"isr/locksrv/locksrvtest"
)

// A client's day goes well while processes collect and prune, one after the
// other without a pause.
func TestStoryDuringGC(t *testing.T) {
	r := locksrvtest.NewRealm(t)
	r.AddParcel(t, "alice", "winxp")
	d := r.Start(t, nil)
	stop := make(chan struct{})
	var admin sync.WaitGroup
	admin.Go(func() {
		for {
			for _, args := range [][]string{{"gc"}, {"parcel", "prune", "--all", "--keep", "3", "--yes"}} {
				select {
				case <-stop:
					return
				default:
				}
				if out, err := exec.Command(program(t), append([]string{"--root", r.Root}, args...)...).CombinedOutput(); err != nil {
					t.Errorf("%v: %v: %s", args, err, out)
				}
			}
		}
	})
	defer admin.Wait()
	defer close(stop)
	c, err := r.Dial(d.Addr, "alice", "alice")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for range 3 {
		locksrvtest.Story(t, &locksrvtest.Client{Peer: locksrvtest.Conn{Client: c}, Parcel: "winxp"})
	}
}

func TestVersionsText(t *testing.T) {
	for want, vs := range map[string][]int{"version 3": {3}, "versions 1-2": {1, 2}, "versions 1,3": {1, 3}, "versions 1-3,5,7-8": {1, 2, 3, 5, 7, 8}} {
		if got := versionsText(vs); got != want {
			t.Errorf("%v: %s, want %s", vs, got, want)
		}
	}
}
