package store

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"isr/store/keyring"
	"isr/store/parcel"
	"isr/store/seal"
	"isr/store/tree"
)

// du is what a directory costs on the disk, bytes, each inode once, as du
// counts; and the number of its regular files.
func du(t testing.TB, dir string) (bytes int64, files int) {
	t.Helper()
	seen := make(map[uint64]bool)
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		fi, err := d.Info()
		if err != nil {
			return err
		}
		st := fi.Sys().(*syscall.Stat_t)
		if d.Type().IsRegular() {
			files++
		}
		if !seen[st.Ino] {
			seen[st.Ino] = true
			bytes += st.Blocks * 512
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return bytes, files
}

func writeFile(t testing.TB, size int64, parts map[int64][]byte) string {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "image"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	for off, b := range parts {
		if _, err := f.WriteAt(b, off); err != nil {
			t.Fatal(err)
		}
	}
	return f.Name()
}

func TestCreate(t *testing.T) {
	s := newStore(t)
	p, err := s.Create(ctx, "alice", "winxp", CreateOptions{DiskSize: 1 << 30, MemSize: 256 << 20, Comment: "gold"})
	if err != nil {
		t.Fatal(err)
	}
	c, err := p.Config()
	if err != nil {
		t.Fatal(err)
	}
	if c.User != "alice" || c.Parcel != "winxp" || c.Version != 1 || c.DiskSize != 1<<30 || c.MemSize != 256<<20 || c.ChunkSize != 128<<10 ||
		c.MemChunk != 64<<10 || c.VMM != "qemu" || c.Crypto != seal.AES256SHA256 || c.Compress != seal.Gzip || c.Comment != "gold" ||
		!bytes.Equal(c.Secret, s.secret) || len(c.UUID) != 36 {
		t.Errorf("config: got %+v", c)
	}
	if _, err := s.Create(ctx, "alice", "winxp", CreateOptions{DiskSize: 1}); !errors.Is(err, parcel.ErrExists) {
		t.Errorf("again: got %v", err)
	}
	names, err := s.Parcels("alice")
	if got := strings.Join(names, " "); got != "winxp" || err != nil {
		t.Errorf("parcels: got %q, %v", got, err)
	}
	// A gigabyte of zeros is one object.
	if size, files := du(t, p.ContentDir()); size > 64<<10 || files != 2 {
		t.Errorf("1 GiB of zeros costs %d bytes in %d files, want the root block and info", size, files)
	}
	for name, c := range map[string]struct {
		user, name string
		o          CreateOptions
		want       error
	}{
		"no disk":      {"alice", "a", CreateOptions{}, parcel.ErrUsage},
		"negative":     {"alice", "a", CreateOptions{DiskSize: -1}, parcel.ErrUsage},
		"huge":         {"alice", "a", CreateOptions{DiskSize: 1<<50 + 1}, parcel.ErrUsage},
		"memory":       {"alice", "a", CreateOptions{DiskSize: 1, MemSize: -1}, parcel.ErrUsage},
		"chunk":        {"alice", "a", CreateOptions{DiskSize: 1, ChunkSize: 5000}, parcel.ErrUsage},
		"mem chunk":    {"alice", "a", CreateOptions{DiskSize: 1, MemChunk: 2048}, parcel.ErrUsage},
		"crypto":       {"alice", "a", CreateOptions{DiskSize: 1, Crypto: "rot13"}, parcel.ErrUsage},
		"codec":        {"alice", "a", CreateOptions{DiskSize: 1, Compress: "rar"}, parcel.ErrUsage},
		"no user":      {"nobody", "a", CreateOptions{DiskSize: 1}, parcel.ErrNoParcel},
		"user ..":      {"..", "a", CreateOptions{DiskSize: 1}, parcel.ErrUsage},
		"name ..":      {"alice", "..", CreateOptions{DiskSize: 1}, parcel.ErrUsage},
		"name of path": {"alice", "../bob/x", CreateOptions{DiskSize: 1}, parcel.ErrUsage},
		"reserved":     {"alice", "hoard", CreateOptions{DiskSize: 1}, parcel.ErrUsage},
	} {
		if _, err := s.Create(ctx, c.user, c.name, c.o); !errors.Is(err, c.want) {
			t.Errorf("%s: got %v, want %v", name, err, c.want)
		}
	}
	for _, name := range []string{"nothing", "..", ""} {
		if _, err := s.Parcel("alice", name); err == nil {
			t.Errorf("parcel %q: opened", name)
		}
	}
	if ps := wantSound(t, s); len(ps) != 0 {
		t.Errorf("notes: %v", ps)
	}
}

func TestImportExport(t *testing.T) {
	for _, suite := range []seal.Suite{seal.AES256SHA256, seal.BlowfishSHA1} {
		for _, codec := range []seal.Codec{seal.None, seal.Gzip, seal.Zstd} {
			for _, size := range []int64{1, testChunk - 1, testChunk, testChunk + 1, 257*testChunk - 1} {
				s := newStore(t)
				parts := map[int64][]byte{0: random(int(min(size, 100)), 1)}
				if size > 3*testChunk {
					parts[size-5] = []byte("the e")
					parts[2*testChunk-10] = random(20, 2)
					parts[100*testChunk] = bytes.Repeat([]byte("text "), 2000)
				}
				image := writeFile(t, size, parts)
				var last [2]int64
				p, err := s.Import(ctx, "alice", "box", image, CreateOptions{ChunkSize: testChunk, Crypto: suite, Compress: codec,
					Format: "raw", Progress: func(done, total int64) { last = [2]int64{done, total} }})
				if err != nil {
					t.Fatal(err)
				}
				if last != [2]int64{size, size} {
					t.Errorf("progress ended at %v of %d", last, size)
				}
				wantSame(t, p, 0, image)
				wantSound(t, s)
			}
		}
	}
}

// The last chunk is filled up with zeros, whatever buffer it was read into.
func TestImportPadding(t *testing.T) {
	s := newStore(t)
	const size = 50*testChunk - 100
	p, err := s.Import(ctx, "alice", "box", writeFile(t, size, map[int64][]byte{0: random(size, 1)}), CreateOptions{ChunkSize: testChunk, Format: "raw"})
	if err != nil {
		t.Fatal(err)
	}
	wantChunk(t, p, 1, 49, string(random(size, 1)[49*testChunk:]))
}

// wantSame fails unless the disk of version v equals the file image.
func wantSame(t testing.TB, p *Parcel, v int, image string) {
	t.Helper()
	out, err := os.Create(filepath.Join(t.TempDir(), "out"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	out.WriteString("what was there before")
	if err := p.Export(ctx, out, v, nil); err != nil {
		t.Fatal(err)
	}
	in, err := os.Open(image)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out.Seek(0, io.SeekStart)
	a, b := make([]byte, 1<<20), make([]byte, 1<<20)
	for off := int64(0); ; off += int64(len(a)) {
		n, aerr := io.ReadFull(in, a)
		m, berr := io.ReadFull(out, b)
		if !bytes.Equal(a[:n], b[:m]) {
			t.Fatalf("exported image differs in the MiB at %d", off)
		}
		if aerr != nil || berr != nil {
			return
		}
	}
}

func TestImportFormats(t *testing.T) {
	if _, err := exec.LookPath("qemu-img"); err != nil {
		t.Skip("no qemu-img")
	}
	s := newStore(t)
	raw := writeFile(t, 3<<20, map[int64][]byte{0: random(5000, 1), 2 << 20: random(100_000, 2)})
	dir := t.TempDir()
	qemuImg := func(args ...string) {
		t.Helper()
		if out, err := exec.Command("qemu-img", args...).CombinedOutput(); err != nil {
			t.Fatalf("qemu-img %v: %v: %s", args, err, out)
		}
	}
	for _, format := range []string{"raw", "qcow2", "vmdk", "vdi", "vhdx"} {
		image := filepath.Join(dir, "a:b,c."+format) // no protocol, no option
		qemuImg("convert", "-f", "raw", "-O", format, raw, image)
		p, err := s.Import(ctx, "alice", format, image, CreateOptions{})
		if err != nil {
			t.Errorf("%s: %v", format, err)
			continue
		}
		wantSame(t, p, 1, raw)
	}
	// An image that is only part of one does not make the server read others.
	overlay := filepath.Join(dir, "overlay.qcow2")
	qemuImg("create", "-f", "qcow2", "-b", raw, "-F", "raw", overlay)
	if _, err := s.Import(ctx, "alice", "overlay", overlay, CreateOptions{}); !errors.Is(err, parcel.ErrUsage) || !strings.Contains(err.Error(), raw) {
		t.Errorf("overlay: got %v", err)
	}
	data := filepath.Join(dir, "data.qcow2")
	qemuImg("create", "-f", "qcow2", "-o", "data_file="+filepath.Join(dir, "data")+",data_file_raw=on", data, "1M")
	if _, err := s.Import(ctx, "alice", "data", data, CreateOptions{}); !errors.Is(err, parcel.ErrUsage) {
		t.Errorf("external data: got %v", err)
	}
	// The same bytes are a raw image too, if one says so.
	if _, err := s.Import(ctx, "alice", "bytes", overlay, CreateOptions{Format: "raw"}); err != nil {
		t.Errorf("qcow2 as raw: %v", err)
	}
	// Without qemu-img it is refused, raw is not.
	t.Setenv("PATH", dir)
	if _, err := s.Import(ctx, "alice", "x", filepath.Join(dir, "a:b,c.qcow2"), CreateOptions{}); !errors.Is(err, parcel.ErrUsage) {
		t.Errorf("qcow2 without qemu-img: got %v", err)
	}
	if _, err := s.Import(ctx, "alice", "y", raw, CreateOptions{}); err != nil {
		t.Errorf("raw without qemu-img: %v", err)
	}
	wantSound(t, s)
}

func TestImportRefused(t *testing.T) {
	s := newStore(t)
	image := writeFile(t, 10*testChunk, map[int64][]byte{0: random(10*testChunk, 1)})
	for name, c := range map[string]struct {
		image string
		o     CreateOptions
		want  error
	}{
		"no image":   {filepath.Join(t.TempDir(), "x"), CreateOptions{Format: "raw"}, fs.ErrNotExist},
		"empty":      {writeFile(t, 0, nil), CreateOptions{Format: "raw"}, parcel.ErrUsage},
		"small disk": {image, CreateOptions{Format: "raw", DiskSize: 10*testChunk - 1}, parcel.ErrUsage},
		"directory":  {t.TempDir(), CreateOptions{Format: "raw"}, nil},
	} {
		_, err := s.Import(ctx, "alice", "box", c.image, c.o)
		if err == nil || c.want != nil && !errors.Is(err, c.want) {
			t.Errorf("%s: got %v, want %v", name, err, c.want)
		}
	}
	// Given up half-way, nothing is left.
	cancelled, cancel := context.WithCancel(ctx)
	_, err := s.Import(cancelled, "alice", "box", image, CreateOptions{Format: "raw", ChunkSize: testChunk,
		Progress: func(done, total int64) { cancel() }})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: got %v", err)
	}
	if names, _ := s.Parcels("alice"); len(names) != 0 {
		t.Errorf("parcels: got %v", names)
	}
	if _, files := du(t, s.userAt("alice").dir); files != 2 {
		t.Errorf("%d files are left, want authorized_keys and user.cfg", files)
	}
	// A larger disk than the image ends in zeros.
	p, err := s.Import(ctx, "alice", "box", image, CreateOptions{Format: "raw", DiskSize: 11 * testChunk})
	if err != nil {
		t.Fatal(err)
	}
	os.Truncate(image, 11*testChunk)
	wantSame(t, p, 1, image)
	wantSound(t, s)
}

// 1 TiB of which three chunks are not holes: what is read is what is there.
func TestImportSparse(t *testing.T) {
	s := newStore(t)
	image := writeFile(t, 1<<40, map[int64][]byte{5 << 20: random(1000, 1), 1<<39 + 7: random(1000, 2), 1<<40 - 3: []byte("end")})
	start := time.Now()
	p, err := s.Import(ctx, "alice", "box", image, CreateOptions{Format: "raw"})
	if err != nil {
		t.Fatal(err)
	}
	took := time.Since(start)
	size, files := du(t, p.ContentDir())
	t.Logf("import of 1 TiB, sparse: %v, %d bytes in %d files", took, size, files)
	// Three chunks, three paths of blocks below a common top, root, info.
	if want := 3 + 3*2 + 1 + 1 + 1; files != want {
		t.Errorf("%d files, want %d", files, want)
	}
	if took > 10*time.Second {
		t.Errorf("took %v: were holes read?", took)
	}
	start = time.Now()
	out, err := os.Create(filepath.Join(t.TempDir(), "out"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	if err := p.Export(ctx, out, 1, nil); err != nil {
		t.Fatal(err)
	}
	t.Logf("export: %v", time.Since(start))
	fi, _ := out.Stat()
	if got := fi.Sys().(*syscall.Stat_t).Blocks * 512; fi.Size() != 1<<40 || got > 1<<20 {
		t.Errorf("exported %d bytes in %d, want a sparse 1 TiB", fi.Size(), got)
	}
	for off, want := range map[int64][]byte{5 << 20: random(1000, 1), 1<<39 + 7: random(1000, 2), 1<<40 - 3: []byte("end")} {
		got := make([]byte, len(want))
		if _, err := out.ReadAt(got, off); err != nil && err != io.EOF || !bytes.Equal(got, want) {
			t.Errorf("at %d: differs, %v", off, err)
		}
	}
	wantSound(t, s)
}

func TestCopy(t *testing.T) {
	s := newStore(t)
	const size = 1 << 30
	image := writeFile(t, size, map[int64][]byte{0: random(20<<20, 1), size - 100: random(100, 2)})
	p, err := s.Import(ctx, "alice", "gold", image, CreateOptions{Format: "raw", Src: []string{"SFTP://host/alice/gold"}})
	if err != nil {
		t.Fatal(err)
	}
	before, files := du(t, s.root)
	l, err := p.Acquire("alice", "h", "id") // a held parcel can be copied
	if err != nil {
		t.Fatal(err)
	}
	q, err := s.Copy(ctx, "alice", "gold", "bob", "box")
	if err != nil {
		t.Fatal(err)
	}
	after, _ := du(t, s.root)
	t.Logf("parcel of 1 GiB: %d bytes in %d files; its copy: %d bytes", before, files, after-before)
	// Directories and a few records; no object is there twice.
	if after-before > before/10+2<<20 {
		t.Errorf("copy costs %d bytes of %d", after-before, before)
	}
	pc, _ := p.Config()
	qc, _ := q.Config()
	if qc.UUID == pc.UUID || qc.User != "bob" || qc.Parcel != "box" || qc.Version != 1 || len(qc.Src) != 0 || !bytes.Equal(pc.Secret, qc.Secret) || qc.DiskSize != pc.DiskSize {
		t.Errorf("config: got %+v from %+v", qc, pc)
	}
	if h, _ := q.Holder(); h != nil {
		t.Errorf("copy is held: %v", h)
	}
	wantSame(t, q, 1, image)
	// From here on they differ.
	keyroot, _ := stageChunk(t, p, 3, []byte("alice's"))
	if _, err := p.Commit(ctx, CommitRequest{Nonce: l.Nonce, Parent: 1, Keyroot: keyroot, ID: "c"}); err != nil {
		t.Fatal(err)
	}
	p.Release(l.Nonce, false)
	// What an older version had is not copied, and the original may go.
	r, err := s.Copy(ctx, "alice", "gold", "bob", "second")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.DelParcel("alice", "gold", false); err != nil {
		t.Fatal(err)
	}
	if err := r.Export(ctx, mustCreate(t), 0, nil); err != nil {
		t.Error(err)
	}
	wantSame(t, q, 1, image)
	if _, err := s.Copy(ctx, "alice", "gold", "bob", "third"); !errors.Is(err, parcel.ErrNoParcel) {
		t.Errorf("copy of nothing: got %v", err)
	}
	if _, err := s.Copy(ctx, "bob", "box", "bob", "box"); !errors.Is(err, parcel.ErrExists) {
		t.Errorf("copy onto itself: got %v", err)
	}
	if ps := wantSound(t, s); len(ps) != 0 {
		t.Errorf("notes: %v", ps)
	}
}

func mustCreate(t testing.TB) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// stageChunk is stageVersion for a parcel of any chunk size.
func stageChunk(t testing.TB, p *Parcel, n int64, data []byte) (seal.Ref, int) {
	t.Helper()
	c, err := p.Config()
	if err != nil {
		t.Fatal(err)
	}
	plain := make([]byte, c.ChunkSize)
	copy(plain, data)
	return stageVersion(t, p, change{n: plain}, "")
}

// Without hard links a copy is a copy, verified.
func TestCopyObject(t *testing.T) {
	dir := t.TempDir()
	ref, sealed, err := seal.Sealer{Suite: seal.AES256SHA256, Codec: seal.None}.Seal([]byte("x"))
	if err != nil {
		t.Fatal(err)
	}
	from := filepath.Join(dir, "from")
	os.WriteFile(from, sealed, 0o400)
	if n, err := tree.CopyObject(from, filepath.Join(dir, "to"), ref.Tag); n != int64(len(sealed)) || err != nil {
		t.Errorf("got %d, %v", n, err)
	}
	if _, err := tree.CopyObject(from, filepath.Join(dir, "to2"), seal.Tag(random(32, 1))); !errors.Is(err, parcel.ErrDamaged) {
		t.Errorf("wrong tag: got %v", err)
	}
}

// What an administrator sees with shell tools alone.
func TestShellTools(t *testing.T) {
	s := newStore(t)
	p, err := s.Import(ctx, "alice", "box", writeFile(t, 4<<20, map[int64][]byte{0: random(4<<20, 1)}), CreateOptions{Format: "raw"})
	if err != nil {
		t.Fatal(err)
	}
	// The line of isr-store(5).
	sh := exec.Command("sh", "-c", `find hdk -type f | awk -F/ '{print $3"  "$0}' | sha256sum --quiet -c - && find hdk -type f | wc -l`)
	sh.Dir = p.ContentDir()
	out, err := sh.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if got := strings.TrimSpace(string(out)); got != "34" { // 32 chunks, a block, the root
		t.Errorf("objects: got %s", got)
	}
	// And it can fail.
	root, _ := p.Root(ctx, 1)
	im, _ := root.Image(keyring.Disk)
	flip(t, filepath.Join(p.hdk(), tree.ObjectName(im.Ref.Tag)))
	sh = exec.Command("sh", "-c", `find hdk -type f | awk -F/ '{print $3"  "$0}' | sha256sum --quiet -c -`)
	sh.Dir = p.ContentDir()
	if out, err := sh.CombinedOutput(); err == nil {
		t.Errorf("a flipped bit is not seen: %s", out)
	}
	// The tree can be copied with tar, and is as good at the other place.
	unflip := filepath.Join(p.hdk(), tree.ObjectName(im.Ref.Tag))
	flip(t, unflip)
	other := t.TempDir()
	if out, err := exec.Command("sh", "-c", "tar -C "+s.root+" -cf - . | tar -C "+other+" -xpf -").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	moved, err := Open(other)
	if err != nil {
		t.Fatal(err)
	}
	if ps := wantSound(t, moved); len(ps) != 0 {
		t.Errorf("notes: %v", ps)
	}
}

// flip changes one bit in the middle of a file.
func flip(t testing.TB, path string) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/2] ^= 4
	if err := os.Chmod(path, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	os.Chmod(path, tree.ObjectMode)
}

func TestDelParcel(t *testing.T) {
	s := newStore(t)
	p := newParcel(t, s)
	if _, err := p.Acquire("alice", "h", "id"); err != nil {
		t.Fatal(err)
	}
	if err := s.DelParcel("alice", "winxp", false); !errors.Is(err, parcel.ErrLocked) {
		t.Errorf("held: got %v", err)
	}
	if err := s.DelParcel("alice", "winxp", true); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Acquire("alice", "h", "id"); !errors.Is(err, parcel.ErrNoParcel) {
		t.Errorf("acquire of what was removed: got %v", err)
	}
	if _, err := p.Config(); !errors.Is(err, parcel.ErrNoParcel) {
		t.Errorf("config of what was removed: got %v", err)
	}
	if err := s.DelParcel("alice", "winxp", true); !errors.Is(err, parcel.ErrNoParcel) {
		t.Errorf("again: got %v", err)
	}
	if ps := wantSound(t, s); len(ps) != 0 {
		t.Errorf("notes: %v", ps)
	}
	if err := s.DelUser("alice"); err != nil {
		t.Error(err)
	}
}
