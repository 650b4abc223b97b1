package store

import (
	"cmp"
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"isr/store/atomicfile"
	"isr/store/parcel"
	"isr/store/tree"
)

// headName names the head wherever a version is asked for, so it is no tag.
const headName = "head"

// maxText bounds a comment or a reason, bytes.
const maxText = 1024

// CheckTag reports whether s can be a version's tag: a name that is not a
// number and not "head".
func CheckTag(s string) error {
	if err := parcel.CheckName(s); err != nil {
		return fmt.Errorf("tag: %w", err)
	}
	if strings.Trim(s, "0123456789") == "" || s == headName {
		return parcel.NewError(parcel.Usage, "tag %s: that is how versions are called already", s).
			WithHint("a tag has a letter in it, and is not %s", headName)
	}
	return nil
}

func checkText(what, s string) error {
	if len(s) > maxText {
		return parcel.NewError(parcel.Usage, "%s of %d bytes: %d are the limit", what, len(s), maxText)
	}
	return nil
}

// Resolve is the number of the version that people call s: its number, a tag
// of it, "head", or "head~2" for the second before the head of those that are
// there. parcel.ErrNoVersion if there is none.
func (p *Parcel) Resolve(s string) (int, error) {
	back, isHead := 0, s == headName
	if n, ok := strings.CutPrefix(s, headName+"~"); ok {
		v, err := strconv.ParseUint(n, 10, 31)
		isHead, back = err == nil, int(v)
	}
	number := strings.TrimLeft(s, "0")
	isNumber := number != "" && strings.Trim(number, "0123456789") == ""
	if !isHead && !isNumber && CheckTag(s) != nil {
		return 0, p.Errorf(parcel.Usage, "version %.80q: want a number from 1, a tag, %s or %s~1", s, headName, headName)
	}
	numbers, err := p.numbers()
	if err != nil {
		return 0, err
	}
	for i, v := range numbers {
		switch {
		case isHead && i == back, isNumber && strconv.Itoa(v) == number:
			return v, nil
		case isHead, isNumber:
		case p.hasTag(v, s):
			return v, nil
		}
	}
	if n, err := strconv.Atoi(number); isNumber && err == nil {
		if _, _, err := p.Published(n); err != nil {
			return 0, err // it was pruned, or its keyroot is lost
		}
	}
	e := p.Errorf(parcel.NoVersion, "version %s: no such version", s)
	if len(numbers) > 0 {
		e = e.WithHint("the newest is %d", numbers[0])
	}
	return 0, e
}

// numbers are those of the versions that are there, newest first.
func (p *Parcel) numbers() ([]int, error) {
	cfg, err := p.Config()
	if err != nil {
		return nil, err
	}
	all, err := p.Recorded()
	slices.Reverse(all)
	return slices.DeleteFunc(all, func(v int) bool { return v > cfg.Version }), err
}

// hasTag reports whether version v has a tag. A record that cannot be read
// has none: it must not hide those of the others.
func (p *Parcel) hasTag(v int, tag string) bool {
	rec, err := p.Record(v)
	return err == nil && slices.Contains(rec.Tags, tag)
}

// Tag gives version v the name tag, besides those it has. One tag names one
// version of a parcel: parcel.ErrExists if it is another's, unless move.
func (p *Parcel) Tag(v int, tag string, move bool) error {
	if err := CheckTag(tag); err != nil {
		return err
	}
	return p.Exclusive(func() error {
		others, err := p.tagged(tag)
		if err != nil {
			return err
		}
		others = slices.DeleteFunc(others, func(o int) bool { return o == v })
		if len(others) > 0 && !move {
			return p.Errorf(parcel.Exists, "tag %s: version %d has it", tag, others[0]).WithHint("--move takes it from there")
		}
		// It is on both rather than on none if this is killed: a tag keeps its
		// version from being pruned.
		err = p.change(v, func(rec *VersionRecord) {
			if !slices.Contains(rec.Tags, tag) {
				rec.Tags = append(rec.Tags, tag)
			}
		})
		for _, o := range others {
			if err == nil {
				err = p.untag(o, tag)
			}
		}
		return err
	})
}

// Untag takes a tag away from the version that has it, and says which that
// was. parcel.ErrNoVersion if there is none.
func (p *Parcel) Untag(tag string) (v int, err error) {
	if err := CheckTag(tag); err != nil {
		return 0, err
	}
	err = p.Exclusive(func() error {
		vs, err := p.tagged(tag)
		if err != nil {
			return err
		}
		if len(vs) == 0 {
			return p.Errorf(parcel.NoVersion, "tag %s: no version has it", tag)
		}
		for _, v = range vs {
			if err := p.untag(v, tag); err != nil {
				return err
			}
		}
		return nil
	})
	return v, err
}

func (p *Parcel) untag(v int, tag string) error {
	return p.change(v, func(rec *VersionRecord) {
		rec.Tags = slices.DeleteFunc(rec.Tags, func(t string) bool { return t == tag })
	})
}

// tagged are the versions that have a tag: more than one only if a Tag that
// was to move it was killed.
func (p *Parcel) tagged(tag string) ([]int, error) {
	vs, err := p.numbers()
	return slices.DeleteFunc(vs, func(v int) bool { return !p.hasTag(v, tag) }), err
}

// Pin says that version v is to be kept for ever, and why.
func (p *Parcel) Pin(v int, why string) error {
	if err := checkText("reason", why); err != nil {
		return p.Wrap(err)
	}
	why = parcel.Clean(why)
	return p.Exclusive(func() error {
		return p.change(v, func(rec *VersionRecord) { rec.Pin = cmp.Or(why, rec.Pin, "pinned") })
	})
}

// Unpin says that version v need not be kept.
func (p *Parcel) Unpin(v int) error {
	return p.Exclusive(func() error { return p.change(v, func(rec *VersionRecord) { rec.Pin = "" }) })
}

// Comment makes text the comment of version v; of the parcel if v is 0.
func (p *Parcel) Comment(v int, text string) error {
	if err := checkText("comment", text); err != nil {
		return p.Wrap(err)
	}
	text = parcel.Clean(text)
	return p.Exclusive(func() error {
		if v != 0 {
			return p.change(v, func(rec *VersionRecord) { rec.Comment = text })
		}
		cfg, err := p.Config()
		if err != nil {
			return err
		}
		cfg.Comment = text
		return p.writeConfig(cfg)
	})
}

// writeConfig writes parcel.cfg, durably. The caller has the flock.
func (p *Parcel) writeConfig(cfg *parcel.Config) error {
	b, err := cfg.Encode()
	if err != nil {
		return p.Wrap(err)
	}
	tree.Step("config")
	if err := atomicfile.Write(filepath.Join(p.lock, tree.ConfigFile), b, tree.FileMode); err != nil {
		return p.Wrap(err)
	}
	return nil
}

// change rewrites the record of version v, and then what is derived from it.
// The caller has the flock.
func (p *Parcel) change(v int, f func(*VersionRecord)) error {
	if v < 1 {
		return p.Errorf(parcel.Usage, "version %d: want a number from 1", v)
	}
	rec, cfg, err := p.Published(v)
	if err != nil {
		return err
	}
	tree.RemoveTemps(filepath.Join(p.lock, "keys"))
	f(rec)
	b, err := rec.Encode()
	if err != nil {
		return p.Wrap(err)
	}
	tree.Step("record")
	if err := atomicfile.Write(p.VersionFile(v), b, tree.FileMode); err != nil {
		return p.Wrap(err)
	}
	// A check says so if this fails; another change of the version repairs it.
	dir := filepath.Join(p.content, parcel.VersionDir(v))
	if root, err := p.OpenRoot(context.Background(), p, cfg, rec.Keyroot); err == nil && tree.IsDir(dir) {
		tree.RemoveTemps(dir)
		rewrite(filepath.Join(dir, "info"), func() ([]byte, error) { return info(rec, root) })
	}
	return nil
}
