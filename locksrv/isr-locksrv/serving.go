package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"reflect"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/activation"
	"github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/crypto/ssh"
	"golang.org/x/term"

	"isr/locksrv"
	"isr/locksrv/metrics"
	"isr/store/parcel"
)

// defaultListen is where serve listens when nobody says.
const defaultListen = ":2222"

type serve struct {
	settings
	Config string `help:"File with more settings, a line each. Default: ${conf}, if it is about this realm." placeholder:"FILE" type:"path"`
}

// load is the settings as of now: options, then the file's.
func (c *serve) load(root string) (settings, error) {
	if err := c.settings.check(); err != nil {
		return settings{}, err
	}
	file, err := readSettings(cmp.Or(c.Config, confFile), root, c.Config != "")
	if err != nil {
		return settings{}, err
	}
	s := c.settings.or(file)
	return s, s.check()
}

// serving is a run of serve.
type serving struct {
	*serve
	root  string
	began settings // what was said at the start
	level slog.LevelVar
	log   *slog.Logger
	d     *locksrv.Daemon
}

func (c *serve) Run(ctx context.Context, e *env) error {
	// A hangup asks for new settings, and not to end; on a terminal it is the
	// terminal's, which is gone.
	hangup := make(chan os.Signal, 1)
	if !term.IsTerminal(int(e.stderr.Fd())) {
		signal.Reset(syscall.SIGHUP)
		signal.Notify(hangup, syscall.SIGHUP)
		defer signal.Stop(hangup)
	}

	if err := c.settings.check(); err != nil {
		return err // before a realm is made
	}
	st, root, err := e.openOrInit()
	if err != nil {
		return err
	}
	v := &serving{serve: c, root: root}
	if v.began, err = c.load(root); err != nil {
		return err
	}
	v.log = newLog(e.stderr, v.began.Log, &v.level)
	service := locksrv.NewService(st)
	v.d = &locksrv.Daemon{Service: service, Log: v.log}
	if err := v.apply(v.began); err != nil {
		return err
	}
	listeners, err := v.listen()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if v.began.Metrics != "" {
		m := metrics.New(st, service.Events, programVersion())
		service.Meter = m
		addr, err := v.show(ctx, m.Handler(v.log, v.healthy))
		if err != nil {
			return err
		}
		v.log.Info("metrics", "at", "http://"+addr.String()+"/metrics")
	}
	// What users do here would part the mirror from its realm for good.
	if of, err := standbyText(root); err != nil {
		v.log.Warn("standby", "error", err)
	} else if of != "" {
		v.log.Warn("this is a standby: remove its file to make it the realm", "file", filepath.Join(root, "standby"), "standby", of)
	}
	for _, key := range v.d.HostKeys {
		v.log.Info("host key", "type", key.PublicKey().Type(), "fingerprint", ssh.FingerprintSHA256(key.PublicKey()))
	}
	for _, ln := range listeners {
		fmt.Fprintf(e.stdout, "listening on %s\n", ln.Addr())
	}
	go v.reloads(ctx, hangup)
	go v.watchdog(ctx)
	told := make(chan struct{})
	context.AfterFunc(ctx, func() {
		defer close(told)
		tell(v.log, daemon.SdNotifyStopping)
	})
	tell(v.log, daemon.SdNotifyReady)
	err = v.d.Serve(ctx, listeners...)
	cancel()
	<-told
	return err
}

// tell tells the service manager, if there is one.
func tell(log *slog.Logger, state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		log.Warn("service manager", "error", err)
	}
}

// listen opens the daemon's addresses; if the service manager handed over
// sockets, those are meant.
func (v *serving) listen() ([]net.Listener, error) {
	listeners, err := activation.Listeners()
	if err != nil {
		return nil, err
	}
	for i, ln := range listeners {
		if ln == nil {
			return nil, parcel.NewError(parcel.Usage, "socket %d of the service manager: want one that streams and listens", i)
		}
	}
	if len(listeners) > 0 {
		if len(v.began.Listen) > 0 {
			v.log.Warn("the sockets are the service manager's: --listen is not heeded")
		}
		return listeners, nil
	}
	addrs := v.began.Listen
	if len(addrs) == 0 {
		addrs = []string{defaultListen}
	}
	for _, addr := range addrs {
		ln, err := net.Listen("tcp", addr)
		if err != nil {
			for _, ln := range listeners {
				ln.Close()
			}
			return nil, listenError(addr, err)
		}
		listeners = append(listeners, ln)
	}
	return listeners, nil
}

// listenError says what to do about the two that are common.
func listenError(addr string, err error) error {
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return parcel.NewError(parcel.Failed, "listen at %s: another program does already", addr)
	case errors.Is(err, syscall.EACCES):
		return parcel.NewError(parcel.Denied, "listen at %s: permission denied", addr).
			WithHint("ports below 1024 are root's: have the service manager open it, with a .socket unit")
	}
	return err
}

// show answers HTTP at the metrics' address until ctx is done.
func (v *serving) show(ctx context.Context, h http.Handler) (net.Addr, error) {
	ln, err := net.Listen("tcp", v.began.Metrics)
	if err != nil {
		return nil, listenError(v.began.Metrics, err)
	}
	s := &http.Server{Handler: h, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second,
		WriteTimeout: 30 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 16 << 10,
		ErrorLog: slog.NewLogLogger(v.log.Handler(), slog.LevelWarn)}
	context.AfterFunc(ctx, func() { s.Close() })
	go func() {
		if err := s.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
			v.log.Error("metrics", "error", err)
		}
	}()
	return ln.Addr(), nil
}

// healthy says what keeps the server from serving.
func (v *serving) healthy() error {
	if v.d.Stopping() {
		return errors.New("stopping")
	}
	users, err := os.Open(filepath.Join(v.root, "users"))
	if err != nil {
		return err
	}
	defer users.Close()
	if _, err := users.Readdirnames(1); err != nil && err != io.EOF {
		return err
	}
	return nil
}

// apply makes s the daemon's settings.
func (v *serving) apply(s settings) error {
	keys, err := locksrv.HostKeys(filepath.Join(v.root, "hostkeys"))
	if err != nil {
		return err
	}
	level, err := logLevel(s.LogLevel)
	if err != nil {
		return err
	}
	now := locksrv.Settings{HostKeys: keys, Limits: s.limits(), HandshakeTimeout: s.HandshakeTime,
		LoginTimeout: s.LoginTime, KeepAlive: s.KeepAlive, Grace: s.StopTime}
	if v.d.Settings.HostKeys == nil {
		v.d.Settings = now // it does not serve yet
	} else if err := v.d.Reconfigure(now); err != nil {
		return err
	}
	v.level.Set(level)
	return nil
}

// reloads reads the settings anew at each hangup. If they cannot be read, or
// make no sense, those that there are remain.
func (v *serving) reloads(ctx context.Context, hangup <-chan os.Signal) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-hangup:
		}
		tell(v.log, daemon.SdNotifyReloading+"\n"+daemon.SdNotifyMonotonicUsec())
		s, err := v.load(v.root)
		if err == nil {
			err = v.apply(s)
		}
		if err != nil {
			v.log.Error("settings are not changed", "error", err)
		} else {
			for _, fixed := range []struct {
				name     string
				was, now any
			}{{"listen", v.began.Listen, s.Listen}, {"log", v.began.Log, s.Log}, {"metrics", v.began.Metrics, s.Metrics}} {
				if !reflect.DeepEqual(fixed.was, fixed.now) {
					v.log.Warn("setting waits for a restart", "name", fixed.name)
				}
			}
			v.log.Info("settings read")
		}
		tell(v.log, daemon.SdNotifyReady)
	}
}

// watchdog tells the service manager that the server lives, if it wants to
// know, as long as the realm can be read: a disk that hangs keeps it silent.
func (v *serving) watchdog(ctx context.Context) {
	every, err := daemon.SdWatchdogEnabled(true)
	if err != nil || every == 0 {
		return
	}
	for {
		if err := v.healthy(); err == nil {
			tell(v.log, daemon.SdNotifyWatchdog)
		} else if !v.d.Stopping() {
			v.log.Error("realm cannot be read", "error", err)
		}
		select {
		case <-time.After(every / 3):
		case <-ctx.Done():
			return
		}
	}
}
