package locksrv

import (
	"errors"
	"log/slog"
	"sync"
	"time"

	"isr/store/parcel"
)

// standing is whether a session that lasts, SFTP or a verb that streams, may go
// on: it is asked before each answer. It asks in turn what let the session in,
// at most once in a while, since that takes longer than to answer. Whom that does
// not let in is refused for good, and comes again. Safe for concurrent use.
type standing struct {
	ask func() error
	log *slog.Logger

	mu      sync.Mutex
	asked   time.Time
	refused error
}

// standingFor is how long a yes is good for.
const standingFor = time.Second

// standing is a session's, which was let in just now.
func (v *Service) standing(s Session) *standing {
	return &standing{log: s.Log, asked: time.Now(), ask: func() error {
		if err := v.admit(s); err != nil || s.Still == nil {
			return err
		}
		return s.Still()
	}}
}

// check is nil if the session may go on.
func (st *standing) check() error {
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.refused != nil || time.Since(st.asked) <= standingFor {
		return st.refused
	}
	err := st.ask()
	if err == nil {
		st.asked = time.Now()
		return nil
	}
	st.log.Warn("refused", "error", err)
	if errors.Is(err, parcel.ErrDenied) {
		st.refused = err // else it could not be found out, this time
	}
	return err
}
