package vmm

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"syscall"
)

// External is a driver that is a program of its own: an executable named
// isr-vmm-NAME in PATH or in one of LibexecDirs. It is called as
//
//	isr-vmm-NAME MODE
//
// with one of four modes. What it needs is in its environment; what it has to
// say it prints as KEY=value lines on standard output, and nothing else there:
// programs it starts need their standard output elsewhere. Keys nobody knows
// are ignored. Standard error is the user's. An exit status other than 0 is a
// failure, except death by SIGINT in mode run.
//
// Environment, in every mode:
//
//	NAME        user and parcel, "alice/winxp"
//	UUID        of the parcel
//	SUSPENDED   name of the driver that wrote the memory image, or "no"
//	FULLSCREEN  yes or no
//	OPTION_key  for each -o key=value
//	REQUIRE_key for each key the version recorded (see REQUIRE_ below)
//
// and, except in mode info, which may be asked before anything is checked out:
//
//	CFGDIR      directory of the driver's own files; they travel with the parcel
//	RUNDIR      private directory for sockets and pid files
//	DISK        path of the disk image, DISKSIZE its size in bytes
//	MEMORY      path of the memory image, MEMSIZE its size in bytes
//
// In variable names every character of key that is not a letter, digit or underscore is an underscore.
//
// Mode info says whether the machine can run here. It must change nothing.
//
//	VMM=name              display name
//	RUNNABLE=yes|no       must be no if SUSPENDED names another driver
//	RUNNABLE_REASON=text  why not
//	RUNNABLE_HINT=text    what the user can do about it
//
// Mode run starts the machine, from the memory image if SUSPENDED is its own
// name, and returns when it is off or suspended. SIGINT asks it to suspend: to
// write the memory to MEMORY, its own state to CFGDIR, and to end. SIGKILL to
// its process group is how it is killed. It runs in a process group of its own, without a terminal.
//
//	NOTICE=text           shown to the user at once
//	SUSPENDED=yes|no      whether there is a memory image now; default no
//	REQUIRE_key=value     recorded with the version, given back next time
//	SUCCESS=yes|no        default yes
//	ERROR=text            why not
//
// Mode poweroff deletes what the driver keeps of a memory image in CFGDIR. Mode
// cleanup ends and deletes what a killed run left behind. Both print SUCCESS and ERROR; a
// driver that has nothing to do in them exits 0.
type External struct {
	name    string
	Program string // absolute path
}

func (d *External) Name() string { return d.name }

var notVariable = regexp.MustCompile(`[^A-Za-z0-9_]`)

func (d *External) command(m *Machine, mode string) *exec.Cmd {
	cmd := exec.Command(d.Program, mode)
	suspended := m.Suspended
	if suspended == "" {
		suspended = "no"
	}
	env := append(os.Environ(), "NAME="+m.Name, "UUID="+m.UUID, "SUSPENDED="+suspended, "FULLSCREEN="+yesNo(m.Fullscreen))
	for prefix, pairs := range map[string]map[string]string{"OPTION_": m.Options, "REQUIRE_": m.Requires} {
		for k, v := range pairs {
			env = append(env, prefix+notVariable.ReplaceAllString(k, "_")+"="+v)
		}
	}
	if mode != "info" {
		env = append(env, "CFGDIR="+m.CfgDir, "RUNDIR="+m.RunDir, "DISK="+m.Disk, "DISKSIZE="+strconv.FormatInt(m.DiskSize, 10))
		if m.Memory != "" {
			env = append(env, "MEMORY="+m.Memory, "MEMSIZE="+strconv.FormatInt(m.MemorySize, 10))
		}
	}
	cmd.Env = env
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Stderr = file(m.Stderr)
	return cmd
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

// said is what a driver program printed.
type said map[string]string

// ok is the program's own verdict.
func (s said) ok(what string) error {
	if s["SUCCESS"] == "no" || s["ERROR"] != "" {
		reason := s["ERROR"]
		if reason == "" {
			reason = "no reason given"
		}
		return fmt.Errorf("%s: %s", what, reason)
	}
	return nil
}

const maxSaid = 64 << 10 // bytes of a line, and keys in all

// listen reads KEY=value lines; notice gets NOTICE lines as they come.
func listen(r io.Reader, notice func(string)) (said, error) {
	s := said{}
	sc := bufio.NewScanner(r)
	sc.Buffer(nil, maxSaid)
	for sc.Scan() {
		k, v, ok := strings.Cut(sc.Text(), "=")
		switch {
		case !ok || k == "" || notVariable.MatchString(k):
		case k == "NOTICE":
			notice(v)
		case len(s) < maxSaid/64:
			s[k] = v
		}
	}
	return s, sc.Err()
}

// call runs one mode to its end. suspend may be nil.
func (d *External) call(ctx context.Context, m *Machine, mode string, suspend <-chan struct{}) (said, error) {
	cmd := d.command(m, mode)
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	cmd.Stdout = w
	c, err := start(cmd)
	w.Close()
	if err != nil {
		return nil, err
	}
	type heard struct {
		said said
		err  error
	}
	lines := make(chan heard, 1)
	go func() {
		s, err := listen(r, func(text string) { m.say("%s", text) })
		if err != nil {
			io.Copy(io.Discard, r) // or the program would block on its output
		}
		lines <- heard{s, err}
	}()
	if mode == "run" {
		m.started()
	}
	asked := false
	for {
		select {
		case <-ctx.Done():
			c.kill()
			return nil, ctx.Err()
		case <-suspend:
			suspend, asked = nil, true
			c.signal(syscall.SIGINT)
		case <-c.done:
			// What it started may hold its output open for ever.
			syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
			var h heard
			select {
			case h = <-lines:
			case <-ctx.Done():
				return nil, ctx.Err()
			}
			st := c.status()
			if asked && st == 128+int(syscall.SIGINT) {
				st = 0
			}
			if err := h.said.ok(d.Program + " " + mode); err != nil {
				return h.said, err
			}
			if st != 0 {
				return h.said, &ExitError{Program: d.Program + " " + mode, Status: st}
			}
			return h.said, h.err
		}
	}
}

func (d *External) Info(ctx context.Context, m *Machine) (Info, error) {
	s, err := d.call(ctx, m, "info", nil)
	if err != nil {
		return Info{}, err
	}
	i := Info{Title: s["VMM"], Runnable: s["RUNNABLE"] == "yes", Reason: s["RUNNABLE_REASON"], Hint: s["RUNNABLE_HINT"]}
	if i.Title == "" {
		i.Title = d.name
	}
	if no, is := suspendedElsewhere(i.Title, m, d.name); is {
		return no, nil // whatever it says itself
	}
	if !i.Runnable && i.Reason == "" {
		i.Reason = d.Program + " gives no reason"
	}
	return i, nil
}

func (d *External) Run(ctx context.Context, m *Machine, suspend <-chan struct{}) (Outcome, error) {
	i, err := d.Info(ctx, m)
	if err == nil {
		err = i.Err()
	}
	if err != nil {
		return Outcome{}, err
	}
	s, err := d.call(ctx, m, "run", suspend)
	if err != nil {
		return Outcome{}, err
	}
	out := Outcome{Suspended: s["SUSPENDED"] == "yes", Requires: map[string]string{"vmm": d.name}}
	if out.Suspended && m.Pages != nil {
		// It wrote the memory through the path it has, so there is nothing left to save.
		if err := m.Pages.BeginSave(); err != nil {
			return Outcome{}, fmt.Errorf("%w: %w", ErrNotSaved, err)
		}
	}
	for k, v := range s {
		if key, ok := strings.CutPrefix(k, "REQUIRE_"); ok && key != "" {
			out.Requires[key] = v
		}
	}
	return out, nil
}

func (d *External) Poweroff(ctx context.Context, m *Machine) error {
	_, err := d.call(ctx, m, "poweroff", nil)
	return err
}

func (d *External) Cleanup(ctx context.Context, m *Machine) error {
	_, err := d.call(ctx, m, "cleanup", nil)
	return err
}
