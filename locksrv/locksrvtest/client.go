package locksrvtest

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/pkg/sftp"

	"isr/locksrv/proto"
	"isr/store/keyring"
	"isr/store/parcel"
	"isr/store/seal"
)

// Peer is a way to a server, logged in as one user.
type Peer interface {
	// Exec runs a command to its end.
	Exec(command string, stdin []byte) (stdout, stderr []byte, status int)
	// SFTP opens the subsystem; the caller closes it.
	SFTP() (*sftp.Client, error)
}

// Client does by hand, and one thing at a time, what a client of isr does.
type Client struct {
	Peer
	Parcel string
}

// Verb runs a verb on the parcel; its error is the typed one.
func (c *Client) Verb(verb, args string, stdin []byte) ([]byte, error) {
	command := strings.TrimSpace(verb + " " + c.Parcel + " " + args)
	out, errs, status := c.Exec(command, stdin)
	return out, proto.ReadError(verb, status, errs)
}

// Acquire takes the lock.
func (c *Client) Acquire(host, acquisition string) (*parcel.Lock, error) {
	out, err := c.Verb(proto.Acquire, host+" "+acquisition, nil)
	if err != nil {
		return nil, err
	}
	return parcel.ParseLock(out)
}

// Config is the parcel.cfg.
func (c *Client) Config() (*parcel.Config, error) {
	out, err := c.Verb(proto.CatConfig, "", nil)
	if err != nil {
		return nil, err
	}
	return parcel.ParseConfig(out)
}

// Keyroot is a version's keyroot; 0 is the head.
func (c *Client) Keyroot(version int) (seal.Ref, error) {
	args := ""
	if version > 0 {
		args = fmt.Sprint(version)
	}
	out, err := c.Verb(proto.CatKeyroot, args, nil)
	if err != nil {
		return seal.Ref{}, err
	}
	return seal.ParseRef(strings.TrimSpace(string(out)))
}

// Get gets one object.
func (c *Client) Get(_ context.Context, tag seal.Tag) ([]byte, error) {
	out, err := c.Verb(proto.Get, "", []byte(tag.String()+"\n"))
	if err != nil {
		return nil, err
	}
	object, err := proto.ReadFrame(bytes.NewReader(out))
	if err == nil {
		err = tag.Verify(object)
	}
	return object, err
}

// Missing is those of the tags that the server lacks.
func (c *Client) Missing(tags ...seal.Tag) (lacking []seal.Tag, err error) {
	var in bytes.Buffer
	for _, tag := range tags {
		fmt.Fprintln(&in, tag)
	}
	out, err := c.Verb(proto.Missing, "", in.Bytes())
	if err != nil {
		return nil, err
	}
	err = proto.ReadTags(bytes.NewReader(out), func(t seal.Tag) error {
		lacking = append(lacking, t)
		return nil
	})
	return lacking, err
}

// ObjectPath is where SFTP has an object.
func (c *Client) ObjectPath(tag seal.Tag) string {
	return "/" + c.Parcel + "/hdk/" + tag.String()[:2] + "/" + tag.String()
}

// Put puts objects by SFTP.
func (c *Client) Put(objects map[seal.Tag][]byte) (err error) {
	s, err := c.SFTP()
	if err != nil {
		return err
	}
	defer func() {
		if cerr := s.Close(); err == nil && cerr != nil && !errors.Is(cerr, io.EOF) {
			err = cerr
		}
	}()
	for tag, object := range objects {
		f, err := s.Create(c.ObjectPath(tag))
		if err != nil {
			return err
		}
		if _, err := f.Write(object); err != nil {
			f.Close()
			return err
		}
		if err := f.Close(); err != nil {
			return err
		}
	}
	return nil
}

// Draft is a version that nobody has heard of yet.
type Draft struct {
	Parent  int
	Keyroot seal.Ref
	Objects map[seal.Tag][]byte // all that is new with it, root included
	Plain   []byte              // of the one chunk that changed
}

type putter map[seal.Tag][]byte

func (p putter) Put(_ context.Context, tag seal.Tag, sealed []byte) error {
	p[tag] = sealed
	return nil
}

// Draft makes a version from the head by changing one chunk of the disk.
func (c *Client) Draft(chunk int64) (*Draft, error) {
	ctx := context.Background()
	cfg, err := c.Config()
	if err != nil {
		return nil, err
	}
	keyroot, err := c.Keyroot(0)
	if err != nil {
		return nil, err
	}
	s, err := c.SFTP()
	if err != nil {
		return nil, err
	}
	defer s.Close()
	f, err := s.Open("/" + c.Parcel + "/last/keyring.enc")
	if err != nil {
		return nil, err
	}
	sealed, err := io.ReadAll(f)
	f.Close()
	if err != nil {
		return nil, err
	}
	sealer := cfg.Sealer()
	root, err := keyring.OpenRoot(sealer, keyroot, sealed)
	if err != nil {
		return nil, err
	}
	d := &Draft{Parent: cfg.Version, Objects: make(map[seal.Tag][]byte), Plain: make([]byte, cfg.ChunkSize)}
	rand.Read(d.Plain)
	ref, object, err := sealer.Seal(d.Plain)
	if err != nil {
		return nil, err
	}
	d.Objects[ref.Tag] = object
	disk, ok := root.Image(keyring.Disk)
	if !ok {
		return nil, errors.New("no disk")
	}
	tree := keyring.NewTree(sealer, disk, c)
	tree.Set(chunk, ref)
	if disk, err = tree.Flush(ctx, putter(d.Objects)); err != nil {
		return nil, err
	}
	next := root.Clone()
	next.SetImage(disk)
	next.Parent, next.Time, next.Host = cfg.Version, time.Now(), "testhost"
	if d.Keyroot, object, err = keyring.SealRoot(sealer, next); err != nil {
		return nil, err
	}
	d.Objects[d.Keyroot.Tag] = object
	return d, nil
}

// Commit asks for the draft's version.
func (c *Client) Commit(d *Draft, nonce, id string) (version int, err error) {
	text, err := proto.CommitRequest{Nonce: nonce, Parent: d.Parent, Keyroot: d.Keyroot, ID: id}.Encode()
	if err != nil {
		return 0, err
	}
	out, err := c.Verb(proto.Commit, "", text)
	if err != nil {
		return 0, err
	}
	_, err = fmt.Sscan(string(out), &version)
	return version, err
}

// Story goes through the life of a parcel that nobody holds, as its owner and
// from two hosts, and fails the test where the server does not do its part.
func Story(t *testing.T, c *Client) {
	t.Helper()
	want := func(what string, err, target error) {
		t.Helper()
		if !errors.Is(err, target) {
			t.Errorf("%s: got %v, want an error like %q", what, err, target)
		}
	}
	must := func(what string, err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	out, _, status := c.Exec(proto.ListParcels, nil)
	if status != 0 || !strings.Contains("\n"+string(out), "\n"+c.Parcel+"\n") {
		t.Errorf("list: status %d, %q; want %s among them", status, out, c.Parcel)
	}
	if out, _, status := c.Exec(proto.Quota, nil); status != 0 || !strings.HasPrefix(string(out), `{"objects":`) {
		t.Errorf("quota: status %d, %q", status, out)
	}
	cfg, err := c.Config()
	must("cat config", err)
	head := cfg.Version

	// Nothing can be put while nobody holds it.
	d, err := c.Draft(3)
	must("draft", err)
	if err := c.Put(d.Objects); err == nil {
		t.Errorf("put before the lock: no error")
	}
	_, err = c.Commit(d, "no-such-nonce", parcel.NewID())
	want("commit without the lock", err, parcel.ErrNotHolder)

	// The lock: the same acquisition again, another one, its proof.
	id := parcel.NewID()
	lock, err := c.Acquire("hosta", id)
	must("acquire", err)
	again, err := c.Acquire("hosta", id)
	must("acquire again", err)
	if again.Nonce != lock.Nonce {
		t.Errorf("acquire again: nonce %s, then %s", lock.Nonce, again.Nonce)
	}
	_, err = c.Acquire("hostb", parcel.NewID())
	want("acquire by another", err, parcel.ErrLocked)
	if err == nil || !strings.Contains(err.Error(), "hosta") {
		t.Errorf("acquire by another: %v does not tell the host", err)
	}
	_, err = c.Verb(proto.CheckLock, "", []byte(lock.Nonce+"\n"))
	must("check lock", err)
	_, err = c.Verb(proto.CheckLock, "", []byte("guess\n"))
	want("check a guess", err, parcel.ErrNotHolder)
	_, err = c.Verb(proto.Release, "", []byte("guess\n"))
	want("release by a guess", err, parcel.ErrNotHolder)

	// Objects: what is missing, put, seen as present, not yet shown.
	var tags []seal.Tag
	for tag := range d.Objects {
		tags = append(tags, tag)
	}
	lacking, err := c.Missing(tags...)
	must("missing", err)
	if len(lacking) != len(tags) {
		t.Errorf("missing before put: %d of %d", len(lacking), len(tags))
	}
	_, err = c.Get(context.Background(), tags[0])
	want("get before put", err, parcel.ErrNoObject)
	// All but the chunk itself.
	chunk := seal.Tag("")
	rest := make(map[seal.Tag][]byte)
	sealedRef, _, err := cfg.Sealer().Seal(d.Plain)
	must("seal", err)
	chunk = sealedRef.Tag
	for tag, object := range d.Objects {
		if tag != chunk {
			rest[tag] = object
		}
	}
	must("put", c.Put(rest))
	_, err = c.Commit(d, lock.Nonce, parcel.NewID())
	want("commit of half", err, parcel.ErrNoObject)
	if err := c.Put(map[seal.Tag][]byte{chunk: d.Objects[chunk][1:]}); err == nil {
		t.Errorf("put of what the name does not say: no error")
	}
	lacking, err = c.Missing(tags...)
	must("missing", err)
	if len(lacking) != 1 || lacking[0] != chunk {
		t.Errorf("missing after a bad put: %v, want %v", lacking, chunk)
	}
	must("put", c.Put(map[seal.Tag][]byte{chunk: d.Objects[chunk]}))
	must("put what is there", c.Put(d.Objects))
	lacking, err = c.Missing(tags...)
	must("missing", err)
	if len(lacking) != 0 {
		t.Errorf("missing after put: %v", lacking)
	}

	// The version: published once.
	commit := parcel.NewID()
	v, err := c.Commit(d, lock.Nonce, commit)
	must("commit", err)
	if v != head+1 {
		t.Errorf("commit: version %d after %d", v, head)
	}
	v2, err := c.Commit(d, lock.Nonce, commit)
	must("commit again", err)
	if v2 != v {
		t.Errorf("commit again: version %d, then %d", v, v2)
	}
	_, err = c.Commit(d, lock.Nonce, parcel.NewID())
	want("commit from an old head", err, parcel.ErrConflict)
	object, err := c.Get(context.Background(), chunk)
	must("get", err)
	if !bytes.Equal(object, d.Objects[chunk]) {
		t.Errorf("get: other bytes than put")
	}
	if out, err = c.Verb(proto.CheckParcel, "-c", nil); err != nil {
		t.Fatalf("check: %v\n%s", err, out)
	}

	// Back to the old version, then the lock goes: broken, so its nonce is
	// worth nothing.
	out, err = c.Verb(proto.Rollback, fmt.Sprint(head), []byte(lock.Nonce+"\n"))
	must("rollback", err)
	if got := strings.TrimSpace(string(out)); got != fmt.Sprint(v+1) {
		t.Errorf("rollback: version %s, want %d", got, v+1)
	}
	_, err = c.Keyroot(v + 9)
	want("keyroot of no version", err, parcel.ErrNoVersion)
	_, err = c.Verb(proto.Release, "--force", nil)
	must("break the lock", err)
	_, err = c.Verb(proto.CheckLock, "", []byte(lock.Nonce+"\n"))
	want("check a broken lock", err, parcel.ErrNotHolder)
	other, err := c.Acquire("hostb", parcel.NewID())
	must("acquire by the other", err)
	if other.Epoch <= lock.Epoch {
		t.Errorf("epochs: %d, then %d", lock.Epoch, other.Epoch)
	}
	d.Parent = v + 1
	_, err = c.Commit(d, lock.Nonce, parcel.NewID())
	want("commit by the former holder", err, parcel.ErrNotHolder)
	_, err = c.Verb(proto.Release, "", []byte(other.Nonce+"\n"))
	must("release", err)

	// What is not a verb, and what is another's.
	for command, kind := range map[string]parcel.Kind{
		"sh -c id":                                parcel.Denied,
		"isr_list_parcels_":                       parcel.Denied,
		"isr_list_parcels more":                   parcel.Usage,
		"isr_cat_keyroot":                         parcel.Usage,
		"isr_cat_keyroot ../x":                    parcel.Usage,
		"isr_cat_keyroot none":                    parcel.NoParcel,
		"isr_cat_parcel_cfg " + c.Parcel + "; id": parcel.Usage,
		"isr_cat_parcel_cfg $HOME":                parcel.Usage,
		"isr_commit " + c.Parcel:                  parcel.Usage,
		"":                                        parcel.Usage,
	} {
		if command == "" {
			continue // a shell; stock clients ask for it in another way
		}
		out, errs, status := c.Exec(command, nil)
		if status != int(kind) || len(out) > 0 || !strings.HasPrefix(string(errs), "isr: error: ") {
			t.Errorf("%q: status %d, %q, %q; want status %d and an error", command, status, out, errs, kind)
		}
	}
}
