package main

import (
	"time"

	"isr/store/backup/snapshot"
)

// What --json prints of backups and mirrors: an object a line.

// snapshotRow is a snapshot.
type snapshotRow struct {
	ID      string    `json:"id"`
	Realm   string    `json:"realm"`
	Time    time.Time `json:"time"`
	Host    string    `json:"host"`
	Sealed  bool      `json:"sealed"`
	Parcels int       `json:"parcels"`
	Objects int64     `json:"objects"`
	Bytes   int64     `json:"bytes"`
}

func rowOfSnapshot(s *snapshot.Snapshot) snapshotRow {
	return snapshotRow{s.ID, s.Realm, s.Time, s.Host, s.Sealed, len(s.Parcels), s.Objects, s.Bytes}
}

// backedUpParcel is a parcel in a snapshot.
type backedUpParcel struct {
	User    string `json:"user"`
	Parcel  string `json:"parcel"`
	Version int    `json:"version"`
	Held    string `json:"held"`
	Objects int64  `json:"objects"`
	Bytes   int64  `json:"bytes"`
	Lacks   int    `json:"lacks"` // versions that are not whole
}

// lacksOf is how many versions of a parcel a snapshot has not whole.
func lacksOf(s *snapshot.Snapshot, p snapshot.Parcel) (n int) {
	for _, l := range s.Lacks {
		if l.User == p.User && l.Name == p.Name {
			n++
		}
	}
	return n
}

// madeBackup is what a run of backup did.
type madeBackup struct {
	snapshotRow
	SentObjects int64   `json:"sent_objects"`
	SentBytes   int64   `json:"sent_bytes"`
	Damaged     int64   `json:"damaged"` // objects that the realm lacks, or has not whole
	Lacks       int     `json:"lacks"`   // versions that are not whole in it
	Lost        int     `json:"lost"`    // parcels that cannot be read, all of a user as one
	Seconds     float64 `json:"seconds"`
}

// plannedSnapshot is a snapshot as a prune lists it, as planned is a version.
type plannedSnapshot struct {
	ID   string   `json:"id"`
	Kept []string `json:"kept,omitempty"`
	Goes bool     `json:"goes"`
}

// prunedBackup is what a prune did.
type prunedBackup struct {
	Snapshots int   `json:"removed_snapshots"`
	Objects   int64 `json:"removed_objects"`
	Bytes     int64 `json:"removed_bytes"`
}

// verifiedBackup is what was looked at, and what was found.
type verifiedBackup struct {
	Snapshots int   `json:"snapshots"`
	Objects   int64 `json:"objects"`
	Bytes     int64 `json:"bytes"`
	Read      int64 `json:"read"`
	Spare     int64 `json:"spare"`
	Errors    int   `json:"errors"`
}

// restoredRow is what a restore did.
type restoredRow struct {
	snapshotRow
	Restored int     `json:"restored_parcels"`
	Fetched  int64   `json:"fetched_objects"`
	Bytes    int64   `json:"fetched_bytes"`
	Kept     int64   `json:"kept_objects"`
	Lacking  int     `json:"lacking"`
	Failed   int     `json:"failed"`
	Seconds  float64 `json:"seconds"`
}

// mirrorPass is what a pass of a mirror did.
type mirrorPass struct {
	Parcels int     `json:"parcels"`
	Changed int     `json:"changed"`
	Sent    int64   `json:"sent_objects"`
	Bytes   int64   `json:"sent_bytes"`
	Linked  int64   `json:"linked_objects"`
	Removed int64   `json:"removed_files"`
	Damaged int64   `json:"damaged"`
	Lacks   int     `json:"lacks"`
	Lost    int     `json:"lost"`
	Seconds float64 `json:"seconds"`
}
