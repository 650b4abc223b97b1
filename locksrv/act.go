package locksrv

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"time"

	"isr/locksrv/event"
	"isr/locksrv/proto"
	"isr/store/parcel"
)

// Act does f, which changes the realm as e says, for a session: after the
// pre-hook, before the post-hook, and with a line in the event log whatever
// became of it. f completes e. Every change to a realm goes through here,
// whoever asks for it; what happens is decided in one place.
func (v *Service) Act(ctx context.Context, s Session, e *event.Event, f func(ctx context.Context) error) error {
	if s.Log == nil {
		s.Log = slog.New(slog.DiscardHandler)
	}
	e.By, e.Admin, e.From = s.By, s.Admin, s.From
	if e.By == "" {
		e.By = s.User
	}
	start := time.Now()
	e.Time = start.UTC()
	err := mayAct(s.Rights, e)
	if err == nil {
		err = v.Hooks.Pre(ctx, *e)
	}
	if err == nil {
		err = f(ctx)
	}
	e.Time, e.Seconds = time.Now().UTC(), time.Since(start).Seconds()
	if err != nil {
		e.Error, e.Kind = parcel.Clean(err.Error()), int(parcel.KindOf(err))
	}
	if lerr := v.Events.Append(*e); lerr != nil {
		v.meter().Failed("event-log")
		s.Log.Error("event log", "error", lerr, "op", e.Op, "user", e.User, "parcel", e.Parcel)
		if s.Admin && s.Warn != nil { // who has no other log
			s.Warn(fmt.Sprintf("event log: %s is not in it: %v", e.Op, lerr))
		}
	}
	if err != nil {
		return err
	}
	if herr := v.Hooks.Post(ctx, *e); herr != nil {
		v.meter().Failed("post-hook")
		s.Log.Warn("hook", "error", herr, "op", e.Op, "user", e.User, "parcel", e.Parcel)
		if s.Warn != nil {
			s.Warn(fmt.Sprintf("%s was done, but %s", e.Op, herr))
		}
	}
	return nil
}

// act is Act for a verb, which is finished once it is begun.
func (c *call) act(ctx context.Context, e *event.Event, f func(ctx context.Context) error) error {
	ctx, err := c.begin(ctx)
	if err != nil {
		return err
	}
	e.User = c.User
	return c.Act(ctx, c.Session, e, f)
}

// warner prints warnings on w, a line each, as clients know them.
func warner(w io.Writer) func(string) {
	return func(text string) { proto.WriteWarning(w, text) }
}
