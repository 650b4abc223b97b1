package backup

import (
	"archive/tar"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"isr/store"
	"isr/store/backup/mirror"
	"isr/store/backup/target/targettest"
	"isr/store/parcel"
)

func link(name, target string) *tar.Header {
	return &tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target, Mode: 0o777}
}

// Hooks that are links come back as links; others are left out, with a word.
func TestLinkedHooks(t *testing.T) {
	for name, links := range map[string]map[string]string{
		"to programs": {"hooks/pre-commit": "/bin/true", "hooks/post-commit.d/50-notify": "../../programs/notify", "hooks/post-lock": "pre-commit"},
		"all of them": {"hooks": "/etc"},
	} {
		t.Run(name, func(t *testing.T) {
			s, place := newRealm(t), memPlace(t)
			for name, target := range links {
				os.MkdirAll(filepath.Dir(filepath.Join(s.Root(), name)), 0o700)
				if err := os.Symlink(target, filepath.Join(s.Root(), name)); err != nil {
					t.Fatal(err)
				}
			}
			make_(t, s, place)
			warnings, warn := newWarnings()
			n, _, err := Restore(ctx, filepath.Join(targettest.MemDir(t), "new"), place, RestoreOptions{Warn: warn})
			if err != nil {
				t.Fatal(err)
			}
			wantEqual(t, s.Root(), n.Root())
			dangling := strings.Join(*warnings, "; ")
			if want := "hooks/post-commit.d/50-notify: leads to ../../programs/notify, which is not here"; name == "to programs" && dangling != want || name != "to programs" && dangling != "" {
				t.Errorf("warnings: %q, want %q", dangling, want)
			}
		})
	}
	s, place := newRealm(t), memPlace(t)
	for name, target := range map[string]string{"motd": "/etc/passwd", "hostkeys/x": "/etc/passwd", "users/alice/password": "/etc/passwd", "hooks/pre-lock": "a\tb", "log": "/etc"} {
		os.MkdirAll(filepath.Dir(filepath.Join(s.Root(), name)), 0o700)
		if err := os.Symlink(target, filepath.Join(s.Root(), name)); err != nil {
			t.Fatal(err)
		}
	}
	warnings, warn := newWarnings()
	if _, err := Make(ctx, s, place, Options{Warn: warn}); err != nil || len(*warnings) != 5 {
		t.Errorf("%q, %v; want a warning for each", *warnings, err)
	}
	restored(t, place, RestoreOptions{})
}

// Nothing of an archive is written where a link of it leads, nor where one
// leads that was there.
func TestHostileLinks(t *testing.T) {
	for name, entries := range map[string][]*tar.Header{
		"a file below a link":  {link("hooks/d", "OUT"), regular("hooks/d/x", "x")},
		"before the link":      {regular("hooks/d/x", "x"), link("hooks/d", "OUT")},
		"below a link further": {link("hooks/d", ".."), regular("hooks/d/e/x", "x")},
		"a link below a link":  {link("hooks/d", "../users"), link("hooks/d/x", "OUT")},
		"below all of them":    {link("hooks", "OUT"), regular("hooks/x", "x")},
		"a link and a file":    {link("hooks/d", "OUT"), regular("hooks/d", "x")},
	} {
		t.Run(name, func(t *testing.T) {
			dir := targettest.MemDir(t)
			out := filepath.Join(dir, "out")
			if err := os.Mkdir(out, 0o700); err != nil {
				t.Fatal(err)
			}
			for _, h := range entries {
				h.Linkname = strings.Replace(h.Linkname, "OUT", out, 1)
			}
			target := openNew(t, filepath.Join(dir, "place"))
			forge(t, target, archive(t, append([]*tar.Header{regular("realm.cfg", hostileRealm)}, entries...)...), nil, nil)
			_, _, err := Restore(ctx, filepath.Join(dir, "in/new"), target, RestoreOptions{})
			if parcel.KindOf(err) != parcel.Damaged {
				t.Errorf("got %v, want that it is damaged", err)
			}
			wantNothing(t, filepath.Join(dir, "in"))
			wantNothing(t, out)
		})
	}
	// What an unfinished restore left, with links in it for files and for links.
	dir := targettest.MemDir(t)
	out := filepath.Join(dir, "out")
	if err := os.WriteFile(out, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	target := openNew(t, filepath.Join(dir, "place"))
	id := forge(t, target, archive(t, regular("realm.cfg", hostileRealm), regular("hooks/pre-lock", "x"), link("hooks/post-lock", "/bin/true")), nil, nil)
	root := filepath.Join(dir, "new")
	for _, d := range []string{poolPrefix + id, "hooks"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"pre-lock", "post-lock"} {
		if err := os.Symlink(out, filepath.Join(root, "hooks", name)); err != nil {
			t.Fatal(err)
		}
	}
	if _, _, err := Restore(ctx, root, target, RestoreOptions{Warn: func(text string) { t.Error(text) }}); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(out); err != nil || string(b) != "precious" {
		t.Errorf("outside: %q, %v", b, err)
	}
	if got := files(t, filepath.Join(root, "hooks")); got["pre-lock"] != "0600 x" && got["pre-lock"] != "0700 x" || got["post-lock"] != "/bin/true" {
		t.Errorf("hooks: %v", got)
	}
}

// In a mirror a hook may become a link, a directory, a file again; nothing is
// written where a link led.
func TestMirroredLinks(t *testing.T) {
	for kind, tree := range targettest.Trees(t) {
		t.Run(kind, func(t *testing.T) {
			s := newRealm(t)
			out := targettest.MemDir(t)
			hook := filepath.Join(s.Root(), "hooks/pre-commit.d")
			write := func(name string) {
				t.Helper()
				err := os.MkdirAll(filepath.Dir(name), 0o700)
				if err == nil {
					err = os.WriteFile(name, []byte("#!/bin/sh"), 0o700)
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			lead := func(to string) func() {
				return func() {
					os.MkdirAll(filepath.Dir(hook), 0o700)
					if err := os.Symlink(to, hook); err != nil {
						t.Fatal(err)
					}
				}
			}
			for i, change := range []func(){
				lead(out), func() { write(hook + "/50-x") }, lead("../users"), lead(out), func() { write(hook) }, lead("/bin/true"),
				func() { write(hook + "/a/b") }, lead(out), func() {},
			} {
				if err := os.RemoveAll(hook); err != nil {
					t.Fatal(err)
				}
				change()
				mirrored(t, s, tree, mirror.Options{})
				wantMirror(t, s.Root(), targettest.Root(tree))
				if entries, err := os.ReadDir(out); err != nil || len(entries) > 0 {
					t.Fatalf("change %d: outside: %v, %v", i, entries, err)
				}
			}
			// A link that the last pass made and did not note.
			m, err := store.Open(targettest.Root(tree))
			if err != nil {
				t.Fatal(err)
			}
			if err := os.Symlink("../users", filepath.Join(m.Root(), "hooks/pre-commit.d")); err != nil {
				t.Fatal(err)
			}
			write(hook + "/50-x")
			if _, err := mirror.Pass(ctx, s, tree, mirror.Options{Warn: func(string) {}}); err == nil {
				t.Error("a file below a link: no error")
			}
			if found, _ := filepath.Glob(filepath.Join(m.Root(), "users/*50-x")); len(found) > 0 {
				t.Errorf("written through a link: %v", found)
			}
		})
	}
}
