// Package parcel names things: users, parcels, versions, the parcel's
// configuration, the proof of its lock, and the kinds of error that both ends
// of the wire know.
//
// Everything an administrator may read or edit is a record: lines of
// KEY:=value, as in the pilot's parcel.cfg. The package parses and prints; it
// opens no file and knows no secret but those it is handed.
package parcel

import (
	"bytes"
	"fmt"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// Record is a list of KEY:=value lines, in order. A key may come more than
// once (SRC). Comments and blank lines are not kept.
type Record []Field

// Field is one line of a Record.
type Field struct{ Key, Value string }

// ParseRecord reads lines of KEY:=value; blank lines and lines that begin
// with # are passed over. Errors name the line.
func ParseRecord(p []byte) (Record, error) {
	var r Record
	for i, line := range strings.Split(string(p), "\n") {
		line = strings.TrimRight(line, "\r")
		if t := strings.TrimSpace(line); t == "" || t[0] == '#' {
			continue
		}
		key, value, ok := strings.Cut(line, ":=")
		if !ok {
			return nil, fmt.Errorf("line %d: want KEY:=value", i+1)
		}
		f := Field{strings.TrimSpace(key), strings.TrimSpace(value)}
		if err := f.check(); err != nil {
			return nil, fmt.Errorf("line %d: %w", i+1, err)
		}
		r = append(r, f)
	}
	return r, nil
}

func (f Field) check() error {
	if f.Key == "" || strings.Trim(f.Key, "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_") != "" {
		return fmt.Errorf("key %q: want capitals, digits and _", f.Key)
	}
	if !utf8.ValidString(f.Value) || strings.ContainsFunc(f.Value, unicode.IsControl) ||
		f.Value != strings.TrimSpace(f.Value) {
		return fmt.Errorf("value of %s: want one line of plain text", f.Key)
	}
	return nil
}

// Encode prints r, or says which field cannot be a line.
func (r Record) Encode() ([]byte, error) {
	var b bytes.Buffer
	for _, f := range r {
		if err := f.check(); err != nil {
			return nil, err
		}
		fmt.Fprintf(&b, "%s:=%s\n", f.Key, f.Value)
	}
	return b.Bytes(), nil
}

// Get is the value of the first field called key, "" if there is none.
func (r Record) Get(key string) string {
	for _, f := range r {
		if f.Key == key {
			return f.Value
		}
	}
	return ""
}

// All is the values of every field called key, in order.
func (r Record) All(key string) []string {
	var vs []string
	for _, f := range r {
		if f.Key == key {
			vs = append(vs, f.Value)
		}
	}
	return vs
}

// Set gives the first field called key the value, or appends one.
func (r *Record) Set(key, value string) {
	for i := range *r {
		if (*r)[i].Key == key {
			(*r)[i].Value = value
			return
		}
	}
	*r = append(*r, Field{key, value})
}

// ParseTime reads an RFC 3339 time of a year that can be printed again.
func ParseTime(s string) (time.Time, error) {
	t, err := time.Parse(time.RFC3339, s)
	if t = t.UTC(); err == nil && (t.Year() < 1 || t.Year() > 9999) {
		err = fmt.Errorf("time %q: the year is out of range", s)
	}
	return t, err
}

// Clean makes any text fit to be a value and to be shown: one line, nothing
// that a terminal would obey or reorder text by.
func Clean(s string) string {
	s = strings.ToValidUTF8(s, "?")
	return strings.TrimSpace(strings.Map(func(c rune) rune {
		if unicode.IsControl(c) || unicode.Is(unicode.Bidi_Control, c) || c == '\u2028' || c == '\u2029' {
			return ' '
		}
		return c
	}, s))
}
