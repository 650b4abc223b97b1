package client

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	goruntime "runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"isr/locksrv/proto"
	"isr/store/atomicfile"
	"isr/store/parcel"
)

// What becomes of a report.
const (
	ReportUnsent   = "unsent"
	ReportSent     = "sent"
	ReportRefused  = "refused"  // by the server, which was then not told again
	ReportDeclined = "declined" // by the user, who was asked
)

// KeptReport is a report and what became of it. They are in ~/.isr/log/reports,
// for the user to see; the newest maxReports of them.
type KeptReport struct {
	Server string        `json:"server"`
	User   string        `json:"user"`
	Parcel string        `json:"parcel"`
	State  string        `json:"state"`
	Why    string        `json:"why,omitempty"` // it was refused
	Report *proto.Report `json:"report"`
	File   string        `json:"-"`
}

const maxReports = 50

// maxReported bounds how many runs one report tells of: the newest, and as
// many as fit.
const maxReported = 60

func (c *Client) reportsDir() string { return filepath.Join(c.Dir, "log", "reports") }

// report is the report of a checkout's use since the last one; nil if it was
// not used.
func (co *Checkout) report(ctx context.Context, from int, done Committed, checkin bool) *proto.Report {
	runs, sealed, text := co.use()
	if len(runs) == 0 && !done.New {
		return nil
	}
	st := &co.State
	runs = runs[max(0, len(runs)-maxReported):]
	// The same use makes the same report, if this is interrupted and run again.
	id := sha256.Sum256(append([]byte(st.UUID+" "+st.Acquisition+" "), text...))
	r := &proto.Report{Format: proto.ReportFormat, ID: hex.EncodeToString(id[:16]), Made: now(), UUID: st.UUID, From: from, Version: done.Version,
		Checkin: checkin, Machine: co.client.thisMachine(), Runs: runs, Sealed: sealed}
	if l, err := co.nonce(); err == nil {
		r.Epoch = l.Epoch
	}
	if done.New {
		r.Sent = proto.ReportSent{Objects: int64(done.Objects), Bytes: done.Bytes, Seconds: done.sending.Seconds()}
	}
	if srv := co.client.servers[remoteKey{st.Server, st.User}]; srv != nil {
		r.Sent.RTT = srv.RTT().Seconds()
	}
	r.Hoard.Quota = co.client.Quota
	if h, err := co.client.hoard(); err == nil {
		if p := pinned(h, st.UUID); p != nil {
			r.Hoard.Pinned, r.Hoard.Memory = true, p.Memory
		}
		h.Close()
	}
	for p, err := json.Marshal(r); err == nil && len(p) > proto.MaxReport && len(r.Runs) > 0; p, err = json.Marshal(r) {
		r.Runs = r.Runs[1:]
	}
	return r
}

// keepReport makes the report of a checkout's use, for the user to see and the
// server to be told, and begins a new journal. Whatever goes wrong with it is
// no error of the command's.
func (co *Checkout) keepReport(ctx context.Context, from int, done Committed, checkin bool) {
	if !co.client.reporting() {
		return
	}
	r := co.report(ctx, from, done, checkin)
	if r == nil {
		return
	}
	k := KeptReport{Server: co.State.Server, User: co.State.User, Parcel: co.State.Parcel, State: ReportUnsent, Report: r,
		File: filepath.Join(co.client.reportsDir(), r.ID+".json")}
	err := r.Check()
	if err == nil {
		err = os.MkdirAll(co.client.reportsDir(), 0o700)
	}
	if err == nil {
		err = k.save()
	}
	if err != nil {
		co.client.UI.Warn("parcel %s: no report of its use: %v", co.State.Parcel, err)
	}
	os.Remove(co.path("use"))
}

func (k *KeptReport) save() error {
	p, err := json.MarshalIndent(k, "", "  ")
	if err != nil {
		return err
	}
	return atomicfile.Write(k.File, append(p, '\n'), 0o600)
}

// Reports is the reports that are kept, oldest first. Those over maxReports
// are removed.
func (c *Client) Reports() ([]KeptReport, error) {
	entries, err := os.ReadDir(c.reportsDir())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var all []KeptReport
	for _, e := range entries {
		file := filepath.Join(c.reportsDir(), e.Name())
		p, err := os.ReadFile(file)
		if filepath.Ext(file) != ".json" || err != nil {
			continue
		}
		k := KeptReport{File: file}
		if json.Unmarshal(p, &k) != nil || k.Report == nil || k.Report.Check() != nil {
			os.Remove(file) // it is ours, and nothing
			continue
		}
		all = append(all, k)
	}
	slices.SortStableFunc(all, func(a, b KeptReport) int { return a.Report.Made.Compare(b.Report.Made) })
	for len(all) > maxReports {
		os.Remove(all[0].File)
		all = all[1:]
	}
	return all, nil
}

// Preview is the report that would be made of a checkout if it were checked in
// now; nil if there is nothing to tell.
func (c *Client) Preview(ctx context.Context, name string) (*proto.Report, error) {
	co, err := c.Find(name)
	if err != nil {
		return nil, err
	}
	return co.report(ctx, co.State.Version, Committed{Version: co.State.Version}, false), nil
}

// reportTime bounds what telling the server may take: a checkin waits for it.
const reportTime = 5 * time.Second

// Connected reports whether this command has spoken to the server of a report.
func (c *Client) Connected(k KeptReport) bool { return c.servers[remoteKey{k.Server, k.User}] != nil }

// SendReport tells the server a report, and keeps what became of it. An error
// of kind Unreachable or Interrupted leaves it to be sent another time.
func (c *Client) SendReport(ctx context.Context, k *KeptReport) error {
	ctx, cancel := context.WithTimeout(ctx, reportTime)
	defer cancel()
	srv, err := c.server(k.Server, k.User)
	if err == nil {
		err = srv.PutReport(ctx, k.Parcel, k.Report)
	}
	switch kind := parcel.KindOf(err); {
	case err == nil:
		k.State, k.Why = ReportSent, ""
	case kind == parcel.Denied || kind == parcel.Usage || kind == parcel.NoParcel:
		k.State, k.Why = ReportRefused, parcel.Clean(err.Error())
	default:
		return err
	}
	if serr := k.save(); err == nil {
		err = serr
	}
	return err
}

// DeclineReport keeps a report here alone.
func (c *Client) DeclineReport(k KeptReport) error {
	k.State = ReportDeclined
	return k.save()
}

// ForgetReport removes a report.
func (c *Client) ForgetReport(k KeptReport) error { return os.Remove(k.File) }

// thisMachine is what a report says of this host.
func (c *Client) thisMachine() proto.ReportMachine {
	m := proto.ReportMachine{ISR: shortText(c.Release), OS: goruntime.GOOS, Arch: goruntime.GOARCH, CPUs: goruntime.NumCPU()}
	var info unix.Sysinfo_t
	if unix.Sysinfo(&info) == nil {
		m.Memory = int64(info.Totalram) * int64(info.Unit)
	}
	if p, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for lines := bufio.NewScanner(bytes.NewReader(p)); lines.Scan(); {
			if key, value, _ := strings.Cut(lines.Text(), ":"); strings.TrimSpace(key) == "model name" {
				m.CPU = shortText(value)
				break
			}
		}
	}
	return m
}

// shortText is text fit for a report.
func shortText(s string) string { return parcel.Clean(s[:min(len(s), 100)]) }
