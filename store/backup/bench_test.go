package backup

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"isr/client/remote/sshdtest"
	"isr/store"
	"isr/store/backup/mirror"
	"isr/store/backup/target"
	"isr/store/backup/target/targettest"
)

var benchObjects = flag.Int("objects", 2000, "objects of the realm that is backed up by benchmarks")

// BenchmarkBackup measures a first backup to each kind of place, an unchanged
// second one, and a restore, of parcels that share most objects; and rsync of
// the same tree beside them.
func BenchmarkBackup(b *testing.B) {
	dir := b.TempDir()
	s, err := store.Init(filepath.Join(dir, "root"), "test")
	if err != nil {
		b.Fatal(err)
	}
	if err := s.AddUser("alice", nil); err != nil {
		b.Fatal(err)
	}
	const size = 16 << 10
	image := filepath.Join(dir, "image")
	if err := os.WriteFile(image, random(*benchObjects*size), 0o600); err != nil {
		b.Fatal(err)
	}
	if _, err := s.Import(ctx, "alice", "gold", image, store.CreateOptions{ChunkSize: size, Format: "raw"}); err != nil {
		b.Fatal(err)
	}
	for i := range 4 {
		if _, err := s.Copy(ctx, "alice", "gold", "alice", fmt.Sprint("copy", i)); err != nil {
			b.Fatal(err)
		}
	}
	timed := func(b *testing.B, what string, f func() error) {
		start := time.Now()
		if err := f(); err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(time.Since(start).Seconds(), what+"-s")
	}
	for _, kind := range []string{"dir", "sftp", "s3"} {
		b.Run(kind, func(b *testing.B) {
			for range b.N {
				var place target.Target
				switch kind {
				case "dir":
					place = targettest.Dir(b)
				case "sftp":
					place = targettest.SFTP(b)
				case "s3":
					place = targettest.S3(b)
				}
				for _, what := range []string{"first", "second"} {
					timed(b, what, func() error { _, err := Make(ctx, s, place, Options{}); return err })
				}
				timed(b, "restore", func() error {
					_, _, err := Restore(ctx, filepath.Join(b.TempDir(), "new"), place, RestoreOptions{})
					return err
				})
			}
			b.ReportMetric(0, "ns/op")
		})
	}
	b.Run("mirror", func(b *testing.B) {
		for range b.N {
			place := targettest.Dir(b)
			for _, what := range []string{"first", "second"} {
				timed(b, what, func() error { _, err := mirror.Pass(ctx, s, place, mirror.Options{}); return err })
			}
		}
		b.ReportMetric(0, "ns/op")
	})
	b.Run("rsync", func(b *testing.B) {
		sshdtest.Require(b, "rsync")
		for range b.N {
			to := b.TempDir()
			for _, what := range []string{"first", "second"} {
				timed(b, what, func() error { return exec.Command("rsync", "-aH", s.Root()+"/", to+"/").Run() })
			}
		}
		b.ReportMetric(0, "ns/op")
	})
}
