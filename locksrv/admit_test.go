package locksrv

import (
	"errors"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"isr/store/authkey"
	"isr/store/parcel"
)

func TestAddress(t *testing.T) {
	for text, want := range map[string]string{
		"192.0.2.1:22":              "192.0.2.1",
		"[::ffff:192.0.2.1]:22":     "192.0.2.1",
		"[2001:db8:1:2:3:4:5:6]:22": "2001:db8:1:2::/64",
		"[2001:db8:1:2::1]:1":       "2001:db8:1:2::/64",
		"[2001:db8:1:3::1]:1":       "2001:db8:1:3::/64",
		"[fe80::1%eth0]:22":         "fe80::/64",
		"[::1]:22":                  "::/64",
	} {
		a, err := net.ResolveTCPAddr("tcp", text)
		if err != nil {
			t.Fatal(err)
		}
		if got := address(a); got != want {
			t.Errorf("%s: counted as %s, want %s", text, got, want)
		}
	}
	if got := address(&net.UnixAddr{Name: "/run/x", Net: "unix"}); got != "/run/x" {
		t.Errorf("unix: %s", got)
	}
}

func TestCounter(t *testing.T) {
	var c counter
	a1, ok1 := c.enter("a", 2, 3)
	_, ok2 := c.enter("a", 2, 3)
	_, ok3 := c.enter("a", 2, 3)
	_, ok4 := c.enter("b", 2, 3)
	_, ok5 := c.enter("c", 2, 3)
	if got, want := []bool{ok1, ok2, ok3, ok4, ok5}, []bool{true, true, false, true, false}; !slices.Equal(got, want) {
		t.Errorf("entered: %v, want %v", got, want)
	}
	a1()
	a1() // a second time does nothing
	if _, ok := c.enter("a", 2, 3); !ok {
		t.Errorf("no room after one left")
	}
	if _, ok := c.enter("a", 2, 3); ok {
		t.Errorf("room for two after one left")
	}
}

type owners map[string]string // marshalled key → user

func (o owners) UserOfKey(k ssh.PublicKey, from netip.Addr) (string, authkey.Key, error) {
	key := authkey.Key{PublicKey: k, Rights: authkey.Rights{ReadOnly: true}}
	if u, ok := o[string(k.Marshal())]; ok {
		return u, key, key.Admits(time.Now(), from)
	}
	return "", key, parcel.NewError(parcel.Denied, "nobody's")
}

func TestPrincipal(t *testing.T) {
	alice, stranger := newSigner(t).PublicKey(), newSigner(t).PublicKey()
	o := owners{string(alice.Marshal()): "alice"}
	for _, test := range []struct {
		login login
		want  string
	}{
		{login{name: "alice", key: alice}, "alice"},
		{login{name: "isr", key: alice}, "alice"},
		{login{name: "bob", key: alice}, ""},
		{login{name: "root", key: alice}, ""},
		{login{name: "", key: alice}, ""},
		{login{name: "alice", key: stranger}, ""},
		{login{name: "isr", key: stranger}, ""},
		{login{name: "alice"}, ""},
		{login{name: "isr"}, ""},
		{login{name: "alice", key: alice, changed: true}, ""},
		{login{name: "isr", key: alice, changed: true}, ""},
		{login{name: "bob", proven: "bob"}, "bob"},
		{login{name: "alice", proven: "bob"}, ""},
		{login{name: "isr", proven: "bob"}, ""},
		{login{name: "isr", proven: "isr"}, ""},
		{login{name: "bob", proven: "bob", changed: true}, ""},
		{login{name: "alice", proven: "alice", key: alice}, ""},
		{login{name: "bob", proven: "bob", key: alice}, ""},
	} {
		got, rights, err := principal(o, test.login)
		if rights.ReadOnly != (got != "" && test.login.key != nil) {
			t.Errorf("%+v: rights %+v; want those of the key", test.login, rights)
		}
		if got != test.want || (err == nil) != (test.want != "") || err != nil && !errors.Is(err, parcel.ErrDenied) {
			t.Errorf("%+v: got %q, %v; want %q", test.login, got, err, test.want)
		}
	}
}

// What the libraries say was proven, and what was verified, must agree.
func TestLoginWithoutProofHasNoKey(t *testing.T) {
	key, other := newSigner(t).PublicKey(), newSigner(t).PublicKey()
	for _, test := range []struct {
		proven, said ssh.PublicKey
		password     string
		by           *ssh.Permissions
		want         login
	}{
		{key, key, "", permit(byKey(key)), login{key: key}},
		{key, key, "", permit(byKey(other)), login{}},
		{key, key, "", permit(byPassword("alice")), login{}},
		{key, key, "", permit(""), login{}},
		{key, key, "", nil, login{}},
		{nil, key, "", permit(byKey(key)), login{}},
		{other, key, "", permit(byKey(key)), login{}},
		{key, nil, "", permit(byKey(key)), login{}},
		{nil, nil, "", nil, login{}},
		{nil, nil, "alice", permit(byPassword("alice")), login{proven: "alice"}},
		{nil, key, "alice", permit(byPassword("alice")), login{proven: "alice"}},
		{nil, key, "alice", permit(byKey(key)), login{}},
		{nil, nil, "alice", permit(byPassword("bob")), login{}},
		{nil, nil, "", permit(byPassword("alice")), login{}},
		{nil, nil, "alice", nil, login{}},
	} {
		c := &conn{proven: test.proven, password: test.password}
		test.want.name = "alice"
		if got := c.login("alice", "alice", test.said, test.by); !reflect.DeepEqual(got, test.want) {
			t.Errorf("proven %v %q, said %v, %v: got %+v, want %+v", test.proven, test.password, test.said, test.by, got, test.want)
		}
	}
}

func TestHostKeys(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "hostkeys")
	// Several daemons that start at once on one realm have the same keys.
	var wg sync.WaitGroup
	found := make([][]ssh.Signer, 3)
	for i := range found {
		wg.Go(func() {
			var err error
			if found[i], err = HostKeys(dir); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if t.Failed() {
		return
	}
	for i, f := range found {
		if len(f) != 2 {
			t.Fatalf("%d keys, want 2", len(f))
		}
		for j := range f {
			if got, want := ssh.FingerprintSHA256(f[j].PublicKey()), ssh.FingerprintSHA256(found[0][j].PublicKey()); got != want {
				t.Errorf("daemon %d, key %d: %s, another has %s", i, j, got, want)
			}
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		fi, err := e.Info()
		if err != nil {
			t.Fatal(err)
		}
		want := fs.FileMode(0o600)
		if filepath.Ext(e.Name()) == ".pub" {
			want = 0o644
		}
		if fi.Mode() != want {
			t.Errorf("%s: mode %v, want %v", e.Name(), fi.Mode(), want)
		}
	}
	if len(entries) != 4 {
		t.Errorf("%d files, want two keys and their public halves: %v", len(entries), entries)
	}
	// A key that others can read, and one that is none, are not served.
	name := filepath.Join(dir, "ssh_host_ed25519_key")
	if err := os.Chmod(name, 0o640); err != nil {
		t.Fatal(err)
	}
	if _, err := HostKeys(dir); err == nil {
		t.Errorf("a key that others can read: no error")
	}
	if err := os.WriteFile(name, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	os.Chmod(name, 0o600)
	if _, err := HostKeys(dir); err == nil {
		t.Errorf("a key that is none: no error")
	}
}
