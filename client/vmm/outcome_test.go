package vmm

import (
	"os"
	"path/filepath"
	"testing"
)

// rebooter is a boot sector that resets the machine the first time, and powers
// it off the second; a cell of the clock's memory tells which it is.
var rebooter = []byte{
	0xb0, 0x40, 0xe6, 0x70, 0xe4, 0x71, // al = cell 40h
	0x3c, 0x5a, 0x74, 0x0f, // was it set? then off
	0xb0, 0x40, 0xe6, 0x70, 0xb0, 0x5a, 0xe6, 0x71, // set it
	0xb0, 0xfe, 0xe6, 0x64, 0xf4, 0xeb, 0xfd, // pulse the processor's reset line
	0xba, 0x04, 0x06, 0xb8, 0x00, 0x20, 0xef, 0xf4, 0xeb, 0xfd, // sleep state S5
}

// What a run was like is told with how it ended.
func TestQEMUOutcome(t *testing.T) {
	disk := filepath.Join(t.TempDir(), "disk")
	image := make([]byte, 1<<20)
	copy(image, rebooter)
	image[510], image[511] = 0x55, 0xaa
	if err := os.WriteFile(disk, image, 0o600); err != nil {
		t.Fatal(err)
	}
	r := newRig(t, disk, 64<<20)
	e := r.run().wait()
	if e.err != nil || e.out.Suspended || e.out.Reboots != 1 || e.out.CPU <= 0 || e.out.Accel != "tcg" {
		t.Errorf("got %+v, %v", e.out, e.err)
	}
}

func TestShellOutcome(t *testing.T) {
	m := &Machine{Name: "x", Options: map[string]string{"command": "i=0; while [ $i -lt 2000 ]; do i=$((i+1)); done"}}
	out, err := Shell{}.Run(t.Context(), m, nil)
	if err != nil || out.CPU <= 0 {
		t.Errorf("got %+v, %v", out, err)
	}
}
