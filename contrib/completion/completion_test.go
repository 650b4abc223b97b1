package completion

import (
	"slices"
	"strings"
	"testing"

	"github.com/alecthomas/kong"
	"pgregory.net/rapid"
)

type toy struct {
	Server string `short:"s" help:"Where."`
	Yes    bool   `help:"Say yes."`
	Loud   int    `short:"v" type:"counter"`
	Secret bool   `hidden:""`

	Open struct {
		Name  string            `arg:""`
		Count int               `short:"n"`
		Dry   bool              `short:"d"`
		Set   map[string]string `short:"o"`
		Mode  string            `enum:"fast,slow" default:"fast"`
		Log   string            `type:"path"`
		Place string
	} `cmd:"" aliases:"oo,unlock" help:"Open it."`
	Order struct {
		Dir  string   `arg:"" type:"existingdir"`
		Rest []string `arg:"" optional:""`
	} `cmd:""`
	Gone struct{} `cmd:"" hidden:""`
	Key  struct {
		Add struct {
			File string `arg:"" type:"existingfile"`
		} `cmd:""`
		Del struct{} `cmd:""`
	} `cmd:""`
}

func toyModel(t interface{ Fatal(...any) }) *kong.Application {
	k, err := kong.New(new(toy))
	if err != nil {
		t.Fatal(err)
	}
	return k.Model
}

// names is what a program knows: it answers with all it is told.
func names(p Place) Answer {
	if p.Value.Name != "name" && p.Value.Name != "server" && p.Value.Name != "rest" {
		return Answer{Dirs: p.Value.Name == "place"}
	}
	return Answer{Words: []Word{{Text: "alpha"}, {Text: "beta@" + p.Flags["server"]}, {Text: "n" + p.Flags["count"]}, {Text: "a" + strings.Join(p.Args, "+")}}}
}

func TestComplete(t *testing.T) {
	app := toyModel(t)
	for _, c := range []struct{ line, want string }{
		{"", "open order key"},
		{"o", "open order"},
		{"oo", "oo"},
		{"u", "unlock"},
		{"g", ""},
		{"key ", "add del"},
		{"key add ", ":files"},
		{"key add f ", ""},
		{"order ", ":dirs"},
		{"order d ", "alpha beta@ n ad"},
		{"order d e ", "alpha beta@ n ad+e"},
		{"open ", "alpha beta@ n a"},
		{"open a", "alpha a"},
		{"oo -s x b", "beta@x"},
		{"-sx open b", "beta@x"},
		{"open --server=x b", "beta@x"},
		{"-s x -vv open -dn 3 n", "n3"},
		{"open -dn3 n", "n3"},
		{"open x ", ""},
		{"open x y", ""},
		{"open x -", "-n --count -d --dry -o --set --mode --log --place -h --help -s --server --yes -v --loud"},
		{"open x -d --c", "--count"},
		{"open x -d --d", ""},
		{"open x -o a=b --s", "--set --server"},
		{"open x -v -v --l", "--log --loud"},
		{"open --mode ", "fast slow"},
		{"open --mode=s", "--mode=slow"},
		{"open --log ", ":files"},
		{"open --log=/", ":files"},
		{"open --place http", ":dirs"},
		{"--server=a", "--server=alpha --server=a"},
		{"-s ", "alpha beta@ n a"},
		{"nosuch ", ""},
		{"--nosuch ", ""},
		{"--nosuch=", ""},
		{"open -z ", ""},
		{"open -- -", ""},
		{"open -- a", "alpha a"},
		{"open --yes ", "alpha beta@ n a"},
	} {
		got := strings.Join(strings.Fields(Complete(app, strings.Split(c.line, " "), names).String()), " ")
		got = strings.ReplaceAll(got, " Open it.", "")
		for _, help := range []string{" Where.", " Say yes.", " Show context-sensitive help."} {
			got = strings.ReplaceAll(got, help, "")
		}
		if got != c.want {
			t.Errorf("%q: %q, want %q", c.line, got, c.want)
		}
	}
	if got := Complete(app, nil, nil).String(); !strings.Contains(got, "open\tOpen it.\n") {
		t.Errorf("no words at all: %q", got)
	}
}

// TestAnyLine: whatever is typed, what is offered continues it.
func TestAnyLine(t *testing.T) {
	app := toyModel(t)
	word := rapid.OneOf(rapid.SampledFrom([]string{"", "-", "--", "=", "-s", "-n", "-dn", "--mode", "--mode=", "--server", "open", "oo", "key", "add", "o", "--s"}), rapid.String())
	rapid.Check(t, func(t *rapid.T) {
		words := rapid.SliceOfN(word, 1, 6).Draw(t, "words")
		typed := words[len(words)-1]
		a := Complete(app, words, func(Place) Answer {
			return Answer{Words: []Word{{Text: "x y"}, {Text: ":z"}, {Text: "ok\n"}, {Text: "fine", Help: "a\tb\nc"}}}
		})
		for _, w := range a.Words {
			if !strings.HasPrefix(w.Text, typed) {
				t.Fatalf("%q offered for %q", w.Text, typed)
			}
		}
		for line := range strings.Lines(a.String()) {
			w, help, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "\t")
			if strings.ContainsAny(w, " \t") || strings.ContainsAny(help, "\t") || w == "" {
				t.Fatalf("line %q", line)
			}
		}
	})
}

func TestScripts(t *testing.T) {
	for _, shell := range Shells {
		text, err := Script(shell, "some-program")
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(text, "PROGRAM") || strings.Contains(text, "NAME") || !strings.Contains(text, "some-program") {
			t.Errorf("%s:\n%s", shell, text)
		}
	}
	if _, err := Script("csh", "p"); err == nil || slices.Contains(Shells, "csh") {
		t.Error("csh is not known, and nobody said so")
	}
}
