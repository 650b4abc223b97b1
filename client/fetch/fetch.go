// Package fetch reads objects from a ladder of sources: this host's modified
// objects, the hoard, look-aside, and at the bottom the parcel's source.
//
// It promises that every object it returns was verified by tag, that an
// object is asked for once however many want it at a time, that what comes
// from below the hoard is kept in it, and that a guest that waits (Demand)
// goes before what is read ahead (Prefetch), and that before filling the
// hoard (Hoard). A copy that does not match its tag is never passed on: the
// rung that had it is told, and the next one asked.
//
// It does not retry and does not know the network: a source does, with the
// class of the request in its context. It decrypts nothing.
package fetch

import (
	"context"

	"isr/store/seal"
)

// Class says who waits for an object, most urgent first.
type Class int

// The classes. A context without one is Demand.
const (
	Demand   Class = iota // a guest, or a command, is waiting
	Prefetch              // a guest will probably want it soon
	Hoard                 // wanted here before the host goes offline
)

func (c Class) String() string {
	switch c {
	case Demand:
		return "demand"
	case Prefetch:
		return "prefetch"
	}
	return "hoard"
}

// Source gets objects by tag. Get returns parcel.ErrNoObject if it does not
// have the object and another source may, and may return bytes that do not
// match the tag unless the source is a TagVerifier. The caller may keep the
// result, and must not change it. Safe for concurrent use.
type Source interface {
	Get(ctx context.Context, tag seal.Tag) ([]byte, error)
}

// TagVerifier is a Source that verifies by tag what it returns; an error that
// wraps seal.ErrCorrupt says that it had something else.
type TagVerifier interface {
	Source
	VerifiesTags()
}

type classKey struct{}

// urgency is the class of a piece of work, which may become Demand while it
// is going on.
type urgency struct {
	class  Class
	raised chan struct{} // closed when it is Demand after all; nil: it cannot
}

// WithClass is a context for work of class c.
func WithClass(ctx context.Context, c Class) context.Context {
	return context.WithValue(ctx, classKey{}, urgency{class: c})
}

// ClassOf is the class that ctx was given, or has been raised to.
func ClassOf(ctx context.Context) Class {
	u, _ := ctx.Value(classKey{}).(urgency)
	select {
	case <-u.raised:
		return Demand
	default:
		return u.class
	}
}

// Raised is closed when work of a lower class becomes Demand, because a guest
// has come to wait for the same object: a source that has not sent the
// request yet should send it as Demand. It is nil if that cannot happen.
func Raised(ctx context.Context) <-chan struct{} {
	u, _ := ctx.Value(classKey{}).(urgency)
	return u.raised
}
