// Command scale makes a realm of many users from one gold image, by the ratios
// of the 2004 pilot, for contrib/bench to measure an administrator's commands
// on: a disk of 10 GiB of which 4 GiB are the gold image, 256 MiB of memory
// that take 40 MiB when suspended, and 47 MiB of the disk written between two
// suspends; all of it divided by a scale.
//
// It uses the store as the server does, and can be run again with more users.
// It is no test data for anything else: contents are random.
package main

import (
	"context"
	"crypto/rand"
	"errors"
	"flag"
	"fmt"
	mrand "math/rand/v2"
	"os"
	"path/filepath"
	"sync"

	"isr/store"
	"isr/store/keyring"
	"isr/store/parcel"
	"isr/store/seal"
)

// What a parcel of the pilot has, in MiB.
const (
	diskMiB, goldMiB, memoryMiB = 10240, 4096, 256
	residueMiB, suspendedMiB    = 47, 40
)

var (
	users    = flag.Int("users", 100, "so many users")
	parcels  = flag.Int("parcels", 2, "so many parcels each")
	versions = flag.Int("versions", 4, "so many suspends of each, after the copy of the gold image")
	scale    = flag.Int("scale", 64, "divide all sizes by this")
	chunk    = flag.Int("chunk", store.DefaultChunkSize, "bytes of a chunk")
)

func main() {
	flag.Parse()
	if flag.NArg() != 1 || *scale < 1 {
		fmt.Fprintln(os.Stderr, "usage: scale [OPTION...] ROOT")
		os.Exit(2)
	}
	if err := run(context.Background(), flag.Arg(0)); err != nil {
		fmt.Fprintln(os.Stderr, "scale: error:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, root string) error {
	s, err := store.Init(root, "scale")
	if errors.Is(err, parcel.ErrExists) {
		s, err = store.Open(root)
	}
	if err != nil {
		return err
	}
	if err := gold(ctx, s); err != nil {
		return err
	}
	work := make(chan string)
	var failed error
	var mu sync.Mutex
	var wg sync.WaitGroup
	for range 4 { // they wait for the disk
		wg.Go(func() {
			for user := range work {
				if err := join(ctx, s, user); err != nil {
					mu.Lock()
					failed = errors.Join(failed, fmt.Errorf("%s: %w", user, err))
					mu.Unlock()
				}
			}
		})
	}
	for n := range *users {
		work <- fmt.Sprintf("user%04d", n)
	}
	close(work)
	wg.Wait()
	return failed
}

// size is so many MiB of the pilot, in bytes, divided by the scale.
func size(mib int) int64 { return int64(mib) << 20 / int64(*scale) }

// gold imports the gold image.
func gold(ctx context.Context, s *store.Store) error {
	if err := s.AddUser("gold", nil); errors.Is(err, parcel.ErrExists) {
		return nil
	} else if err != nil {
		return err
	}
	image, err := os.CreateTemp("", "scale-*")
	if err != nil {
		return err
	}
	defer os.Remove(image.Name())
	defer image.Close()
	b := make([]byte, size(goldMiB))
	rand.Read(b)
	if _, err := image.Write(b); err != nil {
		return err
	}
	if err := image.Truncate(size(diskMiB)); err != nil {
		return err
	}
	_, err = s.Import(ctx, "gold", "gold", image.Name(), store.CreateOptions{MemSize: size(memoryMiB), ChunkSize: *chunk, Format: "raw", Compress: seal.None})
	return err
}

// join makes a user and all of hers; what is there already is left.
func join(ctx context.Context, s *store.Store, user string) error {
	if err := s.AddUser(user, nil); err != nil {
		if errors.Is(err, parcel.ErrExists) {
			return nil
		}
		return err
	}
	for n := range *parcels {
		p, err := s.Copy(ctx, "gold", "gold", user, fmt.Sprint("parcel", n))
		if err != nil {
			return err
		}
		for range *versions {
			if err := suspend(ctx, p, user); err != nil {
				return err
			}
		}
	}
	return nil
}

// suspend is a session: checkout, work, checkin.
func suspend(ctx context.Context, p *store.Parcel, user string) error {
	l, err := p.Acquire(user, "host", parcel.NewID())
	if err != nil {
		return err
	}
	cfg, err := p.Config()
	if err != nil {
		return err
	}
	root, err := p.Root(ctx, 0)
	if err != nil {
		return err
	}
	root = root.Clone()
	for _, im := range root.Images {
		write := size(residueMiB)
		if im.Name == keyring.Memory {
			write = size(suspendedMiB)
		}
		tree := keyring.NewTree(cfg.Sealer(), im, p)
		for range max(1, write/int64(im.ChunkSize)) {
			plain := make([]byte, im.ChunkSize)
			rand.Read(plain)
			ref, sealed, err := cfg.Sealer().Seal(plain)
			if err == nil {
				err = put{p}.Put(ctx, ref.Tag, sealed)
			}
			if err != nil {
				return err
			}
			tree.Set(mrand.Int64N(im.Chunks()), ref)
		}
		if im, err = tree.Flush(ctx, put{p}); err != nil {
			return err
		}
		root.SetImage(im)
	}
	keyroot, sealed, err := keyring.SealRoot(cfg.Sealer(), root)
	if err == nil {
		err = put{p}.Put(ctx, keyroot.Tag, sealed)
	}
	if err != nil {
		return err
	}
	r := store.CommitRequest{Nonce: l.Nonce, Parent: cfg.Version, Keyroot: keyroot, ID: parcel.NewID()}
	if _, err := p.Commit(ctx, r); err != nil {
		return fmt.Errorf("%s: %w", filepath.Base(p.LockDir()), err)
	}
	_, err = p.Release(l.Nonce, false)
	return err
}

// put stages objects.
type put struct{ p *store.Parcel }

func (w put) Put(_ context.Context, tag seal.Tag, sealed []byte) error {
	staged, err := w.p.Stage(tag)
	if err != nil {
		return err
	}
	defer staged.Abort()
	if _, err := staged.WriteAt(sealed, 0); err != nil {
		return err
	}
	return staged.Close()
}
