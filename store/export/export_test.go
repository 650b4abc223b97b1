package export_test

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"isr/store"
	"isr/store/export"
	"isr/store/parcel"
	"isr/store/storetest"
	"isr/store/tree"
)

var ctx = context.Background()

// Stream is Export, byte by byte.
func TestStream(t *testing.T) {
	s := storetest.New(t)
	const size = 300*storetest.Chunk + 7
	image := storetest.WriteImage(t, size, map[int64][]byte{storetest.Chunk + 5: storetest.Random(3*storetest.Chunk, 1), 290 * storetest.Chunk: storetest.Random(100, 2), size - 1: []byte("x")})
	p, err := s.Import(ctx, "alice", "box", image, store.CreateOptions{ChunkSize: storetest.Chunk, Format: "raw"})
	if err != nil {
		t.Fatal(err)
	}
	want, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	last := int64(0)
	if err := export.Stream(ctx, p, &b, 0, func(done, total int64) { last = done }); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(b.Bytes(), want) || last != size {
		t.Errorf("%d bytes, progress %d: not as the image", b.Len(), last)
	}
	if err := export.Stream(ctx, p, &b, 2, nil); !errors.Is(err, parcel.ErrNoVersion) {
		t.Errorf("version 2: got %v", err)
	}
	if err := export.Stream(ctx, p, failing{}, 1, nil); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("nowhere to write: got %v", err)
	}
	storetest.Flip(t, filepath.Join(p.HdkDir(), tree.ObjectName(storetest.TagsOf(t, p, 1)[0][2])))
	if err := export.Stream(ctx, p, &b, 1, nil); parcel.KindOf(err) != parcel.Damaged || !strings.Contains(err.Error(), "chunk 3") {
		t.Errorf("damaged: got %v", err)
	}
}

type failing struct{}

func (failing) Write([]byte) (int, error) { return 0, fs.ErrClosed }
