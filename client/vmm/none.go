package vmm

import "context"

// None runs nothing: it waits for the request to suspend. The images stay
// mounted meanwhile, for scripts and other programs. It writes no memory image.
type None struct{}

func (None) Name() string { return "none" }

func (None) Info(ctx context.Context, m *Machine) (Info, error) {
	if err := checkOptions("none", m.Options); err != nil {
		return Info{}, err
	}
	if i, no := suspendedElsewhere("no VMM", m, "none"); no {
		return i, nil
	}
	return Info{Title: "no VMM", Runnable: true}, nil
}

func (d None) Run(ctx context.Context, m *Machine, suspend <-chan struct{}) (Outcome, error) {
	i, err := d.Info(ctx, m)
	if err == nil {
		err = i.Err()
	}
	if err != nil {
		return Outcome{}, err
	}
	m.started()
	m.say("%s: disk at %s, memory at %s; an interrupt ends it", m.Name, m.Disk, m.Memory)
	select {
	case <-suspend:
		return Outcome{}, nil
	case <-ctx.Done():
		return Outcome{}, ctx.Err()
	}
}

func (None) Poweroff(ctx context.Context, m *Machine) error { return nil }
func (None) Cleanup(ctx context.Context, m *Machine) error  { return nil }
