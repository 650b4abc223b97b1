package client

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"syscall"

	"github.com/gofrs/flock"
	"golang.org/x/crypto/ssh"

	"isr/client/hoard"
	"isr/client/remote/identity"
	"isr/client/remote/sshconf"
	"isr/client/wrap"
	"isr/store/atomicfile"
	"isr/store/keyring"
	"isr/store/parcel"
	"isr/store/seal"
)

// Status is where a checkout stands between two commands.
type Status string

// The states. DESIGN's damaged and orphaned are marks beside these: a parcel
// of any state may become so, and keeps its work.
const (
	Acquiring  Status = "acquiring"   // the lock is asked for; nothing is here yet
	CheckedOut Status = "checked out" // pristine
	Running    Status = "running"     // a keeper has it; if none lives, it died
	Suspended  Status = "suspended"   // modified here since checkout or sync
	Staged     Status = "staged"      // modified, sealed, ready to commit as Commit
	Releasing  Status = "releasing"   // committed or given up; the lock goes back
)

// State is the record of a checkout, the file state. It is replaced whole.
type State struct {
	Status      Status
	Server      string // as typed: [LOGIN@]HOST[:PORT]
	User        string // owner, as parcel.cfg says
	Parcel      string
	UUID        string
	Acquisition string // what the lock was asked for with
	Version     int    // the version that is pristine here
	Modified    bool   // something differs from it
	Memory      string // VMM whose memory image belongs to the state; "" = powered off
	Requires    map[string]string
	Orphaned    string  // who took the lock, if it was taken
	Lost        string  // how the server lost Version, if it did
	Damaged     string  // what is wrong, if something is
	Mount       string  // directory of the running parcel's mount
	Compression string  // profile that a resume asked for; "": none did
	Proof       string  // sum of the file nonce
	Rescue      *Rescue // a rescue that is not done, if one was begun

	pristine seal.Ref // keyroot of Version
	staged   seal.Ref // keyroot of what is staged
	base     seal.Ref // what the server has as Version, while a rescue is to make pristine there again; nil: pristine
	secret   []byte   // convergence secret
	box      []byte   // the four above, under the checkout's key
}

// boxed is the plaintext of the record's secret part.
type boxed struct {
	Pristine seal.Ref `json:"pristine"`
	Staged   seal.Ref `json:"staged"`
	Secret   string   `json:"secret"`
	Base     seal.Ref `json:"base,omitzero"`
}

// Checkout is a parcel on this host.
type Checkout struct {
	Dir    string // ~/.isr/NAME
	State  State
	client *Client
	key    []byte // the checkout's key, once unlocked
	lock   *flock.Flock
	cfg    *parcel.Config // once opened
	coding *coding        // how changes are compressed; nil: as cfg says
}

const boxLabel = "state"

func (co *Checkout) path(elem ...string) string {
	return filepath.Join(append([]string{co.Dir}, elem...)...)
}

// load reads the record.
func (co *Checkout) load() error {
	p, err := os.ReadFile(co.path("state"))
	if err != nil {
		return err
	}
	r, err := parcel.ParseRecord(p)
	if err != nil {
		return fmt.Errorf("checkout %s: state: %w", co.Dir, err)
	}
	// A flipped bit must not make a parcel unmodified.
	rest, line, ok := bytes.Cut(p, []byte("SUM:="))
	if (ok || !beforeSums(r)) && string(bytes.TrimSpace(line)) != recordSum(rest) {
		return fmt.Errorf("checkout %s: state: does not match its sum: %w", co.Dir, parcel.ErrDamaged)
	}
	st := State{Status: Status(r.Get("STATUS")), Server: r.Get("SERVER"), User: r.Get("USER"),
		Parcel: r.Get("PARCEL"), UUID: r.Get("UUID"), Acquisition: r.Get("ACQUISITION"),
		Modified: r.Get("MODIFIED") == "yes", Memory: r.Get("MEMORY"), Orphaned: r.Get("ORPHANED"), Lost: r.Get("LOST"),
		Damaged: r.Get("DAMAGED"), Proof: r.Get("PROOF"), Mount: r.Get("MOUNT"), Compression: r.Get("COMPRESSION")}
	if st.Version, err = strconv.Atoi(r.Get("VERSION")); err != nil {
		return fmt.Errorf("checkout %s: state: VERSION: %w", co.Dir, err)
	}
	if v := r.Get("REQUIRES"); v != "" {
		if err := json.Unmarshal([]byte(v), &st.Requires); err != nil {
			return fmt.Errorf("checkout %s: state: REQUIRES: %w", co.Dir, err)
		}
	}
	if v := r.Get("RESCUE"); v != "" {
		if err := json.Unmarshal([]byte(v), &st.Rescue); err != nil {
			return fmt.Errorf("checkout %s: state: RESCUE: %w", co.Dir, err)
		}
	}
	if st.box, err = base64.StdEncoding.DecodeString(r.Get("KEYS")); err != nil {
		return fmt.Errorf("checkout %s: state: KEYS: %w", co.Dir, err)
	}
	switch st.Status {
	case Acquiring, CheckedOut, Running, Suspended, Staged, Releasing:
	default:
		return fmt.Errorf("checkout %s: state: STATUS %q", co.Dir, st.Status)
	}
	st.pristine, st.staged, st.base, st.secret = co.State.pristine, co.State.staged, co.State.base, co.State.secret
	co.State = st
	if co.key != nil {
		return co.unbox()
	}
	return nil
}

// beforeSums reports whether r was written when records had no sum: then they
// had no PROOF either, and an OFFLINE that is gone.
func beforeSums(r parcel.Record) bool { return r.All("PROOF") == nil && r.All("OFFLINE") != nil }

// save replaces the record, durably. All that goes before it must be durable
// first: the record is what makes a step done.
func (co *Checkout) save() error {
	st := &co.State
	yes := map[bool]string{true: "yes", false: "no"}
	if co.key != nil && !st.pristine.IsNil() {
		p, err := json.Marshal(boxed{st.pristine, st.staged, hex.EncodeToString(st.secret), st.base})
		if err != nil {
			return err
		}
		st.box = wrap.Seal(co.key, p, boxLabel)
	}
	requires, err := json.Marshal(st.Requires)
	if err != nil {
		return err
	}
	r := parcel.Record{{Key: "STATUS", Value: string(st.Status)}, {Key: "SERVER", Value: st.Server},
		{Key: "USER", Value: st.User}, {Key: "PARCEL", Value: st.Parcel}, {Key: "UUID", Value: st.UUID},
		{Key: "ACQUISITION", Value: st.Acquisition}, {Key: "VERSION", Value: strconv.Itoa(st.Version)},
		{Key: "MODIFIED", Value: yes[st.Modified]}, {Key: "MEMORY", Value: st.Memory},
		{Key: "REQUIRES", Value: string(requires)}, {Key: "ORPHANED", Value: parcel.Clean(st.Orphaned)},
		{Key: "DAMAGED", Value: parcel.Clean(st.Damaged)}, {Key: "PROOF", Value: st.Proof}, {Key: "MOUNT", Value: st.Mount},
		{Key: "COMPRESSION", Value: st.Compression}, {Key: "KEYS", Value: base64.StdEncoding.EncodeToString(st.box)}}
	if st.Lost != "" {
		r = append(r, parcel.Field{Key: "LOST", Value: parcel.Clean(st.Lost)})
	}
	if st.Rescue != nil {
		v, err := json.Marshal(st.Rescue)
		if err != nil {
			return err
		}
		r = append(r, parcel.Field{Key: "RESCUE", Value: string(v)})
	}
	p, err := r.Encode()
	if err != nil {
		return fmt.Errorf("checkout %s: state: %w", co.Dir, err)
	}
	p = fmt.Appendf(p, "SUM:=%s\n", recordSum(p))
	return atomicfile.Write(co.path("state"), p, 0o600)
}

// recordSum is the last line of a record, the sum of those before it.
func recordSum(p []byte) string {
	sum := sha256.Sum256(p)
	return hex.EncodeToString(sum[:])
}

// unbox opens the record's secret part with the checkout's key.
func (co *Checkout) unbox() error {
	p, err := wrap.Unseal(co.key, co.State.box, boxLabel)
	if err != nil {
		return fmt.Errorf("checkout %s: %w", co.Dir, err)
	}
	var b boxed
	if err := json.Unmarshal(p, &b); err != nil {
		return fmt.Errorf("checkout %s: state: %w", co.Dir, err)
	}
	co.State.pristine, co.State.staged, co.State.base = b.Pristine, b.Staged, b.Base
	co.State.secret, err = hex.DecodeString(b.Secret)
	return err
}

// unlock gets the checkout's key by the user's SSH keys, or by the password,
// and opens what it protects.
func (co *Checkout) unlock(ctx context.Context) error {
	if co.key == nil {
		if err := co.openKey(ctx); err != nil {
			return err
		}
	}
	return co.open()
}

// openKey gets the checkout's key.
func (co *Checkout) openKey(ctx context.Context) error {
	record, err := os.ReadFile(co.path("keys", "keyroot"))
	if err != nil {
		return fmt.Errorf("checkout %s: %w", co.Dir, err)
	}
	t, err := co.client.target(co.State.Server, co.State.User)
	if err != nil {
		return err
	}
	co.key, err = co.client.openKey(ctx, t, record)
	return err
}

// open reads what the checkout's key protects.
func (co *Checkout) open() error {
	if err := co.unbox(); err != nil {
		return err
	}
	p, err := os.ReadFile(co.path("parcel.cfg"))
	if err != nil {
		return fmt.Errorf("checkout %s: %w", co.Dir, err)
	}
	if co.cfg, err = parcel.ParseConfig(p); err != nil {
		return fmt.Errorf("checkout %s: %w", co.Dir, err)
	}
	co.cfg.Secret = co.State.secret
	return nil
}

// signers are the user's, for t. With what isr auth knows nobody is asked for
// more, unless nothing comes of that.
func (c *Client) signers(ctx context.Context, t sshconf.Target) ([]ssh.Signer, error) {
	if c.held(t) != nil {
		if s, err := identity.Signers(ctx, t, nil, c.creds); err == nil {
			return s, nil
		}
	}
	return identity.Signers(ctx, t, c.Prompter, c.creds)
}

// seize takes the parcel's lock on this host, for as long as the process
// lives or until letGo, and reads the record anew.
func (co *Checkout) seize() error {
	l := flock.New(co.path("lock"), flock.SetPermissions(0o600))
	ok, err := l.TryLock()
	if err != nil {
		return fmt.Errorf("checkout %s: %w", co.Dir, err)
	}
	if !ok {
		return co.busy()
	}
	// The directory may have been removed, or made again, meanwhile.
	if !sameFile(co.path("lock"), l) {
		l.Close()
		return parcel.NewError(parcel.NoParcel, "parcel %s: no longer checked out", co.State.Parcel)
	}
	co.lock = l
	if err := co.load(); err != nil {
		co.letGo()
		return err
	}
	return nil
}

func (co *Checkout) busy() error {
	e := parcel.NewError(parcel.Busy, "parcel %s: in use by another isr command", co.State.Parcel)
	if co.State.Status == Running {
		e = parcel.NewError(parcel.Busy, "parcel %s: running", co.State.Parcel)
		if w := co.waitsFor(); w != "" {
			e = parcel.NewError(parcel.Busy, "parcel %s: being suspended, and waits for room: %s", co.State.Parcel, w)
			return e.WithHint("make room in %s: it goes on by itself", co.client.Dir)
		}
		return e.WithHint("suspend it first: ctrl-c in its isr resume, or close its window")
	}
	return e.WithHint("wait for it, or end it")
}

func (co *Checkout) letGo() {
	if co.lock != nil {
		co.lock.Close()
		co.lock = nil
	}
}

// sealer seals and unseals the parcel's objects.
func (co *Checkout) sealer() seal.Sealer { return co.coded(co.cfg.Sealer()) }

// local is the directory of objects that are sealed here and not committed.
func (co *Checkout) local() *hoard.Dir { return hoard.NewDir(co.path("hdk", "objects")) }

// nonce is the proof of holding the parcel's lock.
func (co *Checkout) nonce() (*parcel.Lock, error) {
	p, err := os.ReadFile(co.path("nonce"))
	if err != nil {
		return nil, fmt.Errorf("checkout %s: %w", co.Dir, err)
	}
	// The record comes after the nonce: a rescue may be between the two.
	if st := &co.State; st.Proof != "" && st.Proof != recordSum(p) && st.Rescue == nil {
		return nil, parcel.NewError(parcel.Damaged, "parcel %s: the proof of its lock was damaged on this host", st.Parcel).
			WithHint("isr rescue %s keeps its work as a new parcel", st.Parcel)
	}
	return parcel.ParseLock(p)
}

// root opens the root block that ref leads to: from the copy here, or by g.
func (co *Checkout) root(ctx context.Context, ref seal.Ref, g keyring.Getter) (*keyring.Root, error) {
	sealed, err := os.ReadFile(co.path("keys", "keyring"))
	if err != nil || ref.Tag.Verify(sealed) != nil {
		if sealed, err = g.Get(ctx, ref.Tag); err != nil {
			return nil, fmt.Errorf("parcel %s: keyring: %w", co.State.Parcel, err)
		}
		if err := atomicfile.Write(co.path("keys", "keyring"), sealed, 0o600); err != nil {
			return nil, err
		}
	}
	return keyring.OpenRoot(co.sealer(), ref, sealed)
}

// remove takes the checkout off this host. The rename makes it vanish at
// once; what an interruption leaves is swept by the next command.
func (co *Checkout) remove() error {
	gone := filepath.Join(co.client.Dir, gonePrefix+parcel.NewID())
	if err := os.Rename(co.Dir, gone); err != nil {
		return err
	}
	if err := atomicfile.SyncDir(co.client.Dir); err != nil {
		return err
	}
	co.letGo()
	return os.RemoveAll(gone)
}

func ownedByMe(fi os.FileInfo) bool {
	st, ok := fi.Sys().(*syscall.Stat_t)
	return !ok || int(st.Uid) == os.Getuid()
}

// sameFile reports whether the locked file is still the one at path.
func sameFile(path string, l *flock.Flock) bool {
	a, err := os.Stat(path)
	if err != nil {
		return false
	}
	b, err := l.Stat()
	return err == nil && os.SameFile(a, b)
}
