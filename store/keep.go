package store

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"isr/store/parcel"
)

// Keep says which versions of a parcel a prune leaves. The rules add up: a
// version that any of them keeps stays. Days, weeks (from Monday), months and
// years are those of UTC, as all times of the store.
type Keep struct {
	Last                           int  // so many of the newest
	Daily, Weekly, Monthly, Yearly int  // the newest of each of so many days that have one, …
	Within                         Span // all that are no older than that, seen from the newest
}

// Empty reports whether k has no rule; then it would keep only what every
// prune does.
func (k Keep) Empty() bool { return k == Keep{} }

// Check refuses what cannot be a rule.
func (k Keep) Check() error {
	for _, n := range []int{k.Last, k.Daily, k.Weekly, k.Monthly, k.Yearly} {
		if n < 0 {
			return parcel.NewError(parcel.Usage, "keep %d versions: want 0 or more", n)
		}
	}
	return nil
}

// choose says for each of the versions, newest first, which rules keep it.
func (k Keep) choose(versions []VersionInfo) [][]string {
	why := make([][]string, len(versions))
	if len(versions) == 0 {
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
	since := k.Within.before(versions[0].Time.UTC())
	for n, v := range versions {
		t := v.Time.UTC()
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
