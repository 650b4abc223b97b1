package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestDrill: the server's machine is gone. From the backup alone users resume
// their parcels, and what was committed last is there; who was at work goes on.
// Then the same by a standby that takes over.
func TestDrill(t *testing.T) {
	t.Parallel()
	w := newQuickWorld(t, shortDir(t), "serve")
	w.home(t, "A", "alice", "alice")
	w.home(t, "B", "bob", "bob")
	w.home(t, "C", "alice", "alice")
	write := func(host, parcel, text string) {
		t.Helper()
		w.disk(t, host, parcel, "printf '"+text+"' | dd of=$DISK bs=1 conv=notrunc,fsync 2>/dev/null")
	}
	wantDisk := func(host, parcel, want string) {
		t.Helper()
		if got := w.disk(t, host, parcel, "head -c 5 $DISK"); got != want {
			t.Errorf("%s on %s: %q, want %q", parcel, host, got, want)
		}
	}
	for user, parcels := range map[string][]string{"alice": {"done", "ahead"}, "bob": {"work"}} {
		for _, p := range parcels {
			w.must(t, "isr-locksrv", "parcel", "create", user, p, "--disk", "4M", "--vmm", "shell")
		}
	}
	write("A", "done", "first")
	w.ok(t, "A", "checkin", "done")
	write("A", "done", "final")
	w.ok(t, "A", "checkin", "done")
	write("A", "ahead", "early")
	w.ok(t, "A", "sync", "ahead")
	write("B", "work", "begun")
	place, standby := filepath.Join(w.dir, "vault"), filepath.Join(w.dir, "standby")
	w.must(t, "isr-locksrv", "backup", place)
	// After the last backup.
	write("B", "work", "going")
	write("A", "ahead", "later")
	w.ok(t, "A", "sync", "ahead")

	w.server.kill(t)
	if err := os.RemoveAll(w.root); err != nil {
		t.Fatal(err)
	}
	w.must(t, "isr-locksrv", "--root", w.root, "restore", place)
	w.must(t, "isr-locksrv", "check", "-c")
	w.server.start(t)

	wantDisk("C", "done", "final")
	w.ok(t, "C", "checkin", "done")
	w.ok(t, "B", "checkin", "work")
	wantDisk("B", "work", "going")
	w.ok(t, "B", "checkin", "work")
	// Who committed since is told, and brings it back from what is here.
	for _, command := range []string{"sync", "resume", "checkin"} {
		if r := w.isr("A", command, "ahead"); r.status != 15 || !strings.Contains(r.err, "isr rescue ahead") {
			t.Errorf("%s of what is ahead of the backup: %v", command, r)
		}
	}
	w.ok(t, "A", "rescue", "ahead")
	w.ok(t, "A", "checkin", "ahead-rescued")
	wantDisk("C", "ahead-rescued", "later")
	w.ok(t, "C", "checkin", "ahead-rescued")
	if got := w.must(t, "isr-locksrv", "check", "-c"); !strings.Contains(got, ": 0 errors") {
		t.Error(got)
	}

	// A standby takes over.
	w.must(t, "isr-locksrv", "mirror", standby)
	write("B", "work", "again")
	w.ok(t, "B", "checkin", "work")
	w.must(t, "isr-locksrv", "mirror", standby)
	w.server.kill(t)
	old := w.root
	w.root = standby
	if err := os.Remove(filepath.Join(standby, "standby")); err != nil {
		t.Fatal(err)
	}
	w.must(t, "isr-locksrv", "check", "-c")
	w.server.start(t)
	wantDisk("B", "work", "again")
	write("B", "work", "newer")
	w.ok(t, "B", "checkin", "work")
	// The old host is back, and overwrites nothing.
	if r := execute(w.command("", "isr-locksrv", "--root", old, "mirror", standby), ""); r.status != 15 {
		t.Errorf("mirror to what was promoted: %v", r)
	}
	wantDisk("B", "work", "newer")
}
