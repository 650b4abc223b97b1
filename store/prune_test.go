package store

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"isr/store/keep"
	"isr/store/parcel"
)

// What no prune may remove stays.
func TestPruneKeeps(t *testing.T) {
	s := newStore(t)
	p := newParcel(t, s)
	for n := range 8 {
		commit(t, p, change{0: chunkOf(fmt.Sprint(n))})
	}
	mark := func(v int, f func(*version)) {
		rec, err := p.version(v)
		if err != nil {
			t.Fatal(err)
		}
		f(rec)
		b, err := rec.encode()
		if err != nil {
			t.Fatal(err)
		}
		os.WriteFile(p.versionFile(v), b, 0o600)
	}
	mark(2, func(v *version) { v.Tags = []string{"gold", "exam"} })
	mark(3, func(v *version) { v.Pin = "evidence" })
	l, err := p.Acquire("alice", "lost", "id")
	if err != nil || l.Version != 9 {
		t.Fatal(l, err)
	}
	if _, err := p.Release("", true); err != nil {
		t.Fatal(err)
	}
	commit(t, p, change{1: chunkOf("x")})
	commit(t, p, change{1: chunkOf("y")})
	// A release in good order forgets who lost the lock before.
	kept := func(want string) []Plan {
		t.Helper()
		plan, err := p.Plan(keep.Rules{Last: 1})
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
	keyroot, _ := stageVersion(t, p, change{2: chunkOf("z")}, "")
	r := CommitRequest{Nonce: l.Nonce, Parent: 11, Keyroot: keyroot, ID: "z"}
	if v, err := p.Commit(ctx, r); v != 12 || err != nil {
		t.Fatal(v, err)
	}
	plan = kept("12 last head, 11 held broken, 3 pinned, 2 tagged")
	gone, _, err := p.Prune(ctx, []int{1, 2, 3, 4, 4, 11, 12, 13, 99, -1, 0})
	if !slices.Equal(gone, []int{1, 4}) || err != nil {
		t.Errorf("asked for all: got %v, %v", gone, err)
	}
	if gone, _, err = p.Prune(ctx, Prunable(plan)); !slices.Equal(gone, []int{5, 6, 7, 8, 9, 10}) || err != nil {
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
	os.Rename(p.versionFile(3), p.versionFile(3)+".x")
	if _, _, err := p.published(3); parcel.KindOf(err) != parcel.Damaged {
		t.Errorf("lost keyroot: got %v", err)
	}
	os.Rename(p.versionFile(3)+".x", p.versionFile(3))
	if _, err := p.Plan(keep.Rules{Daily: -1}); parcel.KindOf(err) != parcel.Usage {
		t.Errorf("daily -1: got %v", err)
	}
	collect(t, s, GCOptions{})
	if !slices.Equal(objectsIn(t, p), reachable(t, p)) {
		t.Error("hdk has what no version needs")
	}
}
