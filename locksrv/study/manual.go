package study

import (
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"isr/store/parcel"
)

// manual is a record that people made: an answer of a survey, a call for
// support, or why somebody left.
type manual struct {
	Kind    string  `json:"kind"` // survey, support or exit
	Date    string  `json:"date"`
	User    string  `json:"user"`            // "": it is not told
	Topic   string  `json:"topic"`           // question, type of the call, or reason
	Cause   string  `json:"cause,omitempty"` // of a call
	Score   float64 `json:"score,omitempty"`
	Minutes float64 `json:"minutes,omitempty"`
	Text    string  `json:"text,omitempty"`
}

// headers are the first lines of files of records, by kind.
var headers = map[string]string{
	"survey":  "date,user,question,score,text",
	"support": "date,user,type,cause,minutes,text",
	"exit":    "date,user,reason,text",
}

// parseManual reads a CSV file of records; its first line says of which kind.
func parseManual(r io.Reader) ([]manual, error) {
	in := csv.NewReader(r)
	head, err := in.Read()
	if err != nil {
		return nil, fmt.Errorf("first line: %w", err)
	}
	kind := ""
	for k, h := range headers {
		if strings.TrimPrefix(strings.ToLower(strings.Join(head, ",")), "\ufeff") == h {
			kind = k
		}
	}
	if kind == "" {
		return nil, fmt.Errorf("first line: want %s; or %s; or %s", headers["survey"], headers["support"], headers["exit"])
	}
	var all []manual
	for {
		f, err := in.Read()
		if err == io.EOF {
			return all, nil
		}
		if err != nil {
			return nil, err
		}
		line, _ := in.FieldPos(0)
		m := manual{Kind: kind, Date: f[0], User: f[1], Topic: f[2], Text: f[len(f)-1]}
		switch kind {
		case "survey":
			m.Score, err = parseNumber("score", f[3], 10)
		case "support":
			m.Cause = f[3]
			m.Minutes, err = parseNumber("minutes", f[4], 100000)
		}
		if err == nil {
			err = m.check()
		}
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", line, err)
		}
		all = append(all, m)
	}
}

func parseNumber(what, s string, limit float64) (float64, error) {
	n, err := strconv.ParseFloat(s, 64)
	if err != nil || !(n >= 0 && n <= limit) {
		return 0, fmt.Errorf("%s %q: want a number from 0 to %g", what, s, limit)
	}
	return n, nil
}

func (m *manual) check() error {
	if _, err := time.Parse(time.DateOnly, m.Date); err != nil {
		return fmt.Errorf("date %q: want YYYY-MM-DD", m.Date)
	}
	if m.User != "" {
		if err := parcel.CheckName(m.User); err != nil {
			return err
		}
	}
	if m.Topic == "" {
		return errors.New("third field: is empty")
	}
	for _, s := range []string{m.Topic, m.Cause, m.Text} {
		if len(s) > 1000 || parcel.Clean(s) != s {
			return errors.New("want at most 1000 bytes of plain text in a field")
		}
	}
	return nil
}

// Import adds a file of records that people made. The same record again counts
// once. Each names a user who agreed, or none.
func (d *Dir) Import(r io.Reader, file string, realm Realm, names *Names) (int, error) {
	if err := d.make(names != nil); err != nil {
		return 0, err
	}
	bad := func(err error) error {
		return parcel.NewError(parcel.Usage, "%s: %v", parcel.Clean(file), err).WithHint("isr-study(5) has the form of such files")
	}
	add, err := parseManual(r)
	if err != nil {
		return 0, bad(err)
	}
	for i, m := range add {
		if m.User != "" {
			if _, ok, err := realm.Consent(m.User); err != nil || !ok {
				return 0, bad(fmt.Errorf("user %s: does not take part in the study", m.User))
			}
		}
		add[i] = names.manual(m)
	}
	unlock, err := d.lock()
	if err != nil {
		return 0, err
	}
	defer unlock()
	old, err := readLines[manual](filepath.Join(d.path, manualFile))
	if err != nil {
		return 0, err
	}
	n := len(old)
	for _, m := range add {
		if !slices.Contains(old, m) {
			old = append(old, m)
		}
	}
	slices.SortStableFunc(old, func(a, b manual) int { return strings.Compare(a.Date, b.Date) })
	return len(old) - n, writeLines(filepath.Join(d.path, manualFile), old)
}
