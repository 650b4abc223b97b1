package dirt

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"isr/client/image"
)

// recorded is what a run showed once: a directory of testdata.
type recorded string

func (r recorded) Read(name string) ([]byte, error) {
	return os.ReadFile(filepath.Join("testdata", string(r), name))
}

// swapped is a source that may be replaced.
type swapped struct{ Source }

// TestSample reads a parcel of 32 MiB, of whose disk 64 chunks are objects,
// which is not known before its keyring has come, and again when its guest has read 21 of them and written 5 others.
func TestSample(t *testing.T) {
	src := &swapped{recorded("before")}
	m := New(src)
	at := time.Date(2026, 11, 26, 12, 0, 0, 0, time.UTC)
	s, err := m.Sample(at)
	if err != nil {
		t.Fatal(err)
	}
	if s.Parcel != "small" || s.Version != 2 || s.VMM != "none" || s.Since.IsZero() || s.Offline {
		t.Errorf("snapshot of %+v", s)
	}
	if len(s.Images) != 2 || s.Images[0].Name != "disk" || s.Images[1].Name != "memory" {
		t.Fatalf("images %+v", s.Images)
	}
	if d := s.Images[0]; d.Hits != None || d.Spared != None || d.Read != (Flow{}) || d.Stored != 256 || d.Here != 0 || !d.Surveyed {
		t.Errorf("disk before it was read: %+v", d)
	}
	src.Source = recorded("after")
	if s, err = m.Sample(at.Add(2 * time.Second)); err != nil {
		t.Fatal(err)
	}
	d := s.Images[0]
	if d.Size != 32<<20 || d.ChunkSize != 128<<10 {
		t.Errorf("disk of %d bytes, chunks of %d", d.Size, d.ChunkSize)
	}
	if want := (Flow{21 << 17, 21 << 16}); d.Read != want || d.Loaded != want {
		t.Errorf("read %v, loaded %v, want %v", d.Read, d.Loaded, want)
	}
	if d.Network.Bytes != 2753121 || d.Written.Bytes != 5<<17 {
		t.Errorf("network %v, written %v", d.Network, d.Written)
	}
	if d.Accessed != 26 || d.ModifiedNow != 5 || d.Pending != 5 || d.Here != 21 || d.Stored != 64 || d.HereRate != 10.5 {
		t.Errorf("accessed %d, modified %d, pending %d, here %d, %v a second", d.Accessed, d.ModifiedNow, d.Pending, d.Here, d.HereRate)
	}
	if d.Hits != 0 || d.Spared.String() != "19%" || d.HereText() != "33%" {
		t.Errorf("hits %v, spared %v, here %v", d.Hits, d.Spared, d.HereText())
	}
	if l := d.Latency; l.P50 != 3583*time.Microsecond || l.P90 != 6655*time.Microsecond || l.P99 != 10239*time.Microsecond {
		t.Errorf("latency %v", l)
	}
	if d.Map.Counts["M"] != 5 || d.Map.Counts["A"] != 21 || strings.Count(d.Map.Cells, "A") != 21 {
		t.Errorf("map %+v", d.Map)
	}
	if m := s.Images[1]; m.ModifiedNow != 1 || m.Stored != 0 || m.HereText() != "nothing stored" {
		t.Errorf("memory %+v", m)
	}
	if len(s.Rungs) != 3 || s.Rungs[1].Name != "hoard" || s.Rungs[1].Hits != 0 || s.Rungs[2].Objects != 22 || s.Rungs[2].Hits != 100 ||
		s.Rungs[2].Max != 6303229 {
		t.Errorf("rungs %+v", s.Rungs)
	}
	if s.In.Bytes != 2764161 || s.In.Rate == 0 {
		t.Errorf("network in %+v", s.In)
	}
	for _, want := range []string{"small; disk: read 2.6 MiB, wrote 640.0 KiB, accessed 26, modified 5, pending 5, here 33%, hits 0%; memory:", "; network: 2.6 MiB in, 5.9 KiB out"} {
		if l := s.Line(); !strings.Contains(l, want) {
			t.Errorf("line %q lacks %q", l, want)
		}
	}
	// Nothing more happens: the rates go.
	for i := range 4 {
		if s, err = m.Sample(at.Add(time.Duration(4+2*i) * time.Second)); err != nil {
			t.Fatal(err)
		}
	}
	if s.Images[0].Read.Rate != 0 || s.Images[0].Read.RateText() != "" {
		t.Errorf("still %v", s.Images[0].Read)
	}
	// The parcel was resumed anew: its counters begin at zero.
	src.Source = recorded("before")
	if s, err = m.Sample(at.Add(20 * time.Second)); err != nil || s.In.Rate < 0 || s.Images[0].Read.Rate < 0 {
		t.Errorf("%+v, %v", s, err)
	}
}

func TestSampleOfNothing(t *testing.T) {
	if _, err := New(Mount(t.TempDir())).Sample(time.Now()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a mount that is gone: %v", err)
	}
}

// texts is counter files as given.
type texts map[string]string

func (f texts) Read(name string) ([]byte, error) {
	if s, ok := f[name]; ok {
		return []byte(s), nil
	}
	return recorded("after").Read(name)
}

// FuzzSample: whatever a counter file says, it is shown or refused.
func FuzzSample(f *testing.F) {
	for _, name := range []string{"map", "all", "ladder", "prefetch", "parcel"} {
		p, err := recorded("after").Read(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(name, string(p), 10)
	}
	f.Add("map", `{"disk":{"cells":"xyz.h","shares":"!!!!!"}}`, 2)
	f.Fuzz(func(t *testing.T, name, text string, cells int) {
		s, err := New(texts{name: text}).Sample(time.Unix(1e9, 0))
		if err != nil {
			return
		}
		_ = s.Line()
		for _, im := range s.Images {
			n := 1 + cells&1023
			if m := im.Map.Shrink(n); len(m.Shares) == len(m.Cells) && len(m.Cells) > n {
				t.Errorf("%d cells of %d", len(m.Cells), n)
			}
		}
	})
}

// TestShrink: no state that matters more is hidden by one that matters less.
func TestShrink(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		cells := rapid.StringMatching(`[FMAmh.0]{1,200}`).Draw(t, "cells")
		n := rapid.IntRange(1, 250).Draw(t, "room")
		m := Map{PerCell: 4, Cells: cells, Shares: strings.Repeat("9", len(cells))}
		small := m.Shrink(n)
		if len(small.Cells) > n || len(small.Shares) != len(small.Cells) {
			t.Fatalf("%d cells, %d shares in room for %d", len(small.Cells), len(small.Shares), n)
		}
		k := int(small.PerCell / m.PerCell)
		for i := range small.Cells {
			part := cells[i*k : min((i+1)*k, len(cells))]
			best := part[0]
			for j := range part {
				if strings.IndexByte(image.CellStates, part[j]) < strings.IndexByte(image.CellStates, best) {
					best = part[j]
				}
			}
			share := (9*strings.Count(part, string(best)) + len(part) - 1) / len(part)
			if small.Cells[i] != best || small.Shares[i] != byte('0'+share) {
				t.Fatalf("%q became %c%c, want %c%d", part, small.Cells[i], small.Shares[i], best, share)
			}
		}
	})
}

func TestTexts(t *testing.T) {
	for n, want := range map[float64]string{0: "0 B", 1023: "1023 B", 1023.6: "1.0 KiB", 1024: "1.0 KiB", 1 << 20: "1.0 MiB",
		1<<20 - 1: "1.0 MiB", 1.5 * (1 << 40): "1.5 TiB", 1 << 62: "4.0 EiB"} {
		if got := Bytes(n); got != want {
			t.Errorf("%v bytes are %q, want %q", n, got, want)
		}
	}
	for d, want := range map[time.Duration]string{0: "-", -1: "-", 1500: "1 µs", 2 * time.Millisecond: "2.0 ms", 12 * time.Millisecond: "12 ms", 1500 * time.Millisecond: "1.5 s"} {
		if got := Took(d); got != want {
			t.Errorf("%d ns are %q, want %q", d, got, want)
		}
	}
	for p, want := range map[Percent]string{None: "-", 0: "0%", 12.6: "13%", 99.99: "99.9%", 100: "100%"} {
		if got := p.String(); got != want {
			t.Errorf("%v is %q, want %q", float64(p), got, want)
		}
	}
	if percent(5, 0) != None || percent(-1, 4) != 0 || percent(1, 4) != 25 {
		t.Error("percentages")
	}
}
