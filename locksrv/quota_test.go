package locksrv_test

import (
	"encoding/json"
	"strings"
	"testing"

	"isr/locksrv"
	"isr/locksrv/locksrvtest"
	"isr/locksrv/proto"
	"isr/store"
	"isr/store/authkey"
	"isr/store/parcel"
)

func TestQuotaVerb(t *testing.T) {
	r := locksrvtest.NewRealm(t)
	p := r.AddParcel(t, "alice", "winxp")
	used, err := r.Store.Usage("alice")
	if err != nil {
		t.Fatal(err)
	}
	var warned []string
	peer := func(rights authkey.Rights) locksrvtest.Direct {
		return locksrvtest.Direct{Service: r.Service, Session: locksrv.Session{User: "alice", Rights: rights,
			Warn: func(text string) { warned = append(warned, text) }}}
	}
	set := func(quota int64) {
		t.Helper()
		if err := r.Store.ChangeUser("alice", func(c *store.UserConfig) error { c.Quota = quota; return nil }); err != nil {
			t.Fatal(err)
		}
	}
	for _, quota := range []int64{0, 1, 1 << 40} {
		set(quota)
		// Whatever key it is: it is how much there is for what she puts.
		for _, rights := range []authkey.Rights{{}, {ReadOnly: true}, {Parcels: []string{"other"}}} {
			out, errs, status := peer(rights).Exec(proto.Quota, nil)
			var u proto.Usage
			if err := json.Unmarshal(out, &u); status != 0 || err != nil || u != (proto.Usage{Objects: used.Objects, Bytes: used.Bytes, Quota: quota}) {
				t.Errorf("%+v: status %d, %s%s, %v", rights, status, out, errs, err)
			}
			if strings.Contains(string(out), "quota") != (quota != 0) {
				t.Errorf("%s", out)
			}
		}
	}
	if _, _, status := peer(authkey.Rights{}).Exec(proto.Quota+" winxp", nil); status != int(parcel.Usage) {
		t.Errorf("with an argument: status %d", status)
	}

	// A commit that brings her near says so, and one that does not is silent.
	c := &locksrvtest.Client{Peer: peer(authkey.Rights{}), Parcel: p.Name()}
	l, err := c.Acquire("h", parcel.NewID())
	if err != nil {
		t.Fatal(err)
	}
	commit := func(chunk int64) {
		t.Helper()
		d, err := c.Draft(chunk)
		if err == nil {
			err = c.Put(d.Objects)
		}
		if err == nil {
			_, err = c.Commit(d, l.Nonce, parcel.NewID())
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	commit(1)
	if used, err = r.Store.Usage("alice"); err != nil || len(warned) > 0 {
		t.Errorf("far from it: %q, %v", warned, err)
	}
	set(10 * used.Bytes)
	commit(2)
	set(0)
	commit(3)
	if len(warned) > 0 {
		t.Errorf("far from it: %q", warned)
	}
	if used, err = r.Store.Usage("alice"); err != nil {
		t.Fatal(err)
	}
	d, err := c.Draft(4)
	if err != nil {
		t.Fatal(err)
	}
	more := used.Bytes
	for _, object := range d.Objects {
		more += int64(len(object))
	}
	set(more)
	if err := c.Put(d.Objects); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Commit(d, l.Nonce, parcel.NewID()); err != nil || len(warned) != 1 || !strings.HasPrefix(warned[0], "user alice: "+store.SizeText(more)+" of a quota of") {
		t.Errorf("near: %v, %q, want %d", err, warned, more)
	}
}
