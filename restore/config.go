package restore

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/benbjohnson/litestream"
	"github.com/superfly/ltx"

	"github.com/slashacom/slasha-init/internal/durable"
	"github.com/slashacom/slasha-init/internal/exit"
	"github.com/slashacom/slasha-init/restore/check"
)

// Config says what is to be restored, where to, from where, and how the result is
// checked. Place, Source and Logger are required.
type Config struct {
	What   What
	Place  Place
	Source Source
	Check  check.Kind // how what was restored is checked before it counts
	Line   Line

	// OnStale is what Run does about a database that the replica has left behind.
	OnStale OnStale

	// Reserve keeps others from opening a database that is there and is about to be
	// replaced, until release is called. Its error is why the database must not be
	// replaced: somebody has it open. Run calls it. Nil: nobody else can have it open.
	Reserve func() (release func(), err error)

	// Lock takes a lock on the file at a path, which it makes, until release is
	// called. Its error means that another process has the lock, and ToFile wraps it.
	// Where no lock is possible, Lock keeps nobody off and returns no error. Only
	// ToFile needs it.
	Lock func(path string) (release func(), err error)

	// OnWaiting is called with the reason each time that a replica out of reach is
	// going to be asked again. Optional.
	OnWaiting func(sentence string)

	// OnProgress is called a few times a second during a restore, and once at its
	// end, from one goroutine at a time. Optional.
	OnProgress func(Progress)

	Logger *slog.Logger

	onStep  func(step string) // of tests, which crash there
	newPace func() *pace      // of tests, which count the rests
}

func (cfg Config) step(name string) {
	if cfg.onStep != nil {
		cfg.onStep(name)
	}
}

// What says which of the replica's states is wanted, and whether it is also to
// replace a database that is there. The zero value wants the newest state where the
// database is missing.
type What struct {
	Request   Request
	Timestamp time.Time // the state at that moment; zero for the newest
	TXID      ltx.TXID  // the state after that transaction; 0 for the newest. Only one of the two can be set
}

// Request asks for a restore over the existing database. The zero Request asks for
// none.
type Request struct {
	id  string // of a request that is carried out once
	now bool
}

// Once asks for a restore that is made once: a request with the same id is not
// carried out again, and a restart does not repeat it. The id "" asks for none.
func Once(id string) Request { return Request{id: id} }

// Now asks for a restore each time. It is not noted, so whoever asks again gets
// another one.
func Now() Request { return Request{now: true} }

// Place is where a database belongs, and what a restore keeps in our folder beside
// it. All of it is on one file system. Every field is required by Run; ToFile needs
// the others only where it restores to DBPath itself.
type Place struct {
	DBPath  string       // absolute path of the database
	Scratch string       // the folder where a database is put together; whatever is in it when a restore begins is removed
	Aside   string       // the folder of the databases that were set aside
	Ledger  durable.Note // the requests that were carried out, and the swap under way

	// MakeFolder makes the database's folder, and those above it, where they are
	// missing.
	MakeFolder func(dir string) error
}

// Source is the replica that is read. Client and Explain are required.
type Source struct {
	Client Client

	// Explain turns an error of the client into one sentence and reports whether the
	// same request may succeed later.
	Explain func(error) (sentence string, temporary bool)

	// Patience is how long Run asks a replica again that does not answer while the
	// database is missing.
	Patience time.Duration
}

// Client is a replica to read. It must offer the formats of both Litestream 0.5 and
// 0.3: a replica of the older one would otherwise look empty.
type Client interface {
	litestream.ReplicaClient
	litestream.ReplicaClientV3

	// Empty reports whether the replica answered that it holds no backup in any
	// format.
	Empty(ctx context.Context) (bool, error)
}

// Line is how a database relates to its replica; see package lineage.
type Line struct {
	// Compare reports how a database that is there stands to the replica. Run calls it.
	// Nil takes every database for the replica's continuation.
	Compare func(context.Context) (Comparison, error)

	// Adopt is called with a file that is about to become the database, and the
	// newest transaction of the replica that the file was made from: the database
	// goes on from there. Nil notes nothing.
	Adopt func(file string, newest ltx.TXID) error

	// Seal keeps what the replica has beyond a state that is about to take the
	// database's place. What is uploaded from then on is a new line; if it were merged
	// with the old one, the old one would be lost. Run calls it before Begin. ToFile
	// does not: whoever uploads the database then seals first. Nil keeps nothing.
	Seal func(context.Context) error

	// Begin notes, on the disk, that the database is about to continue something else
	// than the newest of the replica's transactions: a new line begins. It is required
	// where a database is put into its place.
	Begin func() error
}

// Comparison is how a database stands to the replica. The zero value continues it.
type Comparison struct {
	Empty bool   // the replica has nothing to compare with
	Stale bool   // the replica has something that the database lacks
	How   string // a sentence with both positions
}

// Reason is why a restore is made, in one word: missing, pending or stale.
type Reason string

const (
	reasonMissing Reason = "missing"
	reasonPending Reason = "pending" // somebody asked for it
	reasonStale   Reason = "stale"
)

// Progress is how far a restore is.
type Progress struct {
	BytesDone  int64 // read from the replica
	BytesTotal int64 // of the plan; 0 when not known
	Took       time.Duration
	TXID       ltx.TXID // that it leads to; 0 when not known
	Newest     ltx.TXID // of the replica, which may be newer
	Reason     Reason   // of a restore by Run, else ""
}

// beginsLine reports whether the database that was restored continues something else
// than the newest of the replica's transactions. That is so after a restore to an
// earlier one, and where Litestream 0.3 wrote what was restored (it numbers no
// transactions) but 0.5 has been used too.
func (p Progress) beginsLine() bool { return p.TXID < p.Newest }

// Rate is the average rate in bytes per second.
func (p Progress) Rate() int64 {
	if p.Took <= 0 {
		return 0
	}
	return int64(float64(p.BytesDone) / p.Took.Seconds())
}

// Left is how long the rest of the reading will take at that rate, to the second;
// known is false as long as nothing can be said about it.
func (p Progress) Left() (left time.Duration, known bool) {
	rate := p.Rate()
	if rate == 0 || p.BytesTotal == 0 {
		return 0, false
	}
	seconds := (max(0, p.BytesTotal-p.BytesDone) + rate - 1) / rate
	return time.Duration(seconds) * time.Second, true
}

// Outcome is what Run did.
type Outcome struct {
	Action   Action
	Progress Progress // of a restore
	Restored bool     // the restored database is at the path
	Aside    string   // where the old database was moved to, or ""

	// Continues says that what is at the path is known to continue the replica.
	Continues bool

	// Answered says that the replica was asked for a backup and answered: there was
	// none, or it was restored.
	Answered bool
}

// Failure is an error after which the app must not be started. The database is
// as it was.
type Failure struct {
	Sentence string // for a person
	Err      error
}

func (f *Failure) Error() string { return f.Sentence }
func (f *Failure) Unwrap() error { return f.Err }

// ExitCode is exit.Restore.
func (f *Failure) ExitCode() int { return exit.Restore }

// failuref returns a *Failure with a sentence.
func failuref(format string, args ...any) *Failure {
	err := fmt.Errorf(format, args...)
	return &Failure{Sentence: err.Error(), Err: err}
}
