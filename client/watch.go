package client

import (
	"bufio"
	"errors"
	"io/fs"
	"os"
	"time"

	"isr/client/fusefs"
	"isr/store/parcel"
)

// Watcher is shown a parcel that this process has resumed, while it runs: a
// dirtometer. It must not hold up those who call it.
type Watcher interface {
	// Start is told which driver will run the parcel, before that starts, and
	// says whether this process's terminal is taken. Then neither the keeper
	// nor what it starts touches it: what they print is said by the UI.
	Start(vmm string) (taken bool)
	// Running is told where the running parcel is shown.
	Running(mount string)
}

// Running is a parcel that runs on this host; an error if it does not.
func (c *Client) Running(name string) (*Checkout, error) {
	co, err := c.Find(name)
	if err != nil {
		return nil, err
	}
	if co.State.Status != Running || fusefs.Stale(co.State.Mount) {
		return nil, parcel.NewError(parcel.Failed, "parcel %s: not running: %s", co.State.Parcel, co.Describe()).
			WithHint("isr resume %s", co.State.Parcel)
	}
	return co, nil
}

// Ended reports whether the run that mount shows is over, and what became of
// the parcel, in words.
func (co *Checkout) Ended(mount string) (over bool, how string) {
	now := &Checkout{client: co.client, Dir: co.Dir}
	switch err := now.load(); {
	case errors.Is(err, fs.ErrNotExist):
		return true, "no longer on this host"
	case err != nil:
		return true, err.Error()
	}
	over = now.State.Status != Running || now.State.Mount != mount || fusefs.Stale(mount)
	return over, now.Describe()
}

// overhear gives files for the standard input and output of a VMM whose
// terminal is taken. What is printed is said. stop ends that; something that the VMM
// has left running does not hold it up.
func (k *keeper) overhear() (in, out *os.File, stop func(), err error) {
	if in, err = os.Open(os.DevNull); err != nil {
		return nil, nil, nil, err
	}
	r, out, err := os.Pipe()
	if err != nil {
		in.Close()
		return nil, nil, nil, err
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		lines := bufio.NewReaderSize(r, 4096)
		for {
			// A line that is longer is said in parts.
			line, _, err := lines.ReadLine()
			if err != nil {
				return
			}
			k.ui.Say("%s", line)
		}
	}()
	return in, out, func() {
		in.Close()
		out.Close()
		r.SetReadDeadline(time.Now().Add(time.Second))
		<-done
		r.Close()
	}, nil
}
