package main

import (
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"

	"github.com/rogpeppe/go-internal/testscript"
)

// userNamespaces says whether a test may mount something for itself.
var userNamespaces = sync.OnceValue(func() bool {
	return exec.Command("unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", "/mnt").Run() == nil
})

func scriptWeb(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, neg, len(args) == 2, "web VAR DIR")
	s := httptest.NewServer(http.FileServer(http.Dir(ts.MkAbs(args[1]))))
	ts.Defer(s.Close)
	ts.Setenv(args[0], strings.TrimPrefix(s.URL, "http://"))
}

func scriptSpoil(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, neg, len(args) == 2, "spoil DIR HOW")
	_, t := worldOf(ts)
	for _, name := range files(t, ts.MkAbs(args[0])) {
		text, err := os.ReadFile(name)
		ts.Check(err)
		ts.Check(os.Remove(name))
		switch args[1] {
		case "lie":
			text[len(text)/2] ^= 1
			err = os.WriteFile(name, text, 0o444)
		case "short":
			err = os.WriteFile(name, text[:len(text)-1], 0o444)
		case "fifo":
			err = syscall.Mkfifo(name, 0o666)
		case "device":
			err = os.Symlink("/dev/zero", name)
		default:
			ts.Fatalf("spoil: %s: unknown", filepath.Base(args[1]))
		}
		ts.Check(err)
	}
}
