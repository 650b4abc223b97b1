package locksrv

import (
	"strconv"
	"strings"

	"isr/store/parcel"
)

// words reads a verb's arguments one by one, by type, and remembers the first
// that is wrong.
type words struct {
	verb    string
	rest    []string
	parcels []string // that were named
	err     error
}

func (w *words) fail(format string, args ...any) {
	if w.err == nil {
		w.err = parcel.NewError(parcel.Usage, w.verb+": "+format, args...)
	}
}

// flag takes name from wherever it stands, and reports whether it did.
func (w *words) flag(name string) bool {
	for i, a := range w.rest {
		if a == name {
			w.rest = append(w.rest[:i:i], w.rest[i+1:]...)
			return true
		}
	}
	return false
}

// count takes name and the number after it; if name is not there.
func (w *words) count(name string, otherwise int) int {
	for i, a := range w.rest {
		if a != name {
			continue
		}
		if i+1 == len(w.rest) {
			w.fail("%s wants a number", name)
			return 0
		}
		n, err := strconv.Atoi(w.rest[i+1])
		if err != nil || n < 0 {
			w.fail("%s %s: want a number", name, w.rest[i+1])
		}
		w.rest = append(w.rest[:i:i], w.rest[i+2:]...)
		return n
	}
	return otherwise
}

// optional takes the next word, "" if there is none.
func (w *words) optional() string {
	if len(w.rest) == 0 {
		return ""
	}
	a := w.rest[0]
	w.rest = w.rest[1:]
	if strings.HasPrefix(a, "-") {
		w.fail("option %s is not one of its own", a)
	}
	return a
}

// text takes a word of at most max bytes, "" if there is none.
func (w *words) text(what string, max int) string {
	a := w.optional()
	if len(a) > max {
		w.fail("%s of %d bytes: %d are the limit", what, len(a), max)
	}
	return a
}

// name takes a word that names a user or parcel. A key for some parcels only
// is held to those that are called so.
func (w *words) name(what string) string {
	a := w.optional()
	if a == "" {
		w.fail("want the name of a %s", what)
	} else if err := parcel.CheckName(a); err != nil {
		w.fail("%s: %v", what, err)
	}
	if strings.HasSuffix(what, "parcel") {
		w.parcels = append(w.parcels, a)
	}
	return a
}

// version takes a version's number; 0 if there is no word and it need not be.
func (w *words) version(must bool) int {
	a := w.optional()
	if a == "" && !must {
		return 0
	}
	v, err := strconv.Atoi(a)
	if err != nil || v < 1 {
		w.fail("version %q: want a number from 1", a)
	}
	return v
}

// end is to be called when all arguments were taken.
func (w *words) end() error {
	if len(w.rest) > 0 {
		w.fail("one argument too many: %s", w.rest[0])
	}
	return w.err
}
