package main

import (
	"isr/hooks"
	"isr/locksrv"
	"isr/store/parcel"
)

type hooksCmd struct {
	JSON bool `name:"json" help:"Print an object a line."`
}

// hookRow is a line of the listing.
type hookRow struct {
	Hook  string `json:"hook"`
	Path  string `json:"path,omitempty"`
	Error string `json:"error,omitempty"`
}

func (c *hooksCmd) Run(e *env) error {
	s, _, err := e.open()
	if err != nil {
		return err
	}
	hs, idle, err := locksrv.NewService(s).Hooks.Survey()
	if err != nil {
		return err
	}
	table := e.stdout.Table()
	lines := e.rows()
	bad := 0
	row := func(h hooks.Hook) error {
		r := hookRow{Hook: parcel.Clean(h.Name), Path: h.Path}
		state := "runs " + parcel.Clean(h.Path)
		if h.Err != nil {
			bad++
			r.Error = parcel.Clean(h.Err.Error())
			state = "error: " + r.Error
		}
		if c.JSON {
			return lines.Encode(r)
		}
		table.Row(r.Hook, state)
		return nil
	}
	for _, h := range append(hs, idle...) {
		if err := row(h); err != nil {
			return err
		}
	}
	if err := table.Print(); err != nil {
		return err
	}
	if bad > 0 {
		return parcel.NewError(parcel.Failed, "hooks: %d of %d will not be run", bad, len(hs)+len(idle)).
			WithHint("what a pre-hook watches over is refused until it is mended")
	}
	return nil
}
