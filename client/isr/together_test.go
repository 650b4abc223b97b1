package main

import (
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"isr/contrib/guest"
)

// together runs commands at the same time.
func (w *world) together(host string, commands ...[]string) []result {
	rs := make([]result, len(commands))
	var wg sync.WaitGroup
	for i, args := range commands {
		wg.Go(func() { rs[i] = w.isr(host, args...) })
	}
	wg.Wait()
	return rs
}

func times(n int, args ...string) (all [][]string) {
	for range n {
		all = append(all, args)
	}
	return all
}

// TestTogether: ten isr at a time, on one parcel and on several, on one host
// and on two. Each is done or says truly why not, and what is left is what one
// after the other would leave: the toy has counted as often as it was resumed.
func TestTogether(t *testing.T) {
	t.Parallel()
	w := newQuickWorld(t, shortDir(t), "serve")
	for _, host := range []string{"A", "B"} {
		w.home(t, host, "alice", "alice")
	}
	ps := []string{"one", "two", "three"}
	counted := make(map[string]int)
	for _, p := range ps {
		w.must(t, "isr-locksrv", "parcel", "create", "alice", p, "--disk", "4M", "--memory", "1M", "--vmm", "toy")
		w.ok(t, "A", "resume", p)
		w.ok(t, "A", "checkin", p)
		counted[p] = 1
	}
	// Who only reads is in nobody's way.
	for _, r := range w.together("B", append(times(10, "ls", "--json"), times(10, "hoard", "-d", "one")...)...) {
		if r.status != 0 {
			t.Errorf("ten ls and ten hoard at once: %v", r)
		}
	}
	rng := seed(t)
	words := []string{"checkout", "resume", "resume", "resume", "sync", "checkin", "stat", "hoard", "ls", "uuid"}
	rounds := 3
	if testing.Short() {
		rounds = 1
	}
	for round := range rounds {
		hosts := []string{"A", "B"}[:1+round%2]
		type run struct{ host, word, parcel string }
		var runs []run
		for i, word := range words {
			p := "one"
			if round%2 == 1 {
				p = ps[rng.IntN(len(ps))]
			}
			runs = append(runs, run{hosts[i%len(hosts)], word, p})
		}
		rng.Shuffle(len(runs), func(i, j int) { runs[i], runs[j] = runs[j], runs[i] })
		ended := make([]result, len(runs))
		var wg sync.WaitGroup
		for i, r := range runs {
			wg.Go(func() { ended[i] = w.isr(r.host, r.word, r.parcel) })
		}
		wg.Wait()
		for i, r := range ended {
			why := map[int]string{
				0:  "",
				10: "not checked out",
				11: "", // it says who holds it
				22: "",
			}
			text, fine := why[r.status]
			if r.status == 10 && strings.Contains(r.err, "no longer") {
				text = ""
			}
			if !fine || !strings.Contains(r.err, text) || r.status == 11 && len(hosts) == 1 {
				t.Errorf("round %d: %v: %v", round, runs[i], r)
			}
			if runs[i].word == "ls" && r.status != 0 || runs[i].word == "hoard" && r.status != 0 {
				t.Errorf("round %d: %v: %v", round, runs[i], r)
			}
			// What wrote has counted, whatever came after.
			if strings.Contains(r.err, "toy: wrote") {
				counted[runs[i].parcel]++
				if r.status != 0 {
					t.Errorf("round %d: %v ran, and: %v", round, runs[i], r)
				}
			}
		}
		for _, p := range ps {
			host := "A"
			if exists(filepath.Join(w.dir, "B", ".isr", p)) {
				host = "B"
			}
			r := w.ok(t, host, "resume", p)
			counted[p]++
			if count, disk := counts(t, r); count != counted[p] || disk != count-1 {
				t.Fatalf("round %d: %s counts %d over a disk that says %d, want %d: %v", round, p, count, disk, counted[p], ended)
			}
			w.ok(t, host, "checkin", p)
			w.sound(t, p)
		}
	}
	within(t, tooLong, "end of all processes", func() bool { return len(w.processes()) == 0 })
	w.wantClean(t)
}

// TestHoardBeside: a hoard runs beside a resume of the same parcel, while the
// guest reads and writes, and beside its sync and checkin.
func TestHoardBeside(t *testing.T) {
	t.Parallel()
	w := newWorld(t, shortDir(t), "serve")
	for _, host := range []string{"A", "B"} {
		w.home(t, host, "alice", "alice")
	}
	w.must(t, "isr-locksrv", "parcel", "create", "alice", "box", "--disk", "16M", "--vmm", "shell")
	sum := w.disk(t, "A", "box", "head -c 12M /dev/urandom | dd of=$DISK bs=128k iflag=fullblock conv=notrunc,fsync 2>/dev/null; tail -c 8M $DISK | sha256sum")
	w.ok(t, "A", "checkin", "box")
	w.ok(t, "B", "checkout", "box")

	front := start(t, w.command("B", "isr", "resume", "box"))
	front.send("tail -c 8M $DISK | sha256sum; i=0; while [ ! -e $CFGDIR/enough ]; do i=$((i+1)); printf '%-512s' $i | dd of=$DISK bs=512 seek=$((i * 37 % 16000)) conv=notrunc,fsync 2>/dev/null || echo bad write; dd if=$DISK of=/dev/null bs=64k skip=$((i % 128)) count=1 2>/dev/null || echo bad read; [ $i != 5 ] || echo busy; done; rm $CFGDIR/enough; echo last $i; head -c 8M $DISK | sha256sum\n")
	front.waitFor(t, "busy")
	for _, r := range w.together("B", times(3, "hoard", "box")...) {
		if r.status != 0 || !strings.Contains(r.err, "hoarded") {
			t.Errorf("hoard beside resume: %v", r)
		}
	}
	if st := stat(t, w, "B", "box"); st.State != "running" || st.Images["disk"].Hoarded.Chunks != st.Images["disk"].Stored.Chunks {
		t.Errorf("stat beside resume, after a hoard: %+v", st)
	}
	cfg, err := filepath.Glob(filepath.Join(w.dir, "run", "isr", "*", "cfg"))
	if err != nil || len(cfg) != 1 {
		t.Fatalf("cfg directories: %q, %v", cfg, err)
	}
	writeFile(t, filepath.Join(cfg[0], "enough"), "")
	front.waitFor(t, "last ")
	front.send("exit\n")
	r := front.wait(t)
	if r.status != 0 || !strings.HasPrefix(r.out, sum[:64]) || strings.Contains(r.out, "bad") {
		t.Errorf("guest beside a hoard: want sum %s, got %v", sum, r)
	}
	lines := strings.Split(strings.TrimSpace(r.out), "\n")
	written := lines[len(lines)-1]
	for _, command := range []string{"sync", "checkin"} {
		rs := w.together("B", append(times(3, "hoard", "box"), []string{command, "box"})...)
		for _, r := range rs {
			if r.status != 0 {
				t.Errorf("hoard beside %s: %v", command, r)
			}
		}
	}
	if got := strings.TrimSpace(w.disk(t, "A", "box", "head -c 8M $DISK | sha256sum")); got != written {
		t.Errorf("what was written beside a hoard: got %s, want %s", got, written)
	}
	w.ok(t, "A", "checkin", "box")
	w.must(t, "isr-locksrv", "check", "-c")
	w.wantClean(t)
}

// TestTwoGuests: two real guests at once on one host, each with its own ticks.
func TestTwoGuests(t *testing.T) {
	requireFUSE(t)
	t.Parallel()
	image := guest.Image(t)
	w := newQuickWorld(t, shortDir(t), "serve")
	w.home(t, "A", "alice", "alice")
	w.must(t, "isr-locksrv", "parcel", "import", "alice", "box", image, "--memory", "128M")
	w.must(t, "isr-locksrv", "parcel", "import", "alice", "pad", image, "--memory", "128M")
	ms := []*machine{{TB: t, w: w, parcel: "box"}, {TB: t, w: w, parcel: "pad"}}
	said := make([]string, len(ms))
	for i, m := range ms {
		m.resume("A")
		m.tick(1)
		m.ask("write /data/note " + m.parcel + strconv.Itoa(i))
		said[i] = m.ask("sum /data/note")
	}
	if said[0] == said[1] {
		t.Errorf("two guests wrote one note: %s", said[0])
	}
	last := make([]int, len(ms))
	for _, m := range ms {
		m.front.cmd.Process.Signal(syscall.SIGINT)
	}
	for i, m := range ms {
		m.ended(0)
		last[i] = m.con.Last()
	}
	for i, m := range ms {
		m.resume("A")
		m.goesOn(last[i])
		if s := m.ask("sum /data/note"); s != said[i] {
			t.Errorf("%s: note is %s, was %s", m.parcel, s, said[i])
		}
	}
	// One ends, the other does not care.
	ms[0].front.cmd.Process.Signal(syscall.SIGTERM)
	ms[0].ended(0)
	w.ok(t, "A", "checkin", "box")
	ms[1].tick(ms[1].con.Last() + 2)
	ms[1].suspend()
	w.ok(t, "A", "checkin", "pad")
	w.must(t, "isr-locksrv", "check", "-c")
	w.wantClean(t)
}
