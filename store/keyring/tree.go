package keyring

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sort"
	"sync"

	"isr/store/seal"
)

// Tree is one image's references, got block by block as they are asked for,
// with changes kept in memory until Flush. Safe for concurrent use.
type Tree struct {
	sealer seal.Sealer
	getter Getter

	flush sync.Mutex // one Flush at a time

	mu      sync.Mutex
	image   Image              // as of NewTree or the last Flush
	changed map[int64]seal.Ref // chunk number → reference that differs from image
	blocks  map[blockKey]*Block
	order   []blockKey // of blocks, oldest first
}

// blockKey is all that opening a block verifies.
type blockKey struct {
	ref   seal.Ref
	level int
}

// maxBlocks bounds the opened blocks a Tree keeps: 256 cover 8 GiB of
// 128 KiB chunks, in about 7 MiB.
const maxBlocks = 256

// NewTree opens image im, whose blocks come from g.
func NewTree(s seal.Sealer, im Image, g Getter) *Tree {
	return &Tree{sealer: s, getter: g, image: im,
		changed: make(map[int64]seal.Ref), blocks: make(map[blockKey]*Block)}
}

// Image is the image without the changes not yet flushed.
func (t *Tree) Image() Image {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.image
}

// Ref is the reference of chunk n, changes included.
func (t *Tree) Ref(ctx context.Context, n int64) (seal.Ref, error) {
	t.mu.Lock()
	im := t.image
	if r, ok := t.changed[n]; ok {
		t.mu.Unlock()
		return r, nil
	}
	t.mu.Unlock()
	if n < 0 || n >= im.Chunks() {
		return seal.Ref{}, fmt.Errorf("chunk %d of image %s: it has %d", n, im.Name, im.Chunks())
	}
	ref := im.Ref
	for level := im.Depth; level > 0 && !ref.IsNil(); level-- {
		b, err := t.block(ctx, ref, level)
		if err != nil {
			return seal.Ref{}, fmt.Errorf("image %s: %w", im.Name, err)
		}
		ref = b[(n>>(8*(level-1)))%Fanout]
	}
	return ref, nil
}

// Set makes ref the reference of chunk n.
func (t *Tree) Set(n int64, ref seal.Ref) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if n < 0 || n >= t.image.Chunks() {
		panic(fmt.Sprintf("keyring: set chunk %d of %d", n, t.image.Chunks()))
	}
	t.changed[n] = ref
}

// block is the opened block of ref, from memory or from the getter. The
// getter is called without the lock: reads of several chunks go on at once.
func (t *Tree) block(ctx context.Context, ref seal.Ref, level int) (*Block, error) {
	key := blockKey{ref, level}
	t.mu.Lock()
	b := t.blocks[key]
	t.mu.Unlock()
	if b != nil {
		return b, nil
	}
	b, err := GetBlock(ctx, t.sealer, t.getter, ref, level)
	if err != nil {
		return nil, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.blocks[key] == nil {
		if len(t.order) >= maxBlocks {
			delete(t.blocks, t.order[0])
			t.order = t.order[1:]
		}
		t.blocks[key] = b
		t.order = append(t.order, key)
	}
	return b, nil
}

// Flush stores the blocks on the paths to what was Set, and nothing else, and
// returns the image that includes them. What is Set meanwhile is for the next
// Flush. After an error nothing is lost: it may be tried again.
func (t *Tree) Flush(ctx context.Context, dst Putter) (Image, error) {
	t.flush.Lock()
	defer t.flush.Unlock()
	t.mu.Lock()
	im := t.image
	changed := maps.Clone(t.changed)
	t.mu.Unlock()
	nums := slices.Sorted(maps.Keys(changed))
	ref, err := t.rewrite(ctx, dst, im.Ref, im.Depth, nums, changed)
	if err != nil {
		return Image{}, fmt.Errorf("image %s: %w", im.Name, err)
	}
	im.Ref = ref
	t.mu.Lock()
	defer t.mu.Unlock()
	t.image = im
	for n, r := range changed {
		if t.changed[n] == r {
			delete(t.changed, n)
		}
	}
	return im, nil
}

// rewrite is the reference to the subtree at ref with the changes in nums,
// all of which lie in it, ascending.
func (t *Tree) rewrite(ctx context.Context, dst Putter, ref seal.Ref, level int, nums []int64, changed map[int64]seal.Ref) (seal.Ref, error) {
	if len(nums) == 0 {
		return ref, nil
	}
	if level == 0 {
		return changed[nums[0]], nil
	}
	b := new(Block)
	if !ref.IsNil() {
		old, err := t.block(ctx, ref, level)
		if err != nil {
			return seal.Ref{}, err
		}
		*b = *old
	}
	shift := 8 * (level - 1)
	for len(nums) > 0 {
		slot := nums[0] >> shift
		end := sort.Search(len(nums), func(i int) bool { return nums[i]>>shift > slot })
		sub, err := t.rewrite(ctx, dst, b[slot%Fanout], level-1, nums[:end], changed)
		if err != nil {
			return seal.Ref{}, err
		}
		b[slot%Fanout] = sub
		nums = nums[end:]
	}
	return putBlock(ctx, t.sealer, dst, b, level)
}

// Visit is called for a reference: level 0 is chunk number n, level l > 0 the
// block that covers chunks n·256^l to (n+1)·256^l-1.
type Visit func(level int, n int64, ref seal.Ref) error

// Walk visits every non-nil reference of im, a block before what is below it.
// A visit that returns SkipBelow leaves out what is below that block.
func Walk(ctx context.Context, s seal.Sealer, g Getter, im Image, visit Visit) error {
	return Diff(ctx, s, g, NewImage(im.Name, im.Size, im.ChunkSize), im, func(level int, n int64, _, ref seal.Ref) error {
		return visit(level, n, ref)
	})
}

// SkipBelow as a visit's error leaves out what is below a block.
var SkipBelow = errors.New("skip what is below this block")

// Diff visits every position where old and cur have different references, a
// block before what is below it, and gets only blocks that differ. One of the
// two references may be nil. Images of different depth or chunk size share no
// position: then old counts as zeros, and all of cur is visited. A reference
// beyond the end of cur wraps ErrFormat.
func Diff(ctx context.Context, s seal.Sealer, g Getter, old, cur Image, visit func(level int, n int64, old, cur seal.Ref) error) error {
	if old.Depth != cur.Depth || old.ChunkSize != cur.ChunkSize {
		old.Ref = seal.Ref{}
	}
	d := differ{ctx, s, g, cur.Chunks(), visit}
	if err := d.diff(old.Ref, cur.Ref, cur.Depth, 0); err != nil {
		return fmt.Errorf("image %s: %w", cur.Name, err)
	}
	return nil
}

type differ struct {
	ctx    context.Context
	sealer seal.Sealer
	getter Getter
	chunks int64 // of cur
	visit  func(level int, n int64, old, cur seal.Ref) error
}

func (d *differ) diff(old, cur seal.Ref, level int, n int64) error {
	// The keys count too: the same block under a wrong key cannot be opened.
	if old == cur {
		return nil
	}
	if !cur.IsNil() && n<<(8*level) >= d.chunks {
		return fmt.Errorf("reference %d of level %d is beyond the end: %w", n, level, ErrFormat)
	}
	switch err := d.visit(level, n, old, cur); {
	case err == SkipBelow:
		return nil
	case err != nil:
		return err
	}
	if level == 0 {
		return nil
	}
	var pair [2]*Block
	for i, ref := range []seal.Ref{old, cur} {
		pair[i] = new(Block)
		if ref.IsNil() {
			continue
		}
		b, err := GetBlock(d.ctx, d.sealer, d.getter, ref, level)
		if err != nil {
			return err
		}
		pair[i] = b
	}
	for i := range Fanout {
		if err := d.diff(pair[0][i], pair[1][i], level-1, n*Fanout+int64(i)); err != nil {
			return err
		}
	}
	return nil
}
