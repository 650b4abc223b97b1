package store_test

import (
	"errors"
	"fmt"
	"sync"
	"testing"

	"pgregory.net/rapid"

	"isr/store"
	"isr/store/parcel"
	"isr/store/storetest"
	"isr/store/tree"
)

func setQuota(t testing.TB, s *store.Store, user string, n int64) {
	t.Helper()
	if err := s.ChangeUser(user, func(c *store.UserConfig) error { c.Quota = n; return nil }); err != nil {
		t.Fatal(err)
	}
}

// publishedBytes is what is in hdk of all of alice's parcels: within her quota at
// any time, whatever waits in staging areas.
func publishedBytes(t testing.TB, s *store.Store) (sum int64) {
	t.Helper()
	names, err := s.Parcels("alice")
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range names {
		p, err := s.Parcel("alice", n)
		if err != nil {
			t.Fatal(err)
		}
		u, err := store.Count(p.HdkDir(), 1)
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
	s := storetest.New(t)
	p := storetest.NewParcel(t, s)
	if v, err := p.Commit(ctx, storetest.Holding(t, p, storetest.Change{1: storetest.ChunkOf("one"), 2: storetest.ChunkOf("two")})); v != 2 || err != nil {
		t.Fatal(v, err)
	}
	used, err := s.Usage("alice")
	if err != nil {
		t.Fatal(err)
	}
	limit := used.Bytes * 5 / 2
	setQuota(t, s, "alice", limit)
	const n = 4
	var done sync.WaitGroup
	var mu sync.Mutex
	all, here := make(chan struct{}), 0
	arrive := func() {
		mu.Lock()
		defer mu.Unlock()
		if here++; here == n {
			close(all)
		}
	}
	defer func(was func(string)) { tree.Step = was }(tree.Step)
	tree.Step = func(name string) {
		if name == "sync" { // has asked for room, as all of them shall have
			arrive()
			<-all
		}
	}
	errs := make([]error, n)
	for i := range n {
		done.Go(func() {
			s, err := store.Open(s.Root()) // as another process has it
			if err == nil {
				_, err = s.Copy(ctx, "alice", "winxp", "alice", fmt.Sprint("copy", i))
			}
			if errs[i] = err; err != nil {
				arrive()
			}
		})
	}
	done.Wait()
	tree.Step = func(string) {}
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
	storetest.WantSound(t, s)
}

// A commit that measures while another one's objects move from staging to hdk
// misses none of them.
func TestQuotaWhileOthersMove(t *testing.T) {
	s := storetest.New(t)
	var parcels [2]*store.Parcel
	for i := range parcels {
		p, err := s.Create(ctx, "alice", fmt.Sprint("p", i), store.CreateOptions{DiskSize: 1000 * storetest.Chunk, ChunkSize: storetest.Chunk})
		if err != nil {
			t.Fatal(err)
		}
		parcels[i] = p
	}
	defer func(was func(string)) { tree.Step = was }(tree.Step)
	for round := range 20 {
		setQuota(t, s, "alice", 1<<40)
		many := make(storetest.Change)
		for n := range int64(200) {
			many[n] = storetest.ChunkOf(fmt.Sprint("round ", round, " chunk ", n))
		}
		first := storetest.Holding(t, parcels[0], many)
		used, err := s.Usage("alice")
		if err != nil {
			t.Fatal(err)
		}
		// What the first brings fits to the byte; so the second's does not.
		setQuota(t, s, "alice", used.Bytes)
		var second store.CommitRequest
		var at sync.Once
		commits := make(chan error, 1)
		tree.Step = func(name string) {
			if name != "move" {
				return
			}
			at.Do(func() { // the first has measured, and is about to move
				second = storetest.Holding(t, parcels[1], storetest.Change{int64(round): storetest.ChunkOf(fmt.Sprint("second ", round))})
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
		for i, r := range []store.CommitRequest{first, second} {
			if _, err := parcels[i].Release(r.Nonce, false); err != nil {
				t.Fatal(err)
			}
		}
	}
	storetest.WantSound(t, s)
}

// TestQuotaHolds: whatever a user's parcels do at once, what they have is
// within her quota, and nobody waits for ever.
func TestQuotaHolds(t *testing.T) {
	s := storetest.New(t)
	round := 0
	rapid.Check(t, func(r *rapid.T) {
		round++
		setQuota(t, s, "alice", 1<<40)
		var requests []func() error
		for i := range rapid.IntRange(2, 4).Draw(r, "parcels") {
			name := fmt.Sprintf("p%d-%d", round, i)
			p, err := s.Create(ctx, "alice", name, store.CreateOptions{DiskSize: 100 * storetest.Chunk, ChunkSize: storetest.Chunk})
			if err != nil {
				r.Fatal(err)
			}
			defer s.DelParcel("alice", name, true)
			defer s.DelParcel("alice", name+"-fork", true)
			c := make(storetest.Change)
			for k := range rapid.IntRange(1, 20).Draw(r, "chunks") {
				c[int64(k)] = storetest.ChunkOf(fmt.Sprint(i, " ", k))
			}
			request := storetest.Holding(t, p, c)
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
	storetest.WantSound(t, s)
}
