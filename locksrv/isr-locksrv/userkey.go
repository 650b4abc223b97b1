package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"

	"isr/locksrv/event"
	"isr/store"
	"isr/store/authkey"
	"isr/store/parcel"
)

type keyAdd struct {
	Name string   `arg:"" help:"The user."`
	File []string `arg:"" help:"Files with public keys, as ssh-keygen writes them, options in front allowed; - is standard input." type:"path"`
	keyTerms
}

func (c *keyAdd) Run(ctx context.Context, e *env) error {
	if err := parcel.CheckName(c.Name); err != nil {
		return err
	}
	keys, err := readKeys(c.File)
	if err != nil {
		return err
	}
	for i := range keys {
		if err := c.apply(&keys[i]); err != nil {
			return err
		}
	}
	s, _, err := e.open()
	if err != nil {
		return err
	}
	return addKeys(ctx, e, s, c.Name, keys)
}

func addKeys(ctx context.Context, e *env, s *store.Store, name string, keys []authkey.Key) error {
	what := event.Event{Op: event.UserChange, User: name, What: "keys added: " + describeKeys(keys)}
	return e.act(ctx, s, what, func(context.Context) error { return s.AddKeys(name, keyTexts(keys)) })
}

// describeKeys says which keys they are, and on which terms.
func describeKeys(keys []authkey.Key) string {
	var all []string
	for _, k := range keys {
		all = append(all, strings.TrimSpace(ssh.FingerprintSHA256(k)+" "+terms(k)))
	}
	return strings.Join(all, "; ")
}

func keyTexts(keys []authkey.Key) (texts []string) {
	for _, k := range keys {
		texts = append(texts, k.String())
	}
	return texts
}

// readKeys reads files of public keys; none of them may be without.
func readKeys(files []string) (keys []authkey.Key, err error) {
	for _, file := range files {
		some, err := readKeyFile(file)
		if err != nil {
			return nil, err
		}
		keys = append(keys, some...)
	}
	return keys, nil
}

func readKeyFile(file string) (keys []authkey.Key, err error) {
	in := os.Stdin
	if file == "-" {
		file = "standard input"
	} else {
		if in, err = os.Open(file); err != nil {
			return nil, parcel.NewError(parcel.Usage, "%v", err)
		}
		defer in.Close()
	}
	text, err := io.ReadAll(io.LimitReader(in, maxKeyFile+1))
	switch {
	case err != nil:
		return nil, parcel.NewError(parcel.Usage, "%v", err)
	case bytes.Contains(text, []byte("PRIVATE KEY-----")):
		return nil, parcel.NewError(parcel.Usage, "%s: holds a private key", file).
			WithHint("the public key is in the file with .pub at its end")
	case len(text) > maxKeyFile:
		return nil, parcel.NewError(parcel.Usage, "%s: over %d bytes: no file of public keys", file, maxKeyFile)
	}
	for _, l := range authkey.Parse(text) {
		if l.Err != nil {
			return nil, parcel.NewError(parcel.Usage, "%s: line %d: not a public key: %v", file, l.N, l.Err)
		}
		keys = append(keys, l.Key)
	}
	if keys == nil {
		return nil, parcel.NewError(parcel.Usage, "%s: holds no key", file)
	}
	return keys, nil
}

// terms are a key's options in words, "" if it has none.
func terms(k authkey.Key) string {
	var t []string
	if k.ReadOnly {
		t = append(t, "read-only")
	}
	if k.Parcels != nil {
		t = append(t, "only "+strings.Join(k.Parcels, ","))
	}
	if k.From != nil {
		t = append(t, "from "+strings.Join(k.From, ","))
	}
	if !k.Expires.IsZero() {
		verb := "until "
		if time.Now().After(k.Expires) {
			verb = "expired "
		}
		t = append(t, verb+timeText(k.Expires)+" UTC")
	}
	return strings.Join(t, ", ")
}

type keyList struct {
	Name string `arg:"" help:"The user."`
	JSON bool   `name:"json" help:"Print an object a line."`
}

// keyRow is a key as user key list has it.
type keyRow struct {
	Number      int        `json:"number"`
	Fingerprint string     `json:"fingerprint,omitempty"`
	Type        string     `json:"type,omitempty"`
	Comment     string     `json:"comment,omitempty"`
	ReadOnly    bool       `json:"read_only,omitempty"`
	Parcels     []string   `json:"parcels,omitempty"`
	From        []string   `json:"from,omitempty"`
	Expires     *time.Time `json:"expires,omitempty"`
	Expired     bool       `json:"expired,omitempty"`
	Error       string     `json:"error,omitempty"` // why it lets nobody in
}

func (c *keyList) Run(e *env) error {
	s, _, err := e.open()
	if err != nil {
		return err
	}
	lines, err := s.Keys(c.Name)
	if err != nil {
		return err
	}
	if c.JSON {
		out := e.rows()
		for i, l := range lines {
			if err := out.Encode(rowOf(i+1, l)); err != nil {
				return err
			}
		}
		return nil
	}
	table := e.stdout.Table()
	for i, l := range lines {
		if l.Err != nil {
			table.Row(fmt.Sprint(i+1), "-", "-", "-", "lets nobody in: "+l.Err.Error())
			continue
		}
		table.Row(fmt.Sprint(i+1), ssh.FingerprintSHA256(l.Key), l.Key.Type(), orDash(l.Key.Comment), orDash(terms(l.Key)))
	}
	return table.Print()
}

func rowOf(number int, l authkey.Line) keyRow {
	r := keyRow{Number: number}
	if l.Err != nil {
		r.Error = parcel.Clean(l.Err.Error())
		return r
	}
	k := l.Key
	r.Fingerprint, r.Type, r.Comment = ssh.FingerprintSHA256(k), k.Type(), k.Comment
	r.ReadOnly, r.Parcels, r.From = k.ReadOnly, k.Parcels, k.From
	if !k.Expires.IsZero() {
		t := k.Expires.UTC()
		r.Expires, r.Expired = &t, time.Now().After(t)
	}
	return r
}

type keyDel struct {
	Name string `arg:"" help:"The user."`
	Key  string `arg:"" help:"Its fingerprint, its number in the list, or its file."`
	sure
}

func (c *keyDel) Run(ctx context.Context, e *env) error {
	s, _, err := e.open()
	if err != nil {
		return err
	}
	lines, err := s.Keys(c.Name)
	if err != nil {
		return err
	}
	which, err := c.which(lines)
	if err != nil {
		return err
	}
	var texts []string
	var of []string
	last := true
	for i, l := range lines {
		switch {
		case which(i, l):
			texts = append(texts, l.Text)
			if l.Err != nil {
				of = append(of, fmt.Sprintf("line %d", l.N))
			} else {
				of = append(of, strings.TrimSpace(ssh.FingerprintSHA256(l.Key)+" "+l.Key.Comment))
			}
		case l.Err == nil:
			last = false
		}
	}
	if texts == nil {
		return parcel.NewError(parcel.Failed, "user %s: has no such key", c.Name).
			WithHint("isr-locksrv user key list %s has all of them", c.Name)
	}
	question := fmt.Sprintf("remove key %s of user %s?", strings.Join(of, ", "), c.Name)
	if has, err := s.HasPassword(c.Name); err == nil && last && !has {
		question = "nothing else lets her in: " + question
	}
	if err := e.confirm(c.Yes, "%s", question); err != nil {
		return err
	}
	what := event.Event{Op: event.UserChange, User: c.Name, What: "key removed: " + parcel.Clean(strings.Join(of, ", "))}
	return e.act(ctx, s, what, func(context.Context) error {
		for _, text := range texts {
			if err := s.DelKey(c.Name, text); err != nil {
				return err
			}
		}
		return nil
	})
}

// which tells the lines that are meant.
func (c *keyDel) which(lines []authkey.Line) (func(int, authkey.Line) bool, error) {
	if n, err := strconv.Atoi(c.Key); err == nil {
		return func(i int, l authkey.Line) bool { return i+1 == n }, nil
	}
	if strings.HasPrefix(c.Key, "SHA256:") {
		return func(_ int, l authkey.Line) bool { return l.Err == nil && ssh.FingerprintSHA256(l.Key) == c.Key }, nil
	}
	keys, err := readKeyFile(c.Key)
	if err != nil {
		return nil, err
	}
	return func(_ int, l authkey.Line) bool {
		for _, k := range keys {
			if l.Err == nil && l.Key.Same(k) {
				return true
			}
		}
		return false
	}, nil
}
