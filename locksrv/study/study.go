// Package study gathers how a realm is used, for the pilot's study: from the
// event log, from the reports of clients, and from the realm itself, into a
// directory of weeks and one SQLite database. isr-study(5) has both, and where
// each metric of the study is.
//
// A directory of weeks is all there is to it: the database is made from that
// anew at each harvest, whole or not at all. It promises that only users who
// agreed are in it by name, and nothing of before they did; that a harvest may
// be killed and run again, and as often as one likes, with the same result;
// and that what was harvested outlives the logs. It draws nothing: that is
// package page.
package study

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"time"

	"isr/locksrv"
	"isr/locksrv/event"
	"isr/store/atomicfile"
	"isr/store/parcel"
)

// Names in a study's directory.
const (
	configFile  = "study.cfg"
	manualFile  = "manual.jsonl"
	eventsFile  = "events.jsonl"
	reportsFile = "reports.jsonl"
	totalsFile  = "totals.jsonl"
	stateFile   = "state.jsonl"

	// Database is the file of the database.
	Database = "study.sqlite"
)

const format = "1"

// weekName matches the directory of a week.
var weekName = regexp.MustCompile(`^[0-9]{4}-W[0-9]{2}$`)

// weekOf is the ISO week of t, UTC.
func weekOf(t time.Time) string {
	y, w := t.UTC().ISOWeek()
	return fmt.Sprintf("%04d-W%02d", y, w)
}

func monthOf(t time.Time) string { return t.UTC().Format("2006-01") }
func dayOf(t time.Time) string   { return t.UTC().Format(time.DateOnly) }

// week is what is gathered of one week.
type week struct {
	events  []event.Event
	reports []locksrv.Kept
	totals  []total
	states  []state
}

// total is what happened on a day, of all users, whether they agreed or not.
type total struct {
	Day     string  `json:"day"`
	Op      string  `json:"op"`
	Done    int     `json:"done"`
	Failed  int     `json:"failed"`
	Seconds float64 `json:"seconds"` // that these took
}

// Dir is a study's directory.
type Dir struct {
	path      string
	anonymous bool
	last      time.Time // of the last harvest
	found     bool      // there was one
}

// Open reads what a study's directory is; there need be none.
func Open(path string) (*Dir, error) {
	d := &Dir{path: path}
	p, err := os.ReadFile(filepath.Join(path, configFile))
	if errors.Is(err, fs.ErrNotExist) {
		return d, nil
	}
	if err != nil {
		return nil, err
	}
	r, err := parcel.ParseRecord(p)
	if err == nil && r.Get("FORMAT") != format {
		err = fmt.Errorf("FORMAT %q: want %s", r.Get("FORMAT"), format)
	}
	if err == nil {
		d.last, err = time.Parse(time.RFC3339, r.Get("LAST"))
	}
	if err != nil {
		return nil, parcel.NewError(parcel.Failed, "study %s: %s: %v", path, configFile, err)
	}
	d.anonymous, d.found = r.Get("ANONYMOUS") == "yes", true
	return d, nil
}

// Found reports whether it is there.
func (d *Dir) Found() bool { return d.found }

// Anonymous reports whether it holds no names.
func (d *Dir) Anonymous() bool { return d.anonymous }

// Last is the time of the last harvest; zero: there was none to its end.
func (d *Dir) Last() time.Time { return d.last }

func (d *Dir) saveConfig() error {
	yes := map[bool]string{true: "yes", false: "no"}
	p, err := parcel.Record{{Key: "FORMAT", Value: format}, {Key: "ANONYMOUS", Value: yes[d.anonymous]},
		{Key: "LAST", Value: d.last.UTC().Format(time.RFC3339)}}.Encode()
	if err != nil {
		return err
	}
	return atomicfile.Write(filepath.Join(d.path, configFile), p, 0o600)
}

// weeks are the names of the weeks there are, in order.
func (d *Dir) weeks() ([]string, error) {
	entries, err := os.ReadDir(d.path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		if e.IsDir() && weekName.MatchString(e.Name()) {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// read reads a week; what is not there is empty.
func (d *Dir) read(name string) (w week, err error) {
	dir := filepath.Join(d.path, name)
	w.events, err = readLines[event.Event](filepath.Join(dir, eventsFile))
	if err == nil {
		w.reports, err = readLines[locksrv.Kept](filepath.Join(dir, reportsFile))
	}
	if err == nil {
		w.totals, err = readLines[total](filepath.Join(dir, totalsFile))
	}
	if err == nil {
		w.states, err = readLines[state](filepath.Join(dir, stateFile))
	}
	return w, err
}

// write replaces a week, file by file.
func (d *Dir) write(name string, w week) error {
	dir := filepath.Join(d.path, name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if err := writeLines(filepath.Join(dir, eventsFile), w.events); err != nil {
		return err
	}
	if err := writeLines(filepath.Join(dir, reportsFile), w.reports); err != nil {
		return err
	}
	if err := writeLines(filepath.Join(dir, totalsFile), w.totals); err != nil {
		return err
	}
	return writeLines(filepath.Join(dir, stateFile), w.states)
}

// maxLine bounds a line of a file, bytes.
const maxLine = 1 << 20

func readLines[T any](file string) ([]T, error) {
	f, err := os.Open(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var all []T
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, maxLine)
	for n := 1; lines.Scan(); n++ {
		var v T
		if err := json.Unmarshal(lines.Bytes(), &v); err != nil {
			return nil, parcel.NewError(parcel.Damaged, "%s line %d: %v", file, n, err).
				WithHint("it was written by a harvest: restore it, or remove the line")
		}
		all = append(all, v)
	}
	return all, lines.Err()
}

// writeLines replaces a file by a line of each, if it is not like that.
func writeLines[T any](file string, all []T) error {
	var b bytes.Buffer
	for _, v := range all {
		p, err := json.Marshal(v)
		if err != nil {
			return err
		}
		b.Write(p)
		b.WriteByte('\n')
	}
	if old, err := os.ReadFile(file); err == nil && bytes.Equal(old, b.Bytes()) {
		return nil
	}
	return atomicfile.Write(file, b.Bytes(), 0o600)
}

// union is a and b in the order of time, each once.
func union[T any](a, b []T, at func(T) time.Time) []T {
	seen := make(map[string]bool)
	var all []T
	for _, v := range slices.Concat(a, b) {
		p, err := json.Marshal(v)
		if err != nil || seen[string(p)] {
			continue
		}
		seen[string(p)] = true
		all = append(all, v)
	}
	slices.SortStableFunc(all, func(x, y T) int { return at(x).Compare(at(y)) })
	return all
}
