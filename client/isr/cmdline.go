package main

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"

	"github.com/alecthomas/kong"
	"github.com/mattn/go-runewidth"

	"isr/contrib/output"
	"isr/store/parcel"
)

// The command line: its help, and what is said about one that makes no sense.

// newParser is the parser of a grammar. Help goes to standard output.
func newParser(g any, s *screen, name, description string, more ...kong.Option) (*kong.Kong, error) {
	return kong.New(g, append([]kong.Option{kong.Name(name), kong.Description(description), kong.Help(printHelp),
		kong.Writers(stdout, os.Stderr), kong.Exit(func(int) { os.Exit(s.end(nil)) })}, more...)...)
}

// versionFlag is --version.
type versionFlag bool

func (versionFlag) BeforeReset(app *kong.Kong) error {
	fmt.Fprintf(app.Stdout, "isr %s\n", version())
	app.Exit(0)
	return nil
}

// groups is the order in which help lists commands. One that is in none comes
// last.
var groups = []struct {
	title    string
	commands []string
}{
	{"Run a parcel", []string{"resume", "checkout", "sync", "checkin", "discard", "poweroff", "clean", "rescue"}},
	{"See what there is", []string{"ls", "stat", "uuid", "dirtometer"}},
	{"Without a network", []string{"hoard", "lshoard", "rmhoard", "connect-lka", "export-lka"}},
	{"Prove who you are", []string{"auth", "deauth", "passwd"}},
	{"Find what is wrong", []string{"checkp", "checkhoard", "config", "report"}},
	{"About isr", []string{"help", "version", "completion"}},
}

// printHelp is the help of a command, or of the program.
func printHelp(o kong.HelpOptions, ctx *kong.Context) error {
	width := stdout.Width()
	if width == 0 || width > 100 {
		width = 80
	}
	h := helpText{width: width}
	if node := ctx.Selected(); node != nil {
		h.command(ctx.Model, node)
	} else {
		h.program(ctx.Model)
	}
	fmt.Fprint(ctx.Stdout, h.String())
	return nil
}

type helpText struct {
	strings.Builder
	width int
}

func (h *helpText) para(text string) { h.WriteString(output.Wrap(text, h.width, "", "")) }

func (h *helpText) program(app *kong.Application) {
	if len(app.Children) == 0 {
		h.command(app, app.Node)
		return
	}
	h.para("usage: " + app.Name + " COMMAND [PARCEL] [OPTION ...]")
	h.para(app.Help)
	left := visibleCommands(app.Node)
	group := func(title string, nodes []*kong.Node) {
		if len(nodes) == 0 {
			return
		}
		h.WriteString("\n" + title + ":\n")
		for _, n := range nodes {
			h.item(strings.Join(append([]string{n.Name}, n.Aliases...), ", "), n.Help)
		}
	}
	for _, g := range groups {
		var nodes []*kong.Node
		for _, name := range g.commands {
			if i := slices.IndexFunc(left, func(n *kong.Node) bool { return n.Name == name }); i >= 0 {
				nodes = append(nodes, left[i])
				left = slices.Delete(left, i, i+1)
			}
		}
		group(g.title, nodes)
	}
	group("Other commands", left)
	h.WriteString("\n")
	h.flags("Options of every command", app.Flags)
	h.WriteString("\n")
	h.para(app.Name + " help COMMAND tells the options of one.")
}

func (h *helpText) command(app *kong.Application, node *kong.Node) {
	use := "usage: " + node.FullPath()
	if len(node.Aliases) > 0 {
		use = "usage: " + app.Name + " " + strings.Join(append([]string{node.Name}, node.Aliases...), "|")
	}
	for _, p := range node.Positional {
		name := strings.ToUpper(p.Name)
		if p.IsCumulative() {
			name += " ..."
		}
		if !p.Required {
			name = "[" + name + "]"
		}
		use += " " + name
	}
	for _, f := range node.Flags {
		switch {
		case f.Hidden:
		case f.Required:
			use += " " + flagNames(f)[0] + flagValue(f)
		default:
			use += " [" + flagNames(f)[0] + flagValue(f) + "]"
		}
	}
	h.para(use)
	h.para(node.Help)
	for i, p := range node.Positional {
		if i == 0 {
			h.WriteString("\n")
		}
		h.item(strings.ToUpper(p.Name), p.Help)
	}
	if len(node.Flags) > 0 {
		h.WriteString("\n")
		h.flags("Options", node.Flags)
	}
	if node.Parent != nil {
		var general []string
		for _, f := range app.Flags {
			if !f.Hidden {
				general = append(general, flagNames(f)[0])
			}
		}
		h.WriteString("\n")
		h.para("Every command has " + list(general, "and") + ": " + app.Name + " help.")
	}
}

func (h *helpText) flags(title string, flags []*kong.Flag) {
	h.WriteString(title + ":\n")
	for _, f := range flags {
		if !f.Hidden {
			h.item(strings.Join(flagNames(f), ", ")+flagValue(f), f.Help)
		}
	}
}

// item is a term and what it means, beside it or below.
func (h *helpText) item(term, text string) {
	column := min(26, h.width/3)
	lines := output.Wrap(text, h.width, strings.Repeat(" ", column), strings.Repeat(" ", column))
	if runewidth.StringWidth(term) > column-4 {
		h.WriteString("  " + term + "\n" + lines)
		return
	}
	h.WriteString(runewidth.FillRight("  "+term, column) + lines[column:])
}

// flagNames are the forms of a flag, the short one first.
func flagNames(f *kong.Flag) []string {
	if f.Short != 0 {
		return []string{"-" + string(f.Short), "--" + f.Name}
	}
	return []string{"--" + f.Name}
}

// flagValue is what stands behind a flag, with a space before it.
func flagValue(f *kong.Flag) string {
	switch {
	case f.IsBool(), f.IsCounter():
		return ""
	case f.PlaceHolder != "":
		return " " + f.PlaceHolder
	}
	return " " + strings.ToUpper(f.Name)
}

// usageError is what kong says against the command line, said so that one
// knows what to do.
func usageError(app *kong.Application, program string, ctx *kong.Context, err error) error {
	msg := err.Error()
	var node *kong.Node
	if ctx != nil {
		node = ctx.Selected()
	}
	before, hint := "", program+" help lists the commands, isr(1) explains them"
	if len(app.Children) == 0 {
		hint = program + " --help"
	} else if node != nil {
		before, hint = node.Name+": ", program+" help "+node.Name
	}
	fail := func(format string, args ...any) error {
		return parcel.NewError(parcel.Usage, "%s%s", before, fmt.Sprintf(format, args...)).WithHint("%s", hint)
	}
	if word, ok := cutWord(msg, "unknown flag "); ok {
		var have []string
		for _, n := range visibleCommands(app.Node) {
			for _, f := range n.Flags {
				if slices.Contains(flagNames(f), word) {
					have = append(have, n.Name)
				}
			}
		}
		switch {
		case len(have) == 0:
			if near := nearest(word, longFlags(app, node)); near != "" {
				hint = "the nearest is " + near
			}
			return fail("no option %s", word)
		case node == nil:
			return fail("no option %s before the command; behind it, %s %s it", word, list(have, "and"), verb(have, "has", "have"))
		}
		return fail("no option %s; %s %s it", word, list(have, "and"), verb(have, "has", "have"))
	}
	if word, ok := cutWord(msg, "unexpected argument "); ok {
		if node != nil || len(app.Children) == 0 {
			return fail("one word too many: %s", word)
		}
		var names []string
		for _, n := range visibleCommands(app.Node) {
			names = append(append(names, n.Name), n.Aliases...)
		}
		if near := nearest(word, names); near != "" {
			hint = "the nearest is " + near + "; " + hint
		}
		return fail("command %s: there is none", word)
	}
	for _, prefix := range []string{`expected "<`, "missing positional arguments <"} {
		if missing, ok := strings.CutPrefix(msg, prefix); ok {
			name, _, _ := strings.Cut(missing, ">")
			return fail("%s is missing", strings.ToUpper(name))
		}
	}
	if strings.HasPrefix(msg, "expected one of") {
		return fail("a command is missing")
	}
	if m := badValue.FindStringSubmatch(msg); m != nil {
		switch want, ok := wanted[m[2]]; {
		case m[3] == "EOL":
			return fail("option %s: its value is missing", m[1])
		case ok:
			return fail("option %s: want %s, not %s", m[1], want, m[3])
		}
	}
	return fail("%s", strings.Replace(msg, `one of "",`, "one of ", 1))
}

// badValue is how kong says that an option's value is none: the option, what
// was expected, and what there was.
var badValue = regexp.MustCompile(`^(--[a-z-]+): expected (.+?) but got "([^"]*)"`)

// wanted is what kong expects, in other words.
var wanted = map[string]string{
	"a valid 64 bit int": "a number",
	"int value":          "a number",
	"duration":           "a time, as 90m or 8h",
}

// cutWord is the word behind prefix, if msg begins with that.
func cutWord(msg, prefix string) (string, bool) {
	rest, ok := strings.CutPrefix(msg, prefix)
	if i := strings.Index(rest, ", did you mean "); i >= 0 {
		rest = rest[:i]
	}
	return rest, ok
}

func verb(of []string, one, many string) string {
	if len(of) == 1 {
		return one
	}
	return many
}

// list is words as a sentence has them.
func list(words []string, and string) string {
	if len(words) < 2 {
		return strings.Join(words, "")
	}
	return strings.Join(words[:len(words)-1], ", ") + " " + and + " " + words[len(words)-1]
}

// visibleCommands are the commands that help shows.
func visibleCommands(n *kong.Node) []*kong.Node {
	var nodes []*kong.Node
	for _, c := range n.Children {
		if !c.Hidden {
			nodes = append(nodes, c)
		}
	}
	return nodes
}

func longFlags(app *kong.Application, node *kong.Node) []string {
	flags := app.Flags
	if node != nil {
		flags = slices.Concat(flags, node.Flags)
	}
	var names []string
	for _, f := range flags {
		names = append(names, "--"+f.Name)
	}
	return names
}

// nearest is the word that differs from word by the fewest letters, two at
// most and less than half of them, or "".
func nearest(word string, words []string) string {
	best, found := 3, ""
	for _, w := range words {
		if d := distance(word, w); d < best && 2*d < len(w) {
			best, found = d, w
		}
	}
	return found
}

// distance is how many letters must be put in, left out or exchanged to make
// b of a.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
