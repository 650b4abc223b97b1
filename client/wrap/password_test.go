package wrap

import (
	"bytes"
	"errors"
	"testing"

	"pgregory.net/rapid"

	"isr/store/parcel"
)

func cheap(t testing.TB) {
	was := passwordStretch
	passwordStretch = stretch{time: 1, memory: 8, threads: 1}
	t.Cleanup(func() { passwordStretch = was })
}

func TestPasswordWrap(t *testing.T) {
	key, record, err := NewWithPassword([]byte("the secret")) // at its full cost, once
	if err != nil {
		t.Fatal(err)
	}
	if !ByPassword(record) || bytes.Contains(record, key) || bytes.Contains(record, []byte("secret")) {
		t.Errorf("record %q", record)
	}
	if got, err := OpenWithPassword(record, []byte("the secret")); err != nil || !bytes.Equal(got, key) {
		t.Errorf("open: %x, %v", got, err)
	}
	if _, err := OpenWithPassword(record, []byte("a secret")); !errors.Is(err, ErrPassword) {
		t.Errorf("open with another: %v", err)
	}
	if _, err := Open(record, nil); err == nil {
		t.Errorf("open without anything: no error")
	}
}

// While a password changes both open, and afterwards the new one alone; run
// again after an interruption anywhere, too.
func TestPasswordChange(t *testing.T) {
	cheap(t)
	rapid.Check(t, func(t *rapid.T) {
		word := rapid.StringN(1, 72, 72)
		old, next := []byte(word.Draw(t, "old")), []byte(word.Draw(t, "new"))
		same := bytes.Equal(old, next)
		key, record, err := NewWithPassword(old)
		if err != nil {
			t.Fatal(err)
		}
		opens := func(p []byte) bool {
			got, err := OpenWithPassword(record, p)
			if err != nil && !errors.Is(err, ErrPassword) {
				t.Fatal(err)
			}
			return err == nil && bytes.Equal(got, key)
		}
		for range rapid.IntRange(1, 3).Draw(t, "times") {
			if record, err = AddPassword(record, key, next); err != nil {
				t.Fatal(err)
			}
			if !opens(old) || !opens(next) {
				t.Fatalf("while it changes: old %t, new %t", opens(old), opens(next))
			}
		}
		keep, other := next, old
		if rapid.Bool().Draw(t, "refused") {
			keep, other = old, next
		}
		if record, err = OnlyPassword(record, keep); err != nil {
			t.Fatal(err)
		}
		if !opens(keep) || opens(other) && !same {
			t.Fatalf("after: the one that counts %t, the other %t", opens(keep), opens(other))
		}
		r, err := parcel.ParseRecord(record)
		if err != nil || len(r) != 1 {
			t.Fatalf("record of %d lines, %v", len(r), err)
		}
		if _, err := OnlyPassword(record, append(next, 'x')); !errors.Is(err, ErrPassword) {
			t.Fatalf("only a third: %v", err)
		}
	})
}

func FuzzPasswordRecord(f *testing.F) {
	cheap(f)
	_, record, err := NewWithPassword([]byte("secret"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(record)
	f.Add([]byte("PASSWORD:=argon2id 99999 99999999 255 AAAA AAAA\n"))
	f.Add([]byte("PASSWORD:=argon2id 1 8 1  \n"))
	f.Fuzz(func(t *testing.T, record []byte) {
		if len(record) > 4096 || costly(record) {
			return
		}
		key, err := OpenWithPassword(record, []byte("secret"))
		if err == nil && len(key) != KeySize {
			t.Errorf("%d bytes of key", len(key))
		}
		OnlyPassword(record, []byte("secret"))
	})
}

// costly says that a record may ask for long work within bounds.
func costly(record []byte) bool {
	return bytes.Count(record, []byte(passwordField)) > 2 || bytes.Count(record, []byte(" 1 8 1 ")) == 0 &&
		!bytes.Contains(record, []byte("99999"))
}
