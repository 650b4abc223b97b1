package client

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"isr/client/fetch"
	"isr/client/image"
	"isr/client/remote"
	"isr/store/keyring"
	"isr/store/parcel"
	"isr/store/seal"
)

// A server that was restored from a backup may lack the version that a
// checkout was made from, or have another under its number. Then this host may
// be the only place where that version is: nothing is checked in over it, and
// isr rescue makes it again.

// checkServer asks the server whether the lock is still ours, and whether it
// has the version that is pristine here.
func (co *Checkout) checkServer(ctx context.Context, srv *remote.Server) error {
	type answer struct {
		keyroot seal.Ref
		err     error
	}
	asked := make(chan answer, 1)
	go func() {
		keyroot, err := srv.Keyroot(ctx, co.State.Parcel, co.State.Version)
		asked <- answer{keyroot, err}
	}()
	err := co.checkLock(ctx, srv)
	if errors.Is(err, parcel.ErrNoParcel) {
		return co.gone()
	}
	if err != nil {
		return err
	}
	a := <-asked
	return co.checkBase(ctx, srv, a.keyroot, a.err)
}

// checkBase marks the checkout if keyroot, the answer to what the server has
// as its version, or err, means that this version was lost.
func (co *Checkout) checkBase(ctx context.Context, srv *remote.Server, keyroot seal.Ref, err error) error {
	st := &co.State
	lost, err := co.lostBase(ctx, srv, keyroot, err)
	if err != nil {
		return err
	}
	if lost != st.Lost {
		st.Lost = lost
		if err := co.save(); err != nil {
			return err
		}
	}
	if lost == "" {
		return nil
	}
	return parcel.NewError(parcel.Conflict, "parcel %s: %s: was the server restored from a backup?", st.Parcel, lost).
		WithHint("what is here is kept in %s: isr rescue %s makes a new parcel of it, isr resume -d %s runs it here, isr clean %s gives it up", co.Dir, st.Parcel, st.Parcel, st.Parcel)
}

// lostBase says how the server lost the version that is pristine here, "" if
// it did not, by its answer to what it has as that.
func (co *Checkout) lostBase(ctx context.Context, srv *remote.Server, keyroot seal.Ref, err error) (string, error) {
	st := &co.State
	switch {
	case errors.Is(err, parcel.ErrNoVersion):
		cfg, _, err := srv.Config(ctx, st.Parcel)
		// One that is not the newest any more may have been pruned.
		if err != nil || cfg.Version >= st.Version {
			return "", err
		}
		return fmt.Sprintf("version %d is not on the server, whose newest is %d", st.Version, cfg.Version), nil
	case err != nil:
		return "", err
	}
	same, err := co.isBase(ctx, keyroot)
	if err != nil || same {
		return "", err
	}
	return fmt.Sprintf("version %d on the server is another than the one here", st.Version), nil
}

// IsLost reports whether the server, if it can be asked, turns out to lack the
// version that is pristine here: nobody else may have it.
func (c *Client) IsLost(ctx context.Context, co *Checkout) bool {
	st := &co.State
	if st.Lost != "" {
		return true
	}
	if st.Status == Acquiring || st.Status == Releasing {
		return false
	}
	srv, err := c.server(st.Server, st.User)
	if err != nil {
		return false
	}
	keyroot, err := srv.Keyroot(ctx, st.Parcel, st.Version)
	if errors.Is(err, parcel.ErrNoParcel) {
		return true
	}
	lost, err := co.lostBase(ctx, srv, keyroot, err)
	return err == nil && lost != ""
}

// isBase reports whether keyroot is what the server should have as the
// checkout's version.
func (co *Checkout) isBase(ctx context.Context, keyroot seal.Ref) (bool, error) {
	// The root block is here, and proves its tag without any key.
	if sealed, err := os.ReadFile(co.path("keys", "keyring")); err == nil && co.State.Rescue == nil && keyroot.Tag.Verify(sealed) == nil {
		return true, nil
	}
	if err := co.unlock(ctx); err != nil {
		return false, err
	}
	if base := co.State.base; !base.IsNil() {
		return keyroot == base, nil
	}
	return keyroot == co.State.pristine, nil
}

// origin is the version on the server that a rescue begins from: the one that
// is pristine here, or if that was lost the newest. A parcel that has taken
// the place of one that was lost will do if it is of the same kind.
func (co *Checkout) origin(ctx context.Context, srv *remote.Server) (version int, keyroot seal.Ref, err error) {
	st := &co.State
	cfg, _, err := srv.Config(ctx, st.Parcel)
	if errors.Is(err, parcel.ErrNoParcel) {
		return 0, seal.Ref{}, co.gone()
	}
	if err != nil {
		return 0, seal.Ref{}, err
	}
	if cfg.UUID == st.UUID {
		keyroot, err = srv.Keyroot(ctx, st.Parcel, st.Version)
		if err == nil && keyroot == st.pristine {
			return st.Version, keyroot, nil
		}
		if err != nil && !errors.Is(err, parcel.ErrNoVersion) {
			return 0, seal.Ref{}, err
		}
	} else if cfg.Crypto != co.cfg.Crypto || !bytes.Equal(cfg.Secret, st.secret) || vmmOf(cfg) != vmmOf(co.cfg) {
		return 0, seal.Ref{}, parcel.NewError(parcel.NoParcel,
			"parcel %s: is no longer on the server, and the one of that name is of another realm, encryption or VMM", st.Parcel).
			WithHint("isr resume -d %s runs what is here of it", st.Parcel)
	}
	keyroot, err = srv.Keyroot(ctx, st.Parcel, cfg.Version)
	return cfg.Version, keyroot, err
}

// place is where an object belongs: a chunk of an image, or the block of a
// level above.
type place struct {
	image string
	level int
	n     int64
	tag   seal.Tag
}

// chunks are those that cannot be read without it, of so many.
func (p place) chunks(of int64) keyring.Range {
	shift := 8 * p.level
	return keyring.Range{First: p.n << shift, Last: min((p.n+1)<<shift, of) - 1}
}

// wantWhole is an error, of kind NoObject, if something that the version here
// consists of is neither on the server nor in any place that this host can
// reach: it says what. The server has all that base leads to.
func (co *Checkout) wantWhole(ctx context.Context, srv *remote.Server, base seal.Ref) error {
	c, st := co.client, &co.State
	h, err := c.hoard()
	if err != nil {
		return err
	}
	defer h.Close()
	far := srv.Objects(st.Parcel)
	ladder := c.ladder(co.local(), h, far, c.sources(co.cfg, st.Server, far)...)
	defer ladder.Wait()
	_, there, err := rootOf(ctx, st.Parcel, co.cfg, ladder, base)
	if err != nil {
		return err
	}
	root, err := co.root(ctx, st.pristine, ladder)
	if nowhere(err) {
		return co.notWhole("its keyring")
	}
	if err != nil {
		return err
	}
	var places, lacking []place
	err = co.eachOverlay(ctx, func(name string, ov *image.Overlay, err error) error {
		if err != nil {
			return fmt.Errorf("parcel %s: %w", st.Parcel, err)
		}
		was, _ := there.Image(name)
		im, _ := root.Image(name)
		return keyring.Diff(ctx, co.sealer(), ladder, was, im, func(level int, n int64, _, ref seal.Ref) error {
			at := place{name, level, n, ref.Tag}
			switch {
			case ref.IsNil():
				return keyring.SkipBelow
			case level == 0 && ov.Covers(n): // written over, all of it
				return nil
			case level > 0:
				if _, err := ladder.Get(ctx, ref.Tag); nowhere(err) {
					lacking = append(lacking, at)
					return keyring.SkipBelow
				} else if err != nil {
					return err
				}
			}
			places = append(places, at)
			return nil
		})
	})
	if err != nil {
		return err
	}
	lost := ""
	if _, err := os.Stat(co.path("cfg", cfgFile)); os.IsNotExist(err) && root.Cfg != there.Cfg && !root.Cfg.IsNil() {
		if _, err := ladder.Get(ctx, root.Cfg.Tag); nowhere(err) {
			lost = "the files of its VMM"
		} else if err != nil {
			return err
		}
	}
	more, err := co.absentOf(ctx, srv, ladder, places)
	if err != nil {
		return err
	}
	for _, im := range root.Images {
		var spans []keyring.Range
		for _, p := range slices.Concat(lacking, more) {
			if p.image == im.Name {
				spans = append(spans, p.chunks(im.Chunks()))
			}
		}
		if spans == nil {
			continue
		}
		slices.SortFunc(spans, func(a, b keyring.Range) int { return cmp.Compare(a.First, b.First) })
		var r keyring.Ranges
		for _, s := range spans {
			r = r.Add(s)
		}
		if lost != "" {
			lost += "; "
		}
		lost += fmt.Sprintf("%s %s", im.Name, r)
	}
	if lost != "" {
		return co.notWhole(lost)
	}
	return nil
}

// nowhere reports whether err says that no good copy of an object was found.
func nowhere(err error) bool {
	return errors.Is(err, parcel.ErrNoObject) || errors.Is(err, seal.ErrCorrupt)
}

// absentOf is those of places whose objects are neither on the server nor
// here, nor where they could be had from; what could be had is here then.
func (co *Checkout) absentOf(ctx context.Context, srv *remote.Server, ladder *fetch.Ladder, places []place) ([]place, error) {
	st := &co.State
	at := make(map[seal.Tag][]place)
	var tags []seal.Tag
	for _, p := range places {
		if at[p.tag] == nil {
			tags = append(tags, p.tag)
		}
		at[p.tag] = append(at[p.tag], p)
	}
	missing, err := srv.Missing(ctx, st.Parcel, tags)
	if err != nil || len(missing) == 0 {
		return nil, err
	}
	p := co.client.UI.Progress("looking for "+st.Parcel, "objects", int64(len(missing)))
	defer p.Done()
	var lacking []place
	for i, tag := range missing {
		if _, err := ladder.Get(ctx, tag); nowhere(err) {
			lacking = append(lacking, at[tag]...)
		} else if err != nil {
			return nil, err
		}
		p.Set(int64(i+1), int64(len(missing)))
	}
	return lacking, nil
}

// notWhole says what of a version is nowhere, and what can be done.
func (co *Checkout) notWhole(what string) error {
	st := &co.State
	name := st.Parcel
	if st.Rescue != nil && st.Rescue.From != "" {
		name = st.Rescue.From
	}
	e := parcel.NewError(parcel.NoObject, "parcel %s: the server lost its version, and not all of it is here: %s: nowhere to be found", st.Parcel, what)
	if st.Memory != "" && !strings.Contains(what, keyring.Disk) && !strings.HasPrefix(what, "its keyring") {
		return e.WithHint("isr connect-lka adds a place that has it; or isr poweroff %s gives up the memory image, and isr rescue %s saves the disk", st.Parcel, name)
	}
	return e.WithHint("isr connect-lka adds a place that has it, as the hoard of another host of yours; then isr rescue %s again; isr resume -d %s runs what is here", name, st.Parcel)
}
