package atomicfile

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// wantFile fails unless the file has the content and the mode, and dir no temp
// files.
func wantFile(t *testing.T, name, content string, mode fs.FileMode) {
	t.Helper()
	got, err := os.ReadFile(name)
	if err != nil || string(got) != content {
		t.Errorf("%s: got %q, %v, want %q", name, got, err, content)
	}
	if fi, err := os.Lstat(name); err == nil && fi.Mode() != mode {
		t.Errorf("%s: mode %v, want %v", name, fi.Mode(), mode)
	}
	wantNoTemps(t, filepath.Dir(name))
}

func wantNoTemps(t *testing.T, dir string) {
	t.Helper()
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), TempPrefix) {
			t.Errorf("%s is left in %s", e.Name(), dir)
		}
	}
}

func TestWrite(t *testing.T) {
	name := filepath.Join(t.TempDir(), "file")
	old := syscall.Umask(0o777) // the mode is what is asked for, whatever the umask
	defer syscall.Umask(old)
	for _, c := range []struct {
		content string
		mode    fs.FileMode
	}{{"one", 0o600}, {"", 0o400}, {strings.Repeat("x", 1<<20), 0o644}} {
		if err := Write(name, []byte(c.content), c.mode); err != nil {
			t.Fatal(err)
		}
		wantFile(t, name, c.content, c.mode)
	}
	if err := Write(filepath.Join(name, "below"), nil, 0o600); err == nil {
		t.Error("written below a file")
	}
	if err := Write(filepath.Join(t.TempDir(), "no", "file"), nil, 0o600); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("written into no directory: got %v", err)
	}
	// Over a directory it cannot be renamed: nothing is left.
	dir := t.TempDir()
	os.Mkdir(filepath.Join(dir, "d"), 0o700)
	if err := Write(filepath.Join(dir, "d"), nil, 0o600); err == nil {
		t.Error("written over a directory")
	}
	wantNoTemps(t, dir)
}

func TestWriteNew(t *testing.T) {
	name := filepath.Join(t.TempDir(), "file")
	if err := WriteNew(name, []byte("one"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := WriteNew(name, []byte("two"), 0o600); !errors.Is(err, fs.ErrExist) {
		t.Errorf("again: got %v", err)
	}
	wantFile(t, name, "one", 0o600)
	// Of many at once, one makes it, whole.
	name += "2"
	var wg sync.WaitGroup
	var mu sync.Mutex
	var won []string
	for i := range 10 {
		wg.Go(func() {
			content := strings.Repeat(string(rune('a'+i)), 10000)
			switch err := WriteNew(name, []byte(content), 0o600); {
			case err == nil:
				mu.Lock()
				won = append(won, content)
				mu.Unlock()
			case !errors.Is(err, fs.ErrExist):
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if len(won) != 1 {
		t.Fatalf("%d made it", len(won))
	}
	wantFile(t, name, won[0], 0o600)
}

func TestAbort(t *testing.T) {
	name := filepath.Join(t.TempDir(), "file")
	if err := Write(name, []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := Create(name, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	f.WriteString("new")
	f.Abort()
	wantFile(t, name, "old", 0o600)
	if err := f.Commit(); err == nil {
		t.Error("committed after abort")
	}
	if f, err = Create(name, 0o600); err != nil {
		t.Fatal(err)
	}
	f.WriteString("new")
	if err := f.Commit(); err != nil {
		t.Error(err)
	}
	f.Abort()
	wantFile(t, name, "new", 0o600)
	if err := f.Commit(); err == nil {
		t.Error("committed twice")
	}
}

// Content that cannot be written is never seen: the old file stays.
func TestFull(t *testing.T) {
	if os.Getenv("ATOMICFILE_TEST_FULL") == "" {
		// In a child, whose files may not grow beyond 4096 bytes.
		dir := t.TempDir()
		cmd := exec.Command("sh", "-c", `ulimit -f 8; exec "$0" -test.run 'TestFull$'`, os.Args[0])
		cmd.Env = append(os.Environ(), "ATOMICFILE_TEST_FULL="+dir)
		out, err := cmd.CombinedOutput()
		if err != nil || !bytes.Contains(out, []byte("PASS")) {
			t.Errorf("%v: %s", err, out)
		}
		return
	}
	name := filepath.Join(os.Getenv("ATOMICFILE_TEST_FULL"), "file")
	if err := Write(name, []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Write(name, make([]byte, 1<<20), 0o600); !errors.Is(err, syscall.EFBIG) {
		t.Errorf("got %v", err)
	}
	if err := WriteNew(name+"2", make([]byte, 1<<20), 0o600); !errors.Is(err, syscall.EFBIG) {
		t.Errorf("got %v", err)
	}
	if _, err := os.Lstat(name + "2"); err == nil {
		t.Error("a part is there")
	}
	wantFile(t, name, "old", 0o600)
}

func TestSymlink(t *testing.T) {
	dir := t.TempDir()
	name := filepath.Join(dir, "link")
	for _, target := range []string{"a", "../b", "a"} {
		if err := Symlink(target, name); err != nil {
			t.Fatal(err)
		}
		if got, err := os.Readlink(name); got != target {
			t.Errorf("got %q, %v, want %q", got, err, target)
		}
	}
	if err := Write(filepath.Join(dir, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Symlink("x", filepath.Join(dir, "file")); err != nil {
		t.Error(err)
	}
	os.Mkdir(filepath.Join(dir, "d"), 0o700)
	if err := Symlink("x", filepath.Join(dir, "d")); err == nil {
		t.Error("a directory was replaced")
	}
	wantNoTemps(t, dir)
}

// Killed at any instant, the file is there whole, old or new.
func TestKilled(t *testing.T) {
	if dir := os.Getenv("ATOMICFILE_TEST_KILL"); dir != "" {
		os.Stdout.WriteString("go")
		for i := 0; ; i++ {
			if err := Write(filepath.Join(dir, "file"), bytes.Repeat([]byte{byte('a' + i%26)}, 50000), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	dir := t.TempDir()
	name := filepath.Join(dir, "file")
	for range 5 {
		cmd := exec.Command(os.Args[0], "-test.run", "TestKilled$")
		cmd.Env = append(os.Environ(), "ATOMICFILE_TEST_KILL="+dir)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		out.Read(make([]byte, 2))
		// Until it has written something new.
		before, _ := os.ReadFile(name)
		for {
			now, err := os.ReadFile(name)
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				t.Fatal(err)
			}
			if err == nil && (len(now) != 50000 || bytes.Count(now, now[:1]) != 50000) {
				t.Fatalf("half a file: %d bytes", len(now))
			}
			if err == nil && !bytes.Equal(now, before) {
				break
			}
		}
		cmd.Process.Kill()
		cmd.Wait()
		if now, err := os.ReadFile(name); err != nil || len(now) != 50000 || bytes.Count(now, now[:1]) != 50000 {
			t.Fatalf("half a file: %d bytes, %v", len(now), err)
		}
	}
}

func TestSyncDir(t *testing.T) {
	if err := SyncDir(t.TempDir()); err != nil {
		t.Error(err)
	}
	if err := SyncDir(filepath.Join(t.TempDir(), "no")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v", err)
	}
}

// CommitNew puts the whole file under a name that is free, and nothing under
// one that is not.
func TestCommitNew(t *testing.T) {
	name := filepath.Join(t.TempDir(), "file")
	for i, want := range []error{nil, fs.ErrExist} {
		f, err := Create(name, 0o640)
		if err != nil {
			t.Fatal(err)
		}
		f.WriteString(strings.Repeat("x", i+1))
		if err := f.CommitNew(); !errors.Is(err, want) {
			t.Errorf("%d: got %v, want %v", i, err, want)
		}
		if err := f.CommitNew(); err == nil {
			t.Errorf("%d: committed twice", i)
		}
		wantFile(t, name, "x", 0o640)
	}
	os.Remove(name)
	os.Symlink("elsewhere", name)
	f, err := Create(name, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.CommitNew(); !errors.Is(err, fs.ErrExist) {
		t.Errorf("where a link is: got %v", err)
	}
	if _, err := os.Lstat(filepath.Join(filepath.Dir(name), "elsewhere")); err == nil {
		t.Error("it followed the link")
	}
}

// What cannot be written is said by its name, not by that of a temp file.
func TestErrorNamesFile(t *testing.T) {
	name := filepath.Join(t.TempDir(), "none", "file")
	for _, err := range []error{Write(name, nil, 0o600), WriteNew(name, nil, 0o600)} {
		if !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), name+": ") {
			t.Errorf("got %v, want it of %s", err, name)
		}
	}
}
