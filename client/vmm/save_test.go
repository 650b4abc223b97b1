package vmm

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

// memPages is a memory image in memory that knows the rules of its caller.
type memPages struct {
	t     interface{ Errorf(string, ...any) }
	data  []byte
	asked func(page int64) bool
	err   error
}

func (p *memPages) BeginSave() error { return nil }
func (p *memPages) Asked(off int64, n int) bool {
	if n != streamPage || off%streamPage != 0 {
		p.t.Errorf("Asked(%d, %d)", off, n)
	}
	return p.asked(off / streamPage)
}
func (p *memPages) WriteAt(b []byte, off int64) (int, error) {
	if len(b) == 0 || len(b) > runBytes || off/runBytes != (off+int64(len(b))-1)/runBytes {
		p.t.Errorf("WriteAt(%d bytes, %d)", len(b), off)
	}
	if p.err != nil {
		return 0, p.err
	}
	return copy(p.data[off:], b), nil
}

// Whatever pages come in whatever order, those asked for or changed end up
// in the image, and no other.
func TestPageWriter(t *testing.T) {
	const pages = 100 // of which 32 make a run
	rapid.Check(t, func(t *rapid.T) {
		wanted := make(pageSet, pages/64+1)
		for p := range int64(pages) {
			if rapid.Bool().Draw(t, "wanted") {
				wanted.add(p)
			}
		}
		p := &memPages{t: t, data: make([]byte, pages*streamPage), asked: wanted.has}
		want := make([]byte, len(p.data))
		changed := wanted
		if rapid.Bool().Draw(t, "by asking") {
			changed = nil
		}
		w := newPageWriter(p, changed)
		addr := int64(0)
		var written int64
		for range rapid.IntRange(0, 300).Draw(t, "n") {
			if addr++; rapid.IntRange(0, 9).Draw(t, "jump") == 0 || addr >= pages {
				addr = rapid.Int64Range(0, pages-1).Draw(t, "to")
			}
			data := bytes.Repeat([]byte{rapid.Byte().Draw(t, "v")}, streamPage)
			if wanted.has(addr) {
				copy(want[addr*streamPage:], data)
				written += streamPage
			}
			if err := w.page(addr*streamPage, data); err != nil {
				t.Fatal(err)
			}
			clear(data) // it is ours again
		}
		if err := w.close(); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(p.data, want) || w.written != written {
			t.Errorf("image differs, or wrote %d of %d bytes", w.written, written)
		}
	})
}

func TestPageWriterFails(t *testing.T) {
	sad := errors.New("sad")
	p := &memPages{t: t, err: sad, asked: func(int64) bool { return true }}
	w := newPageWriter(p, nil)
	var err error
	for i := int64(0); i < 10000 && err == nil; i++ {
		err = w.page(i*streamPage, make([]byte, streamPage))
	}
	if !errors.Is(err, sad) {
		t.Errorf("a long save goes on after an error: %v", err)
	}
	if err := w.close(); !errors.Is(err, sad) {
		t.Errorf("close: %v", err)
	}
}

// The kernel's word on which pages of a private mapping were written.
func TestChangedPages(t *testing.T) {
	const pages = 600
	path := filepath.Join(t.TempDir(), "memory")
	if err := os.WriteFile(path, bytes.Repeat([]byte{7}, pages*streamPage), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := changedPages(os.Getpid(), path, pages*streamPage); err == nil {
		t.Error("not mapped at all: no error")
	}
	m, err := unix.Mmap(int(f.Fd()), 0, pages*streamPage, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(m)
	sum := byte(0)
	for i := 0; i < len(m); i += 3 * streamPage { // reading changes nothing
		sum += m[i]
	}
	want := map[int64]bool{0: true, 1: true, 63: true, 64: true, 511: true, 512: true, 599: true}
	for p := range want {
		m[p*streamPage] = sum
	}
	m[63*streamPage] = 7                                            // written, though with what was there
	unix.Mprotect(m[100*streamPage:200*streamPage], unix.PROT_READ) // more than one area
	set, err := changedPages(os.Getpid(), path, pages*streamPage)
	if err != nil {
		t.Fatal(err)
	}
	for p := range int64(pages) {
		if set.has(p) != want[p] {
			t.Errorf("page %d: got %v", p, set.has(p))
		}
	}
	if _, err := changedPages(os.Getpid(), path, (pages+1)*streamPage); err == nil {
		t.Error("a part is not mapped: no error")
	}
	if set, err := changedPages(os.Getpid(), path, (pages-1)*streamPage); err != nil || set.has(599) {
		t.Errorf("one page less: %v", err)
	}
	shared, err := unix.Mmap(int(f.Fd()), 0, streamPage, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(shared)
	if _, err := changedPages(os.Getpid(), path, pages*streamPage); err == nil {
		t.Error("mapped shared too: no error")
	}
}
