package store

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"isr/store/keyring"
	"isr/store/parcel"
	"isr/store/seal"
)

// Import makes a parcel whose disk is the image, a file or block device, raw
// or of any format that qemu-img reads, and whose memory is zeros.
// parcel.ErrExists if there is a parcel of that name.
func (s *Store) Import(ctx context.Context, userName, name, image string, o CreateOptions) (*Parcel, error) {
	image, err := filepath.Abs(image)
	if err != nil {
		return nil, err
	}
	if o.Format == "" {
		if o.Format, err = imageFormat(ctx, image); err != nil {
			return nil, fmt.Errorf("image %s: %w", image, err)
		}
	}
	return s.create(ctx, userName, name, func(ctx context.Context, b *building) (*parcel.Config, seal.Ref, error) {
		f, err := openImage(ctx, image, o.Format, b.p.staging())
		if err != nil {
			return nil, seal.Ref{}, fmt.Errorf("image %s: %w", image, err)
		}
		defer f.Close()
		// A block device has its size only at its end.
		size, err := f.Seek(0, io.SeekEnd)
		if err != nil {
			return nil, seal.Ref{}, err
		}
		if o.DiskSize == 0 {
			o.DiskSize = size
		}
		if size == 0 || o.DiskSize < size {
			return nil, seal.Ref{}, parcel.NewError(parcel.Usage, "image of %d bytes into a disk of %d", size, o.DiskSize)
		}
		c, err := s.config(o)
		if err != nil {
			return nil, seal.Ref{}, err
		}
		root := zeroRoot(c)
		im, err := importImage(ctx, f, size, c.Sealer(), root.Images[0], b, o.Progress)
		if err != nil {
			return nil, seal.Ref{}, fmt.Errorf("image %s: %w", image, err)
		}
		root.SetImage(im)
		keyroot, err := b.putRoot(ctx, c, root)
		return c, keyroot, err
	})
}

// importImage seals what is not zero in the first size bytes of f into dst
// and returns the image im of it. It keeps 150 bytes a chunk in memory.
func importImage(ctx context.Context, f *os.File, size int64, s seal.Sealer, im keyring.Image, dst keyring.Putter, progress func(done, total int64)) (keyring.Image, error) {
	tree := keyring.NewTree(s, im, nil) // of zeros: nothing is ever got
	chunk := int64(im.ChunkSize)
	buffers := sync.Pool{New: func() any { b := make([]byte, chunk); return &b }}
	var mu sync.Mutex
	var farthest int64
	err := parallel(ctx, runtime.GOMAXPROCS(0), dataChunks(f, size, chunk), func(ctx context.Context, n int64, err error) error {
		if err != nil {
			return err
		}
		buf := buffers.Get().(*[]byte)
		defer buffers.Put(buf)
		got, err := f.ReadAt((*buf)[:min(chunk, size-n*chunk)], n*chunk)
		if err != nil && !(err == io.EOF && n*chunk+int64(got) == size) {
			return err
		}
		plain := *buf
		clear(plain[got:])
		if !seal.Zero(plain) {
			ref, sealed, err := s.Seal(plain)
			if err != nil {
				return err
			}
			if err := dst.Put(ctx, ref.Tag, sealed); err != nil {
				return err
			}
			tree.Set(n, ref)
		}
		if progress != nil {
			mu.Lock()
			defer mu.Unlock()
			farthest = max(farthest, min((n+1)*chunk, size))
			progress(farthest, size)
		}
		return nil
	})
	if err != nil {
		return keyring.Image{}, err
	}
	if im, err = tree.Flush(ctx, dst); err == nil && progress != nil {
		progress(size, size)
	}
	return im, err
}

// dataChunks are the numbers of the chunks that hold data, ascending; holes of
// a sparse file are passed over at no cost. An error ends it.
func dataChunks(f *os.File, size, chunk int64) iter.Seq2[int64, error] {
	return func(yield func(int64, error) bool) {
		next := int64(0) // chunk not yet yielded
		for off := int64(0); off < size; {
			start, end, err := dataAfter(f, off, size)
			if err != nil {
				yield(0, err)
				return
			}
			for n := max(next, start/chunk); n*chunk < end; n++ {
				if !yield(n, nil) {
					return
				}
				next = n + 1
			}
			off = end
		}
	}
}

// dataAfter is the first run of data in f from off on, empty at size if there
// is none. Where the file system cannot tell, all is data.
func dataAfter(f *os.File, off, size int64) (start, end int64, err error) {
	start, err = unix.Seek(int(f.Fd()), off, unix.SEEK_DATA)
	if errors.Is(err, unix.ENXIO) {
		return size, size, nil
	}
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOTSUP) {
		return off, size, nil
	}
	if err != nil {
		return 0, 0, fmt.Errorf("seek: %w", err)
	}
	if end, err = unix.Seek(int(f.Fd()), start, unix.SEEK_HOLE); err != nil {
		return 0, 0, fmt.Errorf("seek: %w", err)
	}
	return min(start, size), min(end, size), nil
}

// openImage opens the raw content of an image; of another format than raw,
// that is a temp file in dir, already unlinked.
func openImage(ctx context.Context, image, format, dir string) (*os.File, error) {
	if format == "raw" {
		return os.Open(image)
	}
	temp := filepath.Join(dir, "import.raw")
	f, err := os.OpenFile(temp, os.O_RDWR|os.O_CREATE|os.O_EXCL, fileMode)
	if err != nil {
		return nil, err
	}
	defer os.Remove(temp)
	if _, err := qemuImg(ctx, "convert", "-f", format, "-O", "raw", image, temp); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// imageFormat asks qemu-img for the format of an image, and refuses one that
// would make it read other files than this.
func imageFormat(ctx context.Context, image string) (string, error) {
	if _, err := exec.LookPath("qemu-img"); err != nil {
		return formatByMagic(image)
	}
	out, err := qemuImg(ctx, "info", "--output=json", image)
	if err != nil {
		return "", err
	}
	var info struct {
		Format   string `json:"format"`
		Backing  string `json:"backing-filename"`
		Specific struct {
			Data struct {
				DataFile string `json:"data-file"`
			} `json:"data"`
		} `json:"format-specific"`
	}
	if err := json.Unmarshal(out, &info); err != nil {
		return "", fmt.Errorf("qemu-img: %w", err)
	}
	for _, other := range []string{info.Backing, info.Specific.Data.DataFile} {
		if other != "" {
			return "", parcel.NewError(parcel.Usage, "it needs another file, %s", other).
				WithHint("make it one with qemu-img convert")
		}
	}
	return info.Format, nil
}

// magics begin images of other formats than raw.
var magics = map[string]string{"QFI\xfb": "qcow2", "KDMV": "vmdk", "COWD": "vmdk", "# Disk DescriptorFile": "vmdk",
	"vhdxfile": "vhdx", "conectix": "vpc", "<<< ": "vdi", "QED\x00": "qed"}

// formatByMagic refuses an image that is known not to be raw: for a host
// without qemu-img.
func formatByMagic(image string) (string, error) {
	f, err := os.Open(image)
	if err != nil {
		return "", err
	}
	defer f.Close()
	var head [32]byte
	if _, err := io.ReadFull(f, head[:]); err != nil && err != io.ErrUnexpectedEOF {
		return "", err
	}
	for magic, format := range magics {
		if bytes.HasPrefix(head[:], []byte(magic)) {
			return "", parcel.NewError(parcel.Usage, "format %s: it takes qemu-img to read that", format).
				WithHint("install qemu-img, or convert the image to raw")
		}
	}
	return "raw", nil
}

// qemuImg runs qemu-img. An absolute path is never taken for a protocol.
func qemuImg(ctx context.Context, args ...string) ([]byte, error) {
	var stderr strings.Builder
	cmd := exec.CommandContext(ctx, "qemu-img", args...)
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("qemu-img %s: %w: %s", args[0], err, parcel.Clean(stderr.String()))
	}
	return out, nil
}
