package vmm

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"isr/contrib/guest"
)

// Suspending and resuming a machine whose memory is served on demand, with use
// MiB of it filled: ms/suspend to the end of QEMU, ms/resume to the machine's first
// instruction, ms/tick to its next line, and what that took.
func BenchmarkQEMU(b *testing.B) {
	for _, c := range []struct{ memory, use int }{{256, 64}, {1024, 512}} {
		b.Run(fmt.Sprintf("%dM-%dM", c.memory, c.use), func(b *testing.B) {
			r := newRig(b, guest.Image(b), int64(c.memory)<<20)
			path := r.m.Memory
			f := r.lazyMemory(b, path)
			x := r.run()
			r.tick(2)
			r.command(fmt.Sprintf("mem %d", c.use))
			x.suspended()
			first := x.suspendedIn
			var resume, tick, suspend time.Duration
			var chunks, state int64
			n := 0
			for b.Loop() {
				st, err := os.Stat(filepath.Join(r.m.CfgDir, stateName))
				if err != nil {
					b.Fatal(err)
				}
				state = st.Size()
				f = r.lazyMemory(b, path)
				begin := time.Now()
				x = r.run()
				r.tick(r.console.Last() + 1)
				tick += time.Since(begin)
				fetched, _ := f.counts()
				chunks += int64(fetched)
				resume += x.startedIn
				x.suspended()
				suspend += x.suspendedIn
				n++
			}
			ms := func(d time.Duration, n int, name string) {
				b.ReportMetric(float64(d.Milliseconds())/float64(n), "ms/"+name)
			}
			ms(first, 1, "first-suspend")
			ms(resume, n, "resume")
			ms(tick, n, "tick")
			ms(suspend, n, "suspend")
			b.ReportMetric(float64(chunks*lazyChunk>>20)/float64(n), "MiB-fetched/resume")
			b.ReportMetric(float64(state)/1e6, "MB-state")
		})
	}
}
