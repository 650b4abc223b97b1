package client

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/gofrs/flock"

	"isr/client/fetch"
	"isr/client/remote"
	"isr/client/vmm"
	"isr/store/atomicfile"
	"isr/store/keyring"
	"isr/store/parcel"
	"isr/store/seal"
)

// CheckoutOptions are what checkout and resume may be asked for.
type CheckoutOptions struct {
	Rollback int               // make the head equal to this version first; 0: no
	Run      bool              // it shall run here: ask first whether it can
	VMM      string            // by this driver; "" = the parcel's
	Options  map[string]string // for that driver
}

// Checkout brings a parcel to this host: its lock, its keyring and its
// configuration, a few KiB whatever its size. If it is here already that is
// said and nothing done. A host that cannot run the parcel learns so before
// the lock is taken.
func (c *Client) Checkout(ctx context.Context, name string, o CheckoutOptions) (*Checkout, error) {
	co, err := c.Find(name)
	switch {
	case errors.Is(err, parcel.ErrNoParcel):
		return c.newCheckout(ctx, name, o)
	case err != nil:
		return nil, err
	}
	if co.State.Status != Acquiring && co.State.Status != Releasing {
		if o.Rollback != 0 && !co.equals(ctx, o.Rollback) {
			return nil, parcel.NewError(parcel.Exists, "parcel %s: checked out here already, version %d", name, co.State.Version).
				WithHint("check it in or clean it before you roll back")
		}
		return co, nil
	}
	if err := co.seize(); err != nil {
		return nil, err
	}
	defer co.letGo()
	switch co.State.Status {
	case Releasing:
		if co.State.Modified {
			// A clean that was interrupted: what it was to give up is here yet,
			// and whoever asks for the parcel now may want it.
			return nil, parcel.NewError(parcel.Failed, "parcel %s: its clean was interrupted, and what changed is here yet", name).
				WithHint("isr checkin %s keeps it, isr clean %s gives it up", name, name)
		}
		c.UI.Say("parcel %s: finishing the checkin that was interrupted", name)
		if err := co.release(ctx, false); err != nil {
			return nil, err
		}
		return c.newCheckout(ctx, name, o)
	case Acquiring:
		c.UI.Say("parcel %s: going on with the checkout that was interrupted", name)
		return co, co.acquire(ctx, o)
	}
	return co, nil // somebody finished it meanwhile
}

// equals reports whether the checkout is pristine and equal to version v: a
// rollback that was interrupted is done already.
func (co *Checkout) equals(ctx context.Context, v int) bool {
	if co.State.Modified || co.State.Damaged != "" || co.unlock(ctx) != nil {
		return false
	}
	srv, err := co.client.server(co.State.Server, co.State.User)
	if err != nil {
		return false
	}
	keyroot, err := srv.Keyroot(ctx, co.State.Parcel, v)
	return err == nil && keyroot == co.State.pristine
}

// newCheckout makes the record of what is about to happen, then does it.
func (c *Client) newCheckout(ctx context.Context, name string, o CheckoutOptions) (*Checkout, error) {
	srv, err := c.defaultServer()
	if err != nil {
		return nil, err
	}
	cfg, _, err := srv.Config(ctx, name)
	if err != nil {
		return nil, err
	}
	if cfg.Parcel != name || c.User != "" && cfg.User != c.User {
		return nil, parcel.NewError(parcel.Denied, "parcel %s: the server answers with %s/%s", name, cfg.User, cfg.Parcel)
	}
	defer c.motd(ctx, srv)()
	tmp, lock, err := c.newDir()
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(tmp)
	co := &Checkout{client: c, Dir: tmp, lock: lock, State: State{Status: Acquiring, Server: c.Server, User: cfg.User,
		Parcel: name, UUID: cfg.UUID, Acquisition: parcel.NewID()}}
	defer co.letGo()
	for _, dir := range []string{"keys", "cfg", "hdk"} {
		if err := os.Mkdir(co.path(dir), 0o700); err != nil {
			return nil, err
		}
	}
	t, err := c.target(c.Server, cfg.User)
	if err != nil {
		return nil, err
	}
	record, err := c.newKey(ctx, t)
	if err != nil {
		return nil, err
	}
	if err := atomicfile.Write(co.path("keys", "keyroot"), record, 0o600); err != nil {
		return nil, err
	}
	if err := co.save(); err != nil {
		return nil, err
	}
	dir := c.dirFor(name, cfg.UUID)
	// Another isr may have begun the same since we looked.
	if _, err := c.Find(name); err == nil {
		return nil, parcel.NewError(parcel.Busy, "parcel %s: being checked out by another isr", name)
	}
	if err := os.Rename(tmp, dir); err != nil {
		return nil, parcel.NewError(parcel.Busy, "parcel %s: %v", name, err)
	}
	co.Dir = dir
	if err := atomicfile.SyncDir(c.Dir); err != nil {
		return nil, err
	}
	return co, co.acquire(ctx, o)
}

// motd asks for the message of the day, beside what else goes on, and returns
// what shows it. It is nobody's error that there is none.
func (c *Client) motd(ctx context.Context, srv *remote.Server) (show func()) {
	said := make(chan string, 1)
	ctx, cancel := context.WithCancel(ctx)
	go func() {
		text, err := srv.Motd(ctx)
		if err != nil {
			text = ""
		}
		said <- text
	}()
	return func() {
		defer cancel()
		// It was asked for long ago; who does not have it yet goes without.
		t := time.NewTimer(time.Second)
		defer t.Stop()
		select {
		case text := <-said:
			for line := range strings.Lines(text) {
				if line = strings.TrimRight(line, " \t\r\n"); line != "" {
					c.UI.Say("%s: %s", srv.Host(), line)
				}
			}
		case <-t.C:
		}
	}
}

// newDir makes a directory that is to become a checkout, and takes its lock:
// one that nobody holds is swept.
func (c *Client) newDir() (string, *flock.Flock, error) {
	for {
		dir, err := os.MkdirTemp(c.Dir, newPrefix+"*")
		if err != nil {
			return "", nil, err
		}
		l := flock.New(filepath.Join(dir, "lock"), flock.SetPermissions(0o600))
		ok, err := l.TryLock()
		if ok && sameFile(filepath.Join(dir, "lock"), l) {
			return dir, l, nil
		}
		l.Close()
		os.RemoveAll(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return "", nil, err
		}
		// Swept before it had its lock: another.
	}
}

// newPrefix begins the name of a directory that is to become a checkout.
const newPrefix = ".new-"

// acquire takes the lock and completes the checkout. The acquisition id in
// the record makes it the same acquisition however often it is run.
func (co *Checkout) acquire(ctx context.Context, o CheckoutOptions) (err error) {
	c, name := co.client, co.State.Parcel
	srv, err := c.server(co.State.Server, co.State.User)
	if err != nil {
		return err
	}
	h, err := c.hoard()
	if err != nil {
		return err
	}
	ladder := c.ladder(nil, h, srv.Objects(name))
	defer h.Close()
	defer ladder.Wait()
	held := false
	defer func() {
		// What the network did may go better next time; the rest would not.
		if err == nil || errors.Is(err, parcel.ErrUnreachable) || ctx.Err() != nil {
			return
		}
		if held {
			if _, rerr := srv.Release(ctx, name, co.nonceText(), false); rerr != nil {
				c.UI.Warn("parcel %s: lock not given back: %v", name, rerr)
				return
			}
		}
		co.remove()
	}()

	head, err := co.head(ctx, srv, ladder)
	if err != nil {
		return err
	}
	c.UI.Detail("parcel %s: version %d, keyring read", name, head.cfg.Version)
	if o.Run {
		then := head.root
		if o.Rollback != 0 {
			if then, err = co.version(ctx, srv, ladder, head.cfg, o.Rollback); err != nil {
				return err
			}
		}
		if err := c.runnable(ctx, head.cfg, then, o); err != nil {
			return err
		}
	}
	lock, err := srv.Acquire(ctx, name, c.Host, co.State.Acquisition)
	if err != nil {
		if errors.Is(err, parcel.ErrLocked) {
			e := parcel.NewError(parcel.Locked, "%s", err)
			return e.WithHint("check it in there, or give up its changes with: isr clean -f %s", name)
		}
		return err
	}
	held = true
	c.UI.Detail("parcel %s: lock acquired, number %d", name, lock.Epoch)
	if err := co.keepLock(lock); err != nil {
		return err
	}
	if o.Rollback != 0 {
		if _, err := srv.Rollback(ctx, name, lock.Nonce, o.Rollback); err != nil {
			return err
		}
	}
	if lock.Version != head.cfg.Version || o.Rollback != 0 {
		if head, err = co.head(ctx, srv, ladder); err != nil {
			return err
		}
	}
	if cfg := head.root.Cfg; !cfg.IsNil() {
		if _, err := ladder.Get(ctx, cfg.Tag); err != nil {
			return fmt.Errorf("parcel %s: cfg archive: %w", name, err)
		}
	}
	if err := co.complete(ctx, head); err != nil {
		return err
	}
	co.followHead(ctx, srv, h, ladder, head)
	co.noteTraffic(srv)
	co.noteLadder(ladder)
	return nil
}

// head is the newest version on the server.
type head struct {
	cfg     *parcel.Config
	keyroot seal.Ref
	sealed  []byte // root block
	root    *keyring.Root
}

// head reads the configuration and the keyring of the newest version.
func (co *Checkout) head(ctx context.Context, srv *remote.Server, g fetch.Source) (*head, error) {
	name := co.State.Parcel
	cfg, _, err := srv.Config(ctx, name)
	if err != nil {
		return nil, err
	}
	if cfg.UUID != co.State.UUID {
		return nil, parcel.NewError(parcel.Conflict, "parcel %s: another parcel has that name now", name).
			WithHint("isr clean %s, then check it out anew", name)
	}
	h := &head{cfg: cfg}
	if h.keyroot, err = srv.Keyroot(ctx, name, cfg.Version); err != nil {
		return nil, err
	}
	h.sealed, h.root, err = rootOf(ctx, name, cfg, g, h.keyroot)
	return h, err
}

// version reads the keyring of a version.
func (co *Checkout) version(ctx context.Context, srv *remote.Server, g fetch.Source, cfg *parcel.Config, v int) (*keyring.Root, error) {
	keyroot, err := srv.Keyroot(ctx, co.State.Parcel, v)
	if err != nil {
		return nil, err
	}
	_, root, err := rootOf(ctx, co.State.Parcel, cfg, g, keyroot)
	return root, err
}

// rootOf gets and opens the root block that keyroot leads to.
func rootOf(ctx context.Context, name string, cfg *parcel.Config, g fetch.Source, keyroot seal.Ref) ([]byte, *keyring.Root, error) {
	sealed, err := g.Get(ctx, keyroot.Tag)
	if err != nil {
		return nil, nil, fmt.Errorf("parcel %s: keyring: %w", name, err)
	}
	root, err := keyring.OpenRoot(cfg.Sealer(), keyroot, sealed)
	if err != nil {
		return nil, nil, fmt.Errorf("parcel %s: %w", name, err)
	}
	return sealed, root, nil
}

// runnable asks the driver whether this host can run the version.
func (c *Client) runnable(ctx context.Context, cfg *parcel.Config, root *keyring.Root, o CheckoutOptions) error {
	driver := o.VMM
	if driver == "" {
		driver = vmmOf(cfg)
	}
	return c.canRun(ctx, &vmm.Machine{Name: cfg.User + "/" + cfg.Parcel, UUID: cfg.UUID, DiskSize: cfg.DiskSize,
		MemorySize: cfg.MemSize, Suspended: root.Suspended, Requires: root.Requires, Options: c.vmmOptions(driver, o.Options),
		Say: c.UI.Say, CacheDir: c.cacheDir()}, driver)
}

func (c *Client) canRun(ctx context.Context, m *vmm.Machine, driver string) error {
	d, err := vmm.Lookup(driver)
	if err != nil {
		return driverError(m.Name, err)
	}
	if m.Suspended != "" && m.Suspended != driver {
		return parcel.NewError(parcel.Unrunnable, "parcel %s: holds a memory image of %s, not of %s", m.Name, m.Suspended, driver).
			WithHint("resume it with -m %s, or delete the memory image with isr poweroff", m.Suspended)
	}
	info, err := d.Info(ctx, m)
	if err != nil {
		return driverError(m.Name, err)
	}
	if !info.Runnable {
		return parcel.NewError(parcel.Unrunnable, "parcel %s: cannot run here: %s", m.Name, info.Reason).WithHint("%s", info.Hint)
	}
	return nil
}

// keepLock writes down the proof of holding.
func (co *Checkout) keepLock(l *parcel.Lock) error {
	p, err := l.Encode()
	if err != nil {
		return err
	}
	if err := atomicfile.Write(co.path("nonce"), p, 0o600); err != nil {
		return err
	}
	co.State.Proof = recordSum(p)
	public := l.Public()
	if p, err = public.Encode(); err != nil {
		return err
	}
	return atomicfile.Write(co.path("lockholder"), p, 0o600)
}

func (co *Checkout) nonceText() string {
	l, err := co.nonce()
	if err != nil {
		return ""
	}
	return l.Nonce
}

// complete writes what a checkout consists of and makes it one.
func (co *Checkout) complete(ctx context.Context, h *head) error {
	if err := co.openKey(ctx); err != nil {
		return err
	}
	st := &co.State
	st.pristine, st.staged, st.secret = h.keyroot, seal.Ref{}, h.cfg.Secret
	open := *h.cfg
	open.Secret = nil // at rest it is in the record, under the checkout's key
	p, err := open.Encode()
	if err != nil {
		return err
	}
	if err := atomicfile.Write(co.path("parcel.cfg"), p, 0o600); err != nil {
		return err
	}
	if err := atomicfile.Write(co.path("keys", "keyring"), h.sealed, 0o600); err != nil {
		return err
	}
	co.cfg = h.cfg
	st.Status, st.Version, st.Memory, st.Requires, st.Modified = CheckedOut, h.cfg.Version, h.root.Suspended, h.root.Requires, false
	return co.save()
}

// Now is the clock; whole seconds, as records keep them.
func now() time.Time { return time.Now().UTC().Truncate(time.Second) }
