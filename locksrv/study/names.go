package study

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"strings"

	"isr/locksrv"
	"isr/locksrv/event"
	"isr/store/atomicfile"
	"isr/store/parcel"
)

// Names takes names out of what is gathered: users, parcels and hosts become
// pseudonyms, addresses networks, and words of people go. The same key gives
// the same pseudonyms; who has not got it cannot tell whose they are. A nil
// Names leaves everything as it is.
type Names struct{ key []byte }

// LoadNames reads the key of the pseudonyms, and makes it first if there is
// none. It belongs beside the realm, not into what is handed out.
func LoadNames(file string) (*Names, error) {
	p, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		key := make([]byte, 32)
		rand.Read(key)
		err = atomicfile.WriteNew(file, []byte(hex.EncodeToString(key)+"\n"), 0o600)
		if err == nil || errors.Is(err, fs.ErrExist) {
			p, err = os.ReadFile(file)
		}
	}
	if err != nil {
		return nil, err
	}
	key, err := hex.DecodeString(strings.TrimSpace(string(p)))
	if err != nil || len(key) < 32 {
		return nil, parcel.NewError(parcel.Failed, "%s: is no key of pseudonyms", file).
			WithHint("restore it; without it a new harvest knows nobody by the same pseudonym")
	}
	return &Names{key}, nil
}

// alias is the pseudonym of name, of its kind.
func (n *Names) alias(kind, name string) string {
	if n == nil || name == "" {
		return name
	}
	h := hmac.New(sha256.New, n.key)
	h.Write([]byte(kind + "\x00" + name))
	return kind + "-" + hex.EncodeToString(h.Sum(nil))[:10]
}

func (n *Names) user(name string) string { return n.alias("user", name) }

// parcel is the pseudonym of a user's parcel.
func (n *Names) parcel(user, name string) string {
	if name == "" {
		return ""
	}
	if n == nil {
		return name
	}
	return n.alias("parcel", user+"/"+name)
}

// address is the network that an address is in: its first 24 bits, or 48.
func (n *Names) address(from string) string {
	if n == nil || from == "" {
		return from
	}
	if host, _, err := net.SplitHostPort(from); err == nil {
		from = host
	}
	a, err := netip.ParseAddr(from)
	if err != nil {
		return "unknown"
	}
	bits := 48
	if a = a.Unmap().WithZone(""); a.Is4() {
		bits = 24
	}
	p, err := a.Prefix(bits)
	if err != nil {
		return "unknown"
	}
	return p.String()
}

func (n *Names) event(e event.Event) event.Event {
	if n == nil {
		return e
	}
	user := e.User
	if to, name, ok := strings.Cut(e.To, "/"); ok {
		e.To = n.user(to) + "/" + n.parcel(to, name)
	} else {
		e.To = n.parcel(user, e.To)
	}
	e.Parcel, e.User = n.parcel(user, e.Parcel), n.user(user)
	if e.By = e.User; e.Admin {
		e.By = "administrator"
	}
	e.Host, e.From = n.alias("host", e.Host), n.address(e.From)
	if e.Holder != "" {
		e.Holder = "somebody"
	}
	e.What, e.Why = "", ""
	if e.Error != "" {
		e.Error = "failed"
	}
	return e
}

func (n *Names) kept(k locksrv.Kept) locksrv.Kept {
	if n == nil {
		return k
	}
	k.Parcel, k.User = n.parcel(k.User, k.Parcel), n.user(k.User)
	k.Report.UUID = n.alias("parcel", k.Report.UUID)
	return k
}

func (n *Names) state(s state) state {
	if n == nil {
		return s
	}
	var ms []member
	for _, m := range s.Members {
		var ps []ParcelState
		for _, p := range m.Parcels {
			p.Parcel, p.UUID = n.parcel(m.User, p.Parcel), n.alias("parcel", p.UUID)
			ps = append(ps, p)
		}
		m.User, m.Parcels = n.user(m.User), ps
		ms = append(ms, m)
	}
	s.Members = ms
	return s
}

func (n *Names) manual(m manual) manual {
	if n == nil {
		return m
	}
	m.User, m.Text = n.user(m.User), ""
	return m
}
