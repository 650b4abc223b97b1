package locksrv_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"isr/locksrv"
	"isr/locksrv/locksrvtest"
)

// absurdWords are arguments after a verb's parcel.
func absurdWords() map[string]string {
	return map[string]string{
		"none": "", "zero": "0", "below zero": "-1", "overflow": "9223372036854775808", "more": "99999999999999999999", "float": "1e99", "NaN": "NaN",
		"hex": "0x1", "wide digits": "１", "spaces": "' 1 '", "option": "--frobnicate", "option, number": "-L 99999999999999999999", "open quote": "'",
		"many": strings.Repeat("1 ", 20000), "long": strings.Repeat("a", 1<<20), "dashes": "-- -- --", "nul": "'\x00'", "other's": "../../bob/secret",
		"big version": "2147483648 new host id", "fork over": "1 winxp host id", "fork hidden": "1 .tmp-x host id", "fork reserved": "1 hoard host id",
		"fork long host": "1 new " + strings.Repeat("h", 256) + " id",
	}
}

// endless is input that goes on until it is closed; read counts what was taken.
type endless struct {
	pattern []byte
	read    atomic.Int64
	closed  chan struct{}
}

func (e *endless) Read(p []byte) (int, error) {
	select {
	case <-e.closed:
		return 0, io.EOF
	default:
	}
	n := copy(p, e.pattern)
	e.read.Add(int64(n))
	return n, nil
}

// silent is input that says nothing until it is closed.
type silent struct{ closed chan struct{} }

func (s silent) Read([]byte) (int, error) { <-s.closed; return 0, io.EOF }

// session is the streams of one command.
type session struct {
	io.Reader
	stdout, stderr bytes.Buffer
}

func (s *session) Write(p []byte) (int, error) { return s.stdout.Write(p) }
func (s *session) Errors() io.Writer           { return &s.stderr }
func (s *session) Close() error                { return nil }

// TestAbsurdVerbs gives every verb absurd arguments and input: an error that
// is one short line, without much work, and nothing changed.
func TestAbsurdVerbs(t *testing.T) {
	r := locksrvtest.NewRealm(t)
	r.AddParcel(t, "alice", "winxp")
	r.AddParcel(t, "bob", "secret")
	before := everything(t, r.Root)
	run := func(what, command string, stdin io.Reader) (status int) {
		s := &session{Reader: stdin}
		start := locksrvtest.Worked(t)
		status = r.Service.Run(context.Background(), locksrv.Session{User: "alice"}, command, s)
		if d := locksrvtest.Worked(t) - start; d > 5*time.Second {
			t.Errorf("%s: takes %v", what, d)
		}
		said := s.stderr.String()
		if len(said) > 5000 {
			t.Errorf("%s: says %d bytes", what, len(said))
		}
		if status != 0 && (status > 22 || !strings.HasSuffix(said, "\n") || strings.Contains(said, "internal error")) {
			t.Errorf("%s: exit status %d: %.300q", what, status, said)
		}
		return status
	}
	for _, verb := range locksrv.Verbs() {
		for name, words := range absurdWords() {
			run(fmt.Sprintf("%s with %s", verb, name), verb+" winxp "+words, strings.NewReader("nonsense\n"))
		}
		if verb == "isr_acquire_lock" {
			p, err := r.Store.Parcel("alice", "winxp")
			if err != nil {
				t.Fatal(err)
			}
			// Its arguments are free: it took the lock.
			if _, err := p.Release("", true); err != nil {
				t.Fatal(err)
			}
			os.RemoveAll(filepath.Join(r.Root, "log"))
			before = everything(t, r.Root)
			continue
		}
		for name, input := range map[string][]byte{
			"64 KiB and a byte": make([]byte, 64<<10+1), "1 MiB of a's": bytes.Repeat([]byte("a"), 1<<20),
			"binary": []byte("\x00\xff\xfe\x80\n\x1b]0;owned\x07\n"), "many lines": bytes.Repeat([]byte("x\n"), 1<<19),
		} {
			for _, rest := range []string{" winxp", " winxp 1", " winxp 7 new host id", ""} {
				run(fmt.Sprintf("%s%s, given %s", verb, rest, name), verb+rest, bytes.NewReader(input))
			}
		}
		// Input that does not end: the verb does, or reads on and keeps nothing.
		for _, pattern := range []string{"\x00\x01", "aaaa", strings.Repeat("00", 32) + "\n"} {
			e := &endless{pattern: bytes.Repeat([]byte(pattern), 1000), closed: make(chan struct{})}
			var was, is runtime.MemStats
			runtime.ReadMemStats(&was)
			time.AfterFunc(20*time.Millisecond, func() { close(e.closed) })
			run(fmt.Sprintf("%s, given %.4q for ever", verb, pattern), verb+" winxp", e)
			runtime.GC()
			if runtime.ReadMemStats(&is); is.HeapAlloc > was.HeapAlloc+32<<20 {
				t.Errorf("%s, given %.4q for ever: keeps %d bytes", verb, pattern, is.HeapAlloc-was.HeapAlloc)
			}
		}
		s := silent{make(chan struct{})}
		time.AfterFunc(5*time.Millisecond, func() { close(s.closed) })
		run(verb+", given nothing for long", verb+" winxp", s)
		if after := everything(t, r.Root); after != before {
			t.Errorf("%s: the realm is another one:\nbefore\n%s\nafter\n%s", verb, before, after)
			before = after
		}
	}
}

// everything is the names and sizes of all that is in the tree, but its log,
// flocks, and what was counted before.
func everything(t *testing.T, root string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if path == filepath.Join(root, "log") {
			return fs.SkipDir
		}
		if d.Name() == "flock" || d.Name() == "usage" {
			return nil
		}
		fi, err := d.Info()
		if err != nil {
			return err
		}
		size := fi.Size()
		if d.IsDir() {
			size = 0
		}
		fmt.Fprintln(&b, strings.TrimPrefix(path, root), fi.Mode(), size)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// TestAbsurdDaemon does the worst of that over a connection.
func TestAbsurdDaemon(t *testing.T) {
	r := locksrvtest.NewRealm(t)
	r.AddParcel(t, "alice", "winxp")
	d := r.Start(t, nil)
	before := everything(t, r.Root)
	c, err := r.Dial(d.Addr, "alice", "alice")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for _, verb := range locksrv.Verbs() {
		_, errs, status := locksrvtest.Exec(c, verb+" "+strings.Repeat("a", 30000), make([]byte, 1<<20))
		if status != 2 || len(errs) > 5000 {
			t.Errorf("%s: exit status %d, %.300q", verb, status, errs)
		}
		if verb == "isr_acquire_lock" || verb == "isr_release_lock" {
			continue // needs nothing more, or nothing else
		}
		s, err := c.NewSession()
		if err != nil {
			t.Fatal(err)
		}
		e := &endless{pattern: make([]byte, 4096), closed: make(chan struct{})}
		s.Stdin = e
		time.AfterFunc(10*time.Millisecond, func() { close(e.closed) })
		if err := s.Start(verb + " winxp"); err != nil {
			t.Fatal(err)
		}
		ended := make(chan error, 1)
		go func() { ended <- s.Wait() }()
		select {
		case <-ended:
		case <-time.After(time.Minute):
			t.Fatalf("%s: does not end", verb)
		}
		s.Close()
	}
	if after := everything(t, r.Root); after != before {
		t.Errorf("the realm is another one:\nbefore\n%s\nafter\n%s", before, after)
	}
	if _, errs, status := locksrvtest.Exec(c, "isr_list_parcels", nil); status != 0 {
		t.Errorf("afterwards: exit status %d, %s", status, errs)
	}
}

// TestMotdPlanted: nobody waits for a message of the day that is a pipe, and a
// huge one is cut.
func TestMotdPlanted(t *testing.T) {
	r := locksrvtest.NewRealm(t)
	alice := locksrvtest.Direct{Service: r.Service, Session: locksrv.Session{User: "alice"}}
	motd := filepath.Join(r.Root, "motd")
	if err := syscall.Mkfifo(motd, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, errs, status := alice.Exec("isr_motd", nil); status == 0 || !strings.Contains(string(errs), "is no file") {
		t.Errorf("a pipe: exit status %d, %s", status, errs)
	}
	if err := os.Remove(motd); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(motd, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, _, status := alice.Exec("isr_motd", nil); status != 0 || len(out) > 64<<10 {
		t.Errorf("a huge one: exit status %d, %d bytes", status, len(out))
	}
}
