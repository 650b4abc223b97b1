// Package diskimage reads and writes the disk images of other programs: those
// qemu-img(1) knows, fixed VHD, and the machine in an OVA.
//
// An image may come from anybody. The package promises to tell its format by
// its first bytes, and to refuse one that is not all in its own file, or for
// VMDK in files beside it: so that no image makes the server read what its
// maker could not. It says how large an image is before anything is written,
// takes nothing out of an archive but the disk, and leaves no file behind. It
// does not decode formats itself: qemu-img does, told each time which one.
package diskimage

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"isr/store/parcel"
)

// maxDisk bounds the size of a disk in bytes, as that of a parcel.
const maxDisk = 1 << 50

// Options say how an image is to be taken.
type Options struct {
	Format   string // as Formats has it; "": found out
	DiskFile string // which disk of an OVA; "": the only one
}

// Image is a disk image that may be read. It holds nothing open.
type Image struct {
	Format string // of the disk itself
	Size   int64  // of the disk, bytes
	Name   string // that an OVA gives the machine, printable; else ""
	Memory int64  // that an OVA gives it, bytes; 0: it does not say

	path  string
	node  node                        // how qemu-img opens it; nil: it is raw in its file
	check func(context.Context) error // of a member's sum; nil: there is none
}

// node is a block device as qemu-img's json: names have it.
type node map[string]any

func (n node) String() string {
	p, _ := json.Marshal(n)
	return "json:" + string(p)
}

// input are the formats an image may have, as qemu-img calls them.
var input = []string{"raw", "qcow2", "vmdk", "vdi", "vpc", "vhdx", "qcow", "qed", "parallels", "dmg"}

// extensions are the formats that Write makes, with the end of a file's name.
var extensions = map[string]string{"raw": ".img", "qcow2": ".qcow2", "vmdk": ".vmdk", "vdi": ".vdi", "vpc": ".vhd", "vhdx": ".vhdx"}

// Output are the formats that Write makes.
func Output() []string { return []string{"raw", "qcow2", "vmdk", "vdi", "vpc", "vhdx"} }

// Ext is how the names of files of a format end.
func Ext(format string) string { return extensions[canonical(format)] }

// canonical is a format's name with qemu-img.
func canonical(format string) string {
	if format == "vhd" {
		return "vpc"
	}
	return format
}

// CheckOutput is the name of a format for Write, or says that there is none.
func CheckOutput(format string) (string, error) {
	if f := canonical(format); slices.Contains(Output(), f) {
		return f, nil
	}
	return "", parcel.NewError(parcel.Usage, "format %q: want one of %s", format, strings.Join(Output(), ", "))
}

// Open finds out what is in the file path, or the block device.
func Open(ctx context.Context, path string, o Options) (*Image, error) {
	im, err := open(ctx, path, o)
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", path, err)
	}
	return im, nil
}

func open(ctx context.Context, path string, o Options) (*Image, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	// To open a FIFO or a terminal may be to wait for ever.
	fi, err := os.Stat(path)
	if err != nil {
		return nil, bare(err)
	}
	if m := fi.Mode(); !m.IsRegular() && (m&fs.ModeDevice == 0 || m&fs.ModeCharDevice != 0) {
		return nil, parcel.NewError(parcel.Usage, "neither a file nor a block device")
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, bare(err)
	}
	defer f.Close()
	// A block device has its size only at its end.
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, err
	}
	im := &Image{path: path}
	file := node{"driver": "file", "filename": path}
	if fi.Mode()&fs.ModeDevice != 0 {
		file["driver"] = "host_device"
	}
	// Of an archive only the disk in it is looked at.
	disk := io.NewSectionReader(f, 0, size)
	archive := false
	if o.Format == "ova" || o.Format == "" && isOVA(f) {
		m, err := openOVA(f, size, o.DiskFile)
		if err != nil {
			return nil, err
		}
		im.Name, im.Memory, im.check = m.name, m.memory, m.check(path)
		// The padding of the archive makes it whole sectors.
		file = node{"driver": "raw", "offset": m.disk.offset, "size": (m.disk.size + 511) / 512 * 512, "file": file}
		disk, archive = io.NewSectionReader(f, m.disk.offset, m.disk.size), true
		o.Format = ""
	} else if o.DiskFile != "" {
		return nil, parcel.NewError(parcel.Usage, "is no OVA: there is no %s in it", parcel.Clean(o.DiskFile))
	}
	im.Format = canonical(o.Format)
	if im.Format == "" {
		im.Format = formatOf(disk)
	}
	if !slices.Contains(input, im.Format) {
		return nil, parcel.NewError(parcel.Usage, "format %q: want one of %s, ova", parcel.Clean(im.Format), strings.Join(input, ", "))
	}
	if err := selfContained(disk, im.Format, path, archive); err != nil {
		return nil, err
	}
	if n, ok := fixedVHD(disk); ok && im.Format == "vpc" && !archive {
		// Raw with a footer; qemu-img may take the footer for data.
		im.Size = n
		return im, im.checkSize()
	}
	if im.Format == "raw" && !archive {
		im.Size = disk.Size()
		return im, im.checkSize()
	}
	im.node = node{"driver": im.Format, "file": file}
	switch im.Format {
	case "qcow2", "qcow", "qed", "vmdk":
		im.node["backing"] = nil // none is opened, whatever it says by then
	case "vpc":
		im.node["force_size_calc"] = "current_size" // not what cylinders and heads make of it
	}
	return im, im.info(ctx, archive)
}

// bare is err without the path, which is said already.
func bare(err error) error {
	var p *fs.PathError
	if errors.As(err, &p) && !errors.Is(err, fs.ErrNotExist) {
		return p.Err
	}
	return err
}

func (im *Image) checkSize() error {
	if im.Size <= 0 || im.Size > maxDisk {
		return parcel.NewError(parcel.Usage, "a disk of %d bytes", im.Size)
	}
	return nil
}

// magics begin images of other formats than raw.
var magics = []struct {
	offset        int
	magic, format string
}{{0, "QFI\xfb\x00\x00\x00\x01", "qcow"}, {0, "QFI\xfb", "qcow2"}, {0, "KDMV", "vmdk"}, {0, "COWD", "vmdk"},
	{0, "# Disk DescriptorFile", "vmdk"}, {0, "vhdxfile", "vhdx"}, {0, "conectix", "vpc"}, {0x40, "\x7f\x10\xda\xbe", "vdi"},
	{0, "QED\x00", "qed"}, {0, "WithoutFreeSpace", "parallels"}, {0, "WithouFreSpacExt", "parallels"}}

// formatOf tells the format of an image by its bytes; raw if by none.
func formatOf(r *io.SectionReader) string {
	var head [512]byte
	n, _ := r.ReadAt(head[:], 0)
	for _, m := range magics {
		if n > m.offset && bytes.HasPrefix(head[m.offset:n], []byte(m.magic)) {
			return m.format
		}
	}
	if _, ok := fixedVHD(r); ok {
		return "vpc"
	}
	return "raw"
}

// fixedVHD is the size of the disk if the image is a fixed VHD: the disk, and
// 512 bytes after it.
func fixedVHD(r *io.SectionReader) (int64, bool) {
	var foot [512]byte
	if r.Size() < 1024 {
		return 0, false
	}
	if _, err := r.ReadAt(foot[:], r.Size()-512); err != nil {
		return 0, false
	}
	sum := uint32(0)
	for i, b := range foot {
		if i < 64 || i >= 68 {
			sum += uint32(b)
		}
	}
	size := binary.BigEndian.Uint64(foot[48:])
	ok := string(foot[:8]) == "conectix" && binary.BigEndian.Uint32(foot[60:]) == 2 && binary.BigEndian.Uint32(foot[64:]) == ^sum
	return int64(size), ok && size > 0 && size <= uint64(r.Size()-512)
}

// selfContained refuses an image that says it needs files elsewhere, before
// qemu-img opens it.
func selfContained(r *io.SectionReader, format, path string, archive bool) error {
	var head [104]byte
	n, _ := r.ReadAt(head[:], 0)
	switch {
	case format == "qcow2" && n == len(head):
		if off, size := binary.BigEndian.Uint64(head[8:]), binary.BigEndian.Uint32(head[16:]); off != 0 {
			name := make([]byte, min(size, 1023))
			n, _ := r.ReadAt(name, int64(off&(1<<62-1)))
			return needs(string(name[:n]))
		}
		if binary.BigEndian.Uint32(head[4:]) >= 3 && binary.BigEndian.Uint64(head[72:])&4 != 0 {
			return needs("one with its data")
		}
	case format == "vmdk" && string(head[:4]) == "KDMV":
		if binary.LittleEndian.Uint64(head[12:]) == 0 {
			return parcel.NewError(parcel.Usage, "VMDK of no capacity")
		}
	case format == "vmdk" && string(head[:4]) != "COWD":
		if archive {
			return parcel.NewError(parcel.Usage, "the disk in the archive is only the description of one")
		}
		return extentsBeside(r, path)
	}
	return nil
}

func needs(other string) error {
	return parcel.NewError(parcel.Usage, "it needs another file, %s", parcel.Clean(other)).
		WithHint("make it one with qemu-img convert")
}

// extentsBeside refuses a description of a VMDK whose extents are not files in
// the same directory.
func extentsBeside(r *io.SectionReader, path string) error {
	text := make([]byte, min(r.Size(), 1<<20))
	if _, err := r.ReadAt(text, 0); err != nil && err != io.EOF {
		return err
	}
	for line := range strings.FieldsFuncSeq(string(text), func(c rune) bool { return c == '\n' || c == '\r' }) {
		_, name, ok := strings.Cut(line, `"`)
		words := strings.Fields(line)
		if !ok || !slices.Contains([]string{"RW", "RDONLY", "NOACCESS"}, words[0]) {
			continue
		}
		if i := strings.LastIndex(name, `"`); i >= 0 {
			name = name[:i]
		}
		if err := beside(filepath.Join(filepath.Dir(path), name), path, name); err != nil {
			return err
		}
	}
	return nil
}

// beside refuses the file full, which an image calls name, if it is not a file
// in the directory of path.
func beside(full, path, name string) error {
	if strings.ContainsAny(filepath.Base(full), ":") || name != filepath.Base(full) && name != full ||
		filepath.Dir(full) != filepath.Dir(path) {
		return needs(name)
	}
	fi, err := os.Lstat(full)
	if err != nil {
		return err
	}
	if !fi.Mode().IsRegular() {
		return needs(name)
	}
	return nil
}

// info asks qemu-img for the size, and whether there are other files after all.
func (im *Image) info(ctx context.Context, archive bool) error {
	out, err := qemuImg(ctx, nil, "info", "--output=json", im.node.String())
	if err != nil {
		return err
	}
	var info struct {
		Size     int64  `json:"virtual-size"`
		Backing  string `json:"backing-filename"`
		Specific struct {
			Data struct {
				DataFile string `json:"data-file"`
				Extents  []struct {
					Filename string `json:"filename"`
				} `json:"extents"`
			} `json:"data"`
		} `json:"format-specific"`
	}
	if err := json.Unmarshal(out, &info); err != nil {
		return fmt.Errorf("qemu-img: %w", err)
	}
	for _, other := range []string{info.Backing, info.Specific.Data.DataFile} {
		if other != "" {
			return needs(other)
		}
	}
	if extents := info.Specific.Data.Extents; !archive {
		for _, e := range extents {
			if e.Filename == im.path {
				continue
			}
			if err := beside(e.Filename, im.path, e.Filename); err != nil {
				return err
			}
		}
	} else if len(extents) > 1 {
		return needs(extents[1].Filename)
	}
	im.Size = info.Size
	return im.checkSize()
}

// data is how many bytes of the image are not known to be zeros.
func (im *Image) data(ctx context.Context) (int64, error) {
	out, err := qemuImg(ctx, nil, "map", "--output=json", im.node.String())
	if err != nil {
		return 0, err
	}
	var extents []struct {
		Length int64 `json:"length"`
		Data   bool  `json:"data"`
	}
	if err := json.Unmarshal(out, &extents); err != nil {
		return 0, fmt.Errorf("qemu-img: %w", err)
	}
	var sum int64
	for _, e := range extents {
		if e.Data {
			sum += e.Length
		}
	}
	return sum, nil
}

// Raw opens the disk as a raw file: its first Size bytes. If the image is not
// raw that is a copy in the directory dir, as large as the data and already
// without a name; copied says so. Progress may be nil, and is of the copy.
// The error is parcel.ErrFull if there is no room for it.
func (im *Image) Raw(ctx context.Context, dir string, progress func(done, total int64)) (f *os.File, copied bool, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("image %s: %w", im.path, err)
		}
	}()
	if im.check != nil {
		if err := im.check(ctx); err != nil {
			return nil, false, err
		}
	}
	if im.node == nil {
		f, err = os.Open(im.path)
		return f, false, err
	}
	data, err := im.data(ctx)
	if err != nil {
		return nil, false, err
	}
	if err := room(dir, data); err != nil {
		return nil, false, err
	}
	temp, err := os.CreateTemp(dir, "import-*.raw")
	if err != nil {
		return nil, false, err
	}
	defer os.Remove(temp.Name())
	if err := convert(ctx, im.node, temp.Name(), "raw", im.Size, progress); err != nil {
		temp.Close()
		return nil, false, err
	}
	return temp, true, nil
}

// Write makes the image out, in a format of Output, of the raw disk in the file
// raw. What is in out is lost.
func Write(ctx context.Context, raw, out, format string, progress func(done, total int64)) error {
	raw, err := filepath.Abs(raw)
	if err != nil {
		return err
	}
	fi, err := os.Stat(raw)
	if err != nil {
		return err
	}
	in := node{"driver": "raw", "file": node{"driver": "file", "filename": raw}}
	return convert(ctx, in, out, format, fi.Size(), progress)
}

// convert has qemu-img copy a disk of size bytes to a new image.
func convert(ctx context.Context, in node, out, format string, size int64, progress func(done, total int64)) error {
	out, err := filepath.Abs(out) // which is never taken for a protocol
	if err != nil {
		return err
	}
	args := []string{"convert", "-p", "-O", format}
	if format == "vpc" {
		// The size as it is, not what cylinders and heads make of it.
		args = append(args, "-o", "force_size=on")
	}
	_, err = qemuImg(ctx, func(percent float64) {
		if progress != nil {
			progress(int64(percent/100*float64(size)), size)
		}
	}, append(args, in.String(), out)...)
	return err
}

// percentage is what qemu-img prints while it works.
var percentage = regexp.MustCompile(`\(([0-9.]+)/100%\)`)

// qemuImg runs qemu-img and returns what it prints.
func qemuImg(ctx context.Context, percent func(float64), args ...string) ([]byte, error) {
	if _, err := exec.LookPath("qemu-img"); err != nil {
		return nil, parcel.NewError(parcel.Usage, "it takes qemu-img to read or write that format").
			WithHint("install qemu-img, or convert the image to raw elsewhere")
	}
	var stderr, stdout bytes.Buffer
	cmd := exec.CommandContext(ctx, "qemu-img", args...)
	cmd.SysProcAttr = alone
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	cmd.Stderr, cmd.Stdout = &limited{b: &stderr, left: 64 << 10}, &stdout
	if percent != nil {
		cmd.Stdout = percentWriter(percent)
	}
	err := cmd.Run()
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if err != nil {
		text := parcel.Clean(strings.TrimSpace(strings.ReplaceAll(stderr.String(), "\n", "; ")))
		kind := parcel.Failed
		if strings.Contains(text, "No space left") || strings.Contains(text, "File too large") {
			kind = parcel.Full
		}
		return nil, parcel.NewError(kind, "qemu-img %s: %s", args[0], strings.TrimPrefix(text, "qemu-img: "))
	}
	return stdout.Bytes(), nil
}

// percentWriter calls f with what qemu-img says it has done.
type percentWriter func(float64)

func (f percentWriter) Write(p []byte) (int, error) {
	for _, m := range percentage.FindAllSubmatch(p, -1) {
		var n float64
		if _, err := fmt.Sscan(string(m[1]), &n); err == nil && n >= 0 && n <= 100 {
			f(n)
		}
	}
	return len(p), nil
}

// limited keeps the first bytes of what is written to it.
type limited struct {
	b    *bytes.Buffer
	left int
}

func (l *limited) Write(p []byte) (int, error) {
	n := min(len(p), l.left)
	l.b.Write(p[:n])
	l.left -= n
	return len(p), nil
}
