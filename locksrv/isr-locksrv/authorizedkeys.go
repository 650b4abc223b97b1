package main

import (
	"encoding/base64"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"

	"isr/store"
	"isr/store/authkey"
	"isr/store/parcel"
)

type authorizedKeys struct {
	User string `help:"Only the keys of one user." placeholder:"USER"`
	Key  string `help:"Only this key, in base64 as sshd gives it for %k." placeholder:"KEY"`
}

func (c *authorizedKeys) Run(e *env) error {
	s, root, err := e.open()
	if err != nil {
		return err
	}
	program, err := os.Executable()
	if err != nil {
		return err
	}
	command := shellQuote(program) + " --root " + shellQuote(root) + " shell --user "
	if c.Key != "" {
		return c.one(e, s, command)
	}
	users := []string{c.User}
	if c.User == "" {
		if users, err = s.Users(); err != nil {
			return err
		}
	}
	// A key of two users lets nobody in; here all keys are at hand to see it.
	var keys []userKey
	owner := make(map[string]string)
	shared := make(map[string]bool)
	for _, user := range users {
		lines, err := s.Keys(user)
		if err != nil {
			if c.User != "" {
				return err
			}
			e.warn("user %s: %v", user, err)
			continue
		}
		locked := s.Admit(user) != nil
		for _, l := range lines {
			if l.Err != nil {
				e.warn("user %s: authorized_keys line %d lets nobody in: %v", user, l.N, l.Err)
				continue
			}
			id := string(l.Key.Marshal())
			if o, ok := owner[id]; ok && o != user {
				shared[id] = true
			}
			owner[id] = user
			if !locked {
				keys = append(keys, userKey{user, l.Key})
			}
		}
	}
	for _, k := range keys {
		if shared[string(k.Marshal())] {
			e.warn("key %s: is %s's and another user's: it lets nobody in", ssh.FingerprintSHA256(k), k.user)
			continue
		}
		k.print(e, command)
	}
	return nil
}

// one prints the lines of one key, for sshd to choose among. What lets nobody
// in is not printed.
func (c *authorizedKeys) one(e *env, s *store.Store, command string) error {
	blob, err := base64.StdEncoding.DecodeString(c.Key)
	if err != nil {
		return parcel.NewError(parcel.Usage, "--key: not base64")
	}
	key, err := ssh.ParsePublicKey(blob)
	if err != nil {
		return parcel.NewError(parcel.Usage, "--key: not a public key")
	}
	user, _, err := s.UserOfKey(key, netip.Addr{})
	if user == "" || c.User != "" && user != c.User || s.Admit(user) != nil {
		return nil // whatever err: to sshd all the same
	}
	lines, err := s.Keys(user)
	if err != nil {
		return err
	}
	for _, l := range lines {
		if l.Err == nil && l.Key.Same(key) {
			userKey{user, l.Key}.print(e, command)
		}
	}
	return nil
}

type userKey struct {
	user string
	authkey.Key
}

// print prints the key for sshd, with the session of its user and its rights
// as the forced command.
func (k userKey) print(e *env, command string) {
	command += shellQuote(k.user)
	if k.ReadOnly {
		command += " --read-only"
	}
	for _, p := range k.Parcels {
		command += " --parcel " + shellQuote(p)
	}
	options := append([]string{`command="` + strings.ReplaceAll(command, `"`, `\"`) + `"`, "restrict"}, k.SSHD()...)
	fmt.Fprintf(e.stdout.Bytes(), "%s %s\n", strings.Join(options, ","), k.Text())
}

// keyTerms are the options of a key on the command line. They replace those
// in front of it.
type keyTerms struct {
	ReadOnly bool     `help:"Whoever comes with it may read, and change nothing."`
	Parcel   []string `help:"It is for this parcel only, as if there were no other; may come more than once." placeholder:"PARCEL" sep:"none"`
	Expires  string   `help:"When it lets nobody in any more: a date, a time, or 30d from now." placeholder:"WHEN"`
	From     string   `help:"Addresses and networks it may come from, as sshd(8) has them." placeholder:"LIST"`
}

func (c *keyTerms) apply(k *authkey.Key) error {
	k.ReadOnly = k.ReadOnly || c.ReadOnly
	for _, name := range c.Parcel {
		if err := parcel.CheckName(name); err != nil {
			return err
		}
	}
	if c.Parcel != nil {
		k.Parcels = c.Parcel
	}
	if c.Expires != "" {
		t, err := parseExpires(c.Expires, time.Now())
		if err != nil {
			return parcel.NewError(parcel.Usage, "--expires: %v", err)
		}
		k.Expires = t
	}
	if c.From != "" {
		p, err := authkey.ParsePatterns(c.From)
		if err != nil {
			return parcel.NewError(parcel.Usage, "--from: %v", err)
		}
		k.From = p
	}
	return nil
}

// parseExpires is a time to come: 2027-01-31, RFC 3339, that of expiry-time, or a
// number of hours, days or weeks from now.
func parseExpires(text string, now time.Time) (time.Time, error) {
	t, err := time.ParseInLocation("2006-01-02", text, time.Local)
	if err != nil {
		t, err = time.Parse(time.RFC3339, text)
	}
	if err != nil {
		t, err = authkey.ParseExpiry(text)
	}
	if err != nil {
		for unit, hours := range map[string]int{"h": 1, "d": 24, "w": 7 * 24} {
			number, ok := strings.CutSuffix(text, unit)
			if n, nerr := strconv.ParseUint(number, 10, 16); ok && nerr == nil {
				t, err = now.Add(time.Duration(int(n)*hours)*time.Hour), nil
			}
		}
	}
	switch {
	case err != nil || t.Year() > 9998:
		return t, fmt.Errorf("%q: want a date (2027-01-31), a time, or a number with h, d or w", text)
	case !t.After(now):
		return t, fmt.Errorf("%q is past", text)
	}
	return t.UTC().Truncate(time.Second), nil
}

// maxKeyFile bounds a file of public keys, bytes.
const maxKeyFile = 1 << 20
