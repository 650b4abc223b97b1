package image

import (
	"context"
	"math/rand/v2"
	"testing"

	"isr/store/seal"
)

func BenchmarkXTS(b *testing.B) {
	c, err := newSectorCipher(randomBytes(64))
	if err != nil {
		b.Fatal(err)
	}
	p := make([]byte, 1<<20)
	for name, f := range map[string]func([]byte, []byte, int64, bool){"one": c.cryptSerial, "all": c.crypt} {
		for way, encrypt := range map[string]bool{"encrypt": true, "decrypt": false} {
			b.Run(way+"/"+name, func(b *testing.B) {
				b.SetBytes(int64(len(p)))
				for b.Loop() {
					f(p, p, 0, encrypt)
				}
			})
		}
	}
}

func benchImage(b *testing.B, size int64, refs Refs, o *objects) *Image {
	return newTestImage(b, b.TempDir(), o, refs, size, 128<<10)
}

func BenchmarkWrite(b *testing.B) {
	const size = 1 << 30
	for _, tt := range []struct {
		name   string
		n      int
		random bool
		flush  int // every so many writes
	}{
		{"seq1M", 1 << 20, false, 0},
		{"rand4k", 4096, true, 0},
		{"rand4k-flush", 4096, true, 1},
		{"rand4k-flush32", 4096, true, 32},
	} {
		b.Run(tt.name, func(b *testing.B) {
			im := benchImage(b, size, noRefs{}, new(objects))
			p := randomBytes(tt.n)
			b.SetBytes(int64(tt.n))
			i := 0
			for b.Loop() {
				off := int64(i) * int64(tt.n) % size
				if tt.random {
					off = rand.Int64N(size/4096) * 4096
				}
				if _, err := im.WriteAt(context.Background(), p, off); err != nil {
					b.Fatal(err)
				}
				if i++; tt.flush > 0 && i%tt.flush == 0 {
					if err := im.Flush(context.Background()); err != nil {
						b.Fatal(err)
					}
				}
			}
		})
	}
}

// halfRandom is content that halves under compression.
func halfRandom(n int) []byte {
	p := make([]byte, n)
	for i := 0; i < n; i += 64 {
		copy(p[i:], randomBytes(32))
	}
	return p
}

func BenchmarkRead(b *testing.B) {
	const size = 64 << 20
	o := new(objects)
	tree := pristineTree(b, o, halfRandom(size), size, 128<<10)
	p := make([]byte, 1<<20)
	b.Run("pristine", func(b *testing.B) {
		im := benchImage(b, size, tree, o)
		b.SetBytes(1 << 20)
		for i := int64(0); b.Loop(); i++ {
			im.ReadAt(context.Background(), p, i<<20%size)
		}
	})
	b.Run("modified", func(b *testing.B) {
		im := benchImage(b, size, tree, o)
		for i := range int64(64) {
			im.WriteAt(context.Background(), p, i<<20)
		}
		b.SetBytes(1 << 20)
		for i := int64(0); b.Loop(); i++ {
			im.ReadAt(context.Background(), p, i<<20%size)
		}
	})
}

func BenchmarkSeal(b *testing.B) {
	const size = 64 << 20
	for _, tt := range []struct {
		name  string
		whole bool
		same  bool
	}{{"whole", true, false}, {"parts", false, false}, {"unchanged", true, true}} {
		b.Run(tt.name, func(b *testing.B) {
			o := new(objects)
			plain := halfRandom(size)
			im := benchImage(b, size, pristineTree(b, o, plain, size, 128<<10), o)
			next := halfRandom(size)
			for off := int64(0); off < size; off += 128 << 10 {
				switch {
				case tt.same:
					im.WriteAt(context.Background(), plain[off:off+128<<10], off)
				case tt.whole:
					im.WriteAt(context.Background(), next[off:off+128<<10], off)
				default:
					im.WriteAt(context.Background(), next[off:off+4096], off)
				}
			}
			b.SetBytes(size)
			for b.Loop() {
				err := im.Seal(context.Background(), func(context.Context, int64, seal.Ref, []byte) error { return nil }, nil)
				if err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkSave(b *testing.B) {
	const size = 64 << 20
	for _, tt := range []struct {
		name  string
		every int // one page in so many has changed
	}{{"all", 1}, {"tenth", 10}, {"none", 1 << 30}} {
		b.Run(tt.name, func(b *testing.B) {
			b.SetBytes(size)
			for b.Loop() {
				b.StopTimer()
				im := benchImage(b, size, noRefs{}, new(objects))
				readAll(b, im)
				page, changed := make([]byte, savePage), randomBytes(savePage)
				if err := im.BeginSave(); err != nil {
					b.Fatal(err)
				}
				w := im.Pages()
				b.StartTimer()
				for i := range int64(size / savePage) {
					p := page
					if (i+1)%int64(tt.every) == 0 {
						p = changed
					}
					if _, err := w.WriteAt(p, i*savePage); err != nil {
						b.Fatal(err)
					}
				}
				if err := im.EndSave(context.Background()); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
