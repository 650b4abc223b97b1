package main

import (
	"context"
	"fmt"
	"strings"

	"isr/locksrv"
	"isr/locksrv/event"
	"isr/locksrv/proto"
	"isr/store"
	"isr/store/diff"
	"isr/store/keyring"
	"isr/store/parcel"
)

// The commands about versions of a parcel: history, diff, tag, untag, pin,
// unpin and comment.

type parcelHistory struct {
	owned
	Number int  `short:"n" help:"Only the newest ones, so many." placeholder:"N"`
	JSON   bool `name:"json" help:"Print an object a line."`
}

func (c *parcelHistory) Run(e *env) error {
	if c.Number < 0 {
		return parcel.NewError(parcel.Usage, "-n %d: want a number from 1", c.Number)
	}
	_, p, err := e.openParcel(c.owned)
	if err != nil {
		return err
	}
	versions, err := p.Versions(c.Number)
	if err != nil {
		return err
	}
	table := e.stdout.Table("VERSION", "COMMITTED", "HOST", "NEW", "OBJECTS", "STATE", "ABOUT")
	lines := e.rows()
	for _, v := range versions {
		if c.JSON {
			row := struct {
				User   string `json:"user"`
				Parcel string `json:"parcel"`
				proto.Version
			}{c.User, c.Parcel, locksrv.DescribeVersion(v)}
			if err := lines.Encode(row); err != nil {
				return err
			}
			continue
		}
		table.Row(fmt.Sprint(v.Version), timeText(v.Time), v.Host, store.SizeText(v.Bytes), fmt.Sprint(v.Objects), stateOf(v), about(v))
	}
	if c.JSON {
		return nil
	}
	return table.Print()
}

// stateOf is what the machine is in a version.
func stateOf(v store.VersionInfo) string {
	if v.Suspended == "" {
		return "off"
	}
	return "suspended"
}

// about is what people have said of a version.
func about(v store.VersionInfo) string {
	var words []string
	if len(v.Tags) > 0 {
		words = append(words, "["+strings.Join(v.Tags, ", ")+"]")
	}
	if v.Pin == "pinned" {
		words = append(words, "pinned;")
	} else if v.Pin != "" {
		words = append(words, "pinned: "+v.Pin+";")
	}
	if v.Rollback > 0 && !strings.HasPrefix(v.Comment, "rollback to version") {
		words = append(words, fmt.Sprintf("equals version %d;", v.Rollback))
	}
	if v.Parent > 0 && v.Parent != v.Version-1 {
		words = append(words, fmt.Sprintf("made from version %d;", v.Parent))
	}
	return strings.TrimRight(strings.Join(append(words, v.Comment), " "), "; ")
}

type parcelDiff struct {
	owned
	From    string `arg:"" help:"A number, a tag, head, or head~1 for the one before."`
	To      string `arg:"" help:"The same, of the version to compare it with."`
	Verbose bool   `short:"v" help:"Name all chunks that differ."`
	JSON    bool   `name:"json" help:"Print an object a line."`
}

// diffLine is what diff --json prints.
type diffLine struct {
	User    string        `json:"user"`
	Parcel  string        `json:"parcel"`
	From    proto.Version `json:"from"`
	To      proto.Version `json:"to"`
	Cfg     bool          `json:"cfg"`     // it changed
	Objects int64         `json:"objects"` // that To has, and From has not where they differ
	Bytes   int64         `json:"bytes"`   // of those, sealed
	Images  []imageLine   `json:"images"`
}

type imageLine struct {
	Name      string         `json:"image"`
	FromSize  int64          `json:"from_size"`
	ToSize    int64          `json:"to_size"`
	ChunkSize int            `json:"chunk_size"`
	Changed   int64          `json:"changed"` // chunks
	Added     int64          `json:"added"`
	Zeroed    int64          `json:"zeroed"`
	Bytes     int64          `json:"bytes"` // of all these chunks
	Ranges    keyring.Ranges `json:"chunks"`
}

// shownRanges bounds the ranges that diff names without -v.
const shownRanges = 8

func (c *parcelDiff) Run(ctx context.Context, e *env) error {
	_, p, err := e.openParcel(c.owned)
	if err != nil {
		return err
	}
	var v [2]int
	for i, text := range []string{c.From, c.To} {
		if v[i], err = p.Resolve(text); err != nil {
			return err
		}
	}
	d, err := diff.Versions(ctx, p, v[0], v[1])
	if err != nil {
		return err
	}
	if c.JSON {
		line := diffLine{User: c.User, Parcel: c.Parcel, From: locksrv.DescribeVersion(d.From), To: locksrv.DescribeVersion(d.To),
			Cfg: d.Cfg, Objects: d.Objects, Bytes: d.Bytes, Images: []imageLine{}}
		for _, im := range d.Images {
			line.Images = append(line.Images, imageLine{im.Name, im.FromSize, im.ToSize, im.ChunkSize, im.Changed, im.Added, im.Zeroed,
				im.Chunks() * int64(im.ChunkSize), append(keyring.Ranges{}, im.Ranges...)})
		}
		return e.rows().Encode(line)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s: version %d to version %d\n", c.owned, v[0], v[1])
	for _, im := range d.Images {
		b.WriteString(parcel.Clean(im.Name) + ": ")
		if im.FromSize != im.ToSize {
			fmt.Fprintf(&b, "%s, was %s; ", store.SizeText(im.ToSize), store.SizeText(im.FromSize))
		}
		if im.Chunks() == 0 {
			b.WriteString("no chunk differs\n")
			continue
		}
		fmt.Fprintf(&b, "%s, %s: %d changed, %d added, %d zeroed\n", count(im.Chunks(), "chunk"), store.SizeText(im.Chunks()*int64(im.ChunkSize)),
			im.Changed, im.Added, im.Zeroed)
		ranges, more := im.Ranges, ""
		if len(ranges) > shownRanges && !c.Verbose {
			more = fmt.Sprintf(" and %d ranges more", len(ranges)-shownRanges)
			ranges = ranges[:shownRanges]
		}
		fmt.Fprintf(&b, "  %s%s\n", ranges, more)
	}
	if d.Cfg {
		b.WriteString("cfg: changed\n")
	}
	if from, to := stateOf(d.From), stateOf(d.To); from != to {
		fmt.Fprintf(&b, "machine: %s, was %s\n", to, from)
	}
	fmt.Fprintf(&b, "new: %s, %s\n", count(d.Objects, "object"), store.SizeText(d.Bytes))
	_, err = e.stdout.Write([]byte(b.String()))
	return err
}

// changed does f, a change of what is said of version v, or of the parcel if
// v is 0.
func (e *env) changed(ctx context.Context, s *store.Store, o owned, v int, why, what string, f func() error) error {
	return e.act(ctx, s, event.Event{Op: event.ParcelChange, User: o.User, Parcel: o.Parcel, Version: v, What: parcel.Clean(what), Why: parcel.Clean(why)},
		func(context.Context) error { return f() })
}

type parcelTag struct {
	versioned
	Name string `arg:"" name:"tag" help:"The tag: a name that is no number."`
	Move bool   `help:"Even if another version has it, from which it is taken."`
}

func (c *parcelTag) Run(ctx context.Context, e *env) error {
	if err := store.CheckTag(c.Name); err != nil {
		return err
	}
	s, p, v, err := e.openVersion(c.versioned)
	if err != nil {
		return err
	}
	return e.changed(ctx, s, c.owned, v, "", "tagged "+c.Name, func() error { return p.Tag(v, c.Name, c.Move) })
}

type parcelUntag struct {
	owned
	Name string `arg:"" name:"tag" help:"The tag."`
}

func (c *parcelUntag) Run(ctx context.Context, e *env) error {
	if err := store.CheckTag(c.Name); err != nil {
		return err
	}
	s, p, err := e.openParcel(c.owned)
	if err != nil {
		return err
	}
	what := event.Event{Op: event.ParcelChange, User: c.User, Parcel: c.Parcel, What: "tag " + c.Name + " taken away"}
	return e.actOn(ctx, s, &what, func(context.Context) (err error) {
		what.Version, err = p.Untag(c.Name)
		return err
	})
}

type parcelPin struct {
	versioned
	Why string `help:"The reason." placeholder:"TEXT"`
}

func (c *parcelPin) Run(ctx context.Context, e *env) error {
	s, p, v, err := e.openVersion(c.versioned)
	if err != nil {
		return err
	}
	return e.changed(ctx, s, c.owned, v, c.Why, "pinned", func() error { return p.Pin(v, c.Why) })
}

type parcelUnpin struct {
	versioned
}

func (c *parcelUnpin) Run(ctx context.Context, e *env) error {
	s, p, v, err := e.openVersion(c.versioned)
	if err != nil {
		return err
	}
	return e.changed(ctx, s, c.owned, v, "", "unpinned", func() error { return p.Unpin(v) })
}

type parcelComment struct {
	owned
	Text []string `arg:"" help:"What it is, as one word of the shell; before it maybe the version that it is about."`
}

func (c *parcelComment) Run(ctx context.Context, e *env) error {
	s, p, err := e.openParcel(c.owned)
	if err != nil {
		return err
	}
	v, text := 0, c.Text[len(c.Text)-1]
	switch len(c.Text) {
	case 1:
	case 2:
		if v, err = p.Resolve(c.Text[0]); err != nil {
			return err
		}
	default:
		return parcel.NewError(parcel.Usage, "parcel comment: %d words where a version and a text can be", len(c.Text)).
			WithHint("put the text in quotation marks")
	}
	return e.changed(ctx, s, c.owned, v, "", "comment: "+text, func() error { return p.Comment(v, text) })
}
