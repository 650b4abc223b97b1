package du_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"pgregory.net/rapid"

	"isr/store"
	"isr/store/du"
	"isr/store/gc"
	"isr/store/keep"
	"isr/store/keyring"
	"isr/store/prune"
	"isr/store/seal"
	"isr/store/storetest"
)

var ctx = context.Background()

// realDu is what du(1) says of all files below the directories, each counted
// once.
func realDu(t testing.TB, dirs ...string) int64 {
	t.Helper()
	find := exec.Command("find", append(dirs, "-type", "f", "-print0")...)
	names, err := find.Output()
	if err != nil {
		t.Fatal(err)
	}
	if len(names) == 0 {
		return 0
	}
	cmd := exec.Command("du", "--files0-from=-", "-c", "--block-size=1")
	cmd.Stdin = bytes.NewReader(names)
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	n, err := strconv.ParseInt(strings.Fields(lines[len(lines)-1])[0], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// disk is Disk by name of the parcel, and of the user.
func disk(t testing.TB, s *store.Store, o du.Options) (map[string]du.Disk, map[string]du.Sum) {
	t.Helper()
	parcels, sums := make(map[string]du.Disk), make(map[string]du.Sum)
	err := du.Run(ctx, s, o, func(d du.Disk) { parcels[d.User+"/"+d.Parcel] = d }, func(user string, sum du.Sum) { sums[user] = sum })
	if err != nil {
		t.Fatal(err)
	}
	return parcels, sums
}

func TestDisk(t *testing.T) {
	s := storetest.New(t)
	image := storetest.WriteImage(t, 300*storetest.Chunk, map[int64][]byte{0: storetest.Random(100*storetest.Chunk, 1)})
	gold, err := s.Import(ctx, "alice", "gold", image, store.CreateOptions{ChunkSize: storetest.Chunk, Format: "raw", MemSize: 10 * storetest.Chunk})
	if err != nil {
		t.Fatal(err)
	}
	for _, to := range [][2]string{{"alice", "copy"}, {"bob", "a"}, {"bob", "b"}} {
		if _, err := s.Copy(ctx, "alice", "gold", to[0], to[1]); err != nil {
			t.Fatal(err)
		}
	}
	parcelOf := func(user, name string) *store.Parcel {
		p, err := s.Parcel(user, name)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	storetest.Commit(t, gold, storetest.Change{0: storetest.Random(storetest.Chunk, 2), 1: storetest.Random(storetest.Chunk, 3)})
	storetest.Commit(t, gold, storetest.Change{0: storetest.Random(storetest.Chunk, 4), 200: storetest.Random(storetest.Chunk, 5)})
	storetest.Commit(t, parcelOf("bob", "a"), storetest.Change{7: storetest.Random(storetest.Chunk, 6)})
	// Only alice's two have this.
	if _, err := s.Copy(ctx, "alice", "gold", "alice", "newer"); err != nil {
		t.Fatal(err)
	}
	parcels, sums := disk(t, s, du.Options{})
	for name, d := range parcels {
		p := parcelOf(d.User, d.Parcel)
		if got, want := d.Unique+d.Own+d.Shared, realDu(t, p.HdkDir()); got != want {
			t.Errorf("%s: %d bytes, du says %d", name, got, want)
		}
		if d.Error != nil || d.Garbage != 0 || d.Frees != 0 || int(d.Objects) != len(storetest.ObjectsIn(t, p)) {
			t.Errorf("%s: got %+v", name, d)
		}
		// The same alone.
		one, _ := disk(t, s, du.Options{User: d.User, Parcel: d.Parcel})
		if fmt.Sprint(one[name]) != fmt.Sprint(d) {
			t.Errorf("%s: among all %+v, alone %+v", name, d, one[name])
		}
	}
	if d := parcels["alice/gold"]; d.Logical != 310*storetest.Chunk || d.Data != 101*storetest.Chunk || d.Own == 0 || d.Unique == 0 || d.Shared == 0 {
		t.Errorf("gold: got %+v", d)
	}
	if d := parcels["alice/gold"]; len(d.Versions) != 3 || d.Versions[0].Only != 0 || d.Versions[1].Only == 0 || d.Versions[2].Only != 0 {
		t.Errorf("gold: by version: %+v; want only version 2, which no copy has", d.Versions)
	}
	for user, sum := range sums {
		var rest, all []string
		for _, u := range []string{"alice", "bob"} {
			dirs, _ := filepath.Glob(filepath.Join(s.Root(), "users", u, "isr", "*", "hdk"))
			if user == "" || u == user {
				all = append(all, dirs...)
			} else {
				rest = append(rest, dirs...)
			}
		}
		if want := realDu(t, all...); sum.Disk != want {
			t.Errorf("%q: %d bytes, du says %d", user, sum.Disk, want)
		}
		want := realDu(t, append(rest, all...)...)
		if rest != nil {
			want -= realDu(t, rest...)
		}
		if sum.Alone != want {
			t.Errorf("%q: %d bytes alone, du says %d", user, sum.Alone, want)
		}
	}
	if len(sums) != 3 {
		t.Errorf("sums: got %v", sums)
	}
}

// What a prune is said to free is what it frees, of one parcel and of all.
func TestDiskFrees(t *testing.T) {
	s := storetest.New(t)
	round := 0
	storetest.Fewer(t, 15)
	rapid.Check(t, func(r *rapid.T) {
		round++
		var parcels []*store.Parcel
		users := []string{"alice", "bob"}
		for i := range 4 {
			name := fmt.Sprintf("p%d-%d", round, i)
			user := users[i%2]
			var p *store.Parcel
			var err error
			if i == 0 {
				p, err = s.Create(ctx, user, name, store.CreateOptions{DiskSize: 600 * storetest.Chunk, ChunkSize: storetest.Chunk})
			} else {
				from := rapid.SampledFrom(parcels).Draw(r, "from")
				p, err = s.Copy(ctx, from.User(), from.Name(), user, name)
			}
			if err != nil {
				r.Fatal(err)
			}
			defer s.DelParcel(user, name, true)
			parcels = append(parcels, p)
			for range rapid.IntRange(0, 3).Draw(r, "versions") {
				c := storetest.Change{}
				for range rapid.IntRange(1, 3).Draw(r, "chunks") {
					c[rapid.Int64Range(0, 599).Draw(r, "chunk")] = storetest.ChunkOf(rapid.StringMatching("[a-e]{0,2}").Draw(r, "content"))
				}
				storetest.Commit(t, p, c)
			}
		}
		rules := keep.Rules{Last: rapid.IntRange(1, 3).Draw(r, "keep")}
		dirs := []string{filepath.Join(s.Root(), "users/alice/isr"), filepath.Join(s.Root(), "users/bob/isr")}
		objects := func() int64 {
			var sum int64
			seen := make(map[uint64]bool)
			for _, d := range dirs {
				found, _ := filepath.Glob(filepath.Join(d, "*", "hdk", "??", "*"))
				for _, name := range found {
					fi, err := os.Lstat(name)
					if err != nil {
						r.Fatal(err)
					}
					if st := fi.Sys().(*syscall.Stat_t); !seen[st.Ino] {
						seen[st.Ino] = true
						sum += st.Blocks * 512
					}
				}
			}
			return sum
		}
		_, sums := disk(t, s, du.Options{Keep: rules})
		before, freed := objects(), int64(0)
		for _, p := range parcels {
			said, _ := disk(t, s, du.Options{User: p.User(), Parcel: p.Name(), Keep: rules})
			plan, err := prune.Choose(p, rules)
			if err != nil {
				r.Fatal(err)
			}
			was := objects()
			_, c, err := prune.Run(ctx, p, prune.Prunable(plan))
			if err != nil {
				r.Fatal(err)
			}
			if want := said[p.User()+"/"+p.Name()].Frees; c.Freed != want || was-objects() != want {
				r.Fatalf("%s: freed %d, in fact %d, was said to be %d", p.Name(), c.Freed, was-objects(), want)
			}
			freed += c.Freed
		}
		if before-objects() != sums[""].Frees || freed != sums[""].Frees {
			r.Fatalf("all: freed %d, in fact %d, was said to be %d", freed, before-objects(), sums[""].Frees)
		}
	})
}

// Trees in which each block has the same one 256 times, and which name blocks
// as chunks before they have them as blocks, are walked in no time.
func TestReachBomb(t *testing.T) {
	s := storetest.New(t)
	p, err := s.Create(ctx, "alice", "bomb", store.CreateOptions{DiskSize: storetest.Chunk << 32, ChunkSize: storetest.Chunk})
	if err != nil {
		t.Fatal(err)
	}
	l, err := p.Acquire("alice", "h", "id")
	if err != nil {
		t.Fatal(err)
	}
	cfg, _ := p.Config()
	sealer := cfg.Sealer()
	put := func(plain []byte) seal.Ref {
		ref, sealed, err := sealer.Seal(plain)
		if err == nil {
			err = storetest.Stage(p, ref.Tag, sealed)
		}
		if err != nil {
			t.Fatal(err)
		}
		return ref
	}
	block := func(level byte, refs ...seal.Ref) seal.Ref {
		b := append([]byte("isrK"), level)
		for i := range 256 {
			ref := refs[i%len(refs)]
			b = append(append(append(b, 1), ref.Tag...), ref.Key...)
		}
		return put(b)
	}
	refs := []seal.Ref{put(storetest.ChunkOf("x"))}
	for level := range 4 {
		refs = append(refs, block(byte(level+1), refs[level]))
	}
	root, _ := p.Root(ctx, 0)
	root = root.Clone()
	first := keyring.NewImage("first", 256*storetest.Chunk, storetest.Chunk)
	first.Ref = block(1, refs...)
	im, _ := root.Image(keyring.Disk)
	im.Ref = refs[4]
	root.Images = []keyring.Image{first, im}
	keyroot, sealed, err := keyring.SealRoot(sealer, root)
	if err == nil {
		err = storetest.Stage(p, keyroot.Tag, sealed)
	}
	if err != nil {
		t.Fatal(err)
	}
	if v, err := p.Commit(ctx, store.CommitRequest{Nonce: l.Nonce, Parent: 1, Keyroot: keyroot, ID: "id"}); v != 2 || err != nil {
		t.Fatalf("commit: %d, %v", v, err)
	}
	if c := storetest.Collect(t, s, gc.Options{})["alice/bomb"]; c.Error != nil || c.Objects > 0 {
		t.Errorf("gc: %+v", c)
	}
	parcels, _ := disk(t, s, du.Options{})
	if d := parcels["alice/bomb"]; d.Error != nil || d.Data != storetest.Chunk<<32+256*storetest.Chunk || d.Garbage != 0 {
		t.Errorf("du: %+v", d)
	}
	if _, err := s.Fork(ctx, "alice", "bomb", 2, "fork", "", "h", "id"); err != nil {
		t.Errorf("fork: %v", err)
	}
	storetest.WantSound(t, s)
}
