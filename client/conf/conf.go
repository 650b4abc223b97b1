// Package conf is the configuration of isr(1): the variables there are, the
// files that set them, and where each value came from. isr.conf(5) is its page.
//
// It promises that what it does not understand is an error that names file and
// line, and that every value can say where it was set. It applies nothing: who
// asks for a value does something with it.
package conf

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"isr/store/parcel"
)

// Variable is one thing that may be set.
type Variable struct {
	Name    string
	Default string
	Doc     string // a sentence
	List    bool   // each line adds a value; an empty one forgets those before it
	check   func(string) error
}

// variables is all there are, by name. The names of the original are kept
// where they still mean something (OpenISR 0.10, ~/.openisrrc).
var variables = []Variable{
	{Name: "auth_lifetime", Default: "12h", Doc: "How long isr auth lasts.", check: checkDuration},
	{Name: "bwlimit", Default: "0", Doc: "KiB a second, both ways; 0 is no limit.", check: checkCount},
	{Name: "chunk_cache", Default: "64", Doc: "MiB of decrypted disk chunks that a running parcel keeps in memory.", check: checkPositive},
	{Name: "compression", Default: "auto", Doc: "How what changed is compressed: auto, none, mild, moderate or painful.", check: checkOneOf("auto", "none", "disabled", "mild", "moderate", "painful")},
	{Name: "connect_timeout", Default: "", Doc: "How long to wait for a connection; as ssh_config(5) says if it is empty.", check: checkEmptyOr(checkDuration)},
	{Name: "dirtometer", Default: "no", Doc: "Show the dirtometer at every resume.", check: checkBool},
	{Name: "disable_lookaside", Default: "no", Doc: "Ask no look-aside place.", check: checkBool},
	{Name: "hoard_quota", Default: "0", Doc: "Bytes the hoard may take, with K, M, G or T; 0 is no limit.", check: checkSize},
	{Name: "hostname", Default: "", Doc: "What this host is called in locks and versions; its own name if it is empty."},
	{Name: "isrdir", Default: `\h/.isr`, Doc: "Where checkouts and the hoard are."},
	{Name: "lock_poll", Default: "30", Doc: "How often the lock of a running parcel is looked at.", check: checkDuration},
	{Name: "lookaside", Doc: "A place of objects, a path or a URL, to ask before the server.", List: true, check: checkEmptyOr(checkPlace)},
	{Name: "ls_versions", Default: "5", Doc: "How many versions isr ls -l shows.", check: checkPositive},
	{Name: "patience", Default: "60", Doc: "How long a transfer goes on trying when the server cannot be reached.", check: checkDuration},
	{Name: "report", Default: "no", Doc: "Tell the server at sync and checkin how a parcel was used, nothing of its content: no, ask or yes.", check: checkOneOf("no", "ask", "yes")},
	{Name: "server", Default: "", Doc: "The lock server, [LOGIN@]HOST[:PORT]."},
	{Name: "userid", Default: "", Doc: "The ISR user; the login name if it is empty."},
}

// obsolete is what the original knew and nothing here needs, with the reason.
var obsolete = map[string]string{
	"logmask":                "~/.isr/log has what happened",
	"console_logmask":        "isr -v says more",
	"hoard_sleep":            "attempts follow the network; see patience",
	"retries":                "attempts are bounded by time; see patience",
	"resume_single_threaded": "there is no such mode",
	"hoard_minsize":          "see hoard_quota",
	"nexus_cache":            "see chunk_cache",
	"nameserver":             "see server",
	"vmcommand":              "see VMM.command",
	"no_sync":                "what is acknowledged is durable",
}

// commandName matches VMM.command, the program that a driver is to start.
var commandName = regexp.MustCompile(`^([a-z0-9][a-z0-9_-]*)\.command$`)

// Files is where configuration is read, a later file overriding an earlier.
func Files(home string) []string {
	return []string{"/usr/share/openisr/config", "/etc/openisr/openisr.conf", filepath.Join(home, ".openisrrc")}
}

// Value is one value of a variable, and where it was set: "FILE:LINE", "default",
// or what Set was told.
type Value struct {
	Name  string `json:"name"`
	Value string `json:"value"`
	From  string `json:"from"`
}

// Config is what is in force.
type Config struct {
	home    string
	values  map[string][]Value
	notices []string
}

// Load reads files, those that exist. home is what \h stands for. The error is
// of kind Usage and names file and line.
func Load(home string, files []string) (*Config, error) {
	c := &Config{home: home, values: make(map[string][]Value)}
	for _, name := range files {
		p, err := os.ReadFile(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("configuration: %w", err)
		}
		if err := c.parse(name, string(p)); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// parse reads lines of variable = value. A # begins a comment where a word
// could begin, so a value may have one inside.
func (c *Config) parse(file, text string) error {
	for i, line := range strings.Split(text, "\n") {
		line = strings.TrimSpace(comment.ReplaceAllString(line, ""))
		if line == "" {
			continue
		}
		where := fmt.Sprintf("%s:%d", file, i+1)
		key, value, ok := strings.Cut(line, "=")
		key, value = strings.TrimSpace(key), strings.TrimSpace(value)
		if !ok {
			return parcel.NewError(parcel.Usage, "%s: line %d: want variable = value", file, i+1)
		}
		if why, gone := obsolete[key]; gone {
			c.notices = append(c.notices, fmt.Sprintf("%s: %s has no effect: %s", where, key, why))
			continue
		}
		if err := c.Set(key, value, where); err != nil {
			return parcel.NewError(parcel.Usage, "%s: line %d: %v", file, i+1, err).WithHint("isr.conf(5) lists the variables")
		}
	}
	return nil
}

var comment = regexp.MustCompile(`(^|\s)#.*`)

// find is the variable called name.
func find(name string) (Variable, bool) {
	if i := slices.IndexFunc(variables, func(v Variable) bool { return v.Name == name }); i >= 0 {
		return variables[i], true
	}
	if m := commandName.FindStringSubmatch(name); m != nil {
		return Variable{Name: name, Doc: "The program that the VMM " + m[1] + " starts."}, true
	}
	return Variable{}, false
}

// Set sets name, as from where.
func (c *Config) Set(name, value, from string) error {
	v, ok := find(name)
	if !ok {
		return fmt.Errorf("unknown variable %s", name)
	}
	if strings.ContainsAny(value, "\x00\n") {
		return fmt.Errorf("%s: want one line of text", name)
	}
	if v.check != nil {
		if err := v.check(value); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	switch {
	case !v.List:
		c.values[name] = []Value{{name, value, from}}
	case value == "":
		delete(c.values, name)
	default:
		c.values[name] = append(c.values[name], Value{name, value, from})
	}
	return nil
}

// All is every variable's value in force, by name; one for each value of a
// list, and of an empty list one that is empty.
func (c *Config) All() []Value {
	var all []Value
	for _, v := range variables {
		switch set := c.values[v.Name]; {
		case len(set) > 0:
			all = append(all, set...)
		default:
			all = append(all, Value{v.Name, c.expand(v.Default), "default"})
		}
	}
	for name, set := range c.values {
		if commandName.MatchString(name) {
			all = append(all, set...)
		}
	}
	slices.SortStableFunc(all, func(a, b Value) int { return strings.Compare(a.Name, b.Name) })
	return all
}

// Variables is every variable there is, by name.
func Variables() []Variable { return slices.Clone(variables) }

// Notices is what was read and has no effect.
func (c *Config) Notices() []string { return c.notices }

// Get is the value of a variable that is no list.
func (c *Config) Get(name string) string {
	v, ok := find(name)
	if !ok {
		panic("conf: no variable " + name)
	}
	if set := c.values[name]; len(set) > 0 {
		return c.expand(set[0].Value)
	}
	return c.expand(v.Default)
}

// List is the values of a list.
func (c *Config) List(name string) []string {
	var list []string
	for _, v := range c.values[name] {
		list = append(list, c.expand(v.Value))
	}
	return list
}

// Bool, Count, Size and Duration are Get, as what the variable is.
func (c *Config) Bool(name string) bool { b, _ := parseBool(c.Get(name)); return b }

// Count is Get of a number.
func (c *Config) Count(name string) int64 { n, _ := strconv.ParseInt(c.Get(name), 10, 64); return n }

// Size is Get of a number of bytes.
func (c *Config) Size(name string) int64 { n, _ := ParseSize(c.Get(name)); return n }

// Duration is Get of a time; 0 if it is empty.
func (c *Config) Duration(name string) time.Duration { d, _ := ParseDuration(c.Get(name)); return d }

// Commands is the program of each VMM for which one is set.
func (c *Config) Commands() map[string]string {
	cmds := make(map[string]string)
	for name, set := range c.values {
		if m := commandName.FindStringSubmatch(name); m != nil && set[0].Value != "" {
			cmds[m[1]] = c.expand(set[0].Value)
		}
	}
	return cmds
}

// expand replaces \h by the home directory and \u by the login name, and a ~
// in front by the home directory.
func (c *Config) expand(s string) string {
	if !strings.ContainsAny(s, `\~`) {
		return s
	}
	if s == "~" || strings.HasPrefix(s, "~/") {
		s = c.home + s[1:]
	}
	login := os.Getenv("USER")
	if u, err := user.Current(); err == nil {
		login = u.Username
	}
	return strings.NewReplacer(`\h`, c.home, `\u`, login).Replace(s)
}

// ParseSize reads bytes with an optional suffix K, M, G or T.
func ParseSize(s string) (int64, error) {
	bad := fmt.Errorf("size %q: want a number and K, M, G or T", s)
	digits := strings.TrimRight(s, "KMGTiBkmgtb ")
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || n < 0 {
		return 0, bad
	}
	unit := strings.TrimSpace(strings.ToUpper(s[len(digits):]))
	shift, ok := map[string]int{"": 0, "B": 0, "K": 10, "KIB": 10, "M": 20, "MIB": 20, "G": 30, "GIB": 30, "T": 40, "TIB": 40}[unit]
	if !ok || n > 1<<62>>shift {
		return 0, bad
	}
	return n << shift, nil
}

// ParseDuration reads a time as Go writes it, 1h30m, or in seconds.
func ParseDuration(s string) (time.Duration, error) {
	if s == "" {
		return 0, nil
	}
	d, err := time.ParseDuration(s)
	if n, nerr := strconv.ParseInt(s, 10, 32); nerr == nil {
		d, err = time.Duration(n)*time.Second, nil
	}
	if err != nil || d < 0 {
		return 0, fmt.Errorf("time %q: want seconds, or as in 1h30m", s)
	}
	return d, nil
}

func parseBool(s string) (bool, error) {
	switch strings.ToLower(s) {
	case "yes", "true", "on", "1":
		return true, nil
	case "no", "false", "off", "0":
		return false, nil
	}
	return false, fmt.Errorf("%q: want yes or no", s)
}

func checkBool(s string) error     { _, err := parseBool(s); return err }
func checkSize(s string) error     { _, err := ParseSize(s); return err }
func checkDuration(s string) error { _, err := ParseDuration(s); return checkSaid(s, err) }

func checkSaid(s string, err error) error {
	if err == nil && s == "" {
		err = errors.New("want a value")
	}
	return err
}

func checkCount(s string) error {
	if n, err := strconv.ParseInt(s, 10, 32); err != nil || n < 0 {
		return fmt.Errorf("%q: want a number", s)
	}
	return nil
}

func checkPositive(s string) error {
	if err := checkCount(s); err != nil || strings.Trim(s, "0") == "" {
		return fmt.Errorf("%q: want a number from 1", s)
	}
	return nil
}

func checkEmptyOr(check func(string) error) func(string) error {
	return func(s string) error {
		if s == "" {
			return nil
		}
		return check(s)
	}
}

// checkPlace leaves it to package source what schemes there are.
func checkPlace(s string) error {
	if strings.HasPrefix(s, "/") || strings.HasPrefix(s, "~/") || strings.HasPrefix(s, `\h`) || strings.Contains(s, "://") {
		return nil
	}
	return fmt.Errorf("%q: want a path that begins with /, or SCHEME://…", s)
}

func checkOneOf(words ...string) func(string) error {
	return func(s string) error {
		if !slices.Contains(words, s) {
			return fmt.Errorf("%q: want one of %s", s, strings.Join(words, ", "))
		}
		return nil
	}
}
