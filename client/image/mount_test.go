package image

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"isr/client/fusefs"
	"isr/store/seal"
)

// tool runs a script in a child process: this process serves the mount and
// must not touch it.
func tool(t testing.TB, script string, env ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "sh", "-ec", script)
	cmd.Env = append(append(os.Environ(), "LC_ALL=C"), env...)
	cmd.Dir = t.TempDir() // fio leaves files
	cmd.WaitDelay = 5 * time.Second
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", script, err, out)
	}
	return strings.TrimSpace(string(out))
}

func needTools(t testing.TB, names ...string) {
	t.Helper()
	f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		t.Skip("no FUSE here: ", err)
	}
	f.Close()
	for _, name := range names {
		if _, err := exec.LookPath(name); err != nil {
			t.Skip(err)
		}
	}
}

func mountImage(t testing.TB, im *Image) *fusefs.Mount {
	t.Helper()
	m, err := fusefs.New(t.TempDir(), map[string]fusefs.Image{"disk": im}, map[string]func() []byte{
		"disk": func() []byte { b, _ := json.Marshal(im.Snapshot()); return b }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	return m
}

// TestThroughTheMount has real programs write and verify, then seals what they
// left and reads it back from the new version on another mount.
func TestThroughTheMount(t *testing.T) {
	needTools(t, "qemu-io", "fio", "cmp")
	const size, chunk = 40<<20 + 4096, 128 << 10
	plain := randomBytes(size)
	clear(plain[20<<20 : 30<<20])
	o := new(objects)
	dir := t.TempDir()
	tree := pristineTree(t, o, plain, size, chunk)
	im := newTestImage(t, dir, o, tree, size, chunk)
	m := mountImage(t, im)
	same := filepath.Join(t.TempDir(), "same")
	if err := os.WriteFile(same, plain, 0o600); err != nil {
		t.Fatal(err)
	}
	env := []string{"DISK=" + m.Dir() + "/disk", "SAME=" + same, "D=" + m.Dir()}
	tool(t, "cmp $DISK $SAME", env...)
	// The same writes to both, of all sizes and alignments, then compared.
	tool(t, `for f in $DISK $SAME; do qemu-io -f raw -t none \
		-c 'write -P 1 0 512' -c 'write -P 2 1M 3M' -c 'write -P 3 20M 64k' -c 'write -P 4 41943040 4096' \
		-c 'aio_write -P 5 10M 1M' -c 'aio_write -P 6 12M 4k' -c 'aio_flush' -c 'write -z 5M 1M' -c flush \
		-c 'read -P 2 1M 3M' -c 'read -P 0 5M 1M' -c 'read -P 6 12M 4k' $f; done >/dev/null
	for f in $DISK $SAME; do
		printf 'some bytes' | dd of=$f bs=1 seek=7000001 conv=notrunc status=none
		printf 'more bytes' | dd of=$f bs=7 oflag=seek_bytes seek=25000003 conv=notrunc,fsync status=none
	done
	cmp $DISK $SAME
	dd if=$DISK iflag=direct bs=1M status=none | cmp - $SAME`, env...)
	tool(t, `fio --name=v --filename=$DISK --size=16M --offset=8M --rw=randwrite --bsrange=512-64k --direct=0 \
		--verify=crc32c --verify_fatal=1 --do_verify=1 --fsync=64 --ioengine=psync --numjobs=1 --output-format=terse >/dev/null`, env...)
	sum := tool(t, "sha256sum <$DISK", env...)
	var st Stats
	if err := json.Unmarshal([]byte(tool(t, "cat $D/stats/disk", env...)), &st); err != nil {
		t.Fatal(err)
	}
	if st.Size != size || st.Modified == 0 || st.Flushes == 0 || st.Fetched == 0 || st.Fetched != 241 {
		t.Errorf("counters: %+v", st)
	}
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	err := im.Seal(t.Context(), func(_ context.Context, n int64, ref seal.Ref, sealed []byte) error {
		if sealed != nil {
			o.Put(context.Background(), ref.Tag, sealed)
		}
		tree.Set(n, ref)
		return nil
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tree.Flush(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	m = mountImage(t, newTestImage(t, t.TempDir(), o, tree, size, chunk))
	if got := tool(t, "sha256sum <$DISK", "DISK="+m.Dir()+"/disk"); got != sum {
		t.Errorf("the new version reads as %s, want %s", got, sum)
	}
}

// TestStallThroughTheMount: while one reader waits for the network, others
// read what is here, and writers write and sync.
func TestStallThroughTheMount(t *testing.T) {
	needTools(t, "cmp")
	const size, chunk = 16 << 20, 128 << 10
	plain := randomBytes(size)
	o := new(objects)
	tree := pristineTree(t, o, plain, size, chunk)
	im := newTestImage(t, t.TempDir(), o, tree, size, chunk)
	m := mountImage(t, im)
	disk := m.Dir() + "/disk"
	tool(t, "dd if=$DISK of=/dev/null bs=1M count=4 status=none", "DISK="+disk)
	arrived, back := make(chan struct{}, 1000), make(chan struct{})
	o.setHook(func(ctx context.Context, _ seal.Tag, p []byte) ([]byte, error) {
		arrived <- struct{}{}
		select {
		case <-back:
			return p, nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	})
	stuck := exec.Command("dd", "if="+disk, "bs=1M", "skip=8", "status=none")
	var out bytes.Buffer
	stuck.Stdout = &out
	if err := stuck.Start(); err != nil {
		t.Fatal(err)
	}
	<-arrived
	tool(t, `dd if=$DISK of=/dev/null bs=1M count=4 iflag=direct status=none
		dd if=/dev/zero of=$DISK bs=64k seek=80 count=4 conv=notrunc,fsync status=none
		dd if=$DISK of=/dev/null bs=64k skip=80 count=4 iflag=direct status=none`, "DISK="+disk)
	close(back)
	if err := stuck.Wait(); err != nil {
		t.Error(err)
	}
	if !bytes.Equal(out.Bytes(), plain[8<<20:]) {
		t.Error("the reader that waited got something else")
	}
}

// guestMain is a guest's memory: a private mapping of a file, touched, changed
// and written out as it is told.
func guestMain() {
	die := func(err error) {
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
	}
	f, err := os.Open(os.Args[1])
	die(err)
	st, err := f.Stat()
	die(err)
	mem, err := unix.Mmap(int(f.Fd()), 0, int(st.Size()), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE)
	die(err)
	sum := 0
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		var page int
		var name string
		switch text := in.Text(); {
		case scan(text, "touch %d", &page):
			sum += int(mem[page*4096])
		case scan(text, "change %d", &page):
			mem[page*4096+100]++
		case scan(text, "dump %s", &name):
			die(os.WriteFile(name, mem, 0o600))
		case scan(text, "half %s", &name):
			die(os.WriteFile(name, mem[:len(mem)/2], 0o600))
		}
		fmt.Println("ok")
	}
	fmt.Fprintln(os.Stderr, "touched", sum)
	os.Exit(0)
}

func scan(text, format string, to any) bool {
	n, _ := fmt.Sscanf(text, format, to)
	return n == 1
}

// TestSaveOfAPrivateMapping is a suspend as a VMM does it, by way of a real
// mount: touch, change, save; once given up and gone on with, then in earnest.
func TestSaveOfAPrivateMapping(t *testing.T) {
	needTools(t)
	for _, preload := range []bool{false, true} {
		t.Run(fmt.Sprintf("preload=%v", preload), func(t *testing.T) { saveMapping(t, preload) })
	}
}

func saveMapping(t *testing.T, preload bool) {
	const pages, chunk = 4096, 128 << 10
	const size = pages * 4096
	plain := randomBytes(size)
	o := new(objects)
	tree := pristineTree(t, o, plain, size, chunk)
	dir := t.TempDir()
	im := newTestImage(t, dir, o, tree, size, chunk)
	m := mountImage(t, im)
	cmd := exec.Command(os.Args[0], m.Dir()+"/disk")
	cmd.Env = append(os.Environ(), "IMAGE_HELPER=guest")
	in, _ := cmd.StdinPipe()
	out, _ := cmd.StdoutPipe()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	r := bufio.NewReader(out)
	tell := func(format string, args ...any) {
		t.Helper()
		fmt.Fprintf(in, format+"\n", args...)
		if line, err := r.ReadString('\n'); err != nil || line != "ok\n" {
			t.Fatalf("guest: %q, %v", line, err)
		}
	}
	defer cmd.Wait()
	defer in.Close()
	model := bytes.Clone(plain)
	rng := rand.New(rand.NewPCG(5, 5))
	for round := range 3 {
		for range 60 {
			page := rng.IntN(pages / 4)
			tell("touch %d", page)
			if rng.IntN(3) == 0 {
				tell("change %d", page)
				model[page*4096+100]++
			}
		}
		gets := o.count()
		if err := im.BeginSave(); err != nil {
			t.Fatal(err)
		}
		zeros := make([]byte, 1<<20)
		for off, n := range im.Unasked() {
			if !preload {
				break
			}
			if err := m.Preload("disk", zeros[:n], off); err != nil {
				t.Fatal(err)
			}
		}
		name := filepath.Join(t.TempDir(), "dump")
		tell("dump %s", name)
		dump, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		w := im.Pages()
		for off := int64(0); off < size; off += 4096 {
			if im.Asked(off, 4096) {
				if _, err := w.WriteAt(dump[off:off+4096], off); err != nil {
					t.Fatal(err)
				}
			}
		}
		if !im.Asked(0, size/4) || im.Asked(size/2+1<<20, size/2-1<<20) {
			t.Error("the test proves nothing: all pages or none were asked for")
		}
		// What the kernel had read ahead of the last touch may still have been
		// on its way when the save began.
		if got := o.count(); got > gets+4 {
			t.Errorf("round %d: saving fetched %d objects", round, got-gets)
		}
		if round == 2 {
			if err := im.EndSave(t.Context()); err != nil {
				t.Fatal(err)
			}
			continue
		}
		im.CancelSave()
		if err := m.Invalidate("disk"); err != nil {
			t.Fatal(err)
		}
		name += ".again" // the guest runs on, and sees what it should
		tell("half %s", name)
		if dump, err = os.ReadFile(name); err != nil || !bytes.Equal(dump, model[:size/2]) {
			t.Fatalf("round %d: the guest that ran on sees something else (%v)", round, err)
		}
	}
	in.Close()
	cmd.Wait()
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	im.Close()
	if err := im.overlay.Close(); err != nil {
		t.Fatal(err)
	}
	im = newTestImage(t, dir, o, tree, size, chunk)
	if got := readAll(t, im); !bytes.Equal(got, model) {
		t.Error("the saved image differs from the guest's memory")
	}
	if st := im.Snapshot(); st.Modified == 0 || st.Modified > 60 {
		t.Errorf("%d chunks modified", st.Modified)
	}
}

// BenchmarkMount measures the whole path with fio and dd, and a plain file on
// the same disk beside it.
func BenchmarkMount(b *testing.B) {
	needTools(b, "fio", "dd")
	const size, chunk = 128 << 20, 128 << 10
	plain := make([]byte, size)
	for i := 0; i < size; i += 64 { // halves under compression, as a disk does
		copy(plain[i:], randomBytes(32))
	}
	o := new(objects)
	tree := pristineTree(b, o, plain, size, chunk)
	sameDir := b.TempDir()
	if err := os.WriteFile(sameDir+"/disk", plain, 0o600); err != nil {
		b.Fatal(err)
	}
	fio := func(dir, args string) map[string]float64 {
		out := tool(b, "fio --name=j --filename=$D/disk --size=128M --output-format=json --ioengine=psync "+args, "D="+dir)
		var r struct {
			Jobs []struct {
				Read, Write struct {
					BW   float64 `json:"bw_bytes"`
					IOPS float64
				}
			}
		}
		if err := json.Unmarshal([]byte(out), &r); err != nil {
			b.Fatal(err)
		}
		j := r.Jobs[0]
		return map[string]float64{"MB/s": (j.Read.BW + j.Write.BW) / 1e6, "IOPS": j.Read.IOPS + j.Write.IOPS}
	}
	for _, tt := range []struct{ name, args string }{
		{"seqread1M", "--rw=read --bs=1M --invalidate=1"},
		{"seqread1M-again-direct", "--rw=read --bs=1M --direct=1"},
		{"randread4k-direct", "--rw=randread --bs=4k --direct=1 --runtime=3 --time_based"},
		{"randread4k-cached", "--rw=randread --bs=4k --invalidate=0 --runtime=3 --time_based"},
		{"seqwrite1M", "--rw=write --bs=1M --end_fsync=1"},
		{"seqwrite1M-again", "--rw=write --bs=1M --end_fsync=1"},
		{"randwrite4k", "--rw=randwrite --bs=4k --runtime=3 --time_based"},
		{"randwrite4k-fsync", "--rw=randwrite --bs=4k --fsync=1 --runtime=3 --time_based"},
		{"seqread1M-modified", "--rw=read --bs=1M --invalidate=1"},
	} {
		b.Run(tt.name, func(b *testing.B) {
			for i := range b.N {
				if i > 0 {
					continue
				}
				for metric, v := range fio(sameDir, tt.args) {
					b.ReportMetric(v, "file-"+metric)
				}
				im, m := benchMount(b, o, tree, size, chunk, tt.name)
				tool(b, "echo 3 >/proc/sys/vm/drop_caches || true")
				for metric, v := range fio(m.Dir(), tt.args) {
					b.ReportMetric(v, "isr-"+metric)
				}
				st := im.Snapshot()
				b.ReportMetric(float64(st.ReadBytes+st.WrittenBytes)/float64(max(1, st.Reads+st.Writes)), "B/request")
			}
		})
	}
}

func benchMount(b *testing.B, o *objects, tree Refs, size int64, chunk int, name string) (*Image, *fusefs.Mount) {
	dir := b.TempDir()
	ov, err := OpenOverlay(dir, "test", size, chunk, testKey)
	if err != nil {
		b.Fatal(err)
	}
	im := New(Config{Name: "test", Size: size, ChunkSize: chunk, Sealer: testSealer, Refs: tree, Getter: o, Overlay: ov, CacheBytes: 64 << 20})
	if strings.Contains(name, "again") || strings.Contains(name, "modified") {
		p := make([]byte, 1<<20)
		for off := int64(0); off < size; off += 1 << 20 {
			if strings.Contains(name, "read1M-again") {
				im.ReadAt(context.Background(), p, off)
			} else {
				im.WriteAt(context.Background(), p, off)
			}
		}
		im.Flush(context.Background())
	}
	b.Cleanup(func() { im.Close(); ov.Close() })
	return im, mountImage(b, im)
}
