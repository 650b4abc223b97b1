package vmm

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"os"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// pageSet is a set of page numbers.
type pageSet []uint64

func (s pageSet) has(page int64) bool { return s[page/64]>>(page%64)&1 != 0 }
func (s pageSet) add(page int64)      { s[page/64] |= 1 << (page % 64) }

// changedPages asks the kernel which pages of a private mapping of the file path, in
// process pid, differ from the file: those that were written to, for which the process has
// pages of its own. The kernel knows this for certain, page by page, so neither what was only read
// nor what shares a chunk with a write has to be stored. size is the file's
// size; every page of it has to be mapped, or it is an error.
func changedPages(pid int, path string, size int64) (pageSet, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	sys := st.Sys().(*syscall.Stat_t)
	device := fmt.Sprintf("%02x:%02x", unix.Major(uint64(sys.Dev)), unix.Minor(uint64(sys.Dev)))

	maps, err := os.Open(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		return nil, err
	}
	defer maps.Close()
	pagemap, err := os.Open(fmt.Sprintf("/proc/%d/pagemap", pid))
	if err != nil {
		return nil, err
	}
	defer pagemap.Close()

	set := make(pageSet, (size/streamPage+63)/64)
	var mapped int64
	sc := bufio.NewScanner(maps)
	for sc.Scan() {
		// 7f0000000000-7f0010000000 rw-p 00000000 00:2b 3   /path
		var from, to uint64
		var offset int64
		var ino uint64
		var perms, dev string
		if n, _ := fmt.Sscanf(sc.Text(), "%x-%x %s %x %s %d", &from, &to, &perms, &offset, &dev, &ino); n != 6 {
			continue
		}
		if dev != device || ino != sys.Ino {
			continue
		}
		if !strings.HasSuffix(perms, "p") {
			return nil, fmt.Errorf("%s is mapped %s", path, perms)
		}
		if offset+int64(to-from) > size {
			to = from + uint64(size-offset)
		}
		if err := changedIn(pagemap, from, to, offset, set); err != nil {
			return nil, err
		}
		mapped += int64(to - from)
	}
	if err := sc.Err(); err != nil {
		return nil, err
	}
	if mapped != size {
		return nil, fmt.Errorf("%d bytes of %s are mapped, expected %d", mapped, path, size)
	}
	return set, nil
}

// Bits of a pagemap entry.
const (
	pmPresent = 1 << 63
	pmSwapped = 1 << 62
	pmFile    = 1 << 61 // the file's own page, or shared
)

func changedIn(pagemap *os.File, from, to uint64, offset int64, set pageSet) error {
	buf := make([]byte, 128<<10)
	for at := from; at < to; {
		n := min((to-at)/streamPage*8, uint64(len(buf)))
		if n == 0 {
			break
		}
		if _, err := pagemap.ReadAt(buf[:n], int64(at/streamPage*8)); err != nil {
			return fmt.Errorf("pagemap: %w", err)
		}
		for i := uint64(0); i < n; i += 8 {
			e := binary.NativeEndian.Uint64(buf[i:])
			if e&(pmPresent|pmSwapped) != 0 && e&pmFile == 0 {
				set.add((offset + int64(at-from) + int64(i/8*streamPage)) / streamPage)
			}
		}
		at += n / 8 * streamPage
	}
	return nil
}
