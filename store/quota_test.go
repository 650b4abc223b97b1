package store

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"

	"pgregory.net/rapid"

	"isr/store/parcel"
	"isr/store/seal"
)

func setQuota(t testing.TB, s *Store, user string, n int64) {
	t.Helper()
	if err := s.ChangeUser(user, func(c *UserConfig) error { c.Quota = n; return nil }); err != nil {
		t.Fatal(err)
	}
}

// publishedBytes is what is in hdk of all of alice's parcels: within her quota at
// any time, whatever waits in staging areas.
func publishedBytes(t testing.TB, s *Store) (sum int64) {
	t.Helper()
	names, err := s.Parcels("alice")
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range names {
		u, err := count(s.userAt("alice").parcel(n).hdk(), 1)
		if err != nil {
			t.Fatal(err)
		}
		sum += u.Bytes
	}
	return sum
}

// Parcels that are made in one instant: all of them find room when they begin,
// and one when they are done.
func TestQuotaOfMany(t *testing.T) {
	s := newStoreInMemory(t)
	p := newParcel(t, s)
	if v, err := p.Commit(ctx, holding(t, p, change{1: chunkOf("one"), 2: chunkOf("two")})); v != 2 || err != nil {
		t.Fatal(v, err)
	}
	used, err := s.Usage("alice")
	if err != nil {
		t.Fatal(err)
	}
	limit := used.Bytes * 5 / 2
	setQuota(t, s, "alice", limit)
	const n = 4
	var begun, done sync.WaitGroup
	begun.Add(n)
	errs := make([]error, n)
	for i := range n {
		done.Go(func() {
			s := &Store{root: s.root, realm: s.realm, secret: s.secret} // as another process has it
			src, err := s.Parcel("alice", "winxp")
			if err != nil {
				errs[i] = err
				begun.Done()
				return
			}
			fill := copied(src, CopyOptions{})
			_, errs[i] = s.create(ctx, "alice", fmt.Sprint("copy", i), func(ctx context.Context, b *building) (*parcel.Config, seal.Ref, error) {
				begun.Done()
				begun.Wait() // all of them have asked for room
				return fill(ctx, b)
			})
		})
	}
	done.Wait()
	for _, err := range errs {
		if err != nil && !errors.Is(err, parcel.ErrFull) {
			t.Error(err)
		}
	}
	if got := publishedBytes(t, s); got > limit {
		t.Errorf("%d bytes under a quota of %d: %v", got, limit, errs)
	}
	// Whoever was refused left nothing behind, and one of them fits.
	if names, err := s.Parcels("alice"); err != nil || len(names) == 1 {
		if _, err := s.Copy(ctx, "alice", "winxp", "alice", "again"); err != nil {
			t.Errorf("%v: %v", names, err)
		}
	}
	wantSound(t, s)
}

// A commit that measures while another one's objects move from staging to hdk
// misses none of them.
func TestQuotaWhileOthersMove(t *testing.T) {
	s := newStoreInMemory(t)
	var parcels [2]*Parcel
	for i := range parcels {
		p, err := s.Create(ctx, "alice", fmt.Sprint("p", i), CreateOptions{DiskSize: 1000 * testChunk, ChunkSize: testChunk})
		if err != nil {
			t.Fatal(err)
		}
		parcels[i] = p
	}
	defer func(was func(string)) { step = was }(step)
	for round := range 20 {
		setQuota(t, s, "alice", 1<<40)
		many := make(change)
		for n := range int64(200) {
			many[n] = chunkOf(fmt.Sprint("round ", round, " chunk ", n))
		}
		first := holding(t, parcels[0], many)
		used, err := s.Usage("alice")
		if err != nil {
			t.Fatal(err)
		}
		// What the first brings fits to the byte; so the second's does not.
		setQuota(t, s, "alice", used.Bytes)
		var second CommitRequest
		var at sync.Once
		commits := make(chan error, 1)
		step = func(name string) {
			if name != "move" {
				return
			}
			at.Do(func() { // the first has measured, and is about to move
				second = holding(t, parcels[1], change{int64(round): chunkOf(fmt.Sprint("second ", round))})
				go func() {
					_, err := parcels[1].Commit(ctx, second)
					commits <- err
				}()
			})
		}
		if _, err := parcels[0].Commit(ctx, first); err != nil {
			t.Fatal(err)
		}
		if err := <-commits; !errors.Is(err, parcel.ErrFull) {
			t.Errorf("round %d: the second one: %v", round, err)
		}
		if got := publishedBytes(t, s); got > used.Bytes {
			t.Fatalf("round %d: %d bytes under a quota of %d", round, got, used.Bytes)
		}
		for i, r := range []CommitRequest{first, second} {
			if _, err := parcels[i].Release(r.Nonce, false); err != nil {
				t.Fatal(err)
			}
		}
	}
	wantSound(t, s)
}

// TestQuotaHolds: whatever a user's parcels do at once, what they have is
// within her quota, and nobody waits for ever.
func TestQuotaHolds(t *testing.T) {
	s := newStoreInMemory(t)
	round := 0
	rapid.Check(t, func(r *rapid.T) {
		round++
		setQuota(t, s, "alice", 1<<40)
		var requests []func() error
		for i := range rapid.IntRange(2, 4).Draw(r, "parcels") {
			name := fmt.Sprintf("p%d-%d", round, i)
			p, err := s.Create(ctx, "alice", name, CreateOptions{DiskSize: 100 * testChunk, ChunkSize: testChunk})
			if err != nil {
				r.Fatal(err)
			}
			defer s.DelParcel("alice", name, true)
			defer s.DelParcel("alice", name+"-fork", true)
			c := make(change)
			for k := range rapid.IntRange(1, 20).Draw(r, "chunks") {
				c[int64(k)] = chunkOf(fmt.Sprint(i, " ", k))
			}
			request := holding(t, p, c)
			requests = append(requests, func() error {
				_, err := p.Commit(ctx, request)
				return err
			}, func() error {
				_, err := s.Fork(ctx, "alice", name, 1, name+"-fork", "", "host", parcel.NewID())
				return err
			})
		}
		used, err := s.Usage("alice")
		if err != nil {
			r.Fatal(err)
		}
		limit := used.Bytes + rapid.Int64Range(-2000, 1000).Draw(r, "room")
		setQuota(t, s, "alice", limit)
		before := publishedBytes(t, s) // is there, whatever the quota
		errs := make([]error, len(requests))
		var all sync.WaitGroup
		for i, request := range requests {
			all.Go(func() { errs[i] = request() })
		}
		all.Wait()
		for _, err := range errs {
			if err != nil && !errors.Is(err, parcel.ErrFull) {
				r.Error(err)
			}
		}
		if got := publishedBytes(t, s); got > max(limit, before) {
			r.Fatalf("%d bytes under a quota of %d: %v", got, limit, errs)
		}
	})
	wantSound(t, s)
}
