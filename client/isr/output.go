package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/mattn/go-runewidth"
	"golang.org/x/term"

	"isr/store/parcel"
)

// stdout is where every result goes. It remembers the first error, so that
// isr ends with a status when nobody got the result, and lets nothing through
// that a terminal would obey: much of what isr shows comes from a server.
var stdout = newResults(os.Stdout)

type results struct {
	w     *os.File
	tty   bool
	ascii bool
	err   error
}

func newResults(w *os.File) *results {
	tty := term.IsTerminal(int(w.Fd()))
	return &results{w: w, tty: tty, ascii: tty && asciiOnly()}
}

// Write never fails: failed says how it went.
func (r *results) Write(p []byte) (int, error) {
	r.raw(visible(string(p), r.ascii))
	return len(p), nil
}

// raw writes s as it is.
func (r *results) raw(s string) {
	if r.err == nil {
		_, r.err = io.WriteString(r.w, s)
	}
}

// failed is the error that a command which said all it had to say ends with.
func (r *results) failed() error {
	if r.err == nil {
		return nil
	}
	return parcel.NewError(parcel.KindOf(r.err), "standard output: %v", reason(r.err))
}

// reason is err without the name that os gives the file.
func reason(err error) error {
	if pe, ok := err.(*os.PathError); ok {
		return pe.Err
	}
	return err
}

// width is the columns of the terminal; 0 if there is none.
func (r *results) width() int {
	if !r.tty {
		return 0
	}
	w, _, err := term.GetSize(int(r.w.Fd()))
	if err != nil || w <= 0 {
		return 80
	}
	return w
}

// printJSON prints v. A program reads it as it is; on a terminal it is made
// visible as everything is.
func printJSON(v any) error {
	var b strings.Builder
	enc := json.NewEncoder(&b)
	enc.SetIndent("", "  ")
	if err := enc.Encode(v); err != nil {
		return err
	}
	if stdout.tty {
		fmt.Fprint(stdout, b.String())
	} else {
		stdout.raw(b.String())
	}
	return nil
}

// asciiOnly reports whether the locale's character set is another than UTF-8,
// of which isr knows ASCII.
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
	s = strings.ReplaceAll(s, "\r\n", "\n")
	var b strings.Builder
	for _, c := range s { // a byte that is no UTF-8 comes as U+FFFD
		switch {
		case c == '\n', c == '\t':
			b.WriteRune(c)
		case c == utf8.RuneError, unicode.IsControl(c), unicode.Is(unicode.Bidi_Control, c), c == '\u2028', c == '\u2029':
			b.WriteByte('?')
		case ascii && c == '…':
			b.WriteString("...")
		case ascii && c >= utf8.RuneSelf:
			b.WriteByte('?')
		default:
			b.WriteRune(c)
		}
	}
	return b.String()
}

// A table is rows of cells in aligned columns. On a terminal that is too
// narrow for it, it is a list: rows that are not aligned, as many cells in a
// line as fit, each with its column's head.
type table struct {
	heads []string // "" or none: the column has no head
	right bool     // cells are aligned to the right
	rows  [][]string
}

// row adds a row. What is in a cell breaks neither lines nor columns.
func (t *table) row(cells ...string) {
	row := make([]string, len(cells))
	for i, c := range cells {
		row[i] = visible(parcel.Clean(c), stdout.ascii)
	}
	t.rows = append(t.rows, row)
}

// rowf is row with the cells in a format, a tab between two. What is in an
// argument breaks no cell.
func (t *table) rowf(format string, args ...any) {
	for i, a := range args {
		switch a := a.(type) {
		case string:
			args[i] = parcel.Clean(a)
		case error:
			args[i] = parcel.Clean(a.Error())
		case fmt.Stringer:
			args[i] = parcel.Clean(a.String())
		}
	}
	t.row(strings.Split(fmt.Sprintf(format, args...), "\t")...)
}

func (t *table) print() {
	text := t.aligned()
	if w := stdout.width(); w > 0 {
		for line := range strings.Lines(text) {
			if runewidth.StringWidth(strings.TrimSuffix(line, "\n")) > w {
				text = t.list(w)
				break
			}
		}
	}
	fmt.Fprint(stdout, text)
}

const gap = 2 // columns between two cells

func (t *table) aligned() string {
	rows := t.rows
	if len(t.heads) > 0 {
		rows = append([][]string{t.heads}, rows...)
	}
	var widths []int
	for _, row := range rows {
		for i, c := range row {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			// The last cell of a row is as wide as it likes.
			if i < len(row)-1 || t.right {
				widths[i] = max(widths[i], runewidth.StringWidth(c))
			}
		}
	}
	var b strings.Builder
	for _, row := range rows {
		var line strings.Builder
		for i, c := range row {
			pad := strings.Repeat(" ", max(0, widths[i]-runewidth.StringWidth(c)))
			if i > 0 {
				line.WriteString(strings.Repeat(" ", gap))
			}
			if t.right {
				line.WriteString(pad + c)
			} else {
				line.WriteString(c + pad)
			}
		}
		b.WriteString(strings.TrimRight(line.String(), " ") + "\n")
	}
	return b.String()
}

// list is the table in lines of at most width columns. A row that belongs to
// the one above it, with an empty first cell, is indented, and so is what of a
// row did not fit its first line.
func (t *table) list(width int) string {
	var b strings.Builder
	for _, row := range t.rows {
		indent := "  "
		line := ""
		if row[0] == "" {
			line, indent = indent, "    "
		}
		first := true // on its line
		for i, c := range row {
			if c == "" {
				continue
			}
			if i < len(t.heads) && t.heads[i] != "" {
				c = t.heads[i] + " " + c
			}
			if !first && runewidth.StringWidth(line)+gap+runewidth.StringWidth(c) > width {
				b.WriteString(line + "\n")
				line, first = indent, true
			}
			switch {
			case !first:
				line += strings.Repeat(" ", gap) + c
			case runewidth.StringWidth(line)+runewidth.StringWidth(c) <= width:
				line += c
			default: // the cell alone is too wide
				text := strings.TrimSuffix(wrap(c, width, line, indent), "\n")
				at := strings.LastIndex(text, "\n") + 1
				b.WriteString(text[:at])
				line = text[at:]
			}
			first = false
		}
		b.WriteString(line + "\n")
	}
	return b.String()
}

// wrap is text in lines of at most width columns, the first behind first and
// the others behind indent. A word that is longer has a line of its own.
func wrap(text string, width int, first, indent string) string {
	var b strings.Builder
	line, empty := first, true
	for _, word := range strings.Fields(text) {
		if !empty && runewidth.StringWidth(line)+1+runewidth.StringWidth(word) > width {
			b.WriteString(line + "\n")
			line, empty = indent, true
		}
		if !empty {
			line += " "
		}
		line += word
		empty = false
	}
	return b.String() + line + "\n"
}
