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

	"isr/store/backup/target"
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
func forge(t testing.TB, place target.Target, records []byte, parcels []ParcelEntry, sets []set) string {
	t.Helper()
	s := &Snapshot{ID: "20261126T140311Z-0a1b2c3d", Realm: "test", Host: "h", Sum: fmt.Sprintf("%x", sha256.Sum256(records)), Parcels: parcels}
	s.Records.Size = int64(len(records))
	for _, set := range sets {
		for _, o := range set.objects {
			s.Objects++
			s.Bytes += o.size
		}
	}
	var list bytes.Buffer
	if err := writeSnapshot(&list, s, sets); err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string][]byte{snapshotName(s.ID): list.Bytes(), recordsName(s.ID, false): records} {
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
			dir := t.TempDir()
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
	place := openNew(t, filepath.Join(t.TempDir(), "place"))
	forge(t, place, archive(t, regular("realm.cfg", hostileRealm), regular("motd", "a"), regular("motd", "b")), nil, nil)
	if _, _, err := Restore(ctx, filepath.Join(t.TempDir(), "new"), place, RestoreOptions{}); parcel.KindOf(err) != parcel.Damaged {
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
	dir := t.TempDir()
	place := openNew(t, filepath.Join(dir, "place"))
	forge(t, place, archive(t, regular("realm.cfg", hostileRealm), regular("motd", "x"), regular("hooks/pre-lock", "x"),
		regular("users/alice/authorized_keys", "x"), regular("users/alice/.isr/bad/parcel.cfg", "VERSION:=99999999999\n"),
		regular("users/alice/.isr/deep/keys/a/b", "x")),
		[]ParcelEntry{{User: "alice", Name: "bad"}, {User: "alice", Name: "none"}, {User: "alice", Name: "deep"}}, nil)
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

// Lists that lie are refused, and cost little.
func TestHostileList(t *testing.T) {
	defer func(old int) { maxLine = old }(maxLine)
	maxLine = 1 << 16
	sum := strings.Repeat("ab", 32)
	head := "FORMAT:=1\nREALM:=test\nTIME:=2026-11-26T14:03:11Z\nHOST:=h\nSEALED:=no\nRECORDS:=" + sum + " 1\nOBJECTS:=0\nBYTES:=0\n"
	list := func(text string) []byte {
		var b bytes.Buffer
		z := gzip.NewWriter(&b)
		fmt.Fprintf(z, "%sEND %x\n", text, sha256.Sum256([]byte(text)))
		z.Close()
		return b.Bytes()
	}
	if _, _, err := readSnapshot("20261126T140311Z-0a1b2c3d", bytes.NewReader(list(head+"\n"))); err != nil {
		t.Fatalf("a good one: %v", err)
	}
	objects := func(n int, size string) string {
		return strings.Replace(head, "OBJECTS:=0\nBYTES:=0", fmt.Sprintf("OBJECTS:=%d\nBYTES:=%s", n, size), 1)
	}
	for name, text := range map[string]string{
		"nothing":              "",
		"no end of the header": head,
		"another format":       strings.Replace(head, "FORMAT:=1", "FORMAT:=2", 1) + "\n",
		"realm's name":         strings.Replace(head, "test", "../x", 1) + "\n",
		"another cipher":       strings.Replace(head, ":=no", ":=rot13", 1) + "\n",
		"size below zero":      strings.Replace(head, sum+" 1", sum+" -1", 1) + "\n",
		"size":                 strings.Replace(head, sum+" 1", sum+" 99999999999999999999", 1) + "\n",
		"large archive":        strings.Replace(head, sum+" 1", sum+" 9999999999999", 1) + "\n",
		"short sum":            strings.Replace(head, sum, "abcd", 1) + "\n",
		"parcel's name":        head + "PARCEL:=alice ../x 1 0 0\n\n",
		"parcel twice":         head + "PARCEL:=alice x 1 0 0\nPARCEL:=alice x 1 0 0\n\n",
		"parcel's version":     head + "PARCEL:=alice x -1 0 0\n\n",
		"few fields":           head + "PARCEL:=alice x\n\n",
		"set of no parcel":     head + "\n@0\n",
		"set out of order":     head + "PARCEL:=alice x 1 0 0\nPARCEL:=alice y 1 0 0\n\n@1,0\n",
		"set of many":          head + "PARCEL:=alice x 1 0 0\n\n@0,0,0,0\n",
		"object of no set":     objects(1, "1") + "\n" + sum + " 1\n",
		"object's name":        objects(1, "1") + "PARCEL:=alice x 1 0 0\n\n@0\n../../etc/passwd 1\n",
		"object's size":        objects(1, "1") + "PARCEL:=alice x 1 0 0\n\n@0\n" + sum + " 9999999999999\n",
		"empty object":         objects(1, "0") + "PARCEL:=alice x 1 0 0\n\n@0\n" + sum + " 0\n",
		"fewer objects":        objects(2, "1") + "PARCEL:=alice x 1 0 0\n\n@0\n" + sum + " 1\n",
		"a long line":          head + "\n@" + strings.Repeat("0,", maxLine) + "\n",
	} {
		if s, _, err := readSnapshot("20261126T140311Z-0a1b2c3d", bytes.NewReader(list(text))); err == nil {
			t.Errorf("%s: got %+v, want an error", name, s)
		}
	}
	good := list(head + "\n")
	for _, b := range [][]byte{good[:len(good)-30], good[:20], nil, []byte(head)} {
		if _, _, err := readSnapshot("20261126T140311Z-0a1b2c3d", bytes.NewReader(b)); err == nil {
			t.Error("a list that ends early: no error")
		}
	}
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	fmt.Fprintf(z, "%s\nEND %064x\n", head, 1)
	z.Close()
	if _, _, err := readSnapshot("20261126T140311Z-0a1b2c3d", &b); err == nil {
		t.Error("another sum: no error")
	}
}

// Links planted in a restore that was begun lead nowhere.
func TestHostileRoot(t *testing.T) {
	s := newRealm(t)
	populate(t, s)
	place := memPlace(t)
	id := make_(t, s, place).Snapshot.ID
	dir := t.TempDir()
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

func FuzzSnapshot(f *testing.F) {
	for _, text := range []string{"FORMAT:=1\nREALM:=test\nTIME:=2026-11-26T14:03:11Z\nHOST:=h\nSEALED:=no\nRECORDS:=" + strings.Repeat("ab", 32) +
		" 1\nOBJECTS:=1\nBYTES:=1\nPARCEL:=alice winxp 1 1 1 alice on h\n\n@0\n" + strings.Repeat("ab", 32) + " 1\n", "", "@\n\n"} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		var b bytes.Buffer
		z := gzip.NewWriter(&b)
		z.Write(text)
		fmt.Fprintf(z, "END %x\n", sha256.Sum256(text))
		z.Close()
		s, sets, err := readSnapshot("20261126T140311Z-0a1b2c3d", &b)
		if err != nil {
			return
		}
		// What is read is written and read as the same.
		var again bytes.Buffer
		if err := writeSnapshot(&again, s, sets); err != nil {
			t.Fatal(err)
		}
		s2, sets2, err := readSnapshot(s.ID, &again)
		if err != nil || fmt.Sprint(s2, sets2) != fmt.Sprint(s, sets) {
			t.Fatalf("%v: %v, then %v", err, s, s2)
		}
	})
}

func FuzzRecords(f *testing.F) {
	f.Add(archive(f, regular("realm.cfg", hostileRealm), regular("users/alice/.isr/winxp/keys/000001", "x"), regular("hooks/pre-lock", "x")))
	f.Add(archive(f, regular("../x", "x")))
	f.Fuzz(func(t *testing.T, b []byte) {
		files, err := readRecords(bytes.NewReader(b), false, nil)
		if err != nil {
			return
		}
		for _, file := range files {
			if name := strings.TrimSuffix(file.Name, "/"); !filepath.IsLocal(name) || name != filepath.Clean(name) {
				t.Fatalf("file %q", file.Name)
			}
		}
		sortRecords(files)
	})
}
