package prune_test

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"isr/store"
	"isr/store/gc"
	"isr/store/keep"
	"isr/store/parcel"
	"isr/store/prune"
	"isr/store/storetest"
)

var ctx = context.Background()

// What no prune may remove stays.
func TestPruneKeeps(t *testing.T) {
	s := storetest.New(t)
	p := storetest.NewParcel(t, s)
	for n := range 8 {
		storetest.Commit(t, p, storetest.Change{0: storetest.ChunkOf(fmt.Sprint(n))})
	}
	mark := func(v int, f func(*store.VersionRecord)) {
		rec, err := p.Record(v)
		if err != nil {
			t.Fatal(err)
		}
		f(rec)
		b, err := rec.Encode()
		if err != nil {
			t.Fatal(err)
		}
		os.WriteFile(p.VersionFile(v), b, 0o600)
	}
	mark(2, func(v *store.VersionRecord) { v.Tags = []string{"gold", "exam"} })
	mark(3, func(v *store.VersionRecord) { v.Pin = "evidence" })
	l, err := p.Acquire("alice", "lost", "id")
	if err != nil || l.Version != 9 {
		t.Fatal(l, err)
	}
	if _, err := p.Release("", true); err != nil {
		t.Fatal(err)
	}
	storetest.Commit(t, p, storetest.Change{1: storetest.ChunkOf("x")})
	storetest.Commit(t, p, storetest.Change{1: storetest.ChunkOf("y")})
	// A release in good order forgets who lost the lock before.
	kept := func(want string) []prune.Plan {
		t.Helper()
		plan, err := prune.Choose(p, keep.Rules{Last: 1})
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, v := range plan {
			if len(v.Kept) > 0 {
				got = append(got, fmt.Sprint(v.Version, " ", strings.Join(v.Kept, " ")))
			}
		}
		if strings.Join(got, ", ") != want {
			t.Errorf("kept: got %s, want %s", strings.Join(got, ", "), want)
		}
		return plan
	}
	kept("11 last head, 3 pinned, 2 tagged")
	if _, err := p.Acquire("alice", "lost", "id"); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Release("", true); err != nil {
		t.Fatal(err)
	}
	kept("11 last broken head, 3 pinned, 2 tagged")
	l, err = p.Acquire("alice", "h", "id")
	if err != nil {
		t.Fatal(err)
	}
	plan := kept("11 last held broken head, 3 pinned, 2 tagged")
	keyroot, _ := storetest.StageVersion(t, p, storetest.Change{2: storetest.ChunkOf("z")}, "")
	r := store.CommitRequest{Nonce: l.Nonce, Parent: 11, Keyroot: keyroot, ID: "z"}
	if v, err := p.Commit(ctx, r); v != 12 || err != nil {
		t.Fatal(v, err)
	}
	plan = kept("12 last head, 11 held broken, 3 pinned, 2 tagged")
	gone, _, err := prune.Run(ctx, p, []int{1, 2, 3, 4, 4, 11, 12, 13, 99, -1, 0})
	if !slices.Equal(gone, []int{1, 4}) || err != nil {
		t.Errorf("asked for all: got %v, %v", gone, err)
	}
	if gone, _, err = prune.Run(ctx, p, prune.Prunable(plan)); !slices.Equal(gone, []int{5, 6, 7, 8, 9, 10}) || err != nil {
		t.Errorf("got %v, %v", gone, err)
	}
	// The same commit again is answered as ever.
	if v, err := p.Commit(ctx, r); v != 12 || err != nil {
		t.Errorf("commit again: got %d, %v", v, err)
	}
	_, err = p.Root(ctx, 5)
	if parcel.KindOf(err) != parcel.NoVersion || !strings.Contains(err.Error(), "version 5: was pruned") {
		t.Errorf("version 5: got %v", err)
	}
	if _, err := p.Rollback(ctx, l.Nonce, 5); parcel.KindOf(err) != parcel.NoVersion {
		t.Errorf("rollback: got %v", err)
	}
	if _, err := s.Fork(ctx, "alice", "winxp", 5, "new", "", "h", "id"); parcel.KindOf(err) != parcel.NoVersion {
		t.Errorf("fork: got %v", err)
	}
	if _, err := s.Fork(ctx, "alice", "winxp", 11, "saved", "", "h", "id"); err != nil {
		t.Errorf("fork of what a lost lock had: %v", err)
	}
	if _, err := p.Release(l.Nonce, false); err != nil {
		t.Fatal(err)
	}
	os.Rename(p.VersionFile(3), p.VersionFile(3)+".x")
	if _, _, err := p.Published(3); parcel.KindOf(err) != parcel.Damaged {
		t.Errorf("lost keyroot: got %v", err)
	}
	os.Rename(p.VersionFile(3)+".x", p.VersionFile(3))
	if _, err := prune.Choose(p, keep.Rules{Daily: -1}); parcel.KindOf(err) != parcel.Usage {
		t.Errorf("daily -1: got %v", err)
	}
	storetest.Collect(t, s, gc.Options{})
	if !slices.Equal(storetest.ObjectsIn(t, p), storetest.Reachable(t, p)) {
		t.Error("hdk has what no version needs")
	}
}
