package image

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"isr/store/seal"
)

// fetcher gets pristine chunks: from its cache, or once for all who wait.
type fetcher struct {
	im   *Image
	ctx  context.Context // ends with the image
	stop context.CancelFunc

	mu      sync.Mutex
	giveUp  chan struct{} // closed when a save begins; see errOvertaken
	flights map[int64]*flight
	running sync.WaitGroup
	// The cache: chunks most recently used first.
	recent *list.List // of *cached
	byNum  map[int64]*list.Element
	bytes  int64
}

// cached is an unsealed pristine chunk that must not be changed; plain is nil
// for zeros.
type cached struct {
	n     int64
	plain []byte
}

// entryBytes is what an entry of the cache costs beside its plaintext.
const entryBytes = 200

func (c *cached) cost() int64 { return entryBytes + int64(len(c.plain)) }

// flight is a chunk being fetched.
type flight struct {
	began   time.Time
	cancel  context.CancelFunc
	waiters int // guarded by fetcher.mu; the last to give up cancels it
	done    chan struct{}
	plain   []byte
	err     error
}

func newFetcher(im *Image) *fetcher {
	f := &fetcher{im: im, giveUp: make(chan struct{}), flights: make(map[int64]*flight),
		recent: list.New(), byNum: make(map[int64]*list.Element)}
	f.ctx, f.stop = context.WithCancel(context.Background())
	return f
}

func (f *fetcher) close() {
	f.mu.Lock()
	f.stop()
	f.mu.Unlock()
	f.running.Wait()
}

// cached reports whether chunk n needs no getter.
func (f *fetcher) cached(n int64) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.byNum[n] != nil
}

// errOvertaken is the error of a reader whose wait a save has ended: what it
// waits for may not be needed any more.
var errOvertaken = errors.New("overtaken by a save")

// untilSave is a channel that is closed when the next save begins.
func (f *fetcher) untilSave() <-chan struct{} {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.giveUp
}

// overtake ends the waits of those who gave chunk what untilSave gave them.
func (f *fetcher) overtake() {
	f.mu.Lock()
	defer f.mu.Unlock()
	close(f.giveUp)
	f.giveUp = make(chan struct{})
}

// chunk is pristine chunk n, whole; nil stands for zeros. The caller must not
// change it. If ctx ends, the fetch goes on for those who still wait. Closing
// giveUp, which may be nil, ends the wait with errOvertaken.
func (f *fetcher) chunk(ctx context.Context, giveUp <-chan struct{}, n int64) ([]byte, error) {
	f.mu.Lock()
	if e := f.byNum[n]; e != nil {
		f.recent.MoveToFront(e)
		f.mu.Unlock()
		f.im.counts.hits.Add(1)
		return e.Value.(*cached).plain, nil
	}
	f.im.counts.misses.Add(1)
	fl := f.flights[n]
	if fl == nil {
		if err := f.ctx.Err(); err != nil {
			f.mu.Unlock()
			return nil, err
		}
		fctx, cancel := context.WithCancel(f.ctx)
		fl = &flight{began: time.Now(), cancel: cancel, done: make(chan struct{})}
		f.flights[n] = fl
		f.running.Add(1)
		go f.fly(fctx, n, fl)
	}
	fl.waiters++
	f.mu.Unlock()
	select {
	case <-fl.done:
		return fl.plain, fl.err
	case <-ctx.Done():
	case <-giveUp:
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	fl.waiters--
	if fl.waiters == 0 {
		fl.cancel()
		if f.flights[n] == fl { // who comes now begins anew
			delete(f.flights, n)
		}
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	return nil, errOvertaken
}

// fly fetches chunk n and wakes those who wait for it.
func (f *fetcher) fly(ctx context.Context, n int64, fl *flight) {
	defer f.running.Done()
	defer fl.cancel()
	plain, sealed, err := f.im.pristine(ctx, n)
	f.mu.Lock()
	defer f.mu.Unlock()
	fl.plain, fl.err = plain, err
	if f.flights[n] == fl {
		delete(f.flights, n)
	}
	if err == nil {
		f.add(&cached{n, plain})
		if plain != nil {
			f.im.counts.fetch(n, sealed, time.Since(fl.began))
		}
	} else if ctx.Err() == nil {
		f.im.counts.fetchErrors.Add(1)
	}
	close(fl.done)
}

// add puts c in front of the cache; mu is held.
func (f *fetcher) add(c *cached) {
	if e := f.byNum[c.n]; e != nil {
		f.bytes -= e.Value.(*cached).cost()
		f.recent.Remove(e)
	}
	f.byNum[c.n] = f.recent.PushFront(c)
	f.bytes += c.cost()
	// The newest stays whatever its size: its readers are about to come back.
	for f.bytes > f.im.c.CacheBytes && f.recent.Len() > 1 {
		old := f.recent.Remove(f.recent.Back()).(*cached)
		delete(f.byNum, old.n)
		f.bytes -= old.cost()
		f.im.counts.evictions.Add(1)
	}
}

// waiting is the number of chunks being fetched, and since when the first.
func (f *fetcher) waiting() (n int, since time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, fl := range f.flights {
		if n == 0 || fl.began.Before(since) {
			since = fl.began
		}
		n++
	}
	return n, since
}

// fetching is the numbers of the chunks on their way.
func (f *fetcher) fetching() []int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	nums := make([]int64, 0, len(f.flights))
	for n := range f.flights {
		nums = append(nums, n)
	}
	return nums
}

// pristine gets and opens chunk n as it was checked out: its plaintext, nil
// for zeros, and the size of the object.
func (im *Image) pristine(ctx context.Context, n int64) (plain []byte, sealed int, err error) {
	ref, err := im.c.Refs.Ref(ctx, n)
	if err != nil {
		return nil, 0, fmt.Errorf("chunk %d: %w", n, err)
	}
	if ref.IsNil() {
		return nil, 0, nil
	}
	object, err := im.c.Getter.Get(ctx, ref.Tag)
	if err != nil {
		return nil, 0, fmt.Errorf("chunk %d: %w", n, err)
	}
	plain, err = im.c.Sealer.Unseal(ref, object, im.c.ChunkSize)
	if err != nil {
		return nil, 0, fmt.Errorf("chunk %d: %w", n, err)
	}
	if len(plain) != im.c.ChunkSize {
		return nil, 0, fmt.Errorf("chunk %d: plaintext of %d bytes, not %d: %w",
			n, len(plain), im.c.ChunkSize, seal.ErrCorrupt)
	}
	return plain, len(object), nil
}
