package locksrv

import (
	"isr/locksrv/event"
	"isr/locksrv/proto"
	"isr/store/authkey"
	"isr/store/parcel"
)

// A key may have fewer rights than its user: only to read, only some parcels.
// For such a session what it may not see is not there, in the words of what is
// not there; and a verb that has no row in needs is refused to it.

// need is what a verb asks of a key's rights.
type need int

const (
	reads   need = iota + 1 // of the parcel it names; of all it lists those that are seen
	changes                 // the parcel it names, its lock's last contact included
	account                 // the user as a whole
)

// needs has every verb.
var needs = map[string]need{
	proto.ListParcels: reads,
	proto.Ls:          reads,
	proto.CatConfig:   reads,
	proto.CatKeyroot:  reads,
	proto.Acquire:     changes,
	proto.Release:     changes,
	proto.CheckLock:   changes,
	proto.Missing:     reads,
	proto.Get:         reads,
	proto.Commit:      changes,
	proto.Rollback:    changes,
	proto.Fork:        changes,
	proto.CheckParcel: reads,
	proto.PutReport:   changes,
	proto.Motd:        reads,
	proto.Quota:       reads,
	proto.Passwd:      account,
}

// errReadOnly answers who would change something with a key for reading.
func errReadOnly(what string) error {
	return parcel.NewError(parcel.Denied, "%s: this key is for reading only", what).WithHint("come with another key")
}

// errNotFor answers what a key for some parcels only is not for.
func errNotFor(what string) error {
	return parcel.NewError(parcel.Denied, "%s: this key is for some parcels only", what).WithHint("come with another key")
}

// may is nil if the session may run a verb on the parcels it names: the one it
// is about first.
func (s Session) may(verb string, parcels []string) error {
	if s.Rights.Whole() {
		return nil
	}
	switch n := needs[verb]; {
	case n != reads && n != changes:
		return parcel.NewError(parcel.Denied, "%s: this key may not do it", verb).
			WithHint("come with another key")
	case n == changes && s.Rights.ReadOnly:
		return errReadOnly(verb)
	}
	for i, name := range parcels {
		if s.Rights.Sees(name) {
			continue
		}
		if i == 0 {
			return parcel.NewError(parcel.NoParcel, "parcel %s: no such parcel", name)
		}
		return errNotFor(verb)
	}
	return nil
}

// mayAct is nil if rights allow what e says: whatever way led there.
func mayAct(r authkey.Rights, e *event.Event) error {
	switch {
	case r.Whole():
		return nil
	case r.ReadOnly:
		return errReadOnly(e.Op)
	case e.Parcel == "" || !r.Sees(e.Parcel):
		return errNotFor(e.Op)
	}
	return nil
}

// parcels are the names of the user's parcels that the session sees.
func (c *call) parcels() ([]string, error) {
	all, err := c.Store.Parcels(c.User)
	seen := all[:0]
	for _, name := range all {
		if c.Rights.Sees(name) {
			seen = append(seen, name)
		}
	}
	return seen, err
}

// admit is nil unless the user is locked out, which no administrator is.
func (v *Service) admit(s Session) error {
	if s.Admin {
		return nil
	}
	return v.Store.Admit(s.User)
}
