// Package reach finds out which objects the versions of a parcel lead to: what
// is left over may go, and what a version alone leads to goes with it.
//
// It opens the keyrings with the keyroots, each block of them once or twice,
// however many versions and parcels share it, and changes nothing.
package reach

import (
	"context"
	"errors"
	"strings"
	"sync"

	"isr/store"
	"isr/store/keyring"
	"isr/store/parcel"
	"isr/store/seal"
)

// Class groups versions, from 1: which group of them leads to an object.
type Class int32

// Several is the class of what versions of more than one class lead to.
const Several Class = -1

// reached is what is known of a block that was walked.
type reached struct {
	class  Class
	chunks int64 // that are not zeros, below it
}

// Reach is which objects the versions of a parcel lead to. Each block is
// opened at most twice, however many versions share it, and however often one
// of them refers to it.
type Reach struct {
	p       *store.Parcel
	cache   *Cache
	objects map[seal.TagKey]Class
	blocks  map[blockAt]reached
	walked  map[seal.Ref]Class // keyroots
}

// New is a Reach of a parcel, of which no version was walked yet.
func New(p *store.Parcel, cache *Cache) *Reach {
	return &Reach{p: p, cache: cache, objects: make(map[seal.TagKey]Class), blocks: make(map[blockAt]reached),
		walked: make(map[seal.Ref]Class)}
}

// Has reports whether a version leads to the object.
func (r *Reach) Has(tag seal.Tag) bool { return r.objects[tag.MapKey()] != 0 }

// Version walks all that a keyroot leads to, for a class. After an error what
// it saw counts all the same.
func (r *Reach) Version(ctx context.Context, cfg *parcel.Config, keyroot seal.Ref, c Class) (*keyring.Root, error) {
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

func (r *Reach) note(tag seal.Tag, c Class) {
	k := tag.MapKey()
	switch old := r.objects[k]; {
	case old == 0:
		r.objects[k] = c
	case old != c:
		r.objects[k] = Several
	}
}

// tree walks ref, which is on a level, and returns how many chunks below it
// are not zeros.
func (r *Reach) tree(ctx context.Context, s seal.Sealer, ref seal.Ref, level int, c Class) (int64, error) {
	if ref.IsNil() {
		return 0, nil
	}
	r.note(ref.Tag, c)
	if level == 0 {
		return 1, nil
	}
	at := blockAt{ref.Tag.MapKey(), int8(level)}
	old, ok := r.blocks[at]
	if ok && (old.class == c || old.class == Several) {
		return old.chunks, nil
	}
	if ok {
		c = Several
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

// All walks every version that is recorded, those beyond the head too: a
// commit may have been killed right before it would have published one. The
// error, of the first one that cannot be walked, says which. A version that
// is pruned meanwhile is none.
func (r *Reach) All(ctx context.Context, cfg *parcel.Config) error {
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
			_, err = r.Version(ctx, cfg, rec.Keyroot, 1)
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
		return r.p.Errorf(parcel.Damaged, "version %d: %s", v, strings.TrimPrefix(err.Error(), "parcel "+r.p.Name()+": ")).
			WithHint("isr-locksrv check %s %s says what is damaged", r.p.User(), r.p.Name())
	}
	return nil
}

// Cache keeps opened blocks for the parcels after this one: what was
// copied from one image has the same blocks. Safe for concurrent use.
type Cache struct {
	mu     sync.Mutex
	blocks map[blockID]*keyring.Block
	order  []blockID // oldest first
}

type blockID struct {
	ref   seal.Ref
	level int
}

// maxCachedBlocks bounds a Cache: 40 MiB, of 32 GiB in chunks of 128 KiB.
const maxCachedBlocks = 1024

// NewCache is a Cache with nothing in it.
func NewCache() *Cache { return &Cache{blocks: make(map[blockID]*keyring.Block)} }

// block is keyring.GetBlock, or what that returned before for any parcel: tag
// and key prove that it is the same.
func (c *Cache) block(ctx context.Context, s seal.Sealer, g keyring.Getter, ref seal.Ref, level int) (*keyring.Block, error) {
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

// blockAt is a block at a level; it opens at one level only.
type blockAt struct {
	tag   seal.TagKey
	level int8
}

// Class is that of an object; 0 if no version leads to it.
func (r *Reach) Class(tag seal.Tag) Class { return r.objects[tag.MapKey()] }

// Chunks is how many chunks of an image that was walked are not zeros.
func (r *Reach) Chunks(im keyring.Image) int64 {
	if im.Depth == 0 && !im.Ref.IsNil() {
		return 1
	}
	return r.blocks[blockAt{im.Ref.Tag.MapKey(), int8(im.Depth)}].chunks
}
