package client

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/klauspost/compress/gzip"

	"isr/client/fetch"
	"isr/client/hoard"
	"isr/client/image"
	"isr/client/remote"
	"isr/client/wrap"
	"isr/locksrv/proto"
	"isr/store/keyring"
	"isr/store/parcel"
	"isr/store/seal"
)

// Finding is one thing that a check found.
type Finding = proto.Finding

// Checked is what a check looked at and found.
type Checked struct {
	Parcel   string    `json:"parcel"`
	Version  int       `json:"version,omitempty"` // that is pristine here, or was checked on the server; 0: all
	Where    string    `json:"where"`             // this host's name, or the server's
	Content  bool      `json:"content"`
	Chunks   int64     `json:"chunks"`  // modified ones looked at
	Objects  int64     `json:"objects"` // on this host, looked at
	Absent   int64     `json:"absent"`  // of the version, not on this host: no fault
	Errors   int       `json:"errors"`
	Findings []Finding `json:"findings"`
}

func (c *Checked) add(f Finding) {
	if f.Severity == proto.Bad {
		c.Errors++
	}
	c.Findings = append(c.Findings, f)
}

func (c *Checked) bad(do, format string, args ...any) {
	c.add(Finding{Severity: proto.Bad, What: fmt.Sprintf(format, args...), Do: do})
}

func (c *Checked) note(do, format string, args ...any) {
	c.add(Finding{Severity: proto.Note, What: fmt.Sprintf(format, args...), Do: do})
}

// CheckOptions say how closely a checkout is looked at.
type CheckOptions struct {
	Content bool // read every byte that is here
	Splice  bool // and take back modified chunks of the disk that are damaged
}

// CheckLocal checks a checkout. It mends what can be made again: a damaged
// object of the hoard is removed, one that was sealed and not committed is
// sealed anew by the next sync. With Splice, damaged chunks of the disk go
// back to the pristine version, and the parcel is marked damaged. That there
// are findings is no error.
func (c *Client) CheckLocal(ctx context.Context, name string, o CheckOptions) (*Checked, error) {
	o.Content = o.Content || o.Splice
	out := &Checked{Parcel: name, Where: c.Host, Content: o.Content, Findings: []Finding{}}
	if _, err := c.Find(name); errors.Is(err, parcel.ErrNoParcel) {
		if berr := (&Checkout{Dir: filepath.Join(c.Dir, filepath.Base(name))}).load(); berr != nil && !errors.Is(berr, fs.ErrNotExist) {
			out.bad(fmt.Sprintf("keep a copy of the directory; to go on from the newest version: isr clean -f %s once it is moved away", name), "%v", berr)
			return out, nil
		}
	}
	co, err := c.enter(ctx, name)
	if err != nil {
		return nil, err
	}
	defer co.letGo()
	out.Parcel, out.Version = co.State.Parcel, co.State.Version
	if co.State.Orphaned != "" {
		out.bad("isr rescue "+name+" keeps its work as a new parcel", "orphaned: %s", co.State.Orphaned)
	}
	if co.State.Lost != "" {
		out.bad("isr rescue "+name+" keeps what is here as a new parcel", "lost by the server: %s", co.State.Lost)
	}
	if err := co.unlock(ctx); err != nil {
		if errors.Is(err, wrap.ErrNoMatch) || errors.Is(err, wrap.ErrNoSigner) {
			return nil, err
		}
		out.bad("isr clean "+name+" gives it up", "%v", err)
		return out, nil
	}
	h, err := c.hoard()
	if err != nil {
		return nil, err
	}
	defer h.Close()
	k := &checkoutCheck{Checked: out, co: co, h: h, o: o, discard: "isr discard " + name + " goes back to version " + fmt.Sprint(co.State.Version)}
	if err := k.all(ctx); err != nil {
		return nil, err
	}
	if st := &co.State; st.Damaged != "" {
		out.bad("isr rescue "+name+" keeps the rest as a new parcel; "+k.discard, "marked damaged, so that it cannot be checked in: %s", st.Damaged)
	}
	return out, nil
}

// checkoutCheck is the check of one checkout that is seized and unlocked.
type checkoutCheck struct {
	*Checked
	co      *Checkout
	h       *hoard.Hoard
	o       CheckOptions
	discard string // what to do where nothing else helps
}

func (k *checkoutCheck) all(ctx context.Context) error {
	co := k.co
	k.records()
	if err := k.sealed(ctx); err != nil {
		return err
	}
	root, err := k.root(ctx)
	if err != nil || root == nil {
		return err
	}
	if cfg := co.cfg; cfg != nil {
		if im, _ := root.Image(keyring.Disk); im.Size != cfg.DiskSize {
			k.bad(k.discard, "parcel.cfg: disk of %d bytes, the version's has %d", cfg.DiskSize, im.Size)
		}
	}
	k.cfg(ctx, root)
	for _, im := range root.Images {
		if im.Name == keyring.Memory && co.State.Memory == "" {
			continue
		}
		if err := k.overlay(ctx, im); err != nil {
			return err
		}
		if err := k.pristine(ctx, im); err != nil {
			return err
		}
	}
	return nil
}

// records looks at the small files beside the record itself.
func (k *checkoutCheck) records() {
	st := &k.co.State
	again := fmt.Sprintf("isr rescue %s keeps its work as a new parcel", st.Parcel)
	if l, err := k.co.nonce(); err != nil || l.Nonce == "" || l.Acquisition != st.Acquisition {
		k.bad(again, "the proof of its lock was damaged on this host")
	}
	if cfg := k.co.cfg; cfg.UUID != st.UUID || cfg.User != st.User || cfg.Parcel != st.Parcel {
		k.bad("isr clean "+st.Parcel+" gives it up", "parcel.cfg is of %s/%s, %s", cfg.User, cfg.Parcel, cfg.UUID)
	}
}

// sealed looks at what a sync has sealed and not yet committed. It is all in
// the overlay still, so that what is damaged can be sealed again.
func (k *checkoutCheck) sealed(ctx context.Context) error {
	co, st, local := k.co, &k.co.State, k.co.local()
	spoilt := 0
	err := local.Walk(ctx, func(o hoard.Object) error {
		k.Objects++
		bad := o.Size == 0 || o.Size > proto.MaxObject
		if !bad && k.o.Content {
			_, err := local.Get(ctx, o.Tag)
			bad = err != nil
		}
		if bad {
			spoilt++
			return local.Remove(o.Tag)
		}
		return nil
	})
	if err != nil {
		return err
	}
	if st.Status == Staged {
		if _, err := local.Size(st.staged.Tag); err != nil && spoilt == 0 {
			spoilt++
		}
	}
	if spoilt == 0 {
		return nil
	}
	if st.Status == Staged {
		st.Status, st.staged = Suspended, seal.Ref{}
		if err := co.save(); err != nil {
			return err
		}
	}
	k.note("nothing: the next isr sync seals them anew", "damaged objects, sealed for a sync: %d", spoilt)
	return nil
}

// here is what is on this host.
func (k *checkoutCheck) here() *fetch.Ladder { return k.co.client.ladder(k.co.local(), k.h, nil) }

// root is the root block of the pristine version: from this host, else from
// the server, if that can be had. nil means that there is none.
func (k *checkoutCheck) root(ctx context.Context) (*keyring.Root, error) {
	co := k.co
	p, err := os.ReadFile(co.path("keys", "keyring"))
	whole := err == nil && co.State.pristine.Tag.Verify(p) == nil
	root, err := co.root(ctx, co.State.pristine, k.here())
	from := "the hoard's copy"
	if errors.Is(err, parcel.ErrNoObject) {
		from = "the server's copy"
		srv, serr := co.client.server(co.State.Server, co.State.User)
		if serr != nil {
			return nil, serr
		}
		root, err = co.root(remote.WithPolicy(ctx, remote.Policy{}), co.State.pristine, co.client.ladder(nil, k.h, srv.Objects(co.State.Parcel)))
		if errors.Is(err, parcel.ErrUnreachable) {
			k.bad("connect and check it again: the server has it", "keyring of version %d: damaged, and no copy is on this host", co.State.Version)
			return nil, nil
		}
	}
	switch {
	case err != nil && ctx.Err() != nil:
		return nil, err
	case err != nil:
		k.bad(k.discard, "keyring of version %d: %v", co.State.Version, err)
		return nil, nil
	case !whole:
		k.note("", "keyring of version %d: was damaged; %s took its place", co.State.Version, from)
	}
	return root, nil
}

// cfg looks at the VMM's files.
func (k *checkoutCheck) cfg(ctx context.Context, root *keyring.Root) {
	co := k.co
	box, err := os.ReadFile(co.path("cfg", cfgFile))
	if errors.Is(err, fs.ErrNotExist) {
		if root.Cfg.IsNil() {
			return
		}
		sealed, err := k.here().Get(ctx, root.Cfg.Tag)
		if errors.Is(err, parcel.ErrNoObject) {
			k.Absent++
			return
		}
		k.Objects++
		var archive []byte
		if err == nil {
			archive, err = co.sealer().Unseal(root.Cfg, sealed, seal.MaxPlain)
		}
		if err == nil {
			err = testArchive(archive)
		}
		if err != nil {
			k.bad(k.discard, "files of the VMM: %v", err)
		}
		return
	}
	var archive []byte
	if err == nil {
		archive, err = wrap.Unseal(co.key, box, cfgFile)
	}
	if err == nil {
		err = testArchive(archive)
	}
	if err != nil {
		k.bad("isr rescue "+co.State.Parcel+" keeps the disk as a new parcel; "+k.discard, "files of the VMM: %v", err)
	}
}

// testArchive reads a cfg archive to its end.
func testArchive(archive []byte) error {
	if len(archive) == 0 {
		return nil
	}
	zr, err := gzip.NewReader(bytes.NewReader(archive))
	if err != nil {
		return err
	}
	for tr := tar.NewReader(zr); ; {
		if _, err := tr.Next(); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
	}
}

// overlay looks at what was modified of an image.
func (k *checkoutCheck) overlay(ctx context.Context, im keyring.Image) error {
	co, st := k.co, &k.co.State
	ov, err := image.OpenOverlay(co.path("hdk"), im.Name, im.Size, im.ChunkSize, co.key)
	if errors.Is(err, image.ErrOverlay) {
		do := k.discard
		if im.Name == keyring.Memory {
			do = "isr poweroff " + st.Parcel + " deletes the memory image"
		}
		k.add(Finding{Severity: proto.Bad, Image: im.Name, What: "what was modified cannot be read: " + err.Error(), Do: do})
		return nil
	}
	if err != nil {
		return fmt.Errorf("parcel %s: %w", st.Parcel, err)
	}
	defer ov.Close()
	k.Chunks += ov.ModifiedCount()
	if err := ov.SumsError(); err != nil {
		k.add(Finding{Severity: proto.Bad, Image: im.Name, What: err.Error() + ": what was modified is taken as it is",
			Do: "isr checkp -Y " + st.Parcel + " sums it up anew"})
	} else if !ov.Summed() && ov.ModifiedCount() > 0 {
		k.add(Finding{Severity: proto.Note, Image: im.Name, What: "not summed up, as its keeper was killed: what was modified is taken as it is"})
	}
	bad := make(map[string][]int64) // chunks by what is wrong
	if k.o.Content {
		p := co.client.UI.Progress("checking "+im.Name, "chunks", 0)
		err = ov.Check(ctx, func(n int64, err error) {
			what := "damaged: " + err.Error()
			bad[what] = append(bad[what], n)
		}, p.Set)
		p.Done()
		if err != nil {
			return err
		}
	} else if fi, err := os.Stat(co.path("hdk", im.Name+".data")); err == nil {
		for n := range ov.Modified() {
			if end := min((n+1)*int64(im.ChunkSize), im.Size); fi.Size() < end {
				bad["cut short"] = append(bad["cut short"], n)
			}
		}
	}
	var all []int64
	for what, nums := range bad {
		all = append(all, nums...)
		do := fmt.Sprintf("isr checkp -Y %s goes back to version %d in them; isr rescue %s keeps the rest as a new parcel", st.Parcel, st.Version, st.Parcel)
		if im.Name == keyring.Memory {
			do = "isr poweroff " + st.Parcel + " deletes the memory image; the disk is kept"
		} else if k.o.Splice {
			do = fmt.Sprintf("done: they are as in version %d", st.Version)
		}
		k.add(Finding{Severity: proto.Bad, Image: im.Name, Chunks: keyring.RangesOf(nums...), What: what, Do: do})
	}
	switch {
	case k.o.Splice && im.Name == keyring.Disk && len(all) > 0:
		return co.splice(ctx, ov, all)
	case k.o.Content && len(all) == 0 && !ov.Summed() && ov.ModifiedCount() > 0 && (ov.SumsError() == nil || k.o.Splice):
		return ov.Sum(ctx)
	}
	return nil
}

// splice takes damaged chunks of the disk back to the pristine version. The
// mark comes first: what is spliced is never checked in unmarked.
func (co *Checkout) splice(ctx context.Context, ov *image.Overlay, nums []int64) error {
	st := &co.State
	mark := fmt.Sprintf("disk %s of %s taken back to version %d", keyring.RangesOf(nums...), co.client.Host, st.Version)
	if st.Damaged != "" {
		mark = st.Damaged + "; " + mark
	}
	st.Damaged = mark
	if st.Status == Staged { // what is sealed was made of them
		st.Status, st.staged = Suspended, seal.Ref{}
	}
	if err := co.save(); err != nil {
		return err
	}
	return ov.Revert(ctx, nums)
}

// pristine looks at the objects of an image that are on this host. One that
// is damaged is removed: it can be fetched again, as what is absent can.
func (k *checkoutCheck) pristine(ctx context.Context, im keyring.Image) error {
	co, here, s := k.co, k.here(), k.co.sealer()
	p := co.client.UI.Progress("checking the hoard for "+im.Name, "chunks", im.Chunks())
	defer p.Done()
	var lost, unopened []int64
	err := keyring.Walk(ctx, s, here, im, func(level int, n int64, ref seal.Ref) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		if level == 0 {
			p.Set(n, im.Chunks())
		}
		size, err := k.h.Size(ref.Tag)
		if err != nil {
			k.Absent++
			return keyring.SkipBelow
		}
		k.Objects++
		bad := size == 0 || size > proto.MaxObject
		var sealed []byte
		if !bad && (level > 0 || k.o.Content) {
			if sealed, err = k.h.Get(ctx, ref.Tag); err != nil {
				bad = true
			}
		}
		switch {
		case bad:
			lost = append(lost, n<<(8*level))
			if err := k.h.Remove(ref.Tag); err != nil {
				return err
			}
		case level > 0:
			if _, err := keyring.GetBlock(ctx, s, here, ref, level); err == nil {
				return nil
			}
			unopened = append(unopened, n<<(8*level))
		case sealed != nil:
			if _, err := s.Unseal(ref, sealed, im.ChunkSize); err == nil {
				return nil
			}
			unopened = append(unopened, n)
		default:
			return nil
		}
		return keyring.SkipBelow
	})
	if err != nil {
		return err
	}
	if len(lost) > 0 {
		k.add(Finding{Severity: proto.Note, Image: im.Name, Chunks: keyring.RangesOf(lost...), What: "damaged in the hoard, and removed there",
			Do: "nothing: they are fetched when they are needed; isr hoard " + co.State.Parcel + " fetches them now"})
	}
	if len(unopened) > 0 {
		k.add(Finding{Severity: proto.Bad, Image: im.Name, Chunks: keyring.RangesOf(unopened...), What: "their keys do not open them",
			Do: "isr checkp -e -c " + co.State.Parcel})
	}
	return nil
}

// CheckServer has the server check a version, 0 for the newest, and says of
// each damaged object whether this host has a good copy.
func (c *Client) CheckServer(ctx context.Context, name string, version int, content bool) (*Checked, error) {
	server, user := c.Server, c.User
	co, err := c.Find(name)
	switch {
	case err == nil:
		server, user, name = co.State.Server, co.State.User, co.State.Parcel
	case !errors.Is(err, parcel.ErrNoParcel):
		return nil, err
	}
	srv, err := c.server(server, user)
	if err != nil {
		return nil, err
	}
	if version == 0 {
		cfg, _, err := srv.Config(ctx, name)
		if err != nil {
			return nil, err
		}
		version = cfg.Version
	}
	h, err := c.hoard()
	if err != nil {
		return nil, err
	}
	defer h.Close()
	out := &Checked{Parcel: name, Version: version, Where: srv.Host(), Content: content, Findings: []Finding{}}
	p := c.UI.Progress("the server checks "+name, "", 0)
	found, err := srv.CheckParcel(ctx, name, version, content)
	p.Done()
	if err != nil && !(errors.Is(err, parcel.ErrDamaged) && len(found) > 0) {
		return nil, err
	}
	for _, f := range found {
		if f.Tag != "" && f.Severity == proto.Bad {
			f.Do = "ask the server's administrator to put it back from a backup"
			if tag, err := seal.ParseTag(f.Tag); err == nil {
				if _, err := h.Get(ctx, tag); err == nil {
					f.Do = "this host has a good copy in its hoard, and reads that; " + f.Do + " or from " + filepath.Join(h.Path(), f.Tag[:2], f.Tag)
				}
			}
		}
		out.add(f)
	}
	return out, nil
}
