package client

import (
	"context"
	"errors"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"

	"isr/client/fetch"
	"isr/client/remote"
	"isr/client/remote/sshconf"
	"isr/client/source"
	"isr/store/parcel"
	"isr/store/seal"
)

// sourceRung is the lock server's name in a ladder; places have their own.
const sourceRung = "source"

// place opens a place of objects, once for a command. One that cannot be
// opened is said and left out: it is a help, not a need.
func (c *Client) place(name string) *source.Place {
	p, known := c.places[name]
	if known {
		return p
	}
	p, err := source.Open(name, c.placeOptions())
	if err != nil {
		c.UI.Warn("%v", err)
	}
	c.places[name] = p
	return p
}

// placeOptions ties places to the link of the lock server: its limits, its
// counters, its credentials.
func (c *Client) placeOptions() source.Options {
	return source.Options{
		Wrap: func(conn net.Conn) net.Conn {
			if s := c.link.Load(); s != nil {
				return s.Through(conn)
			}
			return conn
		},
		Dial: func(ctx context.Context, user, host string, port int) (*ssh.Client, error) {
			s := c.link.Load()
			if s == nil {
				return nil, errors.New("no server")
			}
			return s.DialOther(ctx, user, host, port)
		}}
}

// openPlaces is what names stand for, each once.
func (c *Client) openPlaces(names []string) []*source.Place {
	var ps []*source.Place
	for _, name := range names {
		if p := c.place(name); p != nil && !slices.Contains(ps, p) {
			ps = append(ps, p)
		}
	}
	return ps
}

func rungsOf(places []*source.Place) []fetch.Rung {
	var rungs []fetch.Rung
	for _, p := range places {
		rungs = append(rungs, fetch.Rung{Name: p.Name(), Source: p})
	}
	return rungs
}

// lookAside is the places of the configuration, in its order.
func (c *Client) lookAside() []fetch.Rung { return rungsOf(c.openPlaces(c.LookAside)) }

// sources is what comes before the lock server by the SRC lines of cfg, in
// their order. The lock server, which is asked last in any case, and then with
// patience, has its turn among them: not without other sources after it, and
// only as long as it answers.
func (c *Client) sources(cfg *parcel.Config, server string, far *remote.Objects) []fetch.Rung {
	var rungs []fetch.Rung
	end := 0 // of the rungs that are not the lock server
	for _, src := range cfg.Src {
		if isServer(src, server) {
			if len(rungs) == end {
				rungs = append(rungs, fetch.Rung{Name: sourceRung, Source: source.Guard(quick{far}, 0)})
			}
			continue
		}
		if p := c.place(src); p != nil {
			rungs = append(rungs, rungsOf([]*source.Place{p})...)
			end = len(rungs)
		}
	}
	return rungs[:end]
}

// isServer says whether a SRC line names the lock server itself.
func isServer(src, server string) bool {
	scheme, rest, ok := strings.Cut(src, "://")
	if !ok || !strings.EqualFold(scheme, "sftp") {
		return false
	}
	part := func(s string) (host string, port int) {
		if i := strings.LastIndex(s, "@"); i >= 0 {
			s = s[i+1:]
		}
		host, port, err := sshconf.ParseHostPort(s)
		if err != nil {
			return "", 0
		}
		return strings.ToLower(host), port
	}
	rest, _, _ = strings.Cut(rest, "/")
	host, port := part(rest)
	serverHost, serverPort := part(server)
	return host != "" && host == serverHost && (port == 0 || port == serverPort || port == 22 && serverPort == 0)
}

// quick is the lock server, given up at the first failure.
type quick struct{ *remote.Objects }

func (q quick) Get(ctx context.Context, tag seal.Tag) ([]byte, error) {
	return q.Objects.Get(remote.WithPolicy(ctx, remote.Policy{}), tag)
}

// note is what went wrong on a ladder without anybody failing for it.
func (c *Client) note(rung string, tag seal.Tag, err error) {
	c.UI.Detail("%s: %v", rung, err)
	switch rung {
	case sourceRung, exportRung, "hoard", "modified":
		return
	}
	if errors.Is(err, seal.ErrCorrupt) && c.liars.note(rung) {
		c.UI.Warn("%s: has something else under the name of an object; what it has is asked for elsewhere", rung)
	}
}

// localPlaces is the look-aside places that are directories of this host.
func (c *Client) localPlaces() []*source.Place {
	return slices.DeleteFunc(c.openPlaces(c.LookAside), func(p *source.Place) bool { return !p.Local() })
}

// offlineRungs is where an offline checkout may look beside the hoard: the
// look-aside directories.
func (co *Checkout) offlineRungs() []fetch.Rung {
	places := co.client.localPlaces()
	rungs := rungsOf(places)
	if len(places) > 0 {
		rungs = append(rungs, fetch.Rung{Name: "absent", Source: &absent{co: co, places: places}})
	}
	return rungs
}

// absent stands below the look-aside directories of a parcel that runs without
// a network. While one of them is gone it may have what nobody else has: the
// guest waits for it, as it waits for a network.
type absent struct {
	co     *Checkout
	places []*source.Place
	mu     sync.Mutex
	told   bool
}

// absentPoll is how soon a stick that is back is noticed.
const absentPoll = time.Second

func (a *absent) Get(ctx context.Context, tag seal.Tag) ([]byte, error) {
	for {
		gone := ""
		for _, p := range a.places {
			if p.Gone() {
				gone = p.Name()
				continue
			}
			p.Again()
			sealed, err := p.Get(ctx, tag)
			switch {
			case err == nil:
				a.tell("")
				return sealed, nil
			case errors.Is(err, seal.ErrCorrupt), ctx.Err() != nil:
				return nil, err
			case !errors.Is(err, parcel.ErrNoObject):
				gone = p.Name()
			}
		}
		if gone == "" {
			a.tell("")
			return nil, parcel.NewError(parcel.NoObject, "object %s: on this host nowhere", tag)
		}
		a.tell(gone)
		t := time.NewTimer(absentPoll)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return nil, ctx.Err()
		}
	}
}

// VerifiesTags says that Get never returns bytes that do not match the tag.
func (a *absent) VerifiesTags() {}

// tell says that the guest waits for a place, and that it goes on.
func (a *absent) tell(gone string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case gone != "" && !a.told:
		a.co.client.UI.Warn("parcel %s: %s is not there; the guest waits for what it lacks", a.co.State.Parcel, gone)
	case gone == "" && a.told:
		a.co.client.UI.Say("parcel %s: %s", a.co.State.Parcel, "it is back; the guest goes on")
	}
	a.told = gone != ""
}

// RungStat is what one rung of the ladder was asked for since checkout.
type RungStat struct {
	Name    string `json:"name"`
	Hits    int64  `json:"hits"`
	Misses  int64  `json:"misses"`
	Corrupt int64  `json:"corrupt"` // of the misses, something else under the name
	Errors  int64  `json:"errors"`  // it could not be asked
	Bytes   int64  `json:"bytes"`   // of the hits
}

func rungStats(l *fetch.Ladder) []RungStat {
	var all []RungStat
	for _, c := range l.Counts() {
		all = append(all, RungStat{c.Name, c.Hits, c.Misses, c.Corrupt, c.Errors, c.Bytes})
	}
	return addRungs(nil, all) // the lock server may stand there twice
}

// addRungs adds counts by name; a rung that is new comes where it stands in
// more.
func addRungs(sum, more []RungStat) []RungStat {
	at := 0
	for _, m := range more {
		i := slices.IndexFunc(sum, func(r RungStat) bool { return r.Name == m.Name })
		if i < 0 {
			i = at
			sum = slices.Insert(sum, i, RungStat{Name: m.Name})
		}
		r := &sum[i]
		r.Hits += m.Hits
		r.Misses += m.Misses
		r.Corrupt += m.Corrupt
		r.Errors += m.Errors
		r.Bytes += m.Bytes
		at = i + 1
	}
	return sum
}

// noteLadder adds to the checkout's counters what l was asked for.
func (co *Checkout) noteLadder(l *fetch.Ladder) {
	sum := co.pastStats()
	sum.Rungs = addRungs(sum.Rungs, rungStats(l))
	co.writeStats(sum)
}

// PlaceInfo is a look-aside place and what it looks like.
type PlaceInfo struct {
	Place string `json:"place"`
	source.Survey
	Error string `json:"error,omitempty"` // why it could not be looked at
}

// Survey looks at the place called name: counts the objects of a directory,
// asks a server whether it answers. The error is of kind parcel.Usage and says
// that the name means nothing.
func (c *Client) Survey(ctx context.Context, name string) (PlaceInfo, error) {
	// Its limits and credentials hold for places; it is not dialled.
	_, _ = c.defaultServer()
	p, err := source.Open(name, c.placeOptions())
	if err != nil {
		return PlaceInfo{}, err
	}
	defer p.Close()
	info := PlaceInfo{Place: p.Name()}
	if info.Survey, err = p.Survey(ctx); err != nil {
		info.Error = err.Error()
	}
	return info, ctx.Err()
}
