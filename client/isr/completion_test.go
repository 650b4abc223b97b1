package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/alecthomas/kong"
	"github.com/creack/pty"

	"isr/client/remote/sshdtest"
	"isr/contrib/completion"
)

// completionWorld is a server with three parcels of alice's: winxp is checked
// out at A, fedora hoarded there, and plan9 only on the server.
func completionWorld(t *testing.T) *world {
	w := newQuickWorld(t, shortDir(t), "serve")
	w.home(t, "A", "alice", "alice")
	for _, name := range []string{"winxp", "fedora", "plan9"} {
		w.must(t, "isr-locksrv", "parcel", "create", "alice", name, "--disk", "1M", "--vmm", "none", "--comment", name+" as it came")
	}
	w.ok(t, "A", "checkout", "winxp")
	w.ok(t, "A", "hoard", "fedora")
	return w
}

// offered is what isr offers for words, without help texts.
func (w *world) offered(t testing.TB, host string, words ...string) []string {
	t.Helper()
	r := w.ok(t, host, append([]string{"complete", "--"}, words...)...)
	if r.err != "" {
		t.Fatalf("%q: it said %s", words, r.err)
	}
	var ws []string
	for line := range strings.Lines(r.out) {
		word, _, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "\t")
		ws = append(ws, word)
	}
	return ws
}

// takes reports whether the grammar has the command and the options of line.
func takes(t testing.TB, line string) bool {
	words := strings.Fields(line)
	for _, c := range testModel(t).Children {
		if len(words) > 0 && c.Name == words[0] {
			return !slices.ContainsFunc(words[1:], func(w string) bool {
				return len(w) == 2 && w[0] == '-' && !slices.ContainsFunc(c.Flags, func(f *kong.Flag) bool { return string(f.Short) == w[1:] })
			})
		}
	}
	return len(words) == 0 || strings.HasPrefix(line, "-") || !strings.HasSuffix(line, " ")
}

func TestComplete(t *testing.T) {
	t.Parallel()
	w := completionWorld(t)
	id := strings.TrimSpace(w.ok(t, "A", "uuid", "winxp").out)
	for _, c := range []struct{ line, want string }{
		// Only what is checked out can be cleaned; anything can be run.
		{"clean ", "winxp"},
		{"stat ", "winxp"},
		{"stat fedo", ""},
		{"resume ", "winxp fedora plan9"},
		{"resume pl", "plan9"},
		{"co fedo", "fedora"},
		{"ls ", "winxp fedora plan9"},
		{"stat " + id[:8], id},
		{"checkout winxp -r ", "1"},
		{"checkout plan9 --rollback ", "1"},
		{"checkout plan9 --rollback=", "--rollback=1"},
		{"-s ", w.addr()},
		{"-s 127.0.0.1:9 resume ", ""},
		{"-u bob resume ", ""},
		{"resume winxp -m n", "none"},
		{"config look", "lookaside"},
		{"help resu", "resume"},
		{"completion ", "bash zsh fish"},
		{"keep", ""},
		{"comple", "completion"},
		{"rmhoard ", "fedora"},
		{"dirtometer ", ""},
		{"checkp ", "winxp"},
		{"checkp -e ", "winxp fedora plan9"},
		{"rescue ", "winxp"},
		{"export-lka ", "winxp fedora plan9"},
		{"sync winxp -C m", "mild moderate"},
	} {
		if !takes(t, c.line) {
			continue
		}
		if got := w.offered(t, "A", strings.Split(c.line, " ")...); strings.Join(got, " ") != c.want {
			t.Errorf("%q: %q, want %q", c.line, got, c.want)
		}
	}
	all := w.offered(t, "A", "resume", "winxp", "--")
	for _, flag := range []string{"--vmm", "--rollback", "--server", "--yes"} {
		if !slices.Contains(all, flag) {
			t.Errorf("resume: %s is not offered", flag)
		}
	}
	if slices.Contains(all, "--json") {
		t.Error("resume: --json is offered")
	}

	// On a busy host too, if it is tried often enough.
	within(t, tooLong, "a key in a tenth of a second", func() bool {
		begun := time.Now()
		w.offered(t, "A", "resume", "")
		return time.Since(begun) < 100*time.Millisecond
	})
	w.wantClean(t)
}

// TestCompleteAlone: no server, no configuration, no home to speak of: no
// answer, in time, and nothing said or left.
func TestCompleteAlone(t *testing.T) {
	t.Parallel()
	w := completionWorld(t)
	// What was listed before the server went is known on.
	w.offered(t, "A", "resume", "")
	w.server.stop(t)
	if got := w.offered(t, "A", "resume", "p"); strings.Join(got, " ") != "plan9" {
		t.Errorf("after the server went: %q", got)
	}
	w.home(t, "B", "alice", "alice")
	if got := w.offered(t, "B", "resume", ""); len(got) != 0 {
		t.Errorf("no server: %q", got)
	}

	// A server that takes the connection and says nothing. It is not asked again
	// at the next key.
	l, asked := newSilentListener(t)
	for range 2 {
		begun := time.Now()
		if got := w.offered(t, "B", "-s", l.Addr().String(), "resume", ""); len(got) != 0 {
			t.Errorf("silent server: %q", got)
		}
		if d := time.Since(begun); d > 10*time.Second { // a busy host is slow, and a login would wait 30 s
			t.Errorf("a silent server takes %v", d)
		}
	}
	if n := asked.Load(); n != 1 {
		t.Errorf("a silent server is asked %d times in two", n)
	}

	writeFile(t, filepath.Join(w.dir, "C", ".openisrrc"), "frobnicate = yes\n")
	if got := w.offered(t, "C", "resume", ""); len(got) != 0 {
		t.Errorf("bad configuration: %q", got)
	}
	if got := w.offered(t, "C", "resum"); strings.Join(got, " ") != "resume" {
		t.Errorf("bad configuration: %q", got)
	}
}

// TestCompleteHostile: what a server calls its parcels stays words.
func TestCompleteHostile(t *testing.T) {
	t.Parallel()
	w := completionWorld(t)
	w.offered(t, "A", "resume", "")
	kept, _ := filepath.Glob(filepath.Join(w.dir, "A", ".isr", "ls", "*"))
	if len(kept) != 1 {
		t.Fatalf("kept %q", kept)
	}
	p, err := os.ReadFile(kept[0])
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, kept[0], strings.NewReplacer(`"plan9"`, `"$(touch x)"`, `"fedora"`, `"a\u001b]0;b\u0007\nc"`, "as it came", `\u001b[2J`).Replace(string(p)))
	if got := w.offered(t, "A", "resume", ""); strings.Join(got, " ") != "winxp fedora" {
		t.Errorf("%q", got)
	}
	if fi, err := os.Stat(kept[0]); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", fi, err)
	}
	out := w.ok(t, "A", "complete", "--", "checkout", "winxp", "-r", "").out
	if strings.Contains(out, "\x1b") {
		t.Errorf("%q", out)
	}
}

// shells are how to have each complete a line as a person does: rc is typed
// first; then control-T writes the line to $LINE. Each twice: with the script
// read by hand, and where an installed one is looked for.
var shells = []struct {
	name, shell string
	args        []string
	rc          string
}{
	{"bash", "bash", []string{"--noprofile", "--norc", "-i"}, "source /usr/share/bash-completion/bash_completion; source <(isr completion bash)\n" + bashShow},
	{"bash, installed", "bash", []string{"--noprofile", "--norc", "-i"}, "mkdir -p u/completions; isr completion bash >u/completions/isr; BASH_COMPLETION_USER_DIR=$PWD/u\n" +
		"source /usr/share/bash-completion/bash_completion\n" + bashShow},
	{"zsh", "zsh", []string{"-f", "-i"}, "autoload -U compinit; compinit -D -u; source <(isr completion zsh)\n" + zshShow},
	{"zsh, installed", "zsh", []string{"-f", "-i"}, "mkdir f; isr completion zsh >f/_isr; fpath=($PWD/f $fpath); autoload -U compinit; compinit -D -u\n" + zshShow},
	{"fish", "fish", []string{"--no-config", "-i"}, "isr completion fish | source\n" + fishShow},
	{"fish, installed", "fish", []string{"--no-config", "-i"}, "mkdir c; isr completion fish >c/isr.fish; set -p fish_complete_path $PWD/c\n" + fishShow},
}

const (
	bashShow = `show() { echo "$READLINE_LINE" >>$LINE; }; bind -x '"\C-t": show'` + "\n"
	zshShow  = `show() { print -r -- "$BUFFER" >>$LINE }; zle -N show; bindkey "^T" show` + "\n"
	fishShow = "bind \\ct 'commandline >>$LINE'\n"
)

func TestShells(t *testing.T) {
	t.Parallel()
	w := completionWorld(t)
	addr := w.addr()
	for _, sh := range shells {
		t.Run(sh.name, func(t *testing.T) {
			sshdtest.Require(t, sh.shell)
			line := filepath.Join(t.TempDir(), "line")
			cmd := w.command("A", sh.shell, sh.args...)
			cmd.Env = append(cmd.Env, "TERM=xterm", "LINE="+line, "HISTFILE=")
			cmd.Dir = t.TempDir()
			tty, err := pty.StartWithSize(cmd, &pty.Winsize{Rows: 24, Cols: 100})
			if err != nil {
				t.Fatal(err)
			}
			var said lockedBuffer
			read := make(chan struct{})
			go func() { io.Copy(&said, tty); close(read) }()
			t.Cleanup(func() {
				cmd.Process.Kill()
				cmd.Wait()
				tty.Close()
				<-read
				if t.Failed() {
					t.Logf("the terminal:\n%q", said.String())
				}
			})
			io.WriteString(tty, sh.rc+"echo rea''dy\n")
			within(t, tooLong, "the shell is ready", func() bool { return strings.Contains(strings.ReplaceAll(said.String(), "\r", "\n"), "\nready") })
			want := ""
			for _, c := range [][2]string{
				{"isr checki\t", "isr checkin "},
				{"isr clean \t", "isr clean winxp "},
				{"isr resume pl\t", "isr resume plan9 "},
				{"isr resume -m no\t", "isr resume -m none "},
				{"isr resume --vmm=no\t", "isr resume --vmm=none "},
				{"isr checkout winxp --disc\t", "isr checkout winxp --disconnected "},
				{"isr -s 127\t", "isr -s " + addr + " "},
				{"isr -s " + addr[:len(addr)-1] + "\t", "isr -s " + addr + " "},
				{"isr config looka\t", "isr config lookaside "},
			} {
				io.WriteString(tty, "\x15"+c[0]+"\x14")
				want += strings.TrimRight(c[1], " ") + "\n"
				got := ""
				within(t, tooLong, fmt.Sprintf("%q is completed", c[0]), func() bool {
					p, err := os.ReadFile(line)
					if err != nil && !errors.Is(err, os.ErrNotExist) {
						t.Fatal(err)
					}
					got = strings.ReplaceAll(string(p), " \n", "\n")
					return strings.Count(got, "\n") == strings.Count(want, "\n")
				})
				if got != want {
					t.Fatalf("%q is completed as in\n%swant\n%s", c[0], got, want)
				}
			}
			// More than one: they are shown.
			before := len(said.String())
			io.WriteString(tty, "\x15isr resume \t\t")
			within(t, tooLong, "parcels are listed", func() bool {
				s := said.String()[before:]
				return strings.Contains(s, "fedora") && strings.Contains(s, "plan9") && strings.Contains(s, "winxp")
			})
		})
	}
}

// TestFiles: a program that takes files has the shell's own completion of
// them.
func TestFiles(t *testing.T) {
	dir := t.TempDir()
	writeFile(t, filepath.Join(dir, "objects", "file"), "")
	writeFile(t, filepath.Join(dir, "old"), "")
	writeFile(t, filepath.Join(dir, "bin", "toy"), "#!/bin/sh\ncase \"$4\" in d) echo :dirs;; *) echo :files;; esac\n")
	if err := os.Chmod(filepath.Join(dir, "bin", "toy"), 0o700); err != nil {
		t.Fatal(err)
	}
	for shell, line := range map[string]string{
		"bash": `source toy.bash; for w in d f; do COMP_WORDS=(toy $w -- o); COMP_WORDS=(toy x $w o) COMP_CWORD=3; _toy; echo "${COMPREPLY[@]}"; done 2>/dev/null`,
		"fish": `source toy.fish; for w in d f; echo (complete -C "toy x $w o" | string replace -r '\t.*' '' | string trim -c /); end`,
	} {
		text, err := completion.Script(shell, "toy")
		if err != nil {
			t.Fatal(err)
		}
		writeFile(t, filepath.Join(dir, "toy."+shell), text)
		sshdtest.Require(t, shell)
		cmd := exec.Command(shell, "-c", line)
		cmd.Dir = dir
		cmd.Env = []string{"PATH=" + filepath.Join(dir, "bin") + ":" + os.Getenv("PATH"), "HOME=" + dir}
		r := execute(cmd, "")
		if r.out != "objects\nobjects old\n" {
			t.Errorf("%s: %v", shell, r)
		}
	}
}
