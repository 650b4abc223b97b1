package store

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"

	"isr/store/atomicfile"
	"isr/store/authkey"
	"isr/store/parcel"
	"isr/store/tree"
)

// User is where one user's parcels are. The two roots need not be neighbours,
// nor below the store.
type User struct {
	Name        string
	Dir         string // who she is: authorized_keys
	LockRoot    string // lock sides of her parcels
	ContentRoot string // content sides: what SFTP shows
}

// UserAt is the user of that name, there or not.
func (s *Store) UserAt(name string) User {
	dir := filepath.Join(s.root, tree.UsersDir, name)
	return User{Name: name, Dir: dir,
		LockRoot: filepath.Join(dir, ".isr"), ContentRoot: filepath.Join(dir, "isr")}
}

// User is an existing user; parcel.ErrNoParcel if there is none of that name.
func (s *Store) User(name string) (User, error) {
	if err := parcel.CheckName(name); err != nil {
		return User{}, fmt.Errorf("user: %w", err)
	}
	u := s.UserAt(name)
	if ok, err := tree.RealDir(u.Dir); err != nil || !ok {
		if err == nil {
			err = parcel.NewError(parcel.NoParcel, "user %s: no such user", name)
		}
		return User{}, err
	}
	return u, nil
}

// ownDirs makes sure that the sides of a user's parcels are no links.
func (u User) ownDirs() error {
	if err := tree.OwnDirs(u.LockRoot, u.ContentRoot); err != nil {
		return fmt.Errorf("user %s: %w", u.Name, err)
	}
	return nil
}

// UserDirs are the directories of a user's lock sides, never to be shown, and
// of the content sides, which SFTP shows.
func (s *Store) UserDirs(name string) (lock, content string, err error) {
	u, err := s.User(name)
	if err == nil {
		err = u.ownDirs()
	}
	return u.LockRoot, u.ContentRoot, err
}

// Users are the names of all users, sorted.
func (s *Store) Users() ([]string, error) {
	users := filepath.Join(s.root, tree.UsersDir)
	if to, err := filepath.EvalSymlinks(users); err == nil {
		users = to // on another disk, say
	}
	return tree.Subdirs(users)
}

// AddUser adds a user, with the lines of an authorized_keys file, maybe none.
// parcel.ErrExists if there is one of that name.
func (s *Store) AddUser(name string, keys []string) error {
	return s.CreateUser(name, keys, UserConfig{})
}

// CreateUser is AddUser with what else is to be known of her.
func (s *Store) CreateUser(name string, keys []string, cfg UserConfig) error {
	if err := parcel.CheckName(name); err != nil {
		return fmt.Errorf("user: %w", err)
	}
	add, err := checkKeys(keys)
	if err != nil {
		return fmt.Errorf("user %s: %w", name, err)
	}
	if err := cfg.checkTexts(); err != nil {
		return fmt.Errorf("user %s: %w", name, err)
	}
	cfg.Created = now()
	record, err := cfg.encode()
	if err != nil {
		return fmt.Errorf("user %s: %w", name, err)
	}
	unlock, err := tree.Lock(filepath.Join(s.root, tree.FlockFile), false)
	if err != nil {
		return err
	}
	defer unlock()
	users := filepath.Join(s.root, tree.UsersDir)
	tree.RemoveTemps(users)
	u := s.UserAt(name)
	if _, err := os.Lstat(u.Dir); err == nil {
		return parcel.NewError(parcel.Exists, "user %s: exists", name).WithHint("isr-locksrv user key add adds keys, user change changes the rest")
	}
	if err := s.checkUnshared(name, add); err != nil {
		return err
	}
	return s.makeUser(u, map[string][]byte{tree.KeysFile: keyLines(nil, add), tree.UserFile: record})
}

// makeUser makes the directory of a user with the given files in it, whole or
// not at all: made aside, then renamed. The caller has the store's flock, and
// saw that there is no such user.
func (s *Store) makeUser(u User, files map[string][]byte) error {
	users := filepath.Join(s.root, tree.UsersDir)
	temp, err := os.MkdirTemp(users, atomicfile.TempPrefix+"*")
	if err != nil {
		return err
	}
	defer os.RemoveAll(temp)
	for _, dir := range []string{u.LockRoot, u.ContentRoot} {
		if err := os.Mkdir(filepath.Join(temp, filepath.Base(dir)), tree.DirMode); err != nil {
			return err
		}
	}
	tree.Step("keys")
	for name, content := range files {
		if err := parcel.CheckName(name); err != nil {
			return err
		}
		if err := atomicfile.Write(filepath.Join(temp, name), content, tree.FileMode); err != nil {
			return err
		}
	}
	tree.Step("user")
	if err := os.Rename(temp, u.Dir); err != nil {
		return err
	}
	return atomicfile.SyncDir(users)
}

// AddKeys adds lines of an authorized_keys file to a user's; those she has
// are left out. parcel.ErrExists if she has one on other terms.
func (s *Store) AddKeys(name string, keys []string) error {
	add, err := checkKeys(keys)
	if err != nil {
		return fmt.Errorf("user %s: %w", name, err)
	}
	unlock, err := tree.Lock(filepath.Join(s.root, tree.FlockFile), false)
	if err != nil {
		return err
	}
	defer unlock()
	u, err := s.User(name)
	if err != nil {
		return err
	}
	if err := s.checkUnshared(name, add); err != nil {
		return err
	}
	old, err := u.keysText()
	if err != nil {
		return err
	}
	have := authkey.Parse(old)
	add = slices.DeleteFunc(add, func(k authkey.Key) bool {
		i := slices.IndexFunc(have, func(l authkey.Line) bool { return l.Err == nil && l.Key.Same(k) })
		if i >= 0 && !have[i].Key.SameTerms(k) {
			err = parcel.NewError(parcel.Exists, "user %s: has key %s on other terms", name, ssh.FingerprintSHA256(k)).
				WithHint("remove it first")
		}
		return i >= 0
	})
	if err != nil || len(add) == 0 {
		return err
	}
	return atomicfile.Write(filepath.Join(u.Dir, tree.KeysFile), keyLines(old, add), tree.FileMode)
}

// Keys are the lines of a user's authorized_keys, those that let nobody in
// included.
func (s *Store) Keys(name string) ([]authkey.Line, error) {
	u, err := s.User(name)
	if err != nil {
		return nil, err
	}
	text, err := u.keysText()
	return authkey.Parse(text), err
}

// DelKey removes a line of a user's authorized_keys, as Keys has its Text.
func (s *Store) DelKey(name, text string) error {
	unlock, err := tree.Lock(filepath.Join(s.root, tree.FlockFile), false)
	if err != nil {
		return err
	}
	defer unlock()
	u, err := s.User(name)
	if err != nil {
		return err
	}
	old, err := u.keysText()
	if err != nil {
		return err
	}
	var rest []byte
	for line := range bytes.Lines(old) {
		if string(bytes.TrimSpace(line)) != text {
			rest = append(rest, line...)
		}
	}
	if len(rest) == len(old) {
		return parcel.NewError(parcel.Failed, "user %s: no such line in authorized_keys", name)
	}
	return atomicfile.Write(filepath.Join(u.Dir, tree.KeysFile), rest, tree.FileMode)
}

// DelUser removes a user who has no parcels. What a killed import or delete
// left of one is none.
func (s *Store) DelUser(name string) error {
	unlock, err := tree.Lock(filepath.Join(s.root, tree.FlockFile), false)
	if err != nil {
		return err
	}
	defer unlock()
	u, err := s.User(name)
	if err != nil {
		return err
	}
	left, err := tree.Subdirs(u.LockRoot)
	if err != nil {
		return err
	}
	for _, n := range left {
		if p := u.At(n); p.Unfinished() {
			if _, err := p.clearUnfinished(false); err != nil {
				return err
			}
		}
	}
	for _, dir := range []string{u.LockRoot, u.ContentRoot} {
		names, err := tree.Subdirs(dir)
		if err != nil {
			return err
		}
		if len(names) > 0 {
			return parcel.NewError(parcel.Exists, "user %s: has parcels: %s", name, strings.Join(names, " ")).
				WithHint("remove them first")
		}
	}
	users := filepath.Join(s.root, tree.UsersDir)
	temp := filepath.Join(users, atomicfile.TempPrefix+parcel.NewID())
	tree.Step("user")
	if err := os.Rename(u.Dir, temp); err != nil {
		return err
	}
	if err := atomicfile.SyncDir(users); err != nil {
		return err
	}
	return os.RemoveAll(temp)
}

// UserOfKey is the user whose authorized_keys hold the key, and the line that
// admits who comes with it from an address. parcel.ErrDenied if it is nobody's,
// or more than one user's, or, with user and key, if it admits nobody from
// there or any more.
func (s *Store) UserOfKey(key ssh.PublicKey, from netip.Addr) (string, authkey.Key, error) {
	owners, err := s.owners(key)
	switch {
	case err != nil:
		return "", authkey.Key{}, err
	case len(owners) == 0:
		return "", authkey.Key{}, parcel.NewError(parcel.Denied, "key %s: no user has it", ssh.FingerprintSHA256(key))
	case len(owners) > 1:
		var names []string
		for _, o := range owners {
			names = append(names, o.user)
		}
		return "", authkey.Key{}, parcel.NewError(parcel.Denied, "key %s: users %s share it", ssh.FingerprintSHA256(key),
			strings.Join(names, " and ")).WithHint("a key belongs to one user; take it out of the others' authorized_keys")
	}
	k, err := owners[0].admits(from)
	return owners[0].user, k, err
}

// KeyOf is UserOfKey for a key that was a user's a moment ago: it looks into
// her file only. parcel.ErrDenied if it is hers no more.
func (s *Store) KeyOf(name string, key ssh.PublicKey, from netip.Addr) (authkey.Key, error) {
	u, err := s.User(name)
	if err != nil {
		return authkey.Key{}, err
	}
	text, err := u.keysText()
	if err != nil {
		return authkey.Key{}, err
	}
	o := owner{name, linesOf(text, key)}
	if o.keys == nil {
		return authkey.Key{}, parcel.NewError(parcel.Denied, "key %s: user %s has it no more", ssh.FingerprintSHA256(key), name)
	}
	return o.admits(from)
}

// owner is a user who has a key, on one line or more.
type owner struct {
	user string
	keys []authkey.Key
}

// admits is the first line that admits who comes from an address; with an
// error, some line.
func (o owner) admits(from netip.Addr) (authkey.Key, error) {
	var err error
	for _, k := range o.keys {
		if err = k.Admits(time.Now(), from); err == nil {
			return k, nil
		}
	}
	return o.keys[0], err
}

// linesOf are the lines of an authorized_keys file that are a key's.
func linesOf(text []byte, key ssh.PublicKey) (keys []authkey.Key) {
	for _, l := range authkey.Parse(text) {
		if l.Err == nil && l.Key.Same(key) {
			keys = append(keys, l.Key)
		}
	}
	return keys
}

// owners are the users who have a key. It reads every user's file, and parses
// those in which the key may be: 1000 users take 11 ms, 100 take 1.5. A user whose file
// cannot be read keeps nobody else out.
func (s *Store) owners(key ssh.PublicKey) (owners []owner, err error) {
	users, err := s.Users()
	if err != nil {
		return nil, err
	}
	blob := key.Marshal()
	// Without the last digits, which may be written in more than one way.
	part := []byte(base64.StdEncoding.EncodeToString(blob[:len(blob)/3*3]))
	var unread error
	for _, name := range users {
		text, err := s.UserAt(name).keysText()
		if err != nil {
			unread = err
			continue
		}
		if !bytes.Contains(text, part) {
			continue
		}
		if keys := linesOf(text, key); keys != nil {
			owners = append(owners, owner{name, keys})
		}
	}
	if owners == nil {
		return nil, unread
	}
	return owners, nil
}

// keysText is a user's authorized_keys, empty if there is no file.
func (u User) keysText() ([]byte, error) {
	p, err := tree.ReadOwn(filepath.Join(u.Dir, tree.KeysFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return p, err
}

// checkKeys reads keys, each one or more lines, and refuses a line that would
// let nobody in.
func checkKeys(texts []string) (keys []authkey.Key, err error) {
	for _, text := range texts {
		for _, l := range authkey.Parse([]byte(text)) {
			if l.Err != nil {
				return nil, parcel.NewError(parcel.Usage, "key: line %d: %v", l.N, l.Err)
			}
			keys = append(keys, l.Key)
		}
	}
	return keys, nil
}

// keyLines appends keys to the text of an authorized_keys file.
func keyLines(text []byte, keys []authkey.Key) []byte {
	if len(text) > 0 && text[len(text)-1] != '\n' {
		text = append(text, '\n')
	}
	for _, k := range keys {
		text = append(append(text, k.String()...), '\n')
	}
	return text
}

// checkUnshared refuses a key that another user than name has.
func (s *Store) checkUnshared(name string, keys []authkey.Key) error {
	for _, k := range keys {
		owners, err := s.owners(k)
		if err != nil {
			return err
		}
		for _, o := range owners {
			if o.user != name {
				return parcel.NewError(parcel.Exists, "user %s: key %s is %s's", name, ssh.FingerprintSHA256(k), o.user)
			}
		}
	}
	return nil
}
