package store

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"isr/store/atomicfile"
	"isr/store/parcel"
	"isr/store/tree"
)

// UserConfig is the content of a user.cfg.
type UserConfig struct {
	Quota   int64         // bytes that her parcels may take; 0: no bound
	Groups  []string      // that she is in, sorted
	Consent time.Time     // to the study, since then; zero: none
	Locked  time.Time     // out, since then; zero: not
	Why     string        // she is locked out
	Created time.Time     // zero: not known
	Comment string        // who she is
	Other   parcel.Record // keys this program does not know, kept as they are
}

func parseUserConfig(p []byte) (*UserConfig, error) {
	r, err := parcel.ParseRecord(p)
	if err != nil {
		return nil, err
	}
	c := &UserConfig{}
	seen := make(map[string]bool)
	for _, f := range r {
		if seen[f.Key] && f.Key != "GROUP" {
			return nil, fmt.Errorf("%s is given twice", f.Key)
		}
		seen[f.Key] = true
		switch f.Key {
		case "QUOTA":
			if c.Quota, err = strconv.ParseInt(f.Value, 10, 64); err == nil && c.Quota < 1 {
				err = errors.New("want 1 or more")
			}
		case "GROUP":
			err = parcel.CheckName(f.Value)
			c.Groups = append(c.Groups, f.Value)
		case "CONSENT":
			c.Consent, err = parcel.ParseTime(f.Value)
		case "LOCKED":
			c.Locked, err = parcel.ParseTime(f.Value)
		case "WHY":
			c.Why = f.Value
		case "CREATED":
			c.Created, err = parcel.ParseTime(f.Value)
		case "COMMENT":
			c.Comment = f.Value
		default:
			c.Other = append(c.Other, f)
			delete(seen, f.Key) // may be repeated, for all we know
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", f.Key, err)
		}
	}
	slices.Sort(c.Groups)
	c.Groups = slices.Compact(c.Groups)
	return c, nil
}

func (c *UserConfig) encode() ([]byte, error) {
	var r parcel.Record
	add := func(key, value string) {
		if value != "" {
			r = append(r, parcel.Field{Key: key, Value: value})
		}
	}
	at := func(t time.Time) string {
		if t.IsZero() {
			return ""
		}
		return t.UTC().Format(time.RFC3339)
	}
	if c.Quota != 0 {
		add("QUOTA", strconv.FormatInt(c.Quota, 10))
	}
	for _, g := range c.Groups {
		add("GROUP", g)
	}
	add("CONSENT", at(c.Consent))
	add("LOCKED", at(c.Locked))
	if !c.Locked.IsZero() {
		add("WHY", parcel.Clean(c.Why))
	}
	add("CREATED", at(c.Created))
	add("COMMENT", parcel.Clean(c.Comment))
	b, err := append(r, c.Other...).Encode()
	if err == nil {
		_, err = parseUserConfig(b)
	}
	return b, err
}

// checkTexts refuses what is too long for a line about a user.
func (c *UserConfig) checkTexts() error {
	return errors.Join(checkText("comment", c.Comment), checkText("reason", c.Why))
}

// config is the user's; the defaults if there is no file. parcel.ErrDamaged if
// it cannot be understood: then nobody knows that she is not locked out.
func (u User) config() (*UserConfig, error) {
	p, err := tree.ReadOwn(filepath.Join(u.Dir, tree.UserFile))
	if errors.Is(err, fs.ErrNotExist) {
		return &UserConfig{}, nil
	}
	if err != nil {
		return nil, err
	}
	c, err := parseUserConfig(p)
	if err != nil {
		return nil, parcel.NewError(parcel.Damaged, "user %s: user.cfg: %v", u.Name, err)
	}
	return c, nil
}

// UserConfig is what is known of a user.
func (s *Store) UserConfig(name string) (*UserConfig, error) {
	u, err := s.User(name)
	if err != nil {
		return nil, err
	}
	return u.config()
}

// ChangeUser changes what is known of a user, by change, which nobody else
// does meanwhile. If change returns an error, nothing is changed.
func (s *Store) ChangeUser(name string, change func(*UserConfig) error) error {
	u, unlock, err := s.lockUser(name)
	if err != nil {
		return err
	}
	defer unlock()
	c, err := u.config()
	if err != nil {
		return err
	}
	if err := change(c); err != nil {
		return err
	}
	if err := c.checkTexts(); err != nil {
		return fmt.Errorf("user %s: %w", name, err)
	}
	p, err := c.encode()
	if err != nil {
		return parcel.NewError(parcel.Usage, "user %s: %v", name, err)
	}
	tree.Step("user.cfg")
	return atomicfile.Write(filepath.Join(u.Dir, tree.UserFile), p, tree.FileMode)
}

// Admit is nil unless the user is locked out; then the error says why.
func (s *Store) Admit(name string) error {
	c, err := s.UserConfig(name)
	if err != nil {
		return err
	}
	if !c.Locked.IsZero() {
		return parcel.NewError(parcel.Denied, "user %s: is locked out since %s: %s", name, c.Locked.Format("2006-01-02"), c.Why).
			WithHint("ask the administrator of the server")
	}
	return nil
}

// Consent is since when a user takes part in the study of how parcels are
// used; not ok: she does not.
func (s *Store) Consent(name string) (since time.Time, ok bool, err error) {
	c, err := s.UserConfig(name)
	if err != nil {
		return time.Time{}, false, err
	}
	return c.Consent, !c.Consent.IsZero(), nil
}

// Groups are the groups that a user is in.
func (s *Store) Groups(name string) ([]string, error) {
	c, err := s.UserConfig(name)
	if err != nil {
		return nil, err
	}
	return c.Groups, nil
}
