package vmm

import (
	"context"
	"errors"
)

// QEMU is the driver for QEMU.
type QEMU struct{}

func (*QEMU) Name() string { return "qemu" }
func (*QEMU) Info(ctx context.Context, m *Machine) (Info, error) {
	return Info{}, errors.ErrUnsupported
}
func (*QEMU) Run(ctx context.Context, m *Machine, suspend <-chan struct{}) (Outcome, error) {
	return Outcome{}, errors.ErrUnsupported
}
func (*QEMU) Poweroff(ctx context.Context, m *Machine) error { return errors.ErrUnsupported }
func (*QEMU) Cleanup(ctx context.Context, m *Machine) error  { return errors.ErrUnsupported }
