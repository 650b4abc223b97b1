package store_test

import (
	"crypto/sha256"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
	"pgregory.net/rapid"

	"isr/store"
	"isr/store/check"
	"isr/store/parcel"
	"isr/store/seal"
	"isr/store/storetest"
	"isr/store/tree"
)

// ownerOf is the user of a key that comes from no address.
func ownerOf(s *store.Store, key ssh.PublicKey) (string, error) {
	name, _, err := s.UserOfKey(key, netip.Addr{})
	return name, err
}

// A key that is hers lets her in on the terms of the first line that does.
func TestKeyTerms(t *testing.T) {
	s := storetest.New(t)
	key, line := newKey(t)
	write := func(lines ...string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(s.UserAt("alice").Dir, tree.KeysFile), []byte(strings.Join(lines, "\r\n")), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	home := netip.MustParseAddr("192.0.2.7")
	write(`expiry-time="20200101Z" `+line, `from="192.0.2.0/24",isr-read-only `+line, `isr-parcel="winxp" `+line)
	for from, want := range map[netip.Addr][]string{home: nil, netip.MustParseAddr("198.51.100.1"): {"winxp"}, {}: {"winxp"}} {
		user, k, err := s.UserOfKey(key, from)
		if user != "alice" || err != nil || !slices.Equal(k.Parcels, want) || k.ReadOnly != (want == nil) {
			t.Errorf("from %v: got %q, %+v, %v", from, user, k.Rights, err)
		}
	}
	write(`expiry-time="20200101Z" ` + line)
	user, k, err := s.UserOfKey(key, home)
	if user != "alice" || !k.Same(key) || !errors.Is(err, parcel.ErrDenied) || !strings.Contains(err.Error(), "expired on 2020-01-01") {
		t.Errorf("expired: got %q, %v", user, err)
	}
	if err := s.AddKeys("alice", []string{line}); !errors.Is(err, parcel.ErrExists) {
		t.Errorf("the same key on other terms: got %v", err)
	}
	if err := s.AddKeys("alice", []string{`EXPIRY-TIME="20200101000000Z" ` + line}); err != nil {
		t.Errorf("the same key on the same terms: got %v", err)
	}
	lines, err := s.Keys("alice")
	if err != nil || len(lines) != 1 {
		t.Fatalf("keys: %v, %v", lines, err)
	}
	if err := s.DelKey("alice", lines[0].Text); err != nil {
		t.Error(err)
	}
	if err := s.DelKey("alice", lines[0].Text); !errors.Is(err, &parcel.Error{Kind: parcel.Failed}) {
		t.Errorf("removed again: got %v", err)
	}
	storetest.WantSound(t, s)
}

// What a user's directory may hold besides does neither follow nor stop us.
func TestHostileUserFiles(t *testing.T) {
	s := storetest.New(t)
	key, line := newKey(t)
	outside := filepath.Join(storetest.TempDir(t), "outside")
	if err := os.WriteFile(outside, []byte(line+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.AddUser("carol", []string{line}); err != nil {
		t.Fatal(err)
	}
	big := filepath.Join(storetest.TempDir(t), "big")
	if err := os.WriteFile(big, []byte(line), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(big, 10<<20); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(s.UserAt("alice").Dir, tree.KeysFile)
	for _, plant := range []func() error{
		func() error { return os.Symlink(outside, file) },
		func() error { return os.Rename(big, file) },
		func() error { return os.Mkdir(file, 0o700) },
	} {
		os.RemoveAll(file)
		if err := plant(); err != nil {
			t.Fatal(err)
		}
		if u, err := ownerOf(s, key); u != "carol" || err != nil {
			t.Errorf("carol's key: got %q, %v", u, err)
		}
		if _, sum := storetest.Check(t, s, check.Options{User: "alice"}); sum.Errors == 0 {
			t.Error("check does not see it")
		}
	}
	os.RemoveAll(file)
	cfg := filepath.Join(s.UserAt("alice").Dir, tree.UserFile)
	for _, text := range []string{"QUOTA:=-1\n", "QUOTA:=0\n", "QUOTA:=99999999999999999999\n", "QUOTA:=1\nQUOTA:=2\n", "GROUP:=../x\n",
		"LOCKED:=yes\n", "nonsense\n", "COMMENT:=a\x1bb\n"} {
		if err := os.WriteFile(cfg, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := s.Admit("alice"); !errors.Is(err, parcel.ErrDamaged) {
			t.Errorf("%q: got %v; want that nobody is let in by it", text, err)
		}
		if _, sum := storetest.Check(t, s, check.Options{User: "alice"}); sum.Errors != 1 {
			t.Errorf("%q: check counts %d errors", text, sum.Errors)
		}
		if err := s.ChangeUser("alice", func(*store.UserConfig) error { return nil }); err == nil {
			t.Errorf("%q: changed", text)
		}
	}
	os.Remove(cfg)
	if err := os.WriteFile(outside, []byte("COMMENT:=outside\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside, cfg); err != nil {
		t.Fatal(err)
	}
	if c, err := s.UserConfig("alice"); !errors.Is(err, parcel.ErrDamaged) {
		t.Errorf("link: got %+v, %v", c, err)
	}
}

func TestUserConfig(t *testing.T) {
	s := storetest.New(t)
	file := filepath.Join(s.UserAt("alice").Dir, tree.UserFile)
	os.Remove(file)
	if c, err := s.UserConfig("alice"); err != nil || !reflect.DeepEqual(c, &store.UserConfig{}) {
		t.Errorf("without a file: got %+v, %v", c, err)
	}
	if err := os.WriteFile(file, []byte("# by hand\nGROUP:=b\nMINE:=1\nGROUP:=a\nMINE:=2\nGROUP:=b\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	locked := time.Now().UTC().Truncate(time.Second)
	err := s.ChangeUser("alice", func(c *store.UserConfig) error {
		c.Quota, c.Locked, c.Why = 20<<30, locked, "left\nus"
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	p, _ := os.ReadFile(file)
	want := "QUOTA:=21474836480\nGROUP:=a\nGROUP:=b\nLOCKED:=" + locked.Format(time.RFC3339) + "\nWHY:=left us\nMINE:=1\nMINE:=2\n"
	if string(p) != want {
		t.Errorf("got %q, want %q", p, want)
	}
	if err := s.Admit("alice"); !errors.Is(err, parcel.ErrDenied) || !strings.Contains(err.Error(), "left us") {
		t.Errorf("locked: got %v", err)
	}
	if err := s.ChangeUser("alice", func(c *store.UserConfig) error { c.Groups = []string{"a b"}; return nil }); !errors.Is(err, parcel.ErrUsage) {
		t.Errorf("a group of two words: got %v", err)
	}
	if q, _ := os.ReadFile(file); string(q) != want {
		t.Errorf("after that: got %q", q)
	}
	if err := s.Admit("nobody"); !errors.Is(err, parcel.ErrNoParcel) {
		t.Errorf("nobody: got %v", err)
	}
	storetest.WantSound(t, s)
}

func TestUserConfigProperty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		at := func(name string) time.Time {
			return time.Unix(rapid.Int64Range(1, 1<<36).Draw(t, name), 0).UTC()
		}
		c := &store.UserConfig{Quota: rapid.Int64Range(1, 1<<62).Draw(t, "quota"), Consent: at("consent"), Locked: at("locked"), Created: at("created"),
			Why: parcel.Clean(rapid.String().Draw(t, "why")), Comment: parcel.Clean(rapid.String().Draw(t, "comment")),
			Groups: rapid.SliceOfN(rapid.StringMatching(`[a-z][a-z.@+-]{0,8}`), 1, 4).Draw(t, "groups")}
		slices.Sort(c.Groups)
		c.Groups = slices.Compact(c.Groups)
		p, err := c.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if got, err := store.ParseUserConfig(p); err != nil || !reflect.DeepEqual(got, c) {
			t.Fatalf("%+v: got %+v, %v", c, got, err)
		}
	})
}

func FuzzUserConfig(f *testing.F) {
	f.Add([]byte("QUOTA:=1\nGROUP:=a\nLOCKED:=2026-11-26T12:00:00Z\nWHY:=x\nOTHER:=y\n"))
	f.Fuzz(func(t *testing.T, p []byte) {
		c, err := store.ParseUserConfig(p)
		if err != nil {
			return
		}
		q, err := c.Encode()
		if err != nil {
			t.Fatalf("%q: %v", p, err)
		}
		if again, err := store.ParseUserConfig(q); err != nil || again.Quota != c.Quota || !again.Locked.Equal(c.Locked) || !slices.Equal(again.Groups, c.Groups) {
			t.Fatalf("%q: printed as %q, %v", p, q, err)
		}
	})
}

// stageNoise puts an object of n bytes that no other test has.
func stageNoise(t *testing.T, p *store.Parcel, name string, n int) {
	t.Helper()
	text := []byte(strings.Repeat(name+" ", n/len(name)+1))[:n]
	h := sha256.Sum256(text)
	w, err := p.Stage(seal.Tag(h[:]))
	if err != nil {
		t.Fatal(err)
	}
	w.WriteAt(text, 0)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestUsage(t *testing.T) {
	s := storetest.New(t)
	p := storetest.NewParcel(t, s)
	counted := func() store.Usage {
		t.Helper()
		want, err := store.Count(p.HdkDir(), 1)
		if err != nil {
			t.Fatal(err)
		}
		staged, err := store.Count(p.StagingDir(), 2)
		if err != nil {
			t.Fatal(err)
		}
		want = want.Plus(staged)
		if got, err := p.Usage(); err != nil || got != want {
			t.Errorf("got %+v, %v; want %+v", got, err, want)
		}
		return want
	}
	counted()
	// As if the last change were long ago: then it is kept.
	dirs, _ := filepath.Glob(p.HdkDir() + "/*")
	for _, d := range dirs {
		if err := os.Chtimes(d, time.Time{}, time.Now().Add(-time.Hour)); err != nil {
			t.Fatal(err)
		}
	}
	before := counted()
	record := filepath.Join(p.LockDir(), tree.UsageFile)
	if _, err := os.Stat(record); err != nil {
		t.Fatal(err)
	}
	stageNoise(t, p, "noise", 5000)
	if u := counted(); u.Bytes != before.Bytes+5000 || u.Objects != before.Objects+1 {
		t.Errorf("staged: got %+v", u)
	}
	// A commit keeps it up to date.
	r := storetest.Holding(t, p, storetest.Change{1: storetest.ChunkOf("one"), 300: storetest.ChunkOf("three hundred")})
	if _, err := p.Commit(ctx, r); err != nil {
		t.Fatal(err)
	}
	after := counted()
	state, _, err := p.HdkState()
	if u, ok := p.RecordedUsage(state); err != nil || !ok || u != after || after == before {
		t.Errorf("after a commit: recorded %+v, %v; there are %+v", u, ok, after)
	}
	// One that lies is found.
	u := after
	u.Bytes++
	p.RecordUsage(u, state)
	if ps, sum := storetest.Check(t, s, check.Options{}); sum.Notes != 1 || !strings.Contains(ps[0].Msg, "usage says") {
		t.Errorf("check of a record that lies: %v", ps)
	}
	// What goes otherwise is seen too.
	dirs, _ = filepath.Glob(p.HdkDir() + "/*/*")
	if err := os.Remove(dirs[0]); err != nil {
		t.Fatal(err)
	}
	counted()
	for _, text := range []string{"", "nonsense", "OBJECTS:=-1\nBYTES:=-5\nSTATE:=x\n"} {
		if err := os.WriteFile(record, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		counted()
	}
}

func TestQuota(t *testing.T) {
	s := storetest.New(t)
	p := storetest.NewParcel(t, s)
	quota := func(n int64) {
		t.Helper()
		if err := s.ChangeUser("alice", func(c *store.UserConfig) error { c.Quota = n; return nil }); err != nil {
			t.Fatal(err)
		}
	}
	if room, limited, err := s.Room("alice"); limited || err != nil {
		t.Errorf("without a quota: %d, %v, %v", room, limited, err)
	}
	r := storetest.Holding(t, p, storetest.Change{1: storetest.ChunkOf("one"), 300: storetest.ChunkOf("three hundred")})
	used, err := s.Usage("alice")
	if err != nil {
		t.Fatal(err)
	}
	quota(used.Bytes - 1)
	if room, limited, err := s.Room("alice"); room != -1 || !limited || err != nil {
		t.Errorf("room: %d, %v, %v; want -1", room, limited, err)
	}
	_, err = p.Commit(ctx, r)
	if !errors.Is(err, parcel.ErrFull) || !strings.Contains(err.Error(), "user alice: quota of") {
		t.Errorf("over the quota: got %v", err)
	}
	// Nothing is lost: with one byte more it is the same commit. What waits in
	// staging and belongs to nothing does not count, since it goes.
	stageNoise(t, p, "noise", 5000)
	quota(used.Bytes)
	if v, err := p.Commit(ctx, r); v != 2 || err != nil {
		t.Fatalf("within: got %d, %v", v, err)
	}
	if u, err := s.Usage("alice"); err != nil || u != used {
		t.Errorf("got %+v, %v; want %+v", u, err, used)
	}
	// A copy costs no space, but its room.
	if _, err := s.Copy(ctx, "alice", "winxp", "alice", "copy"); !errors.Is(err, parcel.ErrFull) {
		t.Errorf("copy: got %v", err)
	}
	if _, err := s.Fork(ctx, "alice", "winxp", 1, "forked", "", "testhost", "id"); !errors.Is(err, parcel.ErrFull) {
		t.Errorf("fork: got %v", err)
	}
	if _, err := s.Create(ctx, "alice", "empty", store.CreateOptions{DiskSize: 1 << 20}); !errors.Is(err, parcel.ErrFull) {
		t.Errorf("create: got %v", err)
	}
	if names, err := s.Parcels("alice"); err != nil || !slices.Equal(names, []string{"winxp"}) {
		t.Errorf("left behind: %v, %v", names, err)
	}
	if _, err := s.Copy(ctx, "alice", "winxp", "bob", "copy"); err != nil {
		t.Errorf("copy for bob: %v", err)
	}
	quota(2 * used.Bytes)
	if _, err := s.Copy(ctx, "alice", "winxp", "alice", "copy"); err != nil {
		t.Errorf("copy: %v", err)
	}
	// A quota that shrinks takes nothing away, nor a way back.
	quota(1)
	if _, err := p.Rollback(ctx, r.Nonce, 1); err != nil {
		t.Errorf("rollback: %v", err)
	}
	storetest.WantSound(t, s)
}

func BenchmarkOwners(b *testing.B) {
	s, err := store.Init(b.TempDir(), "test")
	if err != nil {
		b.Fatal(err)
	}
	n := 0
	for _, users := range []int{100, 1000} {
		var key ssh.PublicKey
		for ; n < users; n++ {
			var lines []string
			for range 3 {
				k, line := newKey(b)
				key, lines = k, append(lines, line)
			}
			// As AddUser leaves it, without looking at all others each time.
			u := s.UserAt("user" + strings.Repeat("x", n/100) + string(rune('a'+n/10%10)) + string(rune('a'+n%10)))
			if err := os.MkdirAll(u.LockRoot, 0o700); err != nil {
				b.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(u.Dir, tree.KeysFile), []byte(strings.Join(lines, "\n")), 0o600); err != nil {
				b.Fatal(err)
			}
		}
		b.Run(strings.TrimSpace(time.Duration(users).String()), func(b *testing.B) {
			for b.Loop() {
				if _, err := ownerOf(s, key); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkUsage(b *testing.B) {
	dir := b.TempDir()
	for i := range 64 << 10 {
		d := filepath.Join(dir, "hdk", string("0123456789abcdef"[i>>4&15])+string("0123456789abcdef"[i&15]))
		if i < 256 {
			if err := os.MkdirAll(d, 0o700); err != nil {
				b.Fatal(err)
			}
		}
		if err := os.WriteFile(filepath.Join(d, strings.Repeat("0", 50)+time.Duration(i).String()), nil, 0o400); err != nil {
			b.Fatal(err)
		}
	}
	p := store.User{LockRoot: dir, ContentRoot: dir}.At(".")
	b.Run("count", func(b *testing.B) {
		for b.Loop() {
			if u, err := store.Count(p.HdkDir(), 1); err != nil || u.Objects != 64<<10 {
				b.Fatal(u, err)
			}
		}
	})
	time.Sleep(2 * store.Settled) // the benchmark's, to have it kept
	b.Run("kept", func(b *testing.B) {
		for b.Loop() {
			if u, err := p.Usage(); err != nil || u.Objects != 64<<10 {
				b.Fatal(u, err)
			}
		}
	})
}

// Changes of one user at once lose nothing of one another.
func TestChangeUserAtOnce(t *testing.T) {
	s := storetest.New(t)
	var all sync.WaitGroup
	for i := range 8 {
		_, line := newKey(t)
		all.Go(func() {
			if err := s.AddKeys("alice", []string{line}); err != nil {
				t.Error(err)
			}
		})
		all.Go(func() {
			err := s.ChangeUser("alice", func(c *store.UserConfig) error {
				c.Groups = append(c.Groups, "group"+string(rune('a'+i)))
				return nil
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	c, err := s.UserConfig("alice")
	if err != nil || len(c.Groups) != 8 {
		t.Errorf("got %+v, %v", c, err)
	}
	if lines, err := s.Keys("alice"); err != nil || len(lines) != 8 {
		t.Errorf("got %d keys, %v", len(lines), err)
	}
	storetest.WantSound(t, s)
}
