package replicate

import "time"

// Settings say how often a database is uploaded and for how long its history is kept.
// Package config reads them.
type Settings struct {
	SyncInterval     time.Duration // between the uploads of a steady writer
	SnapshotInterval time.Duration
	Retention        time.Duration // how far back in time the replica can restore
}
