package vmm

import (
	"context"
	"errors"
	"fmt"
	"image"
	"io"
	"math/bits"
	"net"
	"sync"
	"sync/atomic"

	"github.com/jezek/xgb"
	"github.com/jezek/xgb/xproto"
)

// A window of ours shows the machine's screen. It exists because QEMU's own
// windows end QEMU when they are closed, whatever it was told to do on
// shutdown, and with it the machine (seen with gtk and sdl of 7.2). This one is a client
// of the screen, over a socket it is given, and its end is only an event. It does not scale, and
// has no clipboard or sound.
//
// Keys go to the machine, except with the right Ctrl key, as in the first ISR
// viewers: with Q the window is closed, with F it fills the screen or stops
// doing so, and Del, Backspace and F1 to F12 are sent together with Ctrl and Alt.

// The library would write every lost connection to standard error; showWindow returns it.
func init() { xgb.Logger.SetOutput(io.Discard) }

// window is the X11 side.
type window struct {
	x     *xgb.Conn
	setup *xproto.SetupInfo
	scr   *xproto.ScreenInfo
	id    xproto.Window
	gc    xproto.Gcontext
	atoms map[string]xproto.Atom
	band  int // bytes of pixels that fit into one request
	s     *screenServer
	over  atomic.Bool // the machine's end of the screen ended

	// guarded by s.mu
	shape image.Point // of the window; the screen is in its middle

	// of the event loop alone
	at      image.Point // pointer, on the machine's screen
	buttons uint8
	down    map[uint8]bool // keys the machine holds to be pressed, by scan code
	command bool           // right Ctrl is held
	used    bool           // and a key was pressed with it
}

// showWindow shows the screen behind conn, which it closes in the end, on the X
// display named display ("" for $DISPLAY). It returns nil when the window is
// closed; ctx's error when cancelled; else what broke, io.EOF if the machine ended.
func showWindow(ctx context.Context, conn net.Conn, display, title string, fullscreen bool) error {
	defer conn.Close()
	w, err := openX(display)
	if err != nil {
		return err
	}
	closeX := sync.OnceFunc(w.x.Close)
	defer closeX()
	pf, err := w.format()
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	if w.s, err = handshake(conn, pf); err != nil {
		return screenError(ctx, err)
	}
	if err := w.open(title, fullscreen); err != nil {
		return err
	}
	served := make(chan error, 1)
	go func() {
		served <- w.s.serve(w)
		w.over.Store(true)
		closeX() // ends the event loop
	}()
	closed := w.events()
	conn.Close()
	err = <-served
	if closed && ctx.Err() == nil {
		return nil
	}
	return screenError(ctx, err)
}

// screenError is the error to return for err of the machine's connection.
func screenError(ctx context.Context, err error) error {
	var broken *net.OpError
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.As(err, &broken), errors.Is(err, io.ErrUnexpectedEOF):
		return io.EOF // a local socket: the other end is gone
	}
	return err
}

func openX(display string) (*window, error) {
	x, err := xgb.NewConnDisplay(display)
	if err != nil {
		return nil, fmt.Errorf("X display: %w", err)
	}
	w := &window{x: x, setup: xproto.Setup(x), atoms: map[string]xproto.Atom{}, down: map[uint8]bool{}}
	w.scr = w.setup.DefaultScreen(x)
	w.band = int(w.setup.MaximumRequestLength)*4 - 64
	for _, n := range []string{"WM_PROTOCOLS", "WM_DELETE_WINDOW", "_NET_WM_NAME", "UTF8_STRING", "_NET_WM_STATE", "_NET_WM_STATE_FULLSCREEN"} {
		r, err := xproto.InternAtom(x, false, uint16(len(n)), n).Reply()
		if err != nil {
			x.Close()
			return nil, fmt.Errorf("X display: %w", err)
		}
		w.atoms[n] = r.Atom
	}
	return w, nil
}

// format is how the X server wants pixels: the machine is asked for the same.
func (w *window) format() (pixelFormat, error) {
	pf := pixelFormat{bigEndian: w.setup.ImageByteOrder == xproto.ImageOrderMSBFirst}
	for _, f := range w.setup.PixmapFormats {
		if f.Depth == w.scr.RootDepth && f.BitsPerPixel != 32 {
			return pf, fmt.Errorf("X display: %d bits per pixel, need 32", f.BitsPerPixel)
		}
	}
	for _, d := range w.scr.AllowedDepths {
		for _, v := range d.Visuals {
			if v.VisualId == w.scr.RootVisual && v.Class == xproto.VisualClassTrueColor &&
				bits.OnesCount32(v.RedMask) == 8 && bits.OnesCount32(v.GreenMask) == 8 && bits.OnesCount32(v.BlueMask) == 8 {
				at := func(m uint32) uint8 { return uint8(bits.TrailingZeros32(m)) }
				pf.redAt, pf.greenAt, pf.blueAt = at(v.RedMask), at(v.GreenMask), at(v.BlueMask)
				return pf, nil
			}
		}
	}
	return pf, errors.New("X display: no true colour with 8 bits each")
}

func (w *window) open(title string, fullscreen bool) error {
	w.shape = w.s.size
	var err error
	if w.id, err = xproto.NewWindowId(w.x); err != nil {
		return err
	}
	if w.gc, err = xproto.NewGcontextId(w.x); err != nil {
		return err
	}
	err = xproto.CreateWindowChecked(w.x, w.scr.RootDepth, w.id, w.scr.Root, 0, 0, uint16(w.shape.X), uint16(w.shape.Y), 0,
		xproto.WindowClassInputOutput, w.scr.RootVisual, xproto.CwBackPixel|xproto.CwEventMask, []uint32{
			w.scr.BlackPixel,
			xproto.EventMaskExposure | xproto.EventMaskStructureNotify | xproto.EventMaskFocusChange |
				xproto.EventMaskKeyPress | xproto.EventMaskKeyRelease |
				xproto.EventMaskButtonPress | xproto.EventMaskButtonRelease | xproto.EventMaskPointerMotion,
		}).Check()
	if err != nil {
		return fmt.Errorf("X display: window: %w", err)
	}
	xproto.CreateGC(w.x, w.gc, xproto.Drawable(w.id), 0, nil)
	w.property("WM_PROTOCOLS", xproto.AtomAtom, w.atoms["WM_DELETE_WINDOW"])
	w.text(xproto.AtomWmName, xproto.AtomString, title)
	w.text(w.atoms["_NET_WM_NAME"], w.atoms["UTF8_STRING"], title)
	w.text(xproto.AtomWmClass, xproto.AtomString, "isr\x00isr\x00")
	if fullscreen {
		w.property("_NET_WM_STATE", xproto.AtomAtom, w.atoms["_NET_WM_STATE_FULLSCREEN"])
	}
	return xproto.MapWindowChecked(w.x, w.id).Check()
}

func (w *window) property(name string, kind, value xproto.Atom) {
	b := make([]byte, 4)
	xgb.Put32(b, uint32(value))
	xproto.ChangeProperty(w.x, xproto.PropModeReplace, w.id, w.atoms[name], kind, 32, 1, b)
}

func (w *window) text(property, kind xproto.Atom, s string) {
	xproto.ChangeProperty(w.x, xproto.PropModeReplace, w.id, property, kind, 8, uint32(len(s)), []byte(s))
}

// origin is where the machine's screen begins in the window.
func (w *window) origin() image.Point {
	return image.Pt(max(0, w.shape.X-w.s.size.X)/2, max(0, w.shape.Y-w.s.size.Y)/2)
}

// drawn implements screenEvents: part of the screen goes to the X server, in bands.
func (w *window) drawn(r image.Rectangle) {
	if r.Empty() {
		return
	}
	o := w.origin()
	rows := max(1, w.band/(r.Dx()*4))
	for y := r.Min.Y; y < r.Max.Y; y += rows {
		h := min(rows, r.Max.Y-y)
		data := make([]byte, 0, h*r.Dx()*4)
		for i := range h {
			at := ((y+i)*w.s.size.X + r.Min.X) * 4
			data = append(data, w.s.fb[at:at+r.Dx()*4]...)
		}
		xproto.PutImage(w.x, xproto.ImageFormatZPixmap, xproto.Drawable(w.id), w.gc, uint16(r.Dx()), uint16(h),
			int16(o.X+r.Min.X), int16(o.Y+y), 0, w.scr.RootDepth, data)
	}
}

// resized implements screenEvents.
func (w *window) resized(size image.Point) {
	xproto.ConfigureWindow(w.x, w.id, xproto.ConfigWindowWidth|xproto.ConfigWindowHeight, []uint32{uint32(size.X), uint32(size.Y)})
	xproto.ClearArea(w.x, false, w.id, 0, 0, 0, 0)
}

// events works until the window is closed (true), or the connection to the X
// server ends: by itself, which closes the window too, or because the machine
// did, which showWindow can tell from what serve returned first.
func (w *window) events() bool {
	var held xgb.Event // read ahead
	for {
		ev := held
		held = nil
		if ev == nil {
			var xerr xgb.Error
			if ev, xerr = w.x.WaitForEvent(); ev == nil {
				if xerr != nil {
					continue // a request that failed: nothing hangs on any of them
				}
				return !w.over.Load()
			}
		}
		var err error
		switch e := ev.(type) {
		case xproto.ClientMessageEvent:
			if e.Type == w.atoms["WM_PROTOCOLS"] && xproto.Atom(e.Data.Data32[0]) == w.atoms["WM_DELETE_WINDOW"] {
				return true
			}
		case xproto.DestroyNotifyEvent:
			return true
		case xproto.ExposeEvent:
			w.s.mu.Lock()
			r := image.Rect(int(e.X), int(e.Y), int(e.X)+int(e.Width), int(e.Y)+int(e.Height)).Sub(w.origin())
			w.drawn(r.Intersect(image.Rectangle{Max: w.s.size}))
			w.s.mu.Unlock()
		case xproto.ConfigureNotifyEvent:
			w.s.mu.Lock()
			if shape := image.Pt(int(e.Width), int(e.Height)); shape != w.shape {
				w.shape = shape
				xproto.ClearArea(w.x, true, w.id, 0, 0, 0, 0) // and expose it
			}
			w.s.mu.Unlock()
		case xproto.FocusOutEvent:
			err = w.releaseAll()
		case xproto.KeyPressEvent:
			if quit, kerr := w.press(scanCode(byte(e.Detail))); quit {
				return true
			} else {
				err = kerr
			}
		case xproto.KeyReleaseEvent:
			// A key that repeats is released and pressed at the same instant.
			held, _ = w.x.PollForEvent()
			if p, ok := held.(xproto.KeyPressEvent); ok && p.Detail == e.Detail && p.Time == e.Time {
				continue
			}
			err = w.release(scanCode(byte(e.Detail)))
		case xproto.ButtonPressEvent:
			w.buttons |= button(byte(e.Detail))
			err = w.moved(e.EventX, e.EventY)
		case xproto.ButtonReleaseEvent:
			w.buttons &^= button(byte(e.Detail))
			err = w.moved(e.EventX, e.EventY)
		case xproto.MotionNotifyEvent:
			err = w.moved(e.EventX, e.EventY)
		}
		if err != nil {
			return false // the machine is gone: serve will say so
		}
	}
}

func button(detail byte) uint8 {
	if detail < 1 || detail > 8 {
		return 0
	}
	return 1 << (detail - 1)
}

func (w *window) moved(x, y int16) error {
	w.s.mu.Lock()
	o := w.origin()
	w.s.mu.Unlock()
	before := w.at
	w.at = image.Pt(int(x), int(y)).Sub(o)
	return w.s.pointer(w.at, before, w.buttons)
}

// press handles a key. quit: it was the one that closes the window.
func (w *window) press(code uint8) (quit bool, err error) {
	switch {
	case code == 0:
	case code == scanRightCtrl:
		w.command, w.used = true, false
	case w.command:
		w.used = true
		switch {
		case code == scanQ:
			return true, nil
		case code == scanF:
			w.toggleFullscreen()
		case code == scanDelete || code == scanBackspace || functionKey(code):
			for _, c := range []uint8{scanLeftCtrl, scanLeftAlt, code} {
				err = errors.Join(err, w.s.key(c, true))
			}
			for _, c := range []uint8{code, scanLeftAlt, scanLeftCtrl} {
				err = errors.Join(err, w.s.key(c, false))
			}
		default: // an ordinary combination with Ctrl
			if !w.down[scanRightCtrl] {
				w.down[scanRightCtrl] = true
				err = w.s.key(scanRightCtrl, true)
			}
			w.down[code] = true
			err = errors.Join(err, w.s.key(code, true))
		}
	default:
		w.down[code] = true
		err = w.s.key(code, true)
	}
	return false, err
}

func (w *window) release(code uint8) (err error) {
	if code == scanRightCtrl && w.command {
		w.command = false
		if !w.used { // pressed alone: the machine gets it now
			err = w.s.key(code, true)
			w.down[code] = true
		}
	}
	if w.down[code] {
		delete(w.down, code)
		err = errors.Join(err, w.s.key(code, false))
	}
	return err
}

// releaseAll keeps keys from hanging when their release goes to another window.
func (w *window) releaseAll() (err error) {
	w.command = false
	for code := range w.down {
		err = errors.Join(err, w.s.key(code, false))
	}
	clear(w.down)
	return err
}

func (w *window) toggleFullscreen() {
	const toggle = 2
	data := xproto.ClientMessageDataUnionData32New([]uint32{toggle, uint32(w.atoms["_NET_WM_STATE_FULLSCREEN"]), 0, 1, 0})
	e := xproto.ClientMessageEvent{Format: 32, Window: w.id, Type: w.atoms["_NET_WM_STATE"], Data: data}
	xproto.SendEvent(w.x, false, w.scr.Root, xproto.EventMaskSubstructureNotify|xproto.EventMaskSubstructureRedirect, string(e.Bytes()))
}
