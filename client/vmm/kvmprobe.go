package vmm

import (
	"context"
)

// kvmAnswer is whether KVM runs guests on this host.
type kvmAnswer struct {
	OK     bool
	Reason string // why not
}

func (d *QEMU) kvmVerdict(ctx context.Context, m *Machine, program string) kvmAnswer {
	return kvmAnswer{Reason: "kvm not probed"}
}
