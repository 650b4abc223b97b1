package locksrv

import "time"

// Meter is told what a Service and a Daemon do, to count it; package metrics
// does. What changes the realm it is not told: the event log has that, from
// every process. Its methods are called at once from many places, and do not
// block.
type Meter interface {
	// Connection is one more, or one fewer, that is open.
	Connection(change int)
	// Refused is a connection or session over a limit, or a login that
	// authenticated and then was not let in: "connection", "session", "login".
	Refused(what string)
	// Login is an answer to a key or password: "publickey", "password".
	Login(method string, ok bool)
	// Session is one more, or one fewer, that is served.
	Session(change int)
	// Verb is one that ended, by its name in the table, or "" if there is none.
	Verb(name string, took time.Duration, err error)
	// Content is an object, or some other file, that went out or came in whole
	// by "isr_get" or "sftp".
	Content(way string, out bool, bytes int64)
	// Failed is something beside a verb that did not work: "event-log",
	// "post-hook", "panic".
	Failed(what string)
}

// meter is never nil.
func (v *Service) meter() Meter {
	if v.Meter == nil {
		return unmetered{}
	}
	return v.Meter
}

type unmetered struct{}

func (unmetered) Connection(int)                    {}
func (unmetered) Refused(string)                    {}
func (unmetered) Login(string, bool)                {}
func (unmetered) Session(int)                       {}
func (unmetered) Verb(string, time.Duration, error) {}
func (unmetered) Content(string, bool, int64)       {}
func (unmetered) Failed(string)                     {}
