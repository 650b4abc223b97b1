package locksrv_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"isr/locksrv"
	"isr/locksrv/locksrvtest"
	"isr/locksrv/proto"
	"isr/store/parcel"
)

// Users with names of one length, for the client whose name changes.
func attacked(t *testing.T) (*locksrvtest.Realm, *locksrvtest.Daemon) {
	t.Helper()
	r := locksrvtest.NewRealm(t)
	r.AddUser(t, "carol")
	r.AddParcel(t, "alice", "hers")
	r.AddParcel(t, "carol", "mine")
	return r, r.Start(t, nil)
}

// Hole 1: a client that changes its user name while it logs in gets nothing,
// and nobody's key opens another's parcels.
func TestNameThatChangesIsRefused(t *testing.T) {
	r, d := attacked(t)
	alice, carol, junk := r.Keys["alice"], r.Keys["carol"], r.NewKey(t, "junk")
	for _, test := range []struct {
		name   string
		first  string
		offers []locksrv.Offer
	}{
		{"own name with junk, then the victim's with the own key", "carol", []locksrv.Offer{{"carol", junk}, {"alice", carol}}},
		{"own name without a key, then the victim's", "carol", []locksrv.Offer{{"alice", carol}}},
		{"victim's name without a key, then the own", "alice", []locksrv.Offer{{"carol", carol}}},
		{"victim's name with junk, then the own", "alice", []locksrv.Offer{{"alice", junk}, {"carol", carol}}},
		{"there and back", "carol", []locksrv.Offer{{"alice", junk}, {"carol", carol}}},
		{"the victim's name all along", "alice", []locksrv.Offer{{"alice", carol}}},
		{"the victim's public key first, under her name", "alice", []locksrv.Offer{{"alice", locksrv.Shifting(alice, carol)}}},
	} {
		t.Run(test.name, func(t *testing.T) {
			out, errs, err := locksrv.RunAs(d.Addr, test.first, test.offers, proto.ListParcels)
			if err == nil || out != "" {
				t.Errorf("got %q, %v; want to be refused", out, err)
			}
			var exit *ssh.ExitError
			if errors.As(err, &exit) && (exit.ExitStatus() != int(parcel.Denied) || !strings.HasPrefix(errs, "isr: error: login of ")) {
				t.Errorf("got status %d, %q; want %d and why", exit.ExitStatus(), errs, parcel.Denied)
			}
		})
	}
	// The honest ways stay open, also when the agent offers other keys first.
	for _, offers := range [][]locksrv.Offer{{{"carol", carol}}, {{"carol", junk}, {"carol", carol}}} {
		out, errs, err := locksrv.RunAs(d.Addr, "carol", offers, proto.ListParcels)
		if err != nil || out != "mine\n" {
			t.Errorf("honest login: %q, %q, %v; want her parcel", out, errs, err)
		}
	}
}

// What was asked about a victim's public key is not what the session is about.
func TestPublicHalfOfAKeyOpensNothing(t *testing.T) {
	r, d := attacked(t)
	// As the service account any name fits: only the key counts.
	offers := []locksrv.Offer{{locksrv.ServiceUser, locksrv.Shifting(r.Keys["alice"], r.Keys["carol"])}}
	out, errs, err := locksrv.RunAs(d.Addr, locksrv.ServiceUser, offers, proto.ListParcels)
	if err != nil || out != "mine\n" {
		t.Errorf("got %q, %q, %v; want carol's parcel, whose key signed", out, errs, err)
	}
}

// Hole 2: without a key there is no session, whoever one claims to be.
func TestNoKeyNoSession(t *testing.T) {
	r, d := attacked(t)
	for _, offers := range [][]locksrv.Offer{nil, {{"alice", r.NewKey(t, "stranger")}}} {
		if out, _, err := locksrv.RunAs(d.Addr, "alice", offers, proto.ListParcels); err == nil {
			t.Errorf("%d keys: got in: %q", len(offers), out)
		}
	}
	for _, auth := range []ssh.AuthMethod{ssh.Password("alice"),
		ssh.KeyboardInteractive(func(string, string, []string, []bool) ([]string, error) { return nil, nil })} {
		_, err := ssh.Dial("tcp", d.Addr, &ssh.ClientConfig{User: "alice", Auth: []ssh.AuthMethod{auth}, HostKeyCallback: ssh.InsecureIgnoreHostKey()})
		if err == nil {
			t.Errorf("%T: got in", auth)
		}
	}
}

// A certificate that holds a user's key is not that key.
func TestCertificateIsNoKey(t *testing.T) {
	r, d := attacked(t)
	ca := r.NewKey(t, "ca")
	cert := &ssh.Certificate{Key: r.Keys["alice"].PublicKey(), CertType: ssh.UserCert, ValidBefore: ssh.CertTimeInfinity, ValidPrincipals: []string{"alice"}}
	if err := cert.SignCert(bytesReader{}, ca); err != nil {
		t.Fatal(err)
	}
	signer, err := ssh.NewCertSigner(cert, r.Keys["alice"])
	if err != nil {
		t.Fatal(err)
	}
	if out, _, err := locksrv.RunAs(d.Addr, "alice", []locksrv.Offer{{"alice", signer}}, proto.ListParcels); err == nil {
		t.Errorf("got in: %q", out)
	}
}

type bytesReader struct{}

func (bytesReader) Read(p []byte) (int, error) { return len(p), nil }

func dial(t *testing.T, r *locksrvtest.Realm, addr, user string) *ssh.Client {
	t.Helper()
	c, err := r.Dial(addr, user, user)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func TestOtherUsersParcelIsNotThere(t *testing.T) {
	r, d := attacked(t)
	c := dial(t, r, d.Addr, "carol")
	for _, command := range []string{"isr_cat_parcel_cfg hers", "isr_cat_keyroot hers", "isr_acquire_lock hers h", "isr_release_lock hers --force",
		"isr_get hers", "isr_missing hers", "isr_ls hers", "isr_checkparcel hers", "isr_fork hers 1 mine2 h id"} {
		out, errs, status := locksrvtest.Exec(c, command, nil)
		if status != int(parcel.NoParcel) || len(out) > 0 {
			t.Errorf("%s: status %d, %q, %s; want %d", command, status, out, errs, parcel.NoParcel)
		}
	}
	f, err := locksrvtest.Conn{Client: c}.SFTP()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, name := range []string{"/hers", "/../../alice/isr/hers", "/mine/../../../alice/isr/hers", "/mine/../../.isr/mine/parcel.cfg"} {
		if _, err := f.Stat(name); err == nil {
			t.Errorf("stat %s: it is there", name)
		}
	}
}

func TestRequestsThatAreNotServed(t *testing.T) {
	r, d := attacked(t)
	c := dial(t, r, d.Addr, "alice")
	s, err := c.NewSession()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.RequestPty("xterm", 24, 80, ssh.TerminalModes{}); err == nil {
		t.Errorf("pty: granted")
	}
	if err := s.Setenv("LD_PRELOAD", "x"); err == nil {
		t.Errorf("env: taken")
	}
	for _, request := range []string{"auth-agent-req@openssh.com", "x11-req", "break", "signal", "window-change"} {
		if ok, err := s.SendRequest(request, true, []byte{0, 0, 0, 0}); ok || err != nil {
			t.Errorf("%s: %v, %v; want it refused", request, ok, err)
		}
	}
	if err := s.RequestSubsystem("netconf"); err == nil {
		t.Errorf("subsystem netconf: served")
	}
	var errs strings.Builder
	s.Stderr = &errs
	if err := s.Shell(); err != nil {
		t.Fatal(err)
	}
	var exit *ssh.ExitError
	if err := s.Wait(); !errors.As(err, &exit) || exit.ExitStatus() != int(parcel.Usage) || !strings.Contains(errs.String(), proto.Acquire) {
		t.Errorf("shell: %v, %q; want status %d and the verbs", err, &errs, parcel.Usage)
	}
	for _, channel := range []string{"direct-tcpip", "x11", "auth-agent@openssh.com", "direct-streamlocal@openssh.com", "tun@openssh.com"} {
		if ch, _, err := c.OpenChannel(channel, nil); err == nil {
			ch.Close()
			t.Errorf("channel %s: opened", channel)
		}
	}
	for _, request := range []string{"tcpip-forward", "streamlocal-forward@openssh.com"} {
		if ok, _, err := c.SendRequest(request, true, []byte("\x00\x00\x00\x00\x00\x00\x00\x00")); ok || err != nil {
			t.Errorf("%s: %v, %v; want it refused", request, ok, err)
		}
	}
	if out, _, status := locksrvtest.Exec(c, proto.ListParcels, nil); status != 0 {
		t.Errorf("after all that: %q, %d", out, status)
	}
}

// closed waits for the other side to close, and fails if it takes too long.
func closed(t *testing.T, c net.Conn) {
	t.Helper()
	c.SetReadDeadline(time.Now().Add(time.Minute))
	if _, err := io.Copy(io.Discard, c); err != nil && !errors.Is(err, net.ErrClosed) && !strings.Contains(err.Error(), "reset") {
		t.Errorf("connection is still open: %v", err)
	}
}

func TestHandshakeTimeout(t *testing.T) {
	r := locksrvtest.NewRealm(t)
	d := r.Start(t, func(d *locksrv.Daemon) { d.HandshakeTimeout = time.Second })
	// In time, so it stays. A busy host may need more than one attempt.
	in, err := r.Dial(d.Addr, "alice", "alice")
	for deadline := time.Now().Add(time.Minute); err != nil && time.Now().Before(deadline); {
		in, err = r.Dial(d.Addr, "alice", "alice")
	}
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	silent, err := net.Dial("tcp", d.Addr)
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	dribble, err := net.Dial("tcp", d.Addr)
	if err != nil {
		t.Fatal(err)
	}
	defer dribble.Close()
	go func() {
		for {
			if _, err := dribble.Write([]byte("x")); err != nil {
				return
			}
			time.Sleep(20 * time.Millisecond) // each byte alone is not to lift the limit
		}
	}()
	closed(t, silent)
	closed(t, dribble)
	if _, _, status := locksrvtest.Exec(in, proto.ListParcels, nil); status != 0 {
		t.Errorf("a connection that logged in was cut too")
	}
}

func TestLimits(t *testing.T) {
	r := locksrvtest.NewRealm(t)
	r.AddParcel(t, "alice", "p")
	d := r.Start(t, func(d *locksrv.Daemon) { d.Limits = locksrv.Limits{PerAddress: 3, PerUser: 3, PerConn: 2} })
	a, b := dial(t, r, d.Addr, "alice"), dial(t, r, d.Addr, "alice")
	dial(t, r, d.Addr, "bob")
	more, err := net.Dial("tcp", d.Addr)
	if err != nil {
		t.Fatal(err)
	}
	closed(t, more)

	// A session that lasts: isr_get with its input open, once it answered.
	last := func(c *ssh.Client) (*ssh.Session, io.WriteCloser, error) {
		s, err := c.NewSession()
		if err != nil {
			return nil, nil, err
		}
		in, err := s.StdinPipe()
		if err != nil {
			return nil, nil, err
		}
		out, err := s.StdoutPipe()
		if err != nil {
			return nil, nil, err
		}
		if err := s.Start("isr_get p"); err != nil {
			return nil, nil, err
		}
		io.WriteString(in, strings.Repeat("00", 32)+"\n")
		if _, err := proto.ReadFrame(out); !errors.Is(err, parcel.ErrNoObject) {
			return s, in, s.Wait()
		}
		return s, in, nil
	}
	var sessions []*ssh.Session
	for i, c := range []*ssh.Client{a, a, b} {
		s, _, err := last(c)
		if err != nil {
			t.Fatalf("session %d: %v", i, err)
		}
		sessions = append(sessions, s)
	}
	if _, err := a.NewSession(); err == nil {
		t.Errorf("third session of a connection: opened; 2 are the limit")
	}
	_, errs, status := locksrvtest.Exec(b, proto.ListParcels, nil)
	if status != int(parcel.Unreachable) {
		t.Errorf("fourth session of a user: status %d, %s; want %d", status, errs, parcel.Unreachable)
	}
	// What ends makes room. The server learns of the end a moment later.
	sessions[0].Close()
	for deadline := time.Now().Add(time.Minute); ; {
		if _, _, status := locksrvtest.Exec(b, proto.ListParcels, nil); status == 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("no room after a session ended")
		}
	}
}

// mute is a connection that can be made to lose all that is written.
type mute struct {
	net.Conn
	on atomic.Bool
}

func (m *mute) Write(p []byte) (int, error) {
	if m.on.Load() {
		return len(p), nil
	}
	return m.Conn.Write(p)
}

func TestSilentClientIsDropped(t *testing.T) {
	r := locksrvtest.NewRealm(t)
	r.AddParcel(t, "alice", "p")
	d := r.Start(t, func(d *locksrv.Daemon) { d.KeepAlive = 50 * time.Millisecond })
	nc, err := net.Dial("tcp", d.Addr)
	if err != nil {
		t.Fatal(err)
	}
	m := &mute{Conn: nc}
	conn, chans, reqs, err := ssh.NewClientConn(m, d.Addr, &ssh.ClientConfig{User: "alice",
		Auth: []ssh.AuthMethod{ssh.PublicKeys(r.Keys["alice"])}, HostKeyCallback: ssh.InsecureIgnoreHostKey()})
	if err != nil {
		t.Fatal(err)
	}
	c := ssh.NewClient(conn, chans, reqs)
	defer c.Close()
	// With the first session it is asked. A busy host may find it silent already.
	if f, err := (locksrvtest.Conn{Client: c}).SFTP(); err == nil {
		defer f.Close()
	}
	m.on.Store(true)
	c.Wait()
	if !strings.Contains(d.Log.String(), "client is silent") {
		t.Errorf("the server did not notice that the client is silent")
	}
}

// Told to stop, the daemon lets a commit finish and tells its client, ends
// everything else, and accepts nothing new.
func TestStopLetsCommitFinish(t *testing.T) {
	r := locksrvtest.NewRealm(t)
	r.AddParcel(t, "alice", "p")
	begun, finish := make(chan struct{}), make(chan struct{})
	defer locksrv.AddVerb("isr_test_slow", func(ctx context.Context, begin func(context.Context) (context.Context, error), in io.Reader, out io.Writer) error {
		ctx, err := begin(ctx)
		if err != nil {
			return err
		}
		close(begun)
		<-finish
		if ctx.Err() != nil {
			return ctx.Err()
		}
		_, err = io.WriteString(out, "done\n")
		return err
	})()
	d := r.Start(t, nil)
	c := dial(t, r, d.Addr, "alice")
	idle, err := locksrvtest.Conn{Client: c}.SFTP()
	if err != nil {
		t.Fatal(err)
	}
	defer idle.Close()
	type result struct {
		out    []byte
		status int
	}
	done := make(chan result)
	go func() {
		out, _, status := locksrvtest.Exec(c, "isr_test_slow", nil)
		done <- result{out, status}
	}()
	<-begun
	stopped := make(chan error)
	go func() { stopped <- d.Stop() }()
	idle.Wait() // ended at once: the daemon is stopping
	select {
	case err := <-stopped:
		t.Fatalf("stopped before the verb finished: %v", err)
	default:
	}
	if _, errs, status := locksrvtest.Exec(c, proto.ListParcels, nil); status != int(parcel.Unreachable) {
		t.Errorf("new verb while stopping: status %d, %s; want %d", status, errs, parcel.Unreachable)
	}
	close(finish)
	if got := <-done; got.status != 0 || string(got.out) != "done\n" {
		t.Errorf("slow verb: status %d, %q; want it finished and told", got.status, got.out)
	}
	if err := <-stopped; err != nil {
		t.Errorf("serve: %v", err)
	}
	if nc, err := net.Dial("tcp", d.Addr); err == nil {
		nc.Close()
		t.Errorf("it still listens")
	}
}

func TestPanicEndsOneSessionOnly(t *testing.T) {
	r := locksrvtest.NewRealm(t)
	defer locksrv.AddVerb("isr_test_panic", func(context.Context, func(context.Context) (context.Context, error), io.Reader, io.Writer) error {
		panic("on purpose")
	})()
	d := r.Start(t, nil)
	c := dial(t, r, d.Addr, "alice")
	_, errs, status := locksrvtest.Exec(c, "isr_test_panic", nil)
	if status != int(parcel.Failed) || string(errs) != "isr: error: server: internal error\n" {
		t.Errorf("panic: status %d, %q", status, errs)
	}
	if _, _, status := locksrvtest.Exec(c, proto.ListParcels, nil); status != 0 {
		t.Errorf("after a panic: status %d on the same connection", status)
	}
	if !strings.Contains(d.Log.String(), "on purpose") {
		t.Errorf("the panic is not in the log")
	}
}

// Nothing that is secret is in the log.
func TestLogHoldsNoSecret(t *testing.T) {
	r := locksrvtest.NewRealm(t)
	p := r.AddParcel(t, "alice", "winxp")
	d := r.Start(t, nil)
	c := &locksrvtest.Client{Peer: locksrvtest.Conn{Client: dial(t, r, d.Addr, "alice")}, Parcel: "winxp"}
	lock, err := c.Acquire("h", parcel.NewID())
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
	cfg, err := p.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	secret := ""
	for lines := bufio.NewScanner(bytes.NewReader(cfg)); lines.Scan(); {
		if s, ok := strings.CutPrefix(lines.Text(), "SECRET:="); ok {
			secret = s
		}
	}
	log := d.Log.String()
	for what, s := range map[string]string{"nonce": lock.Nonce, "key": draft.Keyroot.Key.Hex(), "convergence secret": secret} {
		if s == "" || strings.Contains(log, s) {
			t.Errorf("the %s (%q) is in the log", what, s)
		}
	}
	if !strings.Contains(log, "committed") {
		t.Errorf("the commit is not in the log")
	}
}

// Who takes too long to log in is dropped, password or not.
func TestLoginGrace(t *testing.T) {
	r := locksrvtest.NewRealm(t)
	d := r.Start(t, func(d *locksrv.Daemon) { d.LoginTimeout = 300 * time.Millisecond })
	if err := r.Store.SetPassword("alice", []byte("correct horse")); err != nil {
		t.Fatal(err)
	}
	asked := make(chan struct{})
	nc, err := net.Dial("tcp", d.Addr)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	dropped := make(chan struct{})
	config := &ssh.ClientConfig{User: "alice", HostKeyCallback: ssh.InsecureIgnoreHostKey(), Auth: []ssh.AuthMethod{
		ssh.PasswordCallback(func() (string, error) {
			close(asked)
			<-dropped // a person who went for coffee
			return "correct horse", nil
		})}}
	failed := make(chan error, 1)
	go func() {
		_, _, _, err := ssh.NewClientConn(nc, d.Addr, config)
		failed <- err
	}()
	<-asked
	waitFor(t, d.Log, "no login")
	close(dropped)
	if err := <-failed; err == nil {
		t.Errorf("she was let in after the time for it")
	}
}

// waitFor waits until the log has the text.
func waitFor(t *testing.T, log *locksrvtest.Log, text string) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !strings.Contains(log.String(), text); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%q does not come into the log:\n%s", text, log)
		}
	}
}

// Under load the settings change, and change back, and nothing that goes on
// is dropped or refused.
func TestReconfigureDropsNothing(t *testing.T) {
	r := locksrvtest.NewRealm(t)
	r.AddParcel(t, "alice", "p")
	d := r.Start(t, nil)
	settings := d.Settings
	stop := make(chan struct{})
	var verbs atomic.Int64
	var busy sync.WaitGroup
	for range 3 {
		c := dial(t, r, d.Addr, "alice")
		f, err := locksrvtest.Conn{Client: c}.SFTP()
		if err != nil {
			t.Fatal(err)
		}
		busy.Go(func() {
			for {
				select {
				case <-stop:
					f.Close()
					return
				default:
				}
				if _, errs, status := locksrvtest.Exec(c, proto.ListParcels, nil); status != 0 {
					t.Errorf("verb: %d, %s", status, errs)
					return
				}
				if _, err := f.Stat("/p"); err != nil {
					t.Errorf("sftp: %v", err)
					return
				}
				verbs.Add(1)
			}
		})
	}
	for i := range 50 {
		s := settings
		s.Limits.PerUser, s.KeepAlive = 20+i, time.Duration(1+i)*time.Minute
		if err := d.Reconfigure(s); err != nil {
			t.Fatal(err)
		}
		for n := verbs.Load(); verbs.Load() == n && !t.Failed(); {
			time.Sleep(time.Millisecond)
		}
	}
	close(stop)
	busy.Wait()
	if err := d.Reconfigure(locksrv.Settings{}); err == nil {
		t.Errorf("it would serve without a host key")
	}
}

// Limits and host keys count for what comes after the change.
func TestReconfigure(t *testing.T) {
	r := locksrvtest.NewRealm(t)
	d := r.Start(t, nil)
	c := dial(t, r, d.Addr, "alice")
	s := d.Settings
	s.Limits = locksrv.Limits{PerAddress: 1, PerConn: 1}
	s.HostKeys = []ssh.Signer{r.NewKey(t, "other")}
	if err := d.Reconfigure(s); err != nil {
		t.Fatal(err)
	}
	more, err := net.Dial("tcp", d.Addr)
	if err != nil {
		t.Fatal(err)
	}
	closed(t, more)
	if _, errs, status := locksrvtest.Exec(c, proto.ListParcels, nil); status != 0 {
		t.Errorf("the connection that was there: %d, %s", status, errs)
	}
	c.Close()
	var key ssh.PublicKey
	config := &ssh.ClientConfig{User: "alice", Auth: []ssh.AuthMethod{ssh.PublicKeys(r.Keys["alice"])},
		HostKeyCallback: func(_ string, _ net.Addr, k ssh.PublicKey) error { key = k; return nil }}
	for deadline := time.Now().Add(time.Minute); ; {
		c, err := ssh.Dial("tcp", d.Addr, config)
		if err == nil {
			defer c.Close()
			break
		}
		if time.Now().After(deadline) { // the server learns of the end a moment later
			t.Fatal(err)
		}
	}
	if string(key.Marshal()) != string(r.Keys["other"].PublicKey().Marshal()) {
		t.Errorf("it shows the old host key")
	}
}

// One daemon serves on several addresses, and stops on all.
func TestSeveralListeners(t *testing.T) {
	r := locksrvtest.NewRealm(t)
	d := &locksrv.Daemon{Service: r.Service, Settings: locksrv.Settings{HostKeys: []ssh.Signer{r.NewKey(t, "host")}}}
	var lns []net.Listener
	for range 3 {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		lns = append(lns, ln)
	}
	served := make(chan error, 1)
	go func() { served <- d.Serve(context.Background(), lns...) }()
	for _, ln := range lns {
		dial(t, r, ln.Addr().String(), "alice")
	}
	lns[1].Close() // a listener that fails ends them all, with its error
	if err := <-served; err == nil || !strings.Contains(err.Error(), lns[1].Addr().String()) {
		t.Errorf("serve: %v; want which listener failed", err)
	}
	if !d.Stopping() {
		t.Errorf("it does not say that it stops")
	}
	for _, ln := range lns {
		if nc, err := net.Dial("tcp", ln.Addr().String()); err == nil {
			nc.Close()
			t.Errorf("%s still listens", ln.Addr())
		}
	}
}

// The log names a verb's parcel, and takes no option for one.
func TestLogNamesParcel(t *testing.T) {
	r := locksrvtest.NewRealm(t)
	r.AddParcel(t, "alice", "p")
	d := r.Start(t, nil)
	c := dial(t, r, d.Addr, "alice")
	for _, command := range []string{"isr_passwd --check", "isr_ls -L 3", "isr_ls p -L 3", "isr_checkparcel -c p"} {
		locksrvtest.Exec(c, command, nil)
	}
	for line := range strings.Lines(d.Log.String()) {
		if !strings.Contains(line, "msg=verb") {
			continue
		}
		_, name, named := strings.Cut(strings.TrimSpace(line), " parcel=")
		if named && name != "p" {
			t.Errorf("%s: want parcel=p or none", line)
		}
	}
	if n := strings.Count(d.Log.String(), " parcel=p"); n != 2 {
		t.Errorf("%d lines name the parcel, want 2:\n%s", n, d.Log)
	}
}
