package main

import (
	"cmp"
	"context"
	"fmt"
	"iter"
	"slices"
	"strconv"
	"strings"
	"time"

	"isr/locksrv"
	"isr/locksrv/event"
	"isr/store"
	"isr/store/parcel"
)

type logCommand struct {
	Since  string   `help:"From when on: a date, a date and time, or how long ago, as 2h or 7d. Default: 7d." placeholder:"WHEN"`
	Until  string   `help:"Until when; default: now." placeholder:"WHEN"`
	User   string   `help:"Only what a user did, or what was done to her." placeholder:"USER"`
	Parcel string   `help:"Only what was done to a parcel." placeholder:"[USER/]PARCEL"`
	Op     []string `help:"Only what is of this kind, as commit or user-add; may come more than once." placeholder:"OP" sep:"none"`
	Failed bool     `help:"Only what was refused or went wrong."`
	Follow bool     `short:"f" help:"Go on printing what happens, until interrupted."`
	JSON   bool     `name:"json" help:"Print an object a line, as the log has it."`
}

// followEvery is how often somebody who follows is told.
const followEvery = 500 * time.Millisecond

func (c *logCommand) Run(ctx context.Context, e *env) error {
	now := time.Now()
	from, err := parseWhen(cmp.Or(c.Since, "7d"), now)
	if err != nil {
		return err
	}
	to, err := parseWhen(cmp.Or(c.Until, "0s"), now)
	if err != nil {
		return err
	}
	if c.Follow && c.Until != "" {
		return parcel.NewError(parcel.Usage, "--follow has no end: leave out --until")
	}
	for _, op := range c.Op {
		if !slices.Contains(event.Ops, op) {
			return parcel.NewError(parcel.Usage, "--op %s: no kind of event", op).WithHint("it is one of %s", strings.Join(event.Ops, ", "))
		}
	}
	wanted, err := c.filter()
	if err != nil {
		return err
	}
	s, _, err := e.open()
	if err != nil {
		return err
	}
	log := locksrv.NewService(s).Events
	damaged := 0
	show := func(ev event.Event, err error) error {
		switch {
		case err != nil:
			damaged++
			e.warn("event log: %v", err)
			return nil
		case !wanted(ev):
			return nil
		case c.JSON:
			return e.rows().Encode(ev)
		}
		_, err = fmt.Fprintln(e.stdout, eventLine(ev))
		return err
	}
	read := func(events iter.Seq2[event.Event, error]) error {
		for ev, err := range events {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if err == nil && (ev.Time.Before(from) || !c.Follow && ev.Time.After(to)) {
				continue
			}
			if err := show(ev, err); err != nil {
				return err
			}
		}
		return nil
	}
	if c.Follow {
		// All of today is the tail's, so that nothing is missed or told twice.
		tail := log.Tail(true)
		if err := read(log.Read(from, tail.Day().AddDate(0, 0, -1))); err != nil {
			return err
		}
		for {
			if err := read(tail.Read()); err != nil {
				return err
			}
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(followEvery):
			}
		}
	}
	if err := read(log.Read(from, to)); err != nil {
		return err
	}
	if damaged > 0 {
		return parcel.NewError(parcel.Damaged, "event log: %s could not be read", count(damaged, "line"))
	}
	return nil
}

// filter says which events are wanted.
func (c *logCommand) filter() (func(event.Event) bool, error) {
	if c.User != "" {
		if err := parcel.CheckName(c.User); err != nil {
			return nil, err
		}
	}
	owner, name, both := strings.Cut(c.Parcel, "/")
	if !both {
		owner, name = "", c.Parcel
	}
	for _, n := range []string{owner, name} {
		if n != "" || both {
			if err := parcel.CheckName(n); err != nil {
				return nil, err
			}
		}
	}
	for _, op := range c.Op {
		if !slices.Contains(event.Ops, op) {
			return nil, parcel.NewError(parcel.Usage, "--op %.80q: want one of %s", op, strings.Join(event.Ops, " "))
		}
	}
	return func(e event.Event) bool {
		toUser, toName, _ := strings.Cut(e.To, "/")
		return (c.User == "" || c.User == e.User || c.User == e.By && !e.Admin || c.User == toUser) &&
			(c.Parcel == "" || name == e.Parcel && (!both || owner == e.User) || name == toName && (!both || owner == toUser)) &&
			(len(c.Op) == 0 || slices.Contains(c.Op, e.Op)) &&
			(!c.Failed || e.Error != "")
	}, nil
}

// parseWhen reads a moment: a date, a date and time (UTC, unless a zone is
// said), or how long before now.
func parseWhen(text string, now time.Time) (time.Time, error) {
	bad := parcel.NewError(parcel.Usage, "%s: not a time", parcel.Clean(text)).
		WithHint("2026-11-26, \"2026-11-26 14:30\" (UTC), or how long ago: 30m, 2h, 7d, 2w")
	for _, layout := range []string{time.RFC3339, "2006-01-02 15:04:05", "2006-01-02T15:04:05", "2006-01-02 15:04", "2006-01-02T15:04", time.DateOnly} {
		if t, err := time.Parse(layout, text); err == nil {
			return t.UTC(), nil
		}
	}
	for unit, days := range map[string]int{"d": 1, "w": 7} {
		if number, ok := strings.CutSuffix(text, unit); ok {
			if n, err := strconv.ParseUint(number, 10, 16); err == nil {
				return now.AddDate(0, 0, -days*int(n)).UTC(), nil
			}
			return time.Time{}, bad
		}
	}
	if d, err := time.ParseDuration(text); err == nil && d >= 0 {
		return now.Add(-d).UTC(), nil
	}
	return time.Time{}, bad
}

// eventLine is an event for people: when, who, what, and what became of it.
func eventLine(e event.Event) string {
	var b strings.Builder
	say := func(format string, args ...any) { fmt.Fprintf(&b, format, args...) }
	say("%s  %s", stamp(e.Time), cmp.Or(e.By, "?"))
	if e.Admin {
		say(" (admin)")
	}
	say("  %s", cmp.Or(e.Op, "?"))
	switch {
	case e.Parcel != "":
		say(" %s/%s", e.User, e.Parcel)
	case e.User != "" && (e.User != e.By || e.Admin):
		say(" %s", e.User)
	}
	if e.To != "" {
		say(" to %s", e.To)
	}
	for _, part := range []struct {
		said bool
		text string
	}{
		{e.Version > 0, fmt.Sprintf("version %d", e.Version)},
		{e.Epoch > 0, fmt.Sprintf("epoch %d", e.Epoch)},
		{e.Forced, "by force"},
		{e.Holder != "", "held by " + e.Holder},
		{e.Objects > 0, count(e.Objects, "object")},
		{e.Bytes > 0, store.SizeText(max(0, e.Bytes))},
		{e.State != "", e.State},
		{e.Host != "", "host " + e.Host},
		{e.From != "" && e.From != e.Host, "from " + e.From},
		{e.What != "", e.What},
		{e.Why != "", "because: " + e.Why},
		{e.Seconds >= 1, fmt.Sprintf("took %s", (time.Duration(min(e.Seconds, 1e9)) * time.Second).String())},
		{e.Error != "", fmt.Sprintf("NOT DONE: %s", e.Error)},
	} {
		if part.said {
			say(", %s", part.text)
		}
	}
	return parcel.Clean(b.String())
}
