package remote

import (
	"bufio"
	"container/list"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"isr/client/fetch"
	"isr/locksrv/proto"
	"isr/store/parcel"
	"isr/store/seal"
)

// Objects is the objects of one parcel on a Server. Safe for concurrent use.
type Objects struct {
	s      *Server
	parcel string
	demand group
	bulk   group
}

// Objects is the objects of the parcel called name.
func (s *Server) Objects(name string) *Objects {
	s.mu.Lock()
	defer s.mu.Unlock()
	o := s.objects[name]
	if o == nil {
		o = &Objects{s: s, parcel: name}
		o.demand.o, o.demand.demand = o, true
		o.bulk.o = o
		s.objects[name] = o
	}
	return o
}

var _ fetch.TagVerifier = (*Objects)(nil)

// VerifiesTags says that Get never returns bytes that do not match the tag.
func (o *Objects) VerifiesTags() {}

// Get returns the object that tag names; parcel.ErrNoObject if the store lacks
// it, an error that wraps seal.ErrCorrupt if what came is something else. It
// costs one round trip, and many may be under way at once.
//
// The class of ctx decides which go first (see fetch). If the server cannot be
// reached it goes on trying: see OnOutage and WithPolicy.
func (o *Objects) Get(ctx context.Context, tag seal.Tag) ([]byte, error) {
	var sealed []byte
	demand := func() bool { return fetch.ClassOf(ctx) == fetch.Demand }
	err := o.s.persist(ctx, demand, func() Policy { return o.s.patience(ctx, demand()) }, func() (err error) {
		sealed, err = o.get(ctx, tag)
		if errors.Is(err, parcel.ErrNoObject) {
			o.s.isUp()
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	if err := tag.Verify(sealed); err != nil {
		return nil, fmt.Errorf("server %s: %w", o.s.target.Host, err)
	}
	return sealed, nil
}

func (o *Objects) get(ctx context.Context, tag seal.Tag) ([]byte, error) {
	if tag.NewHash() == nil {
		return nil, parcel.NewError(parcel.NoObject, "object %q: not a tag", tag.String())
	}
	r := &request{tag: tag, class: fetch.ClassOf(ctx), answer: make(chan answer, 1)}
	g := &o.demand
	var raised <-chan struct{}
	if r.class != fetch.Demand {
		g, raised = &o.bulk, fetch.Raised(ctx)
		o.s.bulk.Add(1)
		defer o.s.bulk.Add(-1)
		if r.class == fetch.Prefetch {
			o.demand.expect()
		}
	}
	g.ask(r)
	for {
		select {
		case a := <-r.answer:
			return a.sealed, a.err
		case <-raised:
			raised = nil
			if g.takeBack(r) {
				r.class = fetch.Demand
				g = &o.demand
				g.ask(r)
			}
		case <-ctx.Done():
			g.takeBack(r)
			return nil, ctx.Err()
		}
	}
}

// request is one object asked for.
type request struct {
	tag    seal.Tag
	class  fetch.Class
	answer chan answer // room for one
	place  *list.Element
	sent   time.Time
}

type answer struct {
	sealed []byte
	err    error
}

// group is the requests of one urgency: those that wait, and the lanes that
// carry them.
type group struct {
	o      *Objects
	demand bool

	mu      sync.Mutex
	waiting list.List // of *request
	lanes   []*lane   // open
	opening []*link
	pause   time.Time // no more lanes than there are, until then
}

// openPause is how long one lane more is not tried for after it could not be
// had.
const openPause = 10 * time.Second

// ask puts r into the queue.
func (g *group) ask(r *request) {
	g.mu.Lock()
	defer g.mu.Unlock()
	r.place = g.waiting.PushBack(r)
	g.pump()
}

// expect sees to it that a demand will find a lane: who prefetches has a guest
// that may come to wait at any time.
func (g *group) expect() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.pump()
}

// takeBack takes r out of the queue; false if it has been sent.
func (g *group) takeBack(r *request) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if r.place == nil {
		return false
	}
	g.waiting.Remove(r.place)
	r.place = nil
	return true
}

// pump sends what there is room for, and sees to it that there is a lane. It
// needs the lock.
func (g *group) pump() {
	for g.waiting.Len() > 0 {
		l := g.roomiest()
		if l == nil {
			break
		}
		r := g.waiting.Remove(g.waiting.Front()).(*request)
		r.place = nil
		l.send(r)
	}
	for {
		k := g.wanted()
		if k == nil {
			break
		}
		g.opening = append(g.opening, k)
		k.use()
		go g.open(k)
	}
}

// roomiest is the open lane to send on next; nil if all are full.
func (g *group) roomiest() *lane {
	var best *lane
	for _, l := range g.lanes {
		if l.err != nil {
			continue
		}
		if g.demand {
			if best == nil || l.link == g.o.s.demand {
				best = l
			}
			continue
		}
		if l.room() > 0 && (best == nil || l.room() > best.room()) {
			best = l
		}
	}
	return best
}

// wanted is a link on which one more lane is to be opened now, if any.
func (g *group) wanted() *link {
	s := g.o.s
	if len(g.lanes) > 0 && time.Now().Before(g.pause) {
		return nil
	}
	taken := func(k *link) bool {
		for _, l := range g.lanes {
			if l.link == k {
				return true
			}
		}
		for _, o := range g.opening {
			if o == k {
				return true
			}
		}
		return false
	}
	if g.demand {
		// On the common connection, unless it carries bulk work: then, as
		// soon as it can be had, on its own.
		if s.bulk.Load() > 0 && !taken(s.demand) && (len(g.lanes) > 0 || g.waiting.Len() == 0 || s.main.live() == nil) {
			return s.demand
		}
		if g.waiting.Len() > 0 && len(g.lanes) == 0 && len(g.opening) == 0 {
			return s.main
		}
		return nil
	}
	switch n := len(g.opening); {
	case g.waiting.Len() == 0, len(g.lanes)+n >= s.lanes(), g.waiting.Len() <= n*firstDepth:
		return nil
	case len(g.lanes) == 0 && n > 0:
		return nil // one shows how far away the server is
	}
	for _, l := range g.lanes {
		if !l.narrow() {
			return nil // another would share what this one cannot use
		}
	}
	for i := range s.lanes() {
		if k := s.bulkLink(i); !taken(k) {
			return k
		}
	}
	return nil
}

// open opens a lane on k, and begins to use it.
func (g *group) open(k *link) {
	l, err := g.dial(k)
	g.mu.Lock()
	defer g.mu.Unlock()
	for i := range g.opening {
		if g.opening[i] == k {
			g.opening = append(g.opening[:i], g.opening[i+1:]...)
			break
		}
	}
	if err == nil {
		g.lanes = append(g.lanes, l)
		go l.write()
		go l.read()
		g.pump()
		return
	}
	k.unuse()
	g.pause = time.Now().Add(openPause)
	if len(g.lanes) == 0 && len(g.opening) == 0 {
		for g.waiting.Len() > 0 {
			r := g.waiting.Remove(g.waiting.Front()).(*request)
			r.place = nil
			r.answer <- answer{err: err}
		}
	}
}

func (g *group) dial(k *link) (*lane, error) {
	s := g.o.s
	c, err := k.get(s.life)
	if err != nil {
		return nil, err
	}
	x, err := c.start(s.life, []string{proto.Get, g.o.parcel})
	if err != nil {
		if s.life.Err() != nil {
			err = s.lost(errClosed)
		}
		return nil, err
	}
	c.end() // an open lane is not work under way: its requests are
	return &lane{g: g, link: k, x: x, wake: make(chan struct{}, 1), depth: firstDepth, size: 64 << 10}, nil
}

// lane is one channel that carries requests one after another, and the
// answers back in the same order. Its fields are under group.mu.
type lane struct {
	g    *group
	link *link
	x    *running
	wake chan struct{} // there is something to write, or to end
	err  error         // why it has ended

	queue   []*request // to be written
	pending []*request // written or in queue, not answered, oldest first
	idle    *time.Timer

	// How many requests may be on their way: as many as fill the link, so
	// that there is always one to answer, and no more, so that a demand that
	// comes does not find the link's queue full. More as long as answers come
	// about as fast as they ever did on this lane, fewer when they do not.
	depth float64
	size  float64 // of an answer, about, bytes
	best  shortest
	cut   time.Time // when depth was last reduced
}

const (
	firstDepth = 4 // doubles each round trip
	minDepth   = 2
	maxDepth   = 1024
	// window is what an SSH channel carries in a round trip.
	window = 2 << 20
	// The queue that bulk work may build up on the link.
	prefetchQueue = 100 * time.Millisecond
	hoardQueue    = 250 * time.Millisecond
)

// limit is how many requests may be on their way.
func (l *lane) limit() int { return int(min(l.depth, l.full())) }

// full is how many fill the window of the channel.
func (l *lane) full() float64 { return max(minDepth, min(maxDepth, window/l.size)) }

func (l *lane) room() int { return l.limit() - len(l.pending) }

// narrow reports whether it is the window, and not the link, that keeps the
// lane from carrying more.
func (l *lane) narrow() bool { return l.depth >= l.full() }

// send puts r on its way.
func (l *lane) send(r *request) {
	r.sent = time.Now()
	l.queue = append(l.queue, r)
	l.pending = append(l.pending, r)
	if len(l.pending) == 1 {
		l.x.c.begin()
		if l.idle != nil {
			l.idle.Stop()
		}
	}
	l.prod()
}

func (l *lane) prod() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// write sends tags, all that wait in one packet.
func (l *lane) write() {
	var lines []byte
	for range l.wake {
		l.g.mu.Lock()
		lines = lines[:0]
		for _, r := range l.queue {
			lines = append(lines, r.tag.String()...)
			lines = append(lines, '\n')
		}
		l.queue = nil
		ended := l.err != nil
		l.g.mu.Unlock()
		if ended {
			return
		}
		if _, err := l.x.stdin.Write(lines); err != nil {
			l.x.session.Close() // read will hear of it
			return
		}
	}
}

// read takes answers until the lane ends.
func (l *lane) read() {
	in := bufio.NewReaderSize(l.x.stdout, 64<<10)
	for {
		sealed, err := proto.ReadFrame(in)
		if err != nil && err != parcel.ErrNoObject {
			l.ended(err)
			return
		}
		l.g.mu.Lock()
		if len(l.pending) == 0 {
			l.g.mu.Unlock()
			l.ended(errors.New("answer to nothing"))
			return
		}
		r := l.pending[0]
		l.pending[0] = nil
		l.pending = l.pending[1:]
		if len(l.pending) == 0 {
			l.pending = nil
			l.x.c.end()
			if !l.g.demand {
				l.idle = time.AfterFunc(idleTime, l.close)
			}
		}
		l.learn(r, len(sealed))
		l.g.pump()
		l.g.mu.Unlock()
		if err != nil {
			err = parcel.NewError(parcel.NoObject, "object %s: not on server %s", r.tag, l.g.o.s.target.Host)
		}
		r.answer <- answer{sealed, err}
	}
}

// learn fits the depth to how long an answer took.
func (l *lane) learn(r *request, n int) {
	l.size += (float64(max(n, 64)) - l.size) / 32
	now := time.Now()
	took := now.Sub(r.sent)
	l.g.o.s.sawRTT(took) // it is no longer than this
	best := l.best.of(now, took)
	queue := prefetchQueue
	if r.class == fetch.Hoard {
		queue = hoardQueue
	}
	switch {
	case took <= best+queue:
		l.depth = min(l.depth+1, l.full())
	case now.Sub(l.cut) > took:
		l.depth = max(minDepth, l.depth*0.8)
		l.cut = now
	}
}

// shortest remembers the shortest time of the last minute or two.
type shortest struct {
	now, before time.Duration
	since       time.Time
}

func (s *shortest) of(at time.Time, d time.Duration) time.Duration {
	if at.Sub(s.since) > time.Minute {
		s.before, s.now, s.since = s.now, 0, at
	}
	if s.now == 0 || d < s.now {
		s.now = d
	}
	if s.before != 0 && s.before < s.now {
		return s.before
	}
	return s.now
}

// close ends a lane that has been idle.
func (l *lane) close() {
	l.g.mu.Lock()
	defer l.g.mu.Unlock()
	if len(l.pending) == 0 && l.err == nil {
		l.err = errClosed
		l.x.session.Close()
	}
}

// goodbye is how long a verb that has closed its output may take to end.
const goodbye = 5 * time.Second

// ended takes the lane out, and fails what was on its way there.
func (l *lane) ended(err error) {
	if errors.Is(err, io.EOF) {
		// The verb has ended and may yet say why.
		t := time.AfterFunc(goodbye, func() { l.x.session.Close() })
		defer t.Stop()
	} else {
		l.x.session.Close()
	}
	var fail *failure
	if werr := l.x.wait(); werr != nil && !errors.As(werr, &fail) {
		err = werr // what the verb said
	} else {
		err = l.x.c.lost(err)
	}
	l.g.mu.Lock()
	defer l.g.mu.Unlock()
	l.err = err
	l.x.stop()
	l.prod()
	if l.idle != nil {
		l.idle.Stop()
	}
	if len(l.pending) > 0 {
		l.x.c.end()
	}
	for _, r := range l.pending {
		r.answer <- answer{err: err}
	}
	l.pending, l.queue = nil, nil
	for i := range l.g.lanes {
		if l.g.lanes[i] == l {
			l.g.lanes = append(l.g.lanes[:i], l.g.lanes[i+1:]...)
			break
		}
	}
	l.link.unuse()
	l.g.pump()
}
