package client

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"isr/client/fusefs"
	"isr/client/image"
	"isr/client/vmm"
	"isr/store/keyring"
	"isr/store/parcel"
)

// command is what the isr in front tells its keeper after the errand.
type command struct{ Suspend bool }

// keeper owns a running parcel: its lock on this host, its mount, its link and
// its VMM.
type keeper struct {
	co    *Checkout
	s     *session
	rt    runtime
	o     ResumeOptions
	taken bool // the terminal of the isr in front
	ui    *keeperUI
	mu    sync.Mutex  // guards co.State while the guest runs
	given atomic.Bool // the memory image of before is given up
	ails  few         // I/O errors of the guest that the user was told of
	ahead ahead       // of the prefetch
	use   useOf       // for the report

	ends    atomic.Bool  // the run is to end, or has
	waiting atomic.Value // string: what it waits for, "" for nothing
}

// Keeper runs one parcel, as told over conn, and returns when its guest is off
// or suspended and all of it is on this host's disk. It is the body of the
// process that resume starts; fd 3 is its end of the socket.
func Keeper() error {
	f := os.NewFile(3, "front")
	if f == nil {
		return parcel.NewError(parcel.Usage, "keeper: it is started by isr resume")
	}
	conn, err := net.FileConn(f)
	f.Close()
	if err != nil {
		return parcel.NewError(parcel.Usage, "keeper: it is started by isr resume")
	}
	defer conn.Close()
	dec := json.NewDecoder(conn)
	var e errand
	if err := dec.Decode(&e); err != nil {
		return fmt.Errorf("keeper: %w", err)
	}
	ui := newKeeperUI(conn, filepath.Join(e.Dir, "log", filepath.Base(e.Checkout)))
	defer ui.Close()
	suspend := make(chan struct{})
	var once sync.Once
	wish := func() { once.Do(func() { close(suspend) }) }
	// The terminal's signals are for the isr in front; TERM is the host going
	// down, and then there may be nobody in front.
	// Caught, not ignored: a program that we start would inherit that.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGINT, syscall.SIGHUP, syscall.SIGPIPE)
	term := make(chan os.Signal, 1)
	signal.Notify(term, syscall.SIGTERM)
	e.UI = ui
	c := newClient(e.Options, e.Credentials)
	defer c.Close()
	k := &keeper{co: &Checkout{client: c, Dir: e.Checkout, key: e.Key}, o: e.Resume, taken: e.Taken, ui: ui}
	go func() { <-term; wish() }()
	go func() {
		for {
			var cmd command
			// The end of the stream is the end of whoever stood in front.
			if err := dec.Decode(&cmd); err != nil {
				wish()
				return
			}
			if cmd.Suspend && k.ends.Swap(true) {
				k.impatient()
			}
			if cmd.Suspend {
				wish()
			}
		}
	}()
	err = k.run(context.Background(), suspend)
	ui.end(err)
	return nil // the front reports it
}

// impatient answers who asks for a suspension that is under way. It is not
// hurried by that, and it is not undone.
func (k *keeper) impatient() {
	name := filepath.Base(k.co.Dir)
	if w, _ := k.waiting.Load().(string); w != "" {
		k.ui.Say("parcel %s: %s; it waits for room, and kill -9 %d gives up what is not kept", name, w, os.Getpid())
		return
	}
	k.ui.Say("parcel %s: being suspended: waiting until all of it is on this host's disk", name)
}

func (k *keeper) run(ctx context.Context, suspend <-chan struct{}) (err error) {
	co := k.co
	if err := co.load(); err != nil {
		return err
	}
	if err := co.seize(); err != nil {
		return err
	}
	defer co.letGo()
	st := &co.State
	if st.Status == Running || st.Status == Acquiring || st.Status == Releasing {
		return parcel.NewError(parcel.Busy, "parcel %s: %s", st.Parcel, st.Status)
	}
	if err := co.open(); err != nil {
		return err
	}
	if k.rt, err = co.makeRuntime(); err != nil {
		return err
	}
	defer k.rt.remove()
	if k.s, err = co.openSession(ctx, k.o.Offline); err != nil {
		return err
	}
	closed := false
	defer func() {
		if !closed {
			k.s.close()
		}
	}()
	if err := co.unpackCfg(ctx, k.rt.cfg, k.s.root, k.s.ladder); err != nil {
		return err
	}
	driver, err := vmm.Lookup(k.o.VMM)
	if err != nil {
		return err
	}
	if err := co.reserve().take(); err != nil {
		return parcel.NewError(parcel.Full, "parcel %s: no room to run it: %v", st.Parcel, err).
			WithHint("make room in %s, then run it again", co.client.Dir)
	}
	defer co.reserve().giveUp()
	before := st.Status
	st.Status, st.Mount = Running, k.rt.mount
	if err := co.save(); err != nil {
		return err
	}
	look := k.newSurvey()
	mount, err := fusefs.New(k.rt.mount, k.files(), k.watchable(k.stats(), look, driver.Name()))
	if err != nil {
		st.Status, st.Mount = before, ""
		co.save()
		return fmt.Errorf("parcel %s: mount: %w", st.Parcel, err)
	}
	watch, stop := context.WithCancel(ctx)
	k.beginUse(watch, driver.Name())
	var wg sync.WaitGroup
	if st.Memory != "" { // a boot touches other things than a resume did
		wg.Go(func() { k.prefetch(watch) })
	} else {
		k.ahead.change(func(n *aheadCounts) { n.Over = true })
	}
	wg.Go(func() { look.run(watch) })
	wg.Go(func() { k.watchLock(watch) })
	trace := k.recordTrace(watch)
	if k.s.srv != nil {
		k.s.srv.OnOutage(k.outage)
	}

	m := co.machine(k.rt, &k.o)
	m.Say = k.ui.Say
	m.Started = func() {
		k.use.started()
		k.ui.Detail("parcel %s: the guest runs", st.Parcel)
	}
	k.ui.Detail("parcel %s: shown at %s, run by %s", st.Parcel, k.rt.mount, driver.Name())
	k.ui.send(event{Mount: k.rt.mount})
	if sd := k.s.images[keyring.Memory]; sd != nil {
		m.Pages = pages{k}
		switch driver.(type) {
		case vmm.None, vmm.Shell: // they save none
		default:
			k.room(sd.pristine.Size - sd.overlay.ModifiedCount()*int64(sd.pristine.ChunkSize))
		}
	}
	if k.taken {
		in, out, stop, err := k.overhear()
		if err != nil {
			k.ui.Warn("parcel %s: what its VMM prints is not shown: %v", st.Parcel, err)
		} else {
			defer stop()
		}
		m.Stdin, m.Stdout, m.Stderr = in, out, out
	}
	out, runErr := driver.Run(ctx, m, suspend)

	k.ends.Store(true)
	k.waits("")
	k.ui.Detail("parcel %s: the run ended, suspended: %t", st.Parcel, out.Suspended)
	stop()
	wg.Wait()
	mountErr := mount.Close()
	k.keepStats()
	k.endUse(out, runErr)
	if err := k.settle(driver.Name(), before, out, runErr, trace()); err != nil {
		return err
	}
	k.ui.Detail("parcel %s: all of it is on this host's disk", st.Parcel)
	closed = true
	if err := k.s.close(); err != nil {
		return err
	}
	if err := co.tidy(); err != nil {
		return err
	}
	if runErr != nil {
		return driverError(st.Parcel, runErr)
	}
	return mountErr
}

// settle writes down what the run has left: the overlays durable, the VMM's
// files kept, then the record.
func (k *keeper) settle(driver string, before Status, out vmm.Outcome, runErr error, trace []byte) error {
	co, st := k.co, &k.co.State
	ctx := context.Background()
	for _, name := range imageNames {
		sd := k.s.images[name]
		if sd == nil {
			continue
		}
		keep := sd.image.Flush
		if name == keyring.Memory && out.Suspended {
			keep = sd.image.EndSave
		}
		err := k.persist(name, func() error {
			if err := keep(ctx); sd.image.Tainted() == nil {
				return err
			}
			return nil // for good
		})
		if err == nil {
			err = sd.image.Tainted()
		}
		if err != nil && st.Damaged == "" {
			st.Damaged = fmt.Sprintf("%s: %v", name, err)
		}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	wrote := !k.s.images[keyring.Disk].overlay.Empty()
	switch {
	case out.Suspended:
		if len(trace) > 0 {
			// The next resume can do without.
			if err := os.WriteFile(filepath.Join(k.rt.cfg, traceFile), trace, 0o600); err != nil {
				os.Remove(filepath.Join(k.rt.cfg, traceFile))
			}
		}
		if err := k.persist("VMM's state", func() error { return co.packCfg(k.rt.cfg) }); err != nil {
			return err
		}
		st.Status, st.Modified, st.Memory, st.Requires = Suspended, true, driver, out.Requires
	case runErr != nil && st.Memory != "":
		// It ended before the guest wrote anything: the memory image still
		// goes with the disk.
		st.Status = before
	default:
		gone := st.Memory != "" || k.s.root.Suspended != ""
		if gone || wrote {
			st.Modified = true
		}
		st.Memory, st.Requires = "", nil
		if !st.Modified {
			st.Status = CheckedOut
			break
		}
		st.Status = Suspended
		if err := k.persist("VMM's state", func() error { return co.packCfg(k.rt.cfg) }); err != nil {
			return err
		}
	}
	st.Mount = ""
	return k.persist("record", co.save)
}

// giveUpMemory notes, durably and before it happens, that the memory image
// the run began from no longer goes with the parcel. It is called before the
// guest's first write to the disk, and before memory is saved anew.
func (k *keeper) giveUpMemory() error {
	if k.given.Load() {
		return nil
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	st := &k.co.State
	if !st.Modified || st.Memory != "" {
		modified, memory := st.Modified, st.Memory
		st.Modified, st.Memory = true, ""
		if err := k.co.save(); err != nil {
			st.Modified, st.Memory = modified, memory
			return err
		}
	}
	k.given.Store(true)
	return nil
}

// pages is what the driver saves memory through.
type pages struct{ k *keeper }

func (p pages) BeginSave() error {
	if err := p.k.persist("record", p.k.giveUpMemory); err != nil {
		return err
	}
	return p.k.s.images[keyring.Memory].image.BeginSave()
}

func (p pages) Asked(off int64, n int) bool {
	return p.k.s.images[keyring.Memory].image.Asked(off, n)
}

func (p pages) WriteAt(b []byte, off int64) (int, error) {
	n, err := p.k.s.images[keyring.Memory].image.Pages().WriteAt(b, off)
	if mayPass(err) { // the driver tries again
		p.k.waits(fmt.Sprintf("its memory cannot be kept: %v", err))
	}
	return n, err
}

// guarded is an image whose first write is noted before it is made, and whose
// errors the user hears of: the guest sees an I/O error, and not why.
type guarded struct {
	*image.Image
	k *keeper
}

func (g guarded) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	n, err := g.Image.ReadAt(ctx, p, off)
	return n, g.k.told(ctx, err)
}

func (g guarded) WriteAt(ctx context.Context, p []byte, off int64) (int, error) {
	if err := g.k.giveUpMemory(); err != nil {
		return 0, g.k.told(ctx, err)
	}
	n, err := g.Image.WriteAt(ctx, p, off)
	return n, g.k.told(ctx, err)
}

func (g guarded) Flush(ctx context.Context) error { return g.k.told(ctx, g.Image.Flush(ctx)) }

// maxTold is how many of a guest's I/O errors are shown: more say no more.
const maxTold = 5

// told is err, an image's answer to the guest, of which the user has heard.
func (k *keeper) told(ctx context.Context, err error) error {
	if err == nil || errors.Is(err, io.EOF) || ctx.Err() != nil {
		return err
	}
	text := err.Error()
	full := errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
	switch {
	case full && k.ails.note("full"):
		k.ui.Warn("parcel %s: no room for what the guest writes: %s", k.co.State.Parcel, text)
	case !full && k.ails.note(text):
		k.ui.Warn("parcel %s: the guest sees an I/O error: %s", k.co.State.Parcel, text)
	}
	return err
}

// few remembers the first maxTold different texts.
type few struct {
	mu   sync.Mutex
	seen []string
}

// note reports whether text is one of the first, and new.
func (f *few) note(text string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.seen) == maxTold || slices.Contains(f.seen, text) {
		return false
	}
	f.seen = append(f.seen, text)
	return true
}

// files is what the mount shows.
func (k *keeper) files() map[string]fusefs.Image {
	files := make(map[string]fusefs.Image)
	for name, sd := range k.s.images {
		files[name] = guarded{sd.image, k}
	}
	return files
}

// lockPoll is how often a running parcel's lock is looked at if nothing else
// is said: a thief is noticed within a minute, and ls shows the last contact.
const lockPoll = 30 * time.Second

func (k *keeper) watchLock(ctx context.Context) {
	if k.s.srv == nil {
		return
	}
	tick := time.NewTicker(cmp.Or(k.co.client.LockPoll, lockPoll))
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		_, err := k.s.srv.CheckLock(ctx, k.co.State.Parcel, k.co.nonceText())
		if errors.Is(err, parcel.ErrNotHolder) {
			k.mu.Lock()
			err = k.co.lost(err)
			k.mu.Unlock()
			k.ui.Warn("%v", err)
			k.ui.Warn("parcel %s: it goes on running, and its work stays on this host; it cannot be checked in over the new holder's, but isr rescue %s will make a new parcel of it", k.co.State.Parcel, k.co.State.Parcel)
			return
		}
	}
}

// outage tells the user that the guest waits, and that it goes on.
func (k *keeper) outage(down bool, err error) {
	k.use.outage(down)
	if down {
		k.ui.Warn("parcel %s: no connection (%v); the guest waits for what it lacks", k.co.State.Parcel, err)
		return
	}
	k.ui.Say("parcel %s: connected again", k.co.State.Parcel)
}

// driverError gives a driver's error its kind.
func driverError(name string, err error) error {
	var pe *parcel.Error
	var exit *vmm.ExitError
	switch {
	case errors.As(err, &pe):
		return err
	case errors.As(err, &exit):
		return &parcel.Error{Kind: parcel.Kind(exit.Status), Msg: fmt.Sprintf("parcel %s: %v", name, err)}
	case errors.Is(err, vmm.ErrNotRunnable):
		return parcel.NewError(parcel.Unrunnable, "parcel %s: %v", name, err)
	case errors.Is(err, vmm.ErrUnknown), errors.Is(err, vmm.ErrOption):
		return parcel.NewError(parcel.Usage, "parcel %s: %v", name, err)
	}
	return fmt.Errorf("parcel %s: %w", name, err)
}
