// Package tui shows the dirtometer in a terminal, as a screen of its own that
// is taken away at the end.
//
// It promises that the terminal is as it was when Run has returned, whatever
// made it return, that no line is longer than the terminal is wide, and that
// what its glyphs mean can be read without colours. It asks a meter twice a
// second and never waits for it: when the parcel hangs, the keys still work.
// What the keys do to the parcel is for its caller to say.
package tui

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	tea "charm.land/bubbletea/v2"
	"github.com/charmbracelet/x/ansi"

	"isr/client/dirt"
)

// interval is how often the meter is asked.
const interval = 500 * time.Millisecond

// Sampler gives snapshots, one call at a time. *dirt.Meter is one.
type Sampler interface {
	Sample(now time.Time) (*dirt.Snapshot, error)
}

// Options say what is shown and how.
type Options struct {
	Sampler Sampler
	In      io.Reader // a terminal
	Out     io.Writer // the same
	// Suspend is done at each control-C; nil: that only leaves, as q does.
	Suspend func()
	// Over is asked when the sampler has an error: whether the run is over.
	Over func() bool
}

// Screen is a dirtometer in a terminal.
type Screen struct {
	program *tea.Program
	done    chan struct{}
	once    sync.Once
}

// New is a screen that Run shows.
func New(o Options) *Screen {
	m := &model{o: o, width: 80, height: 24, scene: scene{ascii: !utf8Locale()}}
	m.scene.footer = "q leaves"
	if o.Suspend != nil {
		m.scene.footer = "^C suspends the parcel   q leaves"
	}
	return &Screen{done: make(chan struct{}), program: tea.NewProgram(m, tea.WithInput(o.In), tea.WithOutput(o.Out),
		tea.WithoutSignalHandler(), tea.WithFPS(20))}
}

// Run shows the screen until the run of the parcel is over, someone leaves, or
// Stop is called.
func (s *Screen) Run() error {
	defer close(s.done)
	m, err := s.program.Run()
	if errors.Is(err, tea.ErrProgramKilled) && !errors.Is(err, tea.ErrProgramPanic) {
		err = nil
	}
	if err == nil {
		err = m.(*model).err
	}
	return err
}

// Say shows a line among the messages.
func (s *Screen) Say(line string) { s.program.Send(said(line)) }

// Progress shows how far something has come, under its name, until it is over.
func (s *Screen) Progress(name, text string) { s.program.Send(progress{name, text}) }

// Stop ends Run, which must have been called, and waits for its end.
func (s *Screen) Stop() {
	s.once.Do(s.program.Quit)
	<-s.done
}

type (
	said     string
	progress struct{ name, text string }
	tick     struct{}
	sampled  struct {
		snap *dirt.Snapshot
		err  error
	}
)

// model is the screen's state, for the library.
type model struct {
	o             Options
	scene         scene
	said          []message
	going         []progress
	width, height int
	err           error
}

func (m *model) Init() tea.Cmd { return m.sample }

func (m *model) sample() tea.Msg {
	s, err := m.o.Sampler.Sample(time.Now())
	return sampled{s, err}
}

// maxSaid bounds the messages kept for the screen, and stays how long one is
// on it. Whoever said it keeps it.
const (
	maxSaid = 50
	stays   = time.Minute
)

type message struct {
	at   time.Time
	text string
}

func (m *model) Update(msg tea.Msg) (tea.Model, tea.Cmd) {
	switch msg := msg.(type) {
	case tea.WindowSizeMsg:
		m.width, m.height = msg.Width, msg.Height
	case tea.KeyPressMsg:
		switch msg.String() {
		case "ctrl+c":
			if m.o.Suspend == nil {
				return m, tea.Quit
			}
			m.scene.footer = "suspending: all of it goes to this host's disk"
			m.o.Suspend()
		case "q", "Q":
			return m, tea.Quit
		}
	case said:
		m.said = append(m.said, message{time.Now(), ansi.Strip(strings.ReplaceAll(string(msg), "\n", " "))})
		m.said = m.said[max(0, len(m.said)-maxSaid):]
	case progress:
		m.note(msg)
	case tick:
		return m, m.sample
	case sampled:
		switch {
		case msg.err == nil:
			m.scene.snap = msg.snap
		case m.o.Over():
			if m.o.Suspend == nil {
				return m, tea.Quit
			}
			return m, nil // what happens after the run is still told here
		}
		return m, tea.Tick(interval, func(time.Time) tea.Msg { return tick{} })
	}
	return m, nil
}

// note keeps p in place of what was said under its name; without a text it is
// over.
func (m *model) note(p progress) {
	for i := range m.going {
		if m.going[i].name != p.name {
			continue
		}
		if m.going[i].text = p.text; p.text == "" {
			m.going = append(m.going[:i], m.going[i+1:]...)
		}
		return
	}
	if p.text != "" {
		m.going = append(m.going, p)
	}
}

func (m *model) View() tea.View {
	m.scene.messages = nil
	for _, s := range m.said {
		if time.Since(s.at) < stays {
			m.scene.messages = append(m.scene.messages, s.text)
		}
	}
	for _, p := range m.going {
		m.scene.messages = append(m.scene.messages, p.name+" "+p.text)
	}
	v := tea.NewView(m.scene.text(m.width, m.height))
	v.AltScreen = true
	return v
}

// Lines prints a line a second to w until ctx ends or the run is over: the
// dirtometer of a terminal that cannot do more, or of a file.
func Lines(ctx context.Context, w io.Writer, s Sampler, over func() bool) error {
	every := time.NewTicker(time.Second)
	defer every.Stop()
	for {
		snap, err := s.Sample(time.Now())
		switch {
		case err == nil:
			if _, err := fmt.Fprintln(w, snap.Line()); err != nil {
				return err
			}
		case over():
			return nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-every.C:
		}
	}
}

// utf8Locale reports whether the terminal is to be written to in UTF-8.
func utf8Locale() bool {
	for _, v := range []string{"LC_ALL", "LC_CTYPE", "LANG"} {
		if l := os.Getenv(v); l != "" {
			l = strings.ToLower(strings.ReplaceAll(l, "-", ""))
			return strings.HasSuffix(l, ".utf8") || strings.Contains(l, ".utf8@")
		}
	}
	return false
}

// ASCII reports whether the locale has no more than that to write with.
func ASCII() bool { return !utf8Locale() }
