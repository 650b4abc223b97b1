package source

import (
	"bufio"
	"bytes"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
)

// findNFS is where host's directory dir lies on this host, by the mounts that
// the file mountinfo lists; the nearest one if there are several.
func findNFS(mountinfo, host, dir string) (string, bool) {
	text, err := os.ReadFile(mountinfo)
	if err != nil {
		return "", false
	}
	best, found := "", ""
	for _, m := range parseMounts(text) {
		if m.kind != "nfs" && m.kind != "nfs4" {
			continue
		}
		server, export, ok := cutExport(m.source)
		if !ok || !strings.EqualFold(server, host) && !m.has("addr="+host) {
			continue
		}
		export = path.Join(export, m.root)
		rest, ok := below(dir, export)
		if ok && len(export) >= len(best) {
			best, found = export, filepath.Join(m.point, rest)
		}
	}
	return found, found != ""
}

// below is the path of dir below base.
func below(dir, base string) (string, bool) {
	if base == "/" {
		return dir, true
	}
	rest, ok := strings.CutPrefix(dir, base)
	return rest, ok && (rest == "" || rest[0] == '/')
}

// cutExport cuts HOST:/DIR, where HOST may be an address in brackets.
func cutExport(s string) (host, dir string, ok bool) {
	if rest, found := strings.CutPrefix(s, "["); found {
		host, dir, ok = strings.Cut(rest, "]:")
	} else {
		host, dir, ok = strings.Cut(s, ":")
	}
	return host, path.Clean("/" + dir), ok
}

// mount is a line of proc_pid_mountinfo(5).
type mount struct {
	root, point, kind, source string
	options                   []string // of the superblock
}

func (m mount) has(option string) bool {
	for _, o := range m.options {
		if o == option {
			return true
		}
	}
	return false
}

// parseMounts reads mountinfo; a line it does not understand is passed over.
func parseMounts(text []byte) []mount {
	var all []mount
	lines := bufio.NewScanner(bytes.NewReader(text))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		before, after, ok := strings.Cut(lines.Text(), " - ")
		f, g := strings.Split(before, " "), strings.Split(after, " ")
		if !ok || len(f) < 6 || len(g) < 3 {
			continue
		}
		all = append(all, mount{root: unescape(f[3]), point: unescape(f[4]), kind: g[0], source: unescape(g[1]),
			options: strings.Split(g[2], ",")})
	}
	return all
}

// unescape replaces \040 and its like by what they stand for.
func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}
