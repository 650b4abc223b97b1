package diff_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"isr/store"
	"isr/store/diff"
	"isr/store/keyring"
	"isr/store/parcel"
	"isr/store/storetest"
)

var ctx = context.Background()

func TestDiff(t *testing.T) {
	s := storetest.New(t)
	p := storetest.NewParcel(t, s)
	storetest.Commit(t, p, storetest.Change{1: storetest.ChunkOf("one"), 2: storetest.ChunkOf("two"), 3: storetest.ChunkOf("three"), 300: storetest.ChunkOf("far")})
	storetest.Commit(t, p, storetest.Change{1: storetest.ChunkOf("ONE"), 2: storetest.ChunkOf(""), 4: storetest.ChunkOf("four"), 5: storetest.ChunkOf("five"), 999: storetest.ChunkOf("two")})
	d, err := diff.Versions(ctx, p, 2, 3)
	if err != nil || len(d.Images) != 2 || d.Cfg || d.From.Version != 2 || d.To.Version != 3 {
		t.Fatalf("got %+v, %v", d, err)
	}
	disk := d.Images[0]
	if disk.Name != "disk" || disk.Changed != 1 || disk.Added != 3 || disk.Zeroed != 1 || disk.Ranges.String() != "chunks 1-2,4-5,999" || disk.Chunks() != 5 || d.Images[1].Chunks() != 0 {
		t.Errorf("got %+v", d.Images)
	}
	// ONE, four and five; two is only at another place. And two blocks that
	// lead to chunks, the one above them, the root.
	if d.Objects != 3+2+1+1 || d.Bytes == 0 {
		t.Errorf("got %d objects of %d bytes", d.Objects, d.Bytes)
	}
	back, err := diff.Versions(ctx, p, 3, 2)
	if err != nil || back.Images[0].Added != 1 || back.Images[0].Zeroed != 3 || back.Images[0].Changed != 1 {
		t.Errorf("the other way: got %+v, %v", back, err)
	}
	if same, err := diff.Versions(ctx, p, 3, 3); err != nil || same.Objects != 0 || same.Images[0].Chunks() != 0 {
		t.Errorf("with itself: got %+v, %v", same, err)
	}
	for _, v := range [][2]int{{9, 1}, {1, 9}, {-1, 1}} {
		if _, err := diff.Versions(ctx, p, v[0], v[1]); !errors.Is(err, parcel.ErrNoVersion) {
			t.Errorf("%v: got %v", v, err)
		}
	}
	// Another size: the trees have not the same depth.
	l, err := p.Acquire("alice", "h", "id")
	if err != nil {
		t.Fatal(err)
	}
	cfg, _ := p.Config()
	root, err := p.Root(ctx, 0)
	if err != nil {
		t.Fatal(err)
	}
	root = root.Clone()
	im, _ := root.Image(keyring.Disk)
	for _, size := range []int64{70000 * storetest.Chunk, 200 * storetest.Chunk} {
		im, err := keyring.Resize(ctx, cfg.Sealer(), p, &storetest.Stager{Parcel: p}, im, size)
		if err != nil {
			t.Fatal(err)
		}
		root.SetImage(im)
		keyroot, sealed, err := keyring.SealRoot(cfg.Sealer(), root)
		if err == nil {
			err = storetest.Stage(p, keyroot.Tag, sealed)
		}
		if err != nil {
			t.Fatal(err)
		}
		cfg, _ := p.Config()
		if _, err := p.Commit(ctx, store.CommitRequest{Nonce: l.Nonce, Parent: cfg.Version, Keyroot: keyroot, ID: parcel.NewID()}); err != nil {
			t.Fatal(err)
		}
	}
	if d, err = diff.Versions(ctx, p, 3, 4); err != nil || d.Images[0].Chunks() != 0 || d.Images[0].ToSize != 70000*storetest.Chunk || d.Images[0].FromSize != im.Size {
		t.Errorf("grown: got %+v, %v", d, err)
	}
	if d, err = diff.Versions(ctx, p, 4, 5); err != nil || d.Images[0].Zeroed != 2 || d.Images[0].Ranges.String() != "chunks 300,999" {
		t.Errorf("cut: got %+v, %v", d, err)
	}
}

// Of 64 Ki chunks one has changed: what it costs to see that.
func TestDiffCost(t *testing.T) {
	s := storetest.New(t)
	p, err := s.Create(ctx, "alice", "big", store.CreateOptions{DiskSize: 65536 * storetest.Chunk, ChunkSize: storetest.Chunk})
	if err != nil {
		t.Fatal(err)
	}
	l, err := p.Acquire("alice", "h", "id")
	if err != nil {
		t.Fatal(err)
	}
	cfg, _ := p.Config()
	root, err := p.Root(ctx, 0)
	if err != nil {
		t.Fatal(err)
	}
	im, _ := root.Image(keyring.Disk)
	tree := keyring.NewTree(cfg.Sealer(), im, p)
	for i := range int64(20) {
		ref, sealed, err := cfg.Sealer().Seal(storetest.ChunkOf(string(rune('a' + i))))
		if err == nil {
			err = storetest.Stage(p, ref.Tag, sealed)
		}
		if err != nil {
			t.Fatal(err)
		}
		for n := i; n < 65536; n += 20 {
			tree.Set(n, ref)
		}
	}
	if im, err = tree.Flush(ctx, &storetest.Stager{Parcel: p}); err != nil {
		t.Fatal(err)
	}
	root = root.Clone()
	root.SetImage(im)
	keyroot, sealed, err := keyring.SealRoot(cfg.Sealer(), root)
	if err == nil {
		err = storetest.Stage(p, keyroot.Tag, sealed)
	}
	if err == nil {
		_, err = p.Commit(ctx, store.CommitRequest{Nonce: l.Nonce, Parent: 1, Keyroot: keyroot, ID: "all"})
	}
	if err == nil {
		_, err = p.Release(l.Nonce, false)
	}
	if err != nil {
		t.Fatal(err)
	}
	storetest.Commit(t, p, storetest.Change{40000: storetest.ChunkOf("changed")})
	start := time.Now()
	d, err := diff.Versions(ctx, p, 2, 3)
	took := time.Since(start)
	if err != nil || d.Images[0].Changed != 1 || d.Objects != 4 {
		t.Errorf("got %+v, %v", d, err)
	}
	t.Logf("diff of 65536 chunks, one changed: %v", took)
	start = time.Now()
	if d, err = diff.Versions(ctx, p, 1, 3); err != nil || d.Images[0].Added != 65536 {
		t.Errorf("got %v, %v", d, err)
	}
	t.Logf("all changed: %v", time.Since(start))
	if took > time.Second {
		t.Errorf("took %v", took)
	}
}
