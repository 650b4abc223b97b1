package keep

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"isr/store/parcel"
)

// version is something that is kept or not.
type version struct {
	Version int
	Time    time.Time
}

func timesOf(vs []version) (times []time.Time) {
	for _, v := range vs {
		times = append(times, v.Time)
	}
	return times
}

// versionsAt are versions with these times, newest first.
func versionsAt(times ...string) []version {
	var vs []version
	for i, t := range times {
		at, err := time.Parse("2006-01-02 15:04", t)
		if err != nil {
			panic(err)
		}
		vs = append(vs, version{len(times) - i, at})
	}
	return vs
}

func TestKeep(t *testing.T) {
	versions := versionsAt("2026-03-02 00:00", "2026-03-01 23:59", "2026-03-01 08:00", "2026-02-28 12:00", "2026-01-31 12:00", "2025-12-31 23:59",
		"2025-12-29 00:00", "2025-12-28 23:59", "2024-06-01 00:00")
	within := func(s string) Span {
		span, err := ParseSpan(s)
		if err != nil {
			t.Fatal(err)
		}
		return span
	}
	for _, c := range []struct {
		keep Rules
		want string // versions that are kept
	}{
		{Rules{}, ""},
		{Rules{Last: 1}, "9"},
		{Rules{Last: 3}, "9 8 7"},
		{Rules{Last: 99}, "9 8 7 6 5 4 3 2 1"},
		{Rules{Daily: 1}, "9"},
		{Rules{Daily: 3}, "9 8 6"},
		{Rules{Weekly: 2}, "9 8"},       // the 1st of March 2026 was a Sunday
		{Rules{Weekly: 4}, "9 8 5 4"},   // 5 is of week 5; 4 and 3 of week 1 of 2026
		{Rules{Weekly: 5}, "9 8 5 4 2"}, // 2 is of week 52 of 2025
		{Rules{Monthly: 3}, "9 6 5"},    // of March, February, January
		{Rules{Yearly: 2}, "9 4"},       // of 2026 and 2025
		{Rules{Yearly: 9}, "9 4 1"},     // there are no more years
		{Rules{Last: 2, Yearly: 2}, "9 8 4"},
		{Rules{Within: within("1d")}, "9 8 7"},
		{Rules{Within: within("1h")}, "9 8"},
		{Rules{Within: within("2d")}, "9 8 7 6"},
		{Rules{Within: within("1m")}, "9 8 7 6"},
		{Rules{Within: within("1y")}, "9 8 7 6 5 4 3 2"},
		{Rules{Within: within("9999y")}, "9 8 7 6 5 4 3 2 1"},
	} {
		var got []string
		for i, why := range c.keep.Choose(timesOf(versions)) {
			if len(why) > 0 {
				got = append(got, string(rune('0'+versions[i].Version)))
			}
		}
		if strings.Join(got, " ") != c.want {
			t.Errorf("%+v: got %s, want %s", c.keep, strings.Join(got, " "), c.want)
		}
	}
	if why := (Rules{Last: 1, Daily: 1, Weekly: 1, Monthly: 1, Yearly: 1, Within: within("1h")}).Choose(timesOf(versions))[0]; strings.Join(why, " ") != "last daily weekly monthly yearly within" {
		t.Errorf("rules of the newest: %v", why)
	}
	if got := (Rules{Last: 1}).Choose(nil); len(got) != 0 {
		t.Errorf("no versions: %v", got)
	}
	for _, k := range []Rules{{Last: -1}, {Daily: -1}, {Weekly: -2}, {Monthly: -1 << 63}, {Yearly: -1}} {
		if err := k.Check(); !errors.Is(err, parcel.ErrUsage) {
			t.Errorf("%+v: got %v", k, err)
		}
	}
}

// Whatever the times: a rule keeps the newest of each of the newest periods,
// no more than it says, and more of a rule never keeps less.
func TestKeepProperties(t *testing.T) {
	day := func(v version) string { return v.Time.Format("2006-01-02") }
	rapid.Check(t, func(r *rapid.T) {
		at := time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)
		var vs []version
		for i, n := 0, rapid.IntRange(0, 40).Draw(r, "versions"); i < n; i++ {
			vs = append(vs, version{100 - i, at})
			at = at.Add(-time.Duration(rapid.IntRange(0, 3000).Draw(r, "minutes")) * time.Minute)
		}
		k := Rules{Daily: rapid.IntRange(0, 12).Draw(r, "daily")}
		var want []int
		days := make(map[string]bool)
		for _, v := range vs {
			if !days[day(v)] && len(days) < k.Daily {
				days[day(v)] = true
				want = append(want, v.Version)
			}
		}
		kept := func(k Rules) (got []int) {
			for i, why := range k.Choose(timesOf(vs)) {
				if len(why) > 0 {
					got = append(got, vs[i].Version)
				}
			}
			return got
		}
		if got := kept(k); !slices.Equal(got, want) {
			r.Fatalf("%+v: got %v, want %v", k, got, want)
		}
		more := k
		more.Daily++
		more.Last = rapid.IntRange(0, 5).Draw(r, "last")
		more.Monthly = rapid.IntRange(0, 5).Draw(r, "monthly")
		for _, v := range kept(k) {
			if !slices.Contains(kept(more), v) {
				r.Fatalf("%+v keeps version %d, %+v does not", k, v, more)
			}
		}
	})
}

func TestParseSpan(t *testing.T) {
	for s, want := range map[string]Span{"30d": {days: 30}, "2w": {days: 14}, "1y6m": {years: 1, months: 6}, "12h": {hours: 12},
		"1y2m3w4d5h": {1, 2, 25, 5}, "9999y": {years: 9999}, "01d": {days: 1}} {
		if got, err := ParseSpan(s); got != want || err != nil {
			t.Errorf("%s: got %+v, %v", s, got, err)
		}
	}
	for _, s := range []string{"", "d", "30", "-1d", "+1d", "1.5d", "1d1y", "1d2d", "0d", "10000d", "99999999999999999999d", "1s", "1 d", " 1d", "1D", "1d ", "٣d"} {
		if got, err := ParseSpan(s); err == nil {
			t.Errorf("%q: got %+v", s, got)
		}
	}
}

// What parses names some time, and no absurd one.
func FuzzSpan(f *testing.F) {
	for _, s := range []string{"30d", "1y6m", "1y2m3w4d5h", "", "d", "1d1y"} {
		f.Add(s)
	}
	now := time.Now()
	f.Fuzz(func(t *testing.T, s string) {
		span, err := ParseSpan(s)
		if err != nil {
			return
		}
		if then := span.before(now); !then.Before(now) || then.Year() < now.Year()-12000 {
			t.Errorf("%q: %v before %v", s, then, now)
		}
	})
}
