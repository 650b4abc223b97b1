package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

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

// condition is that of scripts: [root] may become anybody.
func condition(cond string) (bool, error) {
	if cond != "root" {
		return false, fmt.Errorf("condition %s: unknown", cond)
	}
	return os.Geteuid() == 0, nil
}
