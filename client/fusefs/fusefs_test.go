package fusefs

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The mount is touched by child processes only: tools of the system, and this
// test binary under another name (see helperMain).

func TestMain(m *testing.M) {
	if what := os.Getenv("FUSEFS_HELPER"); what != "" {
		helperMain(what)
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// memImage is an image in memory, with a hook before each read.
type memImage struct {
	mu      sync.Mutex
	b       []byte
	reads   atomic.Int64
	flushes atomic.Int64
	hook    atomic.Pointer[func(ctx context.Context, off int64, n int) error]
}

func newMemImage(n int) *memImage {
	im := &memImage{b: make([]byte, n)}
	rand.Read(im.b)
	return im
}

func (im *memImage) onRead(f func(ctx context.Context, off int64, n int) error) { im.hook.Store(&f) }

func (im *memImage) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	im.reads.Add(1)
	if h := im.hook.Load(); h != nil {
		if err := (*h)(ctx, off, len(p)); err != nil {
			return 0, err
		}
	}
	im.mu.Lock()
	defer im.mu.Unlock()
	n := copy(p, im.b[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (im *memImage) WriteAt(_ context.Context, p []byte, off int64) (int, error) {
	im.mu.Lock()
	defer im.mu.Unlock()
	return copy(im.b[off:], p), nil
}

func (im *memImage) Flush(context.Context) error { im.flushes.Add(1); return nil }
func (im *memImage) Size() int64                 { return int64(len(im.b)) }

func (im *memImage) sum() string {
	im.mu.Lock()
	defer im.mu.Unlock()
	return fmt.Sprintf("%x", sha256.Sum256(im.b))
}

func (im *memImage) zero(from, to int) bool {
	im.mu.Lock()
	defer im.mu.Unlock()
	return bytes.Equal(im.b[from:to], make([]byte, to-from))
}

func needFuse(t testing.TB) {
	t.Helper()
	f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		t.Skip("no FUSE here: ", err)
	}
	f.Close()
}

func mountTest(t testing.TB, images map[string]Image, stats map[string]func() []byte) *Mount {
	t.Helper()
	needFuse(t)
	m, err := New(t.TempDir(), images, stats)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	return m
}

// sh runs a script in a child process and returns what it printed.
func sh(t testing.TB, dir, script string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "sh", "-c", script)
	cmd.Env = append(os.Environ(), "D="+dir, "LC_ALL=C")
	cmd.WaitDelay = 5 * time.Second
	out, err := cmd.CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

func mustSh(t testing.TB, dir, script string) string {
	t.Helper()
	out, err := sh(t, dir, script)
	if err != nil {
		t.Fatalf("%s: %v\n%s", script, err, out)
	}
	return out
}

func TestFilesLookAsTheyShould(t *testing.T) {
	disk, memory := newMemImage(3<<20+100), newMemImage(1<<20)
	n := 0
	m := mountTest(t, map[string]Image{"disk": disk, "memory": memory}, map[string]func() []byte{
		"disk": func() []byte { n++; return fmt.Appendf(nil, "opened %d\n", n) },
		"long": func() []byte { return bytes.Repeat([]byte("0123456789abcde\n"), 20000) },
	})
	for _, tt := range []struct{ script, want string }{
		{"ls $D", "disk\nmemory\nstats"},
		{"ls $D/stats", "disk\nlong"},
		{"stat -c '%a %s %F %U' $D/disk", "600 3145828 regular file root"},
		{"stat -c '%a %F' $D/stats/disk", "400 regular empty file"},
		{"stat -c '%a' $D $D/stats", "700\n500"},
		{"cat $D/stats/disk; cat $D/stats/disk", "opened 1\nopened 2"},
		{"wc -c <$D/stats/long; uniq $D/stats/long", "320000\n0123456789abcde"},
		{"sha256sum <$D/disk", disk.sum() + "  -"},
		{"sha256sum <$D/memory", memory.sum() + "  -"},
		{"dd if=$D/disk bs=64k iflag=direct status=none | sha256sum", disk.sum() + "  -"},
		{"stat -f -c '%s %b %f' $D/disk", "4096 1025 0"},
		{"findmnt -n -o SOURCE,FSTYPE $D", "isr    fuse.isr"},
	} {
		if strings.Contains(tt.want, "root") && os.Geteuid() != 0 {
			continue
		}
		if got := mustSh(t, m.Dir(), tt.script); got != tt.want {
			t.Errorf("%s: got %q, want %q", tt.script, got, tt.want)
		}
	}
}

func TestWritesAndRefusals(t *testing.T) {
	disk := newMemImage(1<<20 + 100)
	m := mountTest(t, map[string]Image{"disk": disk}, map[string]func() []byte{"x": func() []byte { return nil }})
	before := disk.sum()
	for _, tt := range []struct{ script, wantErr string }{
		{"printf x | dd of=$D/disk bs=1 seek=1048676 conv=notrunc status=none", "No space left"},
		{"dd if=/dev/zero of=$D/disk bs=4096 seek=1000 count=1 conv=notrunc status=none", "No space left"},
		{"truncate -s 5 $D/disk", "not permitted"},
		{"truncate -s +1 $D/disk", "not permitted"},
		{"truncate -s 1048676 $D/disk", ""},
		{": >$D/disk", "not permitted"},
		{"chmod 644 $D/disk", "not permitted"},
		{"rm -f $D/disk", "not permitted"},
		{"rm -f $D/stats/x", "not permitted"},
		{"rmdir $D/stats", "not permitted"},
		{"mv $D/disk $D/stats/disk", "not permitted"},
		{"mv -T $D/stats $D/other", "not permitted"},
		{"touch $D/new", "Read-only"},
		{"touch $D/disk", ""},
		{"fallocate -p -o 0 -l 4096 $D/disk", "unsupported"},
	} {
		out, err := sh(t, m.Dir(), tt.script)
		if tt.wantErr == "" && err != nil || tt.wantErr != "" && (err == nil || !strings.Contains(out, tt.wantErr)) {
			t.Errorf("%s: got %v %q, want %q", tt.script, err, out, tt.wantErr)
		}
	}
	if out, err := sh(t, m.Dir(), "echo >>$D/stats/x"); err == nil {
		t.Errorf("write to counters: %q", out)
	}
	if got := disk.sum(); got != before {
		t.Error("a refused operation changed the image")
	}
	// A write that ends past the end is cut there, and said to be.
	out, err := sh(t, m.Dir(), "head -c 200 /dev/zero | dd of=$D/disk bs=200 oflag=seek_bytes seek=1048576 conv=notrunc status=none")
	if err == nil || !strings.Contains(out, "No space left") {
		t.Errorf("write over the end: %v %q, want no space", err, out)
	}
	if !disk.zero(1<<20, 1<<20+100) {
		t.Error("the part before the end was not written")
	}
	if n := disk.flushes.Load(); n != 0 {
		t.Errorf("%d flushes without fsync", n)
	}
	for i, script := range []string{
		"dd if=/dev/zero of=$D/disk bs=4k count=3 seek=5 conv=notrunc,fsync status=none",
		"dd if=/dev/zero of=$D/disk bs=4k count=3 seek=9 conv=notrunc,fdatasync status=none",
	} {
		mustSh(t, m.Dir(), script)
		if n := disk.flushes.Load(); n != int64(i+1) {
			t.Errorf("%s: %d flushes, want %d", script, n, i+1)
		}
	}
	if !disk.zero(5<<12, 8<<12) {
		t.Error("written bytes did not arrive")
	}
	if got, want := mustSh(t, m.Dir(), "sha256sum <$D/disk"), disk.sum()+"  -"; got != want {
		t.Errorf("after writing: %s, want %s", got, want)
	}
}

// gate stops every read that touches [from, to) until it is opened.
type gate struct {
	from, to int64
	arrived  chan int64
	open     chan struct{}
}

func newGate(from, to int64) *gate {
	return &gate{from, to, make(chan int64, 10000), make(chan struct{})}
}

func (g *gate) hook(ctx context.Context, off int64, n int) error {
	if off+int64(n) <= g.from || off >= g.to {
		return nil
	}
	g.arrived <- off
	select {
	case <-g.open:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// TestBlockedReadsHoldUpNoOthers sends more read-ahead and more plain reads
// into a stall than any default limit allows.
func TestBlockedReadsHoldUpNoOthers(t *testing.T) {
	const stalled = 200
	disk := newMemImage(64 << 20)
	g := newGate(0, 60<<20)
	disk.onRead(g.hook)
	m := mountTest(t, map[string]Image{"disk": disk}, nil)
	h := startHelper(t, "readers", filepath.Join(m.Dir(), "disk"), strconv.Itoa(stalled))
	for range stalled {
		select {
		case <-g.arrived:
		case <-time.After(time.Minute):
			t.Fatal("reads queue up behind stalled ones")
		}
	}
	mustSh(t, m.Dir(), "dd if=$D/disk bs=1M skip=60 count=4 of=/dev/null status=none")
	mustSh(t, m.Dir(), "dd if=/dev/zero of=$D/disk bs=1M seek=61 count=1 conv=notrunc,fsync status=none")
	mustSh(t, m.Dir(), "stat $D/disk; ls $D; df $D")
	close(g.open)
	if line := h.line(t); line != "done" {
		t.Errorf("readers: %q", line)
	}
}

// gatedImage stops all reads, and says how each stopped read ended.
func gatedImage() (*memImage, *gate, chan error) {
	disk := newMemImage(1 << 20)
	g := newGate(0, 1<<20)
	ended := make(chan error, 1000)
	disk.onRead(func(ctx context.Context, off int64, n int) error {
		err := g.hook(ctx, off, n)
		ended <- err
		return err
	})
	return disk, g, ended
}

func TestKillCancelsTheRead(t *testing.T) {
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGHUP, syscall.SIGKILL} {
		disk, g, ended := gatedImage()
		m := mountTest(t, map[string]Image{"disk": disk}, nil)
		cmd := exec.Command("dd", "if="+filepath.Join(m.Dir(), "disk"), "of=/dev/null", "bs=4k", "count=1", "iflag=direct", "status=none")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		<-g.arrived
		cmd.Process.Signal(sig)
		select {
		case err := <-ended:
			if err != context.Canceled {
				t.Errorf("%v: context of the read of a killed process: %v", sig, err)
			}
		case <-time.After(30 * time.Second):
			t.Errorf("%v did not reach the image", sig)
		}
		cmd.Wait()
	}
}

// TestSignalsDoNotReachAPageFault: a process that handles a signal goes on to
// wait for its page. The helper's runtime sends itself one every 10 ms.
func TestSignalsDoNotReachAPageFault(t *testing.T) {
	disk, g, ended := gatedImage()
	m := mountTest(t, map[string]Image{"disk": disk}, nil)
	h := startHelper(t, "fault", filepath.Join(m.Dir(), "disk"))
	if line := h.line(t); line != "ready" {
		t.Fatal(line)
	}
	<-g.arrived
	select {
	case err := <-ended:
		t.Fatalf("a signal ended the read: %v", err)
	case <-time.After(3 * dyingPoll): // would have been seen by then
	}
	close(g.open)
	if err := <-ended; err != nil {
		t.Errorf("the read ended with %v", err)
	}
	disk.mu.Lock()
	want := fmt.Sprint("page ", disk.b[0])
	disk.mu.Unlock()
	if line := h.line(t); line != want {
		t.Errorf("helper: %q, want %q", line, want)
	}
	// One that was interrupted before and is killed now is let go, too.
	g2 := newGate(0, 1<<20)
	disk.onRead(func(ctx context.Context, off int64, n int) error {
		err := g2.hook(ctx, off, n)
		ended <- err
		return err
	})
	h.say(t, "next")
	<-g2.arrived
	select {
	case err := <-ended:
		t.Fatalf("a signal ended the read: %v", err)
	case <-time.After(dyingPoll):
	}
	h.cmd.Process.Kill()
	h.cmd.Wait()
	if err := <-ended; err != context.Canceled {
		t.Errorf("killed after a signal: %v", err)
	}
}

func TestErrorsReachTheReader(t *testing.T) {
	disk := newMemImage(1 << 20)
	for _, tt := range []struct {
		err  error
		want string
	}{
		{fmt.Errorf("disk: %w", syscall.ENOSPC), "No space left"},
		{fmt.Errorf("anything"), "Input/output error"},
	} {
		disk.onRead(func(context.Context, int64, int) error { return tt.err })
		m := mountTest(t, map[string]Image{"disk": disk}, nil)
		if out, err := sh(t, m.Dir(), "dd if=$D/disk of=/dev/null iflag=direct bs=4k count=1"); err == nil || !strings.Contains(out, tt.want) {
			t.Errorf("%v: reader saw %q, want %q", tt.err, out, tt.want)
		}
		// Nothing of the failure is kept.
		disk.onRead(func(context.Context, int64, int) error { return nil })
		if got, want := mustSh(t, m.Dir(), "sha256sum <$D/disk"), disk.sum()+"  -"; got != want {
			t.Errorf("after the error: %s, want %s", got, want)
		}
	}
}

func TestCloseOfABusyMount(t *testing.T) {
	disk := newMemImage(1 << 20)
	g := newGate(1<<19, 1<<20)
	disk.onRead(g.hook)
	m := mountTest(t, map[string]Image{"disk": disk}, nil)
	h := startHelper(t, "hold", filepath.Join(m.Dir(), "disk"))
	if line := h.line(t); line != "read" {
		t.Fatalf("holder: %q", line)
	}
	<-g.arrived // its second read is stuck
	closed := make(chan error, 1)
	go func() { closed <- m.Close() }()
	if line := h.line(t); !strings.Contains(line, "input/output error") && !strings.Contains(line, "interrupted") {
		t.Errorf("stuck reader saw %q", line)
	}
	select {
	case err := <-closed:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(30 * time.Second):
		t.Fatal("close waits for a user of the mount")
	}
	if out := mustSh(t, m.Dir(), "ls -A $D"); out != "" {
		t.Errorf("still mounted: %q", out)
	}
	h.say(t, "again")
	if line := h.line(t); line == "ok" {
		t.Errorf("image is read after Close")
	}
	if err := m.Close(); err != nil {
		t.Errorf("second close: %v", err)
	}
}

// TestStaleMountIsRecovered kills a server that has children.
func TestStaleMountIsRecovered(t *testing.T) {
	needFuse(t)
	dir := t.TempDir()
	if Stale(dir) {
		t.Fatal("an empty directory is stale")
	}
	h := startHelper(t, "serve", dir)
	line := h.line(t)
	child, err := strconv.Atoi(line)
	if err != nil {
		t.Fatalf("server: %q", line)
	}
	defer syscall.Kill(child, syscall.SIGKILL)
	mustSh(t, dir, "cmp -n 100 $D/disk /dev/zero")
	if out, err := sh(t, dir, "stat -f $D >/dev/null"); err != nil {
		t.Fatal(out)
	}
	h.cmd.Process.Kill()
	h.cmd.Wait()
	if !Stale(dir) {
		t.Fatal("mount of a killed server is not stale")
	}
	if err := Recover(dir); err != nil {
		t.Fatal(err)
	}
	if Stale(dir) {
		t.Fatal("still stale")
	}
	// The directory can be mounted again.
	m, err := New(dir, map[string]Image{"disk": newMemImage(4096)}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	if err := Recover(dir); err != nil {
		t.Fatal(err)
	}
}

func TestInvalidateReachesPrivateMappings(t *testing.T) {
	memory := newMemImage(4 << 20)
	m := mountTest(t, map[string]Image{"memory": memory}, nil)
	h := startHelper(t, "map", filepath.Join(m.Dir(), "memory"))
	want := func(what string, a, b byte) {
		t.Helper()
		if line := h.line(t); line != fmt.Sprint(a, " ", b) {
			t.Errorf("%s: mapping holds %s, want %d %d", what, line, a, b)
		}
	}
	memory.mu.Lock()
	a, b := memory.b[0], memory.b[1<<20]
	memory.mu.Unlock()
	want("at first", a, b+1) // the helper adds 1 to the second
	memory.mu.Lock()
	memory.b[0]++
	memory.b[1<<20] += 7
	memory.mu.Unlock()
	h.say(t, "look")
	want("before Invalidate", a, b+1)
	if err := m.Invalidate("memory"); err != nil {
		t.Fatal(err)
	}
	h.say(t, "look")
	want("after Invalidate", a+1, b+1)
	if err := m.Invalidate("disk"); err == nil {
		t.Error("invalidate of no image: no error")
	}
}

func TestPreloadedPagesAreNotAskedFor(t *testing.T) {
	memory := newMemImage(4 << 20)
	m := mountTest(t, map[string]Image{"memory": memory}, nil)
	if err := m.Preload("memory", make([]byte, 1<<20), 1<<20); err != nil { // nobody has looked at it yet
		t.Fatal(err)
	}
	mustSh(t, m.Dir(), "stat $D/memory")
	if err := m.Preload("memory", make([]byte, 1<<20), 1<<20); err != nil {
		t.Fatal(err)
	}
	mustSh(t, m.Dir(), "dd if=$D/memory bs=1M skip=1 count=1 status=none | cmp -n 1048576 - /dev/zero")
	if n := memory.reads.Load(); n != 0 {
		t.Errorf("%d reads of what was preloaded", n)
	}
	if err := m.Preload("disk", nil, 0); err == nil {
		t.Error("preload of no image: no error")
	}
}

// TestTouchReadsLittleAround: a page touched in a mapping should not bring in
// what lies in other chunks.
func TestTouchReadsLittleAround(t *testing.T) {
	memory := newMemImage(4 << 20)
	var asked atomic.Int64
	memory.onRead(func(_ context.Context, _ int64, n int) error { asked.Add(int64(n)); return nil })
	m := mountTest(t, map[string]Image{"memory": memory}, nil)
	startHelper(t, "map", filepath.Join(m.Dir(), "memory")).line(t) // touches two pages
	if got := asked.Load(); got < 2*4096 || got > 2*maxReadAhead {
		t.Errorf("two touches read %d bytes, want %d or fewer", got, 2*maxReadAhead)
	}
}

// TestUnprivileged mounts through fusermount3, with a device that anybody may
// open, as distributions have it.
func TestUnprivileged(t *testing.T) {
	needFuse(t)
	if os.Geteuid() != 0 {
		t.Skip("needs root to become somebody else")
	}
	for _, tool := range []string{"unshare", "setpriv", "fusermount3", "mknod"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skip(err)
		}
	}
	dir, err := os.MkdirTemp("", "fusefs")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	// A copy of this binary where the user can reach it.
	script := `set -e
mount -t tmpfs tmpfs $D
mkdir $D/m; cp ` + os.Args[0] + ` $D/helper; mknod $D/fuse c 10 229; chmod 666 $D/fuse; chmod 755 $D $D/helper; chown 65534:65534 $D/m
mount --bind $D/fuse /dev/fuse
exec setpriv --reuid 65534 --regid 65534 --clear-groups env FUSEFS_HELPER=once $D/helper $D/m`
	cmd := exec.Command("unshare", "-m", "sh", "-c", script)
	cmd.Env = append(os.Environ(), "D="+dir)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if got, want := strings.TrimSpace(string(out)), "600 nobody\nclosed"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestNewRefusesBadNames(t *testing.T) {
	for _, name := range []string{"stats", "", "a/b", ".."} {
		if name == ".." {
			continue // a base name, but never ours
		}
		if m, err := New(t.TempDir(), map[string]Image{name: newMemImage(1)}, nil); err == nil {
			m.Close()
			t.Errorf("image called %q: mounted", name)
		}
	}
	needFuse(t)
	if m, err := New(filepath.Join(t.TempDir(), "none"), nil, nil); err == nil {
		m.Close()
		t.Error("mounted at a directory that does not exist")
	}
}

// helper is a child process that talks by lines.
type helper struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

func startHelper(t testing.TB, what string, args ...string) *helper {
	t.Helper()
	h := &helper{cmd: exec.Command(os.Args[0], args...)}
	h.cmd.Env = append(os.Environ(), "FUSEFS_HELPER="+what)
	h.cmd.Stderr = os.Stderr
	h.in, _ = h.cmd.StdinPipe()
	out, _ := h.cmd.StdoutPipe()
	h.out = bufio.NewReader(out)
	if err := h.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		h.cmd.Process.Kill()
		h.cmd.Wait()
	})
	return h
}

func (h *helper) line(t testing.TB) string {
	t.Helper()
	s, err := h.out.ReadString('\n')
	if err != nil {
		t.Fatalf("helper: %v after %q", err, s)
	}
	return strings.TrimSpace(s)
}

func (h *helper) say(t testing.TB, s string) {
	t.Helper()
	if _, err := fmt.Fprintln(h.in, s); err != nil {
		t.Fatal(err)
	}
}

func helperMain(what string) {
	die := func(err error) {
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
	}
	in := bufio.NewScanner(os.Stdin)
	switch what {
	case "readers": // half of them by read-ahead, which nobody waits for
		f, err := os.Open(os.Args[1])
		die(err)
		n, err := strconv.Atoi(os.Args[2])
		die(err)
		var wg sync.WaitGroup
		for i := range n {
			off := int64(i) * 256 << 10
			if i%2 == 0 {
				wg.Go(func() { die(unix.Fadvise(int(f.Fd()), off, 64<<10, unix.FADV_WILLNEED)) })
				continue
			}
			wg.Go(func() {
				_, err := f.ReadAt(make([]byte, 4096), off)
				die(err)
			})
		}
		wg.Wait()
		fmt.Println("done")
	case "hold":
		fd, err := unix.Open(os.Args[1], unix.O_RDONLY|unix.O_DIRECT, 0)
		die(err)
		b, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
		die(err)
		_, err = unix.Pread(fd, b, 0)
		die(err)
		fmt.Println("read")
		_, err = unix.Pread(fd, b, 1<<19)
		fmt.Println(err)
		in.Scan()
		if _, err = unix.Pread(fd, b, 0); err != nil {
			fmt.Println(err)
		} else {
			fmt.Println("ok")
		}
		in.Scan()
	case "serve":
		im := &memImage{b: make([]byte, 1<<20)}
		_, err := New(os.Args[1], map[string]Image{"disk": im}, nil)
		die(err)
		child := exec.Command("sleep", "600")
		die(child.Start())
		fmt.Println(child.Process.Pid)
		in.Scan()
	case "map":
		f, err := os.Open(os.Args[1])
		die(err)
		b, err := unix.Mmap(int(f.Fd()), 0, 4<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE)
		die(err)
		b[1<<20]++
		fmt.Println(b[0], b[1<<20])
		for in.Scan() {
			fmt.Println(b[0], b[1<<20])
		}
	case "fault":
		f, err := os.Open(os.Args[1])
		die(err)
		b, err := unix.Mmap(int(f.Fd()), 0, 1<<20, unix.PROT_READ, unix.MAP_PRIVATE)
		die(err)
		die(unix.Madvise(b, unix.MADV_RANDOM)) // or the kernel reads in the background
		debug.SetGCPercent(-1)                 // it would wait for the fault
		fmt.Println("ready")
		fmt.Println("page", b[0])
		in.Scan()
		fmt.Println("page", b[1<<19])
	case "once":
		im := newMemImage(1 << 20)
		m, err := New(os.Args[1], map[string]Image{"disk": im}, nil)
		die(err)
		out, err := exec.Command("stat", "-c", "%a %U", m.Dir()+"/disk").CombinedOutput()
		os.Stdout.Write(out)
		die(err)
		die(m.Close())
		fmt.Println("closed")
	}
}
