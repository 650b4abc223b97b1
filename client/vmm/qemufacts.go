package vmm

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"syscall"
)

// qemuFacts is what a QEMU program says of itself with one accelerator.
type qemuFacts struct {
	Version  qmpVersion
	Machines []string // versioned machine types
	PC       string   // the one that "pc" stands for
	CPUs     map[string]cpuFacts
	Sandbox  bool // built with seccomp
}

type cpuFacts struct {
	MigrationSafe bool     // the same on every host
	Unavailable   []string // features this host lacks
}

var (
	factsMu   sync.Mutex
	factsMemo = map[string]*qemuFacts{}
)

// identity tells one build of a program on one boot of one host from another.
func identity(program string) (string, error) {
	st, err := os.Stat(program)
	if err != nil {
		return "", err
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", err
	}
	ino := uint64(0)
	if s, ok := st.Sys().(*syscall.Stat_t); ok {
		ino = s.Ino
	}
	return fmt.Sprintf("%s %d %d %d %.36s", program, ino, st.Size(), st.ModTime().UnixNano(), boot), nil
}

// cached keeps one JSON record per name in dir, valid as long as key is the same.
type cached[T any] struct {
	Key   string
	Value T
}

func readCache[T any](dir, name, key string) (v T, ok bool) {
	if dir == "" {
		return v, false
	}
	b, err := os.ReadFile(filepath.Join(dir, name))
	var c cached[T]
	if err != nil || json.Unmarshal(b, &c) != nil || c.Key != key {
		return v, false
	}
	return c.Value, true
}

// writeCache does its best: what it cannot keep is found out again.
func writeCache[T any](dir, name, key string, v T) {
	if dir == "" {
		return
	}
	b, err := json.Marshal(cached[T]{key, v})
	if err != nil || os.MkdirAll(dir, 0o700) != nil {
		return
	}
	f, err := os.CreateTemp(dir, name+".*")
	if err != nil {
		return
	}
	_, err = f.Write(b)
	if cerr := f.Close(); err != nil || cerr != nil || os.Rename(f.Name(), filepath.Join(dir, name)) != nil {
		os.Remove(f.Name())
	}
}

// factsOf asks program, or remembers.
func factsOf(ctx context.Context, cacheDir, program, accel string) (*qemuFacts, error) {
	key, err := identity(program)
	if err != nil {
		return nil, err
	}
	key = accel + " " + key
	factsMu.Lock()
	defer factsMu.Unlock()
	if f := factsMemo[key]; f != nil {
		return f, nil
	}
	name := "qemu-" + accel + ".json"
	f, ok := readCache[*qemuFacts](cacheDir, name, key)
	if !ok || f == nil {
		if f, err = askFacts(ctx, program, accel); err != nil {
			return nil, err
		}
		writeCache(cacheDir, name, key, f)
	}
	factsMemo[key] = f
	return f, nil
}

func askFacts(ctx context.Context, program, accel string) (*qemuFacts, error) {
	stderr := &tail{}
	c, q, err := spawn(ctx, program, []string{"-nodefaults", "-no-user-config", "-machine", "none", "-accel", accel, "-display", "none", "-S"}, stderr)
	if err != nil {
		return nil, err
	}
	defer c.kill()
	defer q.close()
	var machines []struct{ Name, Alias string }
	if err := q.execute(ctx, "query-machines", nil, &machines); err != nil {
		return nil, err
	}
	var cpus []struct {
		Name        string
		Safe        bool     `json:"migration-safe"`
		Unavailable []string `json:"unavailable-features"`
	}
	if err := q.execute(ctx, "query-cpu-definitions", nil, &cpus); err != nil {
		return nil, err
	}
	f := &qemuFacts{Version: q.version, CPUs: map[string]cpuFacts{}}
	for _, m := range machines {
		f.Machines = append(f.Machines, m.Name)
		if m.Alias == "pc" {
			f.PC = m.Name
		}
	}
	for _, c := range cpus {
		f.CPUs[c.Name] = cpuFacts{c.Safe, c.Unavailable}
	}
	f.Sandbox = q.execute(ctx, "query-command-line-options", map[string]string{"option": "sandbox"}, nil) == nil
	return f, nil
}
