package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"pgregory.net/rapid"
)

// flipByte changes the byte at off of a file that may be read-only.
func flipByte(t testing.TB, file string, off int64) {
	t.Helper()
	if err := os.Chmod(file, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var b [1]byte
	if _, err := f.ReadAt(b[:], off); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 0x04
	if _, err := f.WriteAt(b[:], off); err != nil {
		t.Fatal(err)
	}
}

// TestRescueKilled kills a rescue at its n-th step, for many n, and runs it
// again. The work ends up once, in one new parcel, and nothing stays locked.
func TestRescueKilled(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name  string
		spoil func(t *testing.T, w *world, p string)
		after func(t *testing.T, w *world, p string)
	}{
		{"orphaned", func(t *testing.T, w *world, p string) { w.ok(t, "B", "--yes", "clean", "-f", p) },
			func(t *testing.T, w *world, p string) { w.goesOn(t, "B", p+"-rescued", 3) }},
		{"damaged", func(t *testing.T, w *world, p string) {
			flipByte(t, filepath.Join(w.dir, "A", ".isr", p, "hdk", "memory.data"), 100)
		}, func(t *testing.T, w *world, p string) {
			// Its memory could not be saved, its disk could.
			if count, disk := counts(t, w.ok(t, "B", "resume", p+"-rescued")); count != 1 || disk != 2 {
				t.Errorf("count %d, disk %d; want 1 and 2", count, disk)
			}
			w.ok(t, "B", "checkin", p+"-rescued")
		}},
		{"restored", func(t *testing.T, w *world, p string) {
			// What is committed next is lost with all that came with it.
			w.saved(t, p, "cp", "-a", "SIDE", "KEPT")
			w.ok(t, "A", "sync", p)
			w.saved(t, p, "rm", "-r", "SIDE")
			w.saved(t, p, "mv", "KEPT", "SIDE")
		}, func(t *testing.T, w *world, p string) { w.goesOn(t, "B", p+"-rescued", 3) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			w := crashWorld(t, "serve")
			fresh := func(p string) {
				w.must(t, "isr-locksrv", "parcel", "copy", "alice", "gold", "alice", p)
				w.ok(t, "A", "resume", p)
				c.spoil(t, w, p)
			}
			fresh("whole")
			most := countSteps(t, w, "A", "rescue", "whole")
			tried, died := 0, 0
			for _, at := range sample(seed(t), most, 5) {
				p := fmt.Sprint(at.call, at.n, at.sig)
				if exists(w.hdk("alice", p)) {
					continue
				}
				fresh(p)
				killed := killedAt(w, at, "A", "rescue", p)
				tried++
				if killed.status > 128 {
					died++
				}
				again := w.isr("A", "rescue", p)
				if again.status != 0 && again.status != 10 {
					t.Fatalf("killed at %v: %vthen %v", at, killed, again)
				}
				var made []string
				for _, name := range strings.Fields(w.must(t, "isr-locksrv", "isr_list_parcels", "alice")) {
					if strings.HasPrefix(name, p+"-") {
						made = append(made, name)
					}
				}
				if !slices.Equal(made, []string{p + "-rescued"}) {
					t.Fatalf("killed at %v: made %q: %vthen %v", at, made, killed, again)
				}
				if exists(filepath.Join(w.dir, "A", ".isr", p)) && exists(filepath.Join(w.dir, "A", ".isr", p+"-rescued")) {
					t.Errorf("killed at %v: two checkouts of one", at)
				}
				if v := w.listed(t, p+"-rescued", "version"); v != "2" {
					t.Errorf("killed at %v: version %s, want 2: %vthen %v", at, v, killed, again)
				}
				if held := w.listed(t, p, "held"); held != "<nil>" {
					t.Errorf("killed at %v: the old parcel is held: %s", at, held)
				}
				versions := w.ok(t, "A", "ls", "-l", p+"-rescued").out
				if !strings.Contains(versions, "rescued from "+p+" version ") {
					t.Errorf("killed at %v: it is not marked: %s", at, versions)
				}
				w.sound(t, p+"-rescued")
				w.ok(t, "A", "checkin", p+"-rescued")
				c.after(t, w, p)
			}
			if died*4 < tried {
				t.Errorf("%d of %d were killed: too few to tell", died, tried)
			}
			t.Logf("%d of %d were killed", died, tried)
			w.wantClean(t)
		})
	}
}

// saved runs a command on both sides of a parcel of alice on the server: SIDE
// is its directory, KEPT one beside the users'.
func (w *world) saved(t testing.TB, p string, words ...string) {
	t.Helper()
	for _, side := range []string{"isr", ".isr"} {
		at := strings.NewReplacer("SIDE", filepath.Join(w.root, "users", "alice", side, p), "KEPT", filepath.Join(w.dir, p+side))
		run := make([]string, len(words))
		for i, word := range words {
			run[i] = at.Replace(word)
		}
		if out, err := exec.Command(run[0], run[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%q: %v: %s", run, err, out)
		}
	}
}

// TestSpliceKilled kills checkp -Y at its n-th step, for many n: what was
// reverted is never checked in, and run again it finishes.
func TestSpliceKilled(t *testing.T) {
	t.Parallel()
	w := crashWorld(t, "serve")
	fresh := func(p string) {
		w.must(t, "isr-locksrv", "parcel", "copy", "alice", "gold", "alice", p)
		w.ok(t, "A", "resume", p)
		flipByte(t, filepath.Join(w.dir, "A", ".isr", p, "hdk", "disk.data"), 100)
	}
	fresh("whole")
	flipped := func(p string) bool { return w.isr("A", "checkp", "-c", p).status == 13 }
	log := filepath.Join(w.dir, "steps")
	cmd := w.command("A", "strace", "-f", "-qq", "-o", log, "-e", "trace="+steps, "-e", "signal=none", filepath.Join(w.programs, "isr"), "checkp", "-Y", "whole")
	cmd.Env = append(cmd.Env, "GOMAXPROCS=1")
	if r := execute(cmd, ""); r.status != 13 {
		t.Fatal(r)
	}
	for _, at := range sample(seed(t), countLog(t, log), 4) {
		p := fmt.Sprint(at.call, at.n, at.sig)
		if exists(w.hdk("alice", p)) {
			continue
		}
		fresh(p)
		killed := killedAt(w, at, "A", "checkp", "-Y", p)
		if !flipped(p) {
			t.Fatalf("killed at %v: %vand found sound", at, killed)
		}
		if r := w.isr("A", "sync", p); r.status != 13 {
			t.Fatalf("killed at %v: sync: %v", at, r)
		}
		r := w.isr("A", "checkp", "-Y", p)
		if r.status != 13 || !strings.Contains(r.out, "marked damaged") {
			t.Fatalf("killed at %v: again: %v", at, r)
		}
		if r := w.isr("A", "checkin", p); r.status != 13 || w.listed(t, p, "version") != "1" {
			t.Fatalf("killed at %v: checkin: %v", at, r)
		}
		// The chunk is as it was checked out.
		if count, disk := counts(t, w.ok(t, "A", "--yes", "resume", p)); count != 3 || disk != 1 {
			t.Errorf("killed at %v: count %d, disk %d; want 3 and 1", at, count, disk)
		}
		w.ok(t, "A", "--yes", "discard", p)
		w.ok(t, "A", "checkin", p)
	}
	w.wantClean(t)
}

// TestStolenWhileRunning: whoever runs a parcel is told soon that its lock was
// taken; the guest goes on, and its work can be rescued.
func TestStolenWhileRunning(t *testing.T) {
	t.Parallel()
	for _, kind := range kinds {
		t.Run(kind.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, shortDir(t), kind.name)
			home := w.home(t, "A", "alice", "alice")
			w.home(t, "B", "alice", "alice")
			rc := filepath.Join(home, ".openisrrc")
			text, err := os.ReadFile(rc)
			if err != nil {
				t.Fatal(err)
			}
			writeFile(t, rc, string(text)+"lock_poll = 50ms\n")
			w.must(t, "isr-locksrv", "parcel", "create", "alice", "box", "--disk", "1M", "--vmm", "shell")
			front := start(t, w.command("A", "isr", "resume", "box"))
			front.send("echo runs\n")
			front.waitFor(t, "runs")
			contact := w.listed(t, "box", "held.contact")
			within(t, tooLong, "contact", func() bool { return w.listed(t, "box", "held.contact") != contact })
			w.ok(t, "B", "--yes", "clean", "-f", "box")
			front.waitFor(t, "it goes on running")
			front.send("printf after | dd of=$DISK conv=notrunc,fsync 2>/dev/null; head -c 5 $DISK; echo\n")
			front.waitFor(t, "after")
			front.send("exit 0\n")
			r := front.wait(t)
			if r.status != 0 || !strings.Contains(r.err, "lock is no longer held") || !strings.Contains(r.err, "isr rescue box") || strings.Count(r.err, "it goes on running") != 1 {
				t.Errorf("front: %v", r)
			}
			if st := stat(t, w, "A", "box"); !strings.Contains(st.State, "orphaned") {
				t.Errorf("state %q", st.State)
			}
			w.ok(t, "A", "rescue", "box")
			if got := w.disk(t, "A", "box-rescued", "head -c 5 $DISK"); got != "after" {
				t.Errorf("rescued disk begins with %q", got)
			}
			w.ok(t, "A", "checkin", "box-rescued")
			w.must(t, "isr-locksrv", "check", "-c")
			w.wantClean(t)
		})
	}
}

// TestCheckAfterKill: checkp puts right what a dead keeper left, and sums up
// what it finds.
func TestCheckAfterKill(t *testing.T) {
	t.Parallel()
	w := newQuickWorld(t, shortDir(t), "serve")
	w.home(t, "A", "alice", "alice")
	w.must(t, "isr-locksrv", "parcel", "create", "alice", "box", "--disk", "1M", "--vmm", "shell")
	front := start(t, w.command("A", "isr", "resume", "box"))
	front.send("printf work | dd of=$DISK conv=notrunc,fsync 2>/dev/null; echo written\n")
	front.waitFor(t, "written")
	if r := w.isr("A", "checkp", "box"); r.status != 22 || !strings.Contains(r.err, "running") {
		t.Errorf("of a running parcel: %v", r)
	}
	if err := syscall.Kill(keeperOf(t, front.cmd.Process.Pid), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	front.send("exit\n")
	front.wait(t)
	r := w.ok(t, "A", "checkp", "box")
	if !strings.Contains(r.err, "its keeper died") || !strings.Contains(r.out, "note: disk: not summed up") {
		t.Errorf("after a kill: %v", r)
	}
	w.ok(t, "A", "checkp", "-c", "box")
	if r := w.ok(t, "A", "checkp", "-c", "box"); r.out != "" {
		t.Errorf("again: %v", r)
	}
	flipByte(t, filepath.Join(w.dir, "A", ".isr", "box", "hdk", "disk.data"), 7)
	if r := w.isr("A", "checkp", "-c", "box"); r.status != 13 {
		t.Errorf("flipped after it was summed up: %v", r)
	}
	w.ok(t, "A", "--yes", "discard", "box")
	w.ok(t, "A", "checkin", "box")
	w.wantClean(t)
}

// TestFlips: whatever byte of a checkout or of the hoard changes, a guest
// reads right bytes or gets an error, and checkp -c says what is wrong, or the
// bytes are right.
func TestFlips(t *testing.T) {
	t.Parallel()
	w := newQuickWorld(t, shortDir(t), "serve")
	home := w.home(t, "A", "alice", "alice")
	w.must(t, "isr-locksrv", "parcel", "create", "alice", "box", "--disk", "2M", "--vmm", "shell")
	w.disk(t, "A", "box", "head -c 1M /dev/urandom | dd of=$DISK bs=64k iflag=fullblock conv=notrunc,fsync 2>/dev/null")
	w.ok(t, "A", "sync", "box")
	want := w.disk(t, "A", "box", "head -c 4096 /dev/urandom | dd of=$DISK bs=4096 seek=100 conv=notrunc,fsync 2>/dev/null; head -c 300K /dev/urandom | dd of=$DISK bs=4096 seek=260 iflag=fullblock conv=notrunc,fsync 2>/dev/null; sha256sum <$DISK")
	isr, kept := filepath.Join(home, ".isr"), filepath.Join(w.dir, "kept")
	if err := os.Rename(isr, kept); err != nil {
		t.Fatal(err)
	}
	restore := func(t testing.TB) {
		os.RemoveAll(isr)
		if r := execute(w.command("", "cp", "-a", "--sparse=always", kept, isr), ""); r.status != 0 {
			t.Fatal(r)
		}
	}
	var names []string
	for _, f := range files(t, kept) {
		name, _ := filepath.Rel(kept, f)
		if fi, err := os.Stat(f); err == nil && fi.Size() > 0 && !strings.HasPrefix(name, "log/") {
			names = append(names, name)
		}
	}
	rounds := 0
	rapid.Check(t, func(rt *rapid.T) {
		if rounds++; rounds > 40 && os.Getenv("ISR_TEST_CRASH") != "all" { // each takes a quarter of a second
			return
		}
		name := rapid.SampledFrom(names).Draw(rt, "file")
		fi, err := os.Stat(filepath.Join(kept, name))
		if err != nil {
			rt.Fatal(err)
		}
		off := rapid.Int64Range(0, fi.Size()-1).Draw(rt, "offset")
		if strings.HasSuffix(name, "disk.data") { // most of it is holes
			off = rapid.SampledFrom([]int64{100 * 4096, 260 * 4096}).Draw(rt, "place") + rapid.Int64Range(0, 4095).Draw(rt, "in it")
		}
		restore(t)
		flipByte(t, filepath.Join(isr, name), off)
		checked := w.isr("A", "checkp", "-c", "box")
		restore(t)
		flipByte(t, filepath.Join(isr, name), off)
		read := execute(w.command("A", "isr", "resume", "box", "-m", "shell"), "sha256sum <$DISK\n")
		for _, r := range []result{checked, read} {
			if strings.Contains(r.err, "panic:") || strings.Contains(r.err, "goroutine ") {
				rt.Fatalf("it panicked: %v", r)
			}
		}
		right := read.out == want
		if read.out != "" && !right {
			rt.Fatalf("the guest read other bytes, and no error: %vchecked: %v", read, checked)
		}
		if !right && checked.status == 0 && checked.out == "" {
			rt.Fatalf("the guest could not read, and checkp found nothing: %vchecked: %v", read, checked)
		}
	})
	restore(t)
	w.ok(t, "A", "checkin", "box")
	w.wantClean(t)
}

// TestSealedDamaged: what an interrupted sync has sealed and not committed is
// sealed anew if it is damaged, by checkp; nothing is lost.
func TestSealedDamaged(t *testing.T) {
	t.Parallel()
	w := crashWorld(t, "serve")
	fresh := func(p string) {
		w.must(t, "isr-locksrv", "parcel", "copy", "alice", "gold", "alice", p)
		w.ok(t, "A", "resume", p)
	}
	fresh("whole")
	most := countSteps(t, w, "A", "sync", "whole")
	spoilt, staged := 0, 0
	for n := range most["fsync"] {
		p := fmt.Sprint("fsync", n)
		fresh(p)
		killedAt(w, step{"fsync", n + 1, "KILL"}, "A", "sync", p)
		dir := filepath.Join(w.dir, "A", ".isr", p)
		state, err := os.ReadFile(filepath.Join(dir, "state"))
		if err != nil {
			t.Fatal(err)
		}
		sealed := files(t, filepath.Join(dir, "hdk", "objects"))
		if len(sealed) == 0 {
			continue
		}
		spoilt++
		flipByte(t, sealed[n%len(sealed)], 20)
		if strings.Contains(string(state), "STATUS:=staged") {
			staged++
		}
		r := w.ok(t, "A", "checkp", "-c", p)
		if !strings.Contains(r.out, "note: damaged objects, sealed for a sync: 1") {
			t.Errorf("killed at fsync %d: %v", n+1, r)
		}
		w.ok(t, "A", "sync", p)
		if v := w.listed(t, p, "version"); v != "2" {
			t.Errorf("killed at fsync %d: version %s, want 2", n+1, v)
		}
		w.sound(t, p)
		w.goesOn(t, "A", p, 3)
	}
	// Which step each run dies at depends on its threads: that any had sealed
	// something is wanted, that some were staged is mostly so.
	if spoilt == 0 {
		t.Error("none had sealed anything: too few to tell")
	}
	t.Logf("%d had sealed something, %d were staged", spoilt, staged)
	w.wantClean(t)
}
