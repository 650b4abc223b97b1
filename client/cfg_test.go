package client

import (
	"archive/tar"
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"

	"isr/client/wrap"
	"isr/store/seal"
)

func TestPackUnpack(t *testing.T) {
	from := t.TempDir()
	files := map[string]string{"qemu.state": "\x00state", "sub/deep/file": "x", "empty": ""}
	for name, text := range files {
		os.MkdirAll(filepath.Dir(filepath.Join(from, name)), 0o700)
		if err := os.WriteFile(filepath.Join(from, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	os.Symlink("/etc/passwd", filepath.Join(from, "link"))
	archive, err := pack(from)
	if err != nil {
		t.Fatal(err)
	}
	os.Chtimes(filepath.Join(from, "empty"), time.Unix(1, 0), time.Unix(1, 0))
	again, err := pack(from)
	if err != nil || !bytes.Equal(archive, again) {
		t.Errorf("packed twice: %d and %d bytes, %v, want the same: equal files are one object", len(archive), len(again), err)
	}
	to := t.TempDir()
	if err := unpack(archive, to); err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	filepath.WalkDir(to, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			name, _ := filepath.Rel(to, path)
			p, _ := os.ReadFile(path)
			got[name] = string(p)
			if fi, _ := d.Info(); fi.Mode() != 0o600 {
				t.Errorf("%s: mode %v, want 0600", name, fi.Mode())
			}
		}
		return err
	})
	if len(got) != len(files) {
		t.Errorf("unpacked %d files, want %d: links are left out", len(got), len(files))
	}
	for name, want := range files {
		if got[name] != want {
			t.Errorf("%s = %q, want %q", name, got[name], want)
		}
	}
	if p, err := pack(t.TempDir()); err != nil || len(p) != 0 {
		t.Errorf("pack of nothing = %d bytes, %v, want none", len(p), err)
	}
	if err := unpack(nil, to); err != nil {
		t.Errorf("unpack of nothing: %v", err)
	}
}

// A cfg archive comes from the server: what it names stays in its directory.
func TestUnpackStaysInside(t *testing.T) {
	for name, h := range map[string]tar.Header{
		"a way out":      {Name: "../out", Typeflag: tar.TypeReg},
		"an inner out":   {Name: "a/../../out", Typeflag: tar.TypeReg},
		"a rooted path":  {Name: "/out", Typeflag: tar.TypeReg},
		"a link":         {Name: "out", Typeflag: tar.TypeSymlink, Linkname: "/etc"},
		"a hard link":    {Name: "out", Typeflag: tar.TypeLink, Linkname: "../x"},
		"a device":       {Name: "out", Typeflag: tar.TypeChar},
		"the same twice": {Name: "in", Typeflag: tar.TypeReg},
	} {
		t.Run(name, func(t *testing.T) {
			base := t.TempDir()
			dir := filepath.Join(base, "cfg")
			os.Mkdir(dir, 0o700)
			var buf bytes.Buffer
			zw := gzip.NewWriter(&buf)
			tw := tar.NewWriter(zw)
			tw.WriteHeader(&tar.Header{Name: "in", Typeflag: tar.TypeReg, Mode: 0o600})
			h.Mode = 0o600
			if err := tw.WriteHeader(&h); err != nil {
				t.Fatal(err)
			}
			tw.Close()
			zw.Close()
			err := unpack(buf.Bytes(), dir)
			if err == nil {
				t.Errorf("unpacked, want an error")
			}
			if _, err := os.Lstat(filepath.Join(base, "out")); err == nil {
				t.Errorf("a file came to be outside")
			}
		})
	}
}

func FuzzUnpack(f *testing.F) {
	dir := f.TempDir()
	os.WriteFile(filepath.Join(dir, "a"), []byte("b"), 0o600)
	archive, err := pack(dir)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(archive)
	f.Fuzz(func(t *testing.T, archive []byte) {
		base := t.TempDir()
		dir := filepath.Join(base, "cfg")
		os.Mkdir(dir, 0o700)
		unpack(archive, dir)
		if left, _ := os.ReadDir(base); len(left) != 1 {
			t.Fatalf("files outside: %v", left)
		}
	})
}

// A record holds what was saved, its secrets under the checkout's key alone.
func TestStateRecord(t *testing.T) {
	s := seal.Sealer{Suite: seal.AES256SHA256, Codec: seal.None}
	ref, _, err := s.Seal([]byte("root"))
	if err != nil {
		t.Fatal(err)
	}
	key := bytes.Repeat([]byte{1}, wrap.KeySize)
	dir := t.TempDir()
	co := &Checkout{Dir: dir, key: key, State: State{Status: Suspended, Server: "h:1", User: "alice", Parcel: "box",
		UUID: "u", Version: 7, Modified: true, Memory: "qemu", Requires: map[string]string{"cpu": "x:=y"},
		Orphaned: "two\nlines", pristine: ref, secret: []byte("convergence")}}
	if err := co.save(); err != nil {
		t.Fatal(err)
	}
	p, err := os.ReadFile(filepath.Join(dir, "state"))
	if err != nil {
		t.Fatal(err)
	}
	for _, secret := range []string{ref.Key.Hex(), ref.String(), "convergence", "636f6e76657267656e6365"} {
		if bytes.Contains(p, []byte(secret)) {
			t.Errorf("the record shows %q", secret)
		}
	}
	got := &Checkout{Dir: dir, key: key}
	if err := got.load(); err != nil {
		t.Fatal(err)
	}
	st := got.State
	if st.Status != Suspended || st.Version != 7 || !st.Modified || st.Memory != "qemu" || st.Requires["cpu"] != "x:=y" ||
		st.Orphaned != "two lines" || st.pristine != ref || string(st.secret) != "convergence" || !st.staged.IsNil() {
		t.Errorf("loaded %+v, want what was saved", st)
	}
	// As it was before records had a sum; the next save gives it one.
	old := bytes.Replace(p[:bytes.LastIndex(p, []byte("SUM:="))], []byte("PROOF:=\n"), []byte("OFFLINE:=no\n"), 1)
	os.WriteFile(filepath.Join(dir, "state"), old, 0o600)
	before := &Checkout{Dir: dir, key: key}
	if err := before.load(); err != nil || before.State.Version != 7 || before.State.pristine != ref {
		t.Errorf("a record without a sum: %v, %+v", err, before.State)
	}
	if err := before.save(); err != nil {
		t.Fatal(err)
	}
	if again, err := os.ReadFile(filepath.Join(dir, "state")); err != nil || !bytes.Contains(again, []byte("\nSUM:=")) {
		t.Errorf("saved without a sum: %s, %v", again, err)
	}
	os.WriteFile(filepath.Join(dir, "state"), p, 0o600)
	other := &Checkout{Dir: dir, key: bytes.Repeat([]byte{2}, wrap.KeySize)}
	if err := other.load(); err == nil {
		t.Error("loaded with another key, want an error")
	}
	for name, spoil := range map[string]func([]byte) []byte{
		"empty":          func([]byte) []byte { return nil },
		"cut short":      func(p []byte) []byte { return p[:bytes.Index(p, []byte("VERSION"))] },
		"a flipped bit":  func(p []byte) []byte { return bytes.Replace(p, []byte("MODIFIED:=yes"), []byte("MODIFIED:=yas"), 1) },
		"another sum":    func(p []byte) []byte { p[len(p)-3] ^= 1; return p },
		"no sum":         func(p []byte) []byte { return p[:bytes.LastIndex(p, []byte("SUM:="))] },
		"more":           func(p []byte) []byte { return append(p, "MODIFIED:=no\n"...) },
		"another status": func(p []byte) []byte { return bytes.Replace(p, []byte("suspended"), []byte("elsewhere"), 1) },
	} {
		os.WriteFile(filepath.Join(dir, "state"), spoil(bytes.Clone(p)), 0o600)
		if err := (&Checkout{Dir: dir}).load(); err == nil {
			t.Errorf("%s: loaded, want an error", name)
		}
	}
}
