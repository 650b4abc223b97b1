// Package snapshot is the format of a backup's snapshots: the list of the objects
// that each parcel had, and the archive of the lock sides. isr-store(5) has both.
//
// What is read is taken for hostile: a list that is not what its sum says, or
// says of itself what is not so, is refused, and so is an archive with a file
// that has no place in a realm, or with one below a link; and neither costs more
// memory than its size allows. The package does not look at objects.
package snapshot

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/klauspost/compress/gzip"

	"isr/store/backup/realm"
	"isr/store/backup/target"
	"isr/store/parcel"
	"isr/store/seal"
)

// Snapshot is one run of a backup: what its list says before the objects.
type Snapshot struct {
	ID      string // sorts by time
	Realm   string
	Time    time.Time
	Host    string       // where it was made
	Sealed  bool         // the archive of the lock sides is encrypted
	Records target.Entry // that archive: below snapshots/
	Sum     string       // its SHA-256
	Parcels []Parcel
	Lacks   []realm.Lack
	Objects int64 // each once
	Bytes   int64
}

// Parcel is one parcel of a Snapshot.
type Parcel struct {
	User, Name string
	Version    int    // the head
	Held       string // by whom on which host; "": by nobody
	Objects    int64
	Bytes      int64
}

// Dir is where snapshots are in a backup.
const Dir = "snapshots"

// Set is the objects that exactly these parcels of a snapshot have.
type Set struct {
	Parcels []int // by their number in the Snapshot, ascending
	Objects []Object
}

// Object is one that a snapshot needs.
type Object struct {
	Tag  seal.Tag
	Size int64 // bytes
}

const snapshotFormat = 1

var idPattern = regexp.MustCompile(`^\d{8}T\d{6}Z-[0-9a-f]{8}$`)

// IsID reports whether text names a snapshot.
func IsID(text string) bool { return idPattern.MatchString(text) }

// NewID names a snapshot made now. It sorts after last, the newest that is
// there, even within a second and after a clock was set back.
func NewID(now time.Time, last string) string {
	if last != "" && !now.After(TimeOf(last)) {
		now = TimeOf(last).Add(time.Second)
	}
	return now.UTC().Format(idLayout) + "-" + parcel.NewID()[:8]
}

const idLayout = "20060102T150405Z"

// TimeOf is when a snapshot was made, UTC.
func TimeOf(id string) time.Time {
	t, _ := time.Parse(idLayout, id[:len(idLayout)])
	return t
}

// Limits of what is read from a backup.
const (
	maxParcels = 1 << 20
	maxList    = 1 << 36 // bytes of a list
	maxRecords = 1 << 32 // bytes of an archive
	maxHeader  = 1 << 28 // bytes of a list before the objects
)

// Write writes the list of a snapshot: records, an empty line, then
// for each set a line "@0,3" with its parcels and a line "TAG SIZE" for each
// object, and in the end the SHA-256 of all that.
func Write(w io.Writer, s *Snapshot, sets []Set) error {
	// Only Huffman's part of gzip: tags are random, and half of each byte is
	// all there is to gain.
	z, err := gzip.NewWriterLevel(w, gzip.HuffmanOnly)
	if err != nil {
		return err
	}
	sum := sha256.New()
	b := bufio.NewWriterSize(io.MultiWriter(z, sum), 1<<16)
	header, err := s.encode()
	if err != nil {
		return err
	}
	b.Write(append(header, '\n'))
	for _, set := range sets {
		b.WriteByte('@')
		for i, p := range set.Parcels {
			if i > 0 {
				b.WriteByte(',')
			}
			b.WriteString(strconv.Itoa(p))
		}
		b.WriteByte('\n')
		for _, o := range set.Objects {
			b.WriteString(o.Tag.String())
			b.WriteByte(' ')
			b.WriteString(strconv.FormatInt(o.Size, 10))
			b.WriteByte('\n')
		}
	}
	if err := b.Flush(); err != nil {
		return err
	}
	if _, err := fmt.Fprintf(z, "END %x\n", sum.Sum(nil)); err != nil {
		return err
	}
	return z.Close()
}

func (s *Snapshot) encode() ([]byte, error) {
	sealed := "no"
	if s.Sealed {
		sealed = "age"
	}
	r := parcel.Record{{Key: "FORMAT", Value: strconv.Itoa(snapshotFormat)}, {Key: "REALM", Value: s.Realm},
		{Key: "TIME", Value: s.Time.UTC().Format(time.RFC3339)}, {Key: "HOST", Value: s.Host},
		{Key: "SEALED", Value: sealed},
		{Key: "RECORDS", Value: fmt.Sprintf("%s %d", s.Sum, s.Records.Size)},
		{Key: "OBJECTS", Value: strconv.FormatInt(s.Objects, 10)}, {Key: "BYTES", Value: strconv.FormatInt(s.Bytes, 10)}}
	for _, p := range s.Parcels {
		r = append(r, parcel.Field{Key: "PARCEL",
			Value: strings.TrimSpace(fmt.Sprintf("%s %s %d %d %d %s", p.User, p.Name, p.Version, p.Objects, p.Bytes, p.Held))})
	}
	for _, l := range s.Lacks {
		r = append(r, parcel.Field{Key: "LACKS", Value: fmt.Sprintf("%s %s %d %d", l.User, l.Name, l.Version, l.Objects)})
	}
	return r.Encode()
}

// parseHeader reads what encode printed.
func parseHeader(id string, text []byte) (*Snapshot, error) {
	r, err := parcel.ParseRecord(text)
	if err != nil {
		return nil, err
	}
	s := &Snapshot{ID: id, Realm: r.Get("REALM"), Host: r.Get("HOST")}
	number := func(what, text string) int64 {
		n, nerr := strconv.ParseInt(text, 10, 64)
		if err == nil && (nerr != nil || n < 0) {
			err = fmt.Errorf("%s: want a number, not %q", what, text)
		}
		return n
	}
	if f := r.Get("FORMAT"); f != strconv.Itoa(snapshotFormat) {
		return nil, fmt.Errorf("format %q: this program reads %d", f, snapshotFormat)
	}
	if err := parcel.CheckName(s.Realm); err != nil {
		return nil, fmt.Errorf("REALM: %w", err)
	}
	if s.Time, err = time.Parse(time.RFC3339, r.Get("TIME")); err != nil {
		return nil, fmt.Errorf("TIME: %w", err)
	}
	s.Records.Name = ArchiveName(id, false)
	switch sealed := r.Get("SEALED"); sealed {
	case "no":
	case "age":
		s.Sealed, s.Records.Name = true, ArchiveName(id, true)
	default:
		return nil, fmt.Errorf("SEALED: %q: this program knows no and age", sealed)
	}
	sum, size, _ := strings.Cut(r.Get("RECORDS"), " ")
	if b, err := hex.DecodeString(sum); err != nil || len(b) != sha256.Size || hex.EncodeToString(b) != sum {
		return nil, fmt.Errorf("RECORDS: want a SHA-256, not %q", sum)
	}
	s.Sum, s.Records.Size = sum, number("RECORDS", size)
	s.Objects, s.Bytes = number("OBJECTS", r.Get("OBJECTS")), number("BYTES", r.Get("BYTES"))
	seen := make(map[[2]string]bool)
	for _, line := range r.All("PARCEL") {
		f := strings.SplitN(line, " ", 6)
		if len(f) < 5 || len(s.Parcels) == maxParcels {
			return nil, fmt.Errorf("PARCEL: %q", line)
		}
		p := Parcel{User: f[0], Name: f[1], Version: int(number("PARCEL", f[2])), Objects: number("PARCEL", f[3]), Bytes: number("PARCEL", f[4])}
		if len(f) == 6 {
			p.Held = f[5]
		}
		if err := errors.Join(parcel.CheckName(p.User), parcel.CheckName(p.Name)); err != nil {
			return nil, fmt.Errorf("PARCEL: %w", err)
		}
		if seen[[2]string{p.User, p.Name}] || len(p.Held) > realm.MaxHeld {
			return nil, fmt.Errorf("PARCEL: %q", line)
		}
		seen[[2]string{p.User, p.Name}] = true
		s.Parcels = append(s.Parcels, p)
	}
	for _, line := range r.All("LACKS") {
		f := strings.Split(line, " ")
		if len(f) != 4 || !seen[[2]string{f[0], f[1]}] {
			return nil, fmt.Errorf("LACKS: %q", line)
		}
		s.Lacks = append(s.Lacks, realm.Lack{User: f[0], Name: f[1], Version: int(number("LACKS", f[2])), Objects: number("LACKS", f[3])})
	}
	if err == nil && s.Records.Size > maxRecords {
		err = fmt.Errorf("RECORDS: %d bytes", s.Records.Size)
	}
	return s, err
}

// Name is where the list of a snapshot is in a backup.
func Name(id string) string { return Dir + "/" + id }

// ArchiveName is where its archive is.
func ArchiveName(id string, sealed bool) string {
	name := Name(id) + ".tar.gz"
	if sealed {
		name += ".age"
	}
	return name
}

// maxLine bounds the line of a set, bytes: all parcels may share an object.
// Tests lower it.
var maxLine = 1 << 24

// listReader reads a snapshot's list.
type listReader struct {
	in    *bufio.Reader
	sum   hash.Hash
	total int64
}

// line is the next line, without its end.
func (l *listReader) line() ([]byte, error) {
	var line []byte
	for {
		part, err := l.in.ReadSlice('\n')
		line = append(line, part...)
		l.total += int64(len(part))
		if len(line) > maxLine || l.total > maxList {
			return nil, errors.New("too long")
		}
		if err == bufio.ErrBufferFull {
			continue
		}
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return nil, err
		}
		return line[:len(line)-1], nil
	}
}

func (l *listReader) hash(line []byte) {
	l.sum.Write(line)
	l.sum.Write([]byte{'\n'})
}

func newListReader(r io.Reader) (*listReader, error) {
	z, err := gzip.NewReader(r)
	if err != nil {
		return nil, err
	}
	return &listReader{in: bufio.NewReaderSize(z, 1<<16), sum: sha256.New()}, nil
}

func (l *listReader) header(id string) (*Snapshot, error) {
	var text bytes.Buffer
	for {
		line, err := l.line()
		if err != nil {
			return nil, err
		}
		l.hash(line)
		if len(line) == 0 {
			return parseHeader(id, text.Bytes())
		}
		if text.Len() > maxHeader {
			return nil, errors.New("too long")
		}
		text.Write(append(line, '\n'))
	}
}

// Read reads all of a snapshot's list.
func Read(id string, r io.Reader) (*Snapshot, []Set, error) {
	l, err := newListReader(r)
	if err != nil {
		return nil, nil, err
	}
	s, err := l.header(id)
	if err != nil {
		return nil, nil, err
	}
	var sets []Set
	var count, bytes int64
	for {
		line, err := l.line()
		if err != nil {
			return nil, nil, err
		}
		if sum, ok := strings.CutPrefix(string(line[:min(len(line), 80)]), "END "); ok {
			if sum != hex.EncodeToString(l.sum.Sum(nil)) {
				return nil, nil, errors.New("it does not match its sum")
			}
			break
		}
		l.hash(line)
		if len(line) > 0 && line[0] == '@' {
			parcels, err := parseSet(string(line[1:]), len(s.Parcels))
			if err != nil {
				return nil, nil, err
			}
			sets = append(sets, Set{Parcels: parcels})
			continue
		}
		text, size, _ := strings.Cut(string(line), " ")
		tag, err := seal.ParseTag(text)
		n, serr := strconv.ParseInt(size, 10, 64)
		if err != nil || serr != nil || tag.NewHash() == nil || n < 1 || n > target.MaxObject || len(sets) == 0 {
			return nil, nil, fmt.Errorf("object %q", parcel.Clean(string(line[:min(len(line), 100)])))
		}
		last := &sets[len(sets)-1]
		last.Objects = append(last.Objects, Object{tag, n})
		count++
		bytes += n
	}
	if count != s.Objects || bytes != s.Bytes {
		return nil, nil, fmt.Errorf("%d objects of %d bytes, where it says %d of %d", count, bytes, s.Objects, s.Bytes)
	}
	return s, sets, nil
}

func parseSet(text string, n int) ([]int, error) {
	fields := strings.Split(text, ",")
	if len(fields) > n {
		return nil, fmt.Errorf("set of %d parcels of %d", len(fields), n)
	}
	parcels := make([]int, 0, len(fields))
	for _, f := range fields {
		p, err := strconv.Atoi(f)
		if err != nil || p < 0 || p >= n || len(parcels) > 0 && p <= parcels[len(parcels)-1] {
			return nil, fmt.Errorf("set with parcel %q", parcel.Clean(f[:min(len(f), 20)]))
		}
		parcels = append(parcels, p)
	}
	return parcels, nil
}

// IDs are the snapshots of a backup, oldest first.
func IDs(ctx context.Context, t target.Target) ([]string, error) {
	var ids []string
	for e, err := range t.List(ctx, Dir) {
		if err != nil {
			return nil, err
		}
		if id := path.Base(e.Name); IsID(id) && e.Name == Name(id) {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids, nil
}

// Damaged says that a snapshot cannot be read.
func Damaged(id string, err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return parcel.NewError(parcel.NoVersion, "snapshot %s: no such snapshot", id)
	}
	var e *parcel.Error
	if errors.As(err, &e) || errors.Is(err, context.Canceled) {
		return err
	}
	return parcel.NewError(parcel.Damaged, "snapshot %s: %s", id, parcel.Clean(err.Error()))
}

// Header is what a snapshot says of itself.
func Header(ctx context.Context, t target.Target, id string) (*Snapshot, error) {
	if !IsID(id) {
		return nil, parcel.NewError(parcel.Usage, "snapshot %q: want a name as 20261126T140311Z-0a1b2c3d", parcel.Clean(id))
	}
	r, err := t.Get(ctx, Name(id))
	if err != nil {
		return nil, Damaged(id, err)
	}
	defer r.Close()
	l, err := newListReader(r)
	if err != nil {
		return nil, Damaged(id, err)
	}
	s, err := l.header(id)
	if err != nil {
		return nil, Damaged(id, err)
	}
	return s, nil
}

// Load reads a snapshot, "" or latest for the newest.
func Load(ctx context.Context, t target.Target, id string) (*Snapshot, []Set, error) {
	if id == "" || id == "latest" {
		ids, err := IDs(ctx, t)
		if err != nil {
			return nil, nil, err
		}
		if len(ids) == 0 {
			return nil, nil, parcel.NewError(parcel.NoVersion, "%s: no backup is there", t)
		}
		id = ids[len(ids)-1]
	}
	if !IsID(id) {
		return nil, nil, parcel.NewError(parcel.Usage, "snapshot %q: want a name as 20261126T140311Z-0a1b2c3d", parcel.Clean(id))
	}
	r, err := t.Get(ctx, Name(id))
	if err != nil {
		return nil, nil, Damaged(id, err)
	}
	defer r.Close()
	s, sets, err := Read(id, r)
	if err != nil {
		return nil, nil, Damaged(id, err)
	}
	return s, sets, nil
}

// sortObjects puts a set in order, so that the same content is the same list.
func sortObjects(objects []Object) {
	slices.SortFunc(objects, func(a, b Object) int { return cmp.Compare(a.Tag, b.Tag) })
}

// SetsOf are the objects of the lists, those together that are in the same
// lists. Most parcels share most objects with many others: a list for each
// parcel would be as many times as long.
func SetsOf(in *realm.Objects, lists [][]uint32) []Set {
	of := make([]int32, len(in.Tags)) // the set of each object so far
	sets := []Set{{}}                 // the first is that of no parcel
	for n, list := range lists {
		next := make(map[int32]int32)
		for _, id := range list {
			to, ok := next[of[id]]
			if !ok {
				to = int32(len(sets))
				next[of[id]] = to
				sets = append(sets, Set{Parcels: append(slices.Clip(sets[of[id]].Parcels), n)})
			}
			of[id] = to
		}
	}
	for id, s := range of {
		if s > 0 {
			sets[s].Objects = append(sets[s].Objects, Object{in.Tags[id], in.Size[id]})
		}
	}
	sets = slices.DeleteFunc(sets, func(s Set) bool { return len(s.Objects) == 0 })
	for _, s := range sets {
		sortObjects(s.Objects)
	}
	return sets
}
