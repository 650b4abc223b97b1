// Package web shows the dirtometer as a page in a browser of this host.
//
// The page is served on loopback, at a port of the kernel's choosing, to one
// browser: the address that New gives has a token that works once, for a cookie
// that this browser alone then has. Requests for another host name, which is
// how a page of elsewhere would reach in, other methods than GET, and requests
// of other pages are refused. What is served is the page, which fetches nothing
// from elsewhere, and snapshots, which are counts. Nothing that is asked here
// changes anything.
package web

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"embed"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"isr/client/dirt"
)

//go:embed page
var page embed.FS

// How often watchers are told, and how many there may be: tabs of one browser.
const (
	interval    = 500 * time.Millisecond
	maxWatchers = 16
)

// Sampler gives snapshots, one call at a time. *dirt.Meter is one.
type Sampler interface {
	Sample(now time.Time) (*dirt.Snapshot, error)
}

// Server serves the page of one running parcel.
type Server struct {
	sampler Sampler
	over    func() bool
	ln      net.Listener
	host    []string // what it may be called
	cookie  string   // the cookie's name: other ports of this host have theirs
	secret  string   // its value
	ended   chan struct{}
	isOver  bool          // with ended closed: the run is over, not only this server
	begun   chan struct{} // a watcher came where there was none

	mu       sync.Mutex
	token    string // "" once it is used
	used     chan struct{}
	watchers map[chan []byte]struct{}
}

// New listens. over is asked now and then whether the run is over.
func New(s Sampler, over func() bool) (*Server, error) {
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("dirtometer: %w", err)
	}
	port := ln.Addr().(*net.TCPAddr).Port
	return &Server{sampler: s, over: over, ln: ln,
		host:   []string{fmt.Sprintf("127.0.0.1:%d", port), fmt.Sprintf("localhost:%d", port)},
		cookie: fmt.Sprintf("isr-dirtometer-%d", port), secret: random(), token: random(), used: make(chan struct{}),
		ended: make(chan struct{}), begun: make(chan struct{}, 1), watchers: make(map[chan []byte]struct{})}, nil
}

// random is 128 random bits.
func random() string {
	var b [16]byte
	rand.Read(b[:])
	return hex.EncodeToString(b[:])
}

// tokenPath is where a token is exchanged.
const tokenPath = "/token/"

// URL is the address to open, which works once.
func (s *Server) URL() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return "http://" + s.host[0] + tokenPath + s.token
}

// Used is closed when the token is used.
func (s *Server) Used() <-chan struct{} { return s.used }

// Run serves until ctx ends or the run is over. If the run is, by then, the
// page is told.
func (s *Server) Run(ctx context.Context) error {
	h := &http.Server{Handler: s, ReadHeaderTimeout: 5 * time.Second, MaxHeaderBytes: 16 << 10,
		BaseContext: func(net.Listener) context.Context { return context.WithoutCancel(ctx) }}
	served := make(chan error, 1)
	go func() { served <- h.Serve(s.ln) }()
	s.sample(ctx)
	s.isOver = s.over()
	close(s.ended)
	// The watchers are told, and go.
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	h.Shutdown(last)
	h.Close()
	if err := <-served; !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("dirtometer: %w", err)
	}
	return nil
}

// sample tells the watchers, while there are any, until ctx ends or the run is
// over. Without watchers it leaves the parcel alone.
func (s *Server) sample(ctx context.Context) {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		if s.watched() {
			snap, err := s.sampler.Sample(time.Now())
			switch {
			case err == nil:
				s.tell(snap)
			case s.over():
				return
			}
		} else if s.over() {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-s.begun:
		case <-tick.C:
		}
	}
}

func (s *Server) watched() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.watchers) > 0
}

// tell gives every watcher the newest snapshot; one that is slow misses some.
func (s *Server) tell(snap *dirt.Snapshot) {
	p, err := json.Marshal(snap)
	if err != nil {
		panic(err) // only numbers and strings
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for w := range s.watchers {
		select {
		case <-w:
		default:
		}
		w <- p
	}
}

func (s *Server) join() (w chan []byte, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.watchers) >= maxWatchers {
		return nil, false
	}
	w = make(chan []byte, 1)
	s.watchers[w] = struct{}{}
	select {
	case s.begun <- struct{}{}:
	default:
	}
	return w, true
}

func (s *Server) leave(w chan []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.watchers, w)
}

// ServeHTTP answers what this server's own page asks, and nobody else.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Content-Security-Policy", "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "+
		"base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("Cross-Origin-Opener-Policy", "same-origin")
	h.Set("Cache-Control", "no-store")
	// A name that someone has made to mean this host is in the request as it
	// was typed.
	if r.Host != s.host[0] && r.Host != s.host[1] {
		refuse(w, http.StatusForbidden, "another host")
		return
	}
	if r.Method != http.MethodGet {
		h.Set("Allow", http.MethodGet)
		refuse(w, http.StatusMethodNotAllowed, "only GET")
		return
	}
	if token, ok := strings.CutPrefix(r.URL.Path, tokenPath); ok {
		s.exchange(w, token)
		return
	}
	// Pages of other ports of this host count as the same site for cookies.
	if site := r.Header.Get("Sec-Fetch-Site"); site != "" && site != "same-origin" && site != "none" {
		refuse(w, http.StatusForbidden, "another page")
		return
	}
	c, err := r.Cookie(s.cookie)
	if err != nil || !same(c.Value, s.secret) {
		refuse(w, http.StatusForbidden, "the address works once, in one browser")
		return
	}
	switch r.URL.Path {
	case "/":
		s.file(w, "index.html", "text/html; charset=utf-8")
	case "/dirt.css":
		s.file(w, "dirt.css", "text/css; charset=utf-8")
	case "/dirt.js":
		s.file(w, "dirt.js", "text/javascript; charset=utf-8")
	case "/events":
		s.events(w, r)
	default:
		refuse(w, http.StatusNotFound, "nothing here")
	}
}

func same(a, b string) bool { return subtle.ConstantTimeCompare([]byte(a), []byte(b)) == 1 }

func refuse(w http.ResponseWriter, status int, why string) {
	http.Error(w, "isr dirtometer: "+why, status)
}

// exchange gives the cookie for the token, and makes the token void. A page
// sends the browser on, not a redirect: a link that another program or a file
// opens counts as one of another site, and the cookie would not go with it.
func (s *Server) exchange(w http.ResponseWriter, token string) {
	s.mu.Lock()
	good := s.token != "" && same(token, s.token)
	if good {
		s.token = ""
		close(s.used)
	}
	s.mu.Unlock()
	if !good {
		refuse(w, http.StatusForbidden, "the address works once")
		return
	}
	http.SetCookie(w, &http.Cookie{Name: s.cookie, Value: s.secret, Path: "/", HttpOnly: true, SameSite: http.SameSiteStrictMode})
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	fmt.Fprint(w, `<!doctype html><meta http-equiv="refresh" content="0; url=/"><title>isr dirtometer</title><a href="/">On to the dirtometer</a>`)
}

func (s *Server) file(w http.ResponseWriter, name, kind string) {
	p, err := page.ReadFile("page/" + name)
	if err != nil {
		panic(err) // it is embedded
	}
	w.Header().Set("Content-Type", kind)
	w.Write(p)
}

// events tells one watcher until it goes, or the run is over.
func (s *Server) events(w http.ResponseWriter, r *http.Request) {
	news, ok := s.join()
	if !ok {
		refuse(w, http.StatusTooManyRequests, "too many pages")
		return
	}
	defer s.leave(news)
	w.Header().Set("Content-Type", "text/event-stream")
	c := http.NewResponseController(w)
	for {
		select {
		case p := <-news:
			if _, err := fmt.Fprintf(w, "data: %s\n\n", p); err != nil {
				return
			}
		case <-s.ended:
			if s.isOver {
				fmt.Fprint(w, "event: over\ndata: over\n\n")
				c.Flush()
			}
			return
		case <-r.Context().Done():
			return
		}
		if c.Flush() != nil {
			return
		}
	}
}
