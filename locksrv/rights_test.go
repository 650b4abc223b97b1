package locksrv_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"isr/locksrv"
	"isr/locksrv/event"
	"isr/locksrv/locksrvtest"
	"isr/locksrv/proto"
	"isr/store"
	"isr/store/authkey"
	"isr/store/parcel"
	"isr/store/seal"
)

// words is a command as its synopsis has it, about a parcel.
func words(verb, synopsis, name string) string {
	out := []string{verb}
	for _, w := range strings.Fields(strings.NewReplacer("[", " ", "]", " ").Replace(synopsis)) {
		switch w {
		case "PARCEL":
			out = append(out, name)
		case "VERSION", "N":
			out = append(out, "1")
		default:
			out = append(out, w)
		}
	}
	return strings.Join(out, " ")
}

// Every verb there is, under every kind of key. One that is added without a
// thought of rights fails here.
func TestRightsOfEveryVerb(t *testing.T) {
	r := locksrvtest.NewRealm(t)
	for _, name := range []string{"mine", "unseen"} {
		r.AddParcel(t, "alice", name)
	}
	session := func(rights authkey.Rights) locksrvtest.Direct {
		return locksrvtest.Direct{Service: r.Service, Session: locksrv.Session{User: "alice", Rights: rights}}
	}
	whole := session(authkey.Rights{})
	var lock string
	for _, name := range []string{"mine", "unseen"} {
		out, errs, status := whole.Exec("isr_acquire_lock "+name+" host id", nil)
		if status != 0 {
			t.Fatalf("%s", errs)
		}
		rec, err := parcel.ParseRecord(out)
		if err != nil {
			t.Fatal(err)
		}
		lock = rec.Get("NONCE")
	}
	// What objects take is written down when somebody asks and it has settled: now.
	for _, name := range []string{"mine", "unseen"} {
		for written := false; !written; {
			if _, err := r.Store.Usage("alice"); err != nil {
				t.Fatal(err)
			}
			_, err := os.Lstat(filepath.Join(r.Root, "users/alice/.isr", name, "usage"))
			written = err == nil
		}
	}
	for verb, synopsis := range locksrv.Synopses() {
		t.Run(verb, func(t *testing.T) {
			changes, says := locksrv.Changes(verb)
			if !says {
				t.Error("it does not say what it asks of a key: see needs")
			}
			before := tree(t, r.Root+"/users")
			unchanged := func(who string) {
				t.Helper()
				if tree(t, r.Root+"/users") != before {
					t.Errorf("%s: something is changed", who)
				}
			}
			stdin := []byte(lock + "\n")
			one := session(authkey.Rights{Parcels: []string{"mine"}})
			// With all arguments, and with those that must be.
			forms := []string{words(verb, synopsis, "PARCEL")}
			if i := strings.IndexByte(synopsis, '['); i >= 0 {
				forms = append(forms, words(verb, synopsis[:i], "PARCEL"))
			}
			for _, form := range forms {
				if !strings.Contains(form, "PARCEL") {
					out, errs, _ := one.Exec(form, stdin)
					if bytes.Contains(append(out, errs...), []byte("unseen")) {
						t.Errorf("%s: tells of the other parcel: %s%s", form, out, errs)
					}
					unchanged("a key for another parcel")
					continue
				}
				say := func(name string) string {
					out, errs, status := one.Exec(strings.ReplaceAll(form, "PARCEL", name), stdin)
					if len(out) > 0 || status != int(parcel.NoParcel) {
						t.Errorf("%s of %s: status %d, %s%s", form, name, status, out, errs)
					}
					return strings.ReplaceAll(string(errs), name, "NAME")
				}
				if a, b := say("unseen"), say("absent"); a != b {
					t.Errorf("%s: says of the other parcel %q, of one that there is not %q", form, a, b)
				}
				unchanged("a key for another parcel")
			}
			for _, rights := range []authkey.Rights{{ReadOnly: true}, {ReadOnly: true, Parcels: []string{"mine"}}} {
				for _, form := range forms {
					out, errs, status := session(rights).Exec(strings.ReplaceAll(form, "PARCEL", "mine"), stdin)
					if (status == int(parcel.Denied)) != changes {
						t.Errorf("%s with a key for reading: status %d, %s%s", form, status, out, errs)
					}
				}
			}
			unchanged("a key for reading")
		})
	}
	// A fork leads to no parcel that the key is not for, be it there or not.
	for _, name := range []string{"unseen", "absent"} {
		_, errs, status := session(authkey.Rights{Parcels: []string{"mine"}}).Exec("isr_fork mine 1 "+name+" h a", nil)
		if status != int(parcel.Denied) || strings.Contains(string(errs), name) {
			t.Errorf("fork to %s: status %d, %s", name, status, errs)
		}
	}
	if _, errs, status := session(authkey.Rights{Parcels: []string{"mine", "new"}}).Exec("isr_fork mine 1 new h a", nil); status != 0 {
		t.Errorf("fork to one that it is for: status %d, %s", status, errs)
	}
}

// Whatever leads to a change, rights are asked there too.
func TestActAsksRights(t *testing.T) {
	r := locksrvtest.NewRealm(t)
	for _, test := range []struct {
		rights authkey.Rights
		e      event.Event
		want   bool
	}{
		{authkey.Rights{}, event.Event{Op: event.UserPassword}, true},
		{authkey.Rights{ReadOnly: true}, event.Event{Op: event.Lock, Parcel: "mine"}, false},
		{authkey.Rights{Parcels: []string{"mine"}}, event.Event{Op: event.Lock, Parcel: "mine"}, true},
		{authkey.Rights{Parcels: []string{"mine"}}, event.Event{Op: event.Lock, Parcel: "other"}, false},
		{authkey.Rights{Parcels: []string{"mine"}}, event.Event{Op: event.UserChange}, false},
	} {
		did := false
		err := r.Service.Act(context.Background(), locksrv.Session{User: "alice", Rights: test.rights}, &test.e, func(context.Context) error {
			did = true
			return nil
		})
		if did != test.want || (err == nil) != test.want {
			t.Errorf("%+v, %s %s: done %v, %v", test.rights, test.e.Op, test.e.Parcel, did, err)
		}
	}
}

func TestRightsInSFTP(t *testing.T) {
	r := locksrvtest.NewRealm(t)
	mine, other := r.AddParcel(t, "alice", "mine"), r.AddParcel(t, "alice", "other")
	for _, p := range []*store.Parcel{mine, other} {
		if _, err := p.Acquire("alice", "host", "id"); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("../other/last/info", filepath.Join(mine.ContentDir(), "out")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("other", filepath.Join(filepath.Dir(mine.ContentDir()), "link")); err != nil {
		t.Fatal(err)
	}
	f, err := locksrvtest.Direct{Service: r.Service, Session: locksrv.Session{User: "alice",
		Rights: authkey.Rights{Parcels: []string{"mine", "link", "absent"}}}}.SFTP()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	infos, err := f.ReadDir("/")
	if err != nil || slices.ContainsFunc(infos, func(fi os.FileInfo) bool { return fi.Name() == "other" }) {
		t.Errorf("/: %v, %v", infos, err)
	}
	for _, name := range []string{"/mine/last/info", "/mine/000001/info"} {
		g, err := f.Open(name)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		g.Close()
	}
	if infos, err := f.ReadDir("/mine"); err != nil || len(infos) < 4 || slices.ContainsFunc(infos, func(fi os.FileInfo) bool { return fi.Name() == "staging" }) {
		t.Errorf("/mine: %v, %v", infos, err)
	}
	for _, name := range []string{"/other", "/other/last/info", "/link", "/link/last/info", "/mine/../other/last/info", "/mine/out", "/mine/staging", "/absent"} {
		if _, err := f.Stat(name); err == nil {
			t.Errorf("stat %s: it is there", name)
		}
		if g, err := f.Open(name); err == nil {
			g.Close()
			t.Errorf("%s: open", name)
		}
		if _, err := f.ReadDir(name); err == nil {
			t.Errorf("%s: listed", name)
		}
	}
	object := []byte("an object")
	sum := sha256.Sum256(object)
	tag := seal.Tag(sum[:]).String()
	put := func(rights authkey.Rights, name string) error {
		t.Helper()
		f, err := locksrvtest.Direct{Service: r.Service, Session: locksrv.Session{User: "alice", Rights: rights}}.SFTP()
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		g, err := f.OpenFile("/"+name+"/hdk/"+tag[:2]+"/"+tag, os.O_WRONLY|os.O_CREATE)
		if err != nil {
			return err
		}
		_, err = g.Write(object)
		if cerr := g.Close(); err == nil {
			err = cerr
		}
		return err
	}
	if err := put(authkey.Rights{ReadOnly: true}, "mine"); err == nil {
		t.Error("put with a key for reading")
	}
	if err := put(authkey.Rights{Parcels: []string{"mine"}}, "other"); err == nil {
		t.Error("put into the other parcel")
	}
	if err := put(authkey.Rights{Parcels: []string{"mine"}}, "mine"); err != nil {
		t.Errorf("put: %v", err)
	}
	// Over the quota nothing comes in, what is there still does.
	used, err := r.Store.Usage("alice")
	if err != nil {
		t.Fatal(err)
	}
	for _, quota := range []int64{1, used.Bytes, used.Bytes + int64(len(object)) - 1} {
		if err := r.Store.ChangeUser("alice", func(c *store.UserConfig) error { c.Quota = quota; return nil }); err != nil {
			t.Fatal(err)
		}
		if err := put(authkey.Rights{}, "mine"); err != nil {
			t.Errorf("put of what is there: %v", err)
		}
		if err := put(authkey.Rights{}, "other"); err == nil || !strings.Contains(err.Error(), "user alice: quota of ") ||
			!strings.Contains(err.Error(), "disk quota exceeded") {
			t.Errorf("put over the quota: %v", err)
		}
	}
	if left, err := filepath.Glob(other.ContentDir() + "/staging/*"); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// The daemon asks about a key again in each session.
func TestDaemonKeysAndLocks(t *testing.T) {
	r := locksrvtest.NewRealm(t)
	r.AddParcel(t, "alice", "winxp")
	r.AddParcel(t, "alice", "other")
	d := r.Start(t, nil)
	line := strings.TrimSpace(string(ssh.MarshalAuthorizedKey(r.Keys["alice"].PublicKey())))
	file := filepath.Join(r.Root, "users/alice/authorized_keys")
	write := func(options string) {
		t.Helper()
		if options != "" {
			options += " "
		}
		if err := os.WriteFile(file, []byte(options+line+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for options, want := range map[string]string{
		`expiry-time="20200101"`:  "expired on 2020-01-01",
		`from="192.0.2.0/24"`:     "not from this address",
		`from="127.*,!127.0.0.1"`: "not from this address",
		`command="id"`:            "",
		`expiry-time="20200101",from="127.0.0.1",isr-read-only`: "expired on",
	} {
		write(options)
		if c, err := r.Dial(d.Addr, "alice", "alice"); err == nil {
			c.Close()
			t.Errorf("%s: let in", options)
		}
		if !strings.Contains(d.Log.String(), want) {
			t.Errorf("%s: the log does not say %q", options, want)
		}
	}
	write(`from="127.0.0.0/8",isr-parcel="winxp",isr-read-only,expiry-time="99991231"`)
	c, err := r.Dial(d.Addr, "isr", "alice")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	say := func(command, want string, status int) {
		t.Helper()
		out, errs, got := locksrvtest.Exec(c, command, nil)
		if got != status || !strings.Contains(string(out)+string(errs), want) {
			t.Errorf("%s: status %d, %s%s; want %d, %q", command, got, out, errs, status, want)
		}
	}
	say(proto.ListParcels, "winxp\n", 0)
	say("isr_cat_parcel_cfg other", "no such parcel", 10)
	say("isr_acquire_lock winxp h", "for reading only", 16)
	write("")
	say(proto.ListParcels, "other\nwinxp\n", 0)
	say("isr_acquire_lock winxp h", "NONCE:=", 0)
	lock := func(at time.Time) {
		t.Helper()
		if err := r.Store.ChangeUser("alice", func(c *store.UserConfig) error { c.Locked, c.Why = at, "laptop stolen"; return nil }); err != nil {
			t.Fatal(err)
		}
	}
	lock(time.Now())
	say(proto.ListParcels, "user alice: is locked out since", 16)
	say("no_such_verb", "laptop stolen", 16)
	say("internal-sftp", "laptop stolen", 16)
	if p, err := r.Store.Parcel("alice", "winxp"); err != nil {
		t.Error(err)
	} else if held, err := p.Holder(); held == nil || err != nil {
		t.Errorf("her lock is gone: %v", err)
	}
	// With a new connection she hears why, but nobody else does.
	again, err := r.Dial(d.Addr, "alice", "alice")
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if _, errs, status := locksrvtest.Exec(again, proto.ListParcels, nil); status != 16 || !strings.Contains(string(errs), "laptop stolen") {
		t.Errorf("status %d, %s", status, errs)
	}
	if c, err := r.Dial(d.Addr, "alice", "bob"); err == nil {
		_, errs, status := locksrvtest.Exec(c, proto.ListParcels, nil)
		if status != 16 || strings.Contains(string(errs), "stolen") {
			t.Errorf("bob hears: %d, %s", status, errs)
		}
		c.Close()
	}
	lock(time.Time{})
	say(proto.ListParcels, "winxp", 0)
	write(`expiry-time="20200101"`)
	say(proto.ListParcels, "expired on 2020-01-01", 16)
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	say(proto.ListParcels, "no user has it", 16)
	if _, _, err := r.Store.UserOfKey(r.Keys["alice"].PublicKey(), netip.Addr{}); err == nil {
		t.Error("her key is hers")
	}
}
