package parcel

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"time"

	"pgregory.net/rapid"

	"isr/store/seal"
)

func TestRecord(t *testing.T) {
	r, err := ParseRecord([]byte("# who\n\nUSER:=alice\r\n  \n SRC := SFTP://host/a:=b \nSRC:=HTTP://h\nEMPTY:=\nA_1:=ü"))
	want := Record{{"USER", "alice"}, {"SRC", "SFTP://host/a:=b"}, {"SRC", "HTTP://h"}, {"EMPTY", ""}, {"A_1", "ü"}}
	if err != nil || !reflect.DeepEqual(r, want) {
		t.Fatalf("got %q, %v", r, err)
	}
	if got := r.Get("SRC"); got != "SFTP://host/a:=b" {
		t.Errorf("get: got %q", got)
	}
	if got := r.All("SRC"); len(got) != 2 || got[1] != "HTTP://h" {
		t.Errorf("all: got %q", got)
	}
	if got := r.Get("NONE"); got != "" || r.All("NONE") != nil {
		t.Errorf("none: got %q", got)
	}
	r.Set("USER", "bob")
	r.Set("NEW", "x")
	if r[0].Value != "bob" || r.Get("NEW") != "x" || len(r) != 6 {
		t.Errorf("set: got %q", r)
	}
	for _, bad := range []string{"USER", "user:=x", ":=x", "A B:=x", "A:=\x00", "A:=\xff", "A:=a\x07b", "=x", "A:=ok\nB", "A:B:=c"} {
		if r, err := ParseRecord([]byte(bad)); err == nil {
			t.Errorf("%q: got %q", bad, r)
		}
	}
	if _, err := ParseRecord([]byte("A:=1\n\nb:=2\n")); err == nil || !strings.Contains(err.Error(), "line 3") {
		t.Errorf("error does not name the line: %v", err)
	}
	for _, bad := range []Record{{{"a", ""}}, {{"A", "x\ny"}}, {{"A", " x"}}, {{"A", "x "}}, {{"", "x"}}, {{"A", "\x1b[31m"}}, {{"A", "x\r"}}} {
		if p, err := bad.Encode(); err == nil {
			t.Errorf("%q: encoded as %q", bad, p)
		}
	}
}

func TestClean(t *testing.T) {
	for in, want := range map[string]string{"": "", " a\nb\t": "a b", "\x1b[31mred": "[31mred", "a\xffb": "a?b", "ü": "ü", "\u0085x": "x",
		"exe\u202egnp": "exe gnp", "a\u2028b": "a b", "\u05d0\u200f": "\u05d0"} {
		got := Clean(in)
		if got != want {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
		if _, err := (Record{{"A", got}}).Encode(); err != nil {
			t.Errorf("%q: %v", in, err)
		}
	}
}

func testConfig() *Config {
	return &Config{UUID: "6ba7b810-9dad-11d1-80b4-00c04fd430c8", User: "alice", Parcel: "winxp", Version: 7, Src: []string{"SFTP://host/alice/winxp", "FILE:///mnt/usb"},
		ChunkSize: 131072, MemChunk: 65536, DiskSize: 10 << 30, MemSize: 256 << 20, VMM: "qemu", Crypto: seal.AES256SHA256, Compress: seal.Gzip,
		Secret: []byte{0xca, 0xfe}, Created: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), Comment: "a parcel", Other: Record{{"X_LATER", "1"}, {"X_LATER", "2"}}}
}

func TestConfig(t *testing.T) {
	p, err := testConfig().Encode()
	if err != nil {
		t.Fatal(err)
	}
	golden, err := os.ReadFile("testdata/parcel.cfg")
	if err != nil || !bytes.Equal(p, golden) {
		t.Errorf("parcel.cfg has changed: got %s, %v", p, err)
	}
	got, err := ParseConfig(p)
	if err != nil || !reflect.DeepEqual(got, testConfig()) {
		t.Errorf("got %+v, %v", got, err)
	}
	if s := got.Sealer(); s.Suite != seal.AES256SHA256 || s.Codec != seal.Gzip || string(s.Secret) != "\xca\xfe" {
		t.Errorf("sealer: got %+v", s)
	}
	for name, edit := range map[string]struct{ old, new string }{
		"no uuid":      {"UUID:=6ba7b810-9dad-11d1-80b4-00c04fd430c8\n", ""},
		"uuid":         {"UUID:=6ba7b810-9dad-11d1-80b4-00c04fd430c8", "UUID:=6BA7B810-9dad-11d1-80b4-00c04fd430c8"},
		"urn":          {"UUID:=", "UUID:=urn:uuid:"},
		"user":         {"USER:=alice", "USER:=../alice"},
		"no user":      {"USER:=alice\n", ""},
		"parcel":       {"PARCEL:=winxp", "PARCEL:=.winxp"},
		"version":      {"VERSION:=7", "VERSION:=-1"},
		"no version":   {"VERSION:=7\n", ""},
		"two versions": {"VERSION:=7", "VERSION:=7\nVERSION:=8"},
		"src":          {"SFTP://", "SFTP:/"},
		"chunk":        {"CHUNKSIZE:=131072", "CHUNKSIZE:=131073"},
		"no chunk":     {"CHUNKSIZE:=131072\n", ""},
		"memchunk":     {"MEMCHUNK:=65536", "MEMCHUNK:=1"},
		"disk":         {"DISKSIZE:=10737418240", "DISKSIZE:=-1"},
		"disk 10G":     {"DISKSIZE:=10737418240", "DISKSIZE:=10G"},
		"mem":          {"MEMSIZE:=268435456", "MEMSIZE:=-1"},
		"vmm":          {"VMM:=qemu", "VMM:=a b"},
		"crypto":       {"CRYPTO:=aes256-sha256", "CRYPTO:=rot13"},
		"compress":     {"COMPRESS:=gzip", "COMPRESS:=rar"},
		"secret":       {"SECRET:=cafe", "SECRET:=caf"},
		"created":      {"CREATED:=2026-01-02T03:04:05Z", "CREATED:=yesterday"},
		"year 0":       {"CREATED:=2026-01-02T03:04:05Z", "CREATED:=0001-01-01T00:00:00+01:00"},
		"line":         {"COMMENT:=a parcel", "COMMENT=a parcel"},
	} {
		bad := strings.Replace(string(p), edit.old, edit.new, 1)
		if bad == string(p) {
			t.Fatalf("%s: nothing is changed", name)
		}
		if c, err := ParseConfig([]byte(bad)); err == nil {
			t.Errorf("%s: got %+v", name, c)
		}
	}
	// The least there is.
	least := "UUID:=6ba7b810-9dad-11d1-80b4-00c04fd430c8\nUSER:=a\nPARCEL:=p\nVERSION:=1\nCHUNKSIZE:=4096\nDISKSIZE:=0\nCRYPTO:=blowfish-sha1\nCOMPRESS:=none\n"
	c, err := ParseConfig([]byte(least))
	if err != nil || c.MemChunk != 4096 || c.VMM != "" {
		t.Fatalf("least: got %+v, %v", c, err)
	}
	again, err := c.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if c2, err := ParseConfig(again); err != nil || !reflect.DeepEqual(c, c2) {
		t.Errorf("least: re-encoded as %s: got %+v, %v", again, c2, err)
	}
}

func testLock() *Lock {
	return &Lock{Nonce: "1767323045-7-00112233445566778899aabbccddeeff", Acquisition: "id", User: "alice", Host: "thinkpad",
		Since: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), Epoch: 12, Version: 7}
}

func TestLock(t *testing.T) {
	l := testLock()
	p, err := l.Encode()
	if err != nil {
		t.Fatal(err)
	}
	const want = "NONCE:=1767323045-7-00112233445566778899aabbccddeeff\nACQUISITION:=id\nUSER:=alice\nHOST:=thinkpad\nSINCE:=2026-01-02T03:04:05Z\nEPOCH:=12\nVERSION:=7\n"
	if string(p) != want {
		t.Errorf("the record has changed: got %s", p)
	}
	got, err := ParseLock(p)
	if err != nil || *got != *l {
		t.Errorf("got %+v, %v", got, err)
	}
	// Of one that was broken, who did it and why.
	broken := l.Public()
	broken.BrokenBy, broken.Why = "root for carol", "laptop broken: twice"
	if p, err = broken.Encode(); err != nil || !strings.HasSuffix(string(p), "VERSION:=7\nBY:=root for carol\nWHY:=laptop broken: twice\n") {
		t.Errorf("broken: got %s, %v", p, err)
	}
	if got, err := ParseLock(p); err != nil || *got != broken {
		t.Errorf("broken: got %+v, %v", got, err)
	}
	public := l.Public()
	if p, _ := public.Encode(); bytes.Contains(p, []byte("NONCE")) || bytes.Contains(p, []byte("ACQ")) || l.Nonce == "" {
		t.Errorf("public: got %s", p)
	}
	if got := l.String(); got != "alice on thinkpad since 2026-01-02 03:04:05 UTC" {
		t.Errorf("got %q", got)
	}
	for nonce, want := range map[string]bool{l.Nonce: true, "": false, l.Nonce + "x": false, l.Nonce[1:]: false} {
		if got := l.Is(nonce); got != want {
			t.Errorf("is %q: got %v", nonce, got)
		}
	}
	if (&Lock{}).Is("") {
		t.Error("no nonce proves holding a lock without one")
	}
	for _, field := range []string{"SINCE", "EPOCH", "VERSION"} {
		bad := strings.Replace(want, field+":=", field+":=x", 1)
		if _, err := ParseLock([]byte(bad)); err == nil || !strings.Contains(err.Error(), field) {
			t.Errorf("bad %s: got %v", field, err)
		}
	}
	a, b := NewNonce(l.Since, 7), NewNonce(l.Since, 7)
	if a == b || !strings.HasPrefix(a, "1767323045-7-") || len(a) != len("1767323045-7-")+32 {
		t.Errorf("nonces: got %s, %s", a, b)
	}
}

func TestNames(t *testing.T) {
	for _, good := range []string{"a", "winxp", "win.xp-2_b+c@home", "0", strings.Repeat("x", 64)} {
		if err := CheckName(good); err != nil {
			t.Error(err)
		}
	}
	for _, bad := range []string{"", ".", "..", ".a", "-a", "a/b", "a b", "a\n", "ü", "a\x00", "a:b", "~", strings.Repeat("x", 65)} {
		if err := CheckName(bad); !errors.Is(err, ErrUsage) {
			t.Errorf("name %q: got %v", bad, err)
		}
	}
	for v, want := range map[int]string{1: "000001", 999999: "999999", 1000000: "1000000"} {
		if got := VersionDir(v); got != want {
			t.Errorf("version %d: got %s", v, got)
		}
		if got, ok := ParseVersionDir(want); got != v || !ok {
			t.Errorf("version %s: got %d, %v", want, got, ok)
		}
	}
	for _, bad := range []string{"", "0", "1", "00001", "000000", "-00001", "+00001", "0000001", "00000a", "last", " 00001"} {
		if _, ok := ParseVersionDir(bad); ok {
			t.Errorf("version %q: accepted", bad)
		}
	}
}

func TestErrors(t *testing.T) {
	err := fmt.Errorf("more: %w", NewError(Locked, "parcel %s: locked", "winxp").WithHint("wait"))
	if !errors.Is(err, ErrLocked) || errors.Is(err, ErrNotHolder) || err.Error() != "more: parcel winxp: locked" {
		t.Errorf("got %v", err)
	}
	var e *Error
	if !errors.As(err, &e) || e.Hint != "wait" || e.ExitCode() != 11 {
		t.Errorf("got %+v", e)
	}
	for _, c := range []struct {
		err  error
		want Kind
	}{
		{nil, 0}, {errors.New("x"), Failed}, {err, Locked}, {ErrInterrupted, Interrupted},
		{fmt.Errorf("x: %w", seal.ErrCorrupt), Damaged}, {fmt.Errorf("x: %w", context.Canceled), Interrupted},
		{&os.PathError{Op: "write", Path: "x", Err: syscall.ENOSPC}, Full}, {syscall.EDQUOT, Full}, {os.ErrPermission, Failed},
	} {
		if got := KindOf(c.err); got != c.want {
			t.Errorf("kind of %v: got %d, want %d", c.err, got, c.want)
		}
	}
	// The numbers are exit statuses, and never change.
	for err, want := range map[*Error]Kind{ErrUsage: 2, ErrNoParcel: 10, ErrLocked: 11, ErrNotHolder: 12, ErrDamaged: 13, ErrUnreachable: 14, ErrConflict: 15,
		ErrDenied: 16, ErrExists: 17, ErrNoVersion: 18, ErrNoObject: 19, ErrFull: 20, ErrUnrunnable: 21, ErrBusy: 22, ErrInterrupted: 130} {
		if err.Kind != want {
			t.Errorf("%v: got %d, want %d", err, err.Kind, want)
		}
	}
}

// Whatever is encoded is read again as it was.
func TestRecordProperty(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		var rec Record
		for range rapid.IntRange(0, 5).Draw(r, "n") {
			rec = append(rec, Field{rapid.StringMatching("[A-Z0-9_]{1,5}").Draw(r, "key"), Clean(rapid.String().Draw(r, "value"))})
		}
		p, err := rec.Encode()
		if err != nil {
			r.Fatal(err)
		}
		got, err := ParseRecord(p)
		if err != nil || !reflect.DeepEqual(got, rec) {
			r.Fatalf("%q: got %q, %v", rec, got, err)
		}
	})
}

// What parses encodes, into something that parses as the same.
func FuzzRecord(f *testing.F) {
	f.Add([]byte("USER:=alice\n# x\nSRC:=a:=b\r\n"))
	f.Fuzz(func(t *testing.T, p []byte) {
		r, err := ParseRecord(p)
		if err != nil {
			return
		}
		again, err := r.Encode()
		if err != nil {
			t.Fatal(err)
		}
		r2, err := ParseRecord(again)
		if err != nil || !reflect.DeepEqual(r, r2) {
			t.Errorf("%q: re-encoded as %q, which is %q, %v", r, again, r2, err)
		}
	})
}

func FuzzConfig(f *testing.F) {
	p, _ := testConfig().Encode()
	f.Add(p)
	f.Fuzz(func(t *testing.T, p []byte) {
		c, err := ParseConfig(p)
		if err != nil {
			return
		}
		again, err := c.Encode()
		if err != nil {
			t.Fatal(err)
		}
		c2, err := ParseConfig(again)
		if err != nil {
			t.Fatalf("re-encoded as %q: %v", again, err)
		}
		if third, err := c2.Encode(); err != nil || !bytes.Equal(again, third) {
			t.Errorf("%q, then %q, %v", again, third, err)
		}
	})
}

func FuzzLock(f *testing.F) {
	p, _ := testLock().Encode()
	f.Add(p)
	f.Fuzz(func(t *testing.T, p []byte) {
		l, err := ParseLock(p)
		if err != nil {
			return
		}
		again, err := l.Encode()
		if err != nil {
			t.Fatal(err)
		}
		l2, err := ParseLock(again)
		if err != nil {
			t.Fatalf("re-encoded as %q: %v", again, err)
		}
		if third, err := l2.Encode(); err != nil || !bytes.Equal(again, third) {
			t.Errorf("%q, then %q, %v", again, third, err)
		}
	})
}
