package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"isr/client"
	"isr/client/remote"
	"isr/store/parcel"
)

type reportCmd struct {
	Parcel string `arg:"" optional:"" help:"Show what would be told of this one now; without it, what was and is to be told."`
	Send   bool   `name:"send" xor:"do" help:"Send what is to be told."`
	Forget bool   `name:"forget" xor:"do" help:"Remove all of it from this host."`
	jsonFlag
}

func (c *reportCmd) Run(a *app) error {
	cl, err := a.open(remote.Limit{})
	if err != nil {
		return err
	}
	if c.Parcel != "" {
		if c.Send || c.Forget {
			return parcel.NewError(parcel.Usage, "report: --send and --forget are for all parcels").WithHint("leave %s out", c.Parcel)
		}
		return c.preview(a, cl)
	}
	all, err := cl.Reports()
	if err != nil {
		return err
	}
	switch {
	case c.Forget:
		for _, k := range all {
			if err := cl.ForgetReport(k); err != nil {
				return err
			}
		}
		a.Say("%s removed", count(len(all), "report"))
		return nil
	case c.Send:
		for _, k := range all {
			if k.State != client.ReportUnsent {
				continue
			}
			if err := cl.SendReport(a.ctx, &k); err != nil {
				return err
			}
			a.Say("parcel %s: report sent, as in %s", k.Parcel, k.File)
		}
		return nil
	case c.JSON:
		if all == nil {
			all = []client.KeptReport{}
		}
		return printJSON(all)
	}
	for _, k := range all {
		state := k.State
		if k.Why != "" {
			state += ": " + k.Why
		}
		fmt.Fprintf(stdout, "%s  %s  %s  %s\n", when(k.Report.Made), k.Parcel, state, k.File)
		if k.State == client.ReportUnsent {
			fmt.Fprint(stdout, reportText(k.Report))
		}
	}
	if len(all) == 0 {
		a.Say("no report was made; this host's configuration says report = %s", a.conf.Get("report"))
	}
	return nil
}

func (c *reportCmd) preview(a *app, cl *client.Client) error {
	r, err := cl.Preview(a.ctx, c.Parcel)
	switch {
	case err != nil:
		return err
	case c.JSON:
		return printJSON(r)
	case r == nil:
		a.Say("parcel %s: nothing to tell; this host's configuration says report = %s", c.Parcel, a.conf.Get("report"))
		return nil
	}
	fmt.Fprint(stdout, reportText(r))
	return nil
}

// report tells the server how parcels were used, if the user wants that: what
// this command has made, and what earlier ones could not send. It is shown
// before, and is never an error: the checkin was done.
func (a *app) report(cl *client.Client) {
	mode := a.conf.Get("report")
	if mode == "no" {
		return
	}
	all, err := cl.Reports()
	if err != nil {
		a.Warn("reports: %v", err)
		return
	}
	for _, k := range all {
		if k.State != client.ReportUnsent || !cl.Connected(k) || a.ctx.Err() != nil {
			continue
		}
		if mode == "ask" {
			if a.quiet {
				continue // nothing is asked, so nothing is told
			}
			a.Say("%s", strings.TrimRight(reportText(k.Report), "\n"))
			yes, err := a.Confirm(fmt.Sprintf("Tell the server this of %s, for the study that you agreed to?", k.Parcel))
			if err != nil {
				a.Say("parcel %s: report kept, not sent: isr report shows it", k.Parcel)
				continue
			}
			if !yes {
				if err := cl.DeclineReport(k); err != nil {
					a.Warn("report: %v", err)
				}
				a.Say("parcel %s: report not sent", k.Parcel)
				continue
			}
		} else {
			a.Say("parcel %s: telling the server how it was used, for the study, as in %s", k.Parcel, k.File)
		}
		err := cl.SendReport(a.ctx, &k)
		var refusal *parcel.Error
		switch {
		case err == nil:
		case k.State == client.ReportRefused && errors.As(err, &refusal) && refusal.Hint != "":
			a.Say("parcel %s: report refused: %v (%s)", k.Parcel, err, refusal.Hint)
		case k.State == client.ReportRefused:
			a.Say("parcel %s: report refused: %v", k.Parcel, err)
		default:
			a.Say("parcel %s: report not sent, the next one takes it along: %v", k.Parcel, err)
		}
	}
}

// reportText is all of a report, a line for each part of it; what is 0, empty
// or no is left out.
func reportText(v any) string {
	p, err := json.Marshal(v)
	var tree map[string]any
	if err == nil {
		err = json.Unmarshal(p, &tree)
	}
	if err != nil {
		return ""
	}
	var b strings.Builder
	var part func(name string, fields map[string]any)
	part = func(name string, fields map[string]any) {
		var names []string
		for n := range fields {
			names = append(names, n)
		}
		slices.Sort(names)
		line := ""
		for _, n := range names {
			switch v := fields[n].(type) {
			case map[string]any, []any, nil:
			case bool:
				if v {
					line += " " + n
				}
			case float64:
				if v != 0 {
					line += fmt.Sprintf(" %s=%s", n, strings.TrimSuffix(strings.TrimRight(fmt.Sprintf("%.6f", v), "0"), "."))
				}
			default:
				if v != "" {
					line += fmt.Sprintf(" %s=%v", n, v)
				}
			}
		}
		fmt.Fprintf(&b, "  %s:%s\n", name, line)
		for _, n := range names {
			switch v := fields[n].(type) {
			case map[string]any:
				part(n, v)
			case []any:
				for i, e := range v {
					if m, ok := e.(map[string]any); ok {
						part(strings.TrimPrefix(fmt.Sprintf("%s.%s %d", name, n, i+1), "report."), m)
					}
				}
			}
		}
	}
	part("report", tree)
	return b.String()
}
