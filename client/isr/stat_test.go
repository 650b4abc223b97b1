package main

import (
	"encoding/json"
	"testing"

	"isr/client"
)

// stat is what isr stat says of a parcel on host.
func stat(t testing.TB, w *world, host, parcel string) client.Stat {
	t.Helper()
	var st client.Stat
	r := w.ok(t, host, "stat", "--json", parcel)
	if err := json.Unmarshal([]byte(r.out), &st); err != nil {
		t.Fatalf("isr stat --json: %v\n%s", err, r.out)
	}
	return st
}
