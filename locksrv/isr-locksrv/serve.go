package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"

	"golang.org/x/crypto/ssh"

	"isr/locksrv"
	"isr/store/parcel"
)

type serve struct {
	Listen string `help:"Where to listen; port 0 takes any that is free." placeholder:"ADDR:PORT" default:":2222"`
	Debug  bool   `help:"Log more."`
}

func (c *serve) Run(ctx context.Context, e *env) error {
	s, root, err := e.openOrInit()
	if err != nil {
		return err
	}
	keys, err := locksrv.HostKeys(filepath.Join(root, "hostkeys"))
	if err != nil {
		return err
	}
	ln, err := net.Listen("tcp", c.Listen)
	if err != nil {
		return err
	}
	level := slog.LevelInfo
	if c.Debug {
		level = slog.LevelDebug
	}
	d := &locksrv.Daemon{
		Service:  locksrv.NewService(s),
		Log:      slog.New(slog.NewTextHandler(e.stderr, &slog.HandlerOptions{Level: level})),
		Settings: locksrv.Settings{HostKeys: keys},
	}
	for _, key := range keys {
		d.Log.Info("host key", "type", key.PublicKey().Type(), "fingerprint", ssh.FingerprintSHA256(key.PublicKey()))
	}
	fmt.Fprintf(e.stdout, "listening on %s\n", ln.Addr())
	return d.Serve(ctx, ln)
}

type shell struct {
	User string `help:"Whose key it was." required:"" placeholder:"USER"`
}

func (c *shell) Run(e *env) error {
	signal.Reset(endings...)
	if err := parcel.CheckName(c.User); err != nil {
		return err
	}
	s, _, err := e.open()
	if err != nil {
		return err
	}
	host, _, _ := strings.Cut(os.Getenv("SSH_CONNECTION"), " ")
	status := locksrv.NewService(s).Run(context.Background(), locksrv.Session{User: c.User, Host: host, From: host, Begin: unstoppable,
		Warn: func(text string) { fmt.Fprintf(e.stderr, "warning: %s\n", parcel.Clean(text)) }},
		os.Getenv("SSH_ORIGINAL_COMMAND"), streams{os.Stdin, e.stdout, e.stderr})
	if status != 0 {
		return status_(status)
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
