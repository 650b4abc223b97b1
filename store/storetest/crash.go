package storetest

import (
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"isr/store"
	"isr/store/tree"
)

// A crash is one call, made in a child process that is killed at one step.
type Crash struct {
	Op      string
	Root    string
	Image   string              // for import; the replica for repair
	Request store.CommitRequest // for commit; its nonce for all
	Step    int                 // the child is killed before this step, from 0
}

// crashEnv has the crash that a child is to make, as JSON.
const crashEnv = "STORE_TEST_CRASH"

// call makes the call of a crash; Main sets it.
var call func(c Crash) error

// Main is a TestMain. The process may be the child: then it makes the call
// and kills itself on the way, as hard as can be, leaving a temp file wherever
// one might be left.
func Main(m *testing.M, f func(c Crash) error) {
	call = f
	arg := os.Getenv(crashEnv)
	if arg == "" {
		os.Exit(m.Run())
	}
	var c Crash
	if err := json.Unmarshal([]byte(arg), &c); err != nil {
		panic(err)
	}
	n := 0
	tree.Step = func(string) {
		if n == c.Step {
			alice := filepath.Join(c.Root, tree.UsersDir, "alice")
			for _, side := range []string{".isr", "isr"} {
				for _, dir := range []string{"winxp", "winxp/keys"} {
					os.WriteFile(filepath.Join(alice, side, dir, ".tmp-crash"), []byte("half"), 0o600)
				}
			}
			syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {}
		}
		n++
	}
	if err := c.Run(); err != nil {
		os.Stderr.WriteString(err.Error())
		os.Exit(1)
	}
	os.Exit(0)
}

// Run makes the call in this process.
func (c Crash) Run() error { return call(c) }

// Env tells a child of this program to make the call.
func (c Crash) Env(t testing.TB) string {
	arg, err := json.Marshal(c)
	if err != nil {
		t.Error(err)
	}
	return crashEnv + "=" + string(arg)
}

// killed runs c in a child; true if it was killed, false if it had no more
// steps and succeeded.
func (c Crash) killed(t *testing.T) bool {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), c.Env(t))
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.Sys().(syscall.WaitStatus).Signal() == syscall.SIGKILL {
		return true
	}
	if err != nil {
		t.Fatalf("%s, step %d: %v: %s", c.Op, c.Step, err, out)
	}
	return false
}

// EveryStep kills c at every step in turn, each time on a fresh store from
// prepare, and calls after to look at what is left and call again.
func EveryStep(t *testing.T, op string, atLeast int, prepare func(*testing.T, *store.Store) Crash, after func(*testing.T, *store.Store, Crash)) {
	EveryStepOf(t, op, atLeast, true, prepare, after)
}

// EveryStepOf is EveryStep of what begins with a store that is not sound.
func EveryStepOf(t *testing.T, op string, atLeast int, sound bool, prepare func(*testing.T, *store.Store) Crash, after func(*testing.T, *store.Store, Crash)) {
	t.Run(op, func(t *testing.T) {
		t.Parallel()
		for n := 0; ; n++ {
			s := New(t)
			c := prepare(t, s)
			c.Op, c.Root, c.Step = op, s.Root(), n
			killed := c.killed(t)
			if sound {
				// Before anything is repaired: nothing is half there.
				WantSound(t, s)
			}
			after(t, s, c)
			if ps := WantSound(t, s); len(ps) != 0 {
				t.Errorf("%s, killed at step %d: left over in the end: %v", op, n, ps)
			}
			if t.Failed() {
				t.Fatalf("%s, killed at step %d", op, n)
			}
			if !killed {
				if n < atLeast {
					t.Errorf("%s has %d steps, want at least %d: does the test see them?", op, n, atLeast)
				}
				t.Logf("%s: %d steps", op, n)
				return
			}
		}
	})
}
