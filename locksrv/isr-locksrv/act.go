package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"os/user"
	"strings"

	"isr/hooks"
	"isr/locksrv"
	"isr/locksrv/event"
	"isr/store"
	"isr/store/parcel"
)

// session is an administrator's, on the host.
func (e *env) session() locksrv.Session {
	by := e.by
	if by == "" {
		by = account()
	}
	return locksrv.Session{Admin: true, By: by,
		Warn: e.warning}
}

// warning tells of what is no error.
func (e *env) warning(text string) {
	fmt.Fprintf(e.stderr, "isr-locksrv: warning: %s\n", parcel.Clean(text))
}

// warn is warning, formatted.
func (e *env) warn(format string, args ...any) { e.warning(fmt.Sprintf(format, args...)) }

// account is the host's account that this program runs as, and for whom.
func account() string {
	by := "uid " + fmt.Sprint(os.Geteuid())
	if u, err := user.LookupId(fmt.Sprint(os.Geteuid())); err == nil {
		by = u.Username
	}
	if sudo := os.Getenv("SUDO_USER"); sudo != "" && parcel.CheckName(sudo) == nil {
		by += " for " + sudo
	}
	return by
}

// act does f, a change of the realm that an administrator ordered, between its
// hooks, and writes it down.
func (e *env) act(ctx context.Context, s *store.Store, what event.Event, f func(ctx context.Context) error) error {
	return e.actOn(ctx, s, &what, f)
}

// actOn is act of what f completes.
func (e *env) actOn(ctx context.Context, s *store.Store, what *event.Event, f func(ctx context.Context) error) error {
	err := service(s).Act(ctx, e.session(), what, f)
	e.acted = e.acted || err == nil && what.Op != event.Check // which changes nothing
	return err
}

// service answers an administrator. What a hook does runs no hooks, so that
// none runs itself for ever; clients have no say in this.
func service(s *store.Store) *locksrv.Service {
	v := locksrv.NewService(s)
	if os.Getenv(hooks.Variable) != "" {
		v.Hooks = nil
	}
	return v
}

// confirm asks before something is destroyed. Anything but y or yes is no, the
// end of input and a signal too: then the error says that nothing was done.
func (e *env) confirm(yes bool, format string, args ...any) error {
	if yes {
		return nil
	}
	fmt.Fprintf(e.stderr, "%s [y/N] ", parcel.Clean(fmt.Sprintf(format, args...)))
	// Nobody who interrupts a question is to answer it all the same.
	ctx, stop := signal.NotifyContext(context.Background(), endings...)
	defer stop()
	line, err := answer(ctx, os.Stdin)
	if err != nil {
		fmt.Fprintln(e.stderr)
	}
	if ctx.Err() != nil {
		return parcel.NewError(parcel.Interrupted, "interrupted").WithHint("nothing was done")
	}
	said := strings.ToLower(strings.TrimSpace(line))
	if err == nil && (said == "y" || said == "yes") {
		return nil
	}
	return parcel.NewError(parcel.Failed, "nothing was done").WithHint("--yes answers the question in scripts")
}

// readLine reads one line of r, and no further.
func readLine(r io.Reader) (string, error) {
	var line []byte
	one := make([]byte, 1)
	for len(line) < 1024 {
		n, err := r.Read(one)
		if n > 0 {
			if one[0] == '\n' {
				return string(line), nil
			}
			line = append(line, one[0])
			continue
		}
		if err != nil {
			return string(line), err
		}
	}
	return string(line), nil
}
