// Package diff says how one version of a parcel differs from another: which
// chunks of which images, and how much that is in objects.
//
// It reads only what differs of the two keyrings, and changes nothing.
package diff

import (
	"context"

	"isr/store"
	"isr/store/keyring"
	"isr/store/seal"
)

// Diff is how one version differs from another.
type Diff struct {
	From   store.VersionInfo
	To     store.VersionInfo
	Cfg    bool // the cfg archive is another one
	Images []Image
	// Of those that To has and From has not where the two differ: keyring
	// blocks included.
	Objects, Bytes int64
}

// Image is how one image differs. Numbers count chunks.
type Image struct {
	Name      string
	FromSize  int64 // bytes
	ToSize    int64
	ChunkSize int   // bytes, of To; if From's is another one, all of it counts as added
	Changed   int64 // neither is zeros
	Added     int64 // From's is zeros
	Zeroed    int64 // To's is zeros, or beyond its end
	Ranges    keyring.Ranges
}

// Chunks is the number of chunks that differ.
func (d Image) Chunks() int64 { return d.Changed + d.Added + d.Zeroed }

// Versions compares two versions, and reads only what differs of their keyrings.
func Versions(ctx context.Context, p *store.Parcel, from, to int) (*Diff, error) {
	d := new(Diff)
	var roots [2]*keyring.Root
	seen := [2]map[seal.Tag]bool{{}, {}}
	var sealer seal.Sealer
	for i, v := range []int{from, to} {
		rec, cfg, err := p.Published(v)
		if err != nil {
			return nil, err
		}
		if roots[i], err = p.OpenRoot(ctx, p, cfg, rec.Keyroot); err != nil {
			return nil, err
		}
		*[]*store.VersionInfo{&d.From, &d.To}[i] = rec.VersionInfo
		sealer = cfg.Sealer()
		seen[i][rec.Keyroot.Tag] = true
		seen[i][roots[i].Cfg.Tag] = true
	}
	d.Cfg = roots[0].Cfg != roots[1].Cfg
	var names []string
	for _, root := range roots {
		for _, im := range root.Images {
			names = append(names, im.Name)
		}
	}
	done := make(map[string]bool)
	for _, name := range names {
		if done[name] {
			continue
		}
		done[name] = true
		im, err := diffImage(ctx, p, sealer, name, roots, seen)
		if err != nil {
			return nil, p.Wrap(err)
		}
		d.Images = append(d.Images, im)
	}
	for tag := range seen[1] {
		if seen[0][tag] {
			continue
		}
		// What Versions made itself is not there.
		if _, size, _, err := p.Where(tag); err == nil {
			d.Objects++
			d.Bytes += size
		}
	}
	return d, nil
}

// diffImage compares the images of that name. The tags it meets go into seen.
func diffImage(ctx context.Context, p *store.Parcel, s seal.Sealer, name string, roots [2]*keyring.Root, seen [2]map[seal.Tag]bool) (Image, error) {
	old, hadIt := roots[0].Image(name)
	cur, hasIt := roots[1].Image(name)
	switch {
	case !hadIt:
		old = keyring.NewImage(name, 0, cur.ChunkSize)
	case !hasIt:
		cur = keyring.NewImage(name, 0, old.ChunkSize)
	}
	d := Image{Name: name, FromSize: old.Size, ToSize: cur.Size, ChunkSize: cur.ChunkSize}
	// Made as long as each other, their trees have the same shape.
	made := keyring.Scratch{}
	get := made.Before(p)
	if old.ChunkSize == cur.ChunkSize {
		for _, im := range []*keyring.Image{&old, &cur} {
			var err error
			if *im, err = keyring.Resize(ctx, s, get, made, *im, max(d.FromSize, d.ToSize)); err != nil {
				return d, err
			}
		}
	}
	err := keyring.Diff(ctx, s, get, old, cur, func(level int, n int64, a, b seal.Ref) error {
		for i, ref := range []seal.Ref{a, b} {
			if !ref.IsNil() {
				seen[i][ref.Tag] = true
			}
		}
		if level > 0 {
			return nil
		}
		switch {
		case a.IsNil():
			d.Added++
		case b.IsNil():
			d.Zeroed++
		default:
			d.Changed++
		}
		d.Ranges = d.Ranges.Add(keyring.Range{First: n, Last: n})
		return nil
	})
	return d, err
}
