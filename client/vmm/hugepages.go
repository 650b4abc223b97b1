package vmm

import (
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// refuseHugePages has madvise(MADV_HUGEPAGE) fail for this thread and the
// programs it starts.
//
// QEMU gives that advice for all guest memory, and ignores a refusal. With it
// Linux (since 5.18, do_sync_mmap_readahead) reads 2 MiB of the file around
// each fault, whatever read-ahead the mount asks for: a resumed guest fetched
// half its memory before its first tick. Huge pages would not come of it, as
// the mapping is private and its file is no block device's.
//
// The filter needs no_new_privs, which also keeps QEMU from gaining rights by
// a set-user-ID helper; we use none.
func refuseHugePages() error {
	arch, ok := map[string]uint32{"amd64": unix.AUDIT_ARCH_X86_64, "arm64": unix.AUDIT_ARCH_AARCH64}[runtime.GOARCH]
	if !ok {
		return nil
	}
	// Offsets in struct seccomp_data, seccomp(2): number, arch, third argument.
	const nr, arch0, advice = 0, 4, 16 + 2*8
	load := func(at uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: at}
	}
	unless := func(k uint32, skip uint8) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: k, Jf: skip}
	}
	answer := func(k uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: k}
	}
	filter := []unix.SockFilter{
		load(arch0), unless(arch, 5),
		load(nr), unless(unix.SYS_MADVISE, 3),
		load(advice), unless(unix.MADV_HUGEPAGE, 1),
		answer(unix.SECCOMP_RET_ERRNO | uint32(unix.EINVAL)),
		answer(unix.SECCOMP_RET_ALLOW),
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("no_new_privs: %w", err)
	}
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	err := unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&prog)), 0, 0)
	runtime.KeepAlive(filter)
	if err != nil {
		return fmt.Errorf("seccomp: %w", err)
	}
	return nil
}
