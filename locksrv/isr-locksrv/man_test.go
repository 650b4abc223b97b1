package main

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/alecthomas/kong"
)

// TestMan: isr-locksrv(8) has every command, twice (what to type and what it
// does), and every option; and no option that there is not.
func TestMan(t *testing.T) {
	p, err := os.ReadFile("../../man/isr-locksrv.8")
	if err != nil {
		t.Fatal(err)
	}
	page := string(p)
	synopsis, _, _ := strings.Cut(page, ".Sh DESCRIPTION")
	_, parser, err := grammar()
	if err != nil {
		t.Fatal(err)
	}
	flags := map[string]bool{"-help": true}
	note := func(fs []*kong.Flag) {
		for _, f := range fs {
			flags["-"+f.Name] = true
			if f.Short != 0 {
				flags[string(f.Short)] = true
			}
			if f.Name == "help" || f.Hidden {
				continue
			}
			long := regexp.MustCompile(`Fl -` + f.Name + `\b`).MatchString(page)
			if !long && (f.Short == 0 || !strings.Contains(page, "Fl "+string(f.Short))) {
				t.Errorf("option --%s: not in isr-locksrv(8)", f.Name)
			}
		}
	}
	note(parser.Model.Flags)
	for _, c := range parser.Model.Leaves(true) {
		note(c.Flags)
		path := c.Name
		for n := c.Parent; n.Parent != nil; n = n.Parent {
			path = n.Name + " " + path
		}
		if !strings.Contains(synopsis, ".Cm "+path) {
			t.Errorf("command %s: not in the synopsis of isr-locksrv(8)", path)
		}
		if path != "version" && !strings.Contains(page, ".It Cm "+path) {
			t.Errorf("command %s: not described in isr-locksrv(8)", path)
		}
	}
	for _, m := range regexp.MustCompile(`\bFl (\S+)`).FindAllStringSubmatch(page, -1) {
		if !flags[m[1]] {
			t.Errorf("isr-locksrv(8) has -%s, isr-locksrv has not", m[1])
		}
	}
}
