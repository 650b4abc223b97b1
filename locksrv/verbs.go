package locksrv

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"isr/locksrv/event"
	"isr/locksrv/proto"
	"isr/store"
	"isr/store/check"
	"isr/store/parcel"
	"isr/store/seal"
)

// call is one run of a verb.
type call struct {
	*Service
	Session
	errors io.Writer // for notices; the error itself is returned
}

// A runner is a verb with its arguments.
type runner func(ctx context.Context, c *call, stdin io.Reader, stdout io.Writer) error

// verb is a row of the table.
type verb struct {
	name, synopsis string
	parse          func(*words) runner
}

// table is every verb there is.
var table = []verb{
	{proto.ListParcels, "", func(w *words) runner { return listParcels }},
	{proto.Ls, "[PARCEL] [-L N]", func(w *words) runner {
		versions := w.count("-L", 0)
		var name string
		if len(w.rest) > 0 {
			name = w.name("parcel")
		}
		return list(name, versions)
	}},
	{proto.CatConfig, "PARCEL", func(w *words) runner { return catConfig(w.name("parcel")) }},
	{proto.CatKeyroot, "PARCEL [VERSION]", func(w *words) runner {
		return catKeyroot(w.name("parcel"), w.version(false))
	}},
	{proto.Acquire, "PARCEL [HOST [ACQUISITION]]", func(w *words) runner {
		return acquire(w.name("parcel"), w.text("host", 255), w.text("acquisition", 64))
	}},
	{proto.Release, "PARCEL [--force]", func(w *words) runner {
		force := w.flag("--force")
		return release(w.name("parcel"), force)
	}},
	{proto.CheckLock, "PARCEL", func(w *words) runner { return checkLock(w.name("parcel")) }},
	{proto.Missing, "PARCEL", func(w *words) runner { return missing(w.name("parcel")) }},
	{proto.Get, "PARCEL", func(w *words) runner { return get(w.name("parcel")) }},
	{proto.Commit, "PARCEL", func(w *words) runner { return commit(w.name("parcel")) }},
	{proto.Rollback, "PARCEL VERSION", func(w *words) runner {
		return rollback(w.name("parcel"), w.version(true))
	}},
	{proto.Fork, "PARCEL VERSION NAME HOST ACQUISITION", func(w *words) runner {
		return fork(w.name("parcel"), w.version(true), w.name("new parcel"), w.text("host", 255), w.text("acquisition", 64))
	}},
	{proto.CheckParcel, "PARCEL [VERSION] [-c] [--json]", func(w *words) runner {
		content, asJSON := w.flag("-c"), w.flag("--json")
		return checkParcel(w.name("parcel"), w.version(false), content, asJSON)
	}},
	{proto.PutReport, "PARCEL", func(w *words) runner { return report(w.name("parcel")) }},
	{proto.Motd, "", func(w *words) runner { return motd }},
	{proto.Quota, "", func(w *words) runner { return quota }},
	{proto.Passwd, "[--check]", func(w *words) runner {
		if w.flag("--check") {
			return hasPassword
		}
		return passwd
	}},
}

// Verbs is the names of all verbs.
func Verbs() []string {
	var names []string
	for _, v := range table {
		names = append(names, v.name)
	}
	return names
}

// parseVerb finds the verb that the words name, and reads its arguments: name
// is the parcel among them, if there is one.
func parseVerb(command []string) (verb, name string, run runner, err error) {
	for _, v := range table {
		if v.name != command[0] {
			continue
		}
		w := &words{verb: v.name, rest: command[1:]}
		run := v.parse(w)
		if err := w.end(); err != nil {
			return v.name, "", nil, parcel.NewError(parcel.Usage, "%v", err).
				WithHint("%s", strings.TrimSpace("usage: "+v.name+" "+v.synopsis))
		}
		name := ""
		if len(w.parcels) > 0 {
			name = w.parcels[0]
		}
		return v.name, name, func(ctx context.Context, c *call, stdin io.Reader, stdout io.Writer) error {
			if err := c.may(v.name, w.parcels); err != nil {
				return err
			}
			return run(ctx, c, stdin, stdout)
		}, nil
	}
	return "", "", nil, parcel.NewError(parcel.Denied, "command %s: not one that this server answers", parcel.Clean(command[0])).
		WithHint("it answers: %s", strings.Join(Verbs(), " "))
}

// maxRequest bounds what a verb reads whole from its input, bytes.
const maxRequest = 64 << 10

// readAll reads a verb's whole input.
func readAll(stdin io.Reader) ([]byte, error) {
	p, err := io.ReadAll(io.LimitReader(stdin, maxRequest+1))
	if err != nil {
		return nil, fmt.Errorf("standard input: %w", err)
	}
	if len(p) > maxRequest {
		return nil, parcel.NewError(parcel.Usage, "standard input: over %d bytes", maxRequest)
	}
	return p, nil
}

// readNonce reads the line that proves holding a lock.
func readNonce(stdin io.Reader) (string, error) {
	line, err := bufio.NewReader(io.LimitReader(stdin, 1024)).ReadString('\n')
	if err != nil && err != io.EOF {
		return "", fmt.Errorf("standard input: %w", err)
	}
	return strings.TrimSpace(line), nil
}

func listParcels(ctx context.Context, c *call, _ io.Reader, stdout io.Writer) error {
	names, err := c.parcels()
	if err != nil {
		return err
	}
	for _, name := range names {
		if _, err := fmt.Fprintln(stdout, name); err != nil {
			return err
		}
	}
	return nil
}

func list(name string, versions int) runner {
	return func(ctx context.Context, c *call, _ io.Reader, stdout io.Writer) error {
		names := []string{name}
		if name == "" {
			var err error
			if names, err = c.parcels(); err != nil {
				return err
			}
		}
		out := json.NewEncoder(stdout)
		for _, n := range names {
			if name != "" {
				if _, err := c.Store.Parcel(c.User, name); err != nil {
					return err
				}
			}
			l := Describe(c.Store, c.User, n, versions)
			if err := out.Encode(l); err != nil {
				return err
			}
		}
		return nil
	}
}

// Listing is what is known of one parcel.
type Listing = proto.Listing

// Describe is a user's parcel in a few words, with its newest versions. What
// cannot be known of it, Error tells.
func Describe(s *store.Store, user, name string, versions int) Listing {
	l := Listing{Parcel: name}
	p, err := s.Parcel(user, name)
	if err == nil {
		err = describe(p, versions, &l)
	}
	if err != nil {
		l.Error = parcel.Clean(err.Error())
	}
	return l
}

func describe(p *store.Parcel, versions int, l *Listing) error {
	cfg, err := p.Config()
	if err != nil {
		return err
	}
	l.UUID, l.VMM, l.DiskSize, l.MemSize = cfg.UUID, cfg.VMM, cfg.DiskSize, cfg.MemSize
	l.Version, l.Comment = cfg.Version, cfg.Comment
	held, err := p.Holder()
	if err != nil {
		return err
	}
	l.Held = holder(held)
	released, err := p.LastReleased()
	if err != nil {
		return err
	}
	l.Released = holder(released)
	if versions == 0 {
		return nil
	}
	infos, err := p.Versions(versions)
	if err != nil {
		return err
	}
	for _, v := range infos {
		l.Versions = append(l.Versions, DescribeVersion(v))
	}
	return nil
}

// DescribeVersion is a version as a listing has it.
func DescribeVersion(v store.VersionInfo) proto.Version {
	return proto.Version{Version: v.Version, Time: v.Time, Host: v.Host, Comment: v.Comment, Parent: v.Parent, Rollback: v.Rollback,
		Bytes: v.Bytes, Objects: v.Objects, Suspended: v.Suspended, Tags: v.Tags, Pin: v.Pin}
}

func holder(l *parcel.Lock) *proto.Holder {
	if l == nil {
		return nil
	}
	return &proto.Holder{User: l.User, Host: l.Host, Since: l.Since, Contact: l.Contact, Epoch: l.Epoch,
		BrokenBy: l.BrokenBy, Why: l.Why}
}

func catConfig(name string) runner {
	return func(ctx context.Context, c *call, _ io.Reader, stdout io.Writer) error {
		p, err := c.Store.Parcel(c.User, name)
		if err != nil {
			return err
		}
		text, err := p.ConfigFile()
		if err != nil {
			return err
		}
		_, err = stdout.Write(text)
		return err
	}
}

func catKeyroot(name string, version int) runner {
	return func(ctx context.Context, c *call, _ io.Reader, stdout io.Writer) error {
		p, err := c.Store.Parcel(c.User, name)
		if err != nil {
			return err
		}
		if version == 0 {
			cfg, err := p.Config()
			if err != nil {
				return err
			}
			version = cfg.Version
		}
		keyroot, err := p.Keyroot(version)
		if err != nil {
			return err
		}
		_, err = fmt.Fprintln(stdout, keyroot.String())
		return err
	}
}

func acquire(name, host, acquisition string) runner {
	return func(ctx context.Context, c *call, _ io.Reader, stdout io.Writer) error {
		p, err := c.Store.Parcel(c.User, name)
		if err != nil {
			return err
		}
		if host == "" {
			host = c.Host
		}
		if host == "" {
			host = "unknown"
		}
		if acquisition == "" {
			acquisition = parcel.NewID()
		}
		e := &event.Event{Op: event.Lock, Parcel: name, Host: host}
		var l *parcel.Lock
		err = c.act(ctx, e, func(context.Context) error {
			if l, err = p.Acquire(c.User, host, acquisition); err != nil {
				if held, herr := p.Holder(); herr == nil && held != nil {
					e.Holder = held.String()
				}
				return err
			}
			e.Host, e.Epoch, e.Version = l.Host, l.Epoch, l.Version
			return nil
		})
		if err != nil {
			return err
		}
		c.Log.Info("acquired", "parcel", name, "host", l.Host, "epoch", l.Epoch)
		return writeLock(stdout, *l)
	}
}

func writeLock(w io.Writer, l parcel.Lock) error {
	text, err := l.Encode()
	if err != nil {
		return err
	}
	_, err = w.Write(text)
	return err
}

func release(name string, force bool) runner {
	return func(ctx context.Context, c *call, stdin io.Reader, stdout io.Writer) error {
		p, err := c.Store.Parcel(c.User, name)
		if err != nil {
			return err
		}
		// For people to read only: by the time it is broken it may be another.
		held, herr := p.Holder()
		free := held == nil && herr == nil
		nonce := ""
		if !force && !c.Admin {
			if nonce, err = readNonce(stdin); err != nil {
				return err
			}
			if nonce == "" {
				return parcel.NewError(parcel.Usage, "%s: no nonce on standard input", proto.Release).
					WithHint("--force breaks a lock without it")
			}
		}
		e := &event.Event{Op: event.Release, Parcel: name, Forced: nonce == "" && !free}
		var l *parcel.Lock
		err = c.act(ctx, e, func(context.Context) error {
			if force || c.Admin {
				l, err = p.Break(store.AnyEpoch, cmp.Or(c.By, c.User), "")
			} else {
				l, err = p.Release(nonce, false)
			}
			if err != nil {
				return err
			}
			e.Host, e.Epoch, e.Version = l.Host, l.Epoch, l.Version
			if e.Forced {
				e.Holder = l.String()
			}
			return nil
		})
		if err != nil {
			return err
		}
		switch {
		case nonce == "" && free:
			if c.Admin {
				fmt.Fprintf(c.errors, "%s/%s: there was no semaphore\n", c.User, name)
			}
		case nonce == "":
			c.Log.Warn("lock broken", "parcel", name, "holder", l.String(), "epoch", l.Epoch)
			if c.Admin {
				fmt.Fprintf(c.errors, "%s/%s: semaphore removed; it was held by %s\n", c.User, name, l)
			}
		default:
			c.Log.Info("released", "parcel", name, "host", l.Host, "epoch", l.Epoch)
		}
		return writeLock(stdout, l.Public())
	}
}

func checkLock(name string) runner {
	return func(ctx context.Context, c *call, stdin io.Reader, stdout io.Writer) error {
		p, err := c.Store.Parcel(c.User, name)
		if err != nil {
			return err
		}
		nonce, err := readNonce(stdin)
		if err != nil {
			return err
		}
		l, err := p.CheckLock(nonce)
		if err != nil {
			return err
		}
		return writeLock(stdout, l.Public())
	}
}

// flushedReader flushes a writer before each read, so that whoever waits for
// answers before it asks for more has them.
type flushedReader struct {
	r io.Reader
	w *bufio.Writer
}

func (f flushedReader) Read(p []byte) (int, error) {
	if err := f.w.Flush(); err != nil {
		return 0, err
	}
	return f.r.Read(p)
}

func newAnswers(w io.Writer) *bufio.Writer { return bufio.NewWriterSize(w, 32<<10) }

func missing(name string) runner {
	return func(ctx context.Context, c *call, stdin io.Reader, stdout io.Writer) error {
		p, err := c.Store.Parcel(c.User, name)
		if err != nil {
			return err
		}
		out, still := newAnswers(stdout), c.standing(c.Session)
		err = proto.ReadTags(flushedReader{stdin, out}, func(tag seal.Tag) error {
			if err := cmp.Or(ctx.Err(), still.check()); err != nil {
				return err
			}
			has, err := p.Has(tag)
			if err != nil || has {
				return err
			}
			_, err = fmt.Fprintln(out, tag)
			return err
		})
		if ferr := out.Flush(); err == nil {
			err = ferr
		}
		return err
	}
}

func commit(name string) runner {
	return func(ctx context.Context, c *call, stdin io.Reader, stdout io.Writer) error {
		p, err := c.Store.Parcel(c.User, name)
		if err != nil {
			return err
		}
		text, err := readAll(stdin)
		if err != nil {
			return err
		}
		r, err := proto.ParseCommitRequest(text)
		if err != nil {
			return err
		}
		e := &event.Event{Op: event.Commit, Parcel: name, Parent: r.Parent}
		// For hooks that go by size: what waits is what the version adds, at most.
		if e.Objects, e.Bytes, err = p.Staged(); err != nil {
			return err
		}
		if held, err := p.Holder(); err == nil && held != nil {
			e.Host, e.Epoch = held.Host, held.Epoch
		}
		var version int
		err = c.act(ctx, e, func(ctx context.Context) error {
			if version, err = p.Commit(ctx, store.CommitRequest(r)); err == nil {
				fillVersion(e, p, version)
			}
			return err
		})
		if err != nil {
			return err
		}
		c.Log.Info("committed", "parcel", name, "version", version, "parent", r.Parent)
		c.warnNear()
		_, err = fmt.Fprintln(stdout, version)
		return err
	}
}

// fillVersion says in e what version v of p is like.
func fillVersion(e *event.Event, p *store.Parcel, v int) {
	e.Version = v
	info, err := p.Version(v)
	if err != nil {
		return // it was made all the same
	}
	e.Parent, e.Host, e.Epoch, e.Objects, e.Bytes = info.Parent, info.Host, info.Epoch, info.Objects, info.Bytes
	e.State = "off"
	if info.Suspended != "" {
		e.State = "suspended"
	}
	if cfg, err := p.Config(); err == nil {
		e.Memory = cfg.MemSize
	}
}

func rollback(name string, version int) runner {
	return func(ctx context.Context, c *call, stdin io.Reader, stdout io.Writer) error {
		p, err := c.Store.Parcel(c.User, name)
		if err != nil {
			return err
		}
		nonce, err := readNonce(stdin)
		if err != nil {
			return err
		}
		e := &event.Event{Op: event.Rollback, Parcel: name, Parent: version}
		var made int
		err = c.act(ctx, e, func(ctx context.Context) error {
			if made, err = p.Rollback(ctx, nonce, version); err == nil {
				fillVersion(e, p, made)
			}
			return err
		})
		if err != nil {
			return err
		}
		c.Log.Info("rolled back", "parcel", name, "to", version, "version", made)
		_, err = fmt.Fprintln(stdout, made)
		return err
	}
}

func fork(name string, version int, to, host, acquisition string) runner {
	return func(ctx context.Context, c *call, stdin io.Reader, stdout io.Writer) error {
		if _, err := c.Store.Parcel(c.User, name); err != nil {
			return err
		}
		comment, err := readAll(stdin)
		if err != nil {
			return err
		}
		e := &event.Event{Op: event.Fork, Parcel: name, Version: version, To: c.User + "/" + to, Host: host}
		var l *parcel.Lock
		err = c.act(ctx, e, func(ctx context.Context) error {
			if l, err = c.Store.Fork(ctx, c.User, name, version, to, string(comment), host, acquisition); err == nil {
				e.Epoch = l.Epoch
			}
			return err
		})
		if err != nil {
			return err
		}
		c.Log.Info("forked", "parcel", name, "version", version, "to", to, "host", l.Host)
		c.warnNear()
		return writeLock(stdout, *l)
	}
}

func checkParcel(name string, version int, content, asJSON bool) runner {
	return func(ctx context.Context, c *call, _ io.Reader, stdout io.Writer) error {
		if _, err := c.Store.Parcel(c.User, name); err != nil {
			return err
		}
		o := check.Options{User: c.User, Parcel: name, Version: version, Content: content}
		var werr error
		unseen := 0
		sum, err := check.Run(ctx, c.Store, o, func(p check.Problem) {
			p = inside(c.Store, p)
			switch {
			case p.Parcel != name && c.Rights.Parcels != nil:
				if p.Severity == check.Bad { // the user's, or another parcel's
					unseen++
				}
			case werr != nil:
			case asJSON:
				werr = json.NewEncoder(stdout).Encode(FindingOf(p))
			default:
				_, werr = fmt.Fprintln(stdout, ProblemLine(p))
			}
		})
		switch {
		case err != nil:
			return err
		case werr != nil:
			return werr
		case sum.Errors > unseen:
			return parcel.NewError(parcel.Damaged, "parcel %s: %s", name, errorCount(sum.Errors-unseen))
		}
		return nil
	}
}

func errorCount(n int) string {
	if n == 1 {
		return "1 error"
	}
	return fmt.Sprintf("%d errors", n)
}

// inside is a problem as it is said to a user: where the realm is on the server
// is not hers to know, so paths are those in her directory.
func inside(s *store.Store, p check.Problem) check.Problem {
	own, _, err := s.UserDirs(p.User)
	if err != nil {
		return p
	}
	for _, text := range []*string{&p.Msg, &p.Hint} {
		home := filepath.Dir(own)
		*text = strings.ReplaceAll(*text, home+"/", "")
		*text = strings.ReplaceAll(*text, filepath.Dir(home)+"/", "") // a parcel may be on its way from another user
	}
	return p
}

// FindingOf is a problem as it is said to a client: what is wrong with an
// object of an image, without the words for the place.
func FindingOf(p check.Problem) proto.Finding {
	f := proto.Finding{Severity: string(p.Severity), Version: p.Version, Image: p.Image, Chunks: p.Chunks,
		What: p.Msg, Do: p.Hint}
	if p.Tag != "" {
		f.Tag = p.Tag.String()
	}
	if p.Image != "" {
		f.What = strings.TrimPrefix(strings.TrimPrefix(p.Msg, p.Image+": "), p.Chunks.String()+": ")
	}
	return f
}

// ProblemLine prints a finding on one line.
func ProblemLine(p check.Problem) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: ", p.Severity)
	switch {
	case p.Parcel != "":
		fmt.Fprintf(&b, "%s/%s: ", p.User, p.Parcel)
	case p.User != "":
		fmt.Fprintf(&b, "%s: ", p.User)
	}
	if p.Version > 0 {
		fmt.Fprintf(&b, "version %d: ", p.Version)
	}
	b.WriteString(p.Msg)
	if p.Hint != "" {
		fmt.Fprintf(&b, " (%s)", p.Hint)
	}
	return parcel.Clean(b.String())
}

func motd(ctx context.Context, c *call, _ io.Reader, stdout io.Writer) error {
	if c.Motd == "" {
		return nil
	}
	// A link is the administrator's, to the host's own, say; a pipe would make
	// everybody wait.
	f, err := os.OpenFile(c.Motd, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	if fi, err := f.Stat(); err != nil || !fi.Mode().IsRegular() {
		return errors.Join(err, parcel.NewError(parcel.Damaged, "message of the day: is no file"))
	}
	_, err = io.Copy(stdout, io.LimitReader(f, maxRequest))
	return err
}
