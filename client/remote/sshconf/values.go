package sshconf

import (
	"crypto/sha1"
	"encoding/hex"
	"fmt"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"
)

// valueParser reads typed values and keeps the first error.
type valueParser struct {
	e   *evaluation
	err error
}

func (p *valueParser) fail(key, format string, args ...any) {
	if p.err == nil {
		p.err = fmt.Errorf("%w: %s %q: %s", ErrConfig, key, p.e.first(key), fmt.Sprintf(format, args...))
	}
}

func (p *valueParser) number(key string, fallback, low, high int) int {
	v := p.e.first(key)
	if v == "" {
		return fallback
	}
	n, err := strconv.Atoi(v)
	if err != nil || n < low || n > high {
		p.fail(key, "not a number between %d and %d", low, high)
		return fallback
	}
	return n
}

func (p *valueParser) choice(key, fallback string, values map[string]string) string {
	v := p.e.first(key)
	if v == "" {
		return fallback
	}
	if out, ok := values[strings.ToLower(v)]; ok {
		return out
	}
	p.fail(key, "not a value it has")
	return fallback
}

func (p *valueParser) flag(key string, fallback bool) bool {
	def := "no"
	if fallback {
		def = "yes"
	}
	return p.choice(key, def, map[string]string{"yes": "yes", "true": "yes", "no": "no", "false": "no"}) == "yes"
}

func (p *valueParser) duration(key string, fallback time.Duration) time.Duration {
	v := p.e.first(key)
	if v == "" || strings.EqualFold(v, "none") {
		return fallback
	}
	d, err := parseTime(v)
	if err != nil {
		p.fail(key, "%v", err)
		return fallback
	}
	return d
}

// agentPolicy reads AddKeysToAgent: yes, no, ask, confirm [time], or a time. "ask" is taken as no: the question would
// need a dialogue that this client does not have.
func (p *valueParser) agentPolicy(key string) (a AgentPolicy) {
	for i, v := range p.e.values[key] {
		switch {
		case strings.EqualFold(v, "no") || strings.EqualFold(v, "false") || strings.EqualFold(v, "ask"):
			return AgentPolicy{}
		case strings.EqualFold(v, "yes") || strings.EqualFold(v, "true"):
			a.Add = true
		case i == 0 && strings.EqualFold(v, "confirm"):
			a.Add, a.Confirm = true, true
		default:
			d, err := parseTime(v)
			if err != nil {
				p.fail(key, "%v", err)
				return AgentPolicy{}
			}
			a.Add, a.Lifetime = true, d
		}
	}
	return a
}

// parseTime reads the times of sshd_config(5): numbers with s, m, h, d, w behind them, added up; no letter is seconds.
func parseTime(s string) (time.Duration, error) {
	var total int64
	rest := s
	for rest != "" {
		i := 0
		for i < len(rest) && rest[i] >= '0' && rest[i] <= '9' {
			i++
		}
		n, err := strconv.ParseInt(rest[:i], 10, 32)
		if err != nil {
			return 0, fmt.Errorf("time %q: not a number with s, m, h, d or w", s)
		}
		unit := int64(1)
		if i < len(rest) {
			switch rest[i] {
			case 's', 'S':
			case 'm', 'M':
				unit = 60
			case 'h', 'H':
				unit = 3600
			case 'd', 'D':
				unit = 86400
			case 'w', 'W':
				unit = 7 * 86400
			default:
				return 0, fmt.Errorf("time %q: not a number with s, m, h, d or w", s)
			}
			i++
		}
		total += n * unit
		if total > 1<<31-1 {
			return 0, fmt.Errorf("time %q: too long", s)
		}
		rest = rest[i:]
	}
	if s == "" {
		return 0, fmt.Errorf("time: empty")
	}
	return time.Duration(total) * time.Second, nil
}

// tokens are the %-letters of TOKENS in ssh_config(5).
func (e *evaluation) tokens(r *Resolved) map[byte]string {
	key := r.HostKeyAlias
	if key == "" {
		key = e.target.Host
	}
	jump := ""
	if len(r.ProxyJump) > 0 {
		jump = e.first("proxyjump")
	}
	short, _, _ := strings.Cut(e.localHost, ".")
	port := strconv.Itoa(r.Port)
	sum := sha1.Sum([]byte(e.localHost + r.HostName + port + r.User + jump))
	return map[byte]string{
		'C': hex.EncodeToString(sum[:]), 'd': e.home, 'h': r.HostName, 'i': e.uid, 'j': jump, 'k': key, 'L': short,
		'l': e.localHost, 'n': e.target.Host, 'p': port, 'r': r.User, 'u': e.localUser,
	}
}

func expandPercent(s string, tokens map[byte]string) (string, error) {
	if !strings.Contains(s, "%") {
		return s, nil
	}
	var out strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != '%' {
			out.WriteByte(s[i])
			continue
		}
		i++
		if i == len(s) {
			return "", fmt.Errorf("%q: ends in %%", s)
		}
		if s[i] == '%' {
			out.WriteByte('%')
			continue
		}
		v, ok := tokens[s[i]]
		if !ok {
			return "", fmt.Errorf("%q: unknown token %%%c", s, s[i])
		}
		out.WriteString(v)
	}
	return out.String(), nil
}

// path expands ~, %-tokens and ${VARIABLE}; what a token or variable stands for is not expanded again.
func (e *evaluation) path(s string, tokens map[byte]string) (string, error) {
	s, err := e.tilde(s)
	if err != nil {
		return "", err
	}
	var out strings.Builder
	for {
		i := strings.Index(s, "${")
		if i < 0 {
			break
		}
		end := strings.IndexByte(s[i:], '}')
		if end < 0 {
			return "", fmt.Errorf("%q: ${ without }", s)
		}
		head, err := expandPercent(s[:i], tokens)
		if err != nil {
			return "", err
		}
		name := s[i+2 : i+end]
		v, ok := os.LookupEnv(name)
		if !ok {
			return "", fmt.Errorf("environment variable %s: not set", name)
		}
		out.WriteString(head)
		out.WriteString(v)
		s = s[i+end+1:]
	}
	tail, err := expandPercent(s, tokens)
	if err != nil {
		return "", err
	}
	return out.String() + tail, nil
}

func (e *evaluation) tilde(s string) (string, error) {
	if !strings.HasPrefix(s, "~") {
		return s, nil
	}
	name, rest, _ := strings.Cut(s[1:], "/")
	dir := e.home
	if name != "" {
		u, err := user.Lookup(name)
		if err != nil {
			return "", fmt.Errorf("%q: %w", s, err)
		}
		dir = u.HomeDir
	}
	return filepath.Join(dir, rest), nil
}

func splitList(s string) []string {
	var out []string
	for _, w := range strings.Split(s, ",") {
		if w = strings.TrimSpace(w); w != "" {
			out = append(out, w)
		}
	}
	return out
}

// algorithms applies the five lists of algorithms to what golang.org/x/crypto implements.
func (e *evaluation) algorithms(r *Resolved) error {
	good, weak := ssh.SupportedAlgorithms(), ssh.InsecureAlgorithms()
	withCerts := func(list []string) []string {
		var out []string
		for _, a := range list {
			if c := certAlgorithm(a); c != "" {
				out = append(out, c)
			}
		}
		return append(out, list...)
	}
	for _, l := range []struct {
		key        string
		into       *[]string
		good, weak []string
	}{
		{"hostkeyalgorithms", &r.HostKeyAlgorithms, good.HostKeys, weak.HostKeys},
		{"kexalgorithms", &r.KexAlgorithms, good.KeyExchanges, weak.KeyExchanges},
		{"ciphers", &r.Ciphers, good.Ciphers, weak.Ciphers},
		{"macs", &r.MACs, good.MACs, weak.MACs},
		{"pubkeyacceptedalgorithms", &r.PubkeyAcceptedAlgorithms, withCerts(good.PublicKeyAuths), withCerts(weak.PublicKeyAuths)},
	} {
		spec := e.first(l.key)
		if spec == "" {
			continue
		}
		list, err := chooseAlgorithms(spec, l.good, l.weak)
		if err != nil {
			return fmt.Errorf("%s: %w", l.key, err)
		}
		*l.into = list
		if l.key == "hostkeyalgorithms" {
			r.HostKeysRelative = spec[0] == '+' || spec[0] == '-'
		}
	}
	return nil
}

// chooseAlgorithms applies an ssh list (with + to append, - to remove, ^ to prefer) to the algorithms on by default
// (good) and those that must be asked for (weak). Names nobody implements here are passed over, as long as one remains.
func chooseAlgorithms(spec string, good, weak []string) ([]string, error) {
	mode := byte(0)
	if strings.IndexByte("+-^", spec[0]) >= 0 {
		mode, spec = spec[0], spec[1:]
	}
	all := append(append([]string{}, good...), weak...)
	var named []string
	for _, p := range splitList(spec) {
		for _, a := range all {
			if wildcard(p, a) && !slices.Contains(named, a) {
				named = append(named, a)
			}
		}
	}
	var out []string
	switch mode {
	case 0:
		out = named
	case '+':
		out = append(append(out, good...), without(named, good)...)
	case '^':
		out = append(append(out, named...), without(good, named)...)
	case '-':
		out = without(good, named)
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("%q: none of these is implemented here; there are %s", spec, strings.Join(good, ","))
	}
	return out, nil
}

func without(list, drop []string) []string {
	var out []string
	for _, v := range list {
		if !slices.Contains(drop, v) {
			out = append(out, v)
		}
	}
	return out
}

// SignatureAlgorithms are those that a key or certificate may sign with, best first; RSA with SHA-1 only if the configuration
// names it.
func (r *Resolved) SignatureAlgorithms(pub ssh.PublicKey) []string {
	accepted := r.PubkeyAcceptedAlgorithms
	named := func(algo string) string { return algo }
	if cert, ok := pub.(*ssh.Certificate); ok {
		pub, named = cert.Key, certAlgorithm
	}
	algos := []string{pub.Type()}
	if pub.Type() == ssh.KeyAlgoRSA {
		algos = []string{ssh.KeyAlgoRSASHA512, ssh.KeyAlgoRSASHA256}
		if slices.Contains(accepted, named(ssh.KeyAlgoRSA)) {
			algos = append(algos, ssh.KeyAlgoRSA)
		}
	}
	if accepted == nil {
		return algos
	}
	return slices.DeleteFunc(algos, func(a string) bool { return !slices.Contains(accepted, named(a)) })
}

// certAlgorithm is the algorithm of certificates for keys of the given algorithm; "" if there is none.
func certAlgorithm(algo string) string {
	switch algo {
	case ssh.KeyAlgoRSA, ssh.KeyAlgoRSASHA256, ssh.KeyAlgoRSASHA512, ssh.KeyAlgoED25519,
		ssh.KeyAlgoECDSA256, ssh.KeyAlgoECDSA384, ssh.KeyAlgoECDSA521:
		return algo + "-cert-v01@openssh.com"
	case ssh.KeyAlgoSKED25519, ssh.KeyAlgoSKECDSA256:
		return strings.TrimSuffix(algo, "@openssh.com") + "-cert-v01@openssh.com"
	}
	return ""
}

// ParseHostPort reads HOST, HOST:PORT, [ADDRESS]:PORT, [ADDRESS] and a bare IPv6 address; port 0 means none was given.
// It refuses what could not be a host: empty, with blanks or shell characters, or beginning with '-'.
func ParseHostPort(s string) (host string, port int, err error) {
	host = s
	digits, given := "", false
	if strings.HasPrefix(s, "[") {
		end := strings.IndexByte(s, ']')
		if end < 0 {
			return "", 0, fmt.Errorf("host %q: [ without ]", s)
		}
		host = s[1:end]
		if ip, _, _ := strings.Cut(host, "%"); net.ParseIP(ip) == nil {
			return "", 0, fmt.Errorf("host %q: what is in brackets is not an address", s)
		}
		switch rest := s[end+1:]; {
		case rest == "":
		case rest[0] == ':':
			digits, given = rest[1:], true
		default:
			return "", 0, fmt.Errorf("host %q: only :PORT may follow ]", s)
		}
	} else if strings.Count(s, ":") == 1 {
		host, digits, given = strings.Cut(s, ":")
	} else if ip, _, _ := strings.Cut(s, "%"); strings.Contains(s, ":") && net.ParseIP(ip) == nil {
		return "", 0, fmt.Errorf("host %q: not HOST:PORT, and not an IPv6 address", s)
	}
	if given {
		if port, err = parsePort(digits); err != nil {
			return "", 0, fmt.Errorf("host %q: %w", s, err)
		}
	}
	if err := checkHostName(host); err != nil {
		return "", 0, err
	}
	return host, port, nil
}

func parsePort(s string) (int, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("port %q: not a number between 1 and 65535", s)
	}
	return int(n), nil
}

// checkHostName refuses names that a shell or an option parser behind ProxyCommand could take for something else.
func checkHostName(s string) error {
	if s == "" {
		return fmt.Errorf("%w: host: empty", ErrConfig)
	}
	if s[0] == '-' {
		return fmt.Errorf("%w: host %q: begins with '-'", ErrConfig, s)
	}
	for _, c := range s {
		if c <= ' ' || c == 0x7f || strings.ContainsRune("'`\"$\\;&<>|(){}@/,[]*?!", c) {
			return fmt.Errorf("%w: host %q: %q cannot be part of a name", ErrConfig, s, c)
		}
	}
	return nil
}

func checkUserName(s string) error {
	if s == "" {
		return fmt.Errorf("%w: user: empty", ErrConfig)
	}
	if s[0] == '-' {
		return fmt.Errorf("%w: user %q: begins with '-'", ErrConfig, s)
	}
	for i, c := range s {
		if c < ' ' || c == 0x7f || strings.ContainsRune("'`\";&<>|(){}", c) || c == '\\' && i == len(s)-1 {
			return fmt.Errorf("%w: user %q: %q cannot be part of a name", ErrConfig, s, c)
		}
	}
	return nil
}

// MaxHops bounds a chain of jump hosts.
const MaxHops = 8

// parseJump reads ProxyJump: [user@]host[:port] or ssh://[user@]host[:port], separated by commas; "none" is no hop.
func parseJump(s string) ([]Hop, error) {
	if s == "" || strings.EqualFold(s, "none") {
		return nil, nil
	}
	var hops []Hop
	for _, part := range strings.Split(s, ",") {
		rest := strings.TrimSpace(part)
		rest = strings.TrimSuffix(strings.TrimPrefix(rest, "ssh://"), "/")
		var h Hop
		if i := strings.LastIndexByte(rest, '@'); i >= 0 {
			h.User, rest = rest[:i], rest[i+1:]
			if err := checkUserName(h.User); err != nil {
				return nil, fmt.Errorf("proxyjump %q: %w", s, err)
			}
		}
		var err error
		if h.Host, h.Port, err = ParseHostPort(rest); err != nil {
			return nil, fmt.Errorf("proxyjump %q: %w", s, err)
		}
		hops = append(hops, h)
	}
	if len(hops) > MaxHops {
		return nil, fmt.Errorf("proxyjump %q: more than %d hops", s, MaxHops)
	}
	return hops, nil
}
