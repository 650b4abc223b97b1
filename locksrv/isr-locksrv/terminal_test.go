package main

import (
	"bytes"
	"io"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"

	"isr/locksrv/locksrvtest"
)

// A password that is asked for on a terminal: it is not shown, and who gives
// none is left a terminal that shows again.
func TestPasswordOnTerminal(t *testing.T) {
	r := locksrvtest.NewRealm(t)
	for _, test := range []struct {
		name, typed string // after each question; \x03 and \x04 are the terminal's
		status      int
		says        string
		set         bool
	}{
		{"end of input", "\x04", 130, "password: none given", false},
		{"end of what was begun", "half a pass\x04\x04", 130, "password: none given", false},
		{"interrupt", "half a\x03", 130, "", false},
		{"end at the second", "the first secret\n\x04", 130, "password: none given", false},
		{"not twice the same", "the first secret\nthe other secret\n", 2, "not twice the same", false},
		{"too short", "secret\n", 2, "shorter than", false},
		{"empty", "\n", 2, "shorter than", false},
		{"erased and given", "wrong\x15the first secret\nthe first secret\n", 0, "", true},
	} {
		t.Run(test.name, func(t *testing.T) {
			here, tty, err := pty.Open()
			if err != nil {
				t.Fatal(err)
			}
			defer here.Close()
			defer tty.Close()
			cmd := exec.Command(program(t), "--root", r.Root, "user", "passwd", "alice")
			cmd.Stdin, cmd.Stdout, cmd.Stderr = tty, tty, tty
			cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			timer := time.AfterFunc(3*time.Minute, func() { cmd.Process.Kill() })
			defer timer.Stop()
			shown := new(locksrvtest.Log)
			all := make(chan struct{})
			go func() {
				defer close(all)
				io.Copy(shown, here) // until nobody has the terminal
			}()
			for i, line := range strings.SplitAfter(test.typed, "\n") {
				question := []string{"New password of alice: ", "Again: ", "nothing is asked"}[i]
				for end := time.Now().Add(time.Minute); line != "" && !strings.Contains(shown.String(), question); {
					if time.Now().After(end) {
						t.Fatalf("it does not ask %q: %s", question, shown)
					}
					time.Sleep(time.Millisecond) // until it asks
				}
				io.WriteString(here, line)
			}
			cmd.Wait()
			if got := cmd.ProcessState.ExitCode(); got != test.status {
				t.Errorf("status %d, want %d", got, test.status)
			}
			state, err := unix.IoctlGetTermios(int(tty.Fd()), unix.TCGETS)
			if err != nil || state.Lflag&unix.ECHO == 0 || state.Lflag&unix.ICANON == 0 {
				t.Errorf("the terminal is left silent: %+v, %v", state, err)
			}
			tty.Close()
			<-all
			text := shown.String()
			for _, secret := range []string{"secret", "half"} {
				if strings.Contains(text, secret) {
					t.Errorf("shown: %q", text)
				}
			}
			if !bytes.Contains([]byte(text), []byte(test.says)) {
				t.Errorf("it says %q, want %q in it", text, test.says)
			}
			if has, err := r.Store.HasPassword("alice"); err != nil || has != test.set {
				t.Errorf("has a password: %v, %v", has, err)
			}
		})
	}
}

// A question that is interrupted is answered by that: nobody has to press a key
// twice, or may say yes after it.
func TestInterruptedQuestion(t *testing.T) {
	r := locksrvtest.NewRealm(t)
	r.AddParcel(t, "alice", "winxp")
	here, tty, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer here.Close()
	defer tty.Close()
	cmd := exec.Command(program(t), "--root", r.Root, "parcel", "delete", "alice", "winxp")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = tty, tty, tty
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	timer := time.AfterFunc(30*time.Second, func() { cmd.Process.Kill() })
	defer timer.Stop()
	shown := new(locksrvtest.Log)
	go io.Copy(shown, here)
	for end := time.Now().Add(30 * time.Second); !strings.Contains(shown.String(), "[y/N] "); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("it does not ask: %s", shown)
		}
	}
	io.WriteString(here, "\x03")
	cmd.Wait()
	if got := cmd.ProcessState.ExitCode(); got != 130 {
		t.Errorf("status %d, want 130: %s", got, shown)
	}
	if _, err := r.Store.Parcel("alice", "winxp"); err != nil {
		t.Error(err)
	}
}
