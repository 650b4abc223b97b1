// Package remote is a lock server as one user: its verbs, and the objects of
// his parcels, over a pool of connections.
//
// It promises that a connection is made when it is needed and made again when
// it is lost, that a guest's demand goes ahead of bulk work, that what can
// safely be asked again after a lost answer is, and nothing else, and that
// every error has the kind that the server gave it. Objects are checked against
// their tags.
//
// It does not know how to log in (dial), what a chunk is, or what is worth
// fetching.
package remote

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/time/rate"

	"isr/client/remote/ask"
	"isr/client/remote/dial"
	"isr/client/remote/sshconf"
	"isr/locksrv/proto"
	"isr/store/parcel"
)

// Server is one lock server as one user: its verbs, and the objects of the
// parcels it holds. It connects when first needed, and again when a connection
// was lost.
//
// It keeps one connection where the round trip is short, and up to eight for
// bulk work where it is not (one carries 2 MiB a round trip at most). Demand
// shares a connection with bulk work only until it has one of its own.
//
// Errors are *parcel.Error by errors.As: what the server said, or of kind
// Unreachable (no connection; the same may succeed later), Denied (who we are,
// or who it is, was not accepted) or Usage (the ssh configuration). Safe for
// concurrent use.
type Server struct {
	target   sshconf.Target
	prompter ask.Prompter
	creds    *ask.Credentials
	dial     func(ctx context.Context, alone bool, tap func(conn *tap)) (*conn, error)
	via      Via

	life context.Context // until Close
	end  context.CancelFunc

	main   *link   // verbs, and the first of bulk
	more   []*link // bulk
	demand *link

	mu      sync.Mutex
	objects map[string]*Objects
	onDown  func(down bool, err error)
	onWarn  func(text string)

	in, out  atomic.Int64
	up, down atomic.Pointer[rate.Limiter]
	rtt      atomic.Int64 // shortest seen, nanoseconds; 0: not known
	bulk     atomic.Int64 // bulk requests and uploads going on
	outage   outage
	wait     atomic.Int64  // for objects, nanoseconds; 0: defaultPatience
	stall    time.Duration // silence, with something under way, after which a connection is probed
}

// maxConns bounds the connections for bulk work.
const maxConns = 8

// nearRTT is the round trip below which a second connection only costs: at
// 2 ms one connection carries 1 GB/s.
const nearRTT = 2 * time.Millisecond

// farRTT is the round trip from which all maxConns are worth having; between
// the two it is half of them.
const farRTT = 30 * time.Millisecond

// defaultStall is long enough for a busy server and short enough for a person
// to wait. As long again passes before a silent connection is given up.
const defaultStall = 10 * time.Second

// redialTime bounds an attempt to connect again, so that a guest does not wait
// for the next of TCP's ever rarer attempts.
const redialTime = 10 * time.Second

// Open is the server that t names; it connects nowhere yet. See dial.Dial
// for p and c. Close it.
func Open(t sshconf.Target, p ask.Prompter, c *ask.Credentials) *Server {
	if c == nil {
		c = new(ask.Credentials)
	}
	s := &Server{target: t, prompter: p, creds: c, objects: make(map[string]*Objects), stall: defaultStall}
	s.dial = s.dialSSH
	s.life, s.end = context.WithCancel(context.Background())
	s.main = &link{s: s, keep: true}
	s.demand = &link{s: s, keep: true}
	s.more = make([]*link, maxConns-1)
	for i := range s.more {
		s.more[i] = &link{s: s}
	}
	s.outage.up = make(chan struct{})
	return s
}

// Via is another way to a server than to log in: a process that has done so
// and passes on. conn speaks SSH, as the server would after the login, with
// hostKey. alone asks for a connection to the server that nobody else uses.
//
// ErrNoWay says that there is no such way any more; other errors are as dial.Dial's.
type Via func(ctx context.Context, alone bool) (conn net.Conn, hostKey ssh.PublicKey, err error)

// ErrNoWay is a Via's that has nobody to pass on: the Server logs in itself.
var ErrNoWay = errors.New("nobody passes on")

// SetVia has connections made by way of v, as long as it lasts. It is called
// before the Server is used.
func (s *Server) SetVia(v Via) { s.via = v }

// Close ends every connection; what is under way fails.
func (s *Server) Close() error {
	s.end()
	for _, k := range append([]*link{s.main, s.demand}, s.more...) {
		k.close()
	}
	return nil
}

// Host is the server's name as it was given.
func (s *Server) Host() string { return s.target.Host }

// OnOutage has f called when a demand, or what a Policy lets wait for ever,
// begins to wait for a server that cannot be reached, with the reason, and when
// it is back. With it, demand waits as long as its context lets it; without, a
// minute. f must not block.
func (s *Server) OnOutage(f func(down bool, err error)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.onDown = f
}

// OnWarning has f called with what the server has to say of a verb beside its
// answer: one line, fit for a terminal. f must not block.
func (s *Server) OnWarning(f func(text string)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.onWarn = f
}

// warn passes on what a verb left on standard error for the user.
func (s *Server) warn(stderr string) {
	s.mu.Lock()
	f := s.onWarn
	s.mu.Unlock()
	if f == nil {
		return
	}
	for _, text := range proto.ReadWarnings([]byte(stderr)) {
		f(text)
	}
}

// Limit bounds the bytes a second of all connections together; 0 is no limit.
type Limit struct{ Up, Down int64 }

// SetLimit bounds the connections from now on.
func (s *Server) SetLimit(l Limit) {
	s.up.Store(newLimiter(l.Up))
	s.down.Store(newLimiter(l.Down))
}

// SetPatience says how long objects are asked for and put from now on, where
// no Policy does; 0 is defaultPatience.
func (s *Server) SetPatience(d time.Duration) { s.wait.Store(int64(d)) }

func newLimiter(bytes int64) *rate.Limiter {
	if bytes <= 0 {
		return nil
	}
	// A tenth of a second, but not less than a packet.
	return rate.NewLimiter(rate.Limit(bytes), int(max(bytes/10, 32<<10)))
}

// Traffic is the network bytes received and sent so far, everything included.
func (s *Server) Traffic() (in, out int64) { return s.in.Load(), s.out.Load() }

// RTT is the shortest round trip to the server seen so far; 0 if it is not
// known yet.
func (s *Server) RTT() time.Duration { return time.Duration(s.rtt.Load()) }

func (s *Server) sawRTT(d time.Duration) {
	for {
		old := s.rtt.Load()
		if old != 0 && old <= int64(d) || s.rtt.CompareAndSwap(old, max(int64(d), 1)) {
			return
		}
	}
}

// lanes is how many connections bulk work may use.
func (s *Server) lanes() int {
	switch rtt := s.RTT(); {
	case rtt < nearRTT: // or not known
		return 1
	case rtt < farRTT:
		return maxConns / 2
	}
	return maxConns
}

// bulkLink is the i-th connection for bulk work.
func (s *Server) bulkLink(i int) *link {
	if i == 0 {
		return s.main
	}
	return s.more[i-1]
}

// failure is an error of the connection.
type failure struct {
	kind  *parcel.Error
	cause error
	broke bool // it was there, and was lost: a new one may be had at once
}

func (f *failure) Error() string   { return f.kind.Msg }
func (f *failure) Unwrap() []error { return []error{f.kind, f.cause} }

func (s *Server) failure(k parcel.Kind, cause error) *failure {
	return &failure{kind: parcel.NewError(k, "server %s: %v", s.target.Host, cause), cause: cause}
}

// sorted gives an error of dialling its kind.
func (s *Server) sorted(err error) error {
	kind := dial.KindOf(err)
	switch {
	case kind == parcel.Interrupted:
		return err
	case kind == parcel.Failed && errors.Is(err, context.DeadlineExceeded):
		// Ours, on connecting again.
		kind, err = parcel.Unreachable, fmt.Errorf("connect: no answer within %v: %w", redialTime, err)
	}
	f := s.failure(kind, err)
	if errors.Is(err, dial.ErrLate) {
		f.kind = f.kind.WithHint("run it again, and answer sooner")
	}
	return f
}

// lost is the error of what was under way on a connection that broke.
func (s *Server) lost(cause error) error {
	f := s.failure(parcel.Unreachable, fmt.Errorf("connection lost: %w", cause))
	f.broke = true
	return f
}

var errClosed = errors.New("closed")

// Policy says how long to go on when the server cannot be reached. The zero
// Policy gives up at the first failure.
type Policy struct {
	For     time.Duration // at most so long after the first failure
	Forever bool          // until the context ends
}

type policyKey struct{}

// WithPolicy is a context in which all that can safely be repeated, is, by p.
// Without it, a verb is repeated once if an old connection turned out to be
// dead, and objects are asked for and put for a minute (but see OnOutage).
func WithPolicy(ctx context.Context, p Policy) context.Context {
	return context.WithValue(ctx, policyKey{}, p)
}

// defaultPatience is how long objects are asked for and put.
const defaultPatience = time.Minute

// outage is one schedule of attempts for everybody who waits for the server,
// so that a hundred readers are no storm of connections.
type outage struct {
	mu    sync.Mutex
	tries int
	next  time.Time
	told  bool
	up    chan struct{} // closed, and replaced, when the server answers again
}

// The wait between attempts: short at first, for a restart; then short enough
// that a network's return is noticed soon.
const (
	firstWait = 100 * time.Millisecond
	maxWait   = 5 * time.Second
)

// wait returns when it is time for another attempt.
func (o *outage) wait(ctx context.Context) {
	o.mu.Lock()
	now := time.Now()
	if !now.Before(o.next) {
		d := firstWait << min(o.tries, 10)
		d = min(d, maxWait)
		o.tries++
		o.next = now.Add(d/2 + rand.N(d/2+1))
	}
	d, up := o.next.Sub(now), o.up
	o.mu.Unlock()
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-up:
	case <-ctx.Done():
	}
}

// isDown notes that a demand waits for the server.
func (s *Server) isDown(err error) {
	s.outage.mu.Lock()
	first := !s.outage.told
	s.outage.told = true
	s.outage.mu.Unlock()
	if first {
		s.tell(true, err)
	}
}

// isUp notes that the server has answered.
func (s *Server) isUp() {
	s.outage.mu.Lock()
	told, waiting := s.outage.told, s.outage.tries > 0
	s.outage.told, s.outage.tries, s.outage.next = false, 0, time.Time{}
	if waiting {
		close(s.outage.up)
		s.outage.up = make(chan struct{})
	}
	s.outage.mu.Unlock()
	if told {
		s.tell(false, nil)
	}
}

func (s *Server) tell(down bool, err error) {
	s.mu.Lock()
	f := s.onDown
	s.mu.Unlock()
	if f != nil {
		f(down, err)
	}
}

// patience is the policy for objects.
func (s *Server) patience(ctx context.Context, demand bool) Policy {
	if p, ok := ctx.Value(policyKey{}).(Policy); ok {
		return p
	}
	wait := time.Duration(s.wait.Load())
	if wait == 0 {
		wait = defaultPatience
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return Policy{For: wait, Forever: demand && s.onDown != nil}
}

// persist calls f until it returns something other than an error of kind
// Unreachable, or the patience or ctx ends; for a guest that runs, Denied too:
// whoever was locked out may be let in again, and an error would stay in the
// guest. Patience, and whether it is a
// demand, are asked anew each time: the work may have become one.
func (s *Server) persist(ctx context.Context, demand func() bool, patience func() Policy, f func() error) error {
	var began time.Time
	quick := true
	for {
		err := f()
		if err == nil {
			s.isUp()
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		p := patience()
		mayPass := errors.Is(err, parcel.ErrUnreachable) || p.Forever && errors.Is(err, parcel.ErrDenied)
		if !mayPass || s.life.Err() != nil {
			return err
		}
		if began.IsZero() {
			began = time.Now()
		}
		if !p.Forever && time.Since(began) >= p.For {
			return err
		}
		var fail *failure
		if quick && errors.As(err, &fail) && fail.broke {
			quick = false // at once on a new connection
			continue
		}
		if demand() || p.Forever { // somebody waits, or waits for it to end
			s.isDown(err)
		}
		s.outage.wait(ctx)
		quick = true
	}
}

// never is the urgency of what no guest waits for.
func never() bool { return false }

func (s *Server) String() string { return fmt.Sprintf("server %s", s.target.Host) }
