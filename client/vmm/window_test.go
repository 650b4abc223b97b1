package vmm

import (
	"bufio"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jezek/xgb"
	"github.com/jezek/xgb/xproto"
)

// xServer starts an X server without a screen and makes it $DISPLAY.
func xServer(t *testing.T) (end func()) {
	t.Helper()
	if _, err := exec.LookPath("Xvfb"); err != nil {
		lacking(t, "Xvfb: %v", err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("Xvfb", "-displayfd", "3", "-screen", "0", "1024x768x24", "-nolisten", "tcp")
	cmd.ExtraFiles = []*os.File{w}
	cmd.SysProcAttr = &syscall.SysProcAttr{}
	c, err := start(cmd)
	w.Close()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.kill)
	line, err := bufio.NewReader(r).ReadString('\n')
	if err != nil {
		t.Fatalf("Xvfb: %v", err)
	}
	t.Setenv("DISPLAY", ":"+strings.TrimSpace(line))
	t.Setenv("XAUTHORITY", os.DevNull)
	return c.kill
}

// findWindow waits for a window with a title, and for something to be seen in it.
func findWindow(t *testing.T, x *xgb.Conn, title string) xproto.Window {
	t.Helper()
	root := xproto.Setup(x).DefaultScreen(x).Root
	for deadline := time.Now().Add(limit); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		tree, err := xproto.QueryTree(x, root).Reply()
		if err != nil {
			t.Fatal(err)
		}
		for _, id := range tree.Children {
			name, err := xproto.GetProperty(x, false, id, xproto.AtomWmName, xproto.GetPropertyTypeAny, 0, 100).Reply()
			if err != nil || string(name.Value) != title {
				continue
			}
			shape, err := xproto.GetGeometry(x, xproto.Drawable(id)).Reply()
			if err != nil {
				continue
			}
			img, err := xproto.GetImage(x, xproto.ImageFormatZPixmap, xproto.Drawable(id), 0, 0, shape.Width, shape.Height, ^uint32(0)).Reply()
			if err != nil {
				continue
			}
			for i, v := range img.Data {
				if v != 0 && i%4 != 3 {
					return id
				}
			}
		}
	}
	t.Fatalf("no window %q with a picture", title)
	panic("unreachable")
}

func closeWindow(t *testing.T, x *xgb.Conn, id xproto.Window) {
	t.Helper()
	atom := func(n string) xproto.Atom {
		r, err := xproto.InternAtom(x, false, uint16(len(n)), n).Reply()
		if err != nil {
			t.Fatal(err)
		}
		return r.Atom
	}
	e := xproto.ClientMessageEvent{Format: 32, Window: id, Type: atom("WM_PROTOCOLS"),
		Data: xproto.ClientMessageDataUnionData32New([]uint32{uint32(atom("WM_DELETE_WINDOW")), 0, 0, 0, 0})}
	if err := xproto.SendEventChecked(x, false, id, 0, string(e.Bytes())).Check(); err != nil {
		t.Fatal(err)
	}
}

// Closing the window suspends, and what was suspended so resumes; so does the
// end of the X server.
func TestWindowCloseSuspends(t *testing.T) {
	end := xServer(t)
	r := newRig(t, "", 16<<20)
	delete(r.m.Options, "display") // the default is a window
	delete(r.m.Options, "serial")
	x, err := xgb.NewConn()
	if err != nil {
		t.Fatal(err)
	}
	defer x.Close()
	for round := range 2 {
		run := r.run()
		closeWindow(t, x, findWindow(t, x, r.m.Name))
		e := run.wait()
		if e.err != nil || !e.out.Suspended {
			t.Fatalf("round %d: got %+v, %v", round, e.out, e.err)
		}
		if !r.heard("window was closed") {
			t.Errorf("round %d: said %q", round, r.said)
		}
		r.m.Suspended, r.m.Requires, r.said = "qemu", e.out.Requires, nil
	}
	run := r.run()
	findWindow(t, x, r.m.Name)
	end()
	if e := run.wait(); e.err != nil || !e.out.Suspended {
		t.Errorf("X server gone: got %+v, %v", e.out, e.err)
	}
}
