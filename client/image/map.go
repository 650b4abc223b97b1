package image

import "math/bits"

// maxCells bounds a map: what a page or a terminal can show.
const maxCells = 4096

// The states that a cell of a Map can show. Of a cell's chunks it shows that
// state, of those that occur, which stands first here.
const (
	CellFetching = 'F' // on its way
	CellModified = 'M' // written since New
	CellAccessed = 'A' // asked for by a reader since New
	CellBefore   = 'm' // modified since checkout, before New
	CellHere     = 'h' // its object is on this host
	CellAbsent   = '.' // its object is elsewhere
	CellZeros    = '0' // it has no object: it is zeros
)

// CellStates is the states in their order.
const CellStates = "FMAmh.0"

// Map is an image at a glance: cells of equally many chunks, in order.
type Map struct {
	Chunks  int64 `json:"chunks"`
	PerCell int64 `json:"per_cell"` // chunks, a power of two; the last cell may have fewer

	Cells string `json:"cells"` // for each cell its state
	// Shares has for each cell the part of its chunks that are in the state,
	// in ninths rounded up, as a digit.
	Shares string `json:"shares"`

	Counts map[string]int64 `json:"counts"` // chunks by state
	Stored int64            `json:"stored"` // chunks that are objects, as far as known
	Here   int64            `json:"here"`   // of these, on this host, whatever else was done to them
}

// Presence is which pristine chunks are objects, and which of these are on
// this host, as far as its maker has found out. One may write while any read.
type Presence struct {
	chunks       int64
	stored, here bitset
}

// NewPresence is that of an image of so many chunks, of which nothing is
// known: they count as zeros.
func NewPresence(chunks int64) *Presence {
	return &Presence{chunks, newBitset(chunks), newBitset(chunks)}
}

// Fill says the same of chunks [from, to), cut off at the end of the image.
func (p *Presence) Fill(from, to int64, stored, here bool) {
	to = min(to, p.chunks)
	p.stored.fill(from, to, stored)
	p.here.fill(from, to, here)
}

// Known reports what is known of chunk n.
func (p *Presence) Known(n int64) (stored, here bool) { return p.stored.has(n), p.here.has(n) }

// Map is the image now. It costs a few passes over a bit for each chunk:
// about a millisecond for 1 TiB.
func (im *Image) Map(p *Presence) Map {
	im.mapOnce.Do(func() {
		before := newBitset(im.Chunks())
		for n := range im.overlay.Modified() {
			before.set(n)
		}
		im.before = before
	})
	m := Map{Chunks: im.Chunks(), PerCell: 1, Counts: make(map[string]int64, len(CellStates))}
	for (m.Chunks+m.PerCell-1)/m.PerCell > maxCells {
		m.PerCell *= 2
	}
	cells := (m.Chunks + m.PerCell - 1) / m.PerCell
	fetching := newBitset(m.Chunks)
	for _, n := range im.fetcher.fetching() {
		fetching.set(n)
	}
	states, shares := make([]byte, cells), make([]byte, cells)
	var totals [len(CellStates)]int64
	for cell := range cells {
		var counts [len(CellStates)]int64
		from, to := cell*m.PerCell, min((cell+1)*m.PerCell, m.Chunks)
		for at := from; at < to; {
			n := min(64-at%64, to-at)
			word, left := at/64, ^uint64(0)>>(64-n)<<(at%64)
			stored, here := p.stored[word].Load(), p.here[word].Load()
			seen := im.counts.seen[word].Load()
			stored, here = stored|seen, here&stored|seen
			m.Stored += int64(bits.OnesCount64(stored & left))
			m.Here += int64(bits.OnesCount64(here & left))
			for i, state := range [...]uint64{fetching[word].Load(), im.modified[word].Load(), im.touched[word].Load(),
				im.before[word].Load(), here, stored, ^uint64(0)} {
				counts[i] += int64(bits.OnesCount64(state & left))
				left &^= state
			}
			at += n
		}
		for i := len(counts) - 1; i >= 0; i-- {
			if counts[i] > 0 {
				states[cell] = CellStates[i]
				shares[cell] = '0' + byte((counts[i]*9+to-from-1)/(to-from))
			}
			totals[i] += counts[i]
		}
	}
	for i, n := range totals {
		m.Counts[CellStates[i:i+1]] = n
	}
	m.Cells, m.Shares = string(states), string(shares)
	return m
}

// fill makes bits [from, to) on or not. It is for bitsets that one goroutine
// writes.
func (b bitset) fill(from, to int64, on bool) {
	for from < to {
		n := min(64-from%64, to-from)
		mask := ^uint64(0) >> (64 - n) << (from % 64)
		if w := &b[from/64]; on {
			w.Or(mask)
		} else {
			w.And(^mask)
		}
		from += n
	}
}
