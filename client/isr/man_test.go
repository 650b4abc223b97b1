package main

import (
	"cmp"
	"maps"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/alecthomas/kong"
)

// manSection is the lines of the page between the header and the next of its
// kind or a higher one.
func manSection(t testing.TB, page, header string) []string {
	t.Helper()
	p, err := os.ReadFile("../../man/" + page)
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	in := false
	for line := range strings.Lines(string(p)) {
		line = strings.TrimSuffix(line, "\n")
		switch {
		case line == header:
			in = true
		case in && (strings.HasPrefix(line, ".Sh") || strings.HasPrefix(line, ".Ss") && strings.HasPrefix(header, ".Ss")):
			in = false
		case in:
			lines = append(lines, line)
		}
	}
	if len(lines) == 0 {
		t.Fatalf("%s: no section %s", page, header)
	}
	return lines
}

// manItem is the head of an item of a list: macros with their arguments.
type manItem [][]string

var manMacro = regexp.MustCompile(`^[A-Z][a-z]$`)

func parseHead(text string) (it manItem) {
	for _, w := range strings.Fields(text) {
		switch {
		case w == "|" || w == ",":
		case manMacro.MatchString(w):
			it = append(it, []string{w})
		case len(it) > 0:
			it[len(it)-1] = append(it[len(it)-1], w)
		}
	}
	return it
}

// manItems are the heads of the items of a section's outermost list.
func manItems(lines []string) (its []manItem) {
	depth := 0
	for i := 0; i < len(lines); i++ {
		line := lines[i]
		switch {
		case strings.HasPrefix(line, ".Bl"):
			depth++
		case strings.HasPrefix(line, ".El"):
			depth--
		case depth != 1:
		case line == ".It Xo":
			head := ""
			for i++; i < len(lines) && lines[i] != ".Xc"; i++ {
				head += " " + strings.TrimPrefix(lines[i], ".")
			}
			its = append(its, parseHead(head))
		case strings.HasPrefix(line, ".It "):
			its = append(its, parseHead(line[len(".It "):]))
		}
	}
	return its
}

// flags are the flags that an item shows: "b" for -b, "-json" for --json.
func (it manItem) flags() []string {
	var fs []string
	for _, m := range it {
		if m[0] != "Fl" {
			continue
		}
		for _, arg := range m[1:] {
			if strings.HasPrefix(arg, "-") {
				fs = append(fs, arg)
				continue
			}
			for _, c := range arg {
				fs = append(fs, string(c))
			}
		}
	}
	slices.Sort(fs)
	return slices.Compact(fs)
}

func testModel(t testing.TB) *kong.Application {
	t.Helper()
	parser, err := newParser(new(grammar), newScreen(), "isr", "")
	if err != nil {
		t.Fatal(err)
	}
	return parser.Model
}

// TestManCommands: the page has every command with its aliases and exactly
// its own options, and no other.
func TestManCommands(t *testing.T) {
	app := testModel(t)
	entries := make(map[string]manItem)
	for _, it := range manItems(manSection(t, "isr.1", ".Ss Commands")) {
		if len(it) == 0 || it[0][0] != "Cm" || len(it[0]) < 2 {
			t.Errorf("entry %v: no command", it)
			continue
		}
		// A command may have several forms, an entry each.
		entries[it[0][1]] = append(entries[it[0][1]], it...)
	}
	for _, c := range visibleCommands(app.Node) {
		it, ok := entries[c.Name]
		if !ok {
			t.Errorf("command %s: not in isr(1)", c.Name)
			continue
		}
		delete(entries, c.Name)
		if names := it[0][1:]; !slices.Equal(names[1:], c.Aliases) {
			t.Errorf("command %s: aliases %q, in isr(1) %q", c.Name, c.Aliases, names[1:])
		}
		var want []string
		for _, f := range c.Flags {
			switch {
			case f.Hidden:
			case f.Short != 0:
				want = append(want, string(f.Short))
			default:
				want = append(want, "-"+f.Name)
			}
		}
		slices.Sort(want)
		if got := it.flags(); !slices.Equal(got, want) {
			t.Errorf("command %s: options %q, in isr(1) %q", c.Name, want, got)
		}
		args := 0
		for _, m := range it {
			if m[0] == "Ar" {
				args++
			}
		}
		if len(c.Positional) > 0 && args == 0 && len(it) < 2 {
			t.Errorf("command %s: its argument is not in isr(1)", c.Name)
		}
	}
	for name := range entries {
		t.Errorf("isr(1) has the command %s, isr has not", name)
	}
}

// TestManOptions: the page has every option with its short and long form, and
// no other.
func TestManOptions(t *testing.T) {
	app := testModel(t)
	forms := func(f *kong.Flag) string {
		if f.Short != 0 {
			return "-" + f.Name + " " + string(f.Short)
		}
		return "-" + f.Name
	}
	has := make(map[string]*kong.Flag)
	note := func(flags []*kong.Flag) {
		for _, f := range flags {
			if !f.Hidden {
				has[forms(f)] = f
			}
		}
	}
	note(app.Flags)
	for _, c := range visibleCommands(app.Node) {
		note(c.Flags)
	}
	byName, byShort := make(map[string]string), make(map[rune]string)
	for form, f := range has {
		if other := byShort[f.Short]; other != "" && f.Short != 0 {
			t.Errorf("-%c: both --%s and --%s", f.Short, f.Name, other)
		}
		byShort[f.Short] = f.Name
		if other := byName[f.Name]; other != "" {
			t.Errorf("--%s: short as in %q and as in %q", f.Name, form, other)
		}
		byName[f.Name] = form
	}
	for _, it := range manItems(manSection(t, "isr.1", ".Ss Options")) {
		form := strings.Join(it.flags(), " ")
		f := has[form]
		if f == nil {
			t.Errorf("isr(1) has the option %s, no command has", form)
			continue
		}
		delete(has, form)
		valued := slices.ContainsFunc(it, func(m []string) bool { return m[0] == "Ar" || m[0] == "Cm" })
		if want := flagValue(f) != ""; valued != want {
			t.Errorf("option %s: with a value in isr(1): %v, in isr: %v", form, valued, want)
		}
	}
	for _, form := range slices.Sorted(maps.Keys(has)) {
		t.Errorf("option %s: not in isr(1)", form)
	}
	for _, line := range manSection(t, "isr.1", ".Sh SYNOPSIS") {
		for _, f := range parseHead(strings.TrimPrefix(line, ".")).flags() {
			if !slices.ContainsFunc(app.Flags, func(a *kong.Flag) bool { return f == string(a.Short) || f == "-"+a.Name }) {
				t.Errorf("the synopsis has -%s, isr has not", f)
			}
		}
	}
}

// TestManStatus: every exit status is in the page, and no other.
func TestManStatus(t *testing.T) {
	source, err := os.ReadFile("../../store/parcel/error.go")
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"0"}
	for _, m := range regexp.MustCompile(`(?m)^\t\w+ +Kind = (\d+)`).FindAllStringSubmatch(string(source), -1) {
		want = append(want, m[1])
	}
	if len(want) < 10 {
		t.Fatalf("kinds %q", want)
	}
	var got []string
	for _, line := range manSection(t, "isr.1", ".Sh EXIT STATUS") {
		if n, ok := strings.CutPrefix(line, ".It "); ok {
			got = append(got, strings.Split(n, " , ")...)
		}
	}
	// 130 is a kind: the others that end a command are signals too.
	for _, sig := range []syscall.Signal{syscall.SIGHUP, syscall.SIGTERM} {
		want = append(want, strconv.Itoa(128+int(sig)))
	}
	byNumber := func(a, b string) int { return cmp.Or(cmp.Compare(len(a), len(b)), cmp.Compare(a, b)) }
	slices.SortFunc(want, byNumber)
	if !slices.Equal(got, want) {
		t.Errorf("exit statuses %q, in isr(1) %q", want, got)
	}
}

// TestScriptNames: the pilot's scripts are the same ones here, in the page and
// where they are installed.
func TestScriptNames(t *testing.T) {
	want := slices.Sorted(maps.Keys(scripts))
	var got []string
	for _, line := range manSection(t, "isr.1", ".Ss The pilot's scripts") {
		if name, ok := strings.CutPrefix(line, ".It Cm "); ok {
			got = append(got, strings.Fields(name)[0])
		}
	}
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("isr(1) has the scripts %q, want %q", got, want)
	}
	makefile, err := os.ReadFile("../../Makefile")
	if err != nil {
		t.Fatal(err)
	}
	got = regexp.MustCompile(`isr_[a-z_]+`).FindAllString(string(makefile), -1)
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("the Makefile installs %q, want %q", got, want)
	}
}

// TestHelpGroups: help lists every command under a title that says what for.
func TestHelpGroups(t *testing.T) {
	var grouped []string
	for _, g := range groups {
		grouped = append(grouped, g.commands...)
	}
	for _, c := range visibleCommands(testModel(t).Node) {
		if !slices.Contains(grouped, c.Name) {
			t.Errorf("command %s: in no group of help", c.Name)
		}
		if c.Help == "" || !strings.HasSuffix(c.Help, ".") {
			t.Errorf("command %s: help %q is no sentence", c.Name, c.Help)
		}
		for _, f := range c.Flags {
			if !f.Hidden && !strings.HasSuffix(f.Help, ".") {
				t.Errorf("command %s: --%s: help %q is no sentence", c.Name, f.Name, f.Help)
			}
		}
	}
}
