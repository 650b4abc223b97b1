package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
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

	"github.com/chromedp/chromedp"
	"github.com/creack/pty"
	"golang.org/x/sys/unix"

	"isr/client/remote/sshdtest"
)

// ptyTerminal is a program in a terminal of its own.
type ptyTerminal struct {
	t      testing.TB
	master *os.File
	tty    *os.File // kept open: what the program leaves of its modes is seen
	modes  unix.Termios
	cmd    *exec.Cmd
	said   *lockedBuffer
	ended  chan struct{}
	status int
}

// inTerminal starts a program of host in a terminal of cols by rows. more is
// for its environment.
func (w *world) inTerminal(t testing.TB, host string, cols, rows uint16, more []string, args ...string) *ptyTerminal {
	t.Helper()
	master, tty, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	x := &ptyTerminal{t: t, master: master, tty: tty, said: new(lockedBuffer), ended: make(chan struct{})}
	x.resize(cols, rows)
	x.modes = x.now()
	x.cmd = w.command(host, "isr", args...)
	x.cmd.Env = append(append(x.cmd.Env, "TERM=xterm-256color", "LANG=C.UTF-8"), more...)
	x.cmd.Stdin, x.cmd.Stdout, x.cmd.Stderr = tty, tty, tty
	x.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := x.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	read := make(chan struct{})
	go func() {
		defer close(read)
		io.Copy(x.said, master)
	}()
	go func() {
		x.status = statusOf(x.cmd, x.cmd.Wait())
		close(x.ended)
	}()
	t.Cleanup(func() {
		x.cmd.Process.Kill()
		<-x.ended
		tty.Close()
		master.Close()
		<-read
		if t.Failed() {
			t.Logf("terminal: %q", x.said.String()[max(0, len(x.said.String())-3500):])
		}
	})
	return x
}

func (x *ptyTerminal) now() unix.Termios {
	x.t.Helper()
	m, err := unix.IoctlGetTermios(int(x.tty.Fd()), unix.TCGETS)
	if err != nil {
		x.t.Fatal(err)
	}
	return *m
}

func (x *ptyTerminal) resize(cols, rows uint16) {
	x.t.Helper()
	if err := pty.Setsize(x.master, &pty.Winsize{Cols: cols, Rows: rows}); err != nil {
		x.t.Fatal(err)
	}
}

func (x *ptyTerminal) keys(s string) {
	x.t.Helper()
	if _, err := io.WriteString(x.master, s); err != nil {
		x.t.Fatal(err)
	}
}

// shows waits until the program has written what pattern matches, after from
// bytes.
func (x *ptyTerminal) shows(from int, pattern string) {
	x.t.Helper()
	re := regexp.MustCompile("(?s)" + pattern)
	within(x.t, tooLong, "the terminal shows "+pattern, func() bool { return re.MatchString(x.said.String()[from:]) })
}

// draws waits until what the program draws has what pattern matches. A
// terminal of another size is drawn whole, not only where it has changed.
func (x *ptyTerminal) draws(cols, rows uint16, pattern string) {
	x.t.Helper()
	re := regexp.MustCompile("(?s)" + pattern)
	var from int
	var drawn time.Time
	within(x.t, tooLong, "the terminal draws "+pattern, func() bool {
		if time.Since(drawn) > time.Second {
			from, drawn = len(x.said.String()), time.Now()
			x.resize(cols, rows)
			cols ^= 1
		}
		return re.MatchString(x.said.String()[from:])
	})
}

// wait waits until the program has ended, and wants the terminal to be as it
// was.
func (x *ptyTerminal) wait(status int) {
	x.t.Helper()
	select {
	case <-x.ended:
	case <-time.After(tooLong):
		x.t.Fatal("the program does not end")
	}
	if x.status != status {
		x.t.Errorf("exit status %d, want %d", x.status, status)
	}
	if got := x.now(); got != x.modes {
		x.t.Errorf("modes of the terminal are %+v, were %+v", got, x.modes)
	}
	within(x.t, tooLong, "the screen is given back", func() bool {
		s := x.said.String()
		return strings.LastIndex(s, "\x1b[?1049l") >= strings.LastIndex(s, "\x1b[?1049h") && strings.LastIndex(s, "\x1b[?25h") >= strings.LastIndex(s, "\x1b[?25l")
	})
}

// small makes a parcel of which the first MiB of the disk is objects, checked
// out on A with nothing of it there.
func (w *world) small(t testing.TB, name string) {
	t.Helper()
	w.must(t, "isr-locksrv", "parcel", "create", "alice", name, "--disk", "32M", "--memory", "8M", "--vmm", "none")
	w.disk(t, "A", name, "head -c 1M /dev/urandom | dd of=$DISK bs=128k iflag=fullblock conv=notrunc,fsync 2>/dev/null")
	w.ok(t, "A", "checkin", name)
	if err := os.RemoveAll(filepath.Join(w.dir, "A", ".isr", "hoard")); err != nil {
		t.Fatal(err)
	}
	w.ok(t, "A", "checkout", name)
}

// mount waits until the parcel runs, and tells where it is shown.
func (w *world) mount(t testing.TB, parcel string) (dir string) {
	t.Helper()
	within(t, tooLong, parcel+" runs", func() bool {
		dir = stat(t, w, "A", parcel).Mount
		return dir != "" && exists(filepath.Join(dir, "stats", "map"))
	})
	return dir
}

// doAsGuest does what a guest would, in a process of its own.
func doAsGuest(t testing.TB, line, mount string) {
	t.Helper()
	if out, err := exec.Command("sh", "-ec", line, "sh", mount).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", line, err, out)
	}
}

const (
	readHalf  = `dd if="$1/disk" of=/dev/null bs=128k count=4 2>/dev/null`
	writeMega = `dd if=/dev/zero of="$1/disk" bs=128k seek=100 count=8 conv=notrunc,fsync 2>/dev/null`
)

// TestDirtometerInTerminal: "The -D option launches the dirtometer, which
// provides a visual representation of parcel disk accesses and the resulting
// parcel state." However it ends, the terminal is as it was, and nothing is
// lost.
func TestDirtometerInTerminal(t *testing.T) {
	t.Parallel()
	w := newWorld(t, shortDir(t), "serve")
	w.home(t, "A", "alice", "alice")
	w.small(t, "box")
	keeper := func(x *ptyTerminal) int {
		x.t.Helper()
		// Children are listed by the thread that made them.
		lists, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", x.cmd.Process.Pid))
		if err != nil {
			x.t.Fatal(err)
		}
		for _, list := range lists {
			p, _ := os.ReadFile(list)
			if pid, err := strconv.Atoi(strings.TrimSpace(string(p))); err == nil {
				return pid
			}
		}
		x.t.Fatal("no keeper")
		return 0
	}
	for _, tt := range []struct {
		name   string
		args   []string
		end    func(x *ptyTerminal)
		status int
		then   string // is said when the screen is gone
	}{
		{"ctrl-c", []string{"-D"}, func(x *ptyTerminal) { x.keys("\x03") }, 0, ""},
		{"term", []string{"--dirtometer"}, func(x *ptyTerminal) { x.cmd.Process.Signal(syscall.SIGTERM) }, 0, ""},
		{"keeper-dies", []string{"-D", "-d"}, func(x *ptyTerminal) { syscall.Kill(keeper(x), syscall.SIGKILL) }, 1, "its keeper died"},
		{"q", []string{"-D"}, func(x *ptyTerminal) {
			x.keys("q")
			within(x.t, tooLong, "q gives the terminal back", func() bool { return x.now() == x.modes })
			if st := stat(x.t, w, "A", "box"); st.State != "running" {
				x.t.Errorf("after q it is %s", st.State)
			}
			x.keys("\x03")
		}, 0, ""},
		{"configured", nil, func(x *ptyTerminal) { x.keys("\x03\x03") }, 0, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.args == nil {
				rc := filepath.Join(w.dir, "A", ".openisrrc")
				text, err := os.ReadFile(rc)
				if err != nil {
					t.Fatal(err)
				}
				writeFile(t, rc, string(text)+"dirtometer = yes\n")
				defer writeFile(t, rc, string(text))
			}
			if slices.Contains(tt.args, "-d") {
				w.ok(t, "A", "hoard", "box")
			}
			x := w.inTerminal(t, "A", 80, 24, nil, append([]string{"resume", "box"}, tt.args...)...)
			x.shows(0, `\x1b\[\?1049h.*guest reads`)
			x.shows(0, `\^C suspends`)
			m := w.mount(t, "box")
			doAsGuest(t, readHalf+"\n"+writeMega, m)
			x.draws(81, 24, `modified now +[^\n]*1\.0 MiB +8 chunks.*████████`)
			x.draws(40, 12, `disk +r .*·.*absent`)
			tt.end(x)
			x.wait(tt.status)
			said := x.said.String()
			if after := said[strings.LastIndex(said, "\x1b[?1049l"):]; !strings.Contains(after, tt.then) {
				t.Errorf("said at the end: %q", after)
			}
			// What the guest flushed is kept, and runs again.
			if got := w.disk(t, "A", "box", "dd if=$DISK bs=128k skip=100 count=8 2>/dev/null | tr -d '\\0' | wc -c; isr uuid box >&2"); strings.TrimSpace(got) != "0" {
				t.Errorf("the disk has %s", got)
			}
			if st := stat(t, w, "A", "box"); st.Images["disk"].Modified.Chunks != 8 {
				t.Errorf("modified %+v", st.Images["disk"].Modified)
			}
			w.ok(t, "A", "discard", "box", "--yes")
		})
	}
	w.wantClean(t)
}

// TestDirtometerAndVMM: what a VMM prints is said when the screen is gone,
// however short the run, and a front that is killed takes nobody along.
func TestDirtometerAndVMM(t *testing.T) {
	t.Parallel()
	w := newQuickWorld(t, shortDir(t), "serve")
	w.home(t, "A", "alice", "alice")
	w.must(t, "isr-locksrv", "parcel", "create", "alice", "box", "--disk", "4M", "--memory", "4M", "--vmm", "toy")
	for n := 1; n <= 4; n++ {
		x := w.inTerminal(t, "A", 80, 24, nil, "resume", "box", "-D")
		x.wait(0)
		x.shows(0, fmt.Sprintf(`isr: toy: count %d, the disk says %d *\r\n.*isr: toy: wrote %[1]d\r\n`, n, n-1))
		if st := stat(t, w, "A", "box"); st.State != "suspended" {
			t.Fatalf("after run %d it is %s", n, st.State)
		}
	}
	w.ok(t, "A", "poweroff", "box", "--yes")
	x := w.inTerminal(t, "A", 80, 24, nil, "resume", "box", "-D", "-m", "none")
	x.shows(0, `\^C suspends`)
	doAsGuest(t, `printf 0123 | dd of="$1/disk" bs=1 seek=4096 conv=notrunc 2>/dev/null`, w.mount(t, "box"))
	x.cmd.Process.Kill()
	<-x.ended
	within(t, tooLong, "its keeper puts it away", func() bool { return stat(t, w, "A", "box").State == "powered off, modified" })
	if got := w.disk(t, "A", "box", "dd if=$DISK bs=1 skip=4096 count=4 2>/dev/null"); got != "0123" {
		t.Errorf("the disk has %q", got)
	}
	w.wantClean(t)
}

// TestDirtometerAttached: another terminal looks on, and leaves, and the
// parcel does not mind.
func TestDirtometerAttached(t *testing.T) {
	t.Parallel()
	w := newQuickWorld(t, shortDir(t), "serve")
	w.home(t, "A", "alice", "alice")
	w.small(t, "box")
	front := w.inTerminal(t, "A", 80, 24, []string{"TERM=dumb"}, "resume", "box", "-D")
	front.shows(0, `box; disk: read 0 B`) // a line a second, where no screen is to be had
	m := w.mount(t, "box")
	for _, leave := range []string{"q", "\x03"} {
		x := w.inTerminal(t, "A", 200, 60, []string{"NO_COLOR=1", "LC_ALL=C"}, "dirtometer", "box")
		x.shows(0, `guest reads`)
		x.shows(0, `q leaves`)
		x.keys(leave)
		x.wait(0)
		if s := x.said.String(); strings.ContainsAny(s, "░█·") || regexp.MustCompile(`\x1b\[[0-9;]*3[0-7]m`).MatchString(s) {
			t.Errorf("colours, or more than ASCII")
		}
	}
	if st := stat(t, w, "A", "box"); st.State != "running" {
		t.Fatalf("it is %s", st.State)
	}
	// A hoard beside it is seen.
	x := w.inTerminal(t, "A", 80, 24, nil, "dirtometer", "box")
	x.shows(0, `guest reads`)
	w.ok(t, "A", "hoard", "box")
	x.shows(0, `100%`)
	doAsGuest(t, writeMega, m)
	front.keys("\x03")
	front.wait(0)
	x.wait(0)
	x.shows(0, `isr: parcel box: powered off, modified`)
	w.wantClean(t)
}

// TestDirtometerPage opens the page in a real browser.
func TestDirtometerPage(t *testing.T) {
	t.Parallel()
	sshdtest.Require(t, "chromium")
	w := newQuickWorld(t, shortDir(t), "serve")
	w.home(t, "A", "alice", "alice")
	w.small(t, "box")
	resume := w.command("A", "isr", "resume", "box", "-D")
	url := addressOf(t, resume, resume.StderrPipe)
	m := w.mount(t, "box")

	allocator, stop := chromedp.NewExecAllocator(t.Context(), chromedp.Headless, chromedp.NoSandbox, chromedp.DisableGPU,
		chromedp.NoFirstRun, chromedp.UserDataDir(t.TempDir()), chromedp.WindowSize(1280, 1000), chromedp.ExecPath("chromium"),
		chromedp.Flag("disable-quic", true), chromedp.Flag("disable-background-networking", true),
		chromedp.Flag("disable-component-update", true), chromedp.Flag("disable-sync", true))
	defer stop()
	ctx, stop := chromedp.NewContext(allocator)
	defer stop()
	listening, silent := context.WithCancel(ctx)
	defer silent()
	console := chromedp.Console(listening)
	if err := chromedp.Do(ctx, chromedp.Navigate(url), chromedp.WaitVisible("#disk-map")); err != nil {
		t.Fatal(err)
	}
	eval := func(js string) string {
		t.Helper()
		s, err := chromedp.Run(ctx, chromedp.Evaluate[string](js))
		if err != nil {
			t.Fatalf("%s: %v", js, err)
		}
		return s
	}
	text := func(id string) string { t.Helper(); return eval(`document.getElementById("` + id + `").textContent`) }
	becomes := func(id, want string) {
		t.Helper()
		within(t, tooLong, id+" becomes "+want, func() bool { return strings.Contains(text(id), want) })
	}
	becomes("parcel", "box")
	becomes("status", "live")
	if got := eval("location.pathname + document.cookie"); got != "/" {
		t.Errorf("the page is at %q, with cookies for its script", got)
	}
	// It is live.
	if got := text("disk-written"); got != "0 B" {
		t.Errorf("written: %s", got)
	}
	colour := func(cell int) string {
		t.Helper()
		return eval(fmt.Sprintf(`(() => { const c = cards.disk, d = devicePixelRatio, n = c.n;
			const x = Math.round(((%d %% c.columns) + 0.5) * n * d), y = Math.round((Math.floor(%[1]d / c.columns) + 0.5) * n * d);
			return c.map.getContext("2d").getImageData(x, y, 1, 1).data.join(" "); })()`, cell))
	}
	before := colour(100)
	doAsGuest(t, readHalf+"\n"+writeMega, m)
	becomes("disk-written", "1.0 MiB")
	becomes("disk-modified", "1.0 MiB, 8 chunks")
	becomes("disk-read", "KiB")
	becomes("disk-here", "of 8 chunks")
	becomes("count-77", "8") // M in the legend
	if after := colour(100); after == before || after != "212 32 42 255" {
		t.Errorf("the cell was %s and is %s", before, after)
	}
	if got := eval(`document.getElementById("disk-map").getAttribute("aria-label")`); !strings.Contains(got, "8 chunks modified now") {
		t.Errorf("the map is said to be %q", got)
	}
	// Nobody else gets in, by the same address or another name.
	refused := func(what, host, path string) {
		t.Helper()
		req, err := http.NewRequest("GET", url[:strings.Index(url, "/token/")]+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Host = host
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if body, _ := io.ReadAll(resp.Body); resp.StatusCode != http.StatusForbidden || strings.Contains(string(body), "box") {
			t.Errorf("%s: %d %s", what, resp.StatusCode, body)
		}
	}
	refused("the address again", "", url[strings.Index(url, "/token/"):])
	refused("no cookie", "", "/events")
	refused("another name", "evil.example", "/")
	if resp, err := chromedp.RunResponse(ctx, chromedp.Navigate("about:blank"), chromedp.Navigate(url)); err == nil && resp != nil && resp.Status != http.StatusForbidden {
		t.Errorf("the address again, in the browser: %d", resp.Status)
	}
	// The page can be left and found again, in this browser.
	if err := chromedp.Do(ctx, chromedp.Navigate(url[:strings.Index(url, "token/")]), chromedp.WaitVisible("#disk-map")); err != nil {
		t.Fatal(err)
	}
	becomes("disk-written", "1.0 MiB")
	// The end is told.
	resume.Process.Signal(syscall.SIGINT)
	becomes("status", "the run is over")
	if err := resume.Wait(); err != nil {
		t.Errorf("resume: %v", err)
	}
	silent()
	for m, err := range console {
		if err != nil {
			break
		}
		wrong := m.IsException() || m.Type == "error"
		if wrong && !strings.Contains(m.Text, "403") && !strings.Contains(m.URL, "favicon") {
			t.Errorf("the browser complains: %v", m)
		}
	}
	w.wantClean(t)
}

// addressOf starts cmd and gives the address that it prints to a pipe.
func addressOf(t testing.TB, cmd *exec.Cmd, pipe func() (io.ReadCloser, error)) string {
	t.Helper()
	out, err := pipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		if i := strings.Index(lines.Text(), "http://127.0.0.1:"); i >= 0 {
			go io.Copy(io.Discard, out)
			return lines.Text()[i:]
		}
	}
	t.Fatalf("no address: %v", lines.Err())
	return ""
}
