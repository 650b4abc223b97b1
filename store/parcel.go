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
	user    user
	name    string
	lock    string // lock side
	content string // content side
}

func (u user) parcel(name string) *Parcel {
	return &Parcel{user: u, name: name,
		lock: filepath.Join(u.lockRoot, name), content: filepath.Join(u.contentRoot, name)}
}

// Parcels are the names of a user's parcels, sorted. One that is damaged is
// among them, one not yet wholly made or removed is not. A rename that was
// killed is finished first.
func (s *Store) Parcels(userName string) ([]string, error) {
	names, err := s.names(userName)
	for _, n := range names {
		s.settled(s.userAt(userName).parcel(n)) // who opens it is told if that fails
	}
	return names, err
}

// names is Parcels for who changes nothing.
func (s *Store) names(userName string) ([]string, error) {
	u, err := s.user(userName)
	if err != nil {
		return nil, err
	}
	if err := tree.OwnDirs(u.lockRoot); err != nil {
		return nil, fmt.Errorf("user %s: %w", userName, err)
	}
	names, err := tree.Subdirs(u.lockRoot)
	return slices.DeleteFunc(names, func(n string) bool { return u.parcel(n).unfinished() }), err
}

// Parcel is an existing parcel; parcel.ErrNoParcel if there is none of that
// name. A rename of it that was killed is finished first.
func (s *Store) Parcel(userName, name string) (*Parcel, error) {
	p, err := s.find(userName, name)
	if err == nil {
		err = s.settled(p)
	}
	if err != nil {
		return nil, err
	}
	return p, nil
}

// find is Parcel for who changes nothing.
func (s *Store) find(userName, name string) (*Parcel, error) {
	u, err := s.user(userName)
	if err != nil {
		return nil, err
	}
	if err := parcel.CheckName(name); err != nil {
		return nil, fmt.Errorf("parcel: %w", err)
	}
	p := u.parcel(name)
	if ok, err := tree.RealDir(p.lock); err != nil {
		return nil, p.wrap(err)
	} else if !ok || p.unfinished() {
		if now := u.renamed(name); err == nil && !ok && now != "" {
			return nil, p.errAbsent().WithHint("it was renamed to %s", now)
		}
		return nil, p.errAbsent()
	}
	if err := p.ownDirs(); err != nil {
		return nil, err
	}
	return p, nil
}

func (p *Parcel) errAbsent() *parcel.Error {
	return parcel.NewError(parcel.NoParcel, "parcel %s: no such parcel", p.name)
}

// Name is the parcel's name.
func (p *Parcel) Name() string { return p.name }

// User is the name of its owner.
func (p *Parcel) User() string { return p.user.name }

// ContentDir is the directory of the content side.
func (p *Parcel) ContentDir() string { return p.content }

// LockDir is the directory of the lock side.
func (p *Parcel) LockDir() string { return p.lock }

// errorf puts the parcel's name in front.
func (p *Parcel) errorf(k parcel.Kind, format string, args ...any) *parcel.Error {
	return parcel.NewError(k, "parcel %s: %s", p.name, fmt.Sprintf(format, args...))
}

// wrap puts the parcel's name in front of err, whose kind remains.
func (p *Parcel) wrap(err error) error { return fmt.Errorf("parcel %s: %w", p.name, err) }

// exclusive runs f under the parcel's flock.
func (p *Parcel) exclusive(f func() error) error {
	if err := p.ownDirs(); err != nil {
		return err
	}
	unlock, err := tree.Lock(filepath.Join(p.lock, tree.FlockFile), false)
	if errors.Is(err, fs.ErrNotExist) {
		return p.errAbsent()
	}
	if err != nil {
		return p.wrap(err)
	}
	defer unlock()
	return f()
}

// ConfigFile is parcel.cfg as it is.
func (p *Parcel) ConfigFile() ([]byte, error) {
	b, err := tree.ReadOwn(filepath.Join(p.lock, tree.ConfigFile))
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Lstat(p.lock); err != nil || p.unfinished() {
			return nil, p.errAbsent()
		}
		return nil, p.errorf(parcel.Damaged, "parcel.cfg is missing").
			WithHint("restore it from a backup")
	}
	if err != nil {
		return nil, p.wrap(err)
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
		return nil, p.errorf(parcel.Damaged, "%v", err)
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

// version is the record of one version: keys/000007.
type version struct {
	VersionInfo
	keyroot seal.Ref
	commit  string        // id: the same one is answered with the same version
	other   parcel.Record // keys this program does not know, kept as they are
}

// public are the fields that may be shown.
func (v *VersionInfo) public() parcel.Record {
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

func (v *version) encode() ([]byte, error) {
	r := append(parcel.Record{{Key: "KEYROOT", Value: v.keyroot.String()}, {Key: "COMMIT", Value: v.commit}}, v.public()...)
	return append(r, v.other...).Encode()
}

// versionKeys are the keys of a version's record.
var versionKeys = []string{"KEYROOT", "COMMIT", "TIME", "PARENT", "OBJECTS", "BYTES", "HOST", "EPOCH", "ROLLBACK", "SUSPENDED",
	"COMMENT", "TAG", "PIN"}

func parseVersion(b []byte, number int) (*version, error) {
	r, err := parcel.ParseRecord(b)
	if err != nil {
		return nil, err
	}
	v := &version{commit: r.Get("COMMIT")}
	for _, f := range r {
		if !slices.Contains(versionKeys, f.Key) {
			v.other = append(v.other, f)
		}
	}
	v.Tags, v.Pin = r.All("TAG"), r.Get("PIN")
	v.Version, v.Host, v.Comment, v.Suspended = number, r.Get("HOST"), r.Get("COMMENT"), r.Get("SUSPENDED")
	if v.keyroot, err = seal.ParseRef(r.Get("KEYROOT")); err == nil && v.keyroot.IsNil() {
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

func (p *Parcel) versionFile(v int) string {
	return filepath.Join(p.lock, "keys", parcel.VersionDir(v))
}

func (p *Parcel) versionDir(v int) string { return filepath.Join(p.content, parcel.VersionDir(v)) }

// version is the record of version v; parcel.ErrNoVersion if there is none.
func (p *Parcel) version(v int) (*version, error) {
	b, err := tree.ReadOwn(p.versionFile(v))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, p.errorf(parcel.NoVersion, "version %d: no such version", v)
	}
	if err != nil {
		return nil, p.wrap(err)
	}
	rec, err := parseVersion(b, v)
	if err != nil {
		return nil, p.errorf(parcel.Damaged, "version %d: record of its keyroot: %v", v, err)
	}
	return rec, nil
}

// published is the record of version v, 0 for the head, if it is not beyond
// the head.
func (p *Parcel) published(v int) (*version, *parcel.Config, error) {
	cfg, err := p.Config()
	if err != nil {
		return nil, nil, err
	}
	head := cfg.Version
	if v == 0 {
		v = head
	}
	if v < 1 || v > head {
		return nil, nil, p.errorf(parcel.NoVersion, "version %d: no such version: the newest is %d", v, head)
	}
	rec, err := p.version(v)
	if errors.Is(err, parcel.ErrNoVersion) {
		switch _, derr := os.Lstat(p.versionDir(v)); {
		case v == head || derr == nil:
			err = p.errorf(parcel.Damaged, "version %d: its keyroot is missing", v).WithHint("restore keys/ from a backup")
		default:
			err = p.errorf(parcel.NoVersion, "version %d: was pruned", v)
		}
	}
	return rec, cfg, err
}

// Keyroot leads to the root block of version v, 0 for the head;
// parcel.ErrNoVersion if there is no such version.
func (p *Parcel) Keyroot(v int) (seal.Ref, error) {
	rec, _, err := p.published(v)
	if err != nil {
		return seal.Ref{}, err
	}
	return rec.keyroot, nil
}

// Version is what is known of version v, 0 for the head; parcel.ErrNoVersion
// if there is no such version.
func (p *Parcel) Version(v int) (VersionInfo, error) {
	rec, _, err := p.published(v)
	if err != nil {
		return VersionInfo{}, err
	}
	return rec.VersionInfo, nil
}

// Root is the opened root block of version v, 0 for the head.
func (p *Parcel) Root(ctx context.Context, v int) (*keyring.Root, error) {
	rec, cfg, err := p.published(v)
	if err != nil {
		return nil, err
	}
	return p.openRoot(ctx, p, cfg, rec.keyroot)
}

func (p *Parcel) openRoot(ctx context.Context, g keyring.Getter, cfg *parcel.Config, keyroot seal.Ref) (*keyring.Root, error) {
	sealed, err := g.Get(ctx, keyroot.Tag)
	if err != nil {
		return nil, p.wrap(err)
	}
	root, err := keyring.OpenRoot(cfg.Sealer(), keyroot, sealed)
	if err != nil {
		return nil, p.wrap(err)
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
		rec, err := p.version(v)
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

// recorded are the numbers of the files in keys/, ascending, those beyond the
// head included.
func (p *Parcel) recorded() ([]int, error) {
	entries, err := os.ReadDir(filepath.Join(p.lock, "keys"))
	if err != nil {
		return nil, p.wrap(err)
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
