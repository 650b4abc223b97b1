package keyring

import (
	"context"

	"isr/store/seal"
)

// Scratch keeps the few objects that are made before it is known which are
// needed.
type Scratch map[seal.Tag][]byte

// Put keeps an object. It makes Scratch a Putter.
func (m Scratch) Put(_ context.Context, tag seal.Tag, sealed []byte) error {
	m[tag] = sealed
	return nil
}

// Before gets from m what m has, the rest from g.
func (m Scratch) Before(g Getter) Getter { return overlay{m, g} }

type overlay struct {
	Scratch
	below Getter
}

func (o overlay) Get(ctx context.Context, tag seal.Tag) ([]byte, error) {
	if b, ok := o.Scratch[tag]; ok {
		return b, nil
	}
	return o.below.Get(ctx, tag)
}
