package event

import (
	"bufio"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/klauspost/compress/zstd"
)

// maxLine bounds a line that is read, bytes.
const maxLine = 1 << 20

// packed are the endings of days that were compressed, and what opens them.
var packed = map[string]func(io.Reader) (io.Reader, func(), error){
	"": func(r io.Reader) (io.Reader, func(), error) { return r, func() {}, nil },
	".gz": func(r io.Reader) (io.Reader, func(), error) {
		z, err := gzip.NewReader(r)
		return z, func() {}, err
	},
	".zst": func(r io.Reader) (io.Reader, func(), error) {
		z, err := zstd.NewReader(r, zstd.WithDecoderMaxMemory(64<<20))
		if err != nil {
			return nil, nil, err
		}
		return z, z.Close, nil
	},
}

// dayFile splits the name of a day's file: 2026-11-26.jsonl, .jsonl.gz, .jsonl.zst.
func dayFile(name string) (day, ending string, ok bool) {
	day, ending, ok = strings.Cut(name, ".jsonl")
	if _, known := packed[ending]; !ok || !known {
		return "", "", false
	}
	_, err := time.Parse(dayLayout, day)
	return day, ending, err == nil
}

// DayFile is the day, as 2026-11-26, of a file that is named like those of the
// log.
func DayFile(name string) (day string, ok bool) {
	day, _, ok = dayFile(name)
	return day, ok
}

// Unpack is the lines of a file of that name, which may have been compressed.
// Call done when they are read.
func Unpack(name string, r io.Reader) (lines io.Reader, done func(), err error) {
	_, ending, ok := dayFile(name)
	if !ok {
		return nil, nil, fmt.Errorf("%s: is no day's file", name)
	}
	return packed[ending](r)
}

// Days are the days that there are files of, ascending.
func (l *Log) Days() ([]time.Time, error) {
	entries, err := os.ReadDir(l.dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var days []time.Time
	for _, e := range entries {
		text, _, ok := dayFile(e.Name())
		if !ok {
			continue
		}
		if day, err := time.Parse(dayLayout, text); err == nil && (len(days) == 0 || !days[len(days)-1].Equal(day)) {
			days = append(days, day)
		}
	}
	return days, nil
}

// Read is the events of the days from the one of from to the one of to, both
// included, in the order they were written. A line that cannot be read is an
// error, and does not end it.
func (l *Log) Read(from, to time.Time) iter.Seq2[Event, error] {
	return func(yield func(Event, error) bool) {
		entries, err := os.ReadDir(l.dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			yield(Event{}, err)
			return
		}
		first, last := from.UTC().Format(dayLayout), to.UTC().Format(dayLayout)
		for _, e := range entries {
			day, ending, ok := dayFile(e.Name())
			if !ok || day < first || day > last {
				continue
			}
			if !readDay(filepath.Join(l.dir, e.Name()), ending, yield) {
				return
			}
		}
	}
}

// openDay opens a day's file, which is to be a file: nothing else is waited
// for, and no link is followed.
func openDay(name string) (*os.File, error) {
	f, err := os.OpenFile(name, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	if fi, err := f.Stat(); err != nil || !fi.Mode().IsRegular() {
		f.Close()
		return nil, fmt.Errorf("%s: not a file", name)
	}
	return f, nil
}

func readDay(name, ending string, yield func(Event, error) bool) bool {
	f, err := openDay(name)
	if err != nil {
		return yield(Event{}, err)
	}
	defer f.Close()
	r, done, err := packed[ending](f)
	if err != nil {
		return yield(Event{}, fmt.Errorf("%s: %w", name, err))
	}
	defer done()
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, maxLine)
	for n := 1; lines.Scan(); n++ {
		if len(lines.Bytes()) == 0 {
			continue // in front of it is a line that was cut off
		}
		e, err := parse(lines.Bytes())
		if err != nil {
			err = fmt.Errorf("%s line %d: %w", name, n, err)
		}
		if !yield(e, err) {
			return false
		}
	}
	if err := lines.Err(); err != nil {
		return yield(Event{}, fmt.Errorf("%s: %w", name, err))
	}
	return true
}

func parse(line []byte) (e Event, err error) {
	err = json.Unmarshal(line, &e)
	return e, err
}

// Tail reads what is written from now on, whoever writes it. It is for one
// goroutine.
type Tail struct {
	log *Log
	now func() time.Time
	// The newest day that was read, and the one before: a line of that may
	// be written shortly after midnight.
	days [2]tailed
}

// tailed is a day's file, and how much of it was read.
type tailed struct {
	day time.Time
	off int64
}

// Tail begins at the end of the log as it is, or, with today, at this day's
// beginning.
func (l *Log) Tail(today bool) *Tail { return l.tail(today, time.Now) }

func (l *Log) tail(today bool, now func() time.Time) *Tail {
	t := &Tail{log: l, now: now}
	day := now().UTC().Truncate(24 * time.Hour)
	t.days = [2]tailed{{day: day.AddDate(0, 0, -1)}, {day: day}}
	for i := range t.days {
		if fi, err := os.Lstat(t.file(t.days[i])); err == nil && !(today && i == 1) {
			t.days[i].off = fi.Size()
		}
	}
	return t
}

// Day is the day that is read last.
func (t *Tail) Day() time.Time { return t.days[1].day }

func (t *Tail) file(d tailed) string {
	return filepath.Join(t.log.dir, d.day.Format(dayLayout)+".jsonl")
}

// Read is what was written since it was called last. A line that is being
// written is left for the next time.
func (t *Tail) Read() iter.Seq2[Event, error] {
	return func(yield func(Event, error) bool) {
		today := t.now().UTC().Truncate(24 * time.Hour)
		for t.readOn(&t.days[0], yield) && t.readOn(&t.days[1], yield) && t.days[1].day.Before(today) {
			t.days = [2]tailed{t.days[1], {day: t.days[1].day.AddDate(0, 0, 1)}}
		}
	}
}

// readOn reads a day's file from where it was left to its end.
func (t *Tail) readOn(d *tailed, yield func(Event, error) bool) bool {
	f, err := openDay(t.file(*d))
	if errors.Is(err, fs.ErrNotExist) {
		return true // there is none yet, or it was compressed
	}
	if err != nil {
		return yield(Event{}, err)
	}
	defer f.Close()
	r := bufio.NewReader(io.NewSectionReader(f, d.off, 1<<62))
	for {
		line, err := r.ReadBytes('\n')
		if err == io.EOF {
			return true
		}
		if err != nil {
			return yield(Event{}, err)
		}
		d.off += int64(len(line))
		if len(line) == 1 {
			continue
		}
		e, err := parse(line)
		if err != nil {
			err = fmt.Errorf("%s: %w", t.file(*d), err)
		}
		if !yield(e, err) {
			return false
		}
	}
}
