package diskimage

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"isr/store/parcel"
)

var ctx = context.Background()

const diskSize = 4 << 20

// rawDisk is a sparse disk with some data, and its content.
func rawDisk(t testing.TB) (name string, content []byte) {
	t.Helper()
	content = make([]byte, diskSize)
	r := rand.NewChaCha8([32]byte{1})
	r.Read(content[1<<20 : 1<<20+300_000])
	copy(content[diskSize-3:], "end")
	name = filepath.Join(t.TempDir(), "disk.raw")
	if err := os.WriteFile(name, content, 0o600); err != nil {
		t.Fatal(err)
	}
	return name, content
}

func needQemu(t testing.TB) {
	t.Helper()
	if _, err := exec.LookPath("qemu-img"); err != nil {
		if os.Getenv("ISR_TEST_REQUIRE") == "1" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
}

// qemu runs qemu-img in the directory of its last argument.
func qemu(t testing.TB, args ...string) {
	t.Helper()
	if out, err := exec.Command("qemu-img", args...).CombinedOutput(); err != nil {
		t.Fatalf("qemu-img %v: %v: %s", args, err, out)
	}
}

// contentOf is the disk of an image.
func contentOf(t testing.TB, im *Image) []byte {
	t.Helper()
	dir := t.TempDir()
	f, copied, err := im.Raw(ctx, dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	got := make([]byte, im.Size)
	if n, err := f.ReadAt(got, 0); err != nil && (err != io.EOF || int64(n) < im.Size) {
		t.Fatal(err)
	}
	if copied == (im.node == nil) {
		t.Errorf("copied: got %v", copied)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	return got
}

// Every format, as qemu-img writes it, is found out and read; and what Write
// makes is read back.
func TestFormats(t *testing.T) {
	needQemu(t)
	raw, want := rawDisk(t)
	for _, c := range []struct{ format, options, is string }{
		{"raw", "", "raw"}, {"qcow2", "", "qcow2"}, {"qcow2", "compat=0.10", "qcow2"}, {"qcow", "", "qcow"}, {"qed", "", "qed"}, {"vdi", "", "vdi"},
		{"vdi", "static=on", "vdi"}, {"vhdx", "", "vhdx"}, {"vpc", "force_size=on", "vpc"}, {"vpc", "subformat=fixed,force_size=on", "vpc"},
		{"vmdk", "subformat=monolithicSparse", "vmdk"}, {"vmdk", "subformat=monolithicFlat", "vmdk"},
		{"vmdk", "subformat=twoGbMaxExtentSparse", "vmdk"}, {"vmdk", "subformat=twoGbMaxExtentFlat", "vmdk"},
		{"vmdk", "subformat=streamOptimized", "vmdk"}, {"parallels", "", "parallels"},
	} {
		name := filepath.Join(t.TempDir(), "a:b,c=d.img") // no protocol, no option
		args := []string{"convert", "-f", "raw", "-O", c.format}
		if c.options != "" {
			args = append(args, "-o", c.options)
		}
		qemu(t, append(args, raw, name)...)
		im, err := Open(ctx, name, Options{})
		if err != nil {
			// A description names its extents after itself.
			if strings.Contains(c.options, "lat") || strings.Contains(c.options, "twoGb") {
				name = filepath.Join(t.TempDir(), "plain.vmdk")
				qemu(t, append(args, raw, name)...)
				im, err = Open(ctx, name, Options{})
			}
		}
		if err != nil {
			t.Errorf("%s %s: %v", c.format, c.options, err)
			continue
		}
		if im.Format != c.is || im.Size < diskSize {
			t.Errorf("%s %s: got %s of %d bytes", c.format, c.options, im.Format, im.Size)
		}
		if got := contentOf(t, im); !bytes.Equal(got[:diskSize], want) || bytes.Trim(got[diskSize:], "\x00") != nil && len(bytes.Trim(got[diskSize:], "\x00")) > 0 {
			t.Errorf("%s %s: the content differs", c.format, c.options)
		}
	}
	for _, format := range Output() {
		name := filepath.Join(t.TempDir(), "out"+Ext(format))
		if err := os.WriteFile(name, []byte("what was there"), 0o600); err != nil {
			t.Fatal(err)
		}
		var last, total int64
		if err := Write(ctx, raw, name, format, func(done, of int64) { last, total = done, of }); err != nil {
			t.Errorf("write %s: %v", format, err)
			continue
		}
		if last != total || total != diskSize {
			t.Errorf("write %s: progress ended at %d of %d", format, last, total)
		}
		im, err := Open(ctx, name, Options{})
		if err != nil {
			t.Errorf("%s: %v", format, err)
			continue
		}
		if got := contentOf(t, im); im.Format != format || !bytes.Equal(got, want) {
			t.Errorf("%s: it is read as %s of %d bytes, or differs", format, im.Format, im.Size)
		}
	}
	for _, f := range []string{"", "ova", "RAW", "-O", "qcow2,x"} {
		if got, err := CheckOutput(f); err == nil {
			t.Errorf("output format %q: got %s", f, got)
		}
	}
	if f, err := CheckOutput("vhd"); f != "vpc" || err != nil || Ext("vhd") != ".vhd" {
		t.Errorf("vhd: got %s, %v", f, err)
	}
}

// An image makes nobody read what is not in it or beside it, waits for nobody,
// and cannot be larger than a parcel. No error leaves anything behind.
func TestHostile(t *testing.T) {
	needQemu(t)
	raw, _ := rawDisk(t)
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, bytes.Repeat([]byte("secret!!"), 64), 0o600); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	write := func(name, content string) string {
		t.Helper()
		name = filepath.Join(dir, name)
		if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return name
	}
	extent := func(line string) string {
		return "# Disk DescriptorFile\nversion=1\nCID=12345678\nparentCID=ffffffff\ncreateType=\"monolithicFlat\"\n" + line + "\n"
	}
	os.Symlink(secret, filepath.Join(dir, "link-flat.vmdk"))
	fifo := filepath.Join(dir, "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	overlay, data, huge := filepath.Join(dir, "overlay"), filepath.Join(dir, "data"), filepath.Join(dir, "huge")
	qemu(t, "create", "-f", "qcow2", "-b", secret, "-F", "raw", overlay)
	qemu(t, "create", "-f", "qcow2", "-o", "data_file="+filepath.Join(dir, "datafile")+",data_file_raw=on", data, "1M")
	qemu(t, "create", "-f", "qcow2", "-o", "cluster_size=2M", huge, "2048T")
	grain := filepath.Join(dir, "grain.vmdk")
	qemu(t, "convert", "-f", "raw", "-O", "vmdk", raw, grain)
	b, err := os.ReadFile(grain)
	if err != nil {
		t.Fatal(err)
	}
	binary.LittleEndian.PutUint64(b[12:], 0) // then qemu looks for a description in it
	for name, c := range map[string]struct {
		path    string
		options Options
		want    error
		says    string
	}{
		"extent elsewhere":       {write("a.vmdk", extent(`RW 1 FLAT "`+secret+`" 0`)), Options{}, parcel.ErrUsage, secret},
		"extent after tabs":      {write("j.vmdk", extent("\tRW\t1\tFLAT\t\""+secret+"\"\t0")), Options{}, parcel.ErrUsage, secret},
		"extent by dots":         {write("b.vmdk", extent(`RW 1 FLAT "../x/secret" 0`)), Options{}, parcel.ErrUsage, "another file"},
		"extent linked":          {write("c.vmdk", extent(`RW 1 FLAT "link-flat.vmdk" 0`)), Options{}, parcel.ErrUsage, "link-flat"},
		"extent of a protocol":   {write("d.vmdk", extent(`RW 1 FLAT "nbd://127.0.0.1:1/x" 0`)), Options{}, parcel.ErrUsage, "nbd:"},
		"extent of json":         {write("e.vmdk", extent(`RW 1 FLAT "json:{\"file\":{\"driver\":\"file\",\"filename\":\"`+secret+`\"}}" 0`)), Options{}, parcel.ErrUsage, "json"},
		"extent after a return":  {write("f.vmdk", extent("x\rRW 1 FLAT \""+secret+"\" 0")), Options{}, nil, ""},
		"extent that waits":      {write("g.vmdk", extent(`RW 1 FLAT "fifo" 0`)), Options{}, parcel.ErrUsage, "fifo"},
		"extent missing":         {write("h.vmdk", extent(`RW 1 FLAT "nothing" 0`)), Options{}, os.ErrNotExist, ""},
		"description in a grain": {write("i.vmdk", string(b)), Options{}, parcel.ErrUsage, "no capacity"},
		"backing file":           {overlay, Options{}, parcel.ErrUsage, secret},
		"data file":              {data, Options{}, parcel.ErrUsage, "another file"},
		"2 PiB":                  {huge, Options{}, parcel.ErrUsage, "2251799813685248 bytes"},
		"FIFO":                   {fifo, Options{}, parcel.ErrUsage, "neither"},
		"directory":              {dir, Options{}, parcel.ErrUsage, "neither"},
		"terminal":               {"/dev/null", Options{}, parcel.ErrUsage, "neither"},
		"nothing":                {filepath.Join(dir, "none"), Options{}, os.ErrNotExist, ""},
		"empty":                  {write("empty", ""), Options{}, parcel.ErrUsage, "0 bytes"},
		"cut short":              {write("short", "QFI\xfb\x00\x00\x00\x03"), Options{}, nil, "qemu-img"},
		"no such format":         {raw, Options{Format: "nbd"}, parcel.ErrUsage, "want one of"},
		"format with options":    {raw, Options{Format: "raw,offset=1"}, parcel.ErrUsage, "want one of"},
		"not that format":        {raw, Options{Format: "vdi"}, nil, "qemu-img"},
		"no archive":             {raw, Options{DiskFile: "x"}, parcel.ErrUsage, "no OVA"},
		"not an archive":         {raw, Options{Format: "ova"}, nil, ""},
	} {
		im, err := Open(ctx, c.path, c.options)
		if err == nil {
			t.Errorf("%s: taken, as %+v", name, im)
			continue
		}
		if c.want != nil && !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: got %v, want %v that says %q", name, err, c.want, c.says)
		}
		if strings.Contains(err.Error(), "secret!!") {
			t.Errorf("%s: it tells what is in the other file: %v", name, err)
		}
	}
	// A guest that writes such a header on its own disk gains nothing either:
	// said to be raw it is raw.
	im, err := Open(ctx, overlay, Options{Format: "raw"})
	if err != nil {
		t.Fatal(err)
	}
	if got := contentOf(t, im); !bytes.HasPrefix(got, []byte("QFI\xfb")) {
		t.Error("qcow2 as raw: it is not its bytes")
	}
	// No room.
	qcow2 := filepath.Join(dir, "q")
	qemu(t, "convert", "-f", "raw", "-O", "qcow2", raw, qcow2)
	if err := room(dir, 1<<60); !errors.Is(err, parcel.ErrFull) {
		t.Errorf("room for 2^60 bytes: got %v", err)
	}
	// Given up, nothing is left.
	if im, err = Open(ctx, qcow2, Options{}); err != nil {
		t.Fatal(err)
	}
	cancelled, cancel := context.WithCancel(ctx)
	cancel()
	temp := t.TempDir()
	if _, _, err := im.Raw(cancelled, temp, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: got %v", err)
	}
	if left, _ := os.ReadDir(temp); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	// Without qemu-img only what needs it is refused.
	t.Setenv("PATH", temp)
	if _, err := Open(ctx, qcow2, Options{}); !errors.Is(err, parcel.ErrUsage) {
		t.Errorf("without qemu-img: got %v", err)
	}
	if _, err := Open(ctx, raw, Options{}); err != nil {
		t.Errorf("raw without qemu-img: %v", err)
	}
}

// qemu-img leads a session of its own: on the terminal of who has it run, it
// could type.
func TestNoTerminal(t *testing.T) {
	dir := t.TempDir()
	script := "#!/bin/sh\nread -r pid comm state ppid pgrp session rest </proc/$$/stat\ntest \"$session\" = $$ && ! true </dev/tty && echo alone\n"
	if err := os.WriteFile(filepath.Join(dir, "qemu-img"), []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir)
	if out, err := qemuImg(ctx, nil, "info"); string(out) != "alone\n" || err != nil {
		t.Errorf("%q, %v", out, err)
	}
}

// entry is a member of an archive.
type entry struct {
	name, content string
	header        tar.Header
}

func archive(t testing.TB, entries ...entry) string {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "machine.ova"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	w := tar.NewWriter(f)
	for _, e := range entries {
		h := e.header
		h.Name, h.Mode = e.name, 0o600
		if h.Typeflag == 0 {
			h.Size = int64(len(e.content))
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == 0 {
			io.WriteString(w, e.content)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return f.Name()
}

// ovfText describes a machine whose disks are in these files, in the order of
// their numbers.
func ovfText(files ...string) string {
	var refs, disks, items strings.Builder
	for i, f := range files {
		fmt.Fprintf(&refs, `<File ovf:id="file%d" ovf:href="%s" ovf:size="1"/>`, i, f)
		fmt.Fprintf(&disks, `<Disk ovf:capacity="4194304" ovf:diskId="vmdisk%d" ovf:fileRef="file%d"/>`, i, i)
		// The machine has them the other way round.
		n := len(files) - 1 - i
		fmt.Fprintf(&items, `<Item><rasd:HostResource>ovf:/disk/vmdisk%d</rasd:HostResource><rasd:ResourceType>17</rasd:ResourceType></Item>`, n)
	}
	return `<?xml version="1.0"?><Envelope xmlns="http://schemas.dmtf.org/ovf/envelope/1" xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1" xmlns:rasd="http://x">
<References>` + refs.String() + `</References><DiskSection><Info>x</Info>` + disks.String() + `</DiskSection>
<VirtualSystem ovf:id="box"><Name>Gold &#10;box</Name><VirtualHardwareSection>
<Item><rasd:AllocationUnits>byte * 2^20</rasd:AllocationUnits><rasd:ResourceType>4</rasd:ResourceType><rasd:VirtualQuantity>512</rasd:VirtualQuantity></Item>` +
		items.String() + `</VirtualHardwareSection></VirtualSystem></Envelope>`
}

func TestOVA(t *testing.T) {
	needQemu(t)
	raw, want := rawDisk(t)
	vmdk := filepath.Join(t.TempDir(), "d.vmdk")
	qemu(t, "convert", "-f", "raw", "-O", "vmdk", "-o", "subformat=streamOptimized", raw, vmdk)
	b, err := os.ReadFile(vmdk)
	if err != nil {
		t.Fatal(err)
	}
	disk := string(b)
	ovf := ovfText("d.vmdk")
	sum := func(name, content string) string {
		return fmt.Sprintf("SHA256(%s)= %x\n", name, sha256.Sum256([]byte(content)))
	}
	good := archive(t, entry{name: "box.ovf", content: ovf}, entry{name: "box.mf", content: sum("box.ovf", ovf) + sum("d.vmdk", disk)}, entry{name: "d.vmdk", content: disk})
	im, err := Open(ctx, good, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if im.Format != "vmdk" || im.Size != diskSize || im.Memory != 512<<20 || im.Name != parcel.Clean("Gold \nbox") {
		t.Errorf("got %+v", im)
	}
	if got := contentOf(t, im); !bytes.Equal(got, want) {
		t.Error("the disk differs")
	}
	// Names are only names: none becomes a path. A raw disk does, too.
	up := "../../etc/passwd"
	for name, content := range map[string]string{up: disk, "/d.img": string(want)} {
		im, err := Open(ctx, archive(t, entry{name: "x.ovf", content: ovfText(name)}, entry{name: name, content: content}), Options{})
		if err != nil {
			t.Errorf("%s: %v", name, err)
		} else if got := contentOf(t, im); !bytes.Equal(got, want) {
			t.Errorf("%s: the disk differs", name)
		}
	}
	// Two disks: which one must be said.
	two := archive(t, entry{name: "x.ovf", content: ovfText("a.img", "b.img")}, entry{name: "a.img", content: string(want)}, entry{name: "b.img", content: strings.Repeat("b", 4096)})
	_, err = Open(ctx, two, Options{})
	var e *parcel.Error
	if !errors.As(err, &e) || !strings.Contains(e.Msg, "b.img, a.img") || !strings.Contains(e.Hint, "--disk-file b.img") {
		t.Errorf("two disks: got %v", err)
	}
	if im, err := Open(ctx, two, Options{DiskFile: "b.img"}); err != nil || im.Size != 4096 {
		t.Errorf("the second: got %+v, %v", im, err)
	}
	if _, err := Open(ctx, two, Options{DiskFile: "c.img"}); !errors.Is(err, parcel.ErrUsage) {
		t.Errorf("no such disk: got %v", err)
	}
	// What the manifest does not say, and what it says otherwise.
	bad := archive(t, entry{name: "box.ovf", content: ovf}, entry{name: "box.mf", content: sum("d.vmdk", disk+"x")}, entry{name: "d.vmdk", content: disk})
	if im, err = Open(ctx, bad, Options{}); err != nil {
		t.Fatal(err)
	}
	if _, _, err := im.Raw(ctx, t.TempDir(), nil); !errors.Is(err, parcel.ErrDamaged) {
		t.Errorf("wrong sum: got %v", err)
	}
	flat := "# Disk DescriptorFile\nRW 1 FLAT \"/etc/passwd\" 0\n"
	for name, entries := range map[string][]entry{
		"no description":      {{name: "d.vmdk", content: disk}},
		"no disk":             {{name: "x.ovf", content: ovf}},
		"disk is a link":      {{name: "x.ovf", content: ovf}, {name: "d.vmdk", header: tar.Header{Typeflag: tar.TypeSymlink, Linkname: "/etc/passwd"}}},
		"disk is a hard link": {{name: "x.ovf", content: ovf}, {name: "d.vmdk", header: tar.Header{Typeflag: tar.TypeLink, Linkname: "x.ovf"}}},
		"disk twice":          {{name: "x.ovf", content: ovf}, {name: "d.vmdk", content: disk}, {name: "d.vmdk", content: "other"}},
		"disk described":      {{name: "x.ovf", content: ovf}, {name: "d.vmdk", content: flat}},
		"disk empty":          {{name: "x.ovf", content: ovf}, {name: "d.vmdk"}},
		"no XML":              {{name: "x.ovf", content: "<"}, {name: "d.vmdk", content: disk}},
		"no machine":          {{name: "x.ovf", content: "<Envelope/>"}, {name: "d.vmdk", content: disk}},
		"bad manifest":        {{name: "x.ovf", content: ovf}, {name: "x.mf", content: "SHA256(d.vmdk)= 00"}, {name: "d.vmdk", content: disk}},
		"compressed":          {{name: "x.ovf", content: strings.Replace(ovf, `ovf:size="1"`, `ovf:size="1" ovf:compression="gzip"`, 1)}, {name: "d.vmdk", content: disk}},
		"long description":    {{name: "x.ovf", content: strings.Repeat(" ", maxText+1)}, {name: "d.vmdk", content: disk}},
	} {
		if im, err := Open(ctx, archive(t, entries...), Options{Format: "ova"}); err == nil {
			t.Errorf("%s: taken, as %+v", name, im)
		} else if k := parcel.KindOf(err); k != parcel.Usage && k != parcel.Damaged {
			t.Errorf("%s: got %v of kind %d", name, err, k)
		}
	}
	// A tar archive that a guest wrote on its disk is what is on its disk.
	if im, err := Open(ctx, archive(t, entry{name: "notes", content: "x"}, entry{name: "x.ovf", content: ovf}), Options{}); err != nil || im.Format != "raw" {
		t.Errorf("a guest's archive: got %+v, %v", im, err)
	}
	// Cut off in the disk.
	b, err = os.ReadFile(good)
	if err != nil {
		t.Fatal(err)
	}
	short := filepath.Join(t.TempDir(), "short.ova")
	os.WriteFile(short, b[:len(b)/2], 0o600)
	if _, err := Open(ctx, short, Options{}); !errors.Is(err, parcel.ErrDamaged) {
		t.Errorf("cut off: got %v", err)
	}
}

func TestQuantity(t *testing.T) {
	for _, c := range []struct {
		number, units string
		want          int64
	}{{"512", "byte * 2^20", 512 << 20}, {"512", "MegaBytes", 512 << 20}, {"512", "", 512 << 20}, {"1", "byte*2^30", 1 << 30}, {"2", "GigaBytes", 2 << 30},
		{"4096", "byte", 4096}, {"8", "KiloBytes", 8 << 10}, {"-1", "byte", 0}, {"", "byte", 0}, {"9223372036854775808", "byte", 0}, {"1", "byte * 2^63", 0}, {"99", "byte * 2^99", 0}} {
		if got := quantity(c.number, c.units); got != c.want {
			t.Errorf("%s %s: got %d, want %d", c.number, c.units, got, c.want)
		}
	}
}

// FuzzOVF: whatever a description says, it is read or refused.
func FuzzOVF(f *testing.F) {
	f.Add([]byte(ovfText("a", "b")))
	f.Add([]byte("<Envelope><VirtualSystem/></Envelope>"))
	f.Fuzz(func(t *testing.T, p []byte) {
		d, err := parseOVF(p)
		if err != nil {
			return
		}
		if d.memory < 0 || d.name != parcel.Clean(d.name) {
			t.Errorf("got %+v", d)
		}
		if _, err := d.choose(""); err == nil && len(d.disks) != 1 {
			t.Errorf("chosen one of %d", len(d.disks))
		}
	})
}

// FuzzManifest: what is read has sums of the right length.
func FuzzManifest(f *testing.F) {
	f.Add([]byte("SHA1(x)= da39a3ee5e6b4b0d3255bfef95601890afd80709\nSHA256 (y) = 00\n"))
	f.Fuzz(func(t *testing.T, p []byte) {
		sums, err := parseManifest(p)
		if err != nil {
			return
		}
		for name, s := range sums {
			if len(s.want) != s.hash().Size() {
				t.Errorf("%q: sum of %d bytes", name, len(s.want))
			}
		}
	})
}

// FuzzOpen: whatever bytes an image has, it is taken for raw or refused, and
// an archive's disk lies within it. qemu-img is not asked.
func FuzzOpen(f *testing.F) {
	f.Add([]byte("QFI\xfb\x00\x00\x00\x03" + strings.Repeat("\x00", 120)))
	f.Add([]byte("# Disk DescriptorFile\nRW 1 FLAT \"x\" 0"))
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range [][2]string{{"x.ovf", ovfText("d")}, {"d", "disk"}} {
		w.WriteHeader(&tar.Header{Name: e[0], Size: int64(len(e[1]))})
		io.WriteString(w, e[1])
	}
	w.Close()
	f.Add(b.Bytes())
	f.Fuzz(func(t *testing.T, p []byte) {
		name := filepath.Join(t.TempDir(), "image")
		if err := os.WriteFile(name, p, 0o600); err != nil {
			t.Fatal(err)
		}
		file, err := os.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		if isOVA(file) {
			m, err := openOVA(file, int64(len(p)), "")
			if err == nil && (m.disk.offset < 0 || m.disk.size < 0 || m.disk.offset+m.disk.size > int64(len(p))) {
				t.Errorf("disk at %d of %d bytes, in %d", m.disk.offset, m.disk.size, len(p))
			}
		}
		r := io.NewSectionReader(file, 0, int64(len(p)))
		selfContained(r, formatOf(r), name, false)
		if n, ok := fixedVHD(r); ok && (n <= 0 || n > int64(len(p))-512) {
			t.Errorf("fixed VHD of %d bytes in %d", n, len(p))
		}
	})
}
