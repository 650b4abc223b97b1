package locksrv

import (
	"bytes"
	"context"
	"fmt"
	"io"

	"isr/locksrv/event"
	"isr/locksrv/proto"
	"isr/store/parcel"
)

// passwd changes the password of the session's user. Whoever is let in by a
// key must know the old password all the same; an administrator on the host
// is asked for the new one only.
func passwd(ctx context.Context, c *call, stdin io.Reader, _ io.Writer) error {
	lines := 2
	if c.Admin {
		lines = 1
	}
	text, err := readLines(stdin, lines)
	if err != nil {
		return err
	}
	defer clear(text)
	given := bytes.Split(bytes.TrimSuffix(text, []byte("\n")), []byte("\n"))
	if len(given) != lines {
		return parcel.NewError(parcel.Usage, "%s: want %d lines on standard input", proto.Passwd, lines).
			WithHint("the old password, empty if there is none, then the new one")
	}
	err = c.act(ctx, &event.Event{Op: event.UserPassword}, func(context.Context) error {
		if c.Admin {
			return c.Store.SetPassword(c.User, given[0])
		}
		return c.Store.ChangePassword(c.User, given[0], given[1])
	})
	if err == nil {
		c.Log.Info("password changed")
	}
	return err
}

// readLines reads so many lines of stdin, and no further: a client may leave
// it open. The last need not end.
func readLines(stdin io.Reader, lines int) ([]byte, error) {
	text := make([]byte, 0, maxPasswords) // its secrets lie nowhere else
	one := make([]byte, 1)
	for lines > 0 {
		n, err := stdin.Read(one)
		if n > 0 {
			if len(text) == maxPasswords {
				return nil, parcel.NewError(parcel.Usage, "standard input: over %d bytes", maxPasswords)
			}
			text = append(text, one[0])
			if one[0] == '\n' {
				lines--
			}
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("standard input: %w", err)
		}
	}
	return text, nil
}

// maxPasswords bounds the input of isr_passwd, bytes.
const maxPasswords = 1024

func hasPassword(ctx context.Context, c *call, _ io.Reader, stdout io.Writer) error {
	has, err := c.Store.HasPassword(c.User)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(stdout, map[bool]string{true: "yes", false: "no"}[has])
	return err
}
