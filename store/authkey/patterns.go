package authkey

import (
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"
)

// Patterns is a list of addresses as from="…" has it: addresses, networks
// (10.0.0.0/8), and addresses with * and ?, each maybe with ! in front. An
// address matches if one of them does, and none with ! does.
//
// Names of hosts are refused: sshd does not look them up either, unless it is
// told to, and a name that is never found out could only fail to keep out.
type Patterns []string

// ParsePatterns reads a list with commas.
func ParsePatterns(s string) (Patterns, error) {
	ps := Patterns(strings.Split(strings.ToLower(s), ","))
	for _, p := range ps {
		if err := checkPattern(strings.TrimPrefix(p, "!")); err != nil {
			return nil, err
		}
	}
	if !slices.ContainsFunc(ps, func(p string) bool { return p[0] != '!' }) {
		return nil, fmt.Errorf("%q matches nothing: want an address without !", s)
	}
	return ps, nil
}

func checkPattern(p string) error {
	if strings.Contains(p, "/") {
		n, err := netip.ParsePrefix(p)
		if err != nil || n != n.Masked() {
			return fmt.Errorf("network %q: want an address whose last bits are 0, / and the number of the others", p)
		}
		return nil
	}
	if _, err := netip.ParseAddr(p); err == nil && !strings.Contains(p, "%") {
		return nil
	}
	if strings.ContainsAny(p, "*?") && strings.Trim(p, "0123456789abcdef.:*?") == "" {
		return nil
	}
	return fmt.Errorf("pattern %q: want an address, maybe with * and ?, or a network", p)
}

// Match reports whether an address is one of them; the zero Addr is none.
func (ps Patterns) Match(from netip.Addr) bool {
	if !from.IsValid() {
		return false
	}
	from = from.Unmap().WithZone("")
	found := false
	for _, p := range ps {
		p, not := strings.CutPrefix(p, "!")
		if matches(p, from) {
			if not {
				return false
			}
			found = true
		}
	}
	return found
}

func matches(p string, a netip.Addr) bool {
	if n, err := netip.ParsePrefix(p); err == nil {
		return n.Contains(a)
	}
	if b, err := netip.ParseAddr(p); err == nil {
		return a == b.Unmap()
	}
	wild := strings.NewReplacer(`\*`, ".*", `\?`, ".").Replace(regexp.QuoteMeta(p))
	ok, err := regexp.MatchString("^"+wild+"$", a.String())
	return ok && err == nil
}
