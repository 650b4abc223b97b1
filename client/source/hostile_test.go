package source

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"pgregory.net/rapid"

	"isr/client/fetch"
	"isr/client/fetch/fetchtest"
	"isr/store/parcel"
	"isr/store/seal"
)

var quietLog = log.New(io.Discard, "", 0)

// lowPatience is for places that shall be found not to answer.
const lowPatience = 200 * time.Millisecond

func server(t *testing.T, f http.HandlerFunc) *httptest.Server {
	s := httptest.NewUnstartedServer(f)
	s.Config.ErrorLog = quietLog
	s.Start()
	t.Cleanup(func() { s.CloseClientConnections(); s.Close() })
	return s
}

// TestHostileDirectory: what is no file is not read, and nothing hangs.
func TestHostileDirectory(t *testing.T) {
	root := t.TempDir()
	p := open(t, root, Options{})
	put := func(make func(name string) error) seal.Tag {
		tag, _ := fetchtest.Object(10)
		name := filepath.Join(root, layouts[0](tag.String()))
		os.MkdirAll(filepath.Dir(name), 0o755)
		if err := make(name); err != nil {
			t.Fatal(err)
		}
		return tag
	}
	link := func(to string) func(string) error {
		return func(name string) error { return os.Symlink(to, name) }
	}
	for what, make := range map[string]func(string) error{
		"fifo":         func(name string) error { return syscall.Mkfifo(name, 0o666) },
		"directory":    func(name string) error { return os.Mkdir(name, 0o755) },
		"zero":         link("/dev/zero"),
		"tty":          link("/dev/tty"),
		"random":       link("/dev/urandom"),
		"link to self": func(name string) error { return os.Symlink(filepath.Base(name), name) },
		"endless hole": func(name string) error {
			f, err := os.Create(name)
			if err == nil {
				err = f.Truncate(1 << 40)
				f.Close()
			}
			return err
		},
		"proc": link("/proc/self/status"), // says it has no bytes, and has
	} {
		tag := put(make)
		got, err := p.Get(bg, tag)
		if got != nil || !errors.Is(err, seal.ErrCorrupt) {
			t.Errorf("%s: %d bytes, %v; want ErrCorrupt", what, len(got), err)
		}
		p.lies.Store(0)
	}
	if tag := put(link("/nonexistent")); true {
		if _, err := p.Get(bg, tag); !errors.Is(err, parcel.ErrNoObject) {
			t.Errorf("link to nothing: %v", err)
		}
	}
	// A link to a file is as good as the file.
	tag, sealed := fetchtest.Object(1000)
	other := filepath.Join(t.TempDir(), "x")
	if err := os.WriteFile(other, sealed, 0o600); err != nil {
		t.Fatal(err)
	}
	plantLink := filepath.Join(root, layouts[0](tag.String()))
	os.MkdirAll(filepath.Dir(plantLink), 0o755)
	if err := os.Symlink(other, plantLink); err != nil {
		t.Fatal(err)
	}
	if got, err := p.Get(bg, tag); err != nil || !bytes.Equal(got, sealed) {
		t.Errorf("link to a file: %v", err)
	}
}

// TestHostileServer: whatever a web server does, there is an error soon.
func TestHostileServer(t *testing.T) {
	tag, sealed := fetchtest.Object(100000)
	stalls := map[string]bool{"stalls": true, "stalls in the body": true, "trickles": true}
	for what, c := range map[string]struct {
		f    http.HandlerFunc
		want error // nil: any but these two
	}{
		"lies":      {func(w http.ResponseWriter, r *http.Request) { w.Write(make([]byte, 100000)) }, seal.ErrCorrupt},
		"gone":      {func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(410) }, parcel.ErrNoObject},
		"fails":     {func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(503) }, nil},
		"forbids":   {func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(403) }, nil},
		"part only": {func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(206); w.Write(sealed[:10]) }, nil},
		"redirects": {func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, r.URL.Path, 302) }, nil},
		"redirects to a file": {func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "file:///etc/passwd", 302)
		}, nil},
		"stalls": {func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, nil},
		"stalls in the body": {func(w http.ResponseWriter, r *http.Request) {
			w.Write(sealed[:5000])
			w.(http.Flusher).Flush()
			<-r.Context().Done()
		}, nil},
		"truncates": {func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", strconv.Itoa(len(sealed)))
			w.Write(sealed[:5000])
		}, nil},
		"says it is huge": {func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", strconv.Itoa(1<<40))
			w.Write(sealed)
		}, seal.ErrCorrupt},
		"trickles": {func(w http.ResponseWriter, r *http.Request) {
			for r.Context().Err() == nil {
				if _, err := w.Write([]byte{0}); err != nil {
					return
				}
				w.(http.Flusher).Flush()
				time.Sleep(time.Millisecond)
			}
		}, nil},
		"hangs up": {func(w http.ResponseWriter, r *http.Request) { panic(http.ErrAbortHandler) }, nil},
		"speaks otherwise": {func(w http.ResponseWriter, r *http.Request) {
			c, _, _ := w.(http.Hijacker).Hijack()
			c.Write([]byte("SSH-2.0-x\r\n"))
			c.Close()
		}, nil},
		"endless headers": {func(w http.ResponseWriter, r *http.Request) {
			c, _, _ := w.(http.Hijacker).Hijack()
			defer c.Close()
			io.WriteString(c, "HTTP/1.1 200 OK\r\n")
			for {
				if _, err := io.WriteString(c, "X: "+strings.Repeat("x", 4000)+"\r\n"); err != nil {
					return
				}
			}
		}, nil},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			o := Options{}
			if stalls[what] {
				o.Patience = lowPatience
			}
			p := open(t, server(t, c.f).URL, o)
			began := time.Now()
			got, err := p.Get(bg, tag)
			if d := time.Since(began); d > 30*time.Second {
				t.Errorf("after %v", d)
			}
			if got != nil || err == nil {
				t.Fatalf("%d bytes, %v", len(got), err)
			}
			if c.want != nil && !errors.Is(err, c.want) {
				t.Errorf("%v, want %v", err, c.want)
			}
			if c.want == nil && (errors.Is(err, parcel.ErrNoObject) || errors.Is(err, seal.ErrCorrupt)) {
				t.Errorf("%v: not an error of the rung", err)
			}
			if strings.Contains(err.Error(), tag.String()) && c.want == nil {
				t.Errorf("%v: has the address in it", err)
			}
		})
	}
}

// TestEndless: bodies without end take the memory of one object that may be,
// however many are on their way.
func TestEndless(t *testing.T) {
	if testing.Short() {
		t.Skip("takes memory")
	}
	block := make([]byte, 1<<20)
	var sent atomic.Int64
	s := server(t, func(w http.ResponseWriter, r *http.Request) {
		for r.Context().Err() == nil {
			if _, err := w.Write(block); err != nil {
				return
			}
			sent.Add(1)
		}
	})
	p := open(t, s.URL, Options{Patience: 2 * time.Second})
	p.layout.Store(0)
	var wg sync.WaitGroup
	var peak atomic.Uint64
	stop := make(chan struct{})
	go func() {
		for {
			select {
			case <-stop:
				return
			case <-time.After(20 * time.Millisecond):
				var m runtime.MemStats
				runtime.ReadMemStats(&m)
				if m.HeapInuse > peak.Load() {
					peak.Store(m.HeapInuse)
				}
			}
		}
	}()
	ctx, cancel := context.WithTimeout(bg, 5*time.Second)
	defer cancel()
	for range demandSlots {
		tag, _ := fetchtest.Object(10)
		wg.Go(func() {
			if got, err := p.Get(ctx, tag); err == nil || got != nil {
				t.Errorf("%d bytes, %v", len(got), err)
			}
		})
	}
	wg.Wait()
	close(stop)
	if peak.Load() > 800<<20 {
		t.Errorf("heap of %d MiB", peak.Load()>>20)
	}
	t.Logf("heap of %d MiB at most, %d MiB sent", peak.Load()>>20, sent.Load())
}

// TestLeftOut: a place that does not answer costs one wait, not one for each
// request, and is asked again after a while.
func TestLeftOut(t *testing.T) {
	tag, sealed := fetchtest.Object(1000)
	const requests = 200
	all := make(chan struct{}) // closed when all wait
	var asked, askedAgain atomic.Int64
	slow, _ := fetchtest.Object(10)
	s := server(t, func(w http.ResponseWriter, r *http.Request) {
		if path.Base(r.URL.Path) == slow.String() {
			asked.Add(1)
			<-all
			panic(http.ErrAbortHandler)
		}
		askedAgain.Add(1)
		w.Write(sealed)
	})
	p := open(t, s.URL, Options{})
	p.layout.Store(0)
	var wg sync.WaitGroup
	var failed atomic.Int64
	for range requests {
		wg.Go(func() {
			_, err := p.Get(fetch.WithClass(bg, fetch.Demand), slow)
			switch {
			case err == nil:
				t.Error("got it")
			case !errors.Is(err, parcel.ErrNoObject):
				failed.Add(1)
			}
		})
	}
	within(t, func() bool {
		p.guard.mu.Lock()
		defer p.guard.mu.Unlock()
		return len(p.guard.going) == requests
	})
	close(all)
	wg.Wait()
	// Those that go on when the first is hung up on, and who got their turn
	// just before they were told.
	if n := asked.Load(); n > requests/2 {
		t.Errorf("%d of %d requests were sent", n, requests)
	}
	if failed.Load() == 0 {
		t.Error("nobody was told why")
	}
	p.guard.mu.Lock()
	p.guard.until = p.guard.until.Add(time.Hour)
	p.guard.mu.Unlock()
	for range 1000 {
		if _, err := p.Get(bg, tag); !errors.Is(err, parcel.ErrNoObject) {
			t.Fatalf("left out: %v", err)
		}
	}
	if n := askedAgain.Load(); n > 0 {
		t.Errorf("%d requests were sent while it is left out", n)
	}
	p.Again()
	if _, err := p.Get(bg, tag); err != nil {
		t.Errorf("asked again: %v", err)
	}
}

// TestPauses: the pauses grow up to a minute, and end with an answer.
func TestPauses(t *testing.T) {
	g := &guard{}
	fails := func(context.Context) error { return errors.New("no") }
	var pauses []time.Duration
	for range 8 {
		g.until = time.Time{}
		began := time.Now()
		if err := g.do(bg, fails); err == nil || errors.Is(err, errAbsent) {
			t.Fatal(err)
		}
		if g.until.Before(began.Add(g.pause)) {
			t.Errorf("a pause of %v ends after %v", g.pause, g.until.Sub(began))
		}
		pauses = append(pauses, g.pause)
		g.until = g.until.Add(time.Hour) // however long this takes
		if err := g.do(bg, fails); !errors.Is(err, errLeftOut) {
			t.Fatalf("in the pause: %v", err)
		}
	}
	for i, want := range []time.Duration{1, 2, 4, 8, 16, 32, 60, 60} {
		if pauses[i] != want*time.Second {
			t.Errorf("pause %d: %v, want %d s", i, pauses[i], want)
		}
	}
	g.until = time.Time{}
	if err := g.do(bg, func(context.Context) error { return errAbsent }); err != errAbsent || g.pause != 0 {
		t.Errorf("after an answer: %v, pause %v", err, g.pause)
	}
	// Whoever leaves says nothing about the place.
	ctx, cancel := context.WithCancel(bg)
	if err := g.do(ctx, func(ctx context.Context) error { cancel(); <-ctx.Done(); return ctx.Err() }); err != context.Canceled || g.pause != 0 {
		t.Errorf("cancelled: %v, pause %v", err, g.pause)
	}
}

// TestOneTries: after a pause one request tries the place, the others do not
// wait for it.
func TestOneTries(t *testing.T) {
	g := &guard{pause: time.Second}
	begun, end := make(chan struct{}), make(chan struct{})
	done := make(chan error)
	go func() {
		done <- g.do(bg, func(context.Context) error { close(begun); <-end; return nil })
	}()
	<-begun
	if err := g.do(bg, func(context.Context) error { t.Error("two try"); return nil }); !errors.Is(err, errLeftOut) {
		t.Error(err)
	}
	close(end)
	if err := <-done; err != nil {
		t.Error(err)
	}
	ran := false
	if err := g.do(bg, func(context.Context) error { ran = true; return nil }); err != nil || !ran {
		t.Errorf("after it: %v", err)
	}
}

// TestLiar: a place that always has something else is left out.
func TestLiar(t *testing.T) {
	var asked atomic.Int64
	s := server(t, func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		io.WriteString(w, "<html>please log in</html>")
	})
	p := open(t, s.URL, Options{})
	var corrupt, missing int
	for range 100 {
		tag, _ := fetchtest.Object(10)
		switch _, err := p.Get(bg, tag); {
		case errors.Is(err, parcel.ErrNoObject):
			missing++
		case errors.Is(err, seal.ErrCorrupt):
			corrupt++
		default:
			t.Fatal(err)
		}
	}
	if corrupt != maxLies || missing != 100-maxLies {
		t.Errorf("%d corrupt, %d missing", corrupt, missing)
	}
}

// TestDemandFirst: a guest does not queue behind what is read ahead, nor does
// what was read ahead when the guest comes to wait for it.
func TestDemandFirst(t *testing.T) {
	tag, sealed := fetchtest.Object(1000)
	release := make(chan struct{})
	s := server(t, func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, tag.String()) {
			w.Write(sealed)
			return
		}
		select {
		case <-release:
		case <-r.Context().Done():
		}
		w.WriteHeader(404)
	})
	p := open(t, s.URL, Options{})
	p.layout.Store(0)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer close(release)
	for range 2 * bulkSlots {
		other, _ := fetchtest.Object(10)
		wg.Go(func() { p.Get(fetch.WithClass(bg, fetch.Hoard), other) })
	}
	within(t, func() bool { return len(p.bulk) == bulkSlots })
	if _, err := p.Get(bg, tag); err != nil {
		t.Error(err)
	}
	l := fetch.NewLadder(fetch.Rung{Name: "place", Source: p})
	wg.Go(func() { l.Get(fetch.WithClass(bg, fetch.Prefetch), tag) })
	if _, err := l.Get(bg, tag); err != nil {
		t.Error(err)
	}
}

// TestCancel: cancelling the context ends the request.
func TestCancel(t *testing.T) {
	begun, ended := make(chan struct{}, 1), make(chan struct{}, 1)
	s := server(t, func(w http.ResponseWriter, r *http.Request) {
		begun <- struct{}{}
		<-r.Context().Done()
		ended <- struct{}{}
	})
	p := open(t, s.URL, Options{Patience: time.Minute})
	p.layout.Store(0)
	ctx, cancel := context.WithCancel(bg)
	go func() { <-begun; cancel() }()
	tag, _ := fetchtest.Object(10)
	if _, err := p.Get(ctx, tag); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	<-ended
	if p.guard.pause != 0 {
		t.Error("it is left out for that")
	}
}

// TestLadder: what a place lies about or lacks comes from the next rung, the
// order of the places is that of asking, and what each had is counted.
func TestLadder(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		objects := make(map[seal.Tag][]byte)
		places := make([]*Place, 3)
		var rungs []fetch.Rung
		first := make(map[seal.Tag]int)
		roots := make([]string, len(places))
		for i := range places {
			root, err := os.MkdirTemp(t.TempDir(), "")
			if err != nil {
				t.Fatal(err)
			}
			roots[i], places[i] = root, open(t, root, Options{})
			rungs = append(rungs, fetch.Rung{Name: root, Source: places[i]})
		}
		for range rapid.IntRange(1, 8).Draw(rt, "objects") {
			tag, sealed := fetchtest.Object(rapid.IntRange(1, 5000).Draw(rt, "size"))
			objects[tag] = sealed
			first[tag] = -1
			for i := range places {
				layout := rapid.IntRange(0, 3).Draw(rt, "layout")
				switch rapid.SampledFrom([]string{"has", "lacks", "lies", "short"}).Draw(rt, "place") {
				case "has":
					plant(t, roots[i], layout, map[seal.Tag][]byte{tag: sealed})
					if first[tag] < 0 {
						first[tag] = i
					}
				case "lies":
					plant(t, roots[i], layout, map[seal.Tag][]byte{tag: append([]byte{0}, sealed...)})
				case "short":
					plant(t, roots[i], layout, map[seal.Tag][]byte{tag: sealed[:len(sealed)-1]})
				}
			}
		}
		l := fetch.NewLadder(rungs...)
		hits := make([]int64, len(places))
		for tag, sealed := range objects {
			got, err := l.Get(bg, tag)
			if i := first[tag]; i >= 0 {
				hits[i]++
				if err != nil || !bytes.Equal(got, sealed) {
					rt.Fatalf("object that place %d has: %v", i, err)
				}
			} else if err == nil {
				rt.Fatal("got what nobody has")
			}
		}
		for i, c := range l.Counts() {
			if c.Hits != hits[i] {
				rt.Fatalf("place %d: %d hits counted, want %d", i, c.Hits, hits[i])
			}
		}
	})
}

// FuzzOpen: no name makes it panic, escape, or show a password.
func FuzzOpen(f *testing.F) {
	for _, s := range []string{"/a", "FILE:///a", "HTTP://u:p@h/x", "CODA://../..", "NFS://h/x", "SFTP://h/~/x", "x://", "%"} {
		f.Add(s)
	}
	tag, _ := fetchtest.Object(1)
	none := filepath.Join(f.TempDir(), "none")
	f.Fuzz(func(t *testing.T, name string) {
		p, err := Open(name, Options{coda: none, mountinfo: none})
		if err != nil {
			if !errors.Is(err, parcel.ErrUsage) {
				t.Errorf("%v: not of kind usage", err)
			}
			return
		}
		if p.dir != nil && p.dir.find == nil && !filepath.IsAbs(p.dir.path) {
			t.Errorf("%q: the path %q", name, p.dir.path)
		}
		if strings.HasPrefix(strings.ToLower(name), "coda:") && p.dir.path != none && !strings.HasPrefix(p.dir.path, none+"/") {
			t.Errorf("%q: the path %q", name, p.dir.path)
		}
		if p.dir != nil && p.dir.find != nil {
			p.Get(bg, tag)
		}
		p.Close()
	})
}

// FuzzMounts: no mountinfo makes it panic.
func FuzzMounts(f *testing.F) {
	f.Add([]byte("40 22 0:41 / /mnt\\040a rw shared:2 - nfs4 filer:/export rw,addr=10.0.0.7\n"))
	f.Add([]byte("1 2 3 4\\0 5\\ 6 - a b c"))
	f.Fuzz(func(t *testing.T, text []byte) {
		for _, m := range parseMounts(text) {
			cutExport(m.source)
		}
	})
}
