// Package prune removes old versions of a parcel for ever: those that rules of
// package keep do not keep, and that nothing else keeps either. What only they
// led to goes as package gc does it.
package prune

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"isr/store"
	"isr/store/atomicfile"
	"isr/store/gc"
	"isr/store/keep"
	"isr/store/parcel"
	"isr/store/tree"
)

// Plan is what a prune would do to one version: it goes if nothing keeps it.
type Plan struct {
	store.VersionInfo
	Kept []string // the rules that keep it; and head, held, broken, pinned, tagged, which no prune removes
}

// Prunable are the versions that a plan does not keep, ascending.
func Prunable(plan []Plan) []int {
	var gone []int
	for _, v := range plan {
		if len(v.Kept) == 0 {
			gone = append(gone, v.Version)
		}
	}
	slices.Sort(gone)
	return gone
}

// Choose says for each version, newest first, whether and why k keeps it.
func Choose(p *store.Parcel, k keep.Rules) ([]Plan, error) {
	if err := k.Check(); err != nil {
		return nil, err
	}
	head, _, err := p.Published(0)
	if err != nil {
		return nil, err
	}
	infos, err := p.Versions(0)
	if err != nil {
		return nil, err
	}
	held, err := p.Holder()
	if err != nil {
		return nil, err
	}
	// Whoever lost the lock may yet save her work as a fork of the version
	// she had; a lock that was given back, not broken, left its nonce.
	released, err := lastRelease(p)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, p.Errorf(parcel.Damaged, "record of the last release: %v", err)
	}
	times := make([]time.Time, len(infos))
	for i, v := range infos {
		times[i] = v.Time
	}
	why := k.Choose(times)
	plan := make([]Plan, len(infos))
	for i, v := range infos {
		kept := why[i]
		if len(v.Tags) > 0 {
			kept = append(kept, "tagged")
		}
		if v.Pin != "" {
			kept = append(kept, "pinned")
		}
		if held != nil && held.Version == v.Version {
			kept = append(kept, "held")
		}
		if released != nil && released.Nonce == "" && released.Version == v.Version {
			kept = append(kept, "broken")
		}
		if v.Version >= head.Version {
			kept = append(kept, "head")
		}
		plan[i] = Plan{v, kept}
	}
	return plan, nil
}

// Run removes versions for ever, but those that no prune may remove, which
// may be others by now than when they were planned; and then what only they
// led to, as gc.One does. It returns the versions that are gone. Killed in the
// middle, it is finished by the same call again.
func Run(ctx context.Context, p *store.Parcel, versions []int) (gone []int, c gc.Collected, err error) {
	content, err := p.OpenContent()
	if err != nil {
		return nil, c, err
	}
	defer content.Close()
	lock, err := p.OpenLock()
	if err != nil {
		return nil, c, err
	}
	defer lock.Close()
	err = p.Exclusive(func() error {
		// All rules would be at work again: only what always stays is asked for.
		plan, err := Choose(p, keep.Rules{})
		if err != nil {
			return err
		}
		free := Prunable(plan)
		for _, v := range versions {
			if slices.Contains(free, v) && !slices.Contains(gone, v) {
				gone = append(gone, v)
			}
		}
		slices.Sort(gone)
		return forget(p, content, lock, gone)
	})
	if err != nil || len(gone) == 0 {
		return nil, c, err
	}
	if c, err = gc.One(ctx, p); err != nil && ctx.Err() == nil {
		err = fmt.Errorf("%w; the versions are gone, what only they led to is not", err)
	}
	return gone, c, err
}

// forget removes versions: the directories, which are derived, then the
// records. So a directory without a record is always damage. The caller has
// the flock.
func forget(p *store.Parcel, content, lock *os.Root, versions []int) error {
	if len(versions) == 0 {
		return nil
	}
	var temps []string
	for _, v := range versions {
		temp := atomicfile.TempPrefix + parcel.NewID()
		tree.Step("directory")
		switch err := content.Rename(parcel.VersionDir(v), temp); {
		case err == nil:
			temps = append(temps, temp)
		case !errors.Is(err, fs.ErrNotExist):
			return p.Wrap(err)
		}
	}
	if err := atomicfile.SyncDir(p.ContentDir()); err != nil {
		return p.Wrap(err)
	}
	for _, v := range versions {
		tree.Step("record")
		if err := lock.Remove(filepath.Join("keys", parcel.VersionDir(v))); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return p.Wrap(err)
		}
	}
	if err := atomicfile.SyncDir(filepath.Join(p.LockDir(), "keys")); err != nil {
		return p.Wrap(err)
	}
	for _, temp := range temps {
		tree.Step("remove")
		if err := content.RemoveAll(temp); err != nil {
			return p.Wrap(err)
		}
	}
	return nil
}

// lastRelease is the record of the lock that was given back or broken last,
// with its nonce, whoever holds the parcel by now.
func lastRelease(p *store.Parcel) (*parcel.Lock, error) {
	text, err := tree.ReadOwn(filepath.Join(p.LockDir(), tree.ReleasedFile))
	if err != nil {
		return nil, err
	}
	return parcel.ParseLock(text)
}
