package event

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
)

// Days that were compressed are read like the others, and what is no day is
// passed over.
func TestPackedDays(t *testing.T) {
	dir := t.TempDir()
	l := NewLog(dir)
	line := func(d int) []byte {
		return fmt.Appendf(nil, `{"time":"2026-11-%dT10:00:00Z","op":"commit","version":%d}`+"\n", d, d)
	}
	var gz, zst bytes.Buffer
	g := gzip.NewWriter(&gz)
	g.Write(line(24))
	g.Close()
	z, err := zstd.NewWriter(&zst)
	if err != nil {
		t.Fatal(err)
	}
	z.Write(line(25))
	z.Close()
	outside := filepath.Join(t.TempDir(), "x")
	for name, text := range map[string][]byte{"2026-11-24.jsonl.gz": gz.Bytes(), "2026-11-25.jsonl.zst": zst.Bytes(), "2026-11-26.jsonl": line(26),
		"2026-11-99.jsonl": line(99), "2026-11-26.jsonl.bak": line(98), "reports": line(97), outside: line(96), "2026-11-22.jsonl.gz": line(22)} {
		if !filepath.IsAbs(name) {
			name = filepath.Join(dir, name)
		}
		if err := os.WriteFile(name, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(outside, filepath.Join(dir, "2026-11-23.jsonl")); err != nil {
		t.Fatal(err)
	}
	var got []string
	for e, err := range l.Read(day(1), day(30)) {
		if err != nil {
			got = append(got, "error")
			continue
		}
		got = append(got, fmt.Sprint(e.Version))
	}
	if fmt.Sprint(got) != "[error error 24 25 26]" { // what is no gzip, and the link
		t.Errorf("got %v", got)
	}
	days, err := l.Days()
	if err != nil || len(days) != 5 || !days[4].Equal(time.Date(2026, 11, 26, 0, 0, 0, 0, time.UTC)) {
		t.Errorf("days: %v, %v; want five, the last of them the 26th", days, err)
	}
}

// A tail has every line once, over midnight too, and no half of one.
func TestTail(t *testing.T) {
	dir := t.TempDir()
	l := NewLog(dir)
	add := func(d, version int) {
		t.Helper()
		if err := l.Append(Event{Time: day(d), Op: Commit, Version: version}); err != nil {
			t.Fatal(err)
		}
	}
	clock := day(25)
	add(24, 1)
	add(25, 2)
	tail := l.tail(false, func() time.Time { return clock })
	read := func(want ...int) {
		t.Helper()
		var got []int
		for e, err := range tail.Read() {
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, e.Version)
		}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("got %v, want %v", got, want)
		}
	}
	read()
	add(25, 3)
	read(3)
	read()
	add(25, 4)
	clock = day(26)
	add(26, 5)
	read(4, 5)
	add(25, 6) // by somebody whom midnight overtook
	add(26, 7)
	read(6, 7)
	clock = day(29)
	add(29, 8)
	add(27, 9)
	read(9, 8)
	f, err := os.OpenFile(filepath.Join(dir, "2026-11-29.jsonl"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	f.WriteString(`{"version":`)
	read()
	f.WriteString("10}\n")
	read(10)
}

func FuzzRead(f *testing.F) {
	f.Add([]byte(`{"time":"2026-11-26T10:00:00Z","op":"lock","seconds":1e308}` + "\n"))
	f.Add([]byte("\x00\n{}\n[]\nnull\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		dir := t.TempDir()
		for _, ending := range []string{"", ".gz", ".zst"} {
			if err := os.WriteFile(filepath.Join(dir, "2026-11-26.jsonl"+ending), text, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		lines := bytes.Count(text, []byte("\n")) + 1
		n := 0
		for range NewLog(dir).Read(day(26), day(26)) {
			if n++; n > 3*lines+1000 {
				t.Fatal("more events than lines")
			}
		}
	})
}
