package parcel

import (
	"crypto/rand"
	"crypto/subtle"
	"encoding/hex"
	"fmt"
	"strconv"
	"time"
)

// Lock is the record of who holds a parcel: the content of the nonce file.
// Without Nonce and Acquisition it is the public lockholder.
type Lock struct {
	Nonce       string    // proof of holding; secret
	Acquisition string    // chosen by the holder: the same one is answered with the same lock
	User        string    // who
	Host        string    // from which host
	Since       time.Time // when, UTC
	Epoch       int64     // this acquisition's number: later holders have larger ones
	Version     int       // head at that time
	Contact     time.Time // last contact of the holder; not in the file: its mtime
	BrokenBy    string    // of one that is held no longer: who broke it; "": its holder gave it back
	Why         string    // the reason that was given for that
}

// NewNonce is a proof of holding that nobody can guess: time, version and 128
// random bits, as in the pilot (which had fewer).
func NewNonce(now time.Time, version int) string {
	return fmt.Sprintf("%d-%d-%s", now.Unix(), version, NewID())
}

// NewID is 128 random bits in hex, for an acquisition or a commit.
func NewID() string {
	var b [16]byte
	rand.Read(b[:])
	return hex.EncodeToString(b[:])
}

// Is reports whether nonce proves holding l, in constant time.
func (l *Lock) Is(nonce string) bool {
	return l.Nonce != "" && subtle.ConstantTimeCompare([]byte(l.Nonce), []byte(nonce)) == 1
}

// Public is l without its secrets.
func (l Lock) Public() Lock {
	l.Nonce, l.Acquisition = "", ""
	return l
}

// Encode prints l as a record.
func (l *Lock) Encode() ([]byte, error) {
	var r Record
	if l.Nonce != "" {
		r = append(r, Field{"NONCE", l.Nonce})
	}
	if l.Acquisition != "" {
		r = append(r, Field{"ACQUISITION", l.Acquisition})
	}
	r = append(r, Record{{"USER", l.User}, {"HOST", l.Host}, {"SINCE", l.Since.UTC().Format(time.RFC3339)},
		{"EPOCH", strconv.FormatInt(l.Epoch, 10)}, {"VERSION", strconv.Itoa(l.Version)}}...)
	if l.BrokenBy != "" {
		r = append(r, Field{"BY", l.BrokenBy})
	}
	if l.Why != "" {
		r = append(r, Field{"WHY", l.Why})
	}
	return r.Encode()
}

// ParseLock reads what Encode printed.
func ParseLock(p []byte) (*Lock, error) {
	r, err := ParseRecord(p)
	if err != nil {
		return nil, fmt.Errorf("lock: %w", err)
	}
	l := &Lock{Nonce: r.Get("NONCE"), Acquisition: r.Get("ACQUISITION"), User: r.Get("USER"), Host: r.Get("HOST"),
		BrokenBy: r.Get("BY"), Why: r.Get("WHY")}
	if l.Since, err = ParseTime(r.Get("SINCE")); err != nil {
		return nil, fmt.Errorf("lock: SINCE: %w", err)
	}
	if l.Epoch, err = strconv.ParseInt(r.Get("EPOCH"), 10, 64); err != nil {
		return nil, fmt.Errorf("lock: EPOCH: %w", err)
	}
	if l.Version, err = strconv.Atoi(r.Get("VERSION")); err != nil {
		return nil, fmt.Errorf("lock: VERSION: %w", err)
	}
	return l, nil
}

// String says who holds it, for messages: "alice on thinkpad since …".
func (l *Lock) String() string {
	return fmt.Sprintf("%s on %s since %s", l.User, l.Host, l.Since.UTC().Format("2006-01-02 15:04:05 MST"))
}
