// Package sshconf says how a host is reached and who logs in there, as ssh_config has it.
//
// It promises that what `ssh -G` makes of the files, of the options and of what was typed, Resolve does (Host, Match,
// Include, tokens, lists of algorithms), so that one configuration serves both. It opens configuration files only and
// changes nothing; what it must skip it says in Notices, for the person in front, and what means nothing is an
// ErrConfig that names the line.
//
// It does not connect, read keys or known hosts, or canonicalise host names. Settings of what this client does not do
// (forwarding, ControlMaster, GSSAPI, PKCS#11) are passed over.
package sshconf

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// ErrConfig: a configuration file or an option does not mean anything; asking again cannot help.
var ErrConfig = errors.New("ssh configuration")

// Target is whom to dial. The zero value of every field but Host means "as ssh would".
type Target struct {
	Host string // as typed: an alias of ssh_config, a name, or an address without brackets
	Port int    // 0: ssh_config's Port, else 22
	User string // lock-server user as typed; "": ssh_config's User, else the login name
	// Home is the directory whose .ssh is read, and what ~ and %d stand for; "" is os.UserHomeDir.
	// Unlike ssh, which asks the password database, HOME decides: two homes on one machine are two hosts.
	Home string
	// ConfigFile replaces both configuration files; "" reads Home/.ssh/config, then /etc/ssh/ssh_config;
	// "none" reads neither.
	ConfigFile string
	// Options are set before any file is read, as by ssh -o: keyword (any case) to value, quoted as there.
	// As with ssh they are not handed on to jump hosts, which are configured by the files.
	Options   map[string]string
	BatchMode bool // never prompt
}

// Hop is one jump host, as ProxyJump names it; its other settings come from the configuration under that name.
type Hop struct {
	User string // "": as configured
	Host string
	Port int // 0: as configured
}

func (h Hop) String() string {
	s := h.Host
	if h.Port != 0 {
		s = net.JoinHostPort(h.Host, strconv.Itoa(h.Port))
	} else if strings.Contains(s, ":") {
		s = "[" + s + "]"
	}
	if h.User != "" {
		s = h.User + "@" + s
	}
	return s
}

// The values of StrictHostKeyChecking.
const (
	StrictAsk       = "ask"        // unknown: ask; changed: refuse
	StrictYes       = "yes"        // unknown or changed: refuse
	StrictAcceptNew = "accept-new" // unknown: add; changed: refuse
	StrictNo        = "no"         // unknown: add; changed: go on without passwords
)

// Resolved is what a Target comes to once the configuration is applied. Paths are expanded; nothing has been
// opened but configuration files.
type Resolved struct {
	Alias    string // Target.Host
	HostName string // what to connect to
	Port     int
	User     string

	IdentityFiles    []string // in the order they are tried
	IdentitiesNamed  bool     // some IdentityFile was configured: IdentityFiles are not the defaults
	CertificateFiles []string
	IdentitiesOnly   bool
	IdentityAgent    string // socket of the agent; "": none
	NoAgent          bool   // IdentityAgent is none, which no remembered socket may undo

	ProxyJump    []Hop  // first hop first; the last one connects to HostName
	ProxyCommand string // expanded, for the user's shell; "": none

	HostKeyAlias          string
	UserKnownHostsFiles   []string
	GlobalKnownHostsFiles []string
	RevokedHostKeys       string
	StrictHostKeyChecking string
	HashKnownHosts        bool
	NoHostAuthLocalhost   bool

	AddressFamily       string // any, inet, inet6
	BindAddress         string
	ConnectTimeout      time.Duration // for connecting, and again for the key exchange
	ConnectionAttempts  int
	ServerAliveInterval time.Duration // 0: never probe
	ServerAliveCountMax int

	PreferredAuthentications []string
	PubkeyAuthentication     bool
	PasswordAuthentication   bool
	KbdInteractive           bool
	NumberOfPasswordPrompts  int
	AddKeysToAgent           AgentPolicy
	BatchMode                bool

	// nil: this implementation's defaults.
	HostKeyAlgorithms, KexAlgorithms, Ciphers, MACs, PubkeyAcceptedAlgorithms []string

	HostKeysRelative bool // HostKeyAlgorithms was given by + or -: known types may still come first

	Notices []string // what of the configuration was not understood and therefore skipped, for the person in front
}

// AgentPolicy is AddKeysToAgent.
type AgentPolicy struct {
	Add      bool
	Confirm  bool
	Lifetime time.Duration // 0: for ever
}

// Address is HostName and Port as a dialler takes them.
func (r *Resolved) Address() string { return net.JoinHostPort(r.HostName, strconv.Itoa(r.Port)) }

// KnownAs is the name (host:port) that host keys are looked up under.
func (r *Resolved) KnownAs() string {
	if r.HostKeyAlias != "" {
		return net.JoinHostPort(r.HostKeyAlias, "22") // an alias stands without a port
	}
	return net.JoinHostPort(strings.ToLower(r.HostName), strconv.Itoa(r.Port))
}

// Destination names the login, USER@HOST or USER@HOST:PORT where the port is not 22: in prompts and errors, and for what
// is remembered of it.
func (r *Resolved) Destination() string {
	if r.Port == 22 {
		return r.User + "@" + r.HostName
	}
	return r.User + "@" + r.Address()
}

// Destination names whom t comes to: USER@HOST, or USER@HOST:PORT where the
// port is not 22. Passwords are kept by it.
func Destination(t Target) (string, error) {
	r, err := Resolve(t)
	if err != nil {
		return "", err
	}
	return r.Destination(), nil
}

// The defaults this client can use, in the order ssh tries them.
var defaultIdentities = []string{"id_rsa", "id_ecdsa", "id_ecdsa_sk", "id_ed25519", "id_ed25519_sk"}

const (
	defaultPreferred      = "publickey,keyboard-interactive,password"
	defaultConnectTimeout = 30 * time.Second
	defaultAliveInterval  = 15 * time.Second // ssh's own default, never, would leave a dead link unnoticed for hours
	defaultAliveCount     = 3
	systemConfigFile      = "/etc/ssh/ssh_config"
)

// Resolve applies the configuration to t, as `ssh -G` does. It reads files, the environment and the password
// database, runs the commands of `Match exec`, and changes nothing. The error wraps ErrConfig.
func Resolve(t Target) (Resolved, error) {
	e, err := newEvaluation(t)
	if err != nil {
		return Resolved{}, err
	}
	if err := e.run(); err != nil {
		return Resolved{}, err
	}
	return e.resolved()
}

func newEvaluation(t Target) (*evaluation, error) {
	if err := checkHostName(t.Host); err != nil {
		return nil, err
	}
	if t.User != "" {
		if err := checkUserName(t.User); err != nil {
			return nil, err
		}
	}
	if t.Port < 0 || t.Port > 65535 {
		return nil, fmt.Errorf("%w: port %d: not between 1 and 65535", ErrConfig, t.Port)
	}
	home := t.Home
	if home == "" {
		h, err := os.UserHomeDir()
		if err != nil {
			return nil, fmt.Errorf("%w: home directory: %w", ErrConfig, err)
		}
		home = h
	}
	e := &evaluation{target: t, home: home, host: t.Host, values: map[string][]string{}, noticed: map[string]bool{}}
	if u, err := user.Current(); err == nil {
		e.localUser, e.uid = u.Username, u.Uid
	} else {
		e.localUser, e.uid = os.Getenv("USER"), strconv.Itoa(os.Getuid())
	}
	e.localHost, _ = os.Hostname()
	return e, nil
}

// run reads everything there is, once, and a second time when a `Match final` asks for it.
func (e *evaluation) run() error {
	t := e.target
	if t.Port != 0 {
		e.values["port"] = []string{strconv.Itoa(t.Port)}
	}
	if t.User != "" {
		e.values["user"] = []string{t.User}
	}
	keys := make([]string, 0, len(t.Options))
	for k := range t.Options {
		keys = append(keys, k)
	}
	slices.Sort(keys) // so that the outcome does not depend on the order of a map
	for _, k := range keys {
		active := true
		switch strings.ToLower(strings.TrimSpace(k)) {
		case "host", "match", "include":
			return fmt.Errorf("%w: option %s: only in a configuration file", ErrConfig, k)
		}
		if err := e.line(source{name: "option " + k}, k+" "+t.Options[k], &active, 0); err != nil {
			return err
		}
	}
	if err := e.files(); err != nil {
		return err
	}
	if e.wantFinal {
		name, err := e.hostName()
		if err != nil {
			return err
		}
		e.host, e.final = strings.ToLower(name), true
		e.values["hostname"] = []string{strings.ReplaceAll(name, "%", "%%")}
		return e.files()
	}
	return nil
}

func (e *evaluation) files() error {
	switch e.target.ConfigFile {
	case "none":
		return nil
	case "":
		err := e.file(source{name: filepath.Join(e.home, ".ssh", "config"), checked: true}, true, 0)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		err = e.file(source{name: systemConfigFile, system: true}, true, 0)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	default:
		return e.file(source{name: e.target.ConfigFile}, true, 0)
	}
}

// hostName is what the HostName in force so far makes of the name as typed.
func (e *evaluation) hostName() (string, error) {
	v := e.first("hostname")
	if v == "" {
		return e.host, nil
	}
	return expandPercent(v, map[byte]string{'h': e.host})
}

// resolved turns the values found into a Resolved.
func (e *evaluation) resolved() (r Resolved, err error) {
	defer func() {
		if err != nil {
			r = Resolved{}
			if !errors.Is(err, ErrConfig) {
				err = fmt.Errorf("%w: host %s: %w", ErrConfig, e.target.Host, err)
			}
		}
	}()
	r.Alias = e.target.Host
	if r.HostName, err = e.hostName(); err != nil {
		return r, err
	}
	if ip := net.ParseIP(r.HostName); ip == nil {
		r.HostName = strings.ToLower(r.HostName)
	}
	if err = checkHostName(r.HostName); err != nil {
		return r, err
	}
	p := valueParser{e: e}
	r.Port = p.number("port", 22, 1, 65535)
	r.User = e.firstOr("user", e.localUser)
	r.HostKeyAlias = strings.ToLower(e.first("hostkeyalias"))
	r.StrictHostKeyChecking = p.choice("stricthostkeychecking", StrictAsk, map[string]string{
		"yes": StrictYes, "true": StrictYes, "no": StrictNo, "false": StrictNo, "off": StrictNo,
		"ask": StrictAsk, "accept-new": StrictAcceptNew})
	r.HashKnownHosts = p.flag("hashknownhosts", false)
	r.NoHostAuthLocalhost = p.flag("nohostauthenticationforlocalhost", false)
	r.IdentitiesOnly = p.flag("identitiesonly", false)
	r.AddressFamily = p.choice("addressfamily", "any", map[string]string{"any": "any", "inet": "inet", "inet6": "inet6"})
	r.BindAddress = e.first("bindaddress")
	r.ConnectTimeout = p.duration("connecttimeout", defaultConnectTimeout)
	if r.ConnectTimeout == 0 {
		r.ConnectTimeout = defaultConnectTimeout
	}
	r.ConnectionAttempts = max(1, p.number("connectionattempts", 1, 0, 1<<30))
	r.ServerAliveInterval = p.duration("serveraliveinterval", defaultAliveInterval)
	r.ServerAliveCountMax = p.number("serveralivecountmax", defaultAliveCount, 0, 1<<30)
	r.PreferredAuthentications = splitList(e.firstOr("preferredauthentications", defaultPreferred))
	pubkey := p.choice("pubkeyauthentication", "yes", map[string]string{"yes": "yes", "true": "yes", "no": "no", "false": "no",
		"unbound": "yes", "host-bound": "yes"})
	r.PubkeyAuthentication = pubkey == "yes"
	r.PasswordAuthentication = p.flag("passwordauthentication", true)
	r.KbdInteractive = p.flag("kbdinteractiveauthentication", true)
	r.NumberOfPasswordPrompts = p.number("numberofpasswordprompts", 3, 0, 1<<30)
	r.BatchMode = p.flag("batchmode", false) || e.target.BatchMode
	r.AddKeysToAgent = p.agentPolicy("addkeystoagent")
	if mode := strings.ToLower(e.first("canonicalizehostname")); mode == "yes" || mode == "always" {
		e.notice("CanonicalizeHostname is not supported: host names are taken as they stand")
	}
	if p.flag("proxyusefdpass", false) && e.first("proxycommand") != "" {
		return r, fmt.Errorf("ProxyUseFdpass is not supported")
	}
	if cmd := e.first("knownhostscommand"); cmd != "" && !strings.EqualFold(cmd, "none") {
		e.notice("KnownHostsCommand is not supported: only files of known hosts are read")
	}
	if p.err != nil {
		return r, p.err
	}
	if r.ProxyJump, err = parseJump(e.first("proxyjump")); err != nil {
		return r, err
	}
	if err = e.paths(&r); err != nil {
		return r, err
	}
	if err = e.algorithms(&r); err != nil {
		return r, err
	}
	r.Notices = e.notices
	return r, nil
}

// paths fills in what is expanded: files, the agent, the proxy command.
func (e *evaluation) paths(r *Resolved) error {
	tokens := e.tokens(r)
	expand := func(list []string) (out []string, err error) {
		for _, f := range list {
			if strings.EqualFold(f, "none") {
				continue
			}
			p, err := e.path(f, tokens)
			if err != nil {
				return nil, err
			}
			out = append(out, p)
		}
		return out, nil
	}
	var err error
	r.IdentitiesNamed = len(e.identities) > 0
	if !r.IdentitiesNamed {
		for _, name := range defaultIdentities {
			r.IdentityFiles = append(r.IdentityFiles, filepath.Join(e.home, ".ssh", name))
		}
	} else if r.IdentityFiles, err = expand(e.identities); err != nil {
		return err
	}
	if r.CertificateFiles, err = expand(e.certificates); err != nil {
		return err
	}
	known := func(key string, fallback ...string) ([]string, error) {
		if v, ok := e.values[key]; ok {
			return expand(v)
		}
		return fallback, nil
	}
	ssh := filepath.Join(e.home, ".ssh")
	if r.UserKnownHostsFiles, err = known("userknownhostsfile", filepath.Join(ssh, "known_hosts"), filepath.Join(ssh, "known_hosts2")); err != nil {
		return err
	}
	if r.GlobalKnownHostsFiles, err = known("globalknownhostsfile", "/etc/ssh/ssh_known_hosts", "/etc/ssh/ssh_known_hosts2"); err != nil {
		return err
	}
	if revoked, err := known("revokedhostkeys"); err != nil {
		return err
	} else if len(revoked) > 0 {
		r.RevokedHostKeys = revoked[0]
	}
	if r.IdentityAgent, err = e.agentSocket(tokens); err != nil {
		return err
	}
	r.NoAgent = strings.EqualFold(e.first("identityagent"), "none")
	if cmd := e.first("proxycommand"); cmd != "" && !strings.EqualFold(cmd, "none") {
		if r.ProxyCommand, err = expandPercent(cmd, tokens); err != nil {
			return fmt.Errorf("ProxyCommand: %w", err)
		}
	}
	return nil
}

func (e *evaluation) agentSocket(tokens map[byte]string) (string, error) {
	v := e.first("identityagent")
	switch {
	case v == "" || v == "SSH_AUTH_SOCK":
		return os.Getenv("SSH_AUTH_SOCK"), nil
	case strings.EqualFold(v, "none"):
		return "", nil
	case v[0] == '$' && !strings.HasPrefix(v, "${"):
		return os.Getenv(v[1:]), nil
	}
	return e.path(v, tokens)
}
