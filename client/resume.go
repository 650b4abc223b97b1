package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"syscall"

	"golang.org/x/term"

	"isr/client/remote/ask"
	"isr/client/vmm"
	"isr/store/parcel"
)

// ResumeOptions are what a resume may be asked for.
type ResumeOptions struct {
	VMM        string            // "" = the parcel's
	Options    map[string]string // for the driver
	Fullscreen bool
	Offline    bool // never touch the network
	Rollback   int
	Watcher    Watcher `json:"-"` // or nil
}

// errand is what the keeper is told at its start, over a socket: it never
// reaches a disk, a command line or an environment.
type errand struct {
	Options
	Checkout    string // its directory
	Key         []byte // the checkout's key
	Credentials *ask.Credentials
	Resume      ResumeOptions
	Taken       bool // the terminal: see Watcher
}

// event is what the keeper tells the isr in front of it.
type event struct {
	Say      string
	Warn     bool
	Detail   bool
	Progress *progressEvent
	Mount    string // the parcel is shown there now
	Done     bool
	Kind     parcel.Kind // with Done: of the error, 0 if there was none
	Hint     string
}

type progressEvent struct {
	ID          int
	What, Unit  string
	Done, Total int64
	End         bool
}

// Resume checks a parcel out if it must and runs it, until its guest powers
// off or it is suspended: by an interrupt, by its window closing, or by this
// process losing its terminal. The parcel is run by a keeper, which outlives
// this process long enough to suspend it.
func (c *Client) Resume(ctx context.Context, name string, o ResumeOptions) error {
	co, err := c.toResume(ctx, name, o)
	if err != nil {
		return err
	}
	if err := co.seize(); err != nil {
		return err
	}
	// The keeper takes the lock over; whoever comes between is an error there.
	err = co.prepare(ctx, &o)
	co.letGo()
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return err
	}
	return c.keep(co, o)
}

func (c *Client) toResume(ctx context.Context, name string, o ResumeOptions) (*Checkout, error) {
	if o.Offline {
		co, err := c.Find(name)
		if err != nil {
			return nil, err
		}
		if co.State.Status == Acquiring || co.State.Status == Releasing {
			return nil, parcel.NewError(parcel.Unreachable, "parcel %s: not wholly here", name).
				WithHint("connect and run isr checkout -d %s", name)
		}
		return co, nil
	}
	return c.Checkout(ctx, name, CheckoutOptions{Rollback: o.Rollback, Run: true, VMM: o.VMM, Options: o.Options})
}

// vmmOf is the driver that a parcel is run with if no other is asked for.
func vmmOf(cfg *parcel.Config) string {
	if cfg.VMM == "" {
		return "qemu"
	}
	return cfg.VMM
}

// prepare does what must be known to work before a keeper starts.
func (co *Checkout) prepare(ctx context.Context, o *ResumeOptions) error {
	if co.State.Status == Acquiring || co.State.Status == Releasing {
		return parcel.NewError(parcel.Busy, "parcel %s: being checked out or in by another isr", co.State.Parcel)
	}
	if err := co.recover(ctx); err != nil {
		return err
	}
	if err := co.unlock(ctx); err != nil {
		return err
	}
	if p := co.client.Compression; co.client.CompressionAsked && p != co.State.Compression {
		// What this run changes is sealed by a later command.
		co.State.Compression = p
		if err := co.save(); err != nil {
			return err
		}
	}
	if o.VMM == "" {
		o.VMM = vmmOf(co.cfg)
	}
	if err := co.client.canRun(ctx, co.machine(runtime{}, o), o.VMM); err != nil {
		return err
	}
	if o.Offline {
		return co.wantHoarded(ctx)
	}
	srv, err := co.client.server(co.State.Server, co.State.User)
	if err != nil {
		return err
	}
	defer co.noteTraffic(srv)
	return co.checkServer(ctx, srv)
}

// machine is what a driver is told of the parcel. o may be nil.
func (co *Checkout) machine(rt runtime, o *ResumeOptions) *vmm.Machine {
	st := &co.State
	m := &vmm.Machine{Name: st.User + "/" + st.Parcel, UUID: st.UUID, CfgDir: rt.cfg, RunDir: rt.run,
		CacheDir: co.client.cacheDir(), Suspended: st.Memory, Requires: st.Requires,
		Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr, Say: co.client.UI.Say}
	if co.cfg != nil {
		m.DiskSize, m.MemorySize = co.cfg.DiskSize, co.cfg.MemSize
	}
	if rt.mount != "" {
		m.Disk, m.Memory = rt.mount+"/disk", rt.mount+"/memory"
	}
	if o != nil {
		m.Options, m.Fullscreen = co.client.vmmOptions(o.VMM, o.Options), o.Fullscreen
	}
	return m
}

// vmmOptions is the options for a driver, with the program that the
// configuration has for it.
func (c *Client) vmmOptions(driver string, options map[string]string) map[string]string {
	key := "program"
	if driver == "shell" {
		key = "command" // a line, not a file
	}
	if program := c.Commands[driver]; program != "" && options[key] == "" {
		options = maps.Clone(options)
		if options == nil {
			options = make(map[string]string)
		}
		options[key] = program
	}
	return options
}

// keep starts the keeper and stands in front of it: shows what it says, and
// passes on the wish to suspend. If this process dies the keeper sees the
// socket close and suspends.
func (c *Client) keep(co *Checkout, o ResumeOptions) error {
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	here, there := os.NewFile(uintptr(fds[0]), "keeper"), os.NewFile(uintptr(fds[1]), "keeper")
	conn, err := net.FileConn(here)
	here.Close()
	if err != nil {
		there.Close()
		return err
	}
	defer conn.Close()
	cmd := exec.Command(c.Program, "keeper", co.State.Parcel)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	taken := o.Watcher != nil && o.Watcher.Start(o.VMM)
	if taken {
		cmd.Stdin, cmd.Stdout, cmd.Stderr = nil, nil, nil
		// Where it says why, if it must die.
		if log, err := openLog(co.logFile()); err == nil {
			defer log.Close()
			cmd.Stderr = log
		}
	}
	cmd.ExtraFiles = []*os.File{there}
	// A group of its own: ctrl-c reaches us, and we ask it to suspend.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	signals := make(chan os.Signal, 4)
	NotifyEnd(signals)
	defer signal.Stop(signals)
	if err := cmd.Start(); err != nil {
		there.Close()
		return err
	}
	c.UI.Detail("parcel %s: keeper started, process %d", co.State.Parcel, cmd.Process.Pid)
	there.Close()
	defer reclaimTerminal()()
	defer cmd.Wait()
	enc := json.NewEncoder(conn)
	e := errand{Options: c.Options, Checkout: co.Dir, Key: co.key, Credentials: c.creds, Resume: o, Taken: taken}
	e.Server, e.User, e.Batch = co.State.Server, co.State.User, true
	if err := enc.Encode(e); err != nil {
		return fmt.Errorf("keeper: %w", err)
	}
	ended := make(chan struct{})
	defer close(ended)
	go func() {
		for {
			select {
			case <-signals:
				enc.Encode(command{Suspend: true})
			case <-ended:
				return
			}
		}
	}()
	return c.follow(json.NewDecoder(conn), co, o.Watcher)
}

// NotifyEnd has c told of the signals that ask a command to end, but for those
// that were ignored when this process was started.
func NotifyEnd(c chan<- os.Signal) {
	for _, sig := range []os.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP} {
		if !signal.Ignored(sig) {
			signal.Notify(c, sig)
		}
	}
}

// follow shows the keeper's events until its last. w may be nil.
func (c *Client) follow(dec *json.Decoder, co *Checkout, w Watcher) error {
	shown := make(map[int]Progress)
	for {
		var e event
		if err := dec.Decode(&e); err != nil {
			if errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) {
				return parcel.NewError(parcel.Failed, "parcel %s: its keeper died", co.State.Parcel).
					WithHint("run isr resume %s again: what the guest flushed is kept", co.State.Parcel)
			}
			return fmt.Errorf("keeper: %w", err)
		}
		switch {
		case e.Progress != nil:
			p := shown[e.Progress.ID]
			if p == nil {
				p = c.UI.Progress(e.Progress.What, e.Progress.Unit, e.Progress.Total)
				shown[e.Progress.ID] = p
			}
			p.Set(e.Progress.Done, e.Progress.Total)
			if e.Progress.End {
				p.Done()
				delete(shown, e.Progress.ID)
			}
		case e.Mount != "":
			if w != nil {
				w.Running(e.Mount)
			}
		case e.Done && e.Kind == 0:
			return nil
		case e.Done:
			return &parcel.Error{Kind: e.Kind, Msg: e.Say, Hint: e.Hint}
		case e.Detail:
			c.UI.Detail("%s", e.Say)
		case e.Warn:
			c.UI.Warn("%s", e.Say)
		default:
			c.UI.Say("%s", e.Say)
		}
	}
}

// reclaimTerminal gives the terminal back to this process's group after a
// shell in the keeper has had it.
func reclaimTerminal() func() {
	fd := int(os.Stdin.Fd())
	if !term.IsTerminal(fd) {
		return func() {}
	}
	return func() {
		// We are in the background still, and would be stopped for it.
		signal.Ignore(syscall.SIGTTOU)
		defer signal.Reset(syscall.SIGTTOU)
		foreground(fd)
	}
}
