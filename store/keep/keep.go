// Package keep has the rules by which old things of a row are kept or go:
// versions of a parcel, snapshots of a backup. It says which rules keep each of
// them, of their times alone; it removes nothing, and what stays whatever the
// rules say, as a head or a pin, is its callers' to know.
package keep

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"isr/store/parcel"
)

// Rules say what a prune leaves. They add up: what any of them keeps stays.
// Days, weeks (from Monday), months and years are those of UTC, as all times of
// the store.
type Rules struct {
	Last                           int  // so many of the newest
	Daily, Weekly, Monthly, Yearly int  // the newest of each of so many days that have one, …
	Within                         Span // all that are no older than that, seen from the newest
}

// Empty reports whether there is no rule; then only what every prune keeps
// would stay.
func (k Rules) Empty() bool { return k == Rules{} }

// Check refuses what cannot be a rule.
func (k Rules) Check() error {
	for _, n := range []int{k.Last, k.Daily, k.Weekly, k.Monthly, k.Yearly} {
		if n < 0 {
			return parcel.NewError(parcel.Usage, "keep %d: want 0 or more", n)
		}
	}
	return nil
}

// Choose says for each of the times, newest first, which rules keep what is of
// it.
func (k Rules) Choose(times []time.Time) [][]string {
	why := make([][]string, len(times))
	if len(times) == 0 {
		return why
	}
	periods := []struct {
		rule string
		left int
		of   func(n int, t time.Time) string
		last string
	}{
		{rule: "last", left: k.Last, of: func(n int, _ time.Time) string { return strconv.Itoa(n) }},
		{rule: "daily", left: k.Daily, of: func(_ int, t time.Time) string { return t.Format("2006-01-02") }},
		{rule: "weekly", left: k.Weekly, of: func(_ int, t time.Time) string {
			year, week := t.ISOWeek()
			return fmt.Sprint(year, week)
		}},
		{rule: "monthly", left: k.Monthly, of: func(_ int, t time.Time) string { return t.Format("2006-01") }},
		{rule: "yearly", left: k.Yearly, of: func(_ int, t time.Time) string { return t.Format("2006") }},
	}
	since := k.Within.before(times[0].UTC())
	for n, t := range times {
		t = t.UTC()
		for i := range periods {
			p := &periods[i]
			if of := p.of(n, t); p.left > 0 && of != p.last {
				p.left--
				p.last = of
				why[n] = append(why[n], p.rule)
			}
		}
		if !k.Within.Zero() && !t.Before(since) {
			why[n] = append(why[n], "within")
		}
	}
	return why
}

// Span is a length of time in the calendar: 1y6m, 2w, 30d, 12h.
type Span struct{ years, months, days, hours int }

// maxSpan bounds each number of a Span.
const maxSpan = 9999

// ParseSpan reads numbers with the units y, m, w, d and h, in this order, each
// at most once.
func ParseSpan(s string) (Span, error) {
	var span Span
	units := []struct {
		unit  byte
		times int
		to    *int
	}{{'y', 1, &span.years}, {'m', 1, &span.months}, {'w', 7, &span.days}, {'d', 1, &span.days}, {'h', 1, &span.hours}}
	rest := s
	for _, u := range units {
		digits, after, ok := strings.Cut(rest, string(u.unit))
		if !ok {
			continue
		}
		n, err := strconv.ParseUint(digits, 10, 16)
		if err != nil || n > maxSpan || digits[0] == '+' {
			rest = s
			break
		}
		*u.to += int(n) * u.times
		rest = after
	}
	if rest != "" || span.Zero() {
		return Span{}, fmt.Errorf("time %q: want a number and y, m, w, d or h, as 1y6m or 30d", s)
	}
	return span, nil
}

// UnmarshalText makes Span an option of a command line.
func (s *Span) UnmarshalText(text []byte) (err error) {
	*s, err = ParseSpan(string(text))
	return err
}

// Zero reports whether s is no time at all.
func (s Span) Zero() bool { return s == Span{} }

func (s Span) before(t time.Time) time.Time {
	return t.AddDate(-s.years, -s.months, -s.days).Add(-time.Duration(s.hours) * time.Hour)
}
