package seal

import (
	"bytes"
	"fmt"
	"io"
	"sync"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// Codec names a compression. Each object carries its own as its first
// encoded byte, so a parcel may hold objects of several codecs.
type Codec string

// The codecs, and the byte that stands for each in an object.
const (
	None Codec = "none" // 0
	Gzip Codec = "gzip" // 1, RFC 1952
	Zstd Codec = "zstd" // 2, RFC 8878
)

const (
	codecNone = 0
	codecGzip = 1
	codecZstd = 2
)

// ParseCodec checks the name of a codec.
func ParseCodec(s string) (Codec, error) {
	switch Codec(s) {
	case None, Gzip, Zstd:
		return Codec(s), nil
	}
	return "", fmt.Errorf("codec %q: want gzip, zstd or none", s)
}

// Level is how hard a codec tries. It changes what an object weighs, never how
// it is read.
type Level int

// The levels: what BenchmarkLevels shows of each.
const (
	Usual Level = iota // gzip 1, zstd 3: what keeps up with a disk
	Fast               // gzip 1, zstd 1
	Hard               // gzip 6, zstd 7
	Most               // gzip 9, zstd 11
)

// gzipLevels and zstdLevels are by Level.
var (
	gzipLevels = [...]int{gzip.BestSpeed, gzip.BestSpeed, 6, gzip.BestCompression}
	zstdLevels = [...]zstd.EncoderLevel{zstd.SpeedDefault, zstd.SpeedFastest, zstd.SpeedBetterCompression, zstd.SpeedBestCompression}
)

var gzipWriters [len(gzipLevels)]sync.Pool

func gzipWriter(l Level) *gzip.Writer {
	if w, ok := gzipWriters[l].Get().(*gzip.Writer); ok {
		return w
	}
	w, err := gzip.NewWriterLevel(io.Discard, gzipLevels[l])
	if err != nil {
		panic(err) // the levels are constants
	}
	return w
}

var gzipReaders sync.Pool

// The zstd coders are safe for concurrent EncodeAll and DecodeAll.
var zstdWriters [len(zstdLevels)]struct {
	once sync.Once
	w    *zstd.Encoder
}

func zstdWriter(l Level) *zstd.Encoder {
	z := &zstdWriters[l]
	z.once.Do(func() {
		// A single segment always says how long its content is, below 256 bytes
		// too: decode relies on it.
		w, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(0), zstd.WithSingleSegment(true), zstd.WithEncoderLevel(zstdLevels[l]))
		if err != nil {
			panic(err)
		}
		z.w = w
	})
	return z.w
}

var zstdReader = sync.OnceValue(func() *zstd.Decoder {
	r, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(0), zstd.WithDecoderMaxMemory(2*MaxPlain),
		zstd.WithDecodeAllCapLimit(true))
	if err != nil {
		panic(err)
	}
	return r
})

// encode is the codec byte and the compressed bytes, or codecNone and plain
// when compression gains nothing.
func encode(c Codec, l Level, plain []byte) ([]byte, error) {
	if l < 0 || int(l) >= len(gzipLevels) {
		return nil, fmt.Errorf("level %d of codec %s: there is none", l, c)
	}
	var out []byte
	switch c {
	case None:
	case Gzip:
		buf := bytes.NewBuffer(make([]byte, 0, len(plain)/2+64))
		buf.WriteByte(codecGzip)
		w := gzipWriter(l)
		defer gzipWriters[l].Put(w)
		w.Reset(buf)
		if _, err := w.Write(plain); err != nil {
			return nil, err
		}
		if err := w.Close(); err != nil {
			return nil, err
		}
		out = buf.Bytes()
	case Zstd:
		out = zstdWriter(l).EncodeAll(plain, []byte{codecZstd})
	default:
		return nil, fmt.Errorf("codec %q: want gzip, zstd or none", c)
	}
	if out == nil || len(out) > len(plain) {
		out = make([]byte, 1, 1+len(plain))
		out[0] = codecNone
		out = append(out, plain...)
	}
	return out, nil
}

// decode undoes encode; more than limit bytes of plaintext is corrupt, and
// never held.
func decode(encoded []byte, limit int) ([]byte, error) {
	if len(encoded) == 0 {
		return nil, fmt.Errorf("empty message: %w", ErrCorrupt)
	}
	body := encoded[1:]
	switch encoded[0] {
	case codecNone:
		if len(body) > limit {
			return nil, fmt.Errorf("plaintext over %d bytes: %w", limit, ErrCorrupt)
		}
		return body, nil
	case codecGzip:
		r, _ := gzipReaders.Get().(*gzip.Reader)
		var err error
		if r == nil {
			r, err = gzip.NewReader(bytes.NewReader(body))
		} else {
			err = r.Reset(bytes.NewReader(body))
		}
		if err != nil {
			return nil, fmt.Errorf("gzip: %v: %w", err, ErrCorrupt)
		}
		defer gzipReaders.Put(r)
		// A growing buffer, so that limit is a bound and not an allocation.
		buf := bytes.NewBuffer(make([]byte, 0, min(limit, 4*len(body)+512)))
		n, err := io.Copy(buf, io.LimitReader(r, int64(limit)+1))
		if err != nil {
			return nil, fmt.Errorf("gzip: %v: %w", err, ErrCorrupt)
		}
		if n > int64(limit) {
			return nil, fmt.Errorf("plaintext over %d bytes: %w", limit, ErrCorrupt)
		}
		return buf.Bytes(), nil
	case codecZstd:
		var h zstd.Header
		if err := h.Decode(body); err != nil {
			return nil, fmt.Errorf("zstd: %v: %w", err, ErrCorrupt)
		}
		if !h.HasFCS {
			return nil, fmt.Errorf("zstd: frame without content size: %w", ErrCorrupt)
		}
		if h.FrameContentSize > uint64(limit) {
			return nil, fmt.Errorf("plaintext over %d bytes: %w", limit, ErrCorrupt)
		}
		// Decoding stops at the buffer's capacity, so further frames behind the
		// first cannot make it grow.
		out, err := zstdReader().DecodeAll(body, make([]byte, 0, h.FrameContentSize))
		if err != nil {
			return nil, fmt.Errorf("zstd: %v: %w", err, ErrCorrupt)
		}
		return out, nil
	}
	return nil, fmt.Errorf("codec byte %d: %w", encoded[0], ErrCorrupt)
}
