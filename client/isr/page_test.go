package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// page is how each paragraph of the seed manual page begins, down to FILES.
// Headings, definitions that claim nothing, and acknowledgments are left out.
var page = []string{
	// DESCRIPTION
	"Distinct ISR userids own disjoint sets of parcels",
	"At any point in time, a parcel can be checked out on at most one client host",
	"provides commands to checkout (download) parcels from the server",
	"a command to hoard parcel state into a persistent hoard cache",
	"the default server is given by the server variable",
	"the current ISR userid is the current Unix login name",
	"You can safely attempt to interrupt any isr command at any time",
	// COMMANDS
	"Authenticate to the ISR server",
	"Checkin a parcel to the server",
	"The checkin command is idempotent",
	"Download a parcel from the server without running it",
	"By default, the checkout command downloads the most recent parcel version",
	"The -d option will additionally hoard the parcel",
	"The checkout command is useful for preparing a parcel to run disconnected",
	"checks a parcel for consistency",
	"The -e option causes the command to check a particular version",
	"revert any inconsistent disk chunks to their state",
	"checks the hoard cache for consistency and repairs any problems",
	"Remove parcel from the client host and release its server lock",
	"forcibly releases the server lock, even if it is held by a different client host",
	"Remove the authentication credentials",
	"Discard all local client changes to parcel",
	"Display a brief usage summary",
	"Fetch the parcel's entire virtual disk into the hoard cache",
	"You can hoard a parcel anytime and anywhere",
	"List information about your parcels",
	"If a specific parcel is named on the command line",
	"List information about the parcels currently in the hoard cache",
	"Change your ISR password",
	"Forcibly power off a suspended parcel",
	"Checkout a parcel (if necessary) and then run it",
	"By default, the resume command requires a network connection",
	"The -r option allows you to rollback to previous parcel versions",
	"resumed in a window rather than in full-screen mode",
	"The -D option launches the dirtometer",
	"resume using a virtual machine monitor other than the default",
	"Remove hoarded state for parcel from the client",
	"Display information about the local state of a parcel",
	"Save a new checkpointed version of parcel on the server",
	"The sync command is idempotent",
	"Display the universally unique identifier",
	"Display the version of the ISR client",
	// OPTIONS
	"Each option has equivalent short and long forms",
	"Limit upload bandwidth during checkin and sync",
	"Perform an additional content consistency check",
	"Resume disconnected (after hoarding), or ensure that the parcel can later be resumed disconnected",
	"launch the dirtometer, a visualization tool",
	"check the parcel on the server rather than on the client",
	"Cause clean to release the parcel lock on the server even if",
	"display it in a window rather than in full-screen mode",
	"Use long listing format for the ls command",
	"printing information about the n most recent parcel versions",
	"Run silently (except if things go wrong)",
	"Optional parcel version number for the checkout, resume, and checkp commands",
	"Use the server name, overriding the default",
	"use a virtual machine monitor other than the parcel's default",
	"sets the current ISR userid to userid",
	"Increment the verbosity level",
	"revert damaged chunks to their state at the most recent checkout or sync",
	// EXAMPLES
	"After arriving at work, you login to your ISR client host",
	"After listing your available parcels",
	"you decide to resume the Windows parcel called winxp in connected mode",
	"After running the parcel all morning",
	"you unplug the network cable",
	"After the meeting, you head back to the office",
	"After running connected for the rest of the day",
	"Once home, you login to your home ISR client",
	// FILES
	"/usr/share/openisr/config",
	"/etc/openisr/openisr.conf",
	"~/.openisrrc",
}

// TestPage wants each paragraph of the seed page quoted by a story that shows
// it, in a comment of a script or of a test.
func TestPage(t *testing.T) {
	tests, err := filepath.Glob("*_test.go")
	if err != nil {
		t.Fatal(err)
	}
	var all strings.Builder
	for _, f := range append(stories(t, true), tests...) {
		if f == "page_test.go" {
			continue
		}
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			line = strings.TrimSpace(line)
			if c, ok := strings.CutPrefix(line, "#"); ok {
				all.WriteString(c)
			} else if c, ok := strings.CutPrefix(line, "//"); ok {
				all.WriteString(c)
			}
			all.WriteByte('\n')
		}
	}
	quoted := space.ReplaceAllString(strings.ReplaceAll(all.String(), "’", "'"), " ")
	for _, p := range page {
		if !strings.Contains(quoted, p) {
			t.Errorf("no story quotes the paragraph %q", p)
		}
	}
}

var space = regexp.MustCompile(`\s+`)
