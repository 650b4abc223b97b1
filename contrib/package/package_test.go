// Package package_test makes the Debian packages and tries them in a bare
// Debian root: installed, used, upgraded, purged. See try.
package package_test

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"isr/client/remote/sshdtest"
)

// maxExposure is what systemd-analyze may say of a unit: 0 is none, 10 all.
// isr-locksrv(8) states it.
const maxExposure = 1.5

func TestHardening(t *testing.T) {
	sshdtest.Require(t, "systemd-analyze")
	units, err := filepath.Glob("../systemd/*.service")
	if err != nil || len(units) < 2 {
		t.Fatal(units, err)
	}
	for _, unit := range units {
		out, err := exec.Command("systemd-analyze", "security", "--offline=true", "--no-pager", unit).CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v\n%s", unit, err, out)
		}
		m := regexp.MustCompile(`Overall exposure level for \S+: ([0-9.]+)`).FindSubmatch(out)
		if m == nil {
			t.Fatalf("%s: no score in\n%s", unit, out)
		}
		score, err := strconv.ParseFloat(string(m[1]), 64)
		if err != nil || score > maxExposure {
			t.Errorf("%s: exposure %s, %v; want at most %v\n%s", unit, m[1], err, maxExposure, out)
		}
		t.Logf("%s: exposure %s", unit, m[1])
	}
}

func TestScriptsLint(t *testing.T) {
	sshdtest.Require(t, "shellcheck")
	out, err := exec.Command("shellcheck", "build", "try", "try-inside", "try-boot", "postinst", "prerm", "postrm").CombinedOutput()
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

func TestPackages(t *testing.T) {
	if os.Getenv("ISR_TEST_REQUIRE") != "1" || os.Geteuid() != 0 {
		t.Skip("it takes root, a mirror and minutes: make test runs it")
	}
	sshdtest.Require(t, "debootstrap", "unshare", "ip", "tar", "dpkg")
	cache, err := os.UserCacheDir()
	if err != nil {
		cache = t.TempDir()
	}
	// A minute, but for a mirror that has to be asked again and again.
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "./try", filepath.Join(cache, "isr", "package"))
	// It takes what it made away when it is told to end.
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 30 * time.Second
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.HasSuffix(string(out), "try: done\n") {
		t.Errorf("%v\n%s", err, out)
	}
}
