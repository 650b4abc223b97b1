package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"

	"isr/store/parcel"
)

// secret asks for a secret on a terminal, which shows nothing of it. The end
// of input is no answer, whatever was typed before it; neither is a signal, and
// both leave the terminal as it was.
func secret(ctx context.Context, tty *os.File, prompt io.Writer, question string) ([]byte, error) {
	ctx, stop := signal.NotifyContext(ctx, endings...)
	defer stop()
	fd := int(tty.Fd())
	was, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return nil, err
	}
	quiet := *was
	quiet.Lflag &^= unix.ECHO
	quiet.Lflag |= unix.ICANON | unix.ISIG
	quiet.Iflag |= unix.ICRNL
	// Before the question: who types at once is not shown either.
	if err := unix.IoctlSetTermios(fd, unix.TCSETS, &quiet); err != nil {
		return nil, err
	}
	defer func() {
		unix.IoctlSetTermios(fd, unix.TCSETS, was)
		fmt.Fprintln(prompt)
	}()
	fmt.Fprint(prompt, question)
	line, err := answer(ctx, tty)
	if err == io.EOF || ctx.Err() != nil {
		return nil, parcel.NewError(parcel.Interrupted, "password: none given")
	}
	return []byte(line), err
}

// answer reads a line of in, unless ctx is done first: then the error is its.
func answer(ctx context.Context, in *os.File) (line string, err error) {
	answered := make(chan error, 1)
	var typed string
	go func() {
		var err error
		typed, err = readLine(in)
		answered <- err
	}()
	select {
	case err := <-answered:
		return typed, err
	case <-ctx.Done():
		return "", ctx.Err()
	}
}
