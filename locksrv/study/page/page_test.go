package page_test

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"isr/locksrv/study"
	"isr/locksrv/study/page"
	"isr/locksrv/study/studytest"
)

const weeks = 12

// made is the page of a realm that was made up, with what people told.
func made(t testing.TB, change func(r *studytest.Realm)) []byte {
	t.Helper()
	r := studytest.Make(t, t.TempDir(), 6, weeks)
	if change != nil {
		change(r)
	}
	dir := filepath.Join(t.TempDir(), "study")
	end := studytest.Start.AddDate(0, 0, 7*weeks)
	for _, d := range []int{28, 30, 33, 44} {
		harvest(t, r, dir, studytest.Start.AddDate(0, 0, d))
	}
	d, err := study.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{
		"date,user,question,score,text\n2026-09-30,user01,useful,4,yes\n2026-10-30,user01,useful,5,\n2026-09-30,user01,function,4,\n2026-10-30,user01,function,3,\n2026-09-30,user01,speed,2,\n2026-10-30,user01,speed,4,\n2026-10-30,user02,host,1,\n2026-10-30,user02,expected,4,\n",
		"date,user,type,cause,minutes,text\n2026-09-12,user01,cannot resume,network,20,\n2026-09-13,,slow,graphics,5,\n2026-09-14,,slow,network,15,\n",
		"date,user,reason,text\n2026-10-12,user03,has a new laptop,\n",
	} {
		if _, err := d.Import(bytes.NewReader([]byte(text)), "x.csv", r, nil); err != nil {
			t.Fatal(err)
		}
	}
	harvest(t, r, dir, end)
	db, err := study.OpenDB(filepath.Join(dir, study.Database))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	var b bytes.Buffer
	if err := page.Write(context.Background(), &b, db, page.Options{Realm: "campus", Made: end}); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func harvest(t testing.TB, r *studytest.Realm, dir string, now time.Time) {
	t.Helper()
	d, err := study.Open(dir)
	if err == nil {
		_, err = d.Harvest(context.Background(), r.Source(t), nil, now)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func TestPage(t *testing.T) {
	p := made(t, nil)
	if f := os.Getenv("PAGE_OUT"); f != "" {
		os.WriteFile(f, p, 0o600)
	}
	for _, m := range study.Metrics {
		if !bytes.Contains(p, []byte(`<article id="`+m.ID+`">`)) {
			t.Errorf("%s is not there", m.ID)
		}
	}
	if len(p) > 2<<20 {
		t.Errorf("%d bytes", len(p))
	}
}
