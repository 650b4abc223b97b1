package conf

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"pgregory.net/rapid"

	"isr/store/parcel"
)

func TestEdit(t *testing.T) {
	for _, c := range []struct{ before, add, after string }{
		{"", "/a", "lookaside = /a\n"},
		{"server = x", "/a", "server = x\nlookaside = /a\n"},
		{"# mine\r\n\n  server=x # y\n", "/a b/c#d=e", "# mine\r\n\n  server=x # y\nlookaside = /a b/c#d=e\n"},
		{"broken line\n", "HTTP://h/x", "broken line\nlookaside = HTTP://h/x\n"},
	} {
		file := filepath.Join(t.TempDir(), "rc")
		if c.before != "" {
			if err := os.WriteFile(file, []byte(c.before), 0o640); err != nil {
				t.Fatal(err)
			}
		}
		if err := Add("/home/x", file, "lookaside", c.add); err != nil {
			t.Fatal(err)
		}
		if got, _ := os.ReadFile(file); string(got) != c.after {
			t.Errorf("add %s to %q: %q, want %q", c.add, c.before, got, c.after)
		}
		want := os.FileMode(0o600)
		if c.before != "" {
			want = 0o640
		}
		if fi, _ := os.Stat(file); fi.Mode() != want {
			t.Errorf("mode %v, want %v", fi.Mode(), want)
		}
		n, err := Remove("/home/x", file, "lookaside", c.add)
		if err != nil || n != 1 {
			t.Errorf("remove: %d, %v", n, err)
		}
		before := c.before
		if before != "" && !strings.HasSuffix(before, "\n") {
			before += "\n"
		}
		if got, _ := os.ReadFile(file); string(got) != before {
			t.Errorf("added and removed: %q, want %q", got, before)
		}
		if left, _ := filepath.Glob(filepath.Dir(file) + "/.*"); len(left) > 0 {
			t.Errorf("left behind: %v", left)
		}
	}
	for _, bad := range []string{"", " /a", "/a ", "/a #b", "/a\nserver = evil", `/a\hb`, "#", "~/x"} {
		file := filepath.Join(t.TempDir(), "rc")
		if err := Add("/home/x", file, "lookaside", bad); !errors.Is(err, parcel.ErrUsage) {
			t.Errorf("add %q: %v", bad, err)
		}
		if _, err := os.Stat(file); err == nil {
			t.Errorf("add %q: it made the file", bad)
		}
	}
}

// TestEditExpands: what a line means counts, not how it is written.
func TestEditExpands(t *testing.T) {
	file := filepath.Join(t.TempDir(), "rc")
	text := "lookaside = ~/a\nlookaside=\\h/a # again\nlookaside = /home/x/ab\n# lookaside = ~/a\n"
	os.WriteFile(file, []byte(text), 0o600)
	n, err := Remove("/home/x", file, "lookaside", "/home/x/a")
	if got, _ := os.ReadFile(file); err != nil || n != 2 || string(got) != "lookaside = /home/x/ab\n# lookaside = ~/a\n" {
		t.Errorf("%d, %v, %q", n, err, got)
	}
}

// TestEditLink: a link stays one, also to a file that is not there yet.
func TestEditLink(t *testing.T) {
	dir := t.TempDir()
	os.Mkdir(filepath.Join(dir, "dotfiles"), 0o700)
	file := filepath.Join(dir, "rc")
	if err := os.Symlink("dotfiles/rc", file); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := Add("/home/x", file, "lookaside", "/a"); err != nil {
			t.Fatal(err)
		}
	}
	if to, err := os.Readlink(file); err != nil || to != "dotfiles/rc" {
		t.Errorf("link: %q, %v", to, err)
	}
	if got, _ := os.ReadFile(filepath.Join(dir, "dotfiles/rc")); string(got) != "lookaside = /a\nlookaside = /a\n" {
		t.Errorf("file: %q", got)
	}
}

// TestEditAtOnce: none of those who add at a time is lost.
func TestEditAtOnce(t *testing.T) {
	file := filepath.Join(t.TempDir(), "rc")
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			if err := Add("/home/x", file, "lookaside", fmt.Sprintf("/%d", i)); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	c, err := Load("/home/x", []string{file})
	if err != nil || len(c.List("lookaside")) != 20 {
		t.Errorf("%v, %v", c.List("lookaside"), err)
	}
}

// TestEditProperty: what was added is what is read, and nothing else changes.
func TestEditProperty(t *testing.T) {
	dir := t.TempDir()
	rapid.Check(t, func(t *rapid.T) {
		file := filepath.Join(dir, "rc")
		before := strings.Join(rapid.SliceOf(rapid.SampledFrom([]string{"server = h", "# c", "", "  ", "lookaside = /b", "userid = u # x"})).Draw(t, "lines"), "\n")
		if err := os.WriteFile(file, []byte(before), 0o600); err != nil {
			t.Fatal(err)
		}
		value := "/" + rapid.String().Draw(t, "value")
		err := Add("/home/x", file, "lookaside", value)
		after, _ := os.ReadFile(file)
		if err != nil {
			if string(after) != before {
				t.Fatalf("refused, and the file is %q", after)
			}
			return
		}
		c, err := Load("/home/x", []string{file})
		if err != nil {
			t.Fatal(err)
		}
		list := c.List("lookaside")
		if list[len(list)-1] != value || !strings.HasPrefix(string(after), before) {
			t.Fatalf("%q: %q", value, after)
		}
	})
}
