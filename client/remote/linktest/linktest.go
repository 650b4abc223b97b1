// Package linktest gives tests a bad network: a TCP proxy on the loopback
// interface with a round trip, a rate, and ways to break.
//
// One Link is one line: all its connections share the rate of each direction.
// It models propagation delay and serialisation; no loss, no jitter, no slow
// start. Everything ends with the test.
package linktest

import (
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// Link is a proxy to one address.
type Link struct {
	Addr string // of the proxy

	target   string
	ln       net.Listener
	oneWay   atomic.Int64 // nanoseconds
	up, down line
	made     atomic.Int64
	refused  atomic.Int64

	mu      sync.Mutex
	last    *line // that carried something
	turns   int
	conns   map[net.Conn]bool
	refuse  bool
	stalled chan struct{} // nil: it flows; else closed when it does again
	closed  bool
}

// line is one direction.
type line struct {
	rate  atomic.Int64 // bytes a second, 0: no limit
	bytes atomic.Int64
	mu    sync.Mutex
	free  time.Time // when it is next idle
}

// New is a link to target until the test ends.
func New(t testing.TB, target string) *Link {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := &Link{Addr: ln.Addr().String(), target: target, ln: ln, conns: make(map[net.Conn]bool)}
	go l.accept()
	t.Cleanup(func() {
		ln.Close()
		l.mu.Lock()
		l.closed = true
		l.mu.Unlock()
		l.Stall(false)
		l.Cut()
	})
	return l
}

// Target makes new connections go to another address.
func (l *Link) Target(addr string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.target = addr
}

// RTT sets the round trip that the link adds.
func (l *Link) RTT(d time.Duration) { l.oneWay.Store(int64(d / 2)) }

// Rate sets the bytes a second of each direction; 0 is no limit.
func (l *Link) Rate(up, down int64) {
	l.up.rate.Store(up)
	l.down.rate.Store(down)
}

// Cut breaks every connection, as a server does that is killed.
func (l *Link) Cut() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for c := range l.conns {
		if tcp, ok := c.(*net.TCPConn); ok {
			tcp.SetLinger(0) // a reset, not an orderly end
		}
		c.Close()
	}
	clear(l.conns)
}

// Refuse makes new connections end at once, or not any more.
func (l *Link) Refuse(yes bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.refuse = yes
}

// Stall makes the link silent: nothing arrives any more, and nothing is
// refused, as when a cable is pulled. Stall(false) lets all of it arrive.
func (l *Link) Stall(yes bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case yes && l.stalled == nil:
		l.stalled = make(chan struct{})
	case !yes && l.stalled != nil:
		close(l.stalled)
		l.stalled = nil
	}
}

// Bytes is what went through in each direction so far.
func (l *Link) Bytes() (up, down int64) { return l.up.bytes.Load(), l.down.bytes.Load() }

// Turns is how often something went up after something had come down: round
// trips, whatever they took, of one who waits for each answer.
func (l *Link) Turns() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.turns
}

// Conns is the number of connections now, and of all made so far.
func (l *Link) Conns() (now, made int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.conns) / 2, int(l.made.Load())
}

// Refused is the number of connections that were refused so far.
func (l *Link) Refused() int { return int(l.refused.Load()) }

func (l *Link) accept() {
	for {
		near, err := l.ln.Accept()
		if err != nil {
			return
		}
		l.mu.Lock()
		target, refuse := l.target, l.refuse || l.closed
		l.mu.Unlock()
		if refuse {
			l.refused.Add(1)
			near.Close()
			continue
		}
		go l.carry(near, target)
	}
}

func (l *Link) carry(near net.Conn, target string) {
	time.Sleep(2 * time.Duration(l.oneWay.Load())) // the handshake
	far, err := net.Dial("tcp", target)
	if err != nil {
		near.Close()
		return
	}
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		near.Close()
		far.Close()
		return
	}
	l.conns[near], l.conns[far] = true, true
	l.made.Add(1)
	l.mu.Unlock()
	var both sync.WaitGroup
	both.Go(func() { l.pump(far, near, &l.up) })
	both.Go(func() { l.pump(near, far, &l.down) })
	both.Wait()
	l.mu.Lock()
	delete(l.conns, near)
	delete(l.conns, far)
	l.mu.Unlock()
	near.Close()
	far.Close()
}

type packet struct {
	data []byte
	due  time.Time
}

// pump carries one direction to its end, and passes the end on.
func (l *Link) pump(dst, src net.Conn, way *line) {
	// Room for what is under way on a long fast link, 8 MiB and more.
	queue := make(chan packet, 512)
	go func() {
		defer close(queue)
		for {
			buf := make([]byte, 32<<10)
			n, err := src.Read(buf)
			if n > 0 {
				queue <- packet{buf[:n], way.book(n).Add(time.Duration(l.oneWay.Load()))}
			}
			if err != nil {
				return
			}
		}
	}()
	ok := true
	for p := range queue {
		if !ok {
			continue
		}
		time.Sleep(time.Until(p.due))
		l.mu.Lock()
		if way == &l.up && l.last == &l.down {
			l.turns++
		}
		l.last = way
		stalled := l.stalled
		l.mu.Unlock()
		if stalled != nil {
			<-stalled
		}
		way.bytes.Add(int64(len(p.data)))
		if _, err := dst.Write(p.data); err != nil {
			ok = false
			src.Close()
		}
	}
	if tcp, is := dst.(*net.TCPConn); is {
		tcp.CloseWrite()
	}
}

// book puts n bytes on the line, waits until there is room for more, and
// returns when the last of them leaves.
func (w *line) book(n int) time.Time {
	rate := w.rate.Load()
	now := time.Now()
	if rate <= 0 {
		return now
	}
	w.mu.Lock()
	if w.free.Before(now) {
		w.free = now
	}
	w.free = w.free.Add(time.Duration(float64(n) / float64(rate) * float64(time.Second)))
	left := w.free
	w.mu.Unlock()
	time.Sleep(time.Until(left))
	return left
}
