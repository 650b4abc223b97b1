package store

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/crypto/ssh"

	"isr/store/atomicfile"
	"isr/store/parcel"
)

const keysFile = "authorized_keys"

// user is where one user's parcels are. The two roots need not be neighbours,
// nor below the store.
type user struct {
	name        string
	dir         string // who she is: authorized_keys
	lockRoot    string // lock sides of her parcels
	contentRoot string // content sides: what SFTP shows
}

func (s *Store) userAt(name string) user {
	dir := filepath.Join(s.root, usersDir, name)
	return user{name: name, dir: dir,
		lockRoot: filepath.Join(dir, ".isr"), contentRoot: filepath.Join(dir, "isr")}
}

// user is an existing user; parcel.ErrNoParcel if there is none of that name.
func (s *Store) user(name string) (user, error) {
	if err := parcel.CheckName(name); err != nil {
		return user{}, fmt.Errorf("user: %w", err)
	}
	u := s.userAt(name)
	if ok, err := isDir(u.dir); err != nil || !ok {
		if err == nil {
			err = parcel.NewError(parcel.NoParcel, "user %s: no such user", name)
		}
		return user{}, err
	}
	return u, nil
}

// isDir reports whether path is a directory itself, and no link to one: who
// can make a link in the tree must not be able to make others' files part of
// it.
func isDir(path string) (bool, error) {
	fi, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil && fi.IsDir(), err
}

// UserDirs are the directories of a user's lock sides, never to be shown, and
// of the content sides, which SFTP shows.
func (s *Store) UserDirs(name string) (lock, content string, err error) {
	u, err := s.user(name)
	return u.lockRoot, u.contentRoot, err
}

// Users are the names of all users, sorted.
func (s *Store) Users() ([]string, error) { return subdirs(filepath.Join(s.root, usersDir)) }

// AddUser adds a user, with the lines of an authorized_keys file, maybe none.
// parcel.ErrExists if there is one of that name.
func (s *Store) AddUser(name string, keys []string) error {
	if err := parcel.CheckName(name); err != nil {
		return fmt.Errorf("user: %w", err)
	}
	lines, err := checkKeys(keys)
	if err != nil {
		return fmt.Errorf("user %s: %w", name, err)
	}
	unlock, err := lockFile(filepath.Join(s.root, flockFile), false)
	if err != nil {
		return err
	}
	defer unlock()
	users := filepath.Join(s.root, usersDir)
	removeTemps(users)
	u := s.userAt(name)
	if _, err := os.Lstat(u.dir); err == nil {
		return parcel.NewError(parcel.Exists, "user %s: exists", name)
	}
	if err := s.checkUnshared(name, lines); err != nil {
		return err
	}
	// Whole or not at all: made aside, then renamed.
	temp, err := os.MkdirTemp(users, atomicfile.TempPrefix+"*")
	if err != nil {
		return err
	}
	defer os.RemoveAll(temp)
	for _, dir := range []string{u.lockRoot, u.contentRoot} {
		if err := os.Mkdir(filepath.Join(temp, filepath.Base(dir)), dirMode); err != nil {
			return err
		}
	}
	step("keys")
	if err := atomicfile.Write(filepath.Join(temp, keysFile), lines, fileMode); err != nil {
		return err
	}
	step("user")
	if err := os.Rename(temp, u.dir); err != nil {
		return err
	}
	return atomicfile.SyncDir(users)
}

// AddKeys adds lines of an authorized_keys file to a user's; those she has
// are left out.
func (s *Store) AddKeys(name string, keys []string) error {
	lines, err := checkKeys(keys)
	if err != nil {
		return fmt.Errorf("user %s: %w", name, err)
	}
	unlock, err := lockFile(filepath.Join(s.root, flockFile), false)
	if err != nil {
		return err
	}
	defer unlock()
	u, err := s.user(name)
	if err != nil {
		return err
	}
	if err := s.checkUnshared(name, lines); err != nil {
		return err
	}
	file := filepath.Join(u.dir, keysFile)
	old, err := os.ReadFile(file)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if len(old) > 0 && old[len(old)-1] != '\n' {
		old = append(old, '\n')
	}
	have, _ := parseKeys(old)
	for line := range bytes.Lines(lines) {
		add, err := parseKeys(line)
		if err != nil {
			return err
		}
		if !slices.ContainsFunc(have, func(k ssh.PublicKey) bool { return sameKey(k, add[0]) }) {
			old = append(old, line...)
		}
	}
	return atomicfile.Write(file, old, fileMode)
}

// DelUser removes a user who has no parcels.
func (s *Store) DelUser(name string) error {
	unlock, err := lockFile(filepath.Join(s.root, flockFile), false)
	if err != nil {
		return err
	}
	defer unlock()
	u, err := s.user(name)
	if err != nil {
		return err
	}
	for _, dir := range []string{u.lockRoot, u.contentRoot} {
		names, err := subdirs(dir)
		if err != nil {
			return err
		}
		if len(names) > 0 {
			return parcel.NewError(parcel.Exists, "user %s: has parcels: %s", name, strings.Join(names, " ")).
				WithHint("remove them first")
		}
	}
	users := filepath.Join(s.root, usersDir)
	temp := filepath.Join(users, atomicfile.TempPrefix+parcel.NewID())
	step("user")
	if err := os.Rename(u.dir, temp); err != nil {
		return err
	}
	if err := atomicfile.SyncDir(users); err != nil {
		return err
	}
	return os.RemoveAll(temp)
}

// UserOfKey is the user whose authorized_keys hold the key; parcel.ErrDenied
// if it is nobody's, or more than one user's.
func (s *Store) UserOfKey(key ssh.PublicKey) (string, error) {
	owners, err := s.owners(key)
	switch {
	case err != nil:
		return "", err
	case len(owners) == 0:
		return "", parcel.NewError(parcel.Denied, "key %s: no user has it", ssh.FingerprintSHA256(key))
	case len(owners) > 1:
		return "", parcel.NewError(parcel.Denied, "key %s: users %s share it", ssh.FingerprintSHA256(key),
			strings.Join(owners, " and ")).WithHint("a key belongs to one user; take it out of the others' authorized_keys")
	}
	return owners[0], nil
}

func (s *Store) owners(key ssh.PublicKey) ([]string, error) {
	users, err := s.Users()
	if err != nil {
		return nil, err
	}
	var owners []string
	for _, name := range users {
		keys, err := s.keysOf(name)
		if err != nil && !errors.Is(err, errKeyLine) {
			return nil, err
		}
		if slices.ContainsFunc(keys, func(k ssh.PublicKey) bool { return sameKey(k, key) }) {
			owners = append(owners, name)
		}
	}
	return owners, nil
}

// keysOf are the keys of a user; with an error that wraps errKeyLine, those of
// the lines that can be read.
func (s *Store) keysOf(name string) ([]ssh.PublicKey, error) {
	p, err := os.ReadFile(filepath.Join(s.userAt(name).dir, keysFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return parseKeys(p)
}

// errKeyLine is wrapped by errors about a line of authorized_keys.
var errKeyLine = errors.New("want TYPE BASE64 [COMMENT], one key a line, no options")

// parseKeys reads the lines of an authorized_keys file. Options are refused:
// a line with from= or expiry-time= must not let in whom sshd would keep out.
func parseKeys(p []byte) (keys []ssh.PublicKey, bad error) {
	n := 0
	for line := range bytes.Lines(p) {
		n++
		line = bytes.TrimSpace(line)
		if len(line) == 0 || line[0] == '#' {
			continue
		}
		key, _, options, _, err := ssh.ParseAuthorizedKey(line)
		if err != nil || len(options) > 0 {
			bad = fmt.Errorf("authorized_keys line %d: %w", n, errKeyLine)
			continue
		}
		keys = append(keys, key)
	}
	return keys, bad
}

// checkKeys joins keys, each one or more lines, into lines of a file, and
// refuses what parseKeys would.
func checkKeys(keys []string) ([]byte, error) {
	var out []byte
	for _, k := range keys {
		if _, err := parseKeys([]byte(k)); err != nil {
			return nil, parcel.NewError(parcel.Usage, "key: %v", err)
		}
		for line := range strings.Lines(k) {
			if line = strings.TrimSpace(line); line != "" && line[0] != '#' {
				out = append(append(out, line...), '\n')
			}
		}
	}
	return out, nil
}

// checkUnshared refuses a key that another user than name has.
func (s *Store) checkUnshared(name string, lines []byte) error {
	keys, err := parseKeys(lines)
	if err != nil {
		return err
	}
	for _, k := range keys {
		owners, err := s.owners(k)
		if err != nil {
			return err
		}
		for _, o := range owners {
			if o != name {
				return parcel.NewError(parcel.Exists, "user %s: key %s is %s's", name, ssh.FingerprintSHA256(k), o)
			}
		}
	}
	return nil
}

func sameKey(a, b ssh.PublicKey) bool { return bytes.Equal(a.Marshal(), b.Marshal()) }
