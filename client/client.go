// Package client carries out the commands of isr(1): checkout, resume, sync,
// checkin and their kin, each a sequence of steps that may be killed at any
// instant and run again.
//
// What a checkout is lies in one small record (State), replaced atomically.
// A command takes the parcel's lock on this host, finishes or undoes what an
// earlier one left, says so, and then does its own work. A running parcel
// belongs to its keeper, a process of its own that holds the lock, the mount,
// the link and the VMM.
//
// It promises that no command loses what a guest flushed, and that nothing
// readable reaches the disk. It prints nothing: what happened goes to a UI.
package client

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"sync/atomic"
	"time"

	"github.com/gofrs/flock"

	"isr/client/auth"
	"isr/client/fetch"
	"isr/client/hoard"
	"isr/client/remote"
	"isr/client/remote/ask"
	"isr/client/remote/sshconf"
	"isr/client/source"
	"isr/store/parcel"
)

// UI is told what happens. Methods may be called from several goroutines.
type UI interface {
	Say(format string, args ...any)    // what happened, unless quiet
	Detail(format string, args ...any) // each step, if verbose
	Warn(format string, args ...any)   // what should not have
	// Progress begins a long piece of work; total is in unit ("bytes",
	// "chunks"), 0 if not known.
	Progress(what, unit string, total int64) Progress
}

// Progress is one piece of long work.
type Progress interface {
	Set(done, total int64)
	Done()
}

// Options are what every command needs to know. A keeper is told them as JSON.
type Options struct {
	Dir         string // the isr directory, ~/.isr
	Host        string // this host's name in locks and versions; "" = its first label
	Home        string // where .ssh is
	Server      string // [LOGIN@]HOST[:PORT]; "" = the checkout's
	Said        bool   // Server was asked for just now: it is no default
	User        string // ISR user; "" = the checkout's, else the login name
	Batch       bool   // never ask
	Limit       remote.Limit
	Quota       int64    // of the hoard, bytes; 0 = no limit
	LookAside   []string // places of objects to ask before the sources, as package source names them
	Compression string   // profile, as in isr.conf(5); "" = auto
	// CompressionAsked says that Compression was asked for this once: it counts
	// for more than what a resume asked for.
	CompressionAsked bool
	ChunkCache       int64             // decrypted disk chunks to keep in memory, bytes; 0 = diskCache
	Patience         time.Duration     // how long transfers go on trying; 0 = remote's default
	LockPoll         time.Duration     // how often a running parcel's lock is looked at; 0 = lockPoll
	Commands         map[string]string // program for a VMM driver to start, by driver
	SSH              map[string]string
	Prompter         ask.Prompter `json:"-"`
	UI               UI           `json:"-"`
	Program          string       // the isr program, to start a keeper
	Release          string       // of it, for reports
	Report           string       // whether use is reported: "ask" or "yes"; else nothing is noted
}

// Client runs commands for one user on one host.
type Client struct {
	Options
	creds   *ask.Credentials
	servers map[remoteKey]*remote.Server  // opened so far: a command dials once
	logins  map[string]*auth.Held         // by destination: what isr auth left; nil: nothing
	places  map[string]*source.Place      // opened so far; nil: it cannot be
	link    atomic.Pointer[remote.Server] // of servers: whose limits hold for places too
	liars   few                           // places that the user was told of
	noted   Traffic                       // of these, what a checkout's counters have already
}

// remoteKey is a server as a checkout names it.
type remoteKey struct{ spec, user string }

// New prepares the isr directory: private, ours, and no symbolic link.
func New(o Options) (*Client, error) {
	if err := privateDir(o.Dir); err != nil {
		return nil, err
	}
	if o.Host == "" {
		host, err := os.Hostname()
		if err != nil {
			return nil, err
		}
		o.Host, _, _ = strings.Cut(host, ".")
	}
	o.Host = parcel.Clean(o.Host)
	c := newClient(o, new(ask.Credentials))
	c.sweep()
	return c, nil
}

func newClient(o Options, creds *ask.Credentials) *Client {
	return &Client{Options: o, creds: creds, servers: make(map[remoteKey]*remote.Server),
		places: make(map[string]*source.Place)}
}

// Close hangs up.
func (c *Client) Close() {
	for _, p := range c.places {
		if p != nil {
			p.Close()
		}
	}
	for _, s := range c.servers {
		s.Close()
	}
}

// privateDir makes dir, or refuses one that others could have put there.
func privateDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	fi, err := os.Lstat(dir)
	switch {
	case err != nil:
		return err
	case !fi.IsDir():
		return parcel.NewError(parcel.Denied, "directory %s: is not a directory", dir)
	case !ownedByMe(fi):
		return parcel.NewError(parcel.Denied, "directory %s: belongs to another user", dir)
	case fi.Mode().Perm()&0o077 != 0:
		return parcel.NewError(parcel.Denied, "directory %s: others can read it (mode %04o)", dir, fi.Mode().Perm()).
			WithHint("chmod 700 %s", dir)
	}
	return nil
}

// gonePrefix begins the name of a checkout's directory that is being removed.
const gonePrefix = ".gone-"

// sweep finishes removals that were interrupted.
func (c *Client) sweep() {
	gone, _ := filepath.Glob(filepath.Join(c.Dir, gonePrefix+"*"))
	for _, dir := range gone {
		os.RemoveAll(dir)
	}
	begun, _ := filepath.Glob(filepath.Join(c.Dir, newPrefix+"*"))
	for _, dir := range begun {
		l := flock.New(filepath.Join(dir, "lock"), flock.SetFlag(os.O_RDWR))
		if ok, err := l.TryLock(); ok {
			os.RemoveAll(dir)
		} else if fi, serr := os.Stat(dir); err != nil && serr == nil && time.Since(fi.ModTime()) > time.Minute {
			os.RemoveAll(dir) // it never came to have a lock
		}
		l.Close()
	}
}

// server is the lock server of spec, [LOGIN@]HOST[:PORT], for user. It is
// dialled when first used, and hung up by Close.
func (c *Client) server(spec, user string) (*remote.Server, error) {
	key := remoteKey{spec, user}
	if s := c.servers[key]; s != nil {
		return s, nil
	}
	t, err := c.target(spec, user)
	if err != nil {
		return nil, err
	}
	s := remote.Open(t, c.Prompter, c.creds)
	if h := c.held(t); h != nil {
		c.UI.Detail("server %s: by way of isr auth", t.Host)
		s.SetVia(h.Dial)
	} else {
		c.UI.Detail("server %s: by a login of its own, as %s", t.Host, t.User)
	}
	s.OnWarning(func(text string) { c.UI.Warn("%s: %s", s.Host(), text) })
	s.SetLimit(c.Limit)
	s.SetPatience(c.Patience)
	c.servers[key] = s
	c.link.CompareAndSwap(nil, s)
	return s, nil
}

func (c *Client) target(spec, user string) (sshconf.Target, error) {
	if spec == "" {
		return sshconf.Target{}, parcel.NewError(parcel.Usage, "server: none given").
			WithHint("say which: isr -s HOST …, or server = HOST in ~/.openisrrc")
	}
	login := user
	if l, rest, ok := strings.Cut(spec, "@"); ok {
		login, spec = l, rest
	}
	host, port, err := sshconf.ParseHostPort(spec)
	if err != nil {
		return sshconf.Target{}, parcel.NewError(parcel.Usage, "server %q: %v", spec, err)
	}
	return sshconf.Target{Host: host, Port: port, User: login, Home: c.Home, Options: c.SSH, BatchMode: c.Batch}, nil
}

// defaultServer is the server for commands that name no checkout.
func (c *Client) defaultServer() (*remote.Server, error) { return c.server(c.Server, c.User) }

// hoard opens the hoard of this host.
func (c *Client) hoard() (*hoard.Hoard, error) {
	return hoard.Open(filepath.Join(c.Dir, "hoard"), c.Quota)
}

// ladder is where objects are looked for, nearest first: with far, the lock
// server, the look-aside places too; src, which may be none, goes before far.
// local may be nil. What comes from below the hoard is kept in it, wherever it
// comes from: a stick is pulled, a laptop leaves the LAN.
func (c *Client) ladder(local *hoard.Dir, h *hoard.Hoard, far fetch.Source, src ...fetch.Rung) *fetch.Ladder {
	var rungs []fetch.Rung
	if local != nil {
		rungs = append(rungs, fetch.Rung{Name: "modified", Source: local})
	}
	rungs = append(rungs, fetch.Rung{Name: "hoard", Source: h, Keep: h.Put})
	if far != nil {
		rungs = append(rungs, c.lookAside()...)
	}
	rungs = append(rungs, src...)
	if far != nil {
		rungs = append(rungs, fetch.Rung{Name: sourceRung, Source: far})
	}
	l := fetch.NewLadder(rungs...)
	l.OnNote(c.note)
	return l
}

// Find is the checkout that name means: its name or its UUID, on the server
// and of the user that the options name, if they do; a UUID needs no server,
// but is not looked for on another than was asked for. parcel.ErrNoParcel if
// there is none.
func (c *Client) Find(name string) (*Checkout, error) {
	all, err := c.Checkouts()
	if err != nil {
		return nil, err
	}
	var found, byUUID []*Checkout
	elsewhere := ""
	for _, co := range all {
		here := (c.Server == "" || co.State.Server == c.Server) && (c.User == "" || co.State.User == c.User)
		switch {
		case co.State.UUID != name && co.State.Parcel != name:
		case here:
			found = append(found, co)
		case co.State.UUID == name && !c.Said:
			byUUID = append(byUUID, co)
		default:
			elsewhere = co.State.User + " at " + co.State.Server
		}
	}
	if len(found) == 0 {
		found = byUUID
	}
	switch len(found) {
	case 0:
		e := parcel.NewError(parcel.NoParcel, "parcel %s: not checked out on this host", name)
		if elsewhere != "" {
			return nil, e.WithHint("one of that name is, of %s: say so by -u and -s, or name it by its UUID", elsewhere)
		}
		return nil, e.WithHint("isr checkout %s", name)
	case 1:
		return found[0], nil
	}
	var where []string
	for _, co := range found {
		where = append(where, fmt.Sprintf("%s at %s (%s)", co.State.User, co.State.Server, co.State.UUID))
	}
	return nil, parcel.NewError(parcel.Usage, "parcel %s: checked out here more than once: of %s", name, strings.Join(where, ", of ")).
		WithHint("say which by -s and -u, or by its UUID")
}

// Checkouts is every checkout on this host, by name.
func (c *Client) Checkouts() ([]*Checkout, error) {
	entries, err := os.ReadDir(c.Dir)
	if err != nil {
		return nil, err
	}
	var cs []*Checkout
	for _, e := range entries {
		if !e.IsDir() || strings.HasPrefix(e.Name(), ".") {
			continue
		}
		co := &Checkout{client: c, Dir: filepath.Join(c.Dir, e.Name())}
		switch err := co.load(); {
		case errors.Is(err, fs.ErrNotExist):
			continue // hoard, log, or a checkout that began no further than its directory
		case err != nil:
			c.UI.Warn("%v", err)
			continue
		}
		cs = append(cs, co)
	}
	sort.Slice(cs, func(i, j int) bool { return cs[i].Dir < cs[j].Dir })
	return cs, nil
}

// reserved are the names in the isr directory that are no checkout's.
var reserved = map[string]bool{"hoard": true, "log": true, "ls": true}

// dirFor is a directory for a new checkout of name: its name, or if another
// parcel of that name is here already, its name and a part of its UUID.
func (c *Client) dirFor(name, uuid string) string {
	dir := filepath.Join(c.Dir, name)
	if _, err := os.Lstat(dir); err == nil || reserved[name] {
		dir += "@" + uuid[:8]
	}
	// A server may be a copy of another, with the same UUIDs.
	for n, base := 2, dir; ; n++ {
		if _, err := os.Lstat(dir); err != nil {
			return dir
		}
		dir = fmt.Sprint(base, "+", n)
	}
}
