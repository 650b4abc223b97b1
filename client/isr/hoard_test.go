package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"pgregory.net/rapid"

	"isr/client"
)

// kept is what lshoard on host says of a parcel; nil if it is not hoarded.
func (w *world) kept(t testing.TB, host, parcel string) *client.HoardedParcel {
	t.Helper()
	var list client.HoardList
	r := w.ok(t, host, "lshoard", "--json")
	if err := json.Unmarshal([]byte(r.out), &list); err != nil {
		t.Fatalf("isr lshoard --json: %v\n%s", err, r.out)
	}
	for _, p := range list.Parcels {
		if p.Parcel == parcel {
			return &p
		}
	}
	return nil
}

// hoarded wants a parcel to be hoarded on host, wholly, in version.
func (w *world) hoarded(t testing.TB, host, parcel string, version int) {
	t.Helper()
	k := w.kept(t, host, parcel)
	if k == nil || k.Version != version || !k.Complete {
		t.Errorf("%s: hoarded %+v, want all of version %d", parcel, k, version)
	}
}

// TestHoardOutage: hoarding waits out an outage, says so, and goes on; an
// interrupt ends it even then; and running it again fetches the rest.
func TestHoardOutage(t *testing.T) {
	t.Parallel()
	w := newWorld(t, shortDir(t), "serve")
	for _, host := range []string{"A", "B"} {
		w.home(t, host, "alice", "alice")
	}
	w.must(t, "isr-locksrv", "parcel", "create", "alice", "box", "--disk", "8M", "--vmm", "shell")
	w.disk(t, "A", "box", "head -c 3M /dev/urandom | dd of=$DISK bs=128k iflag=fullblock conv=notrunc,fsync 2>/dev/null")
	w.ok(t, "A", "checkin", "box")
	hoard := filepath.Join(w.dir, "B", ".isr", "hoard")
	more := func() func() bool {
		had := len(files(t, hoard))
		return func() bool { return len(files(t, hoard)) > had+5 }
	}
	fetched := more()
	p := start(t, w.command("B", "isr", "hoard", "box", "-b", "1000"))
	within(t, tooLong, "objects", fetched)
	w.server.kill(t)
	p.waitFor(t, "hoarding waits: ")
	p.cmd.Process.Signal(syscall.SIGINT)
	if r := p.wait(t); r.status != 130 || !strings.Contains(r.err, "run it again to go on") {
		t.Errorf("interrupted in an outage: %v", r)
	}
	// Unreachable from the start is an error, at once.
	if r := w.isr("B", "hoard", "box"); r.status != 14 {
		t.Errorf("without a server: %v", r)
	}
	w.server.start(t)
	fetched = more()
	p = start(t, w.command("B", "isr", "hoard", "box", "-b", "1000"))
	within(t, tooLong, "objects", fetched)
	w.server.kill(t)
	p.waitFor(t, "hoarding waits: ")
	w.server.start(t)
	r := p.wait(t)
	if r.status != 0 || !strings.Contains(r.err, "connected again, hoarding goes on") || strings.Contains(r.err, " 26 of them") {
		t.Errorf("after the outage: %v", r)
	}
	w.hoarded(t, "B", "box", 2)
	w.wantClean(t)
}

// TestHoardAndSync: a hoard beside a running parcel, its sync and its checkin,
// and beside another hoard. Whoever is last, the pin is of the newest version
// and all of it is here.
func TestHoardAndSync(t *testing.T) {
	t.Parallel()
	w := newWorld(t, shortDir(t), "serve")
	for _, host := range []string{"A", "B"} {
		w.home(t, host, "alice", "alice")
	}
	w.must(t, "isr-locksrv", "parcel", "create", "alice", "box", "--disk", "8M", "--vmm", "shell")
	w.disk(t, "A", "box", "head -c 2M /dev/urandom | dd of=$DISK bs=128k iflag=fullblock conv=notrunc,fsync 2>/dev/null")
	w.ok(t, "A", "checkin", "box")
	w.ok(t, "B", "checkout", "box")
	slow := start(t, w.command("B", "isr", "hoard", "box", "-b", "600"))
	within(t, tooLong, "pin", func() bool { return w.kept(t, "B", "box") != nil })
	// It runs, writes, and a version is made of it, all while the hoard goes on.
	shell := start(t, w.command("B", "isr", "resume", "box"))
	shell.send("echo up; head -c 1M /dev/urandom | dd of=$DISK bs=128k seek=30 iflag=fullblock conv=notrunc,fsync 2>/dev/null\n")
	shell.waitFor(t, "up")
	if r := w.isr("B", "rmhoard", "box", "--yes"); r.status != 22 {
		t.Errorf("rmhoard of a running parcel: %v", r)
	}
	shell.send("exit 0\n")
	if r := shell.wait(t); r.status != 0 {
		t.Errorf("resume beside a hoard: %v", r)
	}
	w.ok(t, "B", "sync", "box")
	select {
	case <-slow.ended:
		t.Log("the hoard ended before the sync did: it tells less")
	default:
	}
	w.ok(t, "B", "hoard", "-d", "box")
	if r := slow.wait(t); r.status != 0 {
		t.Errorf("hoard: %v", r)
	}
	w.hoarded(t, "B", "box", 3)
	if k := w.kept(t, "B", "box"); !k.Memory {
		t.Error("a hoard that ended late took the memory's mark away")
	}
	w.ok(t, "B", "checkin", "box")
	w.hoarded(t, "B", "box", 3)
	w.sound(t, "box")
	w.wantClean(t)
}

// TestHoardModel: whatever is done with a parcel on two hosts, what is hoarded
// is what a simple model says: once hoarded, in the newest version that was
// here, all of it unless that was made elsewhere and not hoarded since; and a
// parcel that is all here runs without a network.
func TestHoardModel(t *testing.T) {
	t.Parallel()
	w := newQuickWorld(t, shortDir(t), "serve")
	for _, host := range []string{"A", "B"} {
		w.home(t, host, "alice", "alice")
	}
	n, passed := 0, 0
	rapid.Check(t, func(rt *rapid.T) {
		if passed == 10 { // each step is a program or two: a few histories must do
			return
		}
		n++
		box := fmt.Sprint("box", n)
		w.must(t, "isr-locksrv", "parcel", "create", "alice", box, "--disk", "40M", "--vmm", "shell")
		type host struct {
			hoarded bool
			version int             // that is pinned
			here    map[string]bool // content of each place, that is here
		}
		hosts := map[string]*host{"A": {here: map[string]bool{}}, "B": {here: map[string]bool{}}}
		versions := [][4]string{{}, {}} // content of each place, by version; "": zeros
		at := ""
		dirty := false
		var disk [4]string
		complete := func(h *host) bool {
			for _, c := range versions[h.version] {
				if c != "" && !h.here[c] {
					return false
				}
			}
			return true
		}
		commit := func() {
			if !dirty {
				return
			}
			dirty = false
			h := hosts[at]
			for i, c := range disk {
				if c != versions[len(versions)-1][i] {
					h.here[c] = true // what did not change may never have come here
				}
			}
			versions = append(versions, disk)
			if h.hoarded {
				h.version = len(versions) - 1
			}
		}
		for range rapid.IntRange(4, 9).Draw(rt, "steps") {
			who := rapid.SampledFrom([]string{"A", "B"}).Draw(rt, "host")
			h := hosts[who]
			switch rapid.SampledFrom([]string{"checkout", "write", "write", "sync", "checkin", "hoard", "hoard", "rollback", "rmhoard"}).Draw(rt, "do") {
			case "checkout", "rollback":
				if at != "" {
					break
				}
				args := []string{"checkout", box}
				if rapid.Bool().Draw(rt, "back") {
					v := rapid.IntRange(1, len(versions)-1).Draw(rt, "to")
					args = append(args, "-r", fmt.Sprint(v))
					if v != len(versions)-1 {
						versions = append(versions, versions[v])
					}
				}
				w.ok(t, who, args...)
				at, disk, dirty = who, versions[len(versions)-1], false
				if h.hoarded {
					h.version = len(versions) - 1
				}
			case "write":
				if at == "" {
					break
				}
				place := rapid.IntRange(0, 3).Draw(rt, "place")
				// Some content is that of another place, or of another time.
				content := fmt.Sprint(rapid.IntRange(1, 5).Draw(rt, "content"))
				w.disk(t, at, box, fmt.Sprintf("yes %s | head -c 128K | dd of=$DISK bs=128K seek=%d iflag=fullblock conv=notrunc,fsync 2>/dev/null", content, place*70))
				if disk[place] != content {
					disk[place] = content
				}
				dirty = disk != versions[len(versions)-1]
			case "sync":
				if at != "" {
					w.ok(t, at, "sync", box)
					commit()
				}
			case "checkin":
				if at != "" {
					w.ok(t, at, "checkin", box)
					commit()
					at = ""
				}
			case "hoard":
				w.ok(t, who, "hoard", box)
				h.hoarded, h.version = true, len(versions)-1
				for _, c := range versions[h.version] {
					h.here[c] = true
				}
			case "rmhoard":
				if h.hoarded {
					w.ok(t, who, "rmhoard", box, "--yes")
					h.hoarded = false
					h.here = map[string]bool{}
				}
			}
			for name, h := range hosts {
				k := w.kept(t, name, box)
				if (k != nil) != h.hoarded || k != nil && k.Version != h.version {
					rt.Fatalf("%s: hoarded %+v, want %v in version %d", name, k, h.hoarded, h.version)
				}
				// What the model knows to be here must be; more may be.
				if k != nil && complete(h) && k.Here+3 < k.Objects {
					rt.Fatalf("%s: %d of %d objects are here, want all but the keyring's", name, k.Here, k.Objects)
				}
			}
		}
		if at != "" && hosts[at].hoarded && w.kept(t, at, box).Complete {
			w.server.stop(t)
			want := fmt.Sprint(strings.Join(disk[:], ","))
			got := execute(w.command(at, "isr", "resume", "-d", box, "-m", "shell"), "for p in 0 70 140 210; do dd if=$DISK bs=128K skip=$p count=1 2>/dev/null | head -c 1 | tr -d '\\000'; [ $p = 210 ] || printf ,; done\n")
			w.server.start(t)
			if got.status != 0 || got.out != want {
				rt.Fatalf("without a network: %v, want %s", got, want)
			}
		}
		if at != "" {
			w.ok(t, at, "clean", box, "--yes")
		}
		for _, name := range []string{"A", "B"} {
			os.RemoveAll(filepath.Join(w.dir, name, ".isr", "hoard"))
		}
		passed++
	})
}
