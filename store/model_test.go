package store_test

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"testing"

	"pgregory.net/rapid"

	"isr/store"
	"isr/store/check"
	"isr/store/parcel"
	"isr/store/storetest"
)

// model is a parcel as simply as can be: what every version's disk holds, who
// holds the lock.
type model struct {
	versions []map[int64]string // versions[0] is version 1
	holder   int                // host, -1: free
	nonces   [2]string          // the last one each host got
	epoch    int64
}

// Two hosts acquire, stage, commit, roll back, release, break and crash in any
// order; the store agrees with the model at every step.
func TestModel(t *testing.T) {
	s := storetest.New(t)
	round := 0
	rapid.Check(t, func(r *rapid.T) {
		round++
		name := fmt.Sprintf("p%d", round)
		p, err := s.Create(ctx, "alice", name, store.CreateOptions{DiskSize: 600 * storetest.Chunk, ChunkSize: storetest.Chunk})
		if err != nil {
			r.Fatal(err)
		}
		defer s.DelParcel("alice", name, true)
		m := model{versions: []map[int64]string{{}}, holder: -1}
		host := rapid.IntRange(0, 1)
		hosts := [2]string{"a", "b"}
		want := func(what string, err error, ok bool, otherwise error) {
			if ok && err != nil || !ok && !errors.Is(err, otherwise) {
				r.Fatalf("%s: got %v; want success %v, else %v", what, err, ok, otherwise)
			}
		}
		r.Repeat(map[string]func(*rapid.T){
			"acquire": func(r *rapid.T) {
				h := host.Draw(r, "host")
				l, err := p.Acquire("alice", hosts[h], parcel.NewID())
				want("acquire", err, m.holder < 0, parcel.ErrLocked)
				if err != nil {
					return
				}
				m.epoch++
				if l.Epoch != m.epoch || l.Version != len(m.versions) {
					r.Fatalf("lock: got epoch %d version %d, want %d %d", l.Epoch, l.Version, m.epoch, len(m.versions))
				}
				m.holder, m.nonces[h] = h, l.Nonce
			},
			"check": func(r *rapid.T) {
				h := host.Draw(r, "host")
				_, err := p.CheckLock(m.nonces[h])
				want("check", err, m.holder == h, parcel.ErrNotHolder)
			},
			"release": func(r *rapid.T) {
				h := host.Draw(r, "host")
				_, err := p.Release(m.nonces[h], false)
				// One who released, and nobody since, is answered again.
				if m.holder != h && err == nil {
					if last, _ := p.LastReleased(); last == nil || last.Host != hosts[h] {
						r.Fatalf("release by %s, who did not hold it: accepted", hosts[h])
					}
					return
				}
				want("release", err, m.holder == h, parcel.ErrNotHolder)
				if err == nil {
					m.holder = -1
				}
			},
			"break": func(r *rapid.T) {
				_, err := p.Release("", true)
				want("break", err, m.epoch > 0, parcel.ErrNotHolder)
				if m.holder >= 0 {
					m.nonces[m.holder] = "broken"
				}
				m.holder = -1
			},
			"commit": func(r *rapid.T) {
				h := host.Draw(r, "host")
				head := len(m.versions)
				next := maps.Clone(m.versions[head-1])
				c := storetest.Change{}
				for range rapid.IntRange(0, 4).Draw(r, "chunks") {
					n := rapid.Int64Range(0, 599).Draw(r, "chunk")
					v := rapid.StringMatching("[a-c]{0,2}").Draw(r, "content")
					c[n], next[n] = storetest.ChunkOf(v), v
				}
				keyroot, _ := storetest.StageVersion(t, p, c, "")
				parent := head - rapid.IntRange(0, 1).Draw(r, "behind")
				req := store.CommitRequest{Nonce: m.nonces[h], Parent: parent, Keyroot: keyroot, ID: parcel.NewID()}
				if parent < 1 {
					return
				}
				v, err := p.Commit(ctx, req)
				if m.holder != h {
					want("commit", err, false, parcel.ErrNotHolder)
					return
				}
				want("commit", err, parent == head, parcel.ErrConflict)
				if err != nil {
					return
				}
				m.versions = append(m.versions, next)
				if v != len(m.versions) {
					r.Fatalf("commit: got version %d, want %d", v, len(m.versions))
				}
				if again, err := p.Commit(ctx, req); again != v || err != nil {
					r.Fatalf("commit again: got %d, %v, want %d", again, err, v)
				}
			},
			"rollback": func(r *rapid.T) {
				h := host.Draw(r, "host")
				to := rapid.IntRange(1, len(m.versions)+1).Draw(r, "to")
				v, err := p.Rollback(ctx, m.nonces[h], to)
				if m.holder != h {
					want("rollback", err, false, parcel.ErrNotHolder)
					return
				}
				want("rollback", err, to <= len(m.versions), parcel.ErrNoVersion)
				if err == nil && v > len(m.versions) {
					m.versions = append(m.versions, m.versions[to-1])
				}
			},
			"litter": func(r *rapid.T) {
				dir := rapid.SampledFrom([]string{p.LockDir(), p.ContentDir(), p.StagingDir()}).Draw(r, "where")
				os.WriteFile(dir+"/.tmp-x", nil, 0o600)
			},
			"": func(r *rapid.T) {
				p = storetest.Reopen(t, p)
				l, err := p.Holder()
				if err != nil || (l != nil) != (m.holder >= 0) || l != nil && l.Host != hosts[m.holder] {
					r.Fatalf("holder: got %v, %v, want %d", l, err, m.holder)
				}
				vs, err := p.Versions(0)
				if err != nil || len(vs) != len(m.versions) {
					r.Fatalf("versions: got %d, %v, want %d", len(vs), err, len(m.versions))
				}
			},
		})
		for i, want := range m.versions {
			for n, content := range want {
				storetest.WantChunk(t, p, i+1, n, content)
			}
		}
		var ps []check.Problem
		sum, err := check.Run(ctx, s, check.Options{User: "alice", Parcel: name, Content: true}, func(p check.Problem) { ps = append(ps, p) })
		if err != nil || sum.Errors > 0 {
			r.Fatalf("check: %v: %v", err, ps)
		}
	})
}
