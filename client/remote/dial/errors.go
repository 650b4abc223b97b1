package dial

import (
	"errors"

	"isr/client/remote/identity"
	"isr/client/remote/knownhosts"
	"isr/client/remote/sshconf"
	"isr/store/parcel"
)

var (
	// ErrUnreachable: no connection, or it broke before the login was complete. Trying again may help.
	ErrUnreachable = errors.New("unreachable")
	// ErrLate is why it broke, if somebody was asked meanwhile.
	ErrLate = errors.New("the server did not wait for an answer")
)

// KindOf is the kind of an error of Dial, as a lock server's would be.
func KindOf(err error) parcel.Kind {
	switch {
	case errors.Is(err, ErrUnreachable):
		return parcel.Unreachable
	case errors.Is(err, knownhosts.ErrHostKey), errors.Is(err, identity.ErrAuth):
		return parcel.Denied
	case errors.Is(err, sshconf.ErrConfig):
		return parcel.Usage
	}
	return parcel.KindOf(err)
}
