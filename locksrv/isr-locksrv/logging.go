package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"log/syslog"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"isr/store/parcel"
)

// logLevel is a level by its name; "" is info.
func logLevel(name string) (slog.Level, error) {
	switch name {
	case "":
		return slog.LevelInfo, nil
	case "debug", "info", "warn", "error":
		var l slog.Level
		err := l.UnmarshalText([]byte(name))
		return l, err
	}
	return 0, parcel.NewError(parcel.Usage, "--log-level %s: want debug, info, warn or error", name)
}

func checkLogForm(form string) error {
	switch form {
	case "", "text", "json", "journal":
		return nil
	}
	return parcel.NewError(parcel.Usage, "--log %s: want text, json or journal", form)
}

// newLog logs on w in a form that was checked; "" is what suits who reads it.
func newLog(w *os.File, form string, level slog.Leveler) *slog.Logger {
	if form == "" && readByJournal(w) {
		form = "journal"
	}
	switch form {
	case "json":
		return slog.New(slog.NewJSONHandler(w, &slog.HandlerOptions{Level: level}))
	case "journal":
		return slog.New(newTold(level, func(level slog.Level, line []byte) error {
			_, err := w.Write(fmt.Appendf(nil, "<%d>%s", priority(level), line))
			return err
		}))
	}
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: level}))
}

// readByJournal reports whether the journal reads w, as it says itself.
func readByJournal(w *os.File) bool {
	var st unix.Stat_t
	var dev, ino uint64
	if _, err := fmt.Sscanf(os.Getenv("JOURNAL_STREAM"), "%d:%d", &dev, &ino); err != nil {
		return false
	}
	return unix.Fstat(int(w.Fd()), &st) == nil && st.Dev == dev && st.Ino == ino
}

// sessionLog is the log of a session of sshd, whose standard error goes to the
// client: the host's own. Where there is none, nothing is logged, but the
// event log has what matters all the same.
func sessionLog() *slog.Logger { return syslogAt("", "") }

// syslogAt is a log at a socket; "" is the host's.
func syslogAt(network, addr string) *slog.Logger {
	w, err := syslog.Dial(network, addr, syslog.LOG_DAEMON|syslog.LOG_INFO, "isr-locksrv")
	if err != nil {
		return slog.New(slog.DiscardHandler)
	}
	return slog.New(newTold(slog.LevelInfo, func(level slog.Level, line []byte) error {
		tell := map[int]func(string) error{3: w.Err, 4: w.Warning, 6: w.Info, 7: w.Debug}[priority(level)]
		return tell(string(bytes.TrimRight(line, "\n")))
	}))
}

// priority is a level as syslog(3) has it.
func priority(l slog.Level) int {
	switch {
	case l >= slog.LevelError:
		return 3
	case l >= slog.LevelWarn:
		return 4
	case l >= slog.LevelInfo:
		return 6
	}
	return 7
}

// told is a handler for who adds the time and knows the level by itself: it is
// handed each record as a line.
type told struct {
	slog.Handler // writes the line into last
	*teller
}

type teller struct {
	mu   sync.Mutex
	line bytes.Buffer
	tell func(slog.Level, []byte) error
}

func newTold(level slog.Leveler, tell func(slog.Level, []byte) error) told {
	t := &teller{tell: tell}
	return told{slog.NewTextHandler(io.Writer(&t.line), &slog.HandlerOptions{Level: level,
		ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
			if len(groups) == 0 && (a.Key == slog.TimeKey || a.Key == slog.LevelKey) {
				return slog.Attr{}
			}
			return a
		}}), t}
}

// Handle is of slog.Handler, and so are those that follow.
func (t told) Handle(ctx context.Context, r slog.Record) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.line.Reset()
	if err := t.Handler.Handle(ctx, r); err != nil {
		return err
	}
	return t.tell(r.Level, t.line.Bytes())
}

func (t told) WithAttrs(as []slog.Attr) slog.Handler { return told{t.Handler.WithAttrs(as), t.teller} }
func (t told) WithGroup(name string) slog.Handler    { return told{t.Handler.WithGroup(name), t.teller} }
