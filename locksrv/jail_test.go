package locksrv_test

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/pkg/sftp"

	"isr/client/remote/sshdtest"
	"isr/locksrv"
	"isr/locksrv/locksrvtest"
	"isr/store/parcel"
	"isr/store/seal"
)

// jailed is a realm with alice's parcel winxp, held, and a draft of its next
// version.
type jailed struct {
	*locksrvtest.Realm
	client *locksrvtest.Client
	sftp   *sftp.Client
	dir    string // the parcel's content, on the server
	draft  *locksrvtest.Draft
	lock   *parcel.Lock
}

func newJailed(t *testing.T) *jailed {
	t.Helper()
	r := locksrvtest.NewRealm(t)
	p := r.AddParcel(t, "alice", "winxp")
	r.AddParcel(t, "bob", "secret")
	peer := locksrvtest.Direct{Service: r.Service, Session: locksrv.Session{User: "alice"}}
	j := &jailed{Realm: r, client: &locksrvtest.Client{Peer: peer, Parcel: "winxp"}, dir: p.ContentDir()}
	var err error
	if j.sftp, err = peer.SFTP(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { j.sftp.Close() })
	if j.lock, err = j.client.Acquire("h", parcel.NewID()); err != nil {
		t.Fatal(err)
	}
	if j.draft, err = j.client.Draft(7); err != nil {
		t.Fatal(err)
	}
	return j
}

// one is an object of the draft.
func (j *jailed) one() (tag seal.Tag, object []byte) {
	for tag, object = range j.draft.Objects {
		break
	}
	return tag, object
}

// tree is everything below dir, with content, to see that nothing changed.
func tree(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		fi, err := d.Info()
		if err != nil {
			return err
		}
		b.WriteString(strings.Join([]string{name, fi.Mode().String(), fi.ModTime().String()}, " "))
		if fi.Mode().IsRegular() {
			p, err := os.ReadFile(name)
			if err != nil {
				return err
			}
			b.Write(p)
		}
		b.WriteByte('\n')
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func names(infos []os.FileInfo) (names []string) {
	for _, fi := range infos {
		names = append(names, fi.Name())
	}
	return names
}

func TestJailShowsContent(t *testing.T) {
	j := newJailed(t)
	root, err := j.sftp.ReadDir("/")
	if err != nil || !slices.Equal(names(root), []string{"winxp"}) {
		t.Errorf("/: %v, %v; want winxp alone", names(root), err)
	}
	if err := os.WriteFile(filepath.Join(j.dir, ".tmp-123"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	in, err := j.sftp.ReadDir("/winxp")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"000001", "hdk", "keys", "last"} {
		if !slices.Contains(names(in), want) {
			t.Errorf("/winxp: %v lacks %s", names(in), want)
		}
	}
	for _, hidden := range []string{"staging", ".tmp-123"} {
		if slices.Contains(names(in), hidden) {
			t.Errorf("/winxp: shows %s", hidden)
		}
		if _, err := j.sftp.Stat("/winxp/" + hidden); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("stat %s: %v, want that it is not there", hidden, err)
		}
		if _, err := j.sftp.ReadDir("/winxp/" + hidden); err == nil {
			t.Errorf("list %s: it can be", hidden)
		}
	}
	if target, err := j.sftp.ReadLink("/winxp/last"); err != nil || target != "000001" {
		t.Errorf("readlink last: %q, %v", target, err)
	}
	if fi, err := j.sftp.Lstat("/winxp/last"); err != nil || fi.Mode()&fs.ModeSymlink == 0 {
		t.Errorf("lstat last: %v, %v", fi, err)
	}
	if fi, err := j.sftp.Stat("/winxp/last"); err != nil || !fi.IsDir() {
		t.Errorf("stat last: %v, %v", fi, err)
	}
	// Through the link of a link: keys/keyring.enc -> ../last/keyring.enc.
	for _, name := range []string{"/winxp/last/keyring.enc", "/winxp/keys/keyring.enc", "winxp/000001/keyring.enc", "/winxp/hdk/../last/keyring.enc"} {
		f, err := j.sftp.Open(name)
		if err != nil {
			t.Errorf("open %s: %v", name, err)
			continue
		}
		got, err := io.ReadAll(f)
		f.Close()
		want, werr := os.ReadFile(filepath.Join(j.dir, "000001/keyring.enc"))
		if err != nil || werr != nil || !bytes.Equal(got, want) {
			t.Errorf("read %s: %d bytes, %v, %v; want %d", name, len(got), err, werr, len(want))
		}
	}
	if wd, err := j.sftp.Getwd(); err != nil || wd != "/" {
		t.Errorf("working directory: %q, %v", wd, err)
	}
	if st, err := j.sftp.StatVFS("/winxp"); err != nil || st.Bsize == 0 || st.Blocks == 0 {
		t.Errorf("statvfs: %+v, %v", st, err)
	}
	if _, err := j.sftp.Open("/winxp/none"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("open of nothing: %v", err)
	}
	if _, err := j.sftp.Open("/winxp"); err == nil {
		t.Errorf("open of a directory: no error")
	}
}

// Whatever changes files is refused, and changes none.
func TestJailRefusesChanges(t *testing.T) {
	j := newJailed(t)
	before := tree(t, j.Root)
	tag, object := j.one()
	name := tag.String()
	put := func(path string, flags int) error {
		f, err := j.sftp.OpenFile(path, flags)
		if err != nil {
			return err
		}
		_, err = f.Write(object)
		if cerr := f.Close(); err == nil {
			err = cerr
		}
		return err
	}
	const create = os.O_WRONLY | os.O_CREATE | os.O_TRUNC
	info, err := j.sftp.ReadDir("/winxp/hdk")
	if err != nil || len(info) == 0 {
		t.Fatalf("hdk: %v, %v", info, err)
	}
	some := "/winxp/hdk/" + info[0].Name()
	for what, do := range map[string]func() error{
		"put in /":                  func() error { return put("/"+name, create) },
		"put a parcel":              func() error { return put("/other/hdk/"+name[:2]+"/"+name, create) },
		"put beside hdk":            func() error { return put("/winxp/"+name, create) },
		"put beside hdk/xx":         func() error { return put("/winxp/hdk/"+name, create) },
		"put in staging":            func() error { return put("/winxp/staging/"+name, create) },
		"put in the wrong xx":       func() error { return put("/winxp/hdk/zz/"+name, create) },
		"put a name in capitals":    func() error { return put("/winxp/hdk/"+strings.ToUpper(name[:2]+"/"+name), create) },
		"put a short name":          func() error { return put("/winxp/hdk/"+name[:2]+"/"+name[:63], create) },
		"put parcel.cfg":            func() error { return put("/winxp/parcel.cfg", create) },
		"put over keyring.enc":      func() error { return put("/winxp/last/keyring.enc", create) },
		"put for another user":      func() error { return put("/../../bob/isr/secret/hdk/"+name[:2]+"/"+name, create) },
		"put into an unknown":       func() error { return put("/secret/hdk/"+name[:2]+"/"+name, create) },
		"append to an object":       func() error { return put("/winxp/hdk/"+name[:2]+"/"+name, os.O_WRONLY|os.O_APPEND) },
		"open keyring.enc to write": func() error { return put("/winxp/last/keyring.enc", os.O_RDWR) },
		"truncate":                  func() error { return j.sftp.Truncate("/winxp/last/keyring.enc", 0) },
		"chmod":                     func() error { return j.sftp.Chmod("/winxp/last/keyring.enc", 0o777) },
		"chmod of a directory":      func() error { return j.sftp.Chmod("/winxp", 0o777) },
		"chown":                     func() error { return j.sftp.Chown("/winxp/hdk", 1, 1) },
		"rename":                    func() error { return j.sftp.Rename(some, some+"x") },
		"posix rename":              func() error { return j.sftp.PosixRename("/winxp", "/winxq") },
		"remove":                    func() error { return j.sftp.Remove("/winxp/last/keyring.enc") },
		"remove a link":             func() error { return j.sftp.Remove("/winxp/last") },
		"remove a directory":        func() error { return j.sftp.RemoveDirectory("/winxp/000001") },
		"mkdir":                     func() error { return j.sftp.Mkdir("/winxp/hdk/zz") },
		"mkdir of a parcel":         func() error { return j.sftp.Mkdir("/new") },
		"symlink":                   func() error { return j.sftp.Symlink("/etc/passwd", "/winxp/passwd") },
		"hard link":                 func() error { return j.sftp.Link("/winxp/last/keyring.enc", "/winxp/k") },
	} {
		if err := do(); err == nil {
			t.Errorf("%s: no error", what)
		} else if !errors.Is(err, fs.ErrPermission) && !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v, want permission denied", what, err)
		}
	}
	if after := tree(t, j.Root); after != before {
		t.Errorf("something changed:\nbefore\n%s\nafter\n%s", before, after)
	}
}

// A link that leads out of the user's content is not followed, by whomever and
// however it was planted.
func TestJailDoesNotFollowLinksOut(t *testing.T) {
	j := newJailed(t)
	outside := filepath.Join(t.TempDir(), "outside")
	if err := os.WriteFile(outside, []byte("secret of the host"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Dir(outside), filepath.Join(filepath.Dir(j.dir), "linked")); err != nil {
		t.Fatal(err)
	}
	for name, target := range map[string]string{
		"absolute":  outside,
		"relative":  "../../../../../../../../../../.." + outside,
		"lock":      "../../.isr/winxp/parcel.cfg",
		"directory": filepath.Dir(outside),
		"up":        "../../..",
		"chain":     "absolute",
		"loop":      "loop",
		"proc":      "/proc/self/environ",
	} {
		if err := os.Symlink(target, filepath.Join(j.dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := syscall.Mkfifo(filepath.Join(j.dir, "fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"/winxp/absolute", "/winxp/relative", "/winxp/lock", "/winxp/directory/outside", "/winxp/up",
		"/winxp/up/.isr/winxp/parcel.cfg", "/winxp/chain", "/winxp/loop", "/winxp/proc", "/linked/outside", "/linked"} {
		if f, err := j.sftp.Open(name); err == nil {
			got, _ := io.ReadAll(f)
			f.Close()
			t.Errorf("open %s: got %q", name, got)
		}
		if fi, err := j.sftp.Stat(name); err == nil {
			t.Errorf("stat %s: got %v", name, fi)
		}
		if fis, err := j.sftp.ReadDir(name); err == nil {
			t.Errorf("list %s: got %v", name, names(fis))
		}
		if st, err := j.sftp.StatVFS(name); err == nil {
			t.Errorf("statvfs %s: got %v", name, st)
		}
	}
	if _, err := j.sftp.Open("/winxp/fifo"); err == nil {
		t.Errorf("open of a FIFO: no error")
	}
	// The rest of the parcel is not the worse for it.
	if infos, err := j.sftp.ReadDir("/winxp"); err != nil || len(infos) < 10 {
		t.Errorf("list: %v, %v", names(infos), err)
	}
}

func TestPutIsHashed(t *testing.T) {
	j := newJailed(t)
	tag, object := j.one()
	path := j.client.ObjectPath(tag)
	write := func(content []byte, backwards bool) error {
		f, err := j.sftp.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC)
		if err != nil {
			return err
		}
		if backwards {
			for i := len(content) - 1; i >= 0 && err == nil; i -= 50 {
				from := max(0, i-49)
				_, err = f.WriteAt(content[from:i+1], int64(from))
			}
		} else {
			_, err = f.Write(content)
		}
		f.Chmod(0o644) // as clients do
		if cerr := f.Close(); err == nil {
			err = cerr
		}
		return err
	}
	has := func(want bool) {
		t.Helper()
		lacking, err := j.client.Missing(tag)
		if err != nil || (len(lacking) == 0) != want {
			t.Errorf("the store has it: %v (%v), want %v", len(lacking) == 0, err, want)
		}
	}
	staging := filepath.Join(j.dir, "staging")
	flipped := bytes.Clone(object)
	flipped[len(flipped)/2] ^= 1
	for what, content := range map[string][]byte{"a bit is wrong": flipped, "nothing": nil,
		"the end lacks": object[:len(object)-1], "too long": append(bytes.Clone(object), 0)} {
		err := write(content, false)
		if err == nil || !strings.Contains(err.Error(), "does not match") {
			t.Errorf("%s: %v, want that it does not match its name", what, err)
		}
		has(false)
		if left, err := os.ReadDir(staging); err != nil || len(left) > 0 {
			t.Errorf("%s: left %v in staging, %v", what, left, err)
		}
	}
	if err := write(object, true); err != nil {
		t.Errorf("in another order: %v", err)
	}
	has(true)
	if err := write(object, false); err != nil {
		t.Errorf("what is there: %v", err)
	}
	if _, err := j.sftp.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("stat before commit: %v; hdk is to show only what is durable", err)
	}
	if err := j.client.Put(j.draft.Objects); err != nil {
		t.Fatal(err)
	}
	if _, err := j.client.Commit(j.draft, j.lock.Nonce, parcel.NewID()); err != nil {
		t.Fatal(err)
	}
	fi, err := j.sftp.Stat(path)
	if err != nil || fi.Size() != int64(len(object)) || fi.Mode().Perm() != 0o400 {
		t.Errorf("stat after commit: %v, %v", fi, err)
	}
	if err := write(object, false); err != nil {
		t.Errorf("what is committed: %v", err)
	}
}

// Two sessions put the same objects at the same time; both succeed.
func TestTwoPutTheSame(t *testing.T) {
	j := newJailed(t)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 5 {
				if err := j.client.Put(j.draft.Objects); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if _, err := j.client.Commit(j.draft, j.lock.Nonce, parcel.NewID()); err != nil {
		t.Error(err)
	}
	if left, err := os.ReadDir(filepath.Join(j.dir, "staging")); err != nil || len(left) > 0 {
		t.Errorf("left in staging: %v, %v", left, err)
	}
}

// A session that breaks in the middle of a put keeps nothing of it.
func TestBrokenPutIsForgotten(t *testing.T) {
	j := newJailed(t)
	tag, object := j.one()
	f, err := j.sftp.Create(j.client.ObjectPath(tag))
	if err != nil {
		t.Fatal(err)
	}
	// Whole, even, but never closed.
	if _, err := f.Write(object); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	here, there := net.Pipe()
	var out bytes.Buffer
	go func() {
		defer close(done)
		j.Service.Run(t.Context(), locksrv.Session{User: "alice"}, "internal-sftp", pipe{there, &out})
	}()
	second, err := sftp.NewClientPipe(here, here)
	if err != nil {
		t.Fatal(err)
	}
	g, err := second.Create(j.client.ObjectPath(tag))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := g.Write(object); err != nil {
		t.Fatal(err)
	}
	here.Close()
	<-done
	if lacking, err := j.client.Missing(tag); err != nil || len(lacking) != 1 {
		t.Errorf("missing: %v, %v; want it lacking", lacking, err)
	}
	left, err := os.ReadDir(filepath.Join(j.dir, "staging"))
	if err != nil || len(left) != 1 { // that of the session which goes on
		t.Errorf("in staging: %v, %v; want one file", left, err)
	}
	if err := f.Close(); err != nil {
		t.Errorf("close by the other: %v", err)
	}
	if lacking, err := j.client.Missing(tag); err != nil || len(lacking) != 0 {
		t.Errorf("missing: %v, %v; want none", lacking, err)
	}
}

type pipe struct {
	net.Conn
	errors io.Writer
}

func (p pipe) Errors() io.Writer { return p.errors }

func TestPutWithoutLockIsRefused(t *testing.T) {
	j := newJailed(t)
	if _, err := j.client.Verb("isr_release_lock", "", []byte(j.lock.Nonce)); err != nil {
		t.Fatal(err)
	}
	if err := j.client.Put(j.draft.Objects); !errors.Is(err, fs.ErrPermission) {
		t.Errorf("put: %v, want permission denied", err)
	}
}

func TestOpenFilesAreLimited(t *testing.T) {
	j := newJailed(t)
	var open []*sftp.File
	for range 256 {
		f, err := j.sftp.Open("/winxp/last/keyring.enc")
		if err != nil {
			t.Fatalf("file %d: %v", len(open), err)
		}
		open = append(open, f)
	}
	if _, err := j.sftp.Open("/winxp/last/keyring.enc"); err == nil {
		t.Errorf("file 257: opened")
	}
	open[0].Close()
	if _, err := j.sftp.Open("/winxp/last/keyring.enc"); err != nil {
		t.Errorf("after one was closed: %v", err)
	}
}

// OpenSSH's sftp, by hand: it looks around, puts, and is refused.
func TestJailWithOpenSSH(t *testing.T) {
	sshdtest.Require(t, "sftp")
	j := newJailed(t)
	d := j.Start(t, nil)
	_, port, err := net.SplitHostPort(d.Addr)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	tag, object := j.one()
	good, bad := filepath.Join(dir, "good"), filepath.Join(dir, "bad")
	for name, content := range map[string][]byte{good: object, bad: []byte("bad")} {
		if err := os.WriteFile(name, content, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	batch := func(line string) (string, error) {
		args := locksrvtest.SSHArgs(j.Files["alice"], port, filepath.Join(dir, "known_hosts"))
		cmd := exec.Command("sftp", append(args, "-b", "-", "alice@127.0.0.1")...)
		cmd.Stdin = strings.NewReader(line + "\n")
		cmd.Dir = dir
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	path := j.client.ObjectPath(tag)
	for _, test := range []struct {
		line, want string
		ok         bool
	}{
		{"ls -la /", "winxp", true},
		{"cd winxp\nls -l\npwd", "Remote working directory: /winxp", true},
		{"ls -l winxp/last/keyring.enc", "keyring.enc", true},
		{"df winxp", "%", true},
		{"get winxp/last/keyring.enc got", "", true},
		{"get -r winxp copied", "", true},
		{"put bad " + path, "close remote: Failure", false},
		{"put good " + path, "", true},
		{"put -p good " + path, "", true},
		{"put bad winxp/bad", "ermission denied", false},
		{"rm winxp/last", "ermission denied", false},
		{"rmdir winxp/000001", "ermission denied", false},
		{"mkdir winxp/x", "ermission denied", false},
		{"rename winxp winxq", "ermission denied", false},
		{"ln -s /etc winxp/etc", "ermission denied", false},
		{"ln winxp/last/keyring.enc winxp/k", "ermission denied", false},
		{"chmod 777 winxp", "ermission denied", false},
		{"ls ../../bob", "not found", false},
	} {
		out, err := batch(test.line)
		if (err == nil) != test.ok || !strings.Contains(out, test.want) {
			t.Errorf("sftp %q: %v, %s; want success %v and %q", test.line, err, out, test.ok, test.want)
		}
	}
	if lacking, err := j.client.Missing(tag); err != nil || len(lacking) != 0 {
		t.Errorf("what was put is missing: %v, %v", lacking, err)
	}
	for local, remote := range map[string]string{"got": "last/keyring.enc", "copied/000001/info": "000001/info"} {
		got, err := os.ReadFile(filepath.Join(dir, local))
		want, werr := os.ReadFile(filepath.Join(j.dir, remote))
		if err != nil || werr != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %d bytes, %v; want %d, %v", local, len(got), err, len(want), werr)
		}
	}
}
