// Package output is standard output as both programs have it: where every
// result goes.
//
// Results remembers the first error, so that no command ends well whose result
// nobody got, and lets nothing through that a terminal would obey or reorder
// text by: names, comments and hosts come from others. A Table is rows in
// aligned columns, and fits a terminal that is narrow.
//
// It promises that what a program reads as JSON is as it is, and that no cell
// breaks lines or columns. It decides no exit status, and prints no error.
package output

import (
	"errors"
	"io"
	"os"
	"strings"
	"syscall"
	"unicode"
	"unicode/utf8"

	"golang.org/x/term"
)

// Results is standard output. One at a time may use it.
type Results struct {
	File  *os.File // as it is: for who draws on the terminal
	TTY   bool
	ASCII bool   // the terminal has nothing else
	Cut   bool   // what is too long for the terminal in a Table is cut, not made a list
	Stop  func() // called when nobody gets the results any more; may be nil
	err   *Lost
}

// New is results on a file.
//
// One that was closed when the program began is /dev/null by now, and its
// results are lost without an error: Go's runtime opens that, for reading and
// writing, before anything of ours runs. So do daemon(3) and Python's DEVNULL,
// who mean it, and all of /proc is the same then; to refuse them would be worse.
func New(f *os.File) *Results {
	tty := term.IsTerminal(int(f.Fd()))
	return &Results{File: f, TTY: tty, ASCII: tty && ASCIIOnly()}
}

// Write prints text for people.
func (r *Results) Write(p []byte) (int, error) {
	if _, err := r.Bytes().Write([]byte(Visible(string(p), r.ASCII))); err != nil {
		return 0, err
	}
	return len(p), nil
}

// Bytes is standard output for what no terminal is to show: it goes out as it
// is.
func (r *Results) Bytes() io.Writer { return exact{r} }

// JSON is standard output for JSON: a program reads it as it is, on a terminal
// it is made visible as everything is.
func (r *Results) JSON() io.Writer {
	if r.TTY {
		return r
	}
	return r.Bytes()
}

type exact struct{ r *Results }

func (x exact) Write(p []byte) (int, error) {
	if x.r.err != nil {
		return 0, x.r.err
	}
	n, err := x.r.File.Write(p)
	if err != nil {
		x.r.err = &Lost{reason(err)}
		if x.r.Stop != nil {
			x.r.Stop()
		}
		return n, x.r.err
	}
	return n, nil
}

// Err is the first error of a write; nil: all of it went out.
func (r *Results) Err() *Lost { return r.err }

// Width is the columns of the terminal; 0 if there is none.
func (r *Results) Width() int {
	if !r.TTY {
		return 0
	}
	if w, _, err := term.GetSize(int(r.File.Fd())); err == nil && w > 0 {
		return w
	}
	return 80
}

// Lost is the error of a write to standard output.
type Lost struct{ why error }

func (l *Lost) Error() string { return "standard output: " + l.why.Error() }
func (l *Lost) Unwrap() error { return l.why }

// Gone reports whether the reader went, as one does who has seen enough.
func (l *Lost) Gone() bool { return errors.Is(l.why, syscall.EPIPE) }

// reason is err without the name that os gives the file.
func reason(err error) error {
	var pe *os.PathError
	if errors.As(err, &pe) {
		return pe.Err
	}
	return err
}

// ASCIIOnly reports whether the locale's character set is another than UTF-8,
// of which we know ASCII.
func ASCIIOnly() bool {
	for _, name := range []string{"LC_ALL", "LC_CTYPE", "LANG"} {
		if v := os.Getenv(name); v != "" {
			v = strings.ToLower(v)
			return !strings.Contains(v, "utf-8") && !strings.Contains(v, "utf8")
		}
	}
	return true
}

// Visible is s with a question mark for each character that a terminal would
// obey or reorder text by, for bytes that are no UTF-8 and, for ascii, for
// what the terminal has no character for. Lines and tabs stay.
func Visible(s string, ascii bool) string {
	s = strings.ReplaceAll(s, "\r\n", "\n")
	var b strings.Builder
	for _, c := range s { // a byte that is no UTF-8 comes as U+FFFD
		switch {
		case c == '\n', c == '\t':
			b.WriteRune(c)
		case c == utf8.RuneError, unicode.IsControl(c), unicode.Is(unicode.Bidi_Control, c), c == '\u2028', c == '\u2029':
			b.WriteByte('?')
		case ascii && c == '…':
			b.WriteString("...")
		case ascii && c >= utf8.RuneSelf:
			b.WriteByte('?')
		default:
			b.WriteRune(c)
		}
	}
	return b.String()
}
