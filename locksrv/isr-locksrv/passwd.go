package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/term"

	"isr/locksrv/event"
	"isr/store/parcel"
)

type userPasswd struct {
	Name   string `arg:"" help:"The user."`
	Remove bool   `help:"Take the password away: only keys let the user in then."`
	sure
}

func (c *userPasswd) Run(ctx context.Context, e *env) error {
	if err := parcel.CheckName(c.Name); err != nil {
		return err
	}
	s, _, err := e.open()
	if err != nil {
		return err
	}
	has, err := s.HasPassword(c.Name)
	if errors.Is(err, parcel.ErrNoParcel) {
		return err // before anybody types
	}
	if c.Remove {
		if has {
			if err := e.confirm(c.Yes, "remove the password of user %s?", c.Name); err != nil {
				return err
			}
		}
		return e.act(ctx, s, event.Event{Op: event.UserPassword, User: c.Name, What: "removed"}, func(context.Context) error {
			return s.RemovePassword(c.Name)
		})
	}
	password, err := newPassword(ctx, c.Name, os.Stdin, e.stderr)
	if err != nil {
		return err
	}
	defer clear(password)
	return e.act(ctx, s, event.Event{Op: event.UserPassword, User: c.Name, What: "set"}, func(context.Context) error {
		return s.SetPassword(c.Name, password)
	})
}

// newPassword asks twice on a terminal, without echo; else it is the first
// line of in.
func newPassword(ctx context.Context, user string, in *os.File, prompt io.Writer) ([]byte, error) {
	if !term.IsTerminal(int(in.Fd())) {
		line, err := bufio.NewReaderSize(in, 1024).ReadSlice('\n')
		if err == io.EOF {
			err = nil
		}
		if err != nil {
			return nil, fmt.Errorf("standard input: %w", err)
		}
		password := bytes.Clone(bytes.TrimSuffix(line, []byte("\n")))
		clear(line)
		return password, nil
	}
	password, err := secret(ctx, in, prompt, "New password of "+user+": ")
	if err == nil {
		err = parcel.CheckPassword(password)
	}
	if err != nil {
		return nil, err
	}
	again, err := secret(ctx, in, prompt, "Again: ")
	defer clear(again)
	if err == nil && !bytes.Equal(password, again) {
		err = parcel.NewError(parcel.Usage, "password: not twice the same")
	}
	return password, err
}
