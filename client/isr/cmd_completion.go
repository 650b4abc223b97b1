package main

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/alecthomas/kong"

	"isr/client"
	"isr/client/conf"
	"isr/client/remote"
	"isr/client/vmm"
	"isr/contrib/completion"
)

type completionCmd struct {
	Shell string `arg:"" enum:"bash,zsh,fish" help:"bash, zsh or fish."`
}

func (c *completionCmd) Run(a *app) error {
	text, err := completion.Script(c.Shell, "isr")
	fmt.Fprint(stdout, text)
	return err
}

// completeCmd answers a shell: see completion.Script. Somebody is typing, so
// it asks nothing, says nothing but its answer, and does not wait for servers.
type completeCmd struct {
	Words []string `arg:"" optional:"" passthrough:""`
}

// namesPatience is how long a key waits for a server's listing.
const namesPatience = time.Second

func (c *completeCmd) Run(a *app, parser *kong.Kong) error {
	a.screen.mute, a.screen.batch = true, true
	words := c.Words
	if len(words) > 0 && words[0] == "--" {
		words = words[1:]
	}
	answer := completion.Complete(parser.Model, words, a.values)
	fmt.Fprint(stdout, answer.String())
	return nil
}

// Which parcels a command is for; any other is for all there are.
var (
	forCheckouts = []string{"checkin", "clean", "discard", "poweroff", "rescue", "stat", "sync", "uuid"}
	forRunning   = []string{"dirtometer"}
	forHoarded   = []string{"rmhoard"}
)

// values is what only isr knows of what a flag or argument may be.
func (a *app) values(p completion.Place) completion.Answer {
	command := ""
	if p.Command != nil {
		command = p.Command.Name
	}
	_, removed := p.Flags["remove"]
	var ws []completion.Word
	switch name := p.Value.Name; {
	case name == "parcel":
		ws = a.parcels(command, p)
	case name == "rollback":
		ws = a.versions(p)
	case name == "server":
		if cl := a.quietly(p); cl != nil {
			ws = plain(cl.Servers())
		}
	case name == "vmm":
		ws = plain(vmm.List())
	case name == "command":
		for _, n := range visibleCommands(a.parser.Model.Node) {
			ws = append(ws, completion.Word{Text: n.Name, Help: n.Help})
		}
	case name == "name" && command == "config":
		for _, v := range conf.Variables() {
			ws = append(ws, completion.Word{Text: v.Name, Help: v.Doc})
		}
	case name == "place" && removed:
		if cfg, err := a.configuration(); err == nil {
			ws = plain(cfg.List("lookaside"))
		}
	case name == "place", name == "dir":
		return completion.Answer{Dirs: true}
	}
	return completion.Answer{Words: ws}
}

func plain(words []string) []completion.Word {
	var ws []completion.Word
	for _, w := range words {
		ws = append(ws, completion.Word{Text: w})
	}
	return ws
}

// quietly is the client of the server and user that the command line so far
// names, or nil.
func (a *app) quietly(p completion.Place) *client.Client {
	if s := p.Flags["server"]; s != "" {
		a.g.Server = s
	}
	if u := p.Flags["user"]; u != "" {
		a.g.User = u
	}
	cl, err := a.open(remote.Limit{})
	if err != nil {
		return nil
	}
	cl.Batch = true
	return cl
}

// parcels are names, and UUIDs for who has begun to type something: where two
// parcels have one name nothing else tells them apart.
func (a *app) parcels(command string, p completion.Place) []completion.Word {
	cl := a.quietly(p)
	if cl == nil {
		return nil
	}
	_, remotely := p.Flags["remote"]
	here := slices.Contains(forCheckouts, command) || command == "checkp" && !remotely
	running, hoarded := slices.Contains(forRunning, command), slices.Contains(forHoarded, command)
	ks := cl.Here()
	if !here && !running && !hoarded {
		ctx, cancel := context.WithTimeout(a.ctx, namesPatience)
		defer cancel()
		ks = append(ks, cl.There(ctx, namesPatience)...)
	}
	var ws []completion.Word
	seen := make(map[string]bool)
	offer := func(word, help string) {
		if !seen[word] && word != "" {
			seen[word] = true
			ws = append(ws, completion.Word{Text: word, Help: help})
		}
	}
	for _, k := range ks {
		if p.Flags["server"] != "" && k.Server != p.Flags["server"] || p.Flags["user"] != "" && k.User != p.Flags["user"] ||
			here && k.Here == "" || running && !k.Running || hoarded && !k.Hoarded {
			continue
		}
		help := "on " + k.Server
		switch {
		case k.Here != "":
			help = k.Here
		case k.Hoarded:
			help = "hoarded"
		}
		offer(k.Parcel, help)
		if p.Typed != "" && (k.Here != "" || k.Hoarded) {
			offer(k.UUID, k.Parcel+", "+help)
		}
	}
	return ws
}

// versions are those of the parcel that the command line names.
func (a *app) versions(p completion.Place) []completion.Word {
	cl := a.quietly(p)
	if cl == nil || len(p.Args) == 0 {
		return nil
	}
	var ws []completion.Word
	// The server's word has comments, and comes first.
	for _, k := range append(cl.There(a.ctx, namesPatience), cl.Here()...) {
		if k.Parcel != p.Args[0] && k.UUID != p.Args[0] {
			continue
		}
		for _, v := range k.Versions {
			w := completion.Word{Text: fmt.Sprint(v.Version), Help: v.Comment}
			if !slices.ContainsFunc(ws, func(o completion.Word) bool { return o.Text == w.Text }) {
				ws = append(ws, w)
			}
		}
	}
	return ws
}
