package backup

import (
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"isr/store"
	"isr/store/backup/mirror"
	"isr/store/backup/snapshot"
	"isr/store/backup/target"
	"isr/store/backup/target/targettest"
	"isr/store/check"
	"isr/store/keep"
	"isr/store/parcel"
)

// model is a realm as simply as can be: what each version of each parcel has
// in three chunks, and who holds it.
type model map[[2]string]*modelParcel

type modelParcel struct {
	versions map[int][3]string // by number; pruned ones are not there
	head     int
	nonce    string // "" while it is free
}

func (m model) clone() model {
	c := make(model)
	for key, p := range m {
		q := *p
		q.versions = maps.Clone(p.versions)
		c[key] = &q
	}
	return c
}

// matches fails unless the realm is as the model says.
func (m model) matches(r *rapid.T, t *testing.T, s *store.Store, locks bool) {
	var count int
	users, err := s.Users()
	if err != nil {
		r.Fatal(err)
	}
	for _, user := range users {
		names, err := s.Parcels(user)
		if err != nil {
			r.Fatal(err)
		}
		for _, name := range names {
			count++
			want := m[[2]string{user, name}]
			if want == nil {
				r.Fatalf("parcel %s/%s is there", user, name)
			}
			p := mustParcel(t, s, user, name)
			vs, err := p.Versions(0)
			if err != nil || len(vs) != len(want.versions) || vs[0].Version != want.head {
				r.Fatalf("%s/%s: versions %+v, %v; want %v", user, name, vs, err, want.versions)
			}
			for v, chunks := range want.versions {
				for n, text := range chunks {
					if got := chunk(t, p, v, int64(n*250)); got != text {
						r.Fatalf("%s/%s version %d: chunk %d is %q, want %q", user, name, v, n, got, text)
					}
				}
			}
			l, err := p.Holder()
			if err != nil || locks && (l != nil) != (want.nonce != "") {
				r.Fatalf("%s/%s: held by %v, %v; want %q", user, name, l, err, want.nonce)
			}
			if l != nil {
				if _, err := p.CheckLock(want.nonce); err != nil {
					r.Fatal(err)
				}
			}
		}
	}
	if count != len(m) {
		r.Fatalf("%d parcels, want %d", count, len(m))
	}
	if _, err := check.Run(ctx, s, check.Options{Content: true}, func(p check.Problem) {
		if p.Severity == check.Bad {
			r.Fatal(p)
		}
	}); err != nil {
		r.Fatal(err)
	}
}

// Parcels are made, committed to, locked, pruned and removed, snapshots made,
// pruned and restored, mirrors brought up to date, in any order: a restored
// realm is what the realm was when the snapshot was made, and a mirror what it
// was at the last pass.
func TestModel(t *testing.T) {
	// A round makes and hashes some hundred files; more of them by -rapid.checks.
	if checks := flag.Lookup("rapid.checks"); checks.Value.String() == checks.DefValue {
		checks.Value.Set("8")
		defer checks.Value.Set(checks.DefValue)
	}
	round := 0
	dir := targettest.MemDir(t)
	rapid.Check(t, func(r *rapid.T) {
		round++
		base := filepath.Join(dir, fmt.Sprint(round))
		if err := os.Mkdir(base, 0o700); err != nil {
			r.Fatal(err)
		}
		defer os.RemoveAll(base)
		s, err := store.Init(filepath.Join(base, "root"), "test")
		if err != nil {
			r.Fatal(err)
		}
		for _, user := range []string{"alice", "bob"} {
			if err := s.AddUser(user, nil); err != nil {
				r.Fatal(err)
			}
		}
		place, err := target.OpenDir(filepath.Join(base, "place"), true)
		if err != nil {
			r.Fatal(err)
		}
		defer place.Close()
		standby, err := target.OpenDir(filepath.Join(base, "standby"), true)
		if err != nil {
			r.Fatal(err)
		}
		defer standby.Close()
		m, restores := make(model), 0
		snaps := make(map[string]model)
		some := func(r *rapid.T) (key [2]string, p *store.Parcel) {
			if len(m) == 0 {
				r.Skip()
			}
			keys := slices.SortedFunc(maps.Keys(m), func(a, b [2]string) int { return slices.Compare(a[:], b[:]) })
			key = rapid.SampledFrom(keys).Draw(r, "parcel")
			return key, mustParcel(t, s, key[0], key[1])
		}
		newKey := func(r *rapid.T) [2]string {
			key := [2]string{rapid.SampledFrom([]string{"alice", "bob"}).Draw(r, "user"), rapid.SampledFrom([]string{"a", "b", "c"}).Draw(r, "name")}
			if m[key] != nil {
				r.Skip()
			}
			return key
		}
		r.Repeat(map[string]func(*rapid.T){
			"create": func(r *rapid.T) {
				key := newKey(r)
				newParcel(t, s, key[0], key[1])
				m[key] = &modelParcel{versions: map[int][3]string{1: {}}, head: 1}
			},
			"copy": func(r *rapid.T) {
				from, _ := some(r)
				key := newKey(r)
				if _, err := s.Copy(ctx, from[0], from[1], key[0], key[1]); err != nil {
					r.Fatal(err)
				}
				m[key] = &modelParcel{versions: map[int][3]string{1: m[from].versions[m[from].head]}, head: 1}
			},
			"commit": func(r *rapid.T) {
				key, p := some(r)
				q := m[key]
				next := q.versions[q.head]
				n := rapid.IntRange(0, 2).Draw(r, "chunk")
				next[n] = rapid.SampledFrom([]string{"x", "y", "z"}).Draw(r, "content")
				q.head = commit(t, p, q.nonce, map[int64]string{int64(n * 250): next[n]})
				q.versions[q.head] = next
			},
			"lock": func(r *rapid.T) {
				key, p := some(r)
				if m[key].nonce != "" {
					if _, err := p.Release(m[key].nonce, false); err != nil {
						r.Fatal(err)
					}
					m[key].nonce = ""
					return
				}
				l, err := p.Acquire(key[0], "h", parcel.NewID())
				if err != nil {
					r.Fatal(err)
				}
				m[key].nonce = l.Nonce
			},
			"forget": func(r *rapid.T) {
				key, p := some(r)
				v := rapid.IntRange(1, m[key].head).Draw(r, "version")
				if _, ok := m[key].versions[v]; !ok || v == m[key].head {
					r.Skip()
				}
				forget(t, p, v)
				delete(m[key].versions, v)
			},
			"delete": func(r *rapid.T) {
				key, _ := some(r)
				if err := s.DelParcel(key[0], key[1], true); err != nil {
					r.Fatal(err)
				}
				delete(m, key)
			},
			"backup": func(r *rapid.T) {
				res, err := Make(ctx, s, place, Options{Warn: func(text string) { r.Fatal(text) }})
				if err != nil {
					r.Fatal(err)
				}
				snaps[res.Snapshot.ID] = m.clone()
			},
			"prune": func(r *rapid.T) {
				plan, err := PlanPrune(ctx, place, keep.Rules{Last: rapid.IntRange(1, 3).Draw(r, "keep")})
				if err != nil {
					r.Fatal(err)
				}
				if _, err := Prune(ctx, place, plan.Remove, nil); err != nil {
					r.Fatal(err)
				}
				for _, id := range plan.Remove {
					delete(snaps, id)
				}
				if ids, err := snapshot.IDs(ctx, place); err != nil || !slices.Equal(ids, slices.Sorted(maps.Keys(snaps))) {
					r.Fatalf("snapshots %v, %v; want %v", ids, err, snaps)
				}
				v, err := Verify(ctx, place, VerifyOptions{Sample: 1, Problem: func(text string) { r.Fatal(text) }})
				if len(snaps) > 0 && (err != nil || v.Spare != 0) {
					r.Fatalf("%+v, %v", v, err)
				}
			},
			"restore": func(r *rapid.T) {
				if len(snaps) == 0 {
					r.Skip()
				}
				id := rapid.SampledFrom(slices.Sorted(maps.Keys(snaps))).Draw(r, "snapshot")
				restores++
				free := rapid.Bool().Draw(r, "release")
				n, _, err := Restore(ctx, filepath.Join(base, fmt.Sprint("new", restores)), place, RestoreOptions{Snapshot: id, Free: free, Warn: func(text string) { r.Fatal(text) }})
				if err != nil {
					r.Fatal(err)
				}
				snaps[id].matches(r, t, n, !free)
			},
			"bring back": func(r *rapid.T) {
				if len(snaps) == 0 {
					r.Skip()
				}
				id := rapid.SampledFrom(slices.Sorted(maps.Keys(snaps))).Draw(r, "snapshot")
				key := [2]string{rapid.SampledFrom([]string{"alice", "bob"}).Draw(r, "user"), rapid.SampledFrom([]string{"a", "b", "c"}).Draw(r, "name")}
				then := snaps[id][key]
				_, err := RestoreInto(ctx, s, place, RestoreOptions{Snapshot: id, User: key[0], Parcel: key[1], Warn: func(text string) { r.Fatal(text) }})
				switch {
				case then == nil:
					if !errors.Is(err, parcel.ErrNoParcel) {
						r.Fatal(err)
					}
				case m[key] != nil:
					if !errors.Is(err, parcel.ErrExists) {
						r.Fatal(err)
					}
				case err != nil:
					r.Fatal(err)
				default:
					m[key] = model{key: then}.clone()[key]
				}
			},
			"mirror": func(r *rapid.T) {
				_, err := mirror.Pass(ctx, s, standby, mirror.Options{Delete: true, Warn: func(text string) { r.Fatal(text) }})
				if errors.Is(err, parcel.ErrConflict) {
					// A parcel that was made anew, or brought back older.
					standby.Close()
					if err := os.RemoveAll(standby.String()); err != nil {
						r.Fatal(err)
					}
					if standby, err = target.OpenDir(standby.String(), true); err != nil {
						r.Fatal(err)
					}
					_, err = mirror.Pass(ctx, s, standby, mirror.Options{Delete: true})
				}
				if err != nil {
					r.Fatal(err)
				}
				n, err := store.Open(standby.String())
				if err != nil {
					r.Fatal(err)
				}
				m.matches(r, t, n, true)
			},
			"": func(r *rapid.T) {},
		})
		m.matches(r, t, s, true)
	})
}
