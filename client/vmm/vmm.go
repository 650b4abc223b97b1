// Package vmm runs a parcel's machine with a virtual machine monitor.
//
// A driver is given paths: of the disk image, of the memory image, of a
// directory for its own files. It boots the machine, or lets it go on from the
// memory image, and says in the end whether the machine was suspended or
// powered off. The package knows nothing of chunks, versions or servers, and
// imports no other package of this project.
//
// Drivers built in:
//
//   - qemu: QEMU over QMP; memory arrives on demand, only what the machine
//     changed is written back (qemu.go).
//   - none: runs nothing and waits to be told to suspend. For scripts.
//   - shell: runs $SHELL, or the option command=, on the caller's terminal with
//     DISK and MEMORY set to the paths of the images. Its exit status is the
//     outcome (ExitError).
//
// Anything else is an executable isr-vmm-NAME, looked for in PATH and then in
// LibexecDirs; External describes the contract.
//
// What it promises: Info has no side effects on the parcel, and says before a
// lock is taken whether a machine can run here. Run returns only when the
// machine's process is gone. A machine that was told to suspend either returns
// with Outcome.Suspended set and everything saved, or with an error.
//
// What it does not: it makes nothing durable and encrypts nothing. CfgDir and
// RunDir have to lie where plaintext may lie (tmpfs), and the caller seals CfgDir after Run.
package vmm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"sort"
	"strings"
	"time"
)

// Errors a caller decides on.
var (
	// ErrUnknown: no driver of that name is built in or installed.
	ErrUnknown = errors.New("unknown VMM")
	// ErrNotRunnable: the driver cannot run this machine on this host. Info tells why without trying.
	ErrNotRunnable = errors.New("not runnable here")
	// ErrOption: an option (-o) the driver does not know, or a value it cannot take.
	ErrOption = errors.New("bad VMM option")
	// ErrNotSaved: the machine was to be suspended and its memory could not be saved. What it
	// held in memory is lost; its disk is as after a power cut.
	ErrNotSaved = errors.New("memory not saved")
)

// ExitError is the error of a driver whose program ended with a status of its own (shell, External).
type ExitError struct {
	Program string
	Status  int // 128+n for a death by signal n, as shells report it
}

func (e *ExitError) Error() string { return fmt.Sprintf("%s: exit status %d", e.Program, e.Status) }

// Pages is what a driver that saves memory sees of the memory image besides its path.
type Pages interface {
	// BeginSave: from now on only the saving driver reads the image: bytes nobody ever asked
	// for read as zeros and cause no fetch. There is no way back: the machine must not run
	// again on this mapping. A driver calls it once, with the machine stopped.
	BeginSave() error
	// Asked reports whether any byte of [off, off+n) was ever handed out or written before
	// BeginSave; pages never asked for cannot have been modified.
	Asked(off int64, n int) bool
	// WriteAt stores a saved run of pages at its address.
	io.WriterAt
}

// Machine is one parcel's machine as a driver sees it. Info may be called with
// the paths still empty, before anything is checked out.
type Machine struct {
	Name, UUID string // "alice/winxp", for titles; the parcel's UUID, from which addresses are derived

	Disk       string // path of the disk image
	DiskSize   int64  // bytes
	Memory     string // path of the memory image
	MemorySize int64  // bytes, a multiple of 1 MiB; 0 in an early Info if not known

	CfgDir   string // the driver's own files; they travel with the version
	RunDir   string // sockets and pid files of this run; private
	CacheDir string // may be empty; what the driver found out about this host, kept between runs

	Options    map[string]string // -o KEY=VALUE
	Fullscreen bool

	Suspended string            // driver that wrote the memory image, "" if there is none
	Requires  map[string]string // what the version recorded of its VMM (Outcome.Requires); may be empty

	Pages Pages // may be nil for drivers that save no memory

	Stdin, Stdout, Stderr *os.File
	Say                   func(format string, args ...any) // one-line notices; may be nil
	Started               func()                           // called when the machine begins to run; may be nil
}

func (m *Machine) started() {
	if m.Started != nil {
		m.Started()
	}
}

func (m *Machine) say(format string, args ...any) {
	if m.Say != nil {
		m.Say(format, args...)
	}
}

// Info is what a driver says of a machine without starting it.
type Info struct {
	Title    string // the VMM's display name, with its version where known
	Runnable bool
	Reason   string // why not, if not Runnable: one clause, no full stop
	Hint     string // what the user could do about it; may be empty
}

// Err turns a refusal into an error that wraps ErrNotRunnable, and is nil for a runnable machine.
func (i Info) Err() error {
	switch {
	case i.Runnable:
		return nil
	case i.Hint == "":
		return fmt.Errorf("%w: %s", ErrNotRunnable, i.Reason)
	}
	return fmt.Errorf("%w: %s (%s)", ErrNotRunnable, i.Reason, i.Hint)
}

func refuse(title, hint, reason string, args ...any) Info {
	return Info{Title: title, Reason: fmt.Sprintf(reason, args...), Hint: hint}
}

// Outcome is how a run ended.
type Outcome struct {
	Suspended bool              // there is a memory image, and Pages.BeginSave was called; false: the machine was powered off
	Requires  map[string]string // to be recorded with the version and handed back in Machine.Requires

	// What is known of how it ran; also with an error.
	Accel   string        // what QEMU calls it: kvm, tcg
	Reboots int           // times that the guest had itself reset
	CPU     time.Duration // processor time of the VMM, the guest's included
}

// Driver runs machines with one VMM.
type Driver interface {
	Name() string
	// Info says whether m can run here. It changes nothing of the parcel, and works with
	// empty Disk, Memory, CfgDir and RunDir.
	Info(ctx context.Context, m *Machine) (Info, error)
	// Run blocks until the machine is off or suspended. suspend closed: save and stop. ctx
	// cancelled: kill it at once, save nothing, return ctx's error.
	Run(ctx context.Context, m *Machine, suspend <-chan struct{}) (Outcome, error)
	// Poweroff deletes the driver's part of a memory image in CfgDir.
	Poweroff(ctx context.Context, m *Machine) error
	// Cleanup ends what an earlier, killed run left behind and deletes its leavings.
	Cleanup(ctx context.Context, m *Machine) error
}

// LibexecDirs are where isr-vmm-NAME is looked for after PATH.
var LibexecDirs = []string{"/usr/local/libexec/isr", "/usr/libexec/isr", "/usr/lib/isr"}

const externalPrefix = "isr-vmm-"

var driverName = regexp.MustCompile(`^[a-z0-9][a-z0-9_-]*$`)

func builtin() []Driver { return []Driver{&QEMU{}, None{}, Shell{}} }

// Lookup finds a driver by name: built in, else an executable isr-vmm-NAME.
// The error wraps ErrUnknown and names what there is.
func Lookup(name string) (Driver, error) {
	for _, d := range builtin() {
		if d.Name() == name {
			return d, nil
		}
	}
	if !driverName.MatchString(name) {
		return nil, fmt.Errorf("%q: %w", name, ErrUnknown)
	}
	if p, err := exec.LookPath(externalPrefix + name); err == nil {
		if p, err = filepath.Abs(p); err == nil {
			return &External{name: name, Program: p}, nil
		}
	}
	for _, dir := range LibexecDirs {
		if p := filepath.Join(dir, externalPrefix+name); executable(p) {
			return &External{name: name, Program: p}, nil
		}
	}
	return nil, fmt.Errorf("%s: %w (there are: %s; others are programs %sNAME in PATH)",
		name, ErrUnknown, strings.Join(List(), ", "), externalPrefix)
}

// List names every driver that Lookup would find, sorted, built-in ones first.
func List() []string {
	var names, others []string
	for _, d := range builtin() {
		names = append(names, d.Name())
	}
	for _, dir := range append(filepath.SplitList(os.Getenv("PATH")), LibexecDirs...) {
		entries, err := os.ReadDir(dir)
		if err != nil {
			continue
		}
		for _, e := range entries {
			n, ok := strings.CutPrefix(e.Name(), externalPrefix)
			if ok && driverName.MatchString(n) && !slices.Contains(names, n) &&
				!slices.Contains(others, n) && executable(filepath.Join(dir, e.Name())) {
				others = append(others, n)
			}
		}
	}
	sort.Strings(others)
	return append(names, others...)
}

func executable(path string) bool {
	st, err := os.Stat(path)
	return err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0
}

// checkOptions refuses options whose key is not in known.
func checkOptions(driver string, options map[string]string, known ...string) error {
	var bad []string
	for k := range options {
		if !slices.Contains(known, k) {
			bad = append(bad, k)
		}
	}
	if len(bad) == 0 {
		return nil
	}
	sort.Strings(bad)
	return fmt.Errorf("%w: %s does not know %s (it knows: %s)", ErrOption, driver,
		strings.Join(bad, ", "), strings.Join(known, ", "))
}

// suspendedElsewhere is the refusal of a driver that cannot read another's memory image.
func suspendedElsewhere(title string, m *Machine, name string) (Info, bool) {
	if m.Suspended == "" || m.Suspended == name {
		return Info{}, false
	}
	return refuse(title, "resume it with -m "+m.Suspended+", or delete its memory image with isr poweroff",
		"it was suspended by %s", m.Suspended), true
}
