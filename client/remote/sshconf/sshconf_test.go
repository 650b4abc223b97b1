package sshconf

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"isr/client/remote/sshdtest"
)

// oracle is what `ssh -G` makes of a configuration: keyword → values in order.
func oracle(t interface {
	Helper()
	Fatalf(string, ...any)
}, dir, host string, args ...string) (map[string][]string, error) {
	t.Helper()
	cmd := exec.Command("ssh", append(append([]string{"-G", "-F", filepath.Join(dir, "config")}, args...), host)...)
	cmd.Env = append(os.Environ(), "SSHTEST=fromenv")
	var errs strings.Builder
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%w: %s", err, errs.String())
	}
	m := map[string][]string{}
	for _, line := range strings.Split(string(out), "\n") {
		k, v, _ := strings.Cut(line, " ")
		m[k] = append(m[k], v)
	}
	return m, nil
}

// resolvedLikeG gives the same view of what Resolve came to: values as they stand before ~ and % are expanded.
func resolvedLikeG(target Target) (map[string][]string, Resolved, error) {
	e, err := newEvaluation(target)
	if err != nil {
		return nil, Resolved{}, err
	}
	if err := e.run(); err != nil {
		return nil, Resolved{}, err
	}
	r, err := e.resolved()
	if err != nil {
		return nil, r, err
	}
	yes := map[bool]string{true: "yes", false: "no"}
	one := func(s string) []string { return []string{s} }
	m := map[string][]string{
		"hostname": one(r.HostName), "port": one(fmt.Sprint(r.Port)), "user": one(r.User),
		"hashknownhosts": one(yes[r.HashKnownHosts]), "identitiesonly": one(yes[r.IdentitiesOnly]),
		"addressfamily": one(r.AddressFamily), "connectionattempts": one(fmt.Sprint(r.ConnectionAttempts)),
		"numberofpasswordprompts":          one(fmt.Sprint(r.NumberOfPasswordPrompts)),
		"passwordauthentication":           one(yes[r.PasswordAuthentication]),
		"kbdinteractiveauthentication":     one(yes[r.KbdInteractive]),
		"nohostauthenticationforlocalhost": one(yes[r.NoHostAuthLocalhost]),
		"serveralivecountmax":              one(fmt.Sprint(r.ServerAliveCountMax)),
		"stricthostkeychecking":            one(map[string]string{"yes": "true", "no": "false"}[r.StrictHostKeyChecking]),
		"pubkeyauthentication":             one(map[bool]string{true: "true", false: "false"}[r.PubkeyAuthentication]),
		"userknownhostsfile":               one("~/.ssh/known_hosts ~/.ssh/known_hosts2"),
		"globalknownhostsfile":             one("/etc/ssh/ssh_known_hosts /etc/ssh/ssh_known_hosts2"),
		"serveraliveinterval":              one("0"),
		"connecttimeout":                   one("none"),
	}
	if m["stricthostkeychecking"][0] == "" {
		m["stricthostkeychecking"][0] = r.StrictHostKeyChecking
	}
	if e.first("serveraliveinterval") != "" {
		m["serveraliveinterval"] = one(fmt.Sprint(int(r.ServerAliveInterval / time.Second)))
	}
	if v := e.first("connecttimeout"); v != "" && v != "none" {
		m["connecttimeout"] = one(fmt.Sprint(int(r.ConnectTimeout / time.Second)))
	}
	for _, k := range []string{"userknownhostsfile", "globalknownhostsfile"} {
		if v, ok := e.values[k]; ok {
			m[k] = one(strings.Join(v, " "))
		}
	}
	if r.HostKeyAlias != "" {
		m["hostkeyalias"] = one(r.HostKeyAlias)
	}
	if v := e.first("identityagent"); v != "" {
		m["identityagent"] = one(v)
		if v[0] == '~' {
			m["identityagent"] = one(r.IdentityAgent)
		}
	}
	for _, k := range []string{"bindaddress", "preferredauthentications", "revokedhostkeys"} {
		if v := e.first(k); v != "" {
			m[k] = one(v)
		}
	}
	if v := e.first("proxycommand"); v != "" && v != "none" {
		m["proxycommand"] = one(v)
	}
	if len(r.ProxyJump) > 0 {
		var hops []string
		for _, h := range r.ProxyJump {
			hops = append(hops, h.String())
		}
		m["proxyjump"] = one(strings.Join(hops, ","))
	}
	m["identityfile"] = e.identities
	m["certificatefile"] = e.certificates
	return m, r, nil
}

var defaultsOfG = []string{"~/.ssh/id_rsa", "~/.ssh/id_ecdsa", "~/.ssh/id_ecdsa_sk", "~/.ssh/id_ed25519", "~/.ssh/id_ed25519_sk",
	"~/.ssh/id_xmss", "~/.ssh/id_dsa"}

func compareWithG(got, want map[string][]string) (diffs []string) {
	for k, v := range got {
		w := want[k]
		switch {
		case k == "identityfile" && len(v) == 0:
			v = defaultsOfG
		case k == "userknownhostsfile":
			home, _ := os.UserHomeDir()
			for i := range w {
				w[i] = strings.ReplaceAll(w[i], home+"/", "~/")
			}
		case k == "proxyjump" && len(w) == 1:
			if hops, err := parseJump(w[0]); err == nil {
				var s []string
				for _, h := range hops {
					s = append(s, h.String())
				}
				w = []string{strings.Join(s, ",")}
			}
		}
		if len(v) == 0 && len(w) == 0 {
			continue
		}
		if !slices.Equal(v, w) {
			diffs = append(diffs, fmt.Sprintf("%s: got %q, ssh -G says %q", k, v, w))
		}
	}
	for _, k := range []string{"proxycommand", "proxyjump", "hostkeyalias", "identityagent", "bindaddress"} {
		if len(want[k]) > 0 && len(got[k]) == 0 && want[k][0] != "none" {
			diffs = append(diffs, fmt.Sprintf("%s: got nothing, ssh -G says %q", k, want[k]))
		}
	}
	slices.Sort(diffs)
	return diffs
}

func TestResolveAsSSHDoes(t *testing.T) {
	sshdtest.Require(t, "ssh")
	t.Setenv("SSHTEST", "fromenv")
	t.Setenv("SHELL", "/bin/sh")
	for _, c := range []struct {
		name, config string
		more         map[string]string // further files
		host         string
		args         []string
		target       Target
	}{
		{name: "nothing", host: "example.org"},
		{name: "upper case", host: "Example.ORG"},
		{name: "address", host: "192.0.2.7"},
		{name: "ipv6", host: "2001:db8::1"},
		{name: "alias", config: "Host srv\n HostName server.example.org\n Port 2222\n User alice\n", host: "srv"},
		{name: "alias of another", config: "Host srv\n HostName server.example.org\n Port 2222\n", host: "srvx"},
		{name: "percent h", config: "HostName %h.example.org\n", host: "srv"},
		{name: "percent percent", config: "HostName a%%b\n", host: "srv"},
		{name: "first wins", config: "Host a*\n Port 1\nHost *\n Port 2\n User u\n", host: "abc"},
		{name: "question mark is one", config: "Host a?\n Port 1\nHost a??\n Port 2\n", host: "a"},
		{name: "question mark", config: "Host a?\n Port 1\nHost a??\n Port 2\n", host: "abc"},
		{name: "negated", config: "Host *.org !bad.org\n Port 1\n", host: "bad.org"},
		{name: "negated first", config: "Host !bad.org *.org\n Port 1\n", host: "good.org"},
		{name: "only negated", config: "Host !bad.org\n Port 1\n", host: "good.org"},
		{name: "tabs", config: "Host\ta\tb\n\tPort\t7\n", host: "b"},
		{name: "equals", config: "Host=a\nPort = 7\nUser=x\nHashKnownHosts =yes\n", host: "a"},
		{name: "quotes", config: "Host \"a\"\nIdentityFile \"my key\"\nIdentityFile 'his key'\nIdentityFile her\\ key\nIdentityFile pa\"rt ly\"x\n", host: "a"},
		{name: "escaped quotes", config: `IdentityFile "a\"b\\c"` + "\n" + `IdentityFile a\b` + "\n", host: "a"},
		{name: "comments", config: "# c\n  # c\nHost a # all of it\n Port 7 # seven\nIdentityFile k#1 #2\n", host: "a"},
		{name: "crlf", config: "Host a\r\n Port 7\r\nUser x \r\n", host: "a"},
		{name: "no newline at end", config: "Host a\n Port 7", host: "a"},
		{name: "case of keywords", config: "hOST a\n pORT 7\nSTRICTHOSTKEYCHECKING Accept-New\n", host: "a"},
		{name: "case of hosts", config: "Host A\n Port 7\nHost a\n Port 8\nMatch originalhost A\n User u\n", host: "a"},
		{name: "port typed", config: "Port 7\n", host: "a", args: []string{"-p", "9"}, target: Target{Port: 9}},
		{name: "user typed", config: "User x\nMatch user typed\n Port 7\n", host: "a", args: []string{"-l", "typed"}, target: Target{User: "typed"}},
		{name: "options", config: "Port 7\nHashKnownHosts no\n", host: "a", args: []string{"-o", "Port=8", "-o", "HashKnownHosts yes"},
			target: Target{Options: map[string]string{"Port": "8", "hashknownhosts": "yes"}}},
		{name: "identities add up", config: "Host a\n IdentityFile ~/x\nHost *\n IdentityFile ~/y\n IdentityFile ~/x\n IdentityFile %d/%h/%r-%u\n", host: "a"},
		{name: "identities of options first", config: "IdentityFile ~/y\n", host: "a", args: []string{"-o", "IdentityFile=~/z"},
			target: Target{Options: map[string]string{"IdentityFile": "~/z"}}},
		{name: "certificates", config: "CertificateFile ~/x-cert.pub\nCertificateFile ${SSHTEST}/c\nIdentitiesOnly yes\n", host: "a"},
		{name: "known hosts", config: "UserKnownHostsFile ~/a \"b c\"\nGlobalKnownHostsFile /x /y\nHostKeyAlias other\n", host: "a"},
		{name: "known hosts none", config: "UserKnownHostsFile none\n", host: "a"},
		{name: "strict yes", config: "StrictHostKeyChecking yes\n", host: "a"},
		{name: "strict off", config: "StrictHostKeyChecking off\n", host: "a"},
		{name: "strict ask", config: "StrictHostKeyChecking ask\n", host: "a"},
		{name: "times", config: "ConnectTimeout 1m30s\nServerAliveInterval 2m\nServerAliveCountMax 7\nConnectionAttempts 4\n", host: "a"},
		{name: "agent", config: "IdentityAgent ~/sock\n", host: "a"},
		{name: "agent variable", config: "IdentityAgent $SOCK\n", host: "a"},
		{name: "authentication", config: "PubkeyAuthentication no\nPasswordAuthentication no\nChallengeResponseAuthentication no\nPreferredAuthentications password,publickey\nNumberOfPasswordPrompts 1\n", host: "a"},
		{name: "family", config: "AddressFamily inet6\nBindAddress ::1\n", host: "a"},
		{name: "jump", config: "ProxyJump gate\n", host: "a"},
		{name: "jumps", config: "ProxyJump ann@gate:2200,[::1]:22,ssh://bob@inner:7\n", host: "a"},
		{name: "jump none", config: "Host a\n ProxyJump none\nHost *\n ProxyJump gate\n", host: "a"},
		{name: "jump before command", config: "ProxyJump gate\nProxyCommand nc %h %p\n", host: "a"},
		{name: "command before jump", config: "ProxyCommand nc -x '#1' \"%h\" %p # kept\nProxyJump gate\n", host: "a"},
		{name: "command none", config: "Host a\n ProxyCommand none\nHost *\n ProxyCommand nc %h %p\n", host: "a"},
		{name: "jump none before command", config: "ProxyJump none\nProxyCommand nc %h %p\nProxyJump gate\n", host: "a"},
		{name: "command none before jump", config: "ProxyCommand none\nProxyJump gate\n", host: "a"},
		{name: "include", config: "Include %DIR%/more\nPort 9\n", more: map[string]string{"more": "User inc\nHost b\n Port 7\n"}, host: "a"},
		{name: "include does not end a block", config: "Host a\n Include %DIR%/more\n Port 9\n", more: map[string]string{"more": "Host zzz\n User no\n"}, host: "a"},
		{name: "include in a block not for us", config: "Host b\n Include %DIR%/more\nHost *\n Port 9\n", more: map[string]string{"more": "User no\nHost *\n Port 7\nMatch all\n Port 6\n"}, host: "a"},
		{name: "include globs in order", config: "Include %DIR%/d/*.conf %DIR%/nosuch\n", more: map[string]string{"d/2.conf": "Port 2\n", "d/1.conf": "Port 1\n", "d/0.txt": "Port 3\n"}, host: "a"},
		{name: "include deep", config: "Include %DIR%/1\n", more: map[string]string{"1": "Include %DIR%/2\n", "2": "Include %DIR%/3\n", "3": "Port 3\n"}, host: "a"},
		{name: "match all", config: "Host b\n Port 1\nMatch all\n Port 2\n", host: "a"},
		{name: "match host", config: "Match host a,b\n Port 1\n", host: "b"},
		{name: "match host is what it resolves to", config: "Host a\n HostName real.org\nMatch host a\n Port 1\nMatch host real.*\n Port 2\n", host: "a"},
		{name: "match originalhost", config: "Host a\n HostName real.org\nMatch originalhost a\n Port 1\n", host: "a"},
		{name: "match and", config: "Match host a user bob\n Port 1\nMatch host a !user bob\n Port 2\n", host: "a"},
		{name: "match user from file", config: "User bob\nMatch user bob\n Port 1\n", host: "a"},
		{name: "match not", config: "Match !host a\n Port 1\nMatch !host b\n Port 2\n", host: "a"},
		{name: "match list negated", config: "Match host *.org,!x.org\n Port 1\n", host: "x.org"},
		{name: "match localuser", config: "Match localuser nobodyatall\n Port 1\nMatch localuser *\n Port 2\n", host: "a"},
		{name: "match final", config: "Match final host a.org\n Port 1\nHost a\n HostName a.org\nHost a.org\n User again\n", host: "a"},
		{name: "match final all", config: "Match final all\n Port 1\nHost *\n HostName %h.org\nMatch host *.org.org\n User twice\n", host: "a"},
		{name: "match final in lower case", config: "Host a\n Port 1\nMatch final\n User x\n", host: "A"},
		{name: "match canonical", config: "Match canonical all\n Port 1\n", host: "a"},
		{name: "match not canonical", config: "Match !canonical host a\n Port 1\n", host: "a"},
		{name: "match exec", config: "Match exec \"test %h = a\"\n Port 1\n", host: "a"},
		{name: "match exec fails", config: "Match exec \"test %n = b\"\n Port 1\nMatch host b exec \"false\"\n Port 3\n", host: "a"},
		{name: "match equals", config: "Match host=a\n Port 1\n", host: "a"},
		{name: "match quoted", config: "Match host \"a,b\"\n Port 1\n", host: "a"},
		{name: "host key aliases", config: "HostKeyAlias Other\nCheckHostIP no\nRevokedHostKeys /r\n", host: "a"},
		{name: "unrelated settings", config: "SendEnv LANG LC_*\nForwardAgent yes\nLocalForward 1 x:2\nCompression yes\nPort 5\n", host: "a"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			for name, text := range c.more {
				sshdtest.Write(t, filepath.Join(dir, name), strings.ReplaceAll(text, "%DIR%", dir))
			}
			sshdtest.Write(t, filepath.Join(dir, "config"), strings.ReplaceAll(c.config, "%DIR%", dir))
			want, err := oracle(t, dir, c.host, c.args...)
			if err != nil {
				t.Fatalf("ssh -G: %v", err)
			}
			target := c.target
			target.Host, target.ConfigFile = c.host, filepath.Join(dir, "config")
			got, _, err := resolvedLikeG(target)
			if err != nil {
				t.Fatalf("Resolve: %v; ssh -G has no error", err)
			}
			for _, d := range compareWithG(got, want) {
				t.Error(d)
			}
		})
	}
}

// What ssh refuses to read, we refuse; the error names file and line.
func TestResolveErrorsAsSSH(t *testing.T) {
	sshdtest.Require(t, "ssh")
	for _, c := range []struct{ name, config, want string }{
		{"no argument", "Host a\nPort\n", "config line 2"},
		{"open quote", "User \"x\n", "config line 1"},
		{"port", "Port twenty\n", "port"},
		{"port 0", "Port 0\n", "port"},
		{"port too high", "Port 65536\n", "port"},
		{"flag", "HashKnownHosts perhaps\n", "hashknownhosts"},
		{"strict", "StrictHostKeyChecking perhaps\n", "stricthostkeychecking"},
		{"family", "AddressFamily inet5\n", "addressfamily"},
		{"time", "ConnectTimeout 5x\n", "connecttimeout"},
		{"match alone", "Match\n", "config line 1"},
		{"match host alone", "Match host\n", "config line 1"},
		{"match all and more", "Match all host a\n", "config line 1"},
		{"include itself", "Include %DIR%/config\n", "16 levels"},
		{"jump", "ProxyJump a:b:c:d\n", "proxyjump"},
		{"hostname token", "HostName %z\n", "%z"},
		{"kex", "KexAlgorithms nosuch\n", "kexalgorithms"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			sshdtest.Write(t, filepath.Join(dir, "config"), strings.ReplaceAll(c.config, "%DIR%", dir))
			if out, err := oracle(t, dir, "a"); err == nil {
				t.Errorf("ssh -G accepts it: %v", out)
			}
			_, err := Resolve(Target{Host: "a", ConfigFile: filepath.Join(dir, "config")})
			if !errors.Is(err, ErrConfig) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want ErrConfig about %q", err, c.want)
			}
		})
	}
}

// Random configurations against ssh -G.
func TestResolveProperty(t *testing.T) {
	sshdtest.Require(t, "ssh")
	dir := t.TempDir()
	t.Setenv("SHELL", "/bin/sh")
	pick := func(rt *rapid.T, label string, of ...string) string { return rapid.SampledFrom(of).Draw(rt, label) }
	pattern := func(rt *rapid.T) string {
		return pick(rt, "not", "", "", "", "!") + pick(rt, "pattern", "a", "b", "ab", "a?", "?", "*", "a*", "*b", "*.org", "a.org", "web?.org", "*e*1*", "A", "\"a\"", "web1.org")
	}
	list := func(rt *rapid.T, sep string, of func(*rapid.T) string) string {
		var s []string
		for range rapid.IntRange(1, 3).Draw(rt, "n") {
			s = append(s, of(rt))
		}
		return strings.Join(s, sep)
	}
	bare := func(rt *rapid.T) string { return strings.ReplaceAll(pattern(rt), "\"", "") }
	users := func(rt *rapid.T) string { return pick(rt, "user", "ann", "bob", "b*", "!ann", "?ob", "root") }
	criterion := func(rt *rapid.T) string {
		not := pick(rt, "not", "", "", "!")
		switch rapid.IntRange(0, 5).Draw(rt, "criterion") {
		case 0:
			return not + "host " + list(rt, ",", bare)
		case 1:
			return not + "originalhost " + list(rt, ",", bare)
		case 2:
			return not + "user " + list(rt, ",", users)
		case 3:
			return not + "localuser " + list(rt, ",", users)
		case 4:
			return not + "canonical"
		}
		return not + "final"
	}
	setting := func(rt *rapid.T) string {
		eq := pick(rt, "eq", " ", "=", " = ", "\t")
		kv := func(k string, v ...string) string { return k + eq + pick(rt, k, v...) }
		switch rapid.IntRange(0, 13).Draw(rt, "setting") {
		case 0:
			return kv("Port", "1", "22", "2222", "65535")
		case 1:
			return kv("User", "ann", "bob", "\"carl\"")
		case 2:
			return kv("HostName", "a", "b.org", "%h.org", "web1.org", "10.0.0.1")
		case 3:
			return kv("IdentityFile", "~/k1", "~/k2", "\"a b\"", "'c # d'", "k#3", "none", "%d/x-%r")
		case 4:
			return kv("IdentitiesOnly", "yes", "no", "YES", "true")
		case 5:
			return kv("StrictHostKeyChecking", "yes", "no", "ask", "accept-new", "off")
		case 6:
			return kv("UserKnownHostsFile", "/a", "/a /b", "\"/a b\" '/c' # x", "none")
		case 7:
			return kv("ProxyJump", "none", "gate", "ann@gate:7", "gate,b:9,inner")
		case 8:
			return kv("ProxyCommand", "none", "nc %h %p", "x '#' \"%r\" # y", "exec y=z")
		case 9:
			return kv("HostKeyAlias", "x", "Y")
		case 10:
			return kv("ConnectTimeout", "5", "1m", "2h3s")
		case 11:
			return kv("ServerAliveInterval", "0", "5", "1m")
		case 12:
			return kv("CertificateFile", "~/c1", "c2")
		}
		return kv("HashKnownHosts", "yes", "no") + pick(rt, "comment", "", " # why", "\t#")
	}
	body := func(rt *rapid.T, include string) string {
		var b strings.Builder
		for range rapid.IntRange(0, 9).Draw(rt, "lines") {
			b.WriteString(pick(rt, "indent", "", "  ", "\t"))
			switch rapid.IntRange(0, 9).Draw(rt, "line") {
			case 0, 1:
				b.WriteString("Host " + list(rt, pick(rt, "sep", " ", "\t", "  "), pattern))
			case 2, 3:
				if rapid.IntRange(0, 5).Draw(rt, "all") == 0 {
					b.WriteString("Match all")
				} else {
					b.WriteString(pick(rt, "match", "Match ", "match\t", "MATCH=") + list(rt, " ", criterion))
				}
			case 4:
				b.WriteString(include)
			case 5:
				b.WriteString("# Host a")
			default:
				b.WriteString(setting(rt))
			}
			b.WriteString(pick(rt, "end", "\n", "\n", "\n\n", "\r\n", " \n"))
		}
		return b.String()
	}
	rapid.Check(t, func(rt *rapid.T) {
		config := body(rt, "Include "+dir+"/inc*")
		sshdtest.Write(t, filepath.Join(dir, "config"), config)
		sshdtest.Write(t, filepath.Join(dir, "inc1"), body(rt, "Port 4"))
		sshdtest.Write(t, filepath.Join(dir, "inc2"), body(rt, "Port 5"))
		host := pick(rt, "host", "a", "b", "ab", "A", "a.org", "web1.org", "b.org")
		target := Target{Host: host, ConfigFile: filepath.Join(dir, "config")}
		var args []string
		if rapid.Bool().Draw(rt, "typed") {
			target.User = "bob"
			args = []string{"-l", "bob"}
		}
		want, wantErr := oracle(rt, dir, host, args...)
		got, _, err := resolvedLikeG(target)
		if (err == nil) != (wantErr == nil) {
			rt.Fatalf("got error %v, ssh -G %v\n%s", err, wantErr, config)
		}
		if err != nil {
			return
		}
		if diffs := compareWithG(got, want); len(diffs) > 0 {
			one, _ := os.ReadFile(filepath.Join(dir, "inc1"))
			two, _ := os.ReadFile(filepath.Join(dir, "inc2"))
			rt.Fatalf("%s\n-- config\n%s-- inc1\n%s-- inc2\n%s", strings.Join(diffs, "\n"), config, one, two)
		}
	})
}

func TestResolveExpandsPaths(t *testing.T) {
	home := t.TempDir()
	t.Setenv("SSHTEST", "fromenv")
	t.Setenv("SSH_AUTH_SOCK", "/run/from-env")
	t.Setenv("OTHER_SOCK", "/run/other")
	sshdtest.Write(t, filepath.Join(home, ".ssh", "config"), `Include sub/*.conf
Host srv
 HostName %h.example.org
 Port 2222
 User alice
 IdentityFile ~/keys/%h-%n-%p-%r
 IdentityFile ${SSHTEST}/k
 IdentityFile %d/100%%
 ProxyCommand nc %h %p %r %%
 UserKnownHostsFile ~/kh none
Host agent
 IdentityAgent $OTHER_SOCK
Host noagent
 IdentityAgent none
Host sock
 IdentityAgent ~/%r.sock
 User u
`)
	sshdtest.Write(t, filepath.Join(home, ".ssh", "sub", "a.conf"), "HashKnownHosts yes\n")
	r, err := Resolve(Target{Host: "srv", Home: home})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{home + "/keys/srv.example.org-srv-2222-alice", "fromenv/k", home + "/100%"}
	if !slices.Equal(r.IdentityFiles, want) {
		t.Errorf("identities: got %q, want %q", r.IdentityFiles, want)
	}
	if want := "nc srv.example.org 2222 alice %"; r.ProxyCommand != want {
		t.Errorf("proxy command: got %q, want %q", r.ProxyCommand, want)
	}
	if want := []string{home + "/kh"}; !slices.Equal(r.UserKnownHostsFiles, want) {
		t.Errorf("known hosts: got %q, want %q", r.UserKnownHostsFiles, want)
	}
	if !r.HashKnownHosts {
		t.Error("a relative include was not found in Home/.ssh")
	}
	for host, want := range map[string]string{"srv": "/run/from-env", "agent": "/run/other", "noagent": "", "sock": home + "/u.sock"} {
		r, err := Resolve(Target{Host: host, Home: home})
		if err != nil || r.IdentityAgent != want {
			t.Errorf("agent of %s: got %q, %v; want %q", host, r.IdentityAgent, err, want)
		}
	}
	r, err = Resolve(Target{Host: "other", Home: home, ConfigFile: "none"})
	if err != nil {
		t.Fatal(err)
	}
	if r.IdentityFiles[3] != home+"/.ssh/id_ed25519" || r.UserKnownHostsFiles[0] != home+"/.ssh/known_hosts" || r.HashKnownHosts {
		t.Errorf("defaults: got %q, %q, %v", r.IdentityFiles, r.UserKnownHostsFiles, r.HashKnownHosts)
	}
	if r.ServerAliveInterval != 15*time.Second || r.ServerAliveCountMax != 3 || r.ConnectTimeout != 30*time.Second {
		t.Errorf("times: got %v x %d, %v", r.ServerAliveInterval, r.ServerAliveCountMax, r.ConnectTimeout)
	}
	sshdtest.Write(t, filepath.Join(home, ".ssh", "config"), "IdentityFile ${SSHTEST_UNSET}/k\n")
	if _, err := Resolve(Target{Host: "srv", Home: home}); !errors.Is(err, ErrConfig) || !strings.Contains(err.Error(), "SSHTEST_UNSET") {
		t.Errorf("unset variable: got %v, want ErrConfig naming it", err)
	}
}

func TestResolveRefusesWritableConfig(t *testing.T) {
	home := t.TempDir()
	file := filepath.Join(home, ".ssh", "config")
	sshdtest.Write(t, file, "Port 7\n")
	os.Chmod(file, 0o664)
	if _, err := Resolve(Target{Host: "a", Home: home}); !errors.Is(err, ErrConfig) || !strings.Contains(err.Error(), file) {
		t.Errorf("got %v, want ErrConfig naming the file", err)
	}
	if r, err := Resolve(Target{Host: "a", Home: home, ConfigFile: file}); err != nil || r.Port != 7 {
		t.Errorf("named explicitly: got %d, %v; want 7 (as ssh -F)", r.Port, err)
	}
	if _, err := Resolve(Target{Host: "a", Home: home, ConfigFile: file + "x"}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing and named explicitly: got %v, want not found", err)
	}
}

func TestResolveNotices(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "config")
	sshdtest.Write(t, file, "Match localnetwork 10.0.0.0/8\n Port 1\nMatch tagged x host a\n Port 2\nHost a\n Port 3\nCanonicalizeHostname yes\n")
	r, err := Resolve(Target{Host: "a", ConfigFile: file})
	if err != nil {
		t.Fatal(err)
	}
	if r.Port != 3 || len(r.Notices) != 3 || !strings.Contains(r.Notices[0], "line 1") || !strings.Contains(r.Notices[1], "tagged") {
		t.Errorf("got port %d, notices %q; want 3 and one for each skipped setting", r.Port, r.Notices)
	}
}

func TestResolveBadTargets(t *testing.T) {
	for _, target := range []Target{
		{Host: ""}, {Host: "-oProxyCommand=x"}, {Host: "a b"}, {Host: "a;b"}, {Host: "$(x)"}, {Host: "a", User: "-x"}, {Host: "a", User: "x;y"},
		{Host: "a", Port: -1}, {Host: "a", Port: 65536},
		{Host: "a", Options: map[string]string{"Match": "all"}},
		{Host: "a", Options: map[string]string{"Port": ""}},
		{Host: "a", Options: map[string]string{"ProxyJump": "-x@a"}}, // ssh passes this one on, and fails later
		{Host: "a", Options: map[string]string{"HostName": "$(x)"}},
	} {
		target.ConfigFile = "none"
		if r, err := Resolve(target); !errors.Is(err, ErrConfig) {
			t.Errorf("%+v: got %+v, %v; want ErrConfig", target, r, err)
		}
	}
}

func TestChooseAlgorithms(t *testing.T) {
	good, weak := []string{"a1", "a2", "b1"}, []string{"w1", "a0"}
	for _, c := range []struct {
		spec string
		want []string
	}{
		{"b1,a1", []string{"b1", "a1"}}, {"nosuch,a2", []string{"a2"}}, {"w1", []string{"w1"}}, {"nosuch", nil},
		{"+w1", []string{"a1", "a2", "b1", "w1"}}, {"+a1", []string{"a1", "a2", "b1"}}, {"+nosuch", []string{"a1", "a2", "b1"}},
		{"-a*", []string{"b1"}}, {"-*", nil}, {"-nosuch", []string{"a1", "a2", "b1"}},
		{"^b1", []string{"b1", "a1", "a2"}}, {"^w1,a2", []string{"w1", "a2", "a1", "b1"}},
	} {
		got, err := chooseAlgorithms(c.spec, good, weak)
		if !slices.Equal(got, c.want) || (err == nil) != (c.want != nil) {
			t.Errorf("%q: got %q, %v; want %q", c.spec, got, err, c.want)
		}
	}
}

func TestParseHostPort(t *testing.T) {
	for _, c := range []struct {
		in   string
		host string
		port int
		ok   bool
	}{
		{"srv", "srv", 0, true}, {"srv:22", "srv", 22, true}, {"srv:1", "srv", 1, true}, {"srv:65535", "srv", 65535, true},
		{"srv.example.org:2222", "srv.example.org", 2222, true}, {"192.0.2.1:22", "192.0.2.1", 22, true}, {"192.0.2.1", "192.0.2.1", 0, true},
		{"[::1]:2222", "::1", 2222, true}, {"[::1]", "::1", 0, true}, {"::1", "::1", 0, true}, {"2001:db8::1", "2001:db8::1", 0, true},
		{"fe80::1%eth0", "fe80::1%eth0", 0, true}, {"[fe80::1%eth0]:22", "fe80::1%eth0", 22, true}, {"[192.0.2.1]:22", "192.0.2.1", 22, true},
		{"::", "::", 0, true},
		{"", "", 0, false}, {":22", "", 0, false}, {"srv:", "", 0, false}, {"srv:0", "", 0, false}, {"srv:65536", "", 0, false},
		{"srv:-1", "", 0, false}, {"srv:+1", "", 0, false}, {"srv:ssh", "", 0, false}, {"srv: 22", "", 0, false}, {"srv:22 ", "", 0, false},
		{"a:b:c", "", 0, false}, {"[::1", "", 0, false}, {"[::1]x", "", 0, false}, {"[::1]:", "", 0, false}, {"[]:22", "", 0, false},
		{"[srv]:22", "", 0, false}, {"::1]:22", "", 0, false}, {"-srv", "", 0, false}, {"a b", "", 0, false}, {"a/b", "", 0, false},
		{"user@srv", "", 0, false}, {"a\n", "", 0, false}, {"srv:99999999999999999999", "", 0, false},
	} {
		host, port, err := ParseHostPort(c.in)
		if host != c.host || port != c.port || (err == nil) != c.ok {
			t.Errorf("%q: got %q, %d, %v; want %q, %d, ok=%v", c.in, host, port, err, c.host, c.port, c.ok)
		}
	}
}

func TestParseTime(t *testing.T) {
	for in, want := range map[string]int{"0": 0, "5": 5, "5s": 5, "1m30s": 90, "1h": 3600, "1d1h": 90000, "1w": 604800, "1M": 60,
		"": -1, "s": -1, "5x": -1, "-5": -1, "5 s": -1, "99999999999": -1, "2147483647": 2147483647, "2147483647s1s": -1} {
		got, err := parseTime(in)
		if want < 0 && err == nil || want >= 0 && (err != nil || got != time.Duration(want)*time.Second) {
			t.Errorf("%q: got %v, %v; want %d s", in, got, err, want)
		}
	}
}

// wildcard against the obvious recursive definition.
func TestWildcardProperty(t *testing.T) {
	var slow func(p, s string) bool
	slow = func(p, s string) bool {
		switch {
		case p == "":
			return s == ""
		case p[0] == '*':
			return slow(p[1:], s) || s != "" && slow(p, s[1:])
		}
		return s != "" && (p[0] == '?' || p[0] == s[0]) && slow(p[1:], s[1:])
	}
	rapid.Check(t, func(t *rapid.T) {
		p := rapid.StringMatching(`[ab*?]{0,8}`).Draw(t, "p")
		s := rapid.StringMatching(`[ab]{0,8}`).Draw(t, "s")
		if got, want := wildcard(p, s), slow(p, s); got != want {
			t.Fatalf("%q on %q: got %v, want %v", p, s, got, want)
		}
	})
}

func FuzzParseHostPort(f *testing.F) {
	for _, s := range []string{"a", "a:1", "[::1]:2", "::1", "fe80::1%x", "[a]:1", "a:b:c"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		host, port, err := ParseHostPort(s)
		if err != nil {
			return
		}
		again, port2, err := ParseHostPort(Hop{Host: host, Port: port}.String())
		if err != nil || again != host || port2 != port {
			t.Errorf("%q: %q, %d comes back as %q, %d, %v", s, host, port, again, port2, err)
		}
	})
}

func FuzzParseJump(f *testing.F) {
	for _, s := range []string{"a", "u@a:1,b", "ssh://u@[::1]:7/", "none", "a,,b"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		hops, err := parseJump(s)
		if err != nil {
			return
		}
		var names []string
		for _, h := range hops {
			names = append(names, h.String())
		}
		again, err := parseJump(strings.Join(names, ","))
		if err != nil || !reflect.DeepEqual(again, hops) {
			t.Errorf("%q: %v comes back as %v, %v", s, hops, again, err)
		}
	})
}

// FuzzConfig: no file may hang, panic or resolve without a host and a port.
func FuzzConfig(f *testing.F) {
	for _, s := range []string{"Host a\n Port 1\n", "Match host a user b\n User \"x\n", "ProxyJump a,b@c:1\n", "IdentityFile %d/${HOME}/~\n",
		"KexAlgorithms +*\nConnectTimeout 1w2d\n", "\x00", "Host=\"a\"#\n", "AddKeysToAgent confirm 5m\n", "HostName %h%%\nMatch final all\nPort 3"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if low := strings.ToLower(s); strings.Contains(low, "exec") || strings.Contains(low, "include") {
			return // would run commands, or read files
		}
		file := filepath.Join(t.TempDir(), "config")
		sshdtest.Write(t, file, s)
		r, err := Resolve(Target{Host: "a", ConfigFile: file, Home: "/nonexistent"})
		if err == nil && (r.HostName == "" || r.Port < 1 || r.Port > 65535 || r.User == "") {
			t.Errorf("got %+v", r)
		}
		if err != nil && !errors.Is(err, ErrConfig) {
			t.Errorf("got %v, want ErrConfig", err)
		}
	})
}
