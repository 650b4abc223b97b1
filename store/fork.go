package store

import (
	"context"
	"errors"
	"fmt"

	"isr/store/parcel"
	"isr/store/seal"
)

// Fork makes another parcel of a user, called name, whose version 1 equals
// version v of the parcel from, with a comment of its own, and takes its lock
// for a host. It is for who holds from no more, or would not commit to it, and
// has work that was made from v. It shares the objects of from, and needs no
// lock of that.
//
// The same acquisition id again gets the same lock, whatever of it was done
// before. parcel.ErrExists if there is another parcel of that name.
func (s *Store) Fork(ctx context.Context, userName, from string, v int, name, comment, host, acquisition string) (*parcel.Lock, error) {
	p, err := s.Parcel(userName, from)
	if err != nil {
		return nil, err
	}
	if acquisition == "" || acquisition != parcel.Clean(acquisition) || v < 1 {
		return nil, p.Errorf(parcel.Usage, "fork without version or a printable acquisition id")
	}
	fill := copied(p, CopyOptions{Version: v})
	made, err := s.create(ctx, userName, name, func(ctx context.Context, b *building) (*parcel.Config, seal.Ref, error) {
		b.commit, b.comment = acquisition, fmt.Sprintf("version %d of %s", v, from)
		cfg, keyroot, err := fill(ctx, b)
		if err == nil {
			cfg.Comment = parcel.Clean(comment)
		}
		return cfg, keyroot, err
	})
	if errors.Is(err, parcel.ErrExists) {
		// Perhaps by this very call, whose answer was lost.
		q := p.user.At(name)
		if rec, rerr := q.Record(1); rerr == nil && rec.Commit == acquisition {
			made, err = q, nil
		}
	}
	if err != nil {
		return nil, err
	}
	return made.Acquire(userName, host, acquisition)
}
