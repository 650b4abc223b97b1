package main

import (
	"crypto/sha256"
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestKilledBeside is TestKilled of the commands that change something beside
// a parcel: a place to look aside in, the configuration, the hoard.
func TestKilledBeside(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name  string
		args  func(dir string) []string // dir is of this run alone
		fresh func(t *testing.T, w *world, dir string)
		after func(t *testing.T, w *world, dir string)
	}{
		{"export-lka", func(dir string) []string { return []string{"export-lka", "-d", "gold", dir} },
			func(t *testing.T, w *world, dir string) {},
			func(t *testing.T, w *world, dir string) {
				objects := 0
				for _, f := range files(t, dir) {
					if strings.HasPrefix(filepath.Base(f), ".tmp-") {
						continue // of what was killed: a later export takes it away
					}
					text, err := os.ReadFile(f)
					if err != nil {
						t.Fatal(err)
					}
					if sum := sha256.Sum256(text); hex.EncodeToString(sum[:]) != filepath.Base(f) {
						t.Errorf("%s is not what its name says", f)
					}
					objects++
				}
				if objects < 4 {
					t.Errorf("%d objects", objects)
				}
			}},
		{"connect-lka", func(dir string) []string { return []string{"connect-lka", dir} },
			func(t *testing.T, w *world, dir string) { w.point(t, filepath.Join(w.dir, "A"), "A", "alice") },
			func(t *testing.T, w *world, dir string) { w.lookasides(t, dir, 1) }},
		{"connect-lka --remove", func(dir string) []string { return []string{"connect-lka", "--remove", dir} },
			func(t *testing.T, w *world, dir string) { w.ok(t, "A", "connect-lka", dir) },
			func(t *testing.T, w *world, dir string) { w.lookasides(t, dir, 0) }},
		{"checkhoard -p", func(string) []string { return []string{"--yes", "checkhoard", "-c", "-p"} },
			func(t *testing.T, w *world, dir string) {
				w.ok(t, "A", "hoard", "gold")
				w.ok(t, "A", "hoard", "other")
				w.ok(t, "A", "rmhoard", "--yes", "other")
				w.ok(t, "A", "resume", "other")
				w.ok(t, "A", "checkin", "other")
			},
			func(t *testing.T, w *world, dir string) {
				w.ok(t, "A", "checkhoard", "-c")
				w.ok(t, "A", "checkout", "-d", "gold")
				w.ok(t, "A", "checkin", "gold")
				w.goesOn(t, "A", "other", w.count(t, "other")+1)
			}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			w := crashWorld(t, "serve")
			w.must(t, "isr-locksrv", "parcel", "copy", "alice", "gold", "alice", "other")
			dir := filepath.Join(w.dir, "whole")
			c.fresh(t, w, dir)
			most := countSteps(t, w, "A", c.args(dir)...)
			c.after(t, w, dir)
			if len(most) == 0 {
				t.Fatal("it changes nothing")
			}
			died := 0
			for _, at := range sample(seed(t), most, 4) {
				dir := filepath.Join(w.dir, strings.ReplaceAll(at.String(), " ", "-"))
				c.fresh(t, w, dir)
				killed := killedAt(w, at, "A", c.args(dir)...)
				if killed.status > 128 {
					died++
				}
				if killed.status != 0 && killed.status != at.status() {
					t.Errorf("killed at %v: %v", at, killed)
				}
				again := w.isr("A", c.args(dir)...)
				// That it was removed already is a failure of its own.
				if again.status != 0 && !strings.Contains(again.err, "was not asked") {
					t.Fatalf("killed at %v: %vthen %v", at, killed, again)
				}
				c.after(t, w, dir)
				w.sound(t, "gold")
				w.wantClean(t)
			}
			t.Logf("%d died", died)
		})
	}
}

// lookasides wants the place to be asked by A so many times, and its
// configuration to be whole.
func (w *world) lookasides(t testing.TB, place string, want int) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(w.dir, "A", ".openisrrc"))
	if err != nil || !strings.Contains(string(text), "userid = alice\n") || strings.Count(string(text), "lookaside = "+place+"\n") != want {
		t.Errorf("configuration, want %s %d times: %v\n%s", place, want, err, text)
	}
}

// count is how far the toy of a parcel has counted.
func (w *world) count(t testing.TB, p string) int {
	t.Helper()
	count, _ := counts(t, w.ok(t, "B", "resume", p))
	w.ok(t, "B", "checkin", p)
	return count
}

// TestPasswdKilled: one of the two passwords lets in, whenever isr passwd is
// ended, and what opened by the old one opens by it.
func TestPasswdKilled(t *testing.T) {
	t.Parallel()
	w := crashWorld(t, "serve")
	secrets := []string{"the first of hers", "the second of hers"}
	w.password(t, "alice", secrets[0])
	for _, suffix := range []string{"", ".pub"} {
		if err := os.Remove(filepath.Join(w.dir, "A", ".ssh", "id_ed25519"+suffix)); err != nil {
			t.Fatal(err)
		}
	}
	at := func(secret string, args ...string) result {
		r, _, _ := atTerminalOr(t, w.command("A", "isr", args...), typed{"assword", secret}, typed{"assword", ""})
		return r
	}
	if r := at(secrets[0], "checkout", "-d", "gold"); r.status != 0 {
		t.Fatal(r)
	}
	// Where it changes something: the record of the checkout, twice.
	for _, s := range sample(seed(t), map[string]int{"fsync": 4, "renameat": 2}, 3) {
		r, _, _ := atTerminalOr(t, toKill(w, s, "A", "passwd"), typed{"assword", secrets[0]}, typed{"New ISR", secrets[1]}, typed{"Again", secrets[1]})
		now, not := secrets[1], secrets[0]
		if at(now, "ls").status != 0 {
			now, not = not, now
		}
		if again := at(now, "ls"); again.status != 0 {
			t.Fatalf("%v: %vthen neither lets in: %v", s, r, again)
		}
		if r := at(now, "resume", "-d", "gold"); r.status != 0 {
			t.Fatalf("%v: resume -d by what the server knows: %v", s, r)
		}
		secrets[0], secrets[1] = now, not
	}
	if r := at(secrets[0], "checkin", "gold"); r.status != 0 {
		t.Error(r)
	}
	w.sound(t, "gold")
	w.wantClean(t)
}
