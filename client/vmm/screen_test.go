package vmm

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"image"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jezek/xgb"
	"github.com/jezek/xgb/xproto"
	"github.com/jezek/xgb/xtest"
)

// screen plays the machine: it shows one picture and reports what it is sent.
type screen struct {
	net.Conn
	r    *bufio.Reader
	got  chan string // "key 1e down", "pointer 3,4 0"
	asks chan struct{}
}

const screenW, screenH = 64, 48

func newScreen(conn net.Conn) *screen {
	return &screen{conn, bufio.NewReader(conn), make(chan string, 100), make(chan struct{}, 100)}
}

func (s *screen) serve() error {
	io.WriteString(s, "RFB 003.008\n")
	read := func(n int) []byte {
		b := make([]byte, n)
		if _, err := io.ReadFull(s.r, b); err != nil {
			return nil
		}
		return b
	}
	read(12)
	s.Write([]byte{2, 5, 1})
	if c := read(1); c == nil || c[0] != 1 {
		return fmt.Errorf("client chose security %v", c)
	}
	s.Write([]byte{0, 0, 0, 0})
	read(1)
	b := binary.BigEndian.AppendUint16(nil, screenW)
	b = binary.BigEndian.AppendUint16(b, screenH)
	s.Write(append(b, "................\x00\x00\x00\x03box"...))
	for {
		kind := read(1)
		if kind == nil {
			return nil
		}
		switch kind[0] {
		case 0:
			read(19)
		case 2:
			n := binary.BigEndian.Uint16(read(3)[1:])
			read(int(n) * 4)
			// The server takes scan codes and absolute positions.
			s.update(rectangle(0, 0, 0, 0, encQEMUKey), rectangle(1, 0, 0, 0, encQEMUPointer))
		case 3:
			read(9)
			s.asks <- struct{}{}
		case 5:
			m := read(5)
			s.got <- fmt.Sprintf("pointer %d,%d %d", binary.BigEndian.Uint16(m[1:]), binary.BigEndian.Uint16(m[3:]), m[0])
		case 255:
			m := read(11)
			s.got <- fmt.Sprintf("key %02x %v", m[10], map[byte]string{0: "up", 1: "down"}[m[2]])
		default:
			return fmt.Errorf("client sent message %d", kind[0])
		}
	}
}

// pair is a connection with buffers, unlike net.Pipe's.
func pair(t *testing.T) (theirs, ours net.Conn) {
	t.Helper()
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if ours, err = net.Dial("unix", l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if theirs, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { theirs.Close() })
	return theirs, ours
}

func rectangle(x, y, w, h int, encoding int32, data ...byte) []byte {
	var b []byte
	for _, v := range []int{x, y, w, h} {
		b = binary.BigEndian.AppendUint16(b, uint16(v))
	}
	return append(binary.BigEndian.AppendUint32(b, uint32(encoding)), data...)
}

func (s *screen) update(rs ...[]byte) {
	b := []byte{0, 0, 0, byte(len(rs))}
	for _, r := range rs {
		b = append(b, r...)
	}
	s.Write(b)
}

func (s *screen) expect(t *testing.T, want ...string) {
	t.Helper()
	for _, w := range want {
		select {
		case got := <-s.got:
			if got != w {
				t.Errorf("sent %q, want %q", got, w)
			}
		case <-time.After(limit):
			t.Fatalf("nothing sent, want %q", w)
		}
	}
}

func TestWindow(t *testing.T) {
	xServer(t)
	display := os.Getenv("DISPLAY")
	x, err := xgb.NewConnDisplay(display)
	if err != nil {
		t.Fatal(err)
	}
	defer x.Close()
	if err := xtest.Init(x); err != nil {
		t.Fatal(err)
	}
	root := xproto.Setup(x).DefaultScreen(x).Root

	theirs, ours := pair(t)
	s := newScreen(theirs)
	go s.serve()
	result := make(chan error, 1)
	go func() { result <- showWindow(t.Context(), ours, display, "alice/box", false) }()
	<-s.asks // everything
	pixels := strings.Repeat("\x11\x22\x33\x00", screenW*screenH)
	s.update(rectangle(0, 0, screenW, screenH, encRaw, []byte(pixels)...))
	<-s.asks
	s.update(rectangle(4, 4, 1, 1, encRaw, 0xaa, 0xbb, 0xcc, 0), rectangle(5, 4, 1, 1, encCopyRect, 0, 4, 0, 4))
	<-s.asks

	var id xproto.Window
	at := func(px, py int) (v [3]byte) {
		img, err := xproto.GetImage(x, xproto.ImageFormatZPixmap, xproto.Drawable(id), int16(px), int16(py), 1, 1, ^uint32(0)).Reply()
		if err != nil || len(img.Data) < 3 {
			return v
		}
		return [3]byte(img.Data[:3])
	}
	wait(t, "the window", func() bool {
		tree, err := xproto.QueryTree(x, root).Reply()
		if err != nil || len(tree.Children) == 0 {
			return false
		}
		id = tree.Children[len(tree.Children)-1]
		return at(0, 0) == [3]byte{0x11, 0x22, 0x33} && at(4, 4) == [3]byte{0xaa, 0xbb, 0xcc} &&
			at(5, 4) == [3]byte{0xaa, 0xbb, 0xcc} && at(6, 4) == [3]byte{0x11, 0x22, 0x33} &&
			at(screenW-1, screenH-1) == [3]byte{0x11, 0x22, 0x33}
	})

	fake := func(kind byte, detail int, px, py int) {
		t.Helper()
		if err := xtest.FakeInputChecked(x, kind, byte(detail), 0, root, int16(px), int16(py), 0).Check(); err != nil {
			t.Fatal(err)
		}
	}
	const press, release, motion, bpress, brelease = 2, 3, 6, 4, 5
	fake(motion, 0, 10, 20)
	if err := xproto.SetInputFocusChecked(x, xproto.InputFocusPointerRoot, id, 0).Check(); err != nil {
		t.Fatal(err)
	}
	s.expect(t, "pointer 10,20 0")
	fake(bpress, 1, 0, 0)
	fake(brelease, 1, 0, 0)
	s.expect(t, "pointer 10,20 1", "pointer 10,20 0")
	key := func(codes ...int) {
		for _, c := range codes {
			if c > 0 {
				fake(press, c+xOffset, 0, 0)
			} else {
				fake(release, -c+xOffset, 0, 0)
			}
		}
	}
	const a, rightCtrl, del, c, q = 30, 97, 111, 46, 16
	key(a, -a)
	s.expect(t, "key 1e down", "key 1e up")
	key(rightCtrl, del, -del, -rightCtrl)
	s.expect(t, "key 1d down", "key 38 down", "key d3 down", "key d3 up", "key 38 up", "key 1d up")
	key(rightCtrl, c, -c, -rightCtrl)
	s.expect(t, "key 9d down", "key 2e down", "key 2e up", "key 9d up")
	key(rightCtrl, -rightCtrl)
	s.expect(t, "key 9d down", "key 9d up")

	// Another size.
	s.update(rectangle(0, 0, 32, 16, encDesktopSize))
	<-s.asks
	wait(t, "the new size", func() bool {
		g, err := xproto.GetGeometry(x, xproto.Drawable(id)).Reply()
		return err == nil && g.Width == 32 && g.Height == 16
	})
	key(rightCtrl, q)
	select {
	case err := <-result:
		if err != nil {
			t.Errorf("closed by its key: got %v", err)
		}
	case <-time.After(limit):
		t.Fatal("its key does not close it")
	}
}

func TestWindowEnds(t *testing.T) {
	xServer(t)
	display := os.Getenv("DISPLAY")
	t.Run("machine", func(t *testing.T) {
		theirs, ours := pair(t)
		s := newScreen(theirs)
		go s.serve()
		go func() { <-s.asks; theirs.Close() }()
		if err := showWindow(t.Context(), ours, display, "x", false); !errors.Is(err, io.EOF) {
			t.Errorf("got %v, want EOF", err)
		}
	})
	t.Run("context", func(t *testing.T) {
		theirs, ours := pair(t)
		s := newScreen(theirs)
		go s.serve()
		ctx, cancel := context.WithCancel(t.Context())
		go func() { <-s.asks; cancel() }()
		if err := showWindow(ctx, ours, display, "x", true); !errors.Is(err, context.Canceled) {
			t.Errorf("got %v, want cancelled", err)
		}
	})
	t.Run("no display", func(t *testing.T) {
		_, ours := pair(t)
		if err := showWindow(t.Context(), ours, ":64999", "x", false); err == nil {
			t.Error("got no error")
		}
	})
}

func TestScanCode(t *testing.T) {
	for x, want := range map[byte]uint8{0: 0, 7: 0, 8: 0, 9: 1, 38: 0x1e, 96: 0x58, 97: 0x73, 105: scanRightCtrl, 119: scanDelete, 255: 0, 95: 0x57} {
		if got := scanCode(x); got != want {
			t.Errorf("scanCode(%d): got %#x, want %#x", x, got, want)
		}
	}
}

type deafEvents struct{ s *screenServer }

func (d deafEvents) drawn(r image.Rectangle) {
	if !r.In(image.Rectangle{Max: d.s.size}) {
		panic("drawn outside")
	}
}
func (d deafEvents) resized(size image.Point) {}

// cannedConn reads what it was made of and forgets what is written.
type cannedConn struct {
	net.Conn
	io.Reader
}

func (c cannedConn) Read(b []byte) (int, error)  { return c.Reader.Read(b) }
func (c cannedConn) Write(b []byte) (int, error) { return len(b), nil }

func FuzzScreen(f *testing.F) {
	hello := "RFB 003.008\n\x01\x01\x00\x00\x00\x00\x00\x04\x00\x02................\x00\x00\x00\x00"
	f.Add([]byte(hello + "\x00\x00\x00\x01" + string(rectangle(0, 0, 1, 1, encRaw, 1, 2, 3, 4))))
	f.Add([]byte(hello + "\x00\x00\x00\x01" + string(rectangle(0, 1, 2, 1, encCopyRect, 0, 0, 0, 0)) + "\x02"))
	f.Add([]byte(hello + "\x00\x00\x00\x01" + string(rectangle(0, 0, 9, 9, encDesktopSize)) + "\x03\x00\x00\x00\x00\x00\x00\x01x"))
	f.Fuzz(func(t *testing.T, in []byte) {
		s, err := handshake(cannedConn{Reader: strings.NewReader(string(in))}, pixelFormat{})
		if err != nil {
			return
		}
		if s.size.X*s.size.Y > 1<<22 {
			t.Skip("large")
		}
		if err := s.serve(deafEvents{s}); err == nil {
			t.Error("served for ever, and ended")
		}
	})
}
