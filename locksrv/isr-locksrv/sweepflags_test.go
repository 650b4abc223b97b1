package main

import (
	"bytes"
	"cmp"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/alecthomas/kong"

	"isr/locksrv/locksrvtest"
)

// Absurd values of flags, by what they are.
var (
	absurdTexts   = []string{"", "a\nb", "\x1b]0;owned\x07", "nul\x00", "\xff\xfe", strings.Repeat("a", 70000), "../../bob", "$(reboot)", "-1"}
	absurdNumbers = []string{"", "0", "-1", "1e99", "9223372036854775808", "99999999999999999999", "NaN", "0x10", "1.5", " 1", "１", "\x1b[2J"}
	absurdSizes   = append([]string{"-1K", "1EiB", "8388608T", "9223372036854775807", "K", "1e3M"}, absurdNumbers...)
	absurdTimes   = append([]string{"10000y", "-1h", "31 February", "2026-02-31", "9999-12-31", "0000-00-00", "99999999999h", "1e99h"}, absurdNumbers...)
)

// absurd are the values to try of a flag.
func absurd(f *kong.Flag) []string {
	t := f.Target.Type()
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	switch {
	case t.Kind() == reflect.Bool:
		return []string{"maybe", "2"}
	case t == reflect.TypeFor[size](), t == reflect.TypeFor[quota]():
		return absurdSizes
	case t == reflect.TypeFor[time.Duration](), slices.Contains([]string{"WHEN", "TIME", "YYYY-MM-DD"}, f.PlaceHolder):
		return absurdTimes
	case t.Kind() == reflect.Int, t.Kind() == reflect.Uint, slices.Contains([]string{"N", "V", "PART", "PERCENT"}, f.PlaceHolder):
		return absurdNumbers
	}
	return absurdTexts
}

// freshNames are arguments in place of good ones, for commands that make things.
var freshNames = map[string]string{"user add name": "carol", "parcel create parcel": "fresh", "parcel import parcel": "fresh"}

// meant are values that look absurd and mean something, by flag.
func meant(path string, f *kong.Flag, v string) bool {
	switch f.Name {
	case "comment", "why":
		return len(v) < 70000 // any text; what is not fit for a terminal is not kept
	case "ssh", "s3-endpoint":
		return true // of targets elsewhere, and this one is here
	case "keep", "keep-daily", "keep-weekly", "keep-monthly", "keep-yearly", "days", "number":
		return v == "0" || v == "0x10" || v == "9223372036854775808" && strings.HasPrefix(path, "backup")
	case "sample":
		return v == "1.5" || v == "0" && path == "backup verify"
	case "since", "until":
		return v == "0" || v == "9999-12-31"
	case "quota":
		return v == "9223372036854775807"
	case "expires":
		return v == "9999-12-31"
	case "version":
		return v == "0"
	case "memory", "chunk-size", "mem-chunk":
		return v == "0" && path != "parcel copy"
	}
	return false
}

// TestSweepFlags gives every flag of every command absurd values: a clear
// error and nothing changed, or what is meant, with nothing kept that is not
// fit for a terminal; and without much work.
func TestSweepFlags(t *testing.T) {
	r := locksrvtest.NewRealm(t)
	r.AddParcel(t, "alice", "winxp")
	dir := t.TempDir()
	t.Setenv("ISR_ROOT", r.Root)
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	stdin := os.Stdin
	os.Stdin = null
	defer func() { os.Stdin = stdin }()
	if err := os.WriteFile(filepath.Join(dir, "image"), make([]byte, 4096), 0o600); err != nil {
		t.Fatal(err)
	}
	r.NewKey(t, "new")
	goodFiles := map[string]string{"file": filepath.Join(dir, "new"), "target": filepath.Join(dir, "backup"), "dir": filepath.Join(dir, "out")}
	if text, err := os.ReadFile(r.Files["new"] + ".pub"); err != nil {
		t.Fatal(err)
	} else if err := os.WriteFile(goodFiles["file"], text, 0o600); err != nil {
		t.Fatal(err)
	}
	if status, out := inProcess(t, []string{"backup", "make", goodFiles["target"]}); status != 0 {
		t.Fatal(out)
	}
	// Serve gets no further than this port, and makes the host's keys.
	const nowhere = "127.0.0.1:99999"
	if status, out := inProcess(t, []string{"serve", "--listen", nowhere}); status == 0 || !strings.Contains(out, "99999") {
		t.Fatal(out)
	}
	good := filepath.Join(t.TempDir(), "good")
	copyTree(t, r.Root, good)
	before := tree(t, r.Root)

	_, parser, err := grammar()
	if err != nil {
		t.Fatal(err)
	}
	done := make(map[string]bool)
	turn := 0
	for _, c := range parser.Model.Leaves(false) {
		path := commandPath(c)
		if slices.Contains([]string{"shell", "complete", "completion", "version", "help", "links"}, path) {
			continue
		}
		var positional []string
		for _, q := range c.Positional {
			v := cmp.Or(freshNames[path+" "+q.Name], goodFiles[q.Name], goodNames[q.Name], strings.ReplaceAll(goodOthers[q.Name], "DIR", dir))
			positional = append(positional, v)
		}
		for _, f := range c.Flags {
			shared := strings.Fields(path)[0] + " " + f.Name
			switch {
			case f.Name == "help", f.Name == "root", f.Name == "follow",
				done[shared] && (f.IsBool() || f.Name == "ssh" || f.Name == "s3-endpoint"):
				continue
			}
			done[shared] = true
			turn++
			for i, v := range absurd(f) {
				if (i+turn)%2 == 0 || !inTurn((i+turn)/2) { // the next flag of the kind gets it
					continue
				}
				args := append(strings.Fields(path), goodFlags[path]...)
				switch path {
				case "serve":
					args = append(args, "--listen="+nowhere)
				case "parcel rollback", "parcel unlock":
					args = append(args, "--yes")
				}
				args = append(append(args, "--"+f.Name+"="+v, "--"), positional...)
				what := fmt.Sprintf("%s --%s=%.60q", path, f.Name, v)
				start := locksrvtest.Worked(t)
				status, out := inProcess(t, args)
				if d := locksrvtest.Worked(t) - start; d > 5*time.Second {
					t.Errorf("%s: takes %v", what, d)
				}
				if i := strings.IndexFunc(out, func(r rune) bool { return r != '\n' && !unicode.IsPrint(r) }); i >= 0 {
					t.Errorf("%s: %q reaches the terminal", what, out[i:min(i+100, len(out))])
				}
				if len(out) > 5000 {
					t.Errorf("%s: says %d bytes", what, len(out))
				}
				if status == 0 {
					if !meant(path, f, v) {
						t.Errorf("%s: is taken: %.300s", what, out)
					}
					unfit(t, what, r.Root)
					copyTree(t, good, r.Root)
					os.RemoveAll(goodFiles["dir"])
					continue
				}
				if !strings.Contains(out, "error: ") || status > 22 && status != 80 {
					t.Errorf("%s: exit status %d: %.300s", what, status, out)
				}
				if path == "serve" && strings.Contains(out, nowhere) && f.Name != "listen" && v != "" && !strings.Contains("0 0x10", v) {
					t.Errorf("%s: is taken: %.300s", what, out)
				}
			}
			if after := tree(t, r.Root); after != before {
				t.Errorf("%s --%s: something refused is done:\n%s", path, f.Name, difference(before, after))
				copyTree(t, good, r.Root)
			}
		}
	}
}

// unfit reports records that would harm the terminal of whoever reads them.
func unfit(t *testing.T, what, root string) {
	t.Helper()
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() || strings.Contains(path, "/hdk/") {
			return err
		}
		text, err := os.ReadFile(path)
		if err == nil && bytes.ContainsFunc(text, func(r rune) bool { return r != '\n' && !unicode.IsPrint(r) }) {
			t.Errorf("%s: %s: %q", what, path, text)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}
