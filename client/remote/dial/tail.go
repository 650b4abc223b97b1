package dial

import "sync"

// Tail is a writer that keeps the last Limit bytes of what a command says. Safe for concurrent use.
type Tail struct {
	Limit int

	mu  sync.Mutex
	buf []byte
}

// Write keeps p, as far as there is room.
func (t *Tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf = append(t.buf, p...)
	if over := len(t.buf) - t.Limit; over > 0 {
		t.buf = append(t.buf[:0], t.buf[over:]...)
	}
	return len(p), nil
}

// String is what was kept.
func (t *Tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.buf)
}
