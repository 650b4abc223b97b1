package locksrv

import (
	"hash/maphash"
	"sync"
	"time"
)

// throttle slows the guessing of passwords: by address, and by user for who
// guesses from many. It never touches logins by key.
//
// Each name falls into one of a fixed number of slots, by a hash that nobody
// outside can compute, so whatever attackers name, the memory is the same and
// nothing is forgotten to make room. Two names in one slot share their delay.
//
// Guesses in a slot take place one after the other, with a pause that doubles
// with every wrong one. Who would have to wait too long is refused unheard. So
// that this keeps no user out, an address from which she has given the right
// password does not wait for others' guesses at her name.
type throttle struct {
	now func() time.Time // nil: time.Now

	mu        sync.Mutex
	seed      maphash.Seed
	addresses [throttleSlots]slot
	users     [throttleSlots]slot
	known     [throttleSlots]time.Time // (user, address): when it was last right
}

type slot struct {
	wrong int       // in a row, of late
	next  time.Time // when the next guess may take place
}

const (
	throttleSlots = 4096
	firstPause    = 250 * time.Millisecond // after the first wrong guess
	maxPause      = 10 * time.Second       // an address's
	maxUserPause  = 2 * time.Second        // a user's: she may have mistyped, or be under attack
	maxQueue      = 10 * time.Second       // longer than this nobody is kept waiting
	forgiven      = 10 * time.Minute       // without a guess, and a slot is clean
	knownFor      = 30 * 24 * time.Hour
)

func (t *throttle) clock() time.Time {
	if t.now != nil {
		return t.now()
	}
	return time.Now()
}

func (t *throttle) slot(name string) int {
	if t.seed == (maphash.Seed{}) {
		t.seed = maphash.MakeSeed()
	}
	return int(maphash.String(t.seed, name) % throttleSlots)
}

// guess announces a guess at user's password from address: it may take place
// after wait, or not at all. Whether it was right is then told to done.
func (t *throttle) guess(user, address string) (wait time.Duration, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.clock()
	slots := []*slot{&t.addresses[t.slot(address)]}
	limits := []time.Duration{maxPause}
	if now.Sub(t.known[t.slot(user+"\x00"+address)]) > knownFor {
		slots, limits = append(slots, &t.users[t.slot(user)]), append(limits, maxUserPause)
	}
	at := now
	for _, s := range slots {
		if now.Sub(s.next) > forgiven {
			*s = slot{}
		}
		if s.next.After(at) {
			at = s.next
		}
	}
	if wait = at.Sub(now); wait > maxQueue {
		return 0, false
	}
	// As if it were wrong; done takes that back.
	for i, s := range slots {
		s.next = at.Add(pauseAfter(s.wrong, limits[i]))
		s.wrong++
	}
	return wait, true
}

// pauseAfter is nothing for the first guess: most are right.
func pauseAfter(wrong int, most time.Duration) time.Duration {
	if wrong == 0 {
		return 0
	}
	return min(firstPause<<min(wrong-1, 10), most)
}

// done tells that a guess was right. The address is forgiven that one only:
// whoever has a password of his own could go on guessing others' otherwise.
func (t *throttle) done(user, address string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	a := &t.addresses[t.slot(address)]
	a.wrong = max(0, a.wrong-1)
	t.users[t.slot(user)] = slot{}
	t.known[t.slot(user+"\x00"+address)] = t.clock()
}
