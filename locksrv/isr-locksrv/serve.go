package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/signal"
	"os/user"
	"path/filepath"
	"regexp"
	"strings"

	"golang.org/x/crypto/ssh"

	"isr/locksrv"
	"isr/locksrv/proto"
	"isr/store/parcel"
)

type shell struct {
	User string `help:"Whose key it was. Default: the account that sshd let in, with a realm of its own." placeholder:"USER"`
}

func (c *shell) Run(e *env) error {
	signal.Reset(endings...)
	if c.User == "" {
		if err := c.own(e); err != nil {
			return status_(proto.WriteError(e.stderr, err))
		}
	}
	if err := parcel.CheckName(c.User); err != nil {
		return status_(proto.WriteError(e.stderr, err))
	}
	s, _, err := e.open()
	if err != nil {
		return status_(proto.WriteError(e.stderr, err))
	}
	host, _, _ := strings.Cut(os.Getenv("SSH_CONNECTION"), " ")
	log := sessionLog().With("user", c.User, "from", host)
	status := locksrv.NewService(s).Run(context.Background(), locksrv.Session{User: c.User, Host: host, From: host, Begin: unstoppable, Log: log,
		Warn: func(text string) { fmt.Fprintf(e.stderr, "warning: %s\n", parcel.Clean(text)) }},
		os.Getenv("SSH_ORIGINAL_COMMAND"), streams{os.Stdin, e.stdout, e.stderr})
	if status != 0 {
		return status_(status)
	}
	return nil
}

// own is for an account that keeps her parcels in a realm of her own: the
// administrator's configuration is of another one.
func (c *shell) own(e *env) error {
	u, err := user.Current()
	if err != nil {
		return err
	}
	c.User = u.Username
	if e.root == "" {
		e.root = cmp.Or(os.Getenv("ISR_ROOT"), defaultRoot())
	}
	return nil
}

type authorizedKeys struct {
	User string `help:"Only the keys of one user." placeholder:"USER"`
	Key  string `help:"Only this key, in base64 as sshd gives it for %k." placeholder:"KEY"`
}

func (c *authorizedKeys) Run(e *env) error {
	s, root, err := e.open()
	if err != nil {
		return err
	}
	program, err := os.Executable()
	if err != nil {
		return err
	}
	var only []byte
	if c.Key != "" {
		if only, err = base64.StdEncoding.DecodeString(c.Key); err != nil {
			return parcel.NewError(parcel.Usage, "--key: not base64")
		}
	}
	users := []string{c.User}
	if c.User == "" {
		if users, err = s.Users(); err != nil {
			return err
		}
	}
	for _, user := range users {
		if _, _, err := s.UserDirs(user); err != nil {
			return err
		}
		command := shellQuote(program) + " --root " + shellQuote(root) + " shell --user " + shellQuote(user)
		text, err := os.ReadFile(filepath.Join(root, "users", user, "authorized_keys"))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		for len(text) > 0 {
			key, comment, _, rest, err := ssh.ParseAuthorizedKey(text)
			if err != nil {
				break // no further key
			}
			text = rest
			if only != nil && !bytes.Equal(only, key.Marshal()) {
				continue
			}
			fmt.Fprintf(e.stdout, "command=\"%s\",restrict %s\n", strings.ReplaceAll(command, `"`, `\"`), keyLine(key, comment))
		}
	}
	return nil
}

var plainWord = regexp.MustCompile(`^[A-Za-z0-9_@%+=:,./-]+$`)

// shellQuote quotes s for the shell that sshd runs a forced command with.
func shellQuote(s string) string {
	if plainWord.MatchString(s) {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
