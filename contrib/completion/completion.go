// Package completion completes command lines by their grammar.
//
// Words walks a kong model as the parser would and says what may come next:
// commands and aliases, flags short and long, the words of an enumeration,
// files. What only the program knows (the names of its parcels, say) it asks
// back for. Script is the little that bash, zsh and fish need to ask the
// program itself, so that what they offer is what the installed program takes.
//
// It promises no errors: a command line that makes no sense has no completion.
package completion

import (
	"fmt"
	"slices"
	"strings"

	"github.com/alecthomas/kong"
)

// Word is one thing that may come next.
type Word struct {
	Text string
	Help string // a few words about it; may be empty
}

// Place is where on a command line a value stands, for a Values.
type Place struct {
	Command *kong.Node        // nil before there is one
	Value   *kong.Value       // the flag or argument
	Flags   map[string]string // flags so far, by long name, with their values
	Args    []string          // arguments so far
	Typed   string            // of the value
}

// Values is what a value may be. It may be more than fits what is typed.
type Values func(Place) Answer

// Answer is what may come next.
type Answer struct {
	Words []Word
	Files bool // or a file's name
	Dirs  bool // or a directory's
}

// Complete says what may come after the words but the last, which is what is
// typed of the word to complete.
func Complete(app *kong.Application, words []string, values Values) Answer {
	if len(words) == 0 {
		words = []string{""}
	}
	w := walk{at: Place{Flags: make(map[string]string)}, node: app.Node, used: make(map[*kong.Flag]bool)}
	for _, word := range words[:len(words)-1] {
		if !w.step(word) {
			return Answer{}
		}
	}
	a := w.next(words[len(words)-1], values)
	a.Words = slices.DeleteFunc(a.Words, func(x Word) bool { return !strings.HasPrefix(x.Text, words[len(words)-1]) })
	return a
}

// walk is how far a command line was read.
type walk struct {
	at      Place
	node    *kong.Node
	used    map[*kong.Flag]bool
	pending *kong.Flag // its value is the next word
	bare    bool       // behind "--": no flags any more
}

// flags are those that may come here: the command's own first.
func (w *walk) flags() []*kong.Flag {
	var fs []*kong.Flag
	for n := w.node; n != nil; n = n.Parent {
		fs = append(fs, n.Flags...)
	}
	return fs
}

func takesValue(f *kong.Flag) bool { return !f.IsBool() && !f.IsCounter() }

// step reads one word; false means that it makes no sense.
func (w *walk) step(word string) bool {
	switch {
	case w.pending != nil:
		w.at.Flags[w.pending.Name] = word
		w.pending = nil
	case w.bare, word == "-", !strings.HasPrefix(word, "-"):
		return w.argument(word)
	case word == "--":
		w.bare = true
	case strings.HasPrefix(word, "--"):
		name, value, has := strings.Cut(word[2:], "=")
		i := slices.IndexFunc(w.flags(), func(f *kong.Flag) bool { return f.Name == name })
		if i < 0 {
			return false
		}
		f := w.flags()[i]
		w.used[f] = true
		w.at.Flags[f.Name] = value
		if takesValue(f) && !has {
			w.pending = f
		}
	default:
		return w.shorts(word[1:])
	}
	return true
}

// shorts reads short flags in one word; the first with a value ends it.
func (w *walk) shorts(letters string) bool {
	for i, c := range letters {
		k := slices.IndexFunc(w.flags(), func(f *kong.Flag) bool { return f.Short == c })
		if k < 0 {
			return false
		}
		f := w.flags()[k]
		w.used[f] = true
		w.at.Flags[f.Name] = ""
		if !takesValue(f) {
			continue
		}
		if rest := letters[i+len(string(c)):]; rest != "" {
			w.at.Flags[f.Name] = strings.TrimPrefix(rest, "=")
		} else {
			w.pending = f
		}
		break
	}
	return true
}

// argument reads a command's name or an argument.
func (w *walk) argument(word string) bool {
	if len(w.node.Children) > 0 {
		for _, c := range w.node.Children {
			if c.Name == word || slices.Contains(c.Aliases, word) {
				w.node, w.at.Command = c, c
				return true
			}
		}
		return false
	}
	w.at.Args = append(w.at.Args, word)
	return w.positional(len(w.at.Args)-1) != nil
}

// positional is the i-th argument, or nil if there are not so many.
func (w *walk) positional(i int) *kong.Value {
	ps := w.node.Positional
	if n := len(ps); i >= n && n > 0 && ps[n-1].IsCumulative() {
		i = n - 1
	}
	if i >= len(ps) {
		return nil
	}
	return ps[i]
}

// next is what may come for what is typed of a word.
func (w *walk) next(typed string, values Values) Answer {
	w.at.Typed = typed
	if w.pending != nil {
		return w.values(w.pending.Value, "", values)
	}
	if name, value, has := strings.Cut(typed, "="); has && strings.HasPrefix(typed, "--") && !w.bare {
		for _, f := range w.flags() {
			if "--"+f.Name == name {
				w.at.Typed = value
				return w.values(f.Value, name+"=", values)
			}
		}
		return Answer{}
	}
	if strings.HasPrefix(typed, "-") && !w.bare {
		return Answer{Words: w.flagWords(typed)}
	}
	if len(w.node.Children) > 0 {
		return Answer{Words: w.commands(typed)}
	}
	if v := w.positional(len(w.at.Args)); v != nil {
		return w.values(v, "", values)
	}
	return Answer{}
}

func (w *walk) flagWords(typed string) []Word {
	var words []Word
	for _, f := range w.flags() {
		if f.Hidden || w.used[f] && !f.IsCounter() && !f.IsCumulative() {
			continue
		}
		if f.Short != 0 && !strings.HasPrefix(typed, "--") {
			words = append(words, Word{"-" + string(f.Short), f.Help})
		}
		words = append(words, Word{"--" + f.Name, f.Help})
	}
	return words
}

// commands are names, and aliases for who has begun to type one: two words for
// one thing are one too many to choose from.
func (w *walk) commands(typed string) []Word {
	var words []Word
	for _, c := range w.node.Children {
		if c.Hidden {
			continue
		}
		words = append(words, Word{c.Name, c.Help})
		for _, alias := range c.Aliases {
			if typed != "" && !strings.HasPrefix(c.Name, typed) {
				words = append(words, Word{alias, c.Help})
			}
		}
	}
	return words
}

// values are the words that v may be, each behind prefix.
func (w *walk) values(v *kong.Value, prefix string, values Values) Answer {
	var a Answer
	if values != nil {
		w.at.Value = v
		a = values(w.at)
	}
	a.Files = a.Files || v.Tag.Type == "path" || v.Tag.Type == "existingfile"
	a.Dirs = a.Dirs || v.Tag.Type == "existingdir"
	if v.Enum != "" {
		for _, e := range v.EnumSlice() {
			if e != "" {
				a.Words = append(a.Words, Word{Text: e})
			}
		}
	}
	for i := range a.Words {
		a.Words[i].Text = prefix + a.Words[i].Text
	}
	return a
}

// The lines of an answer that are no words begin with a colon: no name of
// ours does.
const (
	filesLine = ":files"
	dirsLine  = ":dirs"
)

// String is the answer as the scripts read it: a word a line, a tab and a help
// text behind it.
func (a Answer) String() string {
	var b strings.Builder
	for _, w := range a.Words {
		// A word is one line and one column, whatever made it.
		if strings.ContainsAny(w.Text, "\t\n ") || strings.HasPrefix(w.Text, ":") {
			continue
		}
		b.WriteString(w.Text)
		if w.Help != "" {
			b.WriteString("\t" + strings.Join(strings.Fields(w.Help), " "))
		}
		b.WriteString("\n")
	}
	if a.Files {
		b.WriteString(filesLine + "\n")
	}
	if a.Dirs {
		b.WriteString(dirsLine + "\n")
	}
	return b.String()
}

// Shells are the shells that there is a Script for.
var Shells = []string{"bash", "zsh", "fish"}

// Script is what shell needs to complete program, which answers
//
//	program complete -- WORD...
//
// with an Answer; the last word is the one to complete.
func Script(shell, program string) (string, error) {
	text, ok := map[string]string{"bash": bash, "zsh": zsh, "fish": fish}[shell]
	if !ok {
		return "", fmt.Errorf("shell %s: want one of %s", shell, strings.Join(Shells, ", "))
	}
	name := strings.ReplaceAll(program, "-", "_")
	return strings.NewReplacer("PROGRAM", program, "NAME", name).Replace(text), nil
}
