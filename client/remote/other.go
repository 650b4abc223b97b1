package remote

import (
	"context"
	"net"
	"time"

	"golang.org/x/crypto/ssh"

	"isr/client/remote/dial"
	"isr/client/remote/sshconf"
)

// Through is a connection to somewhere else under this server's limits; its
// bytes count in Traffic.
func (s *Server) Through(c net.Conn) net.Conn {
	t := &tap{Conn: c, s: s, start: time.Now()}
	t.hear()
	return t
}

// DialOther logs in to another SSH server, by its own settings, with the
// credentials that are known so far. It never asks. Port 0 and user "" are as
// configured. The connection is Through s.
func (s *Server) DialOther(ctx context.Context, user, host string, port int) (*ssh.Client, error) {
	ctx, cancel := context.WithTimeout(ctx, redialTime)
	defer cancel()
	t := sshconf.Target{Host: host, Port: port, User: user, Home: s.target.Home, BatchMode: true}
	return dial.Tapped(ctx, t, nil, s.creds, s.Through)
}
