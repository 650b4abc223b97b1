// Package storetest is what tests of a realm's tree have in common: stores with
// users and a parcel, commits of a few chunks, whether all is sound, and calls
// that are killed at every step in turn (see Crash).
//
// It is for tests, and in no program. What goes wrong fails the test.
package storetest

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"isr/store"
	"isr/store/check"
	"isr/store/export"
	"isr/store/keyring"
	"isr/store/parcel"
	"isr/store/seal"
	"isr/store/tree"
)

var bg = context.Background()

// Chunk is the size of the chunks of NewParcel, bytes.
const Chunk = 4096

// New is a store with users alice and bob, in memory where there is room: what
// a killed process leaves is as it would be on a disk, and no sync is waited
// for.
func New(t testing.TB) *store.Store {
	t.Helper()
	return NewIn(t, TempDir(t))
}

// NewOnDisk is New on the disk, for tests that are about it.
func NewOnDisk(t testing.TB) *store.Store {
	t.Helper()
	return NewIn(t, t.TempDir())
}

// TempDir is t.TempDir, in memory where there is room.
func TempDir(t testing.TB) string {
	t.Helper()
	const memory, room = "/dev/shm", 1 << 30
	var fs unix.Statfs_t
	if err := unix.Statfs(memory, &fs); err != nil || fs.Bavail*uint64(fs.Bsize) < room {
		return t.TempDir()
	}
	dir, err := os.MkdirTemp(memory, "isr-store-test-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// NewIn is New in a directory.
func NewIn(t testing.TB, dir string) *store.Store {
	t.Helper()
	s, err := store.Init(dir, "test")
	if err != nil {
		t.Fatal(err)
	}
	for _, u := range []string{"alice", "bob"} {
		if err := s.AddUser(u, nil); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

// NewParcel is alice's winxp: a disk of 1000 chunks and one byte, memory of 10
// chunks.
func NewParcel(t testing.TB, s *store.Store) *store.Parcel {
	t.Helper()
	p, err := s.Create(bg, "alice", "winxp", store.CreateOptions{DiskSize: 1000*Chunk + 1, MemSize: 10 * Chunk,
		ChunkSize: Chunk, Comment: "a test"})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// Parcel is what NewParcel made, opened again.
func Parcel(t testing.TB, s *store.Store) *store.Parcel {
	t.Helper()
	p, err := s.Parcel("alice", "winxp")
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// Reopen is p by another Store, as another process sees it.
func Reopen(t testing.TB, p *store.Parcel) *store.Parcel {
	t.Helper()
	s, err := store.Open(filepath.Join(p.LockDir(), "../../../.."))
	if err != nil {
		t.Fatal(err)
	}
	q, err := s.Parcel(p.User(), p.Name())
	if err != nil {
		t.Fatal(err)
	}
	return q
}

// WantSound fails unless the whole store is sound, content included; it
// returns the notes.
func WantSound(t testing.TB, s *store.Store) []check.Problem {
	t.Helper()
	ps, sum := Check(t, s, check.Options{Content: true})
	if sum.Errors > 0 {
		t.Errorf("store is not sound:")
		for _, p := range ps {
			t.Errorf("  %s", p)
		}
	}
	return ps
}

// Check is all that a check tells.
func Check(t testing.TB, s *store.Store, o check.Options) ([]check.Problem, check.Summary) {
	t.Helper()
	var ps []check.Problem
	sum, err := check.Run(bg, s, o, func(p check.Problem) { ps = append(ps, p) })
	if err != nil {
		t.Fatalf("check: %v", err)
	}
	return ps, sum
}

// Stage puts an object, as the server does.
func Stage(p *store.Parcel, tag seal.Tag, sealed []byte) error {
	w, err := p.Stage(tag)
	if err != nil {
		return err
	}
	defer w.Abort()
	if _, err := w.WriteAt(sealed, 0); err != nil {
		return err
	}
	return w.Close()
}

// Stager makes stage a keyring.Putter, and counts.
type Stager struct {
	Parcel *store.Parcel
	Puts   int
}

func (s *Stager) Put(_ context.Context, tag seal.Tag, sealed []byte) error {
	s.Puts++
	return Stage(s.Parcel, tag, sealed)
}

// Change is one new content of a disk: chunk number → plaintext.
type Change map[int64][]byte

// ChunkOf is a chunk that begins with s.
func ChunkOf(s string) []byte {
	b := make([]byte, Chunk)
	copy(b, s)
	return b
}

// StageVersion stages all objects of a version with c changed on the disk of
// the head; cfg is its cfg archive, may be empty.
func StageVersion(t testing.TB, p *store.Parcel, c Change, cfgArchive string) (keyroot seal.Ref, put int) {
	t.Helper()
	cfg, err := p.Config()
	if err != nil {
		t.Fatal(err)
	}
	root, err := p.Root(bg, 0)
	if err != nil {
		t.Fatal(err)
	}
	s, dst := cfg.Sealer(), &Stager{Parcel: p}
	im, _ := root.Image(keyring.Disk)
	refs := keyring.NewTree(s, im, p)
	for n, plain := range c {
		if seal.Zero(plain) {
			refs.Set(n, seal.Ref{})
			continue
		}
		ref, sealed, err := s.Seal(plain)
		if err != nil {
			t.Fatal(err)
		}
		if err := dst.Put(bg, ref.Tag, sealed); err != nil {
			t.Fatal(err)
		}
		refs.Set(n, ref)
	}
	if im, err = refs.Flush(bg, dst); err != nil {
		t.Fatal(err)
	}
	root = root.Clone()
	root.SetImage(im)
	root.Parent, root.Host, root.Comment = cfg.Version, "testhost", "changed"
	if cfgArchive != "" {
		ref, sealed, err := s.Seal([]byte(cfgArchive))
		if err != nil {
			t.Fatal(err)
		}
		if err := dst.Put(bg, ref.Tag, sealed); err != nil {
			t.Fatal(err)
		}
		root.Cfg, root.CfgSize = ref, int64(len(cfgArchive))
	}
	keyroot, sealed, err := keyring.SealRoot(s, root)
	if err != nil {
		t.Fatal(err)
	}
	if err := dst.Put(bg, keyroot.Tag, sealed); err != nil {
		t.Fatal(err)
	}
	return keyroot, dst.Puts
}

// Commit acquires, stages, commits and releases.
func Commit(t testing.TB, p *store.Parcel, c Change) int {
	t.Helper()
	l, err := p.Acquire("alice", "testhost", parcel.NewID())
	if err != nil {
		t.Fatal(err)
	}
	keyroot, _ := StageVersion(t, p, c, "")
	v, err := p.Commit(bg, store.CommitRequest{Nonce: l.Nonce, Parent: l.Version, Keyroot: keyroot, ID: parcel.NewID()})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Release(l.Nonce, false); err != nil {
		t.Fatal(err)
	}
	return v
}

// ChunkAt is chunk n of version v's disk.
func ChunkAt(t testing.TB, p *store.Parcel, v int, n int64) []byte {
	t.Helper()
	cfg, err := p.Config()
	if err != nil {
		t.Fatal(err)
	}
	root, err := p.Root(bg, v)
	if err != nil {
		t.Fatal(err)
	}
	im, _ := root.Image(keyring.Disk)
	ref, err := keyring.NewTree(cfg.Sealer(), im, p).Ref(bg, n)
	if err != nil {
		t.Fatal(err)
	}
	if ref.IsNil() {
		return make([]byte, Chunk)
	}
	sealed, err := p.Get(bg, ref.Tag)
	if err != nil {
		t.Fatal(err)
	}
	plain, err := cfg.Sealer().Unseal(ref, sealed, Chunk)
	if err != nil {
		t.Fatal(err)
	}
	return plain
}

// WantChunk fails unless chunk n of version v's disk begins with want.
func WantChunk(t testing.TB, p *store.Parcel, v int, n int64, want string) {
	t.Helper()
	if got := ChunkAt(t, p, v, n); !bytes.Equal(got, ChunkOf(want)) {
		t.Errorf("version %d chunk %d: got %.20q, want %q", v, n, got, want)
	}
}

// Random is n bytes that no compression makes less of, the same for a seed.
func Random(n int, seed uint64) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)})
	r.Read(b)
	return b
}

// Holding acquires p, stages c and returns the request to commit it.
func Holding(t testing.TB, p *store.Parcel, c Change) store.CommitRequest {
	t.Helper()
	l, err := p.Acquire("alice", "testhost", parcel.NewID())
	if err != nil {
		t.Fatal(err)
	}
	keyroot, _ := StageVersion(t, p, c, "")
	return store.CommitRequest{Nonce: l.Nonce, Parent: l.Version, Keyroot: keyroot, ID: parcel.NewID()}
}

// Head is the number of the head.
func Head(t testing.TB, p *store.Parcel) int {
	t.Helper()
	c, err := p.Config()
	if err != nil {
		t.Fatal(err)
	}
	return c.Version
}

// TagsOf are the tags of version v's disk, by level.
func TagsOf(t testing.TB, p *store.Parcel, v int) map[int][]seal.Tag {
	t.Helper()
	cfg, err := p.Config()
	if err != nil {
		t.Fatal(err)
	}
	root, err := p.Root(bg, v)
	if err != nil {
		t.Fatal(err)
	}
	im, _ := root.Image(keyring.Disk)
	tags := make(map[int][]seal.Tag)
	if err := keyring.Walk(bg, cfg.Sealer(), p, im, func(level int, _ int64, ref seal.Ref) error {
		tags[level] = append(tags[level], ref.Tag)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return tags
}

// WriteImage makes a sparse file of that size with some parts, by offset.
func WriteImage(t testing.TB, size int64, parts map[int64][]byte) string {
	t.Helper()
	f, err := os.Create(filepath.Join(TempDir(t), "image"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	for off, b := range parts {
		if _, err := f.WriteAt(b, off); err != nil {
			t.Fatal(err)
		}
	}
	return f.Name()
}

// WantDisk fails unless the disk of version v equals the file image.
func WantDisk(t testing.TB, p *store.Parcel, v int, image string) {
	t.Helper()
	out, err := os.Create(filepath.Join(TempDir(t), "out"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	out.WriteString("what was there before")
	if err := export.Disk(bg, p, out, v, nil); err != nil {
		t.Fatal(err)
	}
	in, err := os.Open(image)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out.Seek(0, io.SeekStart)
	a, b := make([]byte, 1<<20), make([]byte, 1<<20)
	for off := int64(0); ; off += int64(len(a)) {
		n, aerr := io.ReadFull(in, a)
		m, berr := io.ReadFull(out, b)
		if !bytes.Equal(a[:n], b[:m]) {
			t.Fatalf("exported image differs in the MiB at %d", off)
		}
		if aerr != nil || berr != nil {
			return
		}
	}
}

// Flip changes one bit in the middle of a file.
func Flip(t testing.TB, path string) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/2] ^= 4
	if err := os.Chmod(path, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	os.Chmod(path, tree.ObjectMode)
}

// ObjectsIn are the names of the files in hdk.
func ObjectsIn(t testing.TB, p *store.Parcel) []string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(p.HdkDir(), "??", "*"))
	if err != nil {
		t.Fatal(err)
	}
	for i := range names {
		names[i] = filepath.Base(names[i])
	}
	slices.Sort(names)
	return names
}

// Reachable is what the versions of p lead to, found another way than GC does.
func Reachable(t testing.TB, p *store.Parcel) []string {
	t.Helper()
	cfg, err := p.Config()
	if err != nil {
		t.Fatal(err)
	}
	infos, err := p.Versions(0)
	if err != nil {
		t.Fatal(err)
	}
	seen := make(map[string]bool)
	for _, v := range infos {
		keyroot, err := p.Keyroot(v.Version)
		if err != nil {
			t.Fatal(err)
		}
		root, err := p.Root(bg, v.Version)
		if err != nil {
			t.Fatal(err)
		}
		seen[keyroot.Tag.String()] = true
		if !root.Cfg.IsNil() {
			seen[root.Cfg.Tag.String()] = true
		}
		for _, im := range root.Images {
			err := keyring.Walk(bg, cfg.Sealer(), p, im, func(_ int, _ int64, ref seal.Ref) error {
				seen[ref.Tag.String()] = true
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	return slices.Sorted(maps.Keys(seen))
}

// Fewer makes rapid run so many checks only, of a test whose checks are long;
// unless the command line asks for a number.
func Fewer(t *testing.T, n int) {
	if f := flag.Lookup("rapid.checks"); f.Value.String() == f.DefValue {
		f.Value.Set(fmt.Sprint(n))
		t.Cleanup(func() { f.Value.Set(f.DefValue) })
	}
}

// Versioned is alice's winxp with versions 1 to n, each with a chunk more.
func Versioned(t testing.TB, s *store.Store, n int) *store.Parcel {
	t.Helper()
	p := NewParcel(t, s)
	for v := 2; v <= n; v++ {
		Commit(t, p, Change{int64(v): ChunkOf(fmt.Sprint("version ", v))})
	}
	return p
}

// HintOf is what err advises.
func HintOf(err error) string {
	var e *parcel.Error
	if errors.As(err, &e) {
		return e.Hint
	}
	return ""
}

// Replica is a copy of a store's tree, as cp -a makes it.
func Replica(t testing.TB, s *store.Store) string {
	t.Helper()
	dir := filepath.Join(TempDir(t), "replica")
	if out, err := exec.Command("cp", "-a", s.Root(), dir).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return dir
}
