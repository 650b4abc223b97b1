package page

import (
	"context"
	"database/sql"
	"fmt"
	"html/template"
	"math"
	"regexp"
	"slices"

	"github.com/go-analyze/charts"

	"isr/store/parcel"
)

// plot is a picture of what a query gives.
type plot struct {
	kind  int
	unit  string
	query string
}

// series are the columns of a query's result.
type series struct {
	labels []string
	names  []string
	values [][]float64
}

// maxPoints bounds how many points of a line are drawn; the newest.
const maxPoints = 400

// maxLabel bounds a label, characters.
const maxLabel = 22

func (p plot) read(ctx context.Context, db *sql.DB) (s series, err error) {
	rows, err := db.QueryContext(ctx, p.query)
	if err != nil {
		return s, fmt.Errorf("%s: %w", p.query, err)
	}
	defer rows.Close()
	cols, err := rows.Columns()
	if err != nil {
		return s, err
	}
	s.names, s.values = cols[1:], make([][]float64, len(cols)-1)
	var label sql.NullString
	values, into := make([]sql.NullFloat64, len(cols)-1), []any{&label}
	for i := range values {
		into = append(into, &values[i])
	}
	for rows.Next() {
		if err := rows.Scan(into...); err != nil {
			return s, err
		}
		s.labels = append(s.labels, p.label(label.String))
		for i, v := range values {
			f := v.Float64
			if !v.Valid && p.kind == lines {
				f = charts.GetNullValue()
			}
			s.values[i] = append(s.values[i], f)
		}
	}
	if p.kind == across { // the library begins below
		slices.Reverse(s.labels)
		for i := range s.values {
			slices.Reverse(s.values[i])
		}
	}
	if over := len(s.labels) - maxPoints; over > 0 {
		s.labels = s.labels[over:]
		for i := range s.values {
			s.values[i] = s.values[i][over:]
		}
	}
	return s, rows.Err()
}

// dated matches a label that begins with a year, of weeks and days: the tables
// have the year.
var dated = regexp.MustCompile(`^[0-9]{4}-(W[0-9]{2}|[0-9]{2}-[0-9]{2})$`)

// label is a label that leaves room for the plot.
func (p plot) label(s string) string {
	s = parcel.Clean(s)
	if m := dated.FindStringSubmatch(s); m != nil {
		return m[1]
	}
	if r := []rune(s); len(r) > maxLabel {
		return string(r[:maxLabel-1]) + "…"
	}
	return s
}

// draw is the plot as SVG; "" if there is nothing to draw.
func (p plot) draw(ctx context.Context, db *sql.DB) (template.HTML, error) {
	s, err := p.read(ctx, db)
	if err != nil {
		return "", err
	}
	// One point is no series: it stands in the table.
	if len(s.labels) == 0 || p.kind == lines && len(s.labels) < 2 || !s.any() {
		return "", nil
	}
	height := 260
	if p.kind == across {
		height = 90 + 34*len(s.labels)*max(1, (len(s.names)+1)/2)
	}
	painter := charts.NewPainter(charts.PainterOptions{OutputFormat: charts.ChartOutputSVG, Width: 640, Height: height, Theme: theme})
	small := charts.FontStyle{FontSize: 11}
	legend := charts.LegendOption{SeriesNames: s.names, FontStyle: small, Show: charts.Ptr(len(s.names) > 1), Offset: charts.OffsetRight}
	title := charts.TitleOption{Text: p.unit, FontStyle: charts.FontStyle{FontSize: 12}}
	category := charts.CategoryAxisOption{Labels: s.labels, LabelFontStyle: small, LabelCount: min(len(s.labels), 8)}
	value := charts.ValueAxisOption{LabelFontStyle: small, Min: charts.Ptr(0.0), ValueFormatter: axis}
	switch p.kind {
	case lines:
		o := charts.NewLineChartOptionWithData(s.values)
		o.Theme, o.Legend, o.Title, o.XAxis, o.YAxis = theme, legend, title, category, []charts.ValueAxisOption{value}
		o.Symbol.Shape = charts.SymbolNone
		if len(s.labels) < 30 {
			o.Symbol.Shape = charts.SymbolDot
		}
		err = painter.LineChart(o)
	default:
		o := charts.NewBarChartOptionWithData(s.values)
		if p.kind == across {
			o.Horizontal, category.LabelCount = true, len(s.labels)
		}
		o.Theme, o.Legend, o.Title, o.CategoryAxis, o.ValueAxis = theme, legend, title, category, []charts.ValueAxisOption{value}
		o.StackSeries = charts.Ptr(p.kind == stacked)
		err = painter.BarChart(o)
	}
	if err != nil {
		return "", fmt.Errorf("%s: %w", p.query, err)
	}
	svg, err := painter.Bytes()
	// The library escapes the texts; the rest is its own.
	return template.HTML(svg), err
}

func (s series) any() bool {
	for _, vs := range s.values {
		for _, v := range vs {
			if v != 0 && v != charts.GetNullValue() && !math.IsNaN(v) {
				return true
			}
		}
	}
	return false
}

func axis(f float64) string { return number("", f) }

// theme has no background and colours that do on light and on dark.
var theme = charts.GetTheme(charts.ThemeLight).WithBackgroundColor(charts.ColorTransparent)
