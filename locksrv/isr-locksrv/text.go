package main

import (
	"fmt"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/mattn/go-runewidth"
	"golang.org/x/term"

	"isr/store/parcel"
)

// sizeText prints bytes for people: 3.1 GiB.
func sizeText(n int64) string {
	f, unit := float64(n), ""
	for _, unit = range []string{"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"} {
		if f < 1023.95 || unit == "EiB" {
			break
		}
		f /= 1024
	}
	if unit == "B" {
		return fmt.Sprintf("%d B", n)
	}
	return fmt.Sprintf("%.1f %s", f, unit)
}

// timeText prints a time for people, to the minute, UTC.
func timeText(t time.Time) string { return t.UTC().Format("2006-01-02 15:04") }

// ago says how long ago something was, to one unit.
func ago(t, now time.Time) string {
	d := now.Sub(t)
	for _, u := range []struct {
		unit time.Duration
		name string
	}{{24 * time.Hour, "days"}, {time.Hour, "hours"}, {time.Minute, "minutes"}} {
		if d >= 2*u.unit {
			return fmt.Sprintf("%d %s ago", d/u.unit, u.name)
		}
	}
	return "just now"
}

// counted is a number of things.
func counted(n int64, one string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %ss", n, one)
}

// columns is a table on standard output. On a terminal a line that is too long
// is cut at its end, where the least important column is.
type columns struct {
	text strings.Builder
	tab  *tabwriter.Writer
}

func newColumns(heads ...string) *columns {
	c := new(columns)
	c.tab = tabwriter.NewWriter(&c.text, 0, 8, 2, ' ', 0)
	c.row(heads...)
	return c
}

// row adds a row. What is in a cell breaks neither lines nor columns.
func (c *columns) row(cells ...string) {
	for i := range cells {
		cells[i] = parcel.Clean(cells[i])
	}
	fmt.Fprintln(c.tab, strings.Join(cells, "\t"))
}

func (c *columns) print(w *os.File) error {
	c.tab.Flush()
	width := 0
	if term.IsTerminal(int(w.Fd())) {
		width, _, _ = term.GetSize(int(w.Fd()))
	}
	_, err := w.WriteString(cut(c.text.String(), width))
	return err
}

// cut cuts lines to a width, if that is not 0, and takes away the space at
// their ends.
func cut(text string, width int) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, " \n")
		if width > 0 {
			line = strings.TrimRight(runewidth.Truncate(line, width, "…"), " ")
		}
		b.WriteString(line + "\n")
	}
	return b.String()
}
