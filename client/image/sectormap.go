package image

import (
	"encoding/binary"
	"iter"
	"math/bits"
	"slices"
	"sync"
)

const (
	pageBytes   = 4096
	pageSectors = 8 * pageBytes // sectors that one page of the map covers: 16 MiB
	pageWords   = pageBytes / 8
)

// mapPage is one bit for each of pageSectors sectors.
type mapPage [pageWords]uint64

func (p *mapPage) encode(b []byte) {
	for i, w := range p {
		binary.LittleEndian.PutUint64(b[8*i:], w)
	}
}

func (p *mapPage) decode(b []byte) {
	for i := range p {
		p[i] = binary.LittleEndian.Uint64(b[8*i:])
	}
}

// sectorMap is the set of modified sectors, in pages of which only those that
// are not empty exist. Bits are only ever added, but by clear.
type sectorMap struct {
	chunk int64 // sectors in a chunk; a page holds a whole number of chunks

	mu     sync.RWMutex
	pages  map[int64]*mapPage
	dirty  map[int64]struct{} // pages not yet written down
	chunks int64              // chunks with a bit set
}

func newSectorMap(chunkSize int) *sectorMap {
	return &sectorMap{chunk: int64(chunkSize) / sectorSize,
		pages: make(map[int64]*mapPage), dirty: make(map[int64]struct{})}
}

// load adds a page as read from a file.
func (m *sectorMap) load(n int64, p *mapPage) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.pages[n] = p
	for c := int64(0); c < pageSectors; c += m.chunk {
		if p.count(c, c+m.chunk) > 0 {
			m.chunks++
		}
	}
}

// words calls f for each word of p that holds a bit in [from, to), with the
// mask of those bits, until f returns false.
func (p *mapPage) words(from, to int64, f func(w *uint64, mask uint64) bool) {
	for from < to {
		n := min(64-from%64, to-from)
		mask := ^uint64(0) >> (64 - n) << (from % 64)
		if !f(&p[from/64], mask) {
			return
		}
		from += n
	}
}

// count is the number of bits set in [from, to) of the page.
func (p *mapPage) count(from, to int64) (n int64) {
	p.words(from, to, func(w *uint64, mask uint64) bool {
		n += int64(bits.OnesCount64(*w & mask))
		return true
	})
	return n
}

// set adds sectors [from, to).
func (m *sectorMap) set(from, to int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for from < to {
		n, base := from/pageSectors, from/pageSectors*pageSectors
		end := min(to, base+pageSectors)
		p := m.pages[n]
		if p == nil {
			p = new(mapPage)
			m.pages[n] = p
		}
		for c := from / m.chunk; c*m.chunk < end; c++ {
			if p.count(c*m.chunk-base, (c+1)*m.chunk-base) == 0 {
				m.chunks++
			}
		}
		p.words(from-base, end-base, func(w *uint64, mask uint64) bool {
			if *w&mask != mask {
				*w |= mask
				m.dirty[n] = struct{}{}
			}
			return true
		})
		from = end
	}
}

// run is the number of sectors from on, up to to, that are like the sector
// from, and whether that one is in the set.
func (m *sectorMap) run(from, to int64) (n int64, in bool) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	start := from
	for first := true; from < to; first = false {
		base := from / pageSectors * pageSectors
		end := min(to, base+pageSectors)
		p := m.pages[from/pageSectors]
		if p == nil {
			if first {
				in = false
			} else if in {
				break
			}
			from = end
			continue
		}
		if first {
			in = p[(from-base)/64]>>((from-base)%64)&1 == 1
		}
		stop := false
		p.words(from-base, end-base, func(w *uint64, mask uint64) bool {
			other := *w & mask // bits unlike the first
			if in {
				other = ^*w & mask
			}
			if other == 0 {
				from += int64(bits.OnesCount64(mask))
				return true
			}
			from += int64(bits.TrailingZeros64(other) - bits.TrailingZeros64(mask))
			stop = true
			return false
		})
		if stop {
			break
		}
	}
	return from - start, in
}

// all reports whether the set holds every sector of [from, to).
func (m *sectorMap) all(from, to int64) bool {
	n, in := m.run(from, to)
	return in && n == to-from
}

// any reports whether the set holds a sector of chunk n.
func (m *sectorMap) any(n int64) bool {
	m.mu.RLock()
	defer m.mu.RUnlock()
	p, at := m.page(n)
	return p != nil && p.count(at, at+m.chunk) > 0
}

// bits is the part of the map for chunk n, as in the file.
func (m *sectorMap) bits(n int64) []byte {
	m.mu.RLock()
	defer m.mu.RUnlock()
	b := make([]byte, (m.chunk+7)/8)
	p, at := m.page(n)
	for i := int64(0); p != nil && i < m.chunk; i++ {
		b[i/8] |= byte(p[(at+i)/64]>>((at+i)%64)&1) << (i % 8)
	}
	return b
}

// page is the page of chunk n, nil if it is empty, and where in it the chunk
// begins; mu is held.
func (m *sectorMap) page(n int64) (*mapPage, int64) {
	return m.pages[n*m.chunk/pageSectors], n * m.chunk % pageSectors
}

// clear takes the sectors [from, to) of one chunk out of the set. It is for
// who has the set alone.
func (m *sectorMap) clear(from, to int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := from / pageSectors
	p, base := m.pages[n], n*pageSectors
	if p == nil || p.count(from-base, to-base) == 0 {
		return
	}
	m.chunks--
	p.words(from-base, to-base, func(w *uint64, mask uint64) bool {
		*w &^= mask
		return true
	})
	m.dirty[n] = struct{}{}
}

// modified is the number of chunks with a sector in the set.
func (m *sectorMap) modified() int64 {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.chunks
}

// modifiedChunks gives the numbers of those chunks, ascending, as of the call
// for each page.
func (m *sectorMap) modifiedChunks() iter.Seq[int64] {
	return func(yield func(int64) bool) {
		m.mu.RLock()
		nums := make([]int64, 0, len(m.pages))
		for n := range m.pages {
			nums = append(nums, n)
		}
		m.mu.RUnlock()
		slices.Sort(nums)
		var found []int64
		for _, n := range nums {
			found = found[:0]
			m.mu.RLock()
			p := m.pages[n]
			for c := int64(0); p != nil && c < pageSectors; c += m.chunk {
				if p.count(c, c+m.chunk) > 0 {
					found = append(found, (n*pageSectors+c)/m.chunk)
				}
			}
			m.mu.RUnlock()
			for _, c := range found {
				if !yield(c) {
					return
				}
			}
		}
	}
}

// takeDirty copies the pages that changed since the last call. A bit set
// before the call is in the copy.
func (m *sectorMap) takeDirty() map[int64]*mapPage {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.dirty) == 0 {
		return nil
	}
	out := make(map[int64]*mapPage, len(m.dirty))
	for n := range m.dirty {
		p := *m.pages[n]
		out[n] = &p
	}
	clear(m.dirty)
	return out
}

// giveBack makes pages that takeDirty gave dirty again.
func (m *sectorMap) giveBack(pages map[int64]*mapPage) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for n := range pages {
		m.dirty[n] = struct{}{}
	}
}

// reset empties the set.
func (m *sectorMap) reset() {
	m.mu.Lock()
	defer m.mu.Unlock()
	clear(m.pages)
	clear(m.dirty)
	m.chunks = 0
}
