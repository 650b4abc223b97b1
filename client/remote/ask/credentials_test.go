package ask

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"
)

// What is forgotten is not in memory either.
func TestZero(t *testing.T) {
	c := new(Credentials)
	c.SetKey("file", []byte("a key"))
	c.SetPassword("alice@host", []byte("my password"))
	c.SetHostKey("host:22", []byte("a host key"))
	c.SetAgent("/socket")
	for _, held := range [][]byte{c.keys["file"], c.password["alice@host"]} {
		defer func() {
			if !bytes.Equal(held, make([]byte, len(held))) {
				t.Errorf("Zero leaves %q in memory", held)
			}
		}()
	}
	c.Zero()
	if text, _ := json.Marshal(c); string(text) != "{}" || !c.Empty() {
		t.Errorf("JSON after Zero: got %s, want {}", text)
	}
}

// What one process was told another knows; what both know is as the other has it.
func TestAdd(t *testing.T) {
	one, other := new(Credentials), new(Credentials)
	one.SetPassword("alice@host", []byte("old"))
	one.SetAgent("/socket")
	other.SetPassword("alice@host", []byte("new"))
	other.SetKey("file", []byte("a key"))
	other.SetHostKey("host:22", []byte("a host key"))
	text, err := json.Marshal(other)
	if err != nil {
		t.Fatal(err)
	}
	if err := one.Add(text); err != nil {
		t.Fatal(err)
	}
	password, _ := one.Password("alice@host")
	key, _ := one.Key("file")
	host, _ := one.HostKey("host:22")
	if string(password) != "new" || string(key) != "a key" || string(host) != "a host key" || one.Agent() != "/socket" {
		t.Errorf("got password %q, key %q, host key %q, agent %q", password, key, host, one.Agent())
	}
	one.DropPassword("alice@host")
	if p, held := one.Password("alice@host"); held {
		t.Errorf("dropped, and still %q", p)
	}
}

// Nothing that prints credentials, or cannot read them, shows them.
func TestNotShown(t *testing.T) {
	c := new(Credentials)
	c.SetPassword("x", []byte("my password"))
	var log bytes.Buffer
	slog.New(slog.NewTextHandler(&log, nil)).Info("x", "creds", c)
	shown := fmt.Sprintf("%v %+v %#v %s %q %x %d", c, c, c, c, c, c, c) + log.String()
	for _, secret := range []string{"my password", "6d79207061"} {
		if strings.Contains(shown, secret) {
			t.Errorf("%q can be read in %s", secret, shown)
		}
	}
	err := json.Unmarshal([]byte(`{"passwords":{"x":"my password"}}`), new(Credentials))
	if err == nil || strings.Contains(err.Error(), "my password") {
		t.Errorf("wrong JSON: got %v; want an error that does not quote it", err)
	}
}
