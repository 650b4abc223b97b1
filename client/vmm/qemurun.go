package vmm

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// Tests have less of it.
var (
	patience = 3 * time.Second // before the user is told what is being waited for
	retryLow = 2 * time.Second // after an error of the image, the machine is started again
)

const (
	retryHigh  = 10 * time.Second
	rebootTime = 5 * time.Second // within which resets are one reboot
)

// noPagemap makes tests do without the kernel's word on which pages were changed.
var noPagemap = false

// instance is a running QEMU.
type instance struct {
	m        *Machine
	p        *plan
	c        *child
	q        *qmp
	stderr   *tail
	resumed  bool   // from a memory image
	shutdown string // reason of a SHUTDOWN event, "" before
	byGuest  bool   // it was the guest's doing
	ioError  bool   // the machine stands still because of the disk image
	stopped  bool   // a STOP came that we have not looked at
	reboots  int
	reset    time.Time // the last one
}

// Run starts the machine and stays with it until it is off, suspended, or dead.
func (d *QEMU) Run(ctx context.Context, m *Machine, suspend <-chan struct{}) (Outcome, error) {
	p, info, err := d.plan(ctx, m)
	if err == nil {
		err = info.Err()
	}
	if err != nil {
		return Outcome{}, err
	}
	if err := checkImages(m, p); err != nil {
		return Outcome{}, err
	}
	if path, is := strings.CutPrefix(p.serial, "file:"); is {
		// QEMU would make it as the umask has it; what a guest says is private.
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
		if err != nil {
			return Outcome{}, err
		}
		f.Close()
	}
	for _, n := range p.notices {
		m.say("%s", n)
	}
	if err := d.Cleanup(ctx, m); err != nil {
		return Outcome{}, err
	}
	g := &instance{m: m, p: p, stderr: &tail{}, resumed: m.Suspended == "qemu"}
	defer g.end()

	// Until the machine runs, a request to suspend has nothing to wait for: a
	// start that hangs, for memory that does not arrive, is simply undone.
	startCtx, started := context.WithCancel(ctx)
	defer started()
	go func() {
		select {
		case <-suspend:
			started()
		case <-startCtx.Done():
		}
	}()
	err = g.prepare(startCtx)
	if isClosed(suspend) && ctx.Err() == nil {
		if g.resumed {
			g.end()
			if err := m.Pages.BeginSave(); err != nil { // of no page: all there was is still there
				return Outcome{}, fmt.Errorf("%w: %w", ErrNotSaved, err)
			}
		}
		return Outcome{Suspended: g.resumed, Requires: m.Requires}, nil
	}
	var out Outcome
	if err == nil {
		out, err = g.live(ctx, suspend)
	}
	if ctx.Err() != nil && err != nil {
		err = ctx.Err()
	}
	g.end()
	out.Accel, out.Reboots = p.accel, g.reboots
	if g.c != nil {
		out.CPU = g.c.cpu()
	}
	return out, err
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// checkImages makes sure that the files QEMU is pointed at are the ones m speaks of.
func checkImages(m *Machine, p *plan) error {
	if m.Pages == nil {
		return errors.New("qemu: no memory image to save to")
	}
	if p.memory == 0 {
		return fmt.Errorf("qemu: memory of 0 bytes")
	}
	for _, image := range []struct {
		path string
		size int64
	}{{m.Disk, m.DiskSize}, {m.Memory, p.memory}} {
		st, err := os.Stat(image.path)
		if err != nil {
			return err
		}
		if st.Mode().IsRegular() && st.Size() != image.size {
			return fmt.Errorf("%s has %d bytes, expected %d", image.path, st.Size(), image.size)
		}
	}
	return nil
}

// newGUID is a random version 4 UUID.
func newGUID() string {
	var b [16]byte
	rand.Read(b[:])
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// prepare starts QEMU and, if there is one, loads the device state. Nothing runs yet.
func (g *instance) prepare(ctx context.Context) error {
	t := time.AfterFunc(patience, func() { g.m.say("waiting for memory the machine needs to start") })
	defer t.Stop()
	args := arguments(g.m, g.p, newGUID(), g.resumed)
	var err error
	if g.c, g.q, err = spawn(ctx, g.p.program, args, g.stderr); err != nil {
		return err
	}
	if err := writePidFile(filepath.Join(g.m.RunDir, pidName), g.c.cmd.Process.Pid); err != nil {
		return err
	}
	if g.p.net == "none" {
		if err := g.q.execute(ctx, "set_link", map[string]any{"name": "nic0", "up": false}, nil); err != nil {
			return err
		}
	}
	if g.resumed {
		return g.load(ctx)
	}
	return nil
}

// end kills what is left of QEMU.
func (g *instance) end() {
	if g.c != nil {
		g.c.kill()
		g.q.close()
		os.Remove(filepath.Join(g.m.RunDir, pidName))
	}
}

// patiently runs one QMP command, and says what for if it takes long.
func (g *instance) patiently(ctx context.Context, command string, args, result any, what string) error {
	t := time.AfterFunc(patience, func() { g.m.say("%s", what) })
	defer t.Stop()
	err := g.q.execute(ctx, command, args, result)
	if errors.Is(err, errQMPDead) {
		return g.dead(ctx)
	}
	return err
}

// dead waits for the end of a QEMU that closed its socket, and says how it ended.
func (g *instance) dead(ctx context.Context) error {
	select {
	case <-g.c.done:
	case <-ctx.Done():
		return ctx.Err()
	}
	if g.takeAll(); g.shutdown != "" {
		return fmt.Errorf("%w: QEMU was told to quit (%s)", ErrNotSaved, g.shutdown)
	}
	return crashed(g.c, g.stderr)
}

// live is a run from the machine's start to its end.
func (g *instance) live(ctx context.Context, suspend <-chan struct{}) (Outcome, error) {
	window, closed, err := g.openWindow(ctx)
	if err != nil {
		return Outcome{}, err
	}
	defer window()
	if err := g.patiently(ctx, "cont", nil, nil, "waiting for the machine to start"); err != nil {
		return Outcome{}, err
	}
	// From here on the machine changes its disk, and the old device state fits it no more.
	if err := (&QEMU{}).Poweroff(ctx, g.m); err != nil {
		return Outcome{}, err
	}

	g.m.started()
	var retry <-chan time.Time
	wait := retryLow
	for {
		select {
		case <-ctx.Done():
			return Outcome{}, ctx.Err()
		case <-g.q.dead:
			return Outcome{}, g.dead(ctx)
		case <-suspend:
			return g.suspend(ctx)
		case <-closed:
			g.m.say("the window was closed: suspending")
			return g.suspend(ctx)
		case <-retry:
			retry = nil
			if err := g.q.execute(ctx, "cont", nil, nil); err != nil {
				return Outcome{}, err
			}
			g.ioError = false
		case <-g.q.wake:
			g.takeAll()
			if g.shutdown != "" && g.byGuest {
				return g.off(ctx)
			}
			if g.stopped {
				g.stopped = false
				state, err := g.status(ctx)
				if err != nil {
					return Outcome{}, err
				}
				switch state {
				case "internal-error":
					return Outcome{}, fmt.Errorf("qemu: the processor stopped with an internal error (under %s): %s", g.p.accel, g.stderr.last(3))
				case "io-error":
					if retry == nil {
						retry = time.After(wait)
						wait = min(2*wait, retryHigh)
					}
				}
			}
		}
	}
}

// takeAll works off events.
func (g *instance) takeAll() {
	for {
		e, ok := g.q.take()
		if !ok {
			return
		}
		switch e.Name {
		case "SHUTDOWN":
			var d struct {
				Guest  bool
				Reason string
			}
			json.Unmarshal(e.Data, &d)
			g.shutdown, g.byGuest = d.Reason, d.Guest
		case "RESET":
			var d struct{ Guest bool }
			if json.Unmarshal(e.Data, &d); d.Guest {
				// The firmware makes a reset harder by some more.
				if now := time.Now(); now.Sub(g.reset) > rebootTime {
					g.reboots++
				}
				g.reset = time.Now()
			}
		case "STOP":
			g.stopped = true
		case "BLOCK_IO_ERROR":
			var d struct{ Operation, Reason string }
			json.Unmarshal(e.Data, &d)
			if !g.ioError {
				g.m.say("the machine stands still: its disk image cannot be used (%s: %s); trying again until it can", d.Operation, d.Reason)
			}
			g.ioError = true
		}
	}
}

func (g *instance) status(ctx context.Context) (string, error) {
	var s struct{ Status string }
	err := g.patiently(ctx, "query-status", nil, &s, "waiting for QEMU")
	return s.Status, err
}

// off ends a QEMU whose guest has powered itself off.
func (g *instance) off(ctx context.Context) (Outcome, error) {
	if err := g.quit(ctx); err != nil {
		return Outcome{}, err
	}
	return Outcome{Requires: g.p.requires()}, nil
}

func (g *instance) quit(ctx context.Context) error {
	t := time.AfterFunc(patience, func() { g.m.say("waiting for the machine's last writes to its disk") })
	defer t.Stop()
	if err := g.q.execute(ctx, "quit", nil, nil); err != nil && !errors.Is(err, errQMPDead) {
		return err
	}
	select {
	case <-g.c.done:
	case <-ctx.Done():
		return ctx.Err()
	}
	if st := g.c.status(); st != 0 {
		return crashed(g.c, g.stderr)
	}
	return nil
}

// migrationSettings: events instead of polling; no throttling, and no rounds of
// sending again, because the machine stands still.
func (g *instance) migrationSettings(ctx context.Context) error {
	err := g.q.execute(ctx, "migrate-set-capabilities", map[string]any{
		"capabilities": []map[string]any{{"capability": "events", "state": true}},
	}, nil)
	if err == nil {
		err = g.q.execute(ctx, "migrate-set-parameters", map[string]any{
			"max-bandwidth": int64(1) << 40, "downtime-limit": 2000000,
		}, nil)
	}
	return err
}

// migrated waits for a migration, out or in, to end.
func (g *instance) migrated(ctx context.Context) error {
	for {
		for {
			e, ok := g.q.take()
			if !ok {
				break
			}
			if e.Name != "MIGRATION" {
				continue
			}
			var d struct{ Status string }
			json.Unmarshal(e.Data, &d)
			switch d.Status {
			case "completed":
				return nil
			case "failed", "cancelled":
				var s struct {
					Desc string `json:"error-desc"`
				}
				g.q.execute(ctx, "query-migrate", nil, &s)
				if s.Desc == "" {
					s.Desc = g.stderr.last(2)
				}
				return fmt.Errorf("qemu: migration %s: %s", d.Status, s.Desc)
			}
		}
		select {
		case <-g.q.wake:
		case <-g.q.dead:
			return g.dead(ctx)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// load feeds the kept device state to a QEMU that waits for it.
func (g *instance) load(ctx context.Context) error {
	f, err := os.Open(filepath.Join(g.m.CfgDir, stateName))
	if err != nil {
		return err
	}
	defer f.Close()
	if err := g.migrationSettings(ctx); err != nil {
		return err
	}
	ours, theirs, err := socketPair()
	if err != nil {
		return err
	}
	defer ours.Close()
	err = g.q.pass(ctx, "state", theirs)
	theirs.Close()
	if err != nil {
		return err
	}
	if err := g.q.execute(ctx, "migrate-incoming", map[string]string{"uri": "fd:state"}, nil); err != nil {
		return err
	}
	sent := make(chan error, 1)
	go func() {
		_, err := io.Copy(ours, f)
		if err == nil {
			err = ours.CloseWrite()
		}
		sent <- err
	}()
	if err := g.migrated(ctx); err != nil {
		return fmt.Errorf("device state of %s: %w", g.m.Name, err)
	}
	return <-sent
}

// suspend stops the machine, saves it and ends QEMU.
func (g *instance) suspend(ctx context.Context) (Outcome, error) {
	if err := g.patiently(ctx, "stop", nil, nil, "waiting for the machine to stop: it waits itself for a block of its disk or memory"); err != nil {
		return Outcome{}, err
	}
	state, err := g.status(ctx)
	if err != nil {
		return Outcome{}, err
	}
	switch state {
	case "shutdown": // it powered itself off before it could be suspended
		return g.off(ctx)
	case "internal-error":
		return Outcome{}, fmt.Errorf("%w: the processor stopped with an internal error: %s", ErrNotSaved, g.stderr.last(3))
	}
	if err := g.migrationSettings(ctx); err != nil {
		return Outcome{}, err
	}
	var changed pageSet // nil: go by what was asked for; more is written, nothing is missed
	if !noPagemap {
		changed, _ = changedPages(g.c.cmd.Process.Pid, g.m.Memory, g.p.memory)
	}
	if err := g.m.Pages.BeginSave(); err != nil {
		return Outcome{}, fmt.Errorf("%w: %w", ErrNotSaved, err)
	}
	if err := g.save(ctx, changed); err != nil {
		return Outcome{}, fmt.Errorf("%w: %w", ErrNotSaved, err)
	}
	// Saved, whatever QEMU does now.
	if err := g.quit(ctx); err != nil && ctx.Err() == nil {
		g.m.say("%v (after everything was saved)", err)
	}
	return Outcome{Suspended: true, Requires: g.p.requires()}, nil
}

// save writes the stopped machine's memory and device state. On a disk that is
// full it waits, and QEMU with it: a QEMU that has sent all of its machine, some
// of which is still on its way to the disk, does not send it again.
func (g *instance) save(ctx context.Context, changed pageSet) (err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	tmp := filepath.Join(g.m.CfgDir, stateName+".tmp")
	var f *os.File
	err = g.untilSpace(ctx, func() (err error) {
		f, err = os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
		return err
	})
	if err != nil {
		return err
	}
	defer func() {
		f.Close()
		if err != nil {
			if rerr := os.Remove(tmp); rerr != nil && !errors.Is(rerr, fs.ErrNotExist) {
				err = errors.Join(err, rerr)
			}
		}
	}()
	ours, theirs, err := socketPair()
	if err != nil {
		return err
	}
	defer ours.Close()
	err = g.q.pass(ctx, "save", theirs)
	theirs.Close()
	if err != nil {
		return err
	}
	state := io.NewOffsetWriter(patientWriter{f, ctx, g}, 0)
	pw := newPageWriter(patientPages{g.m.Pages, patientWriter{g.m.Pages, ctx, g}}, changed)
	split := make(chan error, 1)
	go func() {
		_, err := splitStream(ours, state, g.p.memory, pw)
		if werr := pw.close(); err == nil {
			err = werr
		}
		ours.Close() // QEMU must not go on sending if this ended early
		split <- err
	}()
	if err := g.q.execute(ctx, "migrate", map[string]string{"uri": "fd:save"}, nil); err != nil {
		ours.Close()
		<-split
		return err
	}
	merr := g.migrated(ctx)
	if merr != nil {
		cancel(merr) // of what was not sent nothing is worth waiting for
		ours.Close()
	}
	if serr := <-split; serr != nil && (merr == nil || !errors.Is(serr, errStream) && !errors.Is(serr, net.ErrClosed)) {
		return serr // the cause; that the migration failed is its consequence
	}
	if merr != nil {
		return merr
	}
	if err := f.Close(); err != nil {
		return err
	}
	return g.untilSpace(ctx, func() error { return os.Rename(tmp, filepath.Join(g.m.CfgDir, stateName)) })
}

// untilSpace tries until there is space for it, and says what it waits for. A
// machine that stands still is better than one that is lost.
func (g *instance) untilSpace(ctx context.Context, try func() error) error {
	for wait := retryLow; ; wait = min(2*wait, retryHigh) {
		err := try()
		if !errors.Is(err, syscall.ENOSPC) && !errors.Is(err, syscall.EDQUOT) {
			return err
		}
		g.m.say("the memory cannot be saved (%v); trying again until there is space", err)
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// patientWriter writes when there is space. What was written of a part before
// is written again.
type patientWriter struct {
	to  io.WriterAt
	ctx context.Context
	g   *instance
}

func (w patientWriter) WriteAt(p []byte, off int64) (n int, err error) {
	err = w.g.untilSpace(w.ctx, func() (err error) { n, err = w.to.WriteAt(p, off); return err })
	return n, err
}

// patientPages are Pages, written so.
type patientPages struct {
	Pages
	patient patientWriter
}

func (p patientPages) WriteAt(b []byte, off int64) (int, error) { return p.patient.WriteAt(b, off) }

// openWindow shows the machine's screen in a window of ours, if it was to be
// shown like that. closed is closed when the user closes it; shut ends it.
func (g *instance) openWindow(ctx context.Context) (shut func(), closed <-chan struct{}, err error) {
	if g.p.display != "window" {
		return func() {}, nil, nil
	}
	ours, theirs, err := socketPair()
	if err != nil {
		return nil, nil, err
	}
	err = g.q.pass(ctx, "window", theirs)
	theirs.Close()
	if err == nil {
		err = g.q.execute(ctx, "add_client", map[string]any{"protocol": "vnc", "fdname": "window", "skipauth": true}, nil)
	}
	if err != nil {
		ours.Close()
		return nil, nil, err
	}
	wctx, cancel := context.WithCancel(ctx)
	ch, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		err := showWindow(wctx, ours, "", g.m.Name, g.m.Fullscreen)
		select {
		case <-wctx.Done():
			return
		case <-g.q.dead: // its end is not the user's doing
			return
		default:
		}
		if errors.Is(err, io.EOF) {
			return // QEMU is about to be gone
		}
		if err != nil {
			g.m.say("the window broke: %v", err)
		}
		close(ch)
	}()
	return func() { cancel(); <-done }, ch, nil
}
