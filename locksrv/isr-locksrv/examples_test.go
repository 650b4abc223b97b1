package main

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/alecthomas/kong"
	"mvdan.cc/sh/v3/syntax"

	"isr/locksrv"
)

// examples are the texts in which an administrator finds command lines, and
// which of a text's lines are such. The first group of a pattern is the line.
var examples = []struct {
	files string
	lines *regexp.Regexp
	least int // so many commands must be found
}{
	// One line, or within a sentence; displays are taken as a whole.
	{"../../man/*.[1578]", regexp.MustCompile(`(?m)^\.(?:Dl|Ic) (.*\bisr-locksrv\b.*)$`), 40},
	{"../../README.md", regexp.MustCompile(`(?m)^    (.*\bisr-locksrv\b.*)$`), 3},
	{"../../hooks/samples/*", regexp.MustCompile(`(?s)^(.*)$`), 2},
	{"../../contrib/systemd/*.service", regexp.MustCompile(`(?m)^Exec\w+=-?(.*)$`), 3},
	{"../../contrib/sshd/*", regexp.MustCompile(`(?m)^(?:#\t|\t(?:AuthorizedKeysCommand|ForceCommand) )(.*\bisr-locksrv\b.*)$`), 5},
	{"../../contrib/package/README.Debian", regexp.MustCompile(`(?m)^\t(.*\bisr-locksrv\b.*)$`), 1},
}

var (
	display = regexp.MustCompile(`(?s)\n\.Bd [^\n]*\n(.*?)\n\.Ed\n`)
	// prompt is what stands before a command: a shell's prompt, or when and
	// as whom cron(8) runs it.
	prompt = regexp.MustCompile(`^(?:[#$>] |(?:[0-9*/,-]+ ){5}\w+ )`)
	// asked begins a command line, where there is output as well.
	asked = regexp.MustCompile(`^(?:[#$] |(?:[0-9*/,-]+ ){5}\w+ |isr-locksrv )`)
)

// shellLines is the shell's part of a display: what was typed, with the lines
// that go on with it, and none of what was answered.
func shellLines(text string) string {
	var typed strings.Builder
	on := false
	for line := range strings.Lines(text + "\n") {
		if asked.MatchString(line) || on || strings.HasPrefix(line, "> ") {
			typed.WriteString(prompt.ReplaceAllString(line, ""))
			on = strings.HasSuffix(line, "\\\n")
		}
	}
	return typed.String()
}

// roff undoes what mdoc(7) needs in a line.
var roff = strings.NewReplacer(" Fl ", " -", " Ar ", " ", `\e`, `\`, `\(dq`, `"`, `\(aq`, `'`, `\-`, `-`, `\&`, "")

// commandLines are the arguments of each isr-locksrv in a script, those in its
// words included, as in runuser -c 'isr-locksrv user list'. What an expansion
// would be is "1", which is a name as well as a number.
func commandLines(t *testing.T, where, script string) (all [][]string) {
	t.Helper()
	file, err := syntax.NewParser(syntax.Variant(syntax.LangPOSIX)).Parse(strings.NewReader(script), where)
	if err != nil {
		t.Errorf("%q: %v", script, err)
		return nil
	}
	syntax.Walk(file, func(n syntax.Node) bool {
		call, ok := n.(*syntax.CallExpr)
		if !ok {
			return true
		}
		var words []string
		for _, w := range call.Args {
			text, quoted := wordText(w)
			if quoted && strings.Contains(text, "isr-locksrv ") {
				all = append(all, commandLines(t, where, text)...)
				continue
			}
			if text != "" || quoted {
				words = append(words, text)
			}
		}
		for i, w := range words {
			if filepath.Base(w) == "isr-locksrv" && programBefore(words[:i]) {
				all = append(all, words[i+1:])
				break
			}
		}
		return true
	})
	return all
}

// programBefore: these words run the command after them.
func programBefore(words []string) bool {
	return len(words) == 0 || words[0] == "exec" || words[0] == "runuser" || words[0] == "sudo" || words[0] == "env" ||
		words[0] == "AuthorizedKeysCommand" || words[0] == "ForceCommand"
}

// several is a word that is an expansion without quotes: one word, or none, or
// many.
const several = "\x00"

// wordText is a word as a program gets it.
func wordText(w *syntax.Word) (text string, quoted bool) {
	var b strings.Builder
	for _, p := range w.Parts {
		switch p := p.(type) {
		case *syntax.Lit:
			b.WriteString(strings.NewReplacer("\\\n", "", `\`, "").Replace(p.Value))
		case *syntax.SglQuoted:
			b.WriteString(p.Value)
			quoted = true
		case *syntax.DblQuoted:
			quoted = true
			inner, _ := wordText(&syntax.Word{Parts: p.Parts})
			b.WriteString(strings.ReplaceAll(inner, several, "1"))
		default:
			b.WriteString("1")
			// To systemd.service(5), ${NAME} is one word.
			if e, ok := p.(*syntax.ParamExp); len(w.Parts) == 1 && (!ok || e.Short) {
				return several, false
			}
		}
	}
	return b.String(), quoted
}

// TestExamples: every command line of isr-locksrv in a page, the README, a
// sample or a unit is one that the program takes.
func TestExamples(t *testing.T) {
	for _, from := range examples {
		found := 0
		names, err := filepath.Glob(from.files)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			p, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			text := string(p)
			var scripts []string
			sentence := make(map[string]bool)
			man := strings.Contains(from.files, "/man/")
			if man {
				for _, m := range display.FindAllStringSubmatch(text, -1) {
					if strings.Contains(m[1], "isr-locksrv ") {
						scripts = append(scripts, shellLines(roff.Replace(m[1])))
					}
				}
			}
			for _, m := range from.lines.FindAllStringSubmatch(text, -1) {
				line := m[1]
				if man {
					line = roff.Replace(line)
				}
				if strings.HasPrefix(text, "#!") && len(line) == len(text) {
					scripts = append(scripts, line) // a program of its own
					continue
				}
				line = prompt.ReplaceAllString(line, "")
				if c, _, ok := strings.Cut(strings.TrimPrefix(line, `command="`), `"`); ok && strings.HasPrefix(line, "command=") {
					line = c // a line of authorized_keys
				}
				line = strings.TrimRight(line, " ,.;:")
				sentence[line] = strings.HasPrefix(m[0], ".Ic")
				scripts = append(scripts, line)
			}
			for _, script := range scripts {
				for _, args := range commandLines(t, name, script) {
					found++
					if sentence[script] && isCommand(t, args) {
						continue // its name, in a sentence
					}
					one := strings.Split(strings.ReplaceAll(strings.Join(args, "\n"), several, "1"), "\n")
					none := slices.DeleteFunc(slices.Clone(args), func(w string) bool { return w == several })
					if err := parses(t, one); err != nil && (len(none) == len(args) || parses(t, none) != nil) {
						t.Errorf("%s: isr-locksrv %s: %v", filepath.Base(name), strings.Join(one, " "), err)
					}
				}
			}
		}
		if found < from.least {
			t.Errorf("%s: %d command lines of isr-locksrv found, want %d at least", from.files, found, from.least)
		}
		t.Logf("%s: %d", from.files, found)
	}
}

// isCommand: args are the name of a command, or of a group of them.
func isCommand(t *testing.T, args []string) bool {
	t.Helper()
	_, parser, err := grammar()
	if err != nil {
		t.Fatal(err)
	}
	node := parser.Model.Node
	for _, arg := range args {
		i := slices.IndexFunc(node.Children, func(n *kong.Node) bool { return n.Name == arg })
		if i < 0 {
			return false
		}
		node = node.Children[i]
	}
	return true
}

// exampleGrammar is the grammar to which files that only the reader has are no
// matter.
var exampleGrammar = sync.OnceValues(func() (*kong.Kong, error) {
	anything := kong.MapperFunc(func(ctx *kong.DecodeContext, target reflect.Value) error {
		var file string
		err := ctx.Scan.PopValueInto("file", &file)
		if target.Kind() == reflect.Slice {
			target.Set(reflect.Append(target, reflect.ValueOf(file)))
		} else {
			target.SetString(file)
		}
		return err
	})
	return kong.New(new(cli), kong.Vars{"conf": confFile, "root": "R"}, kong.Exit(func(int) {}),
		kong.NamedMapper("existingfile", anything), kong.NamedMapper("existingdir", anything))
})

// parses holds args to the grammar; nothing is run.
func parses(t *testing.T, args []string) error {
	t.Helper()
	if _, rest, _ := leadingRoot(args); len(rest) > 0 && strings.HasPrefix(rest[0], scriptPrefix) {
		if !slices.Contains(locksrv.Verbs(), rest[0]) {
			return errors.New("no such verb")
		}
		return nil
	}
	parser, err := exampleGrammar()
	if err != nil {
		t.Fatal(err)
	}
	unset(parser)
	_, err = parser.Parse(args)
	return err
}
