package vmm

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
)

// lazyFile is a file whose content comes when it is asked for: what a memory
// or disk image is to a driver, with one chunk map instead of all that is behind it.
type lazyFile struct {
	fs.Inode
	size int64
	back *os.File // where the content is, and where writes go

	mu      sync.Mutex
	asked   map[int64]bool // chunks of lazyChunk
	saving  bool
	fetched int           // chunks read from back
	faked   int           // reads answered with zeros
	block   chan struct{} // not nil: reads wait until it is closed
	reading chan struct{} // gets a token when a read comes
	errno   syscall.Errno // of reads
}

const lazyChunk = 128 << 10

var _ interface {
	fs.NodeOpener
	fs.NodeGetattrer
	fs.NodeReader
	fs.NodeWriter
	fs.NodeFsyncer
	fs.NodeSetattrer
} = (*lazyFile)(nil)

func (f *lazyFile) Open(ctx context.Context, flags uint32) (fs.FileHandle, uint32, syscall.Errno) {
	return nil, 0, 0
}

func (f *lazyFile) Getattr(ctx context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	out.Size, out.Mode = uint64(f.size), 0o600
	return 0
}

func (f *lazyFile) Setattr(ctx context.Context, _ fs.FileHandle, in *fuse.SetAttrIn, out *fuse.AttrOut) syscall.Errno {
	return f.Getattr(ctx, nil, out)
}

func (f *lazyFile) Fsync(ctx context.Context, _ fs.FileHandle, flags uint32) syscall.Errno { return 0 }

func (f *lazyFile) Read(ctx context.Context, _ fs.FileHandle, dest []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	f.mu.Lock()
	block, errno := f.block, f.errno
	f.mu.Unlock()
	select {
	case f.reading <- struct{}{}:
	default:
	}
	if block != nil {
		<-block
	}
	if errno != 0 {
		return nil, errno
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	n := min(int64(len(dest)), f.size-off)
	for at := off; at < off+n; {
		end := min(off+n, (at/lazyChunk+1)*lazyChunk)
		switch {
		case f.asked[at/lazyChunk]:
			f.back.ReadAt(dest[at-off:end-off], at)
		case f.saving:
			clear(dest[at-off : end-off])
			f.faked++
		default:
			f.asked[at/lazyChunk] = true
			f.fetched++
			f.back.ReadAt(dest[at-off:end-off], at)
		}
		at = end
	}
	return fuse.ReadResultData(dest[:n]), 0
}

func (f *lazyFile) Write(ctx context.Context, _ fs.FileHandle, data []byte, off int64) (uint32, syscall.Errno) {
	n, err := f.back.WriteAt(data, off)
	return uint32(n), fs.ToErrno(err)
}

// counts are the chunks fetched, and the reads answered with zeros, so far.
func (f *lazyFile) counts() (fetched, faked int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.fetched, f.faked
}

// lazyFile is its own Pages.

func (f *lazyFile) BeginSave() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.saving {
		return fmt.Errorf("a save is under way")
	}
	f.saving = true
	return nil
}

func (f *lazyFile) Asked(off int64, n int) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	for c := off / lazyChunk; c*lazyChunk < off+int64(n); c++ {
		if f.asked[c] {
			return true
		}
	}
	return false
}

func (f *lazyFile) WriteAt(b []byte, off int64) (int, error) { return f.back.WriteAt(b, off) }

// mountLazy mounts files for one run: caches do not outlive it.
func mountLazy(t testing.TB, files map[string]*lazyFile) (dir string) {
	t.Helper()
	if _, err := os.Stat("/dev/fuse"); err != nil {
		lacking(t, "fuse: %v", err)
	}
	dir = t.TempDir()
	root := &fs.Inode{}
	server, err := fs.Mount(dir, root, &fs.Options{
		MountOptions: fuse.MountOptions{DirectMount: true, MaxReadAhead: lazyChunk},
		OnAdd: func(ctx context.Context) {
			for name, f := range files {
				root.AddChild(name, root.NewPersistentInode(ctx, f, fs.StableAttr{}), false)
			}
		},
	})
	if err != nil {
		lacking(t, "fuse: %v", err)
	}
	t.Cleanup(func() {
		for _, f := range files { // or nothing could be unmounted
			f.unblock()
		}
		if err := server.Unmount(); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	return dir
}

func (f *lazyFile) unblock() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.block != nil {
		close(f.block)
		f.block = nil
	}
}

func newLazy(t testing.TB, path string) *lazyFile {
	t.Helper()
	back, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { back.Close() })
	st, err := back.Stat()
	if err != nil {
		t.Fatal(err)
	}
	return &lazyFile{size: st.Size(), back: back, asked: map[int64]bool{}, reading: make(chan struct{}, 1)}
}

// lazyMemory gives the rig's machine its memory by a mount of its own, as each run of a parcel has.
func (r *rig) lazyMemory(t testing.TB, path string) *lazyFile {
	f := newLazy(t, path)
	r.m.Memory = filepath.Join(mountLazy(t, map[string]*lazyFile{"memory": f}), "memory")
	r.m.Pages = f
	return f
}
