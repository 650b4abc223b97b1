// Package keyring holds the hash tree that leads from one keyroot to every
// chunk of a version.
//
// The root block names the images; each image is a tree of blocks of 256
// references; every block is sealed like a chunk and stored as an object. So
// a change rewrites only the blocks on its path, two versions are compared by
// walking only where they differ, and whoever holds the keyroot can read all.
//
// The package promises that what it decodes re-encodes to the same bytes, and
// that all it returns was verified by tag and key. It does not store or fetch:
// objects come from a Getter and go to a Putter. isr-store(5) has the bytes.
package keyring

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"isr/store/seal"
)

// Format is the version of the root block and of the tree below it.
const Format = 1

// Fanout is the number of references in a block.
const Fanout = 256

// ErrFormat is wrapped by errors for a root or block that is whole but not of
// a form this program reads.
var ErrFormat = errors.New("unknown keyring format")

// Getter gets the sealed bytes of an object by its tag. What it returns is
// verified by the caller and may be kept by it.
type Getter interface {
	Get(ctx context.Context, tag seal.Tag) ([]byte, error)
}

// Putter stores an object; to put one that exists is no error.
type Putter interface {
	Put(ctx context.Context, tag seal.Tag, sealed []byte) error
}

// The names of the images of a parcel.
const (
	Disk   = "disk"
	Memory = "memory"
)

// Image is one image of a version, as its root block names it.
type Image struct {
	Name      string   `json:"name"`
	Size      int64    `json:"size"`       // bytes; the last chunk is padded with zeros
	ChunkSize int      `json:"chunk_size"` // bytes, a power of two
	Depth     int      `json:"depth"`      // levels of blocks between root and chunks
	Ref       seal.Ref `json:"ref"`        // the top block, or the only chunk at depth 0
}

// NewImage is an image of zeros.
func NewImage(name string, size int64, chunkSize int) Image {
	im := Image{Name: name, Size: size, ChunkSize: chunkSize}
	for span := int64(1); span < im.Chunks(); span *= Fanout {
		im.Depth++
	}
	return im
}

// Chunks is the number of chunks of the image.
func (im Image) Chunks() int64 {
	return (im.Size + int64(im.ChunkSize) - 1) / int64(im.ChunkSize)
}

// MinChunk and MaxChunk bound the size of a chunk in bytes: below a page a
// chunk is all overhead, and one fetch of over 4 MiB is no demand fetch.
const (
	MinChunk = 4 << 10
	MaxChunk = 4 << 20
)

// CheckChunkSize reports whether n is a chunk size.
func CheckChunkSize(n int) error {
	if n < MinChunk || n > MaxChunk || n&(n-1) != 0 {
		return fmt.Errorf("chunk size %d: want a power of two from %d to %d", n, MinChunk, MaxChunk)
	}
	return nil
}

func (im Image) check() error {
	if im.Name == "" || strings.Trim(im.Name, "abcdefghijklmnopqrstuvwxyz0123456789_") != "" {
		return fmt.Errorf("image %q: want a name of lower-case letters, digits and _", im.Name)
	}
	if err := CheckChunkSize(im.ChunkSize); err != nil {
		return fmt.Errorf("image %s: %w", im.Name, err)
	}
	// 2^56 bytes is Fanout^5 chunks of the smallest size and more.
	if im.Size < 0 || im.Size > 1<<56 {
		return fmt.Errorf("image %s: size %d", im.Name, im.Size)
	}
	if want := NewImage(im.Name, im.Size, im.ChunkSize).Depth; im.Depth != want {
		return fmt.Errorf("image %s: depth %d, want %d for %d chunks", im.Name, im.Depth, want, im.Chunks())
	}
	return nil
}

// Root is the plaintext of a version's root block.
type Root struct {
	Format    int               `json:"format"`
	Suite     seal.Suite        `json:"suite"`
	Parent    int               `json:"parent"` // version this one was made from; 0: none
	Time      time.Time         `json:"time"`   // when it was made, UTC, whole seconds
	Host      string            `json:"host"`   // where it was made
	Comment   string            `json:"comment"`
	Suspended string            `json:"suspended"` // VMM that wrote the memory image; "": powered off
	Requires  map[string]string `json:"requires"`  // what that VMM needs of a host to go on
	CfgSize   int64             `json:"cfg_size"`  // bytes of the cfg archive, unsealed
	Cfg       seal.Ref          `json:"cfg"`       // the cfg archive (tar, gzip); nil: none
	Images    []Image           `json:"images"`
}

// Image returns the image called name.
func (r *Root) Image(name string) (Image, bool) {
	for _, im := range r.Images {
		if im.Name == name {
			return im, true
		}
	}
	return Image{}, false
}

// SetImage replaces the image of the same name, or adds it.
func (r *Root) SetImage(im Image) {
	for i := range r.Images {
		if r.Images[i].Name == im.Name {
			r.Images[i] = im
			return
		}
	}
	r.Images = append(r.Images, im)
}

// Clone is a copy that shares nothing with r.
func (r *Root) Clone() *Root {
	c := *r
	c.Images = append([]Image(nil), r.Images...)
	c.Requires = make(map[string]string, len(r.Requires))
	for k, v := range r.Requires {
		c.Requires[k] = v
	}
	return &c
}

func (r *Root) check() error {
	if r.Format != Format {
		return fmt.Errorf("root format %d: %w", r.Format, ErrFormat)
	}
	if _, err := seal.ParseSuite(string(r.Suite)); err != nil {
		return err
	}
	seen := make(map[string]bool)
	refs := []seal.Ref{r.Cfg}
	for _, im := range r.Images {
		if err := im.check(); err != nil {
			return err
		}
		if seen[im.Name] {
			return fmt.Errorf("image %s: named twice", im.Name)
		}
		seen[im.Name] = true
		refs = append(refs, im.Ref)
	}
	for _, ref := range refs {
		if size := r.Suite.HashSize(); !ref.IsNil() && (len(ref.Tag) != size || len(ref.Key) != size) {
			return fmt.Errorf("reference of another suite than %s", r.Suite)
		}
	}
	if r.Parent < 0 {
		return fmt.Errorf("parent version %d", r.Parent)
	}
	if r.CfgSize < 0 || r.CfgSize > seal.MaxPlain {
		return fmt.Errorf("cfg archive of %d bytes", r.CfgSize)
	}
	return nil
}

// encode is the canonical plaintext of r.
func (r *Root) encode() ([]byte, error) {
	c := r.Clone()
	c.Format = Format
	c.Time = c.Time.UTC().Truncate(time.Second)
	if c.Images == nil {
		c.Images = []Image{}
	}
	if err := c.check(); err != nil {
		return nil, err
	}
	p, err := json.Marshal(c)
	if err != nil {
		return nil, err
	}
	if p = append(p, '\n'); len(p) > maxRoot {
		return nil, fmt.Errorf("root of %d bytes: at most %d can be read again", len(p), maxRoot)
	}
	return p, nil
}

// decodeRoot reads the canonical plaintext of a root block.
func decodeRoot(p []byte) (*Root, error) {
	var format struct {
		Format int `json:"format"`
	}
	if err := json.Unmarshal(p, &format); err != nil {
		return nil, fmt.Errorf("root: %v: %w", err, ErrFormat)
	}
	if format.Format != Format {
		return nil, fmt.Errorf("root format %d: %w", format.Format, ErrFormat)
	}
	var r Root
	if err := json.Unmarshal(p, &r); err != nil {
		return nil, fmt.Errorf("root: %v: %w", err, ErrFormat)
	}
	again, err := r.encode()
	if err != nil {
		return nil, fmt.Errorf("root: %v: %w", err, ErrFormat)
	}
	if !bytes.Equal(again, p) {
		return nil, fmt.Errorf("root: not in canonical form: %w", ErrFormat)
	}
	return &r, nil
}

// maxRoot bounds the plaintext of a root block, bytes.
const maxRoot = 1 << 20

// SealRoot seals r. The reference is the version's keyroot.
func SealRoot(s seal.Sealer, r *Root) (keyroot seal.Ref, sealed []byte, err error) {
	p, err := r.encode()
	if err != nil {
		return seal.Ref{}, nil, err
	}
	return s.Seal(p)
}

// OpenRoot unseals the root block that keyroot leads to.
func OpenRoot(s seal.Sealer, keyroot seal.Ref, sealed []byte) (*Root, error) {
	p, err := s.Unseal(keyroot, sealed, maxRoot)
	if err != nil {
		return nil, fmt.Errorf("keyring: %w", err)
	}
	r, err := decodeRoot(p)
	if err != nil {
		return nil, fmt.Errorf("keyring: %w", err)
	}
	if r.Suite != s.Suite {
		return nil, fmt.Errorf("keyring: suite %s inside %s: %w", r.Suite, s.Suite, ErrFormat)
	}
	return r, nil
}
