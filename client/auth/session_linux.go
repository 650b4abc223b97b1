package auth

import (
	"fmt"
	"io"
	"log"
	"os"
	"strconv"
	"strings"

	"github.com/jezek/xgb"
	"golang.org/x/sys/unix"
)

// watchSession finds the session that this process was started in, and calls
// ended when it ends: the X session, by its server; else the login session, as
// the host's login manager knows it; else the terminal's. parent is whoever
// started us. It gives the session's name, "" if there is none to watch.
func watchSession(parent int, ended func()) (name string) {
	if display := os.Getenv("DISPLAY"); display != "" {
		xgb.Logger = log.New(io.Discard, "", 0)
		if x, err := xgb.NewConn(); err == nil {
			go func() {
				for {
					if ev, err := x.WaitForEvent(); ev == nil && err == nil {
						ended() // the X server has hung up
						return
					}
				}
			}()
			return "X session " + display
		}
	}
	if id := os.Getenv("XDG_SESSION_ID"); id != "" && !strings.ContainsAny(id, "/\x00") {
		if leader := sessionLeader("/run/systemd/sessions/" + id); leader > 0 && watchProcess(leader, ended) {
			return "login session " + id
		}
	}
	// The leader of our session, unless that is who started us and leaves now.
	if leader, err := unix.Getsid(0); err == nil && leader > 1 && leader != parent && leader != os.Getpid() && watchProcess(leader, ended) {
		return fmt.Sprintf("session of process %d", leader)
	}
	return ""
}

// sessionLeader is the LEADER of the login manager's record of a session.
func sessionLeader(file string) int {
	text, err := os.ReadFile(file)
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(text)) {
		if v, ok := strings.CutPrefix(strings.TrimSpace(line), "LEADER="); ok {
			pid, _ := strconv.Atoi(v)
			return pid
		}
	}
	return 0
}

// watchProcess calls ended when the process is no more.
func watchProcess(pid int, ended func()) bool {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return false
	}
	go func() {
		defer unix.Close(fd)
		for {
			n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, -1)
			if n > 0 {
				ended()
				return
			}
			if err != nil && err != unix.EINTR {
				return
			}
		}
	}()
	return true
}
