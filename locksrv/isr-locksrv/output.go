package main

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"strings"
	"syscall"
	"unicode"
	"unicode/utf8"

	"github.com/mattn/go-runewidth"
	"golang.org/x/term"

	"isr/store/parcel"
)

// results is standard output: where every result goes. It remembers the first
// error, so that nothing ends well whose result nobody got; and it lets nothing
// through that a terminal would obey, as names, comments and hosts may have it.
type results struct {
	f     *os.File
	tty   bool
	ascii bool // the terminal has nothing else
	err   *lostOutput
	lost  func() // is called then, if it is not nil
}

func newResults(f *os.File) *results {
	tty := term.IsTerminal(int(f.Fd()))
	return &results{f: f, tty: tty, ascii: tty && asciiOnly()}
}

// Write prints text for people.
func (r *results) Write(p []byte) (int, error) {
	if _, err := r.bytes().Write([]byte(visible(string(p), r.ascii))); err != nil {
		return 0, err
	}
	return len(p), nil
}

// bytes is standard output for what no terminal is to show: it goes out as it
// is.
func (r *results) bytes() io.Writer { return exact{r} }

type exact struct{ r *results }

func (x exact) Write(p []byte) (int, error) {
	if x.r.err != nil {
		return 0, x.r.err
	}
	n, err := x.r.f.Write(p)
	if err != nil {
		x.r.err = &lostOutput{gone: errors.Is(err, syscall.EPIPE), why: reason(err)}
		if x.r.lost != nil {
			x.r.lost()
		}
		return n, x.r.err
	}
	return n, nil
}

// rows prints objects, one a line: to a program as they are.
func (r *results) rows() *json.Encoder {
	if r.tty {
		return json.NewEncoder(r)
	}
	return json.NewEncoder(r.bytes())
}

// reading is ctx for what only looks, at length: it ends when nobody gets the
// result.
func (e *env) reading(ctx context.Context) context.Context {
	ctx, e.stdout.lost = context.WithCancel(ctx)
	return ctx
}

// width is the columns of the terminal; 0 if there is none.
func (r *results) width() int {
	if !r.tty {
		return 0
	}
	if w, _, err := term.GetSize(int(r.f.Fd())); err == nil && w > 0 {
		return w
	}
	return 80
}

// lostOutput is the error of a write to standard output.
type lostOutput struct {
	gone bool // the reader has seen enough, as head has
	why  error
}

func (l *lostOutput) Error() string { return "standard output: " + l.why.Error() }

// reason is err without the name that os gives the file.
func reason(err error) error {
	var pe *os.PathError
	if errors.As(err, &pe) {
		return pe.Err
	}
	return err
}

// readerGone is the exit status of a command that such a reader ends: that of
// any other program.
const readerGone = 128 + int(syscall.SIGPIPE)

// asciiOnly reports whether the locale's character set is another than UTF-8,
// of which we know ASCII.
func asciiOnly() bool {
	for _, name := range []string{"LC_ALL", "LC_CTYPE", "LANG"} {
		if v := os.Getenv(name); v != "" {
			v = strings.ToLower(v)
			return !strings.Contains(v, "utf-8") && !strings.Contains(v, "utf8")
		}
	}
	return true
}

// visible is s with a question mark for each character that a terminal would
// obey or reorder text by, for bytes that are no UTF-8 and, for ascii, for
// what the terminal has no character for. Lines and tabs stay.
func visible(s string, ascii bool) string {
	return strings.Map(func(c rune) rune {
		switch {
		case c == '\n', c == '\t':
			return c
		case c == utf8.RuneError, unicode.IsControl(c), unicode.Is(unicode.Bidi_Control, c), c == '\u2028', c == '\u2029',
			ascii && c >= utf8.RuneSelf:
			return '?'
		}
		return c
	}, s)
}

// columns is a table on standard output. On a terminal a line that is too long
// is cut at its end, where the least important column is.
type columns struct {
	out   *results
	right bool // all cells but the last are numbers, aligned to the right
	rows  [][]string
}

// columns begins a table; it has heads or none.
func (r *results) columns(heads ...string) *columns {
	c := &columns{out: r}
	if len(heads) > 0 {
		c.row(heads...)
	}
	return c
}

// row adds a row. What is in a cell breaks neither lines nor columns.
func (c *columns) row(cells ...string) {
	row := make([]string, len(cells))
	for i, cell := range cells {
		row[i] = visible(parcel.Clean(cell), c.out.ascii)
	}
	c.rows = append(c.rows, row)
}

// print prints the table.
func (c *columns) print() error {
	width := c.out.width()
	if c.right {
		width = 0 // the names are at its end
	}
	_, err := io.WriteString(c.out, cut(c.text(), width, c.out.ascii))
	return err
}

func (c *columns) text() string {
	const gap = "  "
	var widths []int
	for _, row := range c.rows {
		for i, cell := range row {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			if i < len(row)-1 { // the last is as wide as it likes
				widths[i] = max(widths[i], runewidth.StringWidth(cell))
			}
		}
	}
	var b strings.Builder
	for _, row := range c.rows {
		for i, cell := range row {
			if i == len(row)-1 {
				b.WriteString(cell)
				break
			}
			pad := strings.Repeat(" ", widths[i]-runewidth.StringWidth(cell))
			if c.right {
				b.WriteString(pad + cell + gap)
			} else {
				b.WriteString(cell + pad + gap)
			}
		}
		b.WriteString("\n")
	}
	return b.String()
}

// cut cuts lines to a width, if that is not 0, and takes away the space at
// their ends.
func cut(text string, width int, ascii bool) string {
	more := "…"
	if ascii {
		more = "..."
	}
	var b strings.Builder
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, " \n")
		if width > 0 {
			line = strings.TrimRight(runewidth.Truncate(line, width, more), " ")
		}
		b.WriteString(line + "\n")
	}
	return b.String()
}
