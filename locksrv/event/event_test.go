package event

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"
)

func day(d int) time.Time { return time.Date(2026, 11, d, 23, 59, 59, 0, time.UTC) }

func TestLog(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "log")
	l := NewLog(dir)
	for range l.Read(day(1), day(30)) {
		t.Fatal("a log that is not there has events")
	}
	for d := 24; d <= 27; d++ {
		if err := l.Append(Event{Time: day(d), Op: Commit, User: "alice", Version: d}); err != nil {
			t.Fatal(err)
		}
	}
	var got []int
	for e, err := range l.Read(day(25), day(26)) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, e.Version)
	}
	if fmt.Sprint(got) != "[25 26]" {
		t.Errorf("got %v, want the two days", got)
	}
	for _, name := range []string{dir, filepath.Join(dir, "2026-11-24.jsonl")} {
		if fi, err := os.Stat(name); err != nil || fi.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s: %v, %v: others can read it", name, fi.Mode(), err)
		}
	}
}

// A line that is damaged hides no other.
func TestDamagedLine(t *testing.T) {
	dir := t.TempDir()
	text := `{"time":"2026-11-26T10:00:00Z","op":"lock"}` + "\nnonsense\n" + `{"time":"2026-11-26T11:00:00Z","op":"release"}` + "\n"
	if err := os.WriteFile(filepath.Join(dir, "2026-11-26.jsonl"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	var got []string
	for e, err := range NewLog(dir).Read(day(26), day(26)) {
		if err != nil {
			e.Op = "bad"
		}
		got = append(got, e.Op)
	}
	if fmt.Sprint(got) != "[lock bad release]" {
		t.Errorf("got %v", got)
	}
}

// A line that was cut off, on a disk that was full, takes no other with it.
func TestTornLine(t *testing.T) {
	dir := t.TempDir()
	name := filepath.Join(dir, "2026-11-26.jsonl")
	if err := os.WriteFile(name, []byte(`{"time":"2026-11-26T10:00:00Z","op":"lo`), 0o600); err != nil {
		t.Fatal(err)
	}
	l := NewLog(dir)
	for _, op := range []string{Commit, Release} {
		if err := l.Append(Event{Time: day(26), Op: op}); err != nil {
			t.Fatal(err)
		}
	}
	var got []string
	for e, err := range l.Read(day(26), day(26)) {
		if err != nil {
			e.Op = "bad"
		}
		got = append(got, e.Op)
	}
	if fmt.Sprint(got) != "[bad commit release]" {
		t.Errorf("got %v", got)
	}
}

func TestAppendTogether(t *testing.T) {
	l := NewLog(t.TempDir())
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for j := range 20 {
				if err := l.Append(Event{Time: day(26), Op: Lock, Version: i*20 + j}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	seen := make(map[int]bool)
	for e, err := range l.Read(day(26), day(26)) {
		if err != nil {
			t.Fatal(err)
		}
		seen[e.Version] = true
	}
	if len(seen) != 160 {
		t.Errorf("%d of 160 lines", len(seen))
	}
}

// Ops has every one of the constants: hooks by other names are never run.
func TestOps(t *testing.T) {
	file, err := parser.ParseFile(token.NewFileSet(), "event.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	var ops []string
	for _, d := range file.Decls {
		g, ok := d.(*ast.GenDecl)
		if !ok || g.Tok != token.CONST || !g.Lparen.IsValid() {
			continue
		}
		for _, spec := range g.Specs {
			for _, v := range spec.(*ast.ValueSpec).Values {
				op, err := strconv.Unquote(v.(*ast.BasicLit).Value)
				if err != nil {
					t.Fatal(err)
				}
				ops = append(ops, op)
			}
		}
	}
	if !slices.Equal(Ops, ops) || len(ops) < 20 {
		t.Errorf("Ops is %v, want %v", Ops, ops)
	}
}
