package main

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/creack/pty"
	"github.com/mattn/go-runewidth"

	"isr/client/remote/sshdtest"
)

// onTerminal runs cmd on a terminal of its own and gives all that it shows
// there. It types input once asked shows.
func onTerminal(t testing.TB, cmd *exec.Cmd, columns int, asked, input string) result {
	t.Helper()
	tty, err := pty.StartWithSize(cmd, &pty.Winsize{Rows: 24, Cols: uint16(columns)})
	if err != nil {
		t.Fatal(err)
	}
	defer tty.Close()
	var shown lockedBuffer
	read := make(chan struct{})
	go func() { io.Copy(&shown, tty); close(read) }() // ends with EIO when cmd does
	if input != "" {
		within(t, tooLong, "question", func() bool { return strings.Contains(shown.String(), asked) })
		io.WriteString(tty, input)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	select {
	case err = <-ended:
	case <-time.After(tooLong):
		cmd.Process.Kill()
		<-ended
		t.Fatalf("%q does not end; the terminal shows\n%q", cmd.Args, shown.String())
	}
	<-read
	return result{out: strings.ReplaceAll(shown.String(), "\r\n", "\n"), status: statusOf(cmd, err)}
}

// showing are commands with results, for alice with a checkout of winxp.
var showing = [][]string{
	{"help"}, {"help", "resume"}, {"resume", "--help"}, {"--help"}, {"--version"}, {"version"},
	{"ls"}, {"ls", "-l"}, {"ls", "-L", "3", "winxp"}, {"ls", "--json"},
	{"stat", "winxp"}, {"stat", "winxp", "--json"}, {"uuid", "winxp"},
	{"config"}, {"config", "server"}, {"config", "--json"}, {"completion", "bash"},
}

// failingCommands fail before they do anything.
var failingCommands = [][]string{
	{}, {"frob"}, {"checkout"}, {"checkout", "nosuch"}, {"stat", "nosuch"}, {"ls", "nosuch"}, {"uuid", "x", "-F"}, {"-s", "127.0.0.1:1", "ls"},
}

// terminalWorld has a checkout of winxp at A, modified and suspended, with
// comments that are not ASCII.
func terminalWorld(t *testing.T) *world {
	w := newQuickWorld(t, shortDir(t), "serve")
	w.home(t, "A", "alice", "alice")
	w.must(t, "isr-locksrv", "parcel", "create", "alice", "winxp", "--disk", "4M", "--vmm", "shell", "--comment", "das Büro, 東京")
	w.must(t, "isr-locksrv", "parcel", "create", "alice", "another-parcel-with-a-name", "--disk", "4M", "--vmm", "none")
	w.ok(t, "A", "checkout", "winxp")
	w.disk(t, "A", "winxp", "printf x | dd of=$DISK conv=notrunc 2>/dev/null")
	w.ok(t, "A", "sync", "winxp", "--comment", "Größe geändert, dann weiter gearbeitet")
	w.disk(t, "A", "winxp", "printf y | dd of=$DISK conv=notrunc 2>/dev/null")
	return w
}

var escapes = regexp.MustCompile("\x1b\\[[0-9;]*m")

func TestTerminal(t *testing.T) {
	t.Parallel()
	w := terminalWorld(t)
	commands := slices.Concat(showing, failingCommands)
	statuses := make([]int, len(commands))
	for i, args := range commands {
		statuses[i] = w.isr("A", args...).status
	}
	for _, c := range []struct {
		name    string
		columns int
		env     []string
		colour  bool
		utf8    bool
	}{
		{"40", 40, []string{"TERM=xterm", "LANG=C.UTF-8"}, true, true},
		{"80", 80, []string{"TERM=xterm", "LC_ALL=C.UTF-8"}, true, true},
		{"NO_COLOR", 80, []string{"TERM=xterm", "NO_COLOR=1", "LANG=C.UTF-8"}, false, true},
		{"dumb", 80, []string{"TERM=dumb", "LANG=C.UTF-8"}, false, true},
		{"C", 40, []string{"TERM=xterm", "LC_ALL=C", "LANG=C.UTF-8"}, true, false},
		{"Latin-1", 80, []string{"TERM=xterm", "LC_CTYPE=de_DE.ISO-8859-1"}, true, false},
		{"no locale", 80, []string{"TERM=xterm"}, true, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			for i, args := range commands {
				cmd := w.command("A", "isr", args...)
				cmd.Env = append(cmd.Env, c.env...)
				r := onTerminal(t, cmd, c.columns, "", "")
				name := "isr " + strings.Join(args, " ")
				if r.status != statuses[i] {
					t.Errorf("%s: on a terminal status %d, without one %d", name, r.status, statuses[i])
				}
				plain := escapes.ReplaceAllString(r.out, "")
				if !c.colour && plain != r.out || strings.Contains(plain, "\x1b") {
					t.Errorf("%s: escapes in\n%q", name, r.out)
				}
				if !c.utf8 && strings.ContainsFunc(plain, func(c rune) bool { return c > 0x7e }) {
					t.Errorf("%s: more than ASCII in\n%q", name, r.out)
				}
				if strings.Contains(plain, "\ufffd") {
					t.Errorf("%s: not UTF-8:\n%q", name, r.out)
				}
				if slices.Contains(args, "--json") || args != nil && slices.Contains(args, "completion") {
					continue // for programs
				}
				for line := range strings.Lines(plain) {
					line = strings.TrimSuffix(line, "\n")
					// Messages are wrapped by the terminal; of a word that
					// does not fit nothing can be made.
					if runewidth.StringWidth(line) > c.columns && !strings.HasPrefix(line, "isr: ") && len(strings.Fields(line)) > 1 {
						t.Errorf("%s: %d columns:\n%s", name, runewidth.StringWidth(line), line)
					}
				}
			}
			cmd := w.command("A", "isr", "ls", "-l", "winxp")
			cmd.Env = append(cmd.Env, c.env...)
			want := map[bool]string{true: "geändert", false: "ge?ndert"}[c.utf8]
			if r := onTerminal(t, cmd, c.columns, "", ""); !strings.Contains(r.out, want) {
				t.Errorf("ls -l has no %q:\n%s", want, r.out)
			}
		})
	}
	// A program gets the bytes as they are, whatever the locale.
	cmd := w.command("A", "isr", "ls", "-l", "winxp")
	cmd.Env = append(cmd.Env, "LC_ALL=C")
	if r := execute(cmd, ""); !strings.Contains(r.out, "Größe geändert") {
		t.Errorf("into a pipe: %v", r)
	}
}

// TestNarrow is what ls and stat look like in 40 and in 80 columns: "for each
// parcel, prints a single line" where there is room for what tells whose it is.
func TestNarrow(t *testing.T) {
	t.Parallel()
	w := terminalWorld(t)
	show := func(columns int, args ...string) string {
		cmd := w.command("A", "isr", args...)
		cmd.Env = append(cmd.Env, "TERM=xterm", "LANG=C.UTF-8")
		out := onTerminal(t, cmd, columns, "", "").out
		return regexp.MustCompile(`\d\d\d\d-\d\d-\d\d \d\d:\d\d:\d\d`).ReplaceAllString(out, "YYYY-MM-DD HH:MM:SS")
	}
	for columns, want := range map[int]string{40: `
another-parcel-with-a-name  released
  never checked out
winxp  acquired  alice  hostA
  YYYY-MM-DD HH:MM:SS
  contact YYYY-MM-DD HH:MM:SS
  here: powered off, modified
`, 80: `
another-parcel-with-a-name  released  never checked out
winxp                       acquired  alice  hostA  YYYY-MM-DD HH:MM:SS
                            contact YYYY-MM-DD HH:MM:SS
                            here: powered off, modified
`} {
		if out := show(columns, "ls"); out != "Parcels on "+w.addr()+want {
			t.Errorf("ls:\n%swant\n%s", out, want)
		}
	}
	if out := show(40, "stat", "winxp"); !strings.Contains(out, "disk") || !strings.Contains(out, "128.0 KiB") {
		t.Errorf("stat:\n%s", out)
	}
}

// TestProgress: what takes long is shown, within the terminal's width.
func TestProgress(t *testing.T) {
	t.Parallel()
	w := newQuickWorld(t, shortDir(t), "serve")
	image := filepath.Join(w.dir, "image")
	random := make([]byte, 3<<20)
	for i := range random { // nothing that compresses
		random[i] = byte(i * (i >> 3) * (i >> 11) >> 5)
	}
	writeFile(t, image, string(random))
	w.must(t, "isr-locksrv", "parcel", "import", "alice", "big", image, "--compress", "none", "--vmm", "none")
	for _, c := range []struct {
		columns int
		term    string
		want    *regexp.Regexp
	}{
		{40, "xterm", regexp.MustCompile(`\d+ ?%`)},
		{100, "xterm", regexp.MustCompile(`\] [\d.]+ MiB/[\d.]+ MiB [\d.]+ [KM]iB/s \d+m?s`)},
		{40, "dumb", nil},
	} {
		host := fmt.Sprint(c.term, c.columns)
		w.home(t, host, "alice", "alice")
		cmd := w.command(host, "isr", "hoard", "big", "-b", "1500")
		cmd.Env = append(cmd.Env, "TERM="+c.term)
		r := onTerminal(t, cmd, c.columns, "", "")
		if r.status != 0 {
			t.Fatalf("%s: %v", host, r)
		}
		plain := regexp.MustCompile("\x1b\\[[0-9;?]*[A-Za-z]").ReplaceAllString(r.out, "\n")
		if c.want == nil && plain != r.out {
			t.Errorf("%s: escapes in %q", host, r.out)
		}
		if c.want != nil && !c.want.MatchString(plain) {
			t.Errorf("%s: no progress in %q", host, r.out)
		}
		for _, line := range strings.FieldsFunc(plain, func(c rune) bool { return c == '\r' || c == '\n' }) {
			if runewidth.StringWidth(line) > c.columns && !strings.HasPrefix(line, "isr: ") || strings.Contains(line, "…") {
				t.Errorf("%s: %d columns: %q", host, runewidth.StringWidth(line), line)
			}
		}
	}
}

// Questions are asked of A's winxp, which is modified.
var asking = [][]string{{"discard", "winxp"}, {"clean", "winxp"}, {"clean", "-f", "winxp"}}

// TestQuestions: the end of file is no, and so is what is not understood three
// times; nobody is asked for ever.
func TestQuestions(t *testing.T) {
	t.Parallel()
	w := terminalWorld(t)
	for _, args := range asking {
		name := "isr " + strings.Join(args, " ")
		refused := func(how string, r result, questions int) {
			t.Helper()
			if r.status != 1 || strings.Count(r.out+r.err, "[y/N]") != questions || !strings.Contains(r.out+r.err, "parcel winxp: not ") {
				t.Errorf("%s: %s: %v", name, how, r)
			}
		}
		refused("end of file", w.isr("A", args...), 1)
		refused("no", execute(w.command("A", "isr", args...), "no\n"), 1)
		refused("nothing", execute(w.command("A", "isr", args...), "\n"), 1)
		refused("nonsense", execute(w.command("A", "isr", args...), strings.Repeat("what\n", 100)), attempts)
		refused("nonsense, then the end", execute(w.command("A", "isr", args...), "what"), 1)
		refused("binary", execute(w.command("A", "isr", args...), "\x00\xff\x1b\n\x00\n\x01\n\x02\n"), attempts)

		words := "exec isr " + strings.Join(args, " ")
		refused("stdin closed", execute(w.command("A", "sh", "-c", words+" <&-"), ""), 1)
		refused("/dev/null", execute(w.command("A", "sh", "-c", words+" </dev/null"), ""), 1)
		// stdin a directory, which cannot be read
		refused("a directory", execute(w.command("A", "sh", "-c", words+" </"), ""), 1)

		cmd := w.command("A", "isr", args...)
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
		refused("no terminal", execute(cmd, ""), 1)

		cmd = w.command("A", "isr", args...)
		cmd.Env = append(cmd.Env, "TERM=xterm")
		refused("control-D", onTerminal(t, cmd, 40, "[y/N]", "\x04"), 1)
	}
	// Where messages go to a file, the question still goes to the terminal.
	if r := onTerminal(t, w.command("A", "sh", "-c", "exec isr discard winxp >/dev/null 2>&1"), 40, "[y/N]", "no\n"); r.status != 1 {
		t.Errorf("messages to a file: %v", r)
	}
	if st := w.ok(t, "A", "stat", "winxp").out; !strings.Contains(st, "modified") {
		t.Fatalf("something was done all the same:\n%s", st)
	}
	cmd := w.command("A", "isr", "discard", "winxp")
	if r := execute(cmd, "what\nyes\n"); r.status != 0 || strings.Count(r.err, "[y/N]") != 2 {
		t.Errorf("yes at the second time: %v", r)
	}
	w.wantClean(t)
}

// TestSecretQuestion: a passphrase is asked on the terminal; where there is
// none nobody waits for it.
func TestSecretQuestion(t *testing.T) {
	t.Parallel()
	sshdtest.Require(t, "ssh-keygen")
	w := newQuickWorld(t, shortDir(t), "serve")
	home := w.home(t, "A", "alice", "alice")
	key := filepath.Join(home, ".ssh", "id_ed25519")
	if out, err := exec.Command("ssh-keygen", "-q", "-p", "-a", "1", "-N", "open sesame", "-f", key).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	cmd := w.command("A", "isr", "ls")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if r := execute(cmd, "open sesame\n"); r.status != 16 || strings.Contains(r.err+r.out, "sesame") {
		t.Errorf("no terminal: %v", r)
	}
	// Who completes a command line is not asked.
	cmd = w.command("A", "isr", "complete", "--", "resume", "")
	cmd.Env = append(cmd.Env, "TERM=xterm")
	if r := onTerminal(t, cmd, 40, "", ""); r.out != "" {
		t.Errorf("completion: %v", r)
	}
	cmd = w.command("A", "isr", "ls")
	cmd.Env = append(cmd.Env, "TERM=xterm")
	if r := onTerminal(t, cmd, 40, "passphrase", "open sesame\n"); r.status != 0 || strings.Contains(r.out, "sesame") {
		t.Errorf("on a terminal: %v", r)
	}
	cmd = w.command("A", "isr", "ls")
	cmd.Env = append(cmd.Env, "TERM=xterm")
	r := onTerminal(t, cmd, 40, "passphrase", strings.Repeat("wrong\n", 20))
	if n := strings.Count(r.out, "assphrase for"); r.status != 16 || n < 1 || n > 3 {
		t.Errorf("wrong each time: asked %d times: %v", n, r)
	}
}

// TestLostOutput: a result that nobody gets is an error.
func TestLostOutput(t *testing.T) {
	t.Parallel()
	w := terminalWorld(t)
	for _, args := range showing {
		name := "isr " + strings.Join(args, " ")
		full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		cmd := w.command("A", "isr", args...)
		var errs strings.Builder
		cmd.Stdout, cmd.Stderr = full, &errs
		err = cmd.Run()
		full.Close()
		if status := statusOf(cmd, err); status != 20 || !strings.HasPrefix(errs.String(), "isr: error: standard output: no space left on device\n") {
			t.Errorf("%s >/dev/full: status %d\n%s", name, status, errs.String())
		}

		// A reader that goes ends the program as any other, without a word.
		r, out, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		r.Close()
		cmd = w.command("A", "isr", args...)
		errs.Reset()
		cmd.Stdout, cmd.Stderr = out, &errs
		err = cmd.Run()
		out.Close()
		if status := statusOf(cmd, err); status != 128+int(syscall.SIGPIPE) || errs.String() != "" {
			t.Errorf("%s | head -0: status %d\n%s", name, status, errs.String())
		}

		// Standard error may be closed.
		want := w.ok(t, "A", args...).out
		if got := execute(w.command("A", "sh", "-c", "exec isr "+strings.Join(args, " ")+" 2>&-"), ""); got.status != 0 || len(got.out) < len(want)*9/10 {
			t.Errorf("%s 2>&-: %v", name, got)
		}
		// And so may all there is.
		if got := execute(w.command("A", "sh", "-c", "exec isr "+strings.Join(args, " ")+" <&- >&- 2>&-"), ""); got.out+got.err != "" {
			t.Errorf("%s, all closed: %v", name, got)
		}
	}
	for _, args := range failingCommands {
		want := w.isr("A", args...)
		if want.status == 0 || want.out != "" || want.err == "" {
			t.Errorf("isr %q: %v", args, want)
		}
		got := execute(w.command("A", "sh", append([]string{"-c", `exec isr "$@" <&- >&- 2>&-`, "sh"}, args...)...), "")
		if got.status != want.status {
			t.Errorf("isr %q, all closed: status %d, want %d", args, got.status, want.status)
		}
	}
	w.wantClean(t)
}

// TestHostileServer: whatever a server says, the terminal obeys none of it.
func TestHostileServer(t *testing.T) {
	t.Parallel()
	w := newQuickWorld(t, shortDir(t), "sshd")
	w.home(t, "A", "alice", "alice")
	evil := "\x1b]0;owned\x07\x1b[2J\x1b[31m\u202e\u009b1m\r\b\x7f"
	script := filepath.Join(w.dir, "hostile")
	// As JSON has it, and as it is.
	listing := `{"parcel":"winxp` + jsonEvil + `\nisr: error: not true\tcolumn","uuid":"` + jsonEvil + `","vmm":"` + jsonEvil + `","version":1,` +
		`"held":{"user":"` + jsonEvil + `","host":"` + jsonEvil + `","since":"2026-11-26T08:00:00Z","contact":"2026-11-26T08:00:00Z"},` +
		`"versions":[{"version":1,"comment":"` + jsonEvil + `","host":"` + jsonEvil + `"}]},{"parcel":"broken","error":"` + jsonEvil + `"}`
	writeFile(t, filepath.Join(w.dir, "listing"), strings.ReplaceAll(listing, "},{\"parcel\":\"broken", "}\n{\"parcel\":\"broken"))
	writeFile(t, filepath.Join(w.dir, "complaint"), "isr: error: parcel "+evil+"\nisr: hint: "+evil+"\n"+evil)
	writeFile(t, script, "#!/bin/sh\ncase $SSH_ORIGINAL_COMMAND in\n*isr_ls*) cat '"+w.dir+"/listing' ;;\n*) cat '"+w.dir+"/complaint' >&2; exit 10 ;;\nesac\n")
	if err := os.Chmod(script, 0o700); err != nil {
		t.Fatal(err)
	}
	s := w.server.(*sshd)
	public, err := os.ReadFile(w.keys["alice"] + ".pub")
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(s.Dir, "authorized_keys"), `command="`+script+`",restrict `+string(public))

	for _, args := range [][]string{
		{"ls"}, {"ls", "-l"}, {"ls", "--json"}, {"ls", "winxp"}, {"checkout", "winxp"}, {"resume", "winxp"}, {"hoard", "winxp"},
		{"clean", "-f", "winxp"}, {"-v", "checkout", "winxp"}, {"complete", "--", "resume", ""}, {"complete", "--", "checkout", "winxp", "-r", ""},
		// What somebody was sent, and pasted.
		{"checkout", evil}, {evil}, {"-s", evil, "ls"}, {"config", evil}, {"help", evil}, {"stat", "x\nisr: error: not true"},
	} {
		name := "isr " + strings.Join(args, " ")
		for _, term := range []string{"xterm", "dumb"} {
			columns := map[string]int{"xterm": 40, "dumb": 500}[term]
			cmd := w.command("A", "isr", args...)
			cmd.Env = append(cmd.Env, "TERM="+term, "LANG=C.UTF-8")
			r := onTerminal(t, cmd, columns, "", map[bool]string{true: "\x04"}[slices.Contains(args, "-f")])
			plain := escapes.ReplaceAllString(r.out, "")
			for _, bad := range []string{"\x1b", "\x07", "\b", "\x7f", "\u009b", "\u202e", "\r"} {
				if strings.Contains(plain, bad) {
					t.Errorf("%s: %q reaches the terminal:\n%q", name, bad, r.out)
				}
			}
			if strings.Contains("\n"+plain, "\nisr: error: not true") {
				t.Errorf("%s: the server speaks for isr:\n%s", name, plain)
			}
		}
		if slices.Contains(args, "--json") {
			continue
		}
		if r := w.isr("A", args...); strings.ContainsAny(r.out+r.err, "\x1b\x07\b\x7f\r") {
			t.Errorf("%s: into a pipe: %q", name, r.out+r.err)
		}
	}
	if n := files(t, filepath.Join(w.dir, "A", ".isr")); slices.ContainsFunc(n, func(f string) bool { return strings.Contains(f, "winxp") }) {
		t.Errorf("left: %q", n)
	}
}

// jsonEvil is what evil is in JSON.
const jsonEvil = `\u001b]0;owned\u0007\u001b[2J\u001b[31m\u202e\u009b1m\r\b\u007f`
