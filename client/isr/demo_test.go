package main

import (
	"os"
	"os/exec"
	"testing"

	"isr/client/remote/sshdtest"
)

// TestDemo runs what make demo runs.
func TestDemo(t *testing.T) {
	requireFUSE(t)
	sshdtest.Require(t, "qemu-system-x86_64")
	t.Parallel()
	cmd := exec.Command("../../contrib/demo")
	cmd.Env = append(os.Environ(), "ISR_BIN="+quick, "TMPDIR="+shortDir(t))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("demo: %v\n%s", err, out)
	}
}
