package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"isr/store/keyring"
	"isr/store/parcel"
	"isr/store/seal"
	"isr/store/tree"
)

// Parcel is one parcel of a Store: two directories. It holds nothing open and
// remembers nothing, so it stays good while others change the parcel.
type Parcel struct {
	user    User
	name    string
	lock    string // lock side
	content string // content side
}

// At is the user's parcel of that name, there or not, and in whatever state.
func (u User) At(name string) *Parcel {
	return &Parcel{user: u, name: name,
		lock: filepath.Join(u.LockRoot, name), content: filepath.Join(u.ContentRoot, name)}
}

// Parcels are the names of a user's parcels, sorted. One that is damaged is
// among them, one not yet wholly made or removed is not. A rename that was
// killed is finished first.
func (s *Store) Parcels(userName string) ([]string, error) {
	names, err := s.Names(userName)
	for _, n := range names {
		s.settled(s.UserAt(userName).At(n)) // who opens it is told if that fails
	}
	return names, err
}

// Names is Parcels for who changes nothing.
func (s *Store) Names(userName string) ([]string, error) {
	u, err := s.User(userName)
	if err != nil {
		return nil, err
	}
	if err := tree.OwnDirs(u.LockRoot); err != nil {
		return nil, fmt.Errorf("user %s: %w", userName, err)
	}
	names, err := tree.Subdirs(u.LockRoot)
	return slices.DeleteFunc(names, func(n string) bool { return u.At(n).Unfinished() }), err
}

// Parcel is an existing parcel; parcel.ErrNoParcel if there is none of that
// name. A rename of it that was killed is finished first.
func (s *Store) Parcel(userName, name string) (*Parcel, error) {
	p, err := s.Find(userName, name)
	if err == nil {
		err = s.settled(p)
	}
	if err != nil {
		return nil, err
	}
	return p, nil
}

// Find is Parcel for who changes nothing.
func (s *Store) Find(userName, name string) (*Parcel, error) {
	u, err := s.User(userName)
	if err != nil {
		return nil, err
	}
	if err := parcel.CheckName(name); err != nil {
		return nil, fmt.Errorf("parcel: %w", err)
	}
	p := u.At(name)
	if ok, err := tree.RealDir(p.lock); err != nil {
		return nil, p.Wrap(err)
	} else if !ok || p.Unfinished() {
		if now := u.renamed(name); err == nil && !ok && now != "" {
			return nil, p.ErrAbsent().WithHint("it was renamed to %s", now)
		}
		return nil, p.ErrAbsent()
	}
	if err := p.OwnDirs(); err != nil {
		return nil, err
	}
	return p, nil
}

// ErrAbsent says that there is no such parcel.
func (p *Parcel) ErrAbsent() *parcel.Error {
	return parcel.NewError(parcel.NoParcel, "parcel %s: no such parcel", p.name)
}

// Name is the parcel's name.
func (p *Parcel) Name() string { return p.name }

// User is the name of its owner.
func (p *Parcel) User() string { return p.user.Name }

// ContentDir is the directory of the content side.
func (p *Parcel) ContentDir() string { return p.content }

// LockDir is the directory of the lock side.
func (p *Parcel) LockDir() string { return p.lock }

// Errorf is an error about the parcel, whose name it puts in front.
func (p *Parcel) Errorf(k parcel.Kind, format string, args ...any) *parcel.Error {
	return parcel.NewError(k, "parcel %s: %s", p.name, fmt.Sprintf(format, args...))
}

// Wrap puts the parcel's name in front of err, whose kind remains.
func (p *Parcel) Wrap(err error) error { return fmt.Errorf("parcel %s: %w", p.name, err) }

// Exclusive runs f under the parcel's flock: nobody else changes it, nor is in
// Shared. parcel.ErrNoParcel if it is gone.
func (p *Parcel) Exclusive(f func() error) error {
	if err := p.OwnDirs(); err != nil {
		return err
	}
	unlock, err := tree.Lock(filepath.Join(p.lock, tree.FlockFile), false)
	if errors.Is(err, fs.ErrNotExist) {
		return p.ErrAbsent()
	}
	if err != nil {
		return p.Wrap(err)
	}
	defer unlock()
	return f()
}

// ConfigFile is parcel.cfg as it is.
func (p *Parcel) ConfigFile() ([]byte, error) {
	b, err := tree.ReadOwn(filepath.Join(p.lock, tree.ConfigFile))
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Lstat(p.lock); err != nil || p.Unfinished() {
			return nil, p.ErrAbsent()
		}
		return nil, p.Errorf(parcel.Damaged, "parcel.cfg is missing").
			WithHint("restore it from a backup")
	}
	if err != nil {
		return nil, p.Wrap(err)
	}
	return b, nil
}

// Config is parcel.cfg, secret included.
func (p *Parcel) Config() (*parcel.Config, error) {
	b, err := p.ConfigFile()
	if err != nil {
		return nil, err
	}
	c, err := parcel.ParseConfig(b)
	if err != nil {
		return nil, p.Errorf(parcel.Damaged, "%v", err)
	}
	return c, nil
}

// VersionInfo is what is known of a version without opening it.
type VersionInfo struct {
	Version   int
	Time      time.Time // when it was committed, by the server's clock
	Host      string    // the holder then
	Epoch     int64     // of the holder's acquisition; 0: none
	Comment   string
	Parent    int    // version it was made from; 0: none
	Rollback  int    // version it equals by isr_rollback; 0: none
	Suspended string // VMM that wrote the memory image; "": powered off
	Bytes     int64  // of sealed objects reachable from it and not from its parent
	Objects   int64  // their number
	Tags      []string
	Pin       string // why it is to be kept for ever; "": it is not pinned
}

// VersionRecord is the record of one version: keys/000007.
type VersionRecord struct {
	VersionInfo
	Keyroot seal.Ref
	Commit  string        // id: the same one is answered with the same version
	other   parcel.Record // keys this program does not know, kept as they are
}

// Public are the fields that may be shown.
func (v *VersionInfo) Public() parcel.Record {
	r := parcel.Record{{Key: "TIME", Value: v.Time.UTC().Format(time.RFC3339)}, {Key: "PARENT", Value: strconv.Itoa(v.Parent)},
		{Key: "OBJECTS", Value: strconv.FormatInt(v.Objects, 10)}, {Key: "BYTES", Value: strconv.FormatInt(v.Bytes, 10)},
		{Key: "HOST", Value: v.Host}, {Key: "EPOCH", Value: strconv.FormatInt(v.Epoch, 10)}}
	if v.Rollback > 0 {
		r = append(r, parcel.Field{Key: "ROLLBACK", Value: strconv.Itoa(v.Rollback)})
	}
	if v.Suspended != "" {
		r = append(r, parcel.Field{Key: "SUSPENDED", Value: v.Suspended})
	}
	r = append(r, parcel.Field{Key: "COMMENT", Value: v.Comment})
	for _, t := range v.Tags {
		r = append(r, parcel.Field{Key: "TAG", Value: t})
	}
	if v.Pin != "" {
		r = append(r, parcel.Field{Key: "PIN", Value: v.Pin})
	}
	return r
}

// Encode is the text of the record.
func (v *VersionRecord) Encode() ([]byte, error) {
	r := append(parcel.Record{{Key: "KEYROOT", Value: v.Keyroot.String()}, {Key: "COMMIT", Value: v.Commit}}, v.Public()...)
	return append(r, v.other...).Encode()
}

// versionKeys are the keys of a version's record.
var versionKeys = []string{"KEYROOT", "COMMIT", "TIME", "PARENT", "OBJECTS", "BYTES", "HOST", "EPOCH", "ROLLBACK", "SUSPENDED",
	"COMMENT", "TAG", "PIN"}

// ParseVersion reads the record of the version of that number.
func ParseVersion(b []byte, number int) (*VersionRecord, error) {
	r, err := parcel.ParseRecord(b)
	if err != nil {
		return nil, err
	}
	v := &VersionRecord{Commit: r.Get("COMMIT")}
	for _, f := range r {
		if !slices.Contains(versionKeys, f.Key) {
			v.other = append(v.other, f)
		}
	}
	v.Tags, v.Pin = r.All("TAG"), r.Get("PIN")
	v.Version, v.Host, v.Comment, v.Suspended = number, r.Get("HOST"), r.Get("COMMENT"), r.Get("SUSPENDED")
	if v.Keyroot, err = seal.ParseRef(r.Get("KEYROOT")); err == nil && v.Keyroot.IsNil() {
		err = errors.New("nil")
	}
	if err != nil {
		return nil, fmt.Errorf("KEYROOT: %w", err)
	}
	if v.Time, err = time.Parse(time.RFC3339, r.Get("TIME")); err != nil {
		return nil, fmt.Errorf("TIME: %w", err)
	}
	var parent, rollback int64
	for _, f := range []struct {
		key string
		to  *int64
	}{{"PARENT", &parent}, {"ROLLBACK", &rollback}, {"OBJECTS", &v.Objects}, {"BYTES", &v.Bytes}, {"EPOCH", &v.Epoch}} {
		s := r.Get(f.key)
		if s == "" {
			continue
		}
		if *f.to, err = strconv.ParseInt(s, 10, 64); err != nil || *f.to < 0 {
			return nil, fmt.Errorf("%s: want a number, not %q", f.key, s)
		}
	}
	v.Parent, v.Rollback = int(parent), int(rollback)
	return v, nil
}

// VersionFile is the path of the record of version v.
func (p *Parcel) VersionFile(v int) string {
	return filepath.Join(p.lock, "keys", parcel.VersionDir(v))
}

// VersionDir is the path of the directory of version v, which is derived.
func (p *Parcel) VersionDir(v int) string { return filepath.Join(p.content, parcel.VersionDir(v)) }

// Record is the record of version v; parcel.ErrNoVersion if there is none.
func (p *Parcel) Record(v int) (*VersionRecord, error) {
	b, err := tree.ReadOwn(p.VersionFile(v))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, p.Errorf(parcel.NoVersion, "version %d: no such version", v)
	}
	if err != nil {
		return nil, p.Wrap(err)
	}
	rec, err := ParseVersion(b, v)
	if err != nil {
		return nil, p.Errorf(parcel.Damaged, "version %d: record of its keyroot: %v", v, err)
	}
	return rec, nil
}

// Published is the record of version v, 0 for the head, and parcel.cfg;
// parcel.ErrNoVersion if v is beyond the head, or was pruned.
func (p *Parcel) Published(v int) (*VersionRecord, *parcel.Config, error) {
	cfg, err := p.Config()
	if err != nil {
		return nil, nil, err
	}
	head := cfg.Version
	if v == 0 {
		v = head
	}
	if v < 1 || v > head {
		return nil, nil, p.Errorf(parcel.NoVersion, "version %d: no such version: the newest is %d", v, head)
	}
	rec, err := p.Record(v)
	if errors.Is(err, parcel.ErrNoVersion) {
		switch _, derr := os.Lstat(p.VersionDir(v)); {
		case v == head || derr == nil:
			err = p.Errorf(parcel.Damaged, "version %d: its keyroot is missing", v).WithHint("restore keys/ from a backup")
		default:
			err = p.Errorf(parcel.NoVersion, "version %d: was pruned", v)
		}
	}
	return rec, cfg, err
}

// Keyroot leads to the root block of version v, 0 for the head;
// parcel.ErrNoVersion if there is no such version.
func (p *Parcel) Keyroot(v int) (seal.Ref, error) {
	rec, _, err := p.Published(v)
	if err != nil {
		return seal.Ref{}, err
	}
	return rec.Keyroot, nil
}

// Version is what is known of version v, 0 for the head; parcel.ErrNoVersion
// if there is no such version.
func (p *Parcel) Version(v int) (VersionInfo, error) {
	rec, _, err := p.Published(v)
	if err != nil {
		return VersionInfo{}, err
	}
	return rec.VersionInfo, nil
}

// Root is the opened root block of version v, 0 for the head.
func (p *Parcel) Root(ctx context.Context, v int) (*keyring.Root, error) {
	rec, cfg, err := p.Published(v)
	if err != nil {
		return nil, err
	}
	return p.OpenRoot(ctx, p, cfg, rec.Keyroot)
}

// OpenRoot opens the root block that keyroot leads to, of an object from g,
// which may be p.
func (p *Parcel) OpenRoot(ctx context.Context, g keyring.Getter, cfg *parcel.Config, keyroot seal.Ref) (*keyring.Root, error) {
	sealed, err := g.Get(ctx, keyroot.Tag)
	if err != nil {
		return nil, p.Wrap(err)
	}
	root, err := keyring.OpenRoot(cfg.Sealer(), keyroot, sealed)
	if err != nil {
		return nil, p.Wrap(err)
	}
	return root, nil
}

// Versions are the newest n versions, newest first; all of them if n is 0.
// Versions that were removed are left out.
func (p *Parcel) Versions(n int) ([]VersionInfo, error) {
	numbers, err := p.numbers()
	if err != nil {
		return nil, err
	}
	var infos []VersionInfo
	for _, v := range numbers {
		if n > 0 && len(infos) == n {
			break
		}
		rec, err := p.Record(v)
		if errors.Is(err, parcel.ErrNoVersion) {
			continue // it was pruned meanwhile
		}
		if err != nil {
			return nil, err
		}
		infos = append(infos, rec.VersionInfo)
	}
	return infos, nil
}

// Recorded are the numbers of the files in keys/, ascending, those beyond the
// head included.
func (p *Parcel) Recorded() ([]int, error) {
	entries, err := os.ReadDir(filepath.Join(p.lock, "keys"))
	if err != nil {
		return nil, p.Wrap(err)
	}
	var numbers []int
	for _, e := range entries {
		if v, ok := parcel.ParseVersionDir(e.Name()); ok {
			numbers = append(numbers, v)
		}
	}
	slices.Sort(numbers)
	return numbers, nil
}

// SelectUsers is the user of that name, who must be there, or with no name all
// users.
func (s *Store) SelectUsers(name string) ([]string, error) {
	if name == "" {
		return s.Users()
	}
	_, err := s.User(name)
	return []string{name}, err
}

// Select is the user's parcel of that name, which must be there, or with no
// name all her parcels.
func (s *Store) Select(userName, name string) ([]*Parcel, error) {
	if name != "" {
		p, err := s.Parcel(userName, name)
		return []*Parcel{p}, err
	}
	names, err := s.Parcels(userName)
	var all []*Parcel
	for _, n := range names {
		all = append(all, s.UserAt(userName).At(n))
	}
	return all, err
}
