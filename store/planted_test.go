package store_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"isr/store/parcel"
	"isr/store/storetest"
	"isr/store/tree"
)

// A directory of objects that is a link: what is committed is not moved there.
func TestCommitPlanted(t *testing.T) {
	s := storetest.New(t)
	p := storetest.NewParcel(t, s)
	r := storetest.Holding(t, p, storetest.Change{0: storetest.ChunkOf("mine")})
	outside := storetest.TempDir(t)
	ab := filepath.Join(p.HdkDir(), tree.ObjectName(r.Keyroot.Tag)[:2])
	if err := os.RemoveAll(ab); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside, ab); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Commit(ctx, r); !errors.Is(err, parcel.ErrDamaged) || storetest.HintOf(err) == "" {
		t.Errorf("got %v, with hint %q", err, storetest.HintOf(err))
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
