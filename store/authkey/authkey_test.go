package authkey

import (
	"net/netip"
	"regexp"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

const public = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIFEtJEaQcVHGkYWtYjz0ptJO7/hc27xOI7EF7+PF7zQc"

func TestParseLine(t *testing.T) {
	for line, want := range map[string]string{
		public:                           public,
		public + " alice@laptop\r\n":     public + " alice@laptop",
		"\t " + public + "  two  words ": public + " two  words",
		"restrict,no-pty,No-X11-Forwarding " + public:                   public,
		"ISR-Read-Only " + public:                                       "isr-read-only " + public,
		`isr-parcel="winxp,linux" ` + public:                            `isr-parcel="winxp,linux" ` + public,
		`from="10.0.0.0/8,!10.1.2.3,FE80::*" ` + public:                 `from="10.0.0.0/8,!10.1.2.3,fe80::*" ` + public,
		`expiry-time="20300102Z",EXPIRY-TIME="202901020304Z" ` + public: `expiry-time="20290102030400Z" ` + public,
		`isr-read-only,expiry-time="20300102030405Z" ` + public + " c":  `expiry-time="20300102030405Z",isr-read-only ` + public + " c",
	} {
		k, err := ParseLine([]byte(line))
		if err != nil || k.String() != want {
			t.Errorf("%q: got %q, %v; want %q", line, k.String(), err, want)
		}
	}
	for _, line := range []string{
		"", "ssh-ed25519", "ssh-ed25519 AAAA", "ssh-rsa " + strings.TrimPrefix(public, "ssh-ed25519 "),
		`command="id" ` + public, `environment="A=b" ` + public, "cert-authority " + public, "verify-required " + public,
		"no-touch-required " + public, "pty " + public, "isr-readonly " + public, `permitopen="a:1" ` + public,
		"isr-parcel " + public, `isr-parcel="" ` + public, `isr-parcel="a,,b" ` + public, `isr-parcel="../a" ` + public,
		`isr-parcel=a ` + public, `isr-parcel="a",isr-parcel="b" ` + public, `isr-parcel="a\"b" ` + public, `isr-parcel="a ` + public,
		"from " + public, `from="" ` + public, `from="!10.0.0.1" ` + public, `from="host.example.com" ` + public, `from="*.example.com" ` + public,
		`from="10.0.0.1/8" ` + public, `from="10.0.0.0/33" ` + public, `from="fe80::1%eth0" ` + public, `from="*",from="*" ` + public,
		`from="a b" ` + public, `expiry-time="2030" ` + public, `expiry-time="20301301" ` + public, `expiry-time="20300101z" ` + public,
		`expiry-time=20300101 ` + public, `expiry-time="99999999" ` + public, `expiry-time="19700101Z" ` + public, `expiry-time="+2030101" ` + public,
		`isr-read-only="no" ` + public, "isr-read-only, restrict " + public, public + " a\x00b", public + " a\x1b[2Jb", "isr-read-only\n" + public, public + "\n" + public,
		"-----BEGIN OPENSSH PRIVATE KEY-----",
	} {
		if k, err := ParseLine([]byte(line)); err == nil {
			t.Errorf("%q: read as %q; want an error", line, k.String())
		}
	}
}

func TestParse(t *testing.T) {
	lines := Parse([]byte("# hers\r\n\r\n" + public + " a\r\n  \t\ncommand=\"id\" " + public + "\nx"))
	if len(lines) != 3 || lines[0].N != 3 || lines[0].Err != nil || lines[1].N != 5 || lines[1].Err == nil || lines[2].N != 6 || lines[2].Err == nil {
		t.Errorf("got %+v", lines)
	}
}

func TestAdmits(t *testing.T) {
	now := time.Date(2026, 11, 26, 12, 0, 0, 0, time.UTC)
	for _, test := range []struct {
		options, from string
		want          bool
	}{
		{"restrict", "", true},
		{`expiry-time="20261126120000Z"`, "", true}, // as sshd has it: until the second is over
		{`expiry-time="20261126115959Z"`, "", false},
		{`expiry-time="20261127Z",expiry-time="20261126Z"`, "", false},
		{`from="192.0.2.7"`, "192.0.2.7", true},
		{`from="192.0.2.7"`, "::ffff:192.0.2.7", true},
		{`from="192.0.2.7"`, "192.0.2.70", false},
		{`from="192.0.2.7"`, "", false},
		{`from="*"`, "", false},
		{`from="192.0.2.?"`, "192.0.2.7", true},
		{`from="192.0.2.?"`, "192.0.2.70", false},
		{`from="192.0.*,!192.0.2.7"`, "192.0.2.7", false},
		{`from="!192.0.2.7,192.0.*"`, "192.0.2.7", false},
		{`from="!192.0.2.7,192.0.*"`, "192.0.2.8", true},
		{`from="192.0.2.0/24"`, "192.0.2.255", true},
		{`from="192.0.2.0/24"`, "192.0.3.0", false},
		{`from="2001:DB8::/32"`, "2001:db8::1", true},
		{`from="*,!fe80::1"`, "fe80::1%eth0", false},
		{`from="1.1.1.*"`, "1.1.101.1", false}, // a dot is a dot
	} {
		k, err := ParseLine([]byte(test.options + " " + public))
		if err != nil {
			t.Fatal(err)
		}
		var from netip.Addr
		if test.from != "" {
			from = netip.MustParseAddr(test.from)
		}
		if err := k.Admits(now, from); (err == nil) != test.want {
			t.Errorf("%s from %q: %v", test.options, test.from, err)
		}
	}
}

// An expiry without Z is in the server's time.
func TestParseExpiryIsLocal(t *testing.T) {
	defer func(l *time.Location) { time.Local = l }(time.Local)
	time.Local = time.FixedZone("", 2*60*60)
	got, err := ParseExpiry("202611261200")
	if want := time.Date(2026, 11, 26, 10, 0, 0, 0, time.UTC); err != nil || !got.Equal(want) {
		t.Errorf("got %v, %v; want %v", got, err, want)
	}
}

// A pattern with * and ? means what sshd means by it.
func TestMatchProperty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var b [4]byte
		for i := range b {
			b[i] = byte(rapid.SampledFrom([]int{1, 10, 11, 101, 255}).Draw(t, "byte"))
		}
		a := netip.AddrFrom4(b)
		p := rapid.StringMatching(`[1-2.]{0,4}[*?][01.*?]{0,6}`).Draw(t, "pattern")
		ps, err := ParsePatterns(p)
		if err != nil {
			t.Fatal(err)
		}
		if got, want := ps.Match(a), sshdMatch(a.String(), p); got != want {
			t.Fatalf("%s, %s: got %v, want %v", a, p, got, want)
		}
	})
}

// sshdMatch is the definition of a pattern, character by character.
func sshdMatch(s, p string) bool {
	switch {
	case p == "":
		return s == ""
	case p[0] == '*':
		return sshdMatch(s, p[1:]) || s != "" && sshdMatch(s[1:], p)
	}
	return s != "" && (p[0] == '?' || p[0] == s[0]) && sshdMatch(s[1:], p[1:])
}

func FuzzParseLine(f *testing.F) {
	for _, o := range []string{"", "restrict ", `from="10.*,!10.1.0.0/16" `, `expiry-time="20300101",isr-parcel="a,b",ISR-READ-ONLY `,
		`command="x \"y\"" `, `from="a`, `isr-parcel="a\",b" `} {
		f.Add([]byte(o + public + " comment"))
	}
	kept := regexp.MustCompile(`^(((from|expiry-time|isr-parcel)="[^"]*"|isr-read-only)(,|$))*$`)
	f.Fuzz(func(t *testing.T, line []byte) {
		k, err := ParseLine(line)
		if err != nil {
			return
		}
		if o := strings.Join(k.options(true), ","); !kept.MatchString(o) || strings.ContainsAny(k.String(), "\n\r\x00") {
			t.Fatalf("%q is printed as %q", line, k.String())
		}
		again, err := ParseLine([]byte(k.String()))
		if err != nil || !again.Same(k) || !again.SameTerms(k) || again.Comment != k.Comment {
			t.Fatalf("%q is printed as %q, and that read as %q, %v", line, k.String(), again.String(), err)
		}
	})
}
