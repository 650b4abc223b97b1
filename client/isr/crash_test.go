package main

import (
	"bufio"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"isr/client/remote/sshdtest"
)

// steps are the system calls that change what others can see: between any two
// of them a kill leaves another state.
const steps = "rename,renameat,renameat2,link,linkat,symlinkat,unlink,unlinkat,mkdir,mkdirat,ftruncate,pwrite64," +
	"fsync,fdatasync,syncfs,flock,mount,umount2,connect,shutdown,exit_group"

// seed chooses where things are killed; ISR_TEST_SEED repeats a choice.
func seed(t testing.TB) *rand.Rand {
	t.Helper()
	n := uint64(time.Now().UnixNano())
	if s := os.Getenv("ISR_TEST_SEED"); s != "" {
		var err error
		if n, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("ISR_TEST_SEED=%d", n)
	return rand.New(rand.NewPCG(n, 7))
}

// A step is a point to be killed at: when a thread makes its n-th call of
// this name. Killed, it does not make the call.
type step struct {
	call string
	n    int
	sig  string // KILL, or another signal
}

func (s step) String() string { return fmt.Sprint(s.call, " ", s.n, " by ", s.sig) }

// status is that of a command which a signal has ended.
func (s step) status() int {
	return 128 + int(map[string]syscall.Signal{"KILL": syscall.SIGKILL, "INT": syscall.SIGINT, "TERM": syscall.SIGTERM, "HUP": syscall.SIGHUP}[s.sig])
}

// asked are the signals that ask a command to end.
var asked = []string{"INT", "TERM", "HUP"}

// sample is steps to kill at, and fewer to interrupt at.
func sample(rng *rand.Rand, most map[string]int, some int) []step {
	steps := sampled(rng, most, some, "KILL")
	for _, sig := range asked {
		steps = append(steps, sampled(rng, most, (some+3)/4, sig)...)
	}
	return steps
}

// sampled is some of the steps that are in most, which tells how many calls of
// each name one thread makes; all of them with ISR_TEST_CRASH=all. Each name
// has its share: what is rare is done for a reason.
func sampled(rng *rand.Rand, most map[string]int, some int, sig string) (steps []step) {
	calls := slices.Sorted(maps.Keys(most))
	if os.Getenv("ISR_TEST_CRASH") == "all" {
		for _, call := range calls {
			for n := range most[call] {
				steps = append(steps, step{call, n + 1, sig})
			}
		}
		return steps
	}
	if testing.Short() {
		some = min(some, 2)
	}
	seen := make(map[step]bool)
	for tries := 0; len(steps) < some && tries < 10*some; tries++ {
		if tries%len(calls) == 0 {
			rng.Shuffle(len(calls), func(i, j int) { calls[i], calls[j] = calls[j], calls[i] })
		}
		call := calls[tries%len(calls)]
		s := step{call, 1 + rng.IntN(most[call]), sig}
		if !seen[s] {
			seen[s] = true
			steps = append(steps, s)
		}
	}
	return steps
}

// killedAt runs isr on host, and sends the signal to the process of it, or of
// its keeper, that is the first to come to s.
func killedAt(w *world, s step, host string, args ...string) result {
	r := execute(toKill(w, s, host, args...), "")
	r.sig = s.sig
	return r
}

// toKill is the command that killedAt runs.
func toKill(w *world, s step, host string, args ...string) *exec.Cmd {
	cmd := w.command(host, "strace", append([]string{"-f", "-qq", "-o", "/dev/null", "-e", "trace=" + s.call, "-e", "signal=none",
		"-e", fmt.Sprintf("inject=%s:signal=%s:when=%d", s.call, s.sig, s.n), filepath.Join(w.programs, "isr")}, args...)...)
	cmd.Env = append(cmd.Env, "GOMAXPROCS=1") // so that few threads take the steps
	return cmd
}

// countSteps runs isr on host to its end; it gives the most calls of each name
// that a thread of it made.
func countSteps(t testing.TB, w *world, host string, args ...string) map[string]int {
	t.Helper()
	log := filepath.Join(w.dir, "steps")
	cmd := w.command(host, "strace", append([]string{"-f", "-qq", "-o", log, "-e", "trace=" + steps, "-e", "signal=none",
		filepath.Join(w.programs, "isr")}, args...)...)
	cmd.Env = append(cmd.Env, "GOMAXPROCS=1")
	if r := execute(cmd, ""); r.status != 0 {
		t.Fatalf("isr %s: %v", strings.Join(args, " "), r)
	}
	return countLog(t, log)
}

func countLog(t testing.TB, log string) map[string]int {
	t.Helper()
	f, err := os.Open(log)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	byThread, most := make(map[string]int), make(map[string]int)
	for lines := bufio.NewScanner(f); lines.Scan(); {
		thread, call, _ := strings.Cut(lines.Text(), " ")
		call, _, ok := strings.Cut(strings.TrimSpace(call), "(")
		if !ok || strings.HasPrefix(call, "<...") {
			continue // the end of one counted already
		}
		byThread[thread+call]++
		most[call] = max(most[call], byThread[thread+call])
	}
	return most
}

// crashWorld is a world in which alice has the parcel gold, at version 2: a
// toy that has counted to 1.
func crashWorld(t testing.TB, kind string) *world {
	t.Helper()
	sshdtest.Require(t, "strace")
	w := newQuickWorld(t, shortDir(t), kind)
	for _, host := range []string{"A", "B"} {
		w.home(t, host, "alice", "alice")
	}
	w.must(t, "isr-locksrv", "parcel", "create", "alice", "gold", "--disk", "1M", "--memory", "1M", "--vmm", "toy")
	w.ok(t, "A", "resume", "gold")
	w.ok(t, "A", "checkin", "gold")
	return w
}

// sound wants every version of the parcel to be whole.
func (w *world) sound(t testing.TB, parcel string) {
	t.Helper()
	if r := execute(w.command("", "isr-locksrv", "check", "-c", "alice", parcel), ""); r.status != 0 {
		t.Fatalf("%s: store is not sound: %v", parcel, r)
	}
}

// listed is what ls says of a parcel, at path.
func (w *world) listed(t testing.TB, parcel, path string) string {
	t.Helper()
	v, err := find(w.ok(t, "B", "ls", "--json", parcel).out, "0."+path)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// again runs isr on host until the parcel is no longer busy: the keeper of a
// front that was killed may still be suspending it.
func (w *world) again(t testing.TB, host string, args ...string) result {
	t.Helper()
	var r result
	within(t, tooLong, "isr "+strings.Join(args, " "), func() bool {
		r = w.isr(host, args...)
		return r.status != 22
	})
	return r
}

var toyCounts = regexp.MustCompile(`toy: count (\d+), the disk says (\d+)`)

// counts is what the toy of a run remembered and what it found on its disk.
func counts(t testing.TB, r result) (count, disk int) {
	t.Helper()
	m := toyCounts.FindStringSubmatch(r.err)
	if r.status != 0 || m == nil {
		t.Fatalf("toy did not run: %v", r)
	}
	count, _ = strconv.Atoi(m[1])
	disk, _ = strconv.Atoi(m[2])
	return count, disk
}

type process struct {
	pid     int
	command string
}

// processes are those of the world's hosts.
func (w *world) processes() (found []process) {
	all, _ := filepath.Glob("/proc/[0-9]*/environ")
	home := regexp.MustCompile(`(?s)(^|\x00)HOME=` + regexp.QuoteMeta(w.dir) + `/[^\x00]`)
	for _, f := range all {
		if text, _ := os.ReadFile(f); !home.Match(text) {
			continue
		}
		dir := filepath.Dir(f)
		text, _ := os.ReadFile(filepath.Join(dir, "cmdline"))
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err == nil && len(text) > 0 { // a zombie has none
			found = append(found, process{pid, strings.ReplaceAll(string(text), "\x00", " ")})
		}
	}
	return found
}

// TestKilled: "You can safely attempt to interrupt any isr command at any time
// by typing control-c (SIGINT)." It ends isr and its keeper at their n-th step,
// for many n, by each signal, and runs the same command again. A command that
// changes anything has a line here.
func TestKilled(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name    string
		some    int      // how many steps to try; 0: all fsyncs, between which a commit is
		args    []string // the parcel comes after the first
		prepare []string // commands, without the parcel
		instead []string // of running the same again, likewise
		after   func(t *testing.T, w *world, p string, killed, again result)
	}{
		{"checkout", 10, []string{"checkout"}, nil, nil, func(t *testing.T, w *world, p string, killed, again result) {
			if again.status != 0 {
				t.Errorf("again: %v", again)
			}
			// One acquisition, however often it was asked for.
			if got := w.listed(t, p, "held.epoch"); got != "1" {
				t.Errorf("lock has number %s, want 1", got)
			}
			if got := w.listed(t, p, "version"); got != "1" {
				t.Errorf("version is %s, want 1", got)
			}
			w.goesOn(t, "A", p, 2)
		}},
		{"rollback", 4, []string{"checkout", "-r", "1"}, []string{"resume", "checkin"}, nil, func(t *testing.T, w *world, p string, killed, again result) {
			if again.status != 0 {
				t.Errorf("again: %v", again)
			}
			if got := w.listed(t, p, "version"); got != "3" {
				t.Errorf("version is %s, want 3", got)
			}
			if got := w.listed(t, p, "held.epoch"); got != "2" {
				t.Errorf("lock has number %s, want 2", got)
			}
			w.goesOn(t, "A", p, 2)
		}},
		{"checkout -d", 2, []string{"checkout", "-d"}, nil, nil, func(t *testing.T, w *world, p string, killed, again result) {
			if again.status != 0 {
				t.Errorf("again: %v", again)
			}
			if count, disk := counts(t, w.ok(t, "A", "resume", "-d", p)); count != 2 || disk != 1 {
				t.Errorf("without a network it counts %d over a disk that says %d, want 2 over 1", count, disk)
			}
			w.goesOn(t, "A", p, 3)
		}},
		{"resume", 14, []string{"resume"}, []string{"checkout"}, nil, func(t *testing.T, w *world, p string, killed, again result) {
			count, disk := counts(t, again)
			wrote := 1
			if strings.Contains(killed.err, "toy: wrote 2") {
				wrote = 2
			}
			if disk < wrote {
				t.Errorf("disk says %d after %d was acknowledged", disk, wrote)
			}
			if count != disk+1 && count != 1 {
				t.Errorf("memory counts %d over a disk that says %d", count, disk)
			}
			// A toy that is interrupted is off: that is said by its own.
			if count == 1 && killed.sig == "KILL" && !strings.Contains(again.err+killed.err, "its memory is lost") {
				t.Errorf("memory is lost, and nobody said so: %v", again)
			}
			w.goesOn(t, "A", p, count+1)
		}},
		{"sync", 12, []string{"sync"}, []string{"resume"}, nil, func(t *testing.T, w *world, p string, killed, again result) {
			if again.status != 0 {
				t.Errorf("again: %v", again)
			}
			if got := w.listed(t, p, "version"); got != "2" {
				t.Errorf("version is %s, want 2", got)
			}
			w.goesOn(t, "A", p, 3)
		}},
		{"checkin", 12, []string{"checkin"}, []string{"resume"}, nil, func(t *testing.T, w *world, p string, killed, again result) {
			gone := again.status == 10 && w.listed(t, p, "version") == "2"
			if again.status != 0 && !gone {
				t.Errorf("again: %v", again)
			}
			if got := w.listed(t, p, "version"); got != "2" {
				t.Errorf("version is %s, want 2", got)
			}
			if exists(filepath.Join(w.dir, "A", ".isr", p)) {
				t.Errorf("it is still here")
			}
			w.goesOn(t, "B", p, 3)
		}},
		{"checkin of nothing", 4, []string{"checkin"}, []string{"checkout"}, nil, func(t *testing.T, w *world, p string, killed, again result) {
			if again.status != 0 && again.status != 10 {
				t.Errorf("again: %v", again)
			}
			w.goesOn(t, "B", p, 2)
		}},
		// Who does not finish what was interrupted, but goes on, can check in too.
		{"sync, then resume", 0, []string{"sync"}, []string{"resume"}, []string{"resume"}, func(t *testing.T, w *world, p string, killed, again result) {
			if count, disk := counts(t, again); count != 3 || disk != 2 {
				t.Errorf("it counts %d over a disk that says %d, want 3 over 2", count, disk)
			}
			w.goesOn(t, "A", p, 4)
			w.goesOn(t, "B", p, 5)
		}},
		{"sync, then discard", 2, []string{"sync"}, []string{"resume"}, []string{"discard", "--yes"}, func(t *testing.T, w *world, p string, killed, again result) {
			if again.status != 0 {
				t.Errorf("discard: %v", again)
			}
			// The commit may have been made, or not.
			count, disk := counts(t, w.ok(t, "A", "resume", p))
			if count != disk+1 || count < 2 || count > 3 {
				t.Errorf("it counts %d over a disk that says %d", count, disk)
			}
			w.goesOn(t, "A", p, count+1)
			w.goesOn(t, "B", p, count+2)
		}},
		{"checkin, then resume", 4, []string{"checkin"}, []string{"resume"}, []string{"resume"}, func(t *testing.T, w *world, p string, killed, again result) {
			if count, disk := counts(t, again); count != 3 || disk != 2 {
				t.Errorf("it counts %d over a disk that says %d, want 3 over 2", count, disk)
			}
			w.goesOn(t, "A", p, 4)
			w.goesOn(t, "B", p, 5)
		}},
		{"discard", 4, []string{"discard", "--yes"}, []string{"resume"}, nil, func(t *testing.T, w *world, p string, killed, again result) {
			if again.status != 0 {
				t.Errorf("again: %v", again)
			}
			w.goesOn(t, "A", p, 2)
		}},
		{"poweroff", 4, []string{"poweroff", "--yes"}, []string{"resume"}, nil, func(t *testing.T, w *world, p string, killed, again result) {
			if again.status != 0 {
				t.Errorf("again: %v", again)
			}
			w.goesOn(t, "A", p, 1)
		}},
		{"hoard", 8, []string{"hoard", "-d"}, nil, nil, func(t *testing.T, w *world, p string, killed, again result) {
			if again.status != 0 {
				t.Errorf("again: %v", again)
			}
			w.hoarded(t, "A", p, 1)
			w.goesOn(t, "A", p, 2)
		}},
		{"sync of what is hoarded", 8, []string{"sync"}, []string{"hoard", "resume"}, nil, func(t *testing.T, w *world, p string, killed, again result) {
			if again.status != 0 {
				t.Errorf("again: %v", again)
			}
			w.hoarded(t, "A", p, 2)
			w.goesOn(t, "A", p, 3)
		}},
		{"checkin of what is hoarded", 6, []string{"checkin"}, []string{"hoard", "resume"}, nil, func(t *testing.T, w *world, p string, killed, again result) {
			if again.status != 0 && again.status != 10 {
				t.Errorf("again: %v", again)
			}
			w.hoarded(t, "A", p, 2)
			w.goesOn(t, "B", p, 3)
		}},
		{"rmhoard", 4, []string{"rmhoard", "--yes"}, []string{"hoard", "checkout"}, nil, func(t *testing.T, w *world, p string, killed, again result) {
			if again.status != 0 && again.status != 10 {
				t.Errorf("again: %v", again)
			}
			if k := w.kept(t, "A", p); k != nil {
				t.Errorf("still hoarded: %+v", k)
			}
			w.goesOn(t, "A", p, 2)
		}},
		{"clean", 4, []string{"clean", "--yes"}, []string{"resume"}, nil, func(t *testing.T, w *world, p string, killed, again result) {
			if again.status != 0 && again.status != 10 {
				t.Errorf("again: %v", again)
			}
			w.goesOn(t, "B", p, 2)
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			w := crashWorld(t, "serve")
			with := func(args []string, p string) []string { return slices.Insert(slices.Clone(args), 1, p) }
			fresh := func(p string) {
				w.must(t, "isr-locksrv", "parcel", "copy", "alice", "gold", "alice", p)
				for _, command := range c.prepare {
					w.ok(t, "A", command, p)
				}
			}
			fresh("whole")
			most := countSteps(t, w, "A", with(c.args, "whole")...)
			steps := sample(seed(t), most, c.some)
			for n := range most["fsync"] {
				if c.some == 0 {
					steps = append(steps, step{"fsync", n + 1, "KILL"})
				}
			}
			tried, died := 0, 0
			for _, at := range steps {
				p := fmt.Sprint(at.call, at.n, at.sig)
				if exists(w.hdk("alice", p)) {
					continue
				}
				fresh(p)
				killed := killedAt(w, at, "A", with(c.args, p)...)
				if at.sig != "KILL" && killed.status != 0 && killed.status != at.status() {
					t.Errorf("interrupted at %v: %v", at, killed)
				}
				if at.sig == "KILL" {
					tried++
				}
				if killed.status == 128+int(syscall.SIGKILL) || strings.Contains(killed.err, "keeper died") {
					died++
				}
				w.sound(t, p)
				next := c.args
				if c.instead != nil {
					next = c.instead
				}
				again := w.again(t, "A", with(next, p)...)
				w.sound(t, p)
				if ok := t.Run(p, func(t *testing.T) { c.after(t, w, p, killed, again) }); !ok {
					t.Fatalf("killed at %v: %vthen %v", at, killed, again)
				}
				w.sound(t, p)
				w.wantClean(t)
			}
			within(t, tooLong, "end of all processes", func() bool { return len(w.processes()) == 0 })
			// Threads share the steps anew in each run, so some survive.
			if died*4 < tried {
				t.Errorf("%d of %d were killed: too few to tell", died, tried)
			}
			t.Logf("%d of %d were killed", died, tried)
		})
	}
}

// goesOn wants the parcel's toy on host to go on with count, and what it then
// did to travel.
func (w *world) goesOn(t testing.TB, host, p string, count int) {
	t.Helper()
	r := w.again(t, host, "resume", p)
	got, disk := counts(t, r)
	if got != count {
		t.Errorf("%s goes on with count %d, want %d; the disk says %d", p, got, count, disk)
	}
	if got > 1 && disk != got-1 {
		t.Errorf("%s counts %d over a disk that says %d", p, got, disk)
	}
	w.ok(t, host, "checkin", p)
}

// TestKeeperKilled kills a keeper while its guest writes and flushes. All that
// was acknowledged is there afterwards, and nothing is half.
func TestKeeperKilled(t *testing.T) {
	t.Parallel()
	w := crashWorld(t, "serve")
	w.must(t, "isr-locksrv", "parcel", "create", "alice", "box", "--disk", "4M", "--vmm", "shell")
	w.ok(t, "A", "checkout", "box")
	rng := seed(t)
	// Sector i holds the number of the last write to it.
	const writer = `i=$FIRST
while :; do
	i=$((i+1)); at=$((i * 37 % 1000))
	printf '%-512s' $i | dd of=$DISK bs=512 seek=$at conv=notrunc,fsync 2>/dev/null || exit
	echo ack $i
done`
	first, rounds := 0, 8
	if testing.Short() {
		rounds = 2
	}
	for round := range rounds {
		cmd := w.command("A", "isr", "resume", "box")
		cmd.Env = append(cmd.Env, fmt.Sprint("FIRST=", first))
		front := start(t, cmd)
		front.send(writer + "\n")
		last := func() int {
			acks := strings.Fields(front.out.String())
			if len(acks) < 2 {
				return first
			}
			// The last may be cut.
			out := front.out.String()
			out = out[:strings.LastIndexByte(out, '\n')+1]
			n, _ := strconv.Atoi(out[strings.LastIndexByte(strings.TrimSuffix(out, "\n"), ' ')+1 : len(out)-1])
			return n
		}
		enough := first + 3 + rng.IntN(30)
		within(t, tooLong, "writes", func() bool { return last() >= enough })
		pid := keeperOf(t, front.cmd.Process.Pid)
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		front.send("exit\n")
		r := front.wait(t)
		if r.status != 1 || !strings.Contains(r.err, "keeper died") || !strings.Contains(r.err, "isr: hint: ") {
			t.Errorf("round %d: front: %v", round, r)
		}
		if st := stat(t, w, "A", "box"); st.State != "its keeper died; the next command puts it right" {
			t.Errorf("round %d: state %q", round, st.State)
		}
		acked := last()
		// What it left is put right by the next command, whatever it is.
		out := w.disk(t, "A", "box", fmt.Sprintf(`i=%d; while [ $i -gt 0 ] && [ $i -gt %d ]; do echo $i $(dd if=$DISK bs=512 skip=$((i * 37 %% 1000)) count=1 2>/dev/null); i=$((i-1)); done`, acked, max(acked-900, 0)))
		if n := strings.Count(out, "\n"); n != min(acked, 900) {
			t.Fatalf("round %d: %d sectors read, want %d", round, n, min(acked, 900))
		}
		for _, line := range strings.Split(strings.TrimSpace(out), "\n") {
			var want, got int
			if n, _ := fmt.Sscanf(line, "%d %d", &want, &got); n != 2 || got != want && got != want+1000 {
				t.Fatalf("round %d: %d writes acknowledged: sector of write %q", round, acked, line)
			}
		}
		first = acked
		if round%3 == 2 {
			w.ok(t, "A", "sync", "box")
			w.sound(t, "box")
		}
	}
	w.ok(t, "A", "checkin", "box")
	w.sound(t, "box")
	w.wantClean(t)
}

// keeperOf is the process id of the keeper that a front has started.
func keeperOf(t testing.TB, front int) (pid int) {
	t.Helper()
	within(t, tooLong, "keeper", func() bool {
		for _, pid = range keepersOf(front) {
			return true
		}
		return false
	})
	return pid
}

func keepersOf(front int) (pids []int) {
	children, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", front))
	for _, f := range children {
		text, _ := os.ReadFile(f)
		for _, word := range strings.Fields(string(text)) {
			cmdline, _ := os.ReadFile("/proc/" + word + "/cmdline")
			if pid, err := strconv.Atoi(word); err == nil && strings.Contains(string(cmdline), "\x00keeper\x00") {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}

// TestServerKilled kills the server and all its connections at some instant of
// a sync and of a checkin, and starts it again.
func TestServerKilled(t *testing.T) {
	t.Parallel()
	for _, kind := range kinds {
		t.Run(kind.name, func(t *testing.T) {
			t.Parallel()
			w := newQuickWorld(t, shortDir(t), kind.name)
			w.home(t, "A", "alice", "alice")
			w.home(t, "B", "alice", "alice")
			w.must(t, "isr-locksrv", "parcel", "create", "alice", "box", "--disk", "16M", "--vmm", "shell")
			rng := seed(t)
			work := func() string {
				return w.disk(t, "A", "box", "head -c 4M /dev/urandom | dd of=$DISK bs=1M iflag=fullblock conv=notrunc,fsync 2>/dev/null; sha256sum <$DISK")
			}
			work()
			began := time.Now()
			w.ok(t, "A", "sync", "box")
			took := time.Since(began)
			version, rounds := 2, 6
			if testing.Short() {
				rounds = 2
			}
			for round := range rounds {
				command := "sync"
				if round%2 == 1 {
					command = "checkin"
				}
				sum := work()
				wait := time.Duration(rng.Int64N(int64(took + took/4)))
				client := start(t, w.command("A", "isr", command, "box"))
				select {
				case <-time.After(wait): // the instant is the test's input
				case <-client.ended:
				}
				w.server.kill(t)
				w.sound(t, "box")
				w.server.start(t)
				r := client.wait(t)
				if r.status != 0 && r.status != 14 {
					t.Fatalf("round %d: killed after %v: isr %s: %v", round, wait, command, r)
				}
				w.sound(t, "box")
				if r.status != 0 {
					r = w.isr("A", command, "box")
				}
				if r.status != 0 && !(command == "checkin" && r.status == 10) {
					t.Fatalf("round %d: killed after %v: isr %s, again: %v", round, wait, command, r)
				}
				version++
				if got := w.listed(t, "box", "version"); got != fmt.Sprint(version) {
					t.Fatalf("round %d: killed after %v: version is %s, want %d", round, wait, got, version)
				}
				host := "A"
				if command == "checkin" {
					host = "B"
				}
				if got := w.disk(t, host, "box", "sha256sum <$DISK"); got != sum {
					t.Fatalf("round %d: killed after %v: disk is %s, was %s", round, wait, got, sum)
				}
				if command == "checkin" {
					w.ok(t, "B", "checkin", "box")
				}
				w.sound(t, "box")
			}
		})
	}
}

// straced attaches strace to a process and its threads, and waits until it is.
// The end is to kill it: told to let go, it waits for each thread by itself,
// and for ever for the first of a process whose others have just died.
func straced(t testing.TB, w *world, pid int, args ...string) (end func()) {
	t.Helper()
	p := start(t, w.command("", "strace", append([]string{"-f", "-p", strconv.Itoa(pid), "-e", "signal=none"}, args...)...))
	p.waitFor(t, "attached")
	return func() {
		p.cmd.Process.Kill()
		<-p.ended
	}
}

// TestServerKilledInCommit kills the server at its n-th step of a checkin, for
// many n: the daemon, or whichever of sshd's and its verbs' processes comes
// there first. The client finishes with the next server, or can when told again.
func TestServerKilledInCommit(t *testing.T) {
	t.Parallel()
	for _, kind := range kinds {
		t.Run(kind.name, func(t *testing.T) { testServerKilledInCommit(t, kind.name) })
	}
}

func testServerKilledInCommit(t *testing.T, kind string) {
	t.Parallel()
	w := crashWorld(t, kind)
	server, some := func() (pid int, done chan struct{}) {
		d := w.server.(*daemon)
		return d.cmd.Process.Pid, d.done
	}, 10
	if s, ok := w.server.(*sshd); ok {
		server, some = func() (int, chan struct{}) { return s.Pid(), nil }, 4
		// Every process that the client asks for anew is killed too.
		rc := filepath.Join(w.dir, "A", ".openisrrc")
		text, err := os.ReadFile(rc)
		if err != nil {
			t.Fatal(err)
		}
		writeFile(t, rc, string(text)+"patience = 2s\n")
	}
	fresh := func(p string) {
		w.must(t, "isr-locksrv", "parcel", "copy", "alice", "gold", "alice", p)
		w.ok(t, "A", "resume", p)
	}
	fresh("whole")
	log := filepath.Join(w.dir, "steps")
	pid, _ := server()
	letGo := straced(t, w, pid, "-o", log, "-e", "trace="+steps)
	w.ok(t, "A", "checkin", "whole")
	letGo()
	tried, died := 0, 0
	for _, at := range sampled(seed(t), countLog(t, log), some, "KILL") {
		p := fmt.Sprint(at.call, at.n)
		fresh(p)
		pid, done := server()
		killed := filepath.Join(w.dir, "killed")
		letGo := straced(t, w, pid, "-o", killed, "-e", "trace="+at.call,
			"-e", fmt.Sprintf("inject=%s:signal=KILL:when=%d", at.call, at.n))
		client := start(t, w.command("A", "isr", "checkin", p))
		tried++
		select {
		case <-done:
		case <-client.ended:
		}
		w.server.kill(t)
		letGo() // there may be others of sshd's
		if countLog(t, killed)[at.call] >= at.n {
			died++
		}
		w.sound(t, p)
		w.server.start(t)
		r := client.wait(t)
		if r.status != 0 && r.status != 14 {
			t.Fatalf("server killed at %v: isr checkin: %v", at, r)
		}
		if r.status != 0 {
			r = w.isr("A", "checkin", p)
		}
		if r.status != 0 && r.status != 10 {
			t.Fatalf("server killed at %v: isr checkin, again: %v", at, r)
		}
		w.sound(t, p)
		if got := w.listed(t, p, "version"); got != "2" {
			t.Errorf("server killed at %v: version is %s, want 2", at, got)
		}
		w.goesOn(t, "B", p, 3)
		w.sound(t, p)
	}
	if died*4 < tried {
		t.Errorf("%d of %d were killed: too few to tell", died, tried)
	}
	t.Logf("%d of %d were killed", died, tried)
	w.must(t, "isr-locksrv", "check", "-c")
}
