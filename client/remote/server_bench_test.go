package remote

import (
	"context"
	"fmt"
	"io"
	"sync"
	"testing"
	"time"

	"github.com/pkg/sftp"

	"isr/client/fetch"
	"isr/client/remote/dial"
	"isr/store/seal"
)

// The distances at which throughput is measured.
var distances = []time.Duration{0, 10 * time.Millisecond, 50 * time.Millisecond}

const benchObjects, benchSize = 512, 128 << 10

// BenchmarkGet gets 512 objects of 128 KiB (by Objects, class Hoard), after as
// many of a first round, so that connections and depth have settled; and, for
// comparison, by SFTP on one connection with 32 readers.
func BenchmarkGet(b *testing.B) {
	for _, rtt := range distances {
		b.Run(fmt.Sprintf("rtt=%v/isr_get", rtt), func(b *testing.B) {
			r := newRealm(b)
			all := r.stockExact(benchObjects, benchSize)
			r.RTT(rtt)
			s := r.open()
			o := s.Objects("box")
			ctx := fetch.WithClass(bg, fetch.Hoard)
			getAll(b, ctx, o, all)
			b.SetBytes(benchObjects * benchSize)
			for b.Loop() {
				getAll(b, ctx, o, all)
			}
			now, _ := r.Conns()
			b.ReportMetric(float64(now), "conns")
		})
		b.Run(fmt.Sprintf("rtt=%v/isr_get-cold", rtt), func(b *testing.B) {
			r := newRealm(b)
			all := r.stockExact(benchObjects, benchSize)
			r.RTT(rtt)
			b.SetBytes(benchObjects * benchSize)
			for b.Loop() {
				s := r.open()
				getAll(b, fetch.WithClass(bg, fetch.Hoard), s.Objects("box"), all)
				s.Close()
			}
		})
		b.Run(fmt.Sprintf("rtt=%v/sftp", rtt), func(b *testing.B) {
			r := newRealm(b)
			all := r.stockExact(benchObjects, benchSize)
			r.RTT(rtt)
			files := r.sftp(b)
			b.SetBytes(benchObjects * benchSize)
			for b.Loop() {
				tags := make(chan seal.Tag)
				var wg sync.WaitGroup
				for range 32 {
					wg.Go(func() {
						p := make([]byte, benchSize)
						for tag := range tags {
							f, err := files.Open("/box/hdk/" + tag.String()[:2] + "/" + tag.String())
							if err != nil {
								b.Error(err)
								continue
							}
							if _, err := f.ReadAt(p, 0); err != nil && err != io.EOF {
								b.Error(err)
							}
							f.Close()
						}
					})
				}
				for tag := range all {
					tags <- tag
				}
				close(tags)
				wg.Wait()
			}
		})
	}
}

// BenchmarkGetLatency gets one object after another, as one guest misses.
func BenchmarkGetLatency(b *testing.B) {
	for _, rtt := range distances {
		r := newRealm(b)
		all := r.stockExact(64, benchSize)
		tags := tagsOf(all)
		r.RTT(rtt)
		s := r.open()
		o := s.Objects("box")
		getAll(b, bg, o, all)
		b.Run(fmt.Sprintf("rtt=%v/isr_get", rtt), func(b *testing.B) {
			for i := 0; b.Loop(); i++ {
				if _, err := o.Get(bg, tags[i%len(tags)]); err != nil {
					b.Fatal(err)
				}
			}
		})
		files := r.sftp(b)
		b.Run(fmt.Sprintf("rtt=%v/sftp", rtt), func(b *testing.B) {
			p := make([]byte, benchSize)
			for i := 0; b.Loop(); i++ {
				name := tags[i%len(tags)].String()
				f, err := files.Open("/box/hdk/" + name[:2] + "/" + name)
				if err != nil {
					b.Fatal(err)
				}
				if _, err := f.ReadAt(p, 0); err != nil && err != io.EOF {
					b.Fatal(err)
				}
				f.Close()
			}
		})
	}
}

// BenchmarkPutAll puts 512 new objects of 128 KiB.
func BenchmarkPutAll(b *testing.B) {
	for _, rtt := range distances {
		b.Run(fmt.Sprintf("rtt=%v", rtt), func(b *testing.B) {
			r := newRealm(b)
			r.RTT(rtt)
			s := r.open()
			r.held(s)
			o := s.Objects("box")
			b.SetBytes(benchObjects * benchSize)
			for b.Loop() {
				b.StopTimer()
				all := newObjects(benchObjects, benchSize)
				tags := tagsOf(all)
				b.StartTimer()
				if err := o.PutAll(bg, tags, opener(all), nil); err != nil {
					b.Fatal(err)
				}
			}
			now, _ := r.Conns()
			b.ReportMetric(float64(now), "conns")
		})
	}
}

func (r *realm) stockExact(n, size int) map[seal.Tag][]byte {
	all := newObjects(n, size)
	for tag, p := range all {
		r.plant(tag, p)
	}
	return all
}

// sftp is a plain SFTP client on a connection of its own.
func (r *realm) sftp(b testing.TB) *sftp.Client {
	client, err := dial.Dial(context.Background(), r.target(), nil, nil)
	if err != nil {
		b.Fatal(err)
	}
	files, err := sftp.NewClient(client)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { client.Close() })
	return files
}
