// Package metrics counts what a lock server does, and shows it to Prometheus.
//
// What changes the realm it counts by the event log, so that it has what
// sshd's sessions and administrators did as well; logins, verbs and bytes are
// those of its own daemon. It promises that no label holds the name of a user,
// a parcel or a host: their number is bounded, and who did what is the event
// log's to tell. It listens nowhere: Handler is for whoever does.
package metrics

import (
	"fmt"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"isr/locksrv/event"
	"isr/locksrv/health"
	"isr/store"
	"isr/store/parcel"
)

// Metrics is a locksrv.Meter.
type Metrics struct {
	registry *prometheus.Registry

	connections, sessions           prometheus.Counter
	connectionsOpen, sessionsOpen   prometheus.Gauge
	refused, failures               *prometheus.CounterVec
	logins, verbs, contents, octets *prometheus.CounterVec
	took                            *prometheus.HistogramVec
}

// lookEvery is how old what is said of the realm may be.
const lookEvery = 10 * time.Second

// New counts from now on. version is the program's.
func New(s *store.Store, log *event.Log, version string) *Metrics {
	m := &Metrics{registry: prometheus.NewRegistry(),
		connections:     prometheus.NewCounter(prometheus.CounterOpts{Name: "isr_connections_total", Help: "Connections that were accepted."}),
		connectionsOpen: prometheus.NewGauge(prometheus.GaugeOpts{Name: "isr_connections_open", Help: "Connections that are open."}),
		sessions:        prometheus.NewCounter(prometheus.CounterOpts{Name: "isr_sessions_total", Help: "Sessions that were let in: a verb, or SFTP."}),
		sessionsOpen:    prometheus.NewGauge(prometheus.GaugeOpts{Name: "isr_sessions_open", Help: "Sessions that are being served."}),
		refused:         counters("isr_refused_total", "Connections and sessions over a limit, and logins of somebody else's name.", "what"),
		failures:        counters("isr_failures_total", "Things beside a verb that did not work: event-log, post-hook, panic.", "what"),
		logins:          counters("isr_logins_total", "Keys and passwords that were offered, by what became of them.", "method", "result"),
		verbs:           counters("isr_verbs_total", "Verbs that ended, by exit status.", "verb", "status"),
		contents:        counters("isr_content_files_total", "Objects and other files that went out or came in.", "way", "direction"),
		octets:          counters("isr_content_bytes_total", "Their bytes.", "way", "direction"),
		took: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "isr_verb_duration_seconds", Help: "How long verbs took.",
			Buckets: []float64{.001, .005, .025, .1, .5, 2, 10, 60, 600}}, []string{"verb"}),
	}
	build := prometheus.NewGauge(prometheus.GaugeOpts{Name: "isr_build_info", Help: "1, with the program's version.",
		ConstLabels: prometheus.Labels{"version": version}})
	build.Set(1)
	m.registry.MustRegister(m.connections, m.connectionsOpen, m.sessions, m.sessionsOpen, m.refused, m.failures,
		m.logins, m.verbs, m.contents, m.octets, m.took, build, newRealm(s, log),
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

func counters(name, help string, labels ...string) *prometheus.CounterVec {
	return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
}

// Connection is of locksrv.Meter, and so are those that follow.
func (m *Metrics) Connection(change int) { count(m.connections, m.connectionsOpen, change) }
func (m *Metrics) Session(change int)    { count(m.sessions, m.sessionsOpen, change) }
func (m *Metrics) Refused(what string)   { m.refused.WithLabelValues(what).Inc() }
func (m *Metrics) Failed(what string)    { m.failures.WithLabelValues(what).Inc() }

func count(all prometheus.Counter, open prometheus.Gauge, change int) {
	if change > 0 {
		all.Add(float64(change))
	}
	open.Add(float64(change))
}

func (m *Metrics) Login(method string, ok bool) {
	switch method {
	case "publickey", "password", "keyboard-interactive":
	default:
		method = "other" // it is the client's word
	}
	result := "refused"
	if ok {
		result = "ok"
	}
	m.logins.WithLabelValues(method, result).Inc()
}

func (m *Metrics) Verb(name string, took time.Duration, err error) {
	if name == "" {
		name = "unknown"
	}
	m.verbs.WithLabelValues(name, exit(err)).Inc()
	m.took.WithLabelValues(name).Observe(took.Seconds())
}

// exit is the exit status that err ends in.
func exit(err error) string {
	if err == nil {
		return "0"
	}
	return strconv.Itoa(int(parcel.KindOf(err)))
}

func (m *Metrics) Content(way string, out bool, bytes int64) {
	direction := "in"
	if out {
		direction = "out"
	}
	m.contents.WithLabelValues(way, direction).Inc()
	m.octets.WithLabelValues(way, direction).Add(float64(bytes))
}

// Handler shows /metrics, and /healthz: 200 while healthy has no error.
func (m *Metrics) Handler(log *slog.Logger, healthy func() error) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{
		ErrorLog: errorLog{log}, ErrorHandling: promhttp.ContinueOnError, MaxRequestsInFlight: 4}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, r *http.Request) {
		if err := healthy(); err != nil {
			http.Error(w, parcel.Clean(err.Error()), http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	return mux
}

type errorLog struct{ log *slog.Logger }

func (e errorLog) Println(v ...any) {
	e.log.Error("metrics", "error", strings.TrimSpace(fmt.Sprintln(v...)))
}

// realm collects what the tree and the event log say, when it is asked.
type realm struct {
	store *store.Store

	mu       sync.Mutex
	tail     *event.Tail
	looked   time.Time
	seen     health.Status
	seenErr  error
	events   *prometheus.CounterVec
	forced   prometheus.Counter
	commits  prometheus.Counter
	objects  prometheus.Counter
	octets   prometheus.Counter
	badLines prometheus.Counter
}

// What is known of the realm at one moment.
var (
	usersDesc     = desc("isr_users", "Users of the realm.")
	lockedDesc    = desc("isr_users_locked", "Those that are locked out.")
	parcelsDesc   = desc("isr_parcels", "Parcels in the realm.")
	heldDesc      = desc("isr_locks_held", "Parcels that somebody holds.")
	contactDesc   = desc("isr_lock_oldest_contact_seconds", "Time since the holder of a parcel was heard of, of the one that is silent longest; 0: none is held.")
	damagedDesc   = desc("isr_unreadable", "Records of users and locks that could not be read.")
	sizeDesc      = desc("isr_filesystem_size_bytes", "Size of the realm's file system.")
	freeDesc      = desc("isr_filesystem_avail_bytes", "What of it the server may still use.")
	filesDesc     = desc("isr_filesystem_files", "Its inodes.")
	filesFreeDesc = desc("isr_filesystem_files_free", "Those that are free.")
)

func desc(name, help string) *prometheus.Desc { return prometheus.NewDesc(name, help, nil, nil) }

func newRealm(s *store.Store, log *event.Log) *realm {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
	}
	return &realm{store: s, tail: log.Tail(false),
		events:   counters("isr_events_total", "Changes of the realm by anybody, by exit status: lines of the event log.", "op", "status"),
		forced:   counter("isr_locks_forced_total", "Locks that were broken."),
		commits:  counter("isr_versions_total", "Versions that were made."),
		objects:  counter("isr_version_objects_total", "New objects of them."),
		octets:   counter("isr_version_bytes_total", "Bytes of those."),
		badLines: counter("isr_event_log_bad_lines_total", "Lines of the event log that could not be read."),
	}
}

func (r *realm) counters() []prometheus.Collector {
	return []prometheus.Collector{r.events, r.forced, r.commits, r.objects, r.octets, r.badLines}
}

// Describe is of prometheus.Collector, and so is Collect.
func (r *realm) Describe(ch chan<- *prometheus.Desc) {
	for _, c := range r.counters() {
		c.Describe(ch)
	}
	for _, d := range []*prometheus.Desc{usersDesc, lockedDesc, parcelsDesc, heldDesc, contactDesc, damagedDesc, sizeDesc, freeDesc, filesDesc, filesFreeDesc} {
		ch <- d
	}
}

func (r *realm) Collect(ch chan<- prometheus.Metric) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.read()
	for _, c := range r.counters() {
		c.Collect(ch)
	}
	now := time.Now()
	if now.Sub(r.looked) > lookEvery {
		r.seen, r.seenErr = health.Look(r.store)
		r.looked = now
	}
	if r.seenErr != nil {
		ch <- prometheus.NewInvalidMetric(usersDesc, r.seenErr)
		return
	}
	silent := 0.0
	if h, ok := r.seen.Silent(); ok {
		silent = max(0, now.Sub(h.Contact).Seconds())
	}
	for _, g := range []struct {
		desc  *prometheus.Desc
		value float64
	}{{usersDesc, float64(r.seen.Users)}, {lockedDesc, float64(len(r.seen.LockedOut))}, {parcelsDesc, float64(r.seen.Parcels)}, {heldDesc, float64(len(r.seen.Held))},
		{contactDesc, silent}, {damagedDesc, float64(len(r.seen.Damaged))},
		{sizeDesc, float64(r.seen.Disk.Size)}, {freeDesc, float64(r.seen.Disk.Free)},
		{filesDesc, float64(r.seen.Disk.Files)}, {filesFreeDesc, float64(r.seen.Disk.FilesFree)}} {
		ch <- prometheus.MustNewConstMetric(g.desc, prometheus.GaugeValue, g.value)
	}
}

// read counts what came into the event log.
func (r *realm) read() {
	for e, err := range r.tail.Read() {
		if err != nil {
			r.badLines.Inc()
			continue
		}
		r.events.WithLabelValues(opLabel(e.Op), strconv.Itoa(e.Kind)).Inc()
		if e.Error != "" {
			continue
		}
		if e.Forced && e.Op == event.Release {
			r.forced.Inc()
		}
		if e.Op == event.Commit || e.Op == event.Rollback {
			r.commits.Inc()
			r.objects.Add(float64(max(0, e.Objects)))
			r.octets.Add(float64(max(0, e.Bytes)))
		}
	}
}

// opLabel keeps what an op cannot be from becoming a label.
func opLabel(op string) string {
	if op == "" || len(op) > 32 || strings.Trim(op, "abcdefghijklmnopqrstuvwxyz-") != "" {
		return "unknown"
	}
	return op
}
