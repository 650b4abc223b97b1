// Package source opens places of objects: a directory, a mounted tree, a web
// server, another host's files over SFTP. They are the look-aside places of a
// configuration and the SRC lines of a parcel.cfg.
//
// A place is named by a path or a URL:
//
//	/media/usb                 a directory, also FILE:///media/usb
//	HTTP://host/tree           a web server, also HTTPS
//	NFS://host/export/tree     where that export is mounted on this host
//	CODA://realm/user/tree     /coda/realm/user/tree
//	HFS:///tree                a directory, flat: files named by tag
//	CAS://host/tree            a web server, flat
//	SFTP://[user@]host/tree    an SFTP server; /~/ is the login's home
//
// The objects of a tree lie at ab/abcdef…, at hdk/ab/abcdef…, or flat, named in
// lower or upper case; which of these is found out.
//
// It promises never to return bytes that do not match the tag, and that a
// place can neither stall whoever asks nor exhaust his memory: one that does
// not answer is left out for a while, longer each time, up to a minute, and so
// is one that keeps handing out something else. A place that is not there, a
// stick pulled, an export not mounted, has no object; that is no error. It
// does not retry: the ladder asks the next rung.
package source

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/ssh"

	"isr/client/fetch"
	"isr/store/parcel"
	"isr/store/seal"
)

// Options are what places need of the rest of the program. The zero value does
// for directories and web servers.
type Options struct {
	// Wrap is put around the connections to web servers; nil: nothing is.
	Wrap func(net.Conn) net.Conn
	// Dial logs in to an SSH server, for SFTP; port 0 and user "" are as
	// configured. nil: there is no SFTP.
	Dial func(ctx context.Context, user, host string, port int) (*ssh.Client, error)
	// Patience is how long a place may take to answer; 0 is 3 seconds.
	Patience time.Duration

	mountinfo string // "" is /proc/self/mountinfo
	coda      string // "" is /coda
}

// tree is the files at one place.
type tree interface {
	// read gives the content of a file, named with slashes, to w, whose
	// methods say when to stop. The error wraps errAbsent if there is no such
	// file, or no such tree.
	read(ctx context.Context, name string, w *sink) error
	// reset drops what may be stuck.
	reset()
}

var errAbsent = errors.New("not there")

// layouts are where an object may lie in a tree, by tag in lower case.
var layouts = []func(tag string) string{
	func(tag string) string { return tag[:2] + "/" + tag },
	func(tag string) string { return "hdk/" + tag[:2] + "/" + tag },
	func(tag string) string { return tag },
	strings.ToUpper,
}

// flat are those of layouts that HFS and CAS have, the usual one first.
var flat = map[string][]int{"hfs": {3, 2}, "cas": {2, 3}}

// Place is one place of objects. It is a fetch.TagVerifier. Safe for
// concurrent use.
type Place struct {
	name     string
	tree     tree
	dir      *dir // the same, if it is one
	order    []int
	patience time.Duration
	guard    guard

	layout atomic.Int32 // the last that had an object, -1: none yet
	misses atomic.Int32 // of tags, while layout is -1
	lies   atomic.Int32 // corrupt objects since the last good one

	demand, bulk chan struct{} // a request's place among those going on
}

// How many requests of a place go on at a time: demand has its own.
const (
	demandSlots = 8
	bulkSlots   = 16
)

// maxLies is how many corrupt objects in a row a place may hand out before it
// is left out: a portal that answers every request with its log-in page costs
// a guest a round trip each.
const maxLies = 8

// Open is the place that name means. It looks for nothing yet. Close it. An
// error is of kind parcel.Usage.
func Open(name string, o Options) (*Place, error) {
	p := &Place{name: name, patience: o.Patience, order: []int{0, 1, 2, 3},
		demand: make(chan struct{}, demandSlots), bulk: make(chan struct{}, bulkSlots)}
	if p.patience == 0 {
		p.patience = defaultPatience
	}
	p.layout.Store(-1)
	bad := func(format string, args ...any) (*Place, error) {
		return nil, parcel.NewError(parcel.Usage, "place %s: %s", p.name, fmt.Sprintf(format, args...))
	}
	if !strings.Contains(name, "://") {
		if !filepath.IsAbs(name) {
			return bad("want a path that begins with /, or SCHEME://…")
		}
		p.setDir(&dir{path: filepath.Clean(name)})
		return p, nil
	}
	u, err := url.Parse(name)
	if err != nil {
		p.name = "…" // it may hold a password
		return bad("not a URL")
	}
	p.name = u.Redacted()
	scheme := strings.ToLower(u.Scheme)
	if order := flat[scheme]; order != nil {
		p.order = order
	}
	if u.RawQuery != "" || u.Fragment != "" {
		return bad("a place has no ? and no #")
	}
	below := path.Clean("/" + u.Path)
	switch scheme {
	case "file", "hfs":
		if u.Host != "" && u.Host != "localhost" || u.Path == "" {
			return bad("want %s:///DIRECTORY", u.Scheme)
		}
		p.setDir(&dir{path: below})
	case "coda":
		coda := o.coda
		if coda == "" {
			coda = "/coda"
		}
		p.setDir(&dir{path: filepath.Join(coda, path.Clean("/"+u.Host), below)})
	case "nfs":
		if u.Hostname() == "" || u.Path == "" {
			return bad("want %s://HOST/DIRECTORY", u.Scheme)
		}
		file := o.mountinfo
		if file == "" {
			file = "/proc/self/mountinfo"
		}
		p.setDir(&dir{find: func() (string, bool) { return findNFS(file, u.Hostname(), below) }})
	case "http", "https", "cas":
		if u.Host == "" {
			return bad("want %s://HOST/…", u.Scheme)
		}
		if u.Scheme = scheme; scheme == "cas" {
			u.Scheme = "http"
		}
		p.tree = newWeb(u, o.Wrap, p.patience)
	case "sftp":
		if u.Hostname() == "" {
			return bad("want %s://HOST/…", u.Scheme)
		}
		if o.Dial == nil {
			return bad("no SFTP here")
		}
		if p.tree, err = newSFTP(u, o.Dial); err != nil {
			return bad("%v", err)
		}
	default:
		return bad("unknown scheme %s", u.Scheme)
	}
	return p, nil
}

func (p *Place) setDir(d *dir) { p.tree, p.dir = d, d }

// Name is what the place was opened as, without a password.
func (p *Place) Name() string { return p.name }

// Local says that the place is a directory of this host, as far as can be
// seen: to ask it is not to touch the network.
func (p *Place) Local() bool { return p.dir != nil && p.dir.find == nil }

// Close ends the connections.
func (p *Place) Close() error {
	p.guard.stop()
	p.tree.reset()
	return nil
}

// VerifiesTags says that Get never returns bytes that do not match the tag.
func (p *Place) VerifiesTags() {}

var _ fetch.TagVerifier = (*Place)(nil)

// Get returns the object that tag names. parcel.ErrNoObject: the place lacks
// it, is not there, or is being left out. An error that wraps seal.ErrCorrupt:
// it has something else under that name. Any other: it could not be asked. The
// text does not name the place: a ladder does.
func (p *Place) Get(ctx context.Context, tag seal.Tag) ([]byte, error) {
	if tag.NewHash() == nil {
		return nil, parcel.NewError(parcel.NoObject, "object %q: not a tag", tag.String())
	}
	var sealed []byte
	err := p.guard.do(ctx, func(ctx context.Context) (err error) {
		leave, err := p.enter(ctx)
		if err != nil {
			return err
		}
		defer leave()
		sealed, err = p.look(ctx, tag)
		return err
	})
	switch {
	case err == nil:
		p.lies.Store(0)
		return sealed, nil
	case errors.Is(err, errAbsent):
		return nil, parcel.NewError(parcel.NoObject, "object %s: not at %s", tag, p.name)
	case errors.Is(err, seal.ErrCorrupt):
		if p.lies.Add(1) >= maxLies {
			p.lies.Store(0)
			p.guard.trip()
		}
	}
	return nil, err
}

// enter waits for a request's turn. Demand does not queue behind the rest.
func (p *Place) enter(ctx context.Context) (leave func(), err error) {
	bulk, raised := p.bulk, fetch.Raised(ctx)
	if fetch.ClassOf(ctx) == fetch.Demand {
		bulk, raised = nil, nil
	}
	for {
		var demand chan struct{}
		if bulk == nil {
			demand = p.demand
		}
		select {
		case bulk <- struct{}{}:
			return func() { <-bulk }, nil
		case demand <- struct{}{}:
			return func() { <-demand }, nil
		case <-raised:
			bulk, raised = nil, nil
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// Until a layout has had an object all are asked, for the first tags; then
// only now and then, so that a place that has nothing costs little.
const (
	askAll   = 16
	askEvery = 16
)

// look asks for tag where it may lie.
func (p *Place) look(ctx context.Context, tag seal.Tag) (sealed []byte, err error) {
	order, known := p.order, p.layout.Load()
	switch {
	case known >= 0 && p.dir == nil:
		order = []int{int(known)}
	case known >= 0:
		order = append([]int{int(known)}, p.order...) // it costs next to nothing
	case p.dir == nil:
		if n := p.misses.Load(); n >= askAll && n%askEvery != 0 {
			order = order[:1]
		}
		defer func() {
			if errors.Is(err, errAbsent) {
				p.misses.Add(1)
			}
		}()
	}
	if len(order) > 1 && p.dir == nil {
		return p.race(ctx, tag, order)
	}
	var corrupt error
	for i, l := range order {
		if i > 0 && l == int(known) {
			continue
		}
		sealed, err := p.read(ctx, tag, l)
		switch {
		case err == nil:
			return sealed, nil
		case errors.Is(err, seal.ErrCorrupt):
			corrupt = err
		case !errors.Is(err, errAbsent):
			return nil, err
		}
	}
	if corrupt != nil {
		return nil, corrupt
	}
	return nil, errAbsent
}

// race asks for tag at several places of the tree at a time.
func (p *Place) race(ctx context.Context, tag seal.Tag, order []int) ([]byte, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type answer struct {
		sealed []byte
		err    error
	}
	answers := make(chan answer, len(order))
	var going sync.WaitGroup
	defer going.Wait()
	for _, l := range order {
		going.Go(func() {
			sealed, err := p.read(ctx, tag, l)
			answers <- answer{sealed, err}
		})
	}
	worst := errAbsent
	for range order {
		a := <-answers
		switch {
		case a.err == nil:
			cancel()
			return a.sealed, nil
		case errors.Is(a.err, errAbsent):
		case errors.Is(worst, errAbsent), errors.Is(worst, seal.ErrCorrupt):
			worst = a.err
		}
	}
	return nil, worst
}

// read gets the object from where layout l has it, and verifies it.
func (p *Place) read(ctx context.Context, tag seal.Tag, l int) ([]byte, error) {
	sealed, err := p.transfer(ctx, layouts[l](tag.String()))
	if err == nil {
		err = tag.Verify(sealed)
	}
	if err == nil {
		p.layout.Store(int32(l))
		return sealed, nil
	}
	return nil, err
}

// Size is the size of an object in bytes, if the place is a directory and has
// a file for it; parcel.ErrNoObject if not. The content is not looked at.
func (p *Place) Size(tag seal.Tag) (int64, error) {
	if p.dir != nil && tag.NewHash() != nil {
		for _, l := range p.order {
			if n, err := p.dir.size(layouts[l](tag.String())); err == nil {
				return n, nil
			}
		}
	}
	return 0, parcel.NewError(parcel.NoObject, "object %s: not at %s", tag, p.name)
}

// Gone says that the place is a directory that is not there now, or is not
// the one it was: the stick was pulled.
func (p *Place) Gone() bool { return p.dir != nil && !p.dir.present() }

// Again ends a pause: the place is asked as if nothing had been wrong.
func (p *Place) Again() {
	p.guard.mu.Lock()
	defer p.guard.mu.Unlock()
	p.guard.until = time.Time{}
}
