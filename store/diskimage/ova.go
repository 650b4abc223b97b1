package diskimage

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"encoding/xml"
	"errors"
	"fmt"
	"hash"
	"io"
	"math"
	"math/bits"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"isr/store/parcel"
)

// An OVA is a tar archive: a description (.ovf) first, then a manifest of sums
// (.mf), then disks. A disk is read where it lies in the archive, so nothing
// is ever taken out of it, and no name in it is used for a file.

const (
	maxMembers = 1000
	maxText    = 4 << 20 // of a description or manifest, bytes
)

// member is a file in an archive.
type member struct {
	name         string
	offset, size int64
}

// machine is what an OVA describes.
type machine struct {
	name   string
	memory int64
	disk   member
	sums   map[string]sum
	ovf    member
}

// isOVA reports whether f looks like an OVA: an archive that begins with a
// description, as it must. One that does not may be a guest's own, on a raw disk.
func isOVA(f io.ReaderAt) bool {
	var head [512]byte
	if _, err := f.ReadAt(head[:], 0); err != nil || string(head[257:262]) != "ustar" {
		return false
	}
	name, _, _ := bytes.Cut(head[:100], []byte{0})
	return strings.HasSuffix(strings.ToLower(string(name)), ".ovf")
}

// openOVA reads the description in an archive and finds the disk of that name,
// or the only one.
func openOVA(f *os.File, size int64, disk string) (*machine, error) {
	members, err := list(f, size)
	if err != nil {
		return nil, err
	}
	var ovf, mf []byte
	m := &machine{}
	for _, e := range members {
		lower := strings.ToLower(e.name)
		switch {
		case strings.HasSuffix(lower, ".ovf") && ovf == nil:
			m.ovf = e
			ovf, err = text(f, e)
		case strings.HasSuffix(lower, ".mf") && mf == nil:
			mf, err = text(f, e)
		}
		if err != nil {
			return nil, err
		}
	}
	if ovf == nil {
		return nil, parcel.NewError(parcel.Usage, "an archive without a description, so no OVA")
	}
	if m.sums, err = parseManifest(mf); err != nil {
		return nil, err
	}
	d, err := parseOVF(ovf)
	if err != nil {
		return nil, err
	}
	m.name, m.memory = d.name, d.memory
	file, err := d.choose(disk)
	if err != nil {
		return nil, err
	}
	if file.compression != "" && file.compression != "identity" || file.chunked {
		return nil, parcel.NewError(parcel.Usage, "disk %s: is compressed or cut into pieces as a file", file.name).
			WithHint("unpack the archive and import the disk")
	}
	i := slices.IndexFunc(members, func(e member) bool { return e.name == file.name })
	if i < 0 {
		return nil, parcel.NewError(parcel.Damaged, "disk %s: is described, and not in the archive", file.name)
	}
	m.disk = members[i]
	return m, nil
}

// list is the regular files of an archive, and where they are.
func list(f *os.File, size int64) ([]member, error) {
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	var members []member
	for r := tar.NewReader(f); ; {
		h, err := r.Next()
		if err == io.EOF {
			return members, nil
		}
		if err != nil {
			return nil, parcel.NewError(parcel.Damaged, "archive: %v", err)
		}
		if len(members) == maxMembers {
			return nil, parcel.NewError(parcel.Usage, "archive: over %d files", maxMembers)
		}
		if h.Typeflag != tar.TypeReg {
			continue // a directory, a link, a device: none of them is a disk
		}
		for key := range h.PAXRecords {
			if strings.HasPrefix(key, "GNU.sparse") {
				return nil, parcel.NewError(parcel.Usage, "archive: %s: is sparse", parcel.Clean(h.Name))
			}
		}
		// The reader stands at the first byte of the content.
		offset, err := f.Seek(0, io.SeekCurrent)
		if err != nil {
			return nil, err
		}
		if h.Size < 0 || h.Size > size-offset {
			return nil, parcel.NewError(parcel.Damaged, "archive: %s: ends early", parcel.Clean(h.Name))
		}
		if slices.ContainsFunc(members, func(e member) bool { return e.name == h.Name }) {
			return nil, parcel.NewError(parcel.Usage, "archive: %s: is there twice", parcel.Clean(h.Name))
		}
		members = append(members, member{h.Name, offset, h.Size})
	}
}

func text(f io.ReaderAt, e member) ([]byte, error) {
	if e.size > maxText {
		return nil, parcel.NewError(parcel.Usage, "archive: %s: %d bytes", parcel.Clean(e.name), e.size)
	}
	p := make([]byte, e.size)
	_, err := f.ReadAt(p, e.offset)
	return p, err
}

// description is what matters of an OVF.
type description struct {
	name   string
	memory int64
	disks  []diskFile
}

// diskFile is a disk that has a file, in the order of the machine's disks.
type diskFile struct {
	name, compression string
	chunked           bool
}

func (d *description) choose(name string) (diskFile, error) {
	var names []string
	for _, f := range d.disks {
		if f.name == name || name == "" && len(d.disks) == 1 {
			return f, nil
		}
		names = append(names, parcel.Clean(f.name))
	}
	switch {
	case len(names) == 0:
		return diskFile{}, parcel.NewError(parcel.Usage, "a machine without a disk")
	case name == "":
		return diskFile{}, parcel.NewError(parcel.Usage, "a machine with %d disks: %s", len(names), strings.Join(names, ", ")).
			WithHint("choose one with --disk-file %s", names[0])
	}
	return diskFile{}, parcel.NewError(parcel.Usage, "no disk %s: it has %s", parcel.Clean(name), strings.Join(names, ", "))
}

// envelope is an OVF's XML. Names are matched in any name space.
type envelope struct {
	Files []struct {
		ID          string `xml:"id,attr"`
		Href        string `xml:"href,attr"`
		Compression string `xml:"compression,attr"`
		ChunkSize   string `xml:"chunkSize,attr"`
	} `xml:"References>File"`
	Disks []struct {
		ID  string `xml:"diskId,attr"`
		Ref string `xml:"fileRef,attr"`
	} `xml:"DiskSection>Disk"`
	Systems []system `xml:"VirtualSystem"`
	Nested  []system `xml:"VirtualSystemCollection>VirtualSystem"`
}

type system struct {
	ID    string `xml:"id,attr"`
	Name  string `xml:"Name"`
	Items []struct {
		Type     string   `xml:"ResourceType"`
		Quantity string   `xml:"VirtualQuantity"`
		Units    string   `xml:"AllocationUnits"`
		Host     []string `xml:"HostResource"`
	} `xml:"VirtualHardwareSection>Item"`
	Storage []struct {
		Host []string `xml:"HostResource"`
	} `xml:"VirtualHardwareSection>StorageItem"`
}

// The numbers that CIM gives to resources.
const (
	resourceMemory = "4"
	resourceDisk   = "17"
)

func parseOVF(p []byte) (*description, error) {
	var e envelope
	if err := xml.Unmarshal(p, &e); err != nil {
		return nil, parcel.NewError(parcel.Damaged, "description: %v", err)
	}
	systems := append(e.Systems, e.Nested...)
	if len(systems) != 1 {
		return nil, parcel.NewError(parcel.Usage, "description of %d machines", len(systems))
	}
	s := systems[0]
	d := &description{name: parcel.Clean(s.Name)}
	if d.name == "" {
		d.name = parcel.Clean(s.ID)
	}
	var order []string // ids of disks
	for _, item := range s.Items {
		switch strings.TrimSpace(item.Type) {
		case resourceMemory:
			if d.memory == 0 {
				d.memory = quantity(item.Quantity, item.Units)
			}
		case resourceDisk:
			order = append(order, item.Host...)
		}
	}
	for _, item := range s.Storage {
		order = append(order, item.Host...)
	}
	for i, host := range order {
		order[i] = host[strings.LastIndex(host, "/")+1:]
	}
	// The disks of the machine in its order; then those it does not mention.
	for _, disk := range e.Disks {
		if !slices.Contains(order, disk.ID) {
			order = append(order, disk.ID)
		}
	}
	for _, id := range order {
		for _, disk := range e.Disks {
			if disk.ID != id || disk.Ref == "" { // without a file: an empty one
				continue
			}
			for _, f := range e.Files {
				if f.ID == disk.Ref && f.Href != "" && !slices.ContainsFunc(d.disks, func(o diskFile) bool { return o.name == f.Href }) {
					d.disks = append(d.disks, diskFile{f.Href, f.Compression, f.ChunkSize != ""})
				}
			}
		}
	}
	return d, nil
}

// power is how OVF 1.0 and later write 2^20 bytes; before, MegaBytes.
var power = regexp.MustCompile(`^byte\s*\*\s*2\s*\^\s*([0-9]{1,2})$`)

// quantity is a number of bytes, 0 if it makes no sense.
func quantity(number, units string) int64 {
	n, err := strconv.ParseUint(strings.TrimSpace(number), 10, 64)
	if err != nil {
		return 0
	}
	shift := 20 // what is usual where nothing is said
	units = strings.ToLower(strings.TrimSpace(units))
	if m := power.FindStringSubmatch(units); m != nil {
		shift, _ = strconv.Atoi(m[1])
	} else {
		switch units {
		case "byte", "bytes":
			shift = 0
		case "kilobytes", "kb":
			shift = 10
		case "gigabytes", "gb":
			shift = 30
		}
	}
	if bits.Len64(n)+shift > 63 || n<<shift > math.MaxInt64 {
		return 0
	}
	return int64(n << shift)
}

// sum is what a manifest says of a file.
type sum struct {
	hash func() hash.Hash
	want []byte
}

// manifestLine is SHA256(name)= hex.
var manifestLine = regexp.MustCompile(`^(SHA1|SHA256|SHA512)\s*\((.*)\)\s*=\s*([0-9a-fA-F]+)$`)

func parseManifest(p []byte) (map[string]sum, error) {
	hashes := map[string]func() hash.Hash{"SHA1": sha1.New, "SHA256": sha256.New, "SHA512": sha512.New}
	sums := make(map[string]sum)
	lines := bufio.NewScanner(bytes.NewReader(p))
	for lines.Scan() {
		line := strings.TrimSpace(lines.Text())
		if line == "" {
			continue
		}
		m := manifestLine.FindStringSubmatch(line)
		if m == nil {
			return nil, parcel.NewError(parcel.Damaged, "manifest: %q", parcel.Clean(line))
		}
		want, err := hex.DecodeString(m[3])
		if h := hashes[m[1]]; err != nil || len(want) != h().Size() {
			return nil, parcel.NewError(parcel.Damaged, "manifest: sum of %s", parcel.Clean(m[2]))
		}
		sums[m[2]] = sum{hashes[m[1]], want}
	}
	if err := lines.Err(); err != nil {
		return nil, parcel.NewError(parcel.Damaged, "manifest: %v", err)
	}
	return sums, nil
}

// check is what compares the disk and the description with the manifest.
func (m *machine) check(path string) func(context.Context) error {
	return func(ctx context.Context) error {
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		for _, e := range []member{m.ovf, m.disk} {
			s, ok := m.sums[e.name]
			if !ok {
				continue
			}
			h := s.hash()
			if _, err := io.Copy(h, readerFunc(func(p []byte) (int, error) {
				if ctx.Err() != nil {
					return 0, ctx.Err()
				}
				n, err := f.ReadAt(p[:min(int64(len(p)), e.size)], e.offset)
				e.offset, e.size = e.offset+int64(n), e.size-int64(n)
				if e.size == 0 && (err == nil || errors.Is(err, io.EOF)) {
					return n, io.EOF
				}
				return n, err
			})); err != nil {
				return fmt.Errorf("%s: %w", parcel.Clean(e.name), err)
			}
			if !bytes.Equal(h.Sum(nil), s.want) {
				return parcel.NewError(parcel.Damaged, "%s: is not as the archive's manifest has it", parcel.Clean(e.name))
			}
		}
		return nil
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }
