package client

import (
	"path/filepath"

	"golang.org/x/sys/unix"
)

// foreground makes this process's group the terminal's again.
func foreground(fd int) { unix.IoctlSetPointerInt(fd, unix.TIOCSPGRP, unix.Getpgrp()) }

// cacheDir is where drivers keep what they found out about this host.
func (c *Client) cacheDir() string { return filepath.Join(c.Dir, "log") }
