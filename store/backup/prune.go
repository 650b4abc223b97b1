package backup

import (
	"context"
	"errors"
	"io/fs"
	"slices"
	"strings"
	"sync"
	"time"

	"isr/store/backup/snapshot"
	"isr/store/backup/target"
	"isr/store/keep"
	"isr/store/parcel"
	"isr/store/seal"
)

// Plan is what a prune would do.
type Plan struct {
	Keep   []Kept
	Remove []string // snapshots
}

// Kept is a snapshot that stays, and the rules by which.
type Kept struct {
	ID  string
	Why []string
}

// PlanPrune says which snapshots would stay and go by the rules. The newest
// one stays in any case.
func PlanPrune(ctx context.Context, t target.Target, k keep.Rules) (*Plan, error) {
	ids, err := snapshot.IDs(ctx, t)
	if err != nil {
		return nil, err
	}
	if err := k.Check(); err != nil {
		return nil, err
	}
	var times []time.Time
	for _, id := range slices.Backward(ids) {
		times = append(times, snapshot.TimeOf(id))
	}
	why := k.Choose(times)
	slices.Reverse(why)
	p := new(Plan)
	for n, id := range ids {
		switch {
		case why[n] != nil:
			p.Keep = append(p.Keep, Kept{id, why[n]})
		case n == len(ids)-1:
			p.Keep = append(p.Keep, Kept{id, []string{"newest"}})
		default:
			p.Remove = append(p.Remove, id)
		}
	}
	return p, nil
}

// Pruned is what a prune did.
type Pruned struct {
	Snapshots int
	Objects   int64
	Bytes     int64
}

// Prune removes snapshots, then every object that none of the others needs. No
// backup may be at work on t: see Lock. Killed anywhere, it leaves the others
// whole, and the next one finishes it. If one that stays cannot be read,
// nothing is removed but the snapshots.
func Prune(ctx context.Context, t target.Target, remove []string, progress Progress) (*Pruned, error) {
	res := new(Pruned)
	for _, id := range remove {
		// The list first: without it there is no snapshot.
		for _, name := range []string{snapshot.Name(id), snapshot.ArchiveName(id, false), snapshot.ArchiveName(id, true)} {
			if err := t.Remove(ctx, name); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return nil, err
			}
		}
		res.Snapshots++
	}
	if err := t.Sync(ctx); err != nil {
		return nil, err
	}
	ids, err := snapshot.IDs(ctx, t)
	if err != nil {
		return nil, err
	}
	need, _, err := needs(ctx, t, ids, func(id string, err error) error {
		var e *parcel.Error
		if errors.As(err, &e) && e.Kind == parcel.Damaged {
			return e.WithHint("no object was removed; remove %s from %s if it is not to be had whole", snapshot.Name(id), t)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	// An archive without its list was left by a run that was killed.
	for e, err := range t.List(ctx, snapshot.Dir) {
		if err != nil {
			return nil, err
		}
		id, _, _ := strings.Cut(e.Name[len(snapshot.Dir)+1:], ".")
		if snapshot.IsID(id) && !slices.Contains(ids, id) && (e.Name == snapshot.ArchiveName(id, false) || e.Name == snapshot.ArchiveName(id, true)) {
			if err := t.Remove(ctx, e.Name); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return nil, err
			}
		}
	}
	have, err := objects(ctx, t)
	if err != nil {
		return nil, err
	}
	var spare []seal.Tag
	var total int64
	for tag, size := range have {
		if _, ok := need[tag]; !ok {
			spare = append(spare, tag)
			total += size
		}
	}
	var mu sync.Mutex
	err = target.Parallel(ctx, t.Width(), spare, func(ctx context.Context, tag seal.Tag) error {
		if err := t.Remove(ctx, objectName(tag)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		mu.Lock()
		defer mu.Unlock()
		res.Objects, res.Bytes = res.Objects+1, res.Bytes+have[tag]
		if progress != nil {
			progress(res.Bytes, total)
		}
		return nil
	})
	return res, err
}
