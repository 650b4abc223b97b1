// Package authkey reads the lines of an authorized_keys file: a public key,
// whom it is from, and the options in front of it that say what it may do.
//
// The options are those of sshd(8) that a lock server can keep, and two of its
// own. It promises that a line with any other lets nobody in, so that nobody is
// let in here whom sshd would keep out, and that what String prints is read as
// the same key. It opens no file and knows no user.
package authkey

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"golang.org/x/crypto/ssh"

	"isr/store/parcel"
)

// Rights are what whoever is let in by a key may do. The zero value is all.
type Rights struct {
	ReadOnly bool
	Parcels  []string // only these, as if there were no others; nil: all
}

// Whole reports whether they are all the user's.
func (r Rights) Whole() bool { return !r.ReadOnly && r.Parcels == nil }

// Sees reports whether a parcel of that name may be seen.
func (r Rights) Sees(name string) bool { return r.Parcels == nil || slices.Contains(r.Parcels, name) }

// Key is a public key and the terms on which it lets its owner in.
type Key struct {
	ssh.PublicKey
	Comment string
	Rights
	Expires time.Time // after it nobody is let in; zero: never
	From    Patterns  // addresses it may come from; nil: any
}

// Same reports whether other is the same key, on whatever terms.
func (k Key) Same(other ssh.PublicKey) bool {
	return k.PublicKey != nil && bytes.Equal(k.Marshal(), other.Marshal())
}

// SameTerms reports whether other lets in on the same terms.
func (k Key) SameTerms(other Key) bool {
	return k.ReadOnly == other.ReadOnly && slices.Equal(k.Parcels, other.Parcels) &&
		k.Expires.Equal(other.Expires) && slices.Equal(k.From, other.From)
}

// Admits is nil if the key lets somebody in from an address at a time; from is
// the zero Addr if it is not known.
func (k Key) Admits(now time.Time, from netip.Addr) error {
	if !k.Expires.IsZero() && now.After(k.Expires) {
		return parcel.NewError(parcel.Denied, "key %s: expired on %s", ssh.FingerprintSHA256(k), k.Expires.UTC().Format(time.RFC3339))
	}
	if k.From != nil && !k.From.Match(from) {
		return parcel.NewError(parcel.Denied, "key %s: not from this address", ssh.FingerprintSHA256(k))
	}
	return nil
}

// expiryLayout is that of expiry-time with all its parts.
const expiryLayout = "20060102150405"

// ParseExpiry reads YYYYMMDD[HHMM[SS]][Z], in local time unless Z.
func ParseExpiry(s string) (time.Time, error) {
	digits, zone := s, time.Local
	if utc, ok := strings.CutSuffix(s, "Z"); ok {
		digits, zone = utc, time.UTC
	}
	switch len(digits) {
	case len("YYYYMMDD"), len("YYYYMMDDHHMM"), len(expiryLayout):
		t, err := time.ParseInLocation(expiryLayout[:len(digits)], digits, zone)
		if err == nil && t.Unix() > 0 && t.UTC().Year() <= 9999 {
			return t, nil
		}
	}
	return time.Time{}, fmt.Errorf("time %q: want YYYYMMDD[HHMM[SS]][Z]", s)
}

// options are the terms, as a line has them in front of its key.
func (k Key) options(ours bool) []string {
	var o []string
	if k.From != nil {
		o = append(o, `from="`+strings.Join(k.From, ",")+`"`)
	}
	if !k.Expires.IsZero() {
		o = append(o, `expiry-time="`+k.Expires.UTC().Format(expiryLayout)+`Z"`)
	}
	if ours && k.ReadOnly {
		o = append(o, "isr-read-only")
	}
	if ours && k.Parcels != nil {
		o = append(o, `isr-parcel="`+strings.Join(k.Parcels, ",")+`"`)
	}
	return o
}

// SSHD are the terms that sshd(8) keeps, as options of it.
func (k Key) SSHD() []string { return k.options(false) }

// Text is the key and its comment, without options.
func (k Key) Text() string {
	return strings.TrimSpace(strings.TrimSpace(string(ssh.MarshalAuthorizedKey(k))) + " " + parcel.Clean(k.Comment))
}

// String is the key as a line of the file.
func (k Key) String() string {
	if o := k.options(true); len(o) > 0 {
		return strings.Join(o, ",") + " " + k.Text()
	}
	return k.Text()
}

// ParseLine reads a line that is neither blank nor a comment.
func ParseLine(line []byte) (Key, error) {
	line = bytes.TrimSpace(line)
	if !utf8.Valid(line) || bytes.ContainsFunc(line, func(c rune) bool { return unicode.IsControl(c) && c != '\t' }) {
		return Key{}, fmt.Errorf("want one line of plain text")
	}
	public, comment, options, rest, err := ssh.ParseAuthorizedKey(line)
	if err != nil || len(rest) > 0 {
		return Key{}, fmt.Errorf("want [OPTIONS] TYPE BASE64 [COMMENT]")
	}
	if _, ok := public.(*ssh.Certificate); ok {
		return Key{}, fmt.Errorf("is a certificate, not a key")
	}
	k := Key{PublicKey: public, Comment: parcel.Clean(comment)}
	seen := make(map[string]bool)
	for _, o := range options {
		name, value, valued := strings.Cut(o, "=")
		name = strings.ToLower(name)
		if err := k.option(name, value, valued, seen[name]); err != nil {
			return Key{}, fmt.Errorf("option %s: %w", parcel.Clean(name), err)
		}
		seen[name] = true
	}
	return k, nil
}

// harmless are options that take away what nobody gets here.
var harmless = []string{"restrict", "no-port-forwarding", "no-agent-forwarding", "no-x11-forwarding", "no-pty", "no-user-rc"}

func (k *Key) option(name, value string, valued, again bool) error {
	if slices.Contains(harmless, name) || name == "isr-read-only" {
		if valued {
			return fmt.Errorf("takes no value")
		}
		k.ReadOnly = k.ReadOnly || name == "isr-read-only"
		return nil
	}
	switch name {
	case "expiry-time", "from", "isr-parcel":
	default:
		return fmt.Errorf("is not one that is kept here")
	}
	text, ok := strings.CutPrefix(value, `"`)
	if text, ok2 := strings.CutSuffix(text, `"`); ok && ok2 && !strings.Contains(text, `"`) {
		value = text
	} else {
		return fmt.Errorf("want a value in quotes")
	}
	if again && name != "expiry-time" { // as sshd has it: the earliest counts
		return fmt.Errorf("is given twice")
	}
	switch name {
	case "expiry-time":
		t, err := ParseExpiry(value)
		if err != nil {
			return err
		}
		if k.Expires.IsZero() || t.Before(k.Expires) {
			k.Expires = t
		}
	case "from":
		p, err := ParsePatterns(value)
		if err != nil {
			return err
		}
		k.From = p
	case "isr-parcel":
		for name := range strings.SplitSeq(value, ",") {
			if err := parcel.CheckName(name); err != nil {
				return err
			}
			k.Parcels = append(k.Parcels, name)
		}
	}
	return nil
}

// Line is one line of a file: a key, or why it lets nobody in.
type Line struct {
	N    int    // from 1
	Text string // as it is, less the space around it
	Key  Key
	Err  error
}

// Parse reads a file: its lines that are neither blank nor a comment.
func Parse(p []byte) []Line {
	var lines []Line
	n := 0
	for text := range bytes.Lines(p) {
		n++
		if t := bytes.TrimSpace(text); len(t) == 0 || t[0] == '#' {
			continue
		}
		l := Line{N: n, Text: string(bytes.TrimSpace(text))}
		l.Key, l.Err = ParseLine(text)
		lines = append(lines, l)
	}
	return lines
}
