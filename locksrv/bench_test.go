package locksrv_test

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"io"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"

	"isr/locksrv/locksrvtest"
	"isr/locksrv/proto"
	"isr/store"
	"isr/store/parcel"
	"isr/store/seal"
)

const benchObjects, benchSize = 256, 128 << 10

// benched is a daemon with a parcel in whose staging area are objects.
func benched(b *testing.B) (*ssh.Client, *store.Parcel, []seal.Tag) {
	b.Helper()
	r := locksrvtest.NewRealm(b)
	p := r.AddParcel(b, "alice", "p")
	if _, err := p.Acquire("alice", "h", parcel.NewID()); err != nil {
		b.Fatal(err)
	}
	var tags []seal.Tag
	for range benchObjects {
		object := make([]byte, benchSize)
		rand.Read(object)
		sum := sha256.Sum256(object)
		w, err := p.Stage(seal.Tag(sum[:]))
		if err != nil {
			b.Fatal(err)
		}
		if _, err := w.WriteAt(object, 0); err != nil {
			b.Fatal(err)
		}
		if err := w.Close(); err != nil {
			b.Fatal(err)
		}
		tags = append(tags, seal.Tag(sum[:]))
	}
	c, err := r.Dial(r.Start(b, nil).Addr, "alice", "alice")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { c.Close() })
	return c, p, tags
}

// start runs a verb and returns its streams.
func start(b *testing.B, c *ssh.Client, command string) (io.WriteCloser, io.Reader) {
	b.Helper()
	s, err := c.NewSession()
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { s.Close() })
	in, err := s.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	out, err := s.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := s.Start(command); err != nil {
		b.Fatal(err)
	}
	return in, out
}

// Objects as fast as one session brings them.
func BenchmarkGetPipelined(b *testing.B) {
	c, _, tags := benched(b)
	in, out := start(b, c, proto.Get+" p")
	b.SetBytes(benchSize)
	b.ResetTimer()
	go func() {
		for i := range b.N {
			fmt.Fprintln(in, tags[i%len(tags)])
		}
		in.Close()
	}()
	for range b.N {
		if _, err := proto.ReadFrame(out); err != nil {
			b.Fatal(err)
		}
	}
}

// One object after the other: the latency of a miss.
func BenchmarkGetOne(b *testing.B) {
	c, _, tags := benched(b)
	in, out := start(b, c, proto.Get+" p")
	b.SetBytes(benchSize)
	b.ResetTimer()
	for i := range b.N {
		fmt.Fprintln(in, tags[i%len(tags)])
		if _, err := proto.ReadFrame(out); err != nil {
			b.Fatal(err)
		}
	}
}

// Tags a second.
func BenchmarkMissing(b *testing.B) {
	c, _, tags := benched(b)
	in, out := start(b, c, proto.Missing+" p")
	b.ResetTimer()
	go func() {
		var chunk bytes.Buffer
		for i := range b.N {
			fmt.Fprintln(&chunk, tags[i%len(tags)])
			if chunk.Len() > 30<<10 {
				in.Write(chunk.Bytes())
				chunk.Reset()
			}
		}
		in.Write(chunk.Bytes())
		in.Close()
	}()
	if n, err := io.Copy(io.Discard, out); err != nil || n > 0 {
		b.Fatalf("%d bytes, %v", n, err)
	}
}

// Objects put one after the other in one SFTP session; those that are there
// already, so without the disk.
func BenchmarkPutPresent(b *testing.B) {
	c, _, tags := benched(b)
	f, err := locksrvtest.Conn{Client: c}.SFTP()
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	object := []byte(strings.Repeat("x", benchSize))
	b.SetBytes(benchSize)
	b.ResetTimer()
	for i := range b.N {
		tag := tags[i%len(tags)].String()
		w, err := f.Create("/p/hdk/" + tag[:2] + "/" + tag)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := w.Write(object); err != nil {
			b.Fatal(err)
		}
		if err := w.Close(); err != nil {
			b.Fatal(err)
		}
	}
}

// A verb in a session of its own on an open connection, with many users.
func BenchmarkVerb(b *testing.B) {
	for _, users := range []int{2, 200} {
		b.Run(fmt.Sprintf("users=%d", users), func(b *testing.B) {
			r := locksrvtest.NewRealm(b)
			r.AddParcel(b, "alice", "p")
			for i := range users - 2 {
				r.AddUser(b, fmt.Sprintf("user%d", i))
			}
			c, err := r.Dial(r.Start(b, nil).Addr, "alice", "alice")
			if err != nil {
				b.Fatal(err)
			}
			defer c.Close()
			b.ResetTimer()
			for range b.N {
				if _, errs, status := locksrvtest.Exec(c, "isr_list_parcels", nil); status != 0 {
					b.Fatalf("status %d, %s", status, errs)
				}
			}
		})
	}
}
