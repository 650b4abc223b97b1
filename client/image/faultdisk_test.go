package image

import (
	"errors"
	"io"
	"io/fs"
	"math/rand/v2"
	"sync"
)

// faultDisk is a disk in memory that may lose, at a power cut, any sectors
// that were not synced, and that can be told to fail at its n-th step.
type faultDisk struct {
	mu    sync.Mutex
	files map[string]*faultData
	rng   *rand.Rand
	steps int   // steps taken
	at    int   // the step that fails, and with it all that follow; 0: none
	fault error // how
	once  bool  // only that step fails

	onSync func() // called at the end of each Sync, once it is done
}

var errPower = errors.New("power cut")

func newFaultDisk(seed uint64) *faultDisk {
	return &faultDisk{files: make(map[string]*faultData), rng: rand.New(rand.NewPCG(seed, 1))}
}

// faultData is a file: what is durable, and what was written since.
type faultData struct {
	size    int64
	durable map[int64][sectorSize]byte // sectors that are not zero
	pending map[int64][sectorSize]byte
}

func newFaultData(size int64) *faultData {
	return &faultData{size: size, durable: make(map[int64][sectorSize]byte), pending: make(map[int64][sectorSize]byte)}
}

// step counts a change; d.mu is held. When it fails, the change may have been
// made in part.
func (d *faultDisk) step() error {
	d.steps++
	if d.at > 0 && (d.steps == d.at || d.steps > d.at && !d.once) {
		return d.fault
	}
	return nil
}

// cut is a power cut: of each unsynced sector, either state may remain. The
// disk works again.
func (d *faultDisk) cut() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, f := range d.files {
		for n, s := range f.pending {
			if d.rng.IntN(2) == 0 {
				f.durable[n] = s
			}
		}
		clear(f.pending)
	}
	d.at = 0
}

func (d *faultDisk) Open(name string) (file, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	f := d.files[name]
	if f == nil {
		return nil, fs.ErrNotExist
	}
	return &faultFile{d, f}, nil
}

func (d *faultDisk) Create(name string, head []byte, size int64) (file, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.step(); err != nil {
		return nil, err
	}
	f := newFaultData(size)
	for i := 0; i < len(head); i += sectorSize {
		f.durable[int64(i/sectorSize)] = [sectorSize]byte(head[i : i+sectorSize])
	}
	d.files[name] = f
	return &faultFile{d, f}, nil
}

func (d *faultDisk) Remove(name string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.step(); err != nil {
		return err
	}
	delete(d.files, name)
	return nil
}

type faultFile struct {
	d *faultDisk
	f *faultData
}

func (f *faultFile) sector(n int64) [sectorSize]byte {
	if s, ok := f.f.pending[n]; ok {
		return s
	}
	return f.f.durable[n]
}

func (f *faultFile) ReadAt(p []byte, off int64) (int, error) {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	done := 0
	for done < len(p) && off+int64(done) < f.f.size {
		at := off + int64(done)
		s := f.sector(at / sectorSize)
		done += copy(p[done:], s[at%sectorSize:min(sectorSize, f.f.size-at+at%sectorSize)])
	}
	if done < len(p) {
		return done, io.EOF
	}
	return done, nil
}

// WriteAt takes whole sectors only: the overlay writes nothing else.
func (f *faultFile) WriteAt(p []byte, off int64) (int, error) {
	if len(p)%sectorSize != 0 || off%sectorSize != 0 {
		panic("write of a part of a sector")
	}
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	err := f.d.step()
	n := len(p) / sectorSize
	if err != nil {
		n = f.d.rng.IntN(n + 1) // torn
	}
	for i := range n {
		f.f.pending[off/sectorSize+int64(i)] = [sectorSize]byte(p[i*sectorSize:])
	}
	f.f.size = max(f.f.size, off+int64(n)*sectorSize)
	if err != nil {
		return 0, err
	}
	return len(p), nil
}

func (f *faultFile) Sync() error {
	if f.d.onSync != nil {
		defer f.d.onSync()
	}
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	if err := f.d.step(); err != nil {
		// The kernel drops what it could not write, and says so once.
		for n, s := range f.f.pending {
			if f.d.rng.IntN(2) == 0 {
				f.f.durable[n] = s
			}
		}
		clear(f.f.pending)
		return err
	}
	for n, s := range f.f.pending {
		f.f.durable[n] = s
	}
	clear(f.f.pending)
	return nil
}

func (f *faultFile) Data(off int64) (from, to int64, err error) {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	from = -1
	for _, m := range []map[int64][sectorSize]byte{f.f.durable, f.f.pending} {
		for n := range m {
			if at := n * sectorSize; at+sectorSize > off && (from < 0 || at < from) {
				from = max(at, off)
			}
		}
	}
	if from < 0 {
		return 0, 0, io.EOF
	}
	return from, (from/sectorSize + 1) * sectorSize, nil
}

func (f *faultFile) Close() error { return nil }
