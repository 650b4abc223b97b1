package locksrv_test

import (
	"strings"
	"testing"

	"isr/locksrv/locksrvtest"
	"isr/store/parcel"
)

func TestSmoke(t *testing.T) {
	r := locksrvtest.NewRealm(t)
	r.AddParcel(t, "alice", "winxp")
	d := r.Start(t, nil)
	c, err := r.Dial(d.Addr, "alice", "alice")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for _, cmd := range []string{"isr_list_parcels", "isr_ls -L 3", "isr_cat_parcel_cfg winxp", "isr_cat_keyroot winxp", "isr_acquire_lock winxp thinkpad", "isr_motd"} {
		out, errs, status := locksrvtest.Exec(c, cmd, nil)
		t.Logf("%s: %d\n%s%s", cmd, status, out, errs)
		if status != 0 {
			t.Errorf("%s: status %d", cmd, status)
		}
	}
	_, errs, status := locksrvtest.Exec(c, "sh", nil)
	if status != int(parcel.Denied) || !strings.Contains(string(errs), "sh") {
		t.Errorf("sh: %d %s", status, errs)
	}
}
