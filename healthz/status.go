// Package healthz remembers how the container is doing, serves it to the
// platform's poller, to Prometheus and to a person, and fetches it again for
// the healthcheck and status commands.
//
// It knows nothing of SQLite and S3: others report to it what happened. Status flows
// one way, in through the methods of Health and out over HTTP.
package healthz

import (
	"fmt"
	"time"
)

// Phase is where in its life the container is.
type Phase string

// The phases, in the order in which a container meets them.
const (
	Starting  Phase = "starting"
	Waiting   Phase = "waiting" // for another instance to leave
	Restoring Phase = "restoring"
	Running   Phase = "running"
	Stopping  Phase = "stopping"
	Failed    Phase = "failed"
)

// next lists the phases that may follow each phase. A step that is not here is
// a mistake in the caller, not a state of the container.
var next = map[Phase][]Phase{
	Starting:  {Waiting, Restoring, Running, Stopping, Failed},
	Waiting:   {Starting, Restoring, Stopping, Failed},
	Restoring: {Starting, Stopping, Failed},
	Running:   {Waiting, Restoring, Stopping, Failed},
	Stopping:  {Starting, Failed},
	Failed:    {},
}

// Time is a moment in UTC with microseconds, as it stands in the JSON.
type Time time.Time

// timeFormat has fixed width, so that times compare as strings too.
const timeFormat = "2006-01-02T15:04:05.000000Z"

// MarshalText implements encoding.TextMarshaler. It rounds down: a moment
// that promises "all before this" may only become earlier.
func (t Time) MarshalText() ([]byte, error) {
	return []byte(time.Time(t).UTC().Format(timeFormat)), nil
}

// UnmarshalText implements encoding.TextUnmarshaler.
func (t *Time) UnmarshalText(b []byte) error {
	v, err := time.Parse(time.RFC3339Nano, string(b))
	if err != nil {
		return fmt.Errorf("healthz: time: %w", err)
	}
	*t = Time(v)
	return nil
}

// Status is one answer of /healthz. Pointers are null where there is nothing to
// report.
type Status struct {
	Phase   Phase `json:"phase"`
	Enabled bool  `json:"enabled"` // backups are configured
	Healthy bool  `json:"healthy"` // and they work; always true when not enabled

	// HealthError is one sentence that a person can act on, or null when healthy.
	HealthError *string `json:"health_error"`

	// LastSyncedAt is a promise: everything whose commit returned before it is
	// in the replica.
	LastSyncedAt *Time `json:"last_synced_at"`

	// LastCheckedAt is when the replica last answered a request well.
	LastCheckedAt *Time `json:"last_checked_at"`

	// PendingSince is when the oldest commit that is not in the replica yet was
	// noticed, or null when there is none.
	PendingSince *Time `json:"pending_since"`

	TXID        *string `json:"txid"`         // newest transaction captured locally
	ReplicaTXID *string `json:"replica_txid"` // newest transaction in the replica

	DBPath  string `json:"db_path"`
	Replica string `json:"replica"`

	Restore Restore `json:"restore"`
	Lease   Lease   `json:"lease"`

	LastVerifiedAt *Time     `json:"last_verified_at"`
	Processes      []Process `json:"processes"`
	Version        string    `json:"version"`
}

// RestoreState is how far a restore is.
type RestoreState string

// The states of a restore.
const (
	RestoreNone    RestoreState = "none"
	RestoreRunning RestoreState = "running"
	RestoreDone    RestoreState = "done"
	RestoreFailed  RestoreState = "failed"
)

// Restore is the restore of this start, if there was one.
type Restore struct {
	State          RestoreState `json:"state"`
	Reason         *string      `json:"reason"` // "missing", "pending" or "stale"
	BytesDone      int64        `json:"bytes_done"`
	BytesTotal     int64        `json:"bytes_total"`
	BytesPerSecond int64        `json:"bytes_per_second"`
	SecondsLeft    *int64       `json:"seconds_left"` // of the reading, at that rate; nil when not known, or not running
	TXID           *string      `json:"txid"`
	TookSeconds    float64      `json:"took_seconds"`
	SetAside       *string      `json:"set_aside"` // where the database that was replaced is
}

// Lease is the right to write the replica.
type Lease struct {
	// State is "off"; "held"; "waiting" for another instance; "lapsed": not renewed
	// in time, so nothing is uploaded; "lost" to another instance; "released";
	// "unsupported" by the bucket's service; "unknown" as long as the bucket has not
	// answered; or "following": another instance on this volume replicates.
	State string `json:"state"`
	Epoch uint64 `json:"epoch"` // ours; 0 before we had it
	// Holder is the instance that we wait for, follow, or have lost the lease to, as it
	// describes itself.
	Holder string `json:"holder,omitempty"`
}

// Process is one process of the app.
type Process struct {
	Type      string `json:"type"`
	PID       int    `json:"pid"`
	StartedAt Time   `json:"started_at"`
}
