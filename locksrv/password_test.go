package locksrv_test

import (
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"isr/locksrv"
	"isr/locksrv/locksrvtest"
	"isr/locksrv/proto"
	"isr/store"
	"isr/store/parcel"
)

func init() { store.PasswordCost = 6 }

// asked answers every hidden question with the password.
func asked(password string) ssh.AuthMethod {
	return ssh.KeyboardInteractive(func(_, _ string, questions []string, echos []bool) ([]string, error) {
		answers := make([]string, len(questions))
		for i := range questions {
			if !echos[i] {
				answers[i] = password
			}
		}
		return answers, nil
	})
}

// withPasswords is attacked, where alice and carol have passwords and bob has
// none.
func withPasswords(t *testing.T) (*locksrvtest.Realm, *locksrvtest.Daemon) {
	t.Helper()
	r, d := attacked(t)
	for _, name := range []string{"alice", "carol"} {
		if err := r.Store.SetPassword(name, []byte(name+"'s secret")); err != nil {
			t.Fatal(err)
		}
	}
	return r, d
}

func login(addr, user string, methods ...ssh.AuthMethod) (*ssh.Client, error) {
	return ssh.Dial("tcp", addr, &ssh.ClientConfig{User: user, Auth: methods, HostKeyCallback: ssh.InsecureIgnoreHostKey()})
}

func TestPasswordLogin(t *testing.T) {
	r, d := withPasswords(t)
	for name, m := range map[string]ssh.AuthMethod{"password": ssh.Password("carol's secret"), "keyboard-interactive": asked("carol's secret")} {
		c, err := login(d.Addr, "carol", m)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		out, errs, status := locksrvtest.Exec(c, proto.ListParcels, nil)
		if status != 0 || string(out) != "mine\n" {
			t.Errorf("%s: %d, %q, %q; want her parcel", name, status, out, errs)
		}
		c.Close()
	}
	for what, try := range map[string]struct {
		user string
		m    ssh.AuthMethod
	}{
		"wrong":                {"carol", ssh.Password("alice's secret")},
		"wrong, asked":         {"carol", asked("alice's secret")},
		"empty":                {"bob", ssh.Password("")},
		"user without one":     {"bob", ssh.Password("carol's secret")},
		"no user":              {"nobody", ssh.Password("carol's secret")},
		"no name":              {"../carol", ssh.Password("carol's secret")},
		"the service user":     {locksrv.ServiceUser, ssh.Password("carol's secret")},
		"longer than bcrypt's": {"carol", ssh.Password("carol's secret" + strings.Repeat("x", 100))},
	} {
		d := r.Start(t, nil) // where nobody has guessed yet, so that none waits
		if c, err := login(d.Addr, try.user, try.m); err == nil {
			t.Errorf("%s: got in", what)
			c.Close()
		}
		if log := d.Log.String(); strings.Contains(log, "secret") {
			t.Errorf("%s: the log holds a password", what)
		}
	}
	if log := d.Log.String(); strings.Contains(log, "secret") {
		t.Errorf("the log holds a password")
	}
}

// A password lets in its user and nobody else, whatever keys were asked about
// before it and under whichever name.
func TestPasswordAndForeignKey(t *testing.T) {
	r, d := withPasswords(t)
	alice, stranger := r.Keys["alice"].PublicKey(), r.NewKey(t, "stranger").PublicKey()
	secret := ssh.Password("carol's secret")
	for _, keys := range [][]ssh.PublicKey{{alice}, {alice, stranger}, {stranger, alice}, {r.Keys["carol"].PublicKey(), alice}} {
		out, errs, err := locksrv.OfferThenPassword(d.Addr, "carol", "carol", secret, proto.ListParcels, keys...)
		if err != nil || out != "mine\n" {
			t.Errorf("%d keys asked about: %q, %q, %v; want carol's parcel", len(keys), out, errs, err)
		}
	}
	for _, try := range []struct {
		first, then string
		m           ssh.AuthMethod
	}{
		{"carol", "alice", secret}, {"alice", "carol", secret}, {"alice", "alice", secret},
		{"carol", "alice", asked("carol's secret")}, {"alice", "carol", asked("carol's secret")},
		{"alice", "carol", ssh.Password("alice's secret")}, {"isr!!", "carol", secret},
	} {
		d := r.Start(t, nil) // where nobody has guessed yet, so that none waits
		out, errs, err := locksrv.OfferThenPassword(d.Addr, try.first, try.then, try.m, proto.ListParcels, alice)
		if err == nil {
			t.Errorf("%s, then %s: got in: %q, %q", try.first, try.then, out, errs)
		}
	}
	// Wrong passwords first, then one's own key: the key counts.
	c, err := login(d.Addr, "carol", ssh.Password("no such secret"), ssh.PublicKeys(r.Keys["carol"]))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if out, _, _ := locksrvtest.Exec(c, proto.ListParcels, nil); string(out) != "mine\n" {
		t.Errorf("a wrong password, then her key: %q", out)
	}
}

// A connection hears three passwords; and who guesses does not keep out who
// has a key.
func TestGuessing(t *testing.T) {
	t.Parallel() // most of it is waiting
	r, d := withPasswords(t)
	guesses := 0
	_, err := login(d.Addr, "carol", ssh.RetryableAuthMethod(ssh.PasswordCallback(func() (string, error) {
		guesses++
		if guesses > 3 {
			return "carol's secret", nil
		}
		return "a wrong guess", nil
	}), 5))
	if err == nil || guesses != 5 {
		t.Errorf("the right one at the fourth guess: %v after %d", err, guesses)
	}
	// As many at once as one address may have: few are heard, none for long.
	began := time.Now()
	done := make(chan bool)
	for range 40 {
		go func() {
			_, err := login(d.Addr, "carol", ssh.Password("a wrong guess"))
			done <- err == nil
		}()
	}
	c, err := r.Dial(d.Addr, "carol", "carol")
	if err != nil {
		t.Errorf("her key, meanwhile: %v", err)
	} else {
		c.Close()
	}
	t.Logf("login by key while 40 guess: %v", time.Since(began))
	for range 40 {
		if <-done {
			t.Errorf("a wrong guess got in")
		}
	}
	heard, took := strings.Count(d.Log.String(), "password refused"), time.Since(began)
	t.Logf("%d of 43 guesses heard in %v", heard, took)
	if heard > 3+9+int(took/(10*time.Second)) { // the longest pause: a busy host takes its time to ask
		t.Errorf("%d guesses were heard", heard)
	}
}

// Without a password in the realm, none is asked for.
func TestNoPasswordsNotOffered(t *testing.T) {
	r, d := attacked(t)
	_, err := login(d.Addr, "alice", ssh.Password("x"), asked("x"))
	if err == nil || !strings.Contains(err.Error(), "attempted methods [none]") {
		t.Errorf("got %v; want no method but publickey offered", err)
	}
	if err := r.Store.SetPassword("carol", []byte("carol's secret")); err != nil {
		t.Fatal(err)
	}
	c, err := login(d.Addr, "carol", ssh.Password("carol's secret"))
	if err != nil {
		t.Fatalf("after the first password was set: %v", err)
	}
	c.Close()
}

func TestPasswdVerb(t *testing.T) {
	t.Parallel() // most of it is waiting
	r, d := attacked(t)
	c := dial(t, r, d.Addr, "carol")
	run := func(stdin string, args ...string) (string, int) {
		out, errs, status := locksrvtest.Exec(c, strings.Join(append([]string{proto.Passwd}, args...), " "), []byte(stdin))
		if strings.Contains(string(out)+string(errs), "secret") {
			t.Errorf("%q: %q, %q: a password comes back", args, out, errs)
		}
		return string(out), status
	}
	want := func(what string, out string, status int, wantOut string, kind parcel.Kind) {
		t.Helper()
		if out != wantOut || status != int(kind) {
			t.Errorf("%s: %q, status %d; want %q, %d", what, out, status, wantOut, kind)
		}
	}
	try := func(what, stdin, wantOut string, kind parcel.Kind, args ...string) {
		t.Helper()
		out, status := run(stdin, args...)
		want(what, out, status, wantOut, kind)
	}
	try("is there one", "", "no\n", 0, "--check")
	try("old where none is", "wrong secret\ncarol's secret\n", "", parcel.Denied)
	try("one line", "carol's secret\n", "", parcel.Usage)
	try("nothing", "", "", parcel.Usage)
	try("too short", "\nsecret\n", "", parcel.Usage)
	try("endless", strings.Repeat("x", 2000), "", parcel.Usage)
	try("first", "\ncarol's secret\n", "", 0)
	try("is there one", "", "yes\n", 0, "--check")
	try("without the old", "\nmallory's secret\n", "", parcel.Denied)
	try("with a wrong one", "a secret\nmallory's secret\n", "", parcel.Denied)
	try("changed", "carol's secret\nher other secret", "", 0)
	try("an argument", "", "", parcel.Usage, "alice")
	if err := r.Store.CheckPassword("carol", []byte("her other secret")); err != nil {
		t.Error(err)
	}
	if has, err := r.Store.HasPassword("alice"); has || err != nil {
		t.Errorf("alice has one: %v, %v", has, err)
	}
	if log := d.Log.String(); strings.Contains(log, "secret") || !strings.Contains(log, "password changed") {
		t.Errorf("log: want that it was changed, and nothing more")
	}
}
