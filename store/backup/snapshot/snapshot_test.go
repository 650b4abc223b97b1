package snapshot

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/klauspost/compress/gzip"

	"isr/store/backup/realm"
)

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
	if _, _, err := Read("20261126T140311Z-0a1b2c3d", bytes.NewReader(list(head+"\n"))); err != nil {
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
		if s, _, err := Read("20261126T140311Z-0a1b2c3d", bytes.NewReader(list(text))); err == nil {
			t.Errorf("%s: got %+v, want an error", name, s)
		}
	}
	good := list(head + "\n")
	for _, b := range [][]byte{good[:len(good)-30], good[:20], nil, []byte(head)} {
		if _, _, err := Read("20261126T140311Z-0a1b2c3d", bytes.NewReader(b)); err == nil {
			t.Error("a list that ends early: no error")
		}
	}
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	fmt.Fprintf(z, "%s\nEND %064x\n", head, 1)
	z.Close()
	if _, _, err := Read("20261126T140311Z-0a1b2c3d", &b); err == nil {
		t.Error("another sum: no error")
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
		s, sets, err := Read("20261126T140311Z-0a1b2c3d", &b)
		if err != nil {
			return
		}
		// What is read is written and read as the same.
		var again bytes.Buffer
		if err := Write(&again, s, sets); err != nil {
			t.Fatal(err)
		}
		s2, sets2, err := Read(s.ID, &again)
		if err != nil || fmt.Sprint(s2, sets2) != fmt.Sprint(s, sets) {
			t.Fatalf("%v: %v, then %v", err, s, s2)
		}
	})
}

func FuzzRecords(f *testing.F) {
	for _, names := range [][]string{{"realm.cfg", "users/alice/.isr/winxp/keys/000001", "hooks/pre-lock"}, {"../x"}} {
		var files []realm.File
		for _, name := range names {
			files = append(files, realm.File{Name: name, Data: []byte("x")})
		}
		var b bytes.Buffer
		if _, _, err := WriteArchive(&b, files, nil); err != nil {
			f.Fatal(err)
		}
		f.Add(b.Bytes())
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		files, err := ReadArchive(bytes.NewReader(b), false, nil)
		if err != nil {
			return
		}
		for _, file := range files {
			if name := strings.TrimSuffix(file.Name, "/"); !filepath.IsLocal(name) || name != filepath.Clean(name) {
				t.Fatalf("file %q", file.Name)
			}
		}
		Sort(files)
	})
}
