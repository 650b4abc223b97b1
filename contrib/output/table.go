package output

import (
	"fmt"
	"io"
	"strings"

	"github.com/mattn/go-runewidth"

	"isr/store/parcel"
)

// A Table is rows of cells in aligned columns. On a terminal that is too
// narrow for it, either each line is cut at its end, where the least important
// column is (Results.Cut); or it is a list: rows that are not aligned, as many
// cells in a line as fit, each with its column's head.
type Table struct {
	Right bool // all cells but the last are numbers, aligned to the right; the names at the end of lines are not cut
	out   *Results
	heads []string // "" or none: the column has no head
	rows  [][]string
}

// Table begins a table; it has heads or none.
func (r *Results) Table(heads ...string) *Table { return &Table{out: r, heads: heads} }

// Row adds a row. What is in a cell breaks neither lines nor columns.
func (t *Table) Row(cells ...string) {
	row := make([]string, len(cells))
	for i, c := range cells {
		row[i] = Visible(parcel.Clean(c), t.out.ASCII)
	}
	t.rows = append(t.rows, row)
}

// Rowf is Row with the cells in a format, a tab between two. What is in an
// argument breaks no cell.
func (t *Table) Rowf(format string, args ...any) {
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
	t.Row(strings.Split(fmt.Sprintf(format, args...), "\t")...)
}

// Print prints the table.
func (t *Table) Print() error {
	text, width := t.aligned(), t.out.Width()
	switch {
	case width == 0 || t.Right:
	case t.out.Cut:
		text = cut(text, width, t.out.ASCII)
	case !fits(text, width):
		text = t.list(width)
	}
	_, err := io.WriteString(t.out, text)
	return err
}

const gap = 2 // columns between two cells

func (t *Table) aligned() string {
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
			if i < len(row)-1 { // the last is as wide as it likes
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
			if t.Right && i < len(row)-1 {
				line.WriteString(pad + c)
			} else {
				line.WriteString(c + pad)
			}
		}
		b.WriteString(strings.TrimRight(line.String(), " ") + "\n")
	}
	return b.String()
}

func fits(text string, width int) bool {
	for line := range strings.Lines(text) {
		if runewidth.StringWidth(strings.TrimSuffix(line, "\n")) > width {
			return false
		}
	}
	return true
}

// cut cuts lines to a width.
func cut(text string, width int, ascii bool) string {
	more := "…"
	if ascii {
		more = "..."
	}
	var b strings.Builder
	for line := range strings.Lines(text) {
		line = runewidth.Truncate(strings.TrimSuffix(line, "\n"), width, more)
		b.WriteString(strings.TrimRight(line, " ") + "\n")
	}
	return b.String()
}

// list is the table in lines of at most width columns. A row that belongs to
// the one above it, with an empty first cell, is indented, and so is what of a
// row did not fit its first line.
func (t *Table) list(width int) string {
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
				text := strings.TrimSuffix(Wrap(c, width, line, indent), "\n")
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

// Wrap is text in lines of at most width columns, the first behind first and
// the others behind indent. A word that is longer has a line of its own.
func Wrap(text string, width int, first, indent string) string {
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
