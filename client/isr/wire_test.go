package main

import (
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// wire stands between hosts and a server: it counts what passes, keeps it if
// asked to, and can be cut.
type wire struct {
	ln       net.Listener
	to       string
	in, out  atomic.Int64 // towards the hosts, towards the server
	mu       sync.Mutex
	record   bool
	passed   map[string]*bytes.Buffer // by connection and direction
	conns    map[net.Conn]bool
	isCut    bool
	silent   map[net.Conn]bool // nothing passes, and nobody is told
	attempts atomic.Int64      // to connect while it is cut
}

// newWire puts a wire between w's hosts, made from now on, and its server.
func newWire(t testing.TB, w *world, record bool) *wire {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	x := &wire{ln: ln, to: fmt.Sprintf("127.0.0.1:%d", w.server.port()), record: record,
		passed: make(map[string]*bytes.Buffer), conns: make(map[net.Conn]bool)}
	w.port = ln.Addr().(*net.TCPAddr).Port
	t.Cleanup(func() { ln.Close(); x.cut() })
	go x.accept()
	return x
}

func (x *wire) accept() {
	for {
		here, err := x.ln.Accept()
		if err != nil {
			return
		}
		x.mu.Lock()
		cut := x.isCut
		x.mu.Unlock()
		if cut {
			x.attempts.Add(1)
			here.Close()
			continue
		}
		there, err := net.Dial("tcp", x.to)
		if err != nil {
			here.(*net.TCPConn).SetLinger(0)
			here.Close()
			continue
		}
		x.mu.Lock()
		x.conns[here], x.conns[there] = true, true
		x.mu.Unlock()
		go x.pass(there, here, &x.out, "out")
		go x.pass(here, there, &x.in, "in")
	}
}

func (x *wire) pass(dst, src net.Conn, count *atomic.Int64, name string) {
	name += " " + src.RemoteAddr().String() + " " + src.LocalAddr().String()
	buf := make([]byte, 64<<10)
	for {
		n, err := src.Read(buf)
		count.Add(int64(n))
		if x.record {
			x.mu.Lock()
			if x.passed[name] == nil {
				x.passed[name] = new(bytes.Buffer)
			}
			x.passed[name].Write(buf[:n])
			x.mu.Unlock()
		}
		x.mu.Lock()
		silent := x.silent[src]
		x.mu.Unlock()
		if n > 0 && !silent {
			if _, werr := dst.Write(buf[:n]); werr != nil {
				err = werr
			}
		}
		if err != nil {
			dst.Close()
			src.Close()
			x.mu.Lock()
			delete(x.conns, dst)
			delete(x.conns, src)
			x.mu.Unlock()
			return
		}
	}
}

// silence has all connections there are pass nothing more, as when a router
// has forgotten them.
func (x *wire) silence() {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.silent = make(map[net.Conn]bool)
	for c := range x.conns {
		x.silent[c] = true
	}
}

// cut ends all connections, and lets none in until mend.
func (x *wire) cut() {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.isCut = true
	for c := range x.conns {
		c.(*net.TCPConn).SetLinger(0)
		c.Close()
	}
}

func (x *wire) mend() {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.isCut = false
}

// holding lists the files below dir that hold any of the words, and the
// number of bytes looked at. Mounts are not entered.
func holding(t testing.TB, dir string, words ...string) (found []string, looked int64) {
	t.Helper()
	var here syscall.Stat_t
	if err := syscall.Stat(dir, &here); err != nil {
		t.Fatal(err)
	}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if os.IsNotExist(err) {
			return nil
		}
		if err != nil {
			return err
		}
		if d.IsDir() {
			var st syscall.Stat_t
			if syscall.Stat(path, &st) == nil && st.Dev != here.Dev {
				return fs.SkipDir
			}
			return nil
		}
		if !d.Type().IsRegular() {
			return nil
		}
		text, err := os.ReadFile(path)
		if err != nil && !os.IsNotExist(err) {
			return err
		}
		looked += int64(len(text))
		for _, w := range words {
			if bytes.Contains(text, []byte(w)) || strings.Contains(path, w) {
				found = append(found, path)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found, looked
}

// TestNothingRecognisable writes a marker to a disk and looks for it wherever
// it might lie: on both hosts, while it runs and after; on the server, all of
// it; in all that passed over the wire.
func TestNothingRecognisable(t *testing.T) {
	t.Parallel()
	for _, kind := range kinds {
		t.Run(kind.name, func(t *testing.T) {
			t.Parallel()
			const marker = "Nobody-Shall-Read-This-Marker"
			w := newQuickWorld(t, shortDir(t), kind.name)
			x := newWire(t, w, true)
			w.home(t, "A", "alice", "alice")
			w.home(t, "B", "alice", "alice")
			absent := func(when string) {
				t.Helper()
				total := int64(0)
				for _, dir := range []string{"A", "B", "root", "run", "tmp"} {
					found, looked := holding(t, filepath.Join(w.dir, dir), marker)
					total += looked
					for _, f := range found {
						t.Errorf("%s: marker found in %s", when, f)
					}
				}
				if total < 1<<20 {
					t.Errorf("%s: looked at %d bytes only", when, total)
				}
			}
			// In the clear at first, so that what looks for it can fail.
			image := filepath.Join(w.dir, "image")
			writeFile(t, image, strings.Repeat(marker+"-of-the-image\n", 20000)+strings.Repeat("\x00", 1<<20))
			if found, _ := holding(t, w.dir, marker); len(found) != 1 {
				t.Fatalf("marker found in %q, want the image alone", found)
			}
			if err := os.Truncate(image, 4<<20); err != nil {
				t.Fatal(err)
			}
			w.must(t, "isr-locksrv", "parcel", "import", "alice", "box", image, "--vmm", "shell")
			// Once where compression would hide it anyway, once between bytes that
			// do not compress.
			script := fmt.Sprintf(`yes '%s-of-the-guest' | head -c 1000000 | dd of=$DISK bs=4k seek=100 conv=notrunc,fsync 2>/dev/null
for i in $(seq 300); do head -c 4096 /dev/urandom; echo '%s'; done | dd of=$DISK bs=4k seek=400 conv=notrunc,fsync 2>/dev/null
echo written
read answer
grep -ac %s $DISK
exit`, marker, marker, marker)
			guest := start(t, w.command("A", "isr", "resume", "box", "-m", "shell"))
			guest.send(script + "\n")
			guest.waitFor(t, "written")
			absent("while it runs on A")
			guest.send("go on\n")
			if r := guest.wait(t); r.status != 0 || strings.Count(r.out, "\n") < 2 {
				t.Fatalf("guest: %v", r)
			}
			absent("suspended on A")
			w.ok(t, "A", "sync", "box", "--comment", "hidden")
			absent("synced by A")
			w.ok(t, "A", "checkin", "box")
			n, err := strconv.Atoi(strings.TrimSpace(w.disk(t, "B", "box", "grep -ac "+marker+" $DISK")))
			if err != nil || n < 20000 {
				t.Errorf("marker lines on B: %d, want 20000 and more", n)
			}
			w.ok(t, "B", "hoard", "box")
			absent("hoarded by B")
			w.ok(t, "B", "checkin", "box")
			absent("at the end")
			x.mu.Lock()
			defer x.mu.Unlock()
			total, greetings := 0, 0
			for name, b := range x.passed {
				total += b.Len()
				greetings += bytes.Count(b.Bytes(), []byte("SSH-2.0-"))
				if bytes.Contains(b.Bytes(), []byte(marker)) {
					t.Errorf("marker found on the wire, %s", name)
				}
			}
			if total < 10000 || greetings == 0 {
				t.Errorf("wire: %d bytes with %d greetings seen: it recorded nothing", total, greetings)
			}
		})
	}
}

var sentObjects = regexp.MustCompile(`version (\d+), (\d+) objects \((.*)\) sent`)

// TestCostBySize: what checkout and sync cost depends on what changed, not on
// how large the disk is.
func TestCostBySize(t *testing.T) {
	t.Parallel()
	for _, kind := range kinds {
		t.Run(kind.name, func(t *testing.T) {
			t.Parallel()
			w := newQuickWorld(t, shortDir(t), kind.name)
			x := newWire(t, w, false)
			w.home(t, "A", "alice", "alice")
			rng := rand.New(rand.NewPCG(1, 2))
			type size struct {
				name   string
				chunks int64
				levels int
			}
			var first int64
			for _, s := range []size{{"1G", 1 << 13, 2}, {"1T", 1 << 23, 3}} {
				w.must(t, "isr-locksrv", "parcel", "create", "alice", s.name, "--disk", s.name, "--vmm", "shell")
				in := x.in.Load()
				w.ok(t, "A", "checkout", s.name)
				got := x.in.Load() - in
				t.Logf("%s: checkout fetched %d bytes", s.name, got)
				// The last words of a connection come after the counting.
				if st := stat(t, w, "A", s.name); st.Network.In > got || st.Network.In < got-200 {
					t.Errorf("%s: stat says %d bytes came, the wire %d", s.name, st.Network.In, got)
				}
				if first == 0 {
					first = got
				}
				if diff := got - first; diff > 2048 || diff < -2048 {
					t.Errorf("%s: checkout fetched %d bytes, the first size %d: want no more than 2 KiB between them", s.name, got, first)
				}

				for _, k := range []int{1, 7, 40} {
					var script strings.Builder
					changed := make(map[int64]bool)
					for len(changed) < k {
						changed[rng.Int64N(s.chunks)] = true
					}
					blocks := make(map[string]bool)
					for n := range changed {
						fmt.Fprintf(&script, "dd if=/dev/urandom of=$DISK bs=128K seek=%d count=1 conv=notrunc 2>/dev/null\n", n)
						for level := 1; level <= s.levels; level++ {
							blocks[fmt.Sprint(level, n>>(8*level))] = true
						}
					}
					script.WriteString("sync $DISK")
					before := len(files(t, w.hdk("alice", s.name)))
					out := x.out.Load()
					w.disk(t, "A", s.name, script.String())
					r := w.ok(t, "A", "sync", s.name)
					out = x.out.Load() - out
					want := k + len(blocks) + 1 // the root
					m := sentObjects.FindStringSubmatch(r.err)
					if m == nil {
						t.Fatalf("%s: sync: %v", s.name, r)
					}
					if m[2] != fmt.Sprint(want) {
						t.Errorf("%s: %d chunks changed: sync says %s objects, want %d chunks, %d blocks and the root", s.name, k, m[2], k, len(blocks))
					}
					if got := len(files(t, w.hdk("alice", s.name))) - before; got != want {
						t.Errorf("%s: %d chunks changed: %d new objects on the server, want %d", s.name, k, got, want)
					}
					// Random chunks do not compress; the rest is small.
					most := int64(k*(128<<10) + len(blocks)*(24<<10) + 64<<10)
					t.Logf("%s: %d chunks, %d blocks: %d bytes sent", s.name, k, len(blocks), out)
					if out > most {
						t.Errorf("%s: %d chunks changed: %d bytes sent, want at most %d", s.name, k, out, most)
					}
				}
				// The same content in two places is one object.
				before := len(files(t, w.hdk("alice", s.name)))
				w.disk(t, "A", s.name, `head -c 128K /dev/urandom >$CFGDIR/x; for n in 3 5 4000; do dd if=$CFGDIR/x of=$DISK bs=128K seek=$n conv=notrunc,fsync 2>/dev/null; done; rm $CFGDIR/x`)
				w.ok(t, "A", "sync", s.name)
				if got, want := len(files(t, w.hdk("alice", s.name)))-before, 1+s.levels+1+1; got != want {
					t.Errorf("%s: three equal chunks under two blocks: %d new objects, want %d", s.name, got, want)
				}
				// Nothing changed: next to nothing is said.
				out := x.out.Load()
				w.ok(t, "A", "sync", s.name)
				if out = x.out.Load() - out; out > 16<<10 {
					t.Errorf("%s: sync of nothing sent %d bytes", s.name, out)
				}
				w.ok(t, "A", "checkin", s.name)
			}
			w.must(t, "isr-locksrv", "check", "-c")
			w.wantClean(t)
		})
	}
}

// running is a program that runs beside the test.
type running struct {
	cmd   *exec.Cmd
	in    io.WriteCloser
	out   lockedBuffer
	err   lockedBuffer
	ended chan struct{}
	err1  error
}

// start starts cmd; it is killed at the end of the test if it still runs.
func start(t testing.TB, cmd *exec.Cmd) *running {
	t.Helper()
	p := &running{cmd: cmd, ended: make(chan struct{})}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	p.in = in
	cmd.Stdout, cmd.Stderr = &p.out, &p.err
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { p.err1 = cmd.Wait(); close(p.ended) }()
	t.Cleanup(func() {
		select {
		case <-p.ended:
		default:
			cmd.Process.Kill()
			<-p.ended
		}
	})
	return p
}

func (p *running) send(text string) { io.WriteString(p.in, text) }

// waitFor waits until the program has printed text.
func (p *running) waitFor(t testing.TB, text string) {
	t.Helper()
	within(t, tooLong, "output "+text, func() bool {
		select {
		case <-p.ended:
			t.Fatalf("it ended before it printed %q: %v", text, p.result())
		default:
		}
		return strings.Contains(p.out.String()+p.err.String(), text)
	})
}

func (p *running) result() result {
	return result{out: p.out.String(), err: p.err.String(), status: statusOf(p.cmd, p.err1)}
}

// wait waits for the end.
func (p *running) wait(t testing.TB) result {
	t.Helper()
	select {
	case <-p.ended:
	case <-time.After(tooLong):
		// What are they doing?
		quit(p.cmd.Process.Pid)
		select {
		case <-p.ended:
		case <-time.After(5 * time.Second):
		}
		t.Fatalf("it does not end: %s%s", p.out.String(), p.err.String())
	}
	return p.result()
}

// tooLong is for one step, on a busy host too; no test waits for it unless
// something is wrong.
const tooLong = 5 * time.Minute
