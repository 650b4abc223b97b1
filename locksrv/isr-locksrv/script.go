package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"strings"

	"isr/locksrv"
	"isr/locksrv/proto"
	"isr/store/parcel"
)

// scriptPrefix begins the names of the pilot's scripts.
const scriptPrefix = "isr_"

// streams is the program's own streams as a session has them.
type streams struct {
	io.Reader
	io.Writer
	stderr io.Writer
}

func (s streams) Errors() io.Writer { return s.stderr }
func (s streams) Close() error {
	// Ends a Read that waits, so that an SFTP session can end.
	return os.Stdin.Close()
}

// unstoppable is for verbs that wait for input: until they change something a
// signal ends the program as always, and from then on it is not heeded. It is
// caught rather than ignored: hooks would inherit that, and a shell can not
// undo it.
func unstoppable() bool {
	signal.Ignore(endings...) // whoever was told of them is told no more
	signal.Notify(make(chan os.Signal, 1), endings...)
	return true
}

// script runs one of the pilot's scripts for an administrator on the host: the
// verb of that name, whose first argument is the user.
func script(root string, words []string, stdout, stderr *os.File) int {
	err := func() error {
		if len(words) < 2 || strings.HasPrefix(words[1], "-") {
			return parcel.NewError(parcel.Usage, "%s: want the name of a user first", words[0])
		}
		verb, user := words[0], words[1]
		if err := parcel.CheckName(user); err != nil {
			return err
		}
		e := &env{root: root, stdout: newResults(stdout), stderr: stderr}
		s, _, err := e.open()
		if err != nil {
			return err
		}
		host, err := os.Hostname()
		if err != nil {
			host = "server"
		}
		var stdin io.Reader = os.Stdin
		if verb == proto.Passwd && len(words) == 2 {
			// As for isr-locksrv user passwd: a terminal shows no password.
			password, err := newPassword(context.Background(), user, os.Stdin, stderr)
			if err != nil {
				return err
			}
			defer clear(password)
			stdin = bytes.NewReader(password)
		}
		session := e.session()
		session.User, session.Host, session.Begin = user, host, unstoppable
		return service(s).RunWords(context.Background(), session,
			append([]string{verb}, words[2:]...), streams{stdin, stdout, stderr})
	}()
	return complain(stderr, words[0], err)
}

type links struct {
	Dir string `arg:"" help:"Where to make the links." type:"existingdir"`
}

func (c *links) Run(e *env) error {
	program, err := os.Executable()
	if err != nil {
		return err
	}
	for _, verb := range locksrv.Verbs() {
		name := filepath.Join(c.Dir, verb)
		if target, err := os.Readlink(name); err == nil && target == program {
			continue
		}
		err := os.Symlink(program, name)
		if errors.Is(err, fs.ErrExist) {
			return parcel.NewError(parcel.Exists, "%s: is there already, and is not a link to %s", name, program)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// buildVersion is set by the linker; else it is what the build recorded.
var buildVersion string

// programVersion is the version of this program.
func programVersion() string {
	if buildVersion != "" {
		return buildVersion
	}
	if info, ok := debug.ReadBuildInfo(); ok {
		return info.Main.Version
	}
	return "unknown"
}

type version struct{}

func (*version) Run(e *env) error {
	_, err := fmt.Fprintf(e.stdout, "isr-locksrv %s\n", programVersion())
	return err
}
