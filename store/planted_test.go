package store

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"isr/store/parcel"
	"isr/store/tree"
)

// A directory of objects that is a link: what is committed is not moved there.
func TestCommitPlanted(t *testing.T) {
	s := newStoreInMemory(t)
	p := newParcel(t, s)
	r := holding(t, p, change{0: chunkOf("mine")})
	outside := t.TempDir()
	ab := filepath.Join(p.hdk(), tree.ObjectName(r.Keyroot.Tag)[:2])
	if err := os.RemoveAll(ab); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside, ab); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Commit(ctx, r); !errors.Is(err, parcel.ErrDamaged) || hintOf(err) == "" {
		t.Errorf("got %v, with hint %q", err, hintOf(err))
	}
	if entries, err := os.ReadDir(outside); err != nil || len(entries) > 0 {
		t.Errorf("outside there is %v, %v", entries, err)
	}
	if err := os.Remove(ab); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Commit(ctx, r); err != nil {
		t.Errorf("without the link: %v", err)
	}
}
