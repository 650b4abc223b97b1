package main

import (
	"fmt"
	"time"

	"isr/client"
	"isr/client/auth"
	"isr/client/remote"
	"isr/store/parcel"
)

type authCmd struct {
	Lifetime time.Duration `placeholder:"TIME" help:"How long it lasts, as 90m or 8h."`
	Status   bool          `help:"Show what is authenticated; exit status 0 if anything is."`
	jsonFlag
}

func (c *authCmd) Run(a *app) error {
	switch {
	case c.JSON && !c.Status:
		return parcel.NewError(parcel.Usage, "auth: --json goes with --status")
	case c.Lifetime < 0, c.Status && c.Lifetime != 0:
		return parcel.NewError(parcel.Usage, "auth: --lifetime wants a time, and no --status")
	}
	cl, err := a.open(remote.Limit{})
	if err != nil {
		return err
	}
	if c.Status {
		return c.status(a, cl)
	}
	lifetime := c.Lifetime
	if lifetime == 0 {
		cfg, err := a.configuration()
		if err != nil {
			return err
		}
		lifetime = cfg.Duration("auth_lifetime")
	}
	st, already, err := cl.Auth(a.ctx, lifetime, c.Lifetime != 0)
	if err != nil {
		return err
	}
	text := "authenticated"
	if already {
		text = "authenticated already"
	}
	a.Say("%s: %s, %s", st.Destination, text, untilText(st))
	return nil
}

func (c *authCmd) status(a *app, cl *client.Client) error {
	all, err := cl.AuthStatus()
	if err != nil {
		return err
	}
	if c.JSON {
		if err := printJSON(all); err != nil {
			return err
		}
	} else {
		for _, st := range all {
			fmt.Fprintf(stdout, "%s: authenticated %s, %s\n", st.Destination, when(st.Since), untilText(st))
		}
	}
	if len(all) == 0 {
		return parcel.NewError(parcel.Failed, "auth: nothing is authenticated").WithHint("isr auth")
	}
	return nil
}

// untilText says when a login ends.
func untilText(st auth.Status) string {
	text := "until " + when(st.Expires)
	if st.Session != "" {
		text += " or the end of the " + st.Session
	}
	return text
}

type deauthCmd struct {
	All bool `short:"a" help:"Of every server, not of the default one only."`
}

func (c *deauthCmd) Run(a *app) error {
	cl, err := a.open(remote.Limit{})
	if err != nil {
		return err
	}
	ended, err := cl.Deauth(c.All)
	switch {
	case err != nil:
		return err
	case ended == 0:
		a.Say("nothing was authenticated")
	default:
		a.Say("no longer authenticated")
	}
	return nil
}

type passwdCmd struct{}

func (passwdCmd) Run(a *app) error {
	cl, err := a.open(remote.Limit{})
	if err != nil {
		return err
	}
	other, err := cl.Passwd(a.ctx)
	if err != nil {
		return err
	}
	a.Say("password changed; checkouts on other hosts open with the one they were made with")
	if other > 0 {
		a.Warn("%d checkouts on this host open with an older password only", other)
	}
	return nil
}

type authKeeperCmd struct{}

func (authKeeperCmd) Run(a *app) error { return auth.Background() }
