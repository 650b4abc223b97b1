package target

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"net/url"
	"os"
	"os/exec"
	"path"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/pkg/sftp"
	"golang.org/x/sys/unix"

	"isr/store/atomicfile"
	"isr/store/parcel"
)

// SFTP is a Target on another host, and a Tree. The host is reached by ssh(1),
// so the administrator's keys, agent, known_hosts and ssh_config count.
type SFTP struct {
	*sftp.Client
	place          string // as people write it
	dir            string // where on the host
	cmd            *exec.Cmd
	out            *os.File      // of ssh
	ended          chan struct{} // ssh has
	errs           *tail
	noSync, noLink bool // the server cannot

	flushing sync.Mutex
	mu       sync.Mutex
	made     map[string]bool
	pending  []written
}

// sshPlace is a place on another host.
type sshPlace struct{ host, port, dir string }

// parseSSH reads ssh://[USER@]HOST[:PORT]/PATH and [USER@]HOST:PATH; false if
// text is neither.
func parseSSH(text string) (p sshPlace, ok bool, err error) {
	if !strings.HasPrefix(text, "ssh://") && !strings.HasPrefix(text, "sftp://") {
		host, dir, found := strings.Cut(text, ":")
		if !found || strings.Contains(host, "/") {
			return p, false, nil
		}
		p = sshPlace{host: host, dir: cmp.Or(dir, ".")}
		return p, true, p.check(text)
	}
	u, err := url.Parse(text)
	if err != nil || u.RawQuery != "" || u.Fragment != "" {
		return p, true, parcel.NewError(parcel.Usage, "%s: want ssh://[USER@]HOST[:PORT]/PATH", parcel.Clean(text))
	}
	if _, secret := u.User.Password(); secret {
		return p, true, parcel.NewError(parcel.Usage, "ssh://%s: has a password in it: ssh asks for it, or use a key", u.Hostname())
	}
	p = sshPlace{host: u.Hostname(), port: u.Port(), dir: u.Path}
	if u.User.Username() != "" {
		p.host = u.User.Username() + "@" + p.host
	}
	if rest, ok := strings.CutPrefix(p.dir, "/~/"); ok {
		p.dir = rest
	}
	p.dir = cmp.Or(p.dir, ".")
	return p, true, p.check(text)
}

func (p sshPlace) check(text string) error {
	if p.host == "" || p.host[0] == '-' || strings.HasSuffix(p.host, "@") || p.host != parcel.Clean(p.host) || strings.Contains(p.host, " ") || p.dir != parcel.Clean(p.dir) {
		return parcel.NewError(parcel.Usage, "%s: want HOST:PATH or ssh://[USER@]HOST[:PORT]/PATH", parcel.Clean(text))
	}
	return nil
}

// OpenSFTP opens a place on another host.
func OpenSFTP(ctx context.Context, place string, w Way, create bool) (*SFTP, error) {
	p, ok, err := parseSSH(place)
	if err != nil || !ok {
		return nil, err
	}
	args := w.SSH[1:len(w.SSH):len(w.SSH)]
	if p.port != "" {
		args = append(args, "-p", p.port)
	}
	args = append(args, "-oServerAliveInterval=30", "-s", "--", p.host, "sftp")
	cmd := exec.Command(w.SSH[0], args...)
	if w.Apart {
		// On a terminal, what ssh runs by the configuration of the account could
		// type the next thing for whose terminal it is.
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	}
	t := &SFTP{place: place, dir: p.dir, cmd: cmd, errs: &tail{w: w.Errors}, made: make(map[string]bool), ended: make(chan struct{})}
	cmd.Stderr = t.errs
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	// A pipe of our own: Wait would close the other kind under who reads it.
	out, end, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	t.out, cmd.Stdout = out, end
	err = cmd.Start()
	end.Close()
	if err != nil {
		out.Close()
		return nil, fmt.Errorf("%s: %w", place, err)
	}
	stop := context.AfterFunc(ctx, func() { cmd.Process.Kill() })
	defer stop()
	t.Client, err = sftp.NewClientPipe(out, in, sftp.UseConcurrentWrites(true), sftp.UseConcurrentReads(true))
	go func() {
		cmd.Wait()
		t.errs.flush()
		close(t.ended)
	}()
	if err != nil {
		in.Close()
		cmd.Process.Kill()
		<-t.ended
		out.Close()
		failed := parcel.NewError(parcel.Unreachable, "%s: no SFTP: %s", place, cmp.Or(t.errs.last(), err.Error()))
		if w.Apart {
			failed = failed.WithHint("ssh runs as another account, without a terminal: it cannot ask for a passphrase, or whether the host is the right one")
		}
		return nil, failed
	}
	if _, ok := t.HasExtension("posix-rename@openssh.com"); !ok {
		t.Close()
		return nil, parcel.NewError(parcel.Failed, "%s: its SFTP server cannot replace files", place)
	}
	_, canSync := t.HasExtension("fsync@openssh.com")
	_, canLink := t.HasExtension("hardlink@openssh.com")
	t.noSync, t.noLink = !canSync, !canLink
	if create {
		if err := t.Client.Mkdir(t.dir); err == nil {
			t.Client.Chmod(t.dir, 0o700)
		}
	}
	if fi, err := t.Stat(t.dir); err != nil || !fi.IsDir() {
		if err == nil {
			err = errors.New("not a directory")
		}
		t.Close()
		return nil, fmt.Errorf("%s: %w", place, err)
	}
	return t, nil
}

// tail passes on what ssh says, line by line and nothing that a terminal obeys:
// it comes from the other host too. It remembers the end of it.
type tail struct {
	w    io.Writer
	mu   sync.Mutex // ssh writes from a goroutine
	text []byte
	line []byte // that has not ended yet
}

// maxTail bounds what is remembered, and a line, bytes.
const maxTail = 1024

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.text = append(t.text, p...)
	t.text = t.text[max(0, len(t.text)-maxTail):]
	for _, c := range p {
		t.line = append(t.line, c)
		if c == '\n' || len(t.line) >= maxTail {
			t.end()
		}
	}
	return len(p), nil
}

// end passes on the line so far. The caller has the lock.
func (t *tail) end() {
	text := parcel.Clean(string(t.line))
	t.line = nil
	if t.w != nil && text != "" {
		fmt.Fprintln(t.w, text)
	}
}

// flush passes on what is left, when ssh has ended.
func (t *tail) flush() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.end()
}

// last is the last line.
func (t *tail) last() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	text := strings.TrimSpace(string(t.text))
	return parcel.Clean(text[strings.LastIndex(text, "\n")+1:])
}

func (t *SFTP) String() string { return t.place }

// Width hides the round trips, of which a file takes five.
func (t *SFTP) Width() int { return 32 }

func (t *SFTP) Close() error {
	err := t.Client.Close() // and the input of ssh
	defer t.out.Close()
	select {
	case <-t.ended:
	case <-time.After(5 * time.Second):
		t.cmd.Process.Kill()
		<-t.ended
	}
	return err
}

func (t *SFTP) path(name string) string { return path.Join(t.dir, name) }

// wrap says where an error happened, and what a lost connection is.
func (t *SFTP) wrap(err error) error {
	if err == nil {
		return nil
	}
	var status *sftp.StatusError
	if errors.As(err, &status) && status.FxCode() != sftp.ErrSSHFxConnectionLost || errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrExist) ||
		errors.Is(err, fs.ErrPermission) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("%s: %w", t.place, err)
	}
	lost := errors.Is(err, sftp.ErrSSHFxConnectionLost) || errors.Is(err, io.EOF) || errors.Is(err, unix.EPIPE) || errors.Is(err, os.ErrClosed)
	select {
	case <-t.ended:
		lost = true
	default:
	}
	if lost {
		return parcel.NewError(parcel.Unreachable, "%s: connection lost: %s", t.place, cmp.Or(t.errs.last(), err.Error())).
			WithHint("run it again: it goes on from there")
	}
	return fmt.Errorf("%s: %w", t.place, err)
}

func (t *SFTP) Mkdir(_ context.Context, name string) error {
	if name == "." || name == "/" {
		return nil
	}
	t.mu.Lock()
	made := t.made[name]
	t.mu.Unlock()
	if made {
		return nil
	}
	if err := t.Mkdir(context.Background(), path.Dir(name)); err != nil {
		return err
	}
	if err := t.Client.Mkdir(t.path(name)); err != nil {
		// The protocol has no error of its own for what exists.
		fi, serr := t.Lstat(t.path(name))
		if serr != nil {
			return err
		}
		if !fi.IsDir() {
			return &fs.PathError{Op: "mkdir", Path: name, Err: fs.ErrExist}
		}
	} else if err := t.Client.Chmod(t.path(name), 0o700); err != nil {
		return err
	}
	t.mu.Lock()
	t.made[name] = true
	t.mu.Unlock()
	return nil
}

func (t *SFTP) Put(ctx context.Context, name string, content []byte) error {
	return t.PutFrom(ctx, name, bytes.NewReader(content), int64(len(content)))
}

func (t *SFTP) PutFrom(ctx context.Context, name string, r io.Reader, size int64) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return t.wrap(t.put(ctx, name, r, size))
}

func (t *SFTP) put(ctx context.Context, name string, r io.Reader, size int64) error {
	if err := t.Mkdir(ctx, path.Dir(name)); err != nil {
		return err
	}
	temp := t.path(path.Join(path.Dir(name), atomicfile.TempPrefix+path.Base(name)))
	t.mu.Lock()
	waits := slices.ContainsFunc(t.pending, func(p written) bool { return p.from == temp })
	t.mu.Unlock()
	if waits {
		if err := t.flush(ctx); err != nil {
			return err
		}
	}
	const flags = os.O_WRONLY | os.O_CREATE | os.O_EXCL // through no link
	f, err := t.OpenFile(temp, flags)
	if err != nil {
		t.Client.Remove(temp) // of a run that was killed
		if f, err = t.OpenFile(temp, flags); err != nil {
			return err
		}
	}
	n, err := f.ReadFrom(r)
	if err == nil && n != size {
		err = io.ErrUnexpectedEOF
	}
	if err == nil {
		err = f.Chmod(fileMode(name))
	}
	if err != nil {
		f.Close()
		t.Client.Remove(temp)
		return err
	}
	t.mu.Lock()
	t.pending = append(t.pending, written{f, temp, t.path(name)})
	full := len(t.pending) >= maxOpen
	t.mu.Unlock()
	if full {
		return t.flush(ctx)
	}
	return nil
}

// written is a file that waits under another name to be durable.
type written struct {
	f          *sftp.File
	from, name string
}

// maxOpen bounds what waits, files: the server has that many open.
const maxOpen = 128

// Sync makes what waits durable, then gives it its name.
func (t *SFTP) Sync(ctx context.Context) error { return t.wrap(t.flush(ctx)) }

// flush is Sync. When files were written together, the fsync of the first one
// takes the others to the disk too, and theirs cost next to nothing.
func (t *SFTP) flush(ctx context.Context) error {
	t.flushing.Lock()
	defer t.flushing.Unlock()
	t.mu.Lock()
	pending := t.pending
	t.pending = nil
	t.mu.Unlock()
	return Parallel(ctx, t.Width(), pending, func(_ context.Context, p written) (err error) {
		if !t.noSync {
			err = p.f.Sync()
		}
		if cerr := p.f.Close(); err == nil {
			err = cerr
		}
		if err == nil {
			err = t.PosixRename(p.from, p.name)
		}
		return err
	})
}

func (t *SFTP) Get(_ context.Context, name string) (io.ReadCloser, error) {
	f, err := t.Open(t.path(name))
	if err != nil {
		return nil, t.wrap(err)
	}
	return &sftpReader{bufio.NewReaderSize(sftpErrors{t, f}, 160<<10), f}, nil
}

// sftpReader reads an object of the usual size in one go: each Read of a file
// is a round trip.
type sftpReader struct {
	*bufio.Reader
	io.Closer
}

// sftpErrors says where errors of reading happened.
type sftpErrors struct {
	t *SFTP
	f *sftp.File
}

func (r sftpErrors) Read(p []byte) (int, error) {
	n, err := r.f.Read(p)
	if err != nil && err != io.EOF {
		err = r.t.wrap(err)
	}
	return n, err
}

func (t *SFTP) List(ctx context.Context, dir string) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		infos, err := t.ReadDir(t.path(dir))
		if errors.Is(err, fs.ErrNotExist) {
			return
		}
		if err != nil {
			yield(Entry{}, t.wrap(err))
			return
		}
		// Directories at once: a round trip or two each.
		type listing struct {
			entries []Entry
			err     error
		}
		var below []chan listing
		slots := make(chan struct{}, t.Width())
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		for _, fi := range infos {
			name := path.Join(dir, fi.Name())
			switch {
			case fi.IsDir():
				c := make(chan listing, 1)
				below = append(below, c)
				go func() {
					slots <- struct{}{}
					defer func() { <-slots }()
					var l listing
					for e, err := range t.listOne(ctx, name) {
						if err != nil {
							l.err = err
							break
						}
						l.entries = append(l.entries, e)
					}
					c <- l
				}()
			case fi.Mode().IsRegular() && !isTemp(fi.Name()):
				if !yield(Entry{name, fi.Size()}, nil) {
					return
				}
			}
		}
		for _, c := range below {
			l := <-c
			for _, e := range l.entries {
				if !yield(e, nil) {
					return
				}
			}
			if l.err != nil {
				yield(Entry{}, l.err)
				return
			}
		}
	}
}

// listOne is List of one directory and, one after the other, those below it.
func (t *SFTP) listOne(ctx context.Context, dir string) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		if err := ctx.Err(); err != nil {
			yield(Entry{}, err)
			return
		}
		infos, err := t.ReadDir(t.path(dir))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			yield(Entry{}, t.wrap(err))
			return
		}
		for _, fi := range infos {
			name := path.Join(dir, fi.Name())
			switch {
			case fi.IsDir():
				for e, err := range t.listOne(ctx, name) {
					if !yield(e, err) || err != nil {
						return
					}
				}
			case fi.Mode().IsRegular() && !isTemp(fi.Name()):
				if !yield(Entry{name, fi.Size()}, nil) {
					return
				}
			}
		}
	}
}

func (t *SFTP) Remove(_ context.Context, name string) error {
	fi, err := t.Lstat(t.path(name))
	if err == nil && fi.IsDir() {
		t.mu.Lock()
		delete(t.made, name)
		t.mu.Unlock()
		return t.wrap(t.RemoveDirectory(t.path(name)))
	}
	return t.wrap(t.Client.Remove(t.path(name)))
}

// errNoLink is returned where there are no hard links.
var errNoLink = errors.New("hard links: not supported")

// Link makes the file name another name of old.
func (t *SFTP) Link(ctx context.Context, old, name string) error {
	if t.noLink {
		return errNoLink
	}
	if err := t.Mkdir(ctx, path.Dir(name)); err != nil {
		return t.wrap(err)
	}
	err := t.Client.Link(t.path(old), t.path(name))
	if err != nil {
		if fi, serr := t.Lstat(t.path(name)); serr == nil && fi.Mode().IsRegular() {
			return nil
		}
	}
	return t.wrap(err)
}

// Symlink makes name a symbolic link to target.
func (t *SFTP) Symlink(ctx context.Context, target, name string) error {
	if got, err := t.ReadLink(t.path(name)); err == nil && got == target {
		return nil
	}
	if err := t.Mkdir(ctx, path.Dir(name)); err != nil {
		return t.wrap(err)
	}
	temp := t.path(path.Join(path.Dir(name), atomicfile.TempPrefix+path.Base(name)))
	t.Client.Remove(temp)
	if err := t.Client.Symlink(target, temp); err != nil {
		return t.wrap(err)
	}
	return t.wrap(t.PosixRename(temp, t.path(name)))
}

// RemoveAll removes a directory with all that is in it.
func (t *SFTP) RemoveAll(ctx context.Context, name string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	t.mu.Lock()
	clear(t.made)
	t.mu.Unlock()
	infos, err := t.ReadDir(t.path(name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return t.wrap(err)
	}
	for _, fi := range infos {
		below := path.Join(name, fi.Name())
		if fi.IsDir() { // by lstat: a link is none
			err = t.RemoveAll(ctx, below)
		} else {
			err = t.wrap(t.Client.Remove(t.path(below)))
		}
		if err != nil {
			return err
		}
	}
	return t.wrap(t.RemoveDirectory(t.path(name)))
}

// Chmod changes the mode of a file.
func (t *SFTP) Chmod(_ context.Context, name string, mode fs.FileMode) error {
	return t.wrap(t.Client.Chmod(t.path(name), mode))
}
