package dial

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"

	"isr/client/remote/ask"
	"isr/client/remote/sshconf"
)

// connect opens the byte stream: directly, through jump hosts, or through a command.
func (d *dialer) connect(ctx context.Context) (*route, error) {
	switch {
	case d.r.ProxyCommand != "":
		return d.connectCommand(ctx)
	case len(d.r.ProxyJump) > 0:
		return d.connectJump(ctx)
	}
	return d.connectDirect(ctx)
}

func (d *dialer) connectDirect(ctx context.Context) (*route, error) {
	network := map[string]string{"inet": "tcp4", "inet6": "tcp6"}[d.r.AddressFamily]
	if network == "" {
		network = "tcp"
	}
	nd := net.Dialer{Timeout: d.r.ConnectTimeout}
	if d.r.BindAddress != "" {
		local, err := net.ResolveTCPAddr(network, net.JoinHostPort(d.r.BindAddress, "0"))
		if err != nil {
			return nil, fmt.Errorf("%w: BindAddress: %w", sshconf.ErrConfig, err)
		}
		nd.LocalAddr = local
	}
	conn, err := nd.DialContext(ctx, network, d.r.Address())
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w: %w", d.r.Destination(), ErrUnreachable, err)
	}
	addr, _, _ := net.SplitHostPort(conn.RemoteAddr().String())
	return &route{Conn: conn, addr: addr}, nil
}

// connectJump logs in to the last hop, through the others, and has it connect to the server. As with ssh, each hop is
// configured by the files under its own name, and options of the target are not passed on.
func (d *dialer) connectJump(ctx context.Context) (*route, error) {
	hops := d.r.ProxyJump
	last := hops[len(hops)-1]
	t := sshconf.Target{Host: last.Host, Port: last.Port, User: last.User, Home: d.target.Home, ConfigFile: d.target.ConfigFile,
		BatchMode: d.r.BatchMode}
	if rest := hops[:len(hops)-1]; len(rest) > 0 {
		var names []string
		for _, h := range rest {
			names = append(names, h.String())
		}
		t.Options = map[string]string{"ProxyJump": strings.Join(names, ",")}
	}
	jump, err := hop(ctx, t, d.asker.Prompter, d.asker.Credentials, d.depth+1, nil)
	if err != nil {
		return nil, fmt.Errorf("jump host %s: %w", last, err)
	}
	within, cancel := context.WithTimeout(ctx, d.r.ConnectTimeout)
	defer cancel()
	conn, err := jump.DialContext(within, "tcp", d.r.Address())
	if err != nil {
		jump.Close()
		return nil, fmt.Errorf("connect to %s through %s: %w: %w", d.r.Destination(), last, ErrUnreachable, err)
	}
	return &route{Conn: conn, end: func() { jump.Close() }}, nil
}

// connectCommand runs ProxyCommand and talks through its standard input and output.
func (d *dialer) connectCommand(ctx context.Context) (*route, error) {
	fail := func(err error) (*route, error) {
		return nil, fmt.Errorf("connect to %s: %w: ProxyCommand: %w", d.r.Destination(), ErrUnreachable, err)
	}
	toRead, toWrite, err := os.Pipe()
	if err != nil {
		return fail(err)
	}
	fromRead, fromWrite, err := os.Pipe()
	if err != nil {
		toRead.Close()
		toWrite.Close()
		return fail(err)
	}
	said := &Tail{Limit: 1 << 10}
	cmd := exec.Command(sshconf.Shell(), "-c", "exec "+d.r.ProxyCommand)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = toRead, fromWrite, said
	cmd.WaitDelay = time.Second
	if !d.asker.Present() {
		// Nobody to ask, so no need for the terminal: an interrupt typed there must not end the link. With somebody, the
		// command may itself have to ask, and stays in the foreground.
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	}
	err = cmd.Start()
	toRead.Close()
	fromWrite.Close()
	if err != nil {
		toWrite.Close()
		fromRead.Close()
		return fail(err)
	}
	c := &commandConn{in: toWrite, out: fromRead, exited: make(chan struct{})}
	go func() {
		c.status = cmd.Wait()
		close(c.exited)
	}()
	end := func() {
		c.Close()
		// Its input is closed: most commands leave by themselves. Others are asked, then made to.
		for _, sig := range []syscall.Signal{syscall.SIGHUP, syscall.SIGKILL} {
			select {
			case <-c.exited:
				return
			case <-time.After(500 * time.Millisecond):
			}
			if cmd.SysProcAttr != nil {
				syscall.Kill(-cmd.Process.Pid, sig)
			} else {
				cmd.Process.Signal(sig)
			}
		}
	}
	cause := func() string {
		select {
		case <-c.exited:
		case <-time.After(200 * time.Millisecond):
			return ""
		}
		text := "ProxyCommand ended"
		if c.status != nil {
			text = "ProxyCommand: " + c.status.Error()
		}
		if s := strings.TrimSpace(ask.Printable(said.String())); s != "" {
			text += ": " + s
		}
		return text
	}
	return &route{Conn: c, end: end, cause: cause}, nil
}

// commandConn is a net.Conn over the pipes of a command.
type commandConn struct {
	in     *os.File
	out    *os.File
	once   sync.Once
	exited chan struct{}
	status error // after exited
}

type commandAddr struct{}

func (commandAddr) Network() string { return "proxycommand" }
func (commandAddr) String() string  { return "proxycommand" }

func (c *commandConn) Read(b []byte) (int, error)  { return c.out.Read(b) }
func (c *commandConn) Write(b []byte) (int, error) { return c.in.Write(b) }
func (c *commandConn) LocalAddr() net.Addr         { return commandAddr{} }
func (c *commandConn) RemoteAddr() net.Addr        { return commandAddr{} }
func (c *commandConn) Close() error {
	c.once.Do(func() {
		c.in.Close()
		c.out.Close()
	})
	return nil
}
func (c *commandConn) SetDeadline(t time.Time) error {
	return errors.Join(c.in.SetDeadline(t), c.out.SetDeadline(t))
}
func (c *commandConn) SetReadDeadline(t time.Time) error  { return c.out.SetReadDeadline(t) }
func (c *commandConn) SetWriteDeadline(t time.Time) error { return c.in.SetWriteDeadline(t) }
