package vmm

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// streamBuilder writes migration streams as QEMU does.
type streamBuilder struct{ bytes.Buffer }

func (b *streamBuilder) u8(v byte) *streamBuilder { b.WriteByte(v); return b }
func (b *streamBuilder) u32(v uint32) *streamBuilder {
	b.Write(binary.BigEndian.AppendUint32(nil, v))
	return b
}
func (b *streamBuilder) u64(v uint64) *streamBuilder {
	b.Write(binary.BigEndian.AppendUint64(nil, v))
	return b
}
func (b *streamBuilder) name(s string) *streamBuilder {
	b.u8(byte(len(s))).WriteString(s)
	return b
}
func (b *streamBuilder) head() *streamBuilder { return b.u32(streamMagic).u32(streamVersion) }
func (b *streamBuilder) config(capabilities ...string) *streamBuilder {
	const machine = "pc-i440fx-7.2"
	b.u8(secConfiguration).u32(uint32(len(machine))).WriteString(machine)
	b.u8(secSubsection).name("configuration/capabilities").u32(1).u32(uint32(len(capabilities)))
	for _, c := range capabilities {
		b.name(c)
	}
	return b
}
func (b *streamBuilder) start(id uint32, name string) *streamBuilder {
	return b.u8(secStart).u32(id).name(name).u32(0).u32(4)
}
func (b *streamBuilder) part(kind byte, id uint32) *streamBuilder { return b.u8(kind).u32(id) }
func (b *streamBuilder) end(id uint32) *streamBuilder {
	return b.u64(recEnd).u8(secFooter).u32(id)
}
func (b *streamBuilder) page(addr uint64, block string, fill byte) *streamBuilder {
	if block == "" {
		b.u64(addr | recPage | recSame)
	} else {
		b.u64(addr | recPage).name(block)
	}
	b.Write(bytes.Repeat([]byte{fill}, streamPage))
	return b
}
func (b *streamBuilder) fill(addr uint64, block string, fill byte) *streamBuilder {
	if block == "" {
		return b.u64(addr | recFill | recSame).u8(fill)
	}
	return b.u64(addr | recFill).name(block).u8(fill)
}

const testRAM = 1 << 20

func (b *streamBuilder) sizes() *streamBuilder {
	return b.u64(testRAM + 0x4000 | recSizes).name("ram").u64(testRAM).name("vga.vram").u64(0x4000)
}
func (b *streamBuilder) rest() *streamBuilder {
	b.u8(secFull).u32(7).name("timer").u32(0).u32(2).WriteString("state of a device")
	b.u8(secFooter).u32(7).u8(secEnd).u8(secDescription).u32(2).WriteString("{}")
	return b
}

// pageLog records pages as address:first byte.
type pageLog struct {
	got []string
	mem []byte
	err error
}

func (l *pageLog) page(addr int64, data []byte) error {
	if l.mem != nil {
		copy(l.mem[addr:], data)
	}
	l.got = append(l.got, fmt.Sprintf("%x:%02x", addr, data[0]))
	return l.err
}

func TestSplitStream(t *testing.T) {
	for _, c := range []struct {
		name     string
		in, kept *streamBuilder
		pages    string
	}{
		{
			"memory and another block in turn",
			new(streamBuilder).head().config().start(2, "ram").sizes().end(2).
				part(secPart, 2).page(0, "ram", 1).page(0x1000, "", 2).page(0, "vga.vram", 3).fill(0x1000, "", 0).fill(0x2000, "ram", 0).end(2).
				part(secLast, 2).page(0x3000, "", 4).page(0x2000, "vga.vram", 5).end(2).rest(),
			new(streamBuilder).head().config().start(2, "ram").sizes().end(2).
				part(secPart, 2).page(0, "vga.vram", 3).fill(0x1000, "", 0).end(2).
				part(secLast, 2).page(0x2000, "vga.vram", 5).end(2).rest(),
			"0:01 1000:02 2000:00 3000:04",
		},
		{
			"a block that goes on in the next part is named again",
			new(streamBuilder).head().config().start(2, "ram").sizes().end(2).
				part(secPart, 2).page(0, "vga.vram", 3).end(2).
				part(secLast, 2).page(0x1000, "", 4).end(2).rest(),
			new(streamBuilder).head().config().start(2, "ram").sizes().end(2).
				part(secPart, 2).page(0, "vga.vram", 3).end(2).
				part(secLast, 2).page(0x1000, "vga.vram", 4).end(2).rest(),
			"",
		},
		{
			"a fill that is not zero, and the last page",
			new(streamBuilder).head().config().start(2, "ram").sizes().end(2).
				part(secLast, 2).fill(testRAM-0x1000, "ram", 0xee).u64(recFlush).end(2).rest(),
			new(streamBuilder).head().config().start(2, "ram").sizes().end(2).
				part(secLast, 2).u64(recFlush).end(2).rest(),
			"ff000:ee",
		},
		{
			"addresses with x-ignore-shared",
			new(streamBuilder).head().config("xbzrle", "x-ignore-shared").start(2, "ram").
				u64(testRAM|recSizes).name("/objects/ram").u64(testRAM).u64(0x100000000).end(2).
				part(secLast, 2).page(0, "/objects/ram", 9).end(2).rest(),
			new(streamBuilder).head().config("xbzrle", "x-ignore-shared").start(2, "ram").
				u64(testRAM|recSizes).name("/objects/ram").u64(testRAM).u64(0x100000000).end(2).
				part(secLast, 2).end(2).rest(),
			"0:09",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			var kept bytes.Buffer
			var log pageLog
			stat, err := splitStream(bytes.NewReader(c.in.Bytes()), &kept, testRAM, &log)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(kept.Bytes(), c.kept.Bytes()) {
				t.Errorf("kept\n%x\nwant\n%x", kept.Bytes(), c.kept.Bytes())
			}
			if got := strings.Join(log.got, " "); got != c.pages {
				t.Errorf("pages %q, want %q", got, c.pages)
			}
			if stat.Bytes != int64(c.in.Len()) || stat.Kept != int64(kept.Len()) || stat.Pages != int64(len(log.got)) {
				t.Errorf("counted %+v of %d bytes, %d kept, %d pages", stat, c.in.Len(), kept.Len(), len(log.got))
			}
			// What was kept is a stream itself, without pages of memory.
			var again bytes.Buffer
			log = pageLog{}
			if _, err := splitStream(bytes.NewReader(kept.Bytes()), &again, testRAM, &log); err != nil || !bytes.Equal(again.Bytes(), kept.Bytes()) || len(log.got) > 0 {
				t.Errorf("split again: %v, pages %v", err, log.got)
			}
		})
	}
}

func TestSplitStreamRefuses(t *testing.T) {
	ram := func() *streamBuilder { return new(streamBuilder).head().config().start(2, "ram").sizes().end(2) }
	for name, b := range map[string]*streamBuilder{
		"starts with":                 new(streamBuilder).u32(1).u32(streamVersion),
		"version 2":                   new(streamBuilder).u32(streamMagic).u32(2),
		"comes in parts":              new(streamBuilder).head().config().start(3, "block"),
		"two sections":                ram().start(4, "ram"),
		"part of unknown section 9":   ram().part(secPart, 9),
		"before the end of memory":    ram().u8(secFull),
		"unknown configuration":       new(streamBuilder).head().u8(secConfiguration).u32(0).u8(secSubsection).name("configuration/new").u32(1),
		"machine name of":             new(streamBuilder).head().u8(secConfiguration).u32(1 << 20),
		"capabilities":                new(streamBuilder).head().u8(secConfiguration).u32(0).u8(secSubsection).name("configuration/capabilities").u32(1).u32(1 << 30),
		"pages of 2^16 bytes":         new(streamBuilder).head().u8(secConfiguration).u32(0).u8(secSubsection).name("configuration/target-page-bits").u32(1).u32(16),
		"record of type 0x040":        ram().part(secPart, 2).u64(0x40),
		"record of type 0x100":        ram().part(secPart, 2).u64(0x100),
		"record of type 0x00a":        ram().part(secPart, 2).u64(recFill | recPage),
		`page of unknown block ""`:    ram().part(secPart, 2).page(0, "", 1),
		`page of unknown block "rom"`: ram().part(secPart, 2).page(0, "rom", 1),
		"which ends at 0x100000":      ram().part(secPart, 2).page(testRAM, "ram", 1),
		"which ends at 0x4000":        ram().part(secPart, 2).page(0x4000, "vga.vram", 1),
		"two blocks":                  new(streamBuilder).head().config().start(2, "ram").u64(0x2000 | recSizes).name("vga").u64(0x1000).name("vga").u64(0x1000),
		"of 8192 bytes in 4096":       new(streamBuilder).head().config().start(2, "ram").u64(0x1000 | recSizes).name("vga").u64(0x2000),
		"of 0 bytes in":               new(streamBuilder).head().config().start(2, "ram").u64(0x1000 | recSizes).name("vga").u64(0),
		"memory of 4096 bytes":        new(streamBuilder).head().config().start(2, "ram").u64(0x1000 | recSizes).name("ram").u64(0x1000),
		`no block "ram"`:              new(streamBuilder).head().config().start(2, "ram").u64(0x1000 | recSizes).name("vga").u64(0x1000),
		"ends with type 0x7f":         new(streamBuilder).head().config().start(2, "ram").sizes().u64(recEnd).u8(0x7f).u32(2),
		"ends with type 0x7e of 3":    new(streamBuilder).head().config().start(2, "ram").sizes().u64(recEnd).u8(secFooter).u32(3),
		"after memory":                ram().part(secLast, 2).end(2).u8(secPart),
	} {
		b.WriteString(strings.Repeat("\x00", 64))
		_, err := splitStream(bytes.NewReader(b.Bytes()), io.Discard, testRAM, &pageLog{})
		if !errors.Is(err, errStream) || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	// Cut off anywhere up to the end of memory, it is an error.
	whole := ram().part(secPart, 2).page(0, "ram", 1).fill(0, "vga.vram", 0).end(2).part(secLast, 2).end(2)
	for n := range whole.Len() + 1 {
		if _, err := splitStream(bytes.NewReader(whole.Bytes()[:n]), io.Discard, testRAM, &pageLog{}); !errors.Is(err, errStream) {
			t.Fatalf("cut off after %d of %d bytes: got %v", n, whole.Len(), err)
		}
	}
	// The sink's error and the writer's are passed on.
	sad := errors.New("sad")
	if _, err := splitStream(bytes.NewReader(whole.rest().Bytes()), io.Discard, testRAM, &pageLog{err: sad}); !errors.Is(err, sad) {
		t.Errorf("sink's error: got %v", err)
	}
	if _, err := splitStream(bytes.NewReader(whole.Bytes()), failingWriter{sad}, testRAM, &pageLog{}); !errors.Is(err, sad) {
		t.Errorf("writer's error: got %v", err)
	}
}

type failingWriter struct{ err error }

func (w failingWriter) Write(p []byte) (int, error) { return 0, w.err }

// Any mix of records: memory ends up as it was sent, and what was kept, read
// as QEMU reads it, has the other blocks as they were sent.
func TestSplitStreamKeepsEveryPage(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := map[string][]byte{"ram": make([]byte, testRAM), "vga.vram": make([]byte, 0x4000)}
		b := new(streamBuilder).head().config().start(2, "ram").sizes().end(2)
		last := ""
		parts := rapid.IntRange(1, 4).Draw(t, "parts")
		for i := range parts {
			kind := byte(secPart)
			if i == parts-1 {
				kind = secLast
			}
			b.part(kind, 2)
			for range rapid.IntRange(0, 8).Draw(t, "records") {
				block := rapid.SampledFrom([]string{"ram", "vga.vram"}).Draw(t, "block")
				addr := uint64(rapid.IntRange(0, len(want[block])/streamPage-1).Draw(t, "page")) * streamPage
				v := rapid.Byte().Draw(t, "value")
				name := block
				if block == last && rapid.Bool().Draw(t, "continue") {
					name = ""
				}
				if rapid.Bool().Draw(t, "fill") {
					b.fill(addr, name, v)
				} else {
					b.page(addr, name, v)
				}
				last = block
				copy(want[block][addr:], bytes.Repeat([]byte{v}, streamPage))
			}
			b.end(2)
		}
		b.rest()
		var kept bytes.Buffer
		log := pageLog{mem: make([]byte, testRAM)}
		if _, err := splitStream(bytes.NewReader(b.Bytes()), &kept, testRAM, &log); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(log.mem, want["ram"]) {
			t.Error("memory differs")
		}
		// Read what was kept with the other block in the part of memory.
		s := newSplitter(bytes.NewReader(kept.Bytes()), io.Discard, 0x4000, &pageLog{mem: make([]byte, 0x4000)})
		s.names = []string{"vga.vram"}
		if err := s.run(); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(s.sink.(*pageLog).mem, want["vga.vram"]) {
			t.Error("the other block differs")
		}
	})
}

func FuzzSplitStream(f *testing.F) {
	f.Add(new(streamBuilder).head().config("x-ignore-shared").start(2, "ram").sizes().end(2).Bytes())
	f.Add(new(streamBuilder).head().config().start(2, "ram").sizes().end(2).part(secPart, 2).page(0, "ram", 1).fill(0, "vga.vram", 0).end(2).
		part(secLast, 2).page(0x1000, "", 1).end(2).rest().Bytes())
	f.Fuzz(func(t *testing.T, in []byte) {
		var kept bytes.Buffer
		log := pageLog{mem: make([]byte, testRAM)} // panics on an address outside
		stat, err := splitStream(bytes.NewReader(in), &kept, testRAM, &log)
		if stat.Bytes > int64(len(in)) {
			t.Errorf("read %d of %d bytes", stat.Bytes, len(in))
		}
		if err != nil {
			return
		}
		if stat.Bytes != int64(len(in)) {
			t.Errorf("success after %d of %d bytes", stat.Bytes, len(in))
		}
		var again bytes.Buffer
		if _, err := splitStream(bytes.NewReader(kept.Bytes()), &again, testRAM, &pageLog{}); err != nil || !bytes.Equal(again.Bytes(), kept.Bytes()) {
			t.Errorf("what was kept is no stream: %v", err)
		}
	})
}
