package client

import (
	"context"
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"isr/client/image"
	"isr/store/keyring"
	"isr/store/seal"
)

// How a survey goes about it: in pieces of work of surveyPiece, with pauses
// that make it half of a processor until all has been seen once, and a tenth
// from then on; again surveyEvery after it has come through; and not at all
// when nobody has looked for surveyIdle.
const (
	surveyPiece = 5 * time.Millisecond
	surveyEvery = time.Second
	surveyIdle  = 10 * time.Second
)

// survey keeps up what of a running parcel is on this host, whoever put it
// there: this run, or a hoard beside it. It looks, in turns, for the objects
// of each image, by the blocks of the keyring that are here, for as long as
// somebody asks for the result. It touches no network.
type survey struct {
	sealer seal.Sealer
	here   keyring.Getter
	has    func(seal.Tag) bool
	images map[string]*surveyed

	asked atomic.Int64  // when somebody last looked, UnixNano
	wake  chan struct{} // somebody looks after a while of nobody
	began time.Time     // of the piece of work
	rests time.Duration // for each part of work
}

// surveyed is one image of a survey.
type surveyed struct {
	pristine keyring.Image
	presence *image.Presence
	seen     atomic.Bool // all of it, once
}

func (k *keeper) newSurvey() *survey {
	local, h := k.co.local(), k.s.hoard
	v := &survey{sealer: k.co.sealer(), here: k.co.client.ladder(local, h, nil), wake: make(chan struct{}, 1),
		images: make(map[string]*surveyed), has: func(tag seal.Tag) bool {
			_, err := h.Size(tag)
			if err != nil {
				_, err = local.Size(tag)
			}
			return err == nil
		}}
	for name, sd := range k.s.images {
		v.images[name] = &surveyed{pristine: sd.pristine, presence: image.NewPresence(sd.pristine.Chunks())}
	}
	return v
}

// look says that somebody wants to know.
func (v *survey) look() {
	v.asked.Store(time.Now().UnixNano())
	select {
	case v.wake <- struct{}{}:
	default:
	}
}

// run surveys until ctx ends.
func (v *survey) run(ctx context.Context) {
	v.rests = 1
	for v.watched(ctx) {
		v.began = time.Now()
		for _, name := range imageNames {
			im := v.images[name]
			if im == nil {
				continue
			}
			if v.block(ctx, im, im.pristine.Ref, im.pristine.Depth, 0) != nil {
				return
			}
			im.seen.Store(true)
		}
		v.rests = 9
		pause(ctx, surveyEvery)
	}
}

// watched waits until somebody looks, and is false when ctx ends first.
func (v *survey) watched(ctx context.Context) bool {
	for time.Since(time.Unix(0, v.asked.Load())) > surveyIdle {
		select {
		case <-v.wake:
		case <-ctx.Done():
			return false
		}
	}
	return ctx.Err() == nil
}

// block surveys what ref of that level leads to: chunk n, or those that block
// n covers. Below a block that is not here nothing is known: that counts as
// objects elsewhere. The error is ctx's.
func (v *survey) block(ctx context.Context, im *surveyed, ref seal.Ref, level int, n int64) error {
	from, to := n<<(8*level), (n+1)<<(8*level)
	switch {
	case ref.IsNil():
		im.presence.Fill(from, to, false, false)
		return nil
	case level == 0:
		im.presence.Fill(from, to, true, v.has(ref.Tag))
		return nil
	}
	b, err := keyring.GetBlock(ctx, v.sealer, v.here, ref, level)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		im.presence.Fill(from, to, true, false)
		return nil
	}
	for i := range b {
		n := n*keyring.Fanout + int64(i)
		if n<<(8*(level-1)) >= im.pristine.Chunks() {
			break
		}
		if err := v.block(ctx, im, b[i], level-1, n); err != nil {
			return err
		}
	}
	if worked := time.Since(v.began); worked > surveyPiece {
		pause(ctx, worked*v.rests)
		if !v.watched(ctx) {
			return ctx.Err()
		}
		v.began = time.Now()
	}
	return nil
}

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// imageMap is an image in the counter file map.
type imageMap struct {
	image.Map
	Surveyed bool `json:"surveyed"` // what is stored and here is known of all of it
}

// maps is the counter file map.
func (k *keeper) maps(v *survey) map[string]imageMap {
	v.look()
	ms := make(map[string]imageMap)
	for name, sd := range k.s.images {
		im := v.images[name]
		seen := im.seen.Load() // before the map: what it says is in it
		ms[name] = imageMap{sd.image.Map(im.presence), seen}
	}
	return ms
}

// about is the counter file parcel: what runs.
type about struct {
	Parcel  string    `json:"parcel"`
	Version int       `json:"version"`
	VMM     string    `json:"vmm"`
	Since   time.Time `json:"since"`
	Offline bool      `json:"offline"`
}

// ahead counts what the prefetch of a resume has got; the counter file
// prefetch.
type ahead struct {
	mu sync.Mutex
	n  aheadCounts
}

type aheadCounts struct {
	Total int64 `json:"total"` // objects that it is to get
	Done  int64 `json:"done"`  // of these, here or given up
	Bytes int64 `json:"bytes"` // sealed
	Over  bool  `json:"over"`  // it has ended, or there was nothing for it
}

func (a *ahead) counts() aheadCounts {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.n
}

func (a *ahead) change(f func(n *aheadCounts)) {
	a.mu.Lock()
	defer a.mu.Unlock()
	f(&a.n)
}

// watchable adds to the counter files of the mount those of the dirtometer.
func (k *keeper) watchable(files map[string]func() []byte, v *survey, driver string) map[string]func() []byte {
	what := about{k.co.State.Parcel, k.co.State.Version, driver, time.Now().UTC(), k.o.Offline}
	maps.Copy(files, map[string]func() []byte{
		"map":      show(func() any { return k.maps(v) }),
		"parcel":   show(func() any { return what }),
		"prefetch": show(func() any { return k.ahead.counts() }),
	})
	return files
}
