package keyring

import (
	"context"
	"fmt"

	"isr/store/seal"
)

// Block is one node of an image's tree: Fanout references, at level 1 to
// chunks, above to blocks of the level below.
type Block [Fanout]seal.Ref

// The kinds of a reference, its first byte. A kind 2, a chunk kept as its
// difference from another object, is reserved: tag, key, then tag and key of
// the base.
const (
	kindNil   = 0 // zeros; nothing follows
	kindWhole = 1 // tag and key follow
)

// blockMagic begins every block, then one byte of level.
const blockMagic = "isrK"

// maxBlock bounds the plaintext of a block, bytes.
const maxBlock = len(blockMagic) + 1 + Fanout*(1+2*32)

func (b *Block) encode(level int) []byte {
	p := make([]byte, 0, maxBlock)
	p = append(p, blockMagic...)
	p = append(p, byte(level))
	for _, r := range b {
		if r.IsNil() {
			p = append(p, kindNil)
			continue
		}
		p = append(p, kindWhole)
		p = append(p, r.Tag...)
		p = append(p, r.Key...)
	}
	return p
}

func decodeBlock(p []byte, level, hashSize int) (*Block, error) {
	if len(p) < len(blockMagic)+1 || string(p[:len(blockMagic)]) != blockMagic {
		return nil, fmt.Errorf("keyring block: no magic: %w", ErrFormat)
	}
	if got := int(p[len(blockMagic)]); got != level {
		return nil, fmt.Errorf("keyring block: level %d where %d belongs: %w", got, level, ErrFormat)
	}
	p = p[len(blockMagic)+1:]
	b := new(Block)
	for i := range b {
		if len(p) == 0 {
			return nil, fmt.Errorf("keyring block: ends at reference %d: %w", i, ErrFormat)
		}
		kind := p[0]
		p = p[1:]
		switch kind {
		case kindNil:
		case kindWhole:
			if len(p) < 2*hashSize {
				return nil, fmt.Errorf("keyring block: ends at reference %d: %w", i, ErrFormat)
			}
			b[i] = seal.Ref{Tag: seal.Tag(p[:hashSize]), Key: seal.Key(p[hashSize : 2*hashSize])}
			p = p[2*hashSize:]
		default:
			return nil, fmt.Errorf("keyring block: reference %d of kind %d: %w", i, kind, ErrFormat)
		}
	}
	if len(p) != 0 {
		return nil, fmt.Errorf("keyring block: %d bytes too long: %w", len(p), ErrFormat)
	}
	return b, nil
}

func (b *Block) isNil() bool {
	for _, r := range b {
		if !r.IsNil() {
			return false
		}
	}
	return true
}

// GetBlock gets and opens the block that ref leads to, at level.
func GetBlock(ctx context.Context, s seal.Sealer, g Getter, ref seal.Ref, level int) (*Block, error) {
	sealed, err := g.Get(ctx, ref.Tag)
	if err != nil {
		return nil, fmt.Errorf("keyring block: %w", err)
	}
	p, err := s.Unseal(ref, sealed, maxBlock)
	if err != nil {
		return nil, fmt.Errorf("keyring block: %w", err)
	}
	return decodeBlock(p, level, s.Suite.HashSize())
}

// putBlock seals and stores b; a block of nothing but nil is itself nil.
func putBlock(ctx context.Context, s seal.Sealer, dst Putter, b *Block, level int) (seal.Ref, error) {
	if b.isNil() {
		return seal.Ref{}, nil
	}
	for i, r := range b {
		if size := s.Suite.HashSize(); !r.IsNil() && (len(r.Tag) != size || len(r.Key) != size) {
			return seal.Ref{}, fmt.Errorf("keyring block: reference %d is of another suite than %s", i, s.Suite)
		}
	}
	ref, sealed, err := s.Seal(b.encode(level))
	if err != nil {
		return seal.Ref{}, err
	}
	return ref, dst.Put(ctx, ref.Tag, sealed)
}
