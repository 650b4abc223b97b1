// Package fetchtest proves that a Source keeps the promises of fetch.Source:
// what it has, what it lacks, many at once, and copies that were spoilt. It is
// for tests; it knows no source by name.
package fetchtest

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha1"
	"crypto/sha256"
	"errors"
	"sync"
	"testing"

	"isr/client/fetch"
	"isr/store/parcel"
	"isr/store/seal"
)

// Subject is a kind of Source.
type Subject struct {
	// New makes a source of these objects. It ends with the test.
	New func(t testing.TB, objects map[seal.Tag][]byte) fetch.Source
	// Spoil puts other bytes in place of an object of the newest source; nil:
	// that is not possible.
	Spoil func(t testing.TB, tag seal.Tag, with []byte)
}

// Object makes an object of n random bytes.
func Object(n int) (seal.Tag, []byte) {
	p := make([]byte, n)
	rand.Read(p)
	sum := sha256.Sum256(p)
	return seal.Tag(sum[:]), p
}

// Objects makes objects of sizes at the boundaries that matter, under tags of
// both suites.
func Objects() map[seal.Tag][]byte {
	all := make(map[seal.Tag][]byte)
	for _, n := range []int{1, 31, 4095, 4096, 4097, 32<<10 - 4, 32 << 10, 128<<10 + 29, 1<<20 + 1, 3 << 20} {
		tag, p := Object(n)
		all[tag] = p
	}
	_, p := Object(1000)
	sum := sha1.Sum(p)
	all[seal.Tag(sum[:])] = p
	return all
}

// Run proves the promises.
func Run(t *testing.T, s Subject) {
	all := Objects()
	ctx := context.Background()

	t.Run("has", func(t *testing.T) {
		src := s.New(t, all)
		for range 2 {
			for tag, want := range all {
				got, err := src.Get(ctx, tag)
				if err != nil || !bytes.Equal(got, want) {
					t.Errorf("get %s, %d bytes: %d bytes, %v", tag, len(want), len(got), err)
				}
			}
		}
	})
	t.Run("lacks", func(t *testing.T) {
		src := s.New(t, all)
		tag, p := Object(100)
		got, err := src.Get(ctx, tag)
		if got != nil || !errors.Is(err, parcel.ErrNoObject) {
			t.Errorf("get of what it lacks: %d bytes, %v; want ErrNoObject", len(got), err)
		}
		_ = p
		for _, tag := range []seal.Tag{"", "short", seal.Tag(make([]byte, 33))} {
			if got, err := src.Get(ctx, tag); got != nil || err == nil {
				t.Errorf("get of %q, which is no tag: %d bytes, %v; want an error", string(tag), len(got), err)
			}
		}
	})
	t.Run("at once", func(t *testing.T) {
		src := s.New(t, all)
		lacking, _ := Object(10)
		var wg sync.WaitGroup
		for i := range 8 {
			for tag, want := range all {
				wg.Go(func() {
					c := fetch.WithClass(ctx, fetch.Class(i%3))
					if got, err := src.Get(c, tag); err != nil || !bytes.Equal(got, want) {
						t.Errorf("get %s: %d bytes, %v", tag, len(got), err)
					}
				})
			}
			wg.Go(func() {
				if _, err := src.Get(ctx, lacking); !errors.Is(err, parcel.ErrNoObject) {
					t.Errorf("get of what it lacks: %v", err)
				}
			})
		}
		wg.Wait()
	})
	t.Run("the result is the caller's to keep", func(t *testing.T) {
		src := s.New(t, all)
		var kept [][]byte
		var want [][]byte
		for range 3 {
			for tag, p := range all {
				got, err := src.Get(ctx, tag)
				if err != nil {
					t.Fatal(err)
				}
				kept, want = append(kept, got), append(want, p)
			}
		}
		for i := range kept {
			if !bytes.Equal(kept[i], want[i]) {
				t.Errorf("result %d has changed since", i)
			}
		}
	})
	t.Run("cancelled", func(t *testing.T) {
		src := s.New(t, all)
		c, cancel := context.WithCancel(ctx)
		cancel()
		for tag, want := range all {
			got, err := src.Get(c, tag)
			if err == nil && !bytes.Equal(got, want) {
				t.Errorf("get in an ended context: other bytes")
			}
			if err != nil && !errors.Is(err, context.Canceled) {
				t.Errorf("get in an ended context: %v", err)
			}
		}
	})
	t.Run("spoilt", func(t *testing.T) {
		if s.Spoil == nil {
			t.Skip("a source of this kind cannot be spoilt")
		}
		src := s.New(t, all)
		_, verifies := src.(fetch.TagVerifier)
		for tag, p := range all {
			flipped := bytes.Clone(p)
			flipped[len(p)/2] ^= 1
			for what, bad := range map[string][]byte{"flipped": flipped, "short": p[:len(p)-1],
				"long": append(bytes.Clone(p), 0), "empty": {}} {
				s.Spoil(t, tag, bad)
				got, err := src.Get(ctx, tag)
				switch {
				case err == nil && verifies:
					t.Errorf("%s object of %d bytes: got it without an error", what, len(p))
				case err != nil && !errors.Is(err, seal.ErrCorrupt) && !errors.Is(err, parcel.ErrNoObject):
					t.Errorf("%s object: %v, want an error that wraps ErrCorrupt or ErrNoObject", what, err)
				case err != nil && got != nil:
					t.Errorf("%s object: bytes with an error", what)
				}
			}
			s.Spoil(t, tag, p)
			if got, err := src.Get(ctx, tag); err != nil || !bytes.Equal(got, p) {
				t.Errorf("mended: %v", err)
			}
		}
	})
}
