package main

import (
	"context"
	"crypto/rand"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"isr/locksrv/locksrvtest"
	"isr/store"
	"isr/store/atomicfile"
	"isr/store/keyring"
	"isr/store/parcel"
	"isr/store/seal"
)

// The disk of a suspended machine is given, with a warning.
func TestExportSuspended(t *testing.T) {
	r := locksrvtest.NewRealm(t)
	p := r.AddParcel(t, "alice", "winxp")
	ctx := context.Background()
	cfg, err := p.Config()
	if err != nil {
		t.Fatal(err)
	}
	root, err := p.Root(ctx, 0)
	if err != nil {
		t.Fatal(err)
	}
	root.Suspended = "qemu"
	keyroot, sealed, err := keyring.SealRoot(cfg.Sealer(), root)
	if err != nil {
		t.Fatal(err)
	}
	l, err := p.Acquire("alice", "laptop", "id")
	if err != nil {
		t.Fatal(err)
	}
	w, err := p.Stage(keyroot.Tag)
	if err == nil {
		if _, err = w.WriteAt(sealed, 0); err == nil {
			err = w.Close()
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	v, err := p.Commit(ctx, store.CommitRequest{Nonce: l.Nonce, Parent: l.Version, Keyroot: keyroot, ID: parcel.NewID()})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for _, args := range [][]string{{"parcel", "export", "alice", "winxp", filepath.Join(dir, "out.img")}, {"user", "export", "alice", filepath.Join(dir, "all"), "--format", "raw"}} {
		cmd := exec.Command(program(t), append([]string{"--root", r.Root}, args...)...)
		var errs strings.Builder
		cmd.Stderr = &errs
		if err := cmd.Run(); err != nil {
			t.Errorf("%v: %v: %s", args, err, &errs)
		}
		if !strings.Contains(errs.String(), "warning: parcel winxp: version 2: the machine is suspended") || v != 2 {
			t.Errorf("%v: it warns %q of version %d", args, &errs, v)
		}
	}
	if text, err := os.ReadFile(filepath.Join(dir, "all/README.txt")); err != nil || !strings.Contains(string(text), "The machine was suspended") {
		t.Errorf("README.txt: %v\n%s", err, text)
	}
	// What was whole before it was suspended is no matter of a warning.
	out, err := exec.Command(program(t), "--root", r.Root, "parcel", "export", "alice", "winxp", filepath.Join(dir, "one.img"), "--version", "1").CombinedOutput()
	if err != nil || len(out) > 0 {
		t.Errorf("version 1: %v: %s", err, out)
	}
}

// An export that ends early leaves no file of that name; if it could, nothing.
func TestExportEndsEarly(t *testing.T) {
	r := locksrvtest.NewRealm(t)
	image := filepath.Join(t.TempDir(), "image")
	content := make([]byte, 32<<20)
	rand.Read(content)
	if err := os.WriteFile(image, content, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Store.Import(context.Background(), "alice", "box", image, store.CreateOptions{ChunkSize: 4096, Compress: seal.None}); err != nil {
		t.Fatal(err)
	}
	for _, signal := range []syscall.Signal{syscall.SIGKILL, syscall.SIGINT} {
		dir := t.TempDir()
		out := filepath.Join(dir, "out.img")
		cmd := exec.Command(program(t), "--root", r.Root, "parcel", "export", "alice", "box", out)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		ended := make(chan error, 1)
		go func() { ended <- cmd.Wait() }()
		// Once something is there, it is in the middle.
		for begun := false; !begun; {
			select {
			case err := <-ended:
				t.Fatalf("it ended before the signal: %v", err)
			default:
				entries, err := os.ReadDir(dir)
				begun = err == nil && len(entries) > 0
			}
		}
		if err := cmd.Process.Signal(signal); err != nil {
			t.Fatal(err)
		}
		if err := <-ended; err == nil {
			t.Errorf("%v: it ended well", signal)
		}
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			if signal != syscall.SIGKILL || !strings.HasPrefix(e.Name(), atomicfile.TempPrefix) {
				t.Errorf("%v: left %s", signal, e.Name())
			}
		}
		if text, err := exec.Command(program(t), "--root", r.Root, "parcel", "export", "alice", "box", out).CombinedOutput(); err != nil {
			t.Fatalf("again: %v: %s", err, text)
		}
		if got, err := os.ReadFile(out); err != nil || string(got) != string(content) {
			t.Errorf("again: %v, or it differs", err)
		}
	}
}
