package main

import (
	"cmp"
	"fmt"
	"strings"
	"time"

	"isr/contrib/output"
	"isr/locksrv"
	"isr/locksrv/health"
	"isr/store"
)

type statusCommand struct {
	JSON  bool `name:"json" help:"Print it as an object."`
	Check bool `help:"Exit with status 1 if there is a warning."`
}

func (c *statusCommand) Run(e *env) error {
	s, root, err := e.open()
	if err != nil {
		return err
	}
	st, err := health.Get(s, locksrv.NewService(s).Events, time.Now())
	if err != nil {
		return err
	}
	st.Version = programVersion()
	if st.Standby, err = standbyText(root); err != nil {
		st.Warnings = append(st.Warnings, err.Error())
	}
	if c.JSON {
		err = e.rows().Encode(st)
	} else {
		err = printStatus(e.stdout, st)
	}
	if err == nil && c.Check && len(st.Warnings) > 0 {
		return status_(1)
	}
	return err
}

func printStatus(out *output.Results, st health.Status) error {
	t := out.Table()
	row := func(what, format string, args ...any) { t.Row(what, fmt.Sprintf(format, args...)) }
	row("realm", "%s, in %s, isr-locksrv %s", st.Realm, st.Root, st.Version)
	if st.Standby != "" {
		row("standby", "%s", st.Standby)
	}
	row("users", "%d%s", st.Users, lockedText(st.LockedOut))
	row("parcels", "%d, %d of them held", st.Parcels, len(st.Held))
	row("commits", "%d today, %d in 7 days", st.Commits.Today, st.Commits.Week)
	for _, l := range st.Last {
		switch {
		case l.Time.IsZero():
			row(l.Op, "never")
		case l.Error != "":
			row(l.Op, "%s, failed: %s", stamp(l.Time), l.Error)
		default:
			row(l.Op, "%s", stamp(l.Time))
		}
	}
	row("disk", "%s free of %s, %.0f %% used", store.SizeText(int64(st.Disk.Free)), store.SizeText(int64(st.Disk.Size)), 100*st.Disk.Used())
	if st.Disk.Files > 0 {
		row("inodes", "%d free of %d, %.0f %% used", st.Disk.FilesFree, st.Disk.Files, 100*st.Disk.FilesUsed())
	}
	for i, h := range st.Held {
		row(cmp.Or(map[bool]string{true: "held"}[i == 0], " "), "%s/%s on %s since %s, last heard of %s, epoch %d",
			h.User, h.Parcel, h.Host, stamp(h.Since), stamp(h.Contact), h.Epoch)
	}
	for _, warning := range st.Warnings {
		row("warning", "%s", warning)
	}
	return t.Print()
}

// lockedText says who is locked out, if anybody is.
func lockedText(names []string) string {
	if len(names) == 0 {
		return ""
	}
	return ", locked out: " + strings.Join(names, " ")
}
