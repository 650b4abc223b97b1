package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/crypto/ssh"

	"isr/locksrv/event"
	"isr/store/parcel"
)

type userAdd struct {
	Name string   `arg:"" help:"The user."`
	Key  []string `help:"File with public keys, as ssh-keygen writes it; may come more than once." placeholder:"FILE.pub" type:"existingfile" sep:"none"`
}

func (c *userAdd) Run(ctx context.Context, e *env) error {
	if err := parcel.CheckName(c.Name); err != nil {
		return err
	}
	var keys []string
	for _, file := range c.Key {
		lines, err := readKeys(file)
		if err != nil {
			return err
		}
		keys = append(keys, lines...)
	}
	s, _, err := e.openOrInit()
	if err != nil {
		return err
	}
	if users, err := s.Users(); err != nil {
		return err
	} else if slices.Contains(users, c.Name) && len(keys) > 0 {
		return e.act(ctx, s, event.Event{Op: event.UserChange, User: c.Name, What: "keys added"}, func(context.Context) error {
			return s.AddKeys(c.Name, keys)
		})
	}
	return e.act(ctx, s, event.Event{Op: event.UserAdd, User: c.Name}, func(context.Context) error {
		return s.AddUser(c.Name, keys)
	})
}

// readKeys is the keys in a file of public keys, a line each, without options.
func readKeys(file string) ([]string, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	if bytes.Contains(text, []byte("PRIVATE KEY-----")) {
		return nil, parcel.NewError(parcel.Usage, "%s: holds a private key", file).
			WithHint("the public key is in the file with .pub at its end")
	}
	var keys []string
	for n, line := range strings.Split(string(text), "\n") {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		key, comment, _, _, err := ssh.ParseAuthorizedKey([]byte(line))
		if err != nil {
			return nil, parcel.NewError(parcel.Usage, "%s: line %d: not a public key", file, n+1)
		}
		keys = append(keys, keyLine(key, comment))
	}
	if len(keys) == 0 {
		return nil, parcel.NewError(parcel.Usage, "%s: holds no key", file)
	}
	return keys, nil
}

// keyLine is a key as authorized_keys has it, without options.
func keyLine(key ssh.PublicKey, comment string) string {
	return strings.TrimSpace(strings.TrimSpace(string(ssh.MarshalAuthorizedKey(key))) + " " + parcel.Clean(comment))
}

type userList struct{}

func (*userList) Run(e *env) error {
	s, _, err := e.open()
	if err != nil {
		return err
	}
	names, err := s.Users()
	for _, name := range names {
		fmt.Fprintln(e.stdout, name)
	}
	return err
}

type userDel struct {
	Name string `arg:"" help:"The user."`
}

func (c *userDel) Run(ctx context.Context, e *env) error {
	s, _, err := e.open()
	if err != nil {
		return err
	}
	return e.act(ctx, s, event.Event{Op: event.UserDel, User: c.Name}, func(context.Context) error {
		return s.DelUser(c.Name)
	})
}
