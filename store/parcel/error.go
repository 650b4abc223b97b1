package parcel

import (
	"context"
	"errors"
	"fmt"
	"syscall"

	"isr/store/seal"
)

// Kind is the kind of an error. The numbers are exit statuses of every
// command and cross the wire: they never change meaning. isr(1) lists them.
type Kind int

// The kinds.
const (
	Failed      Kind = 1  // anything not below
	Usage       Kind = 2  // the command line or request makes no sense
	NoParcel    Kind = 10 // no such parcel, or not one the user may see
	Locked      Kind = 11 // another host holds the parcel
	NotHolder   Kind = 12 // the nonce does not prove holding the lock
	Damaged     Kind = 13 // content does not match its name or key
	Unreachable Kind = 14 // no connection to the server; a retry may help
	Conflict    Kind = 15 // the head is not the version the request was made from
	Denied      Kind = 16 // authentication or permission
	Exists      Kind = 17 // what was to be made is there already
	NoVersion   Kind = 18 // no such version
	NoObject    Kind = 19 // the store lacks an object: ask elsewhere
	Full        Kind = 20 // no space, or over quota
	Unrunnable  Kind = 21 // this host cannot run the parcel
	Busy        Kind = 22 // another process here works on the parcel
	Interrupted Kind = 130
)

// Error is an error of a Kind. Errors of the same kind match by errors.Is on
// both ends of the wire.
type Error struct {
	Kind Kind
	Msg  string // lower case, object first, no full stop
	Hint string // one thing to do about it, may be empty
}

func (e *Error) Error() string { return e.Msg }

// Is matches the sentinel of the same kind.
func (e *Error) Is(target error) bool {
	t, ok := target.(*Error)
	return ok && t.Kind == e.Kind
}

// ExitCode is the process exit status.
func (e *Error) ExitCode() int { return int(e.Kind) }

// NewError is an Error with a formatted message.
func NewError(k Kind, format string, args ...any) *Error {
	return &Error{Kind: k, Msg: fmt.Sprintf(format, args...)}
}

// WithHint adds the one thing to do.
func (e *Error) WithHint(format string, args ...any) *Error {
	c := *e
	c.Hint = fmt.Sprintf(format, args...)
	return &c
}

// KindOf is the kind of err: that of the Error it wraps, else what a corrupt
// object, a full disk or a cancelled context means, else Failed; 0 for nil.
func KindOf(err error) Kind {
	var e *Error
	switch {
	case err == nil:
		return 0
	case errors.As(err, &e):
		return e.Kind
	case errors.Is(err, seal.ErrCorrupt):
		return Damaged
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return Full
	case errors.Is(err, context.Canceled):
		return Interrupted
	}
	return Failed
}

// Sentinels, for errors.Is.
var (
	ErrUsage       = &Error{Kind: Usage, Msg: "usage"}
	ErrNoParcel    = &Error{Kind: NoParcel, Msg: "no such parcel"}
	ErrLocked      = &Error{Kind: Locked, Msg: "parcel is locked"}
	ErrNotHolder   = &Error{Kind: NotHolder, Msg: "lock is not held with this nonce"}
	ErrDamaged     = &Error{Kind: Damaged, Msg: "damaged"}
	ErrUnreachable = &Error{Kind: Unreachable, Msg: "server is unreachable"}
	ErrConflict    = &Error{Kind: Conflict, Msg: "head is another version"}
	ErrDenied      = &Error{Kind: Denied, Msg: "permission denied"}
	ErrExists      = &Error{Kind: Exists, Msg: "exists"}
	ErrNoVersion   = &Error{Kind: NoVersion, Msg: "no such version"}
	ErrNoObject    = &Error{Kind: NoObject, Msg: "no such object"}
	ErrFull        = &Error{Kind: Full, Msg: "no space"}
	ErrUnrunnable  = &Error{Kind: Unrunnable, Msg: "cannot run here"}
	ErrBusy        = &Error{Kind: Busy, Msg: "in use by another process"}
	ErrInterrupted = &Error{Kind: Interrupted, Msg: "interrupted"}
)
