package vmm

import (
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"
)

// There are hosts whose /dev/kvm opens, and creates virtual machines, and does
// not run an ordinary guest: kernels that virtualise by paravirtualisation offer
// it for guests made for them, emulate every kernel instruction of any other
// (seen: 0.8 million instructions a second) and never get it into user mode.
// Nothing that could be asked tells them apart, so the driver tries: a guest of 4 KiB
// (kvmprobe/probe.S) does what a kernel needs, from page faults to ring 3 to timer interrupts that
// wake a halted processor, and fifty million plain instructions. On a
// processor that virtualises that takes a quarter of a second, QEMU's start included.

//go:embed kvmprobe/probe.bin
var probeCode []byte

const (
	probeCPU   = 800 * time.Millisecond  // of processor time; then it is no acceleration
	probeTime  = 2800 * time.Millisecond // in all
	probeROM   = 64 << 10
	probeOK    = 0x2a<<1 | 1 // isa-debug-exit's status for what the guest wrote
	probeEvery = 20 * time.Millisecond
)

// What a stage of the probe shows, by its number there.
var probeStages = []string{
	1: "long mode", 2: "page faults", 3: "user mode and system calls",
	4: "local APIC timer interrupts", 5: "I/O APIC interrupts", 6: "time stamp counter and CPUID",
}

// kvmAnswer is whether KVM runs guests on this host.
type kvmAnswer struct {
	OK     bool
	Reason string // why not: a clause
	Took   time.Duration
}

var (
	kvmMu   sync.Mutex
	kvmMemo = map[string]kvmAnswer{}
)

const kvmDevice = "/dev/kvm"

// kvmVerdict says whether program runs guests under KVM; it remembers, per boot and build of QEMU.
func (d *QEMU) kvmVerdict(ctx context.Context, m *Machine, program string) kvmAnswer {
	f, err := os.OpenFile(kvmDevice, os.O_RDWR, 0)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return kvmAnswer{Reason: "this host has no KVM"}
	case errors.Is(err, fs.ErrPermission):
		return kvmAnswer{Reason: "you may not use " + kvmDevice + " (are you in the group kvm?)"}
	case err != nil:
		return kvmAnswer{Reason: err.Error()}
	}
	f.Close()
	key, err := identity(program)
	if err != nil {
		return kvmAnswer{Reason: err.Error()}
	}
	const name = "kvm.json"
	kvmMu.Lock()
	defer kvmMu.Unlock()
	if a, ok := kvmMemo[key]; ok {
		return a
	}
	a, ok := readCache[kvmAnswer](m.CacheDir, name, key)
	if !ok {
		var sure bool
		if a, sure = probe(ctx, program, "kvm", probeCPU, probeTime); !sure {
			return a // the host may just be busy: ask again next time
		}
		writeCache(m.CacheDir, name, key, a)
	}
	kvmMemo[key] = a
	return a
}

// probe runs the probe under an accelerator, for some time of the processor and
// in all. sure: the answer is the host's, not the moment's.
func probe(ctx context.Context, program, accel string, cpu, inAll time.Duration) (a kvmAnswer, sure bool) {
	begin := time.Now()
	defer func() { a.Took = time.Since(begin) }()
	dir, err := os.MkdirTemp("", "isr-probe")
	if err != nil {
		return kvmAnswer{Reason: err.Error()}, false
	}
	defer os.RemoveAll(dir)
	rom := filepath.Join(dir, "rom")
	image := append(make([]byte, probeROM-len(probeCode)), probeCode...)
	if err := os.WriteFile(rom, image, 0o600); err != nil {
		return kvmAnswer{Reason: err.Error()}, false
	}
	stderr := &tail{}
	cmd := exec.Command(program, "-nodefaults", "-no-user-config", "-machine", "pc", "-accel", accel, "-m", "16",
		"-bios", rom, "-display", "none", "-no-reboot", "-device", "isa-debug-exit,iobase=0xf4,iosize=0x04")
	cmd.Stderr = stderr
	cmd.SysProcAttr = newGroup()
	c, err := start(cmd)
	if err != nil {
		return kvmAnswer{Reason: err.Error()}, false
	}
	defer c.kill()
	tick := time.NewTicker(probeEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return kvmAnswer{Reason: ctx.Err().Error()}, false
		case <-c.done:
			return judge(cmd.ProcessState.ExitCode(), stderr.last(2))
		case <-tick.C:
			spent := cpuTime(cmd.Process.Pid)
			if spent > cpu {
				return kvmAnswer{Reason: "KVM on this host runs an ordinary kernel far too slowly (it emulates it)"}, true
			}
			if time.Since(begin) > inAll {
				return kvmAnswer{Reason: fmt.Sprintf("a test guest under KVM did not end in %v", inAll)}, false
			}
		}
	}
}

// judge reads the probe's exit status, -1 for death by a signal. 0 is what a
// triple fault becomes, 1 is QEMU's refusal to start.
func judge(status int, stderr string) (kvmAnswer, bool) {
	stage := status>>1 - 0x40
	switch {
	case status == probeOK:
		return kvmAnswer{OK: true}, true
	case status == 0:
		return kvmAnswer{Reason: "KVM on this host does not run an ordinary kernel (triple fault)"}, true
	case status > 0 && status&1 == 1 && stage >= 1 && stage < len(probeStages):
		return kvmAnswer{Reason: "KVM on this host does not run an ordinary kernel (" + probeStages[stage] + " fail)"}, true
	}
	return kvmAnswer{Reason: fmt.Sprintf("KVM does not start (status %d: %s)", status, stderr)}, false
}

// cpuTime is what a process has used of processors so far.
func cpuTime(pid int) time.Duration {
	b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return 0
	}
	f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	if len(f) < 13 {
		return 0
	}
	user, _ := strconv.ParseInt(f[11], 10, 64)
	system, _ := strconv.ParseInt(f[12], 10, 64)
	return time.Duration(user+system) * (time.Second / clockTicks)
}

const clockTicks = 100 // USER_HZ, fixed in Linux's interface
