package locksrvtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os/exec"
	"time"

	"github.com/pkg/sftp"
	"golang.org/x/crypto/ssh"

	"isr/locksrv"
)

// Direct is a peer without any SSH: sessions on the service itself.
type Direct struct {
	Service *locksrv.Service
	Session locksrv.Session
}

type stream struct {
	io.Reader
	io.Writer
	closer io.Closer
	errors io.Writer
}

func (s stream) Errors() io.Writer { return s.errors }
func (s stream) Close() error      { return s.closer.Close() }

// Exec runs a command.
func (d Direct) Exec(command string, stdin []byte) (stdout, stderr []byte, status int) {
	var out, errs bytes.Buffer
	status = d.Service.Run(context.Background(), d.Session, command,
		stream{bytes.NewReader(stdin), &out, io.NopCloser(nil), &errs})
	return out.Bytes(), errs.Bytes(), status
}

// SFTP opens the subsystem as sshd names it to a forced command.
func (d Direct) SFTP() (*sftp.Client, error) {
	here, there := net.Pipe()
	go func() {
		defer there.Close()
		d.Service.Run(context.Background(), d.Session, "internal-sftp", stream{there, there, there, io.Discard})
	}()
	return sftp.NewClientPipe(here, here)
}

// Conn is a peer over x/crypto's client.
type Conn struct{ *ssh.Client }

// Exec runs a command.
func (c Conn) Exec(command string, stdin []byte) (stdout, stderr []byte, status int) {
	return Exec(c.Client, command, stdin)
}

// SFTP opens the subsystem.
func (c Conn) SFTP() (*sftp.Client, error) { return sftp.NewClient(c.Client) }

// OpenSSH is a peer over the ssh program.
type OpenSSH struct {
	Args []string // options and user@host
}

// SSHArgs are options for ssh and sftp to reach a server on the loopback
// interface with a key and nothing else of the user's.
func SSHArgs(key, port, knownHosts string) []string {
	return []string{"-F", "none", "-i", key, "-o", "Port=" + port, "-o", "IdentitiesOnly=yes", "-o", "IdentityAgent=none",
		"-o", "UserKnownHostsFile=" + knownHosts, "-o", "GlobalKnownHostsFile=/dev/null",
		"-o", "StrictHostKeyChecking=no", "-o", "LogLevel=ERROR", "-o", "BatchMode=yes"}
}

// Exec runs a command.
func (o OpenSSH) Exec(command string, stdin []byte) (stdout, stderr []byte, status int) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "ssh", append(o.Args[:len(o.Args):len(o.Args)], "--", command)...)
	var out, errs bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(stdin), &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		status = exit.ExitCode()
	case err != nil:
		status = -1
		fmt.Fprintln(&errs, err)
	}
	return out.Bytes(), errs.Bytes(), status
}

// SFTP opens the subsystem through ssh -s.
func (o OpenSSH) SFTP() (*sftp.Client, error) {
	cmd := exec.Command("ssh", append(append([]string{"-s"}, o.Args...), "sftp")...)
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	return sftp.NewClientPipe(out, waiting{in, cmd})
}

// waiting closes a program's input and waits for the program.
type waiting struct {
	io.WriteCloser
	cmd *exec.Cmd
}

func (w waiting) Close() error {
	err := w.WriteCloser.Close()
	return errors.Join(err, w.cmd.Wait())
}
