package main

import (
	"cmp"
	"context"
	"os"
	"os/signal"
	"os/user"
	"regexp"
	"strings"
	"syscall"

	"isr/locksrv"
	"isr/locksrv/proto"
	"isr/store/authkey"
	"isr/store/parcel"
)

type shell struct {
	User     string   `help:"Whose key it was. Default: the account that sshd let in, with a realm of its own." placeholder:"USER"`
	ReadOnly bool     `help:"The key is for reading only."`
	Parcel   []string `help:"The key is for this parcel; may come more than once." placeholder:"PARCEL" sep:"none"`
}

func (c *shell) Run(e *env) error {
	signal.Reset(append(endings, syscall.SIGPIPE)...)
	if c.User == "" {
		if err := c.own(e); err != nil {
			return status_(proto.WriteError(e.stderr, err))
		}
	}
	if err := parcel.CheckName(c.User); err != nil {
		return status_(proto.WriteError(e.stderr, err))
	}
	for _, name := range c.Parcel {
		if err := parcel.CheckName(name); err != nil {
			return status_(proto.WriteError(e.stderr, err))
		}
	}
	s, _, err := e.open()
	if err != nil {
		return status_(proto.WriteError(e.stderr, err))
	}
	host, _, _ := strings.Cut(os.Getenv("SSH_CONNECTION"), " ")
	log := sessionLog().With("user", c.User, "from", host)
	status := locksrv.NewService(s).Run(context.Background(), locksrv.Session{User: c.User, Rights: authkey.Rights{ReadOnly: c.ReadOnly, Parcels: c.Parcel},
		Host: host, From: host, Begin: unstoppable, Log: log,
		Warn: func(text string) { proto.WriteWarning(e.stderr, text) }},
		os.Getenv("SSH_ORIGINAL_COMMAND"), streams{os.Stdin, e.stdout.File, e.stderr})
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

var plainWord = regexp.MustCompile(`^[A-Za-z0-9_@%+=:,./-]+$`)

// shellQuote quotes s for the shell that sshd runs a forced command with.
func shellQuote(s string) string {
	if plainWord.MatchString(s) {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
