package locksrv

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"pgregory.net/rapid"

	"isr/locksrv/proto"
	"isr/store/parcel"
	"isr/store/seal"
)

// shelf keeps objects in a directory.
type shelf struct {
	dir    string
	opened atomic.Int64
	fail   error // of every object that is there, if set
}

func (s *shelf) OpenObject(tag seal.Tag) (*os.File, error) {
	s.opened.Add(1)
	f, err := os.Open(filepath.Join(s.dir, tag.String()))
	if errors.Is(err, os.ErrNotExist) {
		return nil, parcel.NewError(parcel.NoObject, "object %s: not here", tag)
	}
	if err == nil && s.fail != nil {
		f.Close()
		return nil, s.fail
	}
	return f, err
}

func (s *shelf) put(t testing.TB, size int) (seal.Tag, []byte) {
	t.Helper()
	object := make([]byte, size)
	rand.Read(object)
	sum := sha256.Sum256(object)
	tag := seal.Tag(sum[:])
	if err := os.WriteFile(filepath.Join(s.dir, tag.String()), object, 0o400); err != nil {
		t.Fatal(err)
	}
	return tag, object
}

// always is for a session that may go on.
func always() error { return nil }

// Every tag is answered, in order, whatever is there and however large.
func TestGetAnswersInOrder(t *testing.T) {
	s := &shelf{dir: t.TempDir()}
	all := map[seal.Tag][]byte{}
	var tags []seal.Tag
	for _, size := range []int{0, 1, 4095, 64 << 10, 128<<10 + 60, getInline, getInline + 1} {
		tag, object := s.put(t, size)
		all[tag] = object
		tags = append(tags, tag)
	}
	for i := range 3 {
		sum := sha256.Sum256([]byte{byte(i)})
		tags = append(tags, seal.Tag(sum[:])) // not there
	}
	rapid.Check(t, func(t *rapid.T) {
		asked := rapid.SliceOfN(rapid.SampledFrom(tags), 0, 25).Draw(t, "asked")
		var in, out bytes.Buffer
		for _, tag := range asked {
			fmt.Fprintln(&in, tag)
		}
		if err := serveObjects(context.Background(), s, &in, &out, always, nil); err != nil {
			t.Fatal(err)
		}
		for i, tag := range asked {
			got, err := proto.ReadFrame(&out)
			want, there := all[tag]
			if there && (err != nil || !bytes.Equal(got, want)) {
				t.Fatalf("answer %d: %d bytes, %v; want the %d bytes of %s", i, len(got), err, len(want), tag)
			}
			if !there && !errors.Is(err, parcel.ErrNoObject) {
				t.Fatalf("answer %d: %v; want that it is not there", i, err)
			}
		}
		if out.Len() > 0 {
			t.Fatalf("%d bytes after the last answer", out.Len())
		}
	})
}

// A client that waits for each answer before it asks again gets them all.
func TestGetAnswersWhileItWaits(t *testing.T) {
	s := &shelf{dir: t.TempDir()}
	tag, object := s.put(t, 100)
	inR, inW := io.Pipe()
	outR, outW := io.Pipe()
	done := make(chan error, 1)
	go func() {
		done <- serveObjects(context.Background(), s, inR, outW, always, nil)
		outW.Close()
	}()
	for i := range 50 {
		if _, err := fmt.Fprintln(inW, tag); err != nil {
			t.Fatal(err)
		}
		got, err := proto.ReadFrame(outR)
		if err != nil || !bytes.Equal(got, object) {
			t.Fatalf("answer %d: %d bytes, %v", i, len(got), err)
		}
	}
	inW.Close()
	if _, err := proto.ReadFrame(outR); err != io.EOF {
		t.Errorf("after the last: %v, want EOF", err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// While the client does not read, the server stops reading: it holds a bounded
// number of objects.
func TestGetHoldsFewObjects(t *testing.T) {
	s := &shelf{dir: t.TempDir()}
	tag, _ := s.put(t, 100<<10) // more than is buffered on the way out
	inR, inW := io.Pipe()
	outR, outW := io.Pipe()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- serveObjects(ctx, s, inR, outW, always, nil) }()
	asked := make(chan int, 1000)
	go func() {
		for i := 0; ; i++ {
			if _, err := fmt.Fprintln(inW, tag); err != nil {
				return
			}
			asked <- i
		}
	}()
	// It takes what it takes, and then no more: wait until nothing was taken
	// for a while, and look at how many objects were opened.
	taken := 0
	for quiet := false; !quiet; {
		select {
		case <-asked:
			taken++
		case <-time.After(300 * time.Millisecond):
			quiet = true
		}
	}
	if got := s.opened.Load(); got > getAhead+2 {
		t.Errorf("%d objects opened before the first answer was read; want at most %d", got, getAhead+2)
	}
	cancel()
	outR.CloseWithError(io.ErrClosedPipe)
	inR.CloseWithError(io.ErrClosedPipe)
	if err := <-done; err == nil {
		t.Errorf("no error though the client went")
	}
}

func TestGetErrors(t *testing.T) {
	s := &shelf{dir: t.TempDir()}
	tag, _ := s.put(t, 10)
	for _, bad := range []string{"x", "../../etc/passwd", tag.String()[:63], tag.String() + " ", "", string(make([]byte, 300))} {
		var out bytes.Buffer
		err := serveObjects(context.Background(), s, bytes.NewReader([]byte(bad+"\n")), &out, always, nil)
		if !errors.Is(err, parcel.ErrUsage) && len(bad) < 256 || err == nil || out.Len() > 0 {
			t.Errorf("tag %q: %v, %d bytes of answer; want a usage error and none", bad, err, out.Len())
		}
	}
	s.fail = parcel.NewError(parcel.Damaged, "disk: does not answer")
	var out bytes.Buffer
	err := serveObjects(context.Background(), s, bytes.NewReader([]byte(tag.String()+"\n")), &out, always, nil)
	if !errors.Is(err, parcel.ErrDamaged) || out.Len() > 0 {
		t.Errorf("read error: %v and %d bytes; want it told, not taken for an absent object", err, out.Len())
	}
}

// missing answers as soon as it would wait.
func TestMissingAnswersWhileItWaits(t *testing.T) {
	inR, inW := io.Pipe()
	outR, outW := io.Pipe()
	go func() {
		out := newAnswers(outW)
		proto.ReadTags(flushedReader{inR, out}, func(tag seal.Tag) error {
			_, err := fmt.Fprintln(out, tag)
			return err
		})
		outW.Close()
	}()
	sum := sha256.Sum256(nil)
	line := seal.Tag(sum[:]).String() + "\n"
	for range 20 {
		io.WriteString(inW, line)
		got := make([]byte, len(line))
		if _, err := io.ReadFull(outR, got); err != nil || string(got) != line {
			t.Fatalf("got %q, %v", got, err)
		}
	}
	inW.Close()
}
