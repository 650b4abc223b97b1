package remote

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"isr/client/fetch"
	"isr/client/remote/sshconf"
	"isr/client/remote/sshdtest"
	"isr/store/parcel"
	"isr/store/seal"
)

// The same client against stock OpenSSH with a forced command.
func TestOpenSSH(t *testing.T) {
	t.Parallel()
	r := newRealm(t)
	server := sshdtest.Start(t, sshdtest.Options{
		AuthorizedKeys: `command="` + r.program + ` --root ` + r.root + ` shell --user alice",restrict %KEY%` + "\n"})
	known := filepath.Join(r.home, "known")
	if err := os.WriteFile(known, []byte(server.KnownHostsLine), 0o600); err != nil {
		t.Fatal(err)
	}
	s := Open(sshconf.Target{Host: server.Host, Port: server.Port, User: server.User, Home: r.home, ConfigFile: "none", BatchMode: true,
		Options: map[string]string{"IdentityFile": server.KeyFile, "IdentityAgent": "none", "UserKnownHostsFile": known}}, nil, nil)
	defer s.Close()
	names, err := s.ListParcels(bg)
	if err != nil || len(names) != 1 || names[0] != "box" {
		t.Fatalf("ListParcels: %v %v", names, err)
	}
	if _, err := s.Keyroot(bg, "none", 0); !errors.Is(err, parcel.ErrNoParcel) {
		t.Errorf("keyroot of no parcel: %v, want ErrNoParcel", err)
	}
	r.held(s)
	all := newObjects(60, 100<<10)
	o := s.Objects("box")
	if err := o.PutAll(bg, tagsOf(all), opener(all), nil); err != nil {
		t.Fatal(err)
	}
	for _, class := range []fetch.Class{fetch.Demand, fetch.Prefetch} {
		getAll(t, fetch.WithClass(bg, class), o, all)
	}
	lacking, _ := object(1)
	if _, err := o.Get(bg, lacking); !errors.Is(err, parcel.ErrNoObject) {
		t.Errorf("get of what it lacks: %v", err)
	}
	if miss, err := s.Missing(bg, "box", []seal.Tag{lacking}); err != nil || len(miss) != 1 {
		t.Errorf("missing: %v %v", miss, err)
	}
	// A process of the server's that is killed is a session lost, not a
	// connection: what was under way goes on in a new one.
	o.demand.mu.Lock()
	l := o.demand.lanes[0]
	o.demand.mu.Unlock()
	l.x.session.Close()
	getAll(t, bg, o, all)
}
