// Package locksrv answers the verbs of a lock server, and shows a user's
// content by SFTP.
//
// Verbs are a closed table: a name, typed arguments, a function. The same
// table serves the built-in SSH daemon (Daemon), a forced command under stock
// OpenSSH, and an administrator who runs the pilot's script names on the host.
// Whoever lets a caller in vouches for the user; the package derives it from a
// proven key where it is the one who lets in.
//
// It promises that anything but a verb is refused by name, that an error is
// one line on standard error and an exit status, that what changes the store is
// finished once begun even if the client goes, and that SFTP neither leaves the
// user's content nor changes it, but for staging objects that are what their
// names say. It never sees plaintext, and never logs a secret.
// isr-protocol(7) is its page.
package locksrv

import (
	"context"
	"io"
	"log/slog"
	"path"
	"path/filepath"
	"runtime/debug"
	"strings"
	"time"

	"isr/hooks"
	"isr/locksrv/event"
	"isr/locksrv/proto"
	"isr/store"
	"isr/store/authkey"
	"isr/store/parcel"
)

// Service answers sessions on one store. Its methods are safe for concurrent
// use.
type Service struct {
	Store  *store.Store
	Motd   string        // file with the message of the day; there need be none
	Events *event.Log    // where what happens is written down; nil: nowhere
	Hooks  *hooks.Runner // what is run before and after it; nil: nothing
	Meter  Meter         // counts what is done; nil: nobody does
}

// NewService answers sessions on s with what its tree has: motd, log and hooks.
func NewService(s *store.Store) *Service {
	root := s.Root()
	return &Service{Store: s, Motd: filepath.Join(root, "motd"), Events: event.NewLog(filepath.Join(root, "log")),
		Hooks: &hooks.Runner{Dir: filepath.Join(root, "hooks"), Root: root}}
}

// Session is one caller, as whoever let it in vouches for it. A user who is
// locked out is refused all the same, at each command.
type Session struct {
	User   string         // whose parcels
	Rights authkey.Rights // fewer than the user's, if so
	Admin  bool           // works on the host itself, so needs no nonce to release
	By     string         // who works, if it is not the user: an account of the host
	Host   string         // where from, if the caller does not say
	From   string         // address of the client, if there is one
	Log    *slog.Logger   // nil: nothing is logged
	Warn   func(string)   // tells the caller what is no error; nil: nobody is told
	Begin  func() bool    // asked when something begins that is to be let finish; nil: always
	Still  func() error   // asked now and then while it lasts: why it may not go on; nil: nothing but the user is asked about
}

// Streams are a session's.
type Streams interface {
	io.Reader
	io.WriteCloser // Close ends the session's input as well
	Errors() io.Writer
}

// sftpCommand is how OpenSSH names its own SFTP server.
const sftpCommand = "internal-sftp"

// isSFTP reports whether the command asks for SFTP: as sshd_config names the
// subsystem, with or without flags, which are not heeded.
func isSFTP(command string) bool {
	word, _, _ := strings.Cut(command, " ")
	return word == sftpCommand || path.Base(word) == "sftp-server" && strings.HasPrefix(word, "/")
}

// Run runs one command of a session to its end, prints its error if there is
// one, and returns its exit status. It never panics.
func (v *Service) Run(ctx context.Context, s Session, command string, io Streams) (status int) {
	defer func() {
		if p := recover(); p != nil {
			if s.Log != nil {
				s.Log.Error("panic", "panic", p, "stack", string(debug.Stack()))
			}
			v.meter().Failed("panic")
			status = proto.WriteError(io.Errors(), parcel.NewError(parcel.Failed, "server: internal error"))
		}
	}()
	if isSFTP(command) {
		return proto.WriteError(io.Errors(), v.serveSFTP(ctx, s, io))
	}
	words, err := proto.Split(command)
	if err == nil {
		err = v.RunWords(ctx, s, words, io)
	}
	return proto.WriteError(io.Errors(), err)
}

// maxCommand bounds a command, bytes: errors and the log quote it.
const maxCommand = 4 << 10

// RunWords is Run of a command that is already words; the error is returned,
// not printed.
func (v *Service) RunWords(ctx context.Context, s Session, words []string, io Streams) error {
	if s.Log == nil {
		s.Log = slog.New(slog.DiscardHandler)
	}
	if err := v.admit(s); err != nil {
		s.Log.Warn("refused", "error", err)
		return err
	}
	size := 0
	for _, w := range words {
		size += len(w) + 1
	}
	if size > maxCommand {
		err := parcel.NewError(parcel.Usage, "command of %d bytes: %d are the limit", size, maxCommand)
		s.Log.Warn("refused", "error", err)
		return err
	}
	if len(words) == 0 {
		return parcel.NewError(parcel.Usage, "no command; this server answers: %s", strings.Join(Verbs(), " "))
	}
	verb, name, run, err := parseVerb(words)
	if err != nil {
		s.Log.Warn("refused", "verb", words[0], "error", err)
		v.meter().Verb(verb, 0, err)
		return err
	}
	start := time.Now()
	c := &call{Service: v, Session: s, errors: io.Errors()}
	err = run(ctx, c, io, io)
	took := time.Since(start)
	v.meter().Verb(verb, took, err)
	level := slog.LevelInfo
	if err != nil {
		level = slog.LevelWarn
	}
	args := []any{"verb", verb, "took", took.Round(time.Microsecond)}
	if name != "" {
		args = append(args, "parcel", name)
	}
	if err != nil {
		args = append(args, "error", err)
	}
	s.Log.Log(ctx, level, "verb", args...)
	return err
}

// begin is called by a verb that is about to change the store, when it has
// read all it needs: what follows under the new context is finished even if
// the client goes or the server is told to stop.
func (c *call) begin(ctx context.Context) (context.Context, error) {
	if ctx.Err() != nil || c.Begin != nil && !c.Begin() {
		return nil, parcel.NewError(parcel.Unreachable, "server: is stopping")
	}
	return context.WithoutCancel(ctx), nil
}
