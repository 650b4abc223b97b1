package client

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"isr/store/parcel"
)

type nobody struct{}

func (nobody) Say(string, ...any)                      {}
func (nobody) Detail(string, ...any)                   {}
func (nobody) Warn(string, ...any)                     {}
func (nobody) Progress(string, string, int64) Progress { return nobody{} }
func (nobody) Set(int64, int64)                        {}
func (nobody) Done()                                   {}

// TestFind: equal names, equal UUIDs, several servers and users.
func TestFind(t *testing.T) {
	c := newClient(Options{Dir: t.TempDir(), UI: nobody{}}, nil)
	for dir, st := range map[string]State{
		"a": {Parcel: "box", UUID: "u1", Server: "one", User: "alice"},
		"b": {Parcel: "box", UUID: "u2", Server: "two", User: "alice"},
		"c": {Parcel: "box", UUID: "u3", Server: "two", User: "bob"},
		"d": {Parcel: "pad", UUID: "u4", Server: "one", User: "alice"},
		"e": {Parcel: "pad", UUID: "u4", Server: "copy", User: "alice"},
		"f": {Parcel: "only", UUID: "u5", Server: "two", User: "alice"},
	} {
		st.Status = CheckedOut
		co := &Checkout{Dir: filepath.Join(c.Dir, dir), State: st}
		if err := os.Mkdir(co.Dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := co.save(); err != nil {
			t.Fatal(err)
		}
	}
	for _, v := range []struct {
		server, user string
		said         bool
		name, want   string // directory; "" none, "?" more than one
	}{
		{"one", "alice", false, "box", "a"},
		{"two", "alice", true, "box", "b"},
		{"two", "bob", true, "box", "c"},
		{"two", "", true, "box", "?"},
		{"", "", false, "box", "?"},
		{"", "bob", false, "box", "c"},
		{"three", "alice", true, "box", ""},
		{"one", "alice", false, "u2", "b"}, // the default server is no reason
		{"one", "alice", true, "u2", ""},   // but one that was asked for is
		{"two", "alice", true, "u2", "b"},
		{"", "", false, "u3", "c"},
		{"", "", false, "u4", "?"},
		{"copy", "alice", true, "u4", "e"},
		{"one", "alice", false, "u4", "d"},
		{"two", "alice", false, "u4", "?"},
		{"one", "alice", false, "only", ""},
		{"", "", false, "only", "f"},
		{"", "", false, "u9", ""},
	} {
		c.Server, c.User, c.Said = v.server, v.user, v.said
		co, err := c.Find(v.name)
		got := ""
		switch {
		case err == nil:
			got = filepath.Base(co.Dir)
		case errors.Is(err, parcel.ErrUsage):
			got = "?"
		case !errors.Is(err, parcel.ErrNoParcel):
			t.Errorf("%+v: %v", v, err)
		}
		if got != v.want {
			t.Errorf("%+v: found %q: %v", v, got, err)
		}
	}
}
