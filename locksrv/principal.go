package locksrv

import (
	"golang.org/x/crypto/ssh"

	"isr/store/parcel"
)

// ServiceUser is the user name under which any user may log in: the key says
// who it is. Stock OpenSSH serves many users so, from one account.
const ServiceUser = "isr"

// login is what the transport knows of an authenticated connection.
type login struct {
	name    string        // the user name of the session
	changed bool          // another one was used on the way there
	key     ssh.PublicKey // the key whose possession was proven
	proven  string        // the user whose password was given
}

// keyOwners knows whose a key is; the store does.
type keyOwners interface {
	UserOfKey(ssh.PublicKey) (string, error)
}

// principal is the user that a login stands for: the owner of its key, whatever
// name it came with, or else the user whose password was given. A name that is
// neither the owner's nor the service's is refused, and so is one that changed
// on the way: an honest client has one. Nobody proves both.
func principal(owners keyOwners, l login) (string, error) {
	if l.changed {
		return "", parcel.NewError(parcel.Denied, "login of %s: the user name changed during authentication", l.name)
	}
	switch {
	case l.key == nil && l.proven == "":
		return "", parcel.NewError(parcel.Denied, "login of %s: neither key nor password", l.name)
	case l.key != nil && l.proven != "":
		return "", parcel.NewError(parcel.Denied, "login of %s: a key and a password at once", l.name)
	case l.proven != "":
		if l.proven != l.name || l.name == ServiceUser {
			return "", parcel.NewError(parcel.Denied, "login of %s: the password is another user's", l.name)
		}
		return l.proven, nil
	}
	owner, err := owners.UserOfKey(l.key)
	if err != nil {
		return "", err
	}
	if l.name != owner && l.name != ServiceUser {
		return "", parcel.NewError(parcel.Denied, "login of %s: this key is not one of theirs", l.name).
			WithHint("log in under the name the key was registered for, or as %s", ServiceUser)
	}
	return owner, nil
}
