package main

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/alecthomas/kong"

	"isr/contrib/completion"
	"isr/locksrv/event"
	"isr/store"
	"isr/store/backup/snapshot"
	"isr/store/backup/target"
	"isr/store/diskimage"
)

// completionScript prints what a shell needs to complete command lines.
type completionScript struct {
	Shell string `arg:"" enum:"bash,zsh,fish" help:"bash, zsh or fish."`
}

func (c *completionScript) Run(e *env) error {
	text, err := completion.Script(c.Shell, "isr-locksrv")
	if err != nil {
		return err
	}
	_, err = fmt.Fprint(e.stdout.Bytes(), text)
	return err
}

// complete answers such a shell. Somebody is typing: what cannot be found out
// is left out.
type complete struct {
	Words []string `arg:"" optional:"" passthrough:""`
}

func (c *complete) Run(e *env) error {
	words := c.Words
	if len(words) > 0 && words[0] == "--" {
		words = words[1:]
	}
	answer := completion.Complete(e.parser.Model, words, func(p completion.Place) (known completion.Answer) {
		here := *e
		if root := p.Flags["root"]; root != "" {
			here.root = root
		}
		flag := p.Value.Flag != nil
		s, _, err := here.open()
		var names []string
		switch name := p.Value.Name; {
		case name == "format":
			if names = diskimage.Output(); p.Command.Name == "import" {
				names = append(slices.Clone(names), "ova")
			}
		case name == "command":
			names = commandWords(here.parser.Model.Node, p.Args)
		case name == "op":
			names = event.Ops
		case name == "crypto":
			names = []string{"aes256-sha256", "blowfish-sha1"}
		case name == "compress":
			names = []string{"gzip", "zstd", "none"}
		case name == "target":
			known.Dirs = true
		case name == "snapshot":
			names = snapshotWords(&here, p)
		case err != nil: // the rest is the realm's to know
		case name == "user", name == "to-user", name == "name", name == "to" && flag:
			names, _ = s.Users()
		case name == "group", name == "ungroup":
			names = groupWords(s)
		case name == "tag" && p.Command.Name == "untag":
			known.Words = tagWords(s, p.Args)
		case name == "version", name == "from" && !flag, name == "to", name == "text" && len(p.Args) == 2:
			known.Words = versionWords(s, p.Args)
		case name == "parcel" && flag:
			user := p.Flags["user"]
			if user == "" && len(p.Args) > 0 {
				user = p.Args[0] // user key add USER --parcel
			}
			names, _ = s.Parcels(user)
		case name == "parcel" && len(p.Args) > 0:
			user := p.Args[0]
			if p.Command.Name == "restore" && len(p.Args) > 1 {
				user = p.Args[1] // behind the target
			}
			names, _ = s.Parcels(user)
		}
		for _, n := range names {
			known.Words = append(known.Words, completion.Word{Text: n})
		}
		return known
	})
	_, err := fmt.Fprint(e.stdout.Bytes(), answer)
	return err
}

// commandWords are the commands that may come behind these words.
func commandWords(node *kong.Node, words []string) (names []string) {
	for _, w := range words {
		i := slices.IndexFunc(node.Children, func(c *kong.Node) bool { return c.Name == w })
		if i < 0 {
			return nil
		}
		node = node.Children[i]
	}
	for _, c := range node.Children {
		if !c.Hidden {
			names = append(names, c.Name)
		}
	}
	return names
}

// snapshotWords are the snapshots of the backup that the first argument names, if
// it is in a directory: nobody who types waits for another host.
func snapshotWords(e *env, p completion.Place) []string {
	if len(p.Args) == 0 {
		return nil
	}
	if _, local := target.Local(p.Args[0]); !local {
		return nil
	}
	t, err := place{Target: p.Args[0], SSH: "ssh"}.open(context.Background(), e, false, "")
	if err != nil {
		return nil
	}
	defer t.Close()
	ids, _ := snapshot.IDs(context.Background(), t)
	slices.Reverse(ids)
	return append(ids, "latest")
}

// groupWords are the groups that there are.
func groupWords(s *store.Store) []string {
	users, _ := s.Users()
	var groups []string
	for _, u := range users {
		if c, err := s.UserConfig(u); err == nil {
			groups = append(groups, c.Groups...)
		}
	}
	slices.Sort(groups)
	return slices.Compact(groups)
}

// tagWords are the tags of the parcel that args begin with.
func tagWords(s *store.Store, args []string) []completion.Word {
	return slices.DeleteFunc(versionWords(s, args), func(w completion.Word) bool { return store.CheckTag(w.Text) != nil })
}

// versionWords are the names of the versions of the parcel that args begin
// with: tags first.
func versionWords(s *store.Store, args []string) (words []completion.Word) {
	if len(args) < 2 {
		return nil
	}
	p, err := s.Parcel(args[0], args[1])
	if err != nil {
		return nil
	}
	versions, _ := p.Versions(0)
	for _, v := range versions {
		for _, t := range v.Tags {
			words = append(words, completion.Word{Text: t, Help: strings.TrimSuffix(fmt.Sprintf("version %d, %s", v.Version, v.Comment), ", ")})
		}
	}
	for _, v := range versions {
		words = append(words, completion.Word{Text: fmt.Sprint(v.Version), Help: v.Comment})
	}
	return words
}
