package remote

import (
	"context"
	"crypto/rand"
	"time"
)

// The rounds of a measurement: the first sends firstProbe bytes, each other
// twice as much, as TCP lets itself send, until maxProbe or until the time that
// sending took can be told from the round trip.
const (
	probePacket = 16 << 10
	firstProbe  = 16 << 10
	maxProbe    = 512 << 10
)

// Uplink measures how many bytes a second go to the server, the limit (see
// SetLimit) included: within a factor of two, and in the time that some round
// trips take. It sends what the server throws away.
func (s *Server) Uplink(ctx context.Context) (float64, error) {
	s.main.use()
	defer s.main.unuse()
	c, err := s.main.get(ctx)
	if err != nil {
		return 0, err
	}
	if !c.measured(ctx) {
		return 0, c.lost(errClosed)
	}
	type result struct {
		rate float64
		err  error
	}
	done := make(chan result, 1)
	go func() {
		c.begin()
		defer c.end()
		rate, err := c.probe(ctx)
		done <- result{rate, err}
	}()
	select {
	case r := <-done:
		if r.err != nil {
			return 0, c.lost(r.err)
		}
		if l := s.up.Load(); l != nil { // it lets a burst through
			return min(r.rate, float64(l.Limit())), nil
		}
		return r.rate, nil
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}

func (c *conn) probe(ctx context.Context) (float64, error) {
	// Of the kind that a line which compresses cannot make less of.
	p := make([]byte, probePacket)
	rand.Read(p)
	for size := firstProbe; ; size *= 2 {
		began := time.Now()
		for sent := probePacket; sent <= size && ctx.Err() == nil; sent += probePacket {
			// The answer to the last one, a refusal, says that all have come.
			if _, _, err := c.client.SendRequest("keepalive@openssh.com", sent == size, p); err != nil {
				return 0, err
			}
		}
		rtt := c.s.RTT()
		took := time.Since(began) - rtt
		if took >= max(rtt/2, 10*time.Millisecond) || size >= maxProbe || ctx.Err() != nil {
			return float64(size) / max(took, time.Millisecond/4).Seconds(), ctx.Err()
		}
	}
}
