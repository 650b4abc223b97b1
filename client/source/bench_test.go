package source

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"isr/client/fetch"
	"isr/client/fetch/fetchtest"
	"isr/client/remote"
	"isr/client/remote/linktest"
	"isr/client/remote/sshconf"
	"isr/locksrv/locksrvtest"
	"isr/store/seal"
)

// BenchmarkPlaces gets objects of 128 KiB from a directory, a web server and
// the lock server: one after another, as a guest misses them, and 64 at a
// time, as a hoard fetches them.
func BenchmarkPlaces(b *testing.B) {
	objects := make(map[seal.Tag][]byte)
	for range 256 {
		tag, sealed := fetchtest.Object(128 << 10)
		objects[tag] = sealed
	}
	root := b.TempDir()
	plant(b, root, 0, objects)
	measure(b, "directory", open(b, root, Options{}), objects)
	for _, rtt := range []time.Duration{0, 20 * time.Millisecond} {
		s := httptest.NewServer(http.FileServer(http.Dir(root)))
		b.Cleanup(s.Close)
		link := linktest.New(b, strings.TrimPrefix(s.URL, "http://"))
		link.RTT(rtt)
		measure(b, fmt.Sprintf("HTTP/rtt=%v", rtt), open(b, "http://"+link.Addr, Options{}), objects)
		measure(b, fmt.Sprintf("lock-server/rtt=%v", rtt), lockServer(b, rtt, objects), objects)
	}
}

func measure(b *testing.B, name string, src fetch.Source, objects map[seal.Tag][]byte) {
	var tags []seal.Tag
	for tag := range objects {
		tags = append(tags, tag)
	}
	many := func(b *testing.B) {
		var wg sync.WaitGroup
		next := make(chan seal.Tag)
		for range 64 {
			wg.Go(func() {
				for tag := range next {
					if _, err := src.Get(fetch.WithClass(bg, fetch.Hoard), tag); err != nil {
						b.Error(err)
					}
				}
			})
		}
		for _, tag := range tags {
			next <- tag
		}
		close(next)
		wg.Wait()
	}
	b.Run(name+"/one", func(b *testing.B) {
		src.Get(bg, tags[0]) // connect
		for i := 0; b.Loop(); i++ {
			if _, err := src.Get(bg, tags[i%len(tags)]); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run(name+"/many", func(b *testing.B) {
		many(b)
		b.SetBytes(int64(len(tags)) << 17)
		for b.Loop() {
			many(b)
		}
	})
	other, _ := fetchtest.Object(10)
	b.Run(name+"/miss", func(b *testing.B) {
		for b.Loop() {
			src.Get(bg, other)
		}
	})
}

// lockServer is a daemon that has objects, behind a link.
func lockServer(b *testing.B, rtt time.Duration, objects map[seal.Tag][]byte) fetch.Source {
	r := locksrvtest.NewRealm(b)
	r.AddParcel(b, "alice", "box")
	plant(b, filepath.Join(r.Root, "users", "alice", "isr", "box"), 1, objects)
	link := linktest.New(b, r.Start(b, nil).Addr)
	link.RTT(rtt)
	host, digits, _ := net.SplitHostPort(link.Addr)
	port, _ := strconv.Atoi(digits)
	home := b.TempDir()
	key, err := os.ReadFile(r.Files["alice"])
	if err != nil {
		b.Fatal(err)
	}
	known := fmt.Sprintf("[%s]:%d %s", host, port, ssh.MarshalAuthorizedKey(r.Keys["host"].PublicKey()))
	os.Mkdir(filepath.Join(home, ".ssh"), 0o700)
	for name, text := range map[string][]byte{"id_ed25519": key, "known_hosts": []byte(known)} {
		if err := os.WriteFile(filepath.Join(home, ".ssh", name), text, 0o600); err != nil {
			b.Fatal(err)
		}
	}
	s := remote.Open(sshconf.Target{Host: host, Port: port, User: "alice", Home: home, BatchMode: true}, nil, nil)
	b.Cleanup(func() { s.Close() })
	if _, err := s.ListParcels(context.Background()); err != nil {
		b.Fatal(err)
	}
	return s.Objects("box")
}
