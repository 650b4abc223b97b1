package backup

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"isr/store/backup/snapshot"
	"isr/store/backup/target"
	"isr/store/backup/target/targettest"
	"isr/store/parcel"
)

// archive is a tar of entries, in gzip.
func archive(t testing.TB, entries ...*tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	w := tar.NewWriter(z)
	for _, h := range entries {
		text := h.Linkname
		if h.Typeflag == tar.TypeReg {
			h.Linkname, h.Size = "", int64(len(text))
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeReg {
			if _, err := w.Write([]byte(text)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	z.Close()
	return b.Bytes()
}

func regular(name, text string) *tar.Header {
	return &tar.Header{Typeflag: tar.TypeReg, Name: name, Linkname: text, Mode: 0o6777}
}

const hostileRealm = "NAME:=test\nSECRET:=" + "00112233" + "\nFORMAT:=1\n"

// forge puts a snapshot with any archive, whose sums are right.
func forge(t testing.TB, place target.Target, records []byte, parcels []snapshot.Parcel, sets []snapshot.Set) string {
	t.Helper()
	s := &snapshot.Snapshot{ID: "20261126T140311Z-0a1b2c3d", Realm: "test", Host: "h", Sum: fmt.Sprintf("%x", sha256.Sum256(records)), Parcels: parcels}
	s.Records.Size = int64(len(records))
	for _, set := range sets {
		for _, o := range set.Objects {
			s.Objects++
			s.Bytes += o.Size
		}
	}
	var list bytes.Buffer
	if err := snapshot.Write(&list, s, sets); err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string][]byte{snapshot.Name(s.ID): list.Bytes(), snapshot.ArchiveName(s.ID, false): records} {
		if err := place.Put(ctx, name, content); err != nil {
			t.Fatal(err)
		}
	}
	if err := place.Sync(ctx); err != nil {
		t.Fatal(err)
	}
	return s.ID
}

// An archive made by an enemy puts nothing where it does not belong.
func TestHostileArchive(t *testing.T) {
	for name, h := range map[string]*tar.Header{
		"parent":              regular("../escaped", "x"),
		"parent below":        regular("hooks/../../escaped", "x"),
		"absolute":            regular("/tmp/escaped", "x"),
		"dot":                 regular("./motd", "x"),
		"control character":   regular("motd\n", "x"),
		"no user":             regular("users/..x/escaped", "x"),
		"user's parent":       regular("users/../escaped", "x"),
		"hidden":              regular("users/alice/.ssh/authorized_keys", "x"),
		"content":             regular("users/alice/isr/winxp/hdk/ab/cd", "x"),
		"parcel's name":       regular("users/alice/.isr/-x/parcel.cfg", "x"),
		"a file for .isr":     regular("users/alice/.isr", "x"),
		"a file for isr":      regular("users/alice/isr", "x"),
		"another directory":   regular("etc/passwd", "x"),
		"a mark":              regular("standby", "x"),
		"a temp file":         regular(".tmp-x", "x"),
		"a file for a hook's": regular("hooks", "x"),
		"symbolic link":       {Typeflag: tar.TypeSymlink, Name: "motd", Linkname: "/etc/passwd"},
		"a link to nothing":   {Typeflag: tar.TypeSymlink, Name: "hooks/x"},
		"a link to two lines": {Typeflag: tar.TypeSymlink, Name: "hooks/x", Linkname: "/bin/a\nb"},
		"a long link":         {Typeflag: tar.TypeSymlink, Name: "hooks/x", Linkname: "/" + strings.Repeat("x", 4096)},
		"a link of a name":    {Typeflag: tar.TypeSymlink, Name: "hooksx", Linkname: "/bin"},
		"a user's link":       {Typeflag: tar.TypeSymlink, Name: "users/alice/password", Linkname: "/etc/passwd"},
		"a lock side's link":  {Typeflag: tar.TypeSymlink, Name: "users/alice/.isr/winxp/parcel.cfg", Linkname: "/etc/passwd"},
		"host keys' link":     {Typeflag: tar.TypeSymlink, Name: "hostkeys/x", Linkname: "/etc/passwd"},
		"hard link":           {Typeflag: tar.TypeLink, Name: "motd", Linkname: "/etc/passwd"},
		"device":              {Typeflag: tar.TypeBlock, Name: "motd", Devmajor: 8},
		"pipe":                {Typeflag: tar.TypeFifo, Name: "motd"},
		"a directory":         {Typeflag: tar.TypeDir, Name: "motd/"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := targettest.MemDir(t)
			place := openNew(t, filepath.Join(dir, "place"))
			forge(t, place, archive(t, regular("realm.cfg", hostileRealm), h), nil, nil)
			_, _, err := Restore(ctx, filepath.Join(dir, "in/new"), place, RestoreOptions{})
			if parcel.KindOf(err) != parcel.Damaged {
				t.Errorf("got %v, want that it is damaged", err)
			}
			wantNothing(t, filepath.Join(dir, "in"))
		})
	}
	// The same twice.
	place := openNew(t, filepath.Join(targettest.MemDir(t), "place"))
	forge(t, place, archive(t, regular("realm.cfg", hostileRealm), regular("motd", "a"), regular("motd", "b")), nil, nil)
	if _, _, err := Restore(ctx, filepath.Join(targettest.MemDir(t), "new"), place, RestoreOptions{}); parcel.KindOf(err) != parcel.Damaged {
		t.Errorf("a file twice: %v", err)
	}
}

func openNew(t testing.TB, name string) *target.Dir {
	t.Helper()
	d, err := target.OpenDir(name, true)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

// wantNothing: no realm, no file of the enemy's.
func wantNothing(t *testing.T, dir string) {
	t.Helper()
	filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			t.Errorf("%s is there", path)
		}
		return nil
	})
}

// Modes are ours, whatever the archive says; lock sides that make no parcel
// are left out.
func TestHostileRecords(t *testing.T) {
	dir := targettest.MemDir(t)
	place := openNew(t, filepath.Join(dir, "place"))
	forge(t, place, archive(t, regular("realm.cfg", hostileRealm), regular("motd", "x"), regular("hooks/pre-lock", "x"),
		regular("users/alice/authorized_keys", "x"), regular("users/alice/.isr/bad/parcel.cfg", "VERSION:=99999999999\n"),
		regular("users/alice/.isr/deep/keys/a/b", "x")),
		[]snapshot.Parcel{{User: "alice", Name: "bad"}, {User: "alice", Name: "none"}, {User: "alice", Name: "deep"}}, nil)
	s, res, err := Restore(ctx, filepath.Join(dir, "new"), place, RestoreOptions{Warn: func(string) {}})
	if err != nil || res.Failed != 3 || res.Parcels != 0 {
		t.Fatalf("%+v, %v", res, err)
	}
	for name, want := range map[string]fs.FileMode{"motd": 0o600, "hooks/pre-lock": 0o700, "users/alice/authorized_keys": 0o600, "realm.cfg": 0o600} {
		if fi, err := os.Stat(filepath.Join(s.Root(), name)); err != nil || fi.Mode() != want {
			t.Errorf("%s: %v, %v; want mode %v", name, fi.Mode(), err, want)
		}
	}
	if names, _ := s.Parcels("alice"); len(names) > 0 {
		t.Errorf("parcels: %v", names)
	}
}

// Links planted in a restore that was begun lead nowhere.
func TestHostileRoot(t *testing.T) {
	s := newRealm(t)
	populate(t, s)
	place := memPlace(t)
	id := make_(t, s, place).Snapshot.ID
	dir := targettest.MemDir(t)
	out := filepath.Join(dir, "out")
	if err := os.MkdirAll(filepath.Join(dir, "new", poolPrefix+id), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(out, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"motd", "hooks"} {
		if err := os.Symlink(out, filepath.Join(dir, "new", name)); err != nil {
			t.Fatal(err)
		}
	}
	if _, _, err := Restore(ctx, filepath.Join(dir, "new"), place, RestoreOptions{}); err == nil {
		t.Error("restore into a link for hooks: no error")
	}
	if b, _ := os.ReadFile(out); string(b) != "precious" {
		t.Errorf("written through a link: %q", b)
	}
}
