package image

import (
	"context"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"isr/store/seal"
)

// TestMapStates brings each chunk into another state.
func TestMapStates(t *testing.T) {
	const chunk, size = 4096, 7*4096 - 1
	plain := randomBytes(size)
	clear(plain[6*chunk:])
	o := new(objects)
	tree := pristineTree(t, o, plain, size, chunk)
	dir := t.TempDir()
	im := newTestImage(t, dir, o, tree, size, chunk)
	if _, err := im.WriteAt(t.Context(), make([]byte, chunk), 3*chunk); err != nil {
		t.Fatal(err)
	}
	if err := im.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	im.Close()
	im.overlay.Close()

	im = newTestImage(t, dir, o, tree, size, chunk)
	p := NewPresence(im.Chunks())
	if m := im.Map(p); m.Cells != "000m000" || m.Stored != 0 {
		t.Errorf("nothing is known: %q, %d stored", m.Cells, m.Stored)
	}
	p.Fill(0, 6, true, false)
	p.Fill(3, 5, true, true)
	entered, leave := make(chan struct{}), make(chan struct{})
	o.setHook(func(_ context.Context, tag seal.Tag, sealed []byte) ([]byte, error) {
		close(entered)
		<-leave
		return sealed, nil
	})
	done := make(chan error)
	go func() {
		_, err := im.ReadAt(context.Background(), make([]byte, 1), 0)
		done <- err
	}()
	<-entered
	o.setHook(nil)
	if _, err := im.WriteAt(t.Context(), make([]byte, 512), chunk); err != nil {
		t.Fatal(err)
	}
	if _, err := im.ReadAt(t.Context(), make([]byte, 1), 2*chunk); err != nil {
		t.Fatal(err)
	}
	m := im.Map(p)
	if m.Cells != "FMAmh.0" || m.Shares != "9999999" || m.PerCell != 1 {
		t.Errorf("map %q, shares %q, %d chunks a cell", m.Cells, m.Shares, m.PerCell)
	}
	for _, s := range CellStates {
		if m.Counts[string(s)] != 1 {
			t.Errorf("%d chunks of %c", m.Counts[string(s)], s)
		}
	}
	// Of the six objects, chunk 2 has come, and 3 and 4 were here.
	if m.Stored != 6 || m.Here != 3 {
		t.Errorf("%d of %d here", m.Here, m.Stored)
	}
	close(leave)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if m := im.Map(p); m.Cells != "AMAmh.0" {
		t.Errorf("map %q when the first has come", m.Cells)
	}
}

// TestMapOfManyChunks compares cells with what their chunks are, one by one.
func TestMapOfManyChunks(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		chunks := int64(rapid.IntRange(1, 3*maxCells).Draw(rt, "chunks"))
		im := &Image{c: Config{Size: chunks * 4096, ChunkSize: 4096}, before: newBitset(chunks),
			touched: newBitset(chunks), modified: newBitset(chunks), fetcher: new(fetcher)}
		im.counts.seen = newBitset(chunks)
		im.mapOnce.Do(func() {})
		p := NewPresence(chunks)
		for range rapid.IntRange(0, 20).Draw(rt, "ranges") {
			from := int64(rapid.IntRange(0, int(chunks)-1).Draw(rt, "from"))
			to := from + int64(rapid.IntRange(1, 500).Draw(rt, "length"))
			switch rapid.IntRange(0, 3).Draw(rt, "what") {
			case 0:
				p.Fill(from, to, true, rapid.Bool().Draw(rt, "here"))
			case 1:
				p.Fill(from, to, false, false)
			case 2:
				im.modified.fill(from, min(to, chunks), true)
			case 3:
				im.touched.fill(from, min(to, chunks), true)
			}
		}
		m := im.Map(p)
		cells := (chunks + m.PerCell - 1) / m.PerCell
		if cells > maxCells || int64(len(m.Cells)) != cells || int64(len(m.Shares)) != cells {
			rt.Fatalf("%d chunks in %d cells of %d", chunks, len(m.Cells), m.PerCell)
		}
		total := int64(0)
		for _, n := range m.Counts {
			total += n
		}
		if total != chunks {
			rt.Errorf("%d chunks counted, of %d", total, chunks)
		}
		for c := range cells {
			best, n := len(CellStates)-1, 0
			for k := c * m.PerCell; k < min((c+1)*m.PerCell, chunks); k++ {
				state := CellZeros
				switch stored, here := p.Known(k); {
				case im.modified.has(k):
					state = CellModified
				case im.touched.has(k):
					state = CellAccessed
				case here:
					state = CellHere
				case stored:
					state = CellAbsent
				}
				switch i := strings.IndexRune(CellStates, state); {
				case i < best:
					best, n = i, 1
				case i == best:
					n++
				}
			}
			if m.Cells[c] != CellStates[best] {
				rt.Fatalf("cell %d is %c, want %c", c, m.Cells[c], CellStates[best])
			}
			size := min(m.PerCell, chunks-c*m.PerCell)
			if want := (int64(n)*9 + size - 1) / size; int64(m.Shares[c]-'0') != want {
				rt.Fatalf("cell %d: share %c, want %d", c, m.Shares[c], want)
			}
		}
	})
}

// BenchmarkMap is the map of 1 TiB of which all is known.
func BenchmarkMap(b *testing.B) {
	im := benchImage(b, 1<<40, noRefs{}, new(objects))
	p := NewPresence(im.Chunks())
	p.Fill(0, im.Chunks(), true, true)
	for b.Loop() {
		im.Map(p)
	}
}

// BenchmarkReadHit reads 4 KiB of a chunk that is in the cache: the guest's
// path at its shortest.
func BenchmarkReadHit(b *testing.B) {
	o := new(objects)
	im := benchImage(b, 1<<20, pristineTree(b, o, halfRandom(1<<20), 1<<20, 128<<10), o)
	p := make([]byte, 4096)
	for i := int64(0); b.Loop(); i++ {
		if _, err := im.ReadAt(context.Background(), p, i<<12%(1<<20)); err != nil {
			b.Fatal(err)
		}
	}
}
