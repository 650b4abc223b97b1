package conf

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/gofrs/flock"

	"isr/store/atomicfile"
	"isr/store/parcel"
)

// Add adds a line that gives the list called name one more value, as it is
// meant: a value that the file's syntax would change is refused. All else in
// the file stays as it is, byte for byte; the file is made if need be.
func Add(home, file, name, value string) error {
	line := name + " = " + value
	got := &Config{home: home, values: make(map[string][]Value)}
	err := got.parse(file, line)
	if list := got.List(name); err != nil || len(list) != 1 || list[0] != value {
		return parcel.NewError(parcel.Usage, "%s %q: it cannot be written in a configuration file", name, value)
	}
	return edit(file, func(text string) string {
		if text != "" && !strings.HasSuffix(text, "\n") {
			text += "\n"
		}
		return text + line + "\n"
	})
}

// Remove removes the lines of file that give the list called name that value,
// and says how many there were.
func Remove(home, file, name, value string) (n int, err error) {
	err = edit(file, func(text string) string {
		var keep strings.Builder
		n = 0
		for line := range strings.SplitAfterSeq(text, "\n") {
			one := &Config{home: home, values: make(map[string][]Value)}
			if err := one.parse(file, strings.TrimSuffix(line, "\n")); err == nil {
				if list := one.List(name); len(list) == 1 && list[0] == value {
					n++
					continue
				}
			}
			keep.WriteString(line)
		}
		return keep.String()
	})
	return n, err
}

// edit replaces file, or what a link there leads to, by what f makes of it.
// Two at a time wait for each other.
func edit(file string, f func(text string) string) error {
	if to, err := filepath.EvalSymlinks(file); err == nil {
		file = to
	} else if !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("configuration: %w", err)
	} else if to, err := os.Readlink(file); err == nil {
		// A link to what is not there yet.
		if !filepath.IsAbs(to) {
			to = filepath.Join(filepath.Dir(file), to)
		}
		file = to
	}
	// The directory, since the file is another one afterwards.
	lock := flock.New(filepath.Dir(file), flock.SetFlag(os.O_RDONLY))
	if err := lock.Lock(); err != nil {
		return fmt.Errorf("configuration: %w", err)
	}
	defer lock.Close()
	mode := fs.FileMode(0o600)
	old, err := os.ReadFile(file)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return fmt.Errorf("configuration: %w", err)
	default:
		fi, err := os.Stat(file)
		if err != nil {
			return fmt.Errorf("configuration: %w", err)
		}
		mode = fi.Mode().Perm()
	}
	text := f(string(old))
	if text == string(old) {
		return nil
	}
	if err := atomicfile.Write(file, []byte(text), mode); err != nil {
		return fmt.Errorf("configuration: %w", err)
	}
	return nil
}
