package client

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"sync/atomic"
	"syscall"

	"isr/client/fetch"
	"isr/client/hoard"
	"isr/client/remote"
	"isr/store/parcel"
	"isr/store/seal"
)

// Exported is what an export did.
type Exported struct {
	Parcel  string `json:"parcel"`
	Version int    `json:"version"`
	Dir     string `json:"dir"`
	Objects int64  `json:"objects"` // of the version, all in the directory now
	Written int64  `json:"written"` // of these, written by this run
	Bytes   int64  `json:"bytes"`   // of those
}

// exportRung is the directory being filled, in its ladder.
const exportRung = "export"

// ExportOptions are what an export may be asked for.
type ExportOptions struct {
	Memory  bool // the memory image too
	Content bool // verify the content of what is there already
}

// ExportLKA makes dir a look-aside directory for a parcel: it writes there
// every object of the version that is checked out here, or else of the head.
// They come from wherever they are nearest; what is all here needs no network.
// It may be killed and run again: it writes what is missing. When it returns
// without an error all of it survives the stick being pulled.
func (c *Client) ExportLKA(ctx context.Context, name, dir string, o ExportOptions) (done Exported, err error) {
	v, err := c.versionHere(ctx, name)
	if err != nil {
		return done, err
	}
	done = Exported{Parcel: v.name, Version: v.version, Dir: dir}
	if fi, err := os.Stat(filepath.Dir(filepath.Clean(dir))); err != nil || !fi.IsDir() {
		return done, parcel.NewError(parcel.Usage, "directory %s: there is nothing to make it in", dir).
			WithHint("mount the disk it shall be on")
	}
	to := hoard.NewPublicDir(dir)
	defer to.Close()
	if err := to.Open(); err != nil {
		return done, exportError(dir, err)
	}
	h, err := c.hoard()
	if err != nil {
		return done, err
	}
	defer h.Close()
	var written, bytes atomic.Int64
	here := fetch.Rung{Name: exportRung, Source: to, Heal: to.Remove,
		Keep: func(ctx context.Context, tag seal.Tag, sealed []byte) error {
			err := to.Put(ctx, tag, sealed)
			if err == nil {
				written.Add(1)
				bytes.Add(int64(len(sealed)))
			}
			return err
		}}
	// What goes onto a stick need not be hoarded too.
	ladder := fetch.NewLadder(append([]fetch.Rung{here, {Name: "hoard", Source: h}}, v.rungs()...)...)
	ladder.OnNote(c.note)
	if v.co != nil {
		defer v.co.noteTraffic(v.srv)
	}
	ctx = fetch.WithClass(ctx, fetch.Hoard)
	tags, err := versionTags(ctx, v.name, v.cfg, ladder, v.keyroot, o.Memory)
	if err != nil {
		return done, exportError(dir, err)
	}
	there := make(map[seal.Tag]int64)
	if err := to.Walk(ctx, func(o hoard.Object) error { there[o.Tag] = o.Size; return nil }); err != nil {
		return done, exportError(dir, err)
	}
	done.Objects = int64(len(tags))
	for tag := range tags {
		size, ok := there[tag]
		if !ok || o.Content {
			continue
		}
		// A power cut may have left it empty or short: then it is written anew.
		want, err := h.Size(tag)
		if size == 0 || err == nil && size != want {
			if err := to.Remove(tag); err != nil {
				return done, exportError(dir, err)
			}
			continue
		}
		delete(tags, tag)
	}
	total := int64(len(tags))
	p := c.UI.Progress("exporting "+v.name, "objects", total)
	defer p.Done()
	got, err := ladder.Prefetch(ctx, maps.Keys(tags), hoardWorkers, func(g fetch.Progress) { p.Set(g.Objects, total) })
	ladder.Wait()
	done.Written, done.Bytes = written.Load(), bytes.Load()
	if err == nil {
		err = incomplete(v.name, v.version, got)
	}
	if serr := to.Sync(); err == nil {
		err = serr
	}
	return done, exportError(dir, err)
}

// incomplete is the error of a version of which not all is to be had.
func incomplete(name string, version int, got fetch.Progress) error {
	switch {
	case got.Missing > 0:
		return parcel.NewError(parcel.NoObject, "parcel %s: the server lacks %d objects of version %d", name, got.Missing, version).
			WithHint("ask its administrator to run isr-locksrv check")
	case got.Corrupt > 0:
		return parcel.NewError(parcel.Damaged, "parcel %s: %d objects of version %d are damaged on the server", name, got.Corrupt, version).
			WithHint("ask its administrator to run isr-locksrv check -c")
	}
	return nil
}

// exportError says of the directory what it does not allow.
func exportError(dir string, err error) error {
	var path *os.PathError
	switch {
	case err == nil:
		return nil
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return parcel.NewError(parcel.Full, "directory %s: no space left", dir).WithHint("make room there, and run it again: it goes on where it was")
	case errors.Is(err, syscall.EROFS), errors.Is(err, os.ErrPermission) && errors.As(err, &path):
		return parcel.NewError(parcel.Denied, "directory %s: cannot be written to: %v", dir, cause(err))
	case errors.Is(err, syscall.ENOTDIR), errors.Is(err, syscall.EEXIST):
		return parcel.NewError(parcel.Usage, "directory %s: is no directory", dir)
	case errors.As(err, &path):
		return fmt.Errorf("directory %s: %w", dir, err)
	}
	return err
}

// cause is the system's part of err.
func cause(err error) error {
	var no syscall.Errno
	if errors.As(err, &no) {
		return no
	}
	return err
}

// versionHere is a version to read objects of: the one that is checked out
// here, known without a network, or else the head.
type versionHere struct {
	name, server string
	version      int
	cfg          *parcel.Config
	keyroot      seal.Ref
	co           *Checkout // nil: not checked out
	srv          *remote.Server
	client       *Client
}

func (c *Client) versionHere(ctx context.Context, name string) (*versionHere, error) {
	v := &versionHere{client: c}
	co, err := c.Find(name)
	switch {
	case err == nil && co.State.Status != Acquiring:
		if err := co.unlock(ctx); err != nil {
			return nil, err
		}
		st := &co.State
		v.co, v.name, v.server, v.version = co, st.Parcel, st.Server, st.Version
		v.cfg, v.keyroot = co.cfg, st.pristine
		v.srv, err = c.server(st.Server, st.User)
		return v, err
	case err != nil && !errors.Is(err, parcel.ErrNoParcel):
		return nil, err
	}
	v.name, v.server = name, c.Server
	if v.srv, err = c.defaultServer(); err != nil {
		return nil, err
	}
	if v.cfg, _, err = v.srv.Config(ctx, name); err != nil {
		return nil, err
	}
	v.version = v.cfg.Version
	v.keyroot, err = v.srv.Keyroot(ctx, name, v.version)
	return v, err
}

// rungs is where the version's objects are beside the hoard, nearest first.
func (v *versionHere) rungs() []fetch.Rung {
	far := v.srv.Objects(v.name)
	rungs := append(v.client.lookAside(), v.client.sources(v.cfg, v.server, far)...)
	return append(rungs, fetch.Rung{Name: sourceRung, Source: far})
}

// versionTags is every object of the version that keyroot leads to, without
// those of its memory unless memory says so.
func versionTags(ctx context.Context, name string, cfg *parcel.Config, g fetch.Source, keyroot seal.Ref, memory bool) (map[seal.Tag]bool, error) {
	_, root, err := rootOf(ctx, name, cfg, g, keyroot)
	if err != nil {
		return nil, err
	}
	tags := make(map[seal.Tag]bool)
	for need, err := range (tree{cfg.Sealer(), g, keyroot, root}).needs(ctx, memory) {
		if err != nil {
			return nil, fmt.Errorf("parcel %s: %w", name, err)
		}
		tags[need.Tag] = true
	}
	return tags, nil
}
