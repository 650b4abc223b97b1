package sshdtest

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// ssh runs the real client against s, from a home made by it.
func ssh_(t *testing.T, s *Server, args ...string) (string, error) {
	t.Helper()
	Require(t, "ssh")
	ssh := filepath.Join(s.Home(t, ""), ".ssh")
	base := []string{"-F", "none", "-o", "BatchMode=yes", "-o", "IdentityFile=" + ssh + "/id_ed25519", "-o", "IdentityAgent=none",
		"-o", "UserKnownHostsFile=" + ssh + "/known_hosts", "-p", strings.TrimPrefix(s.Addr, "127.0.0.1:"), "127.0.0.1"}
	out, err := exec.Command("ssh", append(base, args...)...).CombinedOutput()
	return string(out), err
}

func TestServerLetsSSHIn(t *testing.T) {
	s := Start(t, Options{})
	if out, err := ssh_(t, s, "echo hello"); err != nil || out != "hello\n" {
		t.Fatalf("got %q, %v; want hello", out, err)
	}
	s.Restart(t)
	if out, err := ssh_(t, s, "echo again"); err != nil || out != "again\n" {
		t.Fatalf("after a restart: got %q, %v; want again", out, err)
	}
	s.Stop()
	if out, err := ssh_(t, s, "echo again"); err == nil {
		t.Fatalf("after Stop: got %q, want an error", out)
	}
}

func TestForceCommand(t *testing.T) {
	for _, o := range []Options{
		{ForceCommand: `printf "forced: $SSH_ORIGINAL_COMMAND"`},
		{AuthorizedKeys: `command="printf 'forced: %s' \"$SSH_ORIGINAL_COMMAND\"",restrict %KEY%` + "\n"},
	} {
		s := Start(t, o)
		out, err := ssh_(t, s, "isr_ls -L")
		if err != nil || !strings.HasPrefix(out, "forced: ") {
			t.Errorf("%+v: got %q, %v; want the forced command", o, out, err)
		}
	}
}

func TestMatchBlocksComeLast(t *testing.T) {
	s := Start(t, Options{ExtraConfig: "Banner none\nMatch User *\n ForceCommand echo matched\n"})
	if out, err := ssh_(t, s, "echo hello"); err != nil || out != "matched\n" {
		t.Fatalf("got %q, %v; want matched", out, err)
	}
}
