package store_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"isr/store"
	"isr/store/export"
	"isr/store/keyring"
	"isr/store/parcel"
	"isr/store/seal"
	"isr/store/storetest"
)

// A copy with another disk: what was there is there, what is new is zeros,
// what was cut off does not come back.
func TestCopyResized(t *testing.T) {
	for _, suite := range []seal.Suite{seal.AES256SHA256, seal.BlowfishSHA1} {
		s := storetest.New(t)
		const size = 300*storetest.Chunk + 100
		image := storetest.WriteImage(t, size, map[int64][]byte{0: storetest.Random(100, 1), 255 * storetest.Chunk: storetest.Random(3*storetest.Chunk, 2), size - 50: storetest.Random(50, 3)})
		// Made in a realm with another convergence secret, as a parcel that was
		// restored from elsewhere.
		foreign := *s
		*foreign.Secret() = []byte("of " + suite)
		src, err := foreign.Import(ctx, "alice", "gold", image, store.CreateOptions{Format: "raw", ChunkSize: storetest.Chunk, MemSize: 10 * storetest.Chunk, Crypto: suite})
		if err != nil {
			t.Fatal(err)
		}
		whole, err := os.ReadFile(image)
		if err != nil {
			t.Fatal(err)
		}
		for name, to := range map[string]int64{"same": size, "one": size + 1, "chunk": 301 * storetest.Chunk, "deeper": 70000 * storetest.Chunk, "tera": 1 << 40,
			"cut": 256*storetest.Chunk + 7, "even": 256 * storetest.Chunk, "shallow": 255 * storetest.Chunk, "tiny": 100, "byte": 1} {
			p, err := s.CopyVersion(ctx, src, "bob", name, store.CopyOptions{DiskSize: to, MemSize: 7 * storetest.Chunk, Comment: name})
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			cfg, err := p.Config()
			if err != nil || cfg.DiskSize != to || cfg.MemSize != 7*storetest.Chunk || cfg.Comment != name || cfg.Crypto != suite || string(cfg.Secret) != "of "+string(suite) {
				t.Errorf("%s: config %+v, %v", name, cfg, err)
			}
			if to > 1<<30 {
				continue
			}
			out := mustCreate(t)
			if err := export.Disk(ctx, p, out, 1, nil); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			want := make([]byte, to)
			copy(want, whole)
			if got, err := os.ReadFile(out.Name()); err != nil || !bytes.Equal(got, want) {
				t.Errorf("%s: the disk differs, %v", name, err)
			}
			// Grown again, it ends in zeros.
			again, err := s.CopyVersion(ctx, p, "bob", name+"2", store.CopyOptions{DiskSize: size})
			if err != nil {
				t.Fatal(err)
			}
			out = mustCreate(t)
			if err := export.Disk(ctx, again, out, 1, nil); err != nil {
				t.Fatal(err)
			}
			want = make([]byte, size)
			copy(want, whole[:min(to, size)])
			if got, err := os.ReadFile(out.Name()); err != nil || !bytes.Equal(got, want) {
				t.Errorf("%s, grown again: the disk differs, %v", name, err)
			}
		}
		// The whole chunks 255 to 257 and 300 are not zeros; 0 is not either.
		for to, want := range map[int64]int64{0: 5, 1: 5, 255 * storetest.Chunk: 4, 256 * storetest.Chunk: 3, 256*storetest.Chunk + 7: 3, 258 * storetest.Chunk: 1, size - 1: 1, size: 0, 1 << 50: 0} {
			if n, err := src.Beyond(ctx, 0, to); n != want || err != nil {
				t.Errorf("beyond %d: got %d, %v, want %d", to, n, err, want)
			}
		}
		if ps := storetest.WantSound(t, s); len(ps) != 0 {
			t.Errorf("notes: %v", ps)
		}
	}
}

func TestCopyVersionRefused(t *testing.T) {
	s := storetest.New(t)
	p := storetest.Versioned(t, s, 2)
	l, err := p.Acquire("alice", "h", "id")
	if err != nil {
		t.Fatal(err)
	}
	keyroot := suspend(t, p)
	if _, err := p.Commit(ctx, store.CommitRequest{Nonce: l.Nonce, Parent: 2, Keyroot: keyroot, ID: "s"}); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		o    store.CopyOptions
		want error
	}{
		"suspended, larger disk": {store.CopyOptions{DiskSize: 1 << 30}, parcel.ErrUsage},
		"suspended, memory":      {store.CopyOptions{MemSize: 1 << 30}, parcel.ErrUsage},
		"negative":               {store.CopyOptions{DiskSize: -1}, parcel.ErrUsage},
		"absurd":                 {store.CopyOptions{DiskSize: 1<<50 + 1}, parcel.ErrUsage},
		"no version":             {store.CopyOptions{Version: 9}, parcel.ErrNoVersion},
		"version -1":             {store.CopyOptions{Version: -1}, parcel.ErrNoVersion},
		"long comment":           {store.CopyOptions{Comment: strings.Repeat("x", 2000)}, parcel.ErrUsage},
	} {
		if _, err := s.CopyVersion(ctx, p, "bob", "x", c.o); !errors.Is(err, c.want) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	if names, err := s.Parcels("bob"); len(names) > 0 || err != nil {
		t.Errorf("left behind: %v, %v", names, err)
	}
	// As it is, it can be copied; and an older version with another size.
	q, err := s.CopyVersion(ctx, p, "bob", "asis", store.CopyOptions{DiskSize: 1000*storetest.Chunk + 1})
	if err != nil {
		t.Fatal(err)
	}
	if v, err := q.Version(0); err != nil || v.Suspended != "qemu" {
		t.Errorf("got %+v, %v", v, err)
	}
	if q, err = s.CopyVersion(ctx, p, "bob", "older", store.CopyOptions{Version: 2, DiskSize: 1 << 30}); err != nil {
		t.Fatal(err)
	}
	storetest.WantChunk(t, q, 0, 2, "version 2")
	p.Release(l.Nonce, false)
	if ps := storetest.WantSound(t, s); len(ps) != 0 {
		t.Errorf("notes: %v", ps)
	}
}

// suspend stages a version whose machine is suspended.
func suspend(t testing.TB, p *store.Parcel) seal.Ref {
	t.Helper()
	cfg, err := p.Config()
	if err != nil {
		t.Fatal(err)
	}
	root, err := p.Root(ctx, 0)
	if err != nil {
		t.Fatal(err)
	}
	root = root.Clone()
	root.Suspended, root.Parent = "qemu", cfg.Version
	keyroot, sealed, err := keyring.SealRoot(cfg.Sealer(), root)
	if err == nil {
		err = storetest.Stage(p, keyroot.Tag, sealed)
	}
	if err != nil {
		t.Fatal(err)
	}
	return keyroot
}

func TestSize(t *testing.T) {
	s := storetest.New(t)
	p := storetest.Versioned(t, s, 2)
	a, err := p.Size()
	if err != nil || a.Own != a.Bytes || a.Objects == 0 {
		t.Fatalf("got %+v, %v", a, err)
	}
	q, err := s.Copy(ctx, "alice", "winxp", "bob", "box")
	if err != nil {
		t.Fatal(err)
	}
	storetest.Commit(t, q, storetest.Change{7: storetest.ChunkOf("own")})
	b, err := p.Size()
	if err != nil || b.Bytes != a.Bytes || b.Own >= a.Own {
		t.Errorf("after a copy: got %+v, %v; was %+v", b, err, a)
	}
	if c, err := q.Size(); err != nil || c.Own == 0 || c.Own >= c.Bytes {
		t.Errorf("the copy: got %+v, %v", c, err)
	}
	// A link that was planted is not followed.
	if err := os.Symlink(s.Root(), filepath.Join(p.HdkDir(), "zz")); err != nil {
		t.Fatal(err)
	}
	if c, err := p.Size(); err != nil || c != b {
		t.Errorf("with a link out of it: got %+v, %v", c, err)
	}
}
