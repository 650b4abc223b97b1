package proto

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"isr/store/parcel"
	"isr/store/seal"
)

var kinds = []parcel.Kind{parcel.Failed, parcel.Usage, parcel.NoParcel, parcel.Locked, parcel.NotHolder, parcel.Damaged, parcel.Unreachable,
	parcel.Conflict, parcel.Denied, parcel.Exists, parcel.NoVersion, parcel.NoObject, parcel.Full, parcel.Unrunnable, parcel.Busy, parcel.Interrupted}

// An error is the same error at the other end: kind, message and hint.
func TestErrorsCrossTheWire(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		kind := rapid.SampledFrom(kinds).Draw(t, "kind")
		msg := parcel.Clean("m" + rapid.String().Draw(t, "msg"))
		hint := parcel.Clean(rapid.String().Draw(t, "hint"))
		sent := error(parcel.NewError(kind, "%s", msg).WithHint("%s", hint))
		want := msg
		if rapid.Bool().Draw(t, "wrapped") {
			sent, want = fmt.Errorf("outside: %w", sent), "outside: "+msg
		}
		var stderr bytes.Buffer
		fmt.Fprintf(&stderr, "%s", rapid.SampledFrom([]string{"", "Warning: something of ssh\n"}).Draw(t, "before"))
		status := WriteError(&stderr, sent)
		if status != int(kind) {
			t.Fatalf("status %d, want %d", status, kind)
		}
		got := ReadError("isr_verb", status, stderr.Bytes())
		var e *parcel.Error
		if !errors.As(got, &e) || e.Kind != kind || e.Msg != want || e.Hint != hint {
			t.Fatalf("got %#v, want kind %d, %q, hint %q", got, kind, want, hint)
		}
		if !errors.Is(got, &parcel.Error{Kind: kind}) {
			t.Fatalf("errors.Is does not know kind %d", kind)
		}
	})
}

func TestErrorOnOneLine(t *testing.T) {
	var b bytes.Buffer
	if status := WriteError(&b, nil); status != 0 || b.Len() > 0 {
		t.Errorf("nil: status %d, %q", status, &b)
	}
	if status := WriteError(&b, errors.New("a\nisr: error: b\x1b[2J")); status != 1 || strings.Count(b.String(), "\n") != 1 {
		t.Errorf("two lines: status %d, %q", status, &b)
	}
	for _, test := range []struct {
		status int
		stderr string
		want   string
	}{
		{0, "isr: error: not really\n", ""},
		{1, "", "isr_ls: exit status 1"},
		{255, "ssh: connect to host x port 22: Connection refused\n", "ssh: connect to host x port 22: Connection refused"},
		{10, "banner\n\nisr: error: parcel x: no such parcel\n", "parcel x: no such parcel"},
		{10, "isr: error: first\nisr: error: last\n", "last"},
		{10, "isr: hint: alone\n", "isr_ls: exit status 10"},
	} {
		got := ReadError("isr_ls", test.status, []byte(test.stderr))
		if test.want == "" && got != nil || test.want != "" && (got == nil || got.Error() != test.want) {
			t.Errorf("%d %q: got %v, want %q", test.status, test.stderr, got, test.want)
		}
	}
}

func TestFrames(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		objects := rapid.SliceOf(rapid.SliceOfN(rapid.Byte(), 0, 100)).Draw(t, "objects")
		var b bytes.Buffer
		for i, o := range objects {
			if i%3 == 2 {
				WriteAbsent(&b)
			} else if err := WriteFrame(&b, o); err != nil {
				t.Fatal(err)
			}
		}
		whole := bytes.Clone(b.Bytes())
		for i, want := range objects {
			got, err := ReadFrame(&b)
			if i%3 == 2 {
				if !errors.Is(err, parcel.ErrNoObject) {
					t.Fatalf("frame %d: %v, want that it is absent", i, err)
				}
			} else if err != nil || !bytes.Equal(got, want) {
				t.Fatalf("frame %d: %x, %v; want %x", i, got, err, want)
			}
		}
		if _, err := ReadFrame(&b); err != io.EOF {
			t.Fatalf("after the last: %v, want EOF", err)
		}
		if len(whole) == 0 {
			return
		}
		// Cut anywhere, it is never taken for whole.
		cut := bytes.NewReader(whole[:rapid.IntRange(0, len(whole)-1).Draw(t, "cut")])
		for i := range objects {
			got, err := ReadFrame(cut)
			if err != nil && !errors.Is(err, parcel.ErrNoObject) {
				return
			}
			if err == nil && !bytes.Equal(got, objects[i]) {
				t.Fatalf("frame %d of a cut stream: %x, want %x", i, got, objects[i])
			}
		}
		t.Fatal("a cut stream had all frames")
	})
	if _, err := ReadFrame(bytes.NewReader([]byte{0xff, 0xff, 0xff, 0xfe})); !errors.Is(err, parcel.ErrDamaged) {
		t.Errorf("frame of 4 GB: %v, want that it is damaged", err)
	}
}

func FuzzSplit(f *testing.F) {
	for _, s := range []string{"", "isr_ls", "a  b", " a ", "a\tb", "a\nb", "a;b", "a'b", "a\\b", "ü", "a\x00"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		words, err := Split(s)
		if err != nil {
			if !errors.Is(err, parcel.ErrUsage) || len(words) > 0 {
				t.Errorf("%q: %q, %v", s, words, err)
			}
			return
		}
		if strings.Join(words, "") != strings.ReplaceAll(s, " ", "") {
			t.Errorf("%q: %q", s, words)
		}
		for _, w := range words {
			if w == "" || strings.ContainsAny(w, " \t\n'\"\\`$;&|<>(){}*?[]!#") {
				t.Errorf("%q: word %q", s, w)
			}
		}
	})
}

func FuzzCommitRequest(f *testing.F) {
	sum := sha256.Sum256(nil)
	good := CommitRequest{Nonce: "1-2-3", Parent: 7, Keyroot: seal.Ref{Tag: seal.Tag(sum[:]), Key: seal.Key(sum[:])}, ID: "id"}
	text, err := good.Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Add([]byte("NONCE:=a\nPARENT:=1x\nKEYROOT:=-\nCOMMIT:=b\n"))
	f.Fuzz(func(t *testing.T, p []byte) {
		c, err := ParseCommitRequest(p)
		if err != nil {
			if !errors.Is(err, parcel.ErrUsage) {
				t.Errorf("%q: %v, want a usage error", p, err)
			}
			return
		}
		again, err := c.Encode()
		if err != nil {
			t.Fatalf("%q: parsed, but cannot be printed: %v", p, err)
		}
		if d, err := ParseCommitRequest(again); err != nil || d != c {
			t.Errorf("%q: %+v, printed and parsed %+v, %v", p, c, d, err)
		}
	})
}

func TestCommitRequestIsWhole(t *testing.T) {
	sum := sha256.Sum256(nil)
	keyroot := seal.Ref{Tag: seal.Tag(sum[:]), Key: seal.Key(sum[:])}.String()
	record := func(nonce, parent, keyroot, id string) []byte {
		return fmt.Appendf(nil, "NONCE:=%s\nPARENT:=%s\nKEYROOT:=%s\nCOMMIT:=%s\n", nonce, parent, keyroot, id)
	}
	if _, err := ParseCommitRequest(record("n", "0", keyroot, "id")); err != nil {
		t.Errorf("whole: %v", err)
	}
	for what, p := range map[string][]byte{"nothing": nil, "no nonce": record("", "1", keyroot, "id"), "no parent": record("n", "", keyroot, "id"),
		"parent 1x": record("n", "1x", keyroot, "id"), "parent -1": record("n", "-1", keyroot, "id"), "parent too large": record("n", "99999999999999999999", keyroot, "id"),
		"no keyroot": record("n", "1", "", "id"), "nil keyroot": record("n", "1", "-", "id"), "half a keyroot": record("n", "1", keyroot[:64], "id"),
		"no id": record("n", "1", keyroot, ""), "no record": []byte("hello")} {
		if c, err := ParseCommitRequest(p); !errors.Is(err, parcel.ErrUsage) {
			t.Errorf("%s: got version after %d, %v; want a usage error", what, c.Parent, err)
		}
	}
}

func FuzzReadTags(f *testing.F) {
	f.Add([]byte(strings.Repeat("ab", 32) + "\n" + strings.Repeat("cd", 20)))
	f.Add([]byte("\n"))
	f.Fuzz(func(t *testing.T, p []byte) {
		var back strings.Builder
		err := ReadTags(bytes.NewReader(p), func(tag seal.Tag) error {
			fmt.Fprintln(&back, tag)
			return nil
		})
		if err == nil && strings.TrimSuffix(back.String(), "\n") != strings.TrimSuffix(strings.ReplaceAll(string(p), "\r\n", "\n"), "\n") {
			t.Errorf("%q: read as %q", p, back.String())
		}
	})
}

// What a server warns of is not its error, and is fit for a terminal.
func TestWarnings(t *testing.T) {
	var b bytes.Buffer
	WriteWarning(&b, "disk\x1b[2J\nfull")
	status := WriteError(&b, parcel.NewError(parcel.Locked, "held").WithHint("wait"))
	b.WriteString("warning: late\x9b \u202e\nother words\n" + strings.Repeat("warning: again\n", 1000))
	got := ReadWarnings(b.Bytes())
	if len(got) != maxWarnings || got[0] != "disk [2J full" || got[1] != "late?" || got[2] != "again" {
		t.Errorf("got %q", got)
	}
	err := ReadError("v", status, b.Bytes())
	var e *parcel.Error
	if !errors.As(err, &e) || e.Msg != "held" || e.Hint != "wait" {
		t.Errorf("got %v", err)
	}
	if err := ReadError("v", 1, []byte("warning: disk full\n")); err.Error() != "v: exit status 1" {
		t.Errorf("got %v: a warning is no reason", err)
	}
}

func TestNear(t *testing.T) {
	for _, c := range []struct {
		bytes, quota int64
		near         bool
	}{{0, 0, false}, {1 << 40, 0, false}, {0, 1, false}, {1, 1, true}, {8, 9, false}, {9, 9, true}, {8, 10, false}, {9, 10, true}, {10, 10, true},
		{11, 10, true}, {899, 1000, false}, {900, 1000, true}, {1<<62 + 1<<61, 1<<63 - 1, false}, {1<<63 - 1, 1<<63 - 1, true}} {
		if got := (Usage{Bytes: c.bytes, Quota: c.quota}).Near(); got != c.near {
			t.Errorf("%d of %d: %v", c.bytes, c.quota, got)
		}
	}
}
