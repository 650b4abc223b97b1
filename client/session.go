package client

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"

	"isr/client/fetch"
	"isr/client/hoard"
	"isr/client/image"
	"isr/client/remote"
	"isr/store/keyring"
	"isr/store/parcel"
	"isr/store/seal"
)

// session is an unlocked checkout with its images open: what runs a parcel,
// seals it, or counts it.
type session struct {
	co     *Checkout
	srv    *remote.Server // nil offline
	hoard  *hoard.Hoard
	far    tally // what came from the sources
	ladder *fetch.Ladder
	root   *keyring.Root // of the pristine version
	base   *keyring.Root // of the version on the server that the next is made from: root, but while a lost one is rescued
	images map[string]*side
}

// side is one image of the parcel, pristine below and overlay above.
type side struct {
	pristine keyring.Image
	tree     *keyring.Tree
	overlay  *image.Overlay
	image    *image.Image
}

// imageNames is the order in which images are opened, sealed and listed.
var imageNames = []string{keyring.Disk, keyring.Memory}

// diskCache and memoryCache bound the decrypted chunks an image keeps, bytes.
// The kernel's page cache keeps memory pages better than we would.
const (
	diskCache   = 64 << 20
	memoryCache = 8 << 20
)

// openSession opens the images of an unlocked checkout that this process has
// seized. offline leaves the network alone.
func (co *Checkout) openSession(ctx context.Context, offline bool) (*session, error) {
	s := &session{co: co, images: make(map[string]*side)}
	var err error
	if s.hoard, err = co.client.hoard(); err != nil {
		return nil, err
	}
	if offline {
		s.ladder = co.client.ladder(co.local(), s.hoard, nil, co.offlineRungs()...)
	} else {
		if s.srv, err = co.client.server(co.State.Server, co.State.User); err != nil {
			return nil, err
		}
		far := s.srv.Objects(co.State.Parcel)
		src := co.client.sources(co.cfg, co.State.Server, far)
		for i := range src {
			src[i].Source = s.far.of(src[i].Source)
		}
		s.ladder = co.client.ladder(co.local(), s.hoard, s.far.of(far), src...)
	}
	if s.root, err = co.root(ctx, co.State.pristine, s.ladder); err != nil {
		s.close()
		return nil, err
	}
	s.base = s.root
	for _, name := range imageNames {
		im, ok := s.root.Image(name)
		if !ok {
			continue
		}
		if name == keyring.Memory && co.State.Memory == "" {
			// Powered off: whatever the version's memory was, it is gone.
			im = keyring.NewImage(im.Name, im.Size, im.ChunkSize)
		}
		sd := &side{pristine: im, tree: keyring.NewTree(co.sealer(), im, wanted{"keyring", s.ladder})}
		if sd.overlay, err = image.OpenOverlay(co.path("hdk"), name, im.Size, im.ChunkSize, co.key); err != nil {
			s.close()
			if errors.Is(err, image.ErrOverlay) {
				return nil, parcel.NewError(parcel.Damaged, "parcel %s: %v", co.State.Parcel, err).
					WithHint("isr checkp %s says what can be done", co.State.Parcel)
			}
			return nil, fmt.Errorf("parcel %s: %w", co.State.Parcel, err)
		}
		cache := co.client.ChunkCache
		if cache == 0 {
			cache = diskCache
		}
		if name == keyring.Memory {
			cache = memoryCache
		}
		sd.image = image.New(image.Config{Name: name, Size: im.Size, ChunkSize: im.ChunkSize, Sealer: co.sealer(),
			Refs: sd.tree, Getter: wanted{name, s.ladder}, Overlay: sd.overlay, CacheBytes: cache,
			Save: name == keyring.Memory})
		s.images[name] = sd
	}
	if s.images[keyring.Disk] == nil {
		s.close()
		return nil, fmt.Errorf("parcel %s: version %d has no disk: %w", co.State.Parcel, co.State.Version, parcel.ErrDamaged)
	}
	return s, nil
}

func (s *session) close() error {
	var first error
	s.ladder.Wait()
	for _, sd := range s.images {
		sd.image.Close()
		if err := sd.overlay.Close(); err != nil && first == nil {
			first = err
		}
	}
	if err := s.hoard.Close(); err != nil && first == nil {
		first = err
	}
	return first
}

// resetOverlay forgets what was written to an image since checkout.
func (co *Checkout) resetOverlay(name string) error {
	for _, ext := range []string{".sums", ".data", ".map"} {
		if err := os.Remove(co.path("hdk", name+ext)); err != nil && !os.IsNotExist(err) {
			return err
		}
	}
	return nil
}

// newTags is every object that leads from cur and not from old: what a commit
// of cur needs beyond old.
func newTags(ctx context.Context, s seal.Sealer, g keyring.Getter, old *keyring.Root, keyroot seal.Ref, cur *keyring.Root) ([]seal.Tag, error) {
	seen := make(map[seal.Tag]bool)
	var tags []seal.Tag
	add := func(t seal.Tag) {
		if t != "" && !seen[t] {
			seen[t] = true
			tags = append(tags, t)
		}
	}
	for _, im := range cur.Images {
		was, _ := old.Image(im.Name)
		err := keyring.Diff(ctx, s, g, was, im, func(level int, n int64, _, ref seal.Ref) error {
			if ref.IsNil() {
				return keyring.SkipBelow
			}
			add(ref.Tag)
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	if cur.Cfg.Tag != old.Cfg.Tag {
		add(cur.Cfg.Tag)
	}
	add(keyroot.Tag)
	return tags, nil
}

type wantedKey struct{}

// wanted is a getter that says for which image it gets.
type wanted struct {
	image  string
	getter keyring.Getter
}

func (w wanted) Get(ctx context.Context, tag seal.Tag) ([]byte, error) {
	return w.getter.Get(wantedFor(ctx, w.image), tag)
}

func wantedFor(ctx context.Context, image string) context.Context {
	return context.WithValue(ctx, wantedKey{}, image)
}

// Amount is a number of chunks and bytes.
type Amount struct {
	Chunks int64 `json:"chunks"`
	Bytes  int64 `json:"bytes"`
}

// tally counts what came from the sources for whom.
type tally struct {
	mu  sync.Mutex
	got map[string]Amount
}

// of is source, counted. All sources verify tags.
func (t *tally) of(source fetch.Source) fetch.Source { return &counted{source, t} }

type counted struct {
	fetch.Source
	tally *tally
}

// VerifiesTags says that Get never returns bytes that do not match the tag.
func (c *counted) VerifiesTags() {}

func (c *counted) Get(ctx context.Context, tag seal.Tag) ([]byte, error) {
	sealed, err := c.Source.Get(ctx, tag)
	if err == nil {
		name, _ := ctx.Value(wantedKey{}).(string)
		t := c.tally
		t.mu.Lock()
		defer t.mu.Unlock()
		if t.got == nil {
			t.got = make(map[string]Amount)
		}
		a := t.got[name]
		t.got[name] = Amount{a.Chunks + 1, a.Bytes + int64(len(sealed))}
	}
	return sealed, err
}

// fetched is what came for an image so far.
func (s *session) fetched(image string) Amount {
	s.far.mu.Lock()
	defer s.far.mu.Unlock()
	return s.far.got[image]
}
