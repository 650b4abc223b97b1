package client

import (
	"context"
	"os"
	goruntime "runtime"
	"syscall"

	"isr/client/remote"
	"isr/store/parcel"
	"isr/store/seal"
)

// Profile is how what changed is compressed, a word of isr.conf(5). A chunk's
// key does not depend on it, so versions of all profiles share their objects'
// content, and an unchanged chunk is never sealed again.
type Profile string

// The profiles. The original called None disabled; both words are understood.
const (
	Auto     Profile = "auto" // as the link to the server asks for
	None     Profile = "none"
	Mild     Profile = "mild"
	Moderate Profile = "moderate"
	Painful  Profile = "painful"
)

// ParseProfile checks the name of a profile; "" is Auto.
func ParseProfile(s string) (Profile, error) {
	switch p := Profile(s); p {
	case "":
		return Auto, nil
	case "disabled":
		return None, nil
	case Auto, None, Mild, Moderate, Painful:
		return p, nil
	}
	return "", parcel.NewError(parcel.Usage, "compression %q: want auto, none, mild, moderate or painful", s)
}

// coding is what a profile stands for, and what it was measured to do with the
// disk of a system (seal.BenchmarkLevels): sealed MB/s on one core, and the
// size of the objects as part of the chunks.
type coding struct {
	codec seal.Codec
	level seal.Level
	pilot seal.Level // of gzip, all that the suite of the 2004 pilot knew
	speed float64
	ratio float64
}

var codings = map[Profile]coding{
	None:     {seal.None, seal.Usual, seal.Usual, 474e6, 1},
	Mild:     {seal.Gzip, seal.Usual, seal.Usual, 190e6, 0.410},
	Moderate: {seal.Zstd, seal.Usual, seal.Hard, 142e6, 0.366},
	Painful:  {seal.Zstd, seal.Most, seal.Most, 18.8e6, 0.345},
}

// suited is the profile with which sealing, and then sending at rate bytes a
// second, takes least on so many cores. It is never None: what is stored stays.
func suited(rate float64, cores int) Profile {
	best, least := Mild, 0.0
	for _, p := range []Profile{Mild, Moderate, Painful} {
		c := codings[p]
		if took := 1/(c.speed*float64(cores)) + c.ratio/rate; p == Mild || took < least {
			best, least = p, took
		}
	}
	return best
}

// smallChange is so little, in bytes, that measuring the link, for which up to
// half a MiB is sent, gains nothing: between the profiles lie 7 % of it.
const smallChange = 16 << 20

// compress settles how the checkout's changes are sealed. Asked for explicitly,
// or at the last resume, or configured: that. Else what suits the link, as it
// is measured now; or, if that is not known or not worth asking, what the
// parcel says.
func (co *Checkout) compress(ctx context.Context, srv *remote.Server) error {
	p, err := ParseProfile(co.client.Compression)
	if err != nil {
		return err
	}
	if remembered := Profile(co.State.Compression); remembered != "" && !co.client.CompressionAsked {
		if p, err = ParseProfile(string(remembered)); err != nil {
			return err
		}
	}
	if p == Auto {
		if co.cfg.Compress == seal.None || co.changedBytes() < smallChange {
			return nil
		}
		rate, err := srv.Uplink(ctx)
		if err != nil {
			co.client.UI.Detail("parcel %s: the link was not measured: %v", co.State.Parcel, err)
			return ctx.Err()
		}
		p = suited(rate, goruntime.GOMAXPROCS(0))
		co.client.UI.Detail("parcel %s: the link takes about %s a second: %s compression", co.State.Parcel, sizeText(int64(rate)), p)
	}
	c := codings[p]
	co.coding = &c
	return nil
}

// changedBytes is about how much was written here since checkout or sync.
func (co *Checkout) changedBytes() int64 {
	var sum int64
	for _, name := range imageNames {
		if fi, err := os.Stat(co.path("hdk", name+".data")); err == nil {
			if st, ok := fi.Sys().(*syscall.Stat_t); ok {
				sum += st.Blocks * 512
			}
		}
	}
	return sum
}

// coded is s with the checkout's compression.
func (co *Checkout) coded(s seal.Sealer) seal.Sealer {
	if c := co.coding; c != nil {
		s.Codec, s.Level = c.codec, c.level
		if s.Suite == seal.BlowfishSHA1 && c.codec == seal.Zstd {
			s.Codec, s.Level = seal.Gzip, c.pilot
		}
	}
	return s
}
