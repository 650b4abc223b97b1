package main

import (
	"context"
	"fmt"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"isr/locksrv/locksrvtest"
	"isr/store"
	"isr/store/keyring"
	"isr/store/parcel"
	"isr/store/seal"
)

// commitVersions is commit USER PARCEL N: N versions of a parcel, as a client
// on the host lab would make them, each with a chunk of its own.
func commitVersions(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 3 {
		ts.Fatalf("usage: commit USER PARCEL N")
	}
	n, err := strconv.Atoi(args[2])
	ts.Check(err)
	s, err := store.Open(ts.Getenv("ISR_ROOT"))
	ts.Check(err)
	p, err := s.Parcel(args[0], args[1])
	ts.Check(err)
	l, err := p.Acquire(args[0], "lab", parcel.NewID())
	ts.Check(err)
	for range n {
		ts.Check(commitOne(p, l))
	}
	_, err = p.Release(l.Nonce, false)
	ts.Check(err)
}

func commitOne(p *store.Parcel, l *parcel.Lock) error {
	ctx := context.Background()
	cfg, err := p.Config()
	if err != nil {
		return err
	}
	root, err := p.Root(ctx, 0)
	if err != nil {
		return err
	}
	s := cfg.Sealer()
	put := putter{p}
	im, _ := root.Image(keyring.Disk)
	tree := keyring.NewTree(s, im, p)
	ref, sealed, err := s.Seal([]byte(parcel.NewID()))
	if err == nil {
		err = put.Put(ctx, ref.Tag, sealed)
	}
	if err != nil {
		return err
	}
	tree.Set(0, ref)
	if im, err = tree.Flush(ctx, put); err != nil {
		return err
	}
	root = root.Clone()
	root.SetImage(im)
	keyroot, sealed, err := keyring.SealRoot(s, root)
	if err == nil {
		err = put.Put(ctx, keyroot.Tag, sealed)
	}
	if err != nil {
		return err
	}
	_, err = p.Commit(ctx, store.CommitRequest{Nonce: l.Nonce, Parent: cfg.Version, Keyroot: keyroot, ID: parcel.NewID()})
	return err
}

// putter stages objects.
type putter struct{ p *store.Parcel }

func (w putter) Put(_ context.Context, tag seal.Tag, sealed []byte) error {
	staged, err := w.p.Stage(tag)
	if err != nil {
		return err
	}
	defer staged.Abort()
	if _, err := staged.WriteAt(sealed, 0); err != nil {
		return err
	}
	return staged.Close()
}

// A client's day goes well while processes collect and prune, one after the
// other without a pause.
func TestStoryDuringGC(t *testing.T) {
	r := locksrvtest.NewRealm(t)
	r.AddParcel(t, "alice", "winxp")
	d := r.Start(t, nil)
	stop := make(chan struct{})
	var admin sync.WaitGroup
	admin.Go(func() {
		for {
			for _, args := range [][]string{{"gc"}, {"parcel", "prune", "--all", "--keep", "3", "--yes"}} {
				select {
				case <-stop:
					return
				default:
				}
				if out, err := exec.Command(program(t), append([]string{"--root", r.Root}, args...)...).CombinedOutput(); err != nil {
					t.Errorf("%v: %v: %s", args, err, out)
				}
			}
		}
	})
	defer admin.Wait()
	defer close(stop)
	c, err := r.Dial(d.Addr, "alice", "alice")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for range 3 {
		locksrvtest.Story(t, &locksrvtest.Client{Peer: locksrvtest.Conn{Client: c}, Parcel: "winxp"})
	}
}

func TestVersionsText(t *testing.T) {
	for want, vs := range map[string][]int{"version 3": {3}, "versions 1-2": {1, 2}, "versions 1,3": {1, 3}, "versions 1-3,5,7-8": {1, 2, 3, 5, 7, 8}} {
		if got := versionsText(vs); got != want {
			t.Errorf("%v: %s, want %s", vs, got, want)
		}
	}
}

func TestIEC(t *testing.T) {
	for n, want := range map[int64]string{0: "0", 1023: "1023", 1024: "1.00K", 10239: "10.0K", 102399: "100K", 1<<20 - 1: "1.00M", 1 << 20: "1.00M",
		5 << 30: "5.00G", 1234567890123: "1.12T", 1<<63 - 1: "8.00E"} {
		if got := iec(n); got != want || len(strings.Trim(got, "0123456789.")) > 1 {
			t.Errorf("%d: %s, want %s", n, got, want)
		}
	}
	for n := int64(1); n > 0; n *= 3 {
		if got := iec(n); len(got) > 5 {
			t.Error(fmt.Sprint(n, ": ", got))
		}
	}
}
