package conf

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"isr/store/parcel"
)

func load(t *testing.T, texts ...string) (*Config, error) {
	t.Helper()
	dir := t.TempDir()
	var files []string
	for i, text := range texts {
		f := filepath.Join(dir, string(rune('a'+i)))
		if err := os.WriteFile(f, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		files = append(files, f)
	}
	return Load("/home/alice", append(files, filepath.Join(dir, "none")))
}

func TestOrder(t *testing.T) {
	c, err := load(t, "server = site\nhoard_quota=2G # a comment\n\n# more\n", "userid = al#ice\nserver=mine=too\nisrdir = \\h/x\n")
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"server": "mine=too", "userid": "al#ice", "isrdir": "/home/alice/x", "hoard_quota": "2G", "hostname": "", "ls_versions": "5"} {
		if got := c.Get(name); got != want {
			t.Errorf("%s: got %q, want %q", name, got, want)
		}
	}
	if c.Size("hoard_quota") != 2<<30 || c.Count("ls_versions") != 5 || c.Bool("dirtometer") || c.Duration("auth_lifetime") != 12*time.Hour || c.Duration("connect_timeout") != 0 {
		t.Error("typed values are wrong")
	}
	from := make(map[string]string)
	for _, v := range c.All() {
		from[v.Name] = filepath.Base(v.From)
	}
	if from["server"] != "b:2" || from["hoard_quota"] != "a:2" || from["patience"] != "default" {
		t.Errorf("from: %v", from)
	}
	if len(c.All()) != len(variables) {
		t.Errorf("%d values of %d variables", len(c.All()), len(variables))
	}
	if err := c.Set("server", "typed", "command line"); err != nil || c.Get("server") != "typed" {
		t.Errorf("set: %v, %s", err, c.Get("server"))
	}
}

func TestLists(t *testing.T) {
	c, err := load(t, "lookaside=/a\nlookaside=~/b\n", "lookaside=/c\nqemu.command=/opt/q\n")
	if err != nil || !reflect.DeepEqual(c.List("lookaside"), []string{"/a", "/home/alice/b", "/c"}) {
		t.Errorf("got %q, %v", c.List("lookaside"), err)
	}
	if got := c.Commands(); !reflect.DeepEqual(got, map[string]string{"qemu": "/opt/q"}) {
		t.Errorf("commands: %v", got)
	}
	if c, err = load(t, "lookaside=/a\n", "lookaside=\nlookaside=/c\n"); err != nil || !reflect.DeepEqual(c.List("lookaside"), []string{"/c"}) {
		t.Errorf("got %q, %v", c.List("lookaside"), err)
	}
	if c, err = load(t, ""); err != nil || c.List("lookaside") != nil {
		t.Errorf("got %q, %v", c.List("lookaside"), err)
	}
}

// What is not understood names its file and its line.
func TestRefused(t *testing.T) {
	for _, line := range []string{"frobnicate = 1", "server", "= x", "hoard_quota = much", "hoard_quota = -1", "hoard_quota = 9999999999T", "dirtometer = perhaps",
		"ls_versions = 0", "ls_versions = x", "compression = hard", "patience = ", "auth_lifetime = -1h", "bwlimit = -1", "chunk_cache = 0", "Q.command = x"} {
		_, err := load(t, "server=x\n"+line+"\n")
		if !errors.Is(err, parcel.ErrUsage) || !strings.Contains(err.Error(), "a: line 2: ") {
			t.Errorf("%q: got %v", line, err)
		}
	}
	if _, err := Load("/", []string{t.TempDir()}); err == nil {
		t.Error("a directory is read as a file")
	}
}

func TestObsolete(t *testing.T) {
	c, err := load(t, "server=x\nretries = 5\n")
	if err != nil || len(c.Notices()) != 1 || !strings.Contains(c.Notices()[0], "a:2: retries") {
		t.Errorf("got %v, %v", c.Notices(), err)
	}
}

func TestParseSize(t *testing.T) {
	for s, want := range map[string]int64{"0": 0, "1": 1, "7B": 7, "1K": 1024, "2 M": 2 << 20, "3GiB": 3 << 30, "1t": 1 << 40} {
		if got, err := ParseSize(s); err != nil || got != want {
			t.Errorf("%q: got %d, %v", s, got, err)
		}
	}
	for _, s := range []string{"", "K", "1X", "1KK", "0x1", "1.5G", "-1", "1 2"} {
		if got, err := ParseSize(s); err == nil {
			t.Errorf("%q: got %d", s, got)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("server = x # y\nlookaside=/a\nqemu.command = z")
	f.Fuzz(func(t *testing.T, text string) {
		c := &Config{home: "/h", values: make(map[string][]Value)}
		if c.parse("f", text) != nil {
			return
		}
		for _, v := range c.All() {
			if v.From == "" || v.Name == "" {
				t.Errorf("value %+v", v)
			}
		}
		c.Commands()
	})
}

// isr.conf(5) has every variable, and no other.
func TestManual(t *testing.T) {
	page, err := os.ReadFile("../../man/isr.conf.5")
	if err != nil {
		t.Fatal(err)
	}
	has := make(map[string]bool)
	for line := range strings.Lines(string(page)) {
		if names, ok := strings.CutPrefix(line, ".It Va "); ok {
			for _, n := range strings.Split(strings.TrimSpace(names), " , ") {
				has[n] = true
			}
		}
	}
	if !strings.Contains(string(page), ".It Ar vmm Ns Va .command\n") {
		t.Error("VMM.command has no entry")
	}
	for _, v := range variables {
		if !has[v.Name] {
			t.Errorf("variable %s has no entry", v.Name)
		}
		delete(has, v.Name)
	}
	for name := range obsolete {
		if !has[name] {
			t.Errorf("obsolete variable %s has no entry", name)
		}
		delete(has, name)
	}
	for name := range has {
		t.Errorf("entry %s is of no variable", name)
	}
}
