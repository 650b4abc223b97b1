package hoard

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"

	"github.com/gofrs/flock"
)

// Freed is what an eviction or Drop removed.
type Freed struct{ Objects, Bytes int64 }

// slack is the part of the quota, one in so many, that an eviction frees
// beyond what it must, so that the next one is not due at once.
const slack = 16

// Evict brings the hoard under its quota: objects of no pinned parcel, least
// recently used first. One process at a time does it, in steps between which
// pins may change; if another is at it, Evict returns at once. Pinned objects
// count but stay, so the hoard may remain over its quota.
//
// Two passes over the sizes and times of the files: the first counts bytes by
// the minute of last use, the second removes what is older than the minute
// that frees enough. So memory does not grow with the hoard.
func (h *Hoard) Evict(ctx context.Context) (Freed, error) {
	var freed Freed
	one := flock.New(filepath.Join(h.path, "evict"), flock.SetPermissions(0o600))
	if ok, err := one.TryLock(); !ok || err != nil {
		return freed, err
	}
	defer one.Close()

	before := h.added.Swap(0)
	total, byMinute := int64(0), make(map[int64]int64)
	shards, err := h.shards()
	if err != nil {
		return freed, err
	}
	for _, shard := range shards {
		pinned, err := h.pinnedIn(shard)
		if err == nil {
			err = h.walkShard(ctx, shard, func(o Object) error {
				total += o.Size
				if !pinned[o.Tag] {
					byMinute[o.Used.Unix()/60] += o.Size
				}
				return nil
			})
		}
		if err != nil {
			h.added.Add(before)
			return freed, fmt.Errorf("hoard: evict: %w", err)
		}
	}
	if h.quota > 0 && total > h.quota {
		err = h.evict(ctx, shards, total-h.quota+h.quota/slack, byMinute, &freed)
	}
	unlock, lerr := h.lock()
	if lerr != nil {
		return freed, lerr
	}
	defer unlock()
	if serr := h.setUsage(total - freed.Bytes); err == nil {
		err = serr
	}
	return freed, err
}

// evict frees excess bytes, oldest minute first.
func (h *Hoard) evict(ctx context.Context, shards []byte, excess int64, byMinute map[int64]int64, freed *Freed) error {
	// The cut is the minute within which the excess is reached: all that is
	// older goes, and of the minute itself as much as is still needed.
	cut, older := cutMinute(byMinute, excess)
	last := excess - older
	for _, shard := range shards {
		err := h.reap(ctx, shard, freed, func(o Object) bool {
			switch minute := o.Used.Unix() / 60; {
			case minute < cut:
				return true
			case minute == cut && last > 0:
				last -= o.Size
				return true
			}
			return false
		})
		if err != nil {
			return fmt.Errorf("hoard: evict: %w", err)
		}
	}
	return nil
}

// cutMinute is the minute up to which bytes must go to free excess, and how
// many bytes are older than it.
func cutMinute(byMinute map[int64]int64, excess int64) (cut, older int64) {
	minutes := make([]int64, 0, len(byMinute))
	for m := range byMinute {
		minutes = append(minutes, m)
	}
	slices.Sort(minutes)
	for _, m := range minutes {
		cut = m
		if older+byMinute[m] >= excess {
			break
		}
		older += byMinute[m]
	}
	return cut, older
}

// reap removes the objects of one shard that goes says and no pin needs. It
// holds the lock on pins, so one that is made meanwhile waits for this shard
// and no longer.
func (h *Hoard) reap(ctx context.Context, shard byte, freed *Freed, goes func(Object) bool) error {
	unlock, err := h.lock()
	if err != nil {
		return err
	}
	defer unlock()
	pinned, err := h.pinnedIn(shard)
	if err != nil {
		return err
	}
	return h.walkShard(ctx, shard, func(o Object) error {
		if pinned[o.Tag] || !goes(o) {
			return nil
		}
		if err := h.Remove(o.Tag); err != nil {
			return err
		}
		freed.Objects++
		freed.Bytes += o.Size
		return nil
	})
}
