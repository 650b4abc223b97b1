// Package hooks runs an administrator's programs before and after what happens
// in a realm. isr-hooks(5) is their page.
//
// It promises that a pre-hook which fails keeps the thing from being done, with
// its own words as the reason, and that a post-hook which fails undoes nothing.
// A hook is told what happens on standard input and in its environment, and
// never a secret. It does not judge what hooks do.
package hooks

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"isr/locksrv/event"
	"isr/store/parcel"
)

// Runner runs the hooks in a directory: files named pre-commit, post-lock,
// executable. There need be none, nor the directory; a nil Runner has none.
type Runner struct {
	Dir     string
	Root    string        // of the realm, for their environment
	Timeout time.Duration // of one hook; default 1 min
}

// Pre runs the hook before e. An error is its veto: parcel.ErrDenied, with
// what it printed.
func (r *Runner) Pre(ctx context.Context, e event.Event) error {
	said, err := r.run(ctx, "pre-"+e.Op, e)
	if err == nil {
		return nil
	}
	if said == "" {
		said = err.Error()
	}
	return parcel.NewError(parcel.Denied, "%s: refused by this server's policy: %s", e.Op, said)
}

// Post runs the hook after e. An error is for people: e was done.
func (r *Runner) Post(ctx context.Context, e event.Event) error {
	said, err := r.run(ctx, "post-"+e.Op, e)
	if err != nil && said != "" {
		err = fmt.Errorf("%w: %s", err, said)
	}
	return err
}

// run runs one hook, if it is there, and returns what it printed, on one line.
func (r *Runner) run(ctx context.Context, name string, e event.Event) (said string, err error) {
	if r == nil {
		return "", nil
	}
	path := filepath.Join(r.Dir, name)
	fi, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	if fi.Mode()&0o111 == 0 || !fi.Mode().IsRegular() {
		return "", fmt.Errorf("hook %s: not executable", name)
	}
	stdin, err := json.Marshal(e)
	if err != nil {
		return "", err
	}
	timeout := r.Timeout
	if timeout == 0 {
		timeout = time.Minute
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, path)
	cmd.Env = append(os.Environ(), "ISR_HOOK="+name, "ISR_ROOT="+r.Root, "ISR_OP="+e.Op, "ISR_USER="+e.User, "ISR_PARCEL="+e.Parcel)
	cmd.Stdin = bytes.NewReader(append(stdin, '\n'))
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.WaitDelay = time.Second
	err = cmd.Run()
	if err != nil {
		err = fmt.Errorf("hook %s: %w", name, err)
	}
	return parcel.Clean(strings.Join(strings.Fields(out.String()), " ")), err
}
