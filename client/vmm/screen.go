package vmm

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"image"
	"io"
	"net"
	"slices"
	"sync"
)

// The RFB protocol 3.8, of it what QEMU's server and a local socket need: no
// authentication, uncompressed rectangles.

const (
	encRaw         = 0
	encCopyRect    = 1
	encDesktopSize = -223
	encQEMUPointer = -257 // x says whether coordinates are absolute
	encQEMUKey     = -258 // key events may carry scan codes

	maxScreen = 8192 // pixels in either direction
)

// pixelFormat is how 32-bit pixels are laid out.
type pixelFormat struct {
	bigEndian      bool
	redAt, greenAt uint8 // shifts
	blueAt         uint8
	_              struct{}
}

// screenServer is the machine's end of the screen. Its methods that send may be called at the same time.
type screenServer struct {
	conn net.Conn
	r    *bufio.Reader
	name string

	mu    sync.Mutex // of what follows, and of sending
	size  image.Point
	fb    []byte // size.X*size.Y pixels of 4 bytes
	rel   bool   // wants relative pointer motion
	codes bool   // takes scan codes
}

// screenEvents is told what changed, with the server locked.
type screenEvents interface {
	drawn(r image.Rectangle)
	resized(size image.Point)
}

func handshake(conn net.Conn, pf pixelFormat) (*screenServer, error) {
	s := &screenServer{conn: conn, r: bufio.NewReaderSize(conn, 256<<10)}
	var hello [12]byte
	if _, err := io.ReadFull(s.r, hello[:]); err != nil {
		return nil, err
	}
	if string(hello[:4]) != "RFB " {
		return nil, fmt.Errorf("screen: %q is no RFB greeting", hello)
	}
	if _, err := io.WriteString(conn, "RFB 003.008\n"); err != nil {
		return nil, err
	}
	n, err := s.r.ReadByte()
	if err != nil {
		return nil, err
	}
	types := make([]byte, n)
	if _, err := io.ReadFull(s.r, types); err != nil {
		return nil, err
	}
	const none = 1
	if !slices.Contains(types, none) {
		return nil, errors.New("screen: the server wants authentication")
	}
	if _, err := conn.Write([]byte{none}); err != nil {
		return nil, err
	}
	if result, err := s.u32(); err != nil {
		return nil, err
	} else if result != 0 {
		return nil, fmt.Errorf("screen: refused (%d)", result)
	}
	if _, err := conn.Write([]byte{1}); err != nil { // shared
		return nil, err
	}
	w, err := s.u16()
	if err != nil {
		return nil, err
	}
	h, err := s.u16()
	if err != nil {
		return nil, err
	}
	var format [16]byte
	if _, err := io.ReadFull(s.r, format[:]); err != nil {
		return nil, err
	}
	length, err := s.u32()
	if err != nil {
		return nil, err
	}
	if length > 4096 {
		return nil, fmt.Errorf("screen: a name of %d bytes", length)
	}
	name := make([]byte, length)
	if _, err := io.ReadFull(s.r, name); err != nil {
		return nil, err
	}
	s.name = string(name)
	if err := s.resize(int(w), int(h)); err != nil {
		return nil, err
	}
	big := byte(0)
	if pf.bigEndian {
		big = 1
	}
	b := []byte{0, 0, 0, 0, 32, 24, big, 1, 0, 255, 0, 255, 0, 255, pf.redAt, pf.greenAt, pf.blueAt, 0, 0, 0}
	encodings := []int32{encCopyRect, encRaw, encDesktopSize, encQEMUPointer, encQEMUKey}
	b = append(b, 2, 0, 0, byte(len(encodings)))
	for _, e := range encodings {
		b = binary.BigEndian.AppendUint32(b, uint32(e))
	}
	if _, err := conn.Write(b); err != nil {
		return nil, err
	}
	return s, nil
}

func (s *screenServer) u16() (uint16, error) {
	var b [2]byte
	_, err := io.ReadFull(s.r, b[:])
	return binary.BigEndian.Uint16(b[:]), err
}

func (s *screenServer) u32() (uint32, error) {
	var b [4]byte
	_, err := io.ReadFull(s.r, b[:])
	return binary.BigEndian.Uint32(b[:]), err
}

func (s *screenServer) resize(w, h int) error {
	if w < 1 || h < 1 || w > maxScreen || h > maxScreen {
		return fmt.Errorf("screen of %d x %d pixels", w, h)
	}
	s.size = image.Pt(w, h)
	s.fb = make([]byte, w*h*4)
	return nil
}

// ask requests an update: of everything, or of what changes.
func (s *screenServer) ask(all bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	b := []byte{3, 1}
	if all {
		b[1] = 0
	}
	b = append(b, 0, 0, 0, 0)
	b = binary.BigEndian.AppendUint16(b, uint16(s.size.X))
	b = binary.BigEndian.AppendUint16(b, uint16(s.size.Y))
	_, err := s.conn.Write(b)
	return err
}

// serve reads the server's messages until the connection ends.
func (s *screenServer) serve(to screenEvents) error {
	if err := s.ask(true); err != nil {
		return err
	}
	for {
		kind, err := s.r.ReadByte()
		if err != nil {
			return err
		}
		switch kind {
		case 0:
			all, err := s.update(to)
			if err != nil {
				return err
			}
			if err := s.ask(all); err != nil {
				return err
			}
		case 1: // colour map: not with true colour, but skip it
			if _, err := s.r.Discard(3); err != nil {
				return err
			}
			n, err := s.u16()
			if err != nil {
				return err
			}
			if _, err := s.r.Discard(int(n) * 6); err != nil {
				return err
			}
		case 2: // bell
		case 3: // clipboard
			if _, err := s.r.Discard(3); err != nil {
				return err
			}
			n, err := s.u32()
			if err != nil {
				return err
			}
			if n > 16<<20 {
				return fmt.Errorf("screen: a clipboard of %d bytes", n)
			}
			if _, err := s.r.Discard(int(n)); err != nil {
				return err
			}
		default:
			return fmt.Errorf("screen: message of type %d", kind)
		}
	}
}

// update reads one update. all: everything has to be asked for, because the size changed.
func (s *screenServer) update(to screenEvents) (all bool, err error) {
	if _, err := s.r.Discard(1); err != nil {
		return false, err
	}
	n, err := s.u16()
	if err != nil {
		return false, err
	}
	for range n {
		var head [12]byte
		if _, err := io.ReadFull(s.r, head[:]); err != nil {
			return false, err
		}
		x, y := int(binary.BigEndian.Uint16(head[:])), int(binary.BigEndian.Uint16(head[2:]))
		w, h := int(binary.BigEndian.Uint16(head[4:])), int(binary.BigEndian.Uint16(head[6:]))
		r := image.Rect(x, y, x+w, y+h)
		switch enc := int32(binary.BigEndian.Uint32(head[8:])); enc {
		case encRaw:
			if err := s.raw(r, to); err != nil {
				return false, err
			}
		case encCopyRect:
			sx, err := s.u16()
			if err != nil {
				return false, err
			}
			sy, err := s.u16()
			if err != nil {
				return false, err
			}
			if err := s.copyRect(r, image.Pt(int(sx), int(sy)), to); err != nil {
				return false, err
			}
		case encDesktopSize:
			s.mu.Lock()
			err := s.resize(w, h)
			if err == nil {
				to.resized(s.size)
			}
			s.mu.Unlock()
			if err != nil {
				return false, err
			}
			all = true
		case encQEMUPointer:
			s.mu.Lock()
			s.rel = x == 0
			s.mu.Unlock()
		case encQEMUKey:
			s.mu.Lock()
			s.codes = true
			s.mu.Unlock()
		default:
			return false, fmt.Errorf("screen: rectangle of encoding %d", enc)
		}
	}
	return all, nil
}

func (s *screenServer) inside(r image.Rectangle) error {
	if r.Max.X > s.size.X || r.Max.Y > s.size.Y { // not r.In, which takes any empty one
		return fmt.Errorf("screen: rectangle %v of a screen of %v", r, s.size)
	}
	return nil
}

func (s *screenServer) raw(r image.Rectangle, to screenEvents) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.inside(r); err != nil {
		return err
	}
	for y := r.Min.Y; y < r.Max.Y; y++ {
		at := (y*s.size.X + r.Min.X) * 4
		if _, err := io.ReadFull(s.r, s.fb[at:at+r.Dx()*4]); err != nil {
			return err
		}
	}
	to.drawn(r)
	return nil
}

func (s *screenServer) copyRect(r image.Rectangle, from image.Point, to screenEvents) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	src := image.Rectangle{from, from.Add(r.Size())}
	if err := errors.Join(s.inside(r), s.inside(src)); err != nil {
		return err
	}
	row := func(y int, x int) []byte { at := (y*s.size.X + x) * 4; return s.fb[at : at+r.Dx()*4] }
	for i := range r.Dy() {
		if from.Y < r.Min.Y { // downwards: from the bottom, or it would copy its own copy
			i = r.Dy() - 1 - i
		}
		copy(row(r.Min.Y+i, r.Min.X), row(from.Y+i, from.X))
	}
	to.drawn(r)
	return nil
}

// key sends a key by its scan code; where the server takes none, it has no keyboard.
func (s *screenServer) key(code uint8, down bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.codes || code == 0 {
		return nil
	}
	b := []byte{255, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, code}
	if down {
		b[3] = 1
	}
	_, err := s.conn.Write(b)
	return err
}

// pointer sends the pointer's position, or how far it moved if that is wanted, and the pressed buttons.
func (s *screenServer) pointer(at, before image.Point, buttons uint8) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	x, y := min(max(at.X, 0), s.size.X-1), min(max(at.Y, 0), s.size.Y-1)
	if s.rel {
		x, y = 0x7fff+at.X-before.X, 0x7fff+at.Y-before.Y
	}
	b := []byte{5, buttons}
	b = binary.BigEndian.AppendUint16(b, uint16(x))
	b = binary.BigEndian.AppendUint16(b, uint16(y))
	_, err := s.conn.Write(b)
	return err
}
