package source

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"path"
	"strconv"
	"strings"
	"sync"

	"github.com/pkg/sftp"
	"golang.org/x/crypto/ssh"

	"isr/store/seal"
)

// files is a tree on an SFTP server. It connects when first asked, and again
// when the connection is lost.
type files struct {
	dial       func(ctx context.Context, user, host string, port int) (*ssh.Client, error)
	user, host string
	port       int
	root       string

	mu   sync.Mutex
	conn *sftpConn
}

// sftpConn is a connection, from when it is begun.
type sftpConn struct {
	ready  chan struct{} // closed when the rest is set
	ssh    *ssh.Client
	client *sftp.Client
	err    error
}

func newSFTP(u *url.URL, dial func(ctx context.Context, user, host string, port int) (*ssh.Client, error)) (*files, error) {
	t := &files{dial: dial, user: u.User.Username(), host: u.Hostname(), root: path.Clean("/" + u.Path)}
	if rest, ok := strings.CutPrefix(t.root+"/", "/~/"); ok {
		t.root = path.Clean(rest)
	}
	if _, ok := u.User.Password(); ok {
		return nil, errors.New("a password does not belong there: use a key")
	}
	if p := u.Port(); p != "" {
		var err error
		if t.port, err = strconv.Atoi(p); err != nil || t.port < 1 || t.port > 65535 {
			return nil, fmt.Errorf("port %q", p)
		}
	}
	return t, nil
}

// connected is the connection. To log in may take longer than a request may
// wait: it goes on without it.
func (t *files) connected(ctx context.Context) (*sftpConn, error) {
	t.mu.Lock()
	c := t.conn
	if c == nil {
		c = &sftpConn{ready: make(chan struct{})}
		t.conn = c
		go t.connect(context.WithoutCancel(ctx), c)
	}
	t.mu.Unlock()
	select {
	case <-c.ready:
		return c, c.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

func (t *files) connect(ctx context.Context, c *sftpConn) {
	if c.ssh, c.err = t.dial(ctx, t.user, t.host, t.port); c.err == nil {
		if c.client, c.err = sftp.NewClient(c.ssh); c.err != nil {
			c.ssh.Close()
		}
	}
	failed := c.err != nil
	close(c.ready)
	if !failed {
		c.client.Wait()
		c.ssh.Close()
	}
	t.drop(c)
}

func (t *files) drop(c *sftpConn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.conn == c {
		t.conn = nil
	}
}

func (t *files) read(ctx context.Context, name string, w *sink) error {
	c, err := t.connected(ctx)
	if err != nil {
		return err
	}
	name = path.Join(t.root, name)
	// To open a FIFO would hang the server.
	fi, err := c.client.Stat(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return errAbsent
	case err != nil:
		return err
	case !fi.Mode().IsRegular():
		return fmt.Errorf("%s: is no file but %v: %w", name, fi.Mode().Type(), seal.ErrCorrupt)
	}
	if err := w.expect(fi.Size()); err != nil {
		return err
	}
	f, err := c.client.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	return w.from(&wide{f: f})
}

// wide reads a file in pieces that fill the link: pkg/sftp asks for the parts
// of one read at a time.
type wide struct {
	f   *sftp.File
	off int64
}

func (r *wide) Read(p []byte) (int, error) {
	n, err := r.f.ReadAt(p[:min(len(p), 1<<20)], r.off)
	r.off += int64(n)
	if n > 0 && errors.Is(err, io.EOF) {
		err = nil
	}
	return n, err
}

// reset hangs up: what does not answer may never.
func (t *files) reset() {
	t.mu.Lock()
	c := t.conn
	t.mu.Unlock()
	if c == nil {
		return
	}
	select {
	case <-c.ready:
		if c.err == nil {
			t.drop(c)
			c.ssh.Close()
		}
	default: // it is being logged in to; that has a limit of its own
	}
}
