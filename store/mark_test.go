package store_test

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"isr/store"
	"isr/store/check"
	"isr/store/parcel"
	"isr/store/storetest"
)

// A record of before there were tags reads as it did, and what another program
// wrote into it is still there when it was rewritten.
func TestVersionRecord(t *testing.T) {
	s := storetest.New(t)
	p := storetest.Versioned(t, s, 2)
	old, err := os.ReadFile(p.VersionFile(1))
	if err != nil || strings.Contains(string(old), "TAG") || strings.Contains(string(old), "PIN") {
		t.Fatalf("a new record: %s, %v", old, err)
	}
	if err := os.WriteFile(p.VersionFile(1), append(old, "SIGNED:=by carol\nX:=1\nX:=2\n"...), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(p.Tag(1, "gold", false), p.Tag(1, "2026", false), p.Tag(1, "a.b", false), p.Pin(1, ""), p.Comment(1, "the first\n")); !errors.Is(err, parcel.ErrUsage) {
		t.Fatalf("got %v, want that 2026 is no tag", err)
	}
	got, err := os.ReadFile(p.VersionFile(1))
	want := strings.Replace(string(old), "COMMENT:=a test\n", "COMMENT:=the first\n", 1) + "TAG:=gold\nTAG:=a.b\nPIN:=pinned\nSIGNED:=by carol\nX:=1\nX:=2\n"
	if err != nil || string(got) != want {
		t.Errorf("got %s, %v, want %s", got, err, want)
	}
	info, err := os.ReadFile(filepath.Join(p.ContentDir(), "000001", "info"))
	if err != nil || !strings.Contains(string(info), "COMMENT:=the first\nTAG:=gold\nTAG:=a.b\nPIN:=pinned\n") || strings.Contains(string(info), "SIGNED") {
		t.Errorf("info: got %s, %v", info, err)
	}
	if err := errors.Join(second(p.Untag("gold")), second(p.Untag("a.b")), p.Unpin(1), p.Comment(1, "a test"), p.Comment(0, "mine")); err != nil {
		t.Fatal(err)
	}
	got, _ = os.ReadFile(p.VersionFile(1))
	if want := string(old) + "SIGNED:=by carol\nX:=1\nX:=2\n"; string(got) != want {
		t.Errorf("taken back: got %s, want %s", got, want)
	}
	if c, err := p.Config(); err != nil || c.Comment != "mine" {
		t.Errorf("comment of the parcel: %v, %v", c, err)
	}
	if ps := storetest.WantSound(t, s); len(ps) != 0 {
		t.Errorf("notes: %v", ps)
	}
}

func FuzzParseVersion(f *testing.F) {
	s := storetest.New(f)
	b, err := os.ReadFile(storetest.NewParcel(f, s).VersionFile(1))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(string(b))
	f.Add(string(b) + "TAG:=a\nTAG:=b\nPIN:=why\nNEW:=x\n")
	f.Add("KEYROOT:=-\n")
	f.Fuzz(func(t *testing.T, text string) {
		v, err := store.ParseVersion([]byte(text), 7)
		if err != nil {
			return
		}
		b, err := v.Encode()
		if err != nil {
			return // a year that cannot be printed
		}
		if again, err := store.ParseVersion(b, 7); err != nil || !reflect.DeepEqual(again, v) {
			t.Errorf("got %+v, %v, want %+v", again, err, v)
		}
	})
}

func TestResolve(t *testing.T) {
	s := storetest.New(t)
	p := storetest.Versioned(t, s, 5)
	if err := errors.Join(p.Tag(2, "gold", false), p.Tag(4, "v1.0", false), p.Tag(4, "7up", false)); err != nil {
		t.Fatal(err)
	}
	// What prune leaves: a gap, and a record that cannot be read.
	os.Remove(p.VersionFile(3))
	os.RemoveAll(filepath.Join(p.ContentDir(), "000003"))
	os.WriteFile(p.VersionFile(1), []byte("nonsense"), 0o600)
	if _, err := p.Resolve("3"); err == nil || !strings.Contains(err.Error(), "version 3: was pruned") {
		t.Errorf("one that was pruned: %v", err)
	}
	for text, want := range map[string]int{"1": 1, "5": 5, "000005": 5, "head": 5, "head~0": 5, "head~1": 4, "head~2": 2, "head~3": 1, "gold": 2, "v1.0": 4, "7up": 4} {
		if v, err := p.Resolve(text); v != want || err != nil {
			t.Errorf("%s: got %d, %v, want %d", text, v, err, want)
		}
	}
	for text, want := range map[string]error{"3": parcel.ErrNoVersion, "6": parcel.ErrNoVersion, "99999999999999999999": parcel.ErrNoVersion,
		"head~4": parcel.ErrNoVersion, "silver": parcel.ErrNoVersion, "Gold": parcel.ErrNoVersion, "HEAD": parcel.ErrNoVersion, "0": parcel.ErrUsage, "000": parcel.ErrUsage,
		"": parcel.ErrUsage, "-1": parcel.ErrUsage, "+1": parcel.ErrNoVersion, "1.5~": parcel.ErrUsage, "head~": parcel.ErrUsage, "head~-1": parcel.ErrUsage, "head~+1": parcel.ErrUsage,
		"head~99999999999999999999": parcel.ErrUsage, "gold~1": parcel.ErrUsage, "a b": parcel.ErrUsage, "../1": parcel.ErrUsage, "\x1b[2J": parcel.ErrUsage} {
		if v, err := p.Resolve(text); !errors.Is(err, want) {
			t.Errorf("%q: got %d, %v, want %v", text, v, err, want)
		}
	}
}

func TestMarksRefused(t *testing.T) {
	s := storetest.New(t)
	p := storetest.Versioned(t, s, 2)
	if err := p.Tag(1, "gold", false); err != nil {
		t.Fatal(err)
	}
	long := strings.Repeat("x", store.MaxText+1)
	for what, c := range map[string]struct{ got, want error }{
		"of another":        {p.Tag(2, "gold", false), parcel.ErrExists},
		"no version":        {p.Tag(3, "silver", false), parcel.ErrNoVersion},
		"version 0":         {p.Tag(0, "silver", false), parcel.ErrUsage},
		"version -1":        {p.Pin(-1, ""), parcel.ErrUsage},
		"digits":            {p.Tag(1, "17", false), parcel.ErrUsage},
		"head":              {p.Tag(1, "head", false), parcel.ErrUsage},
		"path":              {p.Tag(1, "../x", false), parcel.ErrUsage},
		"two lines":         {p.Tag(1, "a\nKEYROOT:=-", false), parcel.ErrUsage},
		"no tag":            {second(p.Untag("silver")), parcel.ErrNoVersion},
		"bad tag":           {second(p.Untag("a b")), parcel.ErrUsage},
		"pin of none":       {p.Pin(9, ""), parcel.ErrNoVersion},
		"unpin of none":     {p.Unpin(9), parcel.ErrNoVersion},
		"long reason":       {p.Pin(1, long), parcel.ErrUsage},
		"long comment":      {p.Comment(1, long), parcel.ErrUsage},
		"comment of none":   {p.Comment(9, "x"), parcel.ErrNoVersion},
		"long break":        {second(p.Break(store.AnyEpoch, "root", long)), parcel.ErrUsage},
		"break of the free": {second(p.Break(7, "root", "")), parcel.ErrNotHolder},
	} {
		if !errors.Is(c.got, c.want) {
			t.Errorf("%s: got %v, want %v", what, c.got, c.want)
		}
	}
	vs, err := p.Versions(0)
	if err != nil || !slices.Equal(vs[1].Tags, []string{"gold"}) || len(vs[0].Tags) != 0 || vs[0].Pin+vs[1].Pin != "" {
		t.Errorf("got %+v, %v", vs, err)
	}
	// The text is one plain line, whatever was typed.
	if err := errors.Join(p.Pin(1, " a\nKEYROOT:=-\x1b "), p.Comment(1, "x\r\nTAG:=y\u202e")); err != nil {
		t.Fatal(err)
	}
	if v, err := p.Version(1); err != nil || v.Pin != "a KEYROOT:=-" || v.Comment != "x  TAG:=y" || len(v.Tags) != 1 {
		t.Errorf("got %+v, %v", v, err)
	}
}

// A link in place of a version's directory is not followed.
func TestMarksPlanted(t *testing.T) {
	s := storetest.New(t)
	p := storetest.Versioned(t, s, 2)
	victim := storetest.TempDir(t)
	for _, name := range []string{"info", ".tmp-mine"} {
		if err := os.WriteFile(filepath.Join(victim, name), []byte("victim's"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	dir := filepath.Join(p.ContentDir(), "000001")
	if err := errors.Join(os.RemoveAll(dir), os.Symlink(victim, dir)); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(p.Tag(1, "gold", false), p.Pin(1, "why"), p.Comment(1, "text"), second(p.Untag("gold"))); err != nil {
		t.Error(err)
	}
	for _, name := range []string{"info", ".tmp-mine"} {
		if b, err := os.ReadFile(filepath.Join(victim, name)); err != nil || string(b) != "victim's" {
			t.Errorf("%s: got %q, %v", name, b, err)
		}
	}
}

// Tags, pins, rollbacks and renames in any order: a simple model agrees.
func TestMarksModel(t *testing.T) {
	s := storetest.New(t)
	round := 0
	rapid.Check(t, func(r *rapid.T) {
		round++
		name := fmt.Sprintf("p%d", round)
		p, err := s.Create(ctx, "alice", name, store.CreateOptions{DiskSize: 10 * storetest.Chunk, ChunkSize: storetest.Chunk})
		if err != nil {
			r.Fatal(err)
		}
		storetest.Commit(t, p, storetest.Change{1: storetest.ChunkOf("one")})
		defer func() { s.DelParcel(p.User(), p.Name(), true) }()
		versions, tags, pins := 2, map[string]int{}, map[int]string{}
		equal := map[int]int{1: 1, 2: 2} // what a version's content is
		tag := rapid.SampledFrom([]string{"a", "b", "c"})
		version := rapid.IntRange(1, 5)
		want := func(what string, err, want error) {
			if want == nil && err != nil || !errors.Is(err, want) {
				r.Fatalf("%s: got %v, want %v", what, err, want)
			}
		}
		there := func(v int) error {
			if v > versions {
				return parcel.ErrNoVersion
			}
			return nil
		}
		r.Repeat(map[string]func(*rapid.T){
			"tag": func(r *rapid.T) {
				v, name, move := version.Draw(r, "version"), tag.Draw(r, "tag"), rapid.Bool().Draw(r, "move")
				expect := there(v)
				if has, ok := tags[name]; ok && has != v && !move {
					expect = parcel.ErrExists
				}
				want("tag", p.Tag(v, name, move), expect)
				if expect == nil {
					tags[name] = v
				}
			},
			"untag": func(r *rapid.T) {
				name := tag.Draw(r, "tag")
				v, err := p.Untag(name)
				if has, ok := tags[name]; ok && (err != nil || v != has) {
					r.Fatalf("untag: got %d, %v, want %d", v, err, has)
				} else if !ok {
					want("untag", err, parcel.ErrNoVersion)
				}
				delete(tags, name)
			},
			"pin": func(r *rapid.T) {
				v, why := version.Draw(r, "version"), rapid.OneOf(tag, rapid.Just("")).Draw(r, "why")
				want("pin", p.Pin(v, why), there(v))
				if v <= versions {
					pins[v] = cmp.Or(why, pins[v], "pinned")
				}
			},
			"unpin": func(r *rapid.T) {
				v := version.Draw(r, "version")
				want("unpin", p.Unpin(v), there(v))
				delete(pins, v)
			},
			"rollback": func(r *rapid.T) {
				v := version.Draw(r, "version")
				made, err := p.RollbackFree(ctx, "server", v, "")
				want("rollback", err, there(v))
				if err == nil && equal[v] != equal[versions] {
					versions++
					equal[versions] = equal[v]
				}
				if err == nil && made != versions {
					r.Fatalf("rollback: got %d, want %d", made, versions)
				}
			},
			"rename": func(r *rapid.T) {
				user, to := rapid.SampledFrom([]string{"alice", "bob"}).Draw(r, "user"), name+tag.Draw(r, "name")
				expect := error(nil)
				if user == p.User() && to == p.Name() {
					expect = parcel.ErrExists
				}
				was := p
				want("rename", s.Rename(p.User(), p.Name(), user, to), expect)
				if expect != nil {
					return
				}
				if p, err = s.Parcel(user, to); err != nil {
					r.Fatal(err)
				}
				want("the old name", second(s.Parcel(was.User(), was.Name())), parcel.ErrNoParcel)
			},
			"": func(r *rapid.T) {
				infos, err := p.Versions(0)
				if err != nil || len(infos) != versions {
					r.Fatalf("versions: got %+v, %v, want %d", infos, err, versions)
				}
				got := map[string]int{}
				for _, i := range infos {
					for _, t := range i.Tags {
						got[t] = i.Version
					}
					if i.Pin != pins[i.Version] {
						r.Fatalf("version %d: pin %q, want %q", i.Version, i.Pin, pins[i.Version])
					}
				}
				if !reflect.DeepEqual(got, tags) {
					r.Fatalf("tags: got %v, want %v", got, tags)
				}
			},
		})
		var ps []check.Problem
		if _, err := check.Run(ctx, s, check.Options{User: p.User(), Parcel: p.Name(), Content: true}, func(p check.Problem) { ps = append(ps, p) }); err != nil || len(ps) > 0 {
			r.Fatalf("check: %v: %v", err, ps)
		}
	})
}
