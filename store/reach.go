package store

import (
	"context"
	"errors"
	"strings"
	"sync"

	"isr/store/keyring"
	"isr/store/parcel"
	"isr/store/seal"
)

// class groups versions, from 1: which group of them leads to an object.
type class int32

// several is the class of what versions of more than one class lead to.
const several class = -1

// tagKey is a tag as a map's key without a pointer in it: there are millions.
type tagKey [32]byte

func keyOf(tag seal.Tag) (k tagKey) {
	copy(k[:], tag)
	return k
}

// levelKey is a block at a level; it opens at one level only.
type levelKey struct {
	tag   tagKey
	level int8
}

// reached is what is known of a block that was walked.
type reached struct {
	class  class
	chunks int64 // that are not zeros, below it
}

// reach is which objects the versions of a parcel lead to. Each block is
// opened at most twice, however many versions share it, and however often one
// of them refers to it.
type reach struct {
	p       *Parcel
	cache   *blockCache
	objects map[tagKey]class
	blocks  map[levelKey]reached
	walked  map[seal.Ref]class // keyroots
}

func newReach(p *Parcel, cache *blockCache) *reach {
	return &reach{p: p, cache: cache, objects: make(map[tagKey]class), blocks: make(map[levelKey]reached),
		walked: make(map[seal.Ref]class)}
}

// has reports whether a version leads to the object.
func (r *reach) has(tag seal.Tag) bool { return r.objects[keyOf(tag)] != 0 }

// version walks all that a keyroot leads to, for a class. After an error what
// it saw counts all the same.
func (r *reach) version(ctx context.Context, cfg *parcel.Config, keyroot seal.Ref, c class) (*keyring.Root, error) {
	r.note(keyroot.Tag, c)
	root, err := r.p.OpenRoot(ctx, r.p, cfg, keyroot)
	if err != nil {
		return nil, err
	}
	if r.walked[keyroot] == c {
		return root, nil
	}
	if !root.Cfg.IsNil() {
		r.note(root.Cfg.Tag, c)
	}
	for _, im := range root.Images {
		if _, err := r.tree(ctx, cfg.Sealer(), im.Ref, im.Depth, c); err != nil {
			return nil, r.p.Wrap(err)
		}
	}
	r.walked[keyroot] = c
	return root, nil
}

func (r *reach) note(tag seal.Tag, c class) {
	k := keyOf(tag)
	switch old := r.objects[k]; {
	case old == 0:
		r.objects[k] = c
	case old != c:
		r.objects[k] = several
	}
}

// tree walks ref, which is on a level, and returns how many chunks below it
// are not zeros.
func (r *reach) tree(ctx context.Context, s seal.Sealer, ref seal.Ref, level int, c class) (int64, error) {
	if ref.IsNil() {
		return 0, nil
	}
	r.note(ref.Tag, c)
	if level == 0 {
		return 1, nil
	}
	at := levelKey{keyOf(ref.Tag), int8(level)}
	old, ok := r.blocks[at]
	if ok && (old.class == c || old.class == several) {
		return old.chunks, nil
	}
	if ok {
		c = several
	}
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	b, err := r.cache.block(ctx, s, r.p, ref, level)
	if err != nil {
		return 0, err
	}
	var chunks int64
	for _, sub := range b {
		n, err := r.tree(ctx, s, sub, level-1, c)
		if err != nil {
			return 0, err
		}
		chunks += n
	}
	r.blocks[at] = reached{c, chunks}
	return chunks, nil
}

// all walks every version that is recorded, those beyond the head too: a
// commit may have been killed right before it would have published one. The
// error, of the first one that cannot be walked, says which. A version that
// is pruned meanwhile is none.
func (r *reach) all(ctx context.Context, cfg *parcel.Config) error {
	numbers, err := r.p.Recorded()
	if err != nil {
		return err
	}
	for _, v := range numbers {
		rec, err := r.p.Record(v)
		if err == nil {
			if r.walked[rec.Keyroot] != 0 {
				continue
			}
			_, err = r.version(ctx, cfg, rec.Keyroot, 1)
		}
		if cerr := ctx.Err(); cerr != nil {
			return cerr
		}
		if err == nil || v > cfg.Version {
			continue
		}
		if _, gone := r.p.Record(v); errors.Is(gone, parcel.ErrNoVersion) {
			continue
		}
		return r.p.Errorf(parcel.Damaged, "version %d: %s", v, strings.TrimPrefix(err.Error(), "parcel "+r.p.name+": ")).
			WithHint("isr-locksrv check %s %s says what is damaged", r.p.user.Name, r.p.name)
	}
	return nil
}

// blockCache keeps opened blocks for the parcels after this one: what was
// copied from one image has the same blocks. Safe for concurrent use.
type blockCache struct {
	mu     sync.Mutex
	blocks map[blockID]*keyring.Block
	order  []blockID // oldest first
}

type blockID struct {
	ref   seal.Ref
	level int
}

// maxCachedBlocks bounds a blockCache: 40 MiB, of 32 GiB in chunks of 128 KiB.
const maxCachedBlocks = 1024

func newBlockCache() *blockCache { return &blockCache{blocks: make(map[blockID]*keyring.Block)} }

// block is keyring.GetBlock, or what that returned before for any parcel: tag
// and key prove that it is the same.
func (c *blockCache) block(ctx context.Context, s seal.Sealer, g keyring.Getter, ref seal.Ref, level int) (*keyring.Block, error) {
	id := blockID{ref, level}
	c.mu.Lock()
	b := c.blocks[id]
	c.mu.Unlock()
	if b != nil {
		return b, nil
	}
	b, err := keyring.GetBlock(ctx, s, g, ref, level)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.blocks[id] == nil {
		if len(c.order) >= maxCachedBlocks {
			delete(c.blocks, c.order[0])
			c.order = c.order[1:]
		}
		c.blocks[id] = b
		c.order = append(c.order, id)
	}
	return b, nil
}
