package knownhosts

import (
	"errors"
	"fmt"
)

// ErrHostKey: the server did not prove to be the one that is known. See Error.
var ErrHostKey = errors.New("host key verification failed")

// Kind says what is wrong with a host key.
type Kind int

const (
	Unknown  Kind = iota + 1 // nothing is known, and nobody was there to ask
	Declined                 // the person said no
	Changed                  // File and Line hold another key
	Revoked                  // File and Line revoke it
	Invalid                  // it could not be checked; see Cause
)

// Error tells why a host key was refused. It wraps ErrHostKey.
type Error struct {
	Kind        Kind
	Host        string // as shown to people
	LookUp      string // as files of known hosts name it, and ssh-keygen -R takes it
	KeyType     string // ED25519, RSA …
	Fingerprint string // SHA256:…
	File        string // of known hosts, or of revoked keys
	Line        int
	Cause       error
}

func (e *Error) Unwrap() []error {
	if e.Cause != nil {
		return []error{ErrHostKey, e.Cause}
	}
	return []error{ErrHostKey}
}

func (e *Error) Error() string {
	key := fmt.Sprintf("%v: host %s: %s key %s", ErrHostKey, e.Host, e.KeyType, e.Fingerprint)
	switch e.Kind {
	case Unknown:
		return key + " is not known; connect once with ssh, or have the key added to known_hosts"
	case Declined:
		return key + " was not accepted"
	case Changed:
		return fmt.Sprintf("%s is not the one known from %s:%d; someone may be listening in, or the server was set up anew. "+
			"If you are sure of that: ssh-keygen -f '%s' -R '%s'", key, e.File, e.Line, e.File, e.LookUp)
	case Revoked:
		return fmt.Sprintf("%s is revoked by %s:%d; do not trust this server", key, e.File, e.Line)
	}
	return fmt.Sprintf("%s: %v", key, e.Cause)
}
