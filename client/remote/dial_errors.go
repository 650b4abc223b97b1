package remote

import (
	"errors"
	"fmt"
)

var (
	// ErrUnreachable: no connection, or it broke before the login was complete. Trying again may help.
	ErrUnreachable = errors.New("unreachable")
	// ErrHostKey: the server did not prove to be the one that is known. See HostKeyError.
	ErrHostKey = errors.New("host key verification failed")
)

// HostKeyKind says what is wrong with a host key.
type HostKeyKind int

const (
	HostKeyUnknown  HostKeyKind = iota + 1 // nothing is known, and nobody was there to ask
	HostKeyDeclined                        // the person said no
	HostKeyChanged                         // File and Line hold another key
	HostKeyRevoked                         // File and Line revoke it
	HostKeyInvalid                         // it could not be checked; see Cause
)

// HostKeyError tells why a host key was refused. It wraps ErrHostKey.
type HostKeyError struct {
	Kind        HostKeyKind
	Host        string // as shown to people
	LookUp      string // as files of known hosts name it, and ssh-keygen -R takes it
	KeyType     string // ED25519, RSA …
	Fingerprint string // SHA256:…
	File        string // of known hosts, or of revoked keys
	Line        int
	Cause       error
}

func (e *HostKeyError) Unwrap() []error {
	if e.Cause != nil {
		return []error{ErrHostKey, e.Cause}
	}
	return []error{ErrHostKey}
}

func (e *HostKeyError) Error() string {
	key := fmt.Sprintf("%v: host %s: %s key %s", ErrHostKey, e.Host, e.KeyType, e.Fingerprint)
	switch e.Kind {
	case HostKeyUnknown:
		return key + " is not known; connect once with ssh, or have the key added to known_hosts"
	case HostKeyDeclined:
		return key + " was not accepted"
	case HostKeyChanged:
		return fmt.Sprintf("%s is not the one known from %s:%d; someone may be listening in, or the server was set up anew. "+
			"If you are sure of that: ssh-keygen -f '%s' -R '%s'", key, e.File, e.Line, e.File, e.LookUp)
	case HostKeyRevoked:
		return fmt.Sprintf("%s is revoked by %s:%d; do not trust this server", key, e.File, e.Line)
	}
	return fmt.Sprintf("%s: %v", key, e.Cause)
}
