package locksrv

import (
	"sync"
	"time"

	"isr/store"
)

// allowance is whether one SFTP session may go on, for it may last, and what it
// may still put within its user's quota. It asks the store at most once in a
// while, since that takes longer than to put an object: so what happens
// meanwhile, in other sessions too, is seen that much later. A commit is told
// exactly.
type allowance struct {
	store *store.Store
	user  string

	mu       sync.Mutex
	admitted time.Time // asked about the user
	asked    time.Time // about room
	room     int64
	limited  bool
}

// allowanceFor is how long an answer of the store is good for.
const allowanceFor = time.Second

// admit is nil unless the user was locked out meanwhile.
func (a *allowance) admit() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := time.Now()
	if now.Sub(a.admitted) <= allowanceFor {
		return nil
	}
	if err := a.store.Admit(a.user); err != nil {
		return err
	}
	a.admitted = now
	return nil
}

// take is nil if so many bytes more may be put, and counts them.
func (a *allowance) take(bytes int64) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	fits := func() bool { return !a.limited || a.room > 0 && a.room >= bytes }
	if now := time.Now(); now.Sub(a.asked) > allowanceFor {
		room, limited, err := a.store.Room(a.user)
		if err != nil {
			return err
		}
		a.asked, a.room, a.limited = now, room, limited
	}
	if !fits() {
		return a.store.ErrQuota(a.user)
	}
	a.room -= bytes
	return nil
}
