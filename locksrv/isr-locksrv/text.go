package main

import (
	"fmt"
	"time"
)

// timeText prints a time for people, to the minute, UTC: for tables and
// questions.
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

// count is a number and the noun that goes with it.
func count[N int | int64](n N, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

// stamp prints a moment to the second, with its zone: for what happened.
func stamp(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05 MST") }

// tookText prints how long something took, to a tenth of a second.
func tookText(since time.Time) string {
	return time.Since(since).Round(100 * time.Millisecond).String()
}
