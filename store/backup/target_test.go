package backup

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/minio/minio-go/v7"
	"github.com/rclone/gofakes3"
	"github.com/rclone/gofakes3/s3mem"

	"isr/client/remote/sshdtest"
	"isr/store/parcel"
	"isr/store/seal"
)

var ctx = context.Background()

// places are one of each kind of target, new and empty.
func places(t testing.TB) map[string]Target {
	t.Helper()
	return map[string]Target{"dir": newDir(t), "sftp": newSFTP(t), "s3": newS3(t)}
}

func newDir(t testing.TB) *Dir {
	t.Helper()
	d, err := OpenDir(filepath.Join(t.TempDir(), "backup"), true)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

// sshCommand is ssh to a server of the test's own.
func sshCommand(t testing.TB, s *sshdtest.Server) []string {
	t.Helper()
	home := s.Home(t, "")
	return []string{"ssh", "-F", "/dev/null", "-p", fmt.Sprint(s.Port), "-i", s.KeyFile, "-oBatchMode=yes", "-oIdentitiesOnly=yes",
		"-oUserKnownHostsFile=" + filepath.Join(home, ".ssh/known_hosts")}
}

func newSFTP(t testing.TB) *SFTP {
	t.Helper()
	sshdtest.Require(t, "ssh")
	s := sshdtest.Start(t, sshdtest.Options{})
	f, err := OpenSFTP(ctx, s.Host+":"+filepath.Join(t.TempDir(), "backup"), Way{SSH: sshCommand(t, s)}, true)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// startS3 runs an S3 service on the loopback interface that wants signatures,
// with an empty bucket, and puts its credentials into the environment.
func startS3(t testing.TB) (endpoint string) {
	t.Helper()
	service := gofakes3.New(undelimited{s3mem.New()}, gofakes3.WithV4Auth(map[string]string{"testkey": "testsecret"}))
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: service.Server()}
	done := make(chan struct{})
	go func() { server.Serve(ln); close(done) }()
	t.Cleanup(func() { server.Close(); <-done })
	t.Setenv("AWS_ACCESS_KEY_ID", "testkey")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "testsecret")
	t.Setenv("AWS_EC2_METADATA_DISABLED", "true")
	endpoint = "http://" + ln.Addr().String()
	c, err := minioClient(endpoint)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.MakeBucket(ctx, "isr", minio.MakeBucketOptions{}); err != nil {
		t.Fatal(err)
	}
	return endpoint
}

// undelimited takes a delimiter of no bytes for none, as S3 does.
type undelimited struct{ *s3mem.Backend }

func (b undelimited) ListBucket(ctx context.Context, name string, prefix *gofakes3.Prefix, page gofakes3.ListBucketPage) (*gofakes3.ObjectList, error) {
	if prefix != nil && prefix.Delimiter == "" {
		prefix.HasDelimiter = false
	}
	return b.Backend.ListBucket(ctx, name, prefix, page)
}

func newS3(t testing.TB) *S3 {
	t.Helper()
	s, err := OpenS3(ctx, "s3://isr/some/where", startS3(t))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func random(n int) []byte {
	b := make([]byte, n)
	rand.Read(b)
	return b
}

func tagOf(b []byte) seal.Tag {
	sum := sha256.Sum256(b)
	return seal.Tag(sum[:])
}

func list(t testing.TB, target Target, dir string) []Entry {
	t.Helper()
	var entries []Entry
	for e, err := range target.List(ctx, dir) {
		if err != nil {
			t.Fatal(err)
		}
		entries = append(entries, e)
	}
	slices.SortFunc(entries, func(a, b Entry) int { return strings.Compare(a.Name, b.Name) })
	return entries
}

// What every Target does.
func TestTargets(t *testing.T) {
	for kind, target := range places(t) {
		t.Run(kind, func(t *testing.T) {
			put := func(name string, content []byte) {
				t.Helper()
				if err := target.Put(ctx, name, content); err != nil {
					t.Fatal(err)
				}
			}
			wantContent := func(name string, want []byte) {
				t.Helper()
				if got, err := read(ctx, target, name, 1<<30); err != nil || !bytes.Equal(got, want) {
					t.Errorf("%s: got %d bytes, %v; want %d", name, len(got), err, len(want))
				}
			}
			if l := list(t, target, objectsDir); len(l) > 0 {
				t.Errorf("an empty place has %v", l)
			}
			if _, err := read(ctx, target, "objects/ab/none", 1); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("what is not there: %v", err)
			}
			small, large := random(1000), random(9<<20)
			put(objectName(tagOf(small)), small)
			put(objectName(tagOf(large)), large)
			put("snapshots/x", []byte("one"))
			put("snapshots/x", []byte("another"))
			put("snapshots/empty", nil)
			put("top", []byte("t"))
			if err := target.Sync(ctx); err != nil {
				t.Fatal(err)
			}
			wantContent(objectName(tagOf(small)), small)
			wantContent(objectName(tagOf(large)), large)
			wantContent("snapshots/x", []byte("another"))
			wantContent("snapshots/empty", nil)
			wantContent("top", []byte("t"))
			if l := list(t, target, snapshotsDir); len(l) != 2 || l[0] != (Entry{"snapshots/empty", 0}) || l[1] != (Entry{"snapshots/x", 7}) {
				t.Errorf("list: %v", l)
			}
			if have, err := objects(ctx, target); err != nil || len(have) != 2 || have[tagOf(large)] != 9<<20 {
				t.Errorf("objects: %v, %v", have, err)
			}

			// Content that ends early is not there.
			broken := io.MultiReader(strings.NewReader("half"), errReader{})
			if err := target.PutFrom(ctx, "snapshots/y", broken, 100); err == nil {
				t.Error("put of what cannot be read: no error")
			}
			if err := target.PutFrom(ctx, "snapshots/y", strings.NewReader("short"), 100); err == nil {
				t.Error("put of less than was said: no error")
			}
			target.Sync(ctx)
			if _, err := read(ctx, target, "snapshots/y", 100); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("half of a file is there: %v", err)
			}

			// Many at once.
			var want []string
			var wg sync.WaitGroup
			for i := range 100 {
				b := []byte(fmt.Sprint("object ", i))
				want = append(want, objectName(tagOf(b)))
				wg.Go(func() {
					if err := target.Put(ctx, objectName(tagOf(b)), b); err != nil {
						t.Error(err)
					}
				})
			}
			wg.Wait()
			if err := target.Sync(ctx); err != nil {
				t.Fatal(err)
			}
			have, err := objects(ctx, target)
			if err != nil || len(have) != 102 {
				t.Errorf("objects: %d, %v; want 102", len(have), err)
			}

			for _, name := range want {
				if err := target.Remove(ctx, name); err != nil {
					t.Error(err)
				}
			}
			if have, err := objects(ctx, target); err != nil || len(have) != 2 {
				t.Errorf("after removing: %d objects, %v; want 2", len(have), err)
			}
			canceled, cancel := context.WithCancel(ctx)
			cancel()
			if err := target.Put(canceled, "z", []byte("z")); err == nil {
				t.Error("put, canceled: no error")
			}
		})
	}
}

type errReader struct{}

func (errReader) Read([]byte) (int, error) { return 0, errors.New("broken") }

// What every Tree does.
func TestTrees(t *testing.T) {
	for kind, tree := range map[string]Tree{"dir": newDir(t), "sftp": newSFTP(t)} {
		t.Run(kind, func(t *testing.T) {
			b := random(100)
			if err := tree.Put(ctx, objectName(tagOf(b)), b); err != nil {
				t.Fatal(err)
			}
			if err := tree.Sync(ctx); err != nil {
				t.Fatal(err)
			}
			for range 2 {
				if err := tree.Link(ctx, objectName(tagOf(b)), "x/y/z"); err != nil {
					t.Error(err)
				}
				if err := tree.Symlink(ctx, "../x", "l/l"); err != nil {
					t.Error(err)
				}
				if err := tree.Mkdir(ctx, "d/e/f"); err != nil {
					t.Error(err)
				}
			}
			if got, err := read(ctx, tree, "x/y/z", 1000); err != nil || !bytes.Equal(got, b) {
				t.Errorf("link: %v", err)
			}
			dir := root(tree)
			if target, err := os.Readlink(filepath.Join(dir, "l/l")); err != nil || target != "../x" {
				t.Errorf("symbolic link: %q, %v", target, err)
			}
			for name, want := range map[string]fs.FileMode{".": 0o700, "d/e/f": 0o700, objectName(tagOf(b)): 0o400} {
				if fi, err := os.Stat(filepath.Join(dir, name)); err != nil || fi.Mode().Perm() != want {
					t.Errorf("%s: %v, %v; want mode %04o", name, fi, err, want)
				}
			}
			// Links are removed, not what they lead to; and are not listed.
			if err := tree.Symlink(ctx, "../x", "d/x"); err != nil {
				t.Fatal(err)
			}
			if l := list(t, tree, "d"); len(l) > 0 {
				t.Errorf("list: %v", l)
			}
			if err := tree.RemoveAll(ctx, "d"); err != nil {
				t.Error(err)
			}
			if _, err := read(ctx, tree, "x/y/z", 1000); err != nil {
				t.Error(err)
			}
			if err := tree.RemoveAll(ctx, "none"); err != nil {
				t.Error(err)
			}
		})
	}
}

// root is where a tree is on this host.
func root(tree Tree) string {
	if f, ok := tree.(*SFTP); ok {
		return f.dir
	}
	return tree.String()
}

func TestPlaces(t *testing.T) {
	for text, want := range map[string]sshPlace{
		"host:/srv/b":                {"host", "", "/srv/b"},
		"me@host:b":                  {"me@host", "", "b"},
		"host:":                      {"host", "", "."},
		"ssh://me@host:2222/srv/b":   {"me@host", "2222", "/srv/b"},
		"sftp://host/srv":            {"host", "", "/srv"},
		"ssh://[2001:db8::1]:22/~/b": {"2001:db8::1", "22", "b"},
		"ssh://host":                 {"host", "", "."},
		"ssh://host/with%20space/b":  {"host", "", "/with space/b"},
	} {
		if got, ok, err := parseSSH(text); err != nil || !ok || got != want {
			t.Errorf("%s: got %+v, %v, %v", text, got, ok, err)
		}
	}
	for _, text := range []string{"-oProxyCommand=id:x", "ssh://-oProxyCommand=id/x", "ssh://me:secret@host/x", "ssh://", "ssh:///x", ":x", "ssh://host/x?y",
		"host:a\nb", "a b:c", "ssh://host:port/x", "@:x", "me@:x"} {
		if got, ok, err := parseSSH(text); err == nil {
			t.Errorf("%q: got %+v, %v; want an error", text, got, ok)
		} else if strings.Contains(err.Error(), "secret") {
			t.Errorf("%q: the error has the password", text)
		}
	}
	for _, text := range []string{"/srv/a:b", "./a:b", "dir", "/"} {
		if _, ok, err := parseSSH(text); ok || err != nil {
			t.Errorf("%q: %v, %v; want a directory", text, ok, err)
		}
	}
	for _, text := range []string{"s3://", "s3:///x", "s3://b/../c", "s3://b/a//b", "s3://k:s@b/x", "s3://b/a\nb"} {
		if b, p, _, err := parseS3(text); err == nil {
			t.Errorf("%q: got %s %s, want an error", text, b, p)
		}
	}
	for _, text := range []string{"http://host/x", "rsync://x", ""} {
		if _, err := (Way{SSH: []string{"ssh"}}).Open(ctx, text, false); !errors.Is(err, parcel.ErrUsage) {
			t.Errorf("%q: %v", text, err)
		}
	}
}

// A place that lets nobody in, or is not there.
func TestRefusedPlaces(t *testing.T) {
	endpoint := startS3(t)
	t.Setenv("AWS_SECRET_ACCESS_KEY", "wrong")
	if _, err := OpenS3(ctx, "s3://isr/x", endpoint); !errors.Is(err, parcel.ErrDenied) || strings.Contains(err.Error(), "wrong") {
		t.Errorf("S3, wrong secret: %v", err)
	}
	t.Setenv("AWS_SECRET_ACCESS_KEY", "testsecret")
	if _, err := OpenS3(ctx, "s3://other", endpoint); err == nil {
		t.Error("S3, no such bucket: no error")
	}
	for _, bad := range []string{"ftp://x", "http://", "http://user:pw@host", "x"} {
		if _, err := OpenS3(ctx, "s3://isr", bad); !errors.Is(err, parcel.ErrUsage) {
			t.Errorf("S3 endpoint %s: %v", bad, err)
		}
	}
	if _, err := OpenDir(filepath.Join(t.TempDir(), "a/b"), true); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("directory without a parent: %v", err)
	}
	sshdtest.Require(t, "ssh")
	s := sshdtest.Start(t, sshdtest.Options{AuthorizedKeys: "# nobody\n"})
	if _, err := OpenSFTP(ctx, s.Host+":x", Way{SSH: sshCommand(t, s)}, true); !errors.Is(err, parcel.ErrUnreachable) || !strings.Contains(err.Error(), "denied") {
		t.Errorf("SSH, no key: %v", err)
	}
}

// A connection that is lost is known for one.
func TestLostConnection(t *testing.T) {
	sshdtest.Require(t, "ssh")
	s := sshdtest.Start(t, sshdtest.Options{})
	f, err := OpenSFTP(ctx, s.Host+":"+filepath.Join(t.TempDir(), "backup"), Way{SSH: sshCommand(t, s)}, true)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Put(ctx, "objects/ab/x", []byte("x")); err != nil {
		t.Fatal(err)
	}
	s.Stop()
	if err := f.Put(ctx, "objects/ab/y", []byte("y")); !errors.Is(err, parcel.ErrUnreachable) {
		t.Errorf("put: %v", err)
	}
	if _, err := read(ctx, f, "objects/ab/x", 10); !errors.Is(err, parcel.ErrUnreachable) {
		t.Errorf("get: %v", err)
	}
	for _, err := range f.List(ctx, objectsDir) {
		if !errors.Is(err, parcel.ErrUnreachable) {
			t.Errorf("list: %v", err)
		}
	}
}

// A link in a directory does not lead out of it.
func TestDirLinks(t *testing.T) {
	d := newDir(t)
	out := t.TempDir()
	if err := os.WriteFile(filepath.Join(out, "secret"), []byte("s"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, target := range map[string]string{"objects": out, "snapshots": "..", "file": filepath.Join(out, "secret")} {
		if err := os.Symlink(target, filepath.Join(d.name, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := d.Put(ctx, "objects/ab/x", []byte("x")); err == nil {
		t.Error("put through a link: no error")
	}
	if b, err := read(ctx, d, "file", 10); err == nil {
		t.Errorf("read through a link: %q", b)
	}
	if b, err := read(ctx, d, "objects/secret", 10); err == nil {
		t.Errorf("read through a link: %q", b)
	}
	entries, _ := os.ReadDir(out)
	if len(entries) != 1 {
		t.Errorf("outside: %v", entries)
	}
	if err := d.Put(ctx, "file", []byte("f")); err != nil || d.Sync(ctx) != nil {
		t.Error(err)
	}
	if b, _ := os.ReadFile(filepath.Join(out, "secret")); string(b) != "s" {
		t.Errorf("written through a link: %q", b)
	}
}

// What ssh prints, and so the other host, is passed on line by line, without
// what a terminal would obey.
func TestWhatSSHSays(t *testing.T) {
	ssh := filepath.Join(t.TempDir(), "ssh")
	text := "#!/bin/sh\nprintf 'hello\\r\\n\\033]0;title\\007\\nlast \\033[2Jword' >&2\nexit 1\n"
	if err := os.WriteFile(ssh, []byte(text), 0o700); err != nil {
		t.Fatal(err)
	}
	var said bytes.Buffer
	for apart, want := range map[bool]bool{false: false, true: true} {
		said.Reset()
		_, err := OpenSFTP(ctx, "host:x", Way{SSH: []string{ssh}, Errors: &said, Apart: apart}, true)
		if !errors.Is(err, parcel.ErrUnreachable) || !strings.HasSuffix(err.Error(), ": last  [2Jword") {
			t.Errorf("got %v", err)
		}
		if e := new(parcel.Error); errors.As(err, &e) && strings.Contains(e.Hint, "without a terminal") != want {
			t.Errorf("apart %v: hint %q", apart, e.Hint)
		}
		if got, want := said.String(), "hello\n]0;title\nlast  [2Jword\n"; got != want {
			t.Errorf("said %q, want %q", got, want)
		}
	}
}
