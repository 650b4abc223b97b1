package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

// TestStories tells every script of testdata/script twice: against the
// built-in daemon, and against Debian's sshd with a forced command; and those
// of testdata/once to the daemon alone, to which the kind of server is nothing.
// A script begins with a realm at $ISR_ROOT that has the users alice and bob,
// and a server for it. Beside testscript's own commands there are:
//
//	host NAME [USER [KEY]]   go on as host NAME: another home directory, of
//	                         USER (alice) with the SSH key of KEY (USER)
//	status N isr ARG...      the command must end with exit status N
//	disk PARCEL LINE         run a line of shell on the parcel's images
//	json PATH [NOT] VALUE    a value in the last stdout, PATH as a.b.0.c
//	set VAR [PATH]           VAR becomes the last stdout, or a value in it
//	objects VAR USER PARCEL  VAR becomes the number of objects on the server
//	server start|stop        the server
//	realm NAME               another realm with a server of its own: $NAME is
//	                         its server, $NAME_ROOT its root
//	web VAR DIR              a web server of DIR: VAR is its host and port
//	spoil DIR HOW            every object below DIR becomes one of HOW: lie,
//	                         short, fifo, device
//	clean                    no mount, nothing in the runtime directory, no
//	                         temporary file is left
//
// Conditions [serve] and [sshd] tell the servers apart; [userns] says that one
// may mount in a user namespace.
func TestStories(t *testing.T) {
	t.Parallel()
	for i, kind := range kinds {
		t.Run(kind.name, func(t *testing.T) {
			t.Parallel()
			testscript.Run(t, testscript.Params{
				Files:               stories(t, i == 0),
				RequireExplicitExec: true,
				RequireUniqueNames:  true,
				Setup: func(env *testscript.Env) error {
					// Once under the race detector will do.
					w := makeWorld(env.T().(testing.TB), env.WorkDir, kind.name, kind.name != "serve")
					w.home(env.T().(testing.TB), "A", "alice", "alice")
					env.Values["world"] = w
					env.Vars = append(env.Vars, w.env("A")...)
					env.Setenv("SERVER", w.addr())
					env.Setenv("CONTENT", filepath.Join(w.root, "users"))
					return nil
				},
				Condition: func(cond string) (bool, error) {
					if cond == "userns" {
						return userNamespaces(), nil
					}
					for _, k := range kinds {
						if cond == k.name {
							return cond == kind.name, nil
						}
					}
					return false, fmt.Errorf("condition %s: unknown", cond)
				},
				Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
					"host": scriptHost, "status": scriptStatus, "disk": scriptDisk, "json": scriptJSON, "set": scriptSet,
					"objects": scriptObjects, "server": scriptServer, "realm": scriptRealm, "clean": scriptClean,
					"web": scriptWeb, "spoil": scriptSpoil,
				},
			})
		})
	}
}

// stories are the scripts, with those that are told once or without.
func stories(t testing.TB, once bool) []string {
	t.Helper()
	pattern := "testdata/script/*.txtar"
	if once {
		pattern = "testdata/*/*.txtar"
	}
	files, err := filepath.Glob(pattern)
	if err != nil || len(files) == 0 {
		t.Fatalf("%s: %d stories, %v", pattern, len(files), err)
	}
	return files
}

// failing is a script as a testing.TB, so that helpers may fail it.
type failing struct {
	testing.TB
	ts *testscript.TestScript
}

func (f failing) Helper()                      {}
func (f failing) Fatal(args ...any)            { f.ts.Fatalf("%s", fmt.Sprint(args...)) }
func (f failing) Fatalf(s string, args ...any) { f.ts.Fatalf(s, args...) }

func worldOf(ts *testscript.TestScript) (*world, testing.TB) {
	return ts.Value("world").(*world), failing{ts: ts}
}

func usage(ts *testscript.TestScript, neg bool, ok bool, text string) {
	if neg || !ok {
		ts.Fatalf("usage: %s", text)
	}
}

func scriptHost(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, neg, len(args) >= 1 && len(args) <= 3, "host NAME [USER [KEY]]")
	w, t := worldOf(ts)
	user := "alice"
	if len(args) > 1 {
		user = args[1]
	}
	key := user
	if len(args) > 2 {
		key = args[2]
	}
	home := filepath.Join(w.dir, args[0])
	if !exists(home) {
		w.home(t, args[0], user, key)
	}
	ts.Setenv("HOME", home)
}

func scriptStatus(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, neg, len(args) >= 2, "status N PROGRAM [ARG...]")
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	err = ts.Exec(args[1], args[2:]...)
	got := 0
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		got, err = exit.ExitCode(), nil
	}
	ts.Check(err)
	if got != want {
		ts.Fatalf("exit status %d, want %d", got, want)
	}
}

func scriptDisk(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) < 2 {
		ts.Fatalf("usage: disk PARCEL LINE [isr resume's ARG...]")
	}
	err := ts.Exec("sh", append([]string{"-c", `p=$1 l=$2; shift 2; printf '%s\n' "$l" | isr resume "$p" -m shell "$@"`, "sh"}, args...)...)
	if (err != nil) != neg {
		ts.Fatalf("disk %s: %v", args[0], err)
	}
}

// find is the value at path in the JSON text, printed.
func find(text, path string) (string, error) {
	dec := json.NewDecoder(strings.NewReader(text))
	dec.UseNumber()
	var v any
	if err := dec.Decode(&v); err != nil {
		return "", err
	}
	for _, name := range strings.Split(path, ".") {
		switch x := v.(type) {
		case map[string]any:
			v = x[name]
		case []any:
			n, err := strconv.Atoi(name)
			if err != nil || n < 0 || n >= len(x) {
				return "", fmt.Errorf("%s: an array of %d has no %s", path, len(x), name)
			}
			v = x[n]
		default:
			return "", fmt.Errorf("%s: %v has no %s", path, v, name)
		}
	}
	return fmt.Sprint(v), nil
}

func scriptJSON(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 2 {
		ts.Fatalf("usage: [!] json PATH VALUE")
	}
	got, err := find(ts.ReadFile("stdout"), args[0])
	ts.Check(err)
	if (got == args[1]) == neg {
		ts.Fatalf("%s is %s", args[0], got)
	}
}

func scriptSet(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, neg, len(args) == 1 || len(args) == 2, "set VAR [PATH]")
	v := strings.TrimSpace(ts.ReadFile("stdout"))
	if len(args) == 2 {
		var err error
		v, err = find(v, args[1])
		ts.Check(err)
	}
	ts.Setenv(args[0], v)
}

func scriptObjects(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, neg, len(args) == 3, "objects VAR USER PARCEL")
	w, t := worldOf(ts)
	ts.Setenv(args[0], strconv.Itoa(len(files(t, w.hdk(args[1], args[2])))))
}

// hdk is where a parcel's objects are on the server.
func (w *world) hdk(user, parcel string) string {
	return filepath.Join(w.root, "users", user, "isr", parcel, "hdk")
}

func scriptServer(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, neg, len(args) == 1, "server start|stop")
	w, t := worldOf(ts)
	switch args[0] {
	case "start":
		w.server.start(t)
	case "stop":
		w.server.stop(t)
	default:
		ts.Fatalf("server %s: start or stop it", args[0])
	}
}

func scriptRealm(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, neg, len(args) == 1, "realm NAME")
	w, t := worldOf(ts)
	other := makeWorld(outliving{t, w.t}, filepath.Join(w.dir, args[0]), w.kind, w.kind != "serve")
	// The same people, known to the same hosts.
	for _, name := range []string{"alice", "bob"} {
		other.must(t, "isr-locksrv", "user", "add", name, "--key", w.keys[name]+".pub")
	}
	if s, ok := other.server.(*sshd); ok {
		writeFile(t, filepath.Join(s.Dir, "authorized_keys"), other.authorizedKeys(t))
	}
	known := filepath.Join(ts.Getenv("HOME"), ".ssh", "known_hosts")
	writeFile(t, known, ts.ReadFile(known)+other.known())
	ts.Setenv(args[0], other.addr())
	ts.Setenv(args[0]+"_ROOT", other.root)
}

// outliving fails a script, and cleans up after its test.
type outliving struct {
	testing.TB
	t testing.TB
}

func (o outliving) Cleanup(f func())                { o.t.Cleanup(f) }
func (o outliving) TempDir() string                 { return o.t.TempDir() }
func (o outliving) Failed() bool                    { return o.t.Failed() }
func (o outliving) Logf(format string, args ...any) { o.t.Logf(format, args...) }

func scriptClean(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, neg, len(args) == 0, "clean")
	w, t := worldOf(ts)
	w.wantClean(t)
}

// wantClean fails the test if isr left anything behind that is nobody's.
func (w *world) wantClean(t testing.TB) {
	t.Helper()
	for _, m := range w.mounts(t) {
		t.Fatalf("mount %s is left", m)
	}
	for _, f := range entries(t, filepath.Join(w.dir, "run", "isr")) {
		if w.authed && strings.HasSuffix(f, ".auth") {
			continue
		}
		t.Fatalf("%s is left in the runtime directory", f)
	}
	for _, f := range entries(t, filepath.Join(w.dir, "tmp")) {
		t.Fatalf("%s is left among temporary files", f)
	}
	homes, err := filepath.Glob(filepath.Join(w.dir, "*", ".isr", ".*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range homes {
		t.Fatalf("%s is left", f)
	}
}

func entries(t testing.TB, dir string) []string {
	t.Helper()
	es, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	var names []string
	for _, e := range es {
		names = append(names, filepath.Join(dir, e.Name()))
	}
	return names
}
