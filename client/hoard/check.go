package hoard

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"

	"isr/store/atomicfile"
	"isr/store/parcel"
	"isr/store/seal"
)

// Check looks at every object, with content also at its bytes, on all cores.
// What is not what its name says is removed, which is all it takes to mend a
// cache, and told to report with the reason. progress, if not nil, is told
// bytes looked at and in the hoard. Neither is called concurrently. The usage
// on record is put right.
func (h *Hoard) Check(ctx context.Context, content bool, report func(tag seal.Tag, err error), progress func(done, total int64)) (Usage, error) {
	u, err := h.Usage(ctx)
	if err != nil {
		return u, err
	}
	total := u.Bytes
	var mu sync.Mutex
	var done int64
	look := func(o Object) error {
		err := error(nil)
		if o.Size == 0 {
			err = fmt.Errorf("object %s: empty: %w", o.Tag, seal.ErrCorrupt)
		} else if content {
			_, _, err = h.Dir.get(o.Tag)
		}
		mu.Lock()
		defer mu.Unlock()
		if done += o.Size; progress != nil {
			progress(done, max(done, total))
		}
		if err == nil || errors.Is(err, parcel.ErrNoObject) { // evicted meanwhile
			return nil
		}
		report(o.Tag, err)
		if !errors.Is(err, seal.ErrCorrupt) {
			return nil
		}
		u.Objects--
		u.Bytes -= o.Size
		return h.Remove(o.Tag)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	work := make(chan Object)
	var wg sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			for o := range work {
				if err := look(o); err != nil {
					cancel(err)
				}
			}
		})
	}
	err = h.Walk(ctx, func(o Object) error {
		select {
		case work <- o:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	})
	close(work)
	wg.Wait()
	if err != nil {
		return u, err
	}
	return u, h.recount(u.Bytes)
}

// recount makes n the usage on record.
func (h *Hoard) recount(n int64) error {
	unlock, err := h.lock()
	if err != nil {
		return err
	}
	defer unlock()
	h.added.Store(0)
	return h.setUsage(n)
}

// Stray are the files in the hoard's directory that are not its own, by path
// within it.
func (h *Hoard) Stray() ([]string, error) {
	var stray []string
	err := filepath.WalkDir(h.path, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil || path == h.path {
			return err
		}
		name, err := filepath.Rel(h.path, path)
		if err != nil {
			return err
		}
		if ours(name, d) {
			return nil
		}
		stray = append(stray, name)
		if d.IsDir() {
			return fs.SkipDir
		}
		return nil
	})
	return stray, err
}

// ours reports whether the file called name in a hoard has business there.
func ours(name string, d fs.DirEntry) bool {
	dir, base := filepath.Split(name)
	switch {
	case strings.HasPrefix(base, atomicfile.TempPrefix):
		return !d.IsDir() // of a process at work, or swept by the next walk
	case dir == "" && d.IsDir():
		b, err := hex.DecodeString(name)
		return name == "pins" || err == nil && len(b) == 1 && hex.EncodeToString(b) == name
	case dir == "":
		return slices.Contains([]string{"usage", "lock", "evict"}, name) && d.Type().IsRegular()
	case dir == "pins/":
		return checkID(strings.TrimSuffix(base, doneExt)) == nil && d.Type().IsRegular()
	}
	tag, err := seal.ParseTag(base)
	return err == nil && d.Type().IsRegular() && tag.String() == base && dir == base[:2]+"/"
}

// BadPins are the UUIDs of the pins that cannot be read, with the reasons.
func (h *Hoard) BadPins() (map[string]error, error) {
	bad := make(map[string]error)
	return bad, h.eachPin(func(_ *pinFile, id string, err error) error {
		if err != nil {
			bad[id] = err
		}
		return nil
	})
}

// Lacking are the tags that a pin names and the hoard does not have.
func (h *Hoard) Lacking(id string) ([]seal.Tag, error) {
	tags, err := h.Tags(id)
	if err != nil {
		return nil, err
	}
	lacking := tags[:0]
	for _, t := range tags {
		has, err := h.Has(t)
		if err != nil {
			return nil, err
		}
		if !has {
			lacking = append(lacking, t)
		}
	}
	return lacking, nil
}

// Compact removes every object that no pin and not needed asks for, and puts
// the usage on record right; dry only counts them.
func (h *Hoard) Compact(ctx context.Context, needed func(seal.Tag) bool, dry bool) (Freed, error) {
	var freed Freed
	shards, err := h.shards()
	if err != nil {
		return freed, err
	}
	goes := func(o Object) bool { return !needed(o.Tag) }
	if dry {
		goes = func(o Object) bool {
			if !needed(o.Tag) {
				freed.Objects++
				freed.Bytes += o.Size
			}
			return false
		}
	}
	for _, shard := range shards {
		if err := h.reap(ctx, shard, &freed, goes); err != nil {
			return freed, err
		}
		if !dry {
			os.Remove(filepath.Join(h.path, hex.EncodeToString([]byte{shard}))) // if it is empty
		}
	}
	if dry {
		return freed, nil
	}
	u, err := h.Usage(ctx)
	if err != nil {
		return freed, err
	}
	return freed, h.recount(u.Bytes)
}
