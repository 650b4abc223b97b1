package tui

import (
	"fmt"
	"slices"
	"strings"

	"charm.land/lipgloss/v2"
	"github.com/charmbracelet/x/ansi"

	"isr/client/dirt"
	"isr/client/image"
)

// glyphs stand for the states of cells: each its own, so that colours say
// nothing that they do not.
type glyphs struct {
	cell        map[byte]string
	full, empty string // of a bar
	dot, dots   string
	ascii       bool
}

var unicodeGlyphs = glyphs{map[byte]string{image.CellFetching: "◆", image.CellModified: "█", image.CellAccessed: "▓",
	image.CellBefore: "▒", image.CellHere: "░", image.CellAbsent: "·", image.CellZeros: " "}, "█", "░", "·", "…", false}

var asciiGlyphs = glyphs{map[byte]string{image.CellFetching: ">", image.CellModified: "#", image.CellAccessed: "+",
	image.CellBefore: "%", image.CellHere: "=", image.CellAbsent: ".", image.CellZeros: " "}, "#", "-", "-", "...", true}

// The colours are the terminal's own, for dark and light ones alike; the
// original's red, white, dark red and greys.
var (
	cellStyles = map[byte]lipgloss.Style{
		image.CellFetching: lipgloss.NewStyle().Foreground(lipgloss.Yellow).Bold(true),
		image.CellModified: lipgloss.NewStyle().Foreground(lipgloss.BrightRed),
		image.CellAccessed: lipgloss.NewStyle().Bold(true),
		image.CellBefore:   lipgloss.NewStyle().Foreground(lipgloss.Red),
		image.CellHere:     lipgloss.NewStyle(),
		image.CellAbsent:   lipgloss.NewStyle().Foreground(lipgloss.BrightBlack),
		image.CellZeros:    lipgloss.NewStyle(),
	}
	titleStyle = lipgloss.NewStyle().Bold(true)
	faintStyle = lipgloss.NewStyle().Foreground(lipgloss.BrightBlack)
	rateStyle  = lipgloss.NewStyle().Foreground(lipgloss.Green)
	warnStyle  = lipgloss.NewStyle().Foreground(lipgloss.Yellow).Bold(true)
)

// scene is what is to be seen, of which as much is shown as there is room for.
type scene struct {
	snap     *dirt.Snapshot // nil: nothing known yet
	messages []string
	footer   string
	ascii    bool
}

// wide is the width from which on the images stand beside one another.
const wide = 72

// text is the scene in width columns and height lines at most.
func (c *scene) text(width, height int) string {
	g := unicodeGlyphs
	if c.ascii {
		g = asciiGlyphs
	}
	width, height = max(width, 1), max(height, 1)
	footer := []string{faintStyle.Render(c.footer)}
	if c.footer == "" {
		footer = nil
	}
	if c.snap == nil {
		return clip(g, slices.Concat([]string{"waiting for the parcel" + g.dots}, c.messages, footer), width, height)
	}
	var messages []string
	for _, m := range c.messages {
		messages = append(messages, strings.Split(ansi.Wrap(m, width, ""), "\n")...)
	}
	if n := max(1, height/6); len(messages) > n {
		messages = messages[len(messages)-n:]
	}
	// The maps get what the rest leaves, and the rest gives way until they
	// have a third, or half of little.
	room := height - 1 - len(messages) - len(footer)
	table, part := c.brief(g), 2
	if width >= wide {
		table, part = c.columns(g, width), 3
	}
	legend := c.legend(g, width)
	for len(legend) > 1 && room-len(legend) < 8 {
		legend = []string{c.shortLegend(g)}
	}
	if most := max(1, (room-len(legend))*(part-1)/part); len(table) > most {
		table = table[:most]
	}
	maps := c.maps(g, width, room-len(table)-len(legend))
	return clip(g, slices.Concat([]string{c.title(g, width)}, table, maps, legend, messages, footer), width, height)
}

// clip cuts lines to the room there is.
func clip(g glyphs, lines []string, width, height int) string {
	if len(lines) > height {
		lines = lines[:height]
	}
	for i, l := range lines {
		if g.ascii {
			l = strings.ReplaceAll(l, "µ", "u")
		}
		lines[i] = ansi.Truncate(strings.TrimRight(l, " "), width, "")
	}
	return strings.Join(lines, "\n")
}

func (c *scene) title(g glyphs, width int) string {
	s := c.snap
	left := titleStyle.Render(s.Parcel)
	right := strings.Join([]string{fmt.Sprintf("version %d", s.Version), s.VMM, s.Uptime().String()}, " "+g.dot+" ")
	if s.Offline {
		right = "disconnected " + g.dot + " " + right
	}
	if room := width - ansi.StringWidth(left) - ansi.StringWidth(right); room > 0 {
		return left + strings.Repeat(" ", room) + right
	}
	return left + " " + right
}

// columns is the table of a wide terminal, the most important rows first.
func (c *scene) columns(g glyphs, width int) []string {
	const labels = 16
	column := (width - labels) / max(1, len(c.snap.Images))
	row := func(label string, f func(im *dirt.Image) string) string {
		line := faintStyle.Render(pad(label, labels))
		for i := range c.snap.Images {
			line += pad(ansi.Truncate(f(&c.snap.Images[i]), column-1, ""), column)
		}
		return line
	}
	amount := func(im *dirt.Image, chunks int64) string {
		return fmt.Sprintf("%-10s %s", dirt.Bytes(float64(chunks*int64(im.ChunkSize))), count(chunks))
	}
	rows := []string{
		row("", func(im *dirt.Image) string { return titleStyle.Render(im.Name) }),
		row("guest reads", func(im *dirt.Image) string { return flow(im.Read) }),
		row("guest writes", func(im *dirt.Image) string { return flow(im.Written) }),
		row("from network", func(im *dirt.Image) string { return flow(im.Network) }),
		row("here", func(im *dirt.Image) string { return here(g, im, column-1) }),
		row("accessed", func(im *dirt.Image) string { return amount(im, im.Accessed) }),
		row("modified now", func(im *dirt.Image) string { return amount(im, im.ModifiedNow) }),
		row("pending", func(im *dirt.Image) string { return amount(im, im.Pending) }),
		c.network(g),
		row("fetch p50/90/99", func(im *dirt.Image) string { return latency(im.Latency) }),
		row("waits for", func(im *dirt.Image) string { return waits(im) }),
		row("cache hits", func(im *dirt.Image) string { return fmt.Sprintf("%-10s %d evicted", im.Hits, im.Evictions) }),
		row("spared", func(im *dirt.Image) string { return fmt.Sprintf("%-10s of the accessed", im.Spared) }),
		row("chunks loaded", func(im *dirt.Image) string { return flow(im.Loaded) }),
	}
	for _, r := range c.snap.Rungs {
		if r.Hits == dirt.None {
			continue // nothing was asked of it
		}
		rows = append(rows, faintStyle.Render(pad(r.Name, labels))+fmt.Sprintf("%-10s %d objects, hits %s, p50/90/99 %s, %s, %s, max %s",
			dirt.Bytes(float64(r.Bytes.Bytes)), r.Objects, r.Hits, dirt.Took(r.Latency.P50), dirt.Took(r.Latency.P90), dirt.Took(r.Latency.P99), dirt.Took(r.Max)))
	}
	return rows
}

// network is what is known of the whole parcel.
func (c *scene) network(g glyphs) string {
	s := c.snap
	line := faintStyle.Render(pad("network", 16))
	for i, f := range []dirt.Flow{s.In, s.Out} {
		if i > 0 {
			line += " " + g.dot + " "
		}
		line += dirt.Bytes(float64(f.Bytes)) + []string{" in", " out"}[i]
		if r := f.RateText(); r != "" {
			line += " " + rateStyle.Render(r)
		}
	}
	if p := s.Prefetch; p.Total > 0 {
		line += fmt.Sprintf(" %s prefetch %d/%d", g.dot, p.Done, p.Total)
		if !p.Over {
			line += " " + bar(g, p.Done, p.Total, 8)
		}
	}
	return line
}

// brief is the table of a narrow terminal.
func (c *scene) brief(g glyphs) []string {
	s := c.snap
	var lines []string
	for i := range s.Images {
		im := &s.Images[i]
		lines = append(lines, fmt.Sprintf("%-6s r %s w %s", im.Name, short(im.Read), short(im.Written)))
	}
	net := fmt.Sprintf("net    in %s out %s", short(s.In), short(s.Out))
	if s.Prefetch.Total > 0 && !s.Prefetch.Over {
		net += fmt.Sprintf(" ahead %d/%d", s.Prefetch.Done, s.Prefetch.Total)
	}
	lines = append(lines, net)
	for i := range s.Images {
		im := &s.Images[i]
		line := fmt.Sprintf("%-6s here %s hits %s", im.Name, im.HereText(), im.Hits)
		if im.Waiting > 0 {
			line = fmt.Sprintf("%-6s here %s waits for %s", im.Name, im.HereText(), warnStyle.Render(dirt.Took(im.WaitingFor)))
		}
		lines = append(lines, line)
	}
	for i := range s.Images {
		im := &s.Images[i]
		lines = append(lines, fmt.Sprintf("%-6s pending %s p99 %s", im.Name, dirt.Bytes(float64(im.Pending*int64(im.ChunkSize))), dirt.Took(im.Latency.P99)))
	}
	return lines
}

// maps is the map of each image, in so many lines together. One of nothing but
// zeros is said, not drawn.
func (c *scene) maps(g glyphs, width, lines int) []string {
	var out []string
	drawn := 0
	for i := range c.snap.Images {
		if !blank(&c.snap.Images[i]) {
			drawn++
		}
	}
	for i := range c.snap.Images {
		im := &c.snap.Images[i]
		head := titleStyle.Render(fmt.Sprintf("%s %s", im.Name, dirt.Bytes(float64(im.Size))))
		if blank(im) {
			if lines > 2 {
				out, lines = append(out, head+faintStyle.Render(", all zeros")), lines-1
			}
			continue
		}
		mine := lines
		if drawn--; drawn > 0 {
			mine = lines * 3 / 5 // the disk; memory gets the rest
		} else if i+1 < len(c.snap.Images) && lines > 2 {
			mine-- // for what is said of the other
		}
		if mine < 1 {
			break
		}
		rows := max(1, mine-1)
		m := im.Map.Shrink(rows * width)
		if mine > 1 {
			out = append(out, head+faintStyle.Render(fmt.Sprintf(", a cell is %s", dirt.Bytes(float64(m.PerCell*int64(im.ChunkSize))))))
			lines--
		}
		rowsDrawn := draw(g, m, width)
		out, lines = append(out, rowsDrawn...), lines-len(rowsDrawn)
	}
	return out
}

// blank reports whether a map would show nothing.
func blank(im *dirt.Image) bool { return strings.Trim(im.Map.Cells, string(image.CellZeros)) == "" }

// draw is a map in rows of width cells.
func draw(g glyphs, m dirt.Map, width int) []string {
	var rows []string
	for cells := m.Cells; cells != ""; {
		row := cells[:min(width, len(cells))]
		cells = cells[len(row):]
		var b strings.Builder
		for row != "" {
			state := row[0]
			n := len(row) - len(strings.TrimLeft(row, string(state)))
			glyph := g.cell[state]
			if glyph == "" {
				glyph = "?"
			}
			b.WriteString(cellStyles[state].Render(strings.Repeat(glyph, n)))
			row = row[n:]
		}
		rows = append(rows, b.String())
	}
	return rows
}

// legend says what the glyphs mean, with how many chunks are so.
func (c *scene) legend(g glyphs, width int) []string {
	var lines []string
	line := ""
	for _, m := range dirt.Meanings {
		var chunks int64
		for _, im := range c.snap.Images {
			chunks += im.Map.Counts[string(m.State)]
		}
		glyph := g.cell[m.State]
		if m.State == image.CellZeros {
			glyph = "blank"
		}
		entry := cellStyles[m.State].Render(glyph) + fmt.Sprintf(" %s %d", m.Text, chunks)
		if line != "" && ansi.StringWidth(line)+3+ansi.StringWidth(entry) > width {
			lines, line = append(lines, line), ""
		}
		if line != "" {
			line += "   "
		}
		line += entry
	}
	return append(lines, line)
}

func (c *scene) shortLegend(g glyphs) string {
	line := ""
	for _, m := range []struct {
		state byte
		text  string
	}{{image.CellModified, "written"}, {image.CellAccessed, "read"}, {image.CellBefore, "before"}, {image.CellHere, "here"}, {image.CellAbsent, "absent"}} {
		line += cellStyles[m.state].Render(g.cell[m.state]) + m.text + " "
	}
	return line
}

func pad(s string, width int) string {
	return s + strings.Repeat(" ", max(0, width-ansi.StringWidth(s)))
}

func count(chunks int64) string {
	if chunks == 1 {
		return "1 chunk"
	}
	return fmt.Sprintf("%d chunks", chunks)
}

func flow(f dirt.Flow) string {
	return fmt.Sprintf("%-10s %s", dirt.Bytes(float64(f.Bytes)), rateStyle.Render(f.RateText()))
}

func short(f dirt.Flow) string {
	if r := f.RateText(); r != "" {
		return r
	}
	return dirt.Bytes(float64(f.Bytes))
}

func latency(l dirt.Latency) string {
	if l.P50 == 0 {
		return "-"
	}
	return fmt.Sprintf("%-10s %s, %s", dirt.Took(l.P50), dirt.Took(l.P90), dirt.Took(l.P99))
}

func waits(im *dirt.Image) string {
	if im.Waiting == 0 {
		return "-"
	}
	return warnStyle.Render(fmt.Sprintf("%s, for %s", count(int64(im.Waiting)), dirt.Took(im.WaitingFor)))
}

// here is how much of an image is on this host, and how fast more comes.
func here(g glyphs, im *dirt.Image, width int) string {
	s := pad(im.HereText(), 10)
	if im.Surveyed && im.Stored > 0 {
		s += " " + bar(g, im.Here, im.Stored, min(12, max(4, width-22)))
	}
	if im.HereRate >= 0.5 {
		s += rateStyle.Render(fmt.Sprintf(" +%.0f/s", im.HereRate))
	}
	return s
}

// bar is done of total, width columns long.
func bar(g glyphs, done, total int64, width int) string {
	n := 0
	if total > 0 {
		n = int(min(done, total) * int64(width) / total)
	}
	return strings.Repeat(g.full, n) + strings.Repeat(g.empty, width-n)
}

// Text is a snapshot in width columns and at most height lines, with styles
// that a writer of lipgloss may take away.
func Text(s *dirt.Snapshot, width, height int, ascii bool) string {
	c := scene{snap: s, ascii: ascii}
	return c.text(width, height)
}
