package output

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
	"unicode/utf8"

	"github.com/mattn/go-runewidth"
	"pgregory.net/rapid"
)

func TestVisible(t *testing.T) {
	for _, c := range []struct{ in, utf8, ascii string }{
		{"", "", ""},
		{"plain text\n\twith a tab", "plain text\n\twith a tab", "plain text\n\twith a tab"},
		{"a\x1b[2Jb", "a?[2Jb", "a?[2Jb"},
		{"\x1b]0;title\x07", "?]0;title?", "?]0;title?"},
		{"over\rwritten\b", "over?written?", "over?written?"},
		{"line\r\n", "line\n", "line\n"},
		{"\u009b31m C1", "?31m C1", "?31m C1"},
		{"Latin-1: caf\xe9", "Latin-1: caf?", "Latin-1: caf?"},
		{"UTF-8: café 東京 …", "UTF-8: café 東京 …", "UTF-8: caf? ?? ..."},
		{"exe\u202egnp.\u2066x\u200f", "exe?gnp.?x?", "exe?gnp.?x?"},
		{"a\u2028b\u2029c\x00d\x7f", "a?b?c?d?", "a?b?c?d?"},
	} {
		if got := Visible(c.in, false); got != c.utf8 {
			t.Errorf("%q: %q, want %q", c.in, got, c.utf8)
		}
		if got := Visible(c.in, true); got != c.ascii {
			t.Errorf("%q in ASCII: %q, want %q", c.in, got, c.ascii)
		}
	}
}

func FuzzVisible(f *testing.F) {
	f.Add("a\x1b[2J\xc3", true)
	f.Fuzz(func(t *testing.T, s string, ascii bool) {
		got := Visible(s, ascii)
		if !utf8.ValidString(got) || Visible(got, ascii) != got {
			t.Fatalf("%q: %q", s, got)
		}
		for _, c := range got {
			if c < ' ' && c != '\n' && c != '\t' || c == 0x7f || c >= 0x80 && c < 0xa0 || ascii && c > 0x7f {
				t.Fatalf("%q: %q", s, got)
			}
		}
	})
}

func TestTable(t *testing.T) {
	ls := new(Results).Table()
	ls.Row("box", "acquired", "alice")
	ls.Row("", "here: suspended")
	ls.Rowf("%s\treleased", "a\tb\x1b\nc")
	if got, want := ls.aligned(), "box     acquired  alice\n        here: suspended\na b  c  released\n"; got != want {
		t.Errorf("aligned:\n%swant\n%s", got, want)
	}
	if got, want := ls.list(12), "box\n  acquired\n  alice\n  here:\n    suspended\na b  c\n  released\n"; got != want {
		t.Errorf("list:\n%swant\n%s", got, want)
	}
	if got, want := ls.list(20), "box  acquired  alice\n  here: suspended\na b  c  released\n"; got != want {
		t.Errorf("list:\n%swant\n%s", got, want)
	}
	stat := new(Results).Table("", "total", "hoarded")
	stat.Row("disk", "8.0 MiB", "0 B")
	if got, want := stat.aligned(), "      total    hoarded\ndisk  8.0 MiB  0 B\n"; got != want {
		t.Errorf("aligned:\n%swant\n%s", got, want)
	}
	if got, want := stat.list(40), "disk  total 8.0 MiB  hoarded 0 B\n"; got != want {
		t.Errorf("list:\n%swant\n%s", got, want)
	}
	if got, want := cut(stat.aligned(), 12, false), "      total…\ndisk  8.0 M…\n"; got != want {
		t.Errorf("cut:\n%swant\n%s", got, want)
	}
	if got, want := cut(stat.aligned(), 12, true), "      tot...\ndisk  8.0...\n"; got != want {
		t.Errorf("cut in ASCII:\n%swant\n%s", got, want)
	}
	du := new(Results).Table()
	du.Right = true
	du.Row("N", "NAME")
	du.Row("100", "a long name")
	if got, want := du.aligned(), "  N  NAME\n100  a long name\n"; got != want {
		t.Errorf("to the right:\n%swant\n%s", got, want)
	}
	hostile := new(Results).Table("USER", "WHAT")
	hostile.Row("älice", "a\tb\nc\x1b]0;owned\x07b\u202ec\u009bd\xffe\u2066f\u2028g")
	hostile.Row("bo", "")
	if got, want := hostile.aligned(), "USER   WHAT\nälice  a b c ]0;owned b c d?e f g\nbo\n"; got != want {
		t.Errorf("hostile:\n%qwant\n%q", got, want)
	}
}

// TestTableAny: whatever is in a table, its columns are aligned, and as a list
// it fits the terminal, but for words that do not.
func TestTableAny(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rows := rapid.SliceOfN(rapid.SliceOfN(rapid.String(), 1, 5), 1, 5).Draw(t, "rows")
		width := rapid.IntRange(10, 80).Draw(t, "width")
		tb := new(Results).Table()
		for _, r := range rows {
			tb.Row(r...)
		}
		if n := strings.Count(tb.aligned(), "\n"); n != len(rows) {
			t.Fatalf("%d rows in %d lines", len(rows), n)
		}
		for line := range strings.Lines(tb.list(width)) {
			line = strings.TrimSuffix(line, "\n")
			if runewidth.StringWidth(line) > width && len(strings.Fields(line)) > 1 {
				t.Fatalf("%q does not fit %d", line, width)
			}
		}
	})
}

// TestLost: the first error is the one that is remembered, and nothing is tried
// after it.
func TestLost(t *testing.T) {
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	in, out, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	in.Close()
	defer out.Close()
	for _, test := range []struct {
		f    *os.File
		want string
		gone bool
	}{{full, "standard output: no space left on device", false}, {out, "standard output: broken pipe", true}} {
		stopped := 0
		r := New(test.f)
		r.Stop = func() { stopped++ }
		if r.Err() != nil {
			t.Errorf("before: %v", r.Err())
		}
		for _, write := range []func() error{
			func() error { _, err := fmt.Fprintln(r, "text"); return err },
			func() error { return json.NewEncoder(r.JSON()).Encode(1) },
			func() error { _, err := r.Bytes().Write([]byte("bytes")); return err },
			func() error { w := r.Table(); w.Row("cell"); return w.Print() },
		} {
			var lost *Lost
			if err := write(); !errors.As(err, &lost) || lost != r.Err() || lost.Error() != test.want || lost.Gone() != test.gone {
				t.Errorf("%v, want %s", err, test.want)
			}
		}
		if stopped != 1 || errors.Is(r.Err(), syscall.EPIPE) != test.gone {
			t.Errorf("told %d times", stopped)
		}
	}
}
