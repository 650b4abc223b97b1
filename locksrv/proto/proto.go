// Package proto is what the lock server and its clients agree on: the verbs,
// their arguments, the stream that carries objects, and how an error crosses
// the wire. isr-protocol(7) is its page.
//
// It promises that an error of a kind at one end is an error of that kind at
// the other (errors.Is). It opens no connection and touches no file.
package proto

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"isr/store/parcel"
	"isr/store/seal"
)

// The verbs. Each is a forced command: the first word of what an SSH client
// asks to execute. Secrets never are arguments: they come on standard input.
const (
	ListParcels = "isr_list_parcels"   // names, one a line
	Ls          = "isr_ls"             // [PARCEL] [-L N]: a Listing a line, as JSON
	CatConfig   = "isr_cat_parcel_cfg" // PARCEL: parcel.cfg
	CatKeyroot  = "isr_cat_keyroot"    // PARCEL [VERSION]: TAG:KEY
	Acquire     = "isr_acquire_lock"   // PARCEL [HOST [ACQUISITION]]: the lock record, nonce included
	Release     = "isr_release_lock"   // PARCEL [--force]: nonce on stdin; the public record of who held it
	CheckLock   = "isr_check_lock"     // PARCEL: nonce on stdin; the public lock record
	Missing     = "isr_missing"        // PARCEL: tags on stdin, those lacking on stdout
	Get         = "isr_get"            // PARCEL: tags on stdin, frames on stdout, in order
	Commit      = "isr_commit"         // PARCEL: a CommitRequest on stdin; the version's number
	Rollback    = "isr_rollback"       // PARCEL VERSION: nonce on stdin; the new version's number
	Fork        = "isr_fork"           // PARCEL VERSION NAME HOST ACQUISITION: comment on stdin; the new parcel's lock record, nonce included
	CheckParcel = "isr_checkparcel"    // PARCEL [VERSION] [-c] [--json]: problems, one a line; a Finding a line, as JSON
	Motd        = "isr_motd"           // the message of the day
	PutReport   = "isr_report"         // PARCEL: a Report on stdin, as JSON
	Quota       = "isr_quota"          // a Usage, as JSON
	Passwd      = "isr_passwd"         // [--check]: old and new password, a line each, on stdin; with --check whether there is one: yes or no
)

// Split breaks a command into words. There is no quoting: no verb takes an
// argument with a space, so anything a shell would interpret is refused.
func Split(command string) ([]string, error) {
	for _, c := range command {
		if c < ' ' || c > '~' || strings.ContainsRune("\"'\\`$;&|<>(){}*?[]!#", c) {
			return nil, parcel.NewError(parcel.Usage, "command: character %q is not allowed", c)
		}
	}
	return strings.Fields(command), nil
}

// Listing is what isr_ls says of one parcel.
type Listing struct {
	Parcel   string    `json:"parcel"`
	UUID     string    `json:"uuid"`
	VMM      string    `json:"vmm"`
	DiskSize int64     `json:"disk_size"`
	MemSize  int64     `json:"mem_size"`
	Version  int       `json:"version"`
	Comment  string    `json:"comment,omitempty"`
	Held     *Holder   `json:"held,omitempty"`     // nil: released
	Released *Holder   `json:"released,omitempty"` // who held it last, and Since when it is free
	Versions []Version `json:"versions,omitempty"` // newest first, at most N
	Error    string    `json:"error,omitempty"`    // what is wrong with this parcel; the others list all the same
}

// Usage is what isr_quota says of the user: what the objects of all her parcels
// take, those in staging included, each parcel counted whole.
type Usage struct {
	Objects int64 `json:"objects"`
	Bytes   int64 `json:"bytes"`
	Quota   int64 `json:"quota,omitempty"` // how many bytes she may have; 0: no bound
}

// Near reports whether a quota is nearly used up, or is.
func (u Usage) Near() bool { return u.Quota > 0 && u.Bytes >= u.Quota-u.Quota/10 }

// Holder is who holds a parcel.
type Holder struct {
	User    string    `json:"user"`
	Host    string    `json:"host"`
	Since   time.Time `json:"since"`
	Contact time.Time `json:"contact"`
	Epoch   int64     `json:"epoch"`
	// Of a lock that was broken: who did it, and why if that was said.
	BrokenBy string `json:"broken_by,omitempty"`
	Why      string `json:"why,omitempty"`
}

// Version is what isr_ls says of one version.
type Version struct {
	Version   int       `json:"version"`
	Time      time.Time `json:"time"`
	Host      string    `json:"host,omitempty"`
	Comment   string    `json:"comment,omitempty"`
	Parent    int       `json:"parent"`
	Bytes     int64     `json:"bytes"`   // sealed bytes that were new with it
	Objects   int64     `json:"objects"` // objects that were new with it
	Suspended string    `json:"suspended,omitempty"`
	Rollback  int       `json:"rollback,omitempty"` // the version it was made equal to
	Tags      []string  `json:"tags,omitempty"`
	Pin       string    `json:"pin,omitempty"` // why it is kept for ever
}

// CommitRequest asks for a new version.
type CommitRequest struct {
	Nonce   string
	Parent  int      // the head it was made from
	Keyroot seal.Ref // of the new version's root block
	ID      string   // the same ID is answered with the same version
}

// Encode prints the request as a record.
func (c CommitRequest) Encode() ([]byte, error) {
	return parcel.Record{{Key: "NONCE", Value: c.Nonce}, {Key: "PARENT", Value: fmt.Sprint(c.Parent)},
		{Key: "KEYROOT", Value: c.Keyroot.String()}, {Key: "COMMIT", Value: c.ID}}.Encode()
}

// ParseCommitRequest reads what Encode printed.
func ParseCommitRequest(p []byte) (CommitRequest, error) {
	var c CommitRequest
	r, err := parcel.ParseRecord(p)
	if err == nil {
		c.Nonce, c.ID = r.Get("NONCE"), r.Get("COMMIT")
		if c.Parent, err = strconv.Atoi(r.Get("PARENT")); err != nil || c.Parent < 0 {
			err = errors.New("PARENT: want a version number")
		} else {
			c.Keyroot, err = seal.ParseRef(r.Get("KEYROOT"))
		}
	}
	if err == nil && (c.Keyroot.IsNil() || c.ID == "" || c.Nonce == "") {
		err = errors.New("NONCE, KEYROOT or COMMIT is missing")
	}
	if err != nil {
		return CommitRequest{}, parcel.NewError(parcel.Usage, "commit request: %v", err)
	}
	return c, nil
}

// MaxObject bounds a frame: no object is larger, bytes.
const MaxObject = seal.MaxPlain + 1024

// absent in place of a frame's length says that the store lacks the object.
const absent = 0xffffffff

// WriteFrame answers one tag of isr_get: four bytes of length, big-endian,
// then the object.
func WriteFrame(w io.Writer, object []byte) error {
	if err := WriteFrameHeader(w, len(object)); err != nil {
		return err
	}
	_, err := w.Write(object)
	return err
}

// WriteFrameHeader begins a frame whose size bytes the caller writes next.
func WriteFrameHeader(w io.Writer, size int) error {
	var n [4]byte
	binary.BigEndian.PutUint32(n[:], uint32(size))
	_, err := w.Write(n[:])
	return err
}

// WriteAbsent answers one tag of isr_get that the store lacks.
func WriteAbsent(w io.Writer) error {
	_, err := w.Write([]byte{0xff, 0xff, 0xff, 0xff})
	return err
}

// ReadFrame reads an answer of isr_get; parcel.ErrNoObject if the store lacks
// the object, io.EOF at the end of the stream. The caller owns the result.
func ReadFrame(r io.Reader) ([]byte, error) {
	var n [4]byte
	if _, err := io.ReadFull(r, n[:]); err != nil {
		return nil, err
	}
	size := binary.BigEndian.Uint32(n[:])
	switch {
	case size == absent:
		return nil, parcel.ErrNoObject
	case size > MaxObject:
		return nil, fmt.Errorf("frame of %d bytes: %w", size, parcel.ErrDamaged)
	}
	object := make([]byte, size)
	if _, err := io.ReadFull(r, object); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return nil, err
	}
	return object, nil
}

// ReadTags calls f for each line of r, a tag in hex, until the end of r.
func ReadTags(r io.Reader, f func(seal.Tag) error) error {
	lines := bufio.NewScanner(r)
	lines.Buffer(make([]byte, 256), 256)
	for lines.Scan() {
		t, err := seal.ParseTag(lines.Text())
		if err != nil {
			return parcel.NewError(parcel.Usage, "%v", err)
		}
		if err := f(t); err != nil {
			return err
		}
	}
	return lines.Err()
}

// errorPrefix begins the line on standard error that carries an error.
const errorPrefix = "isr: error: "

// hintPrefix begins the line after it, if there is one thing to do about it.
const hintPrefix = "isr: hint: "

// warningPrefix begins a line on standard error that tells the user something,
// whatever became of the verb.
const warningPrefix = "warning: "

// WriteWarning prints text as such a line.
func WriteWarning(w io.Writer, text string) {
	io.WriteString(w, warningPrefix+parcel.Clean(text)+"\n")
}

// maxWarnings is how many lines a server may have a user read beside an answer.
const maxWarnings = 10

// ReadWarnings is the warnings that a verb left on standard error, the first of
// them if they are many.
func ReadWarnings(stderr []byte) (texts []string) {
	for line := range strings.Lines(string(stderr)) {
		if text, ok := strings.CutPrefix(line, warningPrefix); ok && len(texts) < maxWarnings {
			texts = append(texts, parcel.Clean(text))
		}
	}
	return texts
}

// WriteError prints err as the one line a verb leaves on standard error, with
// its hint on a second if it has one, and returns the exit status that goes
// with it.
func WriteError(w io.Writer, err error) int {
	if err == nil {
		return 0
	}
	text := errorPrefix + parcel.Clean(err.Error()) + "\n"
	var e *parcel.Error
	if errors.As(err, &e) && e.Hint != "" {
		text += hintPrefix + parcel.Clean(e.Hint) + "\n"
	}
	io.WriteString(w, text) // in one piece: other processes may write there
	return int(parcel.KindOf(err))
}

// ReadError rebuilds the error of a verb from its exit status and what it
// left on standard error; nil for status 0.
func ReadError(verb string, status int, stderr []byte) error {
	if status == 0 {
		return nil
	}
	msg, hint := "", ""
	for _, line := range strings.Split(string(stderr), "\n") {
		if m, ok := strings.CutPrefix(line, errorPrefix); ok {
			msg, hint = m, ""
		} else if h, ok := strings.CutPrefix(line, hintPrefix); ok {
			hint = h
		} else if msg == "" && !strings.HasPrefix(line, warningPrefix) {
			msg = strings.TrimSpace(line)
		}
	}
	if msg == "" {
		msg = fmt.Sprintf("%s: exit status %d", verb, status)
	}
	return parcel.NewError(parcel.Kind(status), "%s", parcel.Clean(msg)).WithHint("%s", parcel.Clean(hint))
}
