package study

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"isr/locksrv/event"
	"isr/store/atomicfile"
	"isr/store/parcel"
)

// oneUser is a realm with alice, who agreed.
type oneUser struct{ dir string }

func (r oneUser) Root() string                         { return r.dir }
func (r oneUser) Users() ([]string, error)             { return []string{"alice"}, nil }
func (r oneUser) Groups(user string) ([]string, error) { return nil, nil }
func (r oneUser) Parcels(user string) ([]string, error) {
	return []string{"gone"}, nil
}
func (r oneUser) Consent(user string) (time.Time, bool, error) {
	return time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC), user == "alice", nil
}

func (r oneUser) source(warn func(string)) Source {
	return Source{Realm: r, Events: event.NewLog(filepath.Join(r.dir, "log")), Reports: filepath.Join(r.dir, "log", "reports"), Warn: warn,
		Parcel: func(user, name string) (ParcelState, error) {
			return ParcelState{}, parcel.NewError(parcel.NoParcel, "parcel %s: was removed just now", name)
		}}
}

var noon = time.Date(2026, 11, 26, 12, 0, 0, 0, time.UTC)

func put(t testing.TB, file, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

const goodReport = `{"time":"2026-11-26T10:00:00Z","user":"alice","parcel":"winxp","report":{"format":1,"id":"00000000000000000000000000000000","made":"2026-11-26T10:00:00Z","uuid":"u","runs":[{"start":"2026-11-26T09:00:00Z","seconds":5,"ended":"off"}]}}`

// Whatever stands in the logs, what is good of it is gathered, what is not is
// said, and nothing outside is read.
func TestHostileLogs(t *testing.T) {
	r := oneUser{t.TempDir()}
	secret := filepath.Join(t.TempDir(), "secret.jsonl")
	put(t, secret, strings.ReplaceAll(goodReport, `"parcel":"winxp"`, `"parcel":"SECRET"`))
	log, reports := filepath.Join(r.dir, "log"), filepath.Join(r.dir, "log", "reports")
	put(t, filepath.Join(log, "2026-11-26.jsonl"), strings.Join([]string{
		`{"time":"2026-11-26T10:00:00Z","op":"lock","user":"alice","parcel":"winxp","epoch":1}`,
		`nonsense`, `{"time":"never"}`, `[]`, `{}`, "\x00\xff",
		`{"time":"2026-11-26T10:00:01Z","op":"lock","user":"alice","parcel":"'; DROP TABLE events; --","epoch":9223372036854775807}`,
		`{"time":"2026-11-26T10:00:02Z","op":"<script>","user":"alice","parcel":"\u001b[2J"}`,
		`{"time":"2026-11-26T11:00:00Z","op":"release","user":"alice","parcel":"winxp","epoch":1}`,
		`{"time":"9999-12-31T23:59:59Z","op":"release","user":"alice","parcel":"winxp","epoch":2}`, `{"time":"2026-11-26T11:0`}, "\n"))
	put(t, filepath.Join(reports, "alice", "2026-11-26.jsonl"), goodReport+"\n"+goodReport+"\nnonsense\n"+
		strings.ReplaceAll(goodReport, `"user":"alice"`, `"user":"bob"`)+"\n"+
		strings.ReplaceAll(goodReport, `"parcel":"winxp"`, `"parcel":"../x"`)+"\n"+
		strings.ReplaceAll(goodReport, `"seconds":5`, `"seconds":-5`)+"\n")
	put(t, filepath.Join(reports, "bob", "2026-11-26.jsonl"), strings.ReplaceAll(goodReport, `"user":"alice"`, `"user":"bob"`)+"\n")
	for name, id := range map[string]string{"2026-10-01.jsonl.gz": "1", "2026-10-02.jsonl.gz": ""} {
		var b bytes.Buffer
		if z := gzip.NewWriter(&b); id != "" { // the other is empty
			fmt.Fprintln(z, strings.ReplaceAll(goodReport, strings.Repeat("0", 32), strings.Repeat(id, 32)))
			z.Close()
		}
		put(t, filepath.Join(reports, "alice", name), b.String())
	}
	for link, to := range map[string]string{filepath.Join(reports, "alice", "2026-11-27.jsonl"): secret, filepath.Join(reports, "mallory"): filepath.Dir(secret)} {
		if err := os.Symlink(to, link); err != nil {
			t.Fatal(err)
		}
	}
	var said []string
	dir := filepath.Join(t.TempDir(), "study")
	d := &Dir{path: dir}
	h, err := d.Harvest(context.Background(), r.source(func(text string) { said = append(said, text) }), nil, noon)
	if err != nil {
		t.Fatal(err)
	}
	if h.Reports != 2 || len(said) < 8 {
		t.Errorf("%+v; said: %s", h, strings.Join(said, "\n"))
	}
	db, err := OpenDB(filepath.Join(dir, Database))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	var n int
	if err := db.QueryRow("SELECT count(*) FROM sessions WHERE parcel = 'winxp' AND seconds = 3600").Scan(&n); err != nil || n != 1 {
		t.Errorf("%d sessions, %v", n, err)
	}
	if err := db.QueryRow("SELECT count(*) FROM runs").Scan(&n); err != nil || n != 2 {
		t.Errorf("%d runs, %v", n, err)
	}
	filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		if p, _ := os.ReadFile(path); bytes.Contains(p, []byte("SECRET")) || bytes.Contains(p, []byte(`"bob"`)) {
			t.Errorf("%s has what is not alice's", path)
		}
		return err
	})
}

// A harvest that is killed at any step is finished by the next.
func TestHarvestKilled(t *testing.T) {
	r := oneUser{t.TempDir()}
	put(t, filepath.Join(r.dir, "log", "2026-11-18.jsonl"), `{"time":"2026-11-18T10:00:00Z","op":"lock","user":"alice","parcel":"winxp","epoch":1}`+"\n")
	put(t, filepath.Join(r.dir, "log", "2026-11-26.jsonl"), `{"time":"2026-11-26T10:00:00Z","op":"release","user":"alice","parcel":"winxp","epoch":1}`+"\n")
	put(t, filepath.Join(r.dir, "log", "reports", "alice", "2026-11-26.jsonl"), goodReport+"\n")
	t.Cleanup(func() { step = func(string) {} })
	source := r.source(func(string) {})
	for kill := 1; ; kill++ {
		dir := filepath.Join(t.TempDir(), "study")
		var died string
		n := 0
		step = func(name string) {
			if n++; n == kill {
				died = name
				panic("killed")
			}
		}
		run := func() (err error) {
			defer func() {
				if p := recover(); p != nil {
					err = errors.New("killed")
				}
			}()
			d, err := Open(dir)
			if err == nil {
				_, err = d.Harvest(context.Background(), source, nil, noon)
			}
			return err
		}
		first := run()
		if first == nil {
			if kill < 6 {
				t.Errorf("only %d steps", kill)
			}
			return
		}
		// What a kill leaves of the database is the old one, or none.
		if _, err := os.Stat(filepath.Join(dir, Database)); err == nil {
			t.Errorf("killed at %s: a database is there", died)
		}
		if died == "rename" { // a real kill leaves the temp file
			put(t, filepath.Join(dir, atomicfile.TempPrefix+Database), "half")
		}
		if err := run(); err != nil {
			t.Fatalf("after a kill at %s: %v", died, err)
		}
		db, err := OpenDB(filepath.Join(dir, Database))
		if err != nil {
			t.Fatal(err)
		}
		var sessions, reports int
		if err := db.QueryRow(`SELECT (SELECT count(*) FROM sessions WHERE "end" IS NOT NULL), (SELECT count(*) FROM reports)`).Scan(&sessions, &reports); err != nil || sessions != 1 || reports != 1 {
			t.Errorf("after a kill at %s: %d sessions, %d reports, %v", died, sessions, reports, err)
		}
		db.Close()
	}
}

func TestTwoHarvests(t *testing.T) {
	r := oneUser{t.TempDir()}
	d := &Dir{path: filepath.Join(t.TempDir(), "study")}
	if err := os.Mkdir(d.path, 0o700); err != nil {
		t.Fatal(err)
	}
	d.found = true
	unlock, err := d.lock()
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	e := &Dir{path: d.path, found: true}
	if _, err := e.Harvest(context.Background(), r.source(func(string) {}), nil, noon); !errors.Is(err, parcel.ErrBusy) {
		t.Errorf("got %v", err)
	}
}

func TestParseManual(t *testing.T) {
	good := map[string]int{
		"date,user,question,score,text\n": 0,
		"date,user,question,score,text\n2026-01-01,alice,useful,4.5,\"a, b\"\n2026-01-02,,speed,0,\n": 2,
		"\ufeffDate,User,Type,Cause,Minutes,Text\n2026-01-01,alice,slow,network,15,\n":                1,
		"date,user,reason,text\r\n2026-01-01,alice,moved away,\r\n":                                   1,
	}
	for text, want := range good {
		if all, err := parseManual(strings.NewReader(text)); err != nil || len(all) != want {
			t.Errorf("%q: %v, %v", text, all, err)
		}
	}
	for _, text := range []string{"", "\n", "a,b\n", "date,user,question,score,text\n2026-01-01,alice,useful\n",
		"date,user,question,score,text\n01.01.2026,alice,useful,4,\n", "date,user,question,score,text\n2026-01-01,../x,useful,4,\n",
		"date,user,question,score,text\n2026-01-01,alice,useful,NaN,\n", "date,user,question,score,text\n2026-01-01,alice,useful,-1,\n",
		"date,user,question,score,text\n2026-01-01,alice,useful,1e99,\n", "date,user,question,score,text\n2026-01-01,alice,,4,\n",
		"date,user,question,score,text\n2026-01-01,alice,useful,4,\x1b[2J\n", "date,user,reason,text\n2026-01-01,alice," + strings.Repeat("x", 1001) + ",\n"} {
		if all, err := parseManual(strings.NewReader(text)); err == nil {
			t.Errorf("%q: got %v, want an error", text, all)
		}
	}
}

func FuzzParseManual(f *testing.F) {
	for _, h := range headers {
		f.Add([]byte(h + "\n2026-01-01,alice,x,1,2,y\n2026-01-01,alice,x,1,y\n2026-01-01,,x,\"y\"\n"))
	}
	f.Fuzz(func(t *testing.T, p []byte) {
		all, err := parseManual(bytes.NewReader(p))
		if err != nil {
			return
		}
		for _, m := range all {
			if err := m.check(); err != nil || headers[m.Kind] == "" {
				t.Fatalf("%+v: %v", m, err)
			}
		}
	})
}

func TestAddress(t *testing.T) {
	n := &Names{key: make([]byte, 32)}
	for from, want := range map[string]string{"": "", "192.0.2.77": "192.0.2.0/24", "192.0.2.77:50122": "192.0.2.0/24", "::ffff:192.0.2.77": "192.0.2.0/24",
		"2001:db8:1:2:3::4": "2001:db8:1::/48", "[2001:db8:1:2::]:22": "2001:db8:1::/48", "fe80::1%eth0": "fe80::/48", "thinkpad.example.org": "unknown", "UNIX": "unknown"} {
		if got := n.address(from); got != want {
			t.Errorf("%q: got %q, want %q", from, got, want)
		}
		if got := (*Names)(nil).address(from); got != from {
			t.Errorf("%q: became %q", from, got)
		}
	}
	if a, b := n.user("alice"), n.parcel("alice", "alice"); a == b || strings.Contains(a+b, "alice") || a != n.user("alice") {
		t.Errorf("pseudonyms %s and %s", a, b)
	}
}
