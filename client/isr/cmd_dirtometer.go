package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"charm.land/lipgloss/v2"
	"golang.org/x/term"

	"isr/client"
	"isr/client/dirt"
	"isr/client/dirt/tui"
	"isr/client/dirt/web"
	"isr/client/remote"
	"isr/store/parcel"
)

type dirtCmd struct {
	parcelArg
	jsonFlag
	Browser bool `name:"browser" help:"Show it in a browser of this host."`
	Once    bool `name:"once" help:"Print how it stands now."`
}

// Run attaches to a parcel that another isr runs.
func (c *dirtCmd) Run(a *app) error {
	once := c.Once || c.JSON
	if once && c.Browser {
		return parcel.NewError(parcel.Usage, "--browser: not with --once or --json")
	}
	cl, err := a.open(remote.Limit{})
	if err != nil {
		return err
	}
	co, err := cl.Running(c.Parcel)
	if err != nil {
		return err
	}
	mount := co.State.Mount
	over := func() bool { over, _ := co.Ended(mount); return over }
	meter := dirt.New(dirt.Mount(mount))
	switch {
	case once:
		s, err := settled(a.ctx, meter)
		switch {
		case err != nil && over():
			_, how := co.Ended(mount)
			return parcel.NewError(parcel.Failed, "parcel %s: not running: %s", c.Parcel, how)
		case err != nil:
			return err
		case c.JSON:
			return printJSON(s)
		}
		width := stdout.Width()
		if width == 0 {
			width = 80
		}
		_, err = lipgloss.Fprintln(stdout.File, tui.Text(s, width, 40, tui.ASCII()))
		return err
	case c.Browser:
		err = serve(a.ctx, meter, over, func(url string) {
			fmt.Fprintln(stdout, url)
			if stdout.TTY {
				a.Say("it works once, in one browser; control-C ends the page, not the parcel")
			}
		}, true)
	case canScreen():
		err = tui.New(tui.Options{Sampler: meter, In: os.Stdin, Out: stdout.File, Over: over}).Run()
	default:
		err = tui.Lines(a.ctx, stdout.File, meter, over)
	}
	if ended, how := co.Ended(mount); ended {
		a.Say("parcel %s: %s", co.State.Parcel, how)
	}
	return err
}

// surveyTime is how long a single snapshot waits for what is known of all.
const surveyTime = 2 * time.Second

// settled is the parcel as soon as it is known what of it is here, or after
// surveyTime.
func settled(ctx context.Context, m *dirt.Meter) (*dirt.Snapshot, error) {
	ctx, stop := context.WithTimeout(ctx, surveyTime)
	defer stop()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		s, err := m.Sample(time.Now())
		if err != nil {
			return nil, err
		}
		known := true
		for _, im := range s.Images {
			known = known && im.Surveyed
		}
		if known {
			return s, nil
		}
		select {
		case <-ctx.Done():
			return s, nil
		case <-tick.C:
		}
	}
}

// canScreen reports whether there is a terminal for a screen of its own.
func canScreen() bool {
	return term.IsTerminal(int(os.Stdin.Fd())) && stdout.TTY && os.Getenv("TERM") != "dumb"
}

// serve shows the page until ctx ends or the run is over. say is told the
// page's address. With open, a browser is started if there is a display and
// someone to see it.
func serve(ctx context.Context, m *dirt.Meter, over func() bool, say func(url string), open bool) error {
	s, err := web.New(m, over)
	if err != nil {
		return err
	}
	say(s.URL())
	display := os.Getenv("DISPLAY") != "" || os.Getenv("WAYLAND_DISPLAY") != ""
	if open && display && stdout.TTY {
		defer openBrowser(s)()
	}
	return s.Run(ctx)
}

// openBrowser starts the desktop's browser with the page. Others can read a
// command line, so the address goes by a file that only we can read, for as
// long as it works. The returned function removes it, if it is still there.
func openBrowser(s *web.Server) (remove func()) {
	f, err := os.CreateTemp(os.Getenv("XDG_RUNTIME_DIR"), "isr-dirtometer-*.html")
	if err != nil {
		return func() {}
	}
	defer f.Close()
	remove = sync.OnceFunc(func() { os.Remove(f.Name()) })
	fmt.Fprintf(f, "<!doctype html><meta http-equiv=\"refresh\" content=\"0; url=%s\">\n", s.URL())
	cmd := exec.Command("xdg-open", f.Name())
	if err := cmd.Start(); err != nil {
		remove()
		return remove
	}
	go cmd.Wait()
	go func() {
		<-s.Used()
		remove()
	}()
	return remove
}

// watched is the dirtometer of isr resume -D: a screen in the terminal that
// would be idle; where that is not to be had, or the VMM takes it, a page. It is
// the client's UI too: what is said while there is a screen is shown on it, and
// printed when it is gone.
type watched struct {
	*screen
	over  atomic.Bool // the run is
	ctx   context.Context
	leave context.CancelFunc // ends ctx when it is

	mu    sync.Mutex
	mode  func(m *dirt.Meter) // how it is shown
	shown *tui.Screen         // while there is a screen
	later []func()            // what was said meanwhile
	ends  sync.WaitGroup      // of what shows it
}

// watch makes the dirtometer of a resume; stop takes it away.
func (a *app) watch() *watched {
	w := &watched{screen: a.screen}
	w.ctx, w.leave = context.WithCancel(context.Background())
	return w
}

// Start is a client.Watcher's.
func (w *watched) Start(vmm string) (taken bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case vmm == "shell" || !term.IsTerminal(int(os.Stderr.Fd())):
		w.mode = w.page
	case canScreen():
		w.mode = w.onScreen
		return true
	default:
		w.mode = func(m *dirt.Meter) { tui.Lines(w.ctx, os.Stderr, m, w.over.Load) }
	}
	return false
}

// Running is a client.Watcher's.
func (w *watched) Running(mount string) {
	w.mu.Lock()
	mode := w.mode
	w.mu.Unlock()
	w.ends.Go(func() { mode(dirt.New(dirt.Mount(mount))) })
}

func (w *watched) page(m *dirt.Meter) {
	err := serve(w.ctx, m, w.over.Load, func(url string) { w.print("", "dirtometer: %s", url) }, false)
	if err != nil {
		w.Warn("%v", err)
	}
}

func (w *watched) onScreen(m *dirt.Meter) {
	s := tui.New(tui.Options{Sampler: m, In: os.Stdin, Out: stdout.File, Over: func() bool { return true },
		// As control-C does where there is no screen.
		Suspend: func() { syscall.Kill(os.Getpid(), syscall.SIGINT) }})
	w.mu.Lock()
	if w.over.Load() {
		w.mu.Unlock()
		return
	}
	w.shown = s
	w.mu.Unlock()
	err := s.Run()
	w.mu.Lock()
	w.shown = nil
	later := w.later
	w.later = nil
	w.mu.Unlock()
	for _, say := range later {
		say()
	}
	if err != nil {
		w.Warn("dirtometer: %v", err)
	}
}

// stop takes the dirtometer away, and returns when the terminal is as it was.
func (w *watched) stop() {
	w.mu.Lock()
	w.over.Store(true)
	s := w.shown
	w.mu.Unlock()
	w.leave()
	if s != nil {
		s.Stop()
	}
	w.ends.Wait()
}

// hear has something said now, or if there is a screen, on it and later.
func (w *watched) hear(line string, say func()) {
	w.mu.Lock()
	s := w.shown
	if s != nil {
		w.later = append(w.later, say)
	}
	w.mu.Unlock()
	if s == nil {
		say()
		return
	}
	s.Say(line)
}

func (w *watched) Say(format string, args ...any) {
	if w.quiet {
		return
	}
	w.hear(fmt.Sprintf(format, args...), func() { w.screen.Say(format, args...) })
}

func (w *watched) Warn(format string, args ...any) {
	w.hear("warning: "+fmt.Sprintf(format, args...), func() { w.screen.Warn(format, args...) })
}

func (w *watched) Detail(format string, args ...any) {
	if w.verbose {
		line := fmt.Sprintf("%7.3f s: "+format, append([]any{time.Since(w.begun).Seconds()}, args...)...)
		w.hear(line, func() { w.print("2", "%s", line) })
	}
}

func (w *watched) Progress(what, unit string, total int64) client.Progress {
	w.mu.Lock()
	s := w.shown
	w.mu.Unlock()
	if s == nil {
		return w.screen.Progress(what, unit, total)
	}
	return &screenProgress{s, what, unit}
}

// screenProgress is progress on the dirtometer's screen.
type screenProgress struct {
	s          *tui.Screen
	what, unit string
}

func (p *screenProgress) Set(done, total int64) {
	if p.unit == "bytes" {
		p.s.Progress(p.what, fmt.Sprintf("%s of %s", bytesText(done), bytesText(total)))
		return
	}
	p.s.Progress(p.what, fmt.Sprintf("%d of %d %s", done, total, p.unit))
}

func (p *screenProgress) Done() { p.s.Progress(p.what, "") }

var (
	_ client.Watcher = (*watched)(nil)
	_ client.UI      = (*watched)(nil)
)
