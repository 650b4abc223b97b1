package client

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// reserveSize is kept free for a run's end, bytes: the record, a cfg archive
// and pages of the overlays' maps. Memory may need more, and waits for it.
const reserveSize = 4 << 20

// roomLow and roomHigh bound how long a keeper waits before it looks for room
// again.
const (
	roomLow  = time.Second / 4
	roomHigh = 5 * time.Second
)

// reserve is a file that holds space while a parcel runs: a guest can fill the
// file system, and its suspension finds room still.
type reserve string

func (co *Checkout) reserve() reserve { return reserve(co.path("reserve")) }

// take holds the space. Where a file system cannot promise any, none is held.
func (r reserve) take() error {
	f, err := os.OpenFile(string(r), os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	err = unix.Fallocate(int(f.Fd()), 0, 0, reserveSize)
	if err == nil {
		return nil
	}
	r.giveUp()
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return &fs.PathError{Op: "reserve", Path: string(r), Err: err}
	}
	return nil
}

// giveUp gives the space back, and reports whether there was any.
func (r reserve) giveUp() bool { return os.Remove(string(r)) == nil }

// mayPass tells the errors that somebody can put an end to, while what is to
// be written is still here.
func mayPass(err error) bool {
	for _, e := range []syscall.Errno{syscall.ENOSPC, syscall.EDQUOT, syscall.EROFS, syscall.EIO} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// persist calls f, which writes something to this host's disk, until there is
// room for it. What a guest had in memory may be nowhere else by now: better
// wait for room than lose it, and only who kills the keeper gives it up.
func (k *keeper) persist(what string, f func() error) error {
	st, told := &k.co.State, false
	for wait := roomLow; ; wait = min(2*wait, roomHigh) {
		err := f()
		if !mayPass(err) {
			if told {
				k.waits("")
				k.ui.Say("parcel %s: %s is kept", st.Parcel, what)
			}
			return err
		}
		if k.co.reserve().giveUp() {
			continue
		}
		if !told {
			told = true
			k.waits(fmt.Sprintf("its %s cannot be kept: %v", what, err))
			k.ui.Warn("parcel %s: %s", st.Parcel, k.waiting.Load())
			k.ui.Say("parcel %s: nothing is lost: it goes on as soon as there is room in %s", st.Parcel, k.co.client.Dir)
		}
		time.Sleep(wait)
	}
}

// waits notes, for whoever asks in any process, what a keeper waits for.
func (k *keeper) waits(text string) {
	k.waiting.Store(text)
	if k.rt.dir == "" {
		return
	}
	if text == "" {
		os.Remove(k.rt.waits())
		return
	}
	os.WriteFile(k.rt.waits(), []byte(text), 0o600)
}

// waits is the file that says what the keeper waits for, if it does.
func (rt runtime) waits() string { return filepath.Join(rt.dir, "waits") }

// waitsFor is what the keeper of a running parcel waits for, or "".
func (co *Checkout) waitsFor() string {
	rt, err := co.runtime()
	if err != nil {
		return ""
	}
	text, _ := os.ReadFile(rt.waits())
	return string(text)
}

// room warns of a disk that may be too full for the memory of a machine.
func (k *keeper) room(memory int64) {
	var fs unix.Statfs_t
	if err := unix.Statfs(k.co.Dir, &fs); err != nil {
		return
	}
	if free := int64(fs.Bavail) * int64(fs.Bsize); free < memory {
		k.ui.Warn("parcel %s: %d MiB are free in %s, and its memory may need %d MiB when it is suspended",
			k.co.State.Parcel, free>>20, k.co.client.Dir, memory>>20)
	}
}
