package fetch_test

import (
	"context"
	"maps"
	"sync"
	"testing"

	"isr/client/fetch"
	"isr/client/fetch/fetchtest"
	"isr/store/parcel"
	"isr/store/seal"
)

// mapSource is the plainest Source; it does not verify.
type mapSource struct {
	mu sync.Mutex
	m  map[seal.Tag][]byte
}

func (s *mapSource) Get(ctx context.Context, tag seal.Tag) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p, ok := s.m[tag]; ok {
		return p, nil
	}
	return nil, parcel.ErrNoObject
}

func (s *mapSource) set(tag seal.Tag, p []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.m[tag] = p
}

func TestMemorySource(t *testing.T) {
	var last *mapSource
	fetchtest.Run(t, fetchtest.Subject{
		New: func(t testing.TB, objects map[seal.Tag][]byte) fetch.Source {
			last = &mapSource{m: maps.Clone(objects)}
			return last
		},
		Spoil: func(t testing.TB, tag seal.Tag, with []byte) { last.set(tag, with) },
	})
}

// A ladder is a Source that verifies, of sources that do not.
func TestLadderSource(t *testing.T) {
	var last *mapSource
	fetchtest.Run(t, fetchtest.Subject{
		New: func(t testing.TB, objects map[seal.Tag][]byte) fetch.Source {
			last = &mapSource{m: maps.Clone(objects)}
			return fetch.NewLadder(fetch.Rung{Name: "empty", Source: &mapSource{}}, fetch.Rung{Name: "one", Source: last})
		},
		Spoil: func(t testing.TB, tag seal.Tag, with []byte) { last.set(tag, with) },
	})
}
