package remote

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strings"
	"sync"
	"syscall"

	"github.com/pkg/sftp"

	"isr/store/parcel"
	"isr/store/seal"
)

// putWorkers is how many objects are on their way on one connection. A put
// takes three round trips, so it takes many to fill a long link.
const putWorkers = 32

// PutAll stages the objects that tags names, for a commit to take up. Each is
// got from open, in about the order of tags, some hundreds at a time at most;
// open must be safe for concurrent use. To put one that is there already is no
// error. progress, if not nil, is called with the bytes sent so far and about
// how many it will be, one call at a time.
//
// A connection that breaks is made again and what was on its way put again:
// see OnOutage and WithPolicy. PutAll ends at the first error it cannot mend.
func (o *Objects) PutAll(ctx context.Context, tags []seal.Tag, open func(context.Context, seal.Tag) ([]byte, error), progress func(done, total int64)) error {
	if len(tags) == 0 {
		return nil
	}
	s := o.s
	s.bulk.Add(1)
	defer s.bulk.Add(-1)
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	u := &upload{o: o, tags: tags, open: open, progress: progress}

	// One connection tells how far away the server is; then the others.
	workers := min(len(tags), putWorkers)
	var going sync.WaitGroup
	start := func(k *link, n int) {
		for range n {
			k.use()
			going.Go(func() {
				defer k.unuse()
				if err := u.work(ctx, k); err != nil {
					stop(err)
				}
			})
		}
	}
	start(s.main, workers)
	if len(tags) > workers {
		going.Go(func() {
			c, err := s.main.get(ctx)
			if err != nil || !c.measured(ctx) {
				return
			}
			for i := 1; i < s.lanes() && u.left() > 0; i++ {
				start(s.bulkLink(i), min(putWorkers, u.left()))
			}
		})
	}
	going.Wait()
	return context.Cause(ctx)
}

// upload is one PutAll.
type upload struct {
	o        *Objects
	tags     []seal.Tag
	open     func(context.Context, seal.Tag) ([]byte, error)
	progress func(done, total int64)

	mu    sync.Mutex
	next  int
	done  int   // objects
	bytes int64 // of these
}

func (u *upload) left() int {
	u.mu.Lock()
	defer u.mu.Unlock()
	return len(u.tags) - u.next
}

// work puts objects on k until there are no more.
func (u *upload) work(ctx context.Context, k *link) error {
	for {
		u.mu.Lock()
		if u.next == len(u.tags) || ctx.Err() != nil {
			u.mu.Unlock()
			return nil
		}
		tag := u.tags[u.next]
		u.next++
		u.mu.Unlock()
		sealed, err := u.open(ctx, tag)
		if err != nil {
			return err
		}
		s := u.o.s
		err = s.persist(ctx, never, func() Policy { return s.patience(ctx, false) }, func() error {
			return u.put(ctx, k, tag, sealed)
		})
		if err != nil {
			return err
		}
		u.mu.Lock()
		u.done++
		u.bytes += int64(len(sealed))
		if u.progress != nil {
			u.progress(u.bytes, u.bytes/int64(u.done)*int64(len(u.tags)-u.done)+u.bytes)
		}
		u.mu.Unlock()
	}
}

// put puts one object, once.
func (u *upload) put(ctx context.Context, k *link, tag seal.Tag, sealed []byte) error {
	c, err := k.extra(ctx)
	if err != nil {
		// A server may have enough of our connections.
		if c, err = u.o.s.main.get(ctx); err != nil {
			return err
		}
	}
	files, err := c.sftp(ctx)
	if err != nil {
		return err
	}
	// The client knows no context: on a dead link it waits for the connection
	// to be given up, and we do not.
	done := make(chan error, 1)
	go func() {
		c.begin()
		defer c.end()
		done <- u.write(c, files, tag, sealed)
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (u *upload) write(c *conn, files *sftp.Client, tag seal.Tag, sealed []byte) error {
	f, err := files.OpenFile(u.o.path(tag), os.O_WRONLY|os.O_CREATE)
	if err != nil {
		return u.failed(c, tag, err)
	}
	_, err = f.Write(sealed)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return u.failed(c, tag, err)
	}
	return nil
}

// path is where an object is put.
func (o *Objects) path(tag seal.Tag) string {
	name := tag.String()
	return path.Join("/", o.parcel, "hdk", name[:2], name)
}

// failed gives an error of SFTP its kind.
func (u *upload) failed(c *conn, tag seal.Tag, err error) error {
	var status *sftp.StatusError
	switch {
	case errors.Is(err, fs.ErrPermission):
		return parcel.NewError(parcel.Denied, "object %s: put: %v", tag, err)
	case errors.Is(err, fs.ErrNotExist):
		return parcel.NewError(parcel.NoParcel, "object %s: put: parcel %s: %v", tag, u.o.parcel, err)
	case errors.Is(err, sftp.ErrSSHFxConnectionLost), errors.Is(err, sftp.ErrSSHFxNoConnection):
		return c.lost(err)
	case errors.As(err, &status) && isFull(status, syscall.EDQUOT):
		return parcel.NewError(parcel.Full, "object %s: put: %v", tag, status).
			WithHint("nothing is lost: have old versions removed from the server, or ask its administrator for more, then run it again")
	case errors.As(err, &status) && isFull(status, syscall.ENOSPC):
		return parcel.NewError(parcel.Full, "object %s: put: %v", tag, status).
			WithHint("the server is full: ask its administrator, then run it again")
	case errors.As(err, &status):
		return parcel.NewError(parcel.Failed, "object %s: put: %v", tag, status)
	}
	return c.lost(fmt.Errorf("put: %w", err))
}

// isFull reports whether a server has no room. SFTP 3 has no code for it; the
// server says it in the words of errno.
func isFull(err error, full syscall.Errno) bool {
	return strings.Contains(err.Error(), full.Error())
}

// measured waits until the round trip is known; false if it cannot be.
func (c *conn) measured(ctx context.Context) bool {
	if c.s.RTT() == 0 {
		select {
		case <-c.pinged:
		case <-ctx.Done():
		}
	}
	return c.s.RTT() != 0
}
