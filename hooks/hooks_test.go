package hooks

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"pgregory.net/rapid"

	"isr/locksrv/event"
	"isr/store/parcel"
)

// newRunner is a runner of a realm with hooks, as text of sh, by name.
func newRunner(t testing.TB, hooks map[string]string) *Runner {
	t.Helper()
	root := t.TempDir()
	r := &Runner{Dir: filepath.Join(root, "hooks"), Root: root}
	for name, text := range hooks {
		put(t, filepath.Join(r.Dir, name), "#!/bin/sh\n"+text+"\n")
	}
	return r
}

func put(t testing.TB, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o700); err != nil {
		t.Fatal(err)
	}
}

var commit = event.Event{Time: time.Date(2026, 11, 26, 10, 0, 0, 0, time.UTC), Op: event.Commit, User: "alice", Parcel: "winxp",
	Version: 7, Parent: 6, By: "alice", Host: "thinkpad\x1b[2J\n", From: "192.0.2.7", Epoch: 3, Objects: 5, Bytes: 640}

func TestVeto(t *testing.T) {
	long := strings.Repeat("é", 3000)
	for name, c := range map[string]struct{ hook, msg, hint string }{
		"yes":          {"exit 0", "", ""},
		"says and yes": {"echo well", "", ""},
		"no":           {"exit 7", "refused by this server's policy: hook pre-commit: exit status 7", ""},
		"words":        {"echo not today; exit 1", "commit: refused by this server's policy: not today", ""},
		"stderr":       {"echo not today >&2; exit 1", "policy: not today", ""},
		"hint":         {`printf '\n not  today\n\ncome back\ntomorrow\n'; exit 1`, "policy: not today", "come back tomorrow"},
		"terminal":     {`printf 'a\033[2J\302\233b\tc\342\200\256d\377\n'; exit 1`, "policy: a [2J b c d?", ""},
		"long":         {"printf '" + long + "'; exit 1", "policy: " + strings.Repeat("é", 1024) + " …", ""},
		"flood":        {"head -c 9000000 /dev/zero | tr '\\0' x; exit 1", " …", ""},
		"killed":       {"kill -9 $$", "could not be asked: hook pre-commit: signal: killed", "tell the server's administrator"},
		"no such":      {"exit 1\n#", "policy", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			err := newRunner(t, map[string]string{"pre-commit": c.hook}).Pre(context.Background(), commit)
			if c.msg == "" {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			var e *parcel.Error
			if !errors.As(err, &e) || e.Kind != parcel.Denied || !strings.Contains(e.Msg, c.msg) || !strings.Contains(e.Hint, c.hint) {
				t.Fatalf("got %q, want %q and hint %q", err, c.msg, c.hint)
			}
			if len(e.Msg) > 3000 || e.Msg != parcel.Clean(e.Msg) {
				t.Errorf("%d bytes: %q", len(e.Msg), e.Msg)
			}
		})
	}
}

// What hooks see: the event on standard input, and an environment that has
// nothing else than it says.
func TestWhatHooksSee(t *testing.T) {
	t.Setenv("LD_PRELOAD", "")
	t.Setenv("SSH_CONNECTION", "evil")
	t.Setenv("ISR_SECRET", "1")
	r := newRunner(t, map[string]string{"post-commit": "env >env; cat >stdin; pwd >cwd"})
	if err := r.Post(context.Background(), commit); err != nil {
		t.Fatal(err)
	}
	read := func(name string) string {
		text, err := os.ReadFile(filepath.Join(r.Root, name))
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	var got event.Event
	if err := json.Unmarshal([]byte(read("stdin")), &got); err != nil || got != commit || !strings.HasSuffix(read("stdin"), "}\n") {
		t.Errorf("stdin %q: %v", read("stdin"), err)
	}
	if real, _ := filepath.EvalSymlinks(r.Root); read("cwd") != real+"\n" {
		t.Errorf("in %s", read("cwd"))
	}
	var names []string
	values := make(map[string]string)
	for line := range strings.Lines(read("env")) {
		name, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "=")
		names = append(names, name)
		values[name] = value
	}
	slices.Sort(names)
	want := "HOME ISR_ADMIN ISR_BY ISR_BYTES ISR_EPOCH ISR_FORCED ISR_FROM ISR_HOLDER ISR_HOOK ISR_HOST ISR_OBJECTS ISR_OP ISR_PARCEL ISR_PARENT " +
		"ISR_ROOT ISR_STATE ISR_TO ISR_USER ISR_VERSION ISR_WHAT ISR_WHY LANG LOGNAME PATH PWD SHELL USER"
	names = slices.DeleteFunc(names, func(name string) bool { return name == "_" }) // some shells' own
	if got := strings.Join(names, " "); got != want {
		t.Errorf("environment:\n%s, want\n%s", got, want)
	}
	for name, want := range map[string]string{"ISR_HOOK": "post-commit", "ISR_HOST": "thinkpad [2J", "ISR_VERSION": "7", "ISR_TO": "", "ISR_FORCED": "",
		"ISR_BYTES": "640", "ISR_ROOT": r.Root, "ISR_FROM": "192.0.2.7"} {
		if values[name] != want {
			t.Errorf("%s=%q, want %q", name, values[name], want)
		}
	}
	if !strings.HasPrefix(values["PATH"], path+":/") {
		t.Errorf("PATH=%s", values["PATH"])
	}
}

// A hook need not read: neither a short nor a long input is its error.
// A hook leads a session of its own: on the terminal of who runs it, it could
// type.
func TestNoTerminal(t *testing.T) {
	r := newRunner(t, map[string]string{"pre-commit": `read -r pid comm state ppid pgrp session rest </proc/$$/stat
test "$session" = $$ && ! true </dev/tty`})
	if err := r.Pre(t.Context(), commit); err != nil {
		t.Error(err)
	}
}

func TestHookThatDoesNotRead(t *testing.T) {
	r := newRunner(t, map[string]string{"pre-commit": "exec <&-; exit 0"})
	long := commit
	long.Why = strings.Repeat("x", 1<<20) // more than a pipe holds, or a variable
	for _, e := range []event.Event{commit, long} {
		if err := r.Pre(context.Background(), e); err != nil {
			t.Error(err)
		}
	}
}

// Hooks of a directory are run after the program of the event, by name, to the
// first that says no; after the event, all.
func TestOrder(t *testing.T) {
	says := `echo "$0" | sed 's/.*hooks.//' >>ran; `
	for _, when := range []string{"pre-commit", "post-commit"} {
		r := newRunner(t, map[string]string{when: says, when + ".d/10-b": says, when + ".d/09-a": says, when + ".d/20-no": says + "echo no; exit 1",
			when + ".d/30-c": says, when + ".d/README.md": says, when + ".d/05-a~": says, when + ".d/.hidden": says, when + ".d/x.dpkg-old": says})
		run, want := r.Pre, when+"\n"+when+".d/09-a\n"+when+".d/10-b\n"+when+".d/20-no\n"
		if when == "post-commit" {
			run, want = r.Post, want+when+".d/30-c\n"
		}
		if err := run(context.Background(), commit); err == nil || !strings.HasSuffix(err.Error(), ": no") {
			t.Errorf("%s: got %v, want no", when, err)
		}
		got, err := os.ReadFile(filepath.Join(r.Root, "ran"))
		if err != nil || string(got) != want {
			t.Errorf("%s: ran\n%s, %v; want\n%s", when, got, err, want)
		}
	}
}

// A hook that does not end is killed with all that it started.
func TestTimeout(t *testing.T) {
	r := newRunner(t, map[string]string{"pre-lock": "echo thinking; sh -c 'echo $$ >child; exec sleep 1000'"})
	r.Timeout = 300 * time.Millisecond
	start := time.Now()
	err := r.Pre(context.Background(), event.Event{Op: event.Lock})
	if err == nil || !strings.Contains(err.Error(), "did not end within 300ms") && !strings.Contains(err.Error(), "thinking") {
		t.Errorf("got %v", err)
	}
	if took := time.Since(start); took > 10*time.Second {
		t.Errorf("it took %v", took)
	}
	text, err := os.ReadFile(filepath.Join(r.Root, "child"))
	if err != nil {
		t.Fatal(err)
	}
	var pid int
	fmt.Sscan(string(text), &pid)
	// Killed with its group before the hook was waited for; on a busy machine
	// it takes a moment to die, and init another to take it away.
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil || strings.Contains(string(stat), ") Z ") || strings.Contains(string(stat), ") X ") {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("process %d lives: %s", pid, stat)
		}
	}
}

// What a hook leaves running with its output open is not waited for.
func TestLeftRunning(t *testing.T) {
	r := newRunner(t, map[string]string{"post-commit": "sleep 1000 & echo $! >child"})
	start := time.Now()
	if err := r.Post(context.Background(), commit); err != nil {
		t.Error(err)
	}
	if took := time.Since(start); took > 30*time.Second {
		t.Errorf("it took %v", took)
	}
	text, err := os.ReadFile(filepath.Join(r.Root, "child"))
	if err != nil {
		t.Fatal(err)
	}
	var pid int
	if _, err := fmt.Sscan(string(text), &pid); err != nil || pid < 2 {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Errorf("it was not left alone: %v", err)
	}
}

func TestCancelled(t *testing.T) {
	r := newRunner(t, map[string]string{"pre-commit": "sleep 1000"})
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := r.Pre(ctx, commit); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

// A program that others may have put there is not run, and what it watches
// over is refused.
func TestUntrusted(t *testing.T) {
	good := "#!/bin/sh\necho ran >ran\n"
	for name, spoil := range map[string]func(t *testing.T, r *Runner, hook string) error{
		"not executable":      func(t *testing.T, r *Runner, hook string) error { return os.Chmod(hook, 0o600) },
		"group may write":     func(t *testing.T, r *Runner, hook string) error { return os.Chmod(hook, 0o770) },
		"all may write":       func(t *testing.T, r *Runner, hook string) error { return os.Chmod(hook, 0o702) },
		"directory":           func(t *testing.T, r *Runner, hook string) error { return os.Chmod(r.Dir, 0o777) },
		"sticky directory":    func(t *testing.T, r *Runner, hook string) error { return os.Chmod(r.Dir, 0o777|os.ModeSticky) },
		"realm":               func(t *testing.T, r *Runner, hook string) error { return os.Chmod(r.Root, 0o770) },
		"is a directory":      func(t *testing.T, r *Runner, hook string) error { os.Remove(hook); return os.Mkdir(hook, 0o700) },
		"fifo":                func(t *testing.T, r *Runner, hook string) error { os.Remove(hook); return syscall.Mkfifo(hook, 0o700) },
		"dangling":            func(t *testing.T, r *Runner, hook string) error { os.Remove(hook); return os.Symlink("nothing", hook) },
		"loop":                func(t *testing.T, r *Runner, hook string) error { os.Remove(hook); return os.Symlink(hook, hook) },
		"no interpreter":      func(t *testing.T, r *Runner, hook string) error { return os.WriteFile(hook, []byte("#!/no/such\n"), 0) },
		"not a program":       func(t *testing.T, r *Runner, hook string) error { return os.WriteFile(hook, []byte("\x7fELF"), 0) },
		"somebody else's":     func(t *testing.T, r *Runner, hook string) error { return chown(t, hook) },
		"somebody else's dir": func(t *testing.T, r *Runner, hook string) error { return chown(t, r.Dir) },
		"link to others'": func(t *testing.T, r *Runner, hook string) error {
			elsewhere := filepath.Join(t.TempDir(), "d", "prog")
			put(t, elsewhere, good)
			os.Remove(hook)
			return errors.Join(os.Chmod(filepath.Dir(elsewhere), 0o777), os.Symlink(elsewhere, hook))
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRunner(t, map[string]string{"pre-commit": "echo ran >ran", "post-commit": "exit 0"})
			if err := spoil(t, r, filepath.Join(r.Dir, "pre-commit")); err != nil {
				t.Fatal(err)
			}
			err := r.Pre(context.Background(), commit)
			if !errors.Is(err, parcel.ErrDenied) || !strings.Contains(err.Error(), "could not be asked") {
				t.Errorf("got %v", err)
			}
			if _, err := os.Lstat(filepath.Join(r.Root, "ran")); err == nil {
				t.Error("it ran")
			}
		})
	}
}

func chown(t *testing.T, name string) error {
	if os.Geteuid() != 0 {
		t.Skip("only root gives files away")
	}
	return os.Chown(name, 65534, 65534)
}

// A link to a program that is well kept is one.
func TestLink(t *testing.T) {
	r := newRunner(t, map[string]string{"real/notify": "echo no; exit 1"})
	if err := os.Symlink("real/notify", filepath.Join(r.Dir, "pre-commit")); err != nil {
		t.Fatal(err)
	}
	if err := r.Pre(context.Background(), commit); err == nil || !strings.HasSuffix(err.Error(), ": no") {
		t.Errorf("got %v", err)
	}
}

func TestNone(t *testing.T) {
	for _, r := range []*Runner{nil, {Dir: "/no/such"}, newRunner(t, nil)} {
		if err := errors.Join(r.Pre(context.Background(), commit), r.Post(context.Background(), commit)); err != nil {
			t.Error(err)
		}
	}
}

func TestSurvey(t *testing.T) {
	r := newRunner(t, map[string]string{"pre-lock": "", "post-commit.d/50-x": "", "post-commit.d/50-x.bak": "", "pre-comit": "", "pre_lock": "", "README": "", "post-del.d/x": ""})
	if err := os.Chmod(filepath.Join(r.Dir, "pre-lock"), 0o600); err != nil {
		t.Fatal(err)
	}
	hs, ps, err := r.Survey()
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, h := range hs {
		got = append(got, fmt.Sprint(h.Name, " ", h.Err != nil))
	}
	for _, p := range ps {
		got = append(got, p.Name)
	}
	want := "pre-lock true, post-commit.d/50-x false, post-commit.d/50-x.bak, post-del.d, pre-comit, pre_lock"
	if strings.Join(got, ", ") != want {
		t.Errorf("got %v, want %s", got, want)
	}
}

// Whatever a hook prints, a user sees two lines of bounded length.
func TestLines(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		text := string(rapid.SliceOfN(rapid.Byte(), 0, 8<<10).Draw(t, "text"))
		first, rest := lines(text)
		for _, s := range []string{first, rest} {
			if s != parcel.Clean(s) || len(s) > maxSaid+len(" …") || strings.ContainsAny(s, "\n\r\x1b") {
				t.Fatalf("%q: %q", text, s)
			}
		}
		if strings.TrimSpace(strings.ToValidUTF8(text, "?")) != "" && first == "" && parcel.Clean(text) == text {
			t.Fatalf("%q: nothing of it is left", text)
		}
	})
}

// isr-hooks(5) has every event, variable and field.
func TestMan(t *testing.T) {
	text, err := os.ReadFile("../man/isr-hooks.5")
	if err != nil {
		t.Fatal(err)
	}
	page := string(text)
	events, _, _ := strings.Cut(page, ".Ss What a hook is told")
	for _, op := range event.Ops {
		if !regexp.MustCompile(`(?m)^\.It Cm.* ` + op + `( |$)`).MatchString(events) {
			t.Errorf("event %s: not in isr-hooks(5)", op)
		}
	}
	for _, v := range new(Runner).environment(Hook{}, event.Event{}) {
		name, _, _ := strings.Cut(v, "=")
		if !regexp.MustCompile(`\bEv ` + name + `\b`).MatchString(page) {
			t.Errorf("variable %s: not in isr-hooks(5)", name)
		}
	}
	for _, f := range reflect.VisibleFields(reflect.TypeFor[event.Event]()) {
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if name != "error" && name != "kind" && !strings.Contains(page, " Ta "+name+" Ta ") && !strings.Contains(page, ".It Ta "+name+" Ta ") {
			t.Errorf("field %s: not in isr-hooks(5)", name)
		}
	}
}
