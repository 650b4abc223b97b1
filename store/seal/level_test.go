package seal

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// A level changes neither the key nor how an object is read, and there are no
// others.
func TestLevels(t *testing.T) {
	half := random(128 << 10)
	copy(half, text(64<<10))
	for _, codec := range codecs {
		want := Sealer{Suite: AES256SHA256}.Key(half)
		for l := Usual; l <= Most; l++ {
			s := Sealer{Suite: AES256SHA256, Codec: codec, Level: l}
			ref, sealed, err := s.Seal(half)
			if err != nil || ref.Key != want {
				t.Fatalf("%s %d: %v", codec, l, err)
			}
			got, err := Sealer{Suite: AES256SHA256}.Unseal(ref, sealed, len(half))
			if err != nil || !bytes.Equal(got, half) {
				t.Errorf("%s %d: %v", codec, l, err)
			}
		}
		for _, l := range []Level{-1, Most + 1} {
			if _, _, err := (Sealer{Suite: AES256SHA256, Codec: codec, Level: l}).Seal(half); err == nil {
				t.Errorf("%s: level %d sealed", codec, l)
			}
		}
	}
}

// diskLike is chunks as a system's disk holds them: the files of /usr, each
// from a block of its own, one chunk in so many.
func diskLike(tb testing.TB, chunks int) [][]byte {
	var all []byte
	var out [][]byte
	n := 0
	filepath.WalkDir("/usr", func(name string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return nil
		}
		p, err := os.ReadFile(name)
		if err != nil {
			return nil
		}
		all = append(all, p...)
		all = append(all, make([]byte, -len(p)&4095)...)
		for ; len(all) >= 128<<10; all = all[128<<10:] {
			if n++; n%97 == 0 && !Zero(all[:128<<10]) {
				out = append(out, bytes.Clone(all[:128<<10]))
			}
		}
		if len(out) >= chunks {
			return fs.SkipAll
		}
		return nil
	})
	if len(out) == 0 {
		tb.Skip("no files in /usr")
	}
	return out
}

// BenchmarkLevels: what each codec and level does with a system's disk, on one
// core. The last figure is the size of the objects in percent of the chunks.
func BenchmarkLevels(b *testing.B) {
	chunks := diskLike(b, 400)
	for _, codec := range codecs {
		for l := Usual; l <= Most; l++ {
			if codec == None && l > Usual {
				continue
			}
			b.Run(fmt.Sprintf("%s/%d", codec, l), func(b *testing.B) {
				s := Sealer{Suite: AES256SHA256, Codec: codec, Level: l}
				var in, out int64
				began := time.Now()
				for i := 0; b.Loop(); i++ {
					_, sealed, err := s.Seal(chunks[i%len(chunks)])
					if err != nil {
						b.Fatal(err)
					}
					in, out = in+128<<10, out+int64(len(sealed))
				}
				b.ReportMetric(float64(in)/1e6/time.Since(began).Seconds(), "MB/s")
				b.ReportMetric(100*float64(out)/float64(in), "%")
			})
		}
	}
}
