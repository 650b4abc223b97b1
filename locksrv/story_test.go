package locksrv_test

import (
	"net"
	"path/filepath"
	"testing"

	"isr/client/remote/sshdtest"
	"isr/locksrv"
	"isr/locksrv/locksrvtest"
)

func TestStoryWithoutSSH(t *testing.T) {
	r := locksrvtest.NewRealm(t)
	r.AddParcel(t, "alice", "winxp")
	locksrvtest.Story(t, &locksrvtest.Client{Peer: locksrvtest.Direct{Service: r.Service, Session: locksrv.Session{User: "alice"}}, Parcel: "winxp"})
}

func TestStoryOverDaemon(t *testing.T) {
	r := locksrvtest.NewRealm(t)
	r.AddParcel(t, "alice", "winxp")
	d := r.Start(t, nil)
	for _, name := range []string{"alice", locksrv.ServiceUser} {
		t.Run(name, func(t *testing.T) {
			c, err := r.Dial(d.Addr, name, "alice")
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			locksrvtest.Story(t, &locksrvtest.Client{Peer: locksrvtest.Conn{Client: c}, Parcel: "winxp"})
		})
	}
}

func TestStoryOverDaemonWithOpenSSH(t *testing.T) {
	sshdtest.Require(t, "ssh")
	r := locksrvtest.NewRealm(t)
	r.AddParcel(t, "alice", "winxp")
	d := r.Start(t, nil)
	_, port, err := net.SplitHostPort(d.Addr)
	if err != nil {
		t.Fatal(err)
	}
	args := locksrvtest.SSHArgs(r.Files["alice"], port, filepath.Join(t.TempDir(), "known_hosts"))
	locksrvtest.Story(t, &locksrvtest.Client{Peer: locksrvtest.OpenSSH{Args: append(args, "alice@127.0.0.1")}, Parcel: "winxp"})
}
