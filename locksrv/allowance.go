package locksrv

import (
	"sync"
	"time"

	"isr/store"
)

// allowance is what one SFTP session may still put within its user's quota. It
// asks the store at most once in a while, since that takes longer than to put
// an object: so what happens meanwhile, in other sessions too, is seen that much
// later. A commit is told exactly.
type allowance struct {
	store *store.Store
	user  string

	mu      sync.Mutex
	asked   time.Time
	room    int64
	limited bool
}

// allowanceFor is how long an answer of the store is good for.
const allowanceFor = time.Second

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
