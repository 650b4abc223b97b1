// Package page shows a study's database as one page of HTML: every metric of
// the pilot with its number, a plot where there is a series, a table, and what
// is not answered and why. The page needs no network, no script and no other
// file.
//
// It promises that what the database has is shown as text, whatever it is. It
// computes nothing: what is shown are the views of the database.
package page

import (
	"context"
	"database/sql"
	_ "embed"
	"fmt"
	"html/template"
	"io"
	"math"
	"slices"
	"strings"
	"time"

	"isr/locksrv/study"
	"isr/store/parcel"
)

//go:embed page.html
var text string

//go:embed page.css
var css string

// Options are what the page says of itself.
type Options struct {
	Realm     string
	Made      time.Time // of the database
	From, To  time.Time // days; zero: no bound
	Anonymous bool
}

// data is what the template shows.
type data struct {
	Options
	CSS      template.CSS
	Tiles    []tile
	Sections []section
	Empty    bool
}

type tile struct{ Title, Value string }

type section struct {
	Letter, Title string
	Metrics       []metric
}

type metric struct {
	study.Metric
	Head   string
	Plots  []template.HTML
	Tables []table
	Empty  bool // the database has nothing of it
}

type table struct {
	Name  string
	Heads []string
	Rows  [][]cell
	More  int // rows that are not shown
}

type cell struct {
	Text   string
	Number bool
}

// maxRows is how many rows of a view the page has; the newest.
const maxRows = 26

// Write prints the page of a database.
func Write(ctx context.Context, w io.Writer, db *sql.DB, o Options) error {
	t, err := template.New("page").Funcs(template.FuncMap{"day": func(t time.Time) string { return t.UTC().Format(time.DateOnly) }}).Parse(text)
	if err != nil {
		return err
	}
	o.Realm = parcel.Clean(o.Realm)
	d := data{Options: o, CSS: template.CSS(css)}
	for _, q := range tiles {
		v, err := one(ctx, db, q.query)
		if err != nil {
			return err
		}
		d.Tiles = append(d.Tiles, tile{q.title, v})
	}
	for _, s := range study.Sections {
		sec := section{Letter: s.Letter, Title: s.Title}
		for _, m := range study.Metrics {
			if !strings.HasPrefix(m.ID, s.Letter) {
				continue
			}
			shown, err := show(ctx, db, m)
			if err != nil {
				return fmt.Errorf("metric %s: %w", m.ID, err)
			}
			sec.Metrics = append(sec.Metrics, shown)
		}
		d.Sections = append(d.Sections, sec)
	}
	return t.Execute(w, d)
}

func show(ctx context.Context, db *sql.DB, m study.Metric) (metric, error) {
	out := metric{Metric: m, Empty: true}
	for _, v := range m.Views {
		t, err := read(ctx, db, v)
		if err != nil {
			return metric{}, err
		}
		if len(t.Rows) > 0 {
			out.Tables = append(out.Tables, t)
			out.Empty = false
		}
	}
	if out.Empty {
		return out, nil
	}
	var err error
	if q := heads[m.ID]; q != "" {
		if out.Head, err = one(ctx, db, q); err != nil {
			return metric{}, err
		}
	}
	for _, p := range plots[m.ID] {
		svg, err := p.draw(ctx, db)
		if err != nil {
			return metric{}, err
		}
		if svg != "" {
			out.Plots = append(out.Plots, svg)
		}
	}
	return out, nil
}

// one is the text that a query gives; "" for nothing.
func one(ctx context.Context, db *sql.DB, query string) (string, error) {
	var s sql.NullString
	if err := db.QueryRowContext(ctx, query).Scan(&s); err != nil && err != sql.ErrNoRows {
		return "", fmt.Errorf("%s: %w", query, err)
	}
	return s.String, nil
}

// read reads a view, but for rows that say nothing.
func read(ctx context.Context, db *sql.DB, view string) (table, error) {
	rows, err := db.QueryContext(ctx, "SELECT * FROM "+view)
	if err != nil {
		return table{}, fmt.Errorf("view %s: %w", view, err)
	}
	defer rows.Close()
	t := table{Name: view}
	names, err := rows.Columns()
	if err != nil {
		return table{}, err
	}
	for _, n := range names {
		t.Heads = append(t.Heads, strings.ReplaceAll(n, "_", " "))
	}
	values, into := make([]any, len(names)), make([]any, len(names))
	for i := range values {
		into[i] = &values[i]
	}
	for rows.Next() {
		if err := rows.Scan(into...); err != nil {
			return table{}, err
		}
		var row []cell
		any := false
		for i, v := range values {
			c := format(names[i], v)
			any = any || !c.Number && i > 0 && c.Text != "" || c.Number && c.Text != "0"
			row = append(row, c)
		}
		if any {
			t.Rows = append(t.Rows, row)
		}
	}
	if over := len(t.Rows) - maxRows; over > 0 {
		// What goes by time is newest last; what goes by number, largest first.
		if slices.Contains([]string{"week", "month", "day"}, names[0]) {
			t.Rows = t.Rows[over:]
		} else {
			t.Rows = t.Rows[:maxRows]
		}
		t.More = over
	}
	return t, rows.Err()
}

// format prints a value of a column as people read it.
func format(name string, v any) cell {
	switch x := v.(type) {
	case nil:
		return cell{"", false}
	case string:
		return cell{parcel.Clean(x), false}
	case int64:
		return cell{number(name, float64(x)), true}
	case float64:
		return cell{number(name, x), true}
	}
	return cell{parcel.Clean(fmt.Sprint(v)), false}
}

// isBytes reports whether a column holds bytes, by its name.
func isBytes(name string) bool {
	return strings.HasSuffix(name, "bytes") || slices.Contains([]string{"memory", "size", "disk", "free"}, name)
}

func number(name string, f float64) string {
	if isBytes(name) {
		return bytes(f)
	}
	switch a := math.Abs(f); {
	case f == math.Trunc(f) && a < 1e6:
		return fmt.Sprintf("%.0f", f)
	case a >= 1e9:
		return fmt.Sprintf("%.3g G", f/1e9)
	case a >= 1e6:
		return fmt.Sprintf("%.3g M", f/1e6)
	case a >= 100:
		return fmt.Sprintf("%.0f", f)
	case a < 0.01:
		return fmt.Sprintf("%.2g", f)
	}
	return fmt.Sprintf("%.3g", f)
}

func bytes(f float64) string {
	units := []string{"B", "KiB", "MiB", "GiB", "TiB", "PiB"}
	n := 0
	for math.Abs(f) >= 1024 && n < len(units)-1 {
		f, n = f/1024, n+1
	}
	if n == 0 || math.Abs(f) >= 100 {
		return fmt.Sprintf("%.0f %s", f, units[n])
	}
	return fmt.Sprintf("%.3g %s", f, units[n])
}
