package client

import (
	"slices"
	"testing"

	"isr/store/parcel"
)

// quiet is a UI that keeps what it is warned of.
type quiet struct{ warned []string }

func (q *quiet) Say(string, ...any)                         {}
func (q *quiet) Detail(string, ...any)                      {}
func (q *quiet) Warn(format string, _ ...any)               { q.warned = append(q.warned, format) }
func (q *quiet) Progress(_, _ string, _ int64) (p Progress) { return p }

func TestIsServer(t *testing.T) {
	for _, c := range []struct {
		src, server string
		want        bool
	}{
		{"SFTP://host/box", "host", true},
		{"sftp://HOST/box", "alice@host", true},
		{"SFTP://alice@host:22/box", "host", true},
		{"SFTP://host:2222/box", "host:2222", true},
		{"SFTP://host/box", "host:2222", true},
		{"SFTP://host:2222/box", "host", false},
		{"SFTP://[::1]:22/x", "[::1]:22", true},
		{"SFTP://other/box", "host", false},
		{"SFTP:///box", "", false},
		{"HTTP://host/box", "host", false},
		{"/box", "host", false},
	} {
		if got := isServer(c.src, c.server); got != c.want {
			t.Errorf("%s is the server %s: %t", c.src, c.server, got)
		}
	}
}

// TestSources: the order is that of the lines. The lock server is asked last
// in any case; before that only if a source comes after it.
func TestSources(t *testing.T) {
	for _, x := range []struct{ src, want []string }{
		{nil, nil},
		{[]string{"SFTP://host/box"}, nil},
		{[]string{"HTTP://a/", "FILE:///b"}, []string{"http://a/", "file:///b"}},
		{[]string{"HTTP://a/", "SFTP://host/box"}, []string{"http://a/"}},
		{[]string{"SFTP://host/box", "HTTP://a/"}, []string{"source", "http://a/"}},
		{[]string{"HTTP://a/", "SFTP://host/box", "SFTP://host/", "/nfs"}, []string{"http://a/", "source", "/nfs"}},
		{[]string{"FTP://x/", "HTTP://a/"}, []string{"http://a/"}},
		{[]string{"SFTP://host/box", "FTP://x/"}, nil},
	} {
		ui := new(quiet)
		c := newClient(Options{UI: ui}, nil)
		var got []string
		for _, r := range c.sources(&parcel.Config{Src: x.src}, "host", nil) {
			got = append(got, r.Name)
		}
		if !slices.Equal(got, x.want) {
			t.Errorf("%q: %q, want %q", x.src, got, x.want)
		}
		c.Close()
	}
}

func TestAddRungs(t *testing.T) {
	names := func(rs []RungStat) (ns []string) {
		for _, r := range rs {
			ns = append(ns, r.Name)
		}
		return ns
	}
	checkout := []RungStat{{Name: "hoard"}, {Name: "/usb", Hits: 2, Bytes: 10}, {Name: "source", Hits: 1}}
	run := []RungStat{{Name: "modified"}, {Name: "hoard", Misses: 1}, {Name: "/usb", Hits: 3, Bytes: 5, Corrupt: 1}, {Name: "http://a"}, {Name: "source"}}
	sum := addRungs(addRungs(nil, checkout), run)
	if want := []string{"modified", "hoard", "/usb", "http://a", "source"}; !slices.Equal(names(sum), want) {
		t.Errorf("%q, want %q", names(sum), want)
	}
	if want := (RungStat{Name: "/usb", Hits: 5, Bytes: 15, Corrupt: 1}); sum[2] != want {
		t.Errorf("%+v, want %+v", sum[2], want)
	}
	twice := addRungs(nil, []RungStat{{Name: "source", Hits: 1}, {Name: "a"}, {Name: "source", Hits: 2}})
	if want := []string{"source", "a"}; !slices.Equal(names(twice), want) || twice[0].Hits != 3 {
		t.Errorf("%+v", twice)
	}
}
