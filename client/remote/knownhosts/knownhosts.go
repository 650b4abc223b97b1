// Package knownhosts decides whether a server is the one that is known: by the files of known hosts, as ssh would.
//
// It promises that a host key which changed, or is revoked, is never accepted quietly; that a key of an unknown host
// is asked about once, however many connections meet it; that what was accepted is written as ssh can read it, or
// remembered in the credentials where it cannot be written; and that a line which nobody can read hides no other.
// What is refused is an Error.
//
// It does not read binary revocation lists, and does not ask DNS or a KnownHostsCommand.
package knownhosts

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/gofrs/flock"
	"github.com/skeema/knownhosts"
	"golang.org/x/crypto/ssh"
	xknownhosts "golang.org/x/crypto/ssh/knownhosts"

	"isr/client/remote/ask"
	"isr/client/remote/sshconf"
)

// Checker decides about host keys for one target.
type Checker struct {
	Config *sshconf.Resolved
	Asker  *ask.Asker
	Addr   string // what the name resolved to, for the person; "" behind a proxy

	Degraded bool // set by Check: the key is wrong but StrictHostKeyChecking=no goes on: no password may follow
}

// verdict of the files on a key.
type verdict int

const (
	hostKnown verdict = iota
	hostUnknown
	hostOtherTypes // known, but only with keys of other types
	hostChanged
	hostRevoked
)

// finding is a verdict with the line it rests on.
type finding struct {
	verdict verdict
	file    string
	line    int
}

// database reads the files that exist. Lines that cannot be read are passed over, as ssh does: one key of a kind not
// implemented here must not make every host unknown.
type database struct {
	db     *knownhosts.HostKeyDB
	origin map[string]string // name of a cleaned copy → the file it is a copy of
}

func loadKnownHosts(files []string) (*database, error) {
	var present []string
	for _, f := range files {
		if info, err := os.Stat(f); err == nil && !info.IsDir() && !slices.Contains(present, f) {
			if fd, err := os.Open(f); err == nil { // an unreadable file is no file, for ssh as well
				fd.Close()
				present = append(present, f)
			}
		}
	}
	if db, err := knownhosts.NewDB(present...); err == nil {
		return &database{db: db}, nil
	}
	dir, err := os.MkdirTemp("", "known_hosts")
	if err != nil {
		return nil, fmt.Errorf("known hosts: %w", err)
	}
	defer os.RemoveAll(dir)
	d := &database{origin: map[string]string{}}
	var copies []string
	for i, f := range present {
		text, err := os.ReadFile(f)
		if err != nil {
			return nil, fmt.Errorf("known hosts: %w", err)
		}
		clean := filepath.Join(dir, strconv.Itoa(i))
		if err := os.WriteFile(clean, dropUnreadable(text, dir), 0o600); err != nil {
			return nil, fmt.Errorf("known hosts: %w", err)
		}
		d.origin[clean] = f
		copies = append(copies, clean)
	}
	if d.db, err = knownhosts.NewDB(copies...); err != nil {
		return nil, fmt.Errorf("known hosts: %w", err)
	}
	return d, nil
}

// dropUnreadable blanks the lines that the parser refuses, so that the others keep their numbers. Anything @revoked
// that cannot be read is lost with them, as with ssh. scratch is a directory to try lines in.
func dropUnreadable(text []byte, scratch string) []byte {
	lines := bytes.Split(text, []byte("\n"))
	try := filepath.Join(scratch, "try")
	readable := func(from, to int) bool {
		for _, l := range lines[from:to] {
			if len(l) > 60<<10 { // longer than the parser's buffer
				return false
			}
		}
		if err := os.WriteFile(try, bytes.Join(lines[from:to], []byte("\n")), 0o600); err != nil {
			return false
		}
		_, err := knownhosts.NewDB(try)
		return err == nil
	}
	// Halving finds k bad lines among n with about k·log n attempts.
	var clean func(from, to int)
	clean = func(from, to int) {
		if from == to || readable(from, to) {
			return
		}
		if to-from == 1 {
			lines[from] = nil
			return
		}
		mid := (from + to) / 2
		clean(from, mid)
		clean(mid, to)
	}
	clean(0, len(lines))
	return bytes.Join(lines, []byte("\n"))
}

func (d *database) place(k xknownhosts.KnownKey) (string, int) {
	if f, ok := d.origin[k.Filename]; ok {
		return f, k.Line
	}
	return k.Filename, k.Line
}

// look finds what the files say about key for name (host:port).
func (d *database) look(name string, remote net.Addr, key ssh.PublicKey) (finding, error) {
	err := d.db.HostKeyCallback()(name, remote, key)
	var keyErr *xknownhosts.KeyError
	var revoked *xknownhosts.RevokedError
	switch {
	case err == nil:
		return finding{verdict: hostKnown}, nil
	case errors.As(err, &revoked):
		file, line := d.place(revoked.Revoked)
		return finding{hostRevoked, file, line}, nil
	case errors.As(err, &keyErr):
	default:
		cert, ok := key.(*ssh.Certificate)
		if !ok {
			return finding{}, err
		}
		if d.authority(name, cert.SignatureKey) {
			return finding{}, err // ours, but expired, for another host, revoked …
		}
		return d.look(name, remote, cert.Key) // signed by a stranger: the key must stand for itself
	}
	f := finding{verdict: hostUnknown}
	for _, want := range keyErr.Want {
		if d.authority(name, want.Key) {
			continue // vouches for others, says nothing about this key
		}
		file, line := d.place(want)
		if want.Key.Type() == key.Type() {
			return finding{hostChanged, file, line}, nil
		}
		if f.verdict == hostUnknown {
			f = finding{hostOtherTypes, file, line}
		}
	}
	if f.verdict == hostUnknown {
		// A line without a port also speaks for other ports, as long as it agrees.
		if host, port, err := net.SplitHostPort(name); err == nil && port != "22" {
			if d.db.HostKeyCallback()(net.JoinHostPort(host, "22"), remote, key) == nil {
				return finding{verdict: hostKnown}, nil
			}
		}
	}
	return f, nil
}

// authority tells whether key is a certificate authority for name.
func (d *database) authority(name string, key ssh.PublicKey) bool {
	for _, k := range d.db.HostKeys(name) {
		if k.Cert && bytes.Equal(k.PublicKey.Marshal(), key.Marshal()) {
			return true
		}
	}
	return false
}

// algorithms orders what to ask the server for: what the files can vouch for comes first, so that a host known by one
// key is not met with another. Certificates are asked for only where an authority is known.
func (d *database) algorithms(r *sshconf.Resolved) []string {
	if r.HostKeyAlgorithms != nil && !r.HostKeysRelative {
		return r.HostKeyAlgorithms
	}
	all := r.HostKeyAlgorithms
	if all == nil {
		all = ssh.SupportedAlgorithms().HostKeys
	}
	name := r.KnownAs()
	known := map[string]bool{}
	certs := false
	host, _, _ := net.SplitHostPort(name)
	for _, n := range []string{name, net.JoinHostPort(host, "22")} {
		for _, k := range d.db.HostKeys(n) {
			if k.Cert {
				certs = true
				continue
			}
			known[k.Type()] = true
		}
		if len(known) > 0 || certs {
			break
		}
	}
	rank := func(algo string) int {
		isCert := strings.Contains(algo, "-cert-v01@")
		switch {
		case isCert && certs:
			return 0
		case isCert:
			return -1
		case known[keyTypeOf(algo)]:
			return 1
		}
		return 2
	}
	// Among equals: as OpenSSH prefers them, Ed25519 first, RSA last.
	order := func(algo string) int {
		switch {
		case strings.Contains(algo, "ed25519"):
			return 0
		case strings.Contains(algo, "ecdsa"):
			return 1
		case algo == ssh.KeyAlgoRSASHA512:
			return 2
		}
		return 3
	}
	var out []string
	for _, a := range all {
		if rank(a) >= 0 {
			out = append(out, a)
		}
	}
	slices.SortStableFunc(out, func(a, b string) int {
		if c := rank(a) - rank(b); c != 0 || r.HostKeyAlgorithms != nil {
			return c
		}
		return order(a) - order(b)
	})
	return out
}

// keyTypeOf is the type of key that a signature algorithm uses.
func keyTypeOf(algo string) string {
	if algo == ssh.KeyAlgoRSASHA256 || algo == ssh.KeyAlgoRSASHA512 {
		return ssh.KeyAlgoRSA
	}
	return algo
}

func (h *Checker) files() []string {
	return append(append([]string{}, h.Config.UserKnownHostsFiles...), h.Config.GlobalKnownHostsFiles...)
}

// Algorithms orders what to ask the server for, best first: see database.algorithms.
func (h *Checker) Algorithms() ([]string, error) {
	db, err := loadKnownHosts(h.files())
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrHostKey, err)
	}
	return db.algorithms(h.Config), nil
}

// Check is the whole decision: nil accepts. It may ask, and it may add a line to the first file of known hosts. The error
// is an *Error, or the context's.
func (h *Checker) Check(ctx context.Context, remote net.Addr, key ssh.PublicKey) error {
	if h.Config.NoHostAuthLocalhost {
		if a, ok := remote.(*net.TCPAddr); ok && a.IP.IsLoopback() && h.Addr != "" {
			return nil
		}
	}
	if err := h.notRevoked(key); err != nil {
		return err
	}
	f, err := h.look(remote, key)
	if err != nil {
		return err
	}
	if f.verdict == hostUnknown || f.verdict == hostOtherTypes {
		// One question at a time; another connection may have settled it while this one waited.
		done, err := h.Asker.Turn(ctx)
		if err != nil {
			return err
		}
		defer done()
		if f, err = h.look(remote, key); err != nil {
			return err
		}
	}
	name := h.Config.KnownAs()
	problem := &Error{Host: h.shown(), KeyType: keyName(key), Fingerprint: ssh.FingerprintSHA256(key), File: f.file, Line: f.line,
		LookUp: xknownhosts.Normalize(name)}
	switch f.verdict {
	case hostKnown:
		return nil
	case hostRevoked:
		problem.Kind = Revoked
		return problem
	case hostChanged:
		problem.Kind = Changed
		if h.Config.StrictHostKeyChecking != sshconf.StrictNo {
			return problem
		}
		h.Degraded = true
		h.Asker.Notice("Warning: %v. Going on without passwords, because StrictHostKeyChecking is no.", problem)
		return nil
	}
	if pinned, ok := h.Asker.Credentials.HostKey(name); ok && bytes.Equal(pinned, key.Marshal()) {
		return nil
	}
	problem.Kind = Unknown
	switch h.Config.StrictHostKeyChecking {
	case sshconf.StrictYes:
		return problem
	case sshconf.StrictAsk:
		if !h.Asker.Present() {
			return problem
		}
		yes, err := h.Asker.Confirm(ctx, h.question(f, key))
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil || !yes {
			problem.Kind = Declined
			return problem
		}
	}
	h.add(name, key)
	return nil
}

func (h *Checker) look(remote net.Addr, key ssh.PublicKey) (finding, error) {
	db, err := loadKnownHosts(h.files())
	if err != nil {
		return finding{}, err
	}
	f, err := db.look(h.Config.KnownAs(), splittable(remote), key)
	if err != nil {
		return f, &Error{Kind: Invalid, Host: h.shown(), KeyType: keyName(key), Fingerprint: ssh.FingerprintSHA256(key), Cause: err}
	}
	return f, nil
}

// splittable stands in for addresses, such as a pipe's, that are not host and port.
func splittable(a net.Addr) net.Addr {
	if t, ok := a.(*net.TCPAddr); ok {
		return t
	}
	return &net.TCPAddr{IP: net.IPv4zero}
}

func (h *Checker) shown() string {
	if h.Config.HostKeyAlias != "" {
		return h.Config.HostKeyAlias
	}
	if h.Config.Port == 22 {
		return h.Config.HostName
	}
	return "[" + h.Config.HostName + "]:" + strconv.Itoa(h.Config.Port)
}

// question is what ssh asks, so that it is recognised.
func (h *Checker) question(f finding, key ssh.PublicKey) string {
	who := h.shown()
	if h.Addr != "" && h.Addr != h.Config.HostName {
		who += " (" + h.Addr + ")"
	}
	others := "This key is not known by any other names."
	if f.verdict == hostOtherTypes {
		others = fmt.Sprintf("Keys of other types are already known for this host (%s:%d).", f.file, f.line)
	}
	return fmt.Sprintf("The authenticity of host '%s' can't be established.\n%s key fingerprint is %s.\n%s\n"+
		"Are you sure you want to continue connecting (yes/no)? ", who, keyName(key), ssh.FingerprintSHA256(key), others)
}

// keyName is the short name of a key's type: ED25519, RSA, ECDSA …
func keyName(key ssh.PublicKey) string {
	t := key.Type()
	suffix := ""
	if cert, ok := key.(*ssh.Certificate); ok {
		t, suffix = cert.Key.Type(), "-CERT"
	}
	for _, n := range []string{"ed25519", "ecdsa", "rsa", "dss"} {
		if strings.Contains(t, n) {
			return strings.ToUpper(n) + suffix
		}
	}
	return t
}

// add records a key that has been accepted: in the first user file, or, when that cannot keep it, in the credentials.
func (h *Checker) add(name string, key ssh.PublicKey) {
	if cert, ok := key.(*ssh.Certificate); ok {
		key = cert.Key
	}
	h.Asker.Credentials.SetHostKey(name, key.Marshal())
	if len(h.Config.UserKnownHostsFiles) == 0 {
		return
	}
	file := h.Config.UserKnownHostsFiles[0]
	if err := appendKnownHost(file, name, key, h.Config.HashKnownHosts); err != nil {
		var pe *fs.PathError
		if errors.As(err, &pe) {
			err = pe.Err // without the path, which is said already
		}
		h.Asker.Notice("Warning: the host key of %s could not be added to %s: %v", h.shown(), file, err)
		return
	}
	h.Asker.Notice("Warning: Permanently added '%s' (%s) to the list of known hosts.", h.shown(), keyName(key))
}

// appendKnownHost adds one line, in one write, under a lock against others of its kind; ssh itself does not lock, and
// one write to a file opened for appending is whole for it too.
func appendKnownHost(file, name string, key ssh.PublicKey, hash bool) error {
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return err
	}
	host := xknownhosts.Normalize(name)
	if hash {
		host = xknownhosts.HashHostname(host)
	}
	line := host + " " + key.Type() + " " + base64.StdEncoding.EncodeToString(key.Marshal()) + "\n"
	f, err := os.OpenFile(file, os.O_RDWR|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		_, err := io.WriteString(f, line) // /dev/null, as people configure it
		return err
	}
	lock := flock.New(file, flock.SetFlag(os.O_RDWR))
	if err := lock.Lock(); err == nil {
		defer lock.Unlock()
	}
	if end, err := f.Seek(0, io.SeekEnd); err == nil && end > 0 {
		last := make([]byte, 1)
		if _, err := f.ReadAt(last, end-1); err == nil && last[0] != '\n' {
			line = "\n" + line // somebody's editor left the last line open
		}
	}
	if _, err := io.WriteString(f, line); err != nil {
		return err
	}
	return f.Sync()
}

// notRevoked looks the key up in RevokedHostKeys. As with ssh, a file that cannot be read revokes everything.
func (h *Checker) notRevoked(key ssh.PublicKey) error {
	file := h.Config.RevokedHostKeys
	if file == "" {
		return nil
	}
	problem := &Error{Kind: Revoked, Host: h.shown(), KeyType: keyName(key), Fingerprint: ssh.FingerprintSHA256(key), File: file}
	text, err := os.ReadFile(file)
	if err != nil {
		problem.Kind, problem.Cause = Invalid, fmt.Errorf("RevokedHostKeys: %w", err)
		return problem
	}
	keys := []ssh.PublicKey{key}
	if cert, ok := key.(*ssh.Certificate); ok {
		keys = append(keys, cert.Key, cert.SignatureKey)
	}
	for i, line := range bytes.Split(text, []byte("\n")) {
		line = bytes.TrimSpace(line)
		if len(line) == 0 || line[0] == '#' {
			continue
		}
		pub, _, _, _, err := ssh.ParseAuthorizedKey(line)
		if err != nil {
			problem.Kind, problem.Cause = Invalid, fmt.Errorf("RevokedHostKeys: %s line %d: not a public key (binary revocation lists are not supported)", file, i+1)
			return problem
		}
		for _, k := range keys {
			if bytes.Equal(k.Marshal(), pub.Marshal()) {
				problem.Line = i + 1
				return problem
			}
		}
	}
	return nil
}
