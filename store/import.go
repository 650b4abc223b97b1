package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"runtime"
	"sync"

	"golang.org/x/sys/unix"

	"isr/store/atomicfile"
	"isr/store/diskimage"
	"isr/store/keyring"
	"isr/store/parcel"
	"isr/store/seal"
	"isr/store/tree"
)

// noteEvery is how many bytes of a disk are sealed between two notes of how
// far an import is.
var noteEvery int64 = 64 << 20 // tests note more often

// Import makes a parcel whose disk is the image, a file or block device, raw
// or of any format that package diskimage reads, and whose memory is zeros. A
// machine in an OVA gives it memory and comment where o does not.
// parcel.ErrExists if there is a parcel of that name.
//
// If it is killed or ctx is cancelled, the next Import of that name goes on
// from there: it reads the image again, but seals only what is not sealed yet.
func (s *Store) Import(ctx context.Context, userName, name, image string, o CreateOptions) (*Parcel, error) {
	disk, err := diskimage.Open(ctx, image, diskimage.Options{Format: o.Format, DiskFile: o.DiskFile})
	if err != nil {
		return nil, err
	}
	if o.DiskSize == 0 {
		o.DiskSize = disk.Size
	}
	if o.DiskSize < disk.Size {
		return nil, parcel.NewError(parcel.Usage, "image of %d bytes into a disk of %d", disk.Size, o.DiskSize)
	}
	if o.MemSize == 0 {
		o.MemSize = disk.Memory
	}
	if o.Comment == "" {
		o.Comment = disk.Name
	}
	c, err := s.config(o)
	if err != nil {
		return nil, fmt.Errorf("parcel %s: %w", name, err)
	}
	p, unlock, err := s.reserve(userName, name, true)
	if err != nil {
		return nil, err
	}
	defer unlock()
	err = p.build(ctx, func(ctx context.Context, b *building) (*parcel.Config, seal.Ref, error) {
		f, copied, err := disk.Raw(ctx, p.StagingDir(), o.Copying)
		if err != nil {
			return nil, seal.Ref{}, err
		}
		defer f.Close()
		i := &importing{b: b, cfg: c, root: zeroRoot(c), file: f, size: disk.Size, copied: copied, progress: o.Progress}
		keyroot, err := i.run(ctx)
		if err != nil {
			err = fmt.Errorf("image %s: %w", image, err)
		}
		return c, keyroot, err
	})
	switch {
	case err == nil:
		return p, nil
	case !p.Unfinished():
	case ctx.Err() != nil && p.noted(c) != seal.Ref{}:
		err = parcel.NewError(parcel.Interrupted, "parcel %s: the import was interrupted", name).
			WithHint("the same import goes on from there; parcel delete %s %s removes what there is", userName, name)
	default:
		p.remove()
	}
	return nil, err
}

// importing is one import at work.
type importing struct {
	b        *building
	cfg      *parcel.Config
	root     *keyring.Root
	file     *os.File
	size     int64 // of the disk in file
	copied   bool  // file is ours: what was read may go
	progress func(done, total int64)

	before *keyring.Tree // what a killed import had; nil: nothing

	mu       sync.Mutex
	farthest int64
	since    int64 // bytes sealed since the last note
	noted    bool
}

// run seals what is not zeros. It keeps 150 bytes a chunk in memory.
func (i *importing) run(ctx context.Context) (seal.Ref, error) {
	s, im := i.cfg.Sealer(), i.root.Images[0]
	i.before = i.b.before(ctx, i.cfg, im)
	refs := keyring.NewTree(s, im, i.b) // of zeros: only what it stored is ever got
	chunk := int64(im.ChunkSize)
	buffers := sync.Pool{New: func() any { b := make([]byte, chunk); return &b }}
	err := tree.Parallel(ctx, runtime.GOMAXPROCS(0), dataChunks(i.file, i.size, chunk), func(ctx context.Context, n int64, err error) error {
		if err != nil {
			return err
		}
		buf := buffers.Get().(*[]byte)
		defer buffers.Put(buf)
		plain := *buf
		got, err := i.file.ReadAt(plain[:min(chunk, i.size-n*chunk)], n*chunk)
		if err != nil && !(err == io.EOF && n*chunk+int64(got) == i.size) {
			return err
		}
		clear(plain[got:])
		if i.copied {
			// Both the copy and the objects need no more room than the data.
			unix.Fallocate(int(i.file.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, n*chunk, chunk)
		}
		if !seal.Zero(plain) {
			ref, err := i.put(ctx, s, n, plain)
			if err != nil {
				return err
			}
			refs.Set(n, ref)
		}
		return i.advance(ctx, refs, min((n+1)*chunk, i.size), chunk)
	})
	if err != nil {
		return seal.Ref{}, err
	}
	if im, err = refs.Flush(ctx, i.b); err != nil {
		return seal.Ref{}, err
	}
	if i.progress != nil {
		i.progress(i.size, i.size)
	}
	i.root.SetImage(im)
	keyroot, err := i.b.putRoot(ctx, i.cfg, i.root)
	if err == nil && (i.b.again || i.noted) {
		err = i.b.sweep(ctx, i.cfg, i.root, keyroot)
	}
	return keyroot, err
}

// put seals chunk n, unless the import before did.
func (i *importing) put(ctx context.Context, s seal.Sealer, n int64, plain []byte) (seal.Ref, error) {
	if i.before != nil {
		ref, err := i.before.Ref(ctx, n)
		if err == nil && !ref.IsNil() && ref.Key == s.Key(plain) && tree.VerifyObject(i.b.path(ref.Tag), ref.Tag) == nil {
			return ref, nil
		}
	}
	ref, sealed, err := s.Seal(plain)
	if err != nil {
		return seal.Ref{}, err
	}
	return ref, i.b.Put(ctx, ref.Tag, sealed)
}

// advance says how far it is, and notes it for an import that may have to go
// on from here.
func (i *importing) advance(ctx context.Context, refs *keyring.Tree, end, chunk int64) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.farthest = max(i.farthest, end)
	if i.progress != nil {
		i.progress(i.farthest, i.size)
	}
	if i.since += chunk; i.since < noteEvery {
		return nil
	}
	i.since, i.noted = 0, true
	im, err := refs.Flush(ctx, i.b)
	if err != nil {
		return err
	}
	root := i.root.Clone()
	root.SetImage(im)
	keyroot, err := i.b.putRoot(ctx, i.cfg, root)
	if err != nil {
		return err
	}
	tree.Step("note")
	return i.b.p.note(i.cfg, keyroot)
}

// note writes into the mark of an unfinished parcel which part of it there is.
// Nothing that it leads to need be durable, or there: who reads it verifies.
func (p *Parcel) note(c *parcel.Config, keyroot seal.Ref) error {
	text, err := parcel.Record{{Key: "COMPRESS", Value: string(c.Compress)}, {Key: "KEYROOT", Value: keyroot.String()}}.Encode()
	if err != nil {
		return err
	}
	return atomicfile.Write(filepath.Join(p.lock, tree.UnfinishedFile), text, tree.FileMode)
}

// noted is what note wrote, nil if that was nothing or of another codec.
func (p *Parcel) noted(c *parcel.Config) seal.Ref {
	text, err := tree.ReadOwn(filepath.Join(p.lock, tree.UnfinishedFile))
	if err != nil {
		return seal.Ref{}
	}
	r, err := parcel.ParseRecord(text)
	if err != nil || r.Get("COMPRESS") != string(c.Compress) {
		return seal.Ref{}
	}
	ref, err := seal.ParseRef(r.Get("KEYROOT"))
	if err != nil {
		return seal.Ref{}
	}
	return ref
}

// before is the disk that an import had which was killed, if one like im.
func (b *building) before(ctx context.Context, c *parcel.Config, im keyring.Image) *keyring.Tree {
	ref := b.p.noted(c)
	if ref.IsNil() {
		return nil
	}
	sealed, err := b.Get(ctx, ref.Tag)
	if err != nil {
		return nil
	}
	root, err := keyring.OpenRoot(c.Sealer(), ref, sealed)
	if err != nil {
		return nil
	}
	was, ok := root.Image(im.Name)
	if !ok || was.ChunkSize != im.ChunkSize || was.Chunks() != im.Chunks() {
		return nil
	}
	return keyring.NewTree(c.Sealer(), was, b)
}

// sweep removes the objects that the version does not need, which notes and a
// killed import left, and counts the others.
func (b *building) sweep(ctx context.Context, c *parcel.Config, root *keyring.Root, keyroot seal.Ref) error {
	need := map[string]bool{tree.ObjectName(keyroot.Tag): true}
	for _, im := range root.Images {
		err := keyring.Walk(ctx, c.Sealer(), b, im, func(_ int, _ int64, ref seal.Ref) error {
			need[tree.ObjectName(ref.Tag)] = true
			return nil
		})
		if err != nil {
			return err
		}
	}
	b.objects.Store(0)
	b.bytes.Store(0)
	return filepath.WalkDir(b.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		name, err := filepath.Rel(b.dir, path)
		if err != nil {
			return err
		}
		if !need[name] {
			return os.Remove(path)
		}
		fi, err := d.Info()
		if err == nil {
			b.objects.Add(1)
			b.bytes.Add(fi.Size())
		}
		return err
	})
}

// dataChunks are the numbers of the chunks that hold data, ascending; holes of
// a sparse file are passed over at no cost. An error ends it.
func dataChunks(f *os.File, size, chunk int64) iter.Seq2[int64, error] {
	return func(yield func(int64, error) bool) {
		next := int64(0) // chunk not yet yielded
		for off := int64(0); off < size; {
			start, end, err := dataAfter(f, off, size)
			if err != nil {
				yield(0, err)
				return
			}
			for n := max(next, start/chunk); n*chunk < end; n++ {
				if !yield(n, nil) {
					return
				}
				next = n + 1
			}
			off = end
		}
	}
}

// dataAfter is the first run of data in f from off on, empty at size if there
// is none. Where the file system cannot tell, all is data.
func dataAfter(f *os.File, off, size int64) (start, end int64, err error) {
	start, err = unix.Seek(int(f.Fd()), off, unix.SEEK_DATA)
	if errors.Is(err, unix.ENXIO) {
		return size, size, nil
	}
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOTSUP) {
		return off, size, nil
	}
	if err != nil {
		return 0, 0, fmt.Errorf("seek: %w", err)
	}
	if end, err = unix.Seek(int(f.Fd()), start, unix.SEEK_HOLE); err != nil {
		return 0, 0, fmt.Errorf("seek: %w", err)
	}
	return min(start, size), min(end, size), nil
}
