package client

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"isr/store/parcel"
)

// keeperUI is a keeper's UI: events for the isr in front, while there is one,
// and the parcel's log for ever.
type keeperUI struct {
	mu   sync.Mutex
	enc  *json.Encoder
	log  *os.File
	next int
}

func newKeeperUI(conn net.Conn, logName string) *keeperUI {
	u := &keeperUI{enc: json.NewEncoder(conn)}
	u.log, _ = openLog(logName)
	return u
}

// openLog opens a log, to add to it.
func openLog(name string) (*os.File, error) {
	if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		return nil, err
	}
	return os.OpenFile(name, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
}

// logFile is the log of a checkout's runs.
func (co *Checkout) logFile() string {
	return filepath.Join(co.client.Dir, "log", filepath.Base(co.Dir))
}

func (u *keeperUI) Close() {
	if u.log != nil {
		u.log.Close()
	}
}

func (u *keeperUI) send(e event) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.enc.Encode(e) // nobody may be in front any more
	if u.log != nil && e.Progress == nil && e.Say != "" {
		fmt.Fprintf(u.log, "%s %d %s\n", time.Now().UTC().Format(time.RFC3339), os.Getpid(), e.Say)
	}
}

func (u *keeperUI) Say(format string, args ...any) { u.send(event{Say: fmt.Sprintf(format, args...)}) }
func (u *keeperUI) Detail(format string, args ...any) {
	u.send(event{Say: fmt.Sprintf(format, args...), Detail: true})
}
func (u *keeperUI) Warn(format string, args ...any) {
	u.send(event{Say: fmt.Sprintf(format, args...), Warn: true})
}

// end is the last event.
func (u *keeperUI) end(err error) {
	e := event{Done: true, Kind: parcel.KindOf(err)}
	if err != nil {
		e.Say = err.Error()
		var pe *parcel.Error
		if errors.As(err, &pe) {
			e.Hint = pe.Hint
		}
	}
	u.send(e)
}

func (u *keeperUI) Progress(what, unit string, total int64) Progress {
	u.mu.Lock()
	u.next++
	p := &keeperProgress{u: u, e: progressEvent{ID: u.next, What: what, Unit: unit, Total: total}}
	u.mu.Unlock()
	return p
}

type keeperProgress struct {
	mu   sync.Mutex
	u    *keeperUI
	e    progressEvent
	last time.Time
}

// Set passes on ten events a second at most.
func (p *keeperProgress) Set(done, total int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.e.Done, p.e.Total = done, total
	if now := time.Now(); now.Sub(p.last) > 100*time.Millisecond {
		p.last = now
		e := p.e
		p.u.send(event{Progress: &e})
	}
}

func (p *keeperProgress) Done() {
	p.mu.Lock()
	defer p.mu.Unlock()
	e := p.e
	e.End = true
	p.u.send(event{Progress: &e})
}
