package locksrv_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"isr/locksrv"
	"isr/locksrv/locksrvtest"
	"isr/store/parcel"
)

// A user who checks a parcel is not told where the realm is on the server, by
// whatever is found there.
func TestCheckParcelPaths(t *testing.T) {
	r := locksrvtest.NewRealm(t)
	r.AddParcel(t, "alice", "winxp")
	home := filepath.Join(r.Root, "users", "alice")
	for _, name := range []string{"isr/winxp/junk", "isr/winxp/hdk/junk", "isr/winxp/hdk/ab", ".isr/winxp/junk", ".isr/winxp/.tmp-left"} {
		if err := os.WriteFile(filepath.Join(home, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(filepath.Join(home, ".isr/winxp/parcel.cfg"), 0o644); err != nil {
		t.Fatal(err)
	}
	alice := locksrvtest.Direct{Service: r.Service, Session: locksrv.Session{User: "alice"}}
	for _, command := range []string{"isr_checkparcel winxp", "isr_checkparcel -c winxp", "isr_checkparcel --json winxp"} {
		out, errs, status := alice.Exec(command, nil)
		if status != int(parcel.Damaged) || !strings.Contains(string(errs), "parcel winxp: 1 error\n") {
			t.Errorf("%s: status %d: %s", command, status, errs)
		}
		if text := string(out) + string(errs); strings.Contains(text, r.Root) || !strings.Contains(text, "isr/winxp/hdk/junk: unknown file") ||
			!strings.Contains(text, "chmod go= .isr/winxp/parcel.cfg") {
			t.Errorf("%s: %s", command, text)
		}
	}
}
