package locksrv

import (
	"net"
	"net/netip"
	"sync"

	"isr/store/parcel"
)

// Limits bounds what clients may have of a daemon at once. A field of zero
// has the default.
type Limits struct {
	Connections int // in all; default 1024
	PerAddress  int // connections of one address; default 128
	PerUser     int // sessions of one user; default 256
	PerConn     int // sessions of one connection; default 64
}

func (l Limits) withDefaults() Limits {
	for _, f := range []struct {
		field *int
		value int
	}{{&l.Connections, 1024}, {&l.PerAddress, 128}, {&l.PerUser, 256}, {&l.PerConn, 64}} {
		if *f.field == 0 {
			*f.field = f.value
		}
	}
	return l
}

// counter counts what is in use, by name, against a bound.
type counter struct {
	mu  sync.Mutex
	in  map[string]int
	all int
}

// enter counts one more of name, unless name has max already or all names
// together have total (0: no bound). leave undoes it and may be called once.
func (c *counter) enter(name string, max, total int) (leave func(), ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.in[name] >= max || total > 0 && c.all >= total {
		return nil, false
	}
	if c.in == nil {
		c.in = make(map[string]int)
	}
	c.in[name]++
	c.all++
	return sync.OnceFunc(func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.all--
		if c.in[name]--; c.in[name] == 0 {
			delete(c.in, name)
		}
	}), true
}

// address is what connections are counted by: the host, for IPv6 its /64,
// since one host owns all of that.
func address(a net.Addr) string {
	ap, err := netip.ParseAddrPort(a.String())
	if err != nil {
		return a.String()
	}
	ip := ap.Addr().Unmap()
	if ip.Is6() {
		if p, err := ip.WithZone("").Prefix(64); err == nil {
			return p.String()
		}
	}
	return ip.String()
}

// ip is the address of a client, the zero Addr if it has none.
func ip(a net.Addr) netip.Addr {
	ap, _ := netip.ParseAddrPort(a.String())
	return ap.Addr()
}

// tooMany is the answer to who is over a limit. A retry may help, so it is of
// the kind that clients try again.
func tooMany(what, name string, max int) error {
	return parcel.NewError(parcel.Unreachable, "server: %s %s has %d sessions, which is the limit", what, name, max)
}
