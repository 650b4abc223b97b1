package proto

import (
	"strings"

	"isr/store/keyring"
)

// The severities of a Finding.
const (
	Bad  = "error" // something is lost, or soon will be
	Note = "note"  // it is mended already, or needs no mending
)

// Finding is one thing that a check found, at either end.
type Finding struct {
	Severity string         `json:"severity"`
	Version  int            `json:"version,omitempty"` // 0: of the parcel
	Image    string         `json:"image,omitempty"`
	Chunks   keyring.Ranges `json:"chunks,omitempty"` // of the image
	Tag      string         `json:"object,omitempty"` // that is missing or damaged
	What     string         `json:"what"`
	Do       string         `json:"do,omitempty"` // one thing to do about it
}

// String is the finding on one line: "error: version 3: disk chunks 3-5: …".
func (f Finding) String() string {
	var b strings.Builder
	b.WriteString(f.Severity + ": ")
	if f.Image != "" {
		b.WriteString(f.Image)
		if len(f.Chunks) > 0 {
			b.WriteString(" " + f.Chunks.String())
		}
		b.WriteString(": ")
	}
	b.WriteString(f.What)
	if f.Do != "" {
		b.WriteString("; " + f.Do)
	}
	return b.String()
}
