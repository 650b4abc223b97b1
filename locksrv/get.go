package locksrv

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"isr/locksrv/proto"
	"isr/store/parcel"
	"isr/store/seal"
)

// Bounds of isr_get: how many objects are read ahead of the one being sent,
// and up to which size, in bytes, an object is held in memory. A larger one is
// copied from its file when its turn comes.
const (
	getAhead  = 16
	getInline = 1 << 20
)

// objects opens objects by tag; a parcel does. The file is the caller's.
type objects interface {
	OpenObject(seal.Tag) (*os.File, error)
}

// fetch is one tag on its way to being answered.
type fetch struct {
	tag    seal.Tag
	done   chan struct{} // closed when what follows is set
	object []byte
	large  bool // to be copied from the file
	err    error
}

func get(name string) runner {
	return func(ctx context.Context, c *call, stdin io.Reader, stdout io.Writer) error {
		p, err := c.Store.Parcel(c.User, name)
		if err != nil {
			return err
		}
		return serveObjects(ctx, p, stdin, stdout, c.standing(c.Session).check, func(bytes int64) { c.meter().Content(proto.Get, true, bytes) })
	}
}

// serveObjects answers tags with frames, in order, reading several objects at
// once. It holds at most getAhead+2 objects; while the client does not read,
// it does not read on. may is asked before each answer, and sent told of each
// object that was.
func serveObjects(ctx context.Context, from objects, stdin io.Reader, stdout io.Writer, may func() error, sent func(bytes int64)) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	queue := make(chan *fetch, getAhead)
	asked := make(chan error, 1)
	go func() {
		defer close(queue)
		asked <- proto.ReadTags(stdin, func(tag seal.Tag) error {
			f := &fetch{tag: tag, done: make(chan struct{})}
			select {
			case queue <- f:
			case <-ctx.Done():
				return ctx.Err()
			}
			go f.load(from)
			return nil
		})
	}()
	out := bufio.NewWriterSize(stdout, 64<<10)
	for f := range queue {
		select {
		case <-f.done:
		default:
			if err := out.Flush(); err != nil {
				return err
			}
			<-f.done
		}
		size := int64(-1)
		err := may()
		if err == nil {
			size, err = f.answer(from, out)
		}
		if err != nil {
			return errors.Join(err, out.Flush())
		}
		if size >= 0 && sent != nil {
			sent(size)
		}
		if len(queue) == 0 {
			if err := out.Flush(); err != nil {
				return err
			}
		}
	}
	return errors.Join(<-asked, out.Flush())
}

func (f *fetch) load(from objects) {
	defer close(f.done)
	defer func() {
		if p := recover(); p != nil {
			f.err = fmt.Errorf("object %s: panic: %v", f.tag, p)
		}
	}()
	file, err := from.OpenObject(f.tag)
	if err != nil {
		f.err = err
		return
	}
	defer file.Close()
	fi, err := file.Stat()
	if err != nil {
		f.err = err
		return
	}
	if fi.Size() > getInline {
		f.large = true
		return
	}
	f.object = make([]byte, fi.Size())
	if _, err := io.ReadFull(file, f.object); err != nil {
		f.err = fmt.Errorf("object %s: %w", f.tag, err)
	}
}

// answer writes the object, and returns its size; -1 if it is not there.
func (f *fetch) answer(from objects, out *bufio.Writer) (size int64, err error) {
	switch {
	case errors.Is(f.err, parcel.ErrNoObject):
		return -1, proto.WriteAbsent(out)
	case f.err != nil:
		return -1, f.err
	case f.large:
		return copyObject(from, f.tag, out)
	}
	return int64(len(f.object)), proto.WriteFrame(out, f.object)
}

func copyObject(from objects, tag seal.Tag, out *bufio.Writer) (size int64, err error) {
	file, err := from.OpenObject(tag)
	if errors.Is(err, parcel.ErrNoObject) {
		return -1, proto.WriteAbsent(out)
	}
	if err != nil {
		return -1, err
	}
	defer file.Close()
	fi, err := file.Stat()
	if err != nil {
		return -1, err
	}
	if fi.Size() > proto.MaxObject {
		return -1, parcel.NewError(parcel.Damaged, "object %s: %d bytes, which no object has", tag, fi.Size())
	}
	if err := proto.WriteFrameHeader(out, int(fi.Size())); err != nil {
		return -1, err
	}
	if _, err := io.CopyN(out, file, fi.Size()); err != nil {
		return -1, fmt.Errorf("object %s: %w", tag, err)
	}
	return fi.Size(), nil
}
