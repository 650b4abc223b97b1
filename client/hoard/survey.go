package hoard

import (
	"context"
	"errors"
	"time"

	"isr/store/seal"
)

// Kept is what of one pinned parcel is here. The bytes are those of the
// objects that are here: how large the others are, nobody here knows.
type Kept struct {
	Pin
	Here      int64     // objects, of Count
	Bytes     int64     // of these
	DiskOnly  int64     // bytes that only the disk needs
	MemOnly   int64     // bytes that only the memory needs; an object of both is in neither
	Shared    int64     // bytes that another pinned parcel needs too
	Completed time.Time // when all of it was last seen to be here; zero: never
}

// Complete reports whether all of it is here.
func (k Kept) Complete() bool { return k.Here == k.Count }

// Survey counts what is here, by pinned parcel and in all. It looks at names
// and sizes, takes no lock, and its memory does not grow with the hoard. Of
// pins that cannot be read the error, which wraps ErrBadPin, names each; the
// rest is good all the same.
func (h *Hoard) Survey(ctx context.Context) ([]Kept, Usage, error) {
	u := Usage{Quota: h.quota}
	var kept []Kept
	var files []*pinFile
	defer func() {
		for _, f := range files {
			f.Close()
		}
	}()
	pins, bad := h.Pins()
	if bad != nil && !errors.Is(bad, ErrBadPin) {
		return nil, u, bad
	}
	for _, p := range pins {
		f, err := h.openPin(p.UUID)
		if err != nil {
			continue // unpinned meanwhile
		}
		files = append(files, f)
		kept = append(kept, Kept{Pin: f.Pin, Completed: h.CompletedAt(p.UUID)})
	}
	type place struct {
		pin    int
		places [parts]uint32
	}
	for shard := range 256 {
		needs := make(map[seal.Tag][]place)
		for i, f := range files {
			err := f.shard(byte(shard), func(e entry) error {
				needs[e.tag] = append(needs[e.tag], place{i, e.places})
				return nil
			})
			if err != nil {
				return nil, u, err
			}
		}
		err := h.walkShard(ctx, byte(shard), func(o Object) error {
			u.Objects++
			u.Bytes += o.Size
			by := needs[o.Tag]
			if len(by) == 0 || o.Size == 0 {
				return nil
			}
			u.PinnedObjects++
			u.PinnedBytes += o.Size
			for _, n := range by {
				k := &kept[n.pin]
				k.Here++
				k.Bytes += o.Size
				switch {
				case n.places[Memory] == 0:
					k.DiskOnly += o.Size
				case n.places[Disk] == 0:
					k.MemOnly += o.Size
				}
				if len(by) > 1 {
					k.Shared += o.Size
				}
			}
			return nil
		})
		if err != nil {
			return nil, u, err
		}
	}
	return kept, u, bad
}

// PinnedWith is the bytes of what would be here and pinned if the parcel needed
// these objects instead of those it needs now.
func (h *Hoard) PinnedWith(ctx context.Context, id string, tags map[seal.Tag]bool) (int64, error) {
	var bytes int64
	for shard := range 256 {
		others := make(map[seal.Tag]bool)
		err := h.eachPin(func(f *pinFile, of string, err error) error {
			if err != nil || of == id {
				return nil // what cannot be read keeps everything, and is told elsewhere
			}
			return f.shard(byte(shard), func(e entry) error { others[e.tag] = true; return nil })
		})
		if err == nil {
			err = h.walkShard(ctx, byte(shard), func(o Object) error {
				if tags[o.Tag] || others[o.Tag] {
					bytes += o.Size
				}
				return nil
			})
		}
		if err != nil {
			return 0, err
		}
	}
	return bytes, nil
}

// Free is how many bytes the file system of the hoard has room for.
func (h *Hoard) Free() (int64, error) { return free(h.path) }

// Quota is the hoard's quota in bytes; 0 is no limit.
func (h *Hoard) Quota() int64 { return h.quota }
