package vmm

import (
	"sync"
)

// runBytes is the most that is written to the memory image at once. Runs never
// cross a multiple of it.
const runBytes = 128 << 10

// pageWriter stores saved pages in the memory image, joined to runs, while the
// next ones are still being read.
type pageWriter struct {
	pages   Pages
	changed pageSet // nil: not known, go by Pages.Asked

	run     []byte // pages not yet handed over
	runAt   int64
	queue   chan pageRun
	free    chan []byte
	done    sync.WaitGroup
	failed  chan struct{} // closed on the first error
	err     error
	written int64 // bytes
	dropped int64 // pages
}

type pageRun struct {
	at   int64
	data []byte
}

func newPageWriter(pages Pages, changed pageSet) *pageWriter {
	const buffers = 8
	w := &pageWriter{
		pages: pages, changed: changed,
		queue: make(chan pageRun, buffers), free: make(chan []byte, buffers), failed: make(chan struct{}),
	}
	for range buffers {
		w.free <- make([]byte, 0, runBytes)
	}
	w.done.Add(1)
	go func() {
		defer w.done.Done()
		for r := range w.queue {
			if w.err == nil {
				if _, w.err = w.pages.WriteAt(r.data, r.at); w.err != nil {
					close(w.failed)
				}
			}
			w.free <- r.data[:0]
		}
	}()
	return w
}

// page implements pageSink.
func (w *pageWriter) page(addr int64, data []byte) error {
	keep := false
	if w.changed != nil {
		keep = w.changed.has(addr / streamPage)
	} else {
		keep = w.pages.Asked(addr, len(data))
	}
	if !keep {
		w.dropped++
		return nil
	}
	if len(w.run) > 0 && (w.runAt+int64(len(w.run)) != addr || addr%runBytes == 0) {
		w.flush()
	}
	if len(w.run) == 0 {
		select {
		case <-w.failed:
			return w.err
		case w.run = <-w.free:
		}
		w.runAt = addr
	}
	w.run = append(w.run, data...)
	return nil
}

func (w *pageWriter) flush() {
	w.written += int64(len(w.run))
	w.queue <- pageRun{w.runAt, w.run}
	w.run = nil
}

// close writes what is left and reports the first error.
func (w *pageWriter) close() error {
	if len(w.run) > 0 {
		w.flush()
	}
	close(w.queue)
	w.done.Wait()
	return w.err
}
