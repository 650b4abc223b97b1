package store_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"isr/store/storetest"
	"isr/store/tree"
)

// A power cut takes what no fsync covered. TestPowerCut reads the system calls
// of one call of the store, made in a child under strace, and asserts what was
// durable at the instants that matter.
func TestPowerCut(t *testing.T) {
	if out, err := exec.Command("strace", "-f", "true").CombinedOutput(); err != nil {
		t.Skipf("strace does not work here: %v: %.100s", err, out)
	}
	trace := func(t *testing.T, c storetest.Crash) []event {
		t.Helper()
		c.Step = -1
		log := filepath.Join(t.TempDir(), "trace")
		cmd := exec.Command("strace", "-f", "-y", "-o", log, "-e",
			"trace=openat,write,pwrite64,fsync,fdatasync,syncfs,rename,renameat,renameat2,link,linkat,symlink,symlinkat,mkdir,mkdirat,unlink,unlinkat", os.Args[0])
		cmd.Env = append(os.Environ(), c.Env(t))
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		p, err := os.ReadFile(log)
		if err != nil {
			t.Fatal(err)
		}
		return parseTrace(t, string(p), c.Root)
	}
	t.Run("commit", func(t *testing.T) {
		s := storetest.NewOnDisk(t)
		p := storetest.NewParcel(t, s)
		c := storetest.Crash{Op: "commit", Root: s.Root(), Request: storetest.Holding(t, p, storetest.Change{1: storetest.ChunkOf("one"), 300: storetest.ChunkOf("three hundred")})}
		events := trace(t, c)
		moved := 0
		for i, e := range events {
			// What is renamed into hdk was synced after the last write to it; it
			// was staged by another process, so any sync in this one will do.
			if e.op == "rename" && strings.HasPrefix(e.path, p.HdkDir()+"/") {
				moved++
				if !slices.ContainsFunc(events[:i], func(e event) bool { return e.op == "syncfs" }) {
					t.Errorf("%s is visible before it was synced", e.path)
				}
			}
		}
		if moved != 6 {
			t.Errorf("%d objects were moved, want 6", moved)
		}
		wantPublished(t, events, filepath.Join(p.LockDir(), tree.ConfigFile))
	})
	t.Run("create", func(t *testing.T) {
		s := storetest.NewOnDisk(t)
		wantPublished(t, trace(t, storetest.Crash{Op: "create", Root: s.Root()}), filepath.Join(s.UserAt("alice").At("new").LockDir(), tree.ConfigFile))
	})
	t.Run("copy", func(t *testing.T) {
		s := storetest.NewOnDisk(t)
		storetest.NewParcel(t, s)
		wantPublished(t, trace(t, storetest.Crash{Op: "copy", Root: s.Root()}), filepath.Join(s.UserAt("bob").At("new").LockDir(), tree.ConfigFile))
	})
	t.Run("import", func(t *testing.T) {
		s := storetest.NewOnDisk(t)
		image := filepath.Join(t.TempDir(), "image")
		if err := os.WriteFile(image, storetest.Random(20*storetest.Chunk, 3), 0o600); err != nil {
			t.Fatal(err)
		}
		wantPublished(t, trace(t, storetest.Crash{Op: "import", Root: s.Root(), Image: image}), filepath.Join(s.UserAt("alice").At("new").LockDir(), tree.ConfigFile))
	})
	t.Run("prune", func(t *testing.T) {
		s := storetest.NewOnDisk(t)
		p := storetest.NewParcel(t, s)
		for n := range 3 {
			storetest.Commit(t, p, storetest.Change{1: storetest.Random(storetest.Chunk, uint64(n))})
		}
		events := trace(t, storetest.Crash{Op: "prune", Root: s.Root()})
		removed := 0
		for i, e := range events {
			if e.op != "unlink" || !strings.HasPrefix(e.path, p.HdkDir()) && filepath.Dir(e.path) != p.LockDir()+"/keys" {
				continue
			}
			removed++
			// Objects go when the records are gone for good, records when the
			// directories are.
			for j, before := range events[:i] {
				dir := p.ContentDir()
				switch {
				case before.op == "rename" && filepath.Dir(before.path) == p.ContentDir():
				case before.op == "unlink" && filepath.Dir(before.path) == p.LockDir()+"/keys" && strings.HasPrefix(e.path, p.HdkDir()):
					dir = p.LockDir() + "/keys"
				default:
					continue
				}
				if !slices.ContainsFunc(events[j:i], func(e event) bool { return e.op == "fsync" && e.path == dir }) {
					t.Errorf("%s was removed, and a power cut would still undo: %s %s", e.path, before.op, before.path)
				}
			}
		}
		if removed < 8 {
			t.Errorf("only %d files were removed: does the test see them?", removed)
		}
	})
	for op, user := range map[string]string{"rename": "alice", "give": "bob"} {
		t.Run(op, func(t *testing.T) {
			s := storetest.NewOnDisk(t)
			storetest.NewParcel(t, s)
			// Each of the three when those before are durable.
			events, p := trace(t, storetest.Crash{Op: op, Root: s.Root()}), s.UserAt(user).At("new")
			for _, path := range []string{p.LockDir(), p.ContentDir(), filepath.Join(p.LockDir(), tree.ConfigFile)} {
				wantPublished(t, events, path)
			}
		})
	}
	t.Run("tag", func(t *testing.T) {
		s := storetest.NewOnDisk(t)
		p := storetest.NewParcel(t, s)
		wantPublished(t, trace(t, storetest.Crash{Op: "tag", Root: s.Root()}), p.VersionFile(1))
	})
	t.Run("acquire", func(t *testing.T) {
		s := storetest.NewOnDisk(t)
		p := storetest.NewParcel(t, s)
		wantPublished(t, trace(t, storetest.Crash{Op: "acquire", Root: s.Root()}), filepath.Join(p.LockDir(), tree.NonceFile))
	})
}

// event is one system call that changed names or content, or made some
// durable.
type event struct {
	op   string // write, rename, link, symlink, mkdir, unlink, fsync, syncfs
	path string // of what it changed; of a rename, the new name
	from string // of a rename, the old name
}

// wantPublished fails unless the name path appeared when everything before was
// durable, and was durable itself at the end.
func wantPublished(t *testing.T, events []event, path string) {
	t.Helper()
	i := slices.IndexFunc(events, func(e event) bool { return (e.op == "rename" || e.op == "link") && e.path == path })
	if i < 0 {
		t.Fatalf("%s was not published, in %d events", path, len(events))
	}
	for _, e := range pending(events[:i]) {
		// The name of the temp file itself need not be there after a power cut.
		if e.op != "create" || e.path != events[i].from {
			t.Errorf("%s was published, and a power cut would still undo: %s %s", filepath.Base(path), e.op, e.path)
		}
	}
	for n, e := range events[i+1:] {
		if e.op != "unlink" { // of the temp file
			if e.op != "fsync" || e.path != filepath.Dir(path) {
				t.Errorf("%s was published, and then came: %s %s; want fsync of its directory", filepath.Base(path), e.op, e.path)
			}
			break
		}
		if n == len(events)-i-2 {
			t.Errorf("%s was published and never made durable", filepath.Base(path))
		}
	}
	// What becomes visible in hdk, one by one or all at once, is durable.
	for i, e := range events {
		if e.op != "rename" || !strings.Contains(e.path+"/", "/hdk/") {
			continue
		}
		for _, p := range pending(events[:i]) {
			if strings.HasPrefix(p.path, e.from) && p.op == "write" {
				t.Errorf("%s is visible, and a power cut would still undo: %s %s", e.path, p.op, p.path)
			}
		}
	}
	if len(events) < 8 {
		t.Errorf("only %d events: does the test see them?", len(events))
	}
}

// pending are the events that a power cut after them would undo.
func pending(events []event) []event {
	var left []event
	for _, e := range events {
		switch e.op {
		case "syncfs":
			left = nil
		case "fsync":
			// A file's content, or a directory's names.
			left = slices.DeleteFunc(left, func(l event) bool {
				if l.op == "write" {
					return l.path == e.path
				}
				return filepath.Dir(l.path) == e.path
			})
		case "rename":
			// What was pending for the old name is for the new one.
			for i := range left {
				if left[i].path == e.from {
					left[i].path = e.path
				}
			}
			left = append(left, e)
		case "unlink":
			left = slices.DeleteFunc(left, func(l event) bool { return l.path == e.path })
		default:
			left = append(left, e)
		}
	}
	return left
}

var (
	callRE    = regexp.MustCompile(`^(\d+) +(\w+)\((.*)$`)
	resumedRE = regexp.MustCompile(`^(\d+) +<\.\.\. (\w+) resumed>(.*)$`)
	quotedRE  = regexp.MustCompile(`(?:(?:\d+|AT_FDCWD)<([^>]*)>, )?"([^"]*)"(\.\.\.)?`)
	fdRE      = regexp.MustCompile(`^\d+<([^>]*)>`)
)

// parseTrace turns the output of strace into events below root. Derived files
// and flocks are left out: nothing depends on them.
func parseTrace(t *testing.T, log, root string) []event {
	t.Helper()
	var events []event
	begun := make(map[string]string) // by process: a call that has not returned
	for line := range strings.Lines(log) {
		line = strings.TrimSpace(line)
		if m := resumedRE.FindStringSubmatch(line); m != nil {
			line = begun[m[1]] + m[3]
		} else if m := callRE.FindStringSubmatch(line); m != nil && strings.HasSuffix(line, "<unfinished ...>") {
			begun[m[1]] = strings.TrimSuffix(line, "<unfinished ...>")
			continue
		}
		m := callRE.FindStringSubmatch(line)
		if m == nil || strings.Contains(line, " = -1 ") {
			continue
		}
		op, args := m[2], m[3]
		var names []string
		for _, q := range quotedRE.FindAllStringSubmatch(args, -1) {
			name := q[2]
			if !filepath.IsAbs(name) {
				name = filepath.Join(q[1], name) // of an open directory
			}
			names = append(names, name)
		}
		e := event{op: strings.TrimSuffix(strings.TrimSuffix(op, "2"), "at")}
		switch op {
		case "openat":
			if len(names) == 0 || !strings.Contains(args, "O_CREAT") {
				continue
			}
			e.op, e.path = "create", names[0]
		case "write", "pwrite64", "fsync", "fdatasync", "syncfs":
			fd := fdRE.FindStringSubmatch(args)
			if fd == nil {
				continue
			}
			e.path = fd[1]
			e.op = map[string]string{"pwrite64": "write", "fdatasync": "fsync"}[op]
			if e.op == "" {
				e.op = op
			}
		default:
			if len(names) == 0 {
				continue
			}
			e.path, e.from = names[len(names)-1], names[0]
		}
		if !strings.HasPrefix(e.path, root) || filepath.Base(e.path) == tree.FlockFile {
			continue
		}
		events = append(events, e)
	}
	return events
}
