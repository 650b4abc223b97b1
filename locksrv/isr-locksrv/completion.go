package main

import (
	"fmt"

	"isr/contrib/completion"
	"isr/store"
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
	_, err = fmt.Fprint(e.stdout, text)
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
		s, _, err := here.open()
		if err != nil {
			return known
		}
		var names []string
		switch p.Value.Name {
		case "user", "to-user", "name":
			names, _ = s.Users()
		case "to":
			if p.Value.Flag != nil {
				names, _ = s.Users()
				break
			}
			fallthrough
		case "version", "from", "tag":
			known.Words = versionWords(s, p.Args)
		case "parcel":
			if len(p.Args) > 0 {
				names, _ = s.Parcels(p.Args[0])
			}
		}
		for _, n := range names {
			known.Words = append(known.Words, completion.Word{Text: n})
		}
		return known
	})
	_, err := fmt.Fprint(e.stdout, answer)
	return err
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
			words = append(words, completion.Word{Text: t, Help: fmt.Sprintf("version %d, %s", v.Version, v.Comment)})
		}
	}
	for _, v := range versions {
		words = append(words, completion.Word{Text: fmt.Sprint(v.Version), Help: v.Comment})
	}
	return words
}
