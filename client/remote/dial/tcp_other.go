//go:build !linux

package dial

import "net"

func acknowledger(net.Conn) func() { return nil }
