package study_test

import (
	"context"
	"database/sql"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"isr/locksrv/study"
	"isr/locksrv/study/studytest"
)

const weeks = 4

var end = studytest.Start.AddDate(0, 0, 7*weeks)

// harvest harvests r into dir.
func harvest(t testing.TB, r *studytest.Realm, dir string, names *study.Names, now time.Time) study.Harvested {
	t.Helper()
	d, err := study.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	src := r.Source(t)
	last := int64(-1)
	src.Progress = func(done, total int64) {
		if done < last || done >= total {
			t.Errorf("progress: %d of %d after %d", done, total, last)
		}
		last = done
	}
	h, err := d.Harvest(context.Background(), src, names, now)
	if err != nil {
		t.Fatal(err)
	}
	if last < 1 {
		t.Errorf("progress: %d", last)
	}
	return h
}

func open(t testing.TB, dir string) *sql.DB {
	t.Helper()
	db, err := study.OpenDB(filepath.Join(dir, study.Database))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db
}

func ask(t testing.TB, db *sql.DB, query string) string {
	t.Helper()
	var s sql.NullString
	if err := db.QueryRow(query).Scan(&s); err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	return s.String
}

// dump is all of a database but what a harvest measures of its host.
func dump(t testing.TB, dir string) string {
	t.Helper()
	db := open(t, dir)
	var b strings.Builder
	for _, table := range study.Tables() {
		if table == "realm" {
			continue
		}
		rows, err := db.Query("SELECT * FROM " + table)
		if err != nil {
			t.Fatal(err)
		}
		cols, _ := rows.Columns()
		vals, ptrs := make([]any, len(cols)), make([]any, len(cols))
		for i := range vals {
			ptrs[i] = &vals[i]
		}
		for rows.Next() {
			if err := rows.Scan(ptrs...); err != nil {
				t.Fatal(err)
			}
			fmt.Fprintln(&b, table, vals)
		}
		rows.Close()
	}
	return b.String()
}

func TestHarvest(t *testing.T) {
	r := studytest.Make(t, t.TempDir(), 8, weeks)
	dir := filepath.Join(t.TempDir(), "study")
	h := harvest(t, r, dir, nil, end)
	if h.Users != 8 || h.Agreed != 7 || h.Events == 0 || h.Reports == 0 {
		t.Errorf("got %+v", h)
	}
	db := open(t, dir)
	for query, want := range map[string]string{
		"SELECT agreed FROM a1_agreed ORDER BY month DESC LIMIT 1":                                               "7",
		"SELECT active FROM a2_active WHERE month = '2026-09'":                                                   "7",
		"SELECT count(*) FROM (SELECT user, parcel, version FROM versions GROUP BY 1, 2, 3 HAVING count(*) > 1)": "0",
		"SELECT count(*) FROM sessions WHERE \"end\" IS NULL":                                                    "0",
		"SELECT count(*) FROM sessions WHERE seconds < 3600 OR seconds > 4*3600+10":                              "0",
		"SELECT count(*) FROM sessions WHERE commits <> 1":                                                       "0",
		"SELECT (SELECT count(*) FROM sessions) = (SELECT count(*) FROM versions)":                               "1",
		"SELECT (SELECT count(*) FROM reports) = (SELECT count(*) FROM sessions)":                                "1",
		"SELECT count(*) FROM events WHERE user = 'user08' OR \"to\" LIKE 'user08%'":                             "0",
		"SELECT sum(times) > 0 FROM k2_admin WHERE op = 'user-add'":                                              "1",
		"SELECT sum(times) FROM k2_admin WHERE op = 'gc'":                                                        "4",
		"SELECT (SELECT sum(suspends) FROM j4_totals) > (SELECT count(*) FROM versions)":                         "1",
		"SELECT count(*) FROM d3_locations WHERE kind = 'mobile'":                                                "7",
		"SELECT sum(refused) > 0 FROM b3_conflicts":                                                              "1",
	} {
		if got := ask(t, db, query); got != want {
			t.Errorf("%s: got %s, want %s", query, got, want)
		}
	}
	for _, m := range study.Metrics {
		for _, v := range m.Views {
			ask(t, db, "SELECT count(*) FROM "+v)
		}
		if len(m.Views) == 0 && m.Note == "" {
			t.Errorf("%s: neither answered nor said why not", m.ID)
		}
	}
	for _, file := range []string{dir, filepath.Join(dir, "study.sqlite"), filepath.Join(dir, "2026-W38", "events.jsonl")} {
		if fi, err := os.Stat(file); err != nil || fi.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s: %v, %v: others can read it", file, fi.Mode(), err)
		}
	}
	// Again: the same, and nothing is new.
	before := dump(t, dir)
	h = harvest(t, r, dir, nil, end)
	if h.Events != 0 || h.Reports != 0 || h.Removed != 0 {
		t.Errorf("again: %+v", h)
	}
	if after := dump(t, dir); after != before {
		t.Errorf("a second harvest changed the database")
	}
}

// Day by day, or all at once; the logs may go when they were harvested.
func TestHarvestDaily(t *testing.T) {
	r := studytest.Make(t, t.TempDir(), 4, weeks)
	once, daily := filepath.Join(t.TempDir(), "once"), filepath.Join(t.TempDir(), "daily")
	harvest(t, r, once, nil, end)
	for d := 8; d <= 7*weeks; d += 10 {
		harvest(t, r, daily, nil, studytest.Start.AddDate(0, 0, d))
	}
	if err := os.RemoveAll(filepath.Join(r.Dir, "log")); err != nil {
		t.Fatal(err)
	}
	harvest(t, r, daily, nil, end)
	if a, b := dump(t, once), dump(t, daily); a != b {
		t.Errorf("they differ:\n%d and %d bytes", len(a), len(b))
	}
}

// Who no longer agrees is taken out; who has left the realm is not.
func TestWithdrawn(t *testing.T) {
	r := studytest.Make(t, t.TempDir(), 4, weeks)
	dir := filepath.Join(t.TempDir(), "study")
	harvest(t, r, dir, nil, end)
	delete(r.Agreed, "user01")
	r.Names = r.Names[:1:1]
	r.Names = append(r.Names, "user03", "user04") // user02 has left
	h := harvest(t, r, dir, nil, end)
	if h.Removed == 0 {
		t.Errorf("nothing was removed: %+v", h)
	}
	err := filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		p, err := os.ReadFile(path)
		if strings.Contains(string(p), "user01") {
			t.Errorf("%s: user01 is in it", path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	db := open(t, dir)
	if got := ask(t, db, "SELECT count(DISTINCT user) FROM sessions"); got != "2" {
		t.Errorf("%s users have sessions, want the one who left and the one who stayed", got)
	}
	if got := ask(t, db, "SELECT group_concat(user) FROM users WHERE present"); got != "user03" {
		t.Errorf("present: %s", got)
	}
}

// Who agreed before, of which the realm learns later, is in it from then on.
func TestAgreedBefore(t *testing.T) {
	r := studytest.Make(t, t.TempDir(), 4, weeks)
	once, twice := filepath.Join(t.TempDir(), "once"), filepath.Join(t.TempDir(), "twice")
	harvest(t, r, once, nil, end)
	since := r.Agreed["user01"]
	delete(r.Agreed, "user01")
	harvest(t, r, twice, nil, end)
	r.Agreed["user01"] = since
	harvest(t, r, twice, nil, end)
	if a, b := dump(t, once), dump(t, twice); a != b {
		t.Errorf("they differ: %d and %d bytes", len(a), len(b))
	}
}

// Without names, nothing that was harvested tells who anybody is.
func TestAnonymous(t *testing.T) {
	r := studytest.Make(t, t.TempDir(), 8, weeks)
	names, err := study.LoadNames(filepath.Join(r.Dir, "study.key"))
	if err != nil {
		t.Fatal(err)
	}
	dir, named := filepath.Join(t.TempDir(), "study"), filepath.Join(t.TempDir(), "named")
	harvest(t, r, dir, names, end)
	harvest(t, r, named, nil, end)
	if d, _ := study.Open(named); d.Build(context.Background(), filepath.Join(dir, "of-named.sqlite"), study.Selection{Names: names}) != nil {
		t.Error("no database of it")
	}
	err = filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		p, err := os.ReadFile(path)
		for _, word := range []string{"user0", "office", "home", "192.0.2.1", "198.51.100.1", `"box"`, "root", studytest.UUID("user01"), " on "} {
			if strings.Contains(string(p), word) {
				t.Errorf("%s: %q is in it", path, word)
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	db := open(t, dir)
	for query, want := range map[string]string{
		"SELECT count(DISTINCT user) FROM sessions":                                    "7",
		"SELECT count(DISTINCT host) FROM sessions":                                    "2",
		"SELECT count(*) FROM events WHERE \"from\" = '192.0.2.0/24'":                  ask(t, open(t, named), "SELECT count(*) FROM events WHERE \"from\" LIKE '192.0.2.%'"),
		"SELECT group_concat(grp) FROM (SELECT DISTINCT grp FROM groups ORDER BY grp)": "other,students",
	} {
		if got := ask(t, db, query); got != want {
			t.Errorf("%s: got %s, want %s", query, got, want)
		}
	}
	// The two are not mixed.
	for dir, n := range map[string]*study.Names{dir: nil, named: names} {
		d, err := study.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := d.Harvest(context.Background(), r.Source(t), n, end); err == nil {
			t.Errorf("%s: mixed", dir)
		}
	}
}

func TestSelection(t *testing.T) {
	r := studytest.Make(t, t.TempDir(), 3, weeks)
	dir := filepath.Join(t.TempDir(), "study")
	harvest(t, r, dir, nil, end)
	d, err := study.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	day := studytest.Start.AddDate(0, 0, 14)
	file := filepath.Join(dir, study.Database)
	if err := d.Build(context.Background(), file, study.Selection{From: day, To: day.AddDate(0, 0, 6)}); err != nil {
		t.Fatal(err)
	}
	if got := ask(t, open(t, dir), "SELECT group_concat(DISTINCT week) FROM events"); got != "2026-W38" {
		t.Errorf("got weeks %s", got)
	}
}
