// Package restore puts the right database at a path, or changes nothing.
//
// It gathers facts about the database and the replica, decides (see Decide),
// and where a restore is due it restores into a scratch folder on the same file
// system, verifies the result there, and moves it into place with one rename.
// Whatever happens before that rename leaves everything as it was.
package restore

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/benbjohnson/litestream"
	"github.com/superfly/ltx"

	"github.com/slashacom/slasha-init/internal/durable"
	"github.com/slashacom/slasha-init/restore/check"
)

// Client is a replica to read. It must offer the formats of Litestream 0.5 and
// 0.3 both: a replica of the older one would otherwise look empty.
type Client interface {
	litestream.ReplicaClient
	litestream.ReplicaClientV3

	// Empty reports whether the replica answered that it holds no backup in any
	// format.
	Empty(ctx context.Context) (bool, error)
}

// Config is what a restore needs. DBPath, StateDir and Client are required.
type Config struct {
	DBPath   string // absolute path of the database
	StateDir string // our own folder, on the file system of DBPath
	Client   Client

	// Explain turns an error of the client into one sentence and says whether
	// the same request may succeed later. Required.
	Explain func(error) (sentence string, temporary bool)

	// Patience is for how long a replica that does not answer is asked again
	// when the database is missing.
	Patience time.Duration

	// Request asks for a restore over the existing database, once: a request of
	// the same words is not carried out again. "" asks for none.
	Request string

	// Force asks for a restore over the existing database now. It is not noted:
	// who asks again gets another one.
	Force bool

	// Timestamp asks for the state at that moment instead of the newest. Zero
	// is the newest.
	Timestamp time.Time

	// Gently leaves most of a processor and of the line to others, for a restore
	// that nobody waits for.
	Gently bool

	// Check is how what was restored is looked at before it counts.
	Check check.Kind

	// Compare says how a database that is there stands to the replica; see package
	// lineage. Nil takes every one for its continuation.
	Compare func(context.Context) (Comparison, error)

	// OnStale is what to do about one that the replica has left behind.
	OnStale OnStale

	// Adopt is called with a file that is about to become the database, and the
	// newest transaction of the replica that it was made from: from there it goes
	// on. Optional.
	Adopt func(file string, newest ltx.TXID) error

	// Reserve keeps others from opening a database that is there and is about to be
	// replaced, until release is called, or says why it must not be replaced: one of
	// them has it open. Nil takes nobody to have.
	Reserve func() (release func(), err error)

	// Seal is called before a state that is older than the replica's newest takes
	// the database's place. What is uploaded from then on is a new line; it must
	// not be merged with the old one, which would then be lost. Required with
	// Timestamp.
	Seal func(context.Context) error

	// OnWaiting is called with the reason each time that a replica out of reach
	// is going to be asked again. Optional.
	OnWaiting func(sentence string)

	// OnProgress is called a few times a second during a restore, and with its
	// end, from one goroutine at a time. Optional.
	OnProgress func(Progress)

	Logger *slog.Logger

	reason  Reason            // of the restore that is made
	onStep  func(step string) // of tests, which crash there
	newPace func() *pace      // of tests, which count the rests
}

func (cfg Config) step(name string) {
	if cfg.onStep != nil {
		cfg.onStep(name)
	}
}

// Comparison is how a database stands to the replica.
type Comparison struct {
	Empty bool   // the replica has nothing to compare with
	Stale bool   // the replica has something that the database lacks
	How   string // a sentence with both positions
}

// Reason is why a restore is made.
type Reason string

// The reasons, as health tells them.
const (
	ReasonMissing Reason = "missing"
	ReasonPending Reason = "pending" // somebody asked for it
	ReasonStale   Reason = "stale"
)

// Progress is how far a restore is.
type Progress struct {
	BytesDone  int64 // read from the replica
	BytesTotal int64 // of the plan; 0 when not known
	Took       time.Duration
	TXID       ltx.TXID // that it leads to; 0 when not known
	Newest     ltx.TXID // of the replica, which may be newer
	Reason     Reason
}

// Rate is the average rate in bytes per second.
func (p Progress) Rate() int64 {
	if p.Took <= 0 {
		return 0
	}
	return int64(float64(p.BytesDone) / p.Took.Seconds())
}

// Left is how long the rest of the reading will take at that rate, to the second;
// known is false where nothing can be said yet.
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
	Decision
	Progress Progress // of a restore
	Restored bool     // the restored database is at the path
	Aside    string   // where the old database was moved to, or ""

	// Compared says that what is at the path is known to continue the replica.
	Compared bool
}

// Failure is an error after which the app must not be started. The database is
// as it was.
type Failure struct {
	Sentence string // for a person
	Err      error
}

func (f *Failure) Error() string { return f.Sentence }
func (f *Failure) Unwrap() error { return f.Err }

// Run makes sure that the database at the path is the right one. It returns a
// *Failure when it can't, or the context's error when it was told to stop; in
// both cases nothing was changed.
func Run(ctx context.Context, cfg Config) (Outcome, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	if _, err := recoverSwap(cfg); err != nil {
		return Outcome{}, &Failure{Sentence: fmt.Sprintf("cannot end a restore that was interrupted: %v", err), Err: err}
	}
	if err := os.RemoveAll(scratchDir(cfg)); err != nil {
		return Outcome{}, &Failure{Sentence: fmt.Sprintf("cannot clear what an earlier restore left behind: %v", err), Err: err}
	}
	facts, p, err := gather(ctx, cfg)
	if err != nil {
		return Outcome{}, err
	}
	switch {
	case facts.Asked == Pending:
		cfg.reason = ReasonPending
	case facts.Lineage == Stale:
		cfg.reason = ReasonStale
		cfg.Request, cfg.Timestamp = "", time.Time{} // what was asked for before is another thing
	default:
		cfg.reason = ReasonMissing
	}
	out := Outcome{Decision: Decide(facts), Progress: Progress{Reason: cfg.reason}}
	cfg.Logger.Info("decided", "action", out.Action.String(), "why", out.Why,
		"database", facts.Database.String(), "asked", facts.Asked.String(), "lineage", facts.Lineage.String(), "replica", facts.Replica.String())
	switch out.Action {
	case Fail:
		return out, &Failure{Sentence: out.Why, Err: facts.Err}
	case Start:
		out.Compared = facts.Lineage == Continues || facts.Replica == Empty
	case Fresh:
		// A WAL or journal of a database that is gone must not be applied to
		// the one that the app is about to make.
		if err := MakeFolder(filepath.Dir(cfg.DBPath)); err != nil {
			return out, &Failure{Sentence: err.Error(), Err: err}
		}
		if err := setAsideLeftovers(cfg); err != nil {
			return out, &Failure{Sentence: err.Error(), Err: err}
		}
		out.Compared = true
	case Restore:
		release, err := reserve(cfg, facts.Database)
		if err != nil {
			return out, err
		}
		defer release()
		out.Progress, out.Aside, err = restore(ctx, cfg, facts, p)
		out.Compared = err == nil
		out.Restored = err == nil
		if err != nil {
			return out, errors.Join(err, ctx.Err())
		}
	}
	if err == nil || ctx.Err() != nil {
		return out, errors.Join(err, ctx.Err())
	}
	return out, err
}

// reserve refuses to replace a database that somebody else has open.
func reserve(cfg Config, db Database) (release func(), err error) {
	if cfg.Reserve == nil || db != Present {
		return func() {}, nil
	}
	release, err = cfg.Reserve()
	if err != nil {
		return nil, &Failure{Sentence: "the database can't be replaced: " + err.Error(), Err: err}
	}
	return release, nil
}

// IsDue reports whether the restore that cfg requests has not been carried out.
// What can't be known counts as due: Run will say what is wrong.
func IsDue(cfg Config) bool {
	a, err := asked(cfg)
	return a == Pending || err != nil
}

// newLineFile is there as long as the replica lacks a snapshot of the new line.
func newLineFile(stateDir string) string { return filepath.Join(stateDir, "new-line") }

// OnNewLine reports whether the database does not continue the newest that the
// replica has: what is uploaded next must be followed by a snapshot. It stays so, over
// restarts, until Anchored is called.
func OnNewLine(stateDir string) bool {
	_, err := os.Stat(newLineFile(stateDir))
	return err == nil
}

// Anchored notes that the replica has a snapshot of the line that a restore to a
// point in time began.
func Anchored(stateDir string) error {
	if err := os.Remove(newLineFile(stateDir)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// beginNewLine notes, before the database is in its place, that it continues an
// older state than the replica's newest.
func beginNewLine(ctx context.Context, cfg Config) error {
	if err := cfg.Seal(ctx); err != nil {
		sentence, _ := cfg.Explain(err)
		return &Failure{Sentence: "cannot keep what is newer than the point in time: " + sentence, Err: err}
	}
	if err := BeginNewLine(cfg.StateDir); err != nil {
		return &Failure{Sentence: fmt.Sprintf("cannot note the way back in time: %v", err), Err: err}
	}
	return nil
}

// BeginNewLine notes, on the disk, that what the database is going to be does not
// continue the newest that the replica has.
func BeginNewLine(stateDir string) error {
	if err := os.MkdirAll(stateDir, 0o711); err != nil {
		return err
	}
	return durable.WriteFile(newLineFile(stateDir), nil, 0o644)
}

// restore reads the database into the scratch folder, verifies it and moves it
// into place. It returns where the old one was set aside.
func restore(ctx context.Context, cfg Config, f Facts, p plan) (done Progress, aside string, err error) {
	if err := MakeFolder(filepath.Dir(cfg.DBPath)); err != nil {
		return Progress{}, "", &Failure{Sentence: err.Error(), Err: err}
	}
	scratch := scratchDir(cfg)
	defer func() { _ = os.RemoveAll(scratch) }()
	if err := os.MkdirAll(scratch, 0o700); err != nil {
		return Progress{}, "", &Failure{Sentence: fmt.Sprintf("cannot make the scratch folder: %v", err), Err: err}
	}
	file := filepath.Join(scratch, filepath.Base(cfg.DBPath))
	done, err = fetchPlan(ctx, cfg, file, 0, p)
	if err == nil && p.older {
		cfg.Logger.Info("a new line begins here; what is newer stays in the replica within the retention", "txid", p.txid.String(), "newest_before", p.catalog.newest().String())
		err = beginNewLine(ctx, cfg)
	}
	if err == nil && cfg.Adopt != nil {
		if err = cfg.Adopt(file, done.Newest); err != nil {
			err = &Failure{Sentence: err.Error(), Err: err}
		}
	}
	switch {
	case err != nil:
		return done, "", err
	case f.Database == Present:
		request := cfg.Request
		if cfg.Force {
			request = ""
		}
		aside, err = exchange(cfg, file, request, done.TXID.String())
	default:
		err = installMissing(cfg, file, f, done)
	}
	if err != nil {
		return done, "", &Failure{Sentence: err.Error(), Err: err}
	}
	cfg.Logger.Info("restored", "path", cfg.DBPath, "txid", done.TXID.String(),
		"bytes", done.BytesDone, "took", done.Took.Round(time.Millisecond))
	return done, aside, nil
}

// installMissing puts the file where no database is, and notes that a request
// for it was carried out: the next start must not restore over what the app has
// written by then.
func installMissing(cfg Config, file string, f Facts, done Progress) error {
	if f.Asked == Pending && !cfg.Force {
		l, err := readLedger(cfg)
		if err != nil {
			return err
		}
		// Before the file is in place: a crash in between is followed by a restore
		// all the same, as long as the database is missing.
		l.add(carriedOut{Request: cfg.Request, At: time.Now().UTC(), TXID: done.TXID.String()})
		if err := l.write(cfg); err != nil {
			return err
		}
	}
	return Install(cfg, file)
}
