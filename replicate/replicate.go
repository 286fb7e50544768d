// Package replicate streams a live SQLite database into its replica.
//
// Litestream, as a library, reads the WAL and knows the files' format. When it
// reads, when it uploads and what is reported about it is decided here, by one loop
// that captures and then uploads, in lockstep: the library's own pair of
// monitors lags by up to two seconds, lets a backlog grow without bound when
// the replica is slow, and waits up to five minutes after an outage.
//
// A Replicator lives as long as this process replicates the database, a session as
// long as one file is open: the app may replace its file, and what can't be uploaded
// may have to be dropped.
//
// While a database is replicated, this process must not open and close its
// file anywhere else: POSIX locks belong to the process, and any close of the
// file drops those of Litestream's connection too. Stat is safe, and so is
// reading the WAL.
package replicate

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/benbjohnson/litestream"
	"github.com/superfly/ltx"

	"github.com/slashacom/slasha-init/internal/exit"
)

// Client is the replica to write. Check makes one cheap request that succeeds only
// where the replica works; it is called while the database is idle.
//
// An error with a method Final() bool that returns true says that this instance may
// never write the replica again. The last upload is not tried again then.
type Client interface {
	litestream.ReplicaClient
	litestream.ReplicaClientV3
	Check(ctx context.Context) error
}

// Line is what is known of how the database stands to its replica. Its methods are
// called from several goroutines.
type Line interface {
	// Admit returns nil when the database at the path may be uploaded. It is called
	// each time before the database is opened. An error whose method Final() bool
	// returns true says that this process may never upload it: the last upload is not
	// tried then. Any other error is reported, and Admit is called again.
	Admit(ctx context.Context) error

	// Drop is called before what was captured is dropped: it notes what the database
	// at the path goes on from. The dropping waits until it succeeds.
	Drop() error

	// Begin notes, until Anchored is called and over restarts, that IsNew is true.
	Begin() error
	// IsNew reports whether a snapshot must follow the first upload, because nothing
	// in the replica may be merged with what follows: the database does not go on from
	// what is there, and what is there may have damaged files, which everything that
	// continues it would depend on.
	IsNew() bool
	// Anchored is called when that snapshot is in the replica.
	Anchored() error

	// Synced is called when everything up to a transaction is in the replica.
	Synced(txid ltx.TXID)
	// Uploaded is called when the replica has acknowledged a file, of any level, up
	// to a transaction. Of those after it, some may have got there, each with its
	// answer lost.
	Uploaded(txid ltx.TXID)
	// Tried is called when the upload of a snapshot failed: it may be there, and the
	// answer lost.
	Tried(snapshot ltx.TXID)
	// Acked returns the newest transaction that the replica is known to have, 0 for
	// none.
	Acked() ltx.TXID
}

// Config is what a Replicator needs. DBPath, Client, Line and CheckInterval are
// required, as are the settings.
type Config struct {
	Settings

	DBPath        string // absolute path of the database; it need not exist yet
	Client        Client
	Line          Line
	CheckInterval time.Duration // most time between two requests to the replica

	// The hooks report what happened, from the loop's goroutine and in its order.
	// They must not block. All are optional.

	// OnSync: the replica acknowledged an upload, or at the start it turned out
	// to lack nothing. Everything whose commit returned before the time is in it.
	OnSync func(before time.Time, txid ltx.TXID)
	// OnCapture: transactions up to this one have been read from the WAL.
	OnCapture func(txid ltx.TXID)
	// OnPending: since when there are commits that the replica lacks, or the
	// zero time.
	OnPending func(since time.Time)
	// OnError: why the newest attempt failed, or nil when one succeeded.
	OnError func(error)

	Logger *slog.Logger // slog.Default() if nil
}

// DroppedError says that what could not be uploaded was dropped for want of room.
// Nothing of the database is lost: a snapshot follows when the replica is back.
type DroppedError struct{ Err error } // why it could not be uploaded

func (e *DroppedError) Error() string {
	return e.Err.Error() + "; the backlog took too much room and was dropped; a fresh snapshot follows"
}
func (e *DroppedError) Unwrap() error { return e.Err }

// UnsyncedError says which transactions did not get into the replica.
type UnsyncedError struct {
	Local   ltx.TXID // newest captured
	Replica ltx.TXID // newest acknowledged; 0 when not known
	Err     error
}

func (e *UnsyncedError) Error() string {
	return fmt.Sprintf("the last upload failed: the replica lacks the transactions after %s up to %s, and any that were not captured yet: %v",
		e.Replica, e.Local, e.Err)
}

func (e *UnsyncedError) Unwrap() error { return e.Err }

// ExitCode is exit.Upload.
func (e *UnsyncedError) ExitCode() int { return exit.Upload }

// Why nothing can be uploaded of what is at the path.
var (
	// errDeleted: the file that is open is no longer at any path.
	errDeleted = errors.New("was deleted while the app had it open: what the app writes now is not backed up, and is lost when the app ends")
	// errNoDatabase: the file can't be replicated.
	errNoDatabase = errors.New("is not an SQLite database, or is encrypted: it can't be replicated")
	// errLeaked: a bug has left the database open.
	errLeaked = errors.New("a bug ended replication and left the database open: start the container again")
)

// isFinal reports whether no later try of the last upload can change an error.
func isFinal(err error) bool {
	var final interface{ Final() bool }
	return errors.Is(err, errDeleted) || errors.As(err, &final) && final.Final()
}
