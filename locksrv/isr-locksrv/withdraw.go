package main

import (
	"fmt"

	"isr/store"
)

// reportsOf names the reports of so many days.
func reportsOf(days int) string { return "the reports of " + count(int64(days), "day") }

// withdraw asks before what a user's clients told is removed. She takes back
// her consent first, so that no more comes; whoever is killed in between runs
// it again.
func (c *userChange) withdraw(e *env) (removed string, remove func(*store.Store) error, err error) {
	s, _, err := e.open()
	if err != nil {
		return "", nil, err
	}
	told, err := service(s).ReportDays(c.Name)
	if err != nil {
		return "", nil, err
	}
	if told > 0 {
		removed = reportsOf(told) + " removed"
		if err := e.confirm(c.Yes, "Remove %s that user %s takes back?", reportsOf(told), c.Name); err != nil {
			return "", nil, err
		}
	}
	return removed, func(s *store.Store) error {
		if err := service(s).RemoveReports(c.Name); err != nil {
			return err
		}
		fmt.Fprintf(e.stderr, "isr-locksrv: user %s: takes no part any more; what was harvested of her goes at the next harvest\n", c.Name)
		return nil
	}, nil
}
