package client

import (
	"errors"
	"io"
	"io/fs"

	"isr/client/fusefs"
	"isr/store/parcel"
)

// Watcher is shown a parcel that this process has resumed, while it runs: a
// dirtometer. It must not hold up those who call it.
type Watcher interface {
	// Start is told which driver will run the parcel, before that starts. What
	// the VMM prints then goes to the writer; to this process's terminal, which
	// it may read too, if the writer is nil.
	Start(vmm string) io.Writer
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
