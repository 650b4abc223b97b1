package page_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"image"
	_ "image/jpeg"
	_ "image/png"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/chromedp/chromedp"

	"isr/client/remote/sshdtest"
	"isr/locksrv/study"
	"isr/locksrv/study/page"
	"isr/locksrv/study/studytest"
)

const weeks = 6

// made is the page of a realm that was made up, with what people told.
func made(t testing.TB, change func(r *studytest.Realm)) []byte {
	t.Helper()
	r := studytest.Make(t, t.TempDir(), 6, weeks)
	if change != nil {
		change(r)
	}
	dir := filepath.Join(t.TempDir(), "study")
	end := studytest.Start.AddDate(0, 0, 7*weeks)
	for _, d := range []int{20, 33} {
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

// The page as a browser shows it: all of it, nothing from elsewhere, and of what
// somebody has put into a name nothing but the name.
func TestPage(t *testing.T) {
	asked := make(chan string, 100)
	elsewhere := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { asked <- r.URL.String() }))
	defer elsewhere.Close()
	evil := `"><img src=` + elsewhere.URL + `/x onerror="document.title='owned'"><script>document.title='owned'</script>]]><svg onload=alert(1)>`
	p := made(t, func(r *studytest.Realm) {
		for _, name := range r.Names {
			r.Group[name] = append(r.Group[name], evil)
		}
		logs, err := filepath.Glob(filepath.Join(r.Dir, "log", "2026-09-2*.jsonl"))
		if err != nil || len(logs) == 0 {
			t.Fatal(err)
		}
		quoted, _ := json.Marshal(evil)
		for _, f := range logs {
			text, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			text = bytes.ReplaceAll(text, []byte(`"from":"192.0.2.10"`), append([]byte(`"from":`), quoted...))
			if err := os.WriteFile(f, text, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	})
	for _, m := range study.Metrics {
		if !bytes.Contains(p, []byte(`<article id="`+m.ID+`">`)) {
			t.Errorf("%s is not there", m.ID)
		}
	}
	if len(p) > 2<<20 {
		t.Errorf("%d bytes", len(p))
	}
	sshdtest.Require(t, "chromium")
	file := filepath.Join(t.TempDir(), "page.html")
	if err := os.WriteFile(file, p, 0o600); err != nil {
		t.Fatal(err)
	}
	allocator, stop := chromedp.NewExecAllocator(t.Context(), chromedp.Headless, chromedp.NoSandbox, chromedp.DisableGPU,
		chromedp.NoFirstRun, chromedp.UserDataDir(t.TempDir()), chromedp.WindowSize(1280, 1000), chromedp.ExecPath("chromium"),
		chromedp.Flag("disable-quic", true), chromedp.Flag("disable-background-networking", true),
		chromedp.Flag("disable-component-update", true), chromedp.Flag("disable-sync", true))
	defer stop()
	ctx, stop := chromedp.NewContext(allocator)
	defer stop()
	if err := chromedp.Do(ctx, chromedp.Navigate("file://"+file), chromedp.WaitVisible("#K2")); err != nil {
		t.Fatal(err)
	}
	for js, want := range map[string]string{
		"document.title":                                       "Use of the realm campus",
		"String(document.scripts.length)":                      "0",
		"String(document.images.length)":                       "0",
		"String(document.querySelectorAll('article').length)":  fmt.Sprint(len(study.Metrics)),
		"String(document.querySelectorAll('svg').length > 25)": "true",
		"String([...document.querySelectorAll('svg')].every(s => s.clientWidth > 300 && s.clientHeight > 80))": "true",
		"String(document.documentElement.scrollWidth <= innerWidth)":                                           "true",
		"String(document.querySelector('#A4').innerText.includes('img src'))":                                  "true",
		"String(document.querySelectorAll('[onload],[onerror]').length)":                                       "0",
	} {
		if got, err := chromedp.Run(ctx, chromedp.Evaluate[string](js)); err != nil || got != want {
			t.Errorf("%s: got %s, %v; want %s", js, got, err, want)
		}
	}
	select {
	case url := <-asked:
		t.Errorf("the page asks for %s", url)
	default:
	}
	picture, err := chromedp.Run(ctx, chromedp.FullScreenshot(90))
	if err != nil {
		t.Fatal(err)
	}
	size, _, err := image.DecodeConfig(bytes.NewReader(picture))
	if err != nil || size.Width < 1000 || size.Height < 3000 || len(picture) < 100<<10 {
		t.Errorf("a picture of %d by %d in %d bytes, %v", size.Width, size.Height, len(picture), err)
	}
}

// A study of nothing is a page that says so.
func TestEmptyPage(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "study")
	harvest(t, &studytest.Realm{Dir: t.TempDir()}, dir, studytest.Start)
	db, err := study.OpenDB(filepath.Join(dir, study.Database))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	var b bytes.Buffer
	if err := page.Write(context.Background(), &b, db, page.Options{Realm: "<b>", Made: studytest.Start}); err != nil {
		t.Fatal(err)
	}
	if n := bytes.Count(b.Bytes(), []byte("nothing yet")); n < 30 || n == len(study.Metrics) || bytes.Contains(b.Bytes(), []byte("<b>\n")) {
		t.Errorf("%d metrics have nothing", n)
	}
}
