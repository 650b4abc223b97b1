package remote

import "errors"

// ErrUnreachable: no connection, or it broke before the login was complete. Trying again may help.
var ErrUnreachable = errors.New("unreachable")
