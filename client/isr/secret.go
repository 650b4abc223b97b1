package main

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Secret asks for a password or passphrase on the terminal, which shows
// nothing of it. The end of file is no answer.
func (s *screen) Secret(prompt string) (string, error) {
	tty, err := os.OpenFile("/dev/tty", os.O_RDWR, 0)
	if s.batch || err != nil {
		return "", errNoAnswer
	}
	defer tty.Close()
	fd := int(tty.Fd())
	was, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return "", errNoAnswer
	}
	quiet := *was
	quiet.Lflag &^= unix.ECHO
	quiet.Lflag |= unix.ICANON | unix.ISIG
	quiet.Iflag |= unix.ICRNL
	restore := func() {
		unix.IoctlSetTermios(fd, unix.TCSETS, was)
		fmt.Fprintln(tty)
	}
	// Who is interrupted leaves the question open, and no silent terminal.
	s.mu.Lock()
	s.restore = restore
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		again := s.restore == nil
		s.restore = nil
		s.mu.Unlock()
		if !again {
			restore()
		}
	}()
	// Before the question: who types at once is not shown either.
	if err := unix.IoctlSetTermios(fd, unix.TCSETS, &quiet); err != nil {
		return "", errNoAnswer
	}
	fmt.Fprint(tty, prompt)
	var secret []byte
	defer func() { clear(secret) }()
	one := make([]byte, 1)
	for len(secret) < 1024 {
		n, err := tty.Read(one)
		switch {
		case n > 0 && one[0] == '\n':
			return string(secret), nil
		case n > 0:
			secret = append(secret, one[0])
		case err != nil:
			return "", errNoAnswer // what was begun is not meant
		}
	}
	return "", errNoAnswer
}
