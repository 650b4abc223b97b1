package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/mattn/go-runewidth"
	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
	"golang.org/x/term"

	"isr/client"
	"isr/contrib/output"
	"isr/store/parcel"
)

// How isr talks. Results go to stdout (output.go), everything else to stderr. What went
// wrong is "isr: error: …", lower case, the object first, no full stop; then
// at most one "isr: hint: …", one thing to do. Notices begin with "isr: ".
// Colours and progress only on a terminal, colours never with NO_COLOR.
// A question is asked on the terminal, and the end of file is no. Whatever is
// shown is made visible first, for it may come from a server.

// screen is the person in front. It is a client.UI and a ask.Prompter.
type screen struct {
	mu      sync.Mutex
	name    string // what the program is called
	quiet   bool
	verbose bool
	mute    bool // say nothing at all
	begun   time.Time
	batch   bool // never ask
	yes     bool // the answer to every yes-or-no question
	tty     bool // the terminal can show progress
	colour  bool
	ascii   bool // the terminal has no other characters
	bars    *mpb.Progress
	in      *bufio.Reader
	restore func() // the terminal's echo, while a secret is asked for
}

func newScreen() *screen {
	tty := term.IsTerminal(int(os.Stderr.Fd()))
	able := tty && os.Getenv("TERM") != "dumb"
	return &screen{name: "isr", begun: time.Now(), tty: able, colour: able && os.Getenv("NO_COLOR") == "", ascii: tty && output.ASCIIOnly()}
}

func (s *screen) print(colour, format string, args ...any) {
	// Each line says whose it is, so that a server's text cannot pass for ours.
	line := s.name + ": " + strings.ReplaceAll(strings.TrimRight(output.Visible(fmt.Sprintf(format, args...), s.ascii), "\n"), "\n", "\n"+s.name+": ")
	if s.colour && colour != "" {
		line = "\x1b[" + colour + "m" + line + "\x1b[0m"
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mute {
		return
	}
	if s.bars != nil {
		fmt.Fprintln(s.bars, line)
		return
	}
	fmt.Fprintln(os.Stderr, line)
}

func (s *screen) Say(format string, args ...any) {
	if !s.quiet {
		s.print("", format, args...)
	}
}

func (s *screen) Detail(format string, args ...any) {
	if s.verbose {
		s.print("2", "%7.3f s: "+format, append([]any{time.Since(s.begun).Seconds()}, args...)...)
	}
}

func (s *screen) Warn(format string, args ...any) { s.print("33", "warning: "+format, args...) }

// fail reports err and gives the exit status that goes with it.
func (s *screen) fail(err error) int {
	if err == nil {
		return 0
	}
	s.finish()
	s.print("31", "error: %s", strings.ReplaceAll(err.Error(), "\n", ": "))
	kind := parcel.KindOf(err)
	hint := hints[kind]
	var hinted *parcel.Error
	if errors.As(err, &hinted) && hinted.Hint != "" {
		hint = hinted.Hint
	}
	if hint != "" {
		s.print("", "hint: %s", hint)
	}
	return int(kind)
}

// hints are what to do about an error that does not say it itself.
var hints = map[parcel.Kind]string{
	parcel.NoParcel:    "isr ls shows which there are",
	parcel.NoVersion:   "isr ls -L 20 shows which there are",
	parcel.Unreachable: "look at the network and at the server's name; what is hoarded runs without: isr resume -d",
	parcel.Denied:      "try ssh -v with the same host and user; the server's administrator adds keys with isr-locksrv user key add",
	parcel.Full:        "make room, then run it again",
	parcel.NoObject:    "ask the server's administrator to run isr-locksrv check",
	parcel.Damaged:     "ask the server's administrator to run isr-locksrv check -c",
}

// end is fail, for a program that said all it had to say: err is nil only if
// somebody got the results.
func (s *screen) end(err error) int {
	if err == nil {
		err = lostResults()
	}
	return s.fail(err)
}

// finish ends what is shown of progress.
func (s *screen) finish() {
	s.mu.Lock()
	bars, restore := s.bars, s.restore
	s.bars, s.restore = nil, nil
	s.mu.Unlock()
	if restore != nil {
		restore()
	}
	if bars != nil {
		bars.Shutdown()
	}
}

// patience is how long a piece of work goes on before its progress is shown.
const patience = time.Second

// narrow is the width of a terminal, columns, below which progress is without
// a bar.
const narrow = 72

func (s *screen) Progress(what, unit string, total int64) client.Progress {
	if !s.tty || s.quiet {
		return silent{}
	}
	return &bar{s: s, what: what, unit: unit, begun: time.Now()}
}

type silent struct{}

func (silent) Set(done, total int64) {}
func (silent) Done()                 {}

// bar is one line of progress with rate and time left, once it takes long.
type bar struct {
	mu    sync.Mutex
	s     *screen
	what  string
	unit  string
	begun time.Time
	bar   *mpb.Bar
	done  int64
}

func (b *bar) Set(done, total int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.bar == nil {
		if time.Since(b.begun) < patience {
			return
		}
		b.show()
	}
	b.done = done
	b.bar.SetTotal(total, false)
	b.bar.SetCurrent(done)
}

func (b *bar) show() {
	b.s.mu.Lock()
	defer b.s.mu.Unlock()
	if b.s.bars == nil {
		b.s.bars = mpb.New(mpb.WithOutput(os.Stderr), mpb.WithRefreshRate(200*time.Millisecond), mpb.WithAutoRefresh())
	}
	count := decor.CountersNoUnit("%d/%d")
	rate := decor.NewAverageSpeed(0, "%.0f/s", b.begun)
	if b.unit == "bytes" {
		count = decor.CountersKibiByte("% .1f/% .1f")
		rate = decor.NewAverageSpeed(decor.SizeB1024(0), "% .1f", b.begun)
	}
	what := output.Visible(b.what, b.s.ascii)
	left := decor.NewAverageETA(decor.ET_STYLE_GO, b.begun, nil)
	if w, _, err := term.GetSize(int(os.Stderr.Fd())); err == nil && w < narrow {
		// No room for a bar: how far, and how long.
		b.bar = b.s.bars.New(0, mpb.NopStyle(), mpb.BarRemoveOnComplete(),
			mpb.PrependDecorators(decor.Name(runewidth.Truncate(what, max(8, w-16), "")+" "), decor.Percentage(), decor.Name(" "), left))
		return
	}
	b.bar = b.s.bars.AddBar(0, mpb.BarRemoveOnComplete(), mpb.PrependDecorators(decor.Name(what+" ")),
		mpb.AppendDecorators(count, decor.Name(" "), rate, decor.Name(" "), left))
}

func (b *bar) Done() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.bar != nil {
		b.bar.Abort(true)
		b.bar.Wait()
	}
}

// errNoAnswer ends a question that nobody answers.
var errNoAnswer = io.EOF

// attempts is how often a question is asked when the answer is neither yes
// nor no.
const attempts = 3

// Confirm asks a yes-or-no question. The end of file, an empty line and what
// is not understood are no.
func (s *screen) Confirm(prompt string) (bool, error) {
	if s.yes {
		return true, nil
	}
	if s.batch {
		return false, errNoAnswer
	}
	if s.in == nil {
		s.in = bufio.NewReader(os.Stdin)
	}
	if !strings.HasSuffix(prompt, " ") {
		prompt += " [y/N] "
	}
	// Who answers at the terminal must see the question there.
	ask := os.Stderr
	if term.IsTerminal(int(os.Stdin.Fd())) && !term.IsTerminal(int(ask.Fd())) {
		if tty, err := os.OpenFile("/dev/tty", os.O_WRONLY, 0); err == nil {
			defer tty.Close()
			ask = tty
		}
	}
	for range attempts {
		fmt.Fprint(ask, output.Visible(prompt, s.ascii))
		line, err := s.in.ReadString('\n')
		if err != nil {
			fmt.Fprintln(ask)
		}
		switch strings.ToLower(strings.TrimSpace(line)) {
		case "y", "yes":
			return true, nil
		case "", "n", "no":
			return false, nil
		}
		if err != nil {
			return false, nil
		}
	}
	return false, nil
}
