package vmm

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// QEMU is the driver for QEMU: qemu-system-x86_64, controlled over QMP.
//
// The machine's memory is the memory image, mapped privately: what the machine
// reads arrives on demand, what it writes stays in QEMU. Suspending runs QEMU's migration
// into this process, which takes the pages that were changed out of the stream and stores them at
// their addresses (ramstream.go); the rest of the stream, the state of the
// devices, is kept in CfgDir. Resuming feeds that to a QEMU that maps the
// memory image again, with the same machine type, processor and devices.
//
// Options:
//
//	display=none|window|gtk|sdl|vnc=HOST:DISPLAY|vnc=unix:PATH
//	                  default: window if there is an X display, else gtk on Wayland, else none.
//	                  Closing window suspends; gtk and sdl are QEMU's own, which cannot be closed.
//	serial=FILE       the first serial port's output, appended to FILE
//	serial=unix:PATH  the first serial port as a Unix socket to connect to
//	accel=kvm|tcg     default: kvm where it really runs a guest (kvmprobe.go), else tcg
//	cpus=N            processors, 1 by default
//	cpu=MODEL         processor model, a name that does not depend on the host
//	net=user|none     network: through the host, as one of its programs; or cable pulled
//	vga=std|virtio|cirrus|none
//	program=PATH      QEMU to use
//	args=WORDS        more arguments for QEMU, separated by blanks; not recorded with the version
//
// accel, cpus, cpu and vga belong to a suspended machine and cannot be changed until it is powered off.
type QEMU struct{}

// Files in CfgDir and RunDir.
const (
	stateName = "qemu.state" // a migration stream without memory
	pidName   = "qemu.pid"
)

// The generation of the device list that arguments builds. A suspended machine
// is resumed with the generation it has; a new one is needed for any change
// that the state of a suspended machine could notice.
const hardware = "1"

// What is recorded with a version, beside vmm=qemu.
const (
	reqVersion  = "version"  // of the QEMU that saved it
	reqMachine  = "machine"  // versioned machine type
	reqCPU      = "cpu"      // model
	reqCPUs     = "cpus"     //
	reqAccel    = "accel"    // kvm, tcg
	reqMemory   = "memory"   // bytes
	reqVGA      = "vga"      //
	reqHardware = "hardware" // generation
)

const (
	// The first processors with SSE4.2, POPCNT and AES (2010), which is x86-64-v2 and what
	// current systems ask for. TCG has all of it, and so have the hosts KVM runs on.
	defaultCPU = "Westmere-v1"
	maxCPUs    = 64
	mebibyte   = 1 << 20
)

var (
	vgas    = []string{"std", "virtio", "cirrus", "none"}
	accels  = []string{"kvm", "tcg"}
	plain   = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]*$`)
	vncHost = regexp.MustCompile(`^[A-Za-z0-9._-]*:[0-9]{1,5}$|^\[[0-9a-fA-F:]+\]:[0-9]{1,5}$`)
)

// plan is everything decided about a run before it starts.
type plan struct {
	program string
	facts   *qemuFacts
	machine string
	cpu     string
	cpus    int
	accel   string
	vga     string
	memory  int64
	display string
	serial  string
	net     string
	extra   []string
	notices []string
}

func (*QEMU) Name() string { return "qemu" }

func (d *QEMU) Info(ctx context.Context, m *Machine) (Info, error) {
	_, i, err := d.plan(ctx, m)
	return i, err
}

// options checks every -o and fills in what does not depend on this host.
func (*QEMU) options(m *Machine, p *plan) error {
	o := m.Options
	if err := checkOptions("qemu", o, "accel", "args", "cpu", "cpus", "display", "net", "program", "serial", "vga"); err != nil {
		return err
	}
	bad := func(key, want string) error {
		return fmt.Errorf("%w: qemu: %s=%s: want %s", ErrOption, key, o[key], want)
	}
	if v, ok := o["accel"]; ok && !slices.Contains(accels, v) {
		return bad("accel", strings.Join(accels, " or "))
	}
	p.net = "user"
	if v, ok := o["net"]; ok {
		if p.net = v; v != "user" && v != "none" {
			return bad("net", "user or none")
		}
	}
	if v, ok := o["vga"]; ok && !slices.Contains(vgas, v) {
		return bad("vga", strings.Join(vgas, ", "))
	}
	if v, ok := o["cpu"]; ok && !plain.MatchString(v) {
		return bad("cpu", "a model's name")
	}
	if v, ok := o["cpus"]; ok {
		if n, err := strconv.Atoi(v); err != nil || n < 1 || n > maxCPUs {
			return bad("cpus", fmt.Sprintf("a number from 1 to %d", maxCPUs))
		}
	}
	if v, ok := o["serial"]; ok {
		kind, path := "file", v
		if rest, is := strings.CutPrefix(v, "unix:"); is {
			kind, path = "unix", rest
		}
		if path == "" {
			return bad("serial", "FILE or unix:PATH")
		}
		abs, err := filepath.Abs(path)
		if err != nil {
			return err
		}
		if kind == "unix" && len(abs) >= maxSocketPath {
			return bad("serial", fmt.Sprintf("a path of less than %d bytes", maxSocketPath))
		}
		p.serial = kind + ":" + abs
	}
	p.display = o["display"]
	if where, is := strings.CutPrefix(p.display, "vnc="); is {
		if path, is := strings.CutPrefix(where, "unix:"); is {
			if path == "" || len(path) >= maxSocketPath {
				return bad("display", fmt.Sprintf("a path of less than %d bytes", maxSocketPath))
			}
		} else if !vncHost.MatchString(where) {
			return bad("display", "vnc=HOST:DISPLAY or vnc=unix:PATH")
		}
	} else if !slices.Contains([]string{"", "none", "window", "gtk", "sdl"}, p.display) {
		return bad("display", "none, window, gtk, sdl, vnc=HOST:DISPLAY or vnc=unix:PATH")
	}
	p.extra = strings.Fields(o["args"])
	return nil
}

const maxSocketPath = 108 // sun_path, with the final zero

const powerOff = "give up its memory with isr poweroff"

// plan decides how m is run here, or why it cannot be.
func (d *QEMU) plan(ctx context.Context, m *Machine) (*plan, Info, error) {
	p := &plan{}
	if err := d.options(m, p); err != nil {
		return nil, Info{}, err
	}
	title := "QEMU"
	if i, no := suspendedElsewhere(title, m, "qemu"); no {
		return nil, i, nil
	}
	program, err := findQEMU(m.Options["program"])
	if err != nil {
		return nil, refuse(title, "install qemu-system-x86 (Debian) or qemu-kvm (Red Hat), or set -o program=PATH", "%v", err), nil
	}
	p.program = program
	suspended := m.Suspended == "qemu"
	if suspended {
		if i, no := recordIsOdd(title, m); no {
			return nil, i, nil
		}
	}
	if i, no := p.chooseShape(title, m, suspended); no {
		return nil, i, nil
	}
	if i, no := d.chooseAccel(ctx, title, m, p, suspended); no {
		return nil, i, ctx.Err()
	}
	title = "QEMU " + p.facts.Version.String()
	if i, no := p.chooseMachine(title, m, suspended); no {
		return nil, i, nil
	}
	if suspended {
		if i, no := d.stateIsBad(title, m, p); no {
			return nil, i, nil
		}
	}
	if err := p.chooseDisplay(ctx, m); err != nil {
		return nil, refuse(title, "", "%v", err), nil
	}
	return p, Info{Title: title, Runnable: true}, nil
}

// chooseShape settles memory, processors and screen.
func (p *plan) chooseShape(title string, m *Machine, suspended bool) (Info, bool) {
	p.memory, p.cpu, p.vga = m.MemorySize, defaultCPU, "std"
	cpus := "1"
	for key, dst := range map[string]*string{reqCPU: &p.cpu, reqVGA: &p.vga, reqCPUs: &cpus} {
		if suspended {
			*dst = m.Requires[key]
		} else if v := m.Options[key]; v != "" {
			*dst = v
		}
	}
	p.cpus, _ = strconv.Atoi(cpus)
	if suspended {
		n, _ := strconv.ParseInt(m.Requires[reqMemory], 10, 64)
		if p.memory != 0 && p.memory != n {
			return refuse(title, powerOff, "its memory image has %d bytes, its record says %d", p.memory, n), true
		}
		p.memory = n
	}
	if p.memory != 0 && (p.memory < mebibyte || p.memory%mebibyte != 0) {
		return refuse(title, "", "a memory of %d bytes is no multiple of 1 MiB", p.memory), true
	}
	return Info{}, false
}

// chooseAccel settles how the processor is run, and asks QEMU what it has then.
func (d *QEMU) chooseAccel(ctx context.Context, title string, m *Machine, p *plan, suspended bool) (Info, bool) {
	p.accel = m.Options["accel"]
	if suspended {
		p.accel = m.Requires[reqAccel]
	}
	automatic := p.accel == ""
	if p.accel != "tcg" {
		v := d.kvmVerdict(ctx, m, p.program)
		switch {
		case ctx.Err() != nil:
			return Info{}, true
		case v.OK:
			p.accel = "kvm"
		case automatic:
			p.accel = "tcg"
			p.notices = append(p.notices, v.Reason+": emulating the processor (tcg), which is slower")
		case suspended:
			return refuse(title, "resume it on a host with KVM, or "+powerOff, "it was suspended under KVM, and %s", v.Reason), true
		default:
			return refuse(title, "leave -o accel=kvm out", "%s", v.Reason), true
		}
	}
	for {
		var err error
		p.facts, err = factsOf(ctx, m.CacheDir, p.program, p.accel)
		if err != nil {
			return refuse(title, "", "%s does not start: %v", p.program, err), true
		}
		missing := p.facts.CPUs[p.cpu].Unavailable
		if !automatic || p.accel != "kvm" || len(missing) == 0 {
			return Info{}, false
		}
		p.accel = "tcg"
		p.notices = append(p.notices, fmt.Sprintf("KVM on this host lacks %s of the processor %s: emulating it (tcg), which is slower",
			strings.Join(missing, ", "), p.cpu))
	}
}

// chooseMachine settles machine type and processor among what this QEMU has.
func (p *plan) chooseMachine(title string, m *Machine, suspended bool) (Info, bool) {
	// The type stays what it was as long as this QEMU has it: guests take a change for new hardware.
	p.machine = m.Requires[reqMachine]
	known := plain.MatchString(p.machine) && slices.Contains(p.facts.Machines, p.machine)
	switch {
	case suspended && !known:
		return refuse(title, "install QEMU "+m.Requires[reqVersion]+" or newer, or "+powerOff, "%s has no machine type %s", title, p.machine), true
	case known:
	case p.facts.PC == "":
		return refuse(title, "", "%s has no machine type pc", p.program), true
	default:
		if p.machine != "" {
			p.notices = append(p.notices, fmt.Sprintf("%s has no machine type %s: starting as %s", title, p.machine, p.facts.PC))
		}
		p.machine = p.facts.PC
	}
	cpu, known := p.facts.CPUs[p.cpu]
	hint := "name another with -o cpu=MODEL"
	if suspended {
		hint = "resume it on another host, or " + powerOff
	}
	switch {
	case !known:
		return refuse(title, hint, "%s has no processor model %s", title, p.cpu), true
	case !cpu.MigrationSafe:
		return refuse(title, hint, "a machine with processor %s could not leave this host", p.cpu), true
	case len(cpu.Unavailable) > 0:
		return refuse(title, hint, "the processor %s needs %s, which this host lacks (%s)", p.cpu, strings.Join(cpu.Unavailable, ", "), p.accel), true
	}
	return Info{}, false
}

// recordIsOdd checks what a suspended machine's version recorded. It comes from
// elsewhere, and becomes part of a command line.
func recordIsOdd(title string, m *Machine) (Info, bool) {
	const hint = powerOff
	req := m.Requires
	if req["vmm"] != "" && req["vmm"] != "qemu" {
		return refuse(title, hint, "it was suspended by %s", req["vmm"]), true
	}
	odd := func(key string) (Info, bool) {
		return refuse(title, hint, "it is suspended, and its version records %s=%q", key, req[key]), true
	}
	for _, key := range []string{reqVersion, reqMachine, reqCPU} {
		if !plain.MatchString(req[key]) {
			return odd(key)
		}
	}
	if !slices.Contains(accels, req[reqAccel]) {
		return odd(reqAccel)
	}
	if !slices.Contains(vgas, req[reqVGA]) {
		return odd(reqVGA)
	}
	if n, err := strconv.ParseInt(req[reqMemory], 10, 64); err != nil || n <= 0 {
		return odd(reqMemory)
	}
	if n, err := strconv.Atoi(req[reqCPUs]); err != nil || n < 1 || n > maxCPUs {
		return odd(reqCPUs)
	}
	if req[reqHardware] != hardware {
		return refuse(title, "use a newer isr, or "+hint, "it was suspended with devices of generation %q", req[reqHardware]), true
	}
	for _, key := range []string{reqAccel, reqCPU, reqCPUs, reqVGA} {
		if v, ok := m.Options[key]; ok && v != req[key] {
			return refuse(title, "leave the option out, or power it off first", "it was suspended with %s=%s, not %s", key, req[key], v), true
		}
	}
	return Info{}, false
}

// stateIsBad checks a suspended machine's QEMU version and, if there is a CfgDir yet, its device state.
func (*QEMU) stateIsBad(title string, m *Machine, p *plan) (Info, bool) {
	var saved qmpVersion
	fmt.Sscanf(m.Requires[reqVersion], "%d.%d.%d", &saved.Major, &saved.Minor, &saved.Micro)
	if p.facts.Version.less(saved) {
		return refuse(title, fmt.Sprintf("install QEMU %d.%d or newer, or %s", saved.Major, saved.Minor, powerOff),
			"it was suspended by QEMU %s, and older ones cannot be relied on to read that", saved), true
	}
	if m.CfgDir == "" {
		return Info{}, false
	}
	f, err := os.Open(filepath.Join(m.CfgDir, stateName))
	if err == nil {
		defer f.Close()
		head := make([]byte, 8)
		_, err = f.ReadAt(head, 0)
		if err == nil && string(head) != "QEVM\x00\x00\x00\x03" {
			err = badStream("starts with %x", head)
		}
	}
	if err != nil {
		return refuse(title, powerOff, "its device state cannot be read: %v", err), true
	}
	return Info{}, false
}

// chooseDisplay settles display= for this host.
func (p *plan) chooseDisplay(ctx context.Context, m *Machine) error {
	x, wayland := os.Getenv("DISPLAY") != "", os.Getenv("WAYLAND_DISPLAY") != ""
	own := "QEMU's own window does not suspend the machine when it is closed: interrupt isr for that"
	switch p.display {
	case "":
		p.display = "none"
		switch {
		case x:
			p.display = "window"
		case wayland && hasDisplay(ctx, p.program, "gtk"):
			p.display = "gtk"
			p.notices = append(p.notices, own)
		case m.Options["serial"] == "":
			p.notices = append(p.notices, "no display here: the machine runs without a screen")
		}
	case "window":
		if !x {
			return errors.New("display=window needs an X display (DISPLAY is not set)")
		}
	case "gtk", "sdl":
		if !x && !wayland {
			return fmt.Errorf("display=%s needs a display (neither DISPLAY nor WAYLAND_DISPLAY is set)", p.display)
		}
		if !hasDisplay(ctx, p.program, p.display) {
			return fmt.Errorf("%s has no display %s (Debian: install qemu-system-gui)", p.program, p.display)
		}
		p.notices = append(p.notices, own)
	}
	if host, _, is := strings.Cut(strings.TrimPrefix(p.display, "vnc="), ":"); is && host != "127.0.0.1" && host != "localhost" && host != "unix" {
		p.notices = append(p.notices, "the machine's screen is open to anyone who reaches "+p.display)
	}
	return nil
}

// hasDisplay asks a QEMU whether it can show a machine that way.
func hasDisplay(ctx context.Context, program, display string) bool {
	out, err := exec.CommandContext(ctx, program, "-display", "help").Output()
	return err == nil && slices.Contains(strings.Fields(string(out)), display)
}

// requires is what to record with the version.
func (p *plan) requires() map[string]string {
	return map[string]string{
		"vmm":       "qemu",
		reqVersion:  p.facts.Version.String(),
		reqMachine:  p.machine,
		reqCPU:      p.cpu,
		reqCPUs:     strconv.Itoa(p.cpus),
		reqAccel:    p.accel,
		reqMemory:   strconv.FormatInt(p.memory, 10),
		reqVGA:      p.vga,
		reqHardware: hardware,
	}
}

func findQEMU(program string) (string, error) {
	if program != "" {
		p, err := exec.LookPath(program)
		if err != nil {
			return "", err
		}
		return filepath.Abs(p)
	}
	for _, name := range []string{"qemu-system-x86_64", "/usr/libexec/qemu-kvm", "qemu-kvm"} {
		if p, err := exec.LookPath(name); err == nil {
			return filepath.Abs(p)
		}
	}
	return "", errors.New("there is no qemu-system-x86_64 in PATH")
}

// Poweroff deletes the device state.
func (*QEMU) Poweroff(ctx context.Context, m *Machine) error {
	if m.CfgDir == "" {
		return nil
	}
	var errs []error
	for _, name := range []string{stateName, stateName + ".tmp"} {
		if err := os.Remove(filepath.Join(m.CfgDir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// Cleanup kills a QEMU that outlived its keeper and deletes unfinished files.
func (*QEMU) Cleanup(ctx context.Context, m *Machine) error {
	var errs []error
	if m.RunDir != "" {
		errs = append(errs, killStale(ctx, filepath.Join(m.RunDir, pidName), "-uuid", m.UUID))
	}
	if m.CfgDir != "" {
		if err := os.Remove(filepath.Join(m.CfgDir, stateName+".tmp")); !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// spawn starts a QEMU with arguments args and a control socket, and returns
// both. The caller closes the socket and waits for the child.
func spawn(ctx context.Context, program string, args []string, stderr *tail) (*child, *qmp, error) {
	ours, theirs, err := socketPair()
	if err != nil {
		return nil, nil, err
	}
	cmd := exec.Command(program, append(args, "-chardev", "socket,id=qmp,fd=3", "-mon", "chardev=qmp,mode=control")...)
	cmd.ExtraFiles = []*os.File{theirs} // descriptor 3
	cmd.Stdout, cmd.Stderr = stderr, stderr
	return spawnCmd(ctx, cmd, ours, theirs, stderr)
}

func spawnCmd(ctx context.Context, cmd *exec.Cmd, ours *net.UnixConn, theirs *os.File, stderr *tail) (*child, *qmp, error) {
	cmd.SysProcAttr = newGroup()
	c, err := start(cmd, refuseHugePages)
	theirs.Close()
	if err != nil {
		ours.Close()
		return nil, nil, err
	}
	// A core dump would put the machine's memory on the disk.
	unix.Prlimit(cmd.Process.Pid, unix.RLIMIT_CORE, &unix.Rlimit{}, nil)
	q, err := newQMP(ctx, ours)
	if err != nil {
		c.kill()
		if ctx.Err() == nil {
			err = crashed(c, stderr)
		}
		return nil, nil, err
	}
	return c, q, nil
}

// crashed is the error of a QEMU that is gone and was not meant to be.
func crashed(c *child, stderr *tail) error {
	text := stderr.last(3)
	if text == "" {
		text = "it said nothing"
	}
	return fmt.Errorf("%w: %s", &ExitError{Program: "qemu", Status: c.status()}, text)
}
