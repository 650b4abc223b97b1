package main

import (
	"encoding/json"
	"os"

	"isr/contrib/output"
	"isr/store/parcel"
)

// stdout is where every result goes.
var stdout = output.New(os.Stdout)

// lostResults is the error that a command which said all it had to say ends
// with: nil if somebody got the results.
func lostResults() error {
	lost := stdout.Err()
	if lost == nil {
		return nil
	}
	return parcel.NewError(parcel.KindOf(lost), "%v", lost)
}

// printJSON prints v. Whether somebody got it, lostResults says.
func printJSON(v any) error {
	text, err := json.MarshalIndent(v, "", "  ")
	if err == nil {
		stdout.JSON().Write(append(text, '\n'))
	}
	return err
}
