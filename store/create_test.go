package store_test

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

	"isr/store"
	"isr/store/export"
	"isr/store/keyring"
	"isr/store/parcel"
	"isr/store/seal"
	"isr/store/storetest"
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

func TestCreate(t *testing.T) {
	s := storetest.New(t)
	p, err := s.Create(ctx, "alice", "winxp", store.CreateOptions{DiskSize: 1 << 30, MemSize: 256 << 20, Comment: "gold"})
	if err != nil {
		t.Fatal(err)
	}
	c, err := p.Config()
	if err != nil {
		t.Fatal(err)
	}
	if c.User != "alice" || c.Parcel != "winxp" || c.Version != 1 || c.DiskSize != 1<<30 || c.MemSize != 256<<20 || c.ChunkSize != 128<<10 ||
		c.MemChunk != 64<<10 || c.VMM != "qemu" || c.Crypto != seal.AES256SHA256 || c.Compress != seal.Gzip || c.Comment != "gold" ||
		!bytes.Equal(c.Secret, *s.Secret()) || len(c.UUID) != 36 {
		t.Errorf("config: got %+v", c)
	}
	if _, err := s.Create(ctx, "alice", "winxp", store.CreateOptions{DiskSize: 1}); !errors.Is(err, parcel.ErrExists) {
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
		o          store.CreateOptions
		want       error
	}{
		"no disk":      {"alice", "a", store.CreateOptions{}, parcel.ErrUsage},
		"negative":     {"alice", "a", store.CreateOptions{DiskSize: -1}, parcel.ErrUsage},
		"huge":         {"alice", "a", store.CreateOptions{DiskSize: 1<<50 + 1}, parcel.ErrUsage},
		"memory":       {"alice", "a", store.CreateOptions{DiskSize: 1, MemSize: -1}, parcel.ErrUsage},
		"chunk":        {"alice", "a", store.CreateOptions{DiskSize: 1, ChunkSize: 5000}, parcel.ErrUsage},
		"mem chunk":    {"alice", "a", store.CreateOptions{DiskSize: 1, MemChunk: 2048}, parcel.ErrUsage},
		"crypto":       {"alice", "a", store.CreateOptions{DiskSize: 1, Crypto: "rot13"}, parcel.ErrUsage},
		"codec":        {"alice", "a", store.CreateOptions{DiskSize: 1, Compress: "rar"}, parcel.ErrUsage},
		"no user":      {"nobody", "a", store.CreateOptions{DiskSize: 1}, parcel.ErrNoParcel},
		"user ..":      {"..", "a", store.CreateOptions{DiskSize: 1}, parcel.ErrUsage},
		"name ..":      {"alice", "..", store.CreateOptions{DiskSize: 1}, parcel.ErrUsage},
		"name of path": {"alice", "../bob/x", store.CreateOptions{DiskSize: 1}, parcel.ErrUsage},
		"reserved":     {"alice", "hoard", store.CreateOptions{DiskSize: 1}, parcel.ErrUsage},
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
	if ps := storetest.WantSound(t, s); len(ps) != 0 {
		t.Errorf("notes: %v", ps)
	}
}

func TestImportExport(t *testing.T) {
	for _, suite := range []seal.Suite{seal.AES256SHA256, seal.BlowfishSHA1} {
		for _, codec := range []seal.Codec{seal.None, seal.Gzip, seal.Zstd} {
			for _, size := range []int64{1, storetest.Chunk - 1, storetest.Chunk, storetest.Chunk + 1, 257*storetest.Chunk - 1} {
				s := storetest.New(t)
				parts := map[int64][]byte{0: storetest.Random(int(min(size, 100)), 1)}
				if size > 3*storetest.Chunk {
					parts[size-5] = []byte("the e")
					parts[2*storetest.Chunk-10] = storetest.Random(20, 2)
					parts[100*storetest.Chunk] = bytes.Repeat([]byte("text "), 2000)
				}
				image := storetest.WriteImage(t, size, parts)
				var last [2]int64
				p, err := s.Import(ctx, "alice", "box", image, store.CreateOptions{ChunkSize: storetest.Chunk, Crypto: suite, Compress: codec,
					Format: "raw", Progress: func(done, total int64) { last = [2]int64{done, total} }})
				if err != nil {
					t.Fatal(err)
				}
				if last != [2]int64{size, size} {
					t.Errorf("progress ended at %v of %d", last, size)
				}
				storetest.WantDisk(t, p, 0, image)
				storetest.WantSound(t, s)
			}
		}
	}
}

// The last chunk is filled up with zeros, whatever buffer it was read into.
func TestImportPadding(t *testing.T) {
	s := storetest.New(t)
	const size = 50*storetest.Chunk - 100
	p, err := s.Import(ctx, "alice", "box", storetest.WriteImage(t, size, map[int64][]byte{0: storetest.Random(size, 1)}), store.CreateOptions{ChunkSize: storetest.Chunk, Format: "raw"})
	if err != nil {
		t.Fatal(err)
	}
	storetest.WantChunk(t, p, 1, 49, string(storetest.Random(size, 1)[49*storetest.Chunk:]))
}

func TestImportFormats(t *testing.T) {
	if _, err := exec.LookPath("qemu-img"); err != nil {
		t.Skip("no qemu-img")
	}
	s := storetest.New(t)
	raw := storetest.WriteImage(t, 3<<20, map[int64][]byte{0: storetest.Random(5000, 1), 2 << 20: storetest.Random(100_000, 2)})
	dir := storetest.TempDir(t)
	qemuImg := func(args ...string) {
		t.Helper()
		if out, err := exec.Command("qemu-img", args...).CombinedOutput(); err != nil {
			t.Fatalf("qemu-img %v: %v: %s", args, err, out)
		}
	}
	for _, format := range []string{"raw", "qcow2", "vmdk", "vdi", "vhdx"} {
		image := filepath.Join(dir, "a:b,c."+format) // no protocol, no option
		qemuImg("convert", "-f", "raw", "-O", format, raw, image)
		p, err := s.Import(ctx, "alice", format, image, store.CreateOptions{})
		if err != nil {
			t.Errorf("%s: %v", format, err)
			continue
		}
		storetest.WantDisk(t, p, 1, raw)
	}
	// An image that is only part of one does not make the server read others.
	overlay := filepath.Join(dir, "overlay.qcow2")
	qemuImg("create", "-f", "qcow2", "-b", raw, "-F", "raw", overlay)
	if _, err := s.Import(ctx, "alice", "overlay", overlay, store.CreateOptions{}); !errors.Is(err, parcel.ErrUsage) || !strings.Contains(err.Error(), raw) {
		t.Errorf("overlay: got %v", err)
	}
	data := filepath.Join(dir, "data.qcow2")
	qemuImg("create", "-f", "qcow2", "-o", "data_file="+filepath.Join(dir, "data")+",data_file_raw=on", data, "1M")
	if _, err := s.Import(ctx, "alice", "data", data, store.CreateOptions{}); !errors.Is(err, parcel.ErrUsage) {
		t.Errorf("external data: got %v", err)
	}
	// The same bytes are a raw image too, if one says so.
	if _, err := s.Import(ctx, "alice", "bytes", overlay, store.CreateOptions{Format: "raw"}); err != nil {
		t.Errorf("qcow2 as raw: %v", err)
	}
	// Without qemu-img it is refused, raw is not.
	t.Setenv("PATH", dir)
	if _, err := s.Import(ctx, "alice", "x", filepath.Join(dir, "a:b,c.qcow2"), store.CreateOptions{}); !errors.Is(err, parcel.ErrUsage) {
		t.Errorf("qcow2 without qemu-img: got %v", err)
	}
	if _, err := s.Import(ctx, "alice", "y", raw, store.CreateOptions{}); err != nil {
		t.Errorf("raw without qemu-img: %v", err)
	}
	storetest.WantSound(t, s)
}

func TestImportRefused(t *testing.T) {
	s := storetest.New(t)
	image := storetest.WriteImage(t, 10*storetest.Chunk, map[int64][]byte{0: storetest.Random(10*storetest.Chunk, 1)})
	for name, c := range map[string]struct {
		image string
		o     store.CreateOptions
		want  error
	}{
		"no image":   {filepath.Join(storetest.TempDir(t), "x"), store.CreateOptions{Format: "raw"}, fs.ErrNotExist},
		"empty":      {storetest.WriteImage(t, 0, nil), store.CreateOptions{Format: "raw"}, parcel.ErrUsage},
		"small disk": {image, store.CreateOptions{Format: "raw", DiskSize: 10*storetest.Chunk - 1}, parcel.ErrUsage},
		"directory":  {storetest.TempDir(t), store.CreateOptions{Format: "raw"}, nil},
	} {
		_, err := s.Import(ctx, "alice", "box", c.image, c.o)
		if err == nil || c.want != nil && !errors.Is(err, c.want) {
			t.Errorf("%s: got %v, want %v", name, err, c.want)
		}
	}
	// Given up half-way, nothing is left.
	cancelled, cancel := context.WithCancel(ctx)
	_, err := s.Import(cancelled, "alice", "box", image, store.CreateOptions{Format: "raw", ChunkSize: storetest.Chunk,
		Progress: func(done, total int64) { cancel() }})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: got %v", err)
	}
	if names, _ := s.Parcels("alice"); len(names) != 0 {
		t.Errorf("parcels: got %v", names)
	}
	if _, files := du(t, s.UserAt("alice").Dir); files != 2 {
		t.Errorf("%d files are left, want authorized_keys and user.cfg", files)
	}
	// A larger disk than the image ends in zeros.
	p, err := s.Import(ctx, "alice", "box", image, store.CreateOptions{Format: "raw", DiskSize: 11 * storetest.Chunk})
	if err != nil {
		t.Fatal(err)
	}
	os.Truncate(image, 11*storetest.Chunk)
	storetest.WantDisk(t, p, 1, image)
	storetest.WantSound(t, s)
}

// 1 TiB of which three chunks are not holes: what is read is what is there.
func TestImportSparse(t *testing.T) {
	s := storetest.New(t)
	image := storetest.WriteImage(t, 1<<40, map[int64][]byte{5 << 20: storetest.Random(1000, 1), 1<<39 + 7: storetest.Random(1000, 2), 1<<40 - 3: []byte("end")})
	start := time.Now()
	p, err := s.Import(ctx, "alice", "box", image, store.CreateOptions{Format: "raw"})
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
	out, err := os.Create(filepath.Join(storetest.TempDir(t), "out"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	if err := export.Disk(ctx, p, out, 1, nil); err != nil {
		t.Fatal(err)
	}
	t.Logf("export: %v", time.Since(start))
	fi, _ := out.Stat()
	if got := fi.Sys().(*syscall.Stat_t).Blocks * 512; fi.Size() != 1<<40 || got > 1<<20 {
		t.Errorf("exported %d bytes in %d, want a sparse 1 TiB", fi.Size(), got)
	}
	for off, want := range map[int64][]byte{5 << 20: storetest.Random(1000, 1), 1<<39 + 7: storetest.Random(1000, 2), 1<<40 - 3: []byte("end")} {
		got := make([]byte, len(want))
		if _, err := out.ReadAt(got, off); err != nil && err != io.EOF || !bytes.Equal(got, want) {
			t.Errorf("at %d: differs, %v", off, err)
		}
	}
	storetest.WantSound(t, s)
}

func TestCopy(t *testing.T) {
	s := storetest.New(t)
	const size = 1 << 30
	image := storetest.WriteImage(t, size, map[int64][]byte{0: storetest.Random(20<<20, 1), size - 100: storetest.Random(100, 2)})
	p, err := s.Import(ctx, "alice", "gold", image, store.CreateOptions{Format: "raw", Src: []string{"SFTP://host/alice/gold"}})
	if err != nil {
		t.Fatal(err)
	}
	before, files := du(t, s.Root())
	l, err := p.Acquire("alice", "h", "id") // a held parcel can be copied
	if err != nil {
		t.Fatal(err)
	}
	q, err := s.Copy(ctx, "alice", "gold", "bob", "box")
	if err != nil {
		t.Fatal(err)
	}
	after, _ := du(t, s.Root())
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
	storetest.WantDisk(t, q, 1, image)
	// From here on they differ.
	keyroot, _ := stageChunk(t, p, 3, []byte("alice's"))
	if _, err := p.Commit(ctx, store.CommitRequest{Nonce: l.Nonce, Parent: 1, Keyroot: keyroot, ID: "c"}); err != nil {
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
	if err := export.Disk(ctx, r, mustCreate(t), 0, nil); err != nil {
		t.Error(err)
	}
	storetest.WantDisk(t, q, 1, image)
	if _, err := s.Copy(ctx, "alice", "gold", "bob", "third"); !errors.Is(err, parcel.ErrNoParcel) {
		t.Errorf("copy of nothing: got %v", err)
	}
	if _, err := s.Copy(ctx, "bob", "box", "bob", "box"); !errors.Is(err, parcel.ErrExists) {
		t.Errorf("copy onto itself: got %v", err)
	}
	if ps := storetest.WantSound(t, s); len(ps) != 0 {
		t.Errorf("notes: %v", ps)
	}
}

func mustCreate(t testing.TB) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(storetest.TempDir(t), "f"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// stageChunk is StageVersion for a parcel of any chunk size.
func stageChunk(t testing.TB, p *store.Parcel, n int64, data []byte) (seal.Ref, int) {
	t.Helper()
	c, err := p.Config()
	if err != nil {
		t.Fatal(err)
	}
	plain := make([]byte, c.ChunkSize)
	copy(plain, data)
	return storetest.StageVersion(t, p, storetest.Change{n: plain}, "")
}

// Without hard links a copy is a copy, verified.
func TestCopyObject(t *testing.T) {
	dir := storetest.TempDir(t)
	ref, sealed, err := seal.Sealer{Suite: seal.AES256SHA256, Codec: seal.None}.Seal([]byte("x"))
	if err != nil {
		t.Fatal(err)
	}
	from := filepath.Join(dir, "from")
	os.WriteFile(from, sealed, 0o400)
	if n, err := tree.CopyObject(from, filepath.Join(dir, "to"), ref.Tag); n != int64(len(sealed)) || err != nil {
		t.Errorf("got %d, %v", n, err)
	}
	if _, err := tree.CopyObject(from, filepath.Join(dir, "to2"), seal.Tag(storetest.Random(32, 1))); !errors.Is(err, parcel.ErrDamaged) {
		t.Errorf("wrong tag: got %v", err)
	}
}

// What an administrator sees with shell tools alone.
func TestShellTools(t *testing.T) {
	s := storetest.New(t)
	p, err := s.Import(ctx, "alice", "box", storetest.WriteImage(t, 4<<20, map[int64][]byte{0: storetest.Random(4<<20, 1)}), store.CreateOptions{Format: "raw"})
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
	storetest.Flip(t, filepath.Join(p.HdkDir(), tree.ObjectName(im.Ref.Tag)))
	sh = exec.Command("sh", "-c", `find hdk -type f | awk -F/ '{print $3"  "$0}' | sha256sum --quiet -c -`)
	sh.Dir = p.ContentDir()
	if out, err := sh.CombinedOutput(); err == nil {
		t.Errorf("a flipped bit is not seen: %s", out)
	}
	// The tree can be copied with tar, and is as good at the other place.
	unflip := filepath.Join(p.HdkDir(), tree.ObjectName(im.Ref.Tag))
	storetest.Flip(t, unflip)
	other := storetest.TempDir(t)
	if out, err := exec.Command("sh", "-c", "tar -C "+s.Root()+" -cf - . | tar -C "+other+" -xpf -").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	moved, err := store.Open(other)
	if err != nil {
		t.Fatal(err)
	}
	if ps := storetest.WantSound(t, moved); len(ps) != 0 {
		t.Errorf("notes: %v", ps)
	}
}

func TestDelParcel(t *testing.T) {
	s := storetest.New(t)
	p := storetest.NewParcel(t, s)
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
	if ps := storetest.WantSound(t, s); len(ps) != 0 {
		t.Errorf("notes: %v", ps)
	}
	if err := s.DelUser("alice"); err != nil {
		t.Error(err)
	}
}
