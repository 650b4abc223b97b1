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
	"strings"

	"isr/store/atomicfile"
	"isr/store/keyring"
	"isr/store/parcel"
	"isr/store/seal"
	"isr/store/tree"
)

// What is derived, of the lock and of the records of versions: their
// directories, the links that follow the head, and the files that tell people.
// It is made again whenever it is found missing.

// writeVersionDir makes the directory of a version, instead of one that a
// killed commit left. Nothing in it is secret, and all of it is derived.
func (p *Parcel) writeVersionDir(rec *VersionRecord, root *keyring.Root) error {
	temp, err := os.MkdirTemp(p.content, atomicfile.TempPrefix+"*")
	if err != nil {
		return err
	}
	defer os.RemoveAll(temp)
	if err := os.Symlink(filepath.Join("..", "hdk", tree.ObjectName(rec.Keyroot.Tag)), filepath.Join(temp, "keyring.enc")); err != nil {
		return err
	}
	if !root.Cfg.IsNil() {
		if err := os.Symlink(filepath.Join("..", "hdk", tree.ObjectName(root.Cfg.Tag)), filepath.Join(temp, "cfg.tgz.enc")); err != nil {
			return err
		}
	}
	b, err := info(rec, root)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(temp, "info"), b, tree.FileMode); err != nil {
		return err
	}
	dir := filepath.Join(p.content, parcel.VersionDir(rec.Version))
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	return os.Rename(temp, dir)
}

// info is the content of a version's file of that name.
func info(rec *VersionRecord, root *keyring.Root) ([]byte, error) {
	r := append(parcel.Record{{Key: "VERSION", Value: strconv.Itoa(rec.Version)}}, rec.Public()...)
	r = append(r, parcel.Field{Key: "KEYRING", Value: rec.Keyroot.Tag.String()})
	if !root.Cfg.IsNil() {
		r = append(r, parcel.Field{Key: "CFG", Value: root.Cfg.Tag.String()})
	}
	for _, im := range root.Images {
		r = append(r, parcel.Field{Key: "IMAGE", Value: fmt.Sprintf("%s %d %d", im.Name, im.Size, im.ChunkSize)})
	}
	return r.Encode()
}

// Info is the file info of version v, which is all of its record that is not
// secret.
func (p *Parcel) Info(v int) (parcel.Record, error) {
	if err := tree.OwnDirs(p.VersionDir(v)); err != nil {
		return nil, err
	}
	text, err := tree.ReadOwn(filepath.Join(p.VersionDir(v), "info"))
	if err != nil {
		return nil, err
	}
	return parcel.ParseRecord(text)
}

// shown reports whether the directory of a version is as it should be, as far
// as can be seen without opening its root.
func (p *Parcel) shown(rec *VersionRecord) bool {
	dir := filepath.Join(p.content, parcel.VersionDir(rec.Version))
	info, err := p.Info(rec.Version)
	if err != nil || !tree.IsLink(filepath.Join(dir, "keyring.enc"), filepath.Join("..", "hdk", tree.ObjectName(rec.Keyroot.Tag))) {
		return false
	}
	if tag, err := seal.ParseTag(info.Get("CFG")); err == nil && !tree.IsLink(filepath.Join(dir, "cfg.tgz.enc"), filepath.Join("..", "hdk", tree.ObjectName(tag))) {
		return false
	}
	public, err := rec.Public().Encode()
	text, ierr := info.Encode()
	return err == nil && ierr == nil && strings.Contains(string(text), string(public))
}

// repair makes what is derived from the head and the lock agree with them,
// and removes what killed writers left. The caller has the flock. What cannot
// be repaired now (a full disk, say) is left to the next call, and to package check.
func (p *Parcel) repair(cfg *parcel.Config, head *VersionRecord) {
	for _, dir := range []string{p.lock, filepath.Join(p.lock, "keys"), p.content, filepath.Join(p.content, "keys")} {
		tree.RemoveTemps(dir)
	}
	dir := parcel.VersionDir(head.Version)
	if !tree.IsLink(filepath.Join(p.content, dir, "keyring.enc"), filepath.Join("..", "hdk", tree.ObjectName(head.Keyroot.Tag))) {
		if root, err := p.OpenRoot(context.Background(), p, cfg, head.Keyroot); err == nil {
			p.writeVersionDir(head, root)
		}
	}
	for _, dir := range []string{p.StagingDir(), filepath.Join(p.content, "keys")} {
		os.Mkdir(dir, tree.DirMode)
	}
	for _, l := range p.Links(head) {
		switch path := filepath.Join(p.content, l.Name); {
		case tree.IsLink(path, l.Target):
		case l.Target == "":
			os.Remove(path)
		default:
			tree.Step("link")
			atomicfile.Symlink(l.Target, path)
		}
	}
	rewrite(filepath.Join(p.lock, "keys", "keyroot"), parcel.Record{{Key: "VERSION", Value: strconv.Itoa(head.Version)},
		{Key: "KEYROOT", Value: head.Keyroot.String()}}.Encode)
	if l, err := p.held(); err == nil {
		if l == nil {
			os.Remove(filepath.Join(p.lock, tree.HolderFile))
		} else {
			public := l.Public()
			rewrite(filepath.Join(p.lock, tree.HolderFile), public.Encode)
		}
	}
	os.Remove(filepath.Join(p.lock, tree.UnfinishedFile))
}

// Link is a symbolic link of the content side; no target means no link.
type Link struct{ Name, Target string }

// Links are those that follow the head: for SFTP clients of the pilot.
func (p *Parcel) Links(head *VersionRecord) []Link {
	cfg := Link{"cfg.tgz.enc", "last/cfg.tgz.enc"}
	dir := parcel.VersionDir(head.Version)
	if _, err := os.Lstat(filepath.Join(p.content, dir, "cfg.tgz.enc")); err != nil {
		cfg.Target = ""
	}
	return []Link{{"last", dir}, {"keys/keyring.enc", "../last/keyring.enc"}, cfg}
}

// rewrite writes a derived file if it is not as it should be.
func rewrite(path string, encode func() ([]byte, error)) {
	want, err := encode()
	if err != nil {
		return
	}
	if got, err := tree.ReadOwn(path); err == nil && string(got) == string(want) {
		return
	}
	tree.Step("rewrite")
	atomicfile.Write(path, want, tree.FileMode)
}

// Derive makes again all that is derived, and says of which versions that was
// the directory. What cannot be, because a version cannot be opened, it leaves
// for package check to tell.
func (p *Parcel) Derive(ctx context.Context, made func(version int)) error {
	return p.Exclusive(func() error {
		head, cfg, err := p.Published(0)
		if err != nil {
			return err
		}
		recorded, err := p.Recorded()
		if err != nil {
			return err
		}
		for _, v := range recorded {
			rec, err := p.Record(v)
			if err != nil || v > cfg.Version || p.shown(rec) {
				continue
			}
			root, err := p.OpenRoot(ctx, p, cfg, rec.Keyroot)
			if err != nil {
				continue
			}
			tree.Step("directory")
			if err := p.writeVersionDir(rec, root); err != nil {
				return p.Wrap(err)
			}
			made(v)
		}
		p.repair(cfg, head)
		return nil
	})
}

// Tidy removes what killed processes left in a parcel, and makes what is
// derived. The caller has the flock.
func (p *Parcel) Tidy(ctx context.Context, content *os.Root) error {
	if p.Unfinished() {
		return p.ErrAbsent()
	}
	head, cfg, err := p.Published(0)
	if err != nil {
		return err
	}
	p.repair(cfg, head)
	if lock, err := p.held(); lock == nil && err == nil {
		// A directory may be one of a repair at work, which needs no lock.
		p.clearStagingOf(func(e fs.DirEntry) bool { return !e.IsDir() || !tree.IsTemp(e.Name()) })
	}
	recorded, err := p.Recorded()
	if err != nil {
		return err
	}
	entries, err := tree.ReadDir(content, ".")
	if err != nil {
		return p.Wrap(err)
	}
	for _, e := range entries {
		// Of a commit that was killed before it wrote its record.
		if v, ok := parcel.ParseVersionDir(e.Name()); ok && v > cfg.Version && !slices.Contains(recorded, v) {
			tree.Step("directory")
			if err := content.RemoveAll(e.Name()); err != nil {
				return p.Wrap(err)
			}
		}
	}
	for _, v := range recorded {
		if v >= cfg.Version {
			continue
		}
		if _, err := content.Lstat(parcel.VersionDir(v)); !errors.Is(err, fs.ErrNotExist) {
			continue
		}
		// Of a prune that was killed: the version is there, whole.
		if rec, err := p.Record(v); err == nil {
			if root, err := p.OpenRoot(ctx, p, cfg, rec.Keyroot); err == nil {
				tree.Step("directory")
				p.writeVersionDir(rec, root)
			}
		}
	}
	return nil
}
