package backup

import (
	"crypto/rand"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"isr/store"
	"isr/store/backup/mirror"
	"isr/store/backup/snapshot"
	"isr/store/parcel"
)

// small is a directory with room for so many bytes, and a way to give it more.
func small(t *testing.T, size string) (dir string, grow func()) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("only root can mount")
	}
	dir = t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size="+size); err != nil {
		t.Skip(err) // in a container, say
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	return dir, func() {
		if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_REMOUNT, "size=64m"); err != nil {
			t.Fatal(err)
		}
	}
}

// A disk that is full is said to be, leaves nothing half, and loses nothing:
// with more room the same command goes on.
func TestFull(t *testing.T) {
	s := newRealm(t)
	populate(t, s)
	p := mustParcel(t, s, "bob", "empty")
	for i := range 40 {
		commit(t, p, "", map[int64]string{int64(i): string(random(4000))})
	}
	dir, grow := small(t, "128k")
	place := openNew(t, filepath.Join(dir, "place"))
	if _, err := Make(ctx, s, place, Options{}); parcel.KindOf(err) != parcel.Full {
		t.Errorf("backup: %v; want that there is no space", err)
	}
	if ids, err := snapshot.IDs(ctx, place); err != nil || len(ids) > 0 {
		t.Errorf("snapshots: %v, %v", ids, err)
	}
	grow()
	make_(t, s, openNew(t, filepath.Join(dir, "place")))
	if _, err := Verify(ctx, place, VerifyOptions{Sample: 1, Problem: func(text string) { t.Error(text) }}); err != nil {
		t.Error(err)
	}

	dir, grow = small(t, "256k")
	root := filepath.Join(dir, "new")
	if _, _, err := Restore(ctx, root, place, RestoreOptions{}); parcel.KindOf(err) != parcel.Full {
		t.Errorf("restore: %v; want that there is no space", err)
	}
	if _, err := os.Stat(filepath.Join(root, "realm.cfg")); err == nil {
		t.Error("there is a realm")
	}
	grow()
	if _, _, err := Restore(ctx, root, place, RestoreOptions{}); err != nil {
		t.Fatal(err)
	}
	wantEqual(t, s.Root(), root)

	dir, grow = small(t, "256k")
	standby := filepath.Join(dir, "standby")
	if _, err := mirror.Pass(ctx, s, openNew(t, standby), mirror.Options{}); parcel.KindOf(err) != parcel.Full {
		t.Errorf("mirror: %v; want that there is no space", err)
	}
	grow()
	if _, err := mirror.Pass(ctx, s, openNew(t, standby), mirror.Options{}); err != nil && !errors.Is(err, parcel.ErrFull) {
		t.Fatal(err)
	}
	wantMirror(t, s.Root(), standby)
}

// A realm whose disk is full, or was made read-only when it began to fail, is
// backed up all the same: that is when it is wanted most.
func TestBackupOfFailingDisk(t *testing.T) {
	dir, _ := small(t, "1m")
	plain := newRealm(t)
	populate(t, plain)
	root := filepath.Join(dir, "root")
	if out, err := exec.Command("cp", "-a", plain.Root(), root).CombinedOutput(); err != nil {
		t.Fatalf("%s", out)
	}
	fill, err := os.Create(filepath.Join(dir, "fill"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(fill, rand.Reader); !errors.Is(err, unix.ENOSPC) {
		t.Fatal(err)
	}
	fill.Close()
	for _, state := range []string{"full", "read-only"} {
		t.Run(state, func(t *testing.T) {
			if state == "read-only" {
				os.Remove(filepath.Join(root, "backup.flock"))
				if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
					t.Fatal(err)
				}
			}
			s, err := store.Open(root)
			if err != nil {
				t.Fatal(err)
			}
			unlock, err := Lock(s)
			if err != nil {
				t.Fatal(err)
			}
			defer unlock()
			target := memPlace(t)
			make_(t, s, target)
			wantEqual(t, plain.Root(), restored(t, target, RestoreOptions{}).Root())
		})
	}
}
