package metrics_test

import (
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	"golang.org/x/crypto/ssh"

	"isr/locksrv"
	"isr/locksrv/event"
	"isr/locksrv/locksrvtest"
	"isr/locksrv/metrics"
	"isr/store/parcel"
)

var _ locksrv.Meter = (*metrics.Metrics)(nil)

// scrape is what Prometheus would be told, checked as its own tool does.
func scrape(t *testing.T, h http.Handler) (text string, families map[string]*dto.MetricFamily) {
	t.Helper()
	server := httptest.NewServer(h)
	defer server.Close()
	answer, err := http.Get(server.URL + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil || answer.StatusCode != 200 {
		t.Fatalf("scrape: %s, %v\n%s", answer.Status, err, body)
	}
	problems, err := promlint.New(strings.NewReader(string(body))).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
	parser := expfmt.NewTextParser(model.LegacyValidation)
	families, err = parser.TextToMetricFamilies(strings.NewReader(string(body)))
	if err != nil {
		t.Fatal(err)
	}
	return string(body), families
}

// value is the sum of the samples of a name whose labels have those words.
func value(t *testing.T, families map[string]*dto.MetricFamily, name string, words ...string) (sum float64) {
	t.Helper()
	f := families[name]
	if f == nil {
		t.Fatalf("%s: not shown", name)
	}
	for _, m := range f.Metric {
		has := 0
		for _, l := range m.Label {
			for _, w := range words {
				if l.GetValue() == w {
					has++
				}
			}
		}
		if has != len(words) {
			continue
		}
		switch {
		case m.Counter != nil:
			sum += m.Counter.GetValue()
		case m.Gauge != nil:
			sum += m.Gauge.GetValue()
		case m.Histogram != nil:
			sum += float64(m.Histogram.GetSampleCount())
		}
	}
	return sum
}

// A day in the life of a server, as Prometheus sees it.
func TestMetrics(t *testing.T) {
	r := locksrvtest.NewRealm(t)
	r.AddParcel(t, "alice", "winxp")
	m := metrics.New(r.Store, r.Service.Events, "1.2.3")
	r.Service.Meter = m
	d := r.Start(t, nil)
	h := m.Handler(slog.New(slog.DiscardHandler), func() error { return nil })
	_, before := scrape(t, h)
	if n := value(t, before, "isr_connections_total"); n != 0 {
		t.Errorf("%v connections before the first", n)
	}

	if _, err := ssh.Dial("tcp", d.Addr, &ssh.ClientConfig{User: "alice", HostKeyCallback: ssh.InsecureIgnoreHostKey(),
		Auth: []ssh.AuthMethod{ssh.PublicKeys(r.NewKey(t, "stranger"))}}); err == nil {
		t.Fatal("a stranger is in")
	}
	conn, err := r.Dial(d.Addr, "alice", "alice")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	c := &locksrvtest.Client{Peer: locksrvtest.Conn{Client: conn}, Parcel: "winxp"}
	lock, err := c.Acquire("thinkpad", parcel.NewID())
	if err != nil {
		t.Fatal(err)
	}
	draft, err := c.Draft(1)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Put(draft.Objects); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Commit(draft, lock.Nonce, parcel.NewID()); err != nil {
		t.Fatal(err)
	}
	var tags strings.Builder
	size := 0
	for tag, object := range draft.Objects {
		tags.WriteString(tag.String() + "\n")
		size += len(object)
	}
	if _, errs, status := locksrvtest.Exec(conn, "isr_get winxp", []byte(tags.String()+strings.Repeat("00", 32)+"\n")); status != 0 {
		t.Fatalf("get: %d, %s", status, errs)
	}
	locksrvtest.Exec(conn, "isr_acquire_lock winxp elsewhere", nil)
	locksrvtest.Exec(conn, "rm -rf /", nil)
	// By another process: an administrator, who breaks the lock.
	if err := r.Service.Events.Append(event.Event{Time: lock.Since, Op: event.Release, User: "alice", Parcel: "winxp", By: "root", Forced: true}); err != nil {
		t.Fatal(err)
	}
	if err := r.Service.Events.Append(event.Event{Time: lock.Since, Op: "Ünknown\"} 1\nisr_x 7", Kind: 16, Error: "x"}); err != nil {
		t.Fatal(err)
	}

	text, after := scrape(t, h)
	objects := float64(len(draft.Objects))
	for _, want := range []struct {
		name  string
		words []string
		n     float64
	}{
		{"isr_connections_total", nil, 2},
		{"isr_connections_open", nil, 1},
		{"isr_logins_total", []string{"publickey", "ok"}, 1},
		{"isr_logins_total", []string{"publickey", "refused"}, 1},
		{"isr_verbs_total", []string{"isr_acquire_lock", "0"}, 1},
		{"isr_verbs_total", []string{"isr_acquire_lock", "11"}, 1},
		{"isr_verbs_total", []string{"unknown", "16"}, 1},
		{"isr_verb_duration_seconds", []string{"isr_commit"}, 1},
		{"isr_content_files_total", []string{"isr_get", "out"}, objects},
		{"isr_content_bytes_total", []string{"isr_get", "out"}, float64(size)},
		{"isr_content_files_total", []string{"sftp", "in"}, objects},
		{"isr_content_bytes_total", []string{"sftp", "in"}, float64(size)},
		{"isr_events_total", []string{"lock", "0"}, 1},
		{"isr_events_total", []string{"lock", "11"}, 1},
		{"isr_events_total", []string{"unknown", "16"}, 1},
		{"isr_locks_forced_total", nil, 1},
		{"isr_versions_total", nil, 1},
		{"isr_version_objects_total", nil, objects},
		{"isr_users", nil, 2},
		{"isr_parcels", nil, 1},
		{"isr_build_info", []string{"1.2.3"}, 1},
		{"isr_failures_total", nil, 0},
	} {
		if want.n == 0 && after[want.name] == nil {
			continue
		}
		if got := value(t, after, want.name, want.words...); got != want.n {
			t.Errorf("%s%v: %v, want %v", want.name, want.words, got, want.n)
		}
	}
	for _, name := range []string{"isr_filesystem_size_bytes", "isr_filesystem_avail_bytes", "process_cpu_seconds_total", "process_start_time_seconds", "go_goroutines"} {
		if value(t, after, name) <= 0 {
			t.Errorf("%s: not above 0", name)
		}
	}
	// Who it was is not for everybody on the host.
	for _, name := range []string{"alice", "winxp", "thinkpad", "isr_x"} {
		if strings.Contains(text, name) {
			t.Errorf("it shows %s", name)
		}
	}
}

// What cannot be read of the realm hides nothing else.
func TestMetricsOfDamagedRealm(t *testing.T) {
	r := locksrvtest.NewRealm(t)
	p := r.AddParcel(t, "alice", "winxp")
	if err := os.WriteFile(filepath.Join(p.LockDir(), "nonce"), []byte("\xff\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	m := metrics.New(r.Store, r.Service.Events, "1")
	h := m.Handler(slog.New(slog.DiscardHandler), func() error { return errors.New("disk\x1b[2J is gone") })
	if _, f := scrape(t, h); value(t, f, "isr_unreadable") != 1 || value(t, f, "isr_parcels") != 1 {
		t.Errorf("a lock that cannot be read: want it counted, and the parcel too")
	}
	get := func(path string) *httptest.ResponseRecorder {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest("GET", path, nil))
		return w
	}
	if w := get("/healthz"); w.Code != 503 || strings.Contains(w.Body.String(), "\x1b") {
		t.Errorf("healthz: %d %q", w.Code, w.Body)
	}
	for _, path := range []string{"/", "/metrics/x", "/debug/pprof/"} {
		if w := get(path); w.Code != 404 {
			t.Errorf("%s: %d, want 404", path, w.Code)
		}
	}
	if err := os.RemoveAll(filepath.Join(r.Root, "users")); err != nil {
		t.Fatal(err)
	}
	healthy := metrics.New(r.Store, r.Service.Events, "1").Handler(slog.New(slog.DiscardHandler), func() error { return nil })
	if _, f := scrape(t, healthy); value(t, f, "isr_build_info", "1") != 1 {
		t.Errorf("without users: the rest is not shown")
	}
}
