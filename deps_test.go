// Package isr_test holds the policy of the whole tree.
package isr_test

import (
	"go/parser"
	"go/token"
	"io/fs"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// mayImport is a statement of policy: which packages of this project a package
// may import. Data flows one way: chunk, seal, keyring, store, wire, hoard,
// image, VMM. Tests may import more.
var mayImport = map[string][]string{
	"store/atomicfile":      {},
	"store/seal":            {},
	"store/keyring":         {"store/seal"},
	"store/parcel":          {"store/keyring", "store/seal"},
	"store/authkey":         {"store/parcel"},
	"store/diskimage":       {"store/parcel"},
	"store/keep":            {"store/parcel"},
	"store/tree":            {"store/atomicfile", "store/parcel", "store/seal"},
	"store":                 {"store/atomicfile", "store/authkey", "store/diskimage", "store/keep", "store/keyring", "store/parcel", "store/seal", "store/tree"},
	"store/check":           {"store", "store/keyring", "store/parcel", "store/seal", "store/tree"},
	"store/repair":          {"store", "store/atomicfile", "store/check", "store/parcel", "store/seal", "store/tree"},
	"store/reach":           {"store", "store/keyring", "store/parcel", "store/seal"},
	"store/gc":              {"store", "store/atomicfile", "store/parcel", "store/reach", "store/seal", "store/tree"},
	"store/prune":           {"store", "store/atomicfile", "store/gc", "store/keep", "store/parcel", "store/tree"},
	"store/du":              {"store", "store/keep", "store/keyring", "store/parcel", "store/prune", "store/reach", "store/seal", "store/tree"},
	"store/diff":            {"store", "store/keyring", "store/seal"},
	"store/export":          {"store", "store/keyring", "store/parcel", "store/seal", "store/tree"},
	"store/backup":          {"store", "store/atomicfile", "store/backup/realm", "store/backup/snapshot", "store/backup/target", "store/keep", "store/parcel", "store/seal"},
	"store/backup/target":   {"store/atomicfile", "store/parcel", "store/seal", "store/tree"},
	"store/backup/realm":    {"store", "store/atomicfile", "store/backup/target", "store/keyring", "store/parcel", "store/seal"},
	"store/backup/mirror":   {"store", "store/backup/realm", "store/backup/target", "store/check", "store/parcel", "store/seal"},
	"store/backup/snapshot": {"store/backup/realm", "store/backup/target", "store/parcel", "store/seal"},
	"locksrv/proto":         {"store/keyring", "store/parcel", "store/seal"},
	"locksrv/event":         {},
	"locksrv/health":        {"locksrv/event", "store", "store/parcel"},
	"locksrv/metrics":       {"locksrv/event", "locksrv/health", "store", "store/parcel"},
	"hooks":                 {"locksrv/event", "store/parcel"},
	"locksrv":               {"hooks", "locksrv/event", "locksrv/proto", "store", "store/atomicfile", "store/authkey", "store/check", "store/keyring", "store/parcel", "store/seal"},
	"locksrv/study":         {"locksrv", "locksrv/event", "locksrv/proto", "store/atomicfile", "store/parcel"},
	"locksrv/study/page":    {"locksrv/study", "store/parcel"},
	"locksrv/isr-locksrv":   {"contrib/completion", "contrib/output", "hooks", "locksrv", "locksrv/event", "locksrv/health", "locksrv/metrics", "locksrv/proto", "locksrv/study", "locksrv/study/page", "store", "store/atomicfile", "store/authkey", "store/backup", "store/backup/mirror", "store/backup/realm", "store/backup/snapshot", "store/backup/target", "store/check", "store/diff", "store/diskimage", "store/du", "store/export", "store/gc", "store/keep", "store/keyring", "store/parcel", "store/prune", "store/repair", "store/seal"},
	"contrib/completion":    {},
	"contrib/output":        {"store/parcel"},
	"client/vmm":            {},
	"client/conf":           {"store/atomicfile", "store/parcel"},
	"client/dirt":           {"client/fetch", "client/image"},
	"client/dirt/tui":       {"client/dirt", "client/image"},
	"client/dirt/web":       {"client/dirt"},
	"client/fusefs":         {},
	"client/wrap":           {"store/parcel"},
	"client/fetch":          {"client/histogram", "store/parcel", "store/seal"},
	"client/histogram":      {},
	"client/hoard":          {"store/atomicfile", "store/parcel", "store/seal"},
	"client/image":          {"client/histogram", "store/atomicfile", "store/keyring", "store/seal"},
	"client/source":         {"client/fetch", "store/parcel", "store/seal"},
	"client/remote":         {"client/fetch", "client/remote/ask", "client/remote/dial", "client/remote/sshconf", "locksrv/proto", "store/parcel", "store/seal"},
	"client/auth":           {"client/remote", "client/remote/ask", "client/remote/dial", "client/remote/sshconf", "store/parcel"},
	"client": {"client/auth", "client/fetch", "client/fusefs", "client/hoard", "client/image", "client/remote", "client/remote/ask", "client/remote/identity", "client/remote/sshconf", "client/source", "client/vmm",
		"client/wrap", "locksrv/proto", "store/atomicfile", "store/keyring", "store/parcel", "store/seal"},
	"client/isr": {"client", "client/auth", "client/conf", "client/dirt", "client/dirt/tui", "client/dirt/web", "client/hoard", "client/remote", "client/vmm",
		"contrib/completion", "contrib/output", "store/parcel"},

	// How a server is reached.
	"client/remote/ask":        {},
	"client/remote/dial":       {"client/remote/ask", "client/remote/identity", "client/remote/knownhosts", "client/remote/sshconf", "store/parcel"},
	"client/remote/identity":   {"client/remote/ask", "client/remote/sshconf"},
	"client/remote/knownhosts": {"client/remote/ask", "client/remote/sshconf"},
	"client/remote/sshconf":    {},

	// For tests, in no program.
	"client/fetch/fetchtest":         {"client/fetch", "store/parcel", "store/seal"},
	"client/remote/linktest":         {},
	"client/remote/sshdtest":         {},
	"locksrv/study/studytest":        {"locksrv", "locksrv/event", "locksrv/proto", "locksrv/study"},
	"store/storetest":                {"store", "store/check", "store/export", "store/gc", "store/keyring", "store/parcel", "store/seal", "store/tree"},
	"locksrv/locksrvtest":            {"locksrv", "locksrv/proto", "store", "store/keyring", "store/parcel", "store/seal"},
	"contrib/guest":                  {},
	"contrib/scale":                  {"store", "store/keyring", "store/parcel", "store/seal"},
	"store/backup/target/targettest": {"client/remote/sshdtest", "store/backup/target", "store/storetest"},
}

// TestImports opens the files itself, so that its result is never a cached
// one of a tree that has changed.
func TestImports(t *testing.T) {
	seen := make(map[string]bool)
	err := filepath.WalkDir(".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && name != "." && strings.HasPrefix(d.Name(), ".") {
			return fs.SkipDir
		}
		if !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go") {
			return nil
		}
		pkg := path.Dir(filepath.ToSlash(name))
		allowed, ok := mayImport[pkg]
		if !ok {
			t.Errorf("%s: package %s is not in the table of who may import whom", name, pkg)
			return nil
		}
		seen[pkg] = true
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		for _, imp := range f.Imports {
			p, err := strconv.Unquote(imp.Path.Value)
			if err != nil {
				return err
			}
			if ours, ok := strings.CutPrefix(p, "isr/"); ok && !contains(allowed, ours) {
				t.Errorf("%s: %s may not import %s", name, pkg, ours)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for pkg := range mayImport {
		if !seen[pkg] {
			t.Errorf("package %s is in the table and not in the tree", pkg)
		}
	}
}

func contains(list []string, s string) bool {
	for _, e := range list {
		if e == s {
			return true
		}
	}
	return false
}

// TestPackageComments: every package says what it is for.
func TestPackageComments(t *testing.T) {
	said := make(map[string]bool)
	err := filepath.WalkDir(".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && name != "." && strings.HasPrefix(d.Name(), ".") {
			return fs.SkipDir
		}
		if !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go") {
			return nil
		}
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.PackageClauseOnly|parser.ParseComments)
		if err != nil {
			return err
		}
		pkg := path.Dir(filepath.ToSlash(name))
		said[pkg] = said[pkg] || f.Doc != nil && len(f.Doc.Text()) > 80
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for pkg, ok := range said {
		if !ok {
			t.Errorf("package %s: no comment says what it is for, what it promises and what it does not", pkg)
		}
	}
}
