package locksrv

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path"
	"runtime/debug"
	"sort"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/pkg/sftp"
	"golang.org/x/sys/unix"

	"isr/store"
	"isr/store/atomicfile"
	"isr/store/authkey"
	"isr/store/parcel"
	"isr/store/seal"
)

// jail is a user's content as SFTP shows it: / holds the parcels. Everything
// can be listed and read, but for what is on its way into the store; nothing
// can be changed, but for putting objects of a parcel that is checked out.
//
// Names are resolved by os.Root, so neither .. nor a link leads out.
type jail struct {
	root   *os.Root
	store  *store.Store
	user   string
	rights authkey.Rights
	log    *slog.Logger
	meter  Meter
	still  *standing
	room   allowance
	open   atomic.Int64 // files being read or put

	mu      sync.Mutex
	parcels map[string]*os.Root // of a session that sees some only
}

// maxOpen bounds the files that one SFTP session has open.
const maxOpen = 256

// stagingDir is where the store keeps what was put and not yet committed.
const stagingDir = "staging"

// maxTxPacket is the largest answer to a read, bytes: what OpenSSH asks for at most.
const maxTxPacket = 255 << 10

func (v *Service) serveSFTP(ctx context.Context, s Session, rwc io.ReadWriteCloser) error {
	if s.Log == nil {
		s.Log = slog.New(slog.DiscardHandler)
	}
	if err := v.admit(s); err != nil {
		s.Log.Warn("refused", "error", err)
		return err
	}
	_, content, err := v.Store.UserDirs(s.User)
	if err != nil {
		return err
	}
	root, err := os.OpenRoot(content)
	if err != nil {
		s.Log.Error("sftp", "error", err)
		return parcel.NewError(parcel.Failed, "content of %s cannot be opened", s.User)
	}
	defer root.Close()
	j := &jail{root: root, store: v.Store, user: s.User, rights: s.Rights, log: s.Log, meter: v.meter(), still: v.standing(s),
		room: allowance{store: v.Store, user: s.User}, parcels: make(map[string]*os.Root)}
	defer func() {
		for _, r := range j.parcels {
			r.Close()
		}
	}()
	server := sftp.NewRequestServer(rwc, sftp.Handlers{FileGet: j, FilePut: j, FileCmd: j, FileList: j},
		sftp.WithRSMaxTxPacket(maxTxPacket))
	// Closed in no other case: the channel is to carry the exit status yet.
	defer context.AfterFunc(ctx, func() { server.Close() })()
	s.Log.Info("sftp begins")
	err = server.Serve()
	s.Log.Info("sftp ends")
	if err == io.EOF || ctx.Err() != nil {
		return nil
	}
	return err
}

// catch turns a panic in a handler into its error.
func (j *jail) catch(err *error) {
	if p := recover(); p != nil {
		j.meter.Failed("panic")
		j.log.Error("panic", "in", "sftp", "panic", p, "stack", string(debug.Stack()))
		*err = sftp.ErrSSHFxFailure
	}
}

// denied is the answer to all that is not read or put.
func denied(what string) error {
	return fmt.Errorf("%s: %w", what, sftp.ErrSSHFxPermissionDenied)
}

// answer maps an error to the status that SFTP has for it.
func answer(name string, err error) error {
	switch {
	case err == nil || err == io.EOF:
		return err
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ENOTDIR), errors.Is(err, syscall.ELOOP),
		errors.Is(err, parcel.ErrNoParcel), errors.Is(err, parcel.ErrNoObject):
		return fmt.Errorf("%s: %w", name, sftp.ErrSSHFxNoSuchFile)
	case errors.Is(err, fs.ErrPermission), errors.Is(err, parcel.ErrDenied), errors.Is(err, parcel.ErrNotHolder):
		return fmt.Errorf("%s: %w", name, sftp.ErrSSHFxPermissionDenied)
	}
	var e *parcel.Error
	if errors.As(err, &e) {
		return fmt.Errorf("%w: %w", err, sftp.ErrSSHFxFailure)
	}
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return fmt.Errorf("%s: %w: %w", name, errno, sftp.ErrSSHFxFailure)
	}
	// What os.Root refuses, above all.
	return fmt.Errorf("%s: %w", name, sftp.ErrSSHFxPermissionDenied)
}

// shown maps a path of the client, absolute and clean, to one inside the root.
func shown(p string) (string, error) {
	if !strings.HasPrefix(p, "/") || strings.ContainsRune(p, 0) || path.Clean(p) != p {
		return "", sftp.ErrSSHFxNoSuchFile
	}
	if p == "/" {
		return ".", nil
	}
	name := p[1:]
	parts := strings.Split(name, "/")
	for i, part := range parts {
		if hidden(i, part) {
			return "", fmt.Errorf("%s: %w", p, sftp.ErrSSHFxNoSuchFile)
		}
	}
	return name, nil
}

// place is where a path of the client leads: a name in a root. For a session
// that sees some parcels only the root is the parcel's own, so that no link
// leads from one to another.
func (j *jail) place(p string) (*os.Root, string, error) {
	if err := j.goesOn(); err != nil {
		return nil, "", err
	}
	name, err := shown(p)
	if err != nil || name == "." || j.rights.Parcels == nil {
		return j.root, name, err
	}
	first, rest, deeper := strings.Cut(name, "/")
	if !j.rights.Sees(first) {
		return nil, "", fmt.Errorf("%s: %w", p, sftp.ErrSSHFxNoSuchFile)
	}
	if !deeper {
		rest = "."
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if root := j.parcels[first]; root != nil {
		return root, rest, nil
	}
	fi, err := j.root.Lstat(first)
	if err == nil && !fi.IsDir() {
		err = fs.ErrNotExist
	}
	if err != nil {
		return nil, "", answer(p, err)
	}
	root, err := j.root.OpenRoot(first)
	if err != nil {
		return nil, "", answer(p, err)
	}
	j.parcels[first] = root
	return root, rest, nil
}

// hidden says whether a name at a depth (0: parcels) is the store's own.
func hidden(depth int, name string) bool {
	return strings.HasPrefix(name, atomicfile.TempPrefix) || depth == 1 && name == stagingDir
}

// object is the parcel and tag that a path stands for: /PARCEL/hdk/xx/TAG.
func object(p string) (name string, tag seal.Tag, ok bool) {
	parts := strings.Split(p, "/")
	if len(parts) != 5 || parts[0] != "" || parts[2] != "hdk" || parcel.CheckName(parts[1]) != nil {
		return "", "", false
	}
	tag, err := seal.ParseTag(parts[4])
	if err != nil || parts[3] != parts[4][:2] {
		return "", "", false
	}
	return parts[1], tag, true
}

// goesOn is nil if the session may go on; else it is the answer to whatever is
// asked.
func (j *jail) goesOn() error { return answer("session", j.still.check()) }

// enter counts one more open file.
func (j *jail) enter() error {
	if j.open.Add(1) > maxOpen {
		j.open.Add(-1)
		return fmt.Errorf("%d files are open, which is the limit: %w", maxOpen, sftp.ErrSSHFxFailure)
	}
	return nil
}

// Fileread opens a regular file.
func (j *jail) Fileread(r *sftp.Request) (_ io.ReaderAt, err error) {
	defer j.catch(&err)
	root, name, err := j.place(r.Filepath)
	if err != nil {
		return nil, err
	}
	if err := j.enter(); err != nil {
		return nil, err
	}
	// A FIFO that somebody left here is not to block the session.
	f, err := root.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		j.open.Add(-1)
		return nil, answer(r.Filepath, err)
	}
	fi, err := f.Stat()
	if err == nil && !fi.Mode().IsRegular() {
		err = fs.ErrPermission
	}
	if err != nil {
		f.Close()
		j.open.Add(-1)
		return nil, answer(r.Filepath, err)
	}
	return &reading{File: f, jail: j, name: r.Filepath}, nil
}

// reading is a file open for reading.
type reading struct {
	*os.File
	jail *jail
	name string
	read atomic.Int64 // bytes
}

func (f *reading) ReadAt(p []byte, off int64) (n int, err error) {
	defer f.jail.catch(&err)
	if off < 0 {
		return 0, io.EOF
	}
	if err := f.jail.goesOn(); err != nil {
		return 0, err
	}
	n, err = f.File.ReadAt(p, off)
	f.read.Add(int64(n))
	return n, answer(f.name, err)
}

func (f *reading) Close() (err error) {
	defer f.jail.catch(&err)
	f.jail.open.Add(-1)
	f.jail.meter.Content("sftp", true, f.read.Load())
	return f.File.Close()
}

// Filewrite begins to put an object.
func (j *jail) Filewrite(r *sftp.Request) (_ io.WriterAt, err error) {
	defer j.catch(&err)
	name, tag, ok := object(r.Filepath)
	if !ok || r.Pflags().Append || j.rights.ReadOnly {
		return nil, denied(r.Filepath)
	}
	if !j.rights.Sees(name) {
		return nil, fmt.Errorf("%s: %w", r.Filepath, sftp.ErrSSHFxNoSuchFile)
	}
	if err := j.goesOn(); err != nil {
		return nil, err
	}
	p, err := j.store.Parcel(j.user, name)
	if err != nil {
		return nil, answer(r.Filepath, err)
	}
	holder, err := p.Holder()
	if err != nil {
		return nil, answer(r.Filepath, err)
	}
	if holder == nil {
		return nil, denied(fmt.Sprintf("parcel %s is not checked out", name))
	}
	has, err := p.Has(tag)
	if err != nil {
		return nil, answer(r.Filepath, err)
	}
	if has {
		return discard{}, nil
	}
	if err := j.enter(); err != nil {
		return nil, err
	}
	if err := j.room.take(0); err != nil {
		j.open.Add(-1)
		return nil, answer(r.Filepath, err)
	}
	staged, err := p.Stage(tag)
	if err != nil {
		j.open.Add(-1)
		return nil, answer(r.Filepath, err)
	}
	return &putting{jail: j, staged: staged, name: r.Filepath}, nil
}

// discard takes the bytes of an object that is there already.
type discard struct{}

func (discard) WriteAt(p []byte, off int64) (int, error) { return len(p), nil }

// putting is an object on its way into the staging area.
type putting struct {
	jail   *jail
	staged *store.Staged
	name   string
	broken atomic.Bool  // the session ended, or a write failed
	bytes  atomic.Int64 // that came

	mu   sync.Mutex
	size int64 // bytes allowed so far
}

func (w *putting) WriteAt(p []byte, off int64) (n int, err error) {
	defer w.jail.catch(&err)
	if err = w.jail.goesOn(); err == nil {
		err = w.grow(off + int64(len(p)))
	}
	if err == nil {
		n, err = w.staged.WriteAt(p, off)
	}
	if err != nil {
		w.broken.Store(true)
	}
	w.bytes.Add(int64(n))
	return n, answer(w.name, err)
}

// grow asks for room up to a size, before anything is written there.
func (w *putting) grow(size int64) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if size <= w.size {
		return nil
	}
	if err := w.jail.room.take(size - w.size); err != nil {
		return err
	}
	w.size = size
	return nil
}

// TransferError is told that the session ended before the file was closed.
func (w *putting) TransferError(error) { w.broken.Store(true) }

// Close keeps the object if it is whole, and what its name says.
func (w *putting) Close() (err error) {
	defer w.jail.catch(&err)
	defer w.jail.open.Add(-1)
	if w.broken.Load() {
		w.staged.Abort()
		return fmt.Errorf("%s: incomplete: %w", w.name, sftp.ErrSSHFxFailure)
	}
	err = w.staged.Close()
	if errors.Is(err, parcel.ErrDamaged) {
		w.jail.log.Warn("put refused", "file", w.name, "error", err)
	}
	if err == nil {
		w.jail.meter.Content("sftp", false, w.bytes.Load())
	}
	return answer(w.name, err)
}

// Filecmd refuses every change. Setting attributes of what was put does
// nothing, but is no error: clients do it without being asked.
func (j *jail) Filecmd(r *sftp.Request) (err error) {
	defer j.catch(&err)
	if r.Method == "Setstat" {
		if _, _, ok := object(r.Filepath); ok {
			return nil
		}
	}
	return denied(strings.ToLower(r.Method))
}

// PosixRename is refused as any change is.
func (j *jail) PosixRename(r *sftp.Request) error { return denied("rename") }

// StatVFS tells how much room there is, so that a client can look first.
func (j *jail) StatVFS(r *sftp.Request) (_ *sftp.StatVFS, err error) {
	defer j.catch(&err)
	root, name, err := j.place(r.Filepath)
	if err != nil {
		return nil, err
	}
	f, err := root.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, answer(r.Filepath, err)
	}
	defer f.Close()
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &st); err != nil {
		return nil, answer(r.Filepath, err)
	}
	if room, limited, err := j.store.Room(j.user); err == nil && limited {
		st.Bavail = min(st.Bavail, uint64(max(room, 0))/uint64(max(st.Bsize, 1)))
	}
	return &sftp.StatVFS{
		Bsize: uint64(st.Bsize), Frsize: uint64(st.Frsize),
		Blocks: st.Blocks, Bfree: st.Bfree, Bavail: st.Bavail,
		Files: st.Files, Ffree: st.Ffree, Favail: st.Ffree,
		Namemax: uint64(st.Namelen), Flag: 1, // read-only, ST_RDONLY
	}, nil
}

// Filelist lists a directory, or describes one file.
func (j *jail) Filelist(r *sftp.Request) (_ sftp.ListerAt, err error) {
	defer j.catch(&err)
	root, name, err := j.place(r.Filepath)
	if err != nil {
		return nil, err
	}
	switch r.Method {
	case "List":
		return j.list(root, name, r.Filepath)
	case "Stat":
		fi, err := root.Stat(name)
		if err != nil {
			return nil, answer(r.Filepath, err)
		}
		return entries{fi}, nil
	}
	return nil, sftp.ErrSSHFxOpUnsupported
}

// Lstat describes one file, not what it links to.
func (j *jail) Lstat(r *sftp.Request) (_ sftp.ListerAt, err error) {
	defer j.catch(&err)
	root, name, err := j.place(r.Filepath)
	if err != nil {
		return nil, err
	}
	fi, err := root.Lstat(name)
	if err != nil {
		return nil, answer(r.Filepath, err)
	}
	return entries{fi}, nil
}

// Readlink tells where a link points.
func (j *jail) Readlink(p string) (_ string, err error) {
	defer j.catch(&err)
	root, name, err := j.place(path.Clean("/" + p))
	if err != nil {
		return "", err
	}
	target, err := root.Readlink(name)
	return target, answer(p, err)
}

func (j *jail) list(root *os.Root, name, asked string) (sftp.ListerAt, error) {
	d, err := root.Open(name)
	if err != nil {
		return nil, answer(asked, err)
	}
	defer d.Close()
	all, err := d.Readdir(-1)
	if err != nil {
		return nil, answer(asked, err)
	}
	depth := 0
	if asked != "/" {
		depth = strings.Count(asked, "/")
	}
	seen := all[:0]
	for _, fi := range all {
		if !hidden(depth, fi.Name()) && (depth > 0 || j.rights.Sees(fi.Name())) {
			seen = append(seen, fi)
		}
	}
	sort.Slice(seen, func(a, b int) bool { return seen[a].Name() < seen[b].Name() })
	return entries(seen), nil
}

// entries is a listing, as of when the directory was opened.
type entries []os.FileInfo

func (e entries) ListAt(out []os.FileInfo, off int64) (int, error) {
	if off < 0 || off >= int64(len(e)) {
		return 0, io.EOF
	}
	n := copy(out, e[off:])
	if n < len(out) {
		return n, io.EOF
	}
	return n, nil
}
