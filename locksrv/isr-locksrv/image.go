package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"isr/locksrv/event"
	"isr/store"
	"isr/store/atomicfile"
	"isr/store/diskimage"
	"isr/store/export"
	"isr/store/parcel"
)

type parcelImport struct {
	owned
	Image    string `arg:"" help:"The disk image." type:"path"`
	Format   string `help:"What it is, instead of what it looks like: raw, qcow2, vmdk, vdi, vpc, vhdx, ova, …" placeholder:"FORMAT"`
	DiskFile string `help:"Which disk of an OVA that has several." placeholder:"NAME"`
	making
}

func (c *parcelImport) Run(ctx context.Context, e *env) error {
	o, err := c.options()
	if err != nil {
		return err
	}
	if err := c.check(); err != nil {
		return err
	}
	o.Format, o.DiskFile = c.Format, c.DiskFile
	s, _, err := e.open()
	if err != nil {
		return err
	}
	stages := &stages{e: e}
	defer stages.end()
	o.Copying, o.Progress = stages.of("converting"), stages.of(c.Parcel)
	what := event.Event{Op: event.ParcelImport, User: c.User, Parcel: c.Parcel}
	return e.act(ctx, s, what, func(ctx context.Context) error {
		p, err := s.Import(ctx, c.User, c.Parcel, c.Image, o)
		if err != nil {
			return err
		}
		// What no format knows is taken as raw: a compressed image, or a letter.
		if cfg, err := p.Config(); err == nil && cfg.DiskSize%512 != 0 {
			stages.end()
			e.warn("image %s: %d bytes are no whole sectors: is it a disk?", c.Image, cfg.DiskSize)
		}
		return nil
	})
}

type parcelExport struct {
	owned
	File    string `arg:"" help:"The image file to make; - is standard output, always raw."`
	Version string `help:"Which version; default: the head." placeholder:"V" default:"head"`
	Format  string `help:"raw, qcow2, vmdk, vdi, vpc (VHD) or vhdx." default:"raw" placeholder:"FORMAT"`
	Force   bool   `help:"Replace a file that is there."`
}

func (c *parcelExport) Run(ctx context.Context, e *env) error {
	if err := c.check(); err != nil {
		return err
	}
	format, err := diskimage.CheckOutput(c.Format)
	if err != nil {
		return err
	}
	if c.File == "-" {
		if format != "raw" {
			return parcel.NewError(parcel.Usage, "format %s: cannot be written to standard output", format).
				WithHint("name a file, or convert the raw image at the other end")
		}
		if e.stdout.TTY {
			return parcel.NewError(parcel.Usage, "standard output is a terminal")
		}
	}
	s, p, number, err := e.openVersion(versioned{c.owned, c.Version})
	if err != nil {
		return err
	}
	what := event.Event{Op: event.ParcelExport, User: c.User, Parcel: c.Parcel, Version: number, What: format}
	return e.act(ctx, s, what, func(ctx context.Context) error {
		v, err := p.Version(number)
		if err != nil {
			return err
		}
		e.warnSuspended(p, v)
		stages := &stages{e: e}
		defer stages.end()
		if c.File == "-" {
			return export.Stream(ctx, p, e.stdout.Bytes(), v.Version, stages.of(c.Parcel))
		}
		return writeImage(ctx, p, v.Version, c.File, format, c.Force, stages)
	})
}

// warnSuspended says that a disk was taken from under a running machine.
func (e *env) warnSuspended(p *store.Parcel, v store.VersionInfo) {
	if v.Suspended != "" {
		e.warn("parcel %s: version %d: the machine is suspended: its disk is as after a power cut, "+
			"and what its programs had not written yet is not in it", p.Name(), v.Version)
	}
}

// vacant refuses to write an image where something is, unless it is a file and
// may be replaced.
func vacant(file string, force bool) error {
	fi, err := os.Lstat(file)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case fi.IsDir():
		return parcel.NewError(parcel.Usage, "%s: is a directory", file)
	case !force:
		return parcel.NewError(parcel.Exists, "%s: is there already", file).WithHint("--force replaces it")
	case !fi.Mode().IsRegular():
		return parcel.NewError(parcel.Usage, "%s: is no file", file)
	}
	return nil
}

// writeImage makes an image file of the disk of version v. It has its name
// once it is whole and durable; if it is killed before, only files that begin
// with .tmp- are left beside it.
func writeImage(ctx context.Context, p *store.Parcel, v int, file, format string, force bool, stages *stages) error {
	if err := vacant(file, force); err != nil {
		return err
	}
	out, err := atomicfile.Create(file, 0o600)
	if err != nil {
		return err
	}
	defer out.Abort()
	if format == "raw" {
		err = export.Disk(ctx, p, out.File, v, stages.of(p.Name()))
	} else {
		err = convertInto(ctx, p, v, out.Name(), format, stages)
	}
	if err != nil {
		return err
	}
	if force {
		return out.Commit()
	}
	err = out.CommitNew()
	if errors.Is(err, fs.ErrExist) {
		return parcel.NewError(parcel.Exists, "%s: is there already", file)
	}
	return err
}

// convertInto makes the image by way of a raw one, sparse, beside it.
func convertInto(ctx context.Context, p *store.Parcel, v int, out, format string, stages *stages) error {
	raw, err := os.CreateTemp(filepath.Dir(out), atomicfile.TempPrefix+"*")
	if err != nil {
		return err
	}
	defer os.Remove(raw.Name())
	defer raw.Close()
	if err := export.Disk(ctx, p, raw, v, stages.of(p.Name())); err != nil {
		return err
	}
	return diskimage.Write(ctx, raw.Name(), out, format, stages.of("converting"))
}

type userExport struct {
	Name   string `arg:"" help:"The user."`
	Dir    string `arg:"" help:"Directory for the images; it is made if it is not there." type:"path"`
	Format string `help:"raw, qcow2, vmdk, vdi, vpc (VHD) or vhdx." default:"qcow2" placeholder:"FORMAT"`
	Force  bool   `help:"Replace images that are there."`
	JSON   bool   `name:"json" help:"Print an object a line."`
}

// exported is a row of what userExport made.
type exported struct {
	Parcel    string `json:"parcel"`
	Version   int    `json:"version"`
	Time      string `json:"time"`
	File      string `json:"file"`
	Format    string `json:"format"`
	Disk      int64  `json:"disk"` // bytes
	Suspended bool   `json:"suspended,omitempty"`
	SHA256    string `json:"sha256"`

	comment string
}

func (c *userExport) Run(ctx context.Context, e *env) error {
	format, err := diskimage.CheckOutput(c.Format)
	if err != nil {
		return err
	}
	s, _, err := e.open()
	if err != nil {
		return err
	}
	names, err := s.Parcels(c.Name)
	if err != nil {
		return err
	}
	if len(names) == 0 {
		return parcel.NewError(parcel.NoParcel, "user %s: has no parcels", c.Name)
	}
	// Before anything is written: is there room for the names?
	target := func(name string) string { return filepath.Join(c.Dir, name+diskimage.Ext(format)) }
	for _, name := range names {
		if err := vacant(target(name), c.Force); err != nil {
			return err
		}
	}
	if err := os.Mkdir(c.Dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	var rows []exported
	var failed error // the first
	for _, name := range names {
		row := exported{Parcel: name, Format: format, File: target(name)}
		what := event.Event{Op: event.ParcelExport, User: c.Name, Parcel: name, What: format}
		err := e.act(ctx, s, what, func(ctx context.Context) error { return c.one(ctx, e, s, &row) })
		switch {
		case ctx.Err() != nil:
			return err
		case err != nil:
			// A damaged parcel does not keep the others from their owner.
			complain(e.stderr, "isr-locksrv", err)
			if failed == nil {
				failed = err
			}
			continue
		}
		rows = append(rows, row)
		if c.JSON {
			if err := e.rows().Encode(row); err != nil {
				return err
			}
		} else {
			fmt.Fprintf(e.stdout, "%s: version %d\n", row.File, row.Version) // if nobody reads it, the files are made all the same
		}
	}
	if err := c.describe(rows, format); err != nil {
		return err
	}
	if failed != nil {
		return parcel.NewError(parcel.KindOf(failed), "user %s: %d of %s not exported", c.Name, len(names)-len(rows), count(len(names), "parcel"))
	}
	return nil
}

// one exports the parcel that row names, and completes row.
func (c *userExport) one(ctx context.Context, e *env, s *store.Store, row *exported) error {
	p, err := s.Parcel(c.Name, row.Parcel)
	if err != nil {
		return err
	}
	v, err := p.Version(0)
	if err != nil {
		return err
	}
	cfg, err := p.Config()
	if err != nil {
		return err
	}
	e.warnSuspended(p, v)
	row.Version, row.Time, row.Suspended, row.comment = v.Version, stamp(v.Time), v.Suspended != "", cfg.Comment
	row.Disk = cfg.DiskSize
	stages := &stages{e: e}
	defer stages.end()
	if err := writeImage(ctx, p, v.Version, row.File, row.Format, c.Force, stages); err != nil {
		return err
	}
	row.SHA256, err = sumFile(ctx, row.File, stages.of("summing"))
	return err
}

// sumFile is the SHA-256 of a file, in hex.
func sumFile(ctx context.Context, name string, progress func(done, total int64)) (string, error) {
	f, err := os.Open(name)
	if err != nil {
		return "", err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return "", err
	}
	h := sha256.New()
	for done := int64(0); ; {
		n, err := io.CopyN(h, f, 4<<20)
		if done += n; progress != nil {
			progress(done, fi.Size())
		}
		if err == io.EOF {
			return hex.EncodeToString(h.Sum(nil)), nil
		}
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return "", err
		}
	}
}

// describe writes beside the images what they are, and their sums.
func (c *userExport) describe(rows []exported, format string) error {
	var text, sums strings.Builder
	fmt.Fprintf(&text, "The virtual machines of %s, as disk images.\n", c.Name)
	for _, r := range rows {
		base := filepath.Base(r.File)
		fmt.Fprintf(&sums, "%s  %s\n", r.SHA256, base)
		fmt.Fprintf(&text, "\n%s\n    version %d of %s, disk of %d bytes", base, r.Version, r.Time, r.Disk)
		if r.comment != "" {
			fmt.Fprintf(&text, "\n    %s", parcel.Clean(r.comment))
		}
		if r.Suspended {
			text.WriteString("\n    The machine was suspended: the disk is as after a power cut.\n" +
				"    The guest's own check of its file systems makes it whole.")
		}
		text.WriteString("\n")
	}
	fmt.Fprintf(&text, "\nFormat: %s. To have the files:\n"+
		"  start it as a machine's disk, in QEMU, virt-manager, VirtualBox or VMware;\n"+
		"  look into it, nothing being changed: guestmount -a FILE -i --ro DIR;\n"+
		"  make a raw image of it, to mount or write to a disk: qemu-img convert -O raw FILE RAW;\n"+
		"  other formats: qemu-img convert -O vdi, vmdk, vpc, vhdx, qcow2.\n"+
		"That nothing was changed on the way: sha256sum -c SHA256SUMS\n", format)
	for name, content := range map[string]string{"README.txt": text.String(), "SHA256SUMS": sums.String()} {
		if err := atomicfile.Write(filepath.Join(c.Dir, name), []byte(content), 0o600); err != nil {
			return err
		}
	}
	return nil
}
