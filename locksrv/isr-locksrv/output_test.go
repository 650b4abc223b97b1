package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"isr/locksrv/locksrvtest"
)

// showing are commands that print, of each that does. Those of the second list
// change something, which is done although nobody hears of it.
var showing = [][]string{
	{"--help"}, {"help", "parcel", "import"}, {"version"}, {"completion", "bash"},
	{"user", "list"}, {"user", "list", "--json"}, {"user", "list", "-q"}, {"user", "key", "list", "alice"}, {"user", "key", "list", "alice", "--json"},
	{"parcel", "list"}, {"parcel", "list", "--json"}, {"parcel", "history", "alice", "winxp"}, {"parcel", "history", "alice", "winxp", "--json"},
	{"parcel", "diff", "alice", "winxp", "1", "1"}, {"parcel", "diff", "alice", "winxp", "1", "1", "--json"}, {"parcel", "export", "alice", "winxp", "-"},
	{"parcel", "prune", "alice", "winxp", "--keep", "1", "-n"}, {"parcel", "prune", "alice", "winxp", "--keep", "1", "-n", "--json"},
	{"check"}, {"check", "--json"}, {"check", "-c"}, {"du"}, {"du", "--json"}, {"usage"}, {"usage", "--json"},
	{"gc", "-n"}, {"gc", "-n", "--json"}, {"repair", "-n"}, {"status"}, {"status", "--json"}, {"hooks"}, {"hooks", "--json"},
	{"log"}, {"log", "--json"}, {"authorized-keys"}, {"backup", "list", "COPY"}, {"backup", "list", "COPY", "--json"}, {"backup", "list", "COPY", "latest"},
	{"backup", "verify", "COPY"}, {"backup", "prune", "COPY", "--keep", "1", "-n"},
}

var changing = [][]string{
	{"gc"}, {"repair", "-y"}, {"backup", "COPY"}, {"backup", "prune", "COPY", "--keep", "1", "-y"}, {"mirror", "STANDBY"},
}

// TestLostOutput: no command ends well whose result nobody got, and what was
// done is said to be done.
func TestLostOutput(t *testing.T) {
	r := locksrvtest.NewRealm(t)
	r.AddParcel(t, "alice", "winxp")
	dir := t.TempDir()
	if out, err := exec.Command(program(t), "--root", r.Root, "backup", filepath.Join(dir, "COPY")).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	hooks := filepath.Join(r.Root, "hooks")
	if err := os.Mkdir(hooks, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(hooks, "post-user-add"), []byte("#!/bin/sh\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	run := func(args []string, stdout *os.File) (int, string) {
		cmd := exec.Command(program(t), append([]string{"--root", r.Root}, args...)...)
		cmd.Dir = dir
		var errs strings.Builder
		cmd.Stdout, cmd.Stderr = stdout, &errs
		cmd.Run()
		return cmd.ProcessState.ExitCode(), errs.String()
	}
	for i, args := range append(showing, changing...) {
		changes := i >= len(showing)
		t.Run(strings.Join(args, " "), func(t *testing.T) {
			if !changes {
				t.Parallel()
			}
			full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer full.Close()
			status, errs := run(args, full)
			if status != 1 || !strings.Contains(errs, "isr-locksrv: error: standard output: no space left on device\n") || changes != strings.Contains(errs, "what was done is done") {
				t.Errorf(">/dev/full: status %d: %s", status, errs)
			}
			// A reader that goes ends it as any other program, without a word.
			in, out, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			in.Close()
			defer out.Close()
			status, errs = run(args, out)
			switch {
			case changes && (status != 1 || !strings.Contains(errs, "standard output: broken pipe")),
				!changes && (status != 128+int(syscall.SIGPIPE) || errs != ""):
				t.Errorf("| head -0: status %d: %s", status, errs)
			}
		})
	}
}

// TestOneWayOut: nothing reaches standard output but through results, which
// remembers what went wrong.
func TestOneWayOut(t *testing.T) {
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	past := regexp.MustCompile(`os\.Stdout|fmt\.Print|stdout\.File|tabwriter|\bprintln\(`)
	allowed := map[string]int{"main.go": 1, "serve.go": 1} // the start, and a session, whose service does as much
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") || file == "output.go" {
			continue
		}
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if n := len(past.FindAll(text, -1)); n > allowed[file] {
			t.Errorf("%s: writes past results, %d times", file, n)
		}
	}
}
