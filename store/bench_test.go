package store_test

import (
	"fmt"
	"testing"

	"isr/store"
	"isr/store/check"
	"isr/store/parcel"
	"isr/store/seal"
	"isr/store/storetest"
)

// BenchmarkImport: an image of 64 MiB, by codec.
func BenchmarkImport(b *testing.B) {
	const size = 64 << 20
	image := storetest.WriteImage(b, size, map[int64][]byte{0: storetest.Random(size, 1)})
	for _, codec := range []seal.Codec{seal.None, seal.Gzip, seal.Zstd} {
		b.Run(string(codec), func(b *testing.B) {
			s := storetest.New(b)
			b.SetBytes(size)
			for n := 0; b.Loop(); n++ {
				if _, err := s.Import(ctx, "alice", fmt.Sprint("p", n), image, store.CreateOptions{Format: "raw", Compress: codec}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkCommit: what the server does at a sync of n changed chunks of
// 128 KiB, after they have arrived.
func BenchmarkCommit(b *testing.B) {
	for _, n := range []int{1, 100, 1000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			s := storetest.New(b)
			p, err := s.Create(ctx, "alice", "winxp", store.CreateOptions{DiskSize: 10 << 30})
			if err != nil {
				b.Fatal(err)
			}
			l, err := p.Acquire("alice", "h", "id")
			if err != nil {
				b.Fatal(err)
			}
			b.SetBytes(int64(n) << 17)
			for v := 1; b.Loop(); v++ {
				b.StopTimer()
				c := storetest.Change{}
				for i := range n {
					plain := storetest.Random(128<<10, 1)
					copy(plain, fmt.Sprint(v, i))
					c[int64(i)*70] = plain
				}
				keyroot, _ := storetest.StageVersion(b, p, c, "")
				b.StartTimer()
				if _, err := p.Commit(ctx, store.CommitRequest{Nonce: l.Nonce, Parent: v, Keyroot: keyroot, ID: parcel.NewID()}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkCopy: a parcel of 8192 objects.
func BenchmarkCopy(b *testing.B) {
	s := storetest.New(b)
	const size = 8192 * storetest.Chunk
	if _, err := s.Import(ctx, "alice", "gold", storetest.WriteImage(b, size, map[int64][]byte{0: storetest.Random(size, 1)}), store.CreateOptions{Format: "raw", ChunkSize: storetest.Chunk}); err != nil {
		b.Fatal(err)
	}
	for n := 0; b.Loop(); n++ {
		if _, err := s.Copy(ctx, "alice", "gold", "bob", fmt.Sprint("p", n)); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkCheck: 8192 objects, without and with their content.
func BenchmarkCheck(b *testing.B) {
	s := storetest.New(b)
	const size = 8192 * storetest.Chunk
	if _, err := s.Import(ctx, "alice", "gold", storetest.WriteImage(b, size, map[int64][]byte{0: storetest.Random(size, 1)}), store.CreateOptions{Format: "raw", ChunkSize: storetest.Chunk}); err != nil {
		b.Fatal(err)
	}
	for _, content := range []bool{false, true} {
		b.Run(fmt.Sprint("content=", content), func(b *testing.B) {
			b.SetBytes(size)
			for b.Loop() {
				if _, err := check.Run(ctx, s, check.Options{Content: content}, func(check.Problem) {}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
