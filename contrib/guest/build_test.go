package guest_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"isr/contrib/guest"
)

// patience is for one step of a guest without hardware acceleration, beside
// two others, on a host with far more to do. No test waits for it unless
// something is wrong.
const patience = 10 * time.Minute

func within(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

// A vmm is one running QEMU.
type vmm struct {
	t    *testing.T
	cmd  *exec.Cmd
	said bytes.Buffer
	qmp  net.Conn
	in   *bufio.Reader
	done chan struct{}
}

// start starts QEMU with the arguments, without a display, and a control
// socket; it is killed at the end of the test if it is still there. The guest
// waits for run, so that nobody misses what it prints.
func start(t *testing.T, args ...string) *vmm {
	t.Helper()
	control := filepath.Join(socketDir(t), "qmp")
	base := []string{"-accel", "tcg", "-display", "none", "-nodefaults", "-no-user-config", "-S",
		"-qmp", "unix:" + control + ",server=on,wait=off"}
	v := &vmm{t: t, cmd: exec.Command("qemu-system-x86_64", append(base, args...)...), done: make(chan struct{})}
	v.cmd.Stdout, v.cmd.Stderr = &v.said, &v.said
	if err := v.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { _ = v.cmd.Wait(); close(v.done) }()
	t.Cleanup(func() {
		v.kill()
		if v.said.Len() > 0 {
			t.Logf("qemu: %s", v.said.Bytes())
		}
	})
	for {
		conn, err := net.Dial("unix", control)
		if err == nil {
			v.qmp, v.in = conn, bufio.NewReader(conn)
			break
		}
		select {
		case <-v.done:
			t.Fatalf("qemu ended: %s", v.said.Bytes())
		case <-time.After(10 * time.Millisecond):
		}
	}
	t.Cleanup(func() { _ = v.qmp.Close() })
	v.ask("qmp_capabilities", nil)
	return v
}

func (v *vmm) run() {
	v.t.Helper()
	v.ask("cont", nil)
}

func (v *vmm) kill() {
	_ = v.cmd.Process.Kill()
	<-v.done
}

func (v *vmm) ask(command string, arguments any) map[string]any {
	v.t.Helper()
	m := map[string]any{"execute": command}
	if arguments != nil {
		m["arguments"] = arguments
	}
	b, err := json.Marshal(m)
	if err != nil {
		v.t.Fatal(err)
	}
	if _, err := v.qmp.Write(b); err != nil {
		v.t.Fatalf("%s: %v", command, err)
	}
	for {
		msg := v.next()
		if e, ok := msg["error"]; ok {
			v.t.Fatalf("%s: %v", command, e)
		}
		if r, ok := msg["return"]; ok {
			m, _ := r.(map[string]any)
			return m
		}
	}
}

func (v *vmm) next() map[string]any {
	v.t.Helper()
	_ = v.qmp.SetReadDeadline(time.Now().Add(patience))
	line, err := v.in.ReadBytes('\n')
	if err != nil {
		v.t.Fatalf("qmp: %v: %s", err, v.said.Bytes())
	}
	var msg map[string]any
	if err := json.Unmarshal(line, &msg); err != nil {
		v.t.Fatalf("qmp: %v", err)
	}
	return msg
}

// migrated waits for the migration to end, and fails unless it succeeded.
func (v *vmm) migrated() {
	v.t.Helper()
	for {
		msg := v.next()
		if msg["event"] != "MIGRATION" {
			continue
		}
		switch status := msg["data"].(map[string]any)["status"]; status {
		case "completed":
			return
		case "failed", "cancelled":
			v.t.Fatalf("migration %v", status)
		}
	}
}

// socketDir is short, as names of sockets must be.
func socketDir(t *testing.T) string {
	dir, err := os.MkdirTemp("", "g")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func serial(t *testing.T) (path string, args []string) {
	path = filepath.Join(socketDir(t), "tty")
	return path, []string{"-serial", "unix:" + path + ",server=on,wait=off"}
}

func drive(image, bus string) []string {
	return []string{"-drive", "file=" + image + ",format=raw,if=" + bus}
}

func machine(mib int) []string { return []string{"-M", "pc", "-m", strconv.Itoa(mib)} }

func join(parts ...[]string) (all []string) {
	for _, p := range parts {
		all = append(all, p...)
	}
	return all
}

func shown(t *testing.T, c *guest.Console) *guest.Console {
	t.Cleanup(func() {
		_ = c.Close()
		if t.Failed() {
			t.Logf("console:\n%s", c.Log())
		}
	})
	return c
}

func connect(t *testing.T, path string) *guest.Console {
	t.Helper()
	c, err := guest.Dial(within(t), path)
	if err != nil {
		t.Fatal(err)
	}
	return shown(t, c)
}

func command(t *testing.T, c *guest.Console, line string) string {
	t.Helper()
	began := time.Now()
	got, err := c.Command(within(t), line)
	if err != nil {
		t.Fatalf("%s: %v", line, err)
	}
	if d := time.Since(began); d > 2*time.Second {
		t.Logf("%s took %.1f s", line, d.Seconds())
	}
	return got
}

func wantTick(t *testing.T, c *guest.Console, min int) int {
	t.Helper()
	n, err := c.WaitTick(within(t), min)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func wantBoot(t *testing.T, c *guest.Console, boots, last int) {
	t.Helper()
	k, m, err := c.WaitBoot(within(t), boots)
	if err != nil {
		t.Fatal(err)
	}
	if k != boots || m != last {
		t.Errorf("got boot %d last %d, want boot %d last %d", k, m, boots, last)
	}
}

var hexSum = regexp.MustCompile(`^[0-9a-f]{64}$`)

func TestGuestDoesAsItIsTold(t *testing.T) {
	t.Parallel()
	image := guest.Image(t, "--fill", "9", "--scatter", "8")
	tty, line := serial(t)
	began := time.Now()
	args := join(machine(256), drive(image, "virtio"), line)
	v := start(t, args...)
	c := connect(t, tty)
	v.run()
	wantBoot(t, c, 1, 0)
	wantTick(t, c, 1)
	t.Logf("first tick after %.1f s", time.Since(began).Seconds())

	if got, want := command(t, c, "echo  two  words\\n"), " two  words\\n"; got != want {
		t.Errorf("echo: got %q, want %q", got, want)
	}

	// Files, and what the disk holds of them: see onDisk below.
	a := command(t, c, "sum /fill/0")
	sum, path, _ := strings.Cut(a, " ")
	if !hexSum.MatchString(sum) || path != "/fill/0" {
		t.Errorf("sum: got %q", a)
	}
	if again := command(t, c, "sum /fill/0"); again != a {
		t.Errorf("sum again: got %q, want %q", again, a)
	}
	if other, _, _ := strings.Cut(command(t, c, "sum /fill/1"), " "); other == sum {
		t.Error("/fill/0 and /fill/1 are equal")
	}
	if got, want := command(t, c, "read /fill/2"), "1048576 /fill/2"; got != want {
		t.Errorf("read: got %q, want %q", got, want)
	}
	command(t, c, "write /data/note  a text")
	if got, want := command(t, c, "cat /data/note"), " a text"; got != want {
		t.Errorf("cat: got %q, want %q", got, want)
	}
	digest := sha256.Sum256([]byte(" a text\n"))
	if got, want := command(t, c, "sum /data/note"), hex.EncodeToString(digest[:])+" /data/note"; got != want {
		t.Errorf("sum: got %q, want %q", got, want)
	}
	if got, want := command(t, c, "disk 3"), "3 /data/disk1"; got != want {
		t.Errorf("disk: got %q, want %q", got, want)
	}
	if got, want := command(t, c, "disk 1"), "1 /data/disk2"; got != want {
		t.Errorf("disk: got %q, want %q", got, want)
	}
	if got, want := command(t, c, "read /data/disk1"), "3145728 /data/disk1"; got != want {
		t.Errorf("read: got %q, want %q", got, want)
	}
	command(t, c, "rm /data/disk2")

	before, _, _ := strings.Cut(command(t, c, "sum /data/scatter"), " ")
	if got, want := command(t, c, "scatter 30"), "30"; got != want {
		t.Errorf("scatter: got %q, want %q", got, want)
	}
	if after, _, _ := strings.Cut(command(t, c, "sum /data/scatter"), " "); after == before {
		t.Error("scatter changed nothing")
	}
	command(t, c, "scatter 64 scattered text")

	// Memory.
	if got, want := command(t, c, "mem 24"), "24"; got != want {
		t.Errorf("mem: got %q, want %q", got, want)
	}
	first := command(t, c, "memsum")
	if sum, mib, _ := strings.Cut(first, " "); !hexSum.MatchString(sum) || mib != "24" {
		t.Errorf("memsum: got %q", first)
	}
	if again := command(t, c, "memsum"); again != first {
		t.Errorf("memsum again: got %q, want %q", again, first)
	}
	var total, free, available, more int
	if _, err := fmt.Sscan(command(t, c, "free"), &total, &free, &available); err != nil || total < 200<<10 || available > total {
		t.Errorf("free: got %d %d %d, %v", total, free, available, err)
	}
	command(t, c, "mem 25")
	if again := command(t, c, "memsum"); again == first {
		t.Error("mem filled memory with the same again")
	}
	command(t, c, "memfree")
	_, _ = fmt.Sscan(command(t, c, "free"), &total, &free, &more)
	if more < available+20<<10 {
		t.Errorf("memfree: available was %d KiB and is %d", available, more)
	}
	command(t, c, "memtext kept in memory")
	if got, want := command(t, c, "cat /mem/text"), "kept in memory"; got != want {
		t.Errorf("cat: got %q, want %q", got, want)
	}
	command(t, c, "sync")

	for _, bad := range []string{"sum /nowhere", "sum /data", "sum", "read /nowhere", "cat /nowhere",
		"write /nowhere/x y", "rm /nowhere", "disk x", "disk -1", "disk 100000", "scatter x", "scatter 65",
		"mem x", "mem 010", "mem 1000", "memsum", "dance", "tick 5"} {
		word, _, _ := strings.Cut(bad, " ")
		got, err := c.Command(within(t), bad)
		var refused *guest.RefusedError
		if !errors.As(err, &refused) || refused.Command != word || refused.Reason == "" {
			t.Errorf("%s: got %q, %v; want it refused", bad, got, err)
		}
	}
	if got, want := command(t, c, "echo "+strings.Repeat("x", 1995)), strings.Repeat("x", 1995); got != want {
		t.Errorf("echo: got %d bytes, want %d", len(got), len(want))
	}

	// The next boot, and a clean end.
	wantTick(t, c, c.Last()+1)
	command(t, c, "reboot")
	if _, _, err := c.WaitBoot(within(t), 2); err != nil {
		t.Fatal(err)
	}
	wantTick(t, c, 1)
	ticks := regexp.MustCompile(`(?m)^tick (\d+)\nok reboot\n(?:\[.*\n)*boot 2 last (\d+)\n`).FindSubmatch(c.Log())
	if ticks == nil || !bytes.Equal(ticks[1], ticks[2]) {
		t.Errorf("got %q before the second boot, want the same tick twice", ticks)
	}
	if got, want := command(t, c, "cat /data/note"), " a text"; got != want {
		t.Errorf("cat: got %q, want %q", got, want)
	}
	command(t, c, "poweroff")
	if err := c.WaitEnd(within(t)); err != nil {
		t.Fatal(err)
	}
	<-v.done
	if err := c.Check(); err != nil {
		t.Error(err)
	}
	onDisk(t, image, c.Last())
}

// onDisk looks at the image of a guest that is off, from outside.
func onDisk(t *testing.T, image string, last int) {
	t.Helper()
	part := image + "?offset=1048576"
	dump := func(path string) []byte {
		to := filepath.Join(t.TempDir(), "dump")
		if b, err := exec.Command("/sbin/debugfs", "-R", "dump "+path+" "+to, part).CombinedOutput(); err != nil {
			t.Fatalf("debugfs: %v: %s", err, b)
		}
		b, err := os.ReadFile(to)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	if got, want := strings.TrimSpace(string(dump("/data/tick"))), strconv.Itoa(last); got != want {
		t.Errorf("/data/tick: got %s, want %s", got, want)
	}
	b := dump("/data/scatter")
	want := append([]byte("scattered text\n"), make([]byte, 4096-15)...)
	for at := 0; at < len(b); at += 128 << 10 {
		if !bytes.Equal(b[at:at+4096], want) {
			t.Errorf("/data/scatter at %d: got %.20q", at, b[at:])
			break
		}
		if bytes.Contains(b[at+4096:at+128<<10], []byte("scattered")) {
			t.Errorf("/data/scatter at %d: more than one block", at)
			break
		}
	}
}

func TestGuestLosesNoAcknowledgedTick(t *testing.T) {
	t.Parallel()
	image := guest.Image(t, "--fill", "0", "--scatter=1", "--size", "128M")
	log := filepath.Join(t.TempDir(), "console")
	args := join(machine(256), drive(image, "ide"), []string{"-serial", "file:" + log})
	c := shown(t, guest.Follow(log))
	v := start(t, args...)
	v.run()
	wantBoot(t, c, 1, 0)
	last := wantTick(t, c, 3)
	v.kill()

	start(t, args...).run()
	boots, found, err := c.WaitBoot(within(t), 2)
	if err != nil {
		t.Fatal(err)
	}
	// It may have synced one more than it had time to print.
	if boots != 2 || found < last || found > last+1 {
		t.Errorf("got boot %d last %d, want boot 2 last %d or one more", boots, found, last)
	}
	wantTick(t, c, 2)
	if err := c.Check(); err != nil {
		t.Error(err)
	}
	if _, err := c.Command(within(t), "echo x"); err == nil {
		t.Error("a file took a command")
	}
}

func TestGuestTicksOnInAnotherVMM(t *testing.T) {
	t.Parallel()
	image := guest.Image(t, "--fill", "4")
	tty, line := serial(t)
	args := join(machine(256), drive(image, "virtio"), line)
	v := start(t, args...)
	c := connect(t, tty)
	v.run()
	command(t, c, "memtext still here")
	command(t, c, "mem 16")
	sum := command(t, c, "memsum")
	before := wantTick(t, c, 2)

	state := filepath.Join(t.TempDir(), "state")
	events := map[string]any{"capabilities": []any{map[string]any{"capability": "events", "state": true}}}
	v.ask("migrate-set-capabilities", events)
	v.ask("stop", nil)
	v.ask("migrate", map[string]any{"uri": "exec:cat >" + state})
	v.migrated()
	v.kill()
	if err := c.WaitEnd(within(t)); err != nil {
		t.Fatal(err)
	}

	v = start(t, append(args, "-incoming", "defer")...)
	v.ask("migrate-set-capabilities", events)
	v.ask("migrate-incoming", map[string]any{"uri": "exec:cat " + state})
	v.migrated()
	if err := c.Redial(within(t), tty); err != nil {
		t.Fatal(err)
	}
	v.run()
	wantTick(t, c, before+3)
	if got, want := command(t, c, "cat /mem/text"), "still here"; got != want {
		t.Errorf("cat: got %q, want %q", got, want)
	}
	if got := command(t, c, "memsum"); got != sum {
		t.Errorf("memsum: got %q, want %q", got, sum)
	}
	if err := c.Check(); err != nil {
		t.Error(err)
	}
	if boots, _, err := c.WaitBoot(within(t), 1); err != nil || boots != 1 {
		t.Errorf("got boot %d, %v, want 1: it has started anew", boots, err)
	}
}

func TestBuildIsDeterministic(t *testing.T) {
	sum := func(args ...string) string {
		f, err := os.Open(guest.Image(t, append(args, "--size", "128M", "--scatter", "1")...))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		h := sha256.New()
		if _, err := io.Copy(h, f); err != nil {
			t.Fatal(err)
		}
		return hex.EncodeToString(h.Sum(nil))
	}
	one, same, other := sum("--fill", "5"), sum("--fill=5"), sum("--fill", "5", "--seed", "2")
	if one != same {
		t.Error("the same options give another image")
	}
	if one == other {
		t.Error("another seed gives the same image")
	}
}

func TestBuildRefuses(t *testing.T) {
	out := filepath.Join(t.TempDir(), "out.img")
	for _, args := range [][]string{
		{"--size", "100", out}, {"--size", "0M", out}, {"--size", "-1G", out}, {"--size", "30M", out},
		{"--size", "2T", out}, {"--fill", "x", out}, {"--fill", "1000", out}, {"--scatter", "0", out},
		{"--seed"}, {"--append", "a;b", out}, {"--what", out}, {out, out}, {},
	} {
		cmd := exec.Command("./build", args...)
		b, err := cmd.CombinedOutput()
		if code := cmd.ProcessState.ExitCode(); code != 2 || !bytes.HasPrefix(b, []byte("build: ")) {
			t.Errorf("build %q: got status %d, %v, %q; want 2 and a reason", args, code, err, b)
		}
	}
	if _, err := os.Stat(out); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s: %v, want none", out, err)
	}
	b, err := exec.Command("./build", "--help").Output()
	if err != nil || !bytes.Contains(b, []byte("--fill")) || bytes.Contains(b, []byte("set -eu")) {
		t.Errorf("build --help: %v, %q", err, b)
	}
}

// A package that apt does not know is said once, with the command to get it.
func TestBuildNamesWhatIsMissing(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("apt-get"); err != nil {
		t.Skip("no apt-get here")
	}
	err := guest.Build(within(t), filepath.Join(t.TempDir(), "out.img"), "--kernel", "linux-image-of-no-one")
	if !errors.Is(err, guest.ErrMissing) {
		t.Fatalf("got %v, want it missing", err)
	}
	for _, want := range []string{"linux-image-of-no-one", "apt-get update"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q in it", err, want)
		}
	}
	if strings.Count(err.Error(), "\n") > 0 {
		t.Errorf("got %q, want one line", err)
	}
}
