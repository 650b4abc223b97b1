package vmm

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// The probe passes where a guest is known to run: under TCG.
func TestProbePassesUnderTCG(t *testing.T) {
	needQEMU(t)
	program, err := findQEMU("")
	if err != nil {
		t.Fatal(err)
	}
	a, sure := probe(t.Context(), program, "tcg", limit, limit)
	t.Logf("%+v sure=%v", a, sure)
	if !a.OK || !sure {
		t.Errorf("got %+v, sure %v; want OK", a, sure)
	}
}

// Whatever this host's KVM is, the answer comes in time and gives a reason if it is no.
func TestProbeKVM(t *testing.T) {
	needQEMU(t)
	program, _ := findQEMU("")
	if f, err := os.OpenFile(kvmDevice, os.O_RDWR, 0); err != nil {
		t.Skipf("kvm: %v", err)
	} else {
		f.Close()
	}
	a, sure := probe(t.Context(), program, "kvm", probeCPU, probeTime)
	t.Logf("%+v sure=%v", a, sure)
	if a.Took > 10*probeTime { // it has to end QEMU, and others want the processor
		t.Errorf("took %v", a.Took)
	}
	if !a.OK && a.Reason == "" {
		t.Error("no, without a reason")
	}
}

func TestJudge(t *testing.T) {
	for _, c := range []struct {
		status   int
		ok, sure bool
		reason   string
	}{
		{probeOK, true, true, ""},
		{0, false, true, "triple fault"},
		{1, false, false, "does not start"},
		{(0x40+0)<<1 | 1, false, false, "does not start"},
		{(0x40+1)<<1 | 1, false, true, "long mode"},
		{(0x40+3)<<1 | 1, false, true, "user mode"},
		{(0x40+6)<<1 | 1, false, true, "time stamp"},
		{(0x40+7)<<1 | 1, false, false, "does not start"},
		{-1, false, false, "does not start"},
		{2, false, false, "does not start"},
	} {
		a, sure := judge(c.status, "text")
		if a.OK != c.ok || sure != c.sure || !strings.Contains(a.Reason, c.reason) {
			t.Errorf("judge(%d): got %+v, %v; want %v, %v, %q", c.status, a, sure, c.ok, c.sure, c.reason)
		}
	}
}

// A virtual machine that burns time, and one that stands still.
func TestProbeGivesUp(t *testing.T) {
	for _, c := range []struct {
		name, script, reason string
		sure                 bool
		cpu, inAll           time.Duration
	}{
		{"emulated", "while :; do :; done", "far too slowly", true, 50 * time.Millisecond, limit},
		{"stuck", "exec sleep 600", "did not end", false, limit, 50 * time.Millisecond},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			program := filepath.Join(t.TempDir(), "qemu")
			if err := os.WriteFile(program, []byte("#!/bin/sh\n"+c.script+"\n"), 0o700); err != nil {
				t.Fatal(err)
			}
			a, sure := probe(t.Context(), program, "kvm", c.cpu, c.inAll)
			if a.OK || sure != c.sure || !strings.Contains(a.Reason, c.reason) {
				t.Errorf("got %+v, %v; want %q, %v", a, sure, c.reason, c.sure)
			}
		})
	}
}

// probe.bin is what its source says.
func TestProbeSource(t *testing.T) {
	for _, tool := range []string{"as", "ld"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("%s: %v", tool, err)
		}
	}
	dir := t.TempDir()
	o, bin := filepath.Join(dir, "probe.o"), filepath.Join(dir, "probe.bin")
	for _, args := range [][]string{
		{"as", "--64", "-o", o, "kvmprobe/probe.S"},
		{"ld", "-m", "elf_x86_64", "-Ttext=0xff000", "--oformat=binary", "-o", bin, o},
	} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Skipf("%v: %v: %s", args, err, out) // another architecture's tools
		}
	}
	got, err := os.ReadFile(bin)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, probeCode) {
		t.Errorf("probe.bin is not what probe.S gives (%d and %d bytes)", len(probeCode), len(got))
	}
}
