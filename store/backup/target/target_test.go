package target_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"isr/client/remote/sshdtest"
	"isr/store/backup/target"
	"isr/store/backup/target/targettest"
	"isr/store/parcel"
	"isr/store/seal"
)

var ctx = context.Background()

func random(n int) []byte {
	b := make([]byte, n)
	rand.Read(b)
	return b
}

// objectName is where a backup has an object.
func objectName(tag seal.Tag) string { return "objects/" + tag.String()[:2] + "/" + tag.String() }

func tagOf(b []byte) seal.Tag {
	sum := sha256.Sum256(b)
	return seal.Tag(sum[:])
}

// What every Target does.
func TestTargets(t *testing.T) {
	for kind, place := range targettest.All(t) {
		t.Run(kind, func(t *testing.T) {
			put := func(name string, content []byte) {
				t.Helper()
				if err := place.Put(ctx, name, content); err != nil {
					t.Fatal(err)
				}
			}
			wantContent := func(name string, want []byte) {
				t.Helper()
				if got, err := target.Read(ctx, place, name, 1<<30); err != nil || !bytes.Equal(got, want) {
					t.Errorf("%s: got %d bytes, %v; want %d", name, len(got), err, len(want))
				}
			}
			if l := targettest.List(t, place, "objects"); len(l) > 0 {
				t.Errorf("an empty place has %v", l)
			}
			if _, err := target.Read(ctx, place, "objects/ab/none", 1); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("what is not there: %v", err)
			}
			small, large := random(1000), random(9<<20)
			put(objectName(tagOf(small)), small)
			put(objectName(tagOf(large)), large)
			put("snapshots/x", []byte("one"))
			put("snapshots/x", []byte("another"))
			put("snapshots/empty", nil)
			put("top", []byte("t"))
			if err := place.Sync(ctx); err != nil {
				t.Fatal(err)
			}
			wantContent(objectName(tagOf(small)), small)
			wantContent(objectName(tagOf(large)), large)
			wantContent("snapshots/x", []byte("another"))
			wantContent("snapshots/empty", nil)
			wantContent("top", []byte("t"))
			if l := targettest.List(t, place, "snapshots"); len(l) != 2 || l[0] != (target.Entry{"snapshots/empty", 0}) || l[1] != (target.Entry{"snapshots/x", 7}) {
				t.Errorf("list: %v", l)
			}
			if l := targettest.List(t, place, "objects"); len(l) != 2 || !slices.Contains(l, target.Entry{Name: objectName(tagOf(large)), Size: 9 << 20}) {
				t.Errorf("objects: %v", l)
			}

			// Content that ends early is not there.
			broken := io.MultiReader(strings.NewReader("half"), errReader{})
			if err := place.PutFrom(ctx, "snapshots/y", broken, 100); err == nil {
				t.Error("put of what cannot be read: no error")
			}
			if err := place.PutFrom(ctx, "snapshots/y", strings.NewReader("short"), 100); err == nil {
				t.Error("put of less than was said: no error")
			}
			place.Sync(ctx)
			if _, err := target.Read(ctx, place, "snapshots/y", 100); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("half of a file is there: %v", err)
			}

			// Many at once.
			var want []string
			var wg sync.WaitGroup
			for i := range 100 {
				b := []byte(fmt.Sprint("object ", i))
				want = append(want, objectName(tagOf(b)))
				wg.Go(func() {
					if err := place.Put(ctx, objectName(tagOf(b)), b); err != nil {
						t.Error(err)
					}
				})
			}
			wg.Wait()
			if err := place.Sync(ctx); err != nil {
				t.Fatal(err)
			}
			if n := len(targettest.List(t, place, "objects")); n != 102 {
				t.Errorf("objects: %d; want 102", n)
			}

			for _, name := range want {
				if err := place.Remove(ctx, name); err != nil {
					t.Error(err)
				}
			}
			if n := len(targettest.List(t, place, "objects")); n != 2 {
				t.Errorf("after removing: %d objects; want 2", n)
			}
			canceled, cancel := context.WithCancel(ctx)
			cancel()
			if err := place.Put(canceled, "z", []byte("z")); err == nil {
				t.Error("put, canceled: no error")
			}
		})
	}
}

type errReader struct{}

func (errReader) Read([]byte) (int, error) { return 0, errors.New("broken") }

// What every Tree does.
func TestTrees(t *testing.T) {
	for kind, tree := range targettest.Trees(t) {
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
			if got, err := target.Read(ctx, tree, "x/y/z", 1000); err != nil || !bytes.Equal(got, b) {
				t.Errorf("link: %v", err)
			}
			dir := targettest.Root(tree)
			if to, err := os.Readlink(filepath.Join(dir, "l/l")); err != nil || to != "../x" {
				t.Errorf("symbolic link: %q, %v", to, err)
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
			if l := targettest.List(t, tree, "d"); len(l) > 0 {
				t.Errorf("list: %v", l)
			}
			if err := tree.RemoveAll(ctx, "d"); err != nil {
				t.Error(err)
			}
			if _, err := target.Read(ctx, tree, "x/y/z", 1000); err != nil {
				t.Error(err)
			}
			if err := tree.RemoveAll(ctx, "none"); err != nil {
				t.Error(err)
			}
		})
	}
}

// A place that lets nobody in, or is not there.
func TestRefusedPlaces(t *testing.T) {
	endpoint := targettest.Service(t)
	t.Setenv("AWS_SECRET_ACCESS_KEY", "wrong")
	if _, err := target.OpenS3(ctx, "s3://isr/x", endpoint); !errors.Is(err, parcel.ErrDenied) || strings.Contains(err.Error(), "wrong") {
		t.Errorf("S3, wrong secret: %v", err)
	}
	t.Setenv("AWS_SECRET_ACCESS_KEY", "testsecret")
	if _, err := target.OpenS3(ctx, "s3://other", endpoint); err == nil {
		t.Error("S3, no such bucket: no error")
	}
	for _, bad := range []string{"ftp://x", "http://", "http://user:pw@host", "x"} {
		if _, err := target.OpenS3(ctx, "s3://isr", bad); !errors.Is(err, parcel.ErrUsage) {
			t.Errorf("S3 endpoint %s: %v", bad, err)
		}
	}
	if _, err := target.OpenDir(filepath.Join(targettest.MemDir(t), "a/b"), true); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("directory without a parent: %v", err)
	}
	sshdtest.Require(t, "ssh")
	s := sshdtest.Start(t, sshdtest.Options{AuthorizedKeys: "# nobody\n"})
	if _, err := target.OpenSFTP(ctx, s.Host+":x", target.Way{SSH: targettest.SSH(t, s)}, true); !errors.Is(err, parcel.ErrUnreachable) || !strings.Contains(err.Error(), "denied") {
		t.Errorf("SSH, no key: %v", err)
	}
}

// A connection that is lost is known for one.
func TestLostConnection(t *testing.T) {
	sshdtest.Require(t, "ssh")
	s := sshdtest.Start(t, sshdtest.Options{})
	f, err := target.OpenSFTP(ctx, s.Host+":"+filepath.Join(targettest.MemDir(t), "backup"), target.Way{SSH: targettest.SSH(t, s)}, true)
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
	if _, err := target.Read(ctx, f, "objects/ab/x", 10); !errors.Is(err, parcel.ErrUnreachable) {
		t.Errorf("get: %v", err)
	}
	for _, err := range f.List(ctx, "objects") {
		if !errors.Is(err, parcel.ErrUnreachable) {
			t.Errorf("list: %v", err)
		}
	}
}

// A link in a directory does not lead out of it.
func TestDirLinks(t *testing.T) {
	d := targettest.Dir(t)
	out := targettest.MemDir(t)
	if err := os.WriteFile(filepath.Join(out, "secret"), []byte("s"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, to := range map[string]string{"objects": out, "snapshots": "..", "file": filepath.Join(out, "secret")} {
		if err := os.Symlink(to, filepath.Join(d.String(), name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := d.Put(ctx, "objects/ab/x", []byte("x")); err == nil {
		t.Error("put through a link: no error")
	}
	if b, err := target.Read(ctx, d, "file", 10); err == nil {
		t.Errorf("read through a link: %q", b)
	}
	if b, err := target.Read(ctx, d, "objects/secret", 10); err == nil {
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
