package dirt

import (
	"fmt"
	"math"
	"strings"
	"time"

	"isr/client/image"
)

// Meanings is the states of cells in words, in their order.
var Meanings = []struct {
	State byte
	Text  string
}{
	{image.CellFetching, "being fetched"},
	{image.CellModified, "modified now"},
	{image.CellAccessed, "accessed now"},
	{image.CellBefore, "modified before"},
	{image.CellHere, "here"},
	{image.CellAbsent, "absent"},
	{image.CellZeros, "zeros"},
}

// Shrink is the map in at most n cells, n at least 1.
func (m Map) Shrink(n int) Map {
	k := (len(m.Cells) + n - 1) / n
	if k <= 1 || len(m.Shares) != len(m.Cells) {
		return m
	}
	small := Map{PerCell: m.PerCell * int64(k), Counts: m.Counts}
	var cells, shares strings.Builder
	for from := 0; from < len(m.Cells); from += k {
		to := min(from+k, len(m.Cells))
		best, sum := len(image.CellStates), 0
		for i := from; i < to; i++ {
			switch rank, share := strings.IndexByte(image.CellStates, m.Cells[i]), int(m.Shares[i]-'0'); {
			case rank < best:
				best, sum = rank, share
			case rank == best:
				sum += share
			}
		}
		if best < 0 { // a state of a later version
			best = len(image.CellStates) - 1
		}
		cells.WriteByte(image.CellStates[best])
		shares.WriteByte('0' + byte((sum+to-from-1)/(to-from)))
	}
	small.Cells, small.Shares = cells.String(), shares.String()
	return small
}

// Bytes is a number of bytes for people.
func Bytes(n float64) string {
	const units = "KMGTPE"
	if n < 1023.5 {
		return fmt.Sprintf("%.0f B", n)
	}
	u := 0
	for n /= 1024; n >= 1023.95 && u < len(units)-1; u++ {
		n /= 1024
	}
	return fmt.Sprintf("%.1f %ciB", n, units[u])
}

// RateText is the rate for people: nothing where nothing flows.
func (f Flow) RateText() string {
	if f.Rate < 0.5 {
		return ""
	}
	return Bytes(f.Rate) + "/s"
}

func (p Percent) String() string {
	switch {
	case p < 0:
		return "-"
	case p > 99 && p < 100:
		return fmt.Sprintf("%.1f%%", math.Floor(float64(p)*10)/10) // 100 % is all
	}
	return fmt.Sprintf("%.0f%%", float64(p))
}

// Took is a latency for people, with two digits or three.
func Took(d time.Duration) string {
	switch {
	case d <= 0:
		return "-"
	case d < time.Millisecond:
		return fmt.Sprintf("%d µs", d.Microseconds())
	case d < 10*time.Millisecond:
		return fmt.Sprintf("%.1f ms", d.Seconds()*1e3)
	case d < time.Second:
		return fmt.Sprintf("%d ms", d.Milliseconds())
	}
	return fmt.Sprintf("%.1f s", d.Seconds())
}

// HereText is how much of the image is on this host.
func (im *Image) HereText() string {
	switch {
	case !im.Surveyed:
		return "looking"
	case im.Stored == 0:
		return "nothing stored"
	}
	return percent(im.Here, im.Stored).String()
}

// Uptime is how long the run has gone on.
func (s *Snapshot) Uptime() time.Duration { return max(0, s.Time.Sub(s.Since)).Round(time.Second) }

// Line is the snapshot in one line, for where no screen is to be had.
func (s *Snapshot) Line() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s", s.Time.Local().Format("15:04:05"), s.Parcel)
	for i := range s.Images {
		im := &s.Images[i]
		fmt.Fprintf(&b, "; %s: read %s, wrote %s, accessed %d, modified %d, pending %d, here %s, hits %s", im.Name,
			Bytes(float64(im.Read.Bytes)), Bytes(float64(im.Written.Bytes)), im.Accessed, im.ModifiedNow, im.Pending, im.HereText(), im.Hits)
		if im.Waiting > 0 {
			fmt.Fprintf(&b, ", waiting for %d", im.Waiting)
		}
	}
	fmt.Fprintf(&b, "; network: %s in, %s out", Bytes(float64(s.In.Bytes)), Bytes(float64(s.Out.Bytes)))
	if p := s.Prefetch; !p.Over {
		fmt.Fprintf(&b, "; prefetch %d of %d", p.Done, p.Total)
	}
	return b.String()
}
