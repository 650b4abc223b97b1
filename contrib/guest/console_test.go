package guest_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"isr/contrib/guest"
)

// ended returns a console that has seen all of text.
func ended(t *testing.T, text string) *guest.Console {
	t.Helper()
	c := guest.New(strings.NewReader(text))
	if err := c.WaitEnd(within(t)); err != nil && !errors.Is(err, guest.ErrPanic) {
		t.Fatal(err)
	}
	return c
}

func TestConsoleCountsTicks(t *testing.T) {
	for _, test := range []struct {
		text                string
		last, boots, before int
		sound               bool
	}{
		{"", 0, 0, 0, true},
		{"tick 1", 0, 0, 0, true}, // not a whole line yet
		{"tick 1\n", 1, 0, 0, true},
		{"tick 1\r\ntick 2\r\n", 2, 0, 0, true},
		{"boot 1 last 0\ntick 1\ntick 2\n", 2, 1, 0, true},
		{"k 6\ntick 7\ntick 8\n", 8, 0, 0, true}, // joined late
		{"tick 7\nok echo tick 9\n[ 1.0] tick 3\ntick x\ntick 8\n", 8, 0, 0, true},
		{"tick 7\nboot 3 last 7\n", 0, 3, 7, true},
		{"tick 7\nboot 3 last 7\ntick 1\n", 1, 3, 7, true},
		{"boot x\nboot 1\n", 0, 0, 0, true},
		{"tick 7\ntick 9\n", 9, 0, 0, false},
		{"tick 7\ntick 7\n", 7, 0, 0, false},
		{"tick 7\ntick 6\n", 6, 0, 0, false},
		{"boot 1 last 0\ntick 2\n", 2, 1, 0, false},
		{"tick 7\nlost 8\n", 7, 0, 0, false},
	} {
		c := ended(t, test.text)
		boots, before, err := c.WaitBoot(within(t), 0)
		if test.boots == 0 {
			if !errors.Is(err, guest.ErrEnded) {
				t.Errorf("%q: got boot %d, %v, want none", test.text, boots, err)
			}
			boots, before = 0, 0
		}
		if c.Last() != test.last || boots != test.boots || before != test.before {
			t.Errorf("%q: got tick %d boot %d last %d, want %d %d %d", test.text, c.Last(), boots, before, test.last, test.boots, test.before)
		}
		if err := c.Check(); (err == nil) != test.sound {
			t.Errorf("%q: got %v, want sound %v", test.text, err, test.sound)
		}
		if got := string(c.Log()); got != test.text {
			t.Errorf("log: got %q, want %q", got, test.text)
		}
	}
}

func TestConsoleWaits(t *testing.T) {
	c := ended(t, "tick 4\n")
	for min, want := range map[int]bool{0: true, 1: true, 4: true, 5: false} {
		n, err := c.WaitTick(within(t), min)
		if want && (n != 4 || err != nil) {
			t.Errorf("tick %d: got %d, %v, want 4", min, n, err)
		}
		if !want && !errors.Is(err, guest.ErrEnded) {
			t.Errorf("tick %d: got %d, %v, want %v", min, n, err, guest.ErrEnded)
		}
	}
	// Zero is no tick.
	if _, err := ended(t, "boot 1 last 0\n").WaitTick(within(t), 0); !errors.Is(err, guest.ErrEnded) {
		t.Errorf("got %v, want %v", err, guest.ErrEnded)
	}
	if _, err := ended(t, "[ 1] Kernel panic - not syncing: x\n").WaitTick(within(t), 1); !errors.Is(err, guest.ErrPanic) {
		t.Errorf("got %v, want %v", err, guest.ErrPanic)
	}

	r, w := io.Pipe()
	open := guest.New(r)
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("enough")
	cancel(why)
	if _, err := open.WaitTick(ctx, 1); !errors.Is(err, why) {
		t.Errorf("got %v, want %v", err, why)
	}
	_ = w.Close()
	if err := open.WaitEnd(within(t)); err != nil {
		t.Error(err)
	}
}

// What the first VMM printed half of, the next one prints the rest of.
func TestConsoleJoinsACutLine(t *testing.T) {
	c := ended(t, "tick 8\nti")
	c.Attach(strings.NewReader("ck 9\ntick 10\n"))
	if n, err := c.WaitTick(within(t), 10); n != 10 || err != nil {
		t.Errorf("got %d, %v, want 10", n, err)
	}
	if err := c.Check(); err != nil {
		t.Error(err)
	}
}

// peer plays a guest: for each line it is sent, it prints what answer says.
func peer(t *testing.T, answer func(string) string) *guest.Console {
	mine, its := net.Pipe()
	t.Cleanup(func() { _ = its.Close() })
	go func() {
		_, _ = io.WriteString(its, "tick 1\n")
		var line []byte
		b := make([]byte, 1)
		for {
			if _, err := its.Read(b); err != nil {
				return
			}
			if b[0] != '\n' {
				line = append(line, b[0])
				continue
			}
			_, _ = io.WriteString(its, answer(string(line)))
			line = nil
		}
	}()
	c := guest.New(mine)
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func TestConsoleCommand(t *testing.T) {
	var last string
	c := peer(t, func(line string) string {
		last = line
		switch line {
		case "sum /a b":
			return "tick 2\nok sum 123 /a b\ntick 3\n"
		case "free":
			return "ok free\n"
		case "mem 9":
			return "err mem memory is full\n"
		case "late":
			return ""
		case "next":
			return "ok late too\nok next one\n"
		}
		return "ok other\n"
	})
	for _, test := range []struct{ line, want string }{{"sum /a b", "123 /a b"}, {"free", ""}} {
		if got, err := c.Command(within(t), test.line); got != test.want || err != nil {
			t.Errorf("%s: got %q, %v, want %q", test.line, got, err, test.want)
		}
	}
	var refused *guest.RefusedError
	if _, err := c.Command(within(t), "mem 9"); !errors.As(err, &refused) || *refused != (guest.RefusedError{Command: "mem", Reason: "memory is full"}) {
		t.Errorf("got %v, want it refused", err)
	}
	if got, err := c.Command(within(t), "what"); err == nil || errors.As(err, &refused) {
		t.Errorf("got %q, %v, want the wrong answer refused", got, err)
	}

	// A reply that comes when nobody waits any more is nobody else's.
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if got, err := c.Command(ctx, "late"); !errors.Is(err, context.Canceled) {
		t.Errorf("got %q, %v, want it given up", got, err)
	}
	if got, err := c.Command(within(t), "next"); got != "one" || err != nil {
		t.Errorf("got %q, %v, want one", got, err)
	}

	last = ""
	for _, bad := range []string{"", " x", "a\nb", "a\rb", strings.Repeat("x", 2001)} {
		if got, err := c.Command(within(t), bad); err == nil || last != "" {
			t.Errorf("%.10q: got %q and sent %.10q, want it refused unsent", bad, got, last)
		}
	}
	if _, err := ended(t, "tick 1\n").Command(within(t), "echo"); err == nil {
		t.Error("a line that only prints took a command")
	}
}

// A VMM that goes away answers nobody.
func TestConsoleCommandOnAnEndedLine(t *testing.T) {
	mine, its := net.Pipe()
	go func() {
		_, _ = io.WriteString(its, "tick 1\n")
		_, _ = its.Read(make([]byte, 10))
		_ = its.Close()
	}()
	c := guest.New(mine)
	if _, err := c.Command(within(t), "echo"); !errors.Is(err, guest.ErrEnded) && !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("got %v, want %v", err, guest.ErrEnded)
	}
}

func TestFollowAFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "console")
	c := guest.Follow(path)
	defer c.Close()
	put := func(flags int, text string) {
		t.Helper()
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|flags, 0o600)
		if err == nil {
			_, err = f.WriteString(text)
		}
		if err = errors.Join(err, f.Close()); err != nil {
			t.Fatal(err)
		}
	}
	step := func(want int) {
		t.Helper()
		if _, err := c.WaitTick(within(t), want); err != nil {
			t.Fatal(err)
		}
		if err := c.Check(); err != nil {
			t.Fatal(err)
		}
	}
	put(0, "boot 1 last 0\ntick 1\n")
	step(1)
	put(os.O_APPEND, "tick 2\ntick")
	put(os.O_APPEND, " 3\n")
	step(3)
	// The next VMM starts the file anew, or another in its place.
	put(os.O_TRUNC, "tick 4\n")
	step(4)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	put(0, "tick 5\n")
	step(5)
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := c.WaitTick(within(t), 6); !errors.Is(err, guest.ErrEnded) {
		t.Errorf("got %v, want %v", err, guest.ErrEnded)
	}
	if got, want := string(c.Log()), "boot 1 last 0\ntick 1\ntick 2\ntick 3\ntick 4\ntick 5\n"; got != want {
		t.Errorf("log: got %q, want %q", got, want)
	}
}

// However the line is cut into reads, it says the same.
func FuzzConsole(f *testing.F) {
	f.Add([]byte("boot 1 last 0\ntick 1\ntick 2\n"), 3)
	f.Add([]byte("ok\nerr\nlost\nlost \ntick -1\nboot -1 last -1\n\r\n\x00tick 99999999999999999999\n"), 1)
	f.Fuzz(func(t *testing.T, text []byte, step int) {
		whole, pieces := guest.New(bytes.NewReader(text)), guest.New(&chopped{text, step})
		for _, c := range []*guest.Console{whole, pieces} {
			if err := c.WaitEnd(within(t)); err != nil && !errors.Is(err, guest.ErrPanic) {
				t.Fatal(err)
			}
			_ = c.Close()
		}
		if whole.Last() != pieces.Last() || (whole.Check() == nil) != (pieces.Check() == nil) || !bytes.Equal(whole.Log(), pieces.Log()) {
			t.Errorf("%q by %d: got %d, %v and %d, %v", text, step, whole.Last(), whole.Check(), pieces.Last(), pieces.Check())
		}
	})
}

type chopped struct {
	b    []byte
	step int
}

func (c *chopped) Read(b []byte) (int, error) {
	if len(c.b) == 0 {
		return 0, io.EOF
	}
	n := copy(b[:1+uint(c.step)%7], c.b)
	c.b = c.b[n:]
	return n, nil
}
