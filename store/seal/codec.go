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

var gzipWriters = sync.Pool{New: func() any {
	// Level 1 is what keeps up with a disk: see BenchmarkSeal.
	w, err := gzip.NewWriterLevel(io.Discard, gzip.BestSpeed)
	if err != nil {
		panic(err) // the level is a constant
	}
	return w
}}

var gzipReaders sync.Pool

// The zstd coders are safe for concurrent EncodeAll and DecodeAll.
var zstdWriter = sync.OnceValue(func() *zstd.Encoder {
	// A single segment always says how long its content is, below 256 bytes
	// too: decode relies on it.
	w, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(0), zstd.WithSingleSegment(true))
	if err != nil {
		panic(err)
	}
	return w
})

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
func encode(c Codec, plain []byte) ([]byte, error) {
	var out []byte
	switch c {
	case None:
	case Gzip:
		buf := bytes.NewBuffer(make([]byte, 0, len(plain)/2+64))
		buf.WriteByte(codecGzip)
		w := gzipWriters.Get().(*gzip.Writer)
		defer gzipWriters.Put(w)
		w.Reset(buf)
		if _, err := w.Write(plain); err != nil {
			return nil, err
		}
		if err := w.Close(); err != nil {
			return nil, err
		}
		out = buf.Bytes()
	case Zstd:
		out = zstdWriter().EncodeAll(plain, []byte{codecZstd})
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
