// Package hooks runs an administrator's programs before and after what happens
// in a realm. isr-hooks(5) is their page.
//
// It promises that a pre-hook which fails, is not to be trusted or does not
// end keeps the thing from being done, with its own words as the reason, and
// that a post-hook which fails undoes nothing. A hook is told what happens on
// standard input and in its environment, never a secret, and gets nothing of
// the server's own environment. It does not judge what hooks do.
package hooks

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
	"unicode"

	"isr/locksrv/event"
	"isr/store/parcel"
)

// Variable names the hook in its environment, pre-commit; it is set in hooks
// and nowhere else.
const Variable = "ISR_HOOK"

// maxOutput bounds what is kept of what a hook prints, bytes; the rest is read
// and forgotten.
const maxOutput = 64 << 10

// maxSaid bounds each of the two lines that a user is told, and each variable,
// bytes.
const maxSaid = 2 << 10

// Runner runs the hooks in a directory: a program pre-commit, then those in
// pre-commit.d by name. There need be none, nor the directory; a nil Runner
// has none.
type Runner struct {
	Dir     string
	Root    string        // of the realm: hooks are run there
	Timeout time.Duration // of one hook; default 1 min
}

// Pre runs the hooks before e, up to the first that fails. An error is its
// veto: parcel.ErrDenied, with the first line it printed, the others its hint.
func (r *Runner) Pre(ctx context.Context, e event.Event) error {
	hs, err := r.Find("pre-" + e.Op)
	for _, h := range hs {
		if err != nil {
			break
		}
		err = r.run(ctx, h, e)
	}
	var f *failure
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.As(err, &f) && f.said != "":
		return parcel.NewError(parcel.Denied, "%s: refused by this server's policy: %s", e.Op, f.said).WithHint("%s", f.rest)
	case errors.As(err, &f) && f.exited:
		return parcel.NewError(parcel.Denied, "%s: refused by this server's policy: %v", e.Op, err)
	}
	return parcel.NewError(parcel.Denied, "%s: refused, since this server's policy could not be asked: %v", e.Op, err).
		WithHint("tell the server's administrator; isr-locksrv hooks shows what is wrong")
}

// Post runs the hooks after e, all of them. An error is for people: e was done.
func (r *Runner) Post(ctx context.Context, e event.Event) error {
	hs, err := r.Find("post-" + e.Op)
	for _, h := range hs {
		if herr := r.run(ctx, h, e); err == nil {
			err = herr
		} else if herr != nil {
			err = fmt.Errorf("%w; %w", err, herr)
		}
	}
	return err
}

// failure is a hook that did not do.
type failure struct {
	hook   string
	err    error
	exited bool   // by itself, with a status
	said   string // the first line it printed
	rest   string // the others, in one line
}

func (f *failure) Error() string {
	text := fmt.Sprintf("hook %s: %v", f.hook, f.err)
	for _, s := range []string{f.said, f.rest} {
		if s != "" {
			text += ": " + s
		}
	}
	return text
}

func (f *failure) Unwrap() error { return f.err }

// run runs one hook to its end.
func (r *Runner) run(ctx context.Context, h Hook, e event.Event) error {
	if err := h.Err; err != nil {
		return &failure{hook: h.Name, err: err}
	}
	stdin, err := json.Marshal(e)
	if err != nil {
		return err
	}
	timeout := r.Timeout
	if timeout == 0 {
		timeout = time.Minute
	}
	limited, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	cmd := exec.CommandContext(limited, h.Path)
	cmd.Dir = r.Root
	cmd.Env = r.environment(h, e)
	cmd.Stdin = bytes.NewReader(append(stdin, '\n'))
	out := new(head)
	cmd.Stdout, cmd.Stderr = out, out
	// What it started ends with it, when it must. And it has no terminal: one
	// that runs because root typed something, as the account whose the realm
	// is, would type the next thing.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	// What it left running may hold its output open, and is not waited for.
	cmd.WaitDelay = time.Second
	err = cmd.Run()
	var exit *exec.ExitError
	switch {
	case err == nil, errors.Is(err, exec.ErrWaitDelay) && limited.Err() == nil:
		return nil
	case ctx.Err() != nil:
		return ctx.Err()
	case limited.Err() != nil:
		err = fmt.Errorf("it did not end within %v", timeout)
	}
	f := &failure{hook: h.Name, err: err, exited: errors.As(err, &exit) && exit.Exited()}
	f.said, f.rest = lines(out.String())
	return f
}

// path is where hooks find programs.
const path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// environment is all of a hook's. What people said is cut to one line of
// bounded length; what is not known is empty.
func (r *Runner) environment(h Hook, e event.Event) []string {
	env := []string{"PATH=" + path, "LANG=C.UTF-8", "SHELL=/bin/sh"}
	// A hook runs the program that runs it, wherever that is.
	if program, err := os.Executable(); err == nil {
		env[0] += ":" + filepath.Dir(program)
	}
	if u, err := user.LookupId(strconv.Itoa(os.Geteuid())); err == nil {
		env = append(env, "HOME="+u.HomeDir, "LOGNAME="+u.Username, "USER="+u.Username)
	} else {
		env = append(env, "HOME="+r.Root)
	}
	name, _, _ := strings.Cut(h.Name, ".d/")
	return append(env, Variable+"="+name, "ISR_ROOT="+r.Root, "ISR_OP="+e.Op,
		"ISR_USER="+oneLine(e.User), "ISR_PARCEL="+oneLine(e.Parcel), "ISR_TO="+oneLine(e.To),
		"ISR_VERSION="+number(int64(e.Version)), "ISR_PARENT="+number(int64(e.Parent)),
		"ISR_BY="+oneLine(e.By), "ISR_ADMIN="+flag(e.Admin),
		"ISR_HOST="+oneLine(e.Host), "ISR_FROM="+oneLine(e.From), "ISR_EPOCH="+number(e.Epoch),
		"ISR_FORCED="+flag(e.Forced), "ISR_HOLDER="+oneLine(e.Holder),
		"ISR_OBJECTS="+number(e.Objects), "ISR_BYTES="+number(e.Bytes), "ISR_STATE="+oneLine(e.State),
		"ISR_WHAT="+oneLine(e.What), "ISR_WHY="+oneLine(e.Why))
}

func number(n int64) string {
	if n == 0 {
		return ""
	}
	return strconv.FormatInt(n, 10)
}

func flag(b bool) string {
	if b {
		return "1"
	}
	return ""
}

// head keeps the beginning of what is written to it.
type head struct {
	mu   sync.Mutex
	text []byte
}

func (h *head) Write(p []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.text = append(h.text, p[:min(len(p), maxOutput-len(h.text))]...)
	return len(p), nil
}

func (h *head) String() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return string(h.text)
}

// lines is the first line of text that is not empty, and the others in one,
// both fit for a terminal.
func lines(text string) (first, rest string) {
	first, rest, _ = strings.Cut(strings.TrimSpace(text), "\n")
	return oneLine(first), oneLine(rest)
}

func oneLine(s string) string {
	s = strings.Join(strings.FieldsFunc(parcel.Clean(s), unicode.IsSpace), " ")
	if len(s) > maxSaid {
		s = strings.ToValidUTF8(s[:maxSaid], "") + " …"
	}
	return s
}
