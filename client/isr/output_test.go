package main

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/alecthomas/kong"
	"pgregory.net/rapid"

	"isr/store/parcel"
)

func TestUsageError(t *testing.T) {
	app, err := newParser(new(grammar), newScreen(), "isr", "")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ line, err, hint string }{
		{"uuid x -F", "uuid: no option -F; resume has it", "isr help uuid"},
		{"uuid x -d", "uuid: no option -d; checkout, export-lka, hoard and resume have it", "isr help uuid"},
		{"-F resume x", "no option -F before the command; behind it, resume has it", "isr help lists the commands, isr(1) explains them"},
		{"uuid x --rolback 1", "uuid: no option --rolback", "isr help uuid"},
		{"resume x --rolback 1", "resume: no option --rolback", "the nearest is --rollback"},
		{"resume x -Z", "resume: no option -Z", "isr help resume"},
		{"resum x", "command resum: there is none", "the nearest is resume; isr help lists the commands, isr(1) explains them"},
		{"xyzzy", "command xyzzy: there is none", "isr help lists the commands, isr(1) explains them"},
		{"resume", "resume: PARCEL is missing", "isr help resume"},
		{"resume a b", "resume: one word too many: b", "isr help resume"},
		{"-q", "a command is missing", "isr help lists the commands, isr(1) explains them"},
		{"ls -L x", "ls: option --longvers: want a number, not x", "isr help ls"},
		{"ls -L -3", "ls: option --longvers: want a number, not -3", "isr help ls"},
		{"sync x -b", "sync: option --bwlimit: its value is missing", "isr help sync"},
		{"sync x -b 99999999999999999999", "sync: option --bwlimit: want a number, not 99999999999999999999", "isr help sync"},
		{"auth --lifetime x", "auth: option --lifetime: want a time, as 90m or 8h, not x", "isr help auth"},
		{"sync x -C x", `sync: --compression must be one of "auto",`, "isr help sync"},
		{"completion csh", `completion: <shell> must be one of "bash","zsh","fish" but got "csh"`, "isr help completion"},
	} {
		_, err := app.Parse(strings.Fields(c.line))
		var pe *kong.ParseError
		if !asParseError(err, &pe) {
			t.Errorf("%s: %v", c.line, err)
			continue
		}
		e := usageError(app.Model, "isr", pe.Context, err).(*parcel.Error)
		if e.Kind != parcel.Usage || !strings.HasPrefix(e.Msg, c.err) || e.Hint != c.hint {
			t.Errorf("%s:\n%s\n%s\nwant\n%s\n%s", c.line, e.Msg, e.Hint, c.err, c.hint)
		}
	}
}

func asParseError(err error, pe **kong.ParseError) bool {
	e, ok := err.(*kong.ParseError)
	*pe = e
	return ok
}

func TestNearest(t *testing.T) {
	words := []string{"checkin", "checkout", "ls", "hoard", "lshoard", "rmhoard", "ci"}
	for in, want := range map[string]string{"chekin": "checkin", "chckout": "checkout", "hord": "hoard", "sl": "", "l": "", "lshord": "lshoard", "zzz": "", "": "", "cj": ""} {
		if got := nearest(in, words); got != want {
			t.Errorf("%s: %q, want %q", in, got, want)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		a, b := rapid.StringN(0, 8, 16).Draw(t, "a"), rapid.StringN(0, 8, 16).Draw(t, "b")
		d := distance(a, b)
		if d != distance(b, a) || (d == 0) != (a == b) || d > max(len(a), len(b)) {
			t.Fatalf("%q to %q: %d", a, b, d)
		}
	})
}

// TestOneWayOut: nothing reaches standard output but through stdout, which
// makes it visible and notices when it is lost.
func TestOneWayOut(t *testing.T) {
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	fset := token.NewFileSet()
	for _, name := range files {
		if name == "output.go" || strings.HasSuffix(name, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(fset, name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(f, func(n ast.Node) bool {
			s, ok := n.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			x, ok := s.X.(*ast.Ident)
			if ok && (x.Name == "os" && s.Sel.Name == "Stdout" || x.Name == "fmt" && slices.Contains([]string{"Print", "Println", "Printf"}, s.Sel.Name)) {
				t.Errorf("%s: %s.%s: results go to stdout", fset.Position(s.Pos()), x.Name, s.Sel.Name)
			}
			return true
		})
	}
}
