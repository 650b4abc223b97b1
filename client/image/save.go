package image

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"iter"
	"sync"
)

// savePage is the unit, in bytes, in which a save decides what changed: the
// smallest page of the guests we run.
const savePage = 4096

// A memory image is saved while the VMM, stopped, reads all of it through the
// mount and writes down what it finds. Between BeginSave and EndSave
//
//   - a page that was never handed out reads as zeros and fetches nothing: no
//     guest can have changed it, and Asked says which pages those are. That
//     goes for reads that were waiting for the network, too;
//   - Pages takes what the VMM wrote down, and keeps of it only pages that
//     differ from what was handed out.
//
// After BeginSave the kernel may have cached such zeros. So the VMM must not
// run on, unless the save is ended by CancelSave and the kernel made to forget
// the image (fusefs.Mount.Invalidate).

var errNotSaving = errors.New("no save is under way")

// BeginSave begins a save. The guest must have been stopped before: what a
// reader gets from now on does not count as handed out. It waits for nothing.
func (im *Image) BeginSave() error {
	if im.pages == nil {
		return fmt.Errorf("image %s: made without Save", im.c.Name)
	}
	if !im.pages.freeze(true) {
		return fmt.Errorf("image %s: a save is under way", im.c.Name)
	}
	im.saving.Store(true)
	im.fetcher.overtake()
	return nil
}

// CancelSave ends a save as if it had not begun: the guest may go on, and be
// saved again. Without a save under way it does nothing.
func (im *Image) CancelSave() {
	// In this order: a page that is handed out in earnest must be noted.
	if im.pages != nil {
		im.pages.freeze(false)
	}
	im.saving.Store(false)
}

// EndSave ends a save; it returns when the saved pages are durable. Without a
// save under way it is Flush: a driver may also have written through the mount.
func (im *Image) EndSave(ctx context.Context) error {
	if err := im.Flush(ctx); err != nil {
		return err
	}
	im.CancelSave()
	return nil
}

// Asked reports whether any page of n bytes at off was handed out to a reader,
// or written, since New. Of a page for which it says no, a guest cannot have
// changed anything, and what a save reads of it is made up.
func (im *Image) Asked(off int64, n int) bool {
	return im.pages == nil || im.pages.asked(off, int64(n))
}

// Unasked gives the ranges of pages, offset and bytes, 1 MiB at most, that
// were never handed out. During a save they read as zeros, so a kernel that is
// given such zeros beforehand (fusefs.Mount.Preload) need not ask for them.
func (im *Image) Unasked() iter.Seq2[int64, int64] {
	return func(yield func(off, n int64) bool) {
		for off := int64(0); im.pages != nil && off < im.c.Size; {
			n := im.pages.unasked(off, min(off+segmentPages*savePage, im.c.Size))
			if n > 0 && !yield(off, n) {
				return
			}
			off += max(n, savePage)
		}
	}
}

// Pages is where the VMM's pages go during a save.
func (im *Image) Pages() io.WriterAt { return (*pageWriter)(im) }

type pageWriter Image

// WriteAt takes p as the content at off. It keeps nothing of p, and what it
// returns is said of the whole of p. Long runs of pages are best.
func (w *pageWriter) WriteAt(p []byte, off int64) (int, error) {
	im := (*Image)(w)
	if !im.saving.Load() {
		return 0, fmt.Errorf("image %s: %w", im.c.Name, errNotSaving)
	}
	if off < 0 || off+int64(len(p)) > im.c.Size {
		return 0, fmt.Errorf("image %s: save %d bytes at %d of %d", im.c.Name, len(p), off, im.c.Size)
	}
	from, at := int64(0), int64(0) // p[from:at] is to be written
	for at < int64(len(p)) {
		n := min(int64(len(p))-at, savePage-(off+at)%savePage)
		whole := (off+at)%savePage == 0 && (n == savePage || off+at+n == im.c.Size)
		if !whole || !im.pages.unchanged(p[at:at+n], off+at) {
			if !whole {
				im.pages.changing(off+at, n)
			}
			at += n
			continue
		}
		im.counts.skipped.Add(n)
		if err := w.put(p[from:at], off+from); err != nil {
			return 0, err
		}
		at += n
		from = at
	}
	if err := w.put(p[from:], off+from); err != nil {
		return 0, err
	}
	return len(p), nil
}

// put writes a run of changed pages.
func (w *pageWriter) put(p []byte, off int64) error {
	if len(p) == 0 {
		return nil
	}
	im := (*Image)(w)
	im.counts.saved.Add(int64(len(p)))
	err := im.write(context.Background(), p, off)
	if err != nil {
		im.pages.changing(off, int64(len(p))) // the image does not hold them after all
	}
	return im.wrap("save", off, err)
}

// readSaving is ReadAt during a save.
func (im *Image) readSaving(ctx context.Context, p []byte, off int64) error {
	for len(p) > 0 {
		n := min(int64(len(p)), savePage-off%savePage)
		asked := im.pages.asked(off, n)
		for n < int64(len(p)) {
			more := min(int64(len(p))-n, savePage)
			if im.pages.asked(off+n, more) != asked {
				break
			}
			n += more
		}
		if !asked {
			clear(p[:n])
		} else if err := im.read(ctx, nil, p[:n], off, false); err != nil {
			return err
		}
		p, off = p[n:], off+n
	}
	return nil
}

// pageHash is half a SHA-256: a page is taken for unchanged by it alone.
type pageHash [16]byte

// The states of a page in a pageTable.
const (
	pageNever   = iota // not handed out since New
	pageKnown          // handed out; its hash is kept
	pageChanged        // asked for in part, or written: nothing is known of it
)

// segmentPages is how many pages a segment of the table covers: 1 MiB.
const segmentPages = 256

type segment struct {
	state [segmentPages]byte
	hash  [segmentPages]pageHash
}

// pageTable remembers which pages were handed out, and what was in them.
type pageTable struct {
	mu       sync.RWMutex
	segments map[int64]*segment
	frozen   bool // a save is under way
}

func newPageTable() *pageTable { return &pageTable{segments: make(map[int64]*segment)} }

// at is the segment of page n and its index there; mu is held for writing.
func (t *pageTable) at(n int64) (*segment, int64) {
	s := t.segments[n/segmentPages]
	if s == nil {
		s = new(segment)
		t.segments[n/segmentPages] = s
	}
	return s, n % segmentPages
}

func (t *pageTable) state(n int64) byte {
	s := t.segments[n/segmentPages]
	if s == nil {
		return pageNever
	}
	return s.state[n%segmentPages]
}

// freeze begins or ends the time in which handedOut notes nothing, and reports
// whether that is a change.
func (t *pageTable) freeze(on bool) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	was := t.frozen
	t.frozen = on
	return was != on
}

func (t *pageTable) asked(off, n int64) bool {
	t.mu.RLock()
	defer t.mu.RUnlock()
	for page := off / savePage; page*savePage < off+n; page++ {
		if t.state(page) != pageNever {
			return true
		}
	}
	return false
}

// unasked is how many bytes from off on, up to end, were never handed out.
func (t *pageTable) unasked(off, end int64) int64 {
	t.mu.RLock()
	defer t.mu.RUnlock()
	at := off
	for at < end && t.state(at/savePage) == pageNever {
		at = min(at+savePage, end)
	}
	return at - off
}

func hashPage(p []byte) pageHash {
	sum := sha256.Sum256(p)
	return pageHash(sum[:16])
}

// handedOut notes that a reader got p at off; size is the image's.
func (t *pageTable) handedOut(p []byte, off, size int64) {
	type note struct {
		page  int64
		hash  pageHash
		whole bool
	}
	var notes []note
	t.mu.RLock()
	for at := off / savePage * savePage; at < off+int64(len(p)); at += savePage {
		if t.state(at/savePage) == pageNever {
			end := min(at+savePage, size)
			notes = append(notes, note{page: at / savePage, whole: at >= off && end <= off+int64(len(p))})
		}
	}
	t.mu.RUnlock()
	if len(notes) == 0 {
		return
	}
	for i := range notes {
		if n := &notes[i]; n.whole {
			at := n.page*savePage - off
			n.hash = hashPage(p[at:min(at+savePage, int64(len(p)))])
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.frozen {
		// A read from before the save: the guest is stopped and cannot use
		// it, and the save may have read zeros in its place already.
		return
	}
	for _, n := range notes {
		s, i := t.at(n.page)
		switch {
		case s.state[i] != pageNever: // another reader was first, or a writer
		case n.whole:
			s.state[i], s.hash[i] = pageKnown, n.hash
		default:
			s.state[i] = pageChanged
		}
	}
}

// changing notes, before a write, that n bytes at off will not be what was
// handed out. It outlasts any read that is under way.
func (t *pageTable) changing(off, n int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for page := off / savePage; page*savePage < off+n; page++ {
		s, i := t.at(page)
		s.state[i] = pageChanged
	}
}

// unchanged reports whether page p at off is what was handed out, and if not,
// notes that it is about to be what the image holds.
func (t *pageTable) unchanged(p []byte, off int64) bool {
	h := hashPage(p)
	t.mu.Lock()
	defer t.mu.Unlock()
	s, i := t.at(off / savePage)
	if s.state[i] == pageKnown && s.hash[i] == h {
		return true
	}
	s.state[i], s.hash[i] = pageKnown, h
	return false
}
