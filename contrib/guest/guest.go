// Package guest builds the small virtual machine that tests and benchmarks
// run, and talks to it over its serial line.
//
// It promises that what it reports was printed by the guest whole: a tick
// counts when its line is complete. It does not start virtual machines; that
// is the business of the VMM driver under test. What the guest prints and
// which commands it knows is said in the script "build" beside this file.
package guest

import (
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

//go:embed build
var script []byte

// ErrMissing is returned by Build when this host lacks a package. The text
// around it names the package and the command that gets it.
var ErrMissing = errors.New("a package is missing")

// ErrEnded is returned by what waits for a guest whose console has ended:
// its VMM closed the line, or the Console was closed.
var ErrEnded = errors.New("console ended")

// ErrPanic is returned by what waits for a guest whose kernel has given up.
var ErrPanic = errors.New("guest kernel panicked")

// home is kept from the start: tests move HOME, and the packages downloaded
// once should serve them all.
var home, _ = os.UserCacheDir()

// Build writes the guest's raw disk to out. The arguments are the script's
// options, "--size", "1G" and so on. It needs no root; the first build on a
// host downloads some 30 MB, later ones take about a second.
func Build(ctx context.Context, out string, args ...string) error {
	dir, err := os.MkdirTemp("", "isr-guest")
	if err != nil {
		return fmt.Errorf("build guest: %w", err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	path := filepath.Join(dir, "build")
	if err := os.WriteFile(path, script, 0o600); err != nil {
		return fmt.Errorf("build guest: %w", err)
	}
	var said bytes.Buffer
	cmd := exec.CommandContext(ctx, "sh", append(append([]string{path}, args...), out)...)
	cmd.Stdout, cmd.Stderr = &said, &said
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) } // it removes what it has begun
	cmd.WaitDelay = 10 * time.Second
	cmd.Env = os.Environ()
	if home != "" {
		cmd.Env = append(cmd.Env, "XDG_CACHE_HOME="+home)
	}
	if err := cmd.Run(); err != nil {
		text := strings.TrimSpace(said.String())
		var exit *exec.ExitError
		if errors.As(err, &exit) && exit.ExitCode() == 2 && strings.Contains(text, "missing:") {
			return fmt.Errorf("build guest: %w: %s", ErrMissing, text)
		}
		return fmt.Errorf("build guest: %w: %s", err, text)
	}
	return nil
}

// Image builds the guest into a directory of the test's own and returns its
// path. Where QEMU or a package is missing it skips the test, or fails it if
// ISR_TEST_REQUIRE is 1.
func Image(tb testing.TB, args ...string) string {
	tb.Helper()
	const vmm = "qemu-system-x86_64"
	if _, err := exec.LookPath(vmm); err != nil {
		lacking(tb, "guest needs %s: hint: apt-get install qemu-system-x86", vmm)
	}
	out := filepath.Join(tb.TempDir(), "guest.img")
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	if err := Build(ctx, out, args...); errors.Is(err, ErrMissing) {
		lacking(tb, "%v", err)
	} else if err != nil {
		tb.Fatal(err)
	}
	return out
}

func lacking(tb testing.TB, format string, args ...any) {
	tb.Helper()
	if os.Getenv("ISR_TEST_REQUIRE") == "1" {
		tb.Fatalf(format, args...)
	}
	tb.Skipf(format, args...)
}

// A Console follows one guest's serial line. All methods may be called at
// the same time.
type Console struct {
	asking sync.Mutex // one command at a time
	line   reader     // only its follower touches it

	mu      sync.Mutex
	changed chan struct{} // closed and replaced whenever what follows changes
	log     []byte
	boots   int
	before  int
	tick    int
	awake   bool // a line of the guest's main program was seen
	broken  error
	ended   error
	writer  io.Writer
	closer  func()
	owed    []chan string // who waits for a reply, in the order of asking
	follow  sync.WaitGroup
}

// New follows r until it ends. If r is an io.Writer too, commands can be
// sent. Close closes r if it is an io.Closer.
func New(r io.Reader) *Console {
	c := &Console{changed: make(chan struct{})}
	c.Attach(r)
	return c
}

// Attach goes on with another stream after the first has ended: the same
// guest resumed by another VMM. A line cut by the suspension is put together
// again. It must not be called before the earlier stream has ended.
func (c *Console) Attach(r io.Reader) {
	c.follow.Wait()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ended = nil
	c.writer, _ = r.(io.Writer)
	c.closer = func() {}
	if cl, ok := r.(io.Closer); ok {
		c.closer = sync.OnceFunc(func() { _ = cl.Close() })
	}
	c.follow.Add(1)
	go c.run(r)
}

// Dial connects to the Unix socket a VMM serves as the guest's serial line.
// It waits for the socket to appear.
func Dial(ctx context.Context, path string) (*Console, error) {
	conn, err := dial(ctx, path)
	if err != nil {
		return nil, err
	}
	return New(conn), nil
}

// Redial is Attach to a socket as of Dial.
func (c *Console) Redial(ctx context.Context, path string) error {
	conn, err := dial(ctx, path)
	if err != nil {
		return err
	}
	c.Attach(conn)
	return nil
}

func dial(ctx context.Context, path string) (net.Conn, error) {
	var d net.Dialer
	for {
		conn, err := d.DialContext(ctx, "unix", path)
		if err == nil {
			return conn, nil
		}
		// Nothing tells when a socket begins to listen; ask again.
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("console %s: %w (%w)", path, err, context.Cause(ctx))
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// Follow reads the file a VMM writes the guest's serial line to, as it
// grows. The file need not exist yet, and may be replaced or cut to nothing
// by the next VMM. It ends with Close only, and takes no commands.
func Follow(path string) *Console {
	return New(&tail{path: path, quit: make(chan struct{})})
}

// Close stops following. What was seen can still be asked for.
func (c *Console) Close() error {
	c.mu.Lock()
	closer := c.closer
	c.mu.Unlock()
	closer()
	c.follow.Wait()
	return nil
}

// Log returns a copy of all the guest has printed.
func (c *Console) Log() []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	return bytes.Clone(c.log)
}

// Last returns the last tick since the last boot, 0 if there was none.
func (c *Console) Last() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.tick
}

// Check says whether the ticks seen so far went up by one, each to the next.
// A guest that goes on with older memory, or loses some, shows here.
func (c *Console) Check() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.broken
}

// WaitTick waits until the guest has printed a tick of min or more since its
// last boot, and returns the last one.
func (c *Console) WaitTick(ctx context.Context, min int) (int, error) {
	var tick int
	err := c.wait(ctx, fmt.Sprintf("tick %d", min), func() bool {
		tick = c.tick
		return tick >= min && tick > 0
	})
	return tick, err
}

// WaitBoot waits until the guest has said that it is in its boot number min
// or later. It returns that number, and the tick it found on its disk: what
// the boot before had synced last.
func (c *Console) WaitBoot(ctx context.Context, min int) (boots, last int, err error) {
	err = c.wait(ctx, fmt.Sprintf("boot %d", min), func() bool {
		boots, last = c.boots, c.before
		return boots >= min && boots > 0
	})
	return boots, last, err
}

// WaitEnd waits for the line to end, as it does when the VMM exits. The line
// of Follow never does.
func (c *Console) WaitEnd(ctx context.Context) error {
	err := c.wait(ctx, "the end", func() bool { return false })
	if errors.Is(err, ErrEnded) {
		return nil
	}
	return err
}

// wait blocks until done says so; done is called with c.mu held.
func (c *Console) wait(ctx context.Context, what string, done func() bool) error {
	for {
		c.mu.Lock()
		ok, ended, changed := done(), c.ended, c.changed
		c.mu.Unlock()
		if ok {
			return nil
		}
		if ended != nil {
			return fmt.Errorf("wait for %s: %w\n%s", what, ended, c.end())
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: %w\n%s", what, context.Cause(ctx), c.end())
		case <-changed:
		}
	}
}

// end is the end of the log, for error messages.
func (c *Console) end() []byte {
	log := c.Log()
	return log[max(0, len(log)-600):]
}

// A RefusedError is the guest's answer to a command it did not carry out.
type RefusedError struct {
	Command string // the first word
	Reason  string
}

func (e *RefusedError) Error() string { return "guest: " + e.Command + ": " + e.Reason }

// Command sends one command and returns what follows "ok COMMAND " in its
// answer. It waits for the guest's first tick, before which nobody listens.
// Errors are *RefusedError, ErrEnded, ErrPanic, or the context's.
func (c *Console) Command(ctx context.Context, line string) (string, error) {
	word, _, _ := strings.Cut(line, " ")
	if word == "" || len(line) > 2000 || strings.ContainsAny(line, "\r\n") {
		return "", fmt.Errorf("guest command %.20q: want one line of at most 2000 bytes", line)
	}
	c.asking.Lock()
	defer c.asking.Unlock()
	if err := c.wait(ctx, word, func() bool { return c.awake }); err != nil {
		return "", err
	}
	answer := make(chan string, 1)
	c.mu.Lock()
	w := c.writer
	if w != nil {
		c.owed = append(c.owed, answer)
	}
	c.mu.Unlock()
	if w == nil {
		return "", fmt.Errorf("guest command %s: this console takes none", word)
	}
	if _, err := io.WriteString(w, line+"\n"); err != nil {
		return "", fmt.Errorf("guest command %s: %w", word, err)
	}
	var got string
	err := c.wait(ctx, word, func() bool {
		select {
		case got = <-answer:
			return true
		default:
			return false
		}
	})
	if err != nil {
		return "", err
	}
	verdict, rest, _ := strings.Cut(got, " ")
	name, rest, _ := strings.Cut(rest, " ")
	switch {
	case name != word:
		return "", fmt.Errorf("guest command %s: answered with %q", word, got)
	case verdict == "err":
		return "", &RefusedError{Command: word, Reason: rest}
	}
	return rest, nil
}

// reader puts lines together from what arrives in pieces.
type reader struct{ part []byte }

func (r *reader) add(b []byte) (lines []string) {
	r.part = append(r.part, b...)
	for {
		i := bytes.IndexByte(r.part, '\n')
		if i < 0 {
			return lines
		}
		lines = append(lines, strings.TrimRight(string(r.part[:i]), "\r"))
		r.part = r.part[i+1:]
	}
}

func (c *Console) run(r io.Reader) {
	defer c.follow.Done()
	buf := make([]byte, 32<<10)
	for {
		n, err := r.Read(buf)
		c.mu.Lock()
		c.log = append(c.log, buf[:n]...)
		for _, line := range c.line.add(buf[:n]) {
			c.see(line)
		}
		if err != nil && c.ended == nil {
			c.ended = ErrEnded
		}
		if err != nil {
			c.owed = nil // a reply that never came must not shift the next VMM's
		}
		close(c.changed)
		c.changed = make(chan struct{})
		closer := c.closer
		c.mu.Unlock()
		if err != nil {
			closer()
			return
		}
	}
}

// see takes one whole line. Lines it does not know are the kernel's.
func (c *Console) see(line string) {
	var n, last int
	switch {
	case strings.HasPrefix(line, "tick "):
		if k, _ := fmt.Sscanf(line, "tick %d", &n); k != 1 {
			return
		}
		// The first tick of a console that joined late may be any.
		if n != c.tick+1 && (c.tick != 0 || c.boots != 0) && c.broken == nil {
			c.broken = fmt.Errorf("tick %d followed by tick %d", c.tick, n)
		}
		c.tick, c.awake = n, true
	case strings.HasPrefix(line, "boot "):
		if k, _ := fmt.Sscanf(line, "boot %d last %d", &n, &last); k != 2 {
			return
		}
		c.boots, c.before, c.tick, c.awake = n, last, 0, false
		c.owed = nil
	case strings.HasPrefix(line, "ok "), strings.HasPrefix(line, "err "):
		if len(c.owed) > 0 {
			c.owed[0] <- line
			c.owed = c.owed[1:]
		}
	case strings.HasPrefix(line, "lost "):
		if c.broken == nil {
			c.broken = fmt.Errorf("disk did not take tick %s", line[len("lost "):])
		}
	case strings.Contains(line, "Kernel panic"):
		c.ended = ErrPanic
	}
}

// tail reads a file that others append to. Read waits at its end.
type tail struct {
	path string
	quit chan struct{}
	once sync.Once
	file *os.File
	at   int64
}

func (t *tail) Close() error {
	t.once.Do(func() { close(t.quit) })
	return nil
}

func (t *tail) Read(b []byte) (int, error) {
	for {
		n, err := t.next(b)
		if n > 0 || err != nil {
			return n, err
		}
		// Portable, and a guest prints one line a second.
		select {
		case <-t.quit:
			if t.file != nil {
				_ = t.file.Close()
			}
			return 0, io.EOF
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// next reads what there is: 0 and no error if that is nothing now.
func (t *tail) next(b []byte) (int, error) {
	if t.file == nil {
		f, err := os.Open(t.path)
		if errors.Is(err, os.ErrNotExist) {
			return 0, nil
		} else if err != nil {
			return 0, err
		}
		t.file, t.at = f, 0
	}
	n, err := t.file.ReadAt(b, t.at)
	t.at += int64(n)
	if n > 0 {
		return n, nil
	} else if err != nil && !errors.Is(err, io.EOF) {
		return 0, err
	}
	// At the end: is this still the file, and as long as it was?
	mine, err := t.file.Stat()
	if err != nil {
		return 0, err
	}
	if mine.Size() < t.at {
		t.at = 0
	}
	if there, err := os.Stat(t.path); err == nil && !os.SameFile(mine, there) && mine.Size() == t.at {
		_ = t.file.Close()
		t.file = nil
	}
	return 0, nil
}
