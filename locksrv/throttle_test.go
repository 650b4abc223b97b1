package locksrv

import (
	"fmt"
	"testing"
	"time"
)

// guessing is a throttle and its clock.
type guessing struct {
	throttle
	at time.Time
}

func newGuessing() *guessing {
	g := &guessing{at: time.Unix(1e9, 0)}
	g.now = func() time.Time { return g.at }
	return g
}

// wrong makes one wrong guess after another for an hour, and counts them.
func (g *guessing) wrong(user string, address func(int) string) (guesses int) {
	for end := g.at.Add(time.Hour); g.at.Before(end); {
		wait, ok := g.guess(user, address(guesses))
		if !ok {
			g.at = g.at.Add(time.Second)
			continue
		}
		g.at = g.at.Add(wait)
		guesses++
	}
	return guesses
}

func TestThrottle(t *testing.T) {
	one := func(int) string { return "192.0.2.1" }
	each := func(n int) string { return fmt.Sprintf("2001:db8:%x::/64", n) }
	if n := newGuessing().wrong("alice", one); n > 400 {
		t.Errorf("from one address: %d guesses an hour", n)
	}
	if n := newGuessing().wrong("alice", each); n > 2000 {
		t.Errorf("from many addresses: %d guesses an hour at one user", n)
	}
	g := newGuessing()
	users := 0
	for end := g.at.Add(time.Hour); g.at.Before(end); users++ {
		wait, ok := g.guess(fmt.Sprint("user", users), "192.0.2.1")
		if !ok {
			t.Fatal("one guess at a time, and refused")
		}
		g.at = g.at.Add(wait)
	}
	if users > 400 {
		t.Errorf("from one address at many users: %d guesses an hour", users)
	}

	// Nor does a password of one's own, given in between, help.
	g = newGuessing()
	users = 0
	for end := g.at.Add(time.Hour); g.at.Before(end); users++ {
		for _, user := range []string{fmt.Sprint("user", users), "mallory"} {
			wait, ok := g.guess(user, "192.0.2.1")
			if !ok {
				t.Fatal("one guess at a time, and refused")
			}
			g.at = g.at.Add(wait)
		}
		g.done("mallory", "192.0.2.1")
	}
	if users > 400 {
		t.Errorf("from one address, with one right between: %d guesses an hour", users)
	}

	// Many at once do not take place at once.
	g = newGuessing()
	heard := 0
	for range 1000 {
		if _, ok := g.guess("alice", "192.0.2.1"); ok {
			heard++
		}
	}
	if heard > 10 {
		t.Errorf("%d of 1000 guesses at once are heard", heard)
	}
}

func TestThrottleSparesTheRight(t *testing.T) {
	g := newGuessing()
	for range 3 {
		if wait, ok := g.guess("alice", "192.0.2.1"); wait != 0 || !ok {
			t.Fatalf("right guesses wait %v, %v", wait, ok)
		}
		g.done("alice", "192.0.2.1")
	}
	g.wrong("alice", func(n int) string { return fmt.Sprintf("2001:db8:%x::/64", n) })
	if wait, ok := g.guess("alice", "192.0.2.1"); wait != 0 || !ok {
		t.Errorf("from where she has been let in: waits %v, %v", wait, ok)
	}
	// Slots are shared by chance, hence the time.
	g.at = g.at.Add(time.Minute)
	if wait, ok := g.guess("bob", "192.0.2.7"); wait > maxPause || !ok {
		t.Errorf("another user: waits %v, %v", wait, ok)
	}
	g.at = g.at.Add(forgiven + maxPause + 1)
	if wait, ok := g.guess("alice", "198.51.100.1"); wait != 0 || !ok {
		t.Errorf("long after: waits %v, %v", wait, ok)
	}
}
