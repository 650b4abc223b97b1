package main

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/alecthomas/kong"

	"isr/locksrv"
	"isr/store/parcel"
)

// settings are how serve serves. Each may be an option, or a line of the
// administrator's configuration whose key is the option in capitals, with _
// for -: --max-per-user 8 is MAX_PER_USER:=8. Zero is the default.
type settings struct {
	Listen           []string      `help:"Where to listen; may come more than once. Port 0 takes any that is free. Default: :2222." placeholder:"ADDR:PORT" sep:"none"`
	MaxConnections   int           `help:"Connections at once; default 1024." placeholder:"N"`
	MaxPerAddress    int           `help:"Connections of one address at once; default 128." placeholder:"N"`
	MaxPerUser       int           `help:"Sessions of one user at once; default 256." placeholder:"N"`
	MaxPerConnection int           `help:"Sessions of one connection at once; default 64." placeholder:"N"`
	HandshakeTime    time.Duration `help:"How long a client may take to say who it is; default 20s." placeholder:"TIME"`
	LoginTime        time.Duration `help:"How long it may take to prove it: somebody may be typing; default 2m." placeholder:"TIME"`
	KeepAlive        time.Duration `help:"How often a silent client is asked whether it lives; default 15s." placeholder:"TIME"`
	StopTime         time.Duration `help:"How long to wait at the end for what changes the store; default 30s." placeholder:"TIME"`
	Log              string        `help:"Form of the log: text, json or journal. Default: journal if that reads it, else text." placeholder:"FORM"`
	LogLevel         string        `help:"What to log: debug, info, warn or error; default info." placeholder:"LEVEL"`
	Metrics          string        `help:"Where to show Prometheus metrics, on this host only." placeholder:"ADDR:PORT"`
	MetricsRemote    bool          `help:"Let --metrics be an address that other hosts reach."`
}

// or is s, and where s says nothing, t.
func (s settings) or(t settings) settings {
	if len(s.Listen) == 0 {
		s.Listen = t.Listen
	}
	s.MaxConnections = cmp.Or(s.MaxConnections, t.MaxConnections)
	s.MaxPerAddress = cmp.Or(s.MaxPerAddress, t.MaxPerAddress)
	s.MaxPerUser = cmp.Or(s.MaxPerUser, t.MaxPerUser)
	s.MaxPerConnection = cmp.Or(s.MaxPerConnection, t.MaxPerConnection)
	s.HandshakeTime = cmp.Or(s.HandshakeTime, t.HandshakeTime)
	s.LoginTime = cmp.Or(s.LoginTime, t.LoginTime)
	s.KeepAlive = cmp.Or(s.KeepAlive, t.KeepAlive)
	s.StopTime = cmp.Or(s.StopTime, t.StopTime)
	s.Log = cmp.Or(s.Log, t.Log)
	s.LogLevel = cmp.Or(s.LogLevel, t.LogLevel)
	s.Metrics = cmp.Or(s.Metrics, t.Metrics)
	s.MetricsRemote = s.MetricsRemote || t.MetricsRemote
	return s
}

// check refuses what makes no sense.
func (s settings) check() error {
	for _, addr := range s.Listen {
		if _, _, err := net.SplitHostPort(addr); err != nil {
			return parcel.NewError(parcel.Usage, "--listen %s: want ADDR:PORT", addr)
		}
	}
	for _, n := range []struct {
		name  string
		value int
	}{{"max-connections", s.MaxConnections}, {"max-per-address", s.MaxPerAddress}, {"max-per-user", s.MaxPerUser}, {"max-per-connection", s.MaxPerConnection}} {
		if n.value < 0 {
			return parcel.NewError(parcel.Usage, "--%s %d: want a number from 1", n.name, n.value)
		}
	}
	for _, d := range []struct {
		name  string
		value time.Duration
	}{{"handshake-time", s.HandshakeTime}, {"login-time", s.LoginTime}, {"keep-alive", s.KeepAlive}, {"stop-time", s.StopTime}} {
		if d.value < 0 || d.value > 0 && d.value < time.Millisecond || d.value > 24*time.Hour {
			return parcel.NewError(parcel.Usage, "--%s %s: want a time from 1ms to 24h", d.name, d.value)
		}
	}
	if _, err := logLevel(s.LogLevel); err != nil {
		return err
	}
	if err := checkLogForm(s.Log); err != nil {
		return err
	}
	if s.Metrics != "" {
		return checkMetrics(s.Metrics, s.MetricsRemote)
	}
	return nil
}

// checkMetrics refuses an address that others reach, unless they may: what is
// shown there asks nobody who he is.
func checkMetrics(addr string, remote bool) error {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return parcel.NewError(parcel.Usage, "--metrics %s: want ADDR:PORT", addr)
	}
	if ip, err := netip.ParseAddr(host); err == nil && ip.Unmap().IsLoopback() || host == "localhost" || remote {
		return nil
	}
	return parcel.NewError(parcel.Usage, "--metrics %s: others reach that address", addr).
		WithHint("127.0.0.1:9722 is this host's own; --metrics-remote allows it")
}

// limits are those of the daemon.
func (s settings) limits() locksrv.Limits {
	return locksrv.Limits{Connections: s.MaxConnections, PerAddress: s.MaxPerAddress, PerUser: s.MaxPerUser, PerConn: s.MaxPerConnection}
}

// parseSettings reads lines of the administrator's configuration; ROOT says
// whose they are. The text is read by the options' own parser, so that the
// two cannot differ.
func parseSettings(text []byte) (s settings, root string, err error) {
	r, err := parcel.ParseRecord(text)
	if err != nil {
		return s, "", err
	}
	parser, err := kong.New(&s, kong.Name("settings"), kong.NoDefaultHelp(), kong.Exit(func(int) {}))
	if err != nil {
		return s, "", err
	}
	var args []string
	for _, f := range r {
		if f.Key == "ROOT" {
			continue
		}
		name := strings.ReplaceAll(strings.ToLower(f.Key), "_", "-")
		if !slices.ContainsFunc(parser.Model.Flags, func(o *kong.Flag) bool { return o.Name == name }) {
			return s, "", fmt.Errorf("%s: no such setting", f.Key)
		}
		args = append(args, "--"+name+"="+f.Value)
	}
	if _, err := parser.Parse(args); err != nil {
		return s, "", errors.New(strings.TrimSpace(err.Error()))
	}
	return s, r.Get("ROOT"), s.check()
}

// readSettings reads the lines of a configuration that are for the realm in
// root: all of them if the file was named for it, must, and otherwise if it is
// the realm that the file names: by ROOT, or the host's own.
func readSettings(conf, root string, must bool) (settings, error) {
	text, err := os.ReadFile(conf)
	if errors.Is(err, fs.ErrNotExist) && !must {
		return settings{}, nil
	}
	if err != nil {
		return settings{}, err
	}
	s, its, err := parseSettings(text)
	if err != nil {
		return settings{}, parcel.NewError(parcel.Usage, "%s: %v", conf, err)
	}
	if !must && filepath.Clean(cmp.Or(its, hostRoot)) != root {
		return settings{}, nil
	}
	return s, nil
}
