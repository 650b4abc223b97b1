package locksrv

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"io/fs"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"isr/locksrv/proto"
	"isr/store"
	"isr/store/parcel"
)

// streams is a session's without a peer.
type streams struct {
	io.Reader
	out, errs bytes.Buffer
	mu        sync.Mutex
}

func (s *streams) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.out.Write(p)
}
func (s *streams) Close() error      { return nil }
func (s *streams) Errors() io.Writer { return &s.errs }

func fuzzRealm(f *testing.F) *Service {
	f.Helper()
	s, err := store.Init(filepath.Join(f.TempDir(), "root"), "fuzz")
	if err != nil {
		f.Fatal(err)
	}
	if err := s.AddUser("alice", nil); err != nil {
		f.Fatal(err)
	}
	if _, err := s.Create(context.Background(), "alice", "p", store.CreateOptions{DiskSize: 1 << 20, VMM: "none"}); err != nil {
		f.Fatal(err)
	}
	return &Service{Store: s}
}

// Whatever the command, it is a verb of the table with its arguments, or SFTP,
// or refused with one error line and a status.
func FuzzCommand(f *testing.F) {
	for _, v := range table {
		f.Add(v.name, []byte(""))
		f.Add(v.name+" p", []byte("x\n"))
	}
	for _, s := range []string{"", " ", "internal-sftp", "/usr/lib/openssh/sftp-server -R", "sftp-server", "isr_ls -L", "isr_ls -L 3 p",
		"isr_ls p -L -1", "isr_release_lock --force", "isr_cat_keyroot p 1", "isr_cat_keyroot p 99999999999999999999", "isr_checkparcel p -c -c",
		"isr_acquire_lock p h a b", "isr_acquire_lock -x", "isr_get p;id", "isr_get\tp", "isr_get\x00p", "isr_get $(id)", "isr_cat_parcel_cfg ../p"} {
		f.Add(s, []byte(strings.Repeat("0", 64)+"\n"))
	}
	v := fuzzRealm(f)
	f.Fuzz(func(t *testing.T, command string, stdin []byte) {
		s := &streams{Reader: bytes.NewReader(stdin)}
		status := v.Run(context.Background(), Session{User: "alice"}, command, s)
		if strings.Contains(s.errs.String(), "internal error") {
			t.Fatalf("%q: it panicked", command)
		}
		if isSFTP(command) {
			return
		}
		words, err := proto.Split(command)
		known := err == nil && len(words) > 0 && slices.Contains(Verbs(), words[0])
		if !known && (status != int(parcel.Usage) && status != int(parcel.Denied) || s.out.Len() > 0) {
			t.Errorf("%q: status %d, %d bytes of output; want it refused", command, status, s.out.Len())
		}
		if (status == 0) != (s.errs.Len() == 0) || status != 0 && !strings.HasPrefix(s.errs.String(), "isr: error: ") {
			t.Errorf("%q: status %d and %q", command, status, &s.errs)
		}
	})
}

// A path of the client maps to one inside the root, and to nothing hidden.
func FuzzPath(f *testing.F) {
	for _, s := range []string{"/", "/p", "/p/last", "/p/staging", "/p/staging/x", "/p/.tmp-1", "/p/x/staging", "..", "/..", "/../x", "//x", "/x/", "/a\x00b",
		"/p/hdk/ab/" + strings.Repeat("ab", 32), "/p/hdk/ab/" + strings.Repeat("ab", 20), "/p/hdk/cd/" + strings.Repeat("ab", 32), "/p/../hdk/ab/" + strings.Repeat("ab", 32)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, p string) {
		if name, err := shown(p); err == nil {
			if !filepath.IsLocal(name) || !fs.ValidPath(name) && name != "." && strings.ToValidUTF8(name, "") == name {
				t.Errorf("%q: maps to %q, which is not inside", p, name)
			}
			for i, part := range strings.Split(name, "/") {
				if strings.HasPrefix(part, ".tmp-") || i == 1 && part == "staging" {
					t.Errorf("%q: maps to %q, which is hidden", p, name)
				}
			}
		}
		if name, tag, ok := object(p); ok {
			if want := "/" + name + "/hdk/" + tag.String()[:2] + "/" + tag.String(); p != want || path.Clean(p) != p {
				t.Errorf("%q: taken for the object %q", p, want)
			}
			if parcel.CheckName(name) != nil {
				t.Errorf("%q: taken for an object of parcel %q", p, name)
			}
		}
	})
}

// packet is one SFTP packet: length, type, content.
func packet(kind byte, content string) []byte {
	p := binary.BigEndian.AppendUint32(nil, uint32(len(content)+1))
	return append(append(p, kind), content...)
}

func str(s string) string {
	return string(binary.BigEndian.AppendUint32(nil, uint32(len(s)))) + s
}

// No packet ends the process. The library decodes them in goroutines of its
// own, where a panic could not be caught.
func FuzzSFTP(f *testing.F) {
	init := packet(1, "\x00\x00\x00\x03")
	id := "\x00\x00\x00\x01"
	tag := strings.Repeat("ab", 32)
	for _, p := range [][]byte{
		packet(3, id+str("/p/last/keyring.enc")+"\x00\x00\x00\x01\x00\x00\x00\x00"), // open to read
		packet(3, id+str("/p/hdk/ab/"+tag)+"\x00\x00\x00\x1a\x00\x00\x00\x00"),      // open to write
		packet(4, id+str("1")), // close
		packet(5, id+str("1")+"\x00\x00\x00\x00\x00\x00\x00\x00\xff\xff\xff\xff"), // read
		packet(6, id+str("1")+"\x00\x00\x00\x00\x00\x00\x00\x00"+str("data")),     // write
		packet(7, id+str("/p")), packet(8, id+str("1")), packet(9, id+str("/p")+"\x00\x00\x00\x00"), // lstat, fstat, setstat
		packet(10, id+str("1")+"\x00\x00\x00\x00"), packet(11, id+str("/")), packet(12, id+str("1")), // fsetstat, opendir, readdir
		packet(13, id+str("/p")), packet(14, id+str("/p")+"\x00\x00\x00\x00"), packet(15, id+str("/p")), // remove, mkdir, rmdir
		packet(16, id+str(".")), packet(17, id+str("/p")), packet(18, id+str("/p")+str("/q")), // realpath, stat, rename
		packet(19, id+str("/p/last")), packet(20, id+str("/p")+str("/q")), // readlink, symlink
		packet(200, id+str("statvfs@openssh.com")+str("/p")), packet(200, id+str("posix-rename@openssh.com")+str("/p")+str("/q")),
		packet(200, id+str("fsync@openssh.com")+str("1")), packet(99, id),
	} {
		f.Add(append(slices.Clone(init), p...))
	}
	f.Add([]byte("\xff\xff\xff\xff"))
	v := fuzzRealm(f)
	if p, err := v.Store.Parcel("alice", "p"); err != nil {
		f.Fatal(err)
	} else if _, err := p.Acquire("alice", "h", ""); err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, input []byte) {
		v.Run(context.Background(), Session{User: "alice"}, sftpCommand, &streams{Reader: bytes.NewReader(input)})
	})
}
