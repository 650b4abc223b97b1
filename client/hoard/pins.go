package hoard

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"maps"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sort"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"

	"isr/store/atomicfile"
	"isr/store/parcel"
	"isr/store/seal"
)

// ErrBadPin is wrapped by errors for a pin that cannot be read. Nothing is
// evicted while there is one, for it may name anything: pin the parcel again,
// or unpin it.
var ErrBadPin = errors.New("unreadable pin")

// ErrPinChanged says that a pin is not the one that was to be replaced.
var ErrPinChanged = errors.New("the pin has changed")

// Pin says which parcel a list of needs belongs to.
type Pin struct {
	UUID    string // of the parcel
	Parcel  string // its name
	User    string // its owner
	Server  string // where it lives
	Version int
	Memory  bool      // its memory is kept too, not only its disk
	Time    time.Time // when it was pinned
	Count   int64     // of distinct objects; set by Pins
}

// same reports whether the two are one pin; zero is none.
func (p Pin) same(q Pin) bool {
	return p.UUID == q.UUID && p.Version == q.Version && p.Memory == q.Memory && p.Time.Equal(q.Time) && p.Count == q.Count
}

// Part says of what an object is a part.
type Part byte

// The parts. What belongs to no image, a root block, counts as the disk's.
const (
	Disk Part = iota
	Memory
	parts = 2
)

// Need is one place in a version that leads to an object. The same object may
// have many.
type Need struct {
	Tag  seal.Tag
	Part Part
}

// A pin is a file: pinMagic, a record, an empty line, Count entries in
// ascending order of tag. An entry is a tag of Width bytes, and for each part
// how many places lead to it, four bytes, big-endian. With these a pin can
// follow from one version to the next by what differs. Fixed-width entries
// make a short file show, and let eviction read only the tags that begin with
// one byte.
const pinMagic = "# isr pin 2\n"

// pinMagic1 begins a pin of tags alone, as it was written before. It keeps its
// objects, and cannot follow.
const pinMagic1 = "# isr pin 1\n"

// maxPinHead bounds the part in front of the entries, bytes.
const maxPinHead = 4096

func (h *Hoard) pinFile(id string) string { return filepath.Join(h.path, "pins", id) }

// entry is an object that a pin names.
type entry struct {
	tag    seal.Tag
	places [parts]uint32
}

// entries gives entries in ascending order to f; it may be run twice.
type entries func(f func(entry) error) error

// Pin keeps the objects that needs names from eviction, until Unpin or another
// Pin of the same parcel. They need not be in the hoard yet. Tags are all of
// one suite, in any order. An error among needs is returned, and nothing done.
func (h *Hoard) Pin(p Pin, needs iter.Seq2[Need, error]) error { return h.pin(p, needs, nil) }

// PinAfter is Pin, if the pin there is now is the one called was, as Pinned
// gave it; the zero Pin is none. Else it is ErrPinChanged: somebody pinned the
// parcel meanwhile, perhaps in a newer version.
func (h *Hoard) PinAfter(was, p Pin, needs iter.Seq2[Need, error]) error {
	return h.pin(p, needs, &was)
}

func (h *Hoard) pin(p Pin, needs iter.Seq2[Need, error], was *Pin) error {
	list := tagList{width: sha256.Size + 1} // a tag and its part
	first := true
	for n, err := range needs {
		if err != nil {
			return err
		}
		if first {
			list.width, first = len(n.Tag)+1, false
		}
		if len(n.Tag) != list.width-1 || n.Tag.NewHash() == nil {
			return fmt.Errorf("pin of %s: tags of %d and %d bytes", p.UUID, list.width-1, len(n.Tag))
		}
		list.p = append(append(list.p, n.Tag...), byte(min(n.Part, parts-1)))
	}
	sort.Sort(&list)
	return h.writePin(p, list.width-1, list.entries, func(now Pin) error {
		if was != nil && !now.same(*was) {
			return ErrPinChanged
		}
		return nil
	})
}

// Repin makes the pin of version from that of p, by the places that less and
// more say do not lead to their objects any more, and do now. It reads and
// writes the pin, and no object. It is ErrPinChanged if the pin is of another
// version, or does not agree with less: pin the parcel anew.
func (h *Hoard) Repin(p Pin, from int, less, more iter.Seq[Need]) error {
	f, err := h.openPin(p.UUID)
	if err != nil {
		return err
	}
	defer f.Close()
	if f.Version != from || f.Memory != p.Memory || f.old {
		return ErrPinChanged
	}
	change := make(map[seal.Tag]*[parts]int64)
	for _, side := range []struct {
		needs iter.Seq[Need]
		by    int64
	}{{less, -1}, {more, 1}} {
		for n := range side.needs {
			if len(n.Tag) != f.width {
				return ErrPinChanged // another suite
			}
			if change[n.Tag] == nil {
				change[n.Tag] = new([parts]int64)
			}
			change[n.Tag][min(n.Part, parts-1)] += side.by
		}
	}
	tags := slices.Sorted(maps.Keys(change))
	merged := func(yield func(entry) error) error {
		next := 0
		emit := func(e entry) error {
			gone := true
			if by := change[e.tag]; by != nil {
				for i := range by {
					n := int64(e.places[i]) + by[i]
					if n < 0 || n > math.MaxUint32 {
						return ErrPinChanged
					}
					e.places[i] = uint32(n)
				}
			}
			for _, n := range e.places {
				gone = gone && n == 0
			}
			if gone {
				return nil
			}
			return yield(e)
		}
		err := f.each(0, f.Count, func(e entry) error {
			for ; next < len(tags) && tags[next] < e.tag; next++ {
				if err := emit(entry{tag: tags[next]}); err != nil {
					return err
				}
			}
			if next < len(tags) && tags[next] == e.tag {
				next++
			}
			return emit(e)
		})
		for ; err == nil && next < len(tags); next++ {
			err = emit(entry{tag: tags[next]})
		}
		return err
	}
	was := f.Pin
	return h.writePin(p, f.width, merged, func(now Pin) error {
		if !now.same(was) {
			return ErrPinChanged
		}
		return nil
	})
}

// writePin replaces a pin, unless check has something against the one there is.
func (h *Hoard) writePin(p Pin, width int, all entries, check func(now Pin) error) error {
	if err := checkID(p.UUID); err != nil {
		return err
	}
	var count int64
	if err := all(func(entry) error { count++; return nil }); err != nil {
		return err
	}
	memory := map[bool]string{true: "yes", false: "no"}[p.Memory]
	head, err := parcel.Record{{Key: "UUID", Value: p.UUID}, {Key: "PARCEL", Value: p.Parcel}, {Key: "USER", Value: p.User},
		{Key: "SERVER", Value: p.Server}, {Key: "VERSION", Value: strconv.Itoa(p.Version)}, {Key: "MEMORY", Value: memory},
		{Key: "TIME", Value: p.Time.UTC().Format(time.RFC3339)},
		{Key: "WIDTH", Value: strconv.Itoa(width)}, {Key: "COUNT", Value: strconv.FormatInt(count, 10)}}.Encode()
	if err != nil {
		return fmt.Errorf("pin of %s: %w", p.UUID, err)
	}
	head = append([]byte(pinMagic), append(head, '\n')...)
	if len(head) > maxPinHead {
		return fmt.Errorf("pin of %s: head of %d bytes", p.UUID, len(head))
	}
	f, err := atomicfile.Create(h.pinFile(p.UUID), 0o600)
	if err != nil {
		return spaceError(err)
	}
	defer f.Abort()
	w := bufio.NewWriterSize(f, 1<<20)
	w.Write(head)
	var places [4 * parts]byte
	err = all(func(e entry) error {
		w.WriteString(string(e.tag))
		for i, n := range e.places {
			binary.BigEndian.PutUint32(places[4*i:], n)
		}
		_, err := w.Write(places[:])
		return err
	})
	if err == nil {
		err = w.Flush()
	}
	if err != nil {
		return spaceError(err)
	}
	// An eviction looks at the pins, and removes, under the same lock.
	unlock, err := h.lock()
	if err != nil {
		return err
	}
	defer unlock()
	now, err := h.Pinned(p.UUID)
	if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, ErrBadPin) {
		return err
	}
	if err := check(now); err != nil {
		return err
	}
	return spaceError(f.Commit())
}

// Pinned is the pin of a parcel; fs.ErrNotExist if there is none.
func (h *Hoard) Pinned(id string) (Pin, error) {
	if err := checkID(id); err != nil {
		return Pin{}, err
	}
	f, err := h.openPin(id)
	if err != nil {
		return Pin{}, err
	}
	defer f.Close()
	return f.Pin, nil
}

// Completed notes that all of a pinned parcel was seen to be here at t, and
// makes it survive a power cut.
func (h *Hoard) Completed(id string, t time.Time) error {
	if err := checkID(id); err != nil {
		return err
	}
	root, err := os.Open(h.path)
	if err != nil {
		return err
	}
	defer root.Close()
	if err := syncfs(root); err != nil {
		return fmt.Errorf("hoard: sync of %s: %w", h.path, err)
	}
	return spaceError(atomicfile.Write(h.pinFile(id)+doneExt, fmt.Appendf(nil, "%s\n", t.UTC().Format(time.RFC3339)), 0o600))
}

// CompletedAt is when all of a pinned parcel was last seen to be here; zero if
// it never was.
func (h *Hoard) CompletedAt(id string) time.Time {
	p, err := os.ReadFile(h.pinFile(id) + doneExt)
	if err != nil {
		return time.Time{}
	}
	t, _ := time.Parse(time.RFC3339, strings.TrimSpace(string(p)))
	return t
}

const doneExt = ".done"

// Unpin forgets the pin of a parcel; none is no error. Its objects stay until
// they are evicted.
func (h *Hoard) Unpin(id string) error {
	if err := checkID(id); err != nil {
		return err
	}
	unlock, err := h.lock()
	if err != nil {
		return err
	}
	defer unlock()
	for _, name := range []string{h.pinFile(id), h.pinFile(id) + doneExt} {
		if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return atomicfile.SyncDir(filepath.Join(h.path, "pins"))
}

// Drop unpins a parcel and removes its objects that no other pin needs.
func (h *Hoard) Drop(ctx context.Context, id string) (Freed, error) {
	var freed Freed
	if err := checkID(id); err != nil {
		return freed, err
	}
	f, err := h.openPin(id)
	if errors.Is(err, fs.ErrNotExist) {
		return freed, nil
	} else if err != nil {
		return freed, err
	}
	defer f.Close()
	if err := h.Unpin(id); err != nil {
		return freed, err
	}
	shards, err := h.shards()
	if err != nil {
		return freed, err
	}
	for _, shard := range shards {
		mine := make(map[seal.Tag]bool)
		if err := f.shard(shard, func(e entry) error { mine[e.tag] = true; return nil }); err != nil {
			return freed, err
		}
		if len(mine) == 0 {
			continue
		}
		err := h.reap(ctx, shard, &freed, func(o Object) bool { return mine[o.Tag] })
		if err != nil {
			return freed, err
		}
	}
	return freed, nil
}

// Pins lists the pins, by UUID. One that cannot be read is not in the list;
// the error wraps ErrBadPin and names each such, the list is good all the same.
func (h *Hoard) Pins() ([]Pin, error) {
	var pins []Pin
	var bad []error
	err := h.eachPin(func(f *pinFile, id string, err error) error {
		if err != nil {
			bad = append(bad, err)
		} else {
			pins = append(pins, f.Pin)
		}
		return nil
	})
	return pins, errors.Join(append(bad, err)...)
}

// Present counts how much of a pinned parcel is in the hoard; fs.ErrNotExist
// if it is not pinned.
func (h *Hoard) Present(ctx context.Context, id string) (objects, bytes int64, err error) {
	err = h.present(ctx, id, func(tags map[seal.Tag]bool, shard byte) error {
		return h.walkShard(ctx, shard, func(o Object) error {
			if tags[o.Tag] && o.Size > 0 {
				objects++
				bytes += o.Size
			}
			return nil
		})
	})
	return objects, bytes, err
}

// Missing is the tags of a pinned parcel that are not here, ascending;
// fs.ErrNotExist if the parcel is not pinned.
func (h *Hoard) Missing(ctx context.Context, id string) ([]seal.Tag, error) {
	var missing []seal.Tag
	err := h.present(ctx, id, func(tags map[seal.Tag]bool, shard byte) error {
		err := h.walkShard(ctx, shard, func(o Object) error {
			if o.Size > 0 {
				delete(tags, o.Tag)
			}
			return nil
		})
		missing = append(missing, slices.Sorted(maps.Keys(tags))...)
		return err
	})
	return missing, err
}

// Whole reports whether there is a file for all that a pinned parcel needs;
// false if it is not pinned. It looks at names alone, on all cores: what a
// hoard run has completed is on disk, see Completed, so a name that is there
// has its content.
func (h *Hoard) Whole(ctx context.Context, id string) (bool, error) {
	pin, err := h.openPin(id)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	} else if err != nil {
		return false, err
	}
	defer pin.Close()
	var (
		next   atomic.Int64
		lacks  atomic.Bool
		wg     sync.WaitGroup
		mu     sync.Mutex
		failed error
	)
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			for ctx.Err() == nil && !lacks.Load() {
				shard := next.Add(1) - 1
				if shard > 255 {
					return
				}
				all, err := h.wholeShard(pin, byte(shard))
				if err != nil {
					mu.Lock()
					failed = errors.Join(failed, err)
					mu.Unlock()
				}
				if !all {
					lacks.Store(true)
				}
			}
		})
	}
	wg.Wait()
	if failed == nil {
		failed = ctx.Err()
	}
	return failed == nil && !lacks.Load(), failed
}

func (h *Hoard) wholeShard(pin *pinFile, shard byte) (bool, error) {
	var names map[string]struct{}
	all := true
	var name [2 * sha256.Size]byte
	err := pin.shard(shard, func(e entry) error {
		if names == nil {
			list, err := h.names(shard)
			if err != nil {
				return err
			}
			names = make(map[string]struct{}, len(list))
			for _, n := range list {
				names[n] = struct{}{}
			}
		}
		n := hex.Encode(name[:], []byte(e.tag))
		if _, ok := names[string(name[:n])]; !ok {
			all = false
		}
		return nil
	})
	return all, err
}

// names is the names in the directory of a shard, in no order.
func (d *Dir) names(shard byte) ([]string, error) {
	f, err := os.Open(filepath.Join(d.path, hex.EncodeToString([]byte{shard})))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	defer f.Close()
	return f.Readdirnames(-1)
}

// present calls f for each byte with which a tag of the pin begins.
func (h *Hoard) present(ctx context.Context, id string, f func(tags map[seal.Tag]bool, shard byte) error) error {
	pin, err := h.openPin(id)
	if err != nil {
		return err
	}
	defer pin.Close()
	for shard := range 256 {
		if err := ctx.Err(); err != nil {
			return err
		}
		tags := make(map[seal.Tag]bool)
		err := pin.shard(byte(shard), func(e entry) error { tags[e.tag] = true; return nil })
		if err == nil && len(tags) > 0 {
			err = f(tags, byte(shard))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// Tags are the tags a pin names, ascending; fs.ErrNotExist if the parcel is
// not pinned.
func (h *Hoard) Tags(id string) ([]seal.Tag, error) {
	f, err := h.openPin(id)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	tags := make([]seal.Tag, 0, f.Count)
	err = f.each(0, f.Count, func(e entry) error { tags = append(tags, e.tag); return nil })
	return tags, err
}

// pinnedIn is the set of pinned tags that begin with the byte shard.
func (h *Hoard) pinnedIn(shard byte) (map[seal.Tag]bool, error) {
	tags := make(map[seal.Tag]bool)
	return tags, h.eachPin(func(f *pinFile, id string, err error) error {
		if err != nil {
			return err
		}
		return f.shard(shard, func(e entry) error { tags[e.tag] = true; return nil })
	})
}

// eachPin opens each pin for f, by UUID. The file is nil if err is not.
func (h *Hoard) eachPin(do func(f *pinFile, id string, err error) error) error {
	entries, err := os.ReadDir(filepath.Join(h.path, "pins"))
	if err != nil {
		return fmt.Errorf("hoard: %w", err)
	}
	for _, e := range entries {
		if checkID(e.Name()) != nil {
			continue // a temp file
		}
		f, err := h.openPin(e.Name())
		if errors.Is(err, fs.ErrNotExist) {
			continue // unpinned meanwhile
		}
		if err == nil {
			err = do(f, e.Name(), nil)
			f.Close()
		} else {
			err = do(nil, e.Name(), err)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// pinFile is an open pin.
type pinFile struct {
	Pin
	f *os.File
	pinSize
}

func (f *pinFile) Close() error { return f.f.Close() }

// openPin opens and checks a pin; fs.ErrNotExist if there is none.
func (h *Hoard) openPin(id string) (*pinFile, error) {
	file, err := os.Open(h.pinFile(id))
	if err != nil {
		return nil, err
	}
	f := &pinFile{f: file}
	if err := f.readHead(id); err != nil {
		file.Close()
		return nil, fmt.Errorf("pin %s: %w: %w", id, err, ErrBadPin)
	}
	return f, nil
}

func (f *pinFile) readHead(id string) error {
	p := make([]byte, maxPinHead)
	n, err := f.f.ReadAt(p, 0)
	if err != nil && err != io.EOF {
		return err
	}
	size, err := parsePinHead(p[:n], &f.Pin)
	if err != nil {
		return err
	}
	f.pinSize = size
	fi, err := f.f.Stat()
	if err != nil {
		return err
	}
	if f.UUID != id {
		return fmt.Errorf("holds the pin of %s", f.UUID)
	}
	if want := f.start + f.Count*int64(f.stride()); fi.Size() != want {
		return fmt.Errorf("%d bytes long, want %d", fi.Size(), want)
	}
	return nil
}

// pinSize says where the entries of a pin are.
type pinSize struct {
	width int   // of a tag, bytes
	start int64 // offset of the first entry
	old   bool  // of tags alone
}

// stride is the bytes of an entry.
func (s pinSize) stride() int {
	if s.old {
		return s.width
	}
	return s.width + 4*parts
}

// entry is the entry at the beginning of p.
func (s pinSize) entry(p []byte) entry {
	e := entry{tag: seal.Tag(p[:s.width]), places: [parts]uint32{1}}
	for i := 0; i < parts && !s.old; i++ {
		e.places[i] = binary.BigEndian.Uint32(p[s.width+4*i:])
	}
	return e
}

// parsePinHead reads the part of a pin in front of the entries.
func parsePinHead(p []byte, pin *Pin) (pinSize, error) {
	var size pinSize
	rest, ok := bytes.CutPrefix(p, []byte(pinMagic))
	if !ok {
		rest, ok = bytes.CutPrefix(p, []byte(pinMagic1))
		size.old = ok
	}
	head, _, ended := bytes.Cut(rest, []byte("\n\n"))
	if !ok || !ended {
		return size, errors.New("not a pin")
	}
	r, err := parcel.ParseRecord(head)
	if err != nil {
		return size, err
	}
	pin.UUID, pin.Parcel, pin.User, pin.Server = r.Get("UUID"), r.Get("PARCEL"), r.Get("USER"), r.Get("SERVER")
	pin.Memory = r.Get("MEMORY") == "yes"
	if pin.Version, err = strconv.Atoi(r.Get("VERSION")); err != nil {
		return size, fmt.Errorf("VERSION: %w", err)
	}
	if pin.Time, err = time.Parse(time.RFC3339, r.Get("TIME")); err != nil {
		return size, fmt.Errorf("TIME: %w", err)
	}
	if size.width, err = strconv.Atoi(r.Get("WIDTH")); err != nil || seal.Tag(make([]byte, max(0, min(size.width, 99)))).NewHash() == nil {
		return size, fmt.Errorf("WIDTH %q: want that of a tag", r.Get("WIDTH"))
	}
	if pin.Count, err = strconv.ParseInt(r.Get("COUNT"), 10, 64); err != nil || pin.Count < 0 || pin.Count > 1<<40 {
		return size, fmt.Errorf("COUNT %q: want a number of tags", r.Get("COUNT"))
	}
	size.start = int64(len(pinMagic) + len(head) + 2)
	return size, nil
}

// shard calls do for the entries whose tag begins with the byte first.
func (f *pinFile) shard(first byte, do func(entry) error) error {
	var failed error
	at := func(i int64) byte {
		var b [1]byte
		if _, err := f.f.ReadAt(b[:], f.start+i*int64(f.stride())); err != nil {
			failed = err
		}
		return b[0]
	}
	lo := int64(sort.Search(int(f.Count), func(i int) bool { return at(int64(i)) >= first }))
	hi := lo + int64(sort.Search(int(f.Count-lo), func(i int) bool { return at(lo+int64(i)) > first }))
	if failed != nil {
		return fmt.Errorf("pin %s: %w: %w", f.UUID, failed, ErrBadPin)
	}
	return f.each(lo, hi, do)
}

// each calls do for the entries from lo to hi-1.
func (f *pinFile) each(lo, hi int64, do func(entry) error) error {
	stride := int64(f.stride())
	r := bufio.NewReaderSize(io.NewSectionReader(f.f, f.start+lo*stride, (hi-lo)*stride), int(min(max((hi-lo)*stride, 16), 1<<20)))
	p := make([]byte, stride)
	for range hi - lo {
		if _, err := io.ReadFull(r, p); err != nil {
			return fmt.Errorf("pin %s: %w: %w", f.UUID, err, ErrBadPin)
		}
		if err := do(f.entry(p)); err != nil {
			return err
		}
	}
	return nil
}

// tagList sorts tags, each with its part behind it, that lie one after another.
type tagList struct {
	p     []byte
	width int
	swap  [64]byte
}

func (l *tagList) Len() int        { return len(l.p) / l.width }
func (l *tagList) at(i int) []byte { return l.p[i*l.width : (i+1)*l.width] }
func (l *tagList) Less(i, j int) bool {
	return bytes.Compare(l.at(i), l.at(j)) < 0
}
func (l *tagList) Swap(i, j int) {
	n := copy(l.swap[:], l.at(i))
	copy(l.at(i), l.at(j))
	copy(l.at(j), l.swap[:n])
}

// entries gives each tag once, with how often it is in the sorted list.
func (l *tagList) entries(f func(entry) error) error {
	for i := 0; i < l.Len(); {
		tag := l.at(i)[:l.width-1]
		e := entry{tag: seal.Tag(tag)}
		for ; i < l.Len() && bytes.Equal(l.at(i)[:l.width-1], tag); i++ {
			e.places[l.at(i)[l.width-1]]++
		}
		if err := f(e); err != nil {
			return err
		}
	}
	return nil
}

// checkID refuses what is not a UUID, before it becomes a file name.
func checkID(id string) error {
	if u, err := uuid.Parse(id); err != nil || u.String() != id {
		return parcel.NewError(parcel.Usage, "uuid %q: want 8-4-4-4-12 lower-case hex digits", id)
	}
	return nil
}
