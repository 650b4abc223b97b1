// Package fusefs shows images and counters as files of one FUSE mount.
//
//	DIR/NAME        an image: fixed size, read and written in place, 0600
//	DIR/stats/NAME  a counter file, made anew at each open, 0400
//
// It promises that fsync of an image returns when the image says its writes
// are durable, that a read which blocks holds up no other read, and that the
// context of a reader which is being killed is cancelled. The kernel's page cache is used,
// so an image may be mapped, and an image changed from below must be told to
// the kernel by Invalidate.
//
// It knows nothing of what an image is made of. The process that serves a
// mount must not touch the files in it, nor have a file of it open across a
// fork: use another process.
package fusefs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sort"
	"sync"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
)

// Image is a byte array of fixed size. Its methods are called concurrently.
type Image interface {
	// ReadAt fills p from off, short only at the end of the image (io.EOF or
	// nil). ctx is cancelled when the reader is being killed or the mount is
	// closed; it is not valid after the return. ReadAt must not keep p.
	ReadAt(ctx context.Context, p []byte, off int64) (int, error)
	// WriteAt is like ReadAt the other way.
	WriteAt(ctx context.Context, p []byte, off int64) (int, error)
	// Flush returns when all that was written before it is durable.
	Flush(ctx context.Context) error
	// Size is the size in bytes. It never changes.
	Size() int64
}

const (
	// maxWrite bounds one request in bytes, of reads and writes alike: the
	// most a kernel accepts without tuning.
	maxWrite = 1 << 20
	// maxReadAhead is what the kernel reads around a page that is touched in a
	// mapping, bytes. It is small, since a touch should not bring in two
	// chunks: of 400 clustered places touched at random in 256 MiB, which
	// lie in 440 chunks of 128 KiB, 128 KiB of read-around touch 782, 32 KiB
	// 562, 16 KiB 496 and 4 KiB 440, by 545, 1129, 1685 and 3278 requests.
	// Long read(2)s come in requests of 128 KiB all the same, and a guest
	// reads its disk ahead by itself.
	maxReadAhead = 16 << 10
	// maxBackground is how many read-ahead requests the kernel keeps in
	// flight. The default of 12 would let that many reads, stuck on an absent
	// network, hold up all others.
	maxBackground = 1024
	// closeWait is how long Close waits for the last user of a busy mount.
	closeWait = 2 * time.Second
)

// Names and attributes never change during the life of a mount.
var forever = 365 * 24 * time.Hour

// Mount is a mounted, served directory.
type Mount struct {
	dir     string
	direct  bool // mounted by ourselves, as root
	server  *fuse.Server
	served  chan struct{} // closed when the kernel has ended the connection
	images  map[string]*imageNode
	closing chan struct{} // closed by Close: ends what is in flight
	once    sync.Once
	err     error
}

// New mounts images and stats at dir, which must exist, and serves them until
// Close. No image may be called "stats".
func New(dir string, images map[string]Image, stats map[string]func() []byte) (*Mount, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	m := &Mount{dir: dir, images: make(map[string]*imageNode), closing: make(chan struct{})}
	root := &rootNode{mount: m, born: time.Now(), stats: stats}
	for name, im := range images {
		if name == "stats" || name == "" || filepath.Base(name) != name {
			return nil, fmt.Errorf("mount %s: image cannot be called %q", dir, name)
		}
		m.images[name] = &imageNode{root: root, image: im}
	}
	opts := &fs.Options{
		EntryTimeout: &forever,
		AttrTimeout:  &forever,
		UID:          uint32(os.Geteuid()),
		GID:          uint32(os.Getegid()),
		MountOptions: fuse.MountOptions{
			FsName:        "isr",
			Name:          "isr",
			MaxWrite:      maxWrite,
			MaxReadAhead:  maxReadAhead,
			MaxBackground: maxBackground,
			// An xattr lookup would precede every write otherwise.
			DisableXAttrs: true,
			// Only we change the content, and we say so: see Invalidate.
			ExplicitDataCacheControl: true,
			// Replies come from memory: through a pipe they would be copied twice.
			DisableSplice: true,
			// No CAP_ASYNC_DIO: under it a plain O_DIRECT read can be neither
			// interrupted nor killed.
		},
	}
	if err := m.mount(fs.NewNodeFS(root, opts), &opts.MountOptions); err != nil {
		return nil, fmt.Errorf("mount %s: %w", dir, err)
	}
	return m, nil
}

// Dir is the absolute path of the mount.
func (m *Mount) Dir() string { return m.dir }

// Invalidate makes the kernel forget what it has cached of the image called
// name, mappings included; pages that a process has changed in its private
// mapping stay. It must not be called while a read of that image is stuck.
func (m *Mount) Invalidate(name string) error {
	n := m.images[name]
	if n == nil {
		return fmt.Errorf("mount %s: no image %q", m.dir, name)
	}
	if errno := n.NotifyContent(0, 0); errno != 0 && errno != syscall.ENOENT {
		return fmt.Errorf("mount %s: invalidate %s: %w", m.dir, name, errno)
	}
	return nil
}

// Preload puts p into the kernel's cache of the image called name, as if it had
// been read from off; whole pages only. It waits for reads of these pages that
// are under way.
func (m *Mount) Preload(name string, p []byte, off int64) error {
	n := m.images[name]
	if n == nil {
		return fmt.Errorf("mount %s: no image %q", m.dir, name)
	}
	// Nobody has looked at the file yet, or its name is forgotten: ENOENT.
	if errno := n.WriteCache(off, p); errno != 0 && errno != syscall.ENOENT {
		return fmt.Errorf("mount %s: preload %s: %w", m.dir, name, errno)
	}
	return nil
}

// Close ends the mount: reads and writes in flight are cancelled, and what a
// process still asks of an open file is refused with EIO. A mount that stays
// busy is detached, and then vanishes with its last user. After Close no
// image is called any more.
func (m *Mount) Close() error {
	m.once.Do(func() {
		close(m.closing)
		if err := m.unmount(); err != nil {
			m.err = fmt.Errorf("unmount %s: %w", m.dir, err)
		}
		for _, n := range m.images {
			n.gate.Lock() // whoever is past the check has added itself
			n.gate.Unlock()
			n.calls.Wait()
		}
	})
	return m.err
}

// rootNode is the mount's directory; its children are made once, at Init.
type rootNode struct {
	fs.Inode
	fixed
	mount *Mount
	born  time.Time
	stats map[string]func() []byte
}

var (
	_ fs.NodeOnAdder   = (*rootNode)(nil)
	_ fs.NodeGetattrer = (*rootNode)(nil)
	_ fs.NodeStatfser  = (*rootNode)(nil)
	_ fs.NodeUnlinker  = (*rootNode)(nil)
	_ fs.NodeRenamer   = (*rootNode)(nil)
	_ fs.NodeRmdirer   = (*rootNode)(nil)
	_ fs.NodeGetattrer = (*dirNode)(nil)
	_ fs.NodeUnlinker  = (*dirNode)(nil)
	_ fs.NodeRenamer   = (*dirNode)(nil)
	_ fs.NodeGetattrer = (*imageNode)(nil)
	_ fs.NodeSetattrer = (*imageNode)(nil)
	_ fs.NodeOpener    = (*imageNode)(nil)
	_ fs.NodeReader    = (*imageNode)(nil)
	_ fs.NodeWriter    = (*imageNode)(nil)
	_ fs.NodeFsyncer   = (*imageNode)(nil)
	_ fs.NodeStatfser  = (*imageNode)(nil)
	_ fs.NodeGetattrer = (*statsNode)(nil)
	_ fs.NodeOpener    = (*statsNode)(nil)
	_ fs.FileReader    = (*statsFile)(nil)
)

func (r *rootNode) OnAdd(ctx context.Context) {
	// Inode numbers follow the names, so that two mounts of one parcel look
	// the same.
	ino := uint64(2)
	add := func(parent *fs.Inode, name string, n fs.InodeEmbedder, mode uint32) *fs.Inode {
		child := parent.NewPersistentInode(ctx, n, fs.StableAttr{Mode: mode, Ino: ino})
		ino++
		parent.AddChild(name, child, true)
		return child
	}
	for _, name := range sortedKeys(r.mount.images) {
		add(&r.Inode, name, r.mount.images[name], fuse.S_IFREG)
	}
	dir := add(&r.Inode, "stats", &dirNode{root: r}, fuse.S_IFDIR)
	for _, name := range sortedKeys(r.stats) {
		add(dir, name, &statsNode{root: r, make: r.stats[name]}, fuse.S_IFREG)
	}
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	return keys
}

// attr fills in what all nodes share.
func (r *rootNode) attr(out *fuse.Attr, mode uint32, size int64) {
	out.Mode = mode
	out.Size = uint64(size)
	out.Blocks = uint64(size+511) / 512
	out.Blksize = 128 << 10
	out.Nlink = 1
	out.SetTimes(&r.born, &r.born, &r.born)
}

func (r *rootNode) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	r.attr(&out.Attr, fuse.S_IFDIR|0o700, 0)
	return 0
}

// Statfs shows a full file system of the images' size: no file can be added
// or grown.
func (r *rootNode) Statfs(_ context.Context, out *fuse.StatfsOut) syscall.Errno {
	const block = 4096
	out.Bsize, out.Frsize, out.NameLen = block, block, 255
	for _, n := range r.mount.images {
		out.Blocks += uint64(n.image.Size()+block-1) / block
	}
	out.Files = uint64(len(r.mount.images) + len(r.stats))
	return 0
}

// fixed refuses what the library would let through: names come and go with
// the mount.
type fixed struct{}

func (fixed) Unlink(context.Context, string) syscall.Errno { return syscall.EPERM }

func (fixed) Rmdir(context.Context, string) syscall.Errno { return syscall.EPERM }

func (fixed) Rename(context.Context, string, fs.InodeEmbedder, string, uint32) syscall.Errno {
	return syscall.EPERM
}

// dirNode is the directory stats.
type dirNode struct {
	fs.Inode
	fixed
	root *rootNode
}

func (d *dirNode) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	d.root.attr(&out.Attr, fuse.S_IFDIR|0o500, 0)
	return 0
}

// imageNode is one image.
type imageNode struct {
	fs.Inode
	root  *rootNode
	image Image

	gate  sync.RWMutex // held to add to calls, so that Close sees all or stops them
	calls sync.WaitGroup
}

// begin admits a call of the image, unless the mount is closing.
func (n *imageNode) begin(ctx context.Context) (*callContext, syscall.Errno) {
	n.gate.RLock()
	defer n.gate.RUnlock()
	select {
	case <-n.root.mount.closing:
		return nil, syscall.EIO
	default:
	}
	n.calls.Add(1)
	return &callContext{Context: ctx, closing: n.root.mount.closing}, 0
}

func (n *imageNode) end(c *callContext) {
	c.end()
	n.calls.Done()
}

func (n *imageNode) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	n.root.attr(&out.Attr, fuse.S_IFREG|0o600, n.image.Size())
	return 0
}

// Setattr lets times be set, without keeping them, and refuses the rest: an
// image has one size and one owner.
func (n *imageNode) Setattr(ctx context.Context, fh fs.FileHandle, in *fuse.SetAttrIn, out *fuse.AttrOut) syscall.Errno {
	if size, ok := in.GetSize(); ok && int64(size) != n.image.Size() {
		return syscall.EPERM
	}
	if mode, ok := in.GetMode(); ok && mode&0o7777 != 0o600 {
		return syscall.EPERM
	}
	if uid, ok := in.GetUID(); ok && uid != uint32(os.Geteuid()) {
		return syscall.EPERM
	}
	if gid, ok := in.GetGID(); ok && gid != uint32(os.Getegid()) {
		return syscall.EPERM
	}
	return n.Getattr(ctx, fh, out)
}

func (n *imageNode) Open(context.Context, uint32) (fs.FileHandle, uint32, syscall.Errno) {
	return nil, fuse.FOPEN_KEEP_CACHE, 0
}

func (n *imageNode) Statfs(ctx context.Context, out *fuse.StatfsOut) syscall.Errno {
	return n.root.Statfs(ctx, out)
}

func (n *imageNode) Read(ctx context.Context, _ fs.FileHandle, dest []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	c, errno := n.begin(ctx)
	if errno != 0 {
		return nil, errno
	}
	defer n.end(c)
	if left := n.image.Size() - off; left <= 0 {
		return fuse.ReadResultData(nil), 0
	} else if int64(len(dest)) > left {
		dest = dest[:left]
	}
	got, err := n.image.ReadAt(c, dest, off)
	// A short read would be shown as zeros.
	if got < len(dest) {
		if err == nil || errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return nil, errnoOf(err)
	}
	return fuse.ReadResultData(dest[:got]), 0
}

func (n *imageNode) Write(ctx context.Context, _ fs.FileHandle, data []byte, off int64) (uint32, syscall.Errno) {
	c, errno := n.begin(ctx)
	if errno != 0 {
		return 0, errno
	}
	defer n.end(c)
	if left := n.image.Size() - off; left <= 0 {
		return 0, syscall.ENOSPC
	} else if int64(len(data)) > left {
		data = data[:left]
	}
	put, err := n.image.WriteAt(c, data, off)
	if err != nil && put == 0 {
		return 0, errnoOf(err)
	}
	return uint32(put), 0
}

func (n *imageNode) Fsync(ctx context.Context, _ fs.FileHandle, _ uint32) syscall.Errno {
	c, errno := n.begin(ctx)
	if errno != 0 {
		return errno
	}
	defer n.end(c)
	return errnoOf(n.image.Flush(c))
}

// errnoOf is what the reader is told: an errno inside err, EINTR for its own
// interrupt, else EIO.
func errnoOf(err error) syscall.Errno {
	var errno syscall.Errno
	switch {
	case err == nil:
		return 0
	case errors.Is(err, context.Canceled):
		return syscall.EINTR
	case errors.As(err, &errno):
		return errno
	}
	return syscall.EIO
}

// callContext is the context of one request: done when its reader is being
// killed or the mount closes. Most calls never ask, so what watches for that
// is started by the first Done.
//
// A signal alone does not count, though the kernel tells us of any: a file's
// reader does not expect it, and a page fault that ends in EINTR is a SIGBUS.
// So a guest whose memory is fetched would die of the signals by which a VMM
// wakes its threads.
type callContext struct {
	context.Context // the request's: done at any signal
	closing         <-chan struct{}

	mu   sync.Mutex
	done chan struct{} // nil until asked for
	over chan struct{} // closed at the end of the call
	err  error
}

// dyingPoll is how often it is looked whether an interrupted reader is being
// killed: the kernel tells us of its first signal only.
const dyingPoll = 100 * time.Millisecond

func (c *callContext) Done() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.done == nil {
		c.done = make(chan struct{})
		c.over = make(chan struct{})
		if c.err != nil {
			close(c.done) // used after its call
			return c.done
		}
		go c.watch(c.done, c.Context.Done())
	}
	return c.done
}

func (c *callContext) watch(done chan<- struct{}, interrupt <-chan struct{}) {
	defer close(done)
	select {
	case <-interrupt:
	case <-c.closing:
		c.cancel()
		return
	case <-c.over:
		return
	}
	tick := time.NewTicker(dyingPoll)
	defer tick.Stop()
	for !dying(c.Context) {
		select {
		case <-tick.C:
		case <-c.closing:
			c.cancel()
			return
		case <-c.over:
			return
		}
	}
	c.cancel()
}

func (c *callContext) cancel() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.err = context.Canceled
}

func (c *callContext) Err() error {
	select {
	case <-c.closing:
		return context.Canceled
	default:
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

func (c *callContext) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.err = context.Canceled
	if c.over != nil {
		close(c.over)
	}
}

// statsNode is one counter file. Like a file of /proc it has size 0 and is
// read to its end.
type statsNode struct {
	fs.Inode
	root *rootNode
	make func() []byte
}

func (s *statsNode) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	s.root.attr(&out.Attr, fuse.S_IFREG|0o400, 0)
	return 0
}

func (s *statsNode) Open(_ context.Context, flags uint32) (fs.FileHandle, uint32, syscall.Errno) {
	if flags&syscall.O_ACCMODE != syscall.O_RDONLY {
		return nil, 0, syscall.EACCES
	}
	return &statsFile{text: s.make()}, fuse.FOPEN_DIRECT_IO, 0
}

// statsFile is a counter file as it was when opened.
type statsFile struct{ text []byte }

func (f *statsFile) Read(_ context.Context, dest []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	if off >= int64(len(f.text)) {
		return fuse.ReadResultData(nil), 0
	}
	return fuse.ReadResultData(dest[:copy(dest, f.text[off:])]), 0
}
