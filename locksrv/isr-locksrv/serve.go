package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"

	"golang.org/x/crypto/ssh"

	"isr/locksrv"
	"isr/locksrv/proto"
	"isr/store/authkey"
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
		HostKeys: keys,
	}
	for _, key := range keys {
		d.Log.Info("host key", "type", key.PublicKey().Type(), "fingerprint", ssh.FingerprintSHA256(key.PublicKey()))
	}
	fmt.Fprintf(e.stdout, "listening on %s\n", ln.Addr())
	return d.Serve(ctx, ln)
}

type shell struct {
	User     string   `help:"Whose key it was." required:"" placeholder:"USER"`
	ReadOnly bool     `help:"The key is for reading only."`
	Parcel   []string `help:"The key is for this parcel; may come more than once." placeholder:"PARCEL" sep:"none"`
}

func (c *shell) Run(e *env) error {
	signal.Reset(endings...)
	if err := parcel.CheckName(c.User); err != nil {
		return err
	}
	for _, name := range c.Parcel {
		if err := parcel.CheckName(name); err != nil {
			return err
		}
	}
	s, _, err := e.open()
	if err != nil {
		return err
	}
	host, _, _ := strings.Cut(os.Getenv("SSH_CONNECTION"), " ")
	status := locksrv.NewService(s).Run(context.Background(), locksrv.Session{User: c.User, Rights: authkey.Rights{ReadOnly: c.ReadOnly, Parcels: c.Parcel},
		Host: host, From: host, Begin: unstoppable,
		Warn: func(text string) { proto.WriteWarning(e.stderr, text) }},
		os.Getenv("SSH_ORIGINAL_COMMAND"), streams{os.Stdin, e.stdout, e.stderr})
	if status != 0 {
		return status_(status)
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
