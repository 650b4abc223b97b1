package locksrv

import (
	"net/netip"

	"golang.org/x/crypto/ssh"

	"isr/store"
	"isr/store/authkey"
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
	from    netip.Addr    // where it comes from
}

// keyOwners knows whose a key is, and what it may do; the store does.
type keyOwners interface {
	UserOfKey(key ssh.PublicKey, from netip.Addr) (string, authkey.Key, error)
}

// remembered asks the user who had the key when the connection's first session
// began, before all others: whether she has it still is what her file says.
type remembered struct {
	*store.Store
	user string // "": nobody yet
}

func (r remembered) UserOfKey(key ssh.PublicKey, from netip.Addr) (string, authkey.Key, error) {
	if r.user != "" {
		if k, err := r.KeyOf(r.user, key, from); err == nil {
			return r.user, k, nil
		}
	}
	return r.Store.UserOfKey(key, from)
}

// principal is the user that a login stands for: the owner of its key, whatever
// name it came with, or else the user whose password was given. A name that is
// neither the owner's nor the service's is refused, and so is one that changed
// on the way: an honest client has one. Nobody proves both. The rights are those
// of the line of authorized_keys that lets the key in; a password's are whole.
func principal(owners keyOwners, l login) (user string, rights authkey.Rights, err error) {
	if l.changed {
		return "", rights, parcel.NewError(parcel.Denied, "login of %s: the user name changed during authentication", l.name)
	}
	switch {
	case l.key == nil && l.proven == "":
		return "", rights, parcel.NewError(parcel.Denied, "login of %s: neither key nor password", l.name)
	case l.key != nil && l.proven != "":
		return "", rights, parcel.NewError(parcel.Denied, "login of %s: a key and a password at once", l.name)
	case l.proven != "":
		if l.proven != l.name || l.name == ServiceUser {
			return "", rights, parcel.NewError(parcel.Denied, "login of %s: the password is another user's", l.name)
		}
		return l.proven, rights, nil
	}
	owner, key, err := owners.UserOfKey(l.key, l.from)
	if err != nil {
		return "", rights, err
	}
	if l.name != owner && l.name != ServiceUser {
		return "", rights, parcel.NewError(parcel.Denied, "login of %s: this key is not one of theirs", l.name).
			WithHint("log in under the name the key was registered for, or as %s", ServiceUser)
	}
	return owner, key.Rights, nil
}
