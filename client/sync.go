package client

import (
	"context"
	"errors"
	"fmt"
	"os"
	"reflect"
	"time"

	"isr/client/hoard"
	"isr/client/image"
	"isr/client/wrap"
	"isr/locksrv/proto"
	"isr/store/atomicfile"
	"isr/store/keyring"
	"isr/store/parcel"
	"isr/store/seal"
)

// Committed is what a sync or checkin did.
type Committed struct {
	Version int   // the parcel's version now
	Objects int   // objects sent
	Bytes   int64 // sealed bytes sent
	New     bool  // false: nothing had changed, no version was made

	sending time.Duration // that it took to send them
}

// Sync makes a version of what changed here, and keeps lock and state. It may
// be killed at any instant and run again: what was sealed stays sealed, what
// was sent is not sent again, and the commit is the same commit.
func (c *Client) Sync(ctx context.Context, name, comment string) (Committed, error) {
	co, err := c.enter(ctx, name)
	if err != nil {
		return Committed{}, err
	}
	defer co.letGo()
	return co.syncAndReport(ctx, comment, false)
}

// Checkin is Sync, then the lock goes back and the parcel leaves this host.
func (c *Client) Checkin(ctx context.Context, name, comment string) (Committed, error) {
	co, err := c.enter(ctx, name)
	if err != nil {
		return Committed{}, err
	}
	defer co.letGo()
	done := Committed{Version: co.State.Version}
	// A clean that was interrupted is no reason to lose what changed.
	if co.State.Status != Releasing || co.State.Modified {
		if done, err = co.syncAndReport(ctx, comment, true); err != nil {
			return done, err
		}
		co.State.Status = Releasing
		if err := co.save(); err != nil {
			return done, err
		}
	}
	return done, co.release(ctx, false)
}

// syncAndReport is sync, and what is to be told of it.
func (co *Checkout) syncAndReport(ctx context.Context, comment string, checkin bool) (Committed, error) {
	from := co.State.Version
	done, err := co.sync(ctx, comment)
	if err == nil {
		co.keepReport(ctx, from, done, checkin)
	}
	return done, err
}

// enter finds a checkout for a command that changes it: seized, recovered and
// complete.
func (c *Client) enter(ctx context.Context, name string) (*Checkout, error) {
	co, err := c.Find(name)
	if err != nil {
		return nil, err
	}
	return co, co.enter(ctx)
}

// enter seizes and recovers a complete checkout.
func (co *Checkout) enter(ctx context.Context) error {
	if err := co.seize(); err != nil {
		return err
	}
	if name := co.State.Parcel; co.State.Status == Acquiring {
		co.letGo()
		return parcel.NewError(parcel.Failed, "parcel %s: its checkout was interrupted", name).
			WithHint("run isr checkout %s again, or isr clean %s", name, name)
	}
	if err := co.recover(ctx); err != nil {
		co.letGo()
		return err
	}
	return nil
}

func (co *Checkout) sync(ctx context.Context, comment string) (Committed, error) {
	st, ui := &co.State, co.client.UI
	if st.Damaged != "" {
		return Committed{}, parcel.NewError(parcel.Damaged, "parcel %s: damaged: %s", st.Parcel, st.Damaged).
			WithHint("isr rescue %s keeps it as a new parcel, isr discard %s goes back to version %d", st.Parcel, st.Parcel, st.Version)
	}
	srv, err := co.client.server(st.Server, st.User)
	if err != nil {
		return Committed{}, err
	}
	defer co.noteTraffic(srv)
	if err := co.checkServer(ctx, srv); err != nil {
		return Committed{}, err
	}
	if !st.Modified {
		return Committed{Version: st.Version}, co.rescued()
	}
	if r := st.Rescue; r != nil && r.Name == st.Parcel && comment == "" {
		comment = r.Comment
	}
	if err := co.unlock(ctx); err != nil {
		return Committed{}, err
	}
	if st.Status != Staged {
		if err := co.compress(ctx, srv); err != nil {
			return Committed{}, err
		}
	}
	s, err := co.openSession(ctx, false)
	if err != nil {
		return Committed{}, err
	}
	defer s.close()
	if !st.base.IsNil() {
		if _, s.base, err = rootOf(ctx, st.Parcel, co.cfg, s.ladder, st.base); err != nil {
			return Committed{}, err
		}
	}
	if st.Status != Staged {
		if err := s.stage(ctx, comment); err != nil {
			return Committed{}, err
		}
		if !st.Modified {
			return Committed{Version: st.Version}, co.rescued()
		}
	} else {
		ui.Say("parcel %s: going on with the commit that was interrupted", st.Parcel)
	}
	sealed, err := s.ladder.Get(ctx, st.staged.Tag)
	if err != nil {
		return Committed{}, fmt.Errorf("parcel %s: staged keyring: %w", st.Parcel, err)
	}
	root, err := keyring.OpenRoot(co.sealer(), st.staged, sealed)
	if err != nil {
		return Committed{}, fmt.Errorf("parcel %s: staged %w", st.Parcel, err)
	}
	var done Committed
	for try := 1; ; try++ {
		sent, err := s.upload(ctx, root)
		done.Objects, done.Bytes, done.sending = done.Objects+sent.Objects, done.Bytes+sent.Bytes, done.sending+sent.sending
		if err != nil {
			return done, err
		}
		done.Version, err = s.commit(ctx)
		if err == nil {
			break
		}
		// What the server said it had belonged to no version, and was collected
		// since: it is all here, and goes there again.
		if !errors.Is(err, parcel.ErrNoObject) || try == 3 {
			return done, co.lost(err)
		}
		ui.Detail("parcel %s: %v; once more", st.Parcel, err)
	}
	done.New = true
	if err := s.promote(sealed, root, done.Version); err != nil {
		return done, err
	}
	return done, co.rescued()
}

// commit makes a version of what is staged, and sent.
func (s *session) commit(ctx context.Context) (int, error) {
	st := &s.co.State
	req := proto.CommitRequest{Nonce: s.co.nonceText(), Parent: st.Version, Keyroot: st.staged, ID: st.staged.Tag.String()}
	version, err := s.srv.Commit(ctx, st.Parcel, req)
	if errors.Is(err, parcel.ErrConflict) {
		// While the lock is ours nobody else commits: the head is an earlier
		// commit of this checkout, whose answer was lost before it went on.
		cfg, _, cerr := s.srv.Config(ctx, st.Parcel)
		if cerr == nil && cfg.UUID == st.UUID && cfg.Version > st.Version {
			req.Parent = cfg.Version
			version, err = s.srv.Commit(ctx, st.Parcel, req)
		}
	}
	return version, err
}

// rescued ends a rescue, if one was going on: all of it is on the server.
func (co *Checkout) rescued() error {
	if r := co.State.Rescue; r == nil || r.Name != co.State.Parcel {
		return nil
	}
	co.State.Rescue = nil
	return co.save()
}

// stage seals what was modified and writes down the keyroot of the result.
// Nothing of it is visible until the record names it.
func (s *session) stage(ctx context.Context, comment string) error {
	co, st := s.co, &s.co.State
	local := co.local()
	root := s.root.Clone()
	var counts []proto.ReportImage
	for _, name := range imageNames {
		sd := s.images[name]
		if sd == nil {
			continue
		}
		count := newSealing(sd.pristine)
		p := co.client.UI.Progress("sealing "+name, "bytes", 0)
		err := sd.image.Seal(ctx, func(ctx context.Context, n int64, ref seal.Ref, sealed []byte) error {
			if sealed != nil {
				if err := local.Put(ctx, ref.Tag, sealed); err != nil {
					return err
				}
			}
			sd.tree.Set(n, ref)
			count.add(ref.IsNil(), sealed)
			return nil
		}, p.Set)
		p.Done()
		if errors.Is(err, image.ErrChanged) {
			return parcel.NewError(parcel.Damaged, "parcel %s: %v", st.Parcel, err).WithHint("isr checkp -c %s says all that is damaged, and what to do", st.Parcel)
		}
		if err != nil {
			return fmt.Errorf("parcel %s: sealing %s: %w", st.Parcel, name, err)
		}
		im, err := sd.tree.Flush(ctx, local)
		if err != nil {
			return fmt.Errorf("parcel %s: %w", st.Parcel, err)
		}
		root.SetImage(im)
		counts = append(counts, count.ReportImage)
	}
	root.Suspended, root.Requires = st.Memory, st.Requires
	if root.Requires == nil {
		root.Requires = map[string]string{}
	}
	switch box, err := os.ReadFile(co.path("cfg", cfgFile)); {
	case err == nil:
		archive, err := wrap.Unseal(co.key, box, cfgFile)
		if err != nil {
			return fmt.Errorf("parcel %s: %w", st.Parcel, err)
		}
		root.Cfg, root.CfgSize = seal.Ref{}, 0
		if len(archive) == 0 {
			break
		}
		ref, sealed, err := co.sealer().Seal(archive)
		if err != nil {
			return err
		}
		if err := local.Put(ctx, ref.Tag, sealed); err != nil {
			return err
		}
		root.Cfg, root.CfgSize = ref, int64(len(archive))
	case !os.IsNotExist(err):
		return err
	}
	if same(root, s.base) {
		// Written, but with what was there before: no version is made of it.
		st.Status, st.Modified = CheckedOut, false
		if !st.base.IsNil() {
			st.pristine, st.base = st.base, seal.Ref{}
		}
		if err := co.save(); err != nil {
			return err
		}
		return co.tidy()
	}
	root.Parent, root.Time, root.Host, root.Comment = st.Version, now(), co.client.Host, comment
	keyroot, sealed, err := keyring.SealRoot(co.sealer(), root)
	if err != nil {
		return err
	}
	if err := local.Put(ctx, keyroot.Tag, sealed); err != nil {
		return err
	}
	if err := local.Sync(); err != nil {
		return err
	}
	co.client.UI.Detail("parcel %s: sealed", st.Parcel)
	st.staged, st.Status = keyroot, Staged
	co.noteUse(useLine{Sealed: counts})
	return co.save()
}

// same reports whether two roots lead to the same content.
func same(a, b *keyring.Root) bool {
	return a.Cfg.Tag == b.Cfg.Tag && a.Suspended == b.Suspended && reflect.DeepEqual(a.Images, b.Images) &&
		len(a.Requires) == len(b.Requires) && (len(a.Requires) == 0 || reflect.DeepEqual(a.Requires, b.Requires))
}

// upload sends the objects of root that the server lacks.
func (s *session) upload(ctx context.Context, root *keyring.Root) (Committed, error) {
	st := &s.co.State
	tags, err := newTags(ctx, s.co.sealer(), s.ladder, s.base, st.staged, root)
	if err != nil {
		return Committed{}, fmt.Errorf("parcel %s: %w", st.Parcel, err)
	}
	missing, err := s.srv.Missing(ctx, st.Parcel, tags)
	if err != nil {
		return Committed{}, s.co.lost(err)
	}
	s.co.client.UI.Detail("parcel %s: %d objects are new, the server lacks %d", st.Parcel, len(tags), len(missing))
	local := s.co.local()
	var total int64
	for _, t := range missing {
		if n, err := local.Size(t); err == nil {
			total += n
		}
	}
	p := s.co.client.UI.Progress("sending "+st.Parcel, "bytes", total)
	defer p.Done()
	began := time.Now()
	err = s.srv.Objects(st.Parcel).PutAll(ctx, missing, func(ctx context.Context, t seal.Tag) ([]byte, error) {
		return s.ladder.Get(ctx, t)
	}, p.Set)
	if err != nil {
		return Committed{}, fmt.Errorf("parcel %s: sending: %w", st.Parcel, err)
	}
	return Committed{Objects: len(missing), Bytes: total, sending: time.Since(began)}, nil
}

// promote makes the committed version the pristine one. Its objects go to the
// hoard, then the record changes, then what it made superfluous goes.
func (s *session) promote(sealedRoot []byte, root *keyring.Root, version int) error {
	co, st := s.co, &s.co.State
	ctx, local := context.Background(), co.local()
	// Pinned first: then nothing of it can be evicted.
	s.followCommit(ctx, root, version)
	if err := local.Walk(ctx, func(o hoard.Object) error { return s.hoard.Take(ctx, local, o.Tag) }); err != nil {
		return fmt.Errorf("parcel %s: hoard: %w", st.Parcel, err)
	}
	if err := atomicfile.Write(co.path("keys", "keyring"), sealedRoot, 0o600); err != nil {
		return err
	}
	st.pristine, st.staged, st.base, st.Version = st.staged, seal.Ref{}, seal.Ref{}, version
	st.Status, st.Modified = CheckedOut, false
	if err := co.save(); err != nil {
		return err
	}
	s.root, s.base = root, root
	return co.tidy()
}

// tidy removes what a pristine checkout does not need: what was modified, and
// is now in a version or given up. Only the record says which.
func (co *Checkout) tidy() error {
	co.reserve().giveUp() // of a keeper that died
	if co.State.Memory == "" && co.State.Modified {
		if err := co.resetOverlay(keyring.Memory); err != nil {
			return err
		}
	}
	if co.State.Modified || co.State.Status != CheckedOut {
		return nil
	}
	for _, name := range imageNames {
		if err := co.resetOverlay(name); err != nil {
			return err
		}
	}
	if err := os.Remove(co.path("cfg", cfgFile)); err != nil && !os.IsNotExist(err) {
		return err
	}
	return os.RemoveAll(co.path("hdk", "objects"))
}

// locker is the part of the lock server that proves the lock.
type locker interface {
	CheckLock(ctx context.Context, p, nonce string) (*parcel.Lock, error)
}

// checkLock asks the server whether the lock is still ours, which also tells
// it that we live.
func (co *Checkout) checkLock(ctx context.Context, srv locker) error {
	// A proof that is damaged proves nothing about who holds the lock.
	if _, err := co.nonce(); errors.Is(err, parcel.ErrDamaged) {
		return err
	}
	_, err := srv.CheckLock(ctx, co.State.Parcel, co.nonceText())
	return co.lost(err)
}

// lost marks the checkout when err says that somebody took the lock.
func (co *Checkout) lost(err error) error {
	if !errors.Is(err, parcel.ErrNotHolder) {
		return err
	}
	st := &co.State
	st.Orphaned = err.Error()
	if serr := co.save(); serr != nil {
		return serr
	}
	return parcel.NewError(parcel.NotHolder, "%s", err).
		WithHint("your work is kept in %s: isr rescue %s makes a new parcel of it, isr resume -d %s runs it here, isr clean %s gives it up", co.Dir, st.Parcel, st.Parcel, st.Parcel)
}

// release gives the lock back and takes the checkout off this host. The lock
// goes before its proof does, so nothing can be left locked for ever.
func (co *Checkout) release(ctx context.Context, force bool) error {
	srv, err := co.client.server(co.State.Server, co.State.User)
	if err != nil {
		return err
	}
	if _, err := co.nonce(); !force && errors.Is(err, parcel.ErrDamaged) {
		return parcel.NewError(parcel.Damaged, "%s", err).WithHint("isr clean -f %s breaks the lock", co.State.Parcel)
	}
	_, err = srv.Release(ctx, co.State.Parcel, co.nonceText(), force)
	if err != nil && !errors.Is(err, parcel.ErrNotHolder) && !errors.Is(err, parcel.ErrNoParcel) {
		return err
	}
	return co.remove()
}
