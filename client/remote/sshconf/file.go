package sshconf

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// The reader of configuration files. It is our own, and not kevinburke/ssh_config, because that library, as of
// v1.6.0, applies settings to the wrong hosts: `Match host a user b` is taken to name three hosts, `a,b` to name one,
// `?` to match nothing as well as one character, tabs between patterns to be part of them; it rejects every other Match,
// cuts values at any '#', and looks for included files in the home directory of the password database. The grammar is one
// keyword and its arguments per line; `ssh -G` is the oracle of the tests.

const maxIncludeDepth = 16

// source says where a line comes from.
type source struct {
	name    string
	line    int
	system  bool // relative includes are looked for in /etc/ssh, not in ~/.ssh
	checked bool // nobody else may be able to write the file
	never   bool // included by a block that does not apply: no Host or Match line in it can make it apply
}

func (s source) errorf(format string, args ...any) error {
	where := s.name
	if s.line > 0 {
		where = fmt.Sprintf("%s line %d", s.name, s.line)
	}
	return fmt.Errorf("%w: %s: %w", ErrConfig, where, fmt.Errorf(format, args...))
}

// evaluation is one walk through the configuration for one target: the first value of a keyword wins.
type evaluation struct {
	target               Target
	home                 string
	localUser, localHost string
	uid                  string

	host         string // what Host patterns are matched against
	values       map[string][]string
	identities   []string // these two add up
	certificates []string

	final     bool // the second pass, in which `Match final` holds
	wantFinal bool
	notices   []string
	noticed   map[string]bool
}

func (e *evaluation) first(key string) string {
	if v := e.values[key]; len(v) > 0 {
		return v[0]
	}
	return ""
}

func (e *evaluation) firstOr(key, fallback string) string {
	if v := e.first(key); v != "" {
		return v
	}
	return fallback
}

func (e *evaluation) notice(format string, args ...any) {
	n := fmt.Sprintf(format, args...)
	if !e.noticed[n] {
		e.noticed[n] = true
		e.notices = append(e.notices, n)
	}
}

// file reads one file. active is false inside a block that does not apply: then it is read for its syntax alone.
func (e *evaluation) file(src source, active bool, depth int) error {
	if depth > maxIncludeDepth {
		return src.errorf("included more than %d levels deep", maxIncludeDepth)
	}
	f, err := os.Open(src.name)
	if err != nil {
		return src.errorf("%w", err)
	}
	defer f.Close()
	if src.checked {
		info, err := f.Stat()
		if err != nil {
			return src.errorf("%w", err)
		}
		st, ok := info.Sys().(*syscall.Stat_t)
		if ok && (st.Uid != 0 && int(st.Uid) != os.Getuid() || info.Mode().Perm()&0o022 != 0) {
			return src.errorf("bad owner or permissions: it must belong to you and be writable by nobody else (chmod go-w)")
		}
	}
	var text bytes.Buffer
	if _, err := text.ReadFrom(f); err != nil {
		return src.errorf("%w", err)
	}
	src.never = !active
	for i, line := range strings.Split(text.String(), "\n") {
		src.line = i + 1
		if strings.IndexByte(line, 0) >= 0 {
			return src.errorf("not a text file")
		}
		if err := e.line(src, line, &active, depth); err != nil {
			return err
		}
	}
	return nil
}

// rawKeywords take the rest of their line as it stands.
var rawKeywords = map[string]bool{"proxycommand": true, "proxyjump": true, "localcommand": true, "remotecommand": true, "knownhostscommand": true}

var keywordAliases = map[string]string{
	"pubkeyacceptedkeytypes":          "pubkeyacceptedalgorithms",
	"challengeresponseauthentication": "kbdinteractiveauthentication",
	"skeyauthentication":              "kbdinteractiveauthentication",
	"tisauthentication":               "kbdinteractiveauthentication",
	"dsaauthentication":               "pubkeyauthentication",
	"identityfile2":                   "identityfile",
}

// line takes one line; *active says whether it applies, and Host and Match change that.
func (e *evaluation) line(src source, line string, active *bool, depth int) error {
	keyword, rest := splitKeyword(line)
	if keyword == "" || keyword[0] == '#' {
		return nil
	}
	keyword = strings.ToLower(keyword)
	if k, ok := keywordAliases[keyword]; ok {
		keyword = k
	}
	if rest == "" {
		return src.errorf("%s: no argument", keyword)
	}
	if rawKeywords[keyword] {
		if *active {
			e.setRaw(keyword, rest)
		}
		return nil
	}
	args, err := splitArgs(rest)
	if err != nil {
		return src.errorf("%s: %w", keyword, err)
	}
	if len(args) == 0 {
		return src.errorf("%s: no argument", keyword)
	}
	switch keyword {
	case "host":
		*active = !src.never && e.matchHostLine(args)
	case "match":
		*active, err = e.matchLine(src, args)
		return err
	case "include":
		return e.include(src, args, *active, depth)
	case "identityfile":
		if *active && !slices.Contains(e.identities, args[0]) {
			e.identities = append(e.identities, args[0])
		}
	case "certificatefile":
		if *active && !slices.Contains(e.certificates, args[0]) {
			e.certificates = append(e.certificates, args[0])
		}
	default:
		if *active {
			e.set(keyword, args)
		}
	}
	return nil
}

func (e *evaluation) set(keyword string, args []string) {
	if _, ok := e.values[keyword]; !ok {
		e.values[keyword] = args
	}
}

// setRaw: of ProxyJump and ProxyCommand whichever comes first wins, except that `ProxyJump none` speaks for jumps only.
func (e *evaluation) setRaw(keyword, rest string) {
	switch keyword {
	case "proxyjump":
		if e.first("proxycommand") != "" {
			return
		}
	case "proxycommand":
		if j := e.first("proxyjump"); j != "" && !strings.EqualFold(j, "none") {
			return
		}
	}
	e.set(keyword, []string{rest})
}

func (e *evaluation) include(src source, args []string, active bool, depth int) error {
	for _, pattern := range args {
		if p, err := e.tilde(pattern); err == nil {
			pattern = p
		}
		if !filepath.IsAbs(pattern) {
			if src.system {
				pattern = filepath.Join(filepath.Dir(systemConfigFile), pattern)
			} else {
				pattern = filepath.Join(e.home, ".ssh", pattern)
			}
		}
		names, err := filepath.Glob(pattern)
		if err != nil {
			return src.errorf("include %s: %w", pattern, err)
		}
		for _, name := range names {
			inner := source{name: name, system: src.system, checked: src.checked}
			err := e.file(inner, active, depth+1)
			if isMissing(err) {
				continue
			}
			if err != nil {
				return err
			}
		}
	}
	return nil
}

func (e *evaluation) matchHostLine(args []string) bool {
	found := false
	for _, p := range args {
		if neg, ok := strings.CutPrefix(p, "!"); ok {
			if wildcard(neg, e.host) {
				return false // an exception, whatever else matches
			}
		} else if wildcard(p, e.host) {
			found = true
		}
	}
	return found
}

// matchLine evaluates the criteria of a Match line. One that this client does not know makes the block not apply,
// with a notice: settings meant for something else are worse than missing ones.
func (e *evaluation) matchLine(src source, args []string) (bool, error) {
	result, seen := !src.never, 0
	for len(args) > 0 {
		attr := args[0]
		args = args[1:]
		negate := strings.HasPrefix(attr, "!")
		attr = strings.TrimPrefix(attr, "!")
		name, value, inline := strings.Cut(attr, "=")
		name = strings.ToLower(name)
		if name == "all" {
			if seen > 1 || len(args) > 0 || inline {
				return false, src.errorf("match all cannot be combined with other criteria")
			}
			return result && !negate, nil
		}
		seen++
		switch name {
		case "final", "canonical":
			if name == "final" {
				e.wantFinal = e.wantFinal || !e.final
			}
			if e.final == negate {
				result = false
			}
			continue
		}
		if !inline {
			if len(args) == 0 {
				return false, src.errorf("match %s: no argument", name)
			}
			value, args = args[0], args[1:]
		}
		if value == "" {
			return false, src.errorf("match %s: empty argument", name)
		}
		var holds bool
		switch name {
		case "host":
			h, err := e.hostName()
			if err != nil {
				return false, src.errorf("%w", err)
			}
			holds = matchList(strings.ToLower(value), strings.ToLower(h))
		case "originalhost":
			holds = matchList(strings.ToLower(value), strings.ToLower(e.target.Host))
		case "user":
			holds = matchList(value, e.firstOr("user", e.localUser))
		case "localuser":
			holds = matchList(value, e.localUser)
		case "exec":
			if !result {
				continue
			}
			var err error
			if holds, err = e.matchExec(value); err != nil {
				return false, src.errorf("match exec: %w", err)
			}
		default:
			e.notice("%s line %d: Match %s is not supported: the block is skipped", src.name, src.line, name)
			result = false
			continue
		}
		if holds == negate {
			result = false
		}
	}
	if seen == 0 {
		return false, src.errorf("match: no criterion")
	}
	return result, nil
}

// matchExec runs a criterion's command as ssh does: the user's own configuration asks for it.
func (e *evaluation) matchExec(command string) (bool, error) {
	r := Resolved{Alias: e.target.Host, User: e.firstOr("user", e.localUser), HostKeyAlias: e.first("hostkeyalias"), Port: 22}
	if p, err := parsePort(e.firstOr("port", "22")); err == nil {
		r.Port = p
	}
	var err error
	if r.HostName, err = e.hostName(); err != nil {
		return false, err
	}
	if command, err = expandPercent(command, e.tokens(&r)); err != nil {
		return false, err
	}
	cmd := exec.Command(Shell(), "-c", command)
	cmd.Env = append(os.Environ(), "HOME="+e.home)
	return cmd.Run() == nil, nil
}

// Shell is what runs the commands of a configuration: the user's own.
func Shell() string {
	if sh := os.Getenv("SHELL"); sh != "" {
		return sh
	}
	return "/bin/sh"
}

func isMissing(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission)
}

// splitKeyword cuts a line into its keyword and the rest, at blanks or one '='.
func splitKeyword(line string) (keyword, rest string) {
	line = strings.TrimRight(line, " \t\r\n\f")
	line = strings.TrimLeft(line, " \t\r")
	i := strings.IndexAny(line, " \t\r=\"")
	if i < 0 {
		return line, ""
	}
	keyword, rest = line[:i], line[i:]
	rest = strings.TrimLeft(rest, " \t\r")
	if strings.HasPrefix(rest, "=") {
		rest = strings.TrimLeft(rest[1:], " \t\r")
	}
	return keyword, rest
}

// splitArgs cuts arguments at blanks; quotes of either kind join them, a backslash takes a quote, a backslash or (outside
// quotes) a space literally, and a '#' that begins a word begins a comment.
func splitArgs(s string) ([]string, error) {
	var args []string
	for i := 0; i < len(s); {
		if s[i] == ' ' || s[i] == '\t' {
			i++
			continue
		}
		if s[i] == '#' {
			break
		}
		var word []byte
		var quote byte
		for ; i < len(s); i++ {
			c := s[i]
			if c == '\\' && i+1 < len(s) && (s[i+1] == '\'' || s[i+1] == '"' || s[i+1] == '\\' || quote == 0 && s[i+1] == ' ') {
				i++
				word = append(word, s[i])
			} else if quote == 0 && (c == ' ' || c == '\t') {
				break
			} else if quote == 0 && (c == '"' || c == '\'') {
				quote = c
			} else if quote != 0 && c == quote {
				quote = 0
			} else {
				word = append(word, c)
			}
		}
		if quote != 0 {
			return nil, fmt.Errorf("unbalanced quotes")
		}
		args = append(args, string(word))
	}
	return args, nil
}

// matchList is a comma-separated list of patterns, of which those with '!' are exceptions.
func matchList(list, s string) bool {
	found := false
	for _, p := range strings.Split(list, ",") {
		if neg, ok := strings.CutPrefix(p, "!"); ok {
			if wildcard(neg, s) {
				return false
			}
		} else if wildcard(p, s) {
			found = true
		}
	}
	return found
}

// wildcard matches with '*' for anything and '?' for exactly one character, in time len(pattern)*len(s) at worst.
func wildcard(pattern, s string) bool {
	p, i, star, mark := 0, 0, -1, 0
	for i < len(s) {
		switch {
		case p < len(pattern) && pattern[p] == '*':
			star, mark = p, i
			p++
		case p < len(pattern) && (pattern[p] == '?' || pattern[p] == s[i]):
			p++
			i++
		case star >= 0:
			mark++
			p, i = star+1, mark
		default:
			return false
		}
	}
	for p < len(pattern) && pattern[p] == '*' {
		p++
	}
	return p == len(pattern)
}
