package store

import (
	"time"

	"isr/store/parcel"
	"isr/store/seal"
)

// What the tests of this package, which are not in it, reach into.
var (
	NoteEvery       = &noteEvery
	WrongPause      = &wrongPause
	NobodysHash     = &nobodysHash
	NewNobodysHash  = newNobodysHash
	ParseUserConfig = parseUserConfig
	Count           = count
)

const (
	MaxText = maxText
	Settled = settled
)

func (s *Store) Secret() *[]byte { return &s.secret }

func (s *Store) Reserve(userName, name string) (unlock func(), err error) {
	_, unlock, err = s.reserve(userName, name, false)
	return unlock, err
}

func (c *UserConfig) Encode() ([]byte, error) { return c.encode() }

func (u Usage) Plus(v Usage) Usage { return u.plus(v) }

func (p *Parcel) ClearStaging() { p.clearStaging() }

func (p *Parcel) Noted(c *parcel.Config) seal.Ref { return p.noted(c) }

func (p *Parcel) HdkState() (string, time.Time, error) { return p.hdkState() }

func (p *Parcel) RecordUsage(u Usage, state string) { p.recordUsage(u, state) }

func (p *Parcel) RecordedUsage(state string) (Usage, bool) { return p.recordedUsage(state) }
