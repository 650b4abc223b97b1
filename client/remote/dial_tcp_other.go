//go:build !linux

package remote

import "net"

func acknowledger(net.Conn) func() { return nil }
