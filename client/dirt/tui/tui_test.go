package tui

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	tea "charm.land/bubbletea/v2"
	"github.com/charmbracelet/x/ansi"

	"isr/client/dirt"
	"isr/client/image"
)

// recorded is what a run showed once.
type recorded string

func (r recorded) Read(name string) ([]byte, error) {
	return os.ReadFile(filepath.Join("..", "testdata", string(r), name))
}

// after is a running parcel, seen twice.
func after(t *testing.T) *dirt.Snapshot {
	t.Helper()
	src := &struct{ dirt.Source }{recorded("before")}
	m := dirt.New(src)
	at := time.Date(2026, 11, 26, 12, 0, 0, 0, time.UTC)
	if _, err := m.Sample(at); err != nil {
		t.Fatal(err)
	}
	src.Source = recorded("after")
	s, err := m.Sample(at.Add(time.Second))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestViews: at every size it fits, and shows what matters most.
func TestViews(t *testing.T) {
	s := after(t)
	s.Prefetch = dirt.Progress{Done: 12, Total: 40}
	s.Images[0].Waiting, s.Images[0].WaitingFor = 3, 1500*time.Millisecond
	for _, tt := range []struct {
		w, h int
		want []string
	}{
		{200, 60, []string{"small", "version 2", "guest reads", "2.6 MiB", "p50/90/99", "hoard", "source", "prefetch", "12/40", "spared",
			"3 chunks, for 1.5 s", "disk 32.0 MiB, a cell is 128.0 KiB", "modified now 6", "keys"}},
		{80, 24, []string{"small", "guest reads", "2.6 MiB", "from network", "33%", "12/40", "disk 32.0 MiB", "MAP", "modified now 6", "keys"}},
		{72, 24, []string{"guest reads", "MAP"}},
		{40, 12, []string{"small", "disk", "MAP", "here", "absent", "keys"}},
		{40, 24, []string{"here 33%", "MAP", "modified now 6"}},
		{20, 5, []string{"small", "disk"}},
		{1, 1, nil}, {0, 0, nil}, {3, 100, nil}, {300, 2, nil},
	} {
		for _, ascii := range []bool{false, true} {
			for _, messages := range [][]string{nil, {"the first", strings.Repeat("a long message ", 30)}} {
				c := scene{snap: s, ascii: ascii, footer: "keys", messages: messages}
				text := c.text(tt.w, tt.h)
				lines := strings.Split(text, "\n")
				if len(lines) > max(1, tt.h) {
					t.Errorf("%dx%d: %d lines", tt.w, tt.h, len(lines))
				}
				for _, l := range lines {
					if n := ansi.StringWidth(l); n > max(1, tt.w) {
						t.Errorf("%dx%d: a line of %d columns: %q", tt.w, tt.h, n, l)
					}
				}
				plain := ansi.Strip(text)
				if ascii {
					for _, r := range plain {
						if r > 126 {
							t.Errorf("%dx%d: %q in ASCII", tt.w, tt.h, r)
						}
					}
				}
				for _, want := range tt.want {
					if want == "MAP" {
						if want = "·····"; ascii {
							want = "....."
						}
					}
					if !strings.Contains(plain, want) {
						t.Errorf("%dx%d, ascii %t: no %q in\n%s", tt.w, tt.h, ascii, want, plain)
					}
				}
			}
		}
	}
}

// TestGlyphs: states are told apart without colours.
func TestGlyphs(t *testing.T) {
	for name, g := range map[string]glyphs{"unicode": unicodeGlyphs, "ascii": asciiGlyphs} {
		seen := make(map[string]bool)
		for _, state := range image.CellStates {
			glyph := g.cell[byte(state)]
			if seen[glyph] || ansi.StringWidth(glyph) != 1 {
				t.Errorf("%s: %c is shown as %q", name, state, glyph)
			}
			seen[glyph] = true
		}
	}
	if rows := draw(asciiGlyphs, dirt.Map{Cells: "FMAmh.0z"}, 3); ansi.Strip(strings.Join(rows, "|")) != ">#+|%=.| ?" {
		t.Errorf("drawn %q", rows)
	}
}

// scripted gives snapshots until it is told to fail.
type scripted struct {
	snap *dirt.Snapshot
	err  error
}

func (s *scripted) Sample(time.Time) (*dirt.Snapshot, error) { return s.snap, s.err }

func key(s string) tea.KeyPressMsg {
	if s == "ctrl+c" {
		return tea.KeyPressMsg{Code: 'c', Mod: tea.ModCtrl}
	}
	return tea.KeyPressMsg{Code: rune(s[0]), Text: s}
}

func quits(cmd tea.Cmd) bool {
	if cmd == nil {
		return false
	}
	_, ok := cmd().(tea.QuitMsg)
	return ok
}

func TestKeys(t *testing.T) {
	suspended := 0
	m := &model{o: Options{Sampler: &scripted{}, Suspend: func() { suspended++ }}, width: 80, height: 24}
	if _, cmd := m.Update(key("x")); cmd != nil || suspended != 0 {
		t.Error("x does something")
	}
	for range 3 {
		if _, cmd := m.Update(key("ctrl+c")); quits(cmd) {
			t.Error("control-C leaves, while suspending goes on")
		}
	}
	if suspended != 3 || !strings.Contains(m.View().Content, "suspending") {
		t.Errorf("suspended %d times: %s", suspended, m.View().Content)
	}
	if _, cmd := m.Update(key("q")); !quits(cmd) || suspended != 3 {
		t.Error("q does not leave")
	}
	m = &model{o: Options{Sampler: &scripted{}}}
	if _, cmd := m.Update(key("ctrl+c")); !quits(cmd) {
		t.Error("control-C does not leave, attached")
	}
}

// TestUpdates: what comes is shown, and the end of the run is the end of an
// attached screen alone.
func TestUpdates(t *testing.T) {
	over := false
	src := &scripted{snap: after(t)}
	m := &model{o: Options{Sampler: src, Over: func() bool { return over }}, width: 80, height: 24}
	see := func(want string, is bool) {
		t.Helper()
		if v := m.View(); !v.AltScreen || strings.Contains(ansi.Strip(v.Content), want) != is {
			t.Errorf("%q there: %t, in\n%s", want, !is, v.Content)
		}
	}
	see("waiting for the parcel", true)
	m.Update(m.sample())
	see("guest reads", true)
	m.Update(tea.WindowSizeMsg{Width: 40, Height: 12})
	see("guest reads", false)
	m.Update(tea.WindowSizeMsg{Width: 100, Height: 30})
	m.Update(said("parcel small: no connection\x1b[2J"))
	see("no connection", true)
	m.Update(progress{"hoarding", "1 of 2"})
	m.Update(progress{"hoarding", "2 of 2"})
	see("hoarding 2 of 2", true)
	see("1 of 2", false)
	m.Update(progress{"hoarding", ""})
	see("hoarding", false)
	for i := range 3 * maxSaid {
		m.Update(said(fmt.Sprint("message ", i)))
	}
	see(fmt.Sprint("message ", 3*maxSaid-1), true)
	if len(m.said) != maxSaid {
		t.Errorf("%d messages kept", len(m.said))
	}
	src.err = errors.New("a hiccup")
	if _, cmd := m.Update(m.sample()); cmd == nil {
		t.Error("it asks no more after a hiccup")
	}
	see("guest reads", true)
	over = true
	if _, cmd := m.Update(m.sample()); !quits(cmd) {
		t.Error("the end of the run does not end it")
	}
	m.o.Suspend = func() {}
	if _, cmd := m.Update(m.sample()); cmd != nil {
		t.Error("the end of the run ends a resume's screen before the resume")
	}
}

func TestLocale(t *testing.T) {
	for _, tt := range []struct {
		all, ctype, lang string
		want             bool
	}{{"", "", "", false}, {"", "", "C", false}, {"", "", "de_DE.UTF-8", true}, {"", "", "de_DE.utf8@euro", true}, {"C", "en_US.UTF-8", "en_US.UTF-8", false},
		{"", "POSIX", "en_US.UTF-8", false}, {"", "", "de_DE.ISO-8859-1", false}} {
		t.Setenv("LC_ALL", tt.all)
		t.Setenv("LC_CTYPE", tt.ctype)
		t.Setenv("LANG", tt.lang)
		if got := utf8Locale(); got != tt.want {
			t.Errorf("%+v: %t", tt, got)
		}
	}
}
