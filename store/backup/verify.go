package backup

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"

	"isr/store/backup/snapshot"
	"isr/store/backup/target"
	"isr/store/parcel"
	"isr/store/seal"
)

// VerifyOptions say what of a backup is looked at.
type VerifyOptions struct {
	Snapshot string  // only what this one needs; "": all
	Sample   float64 // share of the objects that are read: 0 to 1
	Problem  func(text string)
	Progress Progress
}

// Verified counts what Verify saw.
type Verified struct {
	Snapshots int
	Objects   int64 // that the snapshots need
	Bytes     int64
	Read      int64 // of them read and hashed
	Spare     int64 // that no snapshot needs: left by a run that was killed, or pruned since
	Errors    int
}

// needs are the objects that snapshots need. One that cannot be read is told
// to bad.
func needs(ctx context.Context, t target.Target, ids []string, bad func(id string, err error) error) (map[seal.Tag]int64, []*snapshot.Snapshot, error) {
	need := make(map[seal.Tag]int64)
	var snaps []*snapshot.Snapshot
	for _, id := range ids {
		s, sets, err := snapshot.Load(ctx, t, id)
		if err != nil {
			if err := bad(id, err); err != nil {
				return nil, nil, err
			}
			continue
		}
		snaps = append(snaps, s)
		for _, set := range sets {
			for _, o := range set.Objects {
				need[o.Tag] = o.Size
			}
		}
	}
	return need, snaps, nil
}

// Verify reads a backup as a restore would: lists, archives, and objects, by
// their sums and tags. It needs no key. Problems are told, and counted, and so
// is what a snapshot lacks as its realm did; the error is why it could not look.
func Verify(ctx context.Context, t target.Target, o VerifyOptions) (*Verified, error) {
	var v Verified
	var mu sync.Mutex
	problem := func(format string, args ...any) {
		mu.Lock()
		defer mu.Unlock()
		v.Errors++
		o.Problem(parcel.Clean(fmt.Sprintf(format, args...)))
	}
	ids := []string{o.Snapshot}
	if o.Snapshot == "" {
		var err error
		if ids, err = snapshot.IDs(ctx, t); err != nil {
			return nil, err
		}
		if len(ids) == 0 {
			return nil, parcel.NewError(parcel.NoVersion, "%s: no backup is there", t)
		}
	}
	need, snaps, err := needs(ctx, t, ids, func(id string, err error) error {
		if o.Snapshot != "" || !errors.Is(err, parcel.ErrDamaged) {
			return err
		}
		problem("%v", err)
		return nil
	})
	if err != nil {
		return nil, err
	}
	v.Snapshots = len(snaps)
	for _, s := range snaps {
		for _, l := range s.Lacks {
			problem("snapshot %s: %s", s.ID, l)
		}
		if err := fetchRecords(ctx, t, s, io.Discard); errors.Is(err, parcel.ErrDamaged) {
			problem("%v", err)
		} else if err != nil {
			return nil, err
		}
	}
	have, err := objects(ctx, t)
	if err != nil {
		return nil, err
	}
	var tags []seal.Tag
	var total, done int64
	for tag, size := range need {
		v.Objects++
		v.Bytes += size
		switch got, ok := have[tag]; {
		case !ok:
			problem("object %s: is missing", tag)
		case got != size:
			problem("object %s: has %d bytes of %d", tag, got, size)
		case o.Sample >= 1 || rand.Float64() < o.Sample:
			tags = append(tags, tag)
			total += size
		}
	}
	for tag := range have {
		if _, ok := need[tag]; !ok {
			v.Spare++
		}
	}
	err = target.Parallel(ctx, t.Width(), tags, func(ctx context.Context, tag seal.Tag) error {
		_, err := getObject(ctx, t, tag)
		switch {
		case errors.Is(err, parcel.ErrDamaged) || errors.Is(err, parcel.ErrNoObject):
			problem("%v", err)
		case err != nil:
			return err
		}
		mu.Lock()
		defer mu.Unlock()
		v.Read++
		done += need[tag]
		if o.Progress != nil {
			o.Progress(done, total)
		}
		return nil
	})
	return &v, err
}
