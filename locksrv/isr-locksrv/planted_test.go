package main

import (
	"bytes"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"isr/locksrv"
	"isr/locksrv/locksrvtest"
)

// TestPlanted replaces each file and directory of a user in turn by a link to
// one outside of the tree, as somebody with the service's account or a backup
// that was tampered with may leave it. Whatever is then asked of the server,
// by her or an administrator, it neither says what is there nor changes it.
func TestPlanted(t *testing.T) {
	r := locksrvtest.NewRealm(t)
	p := r.AddParcel(t, "alice", "winxp")
	if _, err := p.Acquire("alice", "thinkpad", "once"); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	const said = "NONCE:=topsecret\nUSER:=topsecret\nHOST:=topsecret\nKEYROOT:=topsecret\n"
	for _, name := range []string{"secret", "secrets/000001", "secrets/.tmp-x", "secrets/keyroot", "secrets/info", "secrets/winxp/parcel.cfg"} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(said), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	outside := tree(t, dir)
	t.Setenv("ISR_ROOT", r.Root)

	users := filepath.Join(r.Root, "users")
	var paths []string
	objects := 0
	err := filepath.WalkDir(users, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == users {
			return err
		}
		if filepath.Base(path) == "bob" {
			return fs.SkipDir
		}
		if strings.Contains(path, "/hdk/") {
			if objects++; objects > 2 { // one is like another
				return nil
			}
		}
		paths = append(paths, path)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	good := filepath.Join(t.TempDir(), "users")
	copyTree(t, users, good)
	elsewhere := filepath.Join(t.TempDir(), "elsewhere")
	copyTree(t, dir, elsewhere)

	alice := locksrvtest.Direct{Service: r.Service, Session: locksrv.Session{User: "alice"}}
	turn := 0
	ask := func(t *testing.T) string {
		var out bytes.Buffer
		scratch := t.TempDir()
		turn++
		for i, args := range []string{
			"parcel list", "parcel list alice --json", "check", "check -c alice winxp", "authorized-keys", "user list", "user key list alice",
			"du", "usage", "status", "parcel history alice winxp --json", "parcel diff alice winxp 1 1",
			"parcel copy alice winxp copied", "parcel export alice winxp DIR/disk", "backup make DIR/backup",
			"user lock alice", "user unlock alice",
			"repair alice winxp --from DIR", "parcel tag alice winxp 1 gold", "parcel unlock alice winxp --yes",
			"parcel rollback alice winxp 1 --yes", "parcel prune alice winxp --keep 1 --yes", "gc",
			"parcel rename alice winxp moved", "parcel rename alice moved winxp", "parcel create alice new --disk 1M",
		} {
			if (i+turn)%2 == 0 || !inTurn((i+turn)/2) { // the next path gets it
				continue
			}
			_, text := inProcess(t, strings.Fields(strings.ReplaceAll(args, "DIR", scratch)))
			out.WriteString(text)
		}
		for _, command := range []string{"isr_list_parcels", "isr_ls", "isr_ls winxp -L 9", "isr_cat_parcel_cfg winxp", "isr_cat_keyroot winxp",
			"isr_check_lock winxp", "isr_acquire_lock winxp x y", "isr_release_lock winxp --force", "isr_rollback winxp 1",
			"isr_checkparcel winxp -c", "isr_passwd --check"} {
			text, errs, _ := alice.Exec(command, []byte("old\n"))
			out.Write(text)
			out.Write(errs)
		}
		if c, err := alice.SFTP(); err == nil {
			for walk := c.Walk("/"); walk.Step(); {
				if f, err := c.Open(walk.Path()); err == nil {
					f.WriteTo(&out)
					f.Close()
				}
			}
			if f, err := c.Create("/winxp/hdk/00/" + strings.Repeat("00", 32)); err == nil {
				f.Write([]byte("overwritten"))
				f.Close()
			}
			c.Close()
		}
		for _, args := range []string{"parcel delete alice winxp --yes --force", "user del alice --yes"} {
			_, text := inProcess(t, strings.Fields(args))
			out.WriteString(text)
		}
		return out.String()
	}
	plant := func(path string, pipe bool) {
		name, _ := filepath.Rel(users, path)
		name = strings.ReplaceAll(name, "/", "_")
		if pipe {
			name += "_pipe"
		}
		t.Run(name, func(t *testing.T) {
			t.Cleanup(func() {
				copyTree(t, good, users)
				copyTree(t, elsewhere, dir)
			})
			fi, err := os.Lstat(path)
			if err != nil {
				t.Fatal(err)
			}
			target := filepath.Join(dir, "secret")
			if fi.IsDir() {
				target = filepath.Join(dir, "secrets")
			}
			if err := os.RemoveAll(path); err != nil {
				t.Fatal(err)
			}
			if pipe {
				err = syscall.Mkfifo(path, 0o600)
			} else {
				err = os.Symlink(target, path)
			}
			if err != nil {
				t.Fatal(err)
			}
			text := ask(t)
			if i := strings.Index(text, "topsecret"); i >= 0 {
				t.Errorf("says what is elsewhere: …%s", text[max(0, i-200):i+9])
			}
			if now := tree(t, dir); now != outside {
				t.Errorf("changes what is elsewhere:\n%s", difference(outside, now))
			}
		})
	}
	for _, path := range paths {
		plant(path, false)
	}
	// Nor is anybody waited for who never writes.
	for _, name := range []string{"authorized_keys", "user.cfg", ".isr/winxp/parcel.cfg", ".isr/winxp/nonce", ".isr/winxp/keys/000001"} {
		plant(filepath.Join(users, "alice", name), true)
	}
}

// copyTree puts a copy of a directory in place of another, or of nothing.
func copyTree(t *testing.T, from, to string) {
	t.Helper()
	if err := os.RemoveAll(to); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("cp", "-a", from, to).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}
