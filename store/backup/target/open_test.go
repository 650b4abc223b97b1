package target

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"isr/store/parcel"
)

var ctx = context.Background()

func TestPlaces(t *testing.T) {
	for text, want := range map[string]sshPlace{
		"host:/srv/b":                {"host", "", "/srv/b"},
		"me@host:b":                  {"me@host", "", "b"},
		"host:":                      {"host", "", "."},
		"ssh://me@host:2222/srv/b":   {"me@host", "2222", "/srv/b"},
		"sftp://host/srv":            {"host", "", "/srv"},
		"ssh://[2001:db8::1]:22/~/b": {"2001:db8::1", "22", "b"},
		"ssh://host":                 {"host", "", "."},
		"ssh://host/with%20space/b":  {"host", "", "/with space/b"},
	} {
		if got, ok, err := parseSSH(text); err != nil || !ok || got != want {
			t.Errorf("%s: got %+v, %v, %v", text, got, ok, err)
		}
	}
	for _, text := range []string{"-oProxyCommand=id:x", "ssh://-oProxyCommand=id/x", "ssh://me:secret@host/x", "ssh://", "ssh:///x", ":x", "ssh://host/x?y",
		"host:a\nb", "a b:c", "ssh://host:port/x", "@:x", "me@:x"} {
		if got, ok, err := parseSSH(text); err == nil {
			t.Errorf("%q: got %+v, %v; want an error", text, got, ok)
		} else if strings.Contains(err.Error(), "secret") {
			t.Errorf("%q: the error has the password", text)
		}
	}
	for _, text := range []string{"/srv/a:b", "./a:b", "dir", "/"} {
		if _, ok, err := parseSSH(text); ok || err != nil {
			t.Errorf("%q: %v, %v; want a directory", text, ok, err)
		}
	}
	for _, text := range []string{"s3://", "s3:///x", "s3://b/../c", "s3://b/a//b", "s3://k:s@b/x", "s3://b/a\nb"} {
		if b, p, _, err := parseS3(text); err == nil {
			t.Errorf("%q: got %s %s, want an error", text, b, p)
		}
	}
	for _, text := range []string{"http://host/x", "rsync://x", ""} {
		if _, err := (Way{SSH: []string{"ssh"}}).Open(ctx, text, false); !errors.Is(err, parcel.ErrUsage) {
			t.Errorf("%q: %v", text, err)
		}
	}
}

// What ssh prints, and so the other host, is passed on line by line, without
// what a terminal would obey.
func TestWhatSSHSays(t *testing.T) {
	ssh := filepath.Join(t.TempDir(), "ssh")
	text := "#!/bin/sh\nprintf 'hello\\r\\n\\033]0;title\\007\\nlast \\033[2Jword' >&2\nexit 1\n"
	if err := os.WriteFile(ssh, []byte(text), 0o700); err != nil {
		t.Fatal(err)
	}
	var said bytes.Buffer
	for apart, want := range map[bool]bool{false: false, true: true} {
		said.Reset()
		_, err := OpenSFTP(ctx, "host:x", Way{SSH: []string{ssh}, Errors: &said, Apart: apart}, true)
		if !errors.Is(err, parcel.ErrUnreachable) || !strings.HasSuffix(err.Error(), ": last  [2Jword") {
			t.Errorf("got %v", err)
		}
		if e := new(parcel.Error); errors.As(err, &e) && strings.Contains(e.Hint, "without a terminal") != want {
			t.Errorf("apart %v: hint %q", apart, e.Hint)
		}
		if got, want := said.String(), "hello\n]0;title\nlast  [2Jword\n"; got != want {
			t.Errorf("said %q, want %q", got, want)
		}
	}
}
