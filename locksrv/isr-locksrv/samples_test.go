package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/alecthomas/kong"

	"isr/client/remote/sshdtest"
)

// The samples of hooks are as shellcheck wants them. What they do is told in
// testdata/sample_*.txtar.
func TestSamplesLint(t *testing.T) {
	sshdtest.Require(t, "shellcheck")
	samples, err := filepath.Glob("../../hooks/samples/*")
	if err != nil || len(samples) < 4 {
		t.Fatal(samples, err)
	}
	if out, err := exec.Command("shellcheck", samples...).CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// condition is that of scripts: [command:parcel-create] and [root].
func condition(cond string) (bool, error) {
	if cond == "root" {
		return os.Geteuid() == 0, nil
	}
	want, ok := strings.CutPrefix(cond, "command:")
	if !ok {
		return false, fmt.Errorf("condition %s: unknown", cond)
	}
	parser, err := kong.New(new(cli), kong.Vars{"conf": confFile, "root": "R"})
	if err != nil {
		return false, err
	}
	for _, c := range parser.Model.Leaves(true) {
		name := c.Name
		for n := c.Parent; n.Parent != nil; n = n.Parent {
			name = n.Name + "-" + name
		}
		if name == want {
			return true, nil
		}
	}
	return false, nil
}
