package web

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"isr/client/dirt"
)

// recorded is what a run showed once, until it is over.
type recorded struct {
	over  atomic.Bool
	asked atomic.Int64
}

func (r *recorded) Read(name string) ([]byte, error) {
	r.asked.Add(1)
	if r.over.Load() {
		return nil, errors.New("gone")
	}
	return os.ReadFile(filepath.Join("..", "testdata", "after", name))
}

// start serves a recorded run until the test ends, or it is over.
func start(t *testing.T) (*Server, *recorded, <-chan error) {
	t.Helper()
	r := new(recorded)
	s, err := New(dirt.New(r), r.over.Load)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	var wg sync.WaitGroup
	wg.Go(func() { done <- s.Run(ctx) })
	t.Cleanup(func() { stop(); wg.Wait() })
	return s, r, done
}

func browser(t *testing.T) *http.Client {
	t.Helper()
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	tr := &http.Transport{}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Jar: jar, Transport: tr}
}

// ask sends a request, with headers as name and value in turn.
func ask(t *testing.T, c *http.Client, method, url string, header ...string) (int, string, http.Header) {
	t.Helper()
	req, err := http.NewRequest(method, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		if header[i] == "Host" {
			req.Host = header[i+1]
		}
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body), resp.Header
}

func TestLoopbackOnly(t *testing.T) {
	s, _, _ := start(t)
	if !strings.HasPrefix(s.URL(), "http://127.0.0.1:") || !strings.HasPrefix(s.ln.Addr().String(), "127.0.0.1:") {
		t.Errorf("it listens at %v, for %s", s.ln.Addr(), s.URL())
	}
	if token := s.URL()[strings.LastIndex(s.URL(), "/")+1:]; len(token) != 32 {
		t.Errorf("a token of %d digits", len(token))
	}
}

// TestToken: the address works once, for a cookie that scripts do not see and
// other sites' requests do not carry.
func TestToken(t *testing.T) {
	s, _, _ := start(t)
	address := s.URL()
	base := "http://" + s.host[0]
	alice, mallory := browser(t), browser(t)

	for _, path := range []string{"/", "/events", "/dirt.js", "/token/", "/token/" + strings.Repeat("0", 32), "/token/" + s.secret} {
		if status, body, _ := ask(t, mallory, "GET", base+path); status != http.StatusForbidden || strings.Contains(body, "small") {
			t.Errorf("%s without the token: %d %q", path, status, body)
		}
	}
	status, body, h := ask(t, alice, "GET", address)
	if status != http.StatusOK || !strings.Contains(body, `url=/"`) {
		t.Fatalf("the token: %d %q", status, body)
	}
	cookie := h.Get("Set-Cookie")
	for _, want := range []string{"; HttpOnly", "; SameSite=Strict", "; Path=/", "isr-dirtometer-"} {
		if !strings.Contains(cookie, want) {
			t.Errorf("cookie %q lacks %q", cookie, want)
		}
	}
	if strings.Contains(cookie, address[strings.LastIndex(address, "/")+1:]) {
		t.Error("the cookie is the token")
	}
	select {
	case <-s.Used():
	default:
		t.Error("the token is not said to be used")
	}
	for name, c := range map[string]*http.Client{"another": mallory, "the same": alice} {
		if status, _, h := ask(t, c, "GET", address); status != http.StatusForbidden || h.Get("Set-Cookie") != "" {
			t.Errorf("the token again, from %s browser: %d", name, status)
		}
	}
	if status, _, _ := ask(t, mallory, "GET", base+"/token/"); status != http.StatusForbidden {
		t.Errorf("the empty token, once the token is void: %d", status)
	}
	for path, want := range map[string]int{"/": 200, "/dirt.js": 200, "/dirt.css": 200, "/nothing": 404, "/page/index.html": 404, "/../web.go": 404} {
		if status, _, _ := ask(t, alice, "GET", base+path); status != want {
			t.Errorf("%s: %d, want %d", path, status, want)
		}
	}
	if status, _, _ := ask(t, mallory, "GET", base+"/", "Cookie", s.cookie+"=0"); status != http.StatusForbidden {
		t.Errorf("a made-up cookie: %d", status)
	}
}

// TestRefused: what a page of elsewhere could make this browser ask.
func TestRefused(t *testing.T) {
	s, _, _ := start(t)
	base := "http://" + s.host[0]
	c := browser(t)
	if status, _, _ := ask(t, c, "GET", s.URL(), "Host", "evil.example:80"); status != http.StatusForbidden {
		t.Fatalf("the token for another host: %d", status)
	}
	if status, _, _ := ask(t, c, "GET", s.URL()); status != http.StatusOK {
		t.Fatalf("a refused request has used the token: %d", status)
	}
	port := s.host[0][strings.Index(s.host[0], ":"):]
	for _, tt := range []struct {
		method string
		header []string
		want   int
	}{
		{"GET", nil, 200},
		{"GET", []string{"Host", "localhost" + port}, 200},
		{"GET", []string{"Host", "127.0.0.1"}, 403},
		{"GET", []string{"Host", "evil.example" + port}, 403},
		{"GET", []string{"Host", "127.0.0.1" + port + ".evil.example"}, 403},
		{"GET", []string{"Host", "[::1]" + port}, 403},
		{"GET", []string{"Sec-Fetch-Site", "cross-site"}, 403},
		{"GET", []string{"Sec-Fetch-Site", "same-site"}, 403},
		{"GET", []string{"Sec-Fetch-Site", "same-origin"}, 200},
		{"GET", []string{"Sec-Fetch-Site", "none"}, 200},
		{"POST", nil, 405}, {"HEAD", nil, 405}, {"PUT", nil, 405}, {"DELETE", nil, 405}, {"OPTIONS", nil, 405},
		{"OPTIONS", []string{"Origin", "http://evil.example", "Access-Control-Request-Method", "GET"}, 405},
	} {
		status, _, h := ask(t, browser(t), tt.method, base+"/", append(tt.header, "Cookie", s.cookie+"="+s.secret)...)
		if status != tt.want {
			t.Errorf("%s %v: %d, want %d", tt.method, tt.header, status, tt.want)
		}
		if h.Get("Access-Control-Allow-Origin") != "" {
			t.Errorf("%s %v: other origins are let in", tt.method, tt.header)
		}
		csp := h.Get("Content-Security-Policy")
		if !strings.Contains(csp, "default-src 'none'") || strings.Contains(csp, "unsafe") || h.Get("X-Content-Type-Options") != "nosniff" {
			t.Errorf("%s %v: headers %v", tt.method, tt.header, h)
		}
	}
}

// TestPage: it names nothing that is not served with it, and has no script or
// style of its own that the policy would stop.
func TestPage(t *testing.T) {
	for _, name := range []string{"index.html", "dirt.css", "dirt.js"} {
		p, err := page.ReadFile("page/" + name)
		if err != nil {
			t.Fatal(err)
		}
		for _, bad := range []string{"http:", "https:", "//cdn", "@import", "innerHTML", "<style", " style=", "onclick", "eval("} {
			if strings.Contains(string(p), bad) {
				t.Errorf("%s has %q", name, bad)
			}
		}
	}
}

// TestEvents: watchers are told, and told of the end. Without a watcher the
// parcel is left alone.
func TestEvents(t *testing.T) {
	s, r, done := start(t)
	c := browser(t)
	ask(t, c, "GET", s.URL())
	if n := r.asked.Load(); n != 0 {
		t.Errorf("the parcel was asked %d times for nobody", n)
	}
	u, _ := url.Parse("http://" + s.host[0] + "/events")
	resp, err := c.Get(u.String())
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if kind := resp.Header.Get("Content-Type"); kind != "text/event-stream" {
		t.Errorf("events are %s", kind)
	}
	in := bufio.NewScanner(resp.Body)
	in.Buffer(nil, 1<<20)
	var lines []string
	for in.Scan() {
		if in.Text() == "" {
			continue
		}
		lines = append(lines, in.Text())
		if data, ok := strings.CutPrefix(in.Text(), "data: {"); ok {
			var snap dirt.Snapshot
			if err := json.Unmarshal([]byte("{"+data), &snap); err != nil || snap.Parcel != "small" {
				t.Fatalf("%v in %s", err, data)
			}
			r.over.Store(true)
		}
	}
	if n := len(lines); n < 3 || lines[n-2] != "event: over" {
		t.Errorf("the end is %q", lines[max(0, n-3):])
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	if err := s.ln.Close(); !errors.Is(err, net.ErrClosed) { // its port may be another's by now
		t.Errorf("it serves on: %v", err)
	}
}

// TestManyWatchers: more than a browser's tabs are refused.
func TestManyWatchers(t *testing.T) {
	s, _, _ := start(t)
	c := browser(t)
	ask(t, c, "GET", s.URL())
	for i := range maxWatchers + 1 {
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		req, _ := http.NewRequestWithContext(ctx, "GET", "http://"+s.host[0]+"/events", nil)
		resp, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if want := i < maxWatchers; (resp.StatusCode == http.StatusOK) != want {
			t.Errorf("watcher %d: %d", i+1, resp.StatusCode)
		}
	}
}
