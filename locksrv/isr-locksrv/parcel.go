package main

import (
	"context"

	"isr/locksrv/event"
	"isr/store"
	"isr/store/parcel"
	"isr/store/seal"
)

// owned names a parcel on the command line.
type owned struct {
	User   string `arg:"" help:"Whose parcel."`
	Parcel string `arg:"" help:"Its name."`
}

func (o owned) check() error {
	if err := parcel.CheckName(o.User); err != nil {
		return err
	}
	return parcel.CheckName(o.Parcel)
}

// making is how a new parcel is to be.
type making struct {
	Memory    size     `help:"Memory of the machine." placeholder:"SIZE" default:"0"`
	VMM       string   `name:"vmm" help:"Driver that runs it." default:"qemu"`
	ChunkSize size     `help:"Size of a chunk of the disk, a power of two from 4K to 4M." placeholder:"SIZE"`
	MemChunk  size     `help:"Size of a chunk of the memory; half of a disk chunk if not given." placeholder:"SIZE"`
	Crypto    string   `help:"Crypto suite: aes256-sha256 or blowfish-sha1." placeholder:"SUITE"`
	Compress  string   `help:"Codec: gzip, zstd or none." placeholder:"CODEC"`
	Src       []string `help:"Where clients read the content from; may come more than once." placeholder:"URL" sep:"none"`
	Comment   string   `help:"What it is." placeholder:"TEXT"`
}

func (m making) options() (o store.CreateOptions, err error) {
	o = store.CreateOptions{MemSize: int64(m.Memory), ChunkSize: int(m.ChunkSize), MemChunk: int(m.MemChunk),
		VMM: m.VMM, Src: m.Src, Comment: parcel.Clean(m.Comment)}
	if m.Crypto != "" {
		if o.Crypto, err = seal.ParseSuite(m.Crypto); err != nil {
			return o, parcel.NewError(parcel.Usage, "--crypto: %v", err)
		}
	}
	if m.Compress != "" {
		if o.Compress, err = seal.ParseCodec(m.Compress); err != nil {
			return o, parcel.NewError(parcel.Usage, "--compress: %v", err)
		}
	}
	return o, nil
}

type parcelCreate struct {
	owned
	Disk size `help:"Size of the disk." placeholder:"SIZE" required:""`
	making
}

func (c *parcelCreate) Run(ctx context.Context, e *env) error {
	o, err := c.options()
	if err != nil {
		return err
	}
	if err := c.check(); err != nil {
		return err
	}
	o.DiskSize = int64(c.Disk)
	s, _, err := e.open()
	if err != nil {
		return err
	}
	return e.act(ctx, s, event.Event{Op: event.ParcelCreate, User: c.User, Parcel: c.Parcel}, func(ctx context.Context) error {
		_, err := s.Create(ctx, c.User, c.Parcel, o)
		return err
	})
}
