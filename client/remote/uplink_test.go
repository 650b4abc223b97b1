package remote

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"isr/client/fetch"
	"isr/store/parcel"
)

// What is measured is about what the link has, on a busy host less, or the limit
// if that is less; and it takes no longer than some round trips.
func TestUplink(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name       string
		rtt        time.Duration
		link, ours int64
		low, high  float64
		at         time.Duration // most
	}{
		{"near and fast", 0, 0, 0, 1e6, 1e12, 2 * time.Second},
		{"far and fast", 60 * time.Millisecond, 0, 0, 5e5, 1e12, 3 * time.Second},
		{"near and slow", 0, 400e3, 0, 100e3, 800e3, 3 * time.Second},
		{"far and middling", 40 * time.Millisecond, 4e6, 0, 4e5, 8e6, 3 * time.Second},
		{"limited", 0, 0, 1 << 20, 0.3e6, 1.1e6, 3 * time.Second},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			r := newRealm(t)
			r.RTT(c.rtt)
			r.Rate(c.link, c.link)
			s := r.open()
			s.SetLimit(Limit{Up: c.ours})
			r.held(s)
			some := newObjects(4, 64<<10)
			began := time.Now()
			if err := s.Objects("box").PutAll(bg, tagsOf(some), opener(some), nil); err != nil {
				t.Fatal(err)
			}
			// A host that is too busy for the link has less.
			low := min(c.low, 4*64<<10/time.Since(began).Seconds()/4)
			atTimes(t, 20, func(int) error {
				began := time.Now()
				rate, err := s.Uplink(bg)
				took := time.Since(began)
				t.Logf("%.0f bytes a second, measured in %v", rate, took.Round(time.Millisecond))
				if err != nil || rate > c.high {
					t.Fatalf("%.0f bytes a second, %v", rate, err)
				}
				if rate < low || took > c.at {
					return fmt.Errorf("%.0f bytes a second, after %v", rate, took)
				}
				return nil
			})
			// The connection is as good as before.
			if _, err := s.ListParcels(bg); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestUplinkGone(t *testing.T) {
	t.Parallel()
	r := newRealm(t)
	s := r.open()
	if _, err := s.ListParcels(bg); err != nil {
		t.Fatal(err)
	}
	r.Stall(true)
	ctx, cancel := context.WithTimeout(bg, 100*time.Millisecond)
	defer cancel()
	if _, err := s.Uplink(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("on a silent link: %v", err)
	}
	r.Stall(false)
	r.Refuse(true)
	r.Cut()
	if _, err := s.Uplink(bg); !errors.Is(err, parcel.ErrUnreachable) {
		t.Errorf("without a link: %v", err)
	}
}

// The limit holds within a tenth, both ways, on a link that has a round trip,
// and counts what the network carries.
func TestLimitExact(t *testing.T) {
	t.Parallel()
	r := newRealm(t)
	r.RTT(20 * time.Millisecond)
	const rate = 256 << 10 // slow, so that a busy machine is faster
	down := r.stock(12, 64<<10)
	s := r.open()
	r.held(s)
	s.SetLimit(Limit{Up: rate, Down: rate})
	for way, f := range map[string]func() error{
		"up": func() error {
			up := newObjects(12, 64<<10) // what is there already is not sent
			return s.Objects("box").PutAll(bg, tagsOf(up), opener(up), nil)
		},
		"down": func() error {
			getAll(t, fetch.WithClass(bg, fetch.Hoard), s.Objects("box"), down)
			return nil
		},
	} {
		atTimes(t, 5, func(int) error {
			in, out := s.Traffic()
			began := time.Now()
			if err := f(); err != nil {
				t.Fatal(err)
			}
			took := time.Since(began)
			in2, out2 := s.Traffic()
			bytes := max(in2-in, out2-out)
			got := float64(bytes) / took.Seconds()
			t.Logf("%s: %d bytes in %v: %.3f of the limit", way, bytes, took.Round(time.Millisecond), got/rate)
			// A tenth of a second's worth may go at once.
			if got > rate*1.1 {
				t.Fatalf("%s: %.0f bytes a second, limited to %d", way, got, rate)
			}
			if got < rate*0.5 {
				return fmt.Errorf("%s: %.0f bytes a second, limited to %d", way, got, rate)
			}
			return nil
		})
	}
}
