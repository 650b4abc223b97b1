package hoard

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"sort"
	"strconv"
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

// Pin says which parcel a list of tags belongs to.
type Pin struct {
	UUID    string // of the parcel
	Parcel  string // its name
	User    string // its owner
	Server  string // where it lives
	Version int
	Time    time.Time // when it was pinned
	Count   int64     // of distinct tags; set by Pins
}

// A pin is a file: pinMagic, a record, an empty line, Count tags of Width
// bytes in ascending order. Fixed-width entries make a short file show, and
// let eviction read only the tags that begin with one byte.
const pinMagic = "# isr pin 1\n"

// maxPinHead bounds the part in front of the tags, bytes.
const maxPinHead = 4096

func (h *Hoard) pinFile(id string) string { return filepath.Join(h.path, "pins", id) }

// Pin keeps the objects that tags names from eviction, until Unpin or another
// Pin of the same parcel. They need not be in the hoard yet. Tags are all of
// one suite, in any order.
func (h *Hoard) Pin(p Pin, tags iter.Seq[seal.Tag]) error {
	if err := checkID(p.UUID); err != nil {
		return err
	}
	list := tagList{width: sha256.Size}
	first := true
	for t := range tags {
		if first {
			list.width, first = len(t), false
		}
		if len(t) != list.width || t.NewHash() == nil {
			return fmt.Errorf("pin of %s: tags of %d and %d bytes", p.UUID, list.width, len(t))
		}
		list.p = append(list.p, t...)
	}
	list.sort()
	head, err := parcel.Record{{Key: "UUID", Value: p.UUID}, {Key: "PARCEL", Value: p.Parcel}, {Key: "USER", Value: p.User},
		{Key: "SERVER", Value: p.Server}, {Key: "VERSION", Value: strconv.Itoa(p.Version)},
		{Key: "TIME", Value: p.Time.UTC().Format(time.RFC3339)},
		{Key: "WIDTH", Value: strconv.Itoa(list.width)}, {Key: "COUNT", Value: strconv.Itoa(list.Len())}}.Encode()
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
	for _, part := range [][]byte{head, list.p} {
		if _, err := f.Write(part); err != nil {
			return spaceError(err)
		}
	}
	// An eviction looks at the pins, and removes, under the same lock.
	unlock, err := h.lock()
	if err != nil {
		return err
	}
	defer unlock()
	return spaceError(f.Commit())
}

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
	if err := os.Remove(h.pinFile(id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
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
		if err := f.shard(shard, mine); err != nil {
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
	f, err := h.openPin(id)
	if err != nil {
		return 0, 0, err
	}
	defer f.Close()
	shards, err := h.shards()
	if err != nil {
		return 0, 0, err
	}
	for _, shard := range shards {
		tags := make(map[seal.Tag]bool)
		if err := f.shard(shard, tags); err != nil {
			return 0, 0, err
		}
		if len(tags) == 0 {
			continue
		}
		err := h.walkShard(ctx, shard, func(o Object) error {
			if tags[o.Tag] && o.Size > 0 {
				objects++
				bytes += o.Size
			}
			return nil
		})
		if err != nil {
			return 0, 0, err
		}
	}
	return objects, bytes, nil
}

// Tags are the tags a pin names, ascending; fs.ErrNotExist if the parcel is
// not pinned.
func (h *Hoard) Tags(id string) ([]seal.Tag, error) {
	f, err := h.openPin(id)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	p := make([]byte, f.Count*int64(f.width))
	if _, err := f.f.ReadAt(p, f.start); err != nil && err != io.EOF {
		return nil, err
	}
	tags := make([]seal.Tag, f.Count)
	for i := range tags {
		tags[i] = seal.Tag(p[i*f.width : (i+1)*f.width])
	}
	return tags, nil
}

// pinnedIn is the set of pinned tags that begin with the byte shard.
func (h *Hoard) pinnedIn(shard byte) (map[seal.Tag]bool, error) {
	tags := make(map[seal.Tag]bool)
	return tags, h.eachPin(func(f *pinFile, id string, err error) error {
		if err != nil {
			return err
		}
		return f.shard(shard, tags)
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
	f     *os.File
	width int
	start int64 // offset of the first tag
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
	f.width, f.start = size.width, size.start
	fi, err := f.f.Stat()
	if err != nil {
		return err
	}
	if f.UUID != id {
		return fmt.Errorf("holds the pin of %s", f.UUID)
	}
	if want := f.start + f.Count*int64(f.width); fi.Size() != want {
		return fmt.Errorf("%d bytes long, want %d", fi.Size(), want)
	}
	return nil
}

type pinSize struct {
	width int
	start int64
}

// parsePinHead reads the part of a pin in front of the tags.
func parsePinHead(p []byte, pin *Pin) (pinSize, error) {
	var size pinSize
	rest, ok := bytes.CutPrefix(p, []byte(pinMagic))
	head, _, ended := bytes.Cut(rest, []byte("\n\n"))
	if !ok || !ended {
		return size, errors.New("not a pin")
	}
	r, err := parcel.ParseRecord(head)
	if err != nil {
		return size, err
	}
	pin.UUID, pin.Parcel, pin.User, pin.Server = r.Get("UUID"), r.Get("PARCEL"), r.Get("USER"), r.Get("SERVER")
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

// shard adds the tags that begin with the byte first to tags.
func (f *pinFile) shard(first byte, tags map[seal.Tag]bool) error {
	width := int64(f.width)
	var failed error
	at := func(i int64) byte {
		var b [1]byte
		if _, err := f.f.ReadAt(b[:], f.start+i*width); err != nil {
			failed = err
		}
		return b[0]
	}
	lo := int64(sort.Search(int(f.Count), func(i int) bool { return at(int64(i)) >= first }))
	hi := lo + int64(sort.Search(int(f.Count-lo), func(i int) bool { return at(lo+int64(i)) > first }))
	if failed != nil {
		return fmt.Errorf("pin %s: %w: %w", f.UUID, failed, ErrBadPin)
	}
	p := make([]byte, (hi-lo)*width)
	if len(p) == 0 {
		return nil
	}
	if _, err := f.f.ReadAt(p, f.start+lo*width); err != nil {
		return fmt.Errorf("pin %s: %w: %w", f.UUID, err, ErrBadPin)
	}
	for ; len(p) > 0; p = p[width:] {
		tags[seal.Tag(p[:width])] = true
	}
	return nil
}

// tagList sorts tags that lie one after another.
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

// sort puts the tags in ascending order, each once.
func (l *tagList) sort() {
	sort.Sort(l)
	n := 0
	for i := range l.Len() {
		if i > 0 && bytes.Equal(l.at(i), l.at(n-1)) {
			continue
		}
		copy(l.at(n), l.at(i))
		n++
	}
	l.p = l.p[:n*l.width]
}

// checkID refuses what is not a UUID, before it becomes a file name.
func checkID(id string) error {
	if u, err := uuid.Parse(id); err != nil || u.String() != id {
		return parcel.NewError(parcel.Usage, "uuid %q: want 8-4-4-4-12 lower-case hex digits", id)
	}
	return nil
}
