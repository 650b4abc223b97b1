package hooks

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"isr/locksrv/event"
)

// Hook is a program that is there for one event.
type Hook struct {
	Name string // pre-commit, or pre-commit.d/50-quota
	Path string // of the program itself, without symbolic links
	Err  error  // why it will not be run: then what a pre-hook watches over is refused
}

// Find is the hooks of one event in the order in which they are run. One that
// must not be run is among them: silence would be consent.
func (r *Runner) Find(event string) ([]Hook, error) {
	if r == nil {
		return nil, nil
	}
	var hs []Hook
	program := filepath.Join(r.Dir, event)
	if _, err := os.Lstat(program); err == nil {
		hs = append(hs, r.hook(event))
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	entries, err := os.ReadDir(program + ".d")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return hs, err
	}
	for _, entry := range entries { // by name
		if partName(entry.Name()) {
			hs = append(hs, r.hook(event+".d/"+entry.Name()))
		}
	}
	return hs, nil
}

// partName says whether a file in a directory of hooks is one: as with
// run-parts(8), backups of editors and packages are not.
func partName(name string) bool {
	return name != "" && strings.Trim(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-") == ""
}

func (r *Runner) hook(name string) Hook {
	h := Hook{Name: name}
	h.Path, h.Err = trusted(filepath.Join(r.Dir, name))
	return h
}

// trusted is the program that name leads to, if it is one that only root and
// we ourselves can have written or put there.
func trusted(name string) (string, error) {
	// Where the name is counts as well as where its links lead.
	link, err := filepath.EvalSymlinks(filepath.Dir(name))
	if err != nil {
		return "", err
	}
	if err := ours(link); err != nil {
		return "", err
	}
	path, err := filepath.EvalSymlinks(name)
	if err != nil {
		return "", err
	}
	fi, err := os.Stat(path)
	if err != nil {
		return "", err
	}
	switch {
	case !fi.Mode().IsRegular():
		return "", fmt.Errorf("%s: not a program", path)
	case fi.Mode()&0o111 == 0:
		return "", fmt.Errorf("%s: not executable", path)
	}
	return path, ours(path)
}

// ours says whether path and every directory above it, which has no symbolic
// links, is in nobody's hands but root's and our own. A sticky directory is
// one where others cannot replace what is ours.
func ours(path string) error {
	for first := true; ; first = false {
		fi, err := os.Lstat(path)
		if err != nil {
			return err
		}
		owner := fi.Sys().(*syscall.Stat_t).Uid
		if owner != 0 && int(owner) != os.Geteuid() {
			return fmt.Errorf("%s: belongs to uid %d, which is neither root's nor the realm's", path, owner)
		}
		if fi.Mode().Perm()&0o022 != 0 && (first || fi.Mode()&fs.ModeSticky == 0) {
			return fmt.Errorf("%s: others can write it", path)
		}
		parent := filepath.Dir(path)
		if parent == path {
			return nil
		}
		path = parent
	}
}

// Survey is every hook there is, by event and in the order of running, and
// every file that looks like one and will never be run, with Err saying why.
func (r *Runner) Survey() (hs, idle []Hook, err error) {
	known := make(map[string]bool)
	for _, op := range event.Ops {
		for _, when := range []string{"pre-", "post-"} {
			known[when+op] = true
			found, err := r.Find(when + op)
			if err != nil {
				return nil, nil, err
			}
			hs = append(hs, found...)
		}
	}
	entries, err := os.ReadDir(r.Dir)
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	for _, entry := range entries {
		name := entry.Name()
		base, isDir := strings.CutSuffix(name, ".d")
		switch {
		case !strings.HasPrefix(name, "pre") && !strings.HasPrefix(name, "post"):
			// What hooks need: settings, a library.
		case !known[base]:
			idle = append(idle, Hook{Name: name, Err: errors.New("never run: no event has this name")})
		case isDir:
			parts, err := os.ReadDir(filepath.Join(r.Dir, name))
			if err != nil {
				return hs, idle, err
			}
			for _, part := range parts {
				if !partName(part.Name()) {
					idle = append(idle, Hook{Name: name + "/" + part.Name(), Err: errors.New("never run: its name has more than letters, digits, - and _")})
				}
			}
		}
	}
	return hs, idle, err
}
