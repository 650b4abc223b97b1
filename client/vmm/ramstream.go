package vmm

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// QEMU's migration stream, as far as it has to be understood to take the
// machine's memory out of it. Numbers are big-endian.
//
//	"QEVM" u32 version 3
//	07     configuration: u32 n, n bytes of machine name, then subsections:
//	       05 u8 n, name, u32 version, content
//	01     start of a section that comes in parts: u32 id, u8 n, name, u32 instance, u32 version, content
//	02 03  a part, the last part: u32 id, content
//	04     whole section: header as 01, content
//	7e     footer, after the content of each: u32 id
//	00     end; then 06 u32 n and n bytes that describe it all in JSON
//
// The content of section "ram" is a list of records, each headed by a u64: a
// page address with flags in its low twelve bits.
//
//	004 sizes   the address is the sum of the sizes that follow: u8 n, block name, u64 size
//	            [, u64 address with capability x-ignore-shared] for each memory block
//	002 fill    block unless 020, u8: the page is that byte 4096 times
//	008 page    block unless 020, 4096 bytes
//	020         the block is the one of the record before; else: u8 n, name
//	010 end     of this part
//
// The content of other sections has no length and no structure that could be
// walked, but memory comes first: from the end of the last part of "ram" on,
// everything is copied as it is.

var errStream = errors.New("qemu migration stream")

func badStream(format string, args ...any) error {
	return fmt.Errorf("%w: %s", errStream, fmt.Sprintf(format, args...))
}

const (
	streamMagic   = 0x5145564d
	streamVersion = 3

	secEnd           = 0x00
	secStart         = 0x01
	secPart          = 0x02
	secLast          = 0x03
	secFull          = 0x04
	secSubsection    = 0x05
	secDescription   = 0x06
	secConfiguration = 0x07
	secFooter        = 0x7e

	recFill  = 0x002
	recSizes = 0x004
	recPage  = 0x008
	recEnd   = 0x010
	recSame  = 0x020
	recFlush = 0x200 // a mark without content, from QEMU 8.0 on
	recFlags = 0xfff

	streamPage = 4096
)

// pageSink gets the pages of the machine's memory, in the order they were sent,
// each at most once per save.
type pageSink interface {
	page(addr int64, data []byte) error // data is only valid during the call
}

// streamStat is what a stream held.
type streamStat struct {
	Pages, Bytes int64 // pages of the memory block, bytes of the stream in all
	Kept         int64 // bytes copied to the state
}

// ramSplitter copies a migration stream without the pages of one block.
type ramSplitter struct {
	r     *bufio.Reader
	w     *bufio.Writer
	sink  pageSink
	names []string // what the machine's memory may be called
	size  int64    // its size in bytes

	stat       streamStat
	ignoreCap  bool // capability x-ignore-shared: addresses in the list of blocks
	block      string
	blockIsRAM bool
	kept       string // block of the last record copied in this section
	sizes      map[string]uint64
	buf        [streamPage]byte
}

// ramNames are the names QEMU gives to a memory backend with id ram.
var ramNames = []string{"ram", "/objects/ram"}

// splitStream reads a whole migration stream from r. Pages of the machine's
// memory, a block of size bytes, go to sink; everything else goes to w, in a form that
// QEMU takes as an incoming stream of a machine whose memory is there already.
// It fails on anything it does not know: nothing is ever guessed.
func splitStream(r io.Reader, w io.Writer, size int64, sink pageSink) (streamStat, error) {
	s := newSplitter(r, w, size, sink)
	err := s.run()
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		err = badStream("cut off after %d bytes", s.stat.Bytes)
	}
	if err == nil {
		err = s.w.Flush()
	}
	return s.stat, err
}

func newSplitter(r io.Reader, w io.Writer, size int64, sink pageSink) *ramSplitter {
	return &ramSplitter{
		r: bufio.NewReaderSize(r, 256<<10), w: bufio.NewWriterSize(w, 64<<10),
		sink: sink, names: ramNames, size: size,
	}
}

func (s *ramSplitter) run() error {
	magic, err := s.u32()
	if err != nil {
		return err
	}
	version, err := s.u32()
	if err != nil {
		return err
	}
	if magic != streamMagic || version != streamVersion {
		return badStream("starts with %08x version %d", magic, version)
	}
	s.put32(magic)
	s.put32(version)
	ramID, inParts := uint32(0), false
	for {
		kind, err := s.u8()
		if err != nil {
			return err
		}
		switch kind {
		case secConfiguration:
			s.put8(kind)
			if err := s.configuration(); err != nil {
				return err
			}
			continue // it has no footer
		case secStart:
			id, name, err := s.header(kind)
			if err != nil {
				return err
			}
			if name != "ram" {
				return badStream("section %q comes in parts", name)
			}
			if inParts {
				return badStream("two sections of memory")
			}
			ramID, inParts = id, true
		case secPart, secLast:
			id, err := s.u32()
			if err != nil {
				return err
			}
			if !inParts || id != ramID {
				return badStream("part of unknown section %d", id)
			}
			s.put8(kind)
			s.put32(id)
		default:
			return badStream("section of type %#02x before the end of memory", kind)
		}
		if err := s.records(); err != nil {
			return err
		}
		if err := s.footer(ramID); err != nil {
			return err
		}
		if kind == secLast {
			return s.rest()
		}
	}
}

// configuration copies the configuration section and looks for the one
// capability that changes the list of blocks.
func (s *ramSplitter) configuration() error {
	n, err := s.u32()
	if err != nil {
		return err
	}
	if n > 256 {
		return badStream("machine name of %d bytes", n)
	}
	s.put32(n)
	if _, err := s.bytes(int(n)); err != nil {
		return err
	}
	for {
		b, err := s.r.Peek(1)
		if err != nil {
			return err
		}
		if b[0] != secSubsection {
			return nil
		}
		s.copy8()
		name, err := s.name()
		if err != nil {
			return err
		}
		if _, err := s.copy32(); err != nil { // version
			return err
		}
		switch name {
		case "configuration/capabilities":
			n, err := s.copy32()
			if err != nil {
				return err
			}
			if n > 1024 {
				return badStream("%d capabilities", n)
			}
			for range n {
				capability, err := s.name()
				if err != nil {
					return err
				}
				s.ignoreCap = s.ignoreCap || capability == "x-ignore-shared"
			}
		case "configuration/target-page-bits":
			bits, err := s.copy32()
			if err != nil {
				return err
			}
			if bits != 12 {
				return badStream("pages of 2^%d bytes", bits)
			}
		case "configuration/uuid":
			if _, err := s.bytes(16); err != nil {
				return err
			}
		default:
			return badStream("unknown configuration %q", name)
		}
	}
}

func (s *ramSplitter) header(kind byte) (id uint32, name string, err error) {
	s.put8(kind)
	if id, err = s.copy32(); err != nil {
		return
	}
	if name, err = s.name(); err != nil {
		return
	}
	if _, err = s.bytes(8); err != nil { // instance, version
		return
	}
	return
}

func (s *ramSplitter) footer(id uint32) error {
	kind, err := s.copy8()
	if err != nil {
		return err
	}
	got, err := s.copy32()
	if err != nil {
		return err
	}
	if kind != secFooter || got != id {
		return badStream("section %d ends with type %#02x of %d", id, kind, got)
	}
	return nil
}

// records handles one part of section "ram". What is copied names its block
// again at the start of each part and after each change, because records in between may be gone.
func (s *ramSplitter) records() error {
	s.kept = ""
	for {
		head, err := s.u64()
		if err != nil {
			return err
		}
		addr, flags := head&^uint64(recFlags), head&recFlags
		switch flags {
		case recEnd:
			s.put64(head)
			return nil
		case recFlush:
			s.put64(head)
		case recSizes:
			s.put64(head)
			if err := s.blockSizes(addr); err != nil {
				return err
			}
		case recFill, recFill | recSame, recPage, recPage | recSame:
			if flags&recSame == 0 {
				name, err := s.rawName()
				if err != nil {
					return err
				}
				s.block, s.blockIsRAM = name, s.isRAM(name)
			}
			size, known := s.sizes[s.block]
			if !known {
				return badStream("page of unknown block %q", s.block)
			}
			if size < streamPage || addr > size-streamPage {
				return badStream("page %#x of block %q, which ends at %#x", addr, s.block, size)
			}
			if err := s.pageRecord(addr, flags&^recSame); err != nil {
				return err
			}
		default:
			return badStream("page record of type %#03x", flags)
		}
	}
}

func (s *ramSplitter) isRAM(name string) bool {
	for _, n := range s.names {
		if n == name {
			return true
		}
	}
	return false
}

func (s *ramSplitter) blockSizes(total uint64) error {
	s.sizes = map[string]uint64{}
	for total > 0 {
		name, err := s.name()
		if err != nil {
			return err
		}
		size, err := s.copy64()
		if err != nil {
			return err
		}
		if size > total || size == 0 {
			return badStream("block %q of %d bytes in %d", name, size, total)
		}
		if s.ignoreCap {
			if _, err := s.bytes(8); err != nil {
				return err
			}
		}
		if _, twice := s.sizes[name]; twice {
			return badStream("two blocks %q", name)
		}
		if s.isRAM(name) && size != uint64(s.size) {
			return badStream("memory of %d bytes, expected %d", size, s.size)
		}
		s.sizes[name] = size
		total -= size
	}
	for _, n := range s.names {
		if _, ok := s.sizes[n]; ok {
			return nil
		}
	}
	return badStream("no block %q", s.names[0])
}

func (s *ramSplitter) pageRecord(addr, flags uint64) error {
	page := s.buf[:]
	if flags == recFill {
		fill, err := s.u8()
		if err != nil {
			return err
		}
		if !s.blockIsRAM {
			s.recordHead(addr, flags)
			s.put8(fill)
			return nil
		}
		clear(page) // nearly always it is zero
		if fill != 0 {
			for i := range page {
				page[i] = fill
			}
		}
	} else {
		if _, err := io.ReadFull(s.r, page); err != nil {
			return err
		}
		s.stat.Bytes += streamPage
		if !s.blockIsRAM {
			s.recordHead(addr, flags)
			s.put(page)
			return nil
		}
	}
	s.stat.Pages++
	return s.sink.page(int64(addr), page)
}

func (s *ramSplitter) recordHead(addr, flags uint64) {
	if s.kept == s.block {
		s.put64(addr | flags | recSame)
		return
	}
	s.kept = s.block
	s.put64(addr | flags)
	s.put8(byte(len(s.block)))
	s.put([]byte(s.block))
}

// rest copies what follows memory, which must be there: at least one section
// and the end mark, so that a stream cut off here is not taken for a whole one. A
// stream cut off later is: whoever reads from QEMU has to ask it whether it is done.
func (s *ramSplitter) rest() error {
	b, err := s.r.Peek(1)
	if err != nil {
		return err
	}
	if b[0] != secFull && b[0] != secEnd {
		return badStream("section of type %#02x after memory", b[0])
	}
	n, err := io.Copy(s.w, s.r)
	s.stat.Bytes += n
	s.stat.Kept += n
	return err
}

// Reading and writing. Errors of writing stay with the bufio.Writer until Flush.

func (s *ramSplitter) u8() (byte, error) {
	b, err := s.r.ReadByte()
	if err == nil {
		s.stat.Bytes++
	}
	return b, err
}

func (s *ramSplitter) u32() (uint32, error) {
	var b [4]byte
	n, err := io.ReadFull(s.r, b[:])
	s.stat.Bytes += int64(n)
	return binary.BigEndian.Uint32(b[:]), err
}

func (s *ramSplitter) u64() (uint64, error) {
	b, err := s.r.Peek(8)
	if err != nil {
		return 0, err
	}
	v := binary.BigEndian.Uint64(b)
	s.r.Discard(8)
	s.stat.Bytes += 8
	return v, nil
}

// rawName reads a name without copying it.
func (s *ramSplitter) rawName() (string, error) {
	n, err := s.u8()
	if err != nil {
		return "", err
	}
	b, err := s.r.Peek(int(n))
	if err != nil {
		return "", err
	}
	name := string(b)
	s.r.Discard(len(b))
	s.stat.Bytes += int64(len(b))
	return name, nil
}

func (s *ramSplitter) name() (string, error) {
	name, err := s.rawName()
	if err == nil {
		s.put8(byte(len(name)))
		s.put([]byte(name))
	}
	return name, err
}

// bytes copies n bytes, at most a page.
func (s *ramSplitter) bytes(n int) ([]byte, error) {
	b := s.buf[:n]
	got, err := io.ReadFull(s.r, b)
	s.stat.Bytes += int64(got)
	if err == nil {
		s.put(b)
	}
	return b, err
}

func (s *ramSplitter) copy8() (byte, error) {
	b, err := s.u8()
	if err == nil {
		s.put8(b)
	}
	return b, err
}

func (s *ramSplitter) copy32() (uint32, error) {
	v, err := s.u32()
	if err == nil {
		s.put32(v)
	}
	return v, err
}

func (s *ramSplitter) copy64() (uint64, error) {
	v, err := s.u64()
	if err == nil {
		s.put64(v)
	}
	return v, err
}

func (s *ramSplitter) put(b []byte) {
	n, _ := s.w.Write(b)
	s.stat.Kept += int64(n)
}

func (s *ramSplitter) put8(b byte)    { s.put([]byte{b}) }
func (s *ramSplitter) put32(v uint32) { s.put(binary.BigEndian.AppendUint32(nil, v)) }
func (s *ramSplitter) put64(v uint64) { s.put(binary.BigEndian.AppendUint64(nil, v)) }
