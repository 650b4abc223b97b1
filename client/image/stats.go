package image

import (
	"sync"
	"sync/atomic"
	"time"

	"isr/client/histogram"
)

// Stats is what has happened to an image since New, except where it says
// otherwise. Bytes are of plaintext, except where it says sealed.
type Stats struct {
	Name      string `json:"name"`
	Size      int64  `json:"size"`
	ChunkSize int    `json:"chunk_size"`
	Chunks    int64  `json:"chunks"`

	Touched     int64 `json:"touched"`      // chunks asked for by a reader, or written
	FirstWrites int64 `json:"first_writes"` // of these, chunks written before they were read

	Fetched      int64 `json:"fetched"`       // distinct chunks that the getter gave
	FetchedBytes int64 `json:"fetched_bytes"` // sealed bytes of these
	Refetched    int64 `json:"refetched"`     // times that a chunk came once more
	FetchErrors  int64 `json:"fetch_errors"`  // fetches that failed, other than by being given up

	Modified    int64 `json:"modified"`     // chunks modified since checkout
	ModifiedNow int64 `json:"modified_now"` // chunks written since New

	CacheHits      int64 `json:"cache_hits"`
	CacheMisses    int64 `json:"cache_misses"`
	CacheEvictions int64 `json:"cache_evictions"` // chunks dropped for others

	Reads        int64 `json:"reads"` // calls, of guest and save
	ReadBytes    int64 `json:"read_bytes"`
	Writes       int64 `json:"writes"`
	WrittenBytes int64 `json:"written_bytes"`
	Flushes      int64 `json:"flushes"`

	SavedBytes   int64 `json:"saved_bytes"`   // bytes of pages that a save wrote
	SkippedBytes int64 `json:"skipped_bytes"` // bytes of pages that a save found unchanged

	Waiting    int           `json:"waiting"`     // chunks being fetched now
	WaitingFor time.Duration `json:"waiting_for"` // nanoseconds, of the one that waits longest

	// Nanoseconds that a demand fetch took, within an eighth.
	FetchP50 time.Duration `json:"fetch_p50"`
	FetchP90 time.Duration `json:"fetch_p90"`
	FetchP95 time.Duration `json:"fetch_p95"`
	FetchP99 time.Duration `json:"fetch_p99"`
}

// counts are the counters behind Stats.
type counts struct {
	touched, firstWrites          atomic.Int64
	fetched, fetchedBytes         atomic.Int64
	refetched, fetchErrors        atomic.Int64
	modified                      atomic.Int64
	hits, misses, evictions       atomic.Int64
	reads, readBytes              atomic.Int64
	writes, writtenBytes, flushes atomic.Int64
	saved, skipped                atomic.Int64
	latency                       histogram.Histogram
	seen                          bitset // chunks fetched
}

// fetch counts a chunk that came.
func (c *counts) fetch(n int64, sealed int, took time.Duration) {
	c.latency.Add(took)
	if !c.seen.set(n) {
		c.refetched.Add(1)
		return
	}
	c.fetched.Add(1)
	c.fetchedBytes.Add(int64(sealed))
}

// Snapshot is the counters now.
func (im *Image) Snapshot() Stats {
	c := &im.counts
	s := Stats{
		Name: im.c.Name, Size: im.c.Size, ChunkSize: im.c.ChunkSize, Chunks: im.Chunks(),
		Touched: c.touched.Load(), FirstWrites: c.firstWrites.Load(),
		Fetched: c.fetched.Load(), FetchedBytes: c.fetchedBytes.Load(),
		Refetched: c.refetched.Load(), FetchErrors: c.fetchErrors.Load(),
		Modified: im.overlay.ModifiedCount(), ModifiedNow: c.modified.Load(),
		CacheHits: c.hits.Load(), CacheMisses: c.misses.Load(), CacheEvictions: c.evictions.Load(),
		Reads: c.reads.Load(), ReadBytes: c.readBytes.Load(),
		Writes: c.writes.Load(), WrittenBytes: c.writtenBytes.Load(), Flushes: c.flushes.Load(),
		SavedBytes: c.saved.Load(), SkippedBytes: c.skipped.Load(),
		FetchP50: c.latency.Quantile(0.50), FetchP90: c.latency.Quantile(0.90),
		FetchP95: c.latency.Quantile(0.95), FetchP99: c.latency.Quantile(0.99),
	}
	n, since := im.fetcher.waiting()
	if s.Waiting = n; n > 0 {
		s.WaitingFor = time.Since(since)
	}
	return s
}

// maxTrace bounds the trace: 8 GiB of 128 KiB chunks.
const maxTrace = 64 << 10

// trace is the order in which readers first asked for chunks.
type trace struct {
	mu   sync.Mutex
	nums []int64
}

func (t *trace) add(n int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.nums) < maxTrace {
		t.nums = append(t.nums, n)
	}
}

// Trace is the numbers of the chunks that readers have asked for, in the order
// of their first touch; the first 65536 of them. Chunks first touched by a
// write are left out: they needed no fetch.
func (im *Image) Trace() []int64 {
	im.trace.mu.Lock()
	defer im.trace.mu.Unlock()
	return append([]int64(nil), im.trace.nums...)
}
