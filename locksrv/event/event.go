// Package event is the record of what happened in a realm: who took, released
// and broke which lock, what was committed, and what administrators did. It is
// the audit trail, what hooks are told on standard input, and the pilot's
// server-side study data, all in one form: a line of JSON.
//
// It promises that a line is written whole, by any number of processes at
// once, and that what was written is never changed. It does not decide what is
// worth a line, and holds no secret: no nonce, key, keyroot or password.
package event

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// What may happen. Hooks are named by these: pre-lock, post-commit.
const (
	Lock     = "lock"
	Release  = "release" // with Forced: the lock was broken
	Commit   = "commit"
	Rollback = "rollback"
	Fork     = "fork"

	UserAdd      = "user-add"
	UserDel      = "user-del"
	UserChange   = "user-change" // keys, quota, groups, consent, locked or not
	UserPassword = "user-password"

	ParcelCreate = "parcel-create"
	ParcelImport = "parcel-import"
	ParcelCopy   = "parcel-copy"
	ParcelRename = "parcel-rename"
	ParcelDel    = "parcel-del"
	ParcelExport = "parcel-export"
	ParcelChange = "parcel-change" // a version tagged, commented, pinned; the parcel's comment
	ParcelPrune  = "parcel-prune"

	GC      = "gc"
	Check   = "check"
	Repair  = "repair"
	Backup  = "backup"
	Restore = "restore"
	Harvest = "harvest" // of the study of use
	Mirror  = "mirror"

	BackupPrune = "backup-prune"
)

// Ops is all of them.
var Ops = []string{Lock, Release, Commit, Rollback, Fork,
	UserAdd, UserDel, UserChange, UserPassword,
	ParcelCreate, ParcelImport, ParcelCopy, ParcelRename, ParcelDel, ParcelExport, ParcelChange, ParcelPrune,
	GC, Check, Repair, Backup, Restore, Harvest, Mirror, BackupPrune}

// Event is one thing that happened, or, to a pre-hook, is about to.
type Event struct {
	Time    time.Time `json:"time"` // UTC, when it was done
	Op      string    `json:"op"`
	User    string    `json:"user,omitempty"`    // whose
	Parcel  string    `json:"parcel,omitempty"`  // which
	Version int       `json:"version,omitempty"` // which, or which it made
	To      string    `json:"to,omitempty"`      // the other parcel or user, of copies, renames, forks: USER/PARCEL
	By      string    `json:"by"`                // who did it: a user, or an administrator's account on the host
	Admin   bool      `json:"admin,omitempty"`   // on the host, by its account
	Host    string    `json:"host,omitempty"`    // of the lock's holder
	From    string    `json:"from,omitempty"`    // address of the client
	Epoch   int64     `json:"epoch,omitempty"`   // of the acquisition
	Forced  bool      `json:"forced,omitempty"`
	Holder  string    `json:"holder,omitempty"` // whose lock was in the way, or was broken
	Parent  int       `json:"parent,omitempty"` // the version it was made from
	Objects int64     `json:"objects,omitempty"`
	Bytes   int64     `json:"bytes,omitempty"`
	Memory  int64     `json:"memory,omitempty"` // bytes of the memory image
	State   string    `json:"state,omitempty"`  // of a commit: "suspended" or "off"
	What    string    `json:"what,omitempty"`   // what was changed, in words
	Why     string    `json:"why,omitempty"`    // the reason that was given
	Seconds float64   `json:"seconds"`          // it took
	Error   string    `json:"error,omitempty"`  // why it was not done
	Kind    int       `json:"kind,omitempty"`   // of the error: an exit status
}

// Log is a realm's event log: a directory with a file for each day, UTC,
// named 2026-11-26.jsonl. Old days may be compressed, moved or removed.
type Log struct{ dir string }

// NewLog is the log in dir, which is made when the first line is written.
func NewLog(dir string) *Log { return &Log{dir} }

const dayLayout = "2006-01-02"

// Append writes a line, durably; a nil Log keeps none.
func (l *Log) Append(e Event) error {
	if l == nil {
		return nil
	}
	line, err := json.Marshal(e)
	if err != nil {
		return err
	}
	name := filepath.Join(l.dir, e.Time.UTC().Format(dayLayout)+".jsonl")
	f, err := openLine(name)
	if errors.Is(err, fs.ErrNotExist) {
		if err = os.Mkdir(l.dir, 0o700); err == nil || errors.Is(err, fs.ErrExist) {
			f, err = openLine(name)
		}
	}
	if err != nil {
		return err
	}
	line = append(line, '\n')
	if cut, terr := torn(f); terr == nil && cut {
		line = append([]byte{'\n'}, line...)
	}
	// One write: lines of several processes do not mix.
	_, err = f.Write(line)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return err
}

// torn reports whether the last line has no end: the disk was full, or the
// power went. It is lost, and must not take the next one with it. Where another
// process is writing it may be wrong, which costs a blank line.
func torn(f *os.File) (bool, error) {
	fi, err := f.Stat()
	if err != nil || fi.Size() == 0 {
		return false, err
	}
	last := make([]byte, 1)
	_, err = f.ReadAt(last, fi.Size()-1)
	return last[0] != '\n', err
}

// openLine opens a day's file for one more line: no link is followed to write
// it elsewhere, and what is no file is not written to.
func openLine(name string) (*os.File, error) {
	f, err := os.OpenFile(name, os.O_RDWR|os.O_APPEND|os.O_CREATE|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0o600)
	if err != nil {
		return nil, err
	}
	if fi, err := f.Stat(); err != nil || !fi.Mode().IsRegular() {
		f.Close()
		return nil, fmt.Errorf("%s: not a file", name)
	}
	return f, nil
}
