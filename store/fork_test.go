package store_test

import (
	"errors"
	"testing"

	"isr/store/check"
	"isr/store/parcel"
	"isr/store/storetest"
)

// A fork is another parcel of an old version, held at once; asked again, it is
// the same one.
func TestFork(t *testing.T) {
	s := storetest.New(t)
	p := storetest.NewParcel(t, s)
	storetest.Commit(t, p, storetest.Change{1: storetest.ChunkOf("one")})
	storetest.Commit(t, p, storetest.Change{1: storetest.ChunkOf("two")})
	fork := func(v int, name, acquisition string) (*parcel.Lock, error) {
		return s.Fork(ctx, "alice", "winxp", v, name, "saved from\nwinxp", "desk", acquisition)
	}
	l, err := fork(2, "saved", "a1")
	if err != nil {
		t.Fatal(err)
	}
	again, err := fork(2, "saved", "a1")
	if err != nil || again.Nonce != l.Nonce {
		t.Errorf("again: %v, %v", again, err)
	}
	q, err := s.Parcel("alice", "saved")
	if err != nil {
		t.Fatal(err)
	}
	storetest.WantChunk(t, q, 0, 1, "one")
	cfg, err := q.Config()
	if err != nil {
		t.Fatal(err)
	}
	if from, err := p.Config(); err != nil || cfg.UUID == from.UUID || cfg.Version != 1 || cfg.Comment != "saved from winxp" {
		t.Errorf("configuration %+v, %v", cfg, err)
	}
	if vs, err := q.Versions(0); err != nil || len(vs) != 1 || vs[0].Comment != "version 2 of winxp" {
		t.Errorf("versions %+v, %v", vs, err)
	}
	if h, err := q.Holder(); err != nil || h == nil || h.Host != "desk" {
		t.Errorf("holder %v, %v", h, err)
	}
	for name, c := range map[string]struct {
		v           int
		name, id    string
		wantedError error
	}{
		"another's name":  {2, "saved", "a2", parcel.ErrExists},
		"its own name":    {2, "winxp", "a2", parcel.ErrExists},
		"no such version": {9, "more", "a2", parcel.ErrNoVersion},
		"reserved":        {2, "hoard", "a2", parcel.ErrUsage},
		"no id":           {2, "more", "", parcel.ErrUsage},
		"version 0":       {0, "more", "a2", parcel.ErrUsage},
		"no name":         {1, "../x", "a2", parcel.ErrUsage},
	} {
		if _, err := fork(c.v, c.name, c.id); !errors.Is(err, c.wantedError) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if names, err := s.Parcels("alice"); len(names) != 2 || err != nil {
		t.Errorf("parcels %v, %v", names, err)
	}
	if _, err := s.Fork(ctx, "bob", "winxp", 1, "mine", "", "h", "a3"); !errors.Is(err, parcel.ErrNoParcel) {
		t.Errorf("another user's: %v", err)
	}
	// What the two share belongs to either alone.
	if err := s.DelParcel("alice", "winxp", true); err != nil {
		t.Fatal(err)
	}
	storetest.WantChunk(t, q, 0, 1, "one")
	sum, err := check.Run(ctx, s, check.Options{Content: true}, func(p check.Problem) { t.Log(p) })
	if err != nil || sum.Errors > 0 {
		t.Errorf("check: %+v, %v", sum, err)
	}
}
