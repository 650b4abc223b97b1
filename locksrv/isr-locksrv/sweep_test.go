package main

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"unicode"

	"github.com/alecthomas/kong"

	"isr/locksrv"
	"isr/locksrv/locksrvtest"
)

// names are the arguments, by command and then by name, that name something in
// the realm, each with a value that is good. One of them at a time is replaced
// by something wrong, hostile or absurd.
var goodNames = map[string]string{
	"user": "alice", "parcel": "winxp", "to-user": "alice", "to-name": "copied", "name": "alice",
	"new-name": "renamed", "from": "1", "to": "1", "version": "1", "tag": "gold",
}

// goodOthers are arguments that are no names: they are not made hostile.
var goodOthers = map[string]string{
	"key": "9", "target": "DIR/none/backup", "snapshot": "latest", "text": "a comment", "image": "DIR/image", "file": "DIR/new", "dir": "DIR", "command": "check", "shell": "bash",
}

// goodFlags are needed for a command to make sense at all.
var goodFlags = map[string][]string{
	"parcel create": {"--disk", "1M"},
	"parcel prune":  {"--keep", "1"},
}

// notSwept are commands with nothing to replace, or which do not come back.
var notSwept = []string{"serve", "shell", "complete", "completion", "version", "help", "links", "hooks", "authorized-keys", "harvest", "report",
	"backup make", "backup list", "backup verify", "backup prune", "mirror"}

// hostileNames name nothing that alice has, and must name nothing else. The
// first are tried of every argument, the others of every fourth.
var hostileNames = append(worstNames, []string{
	".", "..", "/", "../../users/bob", "/etc/passwd", "\u202egnp.exe", "-x", "-rf", "$(reboot)", "`reboot`", "'; reboot; '", "*", "~",
	strings.Repeat("a", 65), "hoard", "log", ".tmp-x", "UNFINISHED", "secret",
}...)

var worstNames = []string{
	"", "../bob", "winxp/../../../bob/.isr/secret", "winxp\x00x", "a\nb", "\x1b]0;owned\x07", "--",
	strings.Repeat("a", 70000), "9223372036854775808", "-1", "planted", "nobody",
}

// TestSweep gives every command of an administrator, and every verb, each
// argument that names something in every hostile form there is: a clear error,
// the right status, nothing changed, nothing leaked.
func TestSweep(t *testing.T) {
	r := locksrvtest.NewRealm(t)
	r.AddParcel(t, "alice", "winxp")
	r.AddParcel(t, "bob", "secret")
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "image"), make([]byte, 4096), 0o600); err != nil {
		t.Fatal(err)
	}
	// What an attacker with a shell on the server, or a restored backup, may
	// have left: links to another's parcel, and out of the tree.
	outside := filepath.Join(dir, "outside")
	if err := os.WriteFile(outside, []byte("TOPSECRET:=root\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for link, target := range map[string]string{
		"users/mallory":            dir,
		"users/alice/.isr/planted": "../../bob/.isr/secret",
		"users/alice/isr/planted":  "../../bob/isr/secret",
	} {
		if err := os.Symlink(target, filepath.Join(r.Root, link)); err != nil {
			t.Fatal(err)
		}
	}
	secrets := realmSecrets(t, r)
	t.Setenv("ISR_ROOT", r.Root)
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	stdin := os.Stdin
	os.Stdin = null
	defer func() { os.Stdin = stdin }()

	before := tree(t, r.Root)
	check := func(t *testing.T, what string, status int, out string) {
		t.Helper()
		if status == 0 || status > 22 && status != 80 {
			t.Errorf("%s: exit status %d\n%s", what, status, out)
		}
		if !strings.Contains(out, "error: ") {
			t.Errorf("%s: no error is said:\n%s", what, out)
		}
		if i := strings.IndexFunc(out, func(r rune) bool { return r != '\n' && !unicode.IsPrint(r) }); i >= 0 {
			t.Errorf("%s: %q reaches the terminal", what, out[i:])
		}
		if len(out) > 4000 {
			t.Errorf("%s: says %d bytes", what, len(out))
		}
		for _, s := range secrets {
			if strings.Contains(out, s) {
				t.Errorf("%s: leaks %s:\n%s", what, s, out)
			}
		}
	}
	unchanged := func(t *testing.T, what string) {
		t.Helper()
		if after := tree(t, r.Root); after != before {
			t.Errorf("%s: the realm is another one:\n%s", what, difference(before, after))
			before = after
		}
	}
	_, parser, err := grammar()
	if err != nil {
		t.Fatal(err)
	}
	turn := 0
	for _, c := range parser.Model.Leaves(false) {
		path := commandPath(c)
		if slices.Contains(notSwept, path) {
			continue
		}
		swept := 0
		turn++
		for i, hostile := range hostileNames {
			for at, p := range c.Positional {
				if i >= len(worstNames) && (i+at+turn)%4 != 0 || !inTurn(i+at+turn) {
					continue
				}
				args := strings.Fields(path)
				for _, f := range goodFlags[path] {
					args = append(args, f)
				}
				args = append(args, "--")
				named := false
				for i, q := range c.Positional {
					good, ok := goodNames[q.Name]
					named = named || ok && i == at
					if !ok {
						if good, ok = goodOthers[q.Name]; !ok {
							t.Fatalf("%s: say in this test what argument %s is", path, q.Name)
						}
						good = strings.ReplaceAll(good, "DIR", dir)
					}
					if i == at {
						good = hostile
					}
					args = append(args, good)
				}
				if !named || legitimate(path, p.Name, hostile) {
					continue
				}
				swept++
				status, out := inProcess(t, args)
				check(t, fmt.Sprintf("%.200q", args), status, out)
			}
			unchanged(t, fmt.Sprintf("%s with %.80q", path, hostile))
		}
		if len(c.Positional) > 0 && swept == 0 {
			t.Errorf("%s: nothing to be hostile about; say so in notSwept", path)
		}
	}
	for i, hostile := range hostileNames {
		alice := locksrvtest.Direct{Service: r.Service, Session: locksrv.Session{User: "alice"}}
		for j, verb := range locksrv.Verbs() {
			if !inTurn(i + j) {
				continue
			}
			word := "'" + strings.ReplaceAll(hostile, "'", `'\''`) + "'"
			for _, rest := range []string{"", " 1", " 99999999999999999999", " 1 x h a"} {
				out, errs, status := alice.Exec(verb+" "+word+rest, []byte("nonsense\n"))
				check(t, fmt.Sprintf("%s %.100q%s", verb, hostile, rest), status, "error: "+string(out)+string(errs))
			}
		}
		unchanged(t, fmt.Sprintf("verbs with %.80q", hostile))
	}
}

// inTurn thins out what there are thousands of, where each of them is slow: a
// third is as good at finding races.
func inTurn(i int) bool { return !raceEnabled || i%3 == 0 }

// legitimate are values that look hostile and are good names after all, where a
// thing is made.
func legitimate(command, arg, value string) bool {
	if !slices.Contains([]string{"nobody", "secret", "9223372036854775808", "UNFINISHED", "hoard", "log", "planted"}, value) {
		return false
	}
	switch command + " " + arg {
	case "user add name":
		return true
	case "parcel tag tag", "parcel untag tag":
		return value[0] != '9'
	case "parcel create parcel", "parcel import parcel", "parcel copy to-name", "parcel rename new-name":
		return value != "hoard" && value != "log" && value != "planted"
	}
	return false
}

func commandPath(c *kong.Node) string {
	path := c.Name
	for n := c.Parent; n.Parent != nil; n = n.Parent {
		path = n.Name + " " + path
	}
	return path
}

// All command lines that are run here are read by one grammar. It is a new one
// to each of them: kong resets the values, and forgets which were given here.
func init() {
	type made struct {
		*cli
		*kong.Kong
	}
	once := sync.OnceValues(func() (made, error) {
		c, parser, err := newGrammar()
		return made{c, parser}, err
	})
	grammar = func() (*cli, *kong.Kong, error) {
		g, err := once()
		if err == nil {
			unset(g.Kong)
		}
		return g.cli, g.Kong, err
	}
}

// unset has a parser forget what earlier command lines gave.
func unset(parser *kong.Kong) {
	kong.Visit(parser.Model.Node, func(n kong.Visitable, next kong.Next) error {
		switch n := n.(type) {
		case *kong.Node:
			n.Active = false
		case *kong.Value:
			n.Set, n.Active = false, false
		}
		return next(nil)
	})
}

// inProcess runs one command line here, and returns all that it said.
func inProcess(t *testing.T, args []string) (status int, out string) {
	t.Helper()
	f, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer os.Remove(f.Name())
	defer f.Close()
	status = run(append([]string{"isr-locksrv"}, args...), f, f)
	text, err := io.ReadAll(io.NewSectionReader(f, 0, 1<<20))
	if err != nil {
		t.Fatal(err)
	}
	return status, string(text)
}

// realmSecrets are strings that must never be said.
func realmSecrets(t *testing.T, r *locksrvtest.Realm) []string {
	t.Helper()
	secrets := []string{"TOPSECRET"}
	for _, up := range [][2]string{{"alice", "winxp"}, {"bob", "secret"}} {
		p, err := r.Store.Parcel(up[0], up[1])
		if err != nil {
			t.Fatal(err)
		}
		k, err := p.Keyroot(0)
		if err != nil {
			t.Fatal(err)
		}
		cfg, err := p.Config()
		if err != nil {
			t.Fatal(err)
		}
		secrets = append(secrets, fmt.Sprintf("%x", k.Key), fmt.Sprintf("%x", cfg.Secret))
	}
	return secrets
}

// tree is everything in a realm but its log and a lock of processes, for comparing: names, modes,
// targets of links and sums of files.
func tree(t *testing.T, root string) string {
	t.Helper()
	var b bytes.Buffer
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(root, path)
		switch rel {
		case "log":
			return fs.SkipDir
		case "backup.flock": // empty, and there for good
			return nil
		}
		fi, err := d.Info()
		if err != nil {
			return err
		}
		fmt.Fprintf(&b, "%s %v", rel, fi.Mode())
		switch {
		case fi.Mode().IsRegular():
			text, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			fmt.Fprintf(&b, " %x", sha256.Sum256(text))
		case fi.Mode()&fs.ModeSymlink != 0:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			b.WriteString(" " + target)
		}
		b.WriteString("\n")
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// difference is the lines that only one of two trees has.
func difference(before, after string) string {
	var b strings.Builder
	for _, pair := range []struct{ sign, a, b string }{{"-", before, after}, {"+", after, before}} {
		for line := range strings.Lines(pair.a) {
			if !strings.Contains(pair.b, line) {
				b.WriteString(pair.sign + line)
			}
		}
	}
	return b.String()
}
