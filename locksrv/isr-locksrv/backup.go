package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"filippo.io/age"
	"filippo.io/age/agessh"

	"isr/locksrv"
	"isr/locksrv/event"
	"isr/store"
	"isr/store/backup"
	"isr/store/backup/mirror"
	"isr/store/backup/snapshot"
	"isr/store/backup/target"
	"isr/store/parcel"
)

// backups are the commands about copies of a realm elsewhere.
type backups struct {
	Make   backupMake   `cmd:"" default:"withargs" help:"Back the realm up; the word make may be left out."`
	List   backupList   `cmd:"" help:"List the snapshots of a backup."`
	Verify backupVerify `cmd:"" help:"Verify a backup; exit status 0 only if it is sound."`
	Prune  backupPrune  `cmd:"" help:"Remove old snapshots, and what only they need."`
}

// place is where a backup or a mirror is.
type place struct {
	Target     string `arg:"" help:"Directory, HOST:PATH, ssh://[USER@]HOST[:PORT]/PATH or s3://BUCKET/PREFIX."`
	SSH        string `name:"ssh" help:"How ssh is called, with options; for places on other hosts." placeholder:"COMMAND" default:"ssh"`
	S3Endpoint string `name:"s3-endpoint" help:"The S3 service, if it is not AWS; else $$AWS_ENDPOINT_URL." placeholder:"URL"`
}

func (p place) way(e *env) (target.Way, error) {
	w := target.Way{SSH: strings.Fields(p.SSH), Apart: owner != "", Endpoint: p.S3Endpoint, Errors: e.stderr}
	if len(w.SSH) == 0 {
		return w, parcel.NewError(parcel.Usage, "--ssh: want a command")
	}
	return w, nil
}

// open opens the place, which may not be in the directory realm, nor have it
// within.
func (p place) open(ctx context.Context, e *env, create bool, realm string) (target.Target, error) {
	w, err := p.way(e)
	if err == nil {
		err = p.apart(realm)
	}
	if err != nil {
		return nil, err
	}
	return w.Open(ctx, p.Target, create)
}

func (p place) apart(realm string) error {
	dir, local := target.Local(p.Target)
	if !local || realm == "" {
		return nil
	}
	a, err := realPath(dir)
	if err != nil {
		return err
	}
	b, err := realPath(realm)
	if err != nil {
		return err
	}
	for _, pair := range [][2]string{{a, b}, {b, a}} {
		if rel, err := filepath.Rel(pair[0], pair[1]); err == nil && filepath.IsLocal(rel) {
			return parcel.NewError(parcel.Usage, "%s: realm %s is in the way: want a place of its own", dir, realm)
		}
	}
	return nil
}

// realPath is where dir is, or will be.
func realPath(dir string) (string, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	if real, err := filepath.EvalSymlinks(dir); err == nil {
		return real, nil
	}
	parent, err := filepath.EvalSymlinks(filepath.Dir(dir))
	return filepath.Join(parent, filepath.Base(dir)), err
}

type backupMake struct {
	place
	Recipient []string `help:"Seal the lock sides for an age or SSH public key, or those in a file; may come more than once." placeholder:"KEY" sep:"none"`
	JSON      bool     `name:"json" help:"Print the result as an object."`
}

func (c *backupMake) Run(ctx context.Context, e *env) error {
	to, err := recipients(c.Recipient)
	if err != nil {
		return err
	}
	s, root, err := e.open()
	if err != nil {
		return err
	}
	unlock, err := backup.Lock(s)
	if err != nil {
		return err
	}
	defer unlock()
	ev := event.Event{Op: event.Backup, What: "to " + parcel.Clean(c.Target)}
	return e.actOn(ctx, s, &ev, func(ctx context.Context) error {
		t, err := c.open(ctx, e, true, root)
		if err != nil {
			return err
		}
		defer t.Close()
		ev.What = "to " + parcel.Clean(t.String())
		progress, done := e.progress("backup")
		start := time.Now()
		res, err := backup.Make(ctx, s, t, backup.Options{Recipients: to, Warn: e.warning, Progress: progress})
		done()
		if err != nil {
			return err
		}
		snap := res.Snapshot
		ev.Objects, ev.Bytes = res.Sent, res.Bytes
		ev.What += ": snapshot " + snap.ID
		if c.JSON {
			e.rows().Encode(madeBackup{rowOfSnapshot(snap), res.Sent, res.Bytes, int64(res.Damaged), len(snap.Lacks), res.Lost, time.Since(start).Seconds()})
		} else {
			fmt.Fprintf(e.stdout, "snapshot %s: %s, %s of %s; sent %s of %s in %s\n", snap.ID, count(len(snap.Parcels), "parcel"),
				count(snap.Objects, "object"), store.SizeText(snap.Bytes), count(res.Sent, "object"), store.SizeText(res.Bytes), tookText(start))
		}
		return notWhole("backup", res.Damaged, len(snap.Lacks), res.Lost)
	})
}

// notWhole is the end of a copy of a realm that is not whole; nil if it is.
func notWhole(copy string, damaged, lacks, lost int) error {
	switch {
	case lost > 0:
		others := ""
		if lacks > 0 {
			others = " and objects of " + count(lacks, "version")
		}
		return parcel.NewError(parcel.Damaged, "%s: lacks %s that cannot be read here%s", copy, count(lost, "parcel"), others).
			WithHint("isr-locksrv check says what is wrong with them")
	case lacks > 0:
		return parcel.NewError(parcel.Damaged, "%s: lacks objects of %s, as this realm does", copy, count(lacks, "version")).
			WithHint("isr-locksrv check says what; repair puts it back from a place that has it, and the next %s has it too", copy)
	case damaged > 0:
		return parcel.NewError(parcel.Damaged, "%s: has all that versions need, but this realm lacks %s, or has them not whole", copy, count(damaged, "object")).
			WithHint("isr-locksrv check -c says which; repair puts back from a place that has them")
	}
	return nil
}

// recipients are public keys: age's, SSH's, or those in files.
func recipients(texts []string) (to []age.Recipient, err error) {
	for _, text := range texts {
		lines := []string{text}
		if b, err := os.ReadFile(text); err == nil {
			lines = strings.Split(string(b), "\n")
		}
		n := len(to)
		for _, line := range lines {
			if line = strings.TrimSpace(line); line == "" || line[0] == '#' {
				continue
			}
			var r age.Recipient
			if strings.HasPrefix(line, "ssh-") {
				r, err = agessh.ParseRecipient(line)
			} else {
				r, err = age.ParseX25519Recipient(line)
			}
			if err != nil {
				return nil, parcel.NewError(parcel.Usage, "--recipient %s: want age1…, an SSH public key, or a file of them", parcel.Clean(text))
			}
			to = append(to, r)
		}
		if len(to) == n {
			return nil, parcel.NewError(parcel.Usage, "--recipient %s: holds no key", parcel.Clean(text))
		}
	}
	return to, nil
}

// identities are the private keys in files: age's, or one of SSH.
func identities(files []string) (ids []age.Identity, err error) {
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		if strings.Contains(string(text), "PRIVATE KEY-----") {
			id, err := agessh.ParseIdentity(text)
			if err != nil {
				return nil, parcel.NewError(parcel.Denied, "--identity %s: %s", file, parcel.Clean(err.Error()))
			}
			ids = append(ids, id)
			continue
		}
		more, err := age.ParseIdentities(strings.NewReader(string(text)))
		if err != nil {
			return nil, parcel.NewError(parcel.Usage, "--identity %s: holds no key of age or SSH", file)
		}
		ids = append(ids, more...)
	}
	return ids, nil
}

type backupList struct {
	place
	Snapshot string `arg:"" optional:"" help:"List the parcels of this one, or latest."`
	JSON     bool   `name:"json" help:"Print an object a line."`
}

func (c *backupList) Run(ctx context.Context, e *env) error {
	t, err := c.open(ctx, e, false, "")
	if err != nil {
		return err
	}
	defer t.Close()
	ids, err := snapshot.IDs(ctx, t)
	if err != nil {
		return err
	}
	table := e.stdout.Table()
	lines := e.rows()
	if c.Snapshot != "" {
		id := c.Snapshot
		if id == "latest" && len(ids) > 0 {
			id = ids[len(ids)-1]
		}
		s, err := snapshot.Header(ctx, t, id)
		if err != nil {
			return err
		}
		for _, p := range s.Parcels {
			if c.JSON {
				err = lines.Encode(backedUpParcel{p.User, p.Name, p.Version, p.Held, p.Objects, p.Bytes, lacksOf(s, p)})
			} else {
				state := "released"
				if p.Held != "" {
					state = "held by " + p.Held
				}
				if l := lacksOf(s, p); l > 0 {
					state += ", " + count(l, "version") + " not whole"
				}
				table.Row(p.User, p.Name, fmt.Sprint("version ", p.Version), store.SizeText(p.Bytes), state)
			}
			if err != nil {
				return err
			}
		}
		return table.Print()
	}
	var bad error
	for _, id := range ids {
		s, err := snapshot.Header(ctx, t, id)
		if errors.Is(err, parcel.ErrDamaged) {
			e.warning(err.Error())
			bad = err
			continue
		}
		if err != nil {
			return err
		}
		if c.JSON {
			err = lines.Encode(rowOfSnapshot(s))
		} else {
			table.Row(s.ID, s.Realm, count(len(s.Parcels), "parcel"), count(s.Objects, "object"), store.SizeText(s.Bytes))
		}
		if err != nil {
			return err
		}
	}
	if err := table.Print(); err != nil {
		return err
	}
	return bad
}

// share is a part of a whole on the command line: 5%.
type share float64

func (s *share) UnmarshalText(text []byte) error {
	n, err := strconv.ParseFloat(strings.TrimSuffix(string(text), "%"), 64)
	if err != nil || !(n >= 0 && n <= 100) {
		return fmt.Errorf("share %q: want a percentage from 0%% to 100%%", text)
	}
	*s = share(n / 100)
	return nil
}

type backupVerify struct {
	place
	Snapshot string `arg:"" optional:"" help:"Only what this one needs, or latest."`
	Sample   share  `help:"Read only so many of the objects, at random." placeholder:"PERCENT" default:"100%"`
	JSON     bool   `name:"json" help:"Print an object a line."`
}

func (c *backupVerify) Run(ctx context.Context, e *env) error {
	t, err := c.open(ctx, e, false, "")
	if err != nil {
		return err
	}
	defer t.Close()
	lines := e.rows()
	progress, done := e.progress("verify")
	v, err := backup.Verify(ctx, t, backup.VerifyOptions{Snapshot: c.Snapshot, Sample: float64(c.Sample), Progress: progress, Problem: func(text string) {
		if c.JSON {
			lines.Encode(map[string]string{"error": text})
		} else {
			fmt.Fprintln(e.stdout, "error: "+text)
		}
	}})
	done()
	if err != nil {
		return err
	}
	if c.JSON {
		err = lines.Encode(verifiedBackup(*v))
	} else {
		_, err = fmt.Fprintf(e.stdout, "%s, %s of %s, %d read: %s\n", count(v.Snapshots, "snapshot"), count(v.Objects, "object"), store.SizeText(v.Bytes), v.Read, count(v.Errors, "error"))
	}
	if err == nil && v.Errors > 0 {
		err = parcel.NewError(parcel.Damaged, "%s: %s", t, count(v.Errors, "error")).
			WithHint("the next backup sends again what is missing, if the realm has it")
	}
	return err
}

type backupPrune struct {
	place
	keepRules
	sure
	DryRun bool `short:"n" help:"Say what would go, and change nothing."`
	JSON   bool `name:"json" help:"Print an object a line."`
}

func (c *backupPrune) Run(ctx context.Context, e *env) error {
	rules, err := c.rules()
	if err != nil {
		return err
	}
	if rules.Empty() {
		return errNoRule("backup prune")
	}
	s, root, err := e.open()
	if err != nil {
		return err
	}
	unlock, err := backup.Lock(s)
	if err != nil {
		return err
	}
	defer unlock()
	t, err := c.open(ctx, e, false, root)
	if err != nil {
		return err
	}
	defer t.Close()
	plan, err := backup.PlanPrune(ctx, t, rules)
	if err != nil {
		return err
	}
	lines := e.rows()
	table := e.stdout.Table()
	row := func(id string, kept []string) {
		if c.JSON {
			lines.Encode(plannedSnapshot{id, kept, len(kept) == 0})
		} else {
			table.Row(id, keptText(kept))
		}
	}
	for _, k := range plan.Keep {
		row(k.ID, k.Why)
	}
	for _, id := range plan.Remove {
		row(id, nil)
	}
	table.Print()
	if c.DryRun {
		return nil
	}
	if len(plan.Remove) > 0 {
		if err := e.confirm(c.Yes, "remove %s of %d from %s?", count(len(plan.Remove), "snapshot"), len(plan.Remove)+len(plan.Keep), t); err != nil {
			return err
		}
	}
	ev := event.Event{Op: event.BackupPrune, What: "of " + parcel.Clean(c.Target)}
	return e.actOn(ctx, s, &ev, func(ctx context.Context) error {
		progress, done := e.progress("prune")
		res, err := backup.Prune(ctx, t, plan.Remove, progress)
		done()
		if err != nil {
			return err
		}
		ev.Objects, ev.Bytes = res.Objects, res.Bytes
		ev.What += fmt.Sprintf(": %s", count(res.Snapshots, "snapshot"))
		if c.JSON {
			lines.Encode(prunedBackup(*res))
			return nil
		}
		fmt.Fprintf(e.stdout, "removed %s, %s of %s\n", count(res.Snapshots, "snapshot"), count(res.Objects, "object"), store.SizeText(res.Bytes))
		return nil
	})
}

type restore struct {
	place
	User     string   `arg:"" optional:"" help:"Only her parcels, into this realm."`
	Parcel   string   `arg:"" optional:"" help:"Only this one of them."`
	As       string   `help:"Another name for the parcel." placeholder:"NAME"`
	Snapshot string   `help:"Which; default: the newest." placeholder:"ID"`
	Identity []string `help:"File with the private key that opens sealed lock sides." placeholder:"FILE" type:"existingfile" sep:"none"`
	Release  bool     `help:"Nobody holds what is restored; else who held it when it was backed up."`
	JSON     bool     `name:"json" help:"Print the result as an object."`
}

func (c *restore) Run(ctx context.Context, e *env) error {
	for _, name := range []string{c.User, c.Parcel, c.As} {
		if name != "" {
			if err := parcel.CheckName(name); err != nil {
				return err
			}
		}
	}
	if c.As != "" && c.Parcel == "" {
		return parcel.NewError(parcel.Usage, "--as: want USER and PARCEL too")
	}
	ids, err := identities(c.Identity)
	if err != nil {
		return err
	}
	root, err := rootDir(e.root, confFile)
	if err != nil {
		return err
	}
	// An empty directory that is the account's is to be a realm of the account's.
	if err := e.become(root); err != nil {
		return err
	}
	var s *store.Store
	if c.User != "" {
		if s, _, err = e.open(); err != nil {
			return err
		}
		unlock, err := backup.Lock(s)
		if err != nil {
			return err
		}
		defer unlock()
	}
	t, err := c.open(ctx, e, false, "")
	if err != nil {
		return err
	}
	defer t.Close()
	progress, end := e.progress("restore")
	done := sync.OnceFunc(end)
	defer done()
	o := backup.RestoreOptions{Snapshot: c.Snapshot, Identities: ids, Free: c.Release, User: c.User, Parcel: c.Parcel, As: c.As, Warn: e.warning, Progress: progress}
	ev := event.Event{Op: event.Restore, User: c.User, Parcel: c.Parcel, What: "from " + parcel.Clean(c.Target)}
	start := time.Now()
	var res *backup.Restored
	note := func() {
		if res != nil {
			ev.Objects, ev.Bytes = res.Fetched, res.Bytes
			ev.What += ": snapshot " + res.Snapshot.ID
		}
	}
	if s != nil {
		if c.As != "" {
			ev.To = c.User + "/" + c.As
		}
		err = e.actOn(ctx, s, &ev, func(ctx context.Context) (err error) {
			res, err = backup.RestoreInto(ctx, s, t, o)
			note()
			return err
		})
	} else if s, res, err = backup.Restore(ctx, root, t, o); err == nil {
		// There was no realm to write it down in before.
		note()
		by := e.session()
		ev.Time, ev.Seconds, ev.By, ev.Admin = time.Now(), time.Since(start).Seconds(), by.By, true
		err = locksrv.NewService(s).Events.Append(ev)
		e.acted = true
	}
	if err != nil {
		return err
	}
	done()
	if c.JSON {
		err = e.rows().Encode(restoredRow{rowOfSnapshot(res.Snapshot), res.Parcels, res.Fetched, res.Bytes, res.Kept, res.Lacking, res.Failed, time.Since(start).Seconds()})
	} else {
		_, err = fmt.Fprintf(e.stdout, "snapshot %s: restored %s; fetched %s of %s in %s\n", res.Snapshot.ID, count(res.Parcels, "parcel"),
			count(res.Fetched, "object"), store.SizeText(res.Bytes), tookText(start))
	}
	if err == nil && res.Lacking+res.Failed > 0 {
		err = parcel.NewError(parcel.Damaged, "restore: the backup lacks %s; %s not restored", count(res.Lacking, "object"), count(res.Failed, "parcel")).
			WithHint("isr-locksrv check says which versions are whole")
	}
	return err
}

type mirrorTo struct {
	place
	Every  time.Duration `help:"Go on, with so much time between passes, until told to stop: 5m." placeholder:"TIME"`
	Delete bool          `help:"Remove from the mirror what this realm has no more."`
	sure
	JSON bool `name:"json" help:"Print an object for each pass."`
}

func (c *mirrorTo) Run(ctx context.Context, e *env) error {
	if c.Every < 0 || c.Every > 0 && c.Every < time.Second {
		return parcel.NewError(parcel.Usage, "--every %v: want a second or more", c.Every)
	}
	s, root, err := e.open()
	if err != nil {
		return err
	}
	if c.Delete {
		if err := e.confirm(c.Yes, "remove from %s what this realm has no more?", c.Target); err != nil {
			return err
		}
	}
	for {
		err := c.pass(ctx, e, s, root)
		if c.Every == 0 || ctx.Err() != nil {
			if c.Every > 0 {
				return nil // it was told to stop
			}
			return err
		}
		// The next pass may find the host up again; but not another realm gone.
		if k := parcel.KindOf(err); k == parcel.Conflict || k == parcel.Usage {
			return err
		}
		if err != nil {
			e.warning(err.Error())
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(c.Every):
		}
	}
}

// pass brings the mirror up to date once. In a row of passes only those that
// found something are written down.
func (c *mirrorTo) pass(ctx context.Context, e *env, s *store.Store, root string) error {
	ev := event.Event{Op: event.Mirror, What: "to " + parcel.Clean(c.Target)}
	start := time.Now()
	res, err := c.once(ctx, e, s, root)
	if err == nil {
		e.acted = true
		ev.Objects, ev.Bytes = res.Sent, res.Bytes
		ev.What += fmt.Sprintf(": %s", count(res.Changed, "parcel"))
		if c.JSON {
			e.rows().Encode(mirrorPass{res.Parcels, res.Changed, res.Sent, res.Bytes, res.Linked, res.Removed, int64(res.Damaged), len(res.Lacks), res.Lost, time.Since(start).Seconds()})
		} else {
			fmt.Fprintf(e.stdout, "%s, %d changed; sent %s of %s, linked %d, removed %s in %s\n", count(res.Parcels, "parcel"), res.Changed,
				count(res.Sent, "object"), store.SizeText(res.Bytes), res.Linked, count(res.Removed, "file"), tookText(start))
		}
		err = notWhole("mirror", res.Damaged, len(res.Lacks), res.Lost)
	}
	if err != nil || c.Every == 0 || res.Changed > 0 {
		by := e.session()
		ev.Time, ev.Seconds, ev.By, ev.Admin = time.Now(), time.Since(start).Seconds(), by.By, true
		if err != nil {
			ev.Error, ev.Kind = parcel.Clean(err.Error()), int(parcel.KindOf(err))
		}
		if lerr := locksrv.NewService(s).Events.Append(ev); lerr != nil {
			e.warning("event log: " + lerr.Error())
		}
	}
	return err
}

func (c *mirrorTo) once(ctx context.Context, e *env, s *store.Store, root string) (*mirror.Result, error) {
	unlock, err := backup.Lock(s)
	if err != nil {
		return nil, err
	}
	defer unlock()
	w, err := c.way(e)
	if err == nil {
		err = c.apart(root)
	}
	if err != nil {
		return nil, err
	}
	t, err := w.OpenTree(ctx, c.Target, true)
	if err != nil {
		return nil, err
	}
	defer t.Close()
	progress, done := e.progress("mirror")
	defer done()
	return mirror.Pass(ctx, s, t, mirror.Options{Delete: c.Delete, Warn: e.warning, Progress: progress})
}
